//! The overlay: behaviours 8 to 13 and 28.

use std::collections::HashSet;

use weft_dataplane::packet::DropReason;
use weft_proto::v1::{AclRule, NetworkAcl};

use crate::frames::{A1, A2, A3, B1, B2, read, udp, udp6};
use crate::topology::{ROUTER, change, fabric};

#[test]
fn b008_within_a_subnet_the_inner_frame_arrives_unchanged() {
    let mut fabric = fabric(|_| {});
    for frame in [
        udp(A1, A2, A2.mac, (1000, 2000), b"hello"),
        udp6(A1, A2, A2.mac, (1000, 2000), b"hello"),
    ] {
        let out = fabric.send("a1", &frame);
        assert_eq!(out.len(), 1);
        assert_eq!((out[0].port.as_str(), &out[0].frame), ("a2", &frame));
        let outer = fabric.crossed.last().unwrap();
        assert_eq!(outer[50..], frame[..], "VXLAN over IPv4");
        assert_eq!(outer[36..38], 4789u16.to_be_bytes());
        assert_eq!(outer[42..50], [8, 0, 0, 0, 0, 0, 100, 0]);
        read(outer);
    }
}

#[test]
fn b008_across_subnets_the_macs_are_rewritten_and_the_ttl_counts() {
    let mut fabric = fabric(|_| {});
    for (to, name) in [(B2, "b2"), (B1, "b1")] {
        for _ in 0..2 {
            let out = fabric.send("a1", &udp(A1, to, ROUTER, (1, 2), b"x"));
            assert_eq!(out[0].port, name);
            let seen = read(&out[0].frame);
            assert_eq!((seen.src, seen.dst, seen.ttl), (ROUTER, to.mac, 63));
        }
        let back = fabric.send(name, &udp(to, A1, ROUTER, (2, 1), b"y"));
        assert_eq!(
            (back[0].port.as_str(), read(&back[0].frame).payload),
            ("a1", b"y".to_vec())
        );
        let out = fabric.send("a1", &udp6(A1, to, ROUTER, (1, 2), b"x"));
        assert_eq!(read(&out[0].frame).ttl, 63);
    }
}

#[test]
fn b008_the_outer_source_port_is_constant_within_a_flow_and_spreads_across_flows() {
    let mut fabric = fabric(|_| {});
    let mut ports = HashSet::new();
    for flow in 0..200 {
        let mut of_flow = HashSet::new();
        for _ in 0..3 {
            fabric.send("a1", &udp(A1, A2, A2.mac, (1000 + flow, 53), b"x"));
            let outer = fabric.crossed.last().unwrap();
            let port = u16::from_be_bytes([outer[34], outer[35]]);
            assert!(port >= 49152);
            of_flow.insert(port);
        }
        assert_eq!(of_flow.len(), 1);
        ports.extend(of_flow);
    }
    assert!(ports.len() > 180, "{} of 200", ports.len());
}

fn outer_of(fabric: &mut weft_fabric::Fabric) -> Vec<u8> {
    fabric.send("a1", &udp(A1, A2, A2.mac, (1000, 2000), b"hello"));
    fabric.crossed.pop().unwrap()
}

#[test]
fn b009_what_comes_from_strangers_or_lies_is_dropped_by_name() {
    let mut fabric = fabric(|_| {});
    let good = outer_of(&mut fabric);
    assert_eq!(fabric.send_from_underlay("h2", &good).len(), 1);
    // Each change goes into the outer source, the VNI, the inner MACs or addresses; checksums of headers are made good again.
    type Damage = fn(&mut Vec<u8>);
    let cases: [(&str, Damage, DropReason); 6] = [
        ("unknown VTEP", |f| f[29] = 9, DropReason::UnknownVtep),
        ("unknown VNI", |f| f[48] = 99, DropReason::UnknownVni),
        (
            "not here",
            |f| f[50..56].copy_from_slice(&[2, 0, 0, 0, 1, 1]),
            DropReason::NotHere,
        ),
        (
            "source of a port here",
            |f| f[76..80].copy_from_slice(&[10, 0, 1, 12]),
            DropReason::Martian,
        ),
        (
            "source MAC of a port here",
            |f| f[56..62].copy_from_slice(&[2, 0, 0, 0, 2, 2]),
            DropReason::SpoofedInner,
        ),
        ("I flag missing", |f| f[42] = 0, DropReason::VxlanFlags),
    ];
    for (name, damage, reason) in cases {
        let mut frame = good.clone();
        damage(&mut frame);
        mend_ipv4(&mut frame, 14);
        mend_ipv4(&mut frame, 64);
        assert!(fabric.send_from_underlay("h2", &frame).is_empty(), "{name}");
        assert_eq!(
            fabric.drops("h2", reason),
            1,
            "{name}: {:?}",
            fabric.all_drops()
        );
    }
    let mut lie = good.clone();
    lie[76..80].copy_from_slice(&B2.v4);
    mend_ipv4(&mut lie, 64);
    assert!(fabric.send_from_underlay("h2", &lie).is_empty());
    assert_eq!(
        fabric.drops("h2", DropReason::SpoofedInner),
        2,
        "an address of a port that is here"
    );
    assert_eq!(fabric.missing_frames(), 0);
}

