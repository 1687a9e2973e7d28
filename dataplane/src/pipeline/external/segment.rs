//! The segment of an external network: what comes in there, ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861) for the addresses that this host
//! holds, questions for next hops, and announcements of addresses that are new here.

use std::sync::Arc;

use super::super::metadata;
use super::super::probes::Probes;
use super::super::slow_path::Entered;
use super::super::{
    Core, Destination, Entry, Io, Tables, gateway, gso, icmp_error, ip_fragment, rewrite,
};
use super::neighbors::{Neighbors, Question};
use super::wire;
use crate::encap::VXLAN_PORT;
use crate::numbers::Vni;
use crate::packet::checksum;
use crate::packet::parse::{self, ETHERNET, Family, IPV4_MAPPED, Inner, protocol, word_family};
use crate::packet::{DropReason, FrameMemory, Mac, Packet, Parsed};
use crate::pipeline::balancing;
use crate::session::Key;
use crate::session::table::{Ingress, Stamp};
use crate::snapshot::{Balancer, HeldBy, Link, Network, Outside, Translator};

/// Questions that are sent at a time.
pub(in crate::pipeline) const QUESTIONS: usize = 64;
/// Addresses that are announced at a time.
const ANNOUNCEMENTS: usize = 64;
/// How often a new address is announced (RFC 5227 §1.1, ANNOUNCE_NUM; RFC 4861 §10, MAX_NEIGHBOR_ADVERTISEMENT).
const ANNOUNCE_TIMES: u8 = 3;
/// Between two announcements of one address, in milliseconds.
const ANNOUNCE_INTERVAL: u32 = 1000;

/// Between two defences of addresses that somebody else claims, in milliseconds: two stations that both insist shall not fill the segment. RFC 5227 §1.1 has
/// ten seconds for each address.
const DEFEND_INTERVAL: u32 = 1000;

const ARP: usize = ETHERNET + 28;
const SOLICITATION: usize = ETHERNET + 40 + 32;
const ALL_NODES: u128 = 0xff02 << 112 | 1;

/// Announces addresses that are new on this host.
#[derive(Debug, Default)]
pub(in crate::pipeline) struct Announcer {
    /// What was held when it looked last.
    known: Arc<Outside>,
    /// Addresses to announce, each with how often yet, and when next.
    queue: Vec<(u16, u128, u8, u32)>,
    /// When an address was defended last.
    defended: Option<u32>,
    /// Gateway hosts that did not answer when it looked last.
    silent: Vec<u16>,
    /// Room for those that do not answer now.
    spare: Vec<u16>,
}

impl Announcer {
    /// Takes note of addresses that were not held before, or are on another interface now. The neighbours of a network whose interface has changed are
    /// asked again: it may lead to others.
    fn look(&mut self, outside: &Arc<Outside>, neighbors: &Neighbors, now: u32) {
        if Arc::ptr_eq(&self.known, outside) {
            return;
        }
        let before = std::mem::replace(&mut self.known, Arc::clone(outside));
        let link = |outside: &Outside, network| outside.network(network).and_then(|it| it.link);
        for network in (0u16..).take(outside.networks.len()) {
            let was = link(&before, network);
            if was.is_some() && was != link(outside, network) {
                neighbors.doubt(network, now);
            }
            let could_ask = |outside: &Outside| {
                let network = outside.network(network);
                network.is_some_and(|network| !network.own.is_empty())
            };
            if !could_ask(&before) && could_ask(outside) {
                neighbors.hurry(network, now);
            }
        }
        self.queue
            .retain(|(network, address, ..)| outside.held_on(*network, *address).is_some());
        let new = outside.held.iter().filter(|(address, held)| {
            before.held.get(*address).is_none_or(|old| {
                old.network != held.network
                    || before.held_since.get(*address) != outside.held_since.get(*address)
                    || link(&before, held.network) != link(outside, held.network)
            })
        });
        for (address, held) in new {
            neighbors.forget(held.network, *address);
            self.queue
                .push((held.network, *address, ANNOUNCE_TIMES, now));
        }
    }

    /// Announces the addresses of a network again when another of its gateway hosts is back: while the two did not hear each other, that one may have had them.
    fn look_at_gateways(&mut self, outside: &Outside, probes: &Probes, now: u32) {
        probes.silent(&mut self.spare);
        if self.spare == self.silent {
            return;
        }
        std::mem::swap(&mut self.spare, &mut self.silent);
        let before = &self.spare;
        let is_back = |peer: &u16| before.contains(peer) && !self.silent.contains(peer);
        let again = |network: u16| {
            let network = outside.network(network);
            network.is_some_and(|network| network.other_gateways().any(|peer| is_back(&peer)))
        };
        if !before.iter().any(is_back) {
            return;
        }
        self.queue.retain(|(network, ..)| !again(*network));
        let held = outside.held.iter().filter(|(_, held)| again(held.network));
        self.queue
            .extend(held.map(|(address, held)| (held.network, *address, ANNOUNCE_TIMES, now)));
    }
}

