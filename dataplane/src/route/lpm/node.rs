//! One node of the trie: what each of the 256 values of a byte leads to.
//!
//! Values side by side that lead to the same share one **entry**; a bitmap marks where each run begins, and the rank of a value in it is
//! its entry's place (Degermark et al., "Small forwarding tables for fast routing lookups", 1997; Asai and Ohara, "Poptrie", 2015). A node
//! is one block of words:
//!
//! | words | hold |
//! |---|---|
//! | 0..8 | a bit for each value that begins a run |
//! | 8, 9 | a byte for each of those words: how many runs begin before it |
//! | 10 | the leaf of the slot that leads here, for addresses that find none below |
//! | 11 | entries (low half), rules (high half) |
//! | 12 | how many bytes of the address are skipped before this node's |
//! | 13, 14 | those bytes, right-aligned, high word first |
//! | 16.. | entries: a child or a leaf; then the rules, two words each |
//!
//! So a look-up reads one cache line of a node, and the entry.
//!
//! The **rules** are the prefixes that end in this node's byte, for changes; look-ups don't touch them. A leaf is the length of the prefix
//! above its value, so that of two leaves the greater is that of the longer prefix.

/// Memory of nodes, in units of a cache line.
pub(super) type Blocks = super::blocks::Blocks<16>;

/// Values of a byte.
pub(super) const SLOTS: usize = 256;
const BEFORE: usize = 8;
const DEFAULT: usize = 10;
const COUNTS: usize = 11;
const SKIP: usize = 12;
const HEAD: usize = 16;

/// Marks an entry that is a child's block.
const CHILD: u32 = 1 << 31;
/// Bits of a leaf's value.
const VALUE_BITS: u32 = 23;
/// Values that a leaf can hold.
pub(super) const VALUES: u32 = 1 << VALUE_BITS;
/// No leaf.
pub(super) const NOTHING: u32 = 0;

/// The leaf of a prefix.
pub(super) fn leaf(length: u8, value: u32) -> u32 {
    ((u32::from(length) + 1) << VALUE_BITS) | (value % VALUES)
}

/// Length and value of a leaf, unless it is none.
#[inline(always)]
pub(super) fn parts(leaf: u32) -> Option<(u8, u32)> {
    let length = (leaf >> VALUE_BITS).checked_sub(1)?;
    Some((length as u8, leaf % VALUES))
}

/// What a look-up of many addresses tells of a leaf: its value plus 1, or 0.
#[inline(always)]
pub(super) fn told(leaf: u32) -> u32 {
    parts(leaf).map_or(0, |(_, value)| value + 1)
}

/// What a slot leads to.
#[inline(always)]
pub(super) fn child(entry: u32) -> Option<u32> {
    (entry & CHILD != 0).then_some(entry & !CHILD)
}

/// The entry that leads to a child.
pub(super) fn to_child(block: u32) -> u32 {
    block | CHILD
}

/// A prefix that ends in this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    /// Length of the whole prefix, and value.
    pub(super) leaf: u32,
    /// First slot.
    pub(super) slot: u8,
    /// How many slots.
    pub(super) width: u16,
}

/// Bytes of the address between a node and its parent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Skip {
    /// How many, at most 8.
    pub(super) count: u8,
    /// They, right-aligned.
    pub(super) bytes: u64,
}

/// A node taken apart for a change.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Leaf or child of each slot.
    pub(super) slots: [u32; SLOTS],
    pub(super) default: u32,
    pub(super) skip: Skip,
    pub(super) rules: Vec<Rule>,
}

/// A node in which nothing is found: what a look-up is sent to when there is no node.
pub(super) fn nowhere() -> [u32; HEAD + 1] {
    let mut words = [0; HEAD + 1];
    words[0] = 1;
    words[BEFORE] = 0x0101_0100;
    words[BEFORE + 1] = 0x0101_0101;
    words[COUNTS] = 1;
    words
}

/// Where a slot's entry is in its block.
#[inline(always)]
pub(super) fn entry_place(blocks: &Blocks, block: u32, slot: u8) -> usize {
    let group = usize::from(slot >> 5);
    let upto = blocks.word(block, group) & (u32::MAX >> (31 - (slot & 31)));
    let before = blocks.word(block, BEFORE + group / 4) >> (8 * (group % 4)) & 0xff;
    HEAD + (before + upto.count_ones()) as usize - 1
}

#[inline(always)]
pub(super) fn entry(blocks: &Blocks, block: u32, slot: u8) -> u32 {
    blocks.word(block, entry_place(blocks, block, slot))
}

#[inline(always)]
pub(super) fn default(blocks: &Blocks, block: u32) -> u32 {
    blocks.word(block, DEFAULT)
}

pub(super) fn set_default(blocks: &mut Blocks, block: u32, leaf: u32) {
    blocks.write(block, HEAD)[DEFAULT] = leaf;
}

#[inline(always)]
pub(super) fn skip(blocks: &Blocks, block: u32) -> Skip {
    let word = |i| u64::from(blocks.word(block, SKIP + i));
    Skip {
        count: word(0) as u8,
        bytes: word(1) << 32 | word(2),
    }
}

pub(super) fn set_skip(blocks: &mut Blocks, block: u32, skip: Skip) {
    let words = blocks.write(block, HEAD);
    words[SKIP] = skip.count.into();
    words[SKIP + 1] = (skip.bytes >> 32) as u32;
    words[SKIP + 2] = skip.bytes as u32;
}

