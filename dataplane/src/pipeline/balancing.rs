//! Load balancers (services, "Load balancer"): which member a flow goes to, and what clients are told when there is none. Asked on a miss alone: a session keeps
//! its member.
//!
//! The client's own host chooses; for who comes from outside to an elastic IP of a load balancer, the gateway host that holds it (`external`). What comes from
//! anywhere else to a load balancer's address is for nobody.

use super::forwarding::{self, Way};
use super::policy_eval::Standing;
use super::tracer::Tracer;
use super::translate::Choice;
use super::{Entry, Tables, gateway, learning};
use crate::packet::checksum;
use crate::packet::parse::{self, ETHERNET, Family, Parsed, protocol, tcp_flags, word_address};
use crate::packet::{DropReason, Flow};
use crate::session::Key;
use crate::session::table::{Ingress, SessionRef};
use crate::session::tcp::Segment;
use crate::snapshot::{Balancer, Place, Port, Snapshot, Target, Vpc};

/// The load balancer that a packet of a port is for, if it is sent to the virtual router.
#[inline]
pub(super) fn of<'s>(snapshot: &'s Snapshot, entry: &Entry) -> Option<&'s Balancer> {
    let vpc = &snapshot.vpcs[entry.vpc];
    if vpc.balancers.is_empty() {
        return None;
    }
    let Ingress::Port(index) = entry.ingress else {
        return None;
    };
    let subnet = snapshot.port(index)?.subnet;
    if entry.parsed.eth_dst != snapshot.subnets[subnet].gateway_mac {
        return None;
    }
    at(vpc, entry.parsed.flow.destination)
}

/// The load balancer that has an address.
pub(super) fn at(vpc: &Vpc, address: u128) -> Option<&Balancer> {
    vpc.balancers.get(&address).map(|balancer| &**balancer)
}

/// Answers a ping of a load balancer's address, in place, while any member takes flows; none if the packet is not of ICMP, or is an error.
pub(super) fn ping(
    balancer: &Balancer,
    parsed: &Parsed,
    area: &mut [u8],
) -> Option<Result<(), DropReason>> {
    let is_icmp = matches!(
        (parsed.family, parsed.flow.protocol),
        (Family::Ipv4, protocol::ICMP) | (Family::Ipv6, protocol::ICMPV6)
    );
    (is_icmp && !parse::is_icmp_error(parsed)).then(|| {
        if balancer.serves() {
            gateway::ping(area, parsed)
        } else {
            Err(DropReason::NoMember)
        }
    })
}

/// The address and port of the member that a new flow goes to.
///
/// # Errors
/// The load balancer does not serve the flow's port, or nobody there takes flows.
pub(super) fn choose(
    balancer: &Balancer,
    flow: &Flow,
    tracer: &mut impl Tracer,
) -> Result<(u128, u16), DropReason> {
    let listener = balancer.listener(flow.protocol, flow.destination_port);
    let chosen = listener.map(|listener| listener.choose(flow, tracer.may_change()));
    tracer.step("load balancer", || {
        let id = &balancer.id;
        match (listener, chosen.flatten()) {
            (None, _) => format!("{id} has no listener for the flow"),
            (Some(_), None) => format!("no member of {id} takes flows"),
            (Some(listener), Some((address, port))) => {
                let counter = listener.counter(flow.destination_port, (address, port));
                let counted = counter.map_or_else(String::new, |counter| {
                    format!(", with {} sessions here", listener.sessions(counter))
                });
                let as_it_is = if listener.plan.dsr { ", as it is" } else { "" };
                format!(
                    "{id}: {} port {port}, one of {} members{counted}{as_it_is}",
                    word_address(address),
                    listener.members.len()
                )
            }
        }
    });
    chosen
        .ok_or(DropReason::NoListener)?
        .ok_or(DropReason::NoMember)
}

