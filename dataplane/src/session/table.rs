//! The session table: one for all workers, read without locks.
//!
//! Slots hold the sessions, an index finds them, and both lie in memory that is taken as it is used, by [`SessionTable::prepare`] ahead of
//! the workers. Readers never wait. Writers (install, remove, change of an action) lock one of [`SHARDS`] shards. Cost per session: 192 bytes,
//! and 16 to 32 of index. A session with two keys costs 64 bytes more, and another 16 to 32 of index.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::arena::Arena;
use super::held::Held;
use super::index::{Index, MOST_SLOTS, Place, Room};
use super::key::{Direction, Key, Seeds};
use super::mappings::Mappings;
use super::member_counts::{self, MemberCounts};
use super::second_actions::{Owner, SecondActions};
pub use super::slot::{Action, Egress, Ingress, MacPair, Stamp};
use super::slot::{FlowEntry, Slot};
use super::tcp;
use super::translation::{Line, Side, Translation};
use super::{State, Timeouts};
use crate::numbers::{Epoch, Vni, VpcIndex};
use crate::packet::Flow;
use crate::prefetch::prefetch;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use crate::sync::{Mutex, MutexGuard};

/// Shards that writers lock, each with its own index and slots.
pub const SHARDS: usize = if cfg!(feature = "loom") { 2 } else { 16 };
/// Slots that a shard has at least.
const LEAST: usize = if cfg!(feature = "loom") { 2 } else { 8 };
/// So many of the newest half-open sessions are remembered, per shard, as candidates to give way.
const CANDIDATES: usize = 1024;

/// The most mappings of NAT gateways.
const MOST_MAPPINGS: u32 = if cfg!(feature = "loom") { 2 } else { 1 << 20 };

/// How often [`SessionTable::prepare`] is to be called.
pub const PREPARE_EVERY: Duration = Duration::from_millis(100);
/// Slots, per shard, whose memory is taken before they are needed.
const AHEAD: u32 = 16 * 1024;

/// Caps of the table.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sessions in all.
    pub capacity: u32,
    /// Sessions charged to one port.
    pub per_port: u32,
    /// Sessions of one VPC on this host.
    pub per_vpc: u32,
    /// Ports that are counted apart; a port's index is below.
    pub ports: usize,
    /// VPCs that are counted apart; a VPC's index is below.
    pub vpcs: usize,
}

#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Shard {
    /// Its place among the shards.
    place: usize,
    slots: Arena<Slot>,
    /// Of slots whose sessions have two keys, under the same numbers.
    lines: Arena<Line>,
    index: Index,
    second_actions: SecondActions,
    /// Slots below were used at some time.
    used: AtomicU32,
    /// The memory of slots below has been taken.
    prepared: AtomicU32,
    /// The same of their lines.
    prepared_lines: AtomicU32,
    pub(super) writer: Mutex<Writer>,
}

#[derive(Debug)]
pub(super) struct Writer {
    free: Vec<u32>,
    candidates: VecDeque<(u32, u32)>,
    counts: Counts,
}

impl Writer {
    /// A session that may have to give way.
    fn remember(&mut self, number: u32, version: u32) {
        if self.candidates.len() == CANDIDATES {
            self.candidates.pop_front();
        }
        self.candidates.push_back((number, version));
    }
}

/// Why no session could be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum InsertError {
    #[error("the table is full and nothing gives way")]
    Full,
    #[error("the port's budget is spent")]
    PortBudget,
    #[error("the VPC's budget is spent")]
    VpcBudget,
    #[error("another flow has the addresses and ports, before or after translation")]
    Clash,
}

/// What happened in the table so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TableStatistics {
    pub live: u64,
    pub capacity: u64,
    pub installed: u64,
    pub expired: u64,
    pub evicted: u64,
    pub refused: u64,
}

/// A shard's share of [`TableStatistics`].
#[derive(Debug, Default)]
struct Counts {
    live: u64,
    installed: u64,
    expired: u64,
    evicted: u64,
    refused: u64,
}

/// All sessions of the host.
#[derive(Debug)]
pub struct SessionTable {
    shards: Box<[Shard; SHARDS]>,
    seeds: Seeds,
    limits: Limits,
    per_port: Box<[AtomicU32]>,
    per_vpc: Box<[AtomicU32]>,
    /// Whether any session had two keys so far.
    translates: AtomicBool,
    /// The mappings of NAT gateways that sessions use.
    mappings: Mappings,
    /// How many sessions members of load balancers have.
    member_counts: Arc<MemberCounts>,
}

/// Where a session probably lies.
#[derive(Debug, Clone, Copy, Default)]
pub struct Probe(Option<Place>);

impl Probe {
    /// Whether the session has two keys, if it is there.
    #[inline(always)]
    pub fn is_translated(self) -> bool {
        self.0.is_some_and(Place::is_translated)
    }
}

