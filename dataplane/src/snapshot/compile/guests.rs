//! What a subnet tells its guests, written as the options that carry it.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use weft_proto::state::Kind;
use weft_proto::v1;

use super::super::{Guests, Subnet};
use super::{Report, dhcp_options};
use crate::packet::parse::word_address;
use crate::packet::{Mac, metadata};

/// What `lease_seconds` of 0 stands for.
const DEFAULT_LEASE: u32 = 86400;
/// A lifetime without end.
const FOREVER: [u8; 4] = [0xff; 4];

/// What the guests of a subnet are told; none if it is to answer nothing. `host`: the MTU, whether there is a metadata service, and the VPC's DNS
/// where the gateway answers it.
pub(super) fn compile(
    subnet: &v1::Subnet,
    compiled: &Subnet,
    (mtu, metadata, dns): (u32, bool, Option<&v1::VpcDns>),
    report: &mut Report,
) -> Option<Guests> {
    let mut dhcp = subnet.dhcp.clone().unwrap_or_default();
    if dhcp.disabled {
        return None;
    }
    if let Some(dns) = dns {
        tell_of_dns(&mut dhcp, compiled, dns);
    }
    let dhcp = &dhcp;
    let servers: Vec<IpAddr> = dhcp
        .dns_servers
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    if servers.len() != dhcp.dns_servers.len() {
        let rule = "is a list of addresses";
        report.add(Kind::Subnet, &subnet.id, "dhcp.dns_servers", rule);
    }
    let mut guests = Guests {
        lease: match dhcp.lease_seconds {
            0 => DEFAULT_LEASE,
            seconds => seconds,
        },
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
        stateful: matches!(dhcp.ipv6_mode.as_str(), "" | "dhcpv6-stateful"),
        ..Guests::default()
    };
    let domain = wire_name(&dhcp.domain);
    guests.dhcp6 = dhcp6(&servers, &domain);
    for text in &subnet.cidrs {
        match text.parse() {
            Ok(IpNetwork::V4(network)) => {
                let gateway = Ipv4Addr::from_bits(compiled.gateway_v4.unwrap_or_default() as u32);
                guests.mask = network.mask().to_bits();
                let told = (dhcp, &servers[..], guests.mtu, metadata);
                let router = if subnet.external_network.is_empty() {
                    Router::Own(gateway)
                } else {
                    let named = subnet.gateways.iter().filter_map(|text| text.parse().ok());
                    Router::Foreign(named.into_iter().find(|it| network.contains(*it)))
                };
                guests.dhcp = dhcp4(&subnet.id, router, told, report);
            }
            // Its router advertises itself.
            Ok(IpNetwork::V6(_)) if !subnet.external_network.is_empty() => {}
            Ok(IpNetwork::V6(network)) => {
                let mode = dhcp.ipv6_mode.as_str();
                let told = (mode, &servers[..], &domain[..], guests.mtu);
                guests.advertisement = advertisement(compiled.gateway_mac, network, told);
            }
            // Reported where the prefixes are compiled.
            Err(_) => {}
        }
    }
    let owner = (Kind::Subnet, &*subnet.id, "dhcp.options");
    dhcp_options::give(&mut guests, &dhcp.options, owner, report);
    Some(guests)
}

/// Says what a subnet leaves open: the gateway answers DNS, and the VPC has a domain.
fn tell_of_dns(dhcp: &mut v1::Dhcp, compiled: &Subnet, dns: &v1::VpcDns) {
    if dhcp.dns_servers.is_empty() {
        let gateways = [compiled.gateway_v4, compiled.gateway_v6];
        let gateways = gateways.into_iter().flatten().map(word_address);
        dhcp.dns_servers = gateways.map(|it| it.to_string()).collect();
    }
    if dhcp.domain.is_empty() {
        dhcp.domain.clone_from(&dns.domain);
    }
}

/// Appends an option with a code and a length of one byte each; one that does not fit is left out.
fn option(options: &mut Vec<u8>, code: u8, value: &[u8]) {
    if let Ok(len) = u8::try_from(value.len())
        && len > 0
    {
        options.extend([code, len]);
        options.extend(value);
    }
}

