//! One version of the intent: a revision, its objects, and an index of the hosts that each change affects.
//!
//! Immutable and shared by all streams. The index is built once, when it is first needed.

use std::collections::{BTreeSet, HashMap};
use std::sync::OnceLock;

use weft_proto::state::{Key, Kind, Object, State};
use weft_proto::v1::{ElasticIp, ExternalNetwork, Port};

use crate::store::Change;

/// The intent as of one revision.
#[derive(Debug, Default)]
pub struct Version {
    /// Increases by one with each change.
    pub revision: u64,
    /// Every object.
    pub state: State,
    /// When each VPC, or any object in it, last changed.
    vpc_changed: HashMap<String, u64>,
    /// When any host last changed.
    hosts_changed: u64,
    /// Ports that still are sent on from where they were.
    moving: BTreeSet<String>,
    index: OnceLock<Index>,
}

#[derive(Debug, Default)]
struct Index {
    objects_of_vpc: HashMap<String, Vec<Key>>,
    /// Security groups and prefix lists that are in no VPC.
    objects_of_tenant: HashMap<String, Vec<Key>>,
    vpcs_of_host: HashMap<String, BTreeSet<String>>,
    /// The hosts with ports of each VPC.
    hosts_of_vpc: HashMap<String, BTreeSet<String>>,
    /// The ids of the elastic IPs that are bound to ports of each VPC.
    elastic_ips_of_vpc: HashMap<String, Vec<String>>,
    /// The hosts that are gateways to external networks for each VPC.
    gateways_of_vpc: HashMap<String, BTreeSet<String>>,
}

impl Version {
    /// The version that was stored.
    pub fn loaded(revision: u64, state: State) -> Self {
        let moving = state.of_kind(Kind::Port).filter_map(moving).collect();
        Self {
            revision,
            state,
            hosts_changed: revision,
            moving,
            ..Self::default()
        }
    }

    /// The version after a change that led to `state`.
    pub fn next(&self, change: &Change, state: State) -> Self {
        let mut vpc_changed = self.vpc_changed.clone();
        let mut hosts_changed = self.hosts_changed;
        let old = change.deletes.iter().filter_map(|key| self.state.get(key));
        let replaced = change
            .upserts
            .iter()
            .filter_map(|object| self.state.get(&object.key()));
        let mut networks = BTreeSet::new();
        for object in old.chain(replaced).chain(&change.upserts) {
            for vpc in object.vpcs() {
                vpc_changed.insert(vpc.to_owned(), change.revision);
            }
            match object {
                Object::ElasticIp(elastic) => {
                    let ports = [&self.state, &state].map(|state| state.port_of(elastic));
                    for port in ports.into_iter().flatten() {
                        vpc_changed.insert(port.vpc.clone(), change.revision);
                    }
                }
                Object::ExternalNetwork(network) => drop(networks.insert(network.id.as_str())),
                _ => {}
            }
            if object.kind() == Kind::Host {
                hosts_changed = change.revision;
            }
            if let Some(tenant) = object.tenant_wide() {
                for vpc in [&self.state, &state]
                    .iter()
                    .flat_map(|it| vpcs_of(it, tenant))
                {
                    vpc_changed.insert(vpc.to_owned(), change.revision);
                }
            }
        }
        if !networks.is_empty() {
            for vpc in [&self.state, &state]
                .into_iter()
                .flat_map(|state| users(state, &networks))
            {
                vpc_changed.insert(vpc.to_owned(), change.revision);
            }
        }
        let mut moving_now = self.moving.clone();
        for key in &change.deletes {
            if key.kind == Kind::Port {
                moving_now.remove(&key.id);
            }
        }
        for object in &change.upserts {
            match moving(object) {
                Some(id) => drop(moving_now.insert(id)),
                None if object.kind() == Kind::Port => drop(moving_now.remove(object.id())),
                None => {}
            }
        }
        Self {
            revision: change.revision,
            state,
            vpc_changed,
            hosts_changed,
            moving: moving_now,
            index: OnceLock::new(),
        }
    }

