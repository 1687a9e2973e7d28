//! Broadcast and multicast within a subnet: one copy to each port of it that may have it, one to each peer that has such ports, none back. On an external
//! network: one to each port there, of whichever subnet, and from a port one onto the wire.

use super::gateway;
use crate::packet::Parsed;
use crate::policy::Subject;
use crate::session::table::Ingress;
use crate::snapshot::{Place, Port, Snapshot};

/// Who is to get a copy.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Receivers {
    /// Ports of this host.
    pub ports: Vec<u16>,
    /// Peers, each once.
    pub peers: Vec<u16>,
    /// The external network that the sender's port is on.
    pub wire: Option<u16>,
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

/// Who gets a copy of a packet to a group. From a tunnel, only ports of this host do, and only when the sender's MAC is known there. Neighbour
/// discovery is no matter of policy.
pub fn receivers(snapshot: &Snapshot, ingress: Ingress, vpc: usize, parsed: &Parsed) -> Receivers {
    let passes = |port: &Port, towards: bool| {
        gateway::is_discovery(parsed) || passes(snapshot, port, parsed, towards)
    };
    if let Some(wire) = &snapshot.vpcs[vpc].wire {
        let sender = match ingress {
            Ingress::Port(index) => match snapshot.port(index) {
                Some(port) if passes(port, false) => Some(index),
                _ => return Receivers::default(),
            },
            Ingress::External(_) => None,
            Ingress::Peer(_) => return Receivers::default(),
        };
        let admitted = |index: &u16| {
            Some(*index) != sender && snapshot.port(*index).is_some_and(|port| passes(port, true))
        };
        return Receivers {
            ports: wire.ports(snapshot).filter(admitted).collect(),
            peers: Vec::new(),
            wire: sender.map(|_| wire.network),
        };
    }
    let (subnet, sender) = match ingress {
        Ingress::Port(index) => match snapshot.port(index) {
            Some(port) if passes(port, false) => (port.subnet, Some(index)),
            _ => return Receivers::default(),
        },
        Ingress::Peer(peer) => match snapshot.vpcs[vpc].by_mac.get(&parsed.eth_src) {
            Some(endpoint) if endpoint.place == Place::There(peer) => (endpoint.subnet, None),
            _ => return Receivers::default(),
        },
        Ingress::External(_) => return Receivers::default(),
    };
    let subnet = &snapshot.subnets[subnet];
    let admitted = |index: &u16| {
        Some(*index) != sender && snapshot.port(*index).is_some_and(|port| passes(port, true))
    };
    Receivers {
        ports: subnet.ports.iter().copied().filter(admitted).collect(),
        peers: if sender.is_some() {
            subnet.peers.clone()
        } else {
            Vec::new()
        },
        wire: None,
    }
}
