//! Subnets and ports.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use weft_proto::state::Kind;
use weft_proto::{mtu, v1};

use super::super::{Allowed, Endpoint, Guests, Map, Place, Port, Subnet, Trunks};
use super::policy::{GroupClassifiers, rules_of_port};
use super::{Draft, Objects, Places, Report, dhcp_options, guests, put};
use crate::packet::parse::{IPV4_MAPPED, address_word, word_family};
use crate::packet::{Family, Mac, metadata};
use crate::route::Prefix;

/// The addresses that ports have besides their own: their elastic IPs in mode direct.
fn direct_addresses<'o>(objects: &Objects<'o>) -> Map<&'o str, Vec<u128>> {
    let mut direct: Map<&str, Vec<u128>> = Map::default();
    for elastic in objects.elastic_ips.iter().filter(|it| it.is_direct()) {
        if let Ok(address) = elastic.address.parse::<IpAddr>() {
            let of_port = direct.entry(elastic.port.as_str()).or_default();
            of_port.push(address_word(address));
        }
    }
    direct
}

/// The address by which a host serves the guests of a subnet on an external network: that of the metadata service (RFC 3927 addresses).
const SERVICE: u128 = IPV4_MAPPED | metadata::IPV4.to_bits() as u128;

/// The external network that a subnet is on.
fn network_of<'o>(objects: &Objects<'o>, subnet: &v1::Subnet) -> Option<&'o v1::ExternalNetwork> {
    let networks = &objects.external_networks;
    let by_id = |network: &&v1::ExternalNetwork| (*network.id).cmp(&subnet.external_network);
    let place = networks.binary_search_by(by_id);
    place.ok().map(|place| networks[place])
}

/// The subports of this host.
pub(super) fn trunks<'p>(
    ports: impl Iterator<Item = &'p Option<Port>>,
    places: &Places,
) -> Arc<Trunks> {
    Arc::new(Trunks::of_ports(ports, |id| {
        match places.endpoints.get(id)?.place {
            Place::Here(index) => Some(index),
            Place::There(_) => None,
        }
    }))
}

