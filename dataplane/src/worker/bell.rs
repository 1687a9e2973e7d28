//! Waking a worker that sleeps: an event descriptor that it polls beside its queues.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use crate::port::event::{Event, readable};

/// Something that can be rung from any thread.
#[derive(Debug)]
pub struct Bell {
    event: Event,
    rung: AtomicBool,
    asleep: AtomicBool,
}

impl Bell {
    /// A new one.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            event: Event::new()?,
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
        self.event.signal();
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
        descriptors: &[RawFd],
        polled: &mut Vec<libc::pollfd>,
        time: Duration,
        work: impl Fn() -> bool,
    ) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !self.rung.load(Ordering::Relaxed) && !work() {
            polled.clear();
            polled.extend(descriptors.iter().copied().map(readable));
            polled.push(readable(self.event.fd()));
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
                self.event.clear();
            }
        }
        self.asleep.store(false, Ordering::Relaxed);
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
