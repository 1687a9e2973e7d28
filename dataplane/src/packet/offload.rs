//! Segmentation left to later (TSO, USO): a large frame holds a segment longer than any link's MTU, and a note on how to split it.
//!
//! The note lies in the first bytes of the frame's data area, which no header reaches: packets begin far behind it.

use super::{Frame, FrameMemory};

/// Bytes of the note.
const NOTE: usize = 4;

/// What a segment is to be split into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Segments {
    /// Nothing: the packet is as it should be.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of equal size, over IPv4 or IPv6.
    Udp,
}

/// What is still to be done to the packet of a large frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// What to split it into.
    pub segments: Segments,
    /// Bytes of transport payload of each piece; not 0 unless there are no pieces.
    pub size: u16,
}

impl Offload {
    /// Notes it in a large frame.
    pub fn write(&self, memory: &mut impl FrameMemory, frame: &mut Frame) {
        if let Some(note) = memory.bytes_mut(frame).first_chunk_mut::<NOTE>() {
            let [high, low] = self.size.to_be_bytes();
            *note = [self.segments as u8, 0, high, low];
        }
    }

    /// What is noted in a frame; nothing in one that is not large.
    pub fn read(memory: &impl FrameMemory, frame: &Frame) -> Self {
        let note = memory
            .bytes(frame)
            .first_chunk::<NOTE>()
            .filter(|_| frame.is_large());
        let Some([kind, _, high, low]) = note else {
            return Self::default();
        };
        let segments = match kind {
            1 => Segments::Tcp4,
            2 => Segments::Tcp6,
            3 => Segments::Udp,
            _ => Segments::None,
        };
        Self {
            segments,
            size: u16::from_be_bytes([*high, *low]),
        }
    }
}
