//! The guard of ports: two programs that keep a port's interface and the host's own stack apart, whether weftd runs or not.
//!
//! A BPF link holds the XDP program of a port, and ends with the process. Without the program, a guest's packets would reach the host's
//! stack. The guard stays. It is attached to the interface itself (`tcx`, Linux 6.6) until the interface is deleted or [`release`] removes
//! it. It has no state, so a starting weftd finds it in force and changes nothing. It is attached before the XDP program.
//!
//! - *In*: drops every packet that arrives, at the point where the stack classifies it: after XDP and packet sockets, before bridges, VLANs
//!   and IP.
//! - *Out*: drops everything except what our packet sockets send, which carries [`GUARD_MARK`](weft_ebpf_types::GUARD_MARK). AF_XDP
//!   sockets do not pass this point.
//!
//! One pair of programs serves all interfaces of a machine. The kernel shows everyone the identifiers of attached programs, but only a
//! process with CAP_SYS_ADMIN can open them. So [`Pair::find`] looks for the pair of an earlier weftd while the process starts. Attaching
//! that pair again fails with an error that shows that it is already attached.
//!
//! Linux before 6.6 has no such hook. There a filter of the `clsact` queueing discipline drops arriving packets. It stays as well, except that
//! it does not follow the interface into another network namespace.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use aya::Ebpf;
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, qdisc_add_clsact, qdisc_detach_program,
};
use aya::programs::{SchedClassifier, TcAttachType};
use weft_ebpf_types::{GUARD_OUT_PROGRAM, GUARD_PROGRAM};

use super::link::{self, Side};
use super::object::{ALL, missing, program, program_error};
use crate::port::{Interface, PortError};

const SIDES: [(Side, &str); 2] = [(Side::In, GUARD_PROGRAM), (Side::Out, GUARD_OUT_PROGRAM)];
/// Where among an interface's filters the one of older kernels is.
const FILTER: (u16, u32) = (1, 0x7766);

/// A program of the pair.
#[derive(Debug)]
struct Half {
    side: Side,
    id: u32,
    fd: OwnedFd,
}

/// Both programs, loaded.
#[derive(Debug)]
pub(super) struct Pair([Half; 2]);

impl Pair {
    /// The pair that an earlier process has left on interfaces of this machine, if there is one and the process may ask (CAP_SYS_ADMIN).
    pub(super) fn find() -> Option<Self> {
        let mut found = [None, None];
        let mut after = 0;
        while let Some(id) = link::next_program(after) {
            after = id;
            let Ok(fd) = link::program_by_id(id) else {
                continue;
            };
            let Ok(name) = link::program_name(fd.as_fd()) else {
                continue;
            };
            for ((side, known), slot) in SIDES.into_iter().zip(&mut found) {
                if name == known {
                    let fd = fd.try_clone().ok()?;
                    *slot = Some(Half { side, id, fd });
                }
            }
        }
        let [inward, outward] = found;
        Some(Self([inward?, outward?]))
    }

    /// Loads a new pair.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn load(ebpf: &mut Ebpf) -> Result<Self, PortError> {
        let mut load = |side: Side, name: &str| {
            let guard: &mut SchedClassifier = program(ebpf, name, ALL)?;
            if guard.fd().is_err() {
                guard.load().map_err(|error| program_error(ALL, &error))?;
            }
            let fd = guard.fd().map_err(|error| program_error(ALL, &error))?;
            let failed = |error: io::Error| program_error(ALL, &error);
            let fd = fd.as_fd().try_clone_to_owned().map_err(failed)?;
            let id = link::program_id(fd.as_fd()).map_err(failed)?;
            Ok::<_, PortError>(Half { side, id, fd })
        };
        let [inward, outward] = SIDES;
        Ok(Self([
            load(inward.0, inward.1)?,
            load(outward.0, outward.1)?,
        ]))
    }

    /// Whether an interface is closed by this pair.
    pub(super) fn is_at(&self, index: u32) -> bool {
        let [inward, _] = &self.0;
        link::attached(index, inward.side).is_ok_and(|ids| ids.contains(&inward.id))
    }

    /// Closes an interface; does nothing if it is closed.
    pub(super) fn close(self: &Arc<Self>, index: u32) -> io::Result<Guard> {
        for half in &self.0 {
            link::attach(half.fd.as_fd(), index, half.side)?;
        }
        Ok(Guard {
            pair: Arc::clone(self),
            index,
        })
    }
}