    /// The host of that id, if it is one that runs weftd.
    pub fn host(&self, id: &str) -> Option<&weft_proto::v1::Host> {
        let key = Key {
            kind: Kind::Host,
            id: id.to_owned(),
        };
        match self.state.get(&key) {
            Some(Object::Host(host)) if !host.foreign => Some(host),
            _ => None,
        }
    }

    /// The ports that have moved and still are sent on from where they were.
    pub fn moving(&self) -> impl Iterator<Item = &Port> {
        self.moving
            .iter()
            .filter_map(|id| match self.state.find(Kind::Port, id) {
                Some(Object::Port(port)) => Some(port),
                _ => None,
            })
    }

    /// The VPCs that have ports on a host, or ports that have just left it, and those for which it is a gateway to an external network.
    pub fn vpcs_of(&self, host: &str) -> BTreeSet<String> {
        let vpcs = self.index().vpcs_of_host.get(host);
        vpcs.cloned().unwrap_or_default()
    }

    /// The hosts with ports of a VPC.
    pub fn port_hosts_of(&self, vpc: &str) -> impl Iterator<Item = &str> {
        let hosts = self.index().hosts_of_vpc.get(vpc);
        hosts.into_iter().flatten().map(String::as_str)
    }

    /// Whether a host has ports of a VPC.
    pub fn has_ports(&self, vpc: &str, host: &str) -> bool {
        let hosts = self.index().hosts_of_vpc.get(vpc);
        hosts.is_some_and(|hosts| hosts.contains(host))
    }

    /// The hosts with ports of a VPC, the ones that ports of it have just left, and its gateways to external networks.
    pub fn hosts_of<'a>(&'a self, vpc: &'a str) -> impl Iterator<Item = &'a str> {
        let left = self.moving().filter(move |port| port.vpc == vpc);
        let left = left.map(|port| port.moved_from.as_str());
        let ports = self.port_hosts_of(vpc).chain(left);
        ports.chain(self.gateways_of(vpc))
    }

    /// The VPCs of [`Self::vpcs_of`], and those that peerings join to them.
    pub fn vpcs_concerning(&self, host: &str) -> BTreeSet<String> {
        let own = self.vpcs_of(host);
        let mut all = own.clone();
        for object in self.state.of_kind(Kind::Peering) {
            if let Object::Peering(peering) = object
                && peering.vpcs().into_iter().any(|vpc| own.contains(vpc))
            {
                all.extend(peering.vpcs().map(str::to_owned));
            }
        }
        all
    }

    /// The elastic IPs that are bound to ports of a VPC.
    pub fn elastic_ips_of(&self, vpc: &str) -> impl Iterator<Item = &ElasticIp> {
        let ids = self.index().elastic_ips_of_vpc.get(vpc);
        ids.into_iter()
            .flatten()
            .filter_map(|id| match self.state.find(Kind::ElasticIp, id) {
                Some(Object::ElasticIp(elastic)) => Some(elastic),
                _ => None,
            })
    }

    /// The security groups and the prefix lists of a tenant.
    pub fn objects_of_tenant(&self, tenant: &str) -> impl Iterator<Item = &Object> {
        let keys = self.index().objects_of_tenant.get(tenant);
        keys.into_iter()
            .flatten()
            .filter_map(|key| self.state.get(key))
    }

    /// The hosts that are gateways to external networks for a VPC: for its NAT gateways, for elastic IPs of ports on hosts without the physical
    /// network, and for prefixes that are routed to it.
    pub fn gateways_of(&self, vpc: &str) -> impl Iterator<Item = &str> {
        let hosts = self.index().gateways_of_vpc.get(vpc);
        hosts.into_iter().flatten().map(String::as_str)
    }

    /// Every object in a VPC, the VPC itself among them, in key order.
    pub fn objects_of(&self, vpc: &str) -> impl Iterator<Item = &Object> {
        let keys = self.index().objects_of_vpc.get(vpc);
        keys.into_iter()
            .flatten()
            .filter_map(|key| self.state.get(key))
    }

