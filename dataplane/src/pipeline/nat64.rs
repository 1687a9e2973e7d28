//! NAT64: packets between an IPv6 port and the IPv4 outside (RFC 6146). What they become is in their session, like every translation; here the header of
//! one family takes the place of the other's (RFC 7915), in a frame of its own. That is a way of its own behind the session: no other packet pays for it.
//!
//! IPv4 addresses stand in the last 32 bits of the gateway's prefix (RFC 6052 §2.2, /96).

use super::egress::{self, Obstacle};
use super::icmp_error::Problem;
use super::translate::{Change, Decision};
use super::{Core, Entry, Io, Tables, gso, ip_fragment, rewrite};
use crate::packet::checksum;
use crate::packet::parse::{
    self, ETHERNET, Family, IPV4_MAPPED, Inner, Parsed, protocol, tcp_flags,
};
use crate::packet::{DropReason, FrameMemory, Packet};
use crate::session::Translation;

const LOW: u128 = 0xffff_ffff;
/// The longest headers that are written ahead of what is copied: Ethernet, IPv6 with a fragment header, ICMP, and the IPv6 header of a quote.
const MOST_HEADERS: usize = ETHERNET + 48 + 8 + 40;
/// Up to this length an IPv4 packet may be fragmented behind the translator (RFC 7915 §5.1).
const MAY_BE_FRAGMENTED: usize = 1260;
const LEAST_MTU: u32 = 1280;

/// The IPv4 address that an address of the prefix stands for.
pub(super) fn extract(prefix: u128, address: u128) -> Option<u128> {
    (address & !LOW == prefix).then_some(IPV4_MAPPED | address & LOW)
}

/// The address of the prefix that stands for an IPv4 address.
pub(super) fn embed(prefix: u128, address: u128) -> u128 {
    prefix | address & LOW
}

/// Whether an IPv4 address may stand behind the prefix: one that a host may have; behind the well-known prefix a global one (RFC 6052 §3.1).
pub(super) fn may_be_reached(prefix: u128, address: u128) -> bool {
    const WELL_KNOWN: u128 = 0x0064_ff9b << 96;
    let address = std::net::Ipv4Addr::from(address as u32);
    let is_host = !address.is_unspecified()
        && !address.is_loopback()
        && !address.is_multicast()
        && !address.is_link_local()
        && address.octets()[0] != 0
        && address.octets()[0] < 240;
    is_host && (prefix != WELL_KNOWN || !address.is_private())
}

/// The number of a protocol in the other family.
pub(super) fn protocol_in(family: Family, number: u8) -> u8 {
    match (family, number) {
        (Family::Ipv4, protocol::ICMPV6) => protocol::ICMP,
        (Family::Ipv6, protocol::ICMP) => protocol::ICMPV6,
        _ => number,
    }
}

/// Type and code of an ICMP message of `family` in the other one (RFC 7915 §4.2, §5.2).
pub(super) fn icmp_across(family: Family, icmp: u16) -> Option<u16> {
    let [kind, code] = icmp.to_be_bytes();
    let (kind, code) = match family {
        Family::Ipv4 => match (kind, code) {
            (8, _) => (128, 0),
            (0, _) => (129, 0),
            (3, 0 | 1 | 5..=8 | 11 | 12) => (1, 0),
            (3, 2) => (4, 1),
            (3, 3) => (1, 4),
            (3, 4) => (2, 0),
            (3, 9 | 10 | 13 | 15) => (1, 1),
            (11, code) => (3, code),
            (12, 0 | 2) => (4, 0),
            _ => return None,
        },
        Family::Ipv6 => match (kind, code) {
            (128, _) => (8, 0),
            (129, _) => (0, 0),
            (1, 0 | 2 | 3) => (3, 1),
            (1, 1) => (3, 10),
            (1, 4) => (3, 3),
            (2, _) => (3, 4),
            (3, code) => (11, code),
            (4, 0) => (12, 0),
            (4, 1) => (3, 2),
            _ => return None,
        },
    };
    Some(u16::from_be_bytes([kind, code]))
}

