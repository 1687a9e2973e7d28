//! Trunk ports: a VLAN on a port's device is a port of its own, in whatever VPC.

use dhcproto::v4::{DhcpOption, Message, MessageType};
use dhcproto::{Decodable, Decoder};
use weft_dataplane::packet::{DropReason, Segments};
use weft_dataplane::pipeline::counters::Traffic;
use weft_dataplane::pipeline::trace;
use weft_fabric::{Delivered, Fabric};
use weft_proto::v1::{Objects, RateLimit, RateLimits, Trunk};

use crate::dhcp;
use crate::frames::{A1, A2, A3, B1, End, arp, echo, read, udp, udp6};
use crate::segments::{connected, left};
use crate::topology::{ROUTER, change, fabric, port};

/// r1, which has the MAC and the addresses of a1 in another VPC, is VLAN 100 of a1's device.
const RED: u16 = 100;
/// b1, of the same VPC as a1, is VLAN 200.
const B: u16 = 200;
/// a3, of the same subnet as a1, is VLAN 4094.
const SAME: u16 = 4094;

fn on(parent: &str, vlan: u16) -> Option<Trunk> {
    Some(Trunk {
        parent: parent.into(),
        vlan: vlan.into(),
    })
}

fn trunk(more: impl FnOnce(&mut Objects)) -> Fabric {
    fabric(|objects| {
        port(objects, "r1").trunk = on("a1", RED);
        port(objects, "b1").trunk = on("a1", B);
        port(objects, "a3").trunk = on("a1", SAME);
        more(objects);
    })
}

/// The frame with a tag (IEEE 802.1Q §9.6).
fn tagged(mut frame: Vec<u8>, tci: u16) -> Vec<u8> {
    let [high, low] = tci.to_be_bytes();
    frame.splice(12..12, [0x81, 0, high, low]);
    frame
}

/// The VLAN of a frame and the frame without its tag; 0 for none.
fn untagged(frame: &[u8]) -> (u16, Vec<u8>) {
    let mut frame = frame.to_vec();
    if frame[12..14] != [0x81, 0] {
        return (0, frame);
    }
    let tag: Vec<u8> = frame.drain(12..16).collect();
    (u16::from_be_bytes([tag[2], tag[3]]), frame)
}

/// The port that each frame came out at, and its VLAN there.
fn places(out: &[Delivered]) -> Vec<(&str, u16)> {
    let place = |it: &'_ Delivered| untagged(&it.frame).0;
    let mut places: Vec<_> = out.iter().map(|it| (&*it.port, place(it))).collect();
    places.sort_unstable();
    places
}

fn traffic<'f>(fabric: &'f Fabric, id: &str) -> &'f Traffic {
    let (host, index) = fabric.find_port(id).unwrap();
    fabric.hosts[&host].pipeline.counters().port(index)
}

fn drops(fabric: &Fabric, id: &str, reason: DropReason) -> u64 {
    traffic(fabric, id).drops(reason)
}

#[test]
fn a_tag_says_whose_a_frame_is_and_goes_and_comes_with_it() {
    let mut fabric = trunk(|_| {});
    type Datagram = fn(End, End, [u8; 6], (u16, u16), &[u8]) -> Vec<u8>;
    for make in [udp as Datagram, udp6] {
        // The first is a miss, the others are hits. The priority in the tag is nobody's business.
        for priority in [0, 0, 0xa000, 0x1000] {
            for (vlan, out_at, back_at) in [(0, "a2", 0), (RED, "r2", RED)] {
                let frame = make(A1, A2, A2.mac, (7, 8), b"x");
                let sent = match vlan {
                    0 => frame.clone(),
                    vlan => tagged(frame.clone(), priority | vlan),
                };
                let out = fabric.send("a1", &sent);
                assert_eq!(places(&out), [(out_at, 0)]);
                assert_eq!(out[0].frame, frame);
                let answer = make(A2, A1, A1.mac, (8, 7), b"y");
                let out = fabric.send(out_at, &answer);
                assert_eq!(places(&out), [("a1", back_at)]);
                assert_eq!(untagged(&out[0].frame).1, answer);
            }
        }
    }
    assert_eq!(fabric.all_drops().len(), 0, "{:?}", fabric.all_drops());
    for (id, count) in [("a1", 8), ("r1", 8)] {
        assert_eq!(traffic(&fabric, id).rx_packets.get(), count, "{id}");
    }
    let bytes = udp(A1, A2, A2.mac, (7, 8), b"x").len() + udp6(A1, A2, A2.mac, (7, 8), b"x").len();
    let counted = traffic(&fabric, "r1").rx_bytes.get();
    assert_eq!(counted, 4 * bytes as u64, "without tags");
    assert!(fabric.hosts.values().all(|host| host.unaccounted() == 0));
}