/// A session that was found, and the direction of the packet that found it. Stays safe to use when the session goes: reads then fail.
#[derive(Debug, Clone, Copy)]
pub struct SessionRef<'t> {
    shard: &'t Shard,
    slot: &'t Slot,
    number: u32,
    version: u32,
    /// In terms of the first key.
    direction: Direction,
    /// Which of its keys found it.
    side: Side,
}

/// What a new session begins with.
#[derive(Debug, Clone, Copy)]
pub struct NewSession {
    /// First state.
    pub state: State,
    /// Port that it is charged to.
    pub port: u16,
    /// Index of its VPC.
    pub vpc: VpcIndex,
    /// The time, in milliseconds.
    pub now: u32,
    /// TCP windows: of the opener, and of the other side.
    pub tcp: (tcp::Side, tcp::Side),
    /// What was decided for the packet that opens it.
    pub action: Option<(Stamp, Action)>,
    /// What that packet becomes: the session's second key.
    pub translation: Option<Translation>,
    /// The mapping of a NAT gateway that it uses, if it has a second key.
    pub mapping: Option<u32>,
    /// The address of the load balancer's member that gets its packets as they are, if it has no second key.
    pub chosen: Option<u128>,
    /// The counter of a load balancer's member that it counts in, if it has a second key or a member was chosen.
    pub member: Option<u32>,
}

/// A session as shown to people.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct SessionView {
    pub vni: Vni,
    pub flow: Flow,
    /// VNI and flow on the other side, if it is translated.
    pub translated: Option<(Vni, Flow)>,
    /// The mapping of a NAT gateway that it uses, by number.
    pub mapping: Option<u32>,
    /// The address of the load balancer's member that gets its packets as they are.
    pub chosen: Option<u128>,
    /// The counter of a load balancer's member that it counts in, by number.
    pub member: Option<u32>,
    pub state: State,
    pub epoch: Epoch,
    pub idle_ms: u32,
    pub packets_out: u64,
    pub packets_back: u64,
    pub action_out: Option<Action>,
    pub action_back: Option<Action>,
}

impl SessionTable {
    /// An empty table. Address space for all of it is taken here; memory by [`Self::prepare`], or as sessions come.
    pub fn new(limits: Limits) -> Self {
        let per_shard = (limits.capacity as usize).div_ceil(SHARDS);
        let per_shard = per_shard.clamp(LEAST, MOST_SLOTS);
        let shard = |place| Shard {
            place,
            slots: Arena::new(per_shard),
            lines: Arena::new(per_shard),
            index: Index::new(per_shard),
            second_actions: SecondActions::new(per_shard),
            used: AtomicU32::new(0),
            prepared: AtomicU32::new(0),
            prepared_lines: AtomicU32::new(0),
            writer: Mutex::new(Writer {
                free: Vec::with_capacity(per_shard),
                candidates: VecDeque::with_capacity(CANDIDATES),
                counts: Counts::default(),
            }),
        };
        Self {
            shards: Box::new(std::array::from_fn(shard)),
            seeds: Seeds::random(),
            limits,
            per_port: (0..limits.ports).map(|_| AtomicU32::new(0)).collect(),
            per_vpc: (0..limits.vpcs).map(|_| AtomicU32::new(0)).collect(),
            translates: AtomicBool::new(false),
            mappings: Mappings::new(limits.capacity.min(MOST_MAPPINGS)),
            member_counts: Arc::new(MemberCounts::new(member_counts::MOST)),
        }
    }

    /// Takes memory ahead of the sessions to come. Somebody who may wait calls this at the start and then every [`PREPARE_EVERY`]: sessions
    /// that come faster than a million a second may wait for memory themselves.
    pub fn prepare(&self) {
        let translates = self.translates.load(Ordering::Relaxed);
        for shard in &*self.shards {
            if translates {
                shard.prepare_lines();
            }
            let prepared = shard.prepared.load(Ordering::Relaxed);
            let wanted = shard.used.load(Ordering::Relaxed).saturating_add(AHEAD);
            let wanted = wanted.min(shard.slots.len() as u32);
            if prepared == 0 {
                shard.index.populate();
            }
            // Not for every few: a call costs more than the memory of some.
            if wanted > prepared
                && (prepared == 0
                    || wanted - prepared >= AHEAD / 4
                    || wanted as usize == shard.slots.len())
            {
                shard.slots.populate(prepared as usize..wanted as usize);
                shard.prepared.store(wanted, Ordering::Relaxed);
            }
        }
    }

    /// The mappings of NAT gateways that sessions use.
    pub fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    /// How many sessions members of load balancers have: for who compiles listeners.
    pub fn member_counts(&self) -> &Arc<MemberCounts> {
        &self.member_counts
    }

    /// The seeds for keys of this table.
    pub fn seeds(&self) -> &Seeds {
        &self.seeds
    }

    /// Counts so far.
    pub fn statistics(&self) -> TableStatistics {
        let mut all = TableStatistics::default();
        for shard in &*self.shards {
            let counts = &shard.lock().counts;
            all.live += counts.live;
            all.capacity += shard.slots.len() as u64;
            all.installed += counts.installed;
            all.expired += counts.expired;
            all.evicted += counts.evicted;
            all.refused += counts.refused;
        }
        all
    }

