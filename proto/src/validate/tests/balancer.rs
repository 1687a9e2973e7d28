//! Load balancers: their addresses, listeners and members, and what others must respect.

use super::port_changes::Numbers;
use super::*;
use crate::v1::{HealthCheck, Listener, LoadBalancer, Member, MemberHealth};
use crate::validate::port_changes::are_good;

fn by_port(id: &str) -> Member {
    Member {
        port: id.into(),
        ..Member::default()
    }
}

fn by_address(address: &str) -> Member {
    Member {
        address: address.into(),
        ..Member::default()
    }
}

fn listener(protocol: &str, ports: (u32, u32), members: Vec<Member>) -> Listener {
    Listener {
        protocol: protocol.into(),
        port_min: ports.0,
        port_max: ports.1,
        members,
        ..Listener::default()
    }
}

/// Blue's, with p1 by its name and p2 by its name and by its address.
fn add(objects: &mut Objects) {
    objects.load_balancers.push(LoadBalancer {
        id: "lb".into(),
        vpc: "blue".into(),
        addresses: vec!["10.0.0.200".into(), "fd00::200".into()],
        listeners: vec![
            listener("tcp", (80, 0), vec![by_port("p1"), by_port("p2")]),
            listener("udp", (5000, 5099), vec![by_address("10.0.0.12")]),
        ],
        ..LoadBalancer::default()
    });
}

fn with(change: impl FnOnce(&mut LoadBalancer)) -> impl FnOnce(&mut Objects) {
    |o| {
        add(o);
        change(&mut o.load_balancers[0]);
    }
}

/// The rules that a state breaks by a change of one with the load balancer.
fn found_by_change(scope: Scope<'_>, change: impl FnOnce(&mut Objects)) -> Vec<String> {
    let mut objects = good();
    add(&mut objects);
    let before = State::from_objects(objects.clone()).unwrap();
    assert_eq!(validate(&before, Scope::Intent), vec![]);
    change(&mut objects);
    let next = State::from_objects(objects).unwrap();
    let found = validate_next(&before, &next, scope);
    assert_eq!(found.is_empty(), validate(&next, scope).is_empty());
    found.iter().map(describe).collect()
}

#[track_caller]
fn refused_by_change(expected: &str, change: impl FnOnce(&mut Objects)) {
    let found = found_by_change(Scope::Intent, change);
    assert!(
        found.len() == 1 && found[0].starts_with(expected),
        "expected '{expected}', found {found:#?}"
    );
}

#[test]
fn a_load_balancer_of_a_vpc_is_accepted() {
    accepted(add);
    accepted(with(|it| it.listeners.clear()));
    accepted(with(|it| it.listeners[0].members.clear()));
    accepted(with(|it| {
        it.listeners[0].algorithm = "round-robin".into();
        it.listeners[0].affinity = "five-tuple".into();
        it.listeners[0].members[0].weight = 256;
        it.listeners[0].members[0].draining = true;
        it.listeners[1].algorithm = "maglev".into();
        it.listeners[1].affinity = "source".into();
    }));
    accepted(with(|it| {
        it.listeners[0].algorithm = "least-connections".into();
        it.listeners[0].affinity = "five-tuple".into();
    }));
    // The same port at another of the member's.
    accepted(with(|it| {
        let mut other = by_port("p1");
        other.to_port_min = 8080;
        it.listeners[0].members.push(other);
    }));
    // Red has the same addresses.
    accepted(|o| {
        add(o);
        let mut other = o.load_balancers[0].clone();
        (other.id, other.vpc) = ("red-lb".into(), "red".into());
        other.addresses.pop();
        other.listeners = vec![listener("tcp", (80, 0), vec![by_port("r1")])];
        o.load_balancers.push(other);
    });
}

