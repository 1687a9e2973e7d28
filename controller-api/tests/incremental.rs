//! Sequences of random changes: what a host is told by following each change is what it is told by compiling everything anew, and whom a change does not
//! concern is told nothing. The same where hosts learn ports, and ask for others all the time: what they are told is what they would be told if they
//! were told all, without what they have not asked for.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;

use support::yaml;
use weft_controller::findings::Findings;
use weft_controller::learning::{Address, Learned};
use weft_controller::node::{Capabilities, NodeState};
use weft_controller::store::Change;
use weft_controller::version::{LearnedChange, Version};
use weft_proto::state::{Kind, Object, State};
use weft_proto::v1::{
    DnsZone, ElasticIp, Listener, LoadBalancer, Member, NatGateway, Objects, Peering, Port,
    PortForward, PortName, RoutedPrefix, SecurityGroup, SecurityRule, VpcDns,
};
use weft_proto::validate::{Scope, validate, validate_next};

const HOSTS: u64 = 6;
const VPCS: u64 = 4;

/// Numbers that look random, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Ann has v0 and v1, the operator the others. h0 and h1 are gateways; h5 has tunnels over IPv6 as well.
const FABRIC: &str = r#"
hosts:
  - {id: h0, vteps: [192.0.2.10], physical_networks: [phys]}
  - {id: h1, vteps: [192.0.2.11], physical_networks: [phys]}
  - {id: h2, vteps: [192.0.2.12], physical_networks: [phys]}
  - {id: h3, vteps: [192.0.2.13]}
  - {id: h4, vteps: [192.0.2.14]}
  - {id: h5, vteps: [192.0.2.15, "2001:db8::15"]}
external_networks:
  - {id: inet, physical_network: phys, prefixes: [203.0.113.0/24], gateways: [203.0.113.1], gateway_hosts: [h0, h1], routers: [203.0.113.2]}
prefix_lists: [{id: ann/list, tenant: ann, prefixes: [198.51.100.0/24]}]
security_groups:
  - {id: ann/wide, tenant: ann, rules: [{direction: ingress, remote_group: ann/wide}, {direction: ingress, remote_prefix_list: ann/list}]}
"#;

fn intent() -> Objects {
    let mut all = yaml(FABRIC);
    for v in 0..VPCS {
        let tenant = if v < 2 { "ann" } else { "''" };
        let mut more = yaml(&format!(
            r#"
vpcs: [{{id: v{v}, vni: {vni}, tenant: {tenant}}}]
subnets:
  - {{id: v{v}/a, vpc: v{v}, cidrs: [10.{v}.0.0/24], route_table: v{v}/t, network_acl: v{v}/acl, dhcp: {{domain: a.test}}}}
  - {{id: v{v}/b, vpc: v{v}, cidrs: [10.{v}.1.0/24]}}
route_tables: [{{id: v{v}/t, vpc: v{v}, routes: [{{prefix: 0.0.0.0/0, nat: v{v}/nat}}]}}]
network_acls: [{{id: v{v}/acl, vpc: v{v}, rules: []}}]
security_groups:
  - {{id: v{v}/web, vpc: v{v}, rules: [{{direction: ingress, remote_group: v{v}/db}}]}}
  - {{id: v{v}/db, vpc: v{v}, rules: [{{direction: ingress, remote_group: v{v}/web}}]}}
nat_gateways: [{{id: v{v}/nat, vpc: v{v}, external_network: inet, addresses: [203.0.113.{nat}]}}]
"#,
            vni = v + 1,
            nat = 100 + v
        ));
        all.vpcs.append(&mut more.vpcs);
        all.subnets.append(&mut more.subnets);
        all.route_tables.append(&mut more.route_tables);
        all.network_acls.append(&mut more.network_acls);
        all.security_groups.append(&mut more.security_groups);
        all.nat_gateways.append(&mut more.nat_gateways);
    }
    all
}

