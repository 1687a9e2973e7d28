//! What other hosts have said that their ports have joined, and what of [`Table`] follows from it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{Elsewhere, Filter, Table};
use crate::numbers::Vni;
use crate::snapshot::{Snapshot, Subnet};

/// What somebody has said.
type OfGroup = BTreeMap<(String, String), Filter>;

/// All that other hosts have said, by the ids of hosts, VPCs and subnets. What is of hosts or VPCs that a snapshot does not have is passed over, until one does.
#[derive(Debug, Default)]
pub struct Others {
    /// By VPC and group: what ports of a host in a subnet want together.
    wanted: BTreeMap<(String, u128), OfGroup>,
    /// By VPC: the hosts that say what their ports have joined.
    telling: BTreeMap<String, BTreeSet<String>>,
    /// What of that is not in the table as it is.
    changed: BTreeSet<(String, u128)>,
    told_otherwise: BTreeSet<String>,
    peers: HashMap<String, u16>,
    vpcs: HashMap<String, Vni>,
    /// The generation of the snapshot that those are of.
    followed: Option<u32>,
    /// Whether they have changed.
    has_moved: bool,
}

impl Others {
    /// Whether a host says what its ports in a VPC have joined.
    pub fn tell(&mut self, vpc: &str, host: &str, tells: bool) {
        let of_vpc = self.telling.entry(vpc.to_owned()).or_default();
        let has_changed = match tells {
            true => of_vpc.insert(host.to_owned()),
            false => of_vpc.remove(host),
        };
        if of_vpc.is_empty() {
            self.telling.remove(vpc);
        }
        if has_changed {
            self.told_otherwise.insert(vpc.to_owned());
        }
    }

    /// What the ports of a host in a subnet want of a group together; none: nothing.
    pub fn want(
        &mut self,
        (vpc, host, subnet): (&str, &str, &str),
        group: u128,
        filter: Option<&Filter>,
    ) {
        let key = (vpc.to_owned(), group);
        let of_group = self.wanted.entry(key.clone()).or_default();
        let by = (host.to_owned(), subnet.to_owned());
        let before = match filter {
            Some(filter) => of_group.insert(by, filter.clone()),
            None => of_group.remove(&by),
        };
        if of_group.is_empty() {
            self.wanted.remove(&key);
        }
        if before.as_ref() != filter {
            self.changed.insert(key);
        }
    }

    /// Follows where a snapshot has hosts and VPCs; whether the table is then not as it should be. Takes as long as there are many of both, if anybody has said
    /// anything.
    pub fn follow(&mut self, snapshot: &Snapshot) -> bool {
        let is_silent = self.wanted.is_empty() && self.telling.is_empty();
        if !is_silent && self.followed != Some(snapshot.generation) {
            self.followed = Some(snapshot.generation);
            self.look(snapshot);
        }
        self.has_moved || !self.changed.is_empty() || !self.told_otherwise.is_empty()
    }

    fn look(&mut self, snapshot: &Snapshot) {
        let peers = (0u16..).zip(snapshot.peers.iter());
        let peers = peers.filter_map(|(index, peer)| Some((peer.as_ref()?.host.clone(), index)));
        let peers: HashMap<String, u16> = peers.collect();
        let vpcs = snapshot.vpcs.iter().map(|vpc| (vpc.id.clone(), vpc.vni));
        let vpcs: HashMap<String, Vni> = vpcs.collect();
        if peers != self.peers || vpcs != self.vpcs {
            (self.peers, self.vpcs) = (peers, vpcs);
            self.has_moved = true;
        }
    }

    /// Brings a table up to date.
    pub fn update(&mut self, table: &mut Table) {
        if std::mem::take(&mut self.has_moved) {
            (table.elsewhere, table.telling) = Default::default();
            self.changed = self.wanted.keys().cloned().collect();
            self.told_otherwise = self.telling.keys().cloned().collect();
        }
        for (vpc, group) in std::mem::take(&mut self.changed) {
            let Some(vni) = self.vpcs.get(&vpc) else {
                continue;
            };
            let wanted = self.wanted.get(&(vpc, group)).into_iter().flatten();
            let mut of_group: Vec<Elsewhere> = wanted
                .filter_map(|((host, subnet), filter)| {
                    Some(Elsewhere {
                        peer: *self.peers.get(host)?,
                        subnet: Subnet::number_of(subnet),
                        filter: filter.clone(),
                    })
                })
                .collect();
            of_group.sort_unstable_by_key(|there| there.peer);
            match of_group.is_empty() {
                true => table.elsewhere.remove(&(*vni, group)),
                false => table.elsewhere.insert((*vni, group), Arc::from(of_group)),
            };
        }
        for vpc in std::mem::take(&mut self.told_otherwise) {
            let Some(vni) = self.vpcs.get(&vpc) else {
                continue;
            };
            let hosts = self.telling.get(&vpc).into_iter().flatten();
            let mut peers: Vec<u16> = hosts
                .filter_map(|host| self.peers.get(host).copied())
                .collect();
            peers.sort_unstable();
            match peers.is_empty() {
                true => table.telling.remove(vni),
                false => table.telling.insert(*vni, peers.into()),
            };
        }
    }
}
