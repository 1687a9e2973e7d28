//! Frames made and read by a library that is not ours (etherparse), so that a mistake of ours cannot hide in both.

use std::net::IpAddr;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

/// One end of a conversation.
#[derive(Debug, Clone, Copy)]
pub struct End {
    pub mac: [u8; 6],
    pub v4: [u8; 4],
    pub v6: [u8; 16],
}

pub const fn end(subnet: u8, number: u8) -> End {
    let address = [
        0xfd,
        0,
        0,
        subnet,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0x10 + number,
    ];
    End {
        mac: [2, 0, 0, 0, subnet, number],
        v4: [10, 0, subnet, 10 + number],
        v6: address,
    }
}

pub const A1: End = end(1, 1);
pub const A2: End = end(1, 2);
pub const A3: End = end(1, 3);
pub const B1: End = end(2, 1);
pub const B2: End = end(2, 2);

/// A UDP packet over IPv4.
pub fn udp(from: End, to: End, dst_mac: [u8; 6], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    udp_ttl(from, to, dst_mac, ports, payload, 64)
}

pub fn udp_ttl(
    from: End,
    to: End,
    dst_mac: [u8; 6],
    ports: (u16, u16),
    payload: &[u8],
    ttl: u8,
) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.mac, dst_mac)
        .ipv4(from.v4, to.v4, ttl)
        .udp(ports.0, ports.1);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// A UDP packet over IPv6.
pub fn udp6(from: End, to: End, dst_mac: [u8; 6], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.mac, dst_mac)
        .ipv6(from.v6, to.v6, 64)
        .udp(ports.0, ports.1);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// A TCP segment: flags as letters of "SAFR", numbers, payload length.
pub fn tcp(
    from: End,
    to: End,
    dst_mac: [u8; 6],
    ports: (u16, u16),
    flags: &str,
    numbers: (u32, u32),
    payload: usize,
) -> Vec<u8> {
    let mut builder = PacketBuilder::ethernet2(from.mac, dst_mac)
        .ipv4(from.v4, to.v4, 64)
        .tcp(ports.0, ports.1, numbers.0, 64_000);
    for flag in flags.chars() {
        builder = match flag {
            'S' => builder.syn(),
            'A' => builder.ack(numbers.1),
            'F' => builder.fin(),
            'R' => builder.rst(),
            other => panic!("no flag {other}"),
        };
    }
    let mut frame = Vec::new();
    builder.write(&mut frame, &vec![0x5a; payload]).unwrap();
    frame
}

/// A TCP SYN with an MSS option.
pub fn syn_mss(from: End, to: End, dst_mac: [u8; 6], ports: (u16, u16), mss: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.mac, dst_mac)
        .ipv4(from.v4, to.v4, 64)
        .tcp(ports.0, ports.1, 1000, 64_000)
        .syn()
        .options(&[
            etherparse::TcpOptionElement::Noop,
            etherparse::TcpOptionElement::MaximumSegmentSize(mss),
        ])
        .unwrap();
    let mut frame = Vec::new();
    builder.write(&mut frame, &[]).unwrap();
    frame
}

pub fn echo(from: End, to: End, dst_mac: [u8; 6], id: u16, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.mac, dst_mac)
        .ipv4(from.v4, to.v4, 64)
        .icmpv4_echo_request(id, 1);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

pub fn echo_reply(from: End, to: End, dst_mac: [u8; 6], id: u16, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.mac, dst_mac)
        .ipv4(from.v4, to.v4, 64)
        .icmpv4_echo_reply(id, 1);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

pub fn echo6(from: End, to: End, dst_mac: [u8; 6], id: u16, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.mac, dst_mac)
        .ipv6(from.v6, to.v6, 64)
        .icmpv6_echo_request(id, 1);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// An ICMPv6 message with its own payload and hop limit 255.
pub fn icmp6(
    src_mac: [u8; 6],
    dst_mac: [u8; 6],
    source: [u8; 16],
    destination: [u8; 16],
    kind: u8,
    body: &[u8],
) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(src_mac, dst_mac)
        .ipv6(source, destination, 255)
        .icmpv6_raw(kind, 0, body[..4].try_into().unwrap());
    let mut frame = Vec::new();
    builder.write(&mut frame, &body[4..]).unwrap();
    frame
}

