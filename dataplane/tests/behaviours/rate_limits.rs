//! Per-port rate limits: rate and burst by a clock that the test moves, the direction and the kind named, every packet accounted for.

use weft_dataplane::packet::DropReason;
use weft_fabric::Fabric;
use weft_proto::v1::{RateLimit, RateLimits};

use crate::frames::{A1, A2, A3, arp, echo, udp};
use crate::topology::{ROUTER, change, fabric, port};

fn packets(packets_per_second: u64, burst_packets: u64) -> Option<RateLimit> {
    Some(RateLimit {
        packets_per_second,
        burst_packets,
        ..RateLimit::default()
    })
}

fn bits(bits_per_second: u64, burst_bits: u64) -> Option<RateLimit> {
    Some(RateLimit {
        bits_per_second,
        burst_bits,
        ..RateLimit::default()
    })
}

fn limited(id: &str, egress: Option<RateLimit>, ingress: Option<RateLimit>) -> Fabric {
    fabric(|objects| port(objects, id).limits = Some(RateLimits { egress, ingress }))
}

/// How many of these frames come out somewhere.
fn pass(fabric: &mut Fabric, from: &str, frame: &[u8], count: usize) -> usize {
    (0..count).map(|_| fabric.send(from, frame).len()).sum()
}

#[test]
fn what_a_port_sends_is_held_to_rate_and_burst() {
    let mut fabric = limited("a1", packets(100, 20), None);
    let near = udp(A1, A3, A3.mac, (1, 2), b"near");
    let far = udp(A1, A2, A2.mac, (1, 2), b"far");
    assert_eq!(pass(&mut fabric, "a1", &near, 15), 15);
    assert_eq!(pass(&mut fabric, "a1", &far, 15), 5, "the burst");
    for _ in 0..10 {
        fabric.now += 50;
        assert_eq!(pass(&mut fabric, "a1", &far, 15), 5, "the rate");
    }
    let dropped = fabric.drops("h1", DropReason::RateLimitEgressPackets);
    assert_eq!(dropped, 10 + 10 * 10);
    assert_eq!(fabric.all_drops().values().sum::<u64>(), dropped);
    // Who is not limited, and what comes to who is, passes.
    let back = udp(A3, A1, A1.mac, (2, 1), b"back");
    assert_eq!(pass(&mut fabric, "a3", &back, 100), 100);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn what_a_port_is_sent_is_held_to_rate_and_burst_whoever_sends_it() {
    let frame = |size: usize| udp(A1, A3, A3.mac, (1, 2), &vec![0; size]);
    // 42 bytes of headers: 1000 bytes a frame, 100 frames a second.
    let mut fabric = limited("a3", None, bits(800_000, 80_000));
    let far = udp(A2, A3, A3.mac, (1, 2), &[0; 958]);
    assert_eq!(pass(&mut fabric, "a1", &frame(958), 6), 6);
    assert_eq!(pass(&mut fabric, "a2", &far, 6), 4);
    fabric.now += 50;
    assert_eq!(pass(&mut fabric, "a2", &far, 6), 5);
    let reason = DropReason::RateLimitIngressBits;
    assert_eq!(fabric.drops("h1", reason), 3);
    // At the port whose limit it is.
    let (_, index) = fabric.find_port("a3").unwrap();
    let counters = fabric.hosts["h1"].pipeline.counters();
    assert_eq!(counters.port(index).drops(reason), 3);
    let out = udp(A3, A1, A1.mac, (2, 1), b"out");
    assert_eq!(pass(&mut fabric, "a3", &out, 100), 100);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn answers_of_the_gateway_and_copies_count_too() {
    let mut gateway = A1;
    gateway.v4 = [10, 0, 1, 1];
    let mut fabric = limited("a1", None, packets(100, 3));
    let ask = arp(A1.mac, 1, (A1.mac, A1.v4), ([0; 6], gateway.v4));
    let ping = echo(A1, gateway, ROUTER, 1, b"?");
    assert_eq!(pass(&mut fabric, "a1", &ask, 2), 2);
    assert_eq!(pass(&mut fabric, "a1", &ping, 2), 1);
    let mut all = A1;
    all.v4 = [255; 4];
    let broadcast = udp(A3, all, [0xff; 6], (1, 2), b"all");
    let out = fabric.send("a3", &broadcast);
    assert!(out.iter().all(|out| out.port != "a1"), "{out:?}");
    let dropped = fabric.drops("h1", DropReason::RateLimitIngressPackets);
    assert_eq!(dropped, 2);
}

#[test]
fn both_kinds_hold_together_and_each_drop_names_its_own() {
    let limit = RateLimit {
        bits_per_second: 8_000_000,
        burst_bits: 80_000,
        packets_per_second: 100,
        burst_packets: 12,
    };
    let mut fabric = limited("a1", Some(limit), None);
    // Ten thousand bytes at once: nine large frames, and one more on credit.
    let large = udp(A1, A3, A3.mac, (1, 2), &[0; 1000]);
    assert_eq!(pass(&mut fabric, "a1", &large, 20), 10);
    assert_eq!(fabric.drops("h1", DropReason::RateLimitEgressBits), 10);
    fabric.now += 10;
    let small = udp(A1, A3, A3.mac, (1, 2), b"small");
    assert_eq!(pass(&mut fabric, "a1", &small, 20), 3);
    assert_eq!(fabric.drops("h1", DropReason::RateLimitEgressPackets), 17);
}

#[test]
fn other_changes_leave_the_buckets_as_they_are() {
    let mut fabric = limited("a1", packets(100, 20), None);
    let near = udp(A1, A3, A3.mac, (1, 2), b"near");
    assert_eq!(pass(&mut fabric, "a1", &near, 30), 20);
    change(&mut fabric, |objects| {
        objects.security_groups[0]
            .rules
            .push(crate::topology::ingress("udp", None));
    });
    assert_eq!(pass(&mut fabric, "a1", &near, 30), 0, "a rule");
    change(&mut fabric, |objects| {
        port(objects, "a2").addresses.pop();
    });
    assert_eq!(pass(&mut fabric, "a1", &near, 30), 0, "another port");
    change(&mut fabric, |objects| {
        port(objects, "a1").limits.as_mut().unwrap().egress = packets(1000, 25);
    });
    assert_eq!(pass(&mut fabric, "a1", &near, 30), 25, "its own limit");
    change(&mut fabric, |objects| port(objects, "a1").limits = None);
    assert_eq!(pass(&mut fabric, "a1", &near, 30), 30);
}
