//! The intent of all tenants. A change is validated, stored, published, and only then acknowledged; or it changes nothing.
//!
//! The gRPC service calls it; the session of every attached host watches for new versions.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use weft_process::tls::Role;
use weft_proto::state::{Key, Kind, Object, State, StateError};
use weft_proto::v1::{self, Objects};
use weft_proto::validate::{Scope, describe, validate, validate_next};

use crate::admission::Turns;
use crate::caller::{AUDIT, Caller};
use crate::capacity::{self, Counts, Limits};
use crate::history::{Reversal, UndoError};
use crate::interest::Interest;
use crate::journal::{Journal, Ticket};
use crate::peering::{self, PeeringError};
use crate::store::{Change, Made, Record, Store, StoreError, now_ms};
use crate::tenancy;
use crate::version::Version;
use crate::watch::Recent;

/// Objects that are named in a line of the audit.
const AUDITED: usize = 20;

/// Why a change is refused; nothing of it happened.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ChangeError {
    #[error("{}", list(.0, "already exists"))]
    Exists(Vec<Key>),
    #[error("{}", list(.0, "does not exist"))]
    Missing(Vec<Key>),
    #[error(transparent)]
    Malformed(#[from] StateError),
    #[error("{}", lines(.0))]
    Refused(Vec<v1::Violation>),
    #[error("still in use:\n{}", lines(.0))]
    InUse(Vec<v1::Violation>),
    #[error(
        "the certificate of '{0}' does not name weft://role/admin, which a change of hosts needs"
    )]
    Hosts(String),
    #[error("conflict: the intent is at revision {0}; read it again and retry")]
    Overtaken(u64),
    #[error(transparent)]
    Undo(#[from] UndoError),
    #[error("conflict:\n{}", list(.0, "has changed; read it again and retry"))]
    ObjectsOvertaken(Vec<Key>),
    #[error("{0}: tenant: cannot be changed; delete it and create it again")]
    Tenant(Key),
    #[error(transparent)]
    Peering(#[from] PeeringError),
    #[error(transparent)]
    Store(Arc<StoreError>),
    #[error("{}", elsewhere(.0.as_deref()))]
    NotWriter(Option<String>),
}

fn elsewhere(writer: Option<&str>) -> String {
    match writer {
        Some(writer) => format!("this controller only reads; the one that writes is {writer}"),
        None => "no controller writes at the moment; try again".to_owned(),
    }
}

/// Whether a controller may change the intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It may: it is the only one, or the one of several that writes.
    Writer,
    /// Another does, at this address if there is one now.
    Follower(Option<String>),
}

fn list(keys: &[Key], what: &str) -> String {
    let lines: Vec<_> = keys.iter().map(|key| format!("{key} {what}")).collect();
    lines.join("\n")
}

fn lines(violations: &[v1::Violation]) -> String {
    let lines: Vec<_> = violations.iter().map(describe).collect();
    lines.join("\n")
}

/// What a change did, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Outcome {
    /// The revision after the change; the one before when nothing changed.
    pub revision: u64,
    pub created: usize,
    pub updated: usize,
    pub deleted: usize,
}

#[derive(Debug, Default)]
struct Writer {
    counts: Counts,
    /// The version that has these counters.
    revision: u64,
    /// Whether the rules hold for that version; none: as for what was loaded.
    is_good: Option<bool>,
}

/// The intent and its store. Changes block on the disk: call them where blocking is allowed.
pub struct Intent {
    journal: Journal,
    /// Held from reading the newest version to deciding the next, whose counters it has.
    writer: Mutex<Writer>,
    /// Who may wait for that, so that callers take turns at it.
    deciding: Arc<Turns>,
    /// Whether the rules hold for what the store held. If not, a change is checked with all else until they do.
    is_good: Arc<OnceLock<bool>>,
    /// What hosts can hold, as they told.
    limits: Mutex<Arc<Limits>>,
    standing: watch::Sender<Standing>,
    /// Who may ask the store how far it is.
    asking: Arc<Semaphore>,
    /// As in [`Settings`].
    learn_above: usize,
}

/// How an intent is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// Whether several controllers share the store: then this one follows until it becomes the writer.
    pub is_shared: bool,
    /// Hosts that can learn the ports of a VPC with more ports than these that live somewhere; 0: of none.
    pub learn_above: usize,
}

