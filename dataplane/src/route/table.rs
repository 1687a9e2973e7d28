//! A route table: prefixes, and what they lead to, each target held once however many routes share it.
//!
//! The agent keeps a [`TableBuilder`] and changes it route by route; the [`Table`] that it yields each time shares with the one before what has
//! not changed.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::lpm::{self, Lpm};
use super::prefix::Prefix;

/// Prefixes with what they lead to, as workers see them.
#[derive(Debug, Clone)]
pub struct Table<T> {
    prefixes: Lpm<u32>,
    targets: Arc<Vec<T>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            prefixes: Lpm::default(),
            targets: Arc::default(),
        }
    }
}

impl<T> Table<T> {
    /// What the longest prefix that holds the address leads to, and that prefix's length in the 128-bit form.
    pub fn lookup(&self, address: u128) -> Option<(u8, &T)> {
        let (length, number) = self.prefixes.lookup(address)?;
        Some((length, self.targets.get(number as usize)?))
    }

    /// Every prefix with what it leads to, in no order.
    pub fn for_each(&self, mut visit: impl FnMut(Prefix, &T)) {
        self.prefixes.for_each(|prefix, number| {
            if let Some(target) = self.targets.get(number as usize) {
                visit(prefix, target);
            }
        });
    }

    /// How many prefixes.
    pub fn len(&self) -> usize {
        self.prefixes.len()
    }

    /// Whether there is no prefix.
    pub fn is_empty(&self) -> bool {
        self.prefixes.is_empty()
    }
}

/// There are as many different targets as a table can number ([`lpm::VALUES`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a route table leads to at most {} different targets", lpm::VALUES)]
pub struct TooManyTargets;

/// A route table that can be changed.
#[derive(Debug, Clone)]
pub struct TableBuilder<T> {
    table: Table<T>,
    numbers: HashMap<T, u32, FixedState>,
    /// How many prefixes lead to each target; at 0 the number is free.
    uses: Vec<u32>,
    free: Vec<u32>,
}

impl<T> Default for TableBuilder<T> {
    fn default() -> Self {
        Self {
            table: Table::default(),
            numbers: HashMap::default(),
            uses: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> TableBuilder<T> {
    /// Adds a route or replaces its target.
    ///
    /// # Errors
    /// Nothing is changed, since there is no number for another target.
    pub fn insert(&mut self, prefix: Prefix, target: T) -> Result<(), TooManyTargets> {
        let number = self.number(target)?;
        self.uses[number as usize] += 1;
        if let Some(before) = self.table.prefixes.insert(prefix, number) {
            self.release(before);
        }
        Ok(())
    }

    /// Takes out a route; whether it was there.
    pub fn remove(&mut self, prefix: Prefix) -> bool {
        let before = self.table.prefixes.remove(prefix);
        if let Some(before) = before {
            self.release(before);
        }
        before.is_some()
    }

    /// The table as it is now.
    pub fn table(&self) -> &Table<T> {
        &self.table
    }

    /// Lays the table out afresh; for one that has just been filled.
    pub fn compact(&mut self) {
        self.table.prefixes.compact();
    }

    fn number(&mut self, target: T) -> Result<u32, TooManyTargets> {
        if let Some(number) = self.numbers.get(&target) {
            return Ok(*number);
        }
        let targets = Arc::make_mut(&mut self.table.targets);
        let number = match self.free.pop() {
            Some(number) => {
                targets[number as usize] = target.clone();
                number
            }
            None => {
                let number = u32::try_from(targets.len()).map_err(|_| TooManyTargets)?;
                if number >= lpm::VALUES {
                    return Err(TooManyTargets);
                }
                targets.push(target.clone());
                self.uses.push(0);
                number
            }
        };
        self.numbers.insert(target, number);
        Ok(number)
    }

    fn release(&mut self, number: u32) {
        let uses = &mut self.uses[number as usize];
        *uses -= 1;
        if *uses == 0 {
            self.numbers.remove(&self.table.targets[number as usize]);
            self.free.push(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_share_targets_and_numbers_are_used_again() {
        let mut builder = TableBuilder::default();
        let prefix = |i: u32| Prefix::new(0xffff_0a00_0000 | u128::from(i) << 8, 120);
        for i in 0..100 {
            builder.insert(prefix(i), i % 3).unwrap();
        }
        assert_eq!(builder.table().targets.len(), 3);
        let before = builder.table().clone();
        for i in 0..100 {
            builder.insert(prefix(i), i).unwrap();
        }
        for i in (0..100).step_by(2) {
            assert!(builder.remove(prefix(i)) && !builder.remove(prefix(i)));
        }
        for i in 200..250 {
            builder.insert(prefix(i), i).unwrap();
        }
        assert!(builder.table().targets.len() <= 103);
        for i in 0..250 {
            let wanted = (i % 2 == 1 && i < 100 || i >= 200).then_some(i);
            let found = builder.table().lookup(prefix(i).bits() + 7);
            assert_eq!(found.map(|(_, target)| *target), wanted);
        }
        let found = before.lookup(prefix(4).bits());
        assert_eq!(found, Some((120, &1)), "what was published stays");
    }
}
