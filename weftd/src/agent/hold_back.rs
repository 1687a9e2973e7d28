//! What of a received state stays behind on this host, so that all else can come into force (decision 013).
//!
//! It stays behind by units: a VPC with all that is in it and the elastic IPs of its ports, or else an object that is in no VPC. A unit that is held
//! back is as it was in the state in force before; one that was not there is absent. [`overfull`] says which VPCs exceed this host's limits,
//! [`merged`] makes the state that is left. `active` decides by these and by what the host refuses.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use weft_proto::state::{Key, Kind, Object, State};
use weft_proto::v1::{HostLimits, ObjectKey, PrefixList, SecurityGroup, Violation, Vpc};

/// Units that are held back, each with the reasons.
pub(super) type Units = BTreeMap<Key, Vec<Violation>>;

/// The unit of a VPC.
fn vpc_unit(id: &str) -> Key {
    Key {
        kind: Kind::Vpc,
        id: id.to_owned(),
    }
}

/// The unit that an object of a state belongs to; none for an object that is not there.
pub(super) fn unit_of(wire: &ObjectKey, state: &State) -> Option<Key> {
    let key = Key::from_wire(wire).ok()?;
    let object = state.get(&key)?;
    let vpc = match object {
        Object::ElasticIp(elastic) => state.vpc_of(elastic),
        other => other.vpc(),
    };
    Some(
        match vpc.filter(|vpc| state.find(Kind::Vpc, vpc).is_some()) {
            Some(vpc) => vpc_unit(vpc),
            None => key,
        },
    )
}

/// The objects of a VPC, the elastic IPs of its ports last.
fn objects_of<'s>(state: &'s State, vpc: &'s str) -> impl Iterator<Item = &'s Object> {
    let elastic_ips = state
        .of_kind(Kind::ElasticIp)
        .filter(move |object| match object {
            Object::ElasticIp(elastic) => state.vpc_of(elastic) == Some(vpc),
            _ => false,
        });
    state.of_vpc(vpc).chain(elastic_ips)
}

/// `received`, but for the units that are held back, which are as they were `before`, where nothing that is in force now stands against it; those of
/// `absent` are not there at all.
pub(super) fn merged(
    received: &State,
    before: &State,
    held: &Units,
    absent: &BTreeSet<Key>,
    host: &str,
) -> State {
    let mut next = received.clone();
    if held.is_empty() {
        return next;
    }
    for unit in held.keys() {
        if unit.kind == Kind::Vpc {
            for object in objects_of(received, &unit.id) {
                next.remove(&object.key());
            }
        }
        next.remove(unit);
    }
    let mut taken = Taken::of(&next, host);
    for unit in held.keys().filter(|unit| !absent.contains(unit)) {
        if unit.kind == Kind::Vpc {
            restore_vpc(&unit.id, before, &mut taken, &mut next);
        } else if let Some(old) = before.get(unit) {
            // What was frozen or deleted since does not pass again.
            let is_closed =
                matches!(received.get(unit), Some(Object::Peering(new)) if !new.passes());
            if !is_closed {
                next.insert(old.clone());
            }
        }
    }
    settle_hosts(received, before, host, &mut next);
    settle_groups(&mut next);
    next
}

/// What one object alone has on this host, of the objects that are in force as received.
struct Taken {
    vnis: HashSet<u32>,
    devices: HashSet<String>,
    /// The parent and the VLAN of each subport.
    vlans: HashSet<(String, u32)>,
    outside: HashSet<IpAddr>,
}

impl Taken {
    fn of(state: &State, host: &str) -> Self {
        let mut taken = Self {
            vnis: HashSet::new(),
            devices: HashSet::new(),
            vlans: HashSet::new(),
            outside: HashSet::new(),
        };
        for object in state.iter() {
            taken.add(object, host);
        }
        taken
    }

