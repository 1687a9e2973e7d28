//! The wire contract of weft: messages and services generated from `weft/v1/*.proto`, and the canonical form of a set of objects.
//! The controller and the daemon meet here and nowhere else; what both are as processes ([`privileges`], [`supervisor`]) is here too.

#![forbid(unsafe_code)]

/// Version 1 of the contract.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("weft.v1");
}

pub mod address;
pub mod mtu;
pub mod privileges;
mod shelf;
pub mod state;
pub mod strict;
pub mod supervisor;
pub mod tls;
pub mod transport;
pub mod validate;

/// Version of the host protocol that this crate speaks.
pub const HOST_PROTOCOL: u32 = 1;
