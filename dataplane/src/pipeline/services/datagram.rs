//! UDP as the services read and write it.

use super::headers;
use crate::packet::checksum;
use crate::packet::parse::{
    ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Family, Parsed, protocol, word_family,
};
use crate::packet::{DropReason, Mac};

/// Who sends to whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Envelope {
    pub eth_dst: Mac,
    pub eth_src: Mac,
    pub source: u128,
    pub destination: u128,
    /// Source and destination.
    pub ports: (u16, u16),
}

/// The payload of a datagram whose checksum is right, or absent where it may be (RFC 1122 §4.1.3.4, RFC 8200 §8.1).
pub(super) fn payload<'f>(frame: &'f [u8], parsed: &Parsed) -> Result<&'f [u8], DropReason> {
    let datagram = frame
        .get(usize::from(parsed.l4)..usize::from(parsed.end))
        .ok_or(DropReason::DhcpMalformed)?;
    let header: &[u8; 8] = datagram.first_chunk().ok_or(DropReason::DhcpMalformed)?;
    let len = u16::from_be_bytes([header[4], header[5]]);
    let datagram = datagram
        .get(..usize::from(len))
        .ok_or(DropReason::DhcpMalformed)?;
    let absent = parsed.family == Family::Ipv4 && header[6..] == [0, 0];
    let sum = checksum::pseudo_header(
        parsed.family,
        parsed.flow.source,
        parsed.flow.destination,
        protocol::UDP,
        len.into(),
    ) + checksum::sum(datagram);
    if !absent && checksum::fold(sum) != 0xffff {
        return Err(DropReason::DhcpMalformed);
    }
    datagram.get(8..).ok_or(DropReason::DhcpMalformed)
}

/// Writes the headers ahead of a payload that is in its place already. Answers the frame's length; none if the frame is too short.
pub(super) fn write(area: &mut [u8], envelope: &Envelope, payload: usize) -> Option<u16> {
    let family = word_family(envelope.source);
    let l4 = headers(family) - 8;
    let total = u16::try_from(l4 + 8 + payload).ok()?;
    let frame = area.get_mut(..usize::from(total))?;
    let (ethernet, packet) = frame.split_at_mut(ETHERNET);
    let (ip, datagram) = packet.split_at_mut(l4 - ETHERNET);
    ethernet[..6].copy_from_slice(&envelope.eth_dst.bytes());
    ethernet[6..12].copy_from_slice(&envelope.eth_src.bytes());
    let (ether_type, len) = (
        match family {
            Family::Ipv4 => ETHERTYPE_IPV4,
            Family::Ipv6 => ETHERTYPE_IPV6,
        },
        datagram.len() as u16,
    );
    ethernet[12..].copy_from_slice(&ether_type.to_be_bytes());
    ip.fill(0);
    match family {
        Family::Ipv4 => {
            // "Don't fragment": the identification may then be 0 (RFC 6864 §4.1).
            (ip[0], ip[6], ip[8], ip[9]) = (0x45, 0x40, 64, protocol::UDP);
            ip[2..4].copy_from_slice(&(len + 20).to_be_bytes());
            ip[12..16].copy_from_slice(&(envelope.source as u32).to_be_bytes());
            ip[16..].copy_from_slice(&(envelope.destination as u32).to_be_bytes());
            let sum = checksum::finish(checksum::sum(ip));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Family::Ipv6 => {
            (ip[0], ip[6], ip[7]) = (0x60, protocol::UDP, 64);
            ip[4..6].copy_from_slice(&len.to_be_bytes());
            ip[8..24].copy_from_slice(&envelope.source.to_be_bytes());
            ip[24..].copy_from_slice(&envelope.destination.to_be_bytes());
        }
    }
    datagram[..2].copy_from_slice(&envelope.ports.0.to_be_bytes());
    datagram[2..4].copy_from_slice(&envelope.ports.1.to_be_bytes());
    datagram[4..6].copy_from_slice(&len.to_be_bytes());
    datagram[6..8].fill(0);
    let sum = checksum::pseudo_header(
        family,
        envelope.source,
        envelope.destination,
        protocol::UDP,
        len.into(),
    );
    // A checksum of 0 would stand for none.
    let sum = match checksum::finish(sum + checksum::sum(datagram)) {
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    Some(total)
}
