//! The embedded store: one database file, one row per object and per change that is kept, one transaction for the changes that wait.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError,
    TableDefinition, WriteTransaction,
};
use weft_proto::state::{Key, Kind, Object, State};

use super::{Change, HistoryBounds, MAX_RECORD, Maintenance, Record, Store, StoreError};

/// "KIND/ID" to the revision at which the object became so, 8 bytes with the highest first, and its wire form. An id may hold slashes, a kind does not.
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects at revisions");
/// The table of format 1: the same, without revisions.
const OBJECTS_1: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
/// Revision to the record of the change that led to it.
const HISTORY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("history");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const REVISION: &str = "revision";
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 2;
/// The bytes of all records.
const HISTORY_BYTES: &str = "history bytes";

/// The records that are read at a time end with the one that makes so many bytes full, as nothing is stored meanwhile.
const READ_BYTES: usize = 1 << 20;

/// A database file.
#[derive(Debug)]
pub struct Embedded {
    path: PathBuf,
    history: HistoryBounds,
    /// None after a fault of the disk, until the file can be opened again.
    database: Mutex<Option<Database>>,
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

impl Embedded {
    /// Opens or makes the database file. One that was not closed is repaired: it then holds what was committed last.
    ///
    /// # Errors
    /// The file is in use, is no database, is damaged, or has another format.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            path: path.to_owned(),
            history: HistoryBounds::default(),
            database: Mutex::new(Some(open(path)?)),
        })
    }

    /// The same, with so much of the history kept. What is too much already goes with the next change.
    #[must_use]
    pub fn with_history(mut self, history: HistoryBounds) -> Self {
        self.history = history;
        self
    }

    fn database(&self) -> MutexGuard<'_, Option<Database>> {
        // What it guards is replaced whole.
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is in a call of the database library that may panic, and is guarded against that.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

/// What a call of the library answers; nothing if it panics, as it does at some damage of the file.
fn guarded<T>(call: impl FnOnce() -> T) -> Option<T> {
    GUARDED.set(true);
    // What the call was given is dropped by whoever hears of the damage.
    let answer = std::panic::catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(false);
    answer.ok()
}

/// Opens or makes a database file of our format.
fn open(path: &Path) -> Result<Database, StoreError> {
    let damaged = || StoreError::Damaged(path.to_owned());
    let opened = guarded(|| Database::create(path)).ok_or_else(damaged)?;
    let mut database = opened.map_err(|reason| match reason {
        DatabaseError::Storage(StorageError::Corrupted(_)) => damaged(),
        reason => StoreError::Open {
            path: path.to_owned(),
            reason: Box::new(reason),
        },
    })?;
    // Pages have checksums, which are only compared here.
    match guarded(|| database.check_integrity()).ok_or_else(damaged)? {
        Ok(true) => {}
        Ok(false) | Err(DatabaseError::Storage(StorageError::Corrupted(_))) => {
            return Err(damaged());
        }
        Err(error) => return Err(error.into()),
    }
    let transaction = database.begin_write()?;
    transaction.open_table(OBJECTS)?;
    transaction.open_table(HISTORY)?;
    {
        let mut numbers = transaction.open_table(NUMBERS)?;
        let format = numbers.get(FORMAT)?.map(|value| value.value());
        let revision = numbers.get(REVISION)?.map_or(0, |value| value.value());
        match format {
            None => drop(numbers.insert(FORMAT, FORMAT_VERSION)?),
            Some(FORMAT_VERSION) => {}
            Some(1) => {
                bring_up(&transaction, revision)?;
                numbers.insert(FORMAT, FORMAT_VERSION)?;
            }
            Some(other) => return Err(StoreError::Format(other, FORMAT_VERSION)),
        }
    }
    transaction.commit()?;
    Ok(database)
}

/// Brings a file of format 1 to ours. When its objects changed last is not known: no later than at its revision.
fn bring_up(transaction: &WriteTransaction, revision: u64) -> Result<(), StoreError> {
    let mut rows = transaction.open_table(OBJECTS)?;
    for row in transaction.open_table(OBJECTS_1)?.iter()? {
        let (name, bytes) = row?;
        rows.insert(name.value(), &*row_of(revision, bytes.value()))?;
    }
    transaction.delete_table(OBJECTS_1)?;
    Ok(())
}

/// An object's row.
fn row_of(revision: u64, object: &[u8]) -> Vec<u8> {
    [&revision.to_be_bytes(), object].concat()
}

