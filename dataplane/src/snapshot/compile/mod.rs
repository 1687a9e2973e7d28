//! From a node state to a snapshot. Whole or not at all: every violation is collected, and none leaves a trace.
//!
//! Runs in the agent. The compiler keeps what it compiled last. When nothing has changed since but ports, routes, rules and members of groups, only these are
//! compiled again (`incremental`), and the new snapshot shares the rest with the one before; when nothing has but the underlay, only the tunnels are. Else everything
//! is; but VPCs that have not changed keep their epochs (`epochs`).
//!
//! What `weft_proto::validate` has checked is not checked again here, but nothing here relies on it for memory or panic safety: what does not
//! resolve becomes a violation.

mod balancers;
mod dhcp_options;
mod epochs;
mod external;
mod guests;
mod holders;
mod hosts;
mod incremental;
mod learned;
mod limits;
mod peerings;
mod policy;
mod port_changes;
mod ports;
mod routes;
#[cfg(test)]
mod tests;
mod translations;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use weft_proto::state::{Key, Kind, Object, State};
use weft_proto::v1;

use self::epochs::Changed;
use self::policy::GroupClassifiers;
use super::index_allocator::IndexAllocator;
use super::{
    Allowed, Balancers, CowMap, ElasticIp, Endpoint, Learned, Limits, Map, Outside, Peer, Port,
    PublicBalancers, Snapshot, StaticTranslation, Subnet, Vpc,
};
use crate::numbers::Vni;
use crate::packet::Mac;
use crate::policy::{Acl, AddressSet};
use crate::session::mappings::POOLS;
use crate::session::member_counts::MemberCounts;

/// The numbers that stay from one snapshot to the next.
#[derive(Debug, Clone)]
struct Indices {
    /// Ports of this host.
    ports: IndexAllocator,
    /// Remote hosts.
    peers: IndexAllocator,
    /// VPCs.
    vpcs: IndexAllocator,
    /// External networks.
    networks: IndexAllocator,
    /// NAT gateways.
    nat_gateways: IndexAllocator,
    /// Addresses of NAT gateways that this host holds.
    pools: IndexAllocator,
}

/// The most external networks that a host knows.
pub const NETWORKS: u32 = 1024;
/// The most NAT gateways that a host knows.
pub const NAT_GATEWAYS: u32 = 65_535;

impl Indices {
    fn new(ports: u16, peers: u16, vpcs: u32) -> Self {
        Self {
            ports: IndexAllocator::new(ports.into()),
            peers: IndexAllocator::new(peers.into()),
            vpcs: IndexAllocator::new(vpcs),
            networks: IndexAllocator::new(NETWORKS),
            nat_gateways: IndexAllocator::new(NAT_GATEWAYS),
            pools: IndexAllocator::new(POOLS.into()),
        }
    }

    /// How often a number was given out that something else had before, which sessions of any VPC may still name.
    fn reused(&self) -> u64 {
        self.peers.reused() + self.networks.reused() + self.nat_gateways.reused()
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
    /// Whether this host answers guests at the metadata addresses.
    pub metadata: bool,
    /// Addresses that stand for others.
    pub translations: &'a [StaticTranslation],
    /// The interfaces of this host on physical networks.
    pub externals: &'a [ExternalLink],
    /// Hosts that do not answer probes (`pipeline::probes`): none of them is a gateway now.
    pub silent: &'a BTreeSet<String>,
}

/// An interface on a physical network, on which external networks are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalLink {
    /// The name of the physical network.
    pub physical_network: String,
    /// The index of the uplink that drives the interface.
    pub uplink: u16,
    /// MAC of the interface.
    pub mac: Mac,
    /// Bytes of IP packet that it carries.
    pub mtu: u16,
    /// Whether the interface is an uplink that tunnels come by, too.
    pub has_tunnels: bool,
}

/// Compiles the states of one host, one after the other.
#[derive(Debug, Clone)]
pub struct Compiler {
    indices: Indices,
    /// Of the sessions of load balancers' members.
    member_counts: Arc<MemberCounts>,
    done: Option<Arc<Done>>,
}

/// What was compiled last, and from what.
#[derive(Debug, Clone)]
struct Done {
    host: String,
    underlay: Underlay,
    state: State,
    places: Places,
    translations: Vec<StaticTranslation>,
    externals: Vec<ExternalLink>,
    silent: BTreeSet<String>,
    uncounted: balancers::Uncounted,
    snapshot: Snapshot,
}

