//! Names of DNS as the intent has them: in lower case, without the dot at the end, and what records say as text.
//!
//! Validation reads records by this, and weftd answers by it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::v1::{DnsRecord, DnsZone, Port};

/// Seconds that a `ttl` of 0 stands for.
pub const DEFAULT_TTL: u32 = 300;
/// CNAMEs that are followed one after the other.
pub const MAX_CHAIN: usize = 8;
/// The types of records, as the intent names them.
pub const TYPES: [&str; 7] = ["A", "AAAA", "CNAME", "SRV", "PTR", "MX", "TXT"];

/// Characters of a name as text (RFC 1035 §2.3.4: 255 bytes as it is sent).
const MAX_NAME: usize = 253;
/// Bytes of a label, and of a text.
const MAX_LABEL: usize = 63;
const MAX_TEXT: usize = 255;

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// The name that this one stands for.
    Cname(String),
    /// The name of an address.
    Ptr(String),
    /// A mail server: preference and name.
    Mx(u16, String),
    /// Where a service is (RFC 2782): priority, weight, port and name.
    Srv([u16; 3], String),
    /// A text.
    Txt(String),
}

impl Data {
    /// What a text says in a record of a type.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(kind: &str, text: &str) -> Result<Self, String> {
        let name_of = |text: &str| {
            name(text).ok_or_else(|| {
                format!("'{}' is not a name: labels of 1 to {MAX_LABEL} letters, digits, inner hyphens and underscores, joined by dots, at most \
                     {MAX_NAME} characters", shown(text))
            })
        };
        match kind {
            "A" => text
                .parse()
                .map(Self::A)
                .map_err(|_| format!("'{}' is not an IPv4 address", shown(text))),
            "AAAA" => text
                .parse()
                .map(Self::Aaaa)
                .map_err(|_| format!("'{}' is not an IPv6 address", shown(text))),
            "CNAME" => name_of(text).map(Self::Cname),
            "PTR" => name_of(text).map(Self::Ptr),
            "MX" => {
                let ([preference], target) = numbers(text)
                    .ok_or_else(|| format!("'{}' is not PREFERENCE NAME", shown(text)))?;
                Ok(Self::Mx(preference, name_of(target)?))
            }
            "SRV" => {
                let (values, target) = numbers(text)
                    .ok_or_else(|| format!("'{}' is not PRIORITY WEIGHT PORT NAME", shown(text)))?;
                Ok(Self::Srv(values, name_of(target)?))
            }
            "TXT" if (1..=MAX_TEXT).contains(&text.len()) => Ok(Self::Txt(text.to_owned())),
            "TXT" => Err(format!("{} bytes are outside 1 to {MAX_TEXT}", text.len())),
            _ => Err(format!("there are no records of type '{}'", shown(kind))),
        }
    }
}

/// What is quoted of a text that may be of any length.
fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

/// So many numbers, and a word after them.
fn numbers<const N: usize>(text: &str) -> Option<([u16; N], &str)> {
    let mut words = text.split_ascii_whitespace();
    let mut values = [0; N];
    for value in &mut values {
        *value = words.next()?.parse().ok()?;
    }
    let target = words.next()?;
    words.next().is_none().then_some((values, target))
}

/// A name as it is compared: in lower case, without the dot at the end. None if it is not one that records may have.
pub fn name(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        let is_inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (text.len() <= MAX_NAME && text.split('.').all(is_label)).then(|| text.to_ascii_lowercase())
}

/// The whole name of what is called so in a domain; none if it is not a name, or too long a one.
pub fn name_in(relative: &str, domain: &str) -> Option<String> {
    if relative.is_empty() {
        name(domain)
    } else if relative.ends_with('.') {
        None
    } else {
        name(&format!("{relative}.{domain}"))
    }
}

/// Whether a name is a domain's own or lies in it; both as [`name`] answers them.
pub fn is_in(name: &str, domain: &str) -> bool {
    let rest = name.strip_suffix(domain);
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The label by which a port is known in the domain of its VPC: its hostname, or else its id; none if neither is a label.
pub fn label_of(port: &Port) -> Option<String> {
    let text = if port.hostname.is_empty() {
        &port.id
    } else {
        &port.hostname
    };
    let is_plain = !text.contains(['.', '_']);
    name(text).filter(|_| is_plain)
}

/// The address that a name of in-addr.arpa or ip6.arpa stands for (RFC 1035 §3.5, RFC 3596 §2.5), and whether the name is that of the address itself, and not
/// one below it. None for a name of part of an address.
pub fn reversed(name: &str) -> Option<(IpAddr, bool)> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let mut labels = rest.rsplit('.');
        let mut octets = [0; 4];
        for octet in &mut octets {
            let label = labels.next()?;
            *octet = label.parse().ok().filter(|n: &u8| n.to_string() == label)?;
        }
        return Some((Ipv4Addr::from(octets).into(), labels.next().is_none()));
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let mut labels = rest.rsplit('.');
    let mut bits = 0;
    for _ in 0..32 {
        let label = labels.next().filter(|label| label.len() == 1)?;
        bits = bits << 4 | u128::from_str_radix(label, 16).ok()?;
    }
    Some((Ipv6Addr::from_bits(bits).into(), labels.next().is_none()))
}

