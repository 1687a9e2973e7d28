//! Longest prefix match, for one address or many at a time; a copy shares what it does not change.
//!
//! A table of a few prefixes is an array (`small`), one of many a trie with a stride of one byte whose nodes are compressed by bitmap
//! (`trie`, `node`), with a short way through it for many addresses at a time (`dir16`); what was measured to choose so is in
//! `docs/decisions/003-longest-prefix-match.md`. Both families have a table each. Copying a table of a million prefixes and changing the copy takes
//! some twenty microseconds: the agent changes a copy, and publishes it while workers still read the original.

mod blocks;
mod dir16;
mod entries;
mod node;
mod small;
mod table;
mod trie;

use std::marker::PhantomData;

use super::prefix::Prefix;
use crate::packet::Family;
use crate::packet::parse::IPV4_MAPPED;
use table::Table;

/// Bits by which IPv4 prefixes are longer in the 128-bit form.
const IPV4_OFFSET: u8 = 96;

/// What a prefix can lead to: small, so that it lies in the table itself. What is larger is named by its place in a list.
pub trait Value: Copy {
    /// The value as a number below [`VALUES`]; greater ones are cut short.
    fn number(self) -> u32;
    /// The value of that number.
    fn from_number(number: u32) -> Self;
}

/// How many values there can be.
pub const VALUES: u32 = node::VALUES;

impl Value for () {
    fn number(self) -> u32 {
        0
    }

    fn from_number(_: u32) -> Self {}
}

impl Value for u32 {
    fn number(self) -> u32 {
        self
    }

    fn from_number(number: u32) -> Self {
        number
    }
}

/// Prefixes of both families, each with a value.
///
/// ```
/// use std::net::IpAddr;
/// use ipnetwork::IpNetwork;
/// use weft_dataplane::{packet::parse::address_word, route::{Lpm, Prefix}};
///
/// let prefix = |text: &str| text.parse::<IpNetwork>().map(Prefix::from);
/// let word = |text: &str| text.parse::<IpAddr>().map(address_word);
///
/// let mut routes = Lpm::<u32>::default();
/// routes.insert(prefix("10.0.0.0/8")?, 1);
/// routes.insert(prefix("10.1.0.0/16")?, 2);
/// routes.insert(prefix("2001:db8::/32")?, 3);
///
/// // The longest prefix wins. Its length counts in the 128-bit form.
/// assert_eq!(routes.lookup(word("10.1.2.3")?), Some((96 + 16, 2)));
/// assert_eq!(routes.lookup(word("10.2.0.1")?), Some((96 + 8, 1)));
/// assert_eq!(routes.lookup(word("192.0.2.1")?), None);
///
/// // A copy shares what it does not change, and the original stays as it was.
/// let mut next = routes.clone();
/// assert_eq!(next.remove(prefix("10.1.0.0/16")?), Some(2));
/// assert_eq!(next.lookup(word("10.1.2.3")?), Some((96 + 8, 1)));
/// assert_eq!(routes.lookup(word("10.1.2.3")?), Some((96 + 16, 2)));
///
/// // Many addresses at a time.
/// let mut found = Vec::new();
/// routes.lookup_batch(&[word("10.1.0.1")?, word("2001:db8::1")?, word("::1")?], |value| found.push(value));
/// assert_eq!(found, [Some(2), Some(3), None]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Lpm<T> {
    ipv4: Table<u32>,
    ipv6: Table<u128>,
    values: PhantomData<T>,
}

impl<T> Default for Lpm<T> {
    fn default() -> Self {
        Self {
            ipv4: Table::new(),
            ipv6: Table::new(),
            values: PhantomData,
        }
    }
}

/// The address as a key of the IPv4 table, if it is of IPv4.
#[inline]
fn ipv4(address: u128) -> Option<u32> {
    (address >> 32 == IPV4_MAPPED >> 32).then_some(address as u32)
}

