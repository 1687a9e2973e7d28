//! The packet trace: what would happen to a packet, step by step. Resolves it as real packets are (`resolve`); sends nothing, makes no
//! session, and spends no limit.

use std::borrow::Cow;
use std::fmt::Write;

use super::egress::{self, Obstacle};
use super::flood::Receiver;
use super::resolve::{Verdict, flow, resolve};
use super::tracer::{Steps, Tracer};
use super::translate::Decision;
use super::{Entry, Service, Shared, Tables, external, flood, gateway, nat64, rewrite, slow_path};
use crate::packet::parse::{self, Inner, word_address};
use crate::packet::{DropReason, Mac, Parsed};
use crate::session::table::{Action, Egress, Ingress};
use crate::snapshot::{Snapshot, Subport};

/// Bytes of frame that any answer of the gateway fits in.
const ANSWER: usize = 2048;

/// By what a packet is traced: what workers go by.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The snapshot in force.
    pub snapshot: &'a Snapshot,
    /// What workers share.
    pub shared: &'a Shared,
    /// Whether IPv4 packets that are too big and may be fragmented are.
    pub fragment: bool,
}

impl<'a> View<'a> {
    fn tables(self) -> Tables<'a> {
        Tables {
            snapshot: self.snapshot,
            sessions: &self.shared.sessions,
            neighbors: &self.shared.neighbors,
            checks: &self.shared.checks,
            listeners: &self.shared.listeners,
        }
    }
}

/// What would become of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Dropped. Its sender may be told.
    Drop(DropReason),
    /// The gateway answers with this.
    Reply(&'static str),
    /// A service of this host takes it.
    Service(Service),
    /// A later fragment: it goes where the first of its datagram goes.
    WithItsFirst,
    /// It goes to these ports and these peers, by index.
    To {
        /// Ports of this host.
        ports: Vec<u16>,
        /// Peers.
        peers: Vec<u16>,
        /// A neighbour on an external network.
        neighbor: Option<u16>,
        /// The wire of an external network, by index.
        wire: Option<u16>,
        /// In fragments of so many bytes at most.
        fragments: Option<u16>,
    },
}

