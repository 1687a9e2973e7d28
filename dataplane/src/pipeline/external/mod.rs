//! External networks in the pipeline: how packets leave for them, and how they come in (services, "External networks", "Elastic IP", "NAT gateway").
//!
//! Towards such a network weft is a router for the addresses that it holds there (`segment`: ARP, neighbour discovery; `neighbors`: next hops). A packet that
//! comes in is for one of these addresses, which says its VPC. One that leaves has its source translated, on this host or, where another is the
//! translator, on that one: it gets the packet through the VPC's tunnel, as a router, and asks the sender's route table again.

pub mod neighbors;
pub(super) mod segment;
pub(super) mod wire;

use super::forwarding::{self, Exit, Way};
use super::policy_eval::Standing;
use super::tracer::Tracer;
use super::{Tables, balancing, nat64};
use crate::numbers::Vni;
use crate::packet::parse::{self, protocol, word_address};
use crate::packet::{DropReason, Family, Flow, Mac, Parsed};
use crate::session::mappings::{self, Inside, Mapping, MappingError, Outside as OutsidePort};
use crate::session::table::{Egress, MacPair};
use crate::snapshot::{
    HeldBy, NatGateway, Network, Place, Snapshot, Subnet, Target, Translator, Vpc,
};

/// The neighbour that stands for this host: the address is held here, by whoever.
pub(super) const THIS_HOST: u16 = u16::MAX;

/// How a packet leaves for an external network: by the sender's elastic IP there, else through a NAT gateway if the route names one.
pub(super) fn leave(
    tables: Tables<'_>,
    vpc: &Vpc,
    subnet: &Subnet,
    flow: &Flow,
    (network, gateway): (u16, Option<u16>),
    trace: &mut impl Tracer,
) -> Result<Way, DropReason> {
    let snapshot = tables.snapshot;
    let outside = &snapshot.outside;
    let known = outside.network(network).ok_or(DropReason::NextHopGone)?;
    // Behind the prefix of a gateway stands the IPv4 outside, where nobody knows the sender's own addresses.
    let gateway64 = gateway.and_then(|index| outside.nat_gateway(index));
    let prefix = gateway64.map(|gateway| gateway.nat64);
    let behind =
        prefix.and_then(|prefix| Some((prefix, nat64::extract(prefix, flow.destination)?)));
    if let Some((prefix, address)) = behind
        && !nat64::may_be_reached(prefix, address)
    {
        trace.step("NAT64", || {
            format!(
                "{} is not reached by {}",
                word_address(address),
                word_address(prefix)
            )
        });
        return Err(DropReason::Martian);
    }
    let behind = behind.map(|(_, address)| address);
    let elastic = vpc.elastic_ips.get(&flow.source);
    let elastic = elastic.filter(|_| behind.is_none());
    let routed = outside.routed(flow.source);
    let routed = routed.filter(|routed| routed.network == network);
    let (exit, translator) = match (elastic, gateway) {
        (Some(elastic), _) if elastic.network == network => {
            let is_direct = elastic.address == flow.source;
            let exit = if is_direct {
                Exit::AsItIs
            } else {
                Exit::ElasticIp(elastic.address)
            };
            (exit, elastic.translator)
        }
        (_, None) if routed.is_some_and(|routed| snapshot.vpcs[routed.vpc].vni == vpc.vni) => {
            (Exit::AsItIs, known.gateway)
        }
        (_, Some(index)) => {
            let gateway = outside.nat_gateway(index).ok_or(DropReason::NextHopGone)?;
            if !gateway.serves(flow.source) || !vpc.by_address.contains_key(&flow.source) {
                trace.step("route", || {
                    format!(
                        "NAT gateway {} does not serve {}",
                        gateway.id,
                        word_address(flow.source)
                    )
                });
                return Err(DropReason::NoTranslation);
            }
            (Exit::Nat(index), known.gateway)
        }
        _ => return Err(DropReason::NoTranslation),
    };
    let by = (known, translator, exit);
    go(tables, (vpc, subnet), (flow, behind), (network, by), trace)
}

