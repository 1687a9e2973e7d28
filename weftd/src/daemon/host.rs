//! The host as a whole: connects the agent, the underlay and the workers. A state comes in, a snapshot and devices come out.

use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use weft_proto::state::{Kind, Object, State};
use weft_proto::v1::{self, Violation};

use super::announce::{self, Announcer, Moved};
use super::config::{Config, Uplink, VhostUplink};
use super::devices::Devices;
use super::resources::Resources;
use super::{holders, multicast};
use crate::agent::Apply;
use crate::dns;
use crate::health;
use crate::metadata::{DESK, Service};
use crate::underlay::{self, Adjacencies, LinksUp};
use weft_dataplane::packet::Mac;
use weft_dataplane::packet::Station;
use weft_dataplane::packet::parse::{address_word, word_address};
use weft_dataplane::pipeline::Shared;
use weft_dataplane::pipeline::probes::Liveness;
use weft_dataplane::port::{Interface, PortError, Umem};
use weft_dataplane::snapshot::Snapshot;
use weft_dataplane::snapshot::compile::{Adjacency, Compiler, Context, ExternalLink, Underlay};
use weft_dataplane::worker::service::{Desks, Injector, PuntQueue};
use weft_dataplane::worker::{Plan, Workers};

/// How long the first state waits for next hops that the kernel has to ask for. On a quiet link they answer within one; one that is gone answers
/// never, and should not hold up the others for long.
const FIRST_ANSWERS: Duration = Duration::from_millis(100);

/// The host, shared by the agent, the watcher of the underlay and the node service.
#[derive(Debug)]
pub struct Host {
    /// Its id.
    pub id: String,
    /// Sessions and fragments.
    pub shared: Shared,
    /// Whether IPv4 packets that are too big and may be fragmented are.
    pub fragment: bool,
    /// Packet memory.
    pub umem: Arc<Umem>,
    /// Interfaces of the uplinks.
    pub uplinks: Vec<String>,
    /// All interfaces that are not ports', by index: the uplinks, and those that are on physical networks alone.
    pub links: Vec<String>,
    /// Physical networks, each with the index of the interface that leads there.
    physical_networks: Vec<(String, u16)>,
    /// The metadata service, if there is one.
    pub metadata: Option<Arc<Service>>,
    /// What asks members of load balancers.
    pub health: Arc<health::Service>,
    /// What answers guests that ask for names.
    pub dns: Arc<dns::Service>,
    /// Sends this host's announcements to ports.
    pub injector: Arc<Injector>,
    /// Reports of multicast listeners that workers have left.
    pub reports: Arc<PuntQueue>,
    /// Announcements of virtual addresses that workers have left.
    pub announcements: Arc<PuntQueue>,
    /// The next hops to other hosts.
    watcher: Arc<underlay::Underlay>,
    /// Uplinks whose next hop is configured, by number.
    fixed: Vec<(u16, VhostUplink)>,
    inner: Mutex<Inner>,
}

/// What changes under the lock.
#[derive(Debug)]
pub struct Inner {
    /// The workers.
    pub workers: Workers,
    /// Open devices.
    pub devices: Devices,
    /// The state in force.
    pub state: Arc<State>,
    /// Its revision.
    pub revision: u64,
    compiler: Compiler,
    generation: u32,
    /// Our own tunnel addresses.
    vteps: Vec<IpAddr>,
    underlay: Underlay,
    adjacencies: Adjacencies,
    /// Interfaces on physical networks that are there.
    externals: Vec<ExternalLink>,
    /// Hosts that are no gateways now.
    silent: BTreeSet<String>,
    /// Interfaces that are up and have a carrier.
    links_up: LinksUp,
    /// Physical networks of which this host has no link now, and is a gateway host.
    unlinked: BTreeSet<String>,
    /// No way leads from the uplinks to any other host.
    is_uplink_cut: bool,
    /// What the XDP program of each interface takes, by index.
    taken: Vec<Taken>,
    wanted: BTreeMap<u16, v1::Device>,
    announcer: Announcer,
}

