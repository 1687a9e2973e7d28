//! What hosts find out about their own ports and others have to know (decision 020): whether members of load balancers serve, whether appliances live, what ports have joined of
//! multicast groups, and which port holds a virtual address.
//!
//! No part of the intent: nothing of it is stored. A host says all of it when it attaches, and then what changes; it stays known until the host says
//! otherwise or is no longer in the intent, so that a host which is not attached for a while takes nothing from anybody. All hosts of a VPC are told, in
//! states of the revision that they have ([`crate::node`]).
//!
//! Where two hosts say something of the same, as when a port has moved, the one that said it last is right, and the other one has never said it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use weft_proto::persistent::PersistentSet;
use weft_proto::state::{Entry, Key, Kind, Layer, Object, State, collect, explode};
use weft_proto::v1::{
    self, AddressHolder, FoundByHost, FoundByHosts, Listener, LoadBalancer, MemberHealth,
    MulticastListener, PortHealth,
};

use crate::version::Version;

/// What is kept of a host.
const OF_HOST: usize = 16_384;
/// Bytes of one.
const LARGEST: usize = 1024;
/// The kinds of what is found.
const KINDS: [Kind; 4] = [
    Kind::MemberHealth,
    Kind::PortHealth,
    Kind::MulticastListener,
    Kind::AddressHolder,
];

static NOTHING: LazyLock<Layer> = LazyLock::new(Layer::default);

/// What is known at a time, by VPC. Copies share what they have in common.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    vpcs: PersistentSet<Arc<OfVpc>>,
}

#[derive(Debug)]
struct OfVpc {
    vpc: Arc<str>,
    /// As hosts are told of it.
    told: Layer,
    /// As it was found.
    found: Layer,
}

impl Findings {
    fn of(&self, vpc: &str) -> Option<&Arc<OfVpc>> {
        self.vpcs.get(|known| (*known.vpc).cmp(vpc))
    }

    /// The VPCs in which anything was found.
    pub(crate) fn vpcs(&self) -> impl Iterator<Item = &str> {
        self.vpcs.iter().map(|it| &*it.vpc)
    }

    /// What hosts are told of a VPC.
    pub(crate) fn told(&self, vpc: &str) -> &Layer {
        self.of(vpc).map_or(&*NOTHING, |it| &it.told)
    }

    /// What hosts of peered VPCs are told of a VPC: who holds its virtual addresses.
    pub(crate) fn told_holders(&self, vpc: &str) -> Layer {
        let told = self.told(vpc).iter();
        let mut holders = Layer::default();
        for entry in told.filter(|entry| entry.object.kind() == Kind::AddressHolder) {
            holders.insert(entry);
        }
        holders
    }

    /// What was found in a VPC of the members of its load balancers.
    pub(crate) fn health(&self, vpc: &str) -> impl Iterator<Item = &MemberHealth> {
        let all = self.of(vpc).map_or(&*NOTHING, |it| &it.found);
        all.of_kind(Kind::MemberHealth)
            .map_while(|object| match object {
                Object::MemberHealth(health) => Some(health),
                _ => None,
            })
    }

    /// What was found in a VPC of its appliances.
    pub(crate) fn port_health(&self, vpc: &str) -> impl Iterator<Item = &PortHealth> {
        let all = self.of(vpc).map_or(&*NOTHING, |it| &it.found);
        all.of_kind(Kind::PortHealth)
            .filter_map(|object| match object {
                Object::PortHealth(health) => Some(health),
                _ => None,
            })
    }

    /// What the ports of hosts have joined in a VPC.
    pub(crate) fn listeners(&self, vpc: &str) -> impl Iterator<Item = &MulticastListener> {
        let all = self.of(vpc).map_or(&*NOTHING, |it| &it.found);
        all.of_kind(Kind::MulticastListener)
            .filter_map(|object| match object {
                Object::MulticastListener(it) if !it.subnet.is_empty() => Some(it),
                _ => None,
            })
    }

    /// Which ports hold virtual addresses in a VPC.
    pub(crate) fn holders(&self, vpc: &str) -> impl Iterator<Item = &AddressHolder> {
        let all = self.of(vpc).map_or(&*NOTHING, |it| &it.found);
        all.of_kind(Kind::AddressHolder)
            .filter_map(|object| match object {
                Object::AddressHolder(it) => Some(it),
                _ => None,
            })
    }

    /// The VPCs of which hosts are told otherwise in `next`.
    pub(crate) fn changes_to<'a>(&'a self, next: &'a Self) -> BTreeSet<&'a str> {
        let changed = self.vpcs.difference(&next.vpcs).into_iter().flatten();
        changed.map(|it| &*it.vpc).collect()
    }

    /// Puts an object in as it was found, or takes it out.
    fn set(&mut self, vpc: &str, key: &Key, object: Option<&Object>) {
        let (mut told, mut found) = self.of(vpc).map_or_else(Default::default, |known| {
            (known.told.clone(), known.found.clone())
        });
        let put = |layer: &mut Layer, object: Option<Object>| match object {
            Some(object) => layer.insert(&Entry::new(object)),
            None => layer.remove(key.kind, &key.id),
        };
        let as_told = object.and_then(as_told);
        if told.get(key.kind, &key.id).map(|it| &it.object) != as_told.as_ref() {
            put(&mut told, as_told);
        }
        put(&mut found, object.cloned());
        let order = |known: &Arc<OfVpc>| (*known.vpc).cmp(vpc);
        if found.is_empty() {
            self.vpcs.remove(order);
            return;
        }
        let vpc = Arc::from(vpc);
        let next = Arc::new(OfVpc { vpc, told, found });
        self.vpcs.insert(next, order);
    }
}

