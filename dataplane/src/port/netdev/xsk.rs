//! One AF_XDP socket: a device's queue with its four rings on the shared memory.
//!
//! The worker that owns the queue calls in every round: [`XskQueue::receive`], then after its own work [`XskQueue::send`] for packets that leave
//! here, [`XskQueue::kick`] once, and [`XskQueue::reap`]. No call allocates, locks or fails. `kick` is a system call if the kernel wants one.
//!
//! The queue knows which of its frames the kernel has. So a frame that the kernel returns twice cannot become two packets, and closing the
//! queue returns all of them.

#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use xsk_rs::{
    CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue,
    config::{Interface, SocketConfig},
};

use super::frame_set::FrameSet;
use crate::packet::buffer::{Frame, FrameMemory, Packet};
use crate::port::{
    device::Queue,
    error::{PortError, io_error_of},
    frame_cache::FrameCache,
    pool::Holding,
    socket_options,
    umem::{DATA_OFFSET, Umem, socket_config},
};

/// Descriptors that move between a ring and us at once.
const BATCH: usize = 64;

/// After so many turns without a packet, the device is polled less often: each poll is a system call, which others wait for.
const EAGER: u32 = 16;
/// Every how many turns, then.
const LAZY: u32 = 4;

/// How many packets a device may drop within one doorbell: each takes a system call, and others wait for this worker too. What is left goes
/// with the next round's.
const DEVICE_DROPS: u64 = 64;
/// How many rounds at most pass between two doorbells that the kernel does not heed.
const LONGEST_PAUSE: u32 = 32;
/// The part of the free frames that may wait in the ring of a queue that takes nothing, and what may in any case.
const WAITING_PART: usize = 8;
const WAITING_LEAST: usize = 64;

/// How long closing waits for the kernel to send what it was given.
const CLOSE_WAIT: Duration = Duration::from_millis(100);

/// How long opening waits for the kernel to release a closed queue.
const REOPEN_WAIT: Duration = Duration::from_millis(500);

/// Driving the device from our own calls instead of from interrupts.
#[derive(Debug, Clone, Copy)]
pub struct BusyPoll {
    /// How long a call polls, in microseconds.
    pub microseconds: u32,
    /// How many packets a poll takes at most.
    pub budget: u32,
}

/// How a queue is opened.
#[derive(Debug, Clone, Copy)]
pub struct QueueOptions {
    /// Entries of the receive ring and the transmit ring; a power of two.
    pub ring_size: u32,
    /// Frames to keep with the kernel for receiving; at most the UMEM's ring size.
    pub fill: u32,
    /// Bytes by which the XDP program of this interface grows the head of each packet.
    pub headroom: u16,
    /// Busy polling, if wanted.
    pub busy_poll: Option<BusyPoll>,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            ring_size: 2048,
            fill: 1024,
            headroom: 0,
            busy_poll: None,
        }
    }
}

/// What happened on a queue since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Packets received.
    pub received: u64,
    /// Packets given to the kernel to send.
    pub sent: u64,
    /// Packets that had to be moved to where a frame's descriptor points before they could be sent.
    pub moved: u64,
    /// Packets that are too long for a frame; freed, not sent.
    pub too_long: u64,
    /// Received packets shorter than the headroom that they should bring, or that leave their frame; freed.
    pub malformed: u64,
    /// Frames that the kernel returned though it didn't have them; ignored.
    pub unexpected: u64,
    /// Doorbells rung for sending.
    pub doorbells: u64,
    /// Doorbells that the kernel answered with an error other than "try again".
    pub doorbell_errors: u64,
    /// Packets given to the kernel to send that the device dropped, as far as the kernel tells: in copy mode it does.
    pub device_dropped: u64,
    /// Dropped by the kernel: no frame to receive into, or another reason that it doesn't name.
    pub kernel_dropped: u64,
    /// Times that the kernel looked for a frame in the fill ring and found none.
    pub kernel_fill_empty: u64,
    /// Dropped by the kernel: the receive ring was full.
    pub kernel_ring_full: u64,
    /// Descriptors that the kernel refused.
    pub kernel_invalid: u64,
}

