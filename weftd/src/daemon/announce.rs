//! Unsolicited announcements to guests that an address has another MAC now.
//!
//! Neighbours keep what they learnt for up to twenty minutes. When the gateway's answer for an address changes, because the address belongs
//! to another port or a subnet's router has another MAC, every port of the subnet on this host gets an ARP announcement (RFC 5227 §3) or an
//! unsolicited neighbour advertisement (RFC 4861 §7.2.6). Sessions with the old MAC end.

use std::collections::{HashMap, HashSet, VecDeque};

use weft_dataplane::numbers::Vni;
use weft_dataplane::packet::parse::{ETHERNET, IPV4_MAPPED, protocol, word_family};
use weft_dataplane::packet::{Family, Mac, checksum};
use weft_dataplane::pipeline::guard::link_local;
use weft_dataplane::snapshot::{CowMap, Difference, Endpoint, Place, Snapshot, Vpc};

/// Addresses without a port that are remembered, in case another port gets them.
const REMEMBERED: usize = 65_536;
/// `ff02::1`.
const ALL_NODES: u128 = 0xff02 << 112 | 1;

/// An address that is at another MAC now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Its VPC.
    pub vni: Vni,
    /// The address.
    pub address: u128,
    /// The MAC.
    pub mac: Mac,
    /// The port that it is at, if that is here.
    pub port: Option<u16>,
    /// The subnet that hears of it, by its place in the new snapshot.
    pub subnet: usize,
    /// Whether it is the router's.
    pub is_router: bool,
}

/// Compares snapshots, one after the other.
#[derive(Debug, Default)]
pub struct Announcer {
    /// Where addresses were that no port has now; the oldest give way.
    left: HashMap<(Vni, u128), Mac>,
    order: VecDeque<(Vni, u128)>,
}

impl Announcer {
    /// The addresses that have moved between two snapshots. Time grows with what has changed in the tables of addresses.
    pub fn moved(&mut self, before: &Snapshot, after: &Snapshot) -> Vec<Moved> {
        let nobody = CowMap::default();
        let mut moved = Vec::new();
        let gone = before
            .vpcs
            .iter()
            .filter(|vpc| !after.vpc_by_vni.contains_key(&vpc.vni));
        for vpc in gone {
            self.look(vpc.vni, vpc.by_address.changes_to(&nobody), &mut moved);
        }
        for now in after.vpcs.iter() {
            let place = before.vpc_by_vni.get(&now.vni);
            let vpc = place.and_then(|place| before.vpcs.get(*place));
            let addresses = vpc.map_or(&nobody, |vpc| &*vpc.by_address);
            if !std::ptr::eq(addresses, &*now.by_address) {
                self.look(now.vni, addresses.changes_to(&now.by_address), &mut moved);
            }
            if !before.subnets.is_shared_with(&after.subnets) {
                let routers = vpc
                    .into_iter()
                    .flat_map(|vpc| routers(before, vpc, after, now));
                moved.extend(routers);
            }
        }
        moved
    }

    /// Remembers the last MAC of addresses that no port has now, and finds those that are at another one.
    fn look(
        &mut self,
        vni: Vni,
        changes: Vec<Difference<'_, u128, Endpoint>>,
        moved: &mut Vec<Moved>,
    ) {
        for (address, before, after) in changes {
            let key = (vni, *address);
            match (before, after) {
                (Some(before), None) => self.leave(key, before.mac),
                (before, Some(endpoint)) => {
                    let known = before.map(|endpoint| endpoint.mac);
                    let known = known.or_else(|| self.left.remove(&key));
                    if known.is_some_and(|mac| mac != endpoint.mac) {
                        moved.push(Moved {
                            vni,
                            address: *address,
                            mac: endpoint.mac,
                            port: match endpoint.place {
                                Place::Here(port) => Some(port),
                                Place::There(_) => None,
                            },
                            subnet: endpoint.subnet,
                            is_router: false,
                        });
                    }
                }
                (None, None) => {}
            }
        }
    }

    fn leave(&mut self, key: (Vni, u128), mac: Mac) {
        if self.left.insert(key, mac).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.left.remove(&oldest);
            }
        }
    }
}

/// Gateways that have another MAC, or another address.
fn routers<'a>(
    before: &'a Snapshot,
    vpc: &'a Vpc,
    after: &'a Snapshot,
    now: &'a Vpc,
) -> impl Iterator<Item = Moved> {
    now.gateways.iter().filter_map(|(address, subnet)| {
        let mac = after.subnets.get(*subnet)?.gateway_mac;
        let old = before.subnets.get(*vpc.gateways.get(address)?)?.gateway_mac;
        (old != mac).then_some(Moved {
            vni: now.vni,
            address: *address,
            mac,
            port: None,
            subnet: *subnet,
            is_router: true,
        })
    })
}

/// What sessions are over: those of these addresses, by VNI. A router has none.
pub fn ended(moved: &[Moved]) -> HashSet<(Vni, u128)> {
    let ports = moved.iter().filter(|moved| !moved.is_router);
    ports.map(|moved| (moved.vni, moved.address)).collect()
}

impl Moved {
    /// The announcement's frame.
    pub fn frame(&self) -> Vec<u8> {
        match word_family(self.address) {
            Family::Ipv4 => self.arp(),
            Family::Ipv6 => self.advertisement(),
        }
    }

    /// A request for the own address, to everybody (RFC 5227 §3).
    fn arp(&self) -> Vec<u8> {
        debug_assert_eq!(self.address >> 32, IPV4_MAPPED >> 32);
        let (mac, address) = (self.mac.bytes(), (self.address as u32).to_be_bytes());
        [
            &Mac::BROADCAST.bytes()[..],
            &mac,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &mac,
            &address,
            &[0; 6],
            &address,
        ]
        .concat()
    }

    /// To all nodes, unsolicited, overriding what they know (RFC 4861 §7.2.6).
    fn advertisement(&self) -> Vec<u8> {
        let mac = self.mac.bytes();
        let flags = if self.is_router { 0xa0 } else { 0x20 };
        let mut message = [
            &[136, 0, 0, 0, flags, 0, 0, 0][..],
            &self.address.to_be_bytes(),
            &[2, 1],
            &mac,
        ]
        .concat();
        // A router speaks by its link-local address, a port by the one that has moved.
        let source = if self.is_router {
            link_local(self.mac)
        } else {
            self.address
        };
        let len = message.len() as u32;
        let sum = checksum::pseudo_header(Family::Ipv6, source, ALL_NODES, protocol::ICMPV6, len)
            + checksum::sum(&message);
        message[2..4].copy_from_slice(&checksum::finish(sum).to_be_bytes());
        let mut frame = Vec::with_capacity(ETHERNET + 40 + message.len());
        frame.extend([0x33, 0x33, 0, 0, 0, 1]);
        frame.extend(mac);
        frame.extend([
            0x86,
            0xdd,
            0x60,
            0,
            0,
            0,
            0,
            len as u8,
            protocol::ICMPV6,
            255,
        ]);
        frame.extend(source.to_be_bytes());
        frame.extend(ALL_NODES.to_be_bytes());
        frame.extend(message);
        frame
    }
}

#[cfg(test)]
mod tests;
