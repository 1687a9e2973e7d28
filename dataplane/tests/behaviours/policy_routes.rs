//! Policy routes: before the routing table, by more than the destination, for packets that are routed in the direction of who opened the flow.

use weft_dataplane::packet::DropReason;
use weft_dataplane::pipeline::trace;
use weft_fabric::Fabric;
use weft_proto::v1::{self, Objects, PolicyRoute, Route};

use crate::external::{FAR, gateway, outside, v4};
use crate::fragments::pieces;
use crate::frames::{A1, A2, A3, B1, B2, End, echo, echo_reply, read, tcp, udp, udp6};
use crate::topology::{ROUTER, change, fabric, port};
use crate::translation::unreachable;

/// A policy route to a port.
fn to(priority: u32, port: &str) -> PolicyRoute {
    PolicyRoute {
        priority,
        to: Some(Route {
            port: port.into(),
            ..Route::default()
        }),
        ..PolicyRoute::default()
    }
}

/// The base topology, with policy routes in the table of blue-a.
fn ruled(policies: Vec<PolicyRoute>) -> Fabric {
    fabric(|objects| objects.route_tables[0].policies = policies)
}

fn set(fabric: &mut Fabric, policies: Vec<PolicyRoute>) {
    change(fabric, |objects| {
        objects.route_tables[0].policies = policies;
    });
}

/// The port that gets the one frame.
#[track_caller]
fn goes_to(fabric: &mut Fabric, from: &str, frame: &[u8]) -> String {
    let out = fabric.send(from, frame);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    read(&out[0].frame);
    out[0].port.clone()
}

fn with_dscp(mut frame: Vec<u8>, dscp: u8) -> Vec<u8> {
    frame[15] = dscp << 2;
    crate::overlay::mend_ipv4(&mut frame, 14);
    frame
}

#[test]
fn each_field_decides_and_what_matches_none_goes_by_the_table() {
    let mut fabric = ruled(vec![
        PolicyRoute {
            source: "10.0.1.13/32".into(),
            ..to(1, "b1")
        },
        PolicyRoute {
            destination: "10.0.2.12/32".into(),
            protocol: "udp".into(),
            destination_port_min: Some(53),
            destination_port_max: Some(54),
            ..to(2, "b1")
        },
        PolicyRoute {
            protocol: "udp".into(),
            source_port_min: Some(5000),
            source_port_max: Some(5000),
            ..to(3, "b1")
        },
        PolicyRoute {
            protocol: "icmp".into(),
            ..to(4, "b1")
        },
        PolicyRoute {
            dscp: Some(46),
            ..to(5, "b1")
        },
        PolicyRoute {
            source: "fd00:1::/64".into(),
            ..to(6, "b1")
        },
    ]);
    let plain = |ports| udp(A1, B2, ROUTER, ports, b"x");
    for (name, frame, wanted) in [
        ("nothing", plain((1, 80)), "b2"),
        ("source", udp(A3, B2, ROUTER, (1, 80), b"x"), "b1"),
        ("first port", plain((1, 53)), "b1"),
        ("last port", plain((1, 54)), "b1"),
        ("beyond", plain((1, 55)), "b2"),
        ("source port", plain((5000, 80)), "b1"),
        ("ping", echo(A1, B2, ROUTER, 7, b"x"), "b1"),
        ("tcp", tcp(A1, B2, ROUTER, (5000, 53), "S", (1, 0), 0), "b2"),
        ("dscp", with_dscp(plain((2, 80)), 46), "b1"),
        ("another dscp", with_dscp(plain((3, 80)), 45), "b2"),
        ("IPv6", udp6(A1, B2, ROUTER, (1, 80), b"x"), "b1"),
    ] {
        let from = if name == "source" { "a3" } else { "a1" };
        // A miss, and two hits.
        for _ in 0..3 {
            assert_eq!(goes_to(&mut fabric, from, &frame), wanted, "{name}");
        }
    }
}