    #[inline]
    fn shard(&self, hash: u64) -> &Shard {
        &self.shards[Self::place(hash) % SHARDS]
    }

    /// The place of a hash's shard.
    #[inline]
    fn place(hash: u64) -> usize {
        (hash >> (64 - SHARDS.ilog2())) as usize
    }

    /// Brings the index line of a key towards the cache, ahead of [`Self::probe`].
    #[inline]
    pub fn prefetch(&self, key: &Key) {
        self.shard(key.hash).index.prefetch(key.hash);
    }

    /// Where the key's session probably lies, ahead of [`Self::confirm`]; brings it towards the cache.
    #[inline]
    pub fn probe(&self, key: &Key) -> Probe {
        let shard = self.shard(key.hash);
        let Some((place, slot)) = shard
            .index
            .first(key.hash)
            .and_then(|place| Some((place, shard.slots.get(place.number() as usize)?)))
        else {
            return Probe(None);
        };
        if place.is_translated() {
            self.prefetch_translated(shard, place, key);
        } else {
            prefetch(slot);
            prefetch(&slot.entries[key.direction as usize]);
        }
        Probe(Some(place))
    }

    #[inline(never)]
    fn prefetch_translated(&self, shard: &Shard, place: Place, key: &Key) {
        let (shard, direction) = match place.of_second() {
            None => (shard, key.direction),
            Some((home, flipped)) => (
                &self.shards[home % SHARDS],
                if flipped {
                    key.direction.opposite()
                } else {
                    key.direction
                },
            ),
        };
        let number = place.number() as usize;
        if let (Some(slot), Some(line)) = (shard.slots.get(number), shard.lines.get(number)) {
            prefetch(slot);
            prefetch(&slot.entries[direction as usize]);
            prefetch(line);
        }
    }

