//! Load balancers. Each is compiled by itself: of ports it takes the addresses alone, so that it is compiled again when such a port changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use weft_proto::state::{Change, Kind, Object, State};
use weft_proto::v1;

use super::external::parse_address;
use super::{Done, Draft, Objects};
use crate::packet::Family;
use crate::packet::parse::{protocol, word_family};
use crate::route::ecmp;
use crate::route::maglev::{self, Turn};
use crate::session::member_counts::{ListenerName, MemberCounts};
use crate::snapshot::balancer::{
    Algorithm, Balancer, Balancers, Choice, Listener, Member, Plan, Taker,
};

/// A load balancer at an address.
type At = (u128, Arc<Balancer>);

/// The members of a load balancer that do not serve: the protocol and first port of a listener, and where they serve it.
#[derive(Debug, Default)]
struct Down<'s>(BTreeSet<(&'s str, u32, u128, u32)>);

impl<'s> Down<'s> {
    fn new(health: impl Iterator<Item = &'s v1::MemberHealth>) -> Self {
        let down = health.filter(|it| !it.up).filter_map(|it| {
            let address = parse_address(&it.address)?;
            Some((&*it.protocol, it.port, address, it.member_port))
        });
        Self(down.collect())
    }

    /// What was found of the members of a load balancer in a state.
    fn of(state: &'s State, id: &'s str) -> Self {
        Self::new(state.health_of(id))
    }

    fn has(&self, listener: &v1::Listener, member: Member) -> bool {
        if listener.health.is_none() {
            return false;
        }
        let Member { address, first } = member;
        let found = (
            &*listener.protocol,
            listener.port_min,
            address,
            first.into(),
        );
        self.0.contains(&found)
    }
}

/// What it is at each of its addresses; listeners that stay as they are in `before` are taken from there, tables and all. `seed`: where turns begin that are
/// taken one after the other. `counts`: of the sessions of members.
fn compile<'s>(
    balancer: &v1::LoadBalancer,
    port: impl Fn(&str) -> Option<&'s v1::Port>,
    down: &Down<'_>,
    (before, seed): (Option<&Balancers>, u32),
    counts: &Arc<MemberCounts>,
) -> Vec<At> {
    let addresses = balancer.addresses.iter();
    let addresses = addresses.filter_map(|text| parse_address(text));
    let at = addresses.map(|address| {
        let family = word_family(address);
        let before = before.and_then(|before| before.get(&address));
        // What another has counted is not its own.
        let before = before.filter(|before| before.id == balancer.id);
        let known = || before.into_iter().flat_map(|before| &before.listeners);
        let plans = balancer.listeners.iter();
        let plans = plans.filter_map(|it| plan(it, family, &port, down));
        let mut plans: Vec<Plan> = plans.collect();
        plans.sort_by_key(|plan| (plan.protocol, plan.ports));
        let listeners = plans.into_iter().map(|plan| {
            let same = known().find(|known| known.plan == plan && known.is_as_planned());
            let name = ListenerName {
                vpc: balancer.vpc.clone(),
                balancer: balancer.id.clone(),
                protocol: plan.protocol,
                port: plan.ports.0,
            };
            let anew = || Arc::new(listener(plan, seed, (counts, name)));
            same.map_or_else(anew, Arc::clone)
        });
        let compiled = Balancer {
            id: balancer.id.clone(),
            listeners: listeners.collect(),
        };
        (address, Arc::new(compiled))
    });
    at.collect()
}