impl Draft<'_> {
    pub(super) fn fill_subnets(&mut self, objects: &Objects<'_>) {
        let vpcs = objects.vpcs.iter();
        let answering: Map<&str, &v1::VpcDns> = vpcs
            .filter_map(|vpc| Some((&*vpc.id, vpc.dns.as_ref()?)))
            .collect();
        for subnet in &objects.subnets {
            let Some(vpc) = self.places.vpcs.get(&subnet.vpc).copied() else {
                let rule = format!("'{}' does not exist", subnet.vpc);
                self.report.add(Kind::Subnet, &subnet.id, "vpc", rule);
                continue;
            };
            let place = self.subnets.len();
            let acl = self.places.acls.get(&subnet.network_acl).copied();
            if acl.is_none() && !subnet.network_acl.is_empty() {
                let rule = format!("'{}' does not exist", subnet.network_acl);
                self.report
                    .add(Kind::Subnet, &subnet.id, "network_acl", rule);
            }
            let gateway_mac = if subnet.gateway_mac.is_empty() {
                Ok(Mac::ROUTER)
            } else {
                subnet.gateway_mac.parse()
            };
            let gateway_mac = gateway_mac.unwrap_or_else(|error: crate::packet::mac::MacError| {
                let rule = error.to_string();
                self.report
                    .add(Kind::Subnet, &subnet.id, "gateway_mac", rule);
                Mac::ROUTER
            });
            // On an external network the router is another's.
            let dns = answering.get(&*subnet.vpc).copied();
            let dns = dns.filter(|_| subnet.external_network.is_empty());
            let mut compiled = Subnet {
                id: subnet.id.clone(),
                vpc,
                gateway_mac,
                acl,
                snoops: subnet.multicast == "snooping" && subnet.external_network.is_empty(),
                dns: dns.is_some(),
                number: Subnet::number_of(&subnet.id),
                ..Subnet::default()
            };
            self.fill_prefixes(subnet, place, &mut compiled);
            // The controller says the MTU. Where none does, every host that is known here may carry the VPC.
            let network = network_of(objects, subnet);
            let mtu = match network {
                Some(network) => mtu::on_network(subnet, network),
                None => mtu::effective(subnet, objects.hosts.iter().copied()),
            };
            let guests = guests::compile(
                subnet,
                &compiled,
                (mtu, self.context.metadata, dns),
                &mut self.report,
            );
            compiled.guests = guests.map(Arc::new);
            self.places.subnets.insert(subnet.id.clone(), place);
            self.subnets.push(compiled);
        }
    }

    fn fill_prefixes(&mut self, subnet: &v1::Subnet, place: usize, compiled: &mut Subnet) {
        let draft = &mut self.vpcs[compiled.vpc];
        for (i, text) in subnet.cidrs.iter().enumerate() {
            let Ok(network) = text.parse::<IpNetwork>() else {
                let rule = format!("'{text}' is not a prefix");
                let field = format!("cidrs[{i}]");
                self.report.add(Kind::Subnet, &subnet.id, field, rule);
                continue;
            };
            let prefix = Prefix::from(network);
            if !subnet.external_network.is_empty() {
                // The router there is another's; guests know this host by an address of the link.
                if prefix.family() == Family::Ipv4 {
                    compiled.gateway_v4 = Some(SERVICE);
                }
                compiled.prefixes.push(prefix);
                draft.vpc.subnets.insert(prefix, place as u32);
                continue;
            }
            let named = subnet
                .gateways
                .iter()
                .filter_map(|text| text.parse::<IpAddr>().ok())
                .map(address_word);
            let gateway = named
                .into_iter()
                .find(|address| prefix.contains(*address))
                .unwrap_or(prefix.bits() + 1);
            match prefix.family() {
                Family::Ipv4 => compiled.gateway_v4 = Some(gateway),
                Family::Ipv6 => compiled.gateway_v6 = Some(gateway),
            }
            compiled.prefixes.push(prefix);
            draft.gateways.insert(gateway, place);
            draft.vpc.subnets.insert(prefix, place as u32);
        }
        if !draft.vpc.gateway_macs.contains(&compiled.gateway_mac) {
            draft.vpc.gateway_macs.push(compiled.gateway_mac);
        }
    }

    pub(super) fn fill_ports(&mut self, objects: &Objects<'_>) {
        let direct = direct_addresses(objects);
        let mut vlans: HashSet<(&str, u32)> = HashSet::new();
        for port in &objects.ports {
            let Some(mut parsed) = Parsed::of(port, &self.places, &mut self.report) else {
                continue;
            };
            let (vpc, subnet) = (parsed.vpc, parsed.subnet);
            for address in direct.get(port.id.as_str()).into_iter().flatten() {
                parsed.addresses.push(*address);
                // As a subnet of its own: within the VPC the address is the port's, too.
                let prefix = Prefix::host(*address);
                self.vpcs[vpc].vpc.subnets.insert(prefix, subnet as u32);
            }
            let Some(place) = self.place(port, &parsed) else {
                continue;
            };
            if let (Place::Here(_), Some(trunk)) = (place, &port.trunk)
                && !vlans.insert((trunk.parent.as_str(), trunk.vlan))
            {
                let rule = format!(
                    "VLAN {} of '{}' is another port's",
                    trunk.vlan, trunk.parent
                );
                self.report.add(Kind::Port, &port.id, "trunk.vlan", rule);
            }
            let endpoint = parsed.endpoint(place);
            self.places.endpoints.insert(port.id.clone(), endpoint);
            let other = other_end_of_move(port, self.context.host, &self.places);
            let Parsed { mac, addresses, .. } = parsed;
            if let Place::There(peer) = place {
                let allowed = allowed(port, mac, &mut self.report);
                let allowed = allowed.map(|pair| (peer, pair));
                self.vpcs[vpc].allowed.extend(allowed);
            }
            let table = &mut self.vpcs[vpc];
            table.moves.extend(other.map(|peer| (mac, peer)));
            if table.by_mac.insert(mac, endpoint).is_some() {
                let rule = format!("{mac} belongs to another port of VPC '{}'", port.vpc);
                self.report.add(Kind::Port, &port.id, "mac", rule);
            }
            let taken = addresses
                .iter()
                .position(|address| table.by_address.insert(*address, endpoint).is_some());
            if let Some(i) = taken {
                let rule = format!("belongs to another port of VPC '{}'", port.vpc);
                let field = format!("addresses[{i}]");
                self.report.add(Kind::Port, &port.id, field, rule);
            }
        }
    }

    /// Where a port is; one of this host is compiled.
    fn place(&mut self, port: &v1::Port, parsed: &Parsed) -> Option<Place> {
        let subnet = parsed.subnet;
        if port.host == self.context.host {
            let Some(index) = self.numbers.ports.number(&port.id) else {
                let most = self.numbers.ports.cap();
                let rule = format!("this host holds at most {most} ports");
                self.report.add(Kind::Port, &port.id, "", rule);
                return None;
            };
            let index = index as u16;
            let classifiers = |id: &str| self.places.classifiers.get(id);
            let told = self.subnets[subnet].guests.as_deref();
            let compiled = compile_port(port, parsed, (classifiers, told), &mut self.report);
            self.subnets[subnet].ports.push(index);
            put(&mut self.ports, index, compiled);
            self.fill_limits(port, index);
            for group in &port.security_groups {
                let members = self.places.members.entry(group.clone()).or_default();
                members.push(index);
            }
            return Some(Place::Here(index));
        }
        let Some(peer) = self.places.peers.get(&port.host).copied() else {
            let rule = format!("'{}' does not exist", port.host);
            self.report.add(Kind::Port, &port.id, "host", rule);
            return None;
        };
        let peers = &mut self.subnets[subnet].peers;
        let behind = self.places.ports_behind.entry((subnet, peer)).or_default();
        if *behind == 0 {
            peers.push(peer);
        }
        *behind += 1;
        Some(Place::There(peer))
    }
}

