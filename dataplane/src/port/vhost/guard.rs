//! Guest memory that vanishes. Who shares memory with us may truncate the file behind it; touching it then raises SIGBUS, which would end
//! the daemon for all guests. The handler puts zeroes in its place and marks the region as gone, and its guest loses the port.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// Regions that can be guarded at once: more than 1024 ports with several regions each.
const SLOTS: usize = 8192;

struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    gone: AtomicBool,
}

static REGIONS: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        gone: AtomicBool::new(false),
    }
}; SLOTS];
/// Slots from here on have never been used.
static USED: AtomicUsize = AtomicUsize::new(0);
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static INSTALL: Once = Once::new();

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
        slot.end.store(start + len, Ordering::Relaxed);
        slot.start.store(start, Ordering::Release);
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
        REGIONS[self.0].start.store(0, Ordering::Release);
        REGIONS[self.0].end.store(0, Ordering::Release);
        FREE.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.0);
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
        let (start, end) = (
            slot.start.load(Ordering::Acquire),
            slot.end.load(Ordering::Relaxed),
        );
        if (start..end).contains(&address) {
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
    fn slots_are_used_again() {
        let before = USED.load(Ordering::Relaxed);
        for _ in 0..3 * SLOTS {
            drop(shared(4096));
        }
        assert!(USED.load(Ordering::Relaxed) <= before + 64);
    }
}
