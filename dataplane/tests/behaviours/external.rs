//! External networks: elastic IPs and NAT gateways, on the port's host and on a gateway host, against an outside that is made by hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_dataplane::packet::parse::address_word;
use weft_dataplane::packet::{DropReason, Mac};
use weft_dataplane::pipeline::trace::{Outcome, View, trace};
use weft_dataplane::session::mappings::Budget;
use weft_dataplane::snapshot::compile::ExternalLink;
use weft_fabric::{Delivered, Fabric};
use weft_proto::v1::{ElasticIp, ExternalNetwork, NatGateway, Objects, PortForward};

use crate::fragments::pieces;
use crate::frames::{
    A1, A2, A3, B1, B2, End, Seen, echo, echo_reply, echo6, icmp6, read, tcp, udp, udp_ttl, udp6,
};
use crate::overlay::mend_ipv4;
use crate::topology::{ROUTER, change, fabric, ingress, port, route};

/// MAC of a host's interface on the segment.
pub const H1: [u8; 6] = [6, 0, 0, 0, 1, 1];
const H2: [u8; 6] = [6, 0, 0, 0, 1, 2];

/// A station on the segment.
pub const fn station(last: u8) -> End {
    let mut v6 = [0; 16];
    (v6[0], v6[1], v6[2], v6[3]) = (0x20, 0x01, 0x0d, 0xb8);
    v6[15] = last;
    End {
        mac: [0x0a, 0, 0, 0, 0, last],
        v4: [203, 0, 113, last],
        v6,
    }
}

/// The network's own router, a neighbour on the segment, and somebody behind the router.
pub const GATEWAY: End = station(1);
pub const NEIGHBOR: End = station(77);
pub const FAR: End = End {
    mac: GATEWAY.mac,
    v4: [198, 51, 100, 9],
    v6: [
        0x20, 0x01, 0x0d, 0xb8, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9,
    ],
};

/// The outside address that ends like this, as somebody outside sends to it: at the MAC of h1.
pub const fn held(last: u8) -> End {
    let mut end = station(last);
    end.mac = H1;
    end
}

pub fn texts(end: End) -> [String; 2] {
    [
        Ipv4Addr::from(end.v4).to_string(),
        Ipv6Addr::from(end.v6).to_string(),
    ]
}

pub fn network(objects: &mut Objects) {
    for host in &mut objects.hosts {
        if host.id == "h1" {
            host.physical_networks = vec!["physnet1".into()];
        }
    }
    objects.external_networks.push(ExternalNetwork {
        id: "internet".into(),
        physical_network: "physnet1".into(),
        prefixes: vec!["203.0.113.0/24".into(), "2001:db8::/64".into()],
        gateways: texts(GATEWAY).into(),
        gateway_hosts: vec!["h1".into()],
        ..ExternalNetwork::default()
    });
}

/// An elastic IP of each family for a port.
pub fn bind(objects: &mut Objects, port: &str, outside: End) {
    for (i, address) in texts(outside).into_iter().enumerate() {
        let id = format!("{port}-{i}");
        objects.elastic_ips.retain(|other| other.address != address);
        objects.elastic_ips.push(ElasticIp {
            id,
            external_network: "internet".into(),
            address,
            port: port.into(),
            ..ElasticIp::default()
        });
    }
}

/// A NAT gateway of blue with the addresses that end in 5, and the way to it from both subnets.
pub fn gateway(objects: &mut Objects) {
    objects.nat_gateways.push(NatGateway {
        id: "nat".into(),
        vpc: "blue".into(),
        external_network: "internet".into(),
        addresses: texts(station(5)).into(),
        ..NatGateway::default()
    });
    objects.route_tables[0].routes = ["0.0.0.0/0", "::/0"]
        .map(|prefix| weft_proto::v1::Route {
            nat: "nat".into(),
            ..route(prefix)
        })
        .into();
    for subnet in &mut objects.subnets {
        if subnet.vpc == "blue" {
            subnet.route_table = "blue".into();
        }
    }
}

/// A fabric whose h1 has an interface on the segment, all of whose stations have answered.
pub fn outside(change_objects: impl FnOnce(&mut Objects)) -> Fabric {
    outside_on(fabric(|_| {}), change_objects)
}

/// The same of a fabric that is there.
pub fn outside_on(mut fabric: Fabric, change_objects: impl FnOnce(&mut Objects)) -> Fabric {
    let link = |mac: [u8; 6]| ExternalLink {
        physical_network: "physnet1".into(),
        uplink: 1,
        mac: Mac::from_bytes(mac),
        mtu: 1500,
        has_tunnels: false,
    };
    fabric.externals.insert("h1".into(), vec![link(H1)]);
    change(&mut fabric, |objects| {
        network(objects);
        change_objects(objects);
    });
    meet(&mut fabric);
    fabric
}

/// Lets hosts ask for their next hops, and answers.
pub fn meet(fabric: &mut Fabric) {
    fabric.advance(100);
    fabric.carry();
    answer(fabric);
    fabric.outside.clear();
}

/// Answers every question that is on the segment, as a station would.
pub fn answer(fabric: &mut Fabric) {
    for (host, frame) in std::mem::take(&mut fabric.outside) {
        let vlan = frame[12..14] == [0x81, 0];
        let mut plain = frame.clone();
        if vlan {
            plain.drain(12..16);
        }
        let reply = match plain[12..14] {
            [8, 6] if plain[20..22] == [0, 1] && plain[28..32] != plain[38..42] => {
                let mac = [0x0a, 0, 0, 0, 0, plain[41]];
                let mut reply = plain.clone();
                reply[..6].copy_from_slice(&plain[6..12]);
                reply[6..12].copy_from_slice(&mac);
                reply[21] = 2;
                reply[22..28].copy_from_slice(&mac);
                reply[28..32].copy_from_slice(&plain[38..42]);
                reply[32..42].copy_from_slice(&plain[22..32]);
                Some(reply)
            }
            [0x86, 0xdd] if plain[54] == 135 => Some(advertisement(&plain)),
            _ => None,
        };
        if let Some(mut reply) = reply {
            if vlan {
                reply.splice(12..12, frame[12..16].iter().copied());
            }
            fabric.send_from_uplink(&host, 1, &reply);
        }
    }
}

/// What a station answers to a neighbour solicitation.
fn advertisement(solicitation: &[u8]) -> Vec<u8> {
    let target: [u8; 16] = solicitation[62..78].try_into().unwrap();
    let source: [u8; 16] = solicitation[22..38].try_into().unwrap();
    let station = End {
        mac: [0x0a, 0, 0, 0, 0, target[15]],
        v4: [0; 4],
        v6: target,
    };
    let asker = End {
        mac: solicitation[6..12].try_into().unwrap(),
        v4: [0; 4],
        v6: source,
    };
    let mut body = vec![0x60, 0, 0, 0];
    body.extend(target);
    body.extend([2, 1]);
    body.extend(station.mac);
    icmp6(station.mac, asker.mac, target, source, 136, &body)
}

/// The one frame that has left for the segment.
#[track_caller]
pub fn left(fabric: &mut Fabric) -> Seen {
    let frames = std::mem::take(&mut fabric.outside);
    assert_eq!(frames.len(), 1, "{:?}", fabric.all_drops());
    read(&frames[0].1)
}

