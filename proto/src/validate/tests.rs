//! One valid topology, and each rule broken in it.

mod balancer;
mod dhcp;
mod dns;
mod external;
mod learning;
mod parts;
mod peering;
mod policy_routes;
mod port_changes;
mod tenants;
mod trunk;
mod wire;

use std::time::{Duration, Instant};

use super::*;
use crate::v1::{
    AclRule, AddressPair, Device, Host, NetworkAcl, NextHop, Objects, Port, PrefixList, RateLimit,
    RateLimits, Route, RouteTable, SecurityGroup, SecurityRule, Subnet, Vpc,
};

fn port(id: &str, subnet: &str, host: &str, n: u8) -> Port {
    Port {
        id: id.into(),
        vpc: "blue".into(),
        subnet: subnet.into(),
        mac: format!("02:00:00:00:00:{n:02x}"),
        addresses: vec![format!("10.0.0.{n}"), format!("fd00::{n:x}")],
        security_groups: vec!["web".into()],
        host: host.into(),
        device: Some(Device {
            kind: "netdev".into(),
            name: format!("veth-{id}"),
            ..Device::default()
        }),
        ..Port::default()
    }
}

fn host(id: &str, vteps: &[&str]) -> Host {
    Host {
        id: id.into(),
        vteps: vteps.iter().map(|v| (*v).to_owned()).collect(),
        ..Host::default()
    }
}

fn good() -> Objects {
    Objects {
        hosts: vec![host("h1", &["192.0.2.1"]), host("h2", &["192.0.2.2"])],
        vpcs: vec![
            Vpc {
                id: "blue".into(),
                vni: 7,
                ..Vpc::default()
            },
            Vpc {
                id: "red".into(),
                vni: 8,
                ..Vpc::default()
            },
        ],
        subnets: vec![
            Subnet {
                id: "front".into(),
                vpc: "blue".into(),
                cidrs: vec!["10.0.0.0/24".into(), "fd00::/64".into()],
                route_table: "main".into(),
                network_acl: "edge".into(),
                ..Subnet::default()
            },
            Subnet {
                id: "red-front".into(),
                vpc: "red".into(),
                cidrs: vec!["10.0.0.0/24".into()],
                ..Subnet::default()
            },
        ],
        route_tables: vec![RouteTable {
            id: "main".into(),
            vpc: "blue".into(),
            routes: vec![
                Route {
                    prefix: "0.0.0.0/0".into(),
                    ecmp: vec![
                        NextHop {
                            port: "p1".into(),
                            weight: 2,
                            ..NextHop::default()
                        },
                        NextHop {
                            host: "h2".into(),
                            next_hop_mac: "02:00:00:00:01:00".into(),
                            ..NextHop::default()
                        },
                    ],
                    ..Route::default()
                },
                Route {
                    prefix: "10.9.0.0/16".into(),
                    blackhole: true,
                    ..Route::default()
                },
            ],
            ..RouteTable::default()
        }],
        network_acls: vec![NetworkAcl {
            id: "edge".into(),
            vpc: "blue".into(),
            rules: vec![
                AclRule {
                    number: 100,
                    direction: "ingress".into(),
                    action: "allow".into(),
                    protocol: "tcp".into(),
                    cidr: "10.0.0.0/8".into(),
                    port_min: Some(80),
                    port_max: Some(443),
                    ..AclRule::default()
                },
                AclRule {
                    number: 100,
                    direction: "egress".into(),
                    action: "deny".into(),
                    protocol: "icmpv6".into(),
                    icmp_type: Some(128),
                    icmp_code: Some(0),
                    ..AclRule::default()
                },
            ],
            ..NetworkAcl::default()
        }],
        prefix_lists: vec![PrefixList {
            id: "offices".into(),
            vpc: "blue".into(),
            prefixes: vec!["198.51.100.0/24".into(), "2001:db8::/32".into()],
            ..PrefixList::default()
        }],
        security_groups: vec![SecurityGroup {
            id: "web".into(),
            vpc: "blue".into(),
            rules: vec![
                SecurityRule {
                    direction: "ingress".into(),
                    remote_group: "web".into(),
                    ..SecurityRule::default()
                },
                SecurityRule {
                    direction: "ingress".into(),
                    protocol: "47".into(),
                    remote_prefix_list: "offices".into(),
                    family: "ipv4".into(),
                    ..SecurityRule::default()
                },
            ],
            ..SecurityGroup::default()
        }],
        ports: vec![
            port("p1", "front", "h1", 11),
            Port {
                allowed_pairs: vec![AddressPair {
                    cidr: "10.7.0.0/16".into(),
                    mac: String::new(),
                }],
                ..port("p2", "front", "h2", 12)
            },
            // The same MAC and address in another VPC.
            Port {
                vpc: "red".into(),
                addresses: vec!["10.0.0.11".into()],
                security_groups: vec![],
                device: Some(Device {
                    kind: "netdev".into(),
                    name: "veth-r1".into(),
                    ..Device::default()
                }),
                ..port("r1", "red-front", "h1", 11)
            },
        ],
        ..Objects::default()
    }
}

