//! Parsers for the texts of the contract: prefixes, MAC addresses and protocol names.
//!
//! The validator, the controller and the daemon share these parsers, so that a text has the same meaning everywhere.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// The virtual router's MAC wherever a subnet names none.
pub const DEFAULT_GATEWAY_MAC: [u8; 6] = [0x02, 0x77, 0x65, 0x66, 0x74, 0x01];

/// Why a text is not a prefix, MAC or protocol, with the correct form where it is known.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TextError {
    #[error("'{0}' is not an IP address")]
    Address(String),
    #[error("'{0}' is not a prefix such as 10.0.0.0/24 or fd00::/64")]
    Prefix(String),
    #[error("'{0}' has no prefix length; a single address is written {0}/{1}")]
    NoLength(String, u8),
    #[error("'{0}' has host bits set; the prefix is {1}")]
    HostBits(String, IpNetwork),
    #[error("'{0}' is not a MAC address such as 02:00:00:00:00:01")]
    Mac(String),
    #[error("'{0}' is not a unicast MAC address")]
    NotUnicast(String),
    #[error("'{0}' is not a protocol: any, tcp, udp, icmp, icmpv6, sctp or a number from 0 to 255")]
    Protocol(String),
}

/// A prefix such as `10.0.0.0/24`, with no host bits set.
///
/// # Errors
/// No prefix, no prefix length, or host bits set.
pub fn parse_prefix(text: &str) -> Result<IpNetwork, TextError> {
    let not_a_prefix = || TextError::Prefix(text.to_owned());
    let Some((address, length)) = text.split_once('/') else {
        return Err(match text.parse::<IpAddr>() {
            Ok(address) => TextError::NoLength(text.to_owned(), bits(address)),
            Err(_) => not_a_prefix(),
        });
    };
    let address: IpAddr = address.parse().map_err(|_| not_a_prefix())?;
    if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
        return Err(not_a_prefix());
    }
    let length = length.parse().map_err(|_| not_a_prefix())?;
    let network = IpNetwork::new(address, length).map_err(|_| not_a_prefix())?;
    if network.network() == address {
        return Ok(network);
    }
    let corrected = IpNetwork::new(network.network(), length).map_err(|_| not_a_prefix())?;
    Err(TextError::HostBits(text.to_owned(), corrected))
}

/// A prefix, or an address which stands for the prefix that holds it alone.
///
/// # Errors
/// Neither, or host bits set.
pub fn parse_prefix_or_address(text: &str) -> Result<IpNetwork, TextError> {
    text.parse::<IpAddr>()
        .map(IpNetwork::from)
        .or_else(|_| parse_prefix(text))
}

/// An IPv4 or IPv6 address.
///
/// # Errors
/// It is neither.
pub fn parse_address(text: &str) -> Result<IpAddr, TextError> {
    text.parse()
        .map_err(|_| TextError::Address(text.to_owned()))
}

/// A unicast MAC address: six pairs of hexadecimal digits joined by colons.
///
/// # Errors
/// Another form, the group bit set, or all zero.
pub fn parse_mac(text: &str) -> Result<[u8; 6], TextError> {
    let not_a_mac = || TextError::Mac(text.to_owned());
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().ok_or_else(not_a_mac)?;
        if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(not_a_mac());
        }
        *byte = u8::from_str_radix(part, 16).map_err(|_| not_a_mac())?;
    }
    if parts.next().is_some() {
        return Err(not_a_mac());
    }
    if mac[0] & 1 == 1 || mac == [0; 6] {
        return Err(TextError::NotUnicast(text.to_owned()));
    }
    Ok(mac)
}

/// The IP protocol number of a protocol word; `None` stands for any.
///
/// # Errors
/// No such word.
pub fn parse_protocol(text: &str) -> Result<Option<u8>, TextError> {
    Ok(Some(match text {
        "" | "any" => return Ok(None),
        "tcp" => 6,
        "udp" => 17,
        "icmp" => 1,
        "icmpv6" => 58,
        "sctp" => 132,
        number if number.bytes().all(|b| b.is_ascii_digit()) => number
            .parse()
            .map_err(|_| TextError::Protocol(text.to_owned()))?,
        _ => return Err(TextError::Protocol(text.to_owned())),
    }))
}

