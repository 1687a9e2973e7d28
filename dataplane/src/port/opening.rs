//! What devices are opened with, whatever their kind.

use std::sync::Arc;

use super::{BusyPoll, Programs, Umem};

/// What all devices are opened with.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Packet memory.
    pub umem: Arc<Umem>,
    /// Programs of kernel devices.
    pub programs: Arc<Programs>,
    /// Entries of kernel rings.
    pub ring_size: u32,
    /// Busy polling of kernel devices.
    pub busy_poll: Option<BusyPoll>,
    /// Whether kernel devices get threads of their own.
    pub threaded_napi: bool,
    /// Bytes to leave ahead of a received packet for outer headers.
    pub headroom: u16,
}
