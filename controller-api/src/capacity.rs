//! Whether hosts can hold what a change asks of them. Each tells its limits when it attaches (`HostLimits`); what one could not hold is refused at the
//! change, since the host would hold back a whole VPC.
//!
//! Of hosts that have not attached since the controller started nothing is known: what they cannot hold stays behind there.
//!
//! What that takes: [`Counts`] follows each change by itself. Where no host can know too much, whatever is where, they decide alone; else the hosts
//! that a change concerns are looked at, with the version's index.

use std::collections::{BTreeSet, HashMap, HashSet};

use weft_proto::peering::SideState;
use weft_proto::state::{Key, Kind, Object, State};
use weft_proto::v1::{HostLimits, Peering, Violation};

use crate::store::Change;
use crate::version::Version;

/// What hosts can hold, as they told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    hosts: HashMap<String, HostLimits>,
    /// The least of each.
    least: HostLimits,
}

impl Limits {
    pub(crate) fn of(&self, host: &str) -> Option<&HostLimits> {
        self.hosts.get(host)
    }

    pub(crate) fn set(&mut self, host: &str, limits: Option<HostLimits>) {
        match limits {
            Some(limits) => drop(self.hosts.insert(host.to_owned(), limits)),
            None => drop(self.hosts.remove(host)),
        }
        let least = |limit: fn(&HostLimits) -> u32| {
            let told = self.hosts.values().map(limit).filter(|limit| *limit != 0);
            told.min().unwrap_or_default()
        };
        self.least = HostLimits {
            ports: least(|it| it.ports),
            peers: least(|it| it.peers),
            vpcs: least(|it| it.vpcs),
            external_networks: least(|it| it.external_networks),
            nat_gateways: least(|it| it.nat_gateways),
        };
    }
}

/// Counters of the intent that follow its changes.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Counts {
    kinds: HashMap<Kind, usize>,
    ports_of_host: HashMap<String, usize>,
}

impl Counts {
    pub(crate) fn of(state: &State) -> Self {
        let mut counts = Self::default();
        for object in state.iter() {
            counts.shift(None, Some(object));
        }
        counts
    }

    /// Follows a change that leads from one state to another, or back.
    pub(crate) fn follow(&mut self, from: &State, to: &State, change: &Change) {
        let upserts = change.upserts.iter().map(Object::key);
        let keys: BTreeSet<Key> = upserts.chain(change.deletes.iter().cloned()).collect();
        for key in keys {
            self.shift(from.get(&key), to.get(&key));
        }
    }

    fn shift(&mut self, old: Option<&Object>, new: Option<&Object>) {
        if let Some(old) = old {
            less(&mut self.kinds, &old.kind());
            if let Object::Port(port) = old {
                less(&mut self.ports_of_host, &port.host);
            }
        }
        if let Some(new) = new {
            *self.kinds.entry(new.kind()).or_default() += 1;
            if let Object::Port(port) = new {
                *self.ports_of_host.entry(port.host.clone()).or_default() += 1;
            }
        }
    }

    fn count(&self, kind: Kind) -> usize {
        self.kinds.get(&kind).copied().unwrap_or_default()
    }

    fn ports(&self, host: &str) -> usize {
        self.ports_of_host.get(host).copied().unwrap_or_default()
    }
}

fn less<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// Hosts that are named in the refusal of one change.
const NAMED: usize = 10;

/// What of a change may tell hosts of more.
struct Growth<'a> {
    object: &'a Object,
    field: &'static str,
    /// The VPCs that it concerns.
    vpcs: Vec<String>,
}

/// The hosts that cannot hold what a change asks of them, each with the object of the change that asks it. `counts` are those after the change.
pub(crate) fn check(
    before: &Version,
    after: &Version,
    change: &Change,
    (limits, counts): (&Limits, &Counts),
) -> Vec<Violation> {
    if limits.hosts.is_empty() {
        return Vec::new();
    }
    let mut found = too_many_ports(before, after, change, (limits, counts));
    let most = Most::of(counts);
    if most.is_within(&limits.least) {
        return found;
    }
    let grown: Vec<Growth<'_>> = change
        .upserts
        .iter()
        .filter_map(|object| growth(before, after, object))
        .collect();
    let mut hosts: BTreeSet<&str> = BTreeSet::new();
    for vpc in grown.iter().flat_map(|growth| &growth.vpcs) {
        hosts.extend(after.hosts_of(vpc));
        for (other, _) in joined(after, vpc) {
            hosts.extend(after.hosts_of(other));
        }
    }
    for host in hosts {
        let Some(limits) = limits.of(host).filter(|limits| !most.is_within(limits)) else {
            continue;
        };
        if after.host(host).is_none() {
            continue;
        }
        let own = after.vpcs_of(host);
        let is_near = |vpc: &String| {
            own.contains(vpc) || joined(after, vpc).any(|(other, _)| own.contains(other))
        };
        for rule in excesses(before, after, host, limits, &most) {
            let cause = grown.iter().find(|growth| growth.vpcs.iter().any(is_near));
            found.extend(cause.map(|cause| violation(cause.object, cause.field, host, &rule)));
        }
        if found.len() >= NAMED {
            break;
        }
    }
    found
}

