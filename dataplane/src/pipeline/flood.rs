//! Broadcast and multicast within a subnet: one copy to each port of it that may have it, one to each peer that has such ports, none back. Where the subnet has
//! multicast snooping, a group that is not link-local goes to those who have joined it (`crate::multicast`), in other subnets too if the VPC routes multicast. On an
//! external network: one to each port there, of whichever subnet, and from a port one onto the wire.

use super::gateway;
use crate::multicast::{Elsewhere, Listener, Table, is_snooped, may_be_routed};
use crate::packet::Parsed;
use crate::policy::Subject;
use crate::session::table::Ingress;
use crate::snapshot::{Endpoint, Place, Port, Snapshot, Subnet, Vpc};

/// Who is to get a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    /// A port of this host.
    Port(u16),
    /// A port of this host in another subnet than the sender's, as from its gateway.
    Routed(u16),
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
    /// Ports of this host that have joined the group.
    listeners: &'a [Listener],
    wire: Option<u16>,
    peers: &'a [u16],
    /// Those of them that get no copy, but what they have joined; in order.
    telling: &'a [u16],
    /// Peers with ports that have joined the group.
    elsewhere: &'a [Elsewhere],
    /// How the group is told apart, if its receivers have joined it.
    group: Option<Group<'a>>,
}

/// A group of which receivers are those who have joined it.
#[derive(Debug, Clone, Copy)]
struct Group<'a> {
    source: u128,
    /// Place of the sender's subnet.
    place: usize,
    subnet: &'a Subnet,
    /// Whether listeners in other subnets get it, too.
    is_routed: bool,
}

impl<'a> Group<'a> {
    /// None: everybody gets the packet.
    fn of(snapshot: &'a Snapshot, vpc: &Vpc, place: usize, parsed: &Parsed) -> Option<Self> {
        let (subnet, flow) = (&snapshot.subnets[place], &parsed.flow);
        let is_joined = subnet.snoops && is_snooped(flow.destination);
        is_joined.then(|| Self {
            source: flow.source,
            place,
            subnet,
            // Discovery is judged by no policy, and so stays where it is.
            is_routed: vpc.routes_multicast
                && parsed.ttl > 1
                && !gateway::is_discovery(parsed)
                && may_be_routed(flow.source, flow.destination),
        })
    }
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
    table: &'a Table,
    ingress: Ingress,
    vpc: usize,
    parsed: &'a Parsed,
) -> impl Iterator<Item = Receiver> + 'a {
    let scope = scope((snapshot, table), ingress, vpc, parsed);
    let ports = scope.subnets.iter();
    let ports = ports.flat_map(|subnet| &snapshot.subnets[*subnet].ports);
    let admitted = move |index: u16| {
        let port = snapshot
            .port(index)
            .filter(|_| Some(index) != scope.sender)?;
        is_admitted(snapshot, port, parsed, true).then_some(port)
    };
    let in_subnets = ports.filter_map(move |index| admitted(*index).map(|_| *index));
    let joined = scope.listeners.iter().filter_map(move |listener| {
        let group = scope.group.filter(|it| listener.filter.admits(it.source))?;
        let port = snapshot.port(listener.port)?;
        // An index may be another port's since the table was made.
        if port.vpc != vpc {
            return None;
        }
        let is_here = port.subnet == group.place;
        if is_here || group.is_routed && snapshot.subnets[port.subnet].snoops {
            admitted(listener.port)?;
        } else {
            return None;
        }
        Some(match is_here {
            true => Receiver::Port(listener.port),
            false => Receiver::Routed(listener.port),
        })
    });
    let wants = move |there: &Elsewhere| {
        scope.group.is_some_and(|group| {
            there.filter.admits(group.source)
                && (there.subnet == group.subnet.number || group.is_routed)
        })
    };
    // What a peer's subnets want stands together.
    let elsewhere = scope.elsewhere.chunk_by(|one, next| one.peer == next.peer);
    let elsewhere = elsewhere
        .filter(move |of_peer| of_peer.iter().any(wants))
        .filter_map(|of_peer| of_peer.first());
    let peers = scope.peers.iter().copied();
    let peers = peers.filter(move |peer| scope.telling.binary_search(peer).is_err());
    in_subnets
        .map(Receiver::Port)
        .chain(joined)
        .chain(scope.wire.map(Receiver::Wire))
        .chain(peers.map(Receiver::Peer))
        .chain(elsewhere.map(|there| Receiver::Peer(there.peer)))
}

