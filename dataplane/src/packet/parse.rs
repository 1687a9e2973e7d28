//! Parsing of inner frames: one pass that checks every length and returns the flow and the offsets.
//!
//! Called for each packet from a port, and for each inner frame from the uplink. What this module accepts, later stages may index without
//! checking again: `l3`, `l4` and `end` of [`Parsed`] lie within the frame, and the transport header is whole unless the packet is a later
//! fragment.

use super::checksum;
use super::drop_reason::DropReason;
use super::mac::Mac;

#[cfg(test)]
mod tests;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of the tag of a VLAN (IEEE 802.1Q §9.3).
pub const VLAN_TAG: usize = 4;
/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of a customer VLAN tag (IEEE 802.1Q §9.5).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// IP protocol numbers that the dataplane looks into.
pub mod protocol {
    #![allow(missing_docs)]
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const IGMP: u8 = 2;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const GRE: u8 = 47;
    pub const ICMPV6: u8 = 58;
    pub const NO_NEXT: u8 = 59;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const SCTP: u8 = 132;
}

/// TCP flags (RFC 9293 §3.1).
pub mod tcp_flags {
    #![allow(missing_docs)]
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
    pub const CWR: u8 = 0x80;
}

/// At most so many IPv6 extension headers are followed.
const MAX_EXTENSIONS: usize = 8;
/// `::ffff:0:0/96`, where IPv4 addresses live in the 128-bit form.
pub const IPV4_MAPPED: u128 = 0xffff_0000_0000;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[allow(missing_docs)]
pub enum Family {
    #[default]
    Ipv4,
    Ipv6,
}

/// The 128-bit form of an IPv4 address.
#[inline]
pub(crate) fn mapped(address: u32) -> u128 {
    IPV4_MAPPED + u128::from(address)
}

/// The 128-bit form of an address: IPv4 as IPv4-mapped IPv6, which no IPv6 packet may carry here.
pub fn address_word(address: std::net::IpAddr) -> u128 {
    match address {
        std::net::IpAddr::V4(v4) => mapped(v4.to_bits()),
        std::net::IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of a 128-bit form.
pub fn word_address(word: u128) -> std::net::IpAddr {
    if word >> 32 == IPV4_MAPPED >> 32 {
        std::net::Ipv4Addr::from_bits(word as u32).into()
    } else {
        std::net::Ipv6Addr::from_bits(word).into()
    }
}

/// The family of an address in its 128-bit form.
pub fn word_family(word: u128) -> Family {
    if word >> 32 == IPV4_MAPPED >> 32 {
        Family::Ipv4
    } else {
        Family::Ipv6
    }
}

/// Who talks to whom. For ICMP queries the identifier stands on the asking side, and on the other side the identifier plus a number that
/// stands for the query's type, so that an answer is the reverse of its question and of nothing else, least of all of a question that
/// the other end asks under some identifier. For other ICMP, type and code stand in `destination_port`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs)]
pub struct Flow {
    pub source: u128,
    pub destination: u128,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
}

impl Flow {
    /// The same flow seen from the other side.
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }

    /// ICMP type and code of a flow whose ports stand for them, seen the way in which it was opened. The code of a query is 0.
    pub fn opening_icmp(&self) -> u16 {
        let word = self.destination_port.wrapping_sub(self.source_port);
        if is_query(self.family(), (word >> 8) as u8) {
            word & 0xff00
        } else {
            word
        }
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        word_family(self.source)
    }
}

/// Where a packet stands in a fragmented datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// The datagram's identification.
    pub id: u32,
    /// Offset of this fragment's payload in the datagram's, in bytes.
    pub offset: u16,
    /// Bytes of the fragmentable part in this fragment.
    pub len: u16,
    /// More follow.
    pub more: bool,
}

/// What is known of an IP packet after parsing. Offsets count from the Ethernet header.
#[derive(Debug, Clone, Copy)]
pub struct Parsed {
    /// Destination MAC.
    pub eth_dst: Mac,
    /// Source MAC.
    pub eth_src: Mac,
    /// IPv4 or IPv6.
    pub family: Family,
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset of the transport header, or of the payload for later fragments.
    pub l4: u16,
    /// End of the IP packet; bytes beyond are padding.
    pub end: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// IPv4 "don't fragment"; true for IPv6.
    pub dont_fragment: bool,
    /// TCP flags, 0 for others.
    pub tcp_flags: u8,
    /// Who talks to whom; no ports for later fragments.
    pub flow: Flow,
    /// For ICMP: type in the high byte, code in the low one.
    pub icmp: u16,
    /// Where it stands, if it is a fragment.
    pub fragment: Option<Fragment>,
}

