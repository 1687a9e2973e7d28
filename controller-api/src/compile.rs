//! Compiles the intent of all tenants into the state of one host: only the objects that the host needs.
//!
//! Of each VPC that has ports on the host: the VPC, its subnets, every port with its host, the policy and routes of the local ports, the
//! members of the groups that this policy names, and the hosts that may have to be reached. A host that a port has just left also gets the
//! VPC, so that it can forward to the port's new host. Ports of other hosts come without device, groups and pairs; subnets without a port
//! here come without DHCP settings. Of a VPC that a peering joins to one of these: where its addresses are.
//!
//! Of each of these VPCs also the elastic IPs and the NAT gateways, and the external networks that they and the routes name. A gateway host of an
//! external network has the VPCs that send to it, as if it had ports there, with the route tables of all subnets: it finds the way out by them.
//!
//! Its zones and the names of its ports, where its gateways answer DNS, whether or not the host learns its ports (decision 021).
//!
//! And its load balancers, where the host takes them: clients are ports of the VPC itself, so that a host which knows it by a peering needs none.
//!
//! A tenant's groups and prefix lists are told as those of each VPC, with ids that say so: hosts know none that are of no VPC.
//!
//! Of a VPC whose ports a host learns it is told, of other hosts' ports, those that something names and those that it asks for (decision 018); groups have
//! the members that are among the ports that it is told.
//!
//! What all hosts of a VPC are told alike is in `VpcView`; here is what one is told beyond that. The result passes
//! [`Scope::Node`](weft_proto::validate::Scope), and changes only when something that the host acts on changes.

mod learned;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use learned::{LearnedPorts, Scene};
use weft_proto::labels::Labels;
use weft_proto::peering::SideState;
use weft_proto::state::{Entry, Kind, Layer, Object, State, Sum};
use weft_proto::v1::{
    Device, NatGateway, Peering, Port, PortForward, PrefixList, RouteTable, SecurityGroup,
    SecurityRule, Subnet, Vpc,
};

use crate::always::Always;
use crate::learning::{Addresses, Learned};
use crate::members::{self, Members};
use crate::node::{Capabilities, NodeState};
use crate::version::{Small, Version};
use crate::view::{VpcView, has_dns};

/// The state of a host that can do all that there is; nothing when the intent has no such host, or it runs no weftd.
pub fn compile(version: &Version, host: &str) -> Option<State> {
    let node = NodeState::compile(version, host, Capabilities::all(), None)?;
    let mut state = State::default();
    for entry in node.iter() {
        state.insert(entry.object.clone());
    }
    Some(state)
}

/// Whom a state is for: the host, what it can do, and what it has asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipient<'a> {
    pub(crate) host: &'a str,
    pub(crate) capabilities: Capabilities,
    pub(crate) learned: &'a Learned,
}

impl<'a> Recipient<'a> {
    /// What it is told of a VPC anyway, if it learns the VPC's ports. A gateway of the VPC, which all of its ports may send through, does not.
    fn learns<'v>(&self, view: &'v VpcView) -> Option<&'v Always> {
        let learns = self.capabilities.learns && !view.gateways.contains(self.host);
        view.always.as_ref().filter(|_| learns)
    }

    /// What it has asked for in a VPC.
    fn asked(&self, vpc: &str) -> &'a Addresses {
        self.learned.of(vpc).unwrap_or(&NOTHING)
    }
}

static NOTHING: LazyLock<Addresses> = LazyLock::new(Addresses::default);

static EMPTY: LazyLock<Layer> = LazyLock::new(Layer::default);

/// What a host is told of one VPC.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) vpc: Arc<str>,
    /// What all are told, where this host is; none where it is told only that the VPC is there.
    view: Option<Arc<VpcView>>,
    /// For what this host has asked, if it learns the VPC's ports.
    learning: Option<LearnedPorts>,
    /// Whether it has ports here, or is a gateway.
    pub(crate) is_own: bool,
    /// Whether the host takes load balancers.
    balances: bool,
    /// Whether the host's gateways answer DNS.
    names: bool,
    /// The VPCs that peerings joined to this one.
    joined: Vec<Arc<str>>,
    /// What this host is told beyond that, and in place of that.
    own: Layer,
    /// Members of groups that are told in parts, by the group.
    members: BTreeMap<String, Layer>,
    /// What is not told since `own` has it in another form.
    hidden: Sum,
    /// The groups that are told, by their ids in the intent: with their rules, with their members, or with both.
    groups: Arc<BTreeMap<String, (bool, bool)>>,
    /// Other hosts that this one has to know because of its ports and its routes here.
    hosts: Arc<BTreeSet<Arc<str>>>,
    /// The external networks that something here leads to, or that lead here.
    pub(crate) networks: Arc<BTreeSet<Arc<str>>>,
}

impl Part {
    /// Whether the host is told where the VPC's ports are.
    pub(crate) fn is_seen(&self) -> bool {
        self.view.is_some()
    }

    /// What a host is told of a VPC; nothing if the VPC does not concern it. `before`: what it was told last, at a revision.
    pub(crate) fn compile(
        version: &Version,
        vpc: &str,
        recipient: Recipient<'_>,
        before: Option<(u64, &Self)>,
    ) -> Option<Self> {
        let host = recipient.host;
        if let Some(part) = before
            .and_then(|(revision, before)| before.after_small_changes(version, revision, recipient))
        {
            return Some(part);
        }
        let before = before.map(|(_, before)| before);
        let is_own = version.is_own(vpc, host);
        let peerings: Vec<&Peering> = version.state.peerings_of(vpc).collect();
        let reach = peerings.iter().filter_map(|peering| {
            let other = peering.other(vpc)?;
            version.is_own(other, host).then(|| tells_ports(peering))
        });
        let reach = reach.max();
        if !is_own && reach.is_none() {
            return None;
        }
        let view = version.view(vpc)?;
        let is_seen = is_own || reach == Some(true);
        let always = recipient.learns(view).filter(|_| is_seen);
        let learning = always.map(|always| {
            let before = before.and_then(|before| before.learning.as_ref());
            let scene = Scene {
                state: &version.state,
                view,
                always,
                host,
            };
            LearnedPorts::new(scene, recipient.asked(vpc), before)
        });
        let mut part = Self {
            vpc: Arc::clone(&view.id),
            view: is_seen.then(|| Arc::clone(view)),
            learning,
            is_own,
            balances: recipient.capabilities.balances,
            names: recipient.capabilities.names,
            joined: peerings
                .iter()
                .filter_map(|peering| peering.other(vpc).map(Arc::from))
                .collect(),
            own: Layer::default(),
            members: BTreeMap::new(),
            hidden: Sum::default(),
            groups: Arc::default(),
            hosts: Arc::default(),
            networks: Arc::default(),
        };
        let mut told = Told {
            version,
            vpc,
            recipient,
            view,
            before: before.map(|before| &before.own),
            peerings,
            part: &mut part,
        };
        told.peerings();
        told.policy();
        if is_own {
            told.ports();
            told.subnets();
            told.nat_gateways();
            told.load_balancers();
            told.networks();
        } else if part.view.is_none() {
            part.own.extend(view.places.get(Kind::Vpc, vpc));
        }
        let mut told = Told {
            part: &mut part,
            before: before.map(|before| &before.own),
            peerings: Vec::new(),
            version,
            vpc,
            recipient,
            view,
        };
        if !recipient.capabilities.multicast {
            told.without_multicast();
        }
        if !recipient.capabilities.names {
            told.without_dns();
        }
        part.hide();
        Some(part)
    }

    /// What a host is told after changes of rules and of ports that are all on other hosts: where those are, and the groups. Nothing if more may be told
    /// otherwise.
    fn after_small_changes(
        &self,
        version: &Version,
        revision: u64,
        recipient: Recipient<'_>,
    ) -> Option<Self> {
        let host = recipient.host;
        let vpcs: Vec<&str> = self.joined().chain([&*self.vpc]).collect();
        let small = version.only_small_changes(revision, &vpcs, host)?;
        let (view, before) = (version.view(&self.vpc)?, self.view.as_ref()?);
        // What it is told of the VPC in place of what others are is made anew.
        let capabilities = recipient.capabilities;
        if !capabilities.multicast && is_multicast_routed(&version.state, &self.vpc)
            || !capabilities.names && has_dns(&version.state, &self.vpc)
        {
            return None;
        }
        let always = recipient.learns(view);
        if always.is_some() != self.learning.is_some() {
            return None;
        }
        // Which port forwards it is told of depends on the ports, of which all are told that they lead to.
        if version.is_gateway(&self.vpc, host) && self.names_any_of(always, &small) {
            return None;
        }
        // What is told of subnets depends on both.
        if view.has_ipv6 != before.has_ipv6 || view.gateways != before.gateways {
            return None;
        }
        let mut part = Self {
            view: Some(Arc::clone(view)),
            members: BTreeMap::new(),
            ..self.clone()
        };
        if let (Some(learning), Some(always)) = (&mut part.learning, always) {
            let scene = Scene {
                state: &version.state,
                view,
                always,
                host,
            };
            let ports = small.iter().flat_map(|small| &small.ports);
            let ports = ports.map(String::as_str);
            learning.follow(scene, recipient.asked(&self.vpc), ports);
        }
        let is_changed = |id: &String| small.iter().any(|small| small.groups.contains(id));
        let mut told = Told {
            version,
            vpc: &self.vpc,
            recipient,
            view,
            before: Some(&self.own),
            peerings: version.state.peerings_of(&self.vpc).collect(),
            part: &mut part,
        };
        for (id, (has_rules, has_members)) in &*self.groups {
            if *has_members || is_changed(id) {
                told.tell_group(id, *has_rules, *has_members);
            }
        }
        Some(part)
    }

