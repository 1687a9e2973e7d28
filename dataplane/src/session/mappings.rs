//! Mappings of NAT gateways: which port of which outside address stands for a port of an inside one.
//!
//! A mapping is independent of where packets go (RFC 4787 REQ-1), so that several sessions share it: it lives while any of them does, and
//! [`Mappings::HOLD`] longer. Ports of an outside address are bits of a pool, one for each protocol, so that a pool can be filled to its last port.
//! Of a protocol without ports, an outside address stands for one inside address as a whole.
//! Everything is allocated at the start; a full table refuses, it evicts nothing.

use std::hash::BuildHasher;
use std::sync::PoisonError;

use foldhash::fast::RandomState;

use super::mapping_owners::Owners;
use crate::packet::parse::protocol;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// The most outside addresses on one host.
pub const POOLS: u16 = if cfg!(feature = "loom") {
    1
} else {
    weft_proto::nat::GATEWAY_HOST_ADDRESSES
};
/// The lowest port that a pool gives out: those below are of services (RFC 6335 §6).
pub const FIRST_PORT: u16 = 1024;
/// Words of one pool and protocol: a bit for each port.
const WORDS: usize = 65_536 / 64;
const PROTOCOLS: usize = 3;
const NONE: u32 = u32::MAX;

/// The inside of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inside {
    /// Index of the NAT gateway.
    pub gateway: u16,
    /// IP protocol number: TCP, UDP, or ICMP, whose identifier is the port.
    pub protocol: u8,
    /// The address of a port of the VPC.
    pub address: u128,
    /// Its port; 0 of a protocol without ports.
    pub port: u16,
}

impl Inside {
    /// An address and port at a gateway.
    pub fn new(gateway: u16, protocol: u8, address: u128, port: u16) -> Self {
        Self {
            gateway,
            protocol,
            address,
            port: port_of(protocol, port),
        }
    }
}

/// The outside of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outside {
    /// An address of the NAT gateway.
    pub address: u128,
    /// The port there; 0 of a protocol without ports.
    pub port: u16,
}

impl Outside {
    /// An address and port, of this protocol.
    pub fn new(protocol: u8, address: u128, port: u16) -> Self {
        Self {
            address,
            port: port_of(protocol, port),
        }
    }
}

/// A mapping that was found or made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Its number, by which sessions name it.
    pub number: u32,
    /// Its inside.
    pub inside: Inside,
    /// Its outside.
    pub outside: Outside,
}

/// An outside address, and the pool of its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// The address.
    pub address: u128,
    /// The number of its pool, below [`POOLS`].
    pub number: u16,
}

/// How many mappings a NAT gateway may have. What there is beyond, stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// All of it.
    pub gateway: u32,
    /// Of one inside address.
    pub address: u32,
}

impl Budget {
    /// As many as there is room for.
    pub const UNLIMITED: Self = Self {
        gateway: u32::MAX,
        address: u32::MAX,
    };
}

/// Why there is no mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// No pool has a port of this protocol left.
    #[error("every port of the gateway's addresses is in use")]
    Ports,
    /// The inside address has as many as one may.
    #[error("the source address has as many mappings as one may")]
    AddressBudget,
    /// The gateway has as many as it may.
    #[error("the gateway has as many mappings as it may")]
    GatewayBudget,
    /// The host has as many mappings as it can hold.
    #[error("the host has as many mappings as it can hold")]
    Full,
    /// The protocol has no ports, and each of the gateway's addresses stands for another inside address.
    #[error("the protocol has no ports, and every address is in use for it")]
    Protocol,
}

/// All mappings of a host.
#[derive(Debug)]
pub struct Mappings {
    /// Sessions that use each.
    users: Box<[AtomicU32]>,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    entries: Vec<Entry>,
    capacity: usize,
    free: Vec<u32>,
    by_inside: Chains,
    by_outside: Chains,
    /// Bits of ports in use, by pool, protocol and port.
    ports: Vec<u64>,
    hasher: RandomState,
    /// Where the next sweep begins.
    cursor: usize,
    live: u32,
    owners: Owners,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    mapping: Mapping,
    pool: u16,
    is_live: bool,
    /// When it was first seen without a session.
    idle_since: Option<u32>,
    /// The next ones in the two chains.
    next: [u32; 2],
}

