//! Frames in and out of an interface of a namespace, byte for byte (AF_PACKET).

#![allow(unsafe_code)]

use std::{
    ffi::CString,
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use crate::{LabError, Namespace};

/// `PACKET_IGNORE_OUTGOING` of `linux/if_packet.h`.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// A socket on one interface. It sees what arrives there, not what is sent from there.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
}

impl RawSocket {
    /// Opens a socket on `interface` of the namespace.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self, LabError> {
        let what = format!("{}: raw socket on {interface}", namespace.label());
        namespace
            .enter(|| open(interface))?
            .map_err(LabError::io(what))
    }

    /// Opens a socket for [`crate::load`]: frames go to the device directly, past the queueing discipline, and none are received.
    pub fn open_for_load(namespace: &Namespace, interface: &str) -> Result<Self, LabError> {
        let socket = Self::open(namespace, interface)?;
        let one: libc::c_int = 1;
        let len = mem::size_of_val(&one) as libc::socklen_t;
        // SAFETY: the option is read by the kernel in the length given.
        let set = unsafe {
            let value = (&raw const one).cast();
            libc::setsockopt(
                socket.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                value,
                len,
            )
        };
        if set != 0 {
            return Err(LabError::io("a socket for load")(io::Error::last_os_error()));
        }
        Ok(socket)
    }

    /// Opens a socket that says which tag frames had: the kernel takes it off before a socket sees them.
    pub fn open_tagged(namespace: &Namespace, interface: &str) -> Result<Self, LabError> {
        let socket = Self::open(namespace, interface)?;
        let one: libc::c_int = 1;
        let len = mem::size_of_val(&one) as libc::socklen_t;
        // SAFETY: the option is read by the kernel in the length given.
        let set = unsafe {
            let value = (&raw const one).cast();
            let (fd, level) = (socket.fd.as_raw_fd(), libc::SOL_PACKET);
            libc::setsockopt(fd, level, libc::PACKET_AUXDATA, value, len)
        };
        if set != 0 {
            return Err(LabError::io("tags of frames")(io::Error::last_os_error()));
        }
        Ok(socket)
    }

    /// The next frame of a socket that was opened with [`Self::open_tagged`], without its tag, and the tag's control information if it had one; none if none comes in
    /// time.
    pub fn receive_tagged(&self, within: Duration) -> Option<(Option<u16>, Vec<u8>)> {
        if !is_readable(self.fd.as_raw_fd(), within) {
            return None;
        }
        let mut buffer = vec![0u8; 65536];
        let mut control = [0u64; 16];
        let mut vector = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: plain C structures, for which all zero is a value; the kernel writes into the two buffers in the lengths given, and what it says of the control
        // data lies within them.
        let (got, auxiliary) = unsafe {
            let mut message: libc::msghdr = mem::zeroed();
            message.msg_iov = &raw mut vector;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = mem::size_of_val(&control);
            let fd = self.fd.as_raw_fd();
            let got = libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT);
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            let is_auxiliary = got >= 0
                && !header.is_null()
                && (*header).cmsg_level == libc::SOL_PACKET
                && (*header).cmsg_type == libc::PACKET_AUXDATA;
            let auxiliary = is_auxiliary.then(|| {
                let data = libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>();
                data.read_unaligned()
            });
            (got, auxiliary)
        };
        buffer.truncate(usize::try_from(got).ok()?);
        let has_tag = |it: &libc::tpacket_auxdata| it.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
        let tag = auxiliary.filter(has_tag).map(|it| it.tp_vlan_tci);
        Some((tag, buffer))
    }

    /// The descriptor.
    pub fn descriptor(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Sends one frame, Ethernet header first.
    pub fn send(&self, frame: &[u8]) -> Result<(), LabError> {
        // SAFETY: the kernel reads `frame.len()` bytes of `frame`.
        let sent =
            unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 {
            return Err(LabError::io("sending a frame")(io::Error::last_os_error()));
        }
        Ok(())
    }

    /// The next frame that `wanted` accepts, if one comes in time. Others are dropped.
    pub fn receive(
        &self,
        within: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Option<Vec<u8>> {
        let deadline = Instant::now() + within;
        let mut buffer = vec![0; 65536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if is_readable(self.fd.as_raw_fd(), left) {
                // SAFETY: the kernel writes at most `buffer.len()` bytes into `buffer`.
                let got = unsafe {
                    let to = buffer.as_mut_ptr().cast();
                    libc::recv(self.fd.as_raw_fd(), to, buffer.len(), libc::MSG_DONTWAIT)
                };
                if let Ok(len) = usize::try_from(got)
                    && wanted(&buffer[..len])
                {
                    buffer.truncate(len);
                    return Some(buffer);
                }
            }
            if left.is_zero() {
                return None;
            }
        }
    }
}

/// Waits until a descriptor can be read; false if it can't within the time.
pub fn is_readable(fd: RawFd, within: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let milliseconds = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one structure, which outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) > 0 }
}

fn open(interface: &str) -> io::Result<RawSocket> {
    let name = CString::new(interface)?;
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: plain system calls; `name` ends with a zero; the descriptor is new and nobody else's; the address and the option
    // are read by the kernel in the lengths given.
    unsafe {
        let index = libc::if_nametoindex(name.as_ptr());
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = OwnedFd::from_raw_fd(fd);
        let one: libc::c_int = 1;
        let ignored = libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_IGNORE_OUTGOING,
            (&raw const one).cast(),
            mem::size_of_val(&one) as libc::socklen_t,
        );
        let mut address: libc::sockaddr_ll = mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index.cast_signed();
        let len = mem::size_of_val(&address) as libc::socklen_t;
        let bound = libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len);
        if ignored != 0 || bound != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(RawSocket { fd })
    }
}
