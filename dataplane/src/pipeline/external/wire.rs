//! Ports on an external network (provider networks): layer 2 between them and the wire, of which weft is no router.
//!
//! Called where a port's VPC is on such a network ([`Wire`](crate::snapshot::Wire)). A frame from a port goes to the port of this host that has its destination MAC, else
//! onto the wire, whoever has the MAC there: ports of other hosts are reached like anybody else. A frame from the wire goes to the port that has its destination
//! MAC; broadcast and multicast go to all ports, and from a port onto the wire, too. Sessions are those of the VPC. Nothing is translated, and no TTL
//! is decremented.

use super::super::forwarding::Way;
use super::super::metadata;
use super::super::tracer::Tracer;
use super::super::{Core, Destination, Entry, Io, Tables, gso, ip_fragment};
use super::segment;
use crate::packet::{DropReason, Mac, Packet, Parsed};
use crate::session::Key;
use crate::session::table::{Egress, Ingress};
use crate::snapshot::{Endpoint, Place, Snapshot, Vpc};

/// The port of this host that has a MAC on the network of a VPC.
fn here(vpc: &Vpc, mac: Mac) -> Option<u16> {
    match vpc.by_mac.get(&mac)?.place {
        Place::Here(port) => Some(port),
        Place::There(_) => None,
    }
}

/// Checks the MACs of a frame from the wire.
///
/// # Errors
/// It has come from this host itself, or no port here has its destination.
pub(in crate::pipeline) fn check(vpc: &Vpc, to: Mac, from: Mac) -> Result<(), DropReason> {
    if here(vpc, from).is_some() {
        return Err(DropReason::ExternalLoop);
    }
    if to.is_group() || here(vpc, to).is_some() {
        Ok(())
    } else {
        Err(DropReason::UnknownMac)
    }
}

/// A packet from the wire of a network, in the VPC of this place.
pub(in crate::pipeline) fn entry(
    tables: Tables<'_>,
    (network, vpc): (u16, usize),
    parsed: Parsed,
) -> Result<Entry, DropReason> {
    let known = &tables.snapshot.vpcs[vpc];
    check(known, parsed.eth_dst, parsed.eth_src)?;
    // Between ports of this host in one subnet, sessions are of packets that never were on the wire. Between two subnets the wire's router routes.
    let [from, to] =
        [parsed.flow.source, parsed.flow.destination].map(|address| known.by_address.get(&address));
    let is_on_link = |from: &Endpoint| to.is_some_and(|to| to.subnet == from.subnet);
    let is_here = |from: &Endpoint| matches!(from.place, Place::Here(_));
    if from.is_some_and(|from| is_here(from) && is_on_link(from))
        || metadata::serves(tables.snapshot, parsed.flow.source)
    {
        return Err(DropReason::ExternalSpoofed);
    }
    Ok(Entry {
        parsed,
        key: Key::new(tables.sessions.seeds(), &parsed.flow, known.vni),
        ingress: Ingress::External(network),
        vpc,
        vni: known.vni,
        outer_class: None,
    })
}

/// Where a packet from a port goes by its MAC.
///
/// # Errors
/// It is for the port itself, or for the MAC by which this host serves guests, which is nobody's on the wire.
pub(in crate::pipeline) fn from_port(
    snapshot: &Snapshot,
    (index, vpc): (u16, &Vpc),
    to: Mac,
    trace: &mut impl Tracer,
) -> Result<Egress, DropReason> {
    let wire = vpc.wire.as_ref().ok_or(DropReason::UnknownMac)?;
    let name = || {
        let network = snapshot.outside.network(wire.network);
        network.map_or("gone", |network| network.id.as_str())
    };
    match here(vpc, to) {
        Some(port) if port == index => Err(DropReason::UnknownMac),
        None if vpc.gateway_macs.contains(&to) => Err(DropReason::UnknownMac),
        Some(port) => {
            trace.step("wire", || {
                format!("{to} is a port of this host on network {}", name())
            });
            Ok(Egress::Port(port))
        }
        None => {
            trace.step("wire", || format!("to {to} on network {}", name()));
            Ok(Egress::Wire(wire.network))
        }
    }
}

/// Where a packet from the wire goes.
///
/// # Errors
/// No port of this host has its MAC.
pub(in crate::pipeline) fn to_port(
    vpc: &Vpc,
    to: Mac,
    trace: &mut impl Tracer,
) -> Result<Way, DropReason> {
    let port = here(vpc, to).ok_or(DropReason::UnknownMac)?;
    trace.step("wire", || format!("{to} is a port of VPC {}", vpc.id));
    Ok(Way::new(Egress::Port(port), None))
}

