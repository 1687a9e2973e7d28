//! The way out of a VPC and in: which host translates, what a packet is known by outside, what an outside address stands for.

use std::net::IpAddr;

use weft_dataplane::packet::DropReason;
use weft_proto::v1;

use super::frame::{Decoded, Detail, Flow, ICMP, ICMPV6, Packet, TCP, UDP, decode, mac_at, word};
use super::gateway::{self, Problem};
use super::outside::{By, FIRST_PORT, OUTSIDE, addresses, interface, next_hop, serves};
use super::world::{ROUTER, World, gateway_mac, prefix_holds};
use super::{Exit, Ingress, Model, Outcome, Standing, To, Way, balancing, check_outer};

/// How long a port is kept once no session uses its mapping, in milliseconds.
const HOLD: u32 = 2000;

/// A port of an outside address that stands for one of an inside address (RFC 4787 REQ-1: whatever the destination).
#[derive(Debug, Clone)]
pub struct Mapping {
    pub number: u32,
    pub chosen: Seen,
    /// The gateway's addresses when it was chosen.
    among: Vec<String>,
    /// Since when time has passed without a session that uses it.
    idle_since: Option<u32>,
}

/// What a NAT gateway on a host has chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub host: String,
    pub gateway: String,
    pub protocol: u8,
    pub inside: (IpAddr, u16),
    pub outside: (IpAddr, u16),
}

/// A flow's destination port is that of another flow.
pub fn with_destination(detail: Detail, other: Detail) -> Detail {
    match (detail, other) {
        (Detail::Ports(source, _), Detail::Ports(_, destination)) => {
            Detail::Ports(source, destination)
        }
        (Detail::Query { answer: true, .. }, other) => other,
        (detail, _) => detail,
    }
}

/// Where a route of a port's table leads out: the network, and the NAT gateway if it names one.
pub fn leads<'a>(
    world: &'a World,
    route: &v1::Route,
) -> Option<(&'a str, Option<&'a v1::NatGateway>)> {
    if route.external.is_empty() {
        let gateway = world.nat_gateway(&route.nat)?;
        return Some((&gateway.external_network, Some(gateway)));
    }
    Some((&world.network(&route.external)?.id, None))
}

/// A packet of a port in `subnet` leaves for a network: by the sender's elastic IP there, else by the gateway of its route, if that serves it. On
/// the host that translates; elsewhere it goes to that one.
pub fn leave<'a>(
    world: &'a World,
    (host, vpc): (&str, &str),
    subnet: &v1::Subnet,
    flow: &Flow,
    (network, gateway): (&str, Option<&'a v1::NatGateway>),
) -> Result<Way<'a>, DropReason> {
    let network = world.network(network).ok_or(DropReason::NextHopGone)?;
    let elastic = world.elastic(vpc, flow.source);
    let elastic = elastic.filter(|elastic| elastic.network == network.id);
    let is_port = world.port_by_address(vpc, flow.source).is_some();
    let is_by_gateway = gateway.is_some();
    let gateway = gateway.filter(|gateway| is_port && serves(gateway, flow.source));
    let routed = world.routed(flow.source);
    let routed = routed.filter(|(by, to)| by.id == network.id && *to == vpc);
    let (exit, translator) = match (elastic, gateway) {
        (Some(elastic), _) if elastic.outside == flow.source => {
            (Exit::AsItIs, elastic.host.as_deref())
        }
        (Some(elastic), _) => (Exit::Elastic(elastic.outside), elastic.host.as_deref()),
        (None, _) if routed.is_some() && !is_by_gateway => {
            let first = network.gateway_hosts.first();
            (Exit::AsItIs, first.map(String::as_str))
        }
        (None, Some(gateway)) => {
            let first = network.gateway_hosts.first();
            (Exit::Gateway(gateway), first.map(String::as_str))
        }
        (None, None) => return Err(DropReason::NoTranslation),
    };
    go(world, host, subnet, flow, (network, translator, exit))
}

