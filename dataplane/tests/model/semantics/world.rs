//! The configuration as the model reads it: the objects themselves, searched from end to end for every question.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft_proto::v1::{self, Objects};

use super::frame::{Flow, Mac};
use super::outside::{self, Elastic};
use crate::case::Translation;

/// The virtual router's MAC where a subnet names none.
pub const ROUTER: Mac = [0x02, 0x77, 0x65, 0x66, 0x74, 0x01];

/// Bytes of IP packet that the underlay of a fabric in memory carries.
const UNDERLAY_MTU: usize = 1500;

/// The objects, whether hosts have a metadata service, the addresses that stand for others, what devices of ports take, and elastic IPs.
#[derive(Debug)]
pub struct World(
    pub Objects,
    pub bool,
    pub Vec<Translation>,
    pub BTreeMap<String, u16>,
    pub Vec<Elastic>,
);

/// How a host reaches another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    pub gre: bool,
    pub v6: bool,
    /// Bytes of inner IP packet that fit.
    pub mtu: usize,
}

pub fn mac(text: &str) -> Mac {
    let mut mac = Mac::default();
    for (byte, part) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(part, 16).unwrap();
    }
    mac
}

pub fn gateway_mac(subnet: &v1::Subnet) -> Mac {
    if subnet.gateway_mac.is_empty() {
        ROUTER
    } else {
        mac(&subnet.gateway_mac)
    }
}

/// The virtual router's address of a family: the one that is named for the prefix, or the prefix's first.
pub fn gateway_address(subnet: &v1::Subnet, v4: bool) -> Option<IpAddr> {
    let prefixes = subnet
        .cidrs
        .iter()
        .map(|cidr| cidr.parse::<IpNetwork>().unwrap());
    let prefix = prefixes.into_iter().find(|prefix| prefix.is_ipv4() == v4)?;
    let mut named = subnet.gateways.iter().map(|text| text.parse().unwrap());
    let first = match prefix.network() {
        IpAddr::V4(network) => IpAddr::V4((network.to_bits() + 1).into()),
        IpAddr::V6(network) => IpAddr::V6((network.to_bits() + 1).into()),
    };
    Some(
        named
            .find(|address| prefix.contains(*address))
            .unwrap_or(first),
    )
}

pub fn prefix_holds(prefix: &str, address: IpAddr) -> bool {
    prefix.parse::<IpNetwork>().unwrap().contains(address)
}

pub fn has_address(port: &v1::Port, address: IpAddr) -> bool {
    port.addresses
        .iter()
        .any(|text| text.parse() == Ok(address))
}

impl World {
    pub fn new(
        objects: Objects,
        metadata: bool,
        translations: Vec<Translation>,
        device_mtus: BTreeMap<String, u16>,
    ) -> Self {
        let elastics = outside::elastics(&objects, &translations);
        let mut objects = objects;
        outside::give_addresses(&mut objects);
        Self(objects, metadata, translations, device_mtus, elastics)
    }

    /// Whether an address is where guests find their host's metadata service.
    pub fn is_metadata(&self, address: IpAddr) -> bool {
        self.1 && ["169.254.169.254", "fd00:ec2::254"].contains(&address.to_string().as_str())
    }

    /// How the gateways of a VPC answer DNS, if they do.
    pub fn dns(&self, vpc: &str) -> Option<&v1::VpcDns> {
        let vpc = self.0.vpcs.iter().find(|it| it.id == vpc)?;
        vpc.dns.as_ref()
    }

    /// Whether an address is where a port finds names: its own subnet's gateway.
    pub fn is_name_server(&self, port: &v1::Port, address: IpAddr) -> bool {
        let subnet = self.subnet(&port.subnet);
        let local = super::gateway::link_local(gateway_mac(subnet));
        let of_family = gateway_address(subnet, address.is_ipv4());
        self.dns(&port.vpc).is_some() && (address == local || of_family == Some(address))
    }

    /// Bytes of IP packet that the device of a port takes, if that is known.
    pub fn device_mtu(&self, port: &str) -> Option<usize> {
        self.3.get(port).map(|mtu| usize::from(*mtu))
    }

    fn translation(&self, vpc: &str, is: impl Fn(&Translation) -> bool) -> Option<&Translation> {
        let mut all = self.2.iter();
        all.find(|translation| translation.vpc == vpc && is(translation))
    }

