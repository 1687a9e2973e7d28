//! What the distributed gateway answers itself: ARP (RFC 826), neighbour discovery (RFC 4861) and ping.
//!
//! Each function rewrites the packet in place into the reply, and says so; nothing is flooded.

use super::guard::{self, is_link_local, link_local, mac_of_link_local};
use super::{learning, metadata};
use crate::packet::checksum;
use crate::packet::parse::{self, ETHERNET, Family, IPV4_MAPPED, Inner, Parsed, protocol};
use crate::packet::{DropReason, Mac};
use crate::snapshot::{Place, Port, Snapshot, Vpc};

/// Bytes of an ARP packet with its Ethernet header.
const ARP: usize = ETHERNET + 28;

/// Who asks: a port, or a peer through the tunnel.
#[derive(Debug, Clone, Copy)]
pub enum Asker<'a> {
    /// A port of this host, with its index.
    Port(u16, &'a Port),
    /// A peer, with the place of the VPC that it asks in.
    Peer(u16, usize),
}

/// What an asker is told of an address.
#[derive(Debug, Clone, Copy)]
struct Owner {
    mac: Mac,
    is_router: bool,
}

impl Owner {
    fn router(mac: Mac) -> Self {
        Self {
            mac,
            is_router: true,
        }
    }

    fn host(mac: Mac) -> Self {
        Self {
            mac,
            is_router: false,
        }
    }
}

/// Who has an address, as far as an asker may be told: a gateway, or another port of its subnet. A port has the link-local address that it
/// derives from its MAC; which others it uses is not known here.
fn neighbour(snapshot: &Snapshot, asker: Asker<'_>, address: u128) -> Option<Owner> {
    let (place, subnet) = match asker {
        Asker::Port(_, port) => (port.vpc, Some(port.subnet)),
        Asker::Peer(_, vpc) => (vpc, None),
    };
    let vpc = snapshot.vpcs.get(place)?;
    if vpc.wire.is_some() {
        let own = subnet.and_then(|subnet| snapshot.subnets.get(subnet))?;
        let serves = metadata::serves(snapshot, address)
            || own.guests.is_some() && own.gateway_v4 == Some(address);
        return serves.then(|| Owner::router(own.gateway_mac));
    }
    if let Some(own) = subnet.and_then(|subnet| snapshot.subnets.get(subnet))
        && (address == link_local(own.gateway_mac) || metadata::serves(snapshot, address))
    {
        return Some(Owner::router(own.gateway_mac));
    }
    if let Some(gateway) = vpc.gateways.get(&address) {
        // A guest is told of its own gateway; equipment behind a tunnel, of the subnet's.
        return (subnet.is_none() || subnet == Some(*gateway))
            .then(|| Owner::router(snapshot.subnets[*gateway].gateway_mac));
    }
    if super::balancing::at(vpc, address).is_some() {
        // The router of its subnet takes what is sent to it.
        let own = subnet.and_then(|subnet| snapshot.subnets.get(subnet))?;
        return own.holds(address).then(|| Owner::host(own.gateway_mac));
    }
    let derived = mac_of_link_local(address);
    let endpoint = match derived {
        Some(mac) => vpc.by_mac.get(&mac).filter(|endpoint| endpoint.ipv6)?,
        None => vpc.by_address.get(&address)?,
    };
    let allowed = match asker {
        Asker::Port(index, _) => {
            Some(endpoint.subnet) == subnet && endpoint.place != Place::Here(index)
        }
        Asker::Peer(..) => matches!(endpoint.place, Place::Here(_)),
    };
    allowed.then_some(Owner::host(endpoint.mac))
}

/// What to do with an ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arp {
    /// It has become the reply.
    Reply,
    /// It is for others on the wire of an external network.
    Relay,
    /// The port announces a virtual address, for this host to know.
    Announce,
}

