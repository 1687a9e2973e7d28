//! Anti-spoofing: what a port sends must carry what belongs to it (MAC and address), or what an allowed pair adds.

use crate::packet::parse::{IPV4_MAPPED, Parsed, protocol};
use crate::packet::{DropReason, Family, Mac};
use crate::snapshot::Port;

/// Checks an IP packet from a port.
///
/// # Errors
/// Which of MAC and address does not belong to the port.
pub fn check(port: &Port, parsed: &Parsed) -> Result<(), DropReason> {
    if !port.guarded {
        return Ok(());
    }
    let (mac, source) = (parsed.eth_src, parsed.flow.source);
    if port.owns(source, mac) || is_own_link_local(source, mac, port) {
        return Ok(());
    }
    Err(match (port.owns_mac(mac), port.owns_address(source)) {
        (false, false) => DropReason::SpoofedBoth,
        (false, true) => DropReason::SpoofedMac,
        (true, _) => DropReason::SpoofedAddress,
    })
}

/// The link-local address that every IPv6 node derives from its MAC (RFC 4291 appendix A).
pub fn link_local(mac: Mac) -> u128 {
    let [a, b, c, d, e, f] = mac.bytes();
    let interface = u64::from_be_bytes([a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]);
    0xfe80 << 112 | u128::from(interface)
}

fn is_own_link_local(address: u128, mac: Mac, port: &Port) -> bool {
    mac == port.mac && address == link_local(mac)
}

/// Whether a packet is a message that only routers and servers send: router advertisement, DHCP or DHCPv6 from a server's port.
pub fn is_rogue_server(parsed: &Parsed) -> bool {
    match (parsed.family, parsed.flow.protocol) {
        (Family::Ipv6, protocol::ICMPV6) => parsed.icmp >> 8 == 134,
        (Family::Ipv4, protocol::UDP) => {
            parsed.flow.source_port == 67 && parsed.flow.destination_port == 68
        }
        (Family::Ipv6, protocol::UDP) => {
            parsed.flow.source_port == 547 && parsed.flow.destination_port == 546
        }
        _ => false,
    }
}

/// Whether an address is a multicast one, or IPv4's limited broadcast.
pub fn is_group(address: u128) -> bool {
    if address >> 32 == IPV4_MAPPED >> 32 {
        (address as u32) >> 28 == 0xe || address as u32 == u32::MAX
    } else {
        address >> 120 == 0xff
    }
}