/// An answer of a load balancer's member to who has come from outside leaves with the elastic IP that its session has kept, on the network's gateway host.
pub fn leave_balanced<'a>(
    world: &'a World,
    host: &str,
    subnet: &v1::Subnet,
    flow: &Flow,
    (network, address): (&str, IpAddr),
) -> Result<Way<'a>, DropReason> {
    let network = world.network(network).ok_or(DropReason::NextHopGone)?;
    let translator = network.gateway_hosts.first().map(String::as_str);
    let exit = Exit::Elastic(address);
    go(world, host, subnet, flow, (network, translator, exit))
}

/// To the host that translates, and from there to the next hop.
fn go<'a>(
    world: &'a World,
    host: &str,
    subnet: &v1::Subnet,
    flow: &Flow,
    (network, translator, exit): (&'a v1::ExternalNetwork, Option<&'a str>, Exit<'a>),
) -> Result<Way<'a>, DropReason> {
    let translator = translator.ok_or(DropReason::NoTranslator)?;
    if translator != host {
        return Ok(Way::new(
            To::Host(translator),
            Some((ROUTER, gateway_mac(subnet))),
        ));
    }
    let own = interface(host);
    let held = world.held(host, flow.destination);
    let held = held.or_else(|| world.owner(host, flow.destination));
    let (to, next) = match held.filter(|held| held.network == network.id) {
        Some(_) => (To::ThisHost, own),
        None => {
            let hop = next_hop(network, flow.destination);
            let hop = hop.ok_or(DropReason::ExternalUnresolved)?;
            (To::Outside(network), world.station(hop))
        }
    };
    Ok(Way {
        exit: Some(exit),
        ..Way::new(to, Some((next, own)))
    })
}

/// What another host has sent here as to a router, and what no port of the VPC has: it leaves if this host translates for its sender, which must live
/// there. The sender's routes decide.
pub fn pass_on<'a>(
    world: &'a World,
    place: (&str, &str),
    from: &str,
    (packet, flow, standing): (&Packet, &Flow, Standing),
) -> Result<Way<'a>, DropReason> {
    let (_, vpc) = place;
    let sender = world.port_by_address(vpc, flow.source);
    let sender = sender.filter(|sender| sender.host == from);
    let sender = sender.ok_or(DropReason::NoPort)?;
    let length = |prefix: &str| {
        let network: ipnetwork::IpNetwork = prefix.parse().unwrap();
        network.prefix()
    };
    let policy = world.policy_target(sender, (packet, flow, standing));
    let custom = world.custom_route(sender, flow.destination);
    let implied = world.subnets_of(vpc).flat_map(|subnet| &subnet.cidrs);
    let implied = implied.filter(|cidr| prefix_holds(cidr, flow.destination));
    let implied = implied.map(|cidr| length(cidr)).max();
    let longest = if flow.destination.is_ipv4() { 32 } else { 128 };
    let is_direct = world.is_direct(vpc, flow.destination);
    let implied = implied.max(is_direct.then_some(longest));
    if policy.is_none() && implied > custom.as_ref().map(|route| length(&route.prefix)) {
        return Err(DropReason::NoPort);
    }
    let leads = match &policy.or(custom) {
        Some(route) => {
            let is_out = !route.nat.is_empty() || !route.external.is_empty();
            leads(world, route).filter(|_| is_out)
        }
        None => {
            let elastic = world.elastic(vpc, flow.source);
            elastic.map(|elastic| (elastic.network.as_str(), None))
        }
    };
    let subnet = world.subnet(&sender.subnet);
    let leads = leads.ok_or(DropReason::NoPort)?;
    let way = leave(world, place, subnet, flow, leads)?;
    // It has come to the translator already.
    match way.exit {
        Some(_) => Ok(way),
        None => Err(DropReason::NoTranslator),
    }
}

/// The answer to a ping of an address that no port has, on a network whose own addresses answer. `network`: where it came from.
fn own_ping(world: &World, host: &str, network: Option<&str>, packet: &Packet) -> Option<Vec<u8>> {
    let held = world.held(host, packet.flow.destination)?;
    let is_of_port = matches!(held.by, By::Elastic(_));
    let is_there = network.is_none_or(|network| network == held.network);
    let answers = world.network(held.network)?.answer_pings;
    let request = (if packet.is_v4() { 8 } else { 128 }, 0);
    let serves = match held.by {
        By::Balancer(balancer) => balancing::serves(world, balancer, packet.is_v4()),
        _ => true,
    };
    let is_ping = matches!(packet.flow.protocol, ICMP | ICMPV6) && packet.icmp == Some(request);
    if is_of_port || !serves || !is_there || !answers || !is_ping || packet.fragment.is_some() {
        return None;
    }
    gateway::ping(packet).ok()
}

