//! The host daemon as a library: what its program and its tests are made of.
//!
//! [`agent`] receives the host's state, [`underlay`] asks the kernel for the ways to other hosts, [`metadata`] and [`dns`] answer guests, [`health`] asks members of
//! load balancers, and [`daemon`] joins them with the workers and devices of weft-dataplane.

#![forbid(unsafe_code)]

pub mod agent;
pub mod daemon;
pub mod dns;
mod guest;
pub mod health;
pub mod metadata;
pub mod underlay;
mod wire;
