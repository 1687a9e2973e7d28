//! The last step before a packet leaves: whether its way takes it, and what is changed of it.

use super::translate::{self, Decision};
use super::{DeviceMtus, Entry, rewrite};
use crate::packet::{DropReason, Parsed};
use crate::session::table::{Action, Egress, Ingress};
use crate::snapshot::{Snapshot, Tunnel};

/// Why a packet can't go where it was to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Obstacle<'t> {
    /// A router would have to send it with a TTL of 0.
    TimeExceeded,
    /// No next hop of the underlay leads to the peer.
    Unresolved,
    /// The device, or the tunnel if one is named, takes so many bytes of IP packet.
    TooBig(u16, Option<&'t Tunnel>),
}

/// The tunnel that a packet of so many bytes takes; none towards a port.
///
/// # Errors
/// What stands in its way.
#[inline]
pub(super) fn way<'t>(
    snapshot: &'t Snapshot,
    device_mtus: &DeviceMtus,
    (action, hash): (&Action, u64),
    (ttl, ip_len): (u8, u16),
) -> Result<Option<&'t Tunnel>, Obstacle<'t>> {
    if action.is_routed() && ttl <= 1 {
        return Err(Obstacle::TimeExceeded);
    }
    let (tunnel, mtu) = match action.egress() {
        Egress::Port(index) => (None, device_mtus.of(index)),
        Egress::Peer(peer) => {
            let tunnel = snapshot.peer(peer).and_then(|peer| peer.tunnel(hash));
            let tunnel = tunnel.ok_or(Obstacle::Unresolved)?;
            (Some(tunnel), tunnel.inner_mtu)
        }
    };
    if ip_len > mtu {
        return Err(Obstacle::TooBig(mtu, tunnel));
    }
    Ok(tunnel)
}

/// Whether a router stands between the sender of a packet and where it goes, which alone may fragment it or report that it is too big. A tunnel
/// is narrower than a link, so that its host does so within a subnet too, lest the guest never learn of it; a port's device is as a link is.
pub(super) fn has_router(
    snapshot: &Snapshot,
    (ingress, vpc): (Ingress, usize),
    parsed: &Parsed,
    action: &Action,
) -> bool {
    let Egress::Port(index) = action.egress() else {
        return true;
    };
    match ingress {
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
