//! Translation: a packet gets the addresses and ports of its session's other key (services, "One idea carries them all"). Which they are is decided
//! here when a session begins, before and after the route, and kept from then on.
//!
//! Checksums are changed by what the words under them change by (RFC 1624), so that what was wrong stays wrong. ICMP errors are translated with the
//! packet that they quote (RFC 5508 REQ-4, REQ-5).

use super::tracer::Tracer;
use crate::numbers::Vni;
use crate::packet::checksum;
use crate::packet::parse::{self, ETHERNET, Family, protocol, word_address, word_family};
use crate::packet::{DropReason, Flow, Parsed};
use crate::session::Translation;
use crate::session::mappings::{self, Outside};
use crate::session::table::{Action, Ingress, SessionRef};
use crate::snapshot::{Held, HeldBy, Place, Snapshot};

use super::forwarding::Exit;
use super::{Entry, Tables, balancing, external, nat64};

/// What was decided for a packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decision {
    pub action: Action,
    pub change: Change,
}

/// What a packet's addresses and ports become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// They stay.
    None,
    /// Those of the session's other key.
    Flow(Translation),
    /// Of an ICMP error: of its own header, and of the packet that it quotes.
    Error(Translation, Translation),
}

impl From<Action> for Decision {
    /// For a packet that keeps its addresses and ports.
    fn from(action: Action) -> Self {
        Self {
            action,
            change: Change::None,
        }
    }
}

impl Decision {
    /// The VNI that the packet leaves with, if it comes with this one.
    #[inline]
    pub(super) fn vni(&self, ingress: Vni) -> Vni {
        match &self.change {
            Change::None => ingress,
            Change::Flow(translation) | Change::Error(translation, _) => translation.vni,
        }
    }
}

/// How it is known what a packet becomes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Choice {
    /// The packet opens a flow: what the configuration says.
    Anew,
    /// Nothing else: its session has one key.
    Untranslated,
    /// What its session has kept.
    Kept(Translation),
    /// Nothing else, and it goes to this member of the load balancer that it is for.
    Member(u128),
    /// An ICMP error: its header, and the packet that it quotes.
    Error(Translation, Translation),
}

impl Choice {
    /// Whether it was made for a packet before.
    pub(super) fn is_kept(&self) -> bool {
        self.kept().is_some()
    }

    /// What was chosen before.
    fn kept(&self) -> Option<Flow> {
        match self {
            Self::Kept(translation) | Self::Error(translation, _) => Some(translation.flow),
            Self::Anew | Self::Untranslated | Self::Member(_) => None,
        }
    }

    /// The member that gets the packet as it is, of a load balancer that it is for. `routed`: its flow at the route.
    pub(super) fn member(&self, snapshot: &Snapshot, entry: &Entry, routed: &Flow) -> Option<u128> {
        match self {
            Self::Member(address) => Some(*address),
            Self::Anew if balancing::is_dsr(snapshot, entry) => Some(routed.destination),
            _ => None,
        }
    }

    /// An error that leaves for an external network, from a router on the way to who got the packet: no private address leaves with it. It comes from
    /// the router's own outside address, or from the one that the packet was for (RFC 5508 REQ-5).
    pub(super) fn without_private_source(self, flow: &Flow, exit: Exit) -> Self {
        match self {
            Self::Error(outer, quoted) if outer.flow.source == flow.source => {
                let source = match exit {
                    Exit::ElasticIp(address) | Exit::Balancer(address) => address,
                    Exit::Nat(_) | Exit::AsItIs => quoted.flow.destination,
                };
                let after = Flow {
                    source,
                    ..outer.flow
                };
                Self::Error(Translation::new(flow, &after, outer.vni), quoted)
            }
            other => other,
        }
    }

