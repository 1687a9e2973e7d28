//! Policy routes of route tables, and the DSCP that ports mark with.

use super::*;
use crate::v1::{HealthCheck, NatGateway, PolicyRoute, PortHealth};

/// One that is right.
fn policy(priority: u32) -> PolicyRoute {
    PolicyRoute {
        priority,
        source: "10.0.0.0/25".into(),
        destination: "192.0.2.0/24".into(),
        protocol: "tcp".into(),
        source_port_min: Some(1024),
        source_port_max: Some(65535),
        destination_port_min: Some(443),
        destination_port_max: Some(443),
        dscp: Some(46),
        to: Some(Route {
            port: "p2".into(),
            ..Route::default()
        }),
        default_routing: false,
    }
}

/// The table has one, changed.
fn with(change: impl FnOnce(&mut PolicyRoute)) -> impl FnOnce(&mut Objects) {
    |objects| {
        let mut policy = policy(100);
        change(&mut policy);
        objects.route_tables[0].policies = vec![policy];
    }
}

#[test]
fn a_policy_route_leads_wherever_a_route_does() {
    accepted(with(|_| {}));
    accepted(with(|it| it.priority = 32767));
    let to = |change: fn(&mut Route)| {
        with(move |it| {
            let mut to = Route::default();
            change(&mut to);
            it.to = Some(to);
        })
    };
    accepted(to(|to| to.blackhole = true));
    accepted(to(|to| to.local = true));
    accepted(to(|to| to.host = "h2".into()));
    accepted(with(|it| {
        it.to = None;
        it.default_routing = true;
    }));
    refused(
        "route_table main policies[0].to: exactly one of",
        to(|_| {}),
    );
    refused(
        "route_table main policies[0].to.port: there is no port 'x'",
        to(|to| to.port = "x".into()),
    );
    refused(
        "route_table main policies[0].to.port: port 'r1' belongs to vpc 'red'",
        to(|to| to.port = "r1".into()),
    );
    refused(
        "route_table main policies[0].to.nat: there is no nat_gateway 'x'",
        to(|to| to.nat = "x".into()),
    );
    refused(
        "route_table main policies[0].to.ecmp[0]: exactly one",
        to(|to| to.ecmp = vec![NextHop::default()]),
    );
    refused(
        "route_table main policies[0].to.prefix: a policy route matches by its own fields",
        with(|it| it.to.as_mut().unwrap().prefix = "10.0.0.0/8".into()),
    );
    for (is_to, default_routing) in [(false, false), (true, true)] {
        let change = |it: &mut PolicyRoute| {
            it.to = it.to.take().filter(|_| is_to);
            it.default_routing = default_routing;
        };
        refused(
            "route_table main policies[0]: exactly one of to and default_routing is set",
            with(change),
        );
    }
}

#[test]
fn what_a_policy_route_leads_to_stays_while_it_does() {
    let nat = |objects: &mut Objects| {
        objects.nat_gateways.push(NatGateway {
            id: "nat".into(),
            vpc: "red".into(),
            ..NatGateway::default()
        });
        with(|it| {
            it.to = Some(Route {
                nat: "nat".into(),
                ..Route::default()
            });
        })(objects);
    };
    let found = violations(nat, Scope::Intent);
    let wanted = "policies[0].to.nat: nat_gateway 'nat' belongs to vpc 'red'";
    assert!(found.iter().any(|line| line.contains(wanted)), "{found:?}");
    let mut objects = good();
    with(|_| {})(&mut objects);
    let before = State::from_objects(objects.clone()).unwrap();
    objects.ports[1].host.clear();
    let after = State::from_objects(objects).unwrap();
    let found = validate_next(&before, &after, Scope::Intent);
    let found: Vec<String> = found.iter().map(describe).collect();
    let wanted = "policies[0].to.port: port 'p2' is on no host";
    assert!(found.iter().any(|line| line.contains(wanted)), "{found:?}");
}

