//! Broadcast and multicast within a subnet: one copy to each port of it that may have it, one to each peer that has such ports, none back. On an external
//! network: one to each port there, of whichever subnet, and from a port one onto the wire.

use super::gateway;
use crate::packet::Parsed;
use crate::policy::Subject;
use crate::session::table::Ingress;
use crate::snapshot::{Place, Port, Snapshot};

/// Who is to get a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    /// A port of this host.
    Port(u16),
    /// The external network that the sender's port is on.
    Wire(u16),
    /// A peer.
    Peer(u16),
}

/// Among whom receivers are looked for: nobody by default.
#[derive(Debug, Clone, Copy, Default)]
struct Scope<'a> {
    /// The sender, which gets no copy, if it is a port of this host.
    sender: Option<u16>,
    /// Places of the subnets whose ports on this host are receivers.
    subnets: &'a [usize],
    wire: Option<u16>,
    peers: &'a [u16],
}

/// Whether policy lets the packet pass at a port.
fn passes(snapshot: &Snapshot, port: &Port, parsed: &Parsed, towards: bool) -> bool {
    let (remote, rules) = if towards {
        (parsed.flow.source, &port.ingress)
    } else {
        (parsed.flow.destination, &port.egress)
    };
    let subject = Subject::of(&parsed.flow, parsed.icmp, remote);
    let acl = snapshot.subnets[port.subnet]
        .acl
        .and_then(|acl| snapshot.acls.get(acl));
    let entries = acl.map(|acl| if towards { &acl.ingress } else { &acl.egress });
    let sets = &snapshot.vpcs[port.vpc].sets;
    entries.is_none_or(|entries| entries.verdict(&subject, sets).1) && rules.allow(&subject, sets)
}

/// Who gets a copy of a packet to a group: each once, ports of this host first. From a tunnel, only ports of this host do, and only when the sender's MAC is
/// known there. Neighbour discovery is no matter of policy. Finding them allocates nothing.
pub fn receivers<'a>(
    snapshot: &'a Snapshot,
    ingress: Ingress,
    vpc: usize,
    parsed: &'a Parsed,
) -> impl Iterator<Item = Receiver> + 'a {
    let scope = scope(snapshot, ingress, vpc, parsed);
    let ports = scope.subnets.iter();
    let ports = ports.flat_map(|subnet| &snapshot.subnets[*subnet].ports);
    let admitted = move |index: &u16| {
        Some(*index) != scope.sender
            && snapshot
                .port(*index)
                .is_some_and(|port| is_admitted(snapshot, port, parsed, true))
    };
    let ports = ports.copied().filter(admitted).map(Receiver::Port);
    let peers = scope.peers.iter().copied().map(Receiver::Peer);
    ports.chain(scope.wire.map(Receiver::Wire)).chain(peers)
}

/// Whether a port may send a packet to a group, or get a copy of it.
fn is_admitted(snapshot: &Snapshot, port: &Port, parsed: &Parsed, towards: bool) -> bool {
    gateway::is_discovery(parsed) || passes(snapshot, port, parsed, towards)
}

fn scope<'a>(snapshot: &'a Snapshot, ingress: Ingress, vpc: usize, parsed: &Parsed) -> Scope<'a> {
    let vpc = &snapshot.vpcs[vpc];
    let sender = match ingress {
        Ingress::Port(index) => match snapshot.port(index) {
            Some(port) if is_admitted(snapshot, port, parsed, false) => Some((index, port)),
            _ => return Scope::default(),
        },
        Ingress::Peer(_) | Ingress::External(_) => None,
    };
    match (&vpc.wire, sender, ingress) {
        (Some(wire), Some((index, _)), _) => Scope {
            sender: Some(index),
            subnets: &wire.subnets,
            wire: Some(wire.network),
            peers: &[],
        },
        (Some(wire), None, Ingress::External(_)) => Scope {
            subnets: &wire.subnets,
            ..Scope::default()
        },
        (None, Some((index, port)), _) => Scope {
            sender: Some(index),
            subnets: std::slice::from_ref(&port.subnet),
            wire: None,
            peers: &snapshot.subnets[port.subnet].peers,
        },
        (None, None, Ingress::Peer(peer)) => match vpc.by_mac.get(&parsed.eth_src) {
            Some(endpoint) if endpoint.place == Place::There(peer) => Scope {
                subnets: std::slice::from_ref(&endpoint.subnet),
                ..Scope::default()
            },
            _ => Scope::default(),
        },
        _ => Scope::default(),
    }
}
