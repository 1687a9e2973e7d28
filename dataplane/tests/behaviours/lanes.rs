//! The path that packets take: the fast path when the session decides, the slow path when more has to be known, and policy when a packet
//! opens or ends a flow. All three treat a packet alike, so only their counters differ.

use std::sync::Arc;

use weft_dataplane::packet::{DropReason, FrameMemory};
use weft_dataplane::pipeline::{Destination, Source};
use weft_fabric::{Fabric, MemoryIo};
use weft_proto::v1;

use crate::frames::{A1, A2, A3, B1, B2, End, end, tcp, udp, udp_ttl, udp6};
use crate::overlay::mend_ipv4;
use crate::topology::{ROUTER, fabric, port, route};

/// A port of a third host.
const A4: End = end(1, 4);

/// Two hosts, and a third with a4.
fn three_hosts() -> Fabric {
    fabric(|objects| {
        let mut host = objects.hosts[0].clone();
        host.id = "h3".into();
        host.vteps = vec!["192.0.2.3".into()];
        objects.hosts.push(host);
        let mut port = objects.ports[0].clone();
        port.id = "a4".into();
        port.mac = "02:00:00:00:01:04".into();
        port.addresses = vec!["10.0.1.14".into()];
        port.host = "h3".into();
        objects.ports.push(port);
    })
}

/// Packets that took the fast path, the slow path, and that were judged.
type Ways = (u64, u64, u64);

const FAST: Ways = (1, 0, 0);
const GENERAL: Ways = (0, 1, 0);
const JUDGED: Ways = (0, 0, 1);
const NOT_SEEN: Ways = (0, 0, 0);

fn ways(fabric: &Fabric, host: &str) -> Ways {
    let counters = fabric.hosts[host].pipeline.counters();
    (
        counters.fast.get(),
        counters.general.get(),
        counters.misses.get(),
    )
}

/// Which ways a frame takes on h1 and h2, and what comes out.
fn send(fabric: &mut Fabric, port: &str, frame: &[u8]) -> ([Ways; 2], usize) {
    let before = ["h1", "h2"].map(|host| ways(fabric, host));
    let out = fabric.send(port, frame).len();
    let after = ["h1", "h2"].map(|host| ways(fabric, host));
    let less = |at: usize| {
        let (new, old) = (after[at], before[at]);
        (new.0 - old.0, new.1 - old.1, new.2 - old.2)
    };
    ([less(0), less(1)], out)
}

#[test]
fn what_is_known_takes_the_fast_lane_on_both_hosts() {
    let mut fabric = fabric(|_| {});
    type Datagram = fn(End, End, [u8; 6], (u16, u16), &[u8]) -> Vec<u8>;
    for datagram in [udp as Datagram, udp6] {
        for (to, name, far) in [
            (A2, "a2", true),
            (A3, "a3", false),
            (B1, "b1", false),
            (B2, "b2", true),
        ] {
            let same_subnet = matches!(name, "a2" | "a3");
            let (there, back) = if same_subnet {
                (to.mac, A1.mac)
            } else {
                (ROUTER, ROUTER)
            };
            let there = datagram(A1, to, there, (1000, 53), b"there");
            let back = datagram(to, A1, back, (53, 1000), b"back");
            let on = |ways| [ways, if far { ways } else { NOT_SEEN }];
            assert_eq!(send(&mut fabric, "a1", &there), (on(JUDGED), 1), "{name}");
            assert_eq!(send(&mut fabric, "a1", &there), (on(FAST), 1), "{name}");
            assert_eq!(send(&mut fabric, name, &back), (on(JUDGED), 1), "{name}");
            for (from, frame) in [("a1", &there), (name, &back)] {
                assert_eq!(send(&mut fabric, from, frame), (on(FAST), 1), "{name}");
            }
        }
    }
}

