//! Rules whose remote is an address set, by service: finds the sets to look up for a service.
//!
//! Sets change often and rules seldom, so the members of sets are not stored here. A segment tree over the ranges of services (Bentley,
//! 1977) holds each rule at O(log n) nodes; the nodes above a service hold exactly the rules that are about it. n rules take O(n log n)
//! memory whatever their ranges, and a look-up visits only sets that could decide.

use super::steps::{Function, Functions, Maker, NONE, Step};
use super::{AddressSet, Subject};

/// A rule's outcome and its set.
type Entry = (u32, u32);

/// Rules on sets, of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SetRules {
    /// Which leaf of the tree a service belongs to.
    leaf: Function,
    /// Where the entries of each tree node begin; those of node i end where those of i + 1 begin. Node 1 is the root, 2i and 2i + 1 lie below i.
    nodes: Vec<u32>,
    entries: Vec<Entry>,
}

impl SetRules {
    /// Rules are first and last key of the service, outcome and set; none when there are none.
    pub(super) fn new(rules: &[(u32, u32, Entry)], maker: &mut Maker) -> Option<Self> {
        if rules.is_empty() {
            return None;
        }
        let mut edges: Vec<u32> = rules
            .iter()
            .flat_map(|(first, last, _)| [first.checked_sub(1), Some(*last)])
            .flatten()
            .chain([u32::MAX])
            .collect();
        edges.sort_unstable();
        edges.dedup();
        let leaves = edges.len().next_power_of_two();
        let mut lists: Vec<Vec<Entry>> = vec![Vec::new(); 2 * leaves];
        for (first, last, entry) in rules {
            let mut low = leaves + edges.partition_point(|edge| edge < first);
            let mut high = leaves + edges.partition_point(|edge| edge < last) + 1;
            while low < high {
                if low & 1 == 1 {
                    lists[low].push(*entry);
                    low += 1;
                }
                if high & 1 == 1 {
                    high -= 1;
                    lists[high].push(*entry);
                }
                low >>= 1;
                high >>= 1;
            }
        }
        let mut nodes = Vec::with_capacity(lists.len() + 1);
        let mut entries = Vec::new();
        for list in &mut lists {
            list.sort_unstable();
            // Of several rules on one set the first decides; they are told apart by their outcome alone.
            let mut seen = std::collections::HashSet::new();
            list.retain(|(_, set)| seen.insert(*set));
            nodes.push(entries.len() as u32);
            entries.append(list);
        }
        nodes.push(entries.len() as u32);
        let steps: Vec<Step> = edges.into_iter().zip(leaves as u32..).collect();
        Some(Self {
            leaf: maker.make(&steps),
            nodes,
            entries,
        })
    }

    /// The least outcome of the rules that match, if it is less than `best`; otherwise `best`.
    #[inline]
    pub(super) fn decide(
        &self,
        functions: &Functions,
        service: u32,
        subject: &Subject,
        sets: &[AddressSet],
        best: u32,
    ) -> u32 {
        let (mut best, mut node) = (best, functions.at(self.leaf, service) as usize);
        while node > 0 {
            let list = self.nodes[node] as usize..self.nodes[node + 1] as usize;
            for (outcome, set) in &self.entries[list] {
                if *outcome >= best {
                    break;
                }
                let holds = |set: &AddressSet| set.prefixes.lookup(subject.remote).is_some();
                if sets.get(*set as usize).is_some_and(holds) {
                    best = *outcome;
                }
            }
            if best == 0 {
                break;
            }
            node >>= 1;
        }
        best
    }

    /// Bytes of memory, without what the functions take.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.nodes) + size_of_val(&*self.entries)
    }
}

const _: () = assert!(NONE == u32::MAX, "no outcome is the worst one");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_takes_an_entry_of_8_bytes_and_a_node_4() {
        let mut maker = Maker::default();
        assert_eq!(SetRules::new(&[], &mut maker), None);
        // One leaf, which holds them all; of nodes also the one before the root and the end.
        let rules = [0, 1, 2, 3, 4].map(|set| (0, u32::MAX, (7, set)));
        assert_eq!(
            SetRules::new(&rules, &mut maker).map(|rules| rules.bytes()),
            Some(3 * 4 + 5 * 8)
        );
    }
}
