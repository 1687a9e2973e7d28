//! The key of a session: both ends in a fixed order, so that a flow and its reverse have one key and one hash.

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
        0x9e37_79b9_7f4a_7c15
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
    pub fn new(seeds: &Seeds, flow: &Flow, vni: u32) -> Self {
        let word = |address: u128| [(address >> 64) as u64, address as u64];
        let source = (word(flow.source), flow.source_port);
        let destination = (word(flow.destination), flow.destination_port);
        Self::of(seeds, source, destination, flow.protocol, vni)
    }

    /// The key of what two ends send each other, each with its address (high word first) and its port.
    #[inline(always)]
    pub fn of(
        seeds: &Seeds,
        source: ([u64; 2], u16),
        destination: ([u64; 2], u16),
        protocol: u8,
        vni: u32,
    ) -> Self {
        let up = source < destination;
        let (([w0, w1], low_port), ([w2, w3], high_port)) = if up {
            (source, destination)
        } else {
            (destination, source)
        };
        let ends = u64::from(low_port) << 48
            | u64::from(high_port) << 32
            | u64::from(vni) << 8
            | u64::from(protocol);
        let words = [w0, w1, w2, w3, ends];
        let [a, b, c, d] = seeds.0;
        // Products of secret sums, folded (wyhash): two in a row for IPv4, whose high words are the same for all.
        let wide = if w0 | w2 == 0 { 0 } else { mix(w0 ^ d, w2 ^ c) };
        let hash = mix(
            mix(w1 ^ a, w3 ^ b) ^ mix(ends ^ c, wide ^ d),
            a ^ 0x9e37_79b9_7f4a_7c15,
        );
        Self {
            words,
            hash,
            direction: if up { Direction::Up } else { Direction::Down },
        }
    }

    /// The flow and VNI that the key stands for, seen from `direction`.
    pub fn flow(words: &[u64; 5], direction: Direction) -> (Flow, u32) {
        let ends = words[4];
        let up = Flow {
            source: u128::from(words[0]) << 64 | u128::from(words[1]),
            destination: u128::from(words[2]) << 64 | u128::from(words[3]),
            source_port: (ends >> 48) as u16,
            destination_port: (ends >> 32) as u16,
            protocol: ends as u8,
        };
        let vni = (ends >> 8) as u32 & 0xff_ffff;
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
            prop_assert_eq!(Key::flow(&there.words, there.direction), (flow, vni));
        }
    }
}
