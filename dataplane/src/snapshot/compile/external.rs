//! External networks, elastic IPs and NAT gateways.

use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use weft_proto::state::Kind;
use weft_proto::v1;

use super::super::{
    ElasticIp, Held, HeldBy, Link, NatGateway, Network, Outside, PortForward, Routed,
    StaticTranslation, Translator, Wire,
};
use super::{Draft, Objects, limits, put};
use crate::packet::Family;
use crate::packet::parse::{address_word, protocol, word_family};
use crate::route::Prefix;
use crate::session::mappings::{Budget, Pool};
use crate::snapshot::nat::{NatAlarms, NatTimeouts};

pub(super) fn parse_address(text: &str) -> Option<u128> {
    text.parse::<IpAddr>().ok().map(address_word)
}

fn parse_prefixes(texts: &[String]) -> Vec<Prefix> {
    let parsed = texts
        .iter()
        .filter_map(|text| text.parse::<IpNetwork>().ok());
    parsed.map(Prefix::from).collect()
}

fn timeouts(gateway: &v1::NatGateway) -> NatTimeouts {
    let [tcp_established, tcp_transitory, udp, icmp] = gateway
        .idle_times()
        .map(|timeout| timeout.effective().saturating_mul(1000));
    NatTimeouts {
        tcp_established,
        tcp_transitory,
        udp,
        icmp,
    }
}

fn budget(gateway: &v1::NatGateway) -> Budget {
    let (gateway, address) = gateway.most_mappings();
    Budget { gateway, address }
}

/// Notes since when each address is held; `before` is the outside of the snapshot before.
pub(super) fn date(before: &Outside, after: &mut Outside, generation: u32) {
    let dated = after.held.iter().map(|(address, held)| {
        let old = before.held.get(address);
        let stays = old.is_some_and(|old| old.network == held.network);
        let since = before.held_since.get(address).filter(|_| stays);
        (*address, since.copied().unwrap_or(generation))
    });
    after.held_since = dated.collect();
    let came = after.held.iter();
    let came = came.filter(|(address, _)| after.held_since.get(*address) == Some(&generation));
    after.came = came
        .map(|(address, held)| (held.network, *address))
        .collect();
}

