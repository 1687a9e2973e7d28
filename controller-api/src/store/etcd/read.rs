//! What is stored: all objects as of one revision, or the changes after one.

use std::collections::HashSet;

use prost::Message;
use weft_proto::state::{Key, Kind, Object, State};
use weft_proto::v1::StoredRevision;

use super::api::{KeyValue, RangeRequest, TxnRequest};
use super::keys::{end_of, found, one, ran_at, read};
use super::term::Term;
use super::wire::{self, Joiner, PART, number};
use super::{Etcd, FORMAT};
use crate::store::{Change, Record, StoreError};

/// Rows in one answer.
const PAGE: i64 = 1000;
/// Parts of the log in one answer.
const LOG_PAGE: i64 = 128;
/// Keys alone in one answer.
const KEYS_PAGE: i64 = 50_000;
/// Bytes that an entry of the log of one part is counted as when its length is not known.
const SMALL: usize = 4096;
/// No more records are read once they have so many objects.
const MANY: usize = 10_000;
/// How often a reading begins again when etcd has forgotten what it read from.
const ATTEMPTS: usize = 5;

/// What others have stored.
#[derive(Debug)]
pub struct News {
    /// The address of the controller that writes, if there is one.
    pub writer: Option<String>,
    /// The changes that follow what was known; none: they cannot be told any more, all has to be loaded.
    pub changes: Option<Vec<Change>>,
}

/// The numbers of the store, as of one revision of etcd.
struct Numbers {
    at: i64,
    revision: u64,
    revision_guard: i64,
    applied: u64,
    applied_guard: i64,
}

fn stored_revision(pairs: &[KeyValue]) -> Result<(u64, i64), StoreError> {
    let Some(pair) = pairs.first() else {
        return Ok((0, 0));
    };
    let stored = StoredRevision::decode(pair.value.as_slice())
        .map_err(|_| StoreError::Content("revision".to_owned()))?;
    Ok((stored.revision, pair.mod_revision))
}

/// Reads again where etcd forgot meanwhile what was being read from.
fn again_if_compacted<T>(read: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let mut found = Err(StoreError::Compacted);
    for _ in 0..ATTEMPTS {
        found = read();
        if !matches!(found, Err(StoreError::Compacted)) {
            break;
        }
    }
    found
}

impl Etcd {
    /// All objects, and the revision that they are of.
    pub(super) fn load(&self) -> Result<(u64, State), StoreError> {
        again_if_compacted(|| self.load_once())
    }

    fn load_once(&self) -> Result<(u64, State), StoreError> {
        let numbers = self.numbers()?;
        let (mut state, torn) = self.rows(numbers.at)?;
        let log = self.log(numbers.applied, numbers.revision, numbers.at)?;
        let changes = log.ok_or_else(|| StoreError::Content("log".to_owned()))?;
        let mut mended = HashSet::new();
        for change in changes {
            for key in change.deletes {
                state.remove(&key);
                mended.insert(key);
            }
            for object in change.upserts {
                mended.insert(object.key());
                state.insert_at(object, change.revision);
            }
        }
        // A row whose parts do not fit is being written; the log has it.
        match torn.difference(&mended).next() {
            None => Ok((numbers.revision, state)),
            Some(key) => Err(StoreError::Content(key.to_string())),
        }
    }

    /// The newest revision that is stored.
    pub(super) fn newest(&self) -> Result<u64, StoreError> {
        let found = self.client.range(&one(self.keys.named("revision")))?;
        Ok(stored_revision(&found.kvs)?.0)
    }

