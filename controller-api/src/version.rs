//! One version of the intent: a revision, its objects, what hosts are told of each VPC, and which hosts each change affects.
//!
//! Immutable and shared by all streams. The next version is made from this one by what a change touches, and shares all else.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};

use weft_proto::persistent::PersistentSet;
use weft_proto::state::{Change as StateChange, Key, Kind, Layer, Object, State};
use weft_proto::v1::{ElasticIp, Peering, Port, SecurityGroup};

use crate::learning::Address;
use crate::store::Change;
use crate::view::{HostIds, VpcView};

/// Changes whose VPCs are remembered: a host that is as far behind need not look at all of its VPCs.
const REMEMBERED: usize = 64;

/// Changes that are remembered of a VPC whose ports are learned: a host that is not woken for others' ports may be as far behind.
const REMEMBERED_LEARNED: usize = 1024;

/// With more objects in a change, what hosts are told of a VPC is made anew.
const FEW: usize = 64;

/// The intent as of one revision.
#[derive(Debug, Default)]
pub struct Version {
    /// Increases by one with each change.
    pub revision: u64,
    /// Every object.
    pub state: State,
    /// In a VPC with more ports that live somewhere, hosts learn them; 0: in none.
    learn_above: usize,
    vpcs: PersistentSet<Arc<Slot>>,
    /// When any host last changed that was there before.
    hosts_changed: u64,
    /// Ports that still are sent on from where they were.
    moving: BTreeSet<String>,
    /// VPCs, each with the id of an elastic IP that is bound to a port or a load balancer of it.
    elastic_ips: Pairs,
    /// VPCs, each with a host that is a gateway to an external network for it.
    gateways: Pairs,
    /// The same, each host with a VPC.
    vpcs_of_gateways: Pairs,
    recent: VecDeque<Touched>,
}

/// The VPCs that one change concerns.
#[derive(Debug, Clone)]
struct Touched {
    revision: u64,
    vpcs: Arc<[Arc<str>]>,
    /// Hosts that it makes.
    hosts: Arc<[Arc<str>]>,
    small: Option<Arc<Small>>,
}

/// A change of ports to which no elastic IP is bound, and of rules of groups that name no other groups or lists than before.
#[derive(Debug, Default)]
pub(crate) struct Small {
    /// The hosts that these ports are on, were on, or came from.
    hosts: BTreeSet<String>,
    pub(crate) ports: BTreeSet<String>,
    pub(crate) groups: BTreeSet<String>,
}

impl Small {
    fn of(states: [&State; 2], changes: &[StateChange<'_>]) -> Option<Arc<Self>> {
        let mut small = Self::default();
        for change in changes {
            match (change.old, change.new) {
                (Some(Object::SecurityGroup(old)), Some(Object::SecurityGroup(new)))
                    if (&old.vpc, &old.tenant) == (&new.vpc, &new.tenant)
                        && named_by(old) == named_by(new) =>
                {
                    small.groups.insert(new.id.clone());
                }
                (old, new) => {
                    for object in [old, new].into_iter().flatten() {
                        let Object::Port(port) = object else {
                            return None;
                        };
                        let mut states = states.iter();
                        if states.any(|it| it.elastic_ips_of_port(&port.id).next().is_some()) {
                            return None;
                        }
                        small.ports.insert(port.id.clone());
                        small.hosts.insert(port.host.clone());
                        small.hosts.insert(port.moved_from.clone());
                    }
                }
            }
        }
        Some(Arc::new(small))
    }
}

/// The groups and the prefix lists that a group's rules name.
fn named_by(group: &SecurityGroup) -> BTreeSet<[&str; 2]> {
    let rules = group.rules.iter();
    rules
        .map(|rule| [&*rule.remote_group, &*rule.remote_prefix_list])
        .collect()
}

/// What is known of a VPC.
#[derive(Debug)]
struct Slot {
    id: Arc<str>,
    /// When it, or any object in it, last changed.
    changed: u64,
    /// Made when it is first asked for.
    view: OnceLock<Arc<VpcView>>,
    /// Where hosts learn its ports.
    log: Option<Log>,
}

/// The newest changes of a VPC whose ports are learned.
#[derive(Debug, Clone)]
struct Log {
    /// All after this revision were small, and are here.
    from: u64,
    changes: PersistentSet<(u64, Arc<Small>)>,
}

impl Log {
    fn from(from: u64) -> Self {
        let changes = PersistentSet::default();
        Self { from, changes }
    }

