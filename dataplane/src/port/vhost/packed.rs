//! Packed rings (virtio 1.2, §2.8).

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::link::Setup;
use super::memory::GuestMemory;
use super::ring::{
    Chain, Descriptor, Fault, Head, INDIRECT, MAX_PIECES, NEXT, Ring, WRITE, atomic, part,
};
use super::split::{indirect, needs_event};

const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Event suppression (§2.8.10): always, never, at one entry.
const EVENTS_ON: u16 = 0;
const EVENTS_OFF: u16 = 1;
const EVENTS_AT: u16 = 2;

/// Bytes of a descriptor.
const ENTRY: usize = 16;

/// A place in the ring, and how often the ring has been gone round, modulo 2. One word, so that it is loaded as it was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place(u64);

impl Place {
    const WRAP: u64 = 1 << 15;

    fn from_base(base: u16, size: u16) -> Result<Self, Fault> {
        if base & 0x7fff >= size {
            return Err(Fault::Index);
        }
        Ok(Self(base.into()))
    }

    #[inline(always)]
    fn base(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    fn entry(self) -> u16 {
        self.0 as u16 & 0x7fff
    }

    #[inline(always)]
    fn wrap(self) -> bool {
        self.0 & Self::WRAP != 0
    }

    #[inline(always)]
    fn at(entry: u64, wrap: u64) -> Self {
        Self(entry | wrap)
    }

    #[inline(always)]
    fn forward(&mut self, entries: u16, size: u16) {
        let (entry, wrap) = (
            u64::from(self.entry()) + u64::from(entries),
            self.0 & Self::WRAP,
        );
        let size = u64::from(size);
        *self = if entry >= size {
            Self::at(entry - size, wrap ^ Self::WRAP)
        } else {
            Self::at(entry, wrap)
        };
    }

    fn back(&mut self, entries: u16, size: u16) {
        let (entry, wrap) = (u64::from(self.entry()), self.0 & Self::WRAP);
        let entries = u64::from(entries);
        *self = if entries > entry {
            Self::at(entry + u64::from(size) - entries, wrap ^ Self::WRAP)
        } else {
            Self::at(entry - entries, wrap)
        };
    }
}

/// A packed ring.
#[derive(Debug)]
pub(super) struct Packed {
    size: u16,
    descriptors: *mut u8,
    /// The driver's word on being called, and ours on being kicked.
    driver: *mut u8,
    device: *mut u8,
    /// What the guest calls the ring, for the dirty log.
    guest: Option<u64>,
    event_index: bool,
    indirect: bool,
    next: Place,
    given: Place,
    /// The first entry that was given back since [`Ring::publish`], and its flags: the driver sees none of those behind it before.
    held: Option<(u16, u16)>,
    /// Where `given` stood at the last publication.
    shown: Place,
}

// SAFETY: the pointers are into guest memory, which whoever holds the ring holds too.
unsafe impl Send for Packed {}

impl Packed {
    /// The ring that was described.
    ///
    /// # Errors
    /// It does not lie in the guest's memory, or begins past its end.
    pub(super) fn new(memory: &GuestMemory, setup: &Setup) -> Result<Self, Fault> {
        let part = |address, len, alignment| part(memory, address, len, alignment);
        if !(1..=0x8000).contains(&setup.size) {
            return Err(Fault::Ring);
        }
        let (descriptors, guest) = part(setup.descriptors, ENTRY * usize::from(setup.size), 16)?;
        let (driver, _) = part(setup.driver, 4, 4)?;
        let (device, _) = part(setup.device, 4, 4)?;
        // Everything that is taken is given back at once, so that one place says it all.
        let place = Place::from_base(setup.base as u16, setup.size)?;
        let mut ring = Self {
            size: setup.size,
            descriptors,
            driver,
            device,
            guest: setup.log.map(|_| guest),
            event_index: setup.event_index,
            indirect: setup.indirect,
            next: place,
            given: place,
            held: None,
            shown: place,
        };
        ring.silence();
        Ok(ring)
    }

    #[inline(always)]
    fn flags(&self, entry: u16) -> &AtomicU16 {
        atomic(
            self.descriptors
                .wrapping_add(ENTRY * usize::from(entry) + 14),
        )
    }

    /// Reads an entry; the guest may change it meanwhile, so once.
    #[inline(always)]
    fn read(table: *const u8, number: u16) -> (Descriptor, u16) {
        // SAFETY: the caller has checked that the table has the entry.
        let [guest, rest] = unsafe {
            let at = table.cast::<u64>().add(2 * usize::from(number));
            [at.read_volatile(), at.add(1).read_volatile()]
        };
        let descriptor = Descriptor {
            guest,
            len: rest as u32,
            flags: (rest >> 48) as u16,
            next: 0,
        };
        (descriptor, (rest >> 32) as u16)
    }

    #[inline(always)]
    fn is_available(flags: u16, wrap: bool) -> bool {
        (flags & AVAILABLE != 0) == wrap && (flags & USED != 0) != wrap
    }

