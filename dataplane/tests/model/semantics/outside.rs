//! What is outside of every VPC, as the model reads the objects: which host holds which address of an external network, and what that stands for.
//!
//! Hosts with a physical network have one interface on it. All of these end on one segment, with a station at every address that no host holds.

use std::net::IpAddr;

use weft_proto::v1::{self, Objects};

use super::frame::Mac;
use super::world::{World, has_address, prefix_holds};
use crate::case::Translation;

/// The VNI that stands for what is in no VPC.
pub const OUTSIDE: u32 = 0;
/// The lowest port that a NAT gateway gives out (RFC 6335 6: those below are of services).
pub const FIRST_PORT: u16 = 1024;

/// An elastic IP that is bound to a port.
#[derive(Debug, Clone)]
pub struct Elastic {
    pub vpc: String,
    pub inside: IpAddr,
    pub outside: IpAddr,
    pub network: String,
    /// The host that translates, if there is one.
    pub host: Option<String>,
}

/// What an outside address is.
#[derive(Clone, Copy)]
pub enum By<'a> {
    Elastic(&'a Elastic),
    Gateway(&'a v1::NatGateway),
    Balancer(&'a v1::LoadBalancer),
    /// The network itself has it.
    Network,
    /// It is in a prefix that is routed to the VPC.
    Routed,
}

impl By<'_> {
    /// Whether a port has the address itself.
    pub fn is_as_it_is(&self) -> bool {
        match self {
            Self::Elastic(elastic) => elastic.inside == elastic.outside,
            Self::Routed => true,
            Self::Gateway(_) | Self::Balancer(_) | Self::Network => false,
        }
    }
}

/// An address that a host holds, or that is routed to it.
#[derive(Clone, Copy)]
pub struct Held<'a> {
    /// Empty of the network's own.
    pub vpc: &'a str,
    pub network: &'a str,
    pub by: By<'a>,
}

/// The MAC of a host's interface on the segment.
pub fn interface(host: &str) -> Mac {
    let last = host.bytes().next_back().unwrap_or_default();
    [6, 0, 0, 0, 1, last]
}

/// The elastic IPs in force: of two for one address of a port or of one that has a static translation, the first counts.
pub fn elastics(objects: &Objects, translations: &[Translation]) -> Vec<Elastic> {
    let mut all: Vec<Elastic> = Vec::new();
    for elastic in &objects.elastic_ips {
        let port = objects.ports.iter().find(|port| port.id == elastic.port);
        let mut networks = objects.external_networks.iter();
        let network = networks.find(|network| network.id == elastic.external_network);
        let (Some(port), Some(network)) = (port, network) else {
            continue;
        };
        let outside: IpAddr = elastic.address.parse().unwrap();
        let own = port
            .addresses
            .iter()
            .map(|text| text.parse::<IpAddr>().unwrap());
        let inside = match elastic.private_address.parse() {
            _ if elastic.mode == "direct" => Some(outside),
            Ok(private) => Some(private).filter(|address| has_address(port, *address)),
            Err(_) => own
                .into_iter()
                .find(|own| own.is_ipv4() == outside.is_ipv4()),
        };
        let Some(inside) = inside else { continue };
        let by_static = translations
            .iter()
            .any(|it| it.vpc == port.vpc && (it.inside == inside || it.outside == outside));
        let by_other = all
            .iter()
            .any(|it| it.vpc == port.vpc && (it.inside == inside || it.outside == outside));
        if by_static || by_other {
            continue;
        }
        let mut hosts = objects.hosts.iter();
        let home = hosts.find(|host| host.id == port.host);
        let is_on = home.is_some_and(|home| {
            let mut networks = home.physical_networks.iter();
            networks.any(|name| *name == network.physical_network)
        });
        let host = match is_on {
            true => Some(port.host.clone()),
            false => network.gateway_hosts.first().cloned(),
        };
        all.push(Elastic {
            vpc: port.vpc.clone(),
            inside,
            outside,
            network: network.id.clone(),
            host,
        });
    }
    all
}

/// Ports have their direct elastic IPs besides their own addresses.
pub fn give_addresses(objects: &mut Objects) {
    for elastic in objects.elastic_ips.iter().filter(|it| it.mode == "direct") {
        let mut ports = objects.ports.iter_mut();
        if let Some(port) = ports.find(|port| port.id == elastic.port) {
            port.addresses.push(elastic.address.clone());
        }
    }
}

/// Whether a NAT gateway serves a source address.
pub fn serves(gateway: &v1::NatGateway, source: IpAddr) -> bool {
    let mut sources = gateway.sources.iter();
    gateway.sources.is_empty() || sources.any(|prefix| prefix_holds(prefix, source))
}

pub fn addresses(gateway: &v1::NatGateway) -> impl Iterator<Item = IpAddr> {
    gateway.addresses.iter().map(|text| text.parse().unwrap())
}