/// Whether this host holds addresses of a network as its gateway, and others stand in for it.
fn is_shared(tables: Tables<'_>, index: u16) -> bool {
    let network = tables.snapshot.outside.network(index);
    network.is_some_and(|network| {
        network.gateway == Translator::Here && network.other_gateways().next().is_some()
    })
}

/// Takes a VLAN tag off. Answers its VLAN, 0 where it has none.
fn untag(io: &mut impl Io, packet: &mut Packet) -> u16 {
    let frame = packet.bytes_mut(io);
    let Some([0x81, 0, high, low]) = frame.get(12..16) else {
        return 0;
    };
    let vlan = u16::from_be_bytes([*high, *low]) & 0x0fff;
    frame.copy_within(..12, 4);
    packet.start += 4;
    packet.len -= 4;
    vlan
}

/// The VLAN of a frame, 0 where it has none.
pub(in crate::pipeline) fn vlan_of(frame: &[u8]) -> u16 {
    match frame.get(12..16) {
        Some([0x81, 0, high, low]) => u16::from_be_bytes([*high, *low]) & 0x0fff,
        _ => 0,
    }
}

/// What the fast path knows of a packet that came from an external network, and of the next one to the same address.
#[derive(Debug, Clone, Copy)]
pub(in crate::pipeline) struct Arrival {
    destination: u128,
    own: Mac,
    stamp: Stamp,
    vni: Vni,
}

/// The stamp of what is decided for an untagged frame, and the VNI that it is in, if it can't be a tunnel packet, and an address that is held on the uplink is its
/// destination, or ports are on its network. `last`: the arrival of the frame before.
#[inline(never)]
pub(in crate::pipeline) fn arrival(
    tables: Tables<'_>,
    uplink: u16,
    frame: &[u8],
    last: &mut Option<Arrival>,
) -> Option<(Stamp, Vni)> {
    let head: &[u8; ETHERNET + 24] = frame.first_chunk()?;
    let (destination, protocol, port) = match [head[12], head[13], head[14]] {
        [0x08, 0x00, 0x45] => {
            let address = u32::from_be_bytes([head[30], head[31], head[32], head[33]]);
            let address = IPV4_MAPPED | u128::from(address);
            (address, head[23], [head[36], head[37]])
        }
        [0x86, 0xdd, _] => {
            let head: &[u8; ETHERNET + 44] = frame.first_chunk()?;
            let address = u128::from_be_bytes(std::array::from_fn(|i| head[38 + i]));
            (address, head[20], [head[56], head[57]])
        }
        _ => return None,
    };
    let is_no_tunnel = match protocol {
        protocol::TCP => true,
        protocol::UDP => u16::from_be_bytes(port) != VXLAN_PORT,
        _ => false,
    };
    if !is_no_tunnel {
        return None;
    }
    let arrival = match last {
        Some(last) if last.destination == destination => last,
        _ => last.insert(first_arrival(tables, uplink, destination)?),
    };
    // The slow path says that frames with our own MAC are not from there.
    let source = Mac::from_bytes(std::array::from_fn(|i| head[6 + i]));
    (source != arrival.own).then_some((arrival.stamp, arrival.vni))
}

/// The stamp of what is decided for a frame with the tag of a VLAN, and the VNI that it is in, if ports are on the network of the VLAN. The tag is off then, and
/// the frame begins as much later; `tag` keeps it.
pub(in crate::pipeline) fn tagged(
    tables: Tables<'_>,
    uplink: u16,
    frame: &mut [u8],
    tag: &mut u16,
) -> Option<(Stamp, Vni)> {
    let head: &mut [u8; 16] = frame.first_chunk_mut()?;
    if head[12..14] != [0x81, 0] {
        return None;
    }
    let tci = u16::from_be_bytes([head[14], head[15]]);
    let outside = &tables.snapshot.outside;
    // A tag of no VLAN says a priority alone: rare, and the slow path's.
    let network = *outside.by_link.get(&(uplink, tci & 0x0fff))?;
    let vpc = outside
        .network(network)?
        .vpc
        .filter(|_| tci & 0x0fff != 0)?;
    let vpc = tables.snapshot.vpcs.get(vpc)?;
    head.copy_within(..12, TAG);
    *tag = tci;
    Some((Stamp::new(vpc.epoch, Ingress::External(network)), vpc.vni))
}

