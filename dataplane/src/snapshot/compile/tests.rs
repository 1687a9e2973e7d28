//! States compiled one after the other, against each of them compiled from nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use proptest::prelude::*;
use proptest::sample::Index;
use weft_proto::v1::{
    AclRule, NetworkAcl, NextHop, Objects as Wire, PrefixList, Route, RouteTable, SecurityGroup,
    SecurityRule,
};

use super::*;
use crate::packet::parse::address_word;
use crate::policy::GroupRules;

const TOPOLOGY: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1], physical_networks: [physnet]}, {id: h2, vteps: [192.0.2.2]}, {id: h3, vteps: [192.0.2.3]}]
vpcs: [{id: blue, vni: 100}, {id: red, vni: 200}]
subnets:
  - {id: a, vpc: blue, cidrs: [10.0.1.0/24], network_acl: acl, route_table: main}
  - {id: b, vpc: blue, cidrs: [10.0.2.0/24, "fd00::/64"], route_table: main}
  - {id: c, vpc: red, cidrs: [10.0.1.0/24]}
network_acls: [{id: acl, vpc: blue}]
route_tables: [{id: main, vpc: blue}, {id: unused, vpc: blue}]
prefix_lists: [{id: offices, vpc: blue}]
security_groups: [{id: web, vpc: blue}, {id: db, vpc: blue}, {id: other, vpc: red}]
external_networks: [{id: internet, physical_network: physnet, prefixes: [203.0.113.0/24], gateways: [203.0.113.1], gateway_hosts: [h1]}]
elastic_ips:
  - {id: e2, external_network: internet, address: 203.0.113.2, port: p2}
  - {id: e3, external_network: internet, address: 203.0.113.3, port: p3, mode: direct}
nat_gateways: [{id: nat, vpc: blue, external_network: internet, addresses: [203.0.113.9], port_forwards: [{protocol: tcp, port_min: 80, port: p4}]}]
ports:
  - {id: a1, vpc: blue, subnet: a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11], security_groups: [web, db], host: h1}
  - {id: a2, vpc: blue, subnet: a, mac: "02:00:00:00:01:02", addresses: [10.0.1.12], security_groups: [web], host: h1}
  - {id: b1, vpc: blue, subnet: b, mac: "02:00:00:00:02:01", addresses: [10.0.2.11, "fd00::11"], host: h2}
  - {id: c1, vpc: red, subnet: c, mac: "02:00:00:00:01:01", addresses: [10.0.1.11], security_groups: [other], host: h1}
"#;

/// Everything that a snapshot says, in one order.
fn dump(snapshot: &Snapshot) -> String {
    let head = (snapshot.generation, snapshot.revision, &snapshot.vteps);
    let by_vni: BTreeMap<_, _> = snapshot.vpc_by_vni.iter().collect();
    let by_vtep: BTreeMap<_, _> = snapshot.peer_by_vtep.iter().collect();
    let mut text = format!("{head:?} {by_vni:?} {by_vtep:?} {:?}\n", snapshot.peers);
    for place in 0..snapshot.vpcs.len() {
        text += &dump_vpc(snapshot, place);
    }
    text
}

/// Everything that it says of a VPC.
fn dump_vpc(snapshot: &Snapshot, place: usize) -> String {
    let vpc = &snapshot.vpcs[place];
    let mut text = String::new();
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    let by_address: BTreeMap<_, _> = vpc.by_address.iter().collect();
    let by_mac: BTreeMap<_, _> = vpc.by_mac.iter().collect();
    let gateways: BTreeMap<_, _> = vpc.gateways.iter().collect();
    let moves: BTreeMap<_, _> = vpc.moves.iter().collect();
    let mut subnets = Vec::new();
    vpc.subnets
        .for_each(|prefix, place| subnets.push(format!("{prefix} {place}")));
    let names = (&vpc.id, vpc.vni, vpc.index, &vpc.gateway_macs);
    let elastic_ips: BTreeMap<_, _> = vpc.elastic_ips.iter().collect();
    writeln!(text, "{names:?} {by_address:?} {by_mac:?} {gateways:?}").unwrap();
    writeln!(text, "{elastic_ips:?} {:?}", vpc.virtuals).unwrap();
    writeln!(text, "{:?} {moves:?} {:?}", sorted(subnets), vpc.senders).unwrap();
    for set in vpc.sets.iter() {
        let mut prefixes = Vec::new();
        set.prefixes
            .for_each(|prefix, ()| prefixes.push(prefix.to_string()));
        writeln!(text, "  {} {:?}", set.name, sorted(prefixes)).unwrap();
    }
    for subnet in snapshot.subnets.iter().filter(|subnet| subnet.vpc == place) {
        let mut routes = Vec::new();
        subnet
            .routes
            .for_each(|prefix, target| routes.push(format!("{prefix} {target:?}")));
        let plain = (&subnet.id, subnet.gateway_mac);
        let ordered = |list: &[u16]| list.iter().copied().collect::<BTreeSet<u16>>();
        let lists = (
            &subnet.prefixes,
            ordered(&subnet.ports),
            ordered(&subnet.peers),
        );
        assert_eq!(
            (lists.1.len(), lists.2.len()),
            (subnet.ports.len(), subnet.peers.len())
        );
        let acl = subnet.acl.map(|acl| &snapshot.acls[acl]);
        let (routes, policies) = (sorted(routes), &subnet.policies);
        writeln!(text, "{plain:?} {lists:?} {acl:?} {routes:?} {policies:?}").unwrap();
    }
    for (index, port) in snapshot.ports.iter().enumerate() {
        if let Some(port) = port.as_ref().filter(|port| port.vpc == place) {
            writeln!(text, "{index} {port:?}").unwrap();
        }
    }
    text
}

