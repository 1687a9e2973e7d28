//! The pipeline: vectors of packets in, packets out or dropped, each with a named reason.
//!
//! One [`Pipeline`] per worker. It knows tables and buffers, not sockets: whoever drives it hands in packets and gets them back through
//! [`Io`]. Most packets take the fast path (`quick_parse`, `fast_path`): their session alone decides. The others take the slow path: `slow_path`
//! parses, `hit` does what a session has kept, and `miss` asks `resolve`, which holds the order of the stages, and keeps the result in a
//! session.

mod balancing;
pub mod checks;
pub mod counters;
mod device_mtus;
pub mod dns;
mod egress;
pub mod external;
mod fast_path;
pub mod flood;
mod forwarding;
mod fragment_path;
pub mod fragment_track;
pub mod gateway;
mod gateways;
pub mod gso;
pub mod guard;
mod hit;
pub mod icmp_error;
pub mod ip_fragment;
pub mod learning;
mod membership;
pub mod metadata;
mod miss;
mod nat64;
mod policy_eval;
pub mod probes;
mod quick_parse;
pub mod rate_limit;
mod replicate;
mod resolve;
pub mod rewrite;
pub mod services;
mod slow_path;
pub mod trace;
mod tracer;
mod tracking;
mod translate;
pub mod trunk;

use std::sync::{Arc, Mutex, PoisonError};

use checks::Checks;
use counters::{Counters, Traffic};
pub use device_mtus::DeviceMtus;
pub use external::neighbors::Neighbors;
use external::neighbors::Question;
use external::segment::{Announcer, QUESTIONS};
use fast_path::Lane;
use fragment_track::{Fragments, Released};
use gateways::Telling;
use learning::Asks;
use learning::waiting::Waitings;
use probes::Probes;
use rate_limit::Limiter;

use crate::multicast::Listeners;
use crate::multicast::querier::GROUPS;
use crate::numbers::Vni;
use crate::packet::{DropReason, FrameMemory, Packet, Parsed};
use crate::prefetch::prefetch;
use crate::session::table::Ingress;
use crate::session::{Key, SessionTable};
use crate::snapshot::{Asked, RateLimit, Snapshot};

/// Packets of a vector.
pub const VECTOR: usize = 64;
/// Packets that are in one stage at a time: their headers and sessions fit into the first-level cache.
const STAGE: usize = 32;
/// So many packets ahead of the one that is looked at, the next is called for.
const AHEAD: usize = 4;

/// Answers and errors a second on one external network.
const EXTERNAL_ANSWERS: u32 = 1000;
/// External networks that these are counted for; the others share one count.
const NETWORKS: usize = 1024;

/// Packets that may ask who has an address, a second: of one port, and of one VPC out of tunnels.
const QUESTIONS_OF_PORT: u32 = 2000;
const QUESTIONS_OF_VPC: u32 = 20_000;

/// Where a packet came from, in the driver's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A port, by index.
    Port(u16),
    /// An uplink, by index.
    Uplink(u16),
}

/// Where a packet goes, in the driver's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// A port, by index.
    Port(u16),
    /// An uplink, by index.
    Uplink(u16),
    /// A service of this host, with the index of the port that sent the packet.
    Service(Service, u16),
}

/// A service of this host that takes packets of ports, off the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// What answers guests that ask for their metadata.
    Metadata,
    /// What asks members of load balancers whether they serve.
    Health,
    /// The multicast querier, which hears what ports have joined.
    Querier,
    /// What finds out which ports hold virtual addresses.
    Holders,
    /// What answers DNS at the addresses of gateways.
    Dns,
}

impl Service {
    /// Why a packet is dropped that the service has no room for.
    pub fn full(self) -> DropReason {
        match self {
            Self::Metadata => DropReason::MetadataFull,
            Self::Health => DropReason::HealthFull,
            Self::Querier => DropReason::MembershipLimit,
            Self::Holders => DropReason::AnnouncementLimit,
            Self::Dns => DropReason::DnsFull,
        }
    }

    /// Why one is dropped of a port that has sent the service as many as it may.
    fn limited(self) -> DropReason {
        match self {
            Self::Metadata => DropReason::MetadataLimit,
            Self::Health => DropReason::HealthFull,
            Self::Querier => DropReason::MembershipLimit,
            Self::Holders => DropReason::AnnouncementLimit,
            Self::Dns => DropReason::DnsLimit,
        }
    }
}

/// What a driver offers: buffers, and a way out.
pub trait Io: FrameMemory {
    /// Takes a packet that is on its way out. The driver counts it as sent, or as dropped for want of room.
    fn send(&mut self, to: Destination, packet: Packet);
}