/// Puts the tag back that [`tagged`] has taken off.
#[cold]
pub(in crate::pipeline) fn put_back(frame: &mut [u8], tag: u16) {
    if let Some(head) = frame.first_chunk_mut::<16>() {
        head.copy_within(TAG.., 0);
        let [high, low] = tag.to_be_bytes();
        head[12..].copy_from_slice(&[0x81, 0, high, low]);
    }
}

/// None too where the slow path counts what is sent to an address.
fn first_arrival(tables: Tables<'_>, uplink: u16, destination: u128) -> Option<Arrival> {
    let outside = &tables.snapshot.outside;
    let network = *outside.by_link.get(&(uplink, 0))?;
    let known = outside.network(network)?;
    let own = known.link?.mac;
    if let Some(vpc) = known.vpc {
        let vpc = tables.snapshot.vpcs.get(vpc)?;
        return Some(Arrival {
            destination,
            own,
            stamp: Stamp::new(vpc.epoch, Ingress::External(network)),
            vni: vpc.vni,
        });
    }
    let owner = outside.owner_on(network, destination)?;
    if outside.limits.has(destination) {
        return None;
    }
    let epoch = tables.snapshot.vpcs[owner.vpc].epoch;
    Some(Arrival {
        destination,
        own,
        stamp: Stamp::new(epoch, Ingress::External(network)),
        vni: Vni::OUTSIDE,
    })
}

impl Core {
    /// A frame from an uplink that is no tunnel packet: for an address that this host holds on an external network, or dropped for `reason` if the
    /// uplink has no such network.
    pub(in crate::pipeline) fn enter_from_segment(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        (uplink, reason): (u16, DropReason),
        packet: &mut Packet,
    ) -> Result<Entered, DropReason> {
        let outside = &tables.snapshot.outside;
        let vlan = vlan_of(packet.bytes(io));
        let index = *outside.by_link.get(&(uplink, vlan)).ok_or(reason)?;
        let network = outside.network(index).ok_or(reason)?;
        let link = network.link.ok_or(reason)?;
        untag(io, packet);
        let frame = packet.bytes_mut(io);
        if let Some(vpc) = network.vpc {
            return match parse::inner(frame)? {
                Inner::Arp => {
                    // Nobody there has the address at which this host serves its guests.
                    if frame.get(28..32) == Some(&metadata::IPV4.octets()[..]) {
                        return Err(DropReason::ExternalSpoofed);
                    }
                    let from = Mac::from_bytes(std::array::from_fn(|i| frame[6 + i]));
                    wire::check(&tables.snapshot.vpcs[vpc], destination(frame), from)?;
                    Ok(Entered::Neighbor(Ingress::External(index), vpc))
                }
                Inner::Ip(parsed) => {
                    rewrite::complete_checksum(frame, &parsed);
                    wire::entry(tables, (index, vpc), parsed).map(Entered::Ip)
                }
            };
        }
        match parse::inner(frame)? {
            Inner::Arp => self.arp(tables, io, (index, link), packet),
            Inner::Ip(parsed) if gateway::is_discovery(&parsed) => {
                self.discovery(tables, io, (index, link), &parsed, packet)
            }
            Inner::Ip(parsed) if is_own_ping(tables, index, &parsed) => {
                if parsed.eth_dst != link.mac {
                    return Err(DropReason::UnknownMac);
                }
                gateway::ping(frame, &parsed)?;
                if !self.may_answer_outside(index) {
                    return Err(DropReason::ReplyLimit);
                }
                tag(io, packet, link.vlan)?;
                Ok(Entered::Answer(Destination::Uplink(link.uplink)))
            }
            Inner::Ip(parsed) => {
                rewrite::complete_checksum(frame, &parsed);
                let entry = entry(tables, index, link, parsed)?;
                self.take_ingress(tables, &entry, packet.len)?;
                Ok(Entered::Ip(entry))
            }
        }
    }

    /// Takes a packet for an elastic IP from what that may be sent.
    fn take_ingress(&self, tables: Tables<'_>, entry: &Entry, len: u16) -> Result<(), DropReason> {
        let limits = &tables.snapshot.outside.limits;
        match limits.ingress(entry.parsed.flow.destination) {
            Some(limit) => limit
                .take(len, self.now)
                .map_err(|_| DropReason::ElasticIpIngress),
            None => Ok(()),
        }
    }

