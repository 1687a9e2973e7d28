//! Segments that a guest leaves to its device to split (TSO, USO): to whoever takes them whole they go as they are, else as the packets that the
//! device would have made.

use weft_dataplane::packet::{DropReason, Offload, Segments};

use super::frame::{FIN, IP, Packet, TCP, UDP, long, word};

const PSH: u8 = 8;
const CWR: u8 = 0x80;
/// Pieces of one segment at most.
const PIECES: usize = 256;

/// Checks what a guest says of its packet.
pub fn check(packet: &Packet, offload: Offload) -> Result<(), DropReason> {
    let (v4, protocol) = (packet.is_v4(), packet.flow.protocol);
    let agrees = match offload.segments {
        Segments::None => return Ok(()),
        Segments::Tcp4 => v4 && protocol == TCP,
        Segments::Tcp6 => !v4 && protocol == TCP,
        Segments::Udp => protocol == UDP,
    };
    let size = usize::from(offload.size);
    let payload = |packet: &Packet| packet.end - start(packet);
    if !agrees
        || packet.fragment.is_some()
        || size == 0
        || payload(packet).div_ceil(size) > PIECES
        // No longer than the longest IPv4 and TCP headers: what has more ahead of its payload is split by its sender.
        || start(packet) > IP + 60 + 60
    {
        return Err(DropReason::OffloadMalformed);
    }
    Ok(())
}

/// Where the payload begins.
fn start(packet: &Packet) -> usize {
    packet.l4
        + match packet.flow.protocol {
            TCP => usize::from(packet.bytes[packet.l4 + 12] >> 4) * 4,
            _ => 8,
        }
}

/// Bytes of IP packet of the longest piece.
pub fn longest(packet: &Packet, offload: Offload) -> usize {
    let start = start(packet);
    start - IP + (packet.end - start).min(usize::from(offload.size))
}

/// The packets that come of it.
pub fn split(packet: &Packet, offload: Offload) -> Vec<Packet> {
    let (start, size) = (start(packet), usize::from(offload.size));
    let payload = &packet.bytes[start..packet.end];
    let count = payload.len().div_ceil(size).max(1);
    let piece = |number: usize| {
        let from = (number * size).min(payload.len());
        let part = &payload[from..(from + size).min(payload.len())];
        let mut piece = packet.clone();
        piece.bytes.truncate(start);
        piece.bytes.extend_from_slice(part);
        piece.end = piece.bytes.len();
        let bytes = &mut piece.bytes;
        if packet.is_v4() {
            let id = word(bytes, IP + 4).wrapping_add(number as u16);
            let length = (bytes.len() - IP) as u16;
            bytes[IP + 2..IP + 4].copy_from_slice(&length.to_be_bytes());
            bytes[IP + 4..IP + 6].copy_from_slice(&id.to_be_bytes());
        } else {
            let length = (bytes.len() - IP - 40) as u16;
            bytes[IP + 4..IP + 6].copy_from_slice(&length.to_be_bytes());
        }
        let l4 = packet.l4;
        let checksum = if packet.flow.protocol == TCP {
            let sequence = long(bytes, l4 + 4).wrapping_add(from as u32);
            bytes[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
            // The end is the last one's, the answer to congestion is given once (RFC 3168 6.1.2).
            if number + 1 < count {
                bytes[l4 + 13] &= !(FIN | PSH);
            }
            if number > 0 {
                bytes[l4 + 13] &= !CWR;
            }
            l4 + 16
        } else {
            let length = (bytes.len() - l4) as u16;
            bytes[l4 + 4..l4 + 6].copy_from_slice(&length.to_be_bytes());
            l4 + 6
        };
        if packet.is_v4() {
            piece.write_ipv4_checksum();
        }
        piece.write_checksum(checksum);
        piece
    };
    (0..count).map(piece).collect()
}
