//! Neighbours on external networks: which MAC a next hop has (RFC 826, RFC 4861 §7).
//!
//! One table for all workers. What packets need of it, a MAC and its network, lies in one word for each neighbour and is read without a lock;
//! everything else is for the slow path. A neighbour is known from an answer to a question of ours, and from nothing else. It is asked again before
//! what is known of it is old, at its own MAC, then by everybody's; one that no longer answers is unknown.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::probes::since;
use crate::packet::Mac;
use crate::snapshot::Map;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Neighbours of one host.
const CAPACITY: usize = 8192;
/// Of those, how many may wait for their first answer.
const WAITING: usize = 1024;
/// What is known of a neighbour holds for so many milliseconds (RFC 4861 §10, REACHABLE_TIME).
const REACHABLE: u32 = 30_000;
/// Between two questions for one neighbour (RFC 1122 §2.3.2.1, RFC 4861 §10 RETRANS_TIMER).
const RETRY: u32 = 1000;
/// Questions without an answer, after which a neighbour is unknown.
const TRIES: u8 = 4;
/// Of those, how many go to the MAC that it had (RFC 1122 §2.3.2.1).
const UNICAST_TRIES: u8 = 2;

/// A neighbour, as packets need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbor {
    /// Its index in the table.
    pub index: u16,
    /// Its MAC.
    pub mac: Mac,
    /// Its external network, by index.
    pub network: u16,
}

/// Somebody to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The external network, by index.
    pub network: u16,
    /// Whose MAC is asked for.
    pub address: u128,
    /// The MAC that it had, to be asked there; none: everybody is asked.
    pub at: Option<Mac>,
}

/// The table.
#[derive(Debug)]
pub struct Neighbors {
    /// 0 while unknown; else the MAC below, the network above.
    words: Box<[AtomicU64]>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_address: Map<(u16, u128), u16>,
    entries: Vec<Entry>,
    free: Vec<u16>,
    waiting: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    network: u16,
    address: u128,
    mac: Option<Mac>,
    /// When it answered last.
    confirmed: u32,
    asked: u32,
    tries: u8,
    is_used: bool,
}

impl Default for Neighbors {
    fn default() -> Self {
        let mut table = Table::default();
        table.by_address.reserve(CAPACITY);
        table.entries.reserve_exact(CAPACITY);
        table.free.reserve_exact(CAPACITY);
        Self {
            words: (0..CAPACITY).map(|_| AtomicU64::new(0)).collect(),
            table: Mutex::new(table),
        }
    }
}

fn word(mac: Mac, network: u16) -> u64 {
    let [a, b, c, d, e, f] = mac.bytes();
    u64::from_be_bytes([0, 0, a, b, c, d, e, f]) | u64::from(network) << 48
}

impl Neighbors {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The neighbour of an index, if it is known.
    #[inline]
    pub fn get(&self, index: u16) -> Option<Neighbor> {
        let word = self.words.get(usize::from(index))?.load(Ordering::Relaxed);
        let [_, _, a, b, c, d, e, f] = word.to_be_bytes();
        (word != 0).then(|| Neighbor {
            index,
            mac: Mac::from_bytes([a, b, c, d, e, f]),
            network: (word >> 48) as u16,
        })
    }

    /// The neighbour that has an address on a network, if it is known.
    pub fn find(&self, network: u16, address: u128) -> Option<Neighbor> {
        let index = self.lock().by_address.get(&(network, address)).copied()?;
        self.get(index)
    }

    /// Whether a neighbour that is not known is to be asked for now. It is remembered that it was. Not more often than once a second; and no more than
    /// 1024 at a time, so that nobody who sends to many addresses fills the table.
    pub fn ask(&self, network: u16, address: u128, now: u32) -> bool {
        let mut table = self.lock();
        if let Some(index) = table.by_address.get(&(network, address)).copied() {
            let entry = &mut table.entries[usize::from(index)];
            let is_due = entry.mac.is_none() && since(entry.asked, now) >= RETRY;
            if is_due {
                entry.asked = now;
                entry.tries = entry.tries.saturating_add(1);
            }
            return is_due;
        }
        if table.waiting >= WAITING {
            return false;
        }
        let entry = Entry {
            network,
            address,
            mac: None,
            confirmed: now,
            asked: now,
            tries: 1,
            is_used: true,
        };
        let index = match table.free.pop() {
            Some(index) => {
                table.entries[usize::from(index)] = entry;
                index
            }
            None if table.entries.len() < CAPACITY => {
                table.entries.push(entry);
                (table.entries.len() - 1) as u16
            }
            None => return false,
        };
        table.by_address.insert((network, address), index);
        table.waiting += 1;
        true
    }