#[test]
fn a_connection_is_judged_at_its_ends_and_fast_between() {
    let mut fabric = fabric(|_| {});
    let there = |flags: &str, seq: u32, ack: u32, len: usize| {
        let frame = tcp(A1, A2, A2.mac, (1000, 80), flags, (seq, ack), len);
        ("a1", frame)
    };
    let back = |flags: &str, seq: u32, ack: u32, len: usize| {
        let frame = tcp(A2, A1, A1.mac, (80, 1000), flags, (seq, ack), len);
        ("a2", frame)
    };
    for ((port, frame), way) in [
        (there("S", 100, 0, 0), JUDGED),
        (back("SA", 500, 101, 0), JUDGED),
        // It establishes the connection, which the slow path knows how to do.
        (there("A", 101, 501, 0), GENERAL),
        // The first of its direction that needs no more than a decision.
        (back("A", 501, 101, 100), FAST),
        (there("A", 101, 601, 100), FAST),
        (there("FA", 201, 601, 0), JUDGED),
        (back("A", 601, 202, 100), FAST),
        (there("A", 202, 701, 0), FAST),
        (back("FA", 701, 202, 0), JUDGED),
        (there("A", 202, 702, 0), GENERAL),
    ] {
        let shown = format!("{port} {:02x?}", &frame[38..48]);
        assert_eq!(send(&mut fabric, port, &frame), ([way; 2], 1), "{shown}");
    }
}

/// The same frame with four bytes of IPv4 options that say nothing.
fn with_options(mut frame: Vec<u8>) -> Vec<u8> {
    frame.splice(34..34, [1; 4]);
    frame[14] = 0x46;
    let total = u16::from_be_bytes([frame[16], frame[17]]) + 4;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[24..26].fill(0);
    let words = frame[14..38].chunks(2);
    let sum: u32 = words.map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    frame
}

#[test]
fn options_take_the_general_way_and_what_opens_or_ends_is_judged_there_too() {
    let mut fabric = fabric(|_| {});
    let datagram = with_options(udp(A1, A2, A2.mac, (1000, 53), b"x"));
    assert_eq!(send(&mut fabric, "a1", &datagram), ([JUDGED; 2], 1));
    assert_eq!(send(&mut fabric, "a1", &datagram), ([GENERAL; 2], 1));
    let mut piece = udp(A1, A2, A2.mac, (1000, 53), &[0; 8]);
    piece[20] = 0x20;
    let piece = with_options(piece);
    assert_eq!(send(&mut fabric, "a1", &piece), ([JUDGED; 2], 1), "a piece");

    let segment = |flags: &str, seq: u32| {
        let frame = tcp(A1, A2, A2.mac, (1000, 80), flags, (seq, 501), 0);
        with_options(frame)
    };
    let answer = tcp(A2, A1, A1.mac, (80, 1000), "SA", (500, 101), 0);
    assert_eq!(
        send(&mut fabric, "a1", &segment("S", 100)),
        ([JUDGED; 2], 1)
    );
    assert_eq!(send(&mut fabric, "a2", &answer), ([JUDGED; 2], 1));
    assert_eq!(
        send(&mut fabric, "a1", &segment("S", 100)),
        ([JUDGED; 2], 1)
    );
    assert_eq!(
        send(&mut fabric, "a1", &segment("A", 101)),
        ([GENERAL; 2], 1)
    );
    assert_eq!(
        send(&mut fabric, "a1", &segment("A", 101)),
        ([GENERAL; 2], 1)
    );
    assert_eq!(
        send(&mut fabric, "a1", &segment("FA", 101)),
        ([JUDGED; 2], 1)
    );
    assert_eq!(
        send(&mut fabric, "a1", &segment("RA", 102)),
        ([JUDGED; 2], 1)
    );
}

#[test]
fn the_fast_lane_looks_at_macs_and_at_the_ttl_of_what_is_routed() {
    let mut fabric = fabric(|_| {});
    let routed = |ttl| udp_ttl(A1, B2, ROUTER, (1000, 53), b"x", ttl);
    assert_eq!(send(&mut fabric, "a1", &routed(64)), ([JUDGED; 2], 1));
    assert_eq!(send(&mut fabric, "a1", &routed(2)), ([FAST; 2], 1));
    assert_eq!(
        send(&mut fabric, "a1", &routed(1)),
        ([GENERAL, NOT_SEEN], 1),
        "time exceeded"
    );
    let bridged = udp_ttl(A1, A2, A2.mac, (1000, 53), b"x", 1);
    assert_eq!(send(&mut fabric, "a1", &bridged), ([JUDGED; 2], 1));
    assert_eq!(send(&mut fabric, "a1", &bridged), ([FAST; 2], 1));
    let elsewhere = udp(A1, A2, [2, 9, 9, 9, 9, 9], (1000, 53), b"x");
    assert_eq!(send(&mut fabric, "a1", &elsewhere), ([JUDGED, NOT_SEEN], 0));
}