#[test]
fn an_address_is_in_a_subnet_of_the_vpc_and_nobodys() {
    let first = "load_balancer lb addresses[0]: ";
    let address = |text: &'static str| with(move |it| it.addresses[0] = text.into());
    for (text, rule) in [
        ("10.0.0.256", "'10.0.0.256' is"),
        ("10.0.1.5", "10.0.1.5 is in no subnet of vpc 'blue'"),
        ("10.0.0.1", "10.0.0.1 is the gateway of subnet 'front'"),
        ("10.0.0.0", "10.0.0.0 is the network address of 10.0.0.0/24"),
        (
            "10.0.0.255",
            "10.0.0.255 is the broadcast address of 10.0.0.0/24",
        ),
        ("10.0.0.11", "10.0.0.11 is already used by port 'p1'"),
        ("127.0.0.1", "127.0.0.1 is"),
    ] {
        let found = violations(address(text), Scope::Intent);
        let told = format!("{first}{rule}");
        assert!(found[0].starts_with(&told), "{text}: {found:#?}");
    }
    refused(
        "load_balancer lb addresses: a load balancer needs at least one address",
        with(|it| {
            it.addresses.clear();
            it.listeners.clear();
        }),
    );
    refused(
        "load_balancer lb addresses[2]: a load balancer has at most one IPv4 address",
        with(|it| it.addresses.push("10.0.0.201".into())),
    );
    refused(
        "load_balancer lb vpc: there is no vpc 'x'",
        with(|it| {
            it.vpc = "x".into();
            it.addresses = vec!["10.0.0.200".into()];
            it.listeners.clear();
        }),
    );
    let found = violations(
        |o| {
            add(o);
            let mut other = o.load_balancers[0].clone();
            other.id = "other".into();
            o.load_balancers.push(other);
        },
        Scope::Intent,
    );
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(
        found.contains(
            &"load_balancer other addresses[1]: fd00::200 is already an address of load balancer 'lb'"
                .to_owned()
        ),
        "{found:#?}"
    );
}

#[test]
fn listeners_have_known_words_and_ranges_of_their_own() {
    refused(
        "load_balancer lb listeners[0].protocol: 'sctp' is neither tcp nor udp",
        with(|it| it.listeners[0].protocol = "sctp".into()),
    );
    refused(
        "load_balancer lb listeners[0].algorithm: 'random' is neither maglev, round-robin nor least-connections",
        with(|it| it.listeners[0].algorithm = "random".into()),
    );
    refused(
        "load_balancer lb listeners[0].affinity: 'cookie' is neither five-tuple nor source",
        with(|it| it.listeners[0].affinity = "cookie".into()),
    );
    refused(
        "load_balancer lb listeners[0].affinity: round-robin takes members in turn",
        with(|it| {
            it.listeners[0].algorithm = "round-robin".into();
            it.listeners[0].affinity = "source".into();
        }),
    );
    refused(
        "load_balancer lb listeners[0].affinity: least-connections goes by what members have",
        with(|it| {
            it.listeners[0].algorithm = "least-connections".into();
            it.listeners[0].affinity = "source".into();
        }),
    );
    for mode in ["", "nat", "dsr"] {
        accepted(with(move |it| it.listeners[0].mode = mode.into()));
    }
    refused(
        "load_balancer lb listeners[0].mode: 'tunnel' is neither nat nor dsr",
        with(|it| it.listeners[0].mode = "tunnel".into()),
    );
    for (ports, rule) in [
        ((0, 0), "port_min: 0 is outside 1 to 65535"),
        ((65536, 0), "port_min: 65536 is outside 1 to 65535"),
        ((80, 79), "port_max: 79 is outside 80 to 65535"),
        ((80, 65536), "port_max: 65536 is outside 80 to 65535"),
        (
            (80, u32::MAX),
            "port_max: 4294967295 is outside 80 to 65535",
        ),
    ] {
        refused(
            &format!("load_balancer lb listeners[0].{rule}"),
            with(|it| (it.listeners[0].port_min, it.listeners[0].port_max) = ports),
        );
    }
    // Ranges of one protocol.
    let more = |protocol: &'static str, ports| {
        with(move |it: &mut LoadBalancer| it.listeners.push(listener(protocol, ports, vec![])))
    };
    accepted(more("tcp", (5000, 5099)));
    accepted(more("udp", (5100, 0)));
    accepted(more("tcp", (1, 79)));
    accepted(more("tcp", (81, 65535)));
    for (ports, said) in [
        (
            (5099, 0),
            "listeners[2].port_min: udp 5099 to 5099 overlaps listeners[1]",
        ),
        (
            (5050, 5060),
            "listeners[2].port_min: udp 5050 to 5060 overlaps listeners[1]",
        ),
        (
            (4000, 6000),
            "listeners[1].port_min: udp 5000 to 5099 overlaps listeners[2]",
        ),
        (
            (5000, 5099),
            "listeners[2].port_min: udp 5000 to 5099 overlaps listeners[1]",
        ),
    ] {
        refused(&format!("load_balancer lb {said}"), more("udp", ports));
    }
    // A short one within a long one does not hide that a third is, too.
    let found = violations(
        with(|it| {
            it.listeners[1].members.clear();
            it.listeners[1].port_min = 5000;
            it.listeners[1].port_max = 6000;
            for port in [5100, 5200] {
                it.listeners.push(listener("udp", (port, 0), vec![]));
            }
        }),
        Scope::Intent,
    );
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found.iter().all(|it| it.ends_with("overlaps listeners[1]")));
}

