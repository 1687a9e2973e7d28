//! Rules on a subnet's DHCP, DHCPv6 and router advertisement settings, and on the names in them.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{At, Report, dhcp_options, limits};
use crate::address::{parse_address, parse_prefix};
use crate::v1;

/// A shorter lease keeps guests and workers busy with nothing else.
const LEAST_LEASE: u32 = 60;
/// Bytes of a domain name as text (RFC 1035 §2.3.4: 255 as it is sent).
const MAX_NAME: usize = 253;
/// Bytes of a label.
const MAX_LABEL: usize = 63;
/// The modes that `ipv6_mode` names.
const MODES: [&str; 3] = ["dhcpv6-stateful", "dhcpv6-stateless", "slaac"];

/// `dns`: what the gateway tells guests where the subnet does not.
pub(super) fn check(
    at: At<'_>,
    (dhcp, dns): (&v1::Dhcp, Option<&v1::VpcDns>),
    prefixes: &[IpNetwork],
    report: &mut Report,
) {
    check_servers(at, dhcp, report);
    if !dhcp.domain.is_empty() && !is_domain(&dhcp.domain) {
        let rule = format!(
            "'{}' is not a domain name: labels of 1 to {MAX_LABEL} letters, digits and inner hyphens, joined by dots, at most {MAX_NAME} \
             characters",
            dhcp.domain
        );
        report.add(at, "dhcp.domain", rule);
    }
    if dhcp.lease_seconds != 0 && dhcp.lease_seconds < LEAST_LEASE {
        let rule = format!("{} is less than {LEAST_LEASE}", dhcp.lease_seconds);
        report.add(at, "dhcp.lease_seconds", rule);
    }
    check_routes(at, dhcp, prefixes, report);
    check_mode(at, dhcp, prefixes, report);
    dhcp_options::check_subnet(at, dhcp, dns, report);
}

fn check_servers(at: At<'_>, dhcp: &v1::Dhcp, report: &mut Report) {
    let field = "dhcp.dns_servers";
    let bound = ("a subnet has", limits::SUBNET_DNS_SERVERS, "DNS servers");
    if !report.within(at, field, dhcp.dns_servers.len(), bound) {
        return;
    }
    let mut seen = HashSet::new();
    for (i, text) in dhcp.dns_servers.iter().enumerate() {
        let field = format!("{field}[{i}]");
        let Some(address) = report.take(at, field.clone(), parse_address(text)) else {
            continue;
        };
        if !is_host(address) {
            let rule = format!("{address} is not a unicast address");
            report.add(at, field, rule);
        } else if !seen.insert(address) {
            report.add(at, field, format!("{address} is given twice"));
        }
    }
}

/// Whether one host may have it: not unspecified, loopback, a group's or the limited broadcast.
fn is_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || broadcast
        || mapped)
}

fn check_routes(at: At<'_>, dhcp: &v1::Dhcp, prefixes: &[IpNetwork], report: &mut Report) {
    let bound = ("a subnet has", limits::SUBNET_DHCP_ROUTES, "routes");
    if !report.within(at, "dhcp.routes", dhcp.routes.len(), bound) {
        return;
    }
    let own = prefixes.iter().find(|prefix| prefix.is_ipv4());
    let mut seen = HashSet::new();
    for (i, route) in dhcp.routes.iter().enumerate() {
        let field = format!("dhcp.routes[{i}].prefix");
        match report.take(at, field.clone(), parse_prefix(&route.prefix)) {
            Some(prefix) if prefix.is_ipv6() => {
                let rule = "DHCP tells IPv4 routes; what is IPv6 goes through the gateway";
                report.add(at, field, rule);
            }
            Some(prefix) if !seen.insert(prefix) => {
                report.add(at, field, format!("{prefix} already has a route"));
            }
            _ => {}
        }
        let field = format!("dhcp.routes[{i}].next_hop");
        if let Some(hop) = report.take(at, field.clone(), parse_address(&route.next_hop))
            && !own.is_some_and(|prefix| prefix.contains(hop))
        {
            let rule = format!("{hop} is not in an IPv4 prefix of the subnet");
            report.add(at, field, rule);
        }
    }
}

fn check_mode(at: At<'_>, dhcp: &v1::Dhcp, prefixes: &[IpNetwork], report: &mut Report) {
    let (field, mode) = ("dhcp.ipv6_mode", dhcp.ipv6_mode.as_str());
    if mode.is_empty() {
        return;
    }
    if !MODES.contains(&mode) {
        let rule = format!("'{mode}' is not one of {}", MODES.join(", "));
        report.add(at, field, rule);
        return;
    }
    match prefixes.iter().find(|prefix| prefix.is_ipv6()) {
        None => report.add(at, field, "the subnet has no IPv6 prefix"),
        Some(prefix) if mode != MODES[0] && prefix.prefix() != 64 => {
            let rule = format!("SLAAC needs a /64 (RFC 4862 5.5.3); the prefix is {prefix}");
            report.add(at, field, rule);
        }
        Some(_) => {}
    }
}

/// Whether a text is one label of a host's name (RFC 1123 §2.1).
pub(super) fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    (1..=MAX_LABEL).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether a text is a domain name: labels joined by dots.
pub(crate) fn is_domain(text: &str) -> bool {
    text.len() <= MAX_NAME && text.split('.').all(is_label)
}