impl Draft<'_> {
    /// Enters all of them. Ports are in place by now; routes come after.
    pub(super) fn fill_outside(&mut self, objects: &Objects<'_>) {
        let mut outside = Outside::default();
        let alone = self.context.externals.iter();
        for link in alone.filter(|link| !link.has_tunnels && link.uplink < 64) {
            outside.without_tunnels |= 1 << link.uplink;
        }
        for network in &objects.external_networks {
            self.add_network(network, &mut outside);
        }
        outside
            .routed
            .sort_unstable_by_key(|routed| routed.prefix.bits());
        for subnet in &objects.subnets {
            self.put_on_wire(subnet, &mut outside);
        }
        for elastic in &objects.elastic_ips {
            self.add_elastic_ip(objects, elastic, &mut outside);
        }
        for gateway in &objects.nat_gateways {
            self.add_nat_gateway(objects, gateway, &mut outside);
        }
        for (index, network) in outside.networks.iter_mut().enumerate() {
            let Some(network) = network else { continue };
            let held = outside.held.iter();
            let held = held.filter(|(_, held)| usize::from(held.network) == index);
            for family in [Family::Ipv4, Family::Ipv6] {
                let of_family = held.clone().map(|(address, _)| *address);
                network.own.extend(
                    of_family
                        .filter(|address| word_family(*address) == family)
                        .min(),
                );
            }
        }
        self.outside = outside;
    }

    fn add_network(&mut self, network: &v1::ExternalNetwork, outside: &mut Outside) {
        let Some(index) = self.numbers.networks.number(&network.id) else {
            let most = self.numbers.networks.cap();
            let rule = format!("this host knows at most {most} external networks");
            self.report
                .add(Kind::ExternalNetwork, &network.id, "", rule);
            return;
        };
        let index = index as u16;
        let vlan = network.vlan as u16;
        let mut links = self.context.externals.iter();
        let link = links.find(|link| link.physical_network == network.physical_network);
        let mtu = match u16::try_from(network.mtu) {
            Ok(0) => 1500,
            Ok(mtu) => mtu,
            Err(_) => u16::MAX,
        };
        if let Some(link) = link {
            let other = outside.by_link.insert((link.uplink, vlan), index);
            if other.is_some() {
                let rule = "another external network has the VLAN of the physical network";
                self.report
                    .add(Kind::ExternalNetwork, &network.id, "vlan", rule);
            }
        }
        let compiled = Network {
            id: network.id.clone(),
            link: link.map(|link| Link {
                uplink: link.uplink,
                vlan,
                mac: link.mac,
            }),
            prefixes: parse_prefixes(&network.prefixes),
            gateways: network
                .gateways
                .iter()
                .filter_map(|text| parse_address(text))
                .collect(),
            mtu: link.map_or(mtu, |link| link.mtu.min(mtu)),
            gateway: self.gateway(network),
            gateways_in_order: self.gateways_in_order(network),
            own: Vec::new(),
            answers_pings: network.answer_pings,
            vpc: None,
        };
        let is_gateway = compiled.gateway == Translator::Here;
        self.places.networks.insert(network.id.clone(), index);
        put(&mut outside.networks, index, compiled);
        let routed = network.routed.iter();
        outside.routed.extend(routed.filter_map(|routed| {
            Some(Routed {
                prefix: routed.prefix.parse::<IpNetwork>().ok()?.into(),
                network: index,
                vpc: self.places.vpcs.get(&routed.vpc).copied()?,
            })
        }));
        let routers = network.routers.iter().enumerate();
        for (i, text) in routers.filter(|_| is_gateway) {
            let held = Held {
                network: index,
                vpc: None,
                by: HeldBy::Network,
            };
            if let Some(address) = parse_address(text) {
                let field = format!("routers[{i}]");
                let at = (Kind::ExternalNetwork, &*network.id, &*field);
                self.hold(at, address, held, outside);
            }
        }
    }

    /// Enters a subnet that is on an external network.
    fn put_on_wire(&mut self, subnet: &v1::Subnet, outside: &mut Outside) {
        if subnet.external_network.is_empty() {
            return;
        }
        let networks = &self.places.networks;
        let (Some(index), Some(place)) = (
            networks.get(&subnet.external_network).copied(),
            self.places.subnets.get(&subnet.id).copied(),
        ) else {
            let rule = format!("'{}' does not exist", subnet.external_network);
            let field = "external_network";
            return self.report.add(Kind::Subnet, &subnet.id, field, rule);
        };
        let vpc = self.subnets[place].vpc;
        let wire = self.vpcs[vpc].vpc.wire.get_or_insert_with(|| Wire {
            network: index,
            subnets: Vec::new(),
        });
        let network = outside.networks.get_mut(usize::from(index));
        let Some(network) = network.and_then(Option::as_mut) else {
            return;
        };
        if wire.network != index || network.vpc.is_some_and(|other| other != vpc) {
            let rule = "an external network has the subnets of one VPC, and a VPC is on one";
            let field = "external_network";
            return self.report.add(Kind::Subnet, &subnet.id, field, rule);
        }
        wire.subnets.push(place);
        network.vpc = Some(vpc);
        let Some(Link {
            uplink, vlan: 0, ..
        }) = network.link
        else {
            return;
        };
        let mut links = self.context.externals.iter();
        if links.any(|link| link.uplink == uplink && link.has_tunnels) {
            let rule = "the interface of its physical network is an uplink of this host, where guests without a VLAN would be among the tunnels: give the network a VLAN, or an interface of its own";
            let field = "external_network";
            self.report.add(Kind::Subnet, &subnet.id, field, rule);
        }
    }

    /// A host that translates, as this one sees it.
    fn translator(&self, host: &str) -> Translator {
        if host == self.context.host {
            return Translator::Here;
        }
        let peer = self.places.peers.get(host).copied();
        peer.map_or(Translator::Nobody, Translator::There)
    }

    /// The gateway host of a network: the first that lives.
    fn gateway(&self, network: &v1::ExternalNetwork) -> Translator {
        let mut hosts = network.gateway_hosts.iter();
        let first = hosts.find(|host| !self.context.silent.contains(*host));
        first.map_or(Translator::Nobody, |host| self.translator(host))
    }

    /// All gateway hosts of a network that are known here.
    fn gateways_in_order(&self, network: &v1::ExternalNetwork) -> Vec<Translator> {
        let hosts = network.gateway_hosts.iter();
        let known = hosts.map(|host| self.translator(host));
        known.filter(|host| *host != Translator::Nobody).collect()
    }

    fn add_elastic_ip(
        &mut self,
        objects: &Objects<'_>,
        elastic: &v1::ElasticIp,
        outside: &mut Outside,
    ) {
        if !elastic.load_balancer.is_empty() {
            return self.add_public_balancer(objects, elastic, outside);
        }
        let by_id = |port: &&v1::Port| port.id.as_str().cmp(elastic.port.as_str());
        let port = objects.ports.binary_search_by(by_id);
        let networks = &objects.external_networks;
        let network =
            networks.binary_search_by(|network| network.id.as_str().cmp(&elastic.external_network));
        // One that is bound to nothing that lives is nobody's.
        let (Ok(port), Ok(network)) = (port, network) else {
            self.places.named_ports.insert(elastic.port.clone());
            return;
        };
        let (port, network) = (objects.ports[port], networks[network]);
        let (Some(vpc), Some(index), Some(address)) = (
            self.places.vpcs.get(&port.vpc).copied(),
            self.places.networks.get(&network.id).copied(),
            parse_address(&elastic.address),
        ) else {
            return;
        };
        if elastic.is_direct() {
            self.places.named_ports.insert(elastic.port.clone());
        }
        let own = port.addresses.iter().filter_map(|text| parse_address(text));
        let inside = match parse_address(&elastic.private_address) {
            _ if elastic.is_direct() => Some(address),
            Some(inside) => own.into_iter().find(|own| *own == inside),
            None => own
                .into_iter()
                .find(|own| word_family(*own) == word_family(address)),
        };
        let Some(inside) = inside else {
            let rule = format!("is no address of port '{}' and of its family", port.id);
            self.report
                .add(Kind::ElasticIp, &elastic.id, "private_address", rule);
            return;
        };
        let hosts = &objects.hosts;
        let home = hosts.binary_search_by(|host| host.id.as_str().cmp(port.host.as_str()));
        let translator = match home {
            Ok(home) if hosts[home].is_on(&network.physical_network) => {
                self.translator(&hosts[home].id)
            }
            Ok(_) => self.gateway(network),
            Err(_) => Translator::Nobody,
        };
        let translation = StaticTranslation {
            vpc: port.vpc.clone(),
            inside,
            outside: address,
            towards: Vec::new(),
        };
        let draft = &mut self.vpcs[vpc];
        if !elastic.is_direct() && !Arc::make_mut(&mut draft.vpc.translations).add(&translation) {
            let rule = "or its private address has another translation";
            self.report
                .add(Kind::ElasticIp, &elastic.id, "address", rule);
            return;
        }
        draft.elastic_ips.insert(
            inside,
            ElasticIp {
                address,
                network: index,
                translator,
            },
        );
        if translator == Translator::Here {
            let held = Held {
                network: index,
                vpc: Some(vpc),
                by: HeldBy::ElasticIp(inside),
            };
            let before = self.outside_before.limits.0.get(&address);
            if let Some(limits) = limits::of(elastic.limits.as_ref(), before) {
                outside.limits.0.insert(address, limits);
            }
            self.hold(
                (Kind::ElasticIp, &elastic.id, "address"),
                address,
                held,
                outside,
            );
        }
    }

    /// An elastic IP of a load balancer: another address of it, also to the VPC's own ports. The network's gateway host holds it.
    fn add_public_balancer(
        &mut self,
        objects: &Objects<'_>,
        elastic: &v1::ElasticIp,
        outside: &mut Outside,
    ) {
        let balancers = &objects.load_balancers;
        let place = balancers.binary_search_by(|it| it.id.as_str().cmp(&elastic.load_balancer));
        let Ok(place) = place else { return };
        let (Some(vpc), Some(network), Some(address)) = (
            self.places.vpcs.get(&balancers[place].vpc).copied(),
            self.places.networks.get(&elastic.external_network).copied(),
            parse_address(&elastic.address),
        ) else {
            return;
        };
        let family = word_family(address);
        let own = balancers[place].addresses.iter();
        let mut own = own.filter_map(|text| parse_address(text));
        let Some(own) = own.find(|own| word_family(*own) == family) else {
            let rule = format!("has no address of the family of '{}'", elastic.address);
            return self
                .report
                .add(Kind::ElasticIp, &elastic.id, "load_balancer", rule);
        };
        let draft = &mut self.vpcs[vpc];
        let Some(balancer) = draft.balancers.get(&own).cloned() else {
            return;
        };
        // What lies in a subnet of the VPC is that subnet's, and refused beforehand: nothing else on this host may suffer for it.
        if draft.vpc.subnets.lookup(address).is_some() || draft.balancers.contains_key(&address) {
            return;
        }
        let members = balancer.listeners.iter().flat_map(|it| &it.members);
        let members = members.map(|member| (member.address, network));
        draft.public.members.extend(members);
        draft.public.addresses.insert(address, (network, own));
        draft.balancers.insert(address, balancer);
        if outside.is_gateway_of(network) {
            outside.balanced.insert(address);
        }
        if !outside.is_gateway(network) {
            return;
        }
        let held = Held {
            network,
            vpc: Some(vpc),
            by: HeldBy::Balancer,
        };
        let before = self.outside_before.limits.0.get(&address);
        if let Some(limits) = limits::of(elastic.limits.as_ref(), before) {
            outside.limits.0.insert(address, limits);
        }
        let at = (Kind::ElasticIp, &*elastic.id, "address");
        self.hold(at, address, held, outside);
    }

    fn add_nat_gateway(
        &mut self,
        objects: &Objects<'_>,
        gateway: &v1::NatGateway,
        outside: &mut Outside,
    ) {
        let (Some(vpc), Some(network)) = (
            self.places.vpcs.get(&gateway.vpc).copied(),
            self.places.networks.get(&gateway.external_network).copied(),
        ) else {
            return;
        };
        let Some(index) = self.numbers.nat_gateways.number(&gateway.id) else {
            let most = self.numbers.nat_gateways.cap();
            let rule = format!("this host knows at most {most} NAT gateways");
            self.report.add(Kind::NatGateway, &gateway.id, "", rule);
            return;
        };
        let index = index as u16;
        let addresses = gateway
            .addresses
            .iter()
            .filter_map(|text| parse_address(text));
        let addresses: Vec<u128> = addresses.collect();
        let is_here = outside
            .network(network)
            .is_some_and(|network| network.gateway == Translator::Here);
        let stands_by = outside.is_gateway_of(network);
        let mut pools = Vec::new();
        for (i, address) in addresses.iter().copied().enumerate().filter(|_| stands_by) {
            let name = format!("{address:x}");
            let Some(number) = self.numbers.pools.number(&name) else {
                let most = self.numbers.pools.cap();
                let rule = format!("this host holds at most {most} addresses of NAT gateways");
                self.report
                    .add(Kind::NatGateway, &gateway.id, "addresses", rule);
                continue;
            };
            let pool = Pool {
                address,
                number: number as u16,
            };
            pools.push(pool);
            outside.pools.insert(address, (index, pool));
            if !is_here {
                continue;
            }
            let held = Held {
                network,
                vpc: Some(vpc),
                by: HeldBy::NatGateway(index),
            };
            let field = format!("addresses[{i}]");
            self.hold(
                (Kind::NatGateway, &gateway.id, &field),
                address,
                held,
                outside,
            );
        }
        // Those of one family stand together.
        pools.sort_by_key(|pool| word_family(pool.address) == Family::Ipv6);
        let forwards = gateway.port_forwards.iter();
        let named = forwards.clone().map(|forward| forward.port.clone());
        self.places.named_ports.extend(named);
        let forwards = forwards.filter_map(|forward| self.forward(objects, &addresses, forward));
        let nat64 = match gateway.nat64() {
            Ok(nat64) => nat64,
            Err(rule) => {
                self.report
                    .add(Kind::NatGateway, &gateway.id, "nat64_prefix", rule);
                return;
            }
        };
        let compiled = NatGateway {
            id: gateway.id.clone(),
            vpc,
            network,
            pools,
            sources: parse_prefixes(&gateway.sources),
            forwards: forwards.collect(),
            is_open: gateway.filtering == "endpoint_independent",
            nat64: nat64.into(),
            timeouts: timeouts(gateway),
            budget: budget(gateway),
            alarms: self.alarms(index, &gateway.id),
        };
        self.places.nat_gateways.insert(gateway.id.clone(), index);
        put(&mut outside.nat_gateways, index, compiled);
    }

    /// The counters of a gateway: those that it has already. Its index stays while it is known.
    fn alarms(&self, index: u16, id: &str) -> Arc<NatAlarms> {
        let before = self.outside_before.nat_gateway(index);
        let same = before.filter(|gateway| gateway.id == id);
        same.map_or_else(Arc::default, |gateway| Arc::clone(&gateway.alarms))
    }

    /// A port forward; none while what it leads to is nowhere.
    fn forward(
        &self,
        objects: &Objects<'_>,
        addresses: &[u128],
        forward: &v1::PortForward,
    ) -> Option<PortForward> {
        let address = match parse_address(&forward.address) {
            Some(address) => address,
            None => *addresses.first()?,
        };
        let inside = if forward.port.is_empty() {
            parse_address(&forward.private_address)?
        } else {
            let by_id = |port: &&v1::Port| port.id.as_str().cmp(forward.port.as_str());
            let port = objects.ports[objects.ports.binary_search_by(by_id).ok()?];
            let mut own = port.addresses.iter().filter_map(|text| parse_address(text));
            own.find(|own| word_family(*own) == word_family(address))?
        };
        let (first, last) = (forward.port_min, forward.port_max.max(forward.port_min));
        let to = if forward.to_port_min == 0 {
            first
        } else {
            forward.to_port_min
        };
        Some(PortForward {
            protocol: match forward.protocol.as_str() {
                "tcp" => protocol::TCP,
                "udp" => protocol::UDP,
                _ => return None,
            },
            address,
            ports: (first.try_into().ok()?, last.try_into().ok()?),
            inside,
            first: to.try_into().ok()?,
        })
    }

    fn hold(
        &mut self,
        (kind, id, field): (Kind, &str, &str),
        address: u128,
        held: Held,
        outside: &mut Outside,
    ) {
        let is_on = outside
            .network(held.network)
            .is_some_and(|network| network.holds(address));
        if !is_on {
            let rule = "is in no prefix of its external network";
            self.report.add(kind, id, field, rule);
        } else if outside.held.insert(address, held).is_some() {
            self.report.add(kind, id, field, "is taken");
        }
    }

    /// Names that are gone give their numbers back.
    pub(super) fn retain_outside(&mut self, objects: &Objects<'_>) {
        let networks = &objects.external_networks;
        self.numbers.networks.retain(|id| {
            networks
                .binary_search_by(|network| network.id.as_str().cmp(id))
                .is_ok()
        });
        let gateways = &objects.nat_gateways;
        self.numbers.nat_gateways.retain(|id| {
            gateways
                .binary_search_by(|gateway| gateway.id.as_str().cmp(id))
                .is_ok()
        });
        let pools = &self.outside.pools;
        self.numbers.pools.retain(|name| {
            u128::from_str_radix(name, 16).is_ok_and(|address| pools.contains_key(&address))
        });
    }
}

/// Whether what is decided for flows to and from the outside is the same before and after, but for the VPCs' own parts.
pub(super) fn is_same(before: &Outside, after: &Outside) -> bool {
    let decides = |network: &Option<Network>| {
        network.as_ref().map(|network| {
            let Network {
                link,
                prefixes,
                gateways,
                gateway,
                mtu,
                ..
            } = network;
            (*link, prefixes.clone(), gateways.clone(), *gateway, *mtu)
        })
    };
    let networks = |outside: &Outside| -> Vec<_> { outside.networks.iter().map(decides).collect() };
    networks(before) == networks(after) && before.routed == after.routed
}
