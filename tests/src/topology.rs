//! Topologies of tests, written as short as they can be.

use weft_proto::v1::{Device, Objects};

use crate::LabError;

/// Objects from YAML, as `weftctl apply` reads it. A port without security groups gets the one that is named after its VPC; a port on a
/// host that runs weftd gets the device `p-ID` that a [`crate::Site`] makes.
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
        if !foreign.contains(&port.host) {
            port.device = Some(Device {
                kind: "netdev".into(),
                name: format!("p-{}", port.id),
            });
        }
    }
    Ok(objects)
}
