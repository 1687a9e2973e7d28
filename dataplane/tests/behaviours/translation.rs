//! Static one-to-one translation of addresses, within a host and across two: who sends to the outside address reaches the inside one, answers come
//! from where the question went, and what is quoted or comes in pieces follows.

use std::net::IpAddr;

use weft_dataplane::packet::parse::address_word;
use weft_dataplane::packet::{DropReason, Offload, Segments};
use weft_dataplane::route::Prefix;
use weft_dataplane::session::State;
use weft_dataplane::snapshot::StaticTranslation;
use weft_fabric::Fabric;
use weft_proto::v1;

use crate::fragments::pieces;
use crate::frames::{
    A1, A2, A3, B1, B2, End, Seen, echo, echo_reply, echo6, icmp6, read, tcp, udp, udp6,
};
use crate::overlay::mend_ipv4;
use crate::topology::{ROUTER, change, fabric, group, ingress, route};

const V4: [u8; 4] = [198, 18, 0, 9];
const V6: [u8; 16] = [0xfd, 0, 0, 0xaa, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

/// A port by another address.
const fn outside(last: u8) -> End {
    let mut end = A1;
    end.v4 = V4;
    end.v4[3] = last;
    end.v6 = V6;
    end.v6[15] = last;
    end
}

/// What stands for b2, and for a1.
const B2_OUTSIDE: End = outside(9);
const A1_OUTSIDE: End = outside(7);

fn stands(outside: End, inside: End, towards: &[Prefix]) -> [StaticTranslation; 2] {
    let pair = |inside: IpAddr, outside: IpAddr| StaticTranslation {
        vpc: "blue".into(),
        inside: address_word(inside),
        outside: address_word(outside),
        towards: towards.to_vec(),
    };
    [
        pair(inside.v4.into(), outside.v4.into()),
        pair(inside.v6.into(), outside.v6.into()),
    ]
}

/// Puts translations in force.
fn translate(fabric: &mut Fabric, all: &[[StaticTranslation; 2]]) {
    fabric.translations = all.as_flattened().to_vec();
    change(fabric, |_| {});
}

/// The base topology, in which [`B2_OUTSIDE`] stands for b2 on h2.
fn translating() -> Fabric {
    let mut fabric = fabric(|_| {});
    translate(&mut fabric, &[stands(B2_OUTSIDE, B2, &[])]);
    fabric
}

/// The one frame that comes out, and at which port.
#[track_caller]
pub fn only(fabric: &mut Fabric, from: &str, frame: &[u8]) -> (String, Seen, Vec<u8>) {
    let mut out = fabric.send(from, frame);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    let out = out.remove(0);
    (out.port, read(&out.frame), out.frame)
}

#[track_caller]
pub fn dropped(fabric: &mut Fabric, from: &str, frame: &[u8], reason: DropReason) {
    let count = |fabric: &Fabric| fabric.all_drops().get(&reason).copied().unwrap_or(0);
    let before = count(fabric);
    assert!(fabric.send(from, frame).is_empty());
    assert_eq!(count(fabric) - before, 1, "{:?}", fabric.all_drops());
}

/// Each way once and again, so that the session is asked too, by the slow path and by the fast path.
#[test]
fn datagrams_reach_the_inside_and_are_answered_from_the_outside() {
    for make in [udp, udp6] {
        for (client, name) in [(A1, "a1"), (B1, "b1")] {
            let mut fabric = translating();
            let v6 = make(A1, A2, A2.mac, (7, 53), b"x")[12] == 0x86;
            let address = |end: End| -> IpAddr { if v6 { end.v6.into() } else { end.v4.into() } };
            for round in 0..4u8 {
                let question = make(client, B2_OUTSIDE, ROUTER, (7, 53), &[round, 1, 2]);
                let (port, seen, _) = only(&mut fabric, name, &question);
                assert_eq!(port, "b2");
                assert_eq!(
                    (seen.source, seen.destination),
                    (address(client), address(B2))
                );
                assert_eq!(
                    (seen.dst, seen.ttl, &seen.payload[..]),
                    (B2.mac, 63, &[round, 1, 2][..])
                );
                let back = if client.mac == B1.mac { B1.mac } else { ROUTER };
                let answer = make(B2, client, back, (53, 7), &[round]);
                let (port, seen, _) = only(&mut fabric, name_of_b2(), &answer);
                assert_eq!(port, name);
                assert_eq!(
                    (seen.source, seen.destination),
                    (address(B2_OUTSIDE), address(client))
                );
                assert_eq!(seen.payload, [round]);
            }
            let fast = fabric.hosts["h1"].pipeline.counters().fast.get();
            assert!(fast >= 4, "translated packets take the fast path: {fast}");
        }
    }
}

fn name_of_b2() -> &'static str {
    "b2"
}

