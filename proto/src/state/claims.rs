//! What objects have that others may want too, or by which they are asked for: an index of a [`State`] that follows each change of it.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Entry, Kind, Object, State};
use crate::address::parse_mac;
use crate::persistent::PersistentSet;
use crate::v1::{ElasticIp, LoadBalancer, Peering, Port, PortName};

/// Something that an object has, and where.
#[derive(Debug, Clone)]
struct Claim {
    of: Arc<Entry>,
    what: Claimed,
    /// Which of several.
    at: u32,
}

/// What objects may have. Of a port: a MAC and addresses in its VPC, a part in what the VPC has on its host and on the one that it left, a device on
/// its host, its groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Claimed {
    Mac([u8; 6]),
    Address(IpAddr),
    /// By VPC and host.
    Host,
    /// By VPC and host.
    LeftHost,
    /// By host and VPC, of the host that the port is on and of that which it left.
    HostVpc,
    Device,
    /// By the parent of the subport.
    Subport,
    Group,
    /// Of a VPC.
    Vni(u32),
    VpcOf,
    /// Of a host.
    Vtep(IpAddr),
    /// A group or a list of a tenant.
    WideOf,
    /// An elastic IP of a port.
    BoundTo,
    /// An elastic IP of a load balancer.
    BoundToBalancer,
    /// An address of an external network.
    Outside(IpAddr),
    /// What uses an external network.
    UserOf,
    /// A network with prefixes that are routed to a VPC.
    RoutesTo,
    /// A peering, by each of its VPCs.
    Joins,
    /// A load balancer, by a port that is a member.
    Balances,
    /// A load balancer, by an address that is a member.
    BalancesAddress(IpAddr),
    /// A name of ports, by VPC and name.
    Named,
    /// A name of ports, by an address that it stands for.
    NamesAddress(IpAddr),
}

/// What claims are ordered by: what, where, a name, and the object.
type ClaimKey<'c> = (Claimed, &'c str, &'c str, Kind, &'c str);

impl Claim {
    fn key(&self) -> ClaimKey<'_> {
        key(&self.of.object, self.what, self.at)
    }
}

fn key(object: &Object, what: Claimed, at: u32) -> ClaimKey<'_> {
    let i = at as usize;
    let (place, name) = match (object, what) {
        (Object::Port(o), Claimed::Mac(_) | Claimed::Address(_)) => (&*o.vpc, ""),
        (Object::Port(o), Claimed::Host) => (&*o.vpc, &*o.host),
        (Object::Port(o), Claimed::LeftHost) => (&*o.vpc, &*o.moved_from),
        (Object::Port(o), Claimed::HostVpc) if at == 0 => (&*o.host, &*o.vpc),
        (Object::Port(o), Claimed::HostVpc) => (&*o.moved_from, &*o.vpc),
        (Object::Port(o), Claimed::Device) => {
            (&*o.host, o.device.as_ref().map_or("", |it| &it.name))
        }
        (Object::Port(o), Claimed::Subport) => (o.trunk.as_ref().map_or("", |it| &it.parent), ""),
        (Object::Port(o), Claimed::Group) => {
            let group = o.security_groups.get(i);
            (group.map_or("", String::as_str), &*o.vpc)
        }
        (Object::LoadBalancer(o), Claimed::Address(_) | Claimed::BalancesAddress(_)) => {
            (&*o.vpc, "")
        }
        (Object::LoadBalancer(o), Claimed::Balances) => {
            let member = o.members().nth(i);
            (member.map_or("", |member| &member.port), "")
        }
        (Object::PortName(o), Claimed::Named) => (&*o.vpc, &*o.name),
        (Object::PortName(o), Claimed::NamesAddress(_)) => (&*o.vpc, ""),
        (Object::Vpc(o), Claimed::VpcOf) => (&*o.tenant, ""),
        (object, Claimed::WideOf) => (object.tenant_wide().unwrap_or_default(), ""),
        (Object::ElasticIp(o), Claimed::BoundTo) => (&*o.port, ""),
        (Object::ElasticIp(o), Claimed::BoundToBalancer) => (&*o.load_balancer, ""),
        (Object::Subnet(o), Claimed::UserOf) => (&*o.external_network, ""),
        (Object::ElasticIp(o), Claimed::UserOf) => (&*o.external_network, ""),
        (Object::NatGateway(o), Claimed::UserOf) => (&*o.external_network, ""),
        (Object::RouteTable(o), Claimed::UserOf) => {
            let route = o.targets().nth(i);
            (route.map_or("", |route| &route.external), "")
        }
        (Object::ExternalNetwork(o), Claimed::RoutesTo) => {
            (o.routed.get(i).map_or("", |routed| &routed.vpc), "")
        }
        (Object::Peering(o), Claimed::Joins) => {
            let vpcs = o.vpcs();
            (vpcs.get(i).copied().unwrap_or_default(), "")
        }
        _ => ("", ""),
    };
    (what, place, name, object.kind(), object.id())
}

