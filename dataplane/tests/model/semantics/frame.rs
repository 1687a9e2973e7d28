//! Frames as the model reads them: one field after the other, lengths checked where they are used, no offsets carried further than needed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_dataplane::packet::{DropReason, Offload};

pub type Mac = [u8; 6];

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// The Ethernet header's length: where IP begins.
pub const IP: usize = 14;

/// What tells one flow from another besides addresses and protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Detail {
    Ports(u16, u16),
    /// An ICMP query of this type with this identifier, or the answer to one.
    Query {
        kind: u8,
        id: u16,
        answer: bool,
    },
    /// Any other ICMP message: type and code.
    Message(u8, u8),
    Nothing,
}

/// Who talks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub detail: Detail,
}

impl Flow {
    pub fn reversed(self) -> Self {
        let detail = match self.detail {
            Detail::Ports(source, destination) => Detail::Ports(destination, source),
            Detail::Query { kind, id, answer } => Detail::Query {
                kind,
                id,
                answer: !answer,
            },
            other => other,
        };
        Self {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
            detail,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    /// Sequence space that it takes.
    pub space: u32,
    pub window: u32,
}

impl Segment {
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Where a packet lies in a datagram that its sender has cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    pub id: u32,
    pub offset: usize,
    pub end: usize,
    pub more: bool,
}

impl Fragment {
    pub fn is_first(&self) -> bool {
        self.offset == 0
    }
}

/// An IP packet in its frame.
#[derive(Debug, Clone)]
pub struct Packet {
    pub bytes: Vec<u8>,
    pub dst: Mac,
    pub src: Mac,
    pub flow: Flow,
    pub ttl: u8,
    pub class: u8,
    pub dont_fragment: bool,
    /// Where the transport header begins, and where the IP packet ends.
    pub l4: usize,
    pub end: usize,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    pub tcp: Option<Segment>,
    pub fragment: Option<Fragment>,
    /// What it is to be split into, by whoever does not take it whole.
    pub segment: Option<Offload>,
}

pub enum Decoded {
    Ip(Packet),
    Arp,
}

pub fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub fn mac_at(bytes: &[u8], at: usize) -> Mac {
    bytes[at..at + 6].try_into().unwrap()
}

pub fn v4_at(bytes: &[u8], at: usize) -> IpAddr {
    Ipv4Addr::from_bits(long(bytes, at)).into()
}

pub fn v6_at(bytes: &[u8], at: usize) -> IpAddr {
    let octets: [u8; 16] = bytes[at..at + 16].try_into().unwrap();
    Ipv6Addr::from(octets).into()
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The ones' complement sum (RFC 1071), word by word.
pub fn ones_sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// CRC32c (RFC 9260 appendix A), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

/// The pseudo-header of either family, as words that sum alike.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = octets(source);
    bytes.extend(octets(destination));
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, protocol]);
    bytes
}

