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

/// Puts the tag of a subport's VLAN on a frame. False where there is no room ahead of it.
#[must_use]
pub fn put_tag(memory: &mut impl FrameMemory, packet: &mut Packet, vlan: u16) -> bool {
    segment::tag(memory, packet, vlan).is_ok()
}
