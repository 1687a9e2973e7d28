//! BPF links. A link holds a program on an interface for as long as its descriptor is open, and no other program can be attached there
//! meanwhile. A privileged process can still detach it by force (`BPF_LINK_DETACH`) or replace its program (`BPF_LINK_UPDATE`). The kernel
//! does not notify the owner, so [`Link::holds`] asks.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::{io, mem, ptr};

/// Commands of bpf(2), attach types and flags, of `linux/bpf.h` and `linux/if_link.h`.
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_NEXT_ID: libc::c_int = 11;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_BEFORE: u32 = 1 << 3;
/// The most programs that one side of an interface has (`BPF_MPROG_MAX`).
const MOST_PROGRAMS: usize = 64;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Where on an interface a program hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// In the driver, before there is a socket buffer.
    Driver,
    /// In the stack, before anything else looks at the packet.
    Stack,
}

/// Where the stack classifies what an interface receives and what it is to send (`tcx`, Linux 6.6). Programs are attached there without a link,
/// and stay until they are detached or the interface is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// What it receives.
    In,
    /// What it is to send, but for AF_XDP sockets and what goes past the queueing discipline.
    Out,
}

impl Side {
    fn attach_type(self) -> u32 {
        match self {
            Self::In => BPF_TCX_INGRESS,
            Self::Out => BPF_TCX_EGRESS,
        }
    }
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

/// The attributes of attaching and detaching without a link.
#[repr(C)]
#[derive(Default)]
struct Attach {
    interface: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
    relative: u32,
    revision: u64,
}

/// `query` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Query {
    interface: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// The attributes of going through all programs, and of opening one.
#[repr(C)]
struct ById {
    id: u32,
    next: u32,
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
        };
        let mut attributes = Create {
            program: program.as_raw_fd().cast_unsigned(),
            interface,
            attach_type,
            flags,
        };
        // SAFETY: `Create` is laid out as the kernel reads it for this command, and holds no pointer.
        let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attributes)? };
        // SAFETY: the call has just opened it, and nothing else owns it.
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

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    lengths: [u32; 2],
    instructions: [u64; 2],
    load_time: u64,
    user: u32,
    maps: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// Attaches a program to one side of an interface, ahead of those that are attached. Does nothing if it is attached already.
pub(super) fn attach(program: BorrowedFd<'_>, interface: u32, side: Side) -> io::Result<()> {
    let mut attributes = Attach {
        interface,
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: side.attach_type(),
        flags: BPF_F_BEFORE,
        ..Attach::default()
    };
    // SAFETY: `Attach` is laid out as the kernel reads it for this command, and holds no pointer.
    match unsafe { bpf(BPF_PROG_ATTACH, &mut attributes) } {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => Ok(()),
    }
}

/// Detaches a program from one side of an interface.
pub(super) fn detach(program: BorrowedFd<'_>, interface: u32, side: Side) -> io::Result<()> {
    let mut attributes = Attach {
        interface,
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: side.attach_type(),
        ..Attach::default()
    };
    // SAFETY: `Attach` is laid out as the kernel reads it for this command, and holds no pointer.
    unsafe { bpf(BPF_PROG_DETACH, &mut attributes).map(drop) }
}

/// The identifiers of the programs on one side of an interface, in the order in which they run.
pub(super) fn attached(interface: u32, side: Side) -> io::Result<Vec<u32>> {
    let mut ids = vec![0u32; MOST_PROGRAMS];
    let mut attributes = Query {
        interface,
        attach_type: side.attach_type(),
        programs: ids.as_mut_ptr().expose_provenance() as u64,
        count: MOST_PROGRAMS as u32,
        ..Query::default()
    };
    // SAFETY: `Query` is laid out as the kernel reads it for this command; it writes at most `count` identifiers to `ids`, which has as many and
    // outlives the call.
    unsafe { bpf(BPF_PROG_QUERY, &mut attributes)? };
    ids.truncate(attributes.count as usize);
    Ok(ids)
}

/// The identifier after this one, of all programs of the machine. None: there is none, or the process may not know.
pub(super) fn next_program(after: u32) -> Option<u32> {
    let mut attributes = ById {
        id: after,
        next: 0,
        flags: 0,
    };
    // SAFETY: `ById` is laid out as the kernel reads and writes it for this command, and holds no pointer.
    unsafe { bpf(BPF_PROG_GET_NEXT_ID, &mut attributes) }
        .is_ok()
        .then_some(attributes.next)
}

/// Opens the program of this identifier.
pub(super) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attributes = ById {
        id,
        next: 0,
        flags: 0,
    };
    // SAFETY: `ById` is laid out as the kernel reads it for this command, and holds no pointer.
    let fd = unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut attributes)? };
    // SAFETY: the call has just opened it, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A loaded program's identifier.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    program_info(program).map(|info| info.id)
}

/// A loaded program's name.
pub(super) fn program_name(program: BorrowedFd<'_>) -> io::Result<String> {
    let name = program_info(program)?.name;
    let len = name.iter().position(|byte| *byte == 0);
    Ok(String::from_utf8_lossy(&name[..len.unwrap_or(name.len())]).into_owned())
}

fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut info = ProgramInfo::default();
    let mut attributes = Ask {
        fd: program.as_raw_fd().cast_unsigned(),
        len: mem::size_of::<ProgramInfo>() as u32,
        info: ptr::from_mut(&mut info).expose_provenance() as u64,
    };
    // SAFETY: `Ask` is laid out as the kernel reads it for this command; it writes at most `len` bytes to `info`, which has them, is made of plain
    // integers, and outlives the call. What it reads of `info` are lengths and pointers of buffers, all of which are 0.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)? };
    Ok(info)
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
