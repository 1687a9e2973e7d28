//! Random intents: every valid intent compiles to a valid state for each host, which contains nothing of other tenants (invariant 1), and
//! deltas lead from each state to the next.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use proptest::prelude::*;
use weft_controller::compile::compile;
use weft_controller::store::Change;
use weft_controller::version::Version;
use weft_proto::state::{Kind, Object, State};
use weft_proto::v1::{
    Device, ElasticIp, ExternalNetwork, Host, Listener, LoadBalancer, Member, NatGateway,
    NetworkAcl, NextHop, Objects, Port, PortForward, PrefixList, Route, RouteTable, SecurityGroup,
    SecurityRule, Subnet, Vpc,
};
use weft_proto::validate::{Scope, describe, validate, validate_next};

const HOSTS: usize = 5;
const VPCS: usize = 3;
const SUBNETS: usize = 3;
const PORTS: usize = 4;
const GROUPS: usize = 3;

/// A stream of small numbers that a random intent is made from.
struct Dice<'a>(std::slice::Iter<'a, u8>);

impl Dice<'_> {
    fn roll(&mut self, sides: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or_default()) % sides
    }

    fn chance(&mut self) -> bool {
        self.roll(2) == 0
    }
}

fn hosts(dice: &mut Dice<'_>) -> Vec<Host> {
    (0..HOSTS)
        .map(|h| {
            let mut vteps = vec![format!("192.0.2.{}", h + 1)];
            if dice.chance() {
                vteps.push(format!("2001:db8::{}", h + 1));
            }
            Host {
                id: format!("h{h}"),
                vteps,
                encapsulation: ["", "vxlan", "gre"][dice.roll(3)].into(),
                underlay_mtu: [0, 9000][dice.roll(2)],
                // The last is equipment that others made.
                foreign: h == HOSTS - 1,
                physical_networks: if h == 0 || h < HOSTS - 1 && dice.chance() {
                    vec!["physnet1".into()]
                } else {
                    Vec::new()
                },
                ..Host::default()
            }
        })
        .collect()
}

fn hop(dice: &mut Dice<'_>, bound: &[String]) -> NextHop {
    let mut hop = NextHop::default();
    if bound.is_empty() || dice.chance() {
        hop.host = format!("h{}", dice.roll(HOSTS));
    } else {
        hop.port = bound[dice.roll(bound.len())].clone();
    }
    hop
}

fn vpc(v: usize, dice: &mut Dice<'_>, all: &mut Objects) {
    let id = format!("v{v}");
    all.vpcs.push(Vpc {
        id: id.clone(),
        vni: u32::try_from(v).unwrap() + 1,
        ..Vpc::default()
    });
    all.prefix_lists.push(PrefixList {
        id: format!("{id}/list"),
        vpc: id.clone(),
        prefixes: vec!["198.51.100.0/24".into()],
        tenant: String::new(),
        ..PrefixList::default()
    });
    let mut bound = Vec::new();
    for s in 0..SUBNETS {
        let subnet = format!("{id}/s{s}");
        all.subnets.push(Subnet {
            id: subnet.clone(),
            vpc: id.clone(),
            cidrs: vec![format!("10.0.{s}.0/24"), format!("fd00:{s}::/64")],
            route_table: [String::new(), format!("{id}/t")][dice.roll(2)].clone(),
            network_acl: [String::new(), format!("{id}/acl")][dice.roll(2)].clone(),
            ..Subnet::default()
        });
        for p in 0..PORTS {
            let port = format!("{id}/p{s}-{p}");
            let host = [String::new(), format!("h{}", dice.roll(HOSTS))][dice.roll(2)].clone();
            if !host.is_empty() {
                bound.push(port.clone());
            }
            let groups: BTreeSet<_> = (0..dice.roll(3)).map(|_| dice.roll(GROUPS)).collect();
            all.ports.push(Port {
                id: port.clone(),
                vpc: id.clone(),
                subnet: subnet.clone(),
                mac: format!("02:00:00:00:{s:02x}:{p:02x}"),
                addresses: vec![
                    format!("10.0.{s}.{}", p + 10),
                    format!("fd00:{s}::{}", p + 10),
                ],
                security_groups: groups.iter().map(|g| format!("{id}/g{g}")).collect(),
                host,
                device: Some(Device {
                    kind: "netdev".into(),
                    name: format!("v{v}s{s}p{p}"),
                    ..Device::default()
                }),
                ..Port::default()
            });
        }
    }
    for g in 0..GROUPS {
        let rules = (0..dice.roll(3)).map(|_| {
            let mut rule = SecurityRule {
                direction: "ingress".into(),
                ..SecurityRule::default()
            };
            match dice.roll(3) {
                0 => rule.remote_group = format!("{id}/g{}", dice.roll(GROUPS)),
                1 => rule.remote_prefix_list = format!("{id}/list"),
                _ => rule.protocol = "tcp".into(),
            }
            rule
        });
        let rules = rules.collect();
        all.security_groups.push(SecurityGroup {
            id: format!("{id}/g{g}"),
            vpc: id.clone(),
            rules,
            members: vec![],
            tenant: String::new(),
            ..SecurityGroup::default()
        });
    }
    way_out(v, dice, all);
    load_balancer(v, dice, all);
    let first = hop(dice, &bound);
    let ecmp = hop(dice, &bound);
    all.route_tables.push(RouteTable {
        id: format!("{id}/t"),
        vpc: id.clone(),
        routes: vec![
            Route {
                prefix: "172.16.0.0/12".into(),
                port: first.port,
                host: first.host,
                ..Route::default()
            },
            Route {
                prefix: "0.0.0.0/0".into(),
                ecmp: vec![ecmp],
                ..Route::default()
            },
            [
                Route {
                    nat: format!("{id}/nat"),
                    ..route("198.18.0.0/15")
                },
                Route {
                    external: ["inet", "idle"][dice.roll(2)].into(),
                    ..route("198.18.0.0/15")
                },
            ][dice.roll(2)]
            .clone(),
        ],
        ..RouteTable::default()
    });
    all.network_acls.push(NetworkAcl {
        id: format!("{id}/acl"),
        vpc: id,
        rules: vec![],
        ..NetworkAcl::default()
    });
}