    /// Whether port forwards or anything else of the VPC may name ports that changed. `always`: what hosts that learn them are told now.
    fn names_any_of(&self, always: Option<&Always>, small: &[&Small]) -> bool {
        let before = self.view.as_ref().and_then(|view| view.always.as_ref());
        let Some((always, before)) = always.zip(before) else {
            return true;
        };
        let mut ports = small.iter().flat_map(|small| &small.ports);
        ports.any(|id| always.has(id) || before.has(id))
    }

    /// Whether the host learns the VPC's ports.
    pub(crate) fn learns(&self) -> bool {
        self.learning.is_some()
    }

    /// Notes what of the view is not told.
    fn hide(&mut self) {
        let hidden = self.own.iter().filter_map(|entry| {
            let (kind, id) = (entry.object.kind(), entry.object.id());
            Some(self.seen(kind, id)?.digest)
        });
        self.hidden = hidden.fold(Sum::default(), Sum::plus);
    }

    /// What it adds to the digest of a host's state.
    pub(crate) fn digest(&self) -> Sum {
        let layers = self.layers().into_iter().chain(self.members.values());
        layers
            .map(Layer::digest)
            .fold(Sum::default(), Sum::plus)
            .minus(self.hidden)
    }

    /// Everything that is told, and what of that is hidden by `own`, the last.
    fn layers(&self) -> [&Layer; 6] {
        let places = self.places().unwrap_or(&EMPTY);
        let own = self.view.as_ref().filter(|_| self.is_own);
        let way_out = own.map_or(&*EMPTY, |view| &view.way_out);
        let balancers = own.filter(|_| self.balances);
        let balancers = balancers.map_or(&*EMPTY, |view| &view.balancers);
        let names = own.filter(|_| self.names);
        let names = names.map_or(&*EMPTY, |view| &view.names);
        let learned = self.learning.as_ref();
        let learned = learned.map_or(&*EMPTY, |learning| &learning.told);
        [places, way_out, balancers, names, learned, &self.own]
    }

    /// Where things are, as all hosts are told, or all that learn the VPC's ports.
    fn places(&self) -> Option<&Layer> {
        let view = self.view.as_ref()?;
        let always = view.always.as_ref().filter(|_| self.learning.is_some());
        Some(always.map_or(&view.places, |always| &always.told))
    }

    /// What is told of a key but for `own`.
    fn seen(&self, kind: Kind, id: &str) -> Option<&Arc<Entry>> {
        if let Kind::ElasticIp | Kind::NatGateway = kind {
            let view = self.view.as_ref().filter(|_| self.is_own)?;
            let of_balancer = || view.balancers.get(kind, id).filter(|_| self.balances);
            return view.way_out.get(kind, id).or_else(of_balancer);
        }
        if kind == Kind::LoadBalancer {
            let view = self.view.as_ref();
            let view = view.filter(|_| self.is_own && self.balances)?;
            return view.balancers.get(kind, id);
        }
        if let Kind::DnsZone | Kind::PortName = kind {
            let view = self.view.as_ref();
            let view = view.filter(|_| self.is_own && self.names)?;
            return view.names.get(kind, id);
        }
        let learned = || self.learning.as_ref()?.told.get(kind, id);
        self.places()?.get(kind, id).or_else(learned)
    }

    /// About how many objects are told.
    pub(crate) fn len(&self) -> usize {
        let layers = self.layers().into_iter().chain(self.members.values());
        layers.map(Layer::len).sum()
    }

    /// An object that is told.
    pub(crate) fn get(&self, kind: Kind, id: &str) -> Option<&Arc<Entry>> {
        if kind == Kind::GroupMembers {
            let (group, _) = id.rsplit_once('/')?;
            return self.members.get(group)?.get(kind, id);
        }
        let shared = || self.seen(kind, id);
        self.own.get(kind, id).or_else(shared)
    }

    /// Everything that is told.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        let is_told = |entry: &&Arc<Entry>| {
            let told = self.get(entry.object.kind(), entry.object.id());
            told.is_some_and(|told| Arc::ptr_eq(told, entry))
        };
        let all = self.layers().into_iter().flat_map(Layer::iter);
        let parts = self.members.values().flat_map(Layer::iter);
        all.filter(is_told).chain(parts)
    }

    /// What is in either and not in the other as it is: what is told otherwise is among it, by its key.
    pub(crate) fn difference<'a>(
        old: Option<&'a Self>,
        new: Option<&'a Self>,
    ) -> impl Iterator<Item = &'a Arc<Entry>> {
        let ends = [old, new];
        let groups = ends
            .into_iter()
            .flatten()
            .flat_map(|part| part.members.keys());
        let groups: BTreeSet<&String> = groups.collect();
        let members = groups.into_iter().map(move |group| {
            ends.map(|part| {
                part.and_then(|part| part.members.get(group))
                    .unwrap_or(&EMPTY)
            })
        });
        let [old, new] = ends.map(|part| part.map_or([&*EMPTY; 6], Self::layers));
        let layers = old.into_iter().zip(new).map(|(old, new)| [old, new]);
        let layers = layers.chain(members);
        layers.flat_map(|[old, new]| old.difference(new).into_iter().flatten())
    }

    /// The VPCs that peerings joined to this one.
    pub(crate) fn joined(&self) -> impl Iterator<Item = &str> {
        self.joined.iter().map(|vpc| &**vpc)
    }

    /// The hosts that this one has to know because of the VPC, some more than once.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &Arc<str>> {
        let view = self.view.iter();
        let shared = view.flat_map(|view| {
            let gateways = self.is_own.then_some(&view.gateways);
            [Some(&view.port_hosts), gateways].into_iter().flatten()
        });
        shared.flat_map(|hosts| hosts.iter()).chain(&*self.hosts)
    }

    /// Whether [`Self::hosts`] are certainly those of another state.
    pub(crate) fn has_hosts_of(&self, other: &Self) -> bool {
        let of_view = |part: &Self| {
            let view = part.view.as_ref()?;
            Some((Arc::as_ptr(&view.port_hosts), Arc::as_ptr(&view.gateways)))
        };
        self.is_own == other.is_own
            && of_view(self) == of_view(other)
            && Arc::ptr_eq(&self.hosts, &other.hosts)
    }
}

/// Whether hosts of one VPC are told where the ports of the other are. One that is deleted still has to be told from what never was.
pub(crate) fn tells_ports(peering: &Peering) -> bool {
    let is_known = |state: SideState| state.is_agreed() || state == SideState::Deleted;
    peering.states().into_iter().all(is_known)
}

/// The id by which hosts know a group or a prefix list: one of a tenant is another in each VPC.
fn id_in(object: &Object, vpc: &str) -> String {
    match object.tenant_wide() {
        Some(_) => format!("{}@{vpc}", object.id()),
        None => object.id().to_owned(),
    }
}

/// Fills a part.
struct Told<'a> {
    version: &'a Version,
    vpc: &'a str,
    recipient: Recipient<'a>,
    view: &'a VpcView,
    before: Option<&'a Layer>,
    peerings: Vec<&'a Peering>,
    part: &'a mut Part,
}

impl<'a> Told<'a> {
    /// Tells an object, as the very one that was told before if it is the same.
    fn put(&mut self, object: Object) {
        let known = self.before;
        let known = known.and_then(|before| before.get(object.kind(), object.id()));
        let entry = match known {
            Some(known) if known.object == object => Arc::clone(known),
            _ => Entry::new(object),
        };
        self.tell(&entry);
    }

    /// Tells an object as it is in the intent.
    fn share(&mut self, kind: Kind, id: &str) {
        let entry = self.version.state.entry(kind, id);
        self.part.own.extend(entry.map(Entry::told));
    }

    /// Tells of the VPC and its subnets without what a host that floods multicast does not know.
    fn without_multicast(&mut self) {
        let vpc = is_multicast_routed(self.state(), self.vpc).then_some((Kind::Vpc, self.vpc));
        let subnets = self.state().of_vpc_and_kind(self.vpc, Kind::Subnet);
        let subnets = subnets.filter_map(|object| match object {
            Object::Subnet(subnet) if !subnet.multicast.is_empty() => {
                Some((Kind::Subnet, &*subnet.id))
            }
            _ => None,
        });
        for (kind, id) in vpc.into_iter().chain(subnets) {
            let told = self.part.own.get(kind, id);
            let told = told.or_else(|| self.part.seen(kind, id));
            match told.map(|entry| entry.object.clone()) {
                Some(Object::Vpc(vpc)) => self.put(Object::Vpc(Vpc {
                    multicast_routing: false,
                    ..vpc
                })),
                Some(Object::Subnet(subnet)) => self.put(Object::Subnet(Subnet {
                    multicast: String::new(),
                    ..subnet
                })),
                _ => {}
            }
        }
    }

    /// Tells of the VPC without what a host that answers no DNS does not know.
    fn without_dns(&mut self) {
        let told = self.part.own.get(Kind::Vpc, self.vpc);
        let told = told.or_else(|| self.part.seen(Kind::Vpc, self.vpc));
        if let Some(Object::Vpc(vpc)) = told.map(|entry| &entry.object)
            && vpc.dns.is_some()
        {
            let vpc = Vpc {
                dns: None,
                ..vpc.clone()
            };
            self.put(Object::Vpc(vpc));
        }
    }

