//! The last step before a packet leaves: whether its way takes it, and what is changed of it.

use super::translate::{self, Decision};
use super::{DeviceMtus, Entry, Tables, external, rewrite};
use crate::packet::{DropReason, Parsed};
use crate::session::table::{Action, Egress, Ingress, MacPair};
use crate::snapshot::{Link, Network, Snapshot, Tunnel};

/// The way that a packet takes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Onward<'t> {
    /// To the device of a port of this host.
    Port(u16),
    /// Through a tunnel.
    Tunnel(&'t Tunnel),
    /// Onto an external network.
    External(&'t Network, Link),
    /// To an address that this host holds on an external network: as if it came from there.
    ThisHost,
}

/// Why a packet can't go where it was to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Obstacle<'t> {
    /// A router would have to send it with a TTL of 0.
    TimeExceeded,
    /// No next hop of the underlay leads to the peer.
    Unresolved,
    /// The neighbour on the external network is not known any more.
    NoNeighbor,
    /// This host has no interface on the port's external network.
    NoLink,
    /// The way takes so many bytes of IP packet.
    TooBig(u16, Onward<'t>),
}

impl Obstacle<'_> {
    /// Why the packet is dropped, if it is.
    pub(super) fn reason(&self) -> DropReason {
        match self {
            Self::TimeExceeded => DropReason::TtlExceeded,
            Self::Unresolved => DropReason::UnderlayUnresolved,
            Self::NoNeighbor => DropReason::ExternalUnresolved,
            Self::NoLink => DropReason::ExternalDown,
            Self::TooBig(..) => DropReason::TooBig,
        }
    }
}

/// The way that a packet of so many bytes takes.
///
/// # Errors
/// What stands in its way.
#[inline]
pub(super) fn way<'t>(
    tables: Tables<'t>,
    device_mtus: &DeviceMtus,
    (action, hash): (&Action, u64),
    (ttl, ip_len): (u8, u16),
) -> Result<Onward<'t>, Obstacle<'t>> {
    let snapshot = tables.snapshot;
    if action.is_routed() && ttl <= 1 {
        return Err(Obstacle::TimeExceeded);
    }
    let (onward, mtu) = match action.egress() {
        Egress::Port(index) => (Onward::Port(index), device_mtus.of(index)),
        Egress::Peer(peer) => {
            let tunnel = snapshot.peer(peer).and_then(|peer| peer.tunnel(hash));
            let tunnel = tunnel.ok_or(Obstacle::Unresolved)?;
            (Onward::Tunnel(tunnel), tunnel.inner_mtu)
        }
        Egress::External(external::THIS_HOST) => (Onward::ThisHost, u16::MAX),
        Egress::External(index) => {
            let (network, link) =
                neighbor(tables, action.new, index).ok_or(Obstacle::NoNeighbor)?;
            (Onward::External(network, link), network.mtu)
        }
        Egress::Wire(index) => {
            let network = snapshot.outside.network(index).ok_or(Obstacle::NoLink)?;
            let link = network.link.ok_or(Obstacle::NoLink)?;
            (Onward::External(network, link), network.mtu)
        }
    };
    if ip_len > mtu {
        return Err(Obstacle::TooBig(mtu, onward));
    }
    Ok(onward)
}

/// The external network of a neighbour and the link there, if packets with these MACs, which were decided for, still reach it.
#[inline]
pub(super) fn neighbor<'t>(
    tables: Tables<'t>,
    macs: MacPair,
    index: u16,
) -> Option<(&'t Network, Link)> {
    let neighbor = tables.neighbors.get(index)?;
    let network = tables.snapshot.outside.network(neighbor.network)?;
    let link = network.link?;
    (macs == MacPair::new(neighbor.mac, link.mac)).then_some((network, link))
}

/// Whether a router stands between the sender of a packet and where it goes, which alone may fragment it or report that it is too big. A tunnel
/// is narrower than a link, so that its host does so within a subnet too, lest the guest never learn of it; a port's device is as a link is.
pub(super) fn has_router(
    snapshot: &Snapshot,
    (ingress, vpc): (Ingress, usize),
    parsed: &Parsed,
    action: &Action,
) -> bool {
    // On an external network the router is another's, and it does not see what passes between neighbours.
    if snapshot.vpcs[vpc].wire.is_some() {
        return false;
    }
    let Egress::Port(index) = action.egress() else {
        return true;
    };
    match ingress {
        Ingress::External(_) => true,
        Ingress::Port(_) => action.is_routed(),
        Ingress::Peer(_) => {
            let senders = &snapshot.vpcs[vpc].by_address;
            let sender = senders.get(&parsed.flow.source).map(|sender| sender.subnet);
            sender != snapshot.port(index).map(|target| target.subnet)
        }
    }
}

/// Makes a packet what it leaves as: new MACs and TTL where it is routed, the tunnel's congestion mark, other addresses and ports where it is translated.
/// `is_partial`: the checksum of its transport header is made later. Answers its traffic class.
///
/// # Errors
/// It can't carry the congestion mark.
#[inline]
pub(super) fn change(
    frame: &mut [u8],
    entry: &Entry,
    decision: &Decision,
    is_partial: bool,
) -> Result<u8, DropReason> {
    let parsed = &entry.parsed;
    if decision.action.is_routed() {
        rewrite::both_macs(frame, decision.action.new);
        rewrite::decrement_ttl(frame, parsed);
    }
    let class = match entry.outer_class {
        Some(outer) => rewrite::propagate_congestion(frame, parsed, outer)?,
        None => parsed.traffic_class,
    };
    translate::apply(frame, parsed, &decision.change, is_partial);
    Ok(class)
}