    /// Whether nothing that could concern a host with ports in these VPCs has changed since a revision.
    ///
    /// A host gains or loses a VPC only by a change to one of its ports, or to what makes it the VPC's gateway, which is a change in a VPC of the old
    /// or the new set.
    pub fn unchanged_since<'a>(
        &self,
        revision: u64,
        mut vpcs: impl Iterator<Item = &'a String>,
    ) -> bool {
        self.hosts_changed <= revision
            && vpcs.all(|vpc| self.vpc_changed.get(vpc).is_none_or(|at| *at <= revision))
    }

    fn index(&self) -> &Index {
        self.index.get_or_init(|| {
            let mut index = Index::default();
            for object in self.state.iter() {
                if let Some((vpc, network)) = self.state.needs_gateway(object) {
                    index.add_gateways(vpc, network);
                }
                if let Object::ExternalNetwork(network) = object {
                    for routed in &network.routed {
                        index.add_gateways(&routed.vpc, network);
                    }
                }
                if let Object::ElasticIp(elastic) = object
                    && let Some(port) = self.state.port_of(elastic)
                {
                    let ids = index.elastic_ips_of_vpc.entry(port.vpc.clone());
                    ids.or_default().push(elastic.id.clone());
                }
                if let Some(tenant) = object.tenant_wide() {
                    let keys = index.objects_of_tenant.entry(tenant.to_owned());
                    keys.or_default().push(object.key());
                }
                let Some(vpc) = object.vpc() else { continue };
                if let Some(keys) = index.objects_of_vpc.get_mut(vpc) {
                    keys.push(object.key());
                } else {
                    let keys = vec![object.key()];
                    index.objects_of_vpc.insert(vpc.to_owned(), keys);
                }
                let Object::Port(port) = object else { continue };
                if !port.host.is_empty() {
                    let hosts = index.hosts_of_vpc.entry(vpc.to_owned()).or_default();
                    if !hosts.contains(&port.host) {
                        hosts.insert(port.host.clone());
                    }
                }
                for host in [&port.host, &port.moved_from] {
                    if host.is_empty() {
                        continue;
                    }
                    let vpcs = index.vpcs_of_host.entry(host.clone()).or_default();
                    if !vpcs.contains(vpc) {
                        vpcs.insert(vpc.to_owned());
                    }
                }
            }
            index
        })
    }
}

impl Index {
    /// Enters the gateway hosts of an external network as those of a VPC.
    fn add_gateways(&mut self, vpc: &str, network: &ExternalNetwork) {
        let gateways = self.gateways_of_vpc.entry(vpc.to_owned()).or_default();
        for host in &network.gateway_hosts {
            gateways.insert(host.clone());
            let vpcs = self.vpcs_of_host.entry(host.clone()).or_default();
            vpcs.insert(vpc.to_owned());
        }
    }
}

/// The VPCs that use any of these external networks, as often as they do.
fn users<'s>(state: &'s State, networks: &'s BTreeSet<&'s str>) -> impl Iterator<Item = &'s str> {
    let elastic_ips = state.of_kind(Kind::ElasticIp);
    let nat_gateways = state.of_kind(Kind::NatGateway);
    let tables = state.of_kind(Kind::RouteTable);
    let all = elastic_ips.chain(nat_gateways).chain(tables);
    all.filter_map(|object| match object {
        Object::ElasticIp(elastic) if networks.contains(&*elastic.external_network) => {
            Some(&*state.port_of(elastic)?.vpc)
        }
        Object::NatGateway(nat) if networks.contains(&*nat.external_network) => Some(&*nat.vpc),
        Object::RouteTable(table) => {
            let mut named = table.external_networks();
            named
                .any(|network| networks.contains(network))
                .then_some(&*table.vpc)
        }
        _ => None,
    })
}

/// The VPCs of a tenant.
fn vpcs_of<'s>(state: &'s State, tenant: &'s str) -> impl Iterator<Item = &'s str> {
    state
        .of_kind(Kind::Vpc)
        .filter_map(move |object| match object {
            Object::Vpc(vpc) if vpc.tenant == tenant => Some(&*vpc.id),
            _ => None,
        })
}

/// The id of a port that has moved and still is sent on from where it was.
fn moving(object: &Object) -> Option<String> {
    match object {
        Object::Port(port) if !port.moved_from.is_empty() => Some(port.id.clone()),
        _ => None,
    }
}
