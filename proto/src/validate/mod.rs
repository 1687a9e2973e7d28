//! Validation of a set of objects as a whole: every violation is reported with object, field and rule.
//!
//! The controller checks the intent before it stores it, the daemon checks its node state before it applies it; both refuse a set that
//! breaks any rule. Each file here has the rules of some kinds; this one has the shared indexes and the rules of ids.

mod balancer;
mod dhcp;
mod dhcp_options;
mod dns;
mod external;
mod fabric;
mod health;
mod holder;
mod learning;
pub mod limits;
mod multicast;
mod network;
mod peering;
mod policy;
mod policy_route;
mod port;
mod port_changes;
mod quota;
mod route;
#[cfg(test)]
mod tests;
mod trunk;
mod wire;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

pub(crate) use self::dhcp::is_domain;
use crate::address::parse_prefix;
use crate::labels;
use crate::state::{Change, Kind, Object, State};
use crate::v1;

/// Whose state is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// All that tenants and operators ask for.
    Intent,
    /// The state of one host: only its own ports have devices and policy, and groups contain their members.
    Node {
        /// The host's id.
        host: &'a str,
    },
}

/// Every rule that the state breaks, the first [`limits::VIOLATIONS`] if there are more; empty when it is good.
///
/// Time grows with the number of objects (times its logarithm, for overlaps).
pub fn validate(state: &State, scope: Scope<'_>) -> Vec<v1::Violation> {
    let objects: Vec<&Object> = state.iter().collect();
    let index = Index::new(state, objects);
    let mut report = Report::default();
    for object in &index.objects {
        check(None, object, &index, scope, &mut report);
    }
    check_together(&index, scope, &mut report);
    if scope == Scope::Intent {
        external::check_room(&index, &mut report);
        quota::check_all(state, &mut report);
    }
    report.violations
}

/// Every rule that `next` breaks, as [`validate`] says, when `before` breaks none: only what the changes between them can break is checked.
///
/// Time grows with the changed objects, and where ports are placed and take addresses with the logarithm of all; of what can break rules elsewhere in a VPC, with
/// the objects of that VPC; with all objects when a host, an external network or what tenants share changes, but for what is new.
pub fn validate_next(before: &State, next: &State, scope: Scope<'_>) -> Vec<v1::Violation> {
    let changes = before.changes_to(next).into_iter();
    // Labels break no rule but their own.
    let (labelled, changes): (Vec<_>, Vec<_>) = changes.partition(Change::is_of_labels);
    let mut report = Report::default();
    for object in labelled.iter().filter_map(|change| change.new) {
        check_labels(object, &mut report);
    }
    let found = validate_changes((before, next), &changes, scope);
    report.violations.extend(found);
    report.violations.truncate(limits::VIOLATIONS);
    report.violations
}