/// Whether a packet of a port is for a load balancer whose members get it as it is.
pub(super) fn is_dsr(snapshot: &Snapshot, entry: &Entry) -> bool {
    let flow = &entry.parsed.flow;
    let listener =
        of(snapshot, entry).and_then(|it| it.listener(flow.protocol, flow.destination_port));
    listener.is_some_and(|listener| listener.plan.dsr)
}

/// Whether a member may still get the packets of a flow as they are.
pub(super) fn keeps_member(vpc: &Vpc, flow: &Flow, member: u128) -> bool {
    let of = (flow.protocol, flow.destination_port);
    at(vpc, flow.destination).is_some_and(|balancer| balancer.is_answered_by(member, Some(of)))
}

/// The way of a packet to a member that gets it as it is: straight to its port, whatever routes say, since whoever stood between could not tell which member it is for.
///
/// # Errors
/// No port has the member's address, or the client is the member.
pub(super) fn straight(
    snapshot: &Snapshot,
    entry: &Entry,
    member: u128,
    tracer: &mut impl Tracer,
) -> Result<Way, DropReason> {
    let vpc = &snapshot.vpcs[entry.vpc];
    let Some(endpoint) = vpc.by_address.get(&member) else {
        learning::check_address(snapshot, entry.vpc, member, tracer)?;
        return Err(DropReason::NoPort);
    };
    if let (Place::Here(port), Ingress::Port(client)) = (endpoint.place, entry.ingress)
        && port == client
    {
        // It has the load balancer's address itself.
        return Err(DropReason::UnknownMac);
    }
    tracer.step("route", || {
        format!("straight to the member {}", word_address(member))
    });
    Ok(forwarding::to_endpoint(snapshot, endpoint))
}

/// Whether a port may send a packet with a load balancer's address that is not its own: it is a member that gets packets as they are, and the packet answers a
/// client, or a question of this host. That there is a question is looked at where its session is known ([`is_asked`]).
pub(super) fn may_answer(snapshot: &Snapshot, port: &Port, parsed: &Parsed) -> bool {
    if !has_balancers_address(snapshot, port, parsed) {
        return false;
    }
    let Some(balancer) = at(&snapshot.vpcs[port.vpc], parsed.flow.source) else {
        return false;
    };
    let flow = &parsed.flow;
    let is_icmp = matches!(
        (parsed.family, flow.protocol),
        (Family::Ipv4, protocol::ICMP) | (Family::Ipv6, protocol::ICMPV6)
    );
    // A later fragment has no ports, and goes with the first; errors are of any listener, and so are answers to this host's pings.
    let of = match flow.protocol {
        _ if is_icmp || parsed.is_later_fragment() => None,
        protocol => Some((protocol, flow.source_port)),
    };
    let mut own = port.addresses.iter();
    own.any(|address| balancer.is_answered_by(*address, of))
}

/// Whether a packet from a port's own MAC has the address of a load balancer of its VPC as its source.
pub(super) fn has_balancers_address(snapshot: &Snapshot, port: &Port, parsed: &Parsed) -> bool {
    let vpc = &snapshot.vpcs[port.vpc];
    !vpc.balancers.is_empty()
        && parsed.eth_src == port.mac
        && !parsed.eth_dst.is_group()
        && at(vpc, parsed.flow.source).is_some()
}

/// Whether an ICMP error with a load balancer's address is about a packet that its sender got as a member: one to that address, of a session that asks it.
pub(super) fn is_asked_about(tables: Tables<'_>, entry: &Entry, quoted: &Flow) -> bool {
    let Ingress::Port(index) = entry.ingress else {
        return false;
    };
    let key = Key::new(tables.sessions.seeds(), quoted, entry.vni);
    let session = tables.sessions.find(&key);
    quoted.destination == entry.parsed.flow.source
        && session.is_some_and(|session| is_of_member(tables.snapshot, index, &session))
}

