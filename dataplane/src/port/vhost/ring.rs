//! Descriptor chains and their errors, shared by split and packed rings.
//!
//! A guest's rings are not trusted: every value is read once, checked, and used as it was read.

#![allow(unsafe_code)]

use std::sync::atomic::AtomicU16;

use super::memory::GuestMemory;

/// Buffers that one chain may name, indirect ones included.
pub(super) const MAX_PIECES: usize = 256;

/// Flags of a descriptor.
pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// What a guest's driver did wrong. It costs the guest this queue until its driver starts it anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum Fault {
    /// The ring's parts do not lie in the guest's memory, or not where they may.
    #[error("the ring is outside of the guest's memory")]
    Ring = 1,
    /// More entries than the ring has.
    #[error("a ring index is ahead by more than the ring's size")]
    Index,
    /// A descriptor that is none of the ring.
    #[error("a descriptor index is past the end of the ring")]
    Descriptor,
    /// A chain that does not end, or names too many buffers.
    #[error("a descriptor chain loops or is too long")]
    Chain,
    /// A buffer that is not in the guest's memory.
    #[error("a buffer is outside of the guest's memory")]
    Buffer,
    /// A buffer to read where one to write belongs, or the other way round.
    #[error("a buffer has the wrong direction")]
    Direction,
    /// An indirect table that was not agreed on, in another, or of a wrong length.
    #[error("an indirect table is not allowed here or has a wrong length")]
    Indirect,
    /// The memory itself has gone.
    #[error("the guest's memory has vanished")]
    Memory,
}

impl Fault {
    /// The fault of that number.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        [
            Self::Ring,
            Self::Index,
            Self::Descriptor,
            Self::Chain,
            Self::Buffer,
            Self::Direction,
            Self::Indirect,
            Self::Memory,
        ]
        .into_iter()
        .find(|fault| *fault as u8 == number)
    }
}

/// A part of a buffer, mapped here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) at: *mut u8,
    pub(super) guest: u64,
    pub(super) len: u32,
}

/// The buffers of one chain.
#[derive(Debug)]
pub(super) struct Chain {
    pieces: [Piece; MAX_PIECES],
    count: usize,
    /// Bytes in all of them.
    pub(super) bytes: u64,
}

// SAFETY: the pointers are into guest memory, which outlives the chain's use and is touched by raw copies alone.
unsafe impl Send for Chain {}

impl Chain {
    pub(super) fn new() -> Box<Self> {
        let none = Piece {
            at: std::ptr::null_mut(),
            guest: 0,
            len: 0,
        };
        Box::new(Self {
            pieces: [none; MAX_PIECES],
            count: 0,
            bytes: 0,
        })
    }

    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.count = 0;
        self.bytes = 0;
    }

    #[inline(always)]
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces[..self.count]
    }

    /// Adds a descriptor's buffer.
    #[inline(always)]
    pub(super) fn add(&mut self, memory: &GuestMemory, guest: u64, len: u32) -> Result<(), Fault> {
        match memory.translate(guest, len as usize) {
            Some(at) => self.push(Piece { at, guest, len }),
            None => self.add_parts(memory, guest, len),
        }
    }

    #[inline(always)]
    fn push(&mut self, piece: Piece) -> Result<(), Fault> {
        let place = self.pieces.get_mut(self.count).ok_or(Fault::Chain)?;
        *place = piece;
        self.count += 1;
        self.bytes += u64::from(piece.len);
        Ok(())
    }

    /// A buffer that crosses from one region into the next.
    #[cold]
    fn add_parts(
        &mut self,
        memory: &GuestMemory,
        mut guest: u64,
        mut len: u32,
    ) -> Result<(), Fault> {
        while len > 0 {
            let (at, reach) = memory.reach(guest).ok_or(Fault::Buffer)?;
            let part = u64::from(len).min(reach) as u32;
            self.push(Piece {
                at,
                guest,
                len: part,
            })?;
            guest = guest.checked_add(u64::from(part)).ok_or(Fault::Buffer)?;
            len -= part;
        }
        Ok(())
    }
}

/// A descriptor as both kinds of ring have it in an indirect table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) guest: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    /// The next one's number in a split ring.
    pub(super) next: u16,
}

/// A chain that was taken from a ring and has to be given back.
///
/// One word, not two halves: stored as halves and loaded as a whole, it would wait for every store before it, and those to a guest's memory
/// are slow.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Head(u64);

impl Head {
    #[inline(always)]
    pub(super) fn new(id: u16, entries: u16) -> Self {
        Self(u64::from(entries) << 16 | u64::from(id))
    }

    /// How the driver knows it.
    #[inline(always)]
    pub(super) fn id(self) -> u16 {
        self.0 as u16
    }

    /// Entries of a packed ring that it takes.
    #[inline(always)]
    pub(super) fn entries(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// Where a part of a ring lies, by the monitor's address, and what the guest calls that place.
pub(super) fn part(
    memory: &GuestMemory,
    address: u64,
    len: usize,
    alignment: usize,
) -> Result<(*mut u8, u64), Fault> {
    memory
        .of_monitor(address, len)
        .filter(|(at, _)| at.addr().is_multiple_of(alignment))
        .ok_or(Fault::Ring)
}

/// A field that the driver and we share.
#[inline(always)]
pub(super) fn atomic(at: *mut u8) -> &'static AtomicU16 {
    // SAFETY: callers pass aligned addresses within a ring, which is mapped for as long as the ring is served; the reference is not kept.
    unsafe { AtomicU16::from_ptr(at.cast()) }
}

/// One direction of a queue, as we serve it. Nothing here blocks or allocates.
pub(super) trait Ring {
    /// Sees how far the driver is.
    fn refresh(&mut self) -> Result<(), Fault>;

    /// Takes the next chain, whose buffers are all to be written, or all to be read. None: the driver has made no more available.
    fn take(
        &mut self,
        memory: &GuestMemory,
        write: bool,
        chain: &mut Chain,
    ) -> Result<Option<Head>, Fault>;

    /// Where the first buffer of a chain that comes later will be; a guess, to have it in the cache by then.
    fn ahead(&self, chains: u16) -> Option<u64>;

    /// Undoes the taking of the last chains, which took so many entries.
    fn put_back(&mut self, heads: &[Head]);

    /// Gives a chain back, with so many bytes written. The driver sees it after [`Ring::publish`].
    fn give(&mut self, memory: &GuestMemory, head: Head, written: u32);

    /// Shows the driver what was given back. Returns whether it wants to be called for that.
    fn publish(&mut self, memory: &GuestMemory) -> bool;

    /// Asks the driver not to kick.
    fn silence(&mut self);

    /// Asks the driver to kick. True: there is something already.
    fn listen(&mut self) -> bool;

    /// Where we are, as the protocol has it.
    fn base(&self) -> u32;
}
