//! A queue pair of a guest, served by a worker: packets out of the guest's transmit ring, and into its receive ring.
//!
//! Each packet is copied once in each direction. A guest may change its memory at any moment, so packets are never evaluated in it.

#![allow(unsafe_code)]

use std::os::fd::RawFd;
use std::ptr;
use std::sync::Arc;

use super::link::{Active, Link, Setup};
use super::memory::GuestMemory;
use super::packed::Packed;
use super::ring::{Chain, Fault, Head, Ring};
use super::split::Split;
use crate::packet::Offload;
use crate::packet::buffer::LARGE_SIZE;
use crate::packet::{FrameMemory, Packet, Segments};
use crate::port::device::Queue;
use crate::port::virtio::header::{self, MAX_HEADER};
use crate::port::virtio::merge::{Parcel, merge};
use crate::port::{DATA_OFFSET, FrameCache};
use crate::prefetch::{prefetch_address, prefetch_to_write};

/// So many packets ahead of the one that is copied, the next is called for.
const AHEAD: u16 = 6;
/// Buffers that one packet may take of a guest's receive ring.
const MAX_BUFFERS: usize = 128;
/// The shortest Ethernet frame: its header.
const MIN_FRAME: usize = 14;

/// Either kind of ring.
#[derive(Debug)]
enum AnyRing {
    Split(Split),
    Packed(Packed),
}

/// Runs the same code for either kind, made for each.
macro_rules! with_ring {
    ($ring:expr, $name:ident => $body:expr) => {
        match $ring {
            AnyRing::Split($name) => $body,
            AnyRing::Packed($name) => $body,
        }
    };
}

/// A ring that is being served.
#[derive(Debug)]
struct Served {
    ring: AnyRing,
    setup: Setup,
}

impl Served {
    fn new(memory: &GuestMemory, setup: &Setup) -> Result<Self, Fault> {
        let ring = if setup.packed {
            AnyRing::Packed(Packed::new(memory, setup)?)
        } else {
            AnyRing::Split(Split::new(memory, setup)?)
        };
        Ok(Self {
            ring,
            setup: setup.clone(),
        })
    }

    fn base(&self) -> u32 {
        with_ring!(&self.ring, ring => ring.base())
    }

    fn call(&self) {
        if let Some(call) = &self.setup.call {
            call.signal();
        }
    }
}

/// A queue pair.
#[derive(Debug)]
pub(super) struct VhostQueue {
    number: u32,
    link: Arc<Link>,
    version: u64,
    active: Option<Arc<Active>>,
    header_len: usize,
    /// What the guest receives by, and what it sends by.
    receive: Option<Served>,
    transmit: Option<Served>,
    chain: Box<Chain>,
    heads: Box<[(Head, u32); MAX_BUFFERS]>,
    must_call: bool,
    lost: u64,
}

impl VhostQueue {
    pub(super) fn new(number: u32, link: Arc<Link>) -> Self {
        Self {
            number,
            link,
            version: 0,
            active: None,
            header_len: MAX_HEADER,
            receive: None,
            transmit: None,
            chain: Chain::new(),
            heads: Box::new([(Head::default(), 0); MAX_BUFFERS]),
            must_call: false,
            lost: 0,
        }
    }

    /// Lets go of the rings, and serves what the monitor wants now.
    #[cold]
    fn switch(&mut self) {
        self.let_go();
        let (version, active) = self.link.take();
        self.version = version;
        let mut running = 0;
        if let Some(active) = &active {
            self.header_len = header::header_len(active.features);
            let [receive, transmit] = &active.rings;
            let make = |setup: &Option<Setup>| {
                setup
                    .as_ref()
                    .map(|setup| Served::new(&active.memory, setup))
                    .transpose()
            };
            match (make(receive), make(transmit)) {
                (Ok(receive), Ok(transmit)) => {
                    running = u8::from(receive.is_some()) | u8::from(transmit.is_some()) << 1;
                    (self.receive, self.transmit) = (receive, transmit);
                }
                (Err(fault), _) | (_, Err(fault)) => self.link.fail(fault),
            }
        }
        self.active = active;
        self.link.acknowledge(version, running);
    }

    fn let_go(&mut self) {
        let rings = [self.receive.take(), self.transmit.take()];
        for (number, served) in rings.iter().enumerate() {
            if let Some(served) = served {
                self.link.leave(number, served.base());
            }
        }
        self.active = None;
    }

    /// The guest's driver has done what may not be: it loses the queue until its monitor starts it anew.
    #[cold]
    fn fail(&mut self, fault: Fault) {
        for served in [&self.receive, &self.transmit].into_iter().flatten() {
            if let Some(error) = &served.setup.error {
                error.signal();
            }
        }
        self.let_go();
        self.link.fail(fault);
    }

