//! Ports: addresses, MACs, groups, hosts and devices.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::dhcp::is_label;
use super::health;
use super::network::{prefixes_and_gateways, reserved};
use super::{
    At, Index, Report, Scope, check_reference, dhcp_options, limits, policy_route, trunk, wire,
};
use crate::address::{
    DEFAULT_GATEWAY_MAC, parse_address, parse_mac, parse_prefix_or_address, special_use,
};
use crate::state::{Kind, Object};
use crate::v1;

/// Linux's IFNAMSIZ less the closing zero.
const MAX_DEVICE_NAME: usize = 15;
/// Linux's `sun_path` less the closing zero.
const MAX_SOCKET_PATH: usize = 107;
/// Queue pairs of a virtual machine's port.
const MAX_QUEUES: u32 = 16;

/// Rates that a port may be limited to: bits a second, packets a second.
const LIMIT_BITS: RangeInclusive<u64> = 8000..=1_000_000_000_000;
const LIMIT_PACKETS: RangeInclusive<u64> = 1..=1_000_000_000;

pub(super) fn check(
    at: At<'_>,
    port: &v1::Port,
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    index.require_vpc(at, &port.vpc, report);
    let vpc = &port.vpc;
    if port.subnet.is_empty() {
        report.add(at, "subnet", "a port needs a subnet");
    }
    check_reference(
        index,
        (Kind::Subnet, &port.subnet),
        vpc,
        (at, "subnet"),
        report,
    );
    let subnet = index.subnet(&port.subnet);
    report.take(at, "mac", parse_mac(&port.mac));
    check_addresses(at, port, (index, subnet), report);
    check_pairs(at, port, report);
    if !port.hostname.is_empty() && !is_label(&port.hostname) {
        let rule = format!(
            "'{}' is not a name: 1 to 63 letters, digits and inner hyphens",
            port.hostname
        );
        report.add(at, "hostname", rule);
    }
    dhcp_options::check_port(at, port, (index, subnet), report);
    if let Some(dscp) = port.dscp {
        policy_route::check_dscp(at, "dscp", dscp, report);
    }
    health::check_port(at, port, (index, scope), report);
    check_limits(at, port.limits.as_ref(), report);
    check_groups(at, port, index, report);
    check_place(at, port, index, scope, report);
    if let Some(on) = &port.trunk {
        trunk::check(at, port, on, index, scope, report);
    }
    wire::check_port(at, port, index, report);
}

fn check_pairs(at: At<'_>, port: &v1::Port, report: &mut Report) {
    let count = port.allowed_pairs.len();
    if !report.within(
        at,
        "allowed_pairs",
        count,
        ("a port has", limits::PORT_PAIRS, "allowed pairs"),
    ) {
        return;
    }
    for (i, pair) in port.allowed_pairs.iter().enumerate() {
        let field = format!("allowed_pairs[{i}]");
        report.take(
            at,
            format!("{field}.cidr"),
            parse_prefix_or_address(&pair.cidr),
        );
        if !pair.mac.is_empty() {
            report.take(at, format!("{field}.mac"), parse_mac(&pair.mac));
        }
    }
}

fn gateway_mac(subnet: &v1::Subnet) -> [u8; 6] {
    parse_mac(&subnet.gateway_mac).unwrap_or(DEFAULT_GATEWAY_MAC)
}

