//! A packet socket on an interface, for segments that pass whole (TSO, GSO). An AF_XDP descriptor cannot say how a packet is to be split.
//!
//! The kernel says it in a virtio header ahead of each packet (`PACKET_VNET_HDR`). Packets that the interface's XDP program passes on are read
//! from a ring that the kernel shares with us (`TPACKET_V2`, `packet(7)`). Sending takes a system call for each segment, which may stand for
//! forty packets.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{io, mem, ptr};

use weft_ebpf_types::GUARD_MARK;

use crate::packet::buffer::LARGE_SIZE;
use crate::packet::parse::{ETHERTYPE_VLAN, VLAN_TAG};
use crate::packet::{FrameMemory, Packet, Segments};
use crate::port::virtio::header::{self, Header, feature};
use crate::port::virtio::merge::MAX_SEGMENTS;
use crate::port::{DATA_OFFSET, FrameCache};

/// `linux/if_packet.h`, where the library leaves it out.
const PACKET_VNET_HDR: libc::c_int = 15;

/// Packets that may wait in the ring.
const SLOTS: usize = 32;
/// Bytes of a slot: the kernel's header, and the longest packet. A multiple of the page size, as the kernel wants it.
const SLOT: usize = 68 * 1024;
/// Bytes of the virtio header.
const HEADER: usize = 10;
/// The shortest Ethernet frame: its header.
const MIN_FRAME: usize = 14;
/// Bytes of its MACs, behind which a tag is.
const MACS: usize = 12;
/// Most bytes in flight to the other side.
const SEND_BUFFER: libc::c_int = 8 << 20;
/// What the kernel may leave to us, and we to it.
const FEATURES: u64 = feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_USO;

/// A packet socket that is bound to an interface.
#[derive(Debug)]
pub(super) struct PacketSocket {
    fd: OwnedFd,
    ring: Option<Ring>,
    /// Packets that the kernel had no slot for, as far as it was asked.
    overflowed: Cell<u64>,
    lost: u64,
}

impl PacketSocket {
    /// Opens a socket that only sends, on the interface of this index.
    pub(super) fn sender(interface: u32) -> io::Result<Self> {
        Self::open(interface, false)
    }

    /// Opens a socket for each of the interface's first `queues` queues that receives what arrives by it, too.
    pub(super) fn receivers(interface: u32, queues: usize) -> io::Result<Vec<Self>> {
        let mut sockets = Vec::new();
        // 0: the kernel chooses a number that nobody has.
        let mut group = libc::PACKET_FANOUT_FLAG_UNIQUEID << 16;
        for _ in 0..queues {
            let socket = Self::open(interface, true)?;
            if queues > 1 {
                let value = group | libc::PACKET_FANOUT_QM << 16;
                set(&socket.fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &value)?;
                group = get::<u32>(&socket.fd, libc::PACKET_FANOUT)? & 0xffff;
            }
            sockets.push(socket);
        }
        // The kernel's mark of the queue counts from 1, with 0 for none, and is taken modulo the number of sockets.
        sockets.rotate_left(1.min(queues));
        Ok(sockets)
    }

    fn open(interface: u32, receives: bool) -> io::Result<Self> {
        // No protocol: nothing arrives before the socket is bound to one. And not past the queueing discipline: what goes straight to the device,
        // the kernel drops instead of splitting it where the other side does not take it whole.
        // SAFETY: a plain system call.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just opened it, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let packet = |option, value: libc::c_int| set(&fd, libc::SOL_PACKET, option, &value);
        packet(PACKET_VNET_HDR, 1)?;
        set(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER)?;
        // The interface's guard lets nothing else pass.
        set(&fd, libc::SOL_SOCKET, libc::SO_MARK, &GUARD_MARK)?;
        let mut ring = None;
        if receives {
            packet(libc::PACKET_IGNORE_OUTGOING, 1)?;
            ring = Some(Ring::new(&fd)?);
        }
        let protocol = if receives { libc::ETH_P_ALL } else { 0 };
        bind(&fd, interface, protocol as u16)?;
        Ok(Self {
            fd,
            ring,
            overflowed: Cell::new(0),
            lost: 0,
        })
    }

