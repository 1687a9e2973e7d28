//! DHCP and DHCPv6 options that subnets and ports give to guests: their names, and their values as clients read them.
//!
//! Validation and the compiler both read options here, so that what one accepts the other can send.

mod table;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::Ipv4Network;
use thiserror::Error;

use crate::v1;
use crate::validate::is_domain;
pub use table::{KNOWN, Known, Type};

/// What begins a value that is written byte by byte.
const HEX: &str = "hex:";
/// Characters of a wrong text that an error repeats.
const SHOWN: usize = 64;
/// Bytes of a DHCP option.
const LONGEST_V4: usize = 255;

/// What an option is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// No option but a field of the DHCP message (`siaddr`): the server of the next step of booting.
    NextServer,
    /// A DHCP option by its number.
    V4(u8),
    /// A DHCPv6 option by its number.
    V6(u16),
}

/// An option as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// What it is.
    pub code: Code,
    /// Its value without code and length. Empty: the option is not to be sent.
    pub value: Vec<u8>,
    /// Whether clients that do not ask for it are told, too.
    pub force: bool,
}

/// Why an option is refused, and in which of its fields.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {rule}")]
pub struct Refused {
    /// `name`, `value`, `family` or `force`.
    pub field: &'static str,
    /// The rule.
    pub rule: String,
}

fn refused(field: &'static str, rule: impl Into<String>) -> Refused {
    Refused {
        field,
        rule: rule.into(),
    }
}

/// The longest text of a name, in bytes.
const LONGEST_NAME: usize = 64;
/// The longest text of a value, in bytes: more than any value that fits has as hex or as a list of routes.
const LONGEST_VALUE: usize = 4096;

/// Reads an option.
///
/// # Errors
/// The family or the name is unknown, the option is not for anybody to give, or the value is not of the option's type and length.
pub fn parse(option: &v1::DhcpOption) -> Result<Parsed, Refused> {
    // Before anything is read: spaces and leading zeros would pass for nothing, however many.
    for (field, text, most) in [
        ("name", &option.name, LONGEST_NAME),
        ("value", &option.value, LONGEST_VALUE),
    ] {
        if text.len() > most {
            let rule = format!("{} bytes of text exceed {most}", text.len());
            return Err(refused(field, rule));
        }
    }
    let is_v6 = match option.family.as_str() {
        "" | "ipv4" => false,
        "ipv6" => true,
        other => {
            let rule = format!("'{}' is not one of ipv4, ipv6", shown(other));
            return Err(refused("family", rule));
        }
    };
    let code = code_of(&option.name, is_v6)?;
    if let Some(why) = table::reserved(code) {
        return Err(refused("name", format!("'{}' {why}", option.name)));
    }
    let known = KNOWN.iter().find(|known| known.code == code);
    let kind = known.map_or(Type::Unknown, |known| known.value);
    let value = match option.value.as_str() {
        "" => Vec::new(),
        text => value_of(text, kind, is_v6)
            .map_err(|rule| refused("value", format!("of {}: {rule}", option.name)))?,
    };
    check_numbers(code, &value)?;
    if option.force && (code == Code::NextServer || value.is_empty()) {
        let rule = "is for an option that has a value; server-ip-address is always told";
        return Err(refused("force", rule));
    }
    Ok(Parsed {
        code,
        value,
        force: option.force,
    })
}

/// Bounds of the options that have narrower ones than their types.
fn check_numbers(code: Code, value: &[u8]) -> Result<(), Refused> {
    let number = value
        .iter()
        .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let (least, most) = match code {
        Code::V4(23 | 37) => (1, 255),
        Code::V4(26) => (68, 65535),
        Code::V4(22) => (576, 65535),
        // RFC 8925 3.4, RFC 8415 21.23.
        Code::V4(108) => (300, u64::from(u32::MAX)),
        Code::V6(32) => (600, u64::from(u32::MAX)),
        _ => return Ok(()),
    };
    if value.is_empty() || (least..=most).contains(&number) {
        return Ok(());
    }
    let rule = format!("{number} is outside {least} to {most}");
    Err(refused("value", rule))
}

fn code_of(name: &str, is_v6: bool) -> Result<Code, Refused> {
    let of_family = |code: Code| matches!(code, Code::V6(_)) == is_v6;
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        let rule = |most: u32| {
            let rule = format!("{} is outside 1 to {most}", shown(name));
            refused("name", rule)
        };
        return if is_v6 {
            let number = name.parse().ok().filter(|number| *number != 0);
            number.map(Code::V6).ok_or_else(|| rule(65535))
        } else {
            let number = name.parse().ok().filter(|it| (1..=254).contains(it));
            number.map(Code::V4).ok_or_else(|| rule(254))
        };
    }
    let known = KNOWN
        .iter()
        .flat_map(|known| known.names.iter().map(|name| (*name, known.code)));
    let mut all = known.chain(table::RESERVED_NAMES.iter().copied());
    let found = all.find(|(known, code)| *known == name && of_family(*code));
    found.map(|(_, code)| code).ok_or_else(|| {
        let family = if is_v6 { "DHCPv6" } else { "DHCP" };
        let rule = format!(
            "'{}' is not the name of a {family} option: give its number",
            shown(name)
        );
        refused("name", rule)
    })
}

/// The beginning of a text that may be of any length.
fn shown(text: &str) -> String {
    text.chars()
        .take(SHOWN)
        .flat_map(char::escape_default)
        .collect()
}

