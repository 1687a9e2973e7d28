//! A set of frames, one bit each: the frames that a ring holds.
//!
//! It takes 2 KiB for 16384 frames, so it stays in the first-level cache. `insert` and `remove` return whether they changed the set. This
//! detects a frame that the kernel returns twice or never had.

use bitvec::{boxed::BitBox, vec::BitVec};

/// Frames by index.
#[derive(Debug)]
pub(super) struct FrameSet {
    bits: BitBox,
    len: u32,
}

impl FrameSet {
    /// An empty set for frames below `count`.
    pub(super) fn new(count: u32) -> Self {
        Self {
            bits: BitVec::repeat(false, count as usize).into_boxed_bitslice(),
            len: 0,
        }
    }

    /// The number of frames in the set.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Inserts a frame; false if it was in, or if there is no such frame.
    #[inline]
    pub(super) fn insert(&mut self, index: u32) -> bool {
        let bit = self.bits.get_mut(index as usize);
        let is_new = bit.is_some_and(|mut bit| !bit.replace(true));
        self.len += u32::from(is_new);
        is_new
    }

    /// Removes a frame; false if it was not in.
    #[inline]
    pub(super) fn remove(&mut self, index: u32) -> bool {
        let bit = self.bits.get_mut(index as usize);
        let was_in = bit.is_some_and(|mut bit| bit.replace(false));
        self.len -= u32::from(was_in);
        was_in
    }

    /// Removes all frames, and calls `each` for every one.
    pub(super) fn drain(&mut self, mut each: impl FnMut(u32)) {
        for index in self.bits.iter_ones() {
            each(index as u32);
        }
        self.bits.fill(false);
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_in_once_and_out_once() {
        let mut set = FrameSet::new(100);
        assert!(set.insert(99) && set.insert(0));
        assert!(!set.insert(99));
        assert_eq!(set.len(), 2);
        assert!(set.remove(0));
        assert!(!set.remove(0));
        assert!(!set.remove(7_000));
        assert!(!set.insert(100), "there are 100 frames, from 0");
        let mut out = Vec::new();
        set.drain(|index| out.push(index));
        assert_eq!(out, [99]);
        assert_eq!(set.len(), 0);
    }
}
