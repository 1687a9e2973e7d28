//! The embedded store: one database file, one row per object, one transaction for the changes that wait.

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
};
use weft_proto::state::{Key, Kind, Object, State};

use super::{Change, Maintenance, Store, StoreError};

/// "KIND/ID" to the object's wire form; an id may hold slashes, a kind does not.
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const REVISION: &str = "revision";
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 1;

/// A database file.
#[derive(Debug)]
pub struct Embedded {
    path: PathBuf,
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
            database: Mutex::new(Some(open(path)?)),
        })
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
    {
        let mut numbers = transaction.open_table(NUMBERS)?;
        let format = numbers.get(FORMAT)?.map(|value| value.value());
        match format {
            None => drop(numbers.insert(FORMAT, FORMAT_VERSION)?),
            Some(FORMAT_VERSION) => {}
            Some(other) => return Err(StoreError::Format(other, FORMAT_VERSION)),
        }
    }
    transaction.commit()?;
    Ok(database)
}

fn revision(database: &Database) -> Result<u64, StoreError> {
    let numbers = database.begin_read()?.open_table(NUMBERS)?;
    Ok(numbers.get(REVISION)?.map_or(0, |value| value.value()))
}

fn write(database: &Database, changes: &[Change]) -> Result<(), StoreError> {
    // The default durability: the commit returns after the file is synchronised.
    let transaction = database.begin_write()?;
    {
        let mut objects = transaction.open_table(OBJECTS)?;
        for change in changes {
            for key in &change.deletes {
                objects.remove(name(key).as_str())?;
            }
            for object in &change.upserts {
                objects.insert(name(&object.key()).as_str(), object.encode().as_slice())?;
            }
        }
        if let Some(last) = changes.last() {
            let mut numbers = transaction.open_table(NUMBERS)?;
            numbers.insert(REVISION, last.revision)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

impl Store for Embedded {
    fn load(&self) -> Result<(u64, State), StoreError> {
        let slot = self.database();
        let database = slot.as_ref().ok_or(StoreError::Closed)?;
        let revision = revision(database)?;
        let mut state = State::default();
        for row in database.begin_read()?.open_table(OBJECTS)?.iter()? {
            let (name, bytes) = row?;
            state.insert(read_object(name.value(), bytes.value())?);
        }
        Ok((revision, state))
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
        let Err(error) = write(&database, changes) else {
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
}

impl Maintenance for Embedded {
    fn replace(&self, revision: u64, state: &State) -> Result<(), StoreError> {
        let slot = self.database();
        let database = slot.as_ref().ok_or(StoreError::Closed)?;
        let transaction = database.begin_write()?;
        transaction.delete_table(OBJECTS)?;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            for object in state.iter() {
                objects.insert(name(&object.key()).as_str(), object.encode().as_slice())?;
            }
            let mut numbers = transaction.open_table(NUMBERS)?;
            numbers.insert(REVISION, revision)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn compact(&self) -> Result<(), StoreError> {
        let mut slot = self.database();
        let database = slot.as_mut().ok_or(StoreError::Closed)?;
        // Each pass moves what the last one made room for.
        while database.compact().map_err(redb::Error::from)? {}
        Ok(())
    }

    fn check_unused(&self) -> Result<(), StoreError> {
        // Else it could not have been opened.
        Ok(())
    }
}

fn name(key: &Key) -> String {
    format!("{}/{}", key.kind.name(), key.id)
}

fn read_object(name: &str, bytes: &[u8]) -> Result<Object, StoreError> {
    let not_understood = || StoreError::Content(name.to_owned());
    let (kind, id) = name.split_once('/').ok_or_else(not_understood)?;
    let kind = Kind::from_name(kind).ok_or_else(not_understood)?;
    let object = Object::decode(kind, bytes).map_err(|_| not_understood())?;
    if object.id() == id {
        Ok(object)
    } else {
        Err(not_understood())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            deletes: vec![],
        };
        store.commit(&[first]).unwrap();
        let second = Change {
            revision: 2,
            upserts: vec![vpc("c", 3)],
            deletes: vec![vpc("a/b", 1).key()],
        };
        store.commit(&[second]).unwrap();
        drop(store);
        let (revision, state) = Embedded::open(&path).unwrap().load().unwrap();
        assert_eq!(revision, 2);
        assert_eq!(state.iter().collect::<Vec<_>>(), [&vpc("c", 3)]);
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
                deletes: vec![],
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
