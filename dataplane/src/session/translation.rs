//! Sessions with two keys: the packets of a translated flow have one identity before and another after. A session of one owns a line of the
//! cache besides its slot, which no other session touches: its second key, and what the checksums change by.

use super::key::{Direction, Key};
use crate::numbers::Vni;
use crate::packet::{Family, Flow, checksum};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What the addresses and ports of a packet become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The addresses and ports that the packet gets.
    pub flow: Flow,
    /// VNI of the VPC that it is in then.
    pub vni: Vni,
    /// What the checksum of an IPv4 header changes by (RFC 1624): the ones' complement sum of what is new less what was.
    pub header_delta: u16,
    /// What the checksum of a transport protocol changes by, if addresses and ports count in it.
    pub transport_delta: u16,
}

impl Translation {
    /// From one identity to another, of the same family.
    pub fn new(from: &Flow, to: &Flow, vni: impl Into<Vni>) -> Self {
        let addresses = |flow: &Flow| match flow.family() {
            Family::Ipv4 => {
                checksum::sum(&(flow.source as u32).to_be_bytes())
                    + checksum::sum(&(flow.destination as u32).to_be_bytes())
            }
            Family::Ipv6 => {
                checksum::sum(&flow.source.to_be_bytes())
                    + checksum::sum(&flow.destination.to_be_bytes())
            }
        };
        let ports = |flow: &Flow| u64::from(flow.source_port) + u64::from(flow.destination_port);
        let vni = vni.into();
        if from == to {
            return Self {
                flow: *to,
                vni,
                header_delta: 0,
                transport_delta: 0,
            };
        }
        let (before, after) = (addresses(from), addresses(to));
        let less = |sum: u64| u64::from(!checksum::fold(sum));
        Self {
            flow: *to,
            vni,
            header_delta: checksum::fold(after + less(before)),
            transport_delta: checksum::fold(after + ports(to) + less(before + ports(from))),
        }
    }
}

/// Which of the two keys a packet has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Side {
    /// The key that the packets of the opener come with.
    #[default]
    First,
    /// The key that they leave with.
    Second,
}

const FLIPPED: u32 = 1;
const OPENER_DOWN: u32 = 2;
const JOINED: u32 = 4;
/// Where the number of the mapping is, plus one.
const MAPPING_AT: u32 = 3;

/// Where the VNI is in the last word of a key.
const VNI: u64 = 0xff_ffff << 8;

/// What a translated session owns besides its slot, and one for which a member of a load balancer was chosen that gets its packets as they are. All zeroes where
/// none was.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Line {
    key: [AtomicU64; 5],
    /// The delta of the IP header below, of the transport header above: of packets that come with the first key.
    deltas: AtomicU32,
    flags: AtomicU32,
    /// The counter of the load balancer's member that the session counts in, plus one.
    member: AtomicU32,
}

#[cfg(not(feature = "loom"))]
const _: () = assert!(size_of::<Line>() == 64);

/// What a line says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content {
    pub words: [u64; 5],
    /// The lower end of one key is the higher end of the other.
    pub flipped: bool,
    /// Which way packets go that come with the first key.
    pub first: Direction,
    /// The keys differ in the VNI alone, and both are of VPCs: the session is of two that a peering joins. Packets of either direction may have either key: on the
    /// host of one port alone, both directions have the key of that port's VPC.
    pub joined: bool,
    /// The mapping of a NAT gateway that the session uses, by number.
    pub mapping: Option<u32>,
    /// The counter of a load balancer's member that the session counts in, by number.
    pub member: Option<u32>,
    deltas: u32,
}

impl Line {
    /// Writes the second key of a session whose opener's packets have the first one, and become what the translation says.
    pub(super) fn set(
        &self,
        first: &Key,
        second: &Key,
        translation: &Translation,
        (mapping, member): (Option<u32>, Option<u32>),
    ) {
        for (word, value) in self.key.iter().zip(second.words) {
            word.store(value, Ordering::Relaxed);
        }
        let deltas =
            u32::from(translation.transport_delta) << 16 | u32::from(translation.header_delta);
        self.deltas.store(deltas, Ordering::Relaxed);
        let flipped = if first.direction == second.direction {
            0
        } else {
            FLIPPED
        };
        let down = match first.direction {
            Direction::Up => 0,
            Direction::Down => OPENER_DOWN,
        };
        let [w0, w1, w2, w3, ends] = std::array::from_fn(|i| first.words[i] ^ second.words[i]);
        let is_outside = |key: &Key| key.words[4] & VNI == u64::from(Vni::OUTSIDE.get()) << 8;
        let is_joined = !is_outside(first) && !is_outside(second);
        let joined = if is_joined && w0 | w1 | w2 | w3 | ends & !VNI == 0 {
            JOINED
        } else {
            0
        };
        let mapping = mapping.map_or(0, |mapping| (mapping + 1) << MAPPING_AT);
        let flags = flipped | down | joined | mapping;
        self.flags.store(flags, Ordering::Relaxed);
        let member = member.map_or(0, |member| member + 1);
        self.member.store(member, Ordering::Relaxed);
    }