/// Who routes for the guests of a subnet.
#[derive(Debug, Clone, Copy)]
enum Router {
    /// This host, by the gateway's address.
    Own(Ipv4Addr),
    /// A router of the external network, if there is one. This host is a neighbour.
    Foreign(Option<Ipv4Addr>),
}

impl Router {
    /// The next hop of what this host serves; none (RFC 3442: 0.0.0.0) where it is on the link itself.
    fn service(self) -> Ipv4Addr {
        match self {
            Self::Own(gateway) => gateway,
            Self::Foreign(_) => Ipv4Addr::UNSPECIFIED,
        }
    }

    /// The default gateway.
    fn gateway(self) -> Option<Ipv4Addr> {
        match self {
            Self::Own(gateway) => Some(gateway),
            Self::Foreign(gateway) => gateway,
        }
    }
}

/// RFC 2132 and RFC 3442; the more important come first, since an answer may have no room for all.
fn dhcp4(
    id: &str,
    router: Router,
    told: (&v1::Dhcp, &[IpAddr], u16, bool),
    report: &mut Report,
) -> Box<[u8]> {
    let (dhcp, servers, mtu, metadata) = told;
    let mut classless = Vec::new();
    let mut routes: Vec<(Ipv4Network, Ipv4Addr)> = Vec::new();
    for (i, route) in dhcp.routes.iter().enumerate() {
        match (route.prefix.parse(), route.next_hop.parse()) {
            (Ok(prefix), Ok(next_hop)) => routes.push((prefix, next_hop)),
            _ => {
                let rule = "is an IPv4 prefix and an IPv4 address";
                report.add(Kind::Subnet, id, format!("dhcp.routes[{i}]"), rule);
            }
        }
    }
    let default = routes.iter().find(|(prefix, _)| prefix.prefix() == 0);
    let (own, is_foreign) = (router.gateway(), matches!(router, Router::Foreign(_)));
    let gateway = default.map(|(_, next_hop)| *next_hop).or(own);
    if default.is_none()
        && let Some(own) = own
    {
        classless.push(0);
        classless.extend(own.octets());
    }
    let service = Ipv4Network::from(metadata::IPV4);
    // On an external network it is where the lease is renewed, too.
    if (metadata || is_foreign) && routes.iter().all(|(prefix, _)| *prefix != service) {
        // A guest with another default route, or an address of its own on that link, finds it nevertheless.
        routes.push((service, router.service()));
    }
    for (prefix, next_hop) in &routes {
        let significant = usize::from(prefix.prefix().div_ceil(8));
        classless.push(prefix.prefix());
        classless.extend(&prefix.network().octets()[..significant.min(4)]);
        classless.extend(next_hop.octets());
    }
    let mut options = Vec::new();
    if let Some(gateway) = gateway {
        option(&mut options, 3, &gateway.octets());
    }
    option(&mut options, 121, &classless);
    option(&mut options, 26, &mtu.to_be_bytes());
    let servers: Vec<u8> = servers
        .iter()
        .filter_map(|server| match server {
            IpAddr::V4(server) => Some(server.octets()),
            IpAddr::V6(_) => None,
        })
        .flatten()
        .collect();
    option(&mut options, 6, &servers);
    option(&mut options, 15, dhcp.domain.as_bytes());
    options.into()
}

/// The IPv6 addresses among these, one after the other.
fn octets6(servers: &[IpAddr]) -> Vec<u8> {
    let octets = servers.iter().filter_map(|server| match server {
        IpAddr::V4(_) => None,
        IpAddr::V6(server) => Some(server.octets()),
    });
    octets.flatten().collect()
}

/// RFC 3646.
fn dhcp6(servers: &[IpAddr], domain: &[u8]) -> Box<[u8]> {
    let mut options = Vec::new();
    for (code, value) in [(23u16, &octets6(servers)[..]), (24, domain)] {
        if !value.is_empty() {
            options.extend(code.to_be_bytes());
            options.extend((value.len() as u16).to_be_bytes());
            options.extend(value);
        }
    }
    options.into()
}