#[test]
fn members_are_ports_or_addresses_of_the_vpc_each_once() {
    let member = |member: Member| {
        with(move |it: &mut LoadBalancer| {
            it.listeners[0].members.push(member);
        })
    };
    let at = "load_balancer lb listeners[0].members[2]";
    refused(
        &format!("{at}: exactly one of port and address is set"),
        member(Member::default()),
    );
    let both = Member {
        address: "10.0.0.11".into(),
        ..by_port("p1")
    };
    refused(
        &format!("{at}: exactly one of port and address is set"),
        member(both),
    );
    refused(
        &format!("{at}.port: there is no port 'x'"),
        member(by_port("x")),
    );
    refused(
        &format!("{at}.port: port 'r1' belongs to vpc 'red', not to 'blue'"),
        member(by_port("r1")),
    );
    for (text, rule) in [
        (
            "10.0.0.99",
            "10.0.0.99 is no address of a port of vpc 'blue'",
        ),
        // Its own.
        (
            "10.0.0.200",
            "10.0.0.200 is no address of a port of vpc 'blue'",
        ),
        ("10.0.0", "'10.0.0' is "),
    ] {
        refused(&format!("{at}.address: {rule}"), member(by_address(text)));
    }
    // The same by any of its names.
    let once_more = "is the member listeners[0].members[0] once more";
    for (again, field) in [
        (by_port("p1"), "port"),
        (by_address("10.0.0.11"), "address"),
        (by_address("FD00::B"), "address"),
    ] {
        refused(&format!("{at}.{field}: {once_more}"), member(again.clone()));
        let elsewhere = Member {
            to_port_min: 81,
            ..again
        };
        accepted(member(elsewhere));
    }
    let same = Member {
        to_port_min: 80,
        ..by_port("p1")
    };
    refused(&format!("{at}.port: {once_more}"), member(same));
}

#[test]
fn ports_of_a_member_and_weights_are_bounded() {
    let to = |ports, to_port_min| {
        with(move |it: &mut LoadBalancer| {
            let listener = &mut it.listeners[0];
            (listener.port_min, listener.port_max) = ports;
            listener.members[1].to_port_min = to_port_min;
        })
    };
    accepted(to((80, 0), 65535));
    accepted(to((80, 89), 65526));
    accepted(to((1, 65535), 1));
    let at = "load_balancer lb listeners[0].members[1]";
    for (ports, first, rule) in [
        ((80, 0), 65536, "65536 and the next 0 ports exceed 65535"),
        ((80, 89), 65527, "65527 and the next 9 ports exceed 65535"),
        ((1, 65535), 2, "2 and the next 65534 ports exceed 65535"),
        (
            (80, 0),
            u32::MAX,
            "4294967295 and the next 0 ports exceed 65535",
        ),
    ] {
        refused(&format!("{at}.to_port_min: {rule}"), to(ports, first));
    }
    // What a member gets as it was sent is for the port that it was sent to.
    let direct = |to_port_min| {
        with(move |it: &mut LoadBalancer| {
            it.listeners[0].mode = "dsr".into();
            it.listeners[0].members[1].to_port_min = to_port_min;
        })
    };
    accepted(direct(0));
    accepted(direct(80));
    refused(&format!("{at}.to_port_min: 8080 is not 80"), direct(8080));
    refused(
        &format!("{at}.weight: 257 exceeds 256"),
        with(|it| it.listeners[0].members[1].weight = 257),
    );
}