/// Every rule that `next` breaks by what changes, if it obeyed all before.
fn validate_changes(
    (before, next): (&State, &State),
    changes: &[Change<'_>],
    scope: Scope<'_>,
) -> Vec<v1::Violation> {
    if port_changes::are_good((before, next), changes, scope) {
        return check_quotas(next, changes, scope);
    }
    let reach = changes.iter().map(Reach::of).max();
    let objects: Vec<&Object> = match reach {
        None => return Vec::new(),
        Some(Reach::All) => return validate(next, scope),
        Some(Reach::Object) => changes.iter().filter_map(|change| change.new).collect(),
        Some(Reach::Vpc) => {
            let ends = || changes.iter().flat_map(|change| [change.old, change.new]);
            let mut vpcs: BTreeSet<&str> = ends().flatten().flat_map(Object::vpcs).collect();
            // An elastic IP is in the VPC of its port or load balancer.
            for object in ends().flatten() {
                if let Object::ElasticIp(elastic) = object {
                    vpcs.extend([before, next].into_iter().flat_map(|it| it.vpc_of(elastic)));
                }
            }
            // A group may be named in the VPCs that peerings join to its own.
            for change in changes {
                if let Some(old @ Object::SecurityGroup(group)) = change.old
                    && change.new.and_then(Object::vpc) != old.vpc()
                {
                    let joined = before.peerings_of(&group.vpc);
                    vpcs.extend(joined.flat_map(v1::Peering::vpcs));
                }
            }
            let elastic_ips = elastic_ips_under_check((before, next), changes, &vpcs);
            let objects = vpcs.iter().flat_map(|vpc| next.of_vpc(vpc));
            let orphans = objects_that_name(next, &vpcs);
            let ports = ends().flatten().filter_map(|object| match object {
                Object::Port(port) => Some(port),
                _ => None,
            });
            let subports = subports(next, ports);
            let new = changes.iter().filter_map(|change| change.new);
            let alone = new.filter(|object| object.vpc().is_none());
            let mut objects: Vec<&Object> = objects
                .chain(elastic_ips)
                .chain(orphans)
                .chain(subports)
                .chain(alone)
                .collect();
            objects.sort_by_key(|object| (object.kind(), object.id()));
            objects.dedup_by_key(|object| (object.kind(), object.id()));
            objects
        }
    };
    let mut report = Report::default();
    let together = reach == Some(Reach::Vpc);
    let index = if together {
        Index {
            changes: Some(changes),
            ..Index::of_part(next, objects)
        }
    } else {
        Index::of_objects(next, objects)
    };
    for object in &index.objects {
        let old = before.find(object.kind(), object.id());
        check(old, object, &index, scope, &mut report);
    }
    if together {
        check_together(&index, scope, &mut report);
        if scope == Scope::Intent {
            external::check_room(&index, &mut report);
        }
    }
    report.violations.extend(check_quotas(next, changes, scope));
    report.violations.truncate(limits::VIOLATIONS);
    report.violations
}

/// The subports of ports, and those of their parents if they are some, which may be in other VPCs.
fn subports<'s>(next: &'s State, ports: impl Iterator<Item = &'s v1::Port>) -> Vec<&'s Object> {
    let parents = ports.flat_map(|port| {
        let parent = port.trunk.as_ref().map(|trunk| trunk.parent.as_str());
        std::iter::once(port.id.as_str()).chain(parent)
    });
    let parents: BTreeSet<&str> = parents.collect();
    let ports = parents
        .into_iter()
        .flat_map(|parent| next.subports_of(parent));
    ports
        .filter_map(|port| next.find(Kind::Port, &port.id))
        .collect()
}

/// The quotas that changes exceed.
fn check_quotas(next: &State, changes: &[Change<'_>], scope: Scope<'_>) -> Vec<v1::Violation> {
    let mut report = Report::default();
    if scope == Scope::Intent {
        quota::check_changed(next, changes, &mut report);
    }
    report.violations
}

/// The objects in no VPC that name one of these which is not there.
fn objects_that_name<'s>(next: &'s State, vpcs: &BTreeSet<&'s str>) -> Vec<&'s Object> {
    let gone: BTreeSet<&str> = vpcs
        .iter()
        .copied()
        .filter(|vpc| next.find(Kind::Vpc, vpc).is_none())
        .collect();
    if gone.is_empty() {
        return Vec::new();
    }
    let named = gone.into_iter().flat_map(|vpc| {
        let peerings = next.peerings_of(vpc);
        let peerings = peerings.filter_map(|it| next.find(Kind::Peering, &it.id));
        peerings.chain(next.networks_that_route_to(vpc))
    });
    named.collect()
}

/// The elastic IPs that a change may break: those that it makes, and those that are bound, or were, to ports of these VPCs.
fn elastic_ips_under_check<'s>(
    (before, next): (&'s State, &'s State),
    changes: &[Change<'s>],
    vpcs: &BTreeSet<&str>,
) -> Vec<&'s Object> {
    let new = changes.iter().filter_map(|change| change.new);
    let new = new.filter(|object| object.kind() == Kind::ElasticIp);
    let mut found: Vec<&Object> = new.collect();
    if next.of_kind(Kind::ElasticIp).next().is_some() {
        for vpc in vpcs {
            for state in [before, next] {
                let ports = state.of_vpc_and_kind(vpc, Kind::Port);
                let bound = ports.flat_map(|port| next.elastic_ips_of_port(port.id()));
                let balancers = state.of_vpc_and_kind(vpc, Kind::LoadBalancer);
                let balanced = balancers.flat_map(|it| next.elastic_ips_of_balancer(it.id()));
                let bound = bound.chain(balanced);
                found.extend(bound.filter_map(|it| next.find(Kind::ElasticIp, &it.id)));
            }
        }
    }
    found
}

/// How far a change can break rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// In the changed object alone.
    Object,
    /// In any object of its VPC.
    Vpc,
    /// Anywhere.
    All,
}

