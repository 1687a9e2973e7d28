//! The demonstration's topology: what `weftctl apply` is given.

use weft_proto::v1::{Objects, Route};

/// Ports of a tenant that take part in the ping matrix.
pub(crate) const MATRIX: [&str; 3] = ["a1", "a2", "b2"];

const TENANT: &str = r#"
subnets:
  - {id: TENANT-a, vpc: TENANT, cidrs: [10.0.1.0/24, "fd00:1::/64"], route_table: TENANT, mtu: 1430}
  - {id: TENANT-b, vpc: TENANT, cidrs: [10.0.2.0/24, "fd00:2::/64"], mtu: 1430}
route_tables: [{id: TENANT, vpc: TENANT, routes: []}]
security_groups:
  - id: TENANT
    vpc: TENANT
    rules:
      - {direction: ingress, protocol: icmp}
      - {direction: ingress, protocol: icmpv6}
      - {direction: ingress, protocol: tcp, port_min: 5201, port_max: 5201}
      - {direction: ingress, protocol: udp, port_min: 9, port_max: 9}
ports:
  - {id: TENANT-a1, vpc: TENANT, subnet: TENANT-a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11, "fd00:1::11"], host: h1}
  - {id: TENANT-a2, vpc: TENANT, subnet: TENANT-a, mac: "02:00:00:00:01:02", addresses: [10.0.1.12, "fd00:1::12"], host: h2}
  - {id: TENANT-b2, vpc: TENANT, subnet: TENANT-b, mac: "02:00:00:00:02:02", addresses: [10.0.2.12, "fd00:2::12"], host: h2}
"#;

const BASE: &str = r#"
hosts:
  - {id: h1, vteps: [192.0.2.1], physical_networks: [physnet1]}
  - {id: h2, vteps: [192.0.2.2], physical_networks: [physnet1]}
vpcs:
  - {id: blue, vni: 100, tenant: ann}
  - {id: red, vni: 200, tenant: bob}
  - {id: green, vni: 300, tenant: cleo}
ports:
  - {id: blue-n1, vpc: blue, subnet: blue-b, mac: "02:00:00:00:02:21", addresses: [10.0.2.21], host: h1}
  - {id: blue-n2, vpc: blue, subnet: blue-b, mac: "02:00:00:00:02:22", addresses: [10.0.2.22], host: h2}
  - {id: blue-n3, vpc: blue, subnet: blue-b, mac: "02:00:00:00:02:23", addresses: [10.0.2.23], host: h2}
"#;

/// What leads outside: blue has an elastic IP, red a NAT gateway. Green is a third tenant's.
const OUTSIDE: &str = r#"
external_networks:
  - id: internet
    physical_network: physnet1
    prefixes: [203.0.113.0/24]
    gateways: [203.0.113.1]
    gateway_hosts: [h1, h2]
elastic_ips: [{id: blue-ip, tenant: ann, external_network: internet, address: 203.0.113.11, port: blue-a1}]
nat_gateways: [{id: red-nat, vpc: red, external_network: internet, addresses: [203.0.113.100]}]
subnets: [{id: green-c, vpc: green, cidrs: [10.0.3.0/24], route_table: green, mtu: 1430}]
route_tables: [{id: green, vpc: green, routes: []}]
security_groups: [{id: green, vpc: green, rules: [{direction: ingress, protocol: icmp}]}]
ports: [{id: green-c2, vpc: green, subnet: green-c, mac: "02:00:00:00:03:02", addresses: [10.0.3.12], host: h2}]
"#;

/// Two hosts; blue and red, with the same addresses and MACs; three more ports of blue as next hops; green; and what leads outside.
pub(crate) fn topology() -> anyhow::Result<Objects> {
    let mut objects: Objects = serde_yaml_ng::from_str(BASE)?;
    for tenant in ["blue", "red"] {
        let part: Objects = serde_yaml_ng::from_str(&TENANT.replace("TENANT", tenant))?;
        objects.subnets.extend(part.subnets);
        objects.route_tables.extend(part.route_tables);
        objects.security_groups.extend(part.security_groups);
        objects.ports.extend(part.ports);
    }
    let outside: Objects = serde_yaml_ng::from_str(OUTSIDE)?;
    objects.external_networks.extend(outside.external_networks);
    objects.elastic_ips.extend(outside.elastic_ips);
    objects.nat_gateways.extend(outside.nat_gateways);
    objects.subnets.extend(outside.subnets);
    objects.route_tables.extend(outside.route_tables);
    objects.security_groups.extend(outside.security_groups);
    objects.ports.extend(outside.ports);
    for subnet in &mut objects.subnets {
        // Both of red's subnets.
        if subnet.vpc == "red" {
            subnet.route_table = "red".into();
        }
    }
    for table in &mut objects.route_tables {
        if table.id == "red" {
            table.routes.push(Route {
                prefix: "0.0.0.0/0".into(),
                nat: "red-nat".into(),
                ..Route::default()
            });
        }
    }
    for port in &mut objects.ports {
        port.security_groups = vec![port.vpc.clone()];
        port.device = Some(weft_proto::v1::Device {
            kind: "netdev".into(),
            name: format!("p-{}", port.id),
            ..weft_proto::v1::Device::default()
        });
    }
    Ok(objects)
}
