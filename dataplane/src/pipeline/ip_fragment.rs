//! Copies of packets, and IPv4 fragments of them (RFC 791 §2.3).

use crate::packet::checksum;
use crate::packet::{DropReason, FrameMemory, Packet, Parsed};

/// Room left in front of a copy, for outer headers.
const HEADROOM: usize = crate::encap::MAX_OUTER;

/// A frame with room for `len` bytes of packet, and for outer headers ahead of them.
pub fn room_for(memory: &mut impl FrameMemory, len: usize) -> Option<Packet> {
    let mut frame = memory.alloc()?;
    let area = memory.bytes_mut(&mut frame).len();
    if area < len {
        memory.free(frame);
        return None;
    }
    let start = HEADROOM.min(area - len);
    Some(Packet {
        frame,
        start: start as u16,
        len: len as u16,
    })
}

/// A copy in a frame of its own, which is not a large one; none when no frame is free or the packet does not fit.
pub fn copy(memory: &mut impl FrameMemory, packet: &Packet) -> Option<Packet> {
    let len = usize::from(packet.len);
    let mut copy = room_for(memory, len)?;
    let (from, to) = (packet.start.into(), copy.start.into());
    memory.copy((&packet.frame, from), (&mut copy.frame, to), len);
    Some(copy)
}

/// Fragments of an IPv4 packet, none longer than `mtu` bytes of IP. The packet is left as it is.
///
/// # Errors
/// The packet has options, which fragments may not all carry; or no frames are free. No piece is left behind.
pub fn split(
    memory: &mut impl FrameMemory,
    packet: &Packet,
    parsed: &Parsed,
    mtu: u16,
) -> Result<Vec<Packet>, DropReason> {
    let (l3, l4, end) = (
        usize::from(parsed.l3),
        usize::from(parsed.l4),
        usize::from(parsed.end),
    );
    let step = usize::from(mtu).saturating_sub(20) & !7;
    if l4 - l3 != 20 || step == 0 {
        return Err(DropReason::TooBig);
    }
    let (base, more) = parsed.fragment.map_or((0, false), |fragment| {
        (usize::from(fragment.offset), fragment.more)
    });
    let payload = end - l4;
    let mut pieces: Vec<Packet> = Vec::with_capacity(payload.div_ceil(step));
    let mut at = 0;
    while at < payload {
        let len = step.min(payload - at);
        let Some(mut piece) = room_for(memory, l4 + len) else {
            for piece in pieces {
                memory.free(piece.frame);
            }
            return Err(DropReason::NoBuffer);
        };
        let (from, to) = (usize::from(packet.start), usize::from(piece.start));
        memory.copy((&packet.frame, from), (&mut piece.frame, to), l4);
        memory.copy(
            (&packet.frame, from + l4 + at),
            (&mut piece.frame, to + l4),
            len,
        );
        let bytes = piece.bytes_mut(memory);
        let header = &mut bytes[l3..l4];
        let flags = if more || at + len < payload {
            0x2000
        } else {
            0
        };
        header[2..4].copy_from_slice(&((20 + len) as u16).to_be_bytes());
        header[6..8].copy_from_slice(&(flags | ((base + at) / 8) as u16).to_be_bytes());
        header[10..12].fill(0);
        let sum = checksum::finish(checksum::sum(header));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        pieces.push(piece);
        at += len;
    }
    Ok(pieces)
}
