//! Persistent storage of the intent. A change is durable when `commit` returns successfully.

mod embedded;

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use weft_proto::state::{Key, Object, State};

pub use embedded::{Embedded, is_guarded};

use crate::config::StoreConfig;

/// One accepted change, as the step to a revision.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// The revision that the change leads to.
    pub revision: u64,
    /// Objects added or replaced.
    pub upserts: Vec<Object>,
    /// Objects deleted.
    pub deletes: Vec<Key>,
}

/// Keeps the intent. Calls block; `commit` is never called twice at a time.
pub trait Store: Send + Sync + 'static {
    /// The revision and the objects of the last commit; revision 0 and nothing when there was none.
    ///
    /// # Errors
    /// What is stored cannot be read or understood.
    fn load(&self) -> Result<(u64, State), StoreError>;

    /// Stores changes that follow each other, all of them or none, and returns when they will survive a crash.
    ///
    /// # Errors
    /// They could not be stored.
    fn commit(&self, changes: &[Change]) -> Result<(), StoreError>;
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
    #[error("cannot decode object '{0}' of the database")]
    Content(String),
}

/// Checks that the store can be there, and makes nothing: the file can be read and written, or it is missing and [`open`] will make it. A controller that runs may have the file open.
///
/// # Errors
/// The path is not usable.
pub fn check(config: &StoreConfig) -> Result<(), StoreError> {
    let StoreConfig::Embedded { path } = config;
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
pub fn open(config: &StoreConfig) -> Result<Box<dyn Store>, StoreError> {
    check(config)?;
    match config {
        StoreConfig::Embedded { path } => {
            make_directory_of(path).map_err(|reason| StoreError::Path {
                path: path.clone(),
                reason,
            })?;
            Ok(Box::new(Embedded::open(path)?))
        }
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
