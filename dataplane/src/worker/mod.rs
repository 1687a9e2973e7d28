//! Workers: one pinned thread per core, each with its own queues, counters and free frames, run to completion.
//!
//! A worker owns the queues that it reads. A packet for a queue of another worker goes through that worker's inbox; its frame moves by
//! number, for all workers share one packet memory. Control reaches a worker by a channel, policy by a snapshot that it loads before
//! each vector. A worker without work sleeps in `poll` unless told to spin.

mod io;
mod publication;
pub mod service;
mod steer;
mod waker;
mod watchdog;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use crossbeam::queue::ArrayQueue;

use io::{Inbound, WorkerIo};
pub use publication::Taken;
use service::{Injector, PuntQueue};
pub use waker::Waker;
use watchdog::Watchdog;

use crate::packet::Packet;
use crate::pipeline::counters::Counters;
use crate::pipeline::{Destination, Pipeline, Settings, Shared, Source, VECTOR};
use crate::port::{FrameCache, Queue, Umem};
use crate::session::Timeouts;
use crate::snapshot::Snapshot;
use crate::sync::ArcSwap;

/// Packets that may wait in a worker's inbox.
const INBOX: usize = 1024;
/// Rounds without work after which a worker sleeps.
const PATIENCE: u32 = 20;
/// How long it sleeps at most, so that sessions age.
const SLEEP: Duration = Duration::from_millis(20);
/// How long a caller waits for a worker to take or return queues.
const HAND_BACK: Duration = Duration::from_millis(50);
/// How long a worker may take to end.
const LAST_ROUND: Duration = Duration::from_secs(2);
/// Threads that close queues, at most.
const CLOSERS: usize = 16;
/// Slots of the session table that a worker looks at each millisecond of work or wait.
const SWEEP: usize = 64;

/// A command to a worker.
enum Command {
    /// Take this queue and send through it, but do not read it yet; then drop the other end of a channel.
    Open(Source, Box<dyn Queue>, Sender<()>),
    /// Read all queues from now on.
    Read,
    /// Return the queues of this place, and drop the other end of a channel, if there is one.
    Close(Source, Option<Sender<()>>),
}

/// What workers share among themselves and with the agent.
#[derive(Debug)]
pub struct Common {
    /// The snapshot in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// How long sessions may idle.
    pub timeouts: ArcSwap<Timeouts>,
    /// Whether workers without work spin instead of sleeping.
    pub spin: AtomicBool,
    started: Instant,
    stop: AtomicBool,
}

impl Common {
    /// Milliseconds since the daemon started, as sessions are stamped.
    pub fn now(&self) -> u32 {
        self.stamp(Instant::now())
    }

    /// The same for a moment that was taken already.
    fn stamp(&self, time: Instant) -> u32 {
        time.duration_since(self.started).as_millis() as u32
    }
}

/// A worker as others see it.
#[derive(Debug)]
pub struct Gauge {
    /// The generation that it judges by.
    pub taken: Taken,
    /// Packets that it took in.
    pub packets: AtomicU64,
    /// Nanoseconds at work.
    pub busy: AtomicU64,
    /// Nanoseconds without work.
    pub idle: AtomicU64,
    /// How often it stood still for longer than the watchdog bears.
    pub stalls: AtomicU64,
    /// For how long it has been stuck; 0 while it runs.
    pub stuck_milliseconds: AtomicU64,
}

impl Gauge {
    /// Nanoseconds accounted for: another number after every round.
    fn rounds_time(&self) -> u64 {
        self.busy
            .load(Ordering::Relaxed)
            .wrapping_add(self.idle.load(Ordering::Relaxed))
    }

    /// Whether the watchdog holds it to be stuck.
    pub fn is_stuck(&self) -> bool {
        self.stuck_milliseconds.load(Ordering::Relaxed) > 0
    }
}

