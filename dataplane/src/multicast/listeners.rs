//! Who gets which group: an immutable table that the agent's threads publish and workers read, one look-up for each packet to a group.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::numbers::Vni;
use crate::snapshot::{CowMap, Map, Snapshot};
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
    /// Peers that tell what their ports have joined.
    pub elsewhere: Groups<Elsewhere>,
    /// The peers that tell it, in order. Each other one that has ports of a sender's subnet gets a copy.
    pub telling: Map<Vni, Arc<[u16]>>,
    /// The peers that have ports of any subnet of a VPC that snoops, where it routes multicast.
    pub reach: Map<Vni, Arc<[u16]>>,
}

impl Table {
    /// The ports of this host that listen to a group.
    pub fn here(&self, group: (Vni, u128)) -> &[Listener] {
        self.here.get(&group).map_or(&[], |listeners| listeners)
    }

    /// The peers that have listeners to a group, of those that tell.
    pub fn elsewhere(&self, group: (Vni, u128)) -> &[Elsewhere] {
        self.elsewhere
            .get(&group)
            .map_or(&[], |listeners| listeners)
    }

    /// The peers that tell what their ports of a VPC have joined.
    pub fn telling(&self, vni: Vni) -> &[u16] {
        self.telling.get(&vni).map_or(&[], |peers| peers)
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
