//! Routing: prefixes, longest prefix match, route tables, equal-cost next hops.

pub mod ecmp;
pub mod lpm;
pub mod prefix;
pub mod table;

pub use lpm::Lpm;
pub use prefix::Prefix;
pub use table::{Table, TableBuilder};