fn violation(object: &Object, field: &str, host: &str, rule: &str) -> Violation {
    Violation {
        object: Some(object.key().to_wire()),
        field: field.to_owned(),
        rule: format!("with it, host '{host}' {rule}"),
    }
}

/// Hosts that would have more ports than they hold.
fn too_many_ports(
    before: &Version,
    after: &Version,
    change: &Change,
    (limits, counts): (&Limits, &Counts),
) -> Vec<Violation> {
    let mut come: HashMap<&str, &Object> = HashMap::new();
    for object in &change.upserts {
        let Object::Port(port) = object else { continue };
        let was = before.state.find(Kind::Port, &port.id);
        if !matches!(was, Some(Object::Port(old)) if old.host == port.host) {
            come.insert(&port.host, object);
        }
    }
    let mut found = Vec::new();
    for (host, object) in come {
        let most = limits.of(host).map_or(0, |limits| limits.ports);
        let now = counts.ports(host);
        if !is_over(now, most) || after.host(host).is_none() {
            continue;
        }
        let was = change
            .upserts
            .iter()
            .map(Object::key)
            .chain(change.deletes.iter().cloned());
        let keys: BTreeSet<Key> = was.collect();
        let on_host = |version: &Version| {
            let ports = keys.iter().filter_map(|key| version.state.get(key));
            ports
                .filter(|object| matches!(object, Object::Port(port) if port.host == host))
                .count()
        };
        // One that is over its limit already refuses only what makes that worse.
        if on_host(after) > on_host(before) {
            let rule = format!(
                "would have to hold {now} ports, and holds at most {most} (limits.ports of its weftd.toml)"
            );
            found.push(violation(object, "host", host, &rule));
        }
    }
    found.sort_by(|a, b| a.rule.cmp(&b.rule));
    found.truncate(NAMED);
    found
}

/// The same without a word of hosts and of what others have there.
pub(crate) fn told_to_tenant(
    found: Vec<Violation>,
    is_seen: impl Fn(&Key) -> bool,
) -> Vec<Violation> {
    let mut told: Vec<Violation> = Vec::new();
    for violation in found {
        let object = violation
            .object
            .filter(|object| Key::from_wire(object).is_ok_and(|key| is_seen(&key)));
        let field = object.as_ref().map(|_| violation.field).unwrap_or_default();
        let violation = Violation {
            object,
            field,
            rule: "a host that it needs is full; ask the operator".to_owned(),
        };
        if !told.contains(&violation) {
            told.push(violation);
        }
    }
    told
}

