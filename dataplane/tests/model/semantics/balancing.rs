//! Load balancers: a port's flow to an address of one goes to a member, the same on every host, and stays there.
//!
//! Which member it is nobody says: any that takes flows, but for the same flow and the same listener always the same one.

use std::net::IpAddr;

use weft_dataplane::packet::DropReason;
use weft_proto::v1::{self, Listener, LoadBalancer};

use super::frame::{ACK, Detail, Flow, ICMP, ICMPV6, Packet, RST, TCP, UDP, is_group_mac};
use super::world::{World, gateway_mac, mac, prefix_holds};
use super::{Model, gateway};
use crate::craft::{self, Ends, Header};
use crate::traffic;

/// Who serves: an address and the port that the listener's first one becomes.
pub type Target = (IpAddr, u16);

/// A member that a flow was seen to go to. Equal listeners have equal members only where these have equal addresses.
#[derive(Debug, Clone, PartialEq)]
pub struct Balanced {
    flow: Flow,
    by_source: bool,
    listener: Listener,
    targets: Vec<Target>,
    taken: Target,
}

/// A member that a flow goes to, as its session says.
#[derive(Debug, Clone)]
pub struct Member {
    pub host: String,
    pub client: (IpAddr, u16),
    pub at: (IpAddr, u16),
    pub protocol: u8,
    /// Its address and the port that the flow gets.
    pub taken: (IpAddr, u16),
}

impl World {
    /// The load balancer of a VPC that has an address, as its own or as an elastic IP.
    pub fn balancer(&self, vpc: &str, address: IpAddr) -> Option<&LoadBalancer> {
        let has = |it: &&LoadBalancer| {
            let own = it.addresses.iter().any(|text| text.parse() == Ok(address));
            own || self.public(it).any(|(public, _)| public == address)
        };
        self.0
            .load_balancers
            .iter()
            .filter(|it| it.vpc == vpc)
            .find(has)
    }

