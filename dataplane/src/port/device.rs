//! What every kind of device looks like: to a worker a [`Queue`], to the daemon a [`Device`].
//!
//! A new kind is a folder beside this file with its two implementations, and a line in [`open`](super::open).

use std::fmt::Debug;
use std::os::fd::RawFd;

use super::FrameCache;
use crate::packet::{Offload, Packet};

/// One queue of a device, as the worker that reads it sees it. No call but [`Queue::before_sleep`] and its counterpart allocates, locks or
/// blocks.
pub trait Queue: Send + Debug {
    /// Which of the device's queues this is.
    fn number(&self) -> u32;

    /// Takes up to `max` packets that have arrived, appends them to `out`, which has room for them, and returns how many.
    fn receive(&mut self, cache: &mut FrameCache, out: &mut Vec<Packet>, max: usize) -> usize;

    /// Sends packets from the front, takes those out of `packets`, and returns how many were sent. What does not fit stays; what never can
    /// be sent is freed and counted in [`Queue::lost`].
    fn send(&mut self, cache: &mut FrameCache, packets: &mut Vec<Packet>) -> usize;

    /// Notifies the other side of sent packets, if it needs a notification.
    fn kick(&mut self);

    /// Whether another notification is still needed.
    fn has_unsent(&self) -> bool {
        false
    }

    /// Takes back the frames of packets that have been sent.
    fn reap(&mut self, _cache: &mut FrameCache) {}

    /// Whether a segment of this sort is taken whole, for the other side to split or not to split at all.
    fn takes(&self, _offload: &Offload) -> bool {
        false
    }

    /// Whether it is known that the other side takes packets from this queue now: a guest may use fewer queues than it has. Of several queues
    /// of a port, only such get packets, or the first if there is none.
    fn is_heard(&self) -> bool {
        false
    }

    /// Packets that were lost on the way in or out since the queue was opened, for reasons that only the queue knows.
    fn lost(&self) -> u64;

    /// Adds the descriptors that become readable when packets arrive. True: there is work already, so do not sleep.
    fn before_sleep(&mut self, descriptors: &mut Vec<RawFd>) -> bool;

    /// The worker has slept, or would have.
    fn after_sleep(&mut self) {}
}

/// What a device tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// How packets pass: "native" or "generic" XDP, or what stands in for it.
    pub mode: String,
    /// Whether the other side reads and writes our frames itself.
    pub zero_copy: bool,
}

/// An open device, as the daemon holds it. Dropped after its queues.
pub trait Device: Send + Debug {
    /// Its queues, for workers to serve; none the second time.
    fn take_queues(&mut self) -> Vec<Box<dyn Queue>>;

    /// Whether packets can pass: a guest's device is open before its guest runs.
    fn is_up(&self) -> bool;

    /// Whether what it was opened on has gone, is another by now, or has another number of queues: it has to be opened again.
    fn is_stale(&self) -> bool;

    /// Makes up for what others have taken from it since it was opened, if need be and if it can. Called a few times a second.
    fn mend(&mut self) {}

    /// How long the IP packets of its port may be, now; a longer one can only be a segment that is still to be split.
    fn set_mtu(&mut self, _mtu: u16) {}

    /// Bytes of IP packet that it takes towards its port, as far as that is known.
    fn takes(&self) -> Option<u16> {
        None
    }

    /// What it tells of itself.
    fn describe(&self) -> Description;
}
