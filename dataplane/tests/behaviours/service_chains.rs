//! Service chains: routes through one of several appliances, both directions of a flow through the same one, and through appliances one after the other.

use std::collections::BTreeSet;

use weft_dataplane::packet::DropReason;
use weft_dataplane::pipeline::checks::Asked;
use weft_dataplane::pipeline::trace;
use weft_fabric::Fabric;
use weft_proto::v1::{self, AddressPair, NextHop, Objects, PolicyRoute, Route};

use crate::frames::{A1, A2, B1, B2, End, echo, echo_reply, end, read, tcp, udp, udp6};
use crate::topology::{ROUTER, change, fabric, port, route};
use crate::translation::unreachable;

/// Appliances: the port, its MAC, its host. Those of the first set are in subnet 3, those of the second in subnet 4.
const FIRST: [(&str, End, &str); 3] = [
    ("f1", end(3, 1), "h1"),
    ("f2", end(3, 2), "h2"),
    ("f3", end(3, 3), "h1"),
];
const SECOND: [(&str, End, &str); 2] = [("g1", end(4, 1), "h1"), ("g2", end(4, 2), "h2")];

/// Clients and servers, on both hosts.
const PAIRS: [(&str, End, &str, End); 4] = [
    ("a1", A1, "b1", B1),
    ("a1", A1, "b2", B2),
    ("a2", A2, "b1", B1),
    ("a2", A2, "b2", B2),
];

fn hops(ports: &[&str]) -> Vec<NextHop> {
    let hop = |port: &&str| NextHop {
        port: (*port).into(),
        ..NextHop::default()
    };
    ports.iter().map(hop).collect()
}

/// Routes of both families to a subnet through one of several ports.
fn through(subnet: u8, ports: &[&str]) -> Vec<Route> {
    let to = |prefix: String| Route {
        ecmp: hops(ports),
        ..route(&prefix)
    };
    vec![
        to(format!("10.0.{subnet}.0/24")),
        to(format!("fd00:{subnet}::/64")),
    ]
}

fn table(id: &str, routes: Vec<Route>) -> v1::RouteTable {
    v1::RouteTable {
        id: id.into(),
        vpc: "blue".into(),
        routes,
        ..v1::RouteTable::default()
    }
}

/// The base topology with the appliances, which send on whatever they get, each set in a subnet with a table of its own.
fn with_appliances(objects: &mut Objects) {
    for (subnet, appliances) in [(3u8, &FIRST[..]), (4, &SECOND)] {
        let id = format!("blue-{subnet}");
        objects.subnets.push(v1::Subnet {
            id: id.clone(),
            vpc: "blue".into(),
            cidrs: vec![format!("10.0.{subnet}.0/24"), format!("fd00:{subnet}::/64")],
            route_table: id.clone(),
            ..v1::Subnet::default()
        });
        objects.route_tables.push(table(&id, Vec::new()));
        for (name, at, host) in appliances {
            let mut fw = port(objects, "a2").clone();
            fw.id = (*name).into();
            fw.subnet.clone_from(&id);
            fw.host = (*host).into();
            fw.mac = at.mac.map(|byte| format!("{byte:02x}")).join(":");
            fw.addresses = vec![
                at.v4.map(|byte| byte.to_string()).join("."),
                format!("fd00:{subnet}::{:x}", at.v6[15]),
            ];
            fw.allowed_pairs = ["0.0.0.0/0", "::/0"]
                .map(|cidr| AddressPair {
                    cidr: cidr.into(),
                    mac: String::new(),
                })
                .to_vec();
            objects.ports.push(fw);
        }
    }
    objects.subnets[1].route_table = "blue-b".into();
    objects.route_tables.push(table("blue-b", Vec::new()));
}

fn set_routes(objects: &mut Objects, id: &str, routes: Vec<Route>) {
    let mut tables = objects.route_tables.iter_mut();
    let of = if id == "blue-a" {
        tables.next()
    } else {
        tables.find(|table| table.id == id)
    };
    of.unwrap().routes = routes;
}

/// Clients and servers reach each other through one of `ports`.
fn pair(objects: &mut Objects, ports: &[&str]) {
    set_routes(objects, "blue-a", through(2, ports));
    set_routes(objects, "blue-b", through(1, ports));
}

fn through_one_of(ports: &[&str]) -> Fabric {
    fabric(|objects| {
        with_appliances(objects);
        pair(objects, ports);
    })
}