/// Whether a name is that of part of an address, below which those of addresses are: in-addr.arpa or ip6.arpa after fewer octets or nibbles than an address has.
pub fn is_part_of_address(name: &str) -> bool {
    let is_octet = |label: &str| label.parse::<u8>().is_ok_and(|n| n.to_string() == label);
    let is_nibble = |label: &str| label.len() == 1 && label.bytes().all(|b| b.is_ascii_hexdigit());
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        rest.split('.').count() < 4 && rest.split('.').all(is_octet)
    } else if let Some(rest) = name.strip_suffix(".ip6.arpa") {
        rest.split('.').count() < 32 && rest.split('.').all(is_nibble)
    } else {
        matches!(name, "in-addr.arpa" | "ip6.arpa")
    }
}

impl DnsZone {
    /// Its domain as it is compared; empty if it is not a name.
    pub fn origin(&self) -> String {
        name(&self.domain).unwrap_or_default()
    }
}

impl DnsRecord {
    /// Seconds that its answers may be kept.
    pub fn seconds(&self) -> u32 {
        if self.ttl == 0 { DEFAULT_TTL } else { self.ttl }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_in_lower_case_without_their_dot() {
        assert_eq!(
            name("Web-1.Blue.Example."),
            Some("web-1.blue.example".into())
        );
        assert_eq!(name("_http._tcp.blue"), Some("_http._tcp.blue".into()));
        let long = "a.".repeat(127) + "b";
        for wrong in [
            "",
            ".",
            "a..b",
            "-a",
            "a-",
            "a b",
            "*.a",
            &"a".repeat(64),
            &long,
        ] {
            assert_eq!(name(wrong), None, "{wrong}");
        }
        assert_eq!(name_in("", "Blue.example."), Some("blue.example".into()));
        assert_eq!(
            name_in("www", "blue.example"),
            Some("www.blue.example".into())
        );
        assert_eq!(name_in("www.", "blue.example"), None);
        assert!(is_in("a.blue.example", "blue.example") && is_in("blue.example", "blue.example"));
        assert!(!is_in("ablue.example", "blue.example"));
    }

    #[test]
    fn reverse_names_are_those_of_whole_addresses() {
        let v4: IpAddr = "10.0.2.7".parse().unwrap();
        assert_eq!(reversed("7.2.0.10.in-addr.arpa"), Some((v4, true)));
        assert_eq!(reversed("x.7.2.0.10.in-addr.arpa"), Some((v4, false)));
        for wrong in [
            "2.0.10.in-addr.arpa",
            "07.2.0.10.in-addr.arpa",
            "in-addr.arpa",
            "256.2.0.10.in-addr.arpa",
        ] {
            assert_eq!(reversed(wrong), None, "{wrong}");
        }
        let nibbles = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f";
        let v6: IpAddr = "fd00::1".parse().unwrap();
        assert_eq!(reversed(&format!("{nibbles}.ip6.arpa")), Some((v6, true)));
        assert_eq!(reversed(&format!("{}.ip6.arpa", &nibbles[2..])), None);
    }

    #[test]
    fn parts_of_addresses_are_fewer_octets_or_nibbles() {
        for part in [
            "in-addr.arpa",
            "10.in-addr.arpa",
            "2.0.10.in-addr.arpa",
            "d.f.ip6.arpa",
            "ip6.arpa",
        ] {
            assert!(is_part_of_address(part), "{part}");
        }
        for other in [
            "arpa",
            "home.arpa",
            "10.home.arpa",
            "x.10.in-addr.arpa",
            "010.in-addr.arpa",
            "7.2.0.10.in-addr.arpa",
            "10.in-addr.arpa.example",
            "df.ip6.arpa",
            "xin-addr.arpa",
        ] {
            assert!(!is_part_of_address(other), "{other}");
        }
    }

    #[test]
    fn data_is_read_by_its_type() {
        let read = |kind, text| Data::parse(kind, text);
        assert_eq!(
            read("SRV", "1 2 443 Web.Example."),
            Ok(Data::Srv([1, 2, 443], "web.example".into()))
        );
        assert_eq!(
            read("MX", "10 mail.example"),
            Ok(Data::Mx(10, "mail.example".into()))
        );
        for (kind, text) in [
            ("A", "fd00::1"),
            ("AAAA", "10.0.0.1"),
            ("SRV", "1 2 web.example"),
            ("SRV", "1 2 65536 web.example"),
            ("MX", "10 a b"),
            ("TXT", ""),
            ("CNAME", ""),
            ("NS", "ns.example"),
        ] {
            assert!(read(kind, text).is_err(), "{kind} {text}");
        }
    }
}
