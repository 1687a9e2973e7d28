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
use crate::session::member_counts::{Held, ListenerName, MemberCounts};
use crate::snapshot::balancer::{
    Algorithm, Balancer, Balancers, Choice, Listener, Member, Plan, Taker,
};

/// A load balancer at an address.
type At = (u128, Arc<Balancer>);

/// What one was compiled to.
struct Compiled {
    at: Vec<At>,
    /// The fewest counters that one of its listeners found no room for.
    lacks: Option<usize>,
}

/// Load balancers with a listener that found no room for its counters, by id: the VPC, and how many it lacks. They are compiled again when there is room.
#[derive(Debug, Clone, Default)]
pub(super) struct Uncounted(BTreeMap<String, (String, usize)>);

impl Uncounted {
    fn set(&mut self, balancer: &str, lack: Option<(String, usize)>) {
        match lack {
            Some(lack) => drop(self.0.insert(balancer.to_owned(), lack)),
            None => drop(self.0.remove(balancer)),
        }
    }

    /// Those for which there is room now.
    pub(super) fn with_room<'a>(
        &'a self,
        counts: &'a MemberCounts,
    ) -> impl Iterator<Item = &'a str> {
        let all = self.0.iter();
        let with_room = all.filter(|(_, (vpc, lacks))| counts.has_room(vpc, *lacks));
        with_room.map(|(id, _)| &**id)
    }
}

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
) -> Compiled {
    let mut lacks: Option<usize> = None;
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
            let same = known().find(|known| known.plan == plan);
            if let Some(same) = same.filter(|same| same.is_as_planned()) {
                return Arc::clone(same);
            }
            let held = hold(&plan, balancer, counts);
            if let Err(more) = held {
                lacks = Some(lacks.map_or(more, |known| known.min(more)));
            }
            match (same, held) {
                (Some(same), Err(_)) => Arc::clone(same),
                (_, held) => Arc::new(listener(plan, seed, held.ok().flatten())),
            }
        });
        let compiled = Balancer {
            id: balancer.id.clone(),
            listeners: listeners.collect(),
        };
        (address, Arc::new(compiled))
    });
    let at = at.collect();
    Compiled { at, lacks }
}

/// The counters of a listener's members, if it counts their sessions.
///
/// # Errors
/// There is no room for them: it lacks so many.
fn hold(
    plan: &Plan,
    balancer: &v1::LoadBalancer,
    counts: &Arc<MemberCounts>,
) -> Result<Option<Held>, usize> {
    if plan.algorithm != Algorithm::LeastConnections {
        return Ok(None);
    }
    let name = ListenerName {
        vpc: balancer.vpc.clone(),
        balancer: balancer.id.clone(),
        protocol: plan.protocol,
        port: plan.ports.0,
    };
    // Those that do not serve now have theirs last, so that nobody takes them meanwhile.
    let members = plan.shares.iter().map(|(member, _)| member);
    let all = members.chain(&plan.down).map(|it| (it.address, it.first));
    let all: Vec<_> = all.collect();
    counts.hold(&Arc::new(name), &all).map(Some)
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
    let mut is_down: BTreeSet<Member> = BTreeSet::new();
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
            if down.has(listener, member) {
                is_down.insert(member);
            } else {
                let known = shares.entry(member).or_default();
                *known = (*known).max(share);
            }
        }
    }
    Some(Plan {
        protocol,
        ports,
        shares: shares.into_iter().collect(),
        down: is_down.into_iter().collect(),
        algorithm: match listener.algorithm.as_str() {
            "round-robin" => Algorithm::RoundRobin,
            "least-connections" => Algorithm::LeastConnections,
            _ => Algorithm::Maglev,
        },
        by_source: listener.affinity == "source",
        resets: !listener.drop_lost,
        dsr: listener.is_dsr(),
    })
}

