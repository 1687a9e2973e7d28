//! An event descriptor (eventfd): something to write to from anywhere, and to wait on with poll(2).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// An event descriptor, of our own or received from a monitor.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// A new one that does not block.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a plain system call; the descriptor that it returns is new and nothing else owns it.
        unsafe {
            let descriptor = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if descriptor < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(descriptor)))
        }
    }

    /// One that was handed over, made not to block. Whoever handed it over could undo that: a monitor is trusted so far, its guest is not.
    pub fn adopt(descriptor: OwnedFd) -> Self {
        // SAFETY: plain system calls on a descriptor that we own.
        unsafe {
            let flags = libc::fcntl(descriptor.as_raw_fd(), libc::F_GETFL);
            libc::fcntl(
                descriptor.as_raw_fd(),
                libc::F_SETFL,
                flags | libc::O_NONBLOCK,
            );
        }
        Self(descriptor)
    }

    /// To wait on.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Makes it readable.
    pub fn signal(&self) {
        let one = 1u64;
        // SAFETY: eight readable bytes are written to a descriptor that lives as long as `self`. A full counter is readable as well, so
        // the result does not matter.
        unsafe { libc::write(self.fd(), (&raw const one).cast(), 8) };
    }

    /// Makes it unreadable.
    pub fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: eight writable bytes; the descriptor does not block.
        unsafe { libc::read(self.fd(), (&raw mut count).cast(), 8) };
    }

    /// Sleeps until it or one of the descriptors is readable or the time is up, and makes it unreadable. `polled` is room to work in.
    #[cfg_attr(feature = "loom", allow(dead_code))]
    pub fn sleep(
        &self,
        descriptors: &[RawFd],
        polled: &mut Vec<libc::pollfd>,
        time: std::time::Duration,
    ) {
        polled.clear();
        polled.extend(descriptors.iter().copied().map(readable));
        polled.push(readable(self.fd()));
        let milliseconds = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the pointer and length are those of a live, exclusively borrowed vector.
        let ready = unsafe {
            libc::poll(
                polled.as_mut_ptr(),
                polled.len() as libc::nfds_t,
                milliseconds,
            )
        };
        if ready > 0 && polled.last().is_some_and(|event| event.revents != 0) {
            self.clear();
        }
    }
}

/// Waits until one of the descriptors is readable or the time is up; none waits for ever. Returns which are, bit by bit.
///
/// # Errors
/// A signal interrupted it, or a descriptor is none.
pub fn wait(descriptors: &[RawFd], time: Option<std::time::Duration>) -> io::Result<u64> {
    let mut polled: Vec<libc::pollfd> = descriptors.iter().copied().map(readable).collect();
    let milliseconds = time.map_or(-1, |time| {
        i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
    });
    // SAFETY: the pointer and length are those of a live, exclusively borrowed vector.
    let ready = unsafe {
        libc::poll(
            polled.as_mut_ptr(),
            polled.len() as libc::nfds_t,
            milliseconds,
        )
    };
    if ready < 0 {
        return Err(io::Error::last_os_error());
    }
    let bits = polled.iter().enumerate();
    Ok(bits.fold(0, |bits, (at, polled)| {
        bits | u64::from(polled.revents != 0) << at
    }))
}

/// A descriptor to be polled for something to read.
pub fn readable(descriptor: RawFd) -> libc::pollfd {
    libc::pollfd {
        fd: descriptor,
        events: libc::POLLIN,
        revents: 0,
    }
}