#[test]
fn what_is_of_one_vlan_is_answered_there_and_nowhere_else() {
    let mut fabric = trunk(|_| {});
    for (vlan, from, gateway) in [(RED, A1, [10, 0, 1, 1]), (B, B1, [10, 0, 2, 1])] {
        let asked = arp(from.mac, 1, (from.mac, from.v4), ([0; 6], gateway));
        let out = fabric.send("a1", &tagged(asked, vlan));
        assert_eq!(places(&out), [("a1", vlan)]);
        let end = End {
            v4: gateway,
            ..from
        };
        let out = fabric.send("a1", &tagged(echo(from, end, ROUTER, 1, b"ping"), vlan));
        assert_eq!(places(&out), [("a1", vlan)]);
        assert_eq!(read(&untagged(&out[0].frame).1).payload, b"ping");
    }
    // As if b1 were in a1's VLAN, or a1 in b1's.
    let frame = udp(B1, A2, ROUTER, (7, 8), b"x");
    assert_eq!(fabric.send("a1", &frame), []);
    assert_eq!(drops(&fabric, "a1", DropReason::SpoofedBoth), 1);
    let frame = udp(A1, A2, A2.mac, (7, 8), b"x");
    assert_eq!(fabric.send("a1", &tagged(frame, B)), []);
    assert_eq!(drops(&fabric, "b1", DropReason::SpoofedBoth), 1);
}

#[test]
fn a_tag_that_no_subport_has_is_dropped_at_the_parent() {
    let mut fabric = trunk(|_| {});
    let frame = udp(A1, A2, A2.mac, (7, 8), b"x");
    for vlan in [1, RED + 1, 0x0fff] {
        assert_eq!(fabric.send("a1", &tagged(frame.clone(), vlan)), []);
    }
    assert_eq!(drops(&fabric, "a1", DropReason::UnknownVlan), 3);
    assert_eq!(traffic(&fabric, "a1").rx_packets.get(), 3);
    // A priority alone is the parent's, and so is what is no tag of a customer's VLAN.
    let out = fabric.send("a1", &tagged(frame.clone(), 0xa000));
    assert_eq!(places(&out), [("a2", 0)]);
    let mut service = tagged(frame.clone(), RED);
    service[12..14].copy_from_slice(&[0x88, 0xa8]);
    assert_eq!(fabric.send("a1", &service), []);
    assert_eq!(drops(&fabric, "a1", DropReason::EtherType), 1);
    // Of two tags the first one is.
    let twice = tagged(tagged(frame.clone(), 7), RED);
    assert_eq!(fabric.send("a1", &twice), []);
    assert_eq!(drops(&fabric, "r1", DropReason::EtherType), 1);
    // A port without subports has no VLANs.
    assert_eq!(fabric.send("a2", &tagged(frame.clone(), RED)), []);
    assert_eq!(drops(&fabric, "a2", DropReason::EtherType), 1);
    // Whatever is cut short.
    let short = tagged(frame, RED);
    for len in 0..20 {
        assert_eq!(fabric.send("a1", &short[..len]), []);
    }
    assert_eq!(fabric.missing_frames(), 0);
    assert!(fabric.hosts.values().all(|host| host.unaccounted() == 0));
}