fn random_port(numbers: &mut Numbers) -> Port {
    let (v, n) = (numbers.below(VPCS), numbers.below(12));
    // An id may go from one VPC to another.
    let id = match numbers.below(10) {
        0 => "wanderer".to_owned(),
        _ => format!("v{v}/p{n}"),
    };
    let [subnet, third] = [["a", "0"], ["b", "1"]][numbers.below(2) as usize];
    let mut groups = vec![format!("v{v}/web"), format!("v{v}/db")];
    if v < 2 {
        groups.push("ann/wide".into());
    }
    groups.retain(|_| numbers.below(2) == 0);
    let host = match numbers.below(8) {
        0 => String::new(),
        _ => format!("h{}", numbers.below(HOSTS)),
    };
    let moved_from = match numbers.below(6) {
        0 => format!("h{}", numbers.below(HOSTS)),
        _ => String::new(),
    };
    let name = id.replace(['/', 'v'], "");
    Port {
        vpc: format!("v{v}"),
        subnet: format!("v{v}/{subnet}"),
        mac: format!("02:00:00:00:0{v}:{n:02x}"),
        addresses: vec![format!("10.{v}.{third}.{}", 10 + n)],
        security_groups: groups,
        moved_from: if moved_from == host {
            String::new()
        } else {
            moved_from
        },
        host,
        device: Some(weft_proto::v1::Device {
            kind: "netdev".into(),
            name: format!("d{name}"),
            ..Default::default()
        }),
        id,
        hostname: ["", "", "web", "Web-2"][numbers.below(4) as usize].into(),
        unguarded: numbers.below(16) == 0,
        dscp: (numbers.below(4) == 0).then_some(46),
        allowed_pairs: match numbers.below(16) {
            0 => vec![weft_proto::v1::AddressPair {
                cidr: format!("10.9{v}.{n}.0/24"),
                ..Default::default()
            }],
            _ => Vec::new(),
        },
        ..Port::default()
    }
}

fn random_elastic_ip(numbers: &mut Numbers, state: &State) -> ElasticIp {
    let n = numbers.below(8);
    let port = format!("v{}/p{}", numbers.below(VPCS), numbers.below(12));
    let port = match state.find(Kind::Port, &port) {
        Some(Object::Port(port)) if numbers.below(4) != 0 => Some(port),
        _ => None,
    };
    let balancer = format!("v{}/lb{}", numbers.below(VPCS), numbers.below(2));
    let balancer = match state.find(Kind::LoadBalancer, &balancer) {
        Some(Object::LoadBalancer(balancer)) if numbers.below(3) == 0 => Some(balancer),
        _ => None,
    };
    if let Some(balancer) = balancer {
        let is_anns = matches!(&*balancer.vpc, "v0" | "v1");
        return ElasticIp {
            id: format!("e{n}"),
            tenant: if is_anns { "ann".into() } else { String::new() },
            external_network: "inet".into(),
            address: format!("203.0.113.{}", 10 + n),
            load_balancer: balancer.id.clone(),
            ..ElasticIp::default()
        };
    }
    let is_anns = port.is_some_and(|port| matches!(&*port.vpc, "v0" | "v1"));
    ElasticIp {
        id: format!("e{n}"),
        tenant: if is_anns { "ann".into() } else { String::new() },
        external_network: "inet".into(),
        address: format!("203.0.113.{}", 10 + n),
        port: port.map(|port| port.id.clone()).unwrap_or_default(),
        mode: ["nat", "direct"][numbers.below(2) as usize].into(),
        ..ElasticIp::default()
    }
}