/// Changes that are decided at a time. With more, threads would wait for the lock besides, which is taken in no order: who makes one change could wait behind
/// many of another's.
const DECIDING: usize = 1;

/// Readers that ask the store at a time how far it is.
const ASKING: usize = 16;

/// How long a reader waits for what other controllers have stored.
const CATCH_UP: Duration = Duration::from_secs(3);

impl Intent {
    /// The intent that a store holds.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn load(store: Box<dyn Store>) -> Result<Self, StoreError> {
        Self::load_with(store, Settings::default())
    }

    /// The same, of a store that several controllers share: a follower until it becomes the writer.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn load_shared(store: Box<dyn Store>) -> Result<Self, StoreError> {
        let settings = Settings {
            is_shared: true,
            ..Settings::default()
        };
        Self::load_with(store, settings)
    }

    /// The same with other settings.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn load_with(store: Box<dyn Store>, settings: Settings) -> Result<Self, StoreError> {
        if !settings.is_shared {
            return Self::load_as(store, Standing::Writer, settings.learn_above);
        }
        let intent = Self::load_as(store, Standing::Follower(None), settings.learn_above)?;
        // What hosts told other controllers holds for no more than it says.
        let revision = intent.current().revision;
        intent.interest().expect(1, revision, None);
        Ok(intent)
    }

    fn load_as(
        store: Box<dyn Store>,
        standing: Standing,
        learn_above: usize,
    ) -> Result<Self, StoreError> {
        let (revision, state) = store.load()?;
        let counts = Counts::of(&state);
        let version = Version::loaded(revision, state.clone()).learning_above(learn_above);
        let is_good = Arc::new(OnceLock::new());
        // Takes a while when there is much; hosts and readers need not wait for it.
        let checked = Arc::clone(&is_good);
        std::thread::spawn(move || {
            let _ = checked.get_or_init(|| {
                let found = validate(&state, Scope::Intent);
                for violation in found.iter().take(AUDITED) {
                    let rule = describe(violation);
                    tracing::warn!(rule, "what is stored breaks a rule");
                }
                found.is_empty()
            });
        });
        Ok(Self {
            writer: Mutex::new(Writer {
                counts,
                revision,
                is_good: None,
            }),
            deciding: Turns::new(DECIDING),
            journal: Journal::new(store, version),
            is_good,
            limits: Mutex::default(),
            standing: watch::Sender::new(standing),
            asking: Arc::new(Semaphore::new(ASKING)),
            learn_above,
        })
    }

    /// Whether this controller may change the intent, and notice of each change of that.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Whether this controller may change the intent.
    pub fn is_writer(&self) -> bool {
        *self.standing.borrow() == Standing::Writer
    }

    /// Sets whether this controller may change the intent. No change is being decided when it returns.
    pub(crate) fn set_standing(&self, standing: Standing) {
        let _writer = self.lock_writer();
        self.standing.send_if_modified(|present| {
            let differs = *present != standing;
            *present = standing;
            differs
        });
    }

    /// Waits until what is decided is stored, or so long.
    pub(crate) fn settle(&self, most: Duration) {
        self.journal.settle(most);
    }

    /// Takes up changes that another controller has stored.
    pub(crate) fn follow(&self, changes: &[Change]) {
        let mut writer = self.lock_writer();
        // The counters may be those of a version of that revision which was undone.
        writer.revision = u64::MAX;
        let before = self.current();
        let mut next: Option<Version> = None;
        let mut records = Vec::with_capacity(changes.len());
        for change in changes {
            let version = next.as_ref().unwrap_or(&before);
            let mut state = version.state.clone();
            for key in &change.deletes {
                state.remove(key);
            }
            for object in &change.upserts {
                state.insert_at(object.clone(), change.revision);
            }
            let version = version.next(change, state);
            // Of a large change the store keeps the keys alone, but the change is whole.
            records.push(if change.record.keys_only {
                let made = change.record.made.clone();
                let before = next.as_ref().unwrap_or(&before);
                Record::of(change, made, &before.state, &version.state)
            } else {
                change.record.clone()
            });
            next = Some(version);
        }
        if let Some(next) = next {
            self.journal.adopt(next, Some(records));
        }
    }

    /// Takes up all that is stored, whatever was known before.
    pub(crate) fn replace(&self, revision: u64, state: State) {
        let mut writer = self.lock_writer();
        writer.revision = u64::MAX;
        let version = Version::loaded(revision, state).learning_above(self.learn_above);
        self.journal.adopt(version, None);
    }

    /// Waits until this controller knows what others had stored when it was asked.
    ///
    /// # Errors
    /// The store does not say what that is, or it takes too long.
    pub async fn catch_up(self: &Arc<Self>) -> Result<(), StoreError> {
        if self.is_sure() {
            return Ok(());
        }
        let behind = || StoreError::Behind(self.current().revision);
        let asked = tokio::time::timeout(CATCH_UP, self.ask()).await;
        asked.unwrap_or_else(|_| Err(behind()))
    }

    async fn ask(self: &Arc<Self>) -> Result<(), StoreError> {
        // Never closed. Those who wait take no thread.
        let permit = Arc::clone(&self.asking).acquire_owned().await;
        let intent = Arc::clone(self);
        let newest = tokio::task::spawn_blocking(move || {
            let newest = intent.journal.newest();
            drop(permit);
            newest
        });
        let newest = newest.await.unwrap_or(Err(StoreError::Closed))?;
        let Some(newest) = newest else { return Ok(()) };
        let mut versions = self.watch();
        // The sender lives as long as this.
        let _ = versions
            .wait_for(|version| version.revision >= newest)
            .await;
        Ok(())
    }

    /// Whether this controller is for certain the one that writes, so that nothing is stored that it does not know.
    fn is_sure(&self) -> bool {
        self.is_writer() && self.journal.stored().is_sure()
    }

    fn lock_writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(|poisoned| {
            // A panic while it was held decided nothing; the counters may have followed it.
            let mut writer = poisoned.into_inner();
            writer.revision = u64::MAX;
            self.writer.clear_poison();
            writer
        })
    }

    /// Who is told of which changes.
    pub(crate) fn interest(&self) -> &Arc<Interest> {
        self.journal.interest()
    }

    /// The newest changes.
    pub(crate) fn recent(&self) -> &Recent {
        self.journal.recent()
    }

    /// The records that are kept of changes before a revision, as [`Store::history`] gives them.
    ///
    /// # Errors
    /// The store's.
    pub fn records(&self, before: u64, limit: usize) -> Result<Vec<Record>, StoreError> {
        self.journal.stored().history(before, limit)
    }

    /// The revision of the oldest change of which a record is kept.
    ///
    /// # Errors
    /// The store's.
    pub fn oldest_record(&self) -> Result<Option<u64>, StoreError> {
        self.journal.stored().oldest()
    }

    /// The records of the changes that follow a revision, in order, at most so many; not the first of them when that is not kept any more.
    ///
    /// # Errors
    /// The store's.
    pub fn records_after(&self, revision: u64, limit: usize) -> Result<Vec<Record>, StoreError> {
        let mut limit = limit.max(1);
        loop {
            let before = revision.saturating_add(1).saturating_add(limit as u64);
            let mut records = self.records(before, limit)?;
            records.reverse();
            records.retain(|record| record.revision > revision);
            let is_next = |record: &Record| record.revision == revision + 1;
            // Those that are large do not all come at once, and the newest come first.
            if limit == 1 || records.first().is_none_or(is_next) {
                return Ok(records);
            }
            limit /= 2;
        }
    }

    /// Notes what a host can hold: changes that would have it hold more are refused from now on.
    pub fn set_limits(&self, host: &str, limits: Option<v1::HostLimits>) {
        // Plain values, whole after any panic.
        let mut all = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if all.of(host) != limits.as_ref() {
            Arc::make_mut(&mut all).set(host, limits);
        }
    }

    /// The newest version.
    pub fn current(&self) -> Arc<Version> {
        self.journal.published().borrow().clone()
    }

    /// The newest version, and notice of each newer one.
    pub fn watch(&self) -> watch::Receiver<Arc<Version>> {
        self.journal.published().subscribe()
    }

    /// Creates objects. A peering that is over may be created again, which asks again.
    ///
    /// # Errors
    /// Any of them exists, or the result breaks a rule, or it cannot be stored.
    pub fn create(&self, caller: &Caller, objects: Objects) -> Result<Outcome, ChangeError> {
        let new = State::from_objects(objects)?;
        self.change(caller, "create", false, |version| {
            let objects = placed(version, &new, caller)?;
            let taken: Vec<_> = new
                .iter()
                .map(Object::key)
                .filter(|key| match version.state.get(key) {
                    Some(Object::Peering(peering)) => !peering.is_over(),
                    other => other.is_some(),
                })
                .collect();
            if !taken.is_empty() {
                return Err(ChangeError::Exists(taken));
            }
            Ok((objects, Vec::new()))
        })
    }

    /// Creates or replaces objects, as the request says.
    ///
    /// # Errors
    /// The result breaks a rule, the intent or an object is at another revision than required, or the change cannot be stored.
    pub fn apply(
        &self,
        caller: &Caller,
        request: v1::ApplyRequest,
    ) -> Result<Outcome, ChangeError> {
        let new = State::from_objects(request.objects.unwrap_or_default())?;
        let conditions = request.if_object_revisions.iter().map(|condition| {
            let key = Key::from_wire(&condition.object.clone().unwrap_or_default())?;
            Ok((key, condition.revision))
        });
        let conditions: Vec<(Key, u64)> = conditions.collect::<Result<_, StateError>>()?;
        self.change(caller, "apply", request.dry_run, |version| {
            let is_overtaken = |(key, revision): &&(Key, u64)| {
                let seen = caller.find(Role::Read, &version.state, key);
                let entry = seen.and_then(|_| version.state.entry(key.kind, &key.id));
                entry.map_or(0, |entry| entry.revision) != *revision
            };
            let overtaken = conditions.iter().filter(is_overtaken);
            let overtaken: Vec<Key> = overtaken.map(|(key, _)| key.clone()).collect();
            if !overtaken.is_empty() {
                return Err(ChangeError::ObjectsOvertaken(overtaken));
            }
            if request.if_revision != 0 && request.if_revision != version.revision {
                return Err(ChangeError::Overtaken(version.revision));
            }
            let differs = |object: &Object| version.state.get(&object.key()) != Some(object);
            let placed = placed(version, &new, caller)?.into_iter();
            let upserts = placed.filter(differs).collect();
            let deletes = if request.prune {
                let own = version.state.iter();
                let own = own.filter(|object| caller.may(Role::Operate, &version.state, object));
                let keys = own.map(Object::key);
                keys.filter(|key| new.get(key).is_none()).collect()
            } else {
                Vec::new()
            };
            Ok((upserts, deletes))
        })
    }

    /// Deletes objects.
    ///
    /// # Errors
    /// Any of them does not exist or is still referred to, or the change cannot be stored.
    pub fn delete(&self, caller: &Caller, keys: &[v1::ObjectKey]) -> Result<Outcome, ChangeError> {
        let keys = keys
            .iter()
            .map(Key::from_wire)
            .collect::<Result<BTreeSet<_>, _>>()?;
        let changed = self.change(caller, "delete", false, |version| {
            let missing: Vec<_> = keys
                .iter()
                .filter(|key| caller.find(Role::Operate, &version.state, key).is_none())
                .cloned()
                .collect();
            if !missing.is_empty() {
                return Err(ChangeError::Missing(missing));
            }
            Ok((Vec::new(), keys.iter().cloned().collect()))
        });
        // What was good before a deletion can only break by what it refers to.
        changed.map_err(|error| match error {
            ChangeError::Refused(violations) => ChangeError::InUse(violations),
            other => other,
        })
    }

    /// Restores the objects that a change touched, as far as they are the caller's to change, to what they were before it: by a new change, which is
    /// checked as any other. A VPC that a tenant gets back so has another VNI.
    ///
    /// # Errors
    /// No whole record of the change is kept, an object has changed since, or the result breaks a rule or cannot be stored.
    pub fn undo(
        &self,
        caller: &Caller,
        revision: u64,
        dry_run: bool,
    ) -> Result<Outcome, ChangeError> {
        let reversal = self.reversal(caller, revision)?;
        self.reverse(caller, (revision, &reversal), dry_run)
    }

    /// What undoes a change, as its record says: the part of [`Self::undo`] that reads the history.
    ///
    /// # Errors
    /// No whole record of the change is kept, or this controller does not write.
    pub(crate) fn reversal(&self, caller: &Caller, revision: u64) -> Result<Reversal, ChangeError> {
        self.check_standing()?;
        let failed = |error| ChangeError::Store(Arc::new(error));
        let before = revision.saturating_add(1);
        let found = self.records(before, 1).map_err(failed)?.pop();
        let Some(record) = found.filter(|record| record.revision == revision) else {
            let oldest = self.oldest_record().map_err(failed)?.unwrap_or_default();
            return Err(UndoError::NotKept { revision, oldest }.into());
        };
        Ok(Reversal::new(caller, &record)?)
    }

    /// Undoes the change of a revision: the rest of [`Self::undo`].
    ///
    /// # Errors
    /// An object has changed since, or the result breaks a rule or cannot be stored.
    pub(crate) fn reverse(
        &self,
        caller: &Caller,
        (revision, reversal): (u64, &Reversal),
        dry_run: bool,
    ) -> Result<Outcome, ChangeError> {
        let method = format!("undo {revision}");
        self.change(caller, &method, dry_run, |version| {
            let (mut upserts, deletes) = reversal.upon(caller, &version.state, revision)?;
            if caller.role < Role::Operate {
                for object in &mut upserts {
                    if let Object::Vpc(vpc) = object
                        && version.state.find(Kind::Vpc, &vpc.id).is_none()
                    {
                        vpc.vni = 0;
                    }
                }
            }
            let new = State::from_objects(weft_proto::state::collect(upserts.into_iter()))?;
            let differs = |object: &Object| version.state.get(&object.key()) != Some(object);
            let placed = placed(version, &new, caller)?.into_iter();
            Ok((placed.filter(differs).collect(), deletes))
        })
    }

    /// Ends the sending on to ports that have not moved again since: each by its id, its host and the host that it came from.
    ///
    /// # Errors
    /// The change cannot be stored.
    pub fn end_moves(&self, moves: &[(String, String, String)]) -> Result<Outcome, ChangeError> {
        let caller = Caller::controller();
        self.change(&caller, "end of moves", false, |version| {
            let arrived = moves.iter().filter_map(|(id, host, from)| {
                match version.state.find(Kind::Port, id) {
                    Some(Object::Port(port)) if (&port.host, &port.moved_from) == (host, from) => {
                        Some(Object::Port(v1::Port {
                            moved_from: String::new(),
                            ..port.clone()
                        }))
                    }
                    _ => None,
                }
            });
            Ok((arrived.collect(), Vec::new()))
        })
    }

    /// Does to a peering what the request says.
    ///
    /// # Errors
    /// Its states or its sides do not allow that, or the change cannot be stored.
    pub fn change_peering(
        &self,
        caller: &Caller,
        request: &v1::ChangePeeringRequest,
    ) -> Result<Outcome, ChangeError> {
        let method = match request.action() {
            v1::PeeringAction::Accept => "accept peering",
            v1::PeeringAction::Reject => "reject peering",
            v1::PeeringAction::Freeze => "freeze peering",
            v1::PeeringAction::Activate => "activate peering",
            v1::PeeringAction::Unspecified => "change peering",
        };
        self.change(caller, method, false, |version| {
            let (id, state) = (&request.id, &version.state);
            let vpc = side(caller, state, request)?;
            let next = peering::act(state, id, request.action(), &vpc)?;
            let next = Object::Peering(next);
            let is_new = version.state.get(&next.key()) != Some(&next);
            Ok((is_new.then_some(next).into_iter().collect(), Vec::new()))
        })
    }

    /// Ends "freezing" and "activating" of peerings that have not changed since.
    ///
    /// # Errors
    /// The change cannot be stored.
    pub fn settle_peerings(&self, peerings: &[v1::Peering]) -> Result<Outcome, ChangeError> {
        let caller = Caller::controller();
        self.change(&caller, "end of peering action", false, |version| {
            let arrived = peerings.iter();
            let arrived = arrived.filter_map(|before| peering::arrived(&version.state, before));
            Ok((arrived.collect(), Vec::new()))
        })
    }

    /// Makes a change, and logs the caller and the change, or its refusal. `method` says in the history by what it was made.
    fn change(
        &self,
        caller: &Caller,
        method: &str,
        dry_run: bool,
        decide: impl Fn(&Version) -> Result<(Vec<Object>, Vec<Key>), ChangeError>,
    ) -> Result<Outcome, ChangeError> {
        let result = self.change_unseen((caller, method), dry_run, decide);
        if let Err(error) = &result {
            let reason = error.to_string();
            let reason = reason.lines().next().unwrap_or_default();
            tracing::info!(target: AUDIT, caller = caller.name, dry_run, reason, "refused");
        }
        result
    }

    fn change_unseen(
        &self,
        (caller, method): (&Caller, &str),
        dry_run: bool,
        decide: impl Fn(&Version) -> Result<(Vec<Object>, Vec<Key>), ChangeError>,
    ) -> Result<Outcome, ChangeError> {
        loop {
            let mut upon = None;
            let decided = self.decide((caller, method), dry_run, &decide, &mut upon);
            // A refusal stands when what it was decided upon does.
            let stands = || {
                upon.as_ref()
                    .is_none_or(|upon| self.journal.wait(upon).is_ok())
            };
            match decided {
                Ok(Decided::Waits(outcome, change, ticket)) => {
                    self.journal.wait(&ticket).map_err(ChangeError::Store)?;
                    audit(caller, &change);
                    return Ok(outcome);
                }
                Ok(Decided::Nothing(outcome)) if stands() => return Ok(outcome),
                Err(error) if stands() => return Err(error),
                // What it was decided upon was undone.
                _ => {}
            }
        }
    }

    /// Decides a change upon the newest version, and gives it to the journal.
    fn decide(
        &self,
        (caller, method): (&Caller, &str),
        dry_run: bool,
        decide: impl Fn(&Version) -> Result<(Vec<Object>, Vec<Key>), ChangeError>,
        seen: &mut Option<Ticket>,
    ) -> Result<Decided, ChangeError> {
        // Before the lock, too, which is held while changes of another controller are taken up.
        self.check_standing()?;
        let _turn = self.deciding.take_blocking(&caller.account());
        let mut writer = self.lock_writer();
        self.check_standing()?;
        let (version, upon) = self.journal.head();
        *seen = Some(upon.clone());
        if writer.revision != version.revision {
            // Of a version that was undone.
            writer.counts = Counts::of(&version.state);
            writer.revision = version.revision;
            writer.is_good = None;
        }
        let (mut upserts, mut deletes) = decide(&version)?;
        let is_host = |key: &Key| key.kind == Kind::Host;
        let changes_hosts =
            deletes.iter().any(is_host) || upserts.iter().any(|object| object.kind() == Kind::Host);
        if changes_hosts && caller.role < Role::Admin {
            return Err(ChangeError::Hosts(caller.name.clone()));
        }
        let revision = version.revision + 1;
        let mut state = version.state.clone();
        for key in &deletes {
            state.remove(key);
        }
        let mut updated = 0;
        for object in &upserts {
            updated += usize::from(state.insert_at(object.clone(), revision).is_some());
        }
        if let Some(key) = tenant_changed(&version.state, &upserts) {
            return Err(ChangeError::Tenant(key));
        }
        let (stay, go) = peering::settle(&version.state, &state, &deletes);
        for object in stay {
            deletes.retain(|key| *key != object.key());
            let known = version.state.entry(object.kind(), object.id());
            let known = known.filter(|known| known.object == object);
            let since = known.map_or(revision, |known| known.revision);
            state.insert_at(object.clone(), since);
            if known.is_none() {
                upserts.push(object);
                updated += 1;
            }
        }
        for key in go {
            state.remove(&key);
            deletes.push(key);
        }
        if upserts.is_empty() && deletes.is_empty() {
            return Ok(Decided::Nothing(Outcome {
                revision: version.revision,
                ..Outcome::default()
            }));
        }
        // Waits for the check of what was loaded if it has begun.
        let loaded = || *self.is_good.get_or_init(|| false);
        let is_good = *writer.is_good.get_or_insert_with(loaded);
        let violations = if caller.role < Role::Operate {
            let before = is_good.then_some(&version.state);
            tenancy::check_result(caller, before, &state, &upserts)
        } else if is_good {
            validate_next(&version.state, &state, Scope::Intent)
        } else {
            validate(&state, Scope::Intent)
        };
        if !violations.is_empty() {
            return Err(ChangeError::Refused(violations));
        }
        let mut change = Change {
            revision,
            upserts,
            deletes,
            ..Change::default()
        };
        let outcome = Outcome {
            revision: if dry_run {
                version.revision
            } else {
                change.revision
            },
            created: change.upserts.len() - updated,
            updated,
            deleted: change.deletes.len(),
        };
        let next = version.next(&change, state);
        writer.counts.follow(&version.state, &next.state, &change);
        let full = self.check_capacity(caller, (&version, &next), &change, &writer.counts);
        if dry_run || !full.is_empty() {
            writer.counts.follow(&next.state, &version.state, &change);
            return if full.is_empty() {
                Ok(Decided::Nothing(outcome))
            } else {
                Err(ChangeError::Refused(full))
            };
        }
        let made = Made {
            time_ms: now_ms(),
            caller: caller.name.clone(),
            tenants: caller.writes_for(),
            method: method.to_owned(),
        };
        change.record = Record::of(&change, made, &version.state, &next.state);
        writer.revision = next.revision;
        // The whole is good now, whatever it was.
        writer.is_good = Some(true);
        let added = self.journal.add(&upon, change.clone(), next);
        Ok(added.map_or(Decided::Overtaken, |ticket| {
            Decided::Waits(outcome, change, ticket)
        }))
    }

    /// Refuses where another controller writes, or may by now.
    pub(crate) fn check_standing(&self) -> Result<(), ChangeError> {
        match &*self.standing.borrow() {
            Standing::Follower(address) => Err(ChangeError::NotWriter(address.clone())),
            Standing::Writer if self.journal.stored().is_sure() => Ok(()),
            Standing::Writer => Err(ChangeError::NotWriter(None)),
        }
    }

    /// What hosts cannot hold, in words that the caller may read.
    fn check_capacity(
        &self,
        caller: &Caller,
        (before, after): (&Version, &Version),
        change: &Change,
        counts: &Counts,
    ) -> Vec<v1::Violation> {
        let limits = Arc::clone(&self.limits.lock().unwrap_or_else(PoisonError::into_inner));
        let found = capacity::check(before, after, change, (&limits, counts));
        if caller.role >= Role::Operate {
            return found;
        }
        let is_seen = |key: &Key| caller.find(Role::Read, &after.state, key).is_some();
        capacity::told_to_tenant(found, is_seen)
    }
}

