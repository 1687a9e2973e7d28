//! Packet buffers as the pipeline sees them: a frame with exactly one owner, and the packet's offset and length in it.
//!
//! A [`Frame`] is a token: it can't be copied, so a frame can't be in two rings at once, and only the holder of the token can access the
//! bytes. Where the bytes live (UMEM, guest memory, plain memory in a test) is behind [`FrameMemory`].

/// Ownership of one packet buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame(u32);

/// Marks large frames among the indices.
const LARGE: u32 = 1 << 31;

/// Bytes of a large frame: the longest segment of a guest, and room ahead of it.
pub const LARGE_SIZE: usize = 66 * 1024;

impl Frame {
    /// Makes the token of the buffer `index`. Only the owner of the memory calls this, once for each buffer.
    #[inline]
    pub(crate) fn from_index(index: u32) -> Self {
        Self(index)
    }

    /// Makes the token of the large buffer `index`, under the same terms.
    #[inline]
    pub(crate) fn from_large_index(index: u32) -> Self {
        Self(index | LARGE)
    }

    /// Whether the buffer is one of [`LARGE_SIZE`] bytes. Such a one may hold a segment that is still to be split
    /// ([`Offload`](super::offload::Offload)), and goes into no kernel ring.
    #[inline]
    pub fn is_large(&self) -> bool {
        self.0 & LARGE != 0
    }

    /// Which large buffer this is, if it is one.
    #[inline]
    pub(crate) fn large_index(index: u32) -> Option<u32> {
        (index & LARGE != 0).then_some(index & !LARGE)
    }

    /// Which buffer this is.
    #[inline]
    pub fn index(&self) -> u32 {
        self.0
    }

    /// Turns the token into its index, which the caller keeps track of (a kernel ring).
    #[inline]
    pub fn into_index(self) -> u32 {
        self.0
    }
}

/// Where frames' bytes live, and where free frames come from.
pub trait FrameMemory {
    /// The whole data area of the frame; the same length for every frame that is not large.
    fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8];
    /// The same, to write.
    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8];
    /// A free frame, or none when all are in use.
    fn alloc(&mut self) -> Option<Frame>;
    /// A free large frame, or none when all are in use.
    fn alloc_large(&mut self) -> Option<Frame>;
    /// Copies bytes of one frame to another place in another frame. Both ranges lie within the frames.
    fn copy(&mut self, from: (&Frame, usize), to: (&mut Frame, usize), len: usize) {
        // Two frames of one memory can't be borrowed at once, so the bytes pass through the stack, a few cache lines at a time.
        for at in (0..len).step_by(256) {
            let mut chunk = [0u8; 256];
            let part = 256.min(len - at);
            chunk[..part].copy_from_slice(&self.bytes(from.0)[from.1 + at..][..part]);
            self.bytes_mut(to.0)[to.1 + at..][..part].copy_from_slice(&chunk[..part]);
        }
    }
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
    large: Vec<Box<[u8]>>,
    free_large: Vec<u32>,
}

impl PlainMemory {
    /// `count` frames of `size` bytes each.
    pub fn new(count: u32, size: usize) -> Self {
        Self {
            area: vec![0; count as usize * size],
            size,
            free: (0..count).rev().collect(),
            large: Vec::new(),
            free_large: Vec::new(),
        }
    }

    /// The same with `count` large frames besides.
    #[must_use]
    pub fn with_large(mut self, count: u32) -> Self {
        self.large = (0..count)
            .map(|_| vec![0; LARGE_SIZE].into_boxed_slice())
            .collect();
        self.free_large = (0..count).rev().collect();
        self
    }

    /// How many large frames are free.
    pub fn available_large(&self) -> usize {
        self.free_large.len()
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
        match Frame::large_index(frame.index()) {
            None => &self.area[frame.index() as usize * self.size..][..self.size],
            Some(large) => &self.large[large as usize],
        }
    }

    #[inline]
    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        match Frame::large_index(frame.index()) {
            None => &mut self.area[frame.index() as usize * self.size..][..self.size],
            Some(large) => &mut self.large[large as usize],
        }
    }

    #[inline]
    fn alloc(&mut self) -> Option<Frame> {
        self.free.pop().map(Frame::from_index)
    }

    fn alloc_large(&mut self) -> Option<Frame> {
        self.free_large.pop().map(Frame::from_large_index)
    }

    #[inline]
    fn free(&mut self, frame: Frame) {
        let index = frame.into_index();
        match Frame::large_index(index) {
            None => self.free.push(index),
            Some(large) => self.free_large.push(large),
        }
    }
}
