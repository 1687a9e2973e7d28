//! External networks, elastic IPs and NAT gateways: their addresses, which are one address space, and what they refer to.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::network::reserved;
use super::{At, Index, Report, Scope, limits, port, wire};
use crate::address::{parse_address, parse_prefix, special_use};
use crate::nat::GATEWAY_HOST_ADDRESSES;
use crate::nat::{LONGEST_TIMEOUT, MOST_MAPPINGS};
use crate::state::{Change, Kind, Object};
use crate::v1::{self, ElasticIp, ExternalNetwork, Listener, NatGateway};

/// The first and the last port of a port forward, and which one it is.
type Range = (u32, u32, usize);

const MAX_VLAN: u32 = 4094;
const MAX_MTU: u32 = 9216;
const MAX_PORT: u32 = 65535;
/// The lowest port that a mapping gets: those below are of services (RFC 6335 §6), and only port forwards take them.
const FIRST_POOL_PORT: u32 = 1024;
/// Ports from [`FIRST_POOL_PORT`] on that port forwards leave to mappings, of each address and protocol.
const LEAST_POOL: u32 = 1024;

pub(super) fn check_network(
    at: At<'_>,
    network: &ExternalNetwork,
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    if network.physical_network.is_empty() {
        let rule = "an external network needs the name of a physical network";
        report.add(at, "physical_network", rule);
    }
    if network.vlan > MAX_VLAN {
        let rule = format!("{} is outside 1 to {MAX_VLAN}; 0 is untagged", network.vlan);
        report.add(at, "vlan", rule);
    }
    let prefixes = check_prefixes(at, network, report);
    check_gateways(at, network, &prefixes, report);
    let least = if prefixes.iter().any(IpNetwork::is_ipv6) {
        1280
    } else {
        576
    };
    if network.mtu != 0 && !(least..=MAX_MTU).contains(&network.mtu) {
        let rule = format!("{} is outside {least} to {MAX_MTU}", network.mtu);
        report.add(at, "mtu", rule);
    }
    check_gateway_hosts(at, network, index, scope, report);
    check_routers(at, network, report);
    check_routed(at, network, (index, scope), report);
    wire::check_network(at, network, (index, scope), report);
}

fn check_routers(at: At<'_>, network: &ExternalNetwork, report: &mut Report) {
    let mut families = HashSet::new();
    for (i, text) in network.routers.iter().enumerate() {
        let field = format!("routers[{i}]");
        let Some(router) = report.take(at, field.clone(), parse_address(text)) else {
            continue;
        };
        if !families.insert(router.is_ipv4()) {
            let family = family(router);
            let rule = format!("an external network has at most one {family} router address");
            report.add(at, field, rule);
            continue;
        }
        check_address(at, &field, network, router, report);
    }
    if !network.routers.is_empty() && network.gateway().is_none() {
        let rule = "an external network without a gateway host has none to hold the addresses";
        report.add(at, "routers", rule);
    }
}

fn check_routed(
    at: At<'_>,
    network: &ExternalNetwork,
    (index, scope): (&Index<'_>, Scope<'_>),
    report: &mut Report,
) {
    let count = network.routed.len();
    let most = (
        "an external network has",
        limits::EXTERNAL_ROUTED,
        "routed prefixes",
    );
    if !report.within(at, "routed", count, most) {
        return;
    }
    let routers = network.routers.iter();
    let routers: Vec<IpAddr> = routers.filter_map(|text| text.parse().ok()).collect();
    for (i, routed) in network.routed.iter().enumerate() {
        let field = format!("routed[{i}].vpc");
        match index.tenant_of(&routed.vpc) {
            None if scope == Scope::Intent => {
                report.add(at, field, format!("there is no vpc '{}'", routed.vpc));
            }
            Some(tenant) if !network.is_open_to(tenant) => {
                let rule = format!("vpc '{}' is not of the network's tenant", routed.vpc);
                report.add(at, field, rule);
            }
            _ => wire::check_tunnelled(at, (&field, &routed.vpc), index, report),
        }
        let field = format!("routed[{i}].prefix");
        let parsed = parse_prefix(&routed.prefix);
        let Some(prefix) = report.take(at, field.clone(), parsed) else {
            continue;
        };
        if let Some(what) = special_use(prefix) {
            let rule = format!("{prefix} contains {what} addresses, which no host can have");
            report.add(at, field, rule);
        } else if !routers
            .iter()
            .any(|router| router.is_ipv4() == prefix.is_ipv4())
        {
            let family = family(prefix.network());
            let rule = format!("the network has no {family} router address to route {prefix} to");
            report.add(at, field, rule);
        }
    }
}