fn revision(database: &Database) -> Result<u64, StoreError> {
    let numbers = database.begin_read()?.open_table(NUMBERS)?;
    Ok(numbers.get(REVISION)?.map_or(0, |value| value.value()))
}

fn write(database: &Database, changes: &[Change], bounds: HistoryBounds) -> Result<(), StoreError> {
    // The default durability: the commit returns after the file is synchronised.
    let transaction = database.begin_write()?;
    {
        let mut objects = transaction.open_table(OBJECTS)?;
        for change in changes {
            for key in &change.deletes {
                objects.remove(name(key).as_str())?;
            }
            for object in &change.upserts {
                let row = row_of(change.revision, &object.encode());
                objects.insert(name(&object.key()).as_str(), row.as_slice())?;
            }
        }
        if let Some(last) = changes.last() {
            let mut numbers = transaction.open_table(NUMBERS)?;
            numbers.insert(REVISION, last.revision)?;
        }
    }
    write_history(&transaction, changes, bounds)?;
    transaction.commit()?;
    Ok(())
}

/// Adds the records of changes, and takes out the oldest that are too many.
fn write_history(
    transaction: &WriteTransaction,
    changes: &[Change],
    bounds: HistoryBounds,
) -> Result<(), StoreError> {
    let mut history = transaction.open_table(HISTORY)?;
    let mut numbers = transaction.open_table(NUMBERS)?;
    let mut bytes = numbers.get(HISTORY_BYTES)?.map_or(0, |value| value.value());
    for change in changes {
        let record = change.record.encode(MAX_RECORD);
        history.insert(change.revision, record.as_slice())?;
        bytes += record.len() as u64;
    }
    let mut left = history.len()?;
    while left > 1 && (left > bounds.changes || bytes > bounds.bytes) {
        let Some((_, oldest)) = history.pop_first()? else {
            break;
        };
        bytes = bytes.saturating_sub(oldest.value().len() as u64);
        left -= 1;
    }
    numbers.insert(HISTORY_BYTES, bytes)?;
    Ok(())
}

impl Store for Embedded {
    fn load(&self) -> Result<(u64, State), StoreError> {
        let slot = self.database();
        let database = slot.as_ref().ok_or(StoreError::Closed)?;
        let revision = revision(database)?;
        let mut objects = Vec::new();
        for row in database.begin_read()?.open_table(OBJECTS)?.iter()? {
            let (name, bytes) = row?;
            let (revision, object) = read_object(name.value(), bytes.value())?;
            objects.push((object, revision));
        }
        // Each row has a name of its own.
        let twice = |_| StoreError::Damaged(self.path.clone());
        Ok((revision, State::from_list_at(objects).map_err(twice)?))
    }

    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        let [Some(first), Some(last)] = [changes.first(), changes.last()] else {
            return Ok(());
        };
        let mut slot = self.database();
        let database = match slot.take() {
            Some(database) => database,
            None => open(&self.path)?,
        };
        let present = revision(&database)?;
        if present + 1 != first.revision {
            *slot = Some(database);
            return Err(StoreError::Overtaken(present));
        }
        let Err(error) = write(&database, changes, self.history) else {
            *slot = Some(database);
            return Ok(());
        };
        // After a fault of the disk the database takes nothing any more until it is opened again, and only then says what it holds.
        drop(database);
        let database = slot.insert(open(&self.path)?);
        match revision(database)? {
            present if present == last.revision => Ok(()),
            _ => Err(error),
        }
    }

    fn history(&self, before: u64, limit: usize) -> Result<Vec<Record>, StoreError> {
        let slot = self.database();
        let database = slot.as_ref().ok_or(StoreError::Closed)?;
        let (mut size, mut rows) = (0, Vec::new());
        let table = database.begin_read()?.open_table(HISTORY)?;
        for row in table.range(..before)?.rev().take(limit) {
            let (revision, bytes) = row?;
            let bytes = bytes.value().to_vec();
            size += bytes.len();
            rows.push((revision.value(), bytes));
            if size >= READ_BYTES {
                break;
            }
        }
        drop(slot);
        let records = rows
            .into_iter()
            .map(|(revision, bytes)| Record::decode(&bytes).ok_or(StoreError::Record(revision)));
        records.collect()
    }

    fn oldest(&self) -> Result<Option<u64>, StoreError> {
        let slot = self.database();
        let database = slot.as_ref().ok_or(StoreError::Closed)?;
        let history = database.begin_read()?.open_table(HISTORY)?;
        Ok(history.first()?.map(|(revision, _)| revision.value()))
    }
}

