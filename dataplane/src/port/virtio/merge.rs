//! Merges consecutive TCP segments for a guest that accepts large ones (GRO: like a network card's LRO, but reversible). The guest's kernel
//! handles one packet where it would have handled forty.
//!
//! Segments are merged only if they differ in nothing but their place in the stream: addresses, ports, acknowledgement, window and options are
//! the same, sequence numbers are consecutive, all have one size except the last, and each checksum is right. Merging copies nothing: the
//! pieces go from their frames to the guest's buffers.

use crate::packet::parse::{ETHERNET, Family, protocol, tcp_flags};
use crate::packet::{FrameMemory, Offload, Packet, Segments, checksum};

/// Segments that are merged at most.
pub(in crate::port) const MAX_SEGMENTS: usize = 64;
/// The least payload for which merging pays.
const MIN_PAYLOAD: usize = 512;
/// The longest IP packet that comes of it.
const MAX_IP: usize = 65_000;

/// Where the parts of a segment lie.
#[derive(Debug, Clone, Copy)]
struct Shape {
    family: Family,
    l4: usize,
    payload: usize,
    end: usize,
    sequence: u32,
    flags: u8,
}

impl Shape {
    /// The shape of a frame that may be merged.
    fn of(frame: &[u8]) -> Option<Self> {
        let (family, l4, end) = match frame.get(12..14)? {
            [0x08, 0x00] => {
                let header: &[u8; 20] = frame.get(ETHERNET..)?.first_chunk()?;
                let total = u16::from_be_bytes([header[2], header[3]]);
                // No options, no fragments.
                let plain = header[0] == 0x45
                    && u16::from_be_bytes([header[6], header[7]]) & 0x3fff == 0
                    && header[9] == protocol::TCP;
                (
                    plain.then_some(Family::Ipv4)?,
                    ETHERNET + 20,
                    ETHERNET + usize::from(total),
                )
            }
            [0x86, 0xdd] => {
                let header: &[u8; 40] = frame.get(ETHERNET..)?.first_chunk()?;
                let payload = u16::from_be_bytes([header[4], header[5]]);
                (
                    (header[6] == protocol::TCP).then_some(Family::Ipv6)?,
                    ETHERNET + 40,
                    ETHERNET + 40 + usize::from(payload),
                )
            }
            _ => return None,
        };
        let header: &[u8; 20] = frame.get(l4..)?.first_chunk()?;
        let payload = l4 + usize::from(header[12] >> 4) * 4;
        let shape = Self {
            family,
            l4,
            payload,
            end,
            sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            flags: header[13],
        };
        let merges = end == frame.len()
            && (l4 + 20..end).contains(&payload)
            && shape.flags & !tcp_flags::PSH == tcp_flags::ACK;
        merges.then_some(shape)
    }

    fn len(&self) -> usize {
        self.end - self.payload
    }

    fn pushes(&self) -> bool {
        self.flags & tcp_flags::PSH != 0
    }

    /// Sum of the pseudo-header for a segment that ends at `end`.
    fn pseudo(&self, frame: &[u8], end: usize) -> u64 {
        let addresses = match self.family {
            Family::Ipv4 => &frame[ETHERNET + 12..ETHERNET + 20],
            Family::Ipv6 => &frame[ETHERNET + 8..ETHERNET + 40],
        };
        checksum::sum(addresses) + u64::from(protocol::TCP) + (end - self.l4) as u64
    }

    fn is_right(&self, frame: &[u8]) -> bool {
        checksum::is_right(self.pseudo(frame, self.end) + checksum::sum(&frame[self.l4..self.end]))
    }

    /// Whether everything is equal that has to be.
    fn matches(&self, frame: &[u8], first: &[u8], of_first: &Self) -> bool {
        let same = |range: std::ops::Range<usize>| frame[range.clone()] == first[range];
        let network = match self.family {
            // Version, class; what may be set of flags; TTL, protocol; addresses.
            Family::Ipv4 => {
                same(ETHERNET..ETHERNET + 2)
                    && same(ETHERNET + 6..ETHERNET + 10)
                    && same(ETHERNET + 12..ETHERNET + 20)
            }
            Family::Ipv6 => same(ETHERNET..ETHERNET + 4) && same(ETHERNET + 6..ETHERNET + 40),
        };
        let l4 = self.l4;
        (self.l4, self.payload) == (of_first.l4, of_first.payload)
            && self.family == of_first.family
            && same(0..ETHERNET)
            && network
            // Ports; acknowledgement and header length; window; options.
            && same(l4..l4 + 4)
            && same(l4 + 8..l4 + 13)
            && same(l4 + 14..l4 + 16)
            && same(l4 + 18..self.payload)
    }
}