/// A guard in force. It stays when this is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    pair: Arc<Pair>,
    index: u32,
}

impl Guard {
    /// Whether it is still attached; true if the kernel does not tell.
    pub(super) fn holds(&self) -> bool {
        let there = |half: &Half| {
            link::attached(self.index, half.side).map_or(true, |ids| ids.contains(&half.id))
        };
        self.pair.0.iter().all(there)
    }

    /// Attaches again what was taken off.
    pub(super) fn restore(&self) -> io::Result<()> {
        self.pair.close(self.index).map(drop)
    }
}

/// Detaches guards from an interface: the host's stack and the guest reach each other again. Returns whether there was one.
///
/// # Errors
/// The kernel refuses, or does not tell whose programs there are (CAP_SYS_ADMIN).
pub fn release(name: &str) -> Result<bool, PortError> {
    let interface = Interface::lookup(name)?;
    let failed = |source| {
        let what = format!("interface {name}: releasing it");
        PortError::from_io(what, "CAP_SYS_ADMIN and CAP_NET_ADMIN", source)
    };
    let mut found = false;
    for (side, _) in SIDES {
        for program in ours(interface.index, side).map_err(failed)? {
            link::detach(program.as_fd(), interface.index, side).map_err(failed)?;
            found = true;
        }
    }
    // The filter of an older kernel, or of the time before this one.
    Ok(found | qdisc_detach_program(name, TcAttachType::Ingress, GUARD_PROGRAM).is_ok())
}

/// The programs of guards on one side of an interface.
fn ours(index: u32, side: Side) -> io::Result<Vec<OwnedFd>> {
    let ids = match link::attached(index, side) {
        Ok(ids) => ids,
        // Linux before 6.6.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut programs = Vec::new();
    for id in ids {
        let fd = match link::program_by_id(id) {
            Ok(fd) => fd,
            // It went meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) => return Err(error),
        };
        let name = link::program_name(fd.as_fd())?;
        if SIDES.iter().any(|(_, known)| *known == name) {
            programs.push(fd);
        }
    }
    Ok(programs)
}

/// Closes an interface for what arrives on a kernel without `tcx`. What is there already stays.
///
/// # Errors
/// The kernel refuses.
pub(super) fn close_by_filter(ebpf: &mut Ebpf, name: &str) -> Result<(), PortError> {
    // It is there already, or attaching says what is wrong.
    let _ = qdisc_add_clsact(name);
    let guard: &mut SchedClassifier = program(ebpf, GUARD_PROGRAM, ALL)?;
    if guard.fd().is_err() {
        guard.load().map_err(|error| program_error(ALL, &error))?;
    }
    let (priority, handle) = FILTER;
    let options = TcAttachOptions::Netlink(NlOptions {
        priority,
        handle: handle.into(),
        classid: None,
    });
    match guard.attach_with_options(name, TcAttachType::Ingress, options) {
        Ok(id) => {
            let link: Result<SchedClassifierLink, _> = guard.take_link(id);
            // Dropped, it would be taken off.
            std::mem::forget(link.map_err(|error| program_error(name, &error))?);
            Ok(())
        }
        Err(error)
            if crate::port::error::io_error_of(&error).raw_os_error() == Some(libc::EEXIST) =>
        {
            Ok(())
        }
        Err(error) => Err(program_error(name, &error)),
    }
}

/// What is missing where a guard was expected.
pub(super) fn none(interface: &str) -> PortError {
    missing(interface, "guard in force")
}
