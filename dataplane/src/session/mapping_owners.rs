//! Who has how many mappings: NAT gateways, and inside addresses at each. The lock of the mappings is held meanwhile, and there are never more
//! owners than mappings.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;

const NONE: u32 = u32::MAX;
/// NAT gateways that are counted, by index.
const GATEWAYS: usize = if cfg!(feature = "loom") { 2 } else { 1 << 16 };

#[derive(Debug)]
pub(super) struct Owners {
    by_gateway: Vec<u32>,
    entries: Vec<Owner>,
    free: Vec<u32>,
    /// First entries of chains, by hash.
    chains: Vec<u32>,
    hasher: RandomState,
}

/// An inside address that has mappings: 48 bytes.
#[derive(Debug, Clone, Copy)]
struct Owner {
    address: u128,
    gateway: u16,
    mappings: u32,
    next: u32,
}

impl Owners {
    /// Of at most so many mappings.
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            by_gateway: vec![0; GATEWAYS],
            entries: Vec::with_capacity(capacity as usize),
            free: Vec::with_capacity(capacity as usize),
            chains: vec![NONE; (capacity as usize).next_power_of_two()],
            hasher: RandomState::default(),
        }
    }

    /// How many mappings a gateway has.
    pub(super) fn of_gateway(&self, gateway: u16) -> u32 {
        let count = self.by_gateway.get(usize::from(gateway));
        count.copied().unwrap_or(0)
    }

    /// How many mappings of a gateway an inside address has.
    pub(super) fn of_address(&self, gateway: u16, address: u128) -> u32 {
        let found = self.find(gateway, address);
        found.map_or(0, |number| self.entries[number as usize].mappings)
    }

    fn chain(&self, gateway: u16, address: u128) -> usize {
        self.hasher.hash_one((gateway, address)) as usize & (self.chains.len() - 1)
    }

    fn find(&self, gateway: u16, address: u128) -> Option<u32> {
        let mut number = self.chains[self.chain(gateway, address)];
        while let Some(owner) = self.entries.get(number as usize) {
            if (owner.gateway, owner.address) == (gateway, address) {
                return Some(number);
            }
            number = owner.next;
        }
        None
    }

    /// One mapping more.
    pub(super) fn add(&mut self, gateway: u16, address: u128) {
        if let Some(count) = self.by_gateway.get_mut(usize::from(gateway)) {
            *count += 1;
        }
        if let Some(number) = self.find(gateway, address) {
            self.entries[number as usize].mappings += 1;
            return;
        }
        let chain = self.chain(gateway, address);
        let owner = Owner {
            address,
            gateway,
            mappings: 1,
            next: self.chains[chain],
        };
        let number = self.free.pop().unwrap_or(self.entries.len() as u32);
        match self.entries.get_mut(number as usize) {
            Some(place) => *place = owner,
            None => self.entries.push(owner),
        }
        self.chains[chain] = number;
    }

    /// One mapping less.
    pub(super) fn take(&mut self, gateway: u16, address: u128) {
        if let Some(count) = self.by_gateway.get_mut(usize::from(gateway)) {
            *count = count.saturating_sub(1);
        }
        let Some(number) = self.find(gateway, address) else {
            return;
        };
        let owner = &mut self.entries[number as usize];
        owner.mappings -= 1;
        if owner.mappings > 0 {
            return;
        }
        let next = owner.next;
        let chain = self.chain(gateway, address);
        if self.chains[chain] == number {
            self.chains[chain] = next;
        } else {
            let mut before = self.chains[chain];
            while let Some(owner) = self.entries.get_mut(before as usize) {
                if owner.next == number {
                    owner.next = next;
                    break;
                }
                before = owner.next;
            }
        }
        self.free.push(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// Against a plain map, with chains that are long: four of them for all addresses.
        #[test]
        fn counts_are_those_of_a_plain_map(
            steps in proptest::collection::vec((0..3u16, 0..12u128, proptest::bool::ANY), 0..200),
        ) {
            let mut owners = Owners::new(200);
            owners.chains = vec![NONE; 4];
            let mut plain = std::collections::HashMap::<(u16, u128), u32>::new();
            for (gateway, address, is_more) in steps {
                let count = plain.entry((gateway, address)).or_default();
                if is_more {
                    owners.add(gateway, address);
                    *count += 1;
                } else if *count > 0 {
                    owners.take(gateway, address);
                    *count -= 1;
                }
                for (gateway, address) in (0..3).flat_map(|g| (0..12).map(move |a| (g, a))) {
                    let expected = plain.get(&(gateway, address)).copied().unwrap_or(0);
                    proptest::prop_assert_eq!(owners.of_address(gateway, address), expected);
                }
                for gateway in 0..3 {
                    let of_it = plain.iter().filter(|((other, _), _)| *other == gateway);
                    let expected: u32 = of_it.map(|(_, count)| count).sum();
                    proptest::prop_assert_eq!(owners.of_gateway(gateway), expected);
                }
            }
        }
    }
}