/// The agent's end of one worker.
#[derive(Debug)]
struct Handle {
    core: Option<usize>,
    commands: Sender<Command>,
    waker: Arc<Waker>,
    gauge: Arc<Gauge>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

/// All workers.
#[derive(Debug)]
pub struct Workers {
    handles: Vec<Handle>,
    common: Arc<Common>,
    inboxes: Vec<Inbound>,
    returned: Receiver<Box<dyn Queue>>,
    watchdog: Option<Watchdog>,
}

/// What workers are made with.
#[derive(Debug)]
pub struct Plan<'a> {
    /// A core for each worker; none leaves it to the scheduler.
    pub cores: &'a [Option<usize>],
    /// Limits of the pipelines.
    pub settings: &'a Settings,
    /// Sessions and fragments.
    pub shared: &'a Shared,
    /// Idle times.
    pub timeouts: Timeouts,
    /// Whether to spin.
    pub spin: bool,
    /// How long a worker may be stuck before it is reported; none: no watchdog.
    pub watchdog: Option<Duration>,
    /// Packet memory.
    pub umem: &'a Arc<Umem>,
    /// Where packets to the metadata service are left.
    pub metadata: &'a Arc<PuntQueue>,
}

impl Workers {
    /// Starts a worker for each core.
    ///
    /// # Errors
    /// The system gives no thread or event descriptor.
    pub fn start(plan: &Plan<'_>) -> std::io::Result<Self> {
        let common = Arc::new(Common {
            snapshot: ArcSwap::default(),
            timeouts: ArcSwap::from_pointee(plan.timeouts),
            spin: AtomicBool::new(plan.spin),
            started: Instant::now(),
            stop: AtomicBool::new(false),
        });
        let (give_back, returned) = unbounded();
        let inboxes: Vec<Inbound> = plan
            .cores
            .iter()
            .map(|_| {
                Ok(Inbound {
                    queue: Arc::new(ArrayQueue::new(INBOX)),
                    waker: Arc::new(Waker::new()?),
                })
            })
            .collect::<std::io::Result<_>>()?;
        let mut handles = Vec::new();
        for (index, core) in plan.cores.iter().enumerate() {
            let (commands, inbox) = unbounded();
            let pipeline = Pipeline::new(plan.shared.clone(), plan.settings);
            let gauge = Arc::new(Gauge {
                taken: Taken::nothing(),
                packets: AtomicU64::new(0),
                busy: AtomicU64::new(0),
                idle: AtomicU64::new(0),
                stalls: AtomicU64::new(0),
                stuck_milliseconds: AtomicU64::new(0),
            });
            let counters = Arc::clone(pipeline.counters());
            let io = WorkerIo::new(
                FrameCache::new(plan.umem),
                plan.settings,
                index,
                (inboxes.clone(), Arc::clone(plan.metadata)),
                Arc::clone(&counters),
            );
            let worker = Worker {
                index,
                workers: plan.cores.len(),
                common: Arc::clone(&common),
                commands: inbox,
                returned: give_back.clone(),
                gauge: Arc::clone(&gauge),
                waker: Arc::clone(&inboxes[index].waker),
                pipeline,
                io,
                shared: plan.shared.clone(),
                vector: Vec::with_capacity(VECTOR),
                // Workers go round the same table, from places apart.
                sweep: plan.shared.sessions.statistics().capacity as usize / plan.cores.len()
                    * index,
                swept: 0,
            };
            let core = *core;
            let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                if let Some(core) = core
                    && let Err(error) = waker::pin(core) {
                        tracing::warn!(worker = index, core, %error, "cannot pin the worker to its core");
                    }
                worker.run();
            })?;
            let waker = Arc::clone(&inboxes[index].waker);
            handles.push(Handle {
                core,
                commands,
                waker,
                gauge,
                counters,
                thread: Some(thread),
            });
        }
        let gauges = || {
            handles
                .iter()
                .map(|handle| Arc::clone(&handle.gauge))
                .collect()
        };
        let watchdog = match plan.watchdog {
            Some(patience) => Some(Watchdog::start(gauges(), patience)?),
            None => None,
        };
        Ok(Self {
            handles,
            common,
            inboxes,
            returned,
            watchdog,
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
        io::owner(place, queue, self.handles.len())
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

/// One worker, on its own thread.
struct Worker {
    index: usize,
    workers: usize,
    common: Arc<Common>,
    commands: Receiver<Command>,
    returned: Sender<Box<dyn Queue>>,
    gauge: Arc<Gauge>,
    waker: Arc<Waker>,
    pipeline: Pipeline,
    io: WorkerIo,
    shared: Shared,
    vector: Vec<Packet>,
    sweep: usize,
    swept: u32,
}

impl Worker {
    fn run(mut self) {
        let mut bored = 0;
        let mut last = Instant::now();
        while !self.common.stop.load(Ordering::Acquire) {
            let worked = self.round(last);
            let now = Instant::now();
            let spent = now.duration_since(last).as_nanos() as u64;
            last = now;
            let account = if worked > 0 {
                &self.gauge.busy
            } else {
                &self.gauge.idle
            };
            account.store(account.load(Ordering::Relaxed) + spent, Ordering::Relaxed);
            bored = if worked > 0 { 0 } else { bored + 1 };
            if bored == 0 {
                continue;
            }
            if self.common.spin.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            } else if bored > PATIENCE {
                self.io.wait(&self.waker, SLEEP);
            } else {
                // Whoever shares the core may be the one that we wait for.
                std::thread::yield_now();
            }
        }
        self.io.give_back(&self.returned, |_| true);
    }

    /// One round over everything that may have work; returns how many packets there were.
    fn round(&mut self, time: Instant) -> usize {
        if self.waker.heard() {
            self.obey();
        }
        let snapshot = self.common.snapshot.load();
        if snapshot.generation != self.pipeline.snapshot().generation {
            self.pipeline.set_snapshot(Arc::clone(&snapshot));
            self.gauge.taken.up(snapshot.generation);
        }
        drop(snapshot);
        let now = self.common.stamp(time);
        let mut packets = 0;
        for slot in 0..self.io.slots() {
            let (place, got) = self.io.receive(slot, &mut self.vector);
            if got > 0 {
                packets += got;
                self.pipeline
                    .process(&mut self.io, place, &mut self.vector, now);
            }
        }
        packets += self.io.take_inbox();
        self.io.flush();
        if now != self.swept {
            self.age(now);
        }
        if packets > 0 {
            self.gauge.packets.store(
                self.gauge.packets.load(Ordering::Relaxed) + packets as u64,
                Ordering::Relaxed,
            );
        }
        packets
    }

    /// Lets sessions and fragments age: a few slots of the table each millisecond.
    fn age(&mut self, now: u32) {
        let timeouts = self.common.timeouts.load();
        let elapsed = now.wrapping_sub(self.swept).min(100) as usize;
        for _ in 0..elapsed {
            self.sweep = self
                .shared
                .sessions
                .sweep(self.sweep, SWEEP, now, &timeouts);
        }
        if self.index == 0 && now / 100 != self.swept / 100 {
            self.pipeline.tick(&mut self.io, now);
        }
        if now / 100 != self.swept / 100 {
            self.io.publish_kernel_drops();
        }
        self.swept = now;
    }

    #[cold]
    fn obey(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Open(place, queue, _done) => self.io.open(place, queue, self.workers),
                Command::Read => self.io.read_all(),
                Command::Close(place, _done) => {
                    self.io.give_back(&self.returned, |other| other == place);
                }
            }
        }
    }
}

/// Where a packet would be sent to reach a place.
pub(crate) fn destination(place: Source) -> Destination {
    match place {
        Source::Port(index) => Destination::Port(index),
        Source::Uplink(index) => Destination::Uplink(index),
    }
}
