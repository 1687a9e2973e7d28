//! External networks: what is outside of every VPC, the addresses that this host holds there, and what they stand for.
//!
//! The outside is one address space: prefixes of external networks do not overlap, and an address is held for one VPC. Sessions know it by
//! [`Vni::OUTSIDE`](crate::numbers::Vni::OUTSIDE).

use std::collections::HashSet;
use std::sync::Arc;

use foldhash::fast::FixedState;
use ipnetwork::IpNetwork;

use super::nat::{NatAlarms, NatTimeouts};
use super::{Limits, Map, RateLimit, Snapshot, Wire};
use crate::packet::parse::{word_address, word_family};
use crate::packet::{Family, Mac, Station};
use crate::route::Prefix;
use crate::session::mappings::{Budget, Pool};

/// An external network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its id.
    pub id: String,
    /// This host's interface on it, if it has one.
    pub link: Option<Link>,
    /// Prefixes whose addresses are on the segment itself.
    pub prefixes: Vec<Prefix>,
    /// Next hops for all other addresses, one of each family at most.
    pub gateways: Vec<u128>,
    /// Bytes of IP packet that it carries.
    pub mtu: u16,
    /// Who translates for hosts that are not on it: the first gateway host that lives.
    pub gateway: Translator,
    /// All its gateway hosts, in order of preference.
    pub gateways_in_order: Vec<Translator>,
    /// Addresses that this host asks from, one of each family at most: the lowest that it holds.
    pub own: Vec<u128>,
    /// Whether pings to addresses are answered that are of no port.
    pub answers_pings: bool,
    /// The VPC whose ports are on it, by place in [`Snapshot::vpcs`]; none where weft is a router for addresses that it holds.
    pub vpc: Option<usize>,
}

/// An interface on an external network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The index of the uplink.
    pub uplink: u16,
    /// The VLAN of its frames, 0 for none.
    pub vlan: u16,
    /// Its MAC.
    pub mac: Mac,
}

/// The host that translates for a port or a VPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Translator {
    /// None is known.
    #[default]
    Nobody,
    /// This one.
    Here,
    /// A peer, by index.
    There(u16),
}

impl Translator {
    /// The peer that it is.
    pub fn peer(self) -> Option<u16> {
        match self {
            Self::There(peer) => Some(peer),
            Self::Nobody | Self::Here => None,
        }
    }
}

impl Network {
    /// The next hop towards an address, which may be the address itself.
    pub fn next_hop(&self, address: u128) -> Option<u128> {
        if self.holds(address) {
            return Some(address);
        }
        let family = word_family(address);
        let mut gateways = self.gateways.iter().copied();
        gateways.find(|gateway| word_family(*gateway) == family)
    }

    /// Its gateway hosts but this one.
    pub fn other_gateways(&self) -> impl Iterator<Item = u16> {
        self.gateways_in_order.iter().filter_map(|it| it.peer())
    }

    /// Whether an address is on the segment.
    pub fn holds(&self, address: u128) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(address))
    }

    /// The address of a family that this host asks from.
    pub fn own(&self, family: Family) -> Option<u128> {
        let mut own = self.own.iter().copied();
        own.find(|address| word_family(*address) == family)
    }
}

/// What an address stands for that this host holds on an external network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The network, by index.
    pub network: u16,
    /// The VPC, by place in [`Snapshot::vpcs`]; none of the network's own addresses.
    pub vpc: Option<usize>,
    /// What it is.
    pub by: HeldBy,
}

/// What an outside address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldBy {
    /// An elastic IP, with the address of the port that it stands for. The port may have it itself.
    ElasticIp(u128),
    /// An address of a NAT gateway, by its index.
    NatGateway(u16),
    /// One of a load balancer: the VPC knows it by the address.
    Balancer,
    /// The network's own address.
    Network,
}

