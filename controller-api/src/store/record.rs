//! What is kept of each change: who made it, when, by what, and each object before and after.
//!
//! The intent makes a record with each change; stores keep its bytes under the revision, and give them back; history, undo and watches read it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use weft_proto::state::{Entry, Key, Kind, Object, State, collect, explode};
use weft_proto::v1::{ChangeRecord, ObjectChange, ObjectForm};

use super::Change;
use crate::tenancy::owners;

/// Who made a change, when and by what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Made {
    /// Milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// The caller's name.
    pub caller: String,
    /// The tenants on whose behalf the caller may write; none: the operator, or the controller itself.
    pub tenants: Vec<String>,
    /// By what: `create`, `apply`, `delete` and so on.
    pub method: String,
}

/// An object as it was at some revision. Shares the object with the state.
#[derive(Debug, Clone)]
pub struct Form {
    /// The object; none when only its key was kept.
    pub entry: Option<Arc<Entry>>,
    /// The tenants whose it was then.
    pub owners: Vec<String>,
    /// The VPC that it was in, where the object does not say: that of an elastic IP's port, or any when only the key was kept.
    pub vpc: String,
}

/// One object before and after a change; at least one of the two is there.
#[derive(Debug, Clone)]
pub struct Edit {
    /// Which object.
    pub key: Key,
    /// None: it did not exist.
    pub before: Option<Form>,
    /// None: it was deleted.
    pub after: Option<Form>,
}

/// What one change did.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// The revision that the change led to.
    pub revision: u64,
    /// By whom, when and by what.
    pub made: Made,
    /// What it did to each object, by key. Not all of them when there are fewer than `count`.
    pub edits: Arc<[Edit]>,
    /// How many objects it changed.
    pub count: u64,
    /// Whether it was too large to be kept whole: the edits have no objects.
    pub keys_only: bool,
}

impl Form {
    fn of(state: &State, key: &Key) -> Option<Self> {
        let entry = state.entry(key.kind, &key.id)?;
        let vpc = match &entry.object {
            Object::ElasticIp(elastic) => state.vpc_of(elastic).map(str::to_owned),
            _ => None,
        };
        Some(Self {
            entry: Some(Arc::clone(entry)),
            owners: owners(state, &entry.object),
            vpc: vpc.unwrap_or_default(),
        })
    }

    /// The object, where it was kept.
    pub fn object(&self) -> Option<&Object> {
        self.entry.as_ref().map(|entry| &entry.object)
    }

    /// Whether it was in a VPC, or joined it to another.
    pub fn is_in(&self, vpc: &str) -> bool {
        self.vpc == vpc
            || self
                .object()
                .is_some_and(|object| object.vpcs().any(|own| own == vpc))
    }

    fn to_wire(&self, with_object: bool) -> ObjectForm {
        let object = self.object();
        let vpc = match object {
            Some(object) if !with_object && self.vpc.is_empty() => object.vpc(),
            _ => None,
        };
        let object = object.filter(|_| with_object).cloned();
        ObjectForm {
            object: object.map(|object| collect(std::iter::once(object))),
            owners: self.owners.clone(),
            vpc: vpc.unwrap_or(&self.vpc).to_owned(),
        }
    }

    fn from_wire(wire: ObjectForm) -> Self {
        let object = wire.object.and_then(|objects| explode(objects).next());
        Self {
            entry: object.map(Entry::new),
            owners: wire.owners,
            vpc: wire.vpc,
        }
    }
}

impl Edit {
    /// About how many bytes it takes to keep.
    fn size(&self, with_objects: bool) -> usize {
        let form = |form: &Form| {
            let object = form.object().filter(|_| with_objects);
            let owners: usize = form.owners.iter().map(|owner| owner.len() + 2).sum();
            object.map_or(0, Object::encoded_len) + owners + form.vpc.len() + 12
        };
        let forms = [&self.before, &self.after].into_iter().flatten();
        self.key.id.len() + 24 + forms.map(form).sum::<usize>()
    }
}

impl Record {
    /// What a change from one state to another does.
    pub fn of(change: &Change, made: Made, before: &State, after: &State) -> Self {
        let written = change.upserts.iter().map(Object::key);
        let mut keys: Vec<Key> = written.chain(change.deletes.iter().cloned()).collect();
        keys.sort_unstable();
        keys.dedup();
        let edits = keys.into_iter().filter_map(|key| {
            let [before, after] = [before, after].map(|state| Form::of(state, &key));
            let objects = [&before, &after].map(|form| form.as_ref().and_then(Form::object));
            (objects[0] != objects[1]).then_some(Edit { key, before, after })
        });
        let edits: Arc<[Edit]> = edits.collect();
        Self {
            revision: change.revision,
            made,
            count: edits.len() as u64,
            edits,
            keys_only: false,
        }
    }

    /// That of an operator who replaced all that was stored.
    pub(crate) fn of_restore(revision: u64, objects: usize) -> Self {
        Self {
            revision,
            made: Made {
                time_ms: now_ms(),
                caller: "operator".to_owned(),
                method: "restore".to_owned(),
                tenants: Vec::new(),
            },
            edits: Arc::default(),
            count: objects as u64,
            keys_only: true,
        }
    }

