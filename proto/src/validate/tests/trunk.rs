//! Subports.

use super::*;
use crate::v1::Trunk;

/// A subport of `p1` in another VPC, which many things may be wrong with.
fn subport(change: impl FnOnce(&mut Port)) -> impl FnOnce(&mut Objects) {
    move |objects| {
        let mut made = Port {
            vpc: "red".into(),
            addresses: vec!["10.0.0.77".into()],
            security_groups: Vec::new(),
            device: None,
            trunk: Some(Trunk {
                parent: "p1".into(),
                vlan: 100,
            }),
            ..port("sub", "red-front", "h1", 77)
        };
        change(&mut made);
        objects.ports.push(made);
    }
}

fn on(parent: &str, vlan: u32) -> impl FnOnce(&mut Port) {
    let parent = parent.to_owned();
    move |port| port.trunk = Some(Trunk { parent, vlan })
}

#[test]
fn a_subport_is_in_any_vpc_and_has_its_parents_mac_or_another() {
    accepted(subport(|_| {}));
    accepted(subport(|it| it.mac = "02:00:00:00:00:4e".into()));
    accepted(subport(|it| it.host.clear()));
    for vlan in [1, 4094] {
        accepted(subport(on("p1", vlan)));
    }
}

#[test]
fn a_subport_has_a_vlan_of_a_port_that_is_none() {
    for vlan in [0, 4095, u32::MAX] {
        let rule = format!("port sub trunk.vlan: {vlan} is outside 1 to 4094");
        refused(&rule, subport(on("p1", vlan)));
    }
    refused(
        "port sub trunk.parent: there is no port 'p9'",
        subport(on("p9", 1)),
    );
    refused(
        "port sub trunk.parent: there is no port ''",
        subport(on("", 1)),
    );
    refused(
        "port sub trunk.parent: a port is not its own parent",
        subport(on("sub", 1)),
    );
    refused("port sub-2 trunk.parent: 'sub' is a subport itself", |o| {
        subport(|_| {})(o);
        subport(|it| {
            (it.id, it.mac) = ("sub-2".into(), "02:00:00:00:00:4f".into());
            it.addresses = vec!["10.0.0.78".into()];
            on("sub", 7)(it);
        })(o);
    });
}

#[test]
fn a_subport_has_no_device_and_is_where_its_parent_is() {
    refused(
        "port sub device: a subport has no device of its own",
        subport(|it| it.device = port("x", "front", "h1", 1).device),
    );
    refused(
        "port sub host: its parent 'p1' is on host 'h1'",
        subport(|it| it.host = "h2".into()),
    );
    refused("port sub-2 host: its parent 'p9' is on no host", |o| {
        let mut parent = port("p9", "front", "", 90);
        parent.device = None;
        o.ports.push(parent);
        subport(|it| {
            it.id = "sub-2".into();
            on("p9", 7)(it);
        })(o);
    });
}

#[test]
fn a_vlan_of_a_parent_is_one_subports() {
    let two = |vlan| {
        move |o: &mut Objects| {
            subport(|_| {})(o);
            subport(|it| {
                (it.id, it.mac) = ("sub-2".into(), "02:00:00:00:00:4f".into());
                it.addresses = vec!["10.0.0.78".into()];
                on("p1", vlan)(it);
            })(o);
        }
    };
    accepted(two(101));
    refused(
        "port sub-2 trunk.vlan: VLAN 100 of 'p1' is already that of port 'sub'",
        two(100),
    );
}

#[test]
fn a_parent_has_so_many_subports_at_most() {
    let many = |count: u32| {
        move |o: &mut Objects| {
            o.subnets[1].cidrs = vec!["10.0.0.0/16".into()];
            for n in 1..=count {
                subport(|it| {
                    it.id = format!("sub-{n}");
                    it.mac = format!("02:00:00:01:{:02x}:{:02x}", n >> 8, n & 255);
                    it.addresses = vec![format!("10.0.{}.{}", 1 + n / 200, 1 + n % 200)];
                    on("p1", n)(it);
                })(o);
            }
        }
    };
    accepted(many(512));
    refused(
        "port sub-99 trunk.parent: 'p1' has more than 512 subports",
        many(513),
    );
}

#[test]
fn a_parent_of_another_tenant_is_as_one_that_is_not_there() {
    refused("port sub trunk.parent: there is no port 'p1'", |o| {
        o.vpcs[1].tenant = "ann".into();
        subport(|_| {})(o);
    });
}

#[test]
fn a_subport_of_foreign_equipment_is_refused() {
    refused("port sub trunk: host 'h1' is foreign", |o| {
        subport(|_| {})(o);
        o.hosts[0].foreign = true;
    });
}

/// The subport is in another VPC than what changes.
#[test]
fn a_parent_with_subports_neither_goes_nor_moves_alone() {
    let mut before = good();
    subport(|_| {})(&mut before);
    let broken_by = |change: &dyn Fn(&mut Objects)| {
        let mut next = before.clone();
        change(&mut next);
        let [before, next] = [&before, &next].map(|it| State::from_objects(it.clone()).unwrap());
        let found = validate_next(&before, &next, Scope::Intent);
        assert_eq!(found, validate(&next, Scope::Intent));
        found.iter().map(describe).collect::<Vec<_>>().join("\n")
    };
    let gone = broken_by(&|o| {
        o.route_tables[0].routes.remove(0);
        o.ports.remove(0);
    });
    assert_eq!(gone, "port sub: trunk.parent: there is no port 'p1'");
    let moved = broken_by(&|o| o.ports[0].host = "h2".into());
    assert_eq!(moved, "port sub: host: its parent 'p1' is on host 'h2'");
    let both = broken_by(&|o| {
        for port in &mut o.ports {
            if ["p1", "sub"].contains(&&*port.id) {
                port.host = "h2".into();
            }
        }
    });
    assert_eq!(both, "");
}

#[test]
fn a_host_that_lacks_the_parent_takes_its_subport_all_the_same() {
    let mut objects = good();
    subport(on("elsewhere", 7))(&mut objects);
    objects.ports.retain(|port| port.id == "sub");
    objects.route_tables.clear();
    objects.subnets[0].route_table.clear();
    objects.security_groups.clear();
    let state = State::from_objects(objects).unwrap();
    assert_eq!(validate(&state, Scope::Node { host: "h1" }), []);
}
