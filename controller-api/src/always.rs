//! What hosts that learn a VPC's ports are told of it alike, whatever they ask for: the VPC, with the hosts that carry it, its subnets, and the ports
//! that something names or that may send with addresses of others. Made once for each version of the VPC, as all of [`crate::view`] is.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weft_proto::labels::Labels;
use weft_proto::state::{Change, Entry, Kind, Layer, Object, State};
use weft_proto::v1::{Learning, Port, Vpc};

use crate::members::{self, Known, Members};
use crate::view::HostIds;

/// What such hosts are told of a VPC anyway.
#[derive(Debug)]
pub(crate) struct Always {
    pub(crate) told: Layer,
    named: Arc<Named>,
    /// The members of groups among these ports, of those that were asked for.
    members: Mutex<Known>,
}

/// The ports that route tables and port forwards of a VPC name.
#[derive(Debug, Default, PartialEq)]
struct Named {
    ports: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

impl Named {
    fn of(state: &State, vpc: &str) -> Self {
        let mut named = Self::default();
        for object in state.of_vpc_and_kind(vpc, Kind::RouteTable) {
            let Object::RouteTable(table) = object else {
                continue;
            };
            named.ports.extend(table.ports().map(str::to_owned));
        }
        for object in state.of_vpc_and_kind(vpc, Kind::NatGateway) {
            let Object::NatGateway(nat) = object else {
                continue;
            };
            for forward in &nat.port_forwards {
                named.ports.insert(forward.port.clone());
                named
                    .addresses
                    .extend(forward.private_address.parse::<IpAddr>());
            }
        }
        named.ports.remove("");
        named
    }

    fn has(&self, port: &Port) -> bool {
        let mut addresses = port.addresses.iter();
        let by_address = |text: &String| {
            let address = text.parse::<IpAddr>();
            address.is_ok_and(|address| self.addresses.contains(&address))
        };
        self.ports.contains(&port.id) || !self.addresses.is_empty() && addresses.any(by_address)
    }
}

/// Whether a port is a member of a load balancer: hosts choose alike when they know alike who serves.
fn is_balanced(state: &State, port: &Port) -> bool {
    let addresses = port.addresses.iter().filter_map(|it| it.parse().ok());
    let mut of_addresses =
        addresses.flat_map(|address| state.balancers_of_address(&port.vpc, address).next());
    state.balancers_of_port(&port.id).next().is_some() || of_addresses.next().is_some()
}

/// The ports of a VPC that become members of a load balancer by a change, or are none any more.
fn balanced_otherwise<'s>(
    state: &'s State,
    vpc: &'s str,
    change: &Change<'s>,
) -> BTreeSet<&'s str> {
    let members = |object: Option<&'s Object>| match object {
        Some(Object::LoadBalancer(balancer)) if balancer.vpc == vpc => {
            let members = balancer.members();
            members.map(|it| [&*it.port, &*it.address]).collect()
        }
        _ => BTreeSet::new(),
    };
    let (old, new) = (members(change.old), members(change.new));
    let mut ports = BTreeSet::new();
    for [port, address] in old.symmetric_difference(&new) {
        ports.insert(*port);
        let holder = address.parse::<IpAddr>().ok();
        let holder = holder.and_then(|address| state.port_with_address(vpc, address));
        ports.extend(holder.map(|port| &*port.id));
    }
    ports.remove("");
    ports
}

impl Always {
    /// That of a VPC in a state. `places`: all that others are told of it; `hosts`: those with ports of it.
    pub(crate) fn new(state: &State, vpc: &str, places: &Layer, hosts: &HostIds) -> Self {
        let mut always = Self {
            told: Layer::default(),
            named: Arc::new(Named::of(state, vpc)),
            members: Mutex::default(),
        };
        always.put_vpc(state, vpc, hosts);
        always.put_subnets(places);
        for object in state.of_vpc_and_kind(vpc, Kind::Port) {
            always.settle(state, (vpc, places), object.id());
        }
        always
    }

