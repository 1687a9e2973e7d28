//! The types that shared data is built from: the standard library's atomics and locks, crossbeam's bounded queue, and arc-swap's pointer.
//!
//! Under the feature `loom` the same names are those of a model checker, which runs the tests named `threads` in every order that matters
//! and lets loads see every value that the memory model allows (docs/reliability.md). Without it these are re-exports, and nothing else is
//! compiled.

#[cfg(not(feature = "loom"))]
pub(crate) use {
    arc_swap::ArcSwap,
    crossbeam::queue::ArrayQueue,
    std::sync::{Arc, Mutex, MutexGuard, atomic},
};

#[cfg(feature = "loom")]
pub(crate) use {
    loom::sync::{Arc, Mutex, MutexGuard},
    model::{ArcSwap, ArrayQueue, atomic},
};

#[cfg(feature = "loom")]
pub(crate) mod model {
    //! Stand-ins for what the model checker does not know, and how its tests are run.

    use std::collections::VecDeque;
    use std::sync::{Arc, PoisonError};
    use std::time::Duration;

    use loom::sync::{Condvar, Mutex};

    /// Atomics before each of whose operations any other thread may run. The checker by itself interrupts a thread only where it sees that two
    /// operations depend on each other, and overlooks some: a load by the thread that stores next hides the loads of others.
    pub(crate) mod atomic {
        pub(crate) use loom::sync::atomic::{Ordering, fence};

        loom::lazy_static! {
            /// Stored to and never loaded: stores of two threads depend on each other, and order nothing else.
            static ref MOMENT: loom::sync::atomic::AtomicBool = loom::sync::atomic::AtomicBool::new(false);
        }

        fn moment() {
            MOMENT.store(true, Ordering::Relaxed);
        }

        macro_rules! atomics {
            ($($name:ident: $value:ty;)*) => {
                $(
                    #[derive(Debug, Default)]
                    pub struct $name(loom::sync::atomic::$name);

                    #[allow(dead_code)]
                    impl $name {
                        pub(crate) fn new(value: $value) -> Self {
                            Self(loom::sync::atomic::$name::new(value))
                        }

                        pub(crate) fn load(&self, order: Ordering) -> $value {
                            moment();
                            self.0.load(order)
                        }

                        pub(crate) fn store(&self, value: $value, order: Ordering) {
                            moment();
                            self.0.store(value, order);
                        }
                    }
                )*
            };
        }

        atomics! {
            AtomicBool: bool;
            AtomicU32: u32;
            AtomicU64: u64;
            AtomicI64: i64;
        }

        impl AtomicBool {
            pub(crate) fn swap(&self, value: bool, order: Ordering) -> bool {
                moment();
                self.0.swap(value, order)
            }
        }

        impl AtomicU32 {
            pub(crate) fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
                moment();
                self.0.fetch_add(value, order)
            }
        }

        impl AtomicU64 {
            pub(crate) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
                moment();
                self.0.fetch_sub(value, order)
            }

            pub(crate) fn compare_exchange_weak(
                &self,
                current: u64,
                new: u64,
                success: Ordering,
                failure: Ordering,
            ) -> Result<u64, u64> {
                moment();
                self.0.compare_exchange_weak(current, new, success, failure)
            }
        }
    }

    /// crossbeam's queue as its documentation promises it; crossbeam tests its own.
    #[derive(Debug)]
    pub(crate) struct ArrayQueue<T> {
        room: usize,
        values: Mutex<VecDeque<T>>,
    }

    impl<T> ArrayQueue<T> {
        pub(crate) fn new(room: usize) -> Self {
            Self {
                room,
                values: Mutex::new(VecDeque::new()),
            }
        }

        fn with<R>(&self, act: impl FnOnce(&mut VecDeque<T>) -> R) -> R {
            act(&mut self.values.lock().unwrap_or_else(PoisonError::into_inner))
        }

        pub(crate) fn push(&self, value: T) -> Result<(), T> {
            self.with(|values| {
                if values.len() == self.room {
                    return Err(value);
                }
                values.push_back(value);
                Ok(())
            })
        }

        pub(crate) fn pop(&self) -> Option<T> {
            self.with(VecDeque::pop_front)
        }

        pub(crate) fn len(&self) -> usize {
            self.with(|values| values.len())
        }
    }

    /// arc-swap's pointer as its documentation promises it; it tests its own.
    #[derive(Debug, Default)]
    pub struct ArcSwap<T>(Mutex<Arc<T>>);

    impl<T> ArcSwap<T> {
        pub(crate) fn from_pointee(value: T) -> Self {
            Self(Mutex::new(Arc::new(value)))
        }

        pub(crate) fn load(&self) -> Arc<T> {
            self.load_full()
        }

        pub(crate) fn load_full(&self) -> Arc<T> {
            Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
        }

        pub(crate) fn store(&self, value: Arc<T>) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
        }
    }

    /// An event descriptor whose time is never up: who sleeps through what was brought sleeps for ever, and the checker says so.
    #[derive(Debug)]
    pub(crate) struct Event {
        signalled: Mutex<bool>,
        changed: Condvar,
    }

    impl Event {
        pub(crate) fn new() -> std::io::Result<Self> {
            Ok(Self {
                signalled: Mutex::new(false),
                changed: Condvar::new(),
            })
        }

        pub(crate) fn signal(&self) {
            *self
                .signalled
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = true;
            self.changed.notify_all();
        }

        pub(crate) fn sleep(&self, _: &[i32], _: &mut Vec<libc::pollfd>, _: Duration) {
            let mut signalled = self
                .signalled
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            while !*signalled {
                signalled = self
                    .changed
                    .wait(signalled)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            *signalled = false;
        }
    }

    /// How many orders are run before the time is looked at.
    #[cfg(test)]
    const ORDERS: usize = 500;

    /// Runs a model in every order in which its threads are interrupted no more than so many times (`WEFT_THREADS_PREEMPTIONS`, or `usual`), or
    /// in as many of them as the time is enough for (`WEFT_THREADS_SECONDS`). Leaves how many that were in `WEFT_THREADS_REPORT`.
    #[cfg(test)]
    pub(crate) fn check(name: &str, usual: usize, model: impl Fn() + Sync + Send + 'static) {
        use std::io::Write;
        use std::sync::atomic::{AtomicU64, Ordering};

        let asked = std::env::var("WEFT_THREADS_PREEMPTIONS");
        let orders = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&orders);
        let mut checker = loom::model::Builder::new();
        checker.preemption_bound = asked.map_or(Some(usual), |n| n.parse().ok());
        checker.max_branches = 10_000;
        let seconds = std::env::var("WEFT_THREADS_SECONDS").ok();
        checker.max_duration = seconds.and_then(|n| Some(Duration::from_secs(n.parse().ok()?)));
        checker.checkpoint_interval = ORDERS;
        let begun = std::time::Instant::now();
        checker.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            model();
        });
        let all = checker
            .max_duration
            .is_none_or(|limit| begun.elapsed() < limit);
        let line = format!(
            r#"{{"model":"{name}","preemptions":{},"orders":{},"all":{all},"seconds":{:.1}}}"#,
            checker.preemption_bound.unwrap_or(0),
            orders.load(Ordering::Relaxed),
            begun.elapsed().as_secs_f64()
        );
        println!("{line}");
        if let Ok(path) = std::env::var("WEFT_THREADS_REPORT") {
            let file = std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(path);
            writeln!(file.unwrap(), "{line}").unwrap();
        }
    }
}
