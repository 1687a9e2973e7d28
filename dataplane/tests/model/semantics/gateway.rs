//! What stands between a port and the network: the guard, and what the gateway answers by itself (ARP, neighbour solicitations, ping,
//! errors). Answers are built from scratch, not out of the question.

use std::net::{IpAddr, Ipv6Addr};

use weft_dataplane::packet::DropReason;
use weft_proto::v1;

use super::frame::{
    Detail, ICMP, ICMPV6, IP, Mac, Packet, TCP, UDP, is_group, is_group_mac, mac_at, octets,
    ones_sum, pseudo_header, v4_at, v6_at, word,
};
use super::world::{World, gateway_address, gateway_mac, has_address, mac, prefix_holds};

pub fn pair_mac(port: &v1::Port, pair: &v1::AddressPair) -> Mac {
    mac(if pair.mac.is_empty() {
        &port.mac
    } else {
        &pair.mac
    })
}

pub fn owns(port: &v1::Port, address: IpAddr, source: Mac) -> bool {
    let own = mac(&port.mac) == source && has_address(port, address);
    own || port
        .allowed_pairs
        .iter()
        .any(|pair| pair_mac(port, pair) == source && prefix_holds(&pair.cidr, address))
}

pub fn owns_mac(port: &v1::Port, source: Mac) -> bool {
    let mut pairs = port.allowed_pairs.iter();
    mac(&port.mac) == source || pairs.any(|pair| pair_mac(port, pair) == source)
}

pub fn owns_address(port: &v1::Port, address: IpAddr) -> bool {
    let mut pairs = port.allowed_pairs.iter();
    has_address(port, address) || pairs.any(|pair| prefix_holds(&pair.cidr, address))
}

/// RFC 4291 appendix A.
pub fn link_local(mac: Mac) -> IpAddr {
    let [a, b, c, d, e, f] = mac;
    let octets = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ];
    Ipv6Addr::from(octets).into()
}

/// Whether a link-local address may be the port's: any, but those that the gateway and the other ports of the subnet have by their MACs.
fn may_be_link_local_of(world: &World, port: &v1::Port, address: IpAddr) -> bool {
    let subnet = world.subnet(&port.subnet);
    let others = world
        .0
        .ports
        .iter()
        .filter(|other| other.subnet == port.subnet && !owns_mac(port, mac(&other.mac)));
    let mut taken = others
        .map(|other| mac(&other.mac))
        .chain([gateway_mac(subnet)]);
    is_link_local(address) && !taken.any(|mac| link_local(mac) == address)
}

/// Joining and leaving groups without an address: MLD (RFC 3590), IGMP (RFC 3376 4.2.13).
fn is_joining(packet: &Packet) -> bool {
    let member = match packet.icmp {
        Some((131 | 132 | 143, _)) => packet.flow.protocol == ICMPV6,
        _ => packet.is_v4() && packet.flow.protocol == 2,
    };
    member && packet.flow.source.is_unspecified() && is_group(packet.flow.destination)
}

/// Anti-spoofing (b007).
pub fn guard(world: &World, port: &v1::Port, packet: &Packet) -> Result<(), DropReason> {
    let source = packet.flow.source;
    let on_link = packet.src == mac(&port.mac)
        && (may_be_link_local_of(world, port, source) || is_joining(packet));
    if port.unguarded || owns(port, source, packet.src) || on_link {
        return Ok(());
    }
    let mac_is_own = owns_mac(port, packet.src);
    let address_is_own = owns_address(port, packet.flow.source);
    Err(match (mac_is_own, address_is_own) {
        (false, false) => DropReason::SpoofedBoth,
        (false, true) => DropReason::SpoofedMac,
        (true, _) => DropReason::SpoofedAddress,
    })
}

/// What only routers and servers send (b003).
pub fn is_rogue_server(packet: &Packet) -> bool {
    let v4 = packet.is_v4();
    match packet.flow.detail {
        Detail::Ports(67, 68) => v4 && packet.flow.protocol == UDP,
        Detail::Ports(547, 546) => !v4 && packet.flow.protocol == UDP,
        Detail::Message(134 | 137, _) => !v4,
        _ => is_v4_router(packet),
    }
}

/// IPv4's redirect, and advertisement of a router (RFC 1256).
pub fn is_v4_router(packet: &Packet) -> bool {
    packet.is_v4() && packet.flow.protocol == ICMP && matches!(packet.icmp, Some((5 | 9, _)))
}