/// What an object of a change may tell hosts more of; none: nothing.
fn growth<'a>(before: &Version, after: &Version, object: &'a Object) -> Option<Growth<'a>> {
    let old = before.state.get(&object.key());
    let (field, vpcs) = match (old, object) {
        (_, Object::Port(new)) if new.host.is_empty() => return None,
        (Some(Object::Port(old)), Object::Port(new))
            if (&old.host, &old.moved_from, &old.vpc, &old.subnet)
                == (&new.host, &new.moved_from, &new.vpc, &new.subnet) =>
        {
            return None;
        }
        // One more where the VPC is anyway tells hosts of nothing else that they have to know.
        (_, Object::Port(new))
            if new.moved_from.is_empty()
                && before.has_ports(&new.vpc, &new.host)
                && !leads_to_hosts(after, &new.subnet) =>
        {
            return None;
        }
        (_, Object::Port(new)) => ("host", vec![new.vpc.clone()]),
        (old, Object::RouteTable(new)) => {
            let known: HashSet<&str> = match old {
                Some(Object::RouteTable(old)) => old.hosts().collect(),
                _ => HashSet::new(),
            };
            if new.hosts().all(|host| known.contains(host)) {
                return None;
            }
            ("routes", vec![new.vpc.clone()])
        }
        (old, Object::Subnet(new)) => {
            let same =
                matches!(old, Some(Object::Subnet(old)) if old.route_table == new.route_table);
            if same || new.route_table.is_empty() {
                return None;
            }
            ("route_table", vec![new.vpc.clone()])
        }
        (_, Object::Peering(new)) => ("", new.vpcs().map(str::to_owned).to_vec()),
        (_, Object::NatGateway(new)) => ("external_network", vec![new.vpc.clone()]),
        (_, Object::ElasticIp(new)) => {
            let vpc = after.state.vpc_of(new)?;
            let field = if new.port.is_empty() {
                "load_balancer"
            } else {
                "port"
            };
            (field, vec![vpc.to_owned()])
        }
        (old, Object::LoadBalancer(new)) => {
            let vpc = old.and_then(Object::vpc);
            let mut bound = after.state.elastic_ips_of_balancer(&new.id);
            if vpc == Some(&*new.vpc) || bound.next().is_none() {
                return None;
            }
            ("vpc", vec![new.vpc.clone()])
        }
        (_, Object::ExternalNetwork(new)) => {
            let hosts = new.gateway_hosts.iter();
            let vpcs: BTreeSet<String> = hosts.flat_map(|host| after.vpcs_of(host)).collect();
            ("gateway_hosts", vpcs.into_iter().collect())
        }
        (Some(Object::Host(old)), Object::Host(new))
            if old.physical_networks != new.physical_networks =>
        {
            let vpcs = after.vpcs_of(&new.id);
            ("physical_networks", vpcs.into_iter().collect())
        }
        _ => return None,
    };
    Some(Growth {
        object,
        field,
        vpcs,
    })
}

/// Whether routes of a subnet lead to hosts.
fn leads_to_hosts(version: &Version, subnet: &str) -> bool {
    let Some(Object::Subnet(subnet)) = version.state.find(Kind::Subnet, subnet) else {
        return false;
    };
    match version.state.find(Kind::RouteTable, &subnet.route_table) {
        Some(Object::RouteTable(table)) => table.hosts().next().is_some(),
        _ => false,
    }
}

/// What a host has to know at most, whatever is where.
struct Most {
    peers: usize,
    vpcs: usize,
    external_networks: usize,
    nat_gateways: usize,
}

impl Most {
    fn of(counts: &Counts) -> Self {
        let count = |kind| counts.count(kind);
        Self {
            peers: count(Kind::Host).saturating_sub(1),
            vpcs: count(Kind::Vpc),
            external_networks: count(Kind::ExternalNetwork),
            nat_gateways: count(Kind::NatGateway),
        }
    }

    fn is_within(&self, limits: &HostLimits) -> bool {
        let pairs = [
            (self.peers, limits.peers),
            (self.vpcs, limits.vpcs),
            (self.external_networks, limits.external_networks),
            (self.nat_gateways, limits.nat_gateways),
        ];
        pairs.iter().all(|(count, most)| !is_over(*count, *most))
    }
}

/// A limit of 0 was not told.
fn is_over(count: usize, most: u32) -> bool {
    most != 0 && count > most as usize
}

/// The limits that a host would exceed, but that of ports.
fn excesses(
    before: &Version,
    after: &Version,
    host: &str,
    limits: &HostLimits,
    most: &Most,
) -> Vec<String> {
    type Count = fn(&Version, &str) -> usize;
    let all: [(Count, u32, usize, &str, &str, &str); 4] = [
        (
            peers,
            limits.peers,
            most.peers,
            "know",
            "other hosts",
            " (limits.peers of its weftd.toml)",
        ),
        (
            vpcs,
            limits.vpcs,
            most.vpcs,
            "hold",
            "VPCs",
            " (limits.vpcs of its weftd.toml)",
        ),
        (
            external_networks,
            limits.external_networks,
            most.external_networks,
            "know",
            "external networks",
            "",
        ),
        (
            nat_gateways,
            limits.nat_gateways,
            most.nat_gateways,
            "know",
            "NAT gateways",
            "",
        ),
    ];
    let mut found = Vec::new();
    for (count, most, possible, verb, things, setting) in all {
        if !is_over(possible, most) {
            continue;
        }
        let now = count(after, host);
        if is_over(now, most) && now > count(before, host) {
            found.push(format!(
                "would have to {verb} {now} {things}, and {verb}s at most {most}{setting}"
            ));
        }
    }
    found
}