fn check_prefixes(at: At<'_>, network: &ExternalNetwork, report: &mut Report) -> Vec<IpNetwork> {
    let count = network.prefixes.len();
    let most = (
        "an external network has",
        limits::EXTERNAL_PREFIXES,
        "prefixes",
    );
    if !report.within(at, "prefixes", count, most) {
        return Vec::new();
    }
    let mut prefixes = Vec::new();
    for (i, text) in network.prefixes.iter().enumerate() {
        let field = format!("prefixes[{i}]");
        let Some(prefix) = report.take(at, field.clone(), parse_prefix(text)) else {
            continue;
        };
        if let Some(what) = special_use(prefix) {
            let rule = format!("{prefix} contains {what} addresses, which no host can have");
            report.add(at, field, rule);
            continue;
        }
        prefixes.push(prefix);
    }
    prefixes
}

fn check_gateways(
    at: At<'_>,
    network: &ExternalNetwork,
    prefixes: &[IpNetwork],
    report: &mut Report,
) {
    let mut families = HashSet::new();
    for (i, text) in network.gateways.iter().enumerate() {
        let field = format!("gateways[{i}]");
        let Some(gateway) = report.take(at, field.clone(), parse_address(text)) else {
            continue;
        };
        if !families.insert(gateway.is_ipv4()) {
            let family = family(gateway);
            let rule = format!("an external network has at most one {family} gateway");
            report.add(at, field, rule);
            continue;
        }
        match prefixes.iter().find(|prefix| prefix.contains(gateway)) {
            None => {
                let rule = format!("{gateway} is in no prefix of the network");
                report.add(at, field, rule);
            }
            Some(prefix) => {
                if let Some(what) = kept(*prefix, gateway) {
                    let rule = format!("{gateway} is the {what} address of {prefix}");
                    report.add(at, field, rule);
                }
            }
        }
    }
}

fn check_gateway_hosts(
    at: At<'_>,
    network: &ExternalNetwork,
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    let most = (
        "an external network has",
        limits::EXTERNAL_GATEWAY_HOSTS,
        "gateway hosts",
    );
    if !report.within(at, "gateway_hosts", network.gateway_hosts.len(), most) {
        return;
    }
    for (i, id) in network.gateway_hosts.iter().enumerate() {
        let field = format!("gateway_hosts[{i}]");
        if network.gateway_hosts[..i].contains(id) {
            report.add(at, field, format!("'{id}' is given twice"));
            continue;
        }
        match index.host(id) {
            None if scope == Scope::Intent => {
                report.add(at, field, format!("there is no host '{id}'"));
            }
            // A host is told of those alone that it sends to.
            None => {}
            Some(host) if host.foreign => {
                let rule = format!("host '{id}' is foreign: no weftd runs there");
                report.add(at, field, rule);
            }
            Some(host) if !host.is_on(&network.physical_network) => {
                let name = &network.physical_network;
                let rule = format!("host '{id}' is not on physical network '{name}'");
                report.add(at, field, rule);
            }
            Some(_) => {}
        }
    }
}

