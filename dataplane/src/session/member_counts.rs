//! How many sessions the members of load balancers have on this host, for listeners that choose by least connections.
//!
//! A counter is an atomic number, and sessions name it by its place: one is taken when a session is made and given back when it is released. A compiled listener
//! holds the counters of its members ([`Held`]). A counter is known by whose it is, so that a listener that is compiled anew finds it again, with what it has
//! counted; it is free for another when no listener holds it and no session counts in it. Allocated at the start; of all a VPC has a quarter at most, so that none
//! leaves the others without. Listeners that find no room choose in another way. Nothing here locks but what the compiler calls.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most members that are counted on a host.
pub const MOST: u32 = if cfg!(feature = "loom") { 2 } else { 1 << 16 };
/// So many VPCs can have their full share of them.
const SHARES: u32 = 4;

/// A listener of a load balancer, as it is known from one configuration to the next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListenerName {
    /// Id of the VPC.
    pub vpc: String,
    /// Id of the load balancer.
    pub balancer: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Its first port.
    pub port: u16,
}

/// A member of a listener: its address, and the port that the listener's first one becomes.
type Name = (Arc<ListenerName>, (u128, u16));

/// All counters of a host.
pub struct MemberCounts {
    /// Sessions that count in each.
    sessions: Box<[AtomicU32]>,
    /// Listeners that hold each.
    holders: Box<[AtomicU32]>,
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    by_name: HashMap<Name, u32>,
    /// Whose each is that was ever used; none if it is free.
    names: Vec<Option<Name>>,
    free: Vec<u32>,
    /// How many are of each VPC, idle ones among them.
    of_vpc: HashMap<String, usize>,
    /// Whether those that were idle when this configuration began are free by now.
    is_tidy: bool,
    refused: u64,
}

/// The counters of a listener's members, in their order. They are its own while this lives.
pub struct Held {
    counts: Arc<MemberCounts>,
    numbers: Box<[u32]>,
}

