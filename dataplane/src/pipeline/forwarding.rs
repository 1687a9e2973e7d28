//! Where a packet goes: within its subnet by its MAC, between subnets by a route, out of a tunnel to a port of this host.

use super::guard::may_be_routed;
use super::policy_eval::Standing;
use super::tracer::{Silent, Tracer};
use super::{Tables, external, learning};
use crate::numbers::Vni;
use crate::packet::parse::word_address;
use crate::packet::{DropReason, Flow, Mac, Parsed};
use crate::route::ecmp;
use crate::session::table::{Action, Egress, Ingress, MacPair};
use crate::snapshot::{Endpoint, NextHop, Peering, Place, Port, Snapshot, Subnet, Target, Vpc};

/// Where a packet goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub egress: Egress,
    /// Its new MACs, where it is routed.
    pub macs: Option<MacPair>,
    /// The VPC of the port at the other end, where a peering joins it to this one.
    pub joined: Option<usize>,
    /// How the source is translated, where the packet leaves for an external network from this host.
    pub exit: Option<Exit>,
}

/// How a packet leaves for an external network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// With this address, the sender's elastic IP.
    ElasticIp(u128),
    /// Through the NAT gateway of this index.
    Nat(u16),
    /// With this elastic IP of a load balancer, as an answer of its member.
    Balancer(u128),
    /// As it is: the outside knows the sender by the address that it has.
    AsItIs,
}

impl Way {
    pub(super) fn new(egress: Egress, macs: Option<MacPair>) -> Self {
        Self {
            egress,
            macs,
            joined: None,
            exit: None,
        }
    }
}

fn egress_of(endpoint: &Endpoint) -> Egress {
    match endpoint.place {
        Place::Here(port) => Egress::Port(port),
        Place::There(peer) => Egress::Peer(peer),
    }
}

/// Where a packet from a port goes: within the subnet by its MAC, through the gateway by the route for the destination of `flow`, which is the packet's own
/// but for a translated destination. `about`: the flow by which one of several next hops is chosen, of an ICMP error the one that it is about.
pub(super) fn from_port(
    tables: Tables<'_>,
    sender: (u16, &Port),
    (parsed, flow, standing): (&Parsed, &Flow, Standing),
    about: &Flow,
    trace: &mut impl Tracer,
) -> Result<Way, DropReason> {
    let (snapshot, (index, port)) = (tables.snapshot, sender);
    let subnet = &snapshot.subnets[port.subnet];
    let vpc = &snapshot.vpcs[port.vpc];
    if vpc.wire.is_some() {
        let egress = external::wire::from_port(snapshot, (index, vpc), parsed.eth_dst, trace)?;
        return Ok(Way::new(egress, None));
    }
    let way = if parsed.eth_dst == subnet.gateway_mac {
        route(tables, port, (parsed, flow, standing), about, trace)?
    } else {
        let endpoint = vpc.in_subnet(parsed.eth_dst, port.subnet);
        let Some(endpoint) = endpoint else {
            trace.step("bridge", || {
                format!("{} is no port of subnet {}", parsed.eth_dst, subnet.id)
            });
            return Err(DropReason::UnknownMac);
        };
        trace.step("bridge", || {
            format!("{} is within subnet {}", parsed.eth_dst, subnet.id)
        });
        Way::new(egress_of(endpoint), None)
    };
    // A port reaches itself by way of an address that stands for its own.
    if way.egress == Egress::Port(index) && (way.macs.is_none() || flow == &parsed.flow) {
        return Err(DropReason::UnknownMac);
    }
    Ok(way)
}

/// By what a packet is routed.
#[derive(Debug, Clone, Copy)]
pub(super) enum By {
    /// The longest prefix that holds the destination, of this length in the 128-bit form.
    Prefix(u8),
    /// The policy route of this priority.
    Policy(u16),
}

