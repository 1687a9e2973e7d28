//! The parser on lengths, options, fragments and quoted packets, each rule at its boundary.

use super::*;

const PORTS: [u8; 4] = [0x30, 0x39, 0x00, 0x35];

/// An IPv4 packet with options and with the flags and offset of a fragment.
fn ipv4_frame(protocol: u8, options: &[u8], bits: u16, payload: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let total = (header_len + payload.len()) as u16;
    let mut frame = vec![0; ETHERNET + 20];
    frame[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
    frame[14] = 0x40 + (header_len / 4) as u8;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[20..22].copy_from_slice(&bits.to_be_bytes());
    frame[22..24].copy_from_slice(&[64, protocol]);
    frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend_from_slice(options);
    let sum = checksum::finish(checksum::sum(&frame[ETHERNET..]));
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn ipv6_frame(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + 40];
    frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
    frame[18..20].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    frame[20..22].copy_from_slice(&[next, 64]);
    frame[22..38].copy_from_slice(&(0xfd_u128 << 120 | 1).to_be_bytes());
    frame[38..54].copy_from_slice(&(0xfd_u128 << 120 | 2).to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A transport header of `len` bytes, right for TCP (a SYN), UDP and SCTP alike.
fn transport_header(len: usize) -> Vec<u8> {
    let mut header = vec![0; len.max(20)];
    header[..4].copy_from_slice(&PORTS);
    header[5] = len.max(8) as u8;
    header[12] = 0x50;
    header[13] = tcp_flags::SYN;
    header.truncate(len);
    header
}

/// An IPv6 fragment header, and what follows it.
fn fragment(next: u8, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let [high, low] = (offset + u16::from(more)).to_be_bytes();
    let mut bytes = vec![next, 0, high, low, 1, 2, 3, 4];
    bytes.extend_from_slice(payload);
    bytes
}

/// A header of destination options with nothing in it but padding, before UDP.
fn options_before_udp() -> Vec<u8> {
    let mut bytes = vec![protocol::UDP, 0, 1, 4, 0, 0, 0, 0];
    bytes.extend(transport_header(8));
    bytes
}

fn parsed(frame: &[u8]) -> Result<Parsed, DropReason> {
    match inner(frame)? {
        Inner::Ip(parsed) => Ok(parsed),
        Inner::Arp => panic!("no packet is ARP here"),
    }
}

fn ports_of(flow: Flow) -> (u16, u16) {
    (flow.source_port, flow.destination_port)
}

#[test]
fn a_frame_longer_than_its_offsets_reach_is_refused() {
    let mut frame = ipv4_frame(protocol::UDP, &[], 0, &transport_header(8));
    frame.resize(65_535, 0);
    assert_eq!(parsed(&frame).map(|parsed| parsed.end), Ok(42));
    for longer in [65_536, 65_537] {
        frame.resize(longer, 0);
        assert_eq!(
            parsed(&frame).err(),
            Some(DropReason::Truncated),
            "{longer}"
        );
    }
}

#[test]
fn ipv4_options_are_walked_to_their_end() {
    let source_route = Err(DropReason::Ipv4SourceRoute);
    let malformed = Err(DropReason::Ipv4Header);
    let cases: [(&[u8], Result<(), DropReason>); 13] = [
        (&[], Ok(())),
        (&[1, 1, 1, 1], Ok(())),
        (&[1, 131, 3, 4], source_route),
        (&[1, 1, 137, 2], source_route),
        (&[7, 3, 0, 131, 3, 4, 0, 0], source_route),
        (&[7, 4, 0, 0, 1, 137, 3, 4], source_route),
        // What follows the end of the list is padding.
        (&[0, 131, 3, 4], Ok(())),
        (&[1, 1, 7, 2], Ok(())),
        (&[1, 1, 7, 3], malformed),
        (&[1, 1, 1, 7], malformed),
        (&[7, 1, 0, 0], malformed),
        (&[7, 0, 0, 0], malformed),
        (&[131, 1, 0, 0], malformed),
    ];
    for (options, expected) in cases {
        let frame = ipv4_frame(protocol::UDP, options, 0, &transport_header(8));
        let parsed = parsed(&frame);
        assert_eq!(parsed.map(|_| ()), expected, "{options:?}");
        if let Ok(parsed) = parsed {
            assert_eq!(usize::from(parsed.l4), ETHERNET + 20 + options.len());
            assert_eq!(ports_of(parsed.flow), (12345, 53));
        }
    }
}

#[test]
fn an_ipv4_fragment_ends_within_the_longest_datagram() {
    // 65 535 bytes less the header.
    let last = 65_512 / 8;
    let fragment = |len| ipv4_frame(protocol::UDP, &[], last, &vec![0; len]);
    let at_the_end = parsed(&fragment(3)).unwrap().fragment.unwrap();
    assert_eq!((at_the_end.offset, at_the_end.len), (65_512, 3));
    assert_eq!(parsed(&fragment(4)).err(), Some(DropReason::Ipv4Header));
}

#[test]
fn what_a_later_ipv6_fragment_holds_is_payload_whatever_its_next_header() {
    let next = protocol::DESTINATION_OPTIONS;
    let frame = ipv6_frame(
        protocol::FRAGMENT,
        &fragment(next, 8, false, &options_before_udp()),
    );
    let parsed = parsed(&frame).unwrap();
    assert!(parsed.is_later_fragment());
    assert_eq!((parsed.l4, parsed.flow.protocol), (14 + 40 + 8, next));
    assert_eq!(ports_of(parsed.flow), (0, 0));
}

#[test]
fn extension_headers_behind_a_fragment_header_are_followed_when_the_datagram_begins_there() {
    for more in [false, true] {
        let options = fragment(
            protocol::DESTINATION_OPTIONS,
            0,
            more,
            &options_before_udp(),
        );
        let parsed = parsed(&ipv6_frame(protocol::FRAGMENT, &options)).unwrap();
        assert_eq!(parsed.fragment.is_some(), more);
        assert_eq!(parsed.flow.protocol, protocol::UDP);
        assert_eq!(parsed.l4, 14 + 40 + 8 + 8);
        assert_eq!(ports_of(parsed.flow), (12345, 53));
    }
}

#[test]
fn a_transport_header_is_whole() {
    for (protocol, len) in [
        (protocol::TCP, 20),
        (protocol::UDP, 8),
        (protocol::SCTP, 12),
    ] {
        let (whole, short) = (transport_header(len), transport_header(len - 1));
        let all = parsed(&ipv4_frame(protocol, &[], 0, &whole)).unwrap();
        assert_eq!(ports_of(all.flow), (12345, 53), "{protocol}");
        assert_eq!(
            parsed(&ipv4_frame(protocol, &[], 0, &short)).err(),
            Some(DropReason::TransportHeader),
            "{protocol}"
        );
    }
}

#[test]
fn icmp_of_the_other_family_is_a_protocol_like_any() {
    let echo = [128, 0, 0, 0, 0, 7, 0, 1];
    for payload in [&echo[..], &echo[..4]] {
        for frame in [
            ipv4_frame(protocol::ICMPV6, &[], 0, payload),
            ipv6_frame(protocol::ICMP, payload),
        ] {
            let parsed = parsed(&frame).unwrap();
            assert_eq!((parsed.icmp, ports_of(parsed.flow)), (0, (0, 0)));
        }
    }
}

#[test]
fn a_quote_is_believed_when_its_header_can_be() {
    let frame = ipv4_frame(protocol::UDP, &[], 0, &transport_header(8));
    let good = &frame[ETHERNET..];
    let flow = quoted(Family::Ipv4, good).unwrap();
    assert_eq!(flow, parsed(&frame).unwrap().flow);
    assert_eq!(quoted(Family::Ipv4, &good[..27]), None);
    let changes: [(&str, usize, u8); 4] = [
        ("version", 0, 0x65),
        ("header length", 0, 0x44),
        ("offset in units of 256", 6, 0x01),
        ("offset", 7, 0x01),
    ];
    for (what, at, value) in changes {
        let mut quote = good.to_vec();
        quote[at] = value;
        assert_eq!(quoted(Family::Ipv4, &quote), None, "{what}");
    }
}

#[test]
fn a_quoted_ipv6_fragment_has_ports_only_when_it_is_the_first() {
    let quote = |offset, more| {
        let payload = fragment(protocol::UDP, offset, more, &transport_header(8));
        quoted(
            Family::Ipv6,
            &ipv6_frame(protocol::FRAGMENT, &payload)[ETHERNET..],
        )
    };
    assert_eq!(quote(0, true).map(ports_of), Some((12345, 53)));
    assert_eq!(quote(0, false).map(ports_of), Some((12345, 53)));
    assert_eq!(quote(8, true), None);
    assert_eq!(quote(8, false), None);
}