pub(super) fn check_elastic_ip(
    at: At<'_>,
    elastic: &ElasticIp,
    index: &Index<'_>,
    report: &mut Report,
) {
    if !matches!(elastic.mode.as_str(), "" | "nat" | "direct") {
        let rule = format!("'{}' is neither nat nor direct", elastic.mode);
        report.add(at, "mode", rule);
    }
    port::check_limits(at, elastic.limits.as_ref(), report);
    if elastic.is_direct() && !elastic.private_address.is_empty() {
        let rule = "an elastic IP in mode direct stands for no private address";
        report.add(at, "private_address", rule);
    }
    let network = check_use(
        at,
        &elastic.external_network,
        &elastic.tenant,
        index,
        report,
    );
    let address = report.take(at, "address", parse_address(&elastic.address));
    if let (Some(network), Some(address)) = (network, address) {
        check_address(at, "address", network, address, report);
    }
    if !elastic.load_balancer.is_empty() {
        return check_balanced(at, elastic, (network, address), index, report);
    }
    if elastic.port.is_empty() {
        if !elastic.private_address.is_empty() {
            let rule = "only an elastic IP that is bound to a port has a private address";
            report.add(at, "private_address", rule);
        }
        return;
    }
    let Some(port) = index.port(&elastic.port) else {
        let rule = format!("there is no port '{}'", elastic.port);
        return report.add(at, "port", rule);
    };
    if let Some(tenant) = index.tenant_of(&port.vpc)
        && tenant != elastic.tenant
    {
        let rule = format!(
            "port '{}' belongs to {}, the elastic IP to {}",
            port.id,
            owner(tenant),
            owner(&elastic.tenant)
        );
        report.add(at, "port", rule);
    }
    wire::check_tunnelled(at, ("port", &port.vpc), index, report);
    if let Some(address) = address {
        check_private_address(at, elastic, (port, address), index, report);
    }
    if let Some(network) = network
        && let Some(home) = index.host(&port.host)
        && network.translator(home).is_none()
    {
        let rule = format!(
            "the host of port '{}' is not on the physical network of external network '{}', which has no gateway host",
            port.id, network.id
        );
        report.add(at, "port", rule);
    }
}

/// Another external network on which the first load balancer of a VPC that has an elastic IP of the family has it, and that elastic IP. By the address of a member
/// alone its host knows where its answers to the outside leave.
fn other_network<'a>(
    elastic: &ElasticIp,
    vpc: &'a str,
    index: &Index<'a>,
) -> Option<(&'a str, &'a str)> {
    let balancers = index.state.of_vpc_and_kind(vpc, Kind::LoadBalancer);
    let elastic_ips = balancers.flat_map(|it| index.state.elastic_ips_of_balancer(it.id()));
    let is_ipv6 = |it: &ElasticIp| it.address.contains(':');
    let mut others =
        elastic_ips.filter(|it| it.id != elastic.id && is_ipv6(it) == is_ipv6(elastic));
    let other = others.next()?;
    let differs = other.external_network != elastic.external_network;
    differs.then_some((&*other.id, &*other.external_network))
}

/// An elastic IP that is bound to a load balancer.
fn check_balanced(
    at: At<'_>,
    elastic: &ElasticIp,
    (network, address): (Option<&ExternalNetwork>, Option<IpAddr>),
    index: &Index<'_>,
    report: &mut Report,
) {
    let field = "load_balancer";
    for (name, is_set) in [
        ("port", !elastic.port.is_empty()),
        ("private_address", !elastic.private_address.is_empty()),
        ("mode", elastic.is_direct()),
    ] {
        if is_set {
            let rule = "an elastic IP of a load balancer has neither port nor private address, and is of mode nat";
            report.add(at, name, rule);
        }
    }
    let Some(Object::LoadBalancer(balancer)) =
        index.find(Kind::LoadBalancer, &elastic.load_balancer)
    else {
        let rule = format!("there is no load_balancer '{}'", elastic.load_balancer);
        return report.add(at, field, rule);
    };
    if let Some(tenant) = index.tenant_of(&balancer.vpc)
        && tenant != elastic.tenant
    {
        let rule = format!(
            "load balancer '{}' belongs to {}, the elastic IP to {}",
            balancer.id,
            owner(tenant),
            owner(&elastic.tenant)
        );
        report.add(at, field, rule);
    }
    if let Some(address) = address {
        let own = balancer
            .addresses
            .iter()
            .filter_map(|text| text.parse().ok());
        let mut own = own.map(|own: IpAddr| own.is_ipv4());
        if !own.any(|is_ipv4| is_ipv4 == address.is_ipv4()) {
            let family = family(address);
            let rule = format!("load balancer '{}' has no {family} address", balancer.id);
            report.add(at, field, rule);
        }
    }
    if let Some(i) = balancer.listeners.iter().position(Listener::is_dsr) {
        let rule = format!(
            "load balancer '{}' has listeners[{i}] of mode dsr, whose members answer ports of its vpc alone",
            balancer.id
        );
        report.add(at, field, rule);
    }
    if let Some(address) = address
        && let Some(subnet) = index.subnet_with(&balancer.vpc, address)
    {
        let rule = format!(
            "subnet '{}' of the load balancer's vpc has {address}, which its ports would look for there",
            subnet.id
        );
        report.add(at, "address", rule);
    }
    if let Some((other, network)) = other_network(elastic, &balancer.vpc, index) {
        let rule = format!(
            "elastic IP '{other}' of a load balancer of the same vpc is on '{network}': members answer by one network, for each family"
        );
        report.add(at, "external_network", rule);
    }
    if let Some(network) = network
        && network.gateway().is_none()
    {
        let rule = format!(
            "external network '{}' has no gateway host, which an elastic IP of a load balancer is on",
            network.id
        );
        report.add(at, "external_network", rule);
    }
}

