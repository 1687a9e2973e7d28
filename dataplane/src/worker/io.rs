//! A worker's queues: receiving, pending transmissions, and the path to other workers' queues.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Sender;

use super::inbox::{INBOX, Inbound, owner};
use super::service::Desks;
use super::steer;
use super::waker::Waker;
use crate::packet::parse::VLAN_TAG;
use crate::packet::{DropReason, Frame, FrameMemory, Offload, Packet};
use crate::pipeline::counters::{Counters, Traffic};
use crate::pipeline::{Destination, Io, Service, Settings, Source, VECTOR, gso, trunk};
use crate::port::{FrameCache, Queue};
use crate::snapshot::Trunks;

/// Packets that may wait for one queue within a round; a whole round of vectors fits, what is more is dropped.
const PENDING: usize = 1024;

/// One queue of this worker.
#[derive(Debug)]
struct Slot {
    place: Source,
    queue: Box<dyn Queue>,
    pending: Vec<Packet>,
    /// Of the first queue of a port that has several here: all of them.
    siblings: Box<[u16]>,
    /// Which of the pending packets are of subports, in order.
    tagged: Vec<Tagged>,
}

/// A pending packet with the tag of a subport.
#[derive(Debug)]
struct Tagged {
    /// Its place among those that are pending.
    at: u16,
    /// The subport, by index.
    port: u16,
    /// Bytes of frame without the tag, as the subport's counters count.
    len: u16,
}

/// What of a vector that was sent was subports'.
#[derive(Debug, Default)]
struct OfSubports {
    /// Packets that were sent.
    sent: u64,
    /// Their bytes, with tags.
    bytes: u64,
    /// Packets that found no room.
    left: usize,
}

impl OfSubports {
    /// Enters the packets in the subports' books: the first of the vector, so many, were taken.
    #[cold]
    fn book(counters: &Counters, tagged: &mut Vec<Tagged>, taken: usize) -> Self {
        let mut theirs = Self::default();
        for Tagged { at, port, len } in tagged.drain(..) {
            let traffic = counters.port(port);
            if usize::from(at) < taken {
                traffic.tx_packets.add(1);
                traffic.tx_bytes.add(len.into());
                theirs.sent += 1;
                theirs.bytes += u64::from(len) + VLAN_TAG as u64;
            } else {
                traffic.drop(DropReason::RingFull);
                theirs.left += 1;
            }
        }
        theirs
    }
}

/// What a worker reads from and writes to.
#[derive(Debug)]
pub(super) struct WorkerIo {
    cache: FrameCache,
    slots: Vec<Slot>,
    /// How many of them are read, from the front.
    read: usize,
    /// Slot of each port, where this worker has one.
    ports: Box<[Option<u16>]>,
    uplinks: Box<[Option<u16>]>,
    /// By which device ports are reached that have none.
    trunks: Arc<Trunks>,
    index: usize,
    inboxes: Vec<Inbound>,
    desks: Desks,
    counters: Arc<Counters>,
    descriptors: Vec<RawFd>,
    polled: Vec<libc::pollfd>,
}