impl Maintenance for Embedded {
    fn replace(&self, revision: u64, state: &State) -> Result<(), StoreError> {
        let slot = self.database();
        let database = slot.as_ref().ok_or(StoreError::Closed)?;
        let transaction = database.begin_write()?;
        transaction.delete_table(OBJECTS)?;
        transaction.delete_table(HISTORY)?;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            for object in state.iter() {
                let row = row_of(revision, &object.encode());
                objects.insert(name(&object.key()).as_str(), row.as_slice())?;
            }
            let record = Record::of_restore(revision, state.len()).encode(MAX_RECORD);
            let mut history = transaction.open_table(HISTORY)?;
            history.insert(revision, record.as_slice())?;
            let mut numbers = transaction.open_table(NUMBERS)?;
            numbers.insert(REVISION, revision)?;
            numbers.insert(HISTORY_BYTES, record.len() as u64)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn compact(&self) -> Result<(), StoreError> {
        let mut slot = self.database();
        let database = slot.as_ref().ok_or(StoreError::Closed)?;
        let failed = |reason| StoreError::Path {
            path: self.path.clone(),
            reason,
        };
        // Not what leads to it.
        let path = self.path.canonicalize().map_err(failed)?;
        // A file of its own until it is whole, so that no crash leaves less than one of the two.
        let mut next = path.as_os_str().to_owned();
        next.push(".compact");
        let next = PathBuf::from(next);
        let compacted = compacted(database, &path, &next).inspect_err(|_| {
            // It is for want of room, perhaps.
            let _ = std::fs::remove_file(&next);
        })?;
        *slot = Some(compacted);
        Ok(())
    }

    fn check_unused(&self) -> Result<(), StoreError> {
        // Else it could not have been opened.
        Ok(())
    }
}

/// A copy of a database that takes the place of its file, by another name until it is whole.
fn compacted(database: &Database, path: &Path, next: &Path) -> Result<Database, StoreError> {
    let failed = |reason| StoreError::Path {
        path: next.to_owned(),
        reason,
    };
    let _ = std::fs::remove_file(next);
    let mut making = OpenOptions::new();
    making.write(true).create_new(true).mode(0o600);
    drop(making.open(next).map_err(failed)?);
    let mode = std::fs::metadata(path).map_err(failed)?.permissions();
    std::fs::set_permissions(next, mode).map_err(failed)?;
    let compacted = open(next)?;
    copy(database, &compacted)?;
    std::fs::rename(next, path).map_err(failed)?;
    let directory = File::open(path.parent().unwrap_or(Path::new("/")));
    let synchronised = directory.and_then(|directory| directory.sync_all());
    synchronised.map_err(failed)?;
    Ok(compacted)
}

/// Copies all rows in one transaction.
fn copy(from: &Database, to: &Database) -> Result<(), StoreError> {
    let (source, target) = (from.begin_read()?, to.begin_write()?);
    {
        let mut objects = target.open_table(OBJECTS)?;
        for row in source.open_table(OBJECTS)?.iter()? {
            let (name, object) = row?;
            objects.insert(name.value(), object.value())?;
        }
        let mut history = target.open_table(HISTORY)?;
        for row in source.open_table(HISTORY)?.iter()? {
            let (revision, record) = row?;
            history.insert(revision.value(), record.value())?;
        }
        let mut numbers = target.open_table(NUMBERS)?;
        for row in source.open_table(NUMBERS)?.iter()? {
            let (name, number) = row?;
            numbers.insert(name.value(), number.value())?;
        }
    }
    target.commit()?;
    Ok(())
}

fn name(key: &Key) -> String {
    format!("{}/{}", key.kind.name(), key.id)
}

/// The object of a row, and the revision at which it became so.
fn read_object(name: &str, row: &[u8]) -> Result<(u64, Object), StoreError> {
    let not_understood = || StoreError::Content(name.to_owned());
    let (kind, id) = name.split_once('/').ok_or_else(not_understood)?;
    let kind = Kind::from_name(kind).ok_or_else(not_understood)?;
    let (revision, bytes) = row.split_first_chunk().ok_or_else(not_understood)?;
    let object = Object::decode(kind, bytes).map_err(|_| not_understood())?;
    if object.id() == id {
        Ok((u64::from_be_bytes(*revision), object))
    } else {
        Err(not_understood())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Made;
    use weft_proto::v1::Vpc;

    fn vpc(id: &str, vni: u32) -> Object {
        Object::Vpc(Vpc {
            id: id.into(),
            vni,
            ..Vpc::default()
        })
    }

    #[test]
    fn what_was_committed_is_loaded_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("intent.redb");
        let store = Embedded::open(&path).unwrap();
        assert_eq!(store.load().unwrap(), (0, State::default()));
        let first = Change {
            revision: 1,
            upserts: vec![vpc("a/b", 1), vpc("c", 2)],
            ..Change::default()
        };
        store.commit(&[first]).unwrap();
        let second = Change {
            revision: 2,
            upserts: vec![vpc("c", 3)],
            deletes: vec![vpc("a/b", 1).key()],
            ..Change::default()
        };
        store.commit(&[second]).unwrap();
        drop(store);
        let (revision, state) = Embedded::open(&path).unwrap().load().unwrap();
        assert_eq!(revision, 2);
        assert_eq!(state.iter().collect::<Vec<_>>(), [&vpc("c", 3)]);
        assert_eq!(state.entry(Kind::Vpc, "c").unwrap().revision, 2);
    }

    /// A change with its record, from the state that it is made in.
    fn recorded(state: &mut State, revision: u64, upserts: Vec<Object>) -> Change {
        let before = state.clone();
        for object in &upserts {
            state.insert_at(object.clone(), revision);
        }
        let mut change = Change {
            revision,
            upserts,
            ..Change::default()
        };
        change.record = Record::of(&change, Made::default(), &before, state);
        change
    }

    fn revisions(store: &Embedded, before: u64, limit: usize) -> Vec<u64> {
        let records = store.history(before, limit).unwrap();
        records.iter().map(|record| record.revision).collect()
    }

    #[test]
    fn history_is_read_backwards_and_the_oldest_of_it_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("intent.redb");
        let bounds = HistoryBounds {
            changes: 3,
            bytes: 1 << 20,
        };
        let store = Embedded::open(&path).unwrap().with_history(bounds);
        assert_eq!(store.oldest().unwrap(), None);
        assert!(revisions(&store, u64::MAX, 10).is_empty());
        let mut state = State::default();
        let changes = (1..=5).map(|n| recorded(&mut state, n, vec![vpc("c", n as u32)]));
        let changes: Vec<Change> = changes.collect();
        store.commit(&changes[..2]).unwrap();
        assert_eq!(store.oldest().unwrap(), Some(1));
        store.commit(&changes[2..]).unwrap();
        assert_eq!(revisions(&store, u64::MAX, 10), [5, 4, 3]);
        assert_eq!(revisions(&store, 5, 1), [4]);
        assert_eq!(revisions(&store, 3, 10), [] as [u64; 0]);
        drop(store);
        let small = HistoryBounds {
            changes: 100,
            bytes: 1,
        };
        let store = Embedded::open(&path).unwrap().with_history(small);
        let last = recorded(&mut state, 6, vec![vpc("c", 6)]);
        store.commit(&[last]).unwrap();
        assert_eq!(revisions(&store, u64::MAX, 10), [6]);
        let [record] = &store.history(7, 1).unwrap()[..] else {
            panic!()
        };
        let before = record.edits[0].before.as_ref().unwrap();
        assert_eq!(before.object(), Some(&vpc("c", 5)));
    }

