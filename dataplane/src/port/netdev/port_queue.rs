//! A queue of a port on a kernel interface: single packets by AF_XDP, whole segments by a packet socket beside it.
//!
//! Two kinds of packets go to the other side whole: segments that a guest of this host left to be split, and small segments of one flow that
//! could be merged. The other side's kernel accepts them as it would from a card with the same offloads, or splits them itself. From the
//! other side, packets that are too long for the XDP program's ring come whole. Only the guest behind a tap can send such packets.

use std::os::fd::RawFd;

use super::XskQueue;
use super::packet_socket::PacketSocket;
use crate::packet::{FrameMemory, Offload, Packet, Segments};
use crate::port::FrameCache;
use crate::port::device::Queue;
use crate::port::virtio::header;
use crate::port::virtio::merge::{self, Parcel, merge_as};

/// Segments that are taken at once: each is as much work as forty packets.
const SEGMENTS: usize = 8;

/// Both ways of one queue.
#[derive(Debug)]
pub(super) struct PortQueue {
    ring: XskQueue,
    whole: PacketSocket,
    /// Whether the kernel takes UDP segments.
    udp: bool,
    /// Segments that the kernel did not take.
    refused: u64,
}

impl PortQueue {
    pub(super) fn new(ring: XskQueue, whole: PacketSocket, udp: bool) -> Self {
        Self {
            ring,
            whole,
            udp,
            refused: 0,
        }
    }

    /// Sends what is at the front as one packet, and returns how many packets were sent. All of those are taken out.
    fn send_whole(
        &mut self,
        cache: &mut FrameCache,
        packets: &mut Vec<Packet>,
        plan: Option<&merge::Plan>,
    ) -> usize {
        // What waits in the ring came before.
        self.ring.kick();
        let parcel = match plan {
            Some(plan) => merge_as(cache, packets, plan),
            None => Parcel::single(cache, packets),
        };
        let count = parcel.count();
        let header = header::towards_guest(parcel.first(), &parcel.offload, 0);
        let sent = self.whole.send(header, parcel.parts()).is_ok();
        for packet in packets.drain(..count) {
            cache.free(packet.frame);
        }
        if sent {
            return count;
        }
        self.refused += count as u64;
        0
    }
}

impl Queue for PortQueue {
    fn number(&self) -> u32 {
        self.ring.queue()
    }

    #[inline]
    fn receive(&mut self, cache: &mut FrameCache, out: &mut Vec<Packet>, max: usize) -> usize {
        // Segments first: what is short enough for the ring is rather the end of a burst than its beginning.
        let whole = self.whole.receive(cache, out, max.min(SEGMENTS));
        whole + self.ring.receive(cache, out, max - whole)
    }

    fn send(&mut self, cache: &mut FrameCache, packets: &mut Vec<Packet>) -> usize {
        let (mut sent, mut single) = (0, 0);
        while single < packets.len() {
            let plan = merge::plan(cache, &packets[single..]);
            if plan.is_none() && !packets[single].frame.is_large() {
                single += 1;
                continue;
            }
            let before = packets.len();
            sent += self.ring.send_front(cache, packets, single);
            if before - packets.len() < single {
                // The ring is full, and what comes behind must not overtake.
                return sent;
            }
            single = 0;
            sent += self.send_whole(cache, packets, plan.as_ref());
        }
        sent + self.ring.send_front(cache, packets, single)
    }

    fn kick(&mut self) {
        self.ring.kick();
    }

    fn has_unsent(&self) -> bool {
        self.ring.has_unsent()
    }

    fn reap(&mut self, cache: &mut FrameCache) {
        self.ring.reap(cache);
    }

    fn takes(&self, offload: &Offload) -> bool {
        self.udp || offload.segments != Segments::Udp
    }

    fn lost(&self) -> u64 {
        Queue::lost(&self.ring) + self.whole.lost() + self.refused
    }

    fn before_sleep(&mut self, descriptors: &mut Vec<RawFd>) -> bool {
        descriptors.extend(self.whole.fd());
        self.ring.before_sleep(descriptors) || self.whole.has_packets()
    }
}
