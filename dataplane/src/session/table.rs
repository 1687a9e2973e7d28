//! The session table: one for all workers, read without locks.
//!
//! Slots hold the sessions, an index finds them, and both lie in memory that is taken as it is used, by [`SessionTable::prepare`] ahead of
//! the workers. Readers never wait. Writers (install, remove, change of an action) lock one of [`SHARDS`] shards. Cost per session: 192 bytes,
//! and 16 to 32 of index.

use std::collections::{HashSet, VecDeque};
use std::sync::PoisonError;
use std::time::Duration;

use super::arena::Arena;
use super::index::{Index, Place};
use super::key::{Direction, Key, Seeds};
use super::second_orders::{Owner, SecondOrders};
pub use super::slot::{Action, Egress, Ingress, Stamp};
use super::slot::{Half, Order, Slot};
use super::tcp::Side;
use super::{State, Timeouts};
use crate::packet::Flow;
use crate::prefetch::prefetch;
use crate::sync::atomic::{AtomicU32, Ordering, fence};
use crate::sync::{Mutex, MutexGuard};

/// Shards that writers lock, each with its own index and slots.
pub const SHARDS: usize = if cfg!(feature = "loom") { 2 } else { 16 };
/// Slots that a shard has at least.
const LEAST: usize = if cfg!(feature = "loom") { 2 } else { 8 };
/// So many of the newest half-open sessions are remembered, per shard, as candidates to give way.
const CANDIDATES: usize = 1024;

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
struct Shard {
    slots: Arena<Slot>,
    index: Index,
    second_orders: SecondOrders,
    /// Slots below were used at some time.
    used: AtomicU32,
    /// The memory of slots below has been taken.
    prepared: AtomicU32,
    writer: Mutex<Writer>,
}

#[derive(Debug)]
struct Writer {
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
    shards: Box<[Shard]>,
    seeds: Seeds,
    limits: Limits,
    per_port: Box<[AtomicU32]>,
    per_vpc: Box<[AtomicU32]>,
}

/// Where a session probably lies.
#[derive(Debug, Clone, Copy, Default)]
pub struct Probe(Option<u32>);

/// A session that was found, and the direction of the packet that found it. Stays safe to use when the session goes: reads then fail.
#[derive(Debug, Clone, Copy)]
pub struct SessionRef<'t> {
    shard: &'t Shard,
    slot: &'t Slot,
    number: u32,
    version: u32,
    direction: Direction,
}

/// What a new session begins with.
#[derive(Debug, Clone, Copy)]
pub struct NewSession {
    /// First state.
    pub state: State,
    /// Port that it is charged to.
    pub port: u16,
    /// Index of its VPC.
    pub vpc: u32,
    /// The time, in milliseconds.
    pub now: u32,
    /// TCP windows: of the opener, and of the other side.
    pub tcp: (Side, Side),
    /// What was decided for the packet that opens it.
    pub order: Option<(Stamp, Order)>,
}

/// A session as shown to people.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct SessionView {
    pub vni: u32,
    pub flow: Flow,
    pub state: State,
    pub epoch: u32,
    pub idle_ms: u32,
    pub packets_out: u64,
    pub packets_back: u64,
    pub action_out: Option<Action>,
    pub action_back: Option<Action>,
}

