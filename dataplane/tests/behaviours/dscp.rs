//! DSCP marking: what a port sends has the port's DSCP, on every path that it may take, and keeps its congestion mark.

use weft_dataplane::packet::{Offload, Segments};
use weft_dataplane::pipeline::trace;
use weft_fabric::Fabric;
use weft_proto::v1::Objects;

use crate::external::{FAR, bind, outside, station};
use crate::fragments::pieces;
use crate::frames::{A1, A2, A3, B1, B2, End, echo, read, tcp, udp, udp_ttl, udp6};
use crate::overlay::mend_ipv4;
use crate::topology::{ROUTER, change, fabric, port};

const EF: u32 = 46;

/// a1 marks what it sends with EF.
fn marking(change: impl FnOnce(&mut Objects)) -> Fabric {
    fabric(|objects| {
        port(objects, "a1").dscp = Some(EF);
        change(objects);
    })
}

/// The traffic class of the IP header at an offset.
fn class_at(frame: &[u8], at: usize) -> u8 {
    match frame[at] >> 4 {
        4 => frame[at + 1],
        _ => frame[at] << 4 | frame[at + 1] >> 4,
    }
}

fn class(frame: &[u8]) -> u8 {
    class_at(frame, 14)
}

/// The frame with another traffic class.
fn of_class(mut frame: Vec<u8>, class: u8) -> Vec<u8> {
    if frame[14] >> 4 == 4 {
        frame[15] = class;
        mend_ipv4(&mut frame, 14);
    } else {
        frame[14] = 0x60 | class >> 4;
        frame[15] = frame[15] & 0x0f | class << 4;
    }
    frame
}

/// Packets that took the fast path on h1.
fn fast(fabric: &Fabric) -> u64 {
    fabric.hosts["h1"].pipeline.counters().fast.get()
}

#[test]
fn every_packet_of_a_session_is_marked_in_both_headers() {
    let mut fabric = marking(|_| {});
    type Datagram = fn(End, End, [u8; 6], (u16, u16), &[u8]) -> Vec<u8>;
    let (mut sent, before) = (0, fast(&fabric));
    for make in [udp as Datagram, udp6] {
        for (name, to, mac) in [
            ("a2", A2, A2.mac),
            ("a3", A3, A3.mac),
            ("b1", B1, ROUTER),
            ("b2", B2, ROUTER),
        ] {
            // The first is a miss, the others are hits; with all congestion marks, and a DSCP of the guest's own.
            for ecn in [0, 1, 2, 3, 2] {
                let frame = of_class(make(A1, to, mac, (7, 8), b"x"), 10 << 2 | ecn);
                fabric.crossed.clear();
                let out = fabric.send("a1", &frame);
                assert_eq!((out.len(), &*out[0].port), (1, name));
                read(&out[0].frame);
                let wanted = (EF as u8) << 2 | ecn;
                assert_eq!(class(&out[0].frame), wanted, "{name}");
                let outer = fabric.crossed.iter().map(|frame| class(frame));
                assert!(outer.eq(name.ends_with('2').then_some(wanted)), "{name}");
                sent += 1;
            }
        }
    }
    assert_eq!(fast(&fabric) - before, sent - 8, "all but the misses");
}

#[test]
fn what_others_send_keeps_its_own() {
    let mut fabric = marking(|_| {});
    for _ in 0..3 {
        let out = fabric.send("a1", &udp(A1, A2, A2.mac, (7, 8), b"x"));
        assert_eq!(class(&out[0].frame), 0xb8);
        for own in [0, 0x28] {
            let answer = of_class(udp(A2, A1, A1.mac, (8, 7), b"x"), own);
            let out = fabric.send("a2", &answer);
            assert_eq!((out[0].port.as_str(), class(&out[0].frame)), ("a1", own));
        }
    }
}

#[test]
fn a_port_may_mark_with_zero_and_a_change_holds_at_once() {
    let mut fabric = marking(|_| {});
    let frame = of_class(udp(A1, A2, A2.mac, (7, 8), b"x"), 0x29);
    for (dscp, wanted) in [
        (Some(EF), 0xb9),
        (Some(0), 1),
        (Some(63), 0xfd),
        (None, 0x29),
        (Some(EF), 0xb9),
    ] {
        change(&mut fabric, |objects| port(objects, "a1").dscp = dscp);
        for _ in 0..3 {
            let out = fabric.send("a1", &frame);
            assert_eq!(class(&out[0].frame), wanted, "{dscp:?}");
        }
    }
}

