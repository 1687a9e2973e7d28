//! The fuzz targets and their assertions. The targets for guests' rings and monitors' messages are in
//! `dataplane/src/port/vhost/fuzzing.rs`, beside the private items that they use.
#![forbid(unsafe_code)]

mod fabric;
pub mod outside;
pub mod packets;
pub mod state;