impl Reach {
    fn of(change: &Change<'_>) -> Self {
        // Once a subnet is on a network, nothing else is, whoever's.
        let is_of_all = |object: &Object| match object {
            Object::Host(_) | Object::ExternalNetwork(_) => true,
            Object::Subnet(subnet) => !subnet.external_network.is_empty(),
            _ => false,
        };
        let tenant_wide = [change.old, change.new].map(|it| it.and_then(Object::tenant_wide));
        if change.old.is_some() && tenant_wide[0] != tenant_wide[1] {
            return Self::All;
        }
        match (change.old, change.new) {
            (Some(Object::RouteTable(old)), Some(Object::RouteTable(new)))
                if old.vpc == new.vpc =>
            {
                // Where routes lead decides which hosts carry the VPC, and so what its packets may measure.
                let hosts = |table: &v1::RouteTable| table.hosts().map(str::to_owned).collect();
                let (old, new): (BTreeSet<String>, BTreeSet<String>) = (hosts(old), hosts(new));
                if old == new { Self::Object } else { Self::Vpc }
            }
            (Some(Object::NetworkAcl(_)), Some(Object::NetworkAcl(_)))
            | (Some(Object::PrefixList(_)), Some(Object::PrefixList(_)))
            | (Some(Object::SecurityGroup(_)), Some(Object::SecurityGroup(_)))
            | (Some(Object::GroupMembers(_)), Some(Object::GroupMembers(_)))
                if change.old.and_then(Object::vpc) == change.new.and_then(Object::vpc) =>
            {
                Self::Object
            }
            // Elastic IPs may be bound to one that goes, that has an address less, or whose members come to answer by themselves.
            (Some(Object::LoadBalancer(old)), Some(Object::LoadBalancer(new)))
                if old.vpc == new.vpc
                    && old.addresses == new.addresses
                    && (old.has_dsr() || !new.has_dsr()) =>
            {
                Self::Object
            }
            // Nothing names them yet, or any more.
            (
                None,
                Some(Object::NetworkAcl(_) | Object::PrefixList(_) | Object::SecurityGroup(_)),
            )
            | (None, Some(Object::LoadBalancer(_)))
            | (_, Some(Object::Quota(_)))
            | (Some(Object::Quota(_)), None)
            | (None, Some(Object::GroupMembers(_)))
            | (Some(Object::GroupMembers(_)), None)
            | (None, Some(Object::LearnedAddress(_)))
            | (Some(Object::LearnedAddress(_)), None)
            | (_, Some(Object::MemberHealth(_)))
            | (Some(Object::MemberHealth(_)), None)
            | (_, Some(Object::PortHealth(_)))
            | (Some(Object::PortHealth(_)), None)
            | (_, Some(Object::MulticastListener(_)))
            | (Some(Object::MulticastListener(_)), None)
            | (_, Some(Object::AddressHolder(_)))
            | (Some(Object::AddressHolder(_)), None)
            | (_, Some(Object::DnsZone(_) | Object::PortName(_)))
            | (Some(Object::DnsZone(_) | Object::PortName(_)), None) => Self::Object,
            (None, Some(Object::Host(_))) => Self::Vpc,
            (Some(old), _) if is_of_all(old) => Self::All,
            (_, Some(new)) if is_of_all(new) => Self::All,
            (Some(Object::Vpc(old)), Some(Object::Vpc(new))) if old.tenant != new.tenant => {
                Self::All
            }
            _ => Self::Vpc,
        }
    }
}

