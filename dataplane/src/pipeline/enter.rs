//! The general way in: parsing, and what is aside of plain IP packets.

use super::counters::Traffic;
use super::{Core, Destination, Entry, Io, Source, Tables, local, rewrite, segment};
use crate::encap::decap;
use crate::packet::parse::{self, Inner};
use crate::packet::{DropReason, Offload, Packet, Parsed, Segments};
use crate::session::Key;
use crate::session::table::Ingress;
use crate::snapshot::Snapshot;

impl Core {
    #[inline]
    fn place(&self, source: Source) -> &Traffic {
        match source {
            Source::Port(index) => self.counters.port(index),
            Source::Uplink(index) => self.counters.uplink(index),
        }
    }

    /// Counts the packets of a vector as received.
    #[inline]
    pub(super) fn receive(&self, source: Source, packets: &[Packet]) {
        let traffic = self.place(source);
        traffic.rx_packets.add(packets.len() as u64);
        let bytes = packets.iter().map(|packet| u64::from(packet.len)).sum();
        traffic.rx_bytes.add(bytes);
    }

    /// Whatever the fast lane leaves.
    pub(super) fn general(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        source: Source,
        mut packet: Packet,
    ) {
        if let Source::Port(_) = source {
            rewrite::untag(io, &mut packet);
        }
        if packet.frame.is_large()
            && let Err(reason) = segment::Plan::of(io, &packet)
        {
            self.place(source).drop(reason);
            return io.free(packet.frame);
        }
        let entry = match source {
            Source::Port(index) => self.enter_from_port(tables, io, index, &mut packet),
            Source::Uplink(_) => self.enter_from_uplink(tables, io, &mut packet),
        };
        match entry {
            Some(entry) => self.forward(tables, io, packet, &entry),
            None => self.aside(tables, io, source, packet),
        }
    }

    /// A packet from a port. None: not plain IP; [`Self::aside`] looks again.
    fn enter_from_port(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        index: u16,
        packet: &mut Packet,
    ) -> Option<Entry> {
        let port = tables.snapshot.port(index)?;
        let whole =
            packet.frame.is_large() && Offload::read(io, &packet.frame).segments != Segments::None;
        let frame = packet.bytes_mut(io);
        let Ok(Inner::Ip(parsed)) = parse::inner(frame) else {
            return None;
        };
        // The pieces of a segment get their checksums when they are made.
        if !whole {
            rewrite::complete_checksum(frame, &parsed);
        }
        Some(self.entry(tables, parsed, Ingress::Port(index), port.vpc, None))
    }

    pub(super) fn entry(
        &self,
        tables: Tables<'_>,
        parsed: Parsed,
        ingress: Ingress,
        vpc: usize,
        outer_class: Option<u8>,
    ) -> Entry {
        let key = Key::new(
            tables.sessions.seeds(),
            &parsed.flow,
            tables.snapshot.vpcs[vpc].vni,
        );
        Entry {
            parsed,
            key,
            ingress,
            vpc,
            outer_class,
        }
    }

    /// A packet from the uplink: takes the outer headers off. None: [`Self::aside`] looks again.
    fn enter_from_uplink(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: &mut Packet,
    ) -> Option<Entry> {
        let (outer, peer, vpc) = check_outer(tables.snapshot, packet.bytes(io)).ok()?;
        let frame = &packet.bytes(io)[usize::from(outer.inner)..usize::from(outer.end)];
        let Ok(Inner::Ip(parsed)) = parse::inner(frame) else {
            return None;
        };
        uncover(packet, &outer);
        Some(self.entry_from_peer(tables, io, packet, parsed, (&outer, peer, vpc)))
    }

    fn entry_from_peer(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: &mut Packet,
        parsed: Parsed,
        (outer, peer, vpc): (&decap::Outer, u16, usize),
    ) -> Entry {
        // A tunnel that ends on a virtual link of this machine may carry what its kernel left to a device, too.
        rewrite::complete_checksum(packet.bytes_mut(io), &parsed);
        let class = Some(outer.traffic_class);
        self.entry(tables, parsed, Ingress::Peer(peer), vpc, class)
    }

