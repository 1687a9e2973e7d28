//! Entry points for fuzzers: arbitrary guest memory, and arbitrary messages of a monitor. Neither may affect more than its own port. Built for
//! the fuzz workspace only.

use std::fs::File;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use vhost::vhost_user::{BackendReqHandler, VhostUserBackendReqHandlerMut};

use super::*;
use crate::packet::PlainMemory;
use crate::port::event::Event;
use crate::port::vhost::control::Control;
use crate::port::vhost::enable;
use crate::port::vhost::memory::{Layout, Region};
use crate::port::virtio::header::feature;

/// Bytes of the guest's memory; the input is its beginning.
const MEMORY: usize = 0x1_0000;
/// Where the guest's monitor has its memory, and in it the parts of a ring of at most 64 entries.
const MONITOR: u64 = 1 << 40;
const DESCRIPTORS: u64 = MONITOR;
const DRIVER: u64 = MONITOR + 0x400;
const DEVICE: u64 = MONITOR + 0x500;
const FRAMES: u32 = 64;
const FRAME: usize = 2048;
const LARGE: u32 = 2;

fn memory_file(len: usize) -> File {
    // SAFETY: a plain system call with a constant name; a descriptor that it returns is new and nothing else owns it.
    let file = unsafe {
        let descriptor = libc::memfd_create(c"weft-fuzz".as_ptr(), libc::MFD_CLOEXEC);
        assert!(descriptor >= 0, "no file in memory");
        File::from_raw_fd(descriptor)
    };
    assert!(file.set_len(len as u64).is_ok());
    file
}

/// The worker's side, with books of its own.
#[derive(Debug)]
struct Worker {
    chain: Box<Chain>,
    heads: Box<[(Head, u32); MAX_BUFFERS]>,
    frames: PlainMemory,
}

impl Worker {
    fn new() -> Self {
        Self {
            chain: Chain::new(),
            heads: Box::new([(Head::default(), 0); MAX_BUFFERS]),
            frames: PlainMemory::new(FRAMES, FRAME).with_large(LARGE),
        }
    }

    /// Takes what the guest sends, and sends it back as far as its other ring takes it.
    fn serve(&mut self, active: &Active, receive: Option<&Setup>, transmit: Option<&Setup>) {
        let header_len = header::header_len(active.features);
        let mut out = Vec::with_capacity(64);
        if let Some(Ok(mut served)) = transmit.map(|setup| Served::new(&active.memory, setup)) {
            let small = FRAME - usize::from(DATA_OFFSET);
            // A fault ends the queue; what was taken before is as good as any.
            let _ = with_ring!(&mut served.ring, ring => take_from_guest(
                ring,
                (active, header_len),
                &mut self.chain,
                (&mut self.frames, small),
                &mut out,
                64,
            ));
        }
        if let Some(Ok(mut served)) = receive.map(|setup| Served::new(&active.memory, setup)) {
            let _ = with_ring!(&mut served.ring, ring => ring.refresh().and_then(|()| {
                for at in 0..out.len() {
                    let parcel = Parcel::single(&self.frames, &out[at..]);
                    let guest = (active, header_len);
                    match put_to_guest(ring, guest, &mut self.chain, &mut self.heads, &parcel)? {
                        Put::Done | Put::TooLong => {}
                        Put::Full => break,
                    }
                }
                ring.publish(&active.memory);
                Ok(())
            }));
        }
        for packet in out {
            self.frames.free(packet.frame);
        }
        assert_eq!(
            (self.frames.available(), self.frames.available_large()),
            (FRAMES as usize, LARGE as usize),
            "frames are lost"
        );
    }
}

