//! The way into a worker from other workers and from services: a bounded queue of packets, and a waker.

use std::io;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use super::waker::Waker;
use crate::packet::Packet;
use crate::pipeline::{Destination, Source};

/// Packets that may wait in a worker's inbox.
pub(super) const INBOX: usize = 1024;

/// The way into a worker from others.
#[derive(Debug, Clone)]
pub(super) struct Inbound {
    pub(super) queue: Arc<ArrayQueue<(Destination, Packet)>>,
    pub(super) waker: Arc<Waker>,
}

impl Inbound {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Arc::new(ArrayQueue::new(INBOX)),
            waker: Arc::new(Waker::new()?),
        })
    }
}

/// Which worker reads a queue. A port's queues and an uplink's queues are dealt out round.
#[inline]
pub(super) fn owner(place: Source, queue: u32, workers: usize) -> usize {
    match place {
        Source::Port(index) => (usize::from(index) + queue as usize) % workers,
        Source::Uplink(_) => queue as usize % workers,
    }
}
