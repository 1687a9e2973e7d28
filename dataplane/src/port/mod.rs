//! Ports and uplinks: how packets get into the process and out of it.
//!
//! `umem` owns the memory that the kernel shares with us, `pool` hands its frames to workers, `device` says what every kind of
//! device looks like; the kinds have a folder each: `netdev` (XDP and AF_XDP), `tap`, `vhost` (virtual machines). A worker holds a
//! [`FrameCache`] and the [`Queue`]s that it serves. With the session table's core, this
//! folder is the only place with `unsafe` code.

pub mod device;
mod error;
pub(crate) mod event;
mod interface;
mod large;
mod link_mtu;
mod netdev;
mod pool;
mod share;
mod socket_options;
mod tap;
mod umem;
mod vhost;
mod virtio;

#[cfg(feature = "fuzzing")]
pub use vhost::fuzzing as vhost_fuzzing;

pub use device::{Description, Device, Opening, Queue};
pub use error::PortError;
pub use interface::Interface;
pub use netdev::{
    AttachMode, Attachment, Bond, BusyPoll, Netdev, Programs, QueueCounters, QueueOptions, Role,
    ThreadedNapi, XskQueue, check_mtu, release,
};
pub use pool::{Accounting, FrameCache};
pub use socket_options::icmp_errors_only;
pub use umem::{DATA_OFFSET, Umem, UmemOptions};