fn violations(change: impl FnOnce(&mut Objects), scope: Scope<'_>) -> Vec<String> {
    let mut objects = good();
    change(&mut objects);
    let state = State::from_objects(objects).unwrap();
    let before = State::from_objects(good()).unwrap();
    let mut one_by_one = State::default();
    for object in state.iter() {
        one_by_one.insert(object.clone());
    }
    assert!(one_by_one.has_the_index_of(&state), "{state:?}");
    assert_eq!(one_by_one, state);
    let mut found = validate(&state, scope);
    if validate(&before, scope).is_empty() && found.len() < limits::VIOLATIONS {
        let line = |violation: &v1::Violation| describe(violation);
        let mut next = validate_next(&before, &state, scope);
        found.sort_by_key(line);
        next.sort_by_key(line);
        assert_eq!(next, found, "what is found by the changes alone");
    }
    found
        .into_iter()
        .map(|v| {
            let object = v.object.unwrap();
            format!("{} {} {}: {}", object.kind, object.id, v.field, v.rule)
        })
        .collect()
}

/// Exactly one violation, which starts so.
#[track_caller]
fn refused(expected: &str, change: impl FnOnce(&mut Objects)) {
    let found = violations(change, Scope::Intent);
    assert!(
        found.len() == 1 && found[0].starts_with(expected),
        "expected '{expected}', found {found:#?}"
    );
}

#[track_caller]
fn accepted(change: impl FnOnce(&mut Objects)) {
    assert_eq!(violations(change, Scope::Intent), Vec::<String>::new());
}

#[test]
fn a_good_topology_passes() {
    accepted(|_| {});
}

#[test]
fn an_id_of_other_characters_is_refused() {
    refused("vpc a b id: an id is", |o| {
        o.vpcs.push(Vpc {
            id: "a b".into(),
            vni: 9,
            ..Vpc::default()
        });
    });
}

#[test]
fn a_vpc_id_out_of_range_or_taken_is_refused() {
    refused("vpc red vni: 16777216 is outside 1 to 16777215", |o| {
        o.vpcs[1].vni = 16_777_216;
    });
    refused("vpc red vni: 0 is outside", |o| o.vpcs[1].vni = 0);
    refused("vpc red vni: 7 is already used by vpc 'blue'", |o| {
        o.vpcs[1].vni = 7;
    });
}

#[test]
fn references_lead_to_what_exists_in_the_same_vpc() {
    refused(
        "subnet front route_table: there is no route_table 'x'",
        |o| {
            o.subnets[0].route_table = "x".into();
        },
    );
    refused(
        "subnet red-front network_acl: network_acl 'edge' belongs to vpc 'blue', not to 'red'",
        |o| o.subnets[1].network_acl = "edge".into(),
    );
    refused("prefix_list offices vpc: there is no vpc 'x'", |o| {
        o.security_groups[0].rules.pop();
        o.prefix_lists[0].vpc = "x".into();
    });
    refused(
        "port p1 security_groups[0]: there is no security_group 'x'",
        |o| {
            o.ports[0].security_groups[0] = "x".into();
        },
    );
    refused(
        "port p1 subnet: subnet 'red-front' belongs to vpc 'red'",
        |o| {
            o.ports[0].subnet = "red-front".into();
            o.ports[0].addresses = vec!["10.0.0.21".into()];
        },
    );
    refused("port p1 host: there is no host 'h9'", |o| {
        o.ports[0].host = "h9".into();
    });
    refused(
        "security_group web rules[1].remote_prefix_list: there is no prefix_list 'x'",
        |o| o.security_groups[0].rules[1].remote_prefix_list = "x".into(),
    );
}

#[test]
fn a_subnet_prefix_with_host_bits_is_refused_with_the_corrected_form() {
    refused(
        "subnet red-front cidrs[0]: '10.0.0.9/24' has host bits set; the prefix is 10.0.0.0/24",
        |o| {
            o.ports.pop();
            o.subnets[1].cidrs[0] = "10.0.0.9/24".into();
        },
    );
}