impl WorkerIo {
    pub(super) fn new(
        cache: FrameCache,
        settings: &Settings,
        index: usize,
        (inboxes, desks): (Vec<Inbound>, Desks),
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            cache,
            slots: Vec::new(),
            read: 0,
            ports: vec![None; settings.ports].into(),
            uplinks: vec![None; settings.uplinks].into(),
            trunks: Arc::default(),
            index,
            inboxes,
            desks,
            counters,
            descriptors: Vec::new(),
            polled: Vec::new(),
        }
    }

    /// Sends to subports as of a snapshot.
    pub(super) fn set_trunks(&mut self, trunks: &Arc<Trunks>) {
        self.trunks = Arc::clone(trunks);
    }

    /// How many queues are read.
    pub(super) fn slots(&self) -> usize {
        self.read
    }

    /// Takes a vector of packets from a queue.
    #[inline]
    pub(super) fn receive(&mut self, slot: usize, vector: &mut Vec<Packet>) -> (Source, usize) {
        let slot = &mut self.slots[slot];
        slot.queue.reap(&mut self.cache);
        (
            slot.place,
            slot.queue.receive(&mut self.cache, vector, VECTOR),
        )
    }

    /// Takes what other workers have for queues of this one.
    #[inline]
    pub(super) fn take_inbox(&mut self) -> usize {
        let mut count = 0;
        while count < INBOX {
            let Some((to, packet)) = self.inboxes[self.index].queue.pop() else {
                break;
            };
            count += 1;
            match self.slot_of(to) {
                Some(slot) => self.push(slot, packet),
                None => self.send_tagged(to, packet),
            }
        }
        count
    }

    #[inline]
    fn slot_of(&self, to: Destination) -> Option<usize> {
        let slot = match to {
            Destination::Port(index) => *self.ports.get(usize::from(index))?,
            Destination::Uplink(index) => *self.uplinks.get(usize::from(index))?,
            Destination::Service(..) => None,
        };
        slot.map(usize::from)
    }

    fn traffic(&self, to: Destination) -> &Traffic {
        match to {
            Destination::Port(index) | Destination::Service(_, index) => self.counters.port(index),
            Destination::Uplink(index) => self.counters.uplink(index),
        }
    }

    /// Leaves a packet for a service of this host: a segment in the pieces that it would have on a wire, so that the service sees plain
    /// frames alone.
    #[cold]
    fn punt(&mut self, service: Service, port: u16, packet: Packet) {
        let to = Destination::Service(service, port);
        if !packet.frame.is_large() {
            if let Err(packet) = self.desks.of(service).put(port, packet) {
                self.lose(to, packet, service.full());
            }
            return;
        }
        let apart = gso::take_apart(self, packet, |io, piece| io.punt(service, port, piece));
        self.account(to, apart);
    }

    /// Enters a packet that was taken apart in the books.
    #[cold]
    fn account(&mut self, to: Destination, apart: gso::Apart) {
        self.traffic(to).generated.add(apart.generated);
        if let Some((packet, reason)) = apart.left {
            self.lose(to, packet, reason);
        }
    }

    /// Sends a packet to a port that has no queue here, if it is a subport: by its parent's device.
    #[inline(never)]
    fn send_tagged(&mut self, to: Destination, packet: Packet) {
        let Destination::Port(port) = to else {
            return self.lose(to, packet, DropReason::PortDown);
        };
        let Some(subport) = self.trunks.subport(port) else {
            return self.lose(to, packet, DropReason::PortDown);
        };
        let Some(slot) = self.slot_of(Destination::Port(subport.parent)) else {
            let owner = owner(Source::Port(subport.parent), 0, self.inboxes.len());
            return self.send_to_worker(owner, to, packet);
        };
        let slot = match self.slots[slot].siblings.is_empty() {
            true => slot,
            false => self.sibling(slot, &packet),
        };
        let subport = (port, subport.vlan);
        let is_whole = !packet.frame.is_large() || {
            let offload = Offload::read(self, &packet.frame);
            packet.len <= trunk::LONGEST_UNTAGGED && self.slots[slot].queue.takes(&offload)
        };
        if is_whole {
            return self.push_tagged(slot, subport, packet);
        }
        let apart = gso::take_apart(self, packet, |io, piece| {
            io.push_tagged(slot, subport, piece);
        });
        self.account(to, apart);
    }

    fn push_tagged(&mut self, slot: usize, (port, vlan): (u16, u16), mut packet: Packet) {
        let to = Destination::Port(port);
        let at = self.slots[slot].pending.len();
        if at >= PENDING {
            return self.lose(to, packet, DropReason::RingFull);
        }
        let len = packet.len;
        if let Err(reason) = trunk::put_tag(self, &mut packet, vlan) {
            return self.lose(to, packet, reason);
        }
        let Slot {
            pending, tagged, ..
        } = &mut self.slots[slot];
        if tagged.capacity() == 0 {
            // Once: few ports have subports.
            tagged.reserve_exact(PENDING);
        }
        let at = at as u16;
        tagged.push(Tagged { at, port, len });
        pending.push(packet);
    }

    /// Leaves a packet to the worker that has the queue for it.
    #[inline]
    fn send_to_worker(&mut self, owner: usize, to: Destination, packet: Packet) {
        if owner == self.index {
            return self.lose(to, packet, DropReason::PortDown);
        }
        let Inbound { queue, waker } = &self.inboxes[owner];
        match queue.push((to, packet)) {
            Ok(()) => waker.ring_if_asleep(),
            Err((to, packet)) => self.lose(to, packet, DropReason::RingFull),
        }
    }

    #[cold]
    fn lose(&mut self, to: Destination, packet: Packet, reason: DropReason) {
        self.traffic(to).drop(reason);
        self.cache.free(packet.frame);
    }

    #[inline]
    fn push(&mut self, mut slot: usize, packet: Packet) {
        if !self.slots[slot].siblings.is_empty() {
            slot = self.sibling(slot, &packet);
        }
        if packet.frame.is_large() {
            return self.push_large(slot, packet);
        }
        self.push_as_is(slot, packet);
    }

    /// Which of a port's queues a packet goes out by: the same one for all packets of a flow, as long as the other side uses the same queues.
    #[inline(never)]
    fn sibling(&self, first: usize, packet: &Packet) -> usize {
        let siblings = &self.slots[first].siblings;
        let heard = |slot: &&u16| self.slots[usize::from(**slot)].queue.is_heard();
        let count = siblings.iter().filter(heard).count();
        if count == 0 {
            return first;
        }
        let chosen = steer::hash(packet.bytes(self)) as usize % count;
        let mut heard = siblings.iter().filter(heard);
        heard.nth(chosen).map_or(first, |slot| usize::from(*slot))
    }

    /// A segment that is still to be split goes whole to queues that support it, and is split for all others.
    #[cold]
    fn push_large(&mut self, slot: usize, packet: Packet) {
        let offload = Offload::read(self, &packet.frame);
        if self.slots[slot].queue.takes(&offload) {
            return self.push_as_is(slot, packet);
        }
        let to = destination(self.slots[slot].place);
        let apart = gso::take_apart(self, packet, |io, piece| io.push_as_is(slot, piece));
        self.account(to, apart);
    }

    #[inline]
    fn push_as_is(&mut self, slot: usize, packet: Packet) {
        let Slot { place, pending, .. } = &mut self.slots[slot];
        if pending.len() < PENDING {
            pending.push(packet);
        } else {
            let to = destination(*place);
            self.lose(to, packet, DropReason::RingFull);
        }
    }

    /// Gives every queue what waits for it, with one doorbell each.
    #[inline]
    pub(super) fn flush(&mut self) {
        for Slot {
            place,
            queue,
            pending,
            tagged,
            ..
        } in &mut self.slots
        {
            if pending.is_empty() {
                if queue.has_unsent() {
                    queue.kick();
                }
                continue;
            }
            let traffic = match *place {
                Source::Port(index) => self.counters.port(index),
                Source::Uplink(index) => self.counters.uplink(index),
            };
            let before: u64 = pending.iter().map(|packet| u64::from(packet.len)).sum();
            let count = pending.len();
            let sent = queue.send(&mut self.cache, pending) as u64;
            queue.kick();
            let theirs = if tagged.is_empty() {
                OfSubports::default()
            } else {
                let taken = count - pending.len();
                OfSubports::book(&self.counters, tagged, taken)
            };
            let mut left = 0;
            for (n, packet) in pending.drain(..).enumerate() {
                left += u64::from(packet.len);
                // Which of them were whose has been booked: here only how many counts.
                if n >= theirs.left {
                    traffic.drop(DropReason::RingFull);
                }
                self.cache.free(packet.frame);
            }
            traffic.tx_packets.add(sent.saturating_sub(theirs.sent));
            traffic.tx_bytes.add(before - left - theirs.bytes);
        }
    }

    /// Reads all queues from now on.
    pub(super) fn read_all(&mut self) {
        self.read = self.slots.len();
    }

    /// Takes a queue, which is read after [`Self::read_all`].
    pub(super) fn open(&mut self, place: Source, queue: Box<dyn Queue>, workers: usize) {
        debug_assert_eq!(owner(place, queue.number(), workers), self.index);
        self.slots.push(Slot {
            place,
            queue,
            pending: Vec::with_capacity(PENDING),
            siblings: Box::default(),
            tagged: Vec::new(),
        });
        self.index_slots();
    }

    /// Returns the queues of places that the condition selects, for the caller to close.
    pub(super) fn give_back(
        &mut self,
        to: &Sender<Box<dyn Queue>>,
        condition: impl Fn(Source) -> bool,
    ) {
        let mut at = 0;
        while at < self.slots.len() {
            if condition(self.slots[at].place) {
                let Slot {
                    place,
                    queue,
                    pending,
                    tagged,
                    ..
                } = self.slots.remove(at);
                self.read -= usize::from(at < self.read);
                let mut tagged = tagged.iter().peekable();
                for (n, packet) in pending.into_iter().enumerate() {
                    let of_subport = tagged.next_if(|it| usize::from(it.at) == n);
                    let to = of_subport.map_or(destination(place), |it| Destination::Port(it.port));
                    self.lose(to, packet, DropReason::PortDown);
                }
                // Nobody to receive it: it is closed here.
                let _ = to.send(queue);
            } else {
                at += 1;
            }
        }
        self.index_slots();
    }

    fn index_slots(&mut self) {
        self.ports.fill(None);
        self.uplinks.fill(None);
        for (number, slot) in self.slots.iter().enumerate() {
            let entry = match slot.place {
                Source::Port(index) => self.ports.get_mut(usize::from(index)),
                Source::Uplink(index) => self.uplinks.get_mut(usize::from(index)),
            };
            if let Some(entry) = entry {
                entry.get_or_insert(number as u16);
            }
        }
        for first in 0..self.slots.len() {
            let place = self.slots[first].place;
            let is_first = self.slot_of(destination(place)) == Some(first);
            let all = (0u16..).zip(&self.slots);
            let of_place = all.filter(|(_, slot)| slot.place == place);
            let siblings: Box<[u16]> = of_place.map(|(number, _)| number).collect();
            let spreads = is_first && siblings.len() > 1 && matches!(place, Source::Port(_));
            self.slots[first].siblings = if spreads { siblings } else { Box::default() };
        }
    }

    /// Updates the counters of packets that the kernel dropped at the queues' rings.
    #[cold]
    pub(super) fn publish_kernel_drops(&self) {
        for (number, slot) in self.slots.iter().enumerate() {
            // Queues of one place follow each other only by chance: the first sums up for all.
            let of_place = || {
                self.slots
                    .iter()
                    .enumerate()
                    .filter(|(_, other)| other.place == slot.place)
            };
            if of_place().next().is_some_and(|(first, _)| first == number) {
                let dropped = of_place().map(|(_, other)| other.queue.lost()).sum();
                self.traffic(destination(slot.place))
                    .kernel_drops
                    .set(dropped);
            }
        }
    }

    /// Sleeps until a queue has packets, the worker is woken, or the time is up.
    pub(super) fn wait(&mut self, waker: &Waker, time: Duration) {
        for slot in &mut self.slots {
            slot.queue.reap(&mut self.cache);
        }
        self.descriptors.clear();
        let mut busy = false;
        for slot in &mut self.slots {
            busy |= slot.queue.before_sleep(&mut self.descriptors);
        }
        if !busy {
            waker.sleep(&self.descriptors, &mut self.polled, time, || {
                !self.inboxes[self.index].queue.is_empty()
            });
        }
        for slot in &mut self.slots {
            slot.queue.after_sleep();
        }
    }
}

