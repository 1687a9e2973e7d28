//! An ordered list whose copies share what they do not change: the memory of [`State`](crate::state::State).
//!
//! Items lie in chunks behind shared pointers. A copy copies a pointer for each chunk; a change copies the chunk that it touches.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::Arc;

/// A chunk with more items is cut in two.
const CHUNK: usize = 128;

/// Items in ascending order of what is asked for.
#[derive(Debug)]
pub(crate) struct Shelf<T> {
    /// None is empty.
    chunks: Vec<Arc<Vec<Arc<T>>>>,
    len: usize,
}

impl<T> Clone for Shelf<T> {
    fn clone(&self) -> Self {
        Self {
            chunks: self.chunks.clone(),
            len: self.len,
        }
    }
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            len: 0,
        }
    }
}

/// Where an item is, or where it belongs.
type Place = Result<(usize, usize), (usize, usize)>;

impl<T> Shelf<T> {
    /// How many items.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The first item that is not less than what is looked for. `order` says how an item compares to that.
    fn place(&self, order: &impl Fn(&T) -> Ordering) -> Place {
        let below = |chunk: &Arc<Vec<Arc<T>>>| {
            chunk
                .last()
                .is_some_and(|last| order(last) == Ordering::Less)
        };
        let at = self.chunks.partition_point(below);
        let Some(chunk) = self.chunks.get(at) else {
            return Err((at, 0));
        };
        chunk
            .binary_search_by(|item| order(item))
            .map(|item| (at, item))
            .map_err(|item| (at, item))
    }

    /// The item that is equal to what is looked for.
    pub(crate) fn get(&self, order: impl Fn(&T) -> Ordering) -> Option<&Arc<T>> {
        let (chunk, item) = self.place(&order).ok()?;
        self.chunks.get(chunk)?.get(item)
    }

    /// Puts an item in its place; what was there.
    pub(crate) fn insert(
        &mut self,
        item: Arc<T>,
        order: impl Fn(&T) -> Ordering,
    ) -> Option<Arc<T>> {
        match self.place(&order) {
            Ok((chunk, place)) => {
                let chunk = Arc::make_mut(&mut self.chunks[chunk]);
                Some(std::mem::replace(&mut chunk[place], item))
            }
            Err((at, place)) => {
                self.len += 1;
                // Past the end: the last chunk takes it.
                let (at, place) = match self.chunks.get(at) {
                    Some(_) => (at, place),
                    None => match self.chunks.last() {
                        Some(last) => (at - 1, last.len()),
                        None => {
                            self.chunks.push(Arc::new(vec![item]));
                            return None;
                        }
                    },
                };
                let chunk = Arc::make_mut(&mut self.chunks[at]);
                chunk.insert(place, item);
                if chunk.len() > CHUNK {
                    // What is added in order fills its chunks.
                    let cut = if place + 1 == chunk.len() {
                        place
                    } else {
                        CHUNK / 2
                    };
                    let rest = chunk.split_off(cut);
                    self.chunks.insert(at + 1, Arc::new(rest));
                }
                None
            }
        }
    }

    /// Takes out the item that is equal to what is looked for.
    pub(crate) fn remove(&mut self, order: impl Fn(&T) -> Ordering) -> Option<Arc<T>> {
        let (at, place) = self.place(&order).ok()?;
        let chunk = Arc::make_mut(&mut self.chunks[at]);
        let item = chunk.remove(place);
        if chunk.is_empty() {
            self.chunks.remove(at);
        }
        self.len -= 1;
        Some(item)
    }

    /// Every item, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// Every item from the first on that is not less than what is looked for, in order.
    pub(crate) fn iter_from(
        &self,
        order: impl Fn(&T) -> Ordering,
    ) -> impl Iterator<Item = &Arc<T>> {
        let (at, place) = self.place(&order).unwrap_or_else(|place| place);
        let rest = self.chunks.get(at..).unwrap_or(&[]);
        rest.iter().flat_map(|chunk| chunk.iter()).skip(place)
    }