/// Who gets a frame that policy has no say in.
struct Receivers<'s> {
    vpc: &'s Vpc,
    ingress: Ingress,
    to: Mac,
}

impl Receivers<'_> {
    fn has(&self, snapshot: &Snapshot, port: u16) -> bool {
        let is_meant = self.to.is_group()
            || snapshot
                .port(port)
                .is_some_and(|receiver| receiver.mac == self.to);
        is_meant && self.ingress != Ingress::Port(port)
    }

    /// Whether the wire is one of them.
    fn has_wire(&self) -> bool {
        matches!(self.ingress, Ingress::Port(_))
            && (self.to.is_group() || here(self.vpc, self.to).is_none())
    }
}

/// Who gets ARP that comes in here: ports of this host, and the wire of a network.
pub(in crate::pipeline) fn receivers(
    snapshot: &Snapshot,
    (ingress, vpc): (Ingress, usize),
    to: Mac,
) -> (Vec<u16>, Option<u16>) {
    let vpc = &snapshot.vpcs[vpc];
    let receivers = Receivers { vpc, ingress, to };
    let Some(wire) = &vpc.wire else {
        return (Vec::new(), None);
    };
    let ports = wire.ports(snapshot);
    let ports = ports.filter(|port| receivers.has(snapshot, *port));
    let onto_wire = receivers.has_wire().then_some(wire.network);
    (ports.collect(), onto_wire)
}

impl Core {
    /// Whether an external network may bring one more broadcast or multicast packet.
    pub(in crate::pipeline) fn may_bring(&mut self, network: u16) -> bool {
        self.wire_broadcasts.take(network.into(), self.now)
    }

    /// ARP of a port to others on its external network, or from there.
    pub(in crate::pipeline) fn pass_arp(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        (ingress, vpc): (Ingress, usize),
    ) {
        let to = segment::destination(packet.bytes(io));
        if to.is_group()
            && let Err(reason) = self.may_flood(ingress)
        {
            return self.drop(tables, io, packet, ingress, reason);
        }
        if !packet.frame.is_large() {
            return self.pass_on(tables, io, packet, (ingress, vpc, to));
        }
        let apart = gso::take_apart(io, packet, |io, piece| {
            self.pass_on(tables, io, piece, (ingress, vpc, to));
        });
        self.account(tables, io, ingress, apart);
    }

    fn pass_on(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        (ingress, vpc, to): (Ingress, usize, Mac),
    ) {
        let snapshot = tables.snapshot;
        let vpc = &snapshot.vpcs[vpc];
        let receivers = Receivers { vpc, ingress, to };
        let Some(wire) = &vpc.wire else {
            return self.drop(tables, io, packet, ingress, DropReason::UnknownMac);
        };
        let traffic = self.traffic(tables, ingress);
        let ports = || {
            wire.ports(snapshot)
                .filter(|port| receivers.has(snapshot, *port))
        };
        let copies = ports().count() + usize::from(receivers.has_wire());
        if copies == 0 {
            return self.drop(tables, io, packet, ingress, DropReason::NoReceiver);
        }
        traffic.generated.add(copies as u64 - 1);
        let copy = |io: &mut _| {
            let copy = ip_fragment::copy(io, &packet);
            if copy.is_none() {
                traffic.drop(DropReason::NoBuffer);
            }
            copy
        };
        for port in ports() {
            if let Some(copy) = copy(io) {
                self.deliver(tables, io, port, copy);
            }
        }
        if receivers.has_wire()
            && let Some(copy) = copy(io)
        {
            self.send_wire(tables, io, copy, (ingress, wire.network));
        }
        io.free(packet.frame);
    }

    /// Sends a frame as it is onto the wire of a network.
    pub(in crate::pipeline) fn send_wire(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        mut packet: Packet,
        (ingress, network): (Ingress, u16),
    ) {
        let network = tables.snapshot.outside.network(network);
        let link = network.and_then(|network| network.link);
        let Some(link) = link else {
            return self.drop(tables, io, packet, ingress, DropReason::ExternalDown);
        };
        match segment::tag(io, &mut packet, link.vlan) {
            Ok(()) => io.send(Destination::Uplink(link.uplink), packet),
            Err(reason) => self.drop(tables, io, packet, ingress, reason),
        }
    }
}
