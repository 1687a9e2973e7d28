//! weft-controller as a library: the intent of all tenants, stored durably, compiled per host and streamed to it.
//!
//! ```text
//! admission ──> api                    (a call that asks for too much is refused before it is read)
//! api ──> intent ──> journal ──> store  (a change: validated, stored, then published as a version)
//!            ├─────> capacity            (what a host cannot hold is refused at the change)
//!            ├─────> version ──> view ──> members, always   (what hosts are told of each VPC, shared by all that carry it)
//!            ├─────> interest            (a change wakes the hosts that it concerns)
//!            ├─────> hosts ──> node ──> compile   (each attached host gets the newest version, and what it asks for: learning)
//!            ├─────> moves               (the old host of a moved port stops forwarding after a while)
//!            ├─────> history, watch      (what changed when, by whom; to those who follow)
//!            ├─────> listing, selector   (what there is, page by page, by labels and fields)
//!            ├─────> ports, port_watch   (whether packets pass each port, as its host says)
//!            └─────> peering             (a peering is frozen or active once all hosts know)
//! cluster ──> intent, store::etcd, hosts (several controllers: one writes, the others follow what it stores)
//! ```

#![forbid(unsafe_code)]

pub mod admission;
mod always;
mod api;
pub mod backup;
pub mod caller;
mod capacity;
pub mod cluster;
pub mod compile;
pub mod config;
pub mod findings;
mod history;
pub mod hosts;
pub mod intent;
mod interest;
mod journal;
pub mod learning;
mod listing;
mod members;
pub mod moves;
pub mod node;
mod pages;
pub mod peering;
mod port_watch;
mod ports;
mod selector;
pub mod server;
pub mod store;
mod tenancy;
pub mod version;
mod view;
mod watch;
