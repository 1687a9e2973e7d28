//! Short topologies for tests.

use weft_proto::v1::{Device, Objects};

use crate::LabError;

/// Objects from YAML, as `weftctl apply` reads it. A port without security groups gets the one that is named after its VPC; a port without
/// a device, on a host that runs weftd, gets the device `p-ID` that a [`crate::Site`] makes.
pub fn topology(yaml: &str) -> Result<Objects, LabError> {
    let mut objects: Objects = serde_yaml_ng::from_str(yaml).map_err(|source| LabError::Io {
        what: "reading a topology".to_owned(),
        source: std::io::Error::other(source),
    })?;
    let foreign: Vec<String> = objects
        .hosts
        .iter()
        .filter(|host| host.foreign)
        .map(|host| host.id.clone())
        .collect();
    for port in &mut objects.ports {
        if port.security_groups.is_empty() {
            port.security_groups = vec![port.vpc.clone()];
        }
        if port.device.is_none() && port.trunk.is_none() && !foreign.contains(&port.host) {
            port.device = Some(Device {
                kind: "netdev".into(),
                name: format!("p-{}", port.id),
                ..Device::default()
            });
        }
    }
    Ok(objects)
}

/// How a port's virtual machine is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestKind {
    /// By a tap that is there before, whose kernel side is weftd's as any other interface is.
    TapAsNetdev,
    /// By a tap that weftd makes.
    Tap,
    /// By a socket on which weftd listens.
    VhostServer,
    /// By a socket on which the virtual machine listens.
    VhostClient,
}

/// Makes virtual machines of the workloads of these ports; of all, if none is named. Sockets are named relative to the site's directory.
pub fn put_in_guests(objects: &mut Objects, kind: GuestKind, ports: &[&str]) {
    for port in &mut objects.ports {
        if ports.is_empty() || ports.contains(&port.id.as_str()) {
            let tap = |kind: &str| Device {
                kind: kind.into(),
                name: format!("{GUEST_TAP}{}", port.id),
                ..Device::default()
            };
            let socket = |mode: &str| Device {
                kind: "vhost-user".into(),
                name: format!("{}.vhost", port.id),
                mode: mode.into(),
                ..Device::default()
            };
            port.device = Some(match kind {
                GuestKind::TapAsNetdev => tap("netdev"),
                GuestKind::Tap => tap("tap"),
                GuestKind::VhostServer => socket("server"),
                GuestKind::VhostClient => socket("client"),
            });
        }
    }
}

/// What the name of a guest's tap begins with.
pub(crate) const GUEST_TAP: &str = "g-";

const TENANT: &str = r#"
subnets:
  - {id: NAME-a, vpc: NAME, cidrs: [10.0.1.0/24, "fd00:1::/64"]}
  - {id: NAME-b, vpc: NAME, cidrs: [10.0.2.0/24, "fd00:2::/64"]}
security_groups: [{id: NAME, vpc: NAME, rules: [{direction: ingress}]}]
"#;

/// So many hosts, `h1` and on, and the tenants blue (VNI 100) and red (200) with the same addresses: on each host a port in subnet a
/// (`blue-1` is on `h1` and has 10.0.1.11), and on the last one a port in subnet b (`blue-b`, 10.0.2.20). Everything may come in.
pub fn tenants(hosts: usize) -> Result<Objects, LabError> {
    let mut yaml = String::from("vpcs: [{id: blue, vni: 100}, {id: red, vni: 200}]\nhosts:\n");
    for n in 1..=hosts {
        yaml += &format!("  - {{id: h{n}, vteps: [192.0.2.{n}]}}\n");
    }
    let mut objects = topology(&yaml)?;
    for tenant in ["blue", "red"] {
        let mut yaml = format!("{}ports:\n", TENANT.replace("NAME", tenant));
        for n in 1..=hosts {
            yaml += &format!(
                "  - {{id: {tenant}-{n}, vpc: {tenant}, subnet: {tenant}-a, host: h{n}, mac: \"02:00:00:00:01:1{n}\", addresses: [10.0.1.1{n}, \"fd00:1::1{n}\"]}}\n"
            );
        }
        yaml += &format!(
            "  - {{id: {tenant}-b, vpc: {tenant}, subnet: {tenant}-b, host: h{hosts}, mac: \"02:00:00:00:02:20\", addresses: [10.0.2.20, \"fd00:2::20\"]}}\n"
        );
        let part = topology(&yaml)?;
        objects.subnets.extend(part.subnets);
        objects.security_groups.extend(part.security_groups);
        objects.ports.extend(part.ports);
    }
    Ok(objects)
}
