//! The router: behaviours 22, 26, 27, 29.

use std::collections::HashMap;

use weft_dataplane::packet::DropReason;
use weft_proto::v1::{NextHop, Route};

use crate::frames::{
    A1, A2, B1, B2, End, echo, echo_reply, echo6, read, syn_mss, udp, udp_ttl, udp6,
};
use crate::topology::{ROUTER, change, fabric, group, ingress, port, route};

#[test]
fn b026_ttl_one_across_subnets_is_answered_from_the_gateway() {
    let mut fabric = fabric(|_| {});
    let frame = udp_ttl(A1, B2, ROUTER, (1, 2), b"traceroute", 1);
    let out = fabric.send("a1", &frame);
    assert_eq!(out[0].port, "a1");
    let seen = read(&out[0].frame);
    assert_eq!(
        (seen.source.to_string(), seen.src, seen.dst),
        ("10.0.1.1".into(), ROUTER, A1.mac)
    );
    assert_eq!(out[0].frame[34..36], [11, 0]);
    assert_eq!(out[0].frame[42..], frame[14..], "quotes the packet");
    let mut v6 = udp6(A1, B2, ROUTER, (1, 2), b"traceroute");
    v6[21] = 1;
    let out = fabric.send("a1", &v6);
    assert_eq!(read(&out[0].frame).source.to_string(), "fd00:1::1");
    assert_eq!(out[0].frame[54..56], [3, 0]);
    assert_eq!(out[0].frame[62..], v6[14..]);
    let within = udp_ttl(A1, A2, A2.mac, (1, 2), b"x", 1);
    assert_eq!(
        fabric.send("a1", &within)[0].frame,
        within,
        "untouched within a subnet"
    );
    for _ in 0..300 {
        fabric.send("a1", &frame);
    }
    assert!(
        fabric.drops("h1", DropReason::ReplyLimit) > 200,
        "rate limited"
    );
}

#[test]
fn b027_too_big_is_answered_with_the_right_mtu() {
    let mut fabric = fabric(|_| {});
    let mut frame = udp(A1, A2, A2.mac, (1, 2), &[7; 1440]);
    assert_eq!(frame[20] & 0x40, 0x40, "the other library sets DF");
    let out = fabric.send("a1", &frame);
    read(&out[0].frame);
    assert_eq!(
        (out[0].port.as_str(), &out[0].frame[34..36]),
        ("a1", &[3, 4][..])
    );
    assert_eq!(
        u16::from_be_bytes([out[0].frame[40], out[0].frame[41]]),
        1450
    );
    let out = fabric.send("a1", &udp6(A1, A2, A2.mac, (1, 2), &[7; 1440]));
    read(&out[0].frame);
    assert_eq!(out[0].frame[54], 2);
    assert_eq!(out[0].frame[58..62], 1450u32.to_be_bytes());
    assert!(out[0].frame.len() <= 14 + 1280);
    frame.truncate(14 + 1450);
    let exact = udp(A1, A2, A2.mac, (1, 2), &[7; 1450 - 28]);
    assert_eq!(fabric.send("a1", &exact)[0].port, "a2");
    assert_eq!(fabric.crossed.last().unwrap().len(), 14 + 1500);
}

