//! Addresses that ports have as the outside knows them: elastic IPs in mode direct, prefixes that the outside routes to a VPC; what an elastic IP may send and
//! be sent; pings to addresses of a network that no port has.

use weft_dataplane::packet::DropReason;
use weft_fabric::Fabric;
use weft_proto::v1::{Objects, Port, RateLimit, RateLimits, Route, RoutedPrefix, Subnet};

use crate::external::{
    FAR, GATEWAY, H1, H3, NEIGHBOR, UDP, address, arrive, at, bind, error_of_another, gateway,
    held, kept_in, leaves_by, outside, refused, send, station, texts, twofold, v4,
};
use crate::frames::{A1, A2, A3, B1, End, echo, echo_reply, echo6, end, read, tcp, udp};
use crate::topology::{ROUTER, change, route};

/// Binds addresses in mode direct.
fn give(objects: &mut Objects, port: &str, outside: End) {
    bind(objects, port, outside);
    for elastic in &mut objects.elastic_ips {
        if texts(outside).contains(&elastic.address) {
            elastic.mode = "direct".into();
        }
    }
}

/// The port of `inside`, with an outside address in place of its own.
fn as_outside(inside: End, outside: End) -> End {
    End {
        mac: inside.mac,
        ..outside
    }
}

/// A UDP packet from one to the other arrives at a port, by way of this host.
#[track_caller]
fn crosses(fabric: &mut Fabric, (from, frame): (&str, &[u8]), to: &str) -> crate::frames::Seen {
    let out = fabric.send(from, frame);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    assert_eq!(out[0].port, to);
    read(&out[0].frame)
}

#[test]
fn a_port_has_its_direct_elastic_ip_itself() {
    for (make, v6) in UDP {
        for (name, end) in [("a1", A1), ("a2", A2)] {
            let mut fabric = outside(|objects| give(objects, name, station(9)));
            let own = as_outside(end, station(9));
            for round in 0..3u8 {
                let seen = send(
                    &mut fabric,
                    name,
                    &make(own, FAR, ROUTER, (7, 53), &[round]),
                );
                assert_eq!((seen.dst, seen.src), (GATEWAY.mac, H1));
                assert_eq!(
                    (seen.source, seen.destination),
                    (address(own, v6), address(FAR, v6))
                );
                let back = make(FAR, held(9), H1, (53, 7), &[round]);
                let (port, seen) = arrive(&mut fabric, &back);
                assert_eq!(port, name);
                assert_eq!((seen.dst, seen.destination), (end.mac, address(own, v6)));
                // One that comes from outside, and its answer.
                let (port, seen) = arrive(&mut fabric, &make(FAR, held(9), H1, (99, 80), &[round]));
                assert_eq!((&*port, seen.destination), (name, address(own, v6)));
                let answer = make(own, FAR, ROUTER, (80, 99), &[round]);
                assert_eq!(send(&mut fabric, name, &answer).source, address(own, v6));
            }
            let fast = fabric.hosts["h1"].pipeline.counters().fast.get();
            assert!(fast >= 6, "the fast path takes them: {fast} {name} {v6}");
            // Its private address does not leave.
            let private = make(end, FAR, ROUTER, (8, 53), b"x");
            kept_in(&mut fabric, name, &private, DropReason::NoRoute);
        }
    }
}

#[test]
fn a_direct_elastic_ip_is_the_ports_alone_and_ends_when_it_is_unbound() {
    let mut fabric = outside(|objects| give(objects, "a1", station(9)));
    let own = as_outside(A1, station(9));
    send(&mut fabric, "a1", &udp(own, FAR, ROUTER, (7, 53), b"x"));
    let stolen = udp(as_outside(A3, station(9)), FAR, ROUTER, (7, 53), b"x");
    kept_in(&mut fabric, "a3", &stolen, DropReason::SpoofedAddress);
    change(&mut fabric, |objects| {
        objects.elastic_ips.retain(|it| it.id != "a1-0");
    });
    let back = udp(FAR, held(9), H1, (53, 7), b"x");
    refused(&mut fabric, &back, DropReason::ExternalUnheld);
    let frame = udp(own, FAR, ROUTER, (7, 53), b"x");
    kept_in(&mut fabric, "a1", &frame, DropReason::SpoofedAddress);
}

