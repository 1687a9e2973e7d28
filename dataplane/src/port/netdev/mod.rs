//! Network devices of the kernel, by XDP and AF_XDP: uplinks, veth and tap ports.

mod frame_set;
mod link;
mod napi;
mod object;
mod packet_socket;
mod port_program;
mod port_queue;
mod program;
mod uplink_program;
mod xsk;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use aya::util::KernelVersion;
use packet_socket::PacketSocket;
use port_queue::PortQueue;

pub use napi::ThreadedNapi;
pub use program::{AttachMode, Attachment, Programs, Role};
use weft_ebpf_types::Counter;
pub use xsk::{BusyPoll, QueueCounters, QueueOptions, XskQueue};

use super::device::{Description, Device, Opening, Queue};
use super::link_mtu::link_mtu;
use super::share::Share;
use super::{Interface, PortError};
use crate::packet::parse::ETHERNET;

/// Linux before this knows no UDP segments in packet sockets.
const UDP_SEGMENTS: KernelVersion = KernelVersion::new(6, 2, 0);
/// The least time between two attempts to attach again what somebody else took off: whoever does that again and again is not fought.
const RESTORE_PAUSE: Duration = Duration::from_secs(5);

/// An open network device: its XDP program, and a queue for each of its receive queues.
#[derive(Debug)]
pub struct Netdev {
    name: String,
    /// The kernel's number of it; another number under the same name is another device.
    index: u32,
    zero_copy: bool,
    /// How many queues are used at most, and how many are.
    most: u32,
    used: u32,
    queues: Vec<Box<dyn Queue>>,
    _shares: Vec<Share>,
    /// The longest frame that goes to a ring; 0 if no other way is open.
    longest: u32,
    /// Whether somebody else took the program off, or has another in its place, as far as is known.
    detached: bool,
    /// When it was last attached again, or that was tried.
    restored: Option<Instant>,
    /// Put back before the program is detached, since a veth has its NAPI for the program's sake, and can be told nothing without: fields drop in order.
    _napi: Option<ThreadedNapi>,
    attachment: Attachment,
}

impl Netdev {
    /// Opens the device `name`, at most `queues` of its queues.
    ///
    /// # Errors
    /// It is not there, or the kernel refuses.
    pub fn open(
        opening: &Opening,
        name: &str,
        role: &Role,
        queues: Option<u32>,
    ) -> Result<Self, PortError> {
        let found = Interface::lookup(name)?;
        let headroom = match role {
            Role::Uplink { .. } => 0,
            Role::Port { headroom } => *headroom,
        };
        let wanted = opening.ring_size / 2;
        let mut attachment = Attachment::attach(&opening.programs, name, role, None)?;
        let (mut rings, mut shares) = (Vec::new(), Vec::new());
        let mut zero_copy = true;
        let most = queues.unwrap_or(u32::MAX);
        for queue in 0..queues_of(&found, most) {
            let share = Share::take(&opening.umem, wanted);
            let options = QueueOptions {
                ring_size: opening.ring_size,
                fill: share.frames(),
                headroom,
                busy_poll: opening.busy_poll,
            };
            shares.push(share);
            let queue = XskQueue::open(&opening.umem, name, queue, options)?;
            attachment.register(&queue)?;
            zero_copy &= queue.is_zero_copy();
            rings.push(queue);
        }
        let frames: u32 = shares.iter().map(Share::frames).sum();
        if frames < wanted * shares.len() as u32 {
            tracing::warn!(
                interface = name,
                frames,
                wanted = wanted * shares.len() as u32,
                "packet memory is scarce, so that bursts may be lost: raise memory.frames"
            );
        }
        let queues = match role {
            Role::Uplink { .. } => boxed(rings),
            Role::Port { .. } => with_segments(rings, &found, &mut attachment)?,
        };
        let napi = opening
            .threaded_napi
            .then(|| ThreadedNapi::enable(name, found.index))
            .flatten();
        Ok(Self {
            name: name.to_owned(),
            index: found.index,
            zero_copy,
            most,
            used: shares.len() as u32,
            queues,
            _shares: shares,
            longest: 0,
            attachment,
            detached: false,
            restored: None,
            _napi: napi,
        })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells an uplink's program which tunnel addresses are ours.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_vteps(&mut self, vteps: &[IpAddr]) -> Result<(), PortError> {
        self.attachment.set_vteps(vteps)
    }