/// Packets that go to a guest as one.
#[derive(Debug)]
pub(in crate::port) struct Parcel<'a, M> {
    memory: &'a M,
    packets: &'a [Packet],
    /// Bytes of header that all but the first leave out.
    skip: usize,
    /// Bytes in all.
    pub(in crate::port) len: usize,
    /// What is still to be made of it.
    pub(in crate::port) offload: Offload,
}

impl<'a, M: FrameMemory> Parcel<'a, M> {
    /// A single packet.
    #[inline(always)]
    pub(in crate::port) fn single(memory: &'a M, packets: &'a [Packet]) -> Self {
        let first = &packets[0];
        Self {
            memory,
            packets: &packets[..1],
            skip: 0,
            len: first.len.into(),
            offload: Offload::read(memory, &first.frame),
        }
    }

    /// The first packet, whose headers are those of the whole.
    #[inline(always)]
    pub(in crate::port) fn first(&self) -> &'a [u8] {
        self.packets[0].bytes(self.memory)
    }

    /// How many packets it is made of.
    #[inline(always)]
    pub(in crate::port) fn count(&self) -> usize {
        self.packets.len()
    }

    /// The bytes, part by part.
    #[inline(always)]
    pub(in crate::port) fn parts(&self) -> impl Iterator<Item = &'a [u8]> {
        let (memory, skip) = (self.memory, self.skip);
        self.packets
            .iter()
            .enumerate()
            .map(move |(number, packet)| {
                &packet.bytes(memory)[if number == 0 { 0 } else { skip }..]
            })
    }
}

/// Segments at the front of some packets that go together: two at least.
#[derive(Debug, Clone, Copy)]
pub(in crate::port) struct Plan {
    first: Shape,
    count: usize,
    last: Shape,
}

/// What may be merged at the front; nothing is changed yet. There is one packet at least. None: the first goes alone.
#[inline(always)]
pub(in crate::port) fn plan(memory: &impl FrameMemory, packets: &[Packet]) -> Option<Plan> {
    if packets.len() < 2 || usize::from(packets[0].len) < MIN_PAYLOAD {
        return None;
    }
    run(memory, packets)
}

/// Merges as many packets from the front as may be, and makes the headers of the first those of the whole. There is one at least.
#[inline(always)]
pub(in crate::port) fn merge<'a, M: FrameMemory>(
    memory: &'a mut M,
    packets: &'a mut [Packet],
) -> Parcel<'a, M> {
    match plan(memory, packets) {
        Some(plan) => merge_as(memory, packets, &plan),
        None => Parcel::single(memory, packets),
    }
}

/// Merges what was planned for these packets.
pub(in crate::port) fn merge_as<'a, M: FrameMemory>(
    memory: &'a mut M,
    packets: &'a mut [Packet],
    Plan { first, count, last }: &Plan,
) -> Parcel<'a, M> {
    let size = first.len();
    let end = first.payload + size * (count - 1) + last.len();
    let frame = packets[0].bytes_mut(memory);
    match first.family {
        Family::Ipv4 => {
            let header = &mut frame[ETHERNET..ETHERNET + 20];
            header[2..4].copy_from_slice(&((end - ETHERNET) as u16).to_be_bytes());
            header[10..12].fill(0);
            let sum = checksum::finish(checksum::sum(header));
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Family::Ipv6 => {
            let payload = (end - ETHERNET - 40) as u16;
            frame[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&payload.to_be_bytes());
        }
    }
    // The rest of the checksum is left to whoever takes it apart again.
    let pseudo = checksum::fold(first.pseudo(frame, end));
    let at = first.l4 + checksum::TCP_AT;
    frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    frame[first.l4 + 13] |= last.flags & tcp_flags::PSH;
    Parcel {
        memory,
        packets: &packets[..*count],
        skip: first.payload,
        len: end,
        offload: Offload {
            segments: match first.family {
                Family::Ipv4 => Segments::Tcp4,
                Family::Ipv6 => Segments::Tcp6,
            },
            size: size as u16,
        },
    }
}

