//! Encapsulation: the outer headers as a template per tunnel, written in front of the inner frame in place.
//!
//! VXLAN (RFC 7348) and GRE with a key (RFC 2784, RFC 2890) over IPv4 and IPv6. DSCP and ECN of the inner packet are copied outwards
//! (RFC 2983 uniform model, RFC 6040 §4.1 normal mode).

pub mod decap;

use crate::numbers::Vni;
use crate::packet::checksum;
use crate::packet::parse::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, protocol, word_address};
use crate::packet::{Frame, FrameMemory, Mac, Packet};

/// UDP port of VXLAN (RFC 7348 §5).
pub const VXLAN_PORT: u16 = 4789;
/// GRE protocol type of an Ethernet payload.
pub const GRE_ETHERNET: u16 = 0x6558;
/// The longest outer header: Ethernet, IPv6, UDP, VXLAN.
pub const MAX_OUTER: usize = ETHERNET + 40 + 8 + 8;
/// TTL of outer headers.
const OUTER_TTL: u8 = 64;

/// How a remote VTEP wants its packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Encapsulation {
    Vxlan,
    Gre,
}

/// Bytes that are written in front of a packet, of which the header is the last: IPv4, and IPv6. Copying a fixed number of bytes, more
/// than needed, is cheaper than copying the right number.
const REACH: [usize; 2] = [64, 80];

/// The outer header towards one VTEP, without length, VNI, traffic class and entropy, which [`push`](Self::push) fills in. 96 bytes.
///
/// [`decap::outer`] reads what [`push`](Self::push) writes:
///
/// ```
/// use std::net::IpAddr;
/// use weft_dataplane::encap::{Encapsulation, Template, decap};
/// use weft_dataplane::packet::{Mac, PlainMemory, parse::address_word};
///
/// let word = |text: &str| text.parse::<IpAddr>().map(address_word);
/// let macs = (Mac::from_bytes([6, 0, 0, 0, 0, 1]), Mac::from_bytes([6, 0, 0, 0, 0, 2]));
/// let inner = [0x5a; 60];
/// for (encapsulation, source, destination, overhead) in [
///     (Encapsulation::Vxlan, "192.0.2.1", "192.0.2.2", 50),
///     (Encapsulation::Vxlan, "2001:db8::1", "2001:db8::2", 70),
///     (Encapsulation::Gre, "192.0.2.1", "192.0.2.2", 42),
///     (Encapsulation::Gre, "2001:db8::1", "2001:db8::2", 62),
/// ] {
///     let template = Template::new(encapsulation, macs, word(source)?, word(destination)?);
///     assert_eq!(template.overhead(), overhead);
///
///     let mut memory = PlainMemory::new(1, 2048);
///     let mut packet = memory.packet(128, &inner).ok_or("no buffer")?;
///     assert!(template.push(&mut memory, &mut packet, 100.into(), 0xb8, 0x1234), "there is room ahead");
///
///     let bytes = packet.bytes(&memory);
///     let outer = decap::outer(bytes).map_err(|reason| reason.name())?;
///     assert_eq!((outer.source, outer.destination), (word(source)?, word(destination)?));
///     assert_eq!((outer.vni, outer.traffic_class), (100.into(), 0xb8));
///     assert_eq!(bytes[outer.inner.into()..outer.end.into()], inner);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Template {
    /// The header is at the end.
    bytes: [u8; REACH[1]],
    len: u8,
    encapsulation: Encapsulation,
    ipv6: bool,
    /// Sum over the IPv4 header with length and traffic class zero.
    base_sum: u32,
}