    /// With one more.
    fn with(&self, revision: u64, small: &Arc<Small>) -> Self {
        let mut log = self.clone();
        let item = (revision, Arc::clone(small));
        log.changes.insert(item, |known| known.0.cmp(&revision));
        if log.changes.len() > REMEMBERED_LEARNED {
            let oldest = log.changes.iter().next().map_or(revision, |known| known.0);
            log.changes.remove(|known| known.0.cmp(&oldest));
            log.from = oldest;
        }
        log
    }

    /// The changes after a revision; none: that is too long ago to tell.
    fn since(&self, revision: u64) -> Option<impl Iterator<Item = &Arc<Small>>> {
        let after = move |known: &(u64, Arc<Small>)| known.0.cmp(&(revision + 1));
        let changes = self.changes.iter_from(after).map(|known| &known.1);
        (self.from <= revision).then_some(changes)
    }
}

/// Whom changes may concern.
#[derive(Debug, Default)]
pub struct Concern<'a> {
    /// Hosts that are told of them whatever they can do.
    pub hosts: BTreeSet<&'a str>,
    /// Changes of ports that hosts learn.
    pub learned: Vec<LearnedChange<'a>>,
}

/// Changes of ports of a VPC that hosts learn.
#[derive(Debug)]
pub struct LearnedChange<'a> {
    /// The VPC.
    pub vpc: &'a str,
    /// The hosts that are told of the VPC: those that cannot learn hear of the changes, of the others those that have asked.
    pub hosts: BTreeSet<&'a str>,
    /// What these ports had, and have.
    pub addresses: BTreeSet<Address>,
}

/// Pairs of names, in order.
#[derive(Debug, Clone, Default)]
struct Pairs(PersistentSet<(Arc<str>, Arc<str>)>);

impl Pairs {
    fn insert(&mut self, a: &str, b: &str) {
        let order = |pair: &(Arc<str>, Arc<str>)| (&*pair.0, &*pair.1).cmp(&(a, b));
        self.0.insert((a.into(), b.into()), order);
    }

    fn remove(&mut self, a: &str, b: &str) {
        self.0.remove(|pair| (&*pair.0, &*pair.1).cmp(&(a, b)));
    }

    fn has(&self, a: &str, b: &str) -> bool {
        let found = self.0.get(|pair| (&*pair.0, &*pair.1).cmp(&(a, b)));
        found.is_some()
    }

    /// What is paired with a name.
    fn of<'a>(&'a self, a: &'a str) -> impl Iterator<Item = &'a str> {
        let from = self
            .0
            .iter_from(move |pair| (&*pair.0, &*pair.1).cmp(&(a, "")));
        from.take_while(move |pair| &*pair.0 == a)
            .map(|pair| &*pair.1)
    }
}

impl Version {
    /// The version that was stored.
    pub fn loaded(revision: u64, state: State) -> Self {
        let mut version = Self {
            revision,
            moving: state.of_kind(Kind::Port).filter_map(moving).collect(),
            hosts_changed: revision,
            ..Self::default()
        };
        for object in state.of_kind(Kind::Vpc) {
            version.set_slot(&object.id().into(), revision, (None, None));
        }
        let mut outside: BTreeSet<&str> = BTreeSet::new();
        for object in state.of_kind(Kind::ElasticIp) {
            if let Object::ElasticIp(elastic) = object
                && let Some(vpc) = state.vpc_of(elastic)
            {
                version.elastic_ips.insert(vpc, &elastic.id);
                outside.insert(vpc);
            }
        }
        let nat_gateways = state.of_kind(Kind::NatGateway).filter_map(Object::vpc);
        outside.extend(nat_gateways);
        let networks = state.of_kind(Kind::ExternalNetwork);
        outside.extend(networks.flat_map(Object::vpcs));
        for vpc in outside {
            version.find_gateways(&state, vpc);
        }
        version.state = state;
        version
    }