    /// Takes a packet that leaves from what its source, an elastic IP, may send.
    fn take_egress(&self, tables: Tables<'_>, frame: &[u8]) -> Result<(), DropReason> {
        let limits = &tables.snapshot.outside.limits;
        if limits.0.is_empty() {
            return Ok(());
        }
        let limit = source_of(frame).and_then(|source| limits.egress(source));
        match limit {
            Some(limit) => limit
                .take(frame.len() as u16, self.now)
                .map_err(|_| DropReason::ElasticIpEgress),
            None => Ok(()),
        }
    }

    fn arp(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        (index, link): (u16, Link),
        packet: &mut Packet,
    ) -> Result<Entered, DropReason> {
        let outside = &tables.snapshot.outside;
        let frame = packet.bytes_mut(io);
        let message: &mut [u8; ARP] = frame
            .get_mut(..ARP)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(DropReason::ArpMalformed)?;
        if message[14..20] != [0, 1, 8, 0, 6, 4] {
            return Err(DropReason::ArpMalformed);
        }
        let mac_at = |at: usize| Mac::from_bytes(std::array::from_fn(|i| message[at + i]));
        let address_at = |at: usize| {
            IPV4_MAPPED | u128::from(u32::from_be_bytes(std::array::from_fn(|i| message[at + i])))
        };
        let (eth_dst, sender_mac) = (mac_at(0), mac_at(22));
        let (sender, target) = (address_at(28), address_at(38));
        if sender_mac == link.mac {
            // Our own, come back.
            return Err(DropReason::ArpUnanswered);
        }
        if outside.held_on(index, sender).is_some() {
            // Somebody else claims an address of ours: it is defended (RFC 5227 §2.4 (c)).
            self.defend(tables, io, (index, link), sender);
            return Err(DropReason::ExternalSpoofed);
        }
        let is_answer =
            message[21] == 2 && eth_dst == link.mac && outside.held_on(index, target).is_some();
        let neighbors = tables.neighbors;
        neighbors.learn(index, sender, sender_mac, is_answer, self.now);
        let is_question = message[20..22] == [0, 1] && sender != target;
        if !is_question
            || outside.held_on(index, target).is_none()
            || !self.has_addresses(tables, index)
        {
            return Err(DropReason::ArpUnanswered);
        }
        if !self.may_answer_outside(index) {
            return Err(DropReason::ReplyLimit);
        }
        message[..6].copy_from_slice(&sender_mac.bytes());
        message[6..12].copy_from_slice(&link.mac.bytes());
        message[21] = 2;
        message.copy_within(22..32, 32);
        message[22..28].copy_from_slice(&link.mac.bytes());
        message[28..32].copy_from_slice(&(target as u32).to_be_bytes());
        packet.len = ARP as u16;
        tag(io, packet, link.vlan)?;
        Ok(Entered::Answer(Destination::Uplink(link.uplink)))
    }

    fn discovery(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        (index, link): (u16, Link),
        parsed: &Parsed,
        packet: &mut Packet,
    ) -> Result<Entered, DropReason> {
        if parsed.fragment.is_some() {
            return Err(DropReason::NeighborMalformed);
        }
        let outside = &tables.snapshot.outside;
        let frame = packet.bytes(io);
        let message = gateway::checked(frame, parsed)?;
        let target: [u8; 16] = message
            .get(8..24)
            .and_then(|target| target.try_into().ok())
            .ok_or(DropReason::NeighborMalformed)?;
        let target = u128::from_be_bytes(target);
        let options = message.get(24..).unwrap_or_default();
        let (source, now) = (parsed.flow.source, self.now);
        match parsed.icmp >> 8 {
            135 => {
                if outside.held_on(index, source).is_some() {
                    return Err(DropReason::ExternalSpoofed);
                }
                if let Some(mac) = gateway::source_option(options) {
                    tables.neighbors.learn(index, source, mac, false, now);
                }
            }
            136 => {
                if outside.held_on(index, target).is_some() && parsed.eth_src != link.mac {
                    self.defend(tables, io, (index, link), target);
                    return Err(DropReason::ExternalSpoofed);
                }
                let is_solicited = message[4] & 0x40 != 0
                    && outside.held_on(index, parsed.flow.destination).is_some();
                let mac = gateway::target_option(options).unwrap_or(parsed.eth_src);
                tables
                    .neighbors
                    .learn(index, target, mac, is_solicited, now);
                return Err(DropReason::NeighborUnanswered);
            }
            _ => return Err(DropReason::NeighborUnanswered),
        }
        if outside.held_on(index, target).is_none() || !self.has_addresses(tables, index) {
            return Err(DropReason::NeighborUnanswered);
        }
        if !self.may_answer_outside(index) {
            return Err(DropReason::ReplyLimit);
        }
        if packet.len < parsed.l4 + 32 {
            packet.len = parsed.l4 + 32;
        }
        let start = usize::from(packet.start);
        let area = io.bytes_mut(&mut packet.frame);
        let frame = area
            .get_mut(start..start + usize::from(parsed.l4) + 32)
            .ok_or(DropReason::NeighborMalformed)?;
        packet.len = gateway::advertise_router(frame, parsed, link.mac, target);
        tag(io, packet, link.vlan)?;
        Ok(Entered::Answer(Destination::Uplink(link.uplink)))
    }

