//! Handles guest memory that vanishes. The owner of shared memory may truncate the file behind it. An access then raises SIGBUS, which would
//! end the daemon for all guests. The handler maps zeroes in its place and marks the region as gone, and the guest's port is closed.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, Once, PoisonError};

/// Regions that can be guarded at once: more than 1024 ports with several regions each.
const SLOTS: usize = 8192;

struct Slot {
    /// Odd while the range changes: a handler on another thread must not take one end from before and one from after, for it replaces what
    /// lies between them.
    version: AtomicUsize,
    start: AtomicUsize,
    end: AtomicUsize,
    gone: AtomicBool,
}

static REGIONS: [Slot; SLOTS] = [const {
    Slot {
        version: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        gone: AtomicBool::new(false),
    }
}; SLOTS];
/// Slots from here on have never been used.
static USED: AtomicUsize = AtomicUsize::new(0);
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static INSTALL: Once = Once::new();

impl Slot {
    /// Sets the range; callers hold the lock of the free slots.
    fn set(&self, start: usize, end: usize) {
        let version = self.version.load(Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(2), Ordering::Release);
    }

    /// The range; none while it changes. That of a region in use does not.
    fn range(&self) -> Option<Range<usize>> {
        let version = self.version.load(Ordering::Acquire);
        let range = self.start.load(Ordering::Relaxed)..self.end.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let same = self.version.load(Ordering::Relaxed) == version;
        (same && version.is_multiple_of(2)).then_some(range)
    }
}

/// A region under guard. It must be dropped before the region is unmapped.
#[derive(Debug)]
pub(super) struct Guard(usize);

impl Guard {
    /// Guards `len` bytes from `start`, whole pages of a mapping.
    ///
    /// # Errors
    /// There are too many.
    pub(super) fn new(start: usize, len: usize) -> io::Result<Self> {
        INSTALL.call_once(install);
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match free.pop() {
            Some(at) => at,
            None => {
                let at = USED.load(Ordering::Relaxed);
                if at == SLOTS {
                    return Err(io::Error::other("too many regions of guest memory"));
                }
                USED.store(at + 1, Ordering::Release);
                at
            }
        };
        let slot = &REGIONS[at];
        slot.gone.store(false, Ordering::Relaxed);
        slot.set(start, start + len);
        Ok(Self(at))
    }

    /// Whether the memory has gone: what is read there are zeroes.
    #[inline]
    pub(super) fn is_gone(&self) -> bool {
        REGIONS[self.0].gone.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        REGIONS[self.0].set(0, 0);
        free.push(self.0);
    }
}

fn install() {
    // SAFETY: the handler calls only what a signal handler may: atomics, mmap and sigaction, which are plain system calls.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
    }
}

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler that was installed with SA_SIGINFO a valid pointer.
    let address = unsafe { (*info).si_addr() } as usize;
    for slot in &REGIONS[..USED.load(Ordering::Acquire)] {
        let Some(range) = slot.range().filter(|range| range.contains(&address)) else {
            continue;
        };
        let Range { start, end } = range;
        // SAFETY: the range is a mapping of guest memory that its owner keeps until the slot is free; nothing of ours lies in it.
        // Replacing it by zeroes is what its owner expects to happen.
        let zeroes = unsafe {
            libc::mmap(
                start as *mut libc::c_void,
                end - start,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if zeroes != libc::MAP_FAILED {
            slot.gone.store(true, Ordering::Release);
            return;
        }
    }
    // Not guest memory: a fault of our own, which ends the process as it would have.
    // SAFETY: a plain system call.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::super::memory::tests::shared;
    use super::*;

    #[test]
    fn memory_that_vanishes_reads_as_zeroes_and_is_marked() {
        let (file, memory) = shared(1 << 20);
        let at = memory.translate(0x8_0000, 8).unwrap();
        // SAFETY: inside the mapping, which `memory` holds.
        unsafe { at.write_volatile(7) };
        assert!(!memory.is_gone());
        file.set_len(0).unwrap();
        // SAFETY: as above; the guard answers the fault.
        assert_eq!(unsafe { at.read_volatile() }, 0);
        assert!(memory.is_gone());
        drop(memory);
        let (_file, again) = shared(1 << 20);
        assert!(!again.is_gone());
    }

    #[test]
    fn a_range_is_never_half_of_one_and_half_of_another() {
        let slot = Slot {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
        };
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for start in (0..300_000).map(|round| round * 4096) {
                    slot.set(start, start + 64);
                }
                stop.store(true, Ordering::Release);
            });
            while !stop.load(Ordering::Acquire) {
                if let Some(range) = slot.range() {
                    assert!(range.is_empty() || range.len() == 64, "{range:?}");
                }
            }
        });
    }

    #[test]
    fn slots_are_used_again() {
        let before = USED.load(Ordering::Relaxed);
        for _ in 0..3 * SLOTS {
            drop(shared(4096));
        }
        assert!(USED.load(Ordering::Relaxed) <= before + 64);
    }
}