    fn check_memory(&self) -> Result<(), Fault> {
        match &self.active {
            Some(active) if active.memory.is_gone() => Err(Fault::Memory),
            _ => Ok(()),
        }
    }
}

/// Calls for the beginning of a buffer: where the header ends and the packet begins there are often two cache lines.
#[inline(always)]
fn call_for(memory: &GuestMemory, guest: Option<u64>, write: bool) {
    let Some(at) = guest.and_then(|guest| memory.translate(guest, 128)) else {
        return;
    };
    for line in [at, at.wrapping_add(64)] {
        if write {
            prefetch_to_write(line);
        } else {
            prefetch_address(line);
        }
    }
}

/// Copies bytes as `ptr::copy_nonoverlapping` does, short ones without a call.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: each arm reads and writes within `len` bytes, as far as `len` was found to reach; all loads come before the stores that they
    // overlap with, for the caller's ranges do not overlap each other.
    unsafe {
        let part = |at: usize| {
            let bytes = from.add(at).cast::<[u8; 16]>().read_unaligned();
            to.add(at).cast::<[u8; 16]>().write_unaligned(bytes);
        };
        match len {
            8..=15 => {
                let half = |at: usize| {
                    let bytes = from.add(at).cast::<[u8; 8]>().read_unaligned();
                    to.add(at).cast::<[u8; 8]>().write_unaligned(bytes);
                };
                half(0);
                half(len - 8);
            }
            16..=32 => {
                part(0);
                part(len - 16);
            }
            33..=64 => {
                part(0);
                part(16);
                part(len - 32);
                part(len - 16);
            }
            65..=128 => {
                part(0);
                part(16);
                part(32);
                part(48);
                part(len - 64);
                part(len - 48);
                part(len - 32);
                part(len - 16);
            }
            _ => ptr::copy_nonoverlapping(from, to, len),
        }
    }
}

/// What one turn over a transmit ring came to.
#[derive(Debug, Default)]
struct Taken {
    lost: u64,
    call: bool,
}

/// Copies what a guest sends out of its memory.
#[inline(always)]
fn take_from_guest<R: Ring, M: FrameMemory>(
    ring: &mut R,
    (active, header_len): (&Active, usize),
    chain: &mut Chain,
    (frames, small): (&mut M, usize),
    out: &mut Vec<Packet>,
    max: usize,
) -> Result<Taken, Fault> {
    let memory = &active.memory;
    let mut taken = Taken::default();
    ring.refresh()?;
    for ahead in 0..AHEAD {
        call_for(memory, ring.ahead(ahead), false);
    }
    for _ in 0..max {
        call_for(memory, ring.ahead(AHEAD), false);
        let Some(head) = ring.take(memory, false, chain)? else {
            break;
        };
        let len = chain.bytes.wrapping_sub(header_len as u64) as usize;
        // A runt, or more than any packet has.
        if chain.bytes < (header_len + MIN_FRAME) as u64
            || len > LARGE_SIZE - usize::from(DATA_OFFSET)
            || len > usize::from(u16::MAX)
        {
            taken.lost += 1;
            ring.give(memory, head, 0);
            continue;
        }
        let mut header = [0u8; MAX_HEADER];
        if header_len == MAX_HEADER {
            // A length that is known spares a call.
            copy_out(chain, 0, &mut header);
        } else {
            copy_out(chain, 0, &mut header[..header_len]);
        }
        let offload = header::offload(&header, active.features);
        let large = offload.segments != Segments::None || len > small;
        let frame = if large {
            frames.alloc_large()
        } else {
            frames.alloc()
        };
        let Some(mut frame) = frame else {
            // The packet stays with its guest until there are frames again.
            ring.put_back(&[head]);
            break;
        };
        let start = usize::from(DATA_OFFSET);
        copy_out(
            chain,
            header_len,
            &mut frames.bytes_mut(&mut frame)[start..start + len],
        );
        if large {
            offload.write(frames, &mut frame);
        }
        out.push(Packet {
            frame,
            start: DATA_OFFSET,
            len: len as u16,
        });
        ring.give(memory, head, 0);
    }
    taken.call = ring.publish(memory);
    Ok(taken)
}

/// Copies the bytes of a chain from `skip` on; there are enough.
#[inline(always)]
fn copy_out(chain: &Chain, mut skip: usize, mut to: &mut [u8]) {
    for piece in chain.pieces() {
        let len = piece.len as usize;
        if skip >= len {
            skip -= len;
            continue;
        }
        let part = (len - skip).min(to.len());
        let (now, later) = to.split_at_mut(part);
        // SAFETY: the piece is mapped guest memory of `len` bytes, of which `part` from `skip` on are read; `now` is ours, and `part` bytes
        // long. The guest may write meanwhile: then what is copied is a mixture, which is judged as what it is.
        unsafe { copy(piece.at.add(skip), now.as_mut_ptr(), part) };
        to = later;
        skip = 0;
        if to.is_empty() {
            return;
        }
    }
}

