//! A wire between a tap's far end and a link. Any of the tap's queues can be left unread.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{LabError, RawSocket, TapEnd, tap_end::HEADER};

/// How long a thread waits for a frame before it looks whether it shall end.
const PATIENCE: Duration = Duration::from_millis(5);

/// The wire, until it is dropped.
#[derive(Debug)]
pub struct Relay {
    stop: Arc<AtomicBool>,
    halted: Vec<Arc<AtomicBool>>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Joins all queues of a tap with a link. What comes by the link goes into the first queue.
    pub fn start(ends: Vec<TapEnd>, link: RawSocket) -> Result<Self, LabError> {
        let link = Arc::new(link);
        let mut relay = Self {
            stop: Arc::default(),
            halted: Vec::new(),
            threads: Vec::new(),
        };
        for (queue, mut end) in ends.into_iter().enumerate() {
            if queue == 0 {
                let (stop, link, mut end) =
                    (Arc::clone(&relay.stop), Arc::clone(&link), end.another()?);
                relay.threads.push(thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        if let Some(frame) = link.receive(PATIENCE, |_| true) {
                            // The tap may be down.
                            let _ = end.send([0; HEADER], &frame);
                        }
                    }
                }));
            }
            let halted = Arc::new(AtomicBool::new(false));
            relay.halted.push(Arc::clone(&halted));
            let (stop, link) = (Arc::clone(&relay.stop), Arc::clone(&link));
            relay.threads.push(thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if halted.load(Ordering::Relaxed) {
                        thread::sleep(PATIENCE);
                    } else if let Some((_, frame)) = end.receive(PATIENCE, |_| true) {
                        // The link may be down.
                        let _ = link.send(&frame);
                    }
                }
            }));
        }
        Ok(relay)
    }

    /// Reads a queue of the tap no longer, or again.
    pub fn halt(&self, queue: usize, halted: bool) {
        if let Some(flag) = self.halted.get(queue) {
            flag.store(halted, Ordering::Relaxed);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It only moves frames.
            let _ = thread.join();
        }
    }
}