/// How the answer of a load balancer's member to who has come from outside leaves: by the gateway host of the elastic IP's network, and from that one with the
/// elastic IP, which its session has kept.
pub(super) fn leave_balanced(
    tables: Tables<'_>,
    vpc: &Vpc,
    subnet: &Subnet,
    flow: &Flow,
    (network, address): (u16, u128),
    trace: &mut impl Tracer,
) -> Result<Way, DropReason> {
    let known = tables.snapshot.outside.network(network);
    let known = known.ok_or(DropReason::NextHopGone)?;
    trace.step("route", || {
        "an answer of a load balancer's member".to_owned()
    });
    let by = (known, known.gateway, Exit::Balancer(address));
    go(tables, (vpc, subnet), (flow, None), (network, by), trace)
}

/// The way to who translates, and from there to the next hop. `behind`: the IPv4 destination of a packet that goes between the families.
fn go(
    tables: Tables<'_>,
    (vpc, subnet): (&Vpc, &Subnet),
    (flow, behind): (&Flow, Option<u128>),
    (network, (known, translator, exit)): (u16, (&Network, Translator, Exit)),
    trace: &mut impl Tracer,
) -> Result<Way, DropReason> {
    let snapshot = tables.snapshot;
    let outside = &snapshot.outside;
    match translator {
        Translator::Nobody => Err(DropReason::NoTranslator),
        Translator::There(peer) => {
            trace.step("external", || {
                let host = tables.snapshot.peer(peer);
                let host = host.map_or("gone", |peer| peer.host.as_str());
                format!("to network {} by host {host}", known.id)
            });
            let macs = MacPair::new(Mac::ROUTER, subnet.gateway_mac);
            Ok(Way::new(Egress::Peer(peer), Some(macs)))
        }
        Translator::Here => {
            let link = known.link.ok_or(DropReason::ExternalUnresolved)?;
            let destination = behind.unwrap_or(flow.destination);
            // From inside, the VPC's own outside addresses are not reached by the prefix: the two halves of such a flow could not be told apart.
            let owner = behind.and_then(|address| outside.owner(address));
            if owner.is_some_and(|owner| snapshot.vpcs[owner.vpc].vni == vpc.vni) {
                trace.step("NAT64", || {
                    "an outside address of the VPC itself".to_owned()
                });
                return Err(DropReason::NatUnmapped);
            }
            let is_held = outside.held_on(network, destination).is_some();
            let mut way = if is_held || outside.owner_on(network, destination).is_some() {
                trace.step("external", || "an address of this host's own".to_owned());
                Way::new(
                    Egress::External(THIS_HOST),
                    Some(MacPair::new(link.mac, link.mac)),
                )
            } else {
                let hop = known.next_hop(destination);
                let hop = hop.ok_or(DropReason::ExternalUnresolved)?;
                trace.step("external", || {
                    format!("to network {}, next hop {}", known.id, word_address(hop))
                });
                let Some(neighbor) = tables.neighbors.find(network, hop) else {
                    trace.unresolved(network, hop);
                    return Err(DropReason::ExternalUnresolved);
                };
                Way::new(
                    Egress::External(neighbor.index),
                    Some(MacPair::new(neighbor.mac, link.mac)),
                )
            };
            way.exit = Some(exit);
            Ok(way)
        }
    }
}

/// The VNI that a packet which leaves is in then: none but where this host holds the destination itself. A flow from one VPC to an outside address of
/// another has a session in each there, and the two have no key in common: who is translated knows the other by the VNI of the other's VPC, or
/// by none if that has its address as it is; who is not stays in its own VPC.
pub(super) fn beyond(snapshot: &Snapshot, vpc: &Vpc, way: &Way, routed: &Flow) -> Vni {
    match (way.egress, way.exit) {
        (Egress::External(THIS_HOST), Some(Exit::AsItIs)) => vpc.vni,
        (Egress::External(THIS_HOST), _) => known_as(snapshot, routed.destination),
        _ => Vni::OUTSIDE,
    }
}

/// The VNI by which an outside address that this host holds is known to others which it translates for.
fn known_as(snapshot: &Snapshot, address: u128) -> Vni {
    let owner = snapshot.outside.owner(address);
    let owner = owner.filter(|owner| !owner.as_it_is);
    owner.map_or(Vni::OUTSIDE, |owner| snapshot.vpcs[owner.vpc].vni)
}

/// Whether a source address is one that nobody outside may have: it lies in a subnet of the VPC, or of one that a peering joins to it. Policy knows ports by
/// their addresses.
fn is_inside(snapshot: &Snapshot, vpc: &Vpc, source: u128) -> bool {
    let joined = vpc.peerings.iter().map(|peering| peering.vpc);
    vpc.subnets.lookup(source).is_some()
        || joined
            .into_iter()
            .any(|vpc| snapshot.vpcs[vpc].subnets.lookup(source).is_some())
}

