//! Objects by key with their digest, without the indexes of a [`State`](super::State): what states are made of, and what several may share.

use std::cmp::Ordering;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{Change, Kind, Object};
use crate::persistent::PersistentSet;

/// So many objects are worth several threads.
const MANY: usize = 4096;

/// An object with its part of the digest.
#[derive(Debug)]
pub struct Entry {
    /// The object.
    pub object: Object,
    /// What it adds to the digest of a set.
    pub digest: Sum,
    /// The revision at which it came to be as it is; 0 where nobody counts. No part of the object: neither compared nor digested.
    pub revision: u64,
    /// The object without its labels; none if it has none.
    bare: Option<Arc<Self>>,
}

impl Entry {
    /// Objects to put into sets, each as of its revision; by several threads where they are very many.
    pub(super) fn of_many(mut objects: Vec<(Object, u64)>) -> Vec<Arc<Self>> {
        let make = |(object, revision)| Self::at(object, revision);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        if objects.len() < MANY || threads == 1 {
            return objects.into_iter().map(make).collect();
        }
        let each = objects.len().div_ceil(threads);
        std::thread::scope(|scope| {
            let mut makers = Vec::new();
            while !objects.is_empty() {
                let rest = objects.split_off(each.min(objects.len()));
                let part = std::mem::replace(&mut objects, rest);
                let make = move || part.into_iter().map(make).collect::<Vec<_>>();
                makers.push(scope.spawn(make));
            }
            let made = makers.into_iter().flat_map(|maker| {
                // It only panics where this thread would have.
                let made = maker.join();
                made.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            made.collect()
        })
    }

    /// An object to put into sets.
    pub fn new(object: Object) -> Arc<Self> {
        Self::at(object, 0)
    }

    /// The same, as of a revision.
    pub fn at(object: Object, revision: u64) -> Arc<Self> {
        Self::after(None, object, revision)
    }

    /// The same, in place of what was there. If only labels differ, hosts are told the very same as before.
    pub(super) fn after(before: Option<&Arc<Self>>, object: Object, revision: u64) -> Arc<Self> {
        let bare = (!object.labels().is_empty()).then(|| {
            let bare = object.clone().without_labels();
            let known = before.map(Self::told);
            match known.filter(|known| known.object == bare) {
                Some(known) => Arc::clone(known),
                None => Self::at(bare, revision),
            }
        });
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(object.kind().name().as_bytes());
        part(object.id().as_bytes());
        part(&object.encode());
        let digest = Sum::from_bytes(hash.finalize().into());
        Arc::new(Self {
            object,
            digest,
            revision,
            bare,
        })
    }

    /// What hosts are told: the object without its labels.
    pub fn told(self: &Arc<Self>) -> &Arc<Self> {
        self.bare.as_ref().unwrap_or(self)
    }
}

/// A number modulo 2^256: what a digest is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    low: u128,
    high: u128,
}

impl Sum {
    fn from_bytes(bytes: [u8; 32]) -> Self {
        let (high, low) = bytes.split_at(16);
        let word = |half: &[u8]| {
            half.iter()
                .fold(0, |word, byte| word << 8 | u128::from(*byte))
        };
        Self {
            low: word(low),
            high: word(high),
        }
    }

    /// The 32 bytes of a digest, the highest first.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&self.high.to_be_bytes());
        bytes[16..].copy_from_slice(&self.low.to_be_bytes());
        bytes
    }

    /// The sum.
    pub fn plus(self, other: Self) -> Self {
        let (low, carry) = self.low.overflowing_add(other.low);
        let high = self.high.wrapping_add(other.high);
        Self {
            low,
            high: high.wrapping_add(carry.into()),
        }
    }

    /// The difference.
    pub fn minus(self, other: Self) -> Self {
        let (low, borrow) = self.low.overflowing_sub(other.low);
        let high = self.high.wrapping_sub(other.high);
        Self {
            low,
            high: high.wrapping_sub(borrow.into()),
        }
    }
}