/// Turns an ARP request into its reply, or has it go on to an external network.
///
/// # Errors
/// Why there is none.
pub fn arp(snapshot: &Snapshot, asker: Asker<'_>, frame: &mut [u8]) -> Result<Arp, DropReason> {
    let packet: &mut [u8; ARP] = frame
        .get_mut(..ARP)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(DropReason::ArpMalformed)?;
    // Ethernet, IPv4, their lengths.
    if packet[14..20] != [0, 1, 8, 0, 6, 4] {
        return Err(DropReason::ArpMalformed);
    }
    let operation = u16::from_be_bytes([packet[20], packet[21]]);
    let mac_at = |at: usize| Mac::from_bytes(std::array::from_fn(|i| packet[at + i]));
    let address_at = |at: usize| {
        IPV4_MAPPED | u128::from(u32::from_be_bytes(std::array::from_fn(|i| packet[at + i])))
    };
    let (eth_src, sender_mac, sender, target) =
        (mac_at(6), mac_at(22), address_at(28), address_at(38));
    let probe = sender == IPV4_MAPPED;
    if let Asker::Port(_, port) = asker {
        let honest = eth_src == sender_mac
            && port.owns_mac(sender_mac)
            && (probe || port.owns(sender, sender_mac));
        // The address at which hosts serve their guests is no guest's.
        if port.guarded && !honest || sender == IPV4_MAPPED | u128::from(metadata::IPV4.to_bits()) {
            return Err(DropReason::SpoofedArp);
        }
    }
    // In both forms (RFC 5944 §4.6). A question is answered, whatever address it comes from.
    let is_announcement = operation == 2 || sender == target;
    if let Asker::Port(index, port) = asker
        && is_announcement
        && announces(snapshot, (index, port), (sender, sender_mac), true)
    {
        return Ok(Arp::Announce);
    }
    let owner = if operation == 1 && sender != target {
        neighbour(snapshot, asker, target)
    } else {
        None
    };
    let Some(Owner { mac, .. }) = owner else {
        return match asker {
            Asker::Port(_, port) if snapshot.wire_of(port).is_some() => Ok(Arp::Relay),
            Asker::Port(_, port)
                if operation == 1
                    && sender != target
                    && learning::lacking(snapshot, port.vpc, target).is_some() =>
            {
                Err(DropReason::AddressUnlearned)
            }
            _ => Err(DropReason::ArpUnanswered),
        };
    };
    packet[..6].copy_from_slice(&sender_mac.bytes());
    packet[6..12].copy_from_slice(&mac.bytes());
    packet[21] = 2;
    packet.copy_within(22..32, 32);
    packet[22..28].copy_from_slice(&mac.bytes());
    packet[28..32].copy_from_slice(&(target as u32).to_be_bytes());
    Ok(Arp::Reply)
}

/// Whether a packet of a port makes it the holder of an address with a MAC: one of its pairs, within its subnet and not the port's own, that it announces, or is
/// about to use while nobody holds it.
fn announces(
    snapshot: &Snapshot,
    (index, port): (u16, &Port),
    (address, mac): (u128, Mac),
    announced: bool,
) -> bool {
    if port.pairs.is_empty() || port.addresses.contains(&address) || !port.owns(address, mac) {
        return false;
    }
    let vpc = &snapshot.vpcs[port.vpc];
    let may_hold = vpc.wire.is_none()
        && snapshot.subnets[port.subnet].holds(address)
        && !vpc.gateways.contains_key(&address)
        && super::balancing::at(vpc, address).is_none();
    may_hold
        && match vpc.by_address.get(&address) {
            None => true,
            Some(known) => {
                let is_held = known.place == Place::Here(index) && known.mac == mac;
                announced && !is_held && vpc.virtuals.has(address)
            }
        }
}

/// What a port announces: the address and the MAC that go with it. None if it is no announcement.
pub fn announced(frame: &[u8]) -> Option<(u128, Mac)> {
    match parse::inner(frame).ok()? {
        Inner::Arp => {
            let packet: &[u8; ARP] = frame.get(..ARP)?.try_into().ok()?;
            let address = u32::from_be_bytes(std::array::from_fn(|i| packet[28 + i]));
            let mac = Mac::from_bytes(std::array::from_fn(|i| packet[22 + i]));
            Some((IPV4_MAPPED | u128::from(address), mac))
        }
        Inner::Ip(parsed) => {
            let address = target(frame, &parsed)?;
            if parsed.icmp >> 8 == 135 {
                return Some((address, parsed.eth_src));
            }
            let options = frame.get(usize::from(parsed.l4) + 24..usize::from(parsed.end));
            let option = options.and_then(target_option);
            Some((address, option.unwrap_or(parsed.eth_src)))
        }
    }
}

/// The address that an ARP request asks for; none if the packet is no such request.
pub fn arp_target(frame: &[u8]) -> Option<u128> {
    let packet: &[u8; ARP] = frame.get(..ARP)?.try_into().ok()?;
    let address = u32::from_be_bytes(std::array::from_fn(|i| packet[38 + i]));
    (packet[20..22] == [0, 1]).then_some(IPV4_MAPPED | u128::from(address))
}

