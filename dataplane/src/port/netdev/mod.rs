//! Network devices of the kernel, by XDP and AF_XDP: uplinks, veth and tap ports.

mod bond;
mod frame_set;
mod guard;
mod link;
mod multicast;
mod napi;
mod object;
mod packet_socket;
mod port_program;
mod port_queue;
mod program;
mod uplink_program;
mod xsk;

use ipnetwork::IpNetwork;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use aya::util::KernelVersion;
use packet_socket::PacketSocket;
use port_queue::PortQueue;

pub use bond::Bond;
pub use guard::release;
pub use multicast::{AllMulticast, Promiscuous};
pub use napi::ThreadedNapi;
pub use program::{AttachMode, Attachment, Programs, Role};
use weft_ebpf_types::Counter;
pub use xsk::{BusyPoll, QueueCounters, QueueOptions, XskQueue};

use super::device::{Description, Device, Queue};
use super::interface::KeptTags;
use super::link_mtu::link_mtu;
use super::share::Share;
use super::{DATA_OFFSET, FrameCache, Interface, Opening, PortError};
use crate::packet::Station;
use crate::packet::parse::ETHERNET;

/// Linux before this knows no UDP segments in packet sockets.
const UDP_SEGMENTS: KernelVersion = KernelVersion::new(6, 2, 0);
/// Bytes ahead of the IP packet in a frame that is received: an Ethernet header, and a priority tag.
const LINK_HEADER: u32 = ETHERNET as u32 + 4;
/// The frame sizes of packet memory.
const FRAME_SIZES: [u32; 2] = [2048, 4096];
/// The least time between two attempts to attach a program again that another process detached.
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
    /// Whether packet sockets receive beside the rings: what comes by a tap may be longer than a ring takes.
    receives: bool,
    /// The longest frame that goes to a ring; 0 if no other way is open.
    longest: u32,
    /// Whether the program was detached or replaced by another process, as far as is known.
    detached: bool,
    /// When it was last attached again, or that was tried.
    restored: Option<Instant>,
    /// The largest MTU whose frames fit into packet buffers.
    largest_mtu: u32,
    /// The interface's MTU, if it is larger by now.
    too_large: Option<u32>,
    is_uplink: bool,
    _tags: Option<KeptTags>,
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
        if matches!(role, Role::Port { .. }) {
            // Whatever comes of it, the port is closed for the host's stack.
            opening.programs.close(name)?;
        }
        let frame_size = opening.umem.frame_size() as u32;
        check_mtu(&found, frame_size, headroom)?;
        let tags = KeptTags::keep(&found);
        let mut attachment = Attachment::attach(&opening.programs, name, role, None)?;
        let (mut rings, mut shares) = (Vec::new(), Vec::new());
        let mut cache = FrameCache::new(&opening.umem);
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
            let mut queue = XskQueue::open(&opening.umem, name, queue, options)?;
            // What arrives before a worker reads the queue waits in its ring.
            queue.fill(&mut cache);
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
                "too few frames for each queue, bursts may be lost: raise memory.frames"
            );
        }
        // Only behind a guard: the host's stack would see what the packet sockets do.
        let receives = found.tap && attachment.has_guard();
        let queues = match role {
            Role::Uplink { .. } => boxed(rings),
            Role::Port { .. } => with_segments(rings, &found, receives)?,
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
            receives,
            longest: 0,
            largest_mtu: largest_mtu(frame_size, headroom),
            too_large: None,
            is_uplink: matches!(role, Role::Uplink { .. }),
            _tags: tags,
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

    /// Tells an uplink's program which addresses are held on its segment.
    ///
    /// # Errors
    /// They are too many, or the kernel refuses.
    pub fn set_held(&mut self, held: &[IpNetwork]) -> Result<(), PortError> {
        self.attachment.set_held(held)
    }

    /// Has the program of an uplink take frames to these ports on external networks.
    ///
    /// # Errors
    /// They are too many, or the kernel refuses.
    pub fn set_stations(&mut self, stations: &[Station]) -> Result<(), PortError> {
        self.attachment.set_stations(stations)
    }

    /// An uplink's MTU may be raised while it is open.
    fn look_at_mtu(&mut self) {
        let Some(found) = self
            .is_uplink
            .then(|| Interface::lookup(&self.name).ok())
            .flatten()
        else {
            return;
        };
        let too_large = (found.mtu > self.largest_mtu).then_some(found.mtu);
        if let Some(mtu) = too_large.filter(|_| self.too_large != too_large) {
            tracing::error!(
                uplink = self.name,
                mtu,
                largest = self.largest_mtu,
                "longer tunnel packets are lost: lower the MTU, or raise memory.frame_size and restart"
            );
        }
        self.too_large = too_large;
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
            // What arrives by a queue that came since would be lost. A port whose frames have become too long is refused with the reason; an uplink
            // works on for those that fit.
            Ok(found) => {
                found.index != self.index
                    || queues_of(&found, self.most) != self.used
                    || (!self.is_uplink && found.mtu > self.largest_mtu)
            }
            Err(PortError::NoInterface { .. }) => true,
            // Not told; that is no reason to close what works.
            Err(_) => false,
        }
    }

    fn takes(&self) -> Option<u16> {
        u16::try_from(link_mtu(self.index)?).ok()
    }

    fn set_mtu(&mut self, mtu: u16) {
        // What does not fit into a buffer of the ring goes the other way, too.
        let longest = u32::from(mtu.min(self.largest_mtu as u16)) + ETHERNET as u32;
        if self.longest == longest || !self.receives {
            return;
        }
        match self.attachment.pass_longer(longest) {
            Ok(()) => self.longest = longest,
            Err(error) => tracing::warn!(interface = self.name, %error, "cannot send segments"),
        }
    }

    fn mend(&mut self) {
        self.look_at_mtu();
        if self.attachment.holds() {
            self.detached = false;
            return;
        }
        let interface = self.name.as_str();
        if !self.detached {
            tracing::error!(interface, "our XDP program was detached");
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
            Err(error) => tracing::debug!(interface, %error, "cannot attach our XDP program again"),
        }
    }

    fn describe(&self) -> Description {
        let mode = self.attachment.mode().to_string();
        Description {
            mode: if self.detached {
                "no program".to_owned()
            } else if let Some(mtu) = self.too_large {
                format!("{mode}, MTU {mtu} is more than {}", self.largest_mtu)
            } else {
                mode
            },
            zero_copy: self.zero_copy,
        }
    }
}