/// A packet's way.
#[derive(Debug)]
pub struct Trace {
    /// Stage by stage.
    pub steps: Vec<(&'static str, String)>,
    /// Where it ends.
    pub outcome: Outcome,
}

impl Outcome {
    /// In words.
    pub fn text(&self, snapshot: &Snapshot) -> String {
        match self {
            Self::Drop(reason) => format!("drop {}: {}", reason.name(), reason.meaning()),
            Self::Reply(name) => format!("{name} from the gateway"),
            Self::Service(Service::Metadata) => "the metadata service of this host".to_owned(),
            Self::Service(Service::Health) => "the health checks of this host".to_owned(),
            Self::Service(Service::Dns) => "the DNS service of this host".to_owned(),
            Self::Service(Service::Querier) => "the multicast querier of this host".to_owned(),
            Self::Service(Service::Holders) => {
                "this host, which finds out who holds the address".to_owned()
            }
            Self::WithItsFirst => "where the first fragment of its datagram goes".to_owned(),
            Self::To {
                ports,
                peers,
                neighbor,
                wire,
                fragments,
            } => {
                let ports = ports.iter().map(|port| Egress::Port(*port));
                let peers = peers.iter().map(|peer| Egress::Peer(*peer));
                let neighbors = neighbor.iter().map(|index| Egress::External(*index));
                let mut text = ports
                    .chain(peers)
                    .chain(neighbors)
                    .chain(wire.iter().map(|index| Egress::Wire(*index)))
                    .map(|egress| egress_text(snapshot, egress))
                    .collect::<Vec<_>>()
                    .join(", ");
                if let Some(mtu) = fragments {
                    // A String takes whatever is written to it.
                    let _ = write!(text, ", in fragments of {mtu} bytes at most");
                }
                text
            }
        }
    }
}

/// Traces a frame that a port would send.
pub fn trace(view: View<'_>, port: u16, frame: &[u8]) -> Trace {
    traced(|steps| from_port(view, port, frame, steps))
}

/// Traces a frame that comes in over the uplink, with its outer headers or from an external network.
pub fn trace_from_uplink(view: View<'_>, frame: &[u8]) -> Trace {
    traced(|steps| from_uplink(view, frame, steps))
}

fn traced(run: impl FnOnce(&mut Steps) -> Result<Outcome, DropReason>) -> Trace {
    let mut steps = Steps::default();
    let outcome = run(&mut steps).unwrap_or_else(Outcome::Drop);
    Trace {
        steps: steps.0,
        outcome,
    }
}

fn from_port(
    view: View<'_>,
    index: u16,
    frame: &[u8],
    steps: &mut Steps,
) -> Result<Outcome, DropReason> {
    let snapshot = view.snapshot;
    let mut port = snapshot.port(index).ok_or(DropReason::PortDown)?;
    steps.step("port", || {
        format!("{} in generation {}", port.id, snapshot.generation)
    });
    let (mut index, mut frame) = (index, Cow::Borrowed(frame));
    let vlan = external::segment::vlan_of(&frame);
    if vlan != 0 && snapshot.trunks.is_parent(index) {
        let subport = snapshot.trunks.port(index, vlan);
        index = subport.ok_or(DropReason::UnknownVlan)?;
        port = snapshot.port(index).ok_or(DropReason::PortDown)?;
        steps.step("trunk", || format!("VLAN {vlan} is port {}", port.id));
        frame.to_mut().drain(12..16);
    }
    let asker = gateway::Asker::Port(index, port);
    inner(
        view,
        &frame,
        (Ingress::Port(index), port.vpc, asker),
        None,
        steps,
    )
}

fn from_uplink(view: View<'_>, frame: &[u8], steps: &mut Steps) -> Result<Outcome, DropReason> {
    let snapshot = view.snapshot;
    let (outer, peer, vpc) = match slow_path::check_outer(snapshot, frame) {
        Ok(found) => found,
        Err(reason) if snapshot.outside.by_link.is_empty() => return Err(reason),
        Err(reason) => return from_segment(view, frame, reason, steps),
    };
    steps.step("tunnel", || {
        format!(
            "from {}, VPC {}, in generation {}",
            egress_text(snapshot, Egress::Peer(peer)),
            snapshot.vpcs[vpc].id,
            snapshot.generation
        )
    });
    let frame = &frame[usize::from(outer.inner)..usize::from(outer.end)];
    let asker = gateway::Asker::Peer(peer, vpc);
    inner(
        view,
        frame,
        (Ingress::Peer(peer), vpc, asker),
        Some(outer.traffic_class),
        steps,
    )
}

/// A frame from an external network: of those with the VLAN of its tag, the one that holds its destination. `reason`: why it is no tunnel packet.
fn from_segment(
    view: View<'_>,
    frame: &[u8],
    reason: DropReason,
    steps: &mut Steps,
) -> Result<Outcome, DropReason> {
    let snapshot = view.snapshot;
    let outside = &snapshot.outside;
    let vlan = external::segment::vlan_of(frame);
    let links = outside.by_link.iter();
    let mut networks = links.filter(|((_, of_link), _)| *of_link == vlan);
    let (_, first) = networks.clone().next().ok_or(reason)?;
    let mut frame = frame.to_vec();
    if frame.get(12..14) == Some(&[0x81, 0]) && frame.len() >= 16 {
        frame.drain(12..16);
    }
    let from = Mac::from_bytes(std::array::from_fn(|i| {
        frame.get(6 + i).copied().unwrap_or(0)
    }));
    let to = external::segment::destination(&frame);
    let wires = networks.clone().filter_map(|(_, index)| {
        let network = outside.network(*index)?;
        Some((*index, network, network.vpc?))
    });
    let mut wires = wires.filter(|(.., vpc)| {
        external::wire::check(&snapshot.vpcs[*vpc], to, from) != Err(DropReason::UnknownMac)
    });
    if let Some((index, network, vpc)) = wires.next() {
        steps.step("external", || {
            format!(
                "network {}, in generation {}",
                network.id, snapshot.generation
            )
        });
        return from_wire(view, &frame, (index, vpc, from, to), steps);
    }
    let Inner::Ip(parsed) = parse::inner(&frame)? else {
        return Err(DropReason::ArpUnanswered);
    };
    let owner = outside.owner(parsed.flow.destination);
    let holds = networks.find(|(_, network)| owner.is_some_and(|it| it.network == **network));
    let network = holds.map_or(*first, |(_, network)| *network);
    let known = outside.network(network);
    let known = known.ok_or(DropReason::ExternalUnheld)?;
    let link = known.link.ok_or(DropReason::ExternalUnheld)?;
    steps.step("external", || {
        format!(
            "network {}, in generation {}",
            known.id, snapshot.generation
        )
    });
    steps.step("parse", || describe(&parsed));
    let tables = view.tables();
    if external::segment::is_own_ping(tables, network, &parsed) && parsed.eth_dst == link.mac {
        return Ok(Outcome::Reply("echo reply"));
    }
    let entry = external::segment::entry(tables, network, link, parsed)?;
    decide(view, &entry, &mut frame, steps)
}

/// A frame, without a tag, from the wire of an external network with ports.
fn from_wire(
    view: View<'_>,
    frame: &[u8],
    (index, vpc, from, to): (u16, usize, Mac, Mac),
    steps: &mut Steps,
) -> Result<Outcome, DropReason> {
    let snapshot = view.snapshot;
    match parse::inner(frame)? {
        Inner::Arp => {
            external::wire::check(&snapshot.vpcs[vpc], to, from)?;
            passed_arp(snapshot, (Ingress::External(index), vpc), to)
        }
        Inner::Ip(parsed) => {
            steps.step("parse", || describe(&parsed));
            let entry = external::wire::entry(view.tables(), (index, vpc), parsed)?;
            decide(view, &entry, &mut frame.to_vec(), steps)
        }
    }
}

/// Where ARP goes on an external network with ports.
fn passed_arp(
    snapshot: &Snapshot,
    (ingress, vpc): (Ingress, usize),
    to: Mac,
) -> Result<Outcome, DropReason> {
    let (ports, wire) = external::wire::receivers(snapshot, (ingress, vpc), to);
    if ports.is_empty() && wire.is_none() {
        return Err(DropReason::NoReceiver);
    }
    Ok(Outcome::To {
        ports,
        peers: Vec::new(),
        neighbor: None,
        wire,
        fragments: None,
    })
}

fn inner(
    view: View<'_>,
    frame: &[u8],
    (ingress, vpc, asker): (Ingress, usize, gateway::Asker<'_>),
    outer_class: Option<u8>,
    steps: &mut Steps,
) -> Result<Outcome, DropReason> {
    let (snapshot, tables) = (view.snapshot, view.tables());
    let mut area = frame.to_vec();
    if parse::is_priority_tagged(&area) {
        area.drain(12..16);
    }
    let parsed = match parse::inner(&area)? {
        Inner::Ip(mut parsed) => {
            if let Ingress::Port(index) = ingress
                && let Some(dscp) = snapshot.port(index).and_then(|port| port.dscp)
            {
                steps.step("dscp", || format!("marked with {dscp}"));
                rewrite::mark(&mut area, &mut parsed, dscp);
            }
            parsed
        }
        Inner::Arp => {
            return match gateway::arp(snapshot, asker, &mut area)? {
                gateway::Arp::Reply => Ok(Outcome::Reply("ARP reply")),
                gateway::Arp::Announce => Ok(Outcome::Service(Service::Holders)),
                gateway::Arp::Relay => {
                    let to = external::segment::destination(&area);
                    passed_arp(snapshot, (ingress, vpc), to)
                }
            };
        }
    };
    steps.step("parse", || describe(&parsed));
    let entry = slow_path::entry(tables, parsed, ingress, vpc, outer_class);
    decide(view, &entry, &mut area, steps)
}

fn decide(
    view: View<'_>,
    entry: &Entry,
    area: &mut Vec<u8>,
    steps: &mut Steps,
) -> Result<Outcome, DropReason> {
    let (tables, parsed) = (view.tables(), &entry.parsed);
    let session = tables.sessions.find(&entry.key);
    area.resize(ANSWER.max(area.len()), 0);
    let verdict = resolve(tables, entry, area, session, steps);
    let outcome = match verdict.map_err(|refusal| refusal.reason)? {
        Verdict::Reply(reply) => return Ok(Outcome::Reply(reply.name)),
        Verdict::Punt(service) => return Ok(Outcome::Service(service)),
        Verdict::Fragment(fragment) if fragment.offset != 0 => return Ok(Outcome::WithItsFirst),
        Verdict::Flood => flooded(tables, entry)?,
        Verdict::Fragment(_) if parsed.eth_dst.is_group() => flooded(tables, entry)?,
        Verdict::Fragment(_) => {
            let flow = flow(tables, entry, area, session, steps);
            leave_by(view, entry, &flow.map_err(|refusal| refusal.reason)?.0)?
        }
        Verdict::Relay(action) => leave(view, entry, &action, parsed.ip_len())?,
        Verdict::Forward(decision, _) => leave_by(view, entry, &decision)?,
    };
    if let Some(class) = entry.outer_class {
        rewrite::propagate_congestion(area, parsed, class)?;
    }
    Ok(outcome)
}

/// The same of a packet that may have another length then.
fn leave_by(view: View<'_>, entry: &Entry, decision: &Decision) -> Result<Outcome, DropReason> {
    let parsed = &entry.parsed;
    let ip_len = if nat64::crosses(decision, parsed.family) {
        nat64::length(parsed)
    } else {
        parsed.ip_len()
    };
    leave(view, entry, &decision.action, ip_len)
}

/// Whether the packet's way takes it.
fn leave(
    view: View<'_>,
    entry: &Entry,
    action: &Action,
    ip_len: u16,
) -> Result<Outcome, DropReason> {
    let (snapshot, parsed) = (view.snapshot, &entry.parsed);
    let way = egress::way(
        view.tables(),
        &view.shared.device_mtus,
        (action, entry.key.hash),
        (parsed.ttl, ip_len),
    );
    let fragments = match way {
        Ok(_) => None,
        Err(Obstacle::TooBig(mtu, _)) => {
            let origin = (entry.ingress, entry.vpc);
            let may_split = view.fragment
                && !parsed.dont_fragment
                && egress::has_router(snapshot, origin, parsed, action);
            Some(may_split.then_some(mtu).ok_or(DropReason::TooBig)?)
        }
        Err(obstacle) => return Err(obstacle.reason()),
    };
    let (mut ports, mut peers, mut neighbor, mut wire) = (vec![], vec![], None, None);
    match action.egress() {
        Egress::Port(index) => ports.push(index),
        Egress::Peer(index) => peers.push(index),
        Egress::External(index) => neighbor = Some(index),
        Egress::Wire(index) => wire = Some(index),
    }
    Ok(Outcome::To {
        ports,
        peers,
        neighbor,
        wire,
        fragments,
    })
}

fn flooded(tables: Tables<'_>, entry: &Entry) -> Result<Outcome, DropReason> {
    let (mut ports, mut peers, mut wire) = (vec![], vec![], None);
    let (ingress, vpc) = (entry.ingress, entry.vpc);
    let receivers: Vec<Receiver> = tables.listeners.read(|table| {
        flood::receivers(tables.snapshot, table, ingress, vpc, &entry.parsed).collect()
    });
    for receiver in receivers {
        match receiver {
            Receiver::Port(index) | Receiver::Routed(index) => ports.push(index),
            Receiver::Wire(network) => wire = Some(network),
            Receiver::Peer(index) => {
                let peer = tables.snapshot.peer(index);
                if peer.is_some_and(|peer| peer.tunnel(entry.key.hash).is_some()) {
                    peers.push(index);
                }
            }
        }
    }
    if ports.is_empty() && peers.is_empty() && wire.is_none() {
        return Err(DropReason::NoReceiver);
    }
    Ok(Outcome::To {
        ports,
        peers,
        neighbor: None,
        wire,
        fragments: None,
    })
}

fn describe(parsed: &Parsed) -> String {
    let flow = &parsed.flow;
    format!(
        "{} port {} to {} port {}, protocol {}, {} bytes, TTL {}",
        word_address(flow.source),
        flow.source_port,
        word_address(flow.destination),
        flow.destination_port,
        flow.protocol,
        parsed.ip_len(),
        parsed.ttl
    )
}

/// A port or a host, by its name.
pub fn egress_text(snapshot: &Snapshot, egress: Egress) -> String {
    match egress {
        Egress::Port(index) => {
            let id = |index| snapshot.port(index).map_or("gone", |port| port.id.as_str());
            match snapshot.trunks.subport(index) {
                Some(Subport { parent, vlan }) => {
                    format!("port {} (VLAN {vlan} of {})", id(index), id(parent))
                }
                None => format!("port {}", id(index)),
            }
        }
        Egress::Peer(peer) => {
            let peer = snapshot.peer(peer);
            format!("host {}", peer.map_or("gone", |peer| peer.host.as_str()))
        }
        Egress::External(external::THIS_HOST) => {
            "an external network, and back to this host".to_owned()
        }
        Egress::External(index) => format!("an external network, neighbour {index}"),
        Egress::Wire(index) => {
            let network = snapshot.outside.network(index);
            let network = network.map_or("gone", |network| network.id.as_str());
            format!("the wire of external network {network}")
        }
    }
}
