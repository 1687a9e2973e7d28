//! The last acknowledged state on disk: a whole state, replaced whole or not at all, and the steps that came after it ([`log`]).
//!
//! The file of the state: 8 bytes that identify the format, the SHA-256 of what follows, the length of the host's id (4 bytes, big-endian), the id, and
//! a `StoredState` message. It is written under another name, synchronised, renamed over the old one, and the directory synchronised. A write
//! that failed (a full disk) is retried until it succeeds, with a controller or without. Once the steps take more room than the state, it is
//! written anew.

mod log;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use weft_proto::state::State;
use weft_proto::v1::{StoredState, StoredStep};

use self::log::Log;
use super::InForce;
use super::active::ActiveState;

/// How long to wait before what could not be kept is tried again.
const RETRY: Duration = Duration::from_secs(2);

const MARK: &[u8; 8] = b"weftst1\n";
const NAME: &str = "state";
const NEXT: &str = "state.next";
const LOG: &str = "state.log";
/// Steps may take so many bytes, however small the state is.
const LEAST_LOG: u64 = 1 << 20;

/// A directory in which one state is kept. Clones are of the same directory.
#[derive(Debug, Clone)]
pub(super) struct Keeper {
    directory: PathBuf,
    /// What is on disk, if this process has written it; one writes at a time.
    kept: Arc<Mutex<Option<Kept>>>,
    /// Whether what is in force is not on disk.
    owing: Arc<watch::Sender<bool>>,
}

/// What is on disk.
#[derive(Debug)]
struct Kept {
    /// The newest state, as it was received.
    state: Arc<State>,
    /// Bytes of the whole one.
    whole: u64,
    log: Log,
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
            kept: Arc::default(),
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
        let mut on_disk = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = force.status().in_force else {
            return;
        };
        let (path, revision) = (self.path(), known.revision);
        let kept = self.keep(&mut on_disk, &force.host, &known);
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

    /// Appends the step to what is in force, or writes it whole.
    fn keep(&self, on_disk: &mut Option<Kept>, host: &str, known: &InForce) -> io::Result<()> {
        // Until it is known that all went well, nothing may be appended.
        if let Some(mut kept) = on_disk.take()
            && kept.log.length() <= kept.whole.max(LEAST_LOG)
            && kept.log.append(&step(&kept.state, known)).is_ok()
        {
            kept.state = Arc::clone(&known.state);
            *on_disk = Some(kept);
            return Ok(());
        }
        let next = self.directory.join(NEXT);
        match self.replace(&next, host, known) {
            Ok(kept) => {
                *on_disk = kept;
                Ok(())
            }
            Err(error) => {
                // Half a file is of no use, and takes room.
                let _ = std::fs::remove_file(&next);
                Err(error)
            }
        }
    }

    /// Writes a state whole; what steps can be appended to, if that can be made.
    fn replace(&self, next: &Path, host: &str, known: &InForce) -> io::Result<Option<Kept>> {
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

        let checksum: [u8; 32] = Sha256::digest(&payload).into();
        let mut file = File::create(next)?;
        file.write_all(MARK)?;
        file.write_all(&checksum)?;
        file.write_all(&payload)?;
        file.sync_all()?;
        std::fs::rename(next, self.path())?;
        // Only then are the steps from the state before void.
        let directory = File::open(&self.directory)?;
        directory.sync_all()?;
        let log = Log::create(&self.directory.join(LOG), &checksum);
        let log = log.and_then(|log| directory.sync_all().map(|()| log));
        let whole = payload.len() as u64;
        Ok(log.ok().map(|log| Kept {
            state: Arc::clone(&known.state),
            whole,
            log,
        }))
    }

