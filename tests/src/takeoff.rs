//! A program that a process has on an interface, taken off by force while the process lives on.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::{fs, io, mem};

use crate::{LabError, Namespace};

/// Commands of bpf(2), of `linux/bpf.h`.
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
const BPF_LINK_DETACH: libc::c_long = 34;

/// Where on an interface a program hangs, as the kernel names its links (`/proc/PID/fdinfo`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Before the stack.
    Xdp,
    /// At the stack's ingress.
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
        self.link().and_then(detach).map_err(failed)
    }

    /// Whether it is attached.
    pub fn is_there(&self) -> bool {
        self.link().is_ok()
    }

    /// The number of the link that holds it.
    fn link(&self) -> io::Result<u32> {
        let path = format!("/sys/class/net/{}/ifindex", self.interface);
        let index = self.namespace.run(&["cat", &path]);
        let index = index.map_err(io::Error::other)?;
        let kind = match self.hook {
            Hook::Xdp => "xdp",
            Hook::Tcx => "tcx",
        };
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
            if field("link_type") == Some(kind)
                && field("ifindex") == Some(index.trim())
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
    // SAFETY: the call just opened it, and nobody else knows of it.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    bpf(BPF_LINK_DETACH, link.as_raw_fd().cast_unsigned()).map(drop)
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