#[test]
fn ports_of_the_vpc_reach_a_direct_elastic_ip_within_it() {
    for (name, end) in [("a1", A1), ("a2", A2)] {
        let mut fabric = outside(|objects| {
            gateway(objects);
            give(objects, name, station(9));
        });
        let own = as_outside(end, station(9));
        for _ in 0..2 {
            let question = udp(B1, own, ROUTER, (7, 53), b"x");
            let seen = crosses(&mut fabric, ("b1", &question), name);
            assert_eq!((seen.source, seen.destination), (v4(B1), v4(own)));
            let answer = udp(own, B1, ROUTER, (53, 7), b"x");
            assert_eq!(crosses(&mut fabric, (name, &answer), "b1").source, v4(own));
        }
        assert!(fabric.outside.is_empty());
    }
}

/// Two VPCs of one host, each with an address outside: whichever of them is translated.
#[test]
fn vpcs_of_one_host_reach_each_others_outside_addresses_translated_or_not() {
    for (ours_direct, theirs_direct) in [(true, false), (false, true), (true, true)] {
        for (name, inside) in [("r1", A1), ("r2", A2)] {
            for ours in ["a1", "a2"] {
                let mut fabric = outside(|objects| {
                    bind(objects, ours, station(9));
                    bind(objects, name, station(20));
                    for elastic in &mut objects.elastic_ips {
                        let is_direct = if elastic.port == ours {
                            ours_direct
                        } else {
                            theirs_direct
                        };
                        if is_direct {
                            elastic.mode = "direct".into();
                        }
                    }
                });
                let case = format!("{ours} {ours_direct} {name} {theirs_direct}");
                let a = if ours == "a1" { A1 } else { A2 };
                let (ours_sends, theirs_sends) = (
                    if ours_direct {
                        as_outside(a, station(9))
                    } else {
                        a
                    },
                    if theirs_direct {
                        as_outside(inside, station(20))
                    } else {
                        inside
                    },
                );
                for _ in 0..3 {
                    let question = udp(ours_sends, station(20), ROUTER, (7, 53), b"x");
                    let seen = crosses(&mut fabric, (ours, &question), name);
                    assert_eq!(seen.source, v4(station(9)), "{case}");
                    assert_eq!(seen.destination, v4(theirs_sends), "{case}");
                    let answer = udp(theirs_sends, station(9), ROUTER, (53, 7), b"y");
                    let seen = crosses(&mut fabric, (name, &answer), ours);
                    assert_eq!(seen.source, v4(station(20)), "{case}");
                    assert_eq!(seen.destination, v4(ours_sends), "{case}");
                }
                // And the other way round, with flows of their own.
                let question = udp(theirs_sends, station(9), ROUTER, (7000, 53), b"x");
                let seen = crosses(&mut fabric, (name, &question), ours);
                assert_eq!(seen.source, v4(station(20)), "{case}");
                assert!(fabric.outside.is_empty(), "{case}");
            }
        }
    }
}

/// The prefix that the outside routes to blue, a subnet with it, ports there on either host, and the way out.
fn routed(objects: &mut Objects) {
    let network = &mut objects.external_networks[0];
    network.routers = texts(station(2)).into();
    network.routed = ["198.18.7.0/24", "2001:db8:7::/64"]
        .map(|prefix| RoutedPrefix {
            prefix: prefix.into(),
            vpc: "blue".into(),
        })
        .into();
    objects.subnets.push(Subnet {
        id: "public".into(),
        vpc: "blue".into(),
        cidrs: vec!["198.18.7.0/24".into(), "2001:db8:7::/64".into()],
        route_table: "out".into(),
        ..Subnet::default()
    });
    objects.route_tables.push(weft_proto::v1::RouteTable {
        id: "out".into(),
        vpc: "blue".into(),
        routes: ["0.0.0.0/0", "::/0"]
            .map(|prefix| Route {
                external: "internet".into(),
                ..route(prefix)
            })
            .into(),
        ..weft_proto::v1::RouteTable::default()
    });
    for (id, host, last) in [("p1", "h1", 1), ("p2", "h2", 2)] {
        let [public4, public6] = texts(public(last));
        objects.ports.push(Port {
            id: id.into(),
            vpc: "blue".into(),
            subnet: "public".into(),
            mac: format!("02:00:00:00:09:0{last}"),
            addresses: vec![public4, public6],
            security_groups: vec!["open".into()],
            host: host.into(),
            ..Port::default()
        });
    }
}

