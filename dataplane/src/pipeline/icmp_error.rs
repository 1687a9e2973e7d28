//! ICMP errors that the gateway owes: time exceeded, fragmentation needed, packet too big (RFC 792, RFC 1812 §4.3.2, RFC 4443 §3).

use crate::packet::checksum;
use crate::packet::parse::{ETHERNET, Family, IPV4_MAPPED, Parsed, is_icmp_error, protocol};
use crate::packet::{DropReason, FrameMemory, Mac, Packet};

use super::guard::is_group;

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// The TTL or hop limit ran out.
    TimeExceeded,
    /// The packet is larger than the path, which carries this many bytes of IP packet.
    TooBig(u16),
}

impl Problem {
    /// Why the packet is dropped that the error is about.
    pub(super) fn reason(self) -> DropReason {
        match self {
            Self::TimeExceeded => DropReason::TtlExceeded,
            Self::TooBig(_) => DropReason::TooBig,
        }
    }
}

/// Whether an error may be sent about the packet at all: not about another error, nor to a group, nor about a later fragment,
/// nor to nobody (RFC 4443 §2.4 (e.6)).
pub fn may_report(parsed: &Parsed) -> bool {
    !is_icmp_error(parsed)
        && !parsed.is_later_fragment()
        && !parsed.eth_dst.is_group()
        && !is_group(parsed.flow.destination)
        && !matches!(parsed.flow.source, 0 | IPV4_MAPPED)
}

/// Turns a packet into the error about it, from the gateway to its sender. Answers false when the buffer has no room for that; the packet
/// is then unchanged.
pub fn turn(
    memory: &mut impl FrameMemory,
    packet: &mut Packet,
    parsed: &Parsed,
    gateway: (Mac, u128),
    problem: Problem,
) -> bool {
    // As much of the packet as fits in 576 bytes (RFC 1812 §4.3.2.3), or in 1280 (RFC 4443 §2.4 (c)).
    let (ip_header, limit) = match parsed.family {
        Family::Ipv4 => (20, 576),
        Family::Ipv6 => (40, 1280),
    };
    let headers = ip_header + 8;
    let quote = usize::from(parsed.ip_len()).min(limit - headers);
    let total = ETHERNET + headers + quote;
    let (start, l3) = (usize::from(packet.start), usize::from(parsed.l3));
    let area = memory.bytes_mut(&mut packet.frame);
    let Some(frame) = area.get_mut(start..start + total.max(l3 + quote)) else {
        return false;
    };
    frame.copy_within(l3..l3 + quote, ETHERNET + headers);
    let (gateway_mac, gateway_address) = gateway;
    frame[..6].copy_from_slice(&parsed.eth_src.bytes());
    frame[6..12].copy_from_slice(&gateway_mac.bytes());
    let (ip, message) = frame[ETHERNET..total].split_at_mut(ip_header);
    let (sender, length) = (parsed.flow.source, headers + quote);
    message[..8].fill(0);
    match parsed.family {
        Family::Ipv4 => {
            let (kind, code, word) = match problem {
                Problem::TimeExceeded => (11, 0, 0),
                Problem::TooBig(mtu) => (3, 4, mtu),
            };
            (message[0], message[1]) = (kind, code);
            message[6..8].copy_from_slice(&word.to_be_bytes());
            ip.fill(0);
            // Precedence 6, internetwork control (RFC 1812 §4.3.2.5).
            (ip[0], ip[1], ip[8], ip[9]) = (0x45, 0xc0, 64, protocol::ICMP);
            ip[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            ip[12..16].copy_from_slice(&(gateway_address as u32).to_be_bytes());
            ip[16..20].copy_from_slice(&(sender as u32).to_be_bytes());
            let sum = checksum::finish(checksum::sum(ip));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            let sum = checksum::finish(checksum::sum(message));
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        Family::Ipv6 => {
            let (kind, word) = match problem {
                Problem::TimeExceeded => (3, 0),
                Problem::TooBig(mtu) => (2, u32::from(mtu)),
            };
            message[0] = kind;
            message[4..8].copy_from_slice(&word.to_be_bytes());
            ip.fill(0);
            (ip[0], ip[6], ip[7]) = (0x60, protocol::ICMPV6, 64);
            ip[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            ip[8..24].copy_from_slice(&gateway_address.to_be_bytes());
            ip[24..40].copy_from_slice(&sender.to_be_bytes());
            let pseudo = checksum::pseudo_header(
                Family::Ipv6,
                gateway_address,
                sender,
                protocol::ICMPV6,
                (length - 40) as u32,
            );
            let sum = checksum::finish(pseudo + checksum::sum(message));
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
    }
    packet.len = total as u16;
    true
}