/// Whether a protocol is none whose ports or identifiers a NAT gateway knows.
fn is_portless(protocol: u8) -> bool {
    !matches!(protocol, TCP | UDP | ICMP | ICMPV6)
}

impl Model {
    /// Gives a packet from outside, or to a NAT gateway's address from inside, the destination that the address stands for.
    pub(super) fn come_to(
        &mut self,
        world: &World,
        (host, vpc): (&str, &str),
        flow: &mut Flow,
    ) -> Result<(), DropReason> {
        let held = world.owner(host, flow.destination);
        let held = held.filter(|held| held.vpc == vpc);
        let gateway = match held.ok_or(DropReason::ExternalUnheld)?.by {
            By::Network | By::Routed => return Ok(()),
            By::Elastic(elastic) => {
                flow.destination = elastic.inside;
                return Ok(());
            }
            By::Balancer(balancer) => return self.balance(world, (host, balancer), flow),
            By::Gateway(gateway) => gateway,
        };
        if is_portless(flow.protocol) {
            let is_open = gateway.filtering == "endpoint_independent";
            let found = self.mappings.iter().find(|mapping| {
                let chosen = &mapping.chosen;
                chosen.host == host
                    && chosen.protocol == flow.protocol
                    && chosen.outside == (flow.destination, 0)
            });
            let found = found.filter(|_| is_open).ok_or(DropReason::NatUnmapped)?;
            flow.destination = found.chosen.inside.0;
            return Ok(());
        }
        let Detail::Ports(source, port) = flow.detail else {
            return Err(DropReason::NatUnmapped);
        };
        let forward = world.forward(gateway, flow.protocol, (flow.destination, port));
        let mapped = || {
            let is_open = gateway.filtering == "endpoint_independent";
            let mut mappings = self.mappings.iter();
            let found = mappings.find(|mapping| {
                let chosen = &mapping.chosen;
                chosen.host == host
                    && chosen.protocol == flow.protocol
                    && chosen.outside == (flow.destination, port)
            });
            found
                .filter(|_| is_open && matches!(flow.protocol, TCP | UDP))
                .map(|mapping| mapping.chosen.inside)
        };
        let (address, port) = forward.or_else(mapped).ok_or(DropReason::NatUnmapped)?;
        flow.destination = address;
        flow.detail = Detail::Ports(source, port);
        Ok(())
    }

    /// Gives a routed packet that opens a flow the source that it is known by where it goes. Answers the mapping that it uses.
    pub(super) fn leave_by(
        &mut self,
        world: &World,
        (host, vpc): (&str, &str),
        packet: &Packet,
        flow: &mut Flow,
        exit: Option<Exit<'_>>,
    ) -> Result<Option<u32>, DropReason> {
        let before = packet.flow;
        let hairpin = flow.destination != before.destination;
        // To an address of its gateway from inside, the source is mapped too (RFC 4787 REQ-9).
        let by_gateway = || {
            let held = world.held(host, before.destination)?;
            match held.by {
                By::Gateway(gateway) if hairpin => {
                    Some(gateway).filter(|gateway| serves(gateway, before.source))
                }
                _ => None,
            }
        };
        let gateway = match exit {
            Some(Exit::Elastic(address)) => {
                flow.source = address;
                return Ok(None);
            }
            Some(Exit::Gateway(gateway)) => Some(gateway),
            Some(Exit::AsItIs) => return Ok(None),
            None => by_gateway(),
        };
        let Some(gateway) = gateway else {
            flow.source = world.source(vpc, before.source, flow.destination, hairpin);
            return Ok(None);
        };
        let port = match (before.detail, before.protocol) {
            (Detail::Ports(source, _), TCP | UDP) => source,
            (
                Detail::Query {
                    id, answer: false, ..
                },
                _,
            ) => id,
            (_, protocol) if is_portless(protocol) => 0,
            _ => return Err(DropReason::NatProtocol),
        };
        let inside = (before.source, port);
        let (outside, number) = self.map(world, (host, gateway), before.protocol, inside)?;
        flow.source = outside.0;
        flow.detail = match flow.detail {
            same if is_portless(before.protocol) => same,
            Detail::Ports(_, destination) => Detail::Ports(outside.1, destination),
            Detail::Query { kind, answer, .. } => Detail::Query {
                kind,
                id: outside.1,
                answer,
            },
            other => other,
        };
        Ok(Some(number))
    }