/// A neighbour solicitation for `target`, with its link-layer option unless it detects duplicates.
pub fn solicit(from: End, source: [u8; 16], target: [u8; 16]) -> Vec<u8> {
    let mut group = [0u8; 16];
    group[..2].copy_from_slice(&[0xff, 2]);
    group[11..13].copy_from_slice(&[1, 0xff]);
    group[13..].copy_from_slice(&target[13..]);
    let mut body = vec![0; 4];
    body.extend_from_slice(&target);
    if source != [0; 16] {
        body.extend_from_slice(&[1, 1]);
        body.extend_from_slice(&from.mac);
    }
    icmp6(
        from.mac,
        [0x33, 0x33, 0xff, target[13], target[14], target[15]],
        source,
        group,
        135,
        &body,
    )
}

/// An ARP packet.
pub fn arp(
    eth_src: [u8; 6],
    operation: u16,
    sender: ([u8; 6], [u8; 4]),
    target: ([u8; 6], [u8; 4]),
) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(&eth_src);
    frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4]);
    frame.extend_from_slice(&operation.to_be_bytes());
    frame.extend_from_slice(&sender.0);
    frame.extend_from_slice(&sender.1);
    frame.extend_from_slice(&target.0);
    frame.extend_from_slice(&target.1);
    frame
}

/// What matters of a frame that came out.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub dst: [u8; 6],
    pub src: [u8; 6],
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Ports of TCP and UDP; 0 for others.
    pub source_port: u16,
    pub destination_port: u16,
    pub ttl: u8,
    pub payload: Vec<u8>,
}

/// Reads a frame with the other library, and checks every checksum in it.
pub fn read(frame: &[u8]) -> Seen {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (source, destination, ttl): (IpAddr, IpAddr, u8) = match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(
                header.header_checksum(),
                header.to_header().calc_header_checksum(),
                "IPv4 header checksum"
            );
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                header.ttl(),
            )
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                header.hop_limit(),
            )
        }
        other => panic!("not IP: {other:?}"),
    };
    let ethernet = packet
        .link
        .as_ref()
        .and_then(etherparse::LinkSlice::to_header)
        .and_then(etherparse::LinkHeader::ethernet2)
        .unwrap();
    let (source_port, destination_port) = match packet.transport.as_ref() {
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        _ => (0, 0),
    };
    let payload = match packet.transport.as_ref() {
        Some(TransportSlice::Udp(udp)) => {
            let sum = match (source, destination) {
                (IpAddr::V4(s), IpAddr::V4(d)) => {
                    udp.to_header()
                        .calc_checksum_ipv4_raw(s.octets(), d.octets(), udp.payload())
                }
                (IpAddr::V6(s), IpAddr::V6(d)) => {
                    udp.to_header()
                        .calc_checksum_ipv6_raw(s.octets(), d.octets(), udp.payload())
                }
                _ => unreachable!(),
            };
            if udp.checksum() != 0 {
                assert_eq!(sum.unwrap(), udp.checksum(), "UDP checksum");
            }
            udp.payload().to_vec()
        }
        Some(TransportSlice::Tcp(tcp)) => {
            let sum = match (source, destination) {
                (IpAddr::V4(s), IpAddr::V4(d)) => tcp.calc_checksum_ipv4(s.octets(), d.octets()),
                (IpAddr::V6(s), IpAddr::V6(d)) => tcp.calc_checksum_ipv6(s.octets(), d.octets()),
                _ => unreachable!(),
            };
            assert_eq!(sum.unwrap(), tcp.checksum(), "TCP checksum");
            tcp.payload().to_vec()
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let sum = icmp.icmp_type().calc_checksum(icmp.payload());
            assert_eq!(sum, icmp.checksum(), "ICMP checksum");
            icmp.payload().to_vec()
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let (IpAddr::V6(s), IpAddr::V6(d)) = (source, destination) else {
                unreachable!()
            };
            assert!(
                icmp.is_checksum_valid(s.octets(), d.octets()),
                "ICMPv6 checksum"
            );
            icmp.payload().to_vec()
        }
        None => Vec::new(),
    };
    Seen {
        dst: ethernet.destination,
        src: ethernet.source,
        source,
        destination,
        source_port,
        destination_port,
        ttl,
        payload,
    }
}
