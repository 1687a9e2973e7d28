//! Policy routes of a route table: each has a priority of its own, something that it matches, and one place where that goes.

use std::collections::HashMap;

use super::policy::{MAX_RULE_NUMBER, check_ports};
use super::{At, Index, Report, limits, route};
use crate::address::{parse_prefix, parse_protocol};
use crate::v1;

pub(super) fn check(at: At<'_>, table: &v1::RouteTable, index: &Index<'_>, report: &mut Report) {
    let count = table.policies.len();
    let most = ("a route table has", limits::TABLE_POLICIES, "policy routes");
    if !report.within(at, "policies", count, most) {
        return;
    }
    let mut priorities = HashMap::new();
    for (i, policy) in table.policies.iter().enumerate() {
        let field = format!("policies[{i}]");
        let priority = policy.priority;
        if priority == 0 || priority > MAX_RULE_NUMBER {
            let rule = format!("{priority} is outside 1 to {MAX_RULE_NUMBER}");
            report.add(at, format!("{field}.priority"), rule);
        }
        if let Some(first) = priorities.insert(priority, i) {
            let rule = format!("{priority} is already used by policies[{first}]");
            report.add(at, format!("{field}.priority"), rule);
        }
        check_match(at, &field, policy, report);
        match (&policy.to, policy.default_routing) {
            (Some(to), false) => {
                let field = format!("{field}.to");
                if !to.prefix.is_empty() {
                    let rule = "a policy route matches by its own fields: leave prefix empty";
                    report.add(at, format!("{field}.prefix"), rule);
                }
                route::check_target(at, &field, table, to, index, report);
            }
            (None, true) => {}
            _ => report.add(at, &field, "exactly one of to and default_routing is set"),
        }
    }
}

fn check_match(at: At<'_>, field: &str, policy: &v1::PolicyRoute, report: &mut Report) {
    let protocol = format!("{field}.protocol");
    let protocol = report.take(at, protocol, parse_protocol(&policy.protocol));
    // Of a protocol that nobody knows, nothing that goes with it is known either.
    if let Some(protocol) = protocol {
        let (min, max) = (policy.source_port_min, policy.source_port_max);
        check_ports(at, field, ("source_port", min, max), protocol, report);
        let (min, max) = (policy.destination_port_min, policy.destination_port_max);
        check_ports(at, field, ("destination_port", min, max), protocol, report);
    }
    let of_protocol = match protocol.flatten() {
        Some(1) => Some(true),
        Some(58) => Some(false),
        _ => None,
    };
    let mut families = Vec::from_iter(of_protocol);
    for (name, text) in [
        ("source", &policy.source),
        ("destination", &policy.destination),
    ] {
        if !text.is_empty() {
            let prefix = report.take(at, format!("{field}.{name}"), parse_prefix(text));
            families.extend(prefix.map(|prefix| prefix.is_ipv4()));
        }
    }
    if families.iter().any(|v4| *v4 != families[0]) {
        let rule = "IPv4 and IPv6 are mixed in source, destination and protocol";
        report.add(at, field, rule);
    }
    if let Some(dscp) = policy.dscp {
        check_dscp(at, format!("{field}.dscp"), dscp, report);
    }
    // Ports come with a protocol.
    let matches_all = policy.source.is_empty()
        && policy.destination.is_empty()
        && protocol == Some(None)
        && policy.dscp.is_none();
    if matches_all {
        let rule = "set source, destination, protocol or dscp: a policy route for everything is a default route";
        report.add(at, field, rule);
    }
}

/// Six bits (RFC 2474 §3).
pub(super) fn check_dscp(at: At<'_>, field: impl Into<String>, dscp: u32, report: &mut Report) {
    if dscp > 63 {
        report.add(at, field, format!("{dscp} is outside 0 to 63"));
    }
}