#[test]
fn a_subnet_has_one_prefix_of_a_family_and_at_least_one() {
    refused(
        "subnet front cidrs[2]: a subnet has at most one IPv4",
        |o| {
            o.subnets[0].cidrs.push("10.1.0.0/24".into());
        },
    );
    refused("subnet red-front cidrs: a subnet needs at least one", |o| {
        o.ports.pop();
        o.subnets[1].cidrs.clear();
    });
    refused(
        "subnet red-front cidrs[0]: 224.0.0.0/24 contains multicast addresses",
        |o| {
            o.ports.pop();
            o.subnets[1].cidrs[0] = "224.0.0.0/24".into();
        },
    );
    refused("subnet red-front cidrs[0]: a prefix longer than /30", |o| {
        o.ports.pop();
        o.subnets[1].cidrs[0] = "10.0.0.0/31".into();
    });
}

#[test]
fn a_subnet_floods_multicast_or_snoops_it() {
    refused(
        "subnet red-front multicast: 'igmp' is neither flood nor snooping",
        |o| o.subnets[1].multicast = "igmp".into(),
    );
    for mode in ["", "flood", "snooping"] {
        accepted(|o| o.subnets[1].multicast = mode.into());
    }
}

#[test]
fn addresses_that_no_router_passes_on_belong_to_nobody() {
    let give = |o: &mut Objects, prefix: &str| {
        o.subnets[1].cidrs = vec![prefix.into()];
        let inside = o.ports.iter_mut().filter(|port| port.subnet == "red-front");
        inside.for_each(|port| port.addresses.clear());
    };
    for (prefix, what) in [
        ("0.0.0.0/0", "this network"),
        ("128.0.0.0/1", "link-local"),
        ("96.0.0.0/3", "loopback"),
        ("192.0.0.0/2", "multicast"),
        ("169.254.0.0/16", "link-local"),
        ("169.254.7.0/24", "link-local"),
        ("240.1.0.0/24", "reserved"),
        ("fe00::/8", "link-local"),
        ("fe80::/64", "link-local"),
        ("ff05::/64", "multicast"),
        ("::/64", "unspecified"),
        ("::ffff:10.0.0.0/120", "IPv4-mapped"),
    ] {
        let expected = format!("subnet red-front cidrs[0]: {prefix} contains {what} addresses");
        refused(&expected, |o| give(o, prefix));
    }
    for prefix in [
        "64:ff9b::/96",
        "2001:db8:1::/64",
        "198.18.0.0/15",
        "223.255.255.0/24",
    ] {
        accepted(|o| give(o, prefix));
    }
    for (address, what) in [
        ("127.0.0.5", "loopback"),
        ("224.0.0.5", "multicast"),
        ("fe80::5", "link-local"),
        ("255.255.255.255", "reserved"),
        ("::", "unspecified"),
    ] {
        let expected =
            format!("port p1 addresses[0]: {address} is {what}, which a port cannot have");
        refused(&expected, |o| o.ports[0].addresses = vec![address.into()]);
    }
    for (vtep, what) in [
        ("fe80::1", "link-local"),
        ("169.254.0.1", "link-local"),
        ("255.255.255.255", "reserved"),
        ("::ffff:192.0.2.9", "IPv4-mapped"),
    ] {
        let expected =
            format!("host h2 vteps[1]: {vtep} is not a routable unicast address: it is {what}");
        refused(&expected, |o| o.hosts[1].vteps.push(vtep.into()));
    }
}

#[test]
fn what_is_a_gateways_is_no_ports() {
    let own = "02:00:00:00:99:99";
    // Of another subnet of the VPC, and whichever came first.
    refused(
        "port p1 mac: 02:00:00:00:99:99 is the MAC of the gateway of subnet 'back'",
        |o| {
            let mut back = o.subnets[0].clone();
            back.id = "back".into();
            back.cidrs = vec!["10.0.7.0/24".into()];
            back.gateway_mac = own.into();
            o.subnets.push(back);
            o.ports[0].mac = own.into();
        },
    );
    let pair = |cidr: &str, mac: &str| {
        let pair = AddressPair {
            cidr: cidr.into(),
            mac: mac.into(),
        };
        move |o: &mut Objects| o.ports[0].allowed_pairs = vec![pair]
    };
    refused(
        "port p1 allowed_pairs[0].mac: 02:77:65:66:74:01 is the MAC of the gateway of subnet 'front'",
        pair("10.0.0.77", "02:77:65:66:74:01"),
    );
    for gateway in ["10.0.0.1", "10.0.0.1/32", "fd00::1"] {
        let expected =
            format!("port p1 allowed_pairs[0].cidr: {gateway} is the gateway of subnet 'front'");
        refused(&expected, pair(gateway, ""));
    }
    // An appliance passes on whatever there is.
    accepted(pair("0.0.0.0/0", ""));
    accepted(pair("10.0.0.0/24", ""));
}

