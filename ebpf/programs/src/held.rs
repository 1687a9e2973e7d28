//! Which address a frame is for, or about, on a segment where this host answers for addresses that the kernel does not have.
//!
//! Read after [`parse`](crate::parse) has found no tunnel packet to us. Only the first headers are looked at, untagged or behind one VLAN tag
//! (IEEE 802.1Q §9.6): an IP packet is for its destination, whatever it carries; ARP (RFC 826) and neighbour discovery (RFC 4861 §4.3, §4.4)
//! are about addresses in their body too, for somebody else may claim ours.

use aya_ebpf::programs::XdpContext;
use weft_ebpf_types::{AddressKey, mapped_v4};

use crate::parse::{
    ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, VLAN_TAG_LEN, read, read_u16,
};

const ETHERTYPE_ARP: u16 = 0x0806;
/// Ethernet, IPv4, and the lengths of their addresses.
const ARP_OF_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const PROTOCOL_ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Whether the frame is for an address that `is_held` knows, or about one. What is truncated before that can be said is not.
#[inline(always)]
pub fn is_for(ctx: &XdpContext, is_held: impl Fn(&AddressKey) -> bool) -> bool {
    judge(ctx, is_held).unwrap_or(false)
}

#[inline(always)]
fn judge(ctx: &XdpContext, is_held: impl Fn(&AddressKey) -> bool) -> Option<bool> {
    let mut offset = ETHERNET_LEN;
    let mut ethertype = read_u16(ctx, 12)?;
    if ethertype == ETHERTYPE_VLAN {
        ethertype = read_u16(ctx, offset + 2)?;
        offset += VLAN_TAG_LEN;
    }
    match ethertype {
        ETHERTYPE_IPV4 => Some(is_held(&mapped_v4(read::<4>(ctx, offset + 16)?))),
        ETHERTYPE_IPV6 => {
            if is_held(&read::<16>(ctx, offset + 24)?) {
                return Some(true);
            }
            // Behind extension headers there is none: they are refused by receivers that follow RFC 6980, and sent by nobody else.
            let [next, _] = read::<2>(ctx, offset + 6)?;
            if next != PROTOCOL_ICMPV6 {
                return Some(false);
            }
            let [kind, _] = read::<2>(ctx, offset + 40)?;
            if kind != NEIGHBOUR_SOLICITATION && kind != NEIGHBOUR_ADVERTISEMENT {
                return Some(false);
            }
            Some(is_held(&read::<16>(ctx, offset + 48)?))
        }
        ETHERTYPE_ARP => {
            if read::<6>(ctx, offset)? != ARP_OF_IPV4 {
                return Some(false);
            }
            let target = mapped_v4(read::<4>(ctx, offset + 24)?);
            if is_held(&target) {
                return Some(true);
            }
            Some(is_held(&mapped_v4(read::<4>(ctx, offset + 14)?)))
        }
        _ => Some(false),
    }
}