/// What all hosts found.
#[derive(Debug, Default)]
pub(crate) struct Board(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    hosts: HashMap<Arc<str>, OfHost>,
    /// Who found something.
    finders: HashMap<Key, Arc<str>>,
    findings: Findings,
    /// Rises with whatever an attached host says, and with who is attached.
    revision: u64,
    /// The revision of the intent that all that hosts are told fits; nothing where that is not known.
    fits: Option<u64>,
}

#[derive(Debug, Default)]
struct OfHost {
    session: u64,
    /// Whether it is attached to this controller.
    is_attached: bool,
    /// The kinds of which it has said all that it has found since it was attached.
    said: BTreeSet<Kind>,
    found: BTreeMap<Key, Object>,
    /// Whether it was said that there is too much, or what cannot be.
    is_said: bool,
}

impl Board {
    /// What is known now.
    pub(crate) fn findings(&self) -> Findings {
        self.lock().findings.clone()
    }

    /// Notes that a host's session begins; the VPCs of which hosts are told otherwise since. `finds`: the kinds of which it will say what it has found; what it
    /// once found of others holds no more.
    pub(crate) fn enter(
        &self,
        host: &str,
        session: u64,
        finds: impl Fn(Kind) -> bool,
    ) -> BTreeSet<String> {
        let mut inner = self.lock();
        let name = Arc::<str>::from(host);
        let unsaid = KINDS.into_iter().filter(|kind| !finds(*kind));
        let unsaid: BTreeSet<Kind> = unsaid.collect();
        let before = inner.findings.clone();
        let of_host = inner.hosts.entry(Arc::clone(&name)).or_default();
        let gone = of_host
            .found
            .extract_if(.., |key, _| unsaid.contains(&key.kind));
        for (key, object) in gone.collect::<Vec<_>>() {
            inner.take_out(&name, &key, &object);
        }
        let of_host = inner.hosts.entry(name).or_default();
        of_host.session = session;
        of_host.is_attached = true;
        // Of these it has said all: nothing. Other controllers take that up, too.
        of_host.said = unsaid;
        of_host.is_said = false;
        inner.revision += 1;
        let changed = before.changes_to(&inner.findings).into_iter();
        changed.map(str::to_owned).collect()
    }

    /// A number that rises with whatever is told to other controllers.
    pub(crate) fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// What the hosts found that are attached to this controller, as hosts are told of it: what nobody has to know is told to no controller.
    pub(crate) fn of_attached(&self) -> FoundByHosts {
        let inner = self.lock();
        let attached = inner
            .hosts
            .iter()
            .filter(|(_, it)| it.is_attached && !it.said.is_empty());
        let mut hosts: Vec<FoundByHost> = attached
            .map(|(host, it)| {
                let said = it
                    .found
                    .values()
                    .filter(|object| it.said.contains(&object.kind()));
                FoundByHost {
                    host: host.to_string(),
                    found: Some(collect(said.filter_map(as_told))),
                    kinds: it.said.iter().map(|kind| kind.name().to_owned()).collect(),
                }
            })
            .collect();
        hosts.sort_by(|a, b| a.host.cmp(&b.host));
        FoundByHosts { hosts }
    }

    /// Takes up what another controller says of the hosts that are attached to it; the VPCs of which hosts are told otherwise since, and whether all of it was
    /// taken. Hosts that are attached to this one have said it themselves, and one that is not in this version may be later.
    pub(crate) fn hear_from_other(
        &self,
        version: &Version,
        all: FoundByHosts,
    ) -> (BTreeSet<String>, bool) {
        let (mut changed, mut is_all) = (BTreeSet::new(), true);
        for FoundByHost { host, found, kinds } in all.hosts {
            let is_attached =
                |inner: &Inner| inner.hosts.get(&*host).is_some_and(|it| it.is_attached);
            if version.host(&host).is_none() || is_attached(&self.lock()) {
                is_all = false;
                continue;
            }
            let session = {
                let mut inner = self.lock();
                inner.hosts.entry(Arc::from(&*host)).or_default().session
            };
            let whole = v1::Findings {
                session,
                whole: true,
                found,
                gone: Vec::new(),
                kinds,
            };
            // It was looked at there. Where this controller has not come as far it is soon forgotten, and has to be heard again.
            let mut objects = explode(whole.found.clone().unwrap_or_default());
            let mut checked = Checked::default();
            if !objects.all(|object| is_of(version, &host, &object, &mut checked)) {
                is_all = false;
                self.lock().fits = None;
            }
            changed.extend(self.take((&host, session), whole, |_| true));
        }
        (changed, is_all)
    }

    /// Takes up what a host's session says; the VPCs of which hosts are told otherwise since. What is about no port of the host is passed over.
    pub(crate) fn hear(
        &self,
        version: &Version,
        host: &str,
        session: u64,
        findings: v1::Findings,
    ) -> BTreeSet<String> {
        let mut checked = Checked::default();
        self.take((host, session), findings, |object| {
            is_of(version, host, object, &mut checked)
        })
    }