/// Where the subnet of its sender leads a packet of `flow`: by the first policy route that matches, for one that goes its opener's way, or by the longest
/// prefix.
pub(super) fn lead<'s>(
    (vpc, subnet): (&Vpc, &'s Subnet),
    (parsed, flow, standing): (&Parsed, &Flow, Standing),
    trace: &mut impl Tracer,
) -> Option<(By, &'s Target)> {
    let dscp = parsed.traffic_class >> 2;
    let asked = (standing == Standing::Forward).then_some(&subnet.policies);
    if let Some(policy) = asked.and_then(|policies| policies.find(flow, dscp)) {
        if let Some(target) = &policy.target {
            return Some((By::Policy(policy.priority), target));
        }
        trace.step("route", || {
            format!("policy route {}: default routing", policy.priority)
        });
    }
    // A custom route beats an implied one of equal length.
    let custom = subnet.routes.lookup(flow.destination);
    let implied = vpc.subnets.lookup(flow.destination);
    let (len, target) = match (custom, implied) {
        (Some((custom, _)), Some((implied, _))) if implied > custom => (implied, &Target::Local),
        (Some(custom), _) => custom,
        (None, implied) => (implied?.0, &Target::Local),
    };
    Some((By::Prefix(len), target))
}

fn route(
    tables: Tables<'_>,
    port: &Port,
    (parsed, flow, standing): (&Parsed, &Flow, Standing),
    about: &Flow,
    trace: &mut impl Tracer,
) -> Result<Way, DropReason> {
    let snapshot = tables.snapshot;
    let destination = flow.destination;
    check_scope(flow, trace)?;
    let (vpc, subnet) = (&snapshot.vpcs[port.vpc], &snapshot.subnets[port.subnet]);
    let Some((by, target)) = lead((vpc, subnet), (parsed, flow, standing), trace) else {
        if let Some(elastic) = vpc.elastic_ips.get(&flow.source) {
            trace.step("route", || "none; the sender has an elastic IP".to_owned());
            return external::leave(tables, vpc, subnet, flow, (elastic.network, None), trace);
        }
        trace.step("route", || {
            format!(
                "no route for {} in subnet {}",
                word_address(destination),
                subnet.id
            )
        });
        return Err(DropReason::NoRoute);
    };
    let say = |what: String| {
        let address = word_address(destination);
        match by {
            By::Policy(priority) => format!("policy route {priority}: {what}"),
            By::Prefix(len) => {
                let len = if address.is_ipv4() { len - 96 } else { len };
                format!("{address} matches a /{len}: {what}")
            }
        }
    };
    let mut joined = None;
    let hop = match target {
        Target::Blackhole => {
            trace.step("route", || say("blackhole".to_owned()));
            return Err(DropReason::Blackhole);
        }
        Target::Local => {
            let Some(endpoint) = vpc.by_address.get(&destination) else {
                // Not the packet's own, which was looked for, but what a session makes of it.
                learning::check_address(snapshot, port.vpc, destination, trace)?;
                trace.step("route", || {
                    say("local, but no port has the address".to_owned())
                });
                return Err(DropReason::NoPort);
            };
            NextHop::Port(*endpoint)
        }
        Target::Peering(at) => {
            let peering = at.and_then(|at| vpc.peerings.get(at));
            trace.step("route", || say(describe_peering(peering)));
            learning::check_address(snapshot, port.vpc, destination, trace)?;
            let (other, endpoint) = by_peering(snapshot, vpc, peering, flow, trace)?;
            joined = Some(other);
            NextHop::Port(endpoint)
        }
        Target::Nat(index) => {
            let gateway = index.and_then(|index| snapshot.outside.nat_gateway(index));
            trace.step("route", || {
                say(
                    gateway.map_or("a NAT gateway that is gone".to_owned(), |gateway| {
                        format!("NAT gateway {}", gateway.id)
                    }),
                )
            });
            let gateway = gateway.ok_or(DropReason::NextHopGone)?;
            return external::leave(tables, vpc, subnet, flow, (gateway.network, *index), trace);
        }
        Target::External(index) => {
            let network = index.and_then(|index| snapshot.outside.network(index));
            trace.step("route", || {
                say(
                    network.map_or("an external network that is gone".to_owned(), |network| {
                        format!("external network {}", network.id)
                    }),
                )
            });
            let index = index.ok_or(DropReason::NextHopGone)?;
            return external::leave(tables, vpc, subnet, flow, (index, None), trace);
        }
        Target::Hop(hop) => *hop,
        Target::Ecmp(group) => {
            let chosen = group.choose(ecmp::flow_hash(about));
            trace.step("ecmp", || {
                format!("one of {} next hops", group.members().len())
            });
            chosen.map_or(NextHop::Gone, |member| member.target)
        }
    };
    trace.step("route", || say(describe(snapshot, &hop)));
    let (egress, macs) = match hop {
        NextHop::Port(endpoint) => {
            let gateway = snapshot.subnets[endpoint.subnet].gateway_mac;
            (egress_of(&endpoint), MacPair::new(endpoint.mac, gateway))
        }
        NextHop::Peer(peer, mac) => (Egress::Peer(peer), MacPair::new(mac, subnet.gateway_mac)),
        NextHop::Gone => return Err(DropReason::NextHopGone),
    };
    Ok(Way {
        egress,
        macs: Some(macs),
        joined,
        exit: None,
    })
}