impl SessionTable {
    /// An empty table. Address space for all of it is taken here; memory by [`Self::prepare`], or as sessions come.
    pub fn new(limits: Limits) -> Self {
        let per_shard = (limits.capacity as usize).div_ceil(SHARDS).max(LEAST);
        let shard = || Shard {
            slots: Arena::new(per_shard),
            index: Index::new(per_shard),
            second_orders: SecondOrders::new(per_shard),
            used: AtomicU32::new(0),
            prepared: AtomicU32::new(0),
            writer: Mutex::new(Writer {
                free: Vec::with_capacity(per_shard),
                candidates: VecDeque::with_capacity(CANDIDATES),
                counts: Counts::default(),
            }),
        };
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            seeds: Seeds::random(),
            limits,
            per_port: (0..limits.ports).map(|_| AtomicU32::new(0)).collect(),
            per_vpc: (0..limits.vpcs).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Takes memory ahead of the sessions to come. Somebody who may wait calls this at the start and then every [`PREPARE_EVERY`]: sessions
    /// that come faster than a million a second may wait for memory themselves.
    pub fn prepare(&self) {
        for shard in &self.shards {
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

    /// The seeds for keys of this table.
    pub fn seeds(&self) -> &Seeds {
        &self.seeds
    }

    /// Counts so far.
    pub fn statistics(&self) -> TableStatistics {
        let mut all = TableStatistics::default();
        for shard in &self.shards {
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
        &self.shards[(hash >> (64 - SHARDS.ilog2())) as usize]
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
        let Some(slot) = shard
            .index
            .first(key.hash)
            .and_then(|number| shard.slots.get(number as usize).map(|slot| (number, slot)))
        else {
            return Probe(None);
        };
        let (number, slot) = slot;
        prefetch(slot);
        prefetch(&slot.halves[key.direction as usize]);
        Probe(Some(number))
    }

    /// The session of a key, if it lies where the probe said.
    #[inline]
    pub fn confirm(&self, probe: Probe, key: &Key) -> Option<SessionRef<'_>> {
        self.shard(key.hash).session(probe.0?, key)
    }

    /// The session of a key.
    #[inline]
    pub fn find(&self, key: &Key) -> Option<SessionRef<'_>> {
        let shard = self.shard(key.hash);
        shard
            .index
            .candidates(key.hash)
            .find_map(|number| shard.session(number, key))
    }

    /// Makes a session, or gives back the one that another worker has just made.
    ///
    /// # Errors
    /// No room, and nothing gives way; or a budget is spent.
    pub fn insert(&self, key: &Key, new: &NewSession) -> Result<SessionRef<'_>, InsertError> {
        let shard = self.shard(key.hash);
        let mut writer = shard.lock();
        if let Some(found) = self.find(key) {
            if let Some((stamp, order)) = &new.order {
                found.keep(*stamp, order);
            }
            return Ok(found);
        }
        let budgets = [
            (
                &self.per_port,
                usize::from(new.port),
                self.limits.per_port,
                InsertError::PortBudget,
            ),
            (
                &self.per_vpc,
                new.vpc as usize,
                self.limits.per_vpc,
                InsertError::VpcBudget,
            ),
        ];
        for (counts, index, limit, error) in budgets {
            if counts
                .get(index)
                .is_some_and(|count| count.load(Ordering::Relaxed) >= limit)
            {
                writer.counts.refused += 1;
                return Err(error);
            }
        }
        let Some((number, place)) = self.make_room(shard, &mut writer, key.hash) else {
            writer.counts.refused += 1;
            return Err(InsertError::Full);
        };
        let slot = &shard.slots[number as usize];
        // The version is even since the slot was freed; nothing written below may be seen before that.
        fence(Ordering::Release);
        slot.set_words(&key.words);
        slot.set_state(new.state, key.direction);
        slot.last_seen.store(new.now, Ordering::Relaxed);
        slot.created.store(new.now, Ordering::Relaxed);
        slot.port.store(u32::from(new.port), Ordering::Relaxed);
        slot.vpc.store(new.vpc, Ordering::Relaxed);
        let opener = key.direction as usize;
        slot.halves[opener].clear(new.tcp.0);
        slot.halves[1 - opener].clear(new.tcp.1);
        if let Some((stamp, order)) = &new.order {
            slot.halves[opener].set(*stamp, order);
        }
        let version = slot.turn();
        shard.index.put(place, key.hash, number);
        if new.state.gives_way() {
            writer.remember(number, version);
        }
        self.charge(new.port, new.vpc, 1);
        writer.counts.live += 1;
        writer.counts.installed += 1;
        Ok(SessionRef {
            shard,
            slot,
            number,
            version,
            direction: key.direction,
        })
    }

    /// A free slot and an empty index entry for the hash; the newest half-open session gives way if there is none.
    fn make_room(&self, shard: &Shard, writer: &mut Writer, hash: u64) -> Option<(u32, Place)> {
        let gives_way = |number: &u32| shard.slots[*number as usize].state().0.gives_way();
        if shard.index.room(hash).is_none() {
            // Both buckets are full: only one of their own can make room.
            let newest = shard
                .index
                .neighbours(hash)
                .filter(gives_way)
                .max_by_key(|number| {
                    shard.slots[*number as usize]
                        .created
                        .load(Ordering::Relaxed)
                })?;
            self.release(shard, writer, newest);
            writer.counts.evicted += 1;
        }
        let used = shard.used.load(Ordering::Relaxed);
        if writer.free.is_empty() && used as usize == shard.slots.len() {
            loop {
                let (number, version) = writer.candidates.pop_back()?;
                if shard.slots[number as usize].version.load(Ordering::Relaxed) == version
                    && gives_way(&number)
                {
                    self.release(shard, writer, number);
                    writer.counts.evicted += 1;
                    break;
                }
            }
        }
        let place = shard.index.room(hash)?;
        let number = writer.free.pop().unwrap_or_else(|| {
            // Nothing was ever here: the first write takes the memory.
            shard.used.store(used + 1, Ordering::Relaxed);
            used
        });
        Some((number, place))
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

    /// Takes a live session out. The shard's lock is held.
    fn release(&self, shard: &Shard, writer: &mut Writer, number: u32) {
        let slot = &shard.slots[number as usize];
        let (flow, vni) = Key::flow(&slot.words(), Direction::Up);
        shard
            .index
            .take(Key::new(&self.seeds, &flow, vni).hash, number);
        slot.turn();
        slot.halves.iter().for_each(Half::revoke);
        self.charge(
            slot.port.load(Ordering::Relaxed) as u16,
            slot.vpc.load(Ordering::Relaxed),
            -1,
        );
        writer.free.push(number);
        writer.counts.live -= 1;
    }

    /// Removes a session if it is still there.
    pub fn remove(&self, session: &SessionRef<'_>) {
        let mut writer = session.shard.lock();
        if session.is_live() {
            self.release(session.shard, &mut writer, session.number);
        }
    }

    /// Removes every session charged to a port.
    pub fn remove_port(&self, port: u16) {
        self.remove_where(
            |slot| slot.port.load(Ordering::Relaxed) == u32::from(port),
            0..usize::MAX,
            |_| {},
        );
    }

    /// Removes every session with one of these addresses, each with its VNI, at either end.
    pub fn remove_addresses(&self, addresses: &HashSet<(u32, u128)>) {
        if addresses.is_empty() {
            return;
        }
        self.remove_where(
            |slot| {
                let (flow, vni) = Key::flow(&slot.words(), Direction::Up);
                [flow.source, flow.destination]
                    .iter()
                    .any(|address| addresses.contains(&(vni, *address)))
            },
            0..usize::MAX,
            |_| {},
        );
    }

    /// Looks at `count` slots from `cursor` on and removes those that have idled too long; answers where to go on.
    pub fn sweep(&self, cursor: usize, count: usize, now: u32, timeouts: &Timeouts) -> usize {
        let expired = |slot: &Slot, now: u32| {
            let idle = now.wrapping_sub(slot.last_seen.load(Ordering::Relaxed));
            // A time stamp taken by a faster worker lies ahead of ours.
            idle < u32::MAX / 2 && idle >= timeouts.of(slot.state().0)
        };
        let total = self
            .shards
            .iter()
            .map(|shard| shard.slots.len())
            .sum::<usize>();
        let cursor = if cursor >= total { 0 } else { cursor };
        self.remove_where(
            |slot| expired(slot, now),
            cursor..cursor + count,
            |counts| {
                counts.expired += 1;
            },
        );
        cursor + count
    }

    fn remove_where(
        &self,
        condition: impl Fn(&Slot) -> bool,
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
            let slot = &shard.slots[position % per_shard];
            if slot.is_live() && condition(slot) {
                let mut writer = shard.lock();
                if slot.is_live() && condition(slot) {
                    self.release(shard, &mut writer, (position % per_shard) as u32);
                    count(&mut writer.counts);
                }
            }
        }
    }

    /// Up to `limit` sessions that the filter lets through, for people.
    pub fn list(&self, limit: usize, now: u32, keep: impl Fn(u32) -> bool) -> Vec<SessionView> {
        let mut views = Vec::new();
        for shard in &self.shards {
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
    fn lock(&self) -> MutexGuard<'_, Writer> {
        // A writer that panicked left at worst a slot unused: the table stays usable.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session of a key, if it lives in that slot.
    #[inline]
    fn session(&self, number: u32, key: &Key) -> Option<SessionRef<'_>> {
        let slot = self.slots.get(number as usize)?;
        let version = slot.version_of(&key.words)?;
        Some(SessionRef {
            shard: self,
            slot,
            number,
            version,
            direction: key.direction,
        })
    }

    fn view(&self, number: u32, now: u32) -> Option<SessionView> {
        let slot = &self.slots[number as usize];
        let version = slot.version.load(Ordering::Acquire);
        if version & 1 == 0 {
            return None;
        }
        let (state, opener) = slot.state();
        let (flow, vni) = Key::flow(&slot.words(), opener);
        let (out, back) = (
            &slot.halves[opener as usize],
            &slot.halves[opener.opposite() as usize],
        );
        let (decided_out, decided_back) = (out.view(), back.view());
        let view = SessionView {
            vni,
            flow,
            state,
            epoch: decided_out.map_or(0, |(epoch, _)| epoch),
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
    fn half(&self) -> &Half {
        &self.slot.halves[self.direction as usize]
    }

    /// Whether the session is still the one that was found.
    #[inline]
    pub fn is_live(&self) -> bool {
        self.slot.version.load(Ordering::Acquire) == self.version
    }

    /// What was decided for packets of this direction under this stamp; one compare when it still holds.
    #[inline]
    pub fn order(&self, stamp: Stamp) -> Option<Order> {
        self.half().order(stamp).filter(|_| self.is_live())
    }

    /// The same for packets that come in elsewhere than those that the session's own order is for.
    #[inline(never)]
    pub fn second_order(&self, stamp: Stamp) -> Option<Order> {
        let order = self.shard.second_orders.find(self.owner(), stamp);
        order.filter(|_| self.is_live())
    }

    /// Tells the session and the direction from all others that were, are or will be in the shard.
    fn owner(&self) -> Owner {
        Owner::new(self.number, self.version, self.direction)
    }

    /// Keeps an order, beside one of the same epoch for another ingress. The shard's lock is held.
    fn keep(&self, stamp: Stamp, order: &Order) {
        let half = self.half();
        if half.is_for_another_ingress(stamp) {
            self.shard.second_orders.set(self.owner(), stamp, order);
        } else {
            half.set(stamp, order);
        }
    }

    /// Records what was decided for this direction.
    pub fn set_action(&self, stamp: Stamp, action: &Action) {
        let _writer = self.shard.lock();
        if self.is_live() {
            self.keep(stamp, &Order::from(action));
        }
    }

    /// The session's state.
    #[inline]
    pub fn state(&self) -> State {
        self.slot.state().0
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
        self.half().count();
    }

    /// Moves the session to another state, in which the receiver of this packet is the opener. What was decided for it is withdrawn, since the
    /// groups saw it the other way round, and this reference finds nothing any more.
    pub fn turn(&self, state: State) {
        let mut writer = self.shard.lock();
        if !self.is_live() {
            return;
        }
        self.slot.halves.iter().for_each(Half::revoke);
        self.slot.set_state(state, self.direction.opposite());
        // Second orders go by the version.
        let version = self.slot.renew();
        if state.gives_way() {
            writer.remember(self.number, version);
        }
    }

    /// TCP windows: of this packet's sender, and of its receiver. Without the numbers that they offer.
    #[inline]
    pub fn tcp(&self) -> (Side, Side) {
        (
            self.half().side(),
            self.slot.halves[self.direction.opposite() as usize].side(),
        )
    }

    /// Keeps what a segment has shown.
    #[inline]
    pub fn set_tcp(&self, sender: Side, receiver: Side) {
        self.half().store_side(sender);
        self.slot.halves[self.direction.opposite() as usize].store_side(receiver);
    }

    /// The same with the numbers that they offer.
    #[inline]
    pub fn whole_tcp(&self) -> (Side, Side) {
        (
            self.half().whole_side(),
            self.slot.halves[self.direction.opposite() as usize].whole_side(),
        )
    }

    /// Keeps what a segment has shown, with the numbers that are offered.
    #[inline]
    pub fn set_whole_tcp(&self, sender: Side, receiver: Side) {
        self.half().store_whole_side(sender);
        self.slot.halves[self.direction.opposite() as usize].store_whole_side(receiver);
    }
}

#[cfg(all(test, feature = "loom"))]
mod threads;

#[cfg(test)]
mod tests;
