//! The key of a session: both ends in a fixed order, so that a flow and its reverse have one key and one hash.

use crate::numbers::Vni;
use crate::packet::Flow;

/// Which of a session's two directions a packet goes: from the lower end to the higher, or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs)]
pub enum Direction {
    #[default]
    Up = 0,
    Down = 1,
}

impl Direction {
    /// The other one.
    pub fn opposite(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// A session's key with its hash, and the direction of the packet that it was made from.
#[derive(Debug, Clone, Copy, Default)]
pub struct Key {
    /// Addresses of the lower and the higher end, then ports, VNI and protocol.
    pub words: [u64; 5],
    /// Seeded hash of the words, the same for both directions.
    pub hash: u64,
    /// Which way the packet goes.
    pub direction: Direction,
}

/// Random seeds, so that nobody outside can aim flows at one bucket.
#[derive(Debug, Clone, Copy)]
pub struct Seeds([u64; 4]);

impl Seeds {
    /// Fresh ones.
    pub fn random() -> Self {
        Self(std::array::from_fn(|_| fresh() | 1))
    }
}

fn fresh() -> u64 {
    // A model checker runs the same model again and again, and needs the same sessions in the same places.
    if cfg!(feature = "loom") {
        0x2545_f491_4f6c_dd1d
    } else {
        rand::random()
    }
}

fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

impl Key {
    /// The key of a flow in a VPC.
    #[inline]
    pub fn new(seeds: &Seeds, flow: &Flow, vni: impl Into<Vni>) -> Self {
        let word = |address: u128| [(address >> 64) as u64, address as u64];
        let source = (word(flow.source), flow.source_port);
        let destination = (word(flow.destination), flow.destination_port);
        Self::of(seeds, source, destination, flow.protocol, vni.into())
    }

    /// The key of what two ends send each other, each with its address (high word first) and its port.
    #[inline(always)]
    pub fn of(
        seeds: &Seeds,
        source: ([u64; 2], u16),
        destination: ([u64; 2], u16),
        protocol: u8,
        vni: Vni,
    ) -> Self {
        let up = source < destination;
        let (([w0, w1], low_port), ([w2, w3], high_port)) = if up {
            (source, destination)
        } else {
            (destination, source)
        };
        let ends = u64::from(low_port) << 48
            | u64::from(high_port) << 32
            | u64::from(vni.get()) << 8
            | u64::from(protocol);
        let words = [w0, w1, w2, w3, ends];
        Self {
            words,
            hash: Self::hash_of(seeds, &words),
            direction: if up { Direction::Up } else { Direction::Down },
        }
    }

    /// The hash of a key's words.
    #[inline(always)]
    pub fn hash_of(seeds: &Seeds, words: &[u64; 5]) -> u64 {
        let [w0, w1, w2, w3, ends] = *words;
        let [a, b, c, d] = seeds.0;
        // Products of secret sums, folded (wyhash): two in a row for IPv4, whose high words are the same for all.
        let wide = if w0 | w2 == 0 { 0 } else { mix(w0 ^ d, w2 ^ c) };
        mix(
            mix(w1 ^ a, w3 ^ b) ^ mix(ends ^ c, wide ^ d),
            a ^ 0x9e37_79b9_7f4a_7c15,
        )
    }

    /// The flow and VNI that the key stands for, seen from `direction`.
    pub fn flow(words: &[u64; 5], direction: Direction) -> (Flow, Vni) {
        let ends = words[4];
        let up = Flow {
            source: u128::from(words[0]) << 64 | u128::from(words[1]),
            destination: u128::from(words[2]) << 64 | u128::from(words[3]),
            source_port: (ends >> 48) as u16,
            destination_port: (ends >> 32) as u16,
            protocol: ends as u8,
        };
        let vni = Vni::from((ends >> 8) as u32 & 0xff_ffff);
        (
            if direction == Direction::Up {
                up
            } else {
                up.reversed()
            },
            vni,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything that differs from a flow in one bit, or in the same one of both addresses.
    fn neighbours(flow: Flow, vni: u32) -> impl Iterator<Item = (Flow, u32)> {
        let flip = move |source: u128, destination: u128, ports: u32, protocol: u8| Flow {
            source: flow.source ^ source,
            destination: flow.destination ^ destination,
            source_port: flow.source_port ^ (ports >> 16) as u16,
            destination_port: flow.destination_port ^ ports as u16,
            protocol: flow.protocol ^ protocol,
        };
        let address_bits = if flow.source >> 32 == 0xffff { 32 } else { 128 };
        let addresses = (0..address_bits)
            .map(|bit| 1u128 << bit)
            .flat_map(move |bit| [flip(bit, 0, 0, 0), flip(0, bit, 0, 0), flip(bit, bit, 0, 0)]);
        let ports = (0..32).map(move |bit| flip(0, 0, 1 << bit, 0));
        let protocols = (0..8).map(move |bit| flip(0, 0, 0, 1 << bit));
        let networks = (0..24).map(move |bit| (flow, vni ^ 1 << bit));
        let flows = addresses.chain(ports).chain(protocols);
        flows.map(move |flow| (flow, vni)).chain(networks)
    }

    /// Seeds among which one is extreme, or cancels the last word of a key.
    fn extreme_seeds(ends: u64, places: &[usize]) -> Vec<Seeds> {
        let seeds = [
            0x243f_6a88_85a3_08d3,
            0x1319_8a2e_0370_7345,
            0xa409_3822_299f_31d1,
            0x082e_fa98_ec4e_6c89,
        ];
        let with = |place: usize, seed: u64| {
            let mut seeds = seeds;
            seeds[place] = seed;
            Seeds(seeds)
        };
        let of = |place: &usize| [0, u64::MAX, ends, !ends].map(|seed| with(*place, seed));
        places.iter().flat_map(of).chain([Seeds(seeds)]).collect()
    }

    /// As otherwise whoever chooses flows may choose many of one hash.
    #[test]
    fn every_bit_of_a_key_moves_its_hash_even_where_a_seed_is_extreme() {
        let flow = |source, destination| Flow {
            source,
            destination,
            source_port: 0x8235,
            destination_port: 443,
            protocol: 6,
        };
        let prefix = 0xfd12_3456_789a_bcde << 64;
        let (here, there) = (0x0123_4567_89ab_cdef, 0x8421_7bde_0f1e_2d3c);
        // The fourth seed is all that IPv4 has in the place of its high words.
        let cases = [
            (flow(0xffff_0a01_0203, 0xffff_0afb_9c8d), &[0, 1, 2][..]),
            (flow(prefix | here, prefix | there), &[0, 1, 3]),
            (
                flow(prefix | here, !prefix & !u128::from(u64::MAX) | there),
                &[0, 1, 3],
            ),
        ];
        for (flow, places) in cases {
            let vni = 0x12_3456;
            let ends = Key::new(&Seeds([1; 4]), &flow, vni).words[4];
            for seeds in extreme_seeds(ends, places) {
                let hash = Key::new(&seeds, &flow, vni).hash;
                for (other, other_vni) in neighbours(flow, vni) {
                    let other_hash = Key::new(&seeds, &other, other_vni).hash;
                    assert_ne!(
                        other_hash, hash,
                        "{flow:x?} {other:x?} {other_vni:x} {seeds:x?}"
                    );
                }
            }
        }
    }

    #[cfg(not(feature = "loom"))]
    #[test]
    fn no_two_seeds_are_the_same() {
        let seeds: std::collections::HashSet<u64> =
            (0..8).flat_map(|_| Seeds::random().0).collect();
        assert_eq!(seeds.len(), 32);
    }

    proptest! {
        #[test]
        fn both_directions_have_one_key(s: u128, d: u128, sp: u16, dp: u16, p: u8, vni in 1u32..1 << 24) {
            prop_assume!((s, sp) != (d, dp));
            let seeds = Seeds::random();
            let flow = Flow { source: s, destination: d, source_port: sp, destination_port: dp, protocol: p };
            let there = Key::new(&seeds, &flow, vni);
            let back = Key::new(&seeds, &flow.reversed(), vni);
            prop_assert_eq!(there.words, back.words);
            prop_assert_eq!(there.hash, back.hash);
            prop_assert_eq!(there.direction, back.direction.opposite());
            prop_assert_eq!(there.direction == Direction::Up, (s, sp) < (d, dp));
            prop_assert!(there.words[..2] <= there.words[2..4], "the lower end comes first");
            prop_assert_eq!(Key::flow(&there.words, there.direction), (flow, Vni::from(vni)));
        }
    }
}
