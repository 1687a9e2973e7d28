//! weft's dataplane as a library: packets, tables, sessions, the pipeline, ports and workers.
//!
//! The tables and the pipeline know nothing of sockets, gRPC or threads: tests, fuzzers and benchmarks drive them from memory.

pub mod packet;
pub mod port;
pub mod underlay;
