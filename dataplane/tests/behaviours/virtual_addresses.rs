//! Virtual addresses that move inside a subnet: who is heard when a guest announces one, and who gets what is sent to it.

use weft_dataplane::packet::{DropReason, Mac};
use weft_dataplane::pipeline::gateway;
use weft_fabric::Fabric;
use weft_proto::v1::{AddressHolder, AddressPair, Objects};

use crate::frames::{A1, A2, A3, B1, End, arp, end, icmp6, solicit, udp, udp6};
use crate::topology::{ROUTER, change, fabric, port};

/// The virtual addresses, with the MAC of VRRP's group 7 (RFC 5798 §7.3).
const VIRTUAL: End = End {
    mac: [0, 0, 0x5e, 0, 1, 7],
    ..end(1, 0x63)
};
const ZERO: [u8; 6] = [0; 6];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn v4() -> String {
    std::net::Ipv4Addr::from(VIRTUAL.v4).to_string()
}

fn v6() -> String {
    std::net::Ipv6Addr::from(VIRTUAL.v6).to_string()
}

/// a1, a2 and a3 may hold the addresses with their own MAC and with the virtual router's; a1 also may speak for itself with that.
fn with_pairs(objects: &mut Objects) {
    for id in ["a1", "a2", "a3"] {
        let port = port(objects, id);
        let own = port.addresses[0].clone();
        let pairs = [v4(), v6()].into_iter().flat_map(|cidr| {
            [String::new(), text(VIRTUAL.mac)].map(|mac| AddressPair {
                cidr: cidr.clone(),
                mac,
            })
        });
        port.allowed_pairs = pairs.collect();
        port.allowed_pairs.push(AddressPair {
            cidr: own,
            mac: text(VIRTUAL.mac),
        });
    }
}

/// What hosts are told when a port has announced both addresses.
fn hold(objects: &mut Objects, id: &str, mac: [u8; 6]) {
    let port = objects.ports.iter().find(|port| port.id == id).unwrap();
    let holder = |address: String| {
        let mut holder = AddressHolder {
            vpc: port.vpc.clone(),
            address,
            port: port.id.clone(),
            subnet: port.subnet.clone(),
            host: port.host.clone(),
            mac: text(mac),
            moves: 1,
            ..AddressHolder::default()
        };
        holder.id = holder.own_id();
        holder
    };
    objects.address_holders = [v4(), v6()].map(holder).to_vec();
}

fn held_by(id: &str, mac: [u8; 6]) -> Fabric {
    fabric(|objects| {
        with_pairs(objects);
        hold(objects, id, mac);
    })
}

/// An unsolicited advertisement (RFC 4861 §7.2.6).
fn advertise(from: End, mac: [u8; 6], target: [u8; 16]) -> Vec<u8> {
    let body = [&[0x20, 0, 0, 0][..], &target, &[2, 1], &mac].concat();
    icmp6(
        mac,
        [0x33, 0x33, 0, 0, 0, 1],
        from.v6,
        ALL_NODES,
        136,
        &body,
    )
}

/// Who has heard how many frames of a port as announcements.
fn heard(fabric: &mut Fabric, id: &str, frame: &[u8]) -> Vec<String> {
    fabric.asked.clear();
    assert!(fabric.send(id, frame).is_empty());
    let heard = fabric.asked.drain(..);
    heard.map(|(port, _)| port).collect()
}

/// Who gets a frame, by the MAC that it has.
fn gets(fabric: &mut Fabric, from: &str, frame: &[u8]) -> Vec<(String, [u8; 6])> {
    let delivered = fabric.send(from, frame).into_iter();
    delivered
        .map(|it| (it.port, it.frame[..6].try_into().unwrap()))
        .collect()
}

