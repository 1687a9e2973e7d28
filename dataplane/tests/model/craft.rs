//! Frames made to order, right in every checksum unless somebody spoils them afterwards.

use std::net::{IpAddr, Ipv6Addr};

use crate::semantics::frame::{
    ACK, ICMP, ICMPV6, IP, Mac, SYN, TCP, UDP, octets, ones_sum, pseudo_header, word,
};

/// Who sends to whom.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    pub dst: Mac,
    pub src: Mac,
    pub source: IpAddr,
    pub destination: IpAddr,
}

/// What of the IP header may vary.
#[derive(Debug, Clone)]
pub struct Header {
    pub ttl: u8,
    pub class: u8,
    pub dont_fragment: bool,
    pub id: u16,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: the first one's number, and the bytes of all, the last of which name `59` until it is filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
}

impl Default for Header {
    fn default() -> Self {
        Self {
            ttl: 64,
            class: 0,
            dont_fragment: true,
            id: 0,
            options: Vec::new(),
            extensions: Vec::new(),
        }
    }
}

/// An IP packet in its frame; the families of the ends agree.
pub fn ip(ends: Ends, header: &Header, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [ends.dst, ends.src].concat();
    if ends.source.is_ipv4() {
        frame.extend([8, 0]);
        frame.extend([0x45 + (header.options.len() / 4) as u8, header.class]);
        frame.extend((20 + (header.options.len() + payload.len()) as u16).to_be_bytes());
        frame.extend(header.id.to_be_bytes());
        let flags = if header.dont_fragment { 0x40 } else { 0 };
        frame.extend([flags, 0, header.ttl, protocol, 0, 0]);
        frame.extend(octets(ends.source));
        frame.extend(octets(ends.destination));
        frame.extend(&header.options);
        fix_ipv4_checksum(&mut frame);
    } else {
        frame.extend([
            0x86,
            0xdd,
            0x60 | header.class >> 4,
            header.class << 4,
            0,
            0,
        ]);
        let mut chain = Vec::new();
        let mut numbers: Vec<u8> = header
            .extensions
            .iter()
            .map(|(number, _)| *number)
            .collect();
        numbers.push(protocol);
        for ((_, bytes), next) in header.extensions.iter().zip(&numbers[1..]) {
            let at = chain.len();
            chain.extend(bytes);
            chain[at] = *next;
        }
        frame.extend(((chain.len() + payload.len()) as u16).to_be_bytes());
        frame.extend([numbers[0], header.ttl]);
        frame.extend(octets(ends.source));
        frame.extend(octets(ends.destination));
        frame.extend(chain);
    }
    frame.extend(payload);
    frame
}

pub fn fix_ipv4_checksum(frame: &mut [u8]) {
    let end = (IP + usize::from(frame[IP] & 15) * 4).min(frame.len());
    frame[IP + 10..IP + 12].fill(0);
    let sum = !ones_sum(&[&frame[IP..end]]);
    frame[IP + 10..IP + 12].copy_from_slice(&sum.to_be_bytes());
}

pub fn with_checksum(mut segment: Vec<u8>, ends: Ends, protocol: u8, at: usize) -> Vec<u8> {
    let pseudo = if protocol == ICMP {
        Vec::new()
    } else {
        pseudo_header(ends.source, ends.destination, protocol, segment.len())
    };
    let sum = match !ones_sum(&[&pseudo, &segment]) {
        0 if protocol == UDP => 0xffff,
        sum => sum,
    };
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    segment
}

pub fn udp(ends: Ends, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    segment.extend((8 + payload.len() as u16).to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(payload);
    with_checksum(segment, ends, UDP, 6)
}

/// A segment: flags, sequence and acknowledgement number; a SYN carries an MSS option if one is given.
pub fn tcp(
    ends: Ends,
    ports: (u16, u16),
    flags: u8,
    numbers: (u32, u32),
    mss: Option<u16>,
    payload: &[u8],
) -> Vec<u8> {
    let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    segment.extend(numbers.0.to_be_bytes());
    segment.extend(if flags & ACK != 0 { numbers.1 } else { 0 }.to_be_bytes());
    let mss = mss.filter(|_| flags & SYN != 0);
    segment.extend([if mss.is_some() { 0x70 } else { 0x50 }, flags]);
    segment.extend([0xfa, 0, 0, 0, 0, 0]);
    if let Some(mss) = mss {
        // The option at an odd offset, behind a filler.
        segment.extend([1, 2, 4]);
        segment.extend(mss.to_be_bytes());
        segment.extend([1, 1, 0]);
    }
    segment.extend(payload);
    with_checksum(segment, ends, TCP, 16)
}

/// An ICMP or ICMPv6 message: type, code, the four bytes behind the checksum, and the rest.
pub fn icmp(ends: Ends, kind: u8, code: u8, rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(rest);
    message.extend(body);
    let protocol = if ends.source.is_ipv4() { ICMP } else { ICMPV6 };
    with_checksum(message, ends, protocol, 2)
}

pub fn icmp_protocol(v4: bool) -> u8 {
    if v4 { ICMP } else { ICMPV6 }
}

pub fn arp(eth_src: Mac, operation: u16, sender: (Mac, IpAddr), target: (Mac, IpAddr)) -> Vec<u8> {
    let mut frame = [[0xff; 6], eth_src].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        frame.extend(mac);
        frame.extend(octets(address));
    }
    frame
}

/// A neighbour solicitation, with its option unless it detects duplicates.
pub fn solicit(src: Mac, option: Mac, source: IpAddr, target: Ipv6Addr) -> Vec<u8> {
    let low = &target.octets()[13..];
    let mut group = [0; 16];
    group[..2].copy_from_slice(&[0xff, 2]);
    group[11..13].copy_from_slice(&[1, 0xff]);
    group[13..].copy_from_slice(low);
    let ends = Ends {
        dst: [0x33, 0x33, 0xff, low[0], low[1], low[2]],
        src,
        source,
        destination: Ipv6Addr::from(group).into(),
    };
    let mut body = target.octets().to_vec();
    if !source.is_unspecified() {
        body.extend([1, 1]);
        body.extend(option);
    }
    let header = Header {
        ttl: 255,
        ..Header::default()
    };
    ip(ends, &header, ICMPV6, &icmp(ends, 135, 0, [0; 4], &body))
}

/// The checksum of a frame's transport as a kernel leaves it to the device: the pseudo-header's sum alone. Only without options.
pub fn leave_checksum(frame: &mut [u8], ends: Ends, protocol: u8) {
    let l4 = IP + if ends.source.is_ipv4() { 20 } else { 40 };
    let at = l4 + if protocol == TCP { 16 } else { 6 };
    let length = if ends.source.is_ipv4() {
        usize::from(word(frame, IP + 2)) - 20
    } else {
        usize::from(word(frame, IP + 4))
    };
    let pseudo = pseudo_header(ends.source, ends.destination, protocol, length);
    frame[at..at + 2].copy_from_slice(&ones_sum(&[&pseudo]).to_be_bytes());
}