#[test]
fn a_member_has_an_address_of_a_family_of_the_load_balancers() {
    let of_ipv4 = |o: &mut Objects| {
        add(o);
        o.load_balancers[0].addresses.pop();
    };
    accepted(of_ipv4);
    refused(
        "load_balancer lb listeners[0].members[1].port: port 'p2' has no address of a family",
        |o| {
            of_ipv4(o);
            o.ports[1].addresses = vec!["fd00::c".into()];
            o.load_balancers[0].listeners[1].members.clear();
        },
    );
    refused(
        "load_balancer lb listeners[1].members[1].address: fd00::b is of no family",
        |o| {
            of_ipv4(o);
            o.load_balancers[0].listeners[1]
                .members
                .push(by_address("fd00::b"));
        },
    );
    // With one of two families it serves that one.
    accepted(|o| {
        add(o);
        o.ports[1].addresses.pop();
    });
}

#[test]
fn numbers_of_listeners_and_members_are_bounded() {
    let many = |count: u32| {
        with(move |it: &mut LoadBalancer| {
            it.listeners = (1..=count)
                .map(|port| listener("tcp", (port, 0), vec![]))
                .collect();
        })
    };
    accepted(many(64));
    refused(
        "load_balancer lb listeners: a load balancer has at most 64 listeners",
        many(65),
    );
    let members = |count: usize| {
        with(move |it: &mut LoadBalancer| {
            let all = (0..count as u32).map(|n| Member {
                to_port_min: 1 + n % 5000,
                ..by_port(if n < 5000 { "p1" } else { "p2" })
            });
            let mut all: Vec<Member> = all.collect();
            it.listeners[1].members = all.split_off(count / 2);
            it.listeners[0].members = all;
            it.listeners[1].port_max = 0;
        })
    };
    accepted(members(10_000));
    refused(
        "load_balancer lb listeners: a load balancer has at most 10000 members",
        members(10_001),
    );
}

#[test]
fn of_a_port_that_comes_to_have_a_load_balancers_address_the_port_is_to_blame() {
    let told = "port p3: addresses[1]: fd00::200 is an address of load balancer 'lb'";
    refused_by_change(told, |o| {
        let mut new = port("p3", "front", "h2", 13);
        new.addresses = vec!["10.0.0.13".into(), "fd00::200".into()];
        o.ports.push(new);
    });
    let told = "port p2: addresses[1]: fd00::200 is an address of load balancer 'lb'";
    refused_by_change(told, |o| o.ports[1].addresses[1] = "fd00::200".into());
    let told = "load_balancer lb: addresses[0]: 10.0.0.12 is already used by port 'p2'";
    refused_by_change(told, |o| {
        o.load_balancers[0].addresses[0] = "10.0.0.12".into();
    });
    // By a port of another VPC it is not.
    let found = found_by_change(Scope::Intent, |o| {
        o.ports[2].addresses = vec!["10.0.0.200".into()];
    });
    assert_eq!(found, [] as [&str; 0]);
    // Where the address goes from the one to the other in one change, neither is.
    let found = found_by_change(Scope::Intent, |o| {
        o.load_balancers[0].addresses = vec!["10.0.0.201".into()];
        let mut new = port("p3", "front", "h2", 13);
        new.addresses = vec!["10.0.0.200".into()];
        o.ports.push(new);
    });
    assert_eq!(found, [] as [&str; 0]);
}