    fn take(
        &self,
        (host, session): (&str, u64),
        findings: v1::Findings,
        mut may_find: impl FnMut(&Object) -> bool,
    ) -> BTreeSet<String> {
        let mut inner = self.lock();
        let Some((name, mut of_host)) = inner.hosts.remove_entry(host) else {
            return BTreeSet::new();
        };
        if of_host.session != session {
            inner.hosts.insert(name, of_host);
            return BTreeSet::new();
        }
        if findings.whole {
            let all = Kind::ALL.into_iter();
            let kinds = &findings.kinds;
            let is_told =
                |kind: &Kind| kinds.is_empty() || kinds.iter().any(|it| it == kind.name());
            of_host.said.extend(all.filter(is_told));
        }
        inner.revision += u64::from(of_host.is_attached);
        let before = inner.findings.clone();
        let kinds = &findings.kinds;
        let is_told = |key: &&Key| {
            findings.whole && (kinds.is_empty() || kinds.iter().any(|kind| kind == key.kind.name()))
        };
        let told = of_host.found.keys().filter(is_told);
        let mut gone: BTreeSet<Key> = told.cloned().collect();
        let keys = findings.gone.iter();
        gone.extend(keys.filter_map(|key| Key::from_wire(key).ok()));
        let mut passed_over = 0;
        for object in explode(findings.found.unwrap_or_default()) {
            let key = object.key();
            let is_full = of_host.found.len() >= OF_HOST && !of_host.found.contains_key(&key);
            if is_full || !may_find(&object) {
                passed_over += 1;
                continue;
            }
            if inner.is_outdone(&name, &key, &object) {
                continue;
            }
            gone.remove(&key);
            let known = of_host.found.get(&key);
            if known != Some(&object) {
                // The same may be in another VPC now.
                if let Some(known) = known.filter(|known| known.vpc() != object.vpc()) {
                    inner.clear(&key, known);
                }
                inner.put(&name, &key, &object);
                of_host.found.insert(key, object);
            }
        }
        for key in gone {
            if let Some(object) = of_host.found.remove(&key) {
                inner.take_out(&name, &key, &object);
            }
        }
        if passed_over > 0 && !std::mem::replace(&mut of_host.is_said, true) {
            let most = OF_HOST;
            tracing::warn!(
                host,
                passed_over,
                most,
                "found more than is kept, or what is not its own"
            );
        }
        inner.hosts.insert(name, of_host);
        let changed = before.changes_to(&inner.findings).into_iter();
        changed.map(str::to_owned).collect()
    }

    /// Takes up what a host that attaches was told of who holds virtual addresses in its own VPCs; the VPCs of which hosts are told otherwise since. A controller
    /// that has started again knows so of those whose hosts attach later. What somebody has told it holds against that, and so does that the holder's host has
    /// told all that it has found.
    pub(crate) fn hear_of_holders(
        &self,
        version: &Version,
        host: &str,
        holders: &[AddressHolder],
    ) -> BTreeSet<String> {
        let mut inner = self.lock();
        let before = inner.findings.clone();
        let mut checked = Checked::default();
        for holder in holders.iter().take(OF_HOST) {
            let object = Object::AddressHolder(holder.clone());
            let key = object.key();
            let is_known = inner.finders.contains_key(&key);
            let of_holder = inner.hosts.get(&*holder.host);
            let has_said = of_holder.is_some_and(|it| it.said.contains(&Kind::AddressHolder));
            let is_full = of_holder.is_some_and(|it| it.found.len() >= OF_HOST);
            let is_own = version.is_own(&holder.vpc, host);
            let mut is_of = || is_of(version, &holder.host, &object, &mut checked);
            if is_known || has_said || is_full || !is_own || !is_of() {
                continue;
            }
            let name = Arc::<str>::from(&*holder.host);
            inner.put(&name, &key, &object);
            let of_holder = inner.hosts.entry(name).or_default();
            of_holder.found.insert(key, object);
        }
        let changed = before.changes_to(&inner.findings).into_iter();
        changed.map(str::to_owned).collect()
    }

    /// Forgets what hosts found that are not in the intent any more, and what was found that no longer fits the intent; the VPCs of which hosts are told
    /// otherwise since. Takes as long as much was found in VPCs that have changed since it was called last.
    pub(crate) fn forget_past(&self, version: &Version) -> BTreeSet<String> {
        let mut inner = self.lock();
        let fitted = inner.fits.replace(version.revision);
        let touched = match fitted {
            Some(revision) if revision == version.revision => Some(BTreeSet::new()),
            _ => fitted.and_then(|revision| version.touched_since(revision)),
        };
        let before = inner.findings.clone();
        let strangers = inner.hosts.keys().filter(|it| version.host(it).is_none());
        let mut past: Vec<(Arc<str>, Key)> = Vec::new();
        for host in strangers {
            let found = inner
                .hosts
                .get(host)
                .into_iter()
                .flat_map(|it| it.found.keys());
            past.extend(found.map(|key| (Arc::clone(host), key.clone())));
        }
        let may_have_changed =
            |of_vpc: &&Arc<OfVpc>| touched.as_ref().is_none_or(|it| it.contains(&*of_vpc.vpc));
        let mut checked = Checked::default();
        for of_vpc in before.vpcs.iter().filter(may_have_changed) {
            for entry in of_vpc.found.iter() {
                let key = entry.object.key();
                let finder = inner.finders.get(&key);
                let mut fits = |host| is_of(version, host, &entry.object, &mut checked);
                if let Some(finder) = finder.filter(|it| !fits(it)) {
                    past.push((Arc::clone(finder), key));
                }
            }
        }
        for (host, key) in past {
            let of_host = inner.hosts.get_mut(&host);
            if let Some(object) = of_host.and_then(|it| it.found.remove(&key)) {
                inner.take_out(&host, &key, &object);
            }
        }
        let changed = before.changes_to(&inner.findings).into_iter();
        changed.map(str::to_owned).collect()
    }

