//! Workers: one pinned thread per core, each with its own queues, counters and free frames, run to completion.
//!
//! A worker owns the queues that it reads. A packet for a queue of another worker goes through that worker's inbox; its frame moves by
//! number, for all workers share one packet memory. Control reaches a worker by a channel, policy by a snapshot that it loads before
//! each vector. A worker without work sleeps in `poll` unless told to spin.

mod inbox;
mod io;
mod plan;
mod publication;
mod run;
pub mod service;
mod shared;
mod steer;
mod waker;
mod watchdog;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded, unbounded};

use inbox::Inbound;
pub use plan::Plan;
pub use publication::Taken;
use run::{Command, Handle, Worker};
use service::Injector;
pub use shared::{Common, Gauge};
pub use waker::Waker;
use watchdog::Watchdog;

use crate::pipeline::counters::Counters;
use crate::pipeline::{Settings, Source};
use crate::port::{Queue, Umem};
use crate::snapshot::Snapshot;

/// How long a caller waits for a worker to take or return queues.
const HAND_BACK: Duration = Duration::from_millis(50);
/// How long a worker may take to end.
const LAST_ROUND: Duration = Duration::from_secs(2);
/// Threads that close queues, at most.
const CLOSERS: usize = 16;

/// All workers.
#[derive(Debug)]
pub struct Workers {
    handles: Vec<Handle>,
    common: Arc<Common>,
    inboxes: Vec<Inbound>,
    returned: Receiver<Box<dyn Queue>>,
    watchdog: Option<Watchdog>,
}

impl Workers {
    /// Starts a worker for each core.
    ///
    /// # Errors
    /// The system gives no thread or event descriptor.
    pub fn start(plan: &Plan<'_>) -> std::io::Result<Self> {
        let common = Arc::new(Common::new(plan.timeouts, plan.spin));
        let inboxes = plan.cores.iter().map(|_| Inbound::new());
        let inboxes: Vec<Inbound> = inboxes.collect::<std::io::Result<_>>()?;
        let (give_back, returned) = unbounded();
        let start = |(index, core): (usize, &Option<usize>)| {
            let (commands, orders) = unbounded();
            let worker = Worker::new(plan, index, &common, &inboxes, (orders, give_back.clone()));
            worker.start(*core, commands)
        };
        let handles = plan.cores.iter().enumerate().map(start);
        let handles: Vec<Handle> = handles.collect::<std::io::Result<_>>()?;
        let gauges = handles.iter().map(|handle| Arc::clone(&handle.gauge));
        let watchdog = plan
            .watchdog
            .map(|patience| Watchdog::start(gauges.collect(), patience));
        Ok(Self {
            watchdog: watchdog.transpose()?,
            handles,
            common,
            inboxes,
            returned,
        })
    }

    /// A way for a service of this host to send packets to ports.
    pub fn injector(&self, umem: &Arc<Umem>, settings: &Settings) -> Injector {
        let common = Arc::clone(&self.common);
        Injector::new(common, self.inboxes.clone(), umem, settings)
    }

    /// What workers share.
    pub fn common(&self) -> &Arc<Common> {
        &self.common
    }

    /// How many workers there are.
    pub fn len(&self) -> usize {
        self.handles.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// Gauges and counters of each worker, with the core that it was given.
    pub fn gauges(&self) -> impl Iterator<Item = (Option<usize>, &Gauge, &Counters)> {
        self.handles
            .iter()
            .map(|handle| (handle.core, &*handle.gauge, &*handle.counters))
    }

    /// The worker that reads a queue, and that all others hand packets for it.
    fn owner(&self, place: Source, queue: u32) -> usize {
        inbox::owner(place, queue, self.handles.len())
    }

    /// Has queues read from now on, all together: none is read before every worker has taken its own, so that what waits in one for another
    /// finds it there. A stuck worker is not waited for.
    pub fn open(&self, queues: Vec<(Source, Box<dyn Queue>)>) {
        if queues.is_empty() {
            return;
        }
        let (done, all_done) = bounded(0);
        for (place, queue) in queues {
            let owner = self.owner(place, queue.number());
            self.tell(owner, Command::Open(place, queue, done.clone()));
        }
        drop(done);
        if self.all_move() {
            // Ends when the last worker has let go of its end; nothing is ever sent.
            let _ = all_done.recv_timeout(HAND_BACK);
        }
        for worker in 0..self.handles.len() {
            self.tell(worker, Command::Read);
        }
    }

    /// Takes the queues of a place out of service; they come back to [`Self::collect`].
    pub fn close(&self, place: Source) {
        for worker in 0..self.handles.len() {
            self.tell(worker, Command::Close(place, None));
        }
    }

    /// The same, to open the place's device again next: its queues are closed when this returns, unless a worker is stuck.
    pub fn close_first(&self, place: Source) {
        let (done, all_done) = bounded(0);
        for worker in 0..self.handles.len() {
            self.tell(worker, Command::Close(place, Some(done.clone())));
        }
        drop(done);
        if self.all_move() {
            // Ends when the last worker has let go of its end; nothing is ever sent.
            let _ = all_done.recv_timeout(HAND_BACK);
        }
        self.collect();
    }

    fn tell(&self, worker: usize, command: Command) {
        let handle = &self.handles[worker];
        if handle.commands.send(command).is_err() {
            tracing::error!(worker, "the worker is gone");
        }
        handle.waker.ring();
    }

    /// Closes the queues that workers have returned. Closing waits for the kernel, so it is not done by workers, and of many not one after
    /// the other.
    pub fn collect(&self) {
        let mut queues: Vec<Box<dyn Queue>> = self.returned.try_iter().collect();
        let share = queues.len().div_ceil(CLOSERS).max(1);
        thread::scope(|scope| {
            while queues.len() > share {
                let some = queues.split_off(queues.len() - share);
                scope.spawn(move || drop(some));
            }
            drop(queues);
        });
    }

    /// Whether every worker runs, as far as the watchdog knows.
    pub fn all_move(&self) -> bool {
        !self.handles.iter().any(|handle| handle.gauge.is_stuck())
    }

    /// Puts a snapshot in force and waits until every worker judges by it, but for those that are stuck: they judge nothing, and take up the
    /// newest one when they go on. Returns whether all others did within a second.
    pub fn publish(&self, snapshot: Arc<Snapshot>) -> bool {
        let generation = snapshot.generation;
        self.common.snapshot.store(snapshot);
        for handle in &self.handles {
            handle.waker.ring();
        }
        let deadline = Instant::now() + Duration::from_secs(1);
        let behind = |handle: &Handle| {
            handle.gauge.taken.generation() != generation && !handle.gauge.is_stuck()
        };
        while self.handles.iter().any(behind) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_micros(20));
        }
        true
    }

    /// Stops every worker and waits for it; not for long, for one that is stuck.
    pub fn stop(&mut self) {
        self.watchdog = None;
        self.common.stop.store(true, Ordering::Release);
        for handle in &self.handles {
            handle.waker.ring();
        }
        let threads = self.handles.iter_mut();
        let threads = threads.filter_map(|handle| handle.thread.take());
        if !watchdog::join_in_time(threads, LAST_ROUND) {
            tracing::error!("a worker is stuck and does not end");
        }
        self.collect();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}
