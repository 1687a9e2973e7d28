//! Segments that a guest left to its device to split: TCP (TSO) and UDP (USO) over IPv4 and IPv6.
//!
//! What a guest says of its segment is checked against the packet itself before anything is done with it.

use crate::packet::checksum;
use crate::packet::parse::{self, ETHERNET, Family, Inner, Parsed, protocol, tcp_flags};
use crate::packet::{DropReason, FrameMemory, Offload, Packet, Segments};

/// The most pieces that one segment may become: a bound on what one descriptor of a guest may cost.
pub const MAX_PIECES: usize = 256;
/// Headers of a piece: Ethernet, the longest IPv4 header, the longest TCP header.
const MAX_HEADERS: usize = ETHERNET + 60 + 60;

/// How a segment is split.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    parsed: Parsed,
    /// Where the payload begins.
    payload: usize,
    /// Bytes of payload of each piece but the last.
    size: usize,
}

impl Plan {
    /// The plan for a packet in a large frame. None: there is nothing to split.
    ///
    /// # Errors
    /// The packet is not what the offload says.
    pub fn new(frame: &[u8], offload: &Offload) -> Result<Option<Self>, DropReason> {
        if offload.segments == Segments::None {
            return Ok(None);
        }
        let Ok(Inner::Ip(parsed)) = parse::inner(frame) else {
            return Err(DropReason::OffloadMalformed);
        };
        let (expected, family) = match offload.segments {
            Segments::Tcp4 => (protocol::TCP, Some(Family::Ipv4)),
            Segments::Tcp6 => (protocol::TCP, Some(Family::Ipv6)),
            _ => (protocol::UDP, None),
        };
        let l4 = usize::from(parsed.l4);
        let header = match expected {
            protocol::TCP => usize::from(frame.get(l4 + 12).map_or(0, |offset| offset >> 4)) * 4,
            _ => 8,
        };
        let (payload, end, size) = (
            l4 + header,
            usize::from(parsed.end),
            usize::from(offload.size),
        );
        let fits = parsed.flow.protocol == expected
            && family.is_none_or(|family| family == parsed.family)
            && parsed.fragment.is_none()
            && payload <= end
            && payload <= MAX_HEADERS
            && size > 0
            && (end - payload).div_ceil(size) <= MAX_PIECES;
        if !fits {
            return Err(DropReason::OffloadMalformed);
        }
        Ok(Some(Self {
            parsed,
            payload,
            size,
        }))
    }

    /// The plan for a packet.
    ///
    /// # Errors
    /// As for [`Plan::new`].
    pub fn of(memory: &impl FrameMemory, packet: &Packet) -> Result<Option<Self>, DropReason> {
        Self::new(packet.bytes(memory), &Offload::read(memory, &packet.frame))
    }

    /// Bytes of IP packet of the longest piece.
    pub fn longest(&self) -> u16 {
        let left = usize::from(self.parsed.end) - self.payload;
        (self.payload - usize::from(self.parsed.l3) + left.min(self.size)) as u16
    }
}

/// Splits a packet of a large frame into frames that are not large, complete with checksums, and hands each to `emit`. Answers how many; the
/// packet is left as it is. One that is no segment becomes one piece.
///
/// # Errors
/// It is malformed, does not fit, or frames have run out; pieces may have been handed out before.
pub fn split<M: FrameMemory>(
    memory: &mut M,
    packet: &Packet,
    mut emit: impl FnMut(&mut M, Packet),
) -> Result<usize, DropReason> {
    let Some(plan) = Plan::of(memory, packet)? else {
        let copy = super::ip_fragment::copy(memory, packet).ok_or(DropReason::TooBig)?;
        emit(memory, copy);
        return Ok(1);
    };
    let total = usize::from(plan.parsed.end) - plan.payload;
    let mut headers = [0; MAX_HEADERS];
    headers[..plan.payload].copy_from_slice(&packet.bytes(memory)[..plan.payload]);
    let (mut at, mut count) = (0, 0);
    loop {
        let len = plan.size.min(total - at);
        let mut piece =
            super::ip_fragment::room_for(memory, plan.payload + len).ok_or(DropReason::NoBuffer)?;
        let (from, to) = (
            usize::from(packet.start) + plan.payload + at,
            usize::from(piece.start) + plan.payload,
        );
        memory.copy((&packet.frame, from), (&mut piece.frame, to), len);
        let bytes = piece.bytes_mut(memory);
        bytes[..plan.payload].copy_from_slice(&headers[..plan.payload]);
        finish(bytes, &plan.parsed, count, at, at + len == total);
        emit(memory, piece);
        count += 1;
        at += len;
        if at >= total {
            return Ok(count);
        }
    }
}

