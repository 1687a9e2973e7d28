//! The far end of a tap, which a virtual machine monitor usually has: sends and receives frames, each with its virtio header.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::{LabError, Namespace, is_readable};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const IFF_VNET_HDR: libc::c_int = 0x4000;
const IFF_MULTI_QUEUE: libc::c_int = 0x0100;

/// Checksums, TCP segments of both families, UDP segments of both.
pub const ALL_OFFLOADS: libc::c_ulong = 0x01 | 0x02 | 0x04 | 0x20 | 0x40;

/// Bytes of the virtio header (virtio 1.2, §5.1.6, without the number of buffers).
pub const HEADER: usize = 10;

/// One queue of a tap's far end.
#[derive(Debug)]
pub struct TapEnd {
    file: File,
}

impl TapEnd {
    /// Makes the tap `name` in the namespace with so many queues, and opens all of them. It goes with the last of them.
    pub fn make(
        namespace: &Namespace,
        name: &str,
        queues: usize,
        offloads: libc::c_ulong,
    ) -> Result<Vec<Self>, LabError> {
        let several = if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
        let opened = (0..queues).map(|_| Self::open(namespace, name, several, offloads));
        let ends = opened.collect::<Result<_, _>>()?;
        namespace.run(&["ip", "link", "set", name, "up"])?;
        Ok(ends)
    }

    /// Opens one queue more of a tap that was made with several.
    pub fn join(namespace: &Namespace, name: &str) -> Result<Self, LabError> {
        Self::open(namespace, name, IFF_MULTI_QUEUE, 0)
    }

    /// Opens the only queue of a tap that another program created.
    pub fn of(namespace: &Namespace, name: &str) -> Result<Self, LabError> {
        Self::open(namespace, name, 0, 0)
    }

    fn open(
        namespace: &Namespace,
        name: &str,
        several: libc::c_int,
        offloads: libc::c_ulong,
    ) -> Result<Self, LabError> {
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | IFF_VNET_HDR | several;
        let file = namespace.enter(|| open(name, flags, offloads))?;
        file.map_err(LabError::io(format!("opening the tap {name}")))
            .map(|file| Self { file })
    }

    /// The same queue once more, for another thread.
    pub fn another(&self) -> Result<Self, LabError> {
        let file = self.file.try_clone();
        file.map_err(LabError::io("a tap's descriptor"))
            .map(|file| Self { file })
    }

    /// Sends a frame as a guest does.
    pub fn send(&mut self, header: [u8; HEADER], frame: &[u8]) -> Result<(), LabError> {
        self.send_raw(&[&header, frame].concat())
    }

    /// Sends what is a header and a frame already, without copying it.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<(), LabError> {
        let sent = self.file.write(bytes);
        sent.map_err(LabError::io("writing to a tap")).map(drop)
    }

    /// The next frame that `wanted` accepts, with its header, if one comes in time. Others are dropped.
    pub fn receive(
        &mut self,
        within: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Option<([u8; HEADER], Vec<u8>)> {
        let deadline = Instant::now() + within;
        let mut buffer = vec![0; 70_000];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !is_readable(self.file.as_raw_fd(), left) {
                return None;
            }
            let len = self.file.read(&mut buffer).ok()?;
            let (header, frame) = buffer[..len].split_first_chunk::<HEADER>()?;
            if wanted(frame) {
                return Some((*header, frame.to_vec()));
            }
        }
    }
}

fn open(name: &str, flags: libc::c_int, offloads: libc::c_ulong) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: a plain C structure, for which all zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes `request`, which outlives the call; the second call's argument is a plain number.
    let results = unsafe {
        [
            libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request),
            libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, offloads),
        ]
    };
    if results == [0, 0] {
        Ok(file)
    } else {
        Err(io::Error::last_os_error())
    }
}