/// Of each VPC, its epoch and all else.
fn by_vpc(snapshot: &Snapshot) -> BTreeMap<String, (u32, String)> {
    let epoch = |place: usize| (snapshot.vpcs[place].epoch.get(), dump_vpc(snapshot, place));
    (0..snapshot.vpcs.len())
        .map(|place| (snapshot.vpcs[place].id.clone(), epoch(place)))
        .collect()
}

#[derive(Debug, Clone)]
enum Edit {
    Routes(Vec<u8>),
    Members(Vec<u8>),
    /// Parts of the members of a group, each with what is in it.
    Parts(Vec<(u8, Vec<u8>)>),
    Rules(Index, Vec<u8>),
    Acl(Vec<u8>),
    Prefixes(Vec<u8>),
    /// A port moves.
    Move(Index),
    /// Ports come, go or change, with members and rules of a group if so many of them.
    Ports(Vec<(u8, u16)>),
    /// Virtual addresses are held by ports, some of which are not there or may not hold them, or are by nobody any more.
    Holders(Vec<(u8, u8)>),
    /// Appliances at ports live or do not, or nobody says any more; some as if in another VPC.
    Health(Vec<u8>),
    /// A host that comes or goes.
    Host,
    /// A VPC that comes or goes, with a port; it is the last, so that no other moves to another place.
    Vpc,
    /// So many ways lead to h2.
    Ways(u8),
    /// A route that is none: refused.
    Broken,
}

fn edits() -> impl Strategy<Value = Edit> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        bytes().prop_map(Edit::Routes),
        bytes().prop_map(Edit::Members),
        proptest::collection::vec((0u8..4, bytes()), 1..4).prop_map(Edit::Parts),
        (any::<Index>(), bytes()).prop_map(|(which, bytes)| Edit::Rules(which, bytes)),
        bytes().prop_map(Edit::Acl),
        bytes().prop_map(Edit::Prefixes),
        any::<Index>().prop_map(Edit::Move),
        proptest::collection::vec((any::<u8>(), any::<u16>()), 1..6).prop_map(Edit::Ports),
        proptest::collection::vec((any::<u8>(), any::<u16>()), 1..6).prop_map(Edit::Ports),
        proptest::collection::vec((any::<u8>(), any::<u8>()), 1..6).prop_map(Edit::Holders),
        proptest::collection::vec(any::<u8>(), 0..4).prop_map(Edit::Health),
        Just(Edit::Host),
        Just(Edit::Vpc),
        (0u8..3).prop_map(Edit::Ways),
        Just(Edit::Broken),
    ]
}