#[test]
fn a_datagram_without_a_checksum_keeps_none_and_zero_is_sent_as_ones() {
    let mut fabric = translating();
    for _ in 0..3 {
        let mut frame = udp(A1, B2_OUTSIDE, ROUTER, (7, 53), b"no checksum");
        frame[40..42].fill(0);
        let (_, _, out) = only(&mut fabric, "a1", &frame);
        assert_eq!(out[40..42], [0, 0]);
    }
    // A payload for which the checksum is 0 after translation, which UDP sends as all ones (RFC 768).
    let inside = |pad: u16| udp(A1, B2, ROUTER, (7, 53), &pad.to_be_bytes());
    let sum = |frame: &[u8]| u16::from_be_bytes([frame[40], frame[41]]);
    let pad = (0..=u16::MAX)
        .find(|pad| sum(&inside(*pad)) == 0xffff)
        .unwrap();
    for _ in 0..3 {
        let frame = udp(A1, B2_OUTSIDE, ROUTER, (7, 53), &pad.to_be_bytes());
        let (_, _, out) = only(&mut fabric, "a1", &frame);
        assert_eq!(out[40..42], [0xff, 0xff]);
    }
}

#[test]
fn a_connection_is_opened_used_and_closed_through_a_translation() {
    let mut fabric = translating();
    let to =
        |flags, numbers, payload| tcp(A1, B2_OUTSIDE, ROUTER, (4000, 80), flags, numbers, payload);
    let back = |flags, numbers, payload| tcp(B2, A1, ROUTER, (80, 4000), flags, numbers, payload);
    for (from, frame) in [
        ("a1", to("S", (1000, 0), 0)),
        ("b2", back("SA", (5000, 1001), 0)),
        ("a1", to("A", (1001, 5001), 0)),
        ("a1", to("A", (1001, 5001), 100)),
        ("b2", back("A", (5001, 1101), 900)),
        ("a1", to("A", (1101, 5901), 0)),
        ("a1", to("FA", (1101, 5901), 0)),
        ("b2", back("FA", (5901, 1102), 0)),
        ("a1", to("A", (1102, 5902), 0)),
    ] {
        let (port, seen, _) = only(&mut fabric, from, &frame);
        let expected: (&str, IpAddr) = match from {
            "a1" => ("b2", B2.v4.into()),
            _ => ("a1", A1.v4.into()),
        };
        assert_eq!((port.as_str(), seen.destination), expected);
    }
    // One session on the host that translates, with both its identities; a plain one on the other.
    let views = |host: &str| {
        fabric.hosts[host]
            .shared
            .sessions
            .list(9, fabric.now, |_| true)
    };
    let [view] = &views("h1")[..] else {
        panic!("one session: {:?}", views("h1"));
    };
    assert_eq!(view.state, State::TcpTimeWait);
    assert_eq!((view.packets_out, view.packets_back), (6, 3));
    assert_eq!(view.flow.destination, address_word(V4.into()));
    let (_, inside) = view.translated.unwrap();
    assert_eq!(inside.destination, address_word(B2.v4.into()));
    assert_eq!((inside.source_port, inside.destination_port), (4000, 80));
    assert!(views("h2").iter().all(|view| view.translated.is_none()));
}

#[test]
fn pings_are_translated_both_ways() {
    let mut fabric = translating();
    for _ in 0..3 {
        let (port, seen, _) = only(&mut fabric, "a1", &echo(A1, B2_OUTSIDE, ROUTER, 5, b"ping"));
        assert_eq!((port.as_str(), seen.destination), ("b2", B2.v4.into()));
        let (port, seen, _) = only(&mut fabric, "b2", &echo_reply(B2, A1, ROUTER, 5, b"ping"));
        assert_eq!((port.as_str(), seen.source), ("a1", V4.into()));
        // The checksum of ICMPv6 has the addresses under it.
        let (port, seen, _) = only(
            &mut fabric,
            "a1",
            &echo6(A1, B2_OUTSIDE, ROUTER, 5, b"ping"),
        );
        assert_eq!((port.as_str(), seen.destination), ("b2", B2.v6.into()));
    }
}