    /// The stage before the route: the flow of a packet with the destination that it is routed by. `is_routed`: it is sent to the virtual router, or comes
    /// from an external network.
    ///
    /// # Errors
    /// The destination is an address of a NAT gateway of this host, and stands for nothing in the VPC; or one of a load balancer that has no member for the flow.
    pub(super) fn destination(
        &self,
        tables: Tables<'_>,
        entry: &Entry,
        is_routed: bool,
        tracer: &mut impl Tracer,
    ) -> Result<Flow, DropReason> {
        let (flow, vpc) = (&entry.parsed.flow, &tables.snapshot.vpcs[entry.vpc]);
        let mut after = *flow;
        match self.kept() {
            // Towards the other family: the route is that of the destination which the port knows.
            Some(kept) if kept.family() != flow.family() => {
                after = match kept.family() {
                    Family::Ipv6 => kept,
                    Family::Ipv4 => after,
                };
            }
            Some(kept) => {
                (after.destination, after.destination_port) =
                    (kept.destination, kept.destination_port);
            }
            None if matches!(self, Self::Anew) && is_routed => {
                if let Some(balancer) = balancing::of(tables.snapshot, entry) {
                    let member = balancing::choose(balancer, flow, tracer)?;
                    (after.destination, after.destination_port) = member;
                    return Ok(after);
                }
                let outside = &tables.snapshot.outside;
                let is_held = |held: &Held| {
                    held.vpc == Some(entry.vpc) && matches!(held.by, HeldBy::NatGateway(_))
                };
                if let Some(inside) = vpc.translations.destination(flow.destination) {
                    after.destination = inside;
                } else if outside.held.get(&flow.destination).is_some_and(is_held) {
                    let inside = external::enter(tables, entry.vpc, flow, tracer)?;
                    if word_family(inside.0) != flow.family() {
                        // From within the VPC, IPv4 does not lead to IPv6.
                        return Err(DropReason::NatUnmapped);
                    }
                    (after.destination, after.destination_port) = inside;
                }
            }
            None => {}
        }
        if after.destination != flow.destination {
            self.say(
                tracer,
                "destination translation",
                flow.destination,
                after.destination,
            );
        }
        Ok(after)
    }

    /// The stage after the route: the flow of a packet whose flow was `routed` at the route, and the mapping that it uses. `is_routed` as before; `exit`: how
    /// it leaves for an external network.
    ///
    /// # Errors
    /// The NAT gateway has no port for it.
    pub(super) fn source(
        &self,
        tables: Tables<'_>,
        entry: &Entry,
        routed: Flow,
        (is_routed, exit): (bool, Option<Exit>),
        tracer: &mut impl Tracer,
    ) -> Result<(Flow, Option<u32>), DropReason> {
        let (flow, vpc) = (&entry.parsed.flow, &tables.snapshot.vpcs[entry.vpc]);
        let (mut after, mut mapping) = (routed, None);
        match self.kept() {
            Some(kept) if kept.family() != routed.family() => after = kept,
            Some(kept) => (after.source, after.source_port) = (kept.source, kept.source_port),
            None if !matches!(self, Self::Anew) || !is_routed => {}
            None if balancing::of(tables.snapshot, entry).is_some() => {
                // A member that reaches itself, by whichever of its addresses: its answers have to come back here.
                let endpoint = vpc.by_address.get(&routed.destination);
                let is_own =
                    endpoint.is_some_and(|endpoint| match (endpoint.place, entry.ingress) {
                        (Place::Here(member), Ingress::Port(client)) => member == client,
                        _ => false,
                    });
                if is_own {
                    after.source = flow.destination;
                }
            }
            None => {
                let hairpin = routed.destination != flow.destination;
                let through = match exit {
                    Some(Exit::Nat(gateway)) => Some(gateway),
                    Some(Exit::ElasticIp(_) | Exit::Balancer(_) | Exit::AsItIs) => None,
                    None if hairpin => hairpin_gateway(tables, entry),
                    None => None,
                };
                let elastic = match exit {
                    Some(Exit::ElasticIp(address)) => Some(address),
                    _ => None,
                };
                if let Some(address) = elastic {
                    after.source = address;
                } else if let Some(gateway) = through {
                    if !may_share_address(&entry.parsed) {
                        return Err(DropReason::NatProtocol);
                    }
                    let across = external::across(tables.snapshot, gateway, &routed);
                    if let Some(across) = across.filter(|_| exit.is_some()) {
                        if !mappings::has_ports(flow.protocol) {
                            return Err(DropReason::NatProtocol);
                        }
                        after = across;
                        let (before, to) = (flow.destination, after.destination);
                        self.say(tracer, "NAT64", before, to);
                    }
                    let which = (gateway, word_family(after.destination));
                    let found = external::map(tables, which, flow, tracer)?;
                    set_source(&mut after, found.outside);
                    mapping = Some(found.number);
                } else if exit.is_none() {
                    after.source = vpc
                        .translations
                        .source(flow.source, routed.destination, hairpin)
                        .unwrap_or(flow.source);
                }
            }
        }
        if after.source != flow.source {
            self.say(tracer, "source translation", flow.source, after.source);
        }
        Ok((after, mapping))
    }