    /// Has the interface of this index receive frames to all multicast addresses, as long as the socket is open (`packet(7)`).
    pub(super) fn receive_all_multicast(&self, interface: u32) -> io::Result<()> {
        self.join(interface, libc::PACKET_MR_ALLMULTI)
    }

    /// The same of frames to any MAC.
    pub(super) fn receive_all(&self, interface: u32) -> io::Result<()> {
        self.join(interface, libc::PACKET_MR_PROMISC)
    }

    fn join(&self, interface: u32, what: libc::c_int) -> io::Result<()> {
        let request = libc::packet_mreq {
            mr_ifindex: interface.cast_signed(),
            mr_type: what as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set(
            &self.fd,
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            &request,
        )
    }

    /// To wait on with poll(2), where it receives.
    pub(super) fn fd(&self) -> Option<RawFd> {
        self.ring.is_some().then(|| self.fd.as_raw_fd())
    }

    /// Takes up to `max` packets that have arrived, and returns how many.
    pub(super) fn receive(
        &mut self,
        cache: &mut FrameCache,
        out: &mut Vec<Packet>,
        max: usize,
    ) -> usize {
        let Some(ring) = &mut self.ring else { return 0 };
        let before = out.len();
        // What is no packet counts too: nobody keeps the worker here by sending nothing else.
        for _ in 0..max {
            if !ring.is_filled() {
                break;
            }
            match ring.read(cache) {
                Read::Packet(packet) => out.push(packet),
                Read::Bad => self.lost += 1,
                // It stays until there are frames again.
                Read::NoFrame => break,
            }
            ring.release();
        }
        out.len() - before
    }

    /// Whether packets wait to be received.
    pub(super) fn has_packets(&self) -> bool {
        self.ring.as_ref().is_some_and(Ring::is_filled)
    }

    /// Sends one packet that is made of these parts.
    pub(super) fn send<'a>(
        &self,
        header: Header,
        parts: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let bytes = header.bytes();
        // The kernel only reads what the vectors name.
        let vector_of = |part: &[u8]| libc::iovec {
            iov_base: part.as_ptr().cast_mut().cast(),
            iov_len: part.len(),
        };
        let mut vector = [vector_of(&bytes[..HEADER]); MAX_SEGMENTS + 1];
        let mut count = 1;
        for (slot, part) in vector[1..].iter_mut().zip(parts) {
            *slot = vector_of(part);
            count += 1;
        }
        // SAFETY: a plain C structure, for which all zero is a value.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = vector.as_mut_ptr();
        message.msg_iovlen = count;
        // SAFETY: the message names the first `count` vectors, each the bytes of a slice that outlives the call; the kernel reads them.
        let sent =
            unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Packets that did not fit, or were no packets.
    pub(super) fn lost(&self) -> u64 {
        // `struct tpacket_stats`: packets, and those that found no slot, since this was asked before.
        if self.ring.is_some()
            && let Ok([_, since]) = get::<[u32; 2]>(&self.fd, libc::PACKET_STATISTICS)
        {
            self.overflowed
                .set(self.overflowed.get() + u64::from(since));
        }
        self.lost + self.overflowed.get()
    }
}

/// What came of a slot.
enum Read {
    Packet(Packet),
    Bad,
    NoFrame,
}

/// The ring of received packets, mapped.
#[derive(Debug)]
struct Ring {
    base: *mut u8,
    next: usize,
}

// SAFETY: the mapping belongs to this value alone on our side.
unsafe impl Send for Ring {}

impl Ring {
    fn new(fd: &OwnedFd) -> io::Result<Self> {
        let version = libc::tpacket_versions::TPACKET_V2 as libc::c_int;
        set(fd, libc::SOL_PACKET, libc::PACKET_VERSION, &version)?;
        let request = libc::tpacket_req {
            tp_block_size: SLOT as u32,
            tp_block_nr: SLOTS as u32,
            tp_frame_size: SLOT as u32,
            tp_frame_nr: SLOTS as u32,
        };
        set(fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        // SAFETY: a new mapping at an address of the kernel's choice, of the ring that was just made.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                SLOT * SLOTS,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            base: base.cast(),
            next: 0,
        })
    }

    /// The next slot.
    fn slot(&self) -> *mut u8 {
        // SAFETY: `next` is below SLOTS, and the mapping has as many slots of SLOT bytes.
        unsafe { self.base.add(self.next * SLOT) }
    }

