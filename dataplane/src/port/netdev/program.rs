//! The XDP program of one interface: loaded, attached, told which sockets there are, and read.
//!
//! Every attachment is an instance of its own, with its own maps. It holds by a BPF link, which the kernel takes away with the
//! last descriptor: when the process dies, however it dies, the interface is as it was before. What somebody else takes off is attached again
//! with the maps as they are ([`Attachment::restore`]).

use std::{
    collections::HashSet,
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, XskMap},
    programs::{ProgramError, ProgramFd, SchedClassifier, Xdp},
    util::KernelVersion,
};
use weft_ebpf_types::{
    AddressKey, COUNTERS_MAP, Counter, GUARD_PROGRAM, HEADROOM_GLOBAL, LONGEST_MAP, MAX_VTEPS,
    PORT_PROGRAM, SOCKETS_MAP, UPLINK_PROGRAM, VTEPS_MAP,
};

use super::XskQueue;
use super::link::{Hook, Link};
use crate::port::{Interface, PortError, error::io_error_of};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WEFT_EBPF_OBJECT"));

/// What an interface is to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Tunnel packets to these addresses are ours; everything else is the kernel's.
    Uplink {
        /// Our tunnel addresses; can be changed later.
        vteps: Vec<IpAddr>,
    },
    /// Every packet is ours.
    Port {
        /// Bytes by which the head of each packet grows; [`QueueOptions::headroom`](super::QueueOptions::headroom) must say the same.
        headroom: u16,
    },
}

/// Where in the kernel the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the stack, after the driver: every driver can, at the cost of a socket buffer per packet.
    Generic,
}

impl std::fmt::Display for AttachMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// An attached program, and the guard behind it. Dropping it detaches.
#[derive(Debug)]
pub struct Attachment {
    interface: String,
    index: u32,
    program: &'static str,
    mode: AttachMode,
    vteps: HashSet<AddressKey>,
    /// None where the program was lost to somebody else.
    link: Option<Link>,
    /// Detached after the program: fields drop in order.
    guard: Option<Link>,
    ebpf: Ebpf,
}

