//! What a host is told of a VPC whose ports it learns, beyond what all such hosts are: for the addresses that it has asked for, and the members that
//! groups have among the ports that it is told.
//!
//! It follows what is asked for and what changes, port by port: one address more or less costs what it is, however many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_proto::state::{Entry, Kind, Layer, Object, State, Sum};
use weft_proto::v1::{LearnedAddress, Port};

use crate::always::Always;
use crate::learning::{Address, Addresses, difference, has};
use crate::members::Members;
use crate::view::VpcView;

/// The VPC and the host of which this is about, in a state.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) state: &'a State,
    pub(super) view: &'a VpcView,
    pub(super) always: &'a Always,
    pub(super) host: &'a str,
}

impl<'a> Scene<'a> {
    /// A port of the VPC that lives somewhere.
    fn port(&self, id: &str) -> Option<&'a Port> {
        match self.state.find(Kind::Port, id)? {
            Object::Port(port) if *port.vpc == *self.view.id && !port.host.is_empty() => Some(port),
            _ => None,
        }
    }

    /// Whether a port is told because it is on this host, or has just left it.
    fn is_own(&self, port: &Port) -> bool {
        port.host == self.host || port.moved_from == self.host
    }

    /// The ports that the host is told and not all that learn the VPC's ports are, by their ids.
    pub(super) fn known(&self, asked: &Addresses) -> BTreeMap<&'a str, &'a Port> {
        let vpc = &*self.view.id;
        let own = self.state.ports_on(vpc, self.host);
        let left = self.state.ports_that_left(vpc, self.host);
        let left = left.filter(|port| !port.host.is_empty());
        let holders = asked.iter();
        let holders = holders.filter_map(|address| address.holder(self.state, vpc));
        let all = own.chain(left).chain(holders);
        all.filter(|port| !self.always.has(&port.id))
            .map(|port| (&*port.id, port))
            .collect()
    }
}

/// What is told for the addresses that a host has asked for in a VPC.
#[derive(Debug, Clone, Default)]
pub(super) struct LearnedPorts {
    asked: Addresses,
    /// The addresses, and those ports that have them and are on other hosts.
    pub(super) told: Layer,
    /// The ports of [`Scene::known`], as they are in the intent.
    known: Layer,
    /// The members of groups, and the digest of those of them that all such hosts are told.
    members: BTreeMap<String, (Sum, Members)>,
}

impl LearnedPorts {
    /// What is told at a version, whatever was before; the same entries for what is the same.
    pub(super) fn new(scene: Scene<'_>, asked: &Addresses, before: Option<&Self>) -> Self {
        #[cfg(test)]
        count(|work| work.made += 1);
        let vpc = &*scene.view.id;
        let mut told = before.map_or_else(Layer::default, |before| before.told.clone());
        let known = scene.known(asked);
        let ports = known.values().filter(|port| !scene.is_own(port));
        let ports: BTreeSet<&str> = ports.map(|port| &*port.id).collect();
        let stays = |entry: &&Arc<Entry>| match &entry.object {
            Object::Port(port) => ports.contains(&*port.id),
            Object::LearnedAddress(learned) => {
                Address::parse(&learned.address).is_some_and(|address| has(asked, address))
            }
            _ => false,
        };
        let gone: Vec<Arc<Entry>> = told.iter().filter(|it| !stays(it)).cloned().collect();
        for entry in gone {
            told.remove(entry.object.kind(), entry.object.id());
        }
        for address in asked.iter() {
            put_address(&mut told, vpc, **address);
        }
        for id in ports {
            put(&mut told, id, scene.view.places.get(Kind::Port, id));
        }
        let mut layer = Layer::default();
        layer.extend(
            known
                .keys()
                .filter_map(|id| scene.state.entry(Kind::Port, id)),
        );
        Self {
            asked: asked.clone(),
            told,
            known: layer,
            members: BTreeMap::new(),
        }
    }