    /// What differs between two lists: items of `self` that are not in `next` as they are, and the other way round. Chunks that both share are
    /// passed over, so that this takes as long as the difference is large, when one was made from the other. Items are told apart by
    /// their memory.
    pub(crate) fn difference<'a>(&'a self, next: &'a Self) -> (Vec<&'a Arc<T>>, Vec<&'a Arc<T>>) {
        // Before and after the first and the last change, both have the same chunks.
        let same = |(a, b): &(&Arc<_>, &Arc<_>)| Arc::ptr_eq(a, b);
        let both = self.chunks.iter().zip(&next.chunks);
        let first = both.take_while(same).count();
        let (old, new) = (&self.chunks[first..], &next.chunks[first..]);
        let both = old.iter().rev().zip(new.iter().rev());
        let last = both.take_while(same).count();
        let (old, new) = (&old[..old.len() - last], &new[..new.len() - last]);
        let chunks = |list: &'a [Arc<_>]| list.iter().map(Arc::as_ptr).collect::<HashSet<_>>();
        let own = |list: &'a [Arc<Vec<Arc<T>>>], other: &HashSet<*const Vec<Arc<T>>>| {
            let own = list
                .iter()
                .filter(|chunk| !other.contains(&Arc::as_ptr(chunk)));
            own.flat_map(|chunk| chunk.iter()).collect::<Vec<_>>()
        };
        let (mut gone, mut come) = (own(old, &chunks(new)), own(new, &chunks(old)));
        let items = |list: &[&'a Arc<T>]| {
            list.iter()
                .map(|item| Arc::as_ptr(item))
                .collect::<HashSet<_>>()
        };
        let (old, new) = (items(&gone), items(&come));
        gone.retain(|item| !new.contains(&Arc::as_ptr(item)));
        come.retain(|item| !old.contains(&Arc::as_ptr(item)));
        (gone, come)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_shelf_does_what_a_map_does_and_copies_stay() {
        let mut shelf: Shelf<(u32, u32)> = Shelf::default();
        let mut twin = BTreeMap::new();
        let mut copies = Vec::new();
        let mut random = 1u32;
        for step in 0..20_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let key = (random >> 16) % 1500;
            if random >> 8 & 3 == 0 {
                let before = shelf.remove(|item| item.0.cmp(&key));
                assert_eq!(before.map(|item| item.1), twin.remove(&key));
            } else {
                let before = shelf.insert(Arc::new((key, step)), |item| item.0.cmp(&key));
                assert_eq!(before.map(|item| item.1), twin.insert(key, step));
            }
            assert_eq!(shelf.len(), twin.len());
            if step % 4000 == 0 {
                copies.push((shelf.clone(), twin.clone()));
            }
        }
        for (shelf, twin) in copies.iter().chain([&(shelf.clone(), twin.clone())]) {
            assert!(shelf.iter().map(|item| **item).eq(twin.clone()));
            for key in 0..1500 {
                let found = shelf.get(|item| item.0.cmp(&key)).map(|item| item.1);
                assert_eq!(found, twin.get(&key).copied());
            }
            let from = shelf.iter_from(|item| item.0.cmp(&700)).map(|item| **item);
            assert!(from.eq(twin.range(700..).map(|(k, v)| (*k, *v))));
        }
    }

    #[test]
    fn the_difference_is_what_was_put_in_and_taken_out() {
        let order = |key: u32| move |item: &u32| item.cmp(&key);
        let mut one = Shelf::default();
        for key in 0..5000 {
            one.insert(Arc::new(key), order(key));
        }
        let mut two = one.clone();
        two.remove(order(77));
        two.insert(Arc::new(6000), order(6000));
        two.insert(Arc::new(2500), order(2500));
        let (gone, come) = one.difference(&two);
        assert!(gone.iter().map(|item| ***item).eq([77, 2500]));
        assert!(come.iter().map(|item| ***item).eq([2500, 6000]));
        assert!(one.difference(&one.clone()).0.is_empty());
    }
}