fn route(prefix: &str) -> Route {
    Route {
        prefix: prefix.into(),
        ..Route::default()
    }
}

/// Elastic IPs of some of the VPC's ports, and a NAT gateway.
fn way_out(v: usize, dice: &mut Dice<'_>, all: &mut Objects) {
    let id = format!("v{v}");
    for s in 0..SUBNETS {
        let port = format!("{id}/p{s}-{}", dice.roll(PORTS));
        all.elastic_ips.push(ElasticIp {
            id: format!("{id}/e{s}"),
            external_network: "inet".into(),
            address: [
                format!("203.0.113.{}", 10 * v + s + 10),
                format!("2001:db8:5::{}", 10 * v + s + 10),
            ][dice.roll(2)]
            .clone(),
            port: [String::new(), port][dice.roll(2)].clone(),
            ..ElasticIp::default()
        });
    }
    let network = ["inet", "lab"][dice.roll(2)];
    let address = match network {
        "inet" => format!("203.0.113.{}", 100 + v),
        _ => format!("198.51.100.{}", 100 + v),
    };
    let forward = |n: u32, dice: &mut Dice<'_>| {
        let (s, p) = (dice.roll(SUBNETS), dice.roll(PORTS));
        let mut forward = PortForward {
            protocol: "tcp".into(),
            port_min: n,
            ..PortForward::default()
        };
        if dice.chance() {
            forward.port = format!("{id}/p{s}-{p}");
        } else {
            forward.private_address = format!("10.0.{s}.{}", p + 10);
        }
        forward
    };
    all.nat_gateways.push(NatGateway {
        id: format!("{id}/nat"),
        vpc: id.clone(),
        external_network: network.into(),
        addresses: vec![address],
        port_forwards: (1..3).map(|n| forward(n, dice)).collect(),
        ..NatGateway::default()
    });
}

/// A load balancer for some of the VPC's ports.
fn load_balancer(v: usize, dice: &mut Dice<'_>, all: &mut Objects) {
    let id = format!("v{v}");
    let mut members: Vec<Member> = Vec::new();
    for s in 0..SUBNETS {
        let p = dice.roll(PORTS);
        let mut member = Member::default();
        if dice.chance() {
            member.port = format!("{id}/p{s}-{p}");
        } else {
            member.address = format!("10.0.{s}.{}", p + 10);
        }
        members.push(member);
    }
    all.load_balancers.push(LoadBalancer {
        id: format!("{id}/lb"),
        vpc: id,
        addresses: vec![format!("10.0.0.{}", 200 + v)],
        listeners: vec![Listener {
            protocol: "tcp".into(),
            port_min: 80,
            members,
            ..Listener::default()
        }],
        ..LoadBalancer::default()
    });
}

