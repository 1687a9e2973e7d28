//! The querier of this host: what its ports have joined, whom to ask whether that still holds, and the table that follows from it. Driven by the agent's
//! threads, which hand it messages and time; it neither waits nor sends.
//!
//! What a guest can make it keep is bounded: [`GROUPS`] for a port, [`SOURCES`] for a group, [`SOURCES_OF_PORT`] for both. Times are in milliseconds of one
//! clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::group::Group;
use super::message::{self, Message, Record, Says};
use super::query::{self, About};
use super::{Filter, Listener, Table, is_snooped};
use crate::numbers::Vni;
use crate::packet::parse::{self, Inner};
use crate::packet::{DropReason, Family};
use crate::snapshot::{Port, Snapshot};

/// Groups that a port may have joined.
pub const GROUPS: usize = 256;
/// Sources that a port may have named for one group.
pub const SOURCES: usize = 64;
/// Sources that a port may have named for all its groups.
pub const SOURCES_OF_PORT: usize = 1024;

/// How many messages in a row may be lost (RFC 3376 §8.1).
pub(super) const ROBUSTNESS: u64 = 2;
/// From one general query to the next (RFC 3376 §8.2).
pub(super) const INTERVAL: u64 = 125_000;
/// Within which guests answer a general query (RFC 3376 §8.3).
const ANSWER: u64 = 10_000;
/// What a report says holds so long (RFC 3376 §8.4).
pub(super) const MEMBERSHIP: u64 = ROBUSTNESS * INTERVAL + ANSWER;
/// Within which guests answer whether anybody wants what one has left, and how long the answer is waited for. On a virtual link a message is not lost as on
/// a real one, so that one question is enough, and a leave takes effect within 200 milliseconds.
const LAST_ASKED: u16 = 100;
/// Questions that one report may lead to.
const QUESTIONS: usize = 16;
/// Milliseconds over which ports that are new at a time are asked, so that their questions do not all come at once.
const SPREAD: u16 = 256;
pub(super) const LAST_ANSWER: u64 = 150;
/// When a port that is new is asked, counted from the query before: its guest may still be starting. The first answers shall come soon.
const STARTUP: [u64; 4] = [0, 1000, 4000, 25_000];
const STARTUP_ANSWER: u16 = 1000;

/// What the guest of a port has joined.
#[derive(Debug)]
struct Joined {
    id: String,
    vni: Vni,
    subnet: String,
    groups: BTreeMap<u128, Group>,
    /// When each group is looked at next, as it stands in [`Querier::due`].
    due: BTreeMap<u128, u64>,
    /// General queries so far, and when the next one is due.
    asked: usize,
    next_query: u64,
}

impl Joined {
    fn is(&self, snapshot: &Snapshot, port: &Port) -> bool {
        self.id == port.id
            && self.vni == snapshot.vpcs[port.vpc].vni
            && self.subnet == snapshot.subnets[port.subnet].id
    }

    fn sources(&self) -> usize {
        self.groups.values().map(Group::sources).sum()
    }
}

/// What has to be sent and counted.
#[derive(Debug, Default)]
pub struct Answer {
    /// Frames, each for a port.
    pub frames: Vec<(u16, Vec<u8>)>,
    /// Why something of a report was passed over.
    pub refused: Option<DropReason>,
}

/// The querier.
#[derive(Debug, Default)]
pub struct Querier {
    ports: BTreeMap<u16, Joined>,
    /// Who has joined a group.
    members: BTreeMap<(Vni, u128), BTreeSet<u16>>,
    /// What is due when: of a port its general query (no group), or what it has joined.
    due: BTreeSet<(u64, u16, Option<u128>)>,
    /// Groups whose listeners are not in the table as they are.
    changed: BTreeSet<(Vni, u128)>,
}

/// Whether messages of a port are heard.
fn is_heard(snapshot: &Snapshot, port: &Port) -> bool {
    snapshot.subnets[port.subnet].snoops
}

impl Querier {
    /// Begins to ask ports that are new in a snapshot, and forgets those that are gone.
    pub fn follow(&mut self, snapshot: &Snapshot, now: u64) {
        let gone = |(index, joined): (&u16, &Joined)| {
            let port = snapshot.port(*index);
            let stays =
                port.is_some_and(|port| is_heard(snapshot, port) && joined.is(snapshot, port));
            (!stays).then_some(*index)
        };
        let gone: Vec<u16> = self.ports.iter().filter_map(gone).collect();
        for index in gone {
            self.forget(index);
        }
        for (index, port) in (0u16..).zip(snapshot.ports.iter()) {
            let Some(port) = port.as_ref().filter(|port| is_heard(snapshot, port)) else {
                continue;
            };
            if self.ports.contains_key(&index) {
                continue;
            }
            let first = now + u64::from(index % SPREAD);
            let joined = Joined {
                id: port.id.clone(),
                vni: snapshot.vpcs[port.vpc].vni,
                subnet: snapshot.subnets[port.subnet].id.clone(),
                groups: BTreeMap::new(),
                due: BTreeMap::new(),
                asked: 0,
                next_query: first,
            };
            self.ports.insert(index, joined);
            self.due.insert((first, index, None));
        }
    }