    /// The address that a destination stands for, or itself.
    pub fn destination(&self, vpc: &str, address: IpAddr) -> IpAddr {
        let found = self.translation(vpc, |it| it.outside == address);
        let found = found.map(|translation| translation.inside);
        found
            .or_else(|| self.by_elastic(vpc, address))
            .unwrap_or(address)
    }

    /// The address by which a destination knows a source.
    pub fn source(&self, vpc: &str, address: IpAddr, to: IpAddr, hairpin: bool) -> IpAddr {
        let sees = |it: &Translation| {
            let mut towards = it.towards.iter();
            hairpin || towards.any(|prefix| prefix_holds(prefix, to))
        };
        if let Some(elastic) = self.elastic(vpc, address).filter(|_| hairpin) {
            return elastic.outside;
        }
        let found = self.translation(vpc, |it| it.inside == address);
        found.filter(|it| sees(it)).map_or(address, |it| it.outside)
    }

    /// Whether a flow may still become another one.
    pub fn may_become(&self, place: (&str, &str), before: &Flow, after: &Flow) -> bool {
        let vpc = place.1;
        let stands = |inside: IpAddr, outside: IpAddr| {
            inside == outside
                || self.may_stand_for(place, inside, outside)
                || self.by_elastic(vpc, outside) == Some(inside)
                || self
                    .translation(vpc, |it| it.inside == inside && it.outside == outside)
                    .is_some()
        };
        stands(after.destination, before.destination) && stands(before.source, after.source)
    }

    pub fn port(&self, id: &str) -> Option<&v1::Port> {
        self.0.ports.iter().find(|port| port.id == id)
    }

    pub fn subnet(&self, id: &str) -> &v1::Subnet {
        self.0
            .subnets
            .iter()
            .find(|subnet| subnet.id == id)
            .unwrap()
    }

    pub fn vni(&self, vpc: &str) -> u32 {
        self.0
            .vpcs
            .iter()
            .find(|other| other.id == vpc)
            .unwrap()
            .vni
    }

    pub fn acl(&self, subnet: &v1::Subnet) -> Option<&v1::NetworkAcl> {
        self.0
            .network_acls
            .iter()
            .find(|acl| acl.id == subnet.network_acl)
    }

    pub fn group(&self, id: &str) -> &v1::SecurityGroup {
        self.0
            .security_groups
            .iter()
            .find(|group| group.id == id)
            .unwrap()
    }

    /// The members of a group, its own and those that are told in parts.
    pub fn members(&self, id: &str) -> impl Iterator<Item = &String> {
        let parts = self.0.group_members.iter();
        let parts = parts.filter(move |part| part.group == id);
        let own = self.group(id).members.iter();
        own.chain(parts.flat_map(|part| &part.members))
    }

    pub fn prefix_list(&self, id: &str) -> &v1::PrefixList {
        self.0
            .prefix_lists
            .iter()
            .find(|list| list.id == id)
            .unwrap()
    }

    pub fn is_foreign(&self, host: &str) -> bool {
        self.0
            .hosts
            .iter()
            .any(|other| other.id == host && other.foreign)
    }

    pub fn subnets_of<'a>(&'a self, vpc: &'a str) -> impl Iterator<Item = &'a v1::Subnet> {
        self.0
            .subnets
            .iter()
            .filter(move |subnet| subnet.vpc == vpc)
    }

    pub fn port_by_address(&self, vpc: &str, address: IpAddr) -> Option<&v1::Port> {
        let mut ports = self.0.ports.iter();
        ports
            .find(|port| port.vpc == vpc && has_address(port, address))
            .or_else(|| self.holder(vpc, address))
    }

    /// The port that holds a virtual address because it announced it.
    pub fn holder(&self, vpc: &str, address: IpAddr) -> Option<&v1::Port> {
        let mut holders = self.0.address_holders.iter();
        let of = |it: &&v1::AddressHolder| it.vpc == vpc && it.address.parse() == Ok(address);
        let holder = holders.find(of)?;
        let port = self.0.ports.iter().find(|port| port.id == holder.port)?;
        let in_subnet = self.in_subnet(port, address);
        let is_gateway = self.gateway(vpc, address).is_some();
        (port.host == holder.host && in_subnet && !is_gateway).then_some(port)
    }