/// The packet as policy sees it once it has these addresses.
pub(super) fn seen(parsed: &Parsed, after: &crate::packet::Flow) -> Parsed {
    let mut seen = Parsed {
        flow: *after,
        ..*parsed
    };
    if after.family() != parsed.family {
        seen.family = after.family();
        if matches!(after.protocol, protocol::ICMP | protocol::ICMPV6) {
            seen.icmp = icmp_across(parsed.family, parsed.icmp).unwrap_or(parsed.icmp);
        }
    }
    seen
}

/// Bytes of IP packet in the other family.
pub(super) fn length(parsed: &Parsed) -> u16 {
    let payload = parsed.end - parsed.l4;
    match (parsed.family, parsed.fragment) {
        (Family::Ipv6, _) => payload + 20,
        (Family::Ipv4, None) => payload.saturating_add(40),
        (Family::Ipv4, Some(_)) => payload.saturating_add(48),
    }
}

/// The family that a packet leaves in, if that is another than it came in.
#[inline]
pub(super) fn crosses(decision: &Decision, family: Family) -> bool {
    match &decision.change {
        Change::None => false,
        Change::Flow(to) | Change::Error(to, _) => to.flow.family() != family,
    }
}

impl Core {
    /// Sends a packet that leaves in the other family.
    #[cold]
    #[inline(never)]
    pub(super) fn cross(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        decision: &Decision,
    ) {
        if packet.frame.is_large() {
            return self.cross_in_pieces(tables, io, packet, entry, decision);
        }
        let mut entry = *entry;
        if let Some(outer) = entry.outer_class.take() {
            let frame = packet.bytes_mut(io);
            match rewrite::propagate_congestion(frame, &entry.parsed, outer) {
                Ok(class) => entry.parsed.traffic_class = class,
                Err(reason) => return self.drop(tables, io, packet, entry.ingress, reason),
            }
        }
        let parsed = &entry.parsed;
        self.identification = self.identification.wrapping_add(1);
        let made = make(io, &packet, parsed, &decision.change, self.identification);
        let mut made = match made {
            Ok(made) => made,
            Err(reason) => return self.drop(tables, io, packet, entry.ingress, reason),
        };
        let after = match parse::inner(made.bytes(io)) {
            Ok(Inner::Ip(after)) => after,
            other => {
                io.free(made.frame);
                let reason = other.err().unwrap_or(DropReason::EtherType);
                return self.drop(tables, io, packet, entry.ingress, reason);
            }
        };
        let way = egress::way(
            tables,
            &self.device_mtus,
            (&decision.action, entry.key.hash),
            (parsed.ttl, after.ip_len()),
        );
        let (onward, narrow) = match way {
            Ok(onward) => (onward, None),
            Err(Obstacle::TooBig(mtu, onward)) => (onward, Some(mtu)),
            Err(Obstacle::TimeExceeded) => {
                io.free(made.frame);
                return self.report_expired(tables, io, packet, &entry, decision);
            }
            Err(obstacle) => {
                io.free(made.frame);
                return self.drop(tables, io, packet, entry.ingress, obstacle.reason());
            }
        };
        let new = Entry {
            parsed: after,
            ..entry
        };
        if let Some(mtu) = narrow
            && (after.family == Family::Ipv6 || after.dont_fragment || !self.fragment)
        {
            io.free(made.frame);
            if parsed.family == Family::Ipv4 && !parsed.dont_fragment && self.fragment {
                return self.cross_in_fragments(tables, io, packet, &entry, decision, mtu);
            }
            // What the sender may send is longer or shorter by the difference of the headers (RFC 7915 §4.2, §5.2).
            let mtu = match parsed.family {
                Family::Ipv6 => mtu.saturating_add(20),
                Family::Ipv4 => mtu.saturating_sub(20),
            };
            return self.too_big(tables, io, packet, &entry, decision, (mtu, onward, false));
        }
        let as_it_is = Decision::from(decision.action);
        let frame = made.bytes_mut(io);
        let class = match egress::change(frame, &new, &as_it_is, false) {
            Ok(class) => class,
            Err(reason) => {
                io.free(made.frame);
                return self.drop(tables, io, packet, entry.ingress, reason);
            }
        };
        if after.tcp_flags & tcp_flags::SYN != 0 {
            self.clamp(tables, frame, &new, onward, false);
        }
        let header = (decision.vni(entry.vni), class);
        let Some(mtu) = narrow else {
            io.free(packet.frame);
            return self.send_on(tables, io, made, &new, header, onward);
        };
        match ip_fragment::split(io, &made, &after, mtu) {
            Ok(pieces) => {
                let traffic = self.traffic(tables, entry.ingress);
                traffic.generated.add(pieces.len() as u64 - 1);
                io.free(made.frame);
                io.free(packet.frame);
                for piece in pieces {
                    self.send_on(tables, io, piece, &new, header, onward);
                }
            }
            Err(reason) => {
                io.free(made.frame);
                self.drop(tables, io, packet, entry.ingress, reason);
            }
        }
    }

