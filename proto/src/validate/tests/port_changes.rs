//! Changes of ports that are checked by what they touch, against a check of everything.

use super::*;
use crate::v1::{ElasticIp, ExternalNetwork};
use crate::validate::port_changes::are_good;

/// Numbers that look random, the same in each run.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// A state of h1. Two hosts that have no port of the VPC can't carry it: one is too narrow, the other has tunnels of the other family.
fn base(scope: Scope<'_>) -> Objects {
    let mut objects = good();
    objects.hosts.push(Host {
        underlay_mtu: 1400,
        ..host("h3", &["192.0.2.3"])
    });
    objects.hosts.push(host("h4", &["2001:db8::4"]));
    // This one is like those that do.
    objects.hosts.push(host("h5", &["192.0.2.5"]));
    objects.hosts[0].physical_networks = vec!["physnet".into()];
    objects.external_networks.push(ExternalNetwork {
        id: "internet".into(),
        physical_network: "physnet".into(),
        prefixes: vec!["203.0.113.0/24".into()],
        gateway_hosts: vec!["h1".into()],
        ..ExternalNetwork::default()
    });
    objects.elastic_ips.push(ElasticIp {
        id: "e".into(),
        external_network: "internet".into(),
        address: "203.0.113.7".into(),
        port: "p3".into(),
        ..ElasticIp::default()
    });
    objects.subnets[0].mtu = 1380;
    objects.ports.push(port("p3", "front", "h2", 13));
    for port in &mut objects.ports {
        if scope != Scope::Intent && port.host != "h1" {
            port.device = None;
            port.security_groups.clear();
        }
    }
    objects
}

fn random_port(numbers: &mut Numbers, scope: Scope<'_>) -> Port {
    let id = format!("p{}", 1 + numbers.below(6));
    let host = ["h1", "h1", "h2", "h2", "h3", "h4", "h5", "nowhere"][numbers.below(8) as usize];
    let n = 11 + numbers.below(8) as u8;
    let mut made = port(&id, "front", host, n);
    made.id = id;
    if numbers.below(12) == 0 {
        made.addresses.push("10.0.0.15".into());
    }
    if numbers.below(12) == 0 {
        made.mac = "02:77:65:66:74:01".into();
    }
    if numbers.below(12) == 0 {
        made.subnet = "red-front".into();
    }
    if numbers.below(8) == 0 {
        made.device = Some(Device {
            kind: "netdev".into(),
            name: "veth-p1".into(),
            ..Device::default()
        });
    }
    if numbers.below(10) == 0 {
        made.security_groups = vec!["missing".into()];
    }
    if scope != Scope::Intent && host != "h1" && numbers.below(10) != 0 {
        made.device = None;
        made.security_groups.clear();
    }
    if numbers.below(8) == 0 {
        made.trunk = Some(crate::v1::Trunk {
            parent: format!("p{}", 1 + numbers.below(6)),
            vlan: 1 + numbers.below(2) as u32,
        });
        if numbers.below(8) != 0 {
            made.device = None;
        }
    }
    made
}

#[test]
fn a_change_of_ports_breaks_the_same_rules_as_the_state_after_it() {
    breaks_the_same_rules(Scope::Node { host: "h1" });
    breaks_the_same_rules(Scope::Intent);
}

fn breaks_the_same_rules(scope: Scope<'_>) {
    let mut numbers = Numbers(7);
    let mut objects = base(scope);
    assert_eq!(
        validate(&State::from_objects(objects.clone()).unwrap(), scope),
        vec![]
    );
    let (mut good_ones, mut short_ways) = (0, 0);
    for _ in 0..4000 {
        let mut next = objects.clone();
        for _ in 0..=numbers.below(3) {
            let made = random_port(&mut numbers, scope);
            let known = next.ports.iter().position(|port| port.id == made.id);
            match known {
                Some(place) if numbers.below(3) == 0 => drop(next.ports.remove(place)),
                Some(place) => next.ports[place] = made,
                None => next.ports.push(made),
            }
        }
        if scope != Scope::Intent && numbers.below(4) == 0 {
            let members = (0..numbers.below(4)).map(|n| format!("10.0.0.{}", 20 + n));
            next.security_groups[0].members = members.collect();
        }
        let (before, after) = [&objects, &next]
            .map(|it| State::from_objects(it.clone()).unwrap())
            .into();
        let sorted = |mut found: Vec<v1::Violation>| {
            found.sort_by_key(describe);
            found
        };
        let wanted = sorted(validate(&after, scope));
        assert_eq!(
            sorted(validate_next(&before, &after, scope)),
            wanted,
            "{:#?}\n{:#?}",
            objects.ports,
            next.ports
        );
        let changes = before.changes_to(&after);
        if wanted.is_empty() {
            good_ones += 1;
            short_ways += usize::from(are_good((&before, &after), &changes, scope));
            objects = next;
        }
    }
    assert!(good_ones > 200, "{good_ones}");
    // Not those of a host that carries the VPC no more, or newly, and of a port that has an elastic IP or is on a route.
    assert!(short_ways * 3 > good_ones, "{short_ways} of {good_ones}");
}

#[test]
fn claims_follow_the_ports() {
    let mut state = State::from_objects(base(Scope::Node { host: "h1" })).unwrap();
    assert!(state.has_port_on("blue", "h2") && !state.has_port_on("blue", "h3"));
    let mut twin = port("p9", "front", "h2", 11);
    assert!(state.is_shared(&twin));
    twin.mac = "02:00:00:00:00:99".into();
    twin.addresses = vec!["10.0.0.99".into()];
    assert!(!state.is_shared(&twin));
    state.insert(Object::Port(twin.clone()));
    let ids: Vec<&str> = state
        .ports_with_device("h2")
        .map(|port| port.id.as_str())
        .collect();
    assert_eq!(ids, ["p9"]);
    let other = Port {
        id: "p8".into(),
        ..twin.clone()
    };
    assert!(state.is_shared(&other));
    state.remove(&Object::Port(twin).key());
    assert!(!state.is_shared(&other));
    assert_eq!(state.ports_with_device("h2").count(), 0);
}
