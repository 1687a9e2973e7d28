//! The slow path in: parsing, and what is aside of plain IP packets.

use super::counters::Traffic;
use super::external::segment;
use super::learning::waiting::What;
use super::{
    Core, Destination, Entry, Io, Service, Source, Tables, gateway, gso, learning, rewrite,
};
use crate::encap::decap;
use crate::numbers::Vni;
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

    /// Whatever the fast path leaves.
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
            && let Err(reason) = gso::Plan::of(io, &packet)
        {
            self.place(source).drop(reason);
            return io.free(packet.frame);
        }
        let entered = match source {
            Source::Port(index) => self.enter_from_port(tables, io, index, &mut packet),
            Source::Uplink(index) => self.enter_from_uplink(tables, io, index, &mut packet),
        };
        match entered {
            Ok(Entered::Ip(entry)) => self.forward(tables, io, packet, &entry),
            Ok(Entered::Answer(Destination::Port(index))) => {
                self.deliver(tables, io, index, packet);
            }
            Ok(Entered::Answer(to)) => io.send(to, packet),
            Ok(Entered::Read) => {
                self.place(source).read.add(1);
                io.free(packet.frame);
            }
            Ok(Entered::Neighbor(ingress, vpc)) => {
                self.pass_arp(tables, io, packet, (ingress, vpc));
            }
            Err(DropReason::AddressUnlearned) => self.learn_by_arp(tables, io, source, packet),
            Err(reason) => {
                self.place(source).drop(reason);
                io.free(packet.frame);
            }
        }
    }

    /// Asks for the address that a port's ARP request asks for, which waits.
    fn learn_by_arp(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        source: Source,
        packet: Packet,
    ) {
        let snapshot = tables.snapshot;
        let Source::Port(index) = source else {
            return io.free(packet.frame);
        };
        let ingress = Ingress::Port(index);
        let lacking = snapshot.port(index).and_then(|port| {
            let target = gateway::arp_target(packet.bytes(io))?;
            learning::lacking(snapshot, port.vpc, target)
        });
        let asked = lacking.ok_or(DropReason::AddressUnlearned);
        self.ask_and_wait(tables, io, packet, (What::Arp, ingress), asked);
    }

    fn enter_from_port(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        index: u16,
        packet: &mut Packet,
    ) -> Result<Entered, DropReason> {
        let port = tables.snapshot.port(index).ok_or(DropReason::PortDown)?;
        let whole =
            packet.frame.is_large() && Offload::read(io, &packet.frame).segments != Segments::None;
        let frame = packet.bytes_mut(io);
        let parsed = match parse::inner(frame)? {
            Inner::Ip(mut parsed) => {
                // Before anything else sees it: policy routes, and errors that quote it.
                if let Some(dscp) = port.dscp {
                    rewrite::mark(frame, &mut parsed, dscp);
                }
                parsed
            }
            Inner::Arp => {
                let asker = gateway::Asker::Port(index, port);
                let answer = gateway::arp(tables.snapshot, asker, frame)?;
                if answer == gateway::Arp::Relay {
                    // Broadcasts have a limit of their own.
                    if !segment::destination(frame).is_group() {
                        self.may_reply(index)?;
                    }
                    return Ok(Entered::Neighbor(Ingress::Port(index), port.vpc));
                }
                if answer == gateway::Arp::Announce {
                    if !self.announcements.take(index.into(), self.now) {
                        return Err(DropReason::AnnouncementLimit);
                    }
                    let to = Destination::Service(Service::Holders, index);
                    return Ok(Entered::Answer(to));
                }
                self.may_reply(index)?;
                return Ok(Entered::Answer(Destination::Port(index)));
            }
        };
        // The pieces of a segment get their checksums when they are made.
        if !whole {
            rewrite::complete_checksum(frame, &parsed);
        }
        let ingress = Ingress::Port(index);
        Ok(Entered::Ip(entry(tables, parsed, ingress, port.vpc, None)))
    }

    /// Takes the outer headers off.
    fn enter_from_uplink(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        uplink: u16,
        packet: &mut Packet,
    ) -> Result<Entered, DropReason> {
        let found = match check_outer(tables.snapshot, packet.bytes(io)) {
            Ok(_) | Err(DropReason::UnknownVni) if !tables.snapshot.outside.has_tunnels(uplink) => {
                Err(DropReason::NotOurVtep)
            }
            found => found,
        };
        let (outer, peer, vpc) = match found {
            Ok(found) => found,
            Err(DropReason::UnknownVni) if !tables.snapshot.outside.networks.is_empty() => {
                let read = self.read_fellow(tables, io, packet);
                let read = read.unwrap_or(Err(DropReason::UnknownVni));
                return read.map(|()| Entered::Read);
            }
            // What is no tunnel packet of ours may be for an address that we hold on an external network.
            Err(reason) if tables.snapshot.outside.by_link.is_empty() => return Err(reason),
            Err(reason) => return self.enter_from_segment(tables, io, (uplink, reason), packet),
        };
        uncover(packet, &outer);
        rewrite::untag(io, packet);
        let frame = packet.bytes_mut(io);
        match parse::inner(frame)? {
            Inner::Ip(parsed) => {
                // A tunnel that ends on a virtual link of this machine may carry what its kernel left to a device, too.
                rewrite::complete_checksum(frame, &parsed);
                let class = Some(outer.traffic_class);
                let ingress = Ingress::Peer(peer);
                Ok(Entered::Ip(entry(tables, parsed, ingress, vpc, class)))
            }
            Inner::Arp => {
                gateway::arp(tables.snapshot, gateway::Asker::Peer(peer, vpc), frame)?;
                let tunnel = tables
                    .snapshot
                    .peer(peer)
                    .and_then(|peer| peer.tunnel(0))
                    .ok_or(DropReason::UnderlayUnresolved)?;
                if tunnel.template.push(io, packet, outer.vni, 0, 0) {
                    Ok(Entered::Answer(Destination::Uplink(tunnel.uplink)))
                } else {
                    Err(DropReason::NoBuffer)
                }
            }
        }
    }
}

/// A packet that came in.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entered {
    /// IP.
    Ip(Entry),
    /// ARP, which has become the answer.
    Answer(Destination),
    /// For this host's daemon, which has read it.
    Read,
    /// ARP of or for ports on an external network, in the VPC of this place: it goes on as it is.
    Neighbor(Ingress, usize),
}

/// A parsed packet with its key.
pub(super) fn entry(
    tables: Tables<'_>,
    parsed: Parsed,
    ingress: Ingress,
    vpc: usize,
    outer_class: Option<u8>,
) -> Entry {
    let vni = tables.snapshot.vpcs[vpc].vni;
    Entry {
        parsed,
        key: Key::new(tables.sessions.seeds(), &parsed.flow, vni),
        ingress,
        vpc,
        vni,
        outer_class,
    }
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
    let vpc = tunnelled(snapshot, outer.vni).ok_or(DropReason::UnknownVni)?;
    Ok((outer, peer, vpc))
}

/// The place of the VPC that has tunnels with a VNI.
pub(super) fn tunnelled(snapshot: &Snapshot, vni: Vni) -> Option<usize> {
    let vpc = snapshot.vpc_by_vni.get(&vni).copied();
    vpc.filter(|vpc| snapshot.vpcs[*vpc].wire.is_none())
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