/// The other VPC of a peering that a route leads to, and the port there that has the destination.
///
/// # Errors
/// The peering does not let packets pass, the source is no port's of the VPC, or no port has the destination.
fn by_peering(
    snapshot: &Snapshot,
    vpc: &Vpc,
    peering: Option<&Peering>,
    flow: &Flow,
    trace: &mut impl Tracer,
) -> Result<(usize, Endpoint), DropReason> {
    let peering = peering.filter(|peering| peering.passes);
    let peering = peering.ok_or(DropReason::PeeringInactive)?;
    // No transit: what a port only passes on is of no port of its VPC.
    if !vpc.by_address.contains_key(&flow.source) {
        return Err(DropReason::PeeringTransit);
    }
    let other = &snapshot.vpcs[peering.vpc];
    let endpoint = other.by_address.get(&flow.destination);
    trace.step("peering", || match endpoint {
        Some(_) => format!("into VPC {}", other.id),
        None => format!("no port of VPC {} has the address", other.id),
    });
    Ok((peering.vpc, *endpoint.ok_or(DropReason::NoPort)?))
}

fn describe_peering(peering: Option<&Peering>) -> String {
    match peering {
        None => "a peering that is gone".to_owned(),
        Some(Peering {
            id, passes: true, ..
        }) => format!("peering {id}"),
        Some(Peering { id, .. }) => format!("peering {id}, which is not active"),
    }
}

/// Where an answer goes that is for an address that stands for one behind a peer: its host translated the question, and translates the answer. As from a
/// router to a router, so that it is routed there once more.
pub(super) fn to_translator(
    snapshot: &Snapshot,
    port: &Port,
    outside: u128,
    trace: &mut impl Tracer,
) -> Option<Way> {
    let vpc = &snapshot.vpcs[port.vpc];
    let inside = vpc.translations.destination(outside)?;
    let Place::There(peer) = vpc.by_address.get(&inside)?.place else {
        return None;
    };
    let hop = NextHop::Peer(peer, Mac::ROUTER);
    trace.step("route", || {
        format!(
            "{} stands for {}: {}",
            word_address(outside),
            word_address(inside),
            describe(snapshot, &hop)
        )
    });
    let gateway = snapshot.subnets[port.subnet].gateway_mac;
    Some(Way::new(
        Egress::Peer(peer),
        Some(MacPair::new(Mac::ROUTER, gateway)),
    ))
}

