//! What workers share among themselves and with the agent, and what each of them shows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::publication::Taken;
use crate::session::Timeouts;
use crate::snapshot::Snapshot;
use crate::sync::ArcSwap;

/// What workers share among themselves and with the agent.
#[derive(Debug)]
pub struct Common {
    /// The snapshot in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// How long sessions may idle.
    pub timeouts: ArcSwap<Timeouts>,
    /// Whether workers without work spin instead of sleeping.
    pub spin: AtomicBool,
    started: Instant,
    pub(super) stop: AtomicBool,
}

impl Common {
    pub(super) fn new(timeouts: Timeouts, spin: bool) -> Self {
        Self {
            snapshot: ArcSwap::default(),
            timeouts: ArcSwap::from_pointee(timeouts),
            spin: AtomicBool::new(spin),
            started: Instant::now(),
            stop: AtomicBool::new(false),
        }
    }

    /// Milliseconds since the daemon started, as sessions are stamped.
    pub fn now(&self) -> u32 {
        self.stamp(Instant::now())
    }

    /// The same for a moment that was taken already.
    #[inline]
    pub(super) fn stamp(&self, time: Instant) -> u32 {
        time.duration_since(self.started).as_millis() as u32
    }
}

/// A worker as others see it.
#[derive(Debug)]
pub struct Gauge {
    /// The generation that it judges by.
    pub taken: Taken,
    /// Packets that it took in.
    pub packets: AtomicU64,
    /// Nanoseconds at work.
    pub busy: AtomicU64,
    /// Nanoseconds without work.
    pub idle: AtomicU64,
    /// How often it stood still for longer than the watchdog bears.
    pub stalls: AtomicU64,
    /// For how long it has been stuck; 0 while it runs.
    pub stuck_milliseconds: AtomicU64,
}

impl Gauge {
    pub(super) fn new() -> Self {
        Self {
            taken: Taken::nothing(),
            packets: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            idle: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
            stuck_milliseconds: AtomicU64::new(0),
        }
    }

    /// Nanoseconds accounted for: another number after every round.
    pub(super) fn rounds_time(&self) -> u64 {
        self.busy
            .load(Ordering::Relaxed)
            .wrapping_add(self.idle.load(Ordering::Relaxed))
    }

    /// Whether the watchdog holds it to be stuck.
    pub fn is_stuck(&self) -> bool {
        self.stuck_milliseconds.load(Ordering::Relaxed) > 0
    }
}
