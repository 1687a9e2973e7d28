//! What ports have joined, as the RFCs put it: for each group the sources that pass and those that do not, with their timers (RFC 3376 §6, RFC 3810 §7).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft_dataplane::packet::DropReason;
use weft_proto::v1;

use super::frame::{ICMPV6, Packet, is_group, ones_sum, pseudo_header, v4_at, v6_at, word};
use super::gateway::stays_on_link;
use super::world::{World, prefix_holds};

const IGMP: u8 = 2;

/// How long a report holds, and how long an answer is waited for when somebody has left, in milliseconds.
const HOLDS: u32 = 2 * 125_000 + 10_000;
const LAST: u32 = 150;

/// Kinds of records that versions without sources have.
const JOINED: u8 = 7;
const LEFT: u8 = 8;

/// A message.
pub enum Said {
    Query,
    /// Kind, group and sources of each record.
    Report(Vec<(u8, IpAddr, Vec<IpAddr>)>),
    /// Of another protocol.
    Other,
}

/// What a port wants of a group.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Everything passes but what is blocked, until then.
    all: Option<u32>,
    passing: BTreeMap<IpAddr, u32>,
    blocked: BTreeSet<IpAddr>,
    older: u32,
}

/// Of all ports: by port and group.
pub type Joined = BTreeMap<(String, IpAddr), Wish>;

pub fn is_snooped(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(v4) => v4.is_multicast() && !prefix_holds("224.0.0.0/24", group),
        IpAddr::V6(v6) => {
            let [first, ..] = v6.segments();
            first >> 8 == 0xff && first & 0xf > 1 && first != 0xff02
        }
    }
}

pub fn may_be_routed(source: IpAddr, group: IpAddr) -> bool {
    let wide = match group {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => v6.segments()[0] & 0xf > 2,
    };
    wide && !stays_on_link(source)
}

/// Reads a message; none if the packet is none.
pub fn read(packet: &Packet) -> Option<Result<Said, DropReason>> {
    let v4 = packet.is_v4();
    let is_one = match packet.icmp {
        _ if v4 => packet.flow.protocol == IGMP,
        Some((130..=132 | 143, _)) => packet.flow.protocol == ICMPV6,
        _ => false,
    };
    is_one.then(|| parse(packet).ok_or(DropReason::MembershipMalformed))
}

fn parse(packet: &Packet) -> Option<Said> {
    if packet.fragment.is_some() {
        return None;
    }
    let v4 = packet.is_v4();
    let body = &packet.bytes[packet.l4..packet.end];
    let kind = *body.first()?;
    if v4 && ![0x11, 0x12, 0x16, 0x17, 0x22].contains(&kind) {
        return Some(Said::Other);
    }
    let (source, destination) = (packet.flow.source, packet.flow.destination);
    let pseudo = match v4 {
        true => Vec::new(),
        false => pseudo_header(source, destination, ICMPV6, body.len()),
    };
    let is_good = packet.ttl == 1
        && ones_sum(&[&pseudo, body]) == 0xffff
        && packet.dst[0] & 1 == 1
        && is_group(destination);
    let is_heard = v4 || source == IpAddr::from([0; 16]) || prefix_holds("fe80::/10", source);
    if !is_good || !is_heard {
        return None;
    }
    let size = if v4 { 4 } else { 16 };
    let address = |at: usize| {
        (body.len() >= at + size).then(|| match v4 {
            true => v4_at(body, at),
            false => v6_at(body, at),
        })
    };
    let one = |kind| {
        let group = address(if v4 { 4 } else { 8 }).filter(|group| is_group(*group))?;
        Some(Said::Report(vec![(kind, group, Vec::new())]))
    };
    match kind {
        0x11 | 130 => address(if v4 { 4 } else { 8 }).map(|_| Said::Query),
        0x12 | 0x16 | 131 => one(JOINED),
        0x17 | 132 => one(LEFT),
        _ => {
            if body.len() < 8 {
                return None;
            }
            let (mut at, mut records) = (8, Vec::new());
            for _ in 0..word(body, 6) {
                if body.len() < at + 4 {
                    return None;
                }
                let (kind, extra) = (body[at], usize::from(body[at + 1]) * 4);
                let count = usize::from(word(body, at + 2));
                let group = address(at + 4).filter(|group| is_group(*group))?;
                let first = at + 4 + size;
                let sources = (0..count).map(|n| address(first + n * size));
                let sources: Vec<IpAddr> = sources.collect::<Option<_>>()?;
                at = first + count * size + extra;
                if at > body.len() {
                    return None;
                }
                if (1..=6).contains(&kind) {
                    records.push((kind, group, sources));
                }
            }
            Some(Said::Report(records))
        }
    }
}

impl Wish {
    pub fn admits(&self, source: IpAddr) -> bool {
        match self.all {
            Some(_) => !self.blocked.contains(&source),
            None => self.passing.contains_key(&source),
        }
    }

    fn is_nothing(&self) -> bool {
        self.all.is_none() && self.passing.is_empty()
    }