    /// Packets that are not plain IP, and those that have to be dropped: looks again, for the reason.
    #[cold]
    #[inline(never)]
    pub(super) fn aside(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        source: Source,
        mut packet: Packet,
    ) {
        let result = match source {
            Source::Port(index) => self.aside_from_port(tables, io, index, &mut packet),
            Source::Uplink(_) => self.aside_from_uplink(tables, io, &mut packet),
        };
        match (result, source) {
            (Ok(Aside::Send(Destination::Port(index))), _) => {
                self.deliver(tables, io, index, packet);
            }
            (Ok(Aside::Send(to)), _) => io.send(to, packet),
            (Ok(Aside::Enter(entry)), _) => self.forward(tables, io, packet, &entry),
            (Err(reason), source) => {
                self.place(source).drop(reason);
                io.free(packet.frame);
            }
        }
    }

    pub(super) fn aside_from_port(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        index: u16,
        packet: &mut Packet,
    ) -> Result<Aside, DropReason> {
        let port = tables.snapshot.port(index).ok_or(DropReason::PortDown)?;
        match parse::inner(packet.bytes(io))? {
            Inner::Arp => local::arp(
                tables.snapshot,
                local::Asker::Port(index, port),
                packet.bytes_mut(io),
            )?,
            Inner::Ip(_) => return Err(DropReason::PortDown),
        }
        self.may_reply(index)?;
        Ok(Aside::Send(Destination::Port(index)))
    }

    pub(super) fn aside_from_uplink(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: &mut Packet,
    ) -> Result<Aside, DropReason> {
        let (outer, peer, vpc) = check_outer(tables.snapshot, packet.bytes(io))?;
        uncover(packet, &outer);
        let is_tagged = parse::is_priority_tagged(packet.bytes(io));
        rewrite::untag(io, packet);
        match parse::inner(packet.bytes(io))? {
            Inner::Arp => {}
            Inner::Ip(parsed) if is_tagged => {
                let from = (&outer, peer, vpc);
                let entry = self.entry_from_peer(tables, io, packet, parsed, from);
                return Ok(Aside::Enter(entry));
            }
            Inner::Ip(_) => return Err(DropReason::OuterHeader),
        }
        local::arp(
            tables.snapshot,
            local::Asker::Peer(peer, vpc),
            packet.bytes_mut(io),
        )?;
        let tunnel = tables
            .snapshot
            .peer(peer)
            .and_then(|peer| peer.tunnel(0))
            .ok_or(DropReason::UnderlayUnresolved)?;
        if tunnel.template.push(io, packet, outer.vni, 0, 0) {
            Ok(Aside::Send(Destination::Uplink(tunnel.uplink)))
        } else {
            Err(DropReason::NoBuffer)
        }
    }
}

/// What becomes of a packet that is no plain IP at first sight.
#[derive(Debug, Clone, Copy)]
pub(super) enum Aside {
    /// It has become an answer.
    Send(Destination),
    /// It is one, without its tag.
    Enter(Entry),
}

/// Leaves the outer headers behind.
fn uncover(packet: &mut Packet, outer: &decap::Outer) {
    packet.start += outer.inner;
    packet.len = outer.end - outer.inner;
}

/// Outer checks: well-formed, to us, from a known VTEP, for a known VPC. Answers the peer's index and the VPC's place too.
pub(super) fn check_outer(
    snapshot: &Snapshot,
    frame: &[u8],
) -> Result<(decap::Outer, u16, usize), DropReason> {
    let outer = decap::outer(frame)?;
    let peer = Ends::of(&outer).peer(snapshot)?;
    let vpc = snapshot
        .vpc_by_vni
        .get(&outer.vni)
        .ok_or(DropReason::UnknownVni)?;
    Ok((outer, peer, *vpc))
}

/// The two VTEP addresses of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    source: u128,
    destination: u128,
}

impl Ends {
    #[inline]
    pub(super) fn of(outer: &decap::Outer) -> Self {
        Self {
            source: outer.source,
            destination: outer.destination,
        }
    }

    /// The index of the peer that sends, if it is known, to us.
    pub(super) fn peer(&self, snapshot: &Snapshot) -> Result<u16, DropReason> {
        if !snapshot.vteps.contains(&self.destination) {
            return Err(DropReason::NotOurVtep);
        }
        let peer = snapshot.peer_by_vtep.get(&self.source);
        peer.copied().ok_or(DropReason::UnknownVtep)
    }
}