/// What an object has, each with which of several it is.
fn claims(object: &Object, claim: &mut impl FnMut(Claimed, usize)) {
    match object {
        Object::Port(port) => {
            if let Ok(mac) = parse_mac(&port.mac) {
                claim(Claimed::Mac(mac), 0);
            }
            for text in &port.addresses {
                if let Ok(address) = text.parse() {
                    claim(Claimed::Address(address), 0);
                }
            }
            if !port.host.is_empty() {
                claim(Claimed::Host, 0);
                claim(Claimed::HostVpc, 0);
                if port.device.is_some() {
                    claim(Claimed::Device, 0);
                }
            }
            if !port.moved_from.is_empty() {
                claim(Claimed::LeftHost, 0);
                claim(Claimed::HostVpc, 1);
            }
            if port.trunk.is_some() {
                claim(Claimed::Subport, 0);
            }
            for i in 0..port.security_groups.len() {
                claim(Claimed::Group, i);
            }
        }
        Object::Vpc(vpc) => {
            claim(Claimed::Vni(vpc.vni), 0);
            claim(Claimed::VpcOf, 0);
        }
        Object::Host(host) => {
            for text in &host.vteps {
                if let Ok(address) = text.parse() {
                    claim(Claimed::Vtep(address), 0);
                }
            }
        }
        Object::ElasticIp(elastic) => {
            claim(Claimed::UserOf, 0);
            if !elastic.port.is_empty() {
                claim(Claimed::BoundTo, 0);
            }
            if !elastic.load_balancer.is_empty() {
                claim(Claimed::BoundToBalancer, 0);
            }
        }
        Object::NatGateway(_) => claim(Claimed::UserOf, 0),
        Object::LoadBalancer(balancer) => {
            for address in balancer.addresses.iter().filter_map(|it| it.parse().ok()) {
                claim(Claimed::Address(address), 0);
            }
            for (i, member) in balancer.members().enumerate() {
                if !member.port.is_empty() {
                    claim(Claimed::Balances, i);
                } else if let Ok(address) = member.address.parse() {
                    claim(Claimed::BalancesAddress(address), i);
                }
            }
        }
        Object::PortName(name) => {
            claim(Claimed::Named, 0);
            for address in name.addresses.iter().filter_map(|it| it.parse().ok()) {
                claim(Claimed::NamesAddress(address), 0);
            }
        }
        Object::Subnet(subnet) if !subnet.external_network.is_empty() => claim(Claimed::UserOf, 0),
        Object::RouteTable(table) => {
            for (i, route) in table.targets().enumerate() {
                if !route.external.is_empty() {
                    claim(Claimed::UserOf, i);
                }
            }
        }
        Object::ExternalNetwork(network) => {
            (0..network.routed.len()).for_each(|i| claim(Claimed::RoutesTo, i));
        }
        Object::Peering(_) => (0..2).for_each(|i| claim(Claimed::Joins, i)),
        _ => {}
    }
    if object.tenant_wide().is_some() {
        claim(Claimed::WideOf, 0);
    }
    for (_, address) in object.outside_addresses() {
        claim(Claimed::Outside(address), 0);
    }
}