/// What the XDP program of an interface takes besides tunnel packets; sorted.
#[derive(Debug, Clone, Default)]
struct Taken {
    /// Addresses that are held on its segment.
    held: Vec<IpNetwork>,
    /// Ports there.
    stations: Vec<Station>,
}

impl Host {
    /// Makes workers and uplinks. No state is in force yet.
    ///
    /// # Errors
    /// What the system refuses, with the remedy.
    pub fn new(
        config: &Config,
        resources: Resources,
        watcher: Arc<underlay::Underlay>,
    ) -> Result<Self, PortError> {
        let Resources {
            umem,
            programs,
            shared,
        } = resources;
        let cores: Vec<Option<usize>> = if config.workers.cores.is_empty() {
            vec![None]
        } else {
            config.workers.cores.iter().copied().map(Some).collect()
        };
        let settings = config.settings();
        let desks = Desks {
            metadata: Arc::new(PuntQueue::new(DESK)),
            health: Arc::new(PuntQueue::new(health::DESK)),
            querier: Arc::new(PuntQueue::new(multicast::REPORTS)),
            holders: Arc::new(PuntQueue::new(holders::ANNOUNCEMENTS)),
            dns: Arc::new(PuntQueue::new(dns::DESK)),
        };
        let plan = Plan {
            cores: &cores,
            settings: &settings,
            shared: &shared,
            timeouts: config.timeouts(),
            spin: config.workers.spin,
            watchdog: config.watchdog(),
            umem: &umem,
            desks: &desks,
        };
        let workers = Workers::start(&plan).map_err(|source| PortError::Io {
            what: "starting workers".to_owned(),
            source,
        })?;
        let injector = Arc::new(workers.injector(&umem, &settings));
        let metadata = match &config.metadata {
            Some(section) => {
                let injector = Arc::clone(&injector);
                let backend = section.signed_backend()?;
                Some(Arc::new(Service::new(desks.metadata, injector, backend)))
            }
            None => None,
        };
        let health = health::Service::new(
            desks.health,
            Arc::clone(&injector),
            Arc::clone(&shared.checks),
        );
        let resolvers = config.dns.resolvers();
        let dns = dns::Service::new(desks.dns, Arc::clone(&injector), resolvers);
        let devices = Devices::open(config, &umem, programs)?;
        let limits = &config.limits;
        let compiler = Compiler::new(limits.ports, limits.peers, limits.vpcs)
            .counting(shared.sessions.member_counts());
        let inner = Inner {
            workers,
            devices,
            state: Arc::default(),
            revision: 0,
            compiler,
            generation: 0,
            vteps: Vec::new(),
            underlay: Underlay::default(),
            adjacencies: Adjacencies::default(),
            externals: Vec::new(),
            // Not ready to be a gateway.
            silent: BTreeSet::from([config.host.clone()]),
            links_up: None,
            unlinked: BTreeSet::new(),
            is_uplink_cut: false,
            taken: Vec::new(),
            wanted: BTreeMap::new(),
            announcer: Announcer::default(),
        };
        let names = |uplinks: &[Uplink]| {
            let names = uplinks.iter().map(|uplink| uplink.name().to_owned());
            names.collect::<Vec<_>>()
        };
        let fixed = (0u16..)
            .zip(&config.uplinks)
            .filter_map(|(number, uplink)| Some((number, uplink.vhost_user.clone()?)))
            .collect();
        let host = Self {
            id: config.host.clone(),
            shared,
            fragment: settings.fragment,
            umem,
            uplinks: names(&config.uplinks),
            links: names(&config.links()),
            physical_networks: config.physical_networks(),
            metadata,
            health: Arc::new(health),
            dns: Arc::new(dns),
            injector,
            reports: desks.querier,
            announcements: desks.holders,
            watcher,
            fixed,
            inner: Mutex::new(inner),
        };
        let mut inner = host.inner();
        inner.taken.resize_with(host.links.len(), Taken::default);
        inner.externals = host.externals(&inner.devices);
        drop(inner);
        Ok(host)
    }

    /// The parts that change.
    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the underlay resolve the remote VTEPs of the state in force.
    pub fn watch_peers(&self) {
        let state = Arc::clone(&self.inner().state);
        self.watcher.set_peers(self.remote_vteps(&state));
    }