fn public(last: u8) -> End {
    let mut end = end(9, last);
    end.v4 = [198, 18, 7, 10 + last];
    end.v6 = [
        0x20,
        1,
        0xd,
        0xb8,
        0,
        7,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0x10 + last,
    ];
    end.mac = [2, 0, 0, 0, 9, last];
    end
}

#[test]
fn a_prefix_that_the_outside_routes_to_a_vpc_is_reached_as_it_is() {
    for (make, v6) in UDP {
        for (name, last) in [("p1", 1), ("p2", 2)] {
            let mut fabric = outside(routed);
            let own = public(last);
            for round in 0..3u8 {
                let question = make(FAR, own, H1, (99, 80), &[round]);
                let (port, seen) = arrive(&mut fabric, &question);
                assert_eq!((&*port, seen.dst), (name, own.mac));
                assert_eq!(
                    (seen.source, seen.destination),
                    (address(FAR, v6), address(own, v6))
                );
                let answer = make(own, FAR, ROUTER, (80, 99), &[round]);
                let seen = send(&mut fabric, name, &answer);
                assert_eq!((seen.dst, seen.source), (GATEWAY.mac, address(own, v6)));
                let question = make(own, FAR, ROUTER, (7, 53), &[round]);
                assert_eq!(send(&mut fabric, name, &question).source, address(own, v6));
                let answer = make(FAR, own, H1, (53, 7), &[round]);
                assert_eq!(arrive(&mut fabric, &answer).0, name);
            }
            let fast = fabric.hosts["h1"].pipeline.counters().fast.get();
            assert!(fast >= 6, "the fast path takes them: {fast} {name} {v6}");
        }
    }
}

#[test]
fn only_addresses_of_routed_prefixes_leave_as_they_are() {
    let mut fabric = outside(|objects| {
        routed(objects);
        objects.route_tables[0].routes = vec![Route {
            external: "internet".into(),
            ..route("0.0.0.0/0")
        }];
    });
    let private = udp(A1, FAR, ROUTER, (7, 53), b"x");
    kept_in(&mut fabric, "a1", &private, DropReason::NoTranslation);
    // An address of the prefix that no port has.
    let nobody = udp(FAR, public(7), H1, (99, 80), b"x");
    refused(&mut fabric, &nobody, DropReason::NoPort);
    // Nobody outside has one of them.
    let spoofed = udp(at(public(2), NEIGHBOR.mac), public(1), H1, (99, 80), b"x");
    refused(&mut fabric, &spoofed, DropReason::ExternalSpoofed);
    // What is routed to another VPC from now on is no longer blue's.
    send(
        &mut fabric,
        "p1",
        &udp(public(1), FAR, ROUTER, (7, 53), b"x"),
    );
    change(&mut fabric, |objects| {
        for routed in &mut objects.external_networks[0].routed {
            routed.vpc = "red".into();
        }
    });
    let frame = udp(public(1), FAR, ROUTER, (7, 53), b"x");
    kept_in(&mut fabric, "p1", &frame, DropReason::NoTranslation);
    let back = udp(FAR, public(1), H1, (53, 7), b"x");
    assert_eq!(fabric.send_from_uplink("h1", 1, &back), []);
}

#[test]
fn an_error_about_a_packet_that_left_as_it_is_reaches_its_sender() {
    let mut fabric = outside(routed);
    fabric.outside.clear();
    let frame = udp(public(2), FAR, ROUTER, (7000, 53), b"x");
    assert_eq!(fabric.send("p2", &frame), []);
    let sent = fabric.outside[0].1.clone();
    let error = error_of_another(GATEWAY, public(2), H1, &sent);
    let (port, seen) = arrive(&mut fabric, &error);
    assert_eq!((&*port, seen.source), ("p2", v4(GATEWAY)));
    let never = udp(public(2), FAR, GATEWAY.mac, (7001, 53), b"x");
    let error = error_of_another(GATEWAY, public(2), H1, &never);
    refused(&mut fabric, &error, DropReason::IcmpUnrelated);
}

#[test]
fn the_next_gateway_host_takes_over_connections_of_routed_prefixes() {
    // On a host that is no gateway host, and on the one that takes over.
    for host in ["h2", "h3"] {
        take_over(host);
    }
}

