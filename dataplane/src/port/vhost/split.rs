//! Split rings (virtio 1.2, §2.7).

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::link::Setup;
use super::memory::GuestMemory;
use super::ring::{
    Chain, Descriptor, Fault, Head, INDIRECT, MAX_PIECES, NEXT, Ring, WRITE, atomic, part,
};

/// The driver does not want to be called.
const NO_INTERRUPT: u16 = 1;
/// We do not want to be kicked.
const NO_NOTIFY: u16 = 1;

/// A split ring.
#[derive(Debug)]
pub(super) struct Split {
    size: u16,
    descriptors: *const u8,
    available: *mut u8,
    used: *mut u8,
    /// What the guest calls the used ring, for the dirty log.
    used_guest: Option<u64>,
    event_index: bool,
    indirect: bool,
    // The ring's indices, of which the low 16 bits are in the ring. They are counted without end in words of their own: halves side by side
    // are loaded as one word, which has to wait until a half that was just stored has left for the cache, behind all stores to the guest.
    /// The next chain that we take.
    next: u64,
    /// How far the driver was when we last looked.
    seen: u64,
    /// Chains given back, and how many of those the driver can see.
    given: u64,
    shown: u64,
}

// SAFETY: the pointers are into guest memory, which whoever holds the ring holds too.
unsafe impl Send for Split {}

impl Split {
    /// The ring that was described.
    ///
    /// # Errors
    /// It does not lie in the guest's memory.
    pub(super) fn new(memory: &GuestMemory, setup: &Setup) -> Result<Self, Fault> {
        let size = usize::from(setup.size);
        let part = |address, len, alignment| part(memory, address, len, alignment);
        if !setup.size.is_power_of_two() {
            return Err(Fault::Ring);
        }
        let (descriptors, _) = part(setup.descriptors, 16 * size, 16)?;
        let (available, _) = part(setup.driver, 6 + 2 * size, 2)?;
        let (used, _) = part(setup.device, 6 + 8 * size, 4)?;
        let mut ring = Self {
            size: setup.size,
            descriptors,
            available,
            used,
            used_guest: setup.log,
            event_index: setup.event_index,
            indirect: setup.indirect,
            next: 0,
            seen: 0,
            given: 0,
            shown: 0,
        };
        // Chains are given back in the order in which they are taken, so what counts is how many were: whatever was taken besides, by
        // one that served the ring before and was killed, is taken again.
        let given = u64::from(ring.used_index().load(Ordering::Acquire));
        (ring.next, ring.seen, ring.given, ring.shown) = (given, given, given, given);
        ring.silence();
        Ok(ring)
    }

    fn used_index(&self) -> &AtomicU16 {
        atomic(self.used.wrapping_add(2))
    }

