//! A map whose copies share what they do not change: for tables that are large, of which a change touches a few entries.
//!
//! Entries lie in shards behind shared pointers, by their key's hash. Reading one costs two pointers more than in a plain map, copying the map a pointer for each
//! 64 shards, and changing an entry a copy of its shard, which has a few dozen entries.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::{CowVec, Map};

/// Entries of a shard, on average, when the map is made.
const FRESH: usize = 16;
/// Entries of a shard, on average, from which on the map is made again with more shards.
const FULL: usize = 64;

/// Entries by key.
#[derive(Debug)]
pub struct CowMap<K, V> {
    /// A power of two of them, or none.
    shards: CowVec<Arc<Map<K, V>>>,
    len: usize,
}

/// What became of an entry: its key, and its value before and after. They differ, and one of them is there.
pub type Difference<'m, K, V> = (&'m K, Option<&'m V>, Option<&'m V>);

impl<K, V> Clone for CowMap<K, V> {
    fn clone(&self) -> Self {
        Self {
            shards: self.shards.clone(),
            len: self.len,
        }
    }
}

impl<K, V> Default for CowMap<K, V> {
    fn default() -> Self {
        Self {
            shards: CowVec::default(),
            len: 0,
        }
    }
}

impl<K, V> CowMap<K, V> {
    /// How many entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Every entry, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        self.shards.iter().flat_map(|shard| shard.iter())
    }
}

impl<K: Hash + Eq, V> CowMap<K, V> {
    /// The shard that has a key, if it is there: by bits of the hash that the shard itself does not go by.
    #[inline]
    fn place(&self, key: &K) -> usize {
        let hash = FixedState::default().hash_one(key);
        (hash >> 32) as usize & self.shards.len().wrapping_sub(1)
    }

    /// The value of a key.
    #[inline]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.shards.get(self.place(key))?.get(key)
    }

    /// Whether a key is there.
    #[inline]
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }
}

impl<K: Hash + Eq, V: PartialEq> CowMap<K, V> {
    /// What differs between two maps. Takes as long as the shards that they do not share are large.
    pub fn changes_to<'m>(&'m self, next: &'m Self) -> Vec<Difference<'m, K, V>> {
        let mut changes = Vec::new();
        if self.shards.len() != next.shards.len() {
            compare(
                self.iter(),
                |key| next.get(key),
                next.iter(),
                |key| self.get(key),
                &mut changes,
            );
            return changes;
        }
        for (old, new) in self.shards.pairs_not_shared(&next.shards) {
            if !Arc::ptr_eq(old, new) {
                compare(
                    old.iter(),
                    |key| new.get(key),
                    new.iter(),
                    |key| old.get(key),
                    &mut changes,
                );
            }
        }
        changes
    }
}

fn compare<'m, K, V: PartialEq>(
    old: impl Iterator<Item = (&'m K, &'m V)>,
    in_new: impl Fn(&K) -> Option<&'m V>,
    new: impl Iterator<Item = (&'m K, &'m V)>,
    in_old: impl Fn(&K) -> Option<&'m V>,
    changes: &mut Vec<Difference<'m, K, V>>,
) {
    for (key, before) in old {
        let after = in_new(key);
        if after != Some(before) {
            changes.push((key, Some(before), after));
        }
    }
    let come = new.filter(|(key, _)| in_old(key).is_none());
    changes.extend(come.map(|(key, after)| (key, None, Some(after))));
}

impl<K: Hash + Eq + Clone, V: Clone> CowMap<K, V> {
    /// Puts a value at a key, unseen by copies of the map. Gives back what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        if self.len >= self.shards.len() * FULL {
            let entries = self.iter().map(|(key, value)| (key.clone(), value.clone()));
            *self = Self::with_room(entries.collect(), self.len + 1);
        }
        let before = self.shard(&key)?.insert(key, value);
        self.len += usize::from(before.is_none());
        before
    }

    /// Takes a key out, unseen by copies of the map. Gives back what was there.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        if !self.contains_key(key) {
            return None;
        }
        let before = self.shard(key)?.remove(key);
        self.len -= usize::from(before.is_some());
        before
    }

    fn shard(&mut self, key: &K) -> Option<&mut Map<K, V>> {
        let place = self.place(key);
        self.shards.get_mut(place).map(Arc::make_mut)
    }

    fn with_room(entries: Vec<(K, V)>, room: usize) -> Self {
        let count = room.div_ceil(FRESH).next_power_of_two();
        let mut shards = vec![Map::default(); count];
        let mut len = 0;
        for (key, value) in entries {
            let hash = FixedState::default().hash_one(&key);
            let shard = &mut shards[(hash >> 32) as usize & (count - 1)];
            len += usize::from(shard.insert(key, value).is_none());
        }
        Self {
            shards: shards.into_iter().map(Arc::new).collect(),
            len,
        }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> FromIterator<(K, V)> for CowMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let entries: Vec<(K, V)> = entries.into_iter().collect();
        let room = entries.len();
        Self::with_room(entries, room)
    }
}

impl<K: Hash + Eq, V: PartialEq> PartialEq for CowMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.changes_to(other).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn sorted(map: &CowMap<u16, u8>) -> BTreeMap<u16, u8> {
        map.iter().map(|(key, value)| (*key, *value)).collect()
    }

    proptest! {
        /// A map is what a plain one is; copies stay what they were, and the difference to each is what a comparison of all entries says.
        #[test]
        fn copies_stay_and_differences_are_whole(
            start in proptest::collection::btree_map(0u16..2000, any::<u8>(), 0..300),
            steps in proptest::collection::vec((0u16..2000, proptest::option::of(any::<u8>())), 0..400),
        ) {
            let mut map: CowMap<u16, u8> = start.clone().into_iter().collect();
            let (first, mut plain) = (map.clone(), start.clone());
            for (key, value) in steps {
                let (before, wanted) = match value {
                    Some(value) => (map.insert(key, value), plain.insert(key, value)),
                    None => (map.remove(&key), plain.remove(&key)),
                };
                prop_assert_eq!(before, wanted);
                prop_assert_eq!(map.get(&key), plain.get(&key));
                prop_assert_eq!(map.len(), plain.len());
            }
            prop_assert_eq!(&sorted(&map), &plain);
            prop_assert_eq!(&sorted(&first), &start);
            let mut changes: Vec<_> = first.changes_to(&map);
            changes.sort();
            let keys: std::collections::BTreeSet<u16> = start.keys().chain(plain.keys()).copied().collect();
            let wanted: Vec<_> = keys.iter()
                .map(|key| (key, start.get(key), plain.get(key)))
                .filter(|(_, before, after)| before != after)
                .collect();
            prop_assert_eq!(map == first, wanted.is_empty());
            prop_assert_eq!(changes, wanted);
        }
    }

    #[test]
    fn a_change_copies_one_shard() {
        let map: CowMap<u32, u32> = (0..10_000).map(|n| (n, n)).collect();
        let mut copy = map.clone();
        copy.insert(77, 1);
        let shared = |a: &CowMap<u32, u32>, b: &CowMap<u32, u32>| {
            let pairs = a.shards.iter().zip(b.shards.iter());
            pairs.filter(|(a, b)| !Arc::ptr_eq(a, b)).count()
        };
        assert_eq!(shared(&map, &copy), 1);
        assert_eq!(map.changes_to(&copy), [(&77, Some(&77), Some(&1))]);
    }
}
