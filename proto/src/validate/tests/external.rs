//! Rules on external networks, elastic IPs and NAT gateways, and on what names them.

use super::*;
use crate::v1::{ElasticIp, ExternalNetwork, NatGateway, PortForward};

/// h2 is on physnet1, where it is the gateway of "inet"; p1 (on h1, which is not) and p2 have an elastic IP each, and blue a NAT gateway.
pub(super) fn add(objects: &mut Objects) {
    objects.hosts[1].physical_networks = vec!["physnet1".into()];
    objects.external_networks.push(ExternalNetwork {
        id: "inet".into(),
        physical_network: "physnet1".into(),
        vlan: 100,
        prefixes: vec!["203.0.113.0/24".into(), "2001:db8:5::/64".into()],
        gateways: vec!["203.0.113.1".into(), "2001:db8:5::1".into()],
        gateway_hosts: vec!["h2".into()],
        ..ExternalNetwork::default()
    });
    let elastic = |id: &str, address: &str, port: &str| ElasticIp {
        id: id.into(),
        external_network: "inet".into(),
        address: address.into(),
        port: port.into(),
        ..ElasticIp::default()
    };
    objects.elastic_ips = vec![
        elastic("e1", "203.0.113.11", "p1"),
        elastic("e2", "2001:db8:5::12", "p2"),
        elastic("spare", "203.0.113.13", ""),
    ];
    objects.nat_gateways.push(NatGateway {
        id: "nat".into(),
        vpc: "blue".into(),
        external_network: "inet".into(),
        addresses: vec!["203.0.113.20".into(), "203.0.113.21".into()],
        sources: vec!["10.0.0.0/24".into()],
        port_forwards: vec![
            PortForward {
                protocol: "tcp".into(),
                port_min: 8080,
                port_max: 8089,
                port: "p1".into(),
                to_port_min: 80,
                ..PortForward::default()
            },
            PortForward {
                protocol: "udp".into(),
                address: "203.0.113.21".into(),
                port_min: 53,
                private_address: "10.0.0.12".into(),
                ..PortForward::default()
            },
        ],
        ..NatGateway::default()
    });
    let route = |prefix: &str| Route {
        prefix: prefix.into(),
        ..Route::default()
    };
    objects.route_tables[0].routes.extend([
        Route {
            nat: "nat".into(),
            ..route("198.18.0.0/15")
        },
        Route {
            external: "inet".into(),
            ..route("2000::/3")
        },
    ]);
}

/// The change is refused with one violation, which starts so.
#[track_caller]
fn refused_outside(expected: &str, change: impl FnOnce(&mut Objects)) {
    let found = outside(change);
    assert!(
        found.len() == 1 && found[0].starts_with(expected),
        "{expected}: {found:#?}"
    );
}

#[track_caller]
fn accepted_outside(change: impl FnOnce(&mut Objects)) {
    assert_eq!(outside(change), [] as [&str; 0]);
}

/// What is found, by the change alone as by the whole.
#[track_caller]
fn outside(change: impl FnOnce(&mut Objects)) -> Vec<String> {
    let mut objects = good();
    add(&mut objects);
    let before = State::from_objects(objects.clone()).unwrap();
    assert_eq!(validate(&before, Scope::Intent), vec![]);
    change(&mut objects);
    let after = State::from_objects(objects).unwrap();
    let sorted = |mut found: Vec<v1::Violation>| {
        found.sort_by_key(describe);
        found
    };
    let found = sorted(validate(&after, Scope::Intent));
    let by_change = sorted(validate_next(&before, &after, Scope::Intent));
    assert_eq!(by_change, found, "what is found by the changes alone");
    found
        .iter()
        .map(|violation| describe(violation).replacen(": ", " ", 1))
        .collect()
}

fn network(change: impl FnOnce(&mut ExternalNetwork)) -> impl FnOnce(&mut Objects) {
    |o| change(&mut o.external_networks[0])
}

fn elastic(change: impl FnOnce(&mut ElasticIp)) -> impl FnOnce(&mut Objects) {
    |o| change(&mut o.elastic_ips[0])
}

fn nat(change: impl FnOnce(&mut NatGateway)) -> impl FnOnce(&mut Objects) {
    |o| change(&mut o.nat_gateways[0])
}

fn forward(change: impl FnOnce(&mut PortForward)) -> impl FnOnce(&mut Objects) {
    |o| change(&mut o.nat_gateways[0].port_forwards[0])
}

fn second_network(change: impl FnOnce(&mut ExternalNetwork)) -> impl FnOnce(&mut Objects) {
    |o| {
        let mut other = ExternalNetwork {
            id: "other".into(),
            physical_network: "physnet1".into(),
            prefixes: vec!["198.51.100.0/24".into()],
            ..ExternalNetwork::default()
        };
        change(&mut other);
        o.external_networks.push(other);
    }
}

