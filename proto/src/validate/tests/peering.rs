//! Rules on peerings, and on what names them.

use super::*;
use crate::v1::Peering;

fn join(objects: &mut Objects) -> &mut Peering {
    // Red's subnet has one of blue's prefixes until it moves.
    objects.subnets[1].cidrs = vec!["10.7.0.0/24".into()];
    objects.subnets[1].gateways.clear();
    objects.ports.retain(|port| port.vpc == "blue");
    objects.peerings.push(Peering {
        id: "p".into(),
        requester: "blue".into(),
        accepter: "red".into(),
        ..Peering::default()
    });
    objects.peerings.last_mut().unwrap()
}

#[test]
fn a_peering_joins_two_vpcs_that_exist() {
    accepted(|o| drop(join(o).id.clone()));
    refused("peering p requester: there is no vpc 'x'", |o| {
        join(o).requester = "x".into();
    });
    refused("peering p accepter: a VPC is not joined to itself", |o| {
        join(o).accepter = "blue".into();
    });
    // One that is over may outlive them.
    accepted(|o| {
        let peering = join(o);
        peering.requester = "x".into();
        peering.requester_state = "deleted".into();
    });
}

#[test]
fn the_states_of_a_side_are_those_that_it_can_be_in() {
    refused(
        "peering p requester_state: 'on' is no state of a requester",
        |o| {
            join(o).requester_state = "on".into();
        },
    );
    refused("peering p requester_state: 'accepting' is no state", |o| {
        join(o).requester_state = "accepting".into();
    });
    refused("peering p accepter_state: 'connecting' is no state", |o| {
        join(o).accepter_state = "connecting".into();
    });
    for state in [
        "connecting",
        "active",
        "freezing",
        "frozen",
        "activating",
        "rejected",
    ] {
        accepted(|o| join(o).requester_state = state.into());
    }
}

#[test]
fn two_vpcs_have_one_peering_at_most() {
    let twice = |state: &'static str| {
        move |o: &mut Objects| {
            let mut other = join(o).clone();
            other.id = "q".into();
            (other.requester, other.accepter) = (other.accepter, other.requester);
            other.accepter_state = state.into();
            o.peerings.push(other);
        }
    };
    refused(
        "peering q accepter: peering 'p' joins the two VPCs already",
        twice(""),
    );
    accepted(twice("rejected"));
    accepted(twice("deleted"));
}

#[test]
fn subnets_of_joined_vpcs_do_not_overlap_whichever_came_last() {
    for cidr in ["10.0.0.0/24", "10.0.0.128/25", "10.0.0.0/16", "fd00::/64"] {
        refused("peering p accepter: ", |o| {
            join(o);
            o.subnets[1].cidrs = vec![cidr.into()];
        });
    }
    let overlap = |o: &mut Objects| {
        join(o);
        o.subnets[1].cidrs = vec!["10.0.0.128/25".into()];
    };
    let found = violations(overlap, Scope::Intent);
    assert_eq!(
        found,
        [
            "peering p accepter: 10.0.0.128/25 of subnet 'red-front' overlaps 10.0.0.0/24 of subnet 'front' in the other VPC"
        ]
    );
    accepted(|o| {
        overlap(o);
        o.peerings[0].accepter_state = "rejected".into();
    });
    // A subnet that comes later is checked by itself.
    let before = {
        let mut objects = good();
        join(&mut objects);
        State::from_objects(objects).unwrap()
    };
    let mut objects = before.to_objects();
    let mut late = objects.subnets[1].clone();
    (late.id, late.vpc, late.cidrs) = ("late".into(), "red".into(), vec!["10.0.0.0/20".into()]);
    late.gateways.clear();
    (late.route_table, late.network_acl) = (String::new(), String::new());
    objects.subnets.push(late);
    let next = State::from_objects(objects).unwrap();
    let found = validate_next(&before, &next, Scope::Intent);
    assert_eq!(found, validate(&next, Scope::Intent));
    assert_eq!(found.len(), 1);
}

#[test]
fn a_group_that_a_joined_vpc_names_does_not_go() {
    let mut objects = good();
    join(&mut objects);
    objects.security_groups.push(SecurityGroup {
        id: "far".into(),
        vpc: "red".into(),
        ..SecurityGroup::default()
    });
    objects.security_groups[0].rules.push(v1::SecurityRule {
        direction: "ingress".into(),
        remote_group: "far".into(),
        ..v1::SecurityRule::default()
    });
    let before = State::from_objects(objects.clone()).unwrap();
    assert_eq!(validate(&before, Scope::Intent), vec![]);
    objects.security_groups.pop();
    let next = State::from_objects(objects).unwrap();
    let found = validate_next(&before, &next, Scope::Intent);
    assert_eq!(found, validate(&next, Scope::Intent));
    assert_eq!(found.len(), 1);
}

#[test]
fn routes_and_groups_name_only_what_a_peering_of_their_own_vpc_joins() {
    let routed = |peering: &'static str| {
        move |o: &mut Objects| {
            join(o);
            o.route_tables[0].routes = vec![Route {
                prefix: "10.7.0.0/24".into(),
                peering: peering.into(),
                ..Route::default()
            }];
        }
    };
    accepted(routed("p"));
    let at = good().route_tables[0].id.clone();
    refused(
        &format!("route_table {at} routes[0].peering: there is no peering 'q'"),
        routed("q"),
    );
    refused(
        &format!("route_table {at} routes[0].peering: peering 'p' does not join vpc 'blue'"),
        |o| {
            routed("p")(o);
            o.vpcs.push(Vpc {
                id: "green".into(),
                vni: 77,
                ..Vpc::default()
            });
            o.peerings[0].requester = "green".into();
        },
    );
    refused(
        &format!("route_table {at} routes[0]: exactly one of blackhole"),
        |o| {
            routed("p")(o);
            o.route_tables[0].routes[0].blackhole = true;
        },
    );
    let named = |o: &mut Objects| {
        o.security_groups.push(SecurityGroup {
            id: "red-web".into(),
            vpc: "red".into(),
            ..SecurityGroup::default()
        });
        o.security_groups[0].rules = vec![SecurityRule {
            direction: "ingress".into(),
            remote_group: "red-web".into(),
            ..SecurityRule::default()
        }];
    };
    refused(
        "security_group web rules[0].remote_group: security_group 'red-web' belongs to vpc 'red'",
        named,
    );
    accepted(|o| {
        named(o);
        join(o);
    });
}