/// The appliances that a frame passes, and the port that gets it.
#[track_caller]
fn way(fabric: &mut Fabric, from: &str, frame: &[u8]) -> (Vec<&'static str>, String) {
    let mut passed = Vec::new();
    let mut out = fabric.send(from, frame);
    loop {
        assert_eq!(out.len(), 1, "{from} {passed:?} {:?}", fabric.all_drops());
        let got = out.remove(0);
        read(&got.frame);
        let appliance = FIRST.iter().chain(&SECOND).find(|it| it.0 == got.port);
        let Some((name, at, _)) = appliance else {
            return (passed, got.port);
        };
        passed.push(*name);
        assert!(passed.len() < 4, "{passed:?}");
        let mut frame = got.frame;
        frame[..6].copy_from_slice(&ROUTER);
        frame[6..12].copy_from_slice(&at.mac);
        out = fabric.send(name, &frame);
    }
}

/// A question and its answer, of several kinds; one flow for each number.
fn exchange(number: u16, (client, server): (End, End)) -> [Vec<u8>; 2] {
    let (there, back) = ((2000 + number, 80), (80, 2000 + number));
    match number % 4 {
        0 => [
            udp(client, server, ROUTER, there, b"?"),
            udp(server, client, ROUTER, back, b"!"),
        ],
        1 => [
            udp6(client, server, ROUTER, there, b"?"),
            udp6(server, client, ROUTER, back, b"!"),
        ],
        2 => [
            tcp(client, server, ROUTER, there, "S", (1, 0), 0),
            tcp(server, client, ROUTER, back, "SA", (9, 2), 0),
        ],
        _ => [
            echo(client, server, ROUTER, number, b"x"),
            echo_reply(server, client, ROUTER, number, b"x"),
        ],
    }
}

#[test]
fn both_directions_of_a_flow_pass_the_same_appliance_wherever_the_ends_are() {
    let mut fabric = through_one_of(&["f1", "f2", "f3"]);
    let mut used = BTreeSet::new();
    for (client, from, server, to) in PAIRS {
        for number in 0..40 {
            let [question, answer] = exchange(number, (from, to));
            let there = way(&mut fabric, client, &question);
            assert_eq!((there.0.len(), &*there.1), (1, server), "{number}");
            // Those that miss and those that hit.
            for _ in 0..2 {
                let back = way(&mut fabric, server, &answer);
                assert_eq!(back, (there.0.clone(), client.to_owned()), "{number}");
                assert_eq!(way(&mut fabric, client, &question), there);
            }
            used.extend(there.0);
        }
    }
    assert_eq!(used.len(), 3);
}

#[test]
fn a_policy_route_and_the_route_of_the_answers_choose_alike() {
    let ports = ["f1", "f2", "f3"];
    let mut fabric = fabric(|objects| {
        with_appliances(objects);
        objects.route_tables[0].policies = vec![PolicyRoute {
            priority: 1,
            destination: "10.0.2.0/24".into(),
            to: Some(Route {
                ecmp: hops(&ports),
                ..Route::default()
            }),
            ..PolicyRoute::default()
        }];
        set_routes(objects, "blue-b", through(1, &ports));
    });
    for (client, from, server, to) in PAIRS {
        for number in (0..40).filter(|number| number % 4 != 1) {
            let [question, answer] = exchange(number, (from, to));
            let there = way(&mut fabric, client, &question);
            assert_eq!(there.0.len(), 1);
            let back = way(&mut fabric, server, &answer);
            assert_eq!(back, (there.0, client.to_owned()));
        }
    }
}

#[test]
fn an_error_passes_the_appliance_of_the_flow_that_it_is_about() {
    let mut fabric = through_one_of(&["f1", "f2", "f3"]);
    for (client, from, server, to) in PAIRS {
        for number in 0..24 {
            let ports = (3000 + number, 80);
            let question = udp(from, to, ROUTER, ports, b"?");
            let (there, _) = way(&mut fabric, client, &question);
            // By whichever side, about what it got.
            let error = unreachable(to, from, ROUTER, &question[14..]);
            let back = way(&mut fabric, server, &error);
            assert_eq!(back, (there.clone(), client.to_owned()));
            let answer = udp(to, from, ROUTER, (ports.1, ports.0), b"!");
            way(&mut fabric, server, &answer);
            let error = unreachable(from, to, ROUTER, &answer[14..]);
            let there_too = way(&mut fabric, client, &error);
            assert_eq!(there_too, (there, server.to_owned()));
        }
    }
}