    fn add(&mut self, object: &Object, host: &str) {
        match object {
            Object::Vpc(vpc) => drop(self.vnis.insert(vpc.vni)),
            Object::Port(port) if port.host == host => {
                self.devices
                    .extend(port.device.as_ref().map(|device| device.name.clone()));
                let trunk = port.trunk.as_ref();
                self.vlans
                    .extend(trunk.map(|trunk| (trunk.parent.clone(), trunk.vlan)));
            }
            _ => self
                .outside
                .extend(object.outside_addresses().map(|(_, address)| address)),
        }
    }

    /// Whether an object may be there beside these.
    fn admits(&self, object: &Object) -> bool {
        match object {
            Object::Vpc(vpc) => !self.vnis.contains(&vpc.vni),
            Object::Port(port) => {
                let (device, trunk) = (port.device.as_ref(), port.trunk.as_ref());
                device.is_none_or(|device| !self.devices.contains(&device.name))
                    && trunk.is_none_or(|trunk| {
                        let vlan = (trunk.parent.clone(), trunk.vlan);
                        !self.vlans.contains(&vlan)
                    })
            }
            _ => {
                let mut addresses = object.outside_addresses();
                addresses.all(|(_, address)| !self.outside.contains(&address))
            }
        }
    }
}

/// Puts a VPC back as it was; what others have by now is left out.
fn restore_vpc(vpc: &str, before: &State, taken: &mut Taken, next: &mut State) {
    let objects: Vec<&Object> = objects_of(before, vpc).collect();
    // Its routes and rules name objects by ids, which must not lead to another VPC's. They name no elastic IPs.
    let is_taken = |object: &&Object| next.get(&object.key()).is_some();
    let mut in_vpc = objects.iter().filter(|object| object.vpc().is_some());
    if in_vpc.any(is_taken) {
        return;
    }
    let own = before.find(Kind::Vpc, vpc);
    if own.is_none_or(|own| !taken.admits(own)) {
        return;
    }
    for object in objects {
        let is_bound = match object {
            Object::ElasticIp(elastic) => {
                next.vpc_of(elastic).is_some() && next.get(&object.key()).is_none()
            }
            _ => true,
        };
        if is_bound && taken.admits(object) {
            next.insert(object.clone());
        }
    }
    if let Some(own) = own {
        taken.add(own, "");
    }
}

/// The hosts that carry a VPC whose ports are learned.
fn carriers(vpc: &Vpc) -> impl Iterator<Item = &str> {
    let learning = vpc.learning.iter();
    learning.flat_map(|it| it.hosts.iter().map(String::as_str))
}

/// The hosts that objects name.
fn hosts_named(state: &State) -> HashSet<&str> {
    let mut named = HashSet::new();
    for object in state.iter() {
        match object {
            Object::Port(port) => named.extend([&*port.host, &*port.moved_from]),
            Object::RouteTable(table) => named.extend(table.hosts()),
            // Those whose ports are not told.
            Object::Vpc(vpc) => named.extend(carriers(vpc)),
            Object::ExternalNetwork(network) => {
                named.extend(network.gateway_hosts.iter().map(String::as_str));
            }
            _ => {}
        }
    }
    named
}

/// Takes out the hosts that only what is held back would need, and puts back those that it still does.
fn settle_hosts(received: &State, before: &State, host: &str, next: &mut State) {
    let (was, is) = (hosts_named(received), hosts_named(next));
    let mut changes: Vec<(Key, Option<Object>)> = Vec::new();
    for object in received.of_kind(Kind::Host) {
        let id = object.id();
        if id != host && was.contains(id) && !is.contains(id) {
            changes.push((object.key(), None));
        }
    }
    let vteps = next.of_kind(Kind::Host).flat_map(|object| match object {
        Object::Host(host) => &host.vteps[..],
        _ => &[],
    });
    let vteps: HashSet<&String> = vteps.collect();
    for object in before.of_kind(Kind::Host) {
        let Object::Host(old) = object else { continue };
        let is_wanted = is.contains(&*old.id) && next.get(&object.key()).is_none();
        // An address is of one host: packets from there are the other's now.
        if is_wanted && old.vteps.iter().all(|vtep| !vteps.contains(vtep)) {
            changes.push((object.key(), Some(object.clone())));
        }
    }
    for (key, object) in changes {
        match object {
            Some(object) => drop(next.insert(object)),
            None => drop(next.remove(&key)),
        }
    }
}