    /// The same, where hosts learn the ports of a VPC that has more than so many which live somewhere; 0: of none.
    #[must_use]
    pub fn learning_above(mut self, ports: usize) -> Self {
        self.learn_above = ports;
        let all: Vec<Arc<Slot>> = self.vpcs.iter().cloned().collect();
        for slot in all {
            let learns = self.learns(&self.state, &slot.id, false);
            let log = learns.then(|| Log::from(slot.changed));
            self.set_slot(&slot.id, slot.changed, (None, log));
        }
        self
    }

    /// Whether hosts learn the ports of a VPC in a state. `before`: whether they did. It ends well below where it begins.
    fn learns(&self, state: &State, vpc: &str, before: bool) -> bool {
        // On an external network nobody asks: others there are on no host.
        if state.wire_of(vpc).is_some() {
            return false;
        }
        let ports = state.placed_ports(vpc);
        let stays = before && ports.saturating_mul(10) >= self.learn_above.saturating_mul(9);
        self.learn_above != 0 && (ports > self.learn_above || stays)
    }

    /// Whether hosts that can learn the ports of a VPC.
    pub fn is_learned(&self, vpc: &str) -> bool {
        self.slot(vpc).is_some_and(|slot| slot.log.is_some())
    }

    /// The version after a change that led to `state`.
    pub fn next(&self, change: &Change, state: State) -> Self {
        let mut changes = self.state.changes_to(&state);
        // Hosts are not told of them.
        changes.retain(|change| !change.is_of_labels());
        let states = [&self.state, &state];
        let mut touched: BTreeSet<&str> = BTreeSet::new();
        let mut next = Self {
            revision: change.revision,
            state: State::default(),
            learn_above: self.learn_above,
            vpcs: self.vpcs.clone(),
            hosts_changed: self.hosts_changed,
            moving: self.moving.clone(),
            elastic_ips: self.elastic_ips.clone(),
            gateways: self.gateways.clone(),
            vpcs_of_gateways: self.vpcs_of_gateways.clone(),
            recent: self.recent.clone(),
        };
        for changed in &changes {
            for object in [changed.old, changed.new].into_iter().flatten() {
                touched.extend(object.vpcs());
                if let Some(tenant) = object.tenant_wide() {
                    touched.extend(states.iter().flat_map(|it| it.vpcs_of_tenant(tenant)));
                }
                match object {
                    Object::Port(port) => {
                        let ids = states
                            .iter()
                            .flat_map(|it| it.elastic_ips_of_port(&port.id));
                        for elastic in ids {
                            next.bind_elastic_ip(states, &elastic.id, &mut touched);
                        }
                    }
                    Object::LoadBalancer(balancer) => {
                        let bound = states.map(|it| it.elastic_ips_of_balancer(&balancer.id));
                        for elastic in bound.into_iter().flatten() {
                            next.bind_elastic_ip(states, &elastic.id, &mut touched);
                        }
                    }
                    Object::ElasticIp(elastic) => {
                        next.bind_elastic_ip(states, &elastic.id, &mut touched);
                    }
                    Object::ExternalNetwork(network) => {
                        let users = states.iter().flat_map(|state| {
                            let users = state.users_of(&network.id);
                            users.filter_map(|user| vpc_of(state, user))
                        });
                        touched.extend(users);
                    }
                    _ => {}
                }
            }
            match (changed.old, changed.new) {
                (Some(old), Some(new)) if old.kind() == Kind::Host && new.kind() == Kind::Host => {
                    next.hosts_changed = change.revision;
                }
                (Some(old), None) if old.kind() == Kind::Host => {
                    next.hosts_changed = change.revision;
                }
                // Ports may have left one of that name.
                (None, Some(Object::Host(new)))
                    if self.state.vpcs_with_ports_on(&new.id).next().is_some() =>
                {
                    next.hosts_changed = change.revision;
                }
                (Some(Object::Port(old)), None) => drop(next.moving.remove(&old.id)),
                (_, Some(new @ Object::Port(port))) => match moving(new) {
                    Some(id) => drop(next.moving.insert(id)),
                    None => drop(next.moving.remove(&port.id)),
                },
                _ => {}
            }
        }
        let is_of_hosts = next.hosts_changed == change.revision;
        if is_of_hosts {
            // Where gateways are needed depends on what hosts have, and what may be sent on where all tunnels lead.
            let all: Vec<Arc<Slot>> = next.vpcs.iter().cloned().collect();
            for slot in all {
                next.find_gateways(&state, &slot.id);
                next.set_slot(&slot.id, slot.changed, (None, slot.log.clone()));
            }
        }
        let small = Small::of(states, &changes);
        for vpc in &touched {
            let before: BTreeSet<&str> = self.gateways.of(vpc).collect();
            next.find_gateways(&state, vpc);
            if state.of_vpc(vpc).next().is_none() {
                next.vpcs.remove(|slot| (*slot.id).cmp(vpc));
                continue;
            }
            let slot = self.slot(vpc);
            let id = slot.map_or_else(|| Arc::from(*vpc), |slot| Arc::clone(&slot.id));
            let known = slot.and_then(|slot| slot.view.get());
            let log = slot.and_then(|slot| slot.log.as_ref());
            let is_learned = self.learns(&state, vpc, log.is_some());
            let log = is_learned.then(|| match (log, &small) {
                (Some(log), Some(small)) if changes.len() <= FEW => {
                    log.with(change.revision, small)
                }
                _ => Log::from(change.revision),
            });
            let is_small = changes.len() <= FEW && !is_of_hosts;
            let view = known.filter(|_| is_small).map(|view| {
                let gateways = if next.gateways.of(vpc).eq(before.iter().copied()) {
                    Arc::clone(&view.gateways)
                } else {
                    next.gateway_ids(vpc)
                };
                let how = (gateways, is_learned);
                Arc::new(view.after((&self.state, &state), &changes, how))
            });
            next.set_slot(&id, change.revision, (view, log));
        }
        if next.recent.len() == REMEMBERED {
            next.recent.pop_front();
        }
        next.recent.push_back(Touched {
            revision: change.revision,
            vpcs: touched.iter().map(|vpc| Arc::from(*vpc)).collect(),
            small,
            hosts: changes
                .iter()
                .filter(|changed| changed.old.is_none())
                .filter_map(|changed| match changed.new {
                    Some(Object::Host(host)) => Some(Arc::from(&*host.id)),
                    _ => None,
                })
                .collect(),
        });
        next.state = state;
        next
    }

