//! BPF links: a link holds a program on an interface for as long as its descriptor is open, and no other can be attached there meanwhile. But
//! whoever may can detach it by force (`BPF_LINK_DETACH`) or put another program into it (`BPF_LINK_UPDATE`), which its owner is not told: hence
//! [`Link::holds`].

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::{io, mem, ptr};

/// Commands of bpf(2), attach types and flags, of `linux/bpf.h` and `linux/if_link.h`.
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Where on an interface a program hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// In the driver, before there is a socket buffer.
    Driver,
    /// In the stack, before anything else looks at the packet.
    Stack,
    /// Where the stack classifies what arrives (`tcx`, Linux 6.6).
    Ingress,
}

/// A program on an interface. Dropping it detaches the program.
#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
    interface: u32,
    program: u32,
}

/// `link_create` of `union bpf_attr`.
#[repr(C)]
struct Create {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

/// `info` of `union bpf_attr`.
#[repr(C)]
struct Ask {
    fd: u32,
    len: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info`, as links to interfaces have it.
#[repr(C)]
#[derive(Debug, Default)]
struct Info {
    kind: u32,
    link: u32,
    program: u32,
    padding: u32,
    interface: u32,
    attach_type: u32,
}

impl Link {
    /// Attaches a loaded program to the interface of this index.
    pub(super) fn create(program: BorrowedFd<'_>, interface: u32, hook: Hook) -> io::Result<Self> {
        let (attach_type, flags) = match hook {
            Hook::Driver => (BPF_XDP, XDP_FLAGS_DRV_MODE),
            Hook::Stack => (BPF_XDP, XDP_FLAGS_SKB_MODE),
            Hook::Ingress => (BPF_TCX_INGRESS, 0),
        };
        let mut attributes = Create {
            program: program.as_raw_fd().cast_unsigned(),
            interface,
            attach_type,
            flags,
        };
        // SAFETY: `Create` is laid out as the kernel reads it for this command, and holds no pointer.
        let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attributes)? };
        // SAFETY: the call just opened it, and nobody else knows of it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let program = info(&fd)?.program;
        Ok(Self {
            fd,
            interface,
            program,
        })
    }

    /// Whether the program that was attached still is, where it was. Also if the kernel does not tell.
    pub(super) fn holds(&self) -> bool {
        // One that was detached is on interface 0.
        info(&self.fd).map_or(true, |now| {
            (now.interface, now.program) == (self.interface, self.program)
        })
    }
}

fn info(fd: &OwnedFd) -> io::Result<Info> {
    let mut info = Info::default();
    let mut attributes = Ask {
        fd: fd.as_raw_fd().cast_unsigned(),
        len: mem::size_of::<Info>() as u32,
        info: ptr::from_mut(&mut info).expose_provenance() as u64,
    };
    // SAFETY: `Ask` is laid out as the kernel reads it for this command; it writes at most `len` bytes to `info`, which has them, is made of plain
    // integers, and outlives the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)? };
    Ok(info)
}

/// bpf(2).
///
/// # Safety
/// `attributes` is what the kernel reads, and may write, for the command; what it points to is there for the kernel to write.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads and writes no more than the size that is given, and the caller vouches for the rest.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            ptr::from_mut(attributes),
            mem::size_of::<T>(),
        )
    };
    libc::c_int::try_from(result)
        .ok()
        .filter(|result| *result >= 0)
        .ok_or_else(io::Error::last_os_error)
}
