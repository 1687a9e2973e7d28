//! Random intents: every valid intent compiles to a valid state for each host, which contains nothing of other tenants (invariant 1), and
//! deltas lead from each state to the next.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use proptest::prelude::*;
use weft_controller::compile::compile;
use weft_controller::store::Change;
use weft_controller::version::Version;
use weft_proto::state::{Object, State};
use weft_proto::v1::{
    Device, Host, NetworkAcl, NextHop, Objects, Port, PrefixList, Route, RouteTable, SecurityGroup,
    SecurityRule, Subnet, Vpc,
};
use weft_proto::validate::{Scope, validate};

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
        });
    }
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
        ],
    });
    all.network_acls.push(NetworkAcl {
        id: format!("{id}/acl"),
        vpc: id,
        rules: vec![],
    });
}

fn intent(bytes: &[u8]) -> State {
    let mut dice = Dice(bytes.iter());
    let mut all = Objects {
        hosts: hosts(&mut dice),
        ..Objects::default()
    };
    for v in 0..VPCS {
        vpc(v, &mut dice, &mut all);
    }
    State::from_objects(all).unwrap()
}

/// The VPCs that have a port on a host.
fn vpcs_on(state: &State, host: &str) -> BTreeSet<String> {
    let on = |object: &Object| match object {
        Object::Port(port) if port.host == host => Some(port.vpc.clone()),
        _ => None,
    };
    state.iter().filter_map(on).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_host_gets_a_good_state_of_its_own_tenants_alone(
        bytes in proptest::collection::vec(any::<u8>(), 400),
    ) {
        let state = intent(&bytes);
        prop_assert_eq!(validate(&state, Scope::Intent), vec![]);
        let version = Version::loaded(1, state);
        for h in 0..HOSTS - 1 {
            let host = format!("h{h}");
            let compiled = compile(&version, &host).unwrap();
            prop_assert_eq!(validate(&compiled, Scope::Node { host: &host }), vec![], "{}", host);
            let ours = vpcs_on(&version.state, &host);
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
        before in proptest::collection::vec(any::<u8>(), 400),
        at in 0usize..400,
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