#[test]
fn an_external_network_has_prefixes_and_a_segment_of_its_own() {
    accepted_outside(second_network(|_| {}));
    refused_outside(
        "external_network inet physical_network: an external network needs the name of a physical",
        |o| {
            o.external_networks[0].physical_network.clear();
            o.external_networks[0].gateway_hosts.clear();
            o.nat_gateways.clear();
            o.elastic_ips.clear();
            o.route_tables[0]
                .routes
                .retain(|route| route.nat.is_empty());
        },
    );
    refused_outside(
        "external_network inet vlan: 4095 is outside 1 to 4094",
        network(|n| n.vlan = 4095),
    );
    accepted_outside(network(|n| n.vlan = 4094));
    accepted_outside(second_network(|n| n.prefixes.clear()));
    for (prefix, rule) in [
        ("198.51.100.1/24", "'198.51.100.1/24' has host bits set"),
        ("x", "'x' is not"),
        ("224.0.0.0/8", "224.0.0.0/8 contains multicast addresses"),
        ("203.0.112.0/22", "203.0.112.0/22"),
    ] {
        let expected = match prefix {
            // The wider comes first, so the narrower is named.
            "203.0.112.0/22" => {
                "external_network inet prefixes[0]: 203.0.113.0/24 overlaps 203.0.112.0/22 of external network 'other'".to_owned()
            }
            _ => format!("external_network other prefixes[0]: {rule}"),
        };
        refused_outside(
            &expected,
            second_network(|n| n.prefixes = vec![prefix.into()]),
        );
    }
    refused_outside(
        "external_network other prefixes[1]: 198.51.100.0/25 overlaps 198.51.100.0/24 of external network 'other'",
        second_network(|n| n.prefixes.push("198.51.100.0/25".into())),
    );
    refused_outside(
        "external_network other vlan: VLAN 100 of physical network 'physnet1' is already external network 'inet'",
        second_network(|n| n.vlan = 100),
    );
    accepted_outside(second_network(|n| {
        n.vlan = 100;
        n.physical_network = "physnet2".into();
    }));
}

#[test]
fn next_hops_of_an_external_network_are_hosts_of_its_prefixes_one_of_a_family() {
    for (gateway, rule) in [
        (
            "203.0.113.0",
            "203.0.113.0 is the network address of 203.0.113.0/24",
        ),
        (
            "203.0.113.255",
            "203.0.113.255 is the broadcast address of 203.0.113.0/24",
        ),
        (
            "198.51.100.1",
            "198.51.100.1 is in no prefix of the network",
        ),
        ("x", "'x' is"),
    ] {
        refused_outside(
            &format!("external_network inet gateways[0]: {rule}"),
            network(|n| n.gateways = vec![gateway.into()]),
        );
    }
    refused_outside(
        "external_network inet gateways[2]: an external network has at most one IPv4 gateway",
        network(|n| n.gateways.push("203.0.113.2".into())),
    );
    accepted_outside(network(|n| n.gateways.clear()));
    // RFC 3021: both addresses of a prefix of two are hosts'.
    accepted_outside(second_network(|n| {
        n.prefixes = vec!["198.51.100.0/31".into()];
        n.gateways = vec!["198.51.100.0".into()];
    }));
}

#[test]
fn an_external_network_carries_packets_of_a_size_that_its_families_need() {
    for (mtu, least) in [(1279, 1280), (9217, 1280)] {
        refused_outside(
            &format!("external_network inet mtu: {mtu} is outside {least} to 9216"),
            network(|n| n.mtu = mtu),
        );
    }
    refused_outside(
        "external_network other mtu: 575 is outside 576 to 9216",
        second_network(|n| n.mtu = 575),
    );
    accepted_outside(second_network(|n| n.mtu = 576));
    accepted_outside(network(|n| n.mtu = 9216));
}

#[test]
fn a_gateway_host_runs_weftd_and_has_the_physical_network() {
    let hosts = |ids: &'static [&str]| {
        network(|n| n.gateway_hosts = ids.iter().map(|id| (*id).to_owned()).collect())
    };
    refused_outside(
        "external_network inet gateway_hosts[1]: there is no host 'h9'",
        hosts(&["h2", "h9"]),
    );
    refused_outside(
        "external_network inet gateway_hosts[1]: host 'h1' is not on physical network 'physnet1'",
        hosts(&["h2", "h1"]),
    );
    refused_outside(
        "external_network inet gateway_hosts[1]: 'h2' is given twice",
        hosts(&["h2", "h2"]),
    );
    refused_outside(
        "external_network inet gateway_hosts[1]: host 'f' is foreign: no weftd runs there",
        |o| {
            o.hosts.push(Host {
                foreign: true,
                ..host("f", &["192.0.2.9"])
            });
            o.external_networks[0].gateway_hosts.push("f".into());
        },
    );
    // A host that leaves the physical network.
    refused_outside(
        "external_network inet gateway_hosts[0]: host 'h2' is not on",
        |o| o.hosts[1].physical_networks.clear(),
    );
    // One that a host was not told of stands for nothing there.
    let mut objects = good();
    add(&mut objects);
    objects.ports.retain(|port| port.host == "h1");
    objects.elastic_ips.remove(1);
    objects.nat_gateways[0].port_forwards.clear();
    objects.route_tables[0].routes.remove(0);
    objects.external_networks[0].gateway_hosts.push("h9".into());
    let state = State::from_objects(objects).unwrap();
    assert_eq!(validate(&state, Scope::Node { host: "h1" }), vec![]);
}