fn plan<'s>(
    listener: &v1::Listener,
    family: Family,
    port: impl Fn(&str) -> Option<&'s v1::Port>,
    down: &Down<'_>,
) -> Option<Plan> {
    let protocol = match listener.protocol.as_str() {
        "tcp" => protocol::TCP,
        "udp" => protocol::UDP,
        _ => return None,
    };
    let (first, last) = listener.ports();
    let ports = (first.try_into().ok()?, last.try_into().ok()?);
    // In order, each address and port once: on every host alike. With the weights of those that take flows.
    let mut shares: BTreeMap<Member, Option<u16>> = BTreeMap::new();
    for it in &listener.members {
        let address = if it.port.is_empty() {
            parse_address(&it.address).filter(|address| word_family(*address) == family)
        } else {
            let own = port(&it.port).into_iter().flat_map(|port| &port.addresses);
            let mut own = own.filter_map(|text| parse_address(text));
            own.find(|address| word_family(*address) == family)
        };
        let first = listener.first_port_at(it).try_into();
        if let (Some(address), Ok(first)) = (address, first) {
            let weight = it.share().min(u16::MAX.into()) as u16;
            let share = (!it.draining).then_some(weight);
            let member = Member { address, first };
            if !down.has(listener, member) {
                let known = shares.entry(member).or_default();
                *known = (*known).max(share);
            }
        }
    }
    Some(Plan {
        protocol,
        ports,
        shares: shares.into_iter().collect(),
        algorithm: match listener.algorithm.as_str() {
            "round-robin" => Algorithm::RoundRobin,
            "least-connections" => Algorithm::LeastConnections,
            _ => Algorithm::Maglev,
        },
        by_source: listener.affinity == "source",
        resets: !listener.drop_lost,
    })
}

fn listener(plan: Plan, seed: u32, (counts, name): (&Arc<MemberCounts>, ListenerName)) -> Listener {
    let members: Box<[Member]> = plan.shares.iter().map(|(member, _)| *member).collect();
    let turns = plan
        .shares
        .iter()
        .zip(0..)
        .filter_map(|((member, share), at)| {
            let mut name = [0; 18];
            name[..16].copy_from_slice(&member.address.to_be_bytes());
            name[16..].copy_from_slice(&member.first.to_be_bytes());
            Some(Turn {
                identity: ecmp::identity(&name),
                weight: (*share)?,
                member: at,
            })
        });
    let turns: Vec<Turn> = turns.collect();
    let held = (plan.algorithm == Algorithm::LeastConnections).then(|| {
        let names: Vec<_> = members.iter().map(|it| (it.address, it.first)).collect();
        counts.hold(&Arc::new(name), &names)
    });
    let choice = match (plan.algorithm, held.flatten()) {
        (Algorithm::RoundRobin, _) => Choice::RoundRobin {
            order: in_turn(&turns),
            next: AtomicU32::new(seed),
        },
        (Algorithm::LeastConnections, Some(held)) => {
            let takers = turns.iter().filter_map(|turn| {
                Some(Taker {
                    place: turn.member,
                    weight: turn.weight,
                    number: held.number(turn.member.into())?,
                })
            });
            Choice::LeastConnections {
                takers: takers.collect(),
                held,
                next: AtomicU32::new(seed),
            }
        }
        (Algorithm::Maglev | Algorithm::LeastConnections, _) => Choice::Maglev {
            table: maglev::Table::new(members.len(), &turns),
            by_source: plan.by_source,
        },
    };
    Listener {
        plan,
        members,
        choice,
    }
}

/// Turns that are taken at most before they begin again: of very many members with odd weights, the weights hold nearly.
const TURNS: usize = 65_536;

/// Members one after the other, each as often as its weight is of the sum.
fn in_turn(turns: &[Turn]) -> Box<[u16]> {
    let gcd = turns.iter().fold(0, |a, turn| gcd(a, turn.weight)).max(1);
    let all: usize = turns
        .iter()
        .map(|turn| usize::from(turn.weight / gcd))
        .sum();
    let order = maglev::rounds(turns).take(all.min(TURNS));
    order.map(|at| turns[at].member).collect()
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Draft<'_> {
    /// Enters all of them.
    pub(super) fn fill_balancers(&mut self, objects: &Objects<'_>) {
        let port = |id: &str| {
            let place = objects.ports.binary_search_by(|port| (*port.id).cmp(id));
            place.ok().map(|place| objects.ports[place])
        };
        for balancer in &objects.load_balancers {
            let Some(place) = self.places.vpcs.get(&balancer.vpc).copied() else {
                let rule = format!("'{}' does not exist", balancer.vpc);
                self.report
                    .add(Kind::LoadBalancer, &balancer.id, "vpc", rule);
                continue;
            };
            let before = self.balancers_before.get(&balancer.vpc).map(|it| &**it);
            let health = objects.member_health.get(&*balancer.id);
            let down = Down::new(health.into_iter().flatten().copied());
            let besides = (before, self.context.generation);
            let at = compile(balancer, port, &down, besides, &self.member_counts);
            let of_vpc = &mut self.vpcs[place].balancers;
            for (i, (address, compiled)) in at.into_iter().enumerate() {
                if of_vpc.insert(address, compiled).is_some() {
                    let field = format!("addresses[{i}]");
                    let rule = "is another load balancer's";
                    self.report
                        .add(Kind::LoadBalancer, &balancer.id, field, rule);
                }
            }
        }
    }
}