/// One queue of one device.
#[derive(Debug)]
pub struct XskQueue {
    name: String,
    queue: u32,
    umem: Arc<Umem>,
    rings: Option<Rings>,
    fd: RawFd,
    headroom: u16,
    fill_target: u32,
    ring_size: u32,
    busy_poll: bool,
    /// Turns without a packet.
    empty: u32,
    zero_copy: bool,
    filled: FrameSet,
    sending: FrameSet,
    needs_bell: bool,
    /// Rounds between the last two doorbells; 0 unless the kernel takes nothing: the queue has stopped, or its link is down.
    pause: u32,
    /// How many of them are left.
    paused: u32,
    scratch: [FrameDesc; BATCH],
    counters: QueueCounters,
    holding: crate::sync::Arc<Holding>,
}

#[derive(Debug)]
struct Rings {
    transmit: TxQueue,
    receive: RxQueue,
    fill: FillQueue,
    completion: CompQueue,
}

impl XskQueue {
    /// Opens queue `queue` of `interface`, a name in the calling thread's network namespace. Packets arrive once the queue is registered with
    /// the interface's XDP program ([`Attachment::register`](super::Attachment::register)) and filled, by [`XskQueue::fill`] or by the
    /// first [`XskQueue::receive`].
    pub fn open(
        umem: &Arc<Umem>,
        interface: &str,
        queue: u32,
        options: QueueOptions,
    ) -> Result<Self, PortError> {
        let name: Interface = interface.parse().map_err(|_| PortError::NoInterface {
            interface: interface.to_owned(),
        })?;
        let config = socket_config(options.ring_size)?;
        // The kernel stops sending when the completion ring is full, so that must hold what the transmit ring holds.
        for (what, value) in [
            ("frames to receive into", options.fill),
            ("ring size", options.ring_size),
        ] {
            if value > umem.ring_size() {
                return Err(PortError::Setting {
                    what,
                    value: u64::from(value),
                    rule: "more than the packet memory's rings hold",
                });
            }
        }
        let (transmit, receive, own) = bind(umem, &name, queue, config)
            .map_err(|source| bind_error(interface, queue, source))?;
        let Some((fill, completion)) = own else {
            return Err(PortError::QueueBusy {
                interface: interface.to_owned(),
                queue,
            });
        };
        let fd = transmit.fd().as_raw_fd();
        socket_options::close_on_exec(&fd)?;
        socket_options::raise_send_budget(fd, options.ring_size.min(256));
        let named = |source| PortError::Io {
            what: format!("interface {interface} queue {queue}: socket options"),
            source,
        };
        if let Some(poll) = options.busy_poll {
            socket_options::prefer_busy_poll(fd, poll.microseconds, poll.budget).map_err(named)?;
        }
        let zero_copy = socket_options::is_zero_copy(fd).map_err(named)?;
        Ok(Self {
            name: interface.to_owned(),
            queue,
            umem: Arc::clone(umem),
            rings: Some(Rings {
                transmit,
                receive,
                fill,
                completion,
            }),
            fd,
            headroom: options.headroom,
            fill_target: options.fill,
            ring_size: options.ring_size,
            busy_poll: options.busy_poll.is_some(),
            empty: 0,
            zero_copy,
            filled: FrameSet::new(umem.frame_count()),
            sending: FrameSet::new(umem.frame_count()),
            needs_bell: false,
            pause: 0,
            paused: 0,
            scratch: [FrameDesc::default(); BATCH],
            counters: QueueCounters::default(),
            holding: umem.ledger.open(),
        })
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.name
    }

    /// Which of the interface's queues this is.
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// To wait on with poll(2): readable when packets have arrived.
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// Whether the device reads and writes the frames itself.
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Takes up to `max` packets that have arrived, appends them to `out`, and returns how many. Before that, gives the kernel frames for
    /// those to come. `out` should have room for `max` more.
    #[inline]
    pub fn receive(&mut self, cache: &mut FrameCache, out: &mut Vec<Packet>, max: usize) -> usize {
        self.refill(cache);
        if self.busy_poll && (self.empty < EAGER || self.empty.is_multiple_of(LAZY)) {
            // The device is driven from here. Whatever the call says, the ring tells what came.
            let _ = socket_options::ring_receive_bell(self.fd);
        }
        let before = out.len();
        let mut left = max;
        while left > 0 {
            let Some(rings) = &mut self.rings else { break };
            let wanted = left.min(BATCH);
            // SAFETY: the descriptors are written only; the frames that they name are ours from here on (checked below).
            let got = unsafe { rings.receive.consume(&mut self.scratch[..wanted]) };
            for at in 0..got {
                let desc = self.scratch[at];
                self.accept(&desc, cache, out);
            }
            left -= got;
            if got < wanted {
                break;
            }
        }
        let received = out.len() - before;
        if received == 0 {
            self.empty = self.empty.wrapping_add(1);
        } else {
            self.empty = 0;
            self.counters.received += received as u64;
            cache.note_held(received as i64);
            self.publish();
        }
        received
    }

