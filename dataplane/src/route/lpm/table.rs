//! The prefixes of one family: an array while they are few, a trie when they are many, and a short way through it for very many of IPv4.

use super::dir16::Dir16;
use super::node;
use super::small::{Key, Small};
use super::trie::{BATCH, Trie};

/// More prefixes than this become a trie, half of it an array again.
const MANY: usize = 24;
/// More prefixes than this, of IPv4, get a short way; with half of it they lose it again. It takes 3 MiB at most besides what grows with
/// them. (Less in tests, so that they get there.)
const VERY_MANY: usize = if cfg!(test) { 60 } else { 32_768 };

/// A key that can be put on the left of 128 bits.
pub(super) trait Wide: Key {
    /// Whether prefixes agree in long stretches, so that nodes had better skip.
    const SPARSE: bool;
    /// Whether there is a short way.
    const EXPRESS: bool;
    fn wide(self) -> u128;
    fn narrow(wide: u128) -> Self;
}

impl Wide for u32 {
    const SPARSE: bool = false;
    const EXPRESS: bool = true;

    fn wide(self) -> u128 {
        u128::from(self) << 96
    }

    fn narrow(wide: u128) -> Self {
        (wide >> 96) as u32
    }
}

impl Wide for u128 {
    const SPARSE: bool = true;
    const EXPRESS: bool = false;

    fn wide(self) -> u128 {
        self
    }

    fn narrow(wide: u128) -> Self {
        wide
    }
}

/// Prefixes with their leaves.
#[derive(Debug, Clone)]
pub(super) enum Table<K> {
    Small(Small<K>),
    Many(Box<Many>),
}

#[derive(Debug, Clone)]
pub(super) struct Many {
    trie: Trie,
    express: Option<Dir16>,
}

impl Many {
    /// Brings the short way up to date after a change of a prefix.
    fn follow<K: Wide>(&mut self, key: K, length: u8) {
        let count = self.trie.len();
        match &mut self.express {
            Some(_) if count <= VERY_MANY / 2 => self.express = None,
            Some(express) => express.follow(&self.trie, key.wide(), length),
            None if K::EXPRESS && count > VERY_MANY => {
                self.express = Some(Dir16::new(&self.trie));
            }
            None => {}
        }
    }
}

impl<K: Wide> Table<K> {
    pub(super) fn new() -> Self {
        Self::Small(Small::new())
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Small(few) => few.len(),
            Self::Many(many) => many.trie.len(),
        }
    }

    pub(super) fn insert(&mut self, key: K, length: u8, value: u32) -> Option<u32> {
        let few = match self {
            Self::Many(many) => {
                let before = many.trie.insert(key.wide(), length, value);
                many.follow(key, length);
                return before;
            }
            Self::Small(few) if few.len() < MANY => return few.insert(key, length, value),
            Self::Small(few) => few,
        };
        let mut trie = Trie::new(K::SPARSE);
        for (key, leaf) in few.iter() {
            if let Some((length, value)) = node::parts(leaf) {
                trie.insert(key.wide(), length, value);
            }
        }
        let before = trie.insert(key.wide(), length, value);
        *self = Self::Many(Box::new(Many {
            trie,
            express: None,
        }));
        before
    }

    pub(super) fn remove(&mut self, key: K, length: u8) -> Option<u32> {
        let many = match self {
            Self::Small(few) => return few.remove(key, length),
            Self::Many(many) => many,
        };
        let before = many.trie.remove(key.wide(), length)?;
        many.follow(key, length);
        if many.trie.len() <= MANY / 2 {
            let mut few = Small::new();
            many.trie.for_each(&mut |key, leaf| {
                if let Some((length, value)) = node::parts(leaf) {
                    few.insert(K::narrow(key), length, value);
                }
            });
            *self = Self::Small(few);
        }
        Some(before)
    }

    #[inline]
    pub(super) fn lookup(&self, key: K) -> u32 {
        match self {
            Self::Small(few) => few.lookup(key),
            Self::Many(many) => many.trie.lookup(key.wide()),
        }
    }

    pub(super) fn for_each(&self, visit: &mut impl FnMut(u128, u32)) {
        match self {
            Self::Small(few) => few.iter().for_each(|(key, leaf)| visit(key.wide(), leaf)),
            Self::Many(many) => many.trie.for_each(visit),
        }
    }

    pub(super) fn compact(&mut self) {
        if let Self::Many(many) = self {
            many.trie.compact();
            if many.express.is_some() {
                many.express = Some(Dir16::new(&many.trie));
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Small(few) => few.bytes(),
            Self::Many(many) => {
                let express = many.express.as_ref().map_or(0, Dir16::bytes);
                size_of::<Many>() + many.trie.bytes() + express
            }
        }
    }
}

impl Table<u32> {
    /// Looks up the last 32 bits of addresses, at most [`BATCH`] of them.
    #[inline]
    pub(super) fn lookup_batch(&self, addresses: &[u128], results: &mut [u32; BATCH]) {
        match self {
            Self::Many(many) => match &many.express {
                Some(express) => express.lookup(&many.trie, addresses, results),
                None => many.trie.lookup_batch(addresses, 96, results),
            },
            Self::Small(few) => {
                for (address, result) in addresses.iter().zip(results) {
                    *result = node::told(few.lookup(*address as u32));
                }
            }
        }
    }
}

impl Table<u128> {
    /// Looks up addresses, at most [`BATCH`] of them.
    #[inline]
    pub(super) fn lookup_batch(&self, addresses: &[u128], results: &mut [u32; BATCH]) {
        match self {
            Self::Many(many) => many.trie.lookup_batch(addresses, 0, results),
            Self::Small(few) => {
                for (address, result) in addresses.iter().zip(results) {
                    *result = node::told(few.lookup(*address));
                }
            }
        }
    }
}
