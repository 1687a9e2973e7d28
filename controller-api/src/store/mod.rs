//! Persistent storage of the intent. A change is durable when `commit` returns successfully.

mod embedded;
pub mod etcd;
mod record;

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use weft_proto::state::{Key, Object, State};

pub use embedded::{Embedded, is_guarded};
pub use etcd::Etcd;
pub(crate) use record::now_ms;
pub use record::{Edit, Form, Made, Record};

use crate::config::StoreConfig;

/// The most bytes that are kept of one change; of a larger one only the keys are.
pub const MAX_RECORD: usize = 4 << 20;

/// How much of the history is kept; the oldest changes go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryBounds {
    /// The most changes.
    pub changes: u64,
    /// The most bytes of all of them. The newest change is kept whatever it takes.
    pub bytes: u64,
}

impl Default for HistoryBounds {
    fn default() -> Self {
        Self {
            changes: 10_000,
            bytes: 256 << 20,
        }
    }
}

/// One accepted change, as the step to a revision.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// The revision that the change leads to.
    pub revision: u64,
    /// Objects added or replaced.
    pub upserts: Vec<Object>,
    /// Objects deleted.
    pub deletes: Vec<Key>,
    /// What is kept of it: by whom it was made, and each object before and after.
    pub record: Record,
}

/// Keeps the intent. Calls block; `commit` is never called twice at a time.
pub trait Store: Send + Sync + 'static {
    /// The revision and the objects of the last commit, each with the revision at which it became so; revision 0 and nothing when there was none.
    ///
    /// # Errors
    /// What is stored cannot be read or understood.
    fn load(&self) -> Result<(u64, State), StoreError>;

    /// Stores changes that follow each other with their records, all of them or none, and returns when they will survive a crash.
    ///
    /// # Errors
    /// They could not be stored.
    fn commit(&self, changes: &[Change]) -> Result<(), StoreError>;

    /// The newest revision that is stored, if another controller may have stored it; none when only this one stores.
    ///
    /// # Errors
    /// The store cannot be asked.
    fn newest(&self) -> Result<Option<u64>, StoreError> {
        Ok(None)
    }

    /// Whether nothing can be stored by another controller; not, when there is one that may have taken over.
    fn is_sure(&self) -> bool {
        true
    }

    /// The records that are kept of changes before a revision, the newest first: at most so many, and not all of them when they are large. None when
    /// there are none any more.
    ///
    /// # Errors
    /// They cannot be read or understood.
    fn history(&self, before: u64, limit: usize) -> Result<Vec<Record>, StoreError>;

    /// The revision of the oldest change of which a record is kept; none when there is no record.
    ///
    /// # Errors
    /// The database cannot be read.
    fn oldest(&self) -> Result<Option<u64>, StoreError>;
}

/// What is done to a store that no controller uses, by an operator.
pub trait Maintenance: Store {
    /// Replaces all that is stored, whole or not at all. The history ends there.
    ///
    /// # Errors
    /// A controller uses the store, or it cannot be stored.
    fn replace(&self, revision: u64, state: &State) -> Result<(), StoreError>;

    /// Gives back the room of what is not stored any more. A store in etcd may be in use.
    ///
    /// # Errors
    /// The store does not do that.
    fn compact(&self) -> Result<(), StoreError>;

    /// Fails when a controller uses the store.
    ///
    /// # Errors
    /// One does, or the store does not answer.
    fn check_unused(&self) -> Result<(), StoreError>;
}

/// Why the intent cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum StoreError {
    #[error("cannot open {path}: {reason}")]
    Open {
        path: PathBuf,
        reason: Box<redb::DatabaseError>,
    },
    #[error("store.path = {path}: {reason}")]
    Path {
        path: PathBuf,
        reason: std::io::Error,
    },
    #[error("the database failed: {0}")]
    Database(Box<redb::Error>),
    #[error("{0} is damaged: restore it from a copy, or move it away and apply the intent again")]
    Damaged(PathBuf),
    #[error("the database could not be reopened after a disk error")]
    Closed,
    #[error(
        "the database is at revision {0}: another program has written to it, or a change was stored in spite of an error; restart the controller"
    )]
    Overtaken(u64),
    #[error("the database has format {0}; this program reads format {1}")]
    Format(u64, u64),
    #[error("cannot decode '{0}' of the database")]
    Content(String),
    #[error("etcd: {0}")]
    Etcd(String),
    #[error("another controller writes now; whether this change is stored is not known")]
    Deposed,
    #[error("another controller writes now; this change is not stored")]
    NotStored,
    #[error("the controller at {0} uses the store: stop all controllers first")]
    InUse(String),
    #[error("this controller has not read revision {0} yet, which another one has stored")]
    Behind(u64),
    #[error("etcd has been compacted beyond what was being read")]
    Compacted,
    #[error("cannot decode the record of revision {0}")]
    Record(u64),
}

/// Checks that the store can be there, and makes nothing: the file can be read and written, or it is missing and [`open`] will make it. A controller that runs may have the file open.
///
/// # Errors
/// The path is not usable.
pub fn check(config: &StoreConfig) -> Result<(), StoreError> {
    let path = match config {
        StoreConfig::Embedded { path } => path,
        StoreConfig::Etcd(settings) => return settings.open().map(drop),
    };
    let unusable = |reason| StoreError::Path {
        path: path.clone(),
        reason,
    };
    // An error where a part of the path is no directory.
    if path.try_exists().map_err(unusable)? {
        let opened = File::options().read(true).write(true).open(path);
        return opened.map(drop).map_err(unusable);
    }
    Ok(())
}

/// Opens the store that the configuration names, and makes it when there is none.
///
/// # Errors
/// It cannot be opened.
pub fn open(
    config: &StoreConfig,
    history: HistoryBounds,
) -> Result<Box<dyn Maintenance>, StoreError> {
    check(config)?;
    match config {
        StoreConfig::Embedded { path } => {
            make_directory_of(path).map_err(|reason| StoreError::Path {
                path: path.clone(),
                reason,
            })?;
            Ok(Box::new(Embedded::open(path)?.with_history(history)))
        }
        StoreConfig::Etcd(settings) => Ok(Box::new(settings.open()?.with_history(history))),
    }
}

/// Makes the directory of the database where it is missing, for the controller's user alone: it holds the intent of all tenants.
fn make_directory_of(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory),
        _ => Ok(()),
    }
}
