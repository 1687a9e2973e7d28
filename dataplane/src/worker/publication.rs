//! Publication of snapshots. The newest snapshot is a pointer that is swapped; each worker loads it between two vectors and reports its
//! generation.

use crate::sync::atomic::{AtomicU32, Ordering};

/// The generation that a worker has taken up.
#[derive(Debug)]
pub struct Taken(AtomicU32);

impl Taken {
    /// None yet.
    pub fn nothing() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Says that the worker judges by this generation from now on. Whoever sees that sees all that it did by the one before: what is swept of a port
    /// that has gone stays swept.
    pub fn up(&self, generation: u32) {
        self.0.store(generation, Ordering::Release);
    }

    /// The generation.
    pub fn generation(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(all(test, feature = "loom"))]
mod threads {
    use super::*;
    use crate::sync::model::check;
    use crate::sync::{Arc, ArcSwap};

    #[test]
    fn threads_that_judge_by_the_new_have_done_all_that_they_did_by_the_old() {
        check("taken_up", 4, || {
            let newest = ArcSwap::from_pointee(1u32);
            let shared = Arc::new((newest, Taken::nothing(), AtomicU32::new(0)));
            let worker = Arc::clone(&shared);
            let worker = loom::thread::spawn(move || {
                let (newest, taken, sessions) = &*worker;
                let (mut current, mut made) = (0, 0);
                while current != 2 {
                    let now = newest.load();
                    if *now != current {
                        current = *now;
                        taken.up(current);
                    }
                    if current == 1 {
                        made += 1;
                        sessions.store(made, Ordering::Relaxed);
                    }
                    loom::thread::yield_now();
                }
                made
            });
            let (newest, taken, sessions) = &*shared;
            newest.store(std::sync::Arc::new(2));
            while taken.generation() != 2 {
                loom::thread::yield_now();
            }
            let swept = sessions.load(Ordering::Relaxed);
            assert_eq!(swept, worker.join().unwrap());
        });
    }
}