/// `held`: the counters of its members, if it has any.
fn listener(plan: Plan, seed: u32, held: Option<Held>) -> Listener {
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
    let choice = match (plan.algorithm, held) {
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
            let compiled = compile(balancer, port, &down, besides, &self.member_counts);
            let Compiled { at, lacks } = compiled;
            let lack = lacks.map(|lacks| (balancer.vpc.clone(), lacks));
            self.uncounted.set(&balancer.id, lack);
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
    /// Of each what it lacks.
    lacks: Vec<(String, Option<(String, usize)>)>,
}

/// Those of changes of themselves, and of the ports that are their members; and those for whose counters there is room now. None if there is one that can't be put
/// into the snapshot by itself.
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
    let have_changed = ids.clone();
    ids.extend(done.uncounted.with_room(counts));
    let port = |id: &str| match state.find(Kind::Port, id)? {
        Object::Port(port) => Some(port),
        _ => None,
    };
    for id in ids {
        // What it has outside is compiled with everything else.
        let is_outside = |state: &State| state.elastic_ips_of_balancer(id).next().is_some();
        if have_changed.contains(id) && [&done.state, state].into_iter().any(is_outside) {
            return None;
        }
        let mut lack = None;
        if let Some(Object::LoadBalancer(old)) = done.state.find(Kind::LoadBalancer, id) {
            let place = *done.places.vpcs.get(&old.vpc)?;
            let addresses = old.addresses.iter().filter_map(|text| parse_address(text));
            edits.gone.extend(addresses.map(|address| (place, address)));
        }
        if let Some(Object::LoadBalancer(new)) = state.find(Kind::LoadBalancer, id) {
            let place = *done.places.vpcs.get(&new.vpc)?;
            let before = done.snapshot.vpcs.get(place).map(|vpc| &*vpc.balancers);
            let compiled = compile(new, port, &Down::of(state, id), (before, seed), counts);
            lack = compiled.lacks.map(|lacks| (new.vpc.clone(), lacks));
            let at = compiled.at.into_iter();
            edits.come.extend(at.map(|at| (place, at)));
        }
        edits.lacks.push((id.to_owned(), lack));
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
        for (id, lack) in self.lacks {
            done.uncounted.set(&id, lack);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse::address_word;
    use crate::snapshot::Snapshot;
    use crate::snapshot::compile::{Compiler, Context, Underlay};

    const OBJECTS: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1], physical_networks: [physnet]}]