/// Addresses of this link or this host alone do not cross a router.
fn check_scope(flow: &Flow, trace: &mut impl Tracer) -> Result<(), DropReason> {
    for address in [flow.source, flow.destination] {
        if !may_be_routed(address) {
            trace.step("route", || {
                format!("{} is not routed", word_address(address))
            });
            return Err(DropReason::Martian);
        }
    }
    Ok(())
}

fn describe(snapshot: &Snapshot, hop: &NextHop) -> String {
    let host = |peer: u16| {
        snapshot
            .peer(peer)
            .map_or("gone", |peer| peer.host.as_str())
    };
    match hop {
        NextHop::Port(Endpoint {
            place: Place::Here(port),
            ..
        }) => {
            format!(
                "port {}",
                snapshot.port(*port).map_or("gone", |port| port.id.as_str())
            )
        }
        NextHop::Port(Endpoint {
            place: Place::There(peer),
            mac,
            ..
        }) => format!("port {mac} on host {}", host(*peer)),
        NextHop::Peer(peer, mac) => format!("host {}, inner MAC {mac}", host(*peer)),
        NextHop::Gone => "a next hop that is not there".to_owned(),
    }
}

/// A packet that a peer has sent here for a port that has just moved away: on to where the port is now. Nothing is judged: the port's host does
/// that. Not for a packet that comes from there, nor for one that claims to come from here.
pub(super) fn moved(snapshot: &Snapshot, vpc: usize, peer: u16, parsed: &Parsed) -> Option<Action> {
    let vpc = &snapshot.vpcs[vpc];
    if vpc.moves.is_empty() {
        return None;
    }
    let source = vpc.by_mac.get(&parsed.eth_src);
    let comes_from_sender = source.is_none_or(|endpoint| endpoint.place == Place::There(peer));
    let (endpoint, rewrite) = if is_router(vpc, parsed.eth_dst) {
        let endpoint = vpc.by_address.get(&parsed.flow.destination)?;
        let gateway = snapshot.subnets[endpoint.subnet].gateway_mac;
        (endpoint, Some(MacPair::new(endpoint.mac, gateway)))
    } else {
        (vpc.by_mac.get(&parsed.eth_dst)?, None)
    };
    let next = vpc.moves.get(&endpoint.mac).copied()?;
    let goes_there = endpoint.place == Place::There(next) && next != peer;
    (goes_there && comes_from_sender && !is_here(vpc, parsed.flow.source))
        .then(|| Action::new(macs(parsed), Egress::Peer(next), rewrite))
}

/// The MACs of a packet.
pub(super) fn macs(parsed: &Parsed) -> MacPair {
    MacPair::new(parsed.eth_dst, parsed.eth_src)
}

/// Routers behind a tunnel send to the virtual router's MAC.
pub(super) fn is_router(vpc: &Vpc, mac: Mac) -> bool {
    mac == Mac::ROUTER || vpc.gateway_macs.contains(&mac)
}

/// Whether a port of this host has the address, or one that stands for it.
fn is_here(vpc: &Vpc, address: u128) -> bool {
    let address = vpc.translations.destination(address).unwrap_or(address);
    let endpoint = vpc.by_address.get(&address);
    endpoint.is_some_and(|endpoint| matches!(endpoint.place, Place::Here(_)))
}

/// Whether a peer may have sent on what is for a port that was there until lately.
fn was_sent_on(vpc: &Vpc, peer: u16, parsed: &Parsed) -> bool {
    vpc.moves.get(&parsed.eth_dst) == Some(&peer)
}