    fn slot(&self, vpc: &str) -> Option<&Arc<Slot>> {
        self.vpcs.get(|slot| (*slot.id).cmp(vpc))
    }

    fn set_slot(
        &mut self,
        id: &Arc<str>,
        changed: u64,
        (view, log): (Option<Arc<VpcView>>, Option<Log>),
    ) {
        let slot = Slot {
            id: Arc::clone(id),
            changed,
            view: view.map_or_else(OnceLock::new, OnceLock::from),
            log,
        };
        self.vpcs.insert(Arc::new(slot), |slot| slot.id.cmp(id));
    }

    /// Notes in which VPC an elastic IP is now.
    fn bind_elastic_ip<'s>(
        &mut self,
        states: [&'s State; 2],
        id: &str,
        touched: &mut BTreeSet<&'s str>,
    ) {
        let vpcs = states.map(|state| match state.find(Kind::ElasticIp, id) {
            Some(Object::ElasticIp(elastic)) => state.vpc_of(elastic),
            _ => None,
        });
        if let Some(vpc) = vpcs[0] {
            self.elastic_ips.remove(vpc, id);
        }
        if let Some(vpc) = vpcs[1] {
            self.elastic_ips.insert(vpc, id);
        }
        touched.extend(vpcs.into_iter().flatten());
    }

