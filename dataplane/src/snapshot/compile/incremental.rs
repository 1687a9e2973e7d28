//! The next snapshot from the one before, when nothing has changed but the underlay, ports, load balancers, and what objects that stay contain: routes, rules,
//! members of groups.
//!
//! Such a change moves no other object to another place in the snapshot, so that each can be compiled by itself and put where it was. Takes as long as the changed
//! objects are large, whatever else there is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use weft_proto::state::{Change, Kind, Object, State};
use weft_proto::v1;
use weft_proto::validate::limits::GROUP_PARTS;

use super::peerings::add_joined;
use super::policy::{
    GroupClassifiers, Texts, classify, compile_acl, prefixes, renew_prefixes, rules_of_port,
};
use super::port_changes::{self, PortChanges};
use super::routes::{Compiled, compile_table};
use super::{
    Context, Done, Map, Report, balancers, holders, hosts, learned, ports as compile_ports,
};
use crate::policy::{Acl, AddressSet, GroupRules};
use crate::session::member_counts::MemberCounts;
use crate::snapshot::index_allocator::IndexAllocator;

/// What is put into the snapshot.
enum Edit<'s> {
    Routes(&'s v1::RouteTable, Compiled),
    Acl(usize, Box<Acl>),
    Set(Vec<(usize, usize)>, AddressSet),
    Classifiers(&'s str, GroupClassifiers),
    Rules(u16, GroupRules, GroupRules),
}

/// The next snapshot, and nothing when it takes more than this to make it.
///
/// # Errors
/// The rules that the changes break; `done` is then as it was.
pub(super) fn compile(
    done: &mut Arc<Done>,
    numbers: &mut IndexAllocator,
    (state, counts): (&State, &Arc<MemberCounts>),
    context: &Context<'_>,
) -> Option<Result<crate::snapshot::Snapshot, Vec<v1::Violation>>> {
    let before = done.state.clone();
    let changes = before.changes_to(state);
    if !changes.iter().all(is_contained) {
        return None;
    }
    let mut report = Report::default();
    let appliances = Appliances::of(done, state, &changes);
    let (edits, ports) = edits(done, numbers, state, (&changes, &appliances), &mut report)?;
    let balancers = balancers::edits(done, state, &changes, context.generation, counts)?;
    let learned = learned::edits(done, &changes, &mut report)?;
    let with_holders = holders::vpcs(done, &changes, state);
    if !report.violations.is_empty() {
        // Whatever else is wrong is said with it.
        return if ports.is_empty() {
            Some(Err(report.violations))
        } else {
            None
        };
    }
    let changed = learned::beyond_answers(done, &changes);
    let objects = changed.filter_map(|change| change.new.or(change.old));
    // Who listens to multicast is in a table of its own, and no session was judged by it.
    // No packet is judged by names, either.
    let unjudged = [Kind::MulticastListener, Kind::DnsZone, Kind::PortName];
    let judged = objects.filter(|object| {
        let is_passed_over =
            object.kind() == Kind::PortHealth && !appliances.ids.contains(object.id());
        !is_passed_over && !unjudged.contains(&object.kind())
    });
    let changed = judged.filter_map(Object::vpc);
    let mut changed: HashSet<&str> = changed.collect();
    add_joined(&mut changed, state);
    let done = Arc::make_mut(done);
    done.snapshot.generation = context.generation;
    done.snapshot.revision = context.revision;
    if done.underlay != *context.underlay {
        done.underlay = context.underlay.clone();
        done.snapshot.peers = hosts::renew(&done.snapshot.peers, state, context);
    }
    let moves_trunks = ports.moves_trunks(&done.snapshot.trunks);
    ports.put(done, numbers);
    holders::renew(done, &with_holders, state);
    if moves_trunks {
        done.snapshot.trunks = compile_ports::trunks(done.snapshot.ports.iter(), &done.places);
    }
    for edit in edits {
        put(done, edit);
    }
    balancers.put(done);
    for edit in learned {
        edit.put(done);
    }
    for vpc in changed {
        let place = done.places.vpcs.get(vpc).copied();
        if let Some(vpc) = place.and_then(|place| done.snapshot.vpcs.get_mut(place)) {
            vpc.epoch = context.generation.into();
        }
    }
    done.state = state.clone();
    Some(Ok(done.snapshot.clone()))
}

/// Whether a change is one of a port, or of what an object contains and of nothing that others see of it.
fn is_contained(change: &Change<'_>) -> bool {
    let (Some(old), Some(new)) = (change.old, change.new) else {
        let object = change.new.or(change.old);
        let kinds = [
            Kind::Port,
            Kind::GroupMembers,
            Kind::LearnedAddress,
            Kind::LoadBalancer,
            Kind::MemberHealth,
            Kind::PortHealth,
            Kind::MulticastListener,
            Kind::AddressHolder,
            Kind::DnsZone,
            Kind::PortName,
        ];
        return object.is_some_and(|object| kinds.contains(&object.kind()));
    };
    let kinds = [
        Kind::Port,
        Kind::RouteTable,
        Kind::NetworkAcl,
        Kind::PrefixList,
        Kind::SecurityGroup,
        Kind::GroupMembers,
        Kind::LoadBalancer,
        Kind::MemberHealth,
        Kind::PortHealth,
        Kind::MulticastListener,
        Kind::AddressHolder,
        Kind::DnsZone,
        Kind::PortName,
    ];
    old.vpc() == new.vpc() && kinds.contains(&new.kind())
}

/// None if the ports take more than this.
fn edits<'s>(
    done: &Done,
    numbers: &IndexAllocator,
    state: &'s State,
    (changes, appliances): (&[Change<'s>], &Appliances<'s>),
    report: &mut Report,
) -> Option<(Vec<Edit<'s>>, PortChanges<'s>)> {
    let places = &done.places;
    let mut edits = Vec::new();
    let mut classifiers: Map<&str, GroupClassifiers> = Map::default();
    let mut members: Map<&str, Vec<[Texts<'_>; 2]>> = Map::default();
    let compile_routes = |table: &'s v1::RouteTable, report: &mut Report| {
        let is_down = |port: &str| is_down(state, (&table.vpc, port));
        Edit::Routes(table, compile_table(table, (places, &is_down), report))
    };
    for table in &appliances.tables {
        edits.push(compile_routes(table, report));
    }
    for change in changes {
        match (change.old, change.new) {
            (_, Some(Object::RouteTable(new))) if places.users.contains_key(&new.id) => {
                edits.push(compile_routes(new, report));
            }
            (_, Some(Object::NetworkAcl(new))) => {
                if let Some(place) = places.acls.get(&new.id) {
                    edits.push(Edit::Acl(*place, compile_acl(new, report).into()));
                }
            }
            (Some(Object::PrefixList(old)), Some(Object::PrefixList(new))) => {
                let key = (Kind::PrefixList, &*new.id);
                let changes = [[&old.prefixes, &new.prefixes].map(|texts| Texts { key, texts })];
                let set = Set {
                    places: places.prefix_lists.get(&new.id),
                    known: old.prefixes.len(),
                };
                let all = || vec![changes[0][1]];
                edits.extend(set.renew(done, &changes, all, report));
            }
            (Some(Object::SecurityGroup(old)), Some(Object::SecurityGroup(new))) => {
                let key = (Kind::SecurityGroup, &*new.id);
                if old.members != new.members {
                    let change = [&old.members, &new.members].map(|texts| Texts { key, texts });
                    members.entry(&new.id).or_default().push(change);
                }
                if old.rules != new.rules {
                    let compiled = classify(new, places, report);
                    classifiers.insert(&new.id, compiled);
                }
            }
            (old, new) => {
                let ends = [old, new].map(|object| match object {
                    Some(Object::GroupMembers(part)) => Some(part),
                    _ => None,
                });
                if let Some(part) = ends[1].or(ends[0]) {
                    let key = (Kind::GroupMembers, &*part.id);
                    let texts = ends.map(|part| part.map_or(&[][..], |part| &part.members));
                    let change = texts.map(|texts| Texts { key, texts });
                    members.entry(&part.group).or_default().push(change);
                }
            }
        }
    }
    for (group, changes) in members {
        let own = match done.state.find(Kind::SecurityGroup, group) {
            Some(Object::SecurityGroup(group)) => group.members.len(),
            _ => 0,
        };
        let set = Set {
            places: places.groups.get(group),
            known: own + done.state.members_in_parts(group),
        };
        let all = || members_of(state, group);
        edits.extend(set.renew(done, &changes, all, report));
    }
    let latest = |id: &str| classifiers.get(id).or_else(|| places.classifiers.get(id));
    let changed_ports = port_changes::between(done, numbers, changes, latest)?;
    // The ports of the groups whose rules have changed, each once. Those that have changed themselves are compiled with them already.
    let members = classifiers.keys().filter_map(|id| places.members.get(*id));
    let mut ports: Vec<u16> = members.flatten().copied().collect();
    ports.sort_unstable();
    ports.dedup();
    for index in ports {
        let Some(port) = done.snapshot.port(index) else {
            continue;
        };
        if let Some(Object::Port(port)) = state.find(Kind::Port, &port.id) {
            let (ingress, egress) = rules_of_port(port, latest, report);
            edits.push(Edit::Rules(index, ingress, egress));
        }
    }
    let renewed = classifiers.into_iter();
    edits.extend(renewed.map(|(id, compiled)| Edit::Classifiers(id, compiled)));
    Some((edits, changed_ports))
}

/// Whether the appliance at a port of a VPC does not live.
fn is_down(state: &State, (vpc, port): (&str, &str)) -> bool {
    matches!(state.find(Kind::PortHealth, port), Some(Object::PortHealth(health)) if !health.up && health.vpc == vpc)
}

/// What of what was found of appliances matters to routes: what was found of others is no matter of any packet.
#[derive(Default)]
struct Appliances<'s> {
    /// The ports of those that live now and did not before, or the other way round, and that flows are spread over.
    ids: HashSet<&'s str>,
    /// The route tables that do that and are not changed themselves.
    tables: Vec<&'s v1::RouteTable>,
}

