//! What the fuzz targets do with their input, and what must hold after. The targets for guests' rings and monitors' messages are in
//! `dataplane/src/port/vhost/fuzzing.rs`, beside what they need to see.
#![forbid(unsafe_code)]

mod fabric;
pub mod packets;
pub mod state;
