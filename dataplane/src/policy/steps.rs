//! Step functions: which value holds at a key, where the values change at few keys only.
//!
//! The functions of one classifier share an arena of cache lines. A function is a search tree with nodes of one line each: a leaf has up to 8
//! steps, an inner node up to 16 children. Nodes are searched by comparing all of their keys and counting, without a branch that depends on
//! the key, which compilers turn into vector instructions (after Khuong and Morin, "Array Layouts for Comparison-Based Searching", 2017).
//! A look-up in a function of n steps reads 1 line up to 8 steps, 2 up to 128, 3 up to 2048, 4 up to 32768.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use wide::{i8x16, i16x8, i32x8};

/// The value where none was given.
pub(super) const NONE: u32 = u32::MAX;

const STEPS: usize = 8;
const CHILDREN: usize = 16;

/// A function's value up to a key, that key included, from the key before on; the last goes up to `u32::MAX`.
pub(super) type Step = (u32, u32);

/// A leaf: the last keys of 8 steps, then their values. An inner node: the last keys of all children but the last, then the first child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
struct Line([i32; 16]);

/// A function in its arena: the number of its topmost line, and above that the number of levels of inner nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Function(u32);

/// Lines of an arena: 16 GiB.
const LINES: u32 = 1 << 28;

impl Function {
    /// Less than 2^31.
    pub(super) fn number(self) -> u32 {
        self.0
    }

    /// The function of a number that [`Self::number`] gave.
    pub(super) fn numbered(number: u32) -> Self {
        Self(number)
    }
}

/// Functions, each line 64 bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Functions {
    lines: Vec<Line>,
}

/// Keys in the order of signed numbers, which vector instructions compare.
fn ordered(key: u32) -> i32 {
    (key ^ 0x8000_0000) as i32
}

/// Eight keys of a line, each held against a key: all ones where it is less. The vectors are of a width that every x86-64 and Arm processor has.
#[inline(always)]
fn less(line: &[i32; 16], at: usize, key: i32x8) -> i16x8 {
    let eight = i32x8::new(std::array::from_fn(|i| line[at + i]));
    i16x8::from_i32x8_saturate(eight.simd_lt(key))
}

/// How many of the first 15 keys of an inner node are less. Keys ascend, so that those are the first ones.
#[inline(always)]
fn children_before(line: &[i32; 16], key: i32x8) -> u32 {
    let both = bytemuck::cast([less(line, 0, key), less(line, 8, key)]);
    let less = i8x16::from_i16x16_saturate(both).to_bitmask();
    (less & 0x7fff).trailing_ones()
}

/// How many of the first 7 keys of a leaf are less.
#[inline(always)]
fn steps_before(line: &[i32; 16], key: i32x8) -> u32 {
    (less(line, 0, key).to_bitmask() & 0x7f).trailing_ones()
}

impl Functions {
    /// The function's value at the key.
    #[inline(always)]
    pub(super) fn at(&self, function: Function, key: u32) -> u32 {
        let [value] = self.at_each(function, [key]);
        value
    }

    /// The function's values at several keys, searched side by side: while one line is on its way, others are compared.
    #[inline(always)]
    pub(super) fn at_each<const N: usize>(&self, function: Function, keys: [u32; N]) -> [u32; N] {
        let vector = |key| i32x8::splat(ordered(key));
        let mut at = [(function.0 % LINES) as usize; N];
        for _ in 0..function.0 / LINES {
            for i in 0..N {
                let (line, key) = (&self.lines[at[i]].0, vector(keys[i]));
                at[i] = (line[15] as u32 + children_before(line, key)) as usize;
            }
        }
        std::array::from_fn(|i| {
            let line = &self.lines[at[i]].0;
            line[STEPS + steps_before(line, vector(keys[i])) as usize] as u32
        })
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    fn push(&mut self, steps: &[Step]) -> Function {
        let mut level: Vec<(i32, Line)> = steps
            .chunks(STEPS)
            .map(|chunk| {
                let mut line = [i32::MAX; 16];
                let last = chunk.last().map_or(NONE, |step| step.1);
                line[STEPS..].fill(last as i32);
                for (i, (key, value)) in chunk.iter().enumerate() {
                    line[i] = ordered(*key);
                    line[STEPS + i] = *value as i32;
                }
                (line[chunk.len() - 1], Line(line))
            })
            .collect();
        let mut height = 0;
        while level.len() > 1 {
            let first = self.lines.len();
            self.lines.extend(level.iter().map(|(_, line)| *line));
            level = level
                .chunks(CHILDREN)
                .enumerate()
                .map(|(i, children)| {
                    let mut line = [i32::MAX; 16];
                    for (slot, (last, _)) in line.iter_mut().zip(children) {
                        *slot = *last;
                    }
                    // In the place of the last of 16; fewer end at the highest key, which is as good as none.
                    line[15] = (first + i * CHILDREN) as i32;
                    (children[children.len() - 1].0, Line(line))
                })
                .collect();
            height += 1;
        }
        let line = self.lines.len() as u32;
        self.lines.extend(level.iter().map(|(_, line)| *line));
        Function(height * LINES + line)
    }
}

/// Makes functions; equal ones are kept once.
#[derive(Debug, Default)]
pub(super) struct Maker {
    functions: Functions,
    made: HashMap<Vec<Step>, Function, FixedState>,
}

impl Maker {
    /// The function of some steps, ascending, of which the last ends at `u32::MAX`.
    pub(super) fn make(&mut self, steps: &[Step]) -> Function {
        debug_assert!(steps.last().is_some_and(|step| step.0 == u32::MAX));
        if let Some(made) = self.made.get(steps) {
            return *made;
        }
        let function = self.functions.push(steps);
        self.made.insert(steps.to_vec(), function);
        function
    }

