//! The last acknowledged state on disk: replaced whole, or not at all.
//!
//! The file: 8 bytes that identify the format, the SHA-256 of what follows, the length of the host's id (4 bytes, big-endian), the id, and
//! a `StoredState` message. It is written under another name, synchronised, renamed over the old one, and the directory synchronised. A write
//! that failed (a full disk) is retried until it succeeds, with a controller or without.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use weft_proto::state::State;
use weft_proto::v1::StoredState;

use super::InForce;
use super::active::ActiveState;

/// How long to wait before what could not be kept is tried again.
const RETRY: Duration = Duration::from_secs(2);

const MARK: &[u8; 8] = b"weftst1\n";
const NAME: &str = "state";
const NEXT: &str = "state.next";

/// A directory in which one state is kept. Clones are of the same directory.
#[derive(Debug, Clone)]
pub(super) struct Keeper {
    directory: PathBuf,
    /// One writes at a time.
    writing: Arc<Mutex<()>>,
    /// Whether what is in force is not on disk.
    owing: Arc<watch::Sender<bool>>,
}

/// Why a kept state is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the file has another format")]
    Format,
    #[error("the file is damaged: its checksum does not match")]
    Damaged,
    #[error("the state belongs to host '{0}'")]
    OtherHost(String),
    #[error("the state's digest does not match the one that was stored with it")]
    Meaning,
}

impl Keeper {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            writing: Arc::default(),
            owing: Arc::new(watch::Sender::new(false)),
        })
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.join(NAME)
    }

    /// Keeps what is in force, if anything is; it survives a crash once this returns. A failure is reported, and made up for by
    /// [`Self::pay_debts`]: what is in force is so all the same.
    pub(super) fn keep_newest(&self, force: &ActiveState) {
        // Held while what is in force is asked, so that nothing older is written over what is newer.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = force.status().in_force else {
            return;
        };
        let (path, revision) = (self.path(), known.revision);
        let kept = self.keep(&force.host, &known);
        let owed = self.owing.send_replace(kept.is_err());
        match kept {
            Err(error) if !owed => {
                tracing::error!(%error, path = %path.display(), revision, "cannot write the state to disk; retrying");
            }
            Ok(()) if owed => {
                tracing::info!(path = %path.display(), revision, "the state is written to disk again");
            }
            _ => {}
        }
    }

    /// Tries what could not be kept again and again. Never ends.
    pub(super) async fn pay_debts(self, force: Arc<ActiveState>) {
        let mut owing = self.owing.subscribe();
        while owing.wait_for(|owing| *owing).await.is_ok() {
            tokio::time::sleep(RETRY).await;
            let (keeper, force) = (self.clone(), Arc::clone(&force));
            // It reports what goes wrong by itself.
            let _ = tokio::task::spawn_blocking(move || keeper.keep_newest(&force)).await;
        }
    }

    fn keep(&self, host: &str, known: &InForce) -> io::Result<()> {
        let next = self.directory.join(NEXT);
        let result = self.replace(&next, host, known);
        if result.is_err() {
            // Half a file is of no use, and takes room.
            let _ = std::fs::remove_file(&next);
        }
        result
    }

    fn replace(&self, next: &Path, host: &str, known: &InForce) -> io::Result<()> {
        let (upserts, deletes) = known.state.delta_to(&known.effective);
        let full = StoredState {
            revision: known.revision,
            digest: known.digest.to_vec(),
            state: Some(known.state.to_objects()),
            upserts: Some(upserts),
            deletes,
            held_back: known.held_back.to_vec(),
        };
        let length = u32::try_from(host.len()).map_err(io::Error::other)?;
        let mut payload = length.to_be_bytes().to_vec();
        payload.extend_from_slice(host.as_bytes());
        full.encode(&mut payload).map_err(io::Error::other)?;

        let mut file = File::create(next)?;
        file.write_all(MARK)?;
        file.write_all(&Sha256::digest(&payload))?;
        file.write_all(&payload)?;
        file.sync_all()?;
        std::fs::rename(next, self.path())?;
        File::open(&self.directory)?.sync_all()
    }

    /// The state kept for this host; nothing when none was kept.
    pub(super) fn load(&self, host: &str) -> Result<Option<InForce>, KeepError> {
        let bytes = match std::fs::read(self.path()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let rest = bytes.strip_prefix(MARK).ok_or(KeepError::Format)?;
        let (checksum, payload) = rest.split_at_checked(32).ok_or(KeepError::Damaged)?;
        if Sha256::digest(payload)[..] != *checksum {
            return Err(KeepError::Damaged);
        }
        let (length, rest) = payload.split_first_chunk().ok_or(KeepError::Format)?;
        let (owner, full) = rest
            .split_at_checked(u32::from_be_bytes(*length) as usize)
            .ok_or(KeepError::Format)?;
        if owner != host.as_bytes() {
            let owner = String::from_utf8_lossy(owner).into_owned();
            return Err(KeepError::OtherHost(owner));
        }
        let full = StoredState::decode(full).map_err(|_| KeepError::Format)?;
        let state =
            State::from_objects(full.state.unwrap_or_default()).map_err(|_| KeepError::Format)?;
        let effective = state
            .patched(full.upserts.unwrap_or_default(), &full.deletes)
            .map_err(|_| KeepError::Format)?;
        let mut known = InForce::new(full.revision, state);
        known.effective = Arc::new(effective);
        known.held_back = full.held_back.into();
        if known.digest[..] == full.digest[..] {
            Ok(Some(known))
        } else {
            Err(KeepError::Meaning)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::state::Object;
    use weft_proto::v1::Vpc;

    fn known(revision: u64) -> InForce {
        let mut state = State::default();
        state.insert(Object::Vpc(Vpc {
            id: "blue".into(),
            vni: 7,
            ..Vpc::default()
        }));
        InForce::new(revision, state)
    }

    #[test]
    fn what_is_kept_last_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let keeper = Keeper::open(&directory.path().join("made")).unwrap();
        assert!(keeper.load("h1").unwrap().is_none());
        for revision in 1..=3 {
            keeper.keep("h1", &known(revision)).unwrap();
        }
        let loaded = keeper.load("h1").unwrap().unwrap();
        assert_eq!(loaded.revision, 3);
        assert_eq!(loaded.state, known(3).state);
        assert!(matches!(keeper.load("h2"), Err(KeepError::OtherHost(h)) if h == "h1"));
    }

    #[test]
    fn a_file_damaged_anywhere_is_not_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let keeper = Keeper::open(directory.path()).unwrap();
        keeper.keep("h1", &known(1)).unwrap();
        let good = std::fs::read(keeper.path()).unwrap();
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 0x10;
            std::fs::write(keeper.path(), &bad).unwrap();
            assert!(keeper.load("h1").is_err(), "byte {i}");
            std::fs::write(keeper.path(), &good[..i]).unwrap();
            assert!(keeper.load("h1").is_err(), "cut at {i}");
        }
    }
}
