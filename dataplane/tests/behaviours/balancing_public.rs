//! Load balancers that are reached from outside by an elastic IP: the gateway host chooses the member, and its answers leave by the address.

use weft_dataplane::packet::DropReason;
use weft_dataplane::session::table::SessionView;
use weft_fabric::Fabric;
use weft_proto::v1::{ElasticIp, Listener, LoadBalancer, Member, Objects};

use crate::external::{
    FAR, GATEWAY, H1, H3, NEIGHBOR, address, answer, arrive, at, bind, held, leaves_by, left,
    network, outside, refused, send, station, texts, twofold, v4,
};
use crate::frames::{A1, A2, A3, B1, B2, End, echo, icmp6, read, tcp, udp, udp6};
use crate::least_connections::{counted, is_exact};
use crate::topology::{ROUTER, change, group, ingress, port};
use crate::translation::{dropped, only, unreachable};

/// The load balancer "web", whose port 80 a2 and b2 on h2, and b1 on h1 serve at 8080, with the elastic IPs that end in 8.
fn public(objects: &mut Objects) {
    let listener = |protocol: &str| Listener {
        protocol: protocol.into(),
        port_min: 80,
        members: ["a2", "b1", "b2"]
            .map(|port| Member {
                port: port.into(),
                to_port_min: 8080,
                ..Member::default()
            })
            .into(),
        ..Listener::default()
    };
    objects.load_balancers.push(LoadBalancer {
        id: "web".into(),
        vpc: "blue".into(),
        addresses: vec!["10.0.1.100".into(), "fd00:1::100".into()],
        listeners: vec![listener("tcp"), listener("udp")],
        ..LoadBalancer::default()
    });
    for (i, address) in texts(station(8)).into_iter().enumerate() {
        objects.elastic_ips.push(ElasticIp {
            id: format!("web-{i}"),
            external_network: "internet".into(),
            address,
            load_balancer: "web".into(),
            ..ElasticIp::default()
        });
    }
}

fn by_name(name: &str) -> End {
    match name {
        "a2" => A2,
        "b1" => B1,
        "b2" => B2,
        other => panic!("{other} is no member"),
    }
}

/// No subnet has a route out: answers of members leave all the same, and nothing else does.
#[test]
fn who_comes_from_outside_reaches_a_member_and_is_answered_by_the_address() {
    for make in [udp, udp6] {
        let mut fabric = outside(public);
        let v6 = make(A1, A2, A2.mac, (7, 53), b"x")[12] == 0x86;
        let mut members = std::collections::BTreeSet::new();
        let mut second = FAR;
        (second.v4[3], second.v6[15]) = (10, 10);
        for client in [FAR, second] {
            for source_port in 1000..1030 {
                let mut first = None;
                for round in 0..3u8 {
                    let question = make(client, held(8), H1, (source_port, 80), &[round]);
                    let (port, seen) = arrive(&mut fabric, &question);
                    assert_eq!(*first.get_or_insert(port.clone()), port);
                    let member = by_name(&port);
                    assert_eq!(
                        (
                            seen.source,
                            seen.destination,
                            seen.source_port,
                            seen.destination_port
                        ),
                        (address(client, v6), address(member, v6), source_port, 8080)
                    );
                    let reply = make(member, client, ROUTER, (8080, source_port), &[round]);
                    let seen = send(&mut fabric, &port, &reply);
                    assert_eq!(
                        (
                            seen.source,
                            seen.destination,
                            seen.source_port,
                            seen.destination_port
                        ),
                        (
                            address(station(8), v6),
                            address(client, v6),
                            80,
                            source_port
                        )
                    );
                    assert_eq!((seen.dst, seen.src), (client.mac, H1));
                    members.insert(port);
                }
            }
        }
        assert_eq!(members.len(), 3, "{members:?}");
        let reason = DropReason::NoRoute;
        dropped(
            &mut fabric,
            "a2",
            &make(A2, FAR, ROUTER, (8080, 7), b"x"),
            reason,
        );
        let other = make(FAR, held(8), H1, (7, 81), b"x");
        refused(&mut fabric, &other, DropReason::NoListener);
    }
}

