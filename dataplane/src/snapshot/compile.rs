//! From a node state to a snapshot. Whole or not at all: every violation is collected, and none leaves a trace.
//!
//! Runs in the agent. What `weft_proto::validate` has checked is not checked again here, but nothing here relies on it for memory or
//! panic safety: what does not resolve becomes a violation.

use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use weft_proto::state::{Key, Kind, State};
use weft_proto::v1;

use super::registry::Registry;
use super::{
    Endpoint, Map, NextHop, Peer, Place, Port, Snapshot, Subnet, TUNNEL_SLOTS, Target, Tunnel, Vpc,
};
use crate::encap::{Encapsulation, Template};
use crate::packet::parse::{address_word, protocol, word_address};
use crate::packet::{Family, Mac};
use crate::policy::{
    self, Acl, AclEntry, AclRules, AddressSet, Classifier, GroupRules, Remote, Rule, Service,
    protocol_number,
};
use crate::route::ecmp::{self, Group, Member};
use crate::route::{Lpm, Prefix, TableBuilder};

/// The numbers that stay from one snapshot to the next.
#[derive(Debug, Clone)]
pub struct Registries {
    /// Ports of this host.
    pub ports: Registry,
    /// Remote hosts.
    pub peers: Registry,
    /// VPCs.
    pub vpcs: Registry,
}

impl Registries {
    /// Caps: ports of this host, remote hosts, VPCs.
    pub fn new(ports: u16, peers: u16, vpcs: u32) -> Self {
        Self {
            ports: Registry::new(ports.into()),
            peers: Registry::new(peers.into()),
            vpcs: Registry::new(vpcs),
        }
    }
}

/// A resolved way to a remote VTEP address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adjacency {
    /// Our address on that way.
    pub source: u128,
    /// MAC of the uplink.
    pub source_mac: Mac,
    /// MAC of the next hop.
    pub next_hop_mac: Mac,
    /// The uplink's index.
    pub uplink: u16,
    /// Bytes of IP packet that the way carries.
    pub mtu: u16,
}

/// What is known of the underlay: for each remote VTEP address the ways there that are up.
pub type Underlay = Map<u128, Vec<Adjacency>>;

/// What a snapshot is compiled from, besides the state.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// This host's id.
    pub host: &'a str,
    /// The generation of the snapshot to come.
    pub generation: u32,
    /// The revision of the state.
    pub revision: u64,
    /// The underlay.
    pub underlay: &'a Underlay,
}

/// Compiles a state.
///
/// # Errors
/// Every rule that the state breaks; `registries` are then as they were.
pub fn compile(
    state: &State,
    context: &Context<'_>,
    registries: &mut Registries,
) -> Result<Snapshot, Vec<v1::Violation>> {
    let mut numbers = registries.clone();
    let mut compiler = Compiler {
        state: state.to_objects(),
        context,
        numbers: &mut numbers,
        violations: Vec::new(),
        snapshot: Snapshot::default(),
    };
    compiler.run();
    let Compiler {
        violations,
        snapshot,
        ..
    } = compiler;
    if violations.is_empty() {
        *registries = numbers;
        Ok(snapshot)
    } else {
        Err(violations)
    }
}

struct Compiler<'a> {
    state: v1::Objects,
    context: &'a Context<'a>,
    numbers: &'a mut Registries,
    violations: Vec<v1::Violation>,
    snapshot: Snapshot,
}

/// Places of objects in the snapshot, by id.
#[derive(Default)]
struct Places<'a> {
    vpcs: Map<&'a str, usize>,
    subnets: Map<&'a str, usize>,
    acls: Map<&'a str, usize>,
    groups: Map<&'a str, usize>,
    prefix_lists: Map<&'a str, usize>,
    peers: Map<&'a str, u16>,
    endpoints: Map<&'a str, Endpoint>,
}

/// A group's rules by direction; none where it has no rule.
struct CompiledGroup {
    ingress: Option<Arc<Classifier>>,
    egress: Option<Arc<Classifier>>,
}