    fn state(&self) -> &'a State {
        &self.version.state
    }

    /// The ports here, and those that were here.
    fn local_ports(&self) -> impl Iterator<Item = &'a Port> + use<'a> {
        self.version.state.ports_on(self.vpc, self.recipient.host)
    }

    fn peerings(&mut self) {
        for peering in self.peerings.clone() {
            // One that is deleted may outlive its requester.
            let [teller, other] = match self.state().find(Kind::Vpc, &peering.requester) {
                Some(_) => [&peering.requester, &peering.accepter],
                None => [&peering.accepter, &peering.requester],
            };
            let is_told = *teller == self.vpc
                && (self.part.is_own || self.version.is_own(other, self.recipient.host));
            if is_told {
                self.share(Kind::Peering, &peering.id);
            }
        }
    }

    fn ports(&mut self) {
        for port in self.local_ports() {
            if !port.moved_from.is_empty() {
                Arc::make_mut(&mut self.part.hosts).insert(Arc::from(&*port.moved_from));
            }
            let mut groups = port.security_groups.iter();
            let capabilities = self.recipient.capabilities;
            let takes_options = capabilities.dhcp_options || port.dhcp_options.is_empty();
            let takes_dscp = capabilities.marks || port.dscp.is_none();
            let takes_trunk = capabilities.trunks || port.trunk.is_none();
            let takes_health = capabilities.port_health || port.health.is_none();
            if takes_options
                && takes_dscp
                && takes_health
                && takes_trunk
                && groups.all(|group| self.group_id(group) == *group)
            {
                self.share(Kind::Port, &port.id);
                continue;
            }
            let groups = port.security_groups.iter();
            let security_groups = groups.map(|group| self.group_id(group)).collect();
            self.put(Object::Port(Port {
                security_groups,
                labels: Labels::new(),
                dhcp_options: match takes_options {
                    true => port.dhcp_options.clone(),
                    false => Vec::new(),
                },
                dscp: port.dscp.filter(|_| takes_dscp),
                health: port.health.clone().filter(|_| takes_health),
                device: match takes_trunk {
                    true => port.device.clone(),
                    false => Some(lacking_device(&port.id)),
                },
                trunk: port.trunk.clone().filter(|_| takes_trunk),
                ..port.clone()
            }));
        }
        for port in self.state().ports_that_left(self.vpc, self.recipient.host) {
            if *port.host != *self.recipient.host
                && let Some(seen) = self.view.places.get(Kind::Port, &port.id)
                && let Object::Port(seen) = &seen.object
            {
                self.put(Object::Port(Port {
                    moved_from: self.recipient.host.to_owned(),
                    ..seen.clone()
                }));
            }
        }
    }

    /// A group or a prefix list that the VPC may use: one of its own, or of its tenant.
    fn usable(&self, kind: Kind, id: &str) -> Option<&'a Object> {
        let found = self.state().find(kind, id)?;
        let is_usable = match found.tenant_wide() {
            Some(tenant) => self.tenant() == Some(tenant),
            None => found.vpc() == Some(self.vpc),
        };
        is_usable.then_some(found)
    }

    fn tenant(&self) -> Option<&'a str> {
        match self.state().find(Kind::Vpc, self.vpc)? {
            Object::Vpc(vpc) => Some(&vpc.tenant),
            _ => None,
        }
    }

    fn group(&self, id: &str) -> Option<&'a SecurityGroup> {
        match self.usable(Kind::SecurityGroup, id)? {
            Object::SecurityGroup(group) => Some(group),
            _ => None,
        }
    }

    /// The id by which hosts know a group.
    fn group_id(&self, id: &str) -> String {
        let found = self.usable(Kind::SecurityGroup, id);
        found.map_or_else(|| id.to_owned(), |found| id_in(found, self.vpc))
    }

    /// The groups of local ports, and what their rules name; and the groups here that rules of local ports in joined VPCs name.
    fn policy(&mut self) {
        let mut local: BTreeSet<&'a str> = BTreeSet::new();
        let mut remotes: BTreeSet<&'a str> = BTreeSet::new();
        if self.part.is_own {
            let ports = self.local_ports();
            local.extend(ports.flat_map(|port| port.security_groups.iter().map(String::as_str)));
        }
        let rules = local.iter().filter_map(|id| self.group(id));
        let rules: Vec<&SecurityRule> = rules.flat_map(|group| &group.rules).collect();
        for rule in rules {
            if !rule.remote_group.is_empty() {
                remotes.insert(&rule.remote_group);
            }
            let list = self.usable(Kind::PrefixList, &rule.remote_prefix_list);
            if let Some(found @ Object::PrefixList(list)) = list {
                if found.tenant_wide().is_none() {
                    self.share(Kind::PrefixList, &list.id);
                    continue;
                }
                self.put(Object::PrefixList(PrefixList {
                    id: id_in(found, self.vpc),
                    vpc: self.vpc.to_owned(),
                    prefixes: list.prefixes.clone(),
                    ..PrefixList::default()
                }));
            }
        }
        for peering in self.peerings.clone() {
            let Some(other) = peering.other(self.vpc) else {
                continue;
            };
            let state = self.state();
            let groups = state.ports_on(other, self.recipient.host);
            let groups: BTreeSet<&str> = groups
                .flat_map(|port| port.security_groups.iter().map(String::as_str))
                .collect();
            for id in groups {
                // One of the tenant names only such as are everywhere.
                if let Some(Object::SecurityGroup(group)) = state.find(Kind::SecurityGroup, id)
                    && group.vpc == other
                {
                    let named = group.rules.iter().map(|rule| &*rule.remote_group);
                    remotes.extend(named.filter(|id| {
                        let found = state.find(Kind::SecurityGroup, id);
                        found.and_then(Object::vpc) == Some(self.vpc)
                    }));
                }
            }
        }
        let groups = local.union(&remotes);
        let groups: BTreeMap<String, (bool, bool)> = groups
            .map(|id| ((*id).to_owned(), (local.contains(id), remotes.contains(id))))
            .collect();
        for (id, (has_rules, has_members)) in &groups {
            self.tell_group(id, *has_rules, *has_members);
        }
        self.part.groups = Arc::new(groups);
    }

    /// Tells a group with its rules, its members, or both.
    fn tell_group(&mut self, id: &str, has_rules: bool, has_members: bool) {
        let Some(group) = self.group(id) else {
            return;
        };
        let members = has_members.then(|| self.members(group));
        let in_parts = members.as_ref().filter(|members| {
            let most = self.recipient.capabilities.members_in_one;
            most.is_some_and(|most| members.len() > most)
        });
        if let Some(members) = in_parts {
            let parts = members.parts().clone();
            self.part.members.insert(self.group_id(id), parts);
        }
        let members = members.as_ref().filter(|_| in_parts.is_none());
        let make = || self.told_group(group, has_rules, members);
        // What has members of a host's own is shared with no other.
        let learns = self.recipient.learns(self.view).is_some();
        let is_own = group.vpc.is_empty() || learns && members.is_some();
        if is_own {
            self.put(make());
        } else {
            let entry = self.view.group((id, has_rules, members.is_some()), make);
            self.tell(&entry);
        }
    }

    /// Tells an object, unless that very one is told already.
    fn tell(&mut self, entry: &Arc<Entry>) {
        let known = self.part.own.get(entry.object.kind(), entry.object.id());
        if !known.is_some_and(|known| Arc::ptr_eq(known, entry)) {
            self.part.own.insert(entry);
        }
    }

    fn told_group(
        &self,
        group: &SecurityGroup,
        has_rules: bool,
        members: Option<&Members>,
    ) -> Object {
        let rules = if has_rules { &group.rules[..] } else { &[] };
        Object::SecurityGroup(SecurityGroup {
            id: self.group_id(&group.id),
            vpc: self.vpc.to_owned(),
            rules: rules.iter().map(|rule| self.known_rule(rule)).collect(),
            members: members.map_or(Vec::new(), Members::to_list),
            ..SecurityGroup::default()
        })
    }

    /// A rule with the ids by which hosts know what it names.
    fn known_rule(&self, rule: &SecurityRule) -> SecurityRule {
        let list = &rule.remote_prefix_list;
        let found = self.usable(Kind::PrefixList, list);
        SecurityRule {
            remote_group: self.group_id(&rule.remote_group),
            remote_prefix_list: found.map_or_else(|| list.clone(), |it| id_in(it, self.vpc)),
            ..rule.clone()
        }
    }

    /// The addresses of the ports in a group, as far as the host is told them. A tenant's groups have members in the VPCs, too, that this one reaches by
    /// peerings.
    fn members(&mut self, group: &SecurityGroup) -> Members {
        let (state, told) = (self.state(), self.group_id(&group.id));
        let passing = self.peerings.iter().filter(|peering| peering.passes());
        let others = passing.filter_map(|peering| peering.other(self.vpc));
        let others: Vec<&str> = others.filter(|_| group.vpc.is_empty()).collect();
        if others.is_empty() {
            let always = self.recipient.learns(self.view);
            return match (&mut self.part.learning, always) {
                (Some(learning), Some(always)) => {
                    let scene = Scene {
                        state,
                        view: self.view,
                        always,
                        host: self.recipient.host,
                    };
                    learning.members(scene, (&group.id, &told))
                }
                // Of a VPC whose ports it is not told, for what a peering does not let pass.
                (None, Some(always)) => always.members(state, self.vpc, (&group.id, &told)),
                _ => self.view.members(state, &group.id, &told),
            };
        }
        let mut all = Vec::new();
        for vpc in others.into_iter().chain([self.vpc]) {
            all.append(&mut self.told_members(vpc, (&group.id, &told)));
        }
        Members::new(self.vpc, &told, all.iter().map(String::as_str))
    }

    /// The addresses of the ports of a VPC in a group, as far as the host is told them.
    fn told_members(&self, vpc: &str, (group, told): (&str, &str)) -> Vec<String> {
        let state = self.state();
        let view = self.version.view(vpc);
        let learned = view.and_then(|view| Some((view, self.recipient.learns(view)?)));
        let Some((view, always)) = learned else {
            let ports = state.ports_in_group(group, vpc);
            let addresses = ports.flat_map(|port| members::addresses_of(state, port));
            return addresses.map(str::to_owned).collect();
        };
        let scene = Scene {
            state,
            view,
            always,
            host: self.recipient.host,
        };
        let mut all = always.members(state, vpc, (group, told)).to_list();
        let known = scene.known(self.recipient.asked(vpc)).into_values();
        let known = known.filter(|port| port.security_groups.iter().any(|it| it == group));
        all.extend(known.flat_map(|port| port.addresses.iter().cloned()));
        all
    }

    /// Subnets, with the routes and ACLs of those that have ports here. A gateway of the VPC has the routes of all.
    fn subnets(&mut self) {
        let local = self.local_ports().map(|port| &*port.subnet);
        let local: BTreeSet<&str> = local.collect();
        let is_gateway = self.version.is_gateway(self.vpc, self.recipient.host);
        let ids: BTreeSet<&str> = if is_gateway {
            let subnets = self.state().of_vpc_and_kind(self.vpc, Kind::Subnet);
            subnets.map(Object::id).collect()
        } else {
            local.clone()
        };
        for id in ids {
            let Some(Object::Subnet(subnet)) = self.state().find(Kind::Subnet, id) else {
                continue;
            };
            let table = self.state().find(Kind::RouteTable, &subnet.route_table);
            if let Some(Object::RouteTable(table)) = table {
                Arc::make_mut(&mut self.part.hosts).extend(table.hosts().map(Arc::from));
                let networks = table.external_networks().map(Arc::from);
                Arc::make_mut(&mut self.part.networks).extend(networks);
                if self.recipient.capabilities.policy_routes || table.policies.is_empty() {
                    self.share(Kind::RouteTable, &table.id);
                } else {
                    self.put(Object::RouteTable(RouteTable {
                        policies: Vec::new(),
                        labels: Labels::new(),
                        ..table.clone()
                    }));
                }
            }
            let mut seen: Subnet = self.view.told_subnet(subnet);
            if local.contains(id) {
                self.share(Kind::NetworkAcl, &subnet.network_acl);
            } else {
                seen.network_acl.clear();
                seen.dhcp = None;
            }
            if let Some(dhcp) = &mut seen.dhcp
                && !self.recipient.capabilities.dhcp_options
            {
                dhcp.options.clear();
            }
            self.put(Object::Subnet(seen));
        }
    }

    /// NAT gateways that may run here, with whom they let in.
    fn nat_gateways(&mut self) {
        for object in self.state().of_vpc_and_kind(self.vpc, Kind::NatGateway) {
            let Object::NatGateway(nat) = object else {
                continue;
            };
            let network = self.state().external_network(&nat.external_network);
            let runs_here = network.is_some_and(|network| {
                let mut hosts = network.gateway_hosts.iter();
                hosts.any(|gateway| gateway == self.recipient.host)
            });
            if runs_here {
                let port_forwards = self.live_forwards(nat);
                self.put(Object::NatGateway(NatGateway {
                    port_forwards,
                    labels: Labels::new(),
                    ..nat.clone()
                }));
            }
        }
    }

    /// The port forwards of a gateway to ports that live somewhere.
    fn live_forwards(&self, nat: &NatGateway) -> Vec<PortForward> {
        let is_live = |forward: &&PortForward| {
            let port = match self.state().find(Kind::Port, &forward.port) {
                Some(Object::Port(port)) => Some(port).filter(|port| port.vpc == self.vpc),
                _ => None,
            };
            let private = forward.private_address.parse::<IpAddr>().ok();
            let by_address =
                private.and_then(|address| self.state().port_with_address(self.vpc, address));
            let mut ports = [port, by_address].into_iter().flatten();
            ports.any(|port| !port.host.is_empty())
        };
        nat.port_forwards.iter().filter(is_live).cloned().collect()
    }

    /// Load balancers in another form than to others: without what an older host does not know.
    fn load_balancers(&mut self) {
        let capabilities = self.recipient.capabilities;
        let takes_all = capabilities.finds && capabilities.least_connections && capabilities.dsr;
        if takes_all || !self.part.balances {
            return;
        }
        for object in self.view.balancers.of_kind(Kind::LoadBalancer) {
            let Object::LoadBalancer(balancer) = object else {
                continue;
            };
            let mut told = balancer.clone();
            if !capabilities.dsr {
                told.listeners.retain(|listener| !listener.is_dsr());
            }
            for listener in &mut told.listeners {
                if !capabilities.finds {
                    listener.health = None;
                }
                if !capabilities.dsr {
                    listener.mode.clear();
                }
                if !capabilities.least_connections && listener.algorithm == "least-connections" {
                    listener.algorithm = "maglev".to_owned();
                }
            }
            if told != *balancer {
                self.put(Object::LoadBalancer(told));
            }
        }
    }

    /// The external networks that the way out leads to.
    fn networks(&mut self) {
        let balances = self.part.balances;
        let balancers = self.view.balancers.iter().filter(|_| balances);
        for entry in self.view.way_out.iter().chain(balancers) {
            let network = match &entry.object {
                Object::ElasticIp(elastic) => &elastic.external_network,
                Object::NatGateway(nat) => &nat.external_network,
                _ => continue,
            };
            Arc::make_mut(&mut self.part.networks).insert(Arc::from(&**network));
        }
        let own = self.state().wire_of(self.vpc);
        Arc::make_mut(&mut self.part.networks).extend(own.map(Arc::from));
        let leading = self.state().networks_that_route_to(self.vpc);
        Arc::make_mut(&mut self.part.networks).extend(leading.map(|it| Arc::from(it.id())));
    }
}