#[test]
fn what_just_fits_the_underlay_is_fast_and_one_byte_more_is_answered() {
    let mut fabric = fabric(|_| {});
    // Outer IPv4, UDP, VXLAN and inner Ethernet: 50 bytes of 1500; IPv4 and UDP: 28.
    let fits = udp(A1, A2, A2.mac, (1000, 53), &[7; 1450 - 28]);
    let over = udp(A1, A2, A2.mac, (1000, 53), &[7; 1451 - 28]);
    assert_eq!(send(&mut fabric, "a1", &fits), ([JUDGED; 2], 1));
    assert_eq!(send(&mut fabric, "a1", &fits), ([FAST; 2], 1));
    let crossed = fabric.crossed.len();
    assert_eq!(
        send(&mut fabric, "a1", &over),
        ([GENERAL, NOT_SEEN], 1),
        "too big"
    );
    assert_eq!(fabric.crossed.len(), crossed);
}

#[test]
fn marks_that_stay_as_they_are_do_not_leave_the_fast_lane() {
    let mut fabric = fabric(|_| {});
    let class = |class: u8| {
        let mut frame = udp(A1, A2, A2.mac, (1000, 53), b"x");
        frame[15] = class;
        mend_ipv4(&mut frame, 14);
        frame
    };
    assert_eq!(send(&mut fabric, "a1", &class(0)), ([JUDGED; 2], 1));
    for mark in 0..4 {
        assert_eq!(send(&mut fabric, "a1", &class(0xb8 | mark)), ([FAST; 2], 1));
    }
    // Outer and inner marks, and the way of the far host.
    for (outer, inner, way) in [(0, 2, FAST), (3, 2, GENERAL), (3, 3, FAST), (0, 0, FAST)] {
        fabric.send("a1", &class(inner));
        let mut frame = fabric.crossed.pop().unwrap();
        frame[15] = outer;
        mend_ipv4(&mut frame, 14);
        let before = ways(&fabric, "h2");
        assert_eq!(fabric.send_from_underlay("h2", &frame).len(), 1);
        let after = ways(&fabric, "h2");
        let took = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
        assert_eq!(took, way, "{outer} outside, {inner} inside");
    }
}

/// Hands a host packets that begin so many bytes into their buffers; returns what it sends.
fn process(
    fabric: &mut Fabric,
    host: &str,
    source: Source,
    frames: &[(u16, &[u8])],
) -> Vec<(Destination, Vec<u8>)> {
    let now = fabric.now;
    let host = fabric.hosts.get_mut(host).unwrap();
    let mut io = MemoryIo::new(64, 4096);
    let packets = frames.iter();
    let mut packets = packets
        .map(|(room, frame)| io.memory.packet(usize::from(*room), frame).unwrap())
        .collect();
    host.pipeline.process(&mut io, source, &mut packets, now);
    let sent = std::mem::take(&mut io.sent).into_iter();
    sent.map(|(to, packet)| {
        let frame = packet.bytes(&io).to_vec();
        io.free(packet.frame);
        (to, frame)
    })
    .collect()
}

#[test]
fn the_fast_lane_needs_room_for_the_outer_header_and_no_more() {
    let mut fabric = fabric(|_| {});
    let frame = udp(A1, A2, A2.mac, (1000, 53), b"x");
    fabric.send("a1", &frame);
    let port = Source::Port(fabric.find_port("a1").unwrap().1);
    let snapshot = Arc::clone(fabric.hosts["h1"].pipeline.snapshot());
    let peers = snapshot.peers.iter().flatten();
    let tunnel = peers.flat_map(|peer| &peer.tunnels).next();
    let reach = tunnel.unwrap().template.reach() as u16;
    let mut sent = Vec::new();
    for (room, way) in [(reach, FAST), (reach - 1, GENERAL), (reach + 1, FAST)] {
        let before = ways(&fabric, "h1");
        let out = process(&mut fabric, "h1", port, &[(room, &frame)]);
        let after = ways(&fabric, "h1");
        let took = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
        assert_eq!(took, way, "{room} bytes ahead");
        sent.extend(out);
    }
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|other| *other == sent[0]));
}