#[test]
fn overlapping_subnets_of_a_vpc_are_refused() {
    let other = |cidr: &str, vpc: &str| Subnet {
        id: "other".into(),
        vpc: vpc.into(),
        cidrs: vec![cidr.into()],
        ..Subnet::default()
    };
    refused(
        "subnet other cidrs[0]: 10.0.0.128/25 overlaps 10.0.0.0/24",
        |o| {
            o.subnets.push(other("10.0.0.128/25", "blue"));
        },
    );
    refused(
        "subnet front cidrs[0]: 10.0.0.0/24 overlaps 10.0.0.0/8",
        |o| {
            o.subnets.push(other("10.0.0.0/8", "blue"));
        },
    );
    refused("subnet other cidrs[0]: fd00::/64 overlaps fd00::/64", |o| {
        o.subnets.push(other("fd00::/64", "blue"));
    });
    accepted(|o| o.subnets.push(other("10.0.1.0/24", "blue")));
}

#[test]
fn gateways_are_one_per_prefix_and_inside_it() {
    let set = |gateways: &'static [&'static str]| {
        move |o: &mut Objects| {
            o.subnets[0].gateways = gateways.iter().map(|g| (*g).to_owned()).collect();
        }
    };
    accepted(set(&["10.0.0.254", "fd00::ff"]));
    // Every IPv6 router has it (RFC 4291 §2.6.1).
    accepted(set(&["10.0.0.254", "fd00::"]));
    refused(
        "subnet front gateways[0]: 10.0.0.0 is the network address",
        set(&["10.0.0.0", "fd00::1"]),
    );
    refused(
        "subnet front gateways: set none, or one",
        set(&["10.0.0.1"]),
    );
    refused(
        "subnet front gateways[1]: fd01::1 is in no prefix",
        set(&["10.0.0.1", "fd01::1"]),
    );
    refused(
        "subnet front gateways[1]: 10.0.0.0/24 already has a gateway",
        set(&["10.0.0.1", "10.0.0.2"]),
    );
    refused(
        "subnet front gateways[0]: 10.0.0.255 is the broadcast address",
        set(&["10.0.0.255", "fd00::1"]),
    );
    refused(
        "port p1 addresses[0]: 10.0.0.11 is the gateway",
        set(&["10.0.0.11", "fd00::1"]),
    );
}

#[test]
fn rates_and_bursts_are_within_reason() {
    let limited = |limit: RateLimit| {
        Some(RateLimits {
            egress: None,
            ingress: Some(limit),
        })
    };
    let bits = |bits_per_second, burst_bits| RateLimit {
        bits_per_second,
        burst_bits,
        ..RateLimit::default()
    };
    let packets = |packets_per_second, burst_packets| RateLimit {
        packets_per_second,
        burst_packets,
        ..RateLimit::default()
    };
    for good in [
        RateLimit::default(),
        bits(8000, 0),
        bits(1_000_000_000_000, 10_000_000_000),
        packets(1, 60),
    ] {
        accepted(|o| o.ports[0].limits = limited(good));
    }
    for (bad, rule) in [
        (bits(7999, 0), "bits_per_second: 7999 is outside 8000 to"),
        (bits(1_000_000_000_001, 0), "bits_per_second: 1000000000001"),
        (bits(0, 8000), "burst_bits: a burst needs a rate"),
        (bits(8000, 79), "burst_bits: 79 is outside 80 to 480000"),
        (
            packets(1_000_000_001, 0),
            "packets_per_second: 1000000001 is outside 1 to",
        ),
        (packets(1, 61), "burst_packets: 61 is outside 1 to 60"),
    ] {
        refused(&format!("port p1 limits.ingress.{rule}"), |o| {
            o.ports[0].limits = limited(bad);
        });
    }
}

#[test]
fn macs_are_unicast_and_unique_in_a_vpc() {
    refused("port p1 mac: '01:00:00:00:00:01' is not a unicast", |o| {
        o.ports[0].mac = "01:00:00:00:00:01".into();
    });
    refused(
        "port p2 mac: 02:00:00:00:00:0B is already used by port 'p1'",
        |o| {
            o.ports[1].mac = "02:00:00:00:00:0B".into();
        },
    );
    refused(
        "port p1 mac: 02:77:65:66:74:01 is the MAC of the gateway of subnet 'front'",
        |o| {
            o.ports[0].mac = "02:77:65:66:74:01".into();
        },
    );
    refused("subnet front gateway_mac: 'x' is not a MAC", |o| {
        o.subnets[0].gateway_mac = "x".into();
    });
}