/// The rules that an object obeys by itself, and by what it refers to. `old`: what it was when it obeyed them.
fn check(
    old: Option<&Object>,
    object: &Object,
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    let at = At {
        kind: object.kind(),
        id: object.id(),
    };
    check_id(at, scope, report);
    check_labels(object, report);
    match object {
        Object::Host(host) => fabric::check_host(at, host, report),
        Object::Vpc(vpc) => {
            fabric::check_vpc(at, vpc, report);
            if let Some(dns) = &vpc.dns {
                dns::check_vpc(at, dns, report);
            }
            if let Some(learning) = &vpc.learning {
                learning::check_vpc(at, learning, index, scope, report);
            }
        }
        Object::Quota(quota) => quota::check(at, quota, report),
        Object::Peering(peering) => peering::check(at, peering, index, report),
        Object::ExternalNetwork(network) => {
            external::check_network(at, network, index, scope, report);
        }
        Object::ElasticIp(elastic) => external::check_elastic_ip(at, elastic, index, report),
        Object::NatGateway(nat) => external::check_nat_gateway(at, nat, index, report),
        Object::LoadBalancer(it) => balancer::check(at, it, index, scope, report),
        Object::MemberHealth(it) => health::check(at, it, index, scope, report),
        Object::PortHealth(it) => health::check_port_health(at, it, index, scope, report),
        Object::MulticastListener(it) => multicast::check(at, it, index, scope, report),
        Object::AddressHolder(it) => holder::check(at, it, index, scope, report),
        Object::DnsZone(zone) => dns::check_zone(at, zone, index, report),
        Object::PortName(name) => dns::check_name(at, name, index, scope, report),
        Object::Subnet(subnet) => network::check(at, subnet, index, report),
        Object::RouteTable(table) => route::check(at, table, index, report),
        Object::NetworkAcl(acl) => policy::check_acl(at, acl, index, report),
        Object::PrefixList(list) => {
            let known = match old {
                Some(Object::PrefixList(old)) => &old.prefixes[..],
                _ => &[],
            };
            policy::check_prefix_list(at, (list, known), index, scope, report);
        }
        Object::SecurityGroup(group) => {
            let known = match old {
                Some(Object::SecurityGroup(old)) => &old.members[..],
                _ => &[],
            };
            policy::check_group(at, (group, known), index, scope, report);
        }
        Object::GroupMembers(part) => {
            let known = match old {
                Some(Object::GroupMembers(old)) => &old.members[..],
                _ => &[],
            };
            policy::check_part(at, (part, known), index, scope, report);
        }
        Object::LearnedAddress(learned) => learning::check(at, learned, index, scope, report),
        Object::Port(port) => port::check(at, port, index, scope, report),
    }
}

/// How many labels an object has, and what they are made of.
fn check_labels(object: &Object, report: &mut Report) {
    let (at, labels) = (
        At {
            kind: object.kind(),
            id: object.id(),
        },
        object.labels(),
    );
    let most = ("an object has", limits::LABELS, "labels");
    if !report.within(at, "labels", labels.len(), most) {
        return;
    }
    for (key, value) in labels {
        // A wrong key may be of any length.
        let shown: String = key.chars().take(100).collect();
        let rules = [labels::broken_by_key(key), labels::broken_by_value(value)];
        for rule in rules.into_iter().flatten() {
            report.add(at, format!("labels[{shown}]"), rule);
        }
    }
}

/// The rules that objects obey together.
fn check_together(index: &Index<'_>, scope: Scope<'_>, report: &mut Report) {
    external::check_together(index, report);
    wire::check_together(index, report);
    fabric::check_uniqueness(index, report);
    fabric::check_carriers(index, report);
    network::check_overlap(index, report);
    peering::check_together(index, report);
    policy::check_memberships(index, report);
    port::check_uniqueness(index, report);
    port::check_gateways(index, report);
    trunk::check_together(index, scope, report);
}

/// A violation in one line: object, field, rule.
pub fn describe(violation: &v1::Violation) -> String {
    let mut parts = Vec::new();
    if let Some(object) = &violation.object {
        parts.push(format!("{} {}", object.kind, object.id));
    }
    if !violation.field.is_empty() {
        parts.push(violation.field.clone());
    }
    parts.push(violation.rule.clone());
    parts.join(": ")
}

/// The objects under check, and whatever they refer to.
struct Index<'a> {
    state: &'a State,
    /// Those under check, in the state's order, so that of two in conflict always the same one is named.
    objects: Vec<&'a Object>,
    /// Every object by kind and id, when all are under check: quicker than the state's own order.
    by_key: HashMap<(Kind, &'a str), &'a Object>,
    /// Hosts on which a VPC under check has ports, to which its routes point, or which are its gateways to external networks.
    carriers: HashMap<&'a str, BTreeSet<&'a str>>,
    /// What changed, if only what that may break is under check.
    changes: Option<&'a [Change<'a>]>,
    /// Whether there is any load balancer.
    balances: bool,
}

