//! Fragments of inner datagrams: each follows the verdict of its first (RFC 1858, RFC 3128, RFC 5722).
//!
//! The first fragment leaves its ports here. Later ones take them, and are then judged like the first. Those that come before the first
//! wait, few and not for long. A datagram whose fragments overlap is refused whole; one that has come whole is forgotten at once. Shared by all
//! workers behind a lock: fragments are not the hot path.
//!
//! Bounds: [`DATAGRAMS`] datagrams that are not complete, [`PER_OWNER`] of one [`Origin`], 0.7 KiB each; [`WAITING`] packets that wait for their
//! first, [`WAITING_PER_OWNER`] of one origin. Where there is no room, the oldest datagram gives way: of the same origin if that has its
//! share, else of the origin that has most in the VPC that has most. So whoever has little in flight loses nothing to those who have much.

mod ledger;
mod track;

use std::collections::HashMap;

use crate::numbers::Vni;
use crate::packet::{DropReason, Family, Flow, Fragment, Packet};
use crate::session::table::Ingress;

use ledger::{Ledger, Use};
use track::Fate;

/// Incomplete datagrams tracked at a time.
pub const DATAGRAMS: usize = 8192;
/// Incomplete datagrams tracked at a time of one origin.
pub const PER_OWNER: usize = 512;
/// Packets waiting for their first fragment.
pub const WAITING: usize = 256;
/// Packets of one origin that wait for their first fragment.
pub const WAITING_PER_OWNER: usize = 128;
/// Waiting packets of one datagram: one of 64 KiB, sent last fragment first over 1500 bytes, has 45.
const WAITING_EACH: usize = 64;
/// How long an incomplete datagram is tracked, in milliseconds (RFC 8200 §4.5 allows a receiver sixty seconds; most need none).
const LIFETIME: u32 = 10_000;
/// After so many milliseconds without a fragment, one that does not fit the datagram begins another of the same identification. At high rates the
/// 16 bits of IPv4 come round in half a second (RFC 4963), and the fragments of one datagram follow each other in microseconds.
const REUSE: u32 = 250;

/// Where a fragment came in: ingress and VNI. Each has a budget of its own, so that a port, and a VPC behind a peer, costs no other anything.
pub type Origin = (Ingress, Vni);

/// Names a datagram (RFC 791 §3.2; RFC 8200 §4.5, by which the next header is no part of the name: it differs between fragments).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Datagram {
    origin: Origin,
    source: u128,
    destination: u128,
    /// 0 for IPv6.
    protocol: u8,
    id: u32,
}

impl Datagram {
    fn new(origin: Origin, family: Family, flow: &Flow, fragment: Fragment) -> Self {
        Self {
            origin,
            source: flow.source,
            destination: flow.destination,
            protocol: match family {
                Family::Ipv4 => flow.protocol,
                Family::Ipv6 => 0,
            },
            id: fragment.id,
        }
    }
}

/// A fragment and where it belongs.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    datagram: Datagram,
    fragment: Fragment,
}

impl Piece {
    /// Of a fragment's parsed headers.
    pub fn new(origin: Origin, family: Family, flow: &Flow, fragment: Fragment) -> Self {
        Self {
            datagram: Datagram::new(origin, family, flow, fragment),
            fragment,
        }
    }
}

/// What a first fragment leaves to the others of its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct First {
    /// Its transport protocol: later fragments of IPv6 may name an extension header.
    pub protocol: u8,
    /// Its ports.
    pub ports: (u16, u16),
    /// Its ICMP type and code.
    pub icmp: u16,
    /// Of TCP, the sequence number that stands for offset 0: that of the first data byte, less the header's length.
    pub sequence: Option<u32>,
}

/// What to do with a later fragment.
#[derive(Debug)]
pub enum Later {
    /// It belongs to the flow of this first fragment: judge it so.
    Flow(Packet, First),
    /// It waits for its first fragment.
    Waits,
    /// It is to be dropped.
    Drop(Packet, DropReason),
}

/// A packet that waited in vain, for the owner of the frames to take back.
pub type Released = (Ingress, Packet, DropReason);

/// The datagrams in flight.
#[derive(Debug, Default)]
pub struct Fragments {
    tracks: HashMap<Datagram, u32>,
    ledger: Ledger,
}

impl Fragments {
    /// The datagram's track. One that the piece cannot be of any more is forgotten.
    fn find(&mut self, piece: Piece, now: u32, released: &mut Vec<Released>) -> Option<u32> {
        let number = *self.tracks.get(&piece.datagram)?;
        let track = self.ledger.track(number);
        if now.wrapping_sub(track.touched) >= REUSE && !track.fits(piece.fragment) {
            self.forget(number, DropReason::FragmentOrphan, released);
            return None;
        }
        Some(number)
    }

