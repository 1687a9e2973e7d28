//! Changes and values as they are stored: as messages of the contract, cut into parts where they are longer than a request of etcd can be.

use prost::Message;
use weft_proto::state::{Key, collect, explode};
use weft_proto::v1::{StoredChange, StoredChanges, StoredPart};

use crate::store::{Change, MAX_RECORD, Record, StoreError};

/// The most bytes in one part: etcd takes requests of 1.5 MiB.
pub(super) const PART: usize = 512 << 10;

/// Changes as one value.
pub(super) fn encode(changes: &[Change]) -> Vec<u8> {
    let changes = changes.iter().map(to_wire).collect();
    StoredChanges { changes }.encode_to_vec()
}

/// The changes in such a value.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Change>, StoreError> {
    let damaged = || StoreError::Content("log".to_owned());
    let stored = StoredChanges::decode(bytes).map_err(|_| damaged())?;
    stored
        .changes
        .into_iter()
        .map(|change| from_wire(change).ok_or_else(damaged))
        .collect()
}

pub(crate) fn to_wire(change: &Change) -> StoredChange {
    StoredChange {
        revision: change.revision,
        upserts: Some(collect(change.upserts.iter().cloned())),
        deletes: change.deletes.iter().map(Key::to_wire).collect(),
        record: change.record.encode(MAX_RECORD),
    }
}

pub(crate) fn from_wire(change: StoredChange) -> Option<Change> {
    let deletes = change.deletes.iter().map(Key::from_wire);
    Some(Change {
        revision: change.revision,
        deletes: deletes.collect::<Result<_, _>>().ok()?,
        upserts: explode(change.upserts.unwrap_or_default()).collect(),
        record: Record::decode(&change.record)?,
    })
}

/// A value in as many parts as it needs, one at least.
pub(super) fn cut(revision: u64, value: &[u8]) -> Vec<Vec<u8>> {
    let count = value.len().div_ceil(PART).max(1);
    (0..count)
        .map(|at| {
            let end = value.len().min((at + 1) * PART);
            let part = StoredPart {
                revision,
                // A value has less than 2 GiB.
                parts: count as u32,
                data: value[at * PART..end].to_vec(),
            };
            part.encode_to_vec()
        })
        .collect()
}

/// Joins parts that are read in their order.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    pub(super) revision: u64,
    wanted: u32,
    had: u32,
    data: Vec<u8>,
}

impl Joiner {
    /// Takes the part of that number; the value when it is whole. Parts beyond the last are left over from a longer value, and are passed over.
    ///
    /// # Errors
    /// The part is none, or not the next of this value.
    pub(super) fn take(&mut self, at: u32, bytes: &[u8]) -> Result<Option<Vec<u8>>, ()> {
        let part = StoredPart::decode(bytes).map_err(|_| ())?;
        if at == 0 {
            *self = Self {
                revision: part.revision,
                wanted: part.parts,
                had: 0,
                data: Vec::new(),
            };
        } else if at >= self.wanted {
            return Ok(None);
        }
        if at != self.had || (part.revision, part.parts) != (self.revision, self.wanted) {
            return Err(());
        }
        self.had += 1;
        self.data.extend_from_slice(&part.data);
        if self.had == self.wanted {
            return Ok(Some(std::mem::take(&mut self.data)));
        }
        Ok(None)
    }

    /// Whether a value has begun and is not whole.
    pub(super) fn is_torn(&self) -> bool {
        self.had < self.wanted
    }
}

/// The number of a row's or a log entry's part, from the end of its key.
pub(super) fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_any_length_comes_back_whole() {
        for length in [0, 1, PART - 1, PART, PART + 1, 3 * PART + 7] {
            let value: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let parts = cut(7, &value);
            let mut joiner = Joiner::default();
            for (at, part) in parts.iter().enumerate() {
                assert!(at == 0 || joiner.is_torn());
                let whole = joiner.take(at as u32, part).unwrap();
                assert_eq!(whole.is_some(), at + 1 == parts.len());
                assert!(whole.is_none_or(|whole| whole == value));
            }
            assert!(!joiner.is_torn());
            // What a longer value has left behind.
            let more = cut(6, &vec![1; 9 * PART]);
            assert_eq!(
                joiner.take(parts.len() as u32, &more[parts.len()]),
                Ok(None)
            );
        }
    }

    #[test]
    fn parts_of_different_values_are_not_joined() {
        let (old, new) = (cut(6, &vec![1; 2 * PART]), cut(7, &vec![2; 2 * PART]));
        let mut joiner = Joiner::default();
        assert_eq!(joiner.take(0, &new[0]), Ok(None));
        assert_eq!(joiner.take(1, &old[1]), Err(()));
        assert_eq!(joiner.take(0, b"\xff"), Err(()));
        assert_eq!(Joiner::default().take(1, &new[1]), Ok(None));
    }
}
