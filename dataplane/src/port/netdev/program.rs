//! The XDP program of one interface: attaching it, registering sockets with it, reading its counters.
//!
//! A BPF link holds it, which the kernel removes with its last descriptor. When the process ends, however that happens, an uplink is as it was
//! before. A port keeps only its guard ([`super::guard`]), which is attached before the program and stays. When another process detaches the
//! program, it is attached again with the same maps ([`Attachment::restore`]).

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, RawFd},
    sync::{Arc, Mutex, PoisonError},
};

use aya::{programs::ProgramFd, util::KernelVersion};
use ipnetwork::IpNetwork;
use weft_ebpf_types::Counter;

use super::XskQueue;
use super::guard::{self, Guard};
use super::link::{Hook, Link};
use super::object::{ALL, Loader, missing, program_error};
use super::port_program::{Place, PortProgram};
use super::uplink_program::UplinkProgram;
use crate::packet::Station;
use crate::port::{Interface, PortError, socket_options};

/// What an interface is to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Tunnel packets to these addresses are ours, and what is for addresses that are held ([`Attachment::set_held`]); everything else is the
    /// kernel's.
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

/// The programs of a host, loaded before they are needed or when they are.
#[derive(Debug, Default)]
pub struct Programs {
    ports: Arc<PortProgram>,
    /// Uplinks take those that are here, before they load their own.
    uplinks: Mutex<Vec<UplinkProgram>>,
}

impl Programs {
    /// Loads what ports and so many uplinks will need, lest they wait for it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn load(uplinks: usize) -> Result<Self, PortError> {
        socket_options::raise_limits()?;
        let programs = Self::find();
        let mut loader = Loader::new();
        programs.ports.load(|| loader.load(ALL))?;
        programs.ports.load_guard()?;
        let each = (0..uplinks).map(|_| UplinkProgram::load(&mut loader, "an uplink"));
        let uplinks = each.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            uplinks: Mutex::new(uplinks),
            ..programs
        })
    }

    /// Loads nothing yet; but what an earlier process has left on ports is taken over, while this one may still ask for it.
    pub fn find() -> Self {
        let programs = Self::default();
        programs.ports.find_guard();
        programs
    }

    /// Keeps an interface and the host's own stack apart, until it is deleted or released ([`release`](super::release)). Does nothing if it is closed.
    ///
    /// # Errors
    /// It is not there, or the kernel refuses.
    pub fn close(&self, interface: &str) -> Result<(), PortError> {
        let found = Interface::lookup(interface)?;
        self.ports.close(&found).map(drop)
    }

    /// As [`Programs::close`] does on kernels before 6.6: for what arrives alone, and until the interface moves to another network namespace.
    ///
    /// # Errors
    /// It is not there, or the kernel refuses.
    pub fn close_by_filter(&self, interface: &str) -> Result<(), PortError> {
        self.ports.close_by_filter(interface)
    }

    /// Whether an interface is known to be closed.
    pub fn is_closed(&self, interface: &str) -> bool {
        Interface::lookup(interface).is_ok_and(|found| self.ports.is_closed(&found))
    }

    fn uplink(&self, interface: &str) -> Result<UplinkProgram, PortError> {
        let mut ready = self.uplinks.lock().unwrap_or_else(PoisonError::into_inner);
        match ready.pop() {
            Some(program) => Ok(program),
            None => UplinkProgram::load(&mut Loader::new(), interface),
        }
    }
}

/// What of a loaded program is one interface's.
#[derive(Debug)]
enum Own {
    Uplink(Box<UplinkProgram>),
    Port(Place),
}

/// An attached program, and the guard behind it. Dropping it detaches the program; the guard stays.
#[derive(Debug)]
pub struct Attachment {
    interface: String,
    index: u32,
    mode: AttachMode,
    /// None if another process has replaced the program.
    link: Option<Link>,
    /// None for uplinks, and on kernels without `tcx`.
    guard: Option<Guard>,
    own: Own,
}

