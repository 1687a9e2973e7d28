//! The session table: one for all workers, of fixed size, read without locks.
//!
//! A session is one slot of 192 bytes: a line for key and state, and a line per direction. An index of 64-byte buckets, eight
//! entries each, finds it; a key has two buckets to lie in. Everything is made of atomics, so that this file needs no unsafe code but a
//! prefetch hint: a reader that races with a writer sees a version that has moved and takes the slow path, which is always right.
//!
//! Readers never wait. Writers (install, remove, change of an action) lock one of [`SHARDS`] shards. Cost per session: 192 bytes, and
//! 16 to 32 of index.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::key::{Direction, Key, Seeds};
use super::tcp::Side;
use super::{State, Timeouts};
use crate::packet::{Flow, Mac};

/// Shards that writers lock, each with its own index and slots.
pub const SHARDS: usize = 16;
const ENTRIES: usize = 8;
/// So many of the newest half-open sessions are remembered, per shard, as candidates to give way.
const CANDIDATES: usize = 1024;

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

/// Where a packet came in: a port, or a tunnel from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ingress {
    /// A port of this host, by index.
    Port(u16),
    /// A tunnel, by the index of its peer.
    Peer(u16),
}

impl Ingress {
    fn word(self) -> u32 {
        match self {
            Self::Port(index) => u32::from(index),
            Self::Peer(index) => 1 << 31 | u32::from(index),
        }
    }
}

/// Where a packet goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Egress {
    /// A port of this host, by index.
    Port(u16),
    /// A tunnel to the peer of this index.
    Peer(u16),
}

/// What was decided for one direction of a session: valid for packets with these MACs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    /// Destination MAC that the packet must carry.
    pub eth_dst: Mac,
    /// Source MAC that the packet must carry.
    pub eth_src: Mac,
    /// Where it goes.
    pub egress: Egress,
    /// New destination and source MAC when the packet is routed; its TTL is then decremented too.
    pub rewrite: Option<(Mac, Mac)>,
}

const FLAG_PEER: u64 = 1 << 48;
const FLAG_REWRITE: u64 = 1 << 49;

/// One direction: a cache line.
#[repr(C, align(64))]
#[derive(Debug, Default)]
struct Half {
    /// Generation that decided, and the ingress that it decided for; 0 while nothing is decided or the fields are being written.
    stamp: AtomicU64,
    /// Expected destination MAC, and flags above it.
    eth_dst: AtomicU64,
    /// Expected source MAC, and the egress index above it.
    eth_src: AtomicU64,
    new_dst: AtomicU64,
    new_src: AtomicU64,
    tcp: [AtomicU64; 2],
    packets: AtomicU64,
}

/// Key and state: a cache line; then a line per direction.
#[repr(C, align(64))]
#[derive(Debug)]
struct Slot {
    key: [AtomicU64; 5],
    /// Even while a session lives here, odd while none does; moves with every install and removal.
    version: AtomicU32,
    last_seen: AtomicU32,
    /// State in the low byte, direction of the opener in bit 8.
    state: AtomicU32,
    /// Port that the session is charged to.
    port: AtomicU32,
    vpc: AtomicU32,
    created: AtomicU32,
    halves: [Half; 2],
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            key: Default::default(),
            version: AtomicU32::new(1),
            last_seen: AtomicU32::default(),
            state: AtomicU32::default(),
            port: AtomicU32::default(),
            vpc: AtomicU32::default(),
            created: AtomicU32::default(),
            halves: Default::default(),
        }
    }
}

/// Tag of the hash above, slot number plus one below; 0 is empty.
#[repr(C, align(64))]
#[derive(Debug, Default)]
struct Bucket([AtomicU64; ENTRIES]);

#[derive(Debug)]
struct Shard {
    slots: Box<[Slot]>,
    buckets: Box<[Bucket]>,
    writer: Mutex<Writer>,
}