    /// Writes who was chosen for a session with one key: the member's address, and the counter that the session counts in.
    pub(super) fn set_chosen(&self, address: u128, member: Option<u32>) {
        self.key[0].store((address >> 64) as u64, Ordering::Relaxed);
        self.key[1].store(address as u64, Ordering::Relaxed);
        let member = member.map_or(0, |member| member + 1);
        self.member.store(member, Ordering::Relaxed);
    }

    /// Who was chosen.
    pub(super) fn chosen(&self) -> u128 {
        let [high, low] = [0, 1].map(|at: usize| self.key[at].load(Ordering::Relaxed));
        u128::from(high) << 64 | u128::from(low)
    }

    /// What it says. The caller knows by the slot's version whether that is of its session.
    #[inline]
    pub(super) fn read(&self) -> Content {
        let flags = self.flags.load(Ordering::Relaxed);
        Content {
            words: std::array::from_fn(|i| self.key[i].load(Ordering::Relaxed)),
            flipped: flags & FLIPPED != 0,
            first: if flags & OPENER_DOWN == 0 {
                Direction::Up
            } else {
                Direction::Down
            },
            joined: flags & JOINED != 0,
            mapping: (flags >> MAPPING_AT).checked_sub(1),
            member: self.member.load(Ordering::Relaxed).checked_sub(1),
            deltas: self.deltas.load(Ordering::Relaxed),
        }
    }
}

impl Content {
    /// Whether the second key has these words. All are compared, which is quicker than to stop at the first difference.
    #[inline]
    pub(super) fn has(&self, words: &[u64; 5]) -> bool {
        let pairs = self.words.iter().zip(words);
        pairs.fold(0, |all, (own, other)| all | (own ^ other)) == 0
    }

    /// A direction of one key, as a direction of the other.
    #[inline]
    pub(super) fn across(&self, direction: Direction) -> Direction {
        if self.flipped {
            direction.opposite()
        } else {
            direction
        }
    }

    /// What a packet of one side and direction, in terms of the first key, becomes on the other. `first` reads the words of the first key, which only
    /// packets of the second side need.
    #[inline]
    pub(super) fn translation(
        &self,
        first: impl FnOnce() -> [u64; 5],
        side: Side,
        direction: Direction,
    ) -> Translation {
        let (flow, vni) = match side {
            Side::First => Key::flow(&self.words, self.across(direction)),
            Side::Second => Key::flow(&first(), direction),
        };
        // Packets against the first direction change by the same words, the other way round; and so do those that go back to the first side.
        let deltas = match side {
            _ if self.joined => 0,
            Side::First => self.deltas,
            // Nothing changes, which no sum should show.
            Side::Second if self.deltas == 0 => 0,
            Side::Second => !self.deltas,
        };
        Translation {
            flow,
            vni,
            header_delta: deltas as u16,
            transport_delta: (deltas >> 16) as u16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Seeds;
    use proptest::prelude::*;

    fn flow(source: u128, destination: u128, ports: (u16, u16)) -> Flow {
        Flow {
            source,
            destination,
            source_port: ports.0,
            destination_port: ports.1,
            protocol: 6,
        }
    }

    proptest! {
        /// Whatever order the ends of the two keys have, each side's packets become the other's, and the checksums stay right.
        #[test]
        fn packets_of_either_side_become_those_of_the_other(
            a: [u32; 2], b: [u32; 2], ports: (u16, u16), others: (u16, u16), payload: u32,
        ) {
            prop_assume!((a[0], ports.0) != (a[1], ports.1) && (b[0], others.0) != (b[1], others.1));
            let v4 = |address: u32| 0xffff_0000_0000 | u128::from(address);
            let first = flow(v4(a[0]), v4(a[1]), ports);
            let second = flow(v4(b[0]), v4(b[1]), others);
            let seeds = Seeds::random();
            let keys = [Key::new(&seeds, &first, 1), Key::new(&seeds, &second, 2)];
            let line = Line::default();
            line.set(&keys[0], &keys[1], &Translation::new(&first, &second, 2), (None, None));
            let content = line.read();
            prop_assert_eq!(content.first, keys[0].direction);
            let cases = [
                (Side::First, keys[0].direction, first, second, 2),
                (Side::Second, keys[0].direction.opposite(), second.reversed(), first.reversed(), 1),
                (Side::Second, keys[0].direction, second, first, 1),
            ];
            for (side, direction, from, to, vni) in cases {
                let translation = content.translation(|| keys[0].words, side, direction);
                prop_assert_eq!(translation.flow, to);
                prop_assert_eq!(translation.vni, vni);
                let sum = |flow: &Flow| {
                    checksum::sum(&(flow.source as u32).to_be_bytes())
                        + checksum::sum(&(flow.destination as u32).to_be_bytes())
                        + u64::from(flow.source_port) + u64::from(flow.destination_port)
                        + u64::from(payload)
                };
                let field = checksum::finish(sum(&from));
                let changed = checksum::finish_few(u32::from(!field) + u32::from(translation.transport_delta));
                let (ours, right) = (changed, checksum::finish(sum(&to)));
                prop_assert!(ours == right || (ours % 0xffff == 0 && right % 0xffff == 0));
            }
        }
    }
}