/// Rules that name groups which are not there, or no longer within reach, match nothing.
fn settle_groups(next: &mut State) {
    let mut joined: HashSet<[&str; 2]> = HashSet::new();
    for object in next.of_kind(Kind::Peering) {
        if let Object::Peering(peering) = object {
            let [a, b] = peering.vpcs();
            joined.extend([[a, b], [b, a]]);
        }
    }
    let is_lost = |group: &SecurityGroup, remote: &str| {
        if remote.is_empty() {
            return false;
        }
        match next.find(Kind::SecurityGroup, remote) {
            Some(Object::SecurityGroup(remote)) => {
                remote.vpc != group.vpc && !joined.contains(&[&*group.vpc, &*remote.vpc])
            }
            _ => true,
        }
    };
    let mut changed: Vec<Object> = Vec::new();
    for object in next.of_kind(Kind::SecurityGroup) {
        let Object::SecurityGroup(group) = object else {
            continue;
        };
        if !group
            .rules
            .iter()
            .any(|rule| is_lost(group, &rule.remote_group))
        {
            continue;
        }
        // An id that no tenant's can be.
        let nothing = format!("@{}", group.vpc);
        let mut group = group.clone();
        for i in 0..group.rules.len() {
            if is_lost(&group, &group.rules[i].remote_group) {
                group.rules[i].remote_group.clear();
                group.rules[i].remote_prefix_list.clone_from(&nothing);
            }
        }
        changed.push(Object::PrefixList(PrefixList {
            id: nothing,
            vpc: group.vpc.clone(),
            ..PrefixList::default()
        }));
        changed.push(Object::SecurityGroup(group));
    }
    for object in changed {
        next.insert(object);
    }
}

/// What a VPC takes of this host's room.
#[derive(Default, Clone)]
struct Need<'s> {
    peers: BTreeSet<&'s str>,
    ports: usize,
    nat_gateways: usize,
}

impl Need<'_> {
    /// With these hosts alone.
    fn only(&self, is_known: impl Fn(&&str) -> bool) -> Self {
        Self {
            peers: self.peers.iter().copied().filter(is_known).collect(),
            ..self.clone()
        }
    }
}

fn needs<'s>(state: &'s State, host: &str) -> BTreeMap<&'s str, Need<'s>> {
    let vpcs = state
        .of_kind(Kind::Vpc)
        .map(|object| (object.id(), Need::default()));
    let mut needs: BTreeMap<&str, Need<'_>> = vpcs.collect();
    for object in state.iter() {
        let Some(need) = object.vpc().and_then(|vpc| needs.get_mut(vpc)) else {
            continue;
        };
        match object {
            Object::Port(port) => {
                need.peers.extend([&*port.host, &*port.moved_from]);
                need.ports += usize::from(port.host == host);
            }
            Object::RouteTable(table) => need.peers.extend(table.hosts()),
            Object::Vpc(vpc) => need.peers.extend(carriers(vpc)),
            Object::NatGateway(_) => need.nat_gateways += 1,
            _ => {}
        }
    }
    needs
}

/// The room that is taken.
struct Room<'s> {
    /// How many VPCs need each host.
    peers: HashMap<&'s str, usize>,
    ports: usize,
    vpcs: usize,
    nat_gateways: usize,
}

impl<'s> Room<'s> {
    fn add(&mut self, need: &Need<'s>) {
        for peer in &need.peers {
            *self.peers.entry(peer).or_default() += 1;
        }
        self.ports += need.ports;
        self.vpcs += 1;
        self.nat_gateways += need.nat_gateways;
    }