    /// Resolves the remote VTEPs of the first state before ports are opened, so that their packets can be forwarded.
    fn find_first_ways(&self, state: &State) {
        if self.inner().generation > 0 {
            return;
        }
        self.watcher.set_peers(self.remote_vteps(state));
        let found = self.watcher.answered(FIRST_ANSWERS);
        let found = tokio::runtime::Handle::current().block_on(found);
        self.inner().adjacencies = found;
    }

    /// Addresses of remote VTEPs that the underlay has to resolve.
    fn remote_vteps(&self, state: &State) -> Vec<IpAddr> {
        let hosts = state.of_kind(Kind::Host).filter_map(|object| match object {
            Object::Host(host) if host.id != self.id => Some(host),
            _ => None,
        });
        hosts.flat_map(vteps_of).collect()
    }

    /// Interfaces that lead to other hosts and are no uplinks of ours, each with a word on it.
    pub fn detours(&self, inner: &Inner) -> Vec<String> {
        let ways = inner.adjacencies.iter();
        let known = |name: &String| !self.fixed.is_empty() || self.uplinks.contains(name);
        let detours: BTreeMap<&String, &IpAddr> = ways
            .filter_map(|(remote, way)| Some((&way.as_ref().ok()?.uplink, remote)))
            .filter(|(name, _)| !known(name))
            .collect();
        let word = |(name, remote)| {
            format!(
                "{name} (no uplink, but the route to {remote} leads over it: name it in uplinks)"
            )
        };
        detours.into_iter().map(word).collect()
    }

    /// Judges by other ways through the underlay from now on.
    pub fn set_adjacencies(&self, adjacencies: &Adjacencies) {
        let mut inner = self.inner();
        let is_cut = self.leads_nowhere(adjacencies);
        if is_cut != std::mem::replace(&mut inner.is_uplink_cut, is_cut) {
            self.shared.probes.set_uplink_cut(is_cut);
            if is_cut {
                tracing::warn!("no way leads from the uplinks to any other host");
            } else {
                tracing::info!("a way leads from the uplinks to other hosts again");
            }
        }
        if inner.adjacencies != *adjacencies {
            inner.adjacencies = Arc::clone(adjacencies);
            self.compile_again(&mut inner);
        }
    }

    /// Whether no way leads to any other host, and it is this host's side that fails.
    fn leads_nowhere(&self, adjacencies: &Adjacencies) -> bool {
        let mut ways = adjacencies.values();
        // A virtual machine that is the uplink tells nothing of its own links.
        self.fixed.is_empty()
            && !adjacencies.is_empty()
            && ways.all(|way| match way {
                Ok(way) => !self.uplinks.contains(&way.uplink),
                Err(reason) => reason.is_near(),
            })
    }

    /// Takes note of the interfaces that are up now.
    pub fn set_links_up(&self, links_up: LinksUp) {
        let mut inner = self.inner();
        inner.links_up = links_up;
        self.look_at_segments(&mut inner);
    }

    /// Tells the other hosts whether this one has a link on the segments that it is a gateway host of.
    fn look_at_segments(&self, inner: &mut Inner) {
        let unlinked = self.unlinked(inner);
        if unlinked == inner.unlinked {
            return;
        }
        let gone: Vec<&String> = unlinked.difference(&inner.unlinked).collect();
        let back: Vec<&String> = inner.unlinked.difference(&unlinked).collect();
        tracing::warn!(
            ?gone,
            ?back,
            "links on physical networks of which this host is a gateway host"
        );
        self.shared.probes.set_path_down(!unlinked.is_empty());
        inner.unlinked = unlinked;
    }

    /// The physical networks that this host is a gateway host of, and has no link on now.
    fn unlinked(&self, inner: &Inner) -> BTreeSet<String> {
        let Some(up) = &inner.links_up else {
            // Not known yet.
            return BTreeSet::new();
        };
        let is_virtual = |index: u16| self.fixed.iter().any(|(number, _)| *number == index);
        let is_up = |network: &str| {
            // Those that are open.
            let mut links = inner.externals.iter();
            let link = links.find(|link| link.physical_network == network);
            link.is_some_and(|link| {
                let name = self.links.get(usize::from(link.uplink));
                is_virtual(link.uplink) || name.is_some_and(|name| up.contains(name))
            })
        };
        let networks = inner.state.of_kind(Kind::ExternalNetwork);
        let networks = networks.filter_map(|object| match object {
            Object::ExternalNetwork(network) => Some(network),
            _ => None,
        });
        let own = networks.filter(|network| network.gateway_hosts.contains(&self.id));
        own.map(|network| network.physical_network.clone())
            .filter(|network| !is_up(network))
            .collect()
    }

