//! Network devices of the kernel, by XDP and AF_XDP: uplinks, veth and tap ports.

mod frame_set;
mod napi;
mod program;
mod xsk;

use std::net::IpAddr;

pub use napi::ThreadedNapi;
pub use program::{AttachMode, Attachment, Role};
use weft_ebpf_types::Counter;
pub use xsk::{BusyPoll, QueueCounters, QueueOptions, XskQueue};

use super::device::{Description, Device, Opening, Queue};
use super::{Interface, PortError};

/// An open network device: its XDP program, and a queue for each of its receive queues.
#[derive(Debug)]
pub struct Netdev {
    name: String,
    /// The kernel's number of it; another number under the same name is another device.
    index: u32,
    zero_copy: bool,
    queues: Vec<Box<dyn Queue>>,
    attachment: Attachment,
    _napi: Option<ThreadedNapi>,
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
        let options = QueueOptions {
            ring_size: opening.ring_size,
            fill: opening.ring_size / 2,
            headroom,
            busy_poll: opening.busy_poll,
        };
        let mut attachment = Attachment::attach(name, role, None)?;
        let mut opened: Vec<Box<dyn Queue>> = Vec::new();
        let mut zero_copy = true;
        for queue in 0..queues
            .unwrap_or(found.receive_queues)
            .min(found.receive_queues)
            .max(1)
        {
            let queue = XskQueue::open(&opening.umem, name, queue, options)?;
            attachment.register(&queue)?;
            zero_copy &= queue.is_zero_copy();
            opened.push(Box::new(queue));
        }
        let napi = opening
            .threaded_napi
            .then(|| ThreadedNapi::enable(name, found.index))
            .flatten();
        Ok(Self {
            name: name.to_owned(),
            index: found.index,
            zero_copy,
            queues: opened,
            attachment,
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
        true
    }

    fn is_stale(&self) -> bool {
        match Interface::lookup(&self.name) {
            Ok(found) => found.index != self.index,
            Err(PortError::NoInterface { .. }) => true,
            // Not told; that is no reason to close what works.
            Err(_) => false,
        }
    }

    fn describe(&self) -> Description {
        Description {
            mode: self.attachment.mode().to_string(),
            zero_copy: self.zero_copy,
        }
    }
}