#[test]
fn a_connection_from_outside_keeps_its_member_and_policy_sees_the_client() {
    let mut fabric = outside(public);
    change(&mut fabric, |objects| {
        group(objects, "open").rules = vec![weft_proto::v1::SecurityRule {
            remote_cidr: "198.51.100.0/24".into(),
            ..ingress("tcp", Some(8080))
        }];
    });
    let syn = tcp(FAR, held(8), H1, (9000, 80), "S", (100, 0), 0);
    let (port, _) = arrive(&mut fabric, &syn);
    let member = by_name(&port);
    let syn_ack = tcp(member, FAR, ROUTER, (8080, 9000), "SA", (500, 101), 0);
    assert_eq!(send(&mut fabric, &port, &syn_ack).source, v4(station(8)));
    let ack = tcp(FAR, held(8), H1, (9000, 80), "A", (101, 501), 0);
    assert_eq!(arrive(&mut fabric, &ack).0, port);
    // It drains: what stands goes on, what is new goes elsewhere.
    change(&mut fabric, |objects| {
        let members = &mut objects.load_balancers[0].listeners[0].members;
        members
            .iter_mut()
            .find(|it| it.port == port)
            .unwrap()
            .draining = true;
    });
    assert_eq!(arrive(&mut fabric, &ack).0, port);
    assert_eq!(send(&mut fabric, &port, &syn_ack).source_port, 80);
    for source_port in 9001..9030 {
        let syn = tcp(FAR, held(8), H1, (source_port, 80), "S", (100, 0), 0);
        assert_ne!(arrive(&mut fabric, &syn).0, port);
    }
    // It goes: both ways end.
    change(&mut fabric, |objects| {
        let members = &mut objects.load_balancers[0].listeners[0].members;
        members.retain(|it| it.port != port);
    });
    refused(&mut fabric, &ack, DropReason::MemberGone);
    // Who is not admitted is not.
    let stranger = tcp(NEIGHBOR, held(8), H1, (9000, 80), "S", (100, 0), 0);
    assert_eq!(fabric.send_from_uplink("h1", 1, &stranger), []);
    assert_eq!(fabric.all_drops()[&DropReason::GroupDenied], 1);
}

#[test]
fn ports_of_the_vpc_and_of_others_reach_the_address_too() {
    let mut fabric = outside(|objects| {
        public(objects);
        // Red's port has an elastic IP on the same host.
        bind(objects, "r1", station(20));
    });
    // From inside, on the client's own host, without a way out.
    let question = udp(A3, at(station(8), ROUTER), ROUTER, (7, 80), b"q");
    let (port, seen, _) = only(&mut fabric, "a3", &question);
    assert_eq!(seen.source, v4(A3));
    let member = by_name(&port);
    let back = if member.v4[2] == 1 { A3.mac } else { ROUTER };
    let (to, seen, _) = only(&mut fabric, &port, &udp(member, A3, back, (8080, 7), b"a"));
    assert_eq!((to.as_str(), seen.source), ("a3", v4(station(8))));
    // From another tenant's port on the gateway host.
    let question = udp(A1, at(station(8), ROUTER), ROUTER, (7, 80), b"q");
    let (port, seen, _) = only(&mut fabric, "r1", &question);
    assert_eq!(seen.source, v4(station(20)));
    let reply = udp(by_name(&port), station(20), ROUTER, (8080, 7), b"a");
    let (to, seen, _) = only(&mut fabric, &port, &reply);
    assert_eq!((to.as_str(), seen.source), ("r1", v4(station(8))));
}

#[test]
fn errors_about_a_flow_reach_who_sent_it() {
    let mut fabric = outside(public);
    let question = udp(FAR, held(8), H1, (7, 80), b"q");
    let (port, _) = arrive(&mut fabric, &question);
    let member = by_name(&port);
    // The member's port is closed.
    let got = udp(FAR, member, member.mac, (7, 8080), b"q");
    let error = unreachable(member, FAR, ROUTER, &got[14..]);
    let seen = send(&mut fabric, &port, &error);
    assert_eq!((seen.source, seen.destination), (v4(station(8)), v4(FAR)));
    // A router outside tells of an answer.
    let reply = udp(member, FAR, ROUTER, (8080, 7), b"a");
    send(&mut fabric, &port, &reply);
    let got = udp(station(8), FAR, FAR.mac, (80, 7), b"a");
    let error = unreachable(GATEWAY, held(8), H1, &got[14..]);
    let (to, seen) = arrive(&mut fabric, &error);
    assert_eq!((to, seen.destination), (port, v4(member)));
}

