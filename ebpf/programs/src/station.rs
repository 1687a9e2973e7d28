//! The station that a frame is for on a segment where ports of this host are: by its destination MAC and its VLAN (IEEE 802.1Q §9.6).
//!
//! Broadcast and multicast frames are all for one station, [`GROUP`], which is among ours where a VLAN, or what is untagged, is all ours. XDP hands a frame to
//! one receiver, so that what the kernel is to hear as well is not taken this way.

use aya_ebpf::programs::XdpContext;
use weft_ebpf_types::{GROUP, StationKey};

use crate::parse::{ETHERNET_LEN, ETHERTYPE_VLAN, VLAN_ID, read, read_u16};

/// The station, or none if the frame is truncated before it is said.
#[inline(always)]
pub fn of(ctx: &XdpContext) -> Option<StationKey> {
    let [mut a, mut b, mut c, mut d, mut e, mut f] = read::<6>(ctx, 0)?;
    let vlan = match read_u16(ctx, 12)? {
        ETHERTYPE_VLAN => read_u16(ctx, ETHERNET_LEN)? & VLAN_ID,
        _ => 0,
    };
    // The link's own: LACP, LLDP and their like are for the kernel (IEEE 802.1Q §8.6.3).
    if [a, b, c, d, e] == [0x01, 0x80, 0xc2, 0, 0] && f & 0xf0 == 0 {
        return None;
    }
    if a & 1 != 0 {
        [a, b, c, d, e, f] = GROUP;
    }
    let [high, low] = vlan.to_be_bytes();
    Some([high, low, a, b, c, d, e, f])
}
