//! Entries of the short way: runs of two bytes in pages that copies share, as [`blocks`](super::blocks) are.

use std::sync::Arc;

/// Runs are given out in so many entries: 16 bytes.
pub(super) const UNIT: usize = 8;
const PAGE: usize = 8192;
/// The longest run, in units.
const LONGEST: usize = 256 / UNIT;

/// Pages of entries.
#[derive(Debug, Clone)]
pub(super) struct Entries {
    pages: Vec<Arc<[u16; PAGE]>>,
    /// First entries of free runs, by their units.
    free: Vec<Vec<u32>>,
    next: u32,
}

impl Entries {
    /// Holds one unit of zeroes, from 0 on.
    pub(super) fn new() -> Self {
        Self {
            pages: vec![Arc::new([0; PAGE])],
            free: vec![Vec::new(); LONGEST + 1],
            next: UNIT as u32,
        }
    }

    /// One entry; 0 when there is none.
    #[inline(always)]
    pub(super) fn get(&self, place: u32) -> u16 {
        let place = place as usize;
        self.pages
            .get(place / PAGE)
            .map_or(0, |page| page[place % PAGE])
    }

    /// Stores a run of at most 256; its place.
    pub(super) fn insert(&mut self, run: &[u16]) -> u32 {
        let units = run.len().div_ceil(UNIT);
        let place = self.free[units].pop().unwrap_or_else(|| {
            let left = (PAGE - self.next as usize % PAGE) / UNIT;
            if left < units {
                self.free[left].push(self.next);
                self.next += (left * UNIT) as u32;
            }
            let place = self.next;
            self.next += (units * UNIT) as u32;
            place
        });
        let (page, start) = (place as usize / PAGE, place as usize % PAGE);
        if page == self.pages.len() {
            self.pages.push(Arc::new([0; PAGE]));
        }
        Arc::make_mut(&mut self.pages[page])[start..start + run.len()].copy_from_slice(run);
        place
    }

    /// Gives back a run of that length.
    pub(super) fn remove(&mut self, place: u32, length: usize) {
        self.free[length.div_ceil(UNIT)].push(place);
    }

    /// Bytes of memory, if nothing is shared.
    pub(super) fn bytes(&self) -> usize {
        let free: usize = self.free.iter().map(Vec::capacity).sum();
        self.pages.len() * (size_of::<[u16; PAGE]>() + 24) + 4 * free
    }
}