    /// Finds the hosts that are gateways for a VPC: for its NAT gateways, for elastic IPs of ports on hosts without the physical network, and for
    /// prefixes that are routed to it.
    fn find_gateways(&mut self, state: &State, vpc: &str) {
        let mut found: BTreeSet<&str> = BTreeSet::new();
        let elastic_ips = self.elastic_ips.of(vpc);
        let elastic_ips = elastic_ips.filter_map(|id| state.find(Kind::ElasticIp, id));
        let users = elastic_ips.chain(state.of_vpc_and_kind(vpc, Kind::NatGateway));
        for object in users {
            if let Some((_, network)) = state.needs_gateway(object) {
                found.extend(network.gateway_hosts.iter().map(String::as_str));
            }
        }
        for object in state.networks_that_route_to(vpc) {
            if let Object::ExternalNetwork(network) = object {
                found.extend(network.gateway_hosts.iter().map(String::as_str));
            }
        }
        let known: Vec<String> = self.gateways.of(vpc).map(str::to_owned).collect();
        for gone in known.iter().filter(|host| !found.contains(host.as_str())) {
            self.gateways.remove(vpc, gone);
            self.vpcs_of_gateways.remove(gone, vpc);
        }
        for host in found {
            if !self.gateways.has(vpc, host) {
                self.gateways.insert(vpc, host);
                self.vpcs_of_gateways.insert(host, vpc);
            }
        }
    }

    fn gateway_ids(&self, vpc: &str) -> HostIds {
        Arc::new(self.gateways.of(vpc).map(Arc::from).collect())
    }

    /// What hosts are told of a VPC. Made by whoever asks first; none for a VPC that has nothing.
    pub(crate) fn view(&self, vpc: &str) -> Option<&Arc<VpcView>> {
        let slot = self.slot(vpc)?;
        let make = || {
            let how = (self.gateway_ids(vpc), slot.log.is_some());
            Arc::new(VpcView::new(&self.state, &slot.id, how))
        };
        Some(slot.view.get_or_init(make))
    }

    /// When any host last changed that was there before.
    pub(crate) fn hosts_changed(&self) -> u64 {
        self.hosts_changed
    }

    /// The VPCs that changes after a revision concern; none: that is too long ago to tell.
    pub(crate) fn touched_since(&self, revision: u64) -> Option<BTreeSet<&str>> {
        let oldest = self.recent.front()?.revision;
        if self.revision != revision && oldest > revision + 1 {
            return None;
        }
        let newer = self.recent.iter().filter(|it| it.revision > revision);
        Some(
            newer
                .flat_map(|it| it.vpcs.iter().map(|vpc| &**vpc))
                .collect(),
        )
    }