#[track_caller]
pub fn send(fabric: &mut Fabric, port: &str, frame: &[u8]) -> Seen {
    fabric.outside.clear();
    let out = fabric.send(port, frame);
    assert_eq!(out, [], "nothing comes out at a port");
    left(fabric)
}

#[track_caller]
pub fn arrive(fabric: &mut Fabric, frame: &[u8]) -> (String, Seen) {
    let mut out = fabric.send_from_uplink("h1", 1, frame);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    let Delivered { port, frame, .. } = out.remove(0);
    (port, read(&frame))
}

#[track_caller]
pub fn refused(fabric: &mut Fabric, frame: &[u8], reason: DropReason) {
    let before = fabric.drops("h1", reason);
    assert_eq!(fabric.send_from_uplink("h1", 1, frame), []);
    assert_eq!(
        fabric.drops("h1", reason),
        before + 1,
        "{:?}",
        fabric.all_drops()
    );
}

#[track_caller]
pub fn kept_in(fabric: &mut Fabric, port: &str, frame: &[u8], reason: DropReason) {
    let before = fabric.all_drops().get(&reason).copied().unwrap_or(0);
    fabric.outside.clear();
    assert_eq!(fabric.send(port, frame), []);
    let after = fabric.all_drops().get(&reason).copied().unwrap_or(0);
    assert_eq!(after, before + 1, "{:?}", fabric.all_drops());
}

pub fn v4(end: End) -> IpAddr {
    end.v4.into()
}

pub fn address(end: End, v6: bool) -> IpAddr {
    if v6 { end.v6.into() } else { end.v4.into() }
}

pub type Make = fn(End, End, [u8; 6], (u16, u16), &[u8]) -> Vec<u8>;
pub const UDP: [(Make, bool); 2] = [(udp, false), (udp6, true)];

#[test]
fn a_port_with_an_elastic_ip_talks_to_the_outside_and_is_reached_from_there() {
    for (make, v6) in UDP {
        // On the host that has the network, and on one that has not.
        for (name, end) in [("a1", A1), ("a2", A2)] {
            let mut fabric = outside(|objects| bind(objects, name, station(9)));
            for round in 0..4u8 {
                let question = make(end, FAR, ROUTER, (7, 53), &[round]);
                let seen = send(&mut fabric, name, &question);
                assert_eq!((seen.dst, seen.src), (GATEWAY.mac, H1));
                assert_eq!(
                    (seen.source, seen.destination),
                    (address(station(9), v6), address(FAR, v6))
                );
                assert_eq!((seen.source_port, seen.destination_port), (7, 53));
                let back = make(FAR, held(9), H1, (53, 7), &[round]);
                let (port, seen) = arrive(&mut fabric, &back);
                assert_eq!(port, name);
                assert_eq!(
                    (seen.source, seen.destination),
                    (address(FAR, v6), address(end, v6))
                );
                assert_eq!(seen.dst, end.mac);
            }
            // From outside, to a port that its group opens.
            for round in 0..3u8 {
                let question = make(FAR, held(9), H1, (99, 80), &[round]);
                let (port, seen) = arrive(&mut fabric, &question);
                assert_eq!((port.as_str(), seen.destination), (name, address(end, v6)));
                let seen = send(
                    &mut fabric,
                    name,
                    &make(end, FAR, ROUTER, (80, 99), &[round]),
                );
                assert_eq!(seen.source, address(station(9), v6));
            }
            let fast = fabric.hosts["h1"].pipeline.counters().fast.get();
            assert!(fast >= 6, "the fast path takes them: {fast} {name} {v6}");
        }
    }
}

#[test]
fn policy_sees_the_ports_own_address_and_the_outsides() {
    let mut fabric = outside(|objects| {
        bind(objects, "a1", station(9));
        objects.security_groups[0].rules = vec![weft_proto::v1::SecurityRule {
            remote_cidr: "198.51.100.0/24".into(),
            ..ingress("udp", Some(80))
        }];
    });
    let allowed = udp(FAR, held(9), H1, (99, 80), b"x");
    assert_eq!(arrive(&mut fabric, &allowed).0, "a1");
    refused(
        &mut fabric,
        &udp(FAR, held(9), H1, (99, 81), b"x"),
        DropReason::GroupDenied,
    );
    refused(
        &mut fabric,
        &udp(NEIGHBOR, held(9), H1, (99, 80), b"x"),
        DropReason::GroupDenied,
    );
}

#[test]
fn without_an_elastic_ip_or_a_gateway_nothing_leaves() {
    let mut fabric = outside(|objects| {
        bind(objects, "a1", station(9));
        objects.route_tables[0].routes = vec![weft_proto::v1::Route {
            external: "internet".into(),
            ..route("0.0.0.0/0")
        }];
    });
    let frame = udp(A3, FAR, ROUTER, (7, 53), b"x");
    kept_in(&mut fabric, "a3", &frame, DropReason::NoTranslation);
    // By the route, and where no route leads anywhere, the elastic IP is the way out.
    send(&mut fabric, "a1", &udp(A1, FAR, ROUTER, (7, 53), b"x"));
    change(&mut fabric, |objects| {
        objects.route_tables[0].routes.clear();
    });
    send(&mut fabric, "a1", &udp(A1, FAR, ROUTER, (7, 53), b"x"));
    kept_in(&mut fabric, "a3", &frame, DropReason::NoRoute);
}

#[test]
fn unbinding_ends_inbound_at_once_and_another_port_takes_over() {
    let mut fabric = outside(|objects| bind(objects, "a1", station(9)));
    let question = udp(FAR, held(9), H1, (99, 80), b"x");
    assert_eq!(arrive(&mut fabric, &question).0, "a1");
    assert_eq!(arrive(&mut fabric, &question).0, "a1");
    change(&mut fabric, |objects| objects.elastic_ips.clear());
    refused(&mut fabric, &question, DropReason::ExternalUnheld);
    let answer = udp(A1, FAR, ROUTER, (80, 99), b"x");
    kept_in(&mut fabric, "a1", &answer, DropReason::TranslationGone);
    kept_in(&mut fabric, "a1", &answer, DropReason::NoRoute);
    change(&mut fabric, |objects| bind(objects, "a3", station(9)));
    for _ in 0..2 {
        let (port, seen) = arrive(&mut fabric, &question);
        assert_eq!((port.as_str(), seen.destination), ("a3", v4(A3)));
    }
    // Moved in one step: a flow that one port had ends, and begins anew with the other.
    change(&mut fabric, |objects| bind(objects, "a2", station(9)));
    refused(&mut fabric, &question, DropReason::TranslationGone);
    assert_eq!(arrive(&mut fabric, &question).0, "a2");
}