    /// Whether an address is within a port's subnet.
    pub fn in_subnet(&self, port: &v1::Port, address: IpAddr) -> bool {
        let mut cidrs = self.subnet(&port.subnet).cidrs.iter();
        cidrs.any(|cidr| prefix_holds(cidr, address))
    }

    /// Where an address of a packet to a port is of another VPC: the peering, that VPC, and its port. If several have it, that to which the
    /// receiver's route leads back.
    pub fn joined(
        &self,
        vpc: &str,
        address: IpAddr,
        target: Option<&v1::Port>,
    ) -> Option<(&v1::Peering, &v1::Port)> {
        if self.port_by_address(vpc, address).is_some() {
            return None;
        }
        let mut all: Vec<(&v1::Peering, &v1::Port)> = Vec::new();
        for peering in &self.0.peerings {
            if let Some(other) = peering.other(vpc)
                && let Some(port) = self.port_by_address(other, address)
            {
                all.push((peering, port));
            }
        }
        let back = target
            .and_then(|target| self.custom_route(target, address))
            .map(|route| route.peering);
        let routed = all
            .iter()
            .find(|(peering, _)| Some(&peering.id) == back.as_ref());
        let active = all.iter().find(|(peering, _)| peering.passes());
        routed.or(active).or(all.first()).copied()
    }

    /// The route of a port's table for a destination: of the longest prefix that holds it.
    pub fn custom_route(&self, port: &v1::Port, destination: IpAddr) -> Option<v1::Route> {
        let subnet = self.subnet(&port.subnet);
        let mut tables = self.0.route_tables.iter();
        let table = tables.find(|table| table.id == subnet.route_table)?;
        let holding = table.routes.iter();
        let holding = holding.filter(|route| prefix_holds(&route.prefix, destination));
        let length = |route: &&v1::Route| route.prefix.parse::<IpNetwork>().unwrap().prefix();
        holding.max_by_key(length).cloned()
    }

    pub fn port_by_mac(&self, vpc: &str, address: Mac) -> Option<&v1::Port> {
        self.0
            .ports
            .iter()
            .find(|port| port.vpc == vpc && mac(&port.mac) == address)
    }

    /// The subnet of a VPC whose gateway has the address.
    pub fn gateway<'a>(&'a self, vpc: &'a str, address: IpAddr) -> Option<&'a v1::Subnet> {
        self.subnets_of(vpc)
            .find(|subnet| gateway_address(subnet, address.is_ipv4()) == Some(address))
    }

    /// The host, foreign or not, that has the tunnel address.
    pub fn host_by_vtep(&self, vtep: IpAddr) -> Option<&str> {
        let has = |host: &&v1::Host| host.vteps.iter().any(|text| text.parse() == Ok(vtep));
        self.0.hosts.iter().find(has).map(|host| host.id.as_str())
    }

    pub fn vpc_by_vni(&self, vni: u32) -> Option<&str> {
        let mut vpcs = self.0.vpcs.iter();
        vpcs.find(|vpc| vpc.vni == vni).map(|vpc| vpc.id.as_str())
    }

    /// The tunnel from one host to another: over the family of the first address of the other that this one has an address for.
    pub fn tunnel(&self, from: &str, to: &str) -> Option<Tunnel> {
        let host = |id: &str| self.0.hosts.iter().find(|host| host.id == id);
        let (from, to) = (host(from)?, host(to)?);
        let is_v6 = |vtep: &String| vtep.contains(':');
        let v6 = to
            .vteps
            .iter()
            .map(is_v6)
            .find(|v6| from.vteps.iter().any(|own| is_v6(own) == *v6))?;
        let gre = to.encapsulation == "gre";
        // Outer IP; GRE with a key, or UDP and VXLAN; inner Ethernet.
        let overhead = if v6 { 40 } else { 20 } + if gre { 8 } else { 16 } + 14;
        let underlay = match to.underlay_mtu {
            0 => UNDERLAY_MTU,
            mtu => UNDERLAY_MTU.min(mtu as usize),
        };
        Some(Tunnel {
            gre,
            v6,
            mtu: underlay - overhead,
        })
    }
}