/// How many there are of something.
#[derive(Debug, Clone)]
struct Count {
    what: Counted,
    of: Arc<str>,
    count: usize,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Counted {
    /// Objects in a VPC; peerings by their requester.
    InVpc(Kind),
    /// Objects of a tenant that are in no VPC.
    OfTenant(Kind),
    /// Ports of a VPC that live somewhere.
    Placed,
    /// Addresses of the ports in a group.
    MembersOf,
    /// Addresses in the parts of a group's members.
    InPartsOf,
}

/// What an object counts as, where, and how often.
fn counted<'o>(object: &'o Object, count: &mut impl FnMut(Counted, &'o str, usize)) {
    let kind = object.kind();
    match object {
        Object::Peering(peering) => count(Counted::InVpc(kind), &peering.requester, 1),
        Object::ElasticIp(elastic) => count(Counted::OfTenant(kind), &elastic.tenant, 1),
        other => match (other.tenant_wide(), other.vpc()) {
            (Some(tenant), _) => count(Counted::OfTenant(kind), tenant, 1),
            (None, Some(vpc)) => count(Counted::InVpc(kind), vpc, 1),
            (None, None) => {}
        },
    }
    match object {
        Object::Port(port) => {
            if !port.host.is_empty() {
                count(Counted::Placed, &port.vpc, 1);
            }
            for group in &port.security_groups {
                count(Counted::MembersOf, group, port.addresses.len());
            }
        }
        Object::GroupMembers(part) => count(Counted::InPartsOf, &part.group, part.members.len()),
        _ => {}
    }
}

/// The index of a state.
#[derive(Debug, Clone, Default)]
pub(super) struct Claims {
    claims: PersistentSet<Claim>,
    counts: PersistentSet<Count>,
}

/// A claim with the first of what it is ordered by, so that few comparisons have to look at the object.
struct Sortable {
    what: Claimed,
    /// The first 16 bytes of the place.
    place: u128,
    claim: Claim,
}

impl Sortable {
    fn of(claim: Claim) -> Self {
        let (what, place, ..) = claim.key();
        let mut first = [0; 16];
        for (to, from) in first.iter_mut().zip(place.bytes()) {
            *to = from;
        }
        Self {
            what,
            place: u128::from_be_bytes(first),
            claim,
        }
    }

    fn order(&self, other: &Self) -> Ordering {
        let first = (self.what, self.place).cmp(&(other.what, other.place));
        first.then_with(|| self.claim.key().cmp(&other.claim.key()))
    }
}

impl Claims {
    /// Those of so many objects. Quicker than to add one by one.
    pub(super) fn of(entries: &[Arc<Entry>]) -> Self {
        let mut all = Vec::with_capacity(entries.len() * 6);
        let mut counts: HashMap<(Counted, &str), usize> = HashMap::new();
        for of in entries {
            claims(&of.object, &mut |what, at| {
                let of = Arc::clone(of);
                let at = at as u32;
                all.push(Sortable::of(Claim { of, what, at }));
            });
        }
        for of in entries {
            counted(&of.object, &mut |what, of, more| {
                *counts.entry((what, of)).or_default() += more;
            });
        }
        let counts = counts.into_iter().filter(|(_, count)| *count != 0);
        let mut counts: Vec<Count> = counts
            .map(|((what, of), count)| Count {
                what,
                of: of.into(),
                count,
            })
            .collect();
        counts.sort_unstable_by(|a, b| (a.what, &a.of).cmp(&(b.what, &b.of)));
        all.sort_unstable_by(Sortable::order);
        all.dedup_by(|a, b| a.order(b).is_eq());
        Self {
            claims: PersistentSet::from_sorted(all.into_iter().map(|it| it.claim).collect()),
            counts: PersistentSet::from_sorted(counts),
        }
    }

