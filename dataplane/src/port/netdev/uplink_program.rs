//! The uplink program: loaded for each uplink, with maps of its own.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::IpAddr;
use std::os::fd::RawFd;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData, MapError, XskMap};
use aya::programs::{ProgramFd, Xdp};
use aya::{Ebpf, Pod};
use ipnetwork::IpNetwork;
use weft_ebpf_types::{
    AddressKey, Counter, GROUP, HELD_MAP, MAX_HELD, MAX_ROUTED, MAX_STATIONS, MAX_VTEPS,
    ROUTED_MAP, SOCKETS_MAP, STATIONS_MAP, StationKey, UPLINK_PROGRAM, VTEPS_MAP,
};

use super::object::{Loader, counters, descriptor, missing, program, program_error};
use crate::packet::{Mac, Station};
use crate::port::PortError;

/// A loaded uplink program.
#[derive(Debug)]
pub(super) struct UplinkProgram {
    program: ProgramFd,
    vteps: HashSet<AddressKey>,
    held: HashSet<AddressKey>,
    /// Prefixes with their length.
    routed: HashSet<(AddressKey, u32)>,
    stations: HashSet<StationKey>,
    ebpf: Ebpf,
}

impl UplinkProgram {
    pub(super) fn load(loader: &mut Loader, interface: &str) -> Result<Self, PortError> {
        let mut ebpf = loader.load(interface)?;
        let xdp: &mut Xdp = program(&mut ebpf, UPLINK_PROGRAM, interface)?;
        xdp.load()
            .map_err(|error| program_error(interface, &error))?;
        Ok(Self {
            program: descriptor(xdp.fd(), interface)?,
            vteps: HashSet::new(),
            held: HashSet::new(),
            routed: HashSet::new(),
            stations: HashSet::new(),
            ebpf,
        })
    }

    /// The program, to attach it.
    pub(super) fn program(&self, interface: &str) -> Result<ProgramFd, PortError> {
        descriptor(Ok(&self.program), interface)
    }

    /// Replaces the set of tunnel addresses. Addresses that stay are not interrupted.
    pub(super) fn set_vteps(&mut self, interface: &str, vteps: &[IpAddr]) -> Result<(), PortError> {
        let wanted = keys(vteps);
        if wanted.len() > MAX_VTEPS as usize {
            return Err(PortError::Setting {
                what: "number of tunnel addresses",
                value: wanted.len() as u64,
                rule: "more than 256",
            });
        }
        replace(
            &mut self.ebpf,
            (interface, VTEPS_MAP),
            &mut self.vteps,
            &wanted,
        )
    }

    /// Replaces the set of addresses that are held on the segment, and of prefixes that are routed to us there. Those that stay are not interrupted.
    pub(super) fn set_held(
        &mut self,
        interface: &str,
        held: &[IpNetwork],
    ) -> Result<(), PortError> {
        let is_address =
            |network: &&IpNetwork| network.prefix() == if network.is_ipv4() { 32 } else { 128 };
        let (addresses, prefixes): (Vec<&IpNetwork>, Vec<_>) = held.iter().partition(is_address);
        self.set_routed(interface, &prefixes)?;
        let addresses: Vec<IpAddr> = addresses.iter().map(|network| network.ip()).collect();
        let wanted = keys(&addresses);
        if wanted.len() > MAX_HELD as usize {
            return Err(PortError::Setting {
                what: "number of addresses held on an uplink",
                value: wanted.len() as u64,
                rule: "more than 65536",
            });
        }
        replace(
            &mut self.ebpf,
            (interface, HELD_MAP),
            &mut self.held,
            &wanted,
        )
    }

    /// Replaces the set of ports on external networks of the segment. Those that stay are not interrupted.
    pub(super) fn set_stations(
        &mut self,
        interface: &str,
        stations: &[Station],
    ) -> Result<(), PortError> {
        let wanted: HashSet<StationKey> = stations.iter().map(Station::key).collect();
        if wanted.len() > MAX_STATIONS as usize {
            return Err(PortError::Setting {
                what: "number of ports on external networks of an uplink",
                value: wanted.len() as u64,
                rule: "more than 65536",
            });
        }
        replace(
            &mut self.ebpf,
            (interface, STATIONS_MAP),
            &mut self.stations,
            &wanted,
        )
    }

