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
