//! Changes on their way to the store. Each is decided upon the one before it; those that come while the disk is busy are stored together, with one
//! synchronisation of the file, and each is acknowledged only then.
//!
//! When the store fails, every change that was not stored yet is undone, those too that were decided upon one of them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::interest::Interest;
use crate::store::{Change, Record, Store, StoreError};
use crate::version::Version;
use crate::watch::Recent;

/// The versions that are decided, stored and published.
pub(crate) struct Journal {
    store: Box<dyn Store>,
    queue: Mutex<Queue>,
    /// Something was stored, or not.
    done: Condvar,
    published: watch::Sender<Arc<Version>>,
    interest: Arc<Interest>,
    /// What watches are told.
    recent: Recent,
}

struct Queue {
    /// The newest version that is decided.
    head: Arc<Version>,
    waiting: Vec<Change>,
    /// Whether a thread stores changes.
    is_storing: bool,
    run: Arc<Run>,
}

/// Changes that follow each other up to a failure of the store.
#[derive(Debug)]
struct Run {
    /// The newest revision that is stored.
    stored: AtomicU64,
    /// Why no more of them will be.
    failure: OnceLock<Arc<StoreError>>,
}

impl Run {
    fn from(stored: u64) -> Arc<Self> {
        Arc::new(Self {
            stored: stored.into(),
            failure: OnceLock::new(),
        })
    }
}

/// A change that waits to be stored.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    revision: u64,
    run: Arc<Run>,
}