    /// Judges by which gateway hosts live, and whether this one may be one.
    pub fn set_liveness(&self, liveness: &Liveness) {
        let mut inner = self.inner();
        let snapshot = inner.workers.common().snapshot.load_full();
        let peers = liveness.silent.iter();
        let mut silent: BTreeSet<String> = peers
            .filter_map(|peer| Some(snapshot.peer(*peer)?.host.clone()))
            .collect();
        if !liveness.is_ready {
            silent.insert(self.id.clone());
        }
        if inner.silent == silent {
            return;
        }
        let gone: Vec<&String> = silent.difference(&inner.silent).collect();
        let back: Vec<&String> = inner.silent.difference(&silent).collect();
        tracing::info!(?gone, ?back, cut_off = liveness.is_cut_off, "gateway hosts");
        inner.silent = silent;
        self.compile_again(&mut inner);
    }

    /// Compiles the state in force for what this host has around it now.
    fn compile_again(&self, inner: &mut Inner) {
        let state = Arc::clone(&inner.state);
        if let Err(violations) = self.put_in_force(inner, &state, None) {
            // The state was in force before, so this cannot be its fault.
            tracing::error!(?violations, "the state in force no longer compiles");
        }
    }

    /// The interfaces on physical networks that are there and open.
    fn externals(&self, devices: &Devices) -> Vec<ExternalLink> {
        let networks = self.physical_networks.iter();
        let link = |(network, index): &(String, u16)| {
            let device = devices.uplinks.get(usize::from(*index))?;
            let found = Interface::lookup(device.name()).ok()?;
            device.is_open().then(|| ExternalLink {
                physical_network: network.clone(),
                uplink: *index,
                mac: Mac::from_bytes(found.mac),
                mtu: u16::try_from(found.mtu).unwrap_or(u16::MAX),
                has_tunnels: usize::from(*index) < self.uplinks.len(),
            })
        };
        networks.filter_map(link).collect()
    }

    /// Looks whether devices of uplinks and ports have come or gone, and whether there is room now for a load balancer's counters. Returns the ids of ports that came up and that went down.
    pub fn settle_devices(&self) -> (Vec<String>, Vec<String>) {
        let mut inner = self.inner();
        if inner.compiler.may_count_more() {
            self.compile_again(&mut inner);
        }
        let Inner {
            workers, devices, ..
        } = &mut *inner;
        devices.settle_uplinks(workers);
        let externals = self.externals(devices);
        if externals != inner.externals {
            inner.externals = externals;
            self.look_at_segments(&mut inner);
            self.compile_again(&mut inner);
        }
        let Inner {
            workers,
            devices,
            wanted,
            ..
        } = &mut *inner;
        let snapshot = workers.common().snapshot.load();
        let mtus = (snapshot.mtus(), &*self.shared.device_mtus);
        let (up, down) = devices.settle(wanted, mtus, &snapshot.trunks, workers);
        let names = |indexes: Vec<u16>| {
            indexes
                .into_iter()
                .filter_map(|index| Some(snapshot.port(index)?.id.clone()))
                .collect()
        };
        (names(up), names(down))
    }

    /// Whether packets pass each port that should be open, by id, or why they do not.
    pub fn port_conditions(&self) -> Vec<(String, Result<(), String>)> {
        let inner = self.inner();
        let snapshot = inner.workers.common().snapshot.load();
        let ports = (0u16..).zip(snapshot.ports.iter());
        let ports = ports.filter_map(|(index, port)| {
            let port = port.as_ref()?;
            let is_open = port.device.is_some() || port.trunk.is_some();
            is_open.then(|| (port.id.clone(), inner.devices.condition(index)))
        });
        ports.collect()
    }

