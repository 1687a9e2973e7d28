//! States compiled one after the other, against each of them compiled from nothing.

use std::collections::BTreeMap;
use std::fmt::Write;

use proptest::prelude::*;
use proptest::sample::Index;
use weft_proto::v1::{
    AclRule, NetworkAcl, NextHop, Objects as Wire, PrefixList, Route, RouteTable, SecurityGroup,
    SecurityRule,
};

use super::*;
use crate::policy::GroupRules;

const TOPOLOGY: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}, {id: h3, vteps: [192.0.2.3]}]
vpcs: [{id: blue, vni: 100}, {id: red, vni: 200}]
subnets:
  - {id: a, vpc: blue, cidrs: [10.0.1.0/24], network_acl: acl, route_table: main}
  - {id: b, vpc: blue, cidrs: [10.0.2.0/24, "fd00::/64"], route_table: main}
  - {id: c, vpc: red, cidrs: [10.0.1.0/24]}
network_acls: [{id: acl, vpc: blue}]
route_tables: [{id: main, vpc: blue}, {id: unused, vpc: blue}]
prefix_lists: [{id: offices, vpc: blue}]
security_groups: [{id: web, vpc: blue}, {id: db, vpc: blue}, {id: other, vpc: red}]
ports:
  - {id: a1, vpc: blue, subnet: a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11], security_groups: [web, db], host: h1}
  - {id: a2, vpc: blue, subnet: a, mac: "02:00:00:00:01:02", addresses: [10.0.1.12], security_groups: [web], host: h1}
  - {id: b1, vpc: blue, subnet: b, mac: "02:00:00:00:02:01", addresses: [10.0.2.11, "fd00::11"], host: h2}
  - {id: c1, vpc: red, subnet: c, mac: "02:00:00:00:01:01", addresses: [10.0.1.11], security_groups: [other], host: h1}
"#;

/// Everything that a snapshot says, in one order.
fn dump(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    let head = (snapshot.generation, snapshot.revision, &snapshot.vteps);
    let by_vni: BTreeMap<_, _> = snapshot.vpc_by_vni.iter().collect();
    let by_vtep: BTreeMap<_, _> = snapshot.peer_by_vtep.iter().collect();
    writeln!(text, "{head:?} {by_vni:?} {by_vtep:?} {:?}", snapshot.peers).unwrap();
    for vpc in snapshot.vpcs.iter() {
        let by_address: BTreeMap<_, _> = vpc.by_address.iter().collect();
        let by_mac: BTreeMap<_, _> = vpc.by_mac.iter().collect();
        let gateways: BTreeMap<_, _> = vpc.gateways.iter().collect();
        let mut subnets = Vec::new();
        vpc.subnets
            .for_each(|prefix, place| subnets.push(format!("{prefix} {place}")));
        let names = (&vpc.id, vpc.vni, vpc.index, &vpc.gateway_macs);
        writeln!(text, "{names:?} {by_address:?} {by_mac:?} {gateways:?}").unwrap();
        writeln!(text, "{:?}", sorted(subnets)).unwrap();
        for set in vpc.sets.iter() {
            let mut prefixes = Vec::new();
            set.prefixes
                .for_each(|prefix, ()| prefixes.push(prefix.to_string()));
            writeln!(text, "  {} {:?}", set.name, sorted(prefixes)).unwrap();
        }
    }
    for subnet in snapshot.subnets.iter() {
        let mut routes = Vec::new();
        subnet
            .routes
            .for_each(|prefix, target| routes.push(format!("{prefix} {target:?}")));
        let plain = (&subnet.id, subnet.vpc, subnet.gateway_mac, subnet.acl);
        let lists = (&subnet.prefixes, &subnet.ports, &subnet.peers);
        writeln!(text, "{plain:?} {lists:?} {:?}", sorted(routes)).unwrap();
    }
    for port in snapshot.ports.iter() {
        writeln!(text, "{port:?}").unwrap();
    }
    for acl in snapshot.acls.iter() {
        writeln!(text, "{acl:?}").unwrap();
    }
    text
}

#[derive(Debug, Clone)]
enum Edit {
    Routes(Vec<u8>),
    Members(Vec<u8>),
    Rules(Index, Vec<u8>),
    Acl(Vec<u8>),
    Prefixes(Vec<u8>),
    /// Beyond what can be followed: a port moves.
    Move(Index),
    /// A route that is none: refused.
    Broken,
}

fn edits() -> impl Strategy<Value = Edit> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        bytes().prop_map(Edit::Routes),
        bytes().prop_map(Edit::Members),
        (any::<Index>(), bytes()).prop_map(|(which, bytes)| Edit::Rules(which, bytes)),
        bytes().prop_map(Edit::Acl),
        bytes().prop_map(Edit::Prefixes),
        any::<Index>().prop_map(Edit::Move),
        Just(Edit::Broken),
    ]
}

