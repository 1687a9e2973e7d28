//! Who gets which group: an immutable table that the agent's threads publish and workers read, one look-up for each packet to a group.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::numbers::Vni;
use crate::snapshot::{CowMap, Map, Snapshot, Subnet};
use crate::sync::ArcSwap;

/// Which sources of a group a listener wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// These alone; sorted.
    Include(Box<[u128]>),
    /// All but these; sorted.
    Exclude(Box<[u128]>),
}

impl Filter {
    /// Whether packets of a source pass.
    #[inline]
    pub fn admits(&self, source: u128) -> bool {
        match self {
            Self::Include(sources) => sources.binary_search(&source).is_ok(),
            Self::Exclude(sources) => sources.binary_search(&source).is_err(),
        }
    }

    /// What passes one of two filters.
    pub fn or(&self, other: &Self) -> Self {
        let without = |list: &[u128], other: &Self| -> Box<[u128]> {
            let left = list.iter().copied();
            left.filter(|source| !other.admits(*source)).collect()
        };
        match (self, other) {
            (Self::Exclude(list), other) | (other, Self::Exclude(list)) => {
                Self::Exclude(without(list, other))
            }
            (Self::Include(left), Self::Include(right)) => {
                let mut all = [&left[..], &right[..]].concat();
                all.sort_unstable();
                all.dedup();
                Self::Include(all.into())
            }
        }
    }
}

/// A port of this host that listens to a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its index.
    pub port: u16,
    /// What it wants.
    pub filter: Filter,
}

/// A peer with listeners to a group in one subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    /// Its index. Entries of a group are in order of it.
    pub peer: u16,
    /// [`crate::snapshot::Subnet::number`] of the subnet.
    pub subnet: u64,
    /// What they want together.
    pub filter: Filter,
}

/// Somebody for each group of each VPC.
pub type Groups<T> = CowMap<(Vni, u128), Arc<[T]>>;

/// Who gets which group of which VPC.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Ports of this host.
    pub here: Groups<Listener>,
    /// Peers. None: what other hosts want is not known, and each that has ports of a sender's subnet gets a copy.
    pub elsewhere: Option<Groups<Elsewhere>>,
    /// The peers that get a copy then of what may pass into other subnets: those with ports of any subnet of the VPC that snoops.
    pub reach: Map<Vni, Arc<[u16]>>,
}

impl Table {
    /// The ports of this host that listen to a group.
    pub fn here(&self, group: (Vni, u128)) -> &[Listener] {
        self.here.get(&group).map_or(&[], |listeners| listeners)
    }

    /// The peers that have listeners to a group; none if that is not known.
    pub fn elsewhere(&self, group: (Vni, u128)) -> Option<&[Elsewhere]> {
        let elsewhere = self.elsewhere.as_ref()?;
        Some(elsewhere.get(&group).map_or(&[][..], |listeners| listeners))
    }
}

/// What goes into [`Table::reach`].
pub fn reach(snapshot: &Snapshot) -> Map<Vni, Arc<[u16]>> {
    let mut reach: Map<Vni, BTreeSet<u16>> = Map::default();
    for subnet in snapshot.subnets.iter().filter(|subnet| subnet.snoops) {
        let vpc = &snapshot.vpcs[subnet.vpc];
        if vpc.routes_multicast {
            reach.entry(vpc.vni).or_default().extend(&subnet.peers);
        }
    }
    let reach = reach.into_iter();
    reach
        .map(|(vni, peers)| (vni, peers.into_iter().collect()))
        .collect()
}

/// What another host has said that its ports listen to.
#[derive(Debug, Clone)]
pub struct Heard<'h> {
    /// The host's id.
    pub host: &'h str,
    /// The VPC's id.
    pub vpc: &'h str,
    /// The id of the subnet of the ports.
    pub subnet: &'h str,
    /// The group.
    pub group: u128,
    /// What they want together.
    pub filter: Filter,
}

/// What goes into [`Table::elsewhere`] for what other hosts have said. What is of hosts or VPCs that a snapshot does not have is passed over.
pub fn elsewhere<'h>(
    snapshot: &Snapshot,
    heard: impl Iterator<Item = Heard<'h>>,
) -> Groups<Elsewhere> {
    let peers = (0u16..).zip(snapshot.peers.iter());
    let peers = peers.filter_map(|(index, peer)| Some((&*peer.as_ref()?.host, index)));
    let peers: HashMap<&str, u16> = peers.collect();
    let vpcs = snapshot.vpcs.iter().map(|vpc| (&*vpc.id, vpc.vni));
    let vpcs: HashMap<&str, Vni> = vpcs.collect();
    let mut groups: HashMap<(Vni, u128), Vec<Elsewhere>> = HashMap::new();
    for heard in heard {
        let found = peers.get(heard.host).zip(vpcs.get(heard.vpc));
        if let Some((peer, vni)) = found {
            let group = groups.entry((*vni, heard.group)).or_default();
            group.push(Elsewhere {
                peer: *peer,
                subnet: Subnet::number_of(heard.subnet),
                filter: heard.filter,
            });
        }
    }
    let groups = groups.into_iter().map(|(key, mut of_group)| {
        of_group.sort_unstable_by_key(|there| there.peer);
        (key, of_group.into())
    });
    groups.collect()
}

/// The table in force.
#[derive(Debug, Default)]
pub struct Listeners(ArcSwap<Table>);

impl Listeners {
    /// Reads it. Neither locks nor allocates.
    #[inline]
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Table) -> T) -> T {
        read(&self.0.load())
    }

    /// A copy, which shares what is in it.
    pub fn copy(&self) -> Table {
        Table::clone(&self.0.load())
    }

    /// Puts another one in force.
    pub fn publish(&self, table: Table) {
        self.0.store(Arc::new(table));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_together_admit_what_one_of_them_admits() {
        let lists: [&[u128]; 4] = [&[], &[1], &[1, 2], &[2, 3]];
        let filters: Vec<Filter> = lists
            .iter()
            .flat_map(|list| {
                [
                    Filter::Include((*list).into()),
                    Filter::Exclude((*list).into()),
                ]
            })
            .collect();
        for one in &filters {
            for other in &filters {
                let both = one.or(other);
                for source in 0..5 {
                    let expected = one.admits(source) || other.admits(source);
                    assert_eq!(both.admits(source), expected, "{one:?} {other:?} {source}");
                }
            }
        }
    }
}