fn check_private_address(
    at: At<'_>,
    elastic: &ElasticIp,
    (port, address): (&v1::Port, IpAddr),
    index: &Index<'_>,
    report: &mut Report,
) {
    if elastic.is_direct() {
        let rule = if port.first_address(address.is_ipv4()).is_none() {
            format!("port '{}' has no {} address", port.id, family(address))
        } else if let Some(subnet) = index.subnet_with(&port.vpc, address) {
            format!(
                "subnet '{}' of the port's vpc has {address}, which mode direct gives to port '{}'",
                subnet.id, port.id
            )
        } else {
            return;
        };
        return report.add(at, "port", rule);
    }
    if elastic.private_address.is_empty() {
        if elastic.inside(port).is_none() {
            let family = family(address);
            let rule = format!("port '{}' has no {family} address", port.id);
            report.add(at, "port", rule);
        }
        return;
    }
    let field = "private_address";
    let Some(private) = report.take(at, field, parse_address(&elastic.private_address)) else {
        return;
    };
    if private.is_ipv4() != address.is_ipv4() {
        let rule = format!("{private} and {address} are of different families");
        report.add(at, field, rule);
    } else if elastic.inside(port).is_none() {
        let rule = format!("{private} is no address of port '{}'", port.id);
        report.add(at, field, rule);
    }
}

pub(super) fn check_nat_gateway(
    at: At<'_>,
    nat: &NatGateway,
    index: &Index<'_>,
    report: &mut Report,
) {
    index.require_vpc(at, &nat.vpc, report);
    wire::check_tunnelled(at, ("vpc", &nat.vpc), index, report);
    let tenant = index.tenant_of(&nat.vpc).unwrap_or_default();
    let network = check_use(at, &nat.external_network, tenant, index, report);
    if let Some(network) = network
        && network.gateway().is_none()
    {
        let rule = format!(
            "external network '{}' has no gateway host, which a NAT gateway runs on",
            network.id
        );
        report.add(at, "external_network", rule);
    }
    let count = nat.addresses.len();
    if count == 0 {
        report.add(at, "addresses", "a NAT gateway needs at least one address");
    }
    let most = ("a NAT gateway has", limits::NAT_ADDRESSES, "addresses");
    if report.within(at, "addresses", count, most) {
        for (i, text) in nat.addresses.iter().enumerate() {
            let field = format!("addresses[{i}]");
            if let Some(address) = report.take(at, field.clone(), parse_address(text))
                && let Some(network) = network
            {
                check_address(at, &field, network, address, report);
            }
        }
    }
    let most = ("a NAT gateway has", limits::NAT_SOURCES, "source prefixes");
    if report.within(at, "sources", nat.sources.len(), most) {
        for (i, text) in nat.sources.iter().enumerate() {
            report.take(at, format!("sources[{i}]"), parse_prefix(text));
        }
    }
    if !matches!(
        nat.filtering.as_str(),
        "" | "address_and_port" | "endpoint_independent"
    ) {
        let rule = format!(
            "'{}' is neither address_and_port nor endpoint_independent",
            nat.filtering
        );
        report.add(at, "filtering", rule);
    }
    check_times_and_limits(at, nat, report);
    check_forwards(at, nat, index, report);
}