/// The load balancers that change: what is taken out, and what is put in.
#[derive(Debug, Default)]
pub(super) struct Edits {
    gone: Vec<(usize, u128)>,
    come: Vec<(usize, At)>,
}

/// Those of changes of themselves, and of the ports that are their members. None if there is one that can't be put into the snapshot by itself.
pub(super) fn edits(
    done: &Done,
    state: &State,
    changes: &[Change<'_>],
    seed: u32,
    counts: &Arc<MemberCounts>,
) -> Option<Edits> {
    let mut ids: BTreeSet<&str> = BTreeSet::new();
    for change in changes {
        // Of ports the addresses alone matter.
        let stays = match (change.old, change.new) {
            (Some(Object::Port(old)), Some(Object::Port(new))) => old.addresses == new.addresses,
            _ => false,
        };
        let ends = [change.old, change.new].into_iter().flatten();
        for object in ends.filter(|_| !stays) {
            match object {
                Object::LoadBalancer(balancer) => {
                    ids.insert(&balancer.id);
                }
                Object::MemberHealth(health) => {
                    ids.insert(&health.load_balancer);
                }
                Object::Port(port) => {
                    ids.extend(state.balancers_of_port(&port.id).map(|it| &*it.id));
                }
                _ => {}
            }
        }
    }
    let mut edits = Edits::default();
    let port = |id: &str| match state.find(Kind::Port, id)? {
        Object::Port(port) => Some(port),
        _ => None,
    };
    for id in ids {
        // What it has outside is compiled with everything else.
        if [&done.state, state]
            .iter()
            .any(|it| it.elastic_ips_of_balancer(id).next().is_some())
        {
            return None;
        }
        if let Some(Object::LoadBalancer(old)) = done.state.find(Kind::LoadBalancer, id) {
            let place = *done.places.vpcs.get(&old.vpc)?;
            let addresses = old.addresses.iter().filter_map(|text| parse_address(text));
            edits.gone.extend(addresses.map(|address| (place, address)));
        }
        if let Some(Object::LoadBalancer(new)) = state.find(Kind::LoadBalancer, id) {
            let place = *done.places.vpcs.get(&new.vpc)?;
            let before = done.snapshot.vpcs.get(place).map(|vpc| &*vpc.balancers);
            let at = compile(new, port, &Down::of(state, id), (before, seed), counts);
            edits.come.extend(at.into_iter().map(|at| (place, at)));
        }
    }
    edits.are_free(done).then_some(edits)
}

impl Edits {
    /// Whether no two have an address.
    fn are_free(&self, done: &Done) -> bool {
        let mut seen = BTreeSet::new();
        self.come.iter().all(|(place, (address, _))| {
            let vpc = done.snapshot.vpcs.get(*place);
            let is_taken = vpc.is_some_and(|vpc| vpc.balancers.contains_key(address));
            let is_given_up = self.gone.contains(&(*place, *address));
            seen.insert((*place, *address)) && (!is_taken || is_given_up)
        })
    }

    pub(super) fn put(self, done: &mut Done) {
        for (place, address) in self.gone {
            if let Some(vpc) = done.snapshot.vpcs.get_mut(place) {
                Arc::make_mut(&mut vpc.balancers).remove(&address);
            }
        }
        for (place, (address, compiled)) in self.come {
            if let Some(vpc) = done.snapshot.vpcs.get_mut(place) {
                Arc::make_mut(&mut vpc.balancers).insert(address, compiled);
            }
        }
    }
}