    /// The address of the controller that writes, if there is one.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn writer(&self) -> Result<Option<String>, StoreError> {
        let mut found = self.client.range(&one(self.keys.named("writer")))?;
        let writer = found.kvs.pop();
        Ok(writer.map(|pair| String::from_utf8_lossy(&pair.value).into_owned()))
    }

    /// Whether nothing is below the prefix.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn is_empty(&self) -> Result<bool, StoreError> {
        let all = self.keys.named("");
        let found = self.client.range(&RangeRequest {
            range_end: end_of(&all),
            key: all,
            count_only: true,
            ..RangeRequest::default()
        })?;
        Ok(found.count == 0)
    }

    /// Has etcd forget what its keys were before now, below all prefixes.
    pub(super) fn forget_past(&self) -> Result<(), StoreError> {
        self.client.compact(self.numbers()?.at)
    }

    fn numbers(&self) -> Result<Numbers, StoreError> {
        let keys = ["format", "revision", "applied"];
        let answer = self.client.txn(&TxnRequest {
            success: keys.map(|key| read(one(self.keys.named(key)))).into(),
            ..TxnRequest::default()
        })?;
        let at = ran_at(&answer);
        let mut values = found(answer).map(|range| range.kvs);
        let mut next = || values.next().unwrap_or_default();
        check_format(&next())?;
        let (revision, revision_guard) = stored_revision(&next())?;
        let (applied, applied_guard) = stored_revision(&next())?;
        Ok(Numbers {
            at,
            revision,
            revision_guard,
            applied,
            applied_guard,
        })
    }

    /// The rows, and those whose parts do not fit each other.
    fn rows(&self, at: i64) -> Result<(State, HashSet<Key>), StoreError> {
        let begin = self.keys.named("objects/");
        let skip = begin.len();
        let end = end_of(&begin);
        let (mut objects, mut torn) = (Vec::new(), HashSet::new());
        let mut joiner = Joiner::default();
        let mut open: Option<Key> = None;
        self.pages(begin, &end, (at, PAGE), |pair| {
            let (key, part) = row_of(&pair.key[skip..])?;
            if part == 0
                && let Some(open) = open.take()
            {
                torn.insert(open);
            }
            match joiner.take(part, &pair.value) {
                Ok(None) if joiner.is_torn() => open = Some(key),
                Ok(None) => {}
                Ok(Some(value)) => {
                    open = None;
                    let not_understood = |_| StoreError::Content(key.to_string());
                    let object = Object::decode(key.kind, &value).map_err(not_understood)?;
                    if object.id() != key.id {
                        return Err(StoreError::Content(key.to_string()));
                    }
                    objects.push((object, joiner.revision));
                }
                Err(()) => drop(torn.insert(key)),
            }
            Ok(())
        })?;
        torn.extend(open);
        // Each row has a key of its own.
        let twice = |_| StoreError::Content("objects".to_owned());
        Ok((State::from_list_at(objects).map_err(twice)?, torn))
    }

    /// The changes after one revision up to another; none: they are not all there.
    fn log(&self, after: u64, to: u64, at: i64) -> Result<Option<Vec<Change>>, StoreError> {
        let mut changes: Vec<Change> = Vec::new();
        let mut joiner = Joiner::default();
        let mut entry = 0;
        if after >= to {
            return Ok((after == to).then_some(changes));
        }
        let (begin, end) = (self.keys.log_after(after), self.keys.log_after(to));
        let mut is_whole = true;
        self.pages(begin, &end, (at, LOG_PAGE), |pair| {
            let damaged = || StoreError::Content("log".to_owned());
            let revision = self.keys.revision_of(&pair.key).ok_or_else(damaged)?;
            let part = pair.key.rsplit(|byte| *byte == b'/').next();
            let part = part.and_then(number).ok_or_else(damaged)?;
            is_whole &= revision == entry || !joiner.is_torn();
            entry = revision;
            if let Some(value) = joiner.take(part, &pair.value).map_err(|()| damaged())? {
                for change in wire::decode(&value)? {
                    let last = changes.last().map_or(after, |change| change.revision);
                    is_whole &= change.revision == last + 1;
                    changes.push(change);
                }
            }
            Ok(())
        })?;
        let last = changes.last().map_or(after, |change| change.revision);
        Ok((is_whole && last == to).then_some(changes))
    }

    /// The revisions that the entries of the log lead to, as far as they are stored, in order; and the revision of etcd that this is as of.
    fn entries(&self) -> Result<(Vec<u64>, i64), StoreError> {
        let numbers = self.numbers()?;
        let (begin, end) = (
            self.keys.log_after(0),
            self.keys.log_after(numbers.revision),
        );
        let mut entries = Vec::new();
        self.pages(begin, &end, (numbers.at, KEYS_PAGE), |pair| {
            entries.extend(self.keys.revision_of(&pair.key));
            Ok(())
        })?;
        entries.dedup();
        Ok((entries, numbers.at))
    }

    /// The records of the changes in an entry of the log, in order.
    fn entry(&self, revision: u64, at: i64) -> Result<Vec<Record>, StoreError> {
        let (begin, end) = (
            self.keys.log_after(revision - 1),
            self.keys.log_after(revision),
        );
        let (mut joiner, mut records) = (Joiner::default(), Vec::new());
        self.pages(begin, &end, (at, LOG_PAGE), |pair| {
            let damaged = || StoreError::Record(revision);
            let part = pair.key.rsplit(|byte| *byte == b'/').next();
            let part = part.and_then(number).ok_or_else(damaged)?;
            if let Some(value) = joiner.take(part, &pair.value).map_err(|()| damaged())? {
                let changes = wire::decode(&value)?;
                records.extend(changes.into_iter().map(|change| change.record));
            }
            Ok(())
        })?;
        Ok(records)
    }

    /// The records of changes before a revision, the newest first, at most so many.
    pub(super) fn records(&self, before: u64, limit: usize) -> Result<Vec<Record>, StoreError> {
        again_if_compacted(|| self.records_once(before, limit))
    }

    fn records_once(&self, before: u64, limit: usize) -> Result<Vec<Record>, StoreError> {
        let (entries, at) = self.entries()?;
        let first = entries.partition_point(|entry| entry.saturating_add(1) < before);
        let upto = entries.len().min(first + 1);
        let mut found = Vec::new();
        let mut objects = 0;
        for entry in entries[..upto].iter().rev() {
            let records = self.entry(*entry, at)?;
            for record in records.into_iter().rev() {
                if record.revision < before && found.len() < limit {
                    objects += record.edits.len();
                    found.push(record);
                }
            }
            if found.len() >= limit || objects > MANY {
                break;
            }
        }
        Ok(found)
    }

    /// The revision of the oldest change of which a record is kept.
    pub(super) fn oldest_record(&self) -> Result<Option<u64>, StoreError> {
        again_if_compacted(|| self.oldest_record_once())
    }

    fn oldest_record_once(&self) -> Result<Option<u64>, StoreError> {
        let (entries, at) = self.entries()?;
        let Some(first) = entries.first() else {
            return Ok(None);
        };
        let records = self.entry(*first, at)?;
        Ok(records.first().map(|record| record.revision))
    }

    /// Reads keys page by page, as of one revision of etcd.
    fn pages(
        &self,
        mut begin: Vec<u8>,
        end: &[u8],
        (at, limit): (i64, i64),
        mut take: impl FnMut(KeyValue) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        loop {
            let page = self.client.range(&RangeRequest {
                key: begin.clone(),
                range_end: end.to_vec(),
                limit,
                revision: at,
                keys_only: limit == KEYS_PAGE,
                ..RangeRequest::default()
            })?;
            if let Some(last) = page.kvs.last() {
                begin.clone_from(&last.key);
                begin.push(0);
            }
            let is_last = !page.more || page.kvs.is_empty();
            for pair in page.kvs {
                take(pair)?;
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// What others have stored after a revision.
    ///
    /// # Errors
    /// etcd does not answer, or what is stored is not understood.
    pub fn news(&self, known: u64) -> Result<News, StoreError> {
        let keys = ["format", "revision", "writer"];
        let answer = self.client.txn(&TxnRequest {
            success: keys.map(|key| read(one(self.keys.named(key)))).into(),
            ..TxnRequest::default()
        })?;
        let at = ran_at(&answer);
        let mut values = found(answer).map(|range| range.kvs);
        let mut next = || values.next().unwrap_or_default();
        check_format(&next())?;
        let (revision, _) = stored_revision(&next())?;
        let writer = next().pop();
        let writer = writer.map(|pair| String::from_utf8_lossy(&pair.value).into_owned());
        let changes = match self.log(known, revision, at) {
            Err(StoreError::Compacted) => None,
            other => other?,
        };
        Ok(News { writer, changes })
    }

    /// Begins a term at a revision; false when more is stored.
    pub(super) fn begin_at(&self, term: &Term, known: u64) -> Result<bool, StoreError> {
        let numbers = self.numbers()?;
        if numbers.revision != known {
            return Ok(false);
        }
        let behind = self.log(numbers.applied, known, numbers.at)?;
        let behind = behind.ok_or_else(|| StoreError::Content("log".to_owned()))?;
        let mut entries: Vec<(u64, usize)> = Vec::new();
        let (begin, end) = (self.keys.log_after(0), self.keys.log_after(known));
        self.pages(begin, &end, (numbers.at, KEYS_PAGE), |pair| {
            let revision = self.keys.revision_of(&pair.key);
            match (entries.last_mut(), revision) {
                (Some((last, bytes)), Some(revision)) if *last == revision => *bytes += PART,
                (_, Some(revision)) => entries.push((revision, SMALL)),
                (_, None) => {}
            }
            Ok(())
        })?;
        let guards = (numbers.revision_guard, numbers.applied_guard);
        term.begin(&self.client, &self.keys, known, guards, &behind, entries)?;
        Ok(true)
    }
}

fn check_format(pairs: &[KeyValue]) -> Result<(), StoreError> {
    match pairs.first() {
        Some(pair) if pair.value != FORMAT.as_bytes() => {
            let other = String::from_utf8_lossy(&pair.value).parse();
            Err(StoreError::Format(other.unwrap_or(0), 1))
        }
        _ => Ok(()),
    }
}

/// The object of a row's key behind the prefix, and the number of the part.
fn row_of(name: &[u8]) -> Result<(Key, u32), StoreError> {
    let not_understood = || StoreError::Content(String::from_utf8_lossy(name).into_owned());
    let mut halves = name.splitn(2, |byte| *byte == 0);
    let row = halves.next().and_then(|row| std::str::from_utf8(row).ok());
    let (kind, id) = row
        .and_then(|row| row.split_once('/'))
        .ok_or_else(not_understood)?;
    let part = match halves.next() {
        None => 0,
        Some(part) => number(part).ok_or_else(not_understood)?,
    };
    let key = Key {
        kind: Kind::from_name(kind).ok_or_else(not_understood)?,
        id: id.to_owned(),
    };
    Ok((key, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rows_key_is_read_back_and_a_strange_one_is_refused() {
        assert_eq!(
            row_of(b"port/a/b\x00000012")
                .map(|(key, part)| (key.to_string(), part))
                .ok(),
            Some(("port a/b".to_owned(), 12))
        );
        assert_eq!(row_of(b"vpc/v").map(|(_, part)| part).ok(), Some(0));
        for strange in [&b"port"[..], b"router/x", b"port/a\0x", b"\xff/a"] {
            assert!(row_of(strange).is_err(), "{strange:?}");
        }
    }
}