    /// Whether one more answer may be sent on an external network.
    fn may_answer_outside(&mut self, network: u16) -> bool {
        self.external.take(network.into(), self.now)
    }

    /// Whether the addresses that the snapshot holds on a network are still this host's. One that stood still answers for none that another gateway host may
    /// have by now, be it a question that has waited here meanwhile.
    fn has_addresses(&self, tables: Tables<'_>, network: u16) -> bool {
        !is_shared(tables, network) || self.probes.is_gateway(self.now)
    }

    /// Says whose an address is that somebody else has claimed; not while that may be the gateway host that stands in for this one.
    fn defend(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        (index, link): (u16, Link),
        address: u128,
    ) {
        let since = self.announcer.defended;
        let is_due = since.is_none_or(|at| self.now.wrapping_sub(at) >= DEFEND_INTERVAL);
        let may_defend = || !is_shared(tables, index) || self.probes.may_defend(self.now);
        if is_due && may_defend() && self.may_answer_outside(index) {
            self.announcer.defended = Some(self.now);
            let traffic = self.counters.uplink(link.uplink);
            if announce(io, link, address) {
                traffic.generated.add(1);
            }
        }
    }

    /// Sends a packet onto an external network; one in a large frame in pieces.
    pub(in crate::pipeline) fn send_external(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        link: Link,
    ) {
        if !packet.frame.is_large() {
            // A port on the wire sends as itself, whoever has its address elsewhere.
            let passes = if tables.snapshot.vpcs[entry.vpc].wire.is_some() {
                Ok(())
            } else {
                self.take_egress(tables, packet.bytes(io))
            };
            return match passes.and_then(|()| tag(io, &mut packet, link.vlan)) {
                Ok(()) => io.send(Destination::Uplink(link.uplink), packet),
                Err(reason) => self.drop(tables, io, packet, entry.ingress, reason),
            };
        }
        let apart = gso::take_apart(io, packet, |io, piece| {
            self.send_external(tables, io, piece, entry, link);
        });
        self.account(tables, io, entry.ingress, apart);
    }

    /// A packet that has left for an address which this host holds itself: it comes in as from the segment.
    pub(in crate::pipeline) fn come_back(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        mut packet: Packet,
        before: &Entry,
    ) {
        if packet.frame.is_large() {
            let mut pieces = Vec::new();
            let apart = gso::take_apart(io, packet, |_, piece| pieces.push(piece));
            self.account(tables, io, before.ingress, apart);
            for piece in pieces {
                self.come_back(tables, io, piece, before);
            }
            return;
        }
        let len = packet.len;
        let frame = packet.bytes_mut(io);
        let entered = self.take_egress(tables, frame).and_then(|()| {
            let Inner::Ip(parsed) = parse::inner(frame)? else {
                return Err(DropReason::EtherType);
            };
            let held = tables.snapshot.outside.held.get(&parsed.flow.destination);
            if held.is_some_and(|held| is_own_ping(tables, held.network, &parsed)) {
                gateway::ping(frame, &parsed)?;
                let Inner::Ip(reply) = parse::inner(frame)? else {
                    return Err(DropReason::EtherType);
                };
                let entry = came_back(tables, reply)?;
                self.take_ingress(tables, &entry, len)?;
                return Ok(entry);
            }
            let entry = came_back(tables, parsed)?;
            self.take_ingress(tables, &entry, len)?;
            Ok(entry)
        });
        match entered {
            Ok(entry) => self.forward(tables, io, packet, &entry),
            Err(reason) => self.drop(tables, io, packet, before.ingress, reason),
        }
    }