#[test]
fn pings_are_answered_where_the_network_answers_them_and_a_member_takes_flows() {
    let mut fabric = outside(public);
    let ping = echo(NEIGHBOR, held(8), H1, 7, b"x");
    assert_eq!(fabric.send_from_uplink("h1", 1, &ping), []);
    assert_eq!(fabric.outside, []);
    change(&mut fabric, |objects| {
        objects.external_networks[0].answer_pings = true;
    });
    fabric.outside.clear();
    fabric.send_from_uplink("h1", 1, &ping);
    assert_eq!(left(&mut fabric).source, v4(station(8)));
    let body = [&[0, 7, 0, 1][..], b"x"].concat();
    let ping6 = icmp6(NEIGHBOR.mac, H1, NEIGHBOR.v6, station(8).v6, 128, &body);
    fabric.send_from_uplink("h1", 1, &ping6);
    assert_eq!(left(&mut fabric).source, address(station(8), true));
    change(&mut fabric, |objects| {
        for listener in &mut objects.load_balancers[0].listeners {
            listener.members.clear();
        }
    });
    fabric.outside.clear();
    fabric.send_from_uplink("h1", 1, &ping);
    assert_eq!(fabric.outside, []);
}

/// A member on h2, one on the second gateway host itself.
fn two_hosts(algorithm: &str) -> Fabric {
    let mut fabric = twofold();
    change(&mut fabric, |objects| {
        public(objects);
        for listener in &mut objects.load_balancers[0].listeners {
            listener.algorithm = algorithm.into();
            listener.members[1].port = "a3".into();
        }
    });
    fabric.live(200).unwrap();
    answer(&mut fabric);
    fabric.outside.clear();
    fabric
}

#[test]
fn connections_outlive_their_gateway_host() {
    let mut fabric = two_hosts("round-robin");
    let mut connections = Vec::new();
    for source_port in 9000..9012 {
        let syn = tcp(FAR, held(8), H1, (source_port, 80), "S", (100, 0), 0);
        let (port, _) = arrive(&mut fabric, &syn);
        let member = if port == "a3" { A3 } else { by_name(&port) };
        let reply = tcp(
            member,
            FAR,
            ROUTER,
            (8080, source_port),
            "SA",
            (500, 101),
            0,
        );
        assert_eq!(leaves_by(&mut fabric, &port, &reply).0, "h1");
        let ack = tcp(FAR, held(8), H1, (source_port, 80), "A", (101, 501), 0);
        assert_eq!(arrive(&mut fabric, &ack).0, port);
        connections.push((source_port, port, member));
    }
    assert!(connections.iter().any(|(_, port, _)| port == "a3"));
    fabric.live(300).unwrap();
    fabric.dead.insert("h1".into());
    for _ in 0..6 {
        fabric.live(100).unwrap();
        answer(&mut fabric);
    }
    for (source_port, port, member) in &connections {
        // What comes next from either side.
        let data = tcp(
            at(FAR, GATEWAY.mac),
            held(8),
            H3,
            (*source_port, 80),
            "A",
            (101, 501),
            9,
        );
        let out = fabric.send_from_uplink("h3", 1, &data);
        assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
        assert_eq!(out[0].port, *port);
        assert_eq!(read(&out[0].frame).destination, v4(*member));
        let reply = tcp(
            *member,
            FAR,
            ROUTER,
            (8080, *source_port),
            "A",
            (501, 110),
            5,
        );
        let (host, seen) = leaves_by(&mut fabric, port, &reply);
        assert_eq!(
            (host.as_str(), seen.source, seen.source_port),
            ("h3", v4(station(8)), 80)
        );
    }
    for host in fabric.hosts.values() {
        assert_eq!(host.unaccounted(), 0, "{}", host.id);
    }
}

/// A connection of one client's port to a port of the load balancer, by h1; answers its member.
fn connect(fabric: &mut Fabric, to: u16, number: u32) -> String {
    let ports = (9000, to);
    let syn = tcp(FAR, held(8), H1, ports, "S", (number, 0), 0);
    let (port, _) = arrive(fabric, &syn);
    let member = if port == "a3" { A3 } else { by_name(&port) };
    let ack = number + 1;
    let reply = tcp(member, FAR, ROUTER, (8080, 9000), "SA", (500, ack), 0);
    assert_eq!(leaves_by(fabric, &port, &reply).0, "h1");
    let ack = tcp(FAR, held(8), H1, ports, "A", (ack, 501), 0);
    assert_eq!(arrive(fabric, &ack).0, port);
    fabric.live(300).unwrap();
    port
}

