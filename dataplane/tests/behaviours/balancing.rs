//! Load balancers: a client's own host chooses a member, a session keeps it, and the client is told when there is none.

use std::collections::BTreeMap;

use weft_dataplane::packet::DropReason;
use weft_dataplane::pipeline::checks::Asked;
use weft_dataplane::pipeline::trace::trace;
use weft_fabric::Fabric;
use weft_proto::v1;

use crate::fragments::pieces;
use crate::frames::{A1, A2, A3, B1, B2, End, arp, echo, echo6, read, solicit, tcp, udp, udp6};
use crate::topology::{ROUTER, change, fabric, group, ingress, port};
use crate::translation::{dropped, only, unreachable};

/// The load balancer's addresses in subnet blue-a.
pub const VIP: End = End {
    mac: ROUTER,
    v4: [10, 0, 1, 100],
    v6: [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
};

pub fn member(port: &str, to: u32) -> v1::Member {
    v1::Member {
        port: port.into(),
        to_port_min: to,
        ..v1::Member::default()
    }
}

pub fn listener(protocol: &str, port: u32, members: Vec<v1::Member>) -> v1::Listener {
    v1::Listener {
        protocol: protocol.into(),
        port_min: port,
        members,
        ..v1::Listener::default()
    }
}

/// The base topology, with a load balancer: port 80 of TCP and UDP is served by a2 and b2 on h2, at 8080.
fn balancing() -> Fabric {
    let members = || vec![member("a2", 8080), member("b2", 8080)];
    of(vec![
        listener("tcp", 80, members()),
        listener("udp", 80, members()),
    ])
}

pub fn of(listeners: Vec<v1::Listener>) -> Fabric {
    fabric(|objects| {
        objects.load_balancers.push(v1::LoadBalancer {
            id: "web".into(),
            vpc: "blue".into(),
            addresses: vec!["10.0.1.100".into(), "fd00:1::100".into()],
            listeners,
            ..v1::LoadBalancer::default()
        });
    })
}

/// Changes the members of the first listener.
fn members(fabric: &mut Fabric, to: impl FnOnce(&mut Vec<v1::Member>)) {
    change(fabric, |objects| {
        to(&mut objects.load_balancers[0].listeners[0].members);
    });
}

pub fn by_name(name: &str) -> End {
    match name {
        "a1" => A1,
        "a2" => A2,
        "a3" => A3,
        "b1" => B1,
        "b2" => B2,
        other => panic!("no end of {other}"),
    }
}

/// Where the flow of a client from a source port goes.
pub fn goes_to(fabric: &mut Fabric, client: (End, &str), source_port: u16) -> String {
    let frame = udp(client.0, VIP, ROUTER, (source_port, 80), b"q");
    only(fabric, client.1, &frame).0
}

#[test]
fn the_gateway_answers_for_the_address_in_its_subnet() {
    let mut fabric = balancing();
    let question = arp(A1.mac, 1, (A1.mac, A1.v4), ([0; 6], VIP.v4));
    let answer = fabric.send("a1", &question).remove(0);
    let mut expected = arp(ROUTER, 2, (ROUTER, VIP.v4), (A1.mac, A1.v4));
    expected[..6].copy_from_slice(&A1.mac);
    assert_eq!(answer.frame[..42], expected[..42]);
    let question = solicit(A1, A1.v6, VIP.v6);
    let answer = fabric.send("a1", &question).remove(0);
    assert_eq!(
        (answer.port.as_str(), &answer.frame[6..12]),
        ("a1", &ROUTER[..])
    );
    // Solicited and override, but no router: it is no way out.
    assert_eq!((answer.frame[54], answer.frame[58]), (136, 0x60));
    // Not on the link of b1, nor for another VPC.
    let question = arp(B1.mac, 1, (B1.mac, B1.v4), ([0; 6], VIP.v4));
    dropped(&mut fabric, "b1", &question, DropReason::ArpUnanswered);
    let question = arp(A1.mac, 1, (A1.mac, A1.v4), ([0; 6], VIP.v4));
    dropped(&mut fabric, "r1", &question, DropReason::ArpUnanswered);
}

#[test]
fn a_flow_goes_to_one_member_and_comes_back_from_the_address() {
    for make in [udp, udp6] {
        for (client, name) in [(A1, "a1"), (B1, "b1"), (B2, "b2"), (A2, "a2")] {
            let mut fabric = balancing();
            let v6 = make(A1, A2, A2.mac, (7, 53), b"x")[12] == 0x86;
            let address =
                |end: End| -> std::net::IpAddr { if v6 { end.v6.into() } else { end.v4.into() } };
            let mut seen_members = BTreeMap::new();
            for source_port in 1000..1060 {
                let mut first = None;
                for round in 0..3u8 {
                    let question = make(client, VIP, ROUTER, (source_port, 80), &[round]);
                    let (to, seen, _) = only(&mut fabric, name, &question);
                    let member = by_name(&to);
                    *seen_members.entry(to.clone()).or_insert(0) += 1;
                    assert_eq!(*first.get_or_insert(to.clone()), to);
                    // The member sees the client, unless it is the client itself.
                    let from = if to == name { VIP } else { client };
                    assert_eq!(
                        (
                            seen.source,
                            seen.destination,
                            seen.source_port,
                            seen.destination_port
                        ),
                        (address(from), address(member), source_port, 8080)
                    );
                    assert_eq!(
                        (seen.dst, seen.ttl, &seen.payload[..]),
                        (member.mac, 63, &[round][..])
                    );
                    let next = match (from.mac == VIP.mac, member.v4[2] == client.v4[2]) {
                        (false, true) => client.mac,
                        _ => ROUTER,
                    };
                    let answer = make(member, from, next, (8080, source_port), &[round]);
                    let (back, seen, _) = only(&mut fabric, &to, &answer);
                    assert_eq!(back, name);
                    assert_eq!(
                        (
                            seen.source,
                            seen.destination,
                            seen.source_port,
                            seen.destination_port
                        ),
                        (address(VIP), address(client), 80, source_port)
                    );
                }
            }
            assert_eq!(seen_members.len(), 2, "{seen_members:?}");
            let host = &fabric.hosts[if name.ends_with('1') { "h1" } else { "h2" }];
            assert!(
                host.pipeline.counters().fast.get() > 60,
                "what a session knows is fast"
            );
        }
    }
}

#[test]
fn hosts_choose_alike_and_a_member_more_or_less_moves_few() {
    // The same client on two hosts: its flows keep their members, also where no session knows them.
    let mut here = balancing();
    let mut there = balancing();
    change(&mut there, |objects| port(objects, "a1").host = "h2".into());
    for source_port in 1..400 {
        assert_eq!(
            goes_to(&mut here, (A1, "a1"), source_port),
            goes_to(&mut there, (A1, "a1"), source_port)
        );
    }
    let members = |count: usize| {
        let names = ["a2", "b2", "a3", "b1"];
        names[..count].iter().map(|name| member(name, 80)).collect()
    };
    let mut four = of(vec![listener("udp", 80, members(4))]);
    let mut three = of(vec![listener("udp", 80, members(3))]);
    let (mut moved, mut of_fourth) = (0, 0);
    for source_port in 1..2000 {
        let before = goes_to(&mut four, (A1, "a1"), source_port);
        let after = goes_to(&mut three, (A1, "a1"), source_port);
        of_fourth += i32::from(before == "b1");
        moved += i32::from(before != after && before != "b1");
    }
    assert!((400..600).contains(&of_fourth), "{of_fourth}");
    assert!(moved < 80, "{moved}");
}

#[test]
fn weights_affinity_and_turns() {
    let weighted = |weight| v1::Member {
        weight,
        ..member("b2", 0)
    };
    let mut fabric = of(vec![listener(
        "udp",
        80,
        vec![member("a2", 0), weighted(3)],
    )]);
    let heavy = (1..1000).filter(|port| goes_to(&mut fabric, (A1, "a1"), *port) == "b2");
    let heavy = heavy.count();
    assert!((690..810).contains(&heavy), "{heavy}");

    let by_source = v1::Listener {
        affinity: "source".into(),
        ..listener("udp", 80, vec![member("a2", 0), member("b2", 0)])
    };
    let mut fabric = of(vec![by_source]);
    for client in [(A1, "a1"), (B1, "b1"), (A3, "a3")] {
        let first = goes_to(&mut fabric, client, 1);
        assert!((2..200).all(|port| goes_to(&mut fabric, client, port) == first));
    }

    let in_turn = v1::Listener {
        algorithm: "round-robin".into(),
        ..listener("udp", 80, vec![member("a2", 0), weighted(2)])
    };
    let mut fabric = of(vec![in_turn]);
    let turns: Vec<String> = (1..10)
        .map(|port| goes_to(&mut fabric, (A1, "a1"), port))
        .collect();
    for three in turns.windows(3) {
        assert_eq!(
            three.iter().filter(|it| *it == "b2").count(),
            2,
            "{turns:?}"
        );
    }
    // A trace takes nobody's turn.
    let next = |fabric: &Fabric| {
        let frame = udp(A1, VIP, ROUTER, (77, 80), b"q");
        let (host, index) = fabric.find_port("a1").unwrap();
        trace(fabric.hosts[&host].view(), index, &frame).steps
    };
    assert_eq!(next(&fabric), next(&fabric));
}

#[test]
fn a_range_of_ports_keeps_its_order() {
    let range = v1::Listener {
        port_max: 8009,
        ..listener("udp", 8000, vec![member("a2", 9000)])
    };
    let mut fabric = of(vec![range]);
    for port in 8000..8010 {
        let frame = udp(A1, VIP, ROUTER, (5, port), b"q");
        let (_, seen, _) = only(&mut fabric, "a1", &frame);
        assert_eq!(seen.destination_port, port + 1000);
        // A session keeps it, whatever else changes in the VPC.
        change(&mut fabric, |objects| port_limits(objects, u64::from(port)));
        assert_eq!(
            only(&mut fabric, "a1", &frame).1.destination_port,
            port + 1000
        );
    }
    for port in [7999, 8010] {
        let frame = udp(A1, VIP, ROUTER, (5, port), b"q");
        dropped(&mut fabric, "a1", &frame, DropReason::NoListener);
    }
}

/// Something of the VPC that is no matter of the load balancer.
fn port_limits(objects: &mut v1::Objects, number: u64) {
    port(objects, "a3").hostname = format!("n{number}");
}

#[test]
fn pings_are_answered_while_a_member_takes_flows() {
    let mut fabric = balancing();
    for (client, name) in [(A1, "a1"), (B1, "b1")] {
        for frame in [
            echo(client, VIP, ROUTER, 9, b"ping"),
            echo6(client, VIP, ROUTER, 9, b"ping"),
        ] {
            let out = fabric.send(name, &frame);
            let seen = read(&out[0].frame);
            assert_eq!(
                (out[0].port.as_str(), &out[0].frame[6..12]),
                (name, &ROUTER[..])
            );
            let vips: [std::net::IpAddr; 2] = [VIP.v4.into(), VIP.v6.into()];
            assert!(vips.contains(&seen.source));
        }
    }
    change(&mut fabric, |objects| {
        for listener in &mut objects.load_balancers[0].listeners {
            listener
                .members
                .iter_mut()
                .for_each(|it| it.draining = true);
        }
    });
    let ping = echo(A1, VIP, ROUTER, 9, b"ping");
    dropped(&mut fabric, "a1", &ping, DropReason::NoMember);
}

/// Opens a connection and answers it; the name of its member.
pub fn connect(fabric: &mut Fabric, source_port: u16) -> String {
    let ports = (source_port, 80);
    let (to, ..) = only(fabric, "a1", &tcp(A1, VIP, ROUTER, ports, "S", (100, 0), 0));
    let (member, back) = (by_name(&to), if to == "a2" { A1.mac } else { ROUTER });
    let answer = tcp(member, A1, back, (8080, source_port), "SA", (900, 101), 0);
    assert_eq!(only(fabric, &to, &answer).0, "a1");
    let ack = tcp(A1, VIP, ROUTER, ports, "A", (101, 901), 0);
    assert_eq!(only(fabric, "a1", &ack).0, to);
    to
}

#[test]
fn a_draining_member_keeps_its_connections_and_gets_no_new_ones() {
    let mut fabric = balancing();
    let first = connect(&mut fabric, 1000);
    members(&mut fabric, |members| {
        let member = members.iter_mut().find(|it| it.port == first);
        member.unwrap().draining = true;
    });
    let data = tcp(A1, VIP, ROUTER, (1000, 80), "A", (101, 901), 9);
    assert_eq!(only(&mut fabric, "a1", &data).0, first);
    for source_port in 1001..1050 {
        assert_ne!(connect(&mut fabric, source_port), first);
    }
}

#[test]
fn a_client_is_told_by_a_reset_that_its_member_is_gone() {
    for drop_lost in [false, true] {
        let mut fabric = balancing();
        change(&mut fabric, |objects| {
            objects.load_balancers[0].listeners[0].drop_lost = drop_lost;
        });
        let first = connect(&mut fabric, 1000);
        members(&mut fabric, |members| members.retain(|it| it.port != first));
        let data = tcp(A1, VIP, ROUTER, (1000, 80), "A", (101, 901), 9);
        let member = by_name(&first);
        let answer = tcp(
            member,
            A1,
            if first == "a2" { A1.mac } else { ROUTER },
            (8080, 1000),
            "A",
            (901, 101),
            5,
        );
        if drop_lost {
            dropped(&mut fabric, "a1", &data, DropReason::MemberGone);
        } else {
            let (to, seen, frame) = only(&mut fabric, "a1", &data);
            assert_eq!(to, "a1");
            assert_eq!(fabric.all_drops()[&DropReason::MemberGone], 1);
            assert_eq!(
                (seen.source, seen.source_port, seen.destination_port),
                (VIP.v4.into(), 80, 1000)
            );
            assert_eq!(frame.len(), 54);
            // Its number is what the client has acknowledged (RFC 9293 3.10.7.1).
            assert_eq!(
                (&frame[38..42], frame[47]),
                (&901u32.to_be_bytes()[..], 0x04)
            );
        }
        dropped(&mut fabric, &first, &answer, DropReason::MemberGone);
        // A new connection of the same port goes to who is left.
        let syn = tcp(A1, VIP, ROUTER, (1000, 80), "S", (7000, 0), 0);
        assert_ne!(only(&mut fabric, "a1", &syn).0, first);
    }
}

#[test]
fn who_asks_again_gets_another_member() {
    let mut fabric = balancing();
    let syn = tcp(A1, VIP, ROUTER, (1000, 80), "S", (100, 0), 0);
    let (first, ..) = only(&mut fabric, "a1", &syn);
    members(&mut fabric, |members| members.retain(|it| it.port != first));
    assert_ne!(only(&mut fabric, "a1", &syn).0, first);
    // Of what is no connection the next packet is a new flow.
    let mut fabric = balancing();
    let frame = udp(A1, VIP, ROUTER, (5, 80), b"q");
    let (first, ..) = only(&mut fabric, "a1", &frame);
    change(&mut fabric, |objects| {
        objects.load_balancers[0].listeners[1]
            .members
            .retain(|it| it.port != first);
    });
    dropped(&mut fabric, "a1", &frame, DropReason::MemberGone);
    assert_ne!(only(&mut fabric, "a1", &frame).0, first);
}

#[test]
fn without_a_member_connections_are_refused() {
    let mut fabric = of(vec![listener("tcp", 80, vec![])]);
    for (frame, ack) in [
        (
            tcp(A1, VIP, ROUTER, (1000, 80), "S", (100, 0), 0),
            Some(101u32),
        ),
        (tcp(A1, VIP, ROUTER, (1001, 80), "A", (100, 55), 3), None),
    ] {
        let (to, seen, frame) = only(&mut fabric, "a1", &frame);
        assert_eq!((to.as_str(), seen.source), ("a1", VIP.v4.into()));
        match ack {
            Some(ack) => assert_eq!((&frame[42..46], frame[47]), (&ack.to_be_bytes()[..], 0x14)),
            None => assert_eq!(
                (&frame[38..42], frame[47]),
                (&55u32.to_be_bytes()[..], 0x04)
            ),
        }
    }
    assert_eq!(fabric.all_drops()[&DropReason::NoMember], 2);
    // Nobody answers a reset.
    let reset = tcp(A1, VIP, ROUTER, (1002, 80), "R", (100, 0), 0);
    let before = fabric.all_drops();
    assert!(fabric.send("a1", &reset).is_empty());
    assert_ne!(before, fabric.all_drops());
    let frame = udp(A1, VIP, ROUTER, (5, 80), b"q");
    dropped(&mut fabric, "a1", &frame, DropReason::NoListener);
}

#[test]
fn policy_sees_what_each_port_sees() {
    // The client may reach the address alone, the members are reached by the client alone.
    let only_vip = |fabric: &mut Fabric| {
        change(fabric, |objects| {
            group(objects, "open").rules = vec![
                v1::SecurityRule {
                    direction: "egress".into(),
                    remote_cidr: "10.0.1.100/32".into(),
                    ..v1::SecurityRule::default()
                },
                v1::SecurityRule {
                    remote_cidr: "10.0.1.11/32".into(),
                    ..ingress("udp", Some(8080))
                },
            ];
        });
    };
    let mut fabric = balancing();
    only_vip(&mut fabric);
    let question = udp(A1, VIP, ROUTER, (5, 80), b"q");
    let (to, ..) = only(&mut fabric, "a1", &question);
    let member = by_name(&to);
    let back = if to == "a2" { A1.mac } else { ROUTER };
    assert_eq!(
        only(&mut fabric, &to, &udp(member, A1, back, (8080, 5), b"a")).0,
        "a1"
    );
    let direct = udp(A1, A2, A2.mac, (6, 8080), b"q");
    dropped(&mut fabric, "a1", &direct, DropReason::GroupDenied);
    let other = udp(A3, VIP, ROUTER, (5, 80), b"q");
    dropped(&mut fabric, "a3", &other, DropReason::GroupDenied);
}

#[test]
fn pieces_follow_their_first_and_errors_reach_who_they_are_for() {
    let mut fabric = balancing();
    let whole = udp(A1, VIP, ROUTER, (5, 80), &[7; 2000]);
    let mut receivers = Vec::new();
    for piece in pieces(&whole, 3, 1024, None) {
        let (to, seen, _) = only(&mut fabric, "a1", &piece);
        assert_eq!(seen.source, std::net::IpAddr::from(A1.v4));
        receivers.push((to, seen.destination));
    }
    assert_eq!(receivers.len(), 2);
    assert_eq!(receivers[0], receivers[1]);
}

#[test]
fn a_member_moves_and_its_flows_stay() {
    let mut fabric = balancing();
    let first = connect(&mut fabric, 1000);
    change(&mut fabric, |objects| {
        port(objects, &first).host = "h1".into();
    });
    let data = tcp(A1, VIP, ROUTER, (1000, 80), "A", (101, 901), 9);
    assert_eq!(only(&mut fabric, "a1", &data).0, first);
    // With another address it is another member, and the old one is gone.
    change(&mut fabric, |objects| {
        let port = port(objects, &first);
        let subnet = port.addresses[0].rsplit_once('.').unwrap().0.to_owned();
        port.addresses[0] = format!("{subnet}.77");
    });
    let (to, ..) = only(&mut fabric, "a1", &data);
    assert_eq!(to, "a1");
}

#[test]
fn nobody_but_a_port_is_a_client_and_what_the_trace_says() {
    let mut fabric = balancing();
    let frame = udp(A1, VIP, ROUTER, (5, 80), b"q");
    let (host, index) = fabric.find_port("a1").unwrap();
    let steps = trace(fabric.hosts[&host].view(), index, &frame).steps;
    let (_, text) = steps
        .iter()
        .find(|(stage, _)| *stage == "load balancer")
        .unwrap();
    assert!(
        text.starts_with("web: 10.0.") && text.ends_with("port 8080, one of 2 members"),
        "{text}"
    );
    // Red has the same addresses and no load balancer.
    let mut red = frame.clone();
    red[0..6].copy_from_slice(&ROUTER);
    dropped(&mut fabric, "r1", &red, DropReason::NoPort);
    // Sent to a port's MAC it is that port's.
    let to_port = udp(A1, VIP, A2.mac, (5, 80), b"q");
    assert_eq!(only(&mut fabric, "a1", &to_port).0, "a2");
}

#[test]
fn a_member_reaches_itself_by_whichever_of_its_addresses() {
    let mut fabric = balancing();
    change(&mut fabric, |objects| {
        port(objects, "a2").addresses.push("10.0.1.77".into());
        objects.load_balancers[0].listeners[1].members = vec![v1::Member {
            address: "10.0.1.77".into(),
            ..v1::Member::default()
        }];
    });
    let question = udp(A2, VIP, ROUTER, (5, 80), b"q");
    let (to, seen, _) = only(&mut fabric, "a2", &question);
    assert_eq!((to.as_str(), seen.source), ("a2", VIP.v4.into()));
    change(&mut fabric, |objects| port_limits(objects, 1));
    assert_eq!(only(&mut fabric, "a2", &question).0, "a2");
}

/// Whatever else has the host compile everything anew, and whatever of a port changes but its addresses.
#[test]
fn tables_of_listeners_that_stay_are_not_made_again() {
    let mut fabric = balancing();
    let listeners = |fabric: &Fabric| {
        let snapshot = fabric.hosts["h1"].pipeline.snapshot();
        let mut vpcs = snapshot.vpcs.iter();
        let vpc = vpcs.find(|vpc| vpc.id == "blue").unwrap();
        let all = vpc.balancers.iter().map(|(address, balancer)| {
            let listeners = balancer.listeners.iter().map(std::sync::Arc::as_ptr);
            (*address, listeners.collect::<Vec<_>>())
        });
        all.collect::<BTreeMap<_, _>>()
    };
    let before = listeners(&fabric);
    change(&mut fabric, |objects| objects.subnets[0].mtu = 1400);
    assert_eq!(listeners(&fabric), before);
    change(&mut fabric, |objects| {
        port(objects, "a2").hostname = "other".into();
    });
    assert_eq!(listeners(&fabric), before);
    // One of the two listeners has one member less.
    members(&mut fabric, |members| drop(members.pop()));
    let after = listeners(&fabric);
    for (address, listeners) in &before {
        let same = listeners.iter().zip(&after[address]);
        assert_eq!(same.filter(|(a, b)| a == b).count(), 1);
    }
}

/// Says that these members do not serve, by their addresses.
pub fn down(fabric: &mut Fabric, listener: usize, addresses: &[&str]) {
    change(fabric, |objects| {
        let balancer = &mut objects.load_balancers[0];
        balancer.listeners[listener].health = Some(v1::HealthCheck {
            protocol: "tcp".into(),
            ..v1::HealthCheck::default()
        });
        let balancer = &objects.load_balancers[0];
        let listener = &balancer.listeners[listener];
        let health = addresses.iter().map(|address| {
            let at = (address.parse().unwrap(), 8080);
            v1::MemberHealth::of(balancer, listener, at)
        });
        objects.member_health = health.collect();
    });
}

#[test]
fn a_member_that_does_not_serve_is_as_if_it_were_not_there() {
    let mut fabric = balancing();
    let flow = |port, flags: &str| tcp(A1, VIP, ROUTER, (port, 80), flags, (100, 0), 0);
    let mut of_b2 = 1000;
    while only(&mut fabric, "a1", &flow(of_b2, "S")).0 != "b2" {
        of_b2 += 1;
    }
    let mut of_a2 = of_b2 + 1;
    while only(&mut fabric, "a1", &flow(of_a2, "S")).0 != "a2" {
        of_a2 += 1;
    }
    let accepts = tcp(B2, A1, ROUTER, (8080, of_b2), "SA", (500, 101), 0);
    assert_eq!(only(&mut fabric, "b2", &accepts).0, "a1");
    let goes_on = tcp(A1, VIP, ROUTER, (of_b2, 80), "A", (101, 501), 0);
    assert_eq!(only(&mut fabric, "a1", &goes_on).0, "b2");
    // IPv4 of b2: its IPv6, and what it serves by UDP, stay.
    down(&mut fabric, 0, &["10.0.2.12"]);
    let reset = fabric.send("a1", &goes_on);
    assert_eq!(reset[0].port, "a1", "the client is told");
    assert_eq!(only(&mut fabric, "a1", &flow(of_a2, "S")).0, "a2");
    for port in 2000..2040 {
        assert_eq!(only(&mut fabric, "a1", &flow(port, "S")).0, "a2");
    }
    let goes: Vec<String> = (0..40)
        .map(|i| goes_to(&mut fabric, (A1, "a1"), 3000 + i))
        .collect();
    assert!(goes.iter().any(|to| to == "b2"));
    let six = |port: u16| udp6(A1, VIP, ROUTER, (port, 80), b"q");
    let goes: Vec<String> = (0..40)
        .map(|i| only(&mut fabric, "a1", &six(3000 + i)).0)
        .collect();
    assert!(goes.iter().any(|to| to == "b2"));
    // And it comes back.
    down(&mut fabric, 0, &[]);
    let goes = (0..40).map(|i| only(&mut fabric, "a1", &flow(4000 + i, "S")).0);
    assert!(goes.collect::<Vec<_>>().iter().any(|to| to == "b2"));
    down(&mut fabric, 0, &["10.0.1.12", "10.0.2.12"]);
    let told = fabric.send("a1", &flow(5000, "S"));
    assert_eq!(told[0].port, "a1", "nobody serves");
    // What was found counts for nothing where nobody is asked any more.
    change(&mut fabric, |objects| {
        objects.load_balancers[0].listeners[0].health = None;
    });
    assert_ne!(only(&mut fabric, "a1", &flow(5001, "S")).0, "a1");
}

#[test]
fn answers_to_health_checks_go_to_their_host_and_nothing_else_does() {
    let mut fabric = balancing();
    let checks = fabric.checks("h2");
    let index = fabric.port_index("h2", "a2").unwrap();
    let number = |protocol, to| {
        let asked = Asked {
            port: index,
            protocol,
            to,
        };
        checks.begin(asked).unwrap()
    };
    let taken = |fabric: &mut Fabric, from: &str, frame: &[u8]| {
        fabric.asked.clear();
        let delivered = fabric.send(from, frame);
        (fabric.asked.len(), delivered.len())
    };
    let of_tcp = number(6, 8080);
    let answer = tcp(A2, VIP, ROUTER, (8080, of_tcp), "SA", (1, 1), 0);
    assert_eq!(taken(&mut fabric, "a2", &answer), (1, 0));
    // From another port of the member, and of another member: for the load balancer, as ever.
    let other = tcp(A2, VIP, ROUTER, (8081, of_tcp), "SA", (1, 1), 0);
    assert_eq!(taken(&mut fabric, "a2", &other).0, 0);
    let other = tcp(B2, VIP, ROUTER, (8080, of_tcp), "SA", (1, 1), 0);
    assert_eq!(taken(&mut fabric, "b2", &other).0, 0);
    let other = udp(A2, VIP, ROUTER, (8080, of_tcp), b"a");
    assert_eq!(taken(&mut fabric, "a2", &other).0, 0);
    // To nobody's address it is no answer to a load balancer.
    let other = tcp(A2, A1, A1.mac, (8080, of_tcp), "SA", (1, 1), 0);
    assert_eq!(taken(&mut fabric, "a2", &other).0, 0);
    let of_udp = number(17, 8080);
    let answer = udp(A2, VIP, ROUTER, (8080, of_udp), b"a");
    assert_eq!(taken(&mut fabric, "a2", &answer), (1, 0));
    let six = udp6(A2, VIP, ROUTER, (8080, of_udp), b"a");
    assert_eq!(taken(&mut fabric, "a2", &six), (1, 0));
    // Its refusal: the question is quoted as the member has got it.
    let question = udp(VIP, A2, A2.mac, (of_udp, 8080), b"q");
    let refusal = unreachable(A2, VIP, ROUTER, &question[14..]);
    assert_eq!(taken(&mut fabric, "a2", &refusal), (1, 0));
    let strange = udp(VIP, A2, A2.mac, (of_udp, 8081), b"q");
    let strange = unreachable(A2, VIP, ROUTER, &strange[14..]);
    assert_eq!(taken(&mut fabric, "a2", &strange).0, 0);
    checks.end(of_udp);
    let late = udp(A2, VIP, ROUTER, (8080, of_udp), b"a");
    assert_eq!(taken(&mut fabric, "a2", &late).0, 0);
}
