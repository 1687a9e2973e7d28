//! The daemon: configuration, the host that it makes of it, and the service by which it can be looked at.

mod announce;
pub mod config;
pub mod devices;
pub mod host;
pub mod node;
mod run;

pub use config::Config;
pub use devices::check_uplinks;
pub use run::{Ground, ground, run};
