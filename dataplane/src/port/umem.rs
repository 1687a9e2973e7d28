//! The packet memory that the process shares with the kernel (the UMEM). All ports and uplinks share one, so a frame moves from ring to ring by
//! its address.
//!
//! A frame is one chunk of the UMEM, and its data area is the whole chunk. The kernel puts a received packet at [`DATA_OFFSET`], and a packet
//! to be sent begins there too. The bytes ahead are room for headers.
//!
//! The first socket on a UMEM does not close before the UMEM does, because libxdp keeps its descriptor. It also fixes copy or zero-copy mode
//! for all others. No port should have that role, so the first socket is an *anchor*: it is bound to the loopback device and carries no
//! packets. If another process already has an AF_XDP socket there, the anchor is made in a network namespace without a name or other users,
//! which ends with the process. Making that namespace may take hundreds of milliseconds while the kernel still removes the one of an earlier
//! process.

#![allow(unsafe_code)]

use std::{
    io,
    num::NonZeroU32,
    sync::{Arc, Mutex, atomic::AtomicU32},
    thread,
};

use xsk_rs::{
    CompQueue, FillQueue, RxQueue, Socket, TxQueue,
    config::{
        BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig,
        XDP_UMEM_MIN_CHUNK_SIZE,
    },
    umem::frame::FrameDesc,
};

use super::{
    error::{PortError, io_error_of},
    large::Large,
    pool::{Accounting, Ledger, Pool},
    socket_options,
};
use crate::packet::{Frame, buffer::LARGE_SIZE};

/// Where in a frame's bytes a received packet begins (in copy mode, and less what the XDP program grew in zero-copy mode), and
/// where a packet must begin to be sent: the kernel's `XDP_PACKET_HEADROOM`.
pub const DATA_OFFSET: u16 = 256;

/// What memory to make.
#[derive(Debug, Clone, Copy)]
pub struct UmemOptions {
    /// Bytes of a frame: 2048 or 4096. The largest packet is [`DATA_OFFSET`] less.
    pub frame_size: u32,
    /// How many frames.
    pub frames: u32,
    /// How many large frames ([`LARGE_SIZE`] bytes), for segments that guests hand over whole.
    pub large_frames: u32,
    /// Entries of each queue's fill ring and completion ring; a power of two.
    pub ring_size: u32,
    /// Use huge pages if enough of them are free.
    pub huge_pages: bool,
}

impl Default for UmemOptions {
    fn default() -> Self {
        Self {
            frame_size: 2048,
            frames: 32 * 1024,
            large_frames: 512,
            ring_size: 2048,
            huge_pages: true,
        }
    }
}

/// The packet memory. Shared by `Arc`; lives until the last queue and cache are gone.
#[derive(Debug)]
pub struct Umem {
    /// Closed before the memory that it is registered with: fields drop in order.
    _anchor: Mutex<Anchor>,
    kernel: xsk_rs::Umem,
    base: *mut u8,
    frame_size: usize,
    descriptors: Box<[FrameDesc]>,
    ring_size: u32,
    huge_pages: bool,
    pub(super) pool: Pool,
    /// Frames that queues may keep with the kernel.
    pub(super) promised: AtomicU32,
    pub(super) large: Large,
    pub(super) ledger: Ledger,
}

type Anchor = (TxQueue, RxQueue, Option<(FillQueue, CompQueue)>);

// SAFETY: `base` points into the mapping that `kernel` keeps alive; what may be done with the bytes is the business of the
// frames' tokens, which are unique. Everything else in here is Send.
unsafe impl Send for Umem {}
// SAFETY: as above; shared access reads `base` and never writes it, and everything else in here is Sync.
unsafe impl Sync for Umem {}

impl Umem {
    /// Maps the memory and registers it with the kernel.
    pub fn new(options: UmemOptions) -> Result<Arc<Self>, PortError> {
        let config = check(options)?;
        let frames = NonZeroU32::new(options.frames).ok_or(PortError::Setting {
            what: "number of frames",
            value: 0,
            rule: "not positive",
        })?;
        socket_options::raise_limits()?;

        let anchored = |huge_pages| match make(config, frames, huge_pages) {
            Err(PortError::QueueBusy { .. }) => {
                in_private_namespace(move || make(config, frames, huge_pages))
            }
            made => made,
        };
        let (made, huge_pages) = match options.huge_pages.then(|| anchored(true)) {
            Some(Ok(made)) => (made, true),
            Some(Err(PortError::Memory { .. })) | None => (anchored(false)?, false),
            Some(Err(error)) => return Err(error),
        };
        let Made {
            kernel,
            mut descriptors,
            anchor,
        } = made;

        // SAFETY: the frame belongs to this memory, and nobody else has it yet.
        let data = unsafe { kernel.data_mut(&mut descriptors[0]) }
            .contents()
            .as_ptr()
            .addr();
        Ok(Arc::new(Self {
            _anchor: Mutex::new(anchor),
            // The pointer to the mapping itself is the library's; it was exposed when it was given to the kernel.
            base: std::ptr::with_exposed_provenance_mut(data - usize::from(DATA_OFFSET)),
            kernel,
            frame_size: options.frame_size as usize,
            descriptors: descriptors.into_boxed_slice(),
            ring_size: options.ring_size,
            huge_pages,
            pool: Pool::full(options.frames),
            promised: AtomicU32::new(0),
            large: Large::new(options.large_frames)?,
            ledger: Ledger::default(),
        }))
    }

    /// Bytes of a frame.
    pub fn frame_size(&self) -> usize {
        self.frame_size
    }