#[test]
fn what_a_load_balancer_needs_stays() {
    let gone = "load_balancer lb: listeners[0].members[0].port: there is no port 'p1'";
    refused_by_change(gone, |o| {
        o.ports.remove(0);
        o.route_tables[0].routes[0].ecmp.remove(0);
    });
    let gone =
        "load_balancer lb: listeners[1].members[0].address: 10.0.0.12 is no address of a port";
    refused_by_change(gone, |o| o.ports[1].addresses[0] = "10.0.0.22".into());
    // Another port may come to have it.
    let found = found_by_change(Scope::Intent, |o| {
        o.ports[1].addresses[0] = "10.0.0.22".into();
        let mut new = port("p3", "front", "h2", 13);
        new.addresses = vec!["10.0.0.12".into()];
        o.ports.push(new);
    });
    assert_eq!(found, [] as [&str; 0]);
    refused_by_change(
        "load_balancer lb: listeners[0].members[1].port: port 'p2' has no address of a family",
        |o| {
            o.load_balancers[0].listeners[1].members.clear();
            o.ports[1].addresses.clear();
        },
    );
    // The subnet's gateway, and the subnet.
    refused_by_change(
        "load_balancer lb: addresses[1]: fd00::200 is the gateway of subnet 'front'",
        |o| o.subnets[0].gateways = vec!["10.0.0.1".into(), "fd00::200".into()],
    );
    let found = found_by_change(Scope::Intent, |o| {
        o.vpcs.remove(0);
    });
    assert!(
        found.contains(&"load_balancer lb: vpc: there is no vpc 'blue'".to_owned()),
        "{found:#?}"
    );
    // A port that goes where nothing names it, in the short way.
    let mut objects = good();
    add(&mut objects);
    objects.ports.push(port("p3", "front", "h2", 13));
    let before = State::from_objects(objects.clone()).unwrap();
    objects.ports.pop();
    let next = State::from_objects(objects).unwrap();
    let changes = before.changes_to(&next);
    assert!(are_good((&before, &next), &changes, Scope::Intent));
}

#[test]
fn a_vpc_on_an_external_network_has_no_load_balancer() {
    let found = violations(
        |o| {
            for host in &mut o.hosts {
                host.physical_networks = vec!["physnet1".into()];
            }
            o.external_networks.push(v1::ExternalNetwork {
                id: "lan".into(),
                physical_network: "physnet1".into(),
                ..v1::ExternalNetwork::default()
            });
            o.subnets[1].external_network = "lan".into();
            o.load_balancers.push(LoadBalancer {
                id: "red-lb".into(),
                vpc: "red".into(),
                addresses: vec!["10.0.0.200".into()],
                ..LoadBalancer::default()
            });
        },
        Scope::Intent,
    );
    let told = "load_balancer red-lb vpc: vpc 'red' is on external_network 'lan', whose router is not weft's";
    assert_eq!(found, [told]);
}

#[test]
fn a_tenant_has_as_many_as_its_quota_says() {
    let with_quota = |limit: u32| {
        move |o: &mut Objects| {
            add(o);
            o.vpcs[0].tenant = "ann".into();
            o.quotas.push(v1::Quota {
                id: "ann/load_balancer".into(),
                tenant: "ann".into(),
                kind: "load_balancer".into(),
                limit,
                ..v1::Quota::default()
            });
        }
    };
    accepted(with_quota(1));
    refused(
        "quota ann/load_balancer limit: tenant 'ann' would have 1 objects of kind load_balancer, and may have 0",
        with_quota(0),
    );
}

#[test]
fn a_host_need_not_know_the_members_that_it_is_not_told_of() {
    let scope = Scope::Node { host: "h1" };
    let as_told = |o: &mut Objects| {
        for port in &mut o.ports {
            if port.host != "h1" {
                port.device = None;
                port.security_groups.clear();
            }
        }
        add(o);
    };
    assert_eq!(violations(as_told, scope), [] as [&str; 0]);
    let found = violations(
        |o| {
            as_told(o);
            o.ports.remove(1);
        },
        scope,
    );
    assert_eq!(found, [] as [&str; 0]);
    // What it is told obeys the rules.
    let found = violations(
        |o| {
            as_told(o);
            o.load_balancers[0].listeners[0].members[0] = by_port("r1");
            o.load_balancers[0].listeners[1].members[0] = by_address("x");
        },
        scope,
    );
    assert_eq!(found.len(), 2, "{found:#?}");
}

