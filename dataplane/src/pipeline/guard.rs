//! Anti-spoofing: what a port sends must carry what belongs to it (MAC and address), or what an allowed pair adds.

use super::metadata;
use crate::packet::parse::{IPV4_MAPPED, Parsed, protocol};
use crate::packet::{DropReason, Family, Mac};
use crate::snapshot::{Port, Snapshot};

/// Checks an IP packet from a port.
///
/// # Errors
/// Which of MAC and address does not belong to the port.
pub fn check(snapshot: &Snapshot, port: &Port, parsed: &Parsed) -> Result<(), DropReason> {
    if !port.guarded {
        return Ok(());
    }
    let (mac, source) = (parsed.eth_src, parsed.flow.source);
    if port.owns(source, mac)
        || (mac == port.mac
            && (may_be_own_link_local(snapshot, port, source)
                || is_joining(parsed)
                || asks_wire_for_address(snapshot, port, parsed)))
    {
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

/// Whether an address is a link-local one of IPv6 (RFC 4291 §2.5.6).
pub fn is_link_local(address: u128) -> bool {
    address >> 118 == 0xfe80 >> 6
}

/// The MAC that a link-local address is derived from, if it is one of these.
pub fn mac_of_link_local(address: u128) -> Option<Mac> {
    let [a, b, c, 0xff, 0xfe, d, e, f] = (address as u64).to_be_bytes() else {
        return None;
    };
    let mac = Mac::from_bytes([a ^ 0x02, b, c, d, e, f]);
    (address == link_local(mac)).then_some(mac)
}

/// Whether a link-local address may be the port's: nodes choose them as they like (RFC 7217, RFC 8064), but not the one that the gateway or
/// another port of the subnet derives from its MAC.
pub fn may_be_own_link_local(snapshot: &Snapshot, port: &Port, address: u128) -> bool {
    let is_taken = |mac: Mac| {
        let other = snapshot.vpcs[port.vpc].by_mac.get(&mac);
        mac == snapshot.subnets[port.subnet].gateway_mac
            || other.is_some_and(|other| other.subnet == port.subnet && !port.owns_mac(mac))
    };
    is_link_local(address) && !mac_of_link_local(address).is_some_and(is_taken)
}

/// Whether a host that has no address yet joins or leaves a group: MLD from `::` (RFC 3590), IGMP from 0.0.0.0 (RFC 3376 §4.2.13).
fn is_joining(parsed: &Parsed) -> bool {
    let Parsed { flow, icmp, .. } = parsed;
    is_group(flow.destination)
        && match (parsed.family, flow.protocol) {
            (Family::Ipv4, protocol::IGMP) => flow.source == IPV4_MAPPED,
            (Family::Ipv6, protocol::ICMPV6) => {
                flow.source == 0 && matches!(icmp >> 8, 131 | 132 | 143)
            }
            _ => false,
        }
}

/// Whether a router may pass packets from or to the address on: not "this network" (RFC 1122 §3.2.1.3), loopback, link-local (RFC 3927 §7,
/// RFC 4291 §2.5.6) or reserved (RFC 1112 §4). 169.254.169.254 is where clouds offer metadata, and where a tenant may route to an instance that does.
pub fn may_be_routed(address: u128) -> bool {
    if address >> 32 == IPV4_MAPPED >> 32 {
        match (address as u32).to_be_bytes() {
            [0 | 127 | 240.., ..] => false,
            octets @ [169, 254, ..] => octets == metadata::IPV4.octets(),
            _ => true,
        }
    } else {
        address > 1 && !is_link_local(address)
    }
}

/// Whether a guest without an address asks a DHCP server of its external network for one (RFC 2131 §4.1), where this host answers nothing.
fn asks_wire_for_address(snapshot: &Snapshot, port: &Port, parsed: &Parsed) -> bool {
    let flow = &parsed.flow;
    flow.source == IPV4_MAPPED
        && flow.protocol == protocol::UDP
        && (flow.source_port, flow.destination_port) == (68, 67)
        && flow.destination as u32 == u32::MAX
        && snapshot.wire_of(port).is_some()
        && snapshot.subnets[port.subnet].guests.is_none()
}

/// Whether a packet is a message that only routers and servers send: router advertisement (RFC 4861 §4.2, RFC 1256 §3), redirect, DHCP or
/// DHCPv6 from a server's port.
pub fn is_rogue_server(parsed: &Parsed) -> bool {
    match (parsed.family, parsed.flow.protocol) {
        (Family::Ipv6, protocol::ICMPV6) => matches!(parsed.icmp >> 8, 134 | 137),
        (Family::Ipv4, protocol::ICMP) => is_ipv4_router(parsed),
        (Family::Ipv4, protocol::UDP) => {
            parsed.flow.source_port == 67 && parsed.flow.destination_port == 68
        }
        (Family::Ipv6, protocol::UDP) => {
            parsed.flow.source_port == 547 && parsed.flow.destination_port == 546
        }
        _ => false,
    }
}

/// Whether a packet is an IPv4 redirect (RFC 792), or the advertisement of an IPv4 router (RFC 1256).
pub fn is_ipv4_router(parsed: &Parsed) -> bool {
    parsed.family == Family::Ipv4
        && parsed.flow.protocol == protocol::ICMP
        && !parsed.is_later_fragment()
        && matches!(parsed.icmp >> 8, 5 | 9)
}

/// Whether an address is a multicast one, or IPv4's limited broadcast.
pub fn is_group(address: u128) -> bool {
    if address >> 32 == IPV4_MAPPED >> 32 {
        (address as u32) >> 28 == 0xe || address as u32 == u32::MAX
    } else {
        address >> 120 == 0xff
    }
}