    /// The session of a key, if it lies where the probe said.
    #[inline]
    pub fn confirm(&self, probe: Probe, key: &Key) -> Option<SessionRef<'_>> {
        self.session(self.shard(key.hash), probe.0?, key)
    }

    /// The session of a key.
    #[inline]
    pub fn find(&self, key: &Key) -> Option<SessionRef<'_>> {
        let shard = self.shard(key.hash);
        shard
            .index
            .candidates(key.hash)
            .find_map(|place| self.session(shard, place, key))
    }

    /// The session of a key, if it lives in that place, which an entry in the index of `shard` names.
    #[inline]
    fn session<'t>(&'t self, shard: &'t Shard, place: Place, key: &Key) -> Option<SessionRef<'t>> {
        if place.of_second().is_some() {
            return self.session_by_second(place, key);
        }
        let slot = shard.slots.get(place.number() as usize)?;
        let version = slot.version_of(&key.words)?;
        Some(SessionRef {
            shard,
            slot,
            number: place.number(),
            version,
            direction: key.direction,
            side: Side::First,
        })
    }

    /// The same by a second key.
    #[inline(never)]
    fn session_by_second(&self, place: Place, key: &Key) -> Option<SessionRef<'_>> {
        let (home, _) = place.of_second()?;
        let shard = self.shards.get(home)?;
        let number = place.number();
        let slot = shard.slots.get(number as usize)?;
        let version = slot.version.load(Ordering::Acquire);
        // The line of a session that has gone may still say what it said.
        let is_translated = slot.is_translated();
        let line = shard.lines.get(number as usize)?.read();
        fence(Ordering::Acquire);
        let is_here = version & 1 == 1 && slot.version.load(Ordering::Relaxed) == version;
        (is_here && is_translated && line.has(&key.words)).then(|| SessionRef {
            shard,
            slot,
            number,
            version,
            direction: line.across(key.direction),
            side: Side::Second,
        })
    }

    /// Makes a session, or gives back the one that another worker has just made.
    ///
    /// # Errors
    /// No room, and nothing gives way; or a budget is spent; or another session has one of the keys.
    pub fn insert(&self, key: &Key, new: &NewSession) -> Result<SessionRef<'_>, InsertError> {
        let second = new.translation.map(|translation| {
            let key = Key::new(&self.seeds, &translation.flow, translation.vni);
            (key, translation)
        });
        let home = Self::place(key.hash);
        let other = second.map_or(home, |(second, _)| Self::place(second.hash));
        let mut held = Held::of(&*self.shards, home, other);
        if let Some(found) = self.find(key) {
            let chosen = new.chosen.filter(|_| second.is_none());
            if found.side != Side::First
                || found.second_words() != second.map(|it| it.0.words)
                || found.chosen() != chosen
            {
                return Err(InsertError::Clash);
            }
            if let Some((stamp, action)) = &new.action {
                found.keep(*stamp, action);
            }
            return Ok(found);
        }
        if let Some((second, _)) = &second
            && (second.words == key.words || self.find(second).is_some())
        {
            return Err(InsertError::Clash);
        }
        let number = self
            .check_budgets(new)
            .and_then(|()| self.free_slot(&mut held, home).ok_or(InsertError::Full))
            .and_then(|number| {
                self.enter(
                    &mut held,
                    (home, number),
                    key,
                    second.as_ref().map(|it| &it.0),
                )
                .map(|()| number)
            });
        let number = number.inspect_err(|_| {
            if let Some(writer) = held.writer(home) {
                writer.counts.refused += 1;
            }
        })?;
        let shard = &self.shards[home];
        let slot = &shard.slots[number as usize];
        // The version is even since the slot was freed; nothing written below may be seen before that.
        fence(Ordering::Release);
        slot.set_words(&key.words);
        slot.set_state(new.state, key.direction);
        slot.last_seen.store(new.now, Ordering::Relaxed);
        slot.created.store(new.now, Ordering::Relaxed);
        let chosen = new.chosen.filter(|_| second.is_none());
        slot.set_port(new.port, second.is_some(), chosen.is_some());
        slot.vpc.store(new.vpc.get(), Ordering::Relaxed);
        if let Some((second, translation)) = &second {
            let line = &shard.lines[number as usize];
            line.set(key, second, translation, (new.mapping, new.member));
            if let Some(mapping) = new.mapping {
                self.mappings.retain(mapping);
            }
            if let Some(member) = new.member {
                self.member_counts.retain(member);
            }
            self.translates.store(true, Ordering::Relaxed);
        } else if let Some(address) = chosen {
            shard.lines[number as usize].set_chosen(address, new.member);
            if let Some(member) = new.member {
                self.member_counts.retain(member);
            }
            self.translates.store(true, Ordering::Relaxed);
        }
        let opener = key.direction as usize;
        slot.entries[opener].clear(new.tcp.0);
        slot.entries[1 - opener].clear(new.tcp.1);
        if let Some((stamp, action)) = &new.action {
            slot.entries[opener].set(*stamp, action);
        }
        let version = slot.turn();
        self.charge(new.port, new.vpc.get(), 1);
        if let Some(writer) = held.writer(home) {
            if new.state.gives_way() {
                writer.remember(number, version);
            }
            writer.counts.live += 1;
            writer.counts.installed += 1;
        }
        Ok(SessionRef {
            shard,
            slot,
            number,
            version,
            direction: key.direction,
            side: Side::First,
        })
    }

    fn check_budgets(&self, new: &NewSession) -> Result<(), InsertError> {
        let is_spent = |counts: &[AtomicU32], index: usize, limit| {
            let count = counts.get(index);
            count.is_some_and(|count| count.load(Ordering::Relaxed) >= limit)
        };
        if is_spent(&self.per_port, new.port.into(), self.limits.per_port) {
            return Err(InsertError::PortBudget);
        }
        if is_spent(&self.per_vpc, new.vpc.get() as usize, self.limits.per_vpc) {
            return Err(InsertError::VpcBudget);
        }
        Ok(())
    }

    /// A free slot of a shard that is held; the newest half-open session gives way if there is none.
    fn free_slot(&self, held: &mut Held<'_>, home: usize) -> Option<u32> {
        let shard = &self.shards[home];
        let used = shard.used.load(Ordering::Relaxed);
        if let Some(number) = held.writer(home)?.free.pop() {
            return Some(number);
        }
        if (used as usize) < shard.slots.len() {
            // Nothing was ever here: the first write takes the memory.
            shard.used.store(used + 1, Ordering::Relaxed);
            return Some(used);
        }
        loop {
            let (number, version) = held.writer(home)?.candidates.pop_back()?;
            let slot = &shard.slots[number as usize];
            if slot.version.load(Ordering::Relaxed) == version && self.evict(held, home, number) {
                return held.writer(home)?.free.pop();
            }
        }
    }

    /// Enters a session that is about to live in a slot into the index, by both its keys; gives the slot back if that cannot be.
    fn enter(
        &self,
        held: &mut Held<'_>,
        (home, number): (usize, u32),
        first: &Key,
        second: Option<&Key>,
    ) -> Result<(), InsertError> {
        let place = match second {
            None => Place::plain(number),
            Some(_) => Place::first(number),
        };
        let entered = self.room(held, first.hash).and_then(|room| {
            self.shards[home].index.put(room, first.hash, place);
            let Some(second) = second else {
                return Some(());
            };
            let Some(room) = self.room(held, second.hash) else {
                self.shards[home].index.take(first.hash, place);
                return None;
            };
            let flipped = first.direction != second.direction;
            let place = Place::second(home, number, flipped);
            self.shard(second.hash).index.put(room, second.hash, place);
            Some(())
        });
        entered.ok_or_else(|| {
            if let Some(writer) = held.writer(home) {
                writer.free.push(number);
            }
            InsertError::Full
        })
    }

    /// An empty entry for a hash in the index of a shard that is held. Where both buckets are full, the newest half-open session of them gives way.
    fn room(&self, held: &mut Held<'_>, hash: u64) -> Option<Room> {
        let here = Self::place(hash);
        let index = &self.shards[here].index;
        if let Some(room) = index.room(hash) {
            return Some(room);
        }
        let newest = index
            .neighbours(hash)
            .map(|place| {
                (
                    place.of_second().map_or(here, |(home, _)| home),
                    place.number(),
                )
            })
            .filter(|(home, number)| {
                let slot = &self.shards[*home].slots[*number as usize];
                slot.is_live() && slot.state().0.gives_way()
            })
            .max_by_key(|(home, number)| {
                let slot = &self.shards[*home].slots[*number as usize];
                slot.created.load(Ordering::Relaxed)
            })?;
        self.evict(held, newest.0, newest.1);
        index.room(hash)
    }

    /// Takes out a session that gives way, if all the locks for that are free.
    fn evict(&self, held: &mut Held<'_>, home: usize, number: u32) -> bool {
        let (kept, slot) = (held.places(), &self.shards[home].slots[number as usize]);
        // What lies in the slot of a shard that is not held may change until it is.
        let evicted = held.try_also(home)
            && slot.is_live()
            && slot.state().0.gives_way()
            && held.try_also(self.other_shard(home, number))
            && self.release(held, home, number);
        if evicted && let Some(writer) = held.writer(home) {
            writer.counts.evicted += 1;
        }
        held.keep(kept);
        evicted
    }

    /// The shard of the second key of a live session, or its own if it has none.
    fn other_shard(&self, home: usize, number: u32) -> usize {
        let shard = &self.shards[home];
        match shard.second_words(number) {
            Some(words) => Self::place(Key::hash_of(&self.seeds, &words)),
            None => home,
        }
    }

    fn charge(&self, port: u16, vpc: u32, change: i32) {
        for count in [
            self.per_port.get(usize::from(port)),
            self.per_vpc.get(vpc as usize),
        ]
        .into_iter()
        .flatten()
        {
            count.fetch_add(change as u32, Ordering::Relaxed);
        }
    }

    /// Takes a live session out, if the shards of its keys are held.
    fn release(&self, held: &mut Held<'_>, home: usize, number: u32) -> bool {
        let shard = &self.shards[home];
        let slot = &shard.slots[number as usize];
        let second = shard.second_words(number);
        let other = self.other_shard(home, number);
        if held.writer(other).is_none() {
            return false;
        }
        let Some(writer) = held.writer(home) else {
            return false;
        };
        writer.free.push(number);
        writer.counts.live -= 1;
        let hash = Key::hash_of(&self.seeds, &slot.words());
        match second {
            None => {
                shard.index.take(hash, Place::plain(number));
                if slot.is_chosen()
                    && let Some(member) = shard.lines[number as usize].read().member
                {
                    self.member_counts.release(member);
                }
            }
            Some(words) => {
                shard.index.take(hash, Place::first(number));
                let line = shard.lines[number as usize].read();
                if let Some(mapping) = line.mapping {
                    self.mappings.release(mapping);
                }
                if let Some(member) = line.member {
                    self.member_counts.release(member);
                }
                let flipped = line.flipped;
                let place = Place::second(home, number, flipped);
                let hash = Key::hash_of(&self.seeds, &words);
                self.shards[other].index.take(hash, place);
            }
        }
        slot.turn();
        slot.entries.iter().for_each(FlowEntry::revoke);
        self.charge(slot.port(), slot.vpc.load(Ordering::Relaxed), -1);
        true
    }

    /// Removes a session if it is still there.
    pub fn remove(&self, session: &SessionRef<'_>) {
        let home = session.shard.place;
        let other = self.other_shard(home, session.number);
        let mut held = Held::of(&*self.shards, home, other);
        // The same version: the same session, and so the same other shard.
        if session.is_live() {
            self.release(&mut held, home, session.number);
        }
    }

    /// Removes every session charged to a port.
    pub fn remove_port(&self, port: u16) {
        self.remove_where(|_, slot, _| slot.port() == port, 0..usize::MAX, |_| {});
    }

    /// Removes every session with one of these addresses, each with its VNI, at either end.
    pub fn remove_addresses(&self, addresses: &HashSet<(Vni, u128)>) {
        if addresses.is_empty() {
            return;
        }
        self.remove_where(
            |shard, slot, number| {
                let has = |words: &[u64; 5]| {
                    let (flow, vni) = Key::flow(words, Direction::Up);
                    [flow.source, flow.destination]
                        .iter()
                        .any(|address| addresses.contains(&(vni, *address)))
                };
                has(&slot.words()) || shard.second_words(number).is_some_and(|words| has(&words))
            },
            0..usize::MAX,
            |_| {},
        );
    }

    /// Looks at `count` slots from `cursor` on and removes those that have idled too long; answers where to go on.
    pub fn sweep(&self, cursor: usize, count: usize, now: u32, timeouts: &Timeouts) -> usize {
        self.sweep_with(cursor, count, now, timeouts, |_, _| None)
    }

    /// The same, where sessions with the outside may have idle times of their own, by their outside address on this side and their state.
    pub fn sweep_with(
        &self,
        cursor: usize,
        count: usize,
        now: u32,
        timeouts: &Timeouts,
        outside: impl Fn(u128, State) -> Option<u32>,
    ) -> usize {
        let expired = |shard: &Shard, slot: &Slot, number: u32| {
            let idle = now.wrapping_sub(slot.last_seen.load(Ordering::Relaxed));
            let state = slot.state().0;
            let own = if slot.is_translated() {
                let address = shard.outside_address(number);
                address.and_then(|address| outside(address, state))
            } else {
                None
            };
            // A time stamp taken by a faster worker lies ahead of ours.
            idle < u32::MAX / 2 && idle >= own.unwrap_or_else(|| timeouts.of(state))
        };
        let total = self
            .shards
            .iter()
            .map(|shard| shard.slots.len())
            .sum::<usize>();
        let cursor = if cursor >= total { 0 } else { cursor };
        self.remove_where(
            |shard, slot, number| expired(shard, slot, number),
            cursor..cursor + count,
            |counts| {
                counts.expired += 1;
            },
        );
        cursor + count
    }

    fn remove_where(
        &self,
        condition: impl Fn(&Shard, &Slot, u32) -> bool,
        range: std::ops::Range<usize>,
        count: impl Fn(&mut Counts),
    ) {
        let per_shard = self.shards[0].slots.len();
        let end = range.end.min(per_shard * SHARDS);
        for position in range.start..end {
            let shard = &self.shards[position / per_shard];
            if position % per_shard >= shard.used.load(Ordering::Relaxed) as usize {
                continue;
            }
            let number = (position % per_shard) as u32;
            let slot = &shard.slots[number as usize];
            let version = slot.version.load(Ordering::Acquire);
            if version & 1 == 1 && condition(shard, slot, number) {
                let other = self.other_shard(shard.place, number);
                let mut held = Held::of(&*self.shards, shard.place, other);
                if slot.version.load(Ordering::Acquire) == version
                    && condition(shard, slot, number)
                    && self.release(&mut held, shard.place, number)
                    && let Some(writer) = held.writer(shard.place)
                {
                    count(&mut writer.counts);
                }
            }
        }
    }

    /// Shows the live sessions with two keys among `count` slots from a place on. Answers the place after them, 0 at the end.
    pub fn walk_translated(
        &self,
        place: usize,
        count: usize,
        now: u32,
        mut show: impl FnMut(&SessionView),
    ) -> usize {
        let per_shard = self.shards[0].slots.len();
        let end = (place + count).min(per_shard * SHARDS);
        for position in place..end {
            let shard = &self.shards[position / per_shard];
            let number = position % per_shard;
            if number < shard.used.load(Ordering::Relaxed) as usize
                && shard.slots[number].is_translated()
                && let Some(view) = shard.view(number as u32, now)
            {
                show(&view);
            }
        }
        if end == per_shard * SHARDS { 0 } else { end }
    }

    /// Forgets where TCP connections with the outside stand: from now on another host sees their segments. They are learnt anew when this one does again.
    /// `is_concerned`: of which outside addresses.
    pub fn forget_outside_numbers(&self, is_concerned: impl Fn(u128) -> bool) {
        for shard in &*self.shards {
            let used = shard.used.load(Ordering::Relaxed) as usize;
            for (number, slot) in
                (0..used).filter_map(|number| Some((number, shard.slots.get(number)?)))
            {
                if !slot.is_translated() {
                    continue;
                }
                let (flow, _) = Key::flow(&slot.words(), Direction::Up);
                let address = shard.outside_address(number as u32);
                if address.is_some_and(&is_concerned)
                    && flow.protocol == crate::packet::parse::protocol::TCP
                {
                    for entry in &slot.entries {
                        entry.store_whole_side(tcp::Side::unknown());
                    }
                }
            }
        }
    }

    /// Goes over all sessions.
    pub fn each(&self, now: u32, mut see: impl FnMut(&SessionView)) {
        for shard in &*self.shards {
            for number in 0..shard.used.load(Ordering::Relaxed) {
                if let Some(view) = shard.view(number, now) {
                    see(&view);
                }
            }
        }
    }

    /// Up to `limit` sessions that the filter lets through, for people.
    pub fn list(&self, limit: usize, now: u32, keep: impl Fn(Vni) -> bool) -> Vec<SessionView> {
        let mut views = Vec::new();
        for shard in &*self.shards {
            for number in 0..shard.used.load(Ordering::Relaxed) {
                if views.len() == limit {
                    return views;
                }
                views.extend(shard.view(number, now).filter(|view| keep(view.vni)));
            }
        }
        views
    }
}