impl Attachment {
    /// Attaches the program for `role` to `interface`, a name in the calling thread's network namespace: in the driver if it can, in
    /// the stack otherwise, or only as `only` says. `programs` are of the same network namespace.
    pub fn attach(
        programs: &Programs,
        interface: &str,
        role: &Role,
        only: Option<AttachMode>,
    ) -> Result<Self, PortError> {
        let found = Interface::lookup(interface)?;
        let (own, guard) = match role {
            Role::Uplink { vteps } => {
                let mut program = programs.uplink(interface)?;
                program.set_vteps(interface, vteps)?;
                (Own::Uplink(Box::new(program)), None)
            }
            Role::Port { headroom } => {
                // Before anything else: whatever comes of it, the port is closed.
                let guard = programs.ports.close(&found)?;
                (Own::Port(programs.ports.admit(&found, *headroom)?), guard)
            }
        };
        let program = own.program(interface)?;
        let (link, mode) = link(&program, interface, found.index, only)?;
        Ok(Self {
            interface: interface.to_owned(),
            index: found.index,
            mode,
            link: Some(link),
            guard,
            own,
        })
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
        match &mut self.own {
            Own::Uplink(program) => program.set_vteps(&self.interface, vteps),
            Own::Port(_) => Err(missing(&self.interface, "tunnel addresses, of a port")),
        }
    }

    /// Replaces the set of addresses that are held on the segment of an uplink: all IP packets to them are ours, and what ARP and neighbour
    /// discovery say to or of them, untagged or in a VLAN. Addresses that stay are not interrupted.
    pub fn set_held(&mut self, held: &[IpNetwork]) -> Result<(), PortError> {
        match &mut self.own {
            Own::Uplink(program) => program.set_held(&self.interface, held),
            Own::Port(_) => Err(missing(&self.interface, "held addresses, of a port")),
        }
    }

    /// Replaces the set of ports on external networks on the segment of an uplink: frames to them are ours. Those that stay are not interrupted.
    pub fn set_stations(&mut self, stations: &[Station]) -> Result<(), PortError> {
        match &mut self.own {
            Own::Uplink(program) => program.set_stations(&self.interface, stations),
            Own::Port(_) => Err(missing(&self.interface, "stations, of a port")),
        }
    }

    /// Whether everything is still attached. Another process may detach it by force, or replace the program.
    pub fn holds(&self) -> bool {
        self.link.as_ref().is_some_and(Link::holds) && self.guard.as_ref().is_none_or(Guard::holds)
    }

    /// Attaches again what another process detached, with the same queues and addresses.
    ///
    /// # Errors
    /// Another program is in its place ([`PortError::ProgramBusy`]), or the kernel refuses.
    pub fn restore(&mut self) -> Result<(), PortError> {
        // The guard first: what the program passes on must not reach the host's stack.
        if let Some(guard) = self.guard.as_ref().filter(|guard| !guard.holds()) {
            guard
                .restore()
                .map_err(|error| program_error(&self.interface, &error))?;
        }
        if self.link.as_ref().is_some_and(Link::holds) {
            return Ok(());
        }
        // Ours may be in the way, with another program in it.
        self.link = None;
        let program = self.own.program(&self.interface)?;
        let (link, mode) = link(&program, &self.interface, self.index, None)?;
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
        match &mut self.own {
            Own::Port(place) if self.guard.is_some() => place.set_longest(bytes),
            _ => Err(guard::none(&self.interface)),
        }
    }

    /// Sends the packets of the queue's number to the queue.
    pub fn register(&mut self, queue: &XskQueue) -> Result<(), PortError> {
        self.set_socket(queue.queue(), Some(queue.fd().as_raw_fd()))
    }

    /// Sends the packets of queue `queue` nowhere: an uplink's go to the kernel, a port's are dropped. Closing the queue does
    /// the same.
    pub fn unregister(&mut self, queue: u32) -> Result<(), PortError> {
        self.set_socket(queue, None)
    }

    fn set_socket(&mut self, queue: u32, socket: Option<RawFd>) -> Result<(), PortError> {
        match &mut self.own {
            Own::Uplink(program) => program.set_socket(&self.interface, queue, socket),
            Own::Port(place) => place.set_socket(queue, socket),
        }
    }

    /// What the program counted, summed over the processors; that of ports, over all ports.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, PortError> {
        match &self.own {
            Own::Uplink(program) => program.counters(&self.interface),
            Own::Port(place) => place.counters(),
        }
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

impl Own {
    fn program(&self, interface: &str) -> Result<ProgramFd, PortError> {
        match self {
            Self::Uplink(program) => program.program(interface),
            Self::Port(place) => place.program(),
        }
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
