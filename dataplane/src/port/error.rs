//! Errors between us and the kernel. Each prints as one line that says what to do about it.

use std::io;

/// An error of this module, naming the object and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// There is no such interface in this network namespace.
    #[error("interface {interface}: no such interface in this network namespace")]
    NoInterface {
        /// Its name.
        interface: String,
    },
    /// The kernel refused for lack of a capability.
    #[error("{what}: not permitted; run as root, or give the process {capabilities}")]
    Privilege {
        /// What was tried.
        what: String,
        /// What is missing.
        capabilities: &'static str,
    },
    /// The kernel has no AF_XDP.
    #[error("the kernel has no AF_XDP sockets; it needs CONFIG_XDP_SOCKETS=y")]
    NoAfXdp,
    /// The packet memory could not be allocated.
    #[error(
        "packet memory of {mebibytes} MiB: {source}; lower the number of frames, or raise the locked-memory limit"
    )]
    Memory {
        /// How much was asked for.
        mebibytes: usize,
        /// Why not.
        source: io::Error,
    },
    /// A size that the kernel doesn't accept.
    #[error("{what}: {value} is {rule}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The rule broken.
        rule: &'static str,
    },
    /// An interface whose frames are longer than packet buffers.
    #[error(
        "interface {interface}: with an MTU of {mtu}, frames are longer than packet buffers: memory.frame_size = {frame_size} takes an MTU of {most} here (`ip link set {interface} mtu {most}`){larger}"
    )]
    Mtu {
        /// The interface.
        interface: String,
        /// Its MTU.
        mtu: u32,
        /// The largest that fits.
        most: u32,
        /// Bytes of a packet buffer.
        frame_size: u32,
        /// What a larger buffer would take, if there is one.
        larger: String,
    },
    /// An interface that is part of another.
    #[error("interface {interface}: {problem}")]
    Uplink {
        /// The interface.
        interface: String,
        /// Why it is no uplink, and what to do.
        problem: String,
    },
    /// Another AF_XDP socket has the queue.
    #[error(
        "interface {interface} queue {queue}: in use by another AF_XDP socket; stop the other process"
    )]
    QueueBusy {
        /// The interface.
        interface: String,
        /// Its queue.
        queue: u32,
    },
    /// A queue that the interface doesn't have.
    #[error("interface {interface} has no queue {queue}")]
    NoQueue {
        /// The interface.
        interface: String,
        /// The queue asked for.
        queue: u32,
    },
    /// Another XDP program is attached.
    #[error(
        "interface {interface}: another XDP program is attached; detach it (`ip link set {interface} xdp off`)"
    )]
    ProgramBusy {
        /// The interface.
        interface: String,
    },
    /// Neither native nor generic XDP.
    #[error(
        "interface {interface}: cannot attach an XDP program: native: {native}; generic: {generic}"
    )]
    Attach {
        /// The interface.
        interface: String,
        /// Why not native.
        native: String,
        /// Why not generic.
        generic: String,
    },
    /// The XDP program or a map of it.
    #[error("XDP program for {interface}: {problem}")]
    Program {
        /// The interface.
        interface: String,
        /// The loader's error.
        problem: String,
    },
    /// Netlink returned an error.
    #[error("netlink: {what}: {problem}")]
    Netlink {
        /// What was asked.
        what: String,
        /// The answer.
        problem: String,
    },
    /// Any other call to the kernel.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

impl PortError {
    /// Sorts an error of the kernel by what a person can do about it.
    pub(super) fn from_io(
        what: impl Into<String>,
        capabilities: &'static str,
        source: io::Error,
    ) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Privilege {
                what: what.into(),
                capabilities,
            },
            Some(libc::EAFNOSUPPORT) => Self::NoAfXdp,
            _ => Self::Io {
                what: what.into(),
                source,
            },
        }
    }
}

/// The innermost operating system error of an error of another library, or its text.
pub(super) fn io_error_of(error: &(dyn std::error::Error + 'static)) -> io::Error {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(code) = current
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            return io::Error::from_raw_os_error(code);
        }
        next = current.source();
    }
    io::Error::other(error.to_string())
}