/// What came of one packet towards a guest.
#[derive(Debug, PartialEq, Eq)]
enum Put {
    Done,
    /// The ring has no room now.
    Full,
    /// No ring of this guest will ever have room.
    TooLong,
}

/// Copies a packet into a guest's receive ring.
#[inline(always)]
fn put_to_guest<R: Ring, M: FrameMemory>(
    ring: &mut R,
    (active, header_len): (&Active, usize),
    chain: &mut Chain,
    heads: &mut [(Head, u32); MAX_BUFFERS],
    parcel: &Parcel<'_, M>,
) -> Result<Put, Fault> {
    let memory = &active.memory;
    let total = header_len + parcel.len;
    // The common case: one buffer, which is filled as it is taken. With more, the header must say how many, so they are counted first.
    let Some(head) = ring.take(memory, true, chain)? else {
        return Ok(Put::Full);
    };
    if chain.bytes >= total as u64 {
        let header = header::towards_guest(parcel.first(), &parcel.offload, 1);
        let mut at = write_header(memory, chain, &header, header_len);
        for part in parcel.parts() {
            at += copy_in(memory, chain, at, part);
        }
        ring.give(memory, head, total as u32);
        return Ok(Put::Done);
    }
    ring.put_back(&[head]);
    if active.features & header::feature::MRG_RXBUF == 0 {
        return Ok(Put::TooLong);
    }
    put_into_several(ring, (active, header_len), chain, heads, parcel)
}

/// Writes the header ahead of a packet that has one buffer, and returns its length.
#[inline(always)]
fn write_header(
    memory: &GuestMemory,
    chain: &Chain,
    header: &header::Header,
    header_len: usize,
) -> usize {
    match chain.pieces().first() {
        Some(piece) if piece.len as usize >= MAX_HEADER && header_len == MAX_HEADER => {
            // SAFETY: the piece is mapped guest memory of as many bytes at least.
            unsafe {
                piece.at.cast::<u64>().write_unaligned(header.low.to_le());
                piece
                    .at
                    .add(8)
                    .cast::<u32>()
                    .write_unaligned(header.high.to_le());
            }
            memory.written(piece.guest, MAX_HEADER);
            MAX_HEADER
        }
        _ => copy_in(memory, chain, 0, &header.bytes()[..header_len]),
    }
}

/// The same for a packet that takes several buffers.
fn put_into_several<R: Ring, M: FrameMemory>(
    ring: &mut R,
    (active, header_len): (&Active, usize),
    chain: &mut Chain,
    heads: &mut [(Head, u32); MAX_BUFFERS],
    parcel: &Parcel<'_, M>,
) -> Result<Put, Fault> {
    let memory = &active.memory;
    let total = header_len + parcel.len;
    let mut taken = [Head::default(); MAX_BUFFERS];
    let (mut room, mut count) = (0u64, 0);
    while room < total as u64 {
        let next = if count < MAX_BUFFERS {
            ring.take(memory, true, chain)?
        } else {
            None
        };
        let Some(head) = next else {
            ring.put_back(&taken[..count]);
            return Ok(if count < MAX_BUFFERS {
                Put::Full
            } else {
                Put::TooLong
            });
        };
        heads[count] = (head, chain.bytes.min(u64::from(u32::MAX)) as u32);
        taken[count] = head;
        room += chain.bytes;
        count += 1;
    }
    ring.put_back(&taken[..count]);
    let header = header::towards_guest(parcel.first(), &parcel.offload, count as u16).bytes();
    let mut parts = std::iter::once(&header[..header_len]).chain(parcel.parts());
    let mut rest: &[u8] = &[];
    for (head, expected) in heads[..count].iter() {
        // Read again: the guest may have changed its mind, but nothing is ever written past a buffer.
        let Some(again) = ring.take(memory, true, chain)? else {
            return Err(Fault::Index);
        };
        if again.entries() != head.entries() || chain.bytes < u64::from(*expected) {
            return Err(Fault::Buffer);
        }
        let (mut at, room) = (0, *expected as usize);
        while at < room {
            if rest.is_empty() {
                match parts.next() {
                    Some(part) => rest = part,
                    None => break,
                }
            }
            let (now, later) = rest.split_at(rest.len().min(room - at));
            at += copy_in(memory, chain, at, now);
            rest = later;
        }
        ring.give(memory, again, at as u32);
    }
    Ok(Put::Done)
}

