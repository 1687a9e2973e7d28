//! System calls on AF_XDP sockets that xsk-rs does not offer: options, limits, wake-ups.

#![allow(unsafe_code)]

use std::{
    io, mem,
    os::fd::{AsRawFd, RawFd},
};

use super::error::PortError;

/// `XDP_MAX_TX_SKB_BUDGET`: packets that one doorbell may send in copy mode; from kernel 6.18, 32 before.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
const SO_PREFER_BUSY_POLL: libc::c_int = 69;
const SO_BUSY_POLL_BUDGET: libc::c_int = 70;

fn set(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of_val(&value)` bytes of `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            (&raw const value).cast(),
            mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn set_bytes(fd: RawFd, level: libc::c_int, name: libc::c_int, value: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads `value.len()` bytes of `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets a raw ICMP socket hear of destinations that cannot be reached and packets that are too big, and of nothing else.
///
/// # Errors
/// The kernel refuses.
pub fn icmp_errors_only(socket: &impl AsRawFd, ipv6: bool) -> io::Result<()> {
    // `ICMP_FILTER` of `linux/icmp.h`, `ICMPV6_FILTER` of `linux/icmpv6.h`: a bit that is set keeps a type out.
    const ICMP_FILTER: libc::c_int = 1;
    const ICMPV6_FILTER: libc::c_int = 1;
    let fd = socket.as_raw_fd();
    if ipv6 {
        let mut kept_out = [u8::MAX; 32];
        // Type 2, in the first word of eight.
        kept_out[..4].copy_from_slice(&(!(1u32 << 2)).to_ne_bytes());
        set_bytes(fd, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &kept_out)
    } else {
        set_bytes(
            fd,
            libc::SOL_RAW,
            ICMP_FILTER,
            &(!(1u32 << 3)).to_ne_bytes(),
        )
    }
}

/// Polls the device's receive queue from our own system calls instead of from interrupts: for `microseconds` at a time, up to
/// `budget` packets. Needs a driver with NAPI.
pub(super) fn prefer_busy_poll(fd: RawFd, microseconds: u32, budget: u32) -> io::Result<()> {
    let microseconds = libc::c_int::try_from(microseconds).unwrap_or(libc::c_int::MAX);
    let budget = libc::c_int::try_from(budget).unwrap_or(libc::c_int::MAX);
    set(fd, libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, 1)?;
    set(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL, microseconds)?;
    set(fd, libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, budget)
}

/// Raises the packets per wake-up. An older kernel does not know the option and keeps 32, which is not an error.
pub(super) fn raise_send_budget(fd: RawFd, packets: u32) -> bool {
    let packets = libc::c_int::try_from(packets).unwrap_or(libc::c_int::MAX);
    set(fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, packets).is_ok()
}

/// Whether the socket was bound in zero-copy mode.
pub(super) fn is_zero_copy(fd: RawFd) -> io::Result<bool> {
    let mut options = libc::xdp_options { flags: 0 };
    let mut len = mem::size_of_val(&options) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `options`, which is that large.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_XDP,
            libc::XDP_OPTIONS,
            (&raw mut options).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Tells the kernel that there is something to send.
pub(super) fn ring_transmit_bell(fd: RawFd) -> io::Result<()> {
    // SAFETY: no buffer and no address are passed.
    let result = unsafe {
        libc::sendto(
            fd,
            std::ptr::null(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null(),
            0,
        )
    };
    if result >= 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets the driver look at the receive queue: wakes it, or polls it when busy polling is on.
pub(super) fn ring_receive_bell(fd: RawFd) -> io::Result<()> {
    // SAFETY: no buffer and no address are passed.
    let result = unsafe {
        libc::recvfrom(
            fd,
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    if result >= 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Keeps a descriptor out of the programs that we start: a copy of it would hold the queue after we are gone.
pub(super) fn close_on_exec(socket: &impl AsRawFd) -> Result<(), PortError> {
    // SAFETY: a plain system call on a descriptor that the caller has open.
    if unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) } == 0 {
        return Ok(());
    }
    Err(PortError::Io {
        what: "marking an AF_XDP socket close-on-exec".to_owned(),
        source: io::Error::last_os_error(),
    })
}

/// Lifts the limits on locked memory and on open files as far as they go. The packet memory is locked, and each port on a kernel interface takes
/// a dozen descriptors, which the usual 1024 are soon too few for. Where a limit stays too low, whatever meets it says so.
pub(super) fn raise_limits() -> Result<(), PortError> {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the kernel reads `unlimited`, which is of the right type.
    let lifted = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) == 0 };
    if !lifted {
        raise(libc::RLIMIT_MEMLOCK, "locked memory")?;
    }
    raise(libc::RLIMIT_NOFILE, "open files")
}

/// Lifts a limit to where only a privileged process may go further.
fn raise(resource: libc::__rlimit_resource_t, what: &str) -> Result<(), PortError> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes `limit`, which is of the right type.
    let mut result = unsafe { libc::getrlimit(resource, &raw mut limit) };
    if result == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the kernel reads `limit`.
        result = unsafe { libc::setrlimit(resource, &raw const limit) };
    }
    if result == 0 {
        return Ok(());
    }
    Err(PortError::Io {
        what: format!("raising the limit on {what}"),
        source: io::Error::last_os_error(),
    })
}
