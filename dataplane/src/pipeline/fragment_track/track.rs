//! One datagram: which of its bytes have come, and what became of its first fragment.

use super::{Datagram, First};
use crate::packet::{DropReason, Fragment, Packet};

/// Fragments of one datagram. One of 64 KiB has 46 on 1500 bytes, and twice as many after a tunnel that is a little narrower.
const PIECES: usize = 128;

/// What becomes of a datagram's fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The first was not seen yet.
    Open,
    /// The first has passed.
    Passed(First),
    /// The first was dropped.
    Refused,
    /// Two fragments overlap.
    Overlapped,
}

impl Fate {
    /// Why fragments are dropped whose first was.
    pub(super) const REFUSED: DropReason = DropReason::FragmentOrphan;
}

/// A datagram that is not complete.
#[derive(Debug)]
pub(super) struct Track {
    pub(super) datagram: Datagram,
    /// Its origin's place in the ledger.
    pub(super) owner: u32,
    /// When its first piece came, and the last one that fitted; in milliseconds.
    pub(super) created: u32,
    pub(super) touched: u32,
    pub(super) fate: Fate,
    pub(super) waiting: Vec<Packet>,
    /// Bytes that have come, and bytes in all once the last fragment has.
    received: u32,
    total: Option<u32>,
    /// Offset and length of each piece.
    count: u8,
    pieces: [(u16, u16); PIECES],
}

/// How a piece lies to those that have come.
#[derive(Debug, PartialEq, Eq)]
enum Lies {
    Apart,
    Again,
    Across,
}

impl Track {
    pub(super) fn new(datagram: Datagram, owner: u32, now: u32) -> Self {
        Self {
            datagram,
            owner,
            created: now,
            touched: now,
            fate: Fate::Open,
            waiting: Vec::new(),
            received: 0,
            total: None,
            count: 0,
            pieces: [(0, 0); PIECES],
        }
    }

    /// Begins another datagram in the place of one that nothing waits for.
    pub(super) fn begin(&mut self, datagram: Datagram, owner: u32, now: u32) {
        (self.datagram, self.owner) = (datagram, owner);
        (self.created, self.touched) = (now, now);
        self.fate = Fate::Open;
        (self.count, self.received, self.total) = (0, 0, None);
    }

    fn lies(&self, fragment: Fragment) -> Lies {
        let (from, to) = bounds((fragment.offset, fragment.len));
        let mut lies = Lies::Apart;
        for piece in &self.pieces[..usize::from(self.count)] {
            if *piece == (fragment.offset, fragment.len) {
                return Lies::Again;
            }
            let (other_from, other_to) = bounds(*piece);
            if from < other_to && other_from < to {
                lies = Lies::Across;
            }
        }
        lies
    }

    /// Whether a fragment may be of this datagram.
    pub(super) fn fits(&self, fragment: Fragment) -> bool {
        self.fate != Fate::Overlapped && self.lies(fragment) == Lies::Apart
    }

    /// Notes where a fragment lies.
    pub(super) fn place(&mut self, fragment: Fragment, now: u32) -> Result<(), DropReason> {
        if self.fate == Fate::Overlapped {
            return Err(DropReason::FragmentOverlap);
        }
        match self.lies(fragment) {
            Lies::Apart => {}
            Lies::Again => return Err(DropReason::FragmentDuplicate),
            Lies::Across => {
                if self.fate != Fate::Refused {
                    self.fate = Fate::Overlapped;
                }
                return Err(DropReason::FragmentOverlap);
            }
        }
        let Some(free) = self.pieces.get_mut(usize::from(self.count)) else {
            return Err(DropReason::FragmentTable);
        };
        *free = (fragment.offset, fragment.len);
        self.count += 1;
        self.received += u32::from(fragment.len);
        if !fragment.more {
            // Of two that say that they are the last, the farther one counts: the datagram stays known for longer.
            let (_, end) = bounds((fragment.offset, fragment.len));
            self.total = self.total.max(Some(end));
        }
        self.touched = now;
        Ok(())
    }

    /// The first fragment was judged. All others come again.
    pub(super) fn judge(&mut self, fragment: Fragment, first: Option<First>) {
        self.fate = first.map_or(Fate::Refused, Fate::Passed);
        self.pieces[0] = (fragment.offset, fragment.len);
        (self.count, self.received, self.total) = (1, fragment.len.into(), None);
    }

    /// Whether every byte has come.
    pub(super) fn is_complete(&self) -> bool {
        self.total.is_some_and(|total| self.received >= total)
    }
}

fn bounds((offset, len): (u16, u16)) -> (u32, u32) {
    (offset.into(), u32::from(offset) + u32::from(len))
}