impl Compiler<'_> {
    fn violate(&mut self, kind: Kind, id: &str, field: impl Into<String>, rule: impl Into<String>) {
        let object = Some(
            Key {
                kind,
                id: id.to_owned(),
            }
            .to_wire(),
        );
        self.violations.push(v1::Violation {
            object,
            field: field.into(),
            rule: rule.into(),
        });
    }

    fn run(&mut self) {
        let state = std::mem::take(&mut self.state);
        self.snapshot.generation = self.context.generation;
        self.snapshot.revision = self.context.revision;
        let mut places = Places::default();
        self.hosts(&state, &mut places);
        self.vpcs(&state, &mut places);
        self.sets(&state, &mut places);
        self.acls(&state, &mut places);
        self.subnets(&state, &mut places);
        self.ports(&state, &mut places);
        self.routes(&state, &places);
        let host = self.context.host;
        self.numbers.ports.retain(|id| {
            state
                .ports
                .iter()
                .any(|port| port.id == id && port.host == host)
        });
        self.numbers
            .peers
            .retain(|id| state.hosts.iter().any(|peer| peer.id == id));
        self.numbers
            .vpcs
            .retain(|id| state.vpcs.iter().any(|vpc| vpc.id == id));
    }

    fn hosts<'s>(&mut self, state: &'s v1::Objects, places: &mut Places<'s>) {
        for host in &state.hosts {
            let vteps: Vec<u128> = host
                .vteps
                .iter()
                .filter_map(|text| text.parse::<IpAddr>().ok())
                .map(address_word)
                .collect();
            if vteps.len() != host.vteps.len() || vteps.is_empty() {
                self.violate(
                    Kind::Host,
                    &host.id,
                    "vteps",
                    "is a list of one or more addresses",
                );
                continue;
            }
            if host.id == self.context.host {
                self.snapshot.vteps = vteps;
                continue;
            }
            let encapsulation = match host.encapsulation.as_str() {
                "" | "vxlan" => Encapsulation::Vxlan,
                "gre" => Encapsulation::Gre,
                _ => {
                    self.violate(Kind::Host, &host.id, "encapsulation", "is vxlan or gre");
                    continue;
                }
            };
            let Some(index) = self
                .numbers
                .peers
                .number(&host.id)
                .map(|number| number as u16)
            else {
                let rule = format!(
                    "this host knows at most {} other hosts",
                    self.numbers.peers.cap()
                );
                self.violate(Kind::Host, &host.id, "", rule);
                continue;
            };
            places.peers.insert(&host.id, index);
            for vtep in &vteps {
                self.snapshot.peer_by_vtep.insert(*vtep, index);
            }
            let peer = self.peer(host, encapsulation, vteps);
            put(&mut self.snapshot.peers, index, peer);
        }
    }

    fn peer(&self, host: &v1::Host, encapsulation: Encapsulation, vteps: Vec<u128>) -> Peer {
        let limit = if host.underlay_mtu == 0 {
            u16::MAX
        } else {
            u16::try_from(host.underlay_mtu).unwrap_or(u16::MAX)
        };
        let mut tunnels = Vec::new();
        for remote in &vteps {
            for way in self.context.underlay.get(remote).into_iter().flatten() {
                let template = Template::new(
                    encapsulation,
                    (way.source_mac, way.next_hop_mac),
                    way.source,
                    *remote,
                );
                let inner_mtu = template.inner_mtu(way.mtu.min(limit));
                tunnels.push(Tunnel {
                    remote: *remote,
                    template,
                    inner_mtu,
                    uplink: way.uplink,
                });
            }
        }
        // Of two families, the one that the host names first is in use while a way of it is up.
        if let Some(first) = tunnels
            .first()
            .map(|tunnel| word_address(tunnel.remote).is_ipv4())
        {
            tunnels.retain(|tunnel| word_address(tunnel.remote).is_ipv4() == first);
        }
        // Each slot takes the way that it scores highest for, so that a way that goes moves no flow of the others.
        let identity = |way: &Tunnel| {
            ecmp::identity(&[&way.remote.to_be_bytes()[..], &way.uplink.to_be_bytes()].concat())
        };
        let members: Vec<_> = (0u8..)
            .zip(&tunnels)
            .map(|(i, way)| Member {
                identity: identity(way),
                weight: 1,
                target: i,
            })
            .collect();
        let ways = Group::new(members);
        let slots = (0..TUNNEL_SLOTS as u64)
            .filter_map(|slot| ways.choose(ecmp::identity(&slot.to_be_bytes())))
            .map(|m| m.target)
            .collect();
        Peer {
            host: host.id.clone(),
            encapsulation,
            vteps,
            tunnels,
            slots,
        }
    }

    fn vpcs<'s>(&mut self, state: &'s v1::Objects, places: &mut Places<'s>) {
        for vpc in &state.vpcs {
            if vpc.vni == 0 || vpc.vni >= 1 << 24 {
                self.violate(Kind::Vpc, &vpc.id, "vni", "is 1 to 16777215");
                continue;
            }
            let place = self.snapshot.vpcs.len();
            if self.snapshot.vpc_by_vni.insert(vpc.vni, place).is_some() {
                self.violate(
                    Kind::Vpc,
                    &vpc.id,
                    "vni",
                    format!("{} is taken by another VPC", vpc.vni),
                );
            }
            let Some(index) = self.numbers.vpcs.number(&vpc.id) else {
                let rule = format!("this host holds at most {} VPCs", self.numbers.vpcs.cap());
                self.violate(Kind::Vpc, &vpc.id, "", rule);
                continue;
            };
            places.vpcs.insert(&vpc.id, place);
            self.snapshot.vpcs.push(Vpc {
                id: vpc.id.clone(),
                vni: vpc.vni,
                index,
                ..Vpc::default()
            });
        }
    }

    fn sets<'s>(&mut self, state: &'s v1::Objects, places: &mut Places<'s>) {
        for list in &state.prefix_lists {
            let prefixes = self.prefixes(Kind::PrefixList, &list.id, "prefixes", &list.prefixes);
            places
                .prefix_lists
                .insert(&list.id, self.snapshot.sets.len());
            self.snapshot.sets.push(AddressSet {
                name: format!("prefix list {}", list.id),
                prefixes,
            });
        }
        for group in &state.security_groups {
            let prefixes = self.prefixes(Kind::SecurityGroup, &group.id, "members", &group.members);
            places.groups.insert(&group.id, self.snapshot.sets.len());
            self.snapshot.sets.push(AddressSet {
                name: format!("security group {}", group.id),
                prefixes,
            });
        }
    }

    fn prefixes(&mut self, kind: Kind, id: &str, field: &str, texts: &[String]) -> Lpm<()> {
        let mut table = Lpm::default();
        for (i, text) in texts.iter().enumerate() {
            match text.parse::<IpNetwork>() {
                Ok(network) => {
                    table.insert(network.into(), ());
                }
                Err(_) => self.violate(
                    kind,
                    id,
                    format!("{field}[{i}]"),
                    format!("'{text}' is not a prefix"),
                ),
            }
        }
        table
    }

    fn acls<'s>(&mut self, state: &'s v1::Objects, places: &mut Places<'s>) {
        for acl in &state.network_acls {
            let (mut ingress, mut egress) = (Vec::new(), Vec::new());
            for (i, wire) in acl.rules.iter().enumerate() {
                let rule = service(
                    &wire.protocol,
                    (wire.port_min, wire.port_max),
                    (wire.icmp_type, wire.icmp_code),
                )
                .and_then(|service| {
                    let (remote, family) = remote_prefix(&wire.cidr)?;
                    Ok(Rule {
                        family: family.or(family_of_service(&service)),
                        service,
                        remote,
                    })
                });
                let list = match wire.direction.as_str() {
                    "ingress" => Some(&mut ingress),
                    "egress" => Some(&mut egress),
                    _ => None,
                };
                match (rule, list, wire.action.as_str()) {
                    (Ok(rule), Some(list), action @ ("allow" | "deny")) => {
                        list.push(AclEntry {
                            number: wire.number as u16,
                            allow: action == "allow",
                            rule,
                        });
                    }
                    (Err(rule), ..) => {
                        self.violate(Kind::NetworkAcl, &acl.id, format!("rules[{i}]"), rule);
                    }
                    _ => self.violate(
                        Kind::NetworkAcl,
                        &acl.id,
                        format!("rules[{i}]"),
                        "has a direction and an action",
                    ),
                }
            }
            places.acls.insert(&acl.id, self.snapshot.acls.len());
            self.snapshot.acls.push(Acl {
                id: acl.id.clone(),
                ingress: AclRules::new(&ingress),
                egress: AclRules::new(&egress),
            });
        }
    }

    /// The rules of every group, each compiled once for all of its ports.
    fn groups<'s>(
        &mut self,
        state: &'s v1::Objects,
        places: &Places<'s>,
    ) -> Map<&'s str, CompiledGroup> {
        let mut groups = Map::default();
        for group in &state.security_groups {
            let (mut ingress, mut egress) = (Vec::new(), Vec::new());
            for (i, wire) in group.rules.iter().enumerate() {
                match (security_rule(wire, places), wire.direction.as_str()) {
                    (Ok(rule), "ingress") => ingress.push(rule),
                    (Ok(rule), "egress") => egress.push(rule),
                    (Ok(_), _) => self.violate(
                        Kind::SecurityGroup,
                        &group.id,
                        format!("rules[{i}].direction"),
                        "is ingress or egress",
                    ),
                    (Err(rule), _) => {
                        self.violate(Kind::SecurityGroup, &group.id, format!("rules[{i}]"), rule);
                    }
                }
            }
            let compile = |rules: &[Rule]| (!rules.is_empty()).then(|| policy::group(rules).into());
            let compiled = CompiledGroup {
                ingress: compile(&ingress),
                egress: compile(&egress),
            };
            groups.insert(group.id.as_str(), compiled);
        }
        groups
    }

    fn subnets<'s>(&mut self, state: &'s v1::Objects, places: &mut Places<'s>) {
        for subnet in &state.subnets {
            let Some(vpc) = places.vpcs.get(subnet.vpc.as_str()).copied() else {
                self.violate(
                    Kind::Subnet,
                    &subnet.id,
                    "vpc",
                    format!("'{}' does not exist", subnet.vpc),
                );
                continue;
            };
            let place = self.snapshot.subnets.len();
            let acl = places.acls.get(subnet.network_acl.as_str()).copied();
            if acl.is_none() && !subnet.network_acl.is_empty() {
                self.violate(
                    Kind::Subnet,
                    &subnet.id,
                    "network_acl",
                    format!("'{}' does not exist", subnet.network_acl),
                );
            }
            let gateway_mac = if subnet.gateway_mac.is_empty() {
                Ok(Mac::ROUTER)
            } else {
                subnet.gateway_mac.parse()
            };
            let gateway_mac = gateway_mac.unwrap_or_else(|error: crate::packet::mac::MacError| {
                self.violate(Kind::Subnet, &subnet.id, "gateway_mac", error.to_string());
                Mac::ROUTER
            });
            let mut compiled = Subnet {
                id: subnet.id.clone(),
                vpc,
                gateway_mac,
                acl,
                ..Subnet::default()
            };
            for (i, text) in subnet.cidrs.iter().enumerate() {
                let Ok(network) = text.parse::<IpNetwork>() else {
                    self.violate(
                        Kind::Subnet,
                        &subnet.id,
                        format!("cidrs[{i}]"),
                        format!("'{text}' is not a prefix"),
                    );
                    continue;
                };
                let prefix = Prefix::from(network);
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
                self.snapshot.vpcs[vpc].gateways.insert(gateway, place);
                self.snapshot.vpcs[vpc].subnets.insert(prefix, place as u32);
            }
            places.subnets.insert(&subnet.id, place);
            self.snapshot.subnets.push(compiled);
        }
    }

    fn ports<'s>(&mut self, state: &'s v1::Objects, places: &mut Places<'s>) {
        let groups = self.groups(state, places);
        for port in &state.ports {
            let (Some(vpc), Some(subnet)) = (
                places.vpcs.get(port.vpc.as_str()).copied(),
                places.subnets.get(port.subnet.as_str()).copied(),
            ) else {
                self.violate(
                    Kind::Port,
                    &port.id,
                    "subnet",
                    format!("'{}' does not exist in VPC '{}'", port.subnet, port.vpc),
                );
                continue;
            };
            let mac = match port.mac.parse::<Mac>() {
                Ok(mac) => mac,
                Err(error) => {
                    self.violate(Kind::Port, &port.id, "mac", error.to_string());
                    continue;
                }
            };
            let addresses: Vec<u128> = port
                .addresses
                .iter()
                .filter_map(|text| text.parse::<IpAddr>().ok())
                .map(address_word)
                .collect();
            if addresses.len() != port.addresses.len() {
                self.violate(Kind::Port, &port.id, "addresses", "is a list of addresses");
            }
            let place = if port.host == self.context.host {
                let Some(index) = self
                    .numbers
                    .ports
                    .number(&port.id)
                    .map(|number| number as u16)
                else {
                    let rule =
                        format!("this host holds at most {} ports", self.numbers.ports.cap());
                    self.violate(Kind::Port, &port.id, "", rule);
                    continue;
                };
                let compiled = self.port(port, (vpc, subnet, mac, addresses.clone()), &groups);
                self.snapshot.subnets[subnet].ports.push(index);
                put(&mut self.snapshot.ports, index, compiled);
                Place::Here(index)
            } else if let Some(peer) = places.peers.get(port.host.as_str()).copied() {
                let peers = &mut self.snapshot.subnets[subnet].peers;
                if !peers.contains(&peer) {
                    peers.push(peer);
                }
                Place::There(peer)
            } else {
                self.violate(
                    Kind::Port,
                    &port.id,
                    "host",
                    format!("'{}' does not exist", port.host),
                );
                continue;
            };
            let endpoint = Endpoint { mac, subnet, place };
            places.endpoints.insert(&port.id, endpoint);
            let table = &mut self.snapshot.vpcs[vpc];
            let mac_taken = table.by_mac.insert(mac, endpoint).is_some();
            let taken = addresses
                .iter()
                .position(|address| table.by_address.insert(*address, endpoint).is_some());
            if mac_taken {
                self.violate(
                    Kind::Port,
                    &port.id,
                    "mac",
                    format!("{mac} belongs to another port of VPC '{}'", port.vpc),
                );
            }
            if let Some(i) = taken {
                self.violate(
                    Kind::Port,
                    &port.id,
                    format!("addresses[{i}]"),
                    format!("belongs to another port of VPC '{}'", port.vpc),
                );
            }
        }
    }

    fn port(
        &mut self,
        port: &v1::Port,
        identity: (usize, usize, Mac, Vec<u128>),
        groups: &Map<&str, CompiledGroup>,
    ) -> Port {
        let (vpc, subnet, mac, addresses) = identity;
        let mut pairs = Vec::new();
        for (i, pair) in port.allowed_pairs.iter().enumerate() {
            let pair_mac = if pair.mac.is_empty() {
                Ok(mac)
            } else {
                pair.mac.parse()
            };
            match (pair.cidr.parse::<IpNetwork>(), pair_mac) {
                (Ok(network), Ok(mac)) => pairs.push((network.into(), mac)),
                _ => self.violate(
                    Kind::Port,
                    &port.id,
                    format!("allowed_pairs[{i}]"),
                    "is a prefix and a MAC",
                ),
            }
        }
        let (mut ingress, mut egress) = (Vec::new(), Vec::new());
        for (g, id) in port.security_groups.iter().enumerate() {
            let Some(group) = groups.get(id.as_str()) else {
                self.violate(
                    Kind::Port,
                    &port.id,
                    format!("security_groups[{g}]"),
                    format!("'{id}' does not exist"),
                );
                continue;
            };
            ingress.extend(group.ingress.clone());
            egress.extend(group.egress.clone());
        }
        Port {
            id: port.id.clone(),
            device: port
                .device
                .as_ref()
                .map(|device| device.name.clone())
                .unwrap_or_default(),
            vpc,
            subnet,
            mac,
            addresses,
            pairs,
            guarded: !port.unguarded,
            clamp_mss: port.clamp_mss,
            ingress: GroupRules::Allow(ingress),
            // The first egress rule flips the default from open to shut.
            egress: if egress.is_empty() {
                GroupRules::Open
            } else {
                GroupRules::Allow(egress)
            },
        }
    }

    fn routes<'s>(&mut self, state: &'s v1::Objects, places: &Places<'s>) {
        let tables: Map<&str, &v1::RouteTable> = state
            .route_tables
            .iter()
            .map(|table| (table.id.as_str(), table))
            .collect();
        for wire in &state.subnets {
            let Some(place) = places.subnets.get(wire.id.as_str()).copied() else {
                continue;
            };
            let vpc = self.snapshot.subnets[place].vpc;
            let mut routes = TableBuilder::default();
            let mut full = Ok(());
            for subnet in self
                .snapshot
                .subnets
                .iter()
                .filter(|subnet| subnet.vpc == vpc)
            {
                for prefix in &subnet.prefixes {
                    full = full.and(routes.insert(*prefix, Target::Local));
                }
            }
            let table = tables.get(wire.route_table.as_str());
            if table.is_none() && !wire.route_table.is_empty() {
                self.violate(
                    Kind::Subnet,
                    &wire.id,
                    "route_table",
                    format!("'{}' does not exist", wire.route_table),
                );
            }
            // Custom routes come second, so that they beat the implied ones of equal length.
            for (i, route) in table
                .into_iter()
                .flat_map(|table| table.routes.iter().enumerate())
            {
                match (route.prefix.parse::<IpNetwork>(), target(route, places)) {
                    (Ok(network), Ok(target)) => {
                        full = full.and(routes.insert(network.into(), target));
                    }
                    (Err(_), _) => self.violate(
                        Kind::RouteTable,
                        &wire.route_table,
                        format!("routes[{i}].prefix"),
                        "is a prefix",
                    ),
                    (_, Err(rule)) => self.violate(
                        Kind::RouteTable,
                        &wire.route_table,
                        format!("routes[{i}]"),
                        rule,
                    ),
                }
            }
            if let Err(error) = full {
                self.violate(
                    Kind::RouteTable,
                    &wire.route_table,
                    "routes",
                    error.to_string(),
                );
            }
            routes.compact();
            self.snapshot.subnets[place].routes = routes.table().clone();
        }
    }
}

