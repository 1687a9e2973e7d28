//! Which packets are for the multicast querier of this host (`crate::multicast`): reports of IGMP and MLD from ports of subnets with snooping.
//!
//! Asked on the miss path, after anti-spoofing and before policy, as services of the gateway are. Such a message goes to nobody else (RFC 4541 §2.1.1: reports only
//! to routers), so that guests do not hear each other and each says for itself what it wants.

use crate::multicast::message::{self, Message};
use crate::packet::{DropReason, Parsed};
use crate::snapshot::{Port, Snapshot};

/// Whether a packet of a port is a report for the querier.
///
/// # Errors
/// It is malformed, or a query: the gateway is the querier.
pub(super) fn of_port(
    snapshot: &Snapshot,
    port: &Port,
    frame: &[u8],
    parsed: &Parsed,
) -> Result<bool, DropReason> {
    if !snapshot.subnets[port.subnet].snoops || !message::is_membership(parsed) {
        return Ok(false);
    }
    match message::read(frame, parsed)? {
        Some(Message::Report(_)) => Ok(true),
        Some(Message::Query) => Err(DropReason::RogueQuerier),
        None => Ok(false),
    }
}

/// Refuses messages of IGMP and MLD out of a tunnel, from a subnet with snooping.
///
/// # Errors
/// The packet is one.
pub(super) fn check_tunnel(
    snapshot: &Snapshot,
    vpc: usize,
    frame: &[u8],
    parsed: &Parsed,
) -> Result<(), DropReason> {
    if !message::is_membership(parsed) {
        return Ok(());
    }
    let sender = snapshot.vpcs[vpc].by_mac.get(&parsed.eth_src);
    let snoops = sender.is_some_and(|sender| snapshot.subnets[sender.subnet].snoops);
    if snoops && message::read(frame, parsed)?.is_some() {
        return Err(DropReason::RogueQuerier);
    }
    Ok(())
}