    /// Compiles a state and has the workers judge by it. `revision`: it is a new one.
    fn put_in_force(
        &self,
        inner: &mut Inner,
        state: &Arc<State>,
        revision: Option<u64>,
    ) -> Result<(), Vec<Violation>> {
        let vteps: Vec<IpAddr> = match state.find(Kind::Host, &self.id) {
            Some(Object::Host(own)) => vteps_of(own).collect(),
            _ => Vec::new(),
        };
        // Only a change of hosts changes these.
        let renewed = (revision.is_none() || inner.vteps != vteps)
            .then(|| self.underlay(&inner.adjacencies, &vteps));
        let generation = if inner.generation == u32::MAX {
            1
        } else {
            inner.generation + 1
        };
        let context = Context {
            host: &self.id,
            generation,
            revision: revision.unwrap_or(inner.revision),
            underlay: renewed.as_ref().unwrap_or(&inner.underlay),
            metadata: self.metadata.is_some(),
            translations: &[],
            externals: &inner.externals,
            silent: &inner.silent,
        };
        let snapshot = Arc::new(inner.compiler.compile(state, &context)?);
        let before = inner.workers.common().snapshot.load_full();
        // Nothing below fails. Sessions of ports that go are removed when no worker can make new ones for them.
        inner.underlay = renewed.unwrap_or_else(|| std::mem::take(&mut inner.underlay));
        inner.generation = generation;
        inner.state = Arc::clone(state);
        inner.revision = revision.unwrap_or(inner.revision);
        self.look_at_segments(inner);
        if inner.vteps != vteps {
            if let Err(error) = inner.devices.set_vteps(&vteps) {
                tracing::error!(%error, "cannot set the tunnel addresses of the uplinks' XDP programs");
            }
            inner.vteps = vteps;
        }
        let is_outside_same = Arc::ptr_eq(&snapshot.outside, &before.outside);
        let taken = if is_outside_same && !snapshot.has_wires() {
            inner.taken.clone()
        } else {
            self.taken(&snapshot)
        };
        // What is no longer taken is the kernel's before the workers forget it, and what is taken now is ours when they know it.
        inner.take(&taken, true);
        if !inner.workers.publish(Arc::clone(&snapshot)) {
            tracing::warn!(
                generation,
                "a worker did not switch to the new generation within a second"
            );
        } else if !inner.workers.all_move() {
            tracing::warn!(
                generation,
                "a stuck worker still uses the old generation; all others use the new one"
            );
        }
        inner.take(&taken, false);
        self.announce(&snapshot, &inner.announcer.moved(&before, &snapshot));
        if snapshot.ports.is_shared_with(&before.ports) {
            return Ok(());
        }
        for (index, port) in (0u16..).zip(before.ports.iter()) {
            let same = |port: &weft_dataplane::snapshot::Port| {
                snapshot.port(index).is_some_and(|now| now.id == port.id)
            };
            if port.as_ref().is_some_and(|port| !same(port)) {
                self.shared.sessions.remove_port(index);
            }
        }
        let present = (0u16..)
            .zip(snapshot.ports.iter())
            .filter_map(|(index, port)| Some((index, port.as_ref()?.device.clone()?)));
        inner.wanted = present.collect();
        let Inner {
            workers,
            devices,
            wanted,
            ..
        } = inner;
        let mtus = (snapshot.mtus(), &*self.shared.device_mtus);
        devices.settle(wanted, mtus, &snapshot.trunks, workers);
        Ok(())
    }

    /// What a snapshot takes from the segment of each interface.
    fn taken(&self, snapshot: &Snapshot) -> Vec<Taken> {
        let links = (0u16..).zip(&self.links);
        let taken = links.map(|(index, _)| {
            let mut held = snapshot.held_on(index);
            held.sort_unstable();
            let mut stations = snapshot.stations_on(index);
            stations.sort_unstable();
            Taken { held, stations }
        });
        taken.collect()
    }