#[test]
fn a_hosts_physical_networks_have_names_each_once_and_foreign_equipment_has_none() {
    let named = |names: &'static [&str]| {
        |o: &mut Objects| {
            o.hosts[0].physical_networks = names.iter().map(|name| (*name).to_owned()).collect();
        }
    };
    accepted(named(&["physnet1", "physnet2"]));
    refused(
        "host h1 physical_networks[1]: 'a' is given twice",
        named(&["a", "a"]),
    );
    refused("host h1 physical_networks[0]: an empty name", named(&[""]));
    refused(
        "host f physical_networks: foreign equipment has none",
        |o| {
            o.hosts.push(Host {
                foreign: true,
                physical_networks: vec!["physnet1".into()],
                ..host("f", &["192.0.2.9"])
            });
        },
    );
}

#[test]
fn an_elastic_ip_has_an_address_of_its_network_that_nobody_else_has() {
    refused_outside(
        "elastic_ip e1 external_network: there is no external_network 'x'",
        elastic(|e| e.external_network = "x".into()),
    );
    for (address, rule) in [
        ("", "'' is"),
        (
            "198.51.100.1",
            "198.51.100.1 is in no prefix of external network 'inet' (203.0.113.0/24, 2001:db8:5::/64)",
        ),
        (
            "203.0.113.1",
            "203.0.113.1 is the gateway of external network 'inet'",
        ),
        (
            "203.0.113.0",
            "203.0.113.0 is the network address of 203.0.113.0/24",
        ),
        ("203.0.113.255", "203.0.113.255 is the broadcast address"),
        ("2001:db8:5::", "2001:db8:5:: is the network address"),
    ] {
        refused_outside(&format!("elastic_ip spare address: {rule}"), |o| {
            o.elastic_ips[2].address = address.into();
        });
    }
    refused_outside(
        "elastic_ip spare address: 203.0.113.11 is already used by elastic_ip 'e1'",
        |o| o.elastic_ips[2].address = "203.0.113.11".into(),
    );
    refused_outside(
        "nat_gateway nat addresses[1]: 203.0.113.21 is already used by elastic_ip 'spare'",
        |o| o.elastic_ips[2].address = "203.0.113.21".into(),
    );
    // A next hop that takes the address.
    refused_outside(
        "elastic_ip spare address: 203.0.113.13 is the gateway of external network 'inet'",
        network(|n| n.gateways[0] = "203.0.113.13".into()),
    );
}

#[test]
fn an_elastic_ip_stands_for_one_address_of_its_port() {
    refused_outside(
        "elastic_ip e1 port: there is no port 'x'",
        elastic(|e| e.port = "x".into()),
    );
    refused_outside(
        "elastic_ip spare private_address: only an elastic IP that is bound to a port has",
        |o| o.elastic_ips[2].private_address = "10.0.0.11".into(),
    );
    accepted_outside(elastic(|e| e.private_address = "10.0.0.11".into()));
    for (private, rule) in [
        ("10.0.0.12", "10.0.0.12 is no address of port 'p1'"),
        (
            "fd00::b",
            "fd00::b and 203.0.113.11 are of different families",
        ),
        ("x", "'x' is"),
    ] {
        refused_outside(
            &format!("elastic_ip e1 private_address: {rule}"),
            elastic(|e| e.private_address = private.into()),
        );
    }
    refused_outside("elastic_ip e2 port: port 'r1' has no IPv6 address", |o| {
        o.elastic_ips[1].port = "r1".into();
    });
    refused_outside(
        "elastic_ip spare private_address: 10.0.0.11 of port 'p1' already has elastic_ip 'e1'",
        |o| o.elastic_ips[2].port = "p1".into(),
    );
    // One of each family, and one of each address.
    accepted_outside(|o| o.elastic_ips[1].port = "p1".into());
    accepted_outside(|o| {
        o.ports[0].addresses.push("10.0.0.99".into());
        o.elastic_ips[2].port = "p1".into();
        o.elastic_ips[2].private_address = "10.0.0.99".into();
    });
    // What the port loses.
    refused_outside("elastic_ip e1 port: port 'p1' has no IPv4 address", |o| {
        o.ports[0].addresses.remove(0);
        o.nat_gateways[0].port_forwards.clear();
    });
    // Equal addresses of another VPC's port are another matter.
    accepted_outside(|o| o.elastic_ips[2].port = "r1".into());
}

