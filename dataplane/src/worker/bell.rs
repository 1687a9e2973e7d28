//! Waking a worker that sleeps: an event descriptor that it polls beside its queues.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

/// Something that can be rung from any thread.
#[derive(Debug)]
pub struct Bell {
    event: OwnedFd,
    rung: AtomicBool,
    asleep: AtomicBool,
}

impl Bell {
    /// A new one.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a plain system call; the descriptor that it returns is new and owned by nobody else.
        let event = unsafe {
            let descriptor = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if descriptor < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(descriptor)
        };
        Ok(Self {
            event,
            rung: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
        })
    }

    /// Rings: the owner looks at its commands, and wakes up if it sleeps.
    pub fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        self.ring_if_asleep();
    }

    /// Wakes the owner up, if it sleeps.
    #[inline]
    pub fn ring_if_asleep(&self) {
        // Pairs with the fence in `sleep`: either we see that the owner sleeps, or it sees what we brought before it does.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        let one = 1u64;
        // SAFETY: eight readable bytes are written to a descriptor that lives as long as `self`. A full counter wakes as well, so the
        // result does not matter.
        unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Whether it was rung since it was last asked.
    #[inline]
    pub fn heard(&self) -> bool {
        self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::Acquire)
    }

    /// Sleeps until a descriptor is ready, the bell rings or the time is up. Does not sleep when it has been rung, or when `work` says
    /// that there is some.
    pub fn sleep(
        &self,
        descriptors: &mut Vec<libc::pollfd>,
        time: Duration,
        work: impl Fn() -> bool,
    ) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !self.rung.load(Ordering::Relaxed) && !work() {
            descriptors.push(readable(self.event.as_raw_fd()));
            let milliseconds = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
            // SAFETY: the pointer and length are those of a live, exclusively borrowed vector.
            let ready = unsafe {
                libc::poll(
                    descriptors.as_mut_ptr(),
                    descriptors.len() as libc::nfds_t,
                    milliseconds,
                )
            };
            if ready > 0 && descriptors.last().is_some_and(|event| event.revents != 0) {
                let mut count = 0u64;
                // SAFETY: eight writable bytes; the descriptor does not block.
                unsafe { libc::read(self.event.as_raw_fd(), (&raw mut count).cast(), 8) };
            }
        }
        self.asleep.store(false, Ordering::Relaxed);
    }
}

/// A descriptor to be polled for packets that have come in.
pub(super) fn readable(descriptor: RawFd) -> libc::pollfd {
    libc::pollfd {
        fd: descriptor,
        events: libc::POLLIN,
        revents: 0,
    }
}

/// Binds the calling thread to a core.
pub(super) fn pin(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: the set is plain memory of the size given, made of zeroes, which is the empty set; the core is within it.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