/// The largest MTU of an interface whose frames fit into packet buffers of so many bytes, with room ahead of each.
fn largest_mtu(frame_size: u32, headroom: u16) -> u32 {
    frame_size - u32::from(DATA_OFFSET) - LINK_HEADER - u32::from(headroom)
}

/// Whether the frames of an interface fit into packet buffers of so many bytes, with room ahead of each.
///
/// # Errors
/// They do not; with the largest MTU that does.
pub fn check_mtu(interface: &Interface, frame_size: u32, headroom: u16) -> Result<(), PortError> {
    let most = largest_mtu(frame_size, headroom);
    if interface.mtu <= most {
        return Ok(());
    }
    let mut larger = FRAME_SIZES.into_iter().filter(|size| *size > frame_size);
    let larger = larger.next().map_or_else(String::new, |size| {
        format!("; {size} takes {}", largest_mtu(size, headroom))
    });
    Err(PortError::Mtu {
        interface: interface.name.clone(),
        mtu: interface.mtu,
        most,
        frame_size,
        larger,
    })
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
    receives: bool,
) -> Result<Vec<Box<dyn Queue>>, PortError> {
    let failed = |source| {
        PortError::from_io(
            format!("interface {}: opening a packet socket", interface.name),
            "CAP_NET_RAW and CAP_NET_ADMIN",
            source,
        )
    };
    if interface.tap && !receives {
        tracing::warn!(
            interface = interface.name,
            "segments (TSO) that a guest sends are lost: Linux 6.6 or newer is needed"
        );
    }
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