#[test]
fn an_elastic_ip_that_is_bound_has_a_host_that_translates() {
    let rule = "elastic_ip e1 port: the host of port 'p1' is not on the physical network of external network 'inet', which has no gateway host";
    let alone = |o: &mut Objects| {
        o.external_networks[0].gateway_hosts.clear();
        o.nat_gateways.clear();
        o.route_tables[0]
            .routes
            .retain(|route| route.nat.is_empty());
    };
    refused_outside(rule, alone);
    accepted_outside(|o| {
        alone(o);
        o.hosts[0].physical_networks = vec!["physnet1".into()];
    });
    // A port on no host may wait.
    accepted_outside(|o| {
        alone(o);
        o.ports[0].host.clear();
        o.route_tables[0].routes.remove(0);
    });
}

#[test]
fn a_tenant_uses_its_own_external_networks_and_the_operators() {
    let of = |network: &'static str, vpc: &'static str, elastic: &'static str| {
        move |o: &mut Objects| {
            o.external_networks[0].tenant = network.into();
            o.vpcs[0].tenant = vpc.into();
            for e in &mut o.elastic_ips {
                e.tenant = elastic.into();
            }
        }
    };
    accepted_outside(of("", "ann", "ann"));
    accepted_outside(of("ann", "ann", "ann"));
    let found = outside(of("ben", "ann", "ann"));
    for line in [
        "elastic_ip e1 external_network: external_network 'inet' is another tenant's",
        "nat_gateway nat external_network: external_network 'inet' is another tenant's",
        "route_table main routes[3].external: external_network 'inet' is another tenant's",
    ] {
        assert!(
            found.iter().any(|found| found == line),
            "{line}: {found:#?}"
        );
    }
    let found = outside(of("", "ann", ""));
    assert_eq!(
        found[0],
        "elastic_ip e1 port: port 'p1' belongs to tenant 'ann', the elastic IP to the operator"
    );
}

#[test]
fn a_nat_gateway_has_addresses_of_a_network_with_a_gateway_host() {
    let routeless = |o: &mut Objects| {
        o.route_tables[0]
            .routes
            .retain(|route| route.nat.is_empty());
    };
    refused_outside("nat_gateway nat vpc: there is no vpc 'x'", |o| {
        routeless(o);
        o.nat_gateways[0].vpc = "x".into();
        o.nat_gateways[0].port_forwards.clear();
    });
    refused_outside(
        "nat_gateway nat external_network: there is no external_network 'x'",
        nat(|n| n.external_network = "x".into()),
    );
    refused_outside(
        "nat_gateway nat external_network: external network 'inet' has no gateway host, which a NAT gateway runs on",
        |o| {
            o.external_networks[0].gateway_hosts.clear();
            o.elastic_ips.clear();
        },
    );
    refused_outside(
        "nat_gateway nat addresses: a NAT gateway needs at least one address",
        nat(|n| {
            n.addresses.clear();
            n.port_forwards.clear();
        }),
    );
    refused_outside(
        "nat_gateway nat addresses: a NAT gateway has at most 16 addresses, and 17 are given",
        nat(|n| n.addresses = (20..37).map(|i| format!("203.0.113.{i}")).collect()),
    );
    for (address, rule) in [
        ("198.51.100.1", "198.51.100.1 is in no prefix"),
        (
            "203.0.113.1",
            "203.0.113.1 is the gateway of external network 'inet'",
        ),
        ("203.0.113.255", "203.0.113.255 is the broadcast address"),
        (
            "203.0.113.20",
            "203.0.113.20 is already used by nat_gateway 'nat'",
        ),
        (
            "203.0.113.11",
            "203.0.113.11 is already used by elastic_ip 'e1'",
        ),
    ] {
        refused_outside(
            &format!("nat_gateway nat addresses[2]: {rule}"),
            nat(|n| n.addresses.push(address.into())),
        );
    }
    refused_outside(
        "nat_gateway nat sources[0]: '10.0.0.1/24' has host bits set",
        nat(|n| n.sources = vec!["10.0.0.1/24".into()]),
    );
    refused_outside(
        "nat_gateway nat filtering: 'address' is neither address_and_port nor endpoint_independent",
        nat(|n| n.filtering = "address".into()),
    );
    for filtering in ["address_and_port", "endpoint_independent"] {
        accepted_outside(nat(|n| n.filtering = filtering.into()));
    }
}

