//! Which peers may send with what: the allowed pairs of the ports behind them. Compiled with the ports, a change of some of them by itself; asked for what
//! comes from a tunnel with an address or a MAC that does not live behind its sender.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::{CowMap, Map};
use crate::packet::parse::word_family;
use crate::packet::{Family, Mac};
use crate::route::Prefix;

/// What one port may send with besides its own: the addresses and the MAC; none where it may send with any.
pub type Allowed = Option<(Prefix, Mac)>;

/// The peers whose ports may send for others. Copies share what they do not change.
#[derive(Clone, Default, PartialEq)]
pub struct Senders {
    /// How many ports behind a peer may send with anything.
    unguarded: CowMap<u16, u32>,
    /// What the others may send with.
    ranges: CowMap<Key, Arc<Ranges>>,
}

/// What ranges are kept by: the peer, the addresses' family, and the MAC. None is for what comes by way of the peer's router, which leaves its own MAC: there,
/// ranges with all MACs are together.
type Key = (u16, Family, Option<Mac>);

/// Prefixes of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ranges {
    /// Each with how many pairs have it, in order: what one port gives up another may still have.
    counts: Vec<(Prefix, u32)>,
    /// Those that lie in no other one, in order. They do not overlap, so that the last one that begins before an address is the only one that may contain it.
    outermost: Vec<Prefix>,
}

impl Ranges {
    fn contains(&self, address: u128) -> bool {
        let after = self
            .outermost
            .partition_point(|prefix| prefix.bits() <= address);
        let last = after.checked_sub(1).and_then(|at| self.outermost.get(at));
        last.is_some_and(|prefix| prefix.contains(address))
    }