    /// A segment that its sender left to be split: each piece by itself.
    fn cross_in_pieces(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        decision: &Decision,
    ) {
        let mut pieces = Vec::new();
        let apart = gso::take_apart(io, packet, |_, piece| pieces.push(piece));
        self.account(tables, io, entry.ingress, apart);
        for piece in pieces {
            self.cross_piece(tables, io, piece, entry, decision);
        }
    }

    /// An IPv4 packet that is too long for the IPv6 side and may be fragmented: the pieces cross (RFC 7915 §4).
    fn cross_in_fragments(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        decision: &Decision,
        mtu: u16,
    ) {
        match ip_fragment::split(io, &packet, &entry.parsed, mtu.saturating_sub(28)) {
            Ok(pieces) => {
                let traffic = self.traffic(tables, entry.ingress);
                traffic.generated.add(pieces.len() as u64 - 1);
                io.free(packet.frame);
                for piece in pieces {
                    self.cross_piece(tables, io, piece, entry, decision);
                }
            }
            Err(reason) => self.drop(tables, io, packet, entry.ingress, reason),
        }
    }

    fn cross_piece(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        piece: Packet,
        entry: &Entry,
        decision: &Decision,
    ) {
        match parse::inner(piece.bytes(io)) {
            Ok(Inner::Ip(mut parsed)) => {
                // A later fragment has no ports of its own.
                parsed.flow = entry.parsed.flow;
                let entry = Entry { parsed, ..*entry };
                self.cross(tables, io, piece, &entry, decision);
            }
            _ => self.drop(
                tables,
                io,
                piece,
                entry.ingress,
                DropReason::OffloadMalformed,
            ),
        }
    }

    fn report_expired(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        decision: &Decision,
    ) {
        use crate::session::table::{Egress, Ingress};

        let leaves = matches!(decision.action.egress(), Egress::External(_));
        match entry.ingress {
            Ingress::Peer(_) if leaves => {
                self.report_to_sender(tables, io, packet, entry, Problem::TimeExceeded);
            }
            _ => self.report(tables, io, packet, entry, Problem::TimeExceeded),
        }
    }
}

