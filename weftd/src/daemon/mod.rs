//! The daemon: configuration, the host, and the service for weftctl.

mod announce;
pub mod config;
pub mod devices;
mod holders;
pub mod host;
mod learning;
mod multicast;
pub mod node;
mod resources;
mod run;

pub use config::Config;
pub use devices::check_uplinks;
pub use resources::Resources;
pub use run::run;