/// The VPCs that peerings join to one, and whether hosts of one are told where the other's ports are.
fn joined<'v>(version: &'v Version, vpc: &'v str) -> impl Iterator<Item = (&'v str, bool)> {
    let peering = |object: &'v Object| match object {
        Object::Peering(peering) => Some((peering.other(vpc)?, tells_ports(peering))),
        _ => None,
    };
    version.state.of_kind(Kind::Peering).filter_map(peering)
}

/// As `compile` decides it.
fn tells_ports(peering: &Peering) -> bool {
    let is_known = |state: SideState| state.is_agreed() || state == SideState::Deleted;
    peering.states().into_iter().all(is_known)
}

/// How many other hosts a host has to know.
fn peers(version: &Version, host: &str) -> usize {
    let mut known: HashSet<&str> = HashSet::new();
    let own = version.vpcs_of(host);
    for vpc in &own {
        known.extend(version.port_hosts_of(vpc));
        known.extend(version.gateways_of(vpc));
        known.extend(route_hosts(version, vpc, host));
        for (other, tells) in joined(version, vpc) {
            if tells {
                known.extend(version.port_hosts_of(other));
            }
        }
    }
    let arrived = version.moving().filter(|port| port.host == host);
    known.extend(arrived.map(|port| port.moved_from.as_str()));
    let is_known = |id: &&&str| **id != host && version.state.find(Kind::Host, id).is_some();
    known.iter().filter(is_known).count()
}

/// The hosts to which the routes of a VPC lead that a host is told: those of subnets with ports there, or of all where it is a gateway.
fn route_hosts<'v>(version: &'v Version, vpc: &'v str, host: &str) -> HashSet<&'v str> {
    let tables: HashMap<&str, HashSet<&str>> = version
        .objects_of(vpc)
        .filter_map(|object| match object {
            Object::RouteTable(table) => Some((&*table.id, table.hosts().collect())),
            _ => None,
        })
        .filter(|(_, hosts): &(&str, HashSet<&str>)| !hosts.is_empty())
        .collect();
    if tables.is_empty() {
        return HashSet::new();
    }
    let is_gateway = version.gateways_of(vpc).any(|gateway| gateway == host);
    let local: HashSet<&str> = version
        .objects_of(vpc)
        .filter_map(|object| match object {
            Object::Port(port) if port.host == host => Some(&*port.subnet),
            _ => None,
        })
        .collect();
    let subnets = version.objects_of(vpc).filter_map(|object| match object {
        Object::Subnet(subnet) if is_gateway || local.contains(&*subnet.id) => {
            tables.get(&*subnet.route_table)
        }
        _ => None,
    });
    subnets.flatten().copied().collect()
}

/// How many VPCs a host has to know.
fn vpcs(version: &Version, host: &str) -> usize {
    version.vpcs_concerning(host).len()
}

fn external_networks(version: &Version, host: &str) -> usize {
    let state = crate::compile::compile(version, host);
    state.map_or(0, |state| state.of_kind(Kind::ExternalNetwork).count())
}

