//! A quick parse of an inner frame: enough to find the session of the packets that make up nearly all traffic.
//!
//! It knows IPv4 without options and IPv6 without extension headers, whole TCP segments in mid-connection, and whole UDP datagrams. Of these it
//! checks every length and checksum that the parser checks; but not the addresses, which the judgement that a session keeps has seen.
//! Everything else is none of its business: the answer is none, and the parser looks again.

use crate::numbers::Vni;
use crate::packet::Family;
use crate::packet::checksum;
use crate::packet::nested;
use crate::packet::parse::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, protocol, tcp_flags};
use crate::session::{Key, Seeds};

/// What a quick parse shows. Offsets count from the Ethernet header.
#[derive(Debug, Clone, Copy, Default)]
pub struct QuickParse {
    /// The session's key.
    pub key: Key,
    /// Bytes of the IP packet.
    pub ip_len: u16,
    /// Offset of the transport header: 34 for IPv4, 54 for IPv6.
    pub l4: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// TCP; UDP otherwise.
    pub tcp: bool,
}

impl QuickParse {
    /// The packet's family.
    #[inline(always)]
    pub fn family(&self) -> Family {
        if self.l4 == L4_IPV6 {
            Family::Ipv6
        } else {
            Family::Ipv4
        }
    }
}

/// Offset of the IPv6 transport header.
pub const L4_IPV6: u8 = (ETHERNET + 40) as u8;
const L4_IPV4: u8 = (ETHERNET + 20) as u8;

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

/// Looks at a frame of the VPC `vni`, no longer than 65535 bytes, and fills in what it shows; none if that is not enough. Completes a checksum that the sender's kernel left to its device.
#[inline(always)]
pub fn quick_parse(frame: &mut [u8], seeds: &Seeds, vni: Vni, seen: &mut QuickParse) -> Option<()> {
    let head: &[u8; 42] = frame.first_chunk()?;
    match (be16(head, 12), head[14]) {
        (ETHERTYPE_IPV4, 0x45) => ipv4(frame, seeds, vni, seen),
        (ETHERTYPE_IPV6, version) if version >> 4 == 6 => ipv6(frame, seeds, vni, seen),
        _ => None,
    }
}

#[inline(always)]
fn ipv4(frame: &mut [u8], seeds: &Seeds, vni: Vni, seen: &mut QuickParse) -> Option<()> {
    let head: &[u8; 42] = frame.first_chunk()?;
    let ip_len = be16(head, 16);
    // Sums are the same in either order of bytes (RFC 1071 §2).
    let word = |at: usize| {
        u64::from(u32::from_ne_bytes([
            head[at],
            head[at + 1],
            head[at + 2],
            head[at + 3],
        ]))
    };
    let addresses = word(26) + word(30);
    let sum = word(14) + word(18) + word(22) + addresses;
    if head[20] & 0x3f != 0 || head[21] != 0 || !checksum::is_right(sum) {
        return None;
    }
    let (source, destination) = (be32(head, 26), be32(head, 30));
    let (class, ttl, number, ports) = (
        head[15],
        head[22],
        head[23],
        [be16(head, 34), be16(head, 36)],
    );
    let tcp = transport(frame, L4_IPV4, ip_len.checked_sub(20)?, number, addresses)?;
    // The 128-bit form of an IPv4 address: `::ffff:a.b.c.d`.
    let word = |address: u32| [0, 0xffff << 32 | u64::from(address)];
    seen.key = Key::of(
        seeds,
        (word(source), ports[0]),
        (word(destination), ports[1]),
        number,
        vni,
    );
    seen.ip_len = ip_len;
    seen.l4 = L4_IPV4;
    seen.ttl = ttl;
    seen.traffic_class = class;
    seen.tcp = tcp;
    Some(())
}

#[inline(always)]
fn ipv6(frame: &mut [u8], seeds: &Seeds, vni: Vni, seen: &mut QuickParse) -> Option<()> {
    let head: &[u8; 62] = frame.first_chunk()?;
    let payload = be16(head, 18);
    let address = |at: usize| [be64(head, at), be64(head, at + 8)];
    let (source, destination) = (address(22), address(38));
    // Keys hold IPv4 addresses in this form: such a packet must not pass for one of an IPv4 flow.
    let mapped = |[high, low]: [u64; 2]| high == 0 && low >> 32 == 0xffff;
    if mapped(source) || mapped(destination) {
        return None;
    }
    let (class, ttl, number, ports) = (
        head[14] << 4 | head[15] >> 4,
        head[21],
        head[20],
        [be16(head, 54), be16(head, 56)],
    );
    let word = |at: usize| {
        u64::from(u32::from_ne_bytes([
            head[at],
            head[at + 1],
            head[at + 2],
            head[at + 3],
        ]))
    };
    let addresses = (22..54).step_by(4).map(word).sum();
    let tcp = transport(frame, L4_IPV6, payload, number, addresses)?;
    seen.key = Key::of(
        seeds,
        (source, ports[0]),
        (destination, ports[1]),
        number,
        vni,
    );
    seen.ip_len = payload.checked_add(40)?;
    seen.l4 = L4_IPV6;
    seen.ttl = ttl;
    seen.traffic_class = class;
    seen.tcp = tcp;
    Some(())
}

/// The transport header; `len` is what IP says of header and payload, which has to be there, `addresses` the sum of the addresses in the machine's order
/// of bytes. True: TCP.
#[inline(always)]
fn transport(frame: &mut [u8], l4: u8, len: u16, number: u8, addresses: u64) -> Option<bool> {
    let l4 = usize::from(l4);
    let segment = frame.get_mut(l4..l4 + usize::from(len))?;
    let at = match number {
        protocol::UDP => {
            let head: &[u8; 8] = segment.first_chunk()?;
            let said = be16(head, 4);
            if said < 8 || said > len {
                return None;
            }
            if nested::is_tunnel_port(be16(head, 2)) {
                nested::complete(segment, number);
            }
            checksum::UDP_AT
        }
        protocol::TCP => {
            let head: &[u8; 20] = segment.first_chunk()?;
            let header_len = u16::from(head[12] >> 4) * 4;
            // Whatever begins or ends a connection deserves a closer look.
            let flags =
                head[13] & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST | tcp_flags::ACK);
            if header_len < 20 || header_len > len || flags != tcp_flags::ACK {
                return None;
            }
            checksum::TCP_AT
        }
        _ => return None,
    };
    let pseudo = addresses + u64::from(u16::from(number).to_be()) + u64::from(len.to_be());
    checksum::complete(segment, at, pseudo);
    Some(number == protocol::TCP)
}