#[test]
fn port_addresses_are_inside_the_subnet_free_and_unique() {
    let set = |address: &'static str| {
        move |o: &mut Objects| o.ports[0].addresses = vec![address.to_owned()]
    };
    refused(
        "port p1 addresses[0]: 10.0.1.5 is in no prefix",
        set("10.0.1.5"),
    );
    refused(
        "port p1 addresses[0]: 10.0.0.1 is the gateway",
        set("10.0.0.1"),
    );
    refused(
        "port p1 addresses[0]: 10.0.0.0 is the network",
        set("10.0.0.0"),
    );
    refused(
        "port p1 addresses[0]: 10.0.0.255 is the broadcast",
        set("10.0.0.255"),
    );
    refused("port p1 addresses[0]: fd00:: is the network", set("fd00::"));
    refused("port p1 addresses[0]: 'x' is not an IP", set("x"));
    refused(
        "port p2 addresses[1]: fd00::c is already used by port 'p1'",
        set("fd00:0::c"),
    );
    refused(
        "port p1 addresses: a port has at most 16 addresses, and 17 are given",
        |o| {
            o.ports[0].addresses = (0..17).map(|n| format!("10.0.0.{}", 20 + n)).collect();
        },
    );
}

#[test]
fn allowed_pairs_are_prefixes_or_addresses_with_unicast_macs() {
    refused(
        "port p2 allowed_pairs[0].cidr: '10.7.0.1/16' has host bits",
        |o| {
            o.ports[1].allowed_pairs[0].cidr = "10.7.0.1/16".into();
        },
    );
    refused(
        "port p2 allowed_pairs[0].mac: 'ff:ff:ff:ff:ff:ff' is not",
        |o| {
            o.ports[1].allowed_pairs[0].mac = "ff:ff:ff:ff:ff:ff".into();
        },
    );
    accepted(|o| o.ports[1].allowed_pairs[0].cidr = "10.7.0.1".into());
}

#[test]
fn a_route_has_exactly_one_target_that_exists() {
    let set =
        |change: fn(&mut Route)| move |o: &mut Objects| change(&mut o.route_tables[0].routes[1]);
    refused(
        "route_table main routes[1]: exactly one of",
        set(|r| r.blackhole = false),
    );
    refused(
        "route_table main routes[1]: exactly one of",
        set(|r| r.local = true),
    );
    refused(
        "route_table main routes[1].port: there is no port 'x'",
        set(|r| {
            r.blackhole = false;
            r.port = "x".into();
        }),
    );
    refused(
        "route_table main routes[1].host: there is no host 'x'",
        set(|r| {
            r.blackhole = false;
            r.host = "x".into();
        }),
    );
    refused(
        "route_table main routes[1].port: port 'r1' belongs to vpc 'red'",
        set(|r| {
            r.blackhole = false;
            r.port = "r1".into();
        }),
    );
    refused(
        "route_table main routes[1].next_hop_mac: next_hop_mac is only for a route to a host",
        set(|r| r.next_hop_mac = "02:00:00:00:00:01".into()),
    );
    refused(
        "route_table main routes[1].prefix: 0.0.0.0/0 already has a route",
        set(|r| r.prefix = "0.0.0.0/0".into()),
    );
    refused(
        "route_table main routes[0].ecmp[0].port: port 'p1' is on no host",
        |o| {
            o.ports[0].host.clear();
        },
    );
}

#[test]
fn ecmp_members_are_bounded_distinct_and_lead_to_one_place() {
    let set = |change: fn(&mut Vec<NextHop>)| {
        move |o: &mut Objects| change(&mut o.route_tables[0].routes[0].ecmp)
    };
    refused(
        "route_table main routes[0].ecmp[0].weight: 65536 is outside",
        set(|e| e[0].weight = 65536),
    );
    refused(
        "route_table main routes[0].ecmp[0]: exactly one",
        set(|e| e[0].host = "h1".into()),
    );
    refused(
        "route_table main routes[0].ecmp[2]: the same next hop",
        set(|e| e.push(e[0].clone())),
    );
    refused(
        "route_table main routes[0].ecmp: a route has at most 256 next hops, and 257 are given",
        set(|e| *e = vec![e[0].clone(); 257]),
    );
}

#[test]
fn acl_rules_have_a_free_number_and_known_words() {
    let set =
        |change: fn(&mut AclRule)| move |o: &mut Objects| change(&mut o.network_acls[0].rules[1]);
    let at = "network_acl edge rules[1]";
    refused(&format!("{at}.number: 0 is outside"), set(|r| r.number = 0));
    refused(
        &format!("{at}.number: 32768 is outside"),
        set(|r| r.number = 32768),
    );
    refused(
        &format!("{at}.number: 100 is already used by rules[0]"),
        set(|r| r.direction = "ingress".into()),
    );
    refused(
        &format!("{at}.direction: 'in' is neither"),
        set(|r| r.direction = "in".into()),
    );
    refused(
        &format!("{at}.action: 'drop' is neither"),
        set(|r| r.action = "drop".into()),
    );
    refused(
        &format!("{at}.protocol: 'ospf' is not"),
        set(|r| r.protocol = "ospf".into()),
    );
}