fn apply(objects: &mut Wire, edit: &Edit) {
    match edit {
        Edit::Routes(bytes) => {
            let route = |byte: &u8| Route {
                prefix: format!("10.{}.0.0/16", byte / 4),
                blackhole: byte.is_multiple_of(4),
                port: match (byte % 4, byte % 8) {
                    (1, 1) => "b1",
                    (1, _) => "p1",
                    _ => "",
                }
                .into(),
                host: if byte % 4 == 2 { "h4" } else { "" }.into(),
                ecmp: [("h2", "b1"), ("h3", "p1")]
                    .map(|(host, port)| match byte % 8 {
                        3 => (host, ""),
                        _ => ("", port),
                    })
                    .map(|(host, port)| NextHop {
                        host: host.into(),
                        port: port.into(),
                        weight: u32::from(*byte),
                        ..NextHop::default()
                    })
                    .into_iter()
                    .take(if byte % 4 == 3 { 2 } else { 0 })
                    .collect(),
                ..Route::default()
            };
            objects.route_tables[0].routes = bytes.iter().map(route).collect();
            let policy = |(i, byte): (usize, &u8)| v1::PolicyRoute {
                priority: 1 + (u32::from(*byte) << 8 | i as u32),
                source: format!("10.{}.0.0/16", byte / 4),
                dscp: byte.is_multiple_of(3).then_some(u32::from(byte % 64)),
                to: byte.is_multiple_of(2).then(|| Route {
                    prefix: String::new(),
                    ..route(byte)
                }),
                default_routing: !byte.is_multiple_of(2),
                ..v1::PolicyRoute::default()
            };
            let policies = bytes.iter().enumerate().filter(|(i, _)| i % 2 == 0);
            objects.route_tables[0].policies = policies.map(policy).collect();
        }
        Edit::Health(bytes) => {
            let found = bytes.iter().map(|byte| v1::PortHealth {
                id: ["b1", "p1", "a1", "p2"][usize::from(byte % 4)].into(),
                vpc: if byte / 4 % 4 == 0 { "red" } else { "blue" }.into(),
                up: byte / 16 % 3 == 0,
                ..v1::PortHealth::default()
            });
            let by_id: BTreeMap<_, _> = found.map(|it| (it.id.clone(), it)).collect();
            objects.port_health = by_id.into_values().collect();
        }
        Edit::Members(bytes) => {
            objects.security_groups[0].members = members(bytes);
        }
        Edit::Parts(parts) => {
            for (number, bytes) in parts {
                let number = u32::from(*number);
                let id = v1::GroupMembers::id_of("web", number);
                objects.group_members.retain(|part| part.id != id);
                if !bytes.is_empty() {
                    objects.group_members.push(v1::GroupMembers {
                        id,
                        vpc: "blue".into(),
                        group: "web".into(),
                        number,
                        members: members(bytes),
                    });
                }
            }
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
            port.moved_from = "h4".into();
        }
        Edit::Ports(ports) => {
            for (id, bits) in ports {
                change_port(objects, &format!("p{}", id % 6), *bits);
            }
            if let [(more, _), _, _, ..] = ports[..] {
                let members: Vec<u8> = ports.iter().map(|(id, _)| *id).collect();
                apply(objects, &Edit::Members(members));
                objects.security_groups[0].rules = vec![SecurityRule {
                    direction: "ingress".into(),
                    protocol: "tcp".into(),
                    port_min: Some(more.into()),
                    port_max: Some(more.into()),
                    ..SecurityRule::default()
                }];
            }
        }
        Edit::Host => match objects.hosts.iter().position(|host| host.id == "h4") {
            Some(place) => drop(objects.hosts.remove(place)),
            None => objects.hosts.push(v1::Host {
                id: "h4".into(),
                vteps: vec!["192.0.2.4".into()],
                ..v1::Host::default()
            }),
        },
        Edit::Vpc => {
            let is_extra = |id: &str| id == "violet";
            if objects.vpcs.iter().any(|vpc| is_extra(&vpc.id)) {
                objects.vpcs.retain(|vpc| !is_extra(&vpc.id));
                objects.subnets.retain(|subnet| !is_extra(&subnet.vpc));
                objects.ports.retain(|port| !is_extra(&port.vpc));
            } else {
                objects.vpcs.push(v1::Vpc {
                    id: "violet".into(),
                    vni: 7,
                    ..v1::Vpc::default()
                });
                objects.subnets.push(v1::Subnet {
                    id: "x".into(),
                    vpc: "violet".into(),
                    cidrs: vec!["10.9.0.0/24".into()],
                    ..v1::Subnet::default()
                });
                objects.ports.push(v1::Port {
                    id: "x1".into(),
                    vpc: "violet".into(),
                    subnet: "x".into(),
                    mac: "02:00:00:00:09:01".into(),
                    addresses: vec!["10.9.0.9".into()],
                    host: "h1".into(),
                    ..v1::Port::default()
                });
            }
        }
        Edit::Holders(steps) => {
            for (which, bits) in steps {
                change_holder(objects, *which, *bits);
            }
        }
        Edit::Ways(_) => {}
        Edit::Broken => objects.route_tables[0].routes = vec![Route::default()],
    }
}

