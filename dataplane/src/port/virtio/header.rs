//! The header ahead of each packet of a virtio network device (virtio 1.2, §5.1.6), and the feature bits that shape it.

use crate::packet::parse::{ETHERTYPE_VLAN, VLAN_TAG};
use crate::packet::{Offload, Segments};

/// Feature bits of virtio 1.2 (§5.1.3, §6) and of vhost-user.
pub(in crate::port) mod feature {
    pub(in crate::port) const CSUM: u64 = 1 << 0;
    pub(in crate::port) const GUEST_CSUM: u64 = 1 << 1;
    pub(in crate::port) const MTU: u64 = 1 << 3;
    pub(in crate::port) const GUEST_TSO4: u64 = 1 << 7;
    pub(in crate::port) const GUEST_TSO6: u64 = 1 << 8;
    pub(in crate::port) const GUEST_ECN: u64 = 1 << 9;
    pub(in crate::port) const HOST_TSO4: u64 = 1 << 11;
    pub(in crate::port) const HOST_TSO6: u64 = 1 << 12;
    pub(in crate::port) const HOST_ECN: u64 = 1 << 13;
    pub(in crate::port) const MRG_RXBUF: u64 = 1 << 15;
    pub(in crate::port) const GUEST_ANNOUNCE: u64 = 1 << 21;
    pub(in crate::port) const MQ: u64 = 1 << 22;
    pub(in crate::port) const LOG_ALL: u64 = 1 << 26;
    pub(in crate::port) const ANY_LAYOUT: u64 = 1 << 27;
    pub(in crate::port) const INDIRECT_DESC: u64 = 1 << 28;
    pub(in crate::port) const EVENT_IDX: u64 = 1 << 29;
    pub(in crate::port) const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub(in crate::port) const VERSION_1: u64 = 1 << 32;
    pub(in crate::port) const RING_PACKED: u64 = 1 << 34;
    pub(in crate::port) const IN_ORDER: u64 = 1 << 35;
    pub(in crate::port) const GUEST_USO4: u64 = 1 << 54;
    pub(in crate::port) const GUEST_USO6: u64 = 1 << 55;
    pub(in crate::port) const HOST_USO: u64 = 1 << 56;
}

/// The longest header.
pub(in crate::port) const MAX_HEADER: usize = 12;

const NEEDS_CSUM: u8 = 1;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Bytes of the header under these features.
pub(in crate::port) fn header_len(features: u64) -> usize {
    if features & (feature::MRG_RXBUF | feature::VERSION_1) != 0 {
        MAX_HEADER
    } else {
        10
    }
}

/// Reads what a guest left to us to split. A kind that was not offered becomes one that nothing passes for.
#[inline]
pub(in crate::port) fn offload(header: &[u8; MAX_HEADER], features: u64) -> Offload {
    let (kind, needed) = match header[1] & !GSO_ECN {
        0 => return Offload::default(),
        GSO_TCP4 => (Segments::Tcp4, feature::HOST_TSO4),
        GSO_TCP6 => (Segments::Tcp6, feature::HOST_TSO6),
        _ => (Segments::Udp, feature::HOST_USO),
    };
    let known = matches!(header[1] & !GSO_ECN, GSO_TCP4 | GSO_TCP6 | GSO_UDP_L4);
    let size = if known && features & needed != 0 {
        u16::from_le_bytes([header[4], header[5]])
    } else {
        // A size of 0 is refused later, by name.
        0
    };
    Offload {
        segments: kind,
        size,
    }
}

/// Whether a guest of these features takes a segment whole.
pub(in crate::port) fn takes(features: u64, offload: &Offload) -> bool {
    let needed = match offload.segments {
        Segments::None => 0,
        Segments::Tcp4 => feature::GUEST_TSO4 | feature::GUEST_CSUM,
        Segments::Tcp6 => feature::GUEST_TSO6 | feature::GUEST_CSUM,
        Segments::Udp => feature::GUEST_USO4 | feature::GUEST_USO6 | feature::GUEST_CSUM,
    };
    features & needed == needed
}

/// Whether segments are merged for a guest of these features.
pub(in crate::port) fn merges(features: u64) -> bool {
    let needed =
        feature::MRG_RXBUF | feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_TSO6;
    features & needed == needed
}