/// The advertisement (RFC 4861 §4.2) with its options; `told`: mode, DNS servers, domain, MTU.
fn advertisement(
    gateway_mac: Mac,
    prefix: Ipv6Network,
    told: (&str, &[IpAddr], &[u8], u16),
) -> Box<[u8]> {
    let (mode, servers, domain, mtu) = told;
    // Managed and other configuration; on-link and autonomous.
    let (flags, prefix_flags) = match mode {
        "slaac" => (0, 0xc0),
        "dhcpv6-stateless" => (0x40, 0xc0),
        _ => (0xc0, 0x80),
    };
    let mut message = vec![134, 0, 0, 0, 64, flags];
    // The longest lifetime that the field holds (RFC 8319); reachable time and retransmission timer are the guest's choice.
    message.extend([0xff, 0xff]);
    message.extend([0; 8]);
    message.extend([1, 1]);
    message.extend(gateway_mac.bytes());
    message.extend([5, 1, 0, 0]);
    message.extend(u32::from(mtu).to_be_bytes());
    message.extend([3, 4, prefix.prefix(), prefix_flags]);
    message.extend(FOREVER);
    message.extend(FOREVER);
    message.extend([0; 4]);
    message.extend(prefix.network().octets());
    // A route to ::/0 for ever (RFC 4191): the router's lifetime would run out on who never asks again.
    message.extend([24, 1, 0, 0]);
    message.extend(FOREVER);
    // RFC 8106: servers, and the domain filled up to whole units.
    let mut domain = domain.to_vec();
    domain.resize(domain.len().next_multiple_of(8), 0);
    for (kind, value) in [(25, octets6(servers)), (31, domain)] {
        if let Ok(units) = u8::try_from(1 + value.len() / 8)
            && units > 1
        {
            message.extend([kind, units, 0, 0]);
            message.extend(FOREVER);
            message.extend(value);
        }
    }
    message.into()
}

/// A name as it is sent (RFC 1035 §3.1); nothing for an empty one.
fn wire_name(name: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(63)];
        wire.push(label.len() as u8);
        wire.extend(label);
    }
    if !wire.is_empty() {
        wire.push(0);
    }
    wire
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_label_by_label() {
        assert_eq!(wire_name("a.bc"), [1, b'a', 2, b'b', b'c', 0]);
        assert!(wire_name("").is_empty());
    }

    #[test]
    fn classless_routes_are_those_of_rfc_3442() {
        let route = |prefix: &str, next_hop: &str| v1::DhcpRoute {
            prefix: prefix.into(),
            next_hop: next_hop.into(),
        };
        let dhcp = v1::Dhcp {
            routes: vec![
                route("10.17.0.0/16", "10.0.0.9"),
                route("10.229.0.128/25", "10.0.0.9"),
            ],
            ..v1::Dhcp::default()
        };
        let mut report = Report::default();
        let gateway = Router::Own(Ipv4Addr::new(10, 0, 0, 1));
        let told = (&dhcp, &[][..], 1450, false);
        let options = dhcp4("a", gateway, told, &mut report);
        let routes: &[u8] = &[
            &[121, 5 + 7 + 9][..],
            &[0, 10, 0, 0, 1],
            &[16, 10, 17, 10, 0, 0, 9],
            &[25, 10, 229, 0, 128, 10, 0, 0, 9],
        ]
        .concat();
        assert_eq!(options[..6], [3, 4, 10, 0, 0, 1]);
        assert_eq!(options[6..6 + routes.len()], *routes);
        assert_eq!(options[6 + routes.len()..], [26, 2, 5, 170]);
        let told = (&dhcp, &[][..], 1450, true);
        let options = dhcp4("a", gateway, told, &mut report);
        assert_eq!(options[7], 5 + 7 + 9 + 9);
        let last = options[6 + routes.len()..][..9].to_vec();
        assert_eq!(last, [32, 169, 254, 169, 254, 10, 0, 0, 1]);
        assert!(report.violations.is_empty());
    }
}