#[test]
fn pieces_of_a_datagram_follow_the_first_in_any_order() {
    for make in [udp, udp6] {
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            let mut fabric = translating();
            for id in 0..2 {
                let whole = |to| {
                    pieces(
                        &make(A1, to, ROUTER, (7, 53), &[9; 3000]),
                        77 + id,
                        1200,
                        None,
                    )
                };
                let sent = whole(B2_OUTSIDE);
                let mut out: Vec<Vec<u8>> = Vec::new();
                for at in order {
                    let frames = fabric.send("a1", &sent[at]);
                    out.extend(frames.into_iter().map(|delivered| delivered.frame));
                }
                // As if they had been sent to the inside: checksums of IP and of the datagram with them.
                let mut expected = whole(B2);
                for frame in &mut expected {
                    route_once(frame);
                }
                out.sort();
                expected.sort();
                assert_eq!(out, expected);
            }
        }
    }
}

/// What the router to b2 does to a frame.
fn route_once(frame: &mut [u8]) {
    frame[..6].copy_from_slice(&B2.mac);
    frame[6..12].copy_from_slice(&ROUTER);
    if frame[14] >> 4 == 6 {
        frame[21] -= 1;
        return;
    }
    frame[22] -= 1;
    mend_ipv4(frame, 14);
}

/// An ICMP error from `from` to `to` about a packet, as much of it as is there.
pub fn unreachable(from: End, to: End, dst: [u8; 6], quote: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(quote);
    let mut sum: u32 = body
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    body[2..4].copy_from_slice(&(!sum as u16).to_be_bytes());
    let mut frame = udp(from, to, dst, (0, 0), &[]);
    frame.truncate(34);
    frame.extend_from_slice(&body);
    let len = frame.len() as u16 - 14;
    frame[16..18].copy_from_slice(&len.to_be_bytes());
    frame[23] = 1;
    mend_ipv4(&mut frame, 14);
    frame
}

#[test]
fn an_error_about_a_translated_packet_quotes_what_its_sender_had_sent() {
    let mut fabric = translating();
    // Whole, and cut behind eight bytes of transport header (RFC 792).
    for cut in [usize::MAX, 42] {
        let sent = udp(A1, B2_OUTSIDE, ROUTER, (7, 53), b"nobody listens");
        let (_, _, arrived) = only(&mut fabric, "a1", &sent);
        let quote = &arrived[14..arrived.len().min(cut)];
        let (port, seen, out) = only(&mut fabric, "b2", &unreachable(B2, A1, ROUTER, quote));
        assert_eq!(port, "a1");
        // As from the address that was asked, about the packet that was sent, but for its TTL.
        assert_eq!((seen.source, seen.destination), (V4.into(), A1.v4.into()));
        let mut original = sent[14..sent.len().min(cut)].to_vec();
        original[8] -= 1;
        let mut framed = [&sent[..14], &original].concat();
        mend_ipv4(&mut framed, 14);
        assert_eq!(out[42..], framed[14..]);
    }
    // Its own host's router too, on behalf of a packet of b2's that is too old, knows it as b2 does.
    let mut old = udp(B2, A1, ROUTER, (53, 7), b"late");
    old[22] = 1;
    mend_ipv4(&mut old, 14);
    let (port, seen, out) = only(&mut fabric, "b2", &old);
    assert_eq!((port.as_str(), seen.destination), ("b2", B2.v4.into()));
    assert_eq!(out[42..], old[14..]);
}

#[test]
fn an_error_of_icmpv6_is_translated_with_its_quote() {
    let mut fabric = translating();
    let sent = udp6(A1, B2_OUTSIDE, ROUTER, (7, 53), b"nobody listens");
    let (_, _, arrived) = only(&mut fabric, "a1", &sent);
    // From the receiver, and from a router on the way, whose address stays.
    for (router, source) in [(B2, B2_OUTSIDE.v6), (A3, A3.v6)] {
        let mut body = vec![0; 4];
        body.extend_from_slice(&arrived[14..]);
        let (from, back) = match router.mac {
            mac if mac == B2.mac => ("b2", ROUTER),
            _ => ("a3", A1.mac),
        };
        let error = icmp6(router.mac, back, router.v6, A1.v6, 1, &body);
        let (port, seen, out) = only(&mut fabric, from, &error);
        assert_eq!(port, "a1");
        assert_eq!(
            (seen.source, seen.destination),
            (source.into(), A1.v6.into())
        );
        let mut original = sent[14..].to_vec();
        original[7] -= 1;
        assert_eq!(out[62..], original);
    }
}