fn check_times_and_limits(at: At<'_>, nat: &NatGateway, report: &mut Report) {
    if let Err(rule) = nat.nat64() {
        report.add(at, "nat64_prefix", rule);
    }
    for timeout in nat.idle_times() {
        let seconds = timeout.seconds;
        if seconds != 0 && !(timeout.least..=LONGEST_TIMEOUT).contains(&seconds) {
            let rule = format!(
                "{seconds} seconds are outside {} ({}) to {LONGEST_TIMEOUT}; 0 means {}",
                timeout.least, timeout.source, timeout.default
            );
            report.add(at, format!("timeouts.{}", timeout.name), rule);
        }
    }
    let limits = nat.limits.unwrap_or_default();
    for (name, limit) in [
        ("mappings", limits.mappings),
        ("mappings_per_address", limits.mappings_per_address),
    ] {
        if limit > MOST_MAPPINGS {
            let rule = format!("{limit} exceeds {MOST_MAPPINGS}, as many as a host holds");
            report.add(at, format!("limits.{name}"), rule);
        }
    }
}

fn check_forwards(at: At<'_>, nat: &NatGateway, index: &Index<'_>, report: &mut Report) {
    let most = ("a NAT gateway has", limits::NAT_FORWARDS, "port forwards");
    if !report.within(at, "port_forwards", nat.port_forwards.len(), most) {
        return;
    }
    let names_address = |forward: &v1::PortForward| !forward.private_address.is_empty();
    let inside = if nat.port_forwards.iter().any(names_address) {
        index.addresses_of(&nat.vpc)
    } else {
        HashSet::new()
    };
    let own: Vec<Option<IpAddr>> = nat.addresses.iter().map(|text| text.parse().ok()).collect();
    // By address and protocol.
    let mut ranges: BTreeMap<(IpAddr, &str), Vec<Range>> = BTreeMap::new();
    for (i, forward) in nat.port_forwards.iter().enumerate() {
        let field = |name: &str| format!("port_forwards[{i}].{name}");
        if !matches!(forward.protocol.as_str(), "tcp" | "udp") {
            let rule = format!("'{}' is neither tcp nor udp", forward.protocol);
            report.add(at, field("protocol"), rule);
        }
        let address = if forward.address.is_empty() {
            own.first().copied().flatten()
        } else {
            let address = report.take(at, field("address"), parse_address(&forward.address));
            if let Some(address) = address
                && !own.contains(&Some(address))
            {
                let rule = format!("{address} is no address of the gateway");
                report.add(at, field("address"), rule);
            }
            address
        };
        check_target(at, i, (forward, address), nat, (index, &inside), report);
        let (first, last) = forward.ports();
        if first == 0 || first > MAX_PORT {
            let rule = format!("{first} is outside 1 to {MAX_PORT}");
            report.add(at, field("port_min"), rule);
            continue;
        }
        if last < first || last > MAX_PORT {
            let rule = format!("{last} is outside {first} to {MAX_PORT}");
            report.add(at, field("port_max"), rule);
            continue;
        }
        let to = forward.to_port_min;
        if to > MAX_PORT - (last - first) {
            let rule = format!("{to} and the next {} ports exceed {MAX_PORT}", last - first);
            report.add(at, field("to_port_min"), rule);
        }
        if let Some(address) = address {
            let all = ranges.entry((address, &forward.protocol)).or_default();
            all.push((first, last, i));
        }
    }
    for ((address, protocol), mut ranges) in ranges {
        ranges.sort_unstable();
        check_ranges(at, (address, protocol), &ranges, report);
    }
}