#[test]
fn elastic_ips_of_one_vpc_reach_each_other_and_a_port_its_own() {
    let mut fabric = outside(|objects| {
        bind(objects, "a1", station(9));
        bind(objects, "b2", station(10));
    });
    for _ in 0..2 {
        let out = fabric.send("a1", &udp(A1, station(10), ROUTER, (7, 53), b"x"));
        let seen = read(&out[0].frame);
        assert_eq!((out[0].port.as_str(), seen.source), ("b2", v4(station(9))));
        assert_eq!(seen.destination, v4(B2));
        let out = fabric.send("b2", &udp(B2, station(9), ROUTER, (53, 7), b"x"));
        let seen = read(&out[0].frame);
        assert_eq!((out[0].port.as_str(), seen.source), ("a1", v4(station(10))));
    }
    let out = fabric.send("a1", &udp(A1, station(9), ROUTER, (7, 53), b"x"));
    assert_eq!(
        (out[0].port.as_str(), read(&out[0].frame).source),
        ("a1", v4(station(9)))
    );
    assert!(fabric.outside.is_empty());
}

/// The other VPC's address is held by the same host: the packet leaves the one VPC and comes into the other, as it would from the wire.
#[test]
fn an_elastic_ip_of_another_tenant_on_the_same_host_is_reached_as_from_outside() {
    for name in ["r1", "r2"] {
        let mut fabric = outside(|objects| {
            bind(objects, "a1", station(9));
            bind(objects, name, station(20));
        });
        for _ in 0..3 {
            let out = fabric.send("a1", &udp(A1, station(20), ROUTER, (7, 53), b"x"));
            assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
            let seen = read(&out[0].frame);
            assert_eq!((out[0].port.as_str(), seen.source), (name, v4(station(9))));
            let end = if name == "r1" { A1 } else { A2 };
            assert_eq!(seen.destination, v4(end));
            let out = fabric.send(name, &udp(end, station(9), ROUTER, (53, 7), b"y"));
            assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
            let seen = read(&out[0].frame);
            assert_eq!((out[0].port.as_str(), seen.source), ("a1", v4(station(20))));
        }
        assert!(fabric.outside.is_empty());
    }
}

#[test]
fn ports_share_the_address_of_a_nat_gateway() {
    for (make, v6) in UDP {
        let mut fabric = outside(gateway);
        let mut outside_ports = Vec::new();
        // On the gateway's host and on another one, with the same port.
        for (name, end) in [("a1", A1), ("a2", A2), ("b1", B1), ("b2", B2)] {
            for round in 0..3u8 {
                let seen = send(
                    &mut fabric,
                    name,
                    &make(end, FAR, ROUTER, (7000, 53), &[round]),
                );
                assert_eq!(seen.source, address(station(5), v6));
                let port = seen.source_port;
                let back = make(FAR, held(5), H1, (53, port), &[round]);
                let (receiver, seen) = arrive(&mut fabric, &back);
                assert_eq!(receiver, name);
                assert_eq!(
                    (seen.destination, seen.destination_port),
                    (address(end, v6), 7000)
                );
                if round == 0 {
                    outside_ports.push(port);
                }
            }
        }
        assert_eq!(outside_ports[0], 7000, "kept where it is free");
        outside_ports.sort_unstable();
        outside_ports.dedup();
        assert_eq!(outside_ports.len(), 4);
        let fast = fabric.hosts["h1"].pipeline.counters().fast.get();
        assert!(fast >= 8, "the fast path takes them: {fast}");
    }
}

/// RFC 4787 REQ-1, and address- and port-dependent filtering unless the gateway is open (REQ-8).
#[test]
fn a_mapping_is_the_same_for_every_destination_and_strangers_do_not_enter_by_it() {
    for open in [false, true] {
        let mut fabric = outside(|objects| {
            gateway(objects);
            if open {
                objects.nat_gateways[0].filtering = "endpoint_independent".into();
            }
        });
        let first = send(&mut fabric, "a2", &udp(A2, FAR, ROUTER, (7000, 53), b"x"));
        kept_in(
            &mut fabric,
            "a2",
            &udp(A2, NEIGHBOR, ROUTER, (7000, 54), b"x"),
            DropReason::ExternalUnresolved,
        );
        answer(&mut fabric);
        let second = send(
            &mut fabric,
            "a2",
            &udp(A2, NEIGHBOR, ROUTER, (7000, 54), b"x"),
        );
        assert_eq!(first.source_port, second.source_port);
        assert_eq!(second.dst, NEIGHBOR.mac);
        let stranger = udp(NEIGHBOR, held(5), H1, (1, first.source_port), b"x");
        if open {
            let (port, seen) = arrive(&mut fabric, &stranger);
            assert_eq!((port.as_str(), seen.destination_port), ("a2", 7000));
        } else {
            refused(&mut fabric, &stranger, DropReason::NatUnmapped);
        }
        let nobody = udp(NEIGHBOR, held(5), H1, (1, first.source_port ^ 1), b"x");
        refused(&mut fabric, &nobody, DropReason::NatUnmapped);
        assert_eq!(fabric.hosts["h1"].shared.sessions.mappings().count(), 1);
    }
}

#[test]
fn a_tcp_connection_passes_the_gateway_and_its_checksums_are_right() {
    let mut fabric = outside(gateway);
    let seen = send(
        &mut fabric,
        "a2",
        &tcp(A2, FAR, ROUTER, (7000, 80), "S", (100, 0), 0),
    );
    let port = seen.source_port;
    let syn_ack = tcp(FAR, held(5), H1, (80, port), "SA", (500, 101), 0);
    assert_eq!(arrive(&mut fabric, &syn_ack).0, "a2");
    for data in [0, 10, 1000] {
        let frame = tcp(A2, FAR, ROUTER, (7000, 80), "A", (101, 501), data);
        let seen = send(&mut fabric, "a2", &frame);
        assert_eq!((seen.source, seen.source_port), (v4(station(5)), port));
        let frame = tcp(
            FAR,
            held(5),
            H1,
            (80, port),
            "A",
            (501, 101 + data as u32),
            data,
        );
        assert_eq!(arrive(&mut fabric, &frame).0, "a2");
    }
    // A segment of no connection makes no mapping.
    let stray = tcp(A2, FAR, ROUTER, (7001, 80), "F", (1, 0), 0);
    kept_in(&mut fabric, "a2", &stray, DropReason::TcpFlags);
    assert_eq!(fabric.hosts["h1"].shared.sessions.mappings().count(), 1);
}

/// RFC 5508 REQ-1: the identifier is the port.
#[test]
fn pings_of_two_ports_with_one_identifier_are_told_apart() {
    let mut fabric = outside(gateway);
    let id_of = |frame: &[u8]| u16::from_be_bytes([frame[38], frame[39]]);
    let mut ids = Vec::new();
    for (name, end) in [("a1", A1), ("a2", A2)] {
        for _ in 0..2 {
            fabric.outside.clear();
            assert_eq!(
                fabric.send(name, &echo(end, FAR, ROUTER, 4242, b"ping")),
                []
            );
            let frame = fabric.outside[0].1.clone();
            assert_eq!(read(&frame).source, v4(station(5)));
            let id = id_of(&frame);
            ids.push(id);
            let reply = echo_reply(FAR, held(5), H1, id, b"ping");
            let out = fabric.send_from_uplink("h1", 1, &reply);
            assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
            assert_eq!((out[0].port.as_str(), id_of(&out[0].frame)), (name, 4242));
            read(&out[0].frame);
        }
    }
    assert_eq!((ids[0], ids[0]), (4242, ids[1]));
    assert_ne!(ids[0], ids[2]);
    // Pings to the gateway's own address are nobody's.
    refused(
        &mut fabric,
        &echo(FAR, held(5), H1, 4242, b"ping"),
        DropReason::NatUnmapped,
    );
    fabric.outside.clear();
    assert_eq!(fabric.send("a2", &echo6(A2, FAR, ROUTER, 77, b"ping")), []);
    read(&fabric.outside[0].1);
}