    /// Reports a packet from an external network to its sender, from the address that it was for.
    pub(in crate::pipeline) fn report_outside(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        network: u16,
        problem: icmp_error::Problem,
    ) {
        let reason = problem.reason();
        let known = tables.snapshot.outside.network(network);
        let link = known.and_then(|network| network.link);
        let Some(link) = link.filter(|_| icmp_error::may_report(&entry.parsed)) else {
            return self.drop(tables, io, packet, entry.ingress, reason);
        };
        if !self.may_answer_outside(network) {
            return self.drop(tables, io, packet, entry.ingress, DropReason::ReplyLimit);
        }
        let gateway = (link.mac, entry.parsed.flow.destination);
        let traffic = self.counters.uplink(link.uplink);
        if entry.parsed.eth_src == link.mac {
            // It has come back from this host itself, and so does the error.
            if !icmp_error::turn(io, &mut packet, &entry.parsed, gateway, problem) {
                return self.drop(tables, io, packet, entry.ingress, reason);
            }
            traffic.drop(reason);
            traffic.generated.add(1);
            return self.come_back(tables, io, packet, entry);
        }
        if !icmp_error::turn(io, &mut packet, &entry.parsed, gateway, problem)
            || tag(io, &mut packet, link.vlan).is_err()
        {
            return self.drop(tables, io, packet, entry.ingress, reason);
        }
        traffic.drop(reason);
        traffic.generated.add(1);
        io.send(Destination::Uplink(link.uplink), packet);
    }

    /// Sends the questions that have come up.
    #[cold]
    pub(in crate::pipeline) fn ask_neighbors(&mut self, tables: Tables<'_>, io: &mut impl Io) {
        let mut questions = std::mem::take(&mut self.questions);
        for question in questions.drain(..) {
            let network = tables.snapshot.outside.network(question.network);
            if let Some(network) = network
                && let Some(link) = network.link
                && ask(io, network, link, &question)
            {
                self.counters.uplink(link.uplink).generated.add(1);
            }
        }
        self.questions = questions;
    }

    /// What is done now and then: next hops are kept known, new addresses announced, ports of NAT gateways given back.
    pub(in crate::pipeline) fn tend_external(&mut self, tables: Tables<'_>, io: &mut impl Io) {
        /// Mappings that are looked at in one go: all of a million in some seconds.
        const MAPPINGS: usize = 16 * 1024;
        let outside = &tables.snapshot.outside;
        if outside.networks.is_empty() && self.announcer.known.networks.is_empty() {
            return;
        }
        tables.sessions.mappings().sweep(MAPPINGS, self.now);
        for (index, network) in outside.networks.iter().enumerate() {
            let Some(network) = network else { continue };
            for gateway in &network.gateways {
                let has_own = network.own(word_family(*gateway)).is_some();
                let index = index as u16;
                if network.link.is_some()
                    && has_own
                    && self.questions.len() < self.questions.capacity()
                    && tables.neighbors.find(index, *gateway).is_none()
                    && tables.neighbors.ask(index, *gateway, self.now)
                {
                    self.questions.push(Question {
                        network: index,
                        address: *gateway,
                        at: None,
                    });
                }
            }
        }
        tables.neighbors.due(self.now, &mut self.questions);
        self.ask_neighbors(tables, io);
        self.announcer.look(outside, tables.neighbors, self.now);
        self.announcer
            .look_at_gateways(outside, &self.probes, self.now);
        self.announce_new(tables, io);
    }

    fn announce_new(&mut self, tables: Tables<'_>, io: &mut impl Io) {
        let outside = &tables.snapshot.outside;
        let mut queue = std::mem::take(&mut self.announcer.queue);
        let mut room = ANNOUNCEMENTS;
        queue.retain_mut(|(network, address, times, next)| {
            if room == 0 || (self.now.wrapping_sub(*next) as i32) < 0 {
                return true;
            }
            room -= 1;
            let link = outside.network(*network).and_then(|network| network.link);
            let link = link.filter(|_| self.has_addresses(tables, *network));
            if let Some(link) = link
                && announce(io, link, *address)
            {
                self.counters.uplink(link.uplink).generated.add(1);
            }
            *times -= 1;
            *next = self.now.wrapping_add(ANNOUNCE_INTERVAL);
            *times > 0
        });
        self.announcer.queue = queue;
    }
}

/// Whether a packet is a ping to an address of a network that no port has, and that answers. The whole in one packet: what belongs to a fragment, another flow
/// may know better.
pub(in crate::pipeline) fn is_own_ping(tables: Tables<'_>, index: u16, parsed: &Parsed) -> bool {
    let outside = &tables.snapshot.outside;
    let request = match (parsed.family, parsed.flow.protocol) {
        (Family::Ipv4, protocol::ICMP) => 8 << 8,
        (Family::Ipv6, protocol::ICMPV6) => 128 << 8,
        _ => return false,
    };
    let held = || outside.held_on(index, parsed.flow.destination);
    parsed.icmp == request
        && parsed.fragment.is_none()
        && outside.network(index).is_some_and(|it| it.answers_pings)
        && held().is_some_and(|held| match held.by {
            HeldBy::ElasticIp(_) => false,
            HeldBy::Balancer => held.vpc.is_some_and(|vpc| {
                let balancer = balancing::at(&tables.snapshot.vpcs[vpc], parsed.flow.destination);
                balancer.is_some_and(Balancer::serves)
            }),
            HeldBy::NatGateway(_) | HeldBy::Network => true,
        })
}