fn members(bytes: &[u8]) -> Vec<String> {
    let member = |byte: &u8| match byte % 64 {
        // The same prefix, spelt otherwise.
        0 => "10.0.1.7/32".to_owned(),
        _ => format!("10.0.1.{}", byte % 64 + byte / 128),
    };
    bytes.iter().map(member).collect()
}

/// Has a port hold an address, which it may or may not, or nobody.
fn change_holder(objects: &mut Wire, which: u8, bits: u8) {
    let subnet = ["a", "b"][usize::from(which % 2)];
    let address = format!(
        "10.0.{}.{}",
        1 + which % 2,
        9 + 91 * (which / 2 % 2) + which / 64
    );
    let port = format!("p{}", bits % 8);
    let mut holder = v1::AddressHolder {
        vpc: "blue".into(),
        address,
        port: port.clone(),
        subnet: subnet.into(),
        host: if bits & 8 == 0 { "h1" } else { "h2" }.into(),
        mac: match bits & 16 {
            0 => "00:00:5e:00:01:07".into(),
            _ => format!("02:00:00:00:03:{:02x}", b'0' + bits % 8),
        },
        moves: 1,
        ..v1::AddressHolder::default()
    };
    holder.id = holder.own_id();
    objects.address_holders.retain(|it| it.id != holder.id);
    if bits & 32 == 0 {
        objects.address_holders.push(holder);
        objects.address_holders.sort_by(|a, b| a.id.cmp(&b.id));
    }
}

/// Takes a port out if it is there and some bit says so; else puts it in as the bits say. Some of these have what another one has: refused.
fn change_port(objects: &mut Wire, id: &str, bits: u16) {
    let bit = |number: u16| bits >> number & 1 != 0;
    let known = objects.ports.iter().position(|port| port.id == id);
    let known = known.map(|place| objects.ports.remove(place));
    if known.is_some() && bit(0) {
        return;
    }
    let last = if bits.is_multiple_of(19) {
        99
    } else {
        id.as_bytes()[1]
    };
    let mut port = v1::Port {
        id: id.into(),
        vpc: "blue".into(),
        subnet: if bit(1) { "a" } else { "b" }.into(),
        mac: format!("02:00:00:00:03:{:02x}", last + u8::from(bit(2))),
        addresses: vec![format!(
            "10.0.{}.{}",
            2 - u8::from(bit(1)),
            100 + last + u8::from(bit(3))
        )],
        host: if bit(4) { "h1" } else { "h2" }.into(),
        hostname: if bit(5) { "name" } else { "" }.into(),
        dscp: bit(10).then_some(46),
        ..v1::Port::default()
    };
    if bit(4) {
        let groups = [(6, "web"), (7, "db")].into_iter();
        port.security_groups = groups
            .filter(|(at, _)| bit(*at))
            .map(|(_, id)| id.to_owned())
            .collect();
        port.device = Some(v1::Device {
            kind: "netdev".into(),
            name: id.into(),
            ..v1::Device::default()
        });
    }
    if bit(8) && bit(9) {
        let pair = |cidr: &str, mac: &str| v1::AddressPair {
            cidr: cidr.into(),
            mac: mac.into(),
        };
        port.allowed_pairs = vec![
            pair("10.0.9.0/24", ""),
            pair("10.0.0.0/16", "00:00:5e:00:01:07"),
            pair("10.0.0.0/16", ""),
        ];
    }
    port.unguarded = bit(14) && bit(15);
    if bit(10) && bit(11) {
        let packets = v1::RateLimit {
            packets_per_second: 1000,
            ..v1::RateLimit::default()
        };
        port.limits = Some(v1::RateLimits {
            ingress: Some(packets),
            ..v1::RateLimits::default()
        });
    }
    if bit(12) && bit(13) {
        port.moved_from = if bit(4) { "h3" } else { "h1" }.into();
    }
    // In order of their ids, as a state has them.
    let place = objects
        .ports
        .partition_point(|other| other.id.as_str() < id);
    objects.ports.insert(place, port);
}

fn context(underlay: &Underlay, generation: u32) -> Context<'_> {
    Context {
        host: "h1",
        generation,
        revision: u64::from(generation) + 7,
        underlay,
        metadata: false,
        translations: &[],
        externals: &[],
        silent: Box::leak(Box::default()),
    }
}

