//! Datagrams in pieces: every piece has the fate of the first (b024). A piece that comes before its first waits for it; one that overlaps
//! another condemns the datagram (RFC 5722 4), and so does a first that is refused. A datagram that has come whole is forgotten.

use std::net::IpAddr;

use weft_dataplane::packet::DropReason;

use super::frame::{Detail, Fragment, Packet, SYN};

/// How long a datagram is known, in milliseconds.
const LIFETIME: u32 = 10_000;
/// Pieces of one datagram that wait for its first.
const WAITING: usize = 64;
/// After so many milliseconds without a piece, one that does not fit is of another datagram with the same number (RFC 4963).
const REUSE: u32 = 250;

/// Which datagram a piece is of, and where that came in: a port's or a host's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    pub ingress: String,
    pub vni: u32,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Of IPv4 alone: later pieces of IPv6 may name an extension header (RFC 8200 4.5).
    pub protocol: Option<u8>,
    pub id: u32,
}

/// What the first leaves to the others, once it has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct First {
    pub protocol: u8,
    pub detail: Detail,
    pub icmp: Option<(u8, u8)>,
    /// Of TCP: the sequence number that a byte at the datagram's beginning would have.
    pub sequence: Option<u32>,
}

impl First {
    pub fn of(packet: &Packet) -> Self {
        let sequence = packet.tcp.map(|segment| {
            let header = u32::from(packet.bytes[packet.l4 + 12] >> 4) * 4;
            // SYN counts before the data, FIN behind it.
            let fin = u32::from(segment.has(super::frame::FIN));
            let syn = u32::from(segment.has(SYN));
            let first = segment.seq.wrapping_add(syn + fin);
            first.wrapping_sub(header)
        });
        Self {
            protocol: packet.flow.protocol,
            detail: packet.flow.detail,
            icmp: packet.icmp,
            sequence,
        }
    }
}

#[derive(Debug, Clone)]
struct Track {
    datagram: Datagram,
    deadline: u32,
    /// When its last piece came.
    last: u32,
    first: Option<First>,
    /// The first was dropped; two pieces overlap.
    refused: bool,
    overlapped: bool,
    pieces: Vec<Fragment>,
    waiting: Vec<Packet>,
}

impl Track {
    fn is_again(&self, piece: Fragment) -> bool {
        let same = |other: &Fragment| (other.offset, other.end) == (piece.offset, piece.end);
        self.pieces.iter().any(same)
    }

    fn overlaps(&self, piece: Fragment) -> bool {
        let overlaps = |other: &Fragment| piece.offset < other.end && other.offset < piece.end;
        self.pieces.iter().any(overlaps)
    }

    fn is_whole(&self) -> bool {
        let last = self.pieces.iter().filter(|piece| !piece.more);
        let end = last.map(|piece| piece.end).max();
        let bytes: usize = self
            .pieces
            .iter()
            .map(|piece| piece.end - piece.offset)
            .sum();
        end.is_some_and(|end| bytes >= end)
    }
}

/// The datagrams that a host knows.
#[derive(Debug, Clone, Default)]
pub struct Datagrams(Vec<Track>);

/// What to do with a piece that is not the first.
pub enum Later {
    Follows(First),
    Waits,
}

impl Datagrams {
    fn find(&mut self, datagram: &Datagram) -> Option<&mut Track> {
        self.0.iter_mut().find(|track| track.datagram == *datagram)
    }

    /// A piece has come: does it fit its datagram? Answers too how many pieces of a forgotten one have waited in vain.
    pub fn place(
        &mut self,
        datagram: &Datagram,
        piece: Fragment,
        now: u32,
    ) -> (usize, Result<(), DropReason>) {
        let mut vain = 0;
        self.0.retain(|track| {
            let stays = track.datagram != *datagram
                || now - track.last < REUSE
                || !(track.overlapped || track.overlaps(piece));
            if !stays {
                vain += track.waiting.len();
            }
            stays
        });
        if self.find(datagram).is_none() {
            self.0.push(Track {
                datagram: datagram.clone(),
                deadline: now + LIFETIME,
                last: now,
                first: None,
                refused: false,
                overlapped: false,
                pieces: Vec::new(),
                waiting: Vec::new(),
            });
        }
        let Some(track) = self.find(datagram) else {
            return (vain, Ok(()));
        };
        let fits = if track.overlapped {
            Err(DropReason::FragmentOverlap)
        } else if track.is_again(piece) {
            Err(DropReason::FragmentDuplicate)
        } else if track.overlaps(piece) {
            track.overlapped = !track.refused;
            Err(DropReason::FragmentOverlap)
        } else {
            track.pieces.push(piece);
            track.last = now;
            Ok(())
        };
        let later = !piece.is_first();
        let refused = track.refused && later && fits.is_err();
        (
            vain,
            match fits {
                Err(_) if refused => Err(DropReason::FragmentOrphan),
                fits => fits,
            },
        )
    }

    /// The first was judged: what waited for it comes again, as if it came now.
    pub fn judged(&mut self, datagram: &Datagram, verdict: Option<First>) -> Vec<Packet> {
        let Some(track) = self.find(datagram) else {
            return Vec::new();
        };
        track.first = verdict;
        track.refused = verdict.is_none();
        track.pieces.retain(Fragment::is_first);
        std::mem::take(&mut track.waiting)
    }

    /// A piece that was placed and is not the first. The last one to come ends the datagram.
    pub fn later(&mut self, datagram: &Datagram, packet: &Packet) -> Result<Later, DropReason> {
        let track = self.find(datagram).ok_or(DropReason::FragmentOrphan)?;
        let judged = track.refused || track.first.is_some();
        let ends = judged && track.is_whole();
        let answer = match track.first {
            Some(first) => Ok(Later::Follows(first)),
            None if track.refused => Err(DropReason::FragmentOrphan),
            None if track.waiting.len() < WAITING => {
                track.waiting.push(packet.clone());
                Ok(Later::Waits)
            }
            None => Err(DropReason::FragmentTable),
        };
        if ends {
            self.0.retain(|track| track.datagram != *datagram);
        }
        answer
    }

    /// Forgets what is too old; answers how many pieces have waited in vain.
    pub fn expire(&mut self, now: u32) -> usize {
        let old = self.0.extract_if(.., |track| track.deadline <= now);
        old.map(|track| track.waiting.len()).sum()
    }
}
