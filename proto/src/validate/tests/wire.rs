//! Rules on subnets on external networks, and on what is not offered there.

use super::*;
use crate::v1::{ElasticIp, ExternalNetwork, HealthCheck, NatGateway, Peering, RoutedPrefix};

/// Red's subnet is on a network that both hosts are on; red's port lives there.
fn on_wire(change: impl FnOnce(&mut Objects)) -> impl FnOnce(&mut Objects) {
    |o| {
        for host in &mut o.hosts {
            host.physical_networks = vec!["physnet1".into()];
        }
        o.external_networks.push(ExternalNetwork {
            id: "lan".into(),
            physical_network: "physnet1".into(),
            vlan: 12,
            ..ExternalNetwork::default()
        });
        o.subnets[1].external_network = "lan".into();
        change(o);
    }
}

/// Another network, whose addresses weft holds.
fn other(o: &mut Objects) -> &mut ExternalNetwork {
    o.external_networks.push(ExternalNetwork {
        id: "inet".into(),
        physical_network: "physnet1".into(),
        prefixes: vec!["203.0.113.0/24".into()],
        gateway_hosts: vec!["h1".into()],
        ..ExternalNetwork::default()
    });
    o.external_networks.last_mut().unwrap()
}

#[test]
fn a_subnet_may_be_on_an_external_network_that_its_tenant_may_use() {
    accepted(on_wire(|_| {}));
    accepted(on_wire(|o| {
        o.subnets[1].gateways = vec!["10.0.0.254".into()];
        o.subnets[1].cidrs.push("fd09::/64".into());
    }));
    refused(
        "subnet red-front external_network: there is no external_network 'x'",
        |o| o.subnets[1].external_network = "x".into(),
    );
    refused(
        "subnet red-front external_network: external_network 'lan' is another tenant's",
        on_wire(|o| o.external_networks[0].tenant = "ann".into()),
    );
    let rule = "the router of an external network is not weft's: leave it out";
    refused(
        &format!("subnet red-front gateway_mac: {rule}"),
        on_wire(|o| o.subnets[1].gateway_mac = "02:00:00:00:00:77".into()),
    );
    refused(
        "subnet red-front multicast: a subnet on an external network has no querier",
        on_wire(|o| o.subnets[1].multicast = "snooping".into()),
    );
    refused(
        &format!("subnet red-front route_table: {rule}"),
        on_wire(|o| {
            let mut table = o.route_tables[0].clone();
            (table.id, table.vpc) = ("red-main".into(), "red".into());
            table.routes.clear();
            o.route_tables.push(table);
            o.subnets[1].route_table = "red-main".into();
        }),
    );
}

#[test]
fn the_mtu_is_the_networks_and_no_tunnels() {
    accepted(on_wire(|o| {
        o.external_networks[0].mtu = 9000;
        o.subnets[1].mtu = 9000;
    }));
    refused(
        "subnet red-front mtu: 1501 exceeds 1500, what external_network 'lan' carries",
        on_wire(|o| o.subnets[1].mtu = 1501),
    );
}

#[test]
fn a_network_is_one_vpcs_and_a_vpc_is_on_one_network() {
    let second = |vpc: &str, network: &str| Subnet {
        id: "second".into(),
        vpc: vpc.into(),
        cidrs: vec!["10.55.0.0/24".into()],
        external_network: network.into(),
        ..Subnet::default()
    };
    accepted(on_wire(|o| o.subnets.push(second("red", "lan"))));
    refused(
        "subnet second external_network: all subnets of a VPC are on one external network, or none is: subnet 'red-front' of vpc 'red' is on 'lan'",
        on_wire(|o| o.subnets.push(second("red", ""))),
    );
    refused(
        "subnet second external_network: all subnets of a VPC are on one external network, or none is: subnet 'front' of vpc 'blue' is on none",
        on_wire(|o| {
            o.external_networks[0].vlan = 13;
            let mut lan = o.external_networks[0].clone();
            (lan.id, lan.vlan) = ("more".into(), 14);
            o.external_networks.push(lan);
            o.subnets.push(second("blue", "more"));
        }),
    );
    refused(
        "subnet second external_network: vpc 'red' is on external_network 'lan' already (subnet 'red-front')",
        on_wire(|o| {
            o.vpcs.push(Vpc {
                id: "green".into(),
                vni: 9,
                ..Vpc::default()
            });
            o.subnets.push(second("green", "lan"));
        }),
    );
}