/// The peering by which the source of a packet out of a tunnel, which no port of a VPC has, is one of another VPC's, and the port that has it there.
/// Where several peered VPCs have it, it is that of the one to which the receiver's route leads back.
fn joined<'s>(
    snapshot: &'s Snapshot,
    vpc: &'s Vpc,
    parsed: &Parsed,
) -> Option<(&'s Peering, &'s Endpoint)> {
    let source = parsed.flow.source;
    if vpc.peerings.is_empty() || vpc.by_address.contains_key(&source) {
        return None;
    }
    let having = |peering: &'s Peering| {
        let endpoint = snapshot.vpcs[peering.vpc].by_address.get(&source)?;
        Some((peering, endpoint))
    };
    let target = vpc.by_mac.get(&parsed.eth_dst);
    let back = target.and_then(|target| snapshot.subnets[target.subnet].routes.lookup(source));
    let routed = match back {
        Some((_, Target::Peering(Some(at)))) => vpc.peerings.get(*at).and_then(having),
        _ => None,
    };
    let any = || vpc.peerings.iter().filter_map(having);
    routed
        .or_else(|| any().find(|(peering, _)| peering.passes))
        .or_else(|| any().next())
}

/// The sender of a packet that has come from a tunnel, and the VNI of its VPC: the packet's own, or one that a peering joins to it.
pub(super) fn sender<'s>(
    snapshot: &'s Snapshot,
    vpc: usize,
    parsed: &Parsed,
) -> Option<(&'s Endpoint, Vni)> {
    let vpc = &snapshot.vpcs[vpc];
    if let Some((peering, endpoint)) = joined(snapshot, vpc, parsed) {
        return Some((endpoint, snapshot.vpcs[peering.vpc].vni));
    }
    Some((vpc.by_address.get(&parsed.flow.source)?, vpc.vni))
}

/// Where a packet from a tunnel goes: to a port of this host, by the destination of `flow` where it is routed. Back into a tunnel only after a port that has
/// moved, see [`moved`]. `public`: it is the answer of a load balancer's member, which leaves by this network with this address.
pub(super) fn from_peer(
    tables: Tables<'_>,
    (vpc, peer): (usize, u16),
    (parsed, flow, standing): (&Parsed, &Flow, Standing),
    public: Option<(u16, u128)>,
    trace: &mut impl Tracer,
) -> Result<Way, DropReason> {
    let snapshot = tables.snapshot;
    let place = vpc;
    if let Some(onward) = moved(snapshot, vpc, peer, parsed) {
        trace.step("tunnel", || "the port has moved to another host".to_owned());
        let macs = onward.is_routed().then_some(onward.new);
        return Ok(Way::new(onward.egress(), macs));
    }
    let vpc = &snapshot.vpcs[vpc];
    // What claims to come from a port of this host, or carries the MAC of a port behind somebody else, is spoofed. But the host that a port came
    // from sends on what others sent it there, and an appliance may pass on what is not its own.
    let mac_is_elsewhere = match vpc.by_mac.get(&parsed.eth_src).map(|source| source.place) {
        Some(Place::Here(_)) => true,
        Some(Place::There(owner)) => owner != peer && !was_sent_on(vpc, peer, parsed),
        None => false,
    };
    if (mac_is_elsewhere || is_here(vpc, parsed.flow.source))
        && !vpc.may_come_from(peer, parsed.flow.source, parsed.eth_src)
    {
        trace.step("tunnel", || {
            format!(
                "{} {} does not live behind its sender",
                parsed.eth_src,
                word_address(parsed.flow.source)
            )
        });
        return Err(DropReason::SpoofedInner);
    }
    let joined = match joined(snapshot, vpc, parsed) {
        Some((_, sender))
            if sender.place != Place::There(peer) && !was_sent_on(vpc, peer, parsed) =>
        {
            trace.step("tunnel", || {
                let source = word_address(parsed.flow.source);
                format!("{source}, of a peered VPC, does not live behind its sender")
            });
            return Err(DropReason::SpoofedInner);
        }
        Some((peering, _)) if !peering.passes => {
            trace.step("peering", || format!("{} is not active", peering.id));
            return Err(DropReason::PeeringInactive);
        }
        Some((peering, _)) => {
            trace.step("peering", || {
                let other = &snapshot.vpcs[peering.vpc].id;
                format!("{}: from VPC {other}", peering.id)
            });
            Some(peering.vpc)
        }
        None => None,
    };
    let sender = || vpc.by_mac.get(&parsed.eth_src).map(|sender| sender.subnet);
    let target = parsed.flow.destination;
    if let Some(endpoint) = vpc.from_afar(parsed.eth_dst, target, sender) {
        return match endpoint.place {
            Place::Here(port) => Ok(Way {
                joined,
                ..Way::new(Egress::Port(port), None)
            }),
            Place::There(_) => Err(DropReason::NotHere),
        };
    }
    if !is_router(vpc, parsed.eth_dst) {
        return Err(DropReason::NotHere);
    }
    check_scope(flow, trace)?;
    let Some(endpoint) = vpc.by_address.get(&flow.destination) else {
        learning::check_address(snapshot, place, flow.destination, trace)?;
        let Some(public) = public else {
            return external::pass_on(tables, (vpc, peer), (parsed, flow, standing), trace);
        };
        let sender = vpc.by_address.get(&flow.source);
        let sender = sender.filter(|sender| sender.place == Place::There(peer));
        let subnet = &snapshot.subnets[sender.ok_or(DropReason::NoPort)?.subnet];
        return external::leave_balanced(tables, vpc, subnet, flow, public, trace);
    };
    match endpoint.place {
        // Only what this host has translated goes back into a tunnel.
        Place::There(_) if flow == &parsed.flow => Err(DropReason::HairpinTunnel),
        _ => Ok(Way {
            joined,
            ..to_endpoint(snapshot, endpoint)
        }),
    }
}

