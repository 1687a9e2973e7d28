//! Packet buffers as the pipeline sees them: a frame that is owned exactly once, and where in it the packet lies.
//!
//! A [`Frame`] is a token: it can't be copied, so a frame can't be in two rings at once, and whoever holds the token may
//! touch the bytes. Where the bytes live (UMEM, guest memory, plain memory in a test) is behind [`FrameMemory`].

/// Ownership of one packet buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame(u32);

impl Frame {
    /// Makes the token of the buffer `index`. Only the owner of the memory calls this, once for each buffer.
    #[inline]
    pub(crate) fn from_index(index: u32) -> Self {
        Self(index)
    }

    /// Which buffer this is.
    #[inline]
    pub fn index(&self) -> u32 {
        self.0
    }

    /// Gives the token up to somebody who keeps track of the index (a kernel ring).
    #[inline]
    pub fn into_index(self) -> u32 {
        self.0
    }
}

/// Where frames' bytes live, and where free frames come from.
pub trait FrameMemory {
    /// The whole data area of the frame; the same length for every frame.
    fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8];
    /// The same, to write.
    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8];
    /// A free frame, or none when all are in use.
    fn alloc(&mut self) -> Option<Frame>;
    /// Gives a frame back.
    fn free(&mut self, frame: Frame);
}

/// One packet: `bytes(frame)[start..start + len]`, beginning at the Ethernet header.
#[derive(Debug)]
pub struct Packet {
    /// The buffer.
    pub frame: Frame,
    /// Offset of the first byte of the Ethernet header in the frame's data area.
    pub start: u16,
    /// Bytes of packet.
    pub len: u16,
}

impl Packet {
    /// The packet's bytes.
    #[inline]
    pub fn bytes<'m>(&'m self, memory: &'m impl FrameMemory) -> &'m [u8] {
        &memory.bytes(&self.frame)[usize::from(self.start)..][..usize::from(self.len)]
    }

    /// The packet's bytes, to write.
    #[inline]
    pub fn bytes_mut<'m>(&'m mut self, memory: &'m mut impl FrameMemory) -> &'m mut [u8] {
        let (start, len) = (usize::from(self.start), usize::from(self.len));
        &mut memory.bytes_mut(&mut self.frame)[start..][..len]
    }
}

/// Frames in plain memory, for tests, benchmarks and the packet trace.
#[derive(Debug)]
pub struct PlainMemory {
    area: Vec<u8>,
    size: usize,
    free: Vec<u32>,
}

impl PlainMemory {
    /// `count` frames of `size` bytes each.
    pub fn new(count: u32, size: usize) -> Self {
        Self {
            area: vec![0; count as usize * size],
            size,
            free: (0..count).rev().collect(),
        }
    }

    /// How many frames are free.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// A frame that holds `bytes`, `headroom` bytes into the buffer.
    pub fn packet(&mut self, headroom: usize, bytes: &[u8]) -> Option<Packet> {
        if headroom + bytes.len() > self.size {
            return None;
        }
        let mut frame = self.alloc()?;
        self.bytes_mut(&mut frame)[headroom..][..bytes.len()].copy_from_slice(bytes);
        Some(Packet {
            frame,
            start: u16::try_from(headroom).ok()?,
            len: u16::try_from(bytes.len()).ok()?,
        })
    }
}

impl FrameMemory for PlainMemory {
    #[inline]
    fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        &self.area[frame.index() as usize * self.size..][..self.size]
    }

    #[inline]
    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        &mut self.area[frame.index() as usize * self.size..][..self.size]
    }

    #[inline]
    fn alloc(&mut self) -> Option<Frame> {
        self.free.pop().map(Frame::from_index)
    }

    #[inline]
    fn free(&mut self, frame: Frame) {
        self.free.push(frame.into_index());
    }
}
