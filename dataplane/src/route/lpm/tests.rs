//! The table against a list of prefixes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::packet::parse::address_word;

fn prefix(text: &str) -> Prefix {
    Prefix::from(text.parse::<IpNetwork>().unwrap())
}

fn word(text: &str) -> u128 {
    address_word(text.parse::<IpAddr>().unwrap())
}

#[test]
fn the_longer_prefix_wins_and_families_stay_apart() {
    let mut table: Lpm<u32> = Lpm::default();
    table.insert(prefix("0.0.0.0/0"), 1);
    table.insert(prefix("10.0.0.0/8"), 2);
    table.insert(prefix("10.1.2.3/32"), 3);
    table.insert(prefix("::/0"), 4);
    assert_eq!(table.lookup(word("10.1.2.3")), Some((128, 3)));
    assert_eq!(table.lookup(word("10.1.2.4")), Some((104, 2)));
    assert_eq!(table.lookup(word("11.0.0.1")), Some((96, 1)));
    assert_eq!(table.lookup(word("2001:db8::1")), Some((0, 4)));
    let only_v6 = Lpm::from_iter([(prefix("::/0"), ())]);
    assert_eq!(only_v6.lookup(word("10.0.0.1")), None);
}

#[test]
fn the_greatest_value_and_the_longest_prefix_fit() {
    let mut table: Lpm<u32> = Lpm::default();
    let longest = prefix("2001:db8::1/128");
    table.insert(longest, VALUES - 1);
    assert_eq!(table.lookup(word("2001:db8::1")), Some((128, VALUES - 1)));
    assert_eq!(table.insert(longest, 0), Some(VALUES - 1));
    assert_eq!(table.remove(longest), Some(0));
    assert!(table.is_empty());
}

/// The twin: prefixes in a list.
#[derive(Debug, Clone, Default)]
struct Naive(Vec<(Prefix, u32)>);

impl Naive {
    fn remove(&mut self, prefix: Prefix) -> Option<u32> {
        let place = self.0.iter().position(|(p, _)| *p == prefix)?;
        Some(self.0.swap_remove(place).1)
    }

    fn insert(&mut self, prefix: Prefix, value: u32) -> Option<u32> {
        let before = self.remove(prefix);
        self.0.push((prefix, value));
        before
    }

    fn lookup(&self, address: u128) -> Option<(u8, u32)> {
        let held = self.0.iter().filter(|(p, _)| p.contains(address));
        held.max_by_key(|(p, _)| p.length())
            .map(|(p, value)| (p.length(), *value))
    }
}

fn assert_same(table: &Lpm<u32>, twin: &Naive, probes: &[u128]) {
    let near = twin.0.iter().flat_map(|(p, _)| {
        let last = p.bits() | !super::super::prefix::mask(p.length());
        [
            p.bits(),
            last,
            p.bits().wrapping_sub(1),
            last.wrapping_add(1),
        ]
    });
    let probes: Vec<u128> = probes.iter().copied().chain(near).collect();
    let mut batch = Vec::new();
    table.lookup_batch(&probes, |found| batch.push(found));
    assert_eq!(batch.len(), probes.len());
    for (address, batched) in probes.iter().zip(batch) {
        let wanted = twin.lookup(*address);
        assert_eq!(table.lookup(*address), wanted, "{address:#x}");
        assert_eq!(batched, wanted.map(|(_, v)| v), "{address:#x} in a batch");
    }
    assert_eq!(table.len(), twin.0.len());
    let mut all = Vec::new();
    table.for_each(|prefix, value| all.push((prefix, value)));
    all.sort_unstable();
    let mut wanted = twin.0.clone();
    wanted.sort_unstable();
    assert_eq!(all, wanted);
}

#[derive(Debug, Clone)]
enum Change {
    Insert(IpNetwork, u32),
    /// One of those that were inserted before.
    Remove(Index),
    Absent(IpNetwork),
    Copy,
    Compact,
}

/// Prefixes that crowd a few corners, so that they cover, split and follow each other.
fn networks() -> impl Strategy<Value = IpNetwork> {
    let corner = prop_oneof![
        Just(0u32),
        Just(0x0a00_0000),
        Just(0x0a01_0200),
        any::<u32>()
    ];
    let ipv4 = (corner, any::<u32>(), 0u8..=32, 0u8..=32).prop_map(|(corner, bits, kept, len)| {
        let low = bits.checked_shr(kept.into()).unwrap_or(0);
        IpNetwork::new(IpAddr::V4(Ipv4Addr::from(corner ^ low)), len).unwrap()
    });
    let corner = prop_oneof![
        Just(0u128),
        Just(0x2001_0db8_u128 << 96),
        Just(0x2001_0db8_0000_0001_u128 << 64),
        any::<u128>()
    ];
    let ipv6 =
        (corner, any::<u128>(), 0u8..=128, 0u8..=128).prop_map(|(corner, bits, kept, len)| {
            let low = bits.checked_shr(kept.into()).unwrap_or(0);
            let address = Ipv6Addr::from(corner ^ low);
            // Mapped addresses are IPv4's.
            let address = if address.to_ipv4_mapped().is_some() {
                Ipv6Addr::LOCALHOST
            } else {
                address
            };
            IpNetwork::new(address.into(), len).unwrap()
        });
    prop_oneof![ipv4, ipv6]
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => (networks(), 0..VALUES).prop_map(|(n, v)| Change::Insert(n, v)),
        4 => any::<Index>().prop_map(Change::Remove),
        1 => networks().prop_map(Change::Absent),
        1 => Just(Change::Copy),
        1 => Just(Change::Compact),
    ]
}

proptest! {
    #[test]
    fn the_table_does_what_a_list_does_and_copies_stay(
        changes in proptest::collection::vec(changes(), 0..250),
        probes in proptest::collection::vec(any::<u128>(), 20),
        more in proptest::collection::vec(any::<u32>(), 20),
    ) {
        let mut table: Lpm<u32> = Lpm::default();
        let mut twin = Naive::default();
        let mut copies = Vec::new();
        for change in changes {
            match change {
                Change::Insert(network, value) => {
                    let prefix = Prefix::from(network);
                    prop_assert_eq!(table.insert(prefix, value), twin.insert(prefix, value));
                }
                Change::Remove(which) => {
                    if !twin.0.is_empty() {
                        let prefix = twin.0[which.index(twin.0.len())].0;
                        prop_assert_eq!(table.remove(prefix), twin.remove(prefix));
                    }
                }
                Change::Absent(network) => {
                    let prefix = Prefix::from(network);
                    prop_assert_eq!(table.remove(prefix), twin.remove(prefix));
                }
                Change::Copy => copies.push((table.clone(), twin.clone())),
                Change::Compact => table.compact(),
            }
        }
        let probes: Vec<u128> = probes.into_iter()
            .chain(more.into_iter().map(|word| IPV4_MAPPED | u128::from(word)))
            .collect();
        assert_same(&table, &twin, &probes);
        for (table, twin) in &copies {
            assert_same(table, twin, &probes);
        }
        for (prefix, _) in twin.0.clone() {
            prop_assert_eq!(table.remove(prefix), twin.remove(prefix));
        }
        assert_same(&table, &twin, &probes);
    }
}
