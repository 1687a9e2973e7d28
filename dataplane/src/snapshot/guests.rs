//! What the guests of a subnet are told of their network by DHCP, DHCPv6 and router advertisements, ready to be copied into answers.
//!
//! Made by the compiler (`compile/guests.rs`), read by `pipeline::services` when a guest asks; what differs from port to port is in
//! [`Port`](super::Port).

/// What the guests of a subnet are told. Some 200 bytes, 1.5 KiB at most.
#[derive(Debug, Clone, Default)]
pub struct Guests {
    /// Seconds for which an address is leased; all ones stands for ever (RFC 2131 §3.3, RFC 8415 §7.7).
    pub lease: u32,
    /// Bytes of IP packet that a guest may send.
    pub mtu: u16,
    /// The subnet mask; 0 where the subnet has no IPv4.
    pub mask: u32,
    /// DHCP options with their codes and lengths (RFC 2132), each code once.
    pub dhcp: Box<[u8]>,
    /// DHCPv6 options with their codes and lengths (RFC 8415 §21.1), each code once.
    pub dhcp6: Box<[u8]>,
    /// Whether DHCPv6 leases addresses; guests make their own otherwise.
    pub stateful: bool,
    /// The router advertisement, its checksum still 0; empty where the subnet has no IPv6.
    pub advertisement: Box<[u8]>,
}
