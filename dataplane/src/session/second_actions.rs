//! Actions for flows that cross a host twice, by way of an appliance on it: packets of one direction come in at two ports, and a session has room
//! for one action in each direction.
//!
//! A cache of a fixed size beside the sessions, in which the newer action takes the place of an older one. An action names its owner by slot,
//! version and direction, so that nothing has to be taken out when a session goes. What is not found is judged again.

use super::arena::Arena;
use super::key::Direction;
use super::slot::{Action, FlowEntry, Stamp};

/// One action for so many sessions: 8 bytes of memory for each where all are in use.
const SESSIONS: usize = 8;
const LEAST: usize = 2;

/// A session and a direction of it. Versions rise with every session that a slot holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    number: u32,
    version: u32,
    direction: Direction,
}

impl Owner {
    pub(super) fn new(number: u32, version: u32, direction: Direction) -> Self {
        Self {
            number,
            version,
            direction,
        }
    }

    fn word(self) -> u64 {
        (u64::from(self.number) << 1 | self.direction as u64) << 32 | u64::from(self.version)
    }
}

/// The second actions of a shard. Readers never wait; writers hold the shard's lock.
#[derive(Debug)]
pub(super) struct SecondActions(Arena<FlowEntry>);

impl SecondActions {
    /// For a shard of so many sessions.
    pub(super) fn new(sessions: usize) -> Self {
        let count = sessions.div_ceil(SESSIONS).max(LEAST);
        Self(Arena::new(count.next_power_of_two()))
    }

    fn place(&self, owner: Owner, stamp: Stamp) -> Option<&FlowEntry> {
        let named = owner.number << 1 | owner.direction as u32;
        // Fibonacci hashing: neighbours in the table are spread.
        let hash = (named ^ stamp.ingress_bits() << 15).wrapping_mul(0x9e37_79b9);
        let bits = self.0.len().ilog2();
        self.0.get((u64::from(hash) >> (32 - bits)) as usize)
    }

    /// What was decided for packets of the owner under this stamp.
    pub(super) fn find(&self, owner: Owner, stamp: Stamp) -> Option<Action> {
        self.place(owner, stamp)?.action_of(owner.word(), stamp)
    }

    /// Keeps it.
    pub(super) fn set(&self, owner: Owner, stamp: Stamp, action: &Action) {
        if let Some(place) = self.place(owner, stamp) {
            place.set_of(owner.word(), stamp, action);
        }
    }
}