#[test]
fn two_ports_that_are_known_by_other_addresses_see_each_other_by_these() {
    let mut fabric = fabric(|_| {});
    translate(
        &mut fabric,
        &[stands(B2_OUTSIDE, B2, &[]), stands(A1_OUTSIDE, A1, &[])],
    );
    for _ in 0..3 {
        let (port, seen, _) = only(
            &mut fabric,
            "a1",
            &udp(A1, B2_OUTSIDE, ROUTER, (7, 53), b"?"),
        );
        assert_eq!(port, "b2");
        assert_eq!(
            (seen.source, seen.destination),
            (A1_OUTSIDE.v4.into(), B2.v4.into())
        );
        let (port, seen, _) = only(
            &mut fabric,
            "b2",
            &udp(B2, A1_OUTSIDE, ROUTER, (53, 7), b"!"),
        );
        assert_eq!(port, "a1");
        assert_eq!(
            (seen.source, seen.destination),
            (B2_OUTSIDE.v4.into(), A1.v4.into())
        );
        // A port reaches itself.
        let (port, seen, _) = only(
            &mut fabric,
            "a1",
            &udp(A1, A1_OUTSIDE, ROUTER, (70, 53), b"me"),
        );
        assert_eq!(port, "a1");
        assert_eq!(
            (seen.source, seen.destination),
            (A1_OUTSIDE.v4.into(), A1.v4.into())
        );
        let (port, seen, _) = only(
            &mut fabric,
            "a1",
            &udp(A1, A1_OUTSIDE, ROUTER, (53, 70), b"me"),
        );
        assert_eq!(port, "a1");
        assert_eq!(
            (seen.source, seen.destination),
            (A1_OUTSIDE.v4.into(), A1.v4.into())
        );
    }
    // But not with equal ports: question and answer would be one flow.
    let twin = udp(A1, A1_OUTSIDE, ROUTER, (53, 53), b"me");
    dropped(&mut fabric, "a1", &twin, DropReason::TranslationClash);
}

/// b1 is a router to the outside, as an appliance: what leaves towards it bears the outside address.
fn with_a_router() -> (Fabric, End) {
    let mut fabric = fabric(|objects| {
        let mut out = route("203.0.113.0/24");
        out.port = "b1".into();
        objects.route_tables[0].routes = vec![out];
        let pair = v1::AddressPair {
            cidr: "0.0.0.0/0".into(),
            ..v1::AddressPair::default()
        };
        let router = objects
            .ports
            .iter_mut()
            .find(|port| port.id == "b1")
            .unwrap();
        router.allowed_pairs = vec![pair];
    });
    let internet = Prefix::new(address_word([203, 0, 113, 0].into()), 96 + 24);
    translate(&mut fabric, &[stands(A1_OUTSIDE, A1, &[internet])]);
    let far = End {
        v4: [203, 0, 113, 80],
        ..B1
    };
    (fabric, far)
}

#[test]
fn towards_the_prefixes_that_are_named_a_source_is_translated() {
    let (mut fabric, far) = with_a_router();
    for _ in 0..3 {
        let (port, seen, _) = only(&mut fabric, "a1", &udp(A1, far, ROUTER, (7, 53), b"?"));
        assert_eq!(port, "b1");
        assert_eq!(
            (seen.source, seen.destination),
            (A1_OUTSIDE.v4.into(), far.v4.into())
        );
        let (port, seen, _) = only(
            &mut fabric,
            "b1",
            &udp(far, A1_OUTSIDE, ROUTER, (53, 7), b"!"),
        );
        assert_eq!(port, "a1");
        assert_eq!(
            (seen.source, seen.destination),
            (far.v4.into(), A1.v4.into())
        );
        // From outside first, too.
        let (port, seen, _) = only(
            &mut fabric,
            "b1",
            &udp(far, A1_OUTSIDE, ROUTER, (99, 98), b"?"),
        );
        assert_eq!((port.as_str(), seen.destination), ("a1", A1.v4.into()));
        let (port, seen, _) = only(&mut fabric, "a1", &udp(A1, far, ROUTER, (98, 99), b"!"));
        assert_eq!((port.as_str(), seen.source), ("b1", A1_OUTSIDE.v4.into()));
    }
    // Within the VPC a1 is who it is.
    let (_, seen, _) = only(&mut fabric, "a1", &udp(A1, B2, ROUTER, (7, 53), b"?"));
    assert_eq!(seen.source, IpAddr::from(A1.v4));
}