/// The packet in the other family, in a frame of its own.
fn make(
    memory: &mut impl FrameMemory,
    packet: &Packet,
    parsed: &Parsed,
    change: &Change,
    identification: u16,
) -> Result<Packet, DropReason> {
    let untranslatable = DropReason::Nat64Untranslatable;
    let (to, quoted) = match change {
        Change::None => return Err(untranslatable),
        Change::Flow(to) => (to, None),
        Change::Error(to, quoted) => (to, Some(quoted)),
    };
    let frame = packet.bytes(memory);
    if parsed.family == Family::Ipv6 {
        check_extensions(frame, parsed)?;
    }
    let is_icmp = matches!(to.flow.protocol, protocol::ICMP | protocol::ICMPV6);
    if is_icmp && parsed.fragment.is_some() {
        // Its checksum covers a length that no fragment says (RFC 7915 §1.2).
        return Err(untranslatable);
    }
    let (l4, end) = (usize::from(parsed.l4), usize::from(parsed.end));
    let mut head = [0; MOST_HEADERS];
    head[..12].copy_from_slice(&frame[..12]);
    let ip_header = match (to.flow.family(), parsed.fragment) {
        (Family::Ipv4, _) => 20,
        (Family::Ipv6, None) => 40,
        (Family::Ipv6, Some(_)) => 48,
    };
    let l4_new = ETHERNET + ip_header;
    // What comes after the headers that are written anew, and how many of these there are.
    let (mut from, mut written) = (l4, l4_new);
    let mut until = end;
    if let Some(quoted) = quoted {
        let message = &frame[l4..end];
        let (quote, skipped) = error(message, parsed, quoted, &mut head[l4_new..])?;
        written += quote;
        from += skipped;
        let most = match to.flow.family() {
            Family::Ipv4 => 576 - 20,
            Family::Ipv6 => 1280 - 40,
        };
        until = until.min(from + most - (written - l4_new));
    }
    let payload = until - from;
    let total = written + payload;
    header(
        &mut head[..l4_new],
        parsed,
        to,
        total - ETHERNET,
        identification,
    );
    let mut made = ip_fragment::room_for(memory, total).ok_or(DropReason::NoBuffer)?;
    let at = usize::from(made.start);
    memory.copy(
        (&packet.frame, usize::from(packet.start) + from),
        (&mut made.frame, at + written),
        payload,
    );
    let old = if is_icmp && quoted.is_none() {
        transport_sum(packet.bytes(memory), parsed)
    } else {
        0
    };
    let bytes = made.bytes_mut(memory);
    bytes[..written].copy_from_slice(&head[..written]);
    let segment = &mut bytes[l4_new..];
    let done = match quoted {
        _ if parsed.is_later_fragment() => Ok(()),
        Some(quoted) => {
            quoted_transport(&mut segment[written - l4_new..], quoted);
            complete_icmp(segment, to);
            Ok(())
        }
        None => transport(segment, parsed, to, old),
    };
    if let Err(reason) = done {
        memory.free(made.frame);
        return Err(reason);
    }
    Ok(made)
}

/// What is under the checksum of an ICMP message, the checksum itself left out.
fn transport_sum(frame: &[u8], parsed: &Parsed) -> u64 {
    let message = &frame[usize::from(parsed.l4)..usize::from(parsed.end)];
    if message.len() < 8 {
        return 0;
    }
    let pseudo = match parsed.family {
        Family::Ipv4 => 0,
        Family::Ipv6 => {
            let flow = &parsed.flow;
            let length = message.len() as u32;
            let (source, destination) = (flow.source, flow.destination);
            checksum::pseudo_header(Family::Ipv6, source, destination, protocol::ICMPV6, length)
        }
    };
    pseudo + checksum::sum(&message[..2]) + checksum::sum(&message[4..])
}

/// Extension headers that a packet may have are left out; with a routing header that is not at its end it goes nowhere (RFC 7915 §5.1).
fn check_extensions(frame: &[u8], parsed: &Parsed) -> Result<(), DropReason> {
    let (mut at, l4) = (usize::from(parsed.l3) + 40, usize::from(parsed.l4));
    let mut next = frame[usize::from(parsed.l3) + 6];
    while at + 8 <= l4 {
        if next == protocol::ROUTING && frame[at + 3] != 0 {
            return Err(DropReason::Nat64Untranslatable);
        }
        let len = match next {
            protocol::FRAGMENT => 8,
            _ => (usize::from(frame[at + 1]) + 1) * 8,
        };
        next = frame[at];
        at += len;
    }
    Ok(())
}

