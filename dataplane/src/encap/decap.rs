//! Parses outer headers: the inner frame's offset, its VNI and the sending VTEP.
//!
//! The underlay is not trusted: every length is checked, checksums that are present are verified, reserved bits are ignored on receipt (RFC
//! 7348 §5).

use super::{GRE_ETHERNET, VXLAN_PORT};
use crate::numbers::Vni;
use crate::packet::DropReason;
use crate::packet::checksum;
use crate::packet::parse::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Family, mapped, protocol};

/// What the outer headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer {
    /// The sending VTEP.
    pub source: u128,
    /// The VTEP that it was sent to.
    pub destination: u128,
    /// VNI or key.
    pub vni: Vni,
    /// Offset of the inner Ethernet header.
    pub inner: u16,
    /// End of the inner frame.
    pub end: u16,
    /// DSCP and ECN of the outer header.
    pub traffic_class: u8,
}

/// Parses a tunnel packet from its outer Ethernet header on. A priority tag is skipped; a frame of a VLAN is none of ours (IEEE
/// 802.1Q §8.6.2, §9.6).
///
/// # Errors
/// Why the packet is to be dropped.
#[inline]
pub fn outer(frame: &[u8]) -> Result<Outer, DropReason> {
    plain_vxlan(frame).map_or_else(|| general(frame), Ok)
}

/// The most common kind: VXLAN over IPv4 without options, untagged, without a UDP checksum. None: [`general`] looks again.
#[inline(always)]
pub(crate) fn plain_vxlan(frame: &[u8]) -> Option<Outer> {
    let head: &[u8; ETHERNET + 36] = frame.first_chunk()?;
    let be16 = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let be32 = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    // Sums are the same in either order of bytes (RFC 1071 §2).
    let word = |at: usize| {
        u64::from(u32::from_ne_bytes([
            head[at],
            head[at + 1],
            head[at + 2],
            head[at + 3],
        ]))
    };
    let sum = word(14) + word(18) + word(22) + word(26) + word(30);
    let (total, length) = (be16(16), be16(38));
    let plain = be16(12) == ETHERTYPE_IPV4
        && head[14] == 0x45
        && be16(20) & 0x3fff == 0
        && head[23] == protocol::UDP
        && be16(36) == VXLAN_PORT
        && be16(40) == 0
        && head[42] & 0x08 != 0
        && length >= 16
        && u32::from(length) + 20 <= u32::from(total)
        && usize::from(total) + ETHERNET <= frame.len().min(usize::from(u16::MAX))
        && checksum::is_right(sum);
    plain.then(|| Outer {
        source: mapped(be32(26)),
        destination: mapped(be32(30)),
        vni: Vni::from(be32(46) >> 8),
        inner: (ETHERNET + 36) as u16,
        end: ETHERNET as u16 + 20 + length,
        traffic_class: head[15],
    })
}

/// Every other kind.
pub(crate) fn general(frame: &[u8]) -> Result<Outer, DropReason> {
    // Offsets have 16 bits: a packet that ends further on is cut short.
    let frame = frame.get(..usize::from(u16::MAX)).unwrap_or(frame);
    let mut l3 = ETHERNET;
    if word(frame, l3 - 2)? == 0x8100 && word(frame, l3)? & 0x0fff == 0 {
        l3 += 4;
    }
    match word(frame, l3 - 2)? {
        ETHERTYPE_IPV4 => ipv4(frame, l3),
        ETHERTYPE_IPV6 => ipv6(frame, l3),
        _ => Err(DropReason::OuterHeader),
    }
}

fn word(frame: &[u8], at: usize) -> Result<u16, DropReason> {
    let pair = frame.get(at..).and_then(|rest| rest.first_chunk());
    pair.map(|pair| u16::from_be_bytes(*pair))
        .ok_or(DropReason::OuterHeader)
}

fn ipv4(frame: &[u8], l3: usize) -> Result<Outer, DropReason> {
    let header: &[u8; 20] = frame
        .get(l3..l3 + 20)
        .and_then(|h| h.try_into().ok())
        .ok_or(DropReason::OuterHeader)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || header_len < 20 || total < header_len || l3 + total > frame.len() {
        return Err(DropReason::OuterHeader);
    }
    if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
        return Err(DropReason::OuterFragment);
    }
    if checksum::fold(checksum::sum(&frame[l3..l3 + header_len])) != 0xffff {
        return Err(DropReason::OuterChecksum);
    }
    let source = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
    let destination = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
    let payload = Payload {
        family: Family::Ipv4,
        l4: l3 + header_len,
        end: l3 + total,
        source: mapped(source),
        destination: mapped(destination),
        traffic_class: header[1],
    };
    payload.tunnel(frame, header[9])
}