/// Some of its members are there.
fn random_load_balancer(numbers: &mut Numbers, v: u64, state: &State) -> LoadBalancer {
    let mut members: Vec<Member> = Vec::new();
    for _ in 0..numbers.below(4) {
        let n = numbers.below(12);
        let mut member = Member {
            draining: numbers.below(4) == 0,
            ..Member::default()
        };
        let port = match numbers.below(8) {
            0 => "wanderer".to_owned(),
            _ => format!("v{v}/p{n}"),
        };
        match state.find(Kind::Port, &port) {
            Some(Object::Port(port)) if numbers.below(2) == 0 => {
                member.address.clone_from(&port.addresses[0]);
            }
            Some(_) => member.port = port,
            None => continue,
        }
        let is_new = |it: &Member| (&it.port, &it.address) != (&member.port, &member.address);
        if members.iter().all(is_new) {
            members.push(member);
        }
    }
    let n = numbers.below(2);
    LoadBalancer {
        id: format!("v{v}/lb{n}"),
        vpc: format!("v{v}"),
        addresses: vec![format!("10.{v}.{n}.{}", 200 + numbers.below(2))],
        listeners: vec![Listener {
            protocol: "tcp".into(),
            port_min: 80,
            algorithm: ["", "least-connections"][numbers.below(2) as usize].into(),
            mode: ["", "nat", "dsr"][numbers.below(3) as usize].into(),
            members,
            ..Listener::default()
        }],
        ..LoadBalancer::default()
    }
}

/// One more object, one other, or one less.
fn edit(state: &mut State, numbers: &mut Numbers) {
    let v = numbers.below(VPCS);
    let any = |state: &State, numbers: &mut Numbers| {
        let at = numbers.below(state.len() as u64) as usize;
        state.iter().nth(at).unwrap().clone()
    };
    match numbers.below(22) {
        20 | 21 => {
            let id = format!("v{v}");
            if let Some(Object::Vpc(vpc)) = state.find(Kind::Vpc, &id)
                && numbers.below(3) == 0
            {
                let mut vpc = vpc.clone();
                let dns = VpcDns {
                    domain: format!("{id}.test"),
                };
                vpc.dns = vpc.dns.is_none().then_some(dns);
                state.insert(Object::Vpc(vpc));
            }
            let zone = DnsZone {
                id: format!("v{v}/z{}", numbers.below(2)),
                domain: format!("z{}.test", numbers.below(4)),
                vpc: id,
                ..DnsZone::default()
            };
            state.insert(Object::DnsZone(zone));
        }
        18 | 19 => {
            let made = random_load_balancer(numbers, v, state);
            state.insert(Object::LoadBalancer(made));
        }
        0..=5 => drop(state.insert(Object::Port(random_port(numbers)))),
        6 | 7 => {
            let elastic = random_elastic_ip(numbers, state);
            state.insert(Object::ElasticIp(elastic));
        }
        8 => {
            let object = any(state, numbers);
            if !matches!(object, Object::Host(_) | Object::Vpc(_)) {
                state.remove(&object.key());
            }
        }
        9 => {
            let other = match numbers.below(3) {
                0 => numbers.below(VPCS),
                _ => v,
            };
            let remote = format!("v{other}/web");
            let group = SecurityGroup {
                id: format!("v{v}/db"),
                vpc: format!("v{v}"),
                rules: (0..=numbers.below(2))
                    .map(|n| SecurityRule {
                        direction: ["ingress", "egress"][n as usize].into(),
                        protocol: ["", "tcp", "udp"][numbers.below(3) as usize].into(),
                        remote_group: remote.clone(),
                        ..SecurityRule::default()
                    })
                    .collect(),
                ..SecurityGroup::default()
            };
            state.insert(Object::SecurityGroup(group));
        }
        10 | 11 => {
            let [a, b] = [[0, 1], [1, 2], [2, 3]][numbers.below(3) as usize];
            let side = ["active", "active", "frozen", "connecting"];
            let mut peering = Peering {
                id: format!("p{a}"),
                requester: format!("v{a}"),
                accepter: format!("v{b}"),
                requester_state: side[numbers.below(4) as usize].into(),
                accepter_state: "active".into(),
                ..Peering::default()
            };
            if peering.requester_state == "connecting" {
                peering.accepter_state = "accepting".into();
            }
            state.insert(Object::Peering(peering));
        }
        12 => {
            let Some(network) = state.external_network("inet") else {
                return;
            };
            let mut network = network.clone();
            network.gateway_hosts = ["h0", "h1", "h2"].map(str::to_owned).into();
            network.gateway_hosts.rotate_left(numbers.below(3) as usize);
            network
                .gateway_hosts
                .truncate(1 + numbers.below(2) as usize);
            let routed = (0..numbers.below(3)).map(|n| RoutedPrefix {
                prefix: format!("198.18.{n}.0/24"),
                vpc: format!("v{}", numbers.below(VPCS)),
            });
            network.routed = routed.collect();
            state.insert(Object::ExternalNetwork(network));
        }
        13 => {
            let prefixes = (0..numbers.below(3)).map(|n| format!("198.51.{n}.0/24"));
            let list = weft_proto::v1::PrefixList {
                id: "ann/list".into(),
                tenant: "ann".into(),
                prefixes: prefixes.collect(),
                ..Default::default()
            };
            state.insert(Object::PrefixList(list));
        }
        16 | 17 => {
            let n = numbers.below(12);
            let port = format!("v{v}/p{n}");
            let id = format!("v{v}/nat");
            if let Some(Object::NatGateway(nat)) = state.find(Kind::NatGateway, &id)
                && state.find(Kind::Port, &port).is_some()
            {
                let mut forwards = [80, 443].map(|number| PortForward {
                    protocol: "tcp".into(),
                    port_min: number,
                    port: port.clone(),
                    ..PortForward::default()
                });
                let [_, second] = &mut forwards;
                second.port.clear();
                second.private_address = format!("10.{v}.{}.{}", n & 1, 10 + n);
                let count = numbers.below(3) as usize;
                let nat = NatGateway {
                    port_forwards: forwards[..count].to_vec(),
                    ..nat.clone()
                };
                state.insert(Object::NatGateway(nat));
            }
        }
        14 => {
            let hop = format!("v{v}/p{}", numbers.below(12));
            let policies = match numbers.below(4) {
                0 => format!(
                    "[{{priority: 1, dscp: 46, to: {{host: h{}}}}}]",
                    numbers.below(HOSTS)
                ),
                1 if state.find(Kind::Port, &hop).is_some() => {
                    format!("[{{priority: 2, protocol: udp, to: {{port: {hop}}}}}]")
                }
                2 => "[{priority: 3, protocol: tcp, default_routing: true}]".to_owned(),
                _ => "[]".to_owned(),
            };
            let routes = format!(
                "route_tables: [{{id: v{v}/t, vpc: v{v}, policies: {policies}, routes: [{{prefix: 0.0.0.0/0, host: h{}}}, {{prefix: 192.0.2.0/24, external: inet}}{}]}}]",
                numbers.below(HOSTS),
                if state.find(Kind::Port, &hop).is_some() {
                    format!(", {{prefix: 198.51.100.0/24, ecmp: [{{port: {hop}}}]}}")
                } else {
                    String::new()
                }
            );
            for table in yaml(&routes).route_tables {
                state.insert(Object::RouteTable(table));
            }
        }
        _ => {
            let Some(host) = state.host(&format!("h{}", numbers.below(HOSTS))) else {
                return;
            };
            let mut host = host.clone();
            host.underlay_mtu = [0, 9000][numbers.below(2) as usize];
            state.insert(Object::Host(host));
        }
    }
}