/// What a router must not pass on: of this link, this host, or no host.
pub fn stays_on_link(address: IpAddr) -> bool {
    let prefixes = [
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "240.0.0.0/4",
        "::/127",
        "fe80::/10",
    ];
    // But a tenant may route to metadata of its own.
    address != IpAddr::from([169, 254, 169, 254])
        && prefixes.iter().any(|prefix| prefix_holds(prefix, address))
}

/// Who is told of, and whether it is a router.
type Neighbour = (Mac, bool);

/// The port that has an address; a link-local one by its MAC, if it speaks IPv6.
fn owner<'a>(world: &'a World, vpc: &'a str, address: IpAddr) -> Option<&'a v1::Port> {
    if !is_link_local(address) {
        return world.port_by_address(vpc, address);
    }
    let speaks = |port: &v1::Port| port.addresses.iter().any(|text| text.contains(':'));
    world
        .0
        .ports
        .iter()
        .find(|port| port.vpc == vpc && link_local(mac(&port.mac)) == address && speaks(port))
}

/// A question of DNS that is whole.
pub fn asks_for_names(packet: &Packet) -> bool {
    let to_server = matches!(packet.flow.detail, Detail::Ports(_, 53));
    to_server && [TCP, UDP].contains(&packet.flow.protocol) && packet.fragment.is_none()
}

/// What a port may be told of an address: of its own gateway, or of another port of its subnet.
fn neighbour(world: &World, port: &v1::Port, address: IpAddr) -> Option<Neighbour> {
    let subnet = world.subnet(&port.subnet);
    if address == link_local(gateway_mac(subnet)) || world.is_metadata(address) {
        return Some((gateway_mac(subnet), true));
    }
    if let Some(owner) = world.gateway(&port.vpc, address) {
        return (owner.id == subnet.id).then(|| (gateway_mac(subnet), true));
    }
    if world.balancer(&port.vpc, address).is_some() {
        let mut cidrs = subnet.cidrs.iter();
        let is_of_link = cidrs.any(|cidr| prefix_holds(cidr, address));
        return is_of_link.then(|| (gateway_mac(subnet), false));
    }
    let other = owner(world, &port.vpc, address)?;
    (other.subnet == port.subnet && other.id != port.id).then(|| (mac(&other.mac), false))
}

/// ARP (RFC 826): the answer to a request.
pub fn arp(world: &World, port: &v1::Port, frame: &[u8]) -> Result<Answer, DropReason> {
    let (sender, target) = arp_question(frame)?;
    let sender_mac = mac_at(frame, 22);
    let probes = sender.is_unspecified() && owns_mac(port, sender_mac);
    let honest = mac_at(frame, 6) == sender_mac && (probes || owns(port, sender, sender_mac));
    if !port.unguarded && !honest {
        return Err(DropReason::SpoofedArp);
    }
    let is_request = word(frame, 20) == 1 && sender != target;
    if !is_request && announces(world, port, (sender, sender_mac), true) {
        return Ok(Answer::Heard);
    }
    let answer = neighbour(world, port, target).filter(|_| is_request);
    let (answer, _) = answer.ok_or(DropReason::ArpUnanswered)?;
    Ok(Answer::Frame(arp_reply(frame, answer)))
}

/// What an ARP packet leads to.
pub enum Answer {
    Frame(Vec<u8>),
    /// The host hears who holds an address.
    Heard,
}

/// Whether a port makes itself the holder of an address: one of its pairs, in its subnet, that nobody has for its own; which somebody else holds, or the same port
/// with another MAC, and it is announced, or which nobody holds.
fn announces(
    world: &World,
    port: &v1::Port,
    (address, source): (IpAddr, Mac),
    announced: bool,
) -> bool {
    let mut pairs = port.allowed_pairs.iter();
    let by_pair =
        pairs.any(|pair| pair_mac(port, pair) == source && prefix_holds(&pair.cidr, address));
    let mut ports = world.0.ports.iter();
    let is_own = ports.any(|it| it.vpc == port.vpc && has_address(it, address));
    let is_service =
        world.gateway(&port.vpc, address).is_some() || world.balancer(&port.vpc, address).is_some();
    if !by_pair || is_own || is_service || !world.in_subnet(port, address) {
        return false;
    }
    match world.holder(&port.vpc, address) {
        None => true,
        Some(holder) => announced && (holder.id != port.id || mac(&holder.mac) != source),
    }
}