#[test]
fn a_port_forward_has_ports_and_one_who_receives() {
    let at = "nat_gateway nat port_forwards[0]";
    refused_outside(
        &format!("{at}.protocol: 'sctp' is neither tcp nor udp"),
        forward(|f| f.protocol = "sctp".into()),
    );
    refused_outside(
        &format!("{at}.address: 203.0.113.22 is no address of the gateway"),
        forward(|f| f.address = "203.0.113.22".into()),
    );
    for (min, max, rule) in [
        (0, 0, "port_min: 0 is outside 1 to 65535"),
        (65536, 0, "port_min: 65536 is outside 1 to 65535"),
        (10, 9, "port_max: 9 is outside 10 to 65535"),
        (10, 65536, "port_max: 65536 is outside 10 to 65535"),
    ] {
        refused_outside(
            &format!("{at}.{rule}"),
            forward(|f| (f.port_min, f.port_max) = (min, max)),
        );
    }
    refused_outside(
        &format!("{at}.to_port_min: 65527 and the next 9 ports exceed 65535"),
        forward(|f| f.to_port_min = 65527),
    );
    accepted_outside(forward(|f| f.to_port_min = 65526));
    let one = "exactly one of port and private_address is set";
    refused_outside(&format!("{at}: {one}"), forward(|f| f.port.clear()));
    refused_outside(
        &format!("{at}: {one}"),
        forward(|f| f.private_address = "10.0.0.11".into()),
    );
    refused_outside(
        &format!("{at}.port: there is no port 'x'"),
        forward(|f| f.port = "x".into()),
    );
    refused_outside(
        &format!("{at}.port: port 'r1' belongs to vpc 'red', not to 'blue'"),
        forward(|f| f.port = "r1".into()),
    );
    let to = |private: &'static str| {
        forward(|f| {
            f.port.clear();
            f.private_address = private.into();
        })
    };
    accepted_outside(to("10.0.0.11"));
    refused_outside(
        &format!("{at}.private_address: 10.0.0.77 is no address of a port of vpc 'blue'"),
        to("10.0.0.77"),
    );
    refused_outside(
        &format!("{at}.private_address: fd00::b is not of the outside address's family, IPv4"),
        to("fd00::b"),
    );
    refused_outside(&format!("{at}.port: port 'p1' has no IPv4 address"), |o| {
        o.ports[0].addresses.remove(0);
        o.elastic_ips.remove(0);
    });
}

#[test]
fn port_forwards_do_not_overlap_and_leave_ports_to_mappings() {
    let ranges = |ranges: &'static [(&str, &str, u32, u32)]| {
        nat(|n| {
            let forward = |(protocol, address, min, max): &(&str, &str, u32, u32)| PortForward {
                protocol: (*protocol).into(),
                address: (*address).into(),
                port_min: *min,
                port_max: *max,
                port: "p1".into(),
                ..PortForward::default()
            };
            n.port_forwards = ranges.iter().map(forward).collect();
        })
    };
    refused_outside(
        "nat_gateway nat port_forwards[0].port_min: tcp 90 to 95 of 203.0.113.20 overlaps port_forwards[1]",
        ranges(&[("tcp", "", 90, 95), ("tcp", "203.0.113.20", 80, 90)]),
    );
    // A wide one, one in it, and one that the wide one alone overlaps.
    assert_eq!(
        outside(ranges(&[
            ("tcp", "", 80, 100),
            ("tcp", "", 82, 84),
            ("tcp", "", 90, 0)
        ]))
        .len(),
        2
    );
    accepted_outside(ranges(&[
        ("tcp", "", 80, 90),
        ("udp", "", 80, 90),
        ("tcp", "203.0.113.21", 80, 90),
        ("tcp", "", 91, 0),
    ]));
    accepted_outside(ranges(&[("tcp", "", 1, 64511)]));
    refused_outside(
        "nat_gateway nat port_forwards: the tcp forwards of 203.0.113.20 leave 1023 of the ports 1024 to 65535 to mappings, and have to leave 1024",
        ranges(&[("tcp", "", 1, 64511), ("tcp", "", 65535, 0)]),
    );
    refused_outside(
        "nat_gateway nat port_forwards: a NAT gateway has at most 1024 port forwards, and 1025 are given",
        nat(|n| n.port_forwards = vec![n.port_forwards[0].clone(); 1025]),
    );
}

#[test]
fn routes_lead_to_nat_gateways_of_their_own_vpc_and_to_external_networks() {
    let route =
        |change: fn(&mut Route)| move |o: &mut Objects| change(&mut o.route_tables[0].routes[2]);
    refused_outside(
        "route_table main routes[2].nat: there is no nat_gateway 'x'",
        route(|r| r.nat = "x".into()),
    );
    refused_outside(
        "route_table main routes[2].external: there is no external_network 'x'",
        route(|r| {
            r.nat.clear();
            r.external = "x".into();
        }),
    );
    refused_outside(
        "route_table main routes[2]: exactly one of blackhole, local, port, host, ecmp, peering, nat and external",
        route(|r| r.external = "inet".into()),
    );
    refused_outside(
        "route_table main routes[2].nat: nat_gateway 'nat' belongs to vpc 'red', not to 'blue'",
        |o| {
            o.nat_gateways[0].vpc = "red".into();
            o.nat_gateways[0].port_forwards.clear();
        },
    );
}