#[test]
fn a_port_lives_where_its_network_is() {
    refused(
        "port r1 host: host 'h1' is not on physical network 'physnet1' of external_network 'lan', which subnet 'red-front' is on",
        on_wire(|o| {
            o.hosts[0].physical_networks.clear();
            let port = o.ports.iter_mut().find(|port| port.vpc == "red").unwrap();
            (port.id, port.host) = ("r1".into(), "h1".into());
        }),
    );
    // The wire's addresses are the wire's: its first may be a port's, its router's not.
    accepted(on_wire(|o| {
        let port = o.ports.iter_mut().find(|port| port.vpc == "red").unwrap();
        port.addresses = vec!["10.0.0.1".into()];
    }));
    refused(
        "port red1 addresses[0]: 10.0.0.1 is the gateway of subnet 'red-front'",
        on_wire(|o| {
            o.subnets[1].gateways = vec!["10.0.0.1".into()];
            let port = o.ports.iter_mut().find(|port| port.vpc == "red").unwrap();
            (port.id, port.addresses) = ("red1".into(), vec!["10.0.0.1".into()]);
        }),
    );
}

#[test]
fn what_needs_a_router_of_wefts_is_refused_there_by_name() {
    let lan = "external_network 'lan' has ports of its own (subnet 'red-front')";
    refused(
        &format!("elastic_ip e external_network: {lan}"),
        on_wire(|o| {
            o.external_networks[0].prefixes = vec!["203.0.113.0/24".into()];
            o.elastic_ips.push(ElasticIp {
                id: "e".into(),
                external_network: "lan".into(),
                address: "203.0.113.9".into(),
                ..ElasticIp::default()
            });
        }),
    );
    refused(
        &format!("route_table main routes[2].external: {lan}"),
        on_wire(|o| {
            o.route_tables[0].routes.push(Route {
                prefix: "198.18.0.0/15".into(),
                external: "lan".into(),
                ..Route::default()
            });
        }),
    );
    refused(
        &format!("external_network lan routers: {lan}"),
        on_wire(|o| {
            let network = &mut o.external_networks[0];
            network.prefixes = vec!["203.0.113.0/24".into()];
            network.gateway_hosts = vec!["h1".into()];
            network.routers = vec!["203.0.113.2".into()];
        }),
    );
    let red = "vpc 'red' is on external_network 'lan', whose router is not weft's";
    refused(
        &format!("nat_gateway n vpc: {red}"),
        on_wire(|o| {
            other(o);
            o.nat_gateways.push(NatGateway {
                id: "n".into(),
                vpc: "red".into(),
                external_network: "inet".into(),
                addresses: vec!["203.0.113.9".into()],
                ..NatGateway::default()
            });
        }),
    );
    refused(
        &format!("elastic_ip e port: {red}"),
        on_wire(|o| {
            other(o);
            let port = o.ports.iter().find(|port| port.vpc == "red").unwrap();
            o.elastic_ips.push(ElasticIp {
                id: "e".into(),
                external_network: "inet".into(),
                address: "203.0.113.9".into(),
                port: port.id.clone(),
                ..ElasticIp::default()
            });
        }),
    );
    let red_port = good().ports.into_iter().find(|port| port.vpc == "red");
    let red_port = red_port.unwrap().id;
    refused(
        &format!("port {red_port} health: {red}"),
        on_wire(|o| {
            let mut ports = o.ports.iter_mut();
            let port = ports.find(|port| port.vpc == "red").unwrap();
            port.health = Some(Box::new(HealthCheck {
                protocol: "icmp".into(),
                ..HealthCheck::default()
            }));
        }),
    );
    refused(
        &format!("external_network inet routed[0].vpc: {red}"),
        on_wire(|o| {
            let inet = other(o);
            inet.routers = vec!["203.0.113.2".into()];
            inet.routed = vec![RoutedPrefix {
                prefix: "198.18.0.0/24".into(),
                vpc: "red".into(),
            }];
        }),
    );
    refused(
        &format!("peering p accepter: {red}"),
        on_wire(|o| {
            o.subnets[1].cidrs = vec!["10.7.0.0/24".into()];
            o.ports.retain(|port| port.vpc == "blue");
            o.peerings.push(Peering {
                id: "p".into(),
                requester: "blue".into(),
                accepter: "red".into(),
                ..Peering::default()
            });
        }),
    );
}
