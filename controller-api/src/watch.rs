//! Watches: changes as they happen, to callers who follow them.
//!
//! The newest changes are kept in memory, each once for all watches; older ones are read from the store. A watch holds nothing but the
//! revision that it has come to, so that a slow one costs a few messages of memory. One that takes no message for a while is ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use weft_process::tls::Role;
use weft_proto::state::{Kind, Object, collect};
use weft_proto::v1::{ObjectKey, WatchEvent};

use crate::admission::{Admitted, Turns};
use crate::caller::Caller;
use crate::history::Filter;
use crate::intent::Intent;
use crate::listing::is_in;
use crate::store::Record;

/// The most changes that are kept in memory.
const KEPT: usize = 4096;
/// The most objects of all of them,
const KEPT_EDITS: usize = 1 << 17;
/// and the most bytes, as they would be sent. The newest change is kept, whatever it takes.
const KEPT_BYTES: usize = 128 << 20;

/// Objects and keys in one message.
const CHUNK: usize = 500;

/// Messages that wait for a caller.
pub(crate) const WAITING: usize = 16;

/// How long a caller may take no message before its watch ends.
pub(crate) const SLOW: Duration = Duration::from_secs(10);

/// How long a caller may take for the objects that there are at the start: they are kept as they were meanwhile.
const START: Duration = Duration::from_secs(300);

/// When nothing else is sent, the revision is, so often.
pub(crate) const IDLE: Duration = Duration::from_secs(15);

/// How long a watch lets changes gather before it looks again.
pub(crate) const GATHER: Duration = Duration::from_millis(5);

/// Changes that are looked at at a time.
const STEP: usize = 64;

/// The newest changes.
#[derive(Debug)]
pub(crate) struct Recent(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    /// All changes after this revision are here.
    after: u64,
    /// The revisions after that, in order.
    records: VecDeque<Arc<Record>>,
    /// The bytes of each.
    sizes: VecDeque<usize>,
    /// The objects in all of them.
    edits: usize,
    bytes: usize,
}

impl Kept {
    fn after(revision: u64) -> Self {
        Self {
            after: revision,
            records: VecDeque::new(),
            sizes: VecDeque::new(),
            edits: 0,
            bytes: 0,
        }
    }

    fn is_full(&self) -> bool {
        let is_over =
            self.records.len() > KEPT || self.edits > KEPT_EDITS || self.bytes > KEPT_BYTES;
        is_over && self.records.len() > 1
    }
}

impl Recent {
    /// None yet, after a revision.
    pub(crate) fn after(revision: u64) -> Self {
        Self(Mutex::new(Kept::after(revision)))
    }

    /// Adds changes, each of the revision after the one before. Called before they are published.
    pub(crate) fn add(&self, records: impl Iterator<Item = Record>) {
        let mut kept = self.lock();
        for record in records {
            // The revisions follow each other, since each is looked for by its place.
            let newest = kept.after + kept.records.len() as u64;
            if record.revision != newest + 1 {
                if record.revision <= newest {
                    continue;
                }
                *kept = Kept::after(record.revision - 1);
            }
            let size = record.size();
            kept.edits += record.edits.len();
            kept.bytes += size;
            kept.sizes.push_back(size);
            kept.records.push_back(Arc::new(record));
            while kept.is_full() {
                let (Some(oldest), Some(size)) = (kept.records.pop_front(), kept.sizes.pop_front())
                else {
                    break;
                };
                kept.edits -= oldest.edits.len();
                kept.bytes -= size;
                kept.after = oldest.revision;
            }
        }
    }

    /// Keeps none up to a revision.
    pub(crate) fn forget(&self, revision: u64) {
        *self.lock() = Kept::after(revision);
    }

