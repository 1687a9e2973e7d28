//! What an operator does to a store: back it up into a file, restore it from one, move it to another store.
//!
//! A backup begins with eight letters that tell its format; then come the revision and the length of the rest (64 bits each, the highest first),
//! the SHA-256 digest of all but itself, and the objects as one `weft.v1.StoredChange`. A file of which a byte is missing or another is refused.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use prost::Message;
use sha2::{Digest, Sha256};
use weft_proto::state::{Object, State};
use weft_proto::v1::StoredChange;

use crate::store::etcd::wire::{from_wire, to_wire};
use crate::store::{Change, Maintenance, StoreError};

/// What a file of this format begins with.
const MAGIC: &[u8; 8] = b"WEFTBAK1";
/// Bytes before the objects.
const HEAD: usize = 8 + 8 + 8 + 32;
/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 30;

/// Why a store is not backed up, restored or moved.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum BackupError {
    #[error("cannot write {path}: {reason}")]
    Write {
        path: PathBuf,
        reason: std::io::Error,
    },
    #[error("cannot read {path}: {reason}")]
    Read {
        path: PathBuf,
        reason: std::io::Error,
    },
    #[error("{0} is not a backup of a weft controller, or of a newer format")]
    Unknown(PathBuf),
    #[error("{0} is damaged or not whole: nothing of it is restored")]
    Damaged(PathBuf),
    #[error(
        "the store is at revision {revision} with {objects} objects: use --force to replace them"
    )]
    NotEmpty { revision: u64, objects: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The intent as of one revision.
#[derive(Debug, Clone, PartialEq)]
pub struct Backup {
    /// The revision.
    pub revision: u64,
    /// The objects.
    pub state: State,
}

impl Backup {
    /// What a store holds.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(store: &dyn Maintenance) -> Result<Self, BackupError> {
        let (revision, state) = store.load()?;
        Ok(Self { revision, state })
    }

    /// Writes a file that is not there yet, for its user alone, and returns when it will survive a crash.
    ///
    /// # Errors
    /// The file is there, or cannot be written; then there is none.
    pub fn write(&self, path: &Path) -> Result<(), BackupError> {
        let failed = |reason| BackupError::Write {
            path: path.to_owned(),
            reason,
        };
        // Under another name until it is whole.
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let written = self.write_as(&partial, path);
        let _ = std::fs::remove_file(&partial);
        written.map_err(failed)
    }

    fn write_as(&self, partial: &Path, path: &Path) -> std::io::Result<()> {
        // What a run that was cut off has left may be the file itself by another name.
        let _ = std::fs::remove_file(partial);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(partial)?;
        file.write_all(&self.encode())?;
        file.sync_all()?;
        // Fails when there is a file of that name.
        std::fs::hard_link(partial, path)?;
        let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
        std::fs::File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is no whole backup.
    pub fn read(path: &Path) -> Result<Self, BackupError> {
        let failed = |reason| BackupError::Read {
            path: path.to_owned(),
            reason,
        };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if !bytes.starts_with(MAGIC) {
            return Err(BackupError::Unknown(path.to_owned()));
        }
        Self::decode(&bytes).ok_or_else(|| BackupError::Damaged(path.to_owned()))
    }

    /// Replaces what a store holds. The revision is the backup's, or the store's next one if that is higher, so that none is used twice.
    /// Returns the revision.
    ///
    /// # Errors
    /// The store is not empty, unless that is allowed; a controller uses it; or it cannot be stored.
    pub fn restore(&self, store: &dyn Maintenance, force: bool) -> Result<u64, BackupError> {
        let (present, state) = store.load()?;
        if !force && (present != 0 || !state.is_empty()) {
            return Err(BackupError::NotEmpty {
                revision: present,
                objects: state.len(),
            });
        }
        let revision = self.revision.max(present.saturating_add(1));
        store.replace(revision, &self.state)?;
        Ok(revision)
    }

    fn encode(&self) -> Vec<u8> {
        let whole = to_wire(&Change {
            revision: self.revision,
            upserts: self.state.iter().cloned().collect(),
            ..Change::default()
        });
        let body = whole.encode_to_vec();
        let mut head = MAGIC.to_vec();
        head.extend(self.revision.to_be_bytes());
        head.extend((body.len() as u64).to_be_bytes());
        let digest = Sha256::new().chain_update(&head).chain_update(&body);
        head.extend(digest.finalize());
        head.extend(body);
        head
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, body) = bytes.split_at_checked(HEAD)?;
        let (named, digest) = head.split_at_checked(HEAD - 32)?;
        let number = |at: usize| {
            let bytes = named.get(at..at + 8)?.try_into().ok()?;
            Some(u64::from_be_bytes(bytes))
        };
        let (revision, length) = (number(8)?, number(16)?);
        let own = Sha256::new().chain_update(named).chain_update(body);
        if length != body.len() as u64 || own.finalize()[..] != *digest {
            return None;
        }
        let change = from_wire(StoredChange::decode(body).ok()?)?;
        let mut state = State::default();
        let mut twice = change
            .upserts
            .into_iter()
            .filter_map(|it: Object| state.insert(it));
        if change.revision != revision || twice.next().is_some() {
            return None;
        }
        drop(twice);
        Some(Self { revision, state })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_proto::v1::Vpc;

    fn backup() -> Backup {
        let mut state = State::default();
        for n in 0..20 {
            state.insert(Object::Vpc(Vpc {
                id: format!("v{n}"),
                vni: n,
                ..Vpc::default()
            }));
        }
        Backup { revision: 7, state }
    }

    #[test]
    fn a_file_is_read_as_it_was_written_and_never_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("b");
        backup().write(&path).unwrap();
        assert_eq!(Backup::read(&path).unwrap(), backup());
        assert!(backup().write(&path).is_err());
    }

    /// A byte less, more or other, anywhere.
    #[test]
    fn a_damaged_file_is_refused_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("b");
        let good = backup().encode();
        let mut bad: Vec<Vec<u8>> = (0..good.len()).map(|end| good[..end].to_vec()).collect();
        for at in 0..good.len() {
            let mut other = good.clone();
            other[at] ^= 0x10;
            bad.push(other);
        }
        bad.push([&good[..], b"x"].concat());
        for bytes in bad {
            std::fs::write(&path, bytes).unwrap();
            let refused = Backup::read(&path).unwrap_err();
            assert!(matches!(
                refused,
                BackupError::Unknown(_) | BackupError::Damaged(_)
            ));
        }
    }
}