    /// The state kept for this host; nothing when none was kept.
    pub(super) fn load(&self, host: &str) -> Result<Option<InForce>, KeepError> {
        let bytes = match std::fs::read(self.path()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let rest = bytes.strip_prefix(MARK).ok_or(KeepError::Format)?;
        let (checksum, payload) = rest.split_first_chunk::<32>().ok_or(KeepError::Damaged)?;
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
        let state = check(state, &full.digest)?;
        let (steps, is_torn) = log::read(&self.directory.join(LOG), checksum)?;
        if is_torn {
            tracing::info!(
                "the last change before the stop was not stored whole, and was not acknowledged"
            );
        }
        let mut last = StoredStep {
            revision: full.revision,
            effective_upserts: full.upserts,
            effective_deletes: full.deletes,
            held_back: full.held_back,
            ..StoredStep::default()
        };
        let mut known = state;
        for step in steps {
            let upserts = step.upserts.clone().unwrap_or_default();
            let next = known.patched(upserts, &step.deletes);
            known = check(next.map_err(|_| KeepError::Format)?, &step.digest)?;
            last = step;
        }
        let effective = known
            .patched(
                last.effective_upserts.unwrap_or_default(),
                &last.effective_deletes,
            )
            .map_err(|_| KeepError::Format)?;
        let mut known = InForce::new(last.revision, known);
        known.effective = Arc::new(effective);
        known.held_back = last.held_back.into();
        Ok(Some(known))
    }
}

/// The step from a state to what is in force.
fn step(from: &State, known: &InForce) -> StoredStep {
    let (upserts, deletes) = from.delta_to(&known.state);
    let (effective_upserts, effective_deletes) = known.state.delta_to(&known.effective);
    StoredStep {
        revision: known.revision,
        digest: known.digest.to_vec(),
        upserts: Some(upserts),
        deletes,
        effective_upserts: Some(effective_upserts),
        effective_deletes,
        held_back: known.held_back.to_vec(),
    }
}

/// The state, if it has that digest.
fn check(state: State, digest: &[u8]) -> Result<State, KeepError> {
    if state.digest()[..] == *digest {
        Ok(state)
    } else {
        Err(KeepError::Meaning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::state::Object;
    use weft_proto::v1::Vpc;

    /// A state of which each revision has other objects.
    fn known(revision: u64) -> InForce {
        let mut state = State::default();
        for n in 0..revision % 5 + 1 {
            state.insert(Object::Vpc(Vpc {
                id: format!("blue-{n}"),
                vni: (revision + n) as u32,
                ..Vpc::default()
            }));
        }
        InForce::new(revision, state)
    }

    /// What a directory holds after so many changes, each kept as a host does.
    fn after(directory: &Path, revisions: std::ops::RangeInclusive<u64>) -> Keeper {
        let keeper = Keeper::open(directory).unwrap();
        let mut on_disk = None;
        for revision in revisions {
            keeper.keep(&mut on_disk, "h1", &known(revision)).unwrap();
        }
        keeper
    }

    fn loaded(keeper: &Keeper) -> Result<u64, KeepError> {
        let loaded = keeper.load("h1")?.unwrap();
        assert_eq!(loaded.state, known(loaded.revision).state);
        assert_eq!(loaded.effective, loaded.state);
        Ok(loaded.revision)
    }

    #[test]
    fn what_is_kept_last_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made");
        assert!(Keeper::open(&path).unwrap().load("h1").unwrap().is_none());
        for last in [1, 3, 20] {
            // A process writes the state whole at first, and then appends.
            assert_eq!(loaded(&after(&path, last..=last + 2)).unwrap(), last + 2);
        }
        let keeper = after(&path, 4..=4);
        assert!(matches!(keeper.load("h2"), Err(KeepError::OtherHost(h)) if h == "h1"));
    }

    #[test]
    fn steps_keep_what_is_held_back() {
        let directory = tempfile::tempdir().unwrap();
        let keeper = after(directory.path(), 1..=1);
        let mut on_disk = None;
        keeper.keep(&mut on_disk, "h1", &known(2)).unwrap();
        let mut next = known(3);
        next.effective = Arc::clone(&known(2).effective);
        next.held_back = vec![weft_proto::v1::HeldBack {
            in_force_revision: 2,
            ..Default::default()
        }]
        .into();
        keeper.keep(&mut on_disk, "h1", &next).unwrap();
        assert!(on_disk.unwrap().log.length() > 40, "it is a step");
        let loaded = keeper.load("h1").unwrap().unwrap();
        assert_eq!((loaded.revision, &loaded.state), (3, &next.state));
        assert_eq!(loaded.effective, next.effective);
        assert_eq!(loaded.held_back, next.held_back);
    }

    #[test]
    fn steps_do_not_outgrow_the_state() {
        let directory = tempfile::tempdir().unwrap();
        let keeper = Keeper::open(directory.path()).unwrap();
        let size = |name: &str| {
            let file = std::fs::metadata(directory.path().join(name));
            file.map_or(0, |file| file.len())
        };
        let (mut on_disk, mut most) = (None, 0);
        let (mut grown, mut begun_anew) = (0, 0);
        let mut large = known(1);
        for revision in 1..=60 {
            let mut state = State::clone(&large.state);
            state.insert(Object::Vpc(Vpc {
                id: "large".into(),
                vni: 1,
                tenant: "x".repeat(100_000 + revision as usize),
                ..Vpc::default()
            }));
            large = InForce::new(revision, state);
            keeper.keep(&mut on_disk, "h1", &large).unwrap();
            begun_anew += u32::from(size(LOG) < grown);
            grown = size(LOG);
            most = most.max(grown);
        }
        assert!(
            most < LEAST_LOG + 200_000 && begun_anew > 3,
            "{most}, {begun_anew}"
        );
        assert_eq!(keeper.load("h1").unwrap().unwrap().state, large.state);
    }

    /// A crash may leave any part of what was written last.
    #[test]
    fn after_a_crash_at_any_byte_an_acknowledged_state_is_there_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LOG);
        let keeper = after(directory.path(), 1..=6);
        let before = std::fs::read(&path).unwrap();
        let keeper_of_seven = after(directory.path(), 1..=7);
        let good = std::fs::read(&path).unwrap();
        assert_eq!(good[..before.len()], before);
        assert_eq!(loaded(&keeper_of_seven).unwrap(), 7);
        for cut in before.len()..good.len() {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert_eq!(loaded(&keeper).unwrap(), 6, "cut at {cut}");
            let mut blank = good.clone();
            blank[cut..].fill(0);
            std::fs::write(&path, &blank).unwrap();
            let is_whole = blank == good;
            assert_eq!(
                loaded(&keeper).unwrap(),
                6 + u64::from(is_whole),
                "blank from {cut}"
            );
        }
        // A page of the last step may be there without the one before it.
        let mut late = good.clone();
        late[before.len()..before.len() + 60].fill(0);
        std::fs::write(&path, &late).unwrap();
        assert_eq!(loaded(&keeper).unwrap(), 6);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(loaded(&keeper).unwrap(), 1, "the whole state");
    }

    #[test]
    fn a_file_damaged_anywhere_gives_no_other_state() {
        let directory = tempfile::tempdir().unwrap();
        let keeper = after(directory.path(), 1..=4);
        let (state, log) = (keeper.path(), directory.path().join(LOG));
        let good = [&state, &log].map(|path| std::fs::read(path).unwrap());
        for (path, good) in [&state, &log].into_iter().zip(&good) {
            for i in 0..good.len() {
                let mut bad = good.clone();
                bad[i] ^= 0x10;
                std::fs::write(path, &bad).unwrap();
                match loaded(&keeper) {
                    Err(_) => {}
                    Ok(revision) => assert!(path == &log && revision < 4, "byte {i}: {revision}"),
                }
                std::fs::write(path, &good[..i]).unwrap();
                match loaded(&keeper) {
                    Err(_) => {}
                    Ok(revision) => assert!(path == &log && revision < 4, "cut at {i}"),
                }
            }
            std::fs::write(path, good).unwrap();
        }
        assert_eq!(loaded(&keeper).unwrap(), 4);
    }
}