    /// That after changes that lead from one state to another. `hosts_move`: whether the hosts with ports of the VPC, or its MTU, may be others.
    pub(crate) fn after(
        &self,
        (before, state): (&State, &State),
        changes: &[Change<'_>],
        (vpc, places): (&str, &Layer),
        (hosts, hosts_move): (&HostIds, bool),
    ) -> Self {
        let mut always = Self {
            told: self.told.clone(),
            named: Arc::clone(&self.named),
            members: Mutex::default(),
        };
        let mut members = self.known_members().clone();
        let mut ports: BTreeSet<&str> = BTreeSet::new();
        let (mut names_change, mut vpc_changes, mut subnets_change) =
            (false, hosts_move, hosts_move);
        for object in changes.iter().flat_map(|it| [it.old, it.new]).flatten() {
            match object {
                Object::Port(port) => drop(ports.insert(&port.id)),
                Object::ElasticIp(elastic) => drop(ports.insert(&elastic.port)),
                Object::RouteTable(_) | Object::NatGateway(_) => names_change = true,
                Object::Vpc(changed) => vpc_changes |= changed.id == vpc,
                Object::Subnet(subnet) => {
                    subnets_change = true;
                    if places.get(Kind::Subnet, &subnet.id).is_none() {
                        always.told.remove(Kind::Subnet, &subnet.id);
                    }
                }
                Object::SecurityGroup(group)
                    if state.find(Kind::SecurityGroup, &group.id).is_none() =>
                {
                    members.remove(&group.id);
                }
                _ => {}
            }
        }
        if names_change {
            let named = Named::of(state, vpc);
            if named != *self.named {
                always.named = Arc::new(named);
            }
        }
        let (old, new) = (&*self.named, &*always.named);
        if !Arc::ptr_eq(&self.named, &always.named) {
            ports.extend(old.ports.symmetric_difference(&new.ports).map(|id| &**id));
            let addresses = old.addresses.symmetric_difference(&new.addresses);
            let holders = addresses.filter_map(|it| state.port_with_address(vpc, *it));
            ports.extend(holders.map(|port| &*port.id));
        }
        for change in changes {
            ports.extend(balanced_otherwise(state, vpc, change));
        }
        let ports: Vec<String> = ports.into_iter().map(str::to_owned).collect();
        for id in &ports {
            let was = always.has(id);
            always.settle(state, (vpc, places), id);
            if was || always.has(id) {
                for state in [before, state] {
                    if let Some(Object::Port(port)) = state.find(Kind::Port, id) {
                        members.retain(|group, _| !port.security_groups.contains(group));
                    }
                }
            }
        }
        if vpc_changes {
            always.put_vpc(state, vpc, hosts);
        }
        if subnets_change {
            always.put_subnets(places);
        }
        always.members = members.into();
        always
    }

    /// Whether it has a port.
    pub(crate) fn has(&self, port: &str) -> bool {
        self.told.get(Kind::Port, port).is_some()
    }

    /// The members of a group among these ports. `told`: the id by which hosts know it.
    pub(crate) fn members(&self, state: &State, vpc: &str, (group, told): (&str, &str)) -> Members {
        if let Some(members) = self.known_members().get(group)
            && members.are_of(told)
        {
            return members.clone();
        }
        let ports = self.told.of_kind(Kind::Port).filter_map(|seen| {
            match state.find(Kind::Port, seen.id()) {
                Some(Object::Port(port)) => Some(port),
                _ => None,
            }
        });
        let ports = ports.filter(|port| port.security_groups.iter().any(|it| it == group));
        let addresses = ports.flat_map(|port| members::addresses_of(state, port));
        let members = Members::new(vpc, told, addresses);
        self.known_members()
            .insert(group.to_owned(), members.clone());
        members
    }

    fn put_vpc(&mut self, state: &State, vpc: &str, hosts: &HostIds) {
        let Some(Object::Vpc(object)) = state.find(Kind::Vpc, vpc) else {
            self.told.remove(Kind::Vpc, vpc);
            return;
        };
        let told = Object::Vpc(Vpc {
            learning: Some(Learning {
                hosts: hosts.iter().map(ToString::to_string).collect(),
            }),
            labels: Labels::new(),
            ..object.clone()
        });
        let known = self.told.get(Kind::Vpc, vpc);
        if known.is_none_or(|known| known.object != told) {
            self.told.insert(&Entry::new(told));
        }
    }

    fn put_subnets(&mut self, places: &Layer) {
        let from = places.iter_from(Kind::Subnet, "");
        for entry in from.take_while(|entry| entry.object.kind() == Kind::Subnet) {
            self.put(entry);
        }
    }

    /// Puts in a port, as others are told it, or takes it out.
    fn settle(&mut self, state: &State, (vpc, places): (&str, &Layer), id: &str) {
        let is_told = match state.find(Kind::Port, id) {
            Some(Object::Port(port)) => {
                let is_here = port.vpc == vpc && !port.host.is_empty();
                is_here && self.is_named(state, port)
            }
            _ => false,
        };
        match places.get(Kind::Port, id).filter(|_| is_told) {
            Some(entry) => self.put(entry),
            None => drop(self.told.remove(Kind::Port, id)),
        }
    }

    fn is_named(&self, state: &State, port: &Port) -> bool {
        port.unguarded
            || !port.allowed_pairs.is_empty()
            || self.named.has(port)
            || is_balanced(state, port)
            || state.elastic_ips_of_port(&port.id).next().is_some()
    }

    /// Puts in an entry, unless it is there already.
    fn put(&mut self, entry: &Arc<Entry>) {
        let known = self.told.get(entry.object.kind(), entry.object.id());
        if !known.is_some_and(|known| Arc::ptr_eq(known, entry)) {
            self.told.insert(entry);
        }
    }

    fn known_members(&self) -> MutexGuard<'_, Known> {
        // What is in it is put in whole.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
