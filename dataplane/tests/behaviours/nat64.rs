//! NAT64: an IPv6 port and the IPv4 outside (RFC 6146), header by header (RFC 7915).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use weft_dataplane::packet::{DropReason, Offload, Segments};
use weft_dataplane::pipeline::trace::{Outcome, View, trace};
use weft_fabric::Fabric;
use weft_proto::v1::Objects;

use crate::external::{
    FAR, GATEWAY, H1, NEIGHBOR, arrive, gateway, held, kept_in, outside, refused, send, station, v4,
};
use crate::fragments::pieces;
use crate::frames::{A1, A2, A3, End, Seen, echo, echo_reply, echo6, icmp6, read, tcp, udp, udp6};
use crate::overlay::mend_ipv4;
use crate::topology::{ROUTER, change};
use crate::translation::unreachable;

const PREFIX: [u8; 12] = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];

/// An IPv4 end as an IPv6 port sees it.
fn behind(end: End) -> End {
    let mut v6 = [0; 16];
    v6[..12].copy_from_slice(&PREFIX);
    v6[12..].copy_from_slice(&end.v4);
    End { v6, ..end }
}

fn v6(end: End) -> IpAddr {
    Ipv6Addr::from(end.v6).into()
}

fn tcp6(
    from: End,
    to: End,
    ports: (u16, u16),
    flags: &str,
    (seq, ack): (u32, u32),
    data: usize,
) -> Vec<u8> {
    let mut builder = PacketBuilder::ethernet2(from.mac, ROUTER)
        .ipv6(from.v6, to.v6, 64)
        .tcp(ports.0, ports.1, seq, 65000);
    if flags.contains('S') {
        builder = builder.syn();
    }
    if flags.contains('A') {
        builder = builder.ack(ack);
    }
    let mut frame = Vec::new();
    builder.write(&mut frame, &vec![7; data]).unwrap();
    frame
}

/// What leaves, byte by byte.
#[track_caller]
fn sent(fabric: &mut Fabric, port: &str, frame: &[u8]) -> Vec<u8> {
    fabric.outside.clear();
    assert_eq!(fabric.send(port, frame), []);
    assert_eq!(fabric.outside.len(), 1, "{:?}", fabric.all_drops());
    fabric.outside.remove(0).1
}

