//! A table of few prefixes: a short array, searched linearly.
//!
//! Most VPCs have a handful of routes; sixteen of them take two or three cache lines and some thirty cycles. Copies share the array.

use std::sync::Arc;

use super::node::{NOTHING, leaf};

/// Keys of a family: left-aligned, so that a prefix is a mask on the left.
pub(super) trait Key: Copy + Eq {
    /// The first so many bits of the key.
    fn head(self, length: u8) -> Self;
    /// The ones of a prefix of that length.
    fn mask(length: u8) -> Self;
    /// Bits that both have.
    fn and(self, other: Self) -> Self;
}

macro_rules! key {
    ($word:ty) => {
        impl Key for $word {
            fn head(self, length: u8) -> Self {
                self & Self::mask(length)
            }

            fn mask(length: u8) -> Self {
                <$word>::MAX
                    .checked_shl(<$word>::BITS - u32::from(length))
                    .unwrap_or(0)
            }

            #[inline(always)]
            fn and(self, other: Self) -> Self {
                self & other
            }
        }
    };
}
key!(u32);
key!(u128);

#[derive(Debug, Clone, Copy)]
struct Entry<K> {
    bits: K,
    mask: K,
    leaf: u32,
}

/// Prefixes of one family, in no order.
#[derive(Debug, Clone)]
pub(super) struct Small<K> {
    entries: Arc<[Entry<K>]>,
}

impl<K: Key> Small<K> {
    pub(super) fn new() -> Self {
        Self {
            entries: Arc::from([]),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn position(&self, key: K, length: u8) -> Option<usize> {
        let same = |entry: &Entry<K>| entry.bits == key && entry.mask == K::mask(length);
        self.entries.iter().position(same)
    }

    /// Adds a prefix or replaces its value; its leaf before.
    pub(super) fn insert(&mut self, key: K, length: u8, value: u32) -> Option<u32> {
        let entry = Entry {
            bits: key.head(length),
            mask: K::mask(length),
            leaf: leaf(length, value),
        };
        if let Some(i) = self.position(key, length) {
            let before = self.entries[i].leaf;
            Arc::make_mut(&mut self.entries)[i] = entry;
            return Some(before);
        }
        self.entries = self.entries.iter().copied().chain([entry]).collect();
        None
    }

    /// Takes out a prefix; its leaf, if it was there.
    pub(super) fn remove(&mut self, key: K, length: u8) -> Option<u32> {
        let place = self.position(key, length)?;
        let before = self.entries[place].leaf;
        let others = self.entries.iter().enumerate().filter(|(i, _)| *i != place);
        self.entries = others.map(|(_, entry)| *entry).collect();
        Some(before)
    }

    /// The leaf of the longest prefix that holds the key: the greatest of those that do.
    #[inline]
    pub(super) fn lookup(&self, key: K) -> u32 {
        self.entries.iter().fold(NOTHING, |best, entry| {
            let held = key.and(entry.mask) == entry.bits;
            best.max(if held { entry.leaf } else { NOTHING })
        })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (K, u32)> {
        self.entries.iter().map(|entry| (entry.bits, entry.leaf))
    }

    /// Bytes of memory, if nothing is shared.
    pub(super) fn bytes(&self) -> usize {
        2 * size_of::<usize>() + size_of_val(&*self.entries)
    }
}