#[test]
fn gateway_hosts_carry_the_vpcs_that_use_them() {
    // Blue is on h1 and h2; h3 joins it as the gateway of red, whose port is on h1.
    let small = |o: &mut Objects| {
        o.hosts.push(Host {
            underlay_mtu: 1400,
            physical_networks: vec!["physnet1".into()],
            ..host("h3", &["192.0.2.3"])
        });
        o.external_networks[0].gateway_hosts = vec!["h2".into(), "h3".into()];
    };
    let rule = "subnet front mtu: 1450 and 50 of tunnel exceed the underlay_mtu 1400 of host 'h3'";
    refused_outside(rule, small);
    // By an elastic IP alone, too.
    refused_outside(rule, |o| {
        small(o);
        o.nat_gateways.clear();
        o.route_tables[0]
            .routes
            .retain(|route| route.nat.is_empty());
    });
    accepted_outside(|o| {
        small(o);
        o.nat_gateways.clear();
        o.elastic_ips.remove(0);
        o.route_tables[0]
            .routes
            .retain(|route| route.nat.is_empty());
    });
}

#[test]
fn a_change_of_ports_finds_the_elastic_ips_that_it_breaks() {
    let before = {
        let mut objects = good();
        add(&mut objects);
        objects.external_networks[0].gateway_hosts.clear();
        objects.nat_gateways.clear();
        objects.elastic_ips.remove(0);
        objects.route_tables.clear();
        objects.subnets[0].route_table.clear();
        // Without a device a change of its host is one within the VPC.
        objects.hosts.push(host("f", &["192.0.2.9"]));
        objects.hosts[2].foreign = true;
        objects.ports[1].device = None;
        objects.ports[1].host.clear();
        State::from_objects(objects).unwrap()
    };
    assert_eq!(validate(&before, Scope::Intent), vec![]);
    let mut objects = before.to_objects();
    objects.ports[1].host = "f".into();
    let next = State::from_objects(objects).unwrap();
    let found = validate_next(&before, &next, Scope::Intent);
    assert_eq!(found, validate(&next, Scope::Intent));
    assert_eq!(found.len(), 1, "{found:?}");
}

/// 200 VPCs with 500 ports each, every port with an elastic IP, and 50 NAT gateways each.
fn many() -> State {
    let mut objects = Objects {
        hosts: vec![host("h1", &["192.0.2.1"]), host("h2", &["192.0.2.2"])],
        external_networks: vec![ExternalNetwork {
            id: "inet".into(),
            physical_network: "physnet1".into(),
            prefixes: vec!["100.0.0.0/8".into()],
            gateway_hosts: vec!["h2".into()],
            ..ExternalNetwork::default()
        }],
        ..Objects::default()
    };
    objects.hosts[1].physical_networks = vec!["physnet1".into()];
    for v in 0..200u32 {
        let vpc = format!("v{v}");
        objects.vpcs.push(Vpc {
            id: vpc.clone(),
            vni: v + 1,
            ..Vpc::default()
        });
        objects.subnets.push(Subnet {
            id: format!("{vpc}-a"),
            vpc: vpc.clone(),
            cidrs: vec!["10.0.0.0/16".into()],
            ..Subnet::default()
        });
        for p in 0..500u32 {
            let [a, b] = [(p + 10) / 250, (p + 10) % 250];
            objects.ports.push(Port {
                id: format!("{vpc}-{p}"),
                vpc: vpc.clone(),
                subnet: format!("{vpc}-a"),
                mac: format!("02:00:00:00:{a:02x}:{b:02x}"),
                addresses: vec![format!("10.0.{a}.{}", b + 2)],
                security_groups: Vec::new(),
                device: None,
                host: "h1".into(),
                ..Port::default()
            });
            objects.elastic_ips.push(ElasticIp {
                id: format!("{vpc}-{p}"),
                external_network: "inet".into(),
                address: format!("100.{v}.{a}.{}", b + 2),
                port: format!("{vpc}-{p}"),
                ..ElasticIp::default()
            });
        }
        objects.nat_gateways.extend((0..50u32).map(|n| NatGateway {
            id: format!("{vpc}-{n}"),
            vpc: vpc.clone(),
            external_network: "inet".into(),
            addresses: vec![format!("100.{v}.200.{}", n + 1)],
            ..NatGateway::default()
        }));
    }
    State::from_objects(objects).unwrap()
}

#[test]
fn a_hundred_thousand_elastic_ips_and_ten_thousand_gateways_are_checked_in_seconds() {
    let before = many();
    // The ports are on another host.
    let scope = Scope::Node { host: "h2" };
    let start = Instant::now();
    assert_eq!(validate(&before, scope), vec![]);
    let whole = start.elapsed();
    let mut next = before.clone();
    next.insert(Object::ElasticIp(ElasticIp {
        id: "more".into(),
        external_network: "inet".into(),
        address: "100.250.0.1".into(),
        ..ElasticIp::default()
    }));
    let start = Instant::now();
    assert_eq!(validate_next(&before, &next, scope), vec![]);
    let one_more = start.elapsed();
    println!("all {whole:?}, one more {one_more:?}");
    assert!(whole < Duration::from_secs(20), "took {whole:?}");
    assert!(one_more < Duration::from_secs(5), "took {one_more:?}");
}

