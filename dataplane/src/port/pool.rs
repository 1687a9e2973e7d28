//! Free frames: one pool for the process, one stock for each worker, and the account of where every frame is.
//!
//! A stock gives and takes frames without a lock. It exchanges them with the pool 64 at a time, which is one atomic operation for 64
//! frames. Every holder publishes how many frames it has in counters of its own. [`Ledger::sum`] adds them up: when no packet moves, the
//! sum is the number of frames, or a frame was lost or freed twice.

use std::sync::PoisonError;

use crate::sync::atomic::{AtomicI64, Ordering, fence};
use crate::sync::{Arc, ArrayQueue, Mutex, MutexGuard};

/// Frames that move between the pool and a cache at once.
pub(super) const BATCH: usize = 64;

/// The free frames.
#[derive(Debug)]
pub(super) struct Pool {
    batches: ArrayQueue<[u32; BATCH]>,
    loose: ArrayQueue<u32>,
}

impl Pool {
    /// A pool with all frames below `count`.
    pub(super) fn full(count: u32) -> Self {
        let pool = Self {
            batches: ArrayQueue::new(count as usize / BATCH + 1),
            loose: ArrayQueue::new(count as usize),
        };
        let indices: Vec<u32> = (0..count).collect();
        let (batches, rest) = indices.as_chunks::<BATCH>();
        batches.iter().for_each(|batch| pool.put_batch(*batch));
        rest.iter().for_each(|&index| pool.put(index));
        pool
    }

    fn put_batch(&self, batch: [u32; BATCH]) {
        // Both queues have room for every frame there is, so pushing fails only if a frame came twice.
        if self.batches.push(batch).is_err() {
            tracing::error!("more free frames than exist: one was freed twice");
        }
    }

    /// Gives one frame back.
    pub(super) fn put(&self, index: u32) {
        if self.loose.push(index).is_err() {
            tracing::error!("more free frames than exist: one was freed twice");
        }
    }

    /// How many there are, more or less while others take and give.
    pub(super) fn len(&self) -> usize {
        self.batches.len() * BATCH + self.loose.len()
    }
}

/// What one holder (a cache, a ring) has; written by its owner alone.
#[derive(Debug, Default)]
pub(super) struct Holding {
    /// Free frames in a cache.
    pub(super) cached: AtomicI64,
    /// Frames that a worker took from this cache or its rings, less those that it gave back through them. Negative for a worker that
    /// frees what others received.
    pub(super) held: AtomicI64,
    /// Frames in a fill ring, in the kernel's hands, or in a receive ring.
    pub(super) fill: AtomicI64,
    /// Frames in a transmit ring, in the kernel's hands, or in a completion ring.
    pub(super) transmit: AtomicI64,
}

/// All holders, and what those that are gone left behind.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    holdings: Mutex<Vec<Arc<Holding>>>,
}

impl Ledger {
    /// Opens the books of one holder.
    pub(super) fn open(&self) -> Arc<Holding> {
        let holding = Arc::new(Holding::default());
        self.lock().push(Arc::clone(&holding));
        holding
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Holding>>> {
        self.holdings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all holders have; the pool's own part is left out.
    pub(super) fn sum(&self) -> Accounting {
        let mut sum = Accounting::default();
        let mut gone = 0;
        self.lock().retain(|holding| {
            // The holder is gone, and only what its frames became elsewhere remains of it. Asked first: its last word on what it holds comes
            // before it goes, and what is read below must not be older.
            let is_gone = Arc::strong_count(holding) == 1;
            fence(Ordering::Acquire);
            let read = |cell: &AtomicI64| cell.load(Ordering::Relaxed);
            let held = read(&holding.held);
            sum.cached += read(&holding.cached);
            sum.held += held;
            sum.fill += read(&holding.fill);
            sum.transmit += read(&holding.transmit);
            if is_gone {
                gone += held;
            }
            !is_gone
        });
        if gone != 0 {
            let rest = self.open();
            rest.held.store(gone, Ordering::Relaxed);
        }
        sum
    }
}

/// Where all frames are. Exact when no packet moves while it is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accounting {
    /// How many frames there are.
    pub total: i64,
    /// Free, in the pool.
    pub free: i64,
    /// Free, in workers' caches.
    pub cached: i64,
    /// Given to the kernel to receive into.
    pub fill: i64,
    /// Given to the kernel to send.
    pub transmit: i64,
    /// In packets in workers' hands.
    pub held: i64,
    /// Large frames in packets in workers' hands.
    pub large: i64,
}

impl Accounting {
    /// Whether every frame is somewhere exactly once, and every large frame free.
    pub fn balances(&self) -> bool {
        self.free + self.cached + self.fill + self.transmit + self.held == self.total
            && self.large == 0
    }
}

/// A holder's free frames, which it exchanges with a pool, and its books.
#[derive(Debug)]
pub(super) struct Stock {
    free: Vec<u32>,
    held: i64,
    holding: Arc<Holding>,
}

impl Stock {
    pub(super) fn new(ledger: &Ledger) -> Self {
        Self {
            free: Vec::with_capacity(3 * BATCH),
            held: 0,
            holding: ledger.open(),
        }
    }