/// Labels some objects of any kind, and takes the labels of some away.
fn label(state: &mut State, numbers: &mut Numbers) {
    let mut objects: Vec<Object> = state.iter().cloned().collect();
    for _ in 0..=numbers.below(20) {
        let place = numbers.below(objects.len() as u64) as usize;
        let object = &mut objects[place];
        if let Some(labels) = object.labels_mut() {
            match numbers.below(3) {
                0 => labels.clear(),
                n => drop(labels.insert(format!("key-{n}"), numbers.below(9).to_string())),
            }
        }
        state.insert_at(object.clone(), numbers.below(9));
    }
}

/// The change that leads from one state to another.
fn change(before: &State, after: &State, revision: u64) -> Change {
    let changes = before.changes_to(after);
    Change {
        revision,
        upserts: changes.iter().filter_map(|it| it.new.cloned()).collect(),
        deletes: changes
            .iter()
            .filter(|it| it.new.is_none())
            .filter_map(|it| Some(it.old?.key()))
            .collect(),
        ..Change::default()
    }
}

fn as_state(node: &NodeState) -> State {
    let mut state = State::default();
    for entry in node.iter() {
        let twice = state.insert(entry.object.clone());
        assert!(twice.is_none(), "{twice:?} is told twice");
    }
    state
}