    /// Notes that a host's session has ended, if it is still its own. What it has found stays.
    pub(crate) fn leave(&self, host: &str, session: u64) {
        let mut inner = self.lock();
        let known = inner.hosts.get_mut(host);
        if let Some(of_host) = known.filter(|it| it.session == session) {
            of_host.is_attached = false;
            of_host.said.clear();
            if of_host.found.is_empty() {
                inner.hosts.remove(host);
            }
            inner.revision += 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // After a panic a host may be missing, which says all of it when it attaches again.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whether another host has found of the same what holds against it.
    fn is_outdone(&self, host: &Arc<str>, key: &Key, object: &Object) -> bool {
        let Object::AddressHolder(new) = object else {
            return false;
        };
        let finder = self.finders.get(key).filter(|finder| *finder != host);
        let known = finder.and_then(|finder| self.hosts.get(finder)?.found.get(key));
        matches!(known, Some(Object::AddressHolder(known)) if !new.outdoes(known))
    }

    /// What another host has found of the same holds no more: a port is on one host.
    fn put(&mut self, host: &Arc<str>, key: &Key, object: &Object) {
        let before = self.finders.insert(key.clone(), Arc::clone(host));
        if let Some(other) = before.filter(|other| other != host)
            && let Some(of_other) = self.hosts.get_mut(&other)
            && let Some(known) = of_other.found.remove(key)
        {
            self.clear(key, &known);
        }
        if let Some(vpc) = object.vpc() {
            self.findings.set(vpc, key, Some(object));
        }
    }

    fn take_out(&mut self, host: &Arc<str>, key: &Key, object: &Object) {
        if self.finders.get(key) == Some(host) {
            self.finders.remove(key);
            self.clear(key, object);
        }
    }

    fn clear(&mut self, key: &Key, object: &Object) {
        if let Some(vpc) = object.vpc() {
            self.findings.set(vpc, key, None);
        }
    }
}

/// What hosts are told of it; nothing if they need not know.
fn as_told(object: &Object) -> Option<Object> {
    match object {
        Object::MemberHealth(health) => health.told().map(Object::MemberHealth),
        Object::PortHealth(health) => health.told().map(Object::PortHealth),
        Object::MulticastListener(_) | Object::AddressHolder(_) => Some(object.clone()),
        _ => None,
    }
}

/// The members of load balancers of which it is found out whether they serve, by load balancer: the place of the listener, and where they serve. Made once for each
/// that is asked for.
#[derive(Debug, Default)]
struct Checked(HashMap<String, HashSet<(usize, IpAddr, u32)>>);

impl Checked {
    fn has(
        &mut self,
        state: &State,
        balancer: &LoadBalancer,
        member: (usize, IpAddr, u32),
    ) -> bool {
        if !self.0.contains_key(&balancer.id) {
            let checked = (0..).zip(&balancer.listeners);
            let checked = checked.filter(|(_, listener)| listener.health.is_some());
            let members = checked.flat_map(|(place, listener)| {
                let members = listener.members.iter();
                members.flat_map(move |member| {
                    let address = |is_ipv4| member.address_in(state, is_ipv4);
                    let both = [true, false].into_iter().filter_map(address);
                    let at = listener.first_port_at(member);
                    both.map(move |address| (place, address, at))
                        .collect::<Vec<_>>()
                })
            });
            self.0.insert(balancer.id.clone(), members.collect());
        }
        let known = self.0.get(&balancer.id);
        known.is_some_and(|members| members.contains(&member))
    }
}

/// Whether a host may have found it.
fn is_of(version: &Version, host: &str, object: &Object, checked: &mut Checked) -> bool {
    if object.encoded_len() > LARGEST {
        return false;
    }
    match object {
        Object::MemberHealth(health) => is_of_member(version, host, health, checked),
        Object::PortHealth(health) => is_of_appliance(version, host, health),
        Object::MulticastListener(listener) => is_of_ports(version, host, listener),
        Object::AddressHolder(holder) => is_of_holder(version, host, holder),
        _ => false,
    }
}

/// Of ports that it has.
fn is_of_ports(version: &Version, host: &str, listener: &MulticastListener) -> bool {
    let subnet = version.state.find(Kind::Subnet, &listener.subnet);
    let is_in_vpc = match subnet {
        Some(Object::Subnet(subnet)) => subnet.vpc == listener.vpc,
        _ => listener.subnet.is_empty(),
    };
    let is_own = listener.host == host && version.has_ports(&listener.vpc, host);
    is_own && is_in_vpc && listener.is_well_formed()
}

/// Of one of its ports, whose pairs name the address, which no port has for itself.
fn is_of_holder(version: &Version, host: &str, holder: &AddressHolder) -> bool {
    let Ok(address) = holder.address.parse::<IpAddr>() else {
        return false;
    };
    let state = &version.state;
    let port = match state.find(Kind::Port, &holder.port) {
        Some(Object::Port(port)) if port.vpc == holder.vpc => port,
        _ => return false,
    };
    let subnet = match state.find(Kind::Subnet, &port.subnet) {
        Some(Object::Subnet(subnet)) => subnet,
        _ => return false,
    };
    holder.is_well_formed()
        && (&*holder.host, &*holder.subnet) == (host, &*port.subnet)
        && port.host == host
        && port.may_hold(subnet, address, &holder.mac)
        && state.port_with_address(&holder.vpc, address).is_none()
}

/// Of one of its ports, of which it is found out whether an appliance there lives.
fn is_of_appliance(version: &Version, host: &str, health: &PortHealth) -> bool {
    match version.state.find(Kind::Port, &health.id) {
        Some(Object::Port(port)) => {
            port.host == host && port.vpc == health.vpc && port.health.is_some()
        }
        _ => false,
    }
}

/// Of a member at one of its ports, of which it is found out whether it serves.
fn is_of_member(
    version: &Version,
    host: &str,
    health: &MemberHealth,
    checked: &mut Checked,
) -> bool {
    let state = &version.state;
    let balancer = match state.find(Kind::LoadBalancer, &health.load_balancer) {
        Some(Object::LoadBalancer(balancer)) if balancer.vpc == health.vpc => balancer,
        _ => return false,
    };
    let Ok(address) = health.address.parse::<IpAddr>() else {
        return false;
    };
    let is_named_so = health.id == health.own_id() && health.address == address.to_string();
    let port = state.port_with_address(&health.vpc, address);
    let mut listeners = (0..).zip(&balancer.listeners);
    let mut is_it = |(place, listener): (usize, &Listener)| {
        let is_for = (&listener.protocol, listener.port_min) == (&health.protocol, health.port);
        is_for && checked.has(state, balancer, (place, address, health.member_port))
    };
    is_named_so && port.is_some_and(|port| port.host == host) && listeners.any(&mut is_it)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::v1::{Findings as Said, Objects};

    use crate::learning::Learned;
    use crate::node::{Capabilities, NodeState};

    const INTENT: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}]
vpcs: [{id: blue, vni: 1}]
subnets: [{id: s, vpc: blue, cidrs: [10.0.0.0/24]}]
ports:
- {id: p1, vpc: blue, subnet: s, mac: "02:00:00:00:00:01", addresses: [10.0.0.11], host: h1}
- {id: p2, vpc: blue, subnet: s, mac: "02:00:00:00:00:02", addresses: [10.0.0.12], host: h2}
load_balancers:
- {id: lb, vpc: blue, addresses: [10.0.0.200], listeners: [{protocol: tcp, port_min: 80, members: [{port: p1}, {port: p2}], health: {protocol: tcp}}]}
"#;