/// Places of objects in the snapshot, by id.
#[derive(Debug, Clone, Default)]
struct Places {
    vpcs: Map<String, usize>,
    subnets: Map<String, usize>,
    acls: Map<String, usize>,
    /// VPC, and place among its sets. Peered VPCs have the set too.
    groups: Map<String, Vec<(usize, usize)>>,
    prefix_lists: Map<String, Vec<(usize, usize)>>,
    /// VPC, and place among its peerings.
    peerings: Map<String, Vec<(usize, usize)>>,
    peers: Map<String, u16>,
    networks: Map<String, u16>,
    nat_gateways: Map<String, u16>,
    endpoints: Map<String, Endpoint>,
    /// The subnets that a route table is for.
    users: Map<String, Vec<usize>>,
    classifiers: Map<String, GroupClassifiers>,
    /// The ports of this host in a group.
    members: Map<String, Vec<u16>>,
    /// How many ports of a subnet are behind a peer.
    ports_behind: Map<(usize, u16), u32>,
    /// Ports that routes and port forwards name, that elastic IPs wait for, and that have an elastic IP's address themselves: the others of an elastic IP
    /// are known by their address.
    named_ports: HashSet<String>,
}

impl Done {
    /// Whether it was compiled for the same host as what comes.
    fn is_for(&self, context: &Context<'_>) -> bool {
        self.host == context.host && self.snapshot.metadata == context.metadata
    }
}

impl Compiler {
    /// Caps: ports of this host, remote hosts, VPCs.
    pub fn new(ports: u16, peers: u16, vpcs: u32) -> Self {
        Self {
            indices: Indices::new(ports, peers, vpcs),
            member_counts: Arc::new(MemberCounts::new(0)),
            done: None,
        }
    }

    /// For workers that have a session table with these counters
    /// ([`SessionTable::member_counts`](crate::session::SessionTable::member_counts)): listeners can choose by least connections, which they do not without.
    #[must_use]
    pub fn counting(self, member_counts: &Arc<MemberCounts>) -> Self {
        Self {
            member_counts: Arc::clone(member_counts),
            ..self
        }
    }

    /// Whether a listener that found no room to count its members' sessions would find it now, if the same were compiled again.
    pub fn may_count_more(&self) -> bool {
        self.member_counts.begin();
        let uncounted = self.done.iter().map(|done| &done.uncounted);
        let mut with_room = uncounted.flat_map(|it| it.with_room(&self.member_counts));
        with_room.next().is_some()
    }