fn way(uplink: u16) -> Adjacency {
    Adjacency {
        source: address_word([192, 0, 2, 1].into()),
        source_mac: Mac::from_word(1),
        next_hop_mac: Mac::from_word(2),
        uplink,
        mtu: 1500,
    }
}

proptest! {
    #[test]
    fn states_compiled_one_after_the_other_are_as_each_from_nothing(
        edits in proptest::collection::vec(edits(), 1..25),
    ) {
        let mut underlay = Underlay::default();
        let mut objects: Wire = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
        let mut state = State::from_objects(objects.clone()).unwrap();
        let mut compiler = Compiler::new(8, 8, 8);
        let first = compiler.compile(&state, &context(&underlay, 1)).unwrap();
        let (mut epochs, mut published) = (by_vpc(&first), Vec::new());
        for (generation, edit) in (2..).zip(&edits) {
            let mut next = objects.clone();
            apply(&mut next, edit);
            if let Edit::Ways(count) = edit {
                let ways = (0..*count).map(|uplink| way(uplink.into()));
                underlay.insert(address_word([192, 0, 2, 2].into()), ways.collect());
            }
            let (upserts, deletes) = state.delta_to(&State::from_objects(next.clone()).unwrap());
            let next_state = state.patched(upserts, &deletes).unwrap();
            let context = context(&underlay, generation);
            // The same numbers, but nothing to follow.
            let mut afresh = Compiler { done: None, ..compiler.clone() };
            let wanted = afresh.compile(&next_state, &context);
            match (compiler.compile(&next_state, &context), wanted) {
                (Ok(snapshot), Ok(wanted)) => {
                    prop_assert_eq!(dump(&snapshot), dump(&wanted));
                    let before = std::mem::replace(&mut epochs, by_vpc(&snapshot));
                    for (id, now) in &epochs {
                        // In an epoch, nothing changes that a decision may depend on.
                        match before.get(id) {
                            Some(before) if before.0 == now.0 => prop_assert_eq!(before, now),
                            _ => prop_assert_eq!(now.0, generation),
                        }
                        // And what is not of the VPC does not end it; what is found may go from one to another.
                        if id == "red" && !matches!(edit, Edit::Move(_) | Edit::Health(_)) {
                            prop_assert_eq!(before[id].0, now.0);
                        }
                    }
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
        tenant: String::new(),
        ..PrefixList::default()
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

/// The number of a host that is gone may still stand in sessions of any VPC.
#[test]
fn a_port_is_followed_and_shares_the_rest() {
    let underlay = Underlay::default();
    let mut objects: Wire = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
    let mut compiler = Compiler::new(8, 8, 8);
    let mut state = State::from_objects(objects.clone()).unwrap();
    let mut before = compiler.compile(&state, &context(&underlay, 1)).unwrap();
    // Behind h2; on this host; another address; gone. Then those that others name: taken out and put in with everything else.
    let steps = [
        ("p1", 1 << 14, true),
        ("p1", 1 << 4 | 1 << 6, true),
        ("p1", 1 << 4 | 1 << 3 | 1 << 7, true),
        ("p1", 1, true),
        ("p2", 1 << 14, false),
        ("p3", 1 << 14, false),
        ("p4", 1 << 14, false),
        // Behind h2 with allowed pairs; with another address; without pairs, but unguarded; gone.
        ("p0", 1 << 8 | 1 << 9, true),
        ("p0", 1 << 3 | 1 << 8 | 1 << 9, true),
        ("p0", 1 << 14 | 1 << 15, true),
        ("p0", 1, true),
        ("p5", 1 << 4 | 1 << 10 | 1 << 11, false),
    ];
    for (generation, (id, bits, is_followed)) in (2..).zip(steps) {
        change_port(&mut objects, id, bits);
        let (upserts, deletes) = state.delta_to(&State::from_objects(objects.clone()).unwrap());
        state = state.patched(upserts, &deletes).unwrap();
        let after = compiler
            .compile(&state, &context(&underlay, generation))
            .unwrap();
        let is_shared = Arc::ptr_eq(&before.outside, &after.outside);
        assert_eq!(is_shared, is_followed, "{id} {bits:x}");
        let red = |snapshot: &Snapshot| snapshot.vpcs[1].clone();
        assert_eq!(
            Arc::ptr_eq(&red(&before).by_mac, &red(&after).by_mac),
            is_followed
        );
        assert_eq!(red(&before).epoch, red(&after).epoch);
        assert_eq!(after.vpcs[0].epoch, generation);
        before = after;
    }
}

/// A port on another host with allowed pairs is followed as any other, and what it may send with stays with another port that has it, too.
#[test]
fn what_a_remote_port_may_send_with_is_followed() {
    let underlay = Underlay::default();
    let mut objects: Wire = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
    let mut compiler = Compiler::new(8, 8, 8);
    let mut state = State::from_objects(objects.clone()).unwrap();
    let first = compiler.compile(&state, &context(&underlay, 1)).unwrap();
    let peer = (0u16..).zip(first.peers.iter());
    let peer = peer.filter_map(|(index, peer)| Some((index, peer.as_ref()?)));
    let [h2, h3] = ["h2", "h3"].map(|id| peer.clone().find(|it| it.1.host == id).unwrap().0);
    let virtual_mac: Mac = "00:00:5e:00:01:07".parse().unwrap();
    let [inside, outside] = ["10.0.77.1", "10.1.0.1"].map(|it| address_word(it.parse().unwrap()));
    let pairs = 1 << 8 | 1 << 9;
    let steps = [
        ("p0", pairs, true),
        ("p5", pairs, true),
        ("p0", 1, true),
        ("p5", 1 << 14, false),
        ("p5", pairs, true),
        // It moves here: no peer's any more.
        ("p5", pairs | 1 << 4, false),
    ];
    for (generation, (id, bits, wanted)) in (2..).zip(steps) {
        change_port(&mut objects, id, bits);
        let (upserts, deletes) = state.delta_to(&State::from_objects(objects.clone()).unwrap());
        state = state.patched(upserts, &deletes).unwrap();
        let after = compiler
            .compile(&state, &context(&underlay, generation))
            .unwrap();
        assert!(Arc::ptr_eq(&first.outside, &after.outside), "{generation}");
        let blue = &after.vpcs[0];
        for (peer, address, wanted) in [
            (h2, inside, wanted),
            (h3, inside, false),
            (h2, outside, false),
        ] {
            for mac in [virtual_mac, Mac::ROUTER] {
                assert_eq!(
                    blue.may_come_from(peer, address, mac),
                    wanted,
                    "{generation}: {peer} {mac}"
                );
            }
        }
    }
}

#[test]
fn what_is_found_of_a_port_that_no_route_spreads_flows_over_ends_no_epoch() {
    let underlay = Underlay::default();
    let mut objects: Wire = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
    let to = |port: &str, ecmp: &[&str]| Route {
        prefix: format!("10.{}.0.0/16", 50 + ecmp.len()),
        port: port.into(),
        ecmp: ecmp.iter().map(|port| hop(port)).collect(),
        ..Route::default()
    };
    fn hop(port: &str) -> NextHop {
        NextHop {
            port: port.into(),
            ..NextHop::default()
        }
    }
    // One is in a table of no subnet.
    objects.route_tables[0].routes = vec![to("a2", &[]), to("", &["b1"])];
    objects.route_tables[1].routes = vec![to("", &["a1", "a2"])];
    let mut compiler = Compiler::new(8, 8, 8);
    let mut compile = |objects: &Wire, generation| {
        let state = State::from_objects(objects.clone()).unwrap();
        let snapshot = compiler.compile(&state, &context(&underlay, generation));
        let snapshot = snapshot.unwrap();
        let epochs = snapshot.vpcs.iter().map(|vpc| vpc.epoch.get());
        let members = snapshot.subnets.iter().map(|subnet| {
            let route = subnet.routes.lookup(address_word([10, 51, 0, 1].into()));
            match route {
                Some((_, crate::snapshot::Target::Ecmp(group))) => group.members().len(),
                _ => 0,
            }
        });
        (epochs.collect::<Vec<_>>(), members.max().unwrap())
    };
    assert_eq!(compile(&objects, 1), (vec![1, 1], 1));
    let steps = [
        ("a1", "blue", false, [1, 1], 1),
        ("a2", "blue", false, [1, 1], 1),
        ("c1", "red", false, [1, 1], 1),
        // It says nothing of a port of another VPC.
        ("b1", "red", false, [1, 1], 1),
        ("b1", "blue", true, [6, 6], 1),
        ("b1", "blue", false, [7, 6], 0),
    ];
    for (generation, (id, vpc, up, epochs, members)) in (2..).zip(steps) {
        objects.port_health.retain(|it| it.id != id);
        objects.port_health.push(v1::PortHealth {
            id: id.into(),
            vpc: vpc.into(),
            up,
            ..v1::PortHealth::default()
        });
        objects.port_health.sort_by(|a, b| a.id.cmp(&b.id));
        let found = compile(&objects, generation);
        assert_eq!(found, (epochs.to_vec(), members), "{id} {vpc}");
    }
}

#[test]
fn a_host_that_gets_the_number_of_another_ends_every_epoch() {
    let underlay = Underlay::default();
    let mut objects: Wire = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
    let mut compiler = Compiler::new(8, 3, 8);
    let mut epochs = |objects: &Wire, generation| {
        let state = State::from_objects(objects.clone()).unwrap();
        let snapshot = compiler.compile(&state, &context(&underlay, generation));
        let vpcs = snapshot.unwrap().vpcs;
        vpcs.iter().map(|vpc| vpc.epoch).collect::<Vec<_>>()
    };
    assert_eq!(epochs(&objects, 1), [1, 1]);
    for (generation, wanted) in [(2, [1, 1]), (3, [1, 1]), (4, [4, 4])] {
        apply(&mut objects, &Edit::Host);
        if generation == 4 {
            objects.hosts[3].id = "h5".into();
        }
        assert_eq!(epochs(&objects, generation), wanted, "{generation}");
    }
}

/// `limits.peers` bounds numbers; memory is taken for the hosts that there are.
#[test]
fn four_thousand_other_hosts_in_one_vpc_take_half_a_kibibyte_each() {
    const HOSTS: u16 = 4096;
    let mut text = String::from("hosts: [{id: h1, vteps: [192.0.2.1]}");
    let mut ports = String::new();
    for host in 0..HOSTS {
        let [a, b] = host.to_be_bytes();
        write!(text, ", {{id: host-{host}, vteps: [198.18.{a}.{b}]}}").unwrap();
        let (mac, address) = (
            format!("02:00:00:00:{a:02x}:{b:02x}"),
            format!("10.1.{}.{b}", a + 1),
        );
        writeln!(ports, "  - {{id: p{host}, vpc: blue, subnet: a, mac: \"{mac}\", addresses: [{address}], host: host-{host}}}").unwrap();
    }
    write!(text, "]\nvpcs: [{{id: blue, vni: 1}}]\nsubnets: [{{id: a, vpc: blue, cidrs: [10.1.0.0/16]}}]\nports:\n{ports}").unwrap();
    let objects: Wire = serde_yaml_ng::from_str(&text).unwrap();
    let state = State::from_objects(objects).unwrap();
    let way = Adjacency {
        source: address_word("192.0.2.1".parse().unwrap()),
        source_mac: Mac::ROUTER,
        next_hop_mac: Mac::ROUTER,
        uplink: 0,
        mtu: 1500,
    };
    let vteps = (0..HOSTS).map(|host| {
        let [a, b] = host.to_be_bytes();
        address_word(std::net::Ipv4Addr::new(198, 18, a, b).into())
    });
    let underlay = Underlay::from_iter(vteps.map(|vtep| (vtep, vec![way.clone()])));
    let silent = BTreeSet::new();
    let context = Context {
        host: "h1",
        generation: 1,
        revision: 1,
        underlay: &underlay,
        metadata: false,
        translations: &[],
        externals: &[],
        silent: &silent,
    };
    let begun = std::time::Instant::now();
    let snapshot = Compiler::new(16, HOSTS, 16)
        .compile(&state, &context)
        .unwrap();
    println!("compiled in {:?}", begun.elapsed());
    let peers: Vec<&Peer> = snapshot.peers.iter().flatten().collect();
    assert_eq!(peers.len(), usize::from(HOSTS));
    let size = |peer: &&Peer| {
        size_of::<Option<Peer>>()
            + peer.host.capacity()
            + 16 * peer.vteps.capacity()
            + size_of::<crate::snapshot::Tunnel>() * peer.tunnels.len()
            + peer.slots.capacity()
    };
    let most = peers.iter().map(size).max().unwrap();
    println!("{most} bytes");
    assert!(most <= 512, "{most} bytes");
    // One more is one too many, and nothing is left of it.
    let mut small = Compiler::new(16, HOSTS - 1, 16);
    let refused = small.compile(&state, &context).unwrap_err();
    assert_eq!(refused.len(), 2, "the host and its port: {refused:?}");
}

/// At the cap too: the names that go give their numbers back before new ones are given out.
#[test]
fn hosts_and_ports_that_take_the_place_of_others_fit_where_those_did() {
    let objects = |host: &str, port: &str| -> State {
        let text = format!(
            r#"
hosts: [{{id: h1, vteps: [192.0.2.1]}}, {{id: {host}, vteps: [192.0.2.9]}}]
vpcs: [{{id: v-{host}, vni: 1}}]
subnets: [{{id: a, vpc: v-{host}, cidrs: [10.0.1.0/24]}}]
ports:
  - {{id: {port}, vpc: v-{host}, subnet: a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11], host: h1}}
  - {{id: far, vpc: v-{host}, subnet: a, mac: "02:00:00:00:01:02", addresses: [10.0.1.12], host: {host}}}
"#
        );
        State::from_objects(serde_yaml_ng::from_str(&text).unwrap()).unwrap()
    };
    let (underlay, silent) = (Underlay::default(), BTreeSet::new());
    let mut compiler = Compiler::new(1, 1, 1);
    for (generation, (host, port)) in (1..).zip([("h2", "p"), ("h3", "q"), ("h2", "p")]) {
        let context = Context {
            host: "h1",
            generation,
            revision: 1,
            underlay: &underlay,
            metadata: false,
            translations: &[],
            externals: &[],
            silent: &silent,
        };
        let snapshot = compiler.compile(&objects(host, port), &context).unwrap();
        assert_eq!(snapshot.port(0).unwrap().id, port);
        assert_eq!(snapshot.peer(0).unwrap().host, host);
        assert_eq!(
            snapshot.vpcs[0].epoch.get(),
            generation,
            "what sessions know of the number is decided again"
        );
    }
}

/// A subport `id` of `parent` on this host.
fn subport(id: &str, last: u8, parent: &str, vlan: u32) -> Object {
    Object::Port(v1::Port {
        id: id.into(),
        vpc: "red".into(),
        subnet: "c".into(),
        mac: format!("02:00:00:00:07:{last:02x}"),
        addresses: vec![format!("10.0.1.{last}")],
        host: "h1".into(),
        trunk: Some(v1::Trunk {
            parent: parent.into(),
            vlan,
        }),
        ..v1::Port::default()
    })
}

#[test]
fn a_subport_is_linked_when_its_parent_comes_after_it() {
    let objects: Wire = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
    let underlay = Underlay::default();
    let mut compiler = Compiler::new(8, 8, 8);
    let mut state = State::from_objects(objects).unwrap();
    state.insert(subport("s", 77, "late", 5));
    let before = compiler.compile(&state, &context(&underlay, 1)).unwrap();
    assert!(!before.trunks.is_parent(0));
    let Some(Object::Port(late)) = state.find(Kind::Port, "c1").cloned() else {
        panic!("c1 is there");
    };
    state.insert(Object::Port(v1::Port {
        id: "late".into(),
        mac: "02:00:00:00:07:01".into(),
        addresses: vec!["10.0.1.99".into()],
        ..late
    }));
    let after = compiler.compile(&state, &context(&underlay, 2)).unwrap();
    let index = |id: &str| {
        let mut ports = (0u16..).zip(after.ports.iter());
        let of = |port: &Option<Port>| port.as_ref().is_some_and(|port| port.id == id);
        ports.find(|(_, port)| of(port)).unwrap().0
    };
    assert_eq!(after.trunks.port(index("late"), 5), Some(index("s")));
}

/// Whether all is compiled or only what has changed.
#[test]
fn a_vlan_of_a_parent_that_two_ports_have_is_refused() {
    let objects: Wire = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
    let underlay = Underlay::default();
    let mut compiler = Compiler::new(8, 8, 8);
    let mut state = State::from_objects(objects).unwrap();
    state.insert(subport("s1", 77, "a1", 5));
    compiler.compile(&state, &context(&underlay, 1)).unwrap();
    let mut both = state.clone();
    both.insert(subport("s2", 78, "a1", 5));
    for mut compiler in [compiler, Compiler::new(8, 8, 8)] {
        let found = compiler.compile(&both, &context(&underlay, 2)).unwrap_err();
        let found: Vec<String> = found.iter().map(weft_proto::validate::describe).collect();
        assert_eq!(
            found,
            ["port s2: trunk.vlan: VLAN 5 of 'a1' is another port's"]
        );
        // The VLAN goes from one to the other.
        let mut next = both.clone();
        next.remove(&subport("s1", 77, "a1", 5).key());
        compiler.compile(&next, &context(&underlay, 3)).unwrap();
    }
}