    /// The mapping of an inside address and port. Which port a new one gets is free but for the rules in [`Self::complain`].
    fn map(
        &mut self,
        world: &World,
        (host, gateway): (&str, &v1::NatGateway),
        protocol: u8,
        inside: (IpAddr, u16),
    ) -> Result<((IpAddr, u16), u32), DropReason> {
        let v4 = inside.0.is_ipv4();
        let first = addresses(gateway).find(|address| address.is_ipv4() == v4);
        let first = first.ok_or(DropReason::NoTranslation)?;
        let known = self.mappings.iter_mut().find(|mapping| {
            let chosen = &mapping.chosen;
            chosen.host == host
                && chosen.gateway == gateway.id
                && chosen.protocol == protocol
                && chosen.inside == inside
                && addresses(gateway).any(|address| address == chosen.outside.0)
        });
        if let Some(known) = known {
            if !self.only_looks {
                known.idle_since = None;
            }
            return Ok((known.chosen.outside, known.number));
        }
        let limits = gateway.limits.unwrap_or_default();
        let of_gateway = |mapping: &&Mapping| {
            mapping.chosen.host == host && mapping.chosen.gateway == gateway.id
        };
        let of_gateway: Vec<_> = self.mappings.iter().filter(of_gateway).collect();
        let is_of_address = |mapping: &&&Mapping| mapping.chosen.inside.0 == inside.0;
        let of_address = of_gateway.iter().filter(is_of_address).count();
        if limits.mappings != 0 && of_gateway.len() >= limits.mappings as usize {
            return Err(DropReason::NatGatewayBudget);
        }
        if limits.mappings_per_address != 0 && of_address >= limits.mappings_per_address as usize {
            return Err(DropReason::NatAddressBudget);
        }
        if is_portless(protocol) {
            let mut of_family = addresses(gateway).filter(|address| address.is_ipv4() == v4);
            if of_family.all(|address| self.is_whole(host, protocol, address)) {
                return Err(DropReason::NatProtocol);
            }
        }
        if self.only_looks {
            return Ok(((first, inside.1), 0));
        }
        let mut seen = self.seen.iter();
        let chosen = seen.find(|seen| {
            seen.host == host
                && seen.gateway == gateway.id
                && seen.protocol == protocol
                && seen.inside == inside
                && addresses(gateway).any(|address| address == seen.outside.0)
        });
        let chosen = chosen.cloned().ok_or(DropReason::NatPorts)?;
        if let Some(complaint) = self.complain(world, gateway, &chosen) {
            self.complaint = Some(format!("{complaint}: {chosen:?}"));
        }
        let (outside, number) = (chosen.outside, self.next_mapping);
        self.next_mapping += 1;
        self.mappings.push(Mapping {
            number,
            chosen,
            among: gateway.addresses.clone(),
            idle_since: None,
        });
        Ok((outside, number))
    }

    /// Whether an address stands for one inside, of a protocol without ports.
    fn is_whole(&self, host: &str, protocol: u8, address: IpAddr) -> bool {
        let mut mappings = self.mappings.iter();
        mappings.any(|mapping| {
            let other = &mapping.chosen;
            other.host == host && other.protocol == protocol && other.outside == (address, 0)
        })
    }