/// Whether a port is the member that a session goes to. The session is charged to the member, or, on the client's own host, knows who was chosen.
fn is_of_member(snapshot: &Snapshot, index: u16, session: &SessionRef<'_>) -> bool {
    match session.chosen() {
        Some(member) => {
            let port = snapshot.port(index);
            port.is_some_and(|port| port.addresses.contains(&member))
        }
        None => session.port() == index,
    }
}

/// Whether a packet of a port has a load balancer's address that is not its own, as answers of members have.
pub(super) fn is_answer(snapshot: &Snapshot, entry: &Entry) -> bool {
    let Ingress::Port(index) = entry.ingress else {
        return false;
    };
    let (vpc, parsed) = (&snapshot.vpcs[entry.vpc], &entry.parsed);
    !vpc.balancers.is_empty()
        && at(vpc, parsed.flow.source).is_some()
        && snapshot
            .port(index)
            .is_some_and(|port| port.guarded && !port.owns(parsed.flow.source, parsed.eth_src))
}

/// Whether a client of a session waits for the answer of the port that a packet comes from, and of no other member.
pub(super) fn is_asked(snapshot: &Snapshot, entry: &Entry, session: &SessionRef<'_>) -> bool {
    let Ingress::Port(index) = entry.ingress else {
        return false;
    };
    is_of_member(snapshot, index, session) && !session.from_origin()
}

/// Whether a session may go on that makes `after` of `before`: its member is still there. None if `before` is for no load balancer, or goes to it unchanged.
pub(super) fn keeps(vpc: &Vpc, before: &Flow, after: &Flow) -> Option<bool> {
    if vpc.balancers.is_empty() || before.destination == after.destination {
        return None;
    }
    let balancer = at(vpc, before.destination)?;
    // A member that reaches itself has the load balancer's address.
    let is_source = [before.source, before.destination].contains(&after.source);
    let to = (after.destination, after.destination_port);
    let listener = balancer.listener(before.protocol, before.destination_port);
    let is_served = listener.is_some_and(|it| !it.plan.dsr && it.has(before.destination_port, to));
    Some(is_served && is_source && after.source_port == before.source_port)
}

/// The counter in which a session counts that makes `after` of `before`, where a load balancer has chosen its member by the sessions that members have.
pub(super) fn counter(vpc: &Vpc, before: &Flow, after: &Flow) -> Option<u32> {
    if vpc.balancers.is_empty() || before.destination == after.destination {
        return None;
    }
    counter_of(vpc, before, (after.destination, after.destination_port))
}

/// The same of a flow that goes to a member at an address and port.
pub(super) fn counter_of(vpc: &Vpc, flow: &Flow, to: (u128, u16)) -> Option<u32> {
    let listener = at(vpc, flow.destination)?.listener(flow.protocol, flow.destination_port)?;
    listener.counter(flow.destination_port, to)
}

/// The network and the elastic IP by which a packet leaves as the answer of a load balancer's member to who came from outside. On the gateway host its session
/// has kept the address; on the member's own, where the session knows nothing of it, the member's address says the network, and 0 stands for the address.
pub(super) fn public(
    snapshot: &Snapshot,
    entry: &Entry,
    standing: Standing,
    choice: &Choice,
) -> Option<(u16, u128)> {
    let (vpc, flow) = (&snapshot.vpcs[entry.vpc], &entry.parsed.flow);
    if vpc.public.addresses.is_empty() || matches!(choice, Choice::Anew) {
        return None;
    }
    let port = match entry.ingress {
        Ingress::Port(index) => snapshot.port(index),
        Ingress::Peer(_) | Ingress::External(_) => None,
    };
    if let Some(port) = port {
        let routes = &snapshot.subnets[port.subnet].routes;
        // Who is reached by another port or host, or by a peering, has come from there.
        let leads_out = matches!(
            routes.lookup(flow.destination),
            None | Some((_, Target::Nat(_) | Target::External(_)))
        );
        if !leads_out {
            return None;
        }
    }
    match choice {
        Choice::Anew | Choice::Member(_) => None,
        Choice::Kept(translation) | Choice::Error(translation, _) => {
            let address = translation.flow.source;
            let is_answer = translation.vni != vpc.vni && address != flow.source;
            let network = vpc.public.addresses.get(&address).filter(|_| is_answer);
            network.map(|(network, _)| (*network, address))
        }
        Choice::Untranslated => {
            if port.is_none()
                || standing == Standing::Forward
                || vpc.subnets.lookup(flow.destination).is_some()
            {
                return None;
            }
            let network = vpc.public.members.get(&flow.source);
            network.map(|network| (*network, 0))
        }
    }
}