impl<T: Value> Lpm<T> {
    /// Adds a prefix or replaces its value; returns the value that it had.
    pub fn insert(&mut self, prefix: Prefix, value: T) -> Option<T> {
        let (bits, length, number) = (prefix.bits(), prefix.length(), value.number());
        let before = match prefix.family() {
            Family::Ipv4 => self.ipv4.insert(bits as u32, length - IPV4_OFFSET, number),
            Family::Ipv6 => self.ipv6.insert(bits, length, number),
        };
        found(before.unwrap_or(node::NOTHING), 0).map(|(_, value)| value)
    }

    /// Takes out a prefix; returns its value, if it was there.
    pub fn remove(&mut self, prefix: Prefix) -> Option<T> {
        let (bits, length) = (prefix.bits(), prefix.length());
        let before = match prefix.family() {
            Family::Ipv4 => self.ipv4.remove(bits as u32, length - IPV4_OFFSET),
            Family::Ipv6 => self.ipv6.remove(bits, length),
        };
        found(before?, 0).map(|(_, value)| value)
    }

    /// The value of the longest prefix that holds the address, with that prefix's length in the 128-bit form.
    #[inline]
    pub fn lookup(&self, address: u128) -> Option<(u8, T)> {
        match ipv4(address) {
            Some(address) => found(self.ipv4.lookup(address), IPV4_OFFSET),
            None => found(self.ipv6.lookup(address), 0),
        }
    }

    /// The values that [`lookup`](Self::lookup) finds for each address, passed to `tell` in their order. Addresses of one family that follow
    /// each other are looked up together, which takes a fraction of the time in a large table.
    #[inline]
    pub fn lookup_batch(&self, addresses: &[u128], mut tell: impl FnMut(Option<T>)) {
        let mut results = [0; trie::BATCH];
        for addresses in addresses.chunks(trie::BATCH) {
            for run in addresses.chunk_by(|a, b| ipv4(*a).is_some() == ipv4(*b).is_some()) {
                if run.first().is_some_and(|first| ipv4(*first).is_some()) {
                    self.ipv4.lookup_batch(run, &mut results);
                } else {
                    self.ipv6.lookup_batch(run, &mut results);
                }
                for result in &results[..run.len()] {
                    tell(result.checked_sub(1).map(T::from_number));
                }
            }
        }
    }

    /// Every prefix with its value, those of IPv4 first; else in no order.
    pub fn for_each(&self, mut visit: impl FnMut(Prefix, T)) {
        self.ipv4.for_each(&mut |key, leaf| {
            if let Some((length, value)) = found(leaf, IPV4_OFFSET) {
                visit(Prefix::new(IPV4_MAPPED | key >> 96, length), value);
            }
        });
        self.ipv6.for_each(&mut |key, leaf| {
            if let Some((length, value)) = found(leaf, 0) {
                visit(Prefix::new(key, length), value);
            }
        });
    }
}

impl<T> Lpm<T> {
    /// How many prefixes.
    pub fn len(&self) -> usize {
        self.ipv4.len() + self.ipv6.len()
    }

    /// Whether there is no prefix.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lays the table out afresh, without the gaps that changes have left: for a table that has just been built.
    pub fn compact(&mut self) {
        self.ipv4.compact();
        self.ipv6.compact();
    }

    /// Bytes of memory that the table takes, as if it shared nothing with copies.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.ipv4.bytes() + self.ipv6.bytes()
    }
}

#[inline]
fn found<T: Value>(leaf: u32, offset: u8) -> Option<(u8, T)> {
    let (length, number) = node::parts(leaf)?;
    Some((length + offset, T::from_number(number)))
}

impl<T: Value> FromIterator<(Prefix, T)> for Lpm<T> {
    /// The last value of a prefix that comes twice stands.
    fn from_iter<I: IntoIterator<Item = (Prefix, T)>>(prefixes: I) -> Self {
        let mut table = Self::default();
        for (prefix, value) in prefixes {
            table.insert(prefix, value);
        }
        table.compact();
        table
    }
}

#[cfg(test)]
mod tests;