/// The address that a neighbour solicitation asks for, or that an advertisement claims; none if the packet is no whole one of these.
pub fn target(frame: &[u8], parsed: &Parsed) -> Option<u128> {
    let has_target = is_discovery(parsed) && matches!(parsed.icmp >> 8, 135 | 136);
    if !has_target || parsed.fragment.is_some() {
        return None;
    }
    let message = frame.get(usize::from(parsed.l4)..usize::from(parsed.end))?;
    let target: [u8; 16] = message.get(8..24)?.try_into().ok()?;
    Some(u128::from_be_bytes(target))
}

/// What to do with a neighbour discovery packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Neighbor {
    /// The frame has become the reply; it is that many bytes long.
    Reply(u16),
    /// It is for whoever it is sent to, on this link: only guests know which link-local addresses they use.
    Relay,
    /// The port announces a virtual address, for this host to know.
    Announce,
    /// It is none: go on with it.
    NotMine,
}

/// Whether a packet is of neighbour discovery (RFC 4861).
pub fn is_discovery(parsed: &Parsed) -> bool {
    parsed.family == Family::Ipv6
        && parsed.flow.protocol == protocol::ICMPV6
        && (133..=137).contains(&(parsed.icmp >> 8))
}

/// Answers neighbour solicitations, and relays what concerns link-local addresses that only guests know; swallows the rest of neighbour
/// discovery.
///
/// # Errors
/// Why there is no answer.
pub fn neighbor(
    snapshot: &Snapshot,
    asker: Asker<'_>,
    frame: &mut [u8],
    parsed: &Parsed,
) -> Result<Neighbor, DropReason> {
    if !is_discovery(parsed) {
        return Ok(Neighbor::NotMine);
    }
    let kind = (parsed.icmp >> 8) as u8;
    // In pieces it would pass for what it is not: no node sends it so, and none may take it (RFC 6980 §5).
    if parsed.fragment.is_some() {
        return Err(DropReason::NeighborMalformed);
    }
    let (l4, end) = (usize::from(parsed.l4), usize::from(parsed.end));
    let message = checked(frame, parsed)?;
    let is_on_wire = matches!(asker, Asker::Port(_, port) if snapshot.wire_of(port).is_some());
    match kind {
        133 if is_on_wire => return router_solicitation(snapshot, asker, message, parsed),
        135 => {}
        136 => return advertisement(snapshot, asker, message, parsed),
        _ => return Err(DropReason::NeighborUnanswered),
    }
    let target: [u8; 16] = message
        .get(8..24)
        .and_then(|t| t.try_into().ok())
        .ok_or(DropReason::NeighborMalformed)?;
    let target = u128::from_be_bytes(target);
    let detection = parsed.flow.source == 0;
    if let Asker::Port(index, port) = asker {
        let own = port.owns(parsed.flow.source, parsed.eth_src)
            || port.owns_mac(parsed.eth_src)
                && (detection || guard::may_be_own_link_local(snapshot, port, parsed.flow.source));
        let option = source_option(&frame[l4 + 24..end]);
        if port.guarded && (!own || option.is_some_and(|mac| !port.owns_mac(mac))) {
            return Err(DropReason::SpoofedNeighbor);
        }
        let is_its_own = port.owns_address(target) || mac_of_link_local(target) == Some(port.mac);
        // Whoever looks whether an address is free that nobody holds is about to use it (RFC 4862 §5.4).
        if detection && announces(snapshot, (index, port), (target, parsed.eth_src), false) {
            return Ok(Neighbor::Announce);
        }
        if detection && is_its_own && !is_on_wire {
            return Err(DropReason::NeighborUnanswered);
        }
    }
    let Some(owner) = neighbour(snapshot, asker, target) else {
        return if is_link_local(target) || is_on_wire {
            Ok(Neighbor::Relay)
        } else {
            Err(DropReason::NeighborUnanswered)
        };
    };
    if frame.len() < l4 + 32 {
        // The answer is 32 bytes; a solicitation without its option is 24. Such a frame has room behind it or is a strange one.
        return Err(DropReason::NeighborMalformed);
    }
    Ok(Neighbor::Reply(advertise(
        frame, parsed, owner, target, detection,
    )))
}

/// A message of neighbour discovery, which came from no farther than this link and whole (RFC 4861 §7.1).
pub(super) fn checked<'f>(frame: &'f [u8], parsed: &Parsed) -> Result<&'f [u8], DropReason> {
    let message = frame
        .get(usize::from(parsed.l4)..usize::from(parsed.end))
        .ok_or(DropReason::NeighborMalformed)?;
    let sum = checksum::pseudo_header(
        Family::Ipv6,
        parsed.flow.source,
        parsed.flow.destination,
        protocol::ICMPV6,
        message.len() as u32,
    );
    if parsed.ttl != 255
        || parsed.icmp & 0xff != 0
        || parsed.l4 != parsed.l3 + 40
        || checksum::fold(sum + checksum::sum(message)) != 0xffff
    {
        return Err(DropReason::NeighborMalformed);
    }
    Ok(message)
}