/// The client's reset.
fn reset(fabric: &mut Fabric, to: u16, number: u32) {
    let reset = tcp(FAR, held(8), H1, (9000, to), "R", (number + 1, 0), 0);
    arrive(fabric, &reset);
    fabric.live(300).unwrap();
}

/// Where the client's next data arrive when h3 has taken over from h1, and that they are answered.
fn goes_on_at_the_next(fabric: &mut Fabric, to: u16, number: u32) -> String {
    let sessions = fabric.hosts["h3"].shared.sessions.list(99, 0, |_| true);
    let client = |view: &&SessionView| view.flow.source_port == 9000;
    let of_client: Vec<_> = sessions.iter().filter(client).collect();
    assert_eq!(of_client.len(), 1, "one connection: {of_client:?}");
    fabric.dead.insert("h1".into());
    for _ in 0..6 {
        fabric.live(100).unwrap();
        answer(fabric);
    }
    let (ports, numbers) = ((9000, to), (number + 1, 501));
    let data = tcp(at(FAR, GATEWAY.mac), held(8), H3, ports, "A", numbers, 9);
    let out = fabric.send_from_uplink("h3", 1, &data);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    let port = out[0].port.clone();
    let member = if port == "a3" { A3 } else { by_name(&port) };
    let numbers = (501, number + 10);
    let reply = tcp(member, FAR, ROUTER, (8080, 9000), "A", numbers, 5);
    let (host, seen) = leaves_by(fabric, &port, &reply);
    assert_eq!((host.as_str(), seen.source_port), ("h3", to));
    port
}

#[test]
fn the_next_gateway_host_knows_the_member_of_a_connection_that_was_opened_anew() {
    let mut fabric = two_hosts("round-robin");
    let first = connect(&mut fabric, 80, 100);
    reset(&mut fabric, 80, 100);
    let second = connect(&mut fabric, 80, 100_000);
    assert_ne!(first, second);
    assert_eq!(goes_on_at_the_next(&mut fabric, 80, 100_000), second);
}

#[test]
fn the_next_gateway_host_knows_a_connection_that_took_the_place_of_another_at_its_member() {
    let mut fabric = two_hosts("maglev");
    change(&mut fabric, |objects| {
        let listeners = &mut objects.load_balancers[0].listeners;
        listeners[0].members.retain(|member| member.port == "a2");
        let mut other = listeners[0].clone();
        other.port_min = 81;
        listeners.push(other);
    });
    connect(&mut fabric, 80, 100);
    reset(&mut fabric, 80, 100);
    // The same client and port, the same member and port: of two sessions the member could not tell apart what they send.
    connect(&mut fabric, 81, 100_000);
    assert_eq!(goes_on_at_the_next(&mut fabric, 81, 100_000), "a2");
}

#[test]
fn the_next_gateway_host_knows_how_many_connections_members_have() {
    let mut fabric = two_hosts("least-connections");
    let open = |fabric: &mut Fabric, gateway: End, source_port| {
        let syn = tcp(
            FAR,
            held(8),
            gateway.mac,
            (source_port, 80),
            "S",
            (100, 0),
            0,
        );
        let host = if gateway.mac == H1 { "h1" } else { "h3" };
        let out = fabric.send_from_uplink(host, 1, &syn);
        assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
        out[0].port.clone()
    };
    let h1 = at(GATEWAY, H1);
    for source_port in 9000..9009 {
        open(&mut fabric, h1, source_port);
    }
    fabric.live(300).unwrap();
    let address = held(8).v4;
    let at_h1 = counted(&fabric, "h1", address, 6);
    assert_eq!(at_h1.values().copied().collect::<Vec<_>>(), [3, 3, 3]);
    assert_eq!(counted(&fabric, "h3", address, 6), at_h1);
    is_exact(&fabric);
    fabric.dead.insert("h1".into());
    for _ in 0..6 {
        fabric.live(100).unwrap();
        answer(&mut fabric);
    }
    // The next host goes on from there: each gets one of three.
    let h3 = at(GATEWAY, H3);
    let next: std::collections::BTreeSet<_> = (9100..9103)
        .map(|source_port| open(&mut fabric, h3, source_port))
        .collect();
    assert_eq!(next.len(), 3, "{next:?}");
    is_exact(&fabric);
}