/// What may be configured of the pipeline.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Ports that counters and limits are kept for.
    pub ports: usize,
    /// VPCs that limits are kept for.
    pub vpcs: usize,
    /// Uplinks that counters are kept for.
    pub uplinks: usize,
    /// ICMP errors that one port may cause, a second.
    pub errors_per_second: u32,
    /// Replies of the gateway (ARP, ND, ping) that one port may cause, a second.
    pub replies_per_second: u32,
    /// Broadcast and multicast packets that one port may send, and one external network may bring, a second.
    pub broadcasts_per_second: u32,
    /// Packets to the metadata service that one port may send, a second.
    pub metadata_per_second: u32,
    /// Packets to the DNS service that one port may send, a second.
    pub dns_per_second: u32,
    /// Reports of IGMP and MLD that one port may send, a second.
    pub reports_per_second: u32,
    /// Flows that one port may open, a second: what a flood may take of a worker's time, and of the workers' behind the underlay.
    pub flows_per_second: u32,
    /// Flows that a VPC may open on this host, a second: by all its ports, and towards them out of tunnels.
    pub vpc_flows_per_second: u32,
    /// IPv4 packets that are too big and may be fragmented: fragment them (true), or drop them.
    pub fragment: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ports: 1024,
            vpcs: 4096,
            uplinks: 4,
            errors_per_second: 100,
            replies_per_second: 1000,
            broadcasts_per_second: 1000,
            metadata_per_second: 4000,
            dns_per_second: 1000,
            reports_per_second: 32,
            flows_per_second: 50_000,
            vpc_flows_per_second: 100_000,
            fragment: true,
        }
    }
}

/// What workers share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The session table.
    pub sessions: Arc<SessionTable>,
    /// Fragmented datagrams.
    pub fragments: Arc<Mutex<Fragments>>,
    /// What the devices of ports take.
    pub device_mtus: Arc<DeviceMtus>,
    /// Neighbours on external networks.
    pub neighbors: Arc<Neighbors>,
    /// Whether gateway hosts live.
    pub probes: Arc<Probes>,
    /// What is to be asked for in VPCs whose ports are learned.
    pub asks: Arc<Asks>,
    /// Questions to members of load balancers.
    pub checks: Arc<Checks>,
    /// Who has joined which multicast group.
    pub listeners: Arc<Listeners>,
}

/// Announcements of virtual addresses that a port may send, a second and at once: a router that takes over announces all of its addresses a few times.
const ANNOUNCEMENTS: u32 = 32;
const ANNOUNCEMENTS_AT_ONCE: u32 = 512;

/// Answers to health checks that a port may give, a second.
const HEALTH_ANSWERS: u32 = 4000;

/// The pipeline of one worker.
#[derive(Debug)]
pub struct Pipeline {
    snapshot: Arc<Snapshot>,
    sessions: Arc<SessionTable>,
    neighbors: Arc<Neighbors>,
    checks: Arc<Checks>,
    listeners: Arc<Listeners>,
    core: Core,
    scratch: Box<[fast_path::Entry; STAGE]>,
    /// Room for what of a vector is of one VLAN; empty between vectors.
    part: Vec<Packet>,
}

/// What a vector is judged by.
#[derive(Debug, Clone, Copy)]
struct Tables<'a> {
    snapshot: &'a Snapshot,
    sessions: &'a SessionTable,
    neighbors: &'a Neighbors,
    checks: &'a Checks,
    listeners: &'a Listeners,
}

/// All but the tables, so that a packet may borrow both.
#[derive(Debug)]
struct Core {
    fragments: Arc<Mutex<Fragments>>,
    device_mtus: Arc<DeviceMtus>,
    /// What every device takes, as of this vector.
    least_mtu: u16,
    /// Room for what fragments give back; empty between packets.
    released: Vec<Released>,
    /// Whom to ask for on external networks; empty between packets.
    questions: Vec<Question>,
    announcer: Announcer,
    probes: Arc<Probes>,
    telling: Telling,
    counters: Arc<Counters>,
    errors: Limiter,
    replies: Limiter,
    broadcasts: Limiter,
    /// What ports send to the metadata service.
    metadata: Limiter,
    /// What ports send to the DNS service.
    dns: Limiter,
    /// Answers of ports to health checks.
    answers: Limiter,
    /// Reports of IGMP and MLD.
    reports: Limiter,
    announcements: Limiter,
    flows: Limiter,
    vpc_flows: Limiter,
    asks: Arc<Asks>,
    /// What the packet at hand has asked for; none between packets.
    asked: Option<(usize, Asked)>,
    waiting: Waitings,
    /// Questions of ports, and of VPCs out of tunnels.
    learning: Limiter,
    vpc_learning: Limiter,
    /// What is sent on external networks that nobody's traffic is: answers and errors, by network.
    external: Limiter,
    /// Broadcast and multicast from external networks with ports, by network.
    wire_broadcasts: Limiter,
    fragment: bool,
    /// That of the next IPv4 packet which is made of an IPv6 one.
    identification: u16,
    now: u32,
}

