//! A bond as an uplink: packets are received from each slave and sent by the bond.
//!
//! The kernel lets a program be attached to a bond and runs it in the slaves' drivers. But a packet that a slave receives cannot go to an
//! AF_XDP socket of the bond, which is another device (`xsk_rcv_check`), and is lost. A generic program on the bond itself could use such a
//! socket, but it runs after the kernel has taken VLAN tags out of the frames, so tagged frames look untagged. So each slave has a program
//! and sockets of its own, as an uplink has. The bond does the sending, since it knows which slave is active.
//!
//! Packets that inactive slaves receive are accepted too: switches flood frames to them.

use ipnetwork::IpNetwork;
use std::fs;
use std::net::IpAddr;
use std::os::fd::RawFd;

use super::{Netdev, QueueOptions, Role, XskQueue};
use crate::packet::Station;
use crate::packet::buffer::Packet;
use crate::port::device::{Description, Device, Queue};
use crate::port::{FrameCache, Interface, Opening, PortError};

/// An open bond.
#[derive(Debug)]
pub struct Bond {
    name: String,
    /// The kernel's number of it.
    index: u32,
    slaves: Vec<Netdev>,
    queues: Vec<Box<dyn Queue>>,
}

impl Bond {
    /// Opens the bond `name` and each of its slaves, at most `queues` of the queues of each.
    ///
    /// # Errors
    /// It is not there, or the kernel refuses.
    pub fn open(
        opening: &Opening,
        name: &str,
        vteps: &[IpAddr],
        queues: Option<u32>,
    ) -> Result<Self, PortError> {
        let found = Interface::lookup(name)?;
        let role = Role::Uplink {
            vteps: vteps.to_vec(),
        };
        let open = |slave: &String| Netdev::open(opening, slave, &role, queues);
        let mut slaves: Vec<Netdev> = slaves_of(name).iter().map(open).collect::<Result<_, _>>()?;
        let mut received: Vec<Vec<Box<dyn Queue>>> = Vec::new();
        for queue in slaves.iter_mut().flat_map(Netdev::take_queues) {
            let number = queue.number() as usize;
            if received.len() <= number {
                received.resize_with(number + 1, Vec::new);
            }
            received[number].push(queue);
        }
        // One to send by, even if there is no slave yet.
        received.resize_with(received.len().max(1), Vec::new);
        let options = QueueOptions {
            ring_size: opening.ring_size,
            // Nothing is received by it.
            fill: 0,
            headroom: 0,
            busy_poll: None,
        };
        let queues = (0u32..).zip(received).map(|(number, receive)| {
            let send = XskQueue::open(&opening.umem, name, number, options)?;
            Ok(Box::new(BondQueue { send, receive }) as Box<dyn Queue>)
        });
        Ok(Self {
            name: name.to_owned(),
            index: found.index,
            queues: queues.collect::<Result<_, PortError>>()?,
            slaves,
        })
    }

    /// Tells the slaves' programs which tunnel addresses are ours.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_vteps(&mut self, vteps: &[IpAddr]) -> Result<(), PortError> {
        let mut slaves = self.slaves.iter_mut();
        slaves.try_for_each(|slave| slave.set_vteps(vteps))
    }

    /// Tells the slaves' programs which addresses are held on the bond's segment.
    ///
    /// # Errors
    /// They are too many, or the kernel refuses.
    pub fn set_held(&mut self, held: &[IpNetwork]) -> Result<(), PortError> {
        let mut slaves = self.slaves.iter_mut();
        slaves.try_for_each(|slave| slave.set_held(held))
    }

    /// Has the programs take frames to these ports on external networks.
    ///
    /// # Errors
    /// They are too many, or the kernel refuses.
    pub fn set_stations(&mut self, stations: &[Station]) -> Result<(), PortError> {
        let mut slaves = self.slaves.iter_mut();
        slaves.try_for_each(|slave| slave.set_stations(stations))
    }

    fn names(&self) -> Vec<&str> {
        self.slaves.iter().map(Netdev::name).collect()
    }
}

/// The slaves of a bond, sorted by name.
fn slaves_of(bond: &str) -> Vec<String> {
    let entries = fs::read_dir(format!("/sys/class/net/{bond}"));
    let names = entries.into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut slaves: Vec<String> = names
        .filter_map(|name| name.strip_prefix("lower_").map(str::to_owned))
        .collect();
    slaves.sort();
    slaves
}

impl Device for Bond {
    fn take_queues(&mut self) -> Vec<Box<dyn Queue>> {
        std::mem::take(&mut self.queues)
    }

    fn is_up(&self) -> bool {
        self.slaves.iter().all(Device::is_up)
    }

    fn is_stale(&self) -> bool {
        match Interface::lookup(&self.name) {
            Ok(found) => {
                found.index != self.index
                    || slaves_of(&self.name) != self.names()
                    || self.slaves.iter().any(Device::is_stale)
            }
            Err(PortError::NoInterface { .. }) => true,
            // Not told; that is no reason to close what works.
            Err(_) => false,
        }
    }

    fn mend(&mut self) {
        self.slaves.iter_mut().for_each(Device::mend);
    }

    fn describe(&self) -> Description {
        let mode = |slave: &Netdev| format!("{} {}", slave.name(), slave.describe().mode);
        let modes: Vec<String> = self.slaves.iter().map(mode).collect();
        Description {
            mode: if modes.is_empty() {
                "no slaves".to_owned()
            } else {
                modes.join(", ")
            },
            // Sending is not.
            zero_copy: false,
        }
    }
}

/// A queue of a bond: the socket that sends, and the queues of the same number of its slaves.
#[derive(Debug)]
struct BondQueue {
    send: XskQueue,
    receive: Vec<Box<dyn Queue>>,
}

impl Queue for BondQueue {
    fn number(&self) -> u32 {
        self.send.queue()
    }

    fn receive(&mut self, cache: &mut FrameCache, out: &mut Vec<Packet>, max: usize) -> usize {
        let mut received = 0;
        for queue in &mut self.receive {
            received += queue.receive(cache, out, max - received);
        }
        // What came by the last first, the next time: a busy slave does not keep the others waiting.
        if received == max {
            self.receive.rotate_left(1);
        }
        received
    }

    fn send(&mut self, cache: &mut FrameCache, packets: &mut Vec<Packet>) -> usize {
        self.send.send(cache, packets)
    }

    fn kick(&mut self) {
        self.send.kick();
    }

    fn has_unsent(&self) -> bool {
        self.send.has_unsent()
    }

    fn reap(&mut self, cache: &mut FrameCache) {
        self.send.reap(cache);
    }

    fn lost(&self) -> u64 {
        let received = self.receive.iter().map(|queue| queue.lost());
        Queue::lost(&self.send) + received.sum::<u64>()
    }

    fn before_sleep(&mut self, descriptors: &mut Vec<RawFd>) -> bool {
        let mut busy = self.send.before_sleep(descriptors);
        for queue in &mut self.receive {
            busy |= queue.before_sleep(descriptors);
        }
        busy
    }

    fn after_sleep(&mut self) {
        for queue in &mut self.receive {
            queue.after_sleep();
        }
    }
}
