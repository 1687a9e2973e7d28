//! Subnets on external networks: what such a subnet has, where its ports live, and what is not offered there.

use std::collections::HashMap;

use super::{At, Index, Report, Scope};
use crate::mtu;
use crate::state::{Kind, Object};
use crate::v1::{self, ExternalNetwork};

pub(super) fn check_subnet(
    at: At<'_>,
    subnet: &v1::Subnet,
    index: &Index<'_>,
    report: &mut Report,
) {
    for (field, value) in [
        ("route_table", &subnet.route_table),
        ("gateway_mac", &subnet.gateway_mac),
    ] {
        if !value.is_empty() {
            let rule = "the router of an external network is not weft's: leave it out";
            report.add(at, field, rule);
        }
    }
    let id = &subnet.external_network;
    let tenant = index.tenant_of(&subnet.vpc).unwrap_or_default();
    let rule = match index.external_network(id) {
        None => format!("there is no external_network '{id}'"),
        Some(network) if !network.is_open_to(tenant) => {
            format!("external_network '{id}' is another tenant's")
        }
        Some(network) => {
            let most = mtu::external(network);
            if subnet.mtu > most {
                let rule = format!(
                    "{} exceeds {most}, what external_network '{id}' carries",
                    subnet.mtu
                );
                report.add(at, "mtu", rule);
            }
            return;
        }
    };
    report.add(at, "external_network", rule);
}

/// A port of such a subnet lives where its network is.
pub(super) fn check_port(at: At<'_>, port: &v1::Port, index: &Index<'_>, report: &mut Report) {
    let subnet = index.subnet(&port.subnet);
    let subnet = subnet.filter(|subnet| !subnet.external_network.is_empty());
    let (Some(subnet), Some(host)) = (subnet, index.host(&port.host)) else {
        return;
    };
    if let Some(network) = index.external_network(&subnet.external_network)
        && !host.is_on(&network.physical_network)
    {
        let rule = format!(
            "host '{}' is not on physical network '{}' of external_network '{}', which subnet '{}' is on",
            host.id, network.physical_network, network.id, subnet.id
        );
        report.add(at, "host", rule);
    }
}

/// Refuses what needs an external network on which no subnet is: there weft is the router of the addresses that it holds, here it is none.
pub(super) fn check_free(
    at: At<'_>,
    (field, network): (&str, &str),
    index: &Index<'_>,
    report: &mut Report,
) {
    if let Some(network) = index.external_network(network).map(|it| &*it.id)
        && let Some(subnet) = index.subnet_on(network)
    {
        let rule = format!(
            "external_network '{network}' has ports of its own (subnet '{}'): elastic IPs, NAT gateways and routes take another",
            subnet.id
        );
        report.add(at, field, rule);
    }
}

/// Refuses what needs a VPC with tunnels and a router of weft's.
pub(super) fn check_tunnelled(
    at: At<'_>,
    (field, vpc): (&str, &str),
    index: &Index<'_>,
    report: &mut Report,
) {
    if let Some(network) = index.state.wire_of(vpc) {
        let rule =
            format!("vpc '{vpc}' is on external_network '{network}', whose router is not weft's");
        report.add(at, field, rule);
    }
}

/// A network with ports needs no gateway host, and holds no address.
pub(super) fn check_network(
    at: At<'_>,
    network: &ExternalNetwork,
    (index, scope): (&Index<'_>, Scope<'_>),
    report: &mut Report,
) {
    for (field, is_empty) in [
        ("routers", network.routers.is_empty()),
        ("routed", network.routed.is_empty()),
    ] {
        if !is_empty && scope == Scope::Intent {
            check_free(at, (field, &network.id), index, report);
        }
    }
}

/// All subnets of a VPC are on one external network, or none is; and no other VPC is on that.
pub(super) fn check_together(index: &Index<'_>, report: &mut Report) {
    // By VPC the first subnet, by network the first VPC.
    let mut first: HashMap<&str, &v1::Subnet> = HashMap::new();
    let mut users: HashMap<&str, &v1::Subnet> = HashMap::new();
    for object in &index.objects {
        let Object::Subnet(subnet) = object else {
            continue;
        };
        let at = At {
            kind: Kind::Subnet,
            id: &subnet.id,
        };
        let network = subnet.external_network.as_str();
        let other = *first.entry(&subnet.vpc).or_insert(subnet);
        if other.external_network != network {
            let rule = format!(
                "all subnets of a VPC are on one external network, or none is: subnet '{}' of vpc '{}' is on {}",
                other.id,
                subnet.vpc,
                match &*other.external_network {
                    "" => "none".to_owned(),
                    network => format!("'{network}'"),
                }
            );
            report.add(at, "external_network", rule);
            continue;
        }
        if network.is_empty() {
            continue;
        }
        let other = *users.entry(network).or_insert(subnet);
        if other.vpc != subnet.vpc {
            let rule = format!(
                "vpc '{}' is on external_network '{network}' already (subnet '{}')",
                other.vpc, other.id
            );
            report.add(at, "external_network", rule);
        }
    }
}
