//! What a caller is told of changes: those of objects that it may read, as they are shown to it, and of a caller's name only if that
//! acted for one of its own tenants.
//!
//! Whose an object was is kept with each change: another may have a VPC of the same id today.

use weft_process::tls::Role;
use weft_proto::state::{Key, Kind, Object, StateError, collect};
use weft_proto::v1::{ChangeRecord, HistoryReply, HistoryRequest, ObjectChange, ObjectForm};

use crate::caller::Caller;
use crate::intent::Intent;
use crate::selector::{Selector, SelectorError};
use crate::store::{Edit, Form, Record, StoreError};

/// Changes that are told at a time when the caller does not say how many, and at most.
const LIMITS: (usize, usize) = (100, 1000);

/// Records that are read for one answer: what concerns the caller may be far apart.
const READ: usize = 2000;

/// Records that are read from the store at a time.
const STEP: usize = 100;

/// An answer of so many bytes is full.
const REPLY_BYTES: usize = 2 << 20;

/// Which objects somebody asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    /// None: all.
    pub(crate) kind: Option<Kind>,
    /// Empty: all.
    pub(crate) id: String,
    /// Those of this VPC; empty: all.
    pub(crate) vpc: String,
    /// Those that this selects.
    selector: Selector,
}

impl Filter {
    /// Of a kind by its name; an empty one is every kind.
    ///
    /// # Errors
    /// There is no such kind.
    pub(crate) fn new(kind: &str, id: String, vpc: String) -> Result<Self, StateError> {
        let unknown = || StateError::UnknownKind(kind.to_owned());
        let kind = match kind {
            "" if id.is_empty() => None,
            name => Some(Kind::from_name(name).ok_or_else(unknown)?),
        };
        Ok(Self {
            kind,
            id,
            vpc,
            selector: Selector::default(),
        })
    }

    /// The same, of what labels and fields select.
    ///
    /// # Errors
    /// One of the texts is no selector.
    pub(crate) fn selecting(self, labels: &str, fields: &str) -> Result<Self, SelectorError> {
        Ok(Self {
            selector: Selector::new(labels, fields, self.kind)?,
            ..self
        })
    }

    /// Whether an object is selected, by what the caller is shown of it.
    pub(crate) fn selects(&self, caller: &Caller, object: &Object) -> bool {
        self.selector.is_all()
            || if caller.role >= Role::Read {
                self.selector.matches(object)
            } else {
                self.selector.matches(&caller.shown(object))
            }
    }

    pub(crate) fn has_kind(&self, kind: Kind) -> bool {
        self.kind.is_none_or(|own| own == kind)
    }

    fn has_key(&self, key: &Key) -> bool {
        self.has_kind(key.kind) && (self.id.is_empty() || self.id == key.id)
    }

    fn has(&self, form: &Form) -> bool {
        self.vpc.is_empty() || form.is_in(&self.vpc)
    }

    /// Whether a caller asks for an object as it was, and may read it; whichever key it has.
    pub(crate) fn is_told(&self, caller: &Caller, form: &Form) -> bool {
        let object = form.object();
        self.has(form)
            && caller.may_with(Role::Read, form)
            && (self.selector.is_all() || object.is_some_and(|it| self.selects(caller, it)))
    }

    /// What a caller asks for of an object's change and may read: how it was and how it is. None: nothing that it would notice.
    pub(crate) fn told<'e>(
        &self,
        caller: &Caller,
        edit: &'e Edit,
    ) -> Option<[Option<&'e Form>; 2]> {
        if !self.has_key(&edit.key) {
            return None;
        }
        let is_told = |form: &&Form| self.is_told(caller, form);
        let [before, after] = [&edit.before, &edit.after].map(|form| form.as_ref().filter(is_told));
        match (before, after) {
            (None, None) => None,
            // It may differ in what is not shown alone.
            (Some(old), Some(new)) if caller.role < Role::Read => {
                let shown = |form: &Form| form.object().map(|object| caller.shown(object));
                let is_same = old.object().is_some() && shown(old) == shown(new);
                (!is_same).then_some([before, after])
            }
            told => Some(told.into()),
        }
    }
}

/// A record as it is told to a caller; none when nothing of it is.
fn told(caller: &Caller, filter: &Filter, forms: bool, record: &Record) -> Option<ChangeRecord> {
    let form = |form: &Form| {
        let object = form.object().filter(|_| forms);
        ObjectForm {
            object: object.map(|object| collect(std::iter::once(caller.shown(object)))),
            ..ObjectForm::default()
        }
    };
    let objects = record.edits.iter().filter_map(|edit| {
        let [before, after] = filter.told(caller, edit)?;
        Some(ObjectChange {
            object: Some(edit.key.to_wire()),
            before: before.map(form),
            after: after.map(form),
        })
    });
    let objects: Vec<ObjectChange> = objects.collect();
    let is_all = caller.role >= Role::Read
        && filter.kind.is_none()
        && filter.id.is_empty()
        && filter.vpc.is_empty();
    if objects.is_empty() && !is_all {
        return None;
    }
    let made = &record.made;
    let is_own = |tenant: &String| caller.is_of(tenant, Role::Read);
    let name = if caller.role >= Role::Read || made.tenants.iter().any(is_own) {
        &*made.caller
    } else if made.tenants.is_empty() {
        "the operator"
    } else {
        "another tenant"
    };
    Some(ChangeRecord {
        revision: record.revision,
        time_ms: made.time_ms,
        caller: name.to_owned(),
        method: made.method.clone(),
        count: if is_all {
            record.count
        } else {
            objects.len() as u64
        },
        objects,
        keys_only: record.keys_only,
        caller_tenants: Vec::new(),
    })
}

