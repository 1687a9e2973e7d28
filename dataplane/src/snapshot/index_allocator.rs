//! Indexes that stay: a name keeps its number from one snapshot to the next while it is in use, and a number is not given out again
//! before every other free one.

use std::collections::{HashMap, VecDeque};

/// Numbers for names.
#[derive(Debug, Clone)]
pub struct IndexAllocator {
    numbers: HashMap<String, u32>,
    free: VecDeque<u32>,
    next: u32,
    cap: u32,
    reused: u64,
}

impl IndexAllocator {
    /// At most `cap` names at a time.
    pub fn new(cap: u32) -> Self {
        Self {
            numbers: HashMap::new(),
            free: VecDeque::new(),
            next: 0,
            cap,
            reused: 0,
        }
    }

    /// How often a number was given out that another name had before.
    pub fn reused(&self) -> u64 {
        self.reused
    }

    /// How many names at a time.
    pub fn cap(&self) -> u32 {
        self.cap
    }

    /// The number that a name has.
    pub fn find(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// How many names more may have a number.
    pub fn room(&self) -> usize {
        (self.cap - self.next) as usize + self.free.len()
    }

    /// The number of a name, a new one if it has none; none when the cap is reached.
    pub fn number(&mut self, name: &str) -> Option<u32> {
        if let Some(number) = self.numbers.get(name) {
            return Some(*number);
        }
        let number = if self.next < self.cap {
            self.next += 1;
            self.next - 1
        } else {
            let number = self.free.pop_front()?;
            self.reused += 1;
            number
        };
        self.numbers.insert(name.to_owned(), number);
        Some(number)
    }

    /// Forgets some names, and gives their numbers back.
    pub fn release<'n>(&mut self, names: impl Iterator<Item = &'n str>) {
        let mut gone: Vec<u32> = names.filter_map(|name| self.numbers.remove(name)).collect();
        gone.sort_unstable();
        self.free.extend(gone);
    }

    /// Forgets every name that is not kept; gives back the numbers that fell free.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) -> Vec<u32> {
        let mut gone: Vec<u32> = self
            .numbers
            .iter()
            .filter(|(name, _)| !keep(name))
            .map(|(_, number)| *number)
            .collect();
        self.numbers.retain(|name, _| keep(name));
        gone.sort_unstable();
        self.free.extend(&gone);
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_and_the_cap_holds() {
        let mut registry = IndexAllocator::new(2);
        let (a, b) = (registry.number("a").unwrap(), registry.number("b").unwrap());
        assert_ne!(a, b);
        assert_eq!(registry.number("a"), Some(a));
        assert_eq!(registry.number("c"), None);
        assert_eq!(registry.retain(|name| name == "b"), vec![a]);
        assert_eq!(registry.reused(), 0);
        assert_eq!(registry.number("c"), Some(a));
        assert_eq!(registry.reused(), 1);
        assert_eq!(registry.number("b"), Some(b));
    }
}