/// A packet on the slow path.
#[derive(Debug, Clone, Copy)]
struct Entry {
    parsed: Parsed,
    key: Key,
    ingress: Ingress,
    vpc: usize,
    /// That of the VPC, or none's for what comes from an external network.
    vni: Vni,
    /// Traffic class of the tunnel's header; none from a port.
    outer_class: Option<u8>,
}

impl Pipeline {
    /// A pipeline that has no snapshot yet, and so drops everything.
    pub fn new(shared: Shared, settings: &Settings) -> Self {
        let limiter = |rate: u32| Limiter::new(rate, rate.div_ceil(2).max(1), settings.ports);
        // Less at once: each is work for the receiver too, and what it has in hand others of its host wait for.
        let flows = |rate: u32, holders| Limiter::new(rate, rate.div_ceil(20).max(1), holders);
        let core = Core {
            fragments: shared.fragments,
            device_mtus: shared.device_mtus,
            least_mtu: u16::MAX,
            released: Vec::new(),
            questions: Vec::with_capacity(QUESTIONS),
            announcer: Announcer::default(),
            probes: shared.probes,
            telling: Telling::default(),
            counters: Arc::new(Counters::new(settings.ports, settings.uplinks)),
            errors: limiter(settings.errors_per_second),
            replies: limiter(settings.replies_per_second),
            broadcasts: limiter(settings.broadcasts_per_second),
            metadata: limiter(settings.metadata_per_second),
            dns: limiter(settings.dns_per_second),
            answers: limiter(HEALTH_ANSWERS),
            reports: Limiter::new(
                settings.reports_per_second,
                // A guest of IGMPv2 or MLDv1 answers a query with a report for each of its groups.
                GROUPS as u32,
                settings.ports,
            ),
            announcements: Limiter::new(ANNOUNCEMENTS, ANNOUNCEMENTS_AT_ONCE, settings.ports),
            flows: flows(settings.flows_per_second, settings.ports),
            vpc_flows: flows(settings.vpc_flows_per_second, settings.vpcs),
            asks: shared.asks,
            asked: None,
            waiting: Waitings::default(),
            learning: limiter(QUESTIONS_OF_PORT),
            vpc_learning: Limiter::new(QUESTIONS_OF_VPC, QUESTIONS_OF_VPC / 2, settings.vpcs),
            external: Limiter::new(EXTERNAL_ANSWERS, EXTERNAL_ANSWERS, NETWORKS),
            wire_broadcasts: {
                let rate = settings.broadcasts_per_second;
                Limiter::new(rate, rate.div_ceil(2).max(1), NETWORKS)
            },
            fragment: settings.fragment,
            // Workers begin apart.
            identification: rand::random(),
            now: 0,
        };
        Self {
            snapshot: Arc::default(),
            sessions: shared.sessions,
            neighbors: shared.neighbors,
            checks: shared.checks,
            listeners: shared.listeners,
            core,
            scratch: Box::new([fast_path::Entry::default(); STAGE]),
            part: Vec::with_capacity(VECTOR),
        }
    }

