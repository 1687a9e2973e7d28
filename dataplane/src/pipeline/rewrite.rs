//! Changes to a packet on its way: MACs, TTL, DSCP, congestion marks, the MSS option, partial checksums. Checksums stay right.

use crate::packet::parse::{self, Family, Parsed, protocol};
use crate::packet::{DropReason, FrameMemory, Mac, Packet};
use crate::packet::{checksum, nested};
use crate::session::slot::MacPair;
use crate::session::tcp;

/// Writes both MACs.
#[inline]
pub fn macs(frame: &mut [u8], destination: Mac, source: Mac) {
    if let Some(header) = frame.first_chunk_mut::<12>() {
        header[..6].copy_from_slice(&destination.bytes());
        header[6..].copy_from_slice(&source.bytes());
    }
}

/// The same, as a session keeps them.
#[inline]
pub fn both_macs(frame: &mut [u8], macs: MacPair) {
    if let Some(header) = frame.first_chunk_mut::<12>() {
        macs.write(header);
    }
}

/// Takes a priority tag off: such a frame is as one without (IEEE 802.1Q §6.9.1).
#[inline]
pub fn untag(memory: &mut impl FrameMemory, packet: &mut Packet) {
    if parse::is_priority_tagged(packet.bytes(memory)) {
        take_tag(memory, packet);
    }
}

/// Takes the tag off a frame that has one.
#[inline]
pub fn take_tag(memory: &mut impl FrameMemory, packet: &mut Packet) {
    // The MACs move up to where the EtherType is.
    packet.bytes_mut(memory).copy_within(..12, 4);
    packet.start += 4;
    packet.len -= 4;
}

/// Takes one from the TTL or hop limit. The caller has seen that it is above one.
#[inline]
pub fn decrement_ttl(frame: &mut [u8], parsed: &Parsed) {
    let l3 = usize::from(parsed.l3);
    match parsed.family {
        Family::Ipv4 => set_ipv4_ttl(&mut frame[l3..], parsed.ttl - 1),
        Family::Ipv6 => frame[l3 + 7] = parsed.ttl - 1,
    }
}

/// Sets the TTL of an IPv4 header.
#[inline(always)]
pub fn set_ipv4_ttl(header: &mut [u8], ttl: u8) {
    let old = u16::from_be_bytes([header[8], header[9]]);
    header[8] = ttl;
    let new = u16::from_be_bytes([header[8], header[9]]);
    let field = u16::from_be_bytes([header[10], header[11]]);
    header[10..12].copy_from_slice(&checksum::update(field, old, new).to_be_bytes());
}

/// Whether an inner IPv4 or IPv6 frame bears the same congestion mark as the tunnel's header, so that nothing is to be carried inwards.
#[inline]
pub fn same_congestion(inner: &[u8], outer_traffic_class: u8) -> bool {
    let Some(head) = inner.first_chunk::<16>() else {
        return false;
    };
    let class = match head[14] >> 4 {
        4 => head[15],
        _ => head[15] >> 4,
    };
    class & 3 == outer_traffic_class & 3
}

/// Carries a congestion mark of the tunnel inwards (RFC 6040 §4.2), and answers the traffic class that the packet has then.
///
/// # Errors
/// The inner packet cannot carry it.
#[inline]
pub fn propagate_congestion(
    frame: &mut [u8],
    parsed: &Parsed,
    outer_traffic_class: u8,
) -> Result<u8, DropReason> {
    const CE: u8 = 3;
    let class = parsed.traffic_class;
    let to = match (outer_traffic_class & 3, class & 3) {
        (CE, 0) => return Err(DropReason::EcnMismatch),
        (CE, 1 | 2) => CE,
        // The other transition of the table: ECT(1) outside an ECT(0) packet.
        (1, 2) => 1,
        _ => return Ok(class),
    };
    let class = class & !3 | to;
    set_class(&mut frame[usize::from(parsed.l3)..], parsed.family, class);
    Ok(class)
}

