//! Route tables: every route has exactly one target, which exists. What of it is policy routes is in `policy_route`.

use std::collections::{HashMap, HashSet};

use super::{At, Index, Report, check_reference, limits, policy_route, wire};
use crate::address::{parse_mac, parse_prefix};
use crate::state::{Kind, Object};
use crate::v1;

const MAX_WEIGHT: u32 = 65535;

pub(super) fn check(at: At<'_>, table: &v1::RouteTable, index: &Index<'_>, report: &mut Report) {
    index.require_vpc(at, &table.vpc, report);
    let count = table.routes.len();
    if !report.within(
        at,
        "routes",
        count,
        ("a route table has", limits::TABLE_ROUTES, "routes"),
    ) {
        return;
    }
    let mut prefixes = HashMap::new();
    for (i, route) in table.routes.iter().enumerate() {
        let field = format!("routes[{i}]");
        if let Some(prefix) =
            report.take(at, format!("{field}.prefix"), parse_prefix(&route.prefix))
            && let Some(first) = prefixes.insert(prefix, i)
        {
            let rule = format!("{prefix} already has a route, routes[{first}]");
            report.add(at, format!("{field}.prefix"), rule);
        }
        check_target(at, &field, table, route, index, report);
    }
    policy_route::check(at, table, index, report);
}

/// Where a route leads, whatever it matches.
pub(super) fn check_target(
    at: At<'_>,
    field: &str,
    table: &v1::RouteTable,
    route: &v1::Route,
    index: &Index<'_>,
    report: &mut Report,
) {
    let targets = [
        route.blackhole,
        route.local,
        !route.port.is_empty(),
        !route.host.is_empty(),
        !route.ecmp.is_empty(),
        !route.peering.is_empty(),
        !route.nat.is_empty(),
        !route.external.is_empty(),
    ];
    if targets.iter().filter(|given| **given).count() != 1 {
        let rule =
            "exactly one of blackhole, local, port, host, ecmp, peering, nat and external is set";
        report.add(at, field, rule);
    }
    let hop = v1::NextHop {
        weight: 0,
        port: route.port.clone(),
        host: route.host.clone(),
        next_hop_mac: route.next_hop_mac.clone(),
    };
    check_hop(at, field, &table.vpc, &hop, index, report);
    check_peering(at, field, &table.vpc, &route.peering, index, report);
    check_reference(
        index,
        (Kind::NatGateway, &route.nat),
        &table.vpc,
        (at, format_args!("{field}.nat")),
        report,
    );
    check_external(at, field, &table.vpc, &route.external, index, report);
    let members = format!("{field}.ecmp");
    if !report.within(
        at,
        members,
        route.ecmp.len(),
        ("a route has", limits::ROUTE_MEMBERS, "next hops"),
    ) {
        return;
    }
    let mut seen = HashSet::new();
    for (i, hop) in route.ecmp.iter().enumerate() {
        let field = format!("{field}.ecmp[{i}]");
        if hop.port.is_empty() == hop.host.is_empty() {
            report.add(at, &field, "exactly one of port and host is set");
        } else if !seen.insert((&hop.port, &hop.host, &hop.next_hop_mac)) {
            let rule = "the same next hop is listed twice: raise its weight instead";
            report.add(at, &field, rule);
        }
        if hop.weight > MAX_WEIGHT {
            let rule = format!("{} is outside 1 to {MAX_WEIGHT}", hop.weight);
            report.add(at, format!("{field}.weight"), rule);
        }
        check_hop(at, &field, &table.vpc, hop, index, report);
    }
}

/// A peering that a route leads to exists, and joins the table's VPC to another.
fn check_peering(
    at: At<'_>,
    field: &str,
    vpc: &str,
    id: &str,
    index: &Index<'_>,
    report: &mut Report,
) {
    if id.is_empty() {
        return;
    }
    let rule = match index.find(Kind::Peering, id) {
        None => format!("there is no peering '{id}'"),
        Some(Object::Peering(peering)) if peering.other(vpc).is_none() => {
            format!("peering '{id}' does not join vpc '{vpc}' to another")
        }
        Some(_) => return,
    };
    report.add(at, format!("{field}.peering"), rule);
}

/// An external network that a route leads to exists, and is the operator's or that of the VPC's tenant.
fn check_external(
    at: At<'_>,
    field: &str,
    vpc: &str,
    id: &str,
    index: &Index<'_>,
    report: &mut Report,
) {
    if id.is_empty() {
        return;
    }
    let rule = match index.external_network(id) {
        None => format!("there is no external_network '{id}'"),
        Some(network) if !network.is_open_to(index.tenant_of(vpc).unwrap_or_default()) => {
            format!("external_network '{id}' is another tenant's")
        }
        Some(_) => {
            let field = format!("{field}.external");
            return wire::check_free(at, (&field, id), index, report);
        }
    };
    report.add(at, format!("{field}.external"), rule);
}

/// What a next hop names exists, and can be sent to.
fn check_hop(
    at: At<'_>,
    field: &str,
    vpc: &str,
    hop: &v1::NextHop,
    index: &Index<'_>,
    report: &mut Report,
) {
    if !hop.port.is_empty() {
        let field = format!("{field}.port");
        match index.port(&hop.port) {
            None => {
                let rule = format!("there is no port '{}'", hop.port);
                report.add(at, field, rule);
            }
            Some(port) if port.vpc != vpc => {
                let rule = format!(
                    "port '{}' belongs to vpc '{}', not to '{vpc}'",
                    hop.port, port.vpc
                );
                report.add(at, field, rule);
            }
            Some(port) if port.host.is_empty() => {
                let rule = format!("port '{}' is on no host", hop.port);
                report.add(at, field, rule);
            }
            Some(_) => {}
        }
    }
    if !hop.host.is_empty() && index.host(&hop.host).is_none() {
        let rule = format!("there is no host '{}'", hop.host);
        report.add(at, format!("{field}.host"), rule);
    }
    if !hop.next_hop_mac.is_empty() {
        let field = format!("{field}.next_hop_mac");
        if hop.host.is_empty() {
            report.add(at, field, "next_hop_mac is only for a route to a host");
        } else {
            report.take(at, field, parse_mac(&hop.next_hop_mac));
        }
    }
}