    fn version(change: impl FnOnce(&mut Objects)) -> Version {
        let mut objects: Objects = serde_yaml_ng::from_str(INTENT).unwrap();
        change(&mut objects);
        Version::loaded(1, State::from_objects(objects).unwrap())
    }

    fn health(address: &str, up: bool) -> MemberHealth {
        let mut health = MemberHealth {
            vpc: "blue".into(),
            load_balancer: "lb".into(),
            protocol: "tcp".into(),
            port: 80,
            address: address.into(),
            member_port: 80,
            up,
            ..MemberHealth::default()
        };
        health.id = health.own_id();
        health
    }

    fn said(whole: bool, found: &[MemberHealth], gone: &[&MemberHealth]) -> Said {
        Said {
            whole,
            found: Some(Objects {
                member_health: found.to_vec(),
                ..Objects::default()
            }),
            gone: gone
                .iter()
                .map(|it| Object::MemberHealth((*it).clone()).key().to_wire())
                .collect(),
            ..Said::default()
        }
    }

    fn down(board: &Board) -> Vec<String> {
        let findings = board.findings();
        let told = findings.told("blue").iter();
        told.map(|it| it.object.id().to_owned()).collect()
    }

    #[test]
    fn hosts_are_told_of_members_that_do_not_serve() {
        let version = version(|_| {});
        let board = Board::default();
        board.enter("h1", 7, |_| true);
        let (up, is_down) = (health("10.0.0.11", true), health("10.0.0.11", false));
        let changed = board.hear(
            &version,
            "h1",
            7,
            said(true, std::slice::from_ref(&up), &[]),
        );
        // Found, and nobody has to know.
        assert_eq!(board.findings().health("blue").count(), 1);
        assert!(down(&board).is_empty());
        assert!(changed.contains("blue"));
        board.hear(
            &version,
            "h1",
            7,
            said(false, std::slice::from_ref(&is_down), &[]),
        );
        assert_eq!(down(&board), ["lb/tcp/80/10.0.0.11/80"]);
        // Not by a session that is over.
        board.enter("h1", 8, |_| true);
        board.hear(
            &version,
            "h1",
            7,
            said(false, std::slice::from_ref(&up), &[]),
        );
        assert_eq!(down(&board).len(), 1);
        // The same again is no news.
        let changed = board.hear(
            &version,
            "h1",
            8,
            said(true, std::slice::from_ref(&is_down), &[]),
        );
        assert!(changed.is_empty());
        board.hear(&version, "h1", 8, said(false, &[], &[&is_down]));
        assert!(down(&board).is_empty() && board.findings().vpcs.is_empty());
        assert!(board.lock().finders.is_empty());
    }

