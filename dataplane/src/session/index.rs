//! The index of the session table: buckets of one cache line, eight entries each; a hash has two buckets to lie in.
//!
//! An entry is a tag of 16 bits from the hash, and a [`Place`] of a session. The eight tags are compared at once, in two words. What is found is a
//! candidate: the session's own key decides, so that a reader who races with a writer is never led astray.

use std::num::NonZeroU32;

use super::arena::Arena;
use crate::prefetch::prefetch;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const ENTRIES: usize = 8;
/// A one in each of the four tags of a word.
const ONES: u64 = 0x0001_0001_0001_0001;
const TOPS: u64 = ONES << 15;

/// Eight entries.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Bucket {
    tags: [AtomicU64; ENTRIES / 4],
    /// A [`Place`]; 0 is empty.
    slots: [AtomicU32; ENTRIES],
}

/// One shard's buckets.
#[derive(Debug)]
pub struct Index {
    buckets: Arena<Bucket>,
}

/// An empty entry of the index.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    bucket: usize,
    entry: usize,
}

/// Where a session lies, and by which of its keys an entry finds it: the number of the slot in its shard, plus one; in the top bits whether there is a second
/// key and which of the two the entry is for; for a second key the shard of the slot, which may be another than the index's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(NonZeroU32);

/// Slots that a shard may have.
pub const MOST_SLOTS: usize = NUMBER as usize;

const NUMBER: u32 = (1 << 26) - 1;
const SHARD_BITS: u32 = 26;
const SECOND: u32 = 1 << 30;
/// Of an entry for a first key: that the session has a second one. Of one for a second key: that its ends have the other order.
const TRANSLATED: u32 = 1 << 31;

impl Place {
    /// Of a session with one key.
    pub fn plain(number: u32) -> Self {
        Self(NonZeroU32::MIN.saturating_add(number))
    }

    /// Of one with two keys, by the first.
    pub fn first(number: u32) -> Self {
        Self(Self::plain(number).0 | TRANSLATED)
    }

    /// By the second, in the slots of the shard `home`.
    pub fn second(home: usize, number: u32, flipped: bool) -> Self {
        let flag = if flipped { TRANSLATED } else { 0 };
        Self(Self::plain(number).0 | (home as u32) << SHARD_BITS | SECOND | flag)
    }

    /// The number of the slot in its shard.
    #[inline]
    pub fn number(self) -> u32 {
        (self.0.get() & NUMBER) - 1
    }

    /// Whether the session has two keys.
    #[inline]
    pub fn is_translated(self) -> bool {
        self.0.get() >= SECOND
    }

    /// For a second key: the shard of the slot, and whether the ends of the key have another order than those of the first.
    #[inline]
    pub fn of_second(self) -> Option<(usize, bool)> {
        let bits = self.0.get();
        let home = (bits >> SHARD_BITS & 0xf) as usize;
        (bits & SECOND != 0).then_some((home, bits & TRANSLATED != 0))
    }
}

fn tag(hash: u64) -> u64 {
    (hash >> 44) & 0xffff
}

impl Bucket {
    /// The sessions whose tag is this one, and with a small chance others.
    #[inline]
    fn candidates(&self, tag: u64) -> impl Iterator<Item = Place> + '_ {
        self.tags
            .iter()
            .zip(self.slots.as_chunks::<4>().0)
            .flat_map(move |(tags, slots)| {
                // A tag that is equal leaves zeroes; the subtraction borrows into the top bit of the first such, and perhaps of later ones.
                let difference = tags.load(Ordering::Relaxed) ^ (tag * ONES);
                let mut found = difference.wrapping_sub(ONES) & !difference & TOPS;
                std::iter::from_fn(move || {
                    while found != 0 {
                        let lane = found.trailing_zeros() / 16;
                        found &= found - 1;
                        let place = slots[lane as usize].load(Ordering::Acquire);
                        if let Some(place) = NonZeroU32::new(place) {
                            return Some(Place(place));
                        }
                    }
                    None
                })
            })
    }
}

impl Index {
    /// Buckets for so many sessions; a power of two, at most half full.
    pub fn new(sessions: usize) -> Self {
        Self {
            buckets: Arena::new((sessions / 4).next_power_of_two()),
        }
    }

    /// Takes all its memory now.
    pub fn populate(&self) {
        self.buckets.populate(0..self.buckets.len());
    }

    #[inline]
    fn places(&self, hash: u64) -> [usize; 2] {
        let mask = self.buckets.len() - 1;
        [hash as usize & mask, (hash >> 22) as usize & mask]
    }