#[test]
fn announcements_are_heard_in_all_forms_from_ports_whose_pairs_allow_them() {
    let mut fabric = fabric(with_pairs);
    let request = |mac| arp(mac, 1, (mac, VIRTUAL.v4), (ZERO, VIRTUAL.v4));
    let reply = |mac| arp(mac, 2, (mac, VIRTUAL.v4), ([0xff; 6], VIRTUAL.v4));
    for mac in [A1.mac, VIRTUAL.mac] {
        for frame in [request(mac), reply(mac)] {
            assert_eq!(heard(&mut fabric, "a1", &frame), ["a1"]);
        }
        let from = End {
            v6: VIRTUAL.v6,
            ..A1
        };
        let frame = advertise(from, mac, VIRTUAL.v6);
        assert_eq!(heard(&mut fabric, "a1", &frame), ["a1"]);
    }
    // Whoever looks whether nobody holds it is about to. Other questions are answered, whatever address they come from.
    let question = arp(A1.mac, 1, (A1.mac, VIRTUAL.v4), (ZERO, A2.v4));
    let asks = solicit(A1, VIRTUAL.v6, A2.v6);
    for question in [question, asks] {
        fabric.asked.clear();
        assert_eq!(fabric.send("a1", &question).len(), 1);
        assert!(fabric.asked.is_empty());
    }
    let detects = solicit(A1, [0; 16], VIRTUAL.v6);
    assert_eq!(heard(&mut fabric, "a1", &detects), ["a1"]);
    // All say the same.
    let word = |address: [u8; 16]| u128::from_be_bytes(address);
    let own = Some((word(VIRTUAL.v6), Mac::from_bytes(A1.mac)));
    let from = End {
        v6: VIRTUAL.v6,
        ..A1
    };
    for frame in [detects, advertise(from, A1.mac, VIRTUAL.v6)] {
        assert_eq!(gateway::announced(&frame), own);
    }
    let word = |address: [u8; 4]| u128::from(u32::from_be_bytes(address)) | 0xffff << 32;
    let own = Some((word(VIRTUAL.v4), Mac::from_bytes(A1.mac)));
    for frame in [request(A1.mac), reply(A1.mac)] {
        assert_eq!(gateway::announced(&frame), own);
    }
    assert_eq!(fabric.drops("h1", DropReason::SpoofedArp), 0);
    // Another's MAC, another's address, a port without such a pair.
    let lies = [
        ("a1", request(A3.mac)),
        ("a1", arp(A1.mac, 1, (A1.mac, A3.v4), (ZERO, A3.v4))),
        ("b1", request(B1.mac)),
    ];
    for (number, (id, frame)) in (1..).zip(lies) {
        assert_eq!(heard(&mut fabric, id, &frame), [""; 0]);
        assert_eq!(fabric.drops("h1", DropReason::SpoofedArp), number);
    }
    let from = End {
        v6: VIRTUAL.v6,
        ..B1
    };
    let lie = advertise(from, B1.mac, VIRTUAL.v6);
    assert_eq!(heard(&mut fabric, "b1", &lie), [""; 0]);
    // Its own address a port need not announce.
    let own = arp(A1.mac, 1, (A1.mac, A1.v4), (ZERO, A1.v4));
    assert_eq!(heard(&mut fabric, "a1", &own), [""; 0]);
    assert_eq!(fabric.drops("h1", DropReason::ArpUnanswered), 1);
}

#[test]
fn who_holds_an_address_says_nothing_new_and_others_only_by_announcing_it() {
    let mut fabric = held_by("a1", A1.mac);
    let announce = |from: End| arp(from.mac, 1, (from.mac, VIRTUAL.v4), (ZERO, VIRTUAL.v4));
    assert_eq!(heard(&mut fabric, "a1", &announce(A1)), [""; 0]);
    assert_eq!(heard(&mut fabric, "a3", &announce(A3)), ["a3"]);
    assert_eq!(heard(&mut fabric, "a2", &announce(A2)), ["a2"]);
    // With the other MAC it is news.
    let other = arp(
        VIRTUAL.mac,
        2,
        (VIRTUAL.mac, VIRTUAL.v4),
        (ZERO, VIRTUAL.v4),
    );
    assert_eq!(heard(&mut fabric, "a1", &other), ["a1"]);
    // A question is answered and claims nothing.
    fabric.asked.clear();
    let question = arp(A3.mac, 1, (A3.mac, VIRTUAL.v4), (ZERO, A1.v4));
    assert_eq!(fabric.send("a3", &question).len(), 1);
    assert!(fabric.asked.is_empty());
}