#[test]
fn tunnels_that_take_turns_in_a_vector_are_told_apart() {
    let mut fabric = three_hosts();
    let from_a1 = udp(A1, A2, A2.mac, (1000, 53), b"from h1");
    let from_a4 = udp(A4, A2, A2.mac, (1000, 53), b"from h3");
    let mut crossed = Vec::new();
    for (port, frame) in [("a1", &from_a1), ("a4", &from_a4)] {
        assert_eq!(fabric.send(port, frame).len(), 1);
        crossed.push(fabric.crossed.pop().unwrap());
    }
    let before = ways(&fabric, "h2");
    let turns = [0, 1, 1, 0, 0, 1].map(|at: usize| (0, crossed[at].as_slice()));
    let out = process(&mut fabric, "h2", Source::Uplink(0), &turns);
    assert_eq!(out.len(), 6);
    let after = ways(&fabric, "h2");
    let took = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
    assert_eq!(took, (6, 0, 0));
}

#[test]
fn what_leaves_the_window_is_dropped_whichever_way_it_takes() {
    let mut fabric = fabric(|_| {});
    for (port, frame) in [
        ("a1", tcp(A1, A2, A2.mac, (1000, 80), "S", (100, 0), 0)),
        ("a2", tcp(A2, A1, A1.mac, (80, 1000), "SA", (500, 101), 0)),
        ("a1", tcp(A1, A2, A2.mac, (1000, 80), "A", (101, 501), 0)),
    ] {
        assert_eq!(fabric.send(port, &frame).len(), 1);
    }
    let far = tcp(A1, A2, A2.mac, (1000, 80), "A", (1_000_000_101, 501), 10);
    for frame in [far.clone(), with_options(far)] {
        assert_eq!(send(&mut fabric, "a1", &frame), ([NOT_SEEN; 2], 0));
    }
    assert_eq!(fabric.drops("h1", DropReason::TcpWindow), 2);
}

/// Another IPv4 length, with the header's checksum made good.
fn total(mut frame: Vec<u8>, more: i16) -> Vec<u8> {
    let total = u16::from_be_bytes([frame[16], frame[17]]);
    frame[16..18].copy_from_slice(&total.wrapping_add_signed(more).to_be_bytes());
    mend_ipv4(&mut frame, 14);
    frame
}

