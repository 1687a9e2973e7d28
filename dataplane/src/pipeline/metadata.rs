//! Which packets are for the metadata service of this host (`weftd::metadata`): TCP to port 80 of 169.254.169.254 or fd00:ec2::254,
//! addresses that are the same in every VPC and every subnet, and belong to the gateway.
//!
//! Asked on the miss path, after anti-spoofing and before policy: a connection to the service has no session, so that each of its packets
//! comes here. The service itself is the driver's ([`Destination::Service`](super::Destination::Service)).

pub(super) use crate::packet::metadata::IPV4;
use crate::packet::metadata::{IPV6, PORT};
use crate::packet::parse::{IPV4_MAPPED, Parsed, protocol};
use crate::snapshot::{Port, Snapshot};

const WORDS: [u128; 2] = [IPV4_MAPPED | IPV4.to_bits() as u128, IPV6.to_bits()];

/// Whether an address is the service's. Without a service on this host it is like any other.
#[inline]
pub fn serves(snapshot: &Snapshot, address: u128) -> bool {
    snapshot.metadata && WORDS.contains(&address)
}

/// Whether a packet of a port is for the service: sent to the gateway of the port's subnet, and whole.
#[inline]
pub fn is_question(snapshot: &Snapshot, port: &Port, parsed: &Parsed) -> bool {
    serves(snapshot, parsed.flow.destination)
        && parsed.flow.protocol == protocol::TCP
        && parsed.flow.destination_port == PORT
        && parsed.fragment.is_none()
        && parsed.eth_dst == snapshot.subnets[port.subnet].gateway_mac
}