/// Ranges whose addresses no port, subnet or tunnel end may have: first bits, how many, and what the range is for (RFC 6890).
const SPECIAL_V4: [(u32, u8, &str); 5] = [
    (0, 8, "this network"),
    (127 << 24, 8, "loopback"),
    (0xa9fe << 16, 16, "link-local"),
    (0xe0 << 24, 4, "multicast"),
    (0xf0 << 24, 4, "reserved"),
];
const SPECIAL_V6: [(u128, u8, &str); 6] = [
    (0, 128, "unspecified"),
    (1, 128, "loopback"),
    (0xffff << 32, 96, "IPv4-mapped"),
    (0, 16, "reserved"),
    (0xfe80 << 112, 10, "link-local"),
    (0xff << 120, 8, "multicast"),
];

/// What some addresses of a prefix are for, if they are none that a router passes on to one receiver.
pub fn special_use(prefix: IpNetwork) -> Option<&'static str> {
    let len = prefix.prefix();
    // Two prefixes overlap if they agree in as many bits as the shorter has.
    match prefix.network() {
        IpAddr::V4(network) => {
            let differs = |bits: u32, other: u8| {
                let shift = 32 - u32::from(len.min(other));
                (bits ^ network.to_bits()).checked_shr(shift).unwrap_or(0) != 0
            };
            let found = SPECIAL_V4
                .iter()
                .find(|(bits, len, _)| !differs(*bits, *len));
            found.map(|(_, _, what)| *what)
        }
        IpAddr::V6(network) => {
            let differs = |bits: u128, other: u8| {
                let shift = 128 - u32::from(len.min(other));
                (bits ^ network.to_bits()).checked_shr(shift).unwrap_or(0) != 0
            };
            let found = SPECIAL_V6
                .iter()
                .find(|(bits, len, _)| !differs(*bits, *len));
            found.map(|(_, _, what)| *what)
        }
    }
}

/// The first address after the network address: a subnet's gateway where none is named.
pub fn first_address(prefix: IpNetwork) -> IpAddr {
    match prefix.network() {
        IpAddr::V4(a) => IpAddr::V4((a.to_bits().saturating_add(1)).into()),
        IpAddr::V6(a) => IpAddr::V6((a.to_bits().saturating_add(1)).into()),
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_refused_with_the_corrected_form() {
        assert_eq!(
            parse_prefix("10.0.0.5/24").unwrap_err().to_string(),
            "'10.0.0.5/24' has host bits set; the prefix is 10.0.0.0/24"
        );
        assert_eq!(
            parse_prefix("fd00::1/64").unwrap_err().to_string(),
            "'fd00::1/64' has host bits set; the prefix is fd00::/64"
        );
    }

    #[test]
    fn a_prefix_without_a_length_is_refused_with_the_length_of_one_address() {
        assert!(
            parse_prefix("fd00::1")
                .unwrap_err()
                .to_string()
                .ends_with("fd00::1/128")
        );
        assert_eq!(
            parse_prefix_or_address("10.0.0.1").unwrap().to_string(),
            "10.0.0.1/32"
        );
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0/8",
            "10.0.0.0/255.0.0.0",
            "::/129",
        ] {
            assert!(parse_prefix(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_mac_is_six_pairs_and_unicast() {
        assert_eq!(parse_mac("02:00:00:00:00:ff").unwrap()[5], 255);
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:0",
            "02-00-00-00-00-01",
            "+2:00:00:00:00:01",
        ] {
            assert!(matches!(parse_mac(text), Err(TextError::Mac(_))), "{text}");
        }
        for text in [
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert!(
                matches!(parse_mac(text), Err(TextError::NotUnicast(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn protocols_are_words_or_numbers() {
        assert_eq!(parse_protocol("any"), Ok(None));
        assert_eq!(parse_protocol("icmpv6"), Ok(Some(58)));
        assert_eq!(parse_protocol("47"), Ok(Some(47)));
        assert!(parse_protocol("256").is_err());
        assert!(parse_protocol("TCP").is_err());
    }
}
