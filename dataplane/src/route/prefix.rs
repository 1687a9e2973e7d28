//! Address prefixes in the 128-bit form that packets are parsed into.

use std::fmt;

use ipnetwork::IpNetwork;

use crate::packet::Family;
use crate::packet::parse::{IPV4_MAPPED, address_word, word_address};

/// A prefix: `len` counts in the 128-bit form, so that an IPv4 /24 is 120 long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    bits: u128,
    len: u8,
}

impl Prefix {
    /// The prefix of the first `length` bits of an address in the 128-bit form; `length` is at most 128.
    pub fn new(address: u128, length: u8) -> Self {
        Self {
            bits: address & mask(length),
            len: length,
        }
    }

    /// One address alone.
    pub fn host(address: u128) -> Self {
        Self {
            bits: address,
            len: 128,
        }
    }

    /// The family that the prefix belongs to; `::/0` is IPv6's alone.
    pub fn family(&self) -> Family {
        if self.len >= 96 && self.bits >> 32 == IPV4_MAPPED >> 32 {
            Family::Ipv4
        } else {
            Family::Ipv6
        }
    }

    /// Length in the 128-bit form.
    pub fn length(&self) -> u8 {
        self.len
    }

    /// The first address.
    pub fn bits(&self) -> u128 {
        self.bits
    }

    /// Whether the address lies within.
    pub fn contains(&self, address: u128) -> bool {
        (address ^ self.bits) & mask(self.len) == 0
            && (self.len >= 96 || address >> 32 != IPV4_MAPPED >> 32)
    }
}

/// The ones of a prefix of that length.
pub fn mask(len: u8) -> u128 {
    if len == 0 {
        0
    } else {
        u128::MAX << (128 - u32::from(len))
    }
}

impl From<IpNetwork> for Prefix {
    fn from(network: IpNetwork) -> Self {
        let len = network.prefix() + if network.is_ipv4() { 96 } else { 0 };
        Self {
            bits: address_word(network.ip()) & mask(len),
            len,
        }
    }
}

impl From<Prefix> for IpNetwork {
    fn from(prefix: Prefix) -> Self {
        let address = word_address(prefix.bits);
        let of_family = if address.is_ipv4() { 96 } else { 0 };
        // Never fails: no prefix is longer than its family's addresses.
        Self::new(address, prefix.len - of_family).unwrap_or_else(|_| address.into())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = if self.family() == Family::Ipv4 {
            self.len - 96
        } else {
            self.len
        };
        write!(f, "{}/{len}", word_address(self.bits))
    }
}
