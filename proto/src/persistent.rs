//! An ordered set whose copies share what they do not change: the memory of [`State`](crate::state::State).
//!
//! Items lie in chunks, chunks in runs, each behind shared pointers. A copy copies a pointer for each run; a change copies the run and the chunk
//! that it touches, some hundred words, whatever the number of items.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::Arc;

/// A chunk with more items, or a run with more chunks, is cut in two.
const MOST: usize = 128;

type Chunk<T> = Vec<T>;
type Run<T> = Vec<Arc<Chunk<T>>>;

/// Items in ascending order of what is asked for.
#[derive(Debug, Clone)]
pub struct PersistentSet<T> {
    /// No run and no chunk is empty.
    runs: Vec<Arc<Run<T>>>,
    len: usize,
}

impl<T> Default for PersistentSet<T> {
    fn default() -> Self {
        Self {
            runs: Vec::new(),
            len: 0,
        }
    }
}

/// Where an item is, or where it belongs: in which run, in which of its chunks, and where in that.
type Place = Result<[usize; 3], [usize; 3]>;

/// Puts an item into a list, and cuts off the list's rest when it is too long. What is added in order fills its lists.
fn put<T>(list: &mut Vec<T>, at: usize, item: T) -> Option<Vec<T>> {
    list.insert(at, item);
    (list.len() > MOST).then(|| {
        let cut = if at + 1 == list.len() { at } else { MOST / 2 };
        list.split_off(cut)
    })
}

/// A list cut into lists of so many, each behind a shared pointer.
fn cut<T>(mut list: Vec<T>, length: usize) -> Vec<Arc<Vec<T>>> {
    let mut lists = Vec::with_capacity(list.len().div_ceil(length));
    // From the end, so that nothing moves twice.
    while !list.is_empty() {
        let at = (list.len() - 1) / length * length;
        lists.push(Arc::new(list.split_off(at)));
    }
    lists.reverse();
    lists
}

impl<T: Clone> PersistentSet<T> {
    /// The set of items that are in order already, each once. Quicker than to put them in one by one.
    pub fn from_sorted(items: Vec<T>) -> Self {
        // Room for a quarter more before lists are cut.
        let most = MOST / 5 * 4;
        let len = items.len();
        let runs = cut(cut(items, most), most);
        Self { runs, len }
    }

    /// How many items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first item that is not less than what is looked for. `order` says how an item compares to that.
    fn place(&self, order: &impl Fn(&T) -> Ordering) -> Place {
        let below = |chunk: &Chunk<T>| {
            chunk
                .last()
                .is_some_and(|last| order(last) == Ordering::Less)
        };
        let run_below = |run: &Arc<Run<T>>| run.last().is_some_and(|chunk| below(chunk));
        let at = self.runs.partition_point(run_below);
        let Some(run) = self.runs.get(at) else {
            return Err([at, 0, 0]);
        };
        let in_run = run.partition_point(|chunk| below(chunk));
        let Some(chunk) = run.get(in_run) else {
            return Err([at, in_run, 0]);
        };
        chunk
            .binary_search_by(order)
            .map(|item| [at, in_run, item])
            .map_err(|item| [at, in_run, item])
    }

    /// The item that is equal to what is looked for.
    pub fn get(&self, order: impl Fn(&T) -> Ordering) -> Option<&T> {
        let [run, chunk, item] = self.place(&order).ok()?;
        self.runs.get(run)?.get(chunk)?.get(item)
    }

    /// Puts an item in its place; what was there.
    pub fn insert(&mut self, item: T, order: impl Fn(&T) -> Ordering) -> Option<T> {
        let place = match self.place(&order) {
            Ok([run, chunk, place]) => {
                let run = Arc::make_mut(&mut self.runs[run]);
                let chunk = Arc::make_mut(&mut run[chunk]);
                return Some(std::mem::replace(&mut chunk[place], item));
            }
            Err(place) => place,
        };
        self.len += 1;
        let [at, in_run, place] = match (self.runs.get(place[0]), self.runs.last()) {
            (Some(_), _) => place,
            // Past the end: the last chunk takes it.
            (None, Some(run)) => {
                let in_run = run.len() - 1;
                [self.runs.len() - 1, in_run, run[in_run].len()]
            }
            (None, None) => {
                self.runs.push(Arc::new(vec![Arc::new(vec![item])]));
                return None;
            }
        };
        let run = Arc::make_mut(&mut self.runs[at]);
        if let Some(rest) = put(Arc::make_mut(&mut run[in_run]), place, item)
            && let Some(rest) = put(run, in_run + 1, Arc::new(rest))
        {
            self.runs.insert(at + 1, Arc::new(rest));
        }
        None
    }

    /// Takes out the item that is equal to what is looked for.
    pub fn remove(&mut self, order: impl Fn(&T) -> Ordering) -> Option<T> {
        let [at, in_run, place] = self.place(&order).ok()?;
        let run = Arc::make_mut(&mut self.runs[at]);
        let chunk = Arc::make_mut(&mut run[in_run]);
        let item = chunk.remove(place);
        if chunk.is_empty() {
            run.remove(in_run);
            if run.is_empty() {
                self.runs.remove(at);
            }
        }
        self.len -= 1;
        Some(item)
    }

