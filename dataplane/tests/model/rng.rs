//! Chance that can be had again: a case is made of its seed and nothing else.

use std::ops::Range;

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The rng of one case of a run.
    pub fn new(seed: u64, case: u64) -> Self {
        let mut rng = Self(seed);
        let start = rng.next() ^ case.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(start)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    pub fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    pub fn word(&mut self) -> u16 {
        self.next() as u16
    }

    /// One of `0..limit`.
    pub fn below(&mut self, limit: u8) -> u8 {
        (self.next() % u64::from(limit)) as u8
    }

    pub fn coin(&mut self) -> bool {
        self.next() & 1 != 0
    }

    pub fn percent(&mut self, chance: u8) -> bool {
        self.below(100) < chance
    }

    /// A number of things within a range.
    pub fn list<T>(&mut self, lengths: Range<u8>, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let length = lengths.start + self.below(lengths.end - lengths.start);
        (0..length).map(|_| one(self)).collect()
    }
}
