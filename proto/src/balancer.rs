//! What of a load balancer has defaults, and how its members are counted.

use std::net::IpAddr;

use crate::state::{Object, State};
use crate::v1::{Listener, LoadBalancer, Member};

impl LoadBalancer {
    /// The members of all its listeners, as often as they are there.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.listeners.iter().flat_map(|listener| &listener.members)
    }

    /// Whether any of its listeners is of mode dsr.
    pub fn has_dsr(&self) -> bool {
        self.listeners.iter().any(Listener::is_dsr)
    }

    /// The ports that its members name, as often as they do.
    pub fn member_ports(&self) -> impl Iterator<Item = &str> {
        let named = self.members().map(|member| &*member.port);
        named.filter(|port| !port.is_empty())
    }
}

impl Listener {
    /// Whether members get what is for the load balancer's address as it is, and answer with that address (direct server return).
    pub fn is_dsr(&self) -> bool {
        self.mode == "dsr"
    }

    /// The first and the last port that it takes.
    pub fn ports(&self) -> (u32, u32) {
        let last = match self.port_max {
            0 => self.port_min,
            last => last,
        };
        (self.port_min, last)
    }

    /// The port of a member that its first port becomes.
    pub fn first_port_at(&self, member: &Member) -> u32 {
        match member.to_port_min {
            0 => self.port_min,
            first => first,
        }
    }
}

impl Member {
    /// Its share of flows.
    pub fn share(&self) -> u32 {
        self.weight.max(1)
    }

    /// The address by which it serves a family, if it is there and has one.
    pub fn address_in(&self, state: &State, is_ipv4: bool) -> Option<IpAddr> {
        if self.port.is_empty() {
            let address: IpAddr = self.address.parse().ok()?;
            return (address.is_ipv4() == is_ipv4).then_some(address);
        }
        match state.find(crate::state::Kind::Port, &self.port)? {
            Object::Port(port) => port.first_address(is_ipv4),
            _ => None,
        }
    }
}
