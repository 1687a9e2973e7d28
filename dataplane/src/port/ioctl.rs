//! Requests to the kernel about one network device: netdevice(7), ethtool (`linux/ethtool.h`) and taps (`linux/if_tun.h`).
//!
//! Each request is one ioctl. All of them go through [`Requests::call`], which contains the only unsafe code. It takes an [`Operation`], so a
//! request number always comes with the argument that belongs to it.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use socket2::{Domain, Socket, Type};

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;

/// Bytes of a name, with the zero that ends it.
const NAME: usize = libc::IFNAMSIZ;
/// Bytes of the union in a `struct ifreq`.
const VALUE: usize = size_of::<libc::ifreq>() - NAME;

type Value = [u8; VALUE];

/// `struct ifreq` of `linux/if.h`, with its union as bytes.
#[repr(C, align(8))]
struct Request {
    name: [u8; NAME],
    value: Value,
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());
const _: () = assert!(align_of::<Request>() >= align_of::<libc::ifreq>());

/// The requests that there are, with what the kernel reads.
enum Operation<'a> {
    Index,
    Flags,
    SetFlags(libc::c_short),
    Mtu,
    HardwareAddress,
    Ethtool(&'a mut Ethtool),
    AttachTap(libc::c_short),
    KeepTap,
}

/// Commands of ethtool, with their numbers.
#[derive(Clone, Copy)]
enum Command {
    /// `struct ethtool_drvinfo`, 49 words: the command, 32 bytes of the driver's name, others.
    Driver = 0x03,
    /// `struct ethtool_value`, 2 words: the command, the flags.
    Flags = 0x25,
    /// The same.
    SetFlags = 0x26,
    /// `struct ethtool_channels`, 9 words: the command, the most and then the current number of receive, transmit, other and combined
    /// channels.
    Channels = 0x3c,
}

/// What an ethtool command reads and writes, in words of 32 bits. It begins with the command. The rest has room for the largest structure
/// of a [`Command`], so the kernel stays within it whatever the command.
struct Ethtool([u32; 64]);

impl Ethtool {
    fn new(command: Command) -> Self {
        let mut words = [0; 64];
        words[0] = command as u32;
        Self(words)
    }
}

/// Requests about one network device.
pub(super) struct Requests {
    /// A socket, or an open `/dev/net/tun`.
    descriptor: OwnedFd,
    name: [u8; NAME],
}

impl Requests {
    /// About the device of this name in the calling thread's network namespace.
    ///
    /// # Errors
    /// ENODEV if no device can have the name; the system refuses a socket.
    pub(super) fn about(name: &str) -> io::Result<Self> {
        Ok(Self {
            name: padded(name).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?,
            descriptor: Socket::new(Domain::IPV4, Type::DGRAM, None)?.into(),
        })
    }

    /// The kernel's number of the device.
    pub(super) fn index(&self) -> io::Result<u32> {
        self.call(Operation::Index).map(number)
    }

    /// The device's MTU.
    pub(super) fn mtu(&self) -> io::Result<u32> {
        self.call(Operation::Mtu).map(number)
    }

    /// The device's flags (`IFF_…`).
    pub(super) fn flags(&self) -> io::Result<libc::c_short> {
        let value = self.call(Operation::Flags)?;
        Ok(libc::c_short::from_ne_bytes([value[0], value[1]]))
    }

    /// Changes the device's flags.
    pub(super) fn set_flags(&self, flags: libc::c_short) -> io::Result<()> {
        self.call(Operation::SetFlags(flags)).map(drop)
    }

    /// The device's hardware address: a `struct sockaddr`, whose first two bytes are its kind.
    pub(super) fn mac(&self) -> io::Result<[u8; 6]> {
        let value = self.call(Operation::HardwareAddress)?;
        Ok(std::array::from_fn(|at| value[2 + at]))
    }

    /// The driver's name, with zeros behind.
    pub(super) fn driver(&self) -> io::Result<[u8; 32]> {
        let words = self.ethtool(Ethtool::new(Command::Driver))?;
        let name: [u32; 8] = std::array::from_fn(|at| words[1 + at]);
        Ok(bytemuck::cast(name))
    }

    /// How many channels receive only, and how many do both, now.
    pub(super) fn receive_channels(&self) -> io::Result<(u32, u32)> {
        let words = self.ethtool(Ethtool::new(Command::Channels))?;
        Ok((words[5], words[8]))
    }

    /// What the device does by itself (`ETH_FLAG_…`).
    pub(super) fn offloads(&self) -> io::Result<u32> {
        let words = self.ethtool(Ethtool::new(Command::Flags))?;
        Ok(words[1])
    }

    /// Changes what the device does by itself.
    pub(super) fn set_offloads(&self, flags: u32) -> io::Result<()> {
        let mut argument = Ethtool::new(Command::SetFlags);
        argument.0[1] = flags;
        self.ethtool(argument).map(drop)
    }