/// The device of a subport towards a host that takes none: by a name that no interface can have, so that the port is down. A name is one port's.
///
/// The name begins with a colon: to an ioctl, what is ahead of a colon is the interface, and the rest an alias of it (netdevice(7)). Nothing is ahead of this one.
fn lacking_device(port: &str) -> Device {
    // FNV-1a.
    let hash = port.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Device {
        kind: "netdev".to_owned(),
        name: format!(":{:014x}", hash >> 8),
        ..Device::default()
    }
}

fn is_multicast_routed(state: &State, vpc: &str) -> bool {
    matches!(state.find(Kind::Vpc, vpc), Some(Object::Vpc(vpc)) if vpc.multicast_routing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Change;
    use weft_proto::v1::{self, ElasticIp, Host, RouteTable};
    use weft_proto::validate::{Scope, validate};

    /// Three hosts; blue on h1 and h2, red on h3 and with a route to it from h1's blue subnet.
    const TOPOLOGY: &str = r#"
hosts:
  - {id: h1, vteps: [192.0.2.1]}
  - {id: h2, vteps: [192.0.2.2, "2001:db8::2"]}
  - {id: h3, vteps: [192.0.2.3]}
  - {id: h4, vteps: [192.0.2.4]}
vpcs: [{id: blue, vni: 1}, {id: red, vni: 2}]
subnets:
  - {id: a, vpc: blue, cidrs: [10.0.0.0/24], route_table: t-a, network_acl: acl-a}
  - {id: b, vpc: blue, cidrs: [10.0.1.0/24], route_table: t-b, network_acl: acl-b, dhcp: {domain: b.test}}
  - {id: r, vpc: red, cidrs: [10.0.0.0/24]}
route_tables:
  - {id: t-a, vpc: blue, routes: [{prefix: 0.0.0.0/0, host: h3}]}
  - {id: t-b, vpc: blue, routes: [{prefix: 0.0.0.0/0, ecmp: [{host: h4}, {port: b1}]}]}
network_acls: [{id: acl-a, vpc: blue}, {id: acl-b, vpc: blue}]
prefix_lists: [{id: used, vpc: blue}, {id: unused, vpc: blue}]
security_groups:
  - id: web
    vpc: blue
    rules:
      - {direction: ingress, remote_group: db}
      - {direction: ingress, remote_prefix_list: used}
  - {id: db, vpc: blue, rules: [{direction: ingress, remote_group: other}]}
  - {id: other, vpc: blue}
ports:
  - {id: a1, vpc: blue, subnet: a, mac: "02:00:00:00:00:01", addresses: [10.0.0.11], security_groups: [web],
     allowed_pairs: [{cidr: 10.5.0.0/16}], host: h1, device: {kind: netdev, name: v1}}
  - {id: b1, vpc: blue, subnet: b, mac: "02:00:00:00:00:02", addresses: [10.0.1.12], security_groups: [db],
     allowed_pairs: [{cidr: 10.6.0.0/16}], clamp_mss: true, host: h2, device: {kind: netdev, name: v1}}
  - {id: b2, vpc: blue, subnet: b, mac: "02:00:00:00:00:03", addresses: [10.0.1.11], security_groups: [db],
     host: h2, device: {kind: netdev, name: v2}}
  - {id: b3, vpc: blue, subnet: b, mac: "02:00:00:00:00:04", addresses: [10.0.1.13], security_groups: [db]}
  - {id: r1, vpc: red, subnet: r, mac: "02:00:00:00:00:01", addresses: [10.0.0.11], host: h3,
     device: {kind: netdev, name: v1}}
"#;

    fn version() -> Version {
        let objects = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
        let state = State::from_objects(objects).unwrap();
        assert_eq!(validate(&state, Scope::Intent), vec![]);
        Version::loaded(1, state)
    }

    fn compiled(version: &Version, host: &str) -> v1::Objects {
        let state = compile(version, host).unwrap();
        assert_eq!(validate(&state, Scope::Node { host }), vec![]);
        state.to_objects()
    }

    /// By a change that takes from the one and gives to the other, whichever of them comes first by its id.
    #[test]
    fn an_elastic_ip_that_goes_to_another_load_balancer_is_told_of() {
        let balancer = |id: &str, last: u8| {
            Object::LoadBalancer(v1::LoadBalancer {
                id: id.into(),
                vpc: "blue".into(),
                addresses: vec![format!("10.0.0.{last}")],
                ..v1::LoadBalancer::default()
            })
        };
        let bound = |to: &str| {
            Object::ElasticIp(ElasticIp {
                id: "public".into(),
                external_network: "inet".into(),
                address: "203.0.113.77".into(),
                load_balancer: to.into(),
                ..ElasticIp::default()
            })
        };
        for (from, to) in [("web-a", "web-b"), ("web-b", "web-a")] {
            let state = with_way_out(|state| {
                state.insert(balancer("web-a", 101));
                state.insert(balancer("web-b", 102));
                state.insert(bound(from));
            });
            let version = Version::loaded(1, state.clone());
            let all = Capabilities::all();
            let before = NodeState::compile(&version, "h1", all, None).unwrap();
            assert!(
                before
                    .to_objects()
                    .elastic_ips
                    .iter()
                    .any(|it| it.id == "public")
            );
            let mut next = state.clone();
            next.insert(bound(to));
            next.remove(&balancer(from, 0).key());
            assert_eq!(validate(&next, Scope::Intent), vec![]);
            let change = Change {
                revision: 2,
                upserts: vec![bound(to)],
                deletes: vec![balancer(from, 0).key()],
                ..Change::default()
            };
            let version = version.next(&change, next.clone());
            let followed = NodeState::compile(&version, "h1", all, Some(&before)).unwrap();
            let anew = Version::loaded(2, next);
            let anew = NodeState::compile(&anew, "h1", all, None).unwrap();
            assert_eq!(followed.to_objects(), anew.to_objects());
        }
    }

    #[test]
    fn a_host_that_floods_multicast_is_told_of_no_snooping_and_of_all_else() {
        let mut objects: v1::Objects = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
        for vpc in &mut objects.vpcs {
            vpc.multicast_routing = true;
        }
        for subnet in &mut objects.subnets {
            subnet.multicast = "snooping".into();
        }
        let version = Version::loaded(1, State::from_objects(objects).unwrap());
        let told = |host, capabilities| {
            let node = NodeState::compile(&version, host, capabilities, None);
            node.unwrap().to_objects()
        };
        let all = Capabilities::all();
        for host in ["h1", "h2"] {
            let with = told(host, all);
            let mut without = told(
                host,
                Capabilities {
                    multicast: false,
                    ..all
                },
            );
            assert!(with.vpcs.iter().all(|vpc| vpc.multicast_routing));
            assert!(with.subnets.iter().all(|it| it.multicast == "snooping"));
            for vpc in &mut without.vpcs {
                assert!(!std::mem::replace(&mut vpc.multicast_routing, true));
            }
            for subnet in &mut without.subnets {
                assert_eq!(
                    std::mem::replace(&mut subnet.multicast, "snooping".into()),
                    ""
                );
            }
            assert_eq!(without, with);
        }
    }

    #[test]
    fn a_host_that_takes_no_dhcp_options_is_told_of_none_and_of_all_else() {
        let option = v1::DhcpOption {
            name: "ntp-server".into(),
            value: "192.0.2.123".into(),
            ..v1::DhcpOption::default()
        };
        let mut objects: v1::Objects = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
        for port in &mut objects.ports {
            port.dhcp_options = vec![option.clone()];
        }
        for subnet in &mut objects.subnets {
            subnet.dhcp.get_or_insert_default().options = vec![option.clone()];
        }
        let version = Version::loaded(1, State::from_objects(objects).unwrap());
        let told = |capabilities| {
            let node = NodeState::compile(&version, "h2", capabilities, None);
            node.unwrap().to_objects()
        };
        let all = Capabilities::all();
        let with = told(all);
        let mut without = told(Capabilities {
            dhcp_options: false,
            ..all
        });
        let of_port = |it: &&Port| !it.dhcp_options.is_empty();
        assert_eq!(with.ports.iter().filter(of_port).count(), 2);
        assert_eq!(without.ports.iter().find(of_port), None);
        for (port, own) in without.ports.iter_mut().zip(&with.ports) {
            port.dhcp_options.clone_from(&own.dhcp_options);
        }
        for subnet in &mut without.subnets {
            let Some(dhcp) = &mut subnet.dhcp else {
                continue;
            };
            assert_eq!(dhcp.options, []);
            dhcp.options = vec![option.clone()];
        }
        assert_eq!(without, with);
    }

    #[test]
    fn a_host_of_before_policy_routes_and_marking_is_told_of_neither_and_of_all_else() {
        let mut objects: v1::Objects = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
        for port in &mut objects.ports {
            port.dscp = Some(46);
        }
        for table in &mut objects.route_tables {
            table.policies = vec![v1::PolicyRoute {
                priority: 1,
                dscp: Some(46),
                default_routing: true,
                ..v1::PolicyRoute::default()
            }];
        }
        let version = Version::loaded(1, State::from_objects(objects).unwrap());
        let told = |capabilities| {
            let node = NodeState::compile(&version, "h2", capabilities, None);
            node.unwrap().to_objects()
        };
        let all = Capabilities::all();
        let with = told(all);
        let mut without = told(Capabilities {
            marks: false,
            policy_routes: false,
            ..all
        });
        let marked = with.ports.iter().filter(|port| port.dscp.is_some());
        assert_eq!(marked.count(), 2, "what other hosts' ports send is theirs");
        assert!(with.route_tables.iter().all(|it| it.policies.len() == 1));
        assert!(!with.route_tables.is_empty());
        for (port, own) in without.ports.iter_mut().zip(&with.ports) {
            assert_eq!(port.dscp, None);
            port.dscp = own.dscp;
        }
        for (table, own) in without.route_tables.iter_mut().zip(&with.route_tables) {
            assert_eq!(table.policies, []);
            table.policies.clone_from(&own.policies);
        }
        assert_eq!(without, with);
    }

    #[test]
    fn a_host_of_before_port_health_is_told_ports_without_it_and_of_all_else() {
        let mut objects: v1::Objects = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
        for port in &mut objects.ports {
            port.health = Some(Box::new(v1::HealthCheck {
                protocol: "icmp".into(),
                ..v1::HealthCheck::default()
            }));
        }
        let version = Version::loaded(1, State::from_objects(objects).unwrap());
        let told = |capabilities| {
            let node = NodeState::compile(&version, "h2", capabilities, None);
            node.unwrap().to_objects()
        };
        let all = Capabilities::all();
        let with = told(all);
        let mut without = told(Capabilities {
            port_health: false,
            ..all
        });
        let checked = with.ports.iter().filter(|port| port.health.is_some());
        assert_eq!(checked.count(), 2, "other hosts check theirs");
        for (port, own) in without.ports.iter_mut().zip(&with.ports) {
            assert_eq!(port.health, None);
            port.health.clone_from(&own.health);
        }
        assert_eq!(without, with);
    }

    #[test]
    fn a_host_of_before_trunk_ports_is_told_a_subport_that_is_down_and_all_else() {
        let mut objects: v1::Objects = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
        let host = objects.ports[0].host.clone();
        let parent = objects.ports[0].id.clone();
        for n in 1..3 {
            let mut subport = objects.ports[0].clone();
            subport.id = format!("sub-{n}");
            subport.mac = format!("02:00:00:00:77:{n:02x}");
            subport.addresses.clear();
            subport.device = None;
            let parent = parent.clone();
            subport.trunk = Some(v1::Trunk { parent, vlan: n });
            objects.ports.push(subport);
        }
        let version = Version::loaded(1, State::from_objects(objects).unwrap());
        let told = |capabilities| {
            let node = NodeState::compile(&version, &host, capabilities, None);
            node.unwrap().to_objects()
        };
        let all = Capabilities::all();
        let (with, mut without) = (
            told(all),
            told(Capabilities {
                trunks: false,
                ..all
            }),
        );
        let subports = with.ports.iter().filter(|port| port.trunk.is_some());
        assert_eq!(subports.count(), 2);
        let mut names = std::collections::BTreeSet::new();
        for (port, own) in without.ports.iter_mut().zip(&with.ports) {
            assert_eq!(port.trunk, None);
            if own.trunk.is_none() {
                continue;
            }
            let device = port.device.take().unwrap();
            // No interface has a colon in its name (dev_valid_name of Linux), nor more than 15 bytes.
            assert!(device.name.starts_with(':') && device.name.len() == 15);
            assert!(names.insert(device.name), "a name is one port's");
            port.trunk.clone_from(&own.trunk);
        }
        assert_eq!(without, with);
    }

    fn ids<T>(list: &[T], id: impl Fn(&T) -> &String) -> Vec<&str> {
        list.iter().map(|o| id(o).as_str()).collect()
    }

    #[test]
    fn a_host_gets_what_its_ports_need_and_nothing_else() {
        let version = version();
        let h1 = compiled(&version, "h1");
        assert_eq!(ids(&h1.vpcs, |o| &o.id), ["blue"]);
        assert_eq!(ids(&h1.subnets, |o| &o.id), ["a", "b"]);
        assert!(h1.subnets[1].dhcp.is_none(), "b has no port here");
        assert!(compiled(&version, "h2").subnets[1].dhcp.is_some());
        assert_eq!(ids(&h1.route_tables, |o| &o.id), ["t-a"]);
        assert_eq!(ids(&h1.network_acls, |o| &o.id), ["acl-a"]);
        assert_eq!(ids(&h1.prefix_lists, |o| &o.id), ["used"]);
        assert_eq!(
            ids(&h1.ports, |o| &o.id),
            ["a1", "b1", "b2"],
            "not the unbound b3"
        );
        // Its own, that of blue's other ports, and the one that its routes name.
        assert_eq!(ids(&h1.hosts, |o| &o.id), ["h1", "h2", "h3"]);
        assert_eq!(ids(&compiled(&version, "h4").hosts, |o| &o.id), ["h4"]);
        assert!(compile(&version, "h5").is_none());
    }

    #[test]
    fn remote_ports_come_without_device_and_policy() {
        let h1 = compiled(&version(), "h1");
        let [a1, b1, _] = h1.ports.as_slice() else {
            panic!("{:?}", h1.ports)
        };
        assert_eq!(a1.allowed_pairs.len(), 1);
        assert!(a1.device.is_some());
        assert_eq!(b1.addresses, ["10.0.1.12"]);
        assert_eq!(b1.host, "h2");
        assert!(b1.device.is_none() && b1.security_groups.is_empty());
        assert!(b1.allowed_pairs.len() == 1 && !b1.clamp_mss);
    }

    #[test]
    fn a_group_that_is_only_a_remote_has_members_and_no_rules() {
        let h1 = compiled(&version(), "h1");
        let [db, web] = h1.security_groups.as_slice() else {
            panic!("{:?}", h1.security_groups)
        };
        assert_eq!((db.id.as_str(), db.rules.len()), ("db", 0));
        assert_eq!(db.members, ["10.0.1.11", "10.0.1.12"]);
        assert_eq!((web.id.as_str(), web.rules.len()), ("web", 2));
        assert!(web.members.is_empty(), "nobody names it");
    }

    #[test]
    fn every_host_is_told_the_same_mtu() {
        let version = version();
        for host in ["h1", "h2"] {
            let mtus: Vec<_> = compiled(&version, host)
                .subnets
                .iter()
                .map(|s| s.mtu)
                .collect();
            assert_eq!(mtus, [1430, 1430], "h2 has an IPv6 tunnel address");
        }
        assert_eq!(compiled(&version, "h3").subnets[0].mtu, 1450);
    }

    #[test]
    fn a_change_in_one_vpc_does_not_concern_hosts_of_another() {
        let before = version();
        let mut state = before.state.clone();
        let port = Object::Port(Port {
            id: "r2".into(),
            vpc: "red".into(),
            subnet: "r".into(),
            mac: "02:00:00:00:00:09".into(),
            host: "h3".into(),
            ..Port::default()
        });
        state.insert(port.clone());
        let change = Change {
            revision: 2,
            upserts: vec![port],
            deletes: vec![],
            ..Change::default()
        };
        let after = before.next(&change, state);
        assert!(after.unchanged_since(1, after.vpcs_of("h1").iter()));
        assert!(!after.unchanged_since(1, after.vpcs_of("h3").iter()));
        assert_eq!(compile(&before, "h1"), compile(&after, "h1"));
    }

    /// Blue and red, joined: red's ports are on h3 alone, blue's on h1 and h2, and a group of blue's names one of red's.
    fn joined(states: &str) -> Version {
        let mut objects: v1::Objects = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
        objects.subnets[2].cidrs = vec!["10.7.0.0/24".into()];
        objects.ports[4].addresses = vec!["10.7.0.11".into()];
        objects.ports[4].security_groups = vec!["red-web".into()];
        objects.security_groups.push(SecurityGroup {
            id: "red-web".into(),
            vpc: "red".into(),
            rules: vec![v1::SecurityRule {
                direction: "ingress".into(),
                ..v1::SecurityRule::default()
            }],
            ..SecurityGroup::default()
        });
        objects.security_groups[0].rules.push(v1::SecurityRule {
            direction: "ingress".into(),
            remote_group: "red-web".into(),
            ..v1::SecurityRule::default()
        });
        objects.peerings.push(v1::Peering {
            id: "p".into(),
            requester: "blue".into(),
            accepter: "red".into(),
            requester_state: states.into(),
            ..v1::Peering::default()
        });
        let state = State::from_objects(objects).unwrap();
        assert_eq!(validate(&state, Scope::Intent), vec![]);
        Version::loaded(1, state)
    }

    #[test]
    fn a_host_gets_where_a_joined_vpcs_ports_are_and_nothing_of_their_policy() {
        for state in ["active", "frozen", "deleted"] {
            let h1 = compiled(&joined(state), "h1");
            assert_eq!(ids(&h1.vpcs, |o| &o.id), ["blue", "red"]);
            assert_eq!(ids(&h1.peerings, |o| &o.id), ["p"]);
            assert_eq!(ids(&h1.subnets, |o| &o.id), ["a", "b", "r"]);
            let r1 = h1.ports.iter().find(|port| port.id == "r1").unwrap();
            assert_eq!(
                (r1.host.as_str(), &r1.addresses[..]),
                ("h3", &["10.7.0.11".to_owned()][..])
            );
            assert!(r1.device.is_none() && r1.security_groups.is_empty());
            let group = h1
                .security_groups
                .iter()
                .find(|group| group.id == "red-web");
            let group = group.unwrap();
            assert_eq!(
                (group.rules.len(), &group.members[..]),
                (0, &["10.7.0.11".to_owned()][..])
            );
        }
        // Red's own host has the group's rules, and its members for whoever names it there.
        let h3 = compiled(&joined("active"), "h3");
        assert_eq!(ids(&h3.ports, |o| &o.id), ["a1", "b1", "b2", "r1"]);
        let group = h3
            .security_groups
            .iter()
            .find(|group| group.id == "red-web");
        assert_eq!(group.unwrap().rules.len(), 1);
        assert!(
            h3.ports
                .iter()
                .all(|port| port.device.is_some() == (port.host == "h3"))
        );
    }

    #[test]
    fn before_a_peering_is_accepted_nothing_of_the_other_vpc_is_told() {
        for state in ["connecting", "rejected"] {
            let h1 = compiled(&joined(state), "h1");
            assert_eq!(ids(&h1.vpcs, |o| &o.id), ["blue", "red"]);
            assert_eq!(ids(&h1.subnets, |o| &o.id), ["a", "b"]);
            assert_eq!(ids(&h1.ports, |o| &o.id), ["a1", "b1", "b2"]);
        }
    }

    #[test]
    fn a_change_in_a_joined_vpc_concerns_the_hosts_of_both() {
        let before = joined("active");
        let mut state = before.state.clone();
        let Some(Object::Port(port)) = before.state.find(Kind::Port, "r1") else {
            panic!("it is there");
        };
        let mut moved = port.clone();
        moved.host = "h4".into();
        state.insert(Object::Port(moved.clone()));
        let change = Change {
            revision: 2,
            upserts: vec![Object::Port(moved)],
            deletes: vec![],
            ..Change::default()
        };
        let after = before.next(&change, state);
        for host in ["h1", "h2", "h3"] {
            let vpcs = after.vpcs_concerning(host);
            let own = before.vpcs_concerning(host);
            assert!(!after.unchanged_since(1, vpcs.iter().chain(&own)), "{host}");
        }
    }

    /// "inet" is on physnet1, which h2 and its gateway hosts g1 and g2 have; blue's port on h1 has an elastic IP there, and blue a NAT gateway.
    const WAY_OUT: &str = r#"
hosts:
  - {id: h2, vteps: [192.0.2.2, "2001:db8::2"], physical_networks: [physnet1]}
  - {id: g1, vteps: [192.0.2.11], physical_networks: [physnet1]}
  - {id: g2, vteps: [192.0.2.12], physical_networks: [physnet1]}
external_networks:
  - {id: inet, physical_network: physnet1, prefixes: [203.0.113.0/24], gateway_hosts: [g1, g2]}
  - {id: idle, physical_network: physnet2, prefixes: [198.51.100.0/24]}
route_tables:
  - {id: t-b, vpc: blue, routes: [{prefix: 0.0.0.0/0, nat: nat}, {prefix: 172.16.0.0/12, host: h4}]}
elastic_ips:
  - {id: e-a1, external_network: inet, address: 203.0.113.11, port: a1}
  - {id: e-b1, external_network: inet, address: 203.0.113.12, port: b1}
  - {id: e-b3, external_network: inet, address: 203.0.113.13, port: b3}
  - {id: spare, external_network: inet, address: 203.0.113.14}
nat_gateways:
  - id: nat
    vpc: blue
    external_network: inet
    addresses: [203.0.113.20]
    filtering: endpoint_independent
    timeouts: {udp: 600}
    limits: {mappings_per_address: 1000}
    port_forwards:
      - {protocol: tcp, port_min: 80, port: b3}
      - {protocol: tcp, port_min: 443, port: b1}
      - {protocol: tcp, port_min: 444, private_address: 10.0.1.13}
      - {protocol: tcp, port_min: 445, private_address: 10.0.1.12}
"#;

    fn with_way_out(change: impl FnOnce(&mut State)) -> State {
        let objects = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
        let mut state = State::from_objects(objects).unwrap();
        let more: v1::Objects = serde_yaml_ng::from_str(WAY_OUT).unwrap();
        for object in weft_proto::state::explode(more) {
            state.insert(object);
        }
        change(&mut state);
        assert_eq!(validate(&state, Scope::Intent), vec![]);
        state
    }

    fn take(state: &mut State, kind: Kind, id: &str) {
        let id = id.to_owned();
        state.remove(&weft_proto::state::Key { kind, id }).unwrap();
    }

    #[test]
    fn hosts_of_a_vpc_know_its_elastic_ips_its_nat_gateways_and_who_translates() {
        let version = Version::loaded(1, with_way_out(|_| {}));
        for host in ["h1", "h2"] {
            let told = compiled(&version, host);
            assert_eq!(
                ids(&told.elastic_ips, |o| &o.id),
                ["e-a1", "e-b1"],
                "those of all ports of blue that live somewhere, on {host}"
            );
            assert_eq!(ids(&told.external_networks, |o| &o.id), ["inet"]);
            let [nat] = &told.nat_gateways[..] else {
                panic!("{:?}", told.nat_gateways)
            };
            assert!(nat.port_forwards.is_empty() && nat.filtering.is_empty());
            assert_eq!((nat.timeouts, nat.limits), (None, None));
            let hosts = ids(&told.hosts, |o| &o.id);
            assert!(hosts.contains(&"g1") && hosts.contains(&"g2"), "{hosts:?}");
            let g1 = told.hosts.iter().find(|o| o.id == "g1").unwrap();
            assert_eq!(g1.physical_networks, ["physnet1"]);
        }
        let h3 = compiled(&version, "h3");
        assert!(h3.elastic_ips.is_empty() && h3.external_networks.is_empty());
        assert_eq!(ids(&h3.hosts, |o| &o.id), ["h3"]);
    }

    #[test]
    fn a_gateway_host_has_the_vpcs_that_send_to_it_with_all_their_routes_and_no_policy() {
        let version = Version::loaded(1, with_way_out(|_| {}));
        for host in ["g1", "g2"] {
            let told = compiled(&version, host);
            assert_eq!(ids(&told.vpcs, |o| &o.id), ["blue"]);
            assert_eq!(ids(&told.subnets, |o| &o.id), ["a", "b"]);
            assert_eq!(told.subnets[0].route_table, "t-a");
            assert_eq!(told.subnets[1].route_table, "t-b");
            assert!(
                told.subnets
                    .iter()
                    .all(|s| s.network_acl.is_empty() && s.dhcp.is_none())
            );
            assert_eq!(ids(&told.route_tables, |o| &o.id), ["t-a", "t-b"]);
            assert_eq!(ids(&told.ports, |o| &o.id), ["a1", "b1", "b2"]);
            assert!(
                told.ports
                    .iter()
                    .all(|p| p.device.is_none() && p.security_groups.is_empty())
            );
            assert!(told.security_groups.is_empty() && told.network_acls.is_empty());
            // Those of the ports, and those that the routes name.
            assert_eq!(
                ids(&told.hosts, |o| &o.id),
                ["g1", "g2", "h1", "h2", "h3", "h4"]
            );
            let [nat] = &told.nat_gateways[..] else {
                panic!("{:?}", told.nat_gateways)
            };
            let ports: Vec<u32> = nat.port_forwards.iter().map(|f| f.port_min).collect();
            assert_eq!(ports, [443, 445], "not to b3, which is nowhere");
            assert_eq!(nat.filtering, "endpoint_independent");
            assert_eq!(nat.timeouts.map(|it| it.udp), Some(600));
            let limits = nat.limits.map(|it| it.mappings_per_address);
            assert_eq!(limits, Some(1000));
        }
    }

    #[test]
    fn a_gateway_host_is_one_only_for_vpcs_that_need_it() {
        // The elastic IP of h1's port is enough, that of h2's is not.
        let elastic = with_way_out(|state| {
            take(state, Kind::NatGateway, "nat");
            take(state, Kind::RouteTable, "t-b");
            let Some(Object::Subnet(b)) = state.find(Kind::Subnet, "b").cloned() else {
                panic!("it is there")
            };
            state.insert(Object::Subnet(Subnet {
                route_table: String::new(),
                ..b
            }));
        });
        let mut local = elastic.clone();
        take(&mut local, Kind::ElasticIp, "e-a1");
        let elastic = Version::loaded(1, elastic);
        assert_eq!(ids(&compiled(&elastic, "g1").vpcs, |o| &o.id), ["blue"]);
        let local = Version::loaded(1, local);
        let told = compiled(&local, "g1");
        assert!(told.vpcs.is_empty() && told.external_networks.is_empty());
        assert_eq!(ids(&told.hosts, |o| &o.id), ["g1"]);
        let h2 = compiled(&local, "h2");
        assert_eq!(ids(&h2.external_networks, |o| &o.id), ["inet"]);
        assert!(
            !ids(&h2.hosts, |o| &o.id).contains(&"g1"),
            "nothing is sent to it"
        );
    }

    #[test]
    fn a_route_to_an_external_network_has_hosts_told_of_it() {
        let version = Version::loaded(
            1,
            with_way_out(|state| {
                state.insert(Object::RouteTable(RouteTable {
                    id: "t-a".into(),
                    vpc: "blue".into(),
                    routes: vec![v1::Route {
                        prefix: "0.0.0.0/0".into(),
                        external: "idle".into(),
                        ..v1::Route::default()
                    }],
                    ..RouteTable::default()
                }));
            }),
        );
        assert_eq!(
            ids(&compiled(&version, "h1").external_networks, |o| &o.id),
            ["idle", "inet"]
        );
        assert_eq!(
            ids(&compiled(&version, "h2").external_networks, |o| &o.id),
            ["inet"],
            "no port of a is there"
        );
    }

    /// Red without an elastic IP or a NAT gateway.
    fn with_routed(state: &mut State) {
        let Some(Object::ExternalNetwork(network)) = state.find(Kind::ExternalNetwork, "inet")
        else {
            panic!("no network");
        };
        let mut network = network.clone();
        network.routers = vec!["203.0.113.2".into()];
        let routed = [("198.18.0.0/24", "red"), ("198.18.1.0/24", "blue")];
        network.routed = routed
            .map(|(prefix, vpc)| v1::RoutedPrefix {
                prefix: prefix.into(),
                vpc: vpc.into(),
            })
            .into();
        state.insert(Object::ExternalNetwork(network));
    }

    #[test]
    fn gateway_hosts_have_the_vpcs_that_prefixes_are_routed_to_and_others_hear_of_their_own() {
        let without = Version::loaded(1, with_way_out(|_| {}));
        assert_eq!(ids(&compiled(&without, "g1").vpcs, |o| &o.id), ["blue"]);
        let version = Version::loaded(1, with_way_out(with_routed));
        let g1 = compiled(&version, "g1");
        assert_eq!(ids(&g1.vpcs, |o| &o.id), ["blue", "red"]);
        assert_eq!(g1.external_networks[0].routed.len(), 2);
        for (host, vpc) in [("h1", "blue"), ("h3", "red")] {
            let told = compiled(&version, host);
            let [network] = &told.external_networks[..] else {
                panic!("{host}: {:?}", told.external_networks);
            };
            assert_eq!(ids(&network.routed, |o| &o.vpc), [vpc], "{host}");
            assert!(ids(&told.hosts, |o| &o.id).contains(&"g1"), "{host}");
        }
        // Red's is given back: its hosts hear of it, and the gateways lose the VPC.
        let fewer = |network: &mut v1::ExternalNetwork| drop(network.routed.remove(0));
        let Some(Object::ExternalNetwork(network)) =
            version.state.find(Kind::ExternalNetwork, "inet")
        else {
            panic!("no network");
        };
        let mut network = network.clone();
        fewer(&mut network);
        let all = ["g1", "g2", "h1", "h2", "h3"];
        let change = vec![Object::ExternalNetwork(network)];
        assert_eq!(concerned(&version, change, &[]), all);
    }

    #[test]
    fn the_direct_elastic_ip_of_a_port_is_a_member_of_its_groups() {
        let version = Version::loaded(
            1,
            with_way_out(|state| {
                let Some(Object::ElasticIp(elastic)) = state.find(Kind::ElasticIp, "e-b1") else {
                    panic!("no elastic IP");
                };
                let mut elastic = elastic.clone();
                elastic.mode = "direct".into();
                state.insert(Object::ElasticIp(elastic));
            }),
        );
        let h1 = compiled(&version, "h1");
        let db = h1.security_groups.iter().find(|o| o.id == "db").unwrap();
        let address = &h1
            .elastic_ips
            .iter()
            .find(|o| o.id == "e-b1")
            .unwrap()
            .address;
        assert!(db.members.contains(address), "{:?}", db.members);
    }

    /// Ann has blue and red, which a peering may join, and green, with red's prefix; h1 has a port of blue, h2 of red and of green.
    const TENANT: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}]