/// First entries of chains, by hash.
type Chains = Vec<u32>;

const BY_INSIDE: usize = 0;
const BY_OUTSIDE: usize = 1;

impl Mappings {
    /// How long a port is kept once no session uses its mapping, in milliseconds. The sessions' own timeouts come before it.
    pub const HOLD: u32 = 2000;

    /// At most so many mappings.
    pub fn new(capacity: u32) -> Self {
        let chains = || vec![NONE; (capacity as usize).next_power_of_two()];
        Self {
            users: (0..capacity).map(|_| AtomicU32::new(0)).collect(),
            table: Mutex::new(Table {
                entries: Vec::with_capacity(capacity as usize),
                capacity: capacity as usize,
                free: Vec::with_capacity(capacity as usize),
                by_inside: chains(),
                by_outside: chains(),
                ports: vec![0; usize::from(POOLS) * PROTOCOLS * WORDS],
                hasher: RandomState::default(),
                cursor: 0,
                live: 0,
                owners: Owners::new(capacity),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // A holder that panicked left at worst a port unused.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more session uses a mapping.
    pub(super) fn retain(&self, number: u32) {
        if let Some(users) = self.users.get(number as usize) {
            users.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A session that used a mapping is gone.
    pub(super) fn release(&self, number: u32) {
        if let Some(users) = self.users.get(number as usize) {
            // One less, modulo 2^32.
            users.fetch_add(u32::MAX, Ordering::Relaxed);
        }
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.lock().live
    }

    /// How many a NAT gateway has.
    pub fn count_of(&self, gateway: u16) -> u32 {
        self.lock().owners.of_gateway(gateway)
    }

    /// The mapping of an inside address and port.
    pub fn find(&self, inside: &Inside) -> Option<Mapping> {
        let table = self.lock();
        table
            .find_inside(inside)
            .map(|number| table.mapping(number))
    }

    /// The mapping that an outside address and port stand for.
    pub fn find_outside(&self, protocol: u8, outside: Outside) -> Option<Mapping> {
        let table = self.lock();
        table
            .find_outside(protocol, outside)
            .map(|number| table.mapping(number))
    }

    /// The mapping of an inside address and port; a new one if there is none. The outside address is the one that the inside address chooses among
    /// the pools by its hash (paired, RFC 4787 REQ-2), and another only if that one has no port left. The port stays the same where it is free
    /// (RFC 4787 §4.2.1); else it is the next free one from a random place. `reserved`: ports of an address that are never given out.
    ///
    /// # Errors
    /// No port is free, or there is no room.
    pub fn map(
        &self,
        inside: &Inside,
        (pools, budget): (&[Pool], Budget),
        reserved: impl Fn(u128, u16) -> bool,
    ) -> Result<Mapping, MappingError> {
        let mut table = self.lock();
        match table.choose(inside, (pools, budget), reserved)? {
            Choice::Known(number) => {
                table.entries[number as usize].idle_since = None;
                Ok(table.mapping(number))
            }
            Choice::New(outside, pool, kind) => {
                if let Some(kind) = kind {
                    table.take_port(pool, kind, outside.port);
                }
                Ok(table.enter(*inside, outside, pool))
            }
        }
    }

    /// The outside that [`Self::map`] would answer now. Nothing changes.
    ///
    /// # Errors
    /// As there.
    pub fn would_map(
        &self,
        inside: &Inside,
        (pools, budget): (&[Pool], Budget),
        reserved: impl Fn(u128, u16) -> bool,
    ) -> Result<Outside, MappingError> {
        let table = self.lock();
        Ok(match table.choose(inside, (pools, budget), reserved)? {
            Choice::Known(number) => table.mapping(number).outside,
            Choice::New(outside, ..) => outside,
        })
    }

    /// Takes over a mapping that another host has made. None: the port is another's, or there is no room. An inside may have several: what
    /// stands here may be of an address that the gateway has lost since, or of a time before. What was told last is what new sessions get.
    pub fn adopt(&self, inside: &Inside, outside: Outside, pool: u16) -> Option<Mapping> {
        let mut table = self.lock();
        if let Some(number) = table.find_inside_where(inside, |known| *known == outside) {
            table.entries[number as usize].idle_since = None;
            return Some(table.mapping(number));
        }
        let is_full = table.free.is_empty() && table.entries.len() == table.capacity;
        if is_full {
            return None;
        }
        let is_free = match kind(inside.protocol) {
            Some(kind) => table.take_this(pool, kind, outside.port),
            None => table.find_outside(inside.protocol, outside).is_none(),
        };
        if !is_free {
            return None;
        }
        Some(table.enter(*inside, outside, pool))
    }

    /// Looks at `count` mappings and gives back the ports of those that no session has used for [`Self::HOLD`]. Answers how many.
    pub fn sweep(&self, count: usize, now: u32) -> usize {
        let mut table = self.lock();
        let mut freed = 0;
        for _ in 0..count.min(table.entries.len()) {
            table.cursor = (table.cursor + 1) % table.entries.len();
            let number = table.cursor;
            let entry = &mut table.entries[number];
            if !entry.is_live {
                continue;
            }
            if self.users[number].load(Ordering::Relaxed) != 0 {
                entry.idle_since = None;
                continue;
            }
            let since = *entry.idle_since.get_or_insert(now);
            if now.wrapping_sub(since) >= Self::HOLD {
                table.remove(number as u32);
                freed += 1;
            }
        }
        freed
    }

    /// Up to `limit` of them, each with the number of its sessions, for people.
    pub fn list(&self, limit: usize) -> Vec<(Mapping, u32)> {
        let table = self.lock();
        let live = table.entries.iter().filter(|entry| entry.is_live);
        live.take(limit)
            .map(|entry| {
                let users = &self.users[entry.mapping.number as usize];
                (entry.mapping, users.load(Ordering::Relaxed))
            })
            .collect()
    }
}

/// What a new flow of an inside gets.
enum Choice {
    /// This mapping.
    Known(u32),
    /// A new one: this outside, of this pool and kind of port, if it has one.
    New(Outside, u16, Option<usize>),
}

/// Whether mappings of a protocol have ports, or identifiers in their place.
pub fn has_ports(protocol: u8) -> bool {
    kind(protocol).is_some()
}

fn port_of(protocol: u8, port: u16) -> u16 {
    if has_ports(protocol) { port } else { 0 }
}

/// The place of a protocol's ports in a pool.
fn kind(number: u8) -> Option<usize> {
    match number {
        protocol::TCP => Some(0),
        protocol::UDP => Some(1),
        protocol::ICMP | protocol::ICMPV6 => Some(2),
        _ => None,
    }
}

impl Table {
    fn mapping(&self, number: u32) -> Mapping {
        self.entries[number as usize].mapping
    }

    fn inside_chain(&self, inside: &Inside) -> usize {
        self.hasher.hash_one(inside) as usize & (self.by_inside.len() - 1)
    }

    fn outside_chain(&self, protocol: u8, outside: Outside) -> usize {
        self.hasher.hash_one((protocol, outside)) as usize & (self.by_outside.len() - 1)
    }

    fn chain(&self, first: u32, link: usize, is_it: impl Fn(&Mapping) -> bool) -> Option<u32> {
        let mut number = first;
        while let Some(entry) = self.entries.get(number as usize) {
            if is_it(&entry.mapping) {
                return Some(number);
            }
            number = entry.next[link];
        }
        None
    }

    /// The newest mapping of an inside.
    fn find_inside(&self, inside: &Inside) -> Option<u32> {
        self.find_inside_where(inside, |_| true)
    }

    fn find_inside_where(&self, inside: &Inside, may_be: impl Fn(&Outside) -> bool) -> Option<u32> {
        let first = self.by_inside[self.inside_chain(inside)];
        self.chain(first, BY_INSIDE, |mapping| {
            mapping.inside == *inside && may_be(&mapping.outside)
        })
    }

    fn find_outside(&self, protocol: u8, outside: Outside) -> Option<u32> {
        let first = self.by_outside[self.outside_chain(protocol, outside)];
        self.chain(first, BY_OUTSIDE, |mapping| {
            mapping.outside == outside && mapping.inside.protocol == protocol
        })
    }

    fn choose(
        &self,
        inside: &Inside,
        (pools, budget): (&[Pool], Budget),
        reserved: impl Fn(u128, u16) -> bool,
    ) -> Result<Choice, MappingError> {
        // One of an address that the gateway has lost is for its old sessions alone.
        let known = self.find_inside_where(inside, |outside| {
            pools.iter().any(|pool| pool.address == outside.address)
        });
        if let Some(number) = known {
            return Ok(Choice::Known(number));
        }
        let kind = kind(inside.protocol);
        if self.free.is_empty() && self.entries.len() == self.capacity {
            return Err(MappingError::Full);
        }
        if self.owners.of_gateway(inside.gateway) >= budget.gateway {
            return Err(MappingError::GatewayBudget);
        }
        if self.owners.of_address(inside.gateway, inside.address) >= budget.address {
            return Err(MappingError::AddressBudget);
        }
        let paired = self.hasher.hash_one((inside.gateway, inside.address)) as usize;
        for i in 0..pools.len() {
            let pool = pools[(paired + i) % pools.len()];
            let Some(kind) = kind else {
                let outside = Outside::new(inside.protocol, pool.address, 0);
                if self.find_outside(inside.protocol, outside).is_none() {
                    return Ok(Choice::New(outside, pool.number, None));
                }
                continue;
            };
            let is_reserved = |port| reserved(pool.address, port);
            if let Some(port) = self.free_port(pool.number, kind, inside.port, is_reserved) {
                let address = pool.address;
                let outside = Outside { address, port };
                return Ok(Choice::New(outside, pool.number, Some(kind)));
            }
        }
        Err(match kind {
            Some(_) => MappingError::Ports,
            None => MappingError::Protocol,
        })
    }

    /// Where the bits of a pool's ports are.
    fn words(pool: u16, kind: usize) -> usize {
        (usize::from(pool) * PROTOCOLS + kind) * WORDS
    }

    fn take_port(&mut self, pool: u16, kind: usize, port: u16) {
        let at = Self::words(pool, kind) + usize::from(port) / 64;
        self.ports[at] |= 1 << (port % 64);
    }

    /// A free port of a pool: this one if it is, else the next one from a random place.
    fn free_port(
        &self,
        pool: u16,
        kind: usize,
        wanted: u16,
        is_reserved: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let first = Self::words(pool, kind);
        let words = self.ports.get(first..first + WORDS)?;
        let is_free = |port: u16| words[usize::from(port) / 64] & 1 << (port % 64) == 0;
        if wanted >= FIRST_PORT && is_free(wanted) && !is_reserved(wanted) {
            return Some(wanted);
        }
        let lowest = usize::from(FIRST_PORT) / 64;
        let start = self.hasher.hash_one((pool, wanted, self.live)) as usize % (WORDS - lowest);
        for i in 0..WORDS - lowest {
            let at = lowest + (start + i) % (WORDS - lowest);
            let mut free = !words[at];
            while free != 0 {
                let port = (at * 64) as u16 + free.trailing_zeros() as u16;
                if !is_reserved(port) {
                    return Some(port);
                }
                free &= free - 1;
            }
        }
        None
    }

    /// Takes this port of a pool, if it is free.
    fn take_this(&mut self, pool: u16, kind: usize, port: u16) -> bool {
        let place = (usize::from(pool) * PROTOCOLS + kind) * WORDS + usize::from(port) / 64;
        let Some(word) = self.ports.get_mut(place) else {
            return false;
        };
        let bit = 1 << (port % 64);
        let is_free = *word & bit == 0;
        *word |= bit;
        is_free
    }

    fn enter(&mut self, inside: Inside, outside: Outside, pool: u16) -> Mapping {
        let number = self.free.pop().unwrap_or(self.entries.len() as u32);
        let mapping = Mapping {
            number,
            inside,
            outside,
        };
        let chains = [
            self.inside_chain(&inside),
            self.outside_chain(inside.protocol, outside),
        ];
        let entry = Entry {
            mapping,
            pool,
            is_live: true,
            idle_since: None,
            next: [self.by_inside[chains[0]], self.by_outside[chains[1]]],
        };
        match self.entries.get_mut(number as usize) {
            Some(place) => *place = entry,
            None => self.entries.push(entry),
        }
        self.by_inside[chains[0]] = number;
        self.by_outside[chains[1]] = number;
        self.live += 1;
        self.owners.add(inside.gateway, inside.address);
        mapping
    }

    fn remove(&mut self, number: u32) {
        let Entry { mapping, pool, .. } = self.entries[number as usize];
        let chains = [
            self.inside_chain(&mapping.inside),
            self.outside_chain(mapping.inside.protocol, mapping.outside),
        ];
        for (link, chain) in chains.into_iter().enumerate() {
            let next = self.entries[number as usize].next[link];
            let heads = match link {
                BY_INSIDE => &mut self.by_inside,
                _ => &mut self.by_outside,
            };
            if heads[chain] == number {
                heads[chain] = next;
                continue;
            }
            let mut before = heads[chain];
            while let Some(entry) = self.entries.get_mut(before as usize) {
                if entry.next[link] == number {
                    entry.next[link] = next;
                    break;
                }
                before = entry.next[link];
            }
        }
        if let Some(kind) = kind(mapping.inside.protocol) {
            let port = usize::from(mapping.outside.port);
            let first = (usize::from(pool) * PROTOCOLS + kind) * WORDS;
            self.ports[first + port / 64] &= !(1 << (port % 64));
        }
        self.entries[number as usize].is_live = false;
        self.free.push(number);
        self.live -= 1;
        self.owners
            .take(mapping.inside.gateway, mapping.inside.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: Pool = Pool {
        address: 0xffff_cb00_7105,
        number: 0,
    };

    const ALL: (&[Pool], Budget) = (&[POOL], Budget::UNLIMITED);

    fn inside(address: u128, port: u16) -> Inside {
        Inside {
            gateway: 0,
            protocol: protocol::UDP,
            address,
            port,
        }
    }

    fn map(mappings: &Mappings, inside: Inside) -> Result<Mapping, MappingError> {
        mappings.map(&inside, ALL, |_, _| false)
    }

    #[test]
    fn a_port_stays_the_same_where_it_is_free_and_one_mapping_serves_every_destination() {
        let mappings = Mappings::new(16);
        let first = map(&mappings, inside(1, 5000)).unwrap();
        assert_eq!(first.outside.port, 5000);
        assert_eq!(map(&mappings, inside(1, 5000)), Ok(first));
        let second = map(&mappings, inside(2, 5000)).unwrap();
        assert_ne!(second.outside.port, 5000);
        assert!(second.outside.port >= FIRST_PORT);
        assert_eq!(
            mappings.find_outside(protocol::UDP, second.outside),
            Some(second)
        );
        assert_eq!(mappings.find_outside(protocol::TCP, second.outside), None);
        // A port of a service is not one that the outside may see a client use.
        assert!(map(&mappings, inside(3, 53)).unwrap().outside.port >= FIRST_PORT);
    }

    #[test]
    fn a_pool_fills_to_its_last_port_and_refuses_only_then() {
        let mappings = Mappings::new(1 << 17);
        let reserved = |_, port| port == 8080;
        let ports = u32::from(u16::MAX) + 1 - u32::from(FIRST_PORT) - 1;
        let mut seen = std::collections::HashSet::new();
        for i in 0..ports {
            let made = mappings.map(&inside(u128::from(i), 4000), ALL, reserved);
            assert!(seen.insert(made.unwrap().outside.port), "{i}");
        }
        assert!(!seen.contains(&8080));
        let more = mappings.map(&inside(1 << 100, 4000), ALL, reserved);
        assert_eq!(more, Err(MappingError::Ports));
        // The other protocols have ports of their own.
        let tcp = Inside {
            protocol: protocol::TCP,
            ..inside(1 << 100, 4000)
        };
        assert_eq!(map(&mappings, tcp).unwrap().outside.port, 4000);
    }

    #[test]
    fn a_port_is_free_again_when_no_session_has_used_it_for_a_while() {
        let mappings = Mappings::new(2);
        let used = map(&mappings, inside(1, 5000)).unwrap();
        let idle = map(&mappings, inside(2, 6000)).unwrap();
        mappings.retain(used.number);
        assert_eq!(map(&mappings, inside(3, 7000)), Err(MappingError::Full));
        assert_eq!(mappings.sweep(2, 100), 0);
        assert_eq!(mappings.sweep(2, 99 + Mappings::HOLD), 0);
        assert_eq!(mappings.sweep(2, 100 + Mappings::HOLD), 1);
        assert_eq!(mappings.find(&idle.inside), None);
        assert_eq!(mappings.find(&used.inside), Some(used));
        assert_eq!(map(&mappings, inside(3, 6000)).unwrap().outside.port, 6000);
        mappings.release(used.number);
        // A mapping that is asked for again begins its time anew.
        assert_eq!(mappings.sweep(2, 5000), 0);
        assert_eq!(map(&mappings, used.inside), Ok(used));
        assert_eq!(mappings.sweep(2, 5000 + Mappings::HOLD), 1);
        assert_eq!(mappings.find(&used.inside), Some(used));
    }

    #[test]
    fn a_mapping_of_another_host_is_taken_over_where_nothing_else_has_its_ends() {
        let mappings = Mappings::new(8);
        let outside = |port| Outside {
            address: POOL.address,
            port,
        };
        let adopted = mappings.adopt(&inside(1, 5000), outside(7000), 0).unwrap();
        assert_eq!(map(&mappings, inside(1, 5000)), Ok(adopted));
        assert_eq!(
            mappings.adopt(&inside(1, 5000), outside(7000), 0),
            Some(adopted)
        );
        assert_eq!(mappings.adopt(&inside(2, 5000), outside(7000), 0), None);
        assert_ne!(map(&mappings, inside(3, 7000)).unwrap().outside.port, 7000);
        assert_eq!(mappings.count(), 2);
    }

    #[test]
    fn a_mapping_that_is_told_goes_before_an_older_one_of_the_same_inside() {
        let mappings = Mappings::new(8);
        let lost = Pool {
            address: 77,
            number: 1,
        };
        let offer = (&[lost][..], Budget::UNLIMITED);
        let old = mappings.map(&inside(1, 5000), offer, |_, _| false).unwrap();
        let outside = Outside {
            address: POOL.address,
            port: 7000,
        };
        let told = mappings.adopt(&inside(1, 5000), outside, 0).unwrap();
        assert_eq!(told.outside, outside);
        assert_eq!(map(&mappings, inside(1, 5000)), Ok(told));
        // Sessions of before keep theirs.
        let found = mappings.find_outside(protocol::UDP, old.outside);
        assert_eq!(found, Some(old));
        assert_eq!(mappings.adopt(&inside(1, 5000), old.outside, 1), Some(old));
        assert_eq!(map(&mappings, inside(1, 5000)), Ok(told));
        assert_eq!(mappings.count(), 2);
    }

    #[test]
    fn an_inside_address_keeps_one_outside_address_while_that_has_ports() {
        let mappings = Mappings::new(1024);
        let pools = [
            POOL,
            Pool {
                address: 77,
                number: 1,
            },
        ];
        let mut used = std::collections::HashSet::new();
        for address in 0..64 {
            let of = |port| {
                mappings.map(
                    &inside(address, port),
                    (&pools, Budget::UNLIMITED),
                    |_, _| false,
                )
            };
            let first = of(5000).unwrap().outside.address;
            used.insert(first);
            for port in 5001..5008 {
                assert_eq!(of(port).unwrap().outside.address, first);
            }
        }
        assert_eq!(used.len(), 2);
    }

    #[test]
    fn a_budget_bounds_new_mappings_and_takes_none_away() {
        let mappings = Mappings::new(64);
        let map = |address, port, gateway, of_one| {
            let budget = Budget {
                gateway,
                address: of_one,
            };
            mappings.map(&inside(address, port), (&[POOL], budget), |_, _| false)
        };
        for port in 5000..5003 {
            map(1, port, 10, 3).unwrap();
        }
        assert_eq!(map(1, 5003, 10, 3), Err(MappingError::AddressBudget));
        assert!(map(1, 5002, 10, 3).is_ok(), "what stands is not new");
        map(2, 5000, 4, 3).unwrap();
        assert_eq!(map(2, 5001, 4, 3), Err(MappingError::GatewayBudget));
        // Lower than what there is, then higher again.
        assert_eq!(map(3, 5000, 1, 1), Err(MappingError::GatewayBudget));
        assert!(map(1, 5000, 1, 1).is_ok());
        assert_eq!((mappings.count_of(0), mappings.count_of(1)), (4, 0));
        assert!(map(1, 5003, 5, 4).is_ok());
        // What goes makes room.
        mappings.sweep(64, 0);
        assert_eq!(mappings.sweep(64, Mappings::HOLD), 5);
        assert_eq!(mappings.count_of(0), 0);
        for port in 6000..6003 {
            map(1, port, 3, 3).unwrap();
        }
        assert_eq!(map(1, 6003, 4, 3), Err(MappingError::AddressBudget));
        // Another gateway of the same VPC counts apart.
        let other = Inside {
            gateway: 1,
            ..inside(1, 6000)
        };
        let budget = Budget {
            gateway: 1,
            address: 1,
        };
        assert!(
            mappings
                .map(&other, (&[POOL], budget), |_, _| false)
                .is_ok()
        );
    }

    #[test]
    fn of_a_protocol_without_ports_an_address_stands_for_one_inside_address() {
        let mappings = Mappings::new(16);
        let pools = [
            POOL,
            Pool {
                address: 77,
                number: 1,
            },
        ];
        let map = |address, protocol| {
            let inside = Inside::new(0, protocol, address, 99);
            mappings.map(&inside, (&pools, Budget::UNLIMITED), |_, _| false)
        };
        let (first, second) = (map(1, 47).unwrap(), map(2, 47).unwrap());
        assert_ne!(first.outside.address, second.outside.address);
        assert_eq!((first.inside.port, first.outside.port), (0, 0));
        assert_eq!(map(1, 47), Ok(first));
        assert_eq!(map(3, 47), Err(MappingError::Protocol));
        assert!(map(3, 50).is_ok(), "each protocol by itself");
        assert!(map(3, protocol::UDP).is_ok());
        let found = mappings.find_outside(47, first.outside);
        assert_eq!(found, Some(first));
        // What another host has told of counts too; what goes makes room.
        let inside = Inside::new(0, 47, 9, 0);
        assert_eq!(mappings.adopt(&inside, first.outside, 0), None);
        mappings.retain(second.number);
        mappings.sweep(16, 0);
        mappings.sweep(16, Mappings::HOLD);
        assert_eq!(map(3, 47).unwrap().outside, first.outside);
        let inside = Inside::new(0, 132, 9, 0);
        let free = Outside::new(132, 77, 5);
        assert_eq!(mappings.adopt(&inside, free, 1).unwrap().outside, free);
    }
}
