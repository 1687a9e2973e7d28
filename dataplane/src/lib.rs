//! weft's dataplane as a library: packets, tables, sessions, the pipeline, ports and workers.
//!
//! The tables and the pipeline know nothing of sockets, gRPC or threads: tests, fuzzers and benchmarks drive them from memory.

pub mod encap;
pub mod packet;
pub mod pipeline;
pub mod policy;
pub mod port;
pub mod prefetch;
pub mod route;
pub mod session;
pub mod snapshot;
mod sync;
pub mod worker;
