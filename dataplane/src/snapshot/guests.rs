//! What the guests of a subnet are told of their network by DHCP, DHCPv6 and router advertisements, ready to be copied into answers.
//!
//! Made by the compiler (`compile/guests.rs`), read by `pipeline::services` when a guest asks; what differs from port to port is in
//! [`Port`](super::Port): a port that gives options of its own has a copy with them.

/// What the guests of a subnet are told. Some 200 bytes, 2 KiB at most.
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
    /// Codes in `dhcp` of which clients are told that do not ask for them.
    pub forced: Box<[u8]>,
    /// Codes in `dhcp6` of which clients are told that do not ask for them.
    pub forced6: Box<[u16]>,
    /// The server of the next step of booting (`siaddr`, RFC 2131 §2); 0 for none.
    pub next_server: u32,
    /// Whether DHCPv6 leases addresses; guests make their own otherwise.
    pub stateful: bool,
    /// The router advertisement, its checksum still 0; empty where the subnet has no IPv6.
    pub advertisement: Box<[u8]>,
}

/// Well-formed DHCP options: code and value of each.
pub(crate) fn each4(mut options: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let [code, len, rest @ ..] = options else {
            return None;
        };
        let (value, rest) = rest.split_at_checked((*len).into())?;
        options = rest;
        Some((*code, value))
    })
}

/// Well-formed DHCPv6 options: code and value of each.
pub(crate) fn each6(mut options: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d, rest @ ..] = options else {
            return None;
        };
        let len = u16::from_be_bytes([*c, *d]);
        let (value, rest) = rest.split_at_checked(len.into())?;
        options = rest;
        Some((u16::from_be_bytes([*a, *b]), value))
    })
}