/// Writes EtherType and IP header (RFC 7915 §4.1, §5.1). `length`: of the IP packet.
fn header(head: &mut [u8], parsed: &Parsed, to: &Translation, length: usize, identification: u16) {
    let class = parsed.traffic_class;
    let (kind, ip) = head[ETHERNET - 2..].split_at_mut(2);
    match to.flow.family() {
        Family::Ipv4 => {
            kind.copy_from_slice(&[8, 0]);
            (ip[0], ip[1]) = (0x45, class);
            ip[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            let (id, bits) = match parsed.fragment {
                Some(fragment) => {
                    let more = if fragment.more { 0x2000 } else { 0 };
                    (fragment.id as u16, (fragment.offset / 8) | more)
                }
                None if length > MAY_BE_FRAGMENTED => (0, 0x4000),
                None => (identification, 0),
            };
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            ip[6..8].copy_from_slice(&bits.to_be_bytes());
            (ip[8], ip[9]) = (parsed.ttl, to.flow.protocol);
            ip[12..16].copy_from_slice(&(to.flow.source as u32).to_be_bytes());
            ip[16..20].copy_from_slice(&(to.flow.destination as u32).to_be_bytes());
            let sum = checksum::finish(checksum::sum(&ip[..20]));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Family::Ipv6 => {
            kind.copy_from_slice(&[0x86, 0xdd]);
            (ip[0], ip[1]) = (0x60 | class >> 4, class << 4);
            ip[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            (ip[6], ip[7]) = (to.flow.protocol, parsed.ttl);
            ip[8..24].copy_from_slice(&to.flow.source.to_be_bytes());
            ip[24..40].copy_from_slice(&to.flow.destination.to_be_bytes());
            if let Some(fragment) = parsed.fragment {
                ip[6] = protocol::FRAGMENT;
                ip[40] = to.flow.protocol;
                let bits = fragment.offset | u16::from(fragment.more);
                ip[42..44].copy_from_slice(&bits.to_be_bytes());
                // 16 bits of it (RFC 7915 §4.1).
                ip[44..48].copy_from_slice(&(fragment.id & 0xffff).to_be_bytes());
            }
        }
    }
}

/// Ports and checksum of TCP and UDP, type, identifier and checksum of an echo. `old`: what was under the checksum of an ICMP message.
fn transport(
    segment: &mut [u8],
    parsed: &Parsed,
    to: &Translation,
    old: u64,
) -> Result<(), DropReason> {
    let flow = &to.flow;
    let (place, zero_is_none) = match flow.protocol {
        protocol::TCP => (checksum::TCP_AT, false),
        protocol::UDP => (checksum::UDP_AT, true),
        protocol::ICMP | protocol::ICMPV6 => return echo(segment, parsed, to, old),
        _ => return Err(DropReason::Nat64Untranslatable),
    };
    segment[..2].copy_from_slice(&flow.source_port.to_be_bytes());
    segment[2..4].copy_from_slice(&flow.destination_port.to_be_bytes());
    let field = [segment[place], segment[place + 1]];
    if zero_is_none && field == [0, 0] {
        // None: IPv6 needs one (RFC 7915 §4.5), IPv4 does not.
        if flow.family() == Family::Ipv4 {
            return Ok(());
        }
        if parsed.fragment.is_some() {
            return Err(DropReason::Nat64Untranslatable);
        }
        let length = segment.len() as u32;
        let pseudo = checksum::pseudo_header(
            Family::Ipv6,
            flow.source,
            flow.destination,
            protocol::UDP,
            length,
        );
        let sum = checksum::finish(pseudo + checksum::sum(segment));
        let sum = if sum == 0 { 0xffff } else { sum };
        segment[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        return Ok(());
    }
    let before = u16::from_be_bytes(field);
    let mut sum = checksum::finish(u64::from(!before) + u64::from(to.transport_delta));
    if zero_is_none && sum == 0 {
        sum = 0xffff;
    }
    segment[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

fn echo(message: &mut [u8], parsed: &Parsed, to: &Translation, old: u64) -> Result<(), DropReason> {
    let kind = icmp_across(parsed.family, parsed.icmp).ok_or(DropReason::Nat64Untranslatable)?;
    let family = to.flow.family();
    message[..2].copy_from_slice(&kind.to_be_bytes());
    let id = if parse::is_query(family, (kind >> 8) as u8) {
        to.flow.source_port
    } else {
        to.flow.destination_port
    };
    message[4..6].copy_from_slice(&id.to_be_bytes());
    let before = u16::from_be_bytes([message[2], message[3]]);
    let new = icmp_sum(message, to);
    // What was wrong stays wrong (RFC 1624).
    let sum = checksum::finish(
        u64::from(!before) + u64::from(!checksum::fold(old)) + u64::from(checksum::fold(new)),
    );
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

/// What is under the checksum of an ICMP message that is in its new family.
fn icmp_sum(message: &[u8], to: &Translation) -> u64 {
    let flow = &to.flow;
    let pseudo = match flow.family() {
        Family::Ipv4 => 0,
        Family::Ipv6 => checksum::pseudo_header(
            Family::Ipv6,
            flow.source,
            flow.destination,
            protocol::ICMPV6,
            message.len() as u32,
        ),
    };
    pseudo + checksum::sum(&message[..2]) + checksum::sum(&message[4..])
}

fn complete_icmp(message: &mut [u8], to: &Translation) {
    let sum = checksum::finish(icmp_sum(message, to));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

/// Writes the head of an ICMP error and the IP header that it quotes, in the other family. Answers how many bytes that are, and how many they take
/// the place of.
fn error(
    message: &[u8],
    parsed: &Parsed,
    quoted: &Translation,
    head: &mut [u8],
) -> Result<(usize, usize), DropReason> {
    let untranslatable = DropReason::Nat64Untranslatable;
    let is_whole = match parsed.family {
        Family::Ipv4 => checksum::is_right(checksum::sum(message)),
        Family::Ipv6 => {
            let flow = &parsed.flow;
            let length = message.len() as u32;
            let (source, destination) = (flow.source, flow.destination);
            let pseudo = checksum::pseudo_header(
                Family::Ipv6,
                source,
                destination,
                protocol::ICMPV6,
                length,
            );
            checksum::is_right(pseudo + checksum::sum(message))
        }
    };
    let kind = icmp_across(parsed.family, parsed.icmp).filter(|_| is_whole);
    let kind = kind.ok_or(untranslatable)?;
    let quote = message.get(8..).ok_or(untranslatable)?;
    let (number, l4) = parse::quoted_transport(parsed.family, quote).ok_or(untranslatable)?;
    if quote.len() < l4 + 8 {
        return Err(untranslatable);
    }
    head[..8].fill(0);
    head[..2].copy_from_slice(&kind.to_be_bytes());
    let length = match parsed.family {
        Family::Ipv4 => u16::from_be_bytes([quote[2], quote[3]]).saturating_sub(l4 as u16),
        Family::Ipv6 => {
            let payload = u16::from_be_bytes([quote[4], quote[5]]);
            payload.saturating_sub(l4 as u16 - 40)
        }
    };
    word(message, parsed, &mut head[4..8])?;
    let flow = &quoted.flow;
    let number = protocol_in(flow.family(), number);
    let ip = &mut head[8..];
    match flow.family() {
        Family::Ipv4 => {
            ip[..20].fill(0);
            (ip[0], ip[1]) = (0x45, quote[0] << 4 | quote[1] >> 4);
            ip[2..4].copy_from_slice(&length.saturating_add(20).to_be_bytes());
            (ip[8], ip[9]) = (quote[7], number);
            ip[12..16].copy_from_slice(&(flow.source as u32).to_be_bytes());
            ip[16..20].copy_from_slice(&(flow.destination as u32).to_be_bytes());
            let sum = checksum::finish(checksum::sum(&ip[..20]));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            Ok((28, 8 + l4))
        }
        Family::Ipv6 => {
            ip[..40].fill(0);
            (ip[0], ip[1]) = (0x60 | quote[1] >> 4, quote[1] << 4);
            ip[4..6].copy_from_slice(&length.to_be_bytes());
            (ip[6], ip[7]) = (number, quote[8]);
            ip[8..24].copy_from_slice(&flow.source.to_be_bytes());
            ip[24..40].copy_from_slice(&flow.destination.to_be_bytes());
            Ok((48, 8 + l4))
        }
    }
}

/// The MTU or the pointer of an ICMP error, in the other family.
fn word(message: &[u8], parsed: &Parsed, word: &mut [u8]) -> Result<(), DropReason> {
    /// RFC 1191 §7.
    const PLATEAUS: [u16; 10] = [65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296];
    let [kind, code] = parsed.icmp.to_be_bytes();
    match (parsed.family, kind, code) {
        (Family::Ipv4, 3, 4) => {
            let mtu = match u16::from_be_bytes([message[6], message[7]]) {
                0 => {
                    let length = u16::from_be_bytes([message[10], message[11]]);
                    let lower = PLATEAUS.into_iter().find(|plateau| *plateau < length);
                    lower.unwrap_or(68)
                }
                mtu => mtu,
            };
            // An IPv6 sender takes no less; what leaves is then short enough to be fragmented on its way (RFC 8200 §5).
            let mtu = (u32::from(mtu) + 20).max(LEAST_MTU);
            word.copy_from_slice(&mtu.to_be_bytes());
        }
        (Family::Ipv6, 2, _) => {
            let mtu = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
            let mtu = mtu.saturating_sub(20).min(u16::MAX.into()) as u16;
            word[2..4].copy_from_slice(&mtu.to_be_bytes());
        }
        (Family::Ipv4, 3, 2) => word[3] = 6,
        (Family::Ipv4, 12, _) => {
            let pointer = match message[4] {
                same @ (0 | 1) => same,
                2 | 3 => 4,
                8 => 7,
                9 => 6,
                12..=15 => 8,
                16..=19 => 24,
                _ => return Err(DropReason::Nat64Untranslatable),
            };
            word[3] = pointer;
        }
        (Family::Ipv6, 4, 0) => {
            let pointer = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
            word[0] = match pointer {
                0 => 0,
                1 => 1,
                4 | 5 => 2,
                6 => 9,
                7 => 8,
                8..=23 => 12,
                24..=39 => 16,
                _ => return Err(DropReason::Nat64Untranslatable),
            };
        }
        _ => {}
    }
    Ok(())
}

/// The transport header of a quoted packet: ports, type, identifier and as much of a checksum as is there.
fn quoted_transport(segment: &mut [u8], quoted: &Translation) {
    let flow = &quoted.flow;
    let place = match flow.protocol {
        protocol::TCP => checksum::TCP_AT,
        protocol::UDP => checksum::UDP_AT,
        _ => {
            // Its checksum covers what is not there.
            let family = flow.family();
            let kind = match family {
                Family::Ipv4 => icmp_across(Family::Ipv6, u16::from(segment[0]) << 8),
                Family::Ipv6 => icmp_across(Family::Ipv4, u16::from(segment[0]) << 8),
            };
            if let Some(kind) = kind {
                segment[..2].copy_from_slice(&kind.to_be_bytes());
                let id = if parse::is_query(family, segment[0]) {
                    flow.source_port
                } else {
                    flow.destination_port
                };
                segment[4..6].copy_from_slice(&id.to_be_bytes());
            }
            return;
        }
    };
    segment[..2].copy_from_slice(&flow.source_port.to_be_bytes());
    segment[2..4].copy_from_slice(&flow.destination_port.to_be_bytes());
    if let Some(field) = segment.get_mut(place..place + 2)
        && (place == checksum::TCP_AT || *field != [0, 0])
    {
        let before = u16::from_be_bytes([field[0], field[1]]);
        let sum = checksum::finish(u64::from(!before) + u64::from(quoted.transport_delta));
        field.copy_from_slice(&sum.to_be_bytes());
    }
}
