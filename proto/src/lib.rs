//! The wire contract of weft: messages and services generated from `weft/v1/*.proto`, and the canonical form of a set of objects.
//! The controller and the daemon meet here and nowhere else.

#![forbid(unsafe_code)]

/// Version 1 of the contract.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("weft.v1");
}

pub mod address;
pub mod mtu;
mod shelf;
pub mod state;
pub mod strict;
pub mod validate;

/// Version of the host protocol.
pub const HOST_PROTOCOL: u32 = 1;