/// A value as it is sent; not empty. The error is the rule that it breaks.
fn value_of(text: &str, kind: Type, is_v6: bool) -> Result<Vec<u8>, String> {
    let value = match kind {
        Type::Bytes => hex(text).ok_or_else(|| not(text, "hex: and bytes of two digits"))??,
        Type::Unknown | Type::Text => match hex(text) {
            Some(bytes) => bytes?,
            None => printable(text)?,
        },
        Type::Domain => {
            one_domain(text)?;
            text.as_bytes().to_vec()
        }
        Type::Domains => each(text, wire_name)?,
        Type::Address if is_v6 => one::<Ipv6Addr>(text, "an IPv6 address")?.octets().into(),
        Type::Address => one::<Ipv4Addr>(text, "an IPv4 address")?.octets().into(),
        Type::Addresses => each(text, |text| match (text.parse(), is_v6) {
            (Ok(IpAddr::V4(address)), false) => Ok(address.octets().into()),
            (Ok(IpAddr::V6(address)), true) => Ok(address.octets().into()),
            _ if is_v6 => Err(not(text, "an IPv6 address")),
            _ => Err(not(text, "an IPv4 address")),
        })?,
        Type::AddressPairs => {
            let pairs = each(text, |text| {
                let address = one::<Ipv4Addr>(text, "an IPv4 address")?;
                Ok(address.octets().into())
            })?;
            if !pairs.len().is_multiple_of(8) {
                return Err("addresses come in pairs".to_owned());
            }
            pairs
        }
        Type::Routes => routes(text)?,
        Type::U8 => one::<u8>(text, "a number from 0 to 255")?
            .to_be_bytes()
            .into(),
        Type::U16 => one::<u16>(text, "a number from 0 to 65535")?
            .to_be_bytes()
            .into(),
        Type::U32 => one::<u32>(text, "a number from 0 to 4294967295")?
            .to_be_bytes()
            .into(),
        Type::I32 => one::<i32>(text, "a number from -2147483648 to 2147483647")?
            .to_be_bytes()
            .into(),
        Type::Bool => match text {
            "true" | "1" => vec![1],
            "false" | "0" => vec![0],
            _ => return Err(not(text, "true or false")),
        },
        Type::Texts => each(text, |text| Ok(with_length(&printable(text)?)))?,
        Type::NtpServers => each(text, ntp_server)?,
    };
    let most = if is_v6 { 65535 } else { LONGEST_V4 };
    match value.len() {
        0 => Err("no bytes".to_owned()),
        len if len > most => Err(format!("{len} bytes are more than an option's {most}")),
        _ => Ok(value),
    }
}

fn not(text: &str, what: &str) -> String {
    format!("'{}' is not {what}", shown(text))
}

fn one<T: FromStr>(text: &str, what: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| not(text, what))
}

/// The parts of a list, each as it is sent, one after the other.
fn each(text: &str, part: impl Fn(&str) -> Result<Vec<u8>, String>) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    for text in text.split(',') {
        all.extend(part(text.trim())?);
    }
    Ok(all)
}

/// What follows `hex:`; none if nothing does.
fn hex(text: &str) -> Option<Result<Vec<u8>, String>> {
    let digits = text.strip_prefix(HEX)?.as_bytes();
    let pair = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).ok()?;
        let is_hex = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| u8::from_str_radix(text, 16).ok()).flatten()
    };
    let bytes: Option<Vec<u8>> = digits.chunks(2).map(pair).collect();
    Some(bytes.ok_or_else(|| not(text, "hex: and bytes of two digits")))
}

fn printable(text: &str) -> Result<Vec<u8>, String> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(not(text, "a text without control characters"));
    }
    Ok(text.as_bytes().to_vec())
}

fn one_domain(text: &str) -> Result<(), String> {
    is_domain(text)
        .then_some(())
        .ok_or_else(|| not(text, "a domain name"))
}

/// A name as RFC 1035 §3.1 writes it, without compression.
fn wire_name(name: &str) -> Result<Vec<u8>, String> {
    one_domain(name)?;
    let mut wire = Vec::new();
    for label in name.split('.') {
        // A label of a domain name has at most 63 bytes.
        wire.push(label.len() as u8);
        wire.extend(label.as_bytes());
    }
    wire.push(0);
    Ok(wire)
}

/// RFC 3442: prefixes without the bytes that say nothing, each with its next hop.
fn routes(text: &str) -> Result<Vec<u8>, String> {
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let mut wire = Vec::new();
    for pair in parts.chunks(2) {
        let [prefix, next_hop] = pair else {
            return Err("every prefix needs a next hop, as in 10.9.0.0/16,10.0.0.5".to_owned());
        };
        let network: Ipv4Network = one(prefix, "an IPv4 prefix")?;
        if network.ip() != network.network() {
            return Err(not(prefix, "a prefix: it has host bits set"));
        }
        let next_hop: Ipv4Addr = one(next_hop, "an IPv4 address")?;
        let significant = usize::from(network.prefix().div_ceil(8));
        wire.push(network.prefix());
        wire.extend(network.network().octets().iter().take(significant));
        wire.extend(next_hop.octets());
    }
    Ok(wire)
}

/// Bytes with their number ahead.
fn with_length(bytes: &[u8]) -> Vec<u8> {
    // Whoever calls this bounds the whole.
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&len.to_be_bytes()[..], bytes].concat()
}

/// RFC 5908 §4: a server by its address, a group's or its own, or by its name.
fn ntp_server(text: &str) -> Result<Vec<u8>, String> {
    let (kind, value) = match text.parse::<Ipv6Addr>() {
        Ok(address) if address.is_multicast() => (2u16, address.octets().to_vec()),
        Ok(address) => (1, address.octets().to_vec()),
        Err(_) => (3, wire_name(text)?),
    };
    Ok([&kind.to_be_bytes()[..], &with_length(&value)].concat())
}

#[cfg(test)]
mod tests;