    /// The counters of this worker.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.core.counters
    }

    /// The snapshot that the next vector is judged by.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Judges the vectors that follow by another snapshot.
    pub fn set_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        if !Arc::ptr_eq(&self.snapshot.outside, &snapshot.outside) {
            self.core.telling.set_fellows(snapshot.outside.fellows());
            // Sessions that go to such an address find that it is here. Those of a snapshot that this worker skipped are forgotten when they are announced.
            for (network, address) in &snapshot.outside.came {
                self.neighbors.forget(*network, *address);
            }
        }
        self.core.waiting.set_snapshot(&snapshot);
        self.snapshot = snapshot;
    }

    /// Takes all packets of a vector, which came from one place at the time `now` (milliseconds).
    pub fn process(
        &mut self,
        io: &mut impl Io,
        source: Source,
        packets: &mut Vec<Packet>,
        now: u32,
    ) {
        match source {
            Source::Port(index) if self.snapshot.trunks.is_parent(index) => {
                self.process_trunk(io, index, packets, now);
            }
            _ => self.process_vector(io, source, packets, now),
        }
    }

    /// The same for packets that are all of the place that they came from.
    #[inline]
    fn process_vector(
        &mut self,
        io: &mut impl Io,
        source: Source,
        packets: &mut Vec<Packet>,
        now: u32,
    ) {
        self.core.now = now;
        self.core.least_mtu = self.core.device_mtus.least();
        let tables = Tables {
            snapshot: &self.snapshot,
            sessions: &self.sessions,
            neighbors: &self.neighbors,
            checks: &self.checks,
            listeners: &self.listeners,
        };
        self.core.receive(source, packets);
        if let Source::Port(index) = source
            && let Some(limit) = tables.snapshot.egress_limit(index)
        {
            self.core.restrain(io, (index, limit), packets);
        }
        let mut lane = Lane::new(tables, source);
        let mut fast = 0;
        // Asked once for all packets: on most hosts no port is limited.
        let limited = !tables.snapshot.limits.is_empty();
        while !packets.is_empty() {
            let count = packets.len().min(STAGE);
            // Bit by bit, which of these packets are in the fast path.
            let mut found = 0u32;
            for i in 0..count {
                if let Some(ahead) = packets.get(i + AHEAD) {
                    prefetch(&io.bytes(&ahead.frame)[usize::from(ahead.start)..]);
                }
                let entry = &mut self.scratch[i];
                if lane.look(tables, io, &mut packets[i], entry).is_some() {
                    found |= 1 << i;
                }
            }
            for (i, entry) in self.scratch[..count].iter_mut().enumerate() {
                if found >> i & 1 != 0 {
                    entry.probe(tables);
                }
            }
            for (i, packet) in packets.drain(..count).enumerate() {
                let done = if found >> i & 1 != 0 {
                    self.core.hit(tables, io, packet, &self.scratch[i])
                } else {
                    Err(packet)
                };
                match done {
                    Ok((to, packet)) => {
                        fast += 1;
                        match to {
                            Destination::Port(index) if limited => {
                                self.core.deliver(tables, io, index, packet);
                            }
                            _ => io.send(to, packet),
                        }
                    }
                    Err(packet) => self.core.general(tables, io, source, packet),
                }
            }
        }
        self.core.counters.fast.add(fast);
        if !self.core.telling.new.is_empty() {
            self.core.tell_new(tables, io);
        }
    }

    /// Takes back what has waited too long. Called now and then, by one worker at least.
    pub fn tick(&mut self, io: &mut impl Io, now: u32) {
        self.core.now = now;
        let tables = Tables {
            snapshot: &self.snapshot,
            sessions: &self.sessions,
            neighbors: &self.neighbors,
            checks: &self.checks,
            listeners: &self.listeners,
        };
        self.core.expire_fragments(tables, io);
        self.core.tend_external(tables, io);
        self.core.tend_gateways(tables, io);
    }
}

impl Core {
    fn fragments(&self) -> std::sync::MutexGuard<'_, Fragments> {
        self.fragments
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters that a packet's fate is booked on. Tunnels are booked on the first uplink that leads to their peer.
    fn traffic(&self, tables: Tables<'_>, ingress: Ingress) -> &Traffic {
        match ingress {
            Ingress::Port(index) => self.counters.port(index),
            Ingress::Peer(peer) => {
                let uplink = tables
                    .snapshot
                    .peer(peer)
                    .and_then(|peer| peer.tunnels.first())
                    .map_or(0, |tunnel| tunnel.uplink);
                self.counters.uplink(uplink)
            }
            Ingress::External(network) => {
                let network = tables.snapshot.outside.network(network);
                let link = network.and_then(|network| network.link);
                self.counters.uplink(link.map_or(0, |link| link.uplink))
            }
        }
    }

    /// Drops what a port sends beyond its rate limit.
    #[inline(never)]
    fn restrain(
        &self,
        io: &mut impl Io,
        (index, limit): (u16, &RateLimit),
        packets: &mut Vec<Packet>,
    ) {
        let traffic = self.counters.port(index);
        let refused = |packet: &mut Packet| match limit.take(packet.len, self.now) {
            Ok(()) => false,
            Err(beyond) => {
                traffic.drop(beyond.egress());
                true
            }
        };
        for packet in packets.extract_if(.., |packet| refused(packet)) {
            io.free(packet.frame);
        }
    }

    /// Sends a packet to a port, unless that is sent more than its rate limit allows: then the port has the drop.
    #[inline(never)]
    fn deliver(&self, tables: Tables<'_>, io: &mut impl Io, index: u16, packet: Packet) {
        if let Some(limit) = tables.snapshot.ingress_limit(index)
            && let Err(beyond) = limit.take(packet.len, self.now)
        {
            self.counters.port(index).drop(beyond.ingress());
            return io.free(packet.frame);
        }
        io.send(Destination::Port(index), packet);
    }

    fn drop(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        ingress: Ingress,
        reason: DropReason,
    ) {
        self.traffic(tables, ingress).drop(reason);
        io.free(packet.frame);
    }
}
