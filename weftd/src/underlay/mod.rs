//! The underlay: the uplink, source address and next-hop MAC for each peer's VTEP.
//!
//! The kernel has the routes and resolves neighbours. [`Underlay`] queries it by netlink, makes it keep the neighbours resolved, and
//! publishes every change. The agent compiles [`Adjacencies`] into the snapshot; nothing of this runs on a worker.

mod fitness;
mod netlink;
mod path_mtu;
mod watcher;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

pub use fitness::check_uplink;
pub use watcher::Underlay;

/// How one peer is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adjacency {
    /// Name of the interface that leads there.
    pub uplink: String,
    /// The kernel's number of that interface.
    pub interface_index: u32,
    /// The address that the kernel would send from.
    pub source: Option<IpAddr>,
    /// MAC address of the interface.
    pub source_mac: [u8; 6],
    /// The gateway on the way, or the peer itself.
    pub next_hop: IpAddr,
    /// MAC address of the next hop.
    pub next_hop_mac: [u8; 6],
    /// Bytes of outer packet, IP header included, that the way carries: the route's limit, or the interface's.
    pub mtu: u16,
}

/// Why a peer can't be reached now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// The kernel has no route, or one that rejects.
    #[error("no route")]
    NoRoute,
    /// The address is the host's own.
    #[error("an address of this host")]
    Local,
    /// The interface is down, or just went.
    #[error("the uplink is down")]
    UplinkDown,
    /// The interface has no Ethernet addresses.
    #[error("the link to the next hop is not Ethernet")]
    NotEthernet,
    /// The kernel waits for the next hop's answer.
    #[error("the next hop has not answered yet")]
    Resolving,
    /// The peer, which is on the link itself, doesn't answer.
    #[error("the next hop does not answer")]
    NoAnswer,
    /// The router on the way doesn't answer.
    #[error("the router on the way does not answer")]
    RouterSilent,
}

impl Unreachable {
    /// Whether it is this host's side of the way that fails, and not the peer's.
    pub fn is_near(self) -> bool {
        match self {
            Self::NoRoute | Self::UplinkDown | Self::NotEthernet | Self::RouterSilent => true,
            Self::Local | Self::Resolving | Self::NoAnswer => false,
        }
    }
}

/// The names of all interfaces that are up and have a carrier; none before the kernel has been asked.
pub type LinksUp = Option<Arc<BTreeSet<String>>>;

/// Every requested peer, with its adjacency or the reason why there is none.
pub type Adjacencies = Arc<BTreeMap<IpAddr, Result<Adjacency, Unreachable>>>;