/// Random ports, load balancers and members; a few have what others have.
fn edit(objects: &mut Objects, numbers: &mut Numbers) {
    let address = |numbers: &mut Numbers| format!("10.0.0.{}", 11 + numbers.below(12));
    if numbers.below(2) == 0 {
        let id = format!("p{}", 1 + numbers.below(6));
        let place = objects.ports.iter().position(|port| port.id == id);
        if let Some(place) = place.filter(|_| numbers.below(3) == 0) {
            objects.ports.remove(place);
            return;
        }
        let mut made = port(&id, "front", ["h1", "h2"][numbers.below(2) as usize], 11);
        made.mac = format!("02:00:00:00:00:{}", &id.replace('p', "1"));
        made.addresses = vec![address(numbers)];
        if numbers.below(3) == 0 {
            made.addresses.push(address(numbers));
        }
        match place {
            Some(place) => objects.ports[place] = made,
            None => objects.ports.push(made),
        }
        return;
    }
    let id = format!("lb{}", numbers.below(3));
    let known = objects.load_balancers.iter().position(|it| it.id == id);
    if let Some(place) = known.filter(|_| numbers.below(4) == 0) {
        objects.load_balancers.remove(place);
        return;
    }
    let members = (0..numbers.below(4)).map(|_| match numbers.below(3) {
        0 => by_address(&address(numbers)),
        _ => by_port(&format!("p{}", 1 + numbers.below(6))),
    });
    let members = members.collect();
    let made = LoadBalancer {
        id,
        vpc: match numbers.below(12) {
            0 => "red".into(),
            _ => "blue".into(),
        },
        addresses: vec![address(numbers)],
        listeners: vec![listener("tcp", (80, 0), members)],
        ..LoadBalancer::default()
    };
    match known {
        Some(place) => objects.load_balancers[place] = made,
        None => objects.load_balancers.push(made),
    }
}

#[test]
fn a_change_breaks_a_rule_if_and_only_if_the_state_after_it_does() {
    let mut numbers = Numbers(5);
    let mut objects = good();
    objects.route_tables[0].routes.remove(0);
    let (mut good_ones, mut short_ways) = (0, 0);
    let mut state = State::from_objects(objects.clone()).unwrap();
    for _ in 0..6000 {
        let mut next = objects.clone();
        for _ in 0..=numbers.below(3) {
            edit(&mut next, &mut numbers);
        }
        let after = State::from_objects(next.clone()).unwrap();
        let whole: Vec<String> = validate(&after, Scope::Intent)
            .iter()
            .map(describe)
            .collect();
        let found = validate_next(&state, &after, Scope::Intent);
        let found: Vec<String> = found.iter().map(describe).collect();
        assert_eq!(
            found.is_empty(),
            whole.is_empty(),
            "{found:#?}\n{whole:#?}\n{:#?}\n{:#?}",
            objects.load_balancers,
            next.load_balancers
        );
        // But for whom is to blame of two that have one address.
        let rest = |all: &[String]| {
            let is_of_both = |it: &&String| {
                it.contains("address of load balancer") || it.contains("used by port")
            };
            let rest = all.iter().filter(|it| !is_of_both(it)).cloned();
            rest.collect::<BTreeSet<_>>()
        };
        assert_eq!(rest(&found), rest(&whole));
        if found.is_empty() {
            let changes = state.changes_to(&after);
            good_ones += 1;
            short_ways += usize::from(are_good((&state, &after), &changes, Scope::Intent));
            // The index is what it would be if everything were put in at once.
            let followed = changes.iter().fold(state.clone(), |mut state, change| {
                match change.new {
                    Some(new) => drop(state.insert(new.clone())),
                    None => drop(state.remove(&change.old.unwrap().key())),
                }
                state
            });
            assert!(followed.has_the_index_of(&after));
            (objects, state) = (next, followed);
        }
    }
    assert!(
        good_ones > 500 && short_ways > 50,
        "{good_ones}, {short_ways}"
    );
}

/// The load balancer with an elastic IP on a network whose gateway host is h1.
fn add_public(objects: &mut Objects) {
    add(objects);
    let host = objects.hosts.iter_mut().find(|host| host.id == "h1");
    host.unwrap().physical_networks = vec!["physnet".into()];
    objects.external_networks.push(v1::ExternalNetwork {
        id: "inet".into(),
        physical_network: "physnet".into(),
        prefixes: vec!["203.0.113.0/24".into(), "2001:db8::/64".into()],
        gateway_hosts: vec!["h1".into()],
        ..v1::ExternalNetwork::default()
    });
    objects.elastic_ips.push(v1::ElasticIp {
        id: "public".into(),
        external_network: "inet".into(),
        address: "203.0.113.10".into(),
        load_balancer: "lb".into(),
        ..v1::ElasticIp::default()
    });
}