impl Shard {
    pub(super) fn lock(&self) -> MutexGuard<'_, Writer> {
        // A writer that panicked left at worst a slot unused: the table stays usable.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the memory of lines ahead of their use, once there are any.
    fn prepare_lines(&self) {
        let prepared = self.prepared_lines.load(Ordering::Relaxed);
        let wanted = self.prepared.load(Ordering::Relaxed);
        if wanted > prepared {
            self.lines.populate(prepared as usize..wanted as usize);
            self.prepared_lines.store(wanted, Ordering::Relaxed);
        }
    }

    /// The words of the second key of a slot's session, if it has one.
    fn second_words(&self, number: u32) -> Option<[u64; 5]> {
        let number = number as usize;
        let is_translated = self.slots.get(number)?.is_translated();
        is_translated.then(|| self.lines[number].read().words)
    }

    /// The outside address that stands for a port of a translated session: of a mapping, or of a session with the outside.
    fn outside_address(&self, number: u32) -> Option<u128> {
        let slot = self.slots.get(number as usize)?;
        let line = self.lines.get(number as usize)?.read();
        let (first, first_vni) = Key::flow(&slot.words(), line.first);
        let (second, second_vni) = Key::flow(&line.words, line.across(line.first));
        if line.mapping.is_some() || second_vni == Vni::OUTSIDE {
            Some(second.source)
        } else {
            (first_vni == Vni::OUTSIDE).then_some(first.destination)
        }
    }

