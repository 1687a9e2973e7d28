//! The snapshot: everything that workers need to judge a packet, compiled and immutable, under one generation number.
//!
//! The agent builds it ([`compile`]) and publishes it whole; a worker takes one for each vector of packets, so that every packet is judged by
//! exactly one generation. Objects refer to each other by index.

pub mod balancer;
pub mod compile;
mod cow_map;
mod cow_vec;
mod external;
pub(crate) mod guests;
pub mod index_allocator;
mod learned;
mod limits;
pub mod nat;
mod senders;
mod translations;
mod trunks;
mod virtual_addresses;

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::FixedState;
use weft_proto::v1;

pub use self::balancer::{Balancer, Balancers, PublicBalancers};
pub use self::cow_map::{CowMap, Difference};
pub use self::cow_vec::CowVec;
pub use self::external::{
    ElasticIp, Fellows, Held, HeldBy, LimitsByAddress, Link, NatGateway, Network, Outside, Owner,
    PortForward, Routed, Translator,
};
pub use self::guests::Guests;
pub use self::learned::{Asked, Learned};
pub use self::limits::{Limits, Rate, RateLimit};
pub use self::senders::{Allowed, Senders};
pub use self::translations::{StaticTranslation, Translations};
pub use self::trunks::{Subport, Trunks};
pub use self::virtual_addresses::VirtualAddresses;
use crate::encap::{Encapsulation, Template};
use crate::numbers::{Epoch, Vni, VpcIndex};
use crate::packet::parse::word_family;
use crate::packet::{Family, Mac};
use crate::policy::{Acl, AddressSet, GroupRules};
use crate::route::ecmp::Group;
use crate::route::{Lpm, Policies, Prefix, Table};

/// A map from a key of the configuration: small, fast, not attackable since guests choose no keys.
pub type Map<K, V> = HashMap<K, V, FixedState>;

/// Everything that workers need, for one generation.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Rises with every snapshot; never 0 in one that is in force.
    pub generation: u32,
    /// Revision of the node state that this was compiled from.
    pub revision: u64,
    /// This host's VTEP addresses.
    pub vteps: Vec<u128>,
    /// VPCs present on this host.
    pub vpcs: CowVec<Vpc>,
    /// Place in `vpcs` by VNI.
    pub vpc_by_vni: Arc<Map<Vni, usize>>,
    /// Subnets of those VPCs.
    pub subnets: CowVec<Subnet>,
    /// Ports of this host, by port index; the index of a port stays while the port lives.
    pub ports: CowVec<Option<Port>>,
    /// Rate limits by port index, as far as the last port that has one: nothing at all where none has.
    pub limits: Arc<[Limits]>,
    /// Those of the ports that have no device of their own.
    pub trunks: Arc<Trunks>,
    /// Remote VTEP owners, by peer index; the index of a peer stays while it is known.
    pub peers: Arc<[Option<Peer>]>,
    /// Peer index by VTEP address.
    pub peer_by_vtep: Arc<Map<u128, u16>>,
    /// Network ACLs in use.
    pub acls: CowVec<Acl>,
    /// Whether this host answers guests at the metadata addresses (`pipeline::metadata`).
    pub metadata: bool,
    /// External networks, and what this host holds there.
    pub outside: Arc<Outside>,
    /// Whether the ports of any VPC are learned.
    pub learns: bool,
}

