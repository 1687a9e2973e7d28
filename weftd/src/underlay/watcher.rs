//! Keeps the adjacencies of a set of peers up to date.
//!
//! One task: it waits for a kernel notification, another set of peers, or a timeout, then queries everything again and publishes the result
//! if it changed. A full query is cheap (two listings and one request for each peer) and cannot miss a change, as following single events
//! could.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time,
};

use super::{
    Adjacencies, Adjacency, LinksUp, Unreachable,
    netlink::{Events, Link, Neighbour, NeighbourKey, Netlink, skip_news, wait_for_news},
    path_mtu::{self, PathMtus, TooBig},
};
use weft_dataplane::port::PortError;

/// News come in bursts; one question answers a whole burst.
const BURST: Duration = Duration::from_millis(10);
/// How often the kernel is asked again to resolve next hops that do not answer.
const RETRY: Duration = Duration::from_secs(1);
/// How often everything is queried without a notification.
const REFRESH: Duration = Duration::from_secs(30);

/// The watcher. Dropping it stops it.
#[derive(Debug)]
pub struct Underlay {
    peers: watch::Sender<BTreeSet<IpAddr>>,
    adjacencies: watch::Receiver<Adjacencies>,
    links_up: watch::Receiver<LinksUp>,
    task: JoinHandle<()>,
}

impl Underlay {
    /// Starts to watch, with no peers yet, in the network namespace of the calling thread. Needs a tokio runtime.
    pub fn start() -> Result<Self, PortError> {
        let (netlink, events) = Netlink::connect()?;
        let (peers, wanted) = watch::channel(BTreeSet::new());
        let (publish, adjacencies) = watch::channel(Adjacencies::default());
        let (publish_links, links_up) = watch::channel(None);
        let watcher = Watcher {
            netlink,
            wanted,
            publish,
            publish_links,
            kept: BTreeSet::new(),
            path_mtus: PathMtus::default(),
        };
        let routers = path_mtu::listen();
        Ok(Self {
            peers,
            adjacencies,
            links_up,
            task: tokio::spawn(watcher.run(events, routers)),
        })
    }

    /// Replaces the set of peers by these.
    pub fn set_peers(&self, peers: impl IntoIterator<Item = IpAddr>) {
        let peers: BTreeSet<_> = peers.into_iter().collect();
        self.peers.send_if_modified(|present| {
            let is_new = *present != peers;
            *present = peers;
            is_new
        });
    }

    /// The adjacencies when none of the peers has an answer outstanding, or when the time is up.
    pub async fn answered(&self, within: Duration) -> Adjacencies {
        let peers = self.peers.borrow().clone();
        let mut known = self.adjacencies.clone();
        let is_answered = |now: &Adjacencies| {
            let mut ways = peers.iter().map(|peer| now.get(peer));
            ways.all(|way| way.is_some_and(|way| *way != Err(Unreachable::Resolving)))
        };
        // Whatever is known then is answered.
        let _ = time::timeout(within, known.wait_for(is_answered)).await;
        self.adjacencies.borrow().clone()
    }

    /// Watches no longer; the adjacencies stay as they are.
    pub fn stop(&self) {
        self.task.abort();
    }

    /// The interfaces that are up, now and whenever that changes.
    pub fn links_up(&self) -> watch::Receiver<LinksUp> {
        self.links_up.clone()
    }

    /// The adjacencies, now and whenever they change.
    pub fn adjacencies(&self) -> watch::Receiver<Adjacencies> {
        self.adjacencies.clone()
    }
}

impl Drop for Underlay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Watcher {
    netlink: Netlink,
    wanted: watch::Receiver<BTreeSet<IpAddr>>,
    publish: watch::Sender<Adjacencies>,
    publish_links: watch::Sender<LinksUp>,
    /// Neighbours which the kernel keeps resolved for us.
    kept: BTreeSet<NeighbourKey>,
    /// Path MTUs that routers have reported.
    path_mtus: PathMtus,
}

