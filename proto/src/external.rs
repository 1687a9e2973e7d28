//! The way out of VPCs: which host stands on an external network for a port, and which addresses stand for which.

use std::borrow::Cow;
use std::net::IpAddr;

use crate::state::{Kind, Object, State};
use crate::v1::{ElasticIp, ExternalNetwork, Host, LoadBalancer, Port, PortForward, RouteTable};

impl ExternalNetwork {
    /// The host that translates for a port of `home`: that host itself if it has the physical network, else the first gateway host.
    pub fn translator<'a>(&'a self, home: &'a Host) -> Option<&'a str> {
        if home.is_on(&self.physical_network) {
            return Some(&home.id);
        }
        self.gateway()
    }

    /// The host that is the gateway for hosts without the physical network, and for NAT gateways.
    pub fn gateway(&self) -> Option<&str> {
        self.gateway_hosts.first().map(String::as_str)
    }

    /// The prefixes that are routed to a VPC.
    pub fn routed_to<'a>(&'a self, vpc: &'a str) -> impl Iterator<Item = &'a str> {
        let routed = self.routed.iter().filter(move |routed| routed.vpc == vpc);
        routed.map(|routed| &*routed.prefix)
    }

    /// Whether a tenant (empty: the operator) may use the network: its own, and the operator's.
    pub fn is_open_to(&self, tenant: &str) -> bool {
        self.tenant.is_empty() || self.tenant == tenant
    }
}

impl Host {
    /// Whether the host has an interface on a physical network.
    pub fn is_on(&self, physical_network: &str) -> bool {
        self.physical_networks
            .iter()
            .any(|network| network == physical_network)
    }
}

impl Port {
    /// The first address of a family.
    pub fn first_address(&self, is_ipv4: bool) -> Option<IpAddr> {
        let mut addresses = self.addresses.iter().filter_map(|text| text.parse().ok());
        addresses.find(|address: &IpAddr| address.is_ipv4() == is_ipv4)
    }
}

impl ElasticIp {
    /// Whether the port has the address itself.
    pub fn is_direct(&self) -> bool {
        self.mode == "direct"
    }

    /// The address of the port that it is bound to for which it stands, if the port has it: in mode "direct" its own.
    pub fn inside(&self, port: &Port) -> Option<IpAddr> {
        let outside: IpAddr = self.address.parse().ok()?;
        if self.is_direct() {
            return Some(outside);
        }
        if self.private_address.is_empty() {
            return port.first_address(outside.is_ipv4());
        }
        let private: IpAddr = self.private_address.parse().ok()?;
        let is_of_port = port
            .addresses
            .iter()
            .any(|text| text.parse() == Ok(private));
        (is_of_port && private.is_ipv4() == outside.is_ipv4()).then_some(private)
    }
}

impl PortForward {
    /// The first and the last port that it takes.
    pub fn ports(&self) -> (u32, u32) {
        let last = match self.port_max {
            0 => self.port_min,
            last => last,
        };
        (self.port_min, last)
    }
}

impl RouteTable {
    /// The external networks that the routes lead to, as often as they do.
    pub fn external_networks(&self) -> impl Iterator<Item = &str> {
        let named = self.targets().map(|route| &*route.external);
        named.filter(|network| !network.is_empty())
    }
}

impl Object {
    /// The addresses of an external network that it holds, each with its field: those of an elastic IP or a NAT gateway, and the network's own.
    pub fn outside_addresses(&self) -> impl Iterator<Item = (Cow<'static, str>, IpAddr)> {
        let (elastic, (field, listed)) = match self {
            Self::ElasticIp(elastic) => (Some(elastic), ("", &[][..])),
            Self::NatGateway(nat) => (None, ("addresses", &nat.addresses[..])),
            Self::ExternalNetwork(network) => (None, ("routers", &network.routers[..])),
            _ => (None, ("", &[][..])),
        };
        let listed = listed.iter().enumerate();
        let listed = listed.map(move |(i, text)| (Cow::Owned(format!("{field}[{i}]")), text));
        let of_elastic =
            elastic.map(|elastic: &ElasticIp| (Cow::Borrowed("address"), &elastic.address));
        let all = of_elastic.into_iter().chain(listed);
        all.filter_map(|(field, text)| Some((field, text.parse().ok()?)))
    }
}

impl State {
    /// The external network that a VPC's subnets are on, if they are on one: its id.
    pub fn wire_of<'s>(&'s self, vpc: &'s str) -> Option<&'s str> {
        // All are, or none is.
        let first = self.of_vpc_and_kind(vpc, Kind::Subnet).next();
        match first? {
            Object::Subnet(subnet) => Some(&*subnet.external_network),
            _ => None,
        }
        .filter(|network| !network.is_empty())
    }

    /// The external network of that id.
    pub fn external_network(&self, id: &str) -> Option<&ExternalNetwork> {
        match self.find(Kind::ExternalNetwork, id)? {
            Object::ExternalNetwork(network) => Some(network),
            _ => None,
        }
    }

    /// The host of that id.
    pub fn host(&self, id: &str) -> Option<&Host> {
        match self.find(Kind::Host, id)? {
            Object::Host(host) => Some(host),
            _ => None,
        }
    }

    /// The port that an elastic IP is bound to.
    pub fn port_of(&self, elastic: &ElasticIp) -> Option<&Port> {
        match self.find(Kind::Port, &elastic.port)? {
            Object::Port(port) => Some(port),
            _ => None,
        }
    }

    /// The load balancer that an elastic IP is bound to.
    pub fn balancer_of(&self, elastic: &ElasticIp) -> Option<&LoadBalancer> {
        match self.find(Kind::LoadBalancer, &elastic.load_balancer)? {
            Object::LoadBalancer(balancer) => Some(balancer),
            _ => None,
        }
    }

    /// The VPC of what an elastic IP is bound to.
    pub fn vpc_of(&self, elastic: &ElasticIp) -> Option<&str> {
        let of_balancer = self.balancer_of(elastic).map(|it| &*it.vpc);
        of_balancer.or_else(|| self.port_of(elastic).map(|port| &*port.vpc))
    }

    /// The VPC for which gateway hosts of an external network are needed because of this object, and that network: that of a NAT gateway, and of an
    /// elastic IP that is bound to a load balancer, or whose port is on a host without the physical network.
    pub fn needs_gateway<'s>(
        &'s self,
        object: &'s Object,
    ) -> Option<(&'s str, &'s ExternalNetwork)> {
        match object {
            Object::NatGateway(nat) => {
                Some((&nat.vpc, self.external_network(&nat.external_network)?))
            }
            Object::ElasticIp(elastic) => {
                let network = self.external_network(&elastic.external_network)?;
                if let Some(balancer) = self.balancer_of(elastic) {
                    return Some((&balancer.vpc, network));
                }
                let port = self.port_of(elastic)?;
                let home = self.host(&port.host)?;
                (!home.is_on(&network.physical_network)).then_some((&*port.vpc, network))
            }
            _ => None,
        }
    }
}