fn id_of(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

#[test]
fn an_ipv6_port_talks_to_the_ipv4_outside_and_is_answered() {
    for (name, end) in [("a1", A1), ("a2", A2)] {
        let mut fabric = outside(gateway);
        for round in 0..4u8 {
            let question = udp6(end, behind(FAR), ROUTER, (7000, 53), &[round; 5]);
            let seen = send(&mut fabric, name, &question);
            assert_eq!((seen.dst, seen.src), (GATEWAY.mac, H1));
            assert_eq!((seen.source, seen.destination), (v4(station(5)), v4(FAR)));
            assert_eq!((seen.source_port, seen.destination_port), (7000, 53));
            // A router on each host.
            let hops = if name == "a1" { 1 } else { 2 };
            assert_eq!((seen.ttl, &*seen.payload), (64 - hops, &[round; 5][..]));
            let back = udp(FAR, held(5), H1, (53, 7000), &[round, 9]);
            let (port, seen) = arrive(&mut fabric, &back);
            assert_eq!(port, name);
            assert_eq!((seen.source, seen.destination), (v6(behind(FAR)), v6(end)));
            assert_eq!((seen.source_port, seen.destination_port), (53, 7000));
            assert_eq!((seen.dst, &*seen.payload), (end.mac, &[round, 9][..]));
        }
        // A connection, with data of all lengths.
        let syn = tcp6(end, behind(FAR), (7000, 80), "S", (100, 0), 0);
        assert_eq!(send(&mut fabric, name, &syn).source_port, 7000);
        let syn_ack = tcp(FAR, held(5), H1, (80, 7000), "SA", (500, 101), 0);
        assert_eq!(arrive(&mut fabric, &syn_ack).0, name);
        for data in [0, 1, 10, 1001, 1300] {
            let ack = tcp6(end, behind(FAR), (7000, 80), "A", (101, 501), data);
            assert_eq!(send(&mut fabric, name, &ack).payload.len(), data);
            let ack = tcp(FAR, held(5), H1, (80, 7000), "A", (501, 101), data);
            assert_eq!(arrive(&mut fabric, &ack).1.payload.len(), data);
        }
        for host in fabric.hosts.values() {
            assert_eq!(host.unaccounted(), 0);
        }
        assert_eq!(fabric.missing_frames(), 0);
    }
}

/// The port keeps its IPv6 way out, and an IPv4 port its own; all share the ports of the address.
#[test]
fn the_families_share_the_gateway_and_its_ports() {
    let mut fabric = outside(gateway);
    let six = send(&mut fabric, "a1", &udp6(A1, FAR, ROUTER, (7000, 53), b"x"));
    assert_eq!(six.source, v6(station(5)));
    let four = send(&mut fabric, "a1", &udp(A1, FAR, ROUTER, (7000, 53), b"x"));
    let across = send(
        &mut fabric,
        "a1",
        &udp6(A1, behind(FAR), ROUTER, (7000, 53), b"x"),
    );
    assert_eq!(
        (four.source, across.source),
        (v4(station(5)), v4(station(5)))
    );
    assert_eq!(four.source_port, 7000);
    assert_ne!(across.source_port, 7000);
    let back = udp(FAR, held(5), H1, (53, across.source_port), b"y");
    assert_eq!(arrive(&mut fabric, &back).1.destination, v6(A1));
    let back = udp(FAR, held(5), H1, (53, 7000), b"y");
    assert_eq!(arrive(&mut fabric, &back).1.destination, v4(A1));
}

/// RFC 7915 §4.2, §5.2: echo request and reply.
#[test]
fn pings_cross_and_two_ports_with_one_identifier_are_told_apart() {
    let mut fabric = outside(gateway);
    let mut ids = Vec::new();
    for (name, end) in [("a1", A1), ("a2", A2)] {
        for _ in 0..2 {
            let frame = sent(
                &mut fabric,
                name,
                &echo6(end, behind(FAR), ROUTER, 4242, b"ping!"),
            );
            read(&frame);
            assert_eq!((frame[23], frame[34], frame[35]), (1, 8, 0));
            let id = id_of(&frame, 38);
            ids.push(id);
            let reply = echo_reply(FAR, held(5), H1, id, b"ping!");
            let out = fabric.send_from_uplink("h1", 1, &reply);
            assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
            let seen = read(&out[0].frame);
            assert_eq!((out[0].port.as_str(), seen.destination), (name, v6(end)));
            assert_eq!(out[0].frame[54..56], [129, 0]);
            assert_eq!(id_of(&out[0].frame, 58), 4242);
        }
    }
    assert_eq!((ids[0], ids[2]), (ids[1], ids[3]));
    assert_ne!(ids[0], ids[2]);
    // Nobody pings a port.
    refused(
        &mut fabric,
        &echo(NEIGHBOR, held(5), H1, ids[0], b"x"),
        DropReason::NatUnmapped,
    );
}

/// RFC 7915 §5.1: DF only above 1260 bytes, else an identification; the traffic class is kept.
#[test]
fn the_ipv4_header_is_as_a_router_may_fragment_it() {
    let mut fabric = outside(gateway);
    let mut small = udp6(A1, behind(FAR), ROUTER, (7000, 53), b"x");
    // Class 0xb8: expedited forwarding.
    (small[14], small[15]) = (0x6b, 0x80);
    let first = sent(&mut fabric, "a1", &small);
    let second = sent(&mut fabric, "a1", &small);
    read(&first);
    assert_eq!((first[14], first[15]), (0x45, 0xb8));
    assert_eq!(
        (first[20..22].to_vec(), second[20..22].to_vec()),
        (vec![0, 0], vec![0, 0])
    );
    assert_ne!(first[18..20], second[18..20]);
    for (payload, bits) in [(1260 - 28, 0), (1261 - 28, 0x40)] {
        let frame = udp6(A1, behind(FAR), ROUTER, (7000, 53), &vec![1; payload]);
        let frame = sent(&mut fabric, "a1", &frame);
        read(&frame);
        assert_eq!(frame[20], bits, "{payload}");
    }
}

/// RFC 7915 §4.5: IPv6 needs a checksum.
#[test]
fn udp_without_a_checksum_gets_one() {
    let mut fabric = outside(gateway);
    send(
        &mut fabric,
        "a1",
        &udp6(A1, behind(FAR), ROUTER, (7000, 53), b"x"),
    );
    let mut back = udp(FAR, held(5), H1, (53, 7000), b"no sum");
    back[40..42].fill(0);
    let out = fabric.send_from_uplink("h1", 1, &back);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    assert_ne!(out[0].frame[60..62], [0, 0]);
    assert_eq!(read(&out[0].frame).payload, b"no sum");
    // Of a fragment the length is not known.
    let whole = udp(FAR, held(5), H1, (53, 7000), &[5; 64]);
    let mut first = pieces(&whole, 7, 32, None).remove(0);
    first[40..42].fill(0);
    refused(&mut fabric, &first, DropReason::Nat64Untranslatable);
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    let mut fabric = outside(gateway);
    for (mut frame, at) in [
        (udp6(A1, behind(FAR), ROUTER, (7000, 53), b"abc"), 62),
        (echo6(A1, behind(FAR), ROUTER, 7, b"abc"), 62),
    ] {
        frame[at] ^= 0x10;
        let frame = sent(&mut fabric, "a1", &frame);
        let wrong = std::panic::catch_unwind(|| read(&frame));
        assert!(wrong.is_err());
    }
}

/// RFC 7915 §4.1, §5.1: the fragment header comes and goes, with 16 bits of identification.
#[test]
fn fragments_cross_after_their_first() {
    let mut fabric = outside(gateway);
    let payload: Vec<u8> = (0..200).collect();
    let whole = udp6(A2, behind(FAR), ROUTER, (7000, 53), &payload);
    for (i, piece) in pieces(&whole, 0x1234_5678, 64, None).iter().enumerate() {
        let frame = sent(&mut fabric, "a2", piece);
        let parsed = etherparse::Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap();
        assert_eq!(parsed.source_addr(), Ipv4Addr::from(station(5).v4));
        assert_eq!(parsed.identification(), 0x5678);
        assert_eq!(usize::from(parsed.fragments_offset().value()) * 8, i * 64);
        assert_eq!(parsed.more_fragments(), i < 3);
        assert!(!parsed.dont_fragment());
        assert_eq!(parsed.protocol(), etherparse::IpNumber::UDP);
        assert_eq!(
            parsed.header_checksum(),
            parsed.to_header().calc_header_checksum()
        );
        if i > 0 {
            assert_eq!(frame[34..], piece[62..]);
        }
    }
    let whole = udp(FAR, held(5), H1, (53, 7000), &payload);
    let mut joined = Vec::new();
    for (i, piece) in pieces(&whole, 0x4321, 64, None).iter().enumerate() {
        let out = fabric.send_from_uplink("h1", 1, piece);
        assert_eq!(out.len(), 1, "{i} {:?}", fabric.all_drops());
        let frame = &out[0].frame;
        assert_eq!((out[0].port.as_str(), frame[20], frame[54]), ("a2", 44, 17));
        assert_eq!(frame[22..38], behind(FAR).v6);
        assert_eq!(frame[38..54], A2.v6);
        let bits = id_of(frame, 56);
        assert_eq!((usize::from(bits & !7), bits & 1 == 1), (i * 64, i < 3));
        assert_eq!(frame[58..62], [0, 0, 0x43, 0x21]);
        joined.extend_from_slice(&frame[62..]);
    }
    // As a whole the datagram and its checksum are right.
    let mut datagram = udp6(behind(FAR), A2, A2.mac, (53, 7000), &payload);
    assert_eq!(joined, datagram.split_off(54));
    let ping = echo6(A1, behind(FAR), ROUTER, 7, &payload);
    let first = pieces(&ping, 5, 64, None).remove(0);
    kept_in(&mut fabric, "a1", &first, DropReason::Nat64Untranslatable);
}

/// An ICMP error of type and code with a second word, from `from`.
fn error4(from: End, (kind, code): (u8, u8), word: [u8; 4], quote: &[u8]) -> Vec<u8> {
    let mut frame = unreachable(from, held(5), H1, quote);
    let old =
        u32::from(id_of(&frame, 34)) + u32::from(id_of(&frame, 38)) + u32::from(id_of(&frame, 40));
    (frame[34], frame[35]) = (kind, code);
    frame[38..42].copy_from_slice(&word);
    let new =
        u32::from(id_of(&frame, 34)) + u32::from(id_of(&frame, 38)) + u32::from(id_of(&frame, 40));
    let mut sum = u32::from(!id_of(&frame, 36)) + new + 3 * 0xffff - old;
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[36..38].copy_from_slice(&(!sum as u16).to_be_bytes());
    frame
}

/// RFC 7915 §4.2, §4.3: with the packet that is quoted, and from where it came.
#[test]
fn an_error_from_the_ipv4_side_reaches_the_ipv6_port() {
    let mut fabric = outside(gateway);
    for question in [
        udp6(A2, behind(FAR), ROUTER, (7000, 53), b"question"),
        tcp6(A2, behind(FAR), (7001, 80), "S", (100, 0), 0),
        echo6(A2, behind(FAR), ROUTER, 99, b"question"),
    ] {
        let left = sent(&mut fabric, "a2", &question);
        for (from, kind, word, to, expected) in [
            (FAR, (3, 3), [0; 4], (1, 4), 0u32),
            (GATEWAY, (3, 0), [0; 4], (1, 0), 0),
            (GATEWAY, (3, 13), [0; 4], (1, 1), 0),
            (GATEWAY, (3, 2), [0; 4], (4, 1), 6),
            (GATEWAY, (11, 0), [0; 4], (3, 0), 0),
            (GATEWAY, (3, 4), [0, 0, 0x05, 0x78], (2, 0), 1420),
            // An IPv6 sender takes no less than 1280.
            (GATEWAY, (3, 4), [0, 0, 0x02, 0x40], (2, 0), 1280),
            (GATEWAY, (12, 0), [9, 0, 0, 0], (4, 0), 6),
        ] {
            let error = error4(from, kind, word, &left[14..]);
            read(&error);
            let out = fabric.send_from_uplink("h1", 1, &error);
            assert_eq!(out.len(), 1, "{kind:?} {:?}", fabric.all_drops());
            let (port, frame) = (&out[0].port, &out[0].frame);
            let seen = read(frame);
            assert_eq!(
                (port.as_str(), seen.source, seen.destination),
                ("a2", v6(behind(from)), v6(A2))
            );
            assert_eq!((frame[54], frame[55]), to, "{kind:?}");
            assert_eq!(
                u32::from_be_bytes(frame[58..62].try_into().unwrap()),
                expected
            );
            // The quote is what a2 has sent, but for the hop limit.
            let quote = &frame[62..];
            let mut original = question[14..].to_vec();
            original[7] = quote[7];
            if question[20] == 58 {
                // Of a ping the checksum is not followed.
                original[42..44].copy_from_slice(&quote[42..44]);
            }
            assert_eq!(quote, original, "{kind:?}");
        }
        let odd = error4(GATEWAY, (3, 14), [0; 4], &left[14..]);
        refused(&mut fabric, &odd, DropReason::Nat64Untranslatable);
        let mut wrong = error4(GATEWAY, (3, 3), [0; 4], &left[14..]);
        wrong[36] ^= 1;
        refused(&mut fabric, &wrong, DropReason::Nat64Untranslatable);
    }
    // About what was never sent.
    let strange = udp(held(5), FAR, H1, (1, 2), b"x");
    let error = error4(GATEWAY, (3, 3), [0; 4], &strange[14..]);
    refused(&mut fabric, &error, DropReason::IcmpUnrelated);
}

/// RFC 7915 §5.2, §5.3.
#[test]
fn an_error_of_the_ipv6_port_reaches_the_ipv4_side() {
    let mut fabric = outside(gateway);
    send(
        &mut fabric,
        "a1",
        &udp6(A1, behind(FAR), ROUTER, (7000, 53), b"question"),
    );
    let back = udp(FAR, held(5), H1, (53, 7000), b"answer");
    let out = fabric.send_from_uplink("h1", 1, &back);
    let quoted = &out[0].frame[14..];
    let error6 = |kind: u8, code: u8, word: [u8; 4]| {
        let body = [&word[..], quoted].concat();
        let frame = icmp6(A1.mac, ROUTER, A1.v6, behind(FAR).v6, kind, &body);
        let mut frame = frame;
        // The checksum follows the code.
        frame[55] = code;
        let mut sum = u32::from(!id_of(&frame, 56)) + u32::from(code);
        sum = (sum & 0xffff) + (sum >> 16);
        frame[56..58].copy_from_slice(&(!sum as u16).to_be_bytes());
        frame
    };
    for (kind, word, to, expected) in [
        ((1, 4), [0; 4], (3, 3), [0u8, 0, 0, 0]),
        ((1, 1), [0; 4], (3, 10), [0, 0, 0, 0]),
        ((1, 0), [0; 4], (3, 1), [0, 0, 0, 0]),
        ((2, 0), [0, 0, 0x05, 0xdc], (3, 4), [0, 0, 0x05, 0xc8]),
        ((3, 1), [0; 4], (11, 1), [0, 0, 0, 0]),
        ((4, 0), [0, 0, 0, 7], (12, 0), [8, 0, 0, 0]),
        ((4, 1), [0; 4], (3, 2), [0, 0, 0, 0]),
    ] {
        let frame = sent(&mut fabric, "a1", &error6(kind.0, kind.1, word));
        let seen = read(&frame);
        assert_eq!((seen.source, seen.destination), (v4(station(5)), v4(FAR)));
        assert_eq!((frame[34], frame[35]), to, "{kind:?}");
        assert_eq!(frame[38..42], expected, "{kind:?}");
        // It quotes the answer as FAR has sent it.
        assert_eq!(frame[42 + 12..42 + 20], back[26..34]);
        assert_eq!(frame[42 + 20..], back[34..]);
    }
    let other = error6(4, 2, [0; 4]);
    kept_in(&mut fabric, "a1", &other, DropReason::Nat64Untranslatable);
}

/// RFC 7915 §4, §5: 20 bytes less on one side, 28 with a fragment header.
#[test]
fn what_is_too_long_is_reported_in_the_senders_own_terms() {
    let mut fabric = outside(|objects| {
        gateway(objects);
        objects.external_networks[0].mtu = 1400;
    });
    let payload = |ip_len: usize| vec![3; ip_len - 48];
    // 1420 bytes become 1400.
    for name in ["a1", "a2"] {
        let end = if name == "a1" { A1 } else { A2 };
        let fits = udp6(end, behind(FAR), ROUTER, (7000, 53), &payload(1420));
        assert_eq!(sent(&mut fabric, name, &fits).len(), 14 + 1400);
        let long = udp6(end, behind(FAR), ROUTER, (7000, 53), &payload(1421));
        fabric.outside.clear();
        let out = fabric.send(name, &long);
        assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
        let frame = &out[0].frame;
        read(frame);
        assert_eq!(
            (out[0].port.as_str(), &frame[54..56], id_of(frame, 60)),
            (name, &[2, 0][..], 1420)
        );
    }
    // The other way: the device takes 1300.
    fabric.set_device_mtu("a1", Some(1300));
    let back = |ip_len: usize, dont_fragment: bool| {
        let mut frame = udp(FAR, held(5), H1, (53, 7000), &vec![4; ip_len - 28]);
        frame[20] = if dont_fragment { 0x40 } else { 0 };
        (frame[18], frame[19]) = (0x12, 0x34);
        mend_ipv4(&mut frame, 14);
        frame
    };
    assert_eq!(arrive(&mut fabric, &back(1280, true)).1.payload.len(), 1252);
    fabric.outside.clear();
    assert_eq!(fabric.send_from_uplink("h1", 1, &back(1281, true)), []);
    let frame = &fabric.outside[0].1;
    assert_eq!(
        (read(frame).destination, &frame[34..36], id_of(frame, 40)),
        (v4(FAR), &[3, 4][..], 1280)
    );
    // It may be fragmented: the pieces fit, with their fragment headers.
    let whole = back(1390, false);
    let out = fabric.send_from_uplink("h1", 1, &whole);
    assert_eq!(out.len(), 2, "{:?}", fabric.all_drops());
    let mut length = 0;
    for piece in &out {
        let frame = &piece.frame;
        assert!(frame.len() <= 14 + 1300);
        assert_eq!((frame[20], &frame[58..62]), (44, &[0, 0, 0x12, 0x34][..]));
        assert_eq!(usize::from(id_of(frame, 56) & !7), length);
        length += frame.len() - 62;
    }
    assert_eq!(length, whole.len() - 34);
    for host in fabric.hosts.values() {
        assert_eq!(host.unaccounted(), 0);
    }
    assert_eq!(fabric.missing_frames(), 0);
}

/// RFC 6146 §3.5.
#[test]
fn a_hop_limit_that_runs_out_is_reported_to_either_side() {
    let mut fabric = outside(gateway);
    send(
        &mut fabric,
        "a1",
        &udp6(A1, behind(FAR), ROUTER, (7000, 53), b"x"),
    );
    let mut last = udp6(A1, behind(FAR), ROUTER, (7000, 53), b"x");
    last[21] = 1;
    fabric.outside.clear();
    let out = fabric.send("a1", &last);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    assert_eq!(out[0].frame[54..56], [3, 0]);
    let mut last = udp(FAR, held(5), H1, (53, 7000), b"x");
    last[22] = 1;
    mend_ipv4(&mut last, 14);
    assert_eq!(fabric.send_from_uplink("h1", 1, &last), []);
    let frame = &fabric.outside[0].1;
    assert_eq!(
        (read(frame).source, &frame[34..36]),
        (v4(station(5)), &[11, 0][..])
    );
}

#[test]
fn a_segment_that_is_left_to_be_split_crosses_in_pieces() {
    let mut fabric = outside(gateway);
    send(
        &mut fabric,
        "a1",
        &tcp6(A1, behind(FAR), (7000, 80), "S", (100, 0), 0),
    );
    arrive(
        &mut fabric,
        &tcp(FAR, held(5), H1, (80, 7000), "SA", (500, 101), 0),
    );
    let segment = tcp6(A1, behind(FAR), (7000, 80), "A", (101, 501), 5000);
    fabric.outside.clear();
    let offload = Offload {
        segments: Segments::Tcp6,
        size: 1400,
    };
    assert_eq!(fabric.send_segment("a1", &segment, offload), []);
    let left: Vec<Seen> = fabric
        .outside
        .iter()
        .map(|(_, frame)| read(frame))
        .collect();
    let lengths: Vec<usize> = left.iter().map(|seen| seen.payload.len()).collect();
    assert_eq!(lengths, [1400, 1400, 1400, 800], "{:?}", fabric.all_drops());
    assert!(left.iter().all(|seen| seen.source == v4(station(5))));
    assert_eq!(fabric.missing_frames(), 0);
    assert_eq!(fabric.hosts["h1"].unaccounted(), 0);
}

/// RFC 6052 §3.1, and what no host has.
#[test]
fn addresses_that_nobody_outside_has_are_not_reached_by_the_prefix() {
    let mut fabric = outside(gateway);
    let to = |v4: [u8; 4]| behind(End { v4, ..FAR });
    for address in [
        [127, 0, 0, 1],
        [0, 0, 0, 0],
        [224, 0, 0, 1],
        [255, 255, 255, 255],
        [169, 254, 1, 1],
        [10, 0, 1, 13],
        [192, 168, 0, 1],
    ] {
        let frame = udp6(A1, to(address), ROUTER, (7000, 53), b"x");
        kept_in(&mut fabric, "a1", &frame, DropReason::Martian);
    }
    // A prefix of one's own may lead to private addresses.
    change(&mut fabric, |objects| {
        objects.nat_gateways[0].nat64_prefix = "2001:db8:64::/96".into();
    });
    let mut own = to([192, 168, 0, 1]);
    own.v6[..12].copy_from_slice(&[0x20, 1, 0x0d, 0xb8, 0, 0x64, 0, 0, 0, 0, 0, 0]);
    let seen = send(&mut fabric, "a1", &udp6(A1, own, ROUTER, (7000, 53), b"x"));
    assert_eq!(seen.destination, IpAddr::from([192, 168, 0, 1]));
    assert_eq!(seen.source, v4(station(5)));
    own.v6[12] = 127;
    let frame = udp6(A1, own, ROUTER, (7000, 53), b"x");
    kept_in(&mut fabric, "a1", &frame, DropReason::Martian);
}

/// RFC 6146 §3.5 knows TCP, UDP and ICMP.
#[test]
fn other_protocols_and_gateways_without_ipv4_do_not_cross() {
    let mut fabric = outside(gateway);
    let mut frame = udp6(A1, behind(FAR), ROUTER, (7000, 53), b"payload");
    frame[20] = 47;
    kept_in(&mut fabric, "a1", &frame, DropReason::NatProtocol);
    change(&mut fabric, |objects| {
        objects.nat_gateways[0].addresses.remove(0);
    });
    let frame = udp6(A1, behind(FAR), ROUTER, (7000, 53), b"x");
    kept_in(&mut fabric, "a1", &frame, DropReason::NoTranslation);
}

fn open(objects: &mut Objects) {
    gateway(objects);
    objects.nat_gateways[0].filtering = "endpoint_independent".into();
}

/// RFC 6146 §3.5.1.2.
#[test]
fn an_open_gateway_lets_strangers_in_to_an_ipv6_port() {
    let mut fabric = outside(open);
    send(
        &mut fabric,
        "a1",
        &udp6(A1, behind(FAR), ROUTER, (7000, 53), b"x"),
    );
    let stranger = udp(NEIGHBOR, held(5), H1, (1, 7000), b"hello");
    let (port, seen) = arrive(&mut fabric, &stranger);
    assert_eq!(
        (port.as_str(), seen.source, seen.destination),
        ("a1", v6(behind(NEIGHBOR)), v6(A1))
    );
    assert_eq!((seen.source_port, seen.destination_port), (1, 7000));
    // It is answered.
    crate::external::answer(&mut fabric);
    let reply = udp6(A1, behind(NEIGHBOR), ROUTER, (7000, 1), b"hi");
    fabric.outside.clear();
    fabric.send("a1", &reply);
    crate::external::answer(&mut fabric);
    let seen = send(&mut fabric, "a1", &reply);
    assert_eq!(
        (seen.source, seen.source_port, seen.destination),
        (v4(station(5)), 7000, v4(NEIGHBOR))
    );
    // From within the VPC nobody is let in by the gateway's address, in either family.
    let six = udp6(A3, behind(station(5)), ROUTER, (8000, 7000), b"x");
    kept_in(&mut fabric, "a3", &six, DropReason::NatUnmapped);
    let four = udp(A3, station(5), ROUTER, (9000, 7000), b"x");
    kept_in(&mut fabric, "a3", &four, DropReason::NatUnmapped);
}

/// The packet leaves and comes in again (RFC 6146 §3.8 has the same for mappings). Within a VPC ports reach each other by IPv6.
#[test]
fn an_ipv6_port_reaches_the_elastic_ips_of_another_vpc_on_this_host() {
    let mut fabric = outside(|objects| {
        gateway(objects);
        crate::external::bind(objects, "r1", station(9));
        crate::external::bind(objects, "b1", station(10));
    });
    for _ in 0..2 {
        let question = udp6(A3, behind(station(9)), ROUTER, (8000, 53), b"question");
        let out = fabric.send("a3", &question);
        assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
        let seen = read(&out[0].frame);
        assert_eq!(
            (&*out[0].port, seen.source, seen.destination),
            ("r1", v4(station(5)), v4(A1))
        );
        assert_eq!(&*seen.payload, b"question");
        let answer = udp(A1, station(5), ROUTER, (53, seen.source_port), b"answer");
        let out = fabric.send("r1", &answer);
        assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
        let seen = read(&out[0].frame);
        assert_eq!(
            (&*out[0].port, seen.source, seen.destination),
            ("a3", v6(behind(station(9))), v6(A3))
        );
        assert_eq!(
            (seen.destination_port, &*seen.payload),
            (8000, &b"answer"[..])
        );
    }
    let own = udp6(A3, behind(station(10)), ROUTER, (8000, 53), b"x");
    kept_in(&mut fabric, "a3", &own, DropReason::NatUnmapped);
}

#[test]
fn policy_sees_addresses_and_types_of_the_ports_own_family() {
    let mut fabric = outside(|objects| {
        open(objects);
        objects.security_groups[0].rules = vec![weft_proto::v1::SecurityRule {
            remote_cidr: "64:ff9b::cb00:714d/128".into(),
            ..crate::topology::ingress("udp", Some(7000))
        }];
    });
    send(
        &mut fabric,
        "a1",
        &udp6(A1, behind(FAR), ROUTER, (7000, 53), b"x"),
    );
    let neighbor = udp(NEIGHBOR, held(5), H1, (1, 7000), b"hello");
    assert_eq!(arrive(&mut fabric, &neighbor).0, "a1");
    let other = udp(station(78), held(5), H1, (1, 7000), b"hello");
    refused(&mut fabric, &other, DropReason::GroupDenied);
}

#[test]
fn a_trace_shows_what_becomes_of_the_packet() {
    let mut fabric = outside(gateway);
    let frame = udp6(A1, behind(FAR), ROUTER, (7000, 53), b"x");
    for _ in 0..2 {
        let (host, index) = fabric.find_port("a1").unwrap();
        let host = &fabric.hosts[&host];
        let view = View {
            snapshot: host.pipeline.snapshot(),
            shared: &host.shared,
            fragment: true,
        };
        let seen = trace(view, index, &frame);
        assert!(
            matches!(
                seen.outcome,
                Outcome::To {
                    neighbor: Some(_),
                    ..
                }
            ),
            "{seen:?}"
        );
        let steps = format!("{:?}", seen.steps);
        assert!(steps.contains("fd00:1::11 is 203.0.113.5"), "{steps}");
        send(&mut fabric, "a1", &frame);
    }
}

#[test]
fn a_prefix_that_changes_ends_what_went_by_it() {
    let mut fabric = outside(gateway);
    let frame = udp6(A1, behind(FAR), ROUTER, (7000, 53), b"x");
    send(&mut fabric, "a1", &frame);
    change(&mut fabric, |objects| {
        objects.nat_gateways[0].nat64_prefix = "2001:db8:64::/96".into();
    });
    let back = udp(FAR, held(5), H1, (53, 7000), b"y");
    refused(&mut fabric, &back, DropReason::TranslationGone);
    // What was the prefix is an address like any other.
    let seen = send(&mut fabric, "a1", &frame);
    assert_eq!(seen.destination, v6(behind(FAR)));
}