/// Who asks, and for whom.
fn arp_question(frame: &[u8]) -> Result<(IpAddr, IpAddr), DropReason> {
    if frame.len() < IP + 28 || frame[14..20] != [0, 1, 8, 0, 6, 4] {
        return Err(DropReason::ArpMalformed);
    }
    Ok((v4_at(frame, 28), v4_at(frame, 38)))
}

fn arp_reply(question: &[u8], answer: Mac) -> Vec<u8> {
    let (sender_mac, sender) = (&question[22..28], &question[28..32]);
    let mut reply = [sender_mac, &answer, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
    reply.extend(answer);
    reply.extend(&question[38..42]);
    reply.extend(sender_mac);
    reply.extend(sender);
    // Padding comes back as it came.
    reply.extend(&question[IP + 28..]);
    reply
}

/// What equipment behind a tunnel may be told of an address: of a gateway, or of a port of the host that it asks.
fn neighbour_of_peer(
    world: &World,
    (host, vpc): (&str, &str),
    address: IpAddr,
) -> Option<Neighbour> {
    if let Some(subnet) = world.gateway(vpc, address) {
        return Some((gateway_mac(subnet), true));
    }
    let port = owner(world, vpc, address)?;
    (port.host == host).then(|| (mac(&port.mac), false))
}

/// The same for a question that comes through a tunnel to a host.
pub fn arp_of_peer(
    world: &World,
    place: (&str, &str),
    frame: &[u8],
) -> Result<Vec<u8>, DropReason> {
    let (sender, target) = arp_question(frame)?;
    let is_request = word(frame, 20) == 1 && sender != target;
    let answer = neighbour_of_peer(world, place, target).filter(|_| is_request);
    let (answer, _) = answer.ok_or(DropReason::ArpUnanswered)?;
    Ok(arp_reply(frame, answer))
}

/// What becomes of a neighbour discovery message.
pub enum Discovery {
    Answer(Vec<u8>),
    /// It concerns a link-local address that only a guest knows: others on the link get it.
    Relay,
    /// The host hears who holds an address.
    Heard,
}

/// Neighbour discovery (RFC 4861): none where the packet is of another kind; else the answer.
pub fn neighbor_discovery(
    world: &World,
    port: &v1::Port,
    packet: &Packet,
) -> Option<Result<Discovery, DropReason>> {
    let (kind, _) = packet.icmp.filter(|_| !packet.is_v4())?;
    (133..=137).contains(&kind).then(|| {
        // Not in pieces (RFC 6980 5): its receivers could not tell what it says.
        if packet.fragment.is_some() {
            return Err(DropReason::NeighborMalformed);
        }
        let message = checked(packet)?;
        match kind {
            135 => solicitation(world, port, packet, message),
            136 => advertisement(world, port, packet, message),
            _ => Err(DropReason::NeighborUnanswered),
        }
    })
}

/// The message, if it came whole from no farther than this link.
pub fn checked(packet: &Packet) -> Result<&[u8], DropReason> {
    let message = &packet.bytes[packet.l4..packet.end];
    let (source, destination) = (packet.flow.source, packet.flow.destination);
    let pseudo = pseudo_header(source, destination, ICMPV6, message.len());
    let whole = ones_sum(&[&pseudo, message]) == 0xffff;
    if packet.ttl != 255 || message[1] != 0 || packet.l4 != IP + 40 || !whole {
        return Err(DropReason::NeighborMalformed);
    }
    Ok(message)
}

fn solicitation(
    world: &World,
    port: &v1::Port,
    packet: &Packet,
    message: &[u8],
) -> Result<Discovery, DropReason> {
    if message.len() < 24 {
        return Err(DropReason::NeighborMalformed);
    }
    let (source, target) = (packet.flow.source, v6_at(message, 8));
    let detects = source.is_unspecified();
    let own = owns(port, source, packet.src)
        || ((detects || may_be_link_local_of(world, port, source)) && owns_mac(port, packet.src));
    let option = source_option(&message[24..]);
    let lies = option.is_some_and(|option| !owns_mac(port, option));
    if !port.unguarded && (!own || lies) {
        return Err(DropReason::SpoofedNeighbor);
    }
    let is_its_own = owns_address(port, target) || link_local(mac(&port.mac)) == target;
    if detects && announces(world, port, (target, packet.src), false) {
        return Ok(Discovery::Heard);
    }
    if detects && is_its_own {
        return Err(DropReason::NeighborUnanswered);
    }
    told(packet, target, neighbour(world, port, target))
}

fn told(
    packet: &Packet,
    target: IpAddr,
    answer: Option<Neighbour>,
) -> Result<Discovery, DropReason> {
    match answer {
        Some(answer) => Ok(Discovery::Answer(advertise(packet, target, answer))),
        None if is_link_local(target) => Ok(Discovery::Relay),
        None => Err(DropReason::NeighborUnanswered),
    }
}

/// The same for a question that comes through a tunnel to a host.
pub fn discovery_of_peer(
    world: &World,
    place: (&str, &str),
    packet: &Packet,
) -> Option<Result<Discovery, DropReason>> {
    let (kind, _) = packet.icmp.filter(|_| !packet.is_v4())?;
    let answer = || {
        if packet.fragment.is_some() {
            return Err(DropReason::NeighborMalformed);
        }
        let message = checked(packet)?;
        let target = (message.len() >= 24).then(|| v6_at(message, 8));
        match (kind, target) {
            (135, Some(target)) => told(packet, target, neighbour_of_peer(world, place, target)),
            (135, None) => Err(DropReason::NeighborMalformed),
            (136, Some(target)) if is_link_local(target) => Ok(Discovery::Relay),
            _ => Err(DropReason::NeighborUnanswered),
        }
    };
    (133..=137).contains(&kind).then(answer)
}

/// The advertisement that answers a solicitation.
fn advertise(packet: &Packet, target: IpAddr, (answer, router): Neighbour) -> Vec<u8> {
    let source = packet.flow.source;
    let detects = source.is_unspecified();
    let all_nodes = IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 1]);
    let (to, to_mac, flags) = if detects {
        (all_nodes, [0x33, 0x33, 0, 0, 0, 1], 0x20)
    } else {
        (source, packet.src, 0x60)
    };
    // A host that sees a router without this flag takes it for one no more (RFC 4861 7.2.5).
    let flags = if router { flags | 0x80 } else { flags };
    let mut message = vec![136, 0, 0, 0, flags, 0, 0, 0];
    message.extend(octets(target));
    message.extend([2, 1]);
    message.extend(answer);
    let sum = !ones_sum(&[&pseudo_header(target, to, ICMPV6, 32), &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut reply = [&to_mac[..], &answer, &[0x86, 0xdd]].concat();
    // Version, class and flow label as they came.
    reply.extend(&packet.bytes[IP..IP + 4]);
    reply.extend([0, 32, ICMPV6, 255]);
    reply.extend(octets(target));
    reply.extend(octets(to));
    reply.extend(message);
    reply
}

/// A guest may say which link-local addresses it has, to others on the link; what it says of other addresses nobody needs.
fn advertisement(
    world: &World,
    port: &v1::Port,
    packet: &Packet,
    message: &[u8],
) -> Result<Discovery, DropReason> {
    let target = (message.len() >= 24).then(|| v6_at(message, 8));
    let may_use = |address: IpAddr| {
        owns(port, address, packet.src) || may_be_link_local_of(world, port, address)
    };
    let option = message
        .get(24..)
        .and_then(|options| find_option(options, 2));
    let honest = target.is_some_and(may_use)
        && may_use(packet.flow.source)
        && owns_mac(port, packet.src)
        && option.is_none_or(|option| owns_mac(port, option));
    match target {
        _ if !port.unguarded && !honest => Err(DropReason::SpoofedNeighbor),
        Some(target) if is_link_local(target) => Ok(Discovery::Relay),
        Some(target) if announces(world, port, (target, option.unwrap_or(packet.src)), true) => {
            Ok(Discovery::Heard)
        }
        _ => Err(DropReason::NeighborUnanswered),
    }
}

pub fn is_link_local(address: IpAddr) -> bool {
    prefix_holds("fe80::/10", address)
}

/// The source link-layer address option (RFC 4861 4.6.1).
pub fn source_option(options: &[u8]) -> Option<Mac> {
    find_option(options, 1)
}

fn find_option(mut options: &[u8], kind: u8) -> Option<Mac> {
    while options.len() >= 2 {
        let length = usize::from(options[1]) * 8;
        if length == 0 || length > options.len() {
            return None;
        }
        if options[0] == kind && length == 8 {
            return Some(mac_at(options, 2));
        }
        options = &options[length..];
    }
    None
}

/// The gateway's answer to a ping (RFC 792, RFC 4443 4.2); it serves nothing else.
pub fn ping(packet: &Packet) -> Result<Vec<u8>, DropReason> {
    let (request, reply) = if packet.is_v4() { (8, 0) } else { (128, 129) };
    let protocol = if packet.is_v4() { ICMP } else { ICMPV6 };
    // Of a ping in pieces each is answered by itself: the first says that it is one.
    let later = packet.is_later_fragment() && packet.flow.protocol == protocol;
    if !later && packet.icmp != Some((request, 0)) {
        return Err(DropReason::GatewayUnserved);
    }
    let mut answer = packet.clone();
    answer.set_macs(packet.src, packet.dst);
    let (from, to) = if packet.is_v4() { (12, 16) } else { (8, 24) };
    let (source, destination) = (octets(packet.flow.destination), octets(packet.flow.source));
    answer.bytes[IP + from..][..source.len()].copy_from_slice(&source);
    answer.bytes[IP + to..][..source.len()].copy_from_slice(&destination);
    answer.flow = packet.flow.reversed();
    answer.set_ttl(64);
    if !later {
        // The checksum, less the one word that changes (RFC 1624 3): what is in other pieces counts too, and what was wrong stays wrong.
        let (at, changed) = (answer.l4, |kind: u8| u16::from(kind) << 8);
        let old = word(&answer.bytes, at + 2);
        let sum = [!old, !changed(request), changed(reply)].map(u16::to_be_bytes);
        let new = !ones_sum(&[&sum.concat()]);
        answer.bytes[at] = reply;
        answer.bytes[at + 2..at + 4].copy_from_slice(&new.to_be_bytes());
    }
    Ok(answer.bytes)
}

/// What the router owes an error for.
#[derive(Debug, Clone, Copy)]
pub enum Problem {
    TimeExceeded,
    TooBig(usize),
}

impl Problem {
    /// Why the packet is dropped that it is about.
    pub fn reason(self) -> DropReason {
        match self {
            Self::TimeExceeded => DropReason::TtlExceeded,
            Self::TooBig(_) => DropReason::TooBig,
        }
    }
}

/// The error about a packet, to its sender from the gateway of its subnet; none where none may be sent (RFC 1812 4.3.2.7, RFC 4443 2.4).
pub fn error(world: &World, port: &v1::Port, packet: &Packet, problem: Problem) -> Option<Vec<u8>> {
    let subnet = world.subnet(&port.subnet);
    let gateway = gateway_address(subnet, packet.is_v4())?;
    error_from((gateway_mac(subnet), gateway), packet, problem)
}

/// The same, from a router with this MAC and address.
pub fn error_from(
    (router, gateway): (Mac, IpAddr),
    packet: &Packet,
    problem: Problem,
) -> Option<Vec<u8>> {
    let (v4, sender) = (packet.is_v4(), packet.flow.source);
    if packet.is_icmp_error()
        || packet.is_later_fragment()
        || is_group_mac(packet.dst)
        || is_group(packet.flow.destination)
        || sender.is_unspecified()
    {
        return None;
    }
    let (kind, code, word) = match (problem, v4) {
        (Problem::TimeExceeded, true) => (11, 0, 0),
        (Problem::TimeExceeded, false) => (3, 0, 0),
        (Problem::TooBig(mtu), true) => (3, 4, mtu),
        (Problem::TooBig(mtu), false) => (2, 0, mtu),
    };
    // Not more than 576 bytes (RFC 1812 4.3.2.3), not more than 1280 (RFC 4443 2.4 c).
    let room = if v4 { 576 - 28 } else { 1280 - 48 };
    let quote = &packet.bytes[IP..packet.end];
    let mut message = vec![kind, code, 0, 0];
    message.extend((word as u32).to_be_bytes());
    message.extend(&quote[..quote.len().min(room)]);
    let pseudo = match v4 {
        true => Vec::new(),
        false => pseudo_header(gateway, sender, ICMPV6, message.len()),
    };
    let sum = !ones_sum(&[&pseudo, &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut header = if v4 {
        let mut header = vec![0x45, 0xc0];
        header.extend((20 + message.len() as u16).to_be_bytes());
        header.extend([0, 0, 0, 0, 64, ICMP, 0, 0]);
        header
    } else {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend((message.len() as u16).to_be_bytes());
        header.extend([ICMPV6, 64]);
        header
    };
    header.extend(octets(gateway));
    header.extend(octets(sender));
    if v4 {
        let sum = !ones_sum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let ether_type = if v4 { [8, 0] } else { [0x86, 0xdd] };
    Some([&packet.src[..], &router, &ether_type, &header, &message].concat())
}