/// Marks an IP packet with a DSCP, 0 to 63; its congestion mark stays (RFC 2474 §3, RFC 3168 §5).
#[inline]
pub fn mark(frame: &mut [u8], parsed: &mut Parsed, dscp: u8) {
    let class = with_dscp(parsed.traffic_class, dscp);
    if class != parsed.traffic_class {
        parsed.traffic_class = class;
        set_class(&mut frame[usize::from(parsed.l3)..], parsed.family, class);
    }
}

/// A traffic class with another DSCP and the same congestion mark.
#[inline]
pub fn with_dscp(class: u8, dscp: u8) -> u8 {
    dscp << 2 | class & 3
}

/// Sets the traffic class of an IP header, which the slice begins with.
#[inline]
pub fn set_class(header: &mut [u8], family: Family, class: u8) {
    match family {
        Family::Ipv4 => {
            let old = u16::from_be_bytes([header[0], header[1]]);
            header[1] = class;
            let new = u16::from_be_bytes([header[0], header[1]]);
            let field = u16::from_be_bytes([header[10], header[11]]);
            header[10..12].copy_from_slice(&checksum::update(field, old, new).to_be_bytes());
        }
        Family::Ipv6 => {
            header[0] = header[0] & 0xf0 | class >> 4;
            header[1] = header[1] & 0x0f | class << 4;
        }
    }
}

/// Lowers the MSS option of a SYN to what the path carries (RFC 879, RFC 6691); adds none. `is_partial`: its checksum is the sum of the pseudo-header,
/// in which options do not count.
pub fn clamp_mss(frame: &mut [u8], parsed: &Parsed, path_mtu: u16, is_partial: bool) {
    let l4 = usize::from(parsed.l4);
    let headers = match parsed.family {
        Family::Ipv4 => 40,
        Family::Ipv6 => 60,
    };
    let limit = path_mtu.saturating_sub(headers);
    let header_len = usize::from(frame[l4 + 12] >> 4) * 4;
    let Some(options) = frame.get(l4 + 20..l4 + header_len) else {
        return;
    };
    let Some(at) = tcp::find_option(options, 2, 4) else {
        return;
    };
    let place = l4 + 20 + at + 2;
    let old = u16::from_be_bytes([frame[place], frame[place + 1]]);
    if old <= limit {
        return;
    }
    frame[place..place + 2].copy_from_slice(&limit.to_be_bytes());
    if is_partial {
        return;
    }
    let field = u16::from_be_bytes([frame[l4 + 16], frame[l4 + 17]]);
    // An option may begin at an odd offset: its bytes then count in the other halves of two words.
    let (old, new) = if (20 + at) % 2 == 0 {
        (old, limit)
    } else {
        (old.swap_bytes(), limit.swap_bytes())
    };
    frame[l4 + 16..l4 + 18].copy_from_slice(&checksum::update(field, old, new).to_be_bytes());
}

/// Completes a checksum that the sender's kernel left to its device.
#[inline]
pub fn complete_checksum(frame: &mut [u8], parsed: &Parsed) {
    let number = parsed.flow.protocol;
    if parsed.fragment.is_some() {
        return;
    }
    let (l4, end) = (usize::from(parsed.l4), usize::from(parsed.end));
    let tunnel = match number {
        protocol::UDP => nested::is_tunnel_port(parsed.flow.destination_port),
        protocol::TCP | protocol::ICMP | protocol::ICMPV6 => false,
        _ => true,
    };
    if tunnel {
        nested::complete(&mut frame[l4..end], number);
    }
    let pseudo = checksum::pseudo_header(
        parsed.family,
        parsed.flow.source,
        parsed.flow.destination,
        number,
        (end - l4) as u32,
    );
    checksum::complete_transport(&mut frame[l4..end], number, pseudo);
}
