//! Whose datagrams there are: every track with its origin and VPC, in the order in which they began, and how much each has.
//!
//! Tracks lie in a slab and hang in two lists, all tracks and those of their origin. To find who has most looks at every VPC, and at every origin:
//! some microseconds where thousands are active, and only when everything is full.

use std::collections::HashMap;

use super::track::Track;
use super::{Datagram, Origin};
use crate::numbers::Vni;
use crate::packet::Packet;

const NONE: u32 = u32::MAX;

/// What an origin or a VPC has.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Use {
    pub(super) tracks: u32,
    pub(super) waiting: u32,
}

/// Ends of a list of tracks, oldest first.
#[derive(Debug, Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
}

impl Default for List {
    fn default() -> Self {
        Self {
            head: NONE,
            tail: NONE,
        }
    }
}

/// A track's neighbours in a list.
#[derive(Debug, Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

/// Which of the lists.
#[derive(Debug, Clone, Copy)]
enum Which {
    All = 0,
    Owner = 1,
}

/// A track; kept for the next when it is removed.
#[derive(Debug)]
struct Node {
    track: Box<Track>,
    links: [Link; 2],
}

#[derive(Debug, Clone, Copy)]
struct Owner {
    origin: Origin,
    vpc: u32,
    used: Use,
    tracks: List,
}

#[derive(Debug, Clone, Copy)]
struct Vpc {
    vni: Vni,
    used: Use,
}

/// All tracks.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    nodes: Vec<Node>,
    free_nodes: Vec<u32>,
    all: List,
    owners: Vec<Owner>,
    free_owners: Vec<u32>,
    owner_of: HashMap<Origin, u32>,
    vpcs: Vec<Vpc>,
    free_vpcs: Vec<u32>,
    vpc_of: HashMap<Vni, u32>,
    waiting: usize,
}

/// Puts a value into a slab.
fn put<T>(slab: &mut Vec<T>, free: &mut Vec<u32>, value: T) -> u32 {
    if let Some(number) = free.pop() {
        slab[number as usize] = value;
        return number;
    }
    slab.push(value);
    slab.len() as u32 - 1
}

impl Ledger {
    pub(super) fn track(&self, number: u32) -> &Track {
        &self.nodes[number as usize].track
    }

    pub(super) fn track_mut(&mut self, number: u32) -> &mut Track {
        &mut self.nodes[number as usize].track
    }

    /// The place of an origin. One that is new gets a track next.
    pub(super) fn owner(&mut self, origin: Origin) -> u32 {
        if let Some(owner) = self.owner_of.get(&origin) {
            return *owner;
        }
        let (_, vni) = origin;
        let vpc = match self.vpc_of.get(&vni) {
            Some(vpc) => *vpc,
            None => {
                let used = Use::default();
                let vpc = put(&mut self.vpcs, &mut self.free_vpcs, Vpc { vni, used });
                self.vpc_of.insert(vni, vpc);
                vpc
            }
        };
        let new = Owner {
            origin,
            vpc,
            used: Use::default(),
            tracks: List::default(),
        };
        let owner = put(&mut self.owners, &mut self.free_owners, new);
        self.owner_of.insert(origin, owner);
        owner
    }

    pub(super) fn count(&self, owner: u32) -> Use {
        self.owners[owner as usize].used
    }

    /// Packets that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// The origin that has most of something, in the VPC that has most of it.
    pub(super) fn heaviest(&self, of: impl Fn(&Use) -> u32) -> u32 {
        let vpcs = (0u32..).zip(&self.vpcs);
        let heaviest = vpcs.max_by_key(|(_, vpc)| of(&vpc.used));
        let vpc = heaviest.map_or(NONE, |(vpc, _)| vpc);
        let owners = (0u32..).zip(&self.owners);
        owners
            .filter(|(_, owner)| owner.vpc == vpc && owner.used.tracks > 0)
            .max_by_key(|(_, owner)| of(&owner.used))
            .map_or(NONE, |(owner, _)| owner)
    }

    /// The oldest track of an origin.
    pub(super) fn oldest(&self, owner: u32) -> Option<u32> {
        let owner = self.owners.get(owner as usize)?;
        Some(owner.tracks.head).filter(|head| *head != NONE)
    }