/// Where a packet goes that a peer has sent here as to a router, to no port of the VPC: out, if this host translates for its sender. The sender's route
/// table decides once more.
pub(super) fn pass_on(
    tables: Tables<'_>,
    (vpc, peer): (&Vpc, u16),
    (parsed, flow, standing): (&Parsed, &Flow, Standing),
    trace: &mut impl Tracer,
) -> Result<Way, DropReason> {
    let snapshot = tables.snapshot;
    let sender = vpc.by_address.get(&flow.source).ok_or(DropReason::NoPort)?;
    if sender.place != Place::There(peer) {
        return Err(DropReason::NoPort);
    }
    let subnet = &snapshot.subnets[sender.subnet];
    let leads = match forwarding::lead((vpc, subnet), (parsed, flow, standing), trace) {
        Some((_, Target::Nat(Some(gateway)))) => {
            let known = snapshot.outside.nat_gateway(*gateway);
            known.map(|known| (known.network, Some(*gateway)))
        }
        Some((_, Target::External(Some(network)))) => Some((*network, None)),
        Some(_) => None,
        None => {
            let elastic = vpc.elastic_ips.get(&flow.source);
            elastic.map(|elastic| (elastic.network, None))
        }
    };
    let leads = leads.ok_or(DropReason::NoPort)?;
    let way = leave(tables, vpc, subnet, flow, leads, trace)?;
    // It has come to the translator already.
    match way.exit {
        Some(_) => Ok(way),
        None => Err(DropReason::NoTranslator),
    }
}

/// The address and port of the VPC that an outside address and port stand for, to who has no session.
pub(super) fn enter(
    tables: Tables<'_>,
    vpc: usize,
    flow: &Flow,
    trace: &mut impl Tracer,
) -> Result<(u128, u16), DropReason> {
    let outside = &tables.snapshot.outside;
    let owner = outside.owner(flow.destination);
    let owner = owner.filter(|owner| owner.vpc == vpc);
    if owner.ok_or(DropReason::ExternalUnheld)?.as_it_is {
        return Ok((flow.destination, flow.destination_port));
    }
    let held = outside.held.get(&flow.destination);
    match held.ok_or(DropReason::ExternalUnheld)?.by {
        HeldBy::Network => Err(DropReason::ExternalUnheld),
        HeldBy::ElasticIp(inside) => Ok((inside, flow.destination_port)),
        HeldBy::Balancer => {
            let balancer = balancing::at(&tables.snapshot.vpcs[vpc], flow.destination);
            balancing::choose(balancer.ok_or(DropReason::ExternalUnheld)?, flow, trace)
        }
        HeldBy::NatGateway(index) => {
            let gateway = outside.nat_gateway(index);
            let gateway = gateway.ok_or(DropReason::NatUnmapped)?;
            let found = entry_of(tables, gateway, flow);
            trace.step("NAT gateway", || match found {
                Some(_) => format!("a port of {}", gateway.id),
                None => format!("no mapping or port forward of {}", gateway.id),
            });
            found.ok_or(DropReason::NatUnmapped)
        }
    }
}

fn entry_of(tables: Tables<'_>, gateway: &NatGateway, flow: &Flow) -> Option<(u128, u16)> {
    let (address, port) = (flow.destination, flow.destination_port);
    if let Some(forward) = gateway.forward(flow.protocol, address, port) {
        return Some(forward);
    }
    // Pings have no port that anybody could send to.
    if !gateway.is_open || matches!(flow.protocol, protocol::ICMP | protocol::ICMPV6) {
        return None;
    }
    let mappings = tables.sessions.mappings();
    let outside = OutsidePort::new(flow.protocol, address, port);
    let Inside {
        address: inside,
        port: inside_port,
        ..
    } = mappings.find_outside(flow.protocol, outside)?.inside;
    let has_ports = mappings::has_ports(flow.protocol);
    Some((inside, if has_ports { inside_port } else { port }))
}

/// What a packet from the outside to this flow's destination becomes that stands for an IPv6 address (NAT64).
pub(super) fn enter_across(snapshot: &Snapshot, flow: &Flow, inside: (u128, u16)) -> Option<Flow> {
    let held = snapshot.outside.held.get(&flow.destination)?;
    let HeldBy::NatGateway(index) = held.by else {
        return None;
    };
    let prefix = snapshot.outside.nat_gateway(index)?.nat64;
    Some(Flow {
        source: nat64::embed(prefix, flow.source),
        destination: inside.0,
        destination_port: inside.1,
        ..*flow
    })
}