/// Hosts of several versions: one takes no members in parts, to the others few are many, one learns no ports and takes no policy routes,
/// and one takes no load balancers.
fn abilities(host: &str) -> Capabilities {
    Capabilities {
        members_in_one: (host != "h1").then_some(2),
        learns: host != "h2",
        balances: host != "h3",
        least_connections: host != "h4",
        dsr: host != "h2",
        dhcp_options: host != "h2",
        finds: host != "h1",
        multicast: host != "h3",
        multicast_listeners: host != "h2",
        address_holders: host != "h3",
        port_health: host != "h2",
        marks: host != "h2",
        trunks: host != "h2",
        policy_routes: host != "h2",
        state_parts: host != "h1",
        names: host != "h1",
    }
}

/// A host asks for something else, or not.
fn ask(learned: &mut Learned, numbers: &mut Numbers) {
    for _ in 0..numbers.below(4) {
        // One VPC more than there are.
        let (v, n) = (numbers.below(VPCS + 1), numbers.below(14));
        let text = match numbers.below(3) {
            0 => format!("02:00:00:00:0{v}:{n:02x}"),
            third => format!("10.{v}.{}.{}", third - 1, 10 + n),
        };
        let address = Address::parse(&text).unwrap();
        match numbers.below(3) {
            0 => learned.remove(&format!("v{v}"), address),
            _ => assert!(learned.insert(&format!("v{v}"), address)),
        }
    }
}