    fn add_indirect(
        &self,
        memory: &GuestMemory,
        descriptor: &Descriptor,
        write: bool,
        chain: &mut Chain,
    ) -> Result<(), Fault> {
        let (table, entries) = indirect(memory, descriptor, self.indirect)?;
        for number in 0..entries {
            let (entry, _) = Self::read(table, number);
            // In such a table only the direction counts (§2.8.7).
            if (entry.flags & WRITE != 0) != write {
                return Err(Fault::Direction);
            }
            chain.add(memory, entry.guest, entry.len)?;
        }
        Ok(())
    }
}

impl Ring for Packed {
    #[inline(always)]
    fn refresh(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    #[inline(always)]
    fn take(
        &mut self,
        memory: &GuestMemory,
        write: bool,
        chain: &mut Chain,
    ) -> Result<Option<Head>, Fault> {
        let flags = self.flags(self.next.entry()).load(Ordering::Acquire);
        if !Self::is_available(flags, self.next.wrap()) {
            return Ok(None);
        }
        chain.clear();
        let mut place = self.next;
        let mut entries = 0;
        loop {
            let (descriptor, id) = Self::read(self.descriptors, place.entry());
            entries += 1;
            if descriptor.flags & INDIRECT != 0 {
                if entries > 1 {
                    return Err(Fault::Indirect);
                }
                self.add_indirect(memory, &descriptor, write, chain)?;
            } else {
                if (descriptor.flags & WRITE != 0) != write {
                    return Err(Fault::Direction);
                }
                chain.add(memory, descriptor.guest, descriptor.len)?;
            }
            place.forward(1, self.size);
            if descriptor.flags & NEXT == 0 || descriptor.flags & INDIRECT != 0 {
                self.next = place;
                return Ok(Some(Head::new(id, entries)));
            }
            if entries >= self.size || usize::from(entries) >= MAX_PIECES {
                return Err(Fault::Chain);
            }
        }
    }

    #[inline(always)]
    fn ahead(&self, chains: u16) -> Option<u64> {
        // As if every chain were one entry, which is how it is when speed counts.
        let mut place = self.next;
        place.forward(chains % self.size, self.size);
        let flags = self.flags(place.entry()).load(Ordering::Relaxed);
        Self::is_available(flags, place.wrap())
            .then(|| Self::read(self.descriptors, place.entry()).0.guest)
    }

    fn put_back(&mut self, heads: &[Head]) {
        for head in heads {
            self.next.back(head.entries(), self.size);
        }
    }

    #[inline(always)]
    fn give(&mut self, memory: &GuestMemory, head: Head, written: u32) {
        let entry = self.given.entry();
        let at = self.descriptors.wrapping_add(ENTRY * usize::from(entry));
        // SAFETY: an entry of the ring, which lies in the guest's memory and is aligned.
        unsafe {
            at.add(8).cast::<u32>().write_volatile(written);
            at.add(12).cast::<u16>().write_volatile(head.id());
        }
        let mut flags = if self.given.wrap() {
            AVAILABLE | USED
        } else {
            0
        };
        if written > 0 {
            flags |= WRITE;
        }
        if self.held.is_none() {
            self.held = Some((entry, flags));
        } else {
            self.flags(entry).store(flags, Ordering::Release);
        }
        if let Some(guest) = self.guest {
            memory.written(guest + (ENTRY * usize::from(entry)) as u64, ENTRY);
        }
        self.given.forward(head.entries(), self.size);
    }

    #[inline(always)]
    fn publish(&mut self, _memory: &GuestMemory) -> bool {
        let Some((entry, flags)) = self.held.take() else {
            return false;
        };
        self.flags(entry).store(flags, Ordering::Release);
        let old = self.shown;
        self.shown = self.given;
        // The driver must see the entries before we look whether it sleeps.
        fence(Ordering::SeqCst);
        let wish = atomic(self.driver.wrapping_add(2)).load(Ordering::Relaxed) & 3;
        match wish {
            EVENTS_OFF => false,
            EVENTS_AT if self.event_index => {
                let at = atomic(self.driver).load(Ordering::Relaxed);
                // Counted from the beginning of the round that we are in (as §2.8.10 has it).
                let mut event = at & 0x7fff;
                if (at & 0x8000 != 0) != self.given.wrap() {
                    event = event.wrapping_sub(self.size);
                }
                let (new, mut before) = (self.given.entry(), old.entry());
                if old.wrap() != self.given.wrap() {
                    before = before.wrapping_sub(self.size);
                }
                needs_event(event, new, before)
            }
            _ => true,
        }
    }

    fn silence(&mut self) {
        atomic(self.device.wrapping_add(2)).store(EVENTS_OFF, Ordering::Relaxed);
    }

    fn listen(&mut self) -> bool {
        atomic(self.device.wrapping_add(2)).store(EVENTS_ON, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let flags = self.flags(self.next.entry()).load(Ordering::Acquire);
        Self::is_available(flags, self.next.wrap())
    }

    fn base(&self) -> u32 {
        u32::from(self.next.base()) | u32::from(self.given.base()) << 16
    }
}
