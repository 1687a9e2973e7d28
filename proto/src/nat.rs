//! What of a NAT gateway has defaults: idle times and limits.

use std::net::Ipv6Addr;

use crate::address::parse_prefix;
use crate::v1::{NatGateway, NatLimits, NatTimeouts};

/// The prefix of a gateway that names none (RFC 6052 §2.1).
pub const WELL_KNOWN_PREFIX: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);

/// The longest idle time that can be set, in seconds: a week.
pub const LONGEST_TIMEOUT: u32 = 7 * 24 * 3600;
/// The most mappings that can be set: as many as a host holds.
pub const MOST_MAPPINGS: u32 = 1 << 20;
/// Mappings of a gateway that sets no limit: a quarter of what a host holds.
pub const DEFAULT_MAPPINGS: u32 = MOST_MAPPINGS / 4;

/// Addresses of NAT gateways that a gateway host holds at most, those that it stands by for among them.
pub const GATEWAY_HOST_ADDRESSES: u16 = 1024;

/// An idle time of a NAT gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeout {
    /// The name of its field.
    pub name: &'static str,
    /// In seconds; 0: not set.
    pub seconds: u32,
    /// The least that the RFC admits, in seconds.
    pub least: u32,
    /// Where it is not set, in seconds.
    pub default: u32,
    /// Where that stands.
    pub source: &'static str,
}

impl Timeout {
    /// The one in force, in seconds.
    pub fn effective(&self) -> u32 {
        match self.seconds {
            0 => self.default,
            seconds => seconds,
        }
    }
}

impl NatGateway {
    /// The first address of its NAT64 prefix, an IPv6 /96.
    ///
    /// # Errors
    /// The rule that the prefix breaks.
    pub fn nat64(&self) -> Result<Ipv6Addr, String> {
        let text = &self.nat64_prefix;
        if text.is_empty() {
            return Ok(WELL_KNOWN_PREFIX);
        }
        let prefix = match parse_prefix(text) {
            Ok(ipnetwork::IpNetwork::V6(prefix)) if prefix.prefix() == 96 => prefix.network(),
            Ok(_) => return Err(format!("{text} is no IPv6 prefix of length 96")),
            Err(error) => return Err(error.to_string()),
        };
        let special = prefix.is_loopback() || prefix.is_unspecified() || prefix.is_multicast();
        if special || prefix.to_ipv4_mapped().is_some() || prefix.is_unicast_link_local() {
            return Err(format!("{text} has addresses that no host can have"));
        }
        // Bits 64 to 71 are zero (RFC 6052 §2.2).
        if prefix.octets()[8] != 0 {
            return Err(format!(
                "bits 64 to 71 of {text} are not zero (RFC 6052 2.2)"
            ));
        }
        Ok(prefix)
    }

    /// Its idle times: TCP established, TCP transitory, UDP, ICMP.
    pub fn idle_times(&self) -> [Timeout; 4] {
        let NatTimeouts {
            tcp_established,
            tcp_transitory,
            udp,
            icmp,
        } = self.timeouts.unwrap_or_default();
        let timeout = |name, seconds, (least, default), source| Timeout {
            name,
            seconds,
            least,
            default,
            source,
        };
        [
            timeout(
                "tcp_established",
                tcp_established,
                (7440, 7440),
                "RFC 5382 REQ-5",
            ),
            timeout(
                "tcp_transitory",
                tcp_transitory,
                (240, 240),
                "RFC 5382 REQ-5",
            ),
            timeout("udp", udp, (120, 300), "RFC 4787 REQ-5"),
            timeout("icmp", icmp, (60, 60), "RFC 5508 REQ-2"),
        ]
    }

    /// The most mappings that it has, and those of one source address.
    pub fn most_mappings(&self) -> (u32, u32) {
        let limits: NatLimits = self.limits.unwrap_or_default();
        let all = match limits.mappings {
            0 => DEFAULT_MAPPINGS,
            all => all,
        };
        let of_one = match limits.mappings_per_address {
            0 => all,
            of_one => of_one.min(all),
        };
        (all, of_one)
    }
}