    #[test]
    fn a_host_is_heard_of_its_own_ports_alone() {
        let version = version(|_| {});
        let board = Board::default();
        board.enter("h1", 7, |_| true);
        let mut strange = vec![health("10.0.0.12", false), health("10.0.0.99", false)];
        strange.push(MemberHealth {
            id: "lb/tcp/80".into(),
            ..health("10.0.0.11", false)
        });
        strange.push(MemberHealth {
            vpc: "red".into(),
            ..health("10.0.0.11", false)
        });
        let mut long = health("10.0.0.11", false);
        long.reason = "x".repeat(LARGEST);
        strange.push(long);
        board.hear(&version, "h1", 7, said(true, &strange, &[]));
        assert!(board.findings().vpcs.is_empty());
    }

    #[test]
    fn hosts_are_told_of_appliances_that_do_not_live_by_the_host_that_checks_them() {
        let checked = |o: &mut Objects| {
            o.ports[0].health = Some(Box::new(v1::HealthCheck {
                protocol: "icmp".into(),
                ..v1::HealthCheck::default()
            }));
        };
        let with = version(checked);
        let health = |id: &str, up| PortHealth {
            id: id.into(),
            vpc: "blue".into(),
            up,
            reason: "no answer".into(),
            since_ms: 5,
        };
        let said = |session, health: PortHealth| Said {
            session,
            found: Some(collect(std::iter::once(Object::PortHealth(health)))),
            ..Said::default()
        };
        let told = |board: &Board| {
            let findings = board.findings();
            let told = findings.told("blue").of_kind(Kind::PortHealth);
            told.cloned().collect::<Vec<_>>()
        };
        let board = Board::default();
        board.enter("h1", 1, |_| true);
        board.enter("h2", 2, |_| true);
        // Another's, and one that is not checked.
        board.hear(&with, "h2", 2, said(2, health("p1", false)));
        board.hear(&with, "h2", 2, said(2, health("p2", false)));
        assert_eq!(told(&board), []);
        board.hear(&with, "h1", 1, said(1, health("p1", false)));
        let down = PortHealth {
            reason: String::new(),
            since_ms: 0,
            ..health("p1", false)
        };
        assert_eq!(told(&board), [Object::PortHealth(down)]);
        let takes = |capabilities| {
            let nothing = Learned::default();
            let found = (&nothing, &board.findings());
            let state = NodeState::compile_with(&with, ("h2", capabilities), found, None);
            state.unwrap().to_objects().port_health.len()
        };
        let all = Capabilities::all();
        let old = Capabilities {
            port_health: false,
            ..all
        };
        assert_eq!((takes(all), takes(old)), (1, 0));
        board.hear(&with, "h1", 1, said(1, health("p1", true)));
        assert_eq!(told(&board), []);
        assert_eq!(board.findings().port_health("blue").count(), 1);
        // Nobody checks it any more, whatever was found.
        for (revision, up) in [(2, false), (3, true)] {
            board.hear(&with, "h1", 1, said(1, health("p1", up)));
            let mut without = version(|_| {});
            without.revision = revision;
            board.forget_past(&without);
            assert_eq!(told(&board), []);
            assert_eq!(board.findings().port_health("blue").count(), 0, "{up}");
        }
    }

    #[test]
    fn what_a_host_can_no_longer_say_is_taken_out_everywhere() {
        let with = version(|o| {
            o.ports[0].health = Some(Box::new(v1::HealthCheck {
                protocol: "icmp".into(),
                ..v1::HealthCheck::default()
            }));
        });
        let of_port = PortHealth {
            id: "p1".into(),
            vpc: "blue".into(),
            ..PortHealth::default()
        };
        let found = [
            Object::PortHealth(of_port),
            Object::MemberHealth(health("10.0.0.11", false)),
        ];
        let all = Said {
            session: 1,
            whole: true,
            found: Some(collect(found.into_iter())),
            ..Said::default()
        };
        let kinds = |board: &Board| {
            let findings = board.findings();
            let told = findings.told("blue").iter();
            told.map(|it| it.object.kind()).collect::<Vec<_>>()
        };
        let (here, there) = (Board::default(), Board::default());
        assert!(here.enter("h1", 1, |_| true).is_empty());
        here.hear(&with, "h1", 1, all);
        there.hear_from_other(&with, here.of_attached());
        for board in [&here, &there] {
            assert_eq!(kinds(board), [Kind::MemberHealth, Kind::PortHealth]);
        }
        // It comes back as a host of an earlier release, and has not said anything yet.
        let changed = here.enter("h1", 2, |kind| kind != Kind::PortHealth);
        assert_eq!(changed, BTreeSet::from(["blue".to_owned()]));
        let (changed, _) = there.hear_from_other(&with, here.of_attached());
        assert_eq!(changed, BTreeSet::from(["blue".to_owned()]));
        for board in [&here, &there] {
            assert_eq!(kinds(board), [Kind::MemberHealth]);
        }
        assert_eq!(here.enter("h1", 3, |_| false).len(), 1);
        there.hear_from_other(&with, here.of_attached());
        for board in [&here, &there] {
            assert!(board.findings().vpcs.is_empty());
        }
    }