#[test]
fn the_lowest_priority_decides_and_default_routing_asks_no_further() {
    let all = |priority, port| PolicyRoute {
        source: "10.0.1.0/24".into(),
        ..to(priority, port)
    };
    let exempt = PolicyRoute {
        to: None,
        default_routing: true,
        destination: "10.0.2.0/24".into(),
        ..to(5, "")
    };
    let hole = PolicyRoute {
        priority: 1,
        protocol: "tcp".into(),
        to: Some(Route {
            blackhole: true,
            ..Route::default()
        }),
        ..PolicyRoute::default()
    };
    // In no order.
    let mut fabric = ruled(vec![all(20, "b2"), hole, all(10, "b1")]);
    let beyond = End {
        v4: [192, 0, 2, 1],
        ..B1
    };
    let far = udp(A1, beyond, ROUTER, (1, 2), b"x");
    let near = udp(A1, B2, ROUTER, (1, 2), b"x");
    assert_eq!(goes_to(&mut fabric, "a1", &far), "b1");
    assert_eq!(goes_to(&mut fabric, "a1", &near), "b1");
    let syn = tcp(A1, B2, ROUTER, (1, 2), "S", (1, 0), 0);
    assert_eq!(fabric.send("a1", &syn), []);
    assert_eq!(fabric.drops("h1", DropReason::Blackhole), 1);
    set(&mut fabric, vec![all(20, "b2"), exempt, all(10, "b1")]);
    assert_eq!(goes_to(&mut fabric, "a1", &far), "b1");
    assert_eq!(goes_to(&mut fabric, "a1", &near), "b2", "as the table says");
    set(&mut fabric, vec![all(20, "b2")]);
    assert_eq!(goes_to(&mut fabric, "a1", &far), "b2");
}

#[test]
fn a_change_holds_for_sessions_at_once() {
    let mut fabric = ruled(Vec::new());
    let frame = udp(A1, B2, ROUTER, (1, 2), b"x");
    let rule = || PolicyRoute {
        source: "10.0.1.11/32".into(),
        ..to(1, "b1")
    };
    for _ in 0..3 {
        assert_eq!(goes_to(&mut fabric, "a1", &frame), "b2");
    }
    set(&mut fabric, vec![rule()]);
    for _ in 0..3 {
        assert_eq!(goes_to(&mut fabric, "a1", &frame), "b1");
    }
    set(&mut fabric, Vec::new());
    for _ in 0..3 {
        assert_eq!(goes_to(&mut fabric, "a1", &frame), "b2");
    }
    // And when the port that it leads to is gone, or back.
    set(&mut fabric, vec![rule()]);
    assert_eq!(goes_to(&mut fabric, "a1", &frame), "b1");
    let mut gone = None;
    change(&mut fabric, |objects| {
        let at = objects.ports.iter().position(|port| port.id == "b1");
        gone = at.map(|at| objects.ports.remove(at));
    });
    assert_eq!(fabric.send("a1", &frame), []);
    assert_eq!(fabric.drops("h1", DropReason::NextHopGone), 1);
    change(&mut fabric, |objects| objects.ports.extend(gone));
    assert_eq!(goes_to(&mut fabric, "a1", &frame), "b1");
}