    fn say(&self, tracer: &mut impl Tracer, stage: &'static str, before: u128, after: u128) {
        let why = match self {
            Self::Anew => "as configured",
            Self::Untranslated | Self::Kept(_) | Self::Member(_) => "kept by the session",
            Self::Error(..) => "as the packet that is quoted",
        };
        tracer.step(stage, || {
            format!("{} is {}, {why}", word_address(before), word_address(after))
        });
    }

    /// What the packet becomes, if it is to leave with this flow, in the VPC of this VNI. `stays`: that is the one that it comes from.
    pub(super) fn change(&self, flow: &Flow, after: &Flow, (vni, stays): (Vni, bool)) -> Change {
        match self {
            Self::Kept(translation) => Change::Flow(*translation),
            Self::Error(outer, quoted) => Change::Error(*outer, *quoted),
            Self::Member(_) => Change::None,
            Self::Anew | Self::Untranslated if stays && flow == after => Change::None,
            Self::Anew | Self::Untranslated => Change::Flow(Translation::new(flow, after, vni)),
        }
    }
}

/// The NAT gateway of this host whose address a packet is sent to from its own VPC: its source is translated too (RFC 4787 REQ-9).
fn hairpin_gateway(tables: Tables<'_>, entry: &Entry) -> Option<u16> {
    let outside = &tables.snapshot.outside;
    match outside.held.get(&entry.parsed.flow.destination)?.by {
        HeldBy::NatGateway(index) => {
            let gateway = outside.nat_gateway(index)?;
            gateway.serves(entry.parsed.flow.source).then_some(index)
        }
        HeldBy::ElasticIp(_) | HeldBy::Balancer | HeldBy::Network => None,
    }
}

/// Whether a packet may have a mapping: of ICMP, a query alone has an identifier to tell flows apart by.
fn may_share_address(parsed: &Parsed) -> bool {
    match (parsed.flow.protocol, parsed.family) {
        (protocol::ICMP, Family::Ipv4) | (protocol::ICMPV6, Family::Ipv6) => {
            parse::is_query(parsed.family, (parsed.icmp >> 8) as u8)
        }
        (protocol::ICMP | protocol::ICMPV6, _) => false,
        _ => true,
    }
}

/// Gives a flow another source. The other port of an ICMP query is its identifier plus a number that stands for its type.
fn set_source(flow: &mut Flow, outside: Outside) {
    flow.source = outside.address;
    if !mappings::has_ports(flow.protocol) {
        return;
    }
    if matches!(flow.protocol, protocol::ICMP | protocol::ICMPV6) {
        let number = flow.destination_port.wrapping_sub(flow.source_port);
        flow.destination_port = outside.port.wrapping_add(number);
    }
    flow.source_port = outside.port;
}

/// Whether another gateway host translates for a packet of a translated session, and this one stands by: the host of a port that is a gateway host too
/// knows both sides of the port's sessions, and passes the packets on as the port and the other gateway host send them.
pub(super) fn is_elsewhere(snapshot: &Snapshot, entry: &Entry, session: &SessionRef<'_>) -> bool {
    if matches!(entry.ingress, Ingress::External(_)) || !session.is_translated() {
        return false;
    }
    let other = session.translation().or_else(|| session.origin());
    other.is_some_and(|other| {
        let ends = [other.flow.source, other.flow.destination];
        let mut ends = ends.into_iter();
        let outside = &snapshot.outside;
        let public = &snapshot.vpcs[entry.vpc].public.addresses;
        // Only the end on this side counts: a client outside may have had an address that has become one of these since.
        let own = match session.translation() {
            Some(answer) => answer.flow.source,
            None => other.flow.destination,
        };
        let is_balanced = public.contains_key(&own) && !outside.held.contains_key(&own);
        let is_others = is_balanced || ends.any(|end| outside.stands_by_for(end));
        other.vni == Vni::OUTSIDE && is_others
    })
}

