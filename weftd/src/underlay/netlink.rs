//! Netlink requests, one function each: links, neighbours, the route to an address; and one that keeps a neighbour resolved.

use std::{collections::HashMap, net::IpAddr};

use futures::{StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    Error, Handle, RouteMessageBuilder,
    packet_core::{DefaultNla, NetlinkMessage},
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
        },
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
    },
    sys::{AsyncSocket, SocketAddr},
};

use super::Unreachable;
use weft_dataplane::port::PortError;

/// `NDA_FLAGS_EXT` of `linux/neighbour.h`.
const NDA_FLAGS_EXT: u16 = 15;
/// `NTF_EXT_MANAGED`: the kernel refreshes the entry by itself.
const NTF_EXT_MANAGED: u32 = 1;

/// Multicast groups of `linux/rtnetlink.h` whose news can change how a peer is reached.
const GROUPS: u32 = {
    use rtnetlink::constants as group;
    group::RTMGRP_LINK
        | group::RTMGRP_NEIGH
        | group::RTMGRP_IPV4_ROUTE
        | group::RTMGRP_IPV6_ROUTE
        | group::RTMGRP_IPV4_IFADDR
        | group::RTMGRP_IPV6_IFADDR
};

/// News from the kernel.
pub(super) type Events = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// A connection to the kernel, in the network namespace of the thread that made it.
pub(super) struct Netlink {
    handle: Handle,
}

/// An interface.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) mtu: u32,
    pub(super) up: bool,
}

/// An entry of the neighbour table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Neighbour {
    /// The MAC address, if it is to be used.
    pub(super) mac: Option<[u8; 6]>,
    /// The kernel gave up.
    pub(super) failed: bool,
    /// An administrator wrote it: nothing to resolve.
    pub(super) permanent: bool,
}

/// Which entry: by interface and address.
pub(super) type NeighbourKey = (u32, IpAddr);

/// The route to an address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    pub(super) interface: u32,
    pub(super) next_hop: IpAddr,
    pub(super) source: Option<IpAddr>,
    pub(super) mtu: Option<u32>,
}

impl Netlink {
    /// Connects, and subscribes to the news. Needs a tokio runtime.
    pub(super) fn connect() -> Result<(Self, Events), PortError> {
        let failed = |source| PortError::Io {
            what: "opening a netlink socket".to_owned(),
            source,
        };
        let (mut connection, handle, events) = rtnetlink::new_connection().map_err(failed)?;
        let address = SocketAddr::new(0, GROUPS);
        connection
            .socket_mut()
            .socket_mut()
            .bind(&address)
            .map_err(failed)?;
        tokio::spawn(connection);
        Ok((Self { handle }, events))
    }

    pub(super) async fn links(&self) -> Result<HashMap<u32, Link>, PortError> {
        let links = self.handle.link().get().execute();
        let links: Vec<_> = links
            .try_collect()
            .await
            .map_err(|error| refused("listing links", &error))?;
        Ok(links
            .iter()
            .map(|link| (link.header.index, read_link(link)))
            .collect())
    }