vpcs: [{id: blue, vni: 1, tenant: ann}, {id: red, vni: 2, tenant: ann}, {id: green, vni: 3, tenant: ann}]
subnets:
  - {id: b, vpc: blue, cidrs: [10.0.0.0/24]}
  - {id: r, vpc: red, cidrs: [10.0.1.0/24]}
  - {id: g, vpc: green, cidrs: [10.0.1.0/24]}
prefix_lists: [{id: ann/partners, tenant: ann, prefixes: [198.51.100.0/24]}]
security_groups:
  - {id: ann/app, tenant: ann, rules: [{direction: ingress, remote_group: ann/app}, {direction: ingress, remote_prefix_list: ann/partners}]}
  - {id: own, vpc: blue, rules: [{direction: ingress, remote_group: ann/app}]}
ports:
  - {id: b1, vpc: blue, subnet: b, mac: "02:00:00:00:00:01", addresses: [10.0.0.11], security_groups: [ann/app, own], host: h1, device: {kind: netdev, name: v1}}
  - {id: b2, vpc: blue, subnet: b, mac: "02:00:00:00:00:02", addresses: [10.0.0.12], security_groups: [ann/app], host: h2, device: {kind: netdev, name: v1}}
  - {id: r1, vpc: red, subnet: r, mac: "02:00:00:00:00:01", addresses: [10.0.1.11], security_groups: [ann/app], host: h2, device: {kind: netdev, name: v2}}
  - {id: g1, vpc: green, subnet: g, mac: "02:00:00:00:00:01", addresses: [10.0.1.12], security_groups: [ann/app], host: h2, device: {kind: netdev, name: v3}}
