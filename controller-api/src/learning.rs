//! What hosts ask for in VPCs whose ports they learn on demand (decision 018).
//!
//! A session keeps what its host has asked for; what a host is told for that is made in [`crate::node`].

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use weft_proto::address::{parse_address, parse_mac};
use weft_proto::persistent::PersistentSet;
use weft_proto::state::State;
use weft_proto::v1::Port;

/// Addresses that are kept for a host, in all VPCs together.
pub const MOST_ADDRESSES: usize = 65_536;

/// An address by which a host asks for a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An IP address.
    Ip(IpAddr),
    /// A unicast MAC.
    Mac([u8; 6]),
}

impl Address {
    /// The address of a text, in any form; none if it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let mac = || parse_mac(text).ok().map(Self::Mac);
        parse_address(text).ok().map(Self::Ip).or_else(mac)
    }

    /// The addresses by which a port may be asked for.
    pub(crate) fn of_port(port: &Port) -> impl Iterator<Item = Self> {
        let mac = parse_mac(&port.mac).ok().map(Self::Mac);
        let addresses = port.addresses.iter();
        let addresses = addresses.filter_map(|text| text.parse().ok().map(Self::Ip));
        addresses.chain(mac)
    }

    /// The port of a VPC that has it and lives somewhere.
    pub(crate) fn holder<'s>(self, state: &'s State, vpc: &'s str) -> Option<&'s Port> {
        let port = match self {
            Self::Ip(address) => state.port_with_address(vpc, address),
            Self::Mac(mac) => state.port_with_mac(vpc, mac),
        };
        port.filter(|port| !port.host.is_empty())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Mac([a, b, c, d, e, g]) => {
                write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
            }
        }
    }
}

/// The addresses that a host has asked for in one VPC.
pub(crate) type Addresses = PersistentSet<Arc<Address>>;

pub(crate) fn has(addresses: &Addresses, address: Address) -> bool {
    addresses.get(|known| (**known).cmp(&address)).is_some()
}

/// What a host has asked for. Copies share what they have in common.
#[derive(Debug, Clone, Default)]
pub struct Learned {
    vpcs: PersistentSet<(Arc<str>, Addresses)>,
    len: usize,
}

impl Learned {
    /// Adds an address in a VPC. False if there are too many, so that it is passed over.
    pub fn insert(&mut self, vpc: &str, address: Address) -> bool {
        let known = self.of(vpc);
        if known.is_some_and(|known| has(known, address)) {
            return true;
        }
        if self.len >= MOST_ADDRESSES {
            return false;
        }
        let mut addresses = known.cloned().unwrap_or_default();
        addresses.insert(Arc::new(address), |it| (**it).cmp(&address));
        self.len += 1;
        self.set(vpc, addresses);
        true
    }

    /// Takes out an address, if it is there.
    pub fn remove(&mut self, vpc: &str, address: Address) {
        let Some(mut addresses) = self.of(vpc).cloned() else {
            return;
        };
        if addresses.remove(|it| (**it).cmp(&address)).is_some() {
            self.len -= 1;
            self.set(vpc, addresses);
        }
    }

    /// Whether an address of a VPC is among them.
    pub fn has(&self, vpc: &str, address: Address) -> bool {
        self.of(vpc).is_some_and(|known| has(known, address))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Those of a VPC.
    pub(crate) fn of(&self, vpc: &str) -> Option<&Addresses> {
        let found = self.vpcs.get(|known| (*known.0).cmp(vpc))?;
        Some(&found.1)
    }

    /// The VPCs in which there are any.
    pub(crate) fn vpcs(&self) -> impl Iterator<Item = &str> {
        self.vpcs.iter().map(|(vpc, _)| &**vpc)
    }

    /// Takes out all of a VPC.
    pub(crate) fn forget(&mut self, vpc: &str) {
        let gone = self.vpcs.remove(|known| (*known.0).cmp(vpc));
        self.len -= gone.map_or(0, |(_, addresses)| addresses.len());
    }

    fn set(&mut self, vpc: &str, addresses: Addresses) {
        let order = |known: &(Arc<str>, Addresses)| (*known.0).cmp(vpc);
        if addresses.is_empty() {
            self.vpcs.remove(order);
        } else {
            let known = self.vpcs.get(order).map(|known| Arc::clone(&known.0));
            let vpc = known.unwrap_or_else(|| vpc.into());
            let order = |other: &(Arc<str>, Addresses)| other.0.cmp(&vpc);
            self.vpcs.insert((Arc::clone(&vpc), addresses), order);
        }
    }

    /// What differs from another, by VPC: what is not in `next`, and what is not in `self`.
    pub(crate) fn changes_to<'a>(
        &'a self,
        next: &'a Self,
    ) -> impl Iterator<Item = (&'a str, [Vec<&'a Arc<Address>>; 2])> {
        let gone = self.vpcs().filter(|vpc| next.of(vpc).is_none());
        gone.chain(next.vpcs())
            .map(|vpc| (vpc, difference(self.of(vpc), next.of(vpc))))
            .filter(|(_, [gone, come])| !gone.is_empty() || !come.is_empty())
    }
}

