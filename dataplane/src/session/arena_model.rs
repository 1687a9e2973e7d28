//! The arena as the model checker knows it: its atomics are made one by one, not mapped as zeroes.

use std::ops::{Deref, Range};

use super::index::Bucket;
use super::slot::{FlowEntry, Slot};
use super::translation::Line;

/// Types that begin as zero.
pub trait Zeroed: Sync {
    fn zero() -> Self;
}

impl Zeroed for Slot {
    fn zero() -> Self {
        Self::default()
    }
}

impl Zeroed for FlowEntry {
    fn zero() -> Self {
        Self::default()
    }
}

impl Zeroed for Line {
    fn zero() -> Self {
        Self::default()
    }
}

impl Zeroed for Bucket {
    fn zero() -> Self {
        Self::default()
    }
}

/// So many values, zero at first.
#[derive(Debug)]
pub struct Arena<T>(Box<[T]>);

impl<T: Zeroed> Arena<T> {
    pub fn new(len: usize) -> Self {
        Self((0..len).map(|_| T::zero()).collect())
    }

    /// Nothing is taken ahead here.
    pub fn populate(&self, _: Range<usize>) {}
}

impl<T> Deref for Arena<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}