impl Parsed {
    /// Bytes of the IP packet.
    pub fn ip_len(&self) -> u16 {
        self.end - self.l3
    }

    /// Whether this is a fragment other than the first.
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset != 0)
    }
}

/// What an inner frame holds.
#[derive(Debug, Clone, Copy)]
pub enum Inner {
    /// An IP packet.
    Ip(Parsed),
    /// An ARP packet, not looked into yet.
    Arp,
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..at + 2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at + 4)
        .map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
}

fn be128(bytes: &[u8], at: usize) -> Option<u128> {
    let word: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(u128::from_be_bytes(word))
}

/// The two MACs of a frame.
pub fn macs(frame: &[u8]) -> Option<(Mac, Mac)> {
    let header: &[u8; 12] = frame.get(..12)?.try_into().ok()?;
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *header;
    Some((
        Mac::from_bytes([a, b, c, d, e, f]),
        Mac::from_bytes([g, h, i, j, k, l]),
    ))
}

/// Whether a frame bears a tag with a priority and no VLAN, so that it is as if it had none (IEEE 802.1Q §6.9.1, §9.6).
#[inline]
pub fn is_priority_tagged(frame: &[u8]) -> bool {
    be16(frame, 12) == Some(ETHERTYPE_VLAN) && be16(frame, 14).is_some_and(|tag| tag & 0xfff == 0)
}

/// Parses an inner Ethernet frame.
///
/// # Errors
/// Why the frame is to be dropped.
pub fn inner(frame: &[u8]) -> Result<Inner, DropReason> {
    let (eth_dst, eth_src) = macs(frame).ok_or(DropReason::Truncated)?;
    if frame.len() > usize::from(u16::MAX) {
        return Err(DropReason::Truncated);
    }
    match be16(frame, 12).ok_or(DropReason::Truncated)? {
        ETHERTYPE_IPV4 => ipv4(frame, ETHERNET, eth_dst, eth_src).map(Inner::Ip),
        ETHERTYPE_IPV6 => ipv6(frame, ETHERNET, eth_dst, eth_src).map(Inner::Ip),
        ETHERTYPE_ARP => Ok(Inner::Arp),
        _ => Err(DropReason::EtherType),
    }
}

/// IPv4 (RFC 791), from `frame[l3..]`.
fn ipv4(frame: &[u8], l3: usize, eth_dst: Mac, eth_src: Mac) -> Result<Parsed, DropReason> {
    let header: &[u8; 20] = frame
        .get(l3..l3 + 20)
        .and_then(|h| h.try_into().ok())
        .ok_or(DropReason::Truncated)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || header_len < 20 || total < header_len || l3 + total > frame.len() {
        return Err(DropReason::Ipv4Header);
    }
    if checksum::fold(checksum::sum(&frame[l3..l3 + header_len])) != 0xffff {
        return Err(DropReason::Ipv4Checksum);
    }
    if header_len != 20 {
        ipv4_options(&frame[l3 + 20..l3 + header_len])?;
    }
    let source = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
    let destination = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
    let bits = u16::from_be_bytes([header[6], header[7]]);
    let (more, offset) = (bits & 0x2000 != 0, (bits & 0x1fff) * 8);
    let payload = total - header_len;
    let fragment = if more || offset != 0 {
        if usize::from(offset) + payload > 65535 - 20 || (more && payload % 8 != 0) || payload == 0
        {
            return Err(DropReason::Ipv4Header);
        }
        Some(Fragment {
            id: u32::from(u16::from_be_bytes([header[4], header[5]])),
            offset,
            len: payload as u16,
            more,
        })
    } else {
        None
    };
    let mut parsed = Parsed {
        eth_dst,
        eth_src,
        family: Family::Ipv4,
        l3: l3 as u16,
        l4: (l3 + header_len) as u16,
        end: (l3 + total) as u16,
        ttl: header[8],
        traffic_class: header[1],
        dont_fragment: bits & 0x4000 != 0,
        tcp_flags: 0,
        flow: Flow {
            source: mapped(source),
            destination: mapped(destination),
            source_port: 0,
            destination_port: 0,
            protocol: header[9],
        },
        icmp: 0,
        fragment,
    };
    check_ipv4_addresses(source, destination)?;
    transport(frame, &mut parsed)?;
    Ok(parsed)
}