#[test]
fn policy_sees_the_addresses_that_its_port_knows() {
    let mut fabric = translating();
    let admit = |fabric: &mut Fabric, cidr: &str| {
        change(fabric, |objects| {
            let mut rule = ingress("udp", Some(53));
            rule.remote_cidr = cidr.into();
            group(objects, "open").rules = vec![rule];
            for port in ["a1", "a3"] {
                let port = objects
                    .ports
                    .iter_mut()
                    .find(|other| other.id == port)
                    .unwrap();
                port.security_groups.clear();
            }
        });
    };
    let question = udp(A3, B2_OUTSIDE, ROUTER, (7, 53), b"?");
    admit(&mut fabric, "10.0.1.13/32");
    assert_eq!(only(&mut fabric, "a3", &question).0, "b2");
    // What leaves a3 is admitted by where a3 sends it, not by where it goes.
    change(&mut fabric, |objects| {
        let mut rule = v1::SecurityRule {
            direction: "egress".into(),
            ..v1::SecurityRule::default()
        };
        rule.remote_cidr = "198.18.0.9/32".into();
        let mut only_outside = objects.security_groups[0].clone();
        (only_outside.id, only_outside.rules) = ("only-outside".into(), vec![rule]);
        objects.security_groups.push(only_outside);
        let a3 = objects
            .ports
            .iter_mut()
            .find(|port| port.id == "a3")
            .unwrap();
        a3.security_groups = vec!["only-outside".into()];
    });
    assert_eq!(only(&mut fabric, "a3", &question).0, "b2");
    let inside = udp(A3, B2, ROUTER, (8, 53), b"?");
    dropped(&mut fabric, "a3", &inside, DropReason::GroupDenied);
    admit(&mut fabric, "192.0.2.0/24");
    dropped(&mut fabric, "a3", &question, DropReason::GroupDenied);
}

/// A client's system gives a port to another connection as soon as the first is over, for it sees two destinations.
#[test]
fn a_connection_that_is_over_gives_its_place_to_one_that_looks_like_it() {
    let mut fabric = translating();
    for (first, second, port) in [(B2_OUTSIDE, B2, 7), (B2, B2_OUTSIDE, 9)] {
        let to =
            |end: End, flags: &str, numbers| tcp(A1, end, ROUTER, (port, 53), flags, numbers, 0);
        let answers = |flags: &str, numbers| tcp(B2, A1, ROUTER, (53, port), flags, numbers, 0);
        let again = to(second, "S", (9000, 0));
        only(&mut fabric, "a1", &to(first, "S", (100, 0)));
        dropped(&mut fabric, "a1", &again, DropReason::TranslationClash);
        only(&mut fabric, "b2", &answers("SA", (500, 101)));
        only(&mut fabric, "a1", &to(first, "A", (101, 501)));
        only(&mut fabric, "b2", &answers("FA", (501, 101)));
        dropped(&mut fabric, "a1", &again, DropReason::TranslationClash);
        only(&mut fabric, "a1", &to(first, "FA", (101, 502)));
        only(&mut fabric, "b2", &answers("A", (502, 102)));
        // In mid-stream nothing takes a place.
        let middle = to(second, "A", (9001, 600));
        dropped(&mut fabric, "a1", &middle, DropReason::TranslationClash);
        let (port, seen, _) = only(&mut fabric, "a1", &again);
        assert_eq!((port.as_str(), seen.destination), ("b2", B2.v4.into()));
        let (port, seen, _) = only(&mut fabric, "b2", &answers("SA", (700, 9001)));
        assert_eq!((port.as_str(), seen.source), ("a1", second.v4.into()));
        // The old one's late segment is nobody's.
        let late = to(first, "A", (102, 502));
        dropped(&mut fabric, "a1", &late, DropReason::TranslationClash);
    }
}

#[test]
fn a_flow_that_would_look_like_another_is_refused() {
    let mut fabric = translating();
    // Straight first: then by way of the outside address, with the same ports.
    only(&mut fabric, "a1", &udp(A1, B2, ROUTER, (7, 53), b"?"));
    let by_way = udp(A1, B2_OUTSIDE, ROUTER, (7, 53), b"?");
    dropped(&mut fabric, "a1", &by_way, DropReason::TranslationClash);
    // The other way round, once and again: what the session keeps is not taken for the other's.
    only(
        &mut fabric,
        "a1",
        &udp(A1, B2_OUTSIDE, ROUTER, (9, 53), b"?"),
    );
    for _ in 0..3 {
        let straight = udp(A1, B2, ROUTER, (9, 53), b"?");
        dropped(&mut fabric, "a1", &straight, DropReason::TranslationClash);
        only(
            &mut fabric,
            "a1",
            &udp(A1, B2_OUTSIDE, ROUTER, (9, 53), b"?"),
        );
    }
    // Over once the other has gone.
    fabric.advance(200_000);
    only(&mut fabric, "a1", &by_way);
}

