//! Subnets: their prefixes, gateways and references; `dhcp` has their DHCP settings.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{At, Index, Report, check_reference, dhcp, dhcp_options, wire};
use crate::address::{first_address, parse_address, parse_mac, parse_prefix, special_use};
use crate::state::{Kind, Object};
use crate::v1;

pub(super) fn check(at: At<'_>, subnet: &v1::Subnet, index: &Index<'_>, report: &mut Report) {
    index.require_vpc(at, &subnet.vpc, report);
    let vpc = &subnet.vpc;
    check_reference(
        index,
        (Kind::RouteTable, &subnet.route_table),
        vpc,
        (at, "route_table"),
        report,
    );
    check_reference(
        index,
        (Kind::NetworkAcl, &subnet.network_acl),
        vpc,
        (at, "network_acl"),
        report,
    );
    let prefixes = check_prefixes(at, subnet, report);
    check_gateways(at, subnet, &prefixes, report);
    if !subnet.gateway_mac.is_empty() {
        report.take(at, "gateway_mac", parse_mac(&subnet.gateway_mac));
    }
    let least = if prefixes.iter().any(IpNetwork::is_ipv6) {
        1280
    } else {
        576
    };
    if subnet.mtu != 0 && (subnet.mtu < least || subnet.mtu > 65535) {
        report.add(
            at,
            "mtu",
            format!("{} is outside {least} to 65535", subnet.mtu),
        );
    }
    if let Some(dhcp) = &subnet.dhcp {
        let dns = dhcp_options::dns_of(subnet, index);
        dhcp::check(at, (dhcp, dns), &prefixes, report);
    }
    check_multicast(at, subnet, report);
    if !subnet.external_network.is_empty() {
        wire::check_subnet(at, subnet, index, report);
    }
}

fn check_multicast(at: At<'_>, subnet: &v1::Subnet, report: &mut Report) {
    match subnet.multicast.as_str() {
        "" | "flood" => {}
        "snooping" if subnet.external_network.is_empty() => {}
        "snooping" => {
            let rule = "a subnet on an external network has no querier of its own: leave it empty";
            report.add(at, "multicast", rule);
        }
        other => {
            let rule = format!("'{other}' is neither flood nor snooping");
            report.add(at, "multicast", rule);
        }
    }
}

fn check_prefixes(at: At<'_>, subnet: &v1::Subnet, report: &mut Report) -> Vec<IpNetwork> {
    if subnet.cidrs.is_empty() {
        report.add(at, "cidrs", "a subnet needs at least one prefix");
    }
    let mut prefixes: Vec<IpNetwork> = Vec::new();
    for (i, text) in subnet.cidrs.iter().enumerate() {
        let field = format!("cidrs[{i}]");
        let Some(prefix) = report.take(at, field.clone(), parse_prefix(text)) else {
            continue;
        };
        if prefixes.iter().any(|p| p.is_ipv4() == prefix.is_ipv4()) {
            let family = if prefix.is_ipv4() { "IPv4" } else { "IPv6" };
            report.add(
                at,
                field,
                format!("a subnet has at most one {family} prefix"),
            );
            continue;
        }
        let longest = if prefix.is_ipv4() { 30 } else { 126 };
        if let Some(what) = special_use(prefix) {
            let rule = format!("{prefix} contains {what} addresses, which guests cannot have");
            report.add(at, field, rule);
        } else if prefix.prefix() > longest {
            let rule =
                format!("a prefix longer than /{longest} is too small for a gateway and a port");
            report.add(at, field, rule);
        }
        prefixes.push(prefix);
    }
    prefixes
}

fn check_gateways(at: At<'_>, subnet: &v1::Subnet, prefixes: &[IpNetwork], report: &mut Report) {
    if subnet.gateways.is_empty() {
        return;
    }
    if subnet.gateways.len() != subnet.cidrs.len() && subnet.external_network.is_empty() {
        let rule = "set none, or one for each prefix";
        report.add(at, "gateways", rule);
    }
    let mut served: Vec<IpNetwork> = Vec::new();
    for (i, text) in subnet.gateways.iter().enumerate() {
        let field = format!("gateways[{i}]");
        let Some(gateway) = report.take(at, field.clone(), parse_address(text)) else {
            continue;
        };
        match prefixes.iter().find(|prefix| prefix.contains(gateway)) {
            None => report.add(
                at,
                field,
                format!("{gateway} is in no prefix of the subnet"),
            ),
            Some(prefix) if served.contains(prefix) => {
                report.add(at, field, format!("{prefix} already has a gateway"));
            }
            Some(prefix) => {
                // Every IPv6 router has the network address, too (RFC 4291 §2.6.1): OpenStack names it as the gateway where nobody says otherwise.
                if let Some(what) = reserved(*prefix, gateway).filter(|_| gateway.is_ipv4()) {
                    let rule = format!("{gateway} is the {what} address of {prefix}");
                    report.add(at, field, rule);
                }
                served.push(*prefix);
            }
        }
    }
}

/// What an address of a prefix is kept for, if anything.
pub(super) fn reserved(prefix: IpNetwork, address: IpAddr) -> Option<&'static str> {
    if address == prefix.network() {
        Some("network")
    } else if prefix.is_ipv4() && address == prefix.broadcast() {
        Some("broadcast")
    } else {
        None
    }
}

/// The prefixes of a subnet, those that parse, each with its gateway. On an external network there may be none.
pub(super) fn prefixes_and_gateways(subnet: &v1::Subnet) -> Vec<(IpNetwork, Option<IpAddr>)> {
    let gateways: Vec<IpAddr> = subnet
        .gateways
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    subnet
        .cidrs
        .iter()
        .filter_map(|text| parse_prefix(text).ok())
        .map(|prefix| {
            let named = gateways.iter().find(|gateway| prefix.contains(**gateway));
            let first = subnet
                .external_network
                .is_empty()
                .then(|| first_address(prefix));
            (prefix, named.copied().or(first))
        })
        .collect()
}

/// No two prefixes of a VPC's subnets overlap.
pub(super) fn check_overlap(index: &Index<'_>, report: &mut Report) {
    let mut by_vpc: HashMap<&str, Vec<(IpNetwork, &str, usize)>> = HashMap::new();
    for object in &index.objects {
        let Object::Subnet(subnet) = object else {
            continue;
        };
        let all = by_vpc.entry(&subnet.vpc).or_default();
        for (i, text) in subnet.cidrs.iter().enumerate() {
            if let Ok(prefix) = parse_prefix(text) {
                all.push((prefix, &subnet.id, i));
            }
        }
    }
    let mut vpcs: Vec<_> = by_vpc.into_iter().collect();
    vpcs.sort_unstable_by_key(|(vpc, _)| *vpc);
    for (_, mut all) in vpcs {
        // By address, the wider first: two prefixes overlap only if one holds the other, and whatever holds the next comes before it.
        all.sort_unstable_by_key(|(p, id, i)| (p.network(), p.prefix(), *id, *i));
        let mut widest: Option<(IpNetwork, &str)> = None;
        for (prefix, id, i) in all {
            match widest {
                // Two of one family in one subnet are refused already.
                Some((other, owner)) if other.contains(prefix.network()) && owner != id => {
                    let at = At {
                        kind: Kind::Subnet,
                        id,
                    };
                    let rule = format!("{prefix} overlaps {other} of subnet '{owner}'");
                    report.add(at, format!("cidrs[{i}]"), rule);
                }
                Some((other, _)) if other.contains(prefix.network()) => {}
                _ => widest = Some((prefix, id)),
            }
        }
    }
}