/// What became of a change.
enum Decided {
    /// It waits to be stored.
    Waits(Outcome, Change, Ticket),
    /// There is nothing to store.
    Nothing(Outcome),
    /// What it was decided upon is not there any more.
    Overtaken,
}

/// One line for each change that was made: by whom, and of what, as far as a line is long.
fn audit(caller: &Caller, change: &Change) {
    let names = |keys: &mut dyn Iterator<Item = Key>| {
        let mut names: Vec<String> = keys.take(AUDITED + 1).map(|key| key.to_string()).collect();
        if names.len() > AUDITED {
            names[AUDITED] = "more".to_owned();
        }
        names.join(", ")
    };
    tracing::info!(
        target: AUDIT,
        caller = caller.name,
        revision = change.revision,
        put = names(&mut change.upserts.iter().map(Object::key)),
        deleted = names(&mut change.deletes.iter().cloned()),
        "changed"
    );
}

/// The side of a peering that a caller acts for: a tenant only for its own.
fn side(
    caller: &Caller,
    state: &State,
    request: &v1::ChangePeeringRequest,
) -> Result<String, ChangeError> {
    let missing = || PeeringError::Missing(request.id.clone());
    let key = Key {
        kind: Kind::Peering,
        id: request.id.clone(),
    };
    let found = caller
        .find(Role::Operate, state, &key)
        .ok_or_else(missing)?;
    let Object::Peering(peering) = found else {
        return Err(missing().into());
    };
    let is_own = |vpc: &str| caller.may_in(Role::Operate, state, vpc);
    let own: Vec<&str> = peering
        .vpcs()
        .into_iter()
        .filter(|vpc| is_own(vpc))
        .collect();
    match own[..] {
        // Who has one side alone need not say which.
        [only] if caller.role < Role::Operate && request.vpc.is_empty() => Ok(only.to_owned()),
        _ if request.vpc.is_empty() || is_own(&request.vpc) || caller.role >= Role::Operate => {
            Ok(request.vpc.clone())
        }
        _ => Err(PeeringError::Refused {
            id: request.id.clone(),
            field: "vpc",
            rule: format!("'{}' is not yours", request.vpc),
        }
        .into()),
    }
}