/// The source address of an IP packet.
fn source_of(frame: &[u8]) -> Option<u128> {
    match frame.get(12..14)? {
        [0x08, 0x00] => {
            let address = frame.get(ETHERNET + 12..ETHERNET + 16)?;
            let address = u32::from_be_bytes(address.try_into().ok()?);
            Some(IPV4_MAPPED | u128::from(address))
        }
        [0x86, 0xdd] => {
            let address = frame.get(ETHERNET + 8..ETHERNET + 24)?;
            Some(u128::from_be_bytes(address.try_into().ok()?))
        }
        _ => None,
    }
}

/// A packet from an external network, if it is for an address that is held there.
pub(in crate::pipeline) fn entry(
    tables: Tables<'_>,
    index: u16,
    link: Link,
    parsed: Parsed,
) -> Result<Entry, DropReason> {
    let outside = &tables.snapshot.outside;
    if parsed.eth_dst != link.mac {
        return Err(DropReason::UnknownMac);
    }
    // Our own addresses are on this host, whatever network they are of.
    if outside.is_here(parsed.flow.source) {
        return Err(DropReason::ExternalSpoofed);
    }
    enter(tables, index, parsed, Vni::OUTSIDE)
}

/// A packet from a VPC of this host to an address that the host holds.
fn came_back(tables: Tables<'_>, parsed: Parsed) -> Result<Entry, DropReason> {
    let (snapshot, outside) = (tables.snapshot, &tables.snapshot.outside);
    let owner = outside.owner(parsed.flow.destination);
    let owner = owner.filter(|owner| {
        let network = outside.network(owner.network);
        network.is_some_and(|network| network.link.is_some())
    });
    let owner = owner.ok_or(DropReason::ExternalUnheld)?;
    if !owner.as_it_is {
        let from = super::known_as(snapshot, parsed.flow.source);
        return enter(tables, owner.network, parsed, from);
    }
    // Ports of one VPC reach each other within it.
    let sender = outside.owner(parsed.flow.source);
    if sender.is_some_and(|sender| sender.as_it_is && sender.vpc == owner.vpc) {
        return Err(DropReason::TranslationClash);
    }
    let own = snapshot.vpcs[owner.vpc].vni;
    enter(tables, owner.network, parsed, own)
}

/// A packet to an address that is held on a network. `from`: the VNI that it is known by, see [`super::beyond`].
fn enter(tables: Tables<'_>, index: u16, parsed: Parsed, from: Vni) -> Result<Entry, DropReason> {
    let outside = &tables.snapshot.outside;
    let held = outside.owner_on(index, parsed.flow.destination);
    let held = held.ok_or(DropReason::ExternalUnheld)?;
    let vpc = &tables.snapshot.vpcs[held.vpc];
    if super::is_inside(tables.snapshot, vpc, parsed.flow.source) {
        return Err(DropReason::ExternalSpoofed);
    }
    Ok(Entry {
        parsed,
        key: Key::new(tables.sessions.seeds(), &parsed.flow, from),
        ingress: Ingress::External(index),
        vpc: held.vpc,
        vni: from,
        outer_class: None,
    })
}

/// Bytes of a VLAN's tag.
pub(in crate::pipeline) const TAG: usize = parse::VLAN_TAG;

/// Puts the tag of a VLAN on, if there is one.
///
/// # Errors
/// The frame is too long for a tag, or has no room ahead of it; it is as it was then.
pub(in crate::pipeline) fn tag(
    io: &mut impl FrameMemory,
    packet: &mut Packet,
    vlan: u16,
) -> Result<(), DropReason> {
    if vlan == 0 {
        return Ok(());
    }
    let start = usize::from(packet.start);
    let len = packet
        .len
        .checked_add(TAG as u16)
        .ok_or(DropReason::TooBig)?;
    if !write_tag(io.bytes_mut(&mut packet.frame), start, vlan) {
        return Err(DropReason::NoBuffer);
    }
    packet.start -= TAG as u16;
    packet.len = len;
    Ok(())
}

/// Writes the tag of a VLAN into a frame that starts here in its buffer, and then as much before. False where there is no room.
#[inline]
pub(in crate::pipeline) fn write_tag(area: &mut [u8], start: usize, vlan: u16) -> bool {
    let frame = start
        .checked_sub(TAG)
        .and_then(|start| area.get_mut(start..));
    let Some(head) = frame.and_then(|frame| frame.first_chunk_mut::<16>()) else {
        return false;
    };
    head.copy_within(4..16, 0);
    let [high, low] = vlan.to_be_bytes();
    head[12..16].copy_from_slice(&[0x81, 0, high, low]);
    true
}