#[test]
fn an_elastic_ip_is_bound_to_a_load_balancer_of_its_family_and_tenant() {
    accepted(add_public);
    let with = |change: fn(&mut v1::ElasticIp)| {
        move |o: &mut Objects| {
            add_public(o);
            change(&mut o.elastic_ips[0]);
        }
    };
    accepted(with(|it| it.address = "2001:db8::10".into()));
    let at = |field: &str, rule: &str| format!("elastic_ip public {field}: {rule}");
    let none = at("load_balancer", "there is no load_balancer 'gone'");
    refused(&none, with(|it| it.load_balancer = "gone".into()));
    refused(
        &at("port", "an elastic IP of"),
        with(|it| it.port = "p1".into()),
    );
    let private = at("private_address", "an elastic IP of");
    refused(&private, with(|it| it.private_address = "10.0.0.11".into()));
    refused(
        &at("mode", "an elastic IP of"),
        with(|it| it.mode = "direct".into()),
    );
    let family = at("load_balancer", "load balancer 'lb' has no IPv6 address");
    refused(&family, |o| {
        with(|it| it.address = "2001:db8::10".into())(o);
        o.load_balancers[0].addresses.pop();
    });
    // What lies in a subnet of the VPC its ports look for there.
    let subnet = at("address", "subnet 'more' of the load balancer's vpc");
    refused(&subnet, |o| {
        add_public(o);
        o.subnets.push(v1::Subnet {
            id: "more".into(),
            vpc: "blue".into(),
            cidrs: vec!["203.0.113.0/28".into()],
            ..v1::Subnet::default()
        });
    });
    let tenant = at(
        "load_balancer",
        "load balancer 'lb' belongs to the operator",
    );
    refused(&tenant, with(|it| it.tenant = "ann".into()));
    let dsr = at(
        "load_balancer",
        "load balancer 'lb' has listeners[0] of mode dsr",
    );
    refused(&dsr, |o| {
        add_public(o);
        o.load_balancers[0].listeners[0].mode = "dsr".into();
    });
}

#[test]
fn what_an_elastic_ip_needs_of_its_load_balancer_does_not_go() {
    let refused_next = |expected: &str, change: fn(&mut Objects)| {
        let mut objects = good();
        add_public(&mut objects);
        let before = State::from_objects(objects.clone()).unwrap();
        assert_eq!(validate(&before, Scope::Intent), vec![]);
        change(&mut objects);
        let next = State::from_objects(objects).unwrap();
        let found = validate_next(&before, &next, Scope::Intent);
        let found: Vec<String> = found.iter().map(describe).collect();
        assert!(
            found.iter().any(|it| it.starts_with(expected)),
            "{found:#?}"
        );
    };
    refused_next("elastic_ip public: load_balancer: there is no", |o| {
        o.load_balancers.clear();
    });
    refused_next(
        "elastic_ip public: load_balancer: load balancer 'lb' has no IPv4",
        |o| {
            drop(o.load_balancers[0].addresses.remove(0));
        },
    );
    refused_next(
        "elastic_ip public: load_balancer: load balancer 'lb' has listeners[1] of mode dsr",
        |o| o.load_balancers[0].listeners[1].mode = "dsr".into(),
    );
    refused_next(
        "elastic_ip public: external_network: external network 'inet'",
        |o| {
            o.external_networks[0].gateway_hosts.clear();
        },
    );
}

/// The first listener with a health check.
fn checked(check: HealthCheck) -> impl FnOnce(&mut Objects) {
    with(|lb| lb.listeners[0].health = Some(check))
}

fn check(protocol: &str) -> HealthCheck {
    HealthCheck {
        protocol: protocol.into(),
        ..HealthCheck::default()
    }
}