/// A checksum at `field` when one word under it changes (RFC 1624, equation 3).
fn amend(bytes: &mut [u8], field: usize, before: u16, after: u16) {
    if before == after {
        return;
    }
    let sum = u32::from(!word(bytes, field)) + u32::from(!before) + u32::from(after);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Writes the addresses of a flow into the header at `l3`, and amends its checksum and that of the transport header: its protocol, and where it is.
fn readdress(bytes: &mut [u8], (l3, v4): (usize, bool), header: Option<(u8, usize)>, to: &Flow) {
    let at = l3 + if v4 { 12 } else { 8 };
    let addresses = [octets(to.source), octets(to.destination)].concat();
    // What has a pseudo-header, and where its checksum is.
    let transport = header.and_then(|(number, l4)| match number {
        TCP => Some(l4 + 16),
        UDP if bytes.get(l4 + 6..l4 + 8) == Some(&[0, 0]) => None,
        UDP | 136 | 33 => Some(l4 + 6),
        ICMPV6 if !v4 => Some(l4 + 2),
        _ => None,
    });
    let transport = transport.filter(|field| field + 2 <= bytes.len());
    if let Some((number, l4)) = header {
        renumber(bytes, number, l4, v4, to.detail);
    }
    for (i, pair) in addresses.as_chunks::<2>().0.iter().enumerate() {
        let (before, after) = (word(bytes, at + 2 * i), u16::from_be_bytes(*pair));
        bytes[at + 2 * i..at + 2 * i + 2].copy_from_slice(pair);
        if v4 {
            amend(bytes, l3 + 10, before, after);
        }
        if let Some(field) = transport {
            amend(bytes, field, before, after);
        }
    }
    if let (Some((UDP, _)), Some(field)) = (header, transport)
        && word(bytes, field) == 0
    {
        bytes[field..field + 2].fill(0xff);
    }
}

/// Writes the ports or the identifier of a flow into the transport header, and amends its checksum, as far as there is one.
fn renumber(bytes: &mut [u8], number: u8, l4: usize, v4: bool, to: Detail) {
    let (field, words) = match (number, to) {
        (TCP, Detail::Ports(source, destination)) => {
            (l4 + 16, vec![(l4, source), (l4 + 2, destination)])
        }
        (UDP, Detail::Ports(source, destination)) => {
            (l4 + 6, vec![(l4, source), (l4 + 2, destination)])
        }
        (ICMP | ICMPV6, Detail::Query { id, .. }) if (number == ICMP) == v4 => {
            (l4 + 2, vec![(l4 + 4, id)])
        }
        _ => return,
    };
    let there = field + 2 <= bytes.len();
    let none = there && number == UDP && word(bytes, field) == 0;
    for (at, after) in words {
        let before = word(bytes, at);
        bytes[at..at + 2].copy_from_slice(&after.to_be_bytes());
        if there && !none {
            amend(bytes, field, before, after);
        }
    }
}

/// Of a packet that an error quotes, the protocol and where its header begins.
fn quoted_transport(quote: &[u8], v4: bool) -> Option<(u8, usize)> {
    if v4 {
        return Some((quote[9], usize::from(quote[0] & 15) * 4));
    }
    let (l4, protocol, _) = extensions(quote, quote[6], true).ok()?;
    Some((protocol, l4))
}

/// Whether a frame's destination is broadcast or multicast.
pub fn is_group_mac(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

/// Whether an address is multicast or the limited broadcast.
pub fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}

pub fn decode(bytes: &[u8]) -> Result<Decoded, DropReason> {
    if bytes.len() < IP {
        return Err(DropReason::Truncated);
    }
    // A tag without a VLAN is as none (IEEE 802.1Q 9.6).
    if word(bytes, 12) == 0x8100 && bytes.len() >= IP + 4 && word(bytes, 14) & 0xfff == 0 {
        return decode_untagged(&[&bytes[..12], &bytes[16..]].concat());
    }
    decode_untagged(bytes)
}

fn decode_untagged(bytes: &[u8]) -> Result<Decoded, DropReason> {
    match word(bytes, 12) {
        0x0800 => decode_v4(bytes).map(Decoded::Ip),
        0x86dd => decode_v6(bytes).map(Decoded::Ip),
        0x0806 => Ok(Decoded::Arp),
        _ => Err(DropReason::EtherType),
    }
}

fn decode_v4(bytes: &[u8]) -> Result<Packet, DropReason> {
    let ip = &bytes[IP..];
    if ip.len() < 20 {
        return Err(DropReason::Truncated);
    }
    let header = usize::from(ip[0] & 15) * 4;
    let total = usize::from(word(ip, 2));
    if ip[0] >> 4 != 4 || header < 20 || total < header || total > ip.len() {
        return Err(DropReason::Ipv4Header);
    }
    if ones_sum(&[&ip[..header]]) != 0xffff {
        return Err(DropReason::Ipv4Checksum);
    }
    check_options(&ip[20..header])?;
    let fragment = fragment_v4(ip, total - header)?;
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (v4_at(ip, 12), v4_at(ip, 16)) else {
        return Err(DropReason::Ipv4Header);
    };
    // RFC 1812 5.3.7; class E counts as no source, the limited broadcast is one of its addresses.
    if source.octets()[0] >= 224
        || source.is_loopback()
        || destination.is_loopback()
        || destination.is_unspecified()
        || source == destination
    {
        return Err(DropReason::Martian);
    }
    let mut packet = Packet {
        bytes: bytes.to_vec(),
        dst: mac_at(bytes, 0),
        src: mac_at(bytes, 6),
        flow: Flow {
            source: source.into(),
            destination: destination.into(),
            protocol: ip[9],
            detail: Detail::Nothing,
        },
        ttl: ip[8],
        class: ip[1],
        dont_fragment: ip[6] & 0x40 != 0,
        l4: IP + header,
        end: IP + total,
        icmp: None,
        tcp: None,
        fragment,
        segment: None,
    };
    transport(&mut packet)?;
    Ok(packet)
}

/// All but the last are multiples of eight bytes, none is empty, and together they are no longer than a datagram may be (RFC 791 3.2).
fn fragment_v4(ip: &[u8], payload: usize) -> Result<Option<Fragment>, DropReason> {
    let (more, offset) = (
        word(ip, 6) & 0x2000 != 0,
        usize::from(word(ip, 6) & 0x1fff) * 8,
    );
    let end = offset + payload;
    if !more && offset == 0 {
        return Ok(None);
    }
    if payload == 0 || (more && !payload.is_multiple_of(8)) || end > 65535 - 20 {
        return Err(DropReason::Ipv4Header);
    }
    let id = u32::from(word(ip, 4));
    Ok(Some(Fragment {
        id,
        offset,
        end,
        more,
    }))
}

/// Source routes are refused, what is malformed too (RFC 7126).
fn check_options(mut options: &[u8]) -> Result<(), DropReason> {
    while let [kind, rest @ ..] = options {
        options = match (kind, rest.first()) {
            (0, _) => return Ok(()),
            (1, _) => rest,
            (_, Some(len)) if *len >= 2 && usize::from(*len) <= options.len() => {
                if matches!(kind, 131 | 137) {
                    return Err(DropReason::Ipv4SourceRoute);
                }
                &options[usize::from(*len)..]
            }
            _ => return Err(DropReason::Ipv4Header),
        };
    }
    Ok(())
}

fn decode_v6(bytes: &[u8]) -> Result<Packet, DropReason> {
    let ip = &bytes[IP..];
    if ip.len() < 40 {
        return Err(DropReason::Truncated);
    }
    let payload = usize::from(word(ip, 4));
    if ip[0] >> 4 != 6 || 40 + payload > ip.len() || (payload == 0 && ip[6] != 59) {
        return Err(DropReason::Ipv6Header);
    }
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (v6_at(ip, 8), v6_at(ip, 24)) else {
        return Err(DropReason::Ipv6Header);
    };
    if source.is_multicast()
        || source.is_loopback()
        || destination.is_loopback()
        || destination.is_unspecified()
        || source.to_ipv4_mapped().is_some()
        || destination.to_ipv4_mapped().is_some()
        || source == destination
    {
        return Err(DropReason::Martian);
    }
    let (l4, protocol, fragment) = extensions(&ip[..40 + payload], ip[6], false)?;
    let mut packet = Packet {
        bytes: bytes.to_vec(),
        dst: mac_at(bytes, 0),
        src: mac_at(bytes, 6),
        flow: Flow {
            source: source.into(),
            destination: destination.into(),
            protocol,
            detail: Detail::Nothing,
        },
        ttl: ip[7],
        class: ip[0] << 4 | ip[1] >> 4,
        dont_fragment: true,
        l4: IP + l4,
        end: IP + 40 + payload,
        icmp: None,
        tcp: None,
        fragment,
        segment: None,
    };
    transport(&mut packet)?;
    Ok(packet)
}

/// Hop-by-hop options only first, no routing header of type 0, one fragment header, not more than eight headers (RFC 8200 4.1). Answers where
/// the transport header begins, or what there is of it in a later fragment. A quote may end anywhere, so that its fragment has no length.
fn extensions(
    ip: &[u8],
    mut next: u8,
    quote: bool,
) -> Result<(usize, u8, Option<Fragment>), DropReason> {
    let (mut at, mut fragment, mut seen) = (40, None, false);
    for position in 0..9 {
        match next {
            0 if position > 0 => return Err(DropReason::Ipv6Extension),
            0 | 43 | 44 | 60 => {}
            _ => return Ok((at, next, fragment)),
        }
        let Some(length) = ip.get(at + 1).map(|length| usize::from(*length)) else {
            return Err(DropReason::Ipv6Extension);
        };
        let length = match next {
            44 => 8,
            _ => (length + 1) * 8,
        };
        let Some(header) = ip.get(at..at + length) else {
            return Err(DropReason::Ipv6Extension);
        };
        if next == 43 && header[2] == 0 {
            return Err(DropReason::Ipv6RoutingType0);
        }
        let is_fragment = next == 44;
        next = header[0];
        at += length;
        if is_fragment {
            let (offset, more) = (usize::from(word(header, 2) & 0xfff8), header[3] & 1 != 0);
            let payload = ip.len() - at;
            let end = offset + payload;
            // A fragment that is the whole datagram (RFC 6946) may be empty, others may not.
            let cut = more || offset != 0;
            let wrong =
                (more && !payload.is_multiple_of(8)) || end > 65535 || (cut && payload == 0);
            if seen || (wrong && !quote) {
                return Err(DropReason::Ipv6Extension);
            }
            seen = true;
            let id = long(header, 4);
            fragment = cut.then_some(Fragment {
                id,
                offset,
                end,
                more,
            });
            if offset != 0 {
                return Ok((at, next, fragment));
            }
        }
    }
    Err(DropReason::Ipv6Extension)
}

fn transport(packet: &mut Packet) -> Result<(), DropReason> {
    let header = &packet.bytes[packet.l4..packet.end];
    let v4 = packet.flow.source.is_ipv4();
    if let Some(fragment) = packet.fragment.filter(|fragment| !fragment.is_first()) {
        // One that begins in the midst of a TCP header is meant to change it (RFC 1858 3.2, RFC 3128).
        return match fragment.offset < 16 && packet.flow.protocol == TCP {
            true => Err(DropReason::FragmentTiny),
            false => Ok(()),
        };
    }
    let cut_short = match packet.fragment {
        Some(_) => DropReason::FragmentTiny,
        None => DropReason::TransportHeader,
    };
    let least = match packet.flow.protocol {
        TCP => 20,
        UDP => 8,
        SCTP => 12,
        ICMP if v4 => 8,
        ICMPV6 if !v4 => 8,
        _ => return Ok(()),
    };
    if header.len() < least {
        return Err(cut_short);
    }
    match packet.flow.protocol {
        TCP => {
            let length = usize::from(header[12] >> 4) * 4;
            if length < 20 {
                return Err(DropReason::TransportHeader);
            }
            if length > header.len() {
                return Err(cut_short);
            }
            let flags = header[13] & 0x3f;
            let (syn, fin, rst, ack) = (
                flags & SYN != 0,
                flags & FIN != 0,
                flags & RST != 0,
                flags & ACK != 0,
            );
            if (syn && (fin || rst)) || !(syn || rst || ack) {
                return Err(DropReason::TcpFlags);
            }
            packet.tcp = Some(Segment {
                seq: long(header, 4),
                ack: long(header, 8),
                flags,
                window: u32::from(word(header, 14)),
                space: (header.len() - length) as u32 + u32::from(syn) + u32::from(fin),
            });
        }
        UDP => {
            let length = usize::from(word(header, 4));
            if packet.fragment.is_none() && (length < 8 || length > header.len()) {
                return Err(DropReason::TransportHeader);
            }
        }
        ICMP | ICMPV6 => {
            packet.icmp = Some((header[0], header[1]));
            let question = detail(packet.flow.protocol, v4, header);
            if header[1] != 0 && matches!(question, Detail::Query { .. }) {
                return Err(DropReason::TransportHeader);
            }
        }
        _ => {}
    }
    packet.flow.detail = detail(packet.flow.protocol, v4, header);
    Ok(())
}

/// From the first eight bytes of a transport header.
fn detail(protocol: u8, v4: bool, header: &[u8]) -> Detail {
    match protocol {
        TCP | UDP | SCTP => Detail::Ports(word(header, 0), word(header, 2)),
        ICMP | ICMPV6 if (protocol == ICMP) == v4 => {
            let id = word(header, 4);
            let query = |kind, answer| Detail::Query { kind, id, answer };
            match (v4, header[0]) {
                (true, 8 | 13 | 15 | 17) | (false, 128) => query(header[0], false),
                (true, 0) => query(8, true),
                (true, 14 | 16 | 18) => query(header[0] - 1, true),
                (false, 129) => query(128, true),
                _ => Detail::Message(header[0], header[1]),
            }
        }
        _ => Detail::Nothing,
    }
}

impl Packet {
    /// As it goes where nobody takes segments whole.
    pub fn split(&self) -> Vec<Self> {
        match self.segment {
            Some(offload) => super::segment::split(self, offload),
            None => vec![self.clone()],
        }
    }

    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| !fragment.is_first())
    }

    pub fn is_v4(&self) -> bool {
        self.flow.source.is_ipv4()
    }

    pub fn ip_len(&self) -> usize {
        self.end - IP
    }

    /// Whether it reports an error about another packet (RFC 792, RFC 4443 2.1).
    pub fn is_icmp_error(&self) -> bool {
        self.icmp.is_some_and(|(kind, code)| {
            if self.is_v4() {
                matches!(kind, 3 | 4 | 5 | 11 | 12)
            } else {
                kind < 128 && (kind, code) != (0, 0)
            }
        })
    }

    /// The flow of the packet that an ICMP error quotes.
    pub fn quoted(&self) -> Option<Flow> {
        let quote = &self.bytes[self.l4 + 8..self.end];
        let v4 = self.is_v4();
        let (source, destination, protocol, l4) = if v4 {
            let header = usize::from(quote.first()? & 15) * 4;
            if quote.len() < 20 || quote[0] >> 4 != 4 || header < 20 || word(quote, 6) & 0x1fff != 0
            {
                return None;
            }
            (v4_at(quote, 12), v4_at(quote, 16), quote[9], header)
        } else {
            if quote.len() < 40 || quote[0] >> 4 != 6 {
                return None;
            }
            let (l4, protocol, fragment) = extensions(quote, quote[6], true).ok()?;
            if fragment.is_some_and(|fragment| !fragment.is_first()) {
                return None;
            }
            (v6_at(quote, 8), v6_at(quote, 24), protocol, l4)
        };
        let header = quote.get(l4..l4 + 8)?;
        Some(Flow {
            source,
            destination,
            protocol,
            detail: detail(protocol, v4, header),
        })
    }

    /// A checksum that the sender left to its device holds the pseudo-header's sum alone; it is completed on the way in.
    pub fn complete_checksum(&mut self) {
        // Of a datagram in pieces nobody leaves it.
        if self.fragment.is_some() {
            return;
        }
        let at = match self.flow.protocol {
            TCP => self.l4 + 16,
            UDP => self.l4 + 6,
            SCTP => {
                // A CRC32c (RFC 9260 6.8) that was left is 0.
                if self.bytes[self.l4 + 8..self.l4 + 12] == [0; 4] {
                    let sum = crc32c(&self.bytes[self.l4..self.end]);
                    self.bytes[self.l4 + 8..self.l4 + 12].copy_from_slice(&sum.to_le_bytes());
                }
                return;
            }
            _ => return,
        };
        let pseudo = self.pseudo_header();
        if word(&self.bytes, at) == ones_sum(&[&pseudo]) {
            self.write_checksum(at);
        }
    }

    fn pseudo_header(&self) -> Vec<u8> {
        let Flow {
            source,
            destination,
            protocol,
            ..
        } = self.flow;
        pseudo_header(source, destination, protocol, self.end - self.l4)
    }

    /// Writes the transport checksum, which lies at `at`, from scratch.
    pub fn write_checksum(&mut self, at: usize) {
        let pseudo = self.pseudo_header();
        self.bytes[at..at + 2].fill(0);
        let sum = !ones_sum(&[&pseudo, &self.bytes[self.l4..self.end]]);
        // For UDP zero would mean "none" (RFC 768); both are the same number.
        let sum = match self.flow.protocol {
            UDP if sum == 0 => 0xffff,
            _ => sum,
        };
        self.bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }

    /// The packet gets other addresses, and so does the one that it quotes, if it is an error about one. What was wrong under a checksum stays wrong.
    pub fn translate(&mut self, to: &Flow, quoted: Option<&Flow>) {
        let (v4, l4, end) = (self.is_v4(), self.l4, self.end);
        if let Some(quoted) = quoted {
            let before = self.bytes.clone();
            let quote = l4 + 8;
            if let Some((number, inner)) = quoted_transport(&self.bytes[quote..end], v4) {
                let header = Some((number, quote + inner));
                readdress(&mut self.bytes[..end], (quote, v4), header, quoted);
            }
            for at in (quote..end - 1).step_by(2) {
                let after = word(&self.bytes, at);
                amend(&mut self.bytes, l4 + 2, word(&before, at), after);
            }
        }
        let is_later = self.fragment.is_some_and(|fragment| !fragment.is_first());
        let header = (!is_later).then_some((self.flow.protocol, l4));
        // A segment that is to be split has the sum of the pseudo-header there, not its complement.
        let field = match self.flow.protocol {
            TCP => l4 + 16,
            _ => l4 + 6,
        };
        if self.segment.is_some() {
            let sum = word(&self.bytes, field);
            readdress(&mut self.bytes[..end], (IP, v4), None, to);
            if let Detail::Ports(source, destination) = to.detail {
                self.bytes[l4..l4 + 2].copy_from_slice(&source.to_be_bytes());
                self.bytes[l4 + 2..l4 + 4].copy_from_slice(&destination.to_be_bytes());
            }
            let before = [octets(self.flow.source), octets(self.flow.destination)].concat();
            let after = [octets(to.source), octets(to.destination)].concat();
            let mut complement = (!sum).to_be_bytes();
            for at in (0..after.len()).step_by(2) {
                amend(&mut complement, 0, word(&before, at), word(&after, at));
            }
            let sum = !word(&complement, 0);
            self.bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        } else {
            readdress(&mut self.bytes[..end], (IP, v4), header, to);
        }
        self.flow = *to;
    }

    pub fn write_ipv4_checksum(&mut self) {
        let l4 = self.l4;
        self.bytes[IP + 10..IP + 12].fill(0);
        let sum = !ones_sum(&[&self.bytes[IP..l4]]);
        self.bytes[IP + 10..IP + 12].copy_from_slice(&sum.to_be_bytes());
    }

    pub fn set_macs(&mut self, dst: Mac, src: Mac) {
        self.bytes[..6].copy_from_slice(&dst);
        self.bytes[6..12].copy_from_slice(&src);
        (self.dst, self.src) = (dst, src);
    }

    pub fn set_ttl(&mut self, ttl: u8) {
        self.ttl = ttl;
        if self.is_v4() {
            self.bytes[IP + 8] = ttl;
            self.write_ipv4_checksum();
        } else {
            self.bytes[IP + 7] = ttl;
        }
    }

    /// A congestion mark of the tunnel's header is carried inwards (RFC 6040 4.2, figure 4).
    pub fn carry_congestion(&mut self, outer: u8) -> Result<(), DropReason> {
        let mark = match (outer & 3, self.class & 3) {
            (3, 0) => return Err(DropReason::EcnMismatch),
            (3, _) => 3,
            (1, 2) => 1,
            (_, inner) => inner,
        };
        self.set_class(self.class & !3 | mark);
        Ok(())
    }

    /// The sender's port marks it with a DSCP.
    pub fn mark(&mut self, dscp: u8) {
        self.set_class(dscp << 2 | self.class & 3);
    }

    fn set_class(&mut self, class: u8) {
        self.class = class;
        if self.is_v4() {
            self.bytes[IP + 1] = self.class;
            self.write_ipv4_checksum();
        } else {
            self.bytes[IP] = 0x60 | self.class >> 4;
            self.bytes[IP + 1] = self.bytes[IP + 1] & 0x0f | self.class << 4;
        }
    }

    /// Lowers the MSS option of a SYN (RFC 6691).
    pub fn clamp_mss(&mut self, mtu: usize) {
        let limit = mtu - if self.is_v4() { 40 } else { 60 };
        let end = self.l4 + usize::from(self.bytes[self.l4 + 12] >> 4) * 4;
        let mut at = self.l4 + 20;
        while at < end {
            let (kind, length) = match self.bytes[at] {
                0 => return,
                1 => (1, 1),
                kind if at + 1 < end => (kind, usize::from(self.bytes[at + 1])),
                _ => return,
            };
            // What is malformed is left alone.
            if length == 0 || (kind > 1 && length < 2) || at + length > end {
                return;
            }
            if (kind, length) == (2, 4) {
                if usize::from(word(&self.bytes, at + 2)) > limit {
                    self.bytes[at + 2..at + 4].copy_from_slice(&(limit as u16).to_be_bytes());
                    // What is to be split has the sum of the pseudo-header there.
                    if self.segment.is_none() {
                        self.write_checksum(self.l4 + 16);
                    }
                }
                return;
            }
            at += length;
        }
    }

    /// The pieces that a tunnel of this MTU carries (RFC 791 2.3), as frames.
    pub fn pieces(&self, mtu: usize) -> Vec<Vec<u8>> {
        let step = (mtu - 20) / 8 * 8;
        let payload = &self.bytes[self.l4..self.end];
        let count = payload.len().div_ceil(step);
        // What is itself a piece keeps its place.
        let (base, last) = match self.fragment {
            Some(fragment) => (fragment.offset, !fragment.more),
            None => (0, true),
        };
        let piece = |(number, part): (usize, &[u8])| {
            let mut piece = self.clone();
            piece.bytes.truncate(self.l4);
            piece.bytes.extend_from_slice(part);
            let more = if number + 1 < count || !last {
                0x2000
            } else {
                0
            };
            let place = more | ((base + number * step) / 8) as u16;
            let length = (20 + part.len()) as u16;
            piece.bytes[IP + 2..IP + 4].copy_from_slice(&length.to_be_bytes());
            piece.bytes[IP + 6..IP + 8].copy_from_slice(&place.to_be_bytes());
            piece.write_ipv4_checksum();
            piece.bytes
        };
        payload.chunks(step).enumerate().map(piece).collect()
    }
}