    fn view(&self, number: u32, now: u32) -> Option<SessionView> {
        let slot = &self.slots[number as usize];
        let version = slot.version.load(Ordering::Acquire);
        if version & 1 == 0 {
            return None;
        }
        let (state, opener) = slot.state();
        let (flow, vni) = Key::flow(&slot.words(), opener);
        let translated = slot.is_translated().then(|| {
            let line = self.lines[number as usize].read();
            let (flow, vni) = Key::flow(&line.words, line.across(opener));
            ((vni, flow), line.mapping, line.member)
        });
        let chosen = slot.is_chosen().then(|| {
            let line = &self.lines[number as usize];
            (line.chosen(), line.read().member)
        });
        let (out, back) = (
            &slot.entries[opener as usize],
            &slot.entries[opener.opposite() as usize],
        );
        let (decided_out, decided_back) = (out.view(), back.view());
        let view = SessionView {
            vni,
            flow,
            translated: translated.map(|it| it.0),
            mapping: translated.and_then(|it| it.1),
            chosen: chosen.map(|it| it.0),
            member: translated
                .and_then(|it| it.2)
                .or(chosen.and_then(|it| it.1)),
            state,
            epoch: decided_out.map_or(Epoch::default(), |(epoch, _)| epoch),
            idle_ms: now.wrapping_sub(slot.last_seen.load(Ordering::Relaxed)),
            packets_out: out.packets(),
            packets_back: back.packets(),
            action_out: decided_out.map(|(_, action)| action),
            action_back: decided_back.map(|(_, action)| action),
        };
        fence(Ordering::Acquire);
        (slot.version.load(Ordering::Relaxed) == version).then_some(view)
    }
}