    /// What changed in these VPCs after a revision, if that was nothing but ports, of which none is on a host, was there, or came from there, and rules
    /// that name what they did; none, too, where that is too long ago to tell.
    pub(crate) fn only_small_changes<'a>(
        &'a self,
        revision: u64,
        vpcs: &[&str],
        host: &str,
    ) -> Option<Vec<&'a Small>> {
        let mut found: Vec<&Small> = Vec::new();
        let mut others: Vec<&str> = Vec::new();
        for vpc in vpcs {
            if !self.has_changed(vpc, revision) {
                continue;
            }
            let log = self.slot(vpc).and_then(|slot| slot.log.as_ref());
            match log.and_then(|log| log.since(revision)) {
                Some(changes) => found.extend(changes.map(|small| &**small)),
                None => others.push(vpc),
            }
        }
        if !others.is_empty() {
            let oldest = self.recent.front()?.revision;
            if oldest > revision + 1 {
                return None;
            }
            let newer = self.recent.iter().filter(|it| it.revision > revision);
            let touching = newer.filter(|it| it.vpcs.iter().any(|vpc| others.contains(&&**vpc)));
            for change in touching {
                found.push(change.small.as_ref()?);
            }
        }
        let is_near = |small: &&Small| small.hosts.contains(host);
        (!found.iter().any(is_near)).then_some(found)
    }

    /// Whether a VPC, or anything in it, has changed after a revision.
    pub(crate) fn has_changed(&self, vpc: &str, revision: u64) -> bool {
        self.slot(vpc).is_none_or(|slot| slot.changed > revision)
    }

    /// Whether a host is told of a VPC for itself: it has ports of it, or has just lost some, or is a gateway for it.
    pub fn is_own(&self, vpc: &str, host: &str) -> bool {
        self.state.has_port_on(vpc, host)
            || self.state.ports_that_left(vpc, host).next().is_some()
            || self.gateways.has(vpc, host)
    }

    /// The hosts that the change which led from `before` to this version may concern, if none learns ports; none: any.
    pub fn concerned<'a>(&'a self, before: &'a Self) -> Option<BTreeSet<&'a str>> {
        let concern = self.concern(before)?;
        let mut hosts = concern.hosts;
        hosts.extend(concern.learned.into_iter().flat_map(|it| it.hosts));
        Some(hosts)
    }

    /// Whom the changes that led from `before` to this version may concern; none: all.
    pub fn concern<'a>(&'a self, before: &'a Self) -> Option<Concern<'a>> {
        if self.hosts_changed != before.hosts_changed {
            return None;
        }
        let mut concern = Concern::default();
        let newer = self.recent.iter();
        let newer = newer.filter(|it| it.revision > before.revision);
        let hosts = newer.flat_map(|it| it.hosts.iter().map(|host| &**host));
        concern.hosts.extend(hosts);
        let mut all: BTreeSet<&str> = BTreeSet::new();
        for vpc in self.touched_since(before.revision)? {
            let mut near = BTreeSet::from([vpc]);
            for version in [before, self] {
                near.extend(version.state.peerings_of(vpc).flat_map(Peering::vpcs));
            }
            let Some(small) = self.learned_since(before, vpc) else {
                all.extend(near);
                continue;
            };
            let mut change = LearnedChange {
                vpc,
                hosts: BTreeSet::new(),
                addresses: BTreeSet::new(),
            };
            // A gateway is told of all ports.
            concern.hosts.extend(before.gateways_of(vpc));
            concern.hosts.extend(self.gateways_of(vpc));
            for near in near {
                change.hosts.extend(before.hosts_of(near));
                change.hosts.extend(self.hosts_of(near));
            }
            for small in small {
                concern.hosts.extend(small.hosts.iter().map(String::as_str));
                for (id, version) in small.ports.iter().flat_map(|id| [(id, before), (id, self)]) {
                    if let Some(Object::Port(port)) = version.state.find(Kind::Port, id)
                        && port.vpc == vpc
                    {
                        change.addresses.extend(Address::of_port(port));
                    }
                }
            }
            concern.learned.push(change);
        }
        for vpc in all {
            concern.hosts.extend(before.hosts_of(vpc));
            concern.hosts.extend(self.hosts_of(vpc));
        }
        Some(concern)
    }

    /// What changed in a VPC after another version, if that was ports alone which hosts learn, and only those hosts hear of that have asked.
    fn learned_since<'a>(&'a self, before: &Self, vpc: &str) -> Option<Vec<&'a Small>> {
        let (old, new) = (before.slot(vpc)?, self.slot(vpc)?);
        let changes = new.log.as_ref()?.since(before.revision)?;
        let changes: Vec<&Small> = changes.map(|small| &**small).collect();
        let (old, new) = (old.view.get()?, new.view.get()?);
        let always = (old.always.as_ref()?, new.always.as_ref()?);
        // All hosts are told the names of ports that none of them has asked for.
        let is_same = |of: fn(&VpcView) -> &Layer| of(old).digest() == of(new).digest();
        if always.0.told.digest() != always.1.told.digest()
            || old.gateways != new.gateways
            || !is_same(|view| &view.names)
        {
            return None;
        }
        let ports = changes.iter().flat_map(|small| &small.ports);
        let is_always = |id: &String| always.0.has(id) || always.1.has(id);
        let has_rules = changes.iter().any(|small| !small.groups.is_empty());
        (!has_rules && !ports.into_iter().any(is_always)).then_some(changes)
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
        let with_ports = self.state.vpcs_with_ports_on(host);
        let all = with_ports.chain(self.vpcs_of_gateways.of(host));
        all.map(str::to_owned).collect()
    }

    /// The hosts with ports of a VPC.
    pub fn port_hosts_of<'a>(&'a self, vpc: &'a str) -> impl Iterator<Item = &'a str> {
        self.state.hosts_with_ports(vpc)
    }

    /// Whether a host has ports of a VPC.
    pub fn has_ports(&self, vpc: &str, host: &str) -> bool {
        self.state.has_port_on(vpc, host)
    }

    /// The hosts with ports of a VPC, the ones that ports of it have just left, and its gateways to external networks.
    pub fn hosts_of<'a>(&'a self, vpc: &'a str) -> impl Iterator<Item = &'a str> {
        let ports = self.port_hosts_of(vpc).chain(self.state.hosts_left(vpc));
        ports.chain(self.gateways_of(vpc))
    }

    /// The VPCs of [`Self::vpcs_of`], and those that peerings join to them.
    pub fn vpcs_concerning(&self, host: &str) -> BTreeSet<String> {
        let mut all = self.vpcs_of(host);
        let own = all.iter();
        let peerings = own.flat_map(|vpc| self.state.peerings_of(vpc));
        let joined: Vec<String> = peerings
            .flat_map(|peering| peering.vpcs().map(str::to_owned))
            .collect();
        all.extend(joined);
        all
    }

    /// The elastic IPs that are bound to ports and load balancers of a VPC.
    pub fn elastic_ips_of<'a>(&'a self, vpc: &'a str) -> impl Iterator<Item = &'a ElasticIp> {
        self.elastic_ips
            .of(vpc)
            .filter_map(|id| match self.state.find(Kind::ElasticIp, id) {
                Some(Object::ElasticIp(elastic)) => Some(elastic),
                _ => None,
            })
    }

    /// The hosts that are gateways to external networks for a VPC: for its NAT gateways, for elastic IPs of ports on hosts without the physical
    /// network, and for prefixes that are routed to it.
    pub fn gateways_of<'a>(&'a self, vpc: &'a str) -> impl Iterator<Item = &'a str> {
        self.gateways.of(vpc)
    }

    /// Whether a host is a gateway to an external network for a VPC.
    pub fn is_gateway(&self, vpc: &str, host: &str) -> bool {
        self.gateways.has(vpc, host)
    }

    /// Every object in a VPC, the VPC itself among them, in key order.
    pub fn objects_of<'a>(&'a self, vpc: &'a str) -> impl Iterator<Item = &'a Object> {
        self.state.of_vpc(vpc)
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
        self.hosts_changed <= revision && !vpcs.any(|vpc| self.has_changed(vpc, revision))
    }
}

/// The VPC in which something uses an external network.
fn vpc_of<'s>(state: &'s State, user: &'s Object) -> Option<&'s str> {
    match user {
        Object::ElasticIp(elastic) => state.vpc_of(elastic),
        other => other.vpc(),
    }
}

/// The id of a port that has moved and still is sent on from where it was.
fn moving(object: &Object) -> Option<String> {
    match object {
        Object::Port(port) if !port.moved_from.is_empty() => Some(port.id.clone()),
        _ => None,
    }
}