/// A guest on an external network asks the routers there (RFC 4861 §4.1).
fn router_solicitation(
    snapshot: &Snapshot,
    asker: Asker<'_>,
    message: &[u8],
    parsed: &Parsed,
) -> Result<Neighbor, DropReason> {
    if let Asker::Port(_, port) = asker
        && port.guarded
    {
        let source = parsed.flow.source;
        let option = message.get(8..).and_then(source_option);
        let honest = port.owns_mac(parsed.eth_src)
            && (source == 0
                || port.owns(source, parsed.eth_src)
                || guard::may_be_own_link_local(snapshot, port, source))
            && option.is_none_or(|mac| port.owns_mac(mac));
        if !honest {
            return Err(DropReason::SpoofedNeighbor);
        }
    }
    Ok(Neighbor::Relay)
}

/// What a guest says of its link-local addresses, others on the link are told. Of all other addresses the gateway tells them.
fn advertisement(
    snapshot: &Snapshot,
    asker: Asker<'_>,
    message: &[u8],
    parsed: &Parsed,
) -> Result<Neighbor, DropReason> {
    let target = message
        .get(8..24)
        .and_then(|t| <[u8; 16]>::try_from(t).ok())
        .map(u128::from_be_bytes);
    if let Asker::Port(_, port) = asker
        && port.guarded
    {
        let option = message
            .get(24..)
            .and_then(|options| find_option(options, 2));
        let source = parsed.flow.source;
        let honest = target.is_some_and(|target| {
            port.owns(target, parsed.eth_src)
                || guard::may_be_own_link_local(snapshot, port, target)
        }) && port.owns_mac(parsed.eth_src)
            && option.is_none_or(|mac| port.owns_mac(mac))
            && (port.owns(source, parsed.eth_src)
                || guard::may_be_own_link_local(snapshot, port, source));
        if !honest {
            return Err(DropReason::SpoofedNeighbor);
        }
    }
    let is_on_wire = matches!(asker, Asker::Port(_, port) if snapshot.wire_of(port).is_some());
    let option = message.get(24..).and_then(target_option);
    match (target, asker) {
        (Some(target), _) if is_link_local(target) || is_on_wire => Ok(Neighbor::Relay),
        (Some(target), Asker::Port(index, port))
            if announces(
                snapshot,
                (index, port),
                (target, option.unwrap_or(parsed.eth_src)),
                true,
            ) =>
        {
            Ok(Neighbor::Announce)
        }
        _ => Err(DropReason::NeighborUnanswered),
    }
}

/// The source link-layer address option (RFC 4861 §4.6.1).
pub(super) fn source_option(options: &[u8]) -> Option<Mac> {
    find_option(options, 1)
}

/// The target link-layer address option (RFC 4861 §4.6.1).
pub(super) fn target_option(options: &[u8]) -> Option<Mac> {
    find_option(options, 2)
}

/// Writes the advertisement of a router that has this MAC and address over a solicitation.
pub(super) fn advertise_router(frame: &mut [u8], parsed: &Parsed, mac: Mac, target: u128) -> u16 {
    let detection = parsed.flow.source == 0;
    advertise(frame, parsed, Owner::router(mac), target, detection)
}

fn find_option(mut options: &[u8], wanted: u8) -> Option<Mac> {
    while let [kind, units, rest @ ..] = options {
        let len = usize::from(*units) * 8;
        if len == 0 || options.len() < len {
            return None;
        }
        if *kind == wanted && len == 8 {
            return rest[..6].try_into().ok().map(Mac::from_bytes);
        }
        options = &options[len..];
    }
    None
}