    /// What rule a new choice breaks.
    fn complain(
        &self,
        world: &World,
        gateway: &v1::NatGateway,
        chosen: &Seen,
    ) -> Option<&'static str> {
        let (address, port) = chosen.outside;
        let kind = |protocol: u8| match protocol {
            ICMP | ICMPV6 => ICMP,
            other => other,
        };
        let is_taken = |port: u16| {
            self.mappings.iter().any(|mapping| {
                let other = &mapping.chosen;
                other.host == chosen.host
                    && kind(other.protocol) == kind(chosen.protocol)
                    && other.outside == (address, port)
            })
        };
        let is_free = |port: u16| {
            port >= FIRST_PORT
                && world
                    .forward(gateway, chosen.protocol, (address, port))
                    .is_none()
                && !is_taken(port)
        };
        if is_portless(chosen.protocol) {
            let is_own = addresses(gateway).any(|other| other == address);
            let whole = self.is_whole(&chosen.host, chosen.protocol, address);
            return (port != 0 || whole || !is_own)
                .then_some("an address in use for a protocol without ports, or not the gateway's");
        }
        let wanted = chosen.inside.1;
        let unpaired = self.mappings.iter().any(|mapping| {
            let other = &mapping.chosen;
            other.host == chosen.host
                && other.gateway == chosen.gateway
                && other.inside.0 == chosen.inside.0
                && other.outside.0 != address
                && mapping.among == gateway.addresses
                && !is_portless(other.protocol)
        });
        if !addresses(gateway).any(|other| other == address) {
            Some("an address that is not the gateway's")
        } else if !is_free(port) {
            Some("a port in use, of a service, or of a forward")
        } else if port != wanted && is_free(wanted) {
            Some("another port though the same is free (RFC 4787 4.2.1)")
        } else if unpaired {
            Some("another address than the sender has already (RFC 4787 REQ-2)")
        } else {
            None
        }
    }

    /// Gives back the ports of mappings that no session has used for so long.
    pub(super) fn forget_mappings(&mut self) {
        let (now, sessions) = (self.now, &self.sessions);
        self.mappings.retain_mut(|mapping| {
            let mut users = sessions.get(&mapping.chosen.host).into_iter().flatten();
            if users.any(|session| session.mapping == Some(mapping.number)) {
                mapping.idle_since = None;
                return true;
            }
            now - *mapping.idle_since.get_or_insert(now) < HOLD
        });
    }

    /// A host gets a frame off the segment.
    pub fn arrive(&mut self, host: &str, frame: &[u8], guess: usize) -> Outcome {
        let world = self.begin(guess);
        let mut outcome = Outcome::default();
        if let Err(reason) = self.enter_from_segment(&world, host, frame, &mut outcome) {
            outcome.dropped.push((host.to_owned(), reason));
        }
        super::trunk::on_devices(&world, &mut outcome);
        outcome.sorted()
    }

    fn enter_from_segment(
        &mut self,
        world: &World,
        host: &str,
        frame: &[u8],
        outcome: &mut Outcome,
    ) -> Result<(), DropReason> {
        let no_tunnel = match check_outer(world, host, frame) {
            Ok((outer, from, vpc)) => {
                let way = (from, host, vpc);
                return self.enter_from_tunnel(world, way, outer.class, &outer.inner, outcome);
            }
            Err(reason) => reason,
        };
        let is_tagged = frame.len() >= 16 && word(frame, 12) == 0x8100;
        let vlan = if is_tagged {
            word(frame, 14) & 0xfff
        } else {
            0
        };
        let network = world.network_by_vlan(host, vlan).ok_or(no_tunnel)?;
        let plain = match is_tagged {
            true => [&frame[..12], &frame[16..]].concat(),
            false => frame.to_vec(),
        };
        let Decoded::Ip(mut packet) = decode(&plain)? else {
            return Err(DropReason::ArpUnanswered);
        };
        if packet.dst != interface(host) {
            return Err(DropReason::UnknownMac);
        }
        if let Some(reply) = own_ping(world, host, Some(&network.id), &packet) {
            self.leave_segment(world, (host, network), reply, outcome);
            return Ok(());
        }
        packet.complete_checksum();
        let source = packet.flow.source;
        if world.held(host, source).is_some() || world.owner(host, source).is_some() {
            return Err(DropReason::ExternalSpoofed);
        }
        self.come_in(world, (host, &network.id), OUTSIDE, packet, outcome)
    }

    /// A packet to an address that the host holds on a network.
    fn come_in(
        &mut self,
        world: &World,
        (host, network): (&str, &str),
        vni: u32,
        packet: Packet,
        outcome: &mut Outcome,
    ) -> Result<(), DropReason> {
        let held = world.owner(host, packet.flow.destination);
        let held = held.filter(|held| held.network == network);
        let held = held.ok_or(DropReason::ExternalUnheld)?;
        if world.is_inside(held.vpc, packet.flow.source) {
            return Err(DropReason::ExternalSpoofed);
        }
        let ingress = Ingress::Outside(network, vni);
        self.onward(world, (host, held.vpc), ingress, packet, outcome)
    }

    /// What has left for an address that the host itself holds comes in again.
    pub(super) fn come_back(
        &mut self,
        world: &World,
        host: &str,
        frame: &[u8],
        outcome: &mut Outcome,
    ) -> Result<(), DropReason> {
        let Decoded::Ip(packet) = decode(frame)? else {
            return Err(DropReason::EtherType);
        };
        if let Some(reply) = own_ping(world, host, None, &packet) {
            return self.come_back(world, host, &reply, outcome);
        }
        let held = world.owner(host, packet.flow.destination);
        let held = held.ok_or(DropReason::ExternalUnheld)?;
        let source = packet.flow.source;
        let vni = match held.by.is_as_it_is() {
            true => {
                let sender = world.owner(host, source);
                let sender = sender.filter(|sender| sender.by.is_as_it_is());
                if sender.is_some_and(|sender| sender.vpc == held.vpc) {
                    return Err(DropReason::TranslationClash);
                }
                world.vni(held.vpc)
            }
            false => world.known_as(host, source),
        };
        self.come_in(world, (host, held.network), vni, packet, outcome)
    }

    /// Sends a frame onto the segment: to the host whose interface it is for, or to a station.
    pub(super) fn leave_segment(
        &mut self,
        world: &World,
        (host, network): (&str, &v1::ExternalNetwork),
        frame: Vec<u8>,
        outcome: &mut Outcome,
    ) {
        let to = mac_at(&frame, 0);
        let tagged = match network.vlan as u16 {
            0 => frame,
            vlan => {
                let [high, low] = vlan.to_be_bytes();
                [&frame[..12], &[0x81, 0, high, low], &frame[12..]].concat()
            }
        };
        let mut hosts = world.0.hosts.iter();
        let receiver = hosts.find(|other| {
            other.id != host && interface(&other.id) == to && world.is_on(&other.id, network)
        });
        let Some(receiver) = receiver else {
            outcome.left.push((host.to_owned(), tagged));
            return;
        };
        if let Err(reason) = self.enter_from_segment(world, &receiver.id, &tagged, outcome) {
            outcome.dropped.push((receiver.id.clone(), reason));
        }
    }

    /// A packet does not go on, and its sender is told: a port, whoever sent it from outside, or the port whose packet leaves here for its host.
    pub(super) fn report(
        &mut self,
        world: &World,
        place: (&str, &str),
        (ingress, leaves): (Ingress<'_>, bool),
        packet: &Packet,
        problem: Problem,
        outcome: &mut Outcome,
    ) -> Result<(), DropReason> {
        let (host, vpc) = place;
        match ingress {
            Ingress::Port(port) => {
                if let Some(error) = gateway::error(world, port, packet, problem) {
                    outcome.delivered.push((port.id.clone(), error));
                }
            }
            Ingress::Outside(network, _) => {
                // From the address that it was for.
                let ends = (interface(host), packet.flow.destination);
                if let Some(network) = world.network(network)
                    && let Some(error) = gateway::error_from(ends, packet, problem)
                {
                    if packet.src != interface(host) {
                        self.leave_segment(world, (host, network), error, outcome);
                    } else if let Err(reason) = self.come_back(world, host, &error, outcome) {
                        // What came from this host itself goes back there.
                        outcome.dropped.push((host.to_owned(), reason));
                    }
                }
            }
            Ingress::Tunnel(from, _) if leaves => {
                let sender = world.port_by_address(vpc, packet.flow.source);
                let sender = sender.filter(|sender| sender.host == from);
                let sender = sender.ok_or(problem.reason())?;
                let ends = (from, sender);
                return self.report_to_host(world, place, ends, packet, problem, outcome);
            }
            Ingress::Tunnel(..) => {}
        }
        Err(problem.reason())
    }
}
