//! What hosts that carry a VPC are told of it alike, whatever they are: the VPC, its subnets, where each port lives, its elastic IPs, NAT gateways and
//! load balancers. It is made once for each version of the VPC and shared by all these hosts; what one is told beyond is in [`crate::node`].

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weft_proto::labels::Labels;
use weft_proto::state::{Change, Entry, Kind, Layer, Object, State};
use weft_proto::v1::{NatGateway, Port, PortName, Subnet};
use weft_proto::{dns, mtu};

use crate::always::Always;
use crate::members::{self, Known, Members};

/// Hosts by id.
pub(crate) type HostIds = Arc<BTreeSet<Arc<str>>>;

/// One VPC as hosts see it from afar.
#[derive(Debug)]
pub(crate) struct VpcView {
    pub(crate) id: Arc<str>,
    /// The VPC, its subnets, and its ports that live somewhere.
    pub(crate) places: Layer,
    /// What hosts that learn its ports are told in place of that; none where all are told everything.
    pub(crate) always: Option<Always>,
    /// Its elastic IPs and NAT gateways.
    pub(crate) way_out: Layer,
    /// Its load balancers, and their elastic IPs.
    pub(crate) balancers: Layer,
    /// Where its gateways answer DNS, its zones and the names of its ports that live somewhere.
    pub(crate) names: Layer,
    /// The hosts with ports of it.
    pub(crate) port_hosts: HostIds,
    /// The hosts that are gateways to external networks for it.
    pub(crate) gateways: HostIds,
    /// Hosts to which its routes lead.
    route_hosts: HostIds,
    /// Whether packets between its hosts may go over IPv6.
    pub(crate) has_ipv6: bool,
    /// Security groups as hosts are told, each made when it is first asked for: with or without its rules and its own members.
    groups: Mutex<HashMap<(String, bool, bool), Arc<Entry>>>,
    /// The members of groups in this VPC, of those that were asked for.
    members: Mutex<Known>,
}

impl VpcView {
    /// The view of a VPC in a state, with its gateway hosts, and for hosts that learn its ports if these are learned.
    pub(crate) fn new(
        state: &State,
        id: &Arc<str>,
        (gateways, is_learned): (HostIds, bool),
    ) -> Self {
        let mut view = Self {
            id: Arc::clone(id),
            places: Layer::default(),
            always: None,
            way_out: Layer::default(),
            balancers: Layer::default(),
            names: Layer::default(),
            port_hosts: HostIds::default(),
            gateways,
            route_hosts: HostIds::default(),
            has_ipv6: false,
            groups: Mutex::default(),
            members: Mutex::default(),
        };
        view.find_hosts(state);
        for object in state.of_vpc(id) {
            match object {
                Object::Vpc(_) => view.places.extend(told(state, Kind::Vpc, id)),
                Object::Port(port) => view.put_port(state, port),
                Object::Subnet(subnet) => view.put_subnet(subnet),
                Object::NatGateway(nat) => view.put_nat_gateway(nat),
                Object::LoadBalancer(it) => view.put_balancer(state, &it.id),
                _ => {}
            }
        }
        if has_dns(state, id) {
            view.put_names(state);
        }
        if is_learned {
            let always = Always::new(state, id, &view.places, &view.port_hosts);
            view.always = Some(always);
        }
        view
    }

