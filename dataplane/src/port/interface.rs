//! A network device as the kernel has it: index, MAC, MTU, whether it is up, number of receive queues.
//!
//! It is read when a port or an uplink is opened, in the calling thread's network namespace, and does not follow later changes.

use std::io;

use super::PortError;
use super::ioctl::Requests;

/// `ETH_FLAG_RXVLAN` of `linux/ethtool.h`.
const RX_VLAN: u32 = 1 << 8;

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The kernel's number of it, within the network namespace.
    pub index: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Bytes of payload that a frame may carry.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it has a carrier too.
    pub running: bool,
    /// Receive queues in use.
    pub receive_queues: u32,
    /// Whether it is a tap: what it receives, a process has written.
    pub tap: bool,
    /// Whether it is a bond or a team: what it receives, its slaves have received.
    pub bond: bool,
}

impl Interface {
    /// Looks the device up by its name.
    pub fn lookup(name: &str) -> Result<Self, PortError> {
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::ENODEV) => PortError::NoInterface {
                interface: name.to_owned(),
            },
            _ => PortError::Io {
                what: format!("interface {name}: reading its settings"),
                source,
            },
        };
        let requests = Requests::about(name).map_err(failed)?;
        let flags = i32::from(requests.flags().map_err(failed)?);
        let driver = requests.driver().unwrap_or_default();
        Ok(Self {
            name: name.to_owned(),
            index: requests.index().map_err(failed)?,
            mac: requests.mac().map_err(failed)?,
            mtu: requests.mtu().map_err(failed)?,
            up: flags & libc::IFF_UP != 0,
            running: flags & libc::IFF_RUNNING != 0,
            receive_queues: receive_queues(&requests),
            tap: driver.starts_with(b"tun\0"),
            bond: driver.starts_with(b"bonding\0") || driver.starts_with(b"team\0"),
        })
    }

    /// Sets the device up.
    pub fn set_up(name: &str) -> Result<(), PortError> {
        let failed =
            |source| PortError::from_io(format!("interface {name}: up"), "CAP_NET_ADMIN", source);
        let set_up = || {
            let requests = Requests::about(name)?;
            requests.set_flags(requests.flags()? | libc::IFF_UP as libc::c_short)
        };
        set_up().map_err(failed)
    }
}

/// A device that leaves VLAN tags in the frames that it receives, where XDP programs see them: else a frame of a VLAN looks like one without. Dropped,
/// the device strips them again.
#[derive(Debug)]
pub(super) struct KeptTags {
    name: String,
    index: u32,
}

impl KeptTags {
    /// Has the device leave them. None if it does anyway.
    pub(super) fn keep(interface: &Interface) -> Option<Self> {
        if !strips_tags(&interface.name)? {
            return None;
        }
        set_strips_tags(&interface.name, false);
        if strips_tags(&interface.name) != Some(false) {
            tracing::warn!(
                interface = interface.name,
                "the device strips VLAN tags and this cannot be turned off (rx-vlan-offload): tunnel packets of every VLAN are accepted; keep tagged tunnel packets off this link"
            );
            return None;
        }
        Some(Self {
            name: interface.name.clone(),
            index: interface.index,
        })
    }
}

impl Drop for KeptTags {
    fn drop(&mut self) {
        // It may be gone, or another by now.
        if Interface::lookup(&self.name).is_ok_and(|found| found.index == self.index) {
            set_strips_tags(&self.name, true);
        }
    }
}

/// Devices that know no channels have one queue.
fn receive_queues(requests: &Requests) -> u32 {
    let channels = requests.receive_channels();
    channels.map_or(1, |(receive, combined)| (receive + combined).max(1))
}

/// Whether the device strips VLAN tags, if that is known.
fn strips_tags(name: &str) -> Option<bool> {
    let offloads = Requests::about(name).ok()?.offloads().ok()?;
    Some(offloads & RX_VLAN != 0)
}

fn set_strips_tags(name: &str, strips: bool) {
    let change = || {
        let requests = Requests::about(name)?;
        let others = requests.offloads()? & !RX_VLAN;
        requests.set_offloads(others | if strips { RX_VLAN } else { 0 })
    };
    // Who wants to know whether it was done asks the device.
    let _: io::Result<()> = change();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_found_and_others_are_named_in_the_error() {
        let loopback = Interface::lookup("lo").unwrap();
        assert_eq!((loopback.index, loopback.receive_queues), (1, 1));
        let error = Interface::lookup("weft-none").unwrap_err();
        assert!(error.to_string().contains("weft-none"), "{error}");
        assert!(matches!(
            Interface::lookup("a-name-that-is-too-long"),
            Err(PortError::NoInterface { .. })
        ));
    }
}