/// Whether the sender of a packet that is refused is told by a reset.
pub(super) fn is_reset(snapshot: &Snapshot, entry: &Entry, reason: DropReason) -> bool {
    let parsed = &entry.parsed;
    if !matches!(reason, DropReason::MemberGone | DropReason::NoMember)
        || parsed.flow.protocol != protocol::TCP
        || parsed.fragment.is_some()
        || parsed.tcp_flags & tcp_flags::RST != 0
    {
        return false;
    }
    of(snapshot, entry).is_some_and(|balancer| {
        let flow = &parsed.flow;
        let listener = balancer.listener(flow.protocol, flow.destination_port);
        listener.is_none_or(|listener| listener.plan.resets)
    })
}

/// Writes the reset that refuses a TCP segment over it (RFC 9293 §3.10.7.1). Answers the frame's new length; none if it has no room, and is unchanged.
pub(super) fn reset(area: &mut [u8], parsed: &Parsed) -> Option<u16> {
    const TCP: usize = 20;
    let header = area.get(usize::from(parsed.l4)..usize::from(parsed.end))?;
    let segment = Segment::read(header, parsed.end.checked_sub(parsed.l4)?)?;
    let (seq, ack, flags) = if segment.flags & tcp_flags::ACK != 0 {
        (segment.ack, 0, tcp_flags::RST)
    } else {
        let next = segment.seq.wrapping_add(segment.space);
        (0, next, tcp_flags::RST | tcp_flags::ACK)
    };
    let ip_header = match parsed.family {
        Family::Ipv4 => 20,
        Family::Ipv6 => 40,
    };
    let total = ETHERNET + ip_header + TCP;
    let frame = area.get_mut(..total)?;
    let (from, to) = (parsed.flow.destination, parsed.flow.source);
    frame[..6].copy_from_slice(&parsed.eth_src.bytes());
    frame[6..12].copy_from_slice(&parsed.eth_dst.bytes());
    let (ip, tcp) = frame[ETHERNET..].split_at_mut(ip_header);
    ip.fill(0);
    match parsed.family {
        Family::Ipv4 => {
            (ip[0], ip[8], ip[9]) = (0x45, 64, protocol::TCP);
            ip[2..4].copy_from_slice(&((ip_header + TCP) as u16).to_be_bytes());
            // Never fragmented.
            ip[6] = 0x40;
            ip[12..16].copy_from_slice(&(from as u32).to_be_bytes());
            ip[16..20].copy_from_slice(&(to as u32).to_be_bytes());
            let sum = checksum::finish(checksum::sum(ip));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Family::Ipv6 => {
            (ip[0], ip[6], ip[7]) = (0x60, protocol::TCP, 64);
            ip[4..6].copy_from_slice(&(TCP as u16).to_be_bytes());
            ip[8..24].copy_from_slice(&from.to_be_bytes());
            ip[24..40].copy_from_slice(&to.to_be_bytes());
        }
    }
    tcp.fill(0);
    tcp[..2].copy_from_slice(&parsed.flow.destination_port.to_be_bytes());
    tcp[2..4].copy_from_slice(&parsed.flow.source_port.to_be_bytes());
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&ack.to_be_bytes());
    (tcp[12], tcp[13]) = (5 << 4, flags);
    let pseudo = checksum::pseudo_header(parsed.family, from, to, protocol::TCP, TCP as u32);
    let sum = checksum::finish(pseudo + checksum::sum(tcp));
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    Some(total as u16)
}