/// Puts a value at an index, growing the list with gaps.
fn put<T>(list: &mut Vec<Option<T>>, index: u16, value: T) {
    let index = usize::from(index);
    if list.len() <= index {
        list.resize_with(index + 1, || None);
    }
    list[index] = Some(value);
}

fn next_hop(port: &str, host: &str, mac: &str, places: &Places<'_>) -> Result<NextHop, String> {
    if !port.is_empty() {
        return Ok(places
            .endpoints
            .get(port)
            .map_or(NextHop::Gone, |endpoint| NextHop::Port(*endpoint)));
    }
    let mac = if mac.is_empty() {
        Mac::ROUTER
    } else {
        mac.parse()
            .map_err(|error: crate::packet::mac::MacError| error.to_string())?
    };
    Ok(places
        .peers
        .get(host)
        .map_or(NextHop::Gone, |peer| NextHop::Peer(*peer, mac)))
}

fn target(route: &v1::Route, places: &Places<'_>) -> Result<Target, String> {
    let given = [
        route.blackhole,
        route.local,
        !route.port.is_empty(),
        !route.host.is_empty(),
        !route.ecmp.is_empty(),
    ];
    if given.iter().filter(|given| **given).count() != 1 {
        return Err("has exactly one of blackhole, local, port, host and ecmp".to_owned());
    }
    if route.blackhole {
        return Ok(Target::Blackhole);
    }
    if route.local {
        return Ok(Target::Local);
    }
    if route.ecmp.is_empty() {
        return next_hop(&route.port, &route.host, &route.next_hop_mac, places).map(Target::Hop);
    }
    let mut members = Vec::with_capacity(route.ecmp.len());
    for hop in &route.ecmp {
        let target = next_hop(&hop.port, &hop.host, &hop.next_hop_mac, places)?;
        if target != NextHop::Gone {
            let identity = ecmp::identity(
                format!("{}|{}|{}", hop.port, hop.host, hop.next_hop_mac).as_bytes(),
            );
            members.push(Member {
                identity,
                weight: hop.weight.clamp(1, 65535) as u16,
                target,
            });
        }
    }
    Ok(Target::Ecmp(Group::new(members)))
}