    #[test]
    fn another_controller_is_heard_of_hosts_that_are_attached_to_it() {
        let version = version(|_| {});
        let (here, there) = (Board::default(), Board::default());
        here.enter("h1", 1, |_| true);
        assert!(
            here.of_attached().hosts.is_empty(),
            "it has said nothing yet"
        );
        here.hear(
            &version,
            "h1",
            1,
            said(true, &[health("10.0.0.11", false)], &[]),
        );
        let known = here.revision();
        assert_eq!(
            there.hear_from_other(&version, here.of_attached()).0.len(),
            1
        );
        assert_eq!(down(&there).len(), 1);
        // Again it is no news, and it is told to nobody as its own.
        assert!(
            there
                .hear_from_other(&version, here.of_attached())
                .0
                .is_empty()
        );
        assert!(there.of_attached().hosts.is_empty());
        here.hear(
            &version,
            "h1",
            1,
            said(false, &[health("10.0.0.11", true)], &[]),
        );
        assert!(here.revision() > known);
        there.hear_from_other(&version, here.of_attached());
        assert!(down(&there).is_empty());
        // A controller that does not know the load balancer yet hears it again.
        let behind = self::version(|o| o.load_balancers.clear());
        here.hear(
            &version,
            "h1",
            1,
            said(false, &[health("10.0.0.11", false)], &[]),
        );
        let late = Board::default();
        assert!(!late.hear_from_other(&behind, here.of_attached()).1);
        late.forget_past(&behind);
        assert!(down(&late).is_empty());
        assert!(late.hear_from_other(&version, here.of_attached()).1);
        assert_eq!(down(&late).len(), 1);
        // It comes over: what it says itself counts, whatever the other still tells.
        let late = here.of_attached();
        there.enter("h1", 9, |_| true);
        there.hear(
            &version,
            "h1",
            9,
            said(true, &[health("10.0.0.11", false)], &[]),
        );
        there.hear_from_other(&version, late);
        assert_eq!(down(&there).len(), 1);
        here.leave("h1", 1);
        assert!(here.of_attached().hosts.is_empty());
    }

    #[test]
    fn what_ports_have_joined_is_told_until_the_host_has_none_in_the_vpc() {
        let (version, board) = (version(|_| {}), Board::default());
        board.enter("h1", 1, |_| true);
        let group: IpAddr = "239.1.1.1".parse().unwrap();
        let listener =
            |vpc, host, subnet| MulticastListener::of((vpc, host, subnet), group, (true, &[]));
        let tells = MulticastListener::tells("blue", "h1");
        let own = listener("blue", "h1", "s");
        let of_others = [
            listener("blue", "h2", "s"),
            listener("blue", "h1", "t"),
            listener("red", "h1", "s"),
            MulticastListener::tells("blue", "h2"),
            MulticastListener {
                group: "10.0.0.1".into(),
                ..own.clone()
            },
        ];
        let found = of_others.into_iter().chain([tells.clone(), own.clone()]);
        let found = Said {
            session: 1,
            whole: true,
            found: Some(collect(found.map(Object::MulticastListener))),
            kinds: Vec::new(),
            gone: Vec::new(),
        };
        assert_eq!(board.hear(&version, "h1", 1, found).len(), 1);
        let told = |board: &Board| {
            let findings = board.findings();
            let told = findings.told("blue").iter();
            let ids: Vec<String> = told.map(|it| it.object.id().to_owned()).collect();
            ids
        };
        assert_eq!(told(&board), [tells.id, own.id]);
        assert!(board.forget_past(&version).is_empty());
        let mut without = self::version(|o| o.ports.truncate(0));
        without.revision = 2;
        assert_eq!(board.forget_past(&without).len(), 1);
        assert!(told(&board).is_empty());
    }