/// The IPv4 flow that a flow behind the prefix of a NAT gateway becomes, but for its source; none if its destination is not behind it.
pub(super) fn across(snapshot: &Snapshot, index: u16, flow: &Flow) -> Option<Flow> {
    let prefix = snapshot.outside.nat_gateway(index)?.nat64;
    let destination = nat64::extract(prefix, flow.destination)?;
    let mut after = Flow {
        destination,
        protocol: nat64::protocol_in(Family::Ipv4, flow.protocol),
        ..*flow
    };
    if after.protocol == protocol::ICMP {
        (after.source_port, after.destination_port) =
            parse::icmp_ports(Family::Ipv4, 8, 0, flow.source_port);
    }
    Some(after)
}

/// The mapping for a flow's source at a NAT gateway, among its addresses of a family. Where nothing may change, what it would be.
pub(super) fn map(
    tables: Tables<'_>,
    (index, family): (u16, Family),
    flow: &Flow,
    trace: &mut impl Tracer,
) -> Result<Mapping, DropReason> {
    let gateway = tables.snapshot.outside.nat_gateway(index);
    let gateway = gateway.ok_or(DropReason::NextHopGone)?;
    let protocol = nat64::protocol_in(family, flow.protocol);
    let inside = Inside::new(index, protocol, flow.source, flow.source_port);
    let mappings = tables.sessions.mappings();
    let is_of_family = |pool: &&crate::session::mappings::Pool| {
        crate::packet::parse::word_family(pool.address) == family
    };
    // Lists of pools are short, and of one family nearly always.
    let first = gateway.pools.iter().position(|pool| is_of_family(&pool));
    let first = first.ok_or(DropReason::NoTranslation)?;
    let of_family = gateway.pools[first..].chunk_by(|a, b| {
        crate::packet::parse::word_family(a.address) == crate::packet::parse::word_family(b.address)
    });
    let pools = of_family.into_iter().next().unwrap_or_default();
    let reserved = |address, port| gateway.reserves(flow.protocol, address, port);
    let offer = (pools, gateway.budget);
    let mapping = if trace.may_change() {
        let mapping = mappings.map(&inside, offer, reserved);
        mapping.inspect_err(|error| gateway.alarms.count(*error))
    } else {
        let outside = mappings.would_map(&inside, offer, reserved);
        outside.map(|outside| Mapping {
            number: 0,
            inside,
            outside,
        })
    };
    mapping.map_err(|error| match error {
        MappingError::Ports => DropReason::NatPorts,
        MappingError::AddressBudget => DropReason::NatAddressBudget,
        MappingError::GatewayBudget => DropReason::NatGatewayBudget,
        MappingError::Full => DropReason::NatTableFull,
        MappingError::Protocol => DropReason::NatProtocol,
    })
}

/// The same of a session between the families: `six` is it as the VPC sees it, from there to the outside, and `four` as the outside does.
pub(super) fn keeps_across(snapshot: &Snapshot, vpc: usize, six: &Flow, four: &Flow) -> bool {
    let held = snapshot.outside.held.get(&four.source);
    let Some(HeldBy::NatGateway(index)) = held
        .filter(|held| held.vpc == Some(vpc))
        .map(|held| held.by)
    else {
        return false;
    };
    let gateway = snapshot.outside.nat_gateway(index);
    gateway.is_some_and(|gateway| {
        gateway.serves(six.source)
            && nat64::extract(gateway.nat64, six.destination) == Some(four.destination)
    })
}

/// Whether a session between a VPC and the outside may go on as it was translated when it began: `inside` is the address in the VPC, `address` the outside
/// one that stands for it.
pub(super) fn keeps(snapshot: &Snapshot, vpc: usize, inside: u128, address: u128) -> bool {
    let held = snapshot.outside.held.get(&address);
    held.filter(|held| held.vpc == Some(vpc))
        .is_some_and(|held| match held.by {
            HeldBy::Network | HeldBy::Balancer => false,
            HeldBy::ElasticIp(stands_for) => stands_for == inside,
            HeldBy::NatGateway(index) => {
                snapshot.outside.nat_gateway(index).is_some_and(|gateway| {
                    gateway.serves(inside) || gateway.forwards.iter().any(|it| it.inside == inside)
                })
            }
        })
}