    /// The view after changes that lead to a state, of which some may be of this VPC.
    pub(crate) fn after(
        &self,
        (before, state): (&State, &State),
        changes: &[Change<'_>],
        (gateways, is_learned): (HostIds, bool),
    ) -> Self {
        let mut view = Self {
            id: Arc::clone(&self.id),
            places: self.places.clone(),
            always: None,
            way_out: self.way_out.clone(),
            balancers: self.balancers.clone(),
            names: self.names.clone(),
            port_hosts: Arc::clone(&self.port_hosts),
            gateways,
            route_hosts: Arc::clone(&self.route_hosts),
            has_ipv6: self.has_ipv6,
            groups: Mutex::default(),
            members: Mutex::default(),
        };
        let mut members = self.known_members().clone();
        let other = members::follow(&mut members, &self.id, (before, state), changes);
        view.members = members.into();
        // Whether a group's rules name one of the VPC or of the tenant depends on which there are.
        let is_small = |change: &Change<'_>| match (change.old, change.new) {
            (Some(Object::SecurityGroup(old)), Some(Object::SecurityGroup(new))) => {
                (&old.vpc, &old.tenant) == (&new.vpc, &new.tenant)
            }
            (old, new) => new.or(old).is_some_and(|it| it.kind() == Kind::Port),
        };
        if changes.iter().all(is_small) {
            let mut groups = self.known_groups().clone();
            groups.retain(|(id, _, has_members), _| !*has_members || !other.contains(&**id));
            for change in changes {
                if let Some(Object::SecurityGroup(group)) = change.new {
                    groups.retain(|(id, ..), _| *id != group.id);
                }
            }
            view.groups = groups.into();
        }
        let names = [before, state].map(|state| has_dns(state, &self.id));
        let is_here = |object: &&Object| object.vpc() == Some(&*self.id);
        let mut hosts_move = view.gateways != self.gateways;
        for change in changes {
            let ends = [change.old, change.new];
            let [old, new] = ends.map(|object| object.filter(is_here));
            for object in [old, new].into_iter().flatten() {
                hosts_move |= match object {
                    Object::RouteTable(_) => true,
                    Object::Port(port) => {
                        let has = |state: &State| state.has_port_on(&self.id, &port.host);
                        has(before) != has(state)
                    }
                    _ => false,
                };
            }
            if let Some(old) = old {
                view.places.remove(old.kind(), old.id());
                view.way_out.remove(old.kind(), old.id());
                view.balancers.remove(old.kind(), old.id());
            }
            if names == [true; 2] {
                view.settle_name(state, (old, new));
            }
            match new {
                Some(Object::Vpc(vpc)) => view.places.extend(told(state, Kind::Vpc, &vpc.id)),
                Some(Object::Port(port)) => view.put_port(state, port),
                Some(Object::Subnet(subnet)) => view.put_subnet(subnet),
                Some(Object::NatGateway(nat)) => view.put_nat_gateway(nat),
                Some(Object::LoadBalancer(it)) => view.put_balancer(state, &it.id),
                _ => {}
            }
            if let Some(Object::Port(port)) = old.filter(|_| new.is_none()) {
                for elastic in before.elastic_ips_of_port(&port.id) {
                    view.way_out.remove(Kind::ElasticIp, &elastic.id);
                }
            }
            if let Some(Object::LoadBalancer(balancer)) = old {
                // One of them may be another's by now.
                for elastic in before.elastic_ips_of_balancer(&balancer.id) {
                    view.settle_elastic_ip(state, &elastic.id);
                }
            }
            for object in ends.into_iter().flatten() {
                let Object::ElasticIp(elastic) = object else {
                    continue;
                };
                view.settle_elastic_ip(state, &elastic.id);
            }
        }
        match names {
            [false, true] => view.put_names(state),
            [true, false] => view.names = Layer::default(),
            _ => {}
        }
        if hosts_move {
            view.find_hosts(state);
            if view.has_ipv6 != self.has_ipv6 {
                for object in state.of_vpc_and_kind(&self.id, Kind::Subnet) {
                    if let Object::Subnet(subnet) = object {
                        view.put_subnet(subnet);
                    }
                }
            }
        }
        let (places, hosts) = (&view.places, &view.port_hosts);
        view.always = is_learned.then(|| match &self.always {
            Some(always) => {
                let hosts = (hosts, hosts_move);
                always.after((before, state), changes, (&self.id, places), hosts)
            }
            None => Always::new(state, &self.id, places, hosts),
        });
        view
    }