fn ipv6(frame: &[u8], l3: usize) -> Result<Outer, DropReason> {
    let header: &[u8; 40] = frame
        .get(l3..l3 + 40)
        .and_then(|h| h.try_into().ok())
        .ok_or(DropReason::OuterHeader)?;
    let end = l3 + 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if header[0] >> 4 != 6 || end > frame.len() {
        return Err(DropReason::OuterHeader);
    }
    let address = |at: usize| -> [u8; 16] { std::array::from_fn(|i| header[at + i]) };
    let payload = Payload {
        family: Family::Ipv6,
        l4: l3 + 40,
        end,
        source: u128::from_be_bytes(address(8)),
        destination: u128::from_be_bytes(address(24)),
        traffic_class: (u16::from_be_bytes([header[0], header[1]]) >> 4) as u8,
    };
    payload.tunnel(frame, header[6])
}

/// What lies behind the outer IP header.
struct Payload {
    family: Family,
    l4: usize,
    end: usize,
    source: u128,
    destination: u128,
    traffic_class: u8,
}

impl Payload {
    fn tunnel(&self, frame: &[u8], next: u8) -> Result<Outer, DropReason> {
        match next {
            protocol::UDP => self.vxlan(frame),
            protocol::GRE => self.gre(frame),
            _ => Err(DropReason::OuterHeader),
        }
    }

    fn outer(&self, vni: Vni, inner: usize, end: usize) -> Outer {
        let Self {
            source,
            destination,
            traffic_class,
            ..
        } = *self;
        Outer {
            source,
            destination,
            vni,
            inner: inner as u16,
            end: end as u16,
            traffic_class,
        }
    }

    /// RFC 7348 §5. A UDP checksum of zero is accepted over both families (RFC 6935), another must be right.
    fn vxlan(&self, frame: &[u8]) -> Result<Outer, DropReason> {
        let header = frame
            .get(self.l4..self.end)
            .filter(|h| h.len() >= 16)
            .ok_or(DropReason::OuterHeader)?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        if u16::from_be_bytes([header[2], header[3]]) != VXLAN_PORT
            || length < 16
            || length > header.len()
        {
            return Err(DropReason::OuterHeader);
        }
        if header[6..8] != [0, 0] {
            let pseudo = checksum::pseudo_header(
                self.family,
                self.source,
                self.destination,
                protocol::UDP,
                length as u32,
            );
            if checksum::fold(pseudo + checksum::sum(&header[..length])) != 0xffff {
                return Err(DropReason::OuterChecksum);
            }
        }
        if header[8] & 0x08 == 0 {
            return Err(DropReason::VxlanFlags);
        }
        let vni = Vni::from(u32::from_be_bytes([0, header[12], header[13], header[14]]));
        Ok(self.outer(vni, self.l4 + 16, self.l4 + length))
    }