/// A prefix that the outside routes to this network's gateway hosts, and they into a VPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routed {
    /// The prefix. It overlaps no other.
    pub prefix: Prefix,
    /// The network, by index.
    pub network: u16,
    /// The VPC, by place in [`Snapshot::vpcs`].
    pub vpc: usize,
}

/// Who has an address in a VPC as it is outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The network, by index.
    pub network: u16,
    /// The VPC, by place in [`Snapshot::vpcs`].
    pub vpc: usize,
    /// Whether ports there have the address itself: nothing is translated.
    pub as_it_is: bool,
}

/// The elastic IP of an address of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElasticIp {
    /// The outside address.
    pub address: u128,
    /// Its network, by index.
    pub network: u16,
    /// Who translates.
    pub translator: Translator,
}

/// A NAT gateway of a VPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatGateway {
    /// Its id.
    pub id: String,
    /// Its VPC, by place in [`Snapshot::vpcs`].
    pub vpc: usize,
    /// Its network, by index.
    pub network: u16,
    /// Its addresses, where this host is a gateway host of the network; else none.
    pub pools: Vec<Pool>,
    /// Source addresses that it serves; none: all of the VPC.
    pub sources: Vec<Prefix>,
    /// Ports that lead into the VPC, in order.
    pub forwards: Vec<PortForward>,
    /// Whether anybody may send to a mapping (endpoint-independent filtering, RFC 4787 §5), or only whom its owner has sent to.
    pub is_open: bool,
    /// The first address of the prefix behind which IPv4 addresses stand (NAT64).
    pub nat64: u128,
    /// How long its sessions may idle.
    pub timeouts: NatTimeouts,
    /// How many mappings it may have.
    pub budget: Budget,
    /// What it had to refuse; goes on from snapshot to snapshot.
    pub alarms: Arc<NatAlarms>,
}

/// Ports of an outside address that lead to a port of the VPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortForward {
    /// IP protocol number.
    pub protocol: u8,
    /// The outside address.
    pub address: u128,
    /// First and last port.
    pub ports: (u16, u16),
    /// The address in the VPC.
    pub inside: u128,
    /// The port there that the first one becomes.
    pub first: u16,
}

impl NatGateway {
    /// Whether the gateway serves a source address.
    pub fn serves(&self, source: u128) -> bool {
        self.sources.is_empty() || self.sources.iter().any(|prefix| prefix.contains(source))
    }

    /// The port forward for an outside address and port.
    pub fn forward(&self, protocol: u8, address: u128, port: u16) -> Option<(u128, u16)> {
        let mut forwards = self.forwards.iter();
        let forward = forwards.find(|forward| {
            forward.protocol == protocol
                && forward.address == address
                && (forward.ports.0..=forward.ports.1).contains(&port)
        })?;
        Some((
            forward.inside,
            forward.first.wrapping_add(port - forward.ports.0),
        ))
    }

    /// Whether a port of an address is a forward's, and so never given to a mapping.
    pub fn reserves(&self, protocol: u8, address: u128, port: u16) -> bool {
        self.forward(protocol, address, port).is_some()
    }
}

/// Gateway hosts of a network together with this one, by index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fellows {
    /// All of them.
    pub all: Vec<u16>,
    /// Those that come after this host in a network's order, and so stand in for it.
    pub juniors: Vec<u16>,
}

