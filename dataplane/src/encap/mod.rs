//! Encapsulation: the outer headers as a template per tunnel, written in front of the inner frame in place.
//!
//! VXLAN (RFC 7348) and GRE with a key (RFC 2784, RFC 2890) over IPv4 and IPv6. DSCP and ECN of the inner packet are copied outwards
//! (RFC 2983 uniform model, RFC 6040 §4.1 normal mode).

pub mod decap;

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

/// The outer header towards one VTEP, but for length, VNI, traffic class and entropy. 80 bytes.
#[derive(Debug, Clone)]
pub struct Template {
    bytes: [u8; MAX_OUTER],
    len: u8,
    encapsulation: Encapsulation,
    ipv6: bool,
    /// Sum over the IPv4 header with length and traffic class zero.
    base_sum: u64,
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
        let mut bytes = [0; MAX_OUTER];
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
        Self {
            bytes,
            len: len as u8,
            encapsulation,
            ipv6,
            base_sum: checksum::sum(&bytes[14..34]),
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
    /// Answers whether there was room.
    pub fn push(
        &self,
        memory: &mut impl FrameMemory,
        packet: &mut Packet,
        vni: u32,
        traffic_class: u8,
        entropy: u16,
    ) -> bool {
        let len = self.overhead();
        if !make_headroom(
            memory,
            &mut packet.frame,
            &mut packet.start,
            packet.len,
            len,
        ) {
            return false;
        }
        packet.start -= self.len as u16;
        packet.len += self.len as u16;
        let total = packet.len;
        let bytes = packet.bytes_mut(memory);
        let Some((outer, _)) = bytes.split_at_mut_checked(len) else {
            return false;
        };
        outer.copy_from_slice(&self.bytes[..len]);
        let l4 = if self.ipv6 {
            outer[14] |= traffic_class >> 4;
            outer[15] = traffic_class << 4;
            outer[18..20].copy_from_slice(&(total - 54).to_be_bytes());
            54
        } else {
            outer[15] = traffic_class;
            let ip_len = total - 14;
            outer[16..18].copy_from_slice(&ip_len.to_be_bytes());
            let sum =
                checksum::finish(self.base_sum + u64::from(traffic_class) + u64::from(ip_len));
            outer[24..26].copy_from_slice(&sum.to_be_bytes());
            34
        };
        match self.encapsulation {
            Encapsulation::Vxlan => {
                outer[l4..l4 + 2].copy_from_slice(&(0xc000 | entropy >> 2).to_be_bytes());
                outer[l4 + 4..l4 + 6].copy_from_slice(&(total - l4 as u16).to_be_bytes());
                outer[l4 + 12..l4 + 16].copy_from_slice(&(vni << 8).to_be_bytes());
            }
            Encapsulation::Gre => outer[l4 + 4..l4 + 8].copy_from_slice(&vni.to_be_bytes()),
        }
        true
    }
}

/// Moves a packet back in its buffer until `needed` bytes are free in front of it. Answers whether that was possible.
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