impl<'s> Appliances<'s> {
    fn of(done: &Done, state: &'s State, changes: &[Change<'s>]) -> Self {
        // By VPC: its own tables alone name them.
        let mut found: HashMap<&str, HashSet<&str>> = HashMap::new();
        let mut changed: HashSet<&str> = HashSet::new();
        for change in changes {
            let is_down = |object: Option<&Object>| matches!(object, Some(Object::PortHealth(health)) if !health.up);
            match change.new.or(change.old) {
                Some(Object::PortHealth(health))
                    if is_down(change.old) != is_down(change.new)
                        && done.places.named_ports.contains(&health.id) =>
                {
                    found.entry(&health.vpc).or_default().insert(&health.id);
                }
                Some(Object::RouteTable(table)) => drop(changed.insert(&table.id)),
                _ => {}
            }
        }
        let mut all = Self::default();
        for (vpc, found) in found {
            for object in state.of_vpc_and_kind(vpc, Kind::RouteTable) {
                let Object::RouteTable(table) = object else {
                    continue;
                };
                if !done.places.users.contains_key(&table.id) {
                    continue;
                }
                let hops = table.targets().flat_map(|route| &route.ecmp);
                let named = hops.filter_map(|hop| found.get(&*hop.port).copied());
                let named: HashSet<&str> = named.collect();
                if !named.is_empty() && !changed.contains(&*table.id) {
                    all.tables.push(table);
                }
                all.ids.extend(named);
            }
        }
        all
    }
}