/// The outside, as this host knows it.
#[derive(Debug, Clone, Default)]
pub struct Outside {
    /// External networks, by index; the index of a network stays while it is known.
    pub networks: Vec<Option<Network>>,
    /// Network by uplink and VLAN.
    pub by_link: Map<(u16, u16), u16>,
    /// The uplinks that tunnels do not come by, as bits by index: interfaces of external networks alone.
    pub without_tunnels: u64,
    /// Addresses that this host holds.
    pub held: Map<u128, Held>,
    /// For each of these, the generation in which this host came to hold it: one that went and came back is announced again, though no worker has seen
    /// the time between.
    pub held_since: Map<u128, u32>,
    /// NAT gateway and pool, by the address; of gateways that this host translates for, or stands by to.
    pub pools: Map<u128, (u16, Pool)>,
    /// Elastic IPs of load balancers that this host is a gateway host for.
    pub balanced: HashSet<u128, FixedState>,
    /// NAT gateways, by index; the index of a gateway stays while it is known.
    pub nat_gateways: Vec<Option<NatGateway>>,
    /// Routed prefixes of VPCs that are known here, in order of their addresses.
    pub routed: Vec<Routed>,
    /// Addresses, each with its network, that this host holds since this snapshot.
    pub came: Vec<(u16, u128)>,
    /// Rate limits of elastic IPs, by address: of those that this host holds.
    pub limits: LimitsByAddress,
}

impl Outside {
    /// Whether tunnels come by an uplink. What looks like one on the segment of an external network is traffic like any other.
    #[inline]
    pub fn has_tunnels(&self, uplink: u16) -> bool {
        self.without_tunnels >> (uplink & 63) & 1 == 0
    }
}

/// Rate limits by address.
#[derive(Debug, Clone, Default)]
pub struct LimitsByAddress(pub Map<u128, Limits>);

impl LimitsByAddress {
    /// Whether an address is limited in either direction.
    #[inline]
    pub fn has(&self, address: u128) -> bool {
        !self.0.is_empty() && self.0.contains_key(&address)
    }

    /// The limit of what leaves with an address.
    pub fn egress(&self, address: u128) -> Option<&Arc<RateLimit>> {
        self.0.get(&address)?.egress.as_ref()
    }

    /// The limit of what comes in for an address.
    pub fn ingress(&self, address: u128) -> Option<&Arc<RateLimit>> {
        self.0.get(&address)?.ingress.as_ref()
    }
}

impl Outside {
    /// The network of an index.
    pub fn network(&self, index: u16) -> Option<&Network> {
        self.networks.get(usize::from(index))?.as_ref()
    }

    /// The peers that this host probes: all gateway hosts of the networks that it knows.
    pub fn probed(&self) -> impl Iterator<Item = u16> {
        let networks = self.networks.iter().flatten();
        networks.flat_map(Network::other_gateways)
    }

    /// Whether this host is a gateway host of a network.
    pub fn is_gateway_of(&self, network: u16) -> bool {
        let network = self.network(network);
        network.is_some_and(|network| network.gateways_in_order.contains(&Translator::Here))
    }

    /// Whether this host is a gateway host for an address of a NAT gateway, of a load balancer or of a routed prefix, and another one is in use.
    pub fn stands_by_for(&self, address: u128) -> bool {
        if self.pools.contains_key(&address) || self.balanced.contains(&address) {
            return !self.held.contains_key(&address);
        }
        self.routed(address)
            .is_some_and(|it| self.is_gateway_of(it.network) && !self.is_gateway(it.network))
    }

    /// The other gateway hosts of the networks that this host is a gateway host of, each once.
    pub fn fellows(&self) -> Fellows {
        let mut fellows = Fellows::default();
        for network in self.networks.iter().flatten() {
            let mut gateways = network.gateways_in_order.iter();
            if gateways.any(|gateway| *gateway == Translator::Here) {
                fellows.all.extend(network.other_gateways());
                fellows.juniors.extend(gateways.filter_map(|it| it.peer()));
            }
        }
        for list in [&mut fellows.all, &mut fellows.juniors] {
            list.sort_unstable();
            list.dedup();
        }
        fellows
    }

    /// The NAT gateway of an index.
    pub fn nat_gateway(&self, index: u16) -> Option<&NatGateway> {
        self.nat_gateways.get(usize::from(index))?.as_ref()
    }