#[test]
fn b027_without_df_the_packet_is_fragmented_inside_the_tunnel() {
    let mut fabric = fabric(|_| {});
    let payload: Vec<u8> = (0..3000).map(|i| i as u8).collect();
    let mut frame = udp(A1, B2, ROUTER, (1, 2), &payload);
    frame[20] = 0;
    (frame[24], frame[25]) = (0, 0);
    let sum: u32 = frame[14..34]
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]))
        .sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let out = fabric.send("a1", &frame);
    assert_eq!(out.len(), 3, "{:?}", fabric.all_drops());
    let mut whole = Vec::new();
    for piece in &out {
        assert_eq!(piece.port, "b2");
        let seen = read(&piece.frame);
        assert_eq!((seen.ttl, seen.dst), (63, B2.mac));
        let offset =
            usize::from(u16::from_be_bytes([piece.frame[20], piece.frame[21]]) & 0x1fff) * 8;
        assert_eq!(offset, whole.len());
        whole.extend_from_slice(&piece.frame[34..]);
    }
    assert_eq!(whole, frame[34..]);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b027_mss_is_clamped_when_asked_for() {
    let mut fabric = fabric(|objects| port(objects, "a2").clamp_mss = true);
    let option = |frame: &[u8]| u16::from_be_bytes([frame[57], frame[58]]);
    let out = fabric.send("a1", &syn_mss(A1, A2, A2.mac, (1, 80), 1460));
    read(&out[0].frame);
    assert_eq!(option(&out[0].frame), 1410, "1450 less 40");
    let out = fabric.send("a1", &syn_mss(A1, A2, A2.mac, (2, 80), 1000));
    assert_eq!(option(&out[0].frame), 1000, "never raised");
    let out = fabric.send("a1", &syn_mss(A1, B2, ROUTER, (3, 80), 1460));
    assert_eq!(option(&out[0].frame), 1460, "not asked for");
}

#[test]
fn b022_icmp_errors_about_tracked_packets_pass_and_others_do_not() {
    let mut fabric = fabric(|objects| {
        group(objects, "open").rules = vec![ingress("udp", Some(53))];
        port(objects, "a1").security_groups.clear();
    });
    let sent = udp(A1, A2, A2.mac, (1000, 53), b"?");
    fabric.send("a1", &sent);
    let unreachable = |quote: &[u8]| {
        let builder = etherparse::PacketBuilder::ethernet2(A2.mac, A1.mac)
            .ipv4(A2.v4, A1.v4, 64)
            .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(
                etherparse::icmpv4::DestUnreachableHeader::Port,
            ));
        let mut frame = Vec::new();
        builder.write(&mut frame, quote).unwrap();
        frame
    };
    let out = fabric.send("a2", &unreachable(&sent[14..42]));
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    assert_eq!(out[0].port, "a1");
    let untracked = udp(A1, A2, A2.mac, (1001, 53), b"?");
    assert!(
        fabric
            .send("a2", &unreachable(&untracked[14..42]))
            .is_empty()
    );
    assert!(
        fabric.send("a2", &unreachable(&sent[14..36])).is_empty(),
        "too short a quote"
    );
    assert_eq!(fabric.drops("h2", DropReason::IcmpUnrelated), 2);
    // Echo is matched by its id, both families.
    let mut fabric = crate::topology::fabric(|objects| port(objects, "a1").security_groups.clear());
    assert_eq!(fabric.send("a1", &echo(A1, A2, A2.mac, 1, b"x")).len(), 1);
    assert_eq!(
        fabric
            .send("a2", &crate::frames::echo_reply(A2, A1, A1.mac, 1, b"x"))
            .len(),
        1
    );
    assert!(
        fabric.send("a2", &echo(A2, A1, A1.mac, 1, b"x")).is_empty(),
        "a request is no reply"
    );
    assert_eq!(fabric.send("a1", &echo6(A1, A2, A2.mac, 1, b"x")).len(), 1);
}