impl<'a> Index<'a> {
    /// For the whole state.
    fn new(state: &'a State, objects: Vec<&'a Object>) -> Self {
        let mut index = Self::of_part(state, objects);
        let key = |object: &&'a Object| ((object.kind(), object.id()), *object);
        index.by_key = index.objects.iter().map(key).collect();
        index
    }

    /// For all objects of some VPCs.
    fn of_part(state: &'a State, objects: Vec<&'a Object>) -> Self {
        let mut index = Self::of_objects(state, objects);
        for object in &index.objects {
            match object {
                Object::RouteTable(o) => {
                    let carriers = index.carriers.entry(&o.vpc).or_default();
                    carriers.extend(o.hosts());
                }
                Object::Port(o) if !o.host.is_empty() => {
                    index.carriers.entry(&o.vpc).or_default().insert(&o.host);
                }
                Object::ElasticIp(_) | Object::NatGateway(_) => {
                    if let Some((vpc, network)) = state.needs_gateway(object) {
                        let carriers = index.carriers.entry(vpc).or_default();
                        carriers.extend(network.gateway_hosts.iter().map(String::as_str));
                    }
                }
                _ => {}
            }
        }
        index
    }

    /// For objects each by itself.
    fn of_objects(state: &'a State, objects: Vec<&'a Object>) -> Self {
        Self {
            state,
            objects,
            by_key: HashMap::new(),
            carriers: HashMap::new(),
            changes: None,
            balances: state.of_kind(Kind::LoadBalancer).next().is_some(),
        }
    }

    fn find(&self, kind: Kind, id: &str) -> Option<&'a Object> {
        if self.by_key.is_empty() {
            self.state.find(kind, id)
        } else {
            self.by_key.get(&(kind, id)).copied()
        }
    }

    fn host(&self, id: &str) -> Option<&'a v1::Host> {
        match self.find(Kind::Host, id)? {
            Object::Host(host) => Some(host),
            _ => None,
        }
    }

    fn subnet(&self, id: &str) -> Option<&'a v1::Subnet> {
        match self.find(Kind::Subnet, id)? {
            Object::Subnet(subnet) => Some(subnet),
            _ => None,
        }
    }

    fn port(&self, id: &str) -> Option<&'a v1::Port> {
        match self.find(Kind::Port, id)? {
            Object::Port(port) => Some(port),
            _ => None,
        }
    }

    fn external_network(&self, id: &str) -> Option<&'a v1::ExternalNetwork> {
        match self.find(Kind::ExternalNetwork, id)? {
            Object::ExternalNetwork(network) => Some(network),
            _ => None,
        }
    }

    /// The subnet that is on an external network, if any is; the first by id.
    fn subnet_on(&self, network: &'a str) -> Option<&'a v1::Subnet> {
        // Subnets come before all else that uses one.
        match self.state.users_of(network).next()? {
            Object::Subnet(subnet) => Some(subnet),
            _ => None,
        }
    }

    /// The tenant of a VPC, empty: the operator. None: there is no such VPC.
    fn tenant_of(&self, vpc: &str) -> Option<&'a str> {
        match self.find(Kind::Vpc, vpc)? {
            Object::Vpc(vpc) => Some(&vpc.tenant),
            _ => None,
        }
    }

    /// The addresses of the ports of a VPC.
    fn addresses_of(&self, vpc: &str) -> HashSet<IpAddr> {
        let ports = self.state.of_vpc(vpc).filter_map(|object| match object {
            Object::Port(port) => Some(port),
            _ => None,
        });
        let addresses = ports.flat_map(|port| &port.addresses);
        addresses.filter_map(|text| text.parse().ok()).collect()
    }

    /// The subnet of a VPC in which an address is.
    fn subnet_with<'s>(&'s self, vpc: &'s str, address: IpAddr) -> Option<&'s v1::Subnet> {
        let mut subnets = self.state.of_vpc(vpc).filter_map(|object| match object {
            Object::Subnet(subnet) => Some(subnet),
            _ => None,
        });
        let has = |subnet: &&v1::Subnet| {
            let mut prefixes = subnet.cidrs.iter();
            prefixes.any(|text| parse_prefix(text).is_ok_and(|it| it.contains(address)))
        };
        subnets.find(has)
    }

    /// The known hosts that carry a VPC.
    fn carriers_of(&self, vpc: &str) -> impl Iterator<Item = &'a v1::Host> {
        self.carriers
            .get(vpc)
            .into_iter()
            .flatten()
            .filter_map(|id| self.host(id))
    }

    /// Refuses what is neither in a VPC that exists nor of a tenant.
    fn require_vpc_or_tenant(
        &self,
        at: At<'_>,
        (vpc, tenant): (&str, &str),
        scope: Scope<'_>,
        report: &mut Report,
    ) {
        match (vpc.is_empty(), tenant.is_empty()) {
            (true, false) if scope == Scope::Intent => {}
            (true, false) => report.add(at, "tenant", "a host is told the VPC instead"),
            (false, false) => report.add(at, "tenant", "exactly one of vpc and tenant is set"),
            (_, true) => self.require_vpc(at, vpc, report),
        }
    }

    /// Refuses a VPC that does not exist.
    fn require_vpc(&self, at: At<'_>, vpc: &str, report: &mut Report) {
        if self.find(Kind::Vpc, vpc).is_none() {
            report.add(at, "vpc", format!("there is no vpc '{vpc}'"));
        }
    }
}

