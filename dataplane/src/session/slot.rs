//! One session as it lies in memory: a line for key and state, and a line for each direction.
//!
//! Everything is made of atomics, so that readers need no lock and no unsafe code: a reader that races with a writer sees a version or a
//! stamp that has moved, and takes the slow path, which is always right. All bytes zero is a slot that was never used.

use super::State;
use super::key::Direction;
use super::tcp::Side;
use crate::numbers::Epoch;
use crate::packet::Mac;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Where a packet came in: a port, a tunnel from a peer, or an external network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ingress {
    /// A port of this host, by index.
    Port(u16),
    /// A tunnel, by the index of its peer.
    Peer(u16),
    /// An external network, by index.
    External(u16),
}

/// Where a packet goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Egress {
    /// A port of this host, by index.
    Port(u16),
    /// A tunnel to the peer of this index.
    Peer(u16),
    /// An external network, to the neighbour there of this index.
    External(u16),
    /// The wire of the external network of this index, to whoever has the MAC there.
    Wire(u16),
}

/// By what a decision is known to hold: the epoch of its VPC, the ingress that it was taken for, and the key of the session that the packet has,
/// for the other may be of another VPC. Never 0, for no epoch is. The low bits, 0 here, are where a [`FlowEntry`] counts what was written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp(u64);

/// What the count of actions written takes of a stamp's word.
const WRITE_BITS: u32 = 13;
const WRITES: u64 = 1 << WRITE_BITS;

/// Where the ingress is in a stamp: above the bit for the key.
const INGRESS_AT: u32 = WRITE_BITS + 1;

impl Stamp {
    /// Bits that tell ingresses apart.
    pub(super) fn ingress_bits(self) -> u32 {
        (self.0 >> INGRESS_AT) as u32 & 0x3_ffff
    }

    /// Of an epoch of a VPC ([`Vpc::epoch`](crate::snapshot::Vpc::epoch)) and an ingress.
    #[inline]
    pub fn new(epoch: impl Into<Epoch>, ingress: Ingress) -> Self {
        let ingress = match ingress {
            Ingress::Port(index) => u32::from(index),
            Ingress::Peer(index) => 1 << 16 | u32::from(index),
            Ingress::External(index) => 2 << 16 | u32::from(index),
        };
        Self(u64::from(epoch.into().get()) << 32 | u64::from(ingress) << INGRESS_AT)
    }

    /// The same for packets that have this key of their session.
    #[inline(always)]
    pub(super) fn on(self, side: super::translation::Side) -> Self {
        Self(self.0 | (side as u64) << WRITE_BITS)
    }
}

/// The two MACs at the head of a frame, destination first, as they lie there: two words that compare and store at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MacPair {
    first: u64,
    rest: u32,
}

impl MacPair {
    /// From the twelve bytes on the wire.
    #[inline(always)]
    pub fn read(bytes: &[u8; 12]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
        Self {
            first: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            rest: u32::from_ne_bytes([i, j, k, l]),
        }
    }

    /// The twelve bytes on the wire.
    #[inline(always)]
    pub fn write(self, bytes: &mut [u8; 12]) {
        let (first, rest) = bytes.split_at_mut(8);
        first.copy_from_slice(&self.first.to_ne_bytes());
        rest.copy_from_slice(&self.rest.to_ne_bytes());
    }

    /// Of two MACs.
    pub fn new(destination: Mac, source: Mac) -> Self {
        let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (destination.bytes(), source.bytes());
        Self::read(&[a, b, c, d, e, f, g, h, i, j, k, l])
    }
}

const PEER: u32 = 1 << 16;
const ROUTED: u32 = 1 << 17;
const TRANSLATED: u32 = 1 << 18;
const EXTERNAL: u32 = 1 << 19;
/// Above it are the six bits of the DSCP.
const MARKED: u32 = 1 << 20;
const DSCP_AT: u32 = 21;
/// Both are set of a wire.
const WIRE: u32 = EXTERNAL | PEER;