#[test]
fn flows_to_a_load_balancer_pass_one_appliance_with_their_answers_and_errors() {
    let virtual_end = End {
        v4: [10, 0, 2, 100],
        ..B1
    };
    let mut fabric = fabric(|objects| {
        with_appliances(objects);
        pair(objects, &["f1", "f2", "f3"]);
        // The client's host translates: what it has translated does not come back to it.
        for (name, ..) in FIRST {
            port(objects, name).host = "h2".into();
        }
        let member = |port: &str| v1::Member {
            port: port.into(),
            ..v1::Member::default()
        };
        objects.load_balancers.push(v1::LoadBalancer {
            id: "lb".into(),
            vpc: "blue".into(),
            addresses: vec!["10.0.2.100".into()],
            listeners: vec![v1::Listener {
                protocol: "udp".into(),
                port_min: 80,
                members: vec![member("b2")],
                ..v1::Listener::default()
            }],
            ..v1::LoadBalancer::default()
        });
    });
    for number in 0..24 {
        let ports = (3000 + number, 80);
        let question = udp(A1, virtual_end, ROUTER, ports, b"?");
        let there = way(&mut fabric, "a1", &question);
        assert_eq!((there.0.len(), &*there.1), (1, "b2"));
        let seen = udp(A1, B2, ROUTER, ports, b"?");
        let answer = udp(B2, A1, ROUTER, (ports.1, ports.0), b"!");
        let back = (there.0.clone(), "a1".to_owned());
        assert_eq!(way(&mut fabric, "b2", &answer), back);
        let error = unreachable(B2, A1, ROUTER, &seen[14..]);
        assert_eq!(way(&mut fabric, "b2", &error), back);
        let got = udp(virtual_end, A1, ROUTER, (ports.1, ports.0), b"!");
        let error = unreachable(A1, virtual_end, ROUTER, &got[14..]);
        assert_eq!(way(&mut fabric, "a1", &error), there);
    }
}

#[test]
fn an_appliance_that_leaves_moves_its_own_flows_both_ways_and_no_others() {
    let all = ["f1", "f2", "f3"];
    let mut fabric = through_one_of(&all);
    let exchanges: Vec<[Vec<u8>; 2]> = (0..60).map(|number| exchange(number, (A1, B2))).collect();
    let mut ways = Vec::new();
    for [question, answer] in &exchanges {
        let (there, _) = way(&mut fabric, "a1", question);
        assert_eq!(way(&mut fabric, "b2", answer).0, there);
        ways.push(there);
    }
    change(&mut fabric, |objects| pair(objects, &["f1", "f3"]));
    let mut moved = 0;
    for ([question, answer], before) in exchanges.iter().zip(&ways) {
        let (there, _) = way(&mut fabric, "a1", question);
        assert_eq!(way(&mut fabric, "b2", answer).0, there);
        assert_ne!(there, ["f2"]);
        assert!(there == *before || *before == ["f2"]);
        moved += usize::from(there != *before);
    }
    assert!(moved > 5, "{moved}");
    change(&mut fabric, |objects| pair(objects, &all));
    for ([question, answer], before) in exchanges.iter().zip(&ways) {
        assert_eq!(way(&mut fabric, "a1", question).0, *before);
        assert_eq!(way(&mut fabric, "b2", answer).0, *before);
    }
}

/// What was found of appliances: that these do not live.
fn down(fabric: &mut Fabric, ports: &[&str]) {
    change(fabric, |objects| {
        let health = |id: &&str| v1::PortHealth {
            id: (*id).into(),
            vpc: "blue".into(),
            ..v1::PortHealth::default()
        };
        objects.port_health = ports.iter().map(health).collect();
    });
}

#[test]
fn an_appliance_that_does_not_live_takes_no_flows_until_it_does_again() {
    let mut fabric = through_one_of(&["f1", "f2", "f3"]);
    let exchanges: Vec<[Vec<u8>; 2]> = (0..60).map(|number| exchange(number, (A1, B2))).collect();
    let mut ways = Vec::new();
    for [question, answer] in &exchanges {
        let (there, _) = way(&mut fabric, "a1", question);
        assert_eq!(way(&mut fabric, "b2", answer).0, there);
        ways.push(there);
    }
    for gone in ["f1", "f2"] {
        down(&mut fabric, &[gone]);
        let mut moved = 0;
        for ([question, answer], before) in exchanges.iter().zip(&ways) {
            let (there, _) = way(&mut fabric, "a1", question);
            assert_eq!(way(&mut fabric, "b2", answer).0, there);
            assert_ne!(there, [gone]);
            assert!(there == *before || *before == [gone]);
            moved += usize::from(there != *before);
        }
        assert!(moved > 5, "{moved}");
    }
    down(&mut fabric, &[]);
    for ([question, _], before) in exchanges.iter().zip(&ways) {
        assert_eq!(way(&mut fabric, "a1", question).0, *before);
    }
    // Of none that lives there is no way.
    down(&mut fabric, &["f1", "f2", "f3"]);
    assert_eq!(fabric.send("a1", &exchanges[0][0]), []);
    assert_eq!(fabric.drops("h1", DropReason::NextHopGone), 1);
    // A route to one port alone leads there, whatever was found of it.
    change(&mut fabric, |objects| {
        for table in &mut objects.route_tables {
            for route in &mut table.routes {
                route.ecmp.clear();
                route.port = "f1".into();
            }
        }
    });
    assert_eq!(way(&mut fabric, "a1", &exchanges[0][0]).0, ["f1"]);
}