    /// The table of RFC 3376 §6.4, row by row.
    fn hear(&mut self, kind: u8, named: &[IpAddr], now: u32) {
        if kind == JOINED {
            self.older = now + HOLDS;
        }
        let is_older = now < self.older;
        let named: BTreeSet<IpAddr> = match kind {
            2 | 4 if is_older => BTreeSet::new(),
            6 if is_older => return,
            _ => named.iter().copied().collect(),
        };
        let soon = now + LAST;
        let last = |wish: &mut Self, sources: &BTreeSet<IpAddr>| {
            for source in sources {
                if let Some(until) = wish.passing.get_mut(source) {
                    *until = soon.min(*until);
                }
            }
        };
        let before: BTreeSet<IpAddr> = self.passing.keys().copied().collect();
        match kind {
            // IS_IN, ALLOW.
            1 | 5 => self.pass(&named, now),
            // TO_IN, and a leave as one of nothing.
            3 | LEFT => {
                self.pass(&named, now);
                last(self, &before.difference(&named).copied().collect());
                self.all = self.all.map(|until| until.min(soon));
            }
            // BLOCK.
            6 => match self.all {
                None => last(self, &named),
                Some(until) => {
                    let asked: BTreeSet<IpAddr> =
                        named.difference(&self.blocked).copied().collect();
                    for source in &asked {
                        self.passing.entry(*source).or_insert(until);
                    }
                    last(self, &asked);
                }
            },
            // IS_EX, TO_EX, and a join as the first of nothing.
            _ => {
                let blocked = match self.all {
                    None => named.difference(&before).copied().collect(),
                    Some(_) => named.intersection(&self.blocked).copied().collect(),
                };
                let fresh = match (self.all, kind) {
                    (Some(until), 4) => until,
                    _ => now + HOLDS,
                };
                let passing = named.difference(&blocked);
                let timer = |source: &IpAddr| self.passing.get(source).copied().unwrap_or(fresh);
                let passing = passing.map(|source| (*source, timer(source))).collect();
                (self.passing, self.blocked) = (passing, blocked);
                self.all = Some(now + HOLDS);
                if kind == 4 {
                    last(self, &named);
                }
            }
        }
    }

    fn pass(&mut self, named: &BTreeSet<IpAddr>, now: u32) {
        for source in named {
            self.passing.insert(*source, now + HOLDS);
            self.blocked.remove(source);
        }
    }

    fn expire(&mut self, now: u32) {
        let over: Vec<IpAddr> = self
            .passing
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(source, _)| *source)
            .collect();
        for source in over {
            self.passing.remove(&source);
            self.blocked.insert(source);
        }
        self.all = self.all.filter(|until| *until > now);
        if self.all.is_none() {
            self.blocked.clear();
        }
    }
}

/// Takes in what a port says.
pub fn hear(joined: &mut Joined, port: &str, records: Vec<(u8, IpAddr, Vec<IpAddr>)>, now: u32) {
    for (kind, group, sources) in records {
        if !is_snooped(group) {
            continue;
        }
        let key = (port.to_owned(), group);
        let wish = joined.entry(key.clone()).or_default();
        wish.hear(kind, &sources, now);
        if wish.is_nothing() {
            joined.remove(&key);
        }
    }
}

/// Lets time pass.
pub fn expire(joined: &mut Joined, now: u32) {
    joined.retain(|_, wish| {
        wish.expire(now);
        !wish.is_nothing()
    });
}

fn snoops(world: &World, port: &v1::Port) -> bool {
    world.subnet(&port.subnet).multicast == "snooping"
}

/// Whether everybody in the sender's subnet gets a packet to an address.
pub fn is_for_all(world: &World, sender: &v1::Port, group: IpAddr) -> bool {
    !snoops(world, sender) || !is_snooped(group)
}

/// Whether messages of a port, wherever it is, are its querier's.
pub fn is_heard(world: &World, port: &v1::Port) -> bool {
    snoops(world, port)
}

/// What another configuration leaves: of ports that stay where they are.
pub fn keep(joined: &mut Joined, before: &World, after: &World) {
    joined.retain(|(id, _), _| {
        let (old, new) = (before.port(id), after.port(id));
        old.zip(new).is_some_and(|(old, new)| {
            let same = (&old.host, &old.subnet, &old.vpc) == (&new.host, &new.subnet, &new.vpc);
            same && snoops(after, new) && before.vni(&old.vpc) == after.vni(&new.vpc)
        })
    });
}

/// How a port gets a packet of another that it has joined: as it is, or through the router. None: not at all.
pub fn way(
    world: &World,
    joined: &Joined,
    (sender, port): (&v1::Port, &v1::Port),
    packet: &Packet,
) -> Option<bool> {
    let (source, group) = (packet.flow.source, packet.flow.destination);
    let wish = joined.get(&(port.id.clone(), group))?;
    if port.vpc != sender.vpc || port.id == sender.id || !wish.admits(source) {
        return None;
    }
    if port.subnet == sender.subnet {
        return Some(false);
    }
    let mut vpcs = world.0.vpcs.iter();
    let routes = vpcs.any(|vpc| vpc.id == sender.vpc && vpc.multicast_routing);
    (routes && packet.ttl > 1 && may_be_routed(source, group) && snoops(world, port))
        .then_some(true)
}