/// The members of a group in a state, its own and those of its parts.
fn members_of<'s>(state: &'s State, group: &str) -> Vec<Texts<'s>> {
    let mut all = Vec::new();
    if let Some(Object::SecurityGroup(group)) = state.find(Kind::SecurityGroup, group) {
        all.push(Texts {
            key: (Kind::SecurityGroup, &group.id),
            texts: &group.members,
        });
    }
    for number in 0..GROUP_PARTS {
        let id = v1::GroupMembers::id_of(group, number);
        if let Some(Object::GroupMembers(part)) = state.find(Kind::GroupMembers, &id) {
            all.push(Texts {
                key: (Kind::GroupMembers, &part.id),
                texts: &part.members,
            });
        }
    }
    all
}

/// An address set that is in the snapshot.
struct Set<'d> {
    places: Option<&'d Vec<(usize, usize)>>,
    /// How many addresses it was given.
    known: usize,
}

impl Set<'_> {
    /// The set after changes, each of what there was and what there is; made anew from `all` that there is if it was given an address twice, which
    /// would not go when one of the two does.
    fn renew<'s>(
        &self,
        done: &Done,
        changes: &[[Texts<'s>; 2]],
        all: impl FnOnce() -> Vec<Texts<'s>>,
        report: &mut Report,
    ) -> Option<Edit<'s>> {
        let places = self.places?;
        let (vpc, at) = *places.first()?;
        let before = done.snapshot.vpcs.get(vpc)?.sets.get(at)?;
        let is_exact = before.prefixes.len() == self.known;
        let set = AddressSet {
            name: before.name.clone(),
            prefixes: if is_exact {
                renew_prefixes(&before.prefixes, changes, report)
            } else {
                prefixes(&all(), report)
            },
        };
        Some(Edit::Set(places.clone(), set))
    }
}

fn put(done: &mut Done, edit: Edit<'_>) {
    let snapshot = &mut done.snapshot;
    match edit {
        Edit::Routes(of, table) => {
            let named = of.ports().map(str::to_owned);
            done.places.named_ports.extend(named);
            for place in done.places.users.get(&of.id).into_iter().flatten() {
                if let Some(subnet) = snapshot.subnets.get_mut(*place) {
                    table.clone().put(subnet);
                }
            }
        }
        Edit::Acl(place, acl) => {
            if let Some(slot) = snapshot.acls.get_mut(place) {
                *slot = *acl;
            }
        }
        Edit::Set(places, set) => {
            for (vpc, at) in places {
                if let Some(vpc) = snapshot.vpcs.get_mut(vpc)
                    && let Some(slot) = Arc::make_mut(&mut vpc.sets).get_mut(at)
                {
                    *slot = set.clone();
                }
            }
        }
        Edit::Classifiers(id, compiled) => {
            done.places.classifiers.insert(id.to_owned(), compiled);
        }
        Edit::Rules(index, ingress, egress) => {
            if let Some(Some(port)) = snapshot.ports.get_mut(index.into()) {
                port.ingress = ingress;
                port.egress = egress;
            }
        }
    }
}