#[test]
fn a_port_is_reached_by_what_it_holds_from_its_subnet_and_others_on_all_hosts() {
    for mac in [A1.mac, VIRTUAL.mac] {
        let mut fabric = held_by("a1", mac);
        // Neighbours learn its MAC.
        for (id, asker) in [("a2", A2), ("a3", A3)] {
            let question = arp(asker.mac, 1, (asker.mac, asker.v4), (ZERO, VIRTUAL.v4));
            let answers = fabric.send(id, &question);
            assert_eq!(answers.len(), 1);
            assert_eq!(answers[0].frame[22..28], mac);
            let question = solicit(asker, asker.v6, VIRTUAL.v6);
            let answers = fabric.send(id, &question);
            assert_eq!(answers.len(), 1);
            assert_eq!(answers[0].frame[6..12], mac);
            for frame in [
                udp(asker, VIRTUAL, mac, (1, 53), b"question"),
                udp6(asker, VIRTUAL, mac, (1, 53), b"question"),
            ] {
                assert_eq!(gets(&mut fabric, id, &frame), [("a1".to_owned(), mac)]);
            }
        }
        // Routed, from the same host and another.
        for (id, asker) in [("b1", B1), ("b2", end(2, 2))] {
            let frame = udp(asker, VIRTUAL, ROUTER, (1, 53), b"question");
            assert_eq!(gets(&mut fabric, id, &frame), [("a1".to_owned(), mac)]);
        }
        // And answers.
        let holder = End { mac, ..VIRTUAL };
        let answer = udp(holder, A2, A2.mac, (53, 1), b"answer");
        assert_eq!(gets(&mut fabric, "a1", &answer).len(), 1);
        assert_eq!(fabric.drops("h1", DropReason::SpoofedInner), 0);
        // It moves to another host, and all there is follows at once.
        change(&mut fabric, |objects| hold(objects, "a2", A2.mac));
        for id in ["a3", "b1", "b2"] {
            let asker = match id {
                "a3" => A3,
                "b1" => B1,
                _ => end(2, 2),
            };
            let to = if id == "a3" { A2.mac } else { ROUTER };
            let frame = udp(asker, VIRTUAL, to, (1, 53), b"question");
            let reached = gets(&mut fabric, id, &frame);
            assert_eq!(reached, [("a2".to_owned(), A2.mac)], "{id}");
        }
        // The one that had it still may send with it, and is not taken for a liar.
        let late = udp(holder, A2, A2.mac, (53, 9), b"late");
        assert_eq!(gets(&mut fabric, "a1", &late).len(), 1);
        // Nobody holds it any more.
        change(&mut fabric, |objects| objects.address_holders.clear());
        let frame = udp(B1, VIRTUAL, ROUTER, (1, 53), b"question");
        assert!(fabric.send("b1", &frame).is_empty());
        assert_eq!(fabric.drops("h1", DropReason::NoPort), 1);
    }
}

#[test]
fn what_does_not_fit_the_ports_is_passed_over() {
    // No pair has it any more; the port has gone; a port has the address for itself.
    let breaks: [fn(&mut Objects); 3] = [
        |objects| port(objects, "a1").allowed_pairs.clear(),
        |objects| objects.ports.retain(|port| port.id != "a1"),
        |objects| port(objects, "a3").addresses[0] = v4(),
    ];
    for (number, break_it) in breaks.into_iter().enumerate() {
        let mut fabric = held_by("a1", A1.mac);
        let frame = udp(B1, VIRTUAL, ROUTER, (1, 53), b"question");
        assert_eq!(gets(&mut fabric, "b1", &frame)[0].0, "a1");
        change(&mut fabric, break_it);
        let reached = gets(&mut fabric, "b1", &frame);
        match number {
            2 => assert_eq!(reached, [("a3".to_owned(), A3.mac)]),
            _ => assert!(reached.is_empty(), "{reached:?}"),
        }
    }
}

#[test]
fn a_virtual_router_is_reached_by_its_mac_and_its_advertisements_cross_hosts() {
    let mut fabric = held_by("a1", VIRTUAL.mac);
    // Through it, to somewhere else, from its host and another.
    let away = End {
        v4: [198, 51, 100, 9],
        ..B1
    };
    for (id, from) in [("a3", A3), ("a2", A2)] {
        let frame = udp(from, away, VIRTUAL.mac, (1, 2), b"through");
        assert_eq!(
            gets(&mut fabric, id, &frame),
            [("a1".to_owned(), VIRTUAL.mac)]
        );
    }
    // In another subnet that MAC is nobody's.
    let frame = udp(B1, away, VIRTUAL.mac, (1, 2), b"through");
    assert!(fabric.send("b1", &frame).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::UnknownMac), 1);
    // An advertisement with the virtual MAC, from who holds it and from who is about to.
    let group = [1, 0, 0x5e, 0, 0, 18];
    for (id, from) in [("a1", A1), ("a2", A2)] {
        let to = End {
            v4: [224, 0, 0, 18],
            ..from
        };
        let from = End {
            mac: VIRTUAL.mac,
            ..from
        };
        let frame = udp(from, to, group, (112, 112), b"vrrp");
        let mut reached = gets(&mut fabric, id, &frame);
        reached.sort();
        let others = ["a1", "a2", "a3"].into_iter().filter(|it| *it != id);
        let others: Vec<_> = others.map(|it| (it.to_owned(), group)).collect();
        assert_eq!(reached, others);
    }
}