/// What is kept for a packet of a session, if the configuration still allows it.
///
/// # Errors
/// The packet only seems to be of the session, or the translation is no longer allowed.
pub(super) fn kept(
    snapshot: &Snapshot,
    entry: &Entry,
    session: &SessionRef<'_>,
) -> Result<Choice, DropReason> {
    let (vpc, flow) = (&snapshot.vpcs[entry.vpc], &entry.parsed.flow);
    if let Some(member) = session.chosen()
        && session.from_origin()
    {
        return if balancing::keeps_member(vpc, flow, member) {
            Ok(Choice::Member(member))
        } else {
            Err(DropReason::MemberGone)
        };
    }
    if !session.is_translated()
        || session.joined().is_some()
        || is_elsewhere(snapshot, entry, session)
    {
        return Ok(Choice::Untranslated);
    }
    let translation = session.translation().ok_or(DropReason::TranslationClash)?;
    let (before, after) = if session.is_on_first_side() {
        (*flow, translation.flow)
    } else {
        (translation.flow.reversed(), flow.reversed())
    };
    if before.family() != after.family() {
        let (six, four) = match before.family() {
            Family::Ipv6 => (before, after),
            Family::Ipv4 => (after.reversed(), before.reversed()),
        };
        if external::keeps_across(snapshot, entry.vpc, &six, &four) {
            return Ok(Choice::Kept(translation));
        }
        let stands_by = snapshot.outside.stands_by_for(four.source);
        return Err(if stands_by {
            DropReason::NoTranslator
        } else {
            DropReason::TranslationGone
        });
    }
    if let Some(keeps) = balancing::keeps(vpc, &before, &after) {
        let opener = if session.is_on_first_side() {
            entry.vni
        } else {
            translation.vni
        };
        let outside = &snapshot.outside;
        return if opener != vpc.vni && !outside.held.contains_key(&before.destination) {
            // It came from outside, by another host.
            Err(DropReason::NoTranslator)
        } else if keeps {
            Ok(Choice::Kept(translation))
        } else {
            Err(DropReason::MemberGone)
        };
    }
    let keeps = |inside, address| external::keeps(snapshot, entry.vpc, inside, address);
    let (destination, source) = (
        (before.destination, after.destination),
        (before.source, after.source),
    );
    let is_allowed = (vpc
        .translations
        .keeps_destination(destination.0, destination.1)
        || keeps(destination.1, destination.0))
        && (vpc.translations.keeps_source(source.0, source.1) || keeps(source.0, source.1));
    if is_allowed {
        return Ok(Choice::Kept(translation));
    }
    // The segment may send here a moment before this host takes over: what it was told of stays.
    let outside = &snapshot.outside;
    if outside.stands_by_for(source.1) || outside.stands_by_for(destination.0) {
        return Err(DropReason::NoTranslator);
    }
    Err(DropReason::TranslationGone)
}

/// How an ICMP error is translated that quotes a packet of a session. `quoted` is that packet's flow.
pub(super) fn of_error(
    snapshot: &Snapshot,
    entry: &Entry,
    session: &SessionRef<'_>,
    quoted: &Flow,
) -> Choice {
    let Some(origin) = session.origin() else {
        // About an answer of a member, to the member.
        let member = session.chosen().filter(|_| !session.from_origin());
        return member.map_or(Choice::Untranslated, Choice::Member);
    };
    if is_elsewhere(snapshot, entry, session) {
        return Choice::Untranslated;
    }
    let parsed = &entry.parsed;
    let mut flow = parsed.flow;
    flow.destination = origin.flow.source;
    if origin.flow.family() != flow.family() {
        flow.protocol = nat64::protocol_in(origin.flow.family(), flow.protocol);
        let kind = nat64::icmp_across(parsed.family, parsed.icmp);
        flow.destination_port = kind.unwrap_or(flow.destination_port);
        // A router on the way, behind the same prefix as the packet's receiver; one of the VPC's has no address outside.
        if parsed.family == Family::Ipv4 {
            flow.source = nat64::embed(origin.flow.destination & !0xffff_ffff, flow.source);
        }
    }
    // From the packet's own receiver, or from a router on the way.
    if parsed.flow.source == quoted.destination {
        flow.source = origin.flow.destination;
    }
    Choice::Error(Translation::new(&parsed.flow, &flow, origin.vni), origin)
}

