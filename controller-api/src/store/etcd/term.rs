//! A term as the writer: from the moment when the key `writer` was made under our lease until the lease is over.
//!
//! Each transaction of a term is fenced: it does nothing unless that key is still the one that was made for the term, so that a controller which
//! only believes to be the writer can change nothing. It is guarded besides by what it expects to be stored, so that it does nothing when it
//! arrives twice.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prost::Message;
use weft_proto::state::{Key, Object};
use weft_proto::v1::StoredRevision;

use super::api::{RequestOp, TxnRequest};
use super::client::Client;
use super::keys::{self, Keys, delete, found, one, put, read, was_changed_at, was_made_at};
use super::wire::{self, PART, cut};
use crate::store::{Change, HistoryBounds, StoreError};

/// Seconds that the lease of a writer lasts that is not heard of. etcd makes no lease shorter than one and a half election timeouts.
const LEASE_SECONDS: i64 = 2;
/// The same as a time. Clocks of controllers and etcd run alike for so long.
const LEASE: Duration = Duration::from_secs(LEASE_SECONDS as u64);
/// How often the lease is made to last its whole time again.
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// For how long etcd may not answer before the term counts as over: another controller may be the writer by then.
const SILENCE: Duration = Duration::from_secs(5);
/// Operations in one transaction; etcd takes 128.
const OPERATIONS: usize = 100;
/// Bytes in one transaction; etcd takes 1.5 MiB.
const BYTES: usize = 1 << 20;
/// The log is kept for controllers that follow it, whatever is kept of the history: so many entries behind the newest,
const LEAST_ENTRIES: usize = 1000;
/// and so many bytes.
const LEAST_BYTES: usize = 16 << 20;
/// The most bytes of it: etcd holds 2 GiB if nothing else is set, and keeps what is deleted until it is compacted.
const MOST_BYTES: usize = 128 << 20;

/// One term.
#[derive(Debug)]
pub(super) struct Term {
    /// A random number.
    number: u64,
    lease: i64,
    /// The revision of etcd at which the key `writer` was made.
    fence: i64,
    keep_alive: tokio::task::AbortHandle,
    is_lost: Arc<AtomicBool>,
    /// When the newest confirmation of the lease was asked for.
    confirmed: Arc<Mutex<Instant>>,
    stored: Mutex<Stored>,
    backlog: Mutex<Backlog>,
    applied: Mutex<Applied>,
}

/// What is stored.
#[derive(Debug, Default)]
struct Stored {
    revision: u64,
    /// The revision of etcd at which that was noted.
    guard: i64,
    commits: u64,
}

/// What is in the log only.
#[derive(Debug, Default)]
struct Backlog {
    /// Rows to write, or to delete.
    rows: BTreeMap<Key, Option<(u64, Object)>>,
    revision: u64,
    /// The entries of the log, by the revision that each leads to, with their size in bytes, as far as that is known.
    log: VecDeque<(u64, usize)>,
    log_bytes: usize,
}

impl Backlog {
    fn add(&mut self, changes: &[Change]) {
        for change in changes {
            for key in &change.deletes {
                self.rows.insert(key.clone(), None);
            }
            for object in &change.upserts {
                let row = (change.revision, object.clone());
                self.rows.insert(object.key(), Some(row));
            }
            self.revision = change.revision;
        }
    }

    fn add_entry(&mut self, revision: u64, bytes: usize) {
        match self.log.back_mut() {
            Some((last, size)) if *last == revision => *size += bytes,
            _ => self.log.push_back((revision, bytes)),
        }
        self.log_bytes += bytes;
    }

    /// Takes out the entries that are too many, of those whose changes are in the rows; up to which revision they are.
    fn surplus(&mut self, applied: u64, history: HistoryBounds) -> Option<u64> {
        let mut trimmed = None;
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let entries = number(history.changes).max(LEAST_ENTRIES);
        let bytes = number(history.bytes).clamp(LEAST_BYTES, MOST_BYTES);
        while (self.log.len() > entries || self.log_bytes > bytes)
            && let Some(&(revision, bytes)) = self.log.front()
            && revision <= applied
        {
            self.log.pop_front();
            self.log_bytes -= bytes;
            trimmed = Some(revision);
        }
        trimmed
    }
}