/// What came of a packet that was taken apart.
#[must_use]
pub struct Apart {
    /// Packets that there are now beyond the one that there was: for the books.
    pub generated: u64,
    /// The packet, if it could not be taken apart to its end, and why. Pieces that were made before are on their way.
    pub left: Option<(Packet, DropReason)>,
}

/// Splits a packet as [`split`] does, and frees it.
pub fn take_apart<M: FrameMemory>(
    memory: &mut M,
    packet: Packet,
    mut emit: impl FnMut(&mut M, Packet),
) -> Apart {
    let mut pieces = 0;
    let result = split(memory, &packet, |memory, piece| {
        pieces += 1;
        emit(memory, piece);
    });
    match result {
        Ok(_) => {
            memory.free(packet.frame);
            Apart {
                generated: pieces - 1,
                left: None,
            }
        }
        Err(reason) => Apart {
            generated: pieces,
            left: Some((packet, reason)),
        },
    }
}

/// Makes a piece a packet of its own: lengths, identification, sequence number, flags, checksums.
fn finish(piece: &mut [u8], parsed: &Parsed, number: usize, offset: usize, last: bool) {
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let len = piece.len();
    match parsed.family {
        Family::Ipv4 => {
            let header = &mut piece[l3..l4];
            let identification = u16::from_be_bytes([header[4], header[5]]);
            header[2..4].copy_from_slice(&((len - l3) as u16).to_be_bytes());
            header[4..6].copy_from_slice(&identification.wrapping_add(number as u16).to_be_bytes());
            header[10..12].fill(0);
            let sum = checksum::finish(checksum::sum(header));
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Family::Ipv6 => {
            piece[l3 + 4..l3 + 6].copy_from_slice(&((len - l3 - 40) as u16).to_be_bytes());
        }
    }
    let segment = &mut piece[l4..];
    if parsed.flow.protocol == protocol::TCP {
        let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
        segment[4..8].copy_from_slice(&sequence.wrapping_add(offset as u32).to_be_bytes());
        if !last {
            segment[13] &= !(tcp_flags::FIN | tcp_flags::PSH);
        }
        if number > 0 {
            // The window has been reduced once (RFC 3168 §6.1.2).
            segment[13] &= !tcp_flags::CWR;
        }
    } else {
        let len = (segment.len() as u16).to_be_bytes();
        segment[4..6].copy_from_slice(&len);
    }
    let pseudo = checksum::pseudo_header(
        parsed.family,
        parsed.flow.source,
        parsed.flow.destination,
        parsed.flow.protocol,
        segment.len() as u32,
    );
    if let Some(at) = checksum::place(parsed.flow.protocol) {
        checksum::fill(segment, at, checksum::fold(pseudo));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::PlainMemory;
    use etherparse::PacketBuilder;

    /// A TCP segment of so much payload, to be split into pieces of 1000, and memory with so many frames for them.
    fn segment(payload: usize, frames: u32) -> (PlainMemory, Packet) {
        let mut memory = PlainMemory::new(frames, 2048).with_large(1);
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(4000, 80, 1, 1000)
            .ack(1)
            .write(&mut bytes, &vec![7; payload])
            .unwrap();
        let mut frame = memory.alloc_large().unwrap();
        let offload = Offload {
            segments: Segments::Tcp4,
            size: 1000,
        };
        offload.write(&mut memory, &mut frame);
        let mut packet = Packet {
            frame,
            start: 256,
            len: bytes.len() as u16,
        };
        packet.bytes_mut(&mut memory).copy_from_slice(&bytes);
        (memory, packet)
    }

    #[test]
    fn the_books_balance_when_frames_run_out_between_two_pieces() {
        for (frames, pieces) in [(20, 20), (19, 19), (5, 5), (0, 0)] {
            let (mut memory, packet) = segment(20_000, frames);
            let mut out = Vec::new();
            let apart = take_apart(&mut memory, packet, |_, piece| out.push(piece));
            assert_eq!(out.len(), pieces, "{:?}", apart.left);
            let dropped = u64::from(apart.left.is_some());
            assert_eq!(1 + apart.generated, out.len() as u64 + dropped);
            let whole = apart.left.map(|(packet, reason)| {
                memory.free(packet.frame);
                reason
            });
            let expected = (pieces < 20).then_some(DropReason::NoBuffer);
            assert_eq!(whole, expected);
            assert_eq!(memory.available_large(), 1);
        }
    }
}