fn apply(objects: &mut Wire, edit: &Edit) {
    match edit {
        Edit::Routes(bytes) => {
            let route = |byte: &u8| Route {
                prefix: format!("10.{}.0.0/16", byte / 4),
                blackhole: byte.is_multiple_of(4),
                port: if byte % 4 == 1 { "b1" } else { "" }.into(),
                host: if byte % 4 == 2 { "h3" } else { "" }.into(),
                ecmp: ["h2", "h3"]
                    .map(|host| NextHop {
                        host: host.into(),
                        weight: u32::from(*byte),
                        ..NextHop::default()
                    })
                    .into_iter()
                    .take(if byte % 4 == 3 { 2 } else { 0 })
                    .collect(),
                ..Route::default()
            };
            objects.route_tables[0].routes = bytes.iter().map(route).collect();
        }
        Edit::Members(bytes) => {
            let member = |byte: &u8| match byte % 16 {
                // The same prefix, spelt otherwise.
                0 => "10.0.1.7/32".to_owned(),
                _ => format!("10.0.1.{}", byte % 16 + byte / 128),
            };
            objects.security_groups[0].members = bytes.iter().map(member).collect();
        }
        Edit::Rules(which, bytes) => {
            let rule = |byte: &u8| SecurityRule {
                direction: if byte.is_multiple_of(3) {
                    "egress"
                } else {
                    "ingress"
                }
                .into(),
                protocol: "tcp".into(),
                port_min: Some(u32::from(*byte)),
                port_max: Some(u32::from(*byte) + 7),
                remote_group: if byte.is_multiple_of(5) { "db" } else { "" }.into(),
                remote_prefix_list: if byte % 5 == 1 { "offices" } else { "" }.into(),
                ..SecurityRule::default()
            };
            objects.security_groups[which.index(2)].rules = bytes.iter().map(rule).collect();
        }
        Edit::Acl(bytes) => {
            let rule = |(number, byte): (u32, &u8)| AclRule {
                number,
                direction: if byte.is_multiple_of(2) {
                    "egress"
                } else {
                    "ingress"
                }
                .into(),
                action: if byte.is_multiple_of(3) {
                    "deny"
                } else {
                    "allow"
                }
                .into(),
                cidr: format!("10.{byte}.0.0/16"),
                ..AclRule::default()
            };
            objects.network_acls[0].rules = (1..).zip(bytes).map(rule).collect();
        }
        Edit::Prefixes(bytes) => {
            let prefix = |byte: &u8| format!("198.51.{byte}.0/24");
            objects.prefix_lists[0].prefixes = bytes.iter().map(prefix).collect();
        }
        Edit::Move(which) => {
            let port = &mut objects.ports[which.index(3)];
            port.host = if port.host == "h2" { "h1" } else { "h2" }.into();
        }
        Edit::Broken => objects.route_tables[0].routes = vec![Route::default()],
    }
}

fn context(underlay: &Underlay, generation: u32) -> Context<'_> {
    Context {
        host: "h1",
        generation,
        revision: u64::from(generation) + 7,
        underlay,
        metadata: false,
    }
}

proptest! {
    #[test]
    fn states_compiled_one_after_the_other_are_as_each_from_nothing(
        edits in proptest::collection::vec(edits(), 1..25),
    ) {
        let underlay = Underlay::default();
        let mut objects: Wire = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
        let mut state = State::from_objects(objects.clone()).unwrap();
        let mut compiler = Compiler::new(8, 8, 8);
        compiler.compile(&state, &context(&underlay, 1)).unwrap();
        let mut published = Vec::new();
        for (generation, edit) in (2..).zip(&edits) {
            let mut next = objects.clone();
            apply(&mut next, edit);
            let (upserts, deletes) = state.delta_to(&State::from_objects(next.clone()).unwrap());
            let next_state = state.patched(upserts, &deletes).unwrap();
            let context = context(&underlay, generation);
            // The same numbers, but nothing to follow.
            let mut afresh = Compiler { done: None, ..compiler.clone() };
            let wanted = afresh.compile(&next_state, &context);
            match (compiler.compile(&next_state, &context), wanted) {
                (Ok(snapshot), Ok(wanted)) => {
                    prop_assert_eq!(dump(&snapshot), dump(&wanted));
                    published.push((dump(&snapshot), snapshot));
                    (objects, state) = (next, next_state);
                }
                (Err(found), Err(wanted)) => prop_assert_eq!(found, wanted),
                (found, wanted) => prop_assert!(false, "{:?} instead of {:?}", found.is_ok(), wanted.is_ok()),
            }
        }
        for (dumped, snapshot) in published {
            prop_assert_eq!(dump(&snapshot), dumped, "what was published stays");
        }
    }
}

#[test]
fn a_change_of_rules_is_followed_and_shares_the_rest() {
    let underlay = Underlay::default();
    let objects: Wire = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
    let state = State::from_objects(objects).unwrap();
    let mut compiler = Compiler::new(8, 8, 8);
    let before = compiler.compile(&state, &context(&underlay, 1)).unwrap();
    let mut next = state.clone();
    next.insert(Object::SecurityGroup(SecurityGroup {
        id: "web".into(),
        vpc: "blue".into(),
        rules: vec![SecurityRule {
            direction: "egress".into(),
            ..SecurityRule::default()
        }],
        ..SecurityGroup::default()
    }));
    next.insert(Object::RouteTable(RouteTable {
        id: "unused".into(),
        vpc: "blue".into(),
        ..RouteTable::default()
    }));
    next.insert(Object::PrefixList(PrefixList {
        id: "offices".into(),
        vpc: "blue".into(),
        prefixes: vec!["198.51.100.0/24".into()],
    }));
    next.insert(Object::NetworkAcl(NetworkAcl {
        id: "acl".into(),
        vpc: "blue".into(),
        ..NetworkAcl::default()
    }));
    let after = compiler.compile(&next, &context(&underlay, 2)).unwrap();
    assert!(after.subnets.is_shared_with(&before.subnets));
    assert!(Arc::ptr_eq(&after.peers, &before.peers));
    assert!(Arc::ptr_eq(&after.vpcs[0].by_mac, &before.vpcs[0].by_mac));
    let flipped = |snapshot: &Snapshot| {
        let ports = snapshot.ports.iter().flatten();
        ports
            .filter(|port| port.egress != GroupRules::Open)
            .map(|port| port.id.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(flipped(&before), Vec::<String>::new());
    assert_eq!(flipped(&after), ["a1", "a2"]);
}
