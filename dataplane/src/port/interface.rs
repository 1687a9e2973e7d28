//! A network device as the kernel has it: index, MAC, MTU, whether it is up, how many receive queues.
//!
//! Asked once when a port or an uplink is opened, by ioctl on the calling thread's network namespace. Changes later are the
//! business of [`crate::underlay`].

#![allow(unsafe_code)]

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

use super::PortError;

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
/// `ETH_FLAG_RXVLAN` of `linux/ethtool.h`.
const RX_VLAN: u32 = 1 << 8;
const SIOCETHTOOL: libc::c_ulong = 0x8946;

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

/// `struct ethtool_drvinfo` of `linux/ethtool.h`.
#[repr(C)]
struct Driver {
    cmd: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// `struct ethtool_value` of `linux/ethtool.h`.
#[repr(C)]
struct Flags {
    cmd: u32,
    flags: u32,
}

/// `struct ethtool_channels` of `linux/ethtool.h`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    cmd: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx_count: u32,
    tx_count: u32,
    other_count: u32,
    combined_count: u32,
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
        let asking =
            Asking::new(name).ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENODEV)))?;
        let socket = socket().map_err(failed)?;
        let ask = |what| asking.ask(&socket, what).map_err(failed);
        let index = ask(libc::SIOCGIFINDEX)?;
        let flags = ask(libc::SIOCGIFFLAGS)?;
        let mtu = ask(libc::SIOCGIFMTU)?;
        let hardware = ask(libc::SIOCGIFHWADDR)?;
        // SAFETY: each call filled the member of the union that belongs to it; all are plain integers.
        let (index, flags, mtu, mac) = unsafe {
            (
                index.ifr_ifru.ifru_ifindex.cast_unsigned(),
                i32::from(flags.ifr_ifru.ifru_flags),
                mtu.ifr_ifru.ifru_mtu.cast_unsigned(),
                hardware.ifr_ifru.ifru_hwaddr.sa_data,
            )
        };
        let driver = asking.driver(&socket);
        Ok(Self {
            name: name.to_owned(),
            index,
            mac: std::array::from_fn(|at| mac[at].cast_unsigned()),
            mtu,
            up: flags & libc::IFF_UP != 0,
            running: flags & libc::IFF_RUNNING != 0,
            receive_queues: asking.receive_queues(&socket),
            tap: driver.starts_with(b"tun\0"),
            bond: driver.starts_with(b"bonding\0") || driver.starts_with(b"team\0"),
        })
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

/// Whether the device strips VLAN tags, if that is known.
fn strips_tags(name: &str) -> Option<bool> {
    let mut answer = Flags {
        cmd: ETHTOOL_GFLAGS,
        flags: 0,
    };
    // SAFETY: the command makes the kernel write a `struct ethtool_value`, which `answer` is laid out as.
    let told = unsafe { Asking::new(name)?.ask_driver(&socket().ok()?, &mut answer) };
    told.then_some(answer.flags & RX_VLAN != 0)
}

fn set_strips_tags(name: &str, strips: bool) {
    let (Some(asking), Ok(socket)) = (Asking::new(name), socket()) else {
        return;
    };
    let mut flags = Flags {
        cmd: ETHTOOL_GFLAGS,
        flags: 0,
    };
    // SAFETY: both commands make the kernel read or write a `struct ethtool_value`, which `flags` is laid out as.
    unsafe {
        if asking.ask_driver(&socket, &mut flags) {
            flags.cmd = ETHTOOL_SFLAGS;
            flags.flags = flags.flags & !RX_VLAN | if strips { RX_VLAN } else { 0 };
            asking.ask_driver(&socket, &mut flags);
        }
    }
}

impl Interface {
    /// Sets the device up.
    pub fn set_up(name: &str) -> Result<(), PortError> {
        let failed =
            |source| PortError::from_io(format!("interface {name}: up"), "CAP_NET_ADMIN", source);
        let asking =
            Asking::new(name).ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENODEV)))?;
        let socket = socket().map_err(failed)?;
        let mut answer = asking.ask(&socket, libc::SIOCGIFFLAGS).map_err(failed)?;
        // SAFETY: the call filled this member; it is a plain integer.
        let flags = unsafe { answer.ifr_ifru.ifru_flags };
        answer.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
        Asking(answer)
            .ask(&socket, libc::SIOCSIFFLAGS)
            .map_err(failed)?;
        Ok(())
    }
}

/// A request about one device.
struct Asking(libc::ifreq);

impl Asking {
    /// None if the name can't be one.
    fn new(name: &str) -> Option<Self> {
        // SAFETY: a plain C structure, for which all zero is a value.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        if name.is_empty() || name.len() >= request.ifr_name.len() {
            return None;
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        Some(Self(request))
    }

    fn ask(&self, socket: &OwnedFd, what: libc::c_ulong) -> io::Result<libc::ifreq> {
        let mut request = self.0;
        // SAFETY: the kernel reads the name and writes the union of `request`, which outlives the call.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), what, &raw mut request) };
        if result == 0 {
            Ok(request)
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Devices that know no channels have one queue.
    fn receive_queues(&self, socket: &OwnedFd) -> u32 {
        let mut channels = Channels {
            cmd: ETHTOOL_GCHANNELS,
            ..Channels::default()
        };
        // SAFETY: the command makes the kernel write a `struct ethtool_channels`, which `channels` is laid out as.
        if unsafe { self.ask_driver(socket, &mut channels) } {
            (channels.rx_count + channels.combined_count).max(1)
        } else {
            1
        }
    }

    /// What the driver is called, with zeros behind; zeros alone if it does not say.
    fn driver(&self, socket: &OwnedFd) -> [u8; 32] {
        let mut driver = Driver {
            cmd: ETHTOOL_GDRVINFO,
            driver: [0; 32],
            rest: [0; 160],
        };
        // SAFETY: the command makes the kernel write a `struct ethtool_drvinfo`, which `driver` is laid out as.
        if unsafe { self.ask_driver(socket, &mut driver) } {
            driver.driver
        } else {
            [0; 32]
        }
    }

    /// Asks the driver what `question` begins with.
    ///
    /// # Safety
    /// `question` is of the type that the kernel writes for its command.
    unsafe fn ask_driver<T>(&self, socket: &OwnedFd, question: &mut T) -> bool {
        let mut request = self.0;
        request.ifr_ifru.ifru_data = ptr::from_mut(question).cast();
        // SAFETY: the kernel reads the name and the pointer, and writes what the pointer names, which the caller vouches for; both outlive
        // the call.
        unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) == 0 }
    }
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: a plain system call.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just opened it, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