/// Puts another entry in a slot that is a run of its own, as that of a child is.
pub(super) fn set_entry(blocks: &mut Blocks, block: u32, slot: u8, entry: u32) {
    let place = entry_place(blocks, block, slot);
    blocks.write(block, place + 1)[place] = entry;
}

fn counts(blocks: &Blocks, block: u32) -> (usize, usize) {
    let word = blocks.word(block, COUNTS);
    ((word & 0xffff) as usize, (word >> 16) as usize)
}

/// The rules of a node.
pub(super) fn rules(blocks: &Blocks, block: u32) -> impl Iterator<Item = Rule> {
    let (entries, rules) = counts(blocks, block);
    let words = blocks.read(block).get(HEAD + entries..).unwrap_or(&[]);
    words.chunks_exact(2).take(rules).map(|pair| Rule {
        leaf: pair[0],
        slot: pair[1] as u8,
        width: (pair[1] >> 16) as u16,
    })
}

/// The children of a node with their slots, in order.
pub(super) fn children(blocks: &Blocks, block: u32) -> impl Iterator<Item = (u8, u32)> {
    (0..=255u8).filter_map(move |slot| Some((slot, child(entry(blocks, block, slot))?)))
}

impl Node {
    /// A node without rules.
    pub(super) fn new(default: u32, skip: Skip) -> Self {
        Self {
            slots: [NOTHING; SLOTS],
            default,
            skip,
            rules: Vec::new(),
        }
    }

    pub(super) fn read(blocks: &Blocks, block: u32) -> Self {
        let mut node = Self::new(default(blocks, block), skip(blocks, block));
        let words = blocks.read(block);
        let mut place = HEAD - 1;
        for (value, slot) in node.slots.iter_mut().enumerate() {
            let map = words.get(value / 32).copied().unwrap_or(0);
            place += (map >> (value % 32) & 1) as usize;
            *slot = words.get(place).copied().unwrap_or(NOTHING);
        }
        node.rules = rules(blocks, block).collect();
        node
    }

    /// Whether it says nothing that its default does not.
    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.slots.iter().all(|entry| *entry == NOTHING)
    }

    /// The one child, if there is nothing else.
    pub(super) fn only_child(&self) -> Option<(u8, u32)> {
        let mut entries = (0..=255u8).zip(self.slots).filter(|(_, e)| *e != NOTHING);
        let (slot, only) = entries.next()?;
        let alone = self.rules.is_empty() && entries.next().is_none();
        Some((slot, child(only).filter(|_| alone)?))
    }

    fn words(&self) -> usize {
        let runs = 1 + self.slots.windows(2).filter(|w| w[0] != w[1]).count();
        HEAD + runs + 2 * self.rules.len()
    }

    /// Stores the node, in `block` if there is one and the node still fits; its block now.
    pub(super) fn write(&self, blocks: &mut Blocks, block: Option<u32>) -> u32 {
        let size = self.words();
        let block = match block {
            Some(block) => {
                let (entries, rules) = counts(blocks, block);
                let old = HEAD + entries + 2 * rules;
                if Blocks::same_size(old, size) {
                    block
                } else {
                    blocks.release(block, old);
                    blocks.allocate(size)
                }
            }
            None => blocks.allocate(size),
        };
        let words = blocks.write(block, size);
        let mut place = HEAD - 1;
        let mut before = None;
        words[..HEAD].fill(0);
        for (group, slots) in self.slots.chunks_exact(32).enumerate() {
            words[BEFORE + group / 4] |= ((place + 1 - HEAD) as u32) << (8 * (group % 4));
            for (bit, slot) in slots.iter().enumerate() {
                if before != Some(*slot) {
                    before = Some(*slot);
                    place += 1;
                    words[group] |= 1 << bit;
                    words[place] = *slot;
                }
            }
        }
        let entries = place + 1 - HEAD;
        words[DEFAULT] = self.default;
        words[COUNTS] = entries as u32 | (self.rules.len() as u32) << 16;
        words[SKIP] = self.skip.count.into();
        words[SKIP + 1] = (self.skip.bytes >> 32) as u32;
        words[SKIP + 2] = self.skip.bytes as u32;
        for (pair, rule) in words[HEAD + entries..].chunks_exact_mut(2).zip(&self.rules) {
            pair[0] = rule.leaf;
            pair[1] = u32::from(rule.slot) | u32::from(rule.width) << 16;
        }
        block
    }
}

/// Gives back a node's block.
pub(super) fn release(blocks: &mut Blocks, block: u32) {
    let (entries, rules) = counts(blocks, block);
    blocks.release(block, HEAD + entries + 2 * rules);
}

/// Copies a node and all below it into other memory; its block there.
pub(super) fn transfer(from: &Blocks, block: u32, to: &mut Blocks) -> u32 {
    let (entries, rules) = counts(from, block);
    let size = HEAD + entries + 2 * rules;
    let copy = to.allocate(size);
    let words = from.read(block).get(..size).unwrap_or(&[]);
    to.write(copy, words.len()).copy_from_slice(words);
    for place in HEAD..HEAD + entries {
        if let Some(below) = child(from.word(block, place)) {
            let below = transfer(from, below, to);
            to.write(copy, place + 1)[place] = to_child(below);
        }
    }
    copy
}