#[test]
fn a_known_flow_does_not_get_lies_past_the_quick_look() {
    let mut fabric = fabric(|_| {});
    let v4 = udp(A1, A2, A2.mac, (1000, 53), b"datagram");
    let v6 = udp6(A1, A2, A2.mac, (1000, 53), b"datagram");
    let segment = tcp(A1, A2, A2.mac, (1000, 80), "A", (101, 501), 10);
    for frame in [&v4, &v6, &segment] {
        assert_eq!(send(&mut fabric, "a1", frame), ([JUDGED; 2], 1));
        assert_eq!(send(&mut fabric, "a1", frame), ([FAST; 2], 1));
    }
    let with = |frame: &[u8], at: usize, bytes: &[u8]| {
        let mut frame = frame.to_vec();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    for (frame, reason, what) in [
        (
            total(v4.clone(), 1),
            DropReason::Ipv4Header,
            "IPv4 says one byte more",
        ),
        (
            total(v4.clone(), 20),
            DropReason::Ipv4Header,
            "IPv4 says more",
        ),
        (
            total(v4.clone(), -17),
            DropReason::Ipv4Header,
            "IPv4 says less than its header",
        ),
        (
            with(&v6, 18, &[0, 17]),
            DropReason::Ipv6Header,
            "IPv6 says one byte more",
        ),
        (with(&v6, 14, &[0x50]), DropReason::Ipv6Header, "version 5"),
        (
            with(&v4, 38, &[0, 7]),
            DropReason::TransportHeader,
            "UDP says 7 bytes",
        ),
        (
            with(&v4, 38, &[0, 17]),
            DropReason::TransportHeader,
            "UDP says one byte more",
        ),
        (
            with(&segment, 46, &[0x40]),
            DropReason::TransportHeader,
            "TCP says 16 bytes",
        ),
        (
            with(&segment, 46, &[0x80]),
            DropReason::TransportHeader,
            "TCP says two bytes more",
        ),
    ] {
        let before = fabric.drops("h1", reason);
        assert_eq!(
            send(&mut fabric, "a1", &frame),
            ([NOT_SEEN; 2], 0),
            "{what}"
        );
        assert_eq!(fabric.drops("h1", reason), before + 1, "{what}");
    }
}

#[test]
fn what_is_odd_and_right_is_fast_as_well() {
    let far = "fd00:1::ffff:a00:9";
    let mut fabric = fabric(|objects| objects.ports[1].addresses.push(far.into()));
    // The last 64 bits begin as those of an IPv4 address do; the first do not.
    let end = End {
        v6: far.parse::<std::net::Ipv6Addr>().unwrap().octets(),
        ..A2
    };
    let mut short = udp(A1, A2, A2.mac, (1000, 54), b"datagram");
    short[38..42].copy_from_slice(&[0, 12, 0, 0]);
    let mut stamped = tcp(A1, A2, A2.mac, (1000, 80), "A", (101, 501), 10);
    stamped.splice(54..54, [1; 12]);
    stamped[46] = 0x80;
    let sum = |frame: &[u8]| {
        let words = frame[26..].chunks(2);
        let word = |w: &[u8]| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0));
        let sum: u32 = words.map(word).sum::<u32>() + 6 + (frame.len() - 34) as u32;
        !(((sum & 0xffff) + (sum >> 16)) as u16)
    };
    stamped[50..52].fill(0);
    let right = sum(&stamped);
    stamped[50..52].copy_from_slice(&right.to_be_bytes());
    for (frame, what) in [
        (
            udp(A1, A2, A2.mac, (1000, 53), b""),
            "a datagram without payload",
        ),
        (short, "a datagram that ends before its packet"),
        (
            udp6(A1, end, A2.mac, (1000, 53), b"x"),
            "an address that ends like an IPv4 one",
        ),
        (
            udp6(end, A1, A1.mac, (53, 1000), b"x"),
            "from such an address",
        ),
        (total(stamped, 12), "TCP with options"),
    ] {
        let port = if frame[6..12] == A1.mac { "a1" } else { "a2" };
        assert_eq!(send(&mut fabric, port, &frame), ([JUDGED; 2], 1), "{what}");
        assert_eq!(send(&mut fabric, port, &frame), ([FAST; 2], 1), "{what}");
    }
}

/// From a1 to b2 by way of a3, which is on a1's host and passes on what is not its own.
#[test]
fn a_flow_that_crosses_a_host_twice_is_fast_both_times() {
    let mut fabric = fabric(|objects| {
        port(objects, "a3").unguarded = true;
        // Only a1's subnet leads there: a3 has one of its own.
        objects.subnets.push(v1::Subnet {
            id: "blue-c".into(),
            vpc: "blue".into(),
            cidrs: vec!["10.0.3.0/24".into()],
            ..v1::Subnet::default()
        });
        let appliance = port(objects, "a3");
        appliance.subnet = "blue-c".into();
        appliance.addresses = vec!["10.0.3.13".into()];
        let mut through = route("10.0.2.0/24");
        through.port = "a3".into();
        objects.route_tables[0].routes = vec![through];
    });
    let there = udp(A1, B2, ROUTER, (1000, 53), b"there");
    let mut passed_on = there.clone();
    passed_on[..6].copy_from_slice(&ROUTER);
    passed_on[6..12].copy_from_slice(&A3.mac);
    let twice = |fabric: &mut Fabric| {
        let ([to_appliance, _], _) = send(fabric, "a1", &there);
        let ([onward, far], out) = send(fabric, "a3", &passed_on);
        assert_eq!(out, 1, "{:?}", fabric.all_drops());
        [to_appliance, onward, far]
    };
    assert_eq!(twice(&mut fabric), [JUDGED; 3]);
    for _ in 0..3 {
        assert_eq!(twice(&mut fabric), [FAST; 3]);
    }
}
