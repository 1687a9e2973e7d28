//! Ports and uplinks: how packets get into the process and out of it.
//!
//! `program` attaches the XDP programs, `umem` owns the memory that the kernel shares with us, `pool` hands its frames to
//! workers, `xsk` is one AF_XDP socket with its rings, `interface` asks the kernel about devices. A worker holds a
//! [`FrameCache`] and the [`XskQueue`]s that it serves; nothing here knows what is in a packet. With the session table's core, this
//! folder is the only place with `unsafe` code.

mod error;
mod frame_set;
mod interface;
mod napi;
mod pool;
mod program;
mod socket_options;
mod umem;
mod xsk;

pub use error::PortError;
pub use interface::Interface;
pub use napi::ThreadedNapi;
pub use pool::{Accounting, FrameCache};
pub use program::{AttachMode, Attachment, Role};
pub use umem::{DATA_OFFSET, Umem, UmemOptions};
pub use xsk::{BusyPoll, QueueCounters, QueueOptions, XskQueue};