    fn ethtool(&self, mut argument: Ethtool) -> io::Result<[u32; 64]> {
        self.call(Operation::Ethtool(&mut argument))?;
        Ok(argument.0)
    }

    fn call(&self, operation: Operation<'_>) -> io::Result<Value> {
        let mut request = Request {
            name: self.name,
            value: [0; VALUE],
        };
        let mut set = |bytes: &[u8]| request.value[..bytes.len()].copy_from_slice(bytes);
        let code = match &operation {
            Operation::Index => libc::SIOCGIFINDEX,
            Operation::Flags => libc::SIOCGIFFLAGS,
            Operation::Mtu => libc::SIOCGIFMTU,
            Operation::HardwareAddress => libc::SIOCGIFHWADDR,
            Operation::SetFlags(flags) => {
                set(&flags.to_ne_bytes());
                libc::SIOCSIFFLAGS
            }
            Operation::AttachTap(flags) => {
                set(&flags.to_ne_bytes());
                TUNSETIFF
            }
            Operation::KeepTap => TUNSETPERSIST,
            Operation::Ethtool(_) => SIOCETHTOOL,
        };
        if let Operation::Ethtool(argument) = operation {
            set(&ptr::from_mut(argument).expose_provenance().to_ne_bytes());
        }
        // SAFETY: for each of these codes the kernel takes the argument for a pointer to a `struct ifreq`, and reads and writes that
        // structure alone. (TUNSETPERSIST takes a number, which it only compares with 0.) `request` has the structure's size and at least
        // its alignment. All its bytes are initialised, any bytes are a value of it, and nothing else uses it during the call.
        //
        // For SIOCETHTOOL alone, the kernel follows a pointer within the structure. It is then the pointer to an `Ethtool`, which is
        // borrowed mutably for the whole call and whose address is exposed. The kernel reads and writes the structure of the command in the
        // first word. Only `Ethtool::new` sets that word, to a `Command`, and the structures of all of these fit.
        //
        // The codes have these meanings on a socket and on `/dev/net/tun`, the only descriptors that `Requests` has. Each of them refuses
        // the codes of the other.
        let result = unsafe { libc::ioctl(self.descriptor.as_raw_fd(), code, &raw mut request) };
        if result == 0 {
            Ok(request.value)
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// Makes the tap `name`, or opens one that there is, and has it last when it is closed again. `flags` are those of TUNSETIFF.
///
/// # Errors
/// The name cannot be one; the kernel refuses.
pub(super) fn make_tap(name: &str, flags: libc::c_short) -> io::Result<()> {
    let tun: File = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let requests = Requests {
        name: padded(name).ok_or(io::ErrorKind::InvalidInput)?,
        descriptor: tun.into(),
    };
    requests.call(Operation::AttachTap(flags))?;
    requests.call(Operation::KeepTap).map(drop)
}

/// A name as requests carry it; none if no device can have it. What is ahead of a colon would be the device to the kernel, and the rest an alias of it.
fn padded(name: &str) -> Option<[u8; NAME]> {
    let mut padded = [0; NAME];
    let fits = !name.is_empty() && name.len() < NAME && !name.contains(':');
    fits.then(|| padded[..name.len()].copy_from_slice(name.as_bytes()))?;
    Some(padded)
}

fn number(value: Value) -> u32 {
    u32::from_ne_bytes([value[0], value[1], value[2], value[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_answers_each_request() {
        let requests = Requests::about("lo").unwrap();
        assert_eq!(requests.index().unwrap(), 1);
        assert_eq!(requests.mac().unwrap(), [0; 6]);
        assert!(requests.mtu().unwrap() >= 1280);
        let flags = i32::from(requests.flags().unwrap());
        assert_eq!(flags & libc::IFF_LOOPBACK, libc::IFF_LOOPBACK);
        // It has neither a driver of hardware nor channels, but flags.
        assert!(requests.offloads().is_ok());
        let none = requests.receive_channels().unwrap_err();
        assert_eq!(none.raw_os_error(), Some(libc::EOPNOTSUPP));
    }

    #[test]
    fn names_are_at_most_fifteen_bytes_and_not_empty() {
        let error = |name: &str| Requests::about(name).err()?.raw_os_error();
        assert_eq!(padded("fifteen-bytes-x").unwrap()[15], 0);
        assert_eq!(error("sixteen-bytes-xx"), Some(libc::ENODEV));
        assert_eq!(error(""), Some(libc::ENODEV));
        // An alias of the loopback device, to the kernel.
        assert_eq!(error("lo:1"), Some(libc::ENODEV));
        assert_eq!(error(":1"), Some(libc::ENODEV));
    }
}