/// A guest's rings: kind, size and features by the first four bytes, the guest's memory by the rest.
pub fn ring(input: &[u8]) {
    let Some(([kind, size, base, features], contents)) = input.split_first_chunk() else {
        return;
    };
    let file = memory_file(MEMORY);
    let contents = &contents[..contents.len().min(MEMORY)];
    assert!(std::os::unix::fs::FileExt::write_all_at(&file, contents, 0).is_ok());
    let layout = Layout {
        guest: 0,
        monitor: MONITOR,
        size: MEMORY as u64,
        offset: 0,
    };
    let Ok(region) = Region::map(layout, &file) else {
        return;
    };
    let packed = kind & 1 != 0;
    let setup = |at: u64| Setup {
        size: u16::from(size % 64) + 1,
        descriptors: DESCRIPTORS + at,
        driver: DRIVER + at,
        device: DEVICE + at,
        log: None,
        base: u32::from(*base) | if packed { 0x8000 } else { 0 },
        packed,
        event_index: kind & 2 != 0,
        indirect: kind & 4 != 0,
        call: None,
        kick: None,
        error: None,
    };
    let all = [
        feature::VERSION_1,
        feature::MRG_RXBUF,
        feature::CSUM,
        feature::HOST_TSO4,
        feature::HOST_TSO6,
        feature::HOST_USO,
        feature::GUEST_CSUM,
        feature::GUEST_TSO4,
    ];
    let chosen = (0..).zip(all).filter(|(bit, _)| features >> bit & 1 == 0);
    let active = Active {
        memory: GuestMemory::new(vec![Arc::new(region)], None),
        features: chosen.map(|(_, feature)| feature).sum(),
        rings: [None, None],
    };
    // What the guest receives by lies behind what it sends by, or is the same.
    let receive = setup(if kind & 8 != 0 { 0x800 } else { 0 });
    if kind & 16 != 0
        && let Err(_gone) = file.set_len(0)
    {
        return;
    }
    Worker::new().serve(&active, Some(&receive), Some(&setup(0)));
}

/// Sends a message with descriptors beside it (unix(7), SCM_RIGHTS).
fn send(stream: &UnixStream, message: &[u8], descriptors: &[RawFd]) -> bool {
    const MOST: usize = 8;
    let descriptors = &descriptors[..descriptors.len().min(MOST)];
    let mut beside = [0u64; 16];
    let mut part = libc::iovec {
        iov_base: message.as_ptr().cast_mut().cast(),
        iov_len: message.len(),
    };
    let bytes = size_of_val(descriptors) as u32;
    // SAFETY: the header is plain data, for which zeroes are good; it points at `part`, which points at `message`, and at `beside`, which is
    // aligned as control messages are and has room for one with `MOST` descriptors (16 + 4 * 8 bytes). All of them outlive the call.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        if !descriptors.is_empty() {
            header.msg_control = beside.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(bytes) as usize;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(bytes) as usize;
            let data = libc::CMSG_DATA(first);
            ptr::copy_nonoverlapping(descriptors.as_ptr().cast(), data, bytes as usize);
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        libc::sendmsg(stream.as_raw_fd(), &raw const header, flags) == message.len() as isize
    }
}

/// A monitor's connection: records of a byte for the descriptors that come along, one for the length of the message, and the message. After
/// each message the rings are served as they then are.
pub fn messages(mut input: &[u8]) {
    let (Ok((ours, theirs)), Ok(link), Ok(event)) = (UnixStream::pair(), Link::new(), Event::new())
    else {
        return;
    };
    let memory = memory_file(MEMORY);
    while let Some(([beside, len], rest)) = input.split_first_chunk() {
        let (message, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        input = rest;
        let descriptor = match beside & 8 {
            0 => memory.as_raw_fd(),
            _ => event.fd(),
        };
        let descriptors = vec![descriptor; usize::from(beside & 7)];
        if !message.is_empty() && !send(&theirs, message, &descriptors) {
            break;
        }
    }
    // Nobody waits for what does not come.
    let (Ok(mut early), Ok(())) = (ours.try_clone(), theirs.shutdown(Shutdown::Write)) else {
        return;
    };
    // Nor for this worker: it lets go of everything at once.
    link.abandon();
    let link = Arc::new(link);
    let control = Arc::new(Mutex::new(Control::new(vec![Arc::clone(&link)])));
    let locked = || control.lock().unwrap_or_else(PoisonError::into_inner);
    let mut handler = BackendReqHandler::from_stream(ours, Arc::clone(&control));
    let mut worker = Worker::new();
    loop {
        match enable::take(&mut early, |ring, on| {
            locked().set_vring_enable(ring, on).is_ok()
        }) {
            Ok(true) => {}
            Ok(false) if handler.handle_request().is_ok() => {}
            _ => return locked().close(),
        }
        if let (_, Some(active)) = link.take() {
            let [receive, transmit] = &active.rings;
            worker.serve(&active, receive.as_ref(), transmit.as_ref());
        }
    }
}
