//! A table of many prefixes: a trie that decides a byte at a time, with its first two bytes in plain arrays.
//!
//! The first 16 bits of an address choose a slot of a **fan**: the leaf of the longest prefix of at most 16 bits, and the node for the longer
//! ones, if there are any. Each node decides one byte ([`node`]); a leaf is pushed down within its node, and to the nodes right below as their
//! default, and no further, so that a change touches one node, its children's defaults, or one range of fans. IPv6 nodes skip bytes in which all
//! prefixes below agree. IPv4 nodes never do: three dependent reads (fan, node, entry) answer for
//! prefixes of up to 24 bits, five for all.
//!
//! Keys are left-aligned in 128 bits. Copies share everything until one of them changes.

use std::sync::Arc;

use super::node::{self, Blocks, NOTHING, Node, Rule, Skip};

/// Keys that are looked up together: enough to keep the memory busy, few enough for the first cache.
pub(super) const BATCH: usize = 64;
/// Bits that the fans decide.
const TOP: u8 = 16;
/// Bytes that a node can skip.
const MOST_SKIPPED: u8 = 8;

/// Slots of the first two bytes that share the first.
type Fan = [Slot; 256];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Slot {
    /// 0: the node in which nothing is found.
    node: u32,
    leaf: u32,
}

/// A prefix of at most 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Short {
    bits: u16,
    length: u8,
    leaf: u32,
}

/// A table of prefixes of one family.
#[derive(Debug, Clone)]
pub(super) struct Trie {
    fans: Vec<Arc<Fan>>,
    blocks: Blocks,
    /// Sorted.
    short: Arc<Vec<Short>>,
    /// Bytes that a node may skip.
    skippable: u8,
    count: usize,
}

fn byte(key: u128, index: u8) -> u8 {
    key.checked_shl(8 * u32::from(index))
        .map_or(0, |rest| (rest >> 120) as u8)
}

/// `count` bytes of the key from `index` on, right-aligned; `count` is at most 8.
#[inline(always)]
fn bytes(key: u128, index: u8, count: u8) -> u64 {
    if count == 0 {
        return 0;
    }
    let rest = key.checked_shl(8 * u32::from(index)).unwrap_or(0);
    (rest >> (128 - 8 * u32::from(count))) as u64
}

/// The last `count` of a skip's bytes.
fn tail(skip: Skip, count: u8) -> Skip {
    let mask = if count == 0 {
        0
    } else {
        u64::MAX >> (64 - 8 * u32::from(count))
    };
    Skip {
        count,
        bytes: skip.bytes & mask,
    }
}

impl Trie {
    /// An empty table. IPv6 is to skip, IPv4 not.
    pub(super) fn new(skips: bool) -> Self {
        let fan = Arc::new([Slot::default(); 256]);
        Self {
            fans: std::iter::repeat_n(fan, 256).collect(),
            blocks: Blocks::new(&node::nowhere()),
            short: Arc::default(),
            skippable: if skips { MOST_SKIPPED } else { 0 },
            count: 0,
        }
    }