#[test]
fn health_checks_are_of_known_kinds_and_within_bounds() {
    let full = HealthCheck {
        port: 8081,
        interval_ms: 500,
        timeout_ms: 500,
        rise: 10,
        fall: 1,
        path: "/health?deep=1".into(),
        host: "blue.example.org".into(),
        expected: "200,301-308".into(),
        ..check("http")
    };
    let datagram = HealthCheck {
        payload: "ping".into(),
        expected: "pong".into(),
        ..check("udp")
    };
    for good in [check("tcp"), check("icmp"), full.clone(), datagram] {
        accepted(checked(good));
    }
    let long = "x".repeat(257);
    let cases: Vec<(&str, HealthCheck)> = vec![
        (
            "protocol: 'sctp' is none of tcp, http, icmp and udp",
            check("sctp"),
        ),
        ("protocol: '' is none of tcp, http, icmp and udp", check("")),
        (
            "port: 65536 is outside 1 to 65535",
            HealthCheck {
                port: 65536,
                ..check("tcp")
            },
        ),
        (
            "port: an echo goes to no port",
            HealthCheck {
                port: 80,
                ..check("icmp")
            },
        ),
        (
            "interval_ms: 199 is outside 200 to 300000",
            HealthCheck {
                interval_ms: 199,
                ..check("tcp")
            },
        ),
        (
            "timeout_ms: 501 is outside 50 to 500",
            HealthCheck {
                timeout_ms: 501,
                ..full.clone()
            },
        ),
        (
            "timeout_ms: 49 is outside 50 to 5000",
            HealthCheck {
                timeout_ms: 49,
                ..check("tcp")
            },
        ),
        (
            "rise: 11 is outside 1 to 10",
            HealthCheck {
                rise: 11,
                ..check("tcp")
            },
        ),
        (
            "fall: 11 is outside 1 to 10",
            HealthCheck {
                fall: 11,
                ..check("tcp")
            },
        ),
        (
            "path: is at most 1024 printable characters",
            HealthCheck {
                path: "health".into(),
                ..full.clone()
            },
        ),
        (
            "path: is at most 1024 printable characters",
            HealthCheck {
                path: "/a\r\nX: y".into(),
                ..full.clone()
            },
        ),
        (
            "path: is for http alone",
            HealthCheck {
                path: "/".into(),
                ..check("tcp")
            },
        ),
        (
            "host: is neither a name nor an address",
            HealthCheck {
                host: "a b".into(),
                ..full.clone()
            },
        ),
        (
            "host: is for http alone",
            HealthCheck {
                host: "a".into(),
                ..check("udp")
            },
        ),
        (
            "expected: is a list of codes",
            HealthCheck {
                expected: "2xx".into(),
                ..full.clone()
            },
        ),
        (
            "expected: is for http and udp alone",
            HealthCheck {
                expected: "a".into(),
                ..check("tcp")
            },
        ),
        (
            "expected: 257 bytes exceed 256",
            HealthCheck {
                expected: long.clone(),
                ..check("udp")
            },
        ),
        (
            "payload: 257 bytes exceed 256",
            HealthCheck {
                payload: long,
                ..check("udp")
            },
        ),
        (
            "payload: is for udp alone",
            HealthCheck {
                payload: "a".into(),
                ..full
            },
        ),
    ];
    for (rule, bad) in cases {
        refused(
            &format!("load_balancer lb listeners[0].health.{rule}"),
            checked(bad),
        );
    }
}

#[test]
fn what_hosts_find_is_not_of_the_intent() {
    let health = |o: &Objects| {
        let lb = &o.load_balancers[0];
        MemberHealth::of(lb, &lb.listeners[0], ("10.0.0.11".parse().unwrap(), 80))
    };
    let rule = "member_health lb/tcp/80/10.0.0.11/80 id: hosts find out whether members serve";
    refused(rule, move |o| {
        add(o);
        let health = health(o);
        o.member_health.push(health);
    });
    // A host may be told of a load balancer that it does not know any more, and of nothing that is none.
    let mut objects = Objects {
        vpcs: good().vpcs,
        ..Objects::default()
    };
    let mut with = good();
    add(&mut with);
    objects.member_health = vec![health(&with)];
    let found = |objects: &Objects| {
        let state = State::from_objects(objects.clone()).unwrap();
        validate(&state, Scope::Node { host: "h1" }).len()
    };
    assert_eq!(found(&objects), 0);
    let breaks: [fn(&mut MemberHealth); 5] = [
        |it| it.id = "lb".into(),
        |it| it.vpc = "nowhere".into(),
        |it| it.address = "10.0.0".into(),
        |it| it.port = 0,
        |it| it.member_port = 65536,
    ];
    for break_it in breaks {
        let mut bad = objects.clone();
        break_it(&mut bad.member_health[0]);
        assert!(found(&bad) >= 1, "{:?}", bad.member_health);
    }
}