/// The port forwards of one address and protocol, in order: they do not overlap, and leave ports to mappings.
fn check_ranges(
    at: At<'_>,
    (address, protocol): (IpAddr, &str),
    ranges: &[Range],
    report: &mut Report,
) {
    let mut taken = 0;
    let mut highest: Option<(u32, usize)> = None;
    for &(first, last, i) in ranges {
        if let Some((end, other)) = highest
            && first <= end
        {
            let rule = format!(
                "{protocol} {first} to {last} of {address} overlaps port_forwards[{other}]"
            );
            report.add(at, format!("port_forwards[{i}].port_min"), rule);
            highest = Some((end.max(last), if last > end { i } else { other }));
            continue;
        }
        highest = Some((last, i));
        if last >= FIRST_POOL_PORT {
            taken += last - first.max(FIRST_POOL_PORT) + 1;
        }
    }
    let left = (MAX_PORT - FIRST_POOL_PORT + 1).saturating_sub(taken);
    if left < LEAST_POOL {
        let rule = format!(
            "the {protocol} forwards of {address} leave {left} of the ports {FIRST_POOL_PORT} to {MAX_PORT} to mappings, and have to leave {LEAST_POOL}"
        );
        report.add(at, "port_forwards", rule);
    }
}

/// Who receives what a port forward takes: a port or an address of the VPC, of the family of the outside address.
fn check_target(
    at: At<'_>,
    i: usize,
    (forward, outside): (&v1::PortForward, Option<IpAddr>),
    nat: &NatGateway,
    (index, inside): (&Index<'_>, &HashSet<IpAddr>),
    report: &mut Report,
) {
    let field = |name: &str| format!("port_forwards[{i}].{name}");
    if forward.port.is_empty() == forward.private_address.is_empty() {
        let rule = "exactly one of port and private_address is set";
        return report.add(at, format!("port_forwards[{i}]"), rule);
    }
    if forward.port.is_empty() {
        let field = field("private_address");
        let Some(private) = report.take(at, field.clone(), parse_address(&forward.private_address))
        else {
            return;
        };
        if !inside.contains(&private) {
            let rule = format!("{private} is no address of a port of vpc '{}'", nat.vpc);
            report.add(at, field, rule);
        } else if outside.is_some_and(|outside| outside.is_ipv4() != private.is_ipv4()) {
            let family = if private.is_ipv4() { "IPv6" } else { "IPv4" };
            let rule = format!("{private} is not of the outside address's family, {family}");
            report.add(at, field, rule);
        }
        return;
    }
    match index.port(&forward.port) {
        None => {
            let rule = format!("there is no port '{}'", forward.port);
            report.add(at, field("port"), rule);
        }
        Some(port) if port.vpc != nat.vpc => {
            let rule = format!(
                "port '{}' belongs to vpc '{}', not to '{}'",
                forward.port, port.vpc, nat.vpc
            );
            report.add(at, field("port"), rule);
        }
        Some(port) => {
            if let Some(outside) = outside
                && port.first_address(outside.is_ipv4()).is_none()
            {
                let family = family(outside);
                let rule = format!("port '{}' has no {family} address", forward.port);
                report.add(at, field("port"), rule);
            }
        }
    }
}

/// The external network that something of a tenant uses, if it exists and the tenant may use it.
fn check_use<'a>(
    at: At<'_>,
    id: &str,
    tenant: &str,
    index: &Index<'a>,
    report: &mut Report,
) -> Option<&'a ExternalNetwork> {
    let rule = match index.external_network(id) {
        None => format!("there is no external_network '{id}'"),
        Some(network) if !network.is_open_to(tenant) => {
            format!("external_network '{id}' is another tenant's")
        }
        Some(network) => {
            wire::check_free(at, ("external_network", id), index, report);
            return Some(network);
        }
    };
    report.add(at, "external_network", rule);
    None
}

