//! Routing: prefixes, longest prefix match, equal-cost next hops.

pub mod ecmp;
pub mod lpm;
pub mod prefix;

pub use lpm::Lpm;
pub use prefix::Prefix;