    fn set_routed(&mut self, interface: &str, prefixes: &[&IpNetwork]) -> Result<(), PortError> {
        let key = |network: &&IpNetwork| {
            let of_family = if network.is_ipv4() { 96 } else { 0 };
            let length = u32::from(network.prefix()) + of_family;
            (address_key(network.network()), length)
        };
        let wanted: HashSet<(AddressKey, u32)> = prefixes.iter().map(key).collect();
        if wanted == self.routed {
            return Ok(());
        }
        if wanted.len() > MAX_ROUTED as usize {
            return Err(PortError::Setting {
                what: "number of prefixes routed to an uplink",
                value: wanted.len() as u64,
                rule: "more than 16384",
            });
        }
        let problem = |error: MapError| program_error(interface, &error);
        let map = self.ebpf.map_mut(ROUTED_MAP);
        let map = map.ok_or_else(|| missing(interface, ROUTED_MAP))?;
        let mut map: LpmTrie<&mut MapData, AddressKey, u8> =
            LpmTrie::try_from(map).map_err(problem)?;
        let gone: Vec<_> = self.routed.difference(&wanted).copied().collect();
        for (address, length) in gone {
            map.remove(&Key::new(length, address)).map_err(problem)?;
            self.routed.remove(&(address, length));
        }
        for (address, length) in wanted {
            if !self.routed.contains(&(address, length)) {
                map.insert(&Key::new(length, address), 0, 0)
                    .map_err(problem)?;
                self.routed.insert((address, length));
            }
        }
        Ok(())
    }

    /// Sends the packets of a queue to a socket, or to the kernel.
    pub(super) fn set_socket(
        &mut self,
        interface: &str,
        queue: u32,
        socket: Option<RawFd>,
    ) -> Result<(), PortError> {
        let problem = |error: MapError| program_error(interface, &error);
        let map = self.ebpf.map_mut(SOCKETS_MAP);
        let map = map.ok_or_else(|| missing(interface, SOCKETS_MAP))?;
        let mut map: XskMap<&mut MapData> = XskMap::try_from(map).map_err(problem)?;
        match socket {
            Some(fd) => map.set(queue, fd, 0),
            None => map.unset(queue),
        }
        .map_err(problem)
    }

    /// What it counted.
    pub(super) fn counters(&self, interface: &str) -> Result<Vec<(Counter, u64)>, PortError> {
        counters(&self.ebpf, interface)
    }
}

fn keys(addresses: &[IpAddr]) -> HashSet<AddressKey> {
    addresses.iter().copied().map(address_key).collect()
}

impl Station {
    fn key(&self) -> StationKey {
        let [high, low] = self.vlan.to_be_bytes();
        let [a, b, c, d, e, f] = self.mac.map_or(GROUP, Mac::bytes);
        [high, low, a, b, c, d, e, f]
    }
}

/// Makes a map of addresses or stations hold `wanted`. `present` is what it holds, whatever comes of it.
fn replace<K: Pod + Eq + Hash>(
    ebpf: &mut Ebpf,
    (interface, name): (&str, &str),
    present: &mut HashSet<K>,
    wanted: &HashSet<K>,
) -> Result<(), PortError> {
    if present == wanted {
        return Ok(());
    }
    let problem = |error: MapError| program_error(interface, &error);
    let map = ebpf.map_mut(name).ok_or_else(|| missing(interface, name))?;
    let mut map: HashMap<&mut MapData, K, u8> = HashMap::try_from(map).map_err(problem)?;
    // Room first: the map may be full of addresses that go.
    let gone: Vec<K> = present.difference(wanted).copied().collect();
    for key in gone {
        map.remove(&key).map_err(problem)?;
        present.remove(&key);
    }
    for key in wanted {
        if !present.contains(key) {
            map.insert(key, 0, 0).map_err(problem)?;
            present.insert(*key);
        }
    }
    Ok(())
}

/// The key by which the program knows an address.
fn address_key(address: IpAddr) -> AddressKey {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_is_known_by_its_mapped_form() {
        let key = address_key(IpAddr::from([10, 1, 2, 3]));
        assert_eq!(key, weft_ebpf_types::mapped_v4([10, 1, 2, 3]));
    }
}