    /// Takes note of what a neighbour says of itself. One that was never asked for is not noted; `is_answer`: it was asked.
    pub fn learn(&self, network: u16, address: u128, mac: Mac, is_answer: bool, now: u32) {
        if mac.is_group() || mac == Mac::from_bytes([0; 6]) {
            return;
        }
        let mut table = self.lock();
        let Some(index) = table.by_address.get(&(network, address)).copied() else {
            return;
        };
        let entry = &mut table.entries[usize::from(index)];
        let was_known = entry.mac.is_some();
        // What nobody asked for may change a MAC (RFC 5227 §3), but keeps none alive.
        if !is_answer && (!was_known || entry.mac == Some(mac)) {
            return;
        }
        entry.mac = Some(mac);
        if is_answer {
            entry.confirmed = now;
            entry.tries = 0;
        }
        if !was_known {
            table.waiting -= 1;
        }
        self.words[usize::from(index)].store(word(mac, network), Ordering::Relaxed);
    }

    /// This host can ask on a network only now: whoever is not known there is asked for at the next packet.
    pub fn hurry(&self, network: u16, now: u32) {
        let mut table = self.lock();
        let entries = table.entries.iter_mut();
        for entry in entries.filter(|entry| entry.network == network && entry.mac.is_none()) {
            entry.asked = now.wrapping_sub(RETRY);
            entry.tries = 0;
        }
    }

    /// What is known of the neighbours on a network may no longer be so: all are asked for at once, and hold until they do not answer.
    pub fn doubt(&self, network: u16, now: u32) {
        let mut table = self.lock();
        let entries = table.entries.iter_mut();
        for entry in entries.filter(|entry| entry.network == network && entry.mac.is_some()) {
            entry.confirmed = now.wrapping_sub(REACHABLE);
            entry.asked = now.wrapping_sub(RETRY);
            // Of everybody, since whoever has the MAC now may not have the address.
            entry.tries = UNICAST_TRIES;
        }
    }

    /// Up to `questions.capacity()` questions that are due now; forgets who does not answer.
    pub fn due(&self, now: u32, questions: &mut Vec<Question>) {
        let mut table = self.lock();
        for index in 0..table.entries.len() {
            if questions.len() == questions.capacity() {
                return;
            }
            let entry = &mut table.entries[index];
            let is_old = since(entry.confirmed, now) >= REACHABLE;
            if !entry.is_used || (entry.mac.is_some() && !is_old) || since(entry.asked, now) < RETRY
            {
                continue;
            }
            if entry.tries < TRIES {
                entry.asked = now;
                entry.tries += 1;
                let at = entry.mac.filter(|_| entry.tries <= UNICAST_TRIES);
                questions.push(Question {
                    network: entry.network,
                    address: entry.address,
                    at,
                });
                continue;
            }
            self.remove(&mut table, index);
        }
    }

    /// Forgets who has an address: this host has it now.
    pub fn forget(&self, network: u16, address: u128) {
        let mut table = self.lock();
        if let Some(index) = table.by_address.get(&(network, address)).copied() {
            self.remove(&mut table, index.into());
        }
    }