/// The answer to a request. Reads the store: call it where blocking is allowed.
///
/// # Errors
/// The store cannot be read.
pub(crate) fn answer(
    intent: &Intent,
    caller: &Caller,
    filter: &Filter,
    request: &HistoryRequest,
) -> Result<HistoryReply, StoreError> {
    let limit = match usize::try_from(request.limit).unwrap_or(usize::MAX) {
        0 => LIMITS.0,
        limit => limit.min(LIMITS.1),
    };
    let mut reply = HistoryReply {
        revision: intent.current().revision,
        oldest: intent.oldest_record()?.unwrap_or_default(),
        ..HistoryReply::default()
    };
    let mut before = match request.before {
        0 => u64::MAX,
        before => before,
    };
    let (mut read, mut size) = (0, 0);
    loop {
        let records = intent.records(before, STEP)?;
        if records.is_empty() {
            return Ok(reply);
        }
        for record in records {
            before = record.revision;
            if record.revision <= request.after {
                return Ok(reply);
            }
            if let Some(told) = told(caller, filter, request.forms, &record) {
                size += prost::Message::encoded_len(&told);
                reply.changes.push(told);
            }
            read += 1;
            if reply.changes.len() >= limit || size >= REPLY_BYTES || read >= READ {
                let is_last = before <= reply.oldest || before <= request.after.saturating_add(1);
                reply.next_before = if is_last { 0 } else { before };
                return Ok(reply);
            }
        }
    }
}

/// What an undo puts and deletes, as far as it is the caller's.
pub(crate) struct Reversal {
    edits: Vec<Edit>,
}

/// Why a change cannot be undone.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum UndoError {
    #[error("revision {revision}: no record of it is kept{}", since(*.oldest))]
    NotKept { revision: u64, oldest: u64 },
    #[error("revision {0} changed nothing that is yours to change")]
    NotYours(u64),
    #[error("revision {0} changed too much to be kept whole: it cannot be undone")]
    TooLarge(u64),
    #[error("{0}: the state of a peering is not undone: accept, reject, freeze or activate it")]
    Peering(Key),
    #[error("conflict:\n{}", changed(.0, *.1))]
    Changed(Vec<Key>, u64),
}

fn since(oldest: u64) -> String {
    match oldest {
        0 => String::new(),
        oldest => format!("; the oldest that is kept is {oldest}"),
    }
}

fn changed(keys: &[Key], revision: u64) -> String {
    let lines = keys
        .iter()
        .map(|key| format!("{key} has changed since revision {revision}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Where a port came from is the controller's to say, and passes.
fn without_moves(object: &Object) -> Object {
    match object {
        Object::Port(port) => Object::Port(weft_proto::v1::Port {
            moved_from: String::new(),
            ..port.clone()
        }),
        other => other.clone(),
    }
}

impl Reversal {
    /// Of a record, as far as the caller may write it.
    ///
    /// # Errors
    /// There is nothing of the caller's, or it is not known how it was, or it is not undone so.
    pub(crate) fn new(caller: &Caller, record: &Record) -> Result<Self, UndoError> {
        let is_own = |edit: &&Edit| {
            let mut forms = [&edit.before, &edit.after].into_iter().flatten();
            forms.all(|form| caller.may_with(Role::Operate, form))
        };
        let edits: Vec<Edit> = record.edits.iter().filter(is_own).cloned().collect();
        if edits.is_empty() {
            return Err(UndoError::NotYours(record.revision));
        }
        if record.keys_only {
            return Err(UndoError::TooLarge(record.revision));
        }
        for edit in &edits {
            let [before, after] =
                [&edit.before, &edit.after].map(|form| form.as_ref().and_then(Form::object));
            if let (Some(Object::Peering(before)), Some(Object::Peering(after))) = (before, after)
                && before.vpcs() == after.vpcs()
                && before.states() != after.states()
            {
                return Err(UndoError::Peering(edit.key.clone()));
            }
        }
        Ok(Self { edits })
    }

    /// The objects to be put as they were, and the keys to be deleted.
    ///
    /// # Errors
    /// Any of them is not as the change left it.
    pub(crate) fn upon(
        &self,
        caller: &Caller,
        state: &weft_proto::state::State,
        revision: u64,
    ) -> Result<(Vec<Object>, Vec<Key>), UndoError> {
        let has_changed = |edit: &&Edit| {
            // One of that name may be another's by now, of whom nothing is said.
            let is_theirs =
                edit.after.is_some() && caller.find(Role::Operate, state, &edit.key).is_none();
            if is_theirs {
                return true;
            }
            let left = edit.after.as_ref().and_then(Form::object);
            state.get(&edit.key).map(without_moves) != left.map(without_moves)
        };
        let changed: Vec<Key> = self
            .edits
            .iter()
            .filter(has_changed)
            .map(|edit| edit.key.clone())
            .collect();
        if !changed.is_empty() {
            return Err(UndoError::Changed(changed, revision));
        }
        let (mut upserts, mut deletes) = (Vec::new(), Vec::new());
        for edit in &self.edits {
            match edit.before.as_ref().and_then(Form::object) {
                Some(object) => upserts.push(object.clone()),
                None => deletes.push(edit.key.clone()),
            }
        }
        Ok((upserts, deletes))
    }
}