/// A port's own fields, with the places of what it is in.
#[derive(Debug)]
pub(super) struct Parsed {
    pub vpc: usize,
    pub subnet: usize,
    pub mac: Mac,
    pub addresses: Vec<u128>,
}

impl Parsed {
    /// None, and why is in the report, if the port is in no subnet or has no MAC.
    pub(super) fn of(port: &v1::Port, places: &Places, report: &mut Report) -> Option<Self> {
        let (Some(vpc), Some(subnet)) = (
            places.vpcs.get(&port.vpc).copied(),
            places.subnets.get(&port.subnet).copied(),
        ) else {
            let rule = format!("'{}' does not exist in VPC '{}'", port.subnet, port.vpc);
            report.add(Kind::Port, &port.id, "subnet", rule);
            return None;
        };
        let mac = match port.mac.parse::<Mac>() {
            Ok(mac) => mac,
            Err(error) => {
                report.add(Kind::Port, &port.id, "mac", error.to_string());
                return None;
            }
        };
        let addresses: Vec<u128> = port
            .addresses
            .iter()
            .filter_map(|text| text.parse::<IpAddr>().ok())
            .map(address_word)
            .collect();
        if addresses.len() != port.addresses.len() {
            let rule = "is a list of addresses";
            report.add(Kind::Port, &port.id, "addresses", rule);
        }
        Some(Self {
            vpc,
            subnet,
            mac,
            addresses,
        })
    }

    /// The port as others see it.
    pub(super) fn endpoint(&self, place: Place) -> Endpoint {
        let mut families = self.addresses.iter().copied().map(word_family);
        Endpoint {
            mac: self.mac,
            subnet: self.subnet,
            place,
            ipv6: families.any(|family| family == Family::Ipv6),
        }
    }
}

/// Of a port that has moved between this host and a peer, the peer. None if the host that it came from has gone since.
pub(super) fn other_end_of_move(port: &v1::Port, host: &str, places: &Places) -> Option<u16> {
    let other = if port.host == host {
        &port.moved_from
    } else if port.moved_from == host {
        &port.host
    } else {
        return None;
    };
    places.peers.get(other).copied()
}

/// What a port of this MAC may use besides.
fn pairs(port: &v1::Port, mac: Mac, report: &mut Report) -> Vec<(Prefix, Mac)> {
    let mut pairs = Vec::new();
    for (i, pair) in port.allowed_pairs.iter().enumerate() {
        let pair_mac = if pair.mac.is_empty() {
            Ok(mac)
        } else {
            pair.mac.parse()
        };
        match (pair.cidr.parse::<IpNetwork>(), pair_mac) {
            (Ok(network), Ok(mac)) => pairs.push((network.into(), mac)),
            _ => {
                let field = format!("allowed_pairs[{i}]");
                let rule = "is a prefix and a MAC";
                report.add(Kind::Port, &port.id, field, rule);
            }
        }
    }
    pairs
}

/// What a port of this MAC behind a peer may send with besides its own.
pub(super) fn allowed(
    port: &v1::Port,
    mac: Mac,
    report: &mut Report,
) -> impl Iterator<Item = Allowed> + use<> {
    let pairs = pairs(port, mac, report).into_iter().map(Some);
    pairs.chain(port.unguarded.then_some(None))
}

/// A port of this host; `told`: what its subnet tells guests.
pub(super) fn compile_port<'c>(
    port: &v1::Port,
    parsed: &Parsed,
    (classifiers, told): (
        impl Fn(&str) -> Option<&'c GroupClassifiers>,
        Option<&Guests>,
    ),
    report: &mut Report,
) -> Port {
    let pairs = pairs(port, parsed.mac, report);
    let (ingress, egress) = rules_of_port(port, classifiers, report);
    Port {
        id: port.id.clone(),
        device: port.device.clone(),
        trunk: port.trunk.clone(),
        vpc: parsed.vpc,
        subnet: parsed.subnet,
        mac: parsed.mac,
        addresses: parsed.addresses.clone(),
        hostname: port.hostname.clone(),
        guests: dhcp_options::of_port(port, told, report),
        pairs,
        guarded: !port.unguarded,
        clamp_mss: port.clamp_mss,
        // What is more than six bits was refused.
        dscp: port.dscp.map(|dscp| dscp as u8 & 0x3f),
        ingress,
        egress,
    }
}
