//! Queues between workers and a service of this host: a [`PuntQueue`] for packets to the service, and an [`Injector`] for its packets to ports.
//!
//! The service may be slow, and may hold locks; a worker never waits for it. Packets that do not fit are dropped, and counted at their
//! port.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use crossbeam::queue::ArrayQueue;
use futures::task::AtomicWaker;

use super::inbox::{INBOX, Inbound, owner};
use super::shared::Common;
use crate::packet::{DropReason, FrameMemory, Packet};
use crate::pipeline::counters::Counters;
use crate::pipeline::{Destination, Service, Settings, Source, ip_fragment};
use crate::port::{FrameCache, Umem};
use crate::snapshot::Snapshot;

/// Where packets to each service of this host are left.
#[derive(Debug, Clone)]
pub struct Desks {
    /// Those to the metadata service.
    pub metadata: Arc<PuntQueue>,
    /// Those to the health checks.
    pub health: Arc<PuntQueue>,
    /// Those to the multicast querier.
    pub querier: Arc<PuntQueue>,
    /// Announcements of virtual addresses.
    pub holders: Arc<PuntQueue>,
    /// Those to the DNS service.
    pub dns: Arc<PuntQueue>,
}

impl Desks {
    pub(super) fn of(&self, service: Service) -> &PuntQueue {
        match service {
            Service::Metadata => &self.metadata,
            Service::Health => &self.health,
            Service::Querier => &self.querier,
            Service::Holders => &self.holders,
            Service::Dns => &self.dns,
        }
    }
}

/// Packets that wait for a service, each with the port that sent it.
#[derive(Debug)]
pub struct PuntQueue {
    queue: ArrayQueue<(u16, Packet)>,
    waker: AtomicWaker,
}

impl PuntQueue {
    /// Room for so many packets, which is how many packet buffers a service that lags keeps from others.
    pub fn new(room: usize) -> Self {
        Self {
            queue: ArrayQueue::new(room),
            waker: AtomicWaker::new(),
        }
    }

    /// A worker leaves a packet; it gets it back if there is no room.
    pub(super) fn put(&self, port: u16, packet: Packet) -> Result<(), Packet> {
        self.queue
            .push((port, packet))
            .map_err(|(_, packet)| packet)?;
        self.waker.wake();
        Ok(())
    }

    /// The packet that has waited longest. It goes to [`Injector::read`] next, which gives its buffer back.
    pub fn take(&self) -> Option<(u16, Packet)> {
        self.queue.pop()
    }

    /// Waits until there is a packet. One task at most may wait.
    pub async fn arrival(&self) {
        poll_fn(|context| {
            self.waker.register(context.waker());
            if self.queue.is_empty() {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }
}

/// Sends a service's packets to ports, through the inboxes of the workers that own their queues.
#[derive(Debug)]
pub struct Injector {
    common: Arc<Common>,
    inboxes: Vec<Inbound>,
    counters: Arc<Counters>,
    /// Who holds it is the one writer of the counters.
    cache: Mutex<FrameCache>,
}

impl Injector {
    pub(super) fn new(
        common: Arc<Common>,
        inboxes: Vec<Inbound>,
        umem: &Arc<Umem>,
        settings: &Settings,
    ) -> Self {
        Self {
            common,
            inboxes,
            counters: Arc::new(Counters::new(settings.ports, settings.uplinks)),
            cache: Mutex::new(FrameCache::new(umem)),
        }
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.common.snapshot.load_full()
    }

    /// What the service generated and dropped, port by port.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn cache(&self) -> MutexGuard<'_, FrameCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of a packet that was taken from a [`PuntQueue`].
    pub fn read(&self, packet: Packet) -> Vec<u8> {
        let mut cache = self.cache();
        let bytes = packet.bytes(&*cache).to_vec();
        cache.free(packet.frame);
        bytes
    }

    /// Counts a packet of a port that the service has no use for.
    pub fn count_drop(&self, port: u16, reason: DropReason) {
        let _writer = self.cache();
        self.counters.port(port).drop(reason);
    }

    /// Sends frames to a port, within the rate limit of what it may be sent. What finds no room is dropped.
    pub fn send(&self, port: u16, frames: &[Vec<u8>]) {
        let snapshot = self.snapshot();
        let device = Source::Port(snapshot.trunks.device(port));
        let Some(inbound) = self
            .inboxes
            .get(owner(device, 0, self.inboxes.len()))
            .filter(|_| !frames.is_empty())
        else {
            return;
        };
        let limit = snapshot.ingress_limit(port);
        let mut cache = self.cache();
        let traffic = self.counters.port(port);
        for frame in frames {
            traffic.generated.add(1);
            let len = u16::try_from(frame.len()).unwrap_or(u16::MAX);
            if let Some(Err(beyond)) = limit.map(|limit| limit.take(len, self.common.now())) {
                traffic.drop(beyond.ingress());
                continue;
            }
            // Half of the inbox stays with the packets that other workers have for this one.
            if inbound.queue.len() >= INBOX / 2 {
                traffic.drop(DropReason::RingFull);
                continue;
            }
            let Some(mut packet) = ip_fragment::room_for(&mut *cache, frame.len()) else {
                traffic.drop(DropReason::NoBuffer);
                continue;
            };
            packet.bytes_mut(&mut *cache).copy_from_slice(frame);
            if let Err((_, packet)) = inbound.queue.push((Destination::Port(port), packet)) {
                traffic.drop(DropReason::RingFull);
                cache.free(packet.frame);
            }
        }
        inbound.waker.ring_if_asleep();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Context, Wake, Waker};

    use super::*;
    use crate::packet::Frame;

    fn packet(index: u32) -> Packet {
        Packet {
            frame: Frame::from_index(index),
            start: 0,
            len: 60,
        }
    }

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_desk_keeps_order_and_gives_back_what_it_has_no_room_for() {
        let queue = PuntQueue::new(2);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        let mut waiting = pin!(queue.arrival());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        assert!(queue.put(7, packet(1)).is_ok());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(waiting.as_mut().poll(&mut context).is_ready());
        assert!(queue.put(8, packet(2)).is_ok());
        let refused = queue.put(7, packet(3)).unwrap_err();
        assert_eq!(refused.frame.index(), 3);
        let taken = [queue.take(), queue.take()].map(|taken| {
            let (port, packet) = taken.unwrap();
            (port, packet.frame.index())
        });
        assert_eq!(taken, [(7, 1), (8, 2)]);
        assert!(queue.take().is_none());
    }
}