fn external_networks(dice: &mut Dice<'_>, hosts: &[Host]) -> Vec<ExternalNetwork> {
    let mut gateways = || {
        let able = hosts.iter().filter(|host| host.is_on("physnet1"));
        let mut ids: Vec<String> = able.map(|host| host.id.clone()).collect();
        let first = dice.roll(ids.len());
        ids.rotate_left(first);
        ids.truncate(1 + dice.roll(2));
        ids
    };
    let network = |id: &str, vlan, prefixes: &[&str], gateway_hosts| ExternalNetwork {
        id: id.into(),
        physical_network: "physnet1".into(),
        vlan,
        prefixes: prefixes.iter().map(|prefix| (*prefix).to_owned()).collect(),
        gateway_hosts,
        ..ExternalNetwork::default()
    };
    vec![
        network(
            "inet",
            0,
            &["203.0.113.0/24", "2001:db8:5::/64"],
            gateways(),
        ),
        network("lab", 7, &["198.51.100.0/24"], gateways()),
        network("idle", 8, &["192.0.2.128/25"], Vec::new()),
    ]
}

fn intent(bytes: &[u8]) -> State {
    let mut dice = Dice(bytes.iter());
    let mut all = Objects {
        hosts: hosts(&mut dice),
        ..Objects::default()
    };
    all.external_networks = external_networks(&mut dice, &all.hosts);
    for v in 0..VPCS {
        vpc(v, &mut dice, &mut all);
    }
    State::from_objects(all).unwrap()
}

/// The VPCs that have a port on a host, and those that send to it as a gateway host.
fn vpcs_on(state: &State, host: &str) -> BTreeSet<String> {
    let is_gateway = |network: &str| {
        let network = state.external_network(network).unwrap();
        network.gateway_hosts.iter().any(|gateway| gateway == host)
    };
    let on = |object: &Object| match object {
        Object::Port(port) if port.host == host => Some(port.vpc.clone()),
        Object::NatGateway(nat) if is_gateway(&nat.external_network) => Some(nat.vpc.clone()),
        Object::ElasticIp(elastic) if is_gateway(&elastic.external_network) => {
            let port = state.port_of(elastic)?;
            let home = state.host(&port.host)?;
            (!home.is_on("physnet1")).then(|| port.vpc.clone())
        }
        _ => None,
    };
    state.iter().filter_map(on).collect()
}

/// What a host has to know of the way out of its VPCs: who else has to be there with each object.
fn knows_the_way_out(state: &State, compiled: &State, ours: &BTreeSet<String>) {
    for object in state
        .of_kind(Kind::ElasticIp)
        .chain(state.of_kind(Kind::NatGateway))
    {
        let (vpc, network) = match object {
            Object::ElasticIp(elastic) => {
                let port = state.port_of(elastic).filter(|port| !port.host.is_empty());
                (port.map(|port| &port.vpc), &elastic.external_network)
            }
            Object::NatGateway(nat) => (Some(&nat.vpc), &nat.external_network),
            _ => continue,
        };
        let key = object.key();
        let wanted = vpc.is_some_and(|vpc| ours.contains(vpc));
        assert_eq!(compiled.get(&key).is_some(), wanted, "{key}");
        if wanted {
            let known = compiled.external_network(network).expect("its network");
            if compiled.needs_gateway(object).is_some() {
                let gateway = known.gateway().expect("a gateway host");
                assert!(compiled.host(gateway).is_some(), "{key}: {gateway}");
            }
        }
    }
}

