//! What workers want to know, on its way to the agent.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::super::probes::since;
use crate::numbers::Vni;
use crate::snapshot::{Asked, Map};

/// Something that a worker wants to know, in the VPC of a VNI.
pub type Wanted = (Vni, Asked);

/// The most that may wait for the agent, or for an answer, and of one VPC.
const CAPACITY: usize = 8192;
const OF_VPC: usize = 2048;

/// Between two times that the agent is told of one wish, in milliseconds: a packet waits for longer.
pub(super) const RETRY: u32 = 40;
/// What was not asked for again for so long is answered, or nobody waits for it any more.
const FORGET: u32 = 200;

/// What is wanted and not answered yet. One for all workers, who come here only with packets that cannot go on.
#[derive(Default)]
pub struct Asks {
    table: Mutex<Table>,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for Asks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asks").finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Table {
    /// When the agent was told last, in milliseconds.
    told: Map<Wanted, u32>,
    /// How much of it is of each VPC.
    of_vpcs: Map<Vni, usize>,
    new: Vec<Wanted>,
    /// When it was looked for what is of long ago.
    pruned_at: u32,
}

impl Table {
    /// Whether there is no room for what a VPC wants.
    fn is_full(&self, vni: Vni) -> bool {
        let of_vpc = self.of_vpcs.get(&vni).copied().unwrap_or_default();
        self.told.len() >= CAPACITY || of_vpc >= OF_VPC
    }

    /// Forgets what nobody has asked for since a while.
    fn prune(&mut self, now: u32) {
        self.pruned_at = now;
        self.told.retain(|_, told| since(*told, now) < FORGET);
        self.of_vpcs.clear();
        for (vni, _) in self.told.keys() {
            *self.of_vpcs.entry(*vni).or_default() += 1;
        }
    }
}

impl Asks {
    /// Calls `wake` whenever there is something new. Only the first such call has an effect.
    pub fn set_waker(&self, wake: impl Fn() + Send + Sync + 'static) {
        // One that is set already stays.
        let _ = self.wake.set(Box::new(wake));
    }

    /// Wants to know something at the time `now`, in milliseconds. Passed over if it was asked for just now, or if too much is, by its VPC or by all.
    pub fn ask(&self, wanted: Wanted, now: u32) {
        {
            let mut table = self.lock();
            // Once a millisecond at most: it takes long.
            if table.is_full(wanted.0) && table.pruned_at != now {
                table.prune(now);
            }
            let is_full = table.is_full(wanted.0);
            match table.told.get_mut(&wanted) {
                Some(told) if since(*told, now) < RETRY => return,
                Some(told) => *told = now,
                None if is_full => return,
                None => {
                    table.told.insert(wanted, now);
                    *table.of_vpcs.entry(wanted.0).or_default() += 1;
                }
            }
            // At most one for each that is in the table, until they are taken.
            if table.new.len() < CAPACITY {
                table.new.push(wanted);
            }
        }
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }

    /// What has come since the last call, for the agent.
    pub fn take(&self, now: u32) -> Vec<Wanted> {
        let mut table = self.lock();
        if table.pruned_at != now {
            table.prune(now);
        }
        std::mem::take(&mut table.new)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Plain values, whole after any panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_wish_is_told_once_and_again_after_a_while_and_there_is_room_for_so_many() {
        let asks = Asks::default();
        let calls = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&calls);
        asks.set_waker(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let wanted = |n: u32| (Vni::from(7), Asked::Address(n.into()));
        for now in [0, 20, 39] {
            asks.ask(wanted(1), now);
        }
        asks.ask(wanted(2), 39);
        assert_eq!(asks.take(39), [wanted(1), wanted(2)]);
        asks.ask(wanted(1), 40);
        assert_eq!(asks.take(40), [wanted(1)]);
        assert_eq!(calls.load(Ordering::Relaxed), 3);
        for n in 0..2 * OF_VPC as u32 {
            asks.ask(wanted(n), 50);
        }
        assert_eq!(asks.take(50).len(), OF_VPC - 2, "two were asked for");
        let other = (Vni::from(8), Asked::Address(1));
        asks.ask(other, 50);
        assert_eq!(asks.take(50), [other], "another VPC has its own room");
        asks.ask(wanted(9000), 50);
        assert_eq!(asks.take(50), [], "there is no room");
        let before = calls.load(Ordering::Relaxed);
        asks.ask(wanted(9000), 5000);
        assert_eq!(calls.load(Ordering::Relaxed), before + 1);
        assert_eq!(asks.take(5000), [wanted(9000)], "there is room again");
    }
}