#[test]
fn what_answers_a_question_of_the_gateway_goes_to_who_asked_past_all_rules() {
    let mut fabric = fabric(|objects| {
        with_appliances(objects);
        port(objects, "f1").security_groups.clear();
    });
    let gateway = End {
        v4: [10, 0, 3, 1],
        ..B1
    };
    let f1 = FIRST[0].1;
    let checks = fabric.checks("h1");
    let index = fabric.port_index("h1", "f1").unwrap();
    let asked = |protocol, to| Asked {
        port: index,
        protocol,
        to,
    };
    let (tcp_number, ping) = (
        checks.begin(asked(6, 80)).unwrap(),
        checks.begin(asked(1, 0)).unwrap(),
    );
    let drops = |fabric: &Fabric| fabric.drops("h1", DropReason::GatewayUnserved);
    for frame in [
        tcp(f1, gateway, ROUTER, (80, tcp_number), "SA", (9, 2), 0),
        echo_reply(f1, gateway, ROUTER, ping, b"x"),
    ] {
        assert_eq!(fabric.send("f1", &frame), []);
    }
    assert_eq!(drops(&fabric), 0);
    // Nobody asked, or somebody else.
    for frame in [
        tcp(f1, gateway, ROUTER, (81, tcp_number), "SA", (9, 2), 0),
        echo_reply(f1, gateway, ROUTER, ping + 7, b"x"),
    ] {
        assert_eq!(fabric.send("f1", &frame), []);
    }
    assert_eq!(drops(&fabric), 2);
    // The guest's own ping of the gateway is answered, whatever its number.
    for id in [ping, ping.wrapping_sub(0x0801)] {
        let out = fabric.send("f1", &echo(f1, gateway, ROUTER, id, b"x"));
        assert_eq!((out.len(), &*out[0].port), (1, "f1"));
    }
}

#[test]
fn a_flow_passes_one_set_of_appliances_after_the_other_and_its_answers_the_other_way_round() {
    let (first, second) = (["f1", "f2", "f3"], ["g1", "g2"]);
    let mut fabric = fabric(|objects| {
        with_appliances(objects);
        set_routes(objects, "blue-a", through(2, &first));
        set_routes(objects, "blue-3", through(2, &second));
        set_routes(objects, "blue-b", through(1, &second));
        set_routes(objects, "blue-4", through(1, &first));
    });
    let mut used = BTreeSet::new();
    for (client, from, server, to) in PAIRS {
        for number in 0..48 {
            let [question, answer] = exchange(number, (from, to));
            let there = way(&mut fabric, client, &question);
            assert_eq!((there.0.len(), &*there.1), (2, server), "{number}");
            let mut wanted = there.0.clone();
            wanted.reverse();
            for _ in 0..2 {
                let back = way(&mut fabric, server, &answer);
                assert_eq!(back, (wanted.clone(), client.to_owned()), "{number}");
                assert_eq!(way(&mut fabric, client, &question), there);
            }
            used.insert(there.0);
        }
    }
    assert_eq!(used.len(), 6, "{used:?}");
}

#[test]
fn a_trace_says_among_how_many_appliances_was_chosen() {
    let mut fabric = through_one_of(&["f1", "f2", "f3"]);
    let frame = udp(A1, B2, ROUTER, (2000, 80), b"?");
    let (passed, _) = way(&mut fabric, "a1", &frame);
    let (host, index) = fabric.find_port("a1").unwrap();
    let trace = trace::trace(fabric.hosts[&host].view(), index, &frame);
    let steps: Vec<String> = trace
        .steps
        .into_iter()
        .filter(|(stage, _)| matches!(*stage, "ecmp" | "route"))
        .map(|(_, text)| text)
        .collect();
    let mac = FIRST.iter().find(|it| it.0 == passed[0]).unwrap().1.mac;
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    assert_eq!(steps[0], "one of 3 next hops");
    assert!(
        steps[1].contains(passed[0]) || steps[1].contains(&mac),
        "{steps:?} {passed:?}"
    );
    assert_eq!(fabric.all_drops().get(&DropReason::NextHopGone), None);
}