/// Writes the advertisement (RFC 4861 §4.4) over the solicitation: solicited to the asker, or to all nodes when it was detecting a
/// duplicate. Answers the frame's new length.
fn advertise(
    frame: &mut [u8],
    parsed: &Parsed,
    owner: Owner,
    target: u128,
    detection: bool,
) -> u16 {
    let Owner { mac, is_router } = owner;
    const ALL_NODES: u128 = 0xff02 << 112 | 1;
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let (destination, eth_dst) = if detection {
        (ALL_NODES, Mac::from_word(0x3333_0000_0001))
    } else {
        (parsed.flow.source, parsed.eth_src)
    };
    frame[..6].copy_from_slice(&eth_dst.bytes());
    frame[6..12].copy_from_slice(&mac.bytes());
    frame[l3 + 4..l3 + 6].copy_from_slice(&32u16.to_be_bytes());
    frame[l3 + 8..l3 + 24].copy_from_slice(&target.to_be_bytes());
    frame[l3 + 24..l3 + 40].copy_from_slice(&destination.to_be_bytes());
    let message = &mut frame[l4..l4 + 32];
    message.fill(0);
    message[0] = 136;
    // Override; solicited; router, without which a host drops its default route through the neighbour (§7.2.5).
    let solicited = if detection { 0 } else { 0x40 };
    let router = if is_router { 0x80 } else { 0 };
    message[4] = 0x20 | solicited | router;
    message[8..24].copy_from_slice(&target.to_be_bytes());
    message[24] = 2;
    message[25] = 1;
    message[26..32].copy_from_slice(&mac.bytes());
    let sum = checksum::pseudo_header(Family::Ipv6, target, destination, protocol::ICMPV6, 32)
        + checksum::sum(message);
    message[2..4].copy_from_slice(&checksum::finish(sum).to_be_bytes());
    (l4 + 32) as u16
}

/// Whether a packet asks IPv4's routers to advertise themselves (RFC 1256); the gateway is told by DHCP.
pub fn is_router_solicitation(parsed: &Parsed) -> bool {
    parsed.family == Family::Ipv4
        && parsed.flow.protocol == protocol::ICMP
        && !parsed.is_later_fragment()
        && parsed.icmp >> 8 == 10
}

/// Whether the packet is for a gateway of the port's VPC: by its address, of which the link-local one is the own gateway's alone, and by the MAC of the gateway that the port has. What goes
/// elsewhere in the subnet is not the gateway's, whatever its address says (RFC 1812 §5.3.4).
pub fn is_for_gateway(snapshot: &Snapshot, port: &Port, parsed: &Parsed) -> bool {
    let own = snapshot.subnets[port.subnet].gateway_mac;
    let destination = parsed.flow.destination;
    let is_gateway = |vpc: &Vpc| vpc.gateways.contains_key(&destination);
    parsed.eth_dst == own
        && (destination == link_local(own)
            || metadata::serves(snapshot, destination)
            || snapshot.vpcs.get(port.vpc).is_some_and(is_gateway))
}

/// Turns an echo request to the gateway into its reply (RFC 792, RFC 4443 §4.2). Fragments are turned too, each by itself: addresses
/// swap in all of them, the type changes in the first, which also holds the checksum of the whole.
///
/// # Errors
/// The packet is no echo request.
pub fn ping(frame: &mut [u8], parsed: &Parsed) -> Result<(), DropReason> {
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let (request, reply) = match (parsed.family, parsed.flow.protocol) {
        (Family::Ipv4, protocol::ICMP) => (8, 0),
        (Family::Ipv6, protocol::ICMPV6) => (128, 129),
        _ => return Err(DropReason::GatewayUnserved),
    };
    if !parsed.is_later_fragment() {
        if parsed.icmp != request << 8 {
            return Err(DropReason::GatewayUnserved);
        }
        let field = u16::from_be_bytes([frame[l4 + 2], frame[l4 + 3]]);
        frame[l4] = reply as u8;
        frame[l4 + 2..l4 + 4]
            .copy_from_slice(&checksum::update(field, request << 8, reply << 8).to_be_bytes());
    }
    frame[..6].copy_from_slice(&parsed.eth_src.bytes());
    frame[6..12].copy_from_slice(&parsed.eth_dst.bytes());
    match parsed.family {
        Family::Ipv4 => {
            // Swapping the addresses leaves the header's sum as it was; the TTL starts afresh.
            let addresses: [u8; 8] = std::array::from_fn(|i| frame[l3 + 12 + i]);
            frame[l3 + 12..l3 + 16].copy_from_slice(&addresses[4..]);
            frame[l3 + 16..l3 + 20].copy_from_slice(&addresses[..4]);
            super::rewrite::set_ipv4_ttl(&mut frame[l3..], 64);
        }
        Family::Ipv6 => {
            frame[l3 + 8..l3 + 24].copy_from_slice(&parsed.flow.destination.to_be_bytes());
            frame[l3 + 24..l3 + 40].copy_from_slice(&parsed.flow.source.to_be_bytes());
            frame[l3 + 7] = 64;
        }
    }
    Ok(())
}