/// An address that weft answers for on an external network: of its prefixes, and nobody else's there.
fn check_address(
    at: At<'_>,
    field: &str,
    network: &ExternalNetwork,
    address: IpAddr,
    report: &mut Report,
) {
    let prefixes = network
        .prefixes
        .iter()
        .filter_map(|text| parse_prefix(text).ok());
    let holding: Vec<IpNetwork> = prefixes.filter(|prefix| prefix.contains(address)).collect();
    let rule = if holding.is_empty() {
        format!(
            "{address} is in no prefix of external network '{}' ({})",
            network.id,
            network.prefixes.join(", ")
        )
    } else if network
        .gateways
        .iter()
        .any(|text| text.parse() == Ok(address))
    {
        format!(
            "{address} is the gateway of external network '{}'",
            network.id
        )
    } else if let Some((prefix, what)) = holding
        .iter()
        .find_map(|prefix| Some((prefix, kept(*prefix, address)?)))
    {
        format!("{address} is the {what} address of {prefix}")
    } else {
        return;
    };
    report.add(at, field, rule);
}

/// What an address of a prefix is kept for. A prefix of two addresses or one keeps none (RFC 3021, RFC 6164).
fn kept(prefix: IpNetwork, address: IpAddr) -> Option<&'static str> {
    let longest = if prefix.is_ipv4() { 30 } else { 126 };
    reserved(prefix, address).filter(|_| prefix.prefix() <= longest)
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn owner(tenant: &str) -> String {
    if tenant.is_empty() {
        "the operator".to_owned()
    } else {
        format!("tenant '{tenant}'")
    }
}

/// A gateway host has room for the addresses of all NAT gateways that it may have to run, whoever's they are: it would refuse its whole state otherwise.
pub(super) fn check_room(index: &Index<'_>, report: &mut Report) {
    let is_concerned =
        |object: &&&Object| matches!(object.kind(), Kind::NatGateway | Kind::ExternalNetwork);
    let concerned = match index.changes {
        None => index.objects.iter().any(|object| is_concerned(&object)),
        Some(changes) => {
            let mut new = changes.iter().filter_map(|change| change.new);
            new.any(|object| is_concerned(&&object))
        }
    };
    if !concerned {
        return;
    }
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for object in index.state.of_kind(Kind::NatGateway) {
        let Object::NatGateway(nat) = object else {
            continue;
        };
        let network = index.external_network(&nat.external_network);
        for host in network.into_iter().flat_map(|it| &it.gateway_hosts) {
            *counts.entry(host).or_default() += nat.addresses.len();
        }
    }
    let mut full: Vec<(&str, usize)> = counts
        .into_iter()
        .filter(|(_, count)| *count > usize::from(GATEWAY_HOST_ADDRESSES))
        .collect();
    full.sort_unstable();
    for (host, count) in full {
        let runs_there = |nat: &NatGateway| {
            let network = index.external_network(&nat.external_network);
            network.is_some_and(|network| network.gateway_hosts.iter().any(|it| it == host))
        };
        // Of those under check, among which the new one is.
        let last = index.objects.iter().rev().find_map(|object| match object {
            Object::NatGateway(nat) if runs_there(nat) => {
                Some((Kind::NatGateway, &*nat.id, "addresses"))
            }
            Object::ExternalNetwork(network)
                if network.gateway_hosts.iter().any(|it| it == host) =>
            {
                Some((Kind::ExternalNetwork, &*network.id, "gateway_hosts"))
            }
            _ => None,
        });
        if let Some((kind, id, field)) = last {
            let rule = format!(
                "with it, host '{host}' would be a gateway for {count} addresses of NAT gateways, and holds at most {GATEWAY_HOST_ADDRESSES}"
            );
            report.add(At { kind, id }, field, rule);
        }
    }
}

/// The outside is one address space: prefixes do not overlap, and an address is of one elastic IP or NAT gateway. A VLAN is of one network.
pub(super) fn check_together(index: &Index<'_>, report: &mut Report) {
    check_networks(index, report);
    check_addresses(index, report);
}