    /// Some changes after a revision, in order: none when it is the newest. Nothing when not all of them are here.
    pub(crate) fn since(&self, revision: u64) -> Option<Vec<Arc<Record>>> {
        let kept = self.lock();
        let known = usize::try_from(revision.checked_sub(kept.after)?).unwrap_or(usize::MAX);
        Some(
            kept.records
                .iter()
                .skip(known)
                .take(STEP)
                .cloned()
                .collect(),
        )
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a watch needs of the controller.
#[derive(Clone)]
pub(crate) struct Watched {
    pub(crate) intent: Arc<Intent>,
    /// Who may read the history.
    pub(crate) reading: Arc<Turns>,
    pub(crate) stopping: watch::Receiver<bool>,
}

/// Why a watch ends.
pub(crate) enum End {
    /// The caller is gone.
    Gone,
    Told(Status),
}

impl Watched {
    /// Starts a watch after a revision; 0: with what there is.
    ///
    /// # Errors
    /// The revision is not there yet.
    pub(crate) async fn start(
        &self,
        admitted: Arc<Admitted>,
        filter: Filter,
        from: u64,
    ) -> Result<ReceiverStream<Result<WatchEvent, Status>>, Status> {
        if let Err(error) = self.intent.catch_up().await {
            tracing::debug!(%error, "a watch begins with what is known");
        }
        let present = self.intent.current().revision;
        if from > present {
            let text = format!("the intent is at revision {present}, and not at {from} yet");
            return Err(Status::failed_precondition(text));
        }
        let (sender, receiver) = mpsc::channel(WAITING + 1);
        // The place of the last message, which says why the watch ended.
        let last = sender.clone().reserve_owned().await;
        let last = last.map_err(|_| Status::internal("the watch has no receiver"))?;
        let mut stopping = self.stopping.clone();
        let gone = sender.clone();
        let mut watch = Watch {
            watched: self.clone(),
            caller: admitted.caller.clone(),
            filter,
            sender,
            revision: from,
        };
        tokio::spawn(async move {
            // The watch counts as open until it has ended.
            let _open = admitted;
            let end = tokio::select! {
                end = watch.run() => end,
                () = gone.closed() => End::Gone,
                _ = stopping.wait_for(|stopping| *stopping) => {
                    End::Told(Status::unavailable("the controller is stopping"))
                }
            };
            if let End::Told(status) = end {
                last.send(Err(status));
            }
        });
        Ok(ReceiverStream::new(receiver))
    }
}

struct Watch {
    watched: Watched,
    caller: Caller,
    filter: Filter,
    sender: mpsc::Sender<Result<WatchEvent, Status>>,
    /// All up to this revision is sent.
    revision: u64,
}

impl Watch {
    async fn run(&mut self) -> End {
        match self.follow().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn follow(&mut self) -> Result<std::convert::Infallible, End> {
        let mut versions = self.watched.intent.watch();
        if self.revision == 0 {
            let slow = |_| {
                let seconds = START.as_secs();
                Status::resource_exhausted(format!(
                    "the objects at the start were not taken within {seconds} s"
                ))
            };
            let started = timeout(START, self.send_present()).await;
            started.map_err(|late| End::Told(slow(late)))??;
        }
        let mut idle = tokio::time::Instant::now() + IDLE;
        loop {
            let published = versions.borrow_and_update().revision;
            if self.revision > published {
                return Err(End::Told(Status::out_of_range(format!(
                    "the intent went back to revision {published}: list again"
                ))));
            }
            while let Some(sent) = self.send_newer(published).await? {
                if sent {
                    idle = tokio::time::Instant::now() + IDLE;
                }
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(GATHER).await;
            tokio::select! {
                changed = versions.changed() => if changed.is_err() {
                    return Err(End::Told(Status::unavailable("the controller is stopping")));
                },
                () = self.sender.closed() => return Err(End::Gone),
                () = sleep_until(idle) => {
                    idle = tokio::time::Instant::now() + IDLE;
                    self.send(WatchEvent { revision: self.revision, ..WatchEvent::default() }).await?;
                }
            }
        }
    }

    /// Sends the objects that there are.
    async fn send_present(&mut self) -> Result<(), End> {
        let version = self.watched.intent.current();
        let (caller, filter) = (self.caller.clone(), self.filter.clone());
        let wanted = |object: &Object| {
            (filter.vpc.is_empty() || is_in(&version.state, object, &filter.vpc))
                && caller.may(Role::Read, &version.state, object)
                && filter.selects(&caller, object)
        };
        let first = filter.kind.unwrap_or(Kind::ALL[0]);
        let entries = version.state.entries_from(first, "");
        let of_kind = entries.take_while(|entry| filter.has_kind(entry.object.kind()));
        let mut found: Vec<Object> = Vec::new();
        for (number, entry) in of_kind.enumerate() {
            if number % 1000 == 999 {
                tokio::task::yield_now().await;
            }
            if !wanted(&entry.object) {
                continue;
            }
            if found.len() == CHUNK {
                let found = std::mem::take(&mut found);
                self.send_part(version.revision, found, Vec::new(), true)
                    .await?;
            }
            found.push(caller.shown(&entry.object));
        }
        self.send_part(version.revision, found, Vec::new(), false)
            .await?;
        self.revision = version.revision;
        Ok(())
    }

    /// Sends some of the changes up to a revision that are newer than what was sent; none when there are none. Says whether the caller was told anything.
    async fn send_newer(&mut self, published: u64) -> Result<Option<bool>, End> {
        if self.revision >= published {
            return Ok(None);
        }
        let records = match self.watched.intent.recent().since(self.revision) {
            Some(records) => records,
            None => self.read().await?,
        };
        if records.is_empty() {
            return Ok(None);
        }
        let mut sent = false;
        for record in records {
            if record.revision > published {
                break;
            }
            sent |= self.send_record(&record).await?;
            self.revision = record.revision;
        }
        Ok(Some(sent))
    }

    async fn send_record(&self, record: &Record) -> Result<bool, End> {
        let mut sent = false;
        let mut upserts: Vec<Object> = Vec::new();
        let mut deletes: Vec<ObjectKey> = Vec::new();
        for (number, edit) in record.edits.iter().enumerate() {
            if number % 1000 == 999 {
                tokio::task::yield_now().await;
            }
            let Some([_, after]) = self.filter.told(&self.caller, edit) else {
                continue;
            };
            if upserts.len() + deletes.len() == CHUNK {
                let (upserts, deletes) =
                    (std::mem::take(&mut upserts), std::mem::take(&mut deletes));
                self.send_part(record.revision, upserts, deletes, true)
                    .await?;
            }
            match after.and_then(|form| form.object()) {
                Some(object) => upserts.push(self.caller.shown(object)),
                None => deletes.push(edit.key.to_wire()),
            }
            sent = true;
        }
        if sent {
            self.send_part(record.revision, upserts, deletes, false)
                .await?;
        }
        Ok(sent)
    }

    async fn send_part(
        &self,
        revision: u64,
        upserts: Vec<Object>,
        deletes: Vec<ObjectKey>,
        more: bool,
    ) -> Result<(), End> {
        self.send(WatchEvent {
            revision,
            upserts: Some(collect(upserts.into_iter())),
            deletes,
            more,
        })
        .await
    }

    async fn send(&self, event: WatchEvent) -> Result<(), End> {
        match timeout(SLOW, self.sender.send(Ok(event))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Gone),
            Err(_) => {
                let seconds = SLOW.as_secs();
                let text = format!("no event was taken for {seconds} s: the watch is too slow");
                Err(End::Told(Status::resource_exhausted(text)))
            }
        }
    }

    /// The next changes, from the store: they are not in memory any more, or not yet since the start.
    async fn read(&self) -> Result<Vec<Arc<Record>>, End> {
        let (intent, revision) = (Arc::clone(&self.watched.intent), self.revision);
        let turn = self.watched.reading.take(&self.caller.account()).await;
        let read = tokio::task::spawn_blocking(move || {
            // Until it is done, whether somebody waits for it or not.
            let _turn = turn;
            intent.records_after(revision, STEP)
        });
        let read = read.await;
        let failed = || Status::unavailable("the history cannot be read; see the controller's log");
        let records = match read {
            Ok(Ok(records)) => records,
            Ok(Err(error)) => {
                tracing::error!(%error, "the history cannot be read");
                return Err(End::Told(failed()));
            }
            Err(_) => return Err(End::Told(failed())),
        };
        let is_whole = |record: &Record| !record.keys_only;
        match records.first() {
            Some(first) if first.revision == revision + 1 && records.iter().all(is_whole) => {
                Ok(records.into_iter().map(Arc::new).collect())
            }
            _ => Err(End::Told(Status::out_of_range(format!(
                "the changes after revision {revision} are not all kept any more: list again"
            )))),
        }
    }
}