impl Watcher {
    async fn run(mut self, mut events: Events, mut routers: mpsc::Receiver<TooBig>) {
        loop {
            let all_reached = match self.refresh().await {
                Ok(all_reached) => all_reached,
                Err(error) => {
                    tracing::warn!(%error, "cannot ask the kernel how the peers are reached");
                    false
                }
            };
            let pause = if all_reached { REFRESH } else { RETRY };
            let kept = &self.kept;
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                more = wait_for_news(&mut events, |key| kept.contains(key)) => {
                    if !more {
                        tracing::error!("kernel notifications ended; adjacencies are no longer updated");
                        return;
                    }
                    time::sleep(BURST).await;
                }
                () = self.path_mtus.heard(&mut routers) => {}
                () = time::sleep(pause) => {}
            }
            skip_news(&mut events);
        }
    }

    /// Queries everything, publishes changes, and returns whether all peers are resolved.
    async fn refresh(&mut self) -> Result<bool, PortError> {
        let peers = self.wanted.borrow_and_update().clone();
        let links = self.netlink.links().await?;
        let names_up = links.values().filter(|link| link.up);
        let names_up: BTreeSet<String> = names_up.map(|link| link.name.clone()).collect();
        self.publish_links.send_if_modified(|present| {
            let is_new = present.as_deref() != Some(&names_up);
            if is_new {
                *present = Some(Arc::new(names_up));
            }
            is_new
        });
        let neighbours = self.netlink.neighbours().await?;
        self.path_mtus
            .age(Instant::now(), |peer| peers.contains(peer));
        let mut found = BTreeMap::new();
        let mut needed = BTreeSet::new();
        let present = Arc::clone(&self.publish.borrow());
        for peer in peers {
            let mut way = match self.netlink.route(peer).await {
                Ok(route) => {
                    let key = (route.interface, route.next_hop);
                    let neighbour = neighbours.get(&key);
                    if !neighbour.is_some_and(|entry| entry.permanent) {
                        needed.insert(key);
                    }
                    adjacency(&links, neighbour, &route, peer)
                }
                Err(reason) => Err(reason),
            };
            // The kernel tries again and again; that is no news until there is an answer.
            if way == Err(Unreachable::Resolving)
                && let Some(Err(before @ (Unreachable::NoAnswer | Unreachable::RouterSilent))) =
                    present.get(&peer)
            {
                way = Err(*before);
            }
            if let Ok(way) = &mut way {
                way.mtu = way.mtu.min(self.path_mtus.of(peer));
            }
            found.insert(peer, way);
        }
        self.keep(needed, &neighbours).await;
        let all_reached = found.values().all(Result::is_ok);
        self.publish.send_if_modified(|present| {
            let is_new = **present != found;
            if is_new {
                *present = Arc::new(found);
            }
            is_new
        });
        Ok(all_reached)
    }

    /// Has the kernel keep the neighbours that are `needed`, and no others any more.
    async fn keep(
        &mut self,
        needed: BTreeSet<NeighbourKey>,
        neighbours: &HashMap<NeighbourKey, Neighbour>,
    ) {
        for key in &needed {
            let is_usable = neighbours.get(key).is_some_and(|entry| entry.mac.is_some());
            if (!self.kept.contains(key) || !is_usable)
                && let Err(error) = self.netlink.keep_resolved(*key).await
            {
                tracing::warn!(%error, "cannot have a next hop resolved");
            }
        }
        for gone in self.kept.difference(&needed) {
            // The interface may be gone, and the entry with it.
            if neighbours.contains_key(gone)
                && let Err(error) = self.netlink.let_go(*gone).await
            {
                tracing::debug!(%error, "cannot release a next hop");
            }
        }
        self.kept = needed;
    }
}

fn adjacency(
    links: &HashMap<u32, Link>,
    neighbour: Option<&Neighbour>,
    route: &super::netlink::Route,
    peer: IpAddr,
) -> Result<Adjacency, Unreachable> {
    let link = links.get(&route.interface).ok_or(Unreachable::UplinkDown)?;
    if !link.up {
        return Err(Unreachable::UplinkDown);
    }
    let source_mac = link.mac.ok_or(Unreachable::NotEthernet)?;
    let neighbour = neighbour.ok_or(Unreachable::Resolving)?;
    let reason = match neighbour.failed {
        true if route.next_hop == peer => Unreachable::NoAnswer,
        true => Unreachable::RouterSilent,
        false => Unreachable::Resolving,
    };
    let mtu = route.mtu.map_or(link.mtu, |limit| limit.min(link.mtu));
    Ok(Adjacency {
        uplink: link.name.clone(),
        interface_index: route.interface,
        source: route.source,
        source_mac,
        next_hop: route.next_hop,
        next_hop_mac: neighbour.mac.ok_or(reason)?,
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
    })
}