type Bounds = (Option<u32>, Option<u32>);

fn service(word: &str, ports: Bounds, icmp: Bounds) -> Result<Service, String> {
    let Some(number) = protocol_number(word)? else {
        return Ok(Service::Any);
    };
    match (number, ports, icmp) {
        (protocol::ICMP | protocol::ICMPV6, _, (Some(kind), code)) => {
            let narrow = |value: u32| {
                u8::try_from(value).map_err(|_| format!("ICMP type or code {value} is over 255"))
            };
            Ok(Service::Icmp(
                number,
                narrow(kind)?,
                code.map(narrow).transpose()?,
            ))
        }
        (_, (None, None), _) => Ok(Service::Protocol(number)),
        (protocol::ICMP | protocol::ICMPV6, ..) => Err("ICMP has no ports".to_owned()),
        (_, (low, high), _) => {
            let narrow = |value: u32| {
                u16::try_from(value).map_err(|_| format!("port {value} is over 65535"))
            };
            let low = narrow(low.unwrap_or(0))?;
            let high = high.map_or(Ok(u16::MAX), narrow)?;
            Ok(Service::Ports(number, low..=high))
        }
    }
}

fn family_of_service(service: &Service) -> Option<Family> {
    match service {
        Service::Protocol(protocol::ICMP) | Service::Icmp(protocol::ICMP, ..) => Some(Family::Ipv4),
        Service::Protocol(protocol::ICMPV6) | Service::Icmp(protocol::ICMPV6, ..) => {
            Some(Family::Ipv6)
        }
        _ => None,
    }
}

