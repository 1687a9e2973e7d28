//! The embedded store: one database file, one row per object, one transaction per change.

use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use weft_proto::state::{Key, Kind, Object, State};

use super::{Change, Store, StoreError};

/// "KIND/ID" to the object's wire form; an id may hold slashes, a kind does not.
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const REVISION: &str = "revision";
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 1;

/// A database file.
#[derive(Debug)]
pub struct Embedded {
    database: Database,
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

impl Embedded {
    /// Opens or makes the database file.
    ///
    /// # Errors
    /// The file is in use, is no database, or has another format.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::create(path).map_err(|reason| StoreError::Open {
            path: path.to_owned(),
            reason: Box::new(reason),
        })?;
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
        Ok(Self { database })
    }
}

impl Store for Embedded {
    fn load(&self) -> Result<(u64, State), StoreError> {
        let transaction = self.database.begin_read()?;
        let numbers = transaction.open_table(NUMBERS)?;
        let revision = numbers.get(REVISION)?.map_or(0, |value| value.value());
        let mut state = State::default();
        for row in transaction.open_table(OBJECTS)?.iter()? {
            let (name, bytes) = row?;
            state.insert(read_object(name.value(), bytes.value())?);
        }
        Ok((revision, state))
    }

    fn commit(&self, change: &Change) -> Result<(), StoreError> {
        // The default durability: the commit returns after the file is synchronised.
        let transaction = self.database.begin_write()?;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            for key in &change.deletes {
                objects.remove(name(key).as_str())?;
            }
            for object in &change.upserts {
                objects.insert(name(&object.key()).as_str(), object.encode().as_slice())?;
            }
            let mut numbers = transaction.open_table(NUMBERS)?;
            numbers.insert(REVISION, change.revision)?;
        }
        transaction.commit()?;
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
        Object::Vpc(Vpc { id: id.into(), vni })
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
        store.commit(&first).unwrap();
        let second = Change {
            revision: 2,
            upserts: vec![vpc("c", 3)],
            deletes: vec![vpc("a/b", 1).key()],
        };
        store.commit(&second).unwrap();
        drop(store);
        let (revision, state) = Embedded::open(&path).unwrap().load().unwrap();
        assert_eq!(revision, 2);
        assert_eq!(state.iter().collect::<Vec<_>>(), [&vpc("c", 3)]);
    }
}
