//! Places: which of many disjoint ranges an address lies in.
//!
//! Addresses are words of 32 bits, one for IPv4 and four for IPv6, the highest first. A step function over a word says what the address's place is,
//! or, where the word does not tell, which function to ask with the next one.

use super::steps::{self, Function, Functions, Maker, NONE};

/// From here on a value is not a place: what it is more by is the number of the function for the next word.
pub(super) const FURTHER: u32 = 0xc000_0000;

/// Places by address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Places {
    root: Option<Function>,
    further: Vec<Function>,
}

impl Places {
    /// Places of ranges, each given by its last address, ascending, the last one that of all addresses; `bits` is the length of an address.
    pub(super) fn new(ranges: &[(u128, u32)], bits: u32, maker: &mut Maker) -> Self {
        let mut places = Self::default();
        places.root = Some(places.function(ranges, 0, bits - 32, maker));
        places
    }

    /// The function of the word above `shift` bits, for addresses from `first` on, at which a word begins.
    fn function(
        &mut self,
        ranges: &[(u128, u32)],
        mut first: u128,
        shift: u32,
        maker: &mut Maker,
    ) -> Function {
        let rest = (1u128 << shift) - 1;
        let mut all = Vec::new();
        let mut at = 0;
        while let Some((last, place)) = ranges.get(at) {
            // The last address of the word.
            let end = first + rest;
            if *last >= end {
                // Whole words, as many as there are.
                let whole = if last & rest == rest {
                    *last
                } else {
                    (last & !rest) - 1
                };
                steps::extend(&mut all, (whole >> shift) as u32, *place);
                first = whole.wrapping_add(1);
                at += usize::from(whole == *last);
            } else {
                // The place changes within the word.
                let until = ranges[at..].partition_point(|(last, _)| *last < end);
                let within: Vec<(u128, u32)> = ranges[at..=at + until]
                    .iter()
                    .map(|(last, place)| ((*last).min(end), *place))
                    .collect();
                let function = self.function(&within, first, shift - 32, maker);
                let further = FURTHER + self.further.len() as u32;
                steps::extend(&mut all, (end >> shift) as u32, further);
                self.further.push(function);
                at += until;
                at += usize::from(ranges[at].0 == end);
                first = end.wrapping_add(1);
            }
        }
        maker.make(&all)
    }

    /// The places of addresses of `bits` bits; [`NONE`] for one that has none.
    #[inline(always)]
    pub(super) fn locate<const N: usize>(
        &self,
        functions: &Functions,
        addresses: [u128; N],
        bits: u32,
    ) -> [u32; N] {
        let Some(root) = self.root else {
            return [NONE; N];
        };
        let first = bits - 32;
        let words = addresses.map(|address| (address >> first) as u32);
        let mut places = functions.at_each(root, words);
        for i in 0..N {
            let mut shift = first;
            while shift > 0 && places[i] >= FURTHER && places[i] != NONE {
                shift -= 32;
                let function = self.further[(places[i] - FURTHER) as usize];
                places[i] = functions.at(function, (addresses[i] >> shift) as u32);
            }
        }
        places
    }

    /// Bytes of memory, without what the functions take.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.further)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Addresses that share words, and the first and last ones of all.
    fn address() -> impl Strategy<Value = u128> {
        let word = || prop_oneof![Just(0u32), Just(u32::MAX), 0u32..3, any::<u32>()];
        (word(), word(), word(), word()).prop_map(|(a, b, c, d)| {
            [a, b, c, d]
                .iter()
                .fold(0, |address, word| address << 32 | u128::from(*word))
        })
    }

    #[test]
    fn a_word_that_does_not_tell_the_place_takes_a_function_number_of_4_bytes() {
        // The second words 5 below ten first words end a range.
        let split = (0..10u128).map(|word| (word << 96 | 6 << 64) - 1);
        let ranges: Vec<(u128, u32)> = split.chain([u128::MAX]).zip(0..).collect();
        let places = Places::new(&ranges, 128, &mut Maker::default());
        assert_eq!(places.bytes(), 10 * 4);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn an_address_is_in_the_first_range_that_ends_behind_it(
            lasts in proptest::collection::btree_set(address(), 0..40),
            probes in proptest::collection::vec(address(), 1..40),
            bits in prop_oneof![Just(32u32), Just(128)],
        ) {
            let most = u128::MAX >> (128 - bits);
            let lasts: std::collections::BTreeSet<u128> = lasts.into_iter().map(|last| last & most).chain([most]).collect();
            let ranges: Vec<(u128, u32)> = lasts.iter().copied().zip(0..).collect();
            let mut maker = Maker::default();
            let places = Places::new(&ranges, bits, &mut maker);
            let functions = maker.finish();
            let near = lasts.iter().flat_map(|last| [*last, last.wrapping_add(1)]);
            for probe in probes.into_iter().chain(near).map(|probe| probe & most) {
                let wanted = ranges.iter().find(|(last, _)| *last >= probe).unwrap().1;
                prop_assert_eq!(places.locate(&functions, [probe], bits), [wanted], "{:x}", probe);
            }
        }
    }
}