    /// About how many bytes it takes whole.
    pub(crate) fn size(&self) -> usize {
        self.edits.iter().map(|edit| edit.size(true)).sum()
    }

    /// The bytes to be kept. One that would take more than `most` has its keys only, and not all of them if those take more too.
    pub fn encode(&self, most: usize) -> Vec<u8> {
        let mut size = 0;
        let mut fits = |edit: &Edit, with_objects: bool| {
            size += edit.size(with_objects);
            size <= most
        };
        let keys_only = self.keys_only || !self.edits.iter().all(|edit| fits(edit, true));
        size = 0;
        let mut fits = |edit: &&Edit| {
            size += edit.size(!keys_only);
            size <= most
        };
        let kept = self.edits.iter().take_while(|edit| fits(edit));
        let objects = kept.map(|edit| {
            let form = |form: &Form| form.to_wire(!keys_only);
            ObjectChange {
                object: Some(edit.key.to_wire()),
                before: edit.before.as_ref().map(form),
                after: edit.after.as_ref().map(form),
            }
        });
        let wire = ChangeRecord {
            revision: self.revision,
            time_ms: self.made.time_ms,
            caller: self.made.caller.clone(),
            method: self.made.method.clone(),
            caller_tenants: self.made.tenants.clone(),
            objects: objects.collect(),
            keys_only,
            count: self.count,
        };
        wire.encode_to_vec()
    }

    /// The record of such bytes; none if they are no record.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let wire = ChangeRecord::decode(bytes).ok()?;
        let edits = wire.objects.into_iter().map(|change| {
            let key = change.object?;
            Some(Edit {
                key: Key {
                    kind: Kind::from_name(&key.kind)?,
                    id: key.id,
                },
                before: change.before.map(Form::from_wire),
                after: change.after.map(Form::from_wire),
            })
        });
        Some(Self {
            revision: wire.revision,
            made: Made {
                time_ms: wire.time_ms,
                caller: wire.caller,
                tenants: wire.caller_tenants,
                method: wire.method,
            },
            edits: edits.collect::<Option<_>>()?,
            count: wire.count,
            keys_only: wire.keys_only,
        })
    }
}

/// The time in milliseconds since 1970; 0 when the clock is before that. For people who read the history: nothing is decided by it.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::v1::Vpc;

    fn states(count: u32) -> (State, State, Change) {
        let vpc = |n: u32, vni: u32| {
            Object::Vpc(Vpc {
                id: format!("ann/v{n}"),
                tenant: "ann".into(),
                vni,
                ..Vpc::default()
            })
        };
        let (mut before, mut after) = (State::default(), State::default());
        before.insert(vpc(0, 1));
        before.insert(vpc(1, 2));
        after.insert(vpc(0, 9));
        for n in 2..count {
            after.insert(vpc(n, n + 1));
        }
        let change = Change {
            revision: 7,
            upserts: after.iter().cloned().collect(),
            deletes: vec![vpc(1, 2).key()],
            ..Change::default()
        };
        (before, after, change)
    }

    #[test]
    fn a_record_is_read_as_it_was_made() {
        let (before, after, change) = states(3);
        let made = Made {
            time_ms: 5,
            caller: "CN=ann".into(),
            tenants: vec!["ann".into()],
            method: "apply".into(),
        };
        let record = Record::of(&change, made.clone(), &before, &after);
        let read = Record::decode(&record.encode(1 << 20)).unwrap();
        assert_eq!((read.revision, read.made, read.count), (7, made, 3));
        assert!(!read.keys_only);
        for (read, edit) in read.edits.iter().zip(record.edits.iter()) {
            assert_eq!(read.key, edit.key);
            for (read, edit) in [(&read.before, &edit.before), (&read.after, &edit.after)] {
                let object = |form: &Option<Form>| form.as_ref()?.object().cloned();
                assert_eq!(object(read), object(edit));
                let owners = |form: &Option<Form>| Some(form.as_ref()?.owners.clone());
                assert_eq!(owners(read), owners(edit));
            }
        }
        assert_eq!(read.edits[0].after.as_ref().unwrap().owners, ["ann"]);
    }

    #[test]
    fn a_change_that_is_too_large_leaves_keys_and_its_count() {
        let (before, after, change) = states(1000);
        let record = Record::of(&change, Made::default(), &before, &after);
        let whole = record.encode(1 << 20).len();
        let bytes = record.encode(whole / 2);
        assert!(bytes.len() <= whole / 2);
        let read = Record::decode(&bytes).unwrap();
        assert!(read.keys_only);
        assert_eq!(read.count, 1000);
        assert!(read.edits.len() < 1000 && !read.edits.is_empty());
        let forms = |edit: &Edit| [edit.before.clone(), edit.after.clone()];
        let mut forms = read.edits.iter().flat_map(forms).flatten();
        assert!(forms.all(|form| form.entry.is_none()));
        assert!(Record::decode(&[0xff; 9]).is_none());
    }
}