pub fn mend_ipv4(frame: &mut [u8], at: usize) {
    frame[at + 10..at + 12].fill(0);
    let sum: u32 = frame[at..at + 20]
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    frame[at + 10..at + 12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
}

#[test]
fn b010_every_family_in_every_family_over_both_encapsulations() {
    for (vteps1, vteps2) in [
        ("192.0.2.1", "192.0.2.2"),
        ("2001:db8:ffff::1", "2001:db8:ffff::2"),
    ] {
        for encapsulation in ["vxlan", "gre"] {
            let mut fabric = fabric(|objects| {
                objects.hosts[0].vteps = vec![vteps1.into()];
                objects.hosts[1].vteps = vec![vteps2.into()];
                objects.hosts[1].encapsulation = encapsulation.into();
            });
            for (frame, back) in [
                (
                    udp(A1, A2, A2.mac, (1, 2), b"x"),
                    udp(A2, A1, A1.mac, (2, 1), b"y"),
                ),
                (
                    udp6(A1, A2, A2.mac, (1, 2), b"x"),
                    udp6(A2, A1, A1.mac, (2, 1), b"y"),
                ),
            ] {
                let out = fabric.send("a1", &frame);
                assert_eq!(
                    out.first().map(|d| (d.port.as_str(), &d.frame)),
                    Some(("a2", &frame)),
                    "{vteps1} {encapsulation}"
                );
                let outer = fabric.crossed.last().unwrap();
                let (ip, expected) = if vteps1.contains(':') {
                    (40, 0x86dd)
                } else {
                    (20, 0x0800)
                };
                assert_eq!(u16::from_be_bytes([outer[12], outer[13]]), expected);
                assert_eq!(
                    outer.len() - frame.len(),
                    14 + ip + if encapsulation == "gre" { 8 } else { 16 }
                );
                // The other host is sent what it wants: a mixed fabric works.
                let out = fabric.send("a2", &back);
                assert_eq!(
                    out.first().map(|d| (d.port.as_str(), &d.frame)),
                    Some(("a1", &back))
                );
                assert_eq!(
                    fabric.crossed.last().unwrap().len() - back.len(),
                    14 + ip + 16
                );
            }
        }
    }
}

#[test]
fn b011_another_vpc_with_the_same_addresses_never_sees_it() {
    let mut fabric = fabric(|_| {});
    for frame in [
        udp(A1, A2, A2.mac, (1, 2), b"x"),
        udp6(A1, A2, A2.mac, (1, 2), b"x"),
    ] {
        assert_eq!(fabric.send("a1", &frame)[0].port, "a2");
        assert_eq!(
            fabric.send("r1", &frame)[0].port,
            "r2",
            "same bytes, other tenant"
        );
    }
}

#[test]
fn b011_no_route_and_blackhole_are_named() {
    let mut fabric = fabric(|objects| {
        objects.route_tables[0].routes = vec![weft_proto::v1::Route {
            blackhole: true,
            ..crate::topology::route("198.51.100.0/24")
        }];
    });
    let to = |v4| crate::frames::End { v4, ..B1 };
    fabric.send("a1", &udp(A1, to([203, 0, 113, 1]), ROUTER, (1, 2), b"x"));
    fabric.send("a1", &udp(A1, to([198, 51, 100, 1]), ROUTER, (1, 2), b"x"));
    fabric.send("a1", &udp(A1, to([10, 0, 2, 77]), ROUTER, (1, 2), b"x"));
    fabric.send("a1", &udp(A1, A2, [2, 0, 0, 0, 9, 9], (1, 2), b"x"));
    for reason in [
        DropReason::NoRoute,
        DropReason::Blackhole,
        DropReason::NoPort,
        DropReason::UnknownMac,
    ] {
        assert_eq!(fabric.drops("h1", reason), 1, "{}", reason.name());
    }
    assert_eq!(fabric.hosts["h1"].shared.sessions.statistics().live, 0);
}

#[test]
fn b012_gre_with_checksum_and_sequence_is_parsed_and_other_versions_dropped() {
    let mut fabric = fabric(|objects| objects.hosts[1].encapsulation = "gre".into());
    let good = outer_of(&mut fabric);
    let (head, inner) = good.split_at(42);
    let build = |flags: u16, extra_before_key: &[u8], after_key: &[u8]| {
        let mut frame = head[..34].to_vec();
        frame.extend_from_slice(&flags.to_be_bytes());
        frame.extend_from_slice(&0x6558u16.to_be_bytes());
        frame.extend_from_slice(extra_before_key);
        frame.extend_from_slice(&100u32.to_be_bytes());
        frame.extend_from_slice(after_key);
        frame.extend_from_slice(inner);
        let len = (frame.len() - 14) as u16;
        frame[16..18].copy_from_slice(&len.to_be_bytes());
        mend_ipv4(&mut frame, 14);
        frame
    };
    assert_eq!(
        fabric
            .send_from_underlay("h2", &build(0x2000, &[], &[]))
            .len(),
        1
    );
    assert_eq!(
        fabric
            .send_from_underlay("h2", &build(0x3000, &[], &[0, 0, 0, 7]))
            .len(),
        1,
        "sequence number"
    );
    let mut summed = build(0xb000, &[0; 4], &[0, 0, 0, 8]);
    let sum: u32 = summed[34..]
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    summed[38..40].copy_from_slice(&(!(((sum & 0xffff) + (sum >> 16)) as u16)).to_be_bytes());
    assert_eq!(
        fabric.send_from_underlay("h2", &summed).len(),
        1,
        "checksum and sequence number"
    );
    summed[60] ^= 1;
    assert!(fabric.send_from_underlay("h2", &summed).is_empty());
    assert_eq!(fabric.drops("h2", DropReason::OuterChecksum), 1);
    assert!(
        fabric
            .send_from_underlay("h2", &build(0x2001, &[], &[]))
            .is_empty(),
        "version 1"
    );
    assert_eq!(fabric.drops("h2", DropReason::GreVersion), 1);
    // Routing, strict source route, the first bit of the recursion count; the bits behind mean nothing (RFC 2784 2.1, 2.2).
    for (flags, passes) in [(0x6000, 0), (0x2800, 0), (0x2400, 0), (0x23f8, 1)] {
        let out = fabric.send_from_underlay("h2", &build(flags, &[], &[]));
        assert_eq!(out.len(), passes, "{flags:#x}");
    }
    assert_eq!(fabric.drops("h2", DropReason::GreVersion), 4);
    let mut keyless = build(0x0000, &[], &[]);
    keyless.drain(38..42);
    let len = (keyless.len() - 14) as u16;
    keyless[16..18].copy_from_slice(&len.to_be_bytes());
    mend_ipv4(&mut keyless, 14);
    assert!(fabric.send_from_underlay("h2", &keyless).is_empty());
    assert_eq!(fabric.drops("h2", DropReason::GreNoKey), 1);
}

#[test]
fn b012_vxlan_passes_with_a_right_checksum_and_not_with_a_wrong_one() {
    let mut fabric = fabric(|_| {});
    let good = outer_of(&mut fabric);
    let mut summed = good.clone();
    let udp_len = summed.len() - 34;
    let mut sum: u32 = summed[34..]
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)))
        .sum();
    sum += summed[26..34]
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]))
        .sum::<u32>()
        + 17
        + udp_len as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    summed[40..42].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    assert_eq!(fabric.send_from_underlay("h2", &summed).len(), 1);
    summed[40] ^= 0x10;
    assert!(fabric.send_from_underlay("h2", &summed).is_empty());
    assert_eq!(fabric.drops("h2", DropReason::OuterChecksum), 1);
}

