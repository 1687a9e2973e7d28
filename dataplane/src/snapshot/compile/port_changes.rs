//! Ports that come, go or change, put into the snapshot before. Takes as long as there are such ports, however many others the VPC has.
//!
//! What other objects say of a port is not followed: a port that a route, a port forward or an elastic IP names is compiled with everything else, and so is one
//! of this host that has rate limits.

use std::collections::HashSet;
use std::sync::Arc;

use weft_proto::state::{Change, Kind, Object};
use weft_proto::v1;

use super::policy::GroupClassifiers;
use super::ports::{Parsed, allowed, compile_port, other_end_of_move};
use super::{Done, Report};
use crate::packet::Mac;
use crate::snapshot::index_allocator::IndexAllocator;
use crate::snapshot::{Allowed, Endpoint, Map, Place, Port, Snapshot, Trunks};

/// What is taken out, then what is put in.
#[derive(Debug, Default)]
pub(super) struct PortChanges<'s> {
    gone: Vec<Gone<'s>>,
    come: Vec<Come<'s>>,
}

/// A port as it was.
#[derive(Debug)]
struct Gone<'s> {
    port: &'s v1::Port,
    endpoint: Endpoint,
    vpc: usize,
    addresses: Vec<u128>,
    /// What it might send with besides, from behind a peer.
    allowed: Vec<Allowed>,
}

/// A port as it is.
#[derive(Debug)]
struct Come<'s> {
    port: &'s v1::Port,
    parsed: Parsed,
    /// If it is on this host.
    compiled: Option<Box<Port>>,
    /// The peer that it is behind, if it is not.
    peer: Option<u16>,
    /// Where it came from or went to, if it has moved.
    other_end: Option<u16>,
    /// What it may send with besides, from behind a peer.
    allowed: Vec<Allowed>,
}

/// The ports of a change; none if there is one that can't be put into the snapshot by itself, or that breaks a rule.
pub(super) fn between<'s, 'c>(
    done: &Done,
    numbers: &IndexAllocator,
    changes: &[Change<'s>],
    classifiers: impl Fn(&str) -> Option<&'c GroupClassifiers>,
) -> Option<PortChanges<'s>> {
    let mut found = PortChanges::default();
    // Routes of the same change that name one of its ports are compiled after it.
    let tables = changes.iter().filter_map(|change| match change.new {
        Some(Object::RouteTable(table)) => Some(table),
        _ => None,
    });
    let named: HashSet<&str> = tables.flat_map(v1::RouteTable::ports).collect();
    for change in changes {
        let ids = [change.old, change.new].into_iter().flatten();
        if ids
            .filter(|it| it.kind() == Kind::Port)
            .any(|it| named.contains(it.id()))
        {
            return None;
        }
        if let Some(Object::Port(port)) = change.old {
            found.gone.push(gone(done, port)?);
        }
        if let Some(Object::Port(port)) = change.new {
            found.come.push(come(done, port, &classifiers)?);
        }
    }
    let new = found.come.iter().filter(|it| it.compiled.is_some());
    let new = new.filter(|it| numbers.find(&it.port.id).is_none());
    let is_unique = found.is_unique(done) && found.has_own_vlans(done);
    (new.count() <= numbers.room() && is_unique).then_some(found)
}

/// What of a port is followed: nothing that others name, and nothing that is kept beside it.
fn is_plain(done: &Done, port: &v1::Port, host: &str) -> bool {
    let is_limited = port.host == host && port.limits.is_some();
    !is_limited && !done.places.named_ports.contains(&port.id)
}

fn parsed(done: &Done, port: &v1::Port) -> Option<Parsed> {
    let mut report = Report::default();
    let parsed = Parsed::of(port, &done.places, &mut report)?;
    let elastic_ips = &done.snapshot.vpcs.get(parsed.vpc)?.elastic_ips;
    let mut addresses = parsed.addresses.iter();
    let is_bound = addresses.any(|address| elastic_ips.contains_key(address));
    (report.violations.is_empty() && !is_bound).then_some(parsed)
}

fn gone<'s>(done: &Done, port: &'s v1::Port) -> Option<Gone<'s>> {
    let Parsed { vpc, addresses, .. } = parsed(done, port)?;
    let endpoint = *done.places.endpoints.get(&port.id)?;
    let mut report = Report::default();
    let allowed = match endpoint.place {
        Place::Here(_) => Vec::new(),
        Place::There(_) => allowed(port, endpoint.mac, &mut report).collect(),
    };
    let is_plain = report.violations.is_empty() && is_plain(done, port, &done.host);
    is_plain.then_some(Gone {
        port,
        endpoint,
        vpc,
        addresses,
        allowed,
    })
}