vpcs: [{id: blue, vni: 1}, {id: red, vni: 2}]
subnets: [{id: b, vpc: blue, cidrs: [10.0.0.0/24]}, {id: r, vpc: red, cidrs: [10.0.0.0/24]}]
external_networks: [{id: internet, physical_network: physnet, prefixes: [203.0.113.0/24], gateways: [203.0.113.1], gateway_hosts: [h1]}]
elastic_ips: [{id: e, external_network: internet, address: 203.0.113.2, load_balancer: second}]
load_balancers:
- {id: first, vpc: blue, addresses: [10.0.0.100], listeners: [{protocol: tcp, port_min: 80, algorithm: least-connections, members: [{address: 10.0.0.11}, {address: 10.0.0.12}], health: {protocol: tcp}}]}
- {id: second, vpc: blue, addresses: [10.0.0.101], listeners: [{protocol: tcp, port_min: 80, algorithm: least-connections, members: [{address: 10.0.0.11}, {address: 10.0.0.12}]}]}
- {id: third, vpc: red, addresses: [10.0.0.102], listeners: [{protocol: tcp, port_min: 80, algorithm: least-connections, members: [{address: 10.0.0.11}, {address: 10.0.0.12}]}]}
"#;

    struct Host {
        counts: Arc<MemberCounts>,
        compiler: Compiler,
        generation: u32,
        objects: v1::Objects,
        snapshot: Snapshot,
    }

    impl Host {
        /// With room for two members of each VPC.
        fn new() -> Self {
            let counts = Arc::new(MemberCounts::new(8));
            let mut host = Self {
                compiler: Compiler::new(16, 16, 16).counting(&counts),
                counts,
                generation: 0,
                objects: serde_yaml_ng::from_str(OBJECTS).unwrap(),
                snapshot: Snapshot::default(),
            };
            host.change(|_| {});
            host
        }

        fn change(&mut self, change: impl FnOnce(&mut v1::Objects)) {
            change(&mut self.objects);
            self.generation += 1;
            let underlay = Underlay::default();
            let context = Context {
                host: "h1",
                generation: self.generation,
                revision: 1,
                underlay: &underlay,
                metadata: false,
                translations: &[],
                externals: &[],
                silent: &BTreeSet::new(),
            };
            let state = State::from_objects(self.objects.clone()).unwrap();
            self.snapshot = self.compiler.compile(&state, &context).unwrap();
        }

        /// A change of something else.
        fn add_port(&mut self) {
            let number = self.generation;
            self.change(|objects| {
                objects.ports.push(v1::Port {
                    id: format!("p{number}"),
                    vpc: "red".into(),
                    subnet: "r".into(),
                    mac: format!("02:00:00:00:00:{number:02x}"),
                    addresses: vec![format!("10.0.0.{}", 20 + number)],
                    host: "h1".into(),
                    ..v1::Port::default()
                });
            });
        }

        /// A change after which everything is compiled.
        fn add_host(&mut self) {
            let number = self.generation;
            self.change(|objects| {
                objects.hosts.push(v1::Host {
                    id: format!("o{number}"),
                    vteps: vec![format!("192.0.2.{}", 10 + number)],
                    ..v1::Host::default()
                });
            });
        }

        fn listener(&self, last: u8) -> Arc<Listener> {
            let at = address_word(std::net::IpAddr::from([10, 0, 0, last]));
            let mut balancers = self.snapshot.vpcs.iter().map(|vpc| &vpc.balancers);
            let balancer = balancers.find_map(|it| it.get(&at)).unwrap();
            Arc::clone(&balancer.listeners[0])
        }
    }

    #[test]
    fn a_listener_keeps_its_counters_whatever_else_is_compiled() {
        let mut host = Host::new();
        let (first, second) = (host.listener(100), host.listener(101));
        assert!(first.is_as_planned() && host.listener(102).is_as_planned());
        assert!(!second.is_as_planned(), "its VPC has as many as it may");
        let refused = host.counts.refused();
        host.add_port();
        assert_eq!(
            host.counts.refused(),
            refused,
            "there is no room, it is not tried"
        );
        host.add_host();
        assert!(Arc::ptr_eq(&first, &host.listener(100)));
        // Its table of hashes is the same, too.
        assert!(Arc::ptr_eq(&second, &host.listener(101)));
        assert!(!host.compiler.may_count_more());
    }

    #[test]
    fn a_listener_that_was_refused_is_tried_again() {
        for by_port in [true, false] {
            let mut host = Host::new();
            host.change(|objects| {
                objects.load_balancers.remove(0);
            });
            // The one that goes had its counters while this was compiled.
            assert!(!host.listener(101).is_as_planned());
            assert!(host.compiler.may_count_more());
            if by_port {
                host.add_port();
            } else {
                host.add_host();
            }
            assert!(host.listener(101).is_as_planned(), "{by_port}");
            assert!(!host.compiler.may_count_more());
        }
    }

    #[test]
    fn a_member_that_does_not_serve_keeps_its_counter() {
        let mut host = Host::new();
        let number = host.listener(100).counter(80, (ADDRESS, 80)).unwrap();
        let health = v1::MemberHealth {
            id: "first/tcp/80/10.0.0.12/80".into(),
            vpc: "blue".into(),
            load_balancer: "first".into(),
            protocol: "tcp".into(),
            port: 80,
            address: "10.0.0.12".into(),
            member_port: 80,
            ..v1::MemberHealth::default()
        };
        host.change(|objects| objects.member_health.push(health));
        assert_eq!(host.listener(100).members.len(), 1);
        host.add_port();
        assert!(!host.listener(101).is_as_planned());
        host.change(|objects| objects.member_health.clear());
        let counter = host.listener(100).counter(80, (ADDRESS, 80));
        assert_eq!(counter, Some(number));
    }

    /// 10.0.0.12.
    const ADDRESS: u128 = 0xffff_0a00_000c;
}