/// The outside address and the ports of a forward.
fn range(gateway: &v1::NatGateway, forward: &v1::PortForward) -> (IpAddr, u32, u32) {
    let address = match forward.address.parse() {
        Ok(address) => address,
        Err(_) => gateway.addresses[0].parse().unwrap(),
    };
    let last = forward.port_max.max(forward.port_min);
    (address, forward.port_min, last)
}

/// Where a frame goes that is sent to an address of a network.
pub fn next_hop(network: &v1::ExternalNetwork, address: IpAddr) -> Option<IpAddr> {
    let on_segment = |prefix: &String| prefix_holds(prefix, address);
    if network.prefixes.iter().any(on_segment) {
        return Some(address);
    }
    let mut gateways = network.gateways.iter().map(|text| text.parse().unwrap());
    gateways.find(|gateway: &IpAddr| gateway.is_ipv4() == address.is_ipv4())
}

/// Bytes of IP packet that a network carries.
pub fn mtu(network: &v1::ExternalNetwork) -> usize {
    match network.mtu {
        0 => 1500,
        mtu => (mtu as usize).min(1500),
    }
}

impl World {
    pub fn network(&self, id: &str) -> Option<&v1::ExternalNetwork> {
        self.0
            .external_networks
            .iter()
            .find(|network| network.id == id)
    }

    pub fn nat_gateway(&self, id: &str) -> Option<&v1::NatGateway> {
        self.0.nat_gateways.iter().find(|gateway| gateway.id == id)
    }

    /// The NAT gateway that has an address, on a gateway host of its network.
    pub fn gateway_of(&self, host: &str, address: IpAddr) -> Option<&v1::NatGateway> {
        self.0.nat_gateways.iter().find(|gateway| {
            let network = self.network(&gateway.external_network);
            let is_gateway = |network: &v1::ExternalNetwork| {
                network.gateway_hosts.iter().any(|other| other == host)
            };
            network.is_some_and(is_gateway) && addresses(gateway).any(|other| other == address)
        })
    }

    /// Whether a host has an interface on a network.
    pub fn is_on(&self, host: &str, network: &v1::ExternalNetwork) -> bool {
        let mut hosts = self.0.hosts.iter();
        let host = hosts.find(|other| other.id == host);
        host.is_some_and(|host| host.physical_networks.contains(&network.physical_network))
    }

    /// The network that a host is on whose frames have this tag.
    pub fn network_by_vlan(&self, host: &str, vlan: u16) -> Option<&v1::ExternalNetwork> {
        let mut networks = self.0.external_networks.iter();
        networks.find(|network| network.vlan == u32::from(vlan) && self.is_on(host, network))
    }

    pub fn elastic(&self, vpc: &str, inside: IpAddr) -> Option<&Elastic> {
        let mut all = self.4.iter();
        all.find(|elastic| elastic.vpc == vpc && elastic.inside == inside)
    }

    /// The private address that an elastic IP of the VPC stands for.
    pub fn by_elastic(&self, vpc: &str, outside: IpAddr) -> Option<IpAddr> {
        let mut all = self.4.iter();
        let found = all.find(|elastic| elastic.vpc == vpc && elastic.outside == outside);
        found.map(|elastic| elastic.inside)
    }

    /// The prefix that an address is in which a network routes to a VPC.
    pub fn routed(&self, address: IpAddr) -> Option<(&v1::ExternalNetwork, &str)> {
        self.0.external_networks.iter().find_map(|network| {
            let mut routed = network.routed.iter();
            let routed = routed.find(|routed| prefix_holds(&routed.prefix, address))?;
            Some((network, &*routed.vpc))
        })
    }

