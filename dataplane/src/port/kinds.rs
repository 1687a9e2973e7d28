//! The kinds of devices that a port may have.

use weft_proto::v1;

use super::{Device, Opening, PortError, Role, netdev, tap, vhost};

/// Opens the device of a port.
///
/// # Errors
/// It is not there, or the system refuses.
pub fn open(opening: &Opening, spec: &v1::Device) -> Result<Box<dyn Device>, PortError> {
    match spec.kind.as_str() {
        "vhost-user" => Ok(Box::new(vhost::VhostUser::open(opening, spec)?)),
        "tap" => Ok(Box::new(tap::Tap::open(opening, spec)?)),
        _ => {
            let role = Role::Port {
                headroom: opening.headroom,
            };
            let device = netdev::Netdev::open(opening, &spec.name, &role, None)?;
            Ok(Box::new(device))
        }
    }
}