impl Template {
    /// The template for a tunnel between two addresses of one family.
    pub fn new(
        encapsulation: Encapsulation,
        macs: (Mac, Mac),
        source: u128,
        destination: u128,
    ) -> Self {
        let (source_mac, next_hop_mac) = macs;
        let mut bytes = [0; REACH[1]];
        bytes[..6].copy_from_slice(&next_hop_mac.bytes());
        bytes[6..12].copy_from_slice(&source_mac.bytes());
        let next = match encapsulation {
            Encapsulation::Vxlan => protocol::UDP,
            Encapsulation::Gre => protocol::GRE,
        };
        let ipv6 = word_address(source).is_ipv6();
        let l4 = if ipv6 {
            bytes[12..14].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
            bytes[14] = 0x60;
            bytes[20] = next;
            bytes[21] = OUTER_TTL;
            bytes[22..38].copy_from_slice(&source.to_be_bytes());
            bytes[38..54].copy_from_slice(&destination.to_be_bytes());
            54
        } else {
            bytes[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
            bytes[14] = 0x45;
            bytes[20] = 0x40; // don't fragment
            bytes[22] = OUTER_TTL;
            bytes[23] = next;
            bytes[26..30].copy_from_slice(&(source as u32).to_be_bytes());
            bytes[30..34].copy_from_slice(&(destination as u32).to_be_bytes());
            34
        };
        let len = match encapsulation {
            Encapsulation::Vxlan => {
                bytes[l4 + 2..l4 + 4].copy_from_slice(&VXLAN_PORT.to_be_bytes());
                bytes[l4 + 8] = 0x08; // the I flag
                l4 + 16
            }
            Encapsulation::Gre => {
                bytes[l4] = 0x20; // the K bit
                bytes[l4 + 2..l4 + 4].copy_from_slice(&GRE_ETHERNET.to_be_bytes());
                l4 + 8
            }
        };
        let base_sum = u32::from(checksum::fold(checksum::sum(&bytes[14..34])));
        bytes.copy_within(..len, REACH[1] - len);
        Self {
            bytes,
            len: len as u8,
            encapsulation,
            ipv6,
            base_sum,
        }
    }

    /// Bytes of outer header, Ethernet included.
    pub fn overhead(&self) -> usize {
        usize::from(self.len)
    }

    /// What an inner IP packet may measure when the underlay carries IP packets of `underlay_mtu` bytes.
    pub fn inner_mtu(&self, underlay_mtu: u16) -> u16 {
        // Outer headers less outer Ethernet, plus inner Ethernet: the two are equally long.
        underlay_mtu.saturating_sub(u16::from(self.len))
    }

    /// Writes the outer header in front of the packet. When the buffer has no room in front, the packet is moved back first.
    /// Returns whether there was room.
    pub fn push(
        &self,
        memory: &mut impl FrameMemory,
        packet: &mut Packet,
        vni: Vni,
        traffic_class: u8,
        entropy: u16,
    ) -> bool {
        if !make_headroom(
            memory,
            &mut packet.frame,
            &mut packet.start,
            packet.len,
            self.reach(),
        ) {
            return false;
        }
        let start = usize::from(packet.start);
        let pushed = self.write(
            memory.bytes_mut(&mut packet.frame),
            start,
            packet.len,
            vni,
            traffic_class,
            entropy,
        );
        if pushed {
            packet.start -= u16::from(self.len);
            packet.len += u16::from(self.len);
        }
        pushed
    }

    /// Bytes in front of a packet that [`Self::write`] needs. It leaves what lies further ahead than the header undefined.
    #[inline]
    pub fn reach(&self) -> usize {
        REACH[usize::from(self.ipv6)]
    }

    /// Writes the outer header in front of the packet of `len` bytes at `start`. Returns whether there was room.
    #[inline(always)]
    pub fn write(
        &self,
        area: &mut [u8],
        start: usize,
        len: u16,
        vni: Vni,
        traffic_class: u8,
        entropy: u16,
    ) -> bool {
        let ahead = area.get_mut(..start).unwrap_or_default();
        if self.ipv6 {
            let Some(place) = ahead.last_chunk_mut::<{ REACH[1] }>() else {
                return false;
            };
            *place = self.bytes;
            self.write_ipv6(place, len, vni, traffic_class, entropy);
        } else {
            let (Some(place), Some(bytes)) = (
                ahead.last_chunk_mut::<{ REACH[0] }>(),
                self.bytes.last_chunk(),
            ) else {
                return false;
            };
            *place = *bytes;
            self.write_ipv4(place, len, vni, traffic_class, entropy);
        }
        true
    }

    #[inline(always)]
    fn write_ipv4(
        &self,
        place: &mut [u8; REACH[0]],
        len: u16,
        vni: Vni,
        traffic_class: u8,
        entropy: u16,
    ) {
        // Where the IPv4 header begins, and what follows it.
        let (l3, udp) = match self.encapsulation {
            Encapsulation::Vxlan => (REACH[0] - 36, true),
            Encapsulation::Gre => (REACH[0] - 28, false),
        };
        let total = len + u16::from(self.len) - ETHERNET as u16;
        let sum = self.base_sum + u32::from(traffic_class) + u32::from(total);
        place[l3 + 1] = traffic_class;
        put16(place, l3 + 2, total);
        put16(place, l3 + 10, checksum::finish_few(sum));
        if udp {
            write_vxlan(place, total - 20, vni, entropy);
        } else {
            write_gre(place, vni);
        }
    }

    #[inline(always)]
    fn write_ipv6(
        &self,
        place: &mut [u8; REACH[1]],
        len: u16,
        vni: Vni,
        traffic_class: u8,
        entropy: u16,
    ) {
        let (l3, udp) = match self.encapsulation {
            Encapsulation::Vxlan => (REACH[1] - 56, true),
            Encapsulation::Gre => (REACH[1] - 48, false),
        };
        let payload = len + u16::from(self.len) - ETHERNET as u16 - 40;
        place[l3] |= traffic_class >> 4;
        place[l3 + 1] = traffic_class << 4;
        put16(place, l3 + 4, payload);
        if udp {
            write_vxlan(place, payload, vni, entropy);
        } else {
            write_gre(place, vni);
        }
    }
}

#[inline]
fn put16(place: &mut [u8], at: usize, value: u16) {
    place[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The last 16 bytes: UDP and VXLAN. `len` is that of the datagram.
#[inline]
fn write_vxlan<const N: usize>(place: &mut [u8; N], len: u16, vni: Vni, entropy: u16) {
    put16(place, N - 16, 0xc000 + (entropy >> 2));
    put16(place, N - 12, len);
    place[N - 4..].copy_from_slice(&(vni.get() << 8).to_be_bytes());
}

/// The last 8 bytes: GRE with a key.
#[inline]
fn write_gre<const N: usize>(place: &mut [u8; N], vni: Vni) {
    place[N - 4..].copy_from_slice(&vni.get().to_be_bytes());
}

/// Moves a packet back in its buffer until `needed` bytes are free in front of it. Returns whether that was possible.
fn make_headroom(
    memory: &mut impl FrameMemory,
    frame: &mut Frame,
    start: &mut u16,
    len: u16,
    needed: usize,
) -> bool {
    let (from, length) = (usize::from(*start), usize::from(len));
    if from >= needed {
        return true;
    }
    let area = memory.bytes_mut(frame);
    if needed + length > area.len() {
        return false;
    }
    area.copy_within(from..from + length, needed);
    *start = needed as u16;
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::buffer::PlainMemory;

    #[test]
    fn a_packet_is_moved_back_as_far_as_its_buffer_goes() {
        let mut memory = PlainMemory::new(1, 100);
        let bytes: Vec<u8> = (0..60).collect();
        let Packet {
            mut frame,
            mut start,
            len,
        } = memory.packet(10, &bytes).unwrap();
        assert!(!make_headroom(&mut memory, &mut frame, &mut start, len, 41));
        assert_eq!(start, 10);
        assert!(make_headroom(&mut memory, &mut frame, &mut start, len, 40));
        assert_eq!(start, 40);
        assert_eq!(memory.bytes(&frame)[40..], *bytes);
    }

    #[test]
    fn the_udp_source_port_is_ephemeral_and_tells_flows_apart() {
        // RFC 7348 §5: from 49152 on. Which flow it is is said best by the upper bits.
        let mac = Mac::from_bytes([2, 0, 0, 0, 0, 1]);
        for (source, destination) in [(0xffff_0a00_0001, 0xffff_0a00_0002), (1 << 120, 2 << 120)] {
            let template = Template::new(Encapsulation::Vxlan, (mac, mac), source, destination);
            for (entropy, port) in [(0, 0xc000u16), (3, 0xc000), (4, 0xc001), (0xffff, 0xffff)] {
                let mut area = [0; 80];
                assert!(template.write(&mut area, 80, 60, 1.into(), 0, entropy));
                assert_eq!(area[64..66], port.to_be_bytes(), "{entropy:04x}");
            }
        }
    }

    #[test]
    fn the_longest_header_is_that_of_vxlan_over_ipv6() {
        let mac = Mac::from_bytes([2, 0, 0, 0, 0, 1]);
        let addresses = [(0xffff_0a00_0001, 0xffff_0a00_0002), (1 << 120, 2 << 120)];
        let overheads = [Encapsulation::Gre, Encapsulation::Vxlan].map(|encapsulation| {
            addresses.map(|(source, destination)| {
                Template::new(encapsulation, (mac, mac), source, destination).overhead()
            })
        });
        assert_eq!(overheads, [[42, 62], [50, 70]]);
        assert_eq!(MAX_OUTER, 70);
    }
}
