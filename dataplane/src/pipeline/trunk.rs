//! Frames of subports on their parent's device: the tag of the VLAN (IEEE 802.1Q §9.6) is taken off before anything else sees the frame, and put on behind all else.
//!
//! A vector of a parent's device is taken apart by VLAN, so that each part is as a vector from a port of its own. Towards a subport whoever drives the devices puts
//! the tag on ([`put_tag`]), since what is sent to a subport comes from services of this host, too.

use super::external::segment;
use super::{Io, Pipeline, Source, rewrite};
use crate::packet::{DropReason, FrameMemory, Packet};

impl Pipeline {
    /// Takes the packets of a vector from the device of a port that has subports.
    #[inline(never)]
    pub(super) fn process_trunk(
        &mut self,
        io: &mut impl Io,
        parent: u16,
        packets: &mut Vec<Packet>,
        now: u32,
    ) {
        let mut part = std::mem::take(&mut self.part);
        while let Some(first) = packets.first() {
            let vlan = segment::vlan_of(first.bytes(io));
            let is_of_part = |packet: &mut Packet| segment::vlan_of(packet.bytes(io)) == vlan;
            part.extend(packets.extract_if(.., is_of_part));
            let port = match vlan {
                // No tag, or a priority alone.
                0 => Some(parent),
                vlan => self.snapshot.trunks.port(parent, vlan),
            };
            let Some(port) = port else {
                self.drop_unknown(io, parent, &mut part);
                continue;
            };
            if vlan != 0 {
                part.iter_mut()
                    .for_each(|packet| rewrite::take_tag(io, packet));
            }
            self.process_vector(io, Source::Port(port), &mut part, now);
        }
        self.part = part;
    }

    /// Drops the frames of a VLAN that no subport has.
    #[cold]
    fn drop_unknown(&self, io: &mut impl Io, parent: u16, packets: &mut Vec<Packet>) {
        self.core.receive(Source::Port(parent), packets);
        let traffic = self.core.counters.port(parent);
        for packet in packets.drain(..) {
            traffic.drop(DropReason::UnknownVlan);
            io.free(packet.frame);
        }
    }
}

/// Bytes of the longest frame that a tag can be put on: the length of a frame has 16 bits.
pub const LONGEST_UNTAGGED: u16 = u16::MAX - segment::TAG as u16;

/// Puts the tag of a subport's VLAN on a frame.
///
/// # Errors
/// The frame is longer than [`LONGEST_UNTAGGED`], or has no room ahead of it; it is as it was then.
pub fn put_tag(
    memory: &mut impl FrameMemory,
    packet: &mut Packet,
    vlan: u16,
) -> Result<(), DropReason> {
    segment::tag(memory, packet, vlan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::PlainMemory;

    #[test]
    fn a_frame_has_a_tag_up_to_the_longest_length_that_there_is() {
        let mut memory = PlainMemory::new(0, 0).with_large(1);
        let mut packet = Packet {
            frame: memory.alloc_large().unwrap(),
            start: 256,
            len: LONGEST_UNTAGGED,
        };
        assert_eq!(put_tag(&mut memory, &mut packet, 7), Ok(()));
        assert_eq!((packet.start, packet.len), (252, u16::MAX));
        assert_eq!(packet.bytes(&memory)[12..16], [0x81, 0, 0, 7]);
        for len in LONGEST_UNTAGGED + 1..=u16::MAX {
            (packet.start, packet.len) = (256, len);
            let before = packet.bytes(&memory).to_vec();
            let refused = put_tag(&mut memory, &mut packet, 7);
            assert_eq!(refused, Err(DropReason::TooBig));
            assert_eq!((packet.start, packet.len), (256, len));
            assert_eq!(packet.bytes(&memory), before);
        }
        (packet.start, packet.len) = (3, 60);
        let refused = put_tag(&mut memory, &mut packet, 7);
        assert_eq!(refused, Err(DropReason::NoBuffer));
    }
}
