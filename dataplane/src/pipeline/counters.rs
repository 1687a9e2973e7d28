//! Counters: one set per worker, written by that worker alone with plain loads and stores, read by anybody.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::packet::DropReason;

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the owning worker calls it, so no bus lock is needed.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(amount),
            Ordering::Relaxed,
        );
    }

    /// Takes over a count that somebody else keeps.
    pub fn set(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What passed through one port or uplink. For each, received + generated = drops + read + sent elsewhere (invariant 6).
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Traffic {
    pub rx_packets: Counter,
    pub rx_bytes: Counter,
    pub tx_packets: Counter,
    pub tx_bytes: Counter,
    /// Copies, fragments and replies that did not come in as packets.
    pub generated: Counter,
    /// Packets that the kernel dropped at our rings, before we saw them, or the device after it took them; not among the drops by reason.
    pub kernel_drops: Counter,
    /// Probes, and what other gateway hosts tell: packets that end here, and are no drops.
    pub read: Counter,
    drops: [Counter; DropReason::COUNT],
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            rx_packets: Counter::default(),
            rx_bytes: Counter::default(),
            tx_packets: Counter::default(),
            tx_bytes: Counter::default(),
            generated: Counter::default(),
            kernel_drops: Counter::default(),
            read: Counter::default(),
            drops: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl Traffic {
    /// Counts a drop.
    #[inline]
    pub fn drop(&self, reason: DropReason) {
        self.drops[reason as usize].add(1);
    }

    /// Drops for a reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].get()
    }

    /// Drops for any reason.
    pub fn all_drops(&self) -> u64 {
        self.drops.iter().map(Counter::get).sum()
    }
}

/// The counters of one worker. About 0.6 KiB per port.
#[derive(Debug)]
pub struct Counters {
    ports: Box<[Traffic]>,
    uplinks: Box<[Traffic]>,
    /// Packets that found a decision of this epoch in their session, and that it says all of: the fast path took them.
    pub fast: Counter,
    /// Packets that found one, of which more has to be known: options, large segments, fragmentation, and so on.
    pub general: Counter,
    /// Packets that had to be resolved.
    pub misses: Counter,
    /// Of these, packets of a session whose decision was of another epoch of its VPC, or for another ingress.
    pub decided_again: Counter,
}

impl Counters {
    /// Zeroes, for so many ports and uplinks.
    pub fn new(ports: usize, uplinks: usize) -> Self {
        let zeroes = |count: usize| (0..count.max(1)).map(|_| Traffic::default()).collect();
        Self {
            ports: zeroes(ports),
            uplinks: zeroes(uplinks),
            fast: Counter::default(),
            general: Counter::default(),
            misses: Counter::default(),
            decided_again: Counter::default(),
        }
    }

    /// Of a port. An index beyond the cap, which no snapshot holds, is counted with the last.
    #[inline]
    pub fn port(&self, index: u16) -> &Traffic {
        &self.ports[usize::from(index).min(self.ports.len() - 1)]
    }

    /// Of an uplink.
    #[inline]
    pub fn uplink(&self, index: u16) -> &Traffic {
        &self.uplinks[usize::from(index).min(self.uplinks.len() - 1)]
    }
}
