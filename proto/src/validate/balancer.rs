//! Load balancers: their addresses, listeners and members.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::network::{prefixes_and_gateways, reserved};
use super::{At, Index, Report, Scope, health, limits, wire};
use crate::address::{parse_address, special_use};
use crate::state::{Kind, Object};
use crate::v1::{Listener, LoadBalancer, Member};

const MAX_PORT: u32 = 65535;

/// What of an address is checked by what the state knows: alone, since all that may be in its way is found there.
pub(super) fn check(
    at: At<'_>,
    balancer: &LoadBalancer,
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    index.require_vpc(at, &balancer.vpc, report);
    wire::check_tunnelled(at, ("vpc", &balancer.vpc), index, report);
    check_addresses(at, balancer, index, report);
    let most = (
        "a load balancer has",
        limits::BALANCER_LISTENERS,
        "listeners",
    );
    let count = balancer.members().count();
    let most_members = ("a load balancer has", limits::BALANCER_MEMBERS, "members");
    if !report.within(at, "listeners", balancer.listeners.len(), most)
        || !report.within(at, "listeners", count, most_members)
    {
        return;
    }
    // By protocol: first and last port, and whose they are.
    let mut ranges: BTreeMap<&str, Vec<(u32, u32, usize)>> = BTreeMap::new();
    for (i, listener) in balancer.listeners.iter().enumerate() {
        let field = |name: &str| format!("listeners[{i}].{name}");
        check_listener(at, i, listener, report);
        health::check_listener(at, i, listener, report);
        if let Some((first, last)) = range(at, &field, listener.ports(), report) {
            let all = ranges.entry(&listener.protocol).or_default();
            all.push((first, last, i));
        }
        check_members(at, i, (balancer, listener), (index, scope), report);
    }
    for (protocol, mut ranges) in ranges {
        ranges.sort_unstable();
        let mut highest: Option<(u32, usize)> = None;
        for (first, last, i) in ranges {
            if let Some((end, other)) = highest
                && first <= end
            {
                let rule = format!("{protocol} {first} to {last} overlaps listeners[{other}]");
                report.add(at, format!("listeners[{i}].port_min"), rule);
                highest = Some((end.max(last), if last > end { i } else { other }));
            } else {
                highest = Some((last, i));
            }
        }
    }
}

/// A range of ports, if it is one.
fn range(
    at: At<'_>,
    field: &impl Fn(&str) -> String,
    (first, last): (u32, u32),
    report: &mut Report,
) -> Option<(u32, u32)> {
    if first == 0 || first > MAX_PORT {
        let rule = format!("{first} is outside 1 to {MAX_PORT}");
        report.add(at, field("port_min"), rule);
        return None;
    }
    if last < first || last > MAX_PORT {
        let rule = format!("{last} is outside {first} to {MAX_PORT}");
        report.add(at, field("port_max"), rule);
        return None;
    }
    Some((first, last))
}

fn check_listener(at: At<'_>, i: usize, listener: &Listener, report: &mut Report) {
    let field = |name: &str| format!("listeners[{i}].{name}");
    if !matches!(listener.protocol.as_str(), "tcp" | "udp") {
        let rule = format!("'{}' is neither tcp nor udp", listener.protocol);
        report.add(at, field("protocol"), rule);
    }
    let algorithm = listener.algorithm.as_str();
    if !matches!(
        algorithm,
        "" | "maglev" | "round-robin" | "least-connections"
    ) {
        let rule = format!("'{algorithm}' is neither maglev, round-robin nor least-connections");
        report.add(at, field("algorithm"), rule);
    }
    let mode = listener.mode.as_str();
    if !matches!(mode, "" | "nat" | "dsr") {
        let rule = format!("'{mode}' is neither nat nor dsr");
        report.add(at, field("mode"), rule);
    }
    match listener.affinity.as_str() {
        "" | "five-tuple" => {}
        "source" if algorithm == "round-robin" => {
            let rule =
                "round-robin takes members in turn, whoever asks: affinity source goes with maglev";
            report.add(at, field("affinity"), rule);
        }
        "source" if algorithm == "least-connections" => {
            let rule = "least-connections goes by what members have, whoever asks: affinity source goes with maglev";
            report.add(at, field("affinity"), rule);
        }
        "source" => {}
        other => {
            let rule = format!("'{other}' is neither five-tuple nor source");
            report.add(at, field("affinity"), rule);
        }
    }
}

fn check_addresses(at: At<'_>, balancer: &LoadBalancer, index: &Index<'_>, report: &mut Report) {
    if balancer.addresses.is_empty() {
        report.add(
            at,
            "addresses",
            "a load balancer needs at least one address",
        );
    }
    let mut families = [false; 2];
    for (i, text) in balancer.addresses.iter().enumerate() {
        let field = format!("addresses[{i}]");
        let Some(address) = report.take(at, field.clone(), parse_address(text)) else {
            continue;
        };
        let family = &mut families[usize::from(address.is_ipv4())];
        if std::mem::replace(family, true) {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            let rule = format!("a load balancer has at most one {family} address");
            report.add(at, field, rule);
            continue;
        }
        if let Some(rule) = taken(at, balancer, address, index) {
            report.add(at, field, rule);
        }
    }
}