/// A VPC on this host.
#[derive(Debug, Clone, Default)]
pub struct Vpc {
    /// Its id.
    pub id: String,
    /// VNI and GRE key.
    pub vni: Vni,
    /// Index for budgets; stays while the VPC is known.
    pub index: VpcIndex,
    /// The generation in which it changed last, by which sessions know what was decided for them.
    pub epoch: Epoch,
    /// Who has an address, or holds it.
    pub by_address: Arc<CowMap<u128, Endpoint>>,
    /// Who has a MAC.
    pub by_mac: Arc<CowMap<Mac, Endpoint>>,
    /// Virtual addresses that ports hold because they announced them.
    pub virtuals: Arc<VirtualAddresses>,
    /// Subnet, by the address of its gateway.
    pub gateways: Arc<Map<u128, usize>>,
    /// Addresses of ports, with the prefix lengths of the subnets that hold them, for choosing the subnet of an address.
    pub subnets: Lpm<u32>,
    /// The MACs of the virtual routers of its subnets, each once.
    pub gateway_macs: Vec<Mac>,
    /// Ports that have moved lately between this host and a peer, by MAC: of one that is here the peer that it came from, of one that left the peer
    /// that it went to.
    pub moves: Arc<Map<Mac, u16>>,
    /// Ports behind peers that may send with addresses, or MACs, of others.
    pub senders: Arc<Senders>,
    /// Address sets that the rules of its groups refer to.
    pub sets: Arc<[AddressSet]>,
    /// Addresses that stand for others.
    pub translations: Arc<Translations>,
    /// Peerings that join it to other VPCs.
    pub peerings: Arc<[Peering]>,
    /// Elastic IPs of its ports, by the address of the port that they stand for.
    pub elastic_ips: Arc<CowMap<u128, ElasticIp>>,
    /// Its load balancers, by address.
    pub balancers: Arc<Balancers>,
    /// What of its load balancers is reached from outside.
    pub public: Arc<PublicBalancers>,
    /// The external network that it is on, in place of tunnels.
    pub wire: Option<Wire>,
    /// Whether multicast is routed between its subnets with snooping.
    pub routes_multicast: bool,
    /// What was asked for, if its ports are learned: of those on other hosts, not all are known then.
    pub learned: Option<Learned>,
}

/// The external network that a VPC is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire {
    /// The network, by index.
    pub network: u16,
    /// The VPC's subnets, by place in [`Snapshot::subnets`].
    pub subnets: Vec<usize>,
}

impl Wire {
    /// The ports of this host on the network.
    pub fn ports<'s>(&'s self, snapshot: &'s Snapshot) -> impl Iterator<Item = u16> {
        let subnets = self.subnets.iter();
        let ports = subnets.flat_map(|subnet| &snapshot.subnets[*subnet].ports);
        ports.copied()
    }
}

/// What a VPC knows of a peering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peering {
    /// Its id.
    pub id: String,
    /// The other VPC, by place in [`Snapshot::vpcs`].
    pub vpc: usize,
    /// Whether packets pass.
    pub passes: bool,
}

impl Vpc {
    /// Whether a peer has a port that may send from an address: with that MAC, or by way of its router, which leaves its own.
    pub fn may_come_from(&self, peer: u16, address: u128, mac: Mac) -> bool {
        let routed = mac == Mac::ROUTER || self.gateway_macs.contains(&mac);
        self.senders.may_send(peer, address, mac, routed)
    }
}

/// A port somewhere in the fabric, as others see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Its MAC.
    pub mac: Mac,
    /// Its subnet, by place in [`Snapshot::subnets`].
    pub subnet: usize,
    /// Where it is.
    pub place: Place,
    /// Whether it has an IPv6 address, and so a link-local one (RFC 4291 §2.1).
    pub ipv6: bool,
}

/// Where a port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// On this host, by port index.
    Here(u16),
    /// Behind a peer, by peer index.
    There(u16),
}

/// A subnet.
#[derive(Debug, Clone, Default)]
pub struct Subnet {
    /// Its id.
    pub id: String,
    /// Its VPC, by place in [`Snapshot::vpcs`].
    pub vpc: usize,
    /// The virtual router's MAC.
    pub gateway_mac: Mac,
    /// The virtual router's IPv4 address, if the subnet has IPv4. On an external network, whose router is another, the address by which this host serves
    /// DHCP.
    pub gateway_v4: Option<u128>,
    /// The virtual router's IPv6 address, if the subnet has IPv6.
    pub gateway_v6: Option<u128>,
    /// Its prefixes.
    pub prefixes: Vec<Prefix>,
    /// Its route table; the prefixes of the VPC's subnets are not in it.
    pub routes: Table<Target>,
    /// The policy routes of that table, which are asked before it.
    pub policies: Policies<Target>,
    /// Its network ACL, by place in [`Snapshot::acls`]; none lets everything pass.
    pub acl: Option<usize>,
    /// Ports of the subnet on this host.
    pub ports: Vec<u16>,
    /// Peers that have ports of the subnet.
    pub peers: Vec<u16>,
    /// What its guests are told when they ask; none where nothing is answered.
    pub guests: Option<Arc<Guests>>,
    /// Whether a multicast packet goes to those who have joined its group (`multicast`), and not to everybody.
    pub snoops: bool,
    /// Whether its gateway answers DNS (`pipeline::dns`).
    pub dns: bool,
    /// A hash of its id, the same on every host: what peers with listeners are told apart by.
    pub number: u64,
}

