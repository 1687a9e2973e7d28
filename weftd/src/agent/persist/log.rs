//! Steps from a stored state to later ones, appended to a file beside it, so that a change costs what it changes.
//!
//! The file: 8 bytes that identify the format, the checksum of the state that it goes on from, and for each step its length (4 bytes, big-endian), its
//! SHA-256, and a `StoredStep` message. One that goes on from another state than the stored one is void. The last step may be torn, by a crash
//! before it was acknowledged; then it is not there.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use prost::Message;
use sha2::{Digest, Sha256};
use weft_proto::v1::StoredStep;

use super::KeepError;

const MARK: &[u8; 8] = b"weftlog\n";
/// Of a step, before its message.
const HEAD: usize = 4 + 32;

/// A file that steps are appended to.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    /// Bytes in it.
    length: u64,
}

impl Log {
    /// Makes an empty one for a state with that checksum.
    pub(super) fn create(path: &Path, checksum: &[u8; 32]) -> io::Result<Self> {
        let mut file = File::create(path)?;
        file.write_all(MARK)?;
        file.write_all(checksum)?;
        let length = (MARK.len() + checksum.len()) as u64;
        Ok(Self { file, length })
    }

    /// Bytes in it.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Adds a step; it survives a crash once this returns. After an error it is of no more use.
    pub(super) fn append(&mut self, step: &StoredStep) -> io::Result<()> {
        let message = step.encode_to_vec();
        let length = u32::try_from(message.len()).map_err(io::Error::other)?;
        let mut record = Vec::with_capacity(HEAD + message.len());
        record.extend_from_slice(&length.to_be_bytes());
        record.extend_from_slice(&Sha256::digest(&message));
        record.extend_from_slice(&message);
        self.file.write_all(&record)?;
        self.file.sync_data()?;
        self.length += record.len() as u64;
        Ok(())
    }
}

/// Whether a checksum is one that was never written.
fn is_blank(sum: &[u8; 32]) -> bool {
    sum.iter().all(|byte| *byte == 0)
}

/// The steps that go on from the state with that checksum, and whether a torn one follows them.
///
/// # Errors
/// The file cannot be read; or a whole step is damaged.
pub(super) fn read(path: &Path, checksum: &[u8; 32]) -> Result<(Vec<StoredStep>, bool), KeepError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), false)),
        Err(error) => return Err(error.into()),
    };
    let of_this = bytes
        .strip_prefix(MARK)
        .and_then(|rest| rest.strip_prefix(checksum));
    let Some(mut rest) = of_this else {
        return Ok((Vec::new(), false));
    };
    let mut steps = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = u32::from_be_bytes(*length) as usize;
        let message = after.split_first_chunk::<32>();
        let message = message.and_then(|(sum, after)| Some((sum, after.split_at_checked(length)?)));
        let Some((sum, (message, after))) = message else {
            break;
        };
        if Sha256::digest(message)[..] != *sum {
            // The file may have grown before all bytes of the last one were written.
            if after.iter().all(|byte| *byte == 0) || is_blank(sum) {
                break;
            }
            return Err(KeepError::Damaged);
        }
        steps.push(StoredStep::decode(message).map_err(|_| KeepError::Format)?);
        rest = after;
    }
    Ok((steps, !rest.is_empty()))
}
