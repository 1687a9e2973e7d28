//! Devices of the host: the XDP program and the queues of each uplink and port, opened and closed as the state asks.
//!
//! A device that is not there, or cannot be opened, does not stop the rest: the port stays down and is tried again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_ebpf_types::Counter;

use super::config::Config;
use crate::encap;
use crate::pipeline::Source;
use crate::port::{
    AttachMode, Attachment, BusyPoll, Interface, PortError, QueueOptions, Role, ThreadedNapi, Umem,
    XskQueue,
};
use crate::worker::Workers;

/// One open device.
#[derive(Debug)]
pub struct Device {
    /// Its interface.
    pub interface: String,
    /// The kernel's number of it; another number under the same name is another device.
    pub index: u32,
    /// Where its program runs.
    pub mode: AttachMode,
    /// Whether its rings are zero-copy.
    pub zero_copy: bool,
    attachment: Attachment,
    _napi: Option<ThreadedNapi>,
}

impl Device {
    /// What its XDP program counted.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, PortError> {
        self.attachment.counters()
    }
}

/// All devices.
#[derive(Debug)]
pub struct Devices {
    umem: Arc<Umem>,
    ring_size: u32,
    busy_poll: Option<BusyPoll>,
    threaded_napi: bool,
    /// Uplinks, in the order of the configuration.
    pub uplinks: Vec<Device>,
    /// Ports that are up, by index.
    pub ports: BTreeMap<u16, Device>,
    headroom: u16,
}

impl Devices {
    /// Opens the uplinks.
    ///
    /// # Errors
    /// An uplink cannot be opened: without it the host is none.
    pub fn open(config: &Config, umem: &Arc<Umem>, workers: &Workers) -> Result<Self, PortError> {
        let mut devices = Self {
            umem: Arc::clone(umem),
            ring_size: config.memory.ring_size,
            busy_poll: config.busy_poll(),
            threaded_napi: config.workers.threaded_napi,
            uplinks: Vec::new(),
            ports: BTreeMap::new(),
            headroom: 0,
        };
        for (number, uplink) in (0u16..).zip(&config.uplinks) {
            let role = Role::Uplink { vteps: Vec::new() };
            let device = devices.attach(
                &uplink.interface,
                Source::Uplink(number),
                &role,
                uplink.queues,
                workers,
            )?;
            tracing::info!(interface = %device.interface, xdp = %device.mode, zero_copy = device.zero_copy, "uplink open");
            devices.uplinks.push(device);
        }
        Ok(devices)
    }

    fn attach(
        &self,
        interface: &str,
        place: Source,
        role: &Role,
        queues: Option<u32>,
        workers: &Workers,
    ) -> Result<Device, PortError> {
        let found = Interface::lookup(interface)?;
        let headroom = match role {
            Role::Uplink { .. } => 0,
            Role::Port { headroom } => *headroom,
        };
        let options = QueueOptions {
            ring_size: self.ring_size,
            fill: self.ring_size / 2,
            headroom,
            busy_poll: self.busy_poll,
        };
        let mut attachment = Attachment::attach(interface, role, None)?;
        let mut opened = Vec::new();
        for queue in 0..queues
            .unwrap_or(found.receive_queues)
            .min(found.receive_queues)
            .max(1)
        {
            let queue = XskQueue::open(&self.umem, interface, queue, options)?;
            attachment.register(&queue)?;
            opened.push(queue);
        }
        let zero_copy = opened.iter().all(XskQueue::is_zero_copy);
        for queue in opened {
            workers.open(place, queue);
        }
        let napi = self
            .threaded_napi
            .then(|| ThreadedNapi::enable(interface, found.index))
            .flatten();
        Ok(Device {
            interface: interface.to_owned(),
            index: found.index,
            mode: attachment.mode(),
            zero_copy,
            attachment,
            _napi: napi,
        })
    }

    /// Tells the uplinks' programs which tunnel addresses are ours, and picks the room that ports leave for outer headers.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_vteps(&mut self, vteps: &[IpAddr]) -> Result<(), PortError> {
        for uplink in &mut self.uplinks {
            uplink.attachment.set_vteps(vteps)?;
        }
        // VXLAN over the family in use: what most tunnels need, so that most packets need not be moved.
        let ipv6 = vteps.first().is_some_and(IpAddr::is_ipv6);
        self.headroom = (encap::MAX_OUTER - if ipv6 { 0 } else { 20 }) as u16;
        Ok(())
    }

    /// Opens ports that should be up and are not, closes those that should not be, or whose device has gone or is another by now.
    /// `wanted` names the interface of each port. Answers the ports that came up and those that went down.
    pub fn settle(
        &mut self,
        wanted: &BTreeMap<u16, String>,
        workers: &Workers,
    ) -> (Vec<u16>, Vec<u16>) {
        let stale = |index: &u16, device: &Device| {
            wanted.get(index) != Some(&device.interface)
                || Interface::lookup(&device.interface)
                    .map_or(true, |found| found.index != device.index)
        };
        let down: Vec<u16> = self
            .ports
            .iter()
            .filter(|(index, device)| stale(index, device))
            .map(|(index, _)| *index)
            .collect();
        for index in &down {
            workers.close(Source::Port(*index));
            self.ports.remove(index);
        }
        workers.collect();
        let mut up = Vec::new();
        for (index, interface) in wanted {
            if self.ports.contains_key(index) {
                continue;
            }
            match self.attach(
                interface,
                Source::Port(*index),
                &Role::Port {
                    headroom: self.headroom,
                },
                None,
                workers,
            ) {
                Ok(device) => {
                    tracing::info!(interface, xdp = %device.mode, zero_copy = device.zero_copy, "port open");
                    self.ports.insert(*index, device);
                    up.push(*index);
                }
                Err(error) => tracing::debug!(interface, %error, "port stays down"),
            }
        }
        (up, down)
    }
}