    /// Compiles a state.
    ///
    /// # Errors
    /// Every rule that the state breaks; the compiler is then as it was.
    ///
    /// ```
    /// use weft_dataplane::snapshot::compile::{Compiler, Context, Underlay};
    /// use weft_proto::{state::State, v1::Objects};
    ///
    /// let text = r#"
    /// hosts: [{id: h1, vteps: [192.0.2.1]}]
    /// vpcs: [{id: blue, vni: 100}]
    /// subnets: [{id: blue-a, vpc: blue, cidrs: [10.0.1.0/24]}]
    /// ports:
    ///   - {id: a, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11],
    ///      host: h1, device: {kind: netdev, name: veth-a}}
    /// "#;
    /// let mut objects: Objects = serde_yaml_ng::from_str(text)?;
    /// let (underlay, silent) = (Underlay::default(), std::collections::BTreeSet::new());
    /// let context = |generation| Context { host: "h1", generation, revision: 1, underlay: &underlay, metadata: false, translations: &[], externals: &[], silent: &silent };
    ///
    /// let mut compiler = Compiler::new(16, 16, 16);
    /// let state = State::from_objects(objects.clone())?;
    /// let first = compiler.compile(&state, &context(1)).map_err(|broken| format!("{broken:?}"))?;
    /// assert_eq!(first.port(0).map(|port| port.id.as_str()), Some("a"));
    ///
    /// // All or nothing: a state that breaks a rule changes nothing, and the rule is named.
    /// objects.ports[0].subnet = "green-a".into();
    /// let broken = compiler.compile(&State::from_objects(objects)?, &context(2)).unwrap_err();
    /// assert_eq!(broken[0].field, "subnet");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn compile(
        &mut self,
        state: &State,
        context: &Context<'_>,
    ) -> Result<Snapshot, Vec<v1::Violation>> {
        self.member_counts.begin();
        let besides = (state, &self.member_counts);
        let done = self.done.as_mut();
        let mut done = done.filter(|done| done.is_for(context));
        if let Some(done) = &mut done
            && done.translations == context.translations
            && done.externals == context.externals
            && done.silent == *context.silent
            && let Some(snapshot) =
                incremental::compile(done, &mut self.indices.ports, besides, context)
        {
            return snapshot;
        }
        let numbers = self.indices.clone();
        let mut draft = Draft::new(context, numbers, Arc::clone(&self.member_counts));
        if let Some(done) = &self.done {
            draft.limits_before = Arc::clone(&done.snapshot.limits);
            draft.outside_before = Arc::clone(&done.snapshot.outside);
            let balancing = done.snapshot.vpcs.iter();
            let balancing = balancing.filter(|vpc| !vpc.balancers.is_empty());
            let balancing = balancing.map(|vpc| (vpc.id.clone(), Arc::clone(&vpc.balancers)));
            draft.balancers_before = balancing.collect();
        }
        draft.fill(&Objects::new(state));
        if !draft.report.violations.is_empty() {
            return Err(draft.report.violations);
        }
        let before = self.done.as_ref();
        let before = before.map(|done| Arc::clone(&done.snapshot.outside));
        external::date(
            &before.unwrap_or_default(),
            &mut draft.outside,
            context.generation,
        );
        let is_renumbered = draft.numbers.reused() != self.indices.reused();
        if let Some(done) = self.done.as_ref().filter(|done| done.is_for(context))
            && !is_renumbered
        {
            draft.keep_epochs(done, &Changed::between(&done.state, state));
        }
        self.indices = std::mem::replace(&mut draft.numbers, Indices::new(0, 0, 0));
        let uncounted = std::mem::take(&mut draft.uncounted);
        let (places, snapshot) = draft.finish();
        self.done = Some(Arc::new(Done {
            host: context.host.to_owned(),
            underlay: context.underlay.clone(),
            state: state.clone(),
            places,
            translations: context.translations.to_vec(),
            externals: context.externals.to_vec(),
            silent: context.silent.clone(),
            uncounted,
            snapshot: snapshot.clone(),
        }));
        Ok(snapshot)
    }
}

/// Violations found so far.
#[derive(Debug, Default)]
struct Report {
    violations: Vec<v1::Violation>,
}

impl Report {
    fn add(&mut self, kind: Kind, id: &str, field: impl Into<String>, rule: impl Into<String>) {
        let key = Key {
            kind,
            id: id.to_owned(),
        };
        self.violations.push(v1::Violation {
            object: Some(key.to_wire()),
            field: field.into(),
            rule: rule.into(),
        });
    }
}

/// The objects of a state by kind, each kind in order of its ids.
#[derive(Default)]
struct Objects<'s> {
    hosts: Vec<&'s v1::Host>,
    vpcs: Vec<&'s v1::Vpc>,
    peerings: Vec<&'s v1::Peering>,
    subnets: Vec<&'s v1::Subnet>,
    route_tables: Vec<&'s v1::RouteTable>,
    network_acls: Vec<&'s v1::NetworkAcl>,
    prefix_lists: Vec<&'s v1::PrefixList>,
    security_groups: Vec<&'s v1::SecurityGroup>,
    /// Parts of the members of groups, by the group.
    group_members: Map<&'s str, Vec<&'s v1::GroupMembers>>,
    learned: Vec<&'s v1::LearnedAddress>,
    holders: Vec<&'s v1::AddressHolder>,
    ports: Vec<&'s v1::Port>,
    external_networks: Vec<&'s v1::ExternalNetwork>,
    elastic_ips: Vec<&'s v1::ElasticIp>,
    nat_gateways: Vec<&'s v1::NatGateway>,
    load_balancers: Vec<&'s v1::LoadBalancer>,
    /// Ports whose appliances do not live, and their VPCs.
    down_ports: HashMap<&'s str, &'s str>,
    /// Of members that do not serve, by the load balancer.
    member_health: Map<&'s str, Vec<&'s v1::MemberHealth>>,
}

