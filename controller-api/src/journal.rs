//! Changes on their way to the store. Each is decided upon the one before it; those that come while the disk is busy are stored together, with one
//! synchronisation of the file, and each is acknowledged only then.
//!
//! When the store fails, every change that was not stored yet is undone, those too that were decided upon one of them.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::interest::Interest;
use crate::store::{Change, Store, StoreError};
use crate::version::Version;

/// The versions that are decided, stored and published.
pub(crate) struct Journal {
    store: Box<dyn Store>,
    queue: Mutex<Queue>,
    /// Something was stored, or not.
    done: Condvar,
    published: watch::Sender<Arc<Version>>,
    interest: Arc<Interest>,
}

struct Queue {
    /// The newest version that is decided.
    head: Arc<Version>,
    waiting: Vec<Change>,
    /// Whether a thread stores changes.
    is_storing: bool,
    /// The newest revision that is stored.
    stored: u64,
    /// How often the store failed, and why it did last.
    failures: u64,
    failure: Option<Arc<StoreError>>,
}

/// A change that waits to be stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket {
    revision: u64,
    failures: u64,
}

impl Journal {
    pub(crate) fn new(store: Box<dyn Store>, version: Version) -> Self {
        let head = Arc::new(version);
        Self {
            store,
            queue: Mutex::new(Queue {
                stored: head.revision,
                waiting: Vec::new(),
                is_storing: false,
                failures: 0,
                failure: None,
                head: Arc::clone(&head),
            }),
            done: Condvar::new(),
            published: watch::Sender::new(head),
            interest: Arc::default(),
        }
    }

    pub(crate) fn interest(&self) -> &Arc<Interest> {
        &self.interest
    }

    /// The newest version that is stored.
    pub(crate) fn published(&self) -> &watch::Sender<Arc<Version>> {
        &self.published
    }

    /// The newest version that is decided, to decide the next upon; and what tells whether it gets stored.
    pub(crate) fn head(&self) -> (Arc<Version>, Ticket) {
        let queue = self.lock();
        let ticket = Ticket {
            revision: queue.head.revision,
            failures: queue.failures,
        };
        (Arc::clone(&queue.head), ticket)
    }

    /// Adds a change to those to be stored, with the version that it leads to; nothing when what it was decided upon is undone. Called by one thread at a time.
    pub(crate) fn add(&self, upon: Ticket, change: Change, version: Version) -> Option<Ticket> {
        let mut queue = self.lock();
        if queue.failures != upon.failures {
            return None;
        }
        let revision = version.revision;
        queue.head = Arc::new(version);
        queue.waiting.push(change);
        Some(Ticket { revision, ..upon })
    }

    /// Waits until a version is stored and published.
    ///
    /// # Errors
    /// It could not be stored, or one before it; then it is undone.
    pub(crate) fn wait(&self, ticket: Ticket) -> Result<(), Arc<StoreError>> {
        let mut queue = self.lock();
        loop {
            if queue.stored >= ticket.revision && queue.failures == ticket.failures {
                return Ok(());
            }
            if queue.failures != ticket.failures {
                let failure = queue.failure.clone();
                return Err(failure.unwrap_or_else(|| Arc::new(StoreError::Closed)));
            }
            if queue.is_storing {
                let woken = self.done.wait(queue);
                queue = woken.unwrap_or_else(PoisonError::into_inner);
            } else {
                queue = self.store(queue);
            }
        }
    }

    /// Stores what waits, without holding others up from adding to it, and publishes it.
    fn store<'q>(&'q self, mut queue: MutexGuard<'q, Queue>) -> MutexGuard<'q, Queue> {
        let changes = std::mem::take(&mut queue.waiting);
        let version = Arc::clone(&queue.head);
        queue.is_storing = true;
        drop(queue);
        let stored =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.store.commit(&changes)));
        let stored = stored.unwrap_or(Err(StoreError::Closed));
        if stored.is_ok() {
            self.publish(&version);
        }
        let mut queue = self.lock();
        queue.is_storing = false;
        match stored {
            Ok(()) => queue.stored = version.revision,
            Err(error) => {
                queue.failures += 1;
                queue.failure = Some(Arc::new(error));
                queue.head = self.published.borrow().clone();
                queue.waiting.clear();
            }
        }
        self.done.notify_all();
        queue
    }

    fn publish(&self, version: &Arc<Version>) {
        let before = self.published.borrow().clone();
        let concerned: Option<BTreeSet<&str>> = version.concerned(&before);
        self.interest.expect(version.revision, concerned.as_ref());
        self.published.send_replace(Arc::clone(version));
        self.interest.wake(concerned.as_ref());
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Whatever a panic interrupts, the fields are set one after the other without a call between that could panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