    /// What the interface of this name is part of, if it is: the other interface's name, and its kind.
    pub(super) async fn master(
        &self,
        name: &str,
    ) -> Result<Option<(String, InfoPortKind)>, PortError> {
        let failed = |error| refused(&format!("asking what {name} is part of"), &error);
        let link = self.handle.link().get().match_name(name.to_owned());
        let link = link.execute().try_next().await.map_err(failed)?;
        let attributes = link.map(|link| link.attributes).unwrap_or_default();
        let index = attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Controller(index) => Some(*index),
            _ => None,
        });
        let Some(index) = index else { return Ok(None) };
        let kind = attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
                LinkInfo::PortKind(kind) => Some(kind.clone()),
                _ => None,
            }),
            _ => None,
        });
        let kind = kind.unwrap_or_else(|| InfoPortKind::Other("another kind".to_owned()));
        let master = self.handle.link().get().match_index(index).execute();
        let master = master.try_collect::<Vec<_>>().await.map_err(failed)?;
        let name = master.first().map(|link| read_link(link).name);
        Ok(Some((name.unwrap_or_default(), kind)))
    }

    pub(super) async fn neighbours(&self) -> Result<HashMap<NeighbourKey, Neighbour>, PortError> {
        let neighbours = self.handle.neighbours().get().execute();
        let neighbours: Vec<_> = neighbours
            .try_collect()
            .await
            .map_err(|error| refused("listing neighbours", &error))?;
        Ok(neighbours.iter().filter_map(read_neighbour).collect())
    }

    /// The route that the kernel would take to `peer`.
    pub(super) async fn route(&self, peer: IpAddr) -> Result<Route, Unreachable> {
        let prefix_len = if peer.is_ipv4() { 32 } else { 128 };
        let Ok(question) =
            RouteMessageBuilder::<IpAddr>::new().destination_prefix(peer, prefix_len)
        else {
            return Err(Unreachable::NoRoute);
        };
        let mut answers = self.handle.route().get(question.build()).execute().boxed();
        match answers.next().await {
            Some(Ok(route)) => read_route(&route, peer),
            _ => Err(Unreachable::NoRoute),
        }
    }

    /// Has the kernel resolve a neighbour, now and again before the answer grows old.
    pub(super) async fn keep_resolved(
        &self,
        (interface, address): NeighbourKey,
    ) -> Result<(), PortError> {
        let managed = DefaultNla::new(NDA_FLAGS_EXT, NTF_EXT_MANAGED.to_ne_bytes().to_vec());
        match self.ask_to_resolve(interface, address, Some(managed)).await {
            // Kernels before 5.16 know no managed entries: resolve once, as for a packet.
            Err(_) => self.ask_to_resolve(interface, address, None).await,
            done => done,
        }
        .map_err(|error| refused(&format!("resolving {address}"), &error))
    }

    /// Leaves a neighbour to the kernel's own rules again.
    pub(super) async fn let_go(&self, (interface, address): NeighbourKey) -> Result<(), PortError> {
        self.ask_to_resolve(interface, address, None)
            .await
            .map_err(|error| refused(&format!("letting go of {address}"), &error))
    }

    async fn ask_to_resolve(
        &self,
        interface: u32,
        address: IpAddr,
        extended: Option<DefaultNla>,
    ) -> Result<(), Error> {
        let mut request = self
            .handle
            .neighbours()
            .add(interface, address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        let attributes = &mut request.message_mut().attributes;
        attributes.extend(extended.map(NeighbourAttribute::Other));
        request.execute().await
    }
}

/// Waits for news that matter. False when there will be none any more.
pub(super) async fn wait_for_news(
    events: &mut Events,
    matters: impl Fn(&NeighbourKey) -> bool,
) -> bool {
    use rtnetlink::packet_core::NetlinkPayload::InnerMessage;
    while let Some((message, _)) = events.next().await {
        let is_news = match message.payload {
            InnerMessage(
                RouteNetlinkMessage::NewNeighbour(entry) | RouteNetlinkMessage::DelNeighbour(entry),
            ) => read_neighbour(&entry).is_some_and(|(key, _)| matters(&key)),
            InnerMessage(_) => true,
            _ => false,
        };
        if is_news {
            return true;
        }
    }
    false
}

/// Drains pending notifications, so that one query covers them all.
pub(super) fn skip_news(events: &mut Events) {
    while events.try_recv().is_ok() {}
}

fn refused(what: &str, error: &Error) -> PortError {
    PortError::Netlink {
        what: what.to_owned(),
        problem: error.to_string(),
    }
}

fn read_link(link: &LinkMessage) -> Link {
    let mut read = Link {
        name: String::new(),
        mac: None,
        mtu: 0,
        up: link
            .header
            .flags
            .contains(LinkFlags::Up | LinkFlags::LowerUp),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => read.name.clone_from(name),
            LinkAttribute::Address(address) => read.mac = address.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => read.mtu = *mtu,
            _ => {}
        }
    }
    read
}

fn read_neighbour(entry: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
    use NeighbourState as State;
    let state = entry.header.state;
    let usable = matches!(
        state,
        State::Reachable
            | State::Stale
            | State::Delay
            | State::Probe
            | State::Permanent
            | State::Noarp
    );
    let (mut address, mut mac) = (None, None);
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::from(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::from(*v6));
            }
            NeighbourAttribute::LinkLocalAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let neighbour = Neighbour {
        mac: mac.filter(|_| usable),
        failed: state == State::Failed,
        permanent: matches!(state, State::Permanent | State::Noarp),
    };
    Some(((entry.header.ifindex, address?), neighbour))
}

fn read_route(route: &RouteMessage, peer: IpAddr) -> Result<Route, Unreachable> {
    match route.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(Unreachable::Local),
        _ => return Err(Unreachable::NoRoute),
    }
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(IpAddr::from(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::from(*v6)),
        _ => None,
    };
    let mut interface = None;
    let mut read = Route {
        interface: 0,
        next_hop: peer,
        source: None,
        mtu: None,
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(gateway) => read.next_hop = address(gateway).unwrap_or(peer),
            RouteAttribute::Via(RouteVia::Inet(v4)) => read.next_hop = IpAddr::from(*v4),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => read.next_hop = IpAddr::from(*v6),
            RouteAttribute::PrefSource(source) => read.source = address(source),
            RouteAttribute::Metrics(metrics) => {
                read.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    read.interface = interface.ok_or(Unreachable::NoRoute)?;
    Ok(read)
}