    /// RFC 2784 §2, RFC 2890 §2. Checksum and sequence number are parsed though we never ask for them.
    fn gre(&self, frame: &[u8]) -> Result<Outer, DropReason> {
        let header = frame
            .get(self.l4..self.end)
            .filter(|h| h.len() >= 4)
            .ok_or(DropReason::OuterHeader)?;
        let flags = u16::from_be_bytes([header[0], header[1]]);
        // Version, and what RFC 1701 had besides: routing, strict source route, and the first bit of the recursion count, which RFC 2784 §2.1
        // refuses with the others.
        if flags & 0x4c07 != 0 || u16::from_be_bytes([header[2], header[3]]) != GRE_ETHERNET {
            return Err(DropReason::GreVersion);
        }
        if flags & 0x2000 == 0 {
            return Err(DropReason::GreNoKey);
        }
        let mut at = 4;
        if flags & 0x8000 != 0 {
            if checksum::fold(checksum::sum(header)) != 0xffff {
                return Err(DropReason::OuterChecksum);
            }
            at += 4;
        }
        let key = header.get(at..at + 4).ok_or(DropReason::OuterHeader)?;
        let key = u32::from_be_bytes([key[0], key[1], key[2], key[3]]);
        at += if flags & 0x1000 != 0 { 8 } else { 4 };
        if at > header.len() {
            return Err(DropReason::OuterHeader);
        }
        Ok(self.outer(Vni::from(key), self.l4 + at, self.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ipv4_frame(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 14 + 20];
        frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        frame[16..18].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
        frame[18..22].copy_from_slice(&[0x12, 0x34, 0x40, 0]);
        frame[22..24].copy_from_slice(&[64, protocol]);
        frame[26..34].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
        let sum = checksum::finish(checksum::sum(&frame[14..34]));
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    /// A packet of VXLAN with an inner frame of so many bytes.
    fn vxlan(inner: usize) -> Vec<u8> {
        let mut payload = vec![0; 16 + inner];
        let length = payload.len() as u16;
        payload[2..4].copy_from_slice(&VXLAN_PORT.to_be_bytes());
        payload[4..6].copy_from_slice(&length.to_be_bytes());
        payload[8] = 8;
        payload[12..15].copy_from_slice(&[1, 2, 3]);
        ipv4_frame(protocol::UDP, &payload)
    }

    fn tunnelled() -> Vec<u8> {
        vxlan(60)
    }

    #[test]
    fn the_common_kind_is_read_as_any_is() {
        let frame = tunnelled();
        let outer = plain_vxlan(&frame).unwrap();
        assert_eq!(general(&frame), Ok(outer));
        assert_eq!(
            (outer.vni, outer.inner, outer.end),
            (Vni::from(0x01_0203), 50, 110)
        );
    }

    #[test]
    fn a_priority_tag_is_skipped_and_a_vlan_is_not_ours() {
        let plain = outer(&tunnelled()).unwrap();
        let with = |tags: &[u8]| {
            let mut frame = tunnelled();
            frame.splice(12..12, tags.iter().copied());
            outer(&frame)
        };
        // Priority 5 and the eligible-to-drop bit say nothing of a VLAN.
        for tag in [[0x81, 0, 0, 0], [0x81, 0, 0xb0, 0]] {
            let expected = Outer {
                inner: plain.inner + 4,
                end: plain.end + 4,
                ..plain
            };
            assert_eq!(with(&tag), Ok(expected), "{tag:x?}");
        }
        for tags in [
            &[0x81, 0, 0x03, 0xe7][..],
            &[0x81, 0, 0, 1],
            &[0x88, 0xa8, 0, 0],
            &[0x81, 0, 0, 0, 0x81, 0, 0, 0],
            &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 8],
        ] {
            assert_eq!(with(tags), Err(DropReason::OuterHeader), "{tags:x?}");
        }
    }

    #[test]
    fn a_header_without_a_payload_is_a_header() {
        let mut frame = tunnelled();
        frame[16..18].copy_from_slice(&20u16.to_be_bytes());
        assert_eq!(outer(&frame), Err(DropReason::OuterChecksum));
        frame[24..26].fill(0);
        let sum = checksum::finish(checksum::sum(&frame[14..34]));
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(outer(&frame), Err(DropReason::OuterHeader));
    }

    #[test]
    fn offsets_reach_the_end_of_every_packet_that_is_accepted() {
        // The longest frame whose end 16 bits can say, then those that are longer by 1 and 14 bytes: an IP packet of 65 535 bytes.
        let furthest = usize::from(u16::MAX);
        let inner = furthest - 14 - 36;
        assert_eq!(general(&vxlan(inner)).map(|outer| outer.end), Ok(u16::MAX));
        assert_eq!(outer(&vxlan(inner)), general(&vxlan(inner)));
        for more in [1, 14] {
            let frame = vxlan(inner + more);
            assert_eq!(outer(&frame), Err(DropReason::OuterHeader), "{more}");
        }
        // Padding may lie beyond.
        let mut padded = tunnelled();
        for len in [furthest, furthest + 1, furthest + 2] {
            padded.resize(len, 0);
            assert_eq!(plain_vxlan(&padded), plain_vxlan(&tunnelled()), "{len}");
            assert_eq!(general(&padded), outer(&tunnelled()), "{len}");
        }
    }

    #[test]
    fn a_gre_header_has_all_the_fields_that_its_flags_announce() {
        let cut = Err(DropReason::OuterHeader);
        // Flags, bytes of GRE header that are there, and where the inner frame begins. An inner frame of no bytes is the inner parser's.
        let cases = [
            (0x2000, 8, Ok(42)),
            (0x2000, 7, cut),
            (0x3000, 12, Ok(46)),
            (0x3000, 11, cut),
            (0x3000, 8, cut),
            (0xa000, 12, Ok(46)),
            (0xa000, 11, cut),
            (0xb000, 16, Ok(50)),
            (0xb000, 15, cut),
        ];
        for (flags, len, expected) in cases {
            let mut header = [0; 16];
            header[..2].copy_from_slice(&u16::to_be_bytes(flags));
            header[2..4].copy_from_slice(&GRE_ETHERNET.to_be_bytes());
            if flags & 0x8000 != 0 {
                let sum = checksum::finish(checksum::sum(&header));
                header[4..6].copy_from_slice(&sum.to_be_bytes());
            }
            let frame = ipv4_frame(protocol::GRE, &header[..len]);
            let found = outer(&frame).map(|outer| outer.inner);
            assert_eq!(found, expected, "flags {flags:04x}, {len} bytes");
        }
    }

    proptest! {
        #[test]
        fn the_quick_look_never_says_what_the_long_one_does_not(
            changes in proptest::collection::vec((12usize..50, any::<u8>(), any::<bool>()), 0..3),
            cut in 0usize..120,
        ) {
            let mut frame = tunnelled();
            for (at, value, mend) in changes {
                frame[at] = value;
                if mend {
                    frame[24..26].fill(0);
                    let sum = checksum::finish(checksum::sum(&frame[14..34]));
                    frame[24..26].copy_from_slice(&sum.to_be_bytes());
                }
            }
            frame.truncate(cut);
            if let Some(outer) = plain_vxlan(&frame) {
                prop_assert_eq!(general(&frame), Ok(outer));
            }
        }
    }
}