/// Copies bytes into a chain from `skip` on, as far as it reaches, and returns how many there were.
#[inline(always)]
fn copy_in(memory: &GuestMemory, chain: &Chain, mut skip: usize, mut from: &[u8]) -> usize {
    let all = from.len();
    for piece in chain.pieces() {
        let len = piece.len as usize;
        if skip >= len {
            skip -= len;
            continue;
        }
        let part = (len - skip).min(from.len());
        // SAFETY: the piece is mapped guest memory of `len` bytes, of which `part` from `skip` on are written; `from` has as many.
        unsafe { copy(from.as_ptr(), piece.at.add(skip), part) };
        memory.written(piece.guest + skip as u64, part);
        from = &from[part..];
        skip = 0;
        if from.is_empty() {
            break;
        }
    }
    all
}

impl Queue for VhostQueue {
    fn number(&self) -> u32 {
        self.number
    }

    #[inline]
    fn receive(&mut self, cache: &mut FrameCache, out: &mut Vec<Packet>, max: usize) -> usize {
        if self.link.has_changed(self.version) {
            self.switch();
        }
        let (Some(active), Some(served)) = (&self.active, &mut self.transmit) else {
            return 0;
        };
        let before = out.len();
        let guest = (&**active, self.header_len);
        let small = cache.umem().frame_size() - usize::from(DATA_OFFSET);
        let taken = with_ring!(&mut served.ring, ring => {
            take_from_guest(ring, guest, &mut self.chain, (cache, small), out, max)
        });
        let count = out.len() - before;
        match taken {
            Ok(taken) => {
                self.lost += taken.lost;
                if taken.call {
                    served.call();
                }
                if count > 0
                    && let Err(fault) = self.check_memory()
                {
                    self.fail(fault);
                }
            }
            // What was taken before the fault is as good as any packet.
            Err(fault) => self.fail(fault),
        }
        count
    }

    #[inline]
    fn send(&mut self, cache: &mut FrameCache, packets: &mut Vec<Packet>) -> usize {
        if self.link.has_changed(self.version) {
            self.switch();
        }
        let (Some(active), Some(served)) = (&self.active, &mut self.receive) else {
            return 0;
        };
        let guest = (&**active, self.header_len);
        let merges = header::merges(active.features);
        let (mut sent, mut done) = (0, 0);
        let mut fault;
        with_ring!(&mut served.ring, ring => {
            fault = ring.refresh().err();
            for ahead in 0..AHEAD {
                call_for(&active.memory, ring.ahead(ahead), true);
            }
            while done < packets.len() && fault.is_none() {
                call_for(&active.memory, ring.ahead(AHEAD), true);
                let parcel = if merges {
                    merge(cache, &mut packets[done..])
                } else {
                    Parcel::single(cache, &packets[done..])
                };
                let count = parcel.count();
                match put_to_guest(ring, guest, &mut self.chain, &mut self.heads, &parcel) {
                    Ok(Put::Done) => sent += count,
                    Ok(Put::TooLong) => self.lost += count as u64,
                    Ok(Put::Full) => break,
                    Err(error) => {
                        fault = Some(error);
                        break;
                    }
                }
                done += count;
            }
            self.must_call |= ring.publish(&active.memory);
        });
        for packet in packets.drain(..done) {
            cache.free(packet.frame);
        }
        let fault = fault.or_else(|| {
            if sent > 0 {
                self.check_memory().err()
            } else {
                None
            }
        });
        if let Some(fault) = fault {
            self.fail(fault);
        }
        sent
    }

    #[inline]
    fn kick(&mut self) {
        if self.must_call {
            self.must_call = false;
            if let Some(served) = &self.receive {
                served.call();
            }
        }
    }

    fn takes(&self, offload: &Offload) -> bool {
        self.active
            .as_ref()
            .is_some_and(|active| header::takes(active.features, offload))
    }

    fn is_heard(&self) -> bool {
        self.receive.is_some()
    }

    fn lost(&self) -> u64 {
        self.lost
    }

    fn before_sleep(&mut self, descriptors: &mut Vec<RawFd>) -> bool {
        descriptors.push(self.link.wake.fd());
        if self.link.has_changed(self.version) {
            return true;
        }
        let Some(served) = &mut self.transmit else {
            return false;
        };
        match &served.setup.kick {
            Some(kick) => descriptors.push(kick.fd()),
            // It expects to be polled.
            None => return true,
        }
        with_ring!(&mut served.ring, ring => ring.listen())
    }

    fn after_sleep(&mut self) {
        self.link.wake.clear();
        if let Some(served) = &mut self.transmit {
            if let Some(kick) = &served.setup.kick {
                kick.clear();
            }
            with_ring!(&mut served.ring, ring => ring.silence());
        }
    }
}

impl Drop for VhostQueue {
    fn drop(&mut self) {
        self.let_go();
        self.link.abandon();
    }
}

#[cfg(feature = "fuzzing")]
#[path = "fuzzing.rs"]
pub mod fuzzing;

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