/// What was decided for packets of one direction of a flow that come in at one place: what a packet must look like, where it goes, and what is
/// changed of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    /// The MACs that the packet must carry.
    pub expected: MacPair,
    /// The MACs that it gets, if it is routed.
    pub new: MacPair,
    /// Index of the egress, and flags above.
    word: u32,
}

impl Action {
    /// For packets with these MACs. One that is routed gets new ones, and its TTL is decremented.
    pub fn new(expected: MacPair, egress: Egress, routed: Option<MacPair>) -> Self {
        let (kind, index) = match egress {
            Egress::Port(index) => (0, index),
            Egress::Peer(index) => (PEER, index),
            Egress::External(index) => (EXTERNAL, index),
            Egress::Wire(index) => (WIRE, index),
        };
        let flag = if routed.is_some() { ROUTED } else { 0 };
        Self {
            expected,
            new: routed.unwrap_or_default(),
            word: u32::from(index) | kind | flag,
        }
    }

    /// The same for packets that get the addresses and ports of their session's other key.
    pub fn translated(self) -> Self {
        Self {
            word: self.word | TRANSLATED,
            ..self
        }
    }

    /// The same for packets that are marked with this DSCP, 0 to 63, where there is one.
    pub fn marked(self, dscp: Option<u8>) -> Self {
        let Some(dscp) = dscp else {
            return self;
        };
        Self {
            word: self.word | MARKED | u32::from(dscp & 0x3f) << DSCP_AT,
            ..self
        }
    }

    /// The DSCP that the packet is marked with, if it is.
    #[inline]
    pub fn mark(&self) -> Option<u8> {
        (self.word & MARKED != 0).then_some((self.word >> DSCP_AT) as u8 & 0x3f)
    }

    /// Whether the packet keeps its addresses, its ports and its DSCP.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.word & (TRANSLATED | MARKED) == 0
    }

    /// Where the packet goes.
    #[inline]
    pub fn egress(&self) -> Egress {
        let index = self.word as u16;
        match self.word & WIRE {
            0 => Egress::Port(index),
            PEER => Egress::Peer(index),
            EXTERNAL => Egress::External(index),
            _ => Egress::Wire(index),
        }
    }

    /// Whether the packet is routed: gets new MACs, and its TTL decremented.
    #[inline]
    pub fn is_routed(&self) -> bool {
        self.word & ROUTED != 0
    }

    /// Whether the packet gets the addresses and ports of its session's other key.
    #[inline]
    pub fn is_translated(&self) -> bool {
        self.word & TRANSLATED != 0
    }
}

/// One direction.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct FlowEntry {
    /// 0 while nothing is decided or the action is being written; else the stamp, and in its low bits how many actions were written. Without
    /// the count, a reader could take half of an action and half of the next one of the same stamp for one: a guest may send one flow to two MACs.
    stamp: AtomicU64,
    expected: AtomicU64,
    new: AtomicU64,
    expected_rest: AtomicU32,
    new_rest: AtomicU32,
    word: AtomicU32,
    /// [`Side::offer`].
    offer: AtomicU32,
    tcp: [AtomicU64; 2],
    packets: AtomicU64,
}

impl FlowEntry {
    /// Nothing decided, nothing counted.
    pub fn clear(&self, side: Side) {
        self.stamp.store(0, Ordering::Relaxed);
        self.packets.store(0, Ordering::Relaxed);
        self.store_whole_side(side);
    }

    /// Withdraws what was decided.
    pub fn revoke(&self) {
        self.stamp.store(0, Ordering::Relaxed);
    }

    /// The action, if it bears the stamp.
    #[inline]
    pub fn action(&self, stamp: Stamp) -> Option<Action> {
        let written = self.stamp.load(Ordering::Acquire);
        if written ^ stamp.0 >= WRITES {
            return None;
        }
        let action = self.read();
        fence(Ordering::Acquire);
        (self.stamp.load(Ordering::Relaxed) == written).then_some(action)
    }

