//! What weft's programs share as processes: the privileges that they keep ([`privileges`]), what they tell a service manager
//! ([`supervisor`]), the certificates that they show ([`tls`]), where they listen and connect ([`transport`], [`controllers`]), and the services by which they
//! call each other ([`services`]).

#![forbid(unsafe_code)]

pub mod codec;
pub mod controllers;
pub mod privileges;
pub mod supervisor;
pub mod tls;
pub mod transport;

/// Clients and servers of the contract's services, generated from `proto/weft/v1/*.proto`; their messages are those of [`weft_proto::v1`].
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod services {
    include!(concat!(env!("OUT_DIR"), "/weft.v1.rs"));
}