fn come<'s, 'c>(
    done: &Done,
    port: &'s v1::Port,
    classifiers: impl Fn(&str) -> Option<&'c GroupClassifiers>,
) -> Option<Come<'s>> {
    let host = &done.host;
    let parsed = parsed(done, port)?;
    let mut report = Report::default();
    let (compiled, peer, allowed) = if port.host == *host {
        let subnet = done.snapshot.subnets.get(parsed.subnet)?;
        let told = subnet.guests.as_deref();
        let compiled = compile_port(port, &parsed, (classifiers, told), &mut report);
        (Some(Box::new(compiled)), None, Vec::new())
    } else {
        let allowed = allowed(port, parsed.mac, &mut report).collect();
        let peer = *done.places.peers.get(&port.host)?;
        (None, Some(peer), allowed)
    };
    let is_plain = report.violations.is_empty() && is_plain(done, port, host);
    is_plain.then(|| Come {
        other_end: other_end_of_move(port, host, &done.places),
        port,
        parsed,
        compiled,
        peer,
        allowed,
    })
}

impl PortChanges<'_> {
    /// Whether no port has changed.
    pub(super) fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.come.is_empty()
    }

    /// Whether a subport of this host, or what may be the parent of one, is among them.
    pub(super) fn moves_trunks(&self, trunks: &Trunks) -> bool {
        let mut here = self.come.iter().filter(|it| it.compiled.is_some());
        !self.is_empty() && !trunks.is_empty() || here.any(|it| it.port.trunk.is_some())
    }

    /// Whether no other port has a MAC or an address of those that come.
    fn is_unique(&self, done: &Done) -> bool {
        let mut macs: HashSet<(usize, Mac)> = HashSet::new();
        let mut addresses: HashSet<(usize, u128)> = HashSet::new();
        let gone = || self.gone.iter();
        let gone_macs: HashSet<(usize, Mac)> = gone().map(|it| (it.vpc, it.endpoint.mac)).collect();
        let gone_addresses =
            gone().flat_map(|it| it.addresses.iter().map(|address| (it.vpc, *address)));
        let gone_addresses: HashSet<(usize, u128)> = gone_addresses.collect();
        self.come.iter().all(|it| {
            let Parsed { vpc, mac, .. } = it.parsed;
            let Some(known) = done.snapshot.vpcs.get(vpc) else {
                return false;
            };
            let is_free = |address: &u128| {
                !known.by_address.contains_key(address) || gone_addresses.contains(&(vpc, *address))
            };
            let mut own = it.parsed.addresses.iter();
            (!known.by_mac.contains_key(&mac) || gone_macs.contains(&(vpc, mac)))
                && macs.insert((vpc, mac))
                && own.all(|address| is_free(address) && addresses.insert((vpc, *address)))
        })
    }

    /// Whether no other port has the VLAN of a subport that comes to this host.
    fn has_own_vlans(&self, done: &Done) -> bool {
        let come = self.come.iter().filter(|it| it.compiled.is_some());
        let mut come = come.filter_map(|it| it.port.trunk.as_ref()).peekable();
        if come.peek().is_none() {
            return true;
        }
        let gone: HashSet<&str> = self.gone.iter().map(|it| it.port.id.as_str()).collect();
        let stay = done.snapshot.ports.iter().flatten();
        let stay = stay.filter(|port| !gone.contains(port.id.as_str()));
        let of = |trunk: &'_ v1::Trunk| (trunk.parent.clone(), trunk.vlan);
        let mut vlans: HashSet<(String, u32)> = stay
            .filter_map(|port| port.trunk.as_ref())
            .map(of)
            .collect();
        come.all(|trunk| vlans.insert(of(trunk)))
    }

    /// Of each VPC at once, since ports of one peer are often many.
    fn change_senders(&self, snapshot: &mut Snapshot) {
        let mut by_vpc: Map<usize, Sending> = Map::default();
        for it in &self.gone {
            if let Place::There(peer) = it.endpoint.place {
                let [gone, _] = by_vpc.entry(it.vpc).or_default();
                gone.extend(it.allowed.iter().map(|pair| (peer, *pair)));
            }
        }
        for it in &self.come {
            if let Some(peer) = it.peer {
                let [_, come] = by_vpc.entry(it.parsed.vpc).or_default();
                come.extend(it.allowed.iter().map(|pair| (peer, *pair)));
            }
        }
        for (vpc, [gone, come]) in by_vpc {
            if let Some(vpc) = snapshot.vpcs.get_mut(vpc)
                && (!gone.is_empty() || !come.is_empty())
            {
                Arc::make_mut(&mut vpc.senders).change(gone, come);
            }
        }
    }

    /// Puts them into the snapshot. Numbers of ports that have gone are given back after those of new ones are taken.
    pub(super) fn put(self, done: &mut Done, numbers: &mut IndexAllocator) {
        self.change_senders(&mut done.snapshot);
        for gone in &self.gone {
            gone.take_out(done);
        }
        let come = &self.come;
        let stays: HashSet<&str> = come
            .iter()
            .filter(|it| it.compiled.is_some())
            .map(|it| it.port.id.as_str())
            .collect();
        for come in self.come {
            come.put_in(done, numbers);
        }
        let was_here = |it: &&Gone<'_>| matches!(it.endpoint.place, Place::Here(_));
        let gone = self
            .gone
            .iter()
            .filter(was_here)
            .map(|it| it.port.id.as_str());
        numbers.release(gone.filter(|id| !stays.contains(id)));
    }
}

