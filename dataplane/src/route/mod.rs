//! Routing: prefixes, longest prefix match ([`Lpm`]), route tables ([`Table`]), policy routes before them ([`Policies`]), equal-cost next
//! hops ([`ecmp`]).
//!
//! Addresses and prefixes of both families are 128-bit words, with IPv4 as IPv4-mapped IPv6: an IPv4 /24 is 120 bits long.

pub mod ecmp;
pub mod lpm;
pub mod maglev;
pub mod policies;
pub mod prefix;
pub mod table;

pub use lpm::Lpm;
pub use policies::Policies;
pub use prefix::Prefix;
pub use table::{Table, TableBuilder};