    /// Follows what is asked for, and changes of these ports, none of which is or was the host's own.
    pub(super) fn follow<'a>(
        &mut self,
        scene: Scene<'_>,
        asked: &Addresses,
        ports: impl Iterator<Item = &'a str>,
    ) {
        let vpc = &*scene.view.id;
        let mut ports: BTreeSet<&str> = ports.collect();
        let before = std::mem::replace(&mut self.asked, asked.clone());
        let [gone, come] = difference(Some(&before), Some(asked));
        for address in &gone {
            let id = LearnedAddress::new(vpc, &address.to_string()).id;
            self.told.remove(Kind::LearnedAddress, &id);
        }
        for address in &come {
            put_address(&mut self.told, vpc, ***address);
        }
        for address in gone.into_iter().chain(come) {
            let holder = address.holder(scene.state, vpc);
            ports.extend(holder.map(|port| &*port.id));
        }
        for id in ports {
            self.settle(scene, id);
        }
    }

    /// Tells a port on another host, or no longer.
    fn settle(&mut self, scene: Scene<'_>, id: &str) {
        #[cfg(test)]
        count(|work| work.settled += 1);
        let port = scene.port(id);
        if port.is_some_and(|port| scene.is_own(port)) {
            return;
        }
        let port = port.filter(|port| {
            let mut addresses = Address::of_port(port);
            !scene.always.has(id) && addresses.any(|address| has(&self.asked, address))
        });
        let seen = port.and_then(|_| scene.view.places.get(Kind::Port, id));
        put(&mut self.told, id, seen);
        let known = port.and_then(|_| scene.state.entry(Kind::Port, id));
        let was = self.known.get(Kind::Port, id).cloned();
        put(&mut self.known, id, known);
        for (group, (_, members)) in &mut self.members {
            let [gone, come] = [was.as_ref(), known].map(|entry| addresses_in(entry, group));
            if gone != come {
                let [gone, come] = [gone, come].map(|list| list.iter().map(String::as_str));
                members.change(gone, come);
            }
        }
    }

    /// The members of a group among the ports that are told. `told`: the id by which hosts know it.
    pub(super) fn members(&mut self, scene: Scene<'_>, (group, told): (&str, &str)) -> Members {
        let vpc = &*scene.view.id;
        let shared = scene.always.members(scene.state, vpc, (group, told));
        let digest = shared.parts().digest();
        if let Some((of_shared, members)) = self.members.get(group)
            && *of_shared == digest
            && members.are_of(told)
        {
            return members.clone();
        }
        let mut members = shared;
        let known = self.known.iter();
        let known = known.flat_map(|entry| addresses_in(Some(entry), group));
        members.change(std::iter::empty(), known.map(String::as_str));
        self.members
            .insert(group.to_owned(), (digest, members.clone()));
        members
    }
}

/// The addresses of a port if it is in a group.
fn addresses_in<'e>(port: Option<&'e Arc<Entry>>, group: &str) -> &'e [String] {
    match port.map(|entry| &entry.object) {
        Some(Object::Port(port)) if port.security_groups.iter().any(|it| it == group) => {
            &port.addresses
        }
        _ => &[],
    }
}

fn put_address(told: &mut Layer, vpc: &str, address: Address) {
    let learned = LearnedAddress::new(vpc, &address.to_string());
    if told.get(Kind::LearnedAddress, &learned.id).is_none() {
        told.insert(&Entry::new(Object::LearnedAddress(learned)));
    }
}

/// Puts in the entry of a port, unless it is there already, or takes it out.
fn put(layer: &mut Layer, id: &str, entry: Option<&Arc<Entry>>) {
    match (layer.get(Kind::Port, id), entry) {
        (Some(known), Some(entry)) if Arc::ptr_eq(known, entry) => {}
        (_, Some(entry)) => drop(layer.insert(entry)),
        (Some(_), None) => drop(layer.remove(Kind::Port, id)),
        (None, None) => {}
    }
}

/// What a thread has done, for tests of what that costs.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Work {
    /// Ports that were looked at.
    settled: usize,
    /// How often all was made anew.
    made: usize,
}

#[cfg(test)]
thread_local! {
    static WORK: std::cell::Cell<Work> = const { std::cell::Cell::new(Work { settled: 0, made: 0 }) };
}