/// A header as two words: made of bytes and then loaded as words, it would wait for every store before it, and those to a guest's memory
/// are slow.
#[derive(Debug, Clone, Copy)]
pub(in crate::port) struct Header {
    pub(in crate::port) low: u64,
    pub(in crate::port) high: u32,
}

impl Header {
    /// The same as bytes.
    pub(in crate::port) fn bytes(self) -> [u8; MAX_HEADER] {
        let mut bytes = [0; MAX_HEADER];
        bytes[..8].copy_from_slice(&self.low.to_le_bytes());
        bytes[8..].copy_from_slice(&self.high.to_le_bytes());
        bytes
    }
}

/// The header of a packet towards a guest, for so many buffers. `packet` begins at the Ethernet header.
#[inline(always)]
pub(in crate::port) fn towards_guest(packet: &[u8], offload: &Offload, buffers: u16) -> Header {
    let mut header = Header {
        low: 0,
        high: u32::from(buffers) << 16,
    };
    if offload.segments != Segments::None {
        describe(&mut header, packet, offload);
    }
    header
}

/// Adds what is still to be made of the packet.
fn describe(header: &mut Header, packet: &[u8], offload: &Offload) {
    let (kind, checksum) = match offload.segments {
        Segments::None => return,
        Segments::Tcp4 => (GSO_TCP4, 16u32),
        Segments::Tcp6 => (GSO_TCP6, 16),
        Segments::Udp => (GSO_UDP_L4, 6),
    };
    // The pipeline has parsed it, so the headers are whole and of the kind that the offload says.
    let Some(l4) = transport_at(packet) else {
        return;
    };
    let transport = match offload.segments {
        Segments::Udp => 8,
        _ => {
            u16::from(
                packet
                    .get(usize::from(l4) + 12)
                    .map_or(5, |offset| offset >> 4),
            ) * 4
        }
    };
    header.low = u64::from(NEEDS_CSUM)
        | u64::from(kind) << 8
        | u64::from(l4 + transport) << 16
        | u64::from(offload.size) << 32
        | u64::from(l4) << 48;
    header.high |= checksum;
}

/// Where the transport header of a segment begins. Not by the parser, which wants the packet whole: a merged one is not.
fn transport_at(packet: &[u8]) -> Option<u16> {
    if packet.get(12..14)? == ETHERTYPE_VLAN.to_be_bytes() {
        // A subport's: everything comes later by the tag. Of the MACs before it nothing is read.
        let untagged = packet.get(VLAN_TAG..)?;
        return Some(transport_at(untagged)? + VLAN_TAG as u16);
    }
    match packet.get(12..15)? {
        [0x08, 0x00, version] => Some(14 + u16::from(version & 15) * 4),
        // Extension headers before a segment that is left to be split are those of a few bytes that a guest sends; without them here.
        [0x86, 0xdd, _] => match crate::packet::parse::inner(packet) {
            Ok(crate::packet::Inner::Ip(parsed)) => Some(parsed.l4),
            _ => Some(54),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Flags, kind, bytes of headers, size of pieces, where the checksum begins, and where in what it covers it is.
    fn fields(packet: &[u8], segments: Segments) -> (u8, u8, [u16; 4]) {
        let bytes = towards_guest(
            packet,
            &Offload {
                segments,
                size: 1400,
            },
            0,
        )
        .bytes();
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (bytes[0], bytes[1], [word(2), word(4), word(6), word(8)])
    }

    #[test]
    fn a_segment_with_a_tag_is_described_with_the_tag_ahead() {
        let mut tcp4 = vec![0; 3000];
        tcp4[12..15].copy_from_slice(&[0x08, 0, 0x46]);
        tcp4[38 + 12] = 0x80;
        let mut udp6 = vec![0; 3000];
        udp6[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
        for (packet, segments, kind, wanted) in [
            (tcp4, Segments::Tcp4, GSO_TCP4, [38 + 32, 1400, 38, 16]),
            (udp6, Segments::Udp, GSO_UDP_L4, [54 + 8, 1400, 54, 6]),
        ] {
            assert_eq!(fields(&packet, segments), (NEEDS_CSUM, kind, wanted));
            let mut tagged = packet;
            tagged.splice(12..12, [0x81, 0, 0, 7]);
            let [headers, size, start, place] = wanted;
            let wanted = [headers + 4, size, start + 4, place];
            assert_eq!(fields(&tagged, segments), (NEEDS_CSUM, kind, wanted));
        }
    }
}