impl<'s> Objects<'s> {
    fn new(state: &'s State) -> Self {
        let mut objects = Self::default();
        for object in state.iter() {
            match object {
                Object::Host(o) => objects.hosts.push(o),
                Object::Vpc(o) => objects.vpcs.push(o),
                Object::Peering(o) => objects.peerings.push(o),
                // The controller's alone, and what the table of multicast listeners is made of.
                Object::Quota(_) | Object::MulticastListener(_) => {}
                // For what answers DNS, which reads the state.
                Object::DnsZone(_) | Object::PortName(_) => {}
                Object::Subnet(o) => objects.subnets.push(o),
                Object::RouteTable(o) => objects.route_tables.push(o),
                Object::NetworkAcl(o) => objects.network_acls.push(o),
                Object::PrefixList(o) => objects.prefix_lists.push(o),
                Object::SecurityGroup(o) => objects.security_groups.push(o),
                Object::LearnedAddress(o) => objects.learned.push(o),
                Object::AddressHolder(o) => objects.holders.push(o),
                Object::GroupMembers(o) => {
                    objects.group_members.entry(&o.group).or_default().push(o);
                }
                Object::Port(o) => objects.ports.push(o),
                Object::ExternalNetwork(o) => objects.external_networks.push(o),
                Object::ElasticIp(o) => objects.elastic_ips.push(o),
                Object::NatGateway(o) => objects.nat_gateways.push(o),
                Object::LoadBalancer(o) => objects.load_balancers.push(o),
                Object::PortHealth(o) if o.up => {}
                Object::PortHealth(o) => drop(objects.down_ports.insert(&o.id, &o.vpc)),
                Object::MemberHealth(o) => {
                    let known = objects.member_health.entry(&o.load_balancer);
                    known.or_default().push(o);
                }
            }
        }
        objects
    }
}

/// A VPC that is being filled.
#[derive(Debug, Default)]
struct VpcDraft {
    vpc: Vpc,
    by_address: Map<u128, Endpoint>,
    by_mac: Map<Mac, Endpoint>,
    gateways: Map<u128, usize>,
    moves: Map<Mac, u16>,
    /// By peer.
    allowed: Vec<(u16, Allowed)>,
    sets: Vec<AddressSet>,
    elastic_ips: CowMap<u128, ElasticIp>,
    balancers: Balancers,
    public: PublicBalancers,
}

/// A snapshot that is being filled.
struct Draft<'a> {
    context: &'a Context<'a>,
    numbers: Indices,
    report: Report,
    places: Places,
    vteps: Vec<u128>,
    vpcs: Vec<VpcDraft>,
    vpc_by_vni: Map<Vni, usize>,
    subnets: Vec<Subnet>,
    ports: Vec<Option<Port>>,
    limits: Vec<Limits>,
    /// Of the snapshot before: limits that stay go on where they were.
    limits_before: Arc<[Limits]>,
    /// Of the snapshot before: what goes on from there.
    outside_before: Arc<Outside>,
    /// Of the snapshot before, by the id of the VPC: tables that stay need not be made again.
    balancers_before: Map<String, Arc<Balancers>>,
    /// Of the sessions of load balancers' members.
    member_counts: Arc<MemberCounts>,
    /// Load balancers without room for them.
    uncounted: balancers::Uncounted,
    peers: Vec<Option<Peer>>,
    peer_by_vtep: Map<u128, u16>,
    acls: Vec<Acl>,
    outside: Outside,
}

impl<'a> Draft<'a> {
    fn new(context: &'a Context<'a>, numbers: Indices, member_counts: Arc<MemberCounts>) -> Self {
        Self {
            context,
            numbers,
            report: Report::default(),
            places: Places::default(),
            vteps: Vec::new(),
            vpcs: Vec::new(),
            vpc_by_vni: Map::default(),
            subnets: Vec::new(),
            ports: Vec::new(),
            limits: Vec::new(),
            limits_before: Arc::default(),
            outside_before: Arc::default(),
            balancers_before: Map::default(),
            member_counts,
            uncounted: balancers::Uncounted::default(),
            peers: Vec::new(),
            peer_by_vtep: Map::default(),
            acls: Vec::new(),
            outside: Outside::default(),
        }
    }

    fn fill(&mut self, objects: &Objects<'_>) {
        self.retain(objects);
        self.fill_hosts(objects);
        self.fill_vpcs(objects);
        self.fill_peerings(objects);
        self.fill_sets(objects);
        self.fill_acls(objects);
        self.fill_classifiers(objects);
        self.fill_subnets(objects);
        self.add_translations();
        self.fill_ports(objects);
        self.fill_holders(objects);
        self.fill_balancers(objects);
        self.fill_learned(objects);
        self.fill_broadcast_peers(objects);
        self.fill_outside(objects);
        self.fill_routes(objects);
        self.retain_outside(objects);
    }