impl MemberCounts {
    /// At most so many.
    pub fn new(capacity: u32) -> Self {
        let zeroes = || (0..capacity).map(|_| AtomicU32::new(0)).collect();
        Self {
            sessions: zeroes(),
            holders: zeroes(),
            names: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        // A holder that panicked left at worst a counter unused.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more session counts.
    pub(crate) fn retain(&self, number: u32) {
        if let Some(sessions) = self.sessions.get(number as usize) {
            sessions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A session that counted is gone.
    pub(crate) fn release(&self, number: u32) {
        if let Some(sessions) = self.sessions.get(number as usize) {
            // One less, modulo 2^32. What a freed counter is next is after this.
            sessions.fetch_add(u32::MAX, Ordering::Release);
        }
    }

    /// How many sessions count in a counter.
    #[inline]
    pub fn sessions(&self, number: u32) -> u32 {
        let sessions = self.sessions.get(number as usize);
        sessions.map_or(0, |sessions| sessions.load(Ordering::Relaxed))
    }

    /// How many there may be.
    pub fn capacity(&self) -> u32 {
        self.sessions.len() as u32
    }

    /// How many counters a listener holds or a session counts in.
    pub fn used(&self) -> u32 {
        let names = self.lock();
        let known = (0..).zip(&names.names).filter(|(_, name)| name.is_some());
        known.filter(|(number, _)| !self.is_idle(*number)).count() as u32
    }

    /// How many those of one VPC may be.
    pub fn share(&self) -> u32 {
        (self.capacity() / SHARES).max(1).min(self.capacity())
    }

    /// Notes that a configuration is compiled from here on: what became idle since the last one is looked for once, should there be no room.
    pub fn begin(&self) {
        self.lock().is_tidy = false;
    }

    /// Whether a VPC would be given so many more.
    pub fn has_room(&self, vpc: &str, more: usize) -> bool {
        self.make_room(&mut self.lock(), vpc, more)
    }

    /// How often a listener found no room so far.
    pub fn refused(&self) -> u64 {
        self.lock().refused
    }

    /// Whether no listener holds it, and no session counts in it. A listener that let go has made its last session before.
    fn is_idle(&self, number: u32) -> bool {
        let is_none = |all: &[AtomicU32]| {
            let count = all.get(number as usize);
            count.is_none_or(|count| count.load(Ordering::Acquire) == 0)
        };
        is_none(&self.holders) && is_none(&self.sessions)
    }

    /// The counters of a listener's members, each by its address and port; those that it had before.
    ///
    /// # Errors
    /// There is no room for all of them: so many would have to be new.
    pub fn hold(
        self: &Arc<Self>,
        listener: &Arc<ListenerName>,
        members: &[(u128, u16)],
    ) -> Result<Held, usize> {
        let mut names = self.lock();
        let name = |member| (Arc::clone(listener), member);
        let all = || members.iter().copied().map(name);
        // What is known is held first, so that nothing of it is freed.
        let known: Vec<u32> = all()
            .filter_map(|name| names.by_name.get(&name).copied())
            .collect();
        self.add_holder(&known);
        let missing = members.len() - known.len();
        let has_room = self.make_room(&mut names, &listener.vpc, missing);
        let held = has_room.then(|| {
            let numbers: Box<[u32]> = all().map(|name| names.number(name)).collect();
            self.add_holder(&numbers);
            Held {
                counts: Arc::clone(self),
                numbers,
            }
        });
        names.refused += u64::from(!has_room);
        self.remove_holder(&known);
        held.ok_or(missing)
    }

    /// Frees what is idle if there is no room for so many more of a VPC; whether there is then.
    fn make_room(&self, names: &mut Names, vpc: &str, more: usize) -> bool {
        let share = self.share() as usize;
        let has_room = |names: &Names| {
            let room = self.sessions.len() - names.names.len() + names.free.len();
            let has = names.of_vpc.get(vpc).copied().unwrap_or_default();
            more <= room && has + more <= share
        };
        if !has_room(names) && !std::mem::replace(&mut names.is_tidy, true) {
            self.free_idle(names);
        }
        has_room(names)
    }

    fn add_holder(&self, numbers: &[u32]) {
        for number in numbers {
            self.holders[*number as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn remove_holder(&self, numbers: &[u32]) {
        for number in numbers {
            // Whoever sees this has seen the sessions that the listener made.
            self.holders[*number as usize].fetch_sub(1, Ordering::Release);
        }
    }

    fn free_idle(&self, names: &mut Names) {
        for number in 0..names.names.len() as u32 {
            if self.is_idle(number)
                && let Some(name) = names.names[number as usize].take()
            {
                names.forget(&name);
                names.free.push(number);
            }
        }
    }
}

impl Names {
    /// The number of a name, a free one if it has none. There is room.
    fn number(&mut self, name: Name) -> u32 {
        if let Some(number) = self.by_name.get(&name) {
            return *number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.names.push(None);
            (self.names.len() - 1) as u32
        });
        self.names[number as usize] = Some(name.clone());
        let vpc = &name.0.vpc;
        match self.of_vpc.get_mut(vpc) {
            Some(has) => *has += 1,
            None => drop(self.of_vpc.insert(vpc.clone(), 1)),
        }
        self.by_name.insert(name, number);
        number
    }

    fn forget(&mut self, name: &Name) {
        self.by_name.remove(name);
        let vpc = &name.0.vpc;
        if let Some(has) = self.of_vpc.get_mut(vpc) {
            *has -= 1;
            if *has == 0 {
                self.of_vpc.remove(vpc);
            }
        }
    }
}

impl fmt::Debug for MemberCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemberCounts")
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

impl Held {
    /// The counter of the member in a place.
    #[inline]
    pub fn number(&self, place: usize) -> Option<u32> {
        self.numbers.get(place).copied()
    }

    /// How many sessions count in a counter.
    #[inline]
    pub fn sessions(&self, number: u32) -> u32 {
        self.counts.sessions(number)
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.numbers).finish()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.counts.remove_holder(&self.numbers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(vpc: &str, balancer: &str) -> Arc<ListenerName> {
        Arc::new(ListenerName {
            vpc: vpc.into(),
            balancer: balancer.into(),
            protocol: 6,
            port: 80,
        })
    }

    fn hold_in(
        counts: &Arc<MemberCounts>,
        vpc: &str,
        (balancer, members): (&str, &[u128]),
    ) -> Result<Held, usize> {
        counts.begin();
        let members: Vec<_> = members.iter().map(|it| (*it, 80)).collect();
        counts.hold(&name(vpc, balancer), &members)
    }

    fn hold(counts: &Arc<MemberCounts>, balancer: &str, members: &[u128]) -> Result<Held, usize> {
        hold_in(counts, "blue", (balancer, members))
    }

    /// So many for one VPC.
    fn with_share(share: u32) -> Arc<MemberCounts> {
        let counts = MemberCounts::new(share * SHARES);
        assert_eq!(counts.share(), share);
        Arc::new(counts)
    }

    #[test]
    fn a_member_that_comes_back_has_what_was_counted() {
        let counts = with_share(4);
        let first = hold(&counts, "web", &[1, 2]).unwrap();
        let number = first.number(1).unwrap();
        counts.retain(number);
        // Compiled anew, without the member and then with it: both before and after the old one is dropped.
        let second = hold(&counts, "web", &[1]).unwrap();
        drop(first);
        assert_eq!(counts.used(), 2, "a session counts");
        let third = hold(&counts, "web", &[2, 3]).unwrap();
        drop(second);
        assert_eq!(third.number(0), Some(number));
        assert_eq!(third.sessions(number), 1);
        // The same member of another listener is another.
        let other = hold(&counts, "api", &[2]).unwrap();
        assert_eq!(other.sessions(other.number(0).unwrap()), 0);
    }

    #[test]
    fn a_counter_is_free_when_neither_listener_nor_session_has_it() {
        let counts = with_share(3);
        let web = hold(&counts, "web", &[1, 2]).unwrap();
        let number = web.number(0).unwrap();
        counts.retain(number);
        assert_eq!(hold(&counts, "api", &[1, 2]).err(), Some(2));
        assert_eq!((counts.refused(), counts.used()), (1, 2));
        drop(web);
        // One is free again, one counts yet.
        let api = hold(&counts, "api", &[1, 2]).unwrap();
        assert!((0..2).all(|place| api.number(place) != Some(number)));
        assert!((0..2).all(|place| api.sessions(api.number(place).unwrap()) == 0));
        assert_eq!(hold(&counts, "db", &[9]).err(), Some(1));
        counts.release(number);
        let db = hold(&counts, "db", &[9]).unwrap();
        assert_eq!(db.number(0), Some(number));
        assert_eq!(counts.used(), 3);
        drop((api, db));
        assert_eq!(counts.used(), 0);
    }

    #[test]
    fn without_room_nothing_is_held() {
        let counts = Arc::new(MemberCounts::new(0));
        assert!(hold(&counts, "web", &[1]).is_err());
        assert!(hold(&counts, "web", &[]).is_ok());
        let counts = with_share(2);
        assert_eq!(hold(&counts, "web", &[1, 2, 3]).err(), Some(3));
        assert_eq!(counts.used(), 0);
        // Members that come and go leave nothing.
        let mut held = hold(&counts, "web", &[0]).unwrap();
        for member in 1..100 {
            held = hold(&counts, "web", &[member]).unwrap();
        }
        assert_eq!(held.number(0).map(|number| held.sessions(number)), Some(0));
    }

    #[test]
    fn a_vpc_has_a_quarter_at_most() {
        let counts = with_share(2);
        let web = hold(&counts, "web", &[1, 2]).unwrap();
        assert_eq!(hold(&counts, "api", &[1]).err(), Some(1));
        assert!(!counts.has_room("blue", 1) && counts.has_room("red", 2));
        // What it has it can be given again, and others have theirs.
        let again = hold(&counts, "web", &[1, 2]).unwrap();
        let others = ["red", "green", "grey"].map(|vpc| {
            let both = hold_in(&counts, vpc, ("web", &[1, 2]));
            both.unwrap()
        });
        assert!(hold_in(&counts, "black", ("web", &[1])).is_err());
        // A session counts for its VPC.
        let number = web.number(1).unwrap();
        counts.retain(number);
        drop((web, again));
        counts.begin();
        assert!(!counts.has_room("blue", 2) && counts.has_room("blue", 1));
        let api = hold(&counts, "api", &[1]).unwrap();
        drop((others, api));
        counts.release(number);
        assert!(hold_in(&counts, "black", ("web", &[1, 2])).is_ok());
        let names = counts.lock();
        assert_eq!(names.of_vpc.values().sum::<usize>(), names.by_name.len());
    }
}