#[test]
fn a_subport_is_unknown_when_its_vlan_has_changed_or_it_is_gone() {
    let mut fabric = trunk(|_| {});
    let frame = udp(A1, A2, A2.mac, (7, 8), b"x");
    let answer = udp(A2, A1, A1.mac, (8, 7), b"y");
    let passes = |fabric: &mut Fabric, vlan, expected: &[(&str, u16)]| {
        for _ in 0..2 {
            let out = fabric.send("a1", &tagged(frame.clone(), vlan));
            let there = if expected.is_empty() {
                &[][..]
            } else {
                &[("r2", 0)]
            };
            assert_eq!(places(&out), there);
            let out = fabric.send("r2", &answer);
            assert_eq!(places(&out), expected);
        }
    };
    passes(&mut fabric, RED, &[("a1", RED)]);
    change(&mut fabric, |o| port(o, "r1").trunk = on("a1", 7));
    assert_eq!(fabric.send("a1", &tagged(frame.clone(), RED)), []);
    passes(&mut fabric, 7, &[("a1", 7)]);
    change(&mut fabric, |o| o.ports.retain(|port| port.id != "r1"));
    passes(&mut fabric, 7, &[]);
    assert_eq!(drops(&fabric, "a1", DropReason::UnknownVlan), 3);
    // Another port may have the VLAN then.
    change(&mut fabric, |o| port(o, "b1").trunk = on("a1", 7));
    let from_b = udp(B1, A2, ROUTER, (7, 8), b"x");
    assert_eq!(places(&fabric.send("a1", &tagged(from_b, 7))), [("a2", 0)]);
}

#[test]
fn a_broadcast_is_a_frame_for_each_port_of_the_device() {
    let mut fabric = trunk(|_| {});
    let everybody = End {
        mac: [0xff; 6],
        v4: [255; 4],
        ..A1
    };
    let out = fabric.send("a2", &udp(A2, everybody, [0xff; 6], (9, 9), b"all"));
    assert_eq!(places(&out), [("a1", 0), ("a1", SAME)]);
    // From one port of the device to another, but not back to itself.
    let out = fabric.send("a1", &udp(A1, everybody, [0xff; 6], (9, 9), b"all"));
    assert_eq!(places(&out), [("a1", SAME), ("a2", 0)]);
    let frame = udp(A3, everybody, [0xff; 6], (9, 9), b"all");
    let out = fabric.send("a1", &tagged(frame, SAME));
    assert_eq!(places(&out), [("a1", 0), ("a2", 0)]);
    for _ in 0..3 {
        let out = fabric.send("a1", &udp(A1, B1, ROUTER, (7, 8), b"x"));
        assert_eq!(places(&out), [("a1", B)], "by way of the gateway");
    }
}

#[test]
fn the_frames_of_a_vector_take_the_fast_path_in_their_order() {
    let mut fabric = trunk(|_| {});
    let frame = |vlan: u16, n: u8| {
        let frame = udp(A1, A2, A2.mac, (7, 8), &[n]);
        if vlan == 0 {
            frame
        } else {
            tagged(frame, vlan)
        }
    };
    // So that both know.
    for vlan in [0, RED] {
        fabric.send("a1", &frame(vlan, 0));
    }
    let fast = |fabric: &Fabric| fabric.hosts["h1"].pipeline.counters().fast.get();
    let before = fast(&fabric);
    let vector: Vec<Vec<u8>> = (0..60)
        .map(|n| frame([0, RED, RED, 9][usize::from(n) % 4], n))
        .collect();
    let out = fabric.send_vector("a1", vector.iter().map(Vec::as_slice));
    assert_eq!(fast(&fabric) - before, 45);
    for (at, rests) in [("a2", &[0][..]), ("r2", &[1, 2])] {
        let of_port = out.iter().filter(|it| it.port == at);
        let seen: Vec<u8> = of_port.map(|it| read(&it.frame).payload[0]).collect();
        let wanted: Vec<u8> = (0..60).filter(|n| rests.contains(&(n % 4))).collect();
        assert_eq!(seen, wanted);
    }
    assert_eq!(drops(&fabric, "a1", DropReason::UnknownVlan), 15);
}

#[test]
fn what_a_subport_may_send_is_its_own_limit() {
    let limit = Some(RateLimits {
        egress: Some(RateLimit {
            packets_per_second: 10,
            burst_packets: 2,
            ..RateLimit::default()
        }),
        ..RateLimits::default()
    });
    let mut fabric = trunk(|o| port(o, "r1").limits = limit);
    let frame = udp(A1, A2, A2.mac, (7, 8), b"x");
    for n in 0..5 {
        let out = fabric.send("a1", &frame);
        assert_eq!(places(&out), [("a2", 0)]);
        let out = fabric.send("a1", &tagged(frame.clone(), RED));
        assert_eq!(out.len(), usize::from(n < 2));
    }
    let reason = DropReason::RateLimitEgressPackets;
    assert_eq!(drops(&fabric, "r1", reason), 3);
    assert_eq!(drops(&fabric, "a1", reason), 0);
}