/// The object under check.
#[derive(Clone, Copy)]
struct At<'a> {
    kind: Kind,
    id: &'a str,
}

/// Violations found so far.
#[derive(Default)]
struct Report {
    violations: Vec<v1::Violation>,
}

impl Report {
    fn add(&mut self, at: At<'_>, field: impl Into<String>, rule: impl Into<String>) {
        if self.violations.len() >= limits::VIOLATIONS {
            return;
        }
        self.violations.push(v1::Violation {
            object: Some(v1::ObjectKey {
                kind: at.kind.name().to_owned(),
                id: at.id.to_owned(),
            }),
            field: field.into(),
            rule: rule.into(),
        });
    }

    /// The value, or a violation and nothing.
    fn take<T, E: ToString>(
        &mut self,
        at: At<'_>,
        field: impl Into<String>,
        result: Result<T, E>,
    ) -> Option<T> {
        result
            .map_err(|error| self.add(at, field, error.to_string()))
            .ok()
    }
}

/// Refuses a reference to what does not exist or belongs to another VPC; an empty one passes.
fn check_reference(
    index: &Index<'_>,
    (kind, id): (Kind, &str),
    vpc: &str,
    (at, field): (At<'_>, impl std::fmt::Display),
    report: &mut Report,
) {
    if id.is_empty() {
        return;
    }
    let name = kind.name();
    let found = index.find(kind, id);
    if let Some(tenant) = found.and_then(Object::tenant_wide) {
        if index.tenant_of(vpc) != Some(tenant) {
            let rule = format!("{name} '{id}' belongs to tenant '{tenant}', vpc '{vpc}' does not");
            report.add(at, field.to_string(), rule);
        }
        return;
    }
    match found.and_then(Object::vpc) {
        None => {
            let rule = format!("there is no {name} '{id}'");
            report.add(at, field.to_string(), rule);
        }
        Some(other) if other != vpc => {
            let rule = format!("{name} '{id}' belongs to vpc '{other}', not to '{vpc}'");
            report.add(at, field.to_string(), rule);
        }
        Some(_) => {}
    }
}

fn check_id(at: At<'_>, scope: Scope<'_>, report: &mut Report) {
    let known = |b: u8| b.is_ascii_alphanumeric() || b"._/-".contains(&b);
    // The controller tells a host of a tenant's group or list by its id and that of the VPC.
    let parts = match (scope, at.kind) {
        (Scope::Node { .. }, Kind::SecurityGroup | Kind::PrefixList) => at.id.split_once('@'),
        // Made of what is checked.
        (
            Scope::Node { .. },
            Kind::GroupMembers
            | Kind::LearnedAddress
            | Kind::MemberHealth
            | Kind::MulticastListener
            | Kind::AddressHolder,
        ) => return,
        _ => None,
    };
    if let Some((id, vpc)) = parts {
        check_id(At { id, ..at }, Scope::Intent, report);
        return check_id(At { id: vpc, ..at }, Scope::Intent, report);
    }
    if at.id.is_empty() || at.id.len() > 128 || !at.id.bytes().all(known) {
        report.add(
            at,
            "id",
            "an id is 1 to 128 characters of A-Z a-z 0-9 . _ / -",
        );
    }
}
