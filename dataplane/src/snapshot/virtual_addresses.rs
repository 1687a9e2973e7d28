//! Virtual addresses that ports hold because they announced them, beside their own.

use super::{Endpoint, Vpc};
use crate::packet::Mac;

/// Those of a VPC. An address that a port has for itself is not held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VirtualAddresses {
    /// Each address, in order. They are in [`Vpc::by_address`], too.
    addresses: Vec<(u128, Endpoint)>,
    /// The MACs that they were announced with, in order, each once in a subnet.
    macs: Vec<(Mac, Endpoint)>,
}

impl VirtualAddresses {
    /// Of addresses with who holds them.
    pub(super) fn new(mut addresses: Vec<(u128, Endpoint)>) -> Self {
        addresses.sort_unstable_by_key(|(address, _)| *address);
        let macs = addresses.iter();
        let mut macs: Vec<(Mac, Endpoint)> = macs.map(|(_, it)| (it.mac, *it)).collect();
        // Stable: of two that hold addresses with one MAC, the one with the least address is reached by it.
        macs.sort_by_key(|(mac, endpoint)| (*mac, endpoint.subnet));
        macs.dedup_by_key(|(mac, endpoint)| (*mac, endpoint.subnet));
        Self { addresses, macs }
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Each address, in order, with who holds it.
    pub fn addresses(&self) -> &[(u128, Endpoint)] {
        &self.addresses
    }

    /// Whether an address is held.
    pub fn has(&self, address: u128) -> bool {
        let place = self.addresses.binary_search_by_key(&address, |(it, _)| *it);
        place.is_ok()
    }

    /// Who is reached by a MAC, in each subnet.
    fn with_mac(&self, mac: Mac) -> impl Iterator<Item = &Endpoint> {
        let from = self.macs.partition_point(|(it, _)| *it < mac);
        let from = self.macs.get(from..).unwrap_or_default().iter();
        from.take_while(move |(it, _)| *it == mac)
            .map(|(_, endpoint)| endpoint)
    }
}

impl Vpc {
    /// Who is reached by a MAC in a subnet: the port that has it, or the one that holds a virtual address with it.
    pub fn in_subnet(&self, mac: Mac, subnet: usize) -> Option<&Endpoint> {
        let own = self.by_mac.get(&mac);
        let own = own.filter(|endpoint| endpoint.subnet == subnet);
        own.or_else(|| self.virtuals.with_mac(mac).find(|it| it.subnet == subnet))
    }

    /// Who is reached by a MAC from another host, with an address: the port that has the MAC, the one that holds the address with it, or the one that holds any
    /// address with it in the subnet of the sender.
    pub fn from_afar(
        &self,
        mac: Mac,
        address: u128,
        sender: impl Fn() -> Option<usize>,
    ) -> Option<&Endpoint> {
        self.by_mac.get(&mac).or_else(|| {
            if self.virtuals.is_empty() {
                return None;
            }
            let exact = self.by_address.get(&address).filter(|it| it.mac == mac);
            let in_its_subnet = || {
                let subnet = sender()?;
                self.virtuals.with_mac(mac).find(|it| it.subnet == subnet)
            };
            exact.or_else(in_its_subnet)
        })
    }
}