    pub(super) fn finish(mut self) -> Functions {
        self.functions.lines.shrink_to_fit();
        self.functions
    }
}

/// Adds a step, or lengthens the last one if it has the same value.
pub(super) fn extend(steps: &mut Vec<Step>, last: u32, value: u32) {
    match steps.last_mut() {
        Some(step) if step.1 == value => step.0 = last,
        _ => steps.push((last, value)),
    }
}

/// The least value of all ranges that hold a key; [`NONE`] outside of all. Ranges are first key, last key, value.
pub(super) fn least(ranges: &[(u32, u32, u32)]) -> Vec<Step> {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;
    // By far the most prefixes have one rule.
    if let [(first, last, value)] = ranges {
        let mut steps = Vec::with_capacity(3);
        if let Some(before) = first.checked_sub(1) {
            extend(&mut steps, before, NONE);
        }
        extend(&mut steps, *last, *value);
        if *last < u32::MAX {
            extend(&mut steps, u32::MAX, NONE);
        }
        return steps;
    }
    let mut ranges = ranges.to_vec();
    ranges.sort_unstable();
    let mut edges: Vec<u32> = ranges
        .iter()
        .flat_map(|(first, last, _)| [first.checked_sub(1), Some(*last)])
        .flatten()
        .chain([u32::MAX])
        .collect();
    edges.sort_unstable();
    edges.dedup();
    let mut steps = Vec::new();
    let mut open = BinaryHeap::new();
    let mut coming = ranges.iter().peekable();
    let mut key = 0;
    for edge in edges {
        while let Some((_, last, value)) = coming.next_if(|(first, ..)| *first <= key) {
            open.push(Reverse((*value, *last)));
        }
        while open.peek().is_some_and(|Reverse((_, last))| *last < key) {
            open.pop();
        }
        let value = open.peek().map_or(NONE, |Reverse((value, _))| *value);
        extend(&mut steps, edge, value);
        key = edge.wrapping_add(1);
    }
    steps
}

/// The lesser of two functions at every key.
pub(super) fn lesser(a: &[Step], b: &[Step]) -> Vec<Step> {
    let mut steps = Vec::with_capacity(a.len() + b.len());
    let (mut i, mut j) = (0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        extend(&mut steps, x.0.min(y.0), x.1.min(y.1));
        i += usize::from(x.0 <= y.0);
        j += usize::from(y.0 <= x.0);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(ranges: &[(u32, u32, u32)], key: u32) -> u32 {
        let of = ranges
            .iter()
            .filter(|(first, last, _)| (*first..=*last).contains(&key));
        of.map(|range| range.2).min().unwrap_or(NONE)
    }

    fn range() -> impl Strategy<Value = (u32, u32, u32)> {
        let key = || prop_oneof![0u32..40, any::<u32>(), (u32::MAX - 40)..=u32::MAX];
        (key(), key(), 0u32..20).prop_map(|(a, b, value)| (a.min(b), a.max(b), value))
    }

    fn keys(ranges: &[(u32, u32, u32)]) -> Vec<u32> {
        let edges = ranges.iter().flat_map(|(first, last, _)| {
            [first.wrapping_sub(1), *first, *last, last.wrapping_add(1)]
        });
        edges.chain([0, 1, u32::MAX - 1, u32::MAX]).collect()
    }

    proptest! {
        #[test]
        fn a_function_has_the_least_value_of_its_ranges(ranges in proptest::collection::vec(range(), 0..300)) {
            let steps = least(&ranges);
            let shortest = |two: &[Step]| two[0].0 < two[1].0 && two[0].1 != two[1].1;
            prop_assert!(steps.windows(2).all(shortest), "{:?}", steps);
            let mut maker = Maker::default();
            let function = maker.make(&steps);
            let functions = maker.finish();
            for key in keys(&ranges) {
                prop_assert_eq!(functions.at(function, key), naive(&ranges, key), "at {}", key);
            }
        }

        #[test]
        fn the_lesser_of_two_is_that_of_both_together(
            a in proptest::collection::vec(range(), 0..30),
            b in proptest::collection::vec(range(), 0..30),
        ) {
            let both: Vec<_> = a.iter().chain(&b).copied().collect();
            prop_assert_eq!(lesser(&least(&a), &least(&b)), least(&both));
        }
    }

    #[test]
    fn a_range_given_twice_is_one() {
        for (first, last) in [(0, 0), (0, 9), (5, 9), (5, u32::MAX), (0, u32::MAX)] {
            let range = (first, last, 1);
            assert_eq!(least(&[range]), least(&[range, range]), "{range:?}");
        }
    }

    #[test]
    fn functions_of_every_size_are_searched_to_both_ends() {
        for size in [1u32, 2, 8, 9, 16, 128, 129, 2048, 2049, 40_000] {
            let width = u32::MAX / size;
            let mut steps: Vec<Step> = (0..size).map(|i| (i * width + width - 1, i)).collect();
            steps[size as usize - 1].0 = u32::MAX;
            let mut maker = Maker::default();
            let function = maker.make(&steps);
            let functions = maker.finish();
            for i in 0..size {
                assert_eq!(functions.at(function, i * width), i, "of {size}");
            }
            assert_eq!(functions.at(function, u32::MAX), size - 1);
        }
    }

    #[test]
    fn equal_functions_are_kept_once() {
        let mut maker = Maker::default();
        let ranges = [(1, 2, 3)];
        assert_eq!(maker.make(&least(&ranges)), maker.make(&least(&ranges)));
        assert_eq!(maker.finish().bytes(), 64);
    }
}