/// A VPC or an external network that would go from one tenant to another.
fn tenant_changed(before: &State, upserts: &[Object]) -> Option<Key> {
    let tenant = |object: &Object| match object {
        Object::Vpc(vpc) => Some(vpc.tenant.clone()),
        Object::ExternalNetwork(network) => Some(network.tenant.clone()),
        _ => None,
    };
    upserts.iter().find_map(|object| {
        let new = tenant(object)?;
        let key = object.key();
        let old = tenant(before.get(&key)?)?;
        (old != new).then_some(key)
    })
}

/// The objects as they are to be kept: where a port comes from, and how a peering stands, is not for the writer of the intent to say. A VPC
/// without a VNI gets one.
///
/// # Errors
/// The caller may not write that.
fn placed(version: &Version, new: &State, caller: &Caller) -> Result<Vec<Object>, ChangeError> {
    let state = &version.state;
    if caller.role < Role::Operate {
        let written: Vec<Object> = new.iter().cloned().collect();
        let found = tenancy::check_written(caller, state, &written);
        if !found.is_empty() {
            return Err(ChangeError::Refused(found));
        }
    }
    let mut vnis = None;
    let mut all = Vec::with_capacity(new.len());
    for object in new.iter() {
        all.push(match object {
            Object::Port(port) => placed_port(version, port),
            Object::Peering(peering) => Object::Peering(peering::placed(state, new, peering)),
            Object::Vpc(vpc) if vpc.vni == 0 => {
                let kept = match state.find(Kind::Vpc, &vpc.id) {
                    Some(Object::Vpc(old)) => Some(old.vni),
                    _ => None,
                };
                let vnis = vnis.get_or_insert_with(|| vnis_of([state, new]));
                // None is free: refused as any VNI of 0 is.
                let vni = kept.or_else(|| tenancy::free_vni(vnis)).unwrap_or_default();
                vnis.insert(vni);
                Object::Vpc(v1::Vpc { vni, ..vpc.clone() })
            }
            other => other.clone(),
        });
    }
    Ok(all)
}

