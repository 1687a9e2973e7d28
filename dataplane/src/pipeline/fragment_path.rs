//! Fragments on their way through the pipeline: the first is judged, the others follow it (see [`super::fragment_track`]).

use super::fragment_track::{First, Fragments, Later, Piece, Released};
use super::resolve::flow;
use super::tracer::Silent;
use super::tracking::kept;
use super::{Core, Entry, Io, Tables};
use crate::packet::parse::{self, Fragment, Inner, protocol, tcp_flags};
use crate::packet::{DropReason, Packet, Parsed};
use crate::session::Key;
use crate::session::table::SessionRef;
use crate::session::tcp::{self, Segment};

impl Core {
    /// Asks the fragments something, and drops what had to make room.
    fn ask_fragments<T>(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        ask: impl FnOnce(&mut Fragments, &mut Vec<Released>) -> T,
    ) -> T {
        let mut released = std::mem::take(&mut self.released);
        let answer = ask(&mut self.fragments(), &mut released);
        for (ingress, packet, reason) in released.drain(..) {
            self.drop(tables, io, packet, ingress, reason);
        }
        self.released = released;
        answer
    }

    /// Drops what has waited for its first fragment for too long.
    pub(super) fn expire_fragments(&mut self, tables: Tables<'_>, io: &mut impl Io) {
        let now = self.now;
        self.ask_fragments(tables, io, |fragments, released| {
            fragments.expire(now, released);
        });
    }

    /// A fragment, to one receiver or to a group.
    pub(super) fn fragment(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        fragment: Fragment,
        session: Option<SessionRef<'_>>,
    ) {
        let (parsed, now) = (&entry.parsed, self.now);
        let origin = (entry.ingress, entry.vni);
        let piece = Piece::new(origin, parsed.family, &parsed.flow, fragment);
        if fragment.offset == 0 {
            return self.first_fragment(tables, io, packet, entry, piece, session);
        }
        let later = self.ask_fragments(tables, io, |fragments, released| {
            fragments.later(piece, packet, now, released)
        });
        match later {
            Later::Flow(packet, first) => {
                self.later_fragment(tables, io, packet, entry, fragment, first);
            }
            Later::Waits => {}
            Later::Drop(packet, reason) => self.drop(tables, io, packet, entry.ingress, reason),
        }
    }

    fn first_fragment(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        piece: Piece,
        session: Option<SessionRef<'_>>,
    ) {
        let now = self.now;
        let placed = self.ask_fragments(tables, io, |fragments, released| {
            fragments.first(piece, now, released)
        });
        if let Err(reason) = placed {
            return self.drop(tables, io, packet, entry.ingress, reason);
        }
        let frame = packet.bytes(io);
        let verdict = if entry.parsed.eth_dst.is_group() {
            self.may_spread(tables, entry).map(|()| None)
        } else {
            let known = session.and_then(|session| self.known(tables, frame, entry, session));
            let decision = known.unwrap_or_else(|| self.decide(tables, frame, entry, session));
            decision.map(Some)
        };
        let first = First::of(&entry.parsed, frame);
        let waiting = self.fragments().judged(piece, verdict.map(|_| first));
        match verdict {
            Ok(Some(decision)) => self.execute(tables, io, packet, entry, &decision),
            Ok(None) => self.spread(tables, io, packet, entry),
            Err(reason) => self.drop(tables, io, packet, entry.ingress, reason),
        }
        for packet in waiting {
            // What waited was parsed when it came; it parses again.
            if let Ok(Inner::Ip(parsed)) = parse::inner(packet.bytes(io)) {
                let again = Entry { parsed, ..*entry };
                self.miss(tables, io, packet, &again, None);
            } else {
                let reason = DropReason::FragmentOrphan;
                self.drop(tables, io, packet, entry.ingress, reason);
            }
        }
    }

    fn later_fragment(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        fragment: Fragment,
        first: First,
    ) {
        let mut entry = *entry;
        let whole = &mut entry.parsed.flow;
        (whole.source_port, whole.destination_port) = first.ports;
        whole.protocol = first.protocol;
        entry.parsed.icmp = first.icmp;
        if entry.parsed.eth_dst.is_group() {
            return self.flood(tables, io, packet, &entry);
        }
        entry.key = Key::new(tables.sessions.seeds(), &entry.parsed.flow, entry.vni);
        let Some(session) = tables.sessions.find(&entry.key) else {
            // The session of its first fragment is gone, and so is its leave to pass.
            let reason = DropReason::FragmentOrphan;
            return self.drop(tables, io, packet, entry.ingress, reason);
        };
        let decision = match kept(tables, &entry, &session) {
            Some(decision) => Ok(decision),
            // What is to be remembered, the first has said.
            None => flow(tables, &entry, &[], Some(session), &mut Silent)
                .map(|(decision, _)| decision)
                .map_err(|refusal| refusal.reason),
        };
        match decision {
            Ok(decision) => {
                if let Some(sequence) = first.sequence {
                    let reach = u32::from(fragment.offset) + u32::from(fragment.len);
                    let (mut sender, receiver) = session.tcp();
                    tcp::extend(&mut sender, sequence.wrapping_add(reach));
                    session.set_tcp(sender, receiver);
                }
                self.execute(tables, io, packet, &entry, &decision);
            }
            Err(reason) => self.drop(tables, io, packet, entry.ingress, reason),
        }
    }
}

impl First {
    fn of(parsed: &Parsed, frame: &[u8]) -> Self {
        Self {
            protocol: parsed.flow.protocol,
            ports: (parsed.flow.source_port, parsed.flow.destination_port),
            icmp: parsed.icmp,
            sequence: first_sequence(parsed, frame),
        }
    }
}

/// The sequence number that stands for offset 0 of a TCP segment in fragments (see [`First`]).
fn first_sequence(parsed: &Parsed, frame: &[u8]) -> Option<u32> {
    if parsed.flow.protocol != protocol::TCP {
        return None;
    }
    let header = frame.get(usize::from(parsed.l4)..)?;
    let segment = Segment::read(header, parsed.end - parsed.l4)?;
    let header_len = u32::from(*header.get(12)? >> 4) * 4;
    // A FIN counts behind the last byte of data.
    let fin = u32::from(segment.flags & tcp_flags::FIN != 0);
    Some(segment.seq.wrapping_sub(header_len).wrapping_add(fin))
}