fn run(memory: &impl FrameMemory, packets: &[Packet]) -> Option<Plan> {
    if packets[0].frame.is_large() {
        return None;
    }
    let head = packets[0].bytes(memory);
    let first = Shape::of(head).filter(|shape| shape.len() >= MIN_PAYLOAD && !shape.pushes())?;
    let (mut count, mut last, mut end) = (1, first, first.end);
    for packet in packets.iter().take(MAX_SEGMENTS).skip(1) {
        let frame = packet.bytes(memory);
        let Some(next) = Shape::of(frame).filter(|_| !packet.frame.is_large()) else {
            break;
        };
        let follows = next.sequence == last.sequence.wrapping_add(last.len() as u32)
            && next.len() <= first.len()
            && end + next.len() <= ETHERNET + MAX_IP
            && next.matches(frame, head, &first)
            && next.is_right(frame);
        if !follows {
            break;
        }
        count += 1;
        end += next.len();
        last = next;
        if next.len() < first.len() || next.pushes() {
            break;
        }
    }
    (count > 1 && first.is_right(head)).then_some(Plan { first, count, last })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::PlainMemory;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn segment(sequence: u32, payload: &[u8], ipv6: bool, push: bool, port: u16) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let ip = if ipv6 {
            ethernet.ipv6([0xfd; 16], [0xfe; 16], 64)
        } else {
            ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        let mut tcp = ip.tcp(port, 80, sequence, 1000).ack(77);
        if push {
            tcp = tcp.psh();
        }
        let mut frame = Vec::new();
        tcp.write(&mut frame, payload).unwrap();
        frame
    }

    fn merged(frames: &[Vec<u8>]) -> (Vec<u8>, usize, Offload) {
        let mut memory = PlainMemory::new(64, 2048);
        let mut packets: Vec<Packet> = frames
            .iter()
            .map(|frame| memory.packet(256, frame).unwrap())
            .collect();
        let parcel = merge(&mut memory, &mut packets);
        let bytes: Vec<u8> = parcel.parts().flatten().copied().collect();
        assert_eq!(bytes.len(), parcel.len);
        (bytes, parcel.count(), parcel.offload)
    }

    proptest! {
        /// What was merged and is taken apart again is what it was.
        #[test]
        fn taking_apart_undoes_merging(
            sizes in proptest::collection::vec(any::<bool>(), 1..40),
            last in 1usize..1448,
            start: u32,
            ipv6: bool,
            push: bool,
        ) {
            let mut frames = Vec::new();
            let mut at = start;
            for (number, _) in sizes.iter().enumerate() {
                let is_last = number + 1 == sizes.len();
                let len = if is_last { last } else { 1448 };
                let payload: Vec<u8> = (0..len).map(|i| (i * 7 + number) as u8).collect();
                frames.push(segment(at, &payload, ipv6, push && is_last, 4000));
                at = at.wrapping_add(len as u32);
            }
            let (whole, count, offload) = merged(&frames);
            if frames.len() == 1 {
                prop_assert_eq!((whole, count), (frames[0].clone(), 1));
                return Ok(());
            }
            prop_assert_eq!(count, frames.len());
            let mut memory = PlainMemory::new(64, 2048).with_large(1);
            let mut large = memory.alloc_large().unwrap();
            offload.write(&mut memory, &mut large);
            let mut packet = Packet { frame: large, start: 256, len: whole.len() as u16 };
            packet.bytes_mut(&mut memory).copy_from_slice(&whole);
            let mut pieces = Vec::new();
            crate::pipeline::gso::split(&mut memory, &packet, |memory, piece| {
                pieces.push(piece.bytes(memory).to_vec());
                memory.free(piece.frame);
            })
            .unwrap();
            // Only the identification differs, which the senders of these left at 0.
            for (number, piece) in pieces.iter_mut().enumerate().filter(|_| !ipv6) {
                prop_assert_eq!(&piece[18..20], &(number as u16).to_be_bytes());
                piece[18..20].fill(0);
                piece[24..26].fill(0);
                let sum = checksum::finish(checksum::sum(&piece[14..34]));
                piece[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            prop_assert_eq!(pieces, frames);
        }
    }

    #[test]
    fn what_differs_goes_alone() {
        let payload = [1; 1000];
        let first = segment(1, &payload, false, false, 4000);
        let damage = |at: usize, fix: bool| {
            let mut frame = segment(1001, &payload, false, false, 4000);
            frame[at] ^= 0x40;
            if fix {
                frame[50..52].fill(0);
                let pseudo = checksum::sum(&frame[26..34]) + 6 + (frame.len() - 34) as u64;
                let sum = checksum::finish(pseudo + checksum::sum(&frame[34..]));
                frame[50..52].copy_from_slice(&sum.to_be_bytes());
            }
            frame
        };
        for second in [
            segment(1001, &payload, false, false, 4001),
            segment(1002, &payload, false, false, 4000),
            segment(1001, &[1; 1001], false, false, 4000),
            segment(1001, &payload, true, false, 4000),
            segment(1001, &[], false, false, 4000),
            // A wrong checksum; another acknowledgement; another window; URG; another class; another TTL.
            damage(60, false),
            damage(42, true),
            damage(48, true),
            damage(47, true),
            damage(15, true),
            damage(22, true),
            [segment(1001, &payload, false, false, 4000), vec![0]].concat(),
        ] {
            let (whole, count, offload) = merged(&[first.clone(), second]);
            assert_eq!((&whole, count, offload), (&first, 1, Offload::default()));
        }
        let push = segment(1, &payload, false, true, 4000);
        let next = segment(1001, &payload, false, false, 4000);
        assert_eq!(merged(&[push, next.clone()]).1, 1);
        assert_eq!(merged(&[first, next]).1, 2);
    }
}