#[test]
fn b029_the_longer_prefix_wins_and_a_custom_route_beats_the_implied_one() {
    let mut fabric = fabric(|objects| {
        port(objects, "b1").allowed_pairs = vec![weft_proto::v1::AddressPair {
            cidr: "0.0.0.0/0".into(),
            mac: String::new(),
        }];
        objects.route_tables[0].routes = vec![
            Route {
                port: "b1".into(),
                ..route("0.0.0.0/0")
            },
            Route {
                port: "b2".into(),
                ..route("203.0.113.0/24")
            },
            Route {
                blackhole: true,
                ..route("203.0.113.128/25")
            },
        ];
    });
    let to = |v4| udp(A1, End { v4, ..B1 }, ROUTER, (1, 2), b"x");
    assert_eq!(fabric.send("a1", &to([8, 8, 8, 8]))[0].port, "b1");
    assert_eq!(fabric.send("a1", &to([203, 0, 113, 5]))[0].port, "b2");
    assert!(fabric.send("a1", &to([203, 0, 113, 200])).is_empty());
    assert_eq!(
        fabric.send("a1", &to(B2.v4))[0].port,
        "b2",
        "implied by the subnet"
    );
    change(&mut fabric, |objects| {
        objects.route_tables[0].routes.push(Route {
            port: "b1".into(),
            ..route("10.0.2.0/24")
        });
    });
    assert_eq!(
        fabric.send("a1", &to(B2.v4))[0].port,
        "b1",
        "custom beats implied, at once"
    );
    change(&mut fabric, |objects| {
        drop(objects.route_tables[0].routes.pop());
    });
    assert_eq!(
        fabric.send("a1", &to(B2.v4))[0].port,
        "b2",
        "removal restores"
    );
}

#[test]
fn b029_ecmp_spreads_by_weight_and_a_member_gone_moves_only_its_flows() {
    let hop = |port: &str, weight| NextHop {
        port: port.into(),
        weight,
        ..NextHop::default()
    };
    let mut fabric = fabric(|objects| {
        let ecmp = vec![hop("b1", 1), hop("b2", 2), hop("a2", 1)];
        objects.route_tables[0].routes = vec![Route {
            ecmp,
            ..route("198.51.100.0/24")
        }];
    });
    let choices = |fabric: &mut weft_fabric::Fabric| -> Vec<String> {
        let frame = |flow: u16| {
            udp(
                A1,
                End {
                    v4: [198, 51, 100, 1],
                    ..B1
                },
                ROUTER,
                (flow, 80),
                b"x",
            )
        };
        (1..1500)
            .map(|flow| fabric.send("a1", &frame(flow)).remove(0).port)
            .collect()
    };
    let before = choices(&mut fabric);
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for choice in &before {
        *counts.entry(choice).or_default() += 1;
    }
    assert!((660..840).contains(&counts["b2"]), "{counts:?}");
    assert!((310..440).contains(&counts["b1"]), "{counts:?}");
    change(&mut fabric, |objects| {
        drop(objects.route_tables[0].routes[0].ecmp.remove(0));
    });
    let after = choices(&mut fabric);
    for (was, is) in before.iter().zip(&after) {
        assert!(was == "b1" || was == is);
        assert_ne!(is, "b1");
    }
}

#[test]
fn b026_a_source_that_ends_in_zeros_gets_its_error_too() {
    let mut v6 = A1.v6;
    v6[8..].copy_from_slice(&[0, 0, 0, 5, 0, 0, 0, 0]);
    let mut fabric = fabric(|objects| port(objects, "a1").addresses.push("fd00:1::5:0:0".into()));
    let mut frame = udp6(End { v6, ..A1 }, B2, ROUTER, (1, 2), b"traceroute");
    frame[21] = 1;
    let out = fabric.send("a1", &frame);
    assert_eq!(out[0].port, "a1");
    assert_eq!(out[0].frame[54..56], [3, 0]);
}

#[test]
fn b022_no_identifier_makes_a_question_pass_for_an_answer() {
    let mut fabric = fabric(|objects| port(objects, "a1").security_groups.clear());
    for id in [0x0800, 0x0801, 0xf7ff, 0x8000, 0, 7] {
        assert_eq!(fabric.send("a1", &echo(A1, A2, A2.mac, id, b"x")).len(), 1);
        for other in [0x0800, 0x0801, 0xf7ff, 0x8000, id, id.wrapping_add(0x0801)] {
            let question = echo(A2, A1, A1.mac, other, b"x");
            assert!(fabric.send("a2", &question).is_empty(), "{id} {other}");
        }
        assert_eq!(
            fabric
                .send("a2", &echo_reply(A2, A1, A1.mac, id, b"x"))
                .len(),
            1
        );
    }
}
