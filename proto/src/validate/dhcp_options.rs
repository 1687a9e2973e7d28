//! Rules on the DHCP options that a subnet and a port give: each by itself, and that answers have room for all of them.

use std::collections::BTreeMap;

use ipnetwork::Ipv4Network;

use super::{At, Index, Report, limits};
use crate::dhcp_option::{Code, Parsed, parse};
use crate::state::{Kind, Object};
use crate::v1;

/// Bytes ahead of the value of a DHCP option, and of a DHCPv6 option.
const HEADER_V4: usize = 2;
const HEADER_V6: usize = 4;

/// `dns`: what the gateway tells guests where the subnet does not ([`dns_of`]).
pub(super) fn check_subnet(
    at: At<'_>,
    dhcp: &v1::Dhcp,
    dns: Option<&v1::VpcDns>,
    report: &mut Report,
) {
    let field = "dhcp.options";
    if check_each(at, field, &dhcp.options, report)
        && let Some(rule) = broken_by_size((dhcp, dns), &[], "")
    {
        report.add(at, field, rule);
    }
}

/// The DNS that guests of a subnet are told of where the subnet leaves it open.
pub(super) fn dns_of<'a>(subnet: &v1::Subnet, index: &Index<'a>) -> Option<&'a v1::VpcDns> {
    match index.find(Kind::Vpc, &subnet.vpc)? {
        Object::Vpc(vpc) if subnet.external_network.is_empty() => vpc.dns.as_ref(),
        _ => None,
    }
}

pub(super) fn check_port(
    at: At<'_>,
    port: &v1::Port,
    (index, subnet): (&Index<'_>, Option<&v1::Subnet>),
    report: &mut Report,
) {
    let field = "dhcp_options";
    let Some(subnet) = subnet else {
        check_each(at, field, &port.dhcp_options, report);
        return;
    };
    let nothing = v1::Dhcp::default();
    let dhcp = subnet.dhcp.as_ref().unwrap_or(&nothing);
    let told = (dhcp, dns_of(subnet, index));
    // Of a subnet that gives too much already, its own options are to blame.
    let subnet_gives_too_much =
        || dhcp.options.len() > limits::DHCP_OPTIONS || broken_by_size(told, &[], "").is_some();
    if check_each(at, field, &port.dhcp_options, report)
        && let Some(rule) = broken_by_size(told, &port.dhcp_options, &port.hostname)
        && !subnet_gives_too_much()
    {
        report.add(at, field, rule);
    }
}

/// Whether there are not too many, each is good, and each there once.
fn check_each(at: At<'_>, field: &str, options: &[v1::DhcpOption], report: &mut Report) -> bool {
    let bound = ("a subnet or port has", limits::DHCP_OPTIONS, "DHCP options");
    if !report.within(at, field, options.len(), bound) {
        return false;
    }
    let mut good = true;
    let mut seen: BTreeMap<Code, usize> = BTreeMap::new();
    for (i, option) in options.iter().enumerate() {
        match parse(option) {
            Ok(Parsed { code, .. }) => {
                if let Some(before) = seen.insert(code, i) {
                    let rule = format!("the option of {field}[{before}] is given twice");
                    report.add(at, format!("{field}[{i}].name"), rule);
                    good = false;
                }
            }
            Err(refused) => {
                report.add(at, format!("{field}[{i}].{}", refused.field), refused.rule);
                good = false;
            }
        }
    }
    good
}

/// The rule that all of what a guest is told breaks together; none if every answer has room for it, or no option is given.
fn broken_by_size(
    (dhcp, dns): (&v1::Dhcp, Option<&v1::VpcDns>),
    of_port: &[v1::DhcpOption],
    hostname: &str,
) -> Option<String> {
    if dhcp.options.is_empty() && of_port.is_empty() {
        return None;
    }
    let mut given: BTreeMap<Code, usize> = BTreeMap::new();
    let mut all = own_lengths(dhcp, dns);
    let options = dhcp.options.iter().take(limits::DHCP_OPTIONS);
    for option in options.chain(of_port) {
        // What is wrong by itself is told where it is.
        let Ok(parsed) = parse(option) else { continue };
        given.insert(parsed.code, parsed.value.len());
        all.insert(parsed.code, parsed.value.len());
    }
    let size = |code: Code, len: usize| match (code, len) {
        (_, 0) | (Code::NextServer, _) => (0, 0),
        (Code::V4(_), len) => (HEADER_V4 + len, 0),
        (Code::V6(_), len) => (0, HEADER_V6 + len),
    };
    let sum = |all: &BTreeMap<Code, usize>| {
        let sizes = all.iter().map(|(code, len)| size(*code, *len));
        sizes.fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1))
    };
    let ((given_v4, given_v6), (mut all_v4, _)) = (sum(&given), sum(&all));
    if !hostname.is_empty() {
        all_v4 += HEADER_V4 + hostname.len();
    }
    let (most_v4, most_v6) = (limits::DHCP_OPTION_BYTES, limits::DHCP6_OPTION_BYTES);
    if given_v4 > 0 && all_v4 > most_v4 {
        return Some(format!(
            "with the network's own parameters these are {all_v4} bytes of DHCP options; an answer that every client takes has room for {most_v4}"
        ));
    }
    (given_v6 > most_v6).then(|| {
        format!("these are {given_v6} bytes of DHCPv6 options; an answer has room for {most_v6}")
    })
}

/// Lengths of the values of what guests are told without any option given.
fn own_lengths(dhcp: &v1::Dhcp, dns: Option<&v1::VpcDns>) -> BTreeMap<Code, usize> {
    let servers = match dns {
        // The gateway.
        Some(_) if dhcp.dns_servers.is_empty() => 1,
        _ => {
            let servers = dhcp.dns_servers.iter();
            servers.filter(|text| !text.contains(':')).count()
        }
    };
    let domain = match dns {
        Some(dns) if dhcp.domain.is_empty() => &dns.domain,
        _ => &dhcp.domain,
    };
    let routes = dhcp.routes.iter().take(limits::SUBNET_DHCP_ROUTES);
    let routes = routes.filter_map(|route| route.prefix.parse::<Ipv4Network>().ok());
    // The default route, and the one to the metadata service.
    let routes: usize = routes
        .map(|prefix| usize::from(1 + prefix.prefix().div_ceil(8) + 4))
        .sum::<usize>()
        + 5
        + 9;
    BTreeMap::from([
        (Code::V4(3), 4),
        (Code::V4(6), 4 * servers),
        (Code::V4(15), domain.len()),
        (Code::V4(26), 2),
        (Code::V4(121), routes),
    ])
}