    /// Makes a packet of a received descriptor.
    #[inline]
    fn accept(&mut self, desc: &FrameDesc, cache: &mut FrameCache, out: &mut Vec<Packet>) {
        let (index, offset) = self.umem.locate(desc.addr());
        if !self.filled.remove(index) {
            self.counters.unexpected += 1;
            return;
        }
        let headroom = usize::from(self.headroom);
        let len = desc.lengths().data();
        if len <= headroom || offset + len > self.umem.frame_size() {
            self.counters.malformed += 1;
            cache.put(index);
            return;
        }
        // Both fit: a frame has at most 4096 bytes.
        out.push(Packet {
            frame: Frame::from_index(index),
            start: (offset + headroom) as u16,
            len: (len - headroom) as u16,
        });
    }

    /// Gives the kernel frames to receive into before the queue is read for the first time: packets wait in the ring until then.
    pub fn fill(&mut self, cache: &mut FrameCache) {
        self.refill(cache);
    }

    /// Gives the kernel frames to receive into, in batches, until it has as many as it should.
    #[inline]
    fn refill(&mut self, cache: &mut FrameCache) {
        let Some(rings) = &mut self.rings else { return };
        let mut changed = false;
        while self.filled.len() + (BATCH as u32).min(self.fill_target) <= self.fill_target {
            let mut count = 0;
            while count < BATCH.min(self.fill_target as usize) {
                let Some(index) = cache.take() else { break };
                self.scratch[count] = self.umem.descriptor(index);
                count += 1;
            }
            // SAFETY: the frames came out of the cache, so nobody else has them, and they are entered below.
            let given = unsafe { rings.fill.produce(&self.scratch[..count]) };
            // The ring takes all or nothing.
            for desc in &self.scratch[..count] {
                let (index, _) = self.umem.locate(desc.addr());
                if given == count {
                    self.filled.insert(index);
                } else {
                    cache.put(index);
                }
            }
            changed = true;
            if count == 0 || given != count {
                break;
            }
        }
        if changed {
            if rings.fill.needs_wakeup() {
                // The driver sleeps for want of frames. A failure shows as packets that don't arrive, and is tried again.
                let _ = socket_options::ring_receive_bell(self.fd);
            }
            cache.publish();
            self.publish();
        }
    }

    /// Puts packets into the transmit ring, and returns how many. Those are taken out of `packets` from the front; what doesn't fit
    /// stays there, for the caller to keep or to free. A packet that doesn't begin at [`DATA_OFFSET`] of its frame is moved there
    /// first; one too long for that is freed and counted as `too_long`. They leave with the next [`XskQueue::kick`].
    #[inline]
    pub fn send(&mut self, cache: &mut FrameCache, packets: &mut Vec<Packet>) -> usize {
        let all = packets.len();
        self.send_front(cache, packets, all)
    }

    /// The same with the first `max` packets alone.
    #[inline]
    pub(super) fn send_front(
        &mut self,
        cache: &mut FrameCache,
        packets: &mut Vec<Packet>,
        max: usize,
    ) -> usize {
        let room = self
            .limit(cache)
            .saturating_sub(self.sending.len() as usize);
        let Some(rings) = &mut self.rings else {
            return 0;
        };
        let taken = room.min(max).min(packets.len());
        let (mut sent, mut count) = (0, 0);
        let longest = self.umem.frame_size() - usize::from(DATA_OFFSET);
        for mut packet in packets.drain(..taken) {
            if usize::from(packet.len) > longest || packet.frame.is_large() {
                self.counters.too_long += 1;
                cache.free(packet.frame);
                continue;
            }
            if packet.start != DATA_OFFSET {
                let start = usize::from(packet.start);
                let bytes = cache.bytes_mut(&mut packet.frame);
                bytes.copy_within(
                    start..start + usize::from(packet.len),
                    usize::from(DATA_OFFSET),
                );
                self.counters.moved += 1;
            }
            let index = packet.frame.into_index();
            let mut desc = self.umem.descriptor(index);
            // SAFETY: we hold the frame's token, so nobody else touches its bytes; only the descriptor's length is set.
            unsafe { self.umem.kernel().data_mut(&mut desc) }
                .cursor()
                .set_pos(usize::from(packet.len));
            self.sending.insert(index);
            self.scratch[count] = desc;
            count += 1;
            if count == BATCH {
                sent += produce(&mut rings.transmit, &self.scratch[..count]);
                count = 0;
            }
        }
        if count > 0 {
            sent += produce(&mut rings.transmit, &self.scratch[..count]);
        }
        if sent > 0 {
            self.needs_bell = true;
            self.counters.sent += sent as u64;
            cache.note_held(-(sent as i64));
            self.publish();
        }
        sent
    }