    pub(super) fn add(&mut self, of: &Arc<Entry>) {
        claims(&of.object, &mut |what, at| {
            let at = at as u32;
            let key = key(&of.object, what, at);
            let of = Arc::clone(of);
            let claim = Claim { of, what, at };
            self.claims.insert(claim, |claim| claim.key().cmp(&key));
        });
        counted(&of.object, &mut |what, of, more| {
            let count = self.count(what, of) + more;
            self.set_count(what, of, count);
        });
    }

    pub(super) fn remove(&mut self, object: &Object) {
        claims(object, &mut |what, at| {
            let key = key(object, what, at as u32);
            self.claims.remove(|claim| claim.key().cmp(&key));
        });
        counted(object, &mut |what, of, less| {
            let count = self.count(what, of).saturating_sub(less);
            self.set_count(what, of, count);
        });
    }

    fn count(&self, what: Counted, of: &str) -> usize {
        let found = self.counts.get(|it| (it.what, &*it.of).cmp(&(what, of)));
        found.map_or(0, |it| it.count)
    }

    fn set_count(&mut self, what: Counted, of: &str, count: usize) {
        let order = |it: &Count| (it.what, &*it.of).cmp(&(what, of));
        if count == 0 {
            self.counts.remove(order);
        } else {
            let known = self.counts.get(order).map(|it| Arc::clone(&it.of));
            let of = known.unwrap_or_else(|| of.into());
            self.counts.insert(Count { what, of, count }, order);
        }
    }

    /// Every object that has this; of a name, if it has one. In order of kind and id.
    fn having<'a>(
        &'a self,
        what: Claimed,
        place: &'a str,
        name: &'a str,
    ) -> impl Iterator<Item = &'a Object> {
        let same = move |claim: &Claim| {
            let (of, at, named, ..) = claim.key();
            (of, at, named).cmp(&(what, place, name))
        };
        let first = move |claim: &Claim| same(claim).then(Ordering::Greater);
        let from = self.claims.iter_from(first);
        from.take_while(move |claim| same(claim).is_eq())
            .map(|claim| &claim.of.object)
    }

    /// Every object that has such a thing in a place, in order of the things' names.
    fn in_place<'a>(&'a self, what: Claimed, place: &'a str) -> impl Iterator<Item = &'a Object> {
        let same = move |claim: &Claim| {
            let (of, at, ..) = claim.key();
            (of, at).cmp(&(what, place))
        };
        let first = move |claim: &Claim| same(claim).then(Ordering::Greater);
        let from = self.claims.iter_from(first);
        from.take_while(move |claim| same(claim).is_eq())
            .map(|claim| &claim.of.object)
    }

    /// Every object that has such a thing of a name in a place.
    fn in_place_and_name<'a>(
        &'a self,
        what: Claimed,
        place: &'a str,
        name: &'a str,
    ) -> impl Iterator<Item = &'a Object> {
        let same = move |claim: &Claim| {
            let (of, at, named, ..) = claim.key();
            (of, at, named).cmp(&(what, place, name))
        };
        let first = move |claim: &Claim| same(claim).then(Ordering::Greater);
        let from = self.claims.iter_from(first);
        from.take_while(move |claim| same(claim).is_eq())
            .map(|claim| &claim.of.object)
    }

    /// The names of such things in a place, each once, in order.
    fn names<'a>(&'a self, what: Claimed, place: &'a str) -> impl Iterator<Item = &'a str> {
        let after = move |name: Option<&str>| {
            let beyond = move |claim: &Claim| {
                let (of, at, named, ..) = claim.key();
                let order = (of, at).cmp(&(what, place));
                let passed = name.map_or(Ordering::Greater, |name| {
                    named.cmp(name).then(Ordering::Less)
                });
                order.then(passed)
            };
            let (of, at, named, ..) = self.claims.iter_from(beyond).next()?.key();
            ((of, at) == (what, place)).then_some(named)
        };
        std::iter::successors(after(None), move |name| after(Some(name)))
    }
}

