//! Fragments of inner datagrams: each follows the verdict of its first (RFC 1858, RFC 3128, RFC 5722).
//!
//! The first fragment leaves its ports here. Later ones take them, and are then judged like the first. Those that come before the first
//! wait, few and not for long. A datagram whose fragments overlap is condemned whole. Shared by all workers behind a lock: fragments are
//! not the hot path. Bounds: [`DATAGRAMS`] datagrams, [`PER_INGRESS`] of one port or peer, [`WAITING`] packets waiting in all.

use std::collections::{HashMap, VecDeque};

use crate::packet::{DropReason, Flow, Fragment, Packet};
use crate::session::table::Ingress;

/// Datagrams tracked at a time.
pub const DATAGRAMS: usize = 2048;
/// Datagrams tracked at a time from one port or peer.
pub const PER_INGRESS: usize = 256;
/// Packets waiting for their first fragment.
pub const WAITING: usize = 256;
/// Fragments of one datagram.
const PIECES: usize = 64;
/// Waiting packets of one datagram.
const WAITING_EACH: usize = 16;
/// How long a datagram is tracked, in milliseconds (RFC 8200 §4.5 allows a receiver sixty seconds; most need none).
const LIFETIME: u32 = 10_000;

/// Names a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Datagram {
    ingress: Ingress,
    vni: u32,
    source: u128,
    destination: u128,
    protocol: u8,
    id: u32,
}

#[derive(Debug)]
struct Track {
    deadline: u32,
    /// What the first fragment leaves to the others, once it has passed.
    first: Option<First>,
    /// Why all further fragments are dropped.
    condemned: Option<DropReason>,
    pieces: Vec<(u32, u32)>,
    waiting: Vec<Packet>,
}

/// What a first fragment leaves to the others of its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct First {
    /// Its ports.
    pub ports: (u16, u16),
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

/// Where a fragment came in: ingress and VNI.
pub type Origin = (Ingress, u32);

/// The datagrams in flight.
#[derive(Debug, Default)]
pub struct Fragments {
    tracks: HashMap<Datagram, Track>,
    /// Datagrams in the order of their deadlines.
    order: VecDeque<(u32, Datagram)>,
    per_ingress: HashMap<Ingress, usize>,
    waiting: usize,
    /// Packets whose datagram's time ran out, for the owner of the frames to take back.
    expired: Vec<(Ingress, Packet)>,
}

fn name(origin: Origin, flow: &Flow, fragment: Fragment) -> Datagram {
    let (ingress, vni) = origin;
    Datagram {
        ingress,
        vni,
        source: flow.source,
        destination: flow.destination,
        protocol: flow.protocol,
        id: fragment.id,
    }
}

impl Fragments {
    fn track(&mut self, datagram: Datagram, now: u32) -> Result<&mut Track, DropReason> {
        if !self.tracks.contains_key(&datagram) {
            let count = self.per_ingress.entry(datagram.ingress).or_default();
            if self.tracks.len() >= DATAGRAMS || *count >= PER_INGRESS {
                return Err(DropReason::FragmentTable);
            }
            *count += 1;
            let deadline = now.wrapping_add(LIFETIME);
            self.order.push_back((deadline, datagram));
            let track = Track {
                deadline,
                first: None,
                condemned: None,
                pieces: Vec::new(),
                waiting: Vec::new(),
            };
            self.tracks.insert(datagram, track);
        }
        self.tracks
            .get_mut(&datagram)
            .ok_or(DropReason::FragmentTable)
    }

    /// Notes where a fragment lies.
    fn place(track: &mut Track, fragment: Fragment) -> Result<(), DropReason> {
        if let Some(reason) = track.condemned {
            return Err(reason);
        }
        let piece = (
            u32::from(fragment.offset),
            u32::from(fragment.offset) + u32::from(fragment.len),
        );
        if track.pieces.contains(&piece) {
            return Err(DropReason::FragmentDuplicate);
        }
        if track.pieces.len() == PIECES {
            return Err(DropReason::FragmentTable);
        }
        if track
            .pieces
            .iter()
            .any(|(from, to)| piece.0 < *to && *from < piece.1)
        {
            track.condemned = Some(DropReason::FragmentOverlap);
            return Err(DropReason::FragmentOverlap);
        }
        track.pieces.push(piece);
        Ok(())
    }

    /// A first fragment has come; it is not judged yet.
    ///
    /// # Errors
    /// It is to be dropped.
    pub fn first(
        &mut self,
        origin: Origin,
        flow: &Flow,
        fragment: Fragment,
        now: u32,
    ) -> Result<(), DropReason> {
        let track = self.track(name(origin, flow, fragment), now)?;
        Self::place(track, fragment)
    }

    /// The first fragment was judged: it passed (with the sequence number of [`First`]), or was dropped. Gives back what waited for it.
    pub fn judged(
        &mut self,
        origin: Origin,
        flow: &Flow,
        fragment: Fragment,
        verdict: Result<Option<u32>, DropReason>,
    ) -> Vec<Packet> {
        let Some(track) = self.tracks.get_mut(&name(origin, flow, fragment)) else {
            return Vec::new();
        };
        match verdict {
            Ok(sequence) => {
                track.first = Some(First {
                    ports: (flow.source_port, flow.destination_port),
                    sequence,
                });
            }
            Err(_) => track.condemned = Some(DropReason::FragmentOrphan),
        }
        self.waiting -= track.waiting.len();
        // What waited is let in again as if it came now.
        track.pieces.clear();
        track.pieces.push((0, u32::from(fragment.len)));
        std::mem::take(&mut track.waiting)
    }

    /// A later fragment has come.
    pub fn later(
        &mut self,
        origin: Origin,
        flow: &Flow,
        fragment: Fragment,
        packet: Packet,
        now: u32,
    ) -> Later {
        let room = self.waiting < WAITING;
        let track = match self.track(name(origin, flow, fragment), now) {
            Ok(track) => track,
            Err(reason) => return Later::Drop(packet, reason),
        };
        if let Err(reason) = Self::place(track, fragment) {
            return Later::Drop(packet, reason);
        }
        match track.first {
            Some(first) => Later::Flow(packet, first),
            None if room && track.waiting.len() < WAITING_EACH => {
                track.waiting.push(packet);
                self.waiting += 1;
                Later::Waits
            }
            None => Later::Drop(packet, DropReason::FragmentOrphan),
        }
    }

    /// Forgets datagrams whose time has run out, and gives back the packets that waited in vain.
    pub fn expire(&mut self, now: u32) -> Vec<(Ingress, Packet)> {
        while let Some((deadline, datagram)) = self.order.front().copied() {
            if now.wrapping_sub(deadline) > u32::MAX / 2 {
                break;
            }
            self.order.pop_front();
            let Some(track) = self.tracks.remove(&datagram) else {
                continue;
            };
            debug_assert_eq!(track.deadline, deadline);
            self.waiting -= track.waiting.len();
            self.expired.extend(
                track
                    .waiting
                    .into_iter()
                    .map(|packet| (datagram.ingress, packet)),
            );
            if let Some(count) = self.per_ingress.get_mut(&datagram.ingress) {
                *count -= 1;
                if *count == 0 {
                    self.per_ingress.remove(&datagram.ingress);
                }
            }
        }
        std::mem::take(&mut self.expired)
    }

    /// Packets waiting for their first fragment.
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}