#[test]
fn an_address_that_is_unbound_ends_what_came_by_it() {
    let mut fabric = outside(public);
    let question = udp(FAR, held(8), H1, (7, 80), b"q");
    let (port, _) = arrive(&mut fabric, &question);
    change(&mut fabric, |objects| objects.elastic_ips.clear());
    refused(&mut fabric, &question, DropReason::ExternalUnheld);
    let reply = udp(by_name(&port), FAR, ROUTER, (8080, 7), b"a");
    fabric.outside.clear();
    assert_eq!(fabric.send(&port, &reply), []);
    assert_eq!(fabric.outside, []);
    let mut bare = outside(network_twice);
    let question = udp(FAR, held(8), H1, (7, 80), b"q");
    refused(&mut bare, &question, DropReason::ExternalUnheld);
}

/// The network alone: nobody has its addresses.
fn network_twice(objects: &mut Objects) {
    objects.external_networks.clear();
    network(objects);
}

#[test]
fn what_came_by_an_address_that_is_another_load_balancers_now_ends() {
    let mut fabric = outside(|objects| {
        public(objects);
        // Another one, which the same members serve at another port.
        let mut other = objects.load_balancers[0].clone();
        (other.id, other.addresses) = (
            "api".into(),
            vec!["10.0.1.101".into(), "fd00:1::101".into()],
        );
        for member in other.listeners.iter_mut().flat_map(|it| &mut it.members) {
            member.to_port_min = 9090;
        }
        objects.load_balancers.push(other);
    });
    let question = udp(FAR, held(8), H1, (7, 80), b"q");
    assert_eq!(arrive(&mut fabric, &question).1.destination_port, 8080);
    change(&mut fabric, |objects| {
        for elastic in &mut objects.elastic_ips {
            elastic.load_balancer = "api".into();
        }
    });
    refused(&mut fabric, &question, DropReason::MemberGone);
    assert_eq!(arrive(&mut fabric, &question).1.destination_port, 9090);
}

/// A session of a member's own host knows nothing of the elastic IP: with the host taken off the list of gateway hosts, it goes on.
#[test]
fn connections_of_a_member_on_a_host_that_is_no_gateway_host_any_more_go_on() {
    let mut fabric = two_hosts("round-robin");
    let mut found = None;
    for source_port in 9000..9006 {
        let syn = tcp(FAR, held(8), H1, (source_port, 80), "S", (100, 0), 0);
        let (port, _) = arrive(&mut fabric, &syn);
        if port == "a3" {
            let reply = tcp(A3, FAR, ROUTER, (8080, source_port), "SA", (500, 101), 0);
            leaves_by(&mut fabric, "a3", &reply);
            let ack = tcp(FAR, held(8), H1, (source_port, 80), "A", (101, 501), 0);
            arrive(&mut fabric, &ack);
            found = Some(source_port);
        }
    }
    let source_port = found.unwrap();
    fabric.live(500).unwrap();
    change(&mut fabric, |objects| {
        objects.external_networks[0].gateway_hosts = vec!["h1".into()];
        group(objects, "open").rules.push(ingress("tcp", Some(1)));
    });
    let data = tcp(FAR, held(8), H1, (source_port, 80), "A", (101, 501), 9);
    assert_eq!(arrive(&mut fabric, &data).0, "a3");
    let reply = tcp(A3, FAR, ROUTER, (8080, source_port), "A", (501, 110), 5);
    let (host, seen) = leaves_by(&mut fabric, "a3", &reply);
    assert_eq!((host.as_str(), seen.source), ("h1", v4(station(8))));
}

/// A route to a port wins: from another host the answer goes there, on the gateway host the session is of something else.
#[test]
fn answers_that_a_route_leads_to_another_port_do_not_leave_by_the_address() {
    for (member, end) in [("b2", B2), ("b1", B1)] {
        let mut fabric = outside(|objects| {
            public(objects);
            for listener in &mut objects.load_balancers[0].listeners {
                listener.members.retain(|it| it.port == member);
            }
            port(objects, "a3").host = "h2".into();
            objects.subnets[1].route_table = "blue".into();
            objects.route_tables[0].routes = vec![weft_proto::v1::Route {
                port: "a3".into(),
                ..crate::topology::route("198.51.100.0/24")
            }];
        });
        let question = udp(FAR, held(8), H1, (7, 80), b"q");
        assert_eq!(arrive(&mut fabric, &question).0, member);
        let reply = udp(end, FAR, ROUTER, (8080, 7), b"a");
        fabric.outside.clear();
        if member == "b2" {
            assert_eq!(only(&mut fabric, member, &reply).0, "a3");
        } else {
            dropped(&mut fabric, member, &reply, DropReason::TranslationGone);
        }
        assert_eq!(fabric.outside, []);
    }
}