    #[inline]
    fn read(&self) -> Action {
        let (word, rest) = (
            |word: &AtomicU64| word.load(Ordering::Relaxed),
            |rest: &AtomicU32| rest.load(Ordering::Relaxed),
        );
        Action {
            expected: MacPair {
                first: word(&self.expected),
                rest: rest(&self.expected_rest),
            },
            new: MacPair {
                first: word(&self.new),
                rest: rest(&self.new_rest),
            },
            word: rest(&self.word),
        }
    }

    /// The action, if it bears the stamp and is this owner's ([`Self::set_of`]).
    pub fn action_of(&self, owner: u64, stamp: Stamp) -> Option<Action> {
        let written = self.stamp.load(Ordering::Acquire);
        if written ^ stamp.0 >= WRITES {
            return None;
        }
        let (action, whose) = (self.read(), self.packets.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        (self.stamp.load(Ordering::Relaxed) == written && whose == owner).then_some(action)
    }

    /// Whether there is an action of the same epoch for packets that come in elsewhere.
    pub fn is_for_another_ingress(&self, stamp: Stamp) -> bool {
        let written = self.stamp.load(Ordering::Relaxed);
        written != 0 && (written ^ stamp.0) >> 32 == 0 && written ^ stamp.0 >= WRITES
    }

    /// Keeps an action. Writers are serialised by their shard's lock.
    pub fn set(&self, stamp: Stamp, action: &Action) {
        self.write(stamp, action, None);
    }

    /// Keeps an action and whose it is, in the place of the count of packets: of a half that is no session's own.
    pub fn set_of(&self, owner: u64, stamp: Stamp, action: &Action) {
        self.write(stamp, action, Some(owner));
    }

    fn write(&self, stamp: Stamp, action: &Action, owner: Option<u64>) {
        let writes = self.stamp.load(Ordering::Relaxed).wrapping_add(1) % WRITES;
        self.stamp.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        if let Some(owner) = owner {
            self.packets.store(owner, Ordering::Relaxed);
        }
        self.expected
            .store(action.expected.first, Ordering::Relaxed);
        self.expected_rest
            .store(action.expected.rest, Ordering::Relaxed);
        self.new.store(action.new.first, Ordering::Relaxed);
        self.new_rest.store(action.new.rest, Ordering::Relaxed);
        self.word.store(action.word, Ordering::Relaxed);
        self.stamp.store(stamp.0 | writes, Ordering::Release);
    }

    /// Epoch and action, for people; none while nothing is decided.
    pub fn view(&self) -> Option<(Epoch, Action)> {
        let stamp = self.stamp.load(Ordering::Acquire);
        let action = self.action(Stamp(stamp)).filter(|_| stamp != 0)?;
        Some((Epoch::from((stamp >> 32) as u32), action))
    }

    /// Counts a packet. One worker at a time sends a direction: a load and a store will do, and cost no bus lock.
    #[inline]
    pub fn count(&self) {
        self.packets.store(
            self.packets.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
    }

    /// Packets so far.
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    /// Keeps what segments of this side have shown, but for the number that it offers.
    #[inline]
    pub fn store_side(&self, side: Side) {
        for (word, value) in self.tcp.iter().zip(side.pack().0) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Keeps all that segments of this side have shown.
    pub fn store_whole_side(&self, side: Side) {
        self.offer.store(side.offer, Ordering::Relaxed);
        self.store_side(side);
    }

    /// What segments of this side have shown, but for the number that it offers.
    #[inline]
    pub fn side(&self) -> Side {
        let words = [
            self.tcp[0].load(Ordering::Relaxed),
            self.tcp[1].load(Ordering::Relaxed),
        ];
        Side::unpack(words, 0)
    }

    /// All that segments of this side have shown.
    #[inline]
    pub fn whole_side(&self) -> Side {
        let mut side = self.side();
        side.offer = self.offer.load(Ordering::Relaxed);
        side
    }
}

const TWO_KEYS: u32 = 1 << 16;
const CHOSEN: u32 = 1 << 17;

/// Key and state: a cache line; then a line per direction.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Slot {
    key: [AtomicU64; 5],
    /// Odd while a session lives here; moves with every install and removal.
    pub version: AtomicU32,
    /// When its last packet passed, in milliseconds.
    pub last_seen: AtomicU32,
    /// State in the low byte, direction of the opener in bit 8.
    state: AtomicU32,
    /// Port that the session is charged to; above its 16 bits, whether the session has a second key.
    port: AtomicU32,
    /// VPC that the session is charged to.
    pub vpc: AtomicU32,
    /// When it was made, in milliseconds.
    pub created: AtomicU32,
    /// The two directions.
    pub entries: [FlowEntry; 2],
}

#[cfg(not(feature = "loom"))]
const _: () = assert!(size_of::<Slot>() == 192 && size_of::<FlowEntry>() == 64);

impl Slot {
    /// The key's words.
    pub fn words(&self) -> [u64; 5] {
        std::array::from_fn(|i| self.key[i].load(Ordering::Relaxed))
    }

    /// Port that the session is charged to.
    pub fn port(&self) -> u16 {
        self.port.load(Ordering::Relaxed) as u16
    }

    /// Whether the session has a second key.
    #[inline]
    pub fn is_translated(&self) -> bool {
        self.port.load(Ordering::Relaxed) & TWO_KEYS != 0
    }

    /// Whether the session has one key, and a member of a load balancer was chosen for it.
    #[inline]
    pub fn is_chosen(&self) -> bool {
        self.port.load(Ordering::Relaxed) & CHOSEN != 0
    }

    /// Writes all three; at most one of the last two is true.
    pub fn set_port(&self, port: u16, translated: bool, chosen: bool) {
        let two_keys = if translated { TWO_KEYS } else { 0 };
        let chosen = if chosen { CHOSEN } else { 0 };
        let word = u32::from(port) | two_keys | chosen;
        self.port.store(word, Ordering::Relaxed);
    }

    /// Writes the key's words.
    pub fn set_words(&self, words: &[u64; 5]) {
        for (word, value) in self.key.iter().zip(words) {
            word.store(*value, Ordering::Relaxed);
        }
    }

    /// The version, if a session of this key lives here.
    #[inline]
    pub fn version_of(&self, words: &[u64; 5]) -> Option<u32> {
        let version = self.version.load(Ordering::Acquire);
        let difference = (0..5).fold(0, |all, i| {
            all | (self.key[i].load(Ordering::Relaxed) ^ words[i])
        });
        fence(Ordering::Acquire);
        (difference == 0 && version & 1 == 1 && self.version.load(Ordering::Relaxed) == version)
            .then_some(version)
    }

    /// Whether a session lives here.
    pub fn is_live(&self) -> bool {
        self.version.load(Ordering::Acquire) & 1 == 1
    }

    /// Begins or ends a session here; answers the new version.
    pub fn turn(&self) -> u32 {
        let version = self.version.load(Ordering::Relaxed).wrapping_add(1);
        self.version.store(version, Ordering::Release);
        version
    }

    /// Makes what was read of the live session here void; answers the new version.
    pub fn renew(&self) -> u32 {
        let version = self.version.load(Ordering::Relaxed).wrapping_add(2);
        self.version.store(version, Ordering::Release);
        version
    }

    /// State, and the direction of the packet that opened the session.
    #[inline]
    pub fn state(&self) -> (State, Direction) {
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

    /// Whether the session has seen packets of its opener alone, and this direction is the other.
    #[inline(always)]
    pub fn is_answered_by(&self, direction: Direction) -> bool {
        self.state.load(Ordering::Relaxed)
            == State::OneWay as u32 | (direction.opposite() as u32) << 8
    }

    /// Writes both.
    pub fn set_state(&self, state: State, opener: Direction) {
        self.state
            .store(state as u32 | (opener as u32) << 8, Ordering::Relaxed);
    }

    /// Moves the session to another state.
    #[inline]
    pub fn move_to(&self, state: State) {
        let opener = self.state.load(Ordering::Relaxed) & 0x100;
        self.state.store(state as u32 | opener, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(mark: u16) -> Action {
        let macs = MacPair::new(Mac::from_word(u64::from(mark)), Mac::from_word(2));
        Action::new(macs, Egress::Peer(mark), None)
    }

    /// A guest may send one flow to two MACs by turns, and each takes the other's action away.
    #[test]
    fn an_action_written_over_is_read_and_told_from_the_one_before() {
        let entry = FlowEntry::default();
        for (epoch, ingress) in [(1, Ingress::Port(5)), (2, Ingress::Peer(u16::MAX))] {
            let stamp = Stamp::new(epoch, ingress);
            for write in 0..2 * WRITES {
                let before = entry.stamp.load(Ordering::Relaxed);
                let action = action(write as u16);
                entry.set(stamp, &action);
                assert_ne!(entry.stamp.load(Ordering::Relaxed), before);
                assert_eq!(entry.action(stamp), Some(action));
            }
            assert_eq!(entry.action(Stamp::new(3, ingress)), None);
            assert_eq!(entry.action(Stamp::new(epoch, Ingress::Port(0))), None);
        }
    }

    #[test]
    fn an_action_says_what_it_was_made_of() {
        let macs = |first, second| MacPair::new(Mac::from_word(first), Mac::from_word(second));
        for egress in [
            Egress::Port(0),
            Egress::Port(u16::MAX),
            Egress::Peer(0),
            Egress::Peer(u16::MAX),
            Egress::External(0),
            Egress::External(u16::MAX),
            Egress::Wire(0),
            Egress::Wire(u16::MAX),
        ] {
            for routed in [None, Some(macs(3, 4))] {
                let action = Action::new(macs(1, 2), egress, routed);
                assert_eq!(action.egress(), egress);
                assert_eq!(action.is_routed(), routed.is_some());
                assert_eq!(action.new, routed.unwrap_or_default());
                assert!(!action.is_translated() && action.translated().is_translated());
                assert_eq!(action.translated().egress(), egress);
            }
        }
        let mut bytes = [0; 12];
        macs(0x0102_0304_0506, 0x0708_090a_0b0c).write(&mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(
            MacPair::read(&bytes),
            macs(0x0102_0304_0506, 0x0708_090a_0b0c)
        );
    }

    #[test]
    fn a_revoked_action_is_read_no_more() {
        let entry = FlowEntry::default();
        let stamp = Stamp::new(1, Ingress::Port(1));
        assert_eq!(entry.view(), None);
        entry.set(stamp, &action(7));
        assert_eq!(entry.view(), Some((1.into(), action(7))));
        entry.revoke();
        assert_eq!((entry.action(stamp), entry.view()), (None, None));
    }

    #[test]
    fn keys_that_differ_in_several_words_by_the_same_are_told_apart() {
        let slot = Slot::default();
        let words = [1, 2, 3, 4, 5];
        slot.set_words(&words);
        slot.turn();
        assert_eq!(slot.version_of(&words), Some(1));
        for (a, b) in [(0, 1), (0, 2), (1, 3), (3, 4)] {
            let mut others = words;
            others[a] ^= 1 << 40;
            others[b] ^= 1 << 40;
            assert_eq!(slot.version_of(&others), None);
        }
        slot.turn();
        assert_eq!(slot.version_of(&words), None);
    }

    #[test]
    fn a_number_that_is_no_state_is_read_as_some_state() {
        let slot = Slot::default();
        for number in State::ALL.len()..256 {
            slot.state.store(number as u32, Ordering::Relaxed);
            assert!(State::ALL.contains(&slot.state().0));
        }
    }
}
