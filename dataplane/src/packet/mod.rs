//! Packets: the buffers that hold them, and the headers in them.

pub mod buffer;