fn routed(prefix: &str, vpc: &str) -> v1::RoutedPrefix {
    v1::RoutedPrefix {
        prefix: prefix.into(),
        vpc: vpc.into(),
    }
}

/// A network with an address of its own and a prefix that is routed to blue.
fn with_routed(change: impl FnOnce(&mut ExternalNetwork)) -> impl FnOnce(&mut Objects) {
    network(|n| {
        n.routers = vec!["203.0.113.2".into()];
        n.routed = vec![routed("198.51.100.0/24", "blue")];
        change(n);
    })
}

#[test]
fn a_network_routes_prefixes_of_nobody_else_to_vpcs_that_are_there() {
    accepted_outside(with_routed(|_| {}));
    refused_outside(
        "external_network inet routed[0].vpc: there is no vpc 'purple'",
        with_routed(|n| n.routed[0].vpc = "purple".into()),
    );
    refused_outside(
        "external_network inet routed[0].prefix: 203.0.113.128/25 overlaps 203.0.113.0/24",
        with_routed(|n| n.routed[0].prefix = "203.0.113.128/25".into()),
    );
    refused_outside(
        "external_network inet routed[1].prefix: 198.51.100.64/26 overlaps 198.51.100.0/24",
        with_routed(|n| n.routed.push(routed("198.51.100.64/26", "blue"))),
    );
    refused_outside(
        "external_network inet routed[0].prefix: the network has no IPv6 router address",
        with_routed(|n| n.routed[0].prefix = "2001:db8:77::/64".into()),
    );
    refused_outside(
        "external_network inet routed: an external network has at most 1024 routed prefixes",
        with_routed(|n| {
            let prefixes = (0..1025).map(|i| format!("198.18.{}.{}/32", i / 256, i % 256));
            n.routed = prefixes.map(|prefix| routed(&prefix, "blue")).collect();
        }),
    );
    refused_outside(
        "external_network inet routed[0].prefix: 224.1.0.0/16 contains multicast addresses",
        with_routed(|n| n.routed[0].prefix = "224.1.0.0/16".into()),
    );
}

#[test]
fn a_vpc_that_prefixes_are_routed_to_stays() {
    let mut objects = good();
    add(&mut objects);
    objects.vpcs.push(Vpc {
        id: "empty".into(),
        vni: 4711,
        ..Vpc::default()
    });
    let add_routed = with_routed(|n| n.routed[0].vpc = "empty".into());
    add_routed(&mut objects);
    let before = State::from_objects(objects.clone()).unwrap();
    assert_eq!(validate(&before, Scope::Intent), vec![]);
    objects.vpcs.pop();
    let after = State::from_objects(objects).unwrap();
    let found = validate_next(&before, &after, Scope::Intent);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].rule, "there is no vpc 'empty'");
}

#[test]
fn the_networks_own_addresses_are_in_its_prefixes_and_nobody_elses() {
    refused_outside(
        "external_network inet routers[0]: 198.51.100.1 is in no prefix",
        network(|n| n.routers = vec!["198.51.100.1".into()]),
    );
    refused_outside(
        "external_network inet routers[1]: an external network has at most one IPv4 router address",
        network(|n| n.routers = vec!["203.0.113.2".into(), "203.0.113.3".into()]),
    );
    refused_outside(
        "external_network inet routers[0]: 203.0.113.1 is the gateway of",
        network(|n| n.routers = vec!["203.0.113.1".into()]),
    );
    refused_outside(
        "elastic_ip e1 address: 203.0.113.11 is already used by external_network 'inet'",
        network(|n| n.routers = vec!["203.0.113.11".into()]),
    );
}

#[test]
fn an_elastic_ip_in_mode_direct_is_one_more_address_of_its_port() {
    accepted_outside(elastic(|e| e.mode = "nat".into()));
    accepted_outside(elastic(|e| e.mode = "direct".into()));
    refused_outside(
        "elastic_ip e1 mode: 'bridge' is neither nat nor direct",
        elastic(|e| e.mode = "bridge".into()),
    );
    refused_outside(
        "elastic_ip e1 private_address: an elastic IP in mode direct stands for no private address",
        elastic(|e| {
            e.mode = "direct".into();
            e.private_address = "10.0.0.11".into();
        }),
    );
    refused_outside(
        "elastic_ip e1 port: subnet 'wide' of the port's vpc has 203.0.113.11",
        |o| {
            o.elastic_ips[0].mode = "direct".into();
            o.subnets.push(Subnet {
                id: "wide".into(),
                vpc: "blue".into(),
                cidrs: vec!["203.0.113.0/26".into()],
                ..Subnet::default()
            });
        },
    );
}

