//! Tap interfaces: a virtual machine monitor holds the far end, weftd drives the near one by XDP as it does any interface.
//!
//! A missing interface is created. It stays when its port is removed, since a virtual machine may use it.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use weft_proto::v1;

use super::device::{Description, Device, Queue};
use super::{Interface, Netdev, Opening, PortError, Role};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
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
    let persist = || {
        let file = attach(&spec.name, flags)?;
        // SAFETY: the argument is a plain number.
        match unsafe { libc::ioctl(file.as_raw_fd(), TUNSETPERSIST, 1) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    persist().map_err(|source| {
        PortError::from_io(
            format!("interface {}: making a tap", spec.name),
            "CAP_NET_ADMIN",
            source,
        )
    })
}

/// Opens a queue of the tap `name`, which is made if there is none.
fn attach(name: &str, flags: libc::c_int) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: a plain C structure, for which all zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes `request`, which outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    if result == 0 {
        Ok(file)
    } else {
        Err(io::Error::last_os_error())
    }
}
