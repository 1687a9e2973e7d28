//! Fragments on their way through the pipeline: the first is judged, the others follow it (see [`super::fragments`]).

use super::judge::{self, Case, Standing};
use super::trace::Silent;
use super::{Core, Entry, Io, Tables};
use crate::packet::parse::{self, Inner, protocol};
use crate::packet::{DropReason, Family, Packet, Parsed};
use crate::session::Key;
use crate::session::table::SessionRef;

impl Core {
    pub(super) fn first_fragment(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        session: Option<SessionRef<'_>>,
    ) {
        let Some(fragment) = entry.parsed.fragment else {
            return io.free(packet.frame);
        };
        let (origin, flow) = (
            (entry.ingress, tables.snapshot.vpcs[entry.vpc].vni),
            entry.parsed.flow,
        );
        let placed = self.fragments().first(origin, &flow, fragment, self.now);
        if let Err(reason) = placed {
            return self.drop(tables, io, packet, entry.ingress, reason);
        }
        let verdict = self.decide(tables, packet.bytes(io), entry, session);
        let waiting = self
            .fragments()
            .judged(origin, &flow, fragment, verdict.map(|_| ()));
        match verdict {
            Ok(action) => self.execute(tables, io, packet, entry, &action),
            Err(reason) => self.drop(tables, io, packet, entry.ingress, reason),
        }
        for packet in waiting {
            // What waited was parsed when it came; it parses again.
            if let Ok(Inner::Ip(parsed)) = parse::inner(packet.bytes(io)) {
                let again = Entry { parsed, ..*entry };
                self.miss(tables, io, packet, &again, None);
            } else {
                self.drop(
                    tables,
                    io,
                    packet,
                    entry.ingress,
                    DropReason::FragmentOrphan,
                );
            }
        }
    }

    pub(super) fn later_fragment(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        ports: (u16, u16),
    ) {
        let mut entry = *entry;
        (
            entry.parsed.flow.source_port,
            entry.parsed.flow.destination_port,
        ) = ports;
        entry.key = Key::new(
            tables.sessions.seeds(),
            &entry.parsed.flow,
            tables.snapshot.vpcs[entry.vpc].vni,
        );
        let session = tables.sessions.find(&entry.key);
        let standing = match &session {
            Some(session) if !session.from_origin() => Standing::Backward,
            // The session of its first fragment is gone, and so is its leave to pass.
            None => {
                return self.drop(
                    tables,
                    io,
                    packet,
                    entry.ingress,
                    DropReason::FragmentOrphan,
                );
            }
            Some(_) => Standing::Forward,
        };
        if let Some(icmp) = fragment_icmp(&entry.parsed, standing) {
            entry.parsed.icmp = icmp;
        }
        let case = Case {
            parsed: &entry.parsed,
            ingress: entry.ingress,
            vpc: entry.vpc,
            standing,
        };
        match judge::judge(tables.snapshot, &case, &mut Silent) {
            Ok(action) => self.execute(tables, io, packet, &entry, &action),
            Err(reason) => self.drop(tables, io, packet, entry.ingress, reason),
        }
    }
}

/// Type and code of the ICMP message whose later fragment this is, from the ports of its first.
pub(super) fn fragment_icmp(parsed: &Parsed, standing: Standing) -> Option<u16> {
    let query = parsed.flow.opening_icmp();
    match (parsed.family, parsed.flow.protocol, standing) {
        (Family::Ipv4, protocol::ICMP, Standing::Forward)
        | (Family::Ipv6, protocol::ICMPV6, Standing::Forward) => Some(query),
        (Family::Ipv4, protocol::ICMP, _) => Some(0),
        (Family::Ipv6, protocol::ICMPV6, _) => Some(129 << 8),
        _ => None,
    }
}