    /// The elastic IPs of a load balancer, each with its network.
    fn public<'a>(&'a self, balancer: &'a LoadBalancer) -> impl Iterator<Item = (IpAddr, &'a str)> {
        let elastic_ips = self.0.elastic_ips.iter();
        let bound = elastic_ips.filter(|it| it.load_balancer == balancer.id);
        let known = bound.filter(|it| self.network(&it.external_network).is_some());
        known.map(|it| (it.address.parse().unwrap(), &*it.external_network))
    }

    /// The network and the address by which an answer of a member leaves that its session says came from outside.
    pub fn answers_by(&self, vpc: &str, kept: IpAddr) -> Option<(&str, IpAddr)> {
        let balancers = self.0.load_balancers.iter().filter(|it| it.vpc == vpc);
        let mut all = balancers.flat_map(|it| self.public(it));
        let (address, network) = all.find(|(address, _)| *address == kept)?;
        Some((network, address))
    }

    /// Whether no route of a port leads to another port or host, or into another VPC.
    pub fn leads_out(&self, port: &v1::Port, destination: IpAddr) -> bool {
        let route = self.custom_route(port, destination);
        route.is_none_or(|it| !it.nat.is_empty() || !it.external.is_empty())
    }

    /// The same on the host of a port whose session knows nothing of it.
    pub fn may_answer_by(&self, port: &v1::Port, flow: &Flow) -> Option<&str> {
        let mut cidrs = self.subnets_of(&port.vpc).flat_map(|subnet| &subnet.cidrs);
        let is_inside = cidrs.any(|cidr| prefix_holds(cidr, flow.destination))
            || self.is_direct(&port.vpc, flow.destination);
        if is_inside || !self.leads_out(port, flow.destination) {
            return None;
        }
        // The last one that was bound counts.
        let bound = self.0.elastic_ips.iter().rev();
        let mut found = bound.filter_map(|elastic| {
            let mut balancers = self.0.load_balancers.iter();
            let balancer = balancers.find(|it| it.id == elastic.load_balancer)?;
            let v4 = elastic.address.contains('.');
            let mut targets = balancer
                .listeners
                .iter()
                .flat_map(|it| self.targets(balancer, it, v4, false));
            let is_member = targets.any(|(address, _)| address == flow.source);
            (balancer.vpc == port.vpc && is_member).then_some(&*elastic.external_network)
        });
        found.find(|network| self.network(network).is_some())
    }

    /// The one that a packet of a port is for.
    pub fn balancer_of(&self, port: &v1::Port, packet: &Packet) -> Option<&LoadBalancer> {
        let to_router = packet.dst == gateway_mac(self.subnet(&port.subnet));
        let balancer = self.balancer(&port.vpc, packet.flow.destination);
        balancer.filter(|_| to_router)
    }

    /// The members of a listener of a load balancer that serve a family; those that take flows, if asked for these.
    fn targets(
        &self,
        balancer: &LoadBalancer,
        listener: &Listener,
        v4: bool,
        taking: bool,
    ) -> Vec<Target> {
        let serves = |address: IpAddr, first: u32| {
            let health = v1::MemberHealth::of(balancer, listener, (address, first));
            !self.0.member_health.iter().any(|it| it.id == health.id)
        };
        let mut found: Vec<Target> = Vec::new();
        for member in &listener.members {
            if taking && member.draining {
                continue;
            }
            let address = if member.port.is_empty() {
                member.address.parse().ok()
            } else {
                self.port(&member.port)
                    .and_then(|port| traffic::address(port, v4))
            };
            let first = match member.to_port_min {
                0 => listener.port_min,
                first => first,
            };
            let address = address.filter(|address: &IpAddr| address.is_ipv4() == v4);
            if let Some(address) = address.filter(|address| serves(*address, first)) {
                found.push((address, first as u16));
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The load balancer and the listener of a flow that goes to a member, and which member that is.
    pub fn counted(
        &self,
        vpc: &str,
        protocol: u8,
        at: (IpAddr, u16),
        to: (IpAddr, u16),
    ) -> Option<(String, &Listener, Target)> {
        let balancer = self.balancer(vpc, at.0)?;
        let listener = listener(balancer, protocol, at.1)?;
        let first = to.1.wrapping_sub(at.1 - listener.port_min as u16);
        Some((balancer.id.clone(), listener, (to.0, first)))
    }

    /// The members of a listener that take flows, each with its weight.
    pub fn takers(&self, id: &str, listener: &Listener, v4: bool) -> Vec<(Target, u64)> {
        let mut balancers = self.0.load_balancers.iter();
        let balancer = balancers.find(|it| it.id == id).unwrap();
        let weight = |target: &Target| {
            let named = listener.members.iter().filter(|member| {
                let only = Listener {
                    members: vec![(*member).clone()],
                    ..listener.clone()
                };
                let found = self.targets(balancer, &only, v4, true);
                found.contains(target)
            });
            named.map(|it| u64::from(it.weight.max(1))).max().unwrap()
        };
        let targets = self.targets(balancer, listener, v4, true);
        targets.into_iter().map(|it| (it, weight(&it))).collect()
    }

    /// Whether a port with this address is a member of a load balancer of mode dsr: of the listener for a protocol and a port, or of any.
    fn is_answered_by(
        &self,
        balancer: &LoadBalancer,
        address: IpAddr,
        of: Option<(u8, u16)>,
    ) -> bool {
        let mut listeners = balancer.listeners.iter().filter(|it| it.mode == "dsr");
        let has = |it: &Listener| {
            let targets = self.targets(balancer, it, address.is_ipv4(), false);
            targets.iter().any(|(member, _)| *member == address)
        };
        match of {
            Some((protocol, port)) => {
                let found = listener(balancer, protocol, port);
                found.is_some_and(|it| it.mode == "dsr" && has(it))
            }
            None => listeners.any(has),
        }
    }

    /// Whether a member may still get what is for its load balancer's address as it is.
    pub fn keeps_member(&self, vpc: &str, flow: &Flow, member: IpAddr) -> bool {
        let Detail::Ports(_, to) = flow.detail else {
            return false;
        };
        let balancer = self.balancer(vpc, flow.destination);
        let of = Some((flow.protocol, to));
        balancer.is_some_and(|it| self.is_answered_by(it, member, of))
    }

    /// Whether a flow to a load balancer may still become another; none if it is not for one.
    pub fn may_be_balanced(&self, vpc: &str, before: &Flow, after: &Flow) -> Option<bool> {
        if before.destination == after.destination {
            return None;
        }
        let balancer = self.balancer(vpc, before.destination)?;
        let is_source = [before.source, before.destination].contains(&after.source);
        let (Detail::Ports(from, to), Detail::Ports(after_from, at)) =
            (before.detail, after.detail)
        else {
            return Some(false);
        };
        let serves = |listener: &Listener| {
            let targets = self.targets(balancer, listener, before.destination.is_ipv4(), false);
            let first = at.wrapping_sub(to - listener.port_min as u16);
            targets.contains(&(after.destination, first))
        };
        let found = listener(balancer, before.protocol, to).filter(|it| it.mode != "dsr");
        let is_served = found.is_some_and(serves);
        Some(is_served && is_source && from == after_from)
    }
}

/// The listener for a protocol and a port.
fn listener(balancer: &LoadBalancer, protocol: u8, port: u16) -> Option<&Listener> {
    balancer.listeners.iter().find(|listener| {
        let last = listener.port_max.max(listener.port_min);
        let of_protocol = match listener.protocol.as_str() {
            "tcp" => protocol == TCP,
            _ => protocol == UDP,
        };
        of_protocol && (listener.port_min..=last).contains(&port.into())
    })
}

/// Whether members get a flow to a load balancer as it is.
pub fn is_dsr(balancer: &LoadBalancer, flow: &Flow) -> bool {
    let Detail::Ports(_, to) = flow.detail else {
        return false;
    };
    listener(balancer, flow.protocol, to).is_some_and(|it| it.mode == "dsr")
}

/// Whether a port may send a packet with a load balancer's address because it may be an answer.
pub fn may_answer(world: &World, port: &v1::Port, packet: &Packet) -> bool {
    let Some(balancer) = world.balancer(&port.vpc, packet.flow.source) else {
        return false;
    };
    if packet.src != mac(&port.mac) || is_group_mac(packet.dst) {
        return false;
    }
    let is_later = packet.fragment.is_some_and(|piece| !piece.is_first());
    let is_icmp = packet.flow.protocol == if packet.is_v4() { ICMP } else { ICMPV6 };
    let of = match packet.flow.detail {
        _ if is_later || is_icmp => None,
        Detail::Ports(from, _) => Some((packet.flow.protocol, from)),
        _ => return false,
    };
    traffic::addresses(port).any(|address| world.is_answered_by(balancer, address, of))
}

/// Whether a packet of a port has a load balancer's address that is not its own.
pub fn is_answer(world: &World, port: &v1::Port, packet: &Packet) -> bool {
    world.balancer(&port.vpc, packet.flow.source).is_some()
        && gateway::guard(world, port, packet).is_err()
}

/// Whether any member takes flows.
pub fn serves(world: &World, balancer: &LoadBalancer, v4: bool) -> bool {
    let serves = |it: &Listener| !world.targets(balancer, it, v4, true).is_empty();
    balancer.listeners.iter().any(serves)
}

/// The answer to a ping of a load balancer's address; none if the packet is no message of ICMP, or an error.
pub fn ping(
    world: &World,
    balancer: &LoadBalancer,
    packet: &Packet,
) -> Option<Result<Vec<u8>, DropReason>> {
    let protocol = if packet.is_v4() { ICMP } else { ICMPV6 };
    if packet.flow.protocol != protocol || packet.is_icmp_error() {
        return None;
    }
    Some(match serves(world, balancer, packet.is_v4()) {
        true => gateway::ping(packet),
        false => Err(DropReason::NoMember),
    })
}

/// The reset that a port gets whose segment is dropped for a reason, if it gets one.
pub fn reset(
    world: &World,
    port: &v1::Port,
    packet: &Packet,
    reason: DropReason,
) -> Option<Vec<u8>> {
    let segment = packet.tcp.filter(|segment| !segment.has(RST))?;
    let balancer = world.balancer_of(port, packet)?;
    let Detail::Ports(from, to) = packet.flow.detail else {
        return None;
    };
    let drops = listener(balancer, TCP, to).is_some_and(|listener| listener.drop_lost);
    let is_lost = matches!(reason, DropReason::MemberGone | DropReason::NoMember);
    if !is_lost || drops || packet.fragment.is_some() {
        return None;
    }
    let ends = Ends {
        dst: packet.src,
        src: packet.dst,
        source: packet.flow.destination,
        destination: packet.flow.source,
    };
    // RFC 9293 3.10.7.1.
    let (flags, numbers) = match segment.has(ACK) {
        true => (RST, (segment.ack, 0)),
        false => (RST | ACK, (0, segment.seq.wrapping_add(segment.space))),
    };
    // No window, for nothing will follow.
    let mut bytes = [to.to_be_bytes(), from.to_be_bytes()].concat();
    bytes.extend(numbers.0.to_be_bytes());
    bytes.extend(numbers.1.to_be_bytes());
    bytes.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    let bytes = craft::with_checksum(bytes, ends, TCP, 16);
    let header = Header {
        dont_fragment: true,
        id: 0,
        ..Header::default()
    };
    Some(craft::ip(ends, &header, TCP, &bytes))
}

impl Model {
    /// Where a new flow to a load balancer goes, and what it becomes at the route.
    pub(super) fn balance(
        &mut self,
        world: &World,
        (host, balancer): (&str, &LoadBalancer),
        flow: &mut Flow,
    ) -> Result<(), DropReason> {
        let Detail::Ports(from, to) = flow.detail else {
            return Err(DropReason::NoListener);
        };
        let listener = listener(balancer, flow.protocol, to).ok_or(DropReason::NoListener)?;
        let targets = world.targets(balancer, listener, flow.destination.is_ipv4(), true);
        if targets.is_empty() {
            return Err(DropReason::NoMember);
        }
        let by_source = listener.affinity == "source";
        let is_hashed = matches!(&*listener.algorithm, "" | "maglev");
        let is_alike = |seen: &&Balanced| {
            let key = |flow: &Flow| match by_source {
                true => (flow.source, flow.destination, None),
                false => (
                    flow.source,
                    flow.destination,
                    Some((flow.protocol, flow.detail)),
                ),
            };
            is_hashed
                && seen.by_source == by_source
                && seen.listener == *listener
                && seen.targets == targets
                && key(&seen.flow) == key(flow)
        };
        let known = self.balanced.iter().find(is_alike).map(|seen| seen.taken);
        let taken = known.unwrap_or_else(|| {
            let guess = self.guess / self.guesses % targets.len();
            self.guesses *= targets.len();
            let of_flow = |it: &&Member| {
                let own = (it.protocol, it.client, it.at)
                    == (flow.protocol, (flow.source, from), (flow.destination, to));
                own && it.host == host
            };
            // What the session has is tried first.
            let at = |it: &Member| {
                (
                    it.taken.0,
                    it.taken.1.wrapping_sub(to - listener.port_min as u16),
                )
            };
            let shown = self.members.iter().find(of_flow).map(at);
            let mut order = targets.clone();
            order.sort_by_key(|target| Some(*target) != shown);
            order[guess]
        });
        if known.is_none() && is_hashed {
            self.balanced.push(Balanced {
                flow: *flow,
                by_source,
                listener: listener.clone(),
                targets,
                taken,
            });
        }
        flow.destination = taken.0;
        let port = taken.1.wrapping_add(to - listener.port_min as u16);
        flow.detail = Detail::Ports(from, port);
        Ok(())
    }
}

/// What a member that reaches itself, by whichever of its addresses, is known by to itself.
pub fn source(world: &World, client: &v1::Port, flow: &Flow, before: &Flow) -> IpAddr {
    let member = world.port_by_address(&client.vpc, flow.destination);
    match member.is_some_and(|member| member.id == client.id) {
        true => before.destination,
        false => before.source,
    }
}