#[test]
fn ports_and_icmp_types_fit_their_protocol() {
    let set =
        |change: fn(&mut AclRule)| move |o: &mut Objects| change(&mut o.network_acls[0].rules[0]);
    let at = "network_acl edge rules[0]";
    refused(
        &format!("{at}.port_max: 65536 is outside"),
        set(|r| r.port_max = Some(65536)),
    );
    refused(
        &format!("{at}.port_min: 80 to 79 is an empty range"),
        set(|r| r.port_max = Some(79)),
    );
    refused(
        &format!("{at}.port_max: set both port_min and port_max, or neither"),
        set(|r| r.port_max = None),
    );
    refused(
        &format!("{at}.port_min: only tcp, udp and sctp"),
        set(|r| r.protocol = "47".into()),
    );
    refused(
        &format!("{at}.icmp_type: only icmp"),
        set(|r| r.icmp_type = Some(8)),
    );
    let set =
        |change: fn(&mut AclRule)| move |o: &mut Objects| change(&mut o.network_acls[0].rules[1]);
    let at = "network_acl edge rules[1]";
    refused(
        &format!("{at}.icmp_type: 256 is outside"),
        set(|r| r.icmp_type = Some(256)),
    );
    refused(
        &format!("{at}.icmp_code: a code needs"),
        set(|r| r.icmp_type = None),
    );
}

#[test]
fn mixed_families_in_one_rule_are_refused() {
    refused(
        "network_acl edge rules[1]: IPv4 and IPv6 are mixed: protocol icmpv6, 10.0.0.0/8",
        |o| {
            o.network_acls[0].rules[1].cidr = "10.0.0.0/8".into();
        },
    );
    refused(
        "security_group web rules[0]: IPv4 and IPv6 are mixed: family ipv4, fd00::/8",
        |o| {
            let rule = &mut o.security_groups[0].rules[0];
            rule.remote_group.clear();
            rule.family = "ipv4".into();
            rule.remote_cidr = "fd00::/8".into();
        },
    );
    refused("security_group web rules[0].family: 'v4' is neither", |o| {
        o.security_groups[0].rules[0].family = "v4".into();
    });
}

#[test]
fn a_group_rule_has_at_most_one_remote() {
    refused("security_group web rules[0]: at most one of", |o| {
        o.security_groups[0].rules[0].remote_cidr = "10.0.0.0/8".into();
    });
}

#[test]
fn members_are_for_hosts_alone() {
    let members = |o: &mut Objects| o.security_groups[0].members = vec!["10.0.0.11".into()];
    refused(
        "security_group web members: filled by the controller",
        members,
    );
    assert!(violations(members, Scope::Node { host: "h1" }).is_empty());
}

#[test]
fn prefix_lists_hold_prefixes() {
    refused(
        "prefix_list offices prefixes[0]: 'x' is not a prefix",
        |o| {
            o.prefix_lists[0].prefixes[0] = "x".into();
        },
    );
}

#[test]
fn hosts_have_unique_tunnel_addresses_and_a_known_encapsulation() {
    let set = |change: fn(&mut Host)| move |o: &mut Objects| change(&mut o.hosts[1]);
    refused(
        "host h2 vteps: a host needs at least one",
        set(|h| h.vteps.clear()),
    );
    refused(
        "host h2 vteps[0]: 'x' is not an IP",
        set(|h| h.vteps = vec!["x".into()]),
    );
    refused(
        "host h2 vteps[0]: 127.0.0.1 is not a routable unicast",
        set(|h| h.vteps = vec!["127.0.0.1".into()]),
    );
    refused(
        "host h2 vteps[0]: 192.0.2.1 is already used by host 'h1'",
        set(|h| h.vteps = vec!["192.0.2.1".into()]),
    );
    refused(
        "host h2 encapsulation: 'geneve' is neither",
        set(|h| h.encapsulation = "geneve".into()),
    );
}

#[test]
fn an_mtu_that_cannot_carry_the_tunnel_is_refused() {
    refused(
        "subnet front mtu: 1451 and 50 of tunnel exceed the underlay_mtu 1500 of host 'h1'; at most 1450",
        |o| {
            o.hosts[1].underlay_mtu = 9000;
            o.ports[2].host = "h2".into();
            o.subnets[0].mtu = 1451;
        },
    );
    refused(
        "subnet front mtu: 1450 and 50 of tunnel exceed the underlay_mtu 1400 of host 'h2'",
        |o| {
            o.hosts[1].underlay_mtu = 1400;
        },
    );
    // An IPv6 tunnel costs 20 more, which the default MTU allows for; one that is set must.
    accepted(|o| o.hosts[1].vteps.push("2001:db8::2".into()));
    refused("subnet front mtu: 1450 and 70 of tunnel exceed", |o| {
        o.hosts[1].vteps.push("2001:db8::2".into());
        o.subnets[0].mtu = 1450;
    });
    accepted(|o| {
        for host in &mut o.hosts {
            host.encapsulation = "gre".into();
        }
        o.subnets[0].mtu = 1458;
    });
    refused("subnet front mtu: 1279 is outside 1280", |o| {
        o.subnets[0].mtu = 1279;
    });
}