    /// Brings the line where a hash most likely lies towards the cache.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.buckets[self.places(hash)[0]]);
    }

    /// Sessions that the hash may lead to.
    #[inline]
    pub fn candidates(&self, hash: u64) -> impl Iterator<Item = Place> + '_ {
        let tag = tag(hash);
        self.places(hash)
            .into_iter()
            .flat_map(move |bucket| self.buckets[bucket].candidates(tag))
    }

    /// The first of the candidates.
    #[inline]
    pub fn first(&self, hash: u64) -> Option<Place> {
        let tag = tag(hash);
        let [first, second] = self.places(hash);
        self.buckets[first]
            .candidates(tag)
            .next()
            .or_else(|| self.buckets[second].candidates(tag).next())
    }

    /// An empty entry for the hash.
    pub fn room(&self, hash: u64) -> Option<Room> {
        self.places(hash).into_iter().find_map(|bucket| {
            let entry = self.buckets[bucket]
                .slots
                .iter()
                .position(|slot| slot.load(Ordering::Relaxed) == 0)?;
            Some(Room { bucket, entry })
        })
    }

    /// All sessions in the two buckets of a hash.
    pub fn neighbours(&self, hash: u64) -> impl Iterator<Item = Place> + '_ {
        let slots = self
            .places(hash)
            .into_iter()
            .flat_map(|bucket| &self.buckets[bucket].slots);
        slots.filter_map(|slot| NonZeroU32::new(slot.load(Ordering::Relaxed)).map(Place))
    }

    /// Enters a session. Writers are serialised by their shard's lock.
    pub fn put(&self, room: Room, hash: u64, place: Place) {
        let Room { bucket, entry } = room;
        let bucket = &self.buckets[bucket];
        let (word, shift) = (&bucket.tags[entry / 4], entry % 4 * 16);
        let others = word.load(Ordering::Relaxed) & !(0xffff << shift);
        word.store(others | tag(hash) << shift, Ordering::Relaxed);
        bucket.slots[entry].store(place.0.get(), Ordering::Release);
    }

    /// Takes a session out.
    pub fn take(&self, hash: u64, place: Place) {
        for bucket in self.places(hash) {
            for entry in &self.buckets[bucket].slots {
                if entry.load(Ordering::Relaxed) == place.0.get() {
                    entry.store(0, Ordering::Relaxed);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_a_line_of_the_cache() {
        assert_eq!(size_of::<Bucket>(), 64);
    }

    #[test]
    fn what_is_put_is_found_until_it_is_taken() {
        let index = Index::new(64);
        let hashes: Vec<u64> = (1..60u64)
            .map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .collect();
        for (slot, hash) in (0..).zip(&hashes) {
            index.put(index.room(*hash).unwrap(), *hash, Place::plain(slot));
        }
        for (slot, hash) in (0..).zip(&hashes) {
            assert!(
                index
                    .candidates(*hash)
                    .any(|found| found == Place::plain(slot))
            );
            assert!(
                index
                    .neighbours(*hash)
                    .any(|found| found == Place::plain(slot))
            );
        }
        for (slot, hash) in (0..).zip(&hashes) {
            index.take(*hash, Place::plain(slot));
            assert!(
                index
                    .candidates(*hash)
                    .all(|found| found != Place::plain(slot))
            );
        }
        assert!(hashes.iter().all(|hash| index.first(*hash).is_none()));
    }

    #[test]
    fn tags_that_differ_by_one_are_told_apart_or_offered_as_candidates() {
        // The lane above a match may be offered too: the match itself always is.
        let index = Index::new(8);
        let hash = |tag: u64| tag << 44;
        for (slot, tag) in [7, 8, 6, 7].into_iter().enumerate() {
            let place = Place::plain(slot as u32);
            index.put(index.room(hash(tag)).unwrap(), hash(tag), place);
        }
        let found: Vec<u32> = index.candidates(hash(7)).map(Place::number).collect();
        assert!(found.contains(&0) && found.contains(&3), "{found:?}");
        assert_eq!(index.first(hash(9)), None);
    }

    #[test]
    fn an_entry_taken_again_bears_its_new_tag_alone() {
        let index = Index::new(8);
        let [before, after] = [0xffff << 44, 1 << 44];
        for slot in 0..8 {
            index.put(index.room(before).unwrap(), before, Place::plain(slot));
        }
        for slot in 0..8 {
            let place = Place::plain(slot);
            index.take(before, place);
            index.put(index.room(after).unwrap(), after, place);
            assert!(index.candidates(after).any(|found| found == place));
            assert!(index.candidates(before).all(|found| found != place));
        }
    }

    #[test]
    fn the_first_candidate_may_lie_in_either_bucket() {
        let index = Index::new(8);
        let hash = |tag: u64| tag << 44 | 1 << 22;
        for slot in 0..16 {
            assert_eq!(index.first(hash(9)), None);
            let tag = if slot % 8 == 0 { 9 } else { 5 };
            let place = Place::plain(slot);
            index.put(index.room(hash(tag)).unwrap(), hash(tag), place);
            if tag == 9 {
                assert_eq!(index.first(hash(9)), Some(place));
                index.take(hash(9), place);
                index.put(index.room(hash(5)).unwrap(), hash(5), place);
            }
        }
    }

    #[test]
    fn a_place_says_where_a_session_lies_and_by_which_key() {
        for number in [0, 1, NUMBER - 1] {
            let plain = Place::plain(number);
            assert!(!plain.is_translated() && plain.of_second().is_none());
            let first = Place::first(number);
            assert!(first.is_translated() && first.of_second().is_none());
            assert_eq!((plain.number(), first.number()), (number, number));
            for (home, flipped) in [(0, false), (15, true), (7, false)] {
                let second = Place::second(home, number, flipped);
                assert!(second.is_translated());
                assert_eq!(second.of_second(), Some((home, flipped)));
                assert_eq!(second.number(), number);
            }
        }
    }

    #[test]
    fn both_buckets_fill_before_there_is_no_room() {
        let index = Index::new(8);
        let hash = 0;
        for slot in 0..8 {
            index.put(index.room(hash).unwrap(), hash, Place::plain(slot));
        }
        assert!(index.room(hash).is_none());
        // Bucket 1 of the two is free for a hash that has it as its second choice.
        assert!(index.room(1 << 22).is_some());
    }
}