    fn forget(&mut self, index: u16) {
        let Some(joined) = self.ports.remove(&index) else {
            return;
        };
        self.due.remove(&(joined.next_query, index, None));
        for (group, at) in joined.due {
            self.due.remove(&(at, index, Some(group)));
        }
        for group in joined.groups.into_keys() {
            self.left(index, (joined.vni, group));
        }
    }

    /// A port has nothing of a group any more.
    fn left(&mut self, index: u16, group: (Vni, u128)) {
        self.changed.insert(group);
        if let Some(ports) = self.members.get_mut(&group) {
            ports.remove(&index);
            if ports.is_empty() {
                self.members.remove(&group);
            }
        }
    }

    /// Takes in a message of a port that a worker has left.
    pub fn hear(&mut self, snapshot: &Snapshot, index: u16, frame: &[u8], now: u64) -> Answer {
        self.follow_port(snapshot, index, now);
        let mut answer = Answer::default();
        let Ok(Inner::Ip(parsed)) = parse::inner(frame) else {
            return answer;
        };
        let Ok(Some(Message::Report(report))) = message::read(frame, &parsed) else {
            return answer;
        };
        for record in report.records() {
            if is_snooped(record.group) {
                self.hear_record(snapshot, index, &record, now, &mut answer);
            }
        }
        answer
    }

    /// The port may be newer than the last snapshot that was followed.
    fn follow_port(&mut self, snapshot: &Snapshot, index: u16, now: u64) {
        let stands = match (self.ports.get(&index), snapshot.port(index)) {
            (Some(joined), Some(port)) => joined.is(snapshot, port),
            (None, None) => true,
            _ => false,
        };
        if !stands {
            self.follow(snapshot, now);
        }
    }

    fn hear_record(
        &mut self,
        snapshot: &Snapshot,
        index: u16,
        record: &Record<'_>,
        now: u64,
        answer: &mut Answer,
    ) {
        let Some(joined) = self.ports.get_mut(&index) else {
            return;
        };
        let known = joined.groups.get(&record.group);
        let mut named: Vec<u128> = record.sources().collect();
        named.sort_unstable();
        named.dedup();
        let before = known.map_or(0, Group::sources);
        let others = joined.sources() - before;
        let most = SOURCES.min(SOURCES_OF_PORT - others);
        if known.is_none() && joined.groups.len() >= GROUPS || named.len() > most {
            answer.refused = Some(DropReason::MembershipBudget);
            return;
        }
        if known.is_none() && matches!(record.says, Says::Leaves | Says::Block) {
            return;
        }
        let mut group = known.cloned().unwrap_or_default();
        let filter = group.filter();
        let question = group.hear(record.says, &named, now);
        if group.sources() > most {
            answer.refused = Some(DropReason::MembershipBudget);
            return;
        }
        let is_new = known.is_none();
        let has_changed = is_new || group.filter() != filter;
        let key = (joined.vni, record.group);
        if let Some(port) = snapshot.port(index) {
            let subnet = &snapshot.subnets[port.subnet];
            let mut ask = |about| {
                if answer.frames.len() >= QUESTIONS {
                    return;
                }
                let frame = query::frame(subnet, about, LAST_ASKED);
                answer.frames.extend(frame.map(|frame| (index, frame)));
            };
            if question.group {
                ask(About::Group(record.group));
            }
            if !question.sources.is_empty() {
                ask(About::Sources(record.group, &question.sources));
            }
        }
        if group.is_empty() {
            self.drop_group(index, record.group);
            return;
        }
        self.keep(index, record.group, group);
        if is_new {
            self.members.entry(key).or_default().insert(index);
        }
        if has_changed {
            self.changed.insert(key);
        }
    }

    /// Keeps what a port wants of a group, and looks at it again when something of it ends.
    fn keep(&mut self, index: u16, address: u128, group: Group) {
        let Some(joined) = self.ports.get_mut(&index) else {
            return;
        };
        let before = match group.next() {
            Some(at) => {
                self.due.insert((at, index, Some(address)));
                joined
                    .due
                    .insert(address, at)
                    .filter(|before| *before != at)
            }
            None => joined.due.remove(&address),
        };
        joined.groups.insert(address, group);
        if let Some(before) = before {
            self.due.remove(&(before, index, Some(address)));
        }
    }