/// What is not in the other of two sets.
pub(crate) fn difference<'a>(
    old: Option<&'a Addresses>,
    new: Option<&'a Addresses>,
) -> [Vec<&'a Arc<Address>>; 2] {
    let all = |set: &'a Addresses| set.iter().collect();
    match (old, new) {
        (Some(old), Some(new)) => {
            let [mut gone, mut come] = old.difference(new);
            // One that was taken out and put in again is the same.
            gone.retain(|it| !has(new, ***it));
            come.retain(|it| !has(old, ***it));
            [gone, come]
        }
        (Some(old), None) => [all(old), Vec::new()],
        (None, Some(new)) => [Vec::new(), all(new)],
        (None, None) => [Vec::new(), Vec::new()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    #[test]
    fn texts_become_canonical() {
        for (text, wanted) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("FD00:0::0:5", Some("fd00::5")),
            ("02:AB:00:00:00:01", Some("02:ab:00:00:00:01")),
            ("ff:ff:ff:ff:ff:ff", None),
            ("10.0.0.0/24", None),
            ("", None),
        ] {
            let parsed = Address::parse(text).map(|it| it.to_string());
            assert_eq!(parsed.as_deref(), wanted, "{text}");
        }
    }

    #[test]
    fn there_is_a_cap_over_all_vpcs() {
        let mut learned = Learned::default();
        for n in 0..MOST_ADDRESSES as u32 {
            let vpc = ["blue", "red"][n as usize % 2];
            assert!(learned.insert(vpc, Address::Ip(IpAddr::V4(n.into()))));
        }
        assert!(!learned.insert("blue", ip("fd00::1")));
        assert!(learned.insert("blue", ip("0.0.0.0")), "it is there");
        learned.remove("blue", ip("0.0.0.0"));
        assert!(learned.insert("green", ip("fd00::1")));
        assert_eq!(learned.len(), MOST_ADDRESSES);
        learned.forget("red");
        assert_eq!(learned.len(), MOST_ADDRESSES / 2);
        assert_eq!(learned.vpcs().collect::<Vec<_>>(), ["blue", "green"]);
    }

    #[test]
    fn the_difference_is_what_came_and_went() {
        let mut old = Learned::default();
        for (vpc, address) in [("a", "10.0.0.1"), ("a", "10.0.0.2"), ("b", "10.0.0.3")] {
            old.insert(vpc, ip(address));
        }
        let mut new = old.clone();
        assert_eq!(old.changes_to(&new).count(), 0);
        new.remove("a", ip("10.0.0.1"));
        new.remove("a", ip("10.0.0.2"));
        new.insert("a", ip("10.0.0.2"));
        new.insert("c", ip("10.0.0.4"));
        new.forget("b");
        let texts = |list: Vec<&Arc<Address>>| list.iter().map(ToString::to_string).collect();
        let found: Vec<(&str, Vec<String>, Vec<String>)> = old
            .changes_to(&new)
            .map(|(vpc, [gone, come])| (vpc, texts(gone), texts(come)))
            .collect();
        let one = |text: &str| vec![text.to_owned()];
        let wanted = [
            ("b", one("10.0.0.3"), vec![]),
            ("a", one("10.0.0.1"), vec![]),
            ("c", vec![], one("10.0.0.4")),
        ];
        assert_eq!(found, wanted);
    }
}