/// The rule that an address breaks.
fn taken(
    at: At<'_>,
    balancer: &LoadBalancer,
    address: IpAddr,
    index: &Index<'_>,
) -> Option<String> {
    if let Some(what) = special_use(address.into()) {
        return Some(format!(
            "{address} is {what}, which a load balancer cannot have"
        ));
    }
    let vpc = &balancer.vpc;
    let subnets = index.state.of_vpc_and_kind(vpc, Kind::Subnet);
    let holding = subnets.filter_map(|object| match object {
        Object::Subnet(subnet) => {
            let prefixes = prefixes_and_gateways(subnet).into_iter();
            let found = prefixes
                .clone()
                .find(|(prefix, _)| prefix.contains(address));
            Some((&subnet.id, found?))
        }
        _ => None,
    });
    let Some((subnet, (prefix, gateway))) = { holding }.next() else {
        // What is said of the VPC is enough.
        index.state.find(Kind::Vpc, vpc)?;
        return Some(format!("{address} is in no subnet of vpc '{vpc}'"));
    };
    if gateway == Some(address) {
        return Some(format!("{address} is the gateway of subnet '{subnet}'"));
    }
    if let Some(what) = reserved(prefix, address) {
        return Some(format!("{address} is the {what} address of {prefix}"));
    }
    let mut others = index.state.balancers_with_address(vpc, address);
    if let Some(other) = others.find(|other| other.id != at.id) {
        return Some(format!(
            "{address} is already an address of load balancer '{}'",
            other.id
        ));
    }
    let port = index.state.port_with_address(vpc, address)?;
    // Of a port that comes to have it, the port is to blame.
    let is_new = index.changes.is_none_or(|changes| {
        let mut changed = changes.iter().filter_map(|change| change.new);
        changed.any(|object| object.kind() == Kind::LoadBalancer && object.id() == at.id)
    });
    is_new.then(|| format!("{address} is already used by port '{}'", port.id))
}

fn check_members(
    at: At<'_>,
    i: usize,
    (balancer, listener): (&LoadBalancer, &Listener),
    (index, scope): (&Index<'_>, Scope<'_>),
    report: &mut Report,
) {
    let (first, last) = listener.ports();
    let mut seen: HashMap<(&str, u32), usize> = HashMap::new();
    let mut served: HashMap<(IpAddr, u32), usize> = HashMap::new();
    for (j, member) in listener.members.iter().enumerate() {
        let field = |name: &str| format!("listeners[{i}].members[{j}].{name}");
        let to = member.to_port_min;
        if last >= first && to > MAX_PORT.saturating_sub(last - first) {
            let rule = format!("{to} and the next {} ports exceed {MAX_PORT}", last - first);
            report.add(at, field("to_port_min"), rule);
        }
        if listener.is_dsr() && to != 0 && to != first {
            let rule = format!("{to} is not {first}: with dsr a member gets what the client sent");
            report.add(at, field("to_port_min"), rule);
        }
        if member.weight > limits::MEMBER_WEIGHT {
            let rule = format!("{} exceeds {}", member.weight, limits::MEMBER_WEIGHT);
            report.add(at, field("weight"), rule);
        }
        if member.port.is_empty() == member.address.is_empty() {
            let rule = "exactly one of port and address is set";
            report.add(at, format!("listeners[{i}].members[{j}]"), rule);
            continue;
        }
        let (name, what) = if member.port.is_empty() {
            ("address", &member.address)
        } else {
            ("port", &member.port)
        };
        let to = listener.first_port_at(member);
        let mut other = seen.insert((what.as_str(), to), j);
        let rule = missing(balancer, member, (index, scope));
        // A port may be named in one, and its address in another; a host does not know all ports.
        if scope == Scope::Intent && rule.is_none() {
            let addresses = [true, false].map(|is_ipv4| member.address_in(index.state, is_ipv4));
            for address in addresses.into_iter().flatten() {
                other = served.insert((address, to), j).or(other);
            }
        }
        if let Some(other) = other {
            let rule = format!("is the member listeners[{i}].members[{other}] once more");
            report.add(at, field(name), rule);
        }
        if let Some(rule) = rule {
            report.add(at, field(name), rule);
        }
    }
}

/// The rule that who a member is breaks. A host is not told of ports that live nowhere.
fn missing(
    balancer: &LoadBalancer,
    member: &Member,
    (index, scope): (&Index<'_>, Scope<'_>),
) -> Option<String> {
    let vpc = &balancer.vpc;
    let families = balancer.addresses.iter().filter_map(|text| {
        let address = text.parse::<IpAddr>().ok()?;
        Some(address.is_ipv4())
    });
    if member.port.is_empty() {
        let address = match parse_address(&member.address) {
            Ok(address) => address,
            Err(error) => return Some(error.to_string()),
        };
        if scope != Scope::Intent {
            return None;
        }
        if index.state.port_with_address(vpc, address).is_none() {
            return Some(format!("{address} is no address of a port of vpc '{vpc}'"));
        }
        return (!{ families }.any(|is_ipv4| is_ipv4 == address.is_ipv4()))
            .then(|| format!("{address} is of no family of the load balancer's"));
    }
    let id = &member.port;
    match index.port(id) {
        None if scope != Scope::Intent => None,
        None => Some(format!("there is no port '{id}'")),
        Some(port) if port.vpc != *vpc => Some(format!(
            "port '{id}' belongs to vpc '{}', not to '{vpc}'",
            port.vpc
        )),
        Some(port) => {
            let serves = { families }.any(|is_ipv4| port.first_address(is_ipv4).is_some());
            (!serves && scope == Scope::Intent)
                .then(|| format!("port '{id}' has no address of a family of the load balancer's"))
        }
    }
}