#[test]
fn a_port_forward_leads_in_and_its_answers_come_from_there() {
    let mut fabric = outside(|objects| {
        gateway(objects);
        let forward = |port_min, port: &str, to| PortForward {
            protocol: "udp".into(),
            port_min,
            port_max: port_min + 9,
            port: port.into(),
            to_port_min: to,
            ..PortForward::default()
        };
        objects.nat_gateways[0].port_forwards =
            vec![forward(8000, "a1", 80), forward(9000, "b2", 0)];
    });
    for (outer, name, end, inner) in [(8003, "a1", A1, 83), (9003, "b2", B2, 9003)] {
        for _ in 0..3 {
            let question = udp(FAR, held(5), H1, (99, outer), b"x");
            let (port, seen) = arrive(&mut fabric, &question);
            assert_eq!((port.as_str(), seen.destination_port), (name, inner));
            assert_eq!(seen.destination, v4(end));
            let seen = send(&mut fabric, name, &udp(end, FAR, ROUTER, (inner, 99), b"y"));
            assert_eq!((seen.source, seen.source_port), (v4(station(5)), outer));
        }
    }
    refused(
        &mut fabric,
        &udp(FAR, held(5), H1, (99, 8010), b"x"),
        DropReason::NatUnmapped,
    );
    // The forward's ports are given to no mapping.
    let seen = send(&mut fabric, "a2", &udp(A2, FAR, ROUTER, (8005, 53), b"x"));
    assert!(!(8000..8010).contains(&seen.source_port));
    // From inside the VPC by the outside address: the source is translated too (RFC 4787 REQ-9).
    for _ in 0..2 {
        let out = fabric.send("a2", &udp(A2, station(5), ROUTER, (7000, 8003), b"x"));
        assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
        let seen = read(&out[0].frame);
        assert_eq!((out[0].port.as_str(), seen.destination_port), ("a1", 83));
        assert_eq!(seen.source, v4(station(5)));
        let answer = udp(A1, station(5), ROUTER, (83, seen.source_port), b"y");
        let out = fabric.send("a1", &answer);
        assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
        let seen = read(&out[0].frame);
        assert_eq!((out[0].port.as_str(), seen.destination_port), ("a2", 7000));
        assert_eq!((seen.source, seen.source_port), (v4(station(5)), 8003));
    }
}

#[test]
fn an_elastic_ip_goes_before_the_gateway_and_sources_that_it_does_not_serve_stay_in() {
    let mut fabric = outside(|objects| {
        gateway(objects);
        bind(objects, "a1", station(9));
        objects.nat_gateways[0].sources = vec!["10.0.1.0/24".into()];
    });
    let seen = send(&mut fabric, "a1", &udp(A1, FAR, ROUTER, (7, 53), b"x"));
    assert_eq!(seen.source, v4(station(9)));
    let seen = send(&mut fabric, "a3", &udp(A3, FAR, ROUTER, (7, 53), b"x"));
    assert_eq!(seen.source, v4(station(5)));
    let frame = udp(B1, FAR, ROUTER, (7, 53), b"x");
    kept_in(&mut fabric, "b1", &frame, DropReason::NoTranslation);
}

#[test]
fn fragments_follow_their_first_through_the_gateway() {
    let mut fabric = outside(gateway);
    let whole = udp(A2, FAR, ROUTER, (7000, 53), &[7; 3000]);
    fabric.outside.clear();
    for piece in pieces(&whole, 1, 1200, None) {
        assert_eq!(fabric.send("a2", &piece), []);
    }
    let out = std::mem::take(&mut fabric.outside);
    assert_eq!(out.len(), 3, "{:?}", fabric.all_drops());
    for (_, frame) in &out {
        assert_eq!(frame[26..30], station(5).v4);
    }
    let port = u16::from_be_bytes([out[0].1[34], out[0].1[35]]);
    let back = udp(FAR, held(5), H1, (53, port), &[8; 3000]);
    let mut received = 0;
    for piece in pieces(&back, 2, 1200, None) {
        for delivered in fabric.send_from_uplink("h1", 1, &piece) {
            assert_eq!(
                (delivered.port.as_str(), &delivered.frame[30..34]),
                ("a2", &A2.v4[..])
            );
            received += 1;
        }
    }
    assert_eq!(received, 3, "{:?}", fabric.all_drops());
}

/// RFC 5508 REQ-3, REQ-4: what quotes a packet of a session is translated with it, what quotes nothing of ours is dropped.
#[test]
fn an_error_from_outside_reaches_who_sent_the_packet_that_it_quotes() {
    let mut fabric = outside(gateway);
    fabric.outside.clear();
    assert_eq!(
        fabric.send("a2", &udp(A2, FAR, ROUTER, (7000, 53), b"x")),
        []
    );
    let sent = fabric.outside[0].1.clone();
    let error = |quoted: &[u8]| {
        let builder = etherparse::PacketBuilder::ethernet2(GATEWAY.mac, H1)
            .ipv4(GATEWAY.v4, station(5).v4, 60)
            .icmpv4_raw(3, 1, [0; 4]);
        let mut frame = Vec::new();
        builder.write(&mut frame, &quoted[14..]).unwrap();
        frame
    };
    let out = fabric.send_from_uplink("h1", 1, &error(&sent));
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    assert_eq!(out[0].port, "a2");
    let seen = read(&out[0].frame);
    assert_eq!((seen.source, seen.destination), (v4(GATEWAY), v4(A2)));
    let quoted = &out[0].frame[42..];
    assert_eq!(
        (&quoted[12..16], &quoted[20..22]),
        (&A2.v4[..], &7000u16.to_be_bytes()[..])
    );
    let never = udp(held(5), FAR, GATEWAY.mac, (7001, 53), b"x");
    refused(&mut fabric, &error(&never), DropReason::IcmpUnrelated);
}

/// An error about a packet, from one who is not its receiver.
pub fn error_of_another(from: End, to: End, mac: [u8; 6], quoted: &[u8]) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(from.mac, mac)
        .ipv4(from.v4, to.v4, 60)
        .icmpv4_raw(3, 1, [0; 4]);
    let mut frame = Vec::new();
    builder.write(&mut frame, &quoted[14..]).unwrap();
    frame
}

/// RFC 5508 REQ-5: a router inside that is not the receiver of the packet has no address outside, unless by an elastic IP.
#[test]
fn an_error_that_leaves_bears_no_private_address() {
    let mut fabric = outside(|objects| {
        gateway(objects);
        bind(objects, "a1", station(9));
    });
    let (_, _) = arrive(&mut fabric, &udp(FAR, held(9), H1, (99, 80), b"x"));
    let quoted = udp(FAR, A1, A1.mac, (99, 80), b"x");
    let error = error_of_another(A3, FAR, ROUTER, &quoted);
    assert_eq!(send(&mut fabric, "a3", &error).source, v4(station(9)));
    change(&mut fabric, |objects| bind(objects, "a3", station(10)));
    assert_eq!(send(&mut fabric, "a3", &error).source, v4(station(10)));
    let (_, frame) = {
        fabric.send("a3", &error);
        fabric.outside.remove(0)
    };
    assert_eq!(frame[42 + 16..42 + 20], station(9).v4);
}