/// Source routes are refused, other options pass (RFC 7126).
#[cold]
fn ipv4_options(mut options: &[u8]) -> Result<(), DropReason> {
    while let [kind, rest @ ..] = options {
        options = match kind {
            0 => return Ok(()),
            1 => rest,
            _ => {
                let len = usize::from(*rest.first().ok_or(DropReason::Ipv4Header)?);
                let after = options.get(len..).filter(|_| len >= 2);
                let after = after.ok_or(DropReason::Ipv4Header)?;
                if matches!(kind, 131 | 137) {
                    return Err(DropReason::Ipv4SourceRoute);
                }
                after
            }
        };
    }
    Ok(())
}

/// RFC 1812 §5.3.7. A source of 0.0.0.0 is let through here (DHCP); anti-spoofing judges it.
fn check_ipv4_addresses(source: u32, destination: u32) -> Result<(), DropReason> {
    let loopback = |address: u32| address >> 24 == 127;
    let martian = source >> 28 >= 0xe
        || loopback(source)
        || loopback(destination)
        || destination == 0
        || source == destination;
    if martian {
        Err(DropReason::Martian)
    } else {
        Ok(())
    }
}

/// IPv6 and its extension headers (RFC 8200), from `frame[l3..]`.
fn ipv6(frame: &[u8], l3: usize, eth_dst: Mac, eth_src: Mac) -> Result<Parsed, DropReason> {
    let header: &[u8; 40] = frame
        .get(l3..l3 + 40)
        .and_then(|h| h.try_into().ok())
        .ok_or(DropReason::Truncated)?;
    let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let end = l3 + 40 + payload;
    if header[0] >> 4 != 6 || end > frame.len() || (payload == 0 && header[6] != protocol::NO_NEXT)
    {
        return Err(DropReason::Ipv6Header);
    }
    let source = be128(header, 8).ok_or(DropReason::Truncated)?;
    let destination = be128(header, 24).ok_or(DropReason::Truncated)?;
    check_ipv6_addresses(source, destination)?;
    let (l4, next, fragment) = match header[6] {
        direct @ (protocol::TCP | protocol::UDP | protocol::ICMPV6) => (l3 + 40, direct, None),
        first => ipv6_extensions(&frame[..end], l3 + 40, first, false)?,
    };
    let mut parsed = Parsed {
        eth_dst,
        eth_src,
        family: Family::Ipv6,
        l3: l3 as u16,
        l4: l4 as u16,
        end: end as u16,
        ttl: header[7],
        traffic_class: (u16::from_be_bytes([header[0], header[1]]) >> 4) as u8,
        dont_fragment: true,
        tcp_flags: 0,
        flow: Flow {
            source,
            destination,
            source_port: 0,
            destination_port: 0,
            protocol: next,
        },
        icmp: 0,
        fragment,
    };
    transport(frame, &mut parsed)?;
    Ok(parsed)
}

/// Walks the extension headers: hop-by-hop only first, a fragment header at most once, no routing header of type 0. Ends at an authentication
/// header, as at ESP: to policy both are protocols of their own, in both families (RFC 4302, RFC 4303). `is_cut`: the packet may end anywhere, as
/// one does that is quoted.
#[cold]
fn ipv6_extensions(
    packet: &[u8],
    start: usize,
    first: u8,
    is_cut: bool,
) -> Result<(usize, u8, Option<Fragment>), DropReason> {
    let (mut at, mut next, mut fragment) = (start, first, None);
    for position in 0..=MAX_EXTENSIONS {
        let len = match next {
            protocol::HOP_BY_HOP if position > 0 => return Err(DropReason::Ipv6Extension),
            protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS | protocol::ROUTING => {
                (usize::from(*packet.get(at + 1).ok_or(DropReason::Ipv6Extension)?) + 1) * 8
            }
            protocol::FRAGMENT => 8,
            _ => return Ok((at, next, fragment)),
        };
        let header = packet.get(at..at + len).ok_or(DropReason::Ipv6Extension)?;
        if next == protocol::ROUTING && header[2] == 0 {
            return Err(DropReason::Ipv6RoutingType0);
        }
        if next == protocol::FRAGMENT {
            let bits = u16::from_be_bytes([header[2], header[3]]);
            let (offset, more) = (bits & 0xfff8, bits & 1 != 0);
            let payload = packet.len() - (at + 8);
            if fragment.is_some()
                || (more && !is_cut && !payload.is_multiple_of(8))
                || usize::from(offset) + payload > 65535
            {
                return Err(DropReason::Ipv6Extension);
            }
            // An atomic fragment (RFC 6946) is a whole packet.
            if more || offset != 0 {
                if payload == 0 {
                    return Err(DropReason::Ipv6Extension);
                }
                let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                fragment = Some(Fragment {
                    id,
                    offset,
                    len: payload as u16,
                    more,
                });
            }
            if offset != 0 {
                return Ok((at + 8, header[0], fragment));
            }
        }
        next = header[0];
        at += len;
    }
    Err(DropReason::Ipv6Extension)
}