#[test]
fn connections_pings_and_broadcasts_are_marked() {
    let mut fabric = marking(|_| {});
    for (from, to, flags, numbers) in [
        ("a1", "a2", "S", (1000, 0)),
        ("a2", "a1", "SA", (5000, 1001)),
        ("a1", "a2", "A", (1001, 5001)),
        ("a1", "a2", "A", (1001, 5001)),
        ("a1", "a2", "FA", (1011, 5001)),
    ] {
        let frame = match from {
            "a1" => tcp(A1, A2, A2.mac, (9, 80), flags, numbers, 10),
            _ => tcp(A2, A1, A1.mac, (80, 9), flags, numbers, 0),
        };
        let out = fabric.send(from, &frame);
        assert_eq!((out.len(), &*out[0].port), (1, to), "{flags}");
        read(&out[0].frame);
        let wanted = if from == "a1" { 0xb8 } else { 0 };
        assert_eq!(class(&out[0].frame), wanted, "{flags}");
    }
    for _ in 0..2 {
        let out = fabric.send("a1", &echo(A1, B2, ROUTER, 7, b"x"));
        assert_eq!(class(&out[0].frame), 0xb8);
    }
    let all = End { v4: [255; 4], ..A2 };
    fabric.crossed.clear();
    let out = fabric.send("a1", &udp(A1, all, [0xff; 6], (5, 6), b"x"));
    assert_eq!(out.len(), 2);
    let classes = out.iter().map(|it| &it.frame).chain(&fabric.crossed);
    assert!(classes.map(|frame| class(frame)).all(|it| it == 0xb8));
}

#[test]
fn fragments_and_segments_are_marked_each() {
    let mut fabric = marking(|_| {});
    let whole = udp(A1, A2, A2.mac, (9, 53), &[7; 3000]);
    // The first, those that wait for it, and those that come after.
    let parts = pieces(&whole, 77, 1400, None);
    let mut out = fabric.send("a1", &parts[1]);
    out.extend(fabric.send("a1", &parts[0]));
    out.extend(fabric.send("a1", &parts[2]));
    assert_eq!(out.len(), 3);
    assert!(out.iter().all(|it| class(&it.frame) == 0xb8));
    // One that this host has to cut.
    let mut long = udp(A1, B2, ROUTER, (9, 53), &[7; 1450]);
    long[20] = 0;
    mend_ipv4(&mut long, 14);
    let out = fabric.send("a1", &long);
    assert_eq!(out.len(), 2);
    assert!(out.iter().all(|it| class(&it.frame) == 0xb8));
    // And what a guest left to its device to split: in pieces through the tunnel, whole to a neighbour.
    let offload = Offload {
        segments: Segments::Udp,
        size: 1000,
    };
    for (to, count) in [(A2, 3), (A3, 1)] {
        let frame = udp(A1, to, to.mac, (10, 53), &[7; 3000]);
        for _ in 0..2 {
            fabric.crossed.clear();
            let out = fabric.send_segment("a1", &frame, offload);
            assert_eq!(out.len(), count, "{:?}", fabric.all_drops());
            let frames = out.iter().map(|it| &it.frame).chain(&fabric.crossed);
            assert!(frames.map(|frame| class(frame)).all(|it| it == 0xb8));
        }
    }
}

#[test]
fn an_error_quotes_the_packet_as_it_was_marked() {
    let mut fabric = marking(|_| {});
    let out = fabric.send("a1", &udp_ttl(A1, B2, ROUTER, (1, 2), b"x", 1));
    assert_eq!((out[0].port.as_str(), out[0].frame[34]), ("a1", 11));
    read(&out[0].frame);
    assert_eq!(class_at(&out[0].frame, 42), 0xb8);
}

#[test]
fn what_is_translated_is_marked_too() {
    let mut fabric = outside(|objects| {
        bind(objects, "a1", station(9));
        port(objects, "a1").dscp = Some(EF);
    });
    let frame = of_class(udp(A1, FAR, ROUTER, (7, 53), b"x"), 2);
    let before = fast(&fabric);
    for _ in 0..3 {
        fabric.outside.clear();
        assert_eq!(fabric.send("a1", &frame), []);
        let (_, left) = &fabric.outside[0];
        assert_eq!(read(left).source.to_string(), "203.0.113.9");
        assert_eq!(class(left), 0xba);
    }
    assert_eq!(fast(&fabric) - before, 2);
}

#[test]
fn a_trace_says_what_a_packet_is_marked_with() {
    let fabric = marking(|_| {});
    let steps = |name: &str, frame: &[u8]| {
        let (host, port) = fabric.find_port(name).unwrap();
        let trace = trace::trace(fabric.hosts[&host].view(), port, frame);
        let steps = trace.steps.into_iter();
        let marks = steps.filter(|(stage, _)| *stage == "dscp");
        marks.map(|(_, text)| text).collect::<Vec<_>>()
    };
    assert_eq!(
        steps("a1", &udp(A1, A2, A2.mac, (7, 8), b"x")),
        ["marked with 46"]
    );
    assert!(steps("a2", &udp(A2, A1, A1.mac, (7, 8), b"x")).is_empty());
}