    /// The VPC that has an outside address of this host, in whichever way; the network's own have none.
    pub fn owner(&self, host: &str, address: IpAddr) -> Option<Held<'_>> {
        if let Some(held) = self.held(host, address) {
            return Some(held).filter(|held| !held.vpc.is_empty());
        }
        let (network, vpc) = self.routed(address)?;
        let is_here = network.gateway_hosts.first().is_some_and(|it| it == host);
        is_here.then_some(Held {
            vpc,
            network: &network.id,
            by: By::Routed,
        })
    }

    /// The VNI by which an outside address of this host is known to others of the host that are translated.
    pub fn known_as(&self, host: &str, address: IpAddr) -> u32 {
        let owner = self.owner(host, address);
        let owner = owner.filter(|owner| !owner.by.is_as_it_is());
        owner.map_or(OUTSIDE, |owner| self.vni(owner.vpc))
    }

    /// Whether a direct elastic IP of the VPC has the address.
    pub fn is_direct(&self, vpc: &str, address: IpAddr) -> bool {
        let elastic = self.elastic(vpc, address);
        elastic.is_some_and(|elastic| elastic.outside == address)
    }

    /// What an address stands for that this host holds.
    pub fn held(&self, host: &str, address: IpAddr) -> Option<Held<'_>> {
        let is_own = |network: &&v1::ExternalNetwork| {
            let mut routers = network.routers.iter();
            network.gateway_hosts.first().is_some_and(|it| it == host)
                && routers.any(|text| text.parse() == Ok(address))
        };
        if let Some(network) = self.0.external_networks.iter().find(is_own) {
            return Some(Held {
                vpc: "",
                network: &network.id,
                by: By::Network,
            });
        }
        let by_elastic = self
            .4
            .iter()
            .find(|elastic| elastic.outside == address && elastic.host.as_deref() == Some(host));
        if let Some(elastic) = by_elastic {
            return Some(Held {
                vpc: &elastic.vpc,
                network: &elastic.network,
                by: By::Elastic(elastic),
            });
        }
        let of_balancer = self.0.elastic_ips.iter().find_map(|elastic| {
            let network = self.network(&elastic.external_network)?;
            let is_here = network.gateway_hosts.first().is_some_and(|it| it == host);
            let mut balancers = self.0.load_balancers.iter();
            let balancer = balancers.find(|it| it.id == elastic.load_balancer)?;
            (is_here && elastic.address.parse() == Ok(address)).then_some((network, balancer))
        });
        if let Some((network, balancer)) = of_balancer {
            return Some(Held {
                vpc: &balancer.vpc,
                network: &network.id,
                by: By::Balancer(balancer),
            });
        }
        let gateway = self.0.nat_gateways.iter().find(|gateway| {
            let network = self.network(&gateway.external_network);
            let first = network.and_then(|network| network.gateway_hosts.first());
            first.is_some_and(|first| first == host)
                && addresses(gateway).any(|other| other == address)
        })?;
        Some(Held {
            vpc: &gateway.vpc,
            network: &gateway.external_network,
            by: By::Gateway(gateway),
        })
    }

    /// The MAC at an address of the segment: of the host that holds it, else of a station.
    pub fn station(&self, address: IpAddr) -> Mac {
        let mut hosts = self.0.hosts.iter();
        match hosts.find(|host| self.held(&host.id, address).is_some()) {
            Some(host) => interface(&host.id),
            None => {
                let octets = super::frame::octets(address);
                [0x0a, 0, 0, 0, 0, octets[octets.len() - 1]]
            }
        }
    }

    /// Whether an address is one that nobody outside has: it lies in a subnet of the VPC, or of one that a peering joins to it.
    pub fn is_inside(&self, vpc: &str, address: IpAddr) -> bool {
        let joined = |other: &str| {
            let mut peerings = self.0.peerings.iter();
            vpc == other || peerings.any(|peering| peering.other(vpc) == Some(other))
        };
        let mut elastics = self.4.iter();
        if elastics.any(|it| joined(&it.vpc) && it.inside == address && it.outside == address) {
            return true;
        }
        let mut subnets = self.0.subnets.iter();
        subnets.any(|subnet| {
            let mut cidrs = subnet.cidrs.iter();
            cidrs.any(|cidr| prefix_holds(cidr, address)) && joined(&subnet.vpc)
        })
    }

    /// Where a port forward leads.
    pub fn forward(
        &self,
        gateway: &v1::NatGateway,
        protocol: u8,
        (address, port): (IpAddr, u16),
    ) -> Option<(IpAddr, u16)> {
        gateway.port_forwards.iter().find_map(|forward| {
            let number = if forward.protocol == "tcp" { 6 } else { 17 };
            let (outside, first, last) = range(gateway, forward);
            if number != protocol
                || outside != address
                || !(first..=last).contains(&u32::from(port))
            {
                return None;
            }
            let inside = self.forwarded(forward, outside.is_ipv4())?;
            let to = match forward.to_port_min {
                0 => first,
                to => to,
            };
            Some((inside, (to + u32::from(port) - first) as u16))
        })
    }

    /// The address of the VPC that a forward leads to, if it is somewhere.
    fn forwarded(&self, forward: &v1::PortForward, v4: bool) -> Option<IpAddr> {
        if forward.port.is_empty() {
            return forward.private_address.parse().ok();
        }
        let port = self.port(&forward.port)?;
        let mut own = port.addresses.iter().map(|text| text.parse().unwrap());
        own.find(|own: &IpAddr| own.is_ipv4() == v4)
    }

    /// Whether a forward of the gateway leads to an address.
    pub fn leads_to(&self, gateway: &v1::NatGateway, inside: IpAddr) -> bool {
        let mut forwards = gateway.port_forwards.iter();
        forwards.any(|forward| {
            let (outside, ..) = range(gateway, forward);
            self.forwarded(forward, outside.is_ipv4()) == Some(inside)
        })
    }

    /// Whether an outside address that this host holds may still stand for an address of the VPC.
    pub fn may_stand_for(
        &self,
        (host, vpc): (&str, &str),
        inside: IpAddr,
        outside: IpAddr,
    ) -> bool {
        let held = self.held(host, outside).filter(|held| held.vpc == vpc);
        held.is_some_and(|held| match held.by {
            By::Elastic(elastic) => elastic.inside == inside,
            By::Gateway(gateway) => serves(gateway, inside) || self.leads_to(gateway, inside),
            By::Network | By::Routed | By::Balancer(_) => false,
        })
    }
}