fn check_ipv6_addresses(source: u128, destination: u128) -> Result<(), DropReason> {
    let martian = source >> 120 == 0xff
        || source == 1
        || destination <= 1
        || word_family(source) == Family::Ipv4
        || word_family(destination) == Family::Ipv4
        || source == destination;
    if martian {
        Err(DropReason::Martian)
    } else {
        Ok(())
    }
}

/// Ports, flags and ICMP type from the transport header; none in later fragments.
fn transport(frame: &[u8], parsed: &mut Parsed) -> Result<(), DropReason> {
    let (l4, end) = (usize::from(parsed.l4), usize::from(parsed.end));
    if let Some(fragment) = parsed.fragment
        && fragment.offset != 0
    {
        // A second fragment at 8 bytes could overwrite the flags of a TCP header (RFC 1858 §3.2, RFC 3128).
        let tiny = fragment.offset < 16 && parsed.flow.protocol == protocol::TCP;
        return if tiny {
            Err(DropReason::FragmentTiny)
        } else {
            Ok(())
        };
    }
    let header = &frame[l4..end];
    let cut_short = if parsed.fragment.is_some() {
        DropReason::FragmentTiny
    } else {
        DropReason::TransportHeader
    };
    match parsed.flow.protocol {
        protocol::TCP => {
            if header.len() < 20 {
                return Err(cut_short);
            }
            let header_len = usize::from(header[12] >> 4) * 4;
            if header_len < 20 {
                return Err(DropReason::TransportHeader);
            }
            if header_len > header.len() {
                return Err(cut_short);
            }
            let flags = header[13] & 0x3f;
            let conflict =
                flags & tcp_flags::SYN != 0 && flags & (tcp_flags::FIN | tcp_flags::RST) != 0;
            if conflict || flags & (tcp_flags::SYN | tcp_flags::RST | tcp_flags::ACK) == 0 {
                return Err(DropReason::TcpFlags);
            }
            parsed.tcp_flags = flags;
            ports(header, parsed);
        }
        protocol::UDP => {
            let length = usize::from(be16(header, 4).ok_or(cut_short)?);
            if header.len() < 8 {
                return Err(cut_short);
            }
            if parsed.fragment.is_none() && (length < 8 || length > header.len()) {
                return Err(DropReason::TransportHeader);
            }
            ports(header, parsed);
        }
        protocol::SCTP => {
            if header.len() < 12 {
                return Err(cut_short);
            }
            ports(header, parsed);
        }
        protocol::ICMP if parsed.family == Family::Ipv4 => icmp(header, parsed, cut_short)?,
        protocol::ICMPV6 if parsed.family == Family::Ipv6 => icmp(header, parsed, cut_short)?,
        _ => {}
    }
    Ok(())
}

fn ports(header: &[u8], parsed: &mut Parsed) {
    parsed.flow.source_port = u16::from_be_bytes([header[0], header[1]]);
    parsed.flow.destination_port = u16::from_be_bytes([header[2], header[3]]);
}