#[derive(Debug)]
struct Writer {
    free: Vec<u32>,
    candidates: std::collections::VecDeque<(u32, u32)>,
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

#[derive(Debug, Default)]
struct Counters {
    live: AtomicU64,
    installed: AtomicU64,
    expired: AtomicU64,
    evicted: AtomicU64,
    refused: AtomicU64,
}

/// All sessions of the host.
#[derive(Debug)]
pub struct SessionTable {
    shards: Box<[Shard]>,
    seeds: Seeds,
    limits: Limits,
    per_port: Box<[AtomicU32]>,
    per_vpc: Box<[AtomicU32]>,
    counters: Counters,
}

/// A session that was found, and the direction of the packet that found it. Stays safe to use when the session goes: reads then fail.
#[derive(Debug, Clone, Copy)]
pub struct SessionRef<'t> {
    shard: &'t Shard,
    slot: u32,
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
}

/// A session as shown to people.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct SessionView {
    pub vni: u32,
    pub flow: Flow,
    pub state: State,
    pub generation: u32,
    pub idle_ms: u32,
    pub packets_out: u64,
    pub packets_back: u64,
    pub action_out: Option<Action>,
    pub action_back: Option<Action>,
}

impl SessionTable {
    /// An empty table; all its memory is taken here.
    pub fn new(limits: Limits) -> Self {
        let per_shard = (limits.capacity as usize).div_ceil(SHARDS).max(8);
        let buckets = (per_shard / 4).next_power_of_two();
        let shard = || Shard {
            slots: (0..per_shard).map(|_| Slot::default()).collect(),
            buckets: (0..buckets).map(|_| Bucket::default()).collect(),
            writer: Mutex::new(Writer {
                free: (0..per_shard as u32).rev().collect(),
                candidates: std::collections::VecDeque::with_capacity(CANDIDATES),
            }),
        };
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            seeds: Seeds::random(),
            limits,
            per_port: (0..limits.ports).map(|_| AtomicU32::new(0)).collect(),
            per_vpc: (0..limits.vpcs).map(|_| AtomicU32::new(0)).collect(),
            counters: Counters::default(),
        }
    }

    /// The seeds for keys of this table.
    pub fn seeds(&self) -> &Seeds {
        &self.seeds
    }

    /// Counts so far.
    pub fn statistics(&self) -> TableStatistics {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TableStatistics {
            live: load(&self.counters.live),
            capacity: self
                .shards
                .iter()
                .map(|shard| shard.slots.len() as u64)
                .sum(),
            installed: load(&self.counters.installed),
            expired: load(&self.counters.expired),
            evicted: load(&self.counters.evicted),
            refused: load(&self.counters.refused),
        }
    }

    #[inline]
    fn shard(&self, hash: u64) -> &Shard {
        &self.shards[(hash >> 60) as usize]
    }

    /// Brings the index line of a key towards the cache, ahead of [`Self::find`].
    #[inline]
    pub fn prefetch(&self, key: &Key) {
        let shard = self.shard(key.hash);
        prefetch(&shard.buckets[shard.first_bucket(key.hash)]);
    }

    /// The session of a key.
    #[inline]
    pub fn find(&self, key: &Key) -> Option<SessionRef<'_>> {
        let shard = self.shard(key.hash);
        let tag = tag(key.hash);
        let first = shard.first_bucket(key.hash);
        shard
            .search(first, tag, key)
            .or_else(|| shard.search(shard.second_bucket(key.hash), tag, key))
    }

    /// Makes a session, or gives back the one that another worker has just made.
    ///
    /// # Errors
    /// No room, and nothing gives way; or a budget is spent.
    pub fn insert(&self, key: &Key, new: &NewSession) -> Result<SessionRef<'_>, InsertError> {
        let shard = self.shard(key.hash);
        let mut writer = shard.lock();
        if let Some(found) = self.find(key) {
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
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                return Err(error);
            }
        }
        let Some(place) = self.make_room(shard, &mut writer, key.hash) else {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            return Err(InsertError::Full);
        };
        let (number, entry) = place;
        let slot = &shard.slots[number as usize];
        // The version is odd since the slot was freed; nothing written below may be seen before that.
        fence(Ordering::Release);
        for (word, value) in slot.key.iter().zip(key.words) {
            word.store(value, Ordering::Relaxed);
        }
        let opener = key.direction as usize;
        slot.state
            .store(new.state as u32 | (opener as u32) << 8, Ordering::Relaxed);
        slot.last_seen.store(new.now, Ordering::Relaxed);
        slot.created.store(new.now, Ordering::Relaxed);
        slot.port.store(u32::from(new.port), Ordering::Relaxed);
        slot.vpc.store(new.vpc, Ordering::Relaxed);
        for (half, side) in [(opener, new.tcp.0), (1 - opener, new.tcp.1)] {
            let half = &slot.halves[half];
            half.stamp.store(0, Ordering::Relaxed);
            half.packets.store(0, Ordering::Relaxed);
            half.store_side(side);
        }
        let version = slot.version.load(Ordering::Relaxed).wrapping_add(1);
        slot.version.store(version, Ordering::Release);
        entry.store(
            u64::from(tag(key.hash)) << 48 | u64::from(number + 1),
            Ordering::Release,
        );
        if new.state.gives_way() {
            if writer.candidates.len() == CANDIDATES {
                writer.candidates.pop_front();
            }
            writer.candidates.push_back((number, version));
        }
        self.charge(new.port, new.vpc, 1);
        self.counters.live.fetch_add(1, Ordering::Relaxed);
        self.counters.installed.fetch_add(1, Ordering::Relaxed);
        Ok(SessionRef {
            shard,
            slot: number,
            version,
            direction: key.direction,
        })
    }

    /// A free slot and an empty index entry for the hash; the newest half-open session gives way if there is none.
    fn make_room<'s>(
        &self,
        shard: &'s Shard,
        writer: &mut Writer,
        hash: u64,
    ) -> Option<(u32, &'s AtomicU64)> {
        let buckets = [shard.first_bucket(hash), shard.second_bucket(hash)];
        if !buckets
            .iter()
            .any(|bucket| shard.empty_entry(*bucket).is_some())
        {
            // Both buckets are full: only one of their own can make room.
            let gives_way = |entry: &&AtomicU64| {
                let slot = &shard.slots[(entry.load(Ordering::Relaxed) as u32 - 1) as usize];
                slot.state().0.gives_way()
            };
            let entry = buckets
                .iter()
                .flat_map(|bucket| &shard.buckets[*bucket].0)
                .filter(gives_way);
            let newest = entry.max_by_key(|entry| {
                shard.slots[(entry.load(Ordering::Relaxed) as u32 - 1) as usize]
                    .created
                    .load(Ordering::Relaxed)
            })?;
            self.release(shard, writer, newest.load(Ordering::Relaxed) as u32 - 1);
            self.counters.evicted.fetch_add(1, Ordering::Relaxed);
        }
        if writer.free.is_empty() {
            loop {
                let (number, version) = writer.candidates.pop_back()?;
                let slot = &shard.slots[number as usize];
                if slot.version.load(Ordering::Relaxed) == version && slot.state().0.gives_way() {
                    self.release(shard, writer, number);
                    self.counters.evicted.fetch_add(1, Ordering::Relaxed);
                    break;
                }
            }
        }
        let entry = buckets
            .iter()
            .find_map(|bucket| shard.empty_entry(*bucket))?;
        Some((writer.free.pop()?, entry))
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
        let words = slot.words();
        let (flow, vni) = Key::flow(&words, Direction::Up);
        let hash = Key::new(&self.seeds, &flow, vni).hash;
        for bucket in [shard.first_bucket(hash), shard.second_bucket(hash)] {
            for entry in &shard.buckets[bucket].0 {
                if entry.load(Ordering::Relaxed) as u32 == number + 1 {
                    entry.store(0, Ordering::Relaxed);
                }
            }
        }
        slot.version.store(
            slot.version.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Release,
        );
        for half in &slot.halves {
            half.stamp.store(0, Ordering::Relaxed);
        }
        self.charge(
            slot.port.load(Ordering::Relaxed) as u16,
            slot.vpc.load(Ordering::Relaxed),
            -1,
        );
        writer.free.push(number);
        self.counters.live.fetch_sub(1, Ordering::Relaxed);
    }

    /// Removes a session if it is still there.
    pub fn remove(&self, session: &SessionRef<'_>) {
        let mut writer = session.shard.lock();
        if session.is_live() {
            self.release(session.shard, &mut writer, session.slot);
        }
    }

    /// Removes every session charged to a port.
    pub fn remove_port(&self, port: u16) {
        self.remove_where(
            |slot| slot.port.load(Ordering::Relaxed) == u32::from(port),
            0..usize::MAX,
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
        let removed = self.remove_where(|slot| expired(slot, now), cursor..cursor + count);
        self.counters.expired.fetch_add(removed, Ordering::Relaxed);
        cursor + count
    }

    fn remove_where(
        &self,
        condition: impl Fn(&Slot) -> bool,
        range: std::ops::Range<usize>,
    ) -> u64 {
        let mut removed = 0;
        let per_shard = self.shards[0].slots.len();
        let end = range.end.min(per_shard * SHARDS);
        for position in range.start..end {
            let shard = &self.shards[position / per_shard];
            let slot = &shard.slots[position % per_shard];
            if slot.version.load(Ordering::Acquire) & 1 == 0 && condition(slot) {
                let mut writer = shard.lock();
                if slot.version.load(Ordering::Acquire) & 1 == 0 && condition(slot) {
                    self.release(shard, &mut writer, (position % per_shard) as u32);
                    removed += 1;
                }
            }
        }
        removed
    }

    /// Up to `limit` sessions that the filter lets through, for people.
    pub fn list(&self, limit: usize, now: u32, keep: impl Fn(u32) -> bool) -> Vec<SessionView> {
        let mut views = Vec::new();
        for shard in &self.shards {
            for number in 0..shard.slots.len() {
                if views.len() == limit {
                    return views;
                }
                views.extend(shard.view(number as u32, now).filter(|view| keep(view.vni)));
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

    #[inline]
    fn first_bucket(&self, hash: u64) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }

    #[inline]
    fn second_bucket(&self, hash: u64) -> usize {
        (hash >> 22) as usize & (self.buckets.len() - 1)
    }

    #[inline]
    fn search(&self, bucket: usize, tag: u16, key: &Key) -> Option<SessionRef<'_>> {
        for entry in &self.buckets[bucket].0 {
            let entry = entry.load(Ordering::Acquire);
            if (entry >> 48) as u16 == tag && entry as u32 != 0 {
                let number = entry as u32 - 1;
                let slot = self.slots.get(number as usize)?;
                let version = slot.version.load(Ordering::Acquire);
                let same = slot
                    .key
                    .iter()
                    .zip(key.words)
                    .all(|(word, value)| word.load(Ordering::Relaxed) == value);
                fence(Ordering::Acquire);
                if same && version & 1 == 0 && slot.version.load(Ordering::Relaxed) == version {
                    return Some(SessionRef {
                        shard: self,
                        slot: number,
                        version,
                        direction: key.direction,
                    });
                }
            }
        }
        None
    }

    fn empty_entry(&self, bucket: usize) -> Option<&AtomicU64> {
        self.buckets[bucket]
            .0
            .iter()
            .find(|entry| entry.load(Ordering::Relaxed) == 0)
    }

    fn view(&self, number: u32, now: u32) -> Option<SessionView> {
        let slot = &self.slots[number as usize];
        let version = slot.version.load(Ordering::Acquire);
        if version & 1 == 1 {
            return None;
        }
        let (state, opener) = slot.state();
        let (flow, vni) = Key::flow(&slot.words(), opener);
        let (out, back) = (
            &slot.halves[opener as usize],
            &slot.halves[opener.opposite() as usize],
        );
        let view = SessionView {
            vni,
            flow,
            state,
            generation: (out.stamp.load(Ordering::Relaxed) >> 32) as u32,
            idle_ms: now.wrapping_sub(slot.last_seen.load(Ordering::Relaxed)),
            packets_out: out.packets.load(Ordering::Relaxed),
            packets_back: back.packets.load(Ordering::Relaxed),
            action_out: out.load(out.stamp.load(Ordering::Acquire)),
            action_back: back.load(back.stamp.load(Ordering::Acquire)),
        };
        fence(Ordering::Acquire);
        (slot.version.load(Ordering::Relaxed) == version).then_some(view)
    }
}

impl Slot {
    fn words(&self) -> [u64; 5] {
        std::array::from_fn(|i| self.key[i].load(Ordering::Relaxed))
    }

    fn state(&self) -> (State, Direction) {
        let word = self.state.load(Ordering::Relaxed);
        let opener = if word & 0x100 == 0 {
            Direction::Up
        } else {
            Direction::Down
        };
        (
            State::ALL[(word as usize & 0xff).min(State::ALL.len() - 1)],
            opener,
        )
    }
}

impl Half {
    #[inline]
    fn load(&self, stamp: u64) -> Option<Action> {
        if stamp == 0 {
            return None;
        }
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let (eth_dst, eth_src) = (load(&self.eth_dst), load(&self.eth_src));
        let index = (eth_src >> 48) as u16;
        let action = Action {
            eth_dst: Mac::from_word(eth_dst),
            eth_src: Mac::from_word(eth_src),
            egress: if eth_dst & FLAG_PEER != 0 {
                Egress::Peer(index)
            } else {
                Egress::Port(index)
            },
            rewrite: (eth_dst & FLAG_REWRITE != 0).then(|| {
                (
                    Mac::from_word(load(&self.new_dst)),
                    Mac::from_word(load(&self.new_src)),
                )
            }),
        };
        fence(Ordering::Acquire);
        (self.stamp.load(Ordering::Relaxed) == stamp).then_some(action)
    }

    fn store_side(&self, side: Side) {
        for (word, value) in self.tcp.iter().zip(side.pack()) {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn side(&self) -> Side {
        Side::unpack([
            self.tcp[0].load(Ordering::Relaxed),
            self.tcp[1].load(Ordering::Relaxed),
        ])
    }
}

impl SessionRef<'_> {
    fn slot(&self) -> &Slot {
        &self.shard.slots[self.slot as usize]
    }

    fn half(&self) -> &Half {
        &self.slot().halves[self.direction as usize]
    }

    /// Whether the session is still the one that was found.
    pub fn is_live(&self) -> bool {
        self.slot().version.load(Ordering::Acquire) == self.version
    }

    /// What was decided for packets of this direction from this ingress in this generation; one compare when it still holds.
    #[inline]
    pub fn action(&self, generation: u32, ingress: Ingress) -> Option<Action> {
        let half = self.half();
        let stamp = u64::from(generation) << 32 | u64::from(ingress.word());
        if half.stamp.load(Ordering::Acquire) != stamp {
            return None;
        }
        half.load(stamp).filter(|_| self.is_live())
    }

    /// Records what was decided for this direction.
    pub fn set_action(&self, generation: u32, ingress: Ingress, action: &Action) {
        let _writer = self.shard.lock();
        if !self.is_live() {
            return;
        }
        let half = self.half();
        half.stamp.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        let (flag, index) = match action.egress {
            Egress::Port(index) => (0, index),
            Egress::Peer(index) => (FLAG_PEER, index),
        };
        let (rewrite, (new_dst, new_src)) = action
            .rewrite
            .map_or((0, (Mac::default(), Mac::default())), |macs| {
                (FLAG_REWRITE, macs)
            });
        half.eth_dst
            .store(action.eth_dst.word() | flag | rewrite, Ordering::Relaxed);
        half.eth_src.store(
            action.eth_src.word() | u64::from(index) << 48,
            Ordering::Relaxed,
        );
        half.new_dst.store(new_dst.word(), Ordering::Relaxed);
        half.new_src.store(new_src.word(), Ordering::Relaxed);
        half.stamp.store(
            u64::from(generation) << 32 | u64::from(ingress.word()),
            Ordering::Release,
        );
    }

    /// The session's state.
    #[inline]
    pub fn state(&self) -> State {
        self.slot().state().0
    }

    /// Moves the session to another state.
    #[inline]
    pub fn set_state(&self, state: State) {
        let word = &self.slot().state;
        let opener = word.load(Ordering::Relaxed) & 0x100;
        word.store(state as u32 | opener, Ordering::Relaxed);
    }

    /// Whether the packet goes the way of the one that opened the session.
    #[inline]
    pub fn from_origin(&self) -> bool {
        self.slot().state().1 == self.direction
    }

    /// Notes a packet of this direction.
    #[inline]
    pub fn touch(&self, now: u32) {
        let slot = self.slot();
        if slot.last_seen.load(Ordering::Relaxed) != now {
            slot.last_seen.store(now, Ordering::Relaxed);
        }
        // One worker at a time sends a direction: a load and a store will do, and cost no bus lock.
        let packets = &slot.halves[self.direction as usize].packets;
        packets.store(
            packets.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
    }

    /// TCP windows: of this packet's sender, and of its receiver.
    #[inline]
    pub fn tcp(&self) -> (Side, Side) {
        (
            self.half().side(),
            self.slot().halves[self.direction.opposite() as usize].side(),
        )
    }

    /// Keeps what a segment has shown.
    #[inline]
    pub fn set_tcp(&self, sender: Side, receiver: Side) {
        self.half().store_side(sender);
        self.slot().halves[self.direction.opposite() as usize].store_side(receiver);
    }
}

fn tag(hash: u64) -> u16 {
    (hash >> 44) as u16
}

/// A hint to bring a cache line in; does nothing where there is no such instruction.
#[inline]
#[allow(unsafe_code)]
fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHT0 never faults and changes nothing but caches; the address is that of a live reference besides.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
            std::ptr::from_ref(place).cast(),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(capacity: u32) -> SessionTable {
        SessionTable::new(Limits {
            capacity,
            per_port: 1_000_000,
            per_vpc: 1_000_000,
            ports: 4,
            vpcs: 4,
        })
    }

    fn flow(number: u32) -> Flow {
        Flow {
            source: 0xffff_0a00_0001,
            destination: 0xffff_0a00_0002,
            source_port: number as u16,
            destination_port: (number >> 16) as u16,
            protocol: 17,
        }
    }

    fn new(state: State, now: u32) -> NewSession {
        NewSession {
            state,
            port: 1,
            vpc: 1,
            now,
            tcp: Default::default(),
        }
    }

    fn action(egress: Egress) -> Action {
        Action {
            eth_dst: Mac::ROUTER,
            eth_src: Mac::from_word(7),
            egress,
            rewrite: Some((Mac::from_word(8), Mac::ROUTER)),
        }
    }

    #[test]
    fn both_directions_find_one_session_each_with_its_own_action() {
        let table = table(1000);
        let there = Key::new(table.seeds(), &flow(1), 5);
        let back = Key::new(table.seeds(), &flow(1).reversed(), 5);
        table
            .insert(&there, &new(State::OneWay, 0))
            .unwrap()
            .set_action(3, Ingress::Port(1), &action(Egress::Peer(9)));
        let found = table.find(&there).unwrap();
        assert_eq!(
            found.action(3, Ingress::Port(1)),
            Some(action(Egress::Peer(9)))
        );
        assert_eq!(
            found.action(4, Ingress::Port(1)),
            None,
            "another generation"
        );
        assert_eq!(found.action(3, Ingress::Port(2)), None, "another ingress");
        assert!(found.from_origin());
        let answer = table.find(&back).unwrap();
        assert!(!answer.from_origin());
        assert_eq!(answer.action(3, Ingress::Peer(9)), None);
        assert!(
            table.find(&Key::new(table.seeds(), &flow(1), 6)).is_none(),
            "another VPC"
        );
        table.remove(&answer);
        assert!(table.find(&there).is_none());
        assert_eq!(
            found.action(3, Ingress::Port(1)),
            None,
            "a reference outlives its session harmlessly"
        );
        assert_eq!(table.statistics().live, 0);
    }

    #[test]
    fn established_sessions_stay_when_half_open_ones_fill_the_table() {
        let table = table(512);
        let mut kept = Vec::new();
        for number in 0..100 {
            let key = Key::new(table.seeds(), &flow(number), 1);
            table
                .insert(&key, &new(State::OneWay, 0))
                .unwrap()
                .set_state(State::BothWays);
            kept.push(key);
        }
        for number in 100..20_000 {
            let _ = table.insert(
                &Key::new(table.seeds(), &flow(number), 1),
                &new(State::OneWay, number),
            );
        }
        assert!(kept.iter().all(|key| table.find(key).is_some()));
        let statistics = table.statistics();
        assert!(statistics.evicted > 10_000, "{statistics:?}");
        assert!(statistics.live <= statistics.capacity);
    }

    #[test]
    fn budgets_hold_and_are_given_back() {
        let table = SessionTable::new(Limits {
            capacity: 1000,
            per_port: 10,
            per_vpc: 1000,
            ports: 4,
            vpcs: 4,
        });
        for number in 0..10 {
            table
                .insert(
                    &Key::new(table.seeds(), &flow(number), 1),
                    &new(State::OneWay, 0),
                )
                .unwrap();
        }
        let more = Key::new(table.seeds(), &flow(10), 1);
        assert_eq!(
            table.insert(&more, &new(State::OneWay, 0)).unwrap_err(),
            InsertError::PortBudget
        );
        table.remove_port(1);
        assert_eq!(table.statistics().live, 0);
        assert!(table.insert(&more, &new(State::OneWay, 0)).is_ok());
    }

    #[test]
    fn idle_sessions_expire_by_their_state() {
        let table = table(64);
        let timeouts = Timeouts::default();
        table
            .insert(
                &Key::new(table.seeds(), &flow(1), 1),
                &new(State::OneWay, 0),
            )
            .unwrap();
        table
            .insert(
                &Key::new(table.seeds(), &flow(2), 1),
                &new(State::TcpEstablished, 0),
            )
            .unwrap();
        let capacity = table.statistics().capacity as usize;
        table.sweep(0, capacity, timeouts.of(State::OneWay) - 1, &timeouts);
        assert_eq!(table.statistics().live, 2);
        table.sweep(0, capacity, timeouts.of(State::OneWay), &timeouts);
        assert_eq!(table.statistics().live, 1);
        assert_eq!(table.statistics().expired, 1);
    }

    #[test]
    fn readers_and_writers_race_without_mixing_sessions_up() {
        let table = table(4096);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for worker in 0..2u32 {
                let (table, stop) = (&table, &stop);
                scope.spawn(move || {
                    for round in 0..60_000u32 {
                        let key = Key::new(table.seeds(), &flow(round * 2 % 6000 + worker), 1);
                        if let Ok(session) = table.insert(&key, &new(State::OneWay, round)) {
                            let mark = key.words[4] >> 48 & 0xfff;
                            let action = Action {
                                egress: Egress::Port(mark as u16),
                                ..action(Egress::Port(0))
                            };
                            session.set_action(1, Ingress::Port(0), &action);
                            if round % 3 == 0 {
                                table.remove(&session);
                            }
                        }
                    }
                    stop.store(true, Ordering::Relaxed);
                });
            }
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for number in 0..6000 {
                        let key = Key::new(table.seeds(), &flow(number), 1);
                        if let Some(action) = table
                            .find(&key)
                            .and_then(|session| session.action(1, Ingress::Port(0)))
                        {
                            assert_eq!(
                                action.egress,
                                Egress::Port((key.words[4] >> 48 & 0xfff) as u16)
                            );
                        }
                    }
                }
            });
        });
        let live = table.list(usize::MAX, 0, |_| true).len() as u64;
        assert_eq!(live, table.statistics().live);
    }
}
