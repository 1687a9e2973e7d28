//! DHCP settings of subnets.

use super::{accepted, refused};
use crate::v1::{Dhcp, DhcpRoute};

/// Refused is what this makes of the first subnet's DHCP.
#[track_caller]
fn dhcp_refused(expected: &str, change: impl FnOnce(&mut Dhcp)) {
    let expected = format!("subnet front dhcp.{expected}");
    refused(&expected, |o| {
        change(o.subnets[0].dhcp.get_or_insert_default());
    });
}

fn dhcp_route(prefix: &str, next_hop: &str) -> DhcpRoute {
    DhcpRoute {
        prefix: prefix.into(),
        next_hop: next_hop.into(),
    }
}

#[test]
fn what_guests_are_told_may_fill_every_field() {
    accepted(|o| {
        o.subnets[0].dhcp = Some(Dhcp {
            disabled: false,
            dns_servers: vec!["192.0.2.53".into(), "2001:db8::53".into()],
            domain: "corp.example-1.com".into(),
            lease_seconds: u32::MAX,
            routes: vec![
                dhcp_route("0.0.0.0/0", "10.0.0.254"),
                dhcp_route("10.9.0.0/16", "10.0.0.11"),
            ],
            ipv6_mode: "slaac".into(),
        });
        o.ports[0].hostname = "web-1".into();
    });
}

#[test]
fn dns_servers_are_hosts_each_once() {
    for (text, rule) in [
        ("dns", "'dns' is not an IP address"),
        ("0.0.0.0", "0.0.0.0 is not a unicast address"),
        ("255.255.255.255", "255.255.255.255 is not"),
        ("127.0.0.53", "127.0.0.53 is not"),
        ("ff02::1", "ff02::1 is not"),
        ("::ffff:1.2.3.4", "::ffff:1.2.3.4 is not"),
    ] {
        dhcp_refused(&format!("dns_servers[0]: {rule}"), |dhcp| {
            dhcp.dns_servers = vec![text.into()];
        });
    }
    dhcp_refused("dns_servers[1]: 192.0.2.53 is given twice", |dhcp| {
        dhcp.dns_servers = vec!["192.0.2.53".into(); 2];
    });
}

#[test]
fn names_are_those_of_rfc_1123() {
    let long = "a".repeat(64);
    for domain in ["-a", "a-", "a..b", ".", "a_b", "example.com.", &long] {
        dhcp_refused(
            &format!("domain: '{domain}' is not a domain name"),
            |dhcp| dhcp.domain = domain.into(),
        );
    }
    dhcp_refused("domain: '", |dhcp| {
        dhcp.domain = ["abc"; 64].join(".");
    });
    for name in ["a.b", "-a", "a b", &long] {
        refused(&format!("port p1 hostname: '{name}' is not a name"), |o| {
            o.ports[0].hostname = name.into();
        });
    }
}

#[test]
fn dhcp_routes_lead_to_a_neighbour() {
    for (route, rule) in [
        (
            dhcp_route("10.9.0.1/16", "10.0.0.11"),
            "routes[0].prefix: '10.9.0.1/16' has host bits set; the prefix is 10.9.0.0/16",
        ),
        (
            dhcp_route("fd09::/64", "10.0.0.11"),
            "routes[0].prefix: DHCP tells IPv4 routes",
        ),
        (
            dhcp_route("10.9.0.0/16", "10.0.1.1"),
            "routes[0].next_hop: 10.0.1.1 is not in",
        ),
        (
            dhcp_route("10.9.0.0/16", "fd00::11"),
            "routes[0].next_hop: fd00::11 is not in",
        ),
    ] {
        dhcp_refused(rule, |dhcp| dhcp.routes = vec![route]);
    }
    dhcp_refused(
        "routes[1].prefix: 10.9.0.0/16 already has a route",
        |dhcp| dhcp.routes = vec![dhcp_route("10.9.0.0/16", "10.0.0.11"); 2],
    );
}

#[test]
fn leases_and_ipv6_modes_make_sense() {
    dhcp_refused("lease_seconds: 59 is less than 60", |dhcp| {
        dhcp.lease_seconds = 59;
    });
    dhcp_refused(
        "ipv6_mode: 'stateful' is not one of dhcpv6-stateful",
        |dhcp| {
            dhcp.ipv6_mode = "stateful".into();
        },
    );
    let slaac = || {
        Some(Dhcp {
            ipv6_mode: "slaac".into(),
            ..Dhcp::default()
        })
    };
    refused("subnet red-front dhcp.ipv6_mode: the subnet has no", |o| {
        o.subnets[1].dhcp = slaac();
    });
    refused("subnet front dhcp.ipv6_mode: SLAAC needs a /64", |o| {
        o.subnets[0].cidrs[1] = "fd00::/80".into();
        o.subnets[0].dhcp = slaac();
    });
}

#[test]
fn servers_and_routes_are_bounded() {
    dhcp_refused(
        "dns_servers: a subnet has at most 16 DNS servers, and 17",
        |dhcp| dhcp.dns_servers = (1..=17).map(|n| format!("192.0.3.{n}")).collect(),
    );
    dhcp_refused("routes: a subnet has at most 24 routes, and 25", |dhcp| {
        dhcp.routes = vec![DhcpRoute::default(); 25];
    });
}
