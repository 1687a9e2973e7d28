//! Neighbours and addresses: behaviours 1, 2, 3, 6 and 7.

use weft_dataplane::packet::DropReason;
use weft_proto::v1;

use crate::frames::{A1, A2, A3, B1, End, arp, echo, echo6, icmp6, read, solicit, udp, udp6};
use crate::topology::{ROUTER, fabric, port};

#[test]
fn b001_arp_for_the_gateway_and_for_a_neighbour_is_answered_here() {
    let mut fabric = fabric(|_| {});
    for (target, mac) in [([10, 0, 1, 1], ROUTER), (A2.v4, A2.mac), (A3.v4, A3.mac)] {
        let out = fabric.send("a1", &arp(A1.mac, 1, (A1.mac, A1.v4), ([0; 6], target)));
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].port, "a1");
        let mut expected = arp(mac, 2, (mac, target), (A1.mac, A1.v4));
        expected[..6].copy_from_slice(&A1.mac);
        assert_eq!(out[0].frame, expected);
    }
    assert!(fabric.crossed.is_empty(), "nothing is flooded");
}

#[test]
fn b001_arp_for_nobody_another_subnet_or_oneself_stays_unanswered() {
    let mut fabric = fabric(|_| {});
    for target in [[10, 0, 1, 99], B1.v4, A1.v4, [10, 0, 2, 1]] {
        assert!(
            fabric
                .send("a1", &arp(A1.mac, 1, (A1.mac, A1.v4), ([0; 6], target)))
                .is_empty()
        );
    }
    assert_eq!(fabric.drops("h1", DropReason::ArpUnanswered), 4);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b002_neighbour_solicitation_for_gateway_and_neighbour() {
    let mut fabric = fabric(|_| {});
    let mut gateway = [0; 16];
    gateway[..4].copy_from_slice(&[0xfd, 0, 0, 1]);
    gateway[15] = 1;
    let own = link_local(ROUTER);
    // The router flag, solicited, override (RFC 4861 §4.4): without the first a host drops its default route (§7.2.5).
    for (target, mac, flags) in [
        (gateway, ROUTER, 0xe0),
        (own, ROUTER, 0xe0),
        (A2.v6, A2.mac, 0x60),
        // Every port that speaks IPv6 has a link-local address (RFC 4291 §2.1).
        (link_local(A2.mac), A2.mac, 0x60),
        (link_local(A3.mac), A3.mac, 0x60),
    ] {
        let out = fabric.send("a1", &solicit(A1, A1.v6, target));
        assert_eq!(out.len(), 1);
        let seen = read(&out[0].frame);
        assert_eq!((seen.src, seen.dst, seen.ttl), (mac, A1.mac, 255));
        assert_eq!(out[0].frame[54], 136);
        assert_eq!(out[0].frame[58], flags);
        assert_eq!(out[0].frame[62..78], target);
        assert_eq!(out[0].frame[78..86], [&[2, 1][..], &mac].concat());
    }
}

#[test]
fn b002_neighbour_discovery_in_pieces_goes_nowhere() {
    let whole = solicit(A1, A1.v6, A2.v6);
    for (kind, dst) in [
        (135, whole[..6].to_vec()),
        (136, A3.mac.to_vec()),
        (136, A2.mac.to_vec()),
    ] {
        let mut fabric = fabric(|_| {});
        // A fragment header in between: offset 0, more to come (RFC 6980: a node that checks whole packets alone would let it by).
        let mut frame = whole.clone();
        frame[..6].copy_from_slice(&dst);
        frame.splice(54..54, [58, 0, 0, 1, 0, 0, 0, 7]);
        frame[19] += 8;
        frame[20] = 44;
        frame[62] = kind;
        assert!(fabric.send("a1", &frame).is_empty());
        assert_eq!(fabric.drops("h1", DropReason::NeighborMalformed), 1);
    }
}

#[test]
fn b002_duplicate_address_detection() {
    let mut fabric = fabric(|_| {});
    assert!(
        fabric.send("a1", &solicit(A1, [0; 16], A1.v6)).is_empty(),
        "for its own address: silence"
    );
    let out = fabric.send("a1", &solicit(A1, [0; 16], A2.v6));
    assert_eq!(out.len(), 1, "for another's: an answer");
    assert_eq!(read(&out[0].frame).destination.to_string(), "ff02::1");
    assert_eq!(out[0].frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(out[0].frame[58], 0x20);
    // Of the gateway's addresses and of a neighbour's link-local one too; of the port's own there is silence.
    for (target, flags) in [
        (link_local(ROUTER), 0xa0),
        (link_local(A2.mac), 0x20),
        ([0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 0xa0),
    ] {
        let out = fabric.send("a1", &solicit(A1, [0; 16], target));
        assert_eq!((out.len(), out[0].frame[58]), (1, flags));
    }
    assert!(
        fabric
            .send("a1", &solicit(A1, [0; 16], link_local(A1.mac)))
            .is_empty()
    );
}

/// The link-local address that a node derives from its MAC (RFC 4291 appendix A).
fn link_local(mac: [u8; 6]) -> [u8; 16] {
    let [a, b, c, d, e, f] = mac;
    let mut address = [0; 16];
    address[..2].copy_from_slice(&[0xfe, 0x80]);
    address[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    address
}

/// One that says nothing of the MAC (RFC 7217), as Windows and NetworkManager have it.
const PRIVATE: [u8; 16] = [
    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x1c, 0x3a, 5, 7, 9, 11, 13, 15,
];

#[test]
fn b007_any_link_local_address_is_good_on_the_link_and_only_there() {
    let mut fabric = fabric(|_| {});
    let private = End { v6: PRIVATE, ..A1 };
    let gateway = End {
        v6: link_local(ROUTER),
        ..A1
    };
    let out = fabric.send("a1", &echo6(private, gateway, ROUTER, 7, b"x"));
    assert_eq!(
        read(&out[0].frame).destination.to_string(),
        "fe80::1c3a:507:90b:d0f"
    );
    let mut mdns = [0; 16];
    (mdns[0], mdns[1], mdns[15]) = (0xff, 2, 0xfb);
    let all = End { v6: mdns, ..A2 };
    let out = fabric.send(
        "a1",
        &udp6(
            private,
            all,
            [0x33, 0x33, 0, 0, 0, 0xfb],
            (5353, 5353),
            b"?",
        ),
    );
    assert_eq!(out.len(), 2);
    let neighbour = End {
        v6: link_local(A2.mac),
        ..A2
    };
    assert_eq!(
        fabric
            .send("a1", &udp6(private, neighbour, A2.mac, (9, 9), b"x"))
            .len(),
        1
    );
    // Not beyond the router, not with another's MAC, not one that belongs to another.
    assert!(
        fabric
            .send("a1", &udp6(private, B1, ROUTER, (9, 9), b"x"))
            .is_empty()
    );
    assert_eq!(fabric.drops("h1", DropReason::Martian), 1);
    let stranger = End {
        mac: A3.mac,
        ..private
    };
    assert!(
        fabric
            .send("a1", &udp6(stranger, neighbour, A2.mac, (9, 9), b"x"))
            .is_empty()
    );
    for taken in [link_local(A3.mac), link_local(A2.mac), link_local(ROUTER)] {
        let thief = End { v6: taken, ..A1 };
        let to = End { v6: PRIVATE, ..A2 };
        assert!(
            fabric
                .send("a1", &udp6(thief, to, A2.mac, (9, 9), b"x"))
                .is_empty()
        );
        assert!(fabric.send("a1", &solicit(A1, taken, PRIVATE)).is_empty());
    }
    assert_eq!(fabric.drops("h1", DropReason::SpoofedAddress), 3);
    assert_eq!(fabric.drops("h1", DropReason::SpoofedNeighbor), 3);
}

#[test]
fn b002_link_local_addresses_that_only_guests_know_are_asked_of_them() {
    // Whatever policy says: without neighbour discovery there is no link.
    let mut fabric = fabric(|objects| {
        for port in &mut objects.ports {
            port.security_groups.clear();
        }
    });
    let mut question = solicit(A1, link_local(A1.mac), PRIVATE);
    let asked: Vec<String> = fabric
        .send("a1", &question)
        .into_iter()
        .map(|out| out.port)
        .collect();
    assert_eq!((asked.len(), fabric.crossed.len()), (2, 1), "{asked:?}");
    // The owner answers the asker, over the tunnel.
    let mut body = vec![0x60, 0, 0, 0];
    body.extend(PRIVATE);
    body.extend([2, 1]);
    body.extend(A2.mac);
    let answer = icmp6(A2.mac, A1.mac, PRIVATE, link_local(A1.mac), 136, &body);
    let out = fabric.send("a2", &answer);
    assert_eq!(
        (out.len(), out[0].port.as_str()),
        (1, "a1"),
        "{:?}",
        fabric.all_drops()
    );
    assert_eq!(out[0].frame, answer);
    // Duplicate address detection of such an address reaches its owner, too, whose answer reaches all.
    question = solicit(A1, [0; 16], PRIVATE);
    assert_eq!(fabric.send("a1", &question).len(), 2);
    let mut all_nodes = [0; 16];
    (all_nodes[0], all_nodes[1], all_nodes[15]) = (0xff, 2, 1);
    body[0] = 0x20;
    let everybody = [0x33, 0x33, 0, 0, 0, 1];
    let answer = icmp6(A2.mac, everybody, PRIVATE, all_nodes, 136, &body);
    assert_eq!(fabric.send("a2", &answer).len(), 2);
    // Nobody says so for another: of another's MAC, or of an address that another has by its MAC.
    body[20 + 2..].copy_from_slice(&A3.mac);
    let answer = icmp6(A2.mac, A1.mac, PRIVATE, link_local(A1.mac), 136, &body);
    assert!(fabric.send("a2", &answer).is_empty());
    body[20 + 2..].copy_from_slice(&A2.mac);
    body[4..20].copy_from_slice(&link_local(A3.mac));
    let answer = icmp6(A2.mac, A1.mac, PRIVATE, link_local(A1.mac), 136, &body);
    assert!(fabric.send("a2", &answer).is_empty());
    assert_eq!(fabric.drops("h2", DropReason::SpoofedNeighbor), 2);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b007_groups_are_joined_before_there_is_an_address() {
    let mut fabric = fabric(|_| {});
    let none = End {
        v4: [0; 4],
        v6: [0; 16],
        ..A1
    };
    let all = End {
        v4: [224, 0, 0, 22],
        ..A2
    };
    let mut igmp = udp(none, all, [1, 0, 0x5e, 0, 0, 22], (0, 0), &[0x16; 8]);
    igmp[23] = 2;
    igmp[24..26].fill(0);
    let sum: u32 = igmp[14..34]
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]))
        .sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    igmp[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(
        fabric.send("a1", &igmp).len(),
        2,
        "{:?}",
        fabric.all_drops()
    );
    let mut routers = [0; 16];
    (routers[0], routers[1], routers[15]) = (0xff, 2, 0x16);
    let multicast = [0x33, 0x33, 0, 0, 0, 0x16];
    for kind in [131, 132, 143] {
        let report = icmp6(A1.mac, multicast, [0; 16], routers, kind, &[0; 24]);
        assert_eq!(fabric.send("a1", &report).len(), 2);
    }
    // Nothing else comes from nowhere.
    let query = icmp6(A1.mac, multicast, [0; 16], routers, 130, &[0; 24]);
    assert!(fabric.send("a1", &query).is_empty());
    assert!(
        fabric
            .send("a1", &udp(none, all, [1, 0, 0x5e, 0, 0, 22], (9, 9), b"x"))
            .is_empty()
    );
    assert_eq!(fabric.drops("h1", DropReason::SpoofedAddress), 2);
}

#[test]
fn b003_what_only_routers_say_no_guest_says() {
    let mut fabric = fabric(|_| {});
    // A redirect that quotes a session, and the discovery of routers by ICMP (RFC 1256).
    assert_eq!(
        fabric.send("a2", &udp(A2, A1, A1.mac, (9, 9), b"x")).len(),
        1
    );
    let quote = &udp(A2, A1, A1.mac, (9, 9), b"x")[14..];
    for (kind, reason) in [
        (5, DropReason::RogueServer),
        (9, DropReason::RogueServer),
        (10, DropReason::GatewayUnserved),
    ] {
        let before = fabric.drops("h1", reason);
        let builder = etherparse::PacketBuilder::ethernet2(A1.mac, A2.mac)
            .ipv4(A1.v4, A2.v4, 64)
            .icmpv4_raw(kind, 0, [10, 0, 1, 13]);
        let mut frame = Vec::new();
        builder.write(&mut frame, quote).unwrap();
        assert!(fabric.send("a1", &frame).is_empty());
        assert_eq!(fabric.drops("h1", reason), before + 1);
    }
}

#[test]
fn b003_router_advertisements_and_server_messages_of_guests_are_dropped() {
    let mut fabric = fabric(|_| {});
    let mut all_nodes = [0; 16];
    (all_nodes[0], all_nodes[1], all_nodes[15]) = (0xff, 2, 1);
    let advertisement = icmp6(
        A1.mac,
        [0x33, 0x33, 0, 0, 0, 1],
        A1.v6,
        all_nodes,
        134,
        &[0; 12],
    );
    assert!(fabric.send("a1", &advertisement).is_empty());
    assert!(
        fabric
            .send("a1", &udp(A1, A2, A2.mac, (67, 68), b"offer"))
            .is_empty()
    );
    assert_eq!(fabric.drops("h1", DropReason::RogueServer), 2);
}

#[test]
fn b006_ping_to_the_gateway_in_both_families() {
    let mut fabric = fabric(|_| {});
    let mut gateway = A1;
    gateway.v4 = [10, 0, 1, 1];
    gateway.v6[15] = 1;
    for size in [0, 1, 56, 1400] {
        let payload: Vec<u8> = (0..size).map(|i| i as u8).collect();
        for request in [
            echo(A1, gateway, ROUTER, 77, &payload),
            echo6(A1, gateway, ROUTER, 77, &payload),
        ] {
            let out = fabric.send("a1", &request);
            let seen = read(&out[0].frame);
            assert_eq!((seen.src, seen.dst), (ROUTER, A1.mac));
            assert_eq!(seen.payload, payload);
            assert_eq!(out[0].frame.len(), request.len());
        }
    }
    // The gateway of another subnet answers too; other services of it do not exist.
    gateway.v4 = [10, 0, 2, 1];
    assert_eq!(
        fabric.send("a1", &echo(A1, gateway, ROUTER, 1, b"x")).len(),
        1
    );
    assert!(
        fabric
            .send("a1", &udp(A1, gateway, ROUTER, (1, 53), b"?"))
            .is_empty()
    );
    assert_eq!(fabric.drops("h1", DropReason::GatewayUnserved), 1);
}

#[test]
fn b007_spoofed_sources_are_dropped_each_with_its_own_reason() {
    let mut fabric = fabric(|_| {});
    let mac = crate::frames::End { mac: A3.mac, ..A1 };
    let address = crate::frames::End { v4: A3.v4, ..A1 };
    for (from, reason) in [
        (mac, DropReason::SpoofedMac),
        (address, DropReason::SpoofedAddress),
        (A3, DropReason::SpoofedBoth),
    ] {
        assert!(
            fabric
                .send("a1", &udp(from, A2, A2.mac, (1, 2), b"x"))
                .is_empty()
        );
        assert_eq!(fabric.drops("h1", reason), 1, "{}", reason.name());
    }
    for (eth, sender) in [
        (A1.mac, (A3.mac, A1.v4)),
        (A1.mac, (A1.mac, A3.v4)),
        (A3.mac, (A3.mac, A1.v4)),
    ] {
        assert!(
            fabric
                .send("a1", &arp(eth, 1, sender, ([0; 6], A2.v4)))
                .is_empty()
        );
    }
    assert_eq!(fabric.drops("h1", DropReason::SpoofedArp), 3);
    assert!(fabric.send("a1", &solicit(A1, A3.v6, A2.v6)).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::SpoofedNeighbor), 1);
    assert!(fabric.crossed.is_empty());
}

#[test]
fn b007_a_session_of_one_port_gives_no_other_port_a_way() {
    let mut fabric = fabric(|_| {});
    let frame = udp(A1, A2, A2.mac, (1, 2), b"x");
    assert_eq!(fabric.send("a1", &frame).len(), 1);
    assert!(
        fabric.send("a3", &frame).is_empty(),
        "same flow, same VPC, another port"
    );
    assert!(fabric.send("b1", &frame).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::SpoofedBoth), 2);
    assert_eq!(fabric.send("a1", &frame).len(), 1);
}

#[test]
fn b007_allowed_pairs_and_prefixes_pass() {
    let mut fabric = fabric(|objects| {
        let pair = |cidr: &str, mac: &str| v1::AddressPair {
            cidr: cidr.into(),
            mac: mac.into(),
        };
        port(objects, "a1").allowed_pairs = vec![
            pair("172.16.0.0/12", ""),
            pair("10.0.1.200/32", "00:00:5e:00:01:01"),
        ];
    });
    let forwarded = crate::frames::End {
        v4: [172, 20, 1, 2],
        ..A1
    };
    assert_eq!(
        fabric
            .send("a1", &udp(forwarded, A2, A2.mac, (1, 2), b"x"))
            .len(),
        1
    );
    let floating = crate::frames::End {
        v4: [10, 0, 1, 200],
        mac: [0, 0, 0x5e, 0, 1, 1],
        ..A1
    };
    assert_eq!(
        fabric
            .send("a1", &udp(floating, A2, A2.mac, (1, 2), b"x"))
            .len(),
        1
    );
    let mixed = crate::frames::End {
        v4: [10, 0, 1, 200],
        ..A1
    };
    assert!(
        fabric
            .send("a1", &udp(mixed, A2, A2.mac, (1, 2), b"x"))
            .is_empty(),
        "the pair's address with another MAC"
    );
}

#[test]
fn b006_a_ping_to_the_gateways_address_but_to_another_mac_is_not_the_gateways() {
    let mut fabric = fabric(|_| {});
    let gateway = End {
        v4: [10, 0, 1, 1],
        ..A1
    };
    for mac in [[0xff; 6], A3.mac, [2, 0, 0, 0, 0x77, 0x77]] {
        let out = fabric.send("a1", &echo(A1, gateway, mac, 7, b"ping"));
        assert!(
            out.iter().all(|delivered| delivered.port != "a1"),
            "no answer in the name of {mac:x?}"
        );
    }
}