    /// How many frames there are.
    pub fn frame_count(&self) -> u32 {
        self.descriptors.len() as u32
    }

    /// Entries of a queue's fill ring and completion ring.
    pub fn ring_size(&self) -> u32 {
        self.ring_size
    }

    /// Whether the memory is of huge pages.
    pub fn has_huge_pages(&self) -> bool {
        self.huge_pages
    }

    /// Where all frames are.
    pub fn accounting(&self) -> Accounting {
        let (large, free) = self.large.count();
        Accounting {
            total: i64::from(self.frame_count()),
            free: self.pool.len() as i64,
            large: i64::from(large) - i64::from(free),
            ..self.ledger.sum()
        }
    }

    pub(super) fn kernel(&self) -> &xsk_rs::Umem {
        &self.kernel
    }

    /// The descriptor of a frame, which begins at [`DATA_OFFSET`] and has length 0.
    #[inline]
    pub(super) fn descriptor(&self, index: u32) -> FrameDesc {
        self.descriptors[index as usize]
    }

    /// Which frame an address lies in, and where in it.
    #[inline]
    pub(super) fn locate(&self, address: usize) -> (u32, usize) {
        (
            (address / self.frame_size) as u32,
            address % self.frame_size,
        )
    }

    /// The first byte of a frame, and how many are mapped from there.
    #[inline]
    pub(super) fn area(&self, index: u32) -> (*mut u8, usize) {
        if index as usize >= self.descriptors.len() {
            return self.large_area(index);
        }
        // SAFETY: the mapping is `frames * frame_size` bytes long, and the index was checked.
        let pointer = unsafe { self.base.add(index as usize * self.frame_size) };
        (pointer, self.frame_size)
    }

    #[cold]
    fn large_area(&self, index: u32) -> (*mut u8, usize) {
        let Some(large) = Frame::large_index(index) else {
            panic!("no such frame");
        };
        (self.large.pointer(large), LARGE_SIZE)
    }
}

struct Made {
    kernel: xsk_rs::Umem,
    descriptors: Vec<FrameDesc>,
    anchor: Anchor,
}

fn check(options: UmemOptions) -> Result<UmemConfig, PortError> {
    let rule = |what, value: u32, rule| PortError::Setting {
        what,
        value: u64::from(value),
        rule,
    };
    let ring = QueueSize::new(options.ring_size)
        .map_err(|_| rule("ring size", options.ring_size, "not a power of two"))?;
    let frame_size = FrameSize::new(options.frame_size)
        .ok()
        .filter(|size| matches!(size.get(), XDP_UMEM_MIN_CHUNK_SIZE | 4096))
        .ok_or_else(|| rule("frame size", options.frame_size, "neither 2048 nor 4096"))?;
    UmemConfig::builder()
        .frame_size(frame_size)
        .fill_queue_size(ring)
        .comp_queue_size(ring)
        .build()
        .map_err(|_| rule("frame size", options.frame_size, "refused"))
}

/// What every socket on the memory is made with.
pub(super) fn socket_config(ring_size: u32) -> Result<SocketConfig, PortError> {
    let ring = QueueSize::new(ring_size).map_err(|_| PortError::Setting {
        what: "ring size",
        value: u64::from(ring_size),
        rule: "not a power of two",
    })?;
    Ok(SocketConfig::builder()
        .rx_queue_size(ring)
        .tx_queue_size(ring)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP)
        .build())
}

fn make(config: UmemConfig, frames: NonZeroU32, huge_pages: bool) -> Result<Made, PortError> {
    let (kernel, descriptors) = xsk_rs::Umem::new(config, frames, huge_pages).map_err(|error| {
        let source = io_error_of(&error);
        match source.raw_os_error() {
            Some(libc::ENOMEM | libc::ENOBUFS | libc::EINVAL) => PortError::Memory {
                mebibytes: (frames.get() as usize * config.frame_size().get() as usize) >> 20,
                source,
            },
            _ => PortError::from_io(
                "making the packet memory",
                "CAP_NET_RAW and CAP_IPC_LOCK",
                source,
            ),
        }
    })?;
    let loopback = Interface::new(c"lo".to_owned());
    // SAFETY: no queue of this memory is in use yet, and this one is never used.
    let anchor =
        unsafe { Socket::new(socket_config(64)?, &kernel, &loopback, 0) }.map_err(|error| {
            let source = io_error_of(&error);
            match source.raw_os_error() {
                Some(libc::EBUSY) => PortError::QueueBusy {
                    interface: "lo".to_owned(),
                    queue: 0,
                },
                _ => PortError::from_io("binding the first AF_XDP socket", "CAP_NET_RAW", source),
            }
        })?;
    socket_options::close_on_exec(anchor.0.fd())?;
    Ok(Made {
        kernel,
        descriptors,
        anchor,
    })
}

/// Runs `work` in a network namespace of its own, which lasts as long as the sockets made there.
fn in_private_namespace<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PortError> + Send + 'static,
) -> Result<T, PortError> {
    let entered = move || {
        // SAFETY: a plain system call; it changes the network namespace of this thread alone, which ends right after.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(PortError::from_io(
                "making a private network namespace",
                "CAP_SYS_ADMIN",
                io::Error::last_os_error(),
            ));
        }
        work()
    };
    thread::Builder::new()
        .name("weft-umem".to_owned())
        .spawn(entered)
        .map_err(|source| PortError::Io {
            what: "starting a thread".to_owned(),
            source,
        })?
        .join()
        .unwrap_or_else(|_| {
            Err(PortError::Io {
                what: "making the packet memory".to_owned(),
                source: io::Error::other("the thread panicked"),
            })
        })
}
