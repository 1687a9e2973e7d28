//! Classifies a packet from the underlay: a tunnel packet, a fragment, or one for the kernel.
//!
//! Reads headers only as far as the decision needs: Ethernet, untagged or with a priority tag (IEEE 802.1Q §9.6), IPv4 with options (RFC
//! 791), IPv6 with up to four extension headers (RFC 8200 §4), UDP port 4789 (RFC 7348) and GRE that carries Ethernet (RFC 2784). All other
//! packets go to the kernel.

use aya_ebpf::programs::XdpContext;
use weft_ebpf_types::{AddressKey, GRE_ETHERNET, PROTOCOL_GRE, VXLAN_PORT, mapped_v4};

pub const ETHERNET_LEN: usize = 14;
pub const VLAN_TAG_LEN: usize = 4;
/// The VLAN identifier in a tag (IEEE 802.1Q §9.6). 0: the tag says a priority alone, and the frame is of no VLAN.
pub const VLAN_ID: u16 = 0x0fff;
const MAX_EXTENSIONS: usize = 4;

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
pub const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

const PROTOCOL_UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// The decision. The destination address is left in `to`, since the verifier wants memory that is written on every path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// VXLAN or GRE with Ethernet inside, whole.
    Tunnel,
    /// A fragment of UDP or GRE.
    Fragment,
    /// Of a VLAN. The interface of a VLAN is another one, and so would its uplink be (IEEE 802.1Q §8.6.2).
    Tagged,
    /// Truncated, or a length that can't be.
    Malformed,
    /// Anything else.
    Other,
}

/// Copies `N` bytes at `offset`, or none if the packet ends before. Never a single byte: the check is then compiled into one that
/// the verifier learns nothing from.
#[inline(always)]
pub fn read<const N: usize>(ctx: &XdpContext, offset: usize) -> Option<[u8; N]> {
    const { assert!(N > 1) };
    let start = ctx.data() + offset;
    if start + N > ctx.data_end() {
        return None;
    }
    // SAFETY: the N bytes at `start` lie between the packet's data and data_end, checked above (and by the verifier); a
    // byte array has no alignment.
    Some(unsafe { *(start as *const [u8; N]) })
}

#[inline(always)]
pub fn read_u16(ctx: &XdpContext, offset: usize) -> Option<u16> {
    read::<2>(ctx, offset).map(u16::from_be_bytes)
}

#[inline(always)]
pub fn classify(ctx: &XdpContext, to: &mut AddressKey) -> Class {
    match parse(ctx, to) {
        Some(class) => class,
        None => Class::Malformed,
    }
}

#[inline(always)]
fn parse(ctx: &XdpContext, to: &mut AddressKey) -> Option<Class> {
    let mut offset = ETHERNET_LEN;
    let mut ethertype = read_u16(ctx, 12)?;
    if ethertype == ETHERTYPE_VLAN && read_u16(ctx, offset)? & VLAN_ID == 0 {
        ethertype = read_u16(ctx, offset + 2)?;
        offset += VLAN_TAG_LEN;
    }
    match ethertype {
        ETHERTYPE_IPV4 => parse_ipv4(ctx, offset, to),
        ETHERTYPE_IPV6 => parse_ipv6(ctx, offset, to),
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => Some(Class::Tagged),
        _ => Some(Class::Other),
    }
}

#[inline(always)]
fn parse_ipv4(ctx: &XdpContext, offset: usize, to: &mut AddressKey) -> Option<Class> {
    let [first, _] = read::<2>(ctx, offset)?;
    let header_len = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_len < 20 {
        return None;
    }
    let flags_and_offset = read_u16(ctx, offset + 6)?;
    let [_, protocol] = read::<2>(ctx, offset + 8)?;
    *to = mapped_v4(read::<4>(ctx, offset + 16)?);
    if protocol != PROTOCOL_UDP && protocol != PROTOCOL_GRE {
        return Some(Class::Other);
    }
    // More fragments, or not the first (RFC 791 §3.1).
    if flags_and_offset & 0x3fff != 0 {
        return Some(Class::Fragment);
    }
    parse_tunnel(ctx, offset + header_len, protocol)
}

#[inline(always)]
fn parse_ipv6(ctx: &XdpContext, offset: usize, to: &mut AddressKey) -> Option<Class> {
    let [first, _] = read::<2>(ctx, offset)?;
    if first >> 4 != 6 {
        return None;
    }
    let [mut next, _] = read::<2>(ctx, offset + 6)?;
    *to = read::<16>(ctx, offset + 24)?;
    let mut offset = offset + 40;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            PROTOCOL_UDP | PROTOCOL_GRE => break,
            FRAGMENT => {
                // A fragment header may come alone: an "atomic" fragment is still the kernel's to reassemble.
                let [carried, _] = read::<2>(ctx, offset)?;
                let is_tunnel = carried == PROTOCOL_UDP || carried == PROTOCOL_GRE;
                return Some(if is_tunnel {
                    Class::Fragment
                } else {
                    Class::Other
                });
            }
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let [following, units] = read::<2>(ctx, offset)?;
                next = following;
                offset += (usize::from(units) + 1) * 8;
            }
            _ => return Some(Class::Other),
        }
    }
    parse_tunnel(ctx, offset, next)
}

#[inline(always)]
fn parse_tunnel(ctx: &XdpContext, offset: usize, protocol: u8) -> Option<Class> {
    let ours = match protocol {
        PROTOCOL_UDP => read_u16(ctx, offset + 2)? == VXLAN_PORT,
        // Whatever the version: an unknown one is for the daemon to drop and count.
        PROTOCOL_GRE => read_u16(ctx, offset + 2)? == GRE_ETHERNET,
        _ => false,
    };
    Some(if ours { Class::Tunnel } else { Class::Other })
}
