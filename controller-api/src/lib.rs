//! weft-controller as a library: the intent of all tenants, stored durably, compiled per host and streamed to it.
//!
//! ```text
//! api ──> intent ──> store          (a change: validated whole, stored, then published as a version)
//!            └─────> hosts ──> compile   (each attached host is brought to the newest version)
//! ```

#![forbid(unsafe_code)]

mod api;
pub mod compile;
pub mod config;
pub mod hosts;
pub mod intent;
pub mod server;
pub mod store;
pub mod version;