#[test]
fn answers_and_errors_go_by_the_table() {
    // Whatever a guest of blue-a sends goes to b1; but only what it begins.
    let mut fabric = ruled(vec![PolicyRoute {
        source: "10.0.1.0/24".into(),
        ..to(1, "b1")
    }]);
    for _ in 0..3 {
        let question = udp(B2, A1, ROUTER, (9, 53), b"?");
        assert_eq!(goes_to(&mut fabric, "b2", &question), "a1");
        let answer = udp(A1, B2, ROUTER, (53, 9), b"!");
        assert_eq!(goes_to(&mut fabric, "a1", &answer), "b2");
    }
    assert_eq!(
        goes_to(&mut fabric, "b2", &echo(B2, A1, ROUTER, 7, b"x")),
        "a1"
    );
    let reply = echo_reply(A1, B2, ROUTER, 7, b"x");
    assert_eq!(goes_to(&mut fabric, "a1", &reply), "b2");
    // After a change, which has sessions decided anew, too.
    change(&mut fabric, |objects| {
        objects.route_tables[0].policies[0].priority = 2;
    });
    let answer = udp(A1, B2, ROUTER, (53, 9), b"!");
    assert_eq!(goes_to(&mut fabric, "a1", &answer), "b2");
    let question = udp(B2, A1, ROUTER, (9, 53), b"?");
    let error = unreachable(A1, B2, ROUTER, &question[14..]);
    assert_eq!(goes_to(&mut fabric, "a1", &error), "b2");
    let own = udp(A1, B2, ROUTER, (54, 9), b"!");
    assert_eq!(goes_to(&mut fabric, "a1", &own), "b1");
}

#[test]
fn what_stays_in_the_subnet_or_is_for_the_gateway_is_not_asked() {
    let mut fabric = ruled(vec![PolicyRoute {
        source: "10.0.1.0/24".into(),
        ..to(1, "b1")
    }]);
    let within = udp(A1, A2, A2.mac, (1, 2), b"x");
    assert_eq!(goes_to(&mut fabric, "a1", &within), "a2");
    let ping = End {
        v4: [10, 0, 1, 1],
        ..B1
    };
    assert_eq!(
        goes_to(&mut fabric, "a1", &echo(A1, ping, ROUTER, 7, b"x")),
        "a1"
    );
    // A guest that sends what is for its own subnet through the gateway has it routed.
    let around = udp(A1, A2, ROUTER, (3, 2), b"x");
    assert_eq!(goes_to(&mut fabric, "a1", &around), "b1");
    // Who has another table, or none, is not asked.
    let other = udp(B2, B1, ROUTER, (1, 2), b"x");
    assert_eq!(goes_to(&mut fabric, "b2", &other), "b1");
    assert_eq!(
        goes_to(&mut fabric, "b1", &udp(B1, A2, ROUTER, (1, 2), b"x")),
        "a2"
    );
}

#[test]
fn fragments_go_where_the_first_of_them_goes() {
    let mut fabric = ruled(vec![PolicyRoute {
        protocol: "udp".into(),
        destination_port_min: Some(53),
        destination_port_max: Some(53),
        ..to(1, "b1")
    }]);
    for (id, port, wanted) in [(7, 53, "b1"), (8, 54, "b2")] {
        let whole = udp(A1, B2, ROUTER, (9, port), &[7; 3000]);
        let parts = pieces(&whole, id, 1400, None);
        let mut out = fabric.send("a1", &parts[2]);
        assert_eq!(out, [], "it waits");
        out.extend(fabric.send("a1", &parts[0]));
        out.extend(fabric.send("a1", &parts[1]));
        let ports: Vec<&str> = out.iter().map(|it| it.port.as_str()).collect();
        assert_eq!(ports, [wanted; 3]);
    }
}

#[test]
fn a_port_is_routed_by_the_dscp_that_it_marks_with() {
    let mut fabric = fabric(|objects| {
        port(objects, "a1").dscp = Some(10);
        objects.route_tables[0].policies = vec![PolicyRoute {
            dscp: Some(10),
            ..to(1, "b1")
        }];
    });
    // Whatever its guest says.
    for (ports, dscp) in [((1, 2), 0), ((2, 2), 10), ((3, 2), 46)] {
        let frame = with_dscp(udp(A1, B2, ROUTER, ports, b"x"), dscp);
        assert_eq!(goes_to(&mut fabric, "a1", &frame), "b1");
    }
    let other = udp(A3, B2, ROUTER, (1, 2), b"x");
    assert_eq!(goes_to(&mut fabric, "a3", &other), "b2");
}

