//! Detaches a program from an interface by force, while the process that attached it keeps running.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::{fs, io, mem};

use crate::{LabError, Namespace};

/// Commands of bpf(2) and an attach type, of `linux/bpf.h`.
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
const BPF_LINK_DETACH: libc::c_long = 34;

/// Where on an interface a program hangs, as the kernel names its links (`/proc/PID/fdinfo`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Before the stack.
    Xdp,
    /// At the stack's ingress: no link holds it, and it may outlive the process.
    Tcx,
}

/// A program on an interface that belongs to a process.
#[derive(Debug)]
pub struct Attached<'a> {
    /// The process.
    pub pid: u32,
    /// Where the interface is.
    pub namespace: &'a Namespace,
    /// The interface.
    pub interface: &'a str,
    /// Where the program hangs.
    pub hook: Hook,
}

impl Attached<'_> {
    /// Detaches it, as `bpftool link detach` does.
    pub fn take_off(&self) -> Result<(), LabError> {
        let failed = LabError::io(format!("taking a program off: {self:?}"));
        match self.hook {
            Hook::Xdp => self.link().and_then(detach).map_err(failed),
            Hook::Tcx => {
                let index = self.index().map_err(io::Error::other);
                let taken = self.namespace.enter(|| take_off_ingress(index?))?;
                taken.map_err(failed)
            }
        }
    }

    /// Whether it is attached.
    pub fn is_there(&self) -> bool {
        match self.hook {
            Hook::Xdp => self.link().is_ok(),
            Hook::Tcx => {
                let index = self.index();
                let programs = self.namespace.enter(|| at_ingress(index?));
                programs.is_ok_and(|programs| programs.is_ok_and(|all| !all.is_empty()))
            }
        }
    }

    fn index(&self) -> io::Result<u32> {
        let path = format!("/sys/class/net/{}/ifindex", self.interface);
        let index = self.namespace.run(&["cat", &path]);
        let index = index.map_err(io::Error::other)?;
        index.trim().parse().map_err(io::Error::other)
    }

    /// The number of the link that holds it.
    fn link(&self) -> io::Result<u32> {
        let index = self.index()?.to_string();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.pid))? {
            // A descriptor that was closed meanwhile.
            let Ok(text) = fs::read_to_string(entry?.path()) else {
                continue;
            };
            let field = |name: &str| {
                let mut lines = text.lines().filter_map(|line| line.split_once(':'));
                let found = lines.find(|(known, _)| *known == name);
                found.map(|(_, value)| value.trim())
            };
            // One that was detached is on interface 0.
            if field("link_type") == Some("xdp")
                && field("ifindex") == Some(index.as_str())
                && let Some(id) = field("link_id").and_then(|id| id.parse().ok())
            {
                return Ok(id);
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }
}

fn detach(id: u32) -> io::Result<()> {
    let link = bpf(BPF_LINK_GET_FD_BY_ID, id)?;
    // SAFETY: the call has just opened it, and nothing else owns it.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    bpf(BPF_LINK_DETACH, link.as_raw_fd().cast_unsigned()).map(drop)
}

/// The programs at the ingress of an interface of the calling thread's namespace.
fn at_ingress(interface: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    // `query` of `union bpf_attr`: the interface, the attach type, flags, an address, a count; then addresses and a revision.
    let mut attributes = [0u32; 16];
    let address = (ids.as_mut_ptr().expose_provenance() as u64).to_ne_bytes();
    let [a, b, c, d, e, f, g, h] = address;
    attributes[0] = interface;
    attributes[1] = BPF_TCX_INGRESS;
    attributes[4] = u32::from_ne_bytes([a, b, c, d]);
    attributes[5] = u32::from_ne_bytes([e, f, g, h]);
    attributes[6] = ids.len() as u32;
    // SAFETY: the kernel reads and writes `attributes` in the size that is given, and writes at most as many numbers to `ids` as there is room for.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            attributes.as_mut_ptr(),
            mem::size_of_val(&attributes),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ids[..attributes[6] as usize].to_vec())
}

fn take_off_ingress(interface: u32) -> io::Result<()> {
    for id in at_ingress(interface)? {
        let program = bpf(BPF_PROG_GET_FD_BY_ID, id)?;
        // SAFETY: the call has just opened it, and nothing else owns it.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        // The interface, the program, the attach type, flags, and what is left out.
        let descriptor = program.as_raw_fd().cast_unsigned();
        let mut attributes = [interface, descriptor, BPF_TCX_INGRESS, 0, 0, 0, 0, 0];
        // SAFETY: the kernel reads `attributes` in the size that is given.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_DETACH,
                attributes.as_mut_ptr(),
                mem::size_of_val(&attributes),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// bpf(2) with a command that reads one number.
fn bpf(command: libc::c_long, mut number: u32) -> io::Result<RawFd> {
    // SAFETY: both commands read one number of 32 bits, of the size that is given, and write nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw mut number,
            mem::size_of::<u32>(),
        )
    };
    match RawFd::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
