//! A set of frames, one bit each: which frames a ring holds.
//!
//! 2 KiB for 16384 frames, so it stays in the first-level cache. Inserting what is in, or removing what is out, says so:
//! that is how a frame which the kernel returns twice, or never had, is found out.

/// Frames by index.
#[derive(Debug)]
pub(super) struct FrameSet {
    words: Box<[u64]>,
    len: u32,
}

impl FrameSet {
    /// An empty set for frames below `count`.
    pub(super) fn new(count: u32) -> Self {
        Self {
            words: vec![0; (count as usize).div_ceil(64)].into_boxed_slice(),
            len: 0,
        }
    }

    /// How many frames are in.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Puts a frame in; false if it was in.
    #[inline]
    pub(super) fn insert(&mut self, index: u32) -> bool {
        let Some(word) = self.words.get_mut(index as usize / 64) else {
            return false;
        };
        let bit = 1 << (index % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        self.len += u32::from(is_new);
        is_new
    }

    /// Takes a frame out; false if it was not in.
    #[inline]
    pub(super) fn remove(&mut self, index: u32) -> bool {
        let Some(word) = self.words.get_mut(index as usize / 64) else {
            return false;
        };
        let bit = 1 << (index % 64);
        let was_in = *word & bit != 0;
        *word &= !bit;
        self.len -= u32::from(was_in);
        was_in
    }

    /// Takes all frames out, one call of `each` for every one.
    pub(super) fn drain(&mut self, mut each: impl FnMut(u32)) {
        for (at, word) in self.words.iter_mut().enumerate() {
            while *word != 0 {
                let bit = word.trailing_zeros();
                *word &= *word - 1;
                each(at as u32 * 64 + bit);
            }
        }
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
        let mut out = Vec::new();
        set.drain(|index| out.push(index));
        assert_eq!(out, [99]);
        assert_eq!(set.len(), 0);
    }
}