#[test]
fn a_policy_route_matches_something_that_can_be() {
    refused(
        "route_table main policies[0].source: '10.0.0.1/24' has host bits",
        with(|it| it.source = "10.0.0.1/24".into()),
    );
    refused(
        "route_table main policies[0]: IPv4 and IPv6 are mixed",
        with(|it| it.source = "fd00::/64".into()),
    );
    refused(
        "route_table main policies[0]: IPv4 and IPv6 are mixed",
        with(|it| {
            *it = PolicyRoute {
                protocol: "icmpv6".into(),
                source_port_min: None,
                source_port_max: None,
                destination_port_min: None,
                destination_port_max: None,
                ..it.clone()
            };
        }),
    );
    refused(
        "route_table main policies[0].protocol: 'smtp'",
        with(|it| it.protocol = "smtp".into()),
    );
    refused(
        "route_table main policies[0].source_port_min: 2000 to 1999 is an empty range",
        with(|it| (it.source_port_min, it.source_port_max) = (Some(2000), Some(1999))),
    );
    refused(
        "route_table main policies[0].destination_port_max: 65536 is outside 0 to 65535",
        with(|it| it.destination_port_max = Some(65536)),
    );
    refused(
        "route_table main policies[0].destination_port_max: set both",
        with(|it| it.destination_port_max = None),
    );
    refused(
        "route_table main policies[0].dscp: 64 is outside 0 to 63",
        with(|it| it.dscp = Some(64)),
    );
    for name in ["source_port_min", "destination_port_min"] {
        let mut objects = good();
        with(|it| it.protocol = "icmp".into())(&mut objects);
        let found = validate(&State::from_objects(objects).unwrap(), Scope::Intent);
        let found: Vec<String> = found.iter().map(describe).collect();
        let wanted = format!("policies[0].{name}: only tcp, udp and sctp have ports");
        assert!(found.iter().any(|line| line.contains(&wanted)), "{found:?}");
    }
    let nothing = |it: &mut PolicyRoute| {
        *it = PolicyRoute {
            priority: 1,
            protocol: "any".into(),
            to: it.to.clone(),
            ..PolicyRoute::default()
        };
    };
    refused(
        "route_table main policies[0]: set source, destination, protocol or dscp",
        with(nothing),
    );
    for change in [
        (|it| it.source = "::/0".into()) as fn(&mut PolicyRoute),
        |it| it.destination = "10.0.0.0/8".into(),
        |it| it.protocol = "udp".into(),
        |it| it.dscp = Some(0),
    ] {
        accepted(with(move |it| {
            nothing(it);
            change(it);
        }));
    }
}

#[test]
fn each_policy_route_has_a_priority_of_its_own() {
    for (priority, text) in [(0, "0"), (32768, "32768")] {
        let wanted = format!("route_table main policies[0].priority: {text} is outside 1 to 32767");
        refused(&wanted, with(|it| it.priority = priority));
    }
    refused(
        "route_table main policies[1].priority: 7 is already used by policies[0]",
        |o| o.route_tables[0].policies = vec![policy(7), policy(7)],
    );
    refused(
        "route_table main policies: a route table has at most 1000 policy routes, and 1001 are given",
        |o| o.route_tables[0].policies = (1..=1001).map(policy).collect(),
    );
    accepted(|o| o.route_tables[0].policies = (1..=1000).map(policy).collect());
}

#[test]
fn a_port_marks_with_six_bits() {
    for dscp in [0, 46, 63] {
        accepted(|o| o.ports[0].dscp = Some(dscp));
    }
    refused("port p1 dscp: 64 is outside 0 to 63", |o| {
        o.ports[0].dscp = Some(64);
    });
}

#[test]
fn an_appliance_is_asked_at_an_address_and_a_port() {
    type Change = fn(&mut HealthCheck);
    let checked = |change: Change| {
        move |o: &mut Objects| {
            let mut health = HealthCheck {
                protocol: "tcp".into(),
                port: 22,
                ..HealthCheck::default()
            };
            change(&mut health);
            o.ports[0].health = Some(Box::new(health));
        }
    };
    accepted(checked(|_| {}));
    accepted(checked(|it| (it.protocol, it.port) = ("icmp".into(), 0)));
    let cases: [(&str, Change); 4] = [
        ("port: give the port that is asked by tcp", |it| it.port = 0),
        ("protocol: 'arp' is none of", |it| {
            it.protocol = "arp".into();
        }),
        ("interval_ms: 100 is outside 200 to 300000", |it| {
            it.interval_ms = 100;
        }),
        ("path: is for http alone", |it| it.path = "/".into()),
    ];
    for (rule, bad) in cases {
        refused(&format!("port p1 health.{rule}"), checked(bad));
    }
    refused("port p1 health: a port that is asked has an address", |o| {
        checked(|_| {})(o);
        o.ports[0].addresses.clear();
    });
    // It is asked from where it is: nowhere yet, or by a weftd.
    accepted(|o| {
        checked(|_| {})(o);
        o.route_tables[0].routes.clear();
        o.ports[0].host.clear();
    });
    let host = good().ports[0].host.clone();
    let rule = format!("port p1 health: host '{host}' is foreign: no weftd there asks");
    refused(&rule, |o| {
        checked(|_| {})(o);
        let mut hosts = o.hosts.iter_mut();
        hosts.find(|it| it.id == host).unwrap().foreign = true;
        o.ports[0].device = None;
    });
}

#[test]
fn whether_an_appliance_lives_is_not_of_the_intent() {
    let health = || PortHealth {
        id: "p1".into(),
        vpc: good().vpcs[0].id.clone(),
        ..PortHealth::default()
    };
    let rule = "port_health p1 id: hosts find out whether appliances live";
    refused(rule, move |o| o.port_health.push(health()));
    let found = |health: PortHealth| {
        let objects = Objects {
            vpcs: good().vpcs,
            port_health: vec![health],
            ..Objects::default()
        };
        let state = State::from_objects(objects).unwrap();
        validate(&state, Scope::Node { host: "h1" }).len()
    };
    assert_eq!(
        found(health()),
        0,
        "of a port that it does not know any more"
    );
    let strange = PortHealth {
        vpc: "nowhere".into(),
        ..health()
    };
    assert_eq!(found(strange), 1);
}