#[test]
fn hosts_that_share_no_family_cannot_carry_one_vpc() {
    refused(
        "vpc blue : host 'h1' has only IPv4 tunnel addresses and host 'h2' only IPv6",
        |o| {
            o.hosts[1].vteps = vec!["2001:db8::2".into()];
        },
    );
}

#[test]
fn devices_are_needed_where_weftd_runs_and_unique_there() {
    let none = |o: &mut Objects| o.ports[1].device = None;
    refused(
        "port p2 device: a port on a host that runs weftd needs a device",
        none,
    );
    assert!(violations(none, Scope::Node { host: "h1" }).is_empty());
    assert_eq!(violations(none, Scope::Node { host: "h2" }).len(), 1);
    accepted(|o| {
        o.hosts[1].foreign = true;
        o.ports[1].device = None;
    });
    let set = |name: &'static str| {
        move |o: &mut Objects| o.ports[0].device.as_mut().unwrap().name = name.to_owned()
    };
    refused(
        "port p1 device.name: '' is not an interface's name",
        set(""),
    );
    refused(
        "port p1 device.name: 'a-name-too-long0' is not",
        set("a-name-too-long0"),
    );
    refused(
        "port r1 device.name: 'veth-r1' of host 'h1' is already used by port 'p1'",
        set("veth-r1"),
    );
    let device = |kind: &str, name: &str, mode: &str, queues| Device {
        kind: kind.into(),
        name: name.into(),
        mode: mode.into(),
        queues,
    };
    for (wrong, rule) in [
        (
            device("bridge", "b0", "", 0),
            "device.kind: 'bridge' is not a kind",
        ),
        (
            device("netdev", "v0", "server", 0),
            "device.mode: a netdev has no mode",
        ),
        (
            device("netdev", "v0", "", 2),
            "device.queues: a netdev takes its queues",
        ),
        (
            device("tap", "/run/vm", "", 0),
            "device.name: '/run/vm' is not an interface's name",
        ),
        (
            device("vhost-user", "vm", "", 0),
            "device.name: 'vm' is not a socket's path",
        ),
        (
            device("vhost-user", "/run/vm", "both", 0),
            "device.mode: 'both' is not a mode",
        ),
        (
            device("vhost-user", "/run/vm", "", 17),
            "device.queues: 17 is more than 16",
        ),
    ] {
        refused(&format!("port p1 {rule}"), |o| {
            o.ports[0].device = Some(wrong);
        });
    }
    for right in [
        device("vhost-user", "/run/vm", "", 0),
        device("vhost-user", "/run/vm", "server", 16),
        device("vhost-user", "/run/vm", "client", 1),
        device("tap", "tap0", "", 4),
    ] {
        accepted(|o| o.ports[0].device = Some(right));
    }
}

#[test]
fn a_port_that_is_not_bound_needs_no_device() {
    accepted(|o| {
        o.ports[1].host.clear();
        o.ports[1].device = None;
    });
}

#[test]
fn every_list_is_bounded() {
    refused(
        "host h1 vteps: a host has at most 16 tunnel addresses, and 17",
        |o| {
            o.hosts[0].vteps = (1..=17).map(|n| format!("192.0.3.{n}")).collect();
        },
    );
    refused(
        "route_table main routes: a route table has at most 2000000 routes",
        |o| {
            o.route_tables[0].routes = vec![Route::default(); 2_000_001];
        },
    );
    refused(
        "network_acl edge rules: a network ACL has at most 20000 rules",
        |o| {
            o.network_acls[0].rules = vec![AclRule::default(); 20_001];
        },
    );
    refused(
        "security_group web rules: a security group has at most 20000",
        |o| {
            o.security_groups[0].rules = vec![SecurityRule::default(); 20_001];
        },
    );
    refused(
        "prefix_list offices prefixes: a prefix list has at most 262144",
        |o| {
            o.prefix_lists[0].prefixes = vec![String::new(); 262_145];
        },
    );
    refused(
        "port p1 allowed_pairs: a port has at most 64 allowed pairs, and 65",
        |o| {
            o.ports[0].allowed_pairs = vec![AddressPair::default(); 65];
        },
    );
    refused(
        "port p1 security_groups: a port is in at most 16 security groups",
        |o| {
            o.ports[0].security_groups = (0..17).map(|n| format!("g{n}")).collect();
        },
    );
}