/// What a host is told of everything, without what it is not told where it learns ports.
fn restricted(whole: &State, version: &Version, host: &str, learned: &Learned) -> State {
    let intent = &version.state;
    let learns = |vpc: &str| {
        version.is_learned(vpc) && abilities(host).learns && !version.is_gateway(vpc, host)
    };
    // Of a VPC that a peering does not let pass, it is told the members of groups alone.
    let is_learned = |vpc: &str| {
        let mut ports = whole.of_vpc_and_kind(vpc, Kind::Port);
        learns(vpc) && ports.next().is_some()
    };
    let tables = intent.of_kind(Kind::RouteTable).flat_map(|table| {
        let Object::RouteTable(table) = table else {
            unreachable!()
        };
        table.ports()
    });
    let forwards = intent.of_kind(Kind::NatGateway).flat_map(|nat| {
        let Object::NatGateway(nat) = nat else {
            unreachable!()
        };
        let names = |it: &PortForward| {
            [
                it.port.clone(),
                format!("{}/{}", nat.vpc, it.private_address),
            ]
        };
        nat.port_forwards.iter().flat_map(names).collect::<Vec<_>>()
    });
    let members = intent.of_kind(Kind::LoadBalancer).flat_map(|object| {
        let Object::LoadBalancer(balancer) = object else {
            unreachable!()
        };
        let names = |it: &Member| [it.port.clone(), format!("{}/{}", balancer.vpc, it.address)];
        balancer.members().flat_map(names).collect::<Vec<_>>()
    });
    let named = tables.map(str::to_owned).chain(forwards);
    let named = named.chain(members);
    let named: BTreeSet<String> = named.collect();
    let is_told = |port: &Port| {
        let (vpc, Some(Object::Port(whole))) = (&port.vpc, intent.find(Kind::Port, &port.id))
        else {
            panic!("{port:?} is not there");
        };
        let names = port.addresses.iter().map(|it| format!("{vpc}/{it}"));
        let mut texts = port.addresses.iter().chain([&port.mac]);
        !learns(vpc)
            || port.host == host
            || port.moved_from == host
            || whole.unguarded
            || !whole.allowed_pairs.is_empty()
            || intent.elastic_ips_of_port(&port.id).next().is_some()
            || names
                .chain([port.id.clone()])
                .any(|name| named.contains(&name))
            || texts.any(|text| learned.has(vpc, Address::parse(text).unwrap()))
    };
    let mut told = State::default();
    let mut untold: BTreeSet<&str> = BTreeSet::new();
    for object in whole.of_kind(Kind::Port) {
        let Object::Port(port) = object else {
            unreachable!()
        };
        if is_told(port) {
            told.insert(object.clone());
        }
    }
    for object in intent.of_kind(Kind::Port) {
        let Object::Port(port) = object else {
            unreachable!()
        };
        if !port.host.is_empty() && !is_told(port) {
            untold.extend(port.addresses.iter().map(String::as_str));
        }
    }
    let parts: Vec<&weft_proto::v1::GroupMembers> = whole
        .of_kind(Kind::GroupMembers)
        .map(|object| match object {
            Object::GroupMembers(part) => part,
            _ => unreachable!(),
        })
        .collect();
    for object in whole.iter() {
        match object {
            Object::Port(_) | Object::GroupMembers(_) => {}
            Object::Vpc(vpc) if is_learned(&vpc.id) => {
                let mut vpc = vpc.clone();
                let hosts = intent.hosts_with_ports(&vpc.id).map(str::to_owned);
                vpc.learning = Some(weft_proto::v1::Learning {
                    hosts: hosts.collect(),
                });
                told.insert(Object::Vpc(vpc));
            }
            Object::SecurityGroup(group) => {
                let mut group = group.clone();
                let own = parts.iter().filter(|part| part.group == group.id);
                let mut own: Vec<_> = own.map(|part| (*part).clone()).collect();
                for part in &mut own {
                    part.members.retain(|it| !untold.contains(&**it));
                }
                own.retain(|part| !part.members.is_empty());
                group.members.retain(|it| !untold.contains(&**it));
                let count: usize = own.iter().map(|part| part.members.len()).sum();
                if abilities(host)
                    .members_in_one
                    .is_some_and(|most| count > most)
                {
                    for part in own {
                        told.insert(Object::GroupMembers(part));
                    }
                } else {
                    group
                        .members
                        .extend(own.into_iter().flat_map(|part| part.members));
                    group.members.sort_unstable();
                }
                told.insert(Object::SecurityGroup(group));
            }
            other => drop(told.insert(other.clone())),
        }
    }
    for v in 0..VPCS {
        let vpc = format!("v{v}");
        for n in (0..14).filter(|_| is_learned(&vpc)) {
            let texts = [0, 1].map(|third| format!("10.{v}.{third}.{}", 10 + n));
            let mac = format!("02:00:00:00:0{v}:{n:02x}");
            for text in texts.iter().chain([&mac]) {
                if learned.has(&vpc, Address::parse(text).unwrap()) {
                    let address = weft_proto::v1::LearnedAddress::new(&vpc, text);
                    told.insert(Object::LearnedAddress(address));
                }
            }
        }
    }
    told
}

#[test]
fn following_changes_leads_where_compiling_anew_does() {
    for seed in 1..=2 {
        follow(seed, 0);
    }
}

#[test]
fn what_is_learned_is_what_would_be_told_restricted() {
    let (answers, turns) = follow(1, 4);
    assert!(answers > 1000, "{answers}, {turns}");
    // VPCs begin to be learned and stop again, all the time.
    let (answers, turns) = follow(2, 7);
    assert!(answers > 500 && turns > 2, "{answers}, {turns}");
}

/// What a host is told, and what it asks for.
struct Host {
    name: String,
    told: NodeState,
    asks: Learned,
}

/// A host is told the zones and the names of ports of those of its own VPCs whose gateways answer DNS, whether it learns their ports or not. How many names.
fn check_names(version: &Version, host: &str, ours: &State) -> usize {
    let mut wanted = State::default();
    for object in version.state.of_kind(Kind::Vpc) {
        let Object::Vpc(vpc) = object else {
            unreachable!()
        };
        let is_told = vpc.dns.is_some() && abilities(host).names;
        if let Some(Object::Vpc(told)) = ours.find(Kind::Vpc, &vpc.id) {
            assert_eq!(told.dns, vpc.dns.clone().filter(|_| is_told), "{host}");
        }
        if !is_told || !version.is_own(&vpc.id, host) {
            continue;
        }
        for object in version.state.of_vpc(&vpc.id) {
            match object {
                Object::Port(port) if !port_label(object).is_empty() => {
                    wanted.insert(Object::PortName(PortName {
                        id: port.id.clone(),
                        vpc: port.vpc.clone(),
                        name: port_label(object),
                        addresses: port.addresses.clone(),
                    }));
                }
                Object::DnsZone(_) => drop(wanted.insert(object.clone().without_labels())),
                _ => {}
            }
        }
    }
    let mut told = State::default();
    for object in ours.iter() {
        if matches!(object, Object::PortName(_) | Object::DnsZone(_)) {
            told.insert(object.clone());
        }
    }
    assert_eq!(told.to_objects(), wanted.to_objects(), "{host}");
    told.len()
}