/// Whether what a port sends to a group costs as much as it likes: hosts get copies whether anybody there wants them or not.
pub fn is_limited(snapshot: &Snapshot, table: &Table, index: u16, parsed: &Parsed) -> bool {
    let Some(port) = snapshot.port(index) else {
        return true;
    };
    let vpc = &snapshot.vpcs[port.vpc];
    match Group::of(snapshot, vpc, port.subnet, parsed) {
        Some(group) => {
            let peers = untold_peers(table, vpc, &group);
            let telling = table.telling(vpc.vni);
            peers
                .iter()
                .any(|peer| telling.binary_search(peer).is_err())
        }
        None => true,
    }
}

/// Who has sent a packet to a group from behind a peer: whose MAC it has, or else who has its address and may send with a MAC of a pair (a virtual router's, RFC
/// 5798 §7.3).
fn sender_of<'a>(vpc: &'a Vpc, peer: u16, parsed: &Parsed) -> Option<&'a Endpoint> {
    let source = parsed.flow.source;
    let by_mac = vpc.by_mac.get(&parsed.eth_src);
    let by_pair = || {
        let may_come = vpc.may_come_from(peer, source, parsed.eth_src);
        vpc.by_address.get(&source).filter(|_| may_come)
    };
    let sender = by_mac.or_else(by_pair);
    sender.filter(|endpoint| endpoint.place == Place::There(peer))
}

/// The peers that get a copy from a port of this host if they do not tell what they have joined. Those of other subnets are not known by the sender's alone.
fn untold_peers<'a>(table: &'a Table, vpc: &Vpc, group: &Group<'a>) -> &'a [u16] {
    let reach = table.reach.get(&vpc.vni).filter(|_| group.is_routed);
    reach.map_or(&group.subnet.peers, |reach| reach)
}

/// Whether a port may send a packet to a group, or get a copy of it.
fn is_admitted(snapshot: &Snapshot, port: &Port, parsed: &Parsed, towards: bool) -> bool {
    gateway::is_discovery(parsed) || passes(snapshot, port, parsed, towards)
}

fn scope<'a>(
    (snapshot, table): (&'a Snapshot, &'a Table),
    ingress: Ingress,
    vpc: usize,
    parsed: &Parsed,
) -> Scope<'a> {
    let vpc = &snapshot.vpcs[vpc];
    let sender = match ingress {
        Ingress::Port(index) => match snapshot.port(index) {
            Some(port) if is_admitted(snapshot, port, parsed, false) => Some((index, port)),
            _ => return Scope::default(),
        },
        Ingress::Peer(_) | Ingress::External(_) => None,
    };
    let index = sender.map(|(index, _)| index);
    if let Some(wire) = &vpc.wire {
        return match ingress {
            Ingress::Peer(_) => Scope::default(),
            Ingress::Port(_) | Ingress::External(_) => Scope {
                sender: index,
                subnets: &wire.subnets,
                wire: index.map(|_| wire.network),
                ..Scope::default()
            },
        };
    }
    let place = match (sender, ingress) {
        (Some((_, port)), _) => &port.subnet,
        (None, Ingress::Peer(peer)) => match sender_of(vpc, peer, parsed) {
            Some(endpoint) => &endpoint.subnet,
            None => return Scope::default(),
        },
        _ => return Scope::default(),
    };
    let peers = match sender {
        Some(_) => &snapshot.subnets[*place].peers[..],
        None => &[],
    };
    let Some(group) = Group::of(snapshot, vpc, *place, parsed) else {
        return Scope {
            sender: index,
            subnets: std::slice::from_ref(place),
            peers,
            ..Scope::default()
        };
    };
    let key = (vpc.vni, parsed.flow.destination);
    let (peers, elsewhere) = match sender {
        Some(_) => (untold_peers(table, vpc, &group), table.elsewhere(key)),
        None => (&[][..], &[][..]),
    };
    Scope {
        sender: index,
        listeners: table.here(key),
        peers,
        telling: table.telling(vpc.vni),
        elsewhere,
        group: Some(group),
        ..Scope::default()
    }
}