    fn take(&mut self, need: &Need<'s>) {
        for peer in &need.peers {
            if let Some(count) = self.peers.get_mut(peer) {
                *count -= 1;
                if *count == 0 {
                    self.peers.remove(peer);
                }
            }
        }
        self.ports -= need.ports;
        self.vpcs -= 1;
        self.nat_gateways -= need.nat_gateways;
    }

    fn counts(&self) -> [usize; 4] {
        [self.peers.len(), self.ports, self.vpcs, self.nat_gateways]
    }
}

/// The VPCs of a state that this host has no room for as they are there, beside all that is in force `before` and stays: those that need least go first.
/// `held` are held back already.
pub(super) fn overfull(
    received: &State,
    before: &State,
    held: &Units,
    limits: &HostLimits,
    host: &str,
) -> Units {
    let (new, old) = (needs(received, host), needs(before, host));
    let is_known = |id: &&str| {
        let there = |state: &State| state.find(Kind::Host, id).is_some();
        !id.is_empty() && *id != host && (there(received) || there(before))
    };
    let mut room = Room {
        peers: base(received)
            .into_iter()
            .filter(is_known)
            .map(|id| (id, 1))
            .collect(),
        ports: 0,
        vpcs: 0,
        nat_gateways: 0,
    };
    let mut waiting = Vec::new();
    for (id, new) in new {
        let old = old.get(id).map(|need| need.only(is_known));
        if let Some(old) = &old {
            room.add(old);
        }
        if !held.contains_key(&vpc_unit(id)) {
            let new = new.only(is_known);
            let size = |need: &Need<'_>| need.peers.len() + need.ports + need.nat_gateways;
            let growth = size(&new) as i64 - old.as_ref().map_or(-1, |old| size(old) as i64);
            waiting.push((growth, id, old, new));
        }
    }
    waiting.sort_by_key(|(growth, id, ..)| (*growth, *id));
    let mut found = Units::new();
    for (_, id, old, new) in waiting {
        let before = room.counts();
        if let Some(old) = &old {
            room.take(old);
        }
        room.add(&new);
        let broken = excesses(id, before, room.counts(), limits);
        if broken.is_empty() {
            continue;
        }
        room.take(&new);
        if let Some(old) = &old {
            room.add(old);
        }
        found.insert(vpc_unit(id), broken);
    }
    found
}

/// The hosts that are known whatever VPCs are: gateways of external networks, and those that nothing names.
fn base(state: &State) -> HashSet<&str> {
    let named = hosts_named(state);
    let hosts = state.of_kind(Kind::Host).map(Object::id);
    let mut base: HashSet<&str> = hosts.filter(|id| !named.contains(id)).collect();
    for object in state.of_kind(Kind::ExternalNetwork) {
        if let Object::ExternalNetwork(network) = object {
            base.extend(network.gateway_hosts.iter().map(String::as_str));
        }
    }
    base
}

/// The limits that a VPC would break, and make worse.
fn excesses(
    vpc: &str,
    before: [usize; 4],
    after: [usize; 4],
    limits: &HostLimits,
) -> Vec<Violation> {
    let rules = [
        (limits.peers, "know", "other hosts", " (limits.peers)"),
        (limits.ports, "hold", "ports", " (limits.ports)"),
        (limits.vpcs, "hold", "VPCs", " (limits.vpcs)"),
        (limits.nat_gateways, "know", "NAT gateways", ""),
    ];
    let counts = before.into_iter().zip(after);
    let broken = rules
        .into_iter()
        .zip(counts)
        .filter(|((most, ..), (before, after))| {
            *most != 0 && *after > *most as usize && after > before
        });
    broken
        .map(|((most, verb, things, setting), (_, after))| Violation {
            object: Some(vpc_unit(vpc).to_wire()),
            field: String::new(),
            rule: format!("with it this host would {verb} {after} {things}, and {verb}s at most {most}{setting}"),
        })
        .collect()
}