/// Where the headers of a packet are, that changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct At {
    pub family: Family,
    /// Offset of the IP header.
    pub l3: usize,
    /// Offset of the transport header.
    pub l4: usize,
    /// Of the transport header; none that is known in a later fragment.
    pub protocol: u8,
    /// The checksum of the transport header is the sum of the pseudo-header, for a device to complete.
    pub is_partial: bool,
}

/// Changes a packet that was parsed.
#[inline]
pub(super) fn apply(frame: &mut [u8], parsed: &Parsed, change: &Change, is_partial: bool) {
    if *change != Change::None {
        apply_change(frame, parsed, change, is_partial);
    }
}

#[inline(never)]
fn apply_change(frame: &mut [u8], parsed: &Parsed, change: &Change, is_partial: bool) {
    // What lies behind the packet is padding.
    let Some(frame) = frame.get_mut(..usize::from(parsed.end)) else {
        return;
    };
    let at = At {
        family: parsed.family,
        l3: parsed.l3.into(),
        l4: parsed.l4.into(),
        protocol: if parsed.is_later_fragment() {
            NONE
        } else {
            parsed.flow.protocol
        },
        is_partial,
    };
    match change {
        Change::None => {}
        Change::Flow(translation) => flow(frame, &at, translation),
        Change::Error(outer, quoted) => {
            let Some(message) = frame.get_mut(at.l4..) else {
                return;
            };
            let delta = quote(message, at.family, quoted);
            if let Some(field) = message.get_mut(2..4) {
                add(field, delta);
            }
            // The message has no port of its own.
            let at = At {
                protocol: match at.family {
                    Family::Ipv4 => NONE,
                    Family::Ipv6 => at.protocol,
                },
                ..at
            };
            flow(frame, &at, outer);
        }
    }
}

/// No protocol whose header is changed: IANA's "reserved".
const NONE: u8 = 255;
const UDP_LITE: u8 = 136;
const DCCP: u8 = 33;

/// Changes the packet that an ICMP message quotes, as far as it is there; answers what that adds to the message's sum.
fn quote(message: &mut [u8], family: Family, translation: &Translation) -> u16 {
    const HEADER: usize = 8;
    let Some(packet) = message.get_mut(HEADER..) else {
        return 0;
    };
    let Some((number, l4)) = parse::quoted_transport(family, packet) else {
        return 0;
    };
    let before = checksum::fold(checksum::sum(packet));
    let at = At {
        family,
        l3: 0,
        l4,
        protocol: number,
        is_partial: false,
    };
    flow(packet, &at, translation);
    checksum::fold(u64::from(!before) + checksum::sum(packet))
}

/// What [`flow`] does, for the packets that a quick parse knows: whole UDP datagrams and TCP segments, right behind an IP header of the least length.
#[inline(always)]
pub(super) fn quick(frame: &mut [u8], (family, tcp): (Family, bool), translation: &Translation) {
    if family == Family::Ipv6 {
        return quick_ipv6(frame, tcp, translation);
    }
    const L4: usize = ETHERNET + 20;
    let (flow, delta) = (&translation.flow, translation.transport_delta);
    let Some(head) = frame.first_chunk_mut::<{ L4 + 8 }>() else {
        return;
    };
    add(&mut head[24..26], translation.header_delta);
    head[26..30].copy_from_slice(&(flow.source as u32).to_be_bytes());
    head[30..34].copy_from_slice(&(flow.destination as u32).to_be_bytes());
    head[34..36].copy_from_slice(&flow.source_port.to_be_bytes());
    head[36..38].copy_from_slice(&flow.destination_port.to_be_bytes());
    if !tcp {
        add_udp(&mut head[L4 + checksum::UDP_AT..], delta);
    } else if let Some(head) = frame.first_chunk_mut::<{ L4 + checksum::TCP_AT + 2 }>() {
        add(&mut head[L4 + checksum::TCP_AT..], delta);
    }
}

#[inline(never)]
fn quick_ipv6(frame: &mut [u8], tcp: bool, translation: &Translation) {
    let at = At {
        family: Family::Ipv6,
        l3: ETHERNET,
        l4: ETHERNET + 40,
        protocol: if tcp { protocol::TCP } else { protocol::UDP },
        is_partial: false,
    };
    flow(frame, &at, translation);
}

