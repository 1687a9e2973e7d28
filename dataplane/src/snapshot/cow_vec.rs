//! A list whose copies share what they do not change: what a snapshot's tables lie in.
//!
//! Items lie in chunks behind shared pointers: reading one costs one pointer more than in a plain list, copying the list a pointer for each chunk, and
//! changing an item a copy of its chunk.

use std::ops::Index;
use std::sync::Arc;

/// Items of a chunk.
const CHUNK: usize = 64;

/// Items by place.
#[derive(Debug)]
pub struct CowVec<T> {
    chunks: Vec<Arc<[T]>>,
    len: usize,
}

impl<T> Clone for CowVec<T> {
    fn clone(&self) -> Self {
        Self {
            chunks: self.chunks.clone(),
            len: self.len,
        }
    }
}

impl<T> Default for CowVec<T> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            len: 0,
        }
    }
}

impl<T> CowVec<T> {
    /// How many items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The item of a place.
    #[inline]
    pub fn get(&self, place: usize) -> Option<&T> {
        self.chunks.get(place / CHUNK)?.get(place % CHUNK)
    }

    /// Whether nothing has changed between the two, one of which was made from the other.
    pub fn is_shared_with(&self, other: &Self) -> bool {
        let chunks = self.chunks.iter().zip(&other.chunks);
        self.len == other.len && chunks.into_iter().all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// The items of two lists by place, but for chunks that both have, in which nothing differs; as far as both are long.
    pub fn pairs_not_shared<'v>(&'v self, other: &'v Self) -> impl Iterator<Item = (&'v T, &'v T)> {
        let chunks = self.chunks.iter().zip(&other.chunks);
        let apart = chunks.filter(|(a, b)| !Arc::ptr_eq(a, b));
        apart.flat_map(|(a, b)| a.iter().zip(b.iter()))
    }

    /// Every item, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }
}

impl<T: Clone> CowVec<T> {
    /// The item of a place, for changes that copies of the list do not see.
    pub fn get_mut(&mut self, place: usize) -> Option<&mut T> {
        Arc::make_mut(self.chunks.get_mut(place / CHUNK)?).get_mut(place % CHUNK)
    }

    /// Adds an item at the end.
    pub fn push(&mut self, item: T) {
        let last = if self.len.is_multiple_of(CHUNK) {
            None
        } else {
            self.chunks.pop()
        };
        let items = last.iter().flat_map(|last| last.iter().cloned());
        self.chunks.push(items.chain([item]).collect());
        self.len += 1;
    }
}

impl<T> Index<usize> for CowVec<T> {
    type Output = T;

    #[inline]
    fn index(&self, place: usize) -> &T {
        &self.chunks[place / CHUNK][place % CHUNK]
    }
}

impl<T> FromIterator<T> for CowVec<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut items = items.into_iter();
        let mut list = Self::default();
        loop {
            let chunk: Arc<[T]> = items.by_ref().take(CHUNK).collect();
            list.len += chunk.len();
            let last = chunk.len() < CHUNK;
            if !chunk.is_empty() {
                list.chunks.push(chunk);
            }
            if last {
                return list;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_copy_leaves_the_list_as_it_was() {
        let list: CowVec<usize> = (0..1000).collect();
        let mut copy = list.clone();
        *copy.get_mut(777).unwrap() = 0;
        assert!(copy.get_mut(1000).is_none() && copy.get(1000).is_none());
        assert!(list.is_shared_with(&list.clone()) && !list.is_shared_with(&copy));
        assert_eq!(
            (list.len(), list[777], copy[777], copy[776]),
            (1000, 777, 0, 776)
        );
        assert!(list.iter().copied().eq(0..1000));
        assert!(CowVec::<u8>::from_iter([]).is_empty());
        assert_eq!(CowVec::from_iter(0..CHUNK).len(), CHUNK);
        let mut longer = list.clone();
        (1000..1100).for_each(|n| longer.push(n));
        assert!(longer.iter().copied().eq(0..1100) && list.len() == 1000);
        let pairs: Vec<_> = list.pairs_not_shared(&copy).collect();
        // The chunk of what was changed, and the last one, of which an item was asked for.
        assert_eq!(pairs.len(), CHUNK + 1000 % CHUNK);
        assert!(pairs.contains(&(&777, &0)));
    }
}