    #[test]
    fn an_address_is_held_by_who_announced_it_last_and_known_again_after_a_restart() {
        let with_pairs = |o: &mut Objects| {
            for port in &mut o.ports {
                port.allowed_pairs = vec![v1::AddressPair {
                    cidr: "10.0.0.99/32".into(),
                    mac: String::new(),
                }];
            }
        };
        let version = version(with_pairs);
        let holder = |number: usize, moves, since_ms| {
            let mut holder = AddressHolder {
                vpc: "blue".into(),
                address: "10.0.0.99".into(),
                port: format!("p{number}"),
                subnet: "s".into(),
                host: format!("h{number}"),
                mac: format!("02:00:00:00:00:0{number}"),
                moves,
                since_ms,
                ..AddressHolder::default()
            };
            holder.id = holder.own_id();
            holder
        };
        let said = |found: &[AddressHolder]| Said {
            whole: true,
            found: Some(collect(found.iter().cloned().map(Object::AddressHolder))),
            kinds: vec!["address_holder".into()],
            ..Said::default()
        };
        let hear = |board: &Board, number: u64, found: &[AddressHolder]| {
            let findings = Said {
                session: number,
                ..said(found)
            };
            board.hear(&version, &format!("h{number}"), number, findings);
        };
        let held_by = |board: &Board| {
            let findings = board.findings();
            let ports: Vec<String> = findings.holders("blue").map(|it| it.port.clone()).collect();
            ports
        };
        let board = Board::default();
        board.enter("h1", 1, |_| true);
        board.enter("h2", 2, |_| true);
        hear(&board, 1, &[holder(1, 1, 5)]);
        assert_eq!(held_by(&board), ["p1"]);
        hear(&board, 2, &[holder(2, 1, 6)]);
        assert_eq!(held_by(&board), ["p2"]);
        // The first one attaches again with what it knew, and says what is not its own.
        hear(&board, 1, &[holder(1, 1, 5)]);
        hear(&board, 1, &[holder(2, 9, 9)]);
        assert_eq!(held_by(&board), ["p2"]);
        hear(&board, 2, &[]);
        assert!(held_by(&board).is_empty());
        // What is told of other kinds takes nothing of this one.
        hear(&board, 2, &[holder(2, 2, 7)]);
        let of_health = Said {
            session: 2,
            whole: true,
            kinds: vec!["member_health".into()],
            ..Said::default()
        };
        board.hear(&version, "h2", 2, of_health);
        assert_eq!(held_by(&board), ["p2"]);
        // A controller that starts again hears of it from another host, until its own host says otherwise.
        let again = Board::default();
        again.enter("h1", 1, |_| true);
        let known = [holder(2, 3, 1)];
        assert_eq!(again.hear_of_holders(&version, "h1", &known).len(), 1);
        assert_eq!(held_by(&again), ["p2"]);
        again.enter("h2", 2, |_| true);
        hear(&again, 2, &[]);
        assert!(held_by(&again).is_empty());
        assert!(again.hear_of_holders(&version, "h1", &known).is_empty());
        let strange = holder(1, 1, 1);
        assert!(again.hear_of_holders(&version, "h3", &[strange]).is_empty());
    }

    #[test]
    fn hosts_of_a_peered_vpc_are_told_where_its_addresses_are_and_nothing_else() {
        let version = version(|o| {
            o.ports[0].allowed_pairs = vec![v1::AddressPair {
                cidr: "10.0.0.99/32".into(),
                mac: String::new(),
            }];
            let (mut red, mut subnet) = (o.vpcs[0].clone(), o.subnets[0].clone());
            (red.id, red.vni) = ("red".into(), 2);
            (subnet.id, subnet.vpc) = ("r".into(), "red".into());
            subnet.cidrs = vec!["10.7.0.0/24".into()];
            let mut port = o.ports[1].clone();
            (port.id, port.vpc, port.subnet) = ("r1".into(), "red".into(), "r".into());
            (port.host, port.addresses) = ("h3".into(), vec!["10.7.0.11".into()]);
            let mut host = o.hosts[0].clone();
            (host.id, host.vteps) = ("h3".into(), vec!["192.0.2.3".into()]);
            o.vpcs.push(red);
            o.subnets.push(subnet);
            o.ports.push(port);
            o.hosts.push(host);
            o.peerings.push(v1::Peering {
                id: "p".into(),
                requester: "blue".into(),
                accepter: "red".into(),
                requester_state: "active".into(),
                accepter_state: "active".into(),
                ..v1::Peering::default()
            });
        });
        let mut holder = AddressHolder {
            vpc: "blue".into(),
            address: "10.0.0.99".into(),
            port: "p1".into(),
            subnet: "s".into(),
            host: "h1".into(),
            mac: "02:00:00:00:00:01".into(),
            moves: 1,
            since_ms: 1,
            ..AddressHolder::default()
        };
        holder.id = holder.own_id();
        let found = [
            Object::AddressHolder(holder),
            Object::MulticastListener(MulticastListener::tells("blue", "h1")),
        ];
        let board = Board::default();
        board.enter("h1", 1, |_| true);
        let said = Said {
            session: 1,
            whole: true,
            found: Some(collect(found.into_iter())),
            ..Said::default()
        };
        assert_eq!(board.hear(&version, "h1", 1, said).len(), 1);
        let told = |host: &str| {
            let besides = (&Learned::default(), &board.findings());
            let who = (host, Capabilities::all());
            let state = NodeState::compile_with(&version, who, besides, None).unwrap();
            let objects = state.to_objects();
            (
                objects.address_holders.len(),
                objects.multicast_listeners.len(),
            )
        };
        assert_eq!((told("h2"), told("h3")), ((1, 1), (1, 0)));
    }

    #[test]
    fn of_a_port_that_has_moved_the_host_is_right_that_says_it_last() {
        let board = Board::default();
        for (host, session) in [("h1", 1), ("h2", 2)] {
            board.enter(host, session, |_| true);
        }
        let is_down = health("10.0.0.11", false);
        board.hear(
            &version(|_| {}),
            "h1",
            1,
            said(true, std::slice::from_ref(&is_down), &[]),
        );
        let moved = version(|o| o.ports[0].host = "h2".into());
        board.hear(
            &moved,
            "h2",
            2,
            said(true, &[health("10.0.0.11", true)], &[]),
        );
        assert!(down(&board).is_empty());
        board.hear(&moved, "h1", 1, said(false, &[], &[&is_down]));
        assert_eq!(board.findings().health("blue").count(), 1);
        let without = version(|o| o.hosts.truncate(1));
        assert_eq!(board.forget_past(&without).len(), 1);
        assert!(board.findings().vpcs.is_empty());
    }
}