"#;

    #[test]
    fn a_tenants_group_has_the_members_that_a_vpc_can_reach() {
        let objects: v1::Objects = serde_yaml_ng::from_str(TENANT).unwrap();
        let version = |state: SideState| {
            let mut objects = objects.clone();
            objects.peerings.push(v1::Peering {
                id: "p".into(),
                requester: "blue".into(),
                accepter: "red".into(),
                requester_state: state.name().into(),
                accepter_state: SideState::Active.name().into(),
                ..v1::Peering::default()
            });
            let state = State::from_objects(objects).unwrap();
            assert_eq!(validate(&state, Scope::Intent), vec![]);
            Version::loaded(1, state)
        };
        let joined = version(SideState::Active);
        let h1 = compiled(&joined, "h1");
        assert_eq!(ids(&h1.security_groups, |o| &o.id), ["ann/app@blue", "own"],);
        let app = &h1.security_groups[0];
        assert_eq!(app.members, ["10.0.0.11", "10.0.0.12", "10.0.1.11"]);
        assert_eq!(app.rules[0].remote_group, "ann/app@blue");
        assert_eq!(app.rules[1].remote_prefix_list, "ann/partners@blue");
        assert_eq!(h1.security_groups[1].rules[0].remote_group, "ann/app@blue");
        assert_eq!(h1.prefix_lists[0].id, "ann/partners@blue");
        assert_eq!(h1.prefix_lists[0].prefixes, ["198.51.100.0/24"]);
        let b1 = h1.ports.iter().find(|port| port.id == "b1").unwrap();
        assert_eq!(b1.security_groups, ["ann/app@blue", "own"]);
        // What green has is no member for blue, nor the other way round.
        let h2 = compiled(&joined, "h2");
        let green = h2.security_groups.iter().find(|o| o.id == "ann/app@green");
        assert_eq!(green.unwrap().members, ["10.0.1.12"]);
        let frozen = version(SideState::Frozen);
        let h1 = compiled(&frozen, "h1");
        assert_eq!(h1.security_groups[0].members, ["10.0.0.11", "10.0.0.12"]);
    }

    #[test]
    fn a_change_to_a_tenants_group_or_list_concerns_its_vpcs() {
        let mut objects: v1::Objects = serde_yaml_ng::from_str(TENANT).unwrap();
        objects.hosts.push(Host {
            id: "h3".into(),
            vteps: vec!["192.0.2.3".into()],
            ..Host::default()
        });
        let before = Version::loaded(1, State::from_objects(objects).unwrap());
        let Some(Object::PrefixList(list)) = before.state.find(Kind::PrefixList, "ann/partners")
        else {
            panic!("no list");
        };
        let mut list = list.clone();
        list.prefixes.push("203.0.113.0/24".into());
        let change = vec![Object::PrefixList(list)];
        assert_eq!(concerned(&before, change, &[]), ["h1", "h2"]);
    }

    #[test]
    fn gateway_hosts_count_for_the_mtu_that_a_vpc_is_told() {
        let state = with_way_out(|state| {
            let Some(Object::Host(g2)) = state.find(Kind::Host, "g2").cloned() else {
                panic!("it is there")
            };
            // No other host of red's has an IPv6 tunnel address.
            state.insert(Object::Host(Host {
                vteps: vec!["192.0.2.12".into(), "2001:db8::12".into()],
                ..g2
            }));
            state.insert(Object::ElasticIp(ElasticIp {
                id: "e-r1".into(),
                external_network: "inet".into(),
                address: "203.0.113.30".into(),
                port: "r1".into(),
                ..ElasticIp::default()
            }));
        });
        let version = Version::loaded(1, state);
        let mtu = |host: &str| {
            let subnets = compiled(&version, host).subnets;
            subnets.iter().find(|s| s.id == "r").unwrap().mtu
        };
        assert_eq!((mtu("h3"), mtu("g1")), (1430, 1430));
    }

    /// The version after a change, and which of these hosts it is said to concern.
    fn concerned(before: &Version, upserts: Vec<Object>, deletes: &[(Kind, &str)]) -> Vec<String> {
        let keys = deletes.iter().map(|(kind, id)| weft_proto::state::Key {
            kind: *kind,
            id: (*id).to_owned(),
        });
        let change = Change {
            revision: 2,
            upserts,
            deletes: keys.collect(),
            ..Change::default()
        };
        let mut state = before.state.clone();
        for key in &change.deletes {
            state.remove(key);
        }
        for object in &change.upserts {
            state.insert(object.clone());
        }
        assert_eq!(validate(&state, Scope::Intent), vec![]);
        let after = before.next(&change, state);
        let mut found = Vec::new();
        for host in ["g1", "g2", "h1", "h2", "h3", "h4"] {
            let (old, new) = (before.vpcs_concerning(host), after.vpcs_concerning(host));
            if after.unchanged_since(1, old.union(&new)) {
                assert_eq!(compile(before, host), compile(&after, host), "{host}");
            } else {
                found.push(host.to_owned());
            }
        }
        found
    }

    #[test]
    fn a_change_outside_concerns_the_hosts_and_gateways_of_the_vpcs_that_use_it() {
        let before = Version::loaded(1, with_way_out(|_| {}));
        let elastic = |id: &str, address: &str, port: &str| {
            Object::ElasticIp(ElasticIp {
                id: id.into(),
                external_network: "inet".into(),
                address: address.into(),
                port: port.into(),
                ..ElasticIp::default()
            })
        };
        let none: [&str; 0] = [];
        let blue = ["g1", "g2", "h1", "h2"];
        let bound = vec![elastic("spare", "203.0.113.14", "b2")];
        assert_eq!(concerned(&before, bound, &[]), blue);
        assert_eq!(
            concerned(&before, vec![], &[(Kind::ElasticIp, "e-a1")]),
            blue
        );
        assert_eq!(
            concerned(&before, vec![], &[(Kind::ElasticIp, "spare")]),
            none
        );
        let unbound = vec![elastic("spare2", "203.0.113.15", "")];
        assert_eq!(concerned(&before, unbound, &[]), none);
        // Red's first, by which the gateways get red.
        let red = vec![elastic("spare", "203.0.113.14", "r1")];
        assert_eq!(concerned(&before, red, &[]), ["g1", "g2", "h3"]);
        // From blue to red.
        let moved = vec![elastic("e-a1", "203.0.113.11", "r1")];
        assert_eq!(
            concerned(&before, moved, &[]),
            ["g1", "g2", "h1", "h2", "h3"]
        );
        let network = |id: &str, change: fn(&mut v1::ExternalNetwork)| {
            let mut network = before.state.external_network(id).unwrap().clone();
            change(&mut network);
            vec![Object::ExternalNetwork(network)]
        };
        let wider = network("inet", |n| n.prefixes.push("192.0.2.128/25".into()));
        assert_eq!(concerned(&before, wider, &[]), blue);
        let fewer = network("inet", |n| n.gateway_hosts.truncate(1));
        assert_eq!(concerned(&before, fewer, &[]), blue);
        let idle = network("idle", |n| n.mtu = 1400);
        assert_eq!(concerned(&before, idle, &[]), none);
    }

    #[test]
    fn a_host_with_ports_on_an_external_network_is_told_the_network() {
        let mut objects: v1::Objects = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
        let more = "[{id: lan, physical_network: physnet1, vlan: 7, mtu: 9000}]";
        objects.external_networks = serde_yaml_ng::from_str(more).unwrap();
        for host in &mut objects.hosts {
            host.physical_networks = vec!["physnet1".into()];
        }
        let red = objects.subnets.iter_mut().find(|subnet| subnet.id == "r");
        red.unwrap().external_network = "lan".into();
        let state = State::from_objects(objects).unwrap();
        assert_eq!(validate(&state, Scope::Intent), vec![]);
        let version = Version::loaded(1, state.clone());
        let h3 = compiled(&version, "h3");
        assert_eq!(ids(&h3.external_networks, |o| &o.id), ["lan"]);
        assert_eq!(h3.subnets[0].mtu, 0, "the network's");
        assert!(compiled(&version, "h2").external_networks.is_empty());
        // A change of the network concerns those on it.
        let mut network = state.external_network("lan").unwrap().clone();
        network.vlan = 8;
        let change = Change {
            revision: 2,
            upserts: vec![Object::ExternalNetwork(network)],
            deletes: vec![],
            ..Change::default()
        };
        let mut next = state;
        next.insert(change.upserts[0].clone());
        let next = version.next(&change, next);
        assert_eq!(compiled(&next, "h3").external_networks[0].vlan, 8);
    }
}
