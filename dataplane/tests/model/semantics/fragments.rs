//! Datagrams in pieces: every piece has the fate of the first (b024). A piece that comes before its first waits for it; one that overlaps
//! another condemns the datagram (RFC 5722 4), and so does a first that is refused.

use std::net::IpAddr;

use weft_dataplane::packet::DropReason;

use super::frame::{Detail, Fragment, Packet, SYN};

/// How long a datagram is known, in milliseconds.
const LIFETIME: u32 = 10_000;
/// Pieces of one datagram that wait for its first.
const WAITING: usize = 16;

/// Which datagram a piece is of, and where that came in: a port's or a host's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    pub ingress: String,
    pub vni: u32,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub id: u32,
}

/// What the first leaves to the others, once it has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct First {
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
    first: Option<First>,
    condemned: Option<DropReason>,
    pieces: Vec<Fragment>,
    waiting: Vec<Packet>,
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

    /// A piece has come: is there room for it in its datagram?
    pub fn place(
        &mut self,
        datagram: &Datagram,
        piece: Fragment,
        now: u32,
    ) -> Result<(), DropReason> {
        if self.find(datagram).is_none() {
            self.0.push(Track {
                datagram: datagram.clone(),
                deadline: now + LIFETIME,
                first: None,
                condemned: None,
                pieces: Vec::new(),
                waiting: Vec::new(),
            });
        }
        let Some(track) = self.find(datagram) else {
            return Ok(());
        };
        if let Some(reason) = track.condemned {
            return Err(reason);
        }
        let same = |other: &Fragment| (other.offset, other.end) == (piece.offset, piece.end);
        if track.pieces.iter().any(same) {
            return Err(DropReason::FragmentDuplicate);
        }
        let overlaps = |other: &Fragment| piece.offset < other.end && other.offset < piece.end;
        if track.pieces.iter().any(overlaps) {
            track.condemned = Some(DropReason::FragmentOverlap);
            return Err(DropReason::FragmentOverlap);
        }
        track.pieces.push(piece);
        Ok(())
    }

    /// The first was judged: what waited for it comes again, as if it came now.
    pub fn judged(&mut self, datagram: &Datagram, verdict: Option<First>) -> Vec<Packet> {
        let Some(track) = self.find(datagram) else {
            return Vec::new();
        };
        track.first = verdict;
        if verdict.is_none() {
            track.condemned = Some(DropReason::FragmentOrphan);
        }
        track.pieces.retain(Fragment::is_first);
        std::mem::take(&mut track.waiting)
    }

    /// A piece that was placed and is not the first.
    pub fn later(&mut self, datagram: &Datagram, packet: &Packet) -> Result<Later, DropReason> {
        let track = self.find(datagram).ok_or(DropReason::FragmentOrphan)?;
        match track.first {
            Some(first) => Ok(Later::Follows(first)),
            None if track.waiting.len() < WAITING => {
                track.waiting.push(packet.clone());
                Ok(Later::Waits)
            }
            None => Err(DropReason::FragmentOrphan),
        }
    }

    /// Forgets what is too old; answers how many pieces have waited in vain.
    pub fn expire(&mut self, now: u32) -> usize {
        let old = self.0.extract_if(.., |track| track.deadline <= now);
        old.map(|track| track.waiting.len()).sum()
    }
}