    #[test]
    fn a_file_of_the_format_before_is_brought_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("intent.redb");
        let old = Database::create(&path).unwrap();
        let transaction = old.begin_write().unwrap();
        {
            let mut rows = transaction.open_table(OBJECTS_1).unwrap();
            for object in [vpc("a/b", 1), vpc("c", 2)] {
                let bytes = object.encode();
                rows.insert(&*name(&object.key()), bytes.as_slice())
                    .unwrap();
            }
            let mut numbers = transaction.open_table(NUMBERS).unwrap();
            numbers.insert(FORMAT, 1).unwrap();
            numbers.insert(REVISION, 41).unwrap();
        }
        transaction.commit().unwrap();
        drop(old);
        for _ in 0..2 {
            let store = Embedded::open(&path).unwrap();
            let (revision, state) = store.load().unwrap();
            assert_eq!(revision, 41);
            let objects: Vec<&Object> = state.iter().collect();
            assert_eq!(objects, [&vpc("a/b", 1), &vpc("c", 2)]);
            assert_eq!(state.entry(Kind::Vpc, "c").unwrap().revision, 41);
            assert_eq!(store.oldest().unwrap(), None);
        }
        let store = Embedded::open(&path).unwrap();
        let (_, mut state) = store.load().unwrap();
        let next = recorded(&mut state, 42, vec![vpc("c", 3)]);
        store.commit(&[next]).unwrap();
        assert_eq!(revisions(&store, u64::MAX, 9), [42]);
    }

    #[test]
    fn a_file_is_whole_after_what_operators_do_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("intent.redb");
        let put = |revision, id: &str| Change {
            revision,
            upserts: vec![vpc(id, 1)],
            ..Change::default()
        };
        let store = Embedded::open(&path).unwrap();
        store.commit(&[put(1, "a"), put(2, "b")]).unwrap();
        drop(store);
        let store = Embedded::open(&path).unwrap();
        store.compact().unwrap();
        drop(store);
        let store = Embedded::open(&path).expect("compacted");
        let (_, state) = store.load().unwrap();
        store.replace(7, &state).unwrap();
        drop(store);
        let store = Embedded::open(&path).expect("replaced");
        assert_eq!(store.load().unwrap(), (7, state.clone()));
        let records = store.history(u64::MAX, 10).unwrap();
        let [record] = &records[..] else {
            panic!("{records:?}")
        };
        assert_eq!((record.revision, &*record.made.method), (7, "restore"));
        store.commit(&[put(8, "c")]).unwrap();
        store.compact().unwrap();
        drop(store);
        let store = Embedded::open(&path).expect("used, and compacted");
        assert_eq!(store.load().unwrap().1.len(), 3);
    }

    /// A file as a killed program leaves it, with so many changes: copied while it is open.
    fn left(directory: &Path, changes: u64) -> Vec<u8> {
        let path = directory.join("left.redb");
        let store = Embedded::open(&path).unwrap();
        for revision in 1..=changes {
            let change = Change {
                revision,
                upserts: (0..20)
                    .map(|n| vpc(&format!("v{n}"), revision as u32))
                    .collect(),
                ..Change::default()
            };
            store.commit(&[change]).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap();
        drop(store);
        std::fs::remove_file(&path).unwrap();
        bytes
    }

    /// What a store of these bytes holds: a revision with the state that belongs to it, or a refusal by name.
    fn reading(path: &Path, bytes: &[u8]) -> Option<u64> {
        std::fs::write(path, bytes).unwrap();
        match Embedded::open(path).and_then(|store| store.load()) {
            Ok((0, state)) => {
                assert_eq!(state, State::default());
                Some(0)
            }
            Ok((revision, state)) => {
                assert_eq!(state.iter().count(), 20);
                for object in state.iter() {
                    assert_eq!(object, &vpc(object.id(), revision as u32));
                }
                Some(revision)
            }
            Err(error) => {
                let said = error.to_string();
                assert!(!said.is_empty() && !said.contains('\n'), "{said}");
                None
            }
        }
    }

    #[test]
    fn a_file_that_was_not_closed_holds_what_was_committed_last() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = left(directory.path(), 7);
        assert_eq!(
            reading(&directory.path().join("copy.redb"), &bytes),
            Some(7)
        );
    }

    /// Other bytes anywhere: the last state, or a refusal. Never another state, and never a panic.
    #[test]
    fn a_damaged_file_is_refused_or_whole() {
        let directory = tempfile::tempdir().unwrap();
        let good = left(directory.path(), 7);
        let path = directory.path().join("copy.redb");
        let mut refused = 0;
        for place in (0..good.len()).step_by(good.len() / 60) {
            let mut torn = good.clone();
            torn[place..].fill(0);
            let mut garbled = good.clone();
            let end = (place + 512).min(good.len());
            garbled[place..end]
                .iter_mut()
                .for_each(|byte| *byte ^= 0xa5);
            for bytes in [&good[..place], &torn, &garbled] {
                let read = reading(&path, bytes);
                refused += u32::from(read.is_none());
                // An empty file is a new one.
                assert!(
                    matches!(read, None | Some(6 | 7)) || bytes.is_empty(),
                    "{read:?} at {place}"
                );
            }
        }
        assert!(refused > 60, "{refused}");
    }
}
