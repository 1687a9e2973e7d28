//! weft-controller as a library: the intent of all tenants, stored durably, compiled per host and streamed to it.
//!
//! ```text
//! api ──> intent ──> store          (a change: validated whole, stored, then published as a version)
//!            ├─────> capacity            (what a host cannot hold is refused at the change)
//!            ├─────> hosts ──> compile   (each attached host gets the newest version)
//!            ├─────> moves               (the old host of a moved port stops forwarding after a while)
//!            └─────> peering             (a peering is frozen or active once all hosts know)
//! ```

#![forbid(unsafe_code)]

mod api;
pub mod caller;
mod capacity;
pub mod compile;
pub mod config;
pub mod hosts;
pub mod intent;
pub mod moves;
pub mod peering;
pub mod server;
pub mod store;
mod tenancy;
pub mod version;