    fn find_or_begin(&mut self, piece: Piece, now: u32, released: &mut Vec<Released>) -> u32 {
        if let Some(number) = self.find(piece, now, released) {
            return number;
        }
        let owner = self.ledger.owner(piece.datagram.origin);
        let oldest = if self.ledger.count(owner).tracks as usize >= PER_OWNER {
            self.ledger.oldest(owner)
        } else if self.tracks.len() >= DATAGRAMS {
            let heaviest = self.ledger.heaviest(|used: &Use| used.tracks);
            self.ledger.oldest(heaviest)
        } else {
            None
        };
        if let Some(oldest) = oldest {
            self.forget(oldest, DropReason::FragmentTable, released);
        }
        // What gave way may have been the last of its owner.
        let owner = self.ledger.owner(piece.datagram.origin);
        let number = self.ledger.insert(owner, piece.datagram, now);
        self.tracks.insert(piece.datagram, number);
        number
    }

    fn forget(&mut self, number: u32, reason: DropReason, released: &mut Vec<Released>) {
        let (datagram, waiting) = self.ledger.remove(number);
        self.tracks.remove(&datagram);
        let (ingress, _) = datagram.origin;
        let waiting = waiting.into_iter();
        released.extend(waiting.map(|packet| (ingress, packet, reason)));
    }

    /// A first fragment has come; it is not judged yet. What had to make room is added to `released`.
    ///
    /// # Errors
    /// It is to be dropped.
    pub fn first(
        &mut self,
        piece: Piece,
        now: u32,
        released: &mut Vec<Released>,
    ) -> Result<(), DropReason> {
        let number = self.find_or_begin(piece, now, released);
        self.ledger.track_mut(number).place(piece.fragment, now)
    }

    /// The first fragment was judged: it passed, or was dropped. Gives back what waited for it, to be let in again as if it came now.
    pub fn judged(&mut self, piece: Piece, verdict: Result<First, DropReason>) -> Vec<Packet> {
        let Some(number) = self.tracks.get(&piece.datagram).copied() else {
            return Vec::new();
        };
        self.ledger
            .track_mut(number)
            .judge(piece.fragment, verdict.ok());
        self.ledger.take_waiting(number)
    }

    /// A later fragment has come. What had to make room is added to `released`.
    pub fn later(
        &mut self,
        piece: Piece,
        packet: Packet,
        now: u32,
        released: &mut Vec<Released>,
    ) -> Later {
        let number = self.find_or_begin(piece, now, released);
        let track = self.ledger.track_mut(number);
        if let Err(reason) = track.place(piece.fragment, now) {
            let refused = matches!(track.fate, Fate::Refused);
            return Later::Drop(packet, if refused { Fate::REFUSED } else { reason });
        }
        let complete = track.is_complete();
        match track.fate {
            Fate::Open => self.wait(number, packet, released),
            Fate::Passed(first) => {
                if complete {
                    self.forget(number, DropReason::FragmentOrphan, released);
                }
                Later::Flow(packet, first)
            }
            Fate::Refused | Fate::Overlapped => {
                if complete {
                    self.forget(number, DropReason::FragmentOrphan, released);
                }
                Later::Drop(packet, Fate::REFUSED)
            }
        }
    }

    fn wait(&mut self, number: u32, packet: Packet, released: &mut Vec<Released>) -> Later {
        let owner = self.ledger.track(number).owner;
        if self.ledger.track(number).waiting.len() >= WAITING_EACH {
            return Later::Drop(packet, DropReason::FragmentTable);
        }
        let crowded = if self.ledger.count(owner).waiting as usize >= WAITING_PER_OWNER {
            Some(owner)
        } else if self.ledger.waiting() >= WAITING {
            Some(self.ledger.heaviest(|used: &Use| used.waiting))
        } else {
            None
        };
        if let Some(oldest) = crowded.and_then(|crowded| self.ledger.oldest_waiting(crowded)) {
            self.forget(oldest, DropReason::FragmentTable, released);
            if oldest == number {
                return Later::Drop(packet, DropReason::FragmentTable);
            }
        }
        self.ledger.wait(number, packet);
        Later::Waits
    }

    /// Forgets datagrams whose time has run out; adds what waited in vain to `released`.
    pub fn expire(&mut self, now: u32, released: &mut Vec<Released>) {
        while let Some(oldest) = self.ledger.oldest_of_all() {
            let age = now.wrapping_sub(self.ledger.track(oldest).created);
            // A time stamp taken by a faster worker lies ahead of ours.
            if !(LIFETIME..=u32::MAX / 2).contains(&age) {
                break;
            }
            self.forget(oldest, DropReason::FragmentOrphan, released);
        }
    }

    /// Packets waiting for their first fragment.
    pub fn waiting(&self) -> usize {
        self.ledger.waiting()
    }

    /// Datagrams that are tracked.
    pub fn len(&self) -> usize {
        self.tracks.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.tracks.is_empty()
    }
}

#[cfg(test)]
mod tests;
