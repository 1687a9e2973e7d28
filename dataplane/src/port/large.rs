//! Large frames: plain memory for segments that guests hand over whole. They never reach a kernel ring.

#![allow(unsafe_code)]

use std::{io, ptr};

use crossbeam::queue::ArrayQueue;

use super::PortError;
use crate::packet::buffer::LARGE_SIZE;

/// All large frames, and which are free. A page of them takes memory when it is first written.
#[derive(Debug)]
pub(super) struct Large {
    base: *mut u8,
    count: u32,
    free: ArrayQueue<u32>,
}

// SAFETY: `base` is only read; what may be done with the bytes is the business of the frames' tokens, which are unique.
unsafe impl Send for Large {}
// SAFETY: as above.
unsafe impl Sync for Large {}

impl Large {
    /// `count` frames.
    pub(super) fn new(count: u32) -> Result<Self, PortError> {
        let free = ArrayQueue::new((count as usize).max(1));
        for index in 0..count {
            // There is room for each.
            let _ = free.push(index);
        }
        let base = if count == 0 {
            ptr::null_mut()
        } else {
            map(count as usize * LARGE_SIZE)?
        };
        Ok(Self { base, count, free })
    }

    /// The first byte of a frame, of which [`LARGE_SIZE`] are mapped.
    pub(super) fn pointer(&self, index: u32) -> *mut u8 {
        assert!(index < self.count, "no such large frame");
        // SAFETY: the mapping has `count` frames, and the index was checked.
        unsafe { self.base.add(index as usize * LARGE_SIZE) }
    }

    pub(super) fn take(&self) -> Option<u32> {
        self.free.pop()
    }

    pub(super) fn put(&self, index: u32) {
        if self.free.push(index).is_err() {
            tracing::error!("more free large frames than exist: one was freed twice");
        }
    }

    /// How many there are, and how many of them are free.
    pub(super) fn count(&self) -> (u32, u32) {
        (self.count, self.free.len() as u32)
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        if self.count > 0 {
            // SAFETY: mapped in `new` with this length; no token outlives the packet memory that this is a part of.
            unsafe { libc::munmap(self.base.cast(), self.count as usize * LARGE_SIZE) };
        }
    }
}

fn map(len: usize) -> Result<*mut u8, PortError> {
    // SAFETY: a new private mapping at an address of the kernel's choice.
    let base = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(PortError::Memory {
            mebibytes: len >> 20,
            source: io::Error::last_os_error(),
        });
    }
    Ok(base.cast())
}