    fn drop_group(&mut self, index: u16, address: u128) {
        let Some(joined) = self.ports.get_mut(&index) else {
            return;
        };
        if let Some(before) = joined.due.remove(&address) {
            self.due.remove(&(before, index, Some(address)));
        }
        if joined.groups.remove(&address).is_some() {
            let key = (joined.vni, address);
            self.left(index, key);
        }
    }

    /// When [`Querier::tick`] has something to do next.
    pub fn next(&self) -> Option<u64> {
        self.due.first().map(|(at, ..)| *at)
    }

    /// Does what is due: asks ports, and ends what was not confirmed.
    pub fn tick(&mut self, snapshot: &Snapshot, now: u64) -> Answer {
        let mut answer = Answer::default();
        while let Some((at, index, group)) = self.due.first().copied()
            && at <= now
        {
            self.due.pop_first();
            match group {
                None => self.ask(snapshot, index, now, &mut answer),
                Some(address) => self.expire(index, address, now),
            }
        }
        answer
    }

    fn ask(&mut self, snapshot: &Snapshot, index: u16, now: u64, answer: &mut Answer) {
        let Some(joined) = self.ports.get_mut(&index) else {
            return;
        };
        let within = match STARTUP.get(joined.asked) {
            Some(_) => STARTUP_ANSWER,
            None => ANSWER as u16,
        };
        joined.asked = joined.asked.saturating_add(1);
        let wait = STARTUP.get(joined.asked).copied().unwrap_or(INTERVAL);
        joined.next_query = now + wait;
        self.due.insert((joined.next_query, index, None));
        // A port that is no longer as it was is asked when the snapshot has been followed.
        let port = snapshot
            .port(index)
            .filter(|port| joined.is(snapshot, port));
        let Some(port) = port else {
            return;
        };
        let subnet = &snapshot.subnets[port.subnet];
        let families = [Family::Ipv4, Family::Ipv6];
        let frames = families
            .into_iter()
            .filter_map(|family| query::frame(subnet, About::All(family), within));
        answer.frames.extend(frames.map(|frame| (index, frame)));
    }

    fn expire(&mut self, index: u16, address: u128, now: u64) {
        let Some(joined) = self.ports.get_mut(&index) else {
            return;
        };
        joined.due.remove(&address);
        let Some(mut group) = joined.groups.remove(&address) else {
            return;
        };
        let key = (joined.vni, address);
        let before = group.filter();
        group.expire(now);
        if group.is_empty() {
            return self.left(index, key);
        }
        if group.filter() != before {
            self.changed.insert(key);
        }
        self.keep(index, address, group);
    }

    /// Whether the table is not as it should be.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Brings a table up to date; the groups of which something has changed.
    pub fn update(&mut self, table: &mut Table) -> BTreeSet<(Vni, u128)> {
        let changed = std::mem::take(&mut self.changed);
        for key in changed.iter().copied() {
            let listeners = self.members.get(&key).into_iter().flatten();
            let listeners = listeners.filter_map(|index| {
                let group = self.ports.get(index)?.groups.get(&key.1)?;
                Some(Listener {
                    port: *index,
                    filter: group.filter(),
                })
            });
            let listeners: Arc<[Listener]> = listeners.collect();
            if listeners.is_empty() {
                table.here.remove(&key);
            } else {
                table.here.insert(key, listeners);
            }
        }
        changed
    }

    /// What the ports of each subnet that have joined a group want together.
    pub fn wanted(&self, group: (Vni, u128)) -> BTreeMap<&str, Filter> {
        let mut wanted: BTreeMap<&str, Filter> = BTreeMap::new();
        let members = self.members.get(&group).into_iter().flatten();
        for joined in members.filter_map(|index| self.ports.get(index)) {
            let Some(filter) = joined.groups.get(&group.1).map(Group::filter) else {
                continue;
            };
            wanted
                .entry(&joined.subnet)
                .and_modify(|all| *all = all.or(&filter))
                .or_insert(filter);
        }
        wanted
    }

    /// The groups that ports of this host have joined.
    pub fn groups(&self) -> impl Iterator<Item = (Vni, u128)> {
        self.members.keys().copied()
    }

    /// How many groups ports of this host have joined, each port for itself.
    pub fn joined(&self) -> usize {
        self.ports.values().map(|joined| joined.groups.len()).sum()
    }
}