impl Attachment {
    /// Attaches the program for `role` to `interface`, a name in the calling thread's network namespace: in the driver if it can, in
    /// the stack otherwise, or only as `only` says.
    pub fn attach(
        interface: &str,
        role: &Role,
        only: Option<AttachMode>,
    ) -> Result<Self, PortError> {
        let index = Interface::lookup(interface)?.index;
        let (program, headroom) = match role {
            Role::Uplink { .. } => (UPLINK_PROGRAM, 0),
            Role::Port { headroom } => (PORT_PROGRAM, u32::from(*headroom)),
        };
        let problem = |error: &(dyn std::error::Error + 'static)| program_error(interface, error);
        let mut ebpf = EbpfLoader::new()
            .override_global(HEADROOM_GLOBAL, &headroom, true)
            .load(OBJECT)
            .map_err(|error| problem(&error))?;
        let xdp: &mut Xdp = ebpf
            .program_mut(program)
            .ok_or_else(|| missing(interface, program))?
            .try_into()
            .map_err(|error: ProgramError| problem(&error))?;
        xdp.load().map_err(|error| problem(&error))?;
        let loaded = xdp.fd().map_err(|error| problem(&error))?;
        let (link, mode) = link(loaded, interface, index, only)?;
        let mut attachment = Self {
            interface: interface.to_owned(),
            index,
            program,
            mode,
            vteps: HashSet::new(),
            link: Some(link),
            guard: None,
            ebpf,
        };
        if let Role::Uplink { vteps } = role {
            attachment.set_vteps(vteps)?;
        }
        Ok(attachment)
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Where the program runs.
    pub fn mode(&self) -> AttachMode {
        self.mode
    }

    /// Replaces the set of tunnel addresses, of an uplink. Addresses that stay are not interrupted.
    pub fn set_vteps(&mut self, vteps: &[IpAddr]) -> Result<(), PortError> {
        let wanted: HashSet<AddressKey> = vteps.iter().copied().map(address_key).collect();
        if wanted.len() > MAX_VTEPS as usize {
            return Err(PortError::Setting {
                what: "number of tunnel addresses",
                value: wanted.len() as u64,
                rule: "more than 256",
            });
        }
        let interface = self.interface.clone();
        let problem = |error: MapError| program_error(&interface, &error);
        let map = self
            .ebpf
            .map_mut(VTEPS_MAP)
            .ok_or_else(|| missing(&interface, VTEPS_MAP))?;
        let mut map: HashMap<&mut MapData, AddressKey, u8> =
            HashMap::try_from(map).map_err(problem)?;
        // Room first: the map may be full of addresses that go.
        for gone in self.vteps.difference(&wanted) {
            map.remove(gone).map_err(problem)?;
        }
        for new in wanted.difference(&self.vteps) {
            map.insert(new, 0, 0).map_err(problem)?;
        }
        self.vteps = wanted;
        Ok(())
    }

    /// Keeps everything that arrives from the host's stack. Packet sockets still see it.
    ///
    /// # Errors
    /// The kernel has no such hook (`tcx`, Linux 6.6), or refuses.
    pub fn guard(&mut self) -> Result<(), PortError> {
        let interface = self.interface.clone();
        let problem = |error: &(dyn std::error::Error + 'static)| program_error(&interface, error);
        let guard: &mut SchedClassifier = self
            .ebpf
            .program_mut(GUARD_PROGRAM)
            .ok_or_else(|| missing(&interface, GUARD_PROGRAM))?
            .try_into()
            .map_err(|error: ProgramError| problem(&error))?;
        guard.load().map_err(|error| problem(&error))?;
        // By a link, which goes with the process; an attachment by netlink would stay.
        let loaded = guard.fd().map_err(|error| problem(&error))?;
        let link = Link::create(loaded.as_fd(), self.index, Hook::Ingress);
        self.guard = Some(link.map_err(|error| problem(&error))?);
        Ok(())
    }

    /// Whether all that was attached still is. Somebody else may take it off by force, or put another program in its place.
    pub fn holds(&self) -> bool {
        self.link.as_ref().is_some_and(Link::holds) && self.guard.as_ref().is_none_or(Link::holds)
    }

    /// Attaches again what somebody else took off; queues and addresses are as they were.
    ///
    /// # Errors
    /// Another program is in its place ([`PortError::ProgramBusy`]), or the kernel refuses.
    pub fn restore(&mut self) -> Result<(), PortError> {
        let interface = self.interface.clone();
        let problem = |error: &(dyn std::error::Error + 'static)| program_error(&interface, error);
        // The guard first: what the program passes on must not reach the host's stack.
        if self.guard.as_ref().is_some_and(|guard| !guard.holds()) {
            let program = self.ebpf.program(GUARD_PROGRAM);
            let program = program.ok_or_else(|| missing(&interface, GUARD_PROGRAM))?;
            let guard: &SchedClassifier = program
                .try_into()
                .map_err(|error: ProgramError| problem(&error))?;
            let loaded = guard.fd().map_err(|error| problem(&error))?;
            let link = Link::create(loaded.as_fd(), self.index, Hook::Ingress);
            self.guard = Some(link.map_err(|error| problem(&error))?);
        }
        if self.link.as_ref().is_some_and(Link::holds) {
            return Ok(());
        }
        // Ours may be in the way, with another program in it.
        self.link = None;
        let program = self.ebpf.program(self.program);
        let program = program.ok_or_else(|| missing(&interface, self.program))?;
        let xdp: &Xdp = program
            .try_into()
            .map_err(|error: ProgramError| problem(&error))?;
        let loaded = xdp.fd().map_err(|error| problem(&error))?;
        let (link, mode) = link(loaded, &interface, self.index, None)?;
        self.link = Some(link);
        self.mode = mode;
        Ok(())
    }

    /// Whether there is a guard.
    pub fn has_guard(&self) -> bool {
        self.guard.is_some()
    }

    /// Passes frames longer than this, of a port, to packet sockets instead of the queues. There must be a guard, lest the host's stack see them.
    pub fn pass_longer(&mut self, bytes: u32) -> Result<(), PortError> {
        let interface = self.interface.clone();
        if self.guard.is_none() {
            return Err(missing(&interface, "guard in force"));
        }
        let problem = |error: MapError| program_error(&interface, &error);
        let map = self
            .ebpf
            .map_mut(LONGEST_MAP)
            .ok_or_else(|| missing(&interface, LONGEST_MAP))?;
        let mut map: Array<&mut MapData, u32> = Array::try_from(map).map_err(problem)?;
        map.set(0, bytes, 0).map_err(problem)
    }

    /// Sends the packets of the queue's number to the queue.
    pub fn register(&mut self, queue: &XskQueue) -> Result<(), PortError> {
        let interface = self.interface.clone();
        self.sockets()?
            .set(queue.queue(), queue.fd().as_raw_fd(), 0)
            .map_err(|error| program_error(&interface, &error))
    }

    /// Sends the packets of queue `queue` nowhere: an uplink's go to the kernel, a port's are dropped. Closing the queue does
    /// the same.
    pub fn unregister(&mut self, queue: u32) -> Result<(), PortError> {
        let interface = self.interface.clone();
        self.sockets()?
            .unset(queue)
            .map_err(|error| program_error(&interface, &error))
    }

    fn sockets(&mut self) -> Result<XskMap<&mut MapData>, PortError> {
        let interface = &self.interface;
        let map = self
            .ebpf
            .map_mut(SOCKETS_MAP)
            .ok_or_else(|| missing(interface, SOCKETS_MAP))?;
        XskMap::try_from(map).map_err(|error| program_error(interface, &error))
    }

    /// What the program counted, summed over the processors.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, PortError> {
        let interface = &self.interface;
        let problem = |error: MapError| program_error(interface, &error);
        let map = self
            .ebpf
            .map(COUNTERS_MAP)
            .ok_or_else(|| missing(interface, COUNTERS_MAP))?;
        let map: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(map).map_err(problem)?;
        Counter::ALL
            .into_iter()
            .map(|counter| {
                let cells = map.get(&(counter as u32), 0).map_err(problem)?;
                Ok((counter, cells.iter().sum()))
            })
            .collect()
    }

    /// One of the counters.
    pub fn counter(&self, counter: Counter) -> Result<u64, PortError> {
        let found = self
            .counters()?
            .into_iter()
            .find(|(known, _)| *known == counter);
        Ok(found.map_or(0, |(_, value)| value))
    }
}

/// The key by which the program knows an address.
fn address_key(address: IpAddr) -> AddressKey {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Attaches by a BPF link, in the first mode that the device accepts.
fn link(
    program: &ProgramFd,
    interface: &str,
    index: u32,
    only: Option<AttachMode>,
) -> Result<(Link, AttachMode), PortError> {
    let mut refusals =
        [AttachMode::Native, AttachMode::Generic].map(|mode| (mode, "not asked for".to_owned()));
    for (mode, refusal) in &mut refusals {
        if only.is_some_and(|only| only != *mode) {
            continue;
        }
        match attach(program, index, *mode) {
            Ok(link) => return Ok((link, *mode)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) => {
                return Err(PortError::ProgramBusy {
                    interface: interface.to_owned(),
                });
            }
            Err(error) => *refusal = error.to_string(),
        }
    }
    let [(_, native), (_, generic)] = refusals;
    Err(PortError::Attach {
        interface: interface.to_owned(),
        native,
        generic,
    })
}

fn attach(program: &ProgramFd, index: u32, mode: AttachMode) -> io::Result<Link> {
    if KernelVersion::current().is_ok_and(|kernel| kernel < KernelVersion::new(5, 9, 0)) {
        return Err(io::Error::other("BPF links for XDP need kernel 5.9"));
    }
    let hook = match mode {
        AttachMode::Native => Hook::Driver,
        AttachMode::Generic => Hook::Stack,
    };
    Link::create(program.as_fd(), index, hook)
}

fn missing(interface: &str, what: &str) -> PortError {
    PortError::Program {
        interface: interface.to_owned(),
        problem: format!("the object has no {what}"),
    }
}

fn program_error(interface: &str, error: &(dyn std::error::Error + 'static)) -> PortError {
    let source = io_error_of(error);
    if source.raw_os_error() == Some(libc::EPERM) {
        return PortError::from_io(
            format!("interface {interface}: loading the XDP program"),
            "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
            source,
        );
    }
    // The verifier's listing has hundreds of lines; they are for the one who changes the program.
    let text = error.to_string();
    let (problem, listing) = text.split_once("Verifier output").unwrap_or((&text, ""));
    tracing::debug!(interface, listing, "XDP program refused");
    PortError::Program {
        interface: interface.to_owned(),
        problem: problem.trim_end_matches([' ', '.', ':']).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_is_known_by_its_mapped_form() {
        let key = address_key(IpAddr::from([10, 1, 2, 3]));
        assert_eq!(key, weft_ebpf_types::mapped_v4([10, 1, 2, 3]));
    }
}