    #[inline(always)]
    fn available_entry(&self, number: u64) -> u16 {
        let slot = usize::from(number as u16 & (self.size - 1));
        let at = self.available.wrapping_add(4 + 2 * slot);
        atomic(at).load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn descriptor_at(table: *const u8, number: u16) -> Descriptor {
        // SAFETY: the caller has checked that the table has the entry. The guest may change it meanwhile, so it is read once.
        let [guest, rest] = unsafe {
            let at = table.cast::<u64>().add(2 * usize::from(number));
            [at.read_volatile(), at.add(1).read_volatile()]
        };
        Descriptor {
            guest,
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }
}

impl Ring for Split {
    #[inline(always)]
    fn refresh(&mut self) -> Result<(), Fault> {
        let index = atomic(self.available.wrapping_add(2)).load(Ordering::Acquire);
        let ahead = index.wrapping_sub(self.next as u16);
        if ahead > self.size {
            return Err(Fault::Index);
        }
        self.seen = self.next + u64::from(ahead);
        Ok(())
    }

    #[inline(always)]
    fn take(
        &mut self,
        memory: &GuestMemory,
        write: bool,
        chain: &mut Chain,
    ) -> Result<Option<Head>, Fault> {
        if self.next == self.seen {
            return Ok(None);
        }
        let id = self.available_entry(self.next);
        if id >= self.size {
            return Err(Fault::Descriptor);
        }
        chain.clear();
        let mut table = (self.descriptors, self.size);
        let mut descriptor = Self::descriptor_at(table.0, id);
        if descriptor.flags & INDIRECT != 0 {
            table = indirect(memory, &descriptor, self.indirect)?;
            descriptor = Self::descriptor_at(table.0, 0);
        }
        let mut steps = 1;
        loop {
            if (descriptor.flags & WRITE != 0) != write {
                return Err(Fault::Direction);
            }
            if descriptor.flags & INDIRECT != 0 {
                return Err(Fault::Indirect);
            }
            chain.add(memory, descriptor.guest, descriptor.len)?;
            if descriptor.flags & NEXT == 0 {
                break;
            }
            if descriptor.next >= table.1 {
                return Err(Fault::Descriptor);
            }
            steps += 1;
            if steps > MAX_PIECES {
                return Err(Fault::Chain);
            }
            descriptor = Self::descriptor_at(table.0, descriptor.next);
        }
        self.next += 1;
        Ok(Some(Head::new(id, 1)))
    }

    #[inline(always)]
    fn ahead(&self, chains: u16) -> Option<u64> {
        let number = self.next + u64::from(chains);
        if number >= self.seen {
            return None;
        }
        let id = self.available_entry(number);
        (id < self.size).then(|| Self::descriptor_at(self.descriptors, id).guest)
    }

    fn put_back(&mut self, heads: &[Head]) {
        self.next -= heads.len() as u64;
    }

    #[inline(always)]
    fn give(&mut self, memory: &GuestMemory, head: Head, written: u32) {
        let at = 4 + 8 * usize::from(self.given as u16 & (self.size - 1));
        // SAFETY: an entry of the used ring, which lies in the guest's memory and is aligned.
        unsafe {
            self.used
                .add(at)
                .cast::<[u32; 2]>()
                .write_volatile([head.id().into(), written]);
        }
        if let Some(guest) = self.used_guest {
            memory.written(guest + at as u64, 8);
        }
        self.given += 1;
    }

    #[inline(always)]
    fn publish(&mut self, memory: &GuestMemory) -> bool {
        let (old, new) = (self.shown, self.given);
        if old == new {
            return false;
        }
        self.used_index().store(new as u16, Ordering::Release);
        self.shown = new;
        if let Some(guest) = self.used_guest {
            memory.written(guest + 2, 2);
        }
        // The driver must see the index before we look whether it sleeps (§2.7.7.2).
        fence(Ordering::SeqCst);
        if self.event_index {
            let at = self.available.wrapping_add(4 + 2 * usize::from(self.size));
            needs_event(atomic(at).load(Ordering::Relaxed), new as u16, old as u16)
        } else {
            atomic(self.available).load(Ordering::Relaxed) & NO_INTERRUPT == 0
        }
    }

    fn silence(&mut self) {
        if !self.event_index {
            atomic(self.used).store(NO_NOTIFY, Ordering::Relaxed);
        }
    }

    fn listen(&mut self) -> bool {
        if self.event_index {
            let at = self.used.wrapping_add(4 + 8 * usize::from(self.size));
            atomic(at).store(self.next as u16, Ordering::Relaxed);
        } else {
            atomic(self.used).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        atomic(self.available.wrapping_add(2)).load(Ordering::Acquire) != self.next as u16
    }

    fn base(&self) -> u32 {
        u32::from(self.next as u16)
    }
}

/// Whether moving from `old` to `new` passes the index at which the other side wants to hear (§2.7.10).
#[inline(always)]
pub(super) fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The table that an indirect descriptor names, and its length.
pub(super) fn indirect(
    memory: &GuestMemory,
    descriptor: &Descriptor,
    agreed: bool,
) -> Result<(*const u8, u16), Fault> {
    let entries = descriptor.len / 16;
    if !agreed
        || descriptor.flags & NEXT != 0
        || !descriptor.len.is_multiple_of(16)
        || !(1..=MAX_PIECES as u32).contains(&entries)
    {
        return Err(Fault::Indirect);
    }
    let table = memory
        .translate(descriptor.guest, descriptor.len as usize)
        .filter(|at| at.addr().is_multiple_of(8))
        .ok_or(Fault::Buffer)?;
    Ok((table, entries as u16))
}
