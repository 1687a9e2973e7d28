//! Which packets are for the DNS service of this host (`weftd::dns`): UDP and TCP to port 53 of a gateway's addresses, in VPCs whose gateways answer DNS.
//!
//! Asked on the miss path, after anti-spoofing and before policy, as services of the gateway are: neither ACLs nor groups keep a guest from its names. No packet to the
//! service has a session, so that each comes here. The service itself is the driver's ([`Destination::Service`](super::Destination::Service)).

use super::guard::link_local;
use crate::packet::parse::{Parsed, protocol};
use crate::snapshot::{Port, Snapshot};

/// The service's port, of UDP and TCP (RFC 1035 §4.2).
pub const PORT: u16 = 53;

/// Whether a packet of a port is for the service: sent to the gateway of the port's own subnet, and whole.
#[inline]
pub fn is_question(snapshot: &Snapshot, port: &Port, parsed: &Parsed) -> bool {
    let (subnet, flow) = (&snapshot.subnets[port.subnet], &parsed.flow);
    subnet.dns
        && flow.destination_port == PORT
        && matches!(flow.protocol, protocol::UDP | protocol::TCP)
        && parsed.fragment.is_none()
        && parsed.eth_dst == subnet.gateway_mac
        && (subnet.gateway(parsed.family) == Some(flow.destination)
            || flow.destination == link_local(subnet.gateway_mac))
}
