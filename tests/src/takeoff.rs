//! An interface's XDP program taken off by force, while the process that attached it lives on.

#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::{fs, io, mem};

use crate::{LabError, Namespace};

/// Commands of bpf(2), of `linux/bpf.h`.
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
const BPF_LINK_DETACH: libc::c_long = 34;

/// Detaches the XDP program that a process has on an interface of its namespace, as `bpftool link detach` does.
pub fn take_program_off(pid: u32, namespace: &Namespace, interface: &str) -> Result<(), LabError> {
    let path = format!("/sys/class/net/{interface}/ifindex");
    let index = namespace.run(&["cat", &path])?;
    let what = format!("taking the program of process {pid} off {interface}");
    let failed = LabError::io(what);
    let id = link_of(pid, index.trim()).map_err(LabError::io(format!(
        "the link of process {pid} to {interface}"
    )))?;
    detach(id).map_err(failed)
}

/// The number of the link by which a process holds an XDP program on the interface of this index.
fn link_of(pid: u32, index: &str) -> io::Result<u32> {
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor that was closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(':'));
            let found = lines.find(|(known, _)| *known == name);
            found.map(|(_, value)| value.trim())
        };
        if field("link_type") == Some("xdp")
            && field("ifindex") == Some(index)
            && let Some(id) = field("link_id").and_then(|id| id.parse().ok())
        {
            return Ok(id);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn detach(id: u32) -> io::Result<()> {
    let link = bpf(BPF_LINK_GET_FD_BY_ID, id)?;
    // SAFETY: the call just opened it, and nobody else knows of it.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&link);
    bpf(BPF_LINK_DETACH, descriptor.cast_unsigned()).map(drop)
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