/// One change, which may break rules of other objects. Of a kind that there is none of, there is none.
fn edit(objects: &mut Objects, dice: &mut Dice<'_>) {
    fn any<T>(list: &mut [T], dice: &mut Dice<'_>, change: impl FnOnce(&mut T)) {
        if !list.is_empty() {
            change(&mut list[dice.roll(list.len())]);
        }
    }
    fn remove<T>(list: &mut Vec<T>, dice: &mut Dice<'_>) {
        if !list.is_empty() {
            list.swap_remove(dice.roll(list.len()));
        }
    }
    let port = format!(
        "v{}/p{}-{}",
        dice.roll(VPCS),
        dice.roll(SUBNETS),
        dice.roll(PORTS)
    );
    let address = format!("203.0.113.{}", dice.roll(120));
    let host = [String::new(), format!("h{}", dice.roll(HOSTS))][dice.roll(2)].clone();
    let vpc = format!("v{}", dice.roll(VPCS + 1));
    let Objects {
        elastic_ips,
        nat_gateways,
        external_networks,
        ports,
        hosts,
        load_balancers,
        ..
    } = objects;
    match dice.roll(17) {
        0 => any(elastic_ips, dice, |elastic| elastic.port = port),
        1 => any(elastic_ips, dice, |elastic| elastic.address = address),
        2 => any(elastic_ips, dice, |elastic| {
            elastic.private_address = "10.0.1.11".into();
        }),
        3 => any(nat_gateways, dice, |nat| nat.addresses = vec![address]),
        4 => any(nat_gateways, dice, |nat| nat.vpc = vpc),
        5 => any(nat_gateways, dice, |nat| {
            nat.external_network = "idle".into();
        }),
        6 => any(ports, dice, |port| port.host = host),
        7 => any(ports, dice, |port| drop(port.addresses.pop())),
        8 => remove(ports, dice),
        9 => any(external_networks, dice, |network| {
            network.gateway_hosts = vec![host];
        }),
        10 => any(hosts, dice, |host| host.physical_networks.clear()),
        11 => remove(nat_gateways, dice),
        12 => remove(external_networks, dice),
        14 => any(load_balancers, dice, |balancer| balancer.vpc = vpc),
        15 => any(load_balancers, dice, |balancer| {
            balancer.listeners[0].members[0] = Member {
                port,
                ..Member::default()
            };
        }),
        16 => remove(load_balancers, dice),
        _ => any(ports, dice, |port| {
            port.device = None;
            port.host = host;
        }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_change_is_refused_for_the_same_reasons_as_the_whole_that_it_leads_to(
        bytes in proptest::collection::vec(any::<u8>(), 500),
        edits in proptest::collection::vec(any::<u8>(), 16),
        count in 1usize..3,
    ) {
        let intent = intent(&bytes);
        let node = compile(&Version::loaded(1, intent.clone()), "h0").unwrap();
        for (before, scope) in [(intent, Scope::Intent), (node, Scope::Node { host: "h0" })] {
            let mut objects = before.to_objects();
            let mut dice = Dice(edits.iter());
            for _ in 0..count {
                edit(&mut objects, &mut dice);
            }
            let after = State::from_objects(objects).unwrap();
            let lines = |found: Vec<weft_proto::v1::Violation>| {
                found.iter().map(describe).collect::<BTreeSet<_>>()
            };
            prop_assert_eq!(
                lines(validate_next(&before, &after, scope)),
                lines(validate(&after, scope))
            );
        }
    }

    #[test]
    fn every_host_gets_a_good_state_of_its_own_tenants_alone(
        bytes in proptest::collection::vec(any::<u8>(), 500),
    ) {
        let state = intent(&bytes);
        prop_assert_eq!(validate(&state, Scope::Intent), vec![]);
        let version = Version::loaded(1, state);
        for h in 0..HOSTS - 1 {
            let host = format!("h{h}");
            let compiled = compile(&version, &host).unwrap();
            prop_assert_eq!(validate(&compiled, Scope::Node { host: &host }), vec![], "{}", host);
            let ours = vpcs_on(&version.state, &host);
            knows_the_way_out(&version.state, &compiled, &ours);
            for object in version.state.of_kind(Kind::LoadBalancer) {
                let told = compiled.get(&object.key());
                let is_ours = ours.contains(object.vpc().unwrap());
                prop_assert_eq!(told, Some(object).filter(|_| is_ours), "{}", host);
            }
            for object in compiled.iter() {
                if let Some(vpc) = object.vpc() {
                    prop_assert!(ours.contains(vpc), "{} on {host}", object.key());
                }
                if let Object::Port(port) = object {
                    prop_assert_eq!(port.device.is_some(), port.host == host);
                }
            }
            let local = |object: &&Object| matches!(object, Object::Port(p) if p.host == host);
            prop_assert_eq!(
                compiled.iter().filter(local).collect::<Vec<_>>(),
                version.state.iter().filter(local).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn a_change_that_is_said_not_to_concern_a_host_does_not_change_its_state(
        before in proptest::collection::vec(any::<u8>(), 500),
        at in 0usize..500,
        to in any::<u8>(),
    ) {
        let mut after = before.clone();
        after[at] = to;
        let (old, new) = (intent(&before), intent(&after));
        let differs = |object: &&Object| old.get(&object.key()) != Some(*object);
        let change = Change {
            revision: 2,
            upserts: new.iter().filter(differs).cloned().collect(),
            deletes: vec![],
            ..Change::default()
        };
        let old = Version::loaded(1, old);
        let new = old.next(&change, new);
        for h in 0..HOSTS - 1 {
            let host = format!("h{h}");
            let (from, to) = (compile(&old, &host).unwrap(), compile(&new, &host).unwrap());
            if new.unchanged_since(1, old.vpcs_of(&host).iter())
                && new.unchanged_since(1, new.vpcs_of(&host).iter())
            {
                prop_assert_eq!(&from, &to, "{}", host);
            }
            let (upserts, deletes) = from.delta_to(&to);
            prop_assert_eq!(from.patched(upserts, &deletes).unwrap(), to);
        }
    }
}
