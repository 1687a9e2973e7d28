//! The demonstration's topology: what `weftctl apply` is given.

use weft_proto::v1::Objects;

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
  - {id: h1, vteps: [192.0.2.1]}
  - {id: h2, vteps: [192.0.2.2]}
vpcs: [{id: blue, vni: 100}, {id: red, vni: 200}]
ports:
  - {id: blue-n1, vpc: blue, subnet: blue-b, mac: "02:00:00:00:02:21", addresses: [10.0.2.21], host: h1}
  - {id: blue-n2, vpc: blue, subnet: blue-b, mac: "02:00:00:00:02:22", addresses: [10.0.2.22], host: h2}
  - {id: blue-n3, vpc: blue, subnet: blue-b, mac: "02:00:00:00:02:23", addresses: [10.0.2.23], host: h2}
"#;

/// Two hosts; blue and red, with the same addresses and MACs; three more ports of blue as next hops.
pub(crate) fn topology() -> anyhow::Result<Objects> {
    let mut objects: Objects = serde_yaml_ng::from_str(BASE)?;
    for tenant in ["blue", "red"] {
        let part: Objects = serde_yaml_ng::from_str(&TENANT.replace("TENANT", tenant))?;
        objects.subnets.extend(part.subnets);
        objects.route_tables.extend(part.route_tables);
        objects.security_groups.extend(part.security_groups);
        objects.ports.extend(part.ports);
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
