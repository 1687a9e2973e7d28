//! Memory for the session table: zero from the start, taken from the system page by page as it is first written, on huge pages where
//! the system grants them. So the table's cap costs address space, its use costs memory, and it grows without ever being moved.

#![allow(unsafe_code)]

use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, Range};
use std::ptr::{NonNull, null_mut};

use super::index::Bucket;
use super::slot::{FlowEntry, Slot};
use super::translation::Line;

/// Bytes of a huge page on the architectures that have AF_XDP.
const HUGE_PAGE: usize = 2 << 20;

/// No page is smaller.
const PAGE: usize = 4096;

/// Types of which all bytes zero is a value.
///
/// # Safety
/// Zeroed memory is a valid value of the type, which needs no drop.
pub unsafe trait Zeroed: Sync {}

// SAFETY: made of atomic integers alone.
unsafe impl Zeroed for Slot {}
// SAFETY: made of atomic integers alone.
unsafe impl Zeroed for FlowEntry {}
// SAFETY: made of atomic integers alone.
unsafe impl Zeroed for Line {}
// SAFETY: made of atomic integers alone.
unsafe impl Zeroed for Bucket {}

/// So many values, zero at first.
#[derive(Debug)]
pub struct Arena<T: Zeroed> {
    values: NonNull<T>,
    len: usize,
    mapping: NonNull<libc::c_void>,
    bytes: usize,
}

// SAFETY: the arena owns its mapping, and hands out shared references alone, to values that are Sync.
unsafe impl<T: Zeroed> Send for Arena<T> {}
// SAFETY: as above.
unsafe impl<T: Zeroed> Sync for Arena<T> {}

impl<T: Zeroed> Arena<T> {
    /// Address space for `len` values.
    ///
    /// Ends the process when there is none, as an allocation that fails does.
    pub fn new(len: usize) -> Self {
        let layout = Layout::array::<T>(len.max(1)).unwrap_or(Layout::new::<T>());
        let huge = layout.size() >= HUGE_PAGE;
        // Room to begin at a huge page's border.
        let bytes = layout.size() + if huge { HUGE_PAGE } else { 0 };
        // SAFETY: a new anonymous mapping touches no memory that anybody has.
        let mapping = unsafe {
            libc::mmap(
                null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let Some(mapping) =
            NonNull::new(mapping).filter(|address| address.as_ptr() != libc::MAP_FAILED)
        else {
            handle_alloc_error(layout)
        };
        let skip = if huge {
            mapping.as_ptr().align_offset(HUGE_PAGE).min(HUGE_PAGE)
        } else {
            0
        };
        // SAFETY: the mapping is longer than the values by a huge page, if any is skipped.
        let values = unsafe { mapping.byte_add(skip) };
        if huge {
            // A wish: without huge pages the table works the same.
            // SAFETY: the range lies within the new mapping.
            unsafe { libc::madvise(values.as_ptr(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        Self {
            values: values.cast(),
            len,
            mapping,
            bytes,
        }
    }
}

impl<T: Zeroed> Arena<T> {
    /// Takes the memory of some values now, so that their first use does not wait for it: clearing a huge page takes longer than a ring of
    /// packets lasts. Where the kernel cannot (before Linux 5.14), the first use does.
    pub fn populate(&self, range: Range<usize>) {
        let part = self.get(range).unwrap_or_default().as_ptr_range();
        let (start, end) = (part.start.addr() & !(PAGE - 1), part.end.addr());
        let mapping = self.mapping.as_ptr();
        // SAFETY: the range lies within the mapping, since the values do and the mapping begins at a page; what has been written there stays.
        unsafe {
            let start = mapping.with_addr(start.max(mapping.addr()));
            libc::madvise(
                start,
                end.saturating_sub(start.addr()),
                libc::MADV_POPULATE_WRITE,
            );
        }
    }
}

impl<T: Zeroed> Deref for Arena<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `values` begins `len` values within the mapping, aligned to a page; zero is a value of them, and the mapping lives as long as the arena.
        unsafe { std::slice::from_raw_parts(self.values.as_ptr(), self.len) }
    }
}

impl<T: Zeroed> Drop for Arena<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is this arena's, whole, and no reference outlives the arena.
        unsafe { libc::munmap(self.mapping.as_ptr(), self.bytes) };
    }
}