/// Writes the addresses and ports of a translation.
#[inline]
pub(super) fn flow(frame: &mut [u8], at: &At, translation: &Translation) {
    let Translation {
        flow,
        header_delta,
        transport_delta,
        ..
    } = translation;
    let Some(header) = frame.get_mut(at.l3..) else {
        return;
    };
    match at.family {
        Family::Ipv4 => {
            let Some(header) = header.first_chunk_mut::<20>() else {
                return;
            };
            add(&mut header[10..12], *header_delta);
            header[12..16].copy_from_slice(&(flow.source as u32).to_be_bytes());
            header[16..20].copy_from_slice(&(flow.destination as u32).to_be_bytes());
        }
        Family::Ipv6 => {
            let Some(header) = header.first_chunk_mut::<40>() else {
                return;
            };
            header[8..24].copy_from_slice(&flow.source.to_be_bytes());
            header[24..40].copy_from_slice(&flow.destination.to_be_bytes());
        }
    }
    let Some(segment) = frame.get_mut(at.l4..) else {
        return;
    };
    // Where the checksum stands, and whether one of zero is none.
    let (place, zero_is_none) = match (at.protocol, at.family) {
        (protocol::TCP, _) => (checksum::TCP_AT, false),
        (protocol::UDP, _) => (checksum::UDP_AT, true),
        (UDP_LITE | DCCP, _) => {
            if let Some(field) = segment.get_mut(6..8) {
                add(field, *header_delta);
            }
            return;
        }
        (protocol::ICMP, Family::Ipv4) => return identifier(segment, at.family, flow, 0),
        (protocol::ICMPV6, Family::Ipv6) => {
            return identifier(segment, at.family, flow, *header_delta);
        }
        _ => return,
    };
    if let Some(ports) = segment.first_chunk_mut::<4>() {
        ports[..2].copy_from_slice(&flow.source_port.to_be_bytes());
        ports[2..].copy_from_slice(&flow.destination_port.to_be_bytes());
    }
    let Some(field) = segment.get_mut(place..place + 2) else {
        return;
    };
    match field {
        [0, 0] if zero_is_none => {}
        // Of a sum that is not complemented, the addresses alone count.
        field if at.is_partial => {
            let sum = u16::from_be_bytes([field[0], field[1]]);
            let sum = checksum::fold(u64::from(sum) + u64::from(*header_delta));
            field.copy_from_slice(&sum.to_be_bytes());
        }
        field if zero_is_none => add_udp(field, *transport_delta),
        field => add(field, *transport_delta),
    }
}

/// Writes the identifier of an ICMP query or its answer, which is the port of who has asked (RFC 5508 REQ-1). `delta`: what the checksum changes by besides.
fn identifier(message: &mut [u8], family: Family, flow: &Flow, delta: u16) {
    let Some(head) = message.first_chunk_mut::<6>() else {
        return;
    };
    let mut delta = u64::from(delta);
    let new = if parse::is_query(family, head[0]) {
        Some(flow.source_port)
    } else if parse::is_answer(family, head[0]) {
        Some(flow.destination_port)
    } else {
        None
    };
    let old = u16::from_be_bytes([head[4], head[5]]);
    if let Some(new) = new.filter(|new| *new != old) {
        head[4..6].copy_from_slice(&new.to_be_bytes());
        delta += u64::from(new) + u64::from(!old);
    }
    add(&mut head[2..4], checksum::fold(delta));
}

/// Changes a checksum by what the words under it change by (RFC 1624, equation 3).
#[inline(always)]
fn add(field: &mut [u8], delta: u16) {
    let before = u16::from_be_bytes([field[0], field[1]]);
    let after = checksum::add(before, delta);
    field.copy_from_slice(&after.to_be_bytes());
}

/// The same for UDP: zero says that there is no checksum, and one that is zero is written as all ones (RFC 768).
#[inline(always)]
fn add_udp(field: &mut [u8], delta: u16) {
    let before = u16::from_be_bytes([field[0], field[1]]);
    if before == 0 {
        return;
    }
    let after = match checksum::add(before, delta) {
        0 => u16::MAX,
        after => after,
    };
    field.copy_from_slice(&after.to_be_bytes());
}