impl Subnet {
    /// [`Subnet::number`] of an id.
    pub fn number_of(id: &str) -> u64 {
        FixedState::with_seed(0).hash_one(id)
    }

    /// The gateway's address in a family.
    pub fn gateway(&self, family: Family) -> Option<u128> {
        match family {
            Family::Ipv4 => self.gateway_v4,
            Family::Ipv6 => self.gateway_v6,
        }
    }

    /// Whether the address lies in one of the subnet's prefixes.
    pub fn holds(&self, address: u128) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(address))
    }
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// To whoever has the destination address.
    Local,
    /// Nowhere.
    Blackhole,
    /// To one next hop.
    Hop(NextHop),
    /// To one of several, by the flow's hash.
    Ecmp(Group<NextHop>),
    /// To whoever has the destination address in another VPC: by place in [`Vpc::peerings`]. None: the other VPC is gone.
    Peering(Option<usize>),
    /// Out through a NAT gateway, by index. None: the gateway is gone.
    Nat(Option<u16>),
    /// Into an external network, by index, with the sender's elastic IP. None: the network is gone.
    External(Option<u16>),
}

/// One next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NextHop {
    /// A port, wherever it is.
    Port(Endpoint),
    /// A peer's VTEP, with the inner destination MAC.
    Peer(u16, Mac),
    /// The port or host that the route names is not known here.
    Gone,
}

/// A port of this host.
#[derive(Debug, Clone)]
pub struct Port {
    /// Its id.
    pub id: String,
    /// The device it is attached by.
    pub device: Option<v1::Device>,
    /// What it has in place of a device if it is a subport.
    pub trunk: Option<v1::Trunk>,
    /// Its VPC, by place in [`Snapshot::vpcs`].
    pub vpc: usize,
    /// Its subnet, by place in [`Snapshot::subnets`].
    pub subnet: usize,
    /// Its MAC.
    pub mac: Mac,
    /// Its addresses.
    pub addresses: Vec<u128>,
    /// The name that its guest is told; empty for none.
    pub hostname: String,
    /// What its guest is told, if that is not what [`Subnet::guests`] says.
    pub guests: Option<Arc<Guests>>,
    /// What it may use besides.
    pub pairs: Vec<(Prefix, Mac)>,
    /// Whether what it sends is checked against the above.
    pub guarded: bool,
    /// Whether MSS options of its connections are clamped.
    pub clamp_mss: bool,
    /// What the packets that it sends are marked with, 0 to 63.
    pub dscp: Option<u8>,
    /// Rules towards the port.
    pub ingress: GroupRules,
    /// Rules from the port.
    pub egress: GroupRules,
}

impl Port {
    /// Its first address of a family: the one that its guest is given.
    pub fn first_address(&self, family: Family) -> Option<u128> {
        let mut addresses = self.addresses.iter().copied();
        addresses.find(|address| word_family(*address) == family)
    }

    /// Whether the port may send from the address, with its own MAC or with `mac`.
    pub fn owns(&self, address: u128, mac: Mac) -> bool {
        (mac == self.mac && self.addresses.contains(&address))
            || self
                .pairs
                .iter()
                .any(|(prefix, pair_mac)| *pair_mac == mac && prefix.contains(address))
    }

    /// Whether the port may send from any address of a family: a router, a firewall, a load balancer.
    pub fn sends_for_anybody(&self) -> bool {
        let is_any = |prefix: &Prefix| match prefix.family() {
            Family::Ipv4 => prefix.length() == 96,
            Family::Ipv6 => prefix.length() == 0,
        };
        !self.guarded || self.pairs.iter().any(|(prefix, _)| is_any(prefix))
    }

    /// Whether the port may send from the MAC at all.
    pub fn owns_mac(&self, mac: Mac) -> bool {
        mac == self.mac || self.pairs.iter().any(|(_, pair_mac)| *pair_mac == mac)
    }

