//! The link between the thread that talks to a monitor and the worker that serves its rings.
//!
//! The thread never touches a ring that a worker serves. It takes the rings away, waits until the worker has released them, makes the change
//! that the monitor requested, and returns them. The worker checks once a round, by one load, whether anything changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use super::memory::GuestMemory;
use super::ring::Fault;
use crate::port::event::Event;

/// How long a worker may take to release rings.
const PATIENCE: Duration = Duration::from_secs(1);

/// A ring as the monitor describes it.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    /// Entries.
    pub(super) size: u16,
    /// The monitor's addresses of the descriptors, of the driver's part and of ours.
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
    /// What the guest calls our part, when writing to it is to be logged.
    pub(super) log: Option<u64>,
    /// Where to begin.
    pub(super) base: u32,
    pub(super) packed: bool,
    pub(super) event_index: bool,
    pub(super) indirect: bool,
    /// How to call the driver, if it wants that.
    pub(super) call: Option<Arc<Event>>,
    /// How the driver kicks us; none: it expects to be polled.
    pub(super) kick: Option<Arc<Event>>,
    /// Where to say that something is wrong.
    pub(super) error: Option<Arc<Event>>,
}

/// The rings of a queue pair.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) memory: GuestMemory,
    pub(super) features: u64,
    /// What the guest receives by, and what it sends by.
    pub(super) rings: [Option<Setup>; 2],
}

/// One queue pair's link.
#[derive(Debug)]
pub(super) struct Link {
    wanted: ArcSwapOption<Active>,
    version: AtomicU64,
    seen: AtomicU64,
    /// Whether a worker has to release the rings.
    served: AtomicBool,
    /// Rings that are being served, bit by bit.
    running: AtomicU8,
    bases: [AtomicU32; 2],
    fault: AtomicU8,
    /// Wakes the worker.
    pub(super) wake: Event,
}

impl Link {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            wanted: ArcSwapOption::empty(),
            version: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            served: AtomicBool::new(true),
            running: AtomicU8::new(0),
            bases: [const { AtomicU32::new(0) }; 2],
            fault: AtomicU8::new(0),
            wake: Event::new()?,
        })
    }

    /// The thread: makes the worker serve these rings from now on, or none. Waits until the worker has released the previous ones.
    pub(super) fn set(&self, active: Option<Arc<Active>>) {
        let wait = active.is_none();
        // A worker that is told to let go before it has begun leaves the rings where they were.
        let setups = active.iter().flat_map(|active| active.rings.iter());
        for (base, setup) in self.bases.iter().zip(setups) {
            if let Some(setup) = setup {
                base.store(setup.base, Ordering::Release);
            }
        }
        self.wanted.store(active);
        let version = self.version.fetch_add(1, Ordering::AcqRel) + 1;
        self.wake.signal();
        let deadline = Instant::now() + PATIENCE;
        while wait
            && self.served.load(Ordering::Acquire)
            && self.seen.load(Ordering::Acquire) != version
        {
            if Instant::now() > deadline {
                tracing::warn!("a worker does not release a guest's rings");
                return;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The thread: where the worker left a ring.
    pub(super) fn base(&self, ring: usize) -> u32 {
        self.bases[ring].load(Ordering::Acquire)
    }

    /// Whether both rings are being served.
    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed) == 3
    }

    /// What the guest did wrong since it was last asked.
    pub(super) fn take_fault(&self) -> Option<Fault> {
        Fault::from_number(self.fault.swap(0, Ordering::Relaxed))
    }

    /// The worker: whether something changed since the version that it knows.
    #[inline(always)]
    pub(super) fn has_changed(&self, version: u64) -> bool {
        self.version.load(Ordering::Acquire) != version
    }

    /// The worker: the rings to serve from now on, and their version. It has released the previous ones.
    pub(super) fn take(&self) -> (u64, Option<Arc<Active>>) {
        let version = self.version.load(Ordering::Acquire);
        (version, self.wanted.load_full())
    }

    /// The worker: where it leaves a ring.
    pub(super) fn leave(&self, ring: usize, base: u32) {
        self.bases[ring].store(base, Ordering::Release);
    }

    /// The worker: serves these rings, bit by bit, as that version wanted.
    pub(super) fn acknowledge(&self, version: u64, running: u8) {
        self.running.store(running, Ordering::Relaxed);
        self.seen.store(version, Ordering::Release);
    }

    /// The worker: serves nothing any more, for that reason.
    pub(super) fn fail(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::Relaxed);
        self.running.store(0, Ordering::Relaxed);
    }

    /// The worker is gone.
    pub(super) fn abandon(&self) {
        self.running.store(0, Ordering::Relaxed);
        self.served.store(false, Ordering::Release);
    }
}