    /// Tells ports of this host of addresses that have moved, and ends the sessions of where they were.
    fn announce(&self, snapshot: &Snapshot, moved: &[Moved]) {
        if moved.is_empty() {
            return;
        }
        self.shared
            .sessions
            .remove_addresses(&announce::ended(moved));
        for moved in moved {
            let frame = [moved.frame()];
            let subnet = snapshot.subnets.get(moved.subnet);
            for port in subnet.into_iter().flat_map(|subnet| &subnet.ports) {
                // Not to the one that has it now.
                let own = moved.port == Some(*port);
                if !own {
                    self.injector.send(*port, &frame);
                }
            }
        }
    }

    /// Stops the workers and closes every device.
    pub fn stop(&self) {
        self.inner().workers.stop();
    }
}

impl Inner {
    /// Has the XDP programs take what is for addresses that are held and for ports on segments; only for those of before, too, if `only_known`.
    fn take(&mut self, taken: &[Taken], only_known: bool) {
        for ((index, now), then) in (0u16..).zip(taken).zip(&mut self.taken) {
            if now.held != then.held {
                let held = kept(&now.held, &then.held, only_known);
                if let Err(error) = self.devices.set_held(index, &held) {
                    tracing::error!(%error, "cannot set the held addresses of an interface's XDP program");
                }
                then.held = held;
            }
            if now.stations != then.stations {
                let stations = kept(&now.stations, &then.stations, only_known);
                if let Err(error) = self.devices.set_stations(index, &stations) {
                    tracing::error!(%error, "cannot set the ports of an interface's XDP program");
                }
                then.stations = stations;
            }
        }
    }
}

/// What is wanted now, or of it, if `only_known`, what was there before. Both are sorted.
fn kept<T: Ord + Clone>(now: &[T], then: &[T], only_known: bool) -> Vec<T> {
    let mut wanted = now.to_vec();
    if only_known {
        wanted.retain(|it| then.binary_search(it).is_ok());
    }
    wanted
}

impl Apply for Host {
    fn apply(&self, revision: u64, state: &State) -> Result<(), Vec<Violation>> {
        self.find_first_ways(state);
        let mut inner = self.inner();
        self.put_in_force(&mut inner, &Arc::new(state.clone()), Some(revision))
    }
}

fn vteps_of(host: &v1::Host) -> impl Iterator<Item = IpAddr> {
    host.vteps.iter().filter_map(|text| text.parse().ok())
}

impl Host {
    /// The ways through the underlay in the form that snapshots are compiled from.
    fn underlay(&self, adjacencies: &Adjacencies, vteps: &[IpAddr]) -> Underlay {
        let names = self.uplinks.iter().map(String::as_str);
        let by_name: HashMap<&str, u16> = names.zip(0u16..).collect();
        let mut ways = Underlay::default();
        for (remote, way) in adjacencies.iter() {
            let same_family = |address: &&IpAddr| address.is_ipv4() == remote.is_ipv4();
            let ours = vteps.iter().find(same_family).copied();
            if let Some(source) = ours.filter(|_| !self.fixed.is_empty()) {
                let fixed = self.fixed.iter().map(|(uplink, way)| Adjacency {
                    source: address_word(source),
                    source_mac: way.mac,
                    next_hop_mac: way.next_hop_mac,
                    uplink: *uplink,
                    mtu: way.mtu,
                });
                ways.insert(address_word(*remote), fixed.collect());
            }
            let Ok(way) = way else { continue };
            let Some(uplink) = by_name.get(way.uplink.as_str()).copied() else {
                if self.fixed.is_empty() {
                    tracing::warn!(%remote, interface = %way.uplink, "the route to a VTEP leads over an interface that is not an uplink");
                }
                continue;
            };
            // The kernel's choice of source, if it is one of our tunnel addresses.
            let source = way.source.filter(|source| vteps.contains(source)).or(ours);
            let Some(source) = source else { continue };
            let adjacency = Adjacency {
                source: address_word(source),
                source_mac: Mac::from_bytes(way.source_mac),
                next_hop_mac: Mac::from_bytes(way.next_hop_mac),
                uplink,
                mtu: way.mtu,
            };
            debug_assert_eq!(word_address(address_word(*remote)), *remote);
            ways.entry(address_word(*remote))
                .or_default()
                .push(adjacency);
        }
        ways
    }
}
