//! DHCP settings of subnets.

use super::{Objects, accepted, refused};
use crate::v1::{Dhcp, DhcpOption, DhcpRoute, VpcDns};

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

fn dhcp_option(family: &str, name: &str, value: &str) -> DhcpOption {
    DhcpOption {
        name: name.into(),
        value: value.into(),
        family: family.into(),
        force: false,
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
            options: vec![dhcp_option("", "tftp-server", "10.0.0.9")],
        });
        o.ports[0].dhcp_options = vec![
            dhcp_option("", "66", ""),
            dhcp_option("ipv4", "wpad", "http://wpad/wpad.dat"),
            dhcp_option("ipv6", "bootfile-url", "tftp://[fd00::9]/f"),
        ];
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

#[test]
fn options_are_known_and_given_once() {
    for (name, value, rule) in [
        (
            "bootfile",
            "x",
            "options[0].name: 'bootfile' is not the name",
        ),
        (
            "router",
            "10.0.0.1",
            "options[0].name: 'router' is the subnet's gateway",
        ),
        (
            "mtu",
            "big",
            "options[0].value: of mtu: 'big' is not a number",
        ),
    ] {
        dhcp_refused(rule, |dhcp| {
            dhcp.options = vec![dhcp_option("", name, value)];
        });
        refused(&format!("port p1 dhcp_{rule}"), |o| {
            o.ports[0].dhcp_options = vec![dhcp_option("", name, value)];
        });
    }
    dhcp_refused("options[0].family: 'inet' is not one of", |dhcp| {
        dhcp.options = vec![dhcp_option("inet", "66", "x")];
    });
    dhcp_refused(
        "options[1].name: the option of dhcp.options[0] is given twice",
        |dhcp| {
            dhcp.options = vec![
                dhcp_option("", "66", "x"),
                dhcp_option("ipv4", "tftp-server", "y"),
            ];
        },
    );
    dhcp_refused(
        "options: a subnet or port has at most 32 DHCP options, and 33",
        |dhcp| {
            dhcp.options = (100..133u8)
                .map(|code| dhcp_option("ipv6", &code.to_string(), "x"))
                .collect();
        },
    );
}

#[test]
fn answers_have_room_for_all_options() {
    // Router, routes and MTU take 26 bytes.
    let filling = |bytes: usize| vec![dhcp_option("", "224", &"x".repeat(bytes - 2))];
    accepted(|o| o.ports[0].dhcp_options = filling(204));
    refused(
        "port p1 dhcp_options: with the network's own parameters these are 231 bytes of DHCP options; an answer that every client takes has room for 230",
        |o| o.ports[0].dhcp_options = filling(205),
    );
    refused("port p1 dhcp_options: with the network's own", |o| {
        o.ports[0].dhcp_options = filling(204);
        o.ports[0].hostname = "a".into();
    });
    // What a port takes away leaves room.
    accepted(|o| {
        o.ports[0].dhcp_options = filling(204);
        o.ports[0].dhcp_options.push(dhcp_option("", "mtu", ""));
        o.ports[0].hostname = "ab".into();
    });
    dhcp_refused("options: with the network's own", |dhcp| {
        dhcp.options = filling(205);
    });
    // The gateway answers DNS: its address takes 6 bytes, the domain 2 more than it is long.
    let answering = |o: &mut Objects| {
        o.vpcs[0].dns = Some(VpcDns {
            domain: "blue.example".into(),
        });
    };
    accepted(|o| {
        answering(o);
        o.ports[0].dhcp_options = filling(204 - 20);
    });
    refused("port p1 dhcp_options: with the network's own", |o| {
        answering(o);
        o.ports[0].dhcp_options = filling(204 - 19);
    });
    refused("subnet front dhcp.options: with the network's own", |o| {
        answering(o);
        o.subnets[0].dhcp.get_or_insert_default().options = filling(204 - 19);
    });
    accepted(|o| {
        answering(o);
        let dhcp = o.subnets[0].dhcp.get_or_insert_default();
        dhcp.domain = "b".into();
        dhcp.dns_servers = vec!["fd00::1".into()];
        o.ports[0].dhcp_options = filling(204 - 3);
    });
    // What a subnet gives counts for its ports, but for what they replace.
    refused("port p1 dhcp_options: with the network's own", |o| {
        o.subnets[0].dhcp.get_or_insert_default().options = filling(100);
        o.ports[0].dhcp_options = vec![dhcp_option("", "225", &"x".repeat(103))];
    });
    accepted(|o| {
        o.subnets[0].dhcp.get_or_insert_default().options = filling(100);
        o.ports[0].dhcp_options = filling(204);
    });
    let long = |bytes: usize| vec![dhcp_option("ipv6", "bootfile-url", &"x".repeat(bytes - 4))];
    accepted(|o| o.ports[0].dhcp_options = long(384));
    refused(
        "port p1 dhcp_options: these are 385 bytes of DHCPv6 options",
        |o| {
            o.ports[0].dhcp_options = long(385);
        },
    );
}
