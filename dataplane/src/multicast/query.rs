//! Queries of the gateway to the guest of a port: IGMPv3 (RFC 3376 §4.1) and MLDv2 (RFC 3810 §5.1), which hosts of older versions read as their own.

use super::message::mac_of;
use super::{is_ipv4, querier};
use crate::packet::checksum;
use crate::packet::parse::{ETHERNET, Family, protocol};
use crate::pipeline::guard::link_local;
use crate::snapshot::Subnet;

/// The Router Alert option of IPv4 (RFC 2113).
const ALERT_V4: [u8; 4] = [0x94, 4, 0, 0];
/// A hop-by-hop header with the Router Alert option for MLD (RFC 2711), before ICMPv6.
const ALERT_V6: [u8; 8] = [protocol::ICMPV6, 0, 5, 2, 0, 0, 1, 0];
/// All systems on the link, by family.
const ALL_V4: u128 = crate::packet::parse::IPV4_MAPPED | 0xe000_0001;
const ALL_V6: u128 = 0xff02 << 112 | 1;
/// DSCP CS6: of the network itself.
const CLASS: u8 = 0xc0;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub enum About<'q> {
    /// Every group of a family.
    All(Family),
    /// One group.
    Group(u128),
    /// Sources of a group.
    Sources(u128, &'q [u128]),
}

/// A query from the gateway of a subnet, answered within so many milliseconds: a frame. None where the subnet has no gateway in the family.
pub fn frame(subnet: &Subnet, about: About<'_>, answer_within: u16) -> Option<Vec<u8>> {
    let (family, group, sources) = match about {
        About::All(family) => (family, None, &[][..]),
        About::Group(group) => (family_of(group), Some(group), &[][..]),
        About::Sources(group, sources) => (family_of(group), Some(group), sources),
    };
    let gateway = subnet.gateway(family)?;
    let to = group.unwrap_or(match family {
        Family::Ipv4 => ALL_V4,
        Family::Ipv6 => ALL_V6,
    });
    let group = group.unwrap_or_default();
    let mut frame = Vec::with_capacity(128);
    frame.extend(mac_of(to).bytes());
    frame.extend(subnet.gateway_mac.bytes());
    match family {
        Family::Ipv4 => {
            let body = igmp(group as u32, sources, answer_within);
            frame.extend([0x08, 0x00]);
            let total = (24 + body.len()) as u16;
            let [high, low] = total.to_be_bytes();
            frame.extend([
                0x46,
                CLASS,
                high,
                low,
                0,
                0,
                0x40,
                0,
                1,
                protocol::IGMP,
                0,
                0,
            ]);
            frame.extend((gateway as u32).to_be_bytes());
            frame.extend((to as u32).to_be_bytes());
            frame.extend(ALERT_V4);
            let sum = checksum::finish(checksum::sum(&frame[ETHERNET..]));
            frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(body);
        }
        Family::Ipv6 => {
            // Routers ask with their link-local address (RFC 3810 §5.1.14).
            let from = link_local(subnet.gateway_mac);
            let mut body = mld(group, sources, answer_within);
            let length = body.len() as u32;
            let pseudo = checksum::pseudo_header(Family::Ipv6, from, to, protocol::ICMPV6, length);
            let sum = checksum::finish(pseudo + checksum::sum(&body));
            body[2..4].copy_from_slice(&sum.to_be_bytes());
            frame.extend([0x86, 0xdd]);
            frame.extend([0x60 | CLASS >> 4, CLASS << 4, 0, 0]);
            frame.extend(((ALERT_V6.len() + body.len()) as u16).to_be_bytes());
            frame.extend([protocol::HOP_BY_HOP, 1]);
            frame.extend(from.to_be_bytes());
            frame.extend(to.to_be_bytes());
            frame.extend(ALERT_V6);
            frame.extend(body);
        }
    }
    Some(frame)
}

fn family_of(group: u128) -> Family {
    if is_ipv4(group) {
        Family::Ipv4
    } else {
        Family::Ipv6
    }
}

/// The robustness, and the interval of general queries in seconds, as both protocols write it.
const QUERIER: [u8; 2] = [querier::ROBUSTNESS as u8, (querier::INTERVAL / 1000) as u8];

fn igmp(group: u32, sources: &[u128], answer_within: u16) -> Vec<u8> {
    // In tenths of a second, below 128 as a plain number (RFC 3376 §4.1.1).
    let tenths = (answer_within / 100).clamp(1, 127) as u8;
    let mut body = vec![0x11, tenths, 0, 0];
    body.extend(group.to_be_bytes());
    body.extend(QUERIER);
    body.extend((sources.len() as u16).to_be_bytes());
    for source in sources {
        body.extend((*source as u32).to_be_bytes());
    }
    let sum = checksum::finish(checksum::sum(&body));
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    body
}

/// Without its checksum. The time is in milliseconds, below 32768 as a plain number (RFC 3810 §5.1.3).
fn mld(group: u128, sources: &[u128], answer_within: u16) -> Vec<u8> {
    let mut body = vec![130, 0, 0, 0];
    body.extend(answer_within.min(0x7fff).to_be_bytes());
    body.extend([0, 0]);
    body.extend(group.to_be_bytes());
    body.extend(QUERIER);
    body.extend((sources.len() as u16).to_be_bytes());
    for source in sources {
        body.extend(source.to_be_bytes());
    }
    body
}
