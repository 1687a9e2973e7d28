//! What a guest asks of the network itself: its address and parameters by DHCP (`dhcp4`) and DHCPv6 (`dhcp6`), and the router (`advertise`).
//!
//! Called on the miss path ahead of anti-spoofing, ACLs and groups, which a guest without an address could not pass. A service reads the
//! question and writes the answer over it. It remembers nothing: the configuration says who has which address, and a port is told of its own
//! alone, so that there are no leases to keep, and every host answers alike.

mod advertise;
mod datagram;
mod dhcp4;
mod dhcp6;

use super::guard::link_local;
use crate::packet::parse::{ETHERNET, Parsed, protocol};
use crate::packet::{DropReason, Family, Mac};
use crate::snapshot::{Guests, Port, Snapshot, Subnet};

/// Bytes of UDP payload in a question; a longer one is refused.
const QUESTION: usize = 1500;

/// A service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    Dhcp,
    Dhcp6,
    Router,
}

/// A packet that is a service's to answer, and who sent it.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    service: Service,
    port: &'a Port,
    subnet: &'a Subnet,
    guests: &'a Guests,
    parsed: &'a Parsed,
}

/// What the packet has become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Bytes of the frame.
    pub len: u16,
    /// What it is, in words.
    pub name: &'static str,
}

/// Whether a packet of a port is one that a service takes. None of these goes any further, answered or not.
pub fn question<'a>(
    snapshot: &'a Snapshot,
    port: &'a Port,
    parsed: &'a Parsed,
) -> Option<Question<'a>> {
    let flow = &parsed.flow;
    let service = match (parsed.family, flow.protocol) {
        (Family::Ipv4, protocol::UDP) if flow.destination_port == dhcp4::SERVER => Service::Dhcp,
        (Family::Ipv6, protocol::UDP) if flow.destination_port == dhcp6::SERVER => Service::Dhcp6,
        // On an external network the routers there are asked.
        (Family::Ipv6, protocol::ICMPV6)
            if parsed.icmp >> 8 == advertise::SOLICITATION && snapshot.wire_of(port).is_none() =>
        {
            Service::Router
        }
        _ => return None,
    };
    let subnet = snapshot.subnets.get(port.subnet)?;
    let ours = match service {
        Service::Dhcp => {
            let gateway = Some(flow.destination) == subnet.gateway_v4;
            flow.destination == dhcp4::BROADCAST || gateway && parsed.eth_dst == subnet.gateway_mac
        }
        // Not to an address of the gateway: no client is told that it may (RFC 8415 §21.12).
        Service::Dhcp6 => dhcp6::GROUPS.contains(&flow.destination),
        Service::Router => true,
    };
    (ours && parsed.fragment.is_none()).then_some(Question {
        service,
        port,
        subnet,
        guests: port.guests.as_deref().or(subnet.guests.as_deref())?,
        parsed,
    })
}

impl Question<'_> {
    /// Turns the packet into the answer. `area` is what the buffer holds from the Ethernet header on, so that an answer longer than the
    /// question finds its room.
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn answer(&self, area: &mut [u8]) -> Result<Answer, DropReason> {
        if self.service == Service::Router {
            return advertise::answer(self, area);
        }
        // The answer is written where the question lies.
        let mut copy = [0; QUESTION];
        let message = datagram::payload(area, self.parsed)?;
        let question = copy
            .get_mut(..message.len())
            .ok_or(DropReason::DhcpMalformed)?;
        question.copy_from_slice(message);
        match self.service {
            Service::Dhcp => dhcp4::answer(self, question, area),
            _ => dhcp6::answer(self, question, area),
        }
    }

    /// Refuses who does not send from the port's own MAC. An allowed pair's is no lie, but no address is kept for it.
    fn check_mac(&self, mac: Mac) -> Result<(), DropReason> {
        if mac == self.port.mac {
            Ok(())
        } else if self.port.guarded && !self.port.owns_mac(mac) {
            Err(DropReason::SpoofedDhcp)
        } else {
            Err(DropReason::DhcpUnanswered)
        }
    }

    /// What becomes of a question from a source address that is not the port's.
    fn stranger(&self) -> DropReason {
        if self.port.guarded {
            DropReason::SpoofedDhcp
        } else {
            DropReason::DhcpUnanswered
        }
    }

    /// The gateway's link-local address, by which guests know their router and their DHCPv6 server.
    fn router(&self) -> u128 {
        link_local(self.subnet.gateway_mac)
    }
}

/// Whether an IPv6 address is a link-local one.
fn is_link_local(address: u128) -> bool {
    address >> 118 == 0xfe80 >> 6
}

/// Bytes ahead of the UDP payload in a frame of ours.
const fn headers(family: Family) -> usize {
    match family {
        Family::Ipv4 => ETHERNET + 20 + 8,
        Family::Ipv6 => ETHERNET + 40 + 8,
    }
}
