//! Checksums inside of a guest's own tunnels.
//!
//! A container's kernel leaves the checksum of a packet inside VXLAN, Geneve, GRE or IP to its veth device; the outer checksum is already
//! right (local checksum offload). There is no indication of where such a checksum is, so it is searched at the offsets that these tunnels
//! have. Packets that do not match are not changed.

use super::checksum;
use super::parse::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Family, protocol};

/// Tunnels in tunnels that are looked into.
const DEPTH: u8 = 2;
/// Bytes of a UDP header.
const UDP: usize = 8;
/// UDP ports of VXLAN (RFC 7348; Linux's own default, which flannel uses) and of Geneve (RFC 8926).
const VXLAN: [u16; 2] = [4789, 8472];
const GENEVE: u16 = 6081;
/// EtherType of an Ethernet frame in a tunnel (transparent Ethernet bridging).
const ETHERTYPE_ETHERNET: u16 = 0x6558;
/// IPv4 and IPv6 in IP (RFC 2003, RFC 4213).
const IPV4_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;

/// Whether datagrams to a UDP port are those of a tunnel.
#[inline(always)]
pub fn is_tunnel_port(port: u16) -> bool {
    // One comparison for nearly all.
    (VXLAN[0]..=VXLAN[1]).contains(&port) && (VXLAN.contains(&port) || port == GENEVE)
}

/// Completes what was left to a device within a transport segment: its header and what follows it.
#[cold]
#[inline(never)]
pub fn complete(segment: &mut [u8], number: u8) {
    // None: it is no tunnel, or cut short.
    let _ = within(segment, number, DEPTH);
}

fn within(segment: &mut [u8], number: u8, depth: u8) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    match number {
        protocol::UDP => {
            let port = be16(segment, 2)?;
            if VXLAN.contains(&port) {
                ethernet(segment.get_mut(UDP + 8..)?, depth)
            } else if port == GENEVE {
                let options = usize::from(*segment.get(UDP)? & 0x3f) * 4;
                let kind = be16(segment, UDP + 2)?;
                carried(segment.get_mut(UDP + 8 + options..)?, kind, depth)
            } else {
                None
            }
        }
        protocol::GRE => {
            let flags = *segment.first()?;
            // Checksum, key, sequence number (RFC 2784 §2.1, RFC 2890 §2).
            let fields = (flags >> 7) + (flags >> 5 & 1) + (flags >> 4 & 1);
            let kind = be16(segment, 2)?;
            carried(segment.get_mut(4 + usize::from(fields) * 4..)?, kind, depth)
        }
        IPV4_IN_IP => ip(segment, ETHERTYPE_IPV4, depth),
        IPV6_IN_IP => ip(segment, ETHERTYPE_IPV6, depth),
        _ => None,
    }
}

fn carried(packet: &mut [u8], kind: u16, depth: u8) -> Option<()> {
    match kind {
        ETHERTYPE_ETHERNET => ethernet(packet, depth),
        kind => ip(packet, kind, depth),
    }
}

fn ethernet(frame: &mut [u8], depth: u8) -> Option<()> {
    let kind = be16(frame, 12)?;
    ip(frame.get_mut(ETHERNET..)?, kind, depth)
}

fn ip(packet: &mut [u8], kind: u16, depth: u8) -> Option<()> {
    let (family, l4, end, number) = match kind {
        ETHERTYPE_IPV4 => {
            let header_len = usize::from(*packet.first()? & 0x0f) * 4;
            // Of a datagram in pieces nobody leaves the checksum.
            if be16(packet, 6)? & 0x3fff != 0 {
                return None;
            }
            let end = usize::from(be16(packet, 2)?);
            (Family::Ipv4, header_len, end, *packet.get(9)?)
        }
        ETHERTYPE_IPV6 => {
            let end = 40 + usize::from(be16(packet, 4)?);
            (Family::Ipv6, 40, end, *packet.get(6)?)
        }
        _ => return None,
    };
    let address = |at: usize| -> Option<u128> {
        Some(match family {
            Family::Ipv4 => u32::from_be_bytes(packet.get(at..at + 4)?.try_into().ok()?).into(),
            Family::Ipv6 => u128::from_be_bytes(packet.get(at..at + 16)?.try_into().ok()?),
        })
    };
    let (source, destination) = match family {
        Family::Ipv4 => (address(12)?, address(16)?),
        Family::Ipv6 => (address(8)?, address(24)?),
    };
    let segment = packet.get_mut(l4..end)?;
    let _ = within(segment, number, depth);
    let len = segment.len() as u32;
    let pseudo = checksum::pseudo_header(family, source, destination, number, len);
    checksum::complete_transport(segment, number, pseudo);
    Some(())
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}