    /// What its XDP program counted.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, PortError> {
        self.attachment.counters()
    }
}

impl Device for Netdev {
    fn take_queues(&mut self) -> Vec<Box<dyn Queue>> {
        std::mem::take(&mut self.queues)
    }

    fn is_up(&self) -> bool {
        !self.detached
    }

    fn is_stale(&self) -> bool {
        match Interface::lookup(&self.name) {
            // What arrives by a queue that came since would be lost.
            Ok(found) => found.index != self.index || queues_of(&found, self.most) != self.used,
            Err(PortError::NoInterface { .. }) => true,
            // Not told; that is no reason to close what works.
            Err(_) => false,
        }
    }

    fn takes(&self) -> Option<u16> {
        u16::try_from(link_mtu(self.index)?).ok()
    }

    fn set_mtu(&mut self, mtu: u16) {
        let longest = u32::from(mtu) + ETHERNET as u32;
        if self.longest == longest || !self.attachment.has_guard() {
            return;
        }
        match self.attachment.pass_longer(longest) {
            Ok(()) => self.longest = longest,
            Err(error) => tracing::warn!(interface = self.name, %error, "segments do not pass"),
        }
    }

    fn mend(&mut self) {
        if self.attachment.holds() {
            self.detached = false;
            return;
        }
        let interface = self.name.as_str();
        if !self.detached {
            tracing::error!(interface, "somebody took our XDP program off");
            self.detached = true;
        }
        if self
            .restored
            .is_some_and(|last| last.elapsed() < RESTORE_PAUSE)
        {
            return;
        }
        self.restored = Some(Instant::now());
        match self.attachment.restore() {
            Ok(()) => {
                self.detached = false;
                tracing::warn!(interface, "our XDP program is attached again");
            }
            Err(error) => tracing::debug!(interface, %error, "our XDP program stays off"),
        }
    }

    fn describe(&self) -> Description {
        let mode = self.attachment.mode().to_string();
        Description {
            mode: if self.detached {
                "no program".to_owned()
            } else {
                mode
            },
            zero_copy: self.zero_copy,
        }
    }
}

/// How many queues of an interface are used, of at most so many.
fn queues_of(interface: &Interface, most: u32) -> u32 {
    interface.receive_queues.min(most).max(1)
}

fn boxed(queues: impl IntoIterator<Item = impl Queue + 'static>) -> Vec<Box<dyn Queue>> {
    let each = queues.into_iter();
    each.map(|queue| Box::new(queue) as Box<dyn Queue>)
        .collect()
}

/// Opens the way for whole segments beside each ring of a port: to the other side, and from it where that is a process with a tap. A veth's
/// kernel side sends none to an interface that has an XDP program.
fn with_segments(
    rings: Vec<XskQueue>,
    interface: &Interface,
    attachment: &mut Attachment,
) -> Result<Vec<Box<dyn Queue>>, PortError> {
    let failed = |source| {
        PortError::from_io(
            format!("interface {}: opening a packet socket", interface.name),
            "CAP_NET_RAW and CAP_NET_ADMIN",
            source,
        )
    };
    let receives = interface.tap
        && attachment.guard().map_or_else(
            |error| {
                tracing::warn!(interface = interface.name, %error, "a guest's segments (TSO) are lost; Linux 6.6 takes them");
                false
            },
            |()| true,
        );
    let sockets = if receives {
        PacketSocket::receivers(interface.index, rings.len())
    } else {
        let senders = rings.iter().map(|_| PacketSocket::sender(interface.index));
        senders.collect()
    };
    let udp = KernelVersion::current().is_ok_and(|kernel| kernel >= UDP_SEGMENTS);
    let queues = rings.into_iter().zip(sockets.map_err(failed)?);
    Ok(boxed(
        queues.map(|(ring, socket)| PortQueue::new(ring, socket, udp)),
    ))
}
