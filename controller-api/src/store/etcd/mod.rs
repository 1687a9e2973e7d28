//! The store in etcd, which several controllers share: one writes, and all read what it has written.
//!
//! A commit is one entry of a log, of any size, which counts from the moment when the key `revision` says so; the rows of objects follow it
//! in small transactions, and a reader adds to them what the log has beyond (decision 017).
//!
//! ```text
//! term ──> keys, wire      (a term as the writer: fenced commits, and rows brought up to date)
//!   └────> client          (calls of any member)
//! read ──> keys, wire      (all objects at a revision; the changes after one)
//! ```

mod client;
mod keys;
mod read;
mod telling;
mod term;
mod watch;
pub(crate) mod wire;

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weft_process::tls::TlsFiles;
use weft_proto::state::{Object, State};

use self::client::Client;
use self::keys::Keys;
use self::term::Term;
use super::{Change, HistoryBounds, Maintenance, Record, Store, StoreError};

pub use read::News;
pub use telling::Told;

/// The messages and clients of etcd.
#[allow(
    missing_docs,
    clippy::all,
    clippy::large_types_passed_by_value,
    unreachable_pub,
    unused
)]
mod api {
    tonic::include_proto!("etcdserverpb");
}

/// What the key `format` says.
const FORMAT: &str = "1";

/// The intent in etcd. Its calls block.
#[derive(Debug)]
pub struct Etcd {
    client: Arc<Client>,
    keys: Keys,
    term: Mutex<Option<Arc<Term>>>,
    notice: SyncSender<()>,
    noticed: Mutex<Option<Receiver<()>>>,
    history: HistoryBounds,
    watch: Mutex<Option<tokio::task::AbortHandle>>,
}

impl Etcd {
    /// The intent below a prefix of keys. Calls nobody yet.
    ///
    /// # Errors
    /// An endpoint is no address, or the certificates cannot be used.
    pub fn open(
        endpoints: &[String],
        prefix: &str,
        tls: Option<&TlsFiles>,
    ) -> Result<Self, StoreError> {
        // News are one thing, however many there are.
        let (notice, noticed) = sync_channel(1);
        Ok(Self {
            client: Arc::new(Client::new(endpoints, tls)?),
            keys: Keys::new(prefix),
            term: Mutex::default(),
            notice,
            noticed: Mutex::new(Some(noticed)),
            history: HistoryBounds::default(),
            watch: Mutex::default(),
        })
    }

    /// The same, with so much of the history kept: what was stored together counts as one change.
    #[must_use]
    pub fn with_history(mut self, history: HistoryBounds) -> Self {
        self.history = history;
        self
    }

    /// Notice when others may have stored something, or this controller may not be the writer any more. The first caller gets it.
    pub fn notices(&self) -> Option<Receiver<()>> {
        let noticed = lock(&self.noticed).take();
        if noticed.is_some() {
            let keys = ["revision", "writer"].map(|key| self.keys.named(key));
            let watch = watch::watch(Arc::clone(&self.client), keys.into(), self.notice.clone());
            let task = self.client.handle().spawn(watch);
            *lock(&self.watch) = Some(task.abort_handle());
        }
        noticed
    }

    /// Tries to become the writer, at an address that clients are told; none while another is. What is stored does not change any more then, but by the
    /// candidate's term.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn campaign(&self, address: &str) -> Result<Option<Candidate>, StoreError> {
        let notice = self.notice.clone();
        let term = Term::campaign(&self.client, &self.keys, address, notice)?;
        Ok(term.map(|term| Candidate(Arc::new(term))))
    }

    /// Begins the candidate's term, if `known` is the newest revision that is stored; else false, and this controller has to read on.
    ///
    /// # Errors
    /// The candidate's lease is over, or etcd does not answer.
    pub fn begin(&self, candidate: &Candidate, known: u64) -> Result<bool, StoreError> {
        let has_begun = self.begin_at(&candidate.0, known)?;
        if has_begun {
            *lock(&self.term) = Some(Arc::clone(&candidate.0));
        }
        Ok(has_begun)
    }

    /// Gives up a candidature.
    pub fn withdraw(&self, candidate: &Candidate) {
        self.revoke(&candidate.0);
    }

    fn term(&self) -> Option<Arc<Term>> {
        lock(&self.term).clone().filter(|term| !term.is_lost())
    }

    /// Whether this controller is the writer, as far as it knows.
    pub fn is_writer(&self) -> bool {
        self.term().is_some()
    }

    /// Brings the rows up to date with the log.
    ///
    /// # Errors
    /// This controller is not the writer any more, or etcd does not answer.
    pub fn apply(&self) -> Result<(), StoreError> {
        self.as_writer(|term| term.apply(&self.client, &self.keys, self.history))
    }

    /// Leaves the role of the writer to others, who need not wait until the lease is over.
    pub fn resign(&self) {
        if let Some(term) = lock(&self.term).take() {
            let revoked = self.client.revoke(term.lease());
            if let Err(error) = revoked {
                tracing::warn!(%error, "the writer's lease ends by itself");
            }
        }
    }

    fn revoke(&self, term: &Term) {
        let (client, lease) = (Arc::clone(&self.client), term.lease());
        self.client.handle().spawn_blocking(move || {
            // It ends by itself otherwise.
            let _ = client.revoke(lease);
        });
    }

    /// Does what only the writer may do; when that fails the term ends, since it is not known what was done.
    fn as_writer<T>(
        &self,
        write: impl FnOnce(&Term) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let term = self.term().ok_or(StoreError::NotStored)?;
        let written = write(&term);
        if written.is_err() {
            let mut slot = lock(&self.term);
            if slot.as_ref().is_some_and(|own| Arc::ptr_eq(own, &term)) {
                slot.take();
                drop(slot);
                self.revoke(&term);
            }
            // One that waits already says the same.
            let _ = self.notice.try_send(());
        }
        written
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(watch) = lock(&self.watch).take() {
            watch.abort();
        }
    }
}