#[test]
fn the_limits_of_an_elastic_ip_are_those_of_a_port() {
    let limit = |bits_per_second| {
        Some(RateLimits {
            egress: None,
            ingress: Some(v1::RateLimit {
                bits_per_second,
                ..v1::RateLimit::default()
            }),
        })
    };
    accepted_outside(elastic(|e| e.limits = limit(10_000_000)));
    refused_outside(
        "elastic_ip e1 limits.ingress.bits_per_second: 7999 is outside 8000 to",
        elastic(|e| e.limits = limit(7999)),
    );
}
#[test]
fn idle_times_of_a_nat_gateway_are_not_below_what_the_rfcs_admit() {
    let timeouts =
        |change: fn(&mut v1::NatTimeouts)| nat(move |n| change(n.timeouts.get_or_insert_default()));
    for (name, least, source, change) in [
        (
            "tcp_established",
            7440,
            "RFC 5382 REQ-5",
            (|t, seconds| t.tcp_established = seconds) as fn(&mut v1::NatTimeouts, u32),
        ),
        ("tcp_transitory", 240, "RFC 5382 REQ-5", |t, seconds| {
            t.tcp_transitory = seconds;
        }),
        ("udp", 120, "RFC 4787 REQ-5", |t, seconds| t.udp = seconds),
        ("icmp", 60, "RFC 5508 REQ-2", |t, seconds| t.icmp = seconds),
    ] {
        for seconds in [1, least - 1, 604_801, u32::MAX] {
            refused_outside(
                &format!(
                    "nat_gateway nat timeouts.{name}: {seconds} seconds are outside {least} ({source}) to 604800"
                ),
                nat(move |n| change(n.timeouts.get_or_insert_default(), seconds)),
            );
        }
        for seconds in [0, least, 604_800] {
            accepted_outside(nat(move |n| {
                change(n.timeouts.get_or_insert_default(), seconds);
            }));
        }
    }
    accepted_outside(timeouts(|_| {}));
}

#[test]
fn a_nat_gateway_has_no_more_mappings_than_a_host_holds() {
    for (name, change) in [
        (
            "mappings",
            (|l, most| l.mappings = most) as fn(&mut v1::NatLimits, u32),
        ),
        ("mappings_per_address", |l, most| {
            l.mappings_per_address = most;
        }),
    ] {
        refused_outside(
            &format!("nat_gateway nat limits.{name}: 1048577 exceeds 1048576"),
            nat(move |n| change(n.limits.get_or_insert_default(), 1_048_577)),
        );
        for most in [0, 1, 1_048_576] {
            accepted_outside(nat(move |n| change(n.limits.get_or_insert_default(), most)));
        }
    }
}

#[test]
fn a_nat64_prefix_is_an_ipv6_prefix_of_length_96() {
    let prefix = |text: &'static str| nat(move |n| n.nat64_prefix = text.into());
    for good in ["", "64:ff9b::/96", "2001:db8:64::/96"] {
        accepted_outside(prefix(good));
    }
    for (bad, rule) in [
        ("10.0.0.0/8", "10.0.0.0/8 is no IPv6 prefix of length 96"),
        (
            "2001:db8::/64",
            "2001:db8::/64 is no IPv6 prefix of length 96",
        ),
        ("64:ff9b::1/96", "'64:ff9b::1/96' has host bits set"),
        ("x", "'x' is"),
        ("ff02::/96", "ff02::/96 has addresses that no host can have"),
        (
            "::ffff:0:0/96",
            "::ffff:0:0/96 has addresses that no host can have",
        ),
        (
            "2001:db8:0:0:100::/96",
            "bits 64 to 71 of 2001:db8:0:0:100::/96 are not zero (RFC 6052 2.2)",
        ),
    ] {
        refused_outside(
            &format!("nat_gateway nat nat64_prefix: {rule}"),
            prefix(bad),
        );
    }
}

#[test]
fn a_gateway_host_has_room_for_the_addresses_that_it_may_have_to_hold() {
    // 64 of them have 16 addresses each; the first of all has two.
    let fill = |last: u32| {
        move |o: &mut Objects| {
            o.external_networks[0].prefixes[0] = "203.0.0.0/16".into();
            o.nat_gateways.extend((0..64).map(|n| {
                NatGateway {
                    id: format!("more-{n:02}"),
                    vpc: "blue".into(),
                    external_network: "inet".into(),
                    addresses: (0..if n == 63 { last } else { 16 })
                        .map(|i| format!("203.0.{}.{}", 150 + n, 1 + i))
                        .collect(),
                    ..NatGateway::default()
                }
            }));
        }
    };
    accepted_outside(fill(14));
    refused_outside(
        "nat_gateway nat addresses: with it, host 'h2' would be a gateway for 1025 addresses of NAT gateways, and holds at most 1024",
        fill(15),
    );
}