impl Journal {
    pub(crate) fn new(store: Box<dyn Store>, version: Version) -> Self {
        let head = Arc::new(version);
        Self {
            recent: Recent::after(head.revision),
            store,
            queue: Mutex::new(Queue {
                run: Run::from(head.revision),
                waiting: Vec::new(),
                is_storing: false,
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

    /// The newest changes that are stored.
    pub(crate) fn recent(&self) -> &Recent {
        &self.recent
    }

    /// What the store keeps of changes.
    pub(crate) fn stored(&self) -> &dyn Store {
        &*self.store
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
            run: Arc::clone(&queue.run),
        };
        (Arc::clone(&queue.head), ticket)
    }

    /// Adds a change to those to be stored, with the version that it leads to; nothing when what it was decided upon is undone. Called by one thread at a time.
    pub(crate) fn add(&self, upon: &Ticket, change: Change, version: Version) -> Option<Ticket> {
        let mut queue = self.lock();
        if !Arc::ptr_eq(&queue.run, &upon.run) {
            return None;
        }
        let revision = version.revision;
        queue.head = Arc::new(version);
        queue.waiting.push(change);
        Some(Ticket {
            revision,
            run: Arc::clone(&upon.run),
        })
    }

    /// Waits until a version is stored and published.
    ///
    /// # Errors
    /// It could not be stored, or one before it; then it is undone.
    pub(crate) fn wait(&self, ticket: &Ticket) -> Result<(), Arc<StoreError>> {
        let mut queue = self.lock();
        loop {
            if ticket.run.stored.load(Ordering::SeqCst) >= ticket.revision {
                return Ok(());
            }
            if let Some(failure) = ticket.run.failure.get() {
                return Err(Arc::clone(failure));
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
            self.recent
                .add(changes.into_iter().map(|change| change.record));
            self.publish(&version);
        }
        let mut queue = self.lock();
        queue.is_storing = false;
        match stored {
            Ok(()) => queue.run.stored.store(version.revision, Ordering::SeqCst),
            Err(error) => {
                // Nobody else sets it: one thread stores at a time.
                let _ = queue.run.failure.set(Arc::new(error));
                queue.head = self.published.borrow().clone();
                queue.run = Run::from(queue.head.revision);
                queue.waiting.clear();
            }
        }
        self.done.notify_all();
        queue
    }

    /// Waits until nothing is on its way to the store, or so long.
    pub(crate) fn settle(&self, most: Duration) {
        let is_busy = |queue: &mut Queue| queue.is_storing || !queue.waiting.is_empty();
        // Whether it was long enough: what is not stored is refused then.
        let _ = self.done.wait_timeout_while(self.lock(), most, is_busy);
    }

    /// Takes up a version that another controller has stored, and publishes it. What was decided here and is not stored is undone. `records`: of the
    /// changes that led to it, if they are known. Called by one thread at a time, while none decides.
    pub(crate) fn adopt(&self, version: Version, records: Option<Vec<Record>>) {
        let version = Arc::new(version);
        let mut queue = self.lock();
        while queue.is_storing {
            let woken = self.done.wait(queue);
            queue = woken.unwrap_or_else(PoisonError::into_inner);
        }
        // A change of this controller may have turned out to be stored after all, and been read from the store meanwhile.
        let known = self.published.borrow().revision;
        if records.is_some() && version.revision <= known {
            return;
        }
        // It may have failed before. What still waits was not given to the store.
        let _ = queue.run.failure.set(Arc::new(StoreError::NotStored));
        queue.waiting.clear();
        queue.is_storing = true;
        queue.run = Run::from(version.revision);
        queue.head = Arc::clone(&version);
        drop(queue);
        match records {
            Some(records) => {
                let newer = records.into_iter().filter(|it| it.revision > known);
                self.recent.add(newer);
            }
            None => self.recent.forget(version.revision),
        }
        self.publish(&version);
        self.lock().is_storing = false;
        self.done.notify_all();
    }

    /// The newest revision that another controller may have stored; none when only this one stores.
    ///
    /// # Errors
    /// The store's.
    pub(crate) fn newest(&self) -> Result<Option<u64>, StoreError> {
        self.store.newest()
    }

    fn publish(&self, version: &Arc<Version>) {
        let before = self.published.borrow().clone();
        let concern = version.concern(&before);
        let find = || concern.as_ref().map(|it| self.interest.concerned(it));
        let concerned: Option<BTreeSet<&str>> = find();
        let first = before.revision + 1;
        self.interest
            .expect(first, version.revision, concerned.as_ref());
        self.published.send_replace(Arc::clone(version));
        // A host may have asked meanwhile, and looked at the version before.
        let woken = find();
        if let (Some(concerned), Some(woken)) = (&concerned, &woken) {
            let late = woken.difference(concerned).copied().collect();
            self.interest.expect(first, version.revision, Some(&late));
        }
        self.interest.wake(woken.as_ref());
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Whatever a panic interrupts, the fields are set one after the other without a call between that could panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Record;
    use weft_proto::state::State;

    /// A store that fails once it holds so many changes.
    struct Limited(Mutex<usize>);

    impl Store for Limited {
        fn load(&self) -> Result<(u64, State), StoreError> {
            Ok((0, State::default()))
        }

        fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
            let mut left = self.0.lock().unwrap();
            *left = left.checked_sub(changes.len()).ok_or(StoreError::Closed)?;
            Ok(())
        }

        fn history(&self, _: u64, _: usize) -> Result<Vec<Record>, StoreError> {
            Ok(Vec::new())
        }

        fn oldest(&self) -> Result<Option<u64>, StoreError> {
            Ok(None)
        }
    }

    /// With a record, as every change has one.
    fn add(journal: &Journal, upon: &Ticket, revision: u64) -> Option<Ticket> {
        let change = Change {
            revision,
            record: Record {
                revision,
                ..Record::default()
            },
            ..Change::default()
        };
        journal.add(upon, change, Version::loaded(revision, State::default()))
    }

    #[test]
    fn what_another_controller_stored_takes_the_place_of_what_waits() {
        let journal = Journal::new(Box::new(Limited(Mutex::new(9))), Version::default());
        let (_, start) = journal.head();
        let first = add(&journal, &start, 1).unwrap();
        journal.wait(&first).unwrap();
        let lost = add(&journal, &first, 2).unwrap();
        journal.adopt(Version::loaded(5, State::default()), None);
        assert!(journal.wait(&lost).is_err());
        journal.wait(&first).unwrap();
        assert_eq!(journal.published().borrow().revision, 5);
        assert!(add(&journal, &lost, 3).is_none());
        let (head, upon) = journal.head();
        assert_eq!(head.revision, 5);
        let next = add(&journal, &upon, 6).unwrap();
        journal.wait(&next).unwrap();
    }

    /// What was believed lost may be stored after all, and be read from there, too.
    #[test]
    fn a_change_that_is_there_already_is_not_taken_up_again() {
        let journal = Journal::new(Box::new(Limited(Mutex::new(9))), Version::default());
        let (_, start) = journal.head();
        let first = add(&journal, &start, 1).unwrap();
        journal.wait(&first).unwrap();
        let records = |revisions: std::ops::RangeInclusive<u64>| {
            let record = |revision| Record {
                revision,
                ..Record::default()
            };
            Some(revisions.map(record).collect())
        };
        journal.adopt(Version::loaded(1, State::default()), records(1..=1));
        let second = add(&journal, &first, 2).unwrap();
        journal.wait(&second).unwrap();
        journal.adopt(Version::loaded(4, State::default()), records(1..=4));
        assert_eq!(journal.published().borrow().revision, 4);
        let kept = journal.recent().since(1).unwrap();
        let kept: Vec<u64> = kept.iter().map(|record| record.revision).collect();
        assert_eq!(kept, [2, 3, 4]);
        assert!(journal.recent().since(4).unwrap().is_empty());
    }

    #[test]
    fn when_the_store_fails_what_it_has_stays_and_the_rest_is_undone() {
        let store = Limited(Mutex::new(2));
        let journal = Journal::new(Box::new(store), Version::default());
        let (_, start) = journal.head();
        // Two that wait are stored together.
        let first = add(&journal, &start, 1).unwrap();
        let second = add(&journal, &first, 2).unwrap();
        assert_eq!(journal.published().borrow().revision, 0, "not yet durable");
        journal.wait(&first).unwrap();
        assert_eq!(journal.published().borrow().revision, 2);
        let third = add(&journal, &second, 3).unwrap();
        let fourth = add(&journal, &third, 4).unwrap();
        for ticket in [&fourth, &third] {
            assert!(journal.wait(ticket).is_err());
        }
        journal.wait(&second).unwrap();
        assert_eq!(journal.head().0.revision, 2);
        assert!(
            add(&journal, &fourth, 5).is_none(),
            "what it rests on is gone"
        );
        assert_eq!(journal.published().borrow().revision, 2);
    }
}