#[test]
fn a_segment_goes_whole_to_a_subport_and_comes_whole_from_one() {
    let mut fabric = fabric(|o| port(o, "b1").trunk = on("a3", B));
    // b1 answers by its parent's device.
    change(&mut fabric, |o| port(o, "b1").trunk = None);
    let frame = connected(&mut fabric, ("b1", B1, ROUTER), 30_000);
    change(&mut fabric, |o| port(o, "b1").trunk = on("a3", B));
    let out = fabric.send_segment("a1", &frame, left(Segments::Tcp4, 1400));
    assert_eq!(places(&out), [("a3", B)]);
    assert_eq!(out[0].offload, left(Segments::Tcp4, 1400));
    assert_eq!(out[0].frame[58..], frame[54..]);
    // The sender becomes a subport, whose kernel leaves a tagged segment to be split.
    change(&mut fabric, |o| {
        port(o, "b1").trunk = None;
        port(o, "a1").trunk = on("a3", 5);
    });
    let mut more = frame.clone();
    let next = 1001u32 + 30_000;
    more[38..42].copy_from_slice(&next.to_be_bytes());
    let out = fabric.send_segment("a3", &tagged(more, 5), left(Segments::Tcp4, 1400));
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    assert_eq!(out[0].port, "b1");
    assert_eq!(out[0].offload, left(Segments::Tcp4, 1400));
    assert_eq!(out[0].frame[54..], frame[54..]);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn a_subport_gets_its_address_by_dhcp() {
    let mut fabric = trunk(|_| {});
    for (vlan, end) in [(RED, A1), (B, B1), (SAME, A3)] {
        let discover = dhcp::message(end, MessageType::Discover, &[]);
        let frame = tagged(dhcp::broadcast(end, &discover), vlan);
        let out = fabric.send("a1", &frame);
        assert_eq!(places(&out), [("a1", vlan)]);
        let seen = read(&untagged(&out[0].frame).1);
        let message = Message::decode(&mut Decoder::new(&seen.payload)).unwrap();
        assert_eq!(message.yiaddr().octets(), end.v4);
        let kind = message.opts().iter().find_map(|(_, option)| match option {
            DhcpOption::MessageType(kind) => Some(*kind),
            _ => None,
        });
        assert_eq!(kind, Some(MessageType::Offer));
    }
}

#[test]
fn a_trace_names_the_subport_and_its_vlan() {
    let fabric = trunk(|_| {});
    let host = &fabric.hosts["h1"];
    let index = |id: &str| fabric.port_index("h1", id).unwrap();
    let text = |from: &str, frame: &[u8]| {
        let trace = trace::trace(host.view(), index(from), frame);
        let snapshot = host.pipeline.snapshot();
        let steps: Vec<String> = trace.steps.iter().map(|it| it.1.clone()).collect();
        (steps.join("\n"), trace.outcome.text(snapshot))
    };
    let frame = udp(A1, A2, A2.mac, (7, 8), b"x");
    let (steps, outcome) = text("a1", &tagged(frame.clone(), RED));
    assert!(steps.contains("VLAN 100 is port r1"), "{steps}");
    assert_eq!(outcome, "host h2");
    assert!(text("r1", &frame).0.starts_with("r1 in generation"));
    let (_, outcome) = text("a1", &tagged(frame, 9));
    assert!(outcome.starts_with("drop unknown_vlan"), "{outcome}");
    let (_, outcome) = text("a1", &udp(A1, B1, ROUTER, (7, 8), b"x"));
    assert_eq!(outcome, "port b1 (VLAN 200 of a1)");
}

#[test]
fn a_device_takes_on_its_rings_what_the_least_of_its_ports_may_send() {
    for (subnet, is_less) in [("none", false), ("blue-b", true), ("blue-a", true)] {
        let fabric = trunk(|o| {
            let subnets = o.subnets.iter_mut();
            let changed = subnets.filter(|it| it.id == subnet);
            changed.for_each(|it| it.mtu = 1300);
        });
        let index = fabric.port_index("h1", "a1").unwrap();
        let snapshot = fabric.hosts["h1"].pipeline.snapshot();
        let mtu = snapshot.mtus()(index);
        assert_eq!(mtu == 1300, is_less, "{subnet}: {mtu}");
        assert!(mtu >= 1300, "{subnet}: {mtu}");
    }
}
