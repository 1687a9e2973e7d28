//! Where guests find the metadata service: the same addresses in every VPC and every subnet. The snapshot tells guests of them, and
//! `pipeline::metadata` recognises the packets.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The IPv4 address.
pub const IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The IPv6 address.
pub const IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// The TCP port.
pub const PORT: u16 = 80;
