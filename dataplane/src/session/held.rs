//! The shards that a writer holds. A translated session has an entry in the shard of each key, and comes and goes under the locks of both, which are
//! taken in the order of their places; one more is only tried for while others are held, so that no two writers wait for each other.

use std::sync::PoisonError;

use super::table::{Shard, Writer};
use crate::sync::MutexGuard;

/// Two at first, and one more for a session that gives way.
const MOST: usize = 3;

/// Shards that are locked.
#[derive(Debug)]
pub(super) struct Held<'t> {
    shards: &'t [Shard],
    guards: [Option<(usize, MutexGuard<'t, Writer>)>; MOST],
}

impl<'t> Held<'t> {
    /// Locks two shards, or one.
    pub(super) fn of(shards: &'t [Shard], home: usize, other: usize) -> Self {
        let (low, high) = (home.min(other), home.max(other));
        let guard = |place: usize| shards.get(place).map(|shard| (place, shard.lock()));
        Self {
            shards,
            guards: [
                guard(low),
                if high == low { None } else { guard(high) },
                None,
            ],
        }
    }

    /// The writer of a shard; none if the shard is not held.
    pub(super) fn writer(&mut self, place: usize) -> Option<&mut Writer> {
        let mut held = self.guards.iter_mut().flatten();
        held.find_map(|(held, guard)| (*held == place).then_some(&mut **guard))
    }

    /// Holds one more shard if nobody else does and there is room to; true if it is held.
    pub(super) fn try_also(&mut self, place: usize) -> bool {
        if self.writer(place).is_some() {
            return true;
        }
        let (Some(shard), Some(free)) = (
            self.shards.get(place),
            self.guards.iter_mut().find(|guard| guard.is_none()),
        ) else {
            return false;
        };
        let guard = match shard.writer.try_lock() {
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(error)) => Some(PoisonError::into_inner(error)),
            Err(std::sync::TryLockError::WouldBlock) => None,
        };
        *free = guard.map(|guard| (place, guard));
        free.is_some()
    }

    /// The places of the shards that are held.
    pub(super) fn places(&self) -> [Option<usize>; MOST] {
        std::array::from_fn(|i| self.guards[i].as_ref().map(|(place, _)| *place))
    }

    /// Lets go of all but those that were held then.
    pub(super) fn keep(&mut self, places: [Option<usize>; MOST]) {
        for guard in &mut self.guards {
            guard.take_if(|(place, _)| !places.contains(&Some(*place)));
        }
    }
}