#[test]
fn members_are_bounded_wherever_they_are_given() {
    let members = |o: &mut Objects| {
        o.security_groups[0].members = vec!["10.0.0.11".into(); 262_145];
    };
    let found = violations(members, Scope::Node { host: "h1" });
    assert_eq!(
        found[0],
        "security_group web members: a security group has at most 262144 members, and 262145 are given"
    );
    let addresses = |o: &mut Objects| {
        o.ports[0].addresses = (0..16).map(|n| format!("10.0.0.{}", 20 + n)).collect();
        for n in 0..16_383u32 {
            let [_, _, a, b] = n.to_be_bytes();
            let address = |i: usize| format!("fd00::{a:x}:{b:x}:{i:x}:ff");
            o.ports.push(Port {
                id: format!("many-{n}"),
                mac: format!("06:00:00:00:{a:02x}:{b:02x}"),
                addresses: (0..16).map(address).collect(),
                host: String::new(),
                device: None,
                ..port("x", "front", "h1", 99)
            });
        }
        o.ports[1].security_groups = vec!["web".into()];
    };
    refused(
        "security_group web members: the ports of a security group have at most 262144 addresses, and 262146 are given",
        addresses,
    );
}

#[test]
fn the_sets_that_a_group_asks_are_bounded() {
    let naming = |count: usize| {
        move |o: &mut Objects| {
            let list = |n: usize| PrefixList {
                id: format!("list-{n}"),
                ..o.prefix_lists[0].clone()
            };
            let lists: Vec<PrefixList> = (0..count).map(list).collect();
            let rule = |list: &PrefixList| SecurityRule {
                direction: "ingress".into(),
                remote_prefix_list: list.id.clone(),
                ..SecurityRule::default()
            };
            // Twice the same is one set; no set at all is none.
            let rules = lists.iter().chain(&lists).map(rule);
            o.security_groups[0].rules = rules
                .chain([SecurityRule {
                    direction: "ingress".into(),
                    ..SecurityRule::default()
                }])
                .collect();
            o.prefix_lists.extend(lists);
        }
    };
    accepted(naming(64));
    refused(
        "security_group web rules: the rules of a security group name at most 64 different security groups and prefix lists, and 65",
        naming(65),
    );
}

#[test]
fn only_so_many_violations_are_told() {
    let found = violations(
        |o| o.network_acls[0].rules = vec![AclRule::default(); 20_000],
        Scope::Intent,
    );
    assert_eq!(found.len(), limits::VIOLATIONS);
}

#[test]
fn what_refers_to_something_deleted_is_found_by_the_deletion() {
    let mut objects = good();
    external::add(&mut objects);
    let before = State::from_objects(objects).unwrap();
    for key in before.iter().map(Object::key) {
        let next = before
            .patched(Objects::default(), &[key.to_wire()])
            .unwrap();
        let sorted = |mut found: Vec<v1::Violation>| {
            found.sort_by_key(describe);
            found
        };
        assert_eq!(
            sorted(validate_next(&before, &next, Scope::Intent)),
            sorted(validate(&next, Scope::Intent)),
            "{key}"
        );
    }
}

#[test]
fn a_hundred_thousand_ports_are_checked_in_seconds() {
    let mut objects = good();
    for n in 0..100_000u32 {
        let [_, a, b, c] = n.to_be_bytes();
        objects.ports.push(Port {
            id: format!("many-{n}"),
            mac: format!("06:00:00:{a:02x}:{b:02x}:{c:02x}"),
            addresses: vec![format!("fd00::1:{a:x}:{b:x}:{c:x}")],
            device: Some(Device {
                kind: "netdev".into(),
                name: format!("v{n}"),
                ..Device::default()
            }),
            ..port("x", "front", "h1", 99)
        });
    }
    let state = State::from_objects(objects).unwrap();
    let start = Instant::now();
    assert_eq!(validate(&state, Scope::Intent), vec![]);
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "took {:?}",
        start.elapsed()
    );
}

#[test]
fn of_a_long_list_that_changes_what_is_new_is_checked() {
    let scope = Scope::Node { host: "h1" };
    let mut objects = good();
    objects.ports.retain(|port| port.host == "h1");
    objects.security_groups[0].members = (1..200).map(|n| format!("10.0.0.{n}")).collect();
    let before = State::from_objects(objects.clone()).unwrap();
    let broken_at = |place: usize| {
        let mut objects = objects.clone();
        objects.security_groups[0]
            .members
            .insert(place, "10.0.0".into());
        objects.prefix_lists[0].prefixes.push("10.0.0.1/8".into());
        let next = State::from_objects(objects).unwrap();
        let found = validate_next(&before, &next, scope);
        found.into_iter().map(|v| v.field).collect::<Vec<_>>()
    };
    for place in [0, 100, 199] {
        let wanted = ["prefixes[2]".to_owned(), format!("members[{place}]")];
        assert_eq!(broken_at(place), wanted);
    }
}