#[track_caller]
fn take_over(home: &str) {
    let mut fabric = twofold();
    change(&mut fabric, |objects| {
        routed(objects);
        crate::topology::port(objects, "p2").host = home.into();
    });
    fabric.live(1000).unwrap();
    crate::external::answer(&mut fabric);
    fabric.outside.clear();
    let own = public(2);
    let syn = tcp(own, FAR, ROUTER, (700, 80), "S", (1, 0), 0);
    assert_eq!(leaves_by(&mut fabric, "p2", &syn).0, "h1");
    let answer = tcp(FAR, own, H1, (80, 700), "SA", (500, 2), 0);
    assert_eq!(arrive(&mut fabric, &answer).0, "p2");
    let ack = tcp(own, FAR, ROUTER, (700, 80), "A", (2, 501), 0);
    leaves_by(&mut fabric, "p2", &ack);
    fabric.live(1000).unwrap();
    fabric.dead.insert("h1".into());
    fabric.live(1000).unwrap();
    crate::external::answer(&mut fabric);
    // The server speaks first: only a session that is known lets it.
    let data = tcp(FAR, own, H3, (80, 700), "A", (501, 2), 4);
    let out = fabric.send_from_uplink("h3", 1, &data);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    assert_eq!(out[0].port, "p2");
    let ack = tcp(own, FAR, ROUTER, (700, 80), "A", (2, 505), 0);
    assert_eq!(leaves_by(&mut fabric, "p2", &ack).0, "h3");
}

fn limited(objects: &mut Objects, egress: u64, ingress: u64) {
    let packets = |packets_per_second| RateLimit {
        packets_per_second,
        burst_packets: packets_per_second,
        ..RateLimit::default()
    };
    for elastic in &mut objects.elastic_ips {
        elastic.limits = Some(RateLimits {
            egress: Some(packets(egress)),
            ingress: Some(packets(ingress)),
        });
    }
}

/// How many of these frames pass.
fn passing(
    fabric: &mut Fabric,
    frames: impl Iterator<Item = Vec<u8>>,
    port: Option<&str>,
) -> usize {
    fabric.outside.clear();
    let out: usize = frames
        .map(|frame| match port {
            Some(port) => fabric.send(port, &frame).len(),
            None => fabric.send_from_uplink("h1", 1, &frame).len(),
        })
        .sum();
    out + fabric.outside.len()
}

#[test]
fn all_flows_of_an_elastic_ip_share_its_limits_in_each_direction() {
    for (name, mode, end) in [
        ("a1", "nat", A1),
        ("a2", "nat", A2),
        ("a1", "direct", as_outside(A1, station(9))),
    ] {
        let mut fabric = outside(|objects| {
            bind(objects, name, station(9));
            objects.elastic_ips[0].mode = mode.into();
            limited(objects, 10, 4);
        });
        // Three flows, many packets each: of all together as many pass as the bucket holds.
        let out = |port: u16| udp(end, FAR, ROUTER, (port, 53), b"x");
        let sent = passing(&mut fabric, (0..30).map(|i| out(i % 3)), Some(name));
        assert_eq!(sent, 10, "{name} {mode}");
        let back = |port: u16| udp(FAR, held(9), H1, (53, port), b"x");
        assert_eq!(passing(&mut fabric, (0..30).map(|i| back(i % 3)), None), 4);
        let drops = |fabric: &Fabric, reason| fabric.all_drops().get(&reason).copied();
        assert_eq!(drops(&fabric, DropReason::ElasticIpEgress), Some(20));
        assert_eq!(drops(&fabric, DropReason::ElasticIpIngress), Some(26));
        // A change is in force at once, and no session ends.
        change(&mut fabric, |objects| limited(objects, 20, 0));
        let sent = passing(&mut fabric, (0..30).map(|i| out(i % 3)), Some(name));
        assert_eq!(sent, 20);
        assert_eq!(passing(&mut fabric, (0..30).map(|i| back(i % 3)), None), 30);
        // One that stays goes on where it was.
        change(&mut fabric, |objects| {
            objects.security_groups[1].rules.clear();
        });
        assert_eq!(passing(&mut fabric, (0..5).map(out), Some(name)), 0);
        change(&mut fabric, |objects| objects.elastic_ips[0].limits = None);
        assert_eq!(
            passing(&mut fabric, (0..30).map(|i| out(i % 3)), Some(name)),
            30
        );
    }
}