#[test]
fn a_session_keeps_its_translation_until_that_is_taken_away() {
    let mut fabric = translating();
    let [to, back] = [
        udp(A1, B2_OUTSIDE, ROUTER, (7, 53), b"?"),
        udp(B2, A1, ROUTER, (53, 7), b"!"),
    ];
    only(&mut fabric, "a1", &to);
    only(&mut fabric, "b2", &back);
    // Another translation more: the session is judged again, and goes on.
    translate(
        &mut fabric,
        &[stands(B2_OUTSIDE, B2, &[]), stands(A1_OUTSIDE, A1, &[])],
    );
    let (_, seen, _) = only(&mut fabric, "a1", &to);
    assert_eq!(
        seen.source,
        IpAddr::from(A1.v4),
        "not chosen anew in mid-flow"
    );
    only(&mut fabric, "b2", &back);
    // A flow that was plain stays plain.
    let plain = udp(A1, B2, ROUTER, (70, 53), b"?");
    only(&mut fabric, "a1", &plain);
    // The address stands for another now: the next packet ends the session, whichever way it goes.
    translate(&mut fabric, &[stands(B2_OUTSIDE, B1, &[])]);
    dropped(&mut fabric, "a1", &to, DropReason::TranslationGone);
    let (port, seen, _) = only(&mut fabric, "a1", &to);
    assert_eq!((port.as_str(), seen.destination), ("b1", B1.v4.into()));
    only(&mut fabric, "a1", &plain);
}

#[test]
fn a_connection_whose_translation_is_taken_away_is_not_picked_up_again() {
    let mut fabric = translating();
    let to = |flags, numbers| tcp(A1, B2_OUTSIDE, ROUTER, (4000, 80), flags, numbers, 0);
    let back = |flags, numbers| tcp(B2, A1, ROUTER, (80, 4000), flags, numbers, 0);
    only(&mut fabric, "a1", &to("S", (1000, 0)));
    only(&mut fabric, "b2", &back("SA", (5000, 1001)));
    only(&mut fabric, "a1", &to("A", (1001, 5001)));
    translate(&mut fabric, &[]);
    dropped(
        &mut fabric,
        "b2",
        &back("A", (5001, 1001)),
        DropReason::TranslationGone,
    );
    for _ in 0..2 {
        assert!(fabric.send("b2", &back("A", (5001, 1001))).is_empty());
        assert!(fabric.send("a1", &to("A", (1001, 5001))).is_empty());
    }
}

/// A segment that its guest left to be split, within a host: whole, with the sum of the pseudo-header for the new addresses.
#[test]
fn a_segment_that_is_to_be_split_is_translated_whole() {
    let mut fabric = fabric(|_| {});
    translate(&mut fabric, &[stands(B2_OUTSIDE, B1, &[])]);
    let partial = |frame: &[u8]| {
        let mut sum: u32 = frame[26..34]
            .chunks(2)
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
            .sum();
        sum += 6 + (frame.len() - 34) as u32;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (sum as u16).to_be_bytes()
    };
    let to =
        |flags, numbers, payload| tcp(A1, B2_OUTSIDE, ROUTER, (4000, 80), flags, numbers, payload);
    only(&mut fabric, "a1", &to("S", (1000, 0), 0));
    only(
        &mut fabric,
        "b1",
        &tcp(B1, A1, ROUTER, (80, 4000), "SA", (5000, 1001), 0),
    );
    only(&mut fabric, "a1", &to("A", (1001, 5001), 0));
    let mut segment = to("A", (1001, 5001), 5000);
    segment[20] = 0x40;
    mend_ipv4(&mut segment, 14);
    let sum = partial(&segment);
    segment[50..52].copy_from_slice(&sum);
    let offload = Offload {
        segments: Segments::Tcp4,
        size: 1400,
    };
    let out = fabric.send_segment("a1", &segment, offload);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    assert_eq!((out[0].port.as_str(), out[0].offload), ("b1", offload));
    let frame = &out[0].frame;
    assert_eq!(frame[30..34], B1.v4);
    assert_eq!(frame[50..52], partial(frame));
}
