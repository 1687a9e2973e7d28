//! Memory of the trie: blocks of words in pages that copies share.
//!
//! A copy of it copies one pointer for each page of 16 KiB; whoever then writes to a page copies that page alone. A block lies within one page,
//! consists of whole units, and is named by the number of its first, so that a name fits in 32 bits. Freed blocks are linked through
//! their first words, one list for each size, and are given out again before new ones.

use std::sync::Arc;

/// Words of a page.
const PAGE: usize = 4096;
/// Sizes of blocks, in units: steps of a quarter at most, so that a block that grows rarely moves and little is left over.
const SIZES: [u16; 22] = [
    1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96,
];
/// Ends a list of free blocks; the first unit is never given out.
const NONE: u32 = 0;

/// Pages of words, given out in units of `UNIT` words, a power of two.
#[derive(Debug, Clone)]
pub(super) struct Blocks<const UNIT: usize> {
    pages: Vec<Arc<[u32]>>,
    /// First free block of each size.
    free: [u32; SIZES.len()],
    /// The first unit that was never given out.
    next: u32,
}

impl<const UNIT: usize> Blocks<UNIT> {
    const UNITS: u32 = (PAGE / UNIT) as u32;

    /// The place in [`SIZES`] of the least size that holds so many words.
    fn size_for(words: usize) -> usize {
        let units = words.div_ceil(UNIT);
        SIZES.partition_point(|size| usize::from(*size) < units)
    }

    /// The page of a block, and where in it the block begins.
    #[inline(always)]
    fn locate(block: u32) -> (usize, usize) {
        let word = block as usize * UNIT;
        (word / PAGE, word % PAGE)
    }

    /// Holds one block, number 0, with those words.
    pub(super) fn new(first: &[u32]) -> Self {
        let mut blocks = Self {
            pages: Vec::new(),
            free: [NONE; SIZES.len()],
            next: 0,
        };
        let block = blocks.allocate(first.len());
        blocks.write(block, first.len())[..first.len()].copy_from_slice(first);
        blocks
    }

    /// The words from a block's first to the end of its page; empty for a block that is not there.
    pub(super) fn read(&self, block: u32) -> &[u32] {
        let (page, offset) = Self::locate(block);
        let page = self.pages.get(page);
        page.and_then(|page| page.get(offset..)).unwrap_or(&[])
    }

    /// One word, counted from a block's first; 0 when there is none.
    #[inline(always)]
    pub(super) fn word(&self, block: u32, offset: usize) -> u32 {
        let (page, start) = Self::locate(block);
        let page = self.pages.get(page);
        let word = page.and_then(|page| page.get(start + offset));
        word.copied().unwrap_or(0)
    }

    /// So many words of a block, for writing; other copies keep theirs.
    pub(super) fn write(&mut self, block: u32, words: usize) -> &mut [u32] {
        let (page, offset) = Self::locate(block);
        &mut Arc::make_mut(&mut self.pages[page])[offset..offset + words]
    }

    /// A block for so many words; what it holds is left from before.
    pub(super) fn allocate(&mut self, words: usize) -> u32 {
        let size = Self::size_for(words);
        let block = self.free[size];
        if block != NONE {
            self.free[size] = self.word(block, 0);
            return block;
        }
        let units = u32::from(SIZES[size]);
        let left = Self::UNITS - self.next % Self::UNITS;
        if units > left {
            self.give(left);
        }
        self.take(units)
    }

    /// Takes new units from the end; they fit in the page.
    fn take(&mut self, units: u32) -> u32 {
        let block = self.next;
        self.next += units;
        let (page, start) = Self::locate(block);
        let end = start + units as usize * UNIT;
        if page == self.pages.len() {
            // The first page starts small, for the sake of small tables.
            let words = if page == 0 {
                end.next_power_of_two()
            } else {
                PAGE
            };
            self.pages.push(vec![0; words].into());
        } else if self.pages[page].len() < end {
            let mut grown = self.pages[page].to_vec();
            grown.resize(end.next_power_of_two().min(PAGE), 0);
            self.pages[page] = grown.into();
        }
        block
    }

    /// Puts new units at the end of a page on the free lists, since nothing wants them now.
    fn give(&mut self, mut units: u32) {
        while units > 0 {
            let size = SIZES.partition_point(|size| u32::from(*size) <= units) - 1;
            let part = u32::from(SIZES[size]);
            let block = self.take(part);
            self.release_size(block, size);
            units -= part;
        }
    }

    /// Gives back a block that was allocated for so many words.
    pub(super) fn release(&mut self, block: u32, words: usize) {
        self.release_size(block, Self::size_for(words));
    }

    fn release_size(&mut self, block: u32, size: usize) {
        let next = self.free[size];
        self.write(block, 1)[0] = next;
        self.free[size] = block;
    }

    /// Whether a block for `old` words holds `new` words too and wastes no more than one allocated for them.
    pub(super) fn same_size(old: usize, new: usize) -> bool {
        Self::size_for(old) == Self::size_for(new)
    }

    /// Bytes of all pages.
    pub(super) fn bytes(&self) -> usize {
        let words: usize = self.pages.iter().map(|page| page.len()).sum();
        words * 4 + self.pages.len() * (size_of::<Arc<[u32]>>() + 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_do_not_see_each_others_writes() {
        let mut one = Blocks::<16>::new(&[7; 16]);
        let block = one.allocate(100);
        one.write(block, 100).fill(1);
        let mut two = one.clone();
        two.write(block, 100).fill(2);
        assert!(one.read(block)[..100].iter().all(|word| *word == 1));
        assert!(two.read(block)[..100].iter().all(|word| *word == 2));
        assert_eq!(one.word(0, 3), 7);
    }

    #[test]
    fn blocks_do_not_overlap_and_are_given_out_again() {
        let mut blocks = Blocks::<16>::new(&[0; 16]);
        let sizes = [26, 1297, 40, 300, 16, 90, 512];
        let mut taken: Vec<(u32, usize)> = (0..2000)
            .map(|i| (blocks.allocate(sizes[i % 7]), sizes[i % 7]))
            .collect();
        for (block, words) in &taken {
            blocks.write(*block, *words).fill(*block);
        }
        for (block, words) in &taken {
            assert!(
                blocks.read(*block)[..*words]
                    .iter()
                    .all(|word| word == block)
            );
        }
        let bytes = blocks.bytes();
        for (block, words) in taken.drain(..) {
            blocks.release(block, words);
        }
        for i in 0..2000 {
            blocks.allocate(sizes[i % 7]);
        }
        assert_eq!(blocks.bytes(), bytes, "nothing new was needed");
    }
}