/// A controller that is the only one which may become the writer, for as long as its lease lasts.
#[derive(Debug)]
pub struct Candidate(Arc<Term>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they guard is replaced whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store for Etcd {
    fn load(&self) -> Result<(u64, State), StoreError> {
        Etcd::load(self)
    }

    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.as_writer(|term| term.commit(&self.client, &self.keys, changes))
    }

    fn newest(&self) -> Result<Option<u64>, StoreError> {
        if Store::is_sure(self) {
            return Ok(None);
        }
        Etcd::newest(self).map(Some)
    }

    fn is_sure(&self) -> bool {
        self.term().is_some_and(|term| term.is_sure())
    }

    fn history(&self, before: u64, limit: usize) -> Result<Vec<Record>, StoreError> {
        self.records(before, limit)
    }

    fn oldest(&self) -> Result<Option<u64>, StoreError> {
        self.oldest_record()
    }
}

/// The address of a writer that is no controller.
const OPERATOR: &str = "an operator's command";

impl Maintenance for Etcd {
    fn replace(&self, revision: u64, state: &State) -> Result<(), StoreError> {
        let Some(candidate) = self.campaign(OPERATOR)? else {
            self.check_unused()?;
            return Err(StoreError::Deposed);
        };
        let replaced = self.replace_as(&candidate, revision, state);
        self.resign();
        replaced
    }

    fn compact(&self) -> Result<(), StoreError> {
        self.forget_past()
    }

    fn check_unused(&self) -> Result<(), StoreError> {
        match self.writer()? {
            Some(writer) => Err(StoreError::InUse(writer)),
            None => Ok(()),
        }
    }
}

impl Etcd {
    /// Replaces all by one change of what is there, so that it is done whole or not at all.
    fn replace_as(
        &self,
        candidate: &Candidate,
        revision: u64,
        state: &State,
    ) -> Result<(), StoreError> {
        let (present, before) = Etcd::load(self)?;
        if !self.begin(candidate, present)? {
            return Err(StoreError::Deposed);
        }
        self.as_writer(|term| {
            let (client, keys) = (&self.client, &self.keys);
            term.apply(client, keys, self.history)?;
            term.jump(client, keys, revision.saturating_sub(1))?;
            let gone = before.iter().map(Object::key);
            let change = Change {
                revision,
                upserts: state.iter().cloned().collect(),
                deletes: gone.filter(|key| state.get(key).is_none()).collect(),
                record: Record::of_restore(revision, state.len()),
            };
            term.commit(client, keys, &[change])?;
            term.apply(client, keys, self.history)
        })
    }
}

impl Store for Arc<Etcd> {
    fn load(&self) -> Result<(u64, State), StoreError> {
        Etcd::load(self)
    }

    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        Store::commit(&**self, changes)
    }

    fn newest(&self) -> Result<Option<u64>, StoreError> {
        Store::newest(&**self)
    }

    fn is_sure(&self) -> bool {
        Store::is_sure(&**self)
    }

    fn history(&self, before: u64, limit: usize) -> Result<Vec<Record>, StoreError> {
        Store::history(&**self, before, limit)
    }

    fn oldest(&self) -> Result<Option<u64>, StoreError> {
        Store::oldest(&**self)
    }
}