/// How far the rows are up to date.
#[derive(Debug, Default)]
struct Applied {
    /// The revision of etcd at which that was noted; 0: never.
    guard: i64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it is held ends the term, which its lease does at the latest.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Term {
    /// Becomes the writer if there is none.
    ///
    /// # Errors
    /// etcd does not answer.
    pub(super) fn campaign(
        client: &Arc<Client>,
        keys: &Keys,
        address: &str,
        notice: SyncSender<()>,
    ) -> Result<Option<Self>, StoreError> {
        let begun = Instant::now();
        let lease = client.grant(LEASE_SECONDS)?;
        let writer = keys.named("writer");
        let request = TxnRequest {
            compare: vec![was_made_at(writer.clone(), 0)],
            success: vec![keys::put_under(writer.clone(), address.into(), lease)],
            failure: vec![read(one(writer))],
        };
        let answer = client.txn(&request)?;
        let fence = if answer.succeeded {
            Some(keys::ran_at(&answer))
        } else {
            // It may have been made by the first of two attempts.
            let writer = found(answer).next().and_then(|mut it| it.kvs.pop());
            writer
                .filter(|it| it.lease == lease)
                .map(|it| it.create_revision)
        };
        let Some(fence) = fence else {
            client.revoke(lease)?;
            return Ok(None);
        };
        let is_lost = Arc::new(AtomicBool::new(false));
        let confirmed = Arc::new(Mutex::new(begun));
        let keep_alive = client.handle().spawn(keep_alive(
            Arc::clone(client),
            lease,
            Arc::clone(&is_lost),
            Arc::clone(&confirmed),
            notice,
        ));
        Ok(Some(Self {
            number: rand::random(),
            lease,
            fence,
            keep_alive: keep_alive.abort_handle(),
            is_lost,
            confirmed,
            stored: Mutex::default(),
            backlog: Mutex::default(),
            applied: Mutex::default(),
        }))
    }

    /// Notes under this term what is stored, so that nothing that an earlier writer still has on its way can be, and deletes what an earlier writer left
    /// in the log without storing it.
    ///
    /// # Errors
    /// The term is over, something is stored that this controller has not read, or etcd does not answer.
    pub(super) fn begin(
        &self,
        client: &Client,
        keys: &Keys,
        known: u64,
        (revision_guard, applied_guard): (i64, i64),
        behind: &[Change],
        log: Vec<(u64, usize)>,
    ) -> Result<(), StoreError> {
        let noted = StoredRevision {
            revision: known,
            term: self.number,
            commit: 0,
        };
        let writes = vec![
            put(keys.named("format"), super::FORMAT.into()),
            delete(keys.log_after(known), keys.log_end()),
        ];
        let guard = self.write((client, keys), ("revision", revision_guard), writes, &noted)?;
        *lock(&self.stored) = Stored {
            revision: known,
            guard,
            commits: 0,
        };
        lock(&self.applied).guard = applied_guard;
        let mut backlog = lock(&self.backlog);
        backlog.add(behind);
        for (revision, bytes) in log {
            backlog.add_entry(revision, bytes);
        }
        Ok(())
    }

    /// Runs a transaction that notes a revision in a key, under the fence and on condition that the key was last changed at `guard`; when it ran, in
    /// revisions of etcd.
    fn write(
        &self,
        (client, keys): (&Client, &Keys),
        (key, guard): (&str, i64),
        mut writes: Vec<RequestOp>,
        noted: &StoredRevision,
    ) -> Result<i64, StoreError> {
        let key = keys.named(key);
        writes.push(put(key.clone(), noted.encode_to_vec()));
        let request = TxnRequest {
            compare: vec![
                was_made_at(keys.named("writer"), self.fence),
                was_changed_at(key.clone(), guard),
            ],
            success: writes,
            failure: vec![read(one(key))],
        };
        let answer = client.txn(&request)?;
        if answer.succeeded {
            return Ok(keys::ran_at(&answer));
        }
        // It may have been done by the first of two attempts.
        let present = found(answer).next().and_then(|mut it| it.kvs.pop());
        let present = present.and_then(|it| {
            let stored = StoredRevision::decode(it.value.as_slice()).ok()?;
            (stored == *noted).then_some(it.mod_revision)
        });
        present.ok_or(StoreError::Deposed)
    }

    /// Runs a transaction under the same conditions that notes nothing, and does the same when it runs twice.
    fn prepare(
        &self,
        (client, keys): (&Client, &Keys),
        (key, guard): (&str, i64),
        writes: Vec<RequestOp>,
    ) -> Result<(), StoreError> {
        let request = TxnRequest {
            compare: vec![
                was_made_at(keys.named("writer"), self.fence),
                was_changed_at(keys.named(key), guard),
            ],
            success: writes,
            failure: Vec::new(),
        };
        if client.txn(&request)?.succeeded {
            return Ok(());
        }
        Err(StoreError::Deposed)
    }

    /// Stores changes that follow each other.
    ///
    /// # Errors
    /// The term is over, or etcd does not answer: then the changes may be stored or not. Either way the term has to end.
    pub(super) fn commit(
        &self,
        client: &Client,
        keys: &Keys,
        changes: &[Change],
    ) -> Result<(), StoreError> {
        let [Some(first), Some(last)] = [changes.first(), changes.last()] else {
            return Ok(());
        };
        let mut stored = lock(&self.stored);
        if stored.revision + 1 != first.revision {
            return Err(StoreError::Overtaken(stored.revision));
        }
        let value = wire::encode(changes);
        let parts = cut(last.revision, &value);
        let noted = StoredRevision {
            revision: last.revision,
            term: self.number,
            commit: stored.commits + 1,
        };
        let guard = ("revision", stored.guard);
        let mut writes = Vec::new();
        let is_small = parts.len() == 1;
        for (at, part) in parts.into_iter().enumerate() {
            let write = put(keys.log(last.revision, at), part);
            if is_small {
                writes.push(write);
            } else {
                // Nothing of it counts before the revision is noted. What is put twice is the same.
                self.prepare((client, keys), guard, vec![write])?;
            }
        }
        let ran = self.write((client, keys), guard, writes, &noted)?;
        *stored = Stored {
            revision: last.revision,
            guard: ran,
            commits: noted.commit,
        };
        drop(stored);
        let mut backlog = lock(&self.backlog);
        backlog.add(changes);
        backlog.add_entry(last.revision, value.len());
        Ok(())
    }

    /// Brings the rows up to date with the log, and deletes of the log what nobody needs.
    ///
    /// # Errors
    /// As for [`Self::commit`].
    pub(super) fn apply(
        &self,
        client: &Client,
        keys: &Keys,
        history: HistoryBounds,
    ) -> Result<(), StoreError> {
        let mut applied = lock(&self.applied);
        let (rows, revision) = {
            let mut backlog = lock(&self.backlog);
            (std::mem::take(&mut backlog.rows), backlog.revision)
        };
        if rows.is_empty() {
            return Ok(());
        }
        let guard = ("applied", applied.guard);
        let (mut writes, mut bytes) = (Vec::new(), 0);
        for (key, object) in rows {
            let operations = match object {
                None => vec![delete(keys.row(&key, 0), keys.row_end(&key))],
                Some((revision, object)) => cut(revision, &object.encode())
                    .into_iter()
                    .enumerate()
                    .map(|(at, part)| put(keys.row(&key, at), part))
                    .collect(),
            };
            for operation in operations {
                let size = size_of(&operation);
                if writes.len() + 1 >= OPERATIONS || bytes + size > BYTES {
                    let writes = std::mem::take(&mut writes);
                    self.prepare((client, keys), guard, writes)?;
                    bytes = 0;
                }
                bytes += size;
                writes.push(operation);
            }
        }
        let noted = StoredRevision {
            revision,
            term: self.number,
            commit: 0,
        };
        applied.guard = self.write((client, keys), guard, writes, &noted)?;
        let surplus = lock(&self.backlog).surplus(revision, history);
        if let Some(surplus) = surplus {
            let trim = delete(keys.log_after(0), keys.log_after(surplus));
            self.prepare((client, keys), ("applied", applied.guard), vec![trim])?;
        }
        Ok(())
    }

    /// Gives what is stored another revision. The rows have to be up to date.
    ///
    /// # Errors
    /// As for [`Self::commit`].
    pub(super) fn jump(
        &self,
        client: &Client,
        keys: &Keys,
        revision: u64,
    ) -> Result<(), StoreError> {
        let (mut stored, mut applied) = (lock(&self.stored), lock(&self.applied));
        let mut noted = StoredRevision {
            revision,
            term: self.number,
            commit: 0,
        };
        let rows = put(keys.named("applied"), noted.encode_to_vec());
        let log = delete(keys.log_after(0), keys.log_end());
        noted.commit = stored.commits + 1;
        let guard = ("revision", stored.guard);
        let ran = self.write((client, keys), guard, vec![rows, log], &noted)?;
        *stored = Stored {
            revision,
            guard: ran,
            commits: noted.commit,
        };
        applied.guard = ran;
        *lock(&self.backlog) = Backlog::default();
        Ok(())
    }

    /// Whether the lease is known to be over.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::SeqCst)
    }