    /// How many prefixes.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    fn slot(&self, top: u16) -> Slot {
        self.fans
            .get(usize::from(top >> 8))
            .map_or(Slot::default(), |fan| fan[usize::from(top & 255)])
    }

    fn slot_mut(&mut self, top: u16) -> &mut Slot {
        &mut Arc::make_mut(&mut self.fans[usize::from(top >> 8)])[usize::from(top & 255)]
    }

    /// Adds a prefix or replaces its value; its leaf before.
    pub(super) fn insert(&mut self, key: u128, length: u8, value: u32) -> Option<u32> {
        let leaf = node::leaf(length, value);
        let before = if length <= TOP {
            self.insert_short((key >> 112) as u16, length, leaf)
        } else {
            let top = (key >> 112) as u16;
            let slot = self.slot(top);
            let (node, before) = match slot.node {
                0 => (self.sprout(2, key, length, leaf, NOTHING), None),
                node => self.insert_below(node, 2, key, length, leaf),
            };
            if node != slot.node {
                self.slot_mut(top).node = node;
            }
            before
        };
        self.count += usize::from(before.is_none());
        before
    }

    fn insert_short(&mut self, bits: u16, length: u8, leaf: u32) -> Option<u32> {
        let short = Short { bits, length, leaf };
        let list = Arc::make_mut(&mut self.short);
        let before = match list.binary_search_by_key(&(bits, length), |s| (s.bits, s.length)) {
            Ok(i) => Some(std::mem::replace(&mut list[i], short).leaf),
            Err(i) => {
                list.insert(i, short);
                None
            }
        };
        let bound = node::leaf(length, node::VALUES - 1);
        self.paint(bits, length, |old| if old <= bound { leaf } else { old });
        before
    }

    /// Renews the leaves under a short prefix.
    fn paint(&mut self, bits: u16, length: u8, renewed: impl Fn(u32) -> u32) {
        let width = 1usize << (TOP - length);
        let (mut at, end) = (usize::from(bits), usize::from(bits) + width);
        while at < end {
            let fan = Arc::make_mut(&mut self.fans[at >> 8]);
            let stop = end.min((at | 255) + 1);
            for slot in &mut fan[at & 255..=(stop - 1) & 255] {
                slot.leaf = renewed(slot.leaf);
            }
            at = stop;
        }
    }

    /// A new node, or a chain of them, for a prefix under which nothing is yet; the node's byte is `index` or later.
    fn sprout(&mut self, index: u8, key: u128, length: u8, leaf: u32, default: u32) -> u32 {
        let last = (length - 1) / 8;
        let count = (last - index).min(self.skippable);
        let skip = Skip {
            count,
            bytes: bytes(key, index, count),
        };
        let mut node = Node::new(default, skip);
        let at = index + count;
        if at == last {
            add(&mut node, key, length, leaf);
        } else {
            let below = self.sprout(at + 1, key, length, leaf, NOTHING);
            node.slots[usize::from(byte(key, at))] = node::to_child(below);
        }
        node.write(&mut self.blocks, None)
    }

    /// Inserts a prefix of more than `index` bytes under a node; the node that takes its place, and the prefix's leaf before.
    fn insert_below(
        &mut self,
        block: u32,
        index: u8,
        key: u128,
        length: u8,
        leaf: u32,
    ) -> (u32, Option<u32>) {
        let last = (length - 1) / 8;
        let skip = node::skip(&self.blocks, block);
        let wanted = bytes(key, index, skip.count);
        // Bytes that node and prefix have in common, as far as the prefix goes before its last byte.
        let differ = (wanted ^ skip.bytes) << (64 - 8 * u32::from(skip.count)).min(63);
        let same = if wanted == skip.bytes {
            skip.count
        } else {
            (differ.leading_zeros() / 8) as u8
        };
        let common = same.min(last - index);
        if common < skip.count {
            return (self.split(block, index, common, (key, length, leaf)), None);
        }
        let index = index + skip.count;
        if index == last {
            let mut node = Node::read(&self.blocks, block);
            let before = add(&mut node, key, length, leaf);
            self.push_defaults(&mut node, key, length, |old, bound| {
                if old <= bound { leaf } else { old }
            });
            return (node.write(&mut self.blocks, Some(block)), before);
        }
        let slot = byte(key, index);
        let entry = node::entry(&self.blocks, block, slot);
        if let Some(below) = node::child(entry) {
            let (renewed, before) = self.insert_below(below, index + 1, key, length, leaf);
            if renewed != below {
                let entry = node::to_child(renewed);
                node::set_entry(&mut self.blocks, block, slot, entry);
            }
            return (block, before);
        }
        let below = self.sprout(index + 1, key, length, leaf, entry);
        let mut node = Node::read(&self.blocks, block);
        node.slots[usize::from(slot)] = node::to_child(below);
        (node.write(&mut self.blocks, Some(block)), None)
    }

    /// Puts a node above one that skips bytes in which a new prefix differs or ends.
    fn split(&mut self, block: u32, index: u8, common: u8, new: (u128, u8, u32)) -> u32 {
        let (key, length, leaf) = new;
        let skip = node::skip(&self.blocks, block);
        let rest = skip.count - common - 1;
        let slot = byte(u128::from(skip.bytes), 16 - skip.count + common);
        let mut above = Node::new(
            node::default(&self.blocks, block),
            Skip {
                count: common,
                bytes: bytes(key, index, common),
            },
        );
        node::set_skip(&mut self.blocks, block, tail(skip, rest));
        above.slots[usize::from(slot)] = node::to_child(block);
        let at = index + common;
        let mut default = NOTHING;
        if (length - 1) / 8 == at {
            let rule = rule(key, length, leaf);
            add(&mut above, key, length, leaf);
            if covers(rule, slot) {
                default = leaf;
            }
        } else {
            let below = self.sprout(at + 1, key, length, leaf, NOTHING);
            above.slots[usize::from(byte(key, at))] = node::to_child(below);
        }
        node::set_default(&mut self.blocks, block, default);
        above.write(&mut self.blocks, None)
    }

    /// Renews the defaults of the children under a prefix that ends in the node.
    fn push_defaults(
        &mut self,
        node: &mut Node,
        key: u128,
        length: u8,
        renewed: impl Fn(u32, u32) -> u32,
    ) {
        let bound = node::leaf(length, node::VALUES - 1);
        for slot in slots(rule(key, length, NOTHING)) {
            if let Some(below) = node::child(node.slots[slot]) {
                let old = node::default(&self.blocks, below);
                let new = renewed(old, bound);
                if new != old {
                    node::set_default(&mut self.blocks, below, new);
                }
            }
        }
    }

    /// Takes out a prefix; its leaf, if it was there.
    pub(super) fn remove(&mut self, key: u128, length: u8) -> Option<u32> {
        let top = (key >> 112) as u16;
        let before = if length <= TOP {
            self.remove_short(top, length)
        } else {
            let slot = self.slot(top);
            if slot.node == 0 {
                return None;
            }
            let (left, before) = self.remove_below(slot.node, 2, key, length)?;
            let node = left.unwrap_or(0);
            if node != slot.node {
                self.slot_mut(top).node = node;
            }
            Some(before)
        }?;
        self.count -= 1;
        Some(before)
    }

    fn remove_short(&mut self, bits: u16, length: u8) -> Option<u32> {
        let find = |bits: u16, length: u8| {
            self.short
                .binary_search_by_key(&(bits, length), |s| (s.bits, s.length))
                .ok()
        };
        let place = find(bits, length)?;
        let leaf = (0..length)
            .rev()
            .find_map(|shorter| {
                let mask = (0xffff_0000u32 >> shorter) as u16;
                find(bits & mask, shorter)
            })
            .map_or(NOTHING, |i| self.short[i].leaf);
        let before = Arc::make_mut(&mut self.short).remove(place).leaf;
        self.paint(bits, length, |old| if old == before { leaf } else { old });
        Some(before)
    }

    /// Takes a prefix out from under a node: what is left of the node, and the prefix's leaf.
    fn remove_below(
        &mut self,
        block: u32,
        index: u8,
        key: u128,
        length: u8,
    ) -> Option<(Option<u32>, u32)> {
        let last = (length - 1) / 8;
        let skip = node::skip(&self.blocks, block);
        let index = index + skip.count;
        if index > last || bytes(key, index - skip.count, skip.count) != skip.bytes {
            return None;
        }
        if index < last {
            let slot = byte(key, index);
            let below = node::child(node::entry(&self.blocks, block, slot))?;
            let default = node::default(&self.blocks, below);
            let (left, before) = self.remove_below(below, index + 1, key, length)?;
            if let Some(left) = left {
                if left != below {
                    let entry = node::to_child(left);
                    node::set_entry(&mut self.blocks, block, slot, entry);
                }
                return Some((Some(block), before));
            }
            let mut node = Node::read(&self.blocks, block);
            node.slots[usize::from(slot)] = default;
            return Some((self.settle(block, &node, index), before));
        }
        let mut node = Node::read(&self.blocks, block);
        let gone = rule(key, length, NOTHING);
        let same = |r: &Rule| r.slot == gone.slot && r.width == gone.width;
        let place = node.rules.iter().position(same)?;
        let before = node.rules.swap_remove(place).leaf;
        let cover = node.rules.iter().filter(|r| r.width > gone.width);
        let leaf = cover
            .filter(|r| covers(**r, gone.slot))
            .map(|r| r.leaf)
            .max()
            .unwrap_or(NOTHING);
        for slot in slots(gone) {
            if node.slots[slot] == before {
                node.slots[slot] = leaf;
            }
        }
        self.push_defaults(&mut node, key, length, |old, _| {
            if old == before { leaf } else { old }
        });
        Some((self.settle(block, &node, index), before))
    }

    /// Stores what is left of a node whose byte is `index`: nothing, its only child with more to skip, or itself.
    fn settle(&mut self, block: u32, node: &Node, index: u8) -> Option<u32> {
        if node.is_empty() {
            node::release(&mut self.blocks, block);
            return None;
        }
        if let Some((slot, below)) = node.only_child() {
            let more = node::skip(&self.blocks, below);
            let count = node.skip.count + 1 + more.count;
            if count <= self.skippable {
                let shift = |bytes: u64, by: u8| bytes.checked_shl(8 * u32::from(by)).unwrap_or(0);
                let bytes = shift(node.skip.bytes, more.count + 1)
                    | shift(slot.into(), more.count)
                    | more.bytes;
                debug_assert!(index >= node.skip.count);
                node::set_skip(&mut self.blocks, below, Skip { count, bytes });
                node::set_default(&mut self.blocks, below, node.default);
                node::release(&mut self.blocks, block);
                return Some(below);
            }
        }
        Some(node.write(&mut self.blocks, Some(block)))
    }

    /// The leaf of the longest prefix that holds the key.
    pub(super) fn lookup(&self, key: u128) -> u32 {
        let slot = self.slot((key >> 112) as u16);
        let mut best = slot.leaf;
        let (mut node, mut index) = (slot.node, 2);
        while let Some((below, at)) = self.step(node, index, key, &mut best) {
            (node, index) = (below, at);
        }
        best
    }

    /// Passes one node: the next one and its first byte, if it goes on.
    #[inline(always)]
    fn step(&self, node: u32, index: u8, key: u128, best: &mut u32) -> Option<(u32, u8)> {
        let (place, index) = self.enter(node, index, key, best)?;
        let below = leave(self.blocks.word(node, place), best)?;
        Some((below, index))
    }

    /// Where a node's entry for the key is, and the byte after the node's; none when the key differs in what the node skips.
    #[inline(always)]
    fn enter(&self, node: u32, index: u8, key: u128, best: &mut u32) -> Option<(usize, u8)> {
        let skip = node::skip(&self.blocks, node);
        let default = node::default(&self.blocks, node);
        if default != NOTHING {
            *best = default;
        }
        if skip.count != 0 && bytes(key, index, skip.count) != skip.bytes {
            return None;
        }
        let index = index + skip.count;
        let place = node::entry_place(&self.blocks, node, byte(key, index));
        Some((place, index + 1))
    }

    /// Looks up addresses, at most [`BATCH`] of them, after a shift that makes them keys: one node of each, then the next of each that goes on. Of each
    /// level everything is read before anything is decided by it, so that no mispredicted branch waits for memory.
    pub(super) fn lookup_batch(&self, addresses: &[u128], shift: u32, results: &mut [u32; BATCH]) {
        let mut ways = [Way::default(); BATCH];
        let mut read = [0u32; BATCH];
        let addresses = &addresses[..addresses.len().min(BATCH)];
        let each = (0..).zip(addresses).zip(results.iter_mut());
        for (((key, address), leaf), way) in each.zip(&mut ways) {
            let slot = self.slot((address << shift >> 112) as u16);
            *leaf = slot.leaf;
            (way.key, way.index, way.node) = (key, 2, slot.node);
        }
        let mut count = addresses.len();
        while count > 0 {
            for (way, read) in ways[..count].iter().zip(&mut read) {
                *read = node::default(&self.blocks, way.node);
            }
            std::hint::black_box(&read);
            let mut left = 0;
            for at in 0..count {
                let way = ways[at];
                let i = usize::from(way.key);
                let (key, leaf) = (addresses[i] << shift, &mut results[i]);
                if let Some((place, index)) = self.enter(way.node, way.index, key, leaf) {
                    ways[left] = Way {
                        place: place as u16,
                        index,
                        ..way
                    };
                    left += 1;
                }
            }
            for (way, read) in ways[..left].iter().zip(&mut read) {
                *read = self.blocks.word(way.node, way.place.into());
            }
            std::hint::black_box(&read);
            count = 0;
            for at in 0..left {
                let way = ways[at];
                if let Some(node) = leave(read[at], &mut results[usize::from(way.key)]) {
                    ways[count] = Way { node, ..way };
                    count += 1;
                }
            }
        }
        for result in results {
            *result = node::told(*result);
        }
    }

    /// Whether any prefix covers or lies in one of 16 bits.
    pub(super) fn has(&self, top: u16) -> bool {
        self.slot(top) != Slot::default()
    }

    /// The leaf of the longest prefix of at most 16 bits that covers one of 16 bits.
    pub(super) fn short_leaf(&self, top: u16) -> u32 {
        self.slot(top).leaf
    }

    /// What each value of the third byte leads to, in a table whose nodes don't skip.
    pub(super) fn slots(&self, top: u16) -> [u32; node::SLOTS] {
        Node::read(&self.blocks, self.slot(top).node).slots
    }

    /// Every prefix with its leaf: the short ones, then the others from left to right.
    pub(super) fn for_each(&self, visit: &mut impl FnMut(u128, u32)) {
        for short in self.short.iter() {
            visit(u128::from(short.bits) << 112, short.leaf);
        }
        for top in 0..=u16::MAX {
            let node = self.slot(top).node;
            if node != 0 {
                self.visit(node, u128::from(top) << 112, 2, visit);
            }
        }
    }

    fn visit(&self, block: u32, key: u128, index: u8, visit: &mut impl FnMut(u128, u32)) {
        let skip = node::skip(&self.blocks, block);
        let put = |key: u128, value: u64, index: u8, count: u8| {
            if count == 0 {
                key
            } else {
                key | u128::from(value) << (128 - 8 * u32::from(index + count))
            }
        };
        let key = put(key, skip.bytes, index, skip.count);
        let index = index + skip.count;
        for rule in node::rules(&self.blocks, block) {
            visit(put(key, rule.slot.into(), index, 1), rule.leaf);
        }
        for (slot, below) in node::children(&self.blocks, block) {
            self.visit(below, put(key, slot.into(), index, 1), index + 1, visit);
        }
    }

    /// Lays all nodes out afresh, side by side from left to right.
    pub(super) fn compact(&mut self) {
        let mut blocks = Blocks::new(&node::nowhere());
        for fan in &mut self.fans {
            if fan.iter().any(|slot| slot.node != 0) {
                for slot in Arc::make_mut(fan).iter_mut().filter(|slot| slot.node != 0) {
                    slot.node = node::transfer(&self.blocks, slot.node, &mut blocks);
                }
            }
        }
        self.blocks = blocks;
    }

    /// Bytes of memory, if nothing is shared.
    pub(super) fn bytes(&self) -> usize {
        let mut fans: Vec<_> = self.fans.iter().map(Arc::as_ptr).collect();
        fans.sort_unstable();
        fans.dedup();
        fans.len() * size_of::<Fan>()
            + self.fans.len() * size_of::<Arc<Fan>>()
            + self.blocks.bytes()
            + self.short.capacity() * size_of::<Short>()
    }
}