#[test]
fn an_error_about_a_packet_to_another_vpc_of_the_same_host_reaches_its_sender() {
    let mut fabric = outside(|objects| {
        bind(objects, "a1", station(9));
        bind(objects, "r1", station(20));
    });
    // The last hop of the second router.
    let out = fabric.send("a1", &udp_ttl(A1, station(20), ROUTER, (7, 53), b"x", 2));
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    let seen = read(&out[0].frame);
    assert_eq!((out[0].port.as_str(), out[0].frame[34]), ("a1", 11));
    assert_eq!((seen.source, seen.destination), (v4(station(20)), v4(A1)));
    assert_eq!(out[0].frame[42 + 12..42 + 16], A1.v4);
    assert!(fabric.outside.is_empty());
}

#[test]
fn a_gateway_that_gets_another_address_uses_it_for_flows_that_go_on() {
    let mut fabric = outside(gateway);
    let question = udp(A2, FAR, ROUTER, (7000, 53), b"x");
    assert_eq!(send(&mut fabric, "a2", &question).source, v4(station(5)));
    change(&mut fabric, |objects| {
        objects.nat_gateways[0].addresses = texts(station(6)).into();
    });
    kept_in(&mut fabric, "a2", &question, DropReason::TranslationGone);
    let seen = send(&mut fabric, "a2", &question);
    assert_eq!((seen.source, seen.source_port), (v4(station(6)), 7000));
    let back = udp(FAR, held(6), H1, (53, 7000), b"y");
    assert_eq!(arrive(&mut fabric, &back).0, "a2");
}

#[test]
fn what_is_too_long_or_has_travelled_too_far_is_reported_at_both_ends() {
    let mut fabric = outside(|objects| {
        gateway(objects);
        objects.external_networks[0].mtu = 1000;
    });
    let df = |from: End, to: End, mac, ports, len: usize| {
        let mut frame = udp(from, to, mac, ports, &vec![1; len]);
        frame[20] |= 0x40;
        mend_ipv4(&mut frame, 14);
        frame
    };
    let may_be_split = |mut frame: Vec<u8>| {
        frame[20] &= !0x40;
        mend_ipv4(&mut frame, 14);
        frame
    };
    send(&mut fabric, "a2", &udp(A2, FAR, ROUTER, (7000, 53), b"x"));
    for (name, end) in [("a1", A1), ("a2", A2)] {
        let out = fabric.send(name, &df(end, FAR, ROUTER, (7000, 53), 1200));
        assert_eq!(out.len(), 1, "{name} {:?}", fabric.all_drops());
        let seen = read(&out[0].frame);
        assert_eq!(out[0].port, name);
        assert_eq!(out[0].frame[34..36], [3, 4]);
        assert_eq!(out[0].frame[40..42], 1000u16.to_be_bytes());
        assert_eq!(seen.destination, v4(end));
        let out = fabric.send(name, &udp_ttl(end, FAR, ROUTER, (7000, 53), b"x", 1));
        assert_eq!((out[0].port.as_str(), out[0].frame[34]), (name, 11));
    }
    // One hop further, the gateway's host is the one that reports.
    let out = fabric.send("a2", &udp_ttl(A2, FAR, ROUTER, (7000, 53), b"x", 2));
    assert_eq!((out[0].port.as_str(), out[0].frame[34]), ("a2", 11));
    // Without DF it goes in fragments.
    fabric.outside.clear();
    let long = may_be_split(udp(A2, FAR, ROUTER, (7000, 53), &[1; 1200]));
    assert_eq!(fabric.send("a2", &long), []);
    assert_eq!(fabric.outside.len(), 2);
    // From outside, towards a port whose device is narrow.
    change(&mut fabric, |objects| bind(objects, "a3", station(9)));
    fabric.set_device_mtu("a3", Some(600));
    fabric.outside.clear();
    let long = df(FAR, held(9), H1, (99, 80), 800);
    assert_eq!(fabric.send_from_uplink("h1", 1, &long), []);
    let seen = left(&mut fabric);
    assert_eq!((seen.source, seen.destination), (v4(station(9)), v4(FAR)));
    let last = udp_ttl(FAR, held(9), H1, (99, 80), b"x", 1);
    assert_eq!(fabric.send_from_uplink("h1", 1, &last), []);
    assert_eq!(left(&mut fabric).source, v4(station(9)));
}

#[test]
fn arp_and_neighbour_discovery_are_answered_for_what_is_held_and_nothing_else() {
    let mut fabric = outside(|objects| bind(objects, "a2", station(9)));
    let arp = |target: [u8; 4], sender: [u8; 4]| {
        let mut frame = vec![0xff; 6];
        frame.extend(NEIGHBOR.mac);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(NEIGHBOR.mac);
        frame.extend(sender);
        frame.extend([0; 6]);
        frame.extend(target);
        frame
    };
    assert_eq!(
        fabric.send_from_uplink("h1", 1, &arp(station(9).v4, NEIGHBOR.v4)),
        []
    );
    let (_, reply) = fabric.outside.remove(0);
    assert_eq!((&reply[..6], &reply[6..12]), (&NEIGHBOR.mac[..], &H1[..]));
    assert_eq!(reply[20..22], [0, 2]);
    assert_eq!(
        (&reply[22..28], &reply[28..32]),
        (&H1[..], &station(9).v4[..])
    );
    assert_eq!(
        (&reply[32..38], &reply[38..42]),
        (&NEIGHBOR.mac[..], &NEIGHBOR.v4[..])
    );
    // A probe is answered too (RFC 5227 §2.1.1).
    fabric.send_from_uplink("h1", 1, &arp(station(9).v4, [0; 4]));
    assert_eq!(fabric.outside.len(), 1);
    fabric.outside.clear();
    refused(
        &mut fabric,
        &arp(station(8).v4, NEIGHBOR.v4),
        DropReason::ArpUnanswered,
    );
    assert!(fabric.outside.is_empty());
    // A stranger who claims the address is told whose it is.
    refused(
        &mut fabric,
        &arp(NEIGHBOR.v4, station(9).v4),
        DropReason::ExternalSpoofed,
    );
    let (_, defence) = fabric.outside.remove(0);
    assert_eq!(
        (&defence[22..28], &defence[28..32]),
        (&H1[..], &station(9).v4[..])
    );
    assert_eq!(defence[38..42], station(9).v4);
}