/// Objects by kind and id. Copies share what they have in common.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    objects: PersistentSet<Arc<Entry>>,
    digest: Sum,
}

/// How an object compares to a kind and an id.
fn by_key(kind: Kind, id: &str) -> impl Fn(&Arc<Entry>) -> Ordering {
    move |entry| (entry.object.kind(), entry.object.id()).cmp(&(kind, id))
}

impl Layer {
    /// The entries of a list in key order, in which each key is once.
    pub(super) fn from_sorted(entries: Vec<Arc<Entry>>) -> Self {
        let digests = entries.iter().map(|entry| entry.digest);
        Self {
            digest: digests.fold(Sum::default(), Sum::plus),
            objects: PersistentSet::from_sorted(entries),
        }
    }

    /// Adds or replaces; gives back what was there.
    pub fn insert(&mut self, entry: &Arc<Entry>) -> Option<Arc<Entry>> {
        self.digest = self.digest.plus(entry.digest);
        let order = by_key(entry.object.kind(), entry.object.id());
        let before = self.objects.insert(Arc::clone(entry), order);
        if let Some(before) = &before {
            self.digest = self.digest.minus(before.digest);
        }
        before
    }

    /// Takes out the object of a key.
    pub fn remove(&mut self, kind: Kind, id: &str) -> Option<Arc<Entry>> {
        let before = self.objects.remove(by_key(kind, id))?;
        self.digest = self.digest.minus(before.digest);
        Some(before)
    }

    /// The object of a key.
    pub fn get(&self, kind: Kind, id: &str) -> Option<&Arc<Entry>> {
        self.objects.get(by_key(kind, id))
    }

    /// Every object, in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.objects.iter()
    }

    /// Every object from a key on, in key order.
    pub fn iter_from<'a>(
        &'a self,
        kind: Kind,
        id: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Entry>> {
        self.objects.iter_from(by_key(kind, id))
    }

    /// Every object of a kind, in order of their ids.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Object> {
        let from = self.objects.iter_from(by_key(kind, ""));
        from.map(|entry| &entry.object)
            .take_while(move |object| object.kind() == kind)
    }

    /// How many objects.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The digest of these objects.
    pub fn digest(&self) -> Sum {
        self.digest
    }

    /// What is in `self` and not in `next` as it is, and the other way round. Takes as long as the difference is large when one was made from the other.
    pub fn difference<'a>(&'a self, next: &'a Self) -> [Vec<&'a Arc<Entry>>; 2] {
        self.objects.difference(&next.objects)
    }

    /// What differs between two, each object as it was and as it is, in key order.
    pub fn changes_to<'a>(&'a self, next: &'a Self) -> Vec<Change<'a>> {
        let [gone, come] = self.difference(next);
        let mut changes: Vec<Change<'_>> = Vec::with_capacity(come.len());
        let (mut gone, mut come) = (gone.into_iter().peekable(), come.into_iter().peekable());
        loop {
            let key = |entry: &'a Arc<Entry>| (entry.object.kind(), entry.object.id());
            let order = match (gone.peek(), come.peek()) {
                (None, None) => return changes,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => key(old).cmp(&key(new)),
            };
            let old = gone.next_if(|_| order.is_le()).map(|entry| &entry.object);
            let new = come.next_if(|_| order.is_ge()).map(|entry| &entry.object);
            if old != new {
                changes.push(Change { old, new });
            }
        }
    }
}

impl<'a> Extend<&'a Arc<Entry>> for Layer {
    fn extend<I: IntoIterator<Item = &'a Arc<Entry>>>(&mut self, entries: I) {
        for entry in entries {
            self.insert(entry);
        }
    }
}

impl PartialEq for Layer {
    fn eq(&self, other: &Self) -> bool {
        let mut objects = self.iter().zip(other.iter());
        let same = |(a, b): (&Arc<Entry>, &Arc<Entry>)| Arc::ptr_eq(a, b) || a.object == b.object;
        self.len() == other.len() && self.digest == other.digest && objects.all(same)
    }
}
