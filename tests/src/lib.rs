//! The lab in which weft is tested and shown: hosts and workloads as network namespaces of this machine.
//!
//! A [`Lab`] makes namespaces, links and workloads, and removes them when it is dropped, after a panic too; everything happens
//! inside namespaces that it made itself. [`RawSocket`] sends and receives frames in one of them, [`Capture`] records and decodes,
//! [`Daemon`] is a program that runs there ([`HaltedThread`] stops one of its threads, [`SmallDisk`] gives it a disk that can be full), [`ServiceManager`] a systemd that runs units, [`guest::Guest`] a virtual machine, [`machine::Machine`] one that is a host, [`wait_until`] waits for a condition with a deadline. Needs root.

mod capture;
mod daemon;
mod error;
pub mod figures;
mod frozen_thread;
mod full_disk;
pub mod guest;
mod lab;
mod leftovers;
pub mod load;
pub mod machine;
mod namespace;
pub mod nginx;
pub mod openvswitch;
pub mod programs;
mod raw_socket;
mod relay;
mod service_manager;
pub mod site;
pub mod stalled_queue;
pub mod tap_end;
mod topology;
pub mod traffic;
pub mod vlan;
mod wait;
pub mod xdp_detach;

pub use capture::Capture;
pub use daemon::Daemon;
pub use error::LabError;
pub use frozen_thread::HaltedThread;
pub use full_disk::SmallDisk;
pub use guest::Guest;
pub use lab::{Lab, LinkOptions, Workload, WorkloadOptions};
pub use namespace::Namespace;
pub use raw_socket::{RawSocket, is_readable};
pub use relay::Relay;
pub use service_manager::ServiceManager;
pub use site::{Site, SiteOptions};
pub use tap_end::TapEnd;
pub use topology::{GuestKind, put_in_guests, tenants, topology};
pub use wait::{holds, wait_until};