    /// Finds the hosts that carry the VPC.
    fn find_hosts(&mut self, state: &State) {
        let update = |known: &mut HostIds, found: BTreeSet<Arc<str>>| {
            if **known != found {
                *known = Arc::new(found);
            }
        };
        let ports = state.hosts_with_ports(&self.id).map(Arc::from).collect();
        update(&mut self.port_hosts, ports);
        let mut routes = BTreeSet::new();
        for object in state.of_vpc_and_kind(&self.id, Kind::RouteTable) {
            if let Object::RouteTable(table) = object {
                routes.extend(table.hosts().map(Arc::from));
            }
        }
        update(&mut self.route_hosts, routes);
        let all = [&self.port_hosts, &self.route_hosts, &self.gateways];
        let mut hosts = all.into_iter().flat_map(|hosts| hosts.iter());
        self.has_ipv6 = hosts.any(|id| state.host(id).is_some_and(mtu::has_ipv6));
    }

    fn put_port(&mut self, state: &State, port: &Port) {
        if port.host.is_empty() {
            for elastic in state.elastic_ips_of_port(&port.id) {
                self.way_out.remove(Kind::ElasticIp, &elastic.id);
            }
            return;
        }
        let seen = Object::Port(seen_from_afar(port));
        // One that is changed in what others do not see stays what it is.
        let known = self.places.get(Kind::Port, &port.id);
        if known.is_none_or(|known| known.object != seen) {
            self.places.insert(&Entry::new(seen));
        }
        for elastic in state.elastic_ips_of_port(&port.id) {
            let entry = told(state, Kind::ElasticIp, &elastic.id);
            self.way_out.extend(entry);
        }
    }

    /// Tells the zones and the names of all ports.
    fn put_names(&mut self, state: &State) {
        let id = Arc::clone(&self.id);
        for kind in [Kind::Port, Kind::DnsZone] {
            for object in state.of_vpc_and_kind(&id, kind) {
                self.settle_name(state, (None, Some(object)));
            }
        }
    }

    /// Tells a zone, or the name of a port, as it is now, where there are names.
    fn settle_name(&mut self, state: &State, (old, new): (Option<&Object>, Option<&Object>)) {
        let seen = match new {
            Some(Object::Port(port)) => name_of(port).map(Object::PortName),
            Some(Object::DnsZone(zone)) => {
                self.names.extend(told(state, Kind::DnsZone, &zone.id));
                return;
            }
            _ => None,
        };
        if let Some(seen) = seen {
            // A port that is changed in something else keeps its name as it is.
            let known = self.names.get(Kind::PortName, seen.id());
            if known.is_none_or(|known| known.object != seen) {
                self.names.insert(&Entry::new(seen));
            }
            return;
        }
        match new.or(old) {
            Some(Object::Port(port)) => drop(self.names.remove(Kind::PortName, &port.id)),
            Some(Object::DnsZone(zone)) => drop(self.names.remove(Kind::DnsZone, &zone.id)),
            _ => {}
        }
    }

    fn put_subnet(&mut self, subnet: &Subnet) {
        let mut seen = self.told_subnet(subnet);
        seen.route_table.clear();
        seen.network_acl.clear();
        seen.dhcp = None;
        self.places.insert(&Entry::new(Object::Subnet(seen)));
    }

    /// A subnet with its MTU. Told rather than derived: a host does not see every host that carries the VPC.
    pub(crate) fn told_subnet(&self, subnet: &Subnet) -> Subnet {
        if !subnet.external_network.is_empty() {
            // Without one of its own it has the network's, which hosts are told.
            return Subnet {
                labels: Labels::new(),
                ..subnet.clone()
            };
        }
        let mtu = match (subnet.mtu, self.has_ipv6) {
            (0, true) => mtu::DEFAULT_MTU_IPV6_UNDERLAY,
            (0, false) => mtu::DEFAULT_MTU,
            (mtu, _) => mtu,
        };
        Subnet {
            mtu,
            labels: Labels::new(),
            ..subnet.clone()
        }
    }