    /// Whose the next slot is.
    fn status(&self) -> &AtomicU32 {
        // SAFETY: each slot begins with `tpacket2_hdr`, whose first member is the status, aligned as the slot is; the kernel changes it beside us,
        // hence atomic.
        unsafe { AtomicU32::from_ptr(self.slot().cast()) }
    }

    #[inline]
    fn is_filled(&self) -> bool {
        self.status().load(Ordering::Acquire) & libc::TP_STATUS_USER != 0
    }

    /// Makes a packet of the next slot, which is filled.
    fn read(&self, cache: &mut FrameCache) -> Read {
        // SAFETY: the slot is filled, so the kernel has written its header and leaves it alone until it is released.
        let head: libc::tpacket2_hdr = unsafe { self.slot().cast::<libc::tpacket2_hdr>().read() };
        let (at, len) = (usize::from(head.tp_mac), head.tp_snaplen as usize);
        let tag = tag(&head);
        let tag: &[u8] = tag.as_ref().map_or(&[], |tag| tag);
        let taken = len + tag.len();
        let whole = head.tp_snaplen == head.tp_len
            && len >= MIN_FRAME
            && taken <= usize::from(u16::MAX)
            && taken <= LARGE_SIZE - usize::from(DATA_OFFSET)
            && at >= mem::size_of::<libc::tpacket2_hdr>() + HEADER
            && at + len <= SLOT;
        if !whole {
            return Read::Bad;
        }
        let mut header = [0; header::MAX_HEADER];
        // SAFETY: header and packet lie within the slot, as was just checked, and the kernel leaves it alone; what is made of it here is only read,
        // and gone before the slot is released.
        let bytes = unsafe {
            let slot = self.slot();
            ptr::copy_nonoverlapping(slot.add(at - HEADER), header.as_mut_ptr(), HEADER);
            std::slice::from_raw_parts(slot.add(at), len)
        };
        let offload = header::offload(&header, FEATURES);
        let small = cache.umem().frame_size() - usize::from(DATA_OFFSET);
        let large = offload.segments != Segments::None || taken > small;
        let frame = if large {
            cache.alloc_large()
        } else {
            cache.alloc()
        };
        let Some(mut frame) = frame else {
            return Read::NoFrame;
        };
        let room = &mut cache.bytes_mut(&mut frame)[usize::from(DATA_OFFSET)..][..taken];
        let (macs, rest) = bytes.split_at(MACS);
        room[..MACS].copy_from_slice(macs);
        room[MACS..][..tag.len()].copy_from_slice(tag);
        room[MACS + tag.len()..].copy_from_slice(rest);
        if large {
            offload.write(cache, &mut frame);
        }
        Read::Packet(Packet {
            frame,
            start: DATA_OFFSET,
            len: taken as u16,
        })
    }

    /// Returns the next slot to the kernel, and advances.
    fn release(&mut self) {
        self.status()
            .store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % SLOTS;
    }
}

/// The tag that the kernel took out of a frame before it came here (IEEE 802.1Q §9.3), and that belongs behind the MACs; nothing where it took none.
fn tag(head: &libc::tpacket2_hdr) -> Option<[u8; VLAN_TAG]> {
    if head.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let kind = match head.tp_status & libc::TP_STATUS_VLAN_TPID_VALID {
        0 => ETHERTYPE_VLAN,
        _ => head.tp_vlan_tpid,
    };
    let ([a, b], [c, d]) = (kind.to_be_bytes(), head.tp_vlan_tci.to_be_bytes());
    Some([a, b, c, d])
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and no reference to it is kept.
        unsafe { libc::munmap(self.base.cast(), SLOT * SLOTS) };
    }
}

fn set<T>(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as `value` has, which is a plain C type wherever this is called.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            ptr::from_ref(value).cast(),
            mem::size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn bind(fd: &OwnedFd, interface: u32, protocol: u16) -> io::Result<()> {
    // SAFETY: a plain C structure, for which all zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = interface.cast_signed();
    // SAFETY: the kernel reads an address of the length that is given.
    let result = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Reads an option of packet sockets.
fn get<T: Default>(fd: &OwnedFd, option: libc::c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut len = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which `value` has; it is made of plain integers wherever this is called.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            ptr::from_mut(&mut value).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}