    /// Whether the port may send from the address with any of its MACs.
    pub fn owns_address(&self, address: u128) -> bool {
        self.addresses.contains(&address)
            || self
                .pairs
                .iter()
                .any(|(prefix, _)| prefix.contains(address))
    }
}

/// So many slots a peer's tunnels share flows by.
pub const TUNNEL_SLOTS: usize = 64;

/// The owner of remote VTEP addresses.
#[derive(Debug)]
pub struct Peer {
    /// The host's id.
    pub host: String,
    /// How it wants its packets.
    pub encapsulation: Encapsulation,
    /// Its VTEP addresses.
    pub vteps: Vec<u128>,
    /// Resolved ways there.
    pub tunnels: Vec<Tunnel>,
    /// Which tunnel a flow takes, by its hash; empty while no way is resolved. When one goes, only its slots change.
    pub slots: Vec<u8>,
}

impl Peer {
    /// The tunnel of a flow.
    #[inline]
    pub fn tunnel(&self, hash: u64) -> Option<&Tunnel> {
        if let [only] = self.tunnels.as_slice() {
            return Some(only);
        }
        let slot = self.slots.get(hash as usize % TUNNEL_SLOTS)?;
        self.tunnels.get(usize::from(*slot))
    }
}

/// One way to a peer: between two VTEP addresses, over one uplink.
#[derive(Debug, Clone)]
pub struct Tunnel {
    /// The address that it ends at.
    pub remote: u128,
    /// Outer header.
    pub template: Template,
    /// Bytes of inner IP packet that fit.
    pub inner_mtu: u16,
    /// The uplink that leads there.
    pub uplink: u16,
}

/// What a guest sends that nobody tells otherwise: Ethernet's (RFC 894).
const USUAL_MTU: u16 = 1500;

impl Snapshot {
    /// The external network that a port is on, by index, if it is on one.
    #[inline]
    pub fn wire_of(&self, port: &Port) -> Option<u16> {
        let wire = self.vpcs[port.vpc].wire.as_ref();
        wire.map(|wire| wire.network)
    }

    /// The port of an index.
    pub fn port(&self, index: u16) -> Option<&Port> {
        self.ports.get(usize::from(index))?.as_ref()
    }

    /// Bytes of IP packet that the guest of a port is told to send at most, by the port's index, or less if not all tunnels take as much;
    /// of a port with subports, the least among them.
    pub fn mtus(&self) -> impl Fn(u16) -> u16 {
        let tunnels = self.peers.iter().flatten().flat_map(|peer| &peer.tunnels);
        let all_take = tunnels.map(|tunnel| tunnel.inner_mtu).min();
        let all_take = all_take.unwrap_or(u16::MAX);
        let told = move |index| {
            let port = self.port(index);
            let subnet = port.and_then(|port| self.subnets.get(port.subnet));
            let told = subnet.and_then(|subnet| subnet.guests.as_ref());
            let told = told.map_or(USUAL_MTU, |guests| guests.mtu);
            // What goes to a wire goes by no tunnel.
            match port.and_then(|port| self.wire_of(port)) {
                Some(_) => told,
                None => told.min(all_take),
            }
        };
        move |index| {
            // Its subports' packets are on its device, too. The least counts: the rings would lose the small segments of one that may send less than another, and what
            // is longer takes a slower way.
            let subports = self.trunks.subports_of(index).iter();
            let subports = subports.map(|subport| told(*subport));
            told(index).min(subports.min().unwrap_or(u16::MAX))
        }
    }

    /// The rate limit on what the port of an index sends.
    #[inline]
    pub fn egress_limit(&self, index: u16) -> Option<&RateLimit> {
        self.limits.get(usize::from(index))?.egress.as_deref()
    }

    /// The rate limit on what the port of an index is sent.
    #[inline]
    pub fn ingress_limit(&self, index: u16) -> Option<&RateLimit> {
        self.limits.get(usize::from(index))?.ingress.as_deref()
    }

    /// The peer of an index.
    pub fn peer(&self, index: u16) -> Option<&Peer> {
        self.peers.get(usize::from(index))?.as_ref()
    }
}
