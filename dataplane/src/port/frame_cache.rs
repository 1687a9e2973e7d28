//! A worker's free frames, and access to the bytes of the frames that it holds.

#![allow(unsafe_code)]

use std::sync::Arc;

use super::pool::Stock;
use super::umem::Umem;
use crate::packet::buffer::{Frame, FrameMemory};

/// A worker's free frames, and access to the bytes of the frames that it holds.
#[derive(Debug)]
pub struct FrameCache {
    umem: Arc<Umem>,
    stock: Stock,
}

impl FrameCache {
    /// An empty cache; it fills itself from the pool when a frame is wanted.
    pub fn new(umem: &Arc<Umem>) -> Self {
        Self {
            umem: Arc::clone(umem),
            stock: Stock::new(&umem.ledger),
        }
    }

    /// The memory that the frames belong to.
    pub fn umem(&self) -> &Arc<Umem> {
        &self.umem
    }

    /// One free frame to give to a ring.
    #[inline]
    pub(super) fn take(&mut self) -> Option<u32> {
        self.stock.take(&self.umem.pool)
    }

    /// One free frame from a ring.
    #[inline]
    pub(super) fn put(&mut self, index: u32) {
        self.stock.put(&self.umem.pool, index);
    }

    /// Frames became packets in the worker's hands (or, negative, went out of them).
    #[inline]
    pub(super) fn note_held(&mut self, change: i64) {
        self.stock.note_held(change);
    }

    /// Shows what the cache has to the books.
    #[inline]
    pub(super) fn publish(&self) {
        self.stock.publish();
    }
}

impl Drop for FrameCache {
    fn drop(&mut self) {
        self.stock.empty(&self.umem.pool);
    }
}

impl FrameMemory for FrameCache {
    #[inline]
    fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        // SAFETY: the token of a frame exists once, and whoever has it is the only one to touch the bytes: rings turn a frame
        // into a token when the kernel has given it back, and take the token when they give it to the kernel. The
        // cache holds the memory alive.
        unsafe {
            let (pointer, len) = self.umem.area(frame.index());
            std::slice::from_raw_parts(pointer, len)
        }
    }

    #[inline]
    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        // SAFETY: as in `bytes`, and the token is borrowed mutably.
        unsafe {
            let (pointer, len) = self.umem.area(frame.index());
            std::slice::from_raw_parts_mut(pointer, len)
        }
    }

    fn copy(&mut self, from: (&Frame, usize), to: (&mut Frame, usize), len: usize) {
        let (source, room) = self.umem.area(from.0.index());
        assert!(
            from.1 <= room && len <= room - from.1,
            "reading past a frame"
        );
        let (target, room) = self.umem.area(to.0.index());
        assert!(to.1 <= room && len <= room - to.1, "writing past a frame");
        // SAFETY: both ranges lie within their frames; two tokens are two frames, so the ranges do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(source.add(from.1), target.add(to.1), len) };
    }

    #[inline]
    fn alloc(&mut self) -> Option<Frame> {
        let frame = self.take().map(Frame::from_index);
        self.note_held(i64::from(frame.is_some()));
        frame
    }

    fn alloc_large(&mut self) -> Option<Frame> {
        self.umem.large.take().map(Frame::from_large_index)
    }

    #[inline]
    fn free(&mut self, frame: Frame) {
        let index = frame.into_index();
        if let Some(large) = Frame::large_index(index) {
            return self.umem.large.put(large);
        }
        self.put(index);
        self.note_held(-1);
    }
}
