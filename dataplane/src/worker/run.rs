//! One worker on its thread: rounds over its queues and its inbox, commands, and the ageing of sessions.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::inbox::Inbound;
use super::io::WorkerIo;
use super::plan::Plan;
use super::shared::{Common, Gauge};
use super::waker::Waker;
use crate::packet::Packet;
use crate::pipeline::counters::Counters;
use crate::pipeline::{Pipeline, Shared, Source, VECTOR};
use crate::port::{FrameCache, Queue};

/// Rounds without work after which a worker sleeps.
const PATIENCE: u32 = 20;
/// How long it sleeps at most, so that sessions age.
const SLEEP: Duration = Duration::from_millis(20);
/// Slots of the session table that a worker looks at each millisecond of work or wait.
const SWEEP: usize = 64;

/// A command to a worker.
pub(super) enum Command {
    /// Take this queue and send through it, but do not read it yet; then drop the other end of a channel.
    Open(Source, Box<dyn Queue>, Sender<()>),
    /// Read all queues from now on.
    Read,
    /// Return the queues of this place, and drop the other end of a channel, if there is one.
    Close(Source, Option<Sender<()>>),
}

/// The agent's end of one worker.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) core: Option<usize>,
    pub(super) commands: Sender<Command>,
    pub(super) waker: Arc<Waker>,
    pub(super) gauge: Arc<Gauge>,
    pub(super) counters: Arc<Counters>,
    pub(super) thread: Option<JoinHandle<()>>,
}

/// One worker, on its own thread.
pub(super) struct Worker {
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
    /// `orders` are the commands that it obeys; it returns queues through `give_back`.
    pub(super) fn new(
        plan: &Plan<'_>,
        index: usize,
        common: &Arc<Common>,
        inboxes: &[Inbound],
        (orders, give_back): (Receiver<Command>, Sender<Box<dyn Queue>>),
    ) -> Self {
        let pipeline = Pipeline::new(plan.shared.clone(), plan.settings);
        let io = WorkerIo::new(
            FrameCache::new(plan.umem),
            plan.settings,
            index,
            (inboxes.to_vec(), plan.desks.clone()),
            Arc::clone(pipeline.counters()),
        );
        let slots = plan.shared.sessions.statistics().capacity as usize;
        Self {
            index,
            workers: plan.cores.len(),
            common: Arc::clone(common),
            commands: orders,
            returned: give_back,
            gauge: Arc::new(Gauge::new()),
            waker: Arc::clone(&inboxes[index].waker),
            pipeline,
            io,
            shared: plan.shared.clone(),
            vector: Vec::with_capacity(VECTOR),
            // Workers go round the same table, from places apart.
            sweep: slots / plan.cores.len() * index,
            swept: 0,
        }
    }

    /// Runs it on a thread of its own, bound to `core` if there is one. `commands` is the other end of its orders.
    pub(super) fn start(
        self,
        core: Option<usize>,
        commands: Sender<Command>,
    ) -> io::Result<Handle> {
        let index = self.index;
        let waker = Arc::clone(&self.waker);
        let gauge = Arc::clone(&self.gauge);
        let counters = Arc::clone(self.pipeline.counters());
        let run = move || {
            if let Some(core) = core
                && let Err(error) = pin(core)
            {
                tracing::warn!(worker = index, core, %error, "cannot pin the worker to its core");
            }
            self.run();
        };
        let thread = Builder::new().name(format!("worker-{index}")).spawn(run)?;
        Ok(Handle {
            core,
            commands,
            waker,
            gauge,
            counters,
            thread: Some(thread),
        })
    }

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
            self.io.set_trunks(&snapshot.trunks);
            self.gauge.taken.up(snapshot.generation);
            // Before those that come after them.
            self.pipeline.resume(&mut self.io, self.common.stamp(time));
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
        let snapshot = self.pipeline.snapshot();
        let outside = |address, state| snapshot.outside.timeouts_of(address)?.of(state);
        for _ in 0..elapsed {
            self.sweep = self
                .shared
                .sessions
                .sweep_with(self.sweep, SWEEP, now, &timeouts, outside);
        }
        if self.pipeline.waiting() > 0 {
            self.pipeline.resume(&mut self.io, now);
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

/// Binds the calling thread to a core.
fn pin(core: usize) -> io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_bound_to_one_core_and_a_core_that_is_none_is_an_error() {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let allowed = rustix::thread::sched_getaffinity(None).unwrap();
                let is_allowed = |core: &usize| allowed.is_set(*core);
                let core = (0..CpuSet::MAX_CPU).rfind(is_allowed).unwrap();
                pin(core).unwrap();
                let bound = rustix::thread::sched_getaffinity(None).unwrap();
                assert_eq!((bound.count(), bound.is_set(core)), (1, true));
                assert_eq!(
                    pin(CpuSet::MAX_CPU).unwrap_err().kind(),
                    io::ErrorKind::InvalidInput
                );
            });
        });
    }
}
