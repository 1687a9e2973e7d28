//! Router advertisements (RFC 4861 §6.2.6) in answer to solicitations. None is sent unasked: a guest asks as soon as its link is up, what it is
//! told does not run out, and it sees a link that went down and up again when its port is moved or its weftd starts anew.

use super::{Answer, Question, is_link_local};
use crate::packet::checksum;
use crate::packet::parse::{ETHERNET, ETHERTYPE_IPV6, protocol};
use crate::packet::{DropReason, Family, Mac};
use crate::pipeline::gateway;

/// ICMPv6 type of the question.
pub(super) const SOLICITATION: u16 = 133;
const ALL_NODES: (u128, u64) = (0xff02 << 112 | 1, 0x3333_0000_0001);

/// Turns a solicitation into the advertisement: to who asks, or to all nodes if it has no address yet. Either goes to this port alone.
pub(super) fn answer(question: &Question<'_>, area: &mut [u8]) -> Result<Answer, DropReason> {
    let parsed = question.parsed;
    let solicitation = gateway::checked(area, parsed)?;
    let options = solicitation.get(8..).ok_or(DropReason::NeighborMalformed)?;
    let option = gateway::source_option(options);
    let source = parsed.flow.source;
    if source == 0 && option.is_some() {
        return Err(DropReason::NeighborMalformed);
    }
    let port = question.port;
    let own = port.owns(source, parsed.eth_src)
        || (source == 0 || is_link_local(source)) && port.owns_mac(parsed.eth_src);
    if port.guarded && (!own || option.is_some_and(|mac| !port.owns_mac(mac))) {
        return Err(DropReason::SpoofedNeighbor);
    }
    let message = &question.guests.advertisement;
    if message.is_empty() || port.first_address(Family::Ipv6).is_none() {
        return Err(DropReason::NeighborUnanswered);
    }
    let (destination, eth_dst) = if source == 0 {
        (ALL_NODES.0, Mac::from_word(ALL_NODES.1))
    } else {
        (source, parsed.eth_src)
    };
    let end = ETHERNET + 40 + message.len();
    let frame = area.get_mut(..end).ok_or(DropReason::NoBuffer)?;
    let (headers, body) = frame.split_at_mut(ETHERNET + 40);
    body.copy_from_slice(message);
    headers[..6].copy_from_slice(&eth_dst.bytes());
    headers[6..12].copy_from_slice(&question.subnet.gateway_mac.bytes());
    headers[12..14].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
    headers[14..18].copy_from_slice(&[0x60, 0, 0, 0]);
    headers[18..20].copy_from_slice(&(message.len() as u16).to_be_bytes());
    headers[20..22].copy_from_slice(&[protocol::ICMPV6, 255]);
    headers[22..38].copy_from_slice(&question.router().to_be_bytes());
    headers[38..].copy_from_slice(&destination.to_be_bytes());
    let pseudo = checksum::pseudo_header(
        Family::Ipv6,
        question.router(),
        destination,
        protocol::ICMPV6,
        message.len() as u32,
    );
    let sum = checksum::finish(pseudo + checksum::sum(body));
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    Ok(Answer {
        len: end as u16,
        name: "router advertisement",
    })
}
