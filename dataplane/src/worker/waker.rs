//! Waking a worker that sleeps: an event descriptor that it polls beside its queues.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

#[cfg(not(feature = "loom"))]
use crate::port::event::Event;
use crate::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(feature = "loom")]
use crate::sync::model::Event;

/// Something that can be rung from any thread.
#[derive(Debug)]
pub struct Waker {
    event: Event,
    rung: AtomicBool,
    asleep: AtomicBool,
}

impl Waker {
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

    /// Sleeps until a descriptor is ready, it is woken or the time is up. Does not sleep when it has been woken meanwhile, or when `work` says
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
            self.event.sleep(descriptors, polled, time);
        }
        self.asleep.store(false, Ordering::Relaxed);
    }
}

#[cfg(all(test, feature = "loom"))]
mod threads {
    use super::*;
    use crate::sync::Arc;
    use crate::sync::atomic::AtomicU32;
    use crate::sync::model::check;

    const LONG: Duration = Duration::from_secs(1);

    /// What is brought is a flag here: a queue with a lock or a total order of its own would hide what the waker does not order.
    #[test]
    fn threads_that_bring_something_wake_a_worker_that_sleeps() {
        check("inbox", 3, || {
            let flags = || [AtomicBool::new(false), AtomicBool::new(false)];
            let inbox = Arc::new((flags(), Waker::new().unwrap()));
            let bringers: Vec<_> = (0..2)
                .map(|number: usize| {
                    let inbox = Arc::clone(&inbox);
                    loom::thread::spawn(move || {
                        inbox.0[number].store(true, Ordering::Release);
                        inbox.1.ring_if_asleep();
                    })
                })
                .collect();
            let there = || {
                let flags = inbox.0.iter();
                flags.filter(|flag| flag.load(Ordering::Acquire)).count()
            };
            let mut taken = 0;
            while taken < 2 {
                inbox
                    .1
                    .sleep(&[], &mut Vec::new(), LONG, || there() > taken);
                taken = there();
            }
            bringers.into_iter().for_each(|one| one.join().unwrap());
        });
    }

    #[test]
    fn threads_that_ring_are_heard_with_what_they_did_before() {
        check("waker", 4, || {
            let shared = Arc::new((AtomicU32::new(0), Waker::new().unwrap()));
            let ringer = Arc::clone(&shared);
            let ringer = loom::thread::spawn(move || {
                ringer.0.store(1, Ordering::Relaxed);
                ringer.1.ring();
            });
            while !shared.1.heard() {
                shared.1.sleep(&[], &mut Vec::new(), LONG, || false);
            }
            assert_eq!(shared.0.load(Ordering::Relaxed), 1);
            ringer.join().unwrap();
        });
    }
}
