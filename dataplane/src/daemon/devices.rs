//! Devices of the host: the queues of each uplink and port, opened and closed as the state asks.
//!
//! A device that is not there, or cannot be opened, does not stop the rest: the port stays down and is tried again. A virtual machine's
//! device is open before its guest is there, and up when the guest is.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_proto::v1;

use super::config::{Config, Uplink};
use crate::encap;
use crate::pipeline::Source;
use crate::port::device::{self, Device, Opening};
use crate::port::{Netdev, PortError, Role, Umem};
use crate::worker::Workers;

/// The device of a port, open.
#[derive(Debug)]
pub struct PortDevice {
    /// What the state asked for.
    pub spec: v1::Device,
    /// What that led to.
    pub device: Box<dyn Device>,
    /// Whether packets could pass when it was last looked at.
    pub up: bool,
}

/// The device of an uplink, open.
#[derive(Debug)]
pub enum UplinkDevice {
    /// An interface of the kernel.
    Kernel(Box<Netdev>),
    /// Something else, all of whose packets are ours, with its name.
    Other(String, Box<dyn Device>),
}

impl UplinkDevice {
    fn open(opening: &Opening, uplink: &Uplink) -> Result<Self, PortError> {
        if let Some(way) = &uplink.vhost_user {
            let spec = v1::Device {
                kind: "vhost-user".to_owned(),
                name: way.socket.clone(),
                mode: way.mode.clone(),
                queues: way.queues,
            };
            let device = device::open(opening, &spec)?;
            return Ok(Self::Other(way.socket.clone(), device));
        }
        let role = Role::Uplink { vteps: Vec::new() };
        let device = Netdev::open(opening, &uplink.interface, &role, uplink.queues)?;
        Ok(Self::Kernel(Box::new(device)))
    }

    /// The interface's name, or the socket's path.
    pub fn name(&self) -> &str {
        match self {
            Self::Kernel(device) => device.name(),
            Self::Other(name, _) => name,
        }
    }

    /// The device itself.
    pub fn device(&self) -> &dyn Device {
        match self {
            Self::Kernel(device) => &**device,
            Self::Other(_, device) => &**device,
        }
    }

    fn device_mut(&mut self) -> &mut dyn Device {
        match self {
            Self::Kernel(device) => &mut **device,
            Self::Other(_, device) => &mut **device,
        }
    }
}

/// All devices.
#[derive(Debug)]
pub struct Devices {
    opening: Opening,
    /// Uplinks, in the order of the configuration.
    pub uplinks: Vec<UplinkDevice>,
    /// Ports whose device is open, by index.
    pub ports: BTreeMap<u16, PortDevice>,
}

impl Devices {
    /// Opens the uplinks.
    ///
    /// # Errors
    /// An uplink cannot be opened: without it the host is none.
    pub fn open(config: &Config, umem: &Arc<Umem>, workers: &Workers) -> Result<Self, PortError> {
        let opening = Opening {
            umem: Arc::clone(umem),
            ring_size: config.memory.ring_size,
            busy_poll: config.busy_poll(),
            threaded_napi: config.workers.threaded_napi,
            headroom: 0,
        };
        let mut uplinks = Vec::new();
        for (number, uplink) in (0u16..).zip(&config.uplinks) {
            let mut device = UplinkDevice::open(&opening, uplink)?;
            for queue in device.device_mut().take_queues() {
                workers.open(Source::Uplink(number), queue);
            }
            let what = device.device().describe();
            tracing::info!(
                uplink = uplink.name(),
                mode = what.mode,
                zero_copy = what.zero_copy,
                "uplink open"
            );
            uplinks.push(device);
        }
        Ok(Self {
            opening,
            uplinks,
            ports: BTreeMap::new(),
        })
    }

    /// Tells the uplinks' programs which tunnel addresses are ours, and picks the room that ports leave for outer headers.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_vteps(&mut self, vteps: &[IpAddr]) -> Result<(), PortError> {
        for uplink in &mut self.uplinks {
            if let UplinkDevice::Kernel(device) = uplink {
                device.set_vteps(vteps)?;
            }
        }
        // VXLAN over the family in use: what most tunnels need, so that most packets need not be moved.
        let ipv6 = vteps.first().is_some_and(IpAddr::is_ipv6);
        self.opening.headroom = (encap::MAX_OUTER - if ipv6 { 0 } else { 20 }) as u16;
        Ok(())
    }

    /// Opens ports that should be open and are not, closes those that should not be, or whose device has gone or is another by now.
    /// `wanted` names the device of each port, `mtu` says how long its packets may be. Answers the ports that came up and those that went down.
    pub fn settle(
        &mut self,
        wanted: &BTreeMap<u16, v1::Device>,
        mtu: impl Fn(u16) -> u16,
        workers: &Workers,
    ) -> (Vec<u16>, Vec<u16>) {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let stale = |index: &u16, open: &PortDevice| {
            wanted.get(index) != Some(&open.spec) || open.device.is_stale()
        };
        let closing: Vec<u16> = self
            .ports
            .iter()
            .filter(|(index, open)| stale(index, open))
            .map(|(index, _)| *index)
            .collect();
        for index in closing {
            workers.close(Source::Port(index));
            if self.ports.remove(&index).is_some_and(|open| open.up) {
                down.push(index);
            }
        }
        workers.collect();
        let missing = wanted
            .iter()
            .filter(|(index, _)| !self.ports.contains_key(index));
        let mut missing: Vec<_> = missing.collect();
        // The kernel takes tens of milliseconds for each of its interfaces, one after the other; virtual machines do not wait for that.
        missing.sort_by_key(|(_, spec)| spec.kind != "vhost-user");
        for (index, spec) in missing {
            match device::open(&self.opening, spec) {
                Ok(mut device) => {
                    for queue in device.take_queues() {
                        workers.open(Source::Port(*index), queue);
                    }
                    let spec = spec.clone();
                    let open = PortDevice {
                        spec,
                        device,
                        up: false,
                    };
                    self.ports.insert(*index, open);
                }
                Err(error) => tracing::debug!(device = spec.name, %error, "port stays down"),
            }
        }
        for (index, open) in &mut self.ports {
            open.device.set_mtu(mtu(*index));
            let now = open.device.is_up();
            if now == open.up {
                continue;
            }
            open.up = now;
            if now {
                let what = open.device.describe();
                tracing::info!(
                    device = open.spec.name,
                    mode = what.mode,
                    zero_copy = what.zero_copy,
                    "port up"
                );
                up.push(*index);
            } else {
                tracing::info!(device = open.spec.name, "port down");
                down.push(*index);
            }
        }
        (up, down)
    }
}