/// The destination MAC of a frame; of one that is none, one that nobody has.
pub(in crate::pipeline) fn destination(frame: &[u8]) -> Mac {
    let head = frame.first_chunk().copied().unwrap_or_default();
    Mac::from_bytes(head)
}

/// Sends a frame of our own; false where no buffer is free.
fn send(io: &mut impl Io, link: Link, frame: &[u8]) -> bool {
    let Some(mut packet) = ip_fragment::room_for(io, frame.len()) else {
        return false;
    };
    packet.bytes_mut(io).copy_from_slice(frame);
    if tag(io, &mut packet, link.vlan).is_err() {
        io.free(packet.frame);
        return false;
    }
    io.send(Destination::Uplink(link.uplink), packet);
    true
}

fn broadcast() -> Mac {
    Mac::from_bytes([0xff; 6])
}

/// Asks for the MAC of a neighbour.
fn ask(io: &mut impl Io, network: &Network, link: Link, question: &Question) -> bool {
    let family = word_family(question.address);
    let Some(own) = network.own(family) else {
        return false;
    };
    match family {
        Family::Ipv4 => {
            let to = question.at.unwrap_or(broadcast());
            send(
                io,
                link,
                &arp_frame(1, to, (link.mac, own), question.address),
            )
        }
        Family::Ipv6 => {
            // The solicited-node address (RFC 4291 §2.7.1).
            let group = 0xff02 << 112 | 0x1_ff00_0000 | (question.address & 0xff_ffff);
            let group_mac = Mac::from_word(0x3333_0000_0000 | (group as u64 & 0xffff_ffff));
            let (to, destination) = match question.at {
                Some(mac) => (mac, question.address),
                None => (group_mac, group),
            };
            let ends = ((link.mac, own), (to, destination));
            send(
                io,
                link,
                &discovery_frame(135, 0, ends, question.address, 1),
            )
        }
    }
}

/// Announces an address: a gratuitous ARP request (RFC 5227 §3), or an unsolicited advertisement (RFC 4861 §7.2.6).
fn announce(io: &mut impl Io, link: Link, address: u128) -> bool {
    match word_family(address) {
        Family::Ipv4 => send(
            io,
            link,
            &arp_frame(1, broadcast(), (link.mac, address), address),
        ),
        Family::Ipv6 => {
            let to = (Mac::from_word(0x3333_0000_0001), ALL_NODES);
            let ends = ((link.mac, address), to);
            // Router, override.
            send(io, link, &discovery_frame(136, 0xa0, ends, address, 2))
        }
    }
}

fn arp_frame(operation: u8, to: Mac, (mac, sender): (Mac, u128), target: u128) -> [u8; ARP] {
    let mut frame = [0; ARP];
    frame[..6].copy_from_slice(&to.bytes());
    frame[6..12].copy_from_slice(&mac.bytes());
    frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame[22..28].copy_from_slice(&mac.bytes());
    frame[28..32].copy_from_slice(&(sender as u32).to_be_bytes());
    frame[38..42].copy_from_slice(&(target as u32).to_be_bytes());
    frame
}

/// A solicitation (135) or advertisement (136) with one option: the source's (1) or the target's (2) link-layer address.
fn discovery_frame(
    kind: u8,
    flags: u8,
    ((mac, source), (to, destination)): ((Mac, u128), (Mac, u128)),
    target: u128,
    option: u8,
) -> [u8; SOLICITATION] {
    let mut frame = [0; SOLICITATION];
    frame[..6].copy_from_slice(&to.bytes());
    frame[6..12].copy_from_slice(&mac.bytes());
    frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
    let (head, message) = frame.split_at_mut(ETHERNET + 40);
    let ip = &mut head[ETHERNET..];
    ip[4..8].copy_from_slice(&[0, 32, protocol::ICMPV6, 255]);
    ip[8..24].copy_from_slice(&source.to_be_bytes());
    ip[24..40].copy_from_slice(&destination.to_be_bytes());
    message[0] = kind;
    message[4] = flags;
    message[8..24].copy_from_slice(&target.to_be_bytes());
    message[24..26].copy_from_slice(&[option, 1]);
    message[26..32].copy_from_slice(&mac.bytes());
    let pseudo = checksum::pseudo_header(Family::Ipv6, source, destination, protocol::ICMPV6, 32);
    let sum = checksum::finish(pseudo + checksum::sum(message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    frame
}