#[cfg(test)]
impl State {
    /// Whether the index is the same, in every row.
    pub(crate) fn has_the_index_of(&self, other: &Self) -> bool {
        let counts = |state: &Self| -> Vec<(Counted, Arc<str>, usize)> {
            let counts = state.claims.counts.iter();
            counts
                .map(|it| (it.what, Arc::clone(&it.of), it.count))
                .collect()
        };
        let (a, b) = (&self.claims.claims, &other.claims.claims);
        a.iter().map(Claim::key).eq(b.iter().map(Claim::key))
            && counts(self) == counts(other)
            && self.of_each_vpc().eq(other.of_each_vpc())
    }

    fn of_each_vpc(&self) -> impl Iterator<Item = &Object> {
        self.by_vpc.iter().map(|entry| &entry.object)
    }
}

impl State {
    fn ports_having<'a>(
        &'a self,
        what: Claimed,
        place: &'a str,
        name: &'a str,
    ) -> impl Iterator<Item = &'a Port> {
        ports(self.claims.having(what, place, name))
    }

    /// Whether another port has the MAC or an address of this one in its VPC, or its device; a load balancer has an address of it; or it has one twice.
    pub fn is_shared(&self, port: &Port) -> bool {
        let mut seen = HashSet::new();
        let mut addresses = port
            .addresses
            .iter()
            .filter_map(|text| text.parse::<IpAddr>().ok());
        if addresses.any(|address| !seen.insert(address)) {
            return true;
        }
        let is_others = |what: Claimed, place: &str, name: &str| {
            let mut having = self.ports_having(what, place, name);
            having.any(|it| it.id != port.id)
        };
        let mac = parse_mac(&port.mac).ok();
        mac.is_some_and(|mac| is_others(Claimed::Mac(mac), &port.vpc, ""))
            || seen.into_iter().any(|address| {
                is_others(Claimed::Address(address), &port.vpc, "")
                    || self
                        .balancers_with_address(&port.vpc, address)
                        .next()
                        .is_some()
            })
            || port.device.as_ref().is_some_and(|device| {
                !port.host.is_empty() && is_others(Claimed::Device, &port.host, &device.name)
            })
    }

    /// Whether a host has a port of a VPC.
    pub fn has_port_on(&self, vpc: &str, host: &str) -> bool {
        self.ports_having(Claimed::Host, vpc, host).next().is_some()
    }

    /// The port of a VPC that has an address, the first if there are more.
    pub fn port_with_address<'a>(&'a self, vpc: &'a str, address: IpAddr) -> Option<&'a Port> {
        ports(self.claims.in_place(Claimed::Address(address), vpc)).next()
    }

    /// The port of a VPC that has a MAC, the first if there are more.
    pub fn port_with_mac<'a>(&'a self, vpc: &'a str, mac: [u8; 6]) -> Option<&'a Port> {
        ports(self.claims.in_place(Claimed::Mac(mac), vpc)).next()
    }

    /// How many ports of a VPC live somewhere.
    pub fn placed_ports(&self, vpc: &str) -> usize {
        self.claims.count(Counted::Placed, vpc)
    }

    /// The ports of a VPC on a host, in order of their ids.
    pub fn ports_on<'a>(&'a self, vpc: &'a str, host: &'a str) -> impl Iterator<Item = &'a Port> {
        self.ports_having(Claimed::Host, vpc, host)
    }

    /// The ports of a VPC that were on a host and are sent on from there, in order of their ids.
    pub fn ports_that_left<'a>(
        &'a self,
        vpc: &'a str,
        host: &'a str,
    ) -> impl Iterator<Item = &'a Port> {
        self.ports_having(Claimed::LeftHost, vpc, host)
    }

    /// The hosts that have ports of a VPC.
    pub fn hosts_with_ports<'a>(&'a self, vpc: &'a str) -> impl Iterator<Item = &'a str> {
        self.claims.names(Claimed::Host, vpc)
    }

    /// The hosts that ports of a VPC have left and still are sent on from.
    pub fn hosts_left<'a>(&'a self, vpc: &'a str) -> impl Iterator<Item = &'a str> {
        self.claims.names(Claimed::LeftHost, vpc)
    }

    /// The VPCs of which a host has ports, or has had some that still are sent on from there.
    pub fn vpcs_with_ports_on<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a str> {
        self.claims.names(Claimed::HostVpc, host)
    }

    /// The ports with a device on a host, in order of their devices.
    pub fn ports_with_device<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Port> {
        ports(self.claims.in_place(Claimed::Device, host))
    }

    /// The ports that have a device on a host: more than one is against the rules.
    pub fn ports_with_name<'a>(
        &'a self,
        host: &'a str,
        device: &'a str,
    ) -> impl Iterator<Item = &'a Port> {
        self.ports_having(Claimed::Device, host, device)
    }

    /// The subports of a port, in order of their ids.
    pub fn subports_of<'a>(&'a self, parent: &'a str) -> impl Iterator<Item = &'a Port> {
        ports(self.claims.in_place(Claimed::Subport, parent))
    }

    /// The ports in a security group that are in a VPC, in order of their ids.
    pub fn ports_in_group<'a>(
        &'a self,
        group: &'a str,
        vpc: &'a str,
    ) -> impl Iterator<Item = &'a Port> {
        self.ports_having(Claimed::Group, group, vpc)
    }

    /// How many addresses the ports in a security group have.
    pub fn members_of(&self, group: &str) -> usize {
        self.claims.count(Counted::MembersOf, group)
    }

    /// How many addresses a host is told of a security group in parts.
    pub fn members_in_parts(&self, group: &str) -> usize {
        self.claims.count(Counted::InPartsOf, group)
    }

    /// The VPCs that have a VNI: more than one is against the rules.
    pub fn vpcs_with_vni(&self, vni: u32) -> impl Iterator<Item = &Object> {
        self.claims.in_place(Claimed::Vni(vni), "")
    }

    /// The hosts that have a tunnel address: more than one is against the rules.
    pub fn hosts_with_vtep(&self, address: IpAddr) -> impl Iterator<Item = &Object> {
        self.claims.in_place(Claimed::Vtep(address), "")
    }

    /// The VPCs of a tenant.
    pub fn vpcs_of_tenant<'a>(&'a self, tenant: &'a str) -> impl Iterator<Item = &'a str> {
        let vpcs = self.claims.in_place(Claimed::VpcOf, tenant);
        vpcs.map(Object::id)
    }

    /// The security groups and the prefix lists of a tenant that are in no VPC.
    pub fn wide_objects_of<'a>(&'a self, tenant: &'a str) -> impl Iterator<Item = &'a Object> {
        self.claims.in_place(Claimed::WideOf, tenant)
    }

    /// The elastic IPs that are bound to a port.
    pub fn elastic_ips_of_port<'a>(&'a self, port: &'a str) -> impl Iterator<Item = &'a ElasticIp> {
        let objects = self.claims.in_place(Claimed::BoundTo, port);
        objects.filter_map(|object| match object {
            Object::ElasticIp(elastic) => Some(elastic),
            _ => None,
        })
    }

    /// The elastic IPs that are bound to a load balancer.
    pub fn elastic_ips_of_balancer<'a>(
        &'a self,
        balancer: &'a str,
    ) -> impl Iterator<Item = &'a ElasticIp> {
        let objects = self.claims.in_place(Claimed::BoundToBalancer, balancer);
        objects.filter_map(|object| match object {
            Object::ElasticIp(elastic) => Some(elastic),
            _ => None,
        })
    }

    /// The load balancers of a VPC that have an address: more than one is against the rules.
    pub fn balancers_with_address<'a>(
        &'a self,
        vpc: &'a str,
        address: IpAddr,
    ) -> impl Iterator<Item = &'a LoadBalancer> {
        balancers(self.claims.in_place(Claimed::Address(address), vpc))
    }

    /// The load balancers with a member that names a port, each once.
    pub fn balancers_of_port<'a>(
        &'a self,
        port: &'a str,
    ) -> impl Iterator<Item = &'a LoadBalancer> {
        balancers(self.claims.in_place(Claimed::Balances, port))
    }

    /// The load balancers of a VPC with a member that is an address, each once.
    pub fn balancers_of_address<'a>(
        &'a self,
        vpc: &'a str,
        address: IpAddr,
    ) -> impl Iterator<Item = &'a LoadBalancer> {
        balancers(self.claims.in_place(Claimed::BalancesAddress(address), vpc))
    }

    /// The ports of a VPC that have a name, which is in lower case.
    pub fn ports_named<'a>(
        &'a self,
        vpc: &'a str,
        name: &'a str,
    ) -> impl Iterator<Item = &'a PortName> {
        port_names(self.claims.in_place_and_name(Claimed::Named, vpc, name))
    }

    /// The names that an address of a VPC has.
    pub fn names_of_address<'a>(
        &'a self,
        vpc: &'a str,
        address: IpAddr,
    ) -> impl Iterator<Item = &'a PortName> {
        port_names(self.claims.in_place(Claimed::NamesAddress(address), vpc))
    }

    /// What holds an address of an external network: more than one object is against the rules.
    pub fn holders_of(&self, address: IpAddr) -> impl Iterator<Item = &Object> {
        self.claims.in_place(Claimed::Outside(address), "")
    }

    /// The elastic IPs, NAT gateways and route tables that use an external network, one that does so more than once as often.
    pub fn users_of<'a>(&'a self, network: &'a str) -> impl Iterator<Item = &'a Object> {
        self.claims.in_place(Claimed::UserOf, network)
    }

    /// The external networks with prefixes that are routed to a VPC.
    pub fn networks_that_route_to<'a>(&'a self, vpc: &'a str) -> impl Iterator<Item = &'a Object> {
        self.claims.in_place(Claimed::RoutesTo, vpc)
    }

    /// The peerings of a VPC.
    pub fn peerings_of<'a>(&'a self, vpc: &'a str) -> impl Iterator<Item = &'a Peering> {
        let objects = self.claims.in_place(Claimed::Joins, vpc);
        objects.filter_map(move |object| match object {
            Object::Peering(peering) if peering.other(vpc).is_some() => Some(peering),
            _ => None,
        })
    }

    /// How many objects of a kind count as a tenant's: those in its VPCs, its elastic IPs, its groups and lists, and the peerings that its VPCs request.
    pub fn count_of_tenant(&self, tenant: &str, kind: Kind) -> usize {
        let vpcs = self.vpcs_of_tenant(tenant);
        let in_vpcs = vpcs.map(|vpc| self.claims.count(Counted::InVpc(kind), vpc));
        in_vpcs.sum::<usize>() + self.claims.count(Counted::OfTenant(kind), tenant)
    }
}

fn balancers<'a>(
    objects: impl Iterator<Item = &'a Object>,
) -> impl Iterator<Item = &'a LoadBalancer> {
    objects.filter_map(|object| match object {
        Object::LoadBalancer(balancer) => Some(balancer),
        _ => None,
    })
}

fn port_names<'a>(objects: impl Iterator<Item = &'a Object>) -> impl Iterator<Item = &'a PortName> {
    objects.filter_map(|object| match object {
        Object::PortName(name) => Some(name),
        _ => None,
    })
}

fn ports<'a>(objects: impl Iterator<Item = &'a Object>) -> impl Iterator<Item = &'a Port> {
    objects.filter_map(|object| match object {
        Object::Port(port) => Some(port),
        _ => None,
    })
}