impl SessionRef<'_> {
    #[inline]
    fn entry(&self) -> &FlowEntry {
        &self.slot.entries[self.direction as usize]
    }

    /// Whether the session is still the one that was found.
    #[inline]
    pub fn is_live(&self) -> bool {
        self.slot.version.load(Ordering::Acquire) == self.version
    }

    /// Whether both are the same session, by whichever key and in whichever direction.
    pub fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self.slot, other.slot) && self.version == other.version
    }

    /// What was decided for packets of this direction under this stamp; one compare when it still holds.
    #[inline]
    pub fn action(&self, stamp: Stamp) -> Option<Action> {
        let action = self.entry().action(stamp.on(self.side));
        action.filter(|_| self.is_live())
    }

    /// The same for packets that come in elsewhere than those that the session's own action is for.
    #[inline(never)]
    pub fn second_action(&self, stamp: Stamp) -> Option<Action> {
        let stamp = stamp.on(self.side);
        let action = self.shard.second_actions.find(self.owner(), stamp);
        action.filter(|_| self.is_live())
    }

    /// Tells the session and the direction from all others that were, are or will be in the shard.
    fn owner(&self) -> Owner {
        Owner::new(self.number, self.version, self.direction)
    }

    /// Keeps an action, beside one of the same epoch for another ingress. The shard's lock is held.
    fn keep(&self, stamp: Stamp, action: &Action) {
        let stamp = stamp.on(self.side);
        let entry = self.entry();
        if entry.is_for_another_ingress(stamp) {
            self.shard.second_actions.set(self.owner(), stamp, action);
        } else {
            entry.set(stamp, action);
        }
    }

    /// Records what was decided for this direction.
    pub fn set_action(&self, stamp: Stamp, action: &Action) {
        let _writer = self.shard.lock();
        if self.is_live() {
            self.keep(stamp, action);
        }
    }

    /// Whether the session has two keys.
    #[inline]
    pub fn is_translated(&self) -> bool {
        self.slot.is_translated()
    }

    /// The session as it is shown, at the time `now`.
    pub fn view(&self, now: u32) -> Option<SessionView> {
        self.shard.view(self.number, now).filter(|_| self.is_live())
    }

    /// Whether the packet has the session's first key.
    #[inline]
    pub fn is_on_first_side(&self) -> bool {
        self.side == Side::First
    }

    fn second_words(&self) -> Option<[u64; 5]> {
        self.shard.second_words(self.number)
    }

    /// The address of the load balancer's member that gets the packets of its opener as they are.
    pub fn chosen(&self) -> Option<u128> {
        if !self.slot.is_chosen() {
            return None;
        }
        let address = self.shard.lines.get(self.number as usize)?.chosen();
        fence(Ordering::Acquire);
        let is_live = self.slot.version.load(Ordering::Relaxed) == self.version;
        is_live.then_some(address)
    }

    /// What a packet of this side becomes on the other: its session's other key. None: the session has one key; or the packet is on the wrong side for
    /// the way that it goes, and only seems to be of the session; or that has gone.
    #[inline]
    pub fn translation(&self) -> Option<Translation> {
        self.across(false)
    }

    /// What a packet that has come from the other side was there: one that is quoted by an error, or that another flow has sent with the same
    /// addresses and ports. None where [`Self::translation`] is some.
    pub fn origin(&self) -> Option<Translation> {
        self.across(true)
    }

    /// The VNI of the session's other key, if the keys differ in nothing else: the session is of two VPCs that a peering joins.
    pub fn joined(&self) -> Option<Vni> {
        let line = self.shard.lines.get(self.number as usize)?;
        let joined = self.is_translated() && line.read().joined;
        joined
            .then(|| self.translation())
            .flatten()
            .map(|other| other.vni)
    }

    #[inline]
    fn across(&self, has_crossed: bool) -> Option<Translation> {
        let line = self.shard.lines.get(self.number as usize)?;
        if !self.is_translated() {
            return None;
        }
        let line = line.read();
        // Packets of the first side go one way, those of the second the other.
        let arrives = line.joined || (self.side == Side::First) == (self.direction == line.first);
        if arrives == has_crossed {
            return None;
        }
        let translation = line.translation(|| self.slot.words(), self.side, self.direction);
        // What was read is of this session if that is still there.
        fence(Ordering::Acquire);
        let is_live = self.slot.version.load(Ordering::Relaxed) == self.version;
        is_live.then_some(translation)
    }

    /// The session's state.
    #[inline]
    pub fn state(&self) -> State {
        self.slot.state().0
    }

    /// The port that it is charged to.
    pub fn port(&self) -> u16 {
        self.slot.port()
    }

    /// Whether this packet is the first answer in a session that was one way.
    #[inline]
    pub fn is_answered(&self) -> bool {
        self.slot.is_answered_by(self.direction)
    }

    /// Moves the session to another state.
    #[inline]
    pub fn set_state(&self, state: State) {
        self.slot.move_to(state);
    }

    /// Whether the packet goes the way of the one that opened the session.
    #[inline]
    pub fn from_origin(&self) -> bool {
        self.slot.state().1 == self.direction
    }

    /// Notes a packet of this direction.
    #[inline]
    pub fn touch(&self, now: u32) {
        if self.slot.last_seen.load(Ordering::Relaxed) != now {
            self.slot.last_seen.store(now, Ordering::Relaxed);
        }
        self.entry().count();
    }

    /// Moves the session to another state, in which the receiver of this packet is the opener. What was decided for it is withdrawn, since the
    /// groups saw it the other way round, and this reference finds nothing any more.
    pub fn turn(&self, state: State) {
        let mut writer = self.shard.lock();
        if !self.is_live() {
            return;
        }
        self.slot.entries.iter().for_each(FlowEntry::revoke);
        self.slot.set_state(state, self.direction.opposite());
        // Second actions go by the version.
        let version = self.slot.renew();
        if state.gives_way() {
            writer.remember(self.number, version);
        }
    }

    /// TCP windows: of this packet's sender, and of its receiver. Without the numbers that they offer.
    #[inline]
    pub fn tcp(&self) -> (tcp::Side, tcp::Side) {
        (
            self.entry().side(),
            self.slot.entries[self.direction.opposite() as usize].side(),
        )
    }

    /// Keeps what a segment has shown.
    #[inline]
    pub fn set_tcp(&self, sender: tcp::Side, receiver: tcp::Side) {
        self.entry().store_side(sender);
        self.slot.entries[self.direction.opposite() as usize].store_side(receiver);
    }

    /// The same with the numbers that they offer.
    #[inline]
    pub fn whole_tcp(&self) -> (tcp::Side, tcp::Side) {
        (
            self.entry().whole_side(),
            self.slot.entries[self.direction.opposite() as usize].whole_side(),
        )
    }

    /// Keeps what a segment has shown, with the numbers that are offered.
    #[inline]
    pub fn set_whole_tcp(&self, sender: tcp::Side, receiver: tcp::Side) {
        self.entry().store_whole_side(sender);
        self.slot.entries[self.direction.opposite() as usize].store_whole_side(receiver);
    }
}

#[cfg(all(test, feature = "loom"))]
mod threads;

#[cfg(test)]
mod tests;
