//! Longest prefix match: one hash table per prefix length that occurs, probed from the longest.
//!
//! Used on session misses only. A look-up costs one probe for each length that occurs in the table, whatever the number of prefixes.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use super::prefix::{Prefix, mask};
use crate::packet::Family;
use crate::packet::parse::IPV4_MAPPED;

type Level<T> = (u8, HashMap<u128, T, FixedState>);

/// Prefixes of both families, each with a value.
#[derive(Debug, Clone)]
pub struct Lpm<T> {
    ipv4: Vec<Level<T>>,
    ipv6: Vec<Level<T>>,
}

impl<T> Default for Lpm<T> {
    fn default() -> Self {
        Self {
            ipv4: Vec::new(),
            ipv6: Vec::new(),
        }
    }
}

impl<T> Lpm<T> {
    /// Adds a prefix or replaces its value; gives back the value that it had.
    pub fn insert(&mut self, prefix: Prefix, value: T) -> Option<T> {
        let levels = match prefix.family() {
            Family::Ipv4 => &mut self.ipv4,
            Family::Ipv6 => &mut self.ipv6,
        };
        let position = levels.partition_point(|(len, _)| *len > prefix.length());
        if levels
            .get(position)
            .is_none_or(|(len, _)| *len != prefix.length())
        {
            levels.insert(position, (prefix.length(), HashMap::default()));
        }
        levels[position].1.insert(prefix.bits(), value)
    }

    /// The value of the longest prefix that holds the address, with that prefix's length in the 128-bit form.
    pub fn lookup(&self, address: u128) -> Option<(u8, &T)> {
        let levels = if address >> 32 == IPV4_MAPPED >> 32 {
            &self.ipv4
        } else {
            &self.ipv6
        };
        levels
            .iter()
            .find_map(|(len, table)| Some((*len, table.get(&(address & mask(*len)))?)))
    }

    /// Whether there is no prefix.
    pub fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse::address_word;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn prefix(text: &str) -> Prefix {
        Prefix::from(text.parse::<ipnetwork::IpNetwork>().unwrap())
    }

    fn word(text: &str) -> u128 {
        address_word(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn the_longer_prefix_wins_and_families_stay_apart() {
        let mut table = Lpm::default();
        table.insert(prefix("0.0.0.0/0"), "v4 default");
        table.insert(prefix("10.0.0.0/8"), "ten");
        table.insert(prefix("10.1.2.3/32"), "host");
        table.insert(prefix("::/0"), "v6 default");
        let find = |text| table.lookup(word(text)).map(|(_, value)| *value);
        assert_eq!(find("10.1.2.3"), Some("host"));
        assert_eq!(find("10.1.2.4"), Some("ten"));
        assert_eq!(find("11.0.0.1"), Some("v4 default"));
        assert_eq!(find("2001:db8::1"), Some("v6 default"));
        let mut only_v6 = Lpm::default();
        only_v6.insert(prefix("::/0"), ());
        assert!(only_v6.lookup(word("10.0.0.1")).is_none());
    }

    proptest! {
        #[test]
        fn lookup_is_that_of_the_naive_twin(
            prefixes in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..60),
            probes in proptest::collection::vec((any::<u32>(), any::<proptest::sample::Index>(), any::<bool>()), 1..60),
        ) {
            let prefixes: Vec<Prefix> = prefixes
                .into_iter()
                .map(|(bits, len)| Prefix::from(ipnetwork::IpNetwork::new(std::net::Ipv4Addr::from(bits).into(), len).unwrap()))
                .collect();
            let mut table = Lpm::default();
            for (value, prefix) in prefixes.iter().enumerate() {
                table.insert(*prefix, value);
            }
            for (random, near, take_near) in probes {
                // Half of the probes lie near a prefix, so that matches happen.
                let address = match prefixes.len() {
                    0 => IPV4_MAPPED | u128::from(random),
                    n if take_near => prefixes[near.index(n)].bits() ^ u128::from(random & 0xff),
                    _ => IPV4_MAPPED | u128::from(random),
                };
                let twin = prefixes.iter().enumerate().filter(|(_, p)| p.contains(address)).max_by_key(|(value, p)| (p.length(), *value));
                prop_assert_eq!(table.lookup(address).map(|(_, value)| *value), twin.map(|(value, _)| value));
            }
        }
    }
}