fn check_addresses(
    at: At<'_>,
    port: &v1::Port,
    (index, subnet): (&Index<'_>, Option<&v1::Subnet>),
    report: &mut Report,
) {
    let count = port.addresses.len();
    if !report.within(
        at,
        "addresses",
        count,
        ("a port has", limits::PORT_ADDRESSES, "addresses"),
    ) {
        return;
    }
    let prefixes = subnet.map(prefixes_and_gateways);
    for (i, text) in port.addresses.iter().enumerate() {
        let field = format!("addresses[{i}]");
        let Some(address) = report.take(at, field.clone(), parse_address(text)) else {
            continue;
        };
        if let Some(what) = special_use(address.into()) {
            let rule = format!("{address} is {what}, which a port cannot have");
            report.add(at, field, rule);
            continue;
        }
        let Some(prefixes) = &prefixes else { continue };
        let Some((prefix, gateway)) = prefixes.iter().find(|(p, _)| p.contains(address)) else {
            let rule = format!("{address} is in no prefix of subnet '{}'", port.subnet);
            report.add(at, field, rule);
            continue;
        };
        // Of a load balancer that comes to have it, the load balancer is to blame.
        let is_new = || {
            let changes = index.changes.unwrap_or_default().iter();
            let mut new = changes.filter_map(|change| change.new);
            new.any(|it| it.kind() == Kind::Port && it.id() == port.id)
        };
        let balancer = || {
            if !index.balances {
                return None;
            }
            let mut balancers = index.state.balancers_with_address(&port.vpc, address);
            balancers.next().filter(|_| is_new())
        };
        if Some(address) == *gateway {
            let rule = format!("{address} is the gateway of subnet '{}'", port.subnet);
            report.add(at, field, rule);
        } else if let Some(balancer) = balancer() {
            let rule = format!("{address} is an address of load balancer '{}'", balancer.id);
            report.add(at, field, rule);
        } else if let Some(what) = reserved(*prefix, address) {
            let rule = format!("{address} is the {what} address of {prefix}");
            report.add(at, field, rule);
        }
    }
}

/// The limits of a port or an elastic IP.
pub(super) fn check_limits(at: At<'_>, limits: Option<&v1::RateLimits>, report: &mut Report) {
    let Some(limits) = limits else { return };
    let directions = [("egress", &limits.egress), ("ingress", &limits.ingress)];
    for (direction, limit) in directions {
        let Some(limit) = limit else { continue };
        let bits = (limit.bits_per_second, limit.burst_bits);
        let packets = (limit.packets_per_second, limit.burst_packets);
        for (what, (rate, burst), range) in [
            ("bits", bits, LIMIT_BITS),
            ("packets", packets, LIMIT_PACKETS),
        ] {
            let field = |name: &str| format!("limits.{direction}.{name}");
            let (per_second, burst_field) = (format!("{what}_per_second"), format!("burst_{what}"));
            if rate != 0 && !range.contains(&rate) {
                let rule = format!("{rate} is outside {} to {}", range.start(), range.end());
                report.add(at, field(&per_second), rule);
                continue;
            }
            let bursts = rate.div_ceil(100)..=rate * 60;
            if burst != 0 && rate == 0 {
                report.add(at, field(&burst_field), "a burst needs a rate");
            } else if burst != 0 && !bursts.contains(&burst) {
                let rule = format!(
                    "{burst} is outside {} to {}, what the rate gives in 10 milliseconds to a minute",
                    bursts.start(),
                    bursts.end()
                );
                report.add(at, field(&burst_field), rule);
            }
        }
    }
}

fn check_groups(at: At<'_>, port: &v1::Port, index: &Index<'_>, report: &mut Report) {
    let count = port.security_groups.len();
    if !report.within(
        at,
        "security_groups",
        count,
        ("a port is in", limits::PORT_GROUPS, "security groups"),
    ) {
        return;
    }
    for (i, group) in port.security_groups.iter().enumerate() {
        let field = format!("security_groups[{i}]");
        if port.security_groups[..i].contains(group) {
            report.add(at, field, format!("'{group}' is given twice"));
            continue;
        }
        if group.is_empty() {
            report.add(at, field, "an empty id");
            continue;
        }
        check_reference(
            index,
            (Kind::SecurityGroup, group),
            &port.vpc,
            (at, field),
            report,
        );
    }
}

fn check_place(
    at: At<'_>,
    port: &v1::Port,
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    if port.host.is_empty() {
        // Not bound yet: nothing reaches it, and no host is told of it.
        if let Scope::Node { .. } = scope {
            report.add(at, "host", "a port needs a host");
        }
        return;
    }
    let Some(host) = index.host(&port.host) else {
        report.add(at, "host", format!("there is no host '{}'", port.host));
        return;
    };
    if port.moved_from == port.host {
        report.add(at, "moved_from", "this is the port's present host");
    }
    let needs_device = match scope {
        Scope::Intent => !host.foreign,
        Scope::Node { host } => port.host == host,
    };
    match &port.device {
        None if needs_device && port.trunk.is_none() => {
            let rule = "a port on a host that runs weftd needs a device, such as {kind: netdev, name: veth0}";
            report.add(at, "device", rule);
        }
        None => {}
        Some(device) => {
            check_device(device, at, report);
        }
    }
}

fn check_device(device: &v1::Device, at: At<'_>, report: &mut Report) {
    let v1::Device {
        kind, name, mode, ..
    } = device;
    if !matches!(kind.as_str(), "netdev" | "tap" | "vhost-user") {
        let rule = format!("'{kind}' is not a kind of device: use netdev, tap or vhost-user");
        return report.add(at, "device.kind", rule);
    }
    let guest = kind == "vhost-user";
    if guest {
        let bad = |b: u8| !b.is_ascii_graphic();
        if !name.starts_with('/')
            || name.ends_with('/')
            || name.len() > MAX_SOCKET_PATH
            || name.bytes().any(bad)
        {
            let rule = format!(
                "'{name}' is not a socket's path: absolute, at most {MAX_SOCKET_PATH} bytes, without space"
            );
            report.add(at, "device.name", rule);
        }
    } else {
        let bad = |b: u8| b == b'/' || !b.is_ascii_graphic();
        if name.is_empty() || name.len() > MAX_DEVICE_NAME || name.bytes().any(bad) {
            let rule = format!(
                "'{name}' is not an interface's name: 1 to {MAX_DEVICE_NAME} characters without space or slash"
            );
            report.add(at, "device.name", rule);
        }
    }
    if !(mode.is_empty() || guest && matches!(mode.as_str(), "server" | "client")) {
        let rule = if guest {
            format!("'{mode}' is not a mode; server and client are")
        } else {
            format!("a {kind} has no mode")
        };
        report.add(at, "device.mode", rule);
    }
    match device.queues {
        1.. if kind == "netdev" => {
            let rule = "a netdev takes its queues from its interface: leave queues out";
            report.add(at, "device.queues", rule);
        }
        0..=MAX_QUEUES => {}
        queues => {
            let rule = format!("{queues} is more than {MAX_QUEUES} queue pairs");
            report.add(at, "device.queues", rule);
        }
    }
}

/// What belongs to a VPC's gateways belongs to no port: the fabric tells its routers by their MACs, and answers for their addresses.
pub(super) fn check_gateways(index: &Index<'_>, report: &mut Report) {
    let mut macs: HashMap<(&str, [u8; 6]), &str> = HashMap::new();
    let mut addresses: HashMap<(&str, IpAddr), &str> = HashMap::new();
    for object in &index.objects {
        let Object::Subnet(subnet) = object else {
            continue;
        };
        macs.insert((&subnet.vpc, gateway_mac(subnet)), &subnet.id);
        for gateway in prefixes_and_gateways(subnet)
            .into_iter()
            .filter_map(|it| it.1)
        {
            addresses.insert((&subnet.vpc, gateway), &subnet.id);
        }
    }
    for object in &index.objects {
        let Object::Port(port) = object else { continue };
        let at = At {
            kind: Kind::Port,
            id: &port.id,
        };
        let mut check_mac = |field: String, text: &str| {
            let Ok(mac) = parse_mac(text) else { return };
            if let Some(subnet) = macs.get(&(port.vpc.as_str(), mac)) {
                let rule = format!("{text} is the MAC of the gateway of subnet '{subnet}'");
                report.add(at, field, rule);
            } else if mac == DEFAULT_GATEWAY_MAC {
                report.add(
                    at,
                    field,
                    format!("{text} is the MAC of gateways by default"),
                );
            }
        };
        check_mac("mac".to_owned(), &port.mac);
        for (i, pair) in port.allowed_pairs.iter().enumerate() {
            check_mac(format!("allowed_pairs[{i}].mac"), &pair.mac);
        }
        for (i, pair) in port.allowed_pairs.iter().enumerate() {
            // A range that holds a gateway's address is that of an appliance.
            let single = parse_prefix_or_address(&pair.cidr)
                .ok()
                .filter(|prefix| prefix.prefix() == if prefix.is_ipv4() { 32 } else { 128 });
            let owner = single.and_then(|one| addresses.get(&(port.vpc.as_str(), one.network())));
            if let Some(subnet) = owner {
                let rule = format!("{} is the gateway of subnet '{subnet}'", pair.cidr);
                report.add(at, format!("allowed_pairs[{i}].cidr"), rule);
            }
        }
    }
}

/// MACs and addresses are unique in a VPC, devices on a host.
pub(super) fn check_uniqueness(index: &Index<'_>, report: &mut Report) {
    let mut macs: HashMap<(&str, [u8; 6]), &str> = HashMap::new();
    let mut addresses: HashMap<(&str, IpAddr), &str> = HashMap::new();
    let mut devices = BTreeSet::new();
    for object in &index.objects {
        let Object::Port(port) = object else { continue };
        let at = At {
            kind: Kind::Port,
            id: &port.id,
        };
        if let Ok(mac) = parse_mac(&port.mac)
            && let Some(other) = macs.insert((&port.vpc, mac), &port.id)
        {
            let rule = format!(
                "{} is already used by port '{other}' of the same vpc",
                port.mac
            );
            report.add(at, "mac", rule);
        }
        for (i, text) in port.addresses.iter().enumerate() {
            if let Ok(address) = text.parse()
                && let Some(other) = addresses.insert((&port.vpc, address), &port.id)
            {
                let rule = format!("{address} is already used by port '{other}' of the same vpc");
                report.add(at, format!("addresses[{i}]"), rule);
            }
        }
        if let Some(device) = &port.device
            && !port.host.is_empty()
        {
            devices.insert((&*port.host, &*device.name));
        }
    }
    // Of ports in any VPC.
    for (host, device) in devices {
        let mut before = None;
        for port in index.state.ports_with_name(host, device) {
            if let Some(other) = before.replace(&port.id) {
                let at = At {
                    kind: Kind::Port,
                    id: &port.id,
                };
                let rule = format!("'{device}' of host '{host}' is already used by port '{other}'");
                report.add(at, "device.name", rule);
            }
        }
    }
}