fn vnis_of(states: [&State; 2]) -> BTreeSet<u32> {
    let vpcs = states
        .into_iter()
        .flat_map(|state| state.of_kind(Kind::Vpc));
    let vni = |object: &Object| match object {
        Object::Vpc(vpc) => Some(vpc.vni),
        _ => None,
    };
    vpcs.filter_map(vni).collect()
}

fn placed_port(version: &Version, port: &v1::Port) -> Object {
    let moved_from = match version.state.find(Kind::Port, &port.id) {
        Some(Object::Port(before)) if before.host == port.host => before.moved_from.clone(),
        Some(Object::Port(before)) if !port.host.is_empty() => before.host.clone(),
        _ => String::new(),
    };
    Object::Port(v1::Port {
        moved_from,
        ..port.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Embedded;
    use std::time::Instant;

    #[test]
    fn one_that_makes_many_changes_at_a_time_is_passed_by_one_that_makes_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(&directory.path().join("intent.redb")).unwrap();
        let intent = Arc::new(Intent::load(Box::new(store)).unwrap());
        let change = |caller: &str, vni: u32| {
            let vpc = v1::Vpc {
                id: format!("v{vni}"),
                vni,
                ..v1::Vpc::default()
            };
            let objects = Objects {
                vpcs: vec![vpc],
                ..Objects::default()
            };
            let (intent, caller) = (Arc::clone(&intent), Caller::certified(caller));
            std::thread::spawn(move || intent.create(&caller, objects).unwrap().revision)
        };
        let wait_for = |waiting: usize| {
            let start = Instant::now();
            while intent.deciding.waiting() < waiting {
                assert!(start.elapsed() < Duration::from_secs(20));
                std::thread::yield_now();
            }
        };
        // Nothing is decided meanwhile.
        let held = intent.lock_writer();
        let flood: Vec<_> = (1..=40).map(|vni| change("flood", vni)).collect();
        wait_for(40 - DECIDING);
        let quiet = change("quiet", 100);
        wait_for(41 - DECIDING);
        drop(held);
        let revision = quiet.join().unwrap();
        // Behind the one that was being decided, and one whose turn it was.
        assert!(revision <= 3, "{revision}");
        let last = flood.into_iter().map(|change| change.join().unwrap());
        assert_eq!(last.max(), Some(41));
    }
}
