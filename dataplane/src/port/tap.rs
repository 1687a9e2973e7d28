//! Tap interfaces. A virtual machine monitor holds the far end; weftd uses the near one by XDP, as it does any interface.
//!
//! A missing interface is created. It stays when its port is removed, because a virtual machine may use it.

use weft_proto::v1;

use super::device::{Description, Device, Queue};
use super::{Interface, Netdev, Opening, PortError, Role, ioctl};

const IFF_VNET_HDR: libc::c_int = 0x4000;
const IFF_MULTI_QUEUE: libc::c_int = 0x0100;

/// A tap interface that is open as a port.
#[derive(Debug)]
pub(super) struct Tap {
    netdev: Netdev,
}

impl Tap {
    /// Opens it; makes it before, if need be.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn open(opening: &Opening, spec: &v1::Device) -> Result<Self, PortError> {
        match Interface::lookup(&spec.name) {
            Err(PortError::NoInterface { .. }) => {
                make(spec)?;
                // Closed before anything can pass.
                opening.programs.close(&spec.name)?;
                Interface::set_up(&spec.name)?;
            }
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        let role = Role::Port {
            headroom: opening.headroom,
        };
        Ok(Self {
            netdev: Netdev::open(opening, &spec.name, &role, None)?,
        })
    }
}

impl Device for Tap {
    fn take_queues(&mut self) -> Vec<Box<dyn Queue>> {
        self.netdev.take_queues()
    }

    fn is_up(&self) -> bool {
        // Without somebody at the far end there is no carrier.
        self.netdev.is_up()
            && Interface::lookup(self.netdev.name()).is_ok_and(|found| found.running)
    }

    fn is_stale(&self) -> bool {
        self.netdev.is_stale()
    }

    fn mend(&mut self) {
        self.netdev.mend();
    }

    fn takes(&self) -> Option<u16> {
        self.netdev.takes()
    }

    fn set_mtu(&mut self, mtu: u16) {
        self.netdev.set_mtu(mtu);
    }

    fn describe(&self) -> Description {
        let mut what = self.netdev.describe();
        what.mode.push_str(" (tap)");
        what
    }
}

/// Makes a tap interface, not yet up, that lasts without us: a virtual machine may hold its far end while weftd restarts.
fn make(spec: &v1::Device) -> Result<(), PortError> {
    let queues = if spec.queues > 1 { IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | IFF_VNET_HDR | queues;
    ioctl::make_tap(&spec.name, flags as libc::c_short).map_err(|source| {
        PortError::from_io(
            format!("interface {}: making a tap", spec.name),
            "CAP_NET_ADMIN",
            source,
        )
    })
}