impl FrameMemory for WorkerIo {
    #[inline]
    fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        self.cache.bytes(frame)
    }

    #[inline]
    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        self.cache.bytes_mut(frame)
    }

    #[inline]
    fn alloc(&mut self) -> Option<Frame> {
        self.cache.alloc()
    }

    fn alloc_large(&mut self) -> Option<Frame> {
        self.cache.alloc_large()
    }

    fn copy(&mut self, from: (&Frame, usize), to: (&mut Frame, usize), len: usize) {
        self.cache.copy(from, to, len);
    }

    #[inline]
    fn free(&mut self, frame: Frame) {
        self.cache.free(frame);
    }
}

impl Io for WorkerIo {
    #[inline]
    fn send(&mut self, to: Destination, packet: Packet) {
        if let Some(slot) = self.slot_of(to) {
            return self.push(slot, packet);
        }
        let owner = match to {
            Destination::Port(index) if self.trunks.subport(index).is_some() => {
                return self.send_tagged(to, packet);
            }
            Destination::Port(index) => owner(Source::Port(index), 0, self.inboxes.len()),
            Destination::Uplink(index) => owner(Source::Uplink(index), 0, self.inboxes.len()),
            Destination::Service(service, index) => return self.punt(service, index, packet),
        };
        self.send_to_worker(owner, to, packet);
    }
}

/// Where a packet would be sent to reach a place.
fn destination(place: Source) -> Destination {
    match place {
        Source::Port(index) => Destination::Port(index),
        Source::Uplink(index) => Destination::Uplink(index),
    }
}