/// The name of a port that lives somewhere.
fn port_label(object: &Object) -> String {
    match object {
        Object::Port(port) if port.host.is_empty() => String::new(),
        Object::Port(port) if !port.hostname.is_empty() => port.hostname.to_ascii_lowercase(),
        // The others' ids have slashes.
        Object::Port(port) if port.id == "wanderer" => port.id.clone(),
        _ => String::new(),
    }
}

/// How many addresses were told, and how often a VPC began to be learned or stopped.
fn follow(seed: u64, learn_above: usize) -> (usize, usize) {
    let mut numbers = Numbers(seed);
    let start = State::from_objects(intent()).unwrap();
    assert_eq!(validate(&start, Scope::Intent), vec![]);
    let mut version = Version::loaded(1, start).learning_above(learn_above);
    let mut hosts: Vec<Host> = (0..HOSTS)
        .map(|h| {
            let name = format!("h{h}");
            let told = NodeState::compile(&version, &name, abilities(&name), None).unwrap();
            Host {
                name,
                told,
                asks: Learned::default(),
            }
        })
        .collect();
    let (mut changes, mut spared, mut answers, mut turns) = (0, 0, 0, 0);
    let (mut balanced, mut public, mut named) = (0, 0, 0);
    for _ in 0..if learn_above == 0 { 600 } else { 200 } {
        let mut state = version.state.clone();
        let of_labels = numbers.below(5) == 0;
        if !of_labels {
            for _ in 0..=numbers.below(3) {
                edit(&mut state, &mut numbers);
            }
        }
        if of_labels || numbers.below(3) == 0 {
            label(&mut state, &mut numbers);
        }
        let found = validate_next(&version.state, &state, Scope::Intent);
        if !found.is_empty() {
            assert_ne!(validate(&state, Scope::Intent), vec![]);
            continue;
        }
        assert_eq!(validate(&state, Scope::Intent), vec![]);
        changes += 1;
        let change = change(&version.state, &state, version.revision + 1);
        let next = version.next(&change, state);
        let concern = next.concern(&version);
        if of_labels {
            let concern = concern.as_ref().unwrap();
            assert!(concern.hosts.is_empty() && concern.learned.is_empty());
        }
        for v in 0..VPCS {
            let vpc = format!("v{v}");
            turns += usize::from(version.is_learned(&vpc) != next.is_learned(&vpc));
        }
        // That of a controller that has just been started.
        let anew = Version::loaded(next.revision, next.state.clone()).learning_above(learn_above);
        for host in &mut hosts {
            let name = &*host.name;
            // Some hosts are slow, and follow several changes at once; one is so slow that what they were is forgotten.
            if numbers.below(4) == 0 || name == "h4" && changes % 80 != 0 {
                continue;
            }
            let is_last = host.told.revision == version.revision;
            let is_concerned = concern.as_ref().is_none_or(|concern| {
                let asks = |it: &LearnedChange<'_>| {
                    let mut addresses = it.addresses.iter();
                    let is_asked = addresses.any(|address| host.asks.has(it.vpc, *address));
                    it.hosts.contains(name) && (!abilities(name).learns || is_asked)
                };
                concern.hosts.contains(name) || concern.learned.iter().any(asks)
            });
            // To compare with everything takes long.
            let sample = numbers.below(6);
            let mut follow = |asks: &Learned, before: &NodeState| {
                let who = (name, abilities(name));
                let followed =
                    NodeState::compile_with(&next, who, (asks, &Findings::default()), Some(before))
                        .unwrap();
                let ours = as_state(&followed);
                // Load balancers are those of the VPCs that are its own.
                for object in next.state.of_kind(Kind::LoadBalancer) {
                    let is_own = next.is_own(object.vpc().unwrap(), name);
                    let wanted = is_own && abilities(name).balances;
                    let told = ours.get(&object.key());
                    let mut plain = object.clone().without_labels();
                    if let Object::LoadBalancer(balancer) = &mut plain
                        && !abilities(name).dsr
                    {
                        balancer.listeners.retain(|it| it.mode != "dsr");
                        balancer.listeners.iter_mut().for_each(|it| it.mode.clear());
                    }
                    if let Object::LoadBalancer(balancer) = &mut plain
                        && !abilities(name).least_connections
                    {
                        let listeners = balancer.listeners.iter_mut();
                        let counting = listeners.filter(|it| it.algorithm == "least-connections");
                        counting.for_each(|it| it.algorithm = "maglev".into());
                    }
                    assert_eq!(told, Some(&plain).filter(|_| wanted), "{name}");
                    balanced += usize::from(wanted);
                    // And their elastic IPs with them.
                    for elastic in next.state.elastic_ips_of_balancer(object.id()) {
                        let key = Object::ElasticIp(elastic.clone()).key();
                        assert_eq!(ours.get(&key).is_some(), wanted, "{name}");
                        public += usize::from(wanted);
                    }
                }
                named += check_names(&next, name, &ours);
                let labelled = ours.iter().find(|object| !object.labels().is_empty());
                assert_eq!(labelled, None, "{name} is told of labels");
                // By one that has another past a VPC may just be learned, or not any more.
                let is_like_anew = (0..VPCS).all(|v| {
                    let vpc = format!("v{v}");
                    anew.is_learned(&vpc) == next.is_learned(&vpc)
                });
                if is_like_anew && (learn_above == 0 || sample < 2) {
                    let wanted =
                        NodeState::compile_with(&anew, who, (asks, &Findings::default()), None)
                            .unwrap();
                    let theirs = as_state(&wanted);
                    assert_eq!(
                        ours.to_objects(),
                        theirs.to_objects(),
                        "seed {seed}, {name} after {change:#?}"
                    );
                    assert_eq!(wanted.digest(), ours.digest(), "{name}");
                }
                assert_eq!(followed.digest(), ours.digest(), "{name}");
                if learn_above == 0 || sample > 2 {
                    return followed;
                }
                let whole = Capabilities {
                    learns: false,
                    ..abilities(name)
                };
                let whole = NodeState::compile(&next, name, whole, None).unwrap();
                let wanted = restricted(&as_state(&whole), &next, name, asks);
                assert_eq!(
                    ours.to_objects(),
                    wanted.to_objects(),
                    "seed {seed}, {name} after {change:#?}"
                );
                let found = validate(&ours, Scope::Node { host: name });
                assert_eq!(found, vec![], "seed {seed}, {name} after {change:#?}");
                let (upserts, deletes) = before.delta_to(&followed);
                let patched = as_state(before).patched(upserts.clone(), &deletes).unwrap();
                assert_eq!(patched.digest(), ours.digest(), "{name}: {upserts:#?}");
                answers += ours.of_kind(Kind::LearnedAddress).count();
                followed
            };
            let followed = follow(&host.asks, &host.told);
            if is_last && !is_concerned {
                spared += 1;
                assert_eq!(host.told.digest(), followed.digest(), "{name} is concerned");
            }
            host.told = followed;
            host.asks = host.told.learned().clone();
            if learn_above != 0 {
                ask(&mut host.asks, &mut numbers);
                host.told = follow(&host.asks, &host.told);
                host.asks = host.told.learned().clone();
            }
        }
        version = next;
    }
    assert!(changes > 100 && spared > 30, "{changes}, {spared}");
    assert!(balanced > 100 && public > 30, "{balanced}, {public}");
    assert!(named > 500, "{named}");
    (answers, turns)
}