    /// How many frames may be with the kernel to send.
    #[inline]
    fn limit(&self, cache: &FrameCache) -> usize {
        let all = self.ring_size as usize;
        if self.pause == 0 {
            return all;
        }
        // Nobody knows for how long they stay there, and others need some: the fewer are left, the fewer may wait.
        all.min((cache.umem().pool.len() / WAITING_PART).max(WAITING_LEAST))
    }

    /// Tells the kernel to send what is in the ring, if there is anything and the kernel needs a wake-up; less and less often while it
    /// takes nothing.
    #[inline]
    pub fn kick(&mut self) {
        if !self.needs_bell {
            return;
        }
        if self.paused > 0 {
            self.paused -= 1;
            return;
        }
        self.ring_bell();
    }

    /// Rings until the kernel has taken everything, takes nothing more now, or the device drops what it is given.
    fn ring_bell(&mut self) {
        let Some(rings) = &mut self.rings else { return };
        let before = rings.transmit.nb_free_exact();
        let mut free = before;
        let mut dropped = 0;
        self.needs_bell = false;
        while free < self.ring_size && rings.transmit.needs_wakeup() {
            self.counters.doorbells += 1;
            // In copy mode a call sends a bounded number of packets and then says "again"; it says "busy" when the device dropped one.
            // With anything else (no buffers, device down) the packets wait in the ring.
            let error =
                socket_options::ring_transmit_bell(self.fd).map_err(|error| error.raw_os_error());
            let goes_on = match error {
                Ok(()) | Err(Some(libc::EAGAIN)) => true,
                Err(Some(libc::EBUSY)) => {
                    dropped += 1;
                    dropped < DEVICE_DROPS
                }
                Err(_) => {
                    self.counters.doorbell_errors += 1;
                    false
                }
            };
            let now_free = rings.transmit.nb_free_exact();
            self.needs_bell = now_free < self.ring_size;
            if !goes_on || now_free == free {
                free = now_free;
                break;
            }
            free = now_free;
        }
        self.counters.device_dropped += dropped;
        self.pause = if self.needs_bell && free == before {
            (self.pause * 2).clamp(1, LONGEST_PAUSE)
        } else {
            0
        };
        self.paused = self.pause;
    }

    /// Takes back the frames of packets that have been sent.
    #[inline]
    pub fn reap(&mut self, cache: &mut FrameCache) {
        if self.sending.len() == 0 {
            return;
        }
        let before = self.sending.len();
        self.complete(|index| cache.put(index));
        if self.sending.len() == before {
            return;
        }
        cache.publish();
        self.publish();
        // Room in the completion ring may be what the kernel waits for.
        if self.needs_bell {
            self.ring_bell();
        }
    }

    fn complete(&mut self, mut each: impl FnMut(u32)) {
        let Some(rings) = &mut self.rings else { return };
        loop {
            // SAFETY: the descriptors are written only; the frames that they name are ours from here on (checked below).
            let got = unsafe { rings.completion.consume(&mut self.scratch) };
            for desc in &self.scratch[..got] {
                let (index, _) = self.umem.locate(desc.addr());
                if self.sending.remove(index) {
                    each(index);
                } else {
                    self.counters.unexpected += 1;
                }
            }
            if got < BATCH {
                return;
            }
        }
    }

    /// Whether packets wait for the kernel to take them.
    pub fn has_unsent(&self) -> bool {
        self.needs_bell
    }

    /// Frames that the kernel has to receive into, and to send.
    pub fn frames(&self) -> (u32, u32) {
        (self.filled.len(), self.sending.len())
    }