fn icmp(header: &[u8], parsed: &mut Parsed, cut_short: DropReason) -> Result<(), DropReason> {
    if header.len() < 8 {
        return Err(cut_short);
    }
    let (kind, code) = (header[0], header[1]);
    if code != 0 && (is_query(parsed.family, kind) || is_answer(parsed.family, kind)) {
        // The code of a question is 0 (RFC 792, RFC 4443 §4); sessions do not tell others apart, so none may pass for it.
        return Err(DropReason::TransportHeader);
    }
    let id = u16::from_be_bytes([header[4], header[5]]);
    parsed.icmp = u16::from_be_bytes([kind, code]);
    let (source_port, destination_port) = icmp_ports(parsed.family, kind, code, id);
    parsed.flow.source_port = source_port;
    parsed.flow.destination_port = destination_port;
    Ok(())
}

/// Whether an ICMP type is the answer to a question.
pub fn is_answer(family: Family, kind: u8) -> bool {
    match family {
        Family::Ipv4 => matches!(kind, 0 | 14 | 16 | 18),
        Family::Ipv6 => kind == 129,
    }
}

/// Whether an ICMP type is a question that its receiver answers under the same identifier.
pub fn is_query(family: Family, kind: u8) -> bool {
    match family {
        Family::Ipv4 => matches!(kind, 8 | 13 | 15 | 17),
        Family::Ipv6 => kind == 128,
    }
}

/// The port pair that stands for an ICMP message (see [`Flow`]).
pub fn icmp_ports(family: Family, kind: u8, code: u8, id: u16) -> (u16, u16) {
    // No two of these numbers add up to 0, so that no question of one end is the answer to a question of the other.
    let other = |query: u8| id.wrapping_add(u16::from_be_bytes([query, 1]));
    match (family, kind) {
        _ if is_query(family, kind) => (id, other(kind)),
        (Family::Ipv4, 0) => (other(8), id),
        (Family::Ipv4, 14 | 16 | 18) => (other(kind - 1), id),
        (Family::Ipv6, 129) => (other(128), id),
        _ => (0, u16::from_be_bytes([kind, code])),
    }
}

/// The protocol of the transport header of a packet that an ICMP error quotes, and where in the quote it begins. None of a later fragment.
pub fn quoted_transport(family: Family, quote: &[u8]) -> Option<(u8, usize)> {
    match family {
        Family::Ipv4 => {
            let header_len = usize::from(quote.first()? & 0x0f) * 4;
            let is_first = be16(quote, 6)? & 0x1fff == 0;
            (quote[0] >> 4 == 4 && header_len >= 20 && is_first)
                .then_some((*quote.get(9)?, header_len))
        }
        Family::Ipv6 => {
            if quote.first()? >> 4 != 6 {
                return None;
            }
            let (l4, next, fragment) = ipv6_extensions(quote, 40, *quote.get(6)?, true).ok()?;
            fragment
                .is_none_or(|fragment| fragment.offset == 0)
                .then_some((next, l4))
        }
    }
}

/// The flow of the packet that an ICMP error quotes, as its sender sent it. `quote` begins at the quoted IP header, which may be
/// cut anywhere after eight bytes of transport header (RFC 792, RFC 4443 §2.4).
pub fn quoted(family: Family, quote: &[u8]) -> Option<Flow> {
    let (protocol, l4) = quoted_transport(family, quote)?;
    let (source, destination) = match family {
        Family::Ipv4 => {
            let word = |at| be32(quote, at).map(mapped);
            (word(12)?, word(16)?)
        }
        Family::Ipv6 => (be128(quote, 8)?, be128(quote, 24)?),
    };
    let header = quote.get(l4..l4 + 8)?;
    let (source_port, destination_port) = match (protocol, family) {
        (protocol::TCP | protocol::UDP | protocol::SCTP, _) => (be16(header, 0)?, be16(header, 2)?),
        (protocol::ICMP, Family::Ipv4) | (protocol::ICMPV6, Family::Ipv6) => {
            icmp_ports(family, header[0], header[1], be16(header, 4)?)
        }
        _ => (0, 0),
    };
    Some(Flow {
        source,
        destination,
        source_port,
        destination_port,
        protocol,
    })
}

/// Whether an ICMP message reports an error about another packet, which it quotes.
pub fn is_icmp_error(parsed: &Parsed) -> bool {
    let kind = (parsed.icmp >> 8) as u8;
    match (parsed.family, parsed.flow.protocol) {
        (Family::Ipv4, protocol::ICMP) => matches!(kind, 3 | 4 | 5 | 11 | 12) && parsed.icmp != 0,
        (Family::Ipv6, protocol::ICMPV6) => kind < 128 && parsed.icmp != 0,
        _ => false,
    }
}