    /// Every item, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let chunks = self.runs.iter().flat_map(|run| run.iter());
        chunks.flat_map(|chunk| chunk.iter())
    }

    /// Every item from the first on that is not less than what is looked for, in order.
    pub fn iter_from(&self, order: impl Fn(&T) -> Ordering) -> impl Iterator<Item = &T> {
        let [at, in_run, place] = self.place(&order).unwrap_or_else(|place| place);
        let first = self.runs.get(at).map_or(&[][..], |run| &run[in_run..]);
        let rest = self.runs.get(at + 1..).unwrap_or(&[]);
        let chunks = first.iter().chain(rest.iter().flat_map(|run| run.iter()));
        chunks.flat_map(|chunk| chunk.iter()).skip(place)
    }
}

/// Those of two lists of pointers that the other has not, but for what both begin and end with.
fn different<'a, T>(old: &'a [Arc<T>], new: &'a [Arc<T>]) -> [Vec<&'a Arc<T>>; 2] {
    let same = |(a, b): &(&Arc<T>, &Arc<T>)| Arc::ptr_eq(a, b);
    let first = old.iter().zip(new).take_while(same).count();
    let (old, new) = (&old[first..], &new[first..]);
    let last = old.iter().rev().zip(new.iter().rev());
    let last = last.take_while(same).count();
    let (old, new) = (&old[..old.len() - last], &new[..new.len() - last]);
    own([old.iter().collect(), new.iter().collect()])
}

/// Those of each of two lists that the other has not.
fn own<T>([old, new]: [Vec<&Arc<T>>; 2]) -> [Vec<&Arc<T>>; 2] {
    let pointers = |list: &[&Arc<T>]| {
        let all = list.iter().map(|item| Arc::as_ptr(item));
        all.collect::<HashSet<_>>()
    };
    let (in_old, in_new) = (pointers(&old), pointers(&new));
    let without = |mut list: Vec<_>, other: &HashSet<*const T>| {
        list.retain(|item: &&Arc<T>| !other.contains(&Arc::as_ptr(item)));
        list
    };
    [without(old, &in_new), without(new, &in_old)]
}

impl<T> PersistentSet<Arc<T>> {
    /// What differs between two sets: items of `self` that are not in `next` as they are, and the other way round. What both share is
    /// passed over, so that this takes as long as the difference is large, when one was made from the other. Items are told apart by
    /// their memory.
    pub fn difference<'a>(&'a self, next: &'a Self) -> [Vec<&'a Arc<T>>; 2] {
        let runs = different(&self.runs, &next.runs);
        let chunks = own(runs.map(|runs| runs.into_iter().flat_map(|run| run.iter()).collect()));
        own(chunks.map(|chunks| chunks.into_iter().flat_map(|chunk| chunk.iter()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_set_does_what_a_map_does_and_copies_stay() {
        let mut set: PersistentSet<(u32, u32)> = PersistentSet::default();
        let mut twin = BTreeMap::new();
        let mut copies = Vec::new();
        let mut random = 1u32;
        for step in 0..80_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let key = (random >> 16) % 20_000;
            if random >> 8 & 3 == 0 {
                let before = set.remove(|item| item.0.cmp(&key));
                assert_eq!(before.map(|item| item.1), twin.remove(&key));
            } else {
                let before = set.insert((key, step), |item| item.0.cmp(&key));
                assert_eq!(before.map(|item| item.1), twin.insert(key, step));
            }
            assert_eq!(set.len(), twin.len());
            if step % 20_000 == 0 {
                copies.push((set.clone(), twin.clone()));
            }
        }
        for (set, twin) in copies.iter().chain([&(set.clone(), twin.clone())]) {
            assert!(set.iter().copied().eq(twin.clone()));
            for key in 0..20_000 {
                let found = set.get(|item| item.0.cmp(&key)).map(|item| item.1);
                assert_eq!(found, twin.get(&key).copied());
            }
            let from = set.iter_from(|item| item.0.cmp(&700)).copied();
            assert!(from.eq(twin.range(700..).map(|(k, v)| (*k, *v))));
        }
    }

    #[test]
    fn made_of_a_sorted_list_it_is_as_if_filled_one_by_one() {
        for count in [0, 1, 101, 102, 103, 10_404, 10_405, 50_000] {
            let mut set = PersistentSet::from_sorted((0..count).map(|n| 2 * n).collect());
            assert_eq!(set.len(), count as usize);
            assert!(set.iter().copied().eq((0..count).map(|n| 2 * n)));
            for n in 0..count.min(500) {
                assert_eq!(set.get(|item| item.cmp(&(2 * n))), Some(&(2 * n)));
                assert_eq!(set.insert(2 * n + 1, |item| item.cmp(&(2 * n + 1))), None);
            }
            let wanted = (0..2 * count).filter(|n| n % 2 == 0 || *n < 1000);
            assert!(set.iter().copied().eq(wanted));
        }
    }

    #[test]
    fn the_difference_is_what_was_put_in_and_taken_out() {
        let order = |key: u32| move |item: &Arc<u32>| (**item).cmp(&key);
        let mut one = PersistentSet::default();
        for key in 0..50_000 {
            one.insert(Arc::new(key), order(key));
        }
        let mut two = one.clone();
        two.remove(order(77));
        two.insert(Arc::new(60_000), order(60_000));
        two.insert(Arc::new(2500), order(2500));
        let [gone, come] = one.difference(&two);
        assert!(gone.iter().map(|item| ***item).eq([77, 2500]));
        assert!(come.iter().map(|item| ***item).eq([2500, 60_000]));
        assert!(one.difference(&one.clone())[0].is_empty());
    }
}