/// What ports that go, and those that come, may send with from behind their peers.
type Sending = [Vec<(u16, Allowed)>; 2];

/// Whether the ports of a VPC are learned. Who gets its broadcasts does not go by the ports, then.
fn is_learned(snapshot: &Snapshot, vpc: usize) -> bool {
    let vpc = snapshot.vpcs.get(vpc);
    vpc.is_some_and(|vpc| vpc.learned.is_some())
}

impl Gone<'_> {
    fn take_out(&self, done: &mut Done) {
        let (places, snapshot) = (&mut done.places, &mut done.snapshot);
        let Endpoint {
            mac, subnet, place, ..
        } = self.endpoint;
        places.endpoints.remove(&self.port.id);
        let is_learned = is_learned(snapshot, self.vpc);
        if let Some(vpc) = snapshot.vpcs.get_mut(self.vpc) {
            Arc::make_mut(&mut vpc.by_mac).remove(&mac);
            let by_address = Arc::make_mut(&mut vpc.by_address);
            for address in &self.addresses {
                by_address.remove(address);
            }
            if vpc.moves.contains_key(&mac) {
                Arc::make_mut(&mut vpc.moves).remove(&mac);
            }
        }
        match place {
            Place::Here(index) => {
                if let Some(slot) = snapshot.ports.get_mut(index.into()) {
                    *slot = None;
                }
                for group in &self.port.security_groups {
                    if let Some(members) = places.members.get_mut(group) {
                        members.retain(|member| *member != index);
                    }
                }
                if let Some(subnet) = snapshot.subnets.get_mut(subnet) {
                    subnet.ports.retain(|port| *port != index);
                }
            }
            Place::There(peer) => {
                let behind = places.ports_behind.entry((subnet, peer)).or_default();
                *behind = behind.saturating_sub(1);
                if *behind == 0
                    && !is_learned
                    && let Some(subnet) = snapshot.subnets.get_mut(subnet)
                {
                    subnet.peers.retain(|it| *it != peer);
                }
            }
        }
    }
}

impl Come<'_> {
    fn put_in(self, done: &mut Done, numbers: &mut IndexAllocator) {
        let (places, snapshot) = (&mut done.places, &mut done.snapshot);
        let Parsed {
            vpc, subnet, mac, ..
        } = self.parsed;
        let is_learned = is_learned(snapshot, vpc);
        let place = match (self.compiled, self.peer) {
            (Some(compiled), _) => {
                // There is room: it was looked for.
                let Some(index) = numbers.number(&self.port.id) else {
                    return;
                };
                let index = index as u16;
                while snapshot.ports.len() <= index.into() {
                    snapshot.ports.push(None);
                }
                if let Some(slot) = snapshot.ports.get_mut(index.into()) {
                    *slot = Some(*compiled);
                }
                for group in &self.port.security_groups {
                    places.members.entry(group.clone()).or_default().push(index);
                }
                if let Some(subnet) = snapshot.subnets.get_mut(subnet) {
                    subnet.ports.push(index);
                }
                Place::Here(index)
            }
            (None, Some(peer)) => {
                let behind = places.ports_behind.entry((subnet, peer)).or_default();
                if *behind == 0
                    && !is_learned
                    && let Some(subnet) = snapshot.subnets.get_mut(subnet)
                {
                    subnet.peers.push(peer);
                }
                *behind += 1;
                Place::There(peer)
            }
            (None, None) => return,
        };
        let endpoint = self.parsed.endpoint(place);
        places.endpoints.insert(self.port.id.clone(), endpoint);
        if let Some(vpc) = snapshot.vpcs.get_mut(vpc) {
            Arc::make_mut(&mut vpc.by_mac).insert(mac, endpoint);
            let by_address = Arc::make_mut(&mut vpc.by_address);
            for address in &self.parsed.addresses {
                by_address.insert(*address, endpoint);
            }
            if let Some(peer) = self.other_end {
                Arc::make_mut(&mut vpc.moves).insert(mac, peer);
            }
        }
    }
}