    #[inline]
    pub(super) fn take(&mut self, pool: &Pool) -> Option<u32> {
        if self.free.is_empty() {
            self.refill(pool);
        }
        self.free.pop()
    }

    #[inline]
    pub(super) fn put(&mut self, pool: &Pool, index: u32) {
        if self.free.len() >= 2 * BATCH {
            self.spill(pool);
        }
        self.free.push(index);
    }

    #[inline]
    pub(super) fn note_held(&mut self, change: i64) {
        self.held += change;
        self.publish();
    }

    #[inline]
    pub(super) fn publish(&self) {
        self.holding
            .cached
            .store(self.free.len() as i64, Ordering::Relaxed);
        self.holding.held.store(self.held, Ordering::Relaxed);
    }

    #[cold]
    fn refill(&mut self, pool: &Pool) {
        if let Some(batch) = pool.batches.pop() {
            self.free.extend_from_slice(&batch);
            return;
        }
        while self.free.len() < BATCH {
            let Some(index) = pool.loose.pop() else {
                return;
            };
            self.free.push(index);
        }
    }

    #[cold]
    fn spill(&mut self, pool: &Pool) {
        let at = self.free.len() - BATCH;
        if let Some(batch) = self.free.last_chunk::<BATCH>() {
            pool.put_batch(*batch);
            self.free.truncate(at);
        }
    }

    /// Gives everything back to the pool.
    pub(super) fn empty(&mut self, pool: &Pool) {
        for index in self.free.drain(..) {
            pool.put(index);
        }
        self.publish();
    }
}

#[cfg(all(test, feature = "loom"))]
mod threads {
    use super::*;
    use crate::sync::model::check;

    /// A pool and its books, as an [`Umem`] has them.
    fn memory(frames: u32) -> Arc<(Pool, Ledger)> {
        Arc::new((Pool::full(frames), Ledger::default()))
    }

    fn accounted(memory: &(Pool, Ledger), total: i64) -> Accounting {
        Accounting {
            total,
            free: memory.0.len() as i64,
            ..memory.1.sum()
        }
    }

    #[test]
    fn threads_never_hold_one_frame_at_a_time_and_lose_none() {
        const FRAMES: u32 = 2 * BATCH as u32 + 2;
        check("frames", 3, || {
            let memory = memory(FRAMES);
            // Each takes a batch and two frames more, of which there are two alone: somebody may get less, nobody the same.
            let work = |memory: &(Pool, Ledger)| {
                let mut stock = Stock::new(&memory.1);
                let wanted = BATCH + 2;
                let taken: Vec<u32> = (0..wanted).map_while(|_| stock.take(&memory.0)).collect();
                stock.note_held(taken.len() as i64);
                (stock, taken)
            };
            let other = Arc::clone(&memory);
            let other = loom::thread::spawn(move || work(&other));
            let (mut mine, mut taken) = work(&memory);
            let (mut theirs, others) = other.join().unwrap();
            taken.extend(others);
            assert!(accounted(&memory, FRAMES.into()).balances());
            let mut all = [&*taken, &*mine.free, &*theirs.free].concat();
            all.sort_unstable();
            assert_eq!(all, (0..FRAMES).collect::<Vec<_>>(), "each frame once");
            for index in taken {
                mine.put(&memory.0, index);
                mine.note_held(-1);
            }
            theirs.empty(&memory.0);
            assert!(accounted(&memory, FRAMES.into()).balances());
        });
    }

    #[test]
    fn threads_that_go_leave_right_books() {
        check("books", 4, || {
            let memory = memory(4);
            let mut mine = Stock::new(&memory.1);
            let frame = mine.take(&memory.0).unwrap();
            mine.note_held(1);
            let other = Arc::clone(&memory);
            // Frees what the other received, and goes.
            let other = loom::thread::spawn(move || {
                let mut stock = Stock::new(&other.1);
                stock.put(&other.0, frame);
                stock.note_held(-1);
                stock.empty(&other.0);
            });
            // May be off by what moves just now, but never for good.
            let _ = memory.1.sum();
            other.join().unwrap();
            assert!(accounted(&memory, 4).balances());
            mine.empty(&memory.0);
            assert!(accounted(&memory, 4).balances());
        });
    }
}
