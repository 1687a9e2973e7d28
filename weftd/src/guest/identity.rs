//! Who a port is: to what serves its guest, and to the metadata service's backend.

use std::net::IpAddr;

use weft_dataplane::packet::parse::word_address;
use weft_dataplane::packet::{Family, Mac};
use weft_dataplane::pipeline::guard::link_local;
use weft_dataplane::snapshot::Snapshot;

/// The longest IP packet that the service sends: what a packet buffer of any size holds.
const LONGEST: u16 = 1500;

/// Who a port is, and the parameters of its stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The port's index on this host.
    pub index: u16,
    /// Its id.
    pub port: String,
    /// The id of its VPC.
    pub vpc: String,
    /// The id of its subnet.
    pub subnet: String,
    /// Its first IPv4 address.
    pub ipv4: Option<String>,
    /// Its first IPv6 address.
    pub ipv6: Option<String>,
    /// Its own MAC.
    pub mac: Mac,
    /// The MAC of its gateway, which is the service's source MAC.
    pub gateway_mac: Mac,
    /// The addresses of its gateway: those of its subnet, and the link-local one.
    pub gateways: Vec<IpAddr>,
    /// Bytes of IP packet that it is sent at most.
    pub mtu: u16,
}

impl Identity {
    /// The port that has an index now.
    pub fn of(snapshot: &Snapshot, index: u16) -> Option<Self> {
        let port = snapshot.port(index)?;
        let subnet = snapshot.subnets.get(port.subnet)?;
        let first = |family| {
            let address = port.first_address(family)?;
            Some(word_address(address).to_string())
        };
        Some(Self {
            index,
            port: port.id.clone(),
            vpc: snapshot.vpcs.get(port.vpc)?.id.clone(),
            subnet: subnet.id.clone(),
            ipv4: first(Family::Ipv4),
            ipv6: first(Family::Ipv6),
            mac: port.mac,
            gateway_mac: subnet.gateway_mac,
            gateways: [subnet.gateway_v4, subnet.gateway_v6]
                .into_iter()
                .flatten()
                .chain([link_local(subnet.gateway_mac)])
                .map(word_address)
                .collect(),
            mtu: subnet
                .guests
                .as_ref()
                .map_or(LONGEST, |guests| guests.mtu.min(LONGEST)),
        })
    }

    /// Whether another identity is that of the same port: nothing of the one may reach the other if it is not.
    pub fn is_same_port(&self, other: &Self) -> bool {
        (self.index, &self.port, &self.vpc) == (other.index, &other.port, &other.vpc)
    }
}