#[test]
fn a_new_address_is_announced_and_a_gone_one_is_not() {
    let mut fabric = outside(|_| {});
    change(&mut fabric, |objects| bind(objects, "a1", station(9)));
    let announced = |fabric: &mut Fabric| {
        let frames = std::mem::take(&mut fabric.outside);
        let is_announcement = |frame: &[u8]| match frame[12..14] {
            [8, 6] => frame[28..32] == frame[38..42],
            _ => frame[54] == 136,
        };
        frames
            .iter()
            .filter(|(_, frame)| is_announcement(frame))
            .count()
    };
    let mut counts = Vec::new();
    for _ in 0..5 {
        fabric.advance(1000);
        fabric.carry();
        counts.push(announced(&mut fabric));
    }
    assert_eq!(counts, [2, 2, 2, 0, 0]);
    // It was elsewhere for less time than passes between two looks, and whoever had it then has announced it.
    change(&mut fabric, |objects| objects.elastic_ips.clear());
    change(&mut fabric, |objects| bind(objects, "a1", station(9)));
    fabric.advance(100);
    fabric.carry();
    assert_eq!(announced(&mut fabric), 2);
    change(&mut fabric, |objects| objects.elastic_ips.clear());
    fabric.advance(1000);
    fabric.carry();
    assert_eq!(announced(&mut fabric), 0);
}

#[test]
fn spoofed_and_foreign_frames_from_outside_are_dropped_by_name() {
    let mut fabric = outside(|objects| {
        gateway(objects);
        bind(objects, "a1", station(9));
    });
    let cases = [
        (
            udp(station(9), held(5), H1, (1, 2), b"x"),
            DropReason::ExternalSpoofed,
        ),
        (
            udp(FAR, held(6), H1, (1, 2), b"x"),
            DropReason::ExternalUnheld,
        ),
        (udp(FAR, A1, H1, (1, 2), b"x"), DropReason::ExternalUnheld),
        (udp(FAR, held(9), H2, (1, 2), b"x"), DropReason::UnknownMac),
        (
            tcp(FAR, held(5), H1, (1, 2), "S", (1, 0), 0),
            DropReason::NatUnmapped,
        ),
    ];
    for (frame, reason) in cases {
        refused(&mut fabric, &frame, reason);
    }
    // Groups know ports by their addresses: nobody outside passes for one.
    let inside = udp(A3, held(9), H1, (2, 1), b"x");
    refused(&mut fabric, &inside, DropReason::ExternalSpoofed);
    let vlan = |vlan: u16| {
        let mut frame = udp(FAR, held(9), H1, (1, 2), b"x");
        let tag = [0x81, 0, (vlan >> 8) as u8, vlan as u8];
        frame.splice(12..12, tag);
        frame
    };
    assert_eq!(fabric.send_from_uplink("h1", 1, &vlan(7)), []);
    assert_eq!(arrive(&mut fabric, &vlan(0)).0, "a1");
}

#[test]
fn a_network_on_a_vlan_is_tagged_both_ways() {
    let mut fabric = outside(|objects| {
        objects.external_networks[0].vlan = 321;
        bind(objects, "a2", station(9));
    });
    let tag = [0x81, 0, 1, 65];
    for _ in 0..3 {
        fabric.outside.clear();
        assert_eq!(fabric.send("a2", &udp(A2, FAR, ROUTER, (7, 53), b"x")), []);
        let (_, mut frame) = fabric.outside.remove(0);
        assert_eq!(frame.drain(12..16).collect::<Vec<_>>(), tag);
        assert_eq!(read(&frame).source, v4(station(9)));
        let mut back = udp(FAR, held(9), H1, (53, 7), b"x");
        back.splice(12..12, tag);
        assert_eq!(arrive(&mut fabric, &back).0, "a2");
    }
    // Untagged, it is another network.
    let plain = udp(FAR, held(9), H1, (53, 7), b"x");
    assert_eq!(fabric.send_from_uplink("h1", 1, &plain), []);
}

/// One that has the same port as another, to the same destination.
#[test]
fn a_trace_of_a_packet_whose_port_is_taken_outside_says_that_it_leaves() {
    let mut fabric = outside(gateway);
    send(&mut fabric, "a1", &udp(A1, FAR, ROUTER, (7000, 53), b"x"));
    let (host, index) = fabric.find_port("a3").unwrap();
    let frame = udp(A3, FAR, ROUTER, (7000, 53), b"x");
    let seen = trace(fabric.hosts[&host].view(), index, &frame);
    assert!(matches!(seen.outcome, Outcome::To { .. }), "{seen:?}");
    let seen = send(&mut fabric, "a3", &frame);
    assert_ne!(seen.source_port, 7000);
}

#[test]
fn a_trace_of_a_frame_from_outside_says_what_becomes_of_it() {
    let mut fabric = outside(|objects| {
        objects.external_networks[0].vlan = 321;
        bind(objects, "a2", station(9));
    });
    let tagged = |mut frame: Vec<u8>, vlan: [u8; 2]| {
        frame.splice(12..12, [0x81, 0, vlan[0], vlan[1]]);
        frame
    };
    let good = udp(FAR, held(9), H1, (53, 7), b"x");
    let to_others = udp(FAR, held(6), H2, (53, 7), b"x");
    let cases = [
        (tagged(good.clone(), [1, 65]), None),
        // Untagged, or of another VLAN, it is of another network.
        (tagged(good.clone(), [0, 7]), Some(DropReason::OuterHeader)),
        (good, Some(DropReason::OuterHeader)),
        (tagged(to_others, [1, 65]), Some(DropReason::UnknownMac)),
    ];
    for (frame, reason) in cases {
        let seen =
            weft_dataplane::pipeline::trace::trace_from_uplink(fabric.hosts["h1"].view(), &frame);
        let Some(reason) = reason else {
            assert!(matches!(seen.outcome, Outcome::To { .. }), "{seen:?}");
            assert_eq!(arrive(&mut fabric, &frame).0, "a2");
            continue;
        };
        assert_eq!(seen.outcome, Outcome::Drop(reason));
        refused(&mut fabric, &frame, reason);
    }
}

#[test]
fn a_next_hop_with_another_mac_is_followed_and_one_that_is_silent_is_forgotten() {
    let mut fabric = outside(gateway);
    let question = udp(A2, FAR, ROUTER, (7000, 53), b"x");
    assert_eq!(send(&mut fabric, "a2", &question).dst, GATEWAY.mac);
    assert_eq!(send(&mut fabric, "a2", &question).dst, GATEWAY.mac);
    let mut moved = vec![0xff; 6];
    let mac = [0x0a, 9, 9, 9, 9, 9];
    moved.extend(mac);
    moved.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    moved.extend(mac);
    moved.extend(GATEWAY.v4);
    moved.extend([0; 6]);
    moved.extend(GATEWAY.v4);
    assert_eq!(fabric.send_from_uplink("h1", 1, &moved), []);
    for _ in 0..2 {
        assert_eq!(send(&mut fabric, "a2", &question).dst, mac);
    }
    for _ in 0..40 {
        fabric.advance(1000);
    }
    kept_in(&mut fabric, "a2", &question, DropReason::ExternalUnresolved);
    meet(&mut fabric);
    assert_eq!(send(&mut fabric, "a2", &question).dst, GATEWAY.mac);
}