/// A look-up that is under way.
#[derive(Debug, Clone, Copy, Default)]
struct Way {
    node: u32,
    place: u16,
    /// Of the key, among those looked up together.
    key: u8,
    /// The first byte that the node may look at.
    index: u8,
}

/// The child that an entry leads to; if it is a leaf, that is the best so far.
#[inline(always)]
fn leave(entry: u32, best: &mut u32) -> Option<u32> {
    let below = node::child(entry);
    if below.is_none() && entry != NOTHING {
        *best = entry;
    }
    below
}

/// The slots of the byte in which a prefix ends that it covers.
fn rule(key: u128, length: u8, leaf: u32) -> Rule {
    let last = (length - 1) / 8;
    Rule {
        leaf,
        slot: byte(key, last),
        width: 1 << (8 * u16::from(last + 1) - u16::from(length)),
    }
}

fn slots(rule: Rule) -> std::ops::Range<usize> {
    let first = usize::from(rule.slot);
    first..(first + usize::from(rule.width)).min(node::SLOTS)
}

fn covers(rule: Rule, slot: u8) -> bool {
    slots(rule).contains(&usize::from(slot))
}

/// Puts a rule and its leaf into a node, but not into its children's defaults; the leaf that the same prefix had.
fn add(node: &mut Node, key: u128, length: u8, leaf: u32) -> Option<u32> {
    let rule = rule(key, length, leaf);
    let bound = node::leaf(length, node::VALUES - 1);
    for slot in slots(rule) {
        let entry = &mut node.slots[slot];
        if node::child(*entry).is_none() && *entry <= bound {
            *entry = leaf;
        }
    }
    let same = |r: &&mut Rule| r.slot == rule.slot && r.width == rule.width;
    match node.rules.iter_mut().find(same) {
        Some(old) => Some(std::mem::replace(old, rule).leaf),
        None => {
            node.rules.push(rule);
            None
        }
    }
}