    /// The oldest track of an origin that packets wait in.
    pub(super) fn oldest_waiting(&self, owner: u32) -> Option<u32> {
        let mut next = self.oldest(owner);
        while let Some(number) = next {
            let node = &self.nodes[number as usize];
            if !node.track.waiting.is_empty() {
                return Some(number);
            }
            next = Some(node.links[Which::Owner as usize].after).filter(|after| *after != NONE);
        }
        None
    }

    /// The oldest track.
    pub(super) fn oldest_of_all(&self) -> Option<u32> {
        Some(self.all.head).filter(|head| *head != NONE)
    }

    /// Begins a track as the newest.
    pub(super) fn insert(&mut self, owner: u32, datagram: Datagram, now: u32) -> u32 {
        let number = match self.free_nodes.pop() {
            Some(number) => {
                self.track_mut(number).begin(datagram, owner, now);
                number
            }
            None => {
                let none = Link {
                    before: NONE,
                    after: NONE,
                };
                self.nodes.push(Node {
                    track: Box::new(Track::new(datagram, owner, now)),
                    links: [none; 2],
                });
                self.nodes.len() as u32 - 1
            }
        };
        self.append(Which::All, number, owner);
        self.append(Which::Owner, number, owner);
        self.change(owner, |used| used.tracks += 1);
        number
    }

    /// Ends a track; answers what it was of, and what waited.
    pub(super) fn remove(&mut self, number: u32) -> (Datagram, Vec<Packet>) {
        let waiting = self.take_waiting(number);
        let Track {
            datagram, owner, ..
        } = *self.track(number);
        self.unlink(Which::All, number, owner);
        self.unlink(Which::Owner, number, owner);
        self.change(owner, |used| used.tracks -= 1);
        self.free_nodes.push(number);
        self.release(owner);
        (datagram, waiting)
    }

    /// Lets a packet wait.
    pub(super) fn wait(&mut self, number: u32, packet: Packet) {
        let track = self.track_mut(number);
        track.waiting.push(packet);
        let owner = track.owner;
        self.waiting += 1;
        self.change(owner, |used| used.waiting += 1);
    }

    /// What waits in a track.
    pub(super) fn take_waiting(&mut self, number: u32) -> Vec<Packet> {
        let track = self.track_mut(number);
        let (waiting, owner) = (std::mem::take(&mut track.waiting), track.owner);
        self.waiting -= waiting.len();
        self.change(owner, |used| used.waiting -= waiting.len() as u32);
        waiting
    }

    fn change(&mut self, owner: u32, mut change: impl FnMut(&mut Use)) {
        let owner = &mut self.owners[owner as usize];
        change(&mut owner.used);
        change(&mut self.vpcs[owner.vpc as usize].used);
    }

    /// Forgets an origin, and a VPC, that has nothing any more.
    fn release(&mut self, owner: u32) {
        let Owner {
            origin, vpc, used, ..
        } = self.owners[owner as usize];
        if used.tracks > 0 {
            return;
        }
        self.owner_of.remove(&origin);
        self.free_owners.push(owner);
        let Vpc { vni, used } = self.vpcs[vpc as usize];
        if used.tracks == 0 {
            self.vpc_of.remove(&vni);
            self.free_vpcs.push(vpc);
        }
    }

    fn list(&mut self, which: Which, owner: u32) -> &mut List {
        match which {
            Which::All => &mut self.all,
            Which::Owner => &mut self.owners[owner as usize].tracks,
        }
    }

    fn append(&mut self, which: Which, number: u32, owner: u32) {
        let list = self.list(which, owner);
        let last = std::mem::replace(&mut list.tail, number);
        if last == NONE {
            list.head = number;
        } else {
            self.nodes[last as usize].links[which as usize].after = number;
        }
        self.nodes[number as usize].links[which as usize] = Link {
            before: last,
            after: NONE,
        };
    }

    fn unlink(&mut self, which: Which, number: u32, owner: u32) {
        let Link { before, after } = self.nodes[number as usize].links[which as usize];
        if before == NONE {
            self.list(which, owner).head = after;
        } else {
            self.nodes[before as usize].links[which as usize].after = after;
        }
        if after == NONE {
            self.list(which, owner).tail = before;
        } else {
            self.nodes[after as usize].links[which as usize].before = before;
        }
    }
}
