//! What weft's programs share as processes: the privileges that they keep ([`privileges`]), what they tell a service manager
//! ([`supervisor`]), the certificates that they show ([`tls`]), and where they listen and connect ([`transport`]).

#![forbid(unsafe_code)]

pub mod privileges;
pub mod supervisor;
pub mod tls;
pub mod transport;