#[test]
fn a_gateway_out_of_ports_says_so() {
    let mut fabric = outside(gateway);
    let host = &fabric.hosts["h1"];
    let capacity = host.shared.sessions.statistics().capacity;
    for i in 0..capacity {
        let inside = weft_dataplane::session::mappings::Inside {
            gateway: 0,
            protocol: 17,
            address: address_word(IpAddr::from([10, 9, (i >> 8) as u8, i as u8])),
            port: 1,
        };
        let pool = weft_dataplane::session::mappings::Pool {
            address: address_word(v4(station(5))),
            number: 0,
        };
        let mappings = host.shared.sessions.mappings();
        let offer = (&[pool][..], Budget::UNLIMITED);
        mappings.map(&inside, offer, |_, _| false).unwrap();
    }
    let frame = udp(A2, FAR, ROUTER, (7000, 53), b"x");
    kept_in(&mut fabric, "a2", &frame, DropReason::NatTableFull);
}

#[test]
fn a_trace_shows_both_identities() {
    let mut fabric = outside(gateway);
    let frame = udp(A1, FAR, ROUTER, (7000, 53), b"x");
    let traced = |fabric: &Fabric| {
        let (host, index) = fabric.find_port("a1").unwrap();
        let host = &fabric.hosts[&host];
        let view = View {
            snapshot: host.pipeline.snapshot(),
            shared: &host.shared,
            fragment: true,
        };
        trace(view, index, &frame)
    };
    for _ in 0..2 {
        let seen = traced(&fabric);
        let text = format!("{:?}", seen.steps);
        assert!(text.contains("NAT gateway nat"), "{text}");
        assert!(text.contains("10.0.1.11 is 203.0.113.5"), "{text}");
        assert!(matches!(
            seen.outcome,
            Outcome::To {
                neighbor: Some(_),
                ..
            }
        ));
        send(&mut fabric, "a1", &frame);
    }
}

/// h1 and h3 are gateway hosts, in this order; a2 is on h2, a3 on h3 itself.
pub fn twofold() -> Fabric {
    let mut fabric = fabric(|objects| {
        objects.hosts.push(weft_proto::v1::Host {
            id: "h3".into(),
            vteps: vec!["192.0.2.3".into(), "2001:db8:ffff::3".into()],
            ..weft_proto::v1::Host::default()
        });
        port(objects, "a3").host = "h3".into();
    });
    for (host, mac) in [("h1", H1), ("h3", H3)] {
        let link = ExternalLink {
            physical_network: "physnet1".into(),
            uplink: 1,
            mac: Mac::from_bytes(mac),
            mtu: 1500,
            has_tunnels: false,
        };
        fabric.externals.insert(host.into(), vec![link]);
    }
    change(&mut fabric, |objects| {
        network(objects);
        gateway(objects);
        bind(objects, "b2", station(9));
        objects.external_networks[0].gateway_hosts = vec!["h1".into(), "h3".into()];
        for host in &mut objects.hosts {
            if host.id != "h2" {
                host.physical_networks = vec!["physnet1".into()];
            }
        }
    });
    // Both have just started, and have nothing to tell each other.
    fabric.live(2000).unwrap();
    answer(&mut fabric);
    fabric.outside.clear();
    fabric
}

pub const H3: [u8; 6] = [6, 0, 0, 0, 1, 3];

/// Sends a frame from a port and answers who has sent it onto the segment, and what it was.
#[track_caller]
pub fn leaves_by(fabric: &mut Fabric, port: &str, frame: &[u8]) -> (String, Seen) {
    fabric.outside.clear();
    assert_eq!(fabric.send(port, frame), []);
    assert_eq!(fabric.outside.len(), 1, "{:?}", fabric.all_drops());
    let (host, frame) = fabric.outside.remove(0);
    (host, read(&frame))
}

pub fn at(mut end: End, mac: [u8; 6]) -> End {
    end.mac = mac;
    end
}

#[test]
fn the_next_gateway_host_takes_over_connections_and_mappings_and_gives_them_back() {
    let mut fabric = twofold();
    // A connection, a datagram flow and a ping through the gateway, and one by the elastic IP.
    let (host, seen) = leaves_by(
        &mut fabric,
        "a2",
        &tcp(A2, FAR, ROUTER, (7000, 80), "S", (100, 0), 0),
    );
    assert_eq!(host, "h1");
    let port = seen.source_port;
    let syn_ack = tcp(FAR, held(5), H1, (80, port), "SA", (500, 101), 0);
    assert_eq!(arrive(&mut fabric, &syn_ack).0, "a2");
    let established = tcp(A2, FAR, ROUTER, (7000, 80), "A", (101, 501), 0);
    leaves_by(&mut fabric, "a2", &established);
    // The same inside port of another guest gets another one outside: a mapping that nobody could guess.
    let flow = udp(A1, FAR, ROUTER, (7000, 53), b"x");
    let other = udp(A2, FAR, ROUTER, (7000, 53), b"x");
    let ports = [
        leaves_by(&mut fabric, "a1", &flow).1.source_port,
        leaves_by(&mut fabric, "a2", &other).1.source_port,
    ];
    assert_ne!(ports[0], ports[1]);
    let (_, seen) = leaves_by(&mut fabric, "b2", &udp(B2, FAR, ROUTER, (9, 53), b"x"));
    assert_eq!(seen.source, v4(station(9)));
    fabric.live(200).unwrap();

    fabric.dead.insert("h1".into());
    let mut silence = 0;
    let taken = loop {
        fabric.outside.clear();
        fabric.send("a2", &established);
        if let Some((host, frame)) = fabric.outside.iter().find(|(_, frame)| frame[23] == 6) {
            break (host.clone(), read(frame));
        }
        fabric.live(100).unwrap();
        answer(&mut fabric);
        silence += 100;
        assert!(silence < 1000, "{:?}", fabric.all_drops());
    };
    assert_eq!((taken.0.as_str(), taken.1.source_port), ("h3", port));
    // The new one announces the addresses (both of the gateway, both elastic IPs), and answers for them.
    fabric.outside.clear();
    fabric.live(1500).unwrap();
    let announced = fabric.outside.iter().filter(|(host, frame)| {
        host == "h3" && (frame[12..14] == [8, 6] && frame[28..32] == frame[38..42])
    });
    assert!(announced.count() >= 2);
    // What comes from outside first finds its way in, in mid-stream.
    let data = tcp(
        at(FAR, GATEWAY.mac),
        held(5),
        H3,
        (80, port),
        "A",
        (501, 101),
        700,
    );
    for _ in 0..3 {
        let out = fabric.send_from_uplink("h3", 1, &data);
        assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
        assert_eq!(out[0].port, "a2");
    }
    let reply = udp(FAR, held(5), H3, (53, ports[1]), b"y");
    let out = fabric.send_from_uplink("h3", 1, &reply);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    assert_eq!(
        (out[0].port.as_str(), read(&out[0].frame).destination_port),
        ("a2", 7000)
    );
    let (host, seen) = leaves_by(&mut fabric, "b2", &udp(B2, FAR, ROUTER, (9, 53), b"x"));
    assert_eq!((host.as_str(), seen.source), ("h3", v4(station(9))));
    // A new flow gets no port that is another's.
    let fresh = udp(B2, FAR, ROUTER, (ports[1], 54), b"x");
    change(&mut fabric, |objects| objects.elastic_ips.clear());
    let (_, seen) = leaves_by(&mut fabric, "b2", &fresh);
    assert_ne!(seen.source_port, ports[1]);
    let fresh = (seen.source_port, fresh);

    // The first comes back, with nothing. It is used again once it knows what the other knows.
    fabric.restart("h1", crate::topology::LIMITS).unwrap();
    assert_eq!(leaves_by(&mut fabric, "a2", &established).0, "h3");
    fabric.live(100).unwrap();
    assert_eq!(leaves_by(&mut fabric, "a2", &established).0, "h3");
    fabric.live(900).unwrap();
    answer(&mut fabric);
    let (host, seen) = leaves_by(&mut fabric, "a2", &established);
    assert_eq!((host.as_str(), seen.source_port), ("h1", port));
    let (host, seen) = leaves_by(&mut fabric, "b2", &fresh.1);
    assert_eq!((host.as_str(), seen.source_port), ("h1", fresh.0));
    let reply = udp(FAR, held(5), H1, (53, ports[1]), b"y");
    let (receiver, seen) = arrive(&mut fabric, &reply);
    assert_eq!((receiver.as_str(), seen.destination_port), ("a2", 7000));
    for host in fabric.hosts.values() {
        assert_eq!(host.unaccounted(), 0, "{}", host.id);
    }
}

