//! Ports and uplinks: how packets get into the process and out of it.
//!
//! `umem` owns the memory that the kernel shares with us, `pool` holds its free frames, `frame_cache` gives them to a worker. `device`
//! says what every kind of device looks like, and `kinds` opens one: `netdev` (XDP and AF_XDP), `tap`, `vhost` (virtual machines). A
//! worker has a [`FrameCache`] and the [`Queue`]s that it serves.

pub mod device;
mod error;
pub(crate) mod event;
mod frame_cache;
mod interface;
mod ioctl;
mod kinds;
mod large;
mod link_mtu;
mod netdev;
mod opening;
mod pool;
mod share;
mod socket_options;
mod tap;
mod umem;
mod vhost;
mod virtio;

#[cfg(feature = "fuzzing")]
pub use vhost::fuzzing as vhost_fuzzing;

pub use device::{Description, Device, Queue};
pub use error::PortError;
pub use frame_cache::FrameCache;
pub use interface::Interface;
pub use kinds::open;
pub use netdev::{
    AllMulticast, AttachMode, Attachment, Bond, BusyPoll, Netdev, Programs, Promiscuous,
    QueueCounters, QueueOptions, Role, ThreadedNapi, XskQueue, check_mtu, release,
};
pub use opening::Opening;
pub use pool::Accounting;
pub use socket_options::icmp_errors_only;
pub use umem::{DATA_OFFSET, Umem, UmemOptions};