/// To a port, wherever it is, as from its gateway.
pub(super) fn to_endpoint(snapshot: &Snapshot, endpoint: &Endpoint) -> Way {
    let gateway = snapshot.subnets[endpoint.subnet].gateway_mac;
    Way::new(
        egress_of(endpoint),
        Some(MacPair::new(endpoint.mac, gateway)),
    )
}

/// Where a neighbour discovery message between guests goes: to the port of the link that it is sent to. No policy has a say.
///
/// # Errors
/// No port of the link has the MAC, or the sender does not live behind its peer.
pub(super) fn on_link(
    snapshot: &Snapshot,
    ingress: Ingress,
    vpc: usize,
    parsed: &Parsed,
) -> Result<Action, DropReason> {
    if snapshot.vpcs[vpc].wire.is_some() {
        let (to, vpc) = (parsed.eth_dst, &snapshot.vpcs[vpc]);
        let egress = match ingress {
            Ingress::Port(index) => {
                external::wire::from_port(snapshot, (index, vpc), to, &mut Silent)?
            }
            Ingress::External(_) => external::wire::to_port(vpc, to, &mut Silent)?.egress,
            Ingress::Peer(_) => return Err(DropReason::NotHere),
        };
        return Ok(Action::new(macs(parsed), egress, None));
    }
    let vpc = &snapshot.vpcs[vpc];
    let subnet = match ingress {
        Ingress::Port(index) => snapshot.port(index).ok_or(DropReason::PortDown)?.subnet,
        Ingress::Peer(peer) => {
            vpc.by_mac
                .get(&parsed.eth_src)
                .filter(|sender| sender.place == Place::There(peer))
                .ok_or(DropReason::SpoofedInner)?
                .subnet
        }
        Ingress::External(_) => return Err(DropReason::NotHere),
    };
    let endpoint = vpc.in_subnet(parsed.eth_dst, subnet);
    let egress = egress_of(endpoint.ok_or(DropReason::UnknownMac)?);
    match (ingress, egress) {
        (Ingress::Peer(_), Egress::Peer(_)) | (_, Egress::External(_) | Egress::Wire(_)) => {
            Err(DropReason::NotHere)
        }
        (Ingress::Port(from), Egress::Port(to)) if from == to => Err(DropReason::UnknownMac),
        _ => Ok(Action::new(macs(parsed), egress, None)),
    }
}