    /// These with so many pairs of some prefixes more or less.
    fn changed(&self, by: &BTreeMap<Prefix, i64>) -> Self {
        let mut counts = by.clone();
        for (prefix, count) in &self.counts {
            *counts.entry(*prefix).or_default() += i64::from(*count);
        }
        let counts = counts.into_iter();
        let counts: Vec<(Prefix, u32)> = counts
            .filter_map(|(prefix, count)| Some((prefix, u32::try_from(count).ok()?)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let mut outermost: Vec<Prefix> = Vec::new();
        for (prefix, _) in &counts {
            // In this order, what contains a prefix comes before it.
            let is_within = outermost
                .last()
                .is_some_and(|last| last.contains(prefix.bits()));
            if !is_within {
                outermost.push(*prefix);
            }
        }
        Self { counts, outermost }
    }
}

impl Senders {
    /// Whether a peer has a port that may send with an address: with that MAC, or with any if it was `routed`.
    #[inline]
    pub fn may_send(&self, peer: u16, address: u128, mac: Mac, routed: bool) -> bool {
        let mac = (!routed).then_some(mac);
        let ranges = self.ranges.get(&(peer, word_family(address), mac));
        ranges.is_some_and(|ranges| ranges.contains(address)) || self.unguarded.contains_key(&peer)
    }

    /// Takes out what ports behind peers may send with no more, and puts in what others may now. Takes as long as there is of these peers.
    pub(super) fn change(
        &mut self,
        gone: impl IntoIterator<Item = (u16, Allowed)>,
        come: impl IntoIterator<Item = (u16, Allowed)>,
    ) {
        let gone = gone.into_iter().map(|(peer, pair)| (peer, pair, -1));
        let come = come.into_iter().map(|(peer, pair)| (peer, pair, 1));
        let mut unguarded: Map<u16, i64> = Map::default();
        let mut ranges: Map<Key, BTreeMap<Prefix, i64>> = Map::default();
        for (peer, pair, count) in gone.chain(come) {
            let Some((prefix, mac)) = pair else {
                *unguarded.entry(peer).or_default() += count;
                continue;
            };
            for mac in [None, Some(mac)] {
                let of_key = ranges.entry((peer, prefix.family(), mac)).or_default();
                *of_key.entry(prefix).or_default() += count;
            }
        }
        for (peer, by) in unguarded {
            let before = self.unguarded.get(&peer).copied().unwrap_or_default();
            match u32::try_from(i64::from(before) + by) {
                Ok(now @ 1..) => drop(self.unguarded.insert(peer, now)),
                _ => drop(self.unguarded.remove(&peer)),
            }
        }
        for (key, by) in ranges {
            let before = self.ranges.get(&key).cloned().unwrap_or_default();
            let now = before.changed(&by);
            if now.counts.is_empty() {
                self.ranges.remove(&key);
            } else if now != *before {
                self.ranges.insert(key, Arc::new(now));
            }
        }
    }
}

impl FromIterator<(u16, Allowed)> for Senders {
    fn from_iter<I: IntoIterator<Item = (u16, Allowed)>>(all: I) -> Self {
        let mut senders = Self::default();
        senders.change([], all);
        senders
    }
}

/// In one order, whatever changes led here.
impl fmt::Debug for Senders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unguarded: BTreeMap<_, _> = self.unguarded.iter().collect();
        let ranges: BTreeMap<_, _> = self.ranges.iter().collect();
        f.debug_struct("Senders")
            .field("unguarded", &unguarded)
            .field("ranges", &ranges)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::parse::IPV4_MAPPED;

    /// Few addresses and lengths, so that prefixes are equal, or lie in each other, often. Those of IPv6 lie before, around and behind IPv4's.
    fn address() -> impl Strategy<Value = u128> {
        let bases = vec![0, 1 << 127, IPV4_MAPPED, IPV4_MAPPED, 0xfd << 120];
        (proptest::sample::select(bases), 0u128..16).prop_map(|(base, low)| base | low)
    }

    fn allowed() -> impl Strategy<Value = (u16, Allowed)> {
        let lengths = proptest::sample::select(vec![0, 1, 95, 96, 124, 126, 127, 128]);
        let prefix = (address(), lengths).prop_map(|(address, len)| Prefix::new(address, len));
        let pair = (prefix, 0u64..2).prop_map(|(prefix, mac)| (prefix, Mac::from_word(mac)));
        (0u16..3, proptest::option::weighted(0.97, pair))
    }

    /// What may be sent, by asking every pair.
    fn may_send(all: &[(u16, Allowed)], peer: u16, address: u128, mac: Mac, routed: bool) -> bool {
        let mut behind = all.iter().filter(|(of, _)| *of == peer);
        behind.any(|(_, pair)| {
            pair.is_none_or(|(prefix, its)| prefix.contains(address) && (routed || its == mac))
        })
    }

    proptest! {
        /// Changes one after the other lead to what there is, and that answers as a list of all pairs would.
        #[test]
        fn changes_lead_to_what_there_is_and_answers_are_those_of_a_list(
            steps in proptest::collection::vec(
                (proptest::collection::vec(any::<proptest::sample::Index>(), 0..4), proptest::collection::vec(allowed(), 0..5)),
                1..20,
            ),
            asked in proptest::collection::vec((0u16..3, address(), 0u64..3, any::<bool>()), 40),
        ) {
            let mut senders = Senders::default();
            let mut all: Vec<(u16, Allowed)> = Vec::new();
            for (out, come) in steps {
                let mut gone = Vec::new();
                for which in out {
                    if !all.is_empty() {
                        gone.push(all.swap_remove(which.index(all.len())));
                    }
                }
                senders.change(gone, come.iter().copied());
                all.extend(come);
                prop_assert!(senders == all.iter().copied().collect());
                for &(peer, address, mac, routed) in &asked {
                    let mac = Mac::from_word(mac);
                    let wanted = may_send(&all, peer, address, mac, routed);
                    prop_assert_eq!(senders.may_send(peer, address, mac, routed), wanted);
                }
            }
            senders.change(all, []);
            prop_assert!(senders == Senders::default());
        }
    }

    #[test]
    fn a_range_stays_while_one_of_two_ports_has_it() {
        let (mac, address) = (Mac::from_word(7), IPV4_MAPPED | 0x0a00_0901);
        let pair = (3, Some((Prefix::new(address, 120), mac)));
        let mut senders: Senders = [pair, pair].into_iter().collect();
        senders.change([pair], []);
        assert!(senders.may_send(3, address, mac, false));
        assert!(!senders.may_send(3, address, Mac::from_word(8), false));
        assert!(senders.may_send(3, address, Mac::from_word(8), true));
        assert!(!senders.may_send(4, address, mac, false));
        senders.change([pair], []);
        assert!(!senders.may_send(3, address, mac, false));
    }

    #[test]
    fn a_change_behind_one_peer_shares_what_the_others_have() {
        let pair = |peer, last| {
            let prefix = Prefix::host(IPV4_MAPPED | last);
            (peer, Some((prefix, Mac::from_word(7))))
        };
        let before: Senders = [pair(1, 1), pair(2, 2)].into_iter().collect();
        let mut after = before.clone();
        after.change([], [pair(1, 3)]);
        let of = |senders: &Senders, peer| {
            let key = (peer, Family::Ipv4, None);
            Arc::clone(senders.ranges.get(&key).unwrap())
        };
        assert!(Arc::ptr_eq(&of(&before, 2), &of(&after, 2)));
        assert_eq!(of(&before, 1).counts.len(), 1);
        assert_eq!(of(&after, 1).counts.len(), 2);
    }
}