#[test]
fn a_session_is_told_of_at_once_whichever_worker_made_it() {
    let mut fabric = twofold();
    fabric.add_worker();
    for worker in [0, 1] {
        fabric.worker = worker;
        let frame = udp(A2, FAR, ROUTER, (7000 + worker as u16, 53), b"x");
        assert_eq!(leaves_by(&mut fabric, "a2", &frame).0, "h1");
        // No time has passed.
        let mappings = fabric.hosts["h3"].shared.sessions.mappings();
        assert_eq!(mappings.count() as usize, worker + 1);
    }
}

#[test]
fn a_host_that_gets_packets_before_it_takes_over_keeps_what_it_was_told_of() {
    let mut fabric = twofold();
    let flow = udp(A2, FAR, ROUTER, (7000, 53), b"x");
    let (host, seen) = leaves_by(&mut fabric, "a2", &flow);
    assert_eq!(host, "h1");
    let mut objects = fabric.state().to_objects();
    objects.external_networks[0].gateway_hosts.reverse();
    let state = weft_proto::state::State::from_objects(objects).unwrap();
    fabric.set_at(state.clone(), |host| host == "h2").unwrap();
    kept_in(&mut fabric, "a2", &flow, DropReason::NoTranslator);
    fabric.set(state).unwrap();
    // From outside first, where nobody else than the session admits it.
    let reply = udp(FAR, held(5), H3, (53, seen.source_port), b"y");
    let out = fabric.send_from_uplink("h3", 1, &reply);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    assert_eq!(
        (out[0].port.as_str(), read(&out[0].frame).destination_port),
        ("a2", 7000)
    );
}

/// Waits until h3 is the gateway host in use, and the stations of the segment have answered it.
#[track_caller]
fn take_over(fabric: &mut Fabric) {
    fabric.dead.insert("h1".into());
    for _ in 0..6 {
        fabric.live(100).unwrap();
        answer(fabric);
    }
    fabric.outside.clear();
}

/// Such a port's host has a session of its own, with the packets as the port knows them.
#[test]
fn connections_of_a_port_on_the_next_gateway_host_itself_outlive_both_changes() {
    let mut fabric = twofold();
    change(&mut fabric, |objects| {
        objects.nat_gateways[0].port_forwards = vec![PortForward {
            protocol: "tcp".into(),
            address: texts(station(5))[0].clone(),
            port_min: 2222,
            port: "a3".into(),
            to_port_min: 22,
            ..PortForward::default()
        }];
    });
    let syn = tcp(A3, FAR, ROUTER, (7000, 80), "S", (100, 0), 0);
    let (host, seen) = leaves_by(&mut fabric, "a3", &syn);
    assert_eq!(host, "h1");
    let port = seen.source_port;
    let syn_ack = tcp(FAR, held(5), H1, (80, port), "SA", (500, 101), 0);
    assert_eq!(arrive(&mut fabric, &syn_ack).0, "a3");
    let established = tcp(A3, FAR, ROUTER, (7000, 80), "A", (101, 501), 0);
    leaves_by(&mut fabric, "a3", &established);
    let flow = udp(A3, FAR, ROUTER, (7000, 53), b"x");
    let (_, seen) = leaves_by(&mut fabric, "a3", &flow);
    let udp_port = seen.source_port;
    // What was opened from outside has its own session too.
    let syn = tcp(FAR, held(5), H1, (9000, 2222), "S", (700, 0), 0);
    assert_eq!(arrive(&mut fabric, &syn).0, "a3");
    let syn_ack = tcp(A3, FAR, ROUTER, (22, 9000), "SA", (800, 701), 0);
    let (_, seen) = leaves_by(&mut fabric, "a3", &syn_ack);
    assert_eq!(seen.source_port, 2222);
    let ack = tcp(FAR, held(5), H1, (9000, 2222), "A", (701, 801), 0);
    assert_eq!(arrive(&mut fabric, &ack).0, "a3");
    // Both ways go on as before, though the other has told of them.
    fabric.live(300).unwrap();
    fabric.outside.clear();
    assert_eq!(leaves_by(&mut fabric, "a3", &established).0, "h1");
    let reply = udp(FAR, held(5), H1, (53, udp_port), b"y");
    assert_eq!(arrive(&mut fabric, &reply).0, "a3");

    take_over(&mut fabric);
    // What comes from outside first finds its way: the port has nothing to say, and would wait for ever.
    let far = at(FAR, GATEWAY.mac);
    let data = |mac| {
        [
            tcp(far, held(5), mac, (80, port), "A", (501, 101), 700),
            udp(far, held(5), mac, (53, udp_port), b"y"),
            tcp(far, held(5), mac, (9000, 2222), "A", (701, 801), 100),
        ]
    };
    for frame in data(H3) {
        let out = fabric.send_from_uplink("h3", 1, &frame);
        assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
        assert_eq!(out[0].port, "a3");
    }
    let answers = [
        (established, port),
        (flow, udp_port),
        (tcp(A3, FAR, ROUTER, (22, 9000), "A", (801, 801), 0), 2222),
    ];
    for (frame, wanted) in &answers {
        let (host, seen) = leaves_by(&mut fabric, "a3", frame);
        assert_eq!((host.as_str(), seen.source_port), ("h3", *wanted));
    }

    fabric.restart("h1", crate::topology::LIMITS).unwrap();
    fabric.live(1000).unwrap();
    answer(&mut fabric);
    for (frame, wanted) in &answers {
        let (host, seen) = leaves_by(&mut fabric, "a3", frame);
        assert_eq!((host.as_str(), seen.source_port), ("h1", *wanted));
    }
    for frame in data(H1) {
        assert_eq!(arrive(&mut fabric, &frame).0, "a3");
    }
    let drops = fabric.all_drops();
    assert!(
        !drops.contains_key(&DropReason::TranslationGone),
        "{drops:?}"
    );
    for host in fabric.hosts.values() {
        assert_eq!(host.unaccounted(), 0, "{}", host.id);
    }
}