    /// Hosts that send to a NAT gateway need not know who may send back, nor to whom.
    fn put_nat_gateway(&mut self, nat: &NatGateway) {
        self.way_out
            .insert(&Entry::new(Object::NatGateway(NatGateway {
                port_forwards: Vec::new(),
                filtering: String::new(),
                timeouts: None,
                limits: None,
                labels: Labels::new(),
                ..nat.clone()
            })));
    }

    /// Tells of an elastic IP if it is of the VPC in a state, and of none if it is not.
    fn settle_elastic_ip(&mut self, state: &State, id: &str) {
        self.way_out.remove(Kind::ElasticIp, id);
        self.balancers.remove(Kind::ElasticIp, id);
        let Some(Object::ElasticIp(elastic)) = state.find(Kind::ElasticIp, id) else {
            return;
        };
        let entry = told(state, Kind::ElasticIp, id);
        let port = state.port_of(elastic);
        if port.is_some_and(|port| *port.vpc == *self.id && !port.host.is_empty()) {
            self.way_out.extend(entry);
        } else if state
            .balancer_of(elastic)
            .is_some_and(|it| *it.vpc == *self.id)
        {
            self.balancers.extend(entry);
        }
    }

    fn put_balancer(&mut self, state: &State, id: &str) {
        let entry = told(state, Kind::LoadBalancer, id);
        self.balancers.extend(entry);
        for elastic in state.elastic_ips_of_balancer(id) {
            let entry = told(state, Kind::ElasticIp, &elastic.id);
            self.balancers.extend(entry);
        }
    }

    /// The members of a group in this VPC, which are looked for if they were not. `told`: the id by which hosts know it.
    pub(crate) fn members(&self, state: &State, group: &str, told: &str) -> Members {
        if let Some(members) = self.known_members().get(group)
            && members.are_of(told)
        {
            return members.clone();
        }
        let ports = state.ports_in_group(group, &self.id);
        let addresses = ports.flat_map(|port| members::addresses_of(state, port));
        let members = Members::new(&self.id, told, addresses);
        let mut known = self.known_members();
        known.insert(group.to_owned(), members.clone());
        members
    }

    fn known_groups(&self) -> MutexGuard<'_, HashMap<(String, bool, bool), Arc<Entry>>> {
        // Entries are whole after any panic.
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_members(&self) -> MutexGuard<'_, Known> {
        // What is in it is put in whole.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A security group as hosts are told of it, which is made if it was not.
    pub(crate) fn group(
        &self,
        (id, has_rules, has_members): (&str, bool, bool),
        make: impl FnOnce() -> Object,
    ) -> Arc<Entry> {
        let mut groups = self.known_groups();
        let key = (id.to_owned(), has_rules, has_members);
        let entry = groups.entry(key).or_insert_with(|| Entry::new(make()));
        Arc::clone(entry)
    }
}

/// An object of the intent as hosts are told of it.
fn told<'s>(state: &'s State, kind: Kind, id: &str) -> Option<&'s Arc<Entry>> {
    state.entry(kind, id).map(Entry::told)
}

/// Whether the gateways of a VPC answer DNS.
pub(crate) fn has_dns(state: &State, vpc: &str) -> bool {
    matches!(state.find(Kind::Vpc, vpc), Some(Object::Vpc(vpc)) if vpc.dns.is_some())
}

/// What hosts are told of the name of a port that lives somewhere, if it has one.
fn name_of(port: &Port) -> Option<PortName> {
    let name = dns::label_of(port).filter(|_| !port.host.is_empty())?;
    Some(PortName {
        id: port.id.clone(),
        vpc: port.vpc.clone(),
        name,
        addresses: port.addresses.clone(),
    })
}

/// A port as other hosts need it: who it is, where it lives, and for whom else it may send.
fn seen_from_afar(port: &Port) -> Port {
    Port {
        id: port.id.clone(),
        vpc: port.vpc.clone(),
        subnet: port.subnet.clone(),
        mac: port.mac.clone(),
        addresses: port.addresses.clone(),
        allowed_pairs: port.allowed_pairs.clone(),
        unguarded: port.unguarded,
        host: port.host.clone(),
        ..Port::default()
    }
}
