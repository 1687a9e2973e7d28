//! Packets: the buffers that hold them, and the headers in them.

pub mod buffer;
pub mod checksum;
pub mod drop_reason;
pub mod mac;
pub mod metadata;
pub mod nested;
pub mod offload;
pub mod parse;
pub mod station;

pub use buffer::{Frame, FrameMemory, Packet, PlainMemory};
pub use drop_reason::DropReason;
pub use mac::Mac;
pub use offload::{Offload, Segments};
pub use parse::{Family, Flow, Fragment, Inner, Parsed};
pub use station::Station;