fn check_networks(index: &Index<'_>, report: &mut Report) {
    let mut segments: HashMap<(&str, u32), &str> = HashMap::new();
    let mut prefixes: Vec<(IpNetwork, &str, String)> = Vec::new();
    for object in &index.objects {
        let Object::ExternalNetwork(network) = object else {
            continue;
        };
        let segment = (&*network.physical_network, network.vlan);
        if let Some(other) = segments.insert(segment, &network.id) {
            let (name, vlan) = segment;
            let vlan = match vlan {
                0 => "what is untagged".to_owned(),
                vlan => format!("VLAN {vlan}"),
            };
            let rule = format!(
                "{vlan} of physical network '{name}' is already external network '{other}'"
            );
            report.add(at_network(&network.id), "vlan", rule);
        }
        let own = network.prefixes.iter().enumerate();
        let own = own.map(|(i, text)| (format!("prefixes[{i}]"), text));
        let routed = network.routed.iter().enumerate();
        let routed = routed.map(|(i, routed)| (format!("routed[{i}].prefix"), &routed.prefix));
        for (field, text) in own.chain(routed) {
            if let Ok(prefix) = parse_prefix(text) {
                prefixes.push((prefix, &network.id, field));
            }
        }
    }
    // By address, the wider first, as in `network::check_overlap`.
    prefixes.sort_unstable_by(|(a, id, field), (b, other, other_field)| {
        let key = |p: &IpNetwork| (p.network(), p.prefix());
        (key(a), id, field).cmp(&(key(b), other, other_field))
    });
    let mut widest: Option<(IpNetwork, &str)> = None;
    for (prefix, id, field) in prefixes {
        match widest {
            Some((other, owner))
                if other.is_ipv4() == prefix.is_ipv4() && other.contains(prefix.network()) =>
            {
                let rule = format!("{prefix} overlaps {other} of external network '{owner}'");
                report.add(at_network(id), field, rule);
            }
            _ => widest = Some((prefix, id)),
        }
    }
}

fn at_network(id: &str) -> At<'_> {
    At {
        kind: Kind::ExternalNetwork,
        id,
    }
}

/// No two have an address of an external network, of all that have one.
fn check_outside(index: &Index<'_>, report: &mut Report) {
    let mut outside: HashMap<IpAddr, (Kind, &str)> = HashMap::new();
    let kinds = [Kind::ExternalNetwork, Kind::ElasticIp, Kind::NatGateway].into_iter();
    for object in kinds.flat_map(|kind| index.state.of_kind(kind)) {
        for (field, address) in object.outside_addresses() {
            let key = (object.kind(), object.id());
            if let Some(other) = outside.insert(address, key) {
                report_taken((object, &field, address), other, report);
            }
        }
    }
}

fn report_taken(
    (object, field, address): (&Object, &str, IpAddr),
    (kind, id): (Kind, &str),
    report: &mut Report,
) {
    let at = At {
        kind: object.kind(),
        id: object.id(),
    };
    let rule = format!("{address} is already used by {} '{id}'", kind.name());
    report.add(at, field, rule);
}

/// No two have an address of an external network that something which changed has.
fn check_taken(index: &Index<'_>, changes: &[Change<'_>], report: &mut Report) {
    let new = changes.iter().filter_map(|change| change.new);
    let addresses = new.flat_map(Object::outside_addresses);
    let addresses: BTreeSet<IpAddr> = addresses.map(|(_, address)| address).collect();
    for address in addresses {
        let mut before = None;
        for object in index.state.holders_of(address) {
            let held = object.outside_addresses();
            for (field, _) in held.filter(|(_, held)| *held == address) {
                if let Some(other) = before.replace((object.kind(), object.id())) {
                    report_taken((object, &field, address), other, report);
                }
            }
        }
    }
}

/// Every address of an external network is of one elastic IP or NAT gateway, or the network's own, and every address of a port has one elastic IP at most.
fn check_addresses(index: &Index<'_>, report: &mut Report) {
    match index.changes {
        None => check_outside(index, report),
        Some(changes) => check_taken(index, changes, report),
    }
    let mut inside: HashMap<(&str, IpAddr), &str> = HashMap::new();
    for object in &index.objects {
        if let Object::ElasticIp(elastic) = object
            && let Some(port) = index.port(&elastic.port)
            && let Some(private) = elastic.inside(port)
            && let Some(other) = inside.insert((&port.id, private), &elastic.id)
        {
            let at = At {
                kind: Kind::ElasticIp,
                id: &elastic.id,
            };
            let rule = format!(
                "{private} of port '{}' already has elastic_ip '{other}'",
                port.id
            );
            report.add(at, "private_address", rule);
        }
    }
}