    /// What happened, the kernel's own counts included.
    pub fn counters(&self) -> QueueCounters {
        let kernel = self
            .rings
            .as_ref()
            .and_then(|rings| rings.transmit.fd().xdp_statistics().ok())
            .unwrap_or_default();
        QueueCounters {
            kernel_dropped: kernel.rx_dropped(),
            kernel_fill_empty: kernel.rx_fill_ring_empty_descs(),
            kernel_ring_full: kernel.rx_ring_full(),
            kernel_invalid: kernel.rx_invalid_descs() + kernel.tx_invalid_descs(),
            ..self.counters
        }
    }

    #[inline]
    fn publish(&self) {
        let (fill, transmit) = (i64::from(self.filled.len()), i64::from(self.sending.len()));
        self.holding.fill.store(fill, Ordering::Relaxed);
        self.holding.transmit.store(transmit, Ordering::Relaxed);
    }
}

/// Room was counted before, so the ring takes them all.
#[inline]
fn produce(ring: &mut TxQueue, descriptors: &[FrameDesc]) -> usize {
    // SAFETY: the frames' tokens were taken, so nobody touches them until the completion ring returns them.
    let taken = unsafe { ring.produce(descriptors) };
    debug_assert_eq!(
        taken,
        descriptors.len(),
        "the transmit ring was counted wrong"
    );
    taken
}

impl Drop for XskQueue {
    /// Lets the kernel send what it was given, for a while, closes the socket, and gives all frames back to the pool.
    fn drop(&mut self) {
        let deadline = Instant::now() + CLOSE_WAIT;
        let umem = Arc::clone(&self.umem);
        loop {
            self.complete(|index| umem.pool.put(index));
            if self.sending.len() == 0 || Instant::now() > deadline {
                break;
            }
            self.ring_bell();
            thread::sleep(Duration::from_micros(200));
        }
        // The kernel unbinds the socket before close returns: from here on it neither reads nor writes the frames.
        self.rings = None;
        self.filled.drain(|index| umem.pool.put(index));
        self.sending.drain(|index| umem.pool.put(index));
        self.publish();
    }
}

impl Queue for XskQueue {
    fn number(&self) -> u32 {
        self.queue
    }

    fn receive(&mut self, cache: &mut FrameCache, out: &mut Vec<Packet>, max: usize) -> usize {
        Self::receive(self, cache, out, max)
    }

    fn send(&mut self, cache: &mut FrameCache, packets: &mut Vec<Packet>) -> usize {
        Self::send(self, cache, packets)
    }

    fn kick(&mut self) {
        Self::kick(self);
    }

    fn has_unsent(&self) -> bool {
        Self::has_unsent(self)
    }

    fn reap(&mut self, cache: &mut FrameCache) {
        Self::reap(self, cache);
    }

    fn lost(&self) -> u64 {
        let counts = self.counters();
        counts.kernel_dropped + counts.kernel_ring_full + counts.too_long + counts.device_dropped
    }

    fn before_sleep(&mut self, descriptors: &mut Vec<RawFd>) -> bool {
        // Nothing tells when the kernel would take more, so it is asked each time.
        if self.needs_bell {
            self.ring_bell();
        }
        descriptors.push(self.fd);
        false
    }
}

type Bound = (TxQueue, RxQueue, Option<(FillQueue, CompQueue)>);

/// Binds a socket. The kernel releases a closed socket's queue with a delay, so "busy" is retried.
fn bind(umem: &Umem, interface: &Interface, queue: u32, config: SocketConfig) -> io::Result<Bound> {
    let deadline = Instant::now() + REOPEN_WAIT;
    loop {
        // SAFETY: every descriptor given to this socket comes from `umem`, and a frame is given away only with its token.
        let error = match unsafe { Socket::new(config, umem.kernel(), interface, queue) } {
            Ok(bound) => return Ok(bound),
            Err(error) => io_error_of(&error),
        };
        if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() > deadline {
            return Err(error);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn bind_error(interface: &str, queue: u32, source: io::Error) -> PortError {
    let interface = interface.to_owned();
    match source.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => PortError::NoInterface { interface },
        Some(libc::EBUSY) => PortError::QueueBusy { interface, queue },
        Some(libc::EINVAL) => PortError::NoQueue { interface, queue },
        _ => PortError::from_io(
            format!("interface {interface} queue {queue}: opening an AF_XDP socket"),
            "CAP_NET_RAW and CAP_NET_ADMIN",
            source,
        ),
    }
}