#[test]
fn ecmp_spreads_and_a_flow_stays() {
    let hop = |port: &str| v1::NextHop {
        port: port.into(),
        ..v1::NextHop::default()
    };
    let mut rule = PolicyRoute {
        protocol: "udp".into(),
        ..to(1, "")
    };
    rule.to = Some(Route {
        ecmp: vec![hop("b1"), hop("a2")],
        ..Route::default()
    });
    let mut fabric = ruled(vec![rule]);
    let mut counts = [0; 2];
    for flow in 1..=400 {
        let frame = udp(A1, B2, ROUTER, (flow, 2), b"x");
        let first = goes_to(&mut fabric, "a1", &frame);
        assert_eq!(goes_to(&mut fabric, "a1", &frame), first);
        counts[usize::from(first == "a2")] += 1;
    }
    assert!(counts.iter().all(|count| *count > 120), "{counts:?}");
}

/// A NAT gateway on h1, to which the table leads nothing but what a policy route does.
fn by_nat(objects: &mut Objects) {
    gateway(objects);
    let table = &mut objects.route_tables[0];
    table.routes.clear();
    table.policies = vec![PolicyRoute {
        protocol: "udp".into(),
        destination: "198.51.100.0/24".into(),
        dscp: Some(46),
        to: Some(Route {
            nat: "nat".into(),
            ..Route::default()
        }),
        ..to(7, "")
    }];
}

#[test]
fn a_policy_route_leads_to_a_nat_gateway_here_and_on_another_host() {
    let mut fabric = outside(by_nat);
    for (name, end, port) in [("a1", A1, 53), ("a2", A2, 54)] {
        let frame = with_dscp(udp(end, FAR, ROUTER, (7, port), b"?"), 46);
        for _ in 0..3 {
            fabric.outside.clear();
            assert_eq!(fabric.send(name, &frame), []);
            let frames = fabric.outside.clone();
            assert_eq!(frames.len(), 1, "{name} {:?}", fabric.all_drops());
            let seen = read(&frames[0].1);
            assert_eq!(seen.source.to_string(), "203.0.113.5");
            assert_eq!(seen.destination, v4(FAR));
            // And its answers come back.
            let mut back = crate::external::held(5);
            back.v4 = [203, 0, 113, 5];
            let answer = udp(FAR, back, back.mac, (port, seen.source_port), b"!");
            let out = fabric.send_from_uplink("h1", 1, &answer);
            assert_eq!(out[0].port, name);
        }
        let other = udp(end, FAR, ROUTER, (8, port), b"?");
        fabric.outside.clear();
        assert_eq!(fabric.send(name, &other), []);
        assert_eq!(fabric.outside, [], "no route without the DSCP");
    }
}

#[test]
fn a_trace_names_the_policy_route_that_decided() {
    let exempt = PolicyRoute {
        to: None,
        default_routing: true,
        protocol: "tcp".into(),
        ..to(3, "")
    };
    let fabric = ruled(vec![
        PolicyRoute {
            protocol: "udp".into(),
            ..to(100, "b1")
        },
        exempt,
    ]);
    let steps = |frame: &[u8]| {
        let (host, port) = fabric.find_port("a1").unwrap();
        let trace = trace::trace(fabric.hosts[&host].view(), port, frame);
        let steps = trace.steps.into_iter();
        let routes = steps.filter(|(stage, _)| *stage == "route");
        routes.map(|(_, text)| text).collect::<Vec<_>>()
    };
    assert_eq!(
        steps(&udp(A1, B2, ROUTER, (1, 2), b"x")),
        ["policy route 100: port b1"]
    );
    assert_eq!(
        steps(&tcp(A1, B2, ROUTER, (1, 2), "S", (1, 0), 0)),
        [
            "policy route 3: default routing",
            "10.0.2.12 matches a /24: port 02:00:00:00:02:02 on host h2"
        ]
    );
    assert_eq!(
        steps(&echo(A1, B2, ROUTER, 7, b"x")),
        ["10.0.2.12 matches a /24: port 02:00:00:00:02:02 on host h2"]
    );
}