    /// Names that are gone give their numbers back first, so that there is room for as many new ones. They are given out again last.
    fn retain(&mut self, objects: &Objects<'_>) {
        let host = self.context.host;
        let own = |id: &str| {
            let place = objects
                .ports
                .binary_search_by(|port| port.id.as_str().cmp(id));
            place.is_ok_and(|place| objects.ports[place].host == host)
        };
        let peer = |id: &str| {
            let place = objects
                .hosts
                .binary_search_by(|host| host.id.as_str().cmp(id));
            place.is_ok() && id != host
        };
        let vpc = |id: &str| {
            let place = objects.vpcs.binary_search_by(|vpc| vpc.id.as_str().cmp(id));
            place.is_ok()
        };
        self.numbers.ports.retain(own);
        self.numbers.peers.retain(peer);
        self.numbers.vpcs.retain(vpc);
    }

    /// VPCs that have not changed keep their epoch.
    fn keep_epochs(&mut self, done: &Done, changed: &Changed<'_>) {
        if !external::is_same(&done.snapshot.outside, &self.outside) {
            return;
        }
        for draft in &mut self.vpcs {
            let id = &draft.vpc.id;
            let before = done.places.vpcs.get(id);
            let before = before.and_then(|place| done.snapshot.vpcs.get(*place));
            let is_same = |before: &&Vpc| {
                before.translations == draft.vpc.translations
                    && *before.elastic_ips == draft.elastic_ips
                    && *before.public == draft.public
            };
            if let Some(before) = before.filter(|_| !changed.has(id)).filter(is_same) {
                draft.vpc.epoch = before.epoch;
            }
        }
    }

    fn finish(self) -> (Places, Snapshot) {
        let learns = self.vpcs.iter().any(|draft| draft.vpc.learned.is_some());
        let vpcs = self.vpcs.into_iter().map(|draft| Vpc {
            by_address: Arc::new(draft.by_address.into_iter().collect()),
            by_mac: Arc::new(draft.by_mac.into_iter().collect()),
            gateways: Arc::new(draft.gateways),
            moves: Arc::new(draft.moves),
            senders: Arc::new(draft.allowed.into_iter().collect()),
            sets: draft.sets.into(),
            elastic_ips: Arc::new(draft.elastic_ips),
            balancers: Arc::new(draft.balancers),
            public: Arc::new(draft.public),
            ..draft.vpc
        });
        let trunks = ports::trunks(self.ports.iter(), &self.places);
        let snapshot = Snapshot {
            generation: self.context.generation,
            revision: self.context.revision,
            vteps: self.vteps,
            vpcs: vpcs.collect(),
            vpc_by_vni: Arc::new(self.vpc_by_vni),
            subnets: self.subnets.into_iter().collect(),
            ports: self.ports.into_iter().collect(),
            limits: self.limits.into(),
            trunks,
            peers: self.peers.into(),
            peer_by_vtep: Arc::new(self.peer_by_vtep),
            acls: self.acls.into_iter().collect(),
            metadata: self.context.metadata,
            outside: Arc::new(self.outside),
            learns,
        };
        (self.places, snapshot)
    }

    fn fill_vpcs(&mut self, objects: &Objects<'_>) {
        for vpc in &objects.vpcs {
            if vpc.vni == 0 || vpc.vni >= 1 << 24 {
                self.report
                    .add(Kind::Vpc, &vpc.id, "vni", "is 1 to 16777215");
                continue;
            }
            let place = self.vpcs.len();
            if self.vpc_by_vni.insert(vpc.vni.into(), place).is_some() {
                let rule = format!("{} is already used by another VPC", vpc.vni);
                self.report.add(Kind::Vpc, &vpc.id, "vni", rule);
            }
            let Some(index) = self.numbers.vpcs.number(&vpc.id) else {
                let rule = format!("this host holds at most {} VPCs", self.numbers.vpcs.cap());
                self.report.add(Kind::Vpc, &vpc.id, "", rule);
                continue;
            };
            self.places.vpcs.insert(vpc.id.clone(), place);
            let vpc = Vpc {
                id: vpc.id.clone(),
                vni: vpc.vni.into(),
                index: index.into(),
                epoch: self.context.generation.into(),
                routes_multicast: vpc.multicast_routing,
                learned: vpc.learning.as_ref().map(|_| Learned::default()),
                ..Vpc::default()
            };
            self.vpcs.push(VpcDraft {
                vpc,
                ..VpcDraft::default()
            });
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