    /// The routed prefix that an address is in.
    pub fn routed(&self, address: u128) -> Option<&Routed> {
        let after = self
            .routed
            .partition_point(|routed| routed.prefix.bits() <= address);
        let routed = self.routed.get(after.checked_sub(1)?)?;
        routed.prefix.contains(address).then_some(routed)
    }

    /// Whether this host is the gateway of a network now.
    pub fn is_gateway(&self, network: u16) -> bool {
        let network = self.network(network);
        network.is_some_and(|network| network.gateway == Translator::Here)
    }

    /// Who has an address that packets from the outside reach through this host; none has the network's own addresses.
    pub fn owner(&self, address: u128) -> Option<Owner> {
        if let Some(held) = self.held.get(&address) {
            return Some(Owner {
                network: held.network,
                vpc: held.vpc?,
                as_it_is: held.by == HeldBy::ElasticIp(address),
            });
        }
        let routed = self.routed(address)?;
        self.is_gateway(routed.network).then_some(Owner {
            network: routed.network,
            vpc: routed.vpc,
            as_it_is: true,
        })
    }

    /// Whether packets to an address from outside are for this host.
    pub fn is_here(&self, address: u128) -> bool {
        self.held.contains_key(&address) || self.owner(address).is_some()
    }

    /// The owner, if that is on this network.
    pub fn owner_on(&self, network: u16, address: u128) -> Option<Owner> {
        let owner = self.owner(address);
        owner.filter(|owner| owner.network == network)
    }

    /// The idle times of the NAT gateway that has this address.
    pub fn timeouts_of(&self, address: u128) -> Option<&NatTimeouts> {
        let (gateway, _) = self.pools.get(&address)?;
        Some(&self.nat_gateway(*gateway)?.timeouts)
    }

    /// What an address stands for, if it is held on this network.
    pub fn held_on(&self, network: u16, address: u128) -> Option<&Held> {
        let held = self.held.get(&address);
        held.filter(|held| held.network == network)
    }
}

impl Snapshot {
    /// The addresses that this host holds on external networks of an uplink, and the prefixes that are routed to it there.
    pub fn held_on(&self, uplink: u16) -> Vec<IpNetwork> {
        let is_there = |network: u16| {
            let network = self.outside.network(network);
            let link = network.and_then(|network| network.link);
            link.is_some_and(|link| link.uplink == uplink)
        };
        let held = self.outside.held.iter();
        let held = held.filter(|(_, held)| is_there(held.network));
        let held = held.map(|(address, _)| word_address(*address).into());
        let routed = self.outside.routed.iter();
        let routed = routed
            .filter(|routed| self.outside.is_gateway(routed.network) && is_there(routed.network));
        held.chain(routed.map(|routed| routed.prefix.into()))
            .collect()
    }
}

impl Snapshot {
    /// The networks with ports of this host on an uplink's segment, each with its VLAN and the VPC.
    fn wires_on(&self, uplink: u16) -> impl Iterator<Item = (u16, &Wire)> {
        let networks = self.outside.networks.iter().flatten();
        networks.filter_map(move |network| {
            let link = network.link.filter(|link| link.uplink == uplink)?;
            Some((link.vlan, self.vpcs[network.vpc?].wire.as_ref()?))
        })
    }

    /// Whether ports are on any external network.
    pub fn has_wires(&self) -> bool {
        let mut networks = self.outside.networks.iter().flatten();
        networks.any(|network| network.vpc.is_some())
    }

    /// The ports of this host on external networks of an uplink's segment, and the group of each network.
    pub fn stations_on(&self, uplink: u16) -> Vec<Station> {
        let mut stations = Vec::new();
        for (vlan, wire) in self.wires_on(uplink) {
            let ports = wire.ports(self).filter_map(|port| self.port(port));
            let before = stations.len();
            stations.extend(ports.map(|port| Station {
                vlan,
                mac: Some(port.mac),
            }));
            if stations.len() > before {
                stations.push(Station { vlan, mac: None });
            }
        }
        stations
    }
}