#[test]
fn a_limit_holds_between_vpcs_of_one_host() {
    let mut fabric = outside(|objects| {
        bind(objects, "a1", station(9));
        bind(objects, "r1", station(20));
        limited(objects, 6, 3);
    });
    let frames = (0..20).map(|i| udp(A1, station(20), ROUTER, (i, 53), b"x"));
    assert_eq!(passing(&mut fabric, frames, Some("a1")), 3);
    assert_eq!(
        fabric.all_drops().get(&DropReason::ElasticIpEgress),
        Some(&14)
    );
    assert_eq!(
        fabric.all_drops().get(&DropReason::ElasticIpIngress),
        Some(&3)
    );
}

/// The answer of an address that no port has comes in for the elastic IP that asked, like any other packet.
#[test]
fn answers_to_an_elastic_ips_pings_count_against_its_ingress_limit() {
    let mut fabric = outside(|objects| {
        objects.external_networks[0].routers = texts(station(2)).into();
        objects.external_networks[0].answer_pings = true;
        bind(objects, "a1", station(9));
        limited(objects, 10, 4);
    });
    let pings = (0..30).map(|id| echo(A1, station(2), ROUTER, id, b"hello"));
    let passed = passing(&mut fabric, pings, Some("a1"));
    assert_eq!(passed, 4, "{:?}", fabric.all_drops());
    let drops = fabric.all_drops();
    let refused = [DropReason::ElasticIpEgress, DropReason::ElasticIpIngress];
    assert_eq!(refused.map(|reason| drops[&reason]), [20, 6]);
}

/// RFC 1812 §4.3.3.6 has routers answer pings; here they do if they are asked to.
#[test]
fn addresses_that_no_port_has_answer_pings_if_they_are_to() {
    let mut fabric = outside(|objects| {
        gateway(objects);
        objects.external_networks[0].routers = texts(station(2)).into();
    });
    for last in [2, 5] {
        let ping = echo(FAR, held(last), H1, 77, b"hello");
        let reason = if last == 2 {
            DropReason::ExternalUnheld
        } else {
            DropReason::NatUnmapped
        };
        refused(&mut fabric, &ping, reason);
    }
    change(&mut fabric, |objects| {
        objects.external_networks[0].answer_pings = true;
    });
    fabric.outside.clear();
    for last in [2, 5] {
        let mut router = FAR;
        router.mac = GATEWAY.mac;
        assert_eq!(
            fabric.send_from_uplink("h1", 1, &echo(router, held(last), H1, 77, b"hello")),
            []
        );
        let mut reply = echo_reply(held(last), router, GATEWAY.mac, 77, b"hello");
        let sent = fabric.outside.remove(0).1;
        reply[22] = sent[22];
        reply[24..26].copy_from_slice(&sent[24..26]);
        reply[18..22].copy_from_slice(&sent[18..22]);
        assert_eq!(sent, reply);
        fabric.send_from_uplink("h1", 1, &echo6(router, held(last), H1, 77, b"hello"));
        let sent = fabric.outside.remove(0).1;
        assert_eq!((sent[54], &sent[22..38]), (129, &held(last).v6[..]));
    }
    // Who is behind the gateway pings it, and its own pings are answered as before.
    let out = fabric.send("a1", &echo(A1, station(2), ROUTER, 9, b"x"));
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    let seen = read(&out[0].frame);
    assert_eq!((&*out[0].port, seen.source), ("a1", v4(station(2))));
}

/// Another VPC's address comes to this host and leaves it again, while a flow goes there.
#[test]
fn a_flow_to_an_outside_address_follows_it_to_this_host_and_away() {
    let mut fabric = outside(|objects| bind(objects, "a1", station(9)));
    let frame = udp(A1, station(20), ROUTER, (7, 53), b"x");
    fabric.send("a1", &frame);
    crate::external::answer(&mut fabric);
    for _ in 0..3 {
        assert_eq!(send(&mut fabric, "a1", &frame).dst, station(20).mac);
    }
    change(&mut fabric, |objects| bind(objects, "r1", station(20)));
    fabric.outside.clear();
    // The packet that finds out may be lost.
    fabric.send("a1", &frame);
    for _ in 0..3 {
        assert_eq!(
            crosses(&mut fabric, ("a1", &frame), "r1").source,
            v4(station(9))
        );
    }
    change(&mut fabric, |objects| {
        objects.elastic_ips.retain(|it| it.port != "r1");
    });
    fabric.send("a1", &frame);
    crate::external::answer(&mut fabric);
    fabric.send("a1", &frame);
    for _ in 0..3 {
        assert_eq!(send(&mut fabric, "a1", &frame).dst, station(20).mac);
    }
}