#[cfg(test)]
fn count(add: impl FnOnce(&mut Work)) {
    WORK.with(|known| {
        let mut work = known.get();
        add(&mut work);
        known.set(work);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learning::Learned;
    use crate::node::{Capabilities, NodeState};
    use crate::store::Change;
    use crate::version::Version;
    use weft_proto::v1::{Objects, SecurityGroup, SecurityRule, Subnet, Vpc};

    const PORTS: usize = 5000;

    fn port(number: usize, host: &str) -> Object {
        let [high, low] = [number / 250, number % 250];
        Object::Port(Port {
            id: format!("p{number}"),
            vpc: "blue".into(),
            subnet: "a".into(),
            mac: format!("02:00:00:00:{high:02x}:{low:02x}"),
            addresses: vec![format!("10.0.{high}.{low}")],
            security_groups: vec!["web".into()],
            host: host.into(),
            ..Port::default()
        })
    }

    /// Blue has its ports on h0 to h9 in turn.
    fn version() -> Version {
        let rule = SecurityRule {
            direction: "ingress".into(),
            remote_group: "web".into(),
            ..SecurityRule::default()
        };
        let mut state = State::from_objects(Objects {
            vpcs: vec![Vpc {
                id: "blue".into(),
                vni: 1,
                ..Vpc::default()
            }],
            subnets: vec![Subnet {
                id: "a".into(),
                vpc: "blue".into(),
                cidrs: vec!["10.0.0.0/16".into()],
                ..Subnet::default()
            }],
            security_groups: vec![SecurityGroup {
                id: "web".into(),
                vpc: "blue".into(),
                rules: vec![rule],
                ..SecurityGroup::default()
            }],
            ..Objects::default()
        })
        .unwrap();
        for host in 0..10 {
            state.insert(Object::Host(weft_proto::v1::Host {
                id: format!("h{host}"),
                vteps: vec![format!("192.0.2.{}", host + 1)],
                ..Default::default()
            }));
        }
        for number in 0..PORTS {
            state.insert(port(number, &format!("h{}", number % 10)));
        }
        Version::loaded(1, state).learning_above(1000)
    }

    fn with(version: &Version, object: Object) -> Version {
        let mut state = version.state.clone();
        let revision = version.revision + 1;
        state.insert_at(object.clone(), revision);
        let change = Change {
            revision,
            upserts: vec![object],
            ..Change::default()
        };
        version.next(&change, state)
    }

    fn told(version: &Version, host: &str, learned: &Learned, before: &NodeState) -> NodeState {
        let who = (host, Capabilities::all());
        NodeState::compile_with(
            version,
            who,
            (learned, &crate::findings::Findings::default()),
            Some(before),
        )
        .unwrap()
    }

    /// What compiling costs beside what is the same for every host.
    fn work<T>(act: impl FnOnce() -> T) -> (T, Work) {
        WORK.set(Work::default());
        let done = act();
        (done, WORK.get())
    }

    fn settled(settled: usize) -> Work {
        Work { settled, made: 0 }
    }

    #[test]
    fn an_address_and_a_change_cost_what_they_are() {
        let mut version = version();
        let mut learned = Learned::default();
        for number in 0..2000 {
            let Object::Port(port) = port(number, "") else {
                panic!("it is a port");
            };
            learned.insert("blue", Address::parse(&port.addresses[0]).unwrap());
        }
        let empty = NodeState::empty(0);
        let (mut node, made) = work(|| told(&version, "h0", &learned, &empty));
        assert_eq!(made.made, 1);
        // One address more, and one less.
        let one = Address::parse("10.0.19.7").unwrap();
        learned.insert("blue", one);
        let (next, cost) = work(|| told(&version, "h0", &learned, &node));
        assert_eq!(cost, settled(1));
        let (upserts, deletes) = node.delta_to(&next);
        assert_eq!(upserts.ports.len() + upserts.learned_addresses.len(), 2);
        assert_eq!(upserts.group_members.len(), 1);
        assert!(deletes.is_empty());
        learned.remove("blue", one);
        let (back, cost) = work(|| told(&version, "h0", &learned, &next));
        assert_eq!(cost, settled(1));
        assert_eq!(back.digest(), node.digest());
        node = back;

        // A port that comes elsewhere concerns its host alone; who looks nevertheless looks at that port.
        let more = with(&version, port(PORTS, "h3"));
        let concern = more.concern(&version).unwrap();
        assert_eq!(
            concern.hosts.iter().copied().collect::<Vec<_>>(),
            ["", "h3"]
        );
        let (same, cost) = work(|| told(&more, "h0", &learned, &node));
        assert_eq!(cost, settled(1));
        assert_eq!(same.delta_to(&node), (Objects::default(), Vec::new()));
        (version, node) = (more, same);

        // Hosts that are not woken fall behind, and still look only at what has changed.
        for number in 1..=500 {
            version = with(&version, port(PORTS + number, "h3"));
        }
        learned.insert("blue", one);
        let (_, cost) = work(|| told(&version, "h0", &learned, &node));
        assert_eq!(cost, settled(501));
    }

    #[test]
    fn what_all_are_told_alike_is_made_once() {
        let version = version();
        let empty = (NodeState::empty(0), Learned::default());
        let nodes = ["h0", "h1"].map(|host| told(&version, host, &empty.1, &empty.0));
        let shared = nodes.each_ref().map(|node| {
            let mut shared = node.iter().filter(|entry| match &entry.object {
                Object::Vpc(vpc) => vpc.learning.is_some(),
                _ => false,
            });
            shared.next().cloned().unwrap()
        });
        assert!(Arc::ptr_eq(&shared[0], &shared[1]));
    }
}