    fn remove(&self, table: &mut Table, index: usize) {
        let entry = &mut table.entries[index];
        entry.is_used = false;
        let (key, was_known) = ((entry.network, entry.address), entry.mac.is_some());
        self.words[index].store(0, Ordering::Relaxed);
        table.by_address.remove(&key);
        table.free.push(index as u16);
        if !was_known {
            table.waiting -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(neighbors: &Neighbors, now: u32) -> Vec<Option<Mac>> {
        let mut questions = Vec::with_capacity(8);
        neighbors.due(now, &mut questions);
        questions.iter().map(|question| question.at).collect()
    }

    fn mac(last: u8) -> Mac {
        Mac::from_bytes([2, 0, 0, 0, 0, last])
    }

    #[test]
    fn only_who_was_asked_is_learnt() {
        let neighbors = Neighbors::default();
        neighbors.learn(1, 7, mac(1), true, 0);
        assert_eq!(neighbors.find(1, 7), None);
        assert!(neighbors.ask(1, 7, 0));
        assert!(!neighbors.ask(1, 7, 10));
        neighbors.learn(1, 7, mac(1), false, 20);
        assert_eq!(neighbors.find(1, 7), None);
        neighbors.learn(2, 7, mac(1), true, 20);
        assert_eq!(neighbors.find(1, 7), None);
        neighbors.learn(1, 7, mac(1), true, 20);
        let known = neighbors.find(1, 7).unwrap();
        assert_eq!((known.mac, known.network), (mac(1), 1));
        assert_eq!(neighbors.get(known.index), Some(known));
        // An announcement changes the mac(1) of one that is known.
        neighbors.learn(1, 7, mac(2), false, 30);
        assert_eq!(neighbors.get(known.index).map(|it| it.mac), Some(mac(2)));
        for bad in [Mac::from_bytes([0; 6]), Mac::from_bytes([0xff; 6])] {
            neighbors.learn(1, 7, bad, true, 40);
            assert_eq!(neighbors.get(known.index).map(|it| it.mac), Some(mac(2)));
        }
    }

    #[test]
    fn a_neighbour_is_asked_again_before_it_is_forgotten() {
        let neighbors = Neighbors::default();
        neighbors.ask(1, 7, 0);
        neighbors.learn(1, 7, mac(1), true, 0);
        assert_eq!(due(&neighbors, REACHABLE - 1), []);
        assert_eq!(due(&neighbors, REACHABLE), [Some(mac(1))]);
        assert_eq!(due(&neighbors, REACHABLE + 1), []);
        assert_eq!(due(&neighbors, REACHABLE + RETRY), [Some(mac(1))]);
        assert_eq!(due(&neighbors, REACHABLE + 2 * RETRY), [None]);
        neighbors.learn(1, 7, mac(1), true, REACHABLE + 2 * RETRY + 1);
        assert_eq!(due(&neighbors, REACHABLE + 4 * RETRY), []);
        let old = 2 * REACHABLE + 2 * RETRY + 1;
        for i in 0..4 {
            assert_eq!(due(&neighbors, old + i * RETRY).len(), 1, "{i}");
            assert!(neighbors.find(1, 7).is_some());
        }
        assert_eq!(due(&neighbors, old + 4 * RETRY), []);
        assert_eq!(neighbors.find(1, 7), None);
        assert!(neighbors.ask(1, 7, old + 4 * RETRY));
    }

    #[test]
    fn neighbours_that_are_in_doubt_are_asked_for_at_once_and_hold_meanwhile() {
        let neighbors = Neighbors::default();
        for network in [1, 2] {
            neighbors.ask(network, 7, 0);
            neighbors.learn(network, 7, mac(1), true, 0);
        }
        neighbors.doubt(1, 10);
        assert_eq!(due(&neighbors, 10), [None]);
        assert_eq!(neighbors.find(1, 7).map(|it| it.mac), Some(mac(1)));
        neighbors.learn(1, 7, mac(2), true, 11);
        assert_eq!(due(&neighbors, 10 + RETRY), []);
        assert_eq!(neighbors.find(1, 7).map(|it| it.mac), Some(mac(2)));
        neighbors.doubt(1, 20);
        for i in 0..u32::from(TRIES - UNICAST_TRIES) {
            assert_eq!(due(&neighbors, 20 + i * RETRY), [None]);
        }
        assert_eq!(due(&neighbors, 20 + 2 * RETRY), []);
        assert_eq!(neighbors.find(1, 7), None);
        assert!(neighbors.find(2, 7).is_some());
    }

    #[test]
    fn a_host_that_could_not_ask_before_does_so_at_once() {
        let neighbors = Neighbors::default();
        assert!(neighbors.ask(1, 7, 0));
        assert!(!neighbors.ask(1, 7, 10));
        neighbors.hurry(2, 10);
        assert!(!neighbors.ask(1, 7, 10));
        neighbors.hurry(1, 10);
        assert!(neighbors.ask(1, 7, 10));
    }

    #[test]
    fn who_sends_to_many_addresses_does_not_fill_the_table() {
        let neighbors = Neighbors::default();
        let asked = (0..2 * WAITING as u128).filter(|address| neighbors.ask(0, *address, 0));
        assert_eq!(asked.count(), WAITING);
        neighbors.learn(0, 5, mac(1), true, 1);
        assert!(neighbors.ask(0, 1 << 90, 1));
        assert!(!neighbors.ask(0, 1 << 91, 1));
        let mut questions = Vec::with_capacity(4 * WAITING);
        for i in 1..=u32::from(TRIES) {
            questions.clear();
            neighbors.due(1 + i * RETRY, &mut questions);
        }
        assert!(neighbors.ask(0, 1 << 91, 10_000));
        assert!(neighbors.find(0, 5).is_some());
    }
}