#[test]
fn b013_with_two_vteps_flows_spread_and_only_those_of_a_dead_one_move() {
    let mut fabric =
        fabric(|objects| objects.hosts[1].vteps = vec!["192.0.2.2".into(), "192.0.2.3".into()]);
    let ways = |fabric: &mut weft_fabric::Fabric| -> Vec<u8> {
        (0..200u16)
            .map(|flow| {
                fabric.send("a1", &udp(A1, A2, A2.mac, (1000 + flow, 53), b"x"));
                fabric.crossed.last().unwrap()[33]
            })
            .collect()
    };
    let before = ways(&mut fabric);
    let on_second = before.iter().filter(|way| **way == 3).count();
    assert!((60..140).contains(&on_second), "{on_second} of 200");
    fabric.down.push("192.0.2.2".parse().unwrap());
    change(&mut fabric, |_| {});
    assert!(ways(&mut fabric).iter().all(|way| *way == 3));
    fabric.down.clear();
    change(&mut fabric, |_| {});
    assert_eq!(ways(&mut fabric), before);
}

#[test]
fn b028_congestion_and_dscp_cross_the_tunnel() {
    let mut fabric = fabric(|_| {});
    let mut frame = udp(A1, A2, A2.mac, (1, 2), b"x");
    frame[15] = 0xba; // EF, ECT(0)
    mend_ipv4(&mut frame, 14);
    assert_eq!(fabric.send("a1", &frame)[0].frame, frame);
    let outer = fabric.crossed.last().unwrap().clone();
    assert_eq!(outer[15], 0xba);
    read(&outer);
    let mut congested = outer.clone();
    congested[15] = 0xbb;
    mend_ipv4(&mut congested, 14);
    let out = fabric.send_from_underlay("h2", &congested);
    assert_eq!(out[0].frame[15], 0xbb, "the mark came in");
    read(&out[0].frame);
    // A packet that can't carry the mark is dropped.
    fabric.send("a1", &udp(A1, A2, A2.mac, (1, 2), b"x"));
    let mut congested = fabric.crossed.last().unwrap().clone();
    congested[15] = 0x03;
    mend_ipv4(&mut congested, 14);
    assert!(fabric.send_from_underlay("h2", &congested).is_empty());
    assert_eq!(fabric.drops("h2", DropReason::EcnMismatch), 1);
}