fn remote_prefix(text: &str) -> Result<(Remote, Option<Family>), String> {
    if text.is_empty() {
        return Ok((Remote::Any, None));
    }
    let prefix = Prefix::from(
        text.parse::<IpNetwork>()
            .map_err(|_| format!("'{text}' is not a prefix"))?,
    );
    Ok((Remote::Prefix(prefix), Some(prefix.family())))
}

fn security_rule(wire: &v1::SecurityRule, places: &Places<'_>) -> Result<Rule, String> {
    let service = service(
        &wire.protocol,
        (wire.port_min, wire.port_max),
        (wire.icmp_type, wire.icmp_code),
    )?;
    let (remote, remote_family) =
        if !wire.remote_group.is_empty() {
            let set = places.groups.get(wire.remote_group.as_str());
            (
                Remote::Set(*set.ok_or_else(|| {
                    format!("security group '{}' does not exist", wire.remote_group)
                })?),
                None,
            )
        } else if !wire.remote_prefix_list.is_empty() {
            let set = places.prefix_lists.get(wire.remote_prefix_list.as_str());
            (
                Remote::Set(*set.ok_or_else(|| {
                    format!("prefix list '{}' does not exist", wire.remote_prefix_list)
                })?),
                None,
            )
        } else {
            remote_prefix(&wire.remote_cidr)?
        };
    let named = match wire.family.as_str() {
        "" => None,
        "ipv4" => Some(Family::Ipv4),
        "ipv6" => Some(Family::Ipv6),
        other => return Err(format!("family '{other}' is neither ipv4 nor ipv6")),
    };
    Ok(Rule {
        family: named.or(remote_family).or(family_of_service(&service)),
        service,
        remote,
    })
}