    /// Whether the lease cannot be over yet: etcd confirmed it since its whole time began.
    pub(super) fn is_sure(&self) -> bool {
        lock(&self.confirmed).elapsed() < LEASE
    }

    pub(super) fn lease(&self) -> i64 {
        self.lease
    }
}

impl Drop for Term {
    fn drop(&mut self) {
        self.keep_alive.abort();
    }
}

fn size_of(operation: &RequestOp) -> usize {
    // Small beside what is bounded.
    operation.encoded_len().min(2 * PART)
}

/// Keeps a lease until it is over in spite of that.
async fn keep_alive(
    client: Arc<Client>,
    lease: i64,
    is_lost: Arc<AtomicBool>,
    confirmed: Arc<Mutex<Instant>>,
    notice: SyncSender<()>,
) {
    let mut heard = Instant::now();
    loop {
        tokio::time::sleep(KEEP_ALIVE).await;
        let left = SILENCE.saturating_sub(heard.elapsed());
        let asked = Instant::now();
        match tokio::time::timeout(left, client.keep_alive(lease)).await {
            Ok(Ok(true)) => {
                heard = Instant::now();
                *lock(&confirmed) = asked;
            }
            Ok(Err(error)) if heard.elapsed() < SILENCE => {
                tracing::warn!(%error, "cannot renew the writer's lease now");
            }
            Ok(_) | Err(_) => {
                is_lost.store(true, Ordering::SeqCst);
                // One that waits already says the same.
                let _ = notice.try_send(());
                return;
            }
        }
    }
}