#[test]
fn b028_congestion_comes_in_with_a_broadcast_too() {
    let mut fabric = fabric(|_| {});
    let all = crate::frames::End {
        mac: [0xff; 6],
        v4: [255; 4],
        ..A2
    };
    for (class, delivered) in [(0x02, 1), (0x00, 0)] {
        let mut frame = udp(A1, all, [0xff; 6], (9, 9), b"all");
        frame[15] = class;
        mend_ipv4(&mut frame, 14);
        fabric.send("a1", &frame);
        let mut congested = fabric.crossed.pop().unwrap();
        congested[15] = 0x03;
        mend_ipv4(&mut congested, 14);
        let out = fabric.send_from_underlay("h2", &congested);
        assert_eq!(out.len(), delivered);
        for delivered in out {
            assert_eq!(delivered.frame[15], 0x03, "the mark came in");
            read(&delivered.frame);
        }
    }
    assert_eq!(fabric.drops("h2", DropReason::EcnMismatch), 1);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b030_broadcast_reaches_each_port_of_the_subnet_once_and_nobody_else() {
    let mut fabric = fabric(|_| {});
    let broadcast = crate::frames::End {
        mac: [0xff; 6],
        v4: [255; 4],
        ..A2
    };
    let out = fabric.send("a1", &udp(A1, broadcast, [0xff; 6], (9, 9), b"all"));
    let mut ports: Vec<&str> = out
        .iter()
        .map(|delivered| delivered.port.as_str())
        .collect();
    ports.sort_unstable();
    assert_eq!(
        ports,
        ["a2", "a3"],
        "not the sender, not the other subnet, not the other tenant"
    );
    assert_eq!(fabric.crossed.len(), 1, "one copy per host");
    assert_eq!(fabric.missing_frames(), 0);
    for _ in 0..2000 {
        fabric.send("a1", &udp(A1, broadcast, [0xff; 6], (9, 9), b"all"));
    }
    assert!(fabric.drops("h1", DropReason::BroadcastLimit) > 1000);
    assert_eq!(
        fabric
            .send("a3", &udp(A3, broadcast, [0xff; 6], (9, 9), b"all"))
            .len(),
        2,
        "the limit is per port"
    );
}

#[test]
fn acl_of_the_receiving_subnet_holds_for_tunnel_packets() {
    let mut fabric = fabric(|objects| {
        let rule = AclRule {
            number: 1,
            direction: "ingress".into(),
            action: "deny".into(),
            ..AclRule::default()
        };
        objects.network_acls = vec![NetworkAcl {
            id: "shut".into(),
            vpc: "blue".into(),
            rules: vec![rule],
            ..NetworkAcl::default()
        }];
        objects.subnets[1].network_acl = "shut".into();
    });
    assert!(
        fabric
            .send("a1", &udp(A1, B2, ROUTER, (1, 2), b"x"))
            .is_empty()
    );
    assert_eq!(fabric.drops("h2", DropReason::AclDenied), 1);
    assert_eq!(
        fabric.hosts["h2"].shared.sessions.statistics().live,
        0,
        "what is denied further on holds no session"
    );
}
