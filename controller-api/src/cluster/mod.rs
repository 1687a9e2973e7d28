//! Several controllers with one store: one of them writes, and all serve hosts and readers.
//!
//! A thread follows what is stored, and tries to become the writer when there is none. The writer's thread brings the store's rows up to date with its
//! log. Two more tell the other controllers how far the hosts are that are attached to this one (`status`), and what these find
//! out (`findings`).

mod findings;
mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::hosts::Hosts;
use crate::intent::{Intent, Standing};
use crate::store::etcd::{Candidate, Etcd};
use crate::store::{Store, StoreError};

/// How often a follower asks for news without having been given notice.
const POLL: Duration = Duration::from_secs(1);
/// How long to wait after an error.
const RETRY: Duration = Duration::from_millis(200);
/// How long changes that are decided may take to be stored before the role of the writer is left.
const SETTLE: Duration = Duration::from_secs(2);
/// How often the writer brings the rows up to date.
const APPLY: Duration = Duration::from_millis(500);

/// As which one a controller shares a store.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The store.
    pub store: Arc<Etcd>,
    /// The address that clients and other controllers reach this one at.
    pub address: String,
}

/// The threads of a controller that shares a store.
#[derive(Debug)]
pub(crate) struct Cluster {
    is_leaving: Arc<AtomicBool>,
    /// Dropped to end the threads that tell of hosts, and of what these find.
    telling: Vec<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Cluster {
    /// Follows the store, and becomes the writer when there is none.
    pub(crate) fn join(membership: Membership, intent: &Arc<Intent>, hosts: &Arc<Hosts>) -> Self {
        let is_leaving = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let store = Arc::clone(&membership.store);
        if let Some(notices) = store.notices() {
            let member = Member {
                membership,
                intent: Arc::clone(intent),
                is_leaving: Arc::clone(&is_leaving),
            };
            threads.push(std::thread::spawn(move || member.run(&notices)));
        }
        let (telling, told) = channel();
        let (finding, found) = channel();
        let of_findings = (Arc::clone(&store), Arc::clone(intent), Arc::clone(hosts));
        threads.push(std::thread::spawn(move || {
            let (store, intent, hosts) = of_findings;
            findings::exchange(&store, &intent, &hosts, &found);
        }));
        let (intent, hosts) = (Arc::clone(intent), Arc::clone(hosts));
        threads.push(std::thread::spawn(move || {
            status::exchange(&store, &intent, &hosts, &told);
        }));
        Self {
            is_leaving,
            telling: vec![telling, finding],
            threads,
        }
    }

    /// Leaves the role of the writer to another, and ends the threads.
    pub(crate) fn leave(mut self) {
        self.is_leaving.store(true, Ordering::SeqCst);
        self.telling.clear();
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The threads end by themselves then.
        self.is_leaving.store(true, Ordering::SeqCst);
    }
}

/// What the first thread has.
struct Member {
    membership: Membership,
    intent: Arc<Intent>,
    is_leaving: Arc<AtomicBool>,
}

impl Member {
    fn run(&self, notices: &Receiver<()>) {
        let mut said = String::new();
        while !self.is_leaving() {
            let pause = match self.step() {
                Ok(pause) => {
                    said.clear();
                    pause
                }
                Err(error) => {
                    let reason = error.to_string();
                    // The same again and again is said once.
                    if reason != said {
                        tracing::warn!(reason, "cannot follow the store now; retrying");
                        said = reason;
                    }
                    RETRY
                }
            };
            self.wait(notices, pause);
        }
        self.intent.set_standing(Standing::Follower(None));
        self.intent.settle(SETTLE);
        self.membership.store.resign();
    }

    fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::SeqCst)
    }

    /// Waits so long; a follower until there is notice, the writer until it is none any more.
    fn wait(&self, notices: &Receiver<()>, pause: Duration) {
        let end = Instant::now() + pause;
        let is_writer = self.intent.is_writer();
        while !self.is_leaving() {
            let left = end.saturating_duration_since(Instant::now());
            // A thread that leaves is not given notice.
            match notices.recv_timeout(left.min(RETRY)) {
                Ok(()) if is_writer && self.membership.store.is_writer() => {}
                Ok(()) => return,
                Err(RecvTimeoutError::Timeout) if left > RETRY => {}
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(left.min(RETRY)),
            }
            if Instant::now() >= end {
                return;
            }
        }
    }

    /// Does what is to be done now; how long there is nothing to do then, but for notices.
    fn step(&self) -> Result<Duration, StoreError> {
        let store = &self.membership.store;
        if store.is_writer() {
            store.apply()?;
            return Ok(APPLY);
        }
        if self.intent.is_writer() {
            tracing::warn!("this controller is not the writer any more");
            self.intent.set_standing(Standing::Follower(None));
        }
        let Some(writer) = self.read()? else {
            return self.campaign();
        };
        // What an earlier process at our address left ends with its lease.
        let other = Some(writer).filter(|writer| *writer != self.membership.address);
        self.intent.set_standing(Standing::Follower(other));
        Ok(POLL)
    }

    /// Takes up what is stored; the writer's address.
    fn read(&self) -> Result<Option<String>, StoreError> {
        let store = &self.membership.store;
        let news = store.news(self.intent.current().revision)?;
        match news.changes {
            Some(changes) => self.intent.follow(&changes),
            None => {
                let (revision, state) = store.load()?;
                tracing::info!(revision, "read the whole store");
                self.intent.replace(revision, state);
            }
        }
        Ok(news.writer)
    }

    fn campaign(&self) -> Result<Duration, StoreError> {
        let store = &self.membership.store;
        self.intent.set_standing(Standing::Follower(None));
        let Some(candidate) = store.campaign(&self.membership.address)? else {
            return Ok(Duration::ZERO);
        };
        if let Err(error) = self.begin(&candidate) {
            store.withdraw(&candidate);
            return Err(error);
        }
        let revision = self.intent.current().revision;
        tracing::info!(revision, "this controller is the writer now");
        self.intent.set_standing(Standing::Writer);
        Ok(Duration::ZERO)
    }

    /// Reads all that is stored, which changes no more, and begins the term.
    fn begin(&self, candidate: &Candidate) -> Result<(), StoreError> {
        loop {
            self.read()?;
            let known = self.intent.current().revision;
            if self.membership.store.begin(candidate, known)? {
                return Ok(());
            }
            if self.is_leaving() {
                return Err(StoreError::Deposed);
            }
        }
    }
}