fn nat_gateways(version: &Version, host: &str) -> usize {
    let vpcs = version.vpcs_of(host);
    let objects = vpcs.iter().flat_map(|vpc| version.objects_of(vpc));
    objects
        .filter(|object| object.kind() == Kind::NatGateway)
        .count()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::compile::compile;
    use rand::Rng;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    /// Some VPCs with ports anywhere, joined and routed and with ways out at random.
    fn random(random: &mut StdRng) -> Version {
        let (hosts, vpcs) = (random.random_range(2..9), random.random_range(1..5));
        let mut text = String::from("hosts:\n");
        for host in 0..hosts {
            writeln!(
                text,
                "  - {{id: h{host}, vteps: [192.0.2.{}], physical_networks: [p{}]}}",
                host + 1,
                host % 2
            )
            .unwrap();
        }
        let mut lists = [(); 8].map(|()| String::new());
        let [
            in_vpcs,
            subnets,
            tables,
            ports,
            peerings,
            nets,
            elastic,
            nats,
        ] = &mut lists;
        writeln!(nets, "  - {{id: inet, physical_network: p0, prefixes: [203.0.0.0/16], gateways: [203.0.255.1], gateway_hosts: [h0]}}").unwrap();
        for vpc in 0..vpcs {
            writeln!(in_vpcs, "  - {{id: v{vpc}, vni: {}}}", vpc + 1).unwrap();
            for subnet in 0..2 {
                let table = if random.random() {
                    format!(", route_table: t{vpc}")
                } else {
                    String::new()
                };
                writeln!(subnets, "  - {{id: s{vpc}-{subnet}, vpc: v{vpc}, cidrs: [10.{vpc}.{subnet}.0/24]{table}}}").unwrap();
            }
            let target = random.random_range(0..hosts);
            writeln!(
                tables,
                "  - {{id: t{vpc}, vpc: v{vpc}, routes: [{{prefix: 0.0.0.0/0, host: h{target}}}]}}"
            )
            .unwrap();
            for port in 0..random.random_range(0..5) {
                let (subnet, host) = (random.random_range(0..2), random.random_range(0..hosts));
                let from = if random.random_ratio(1, 4) {
                    format!(", moved_from: h{}", (host + 1) % hosts)
                } else {
                    String::new()
                };
                writeln!(ports, "  - {{id: q{vpc}-{port}, vpc: v{vpc}, subnet: s{vpc}-{subnet}, mac: \"02:00:00:00:{vpc:02}:{port:02}\", addresses: [10.{vpc}.{subnet}.{}], host: h{host}{from}}}", port + 10).unwrap();
                if random.random_ratio(1, 4) {
                    writeln!(elastic, "  - {{id: e{vpc}-{port}, external_network: inet, address: 203.0.{vpc}.{}, port: q{vpc}-{port}}}", port + 10).unwrap();
                }
            }
            if random.random_ratio(1, 4) {
                writeln!(nats, "  - {{id: n{vpc}, vpc: v{vpc}, external_network: inet, addresses: [203.0.{vpc}.200]}}").unwrap();
            }
            if vpc > 0 && random.random() {
                let state =
                    ["connecting", "active", "frozen", "deleted"][random.random_range(0..4)];
                writeln!(peerings, "  - {{id: p{vpc}, requester: v{vpc}, accepter: v{}, requester_state: {state}, accepter_state: {state}}}", vpc - 1).unwrap();
            }
        }
        let names = [
            "vpcs",
            "subnets",
            "route_tables",
            "ports",
            "peerings",
            "external_networks",
            "elastic_ips",
            "nat_gateways",
        ];
        for (name, list) in names
            .iter()
            .zip(&lists)
            .filter(|(_, list)| !list.is_empty())
        {
            writeln!(text, "{name}:\n{list}").unwrap();
        }
        let objects =
            serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        Version::loaded(1, State::from_objects(objects).unwrap())
    }

    #[test]
    fn what_is_counted_is_what_a_host_is_told() {
        for seed in 0..600 {
            // It is the same where hosts learn ports: they know the others that carry a VPC, and count their own ports alone.
            let learn_above = [0, 2][seed as usize % 2];
            let version = random(&mut StdRng::seed_from_u64(seed)).learning_above(learn_above);
            for object in version.state.of_kind(Kind::Host) {
                let host = object.id();
                let told = compile(&version, host).unwrap();
                let count = |kind| told.of_kind(kind).count();
                let own =
                    |object: &&Object| matches!(object, Object::Port(port) if port.host == host);
                let counted = (
                    peers(&version, host),
                    vpcs(&version, host),
                    nat_gateways(&version, host),
                    Counts::of(&version.state).ports(host),
                );
                let expected = (
                    count(Kind::Host) - 1,
                    count(Kind::Vpc),
                    count(Kind::NatGateway),
                    told.of_kind(Kind::Port).filter(own).count(),
                );
                assert_eq!(counted, expected, "seed {seed}, host {host}");
            }
        }
    }

    /// Whatever changes, and back again where a change is refused.
    #[test]
    fn counters_follow_every_change_as_if_counted_anew() {
        for seed in 0..200 {
            let (from, to) = (
                random(&mut StdRng::seed_from_u64(seed)),
                random(&mut StdRng::seed_from_u64(seed + 1000)),
            );
            let changes = from.state.changes_to(&to.state);
            let change = Change {
                revision: 2,
                upserts: changes
                    .iter()
                    .filter_map(|change| change.new.cloned())
                    .collect(),
                deletes: changes
                    .iter()
                    .filter(|it| it.new.is_none())
                    .filter_map(|it| Some(it.old?.key()))
                    .collect(),
                ..Change::default()
            };
            let mut counts = Counts::of(&from.state);
            counts.follow(&from.state, &to.state, &change);
            assert_eq!(counts, Counts::of(&to.state));
            counts.follow(&to.state, &from.state, &change);
            assert_eq!(counts, Counts::of(&from.state));
        }
    }
}
