//! A fabric in memory: the pipelines of several hosts, joined by an underlay that loses nothing. Tests, fuzzers and benchmarks drive it;
//! the daemon does not.

#![forbid(unsafe_code)]

mod learning;
mod multicast;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use weft_proto::state::State;
use weft_proto::v1::Violation;

use weft_dataplane::multicast::Querier;
use weft_dataplane::packet::parse::{address_word, macs};
use weft_dataplane::packet::{DropReason, Frame, FrameMemory, Mac, Offload, Packet, PlainMemory};
use weft_dataplane::pipeline::checks::Checks;
use weft_dataplane::pipeline::counters::Traffic;
use weft_dataplane::pipeline::trace::View;
use weft_dataplane::pipeline::{
    Destination, DeviceMtus, Io, Pipeline, Service, Settings, Shared, Source, trunk,
};
use weft_dataplane::session::{Limits, SessionTable};
use weft_dataplane::snapshot::compile::{Adjacency, Compiler, Context, ExternalLink, Underlay};
use weft_dataplane::snapshot::{Place, Snapshot, StaticTranslation};

/// Bytes of IP packet that the underlay carries.
pub const UNDERLAY_MTU: u16 = 1500;
const FRAMES: u32 = 512;
const LARGE_FRAMES: u32 = 4;
const FRAME_SIZE: usize = 4096;
const HEADROOM: usize = 128;

/// Plain memory with a list of sent packets.
#[derive(Debug)]
pub struct MemoryIo {
    /// The buffers.
    pub memory: PlainMemory,
    /// What was sent.
    pub sent: Vec<(Destination, Packet)>,
}

impl MemoryIo {
    /// So many frames of so many bytes.
    pub fn new(frames: u32, size: usize) -> Self {
        Self {
            memory: PlainMemory::new(frames, size).with_large(LARGE_FRAMES),
            sent: Vec::new(),
        }
    }
}

impl FrameMemory for MemoryIo {
    #[inline]
    fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        self.memory.bytes(frame)
    }

    #[inline]
    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        self.memory.bytes_mut(frame)
    }

    #[inline]
    fn alloc(&mut self) -> Option<Frame> {
        self.memory.alloc()
    }

    fn alloc_large(&mut self) -> Option<Frame> {
        self.memory.alloc_large()
    }

    #[inline]
    fn free(&mut self, frame: Frame) {
        self.memory.free(frame);
    }
}

impl Io for MemoryIo {
    #[inline]
    fn send(&mut self, to: Destination, packet: Packet) {
        self.sent.push((to, packet));
    }
}

/// One host.
#[derive(Debug)]
pub struct MemoryHost {
    /// Its id.
    pub id: String,
    /// Its first worker.
    pub pipeline: Pipeline,
    /// Its other workers ([`Fabric::add_worker`]).
    pub mates: Vec<Pipeline>,
    /// Its buffers and what it sends.
    pub io: MemoryIo,
    /// What workers share.
    pub shared: Shared,
    compiler: Compiler,
    /// The state of all hosts that it heard of last.
    heard: State,
    /// What it has asked for: VPCs, each with an address or a MAC.
    learned: BTreeSet<(String, String)>,
    generation: u32,
    /// Ports that are counted.
    ports: usize,
    /// Frames that left, for another host or to a port.
    sent: u64,
    fragment: bool,
    /// What its ports have joined.
    querier: Querier,
    /// The generation that the querier has followed.
    followed: u32,
    /// What of reports it has passed over.
    refused: [u64; DropReason::COUNT],
}

impl MemoryHost {
    /// What its packets are traced by.
    pub fn view(&self) -> View<'_> {
        View {
            snapshot: self.pipeline.snapshot(),
            shared: &self.shared,
            fragment: self.fragment,
        }
    }

    fn workers(&self) -> impl Iterator<Item = &Pipeline> {
        std::iter::once(&self.pipeline).chain(&self.mates)
    }

    /// A worker by number, counted from the first again when there are fewer.
    fn worker(&mut self, number: usize) -> (&mut Pipeline, &mut MemoryIo) {
        let pipeline = match (number % (1 + self.mates.len())).checked_sub(1) {
            Some(mate) => &mut self.mates[mate],
            None => &mut self.pipeline,
        };
        (pipeline, &mut self.io)
    }

    /// What each worker counts, of so many ports and of the uplinks.
    fn traffic(&self, ports: usize) -> impl Iterator<Item = &Traffic> {
        self.workers().flat_map(move |worker| {
            let counters = worker.counters();
            let ports = (0..ports as u16).map(|port| counters.port(port));
            ports.chain([counters.uplink(0), counters.uplink(1)])
        })
    }

    /// Drops by reason, wherever they are booked; not of ports that are gone.
    pub fn drops(&self) -> [u64; DropReason::COUNT] {
        let mut drops = [0; DropReason::COUNT];
        for traffic in self.traffic(self.pipeline.snapshot().ports.len()) {
            for (sum, reason) in drops.iter_mut().zip(DropReason::ALL) {
                *sum += traffic.drops(*reason);
            }
        }
        for (sum, refused) in drops.iter_mut().zip(self.refused) {
            *sum += refused;
        }
        drops
    }

    /// Packets that came in or were made here, less those that were dropped and those that went out or wait: 0 if the books are right
    /// (invariant 6).
    pub fn unaccounted(&self) -> i64 {
        let of = |traffic: &Traffic| {
            let came = traffic.rx_packets.get() + traffic.generated.get();
            came as i64 - (traffic.all_drops() + traffic.read.get()) as i64
        };
        let left: i64 = self.traffic(self.ports).map(of).sum();
        left - (self.sent + self.waiting() as u64) as i64
    }

    /// Fragments that wait for their first, and packets that wait for answers.
    fn waiting(&self) -> usize {
        let fragments = self.shared.fragments.lock();
        let fragments = fragments.map_or(0, |fragments| fragments.waiting());
        fragments + self.workers().map(Pipeline::waiting).sum::<usize>()
    }

    /// Puts a snapshot in force.
    fn set_snapshot(&mut self, snapshot: Snapshot, now: u32) {
        let snapshot = Arc::new(snapshot);
        for mate in &mut self.mates {
            mate.set_snapshot(Arc::clone(&snapshot));
            mate.resume(&mut self.io, now);
        }
        self.pipeline.set_snapshot(snapshot);
        self.pipeline.resume(&mut self.io, now);
    }
}

impl MemoryHost {
    /// Whether a port of this host has a MAC on an external network.
    fn has_there(&self, mac: Mac) -> bool {
        let mut vpcs = self.pipeline.snapshot().vpcs.iter();
        vpcs.any(|vpc| {
            let endpoint = vpc.wire.as_ref().and_then(|_| vpc.by_mac.get(&mac));
            endpoint.is_some_and(|endpoint| matches!(endpoint.place, Place::Here(_)))
        })
    }

    /// Where a packet goes: one to a subport to its parent's device, with its tag.
    fn on_device(&mut self, to: Destination, packet: &mut Packet) -> Destination {
        let trunks = &self.pipeline.snapshot().trunks;
        let Destination::Port(index) = to else {
            return to;
        };
        match trunks.subport(index) {
            Some(subport) if trunk::put_tag(&mut self.io, packet, subport.vlan).is_ok() => {
                Destination::Port(subport.parent)
            }
            _ => to,
        }
    }

    fn port_id(&self, index: u16) -> String {
        let port = self.pipeline.snapshot().port(index);
        port.map(|port| port.id.clone()).unwrap_or_default()
    }
}

/// A frame that came out at a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The port's id.
    pub port: String,
    /// The frame.
    pub frame: Vec<u8>,
    /// What is still to be made of it, by a guest that takes segments whole.
    pub offload: Offload,
}

/// Hosts and the underlay between them.
#[derive(Debug)]
pub struct Fabric {
    /// By id.
    pub hosts: BTreeMap<String, MemoryHost>,
    /// The pipelines' time in milliseconds.
    pub now: u32,
    /// Every frame that crossed the underlay, in order.
    pub crossed: Vec<Vec<u8>>,
    /// VTEP addresses to which no way leads.
    pub down: Vec<IpAddr>,
    /// The worker of each host that takes the packets that follow, by number.
    pub worker: usize,
    /// Whether the next state finds a metadata service on every host.
    pub metadata: bool,
    /// Addresses that stand for others, from the next state on.
    pub translations: Vec<StaticTranslation>,
    /// The interfaces of hosts on physical networks, from the next state on. They all end on one segment; uplink 0 is of the underlay alone.
    pub externals: BTreeMap<String, Vec<ExternalLink>>,
    /// Whether the hosts learn the ports of their VPCs, from the next state on. Each answer reaches a host when nothing else crosses.
    pub learns: bool,
    /// Hosts that get no answers.
    pub unanswered: BTreeSet<String>,
    /// Hosts that are dead: nothing reaches them, and they send nothing.
    pub dead: BTreeSet<String>,
    /// Pairs of hosts, of which the first is not heard by the second: what it sends through the underlay is lost.
    pub cut: BTreeSet<(String, String)>,
    /// By host, the hosts that do not answer its probes, and itself where it is not ready to be a gateway.
    silent: BTreeMap<String, BTreeSet<String>>,
    /// What hosts have sent onto the segment to none of them, each with its sender, ARP and neighbour discovery included.
    pub outside: Vec<(String, Vec<u8>)>,
    /// What the hosts' pipelines handed to services of their hosts: the port's id, and the frame.
    pub asked: Vec<(String, Vec<u8>)>,
    /// The reports of IGMP and MLD that queriers have heard: the port's id, and the frame.
    pub reports: Vec<(String, Vec<u8>)>,
    /// What queriers have asked: the port's id, and the frame. They are not delivered.
    pub queries: Vec<(String, Vec<u8>)>,
    /// The hosts that do not tell what their ports have joined.
    pub tell_no_listeners: BTreeSet<String>,
    state: State,
    settings: Settings,
}

fn vtep_mac(address: u128) -> Mac {
    Mac::from_word(0x0600_0000_0000 | address as u64 & 0xffff_ffff)
}

impl Fabric {
    /// A fabric with every host of the state that is not foreign.
    ///
    /// # Errors
    /// What the state breaks.
    pub fn new(state: State, settings: &Settings, limits: Limits) -> Result<Self, Vec<Violation>> {
        let mut hosts = BTreeMap::new();
        for host in state.to_objects().hosts.iter().filter(|host| !host.foreign) {
            let shared = Shared {
                sessions: Arc::new(SessionTable::new(limits)),
                fragments: Arc::default(),
                neighbors: Arc::default(),
                probes: Arc::default(),
                asks: Arc::default(),
                checks: Arc::default(),
                listeners: Arc::default(),
                device_mtus: Arc::new(DeviceMtus::new(settings.ports)),
            };
            let compiler = Compiler::new(settings.ports as u16, 1024, limits.vpcs as u32)
                .counting(shared.sessions.member_counts());
            let host = MemoryHost {
                id: host.id.clone(),
                pipeline: Pipeline::new(shared.clone(), settings),
                mates: Vec::new(),
                io: MemoryIo::new(FRAMES, FRAME_SIZE),
                shared,
                compiler,
                heard: State::default(),
                learned: BTreeSet::new(),
                generation: 0,
                ports: settings.ports,
                sent: 0,
                fragment: settings.fragment,
                querier: Querier::default(),
                followed: 0,
                refused: [0; DropReason::COUNT],
            };
            hosts.insert(host.id.clone(), host);
        }
        let mut fabric = Self {
            hosts,
            now: 1,
            crossed: Vec::new(),
            down: Vec::new(),
            worker: 0,
            settings: *settings,
            metadata: false,
            learns: false,
            unanswered: BTreeSet::new(),
            translations: Vec::new(),
            externals: BTreeMap::new(),
            outside: Vec::new(),
            silent: BTreeMap::new(),
            dead: BTreeSet::new(),
            cut: BTreeSet::new(),
            asked: Vec::new(),
            reports: Vec::new(),
            tell_no_listeners: BTreeSet::new(),
            queries: Vec::new(),
            state: State::default(),
        };
        fabric.set(state)?;
        Ok(fabric)
    }

    /// Gives each host one more worker.
    pub fn add_worker(&mut self) {
        for host in self.hosts.values_mut() {
            let mut mate = Pipeline::new(host.shared.clone(), &self.settings);
            mate.set_snapshot(Arc::clone(host.pipeline.snapshot()));
            host.mates.push(mate);
        }
    }

    /// The questions of a host to members of load balancers.
    ///
    /// # Panics
    /// There is no such host.
    pub fn checks(&self, host: &str) -> Arc<Checks> {
        Arc::clone(&self.hosts[host].shared.checks)
    }

    /// The index that a port has on a host.
    pub fn port_index(&self, host: &str, id: &str) -> Option<u16> {
        let snapshot = self.hosts.get(host)?.pipeline.snapshot();
        (0..=u16::MAX).find(|index| snapshot.port(*index).is_some_and(|port| port.id == id))
    }

    /// The state in force.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Puts another state in force on every host, or on none. New hosts do not appear.
    ///
    /// # Errors
    /// What the state breaks.
    pub fn set(&mut self, state: State) -> Result<(), Vec<Violation>> {
        self.set_at(state, |_| true)
    }

    /// Puts another state in force on the hosts that `hears` names, or on none: the others have not heard of it yet.
    ///
    /// # Errors
    /// What the state breaks.
    pub fn set_at(
        &mut self,
        state: State,
        hears: impl Fn(&str) -> bool,
    ) -> Result<(), Vec<Violation>> {
        let mut snapshots = Vec::new();
        for host in self.hosts.values().filter(|host| hears(&host.id)) {
            snapshots.push(self.compile(host, &state)?);
        }
        let hearing = self.hosts.values_mut().filter(|host| hears(&host.id));
        for (host, (snapshot, compiler)) in hearing.zip(snapshots) {
            host.generation += 1;
            host.compiler = compiler;
            host.heard = state.clone();
            host.set_snapshot(snapshot, self.now);
        }
        self.state = state;
        self.share_listeners();
        Ok(())
    }

    /// What a host is told of a state, compiled.
    fn compile(
        &self,
        host: &MemoryHost,
        state: &State,
    ) -> Result<(Snapshot, Compiler), Vec<Violation>> {
        let objects = state.to_objects();
        let nobody = BTreeSet::new();
        let own = objects.hosts.iter().find(|other| other.id == host.id);
        let own: Vec<u128> = own
            .into_iter()
            .flat_map(|own| &own.vteps)
            .filter_map(|t| t.parse().ok())
            .map(address_word)
            .collect();
        let mut underlay = Underlay::default();
        for remote in objects
            .hosts
            .iter()
            .flat_map(|other| &other.vteps)
            .filter_map(|text| text.parse::<IpAddr>().ok())
        {
            let word = address_word(remote);
            let local = own.iter().find(|own| {
                weft_dataplane::packet::parse::word_address(**own).is_ipv4() == remote.is_ipv4()
            });
            if let Some(source) = local.filter(|_| !self.down.contains(&remote)) {
                let way = Adjacency {
                    source: *source,
                    source_mac: vtep_mac(*source),
                    next_hop_mac: vtep_mac(word),
                    uplink: 0,
                    mtu: UNDERLAY_MTU,
                };
                underlay.insert(word, vec![way]);
            }
        }
        let context = Context {
            host: &host.id,
            generation: host.generation + 1,
            revision: 0,
            underlay: &underlay,
            metadata: self.metadata,
            translations: &self.translations,
            silent: self.silent.get(&host.id).unwrap_or(&nobody),
            externals: self.externals.get(&host.id).map_or(&[], Vec::as_slice),
        };
        let mut compiler = host.compiler.clone();
        let told = self.learns.then(|| {
            let inside = self.translations.iter().map(|it| (&*it.vpc, it.inside));
            learning::told(objects, &host.id, &host.learned, inside)
        });
        let snapshot = compiler.compile(told.as_ref().unwrap_or(state), &context)?;
        Ok((snapshot, compiler))
    }

    /// Tells hosts what they ask for; whether any did.
    fn answer(&mut self) -> bool {
        let mut asking = Vec::new();
        for host in self.hosts.values_mut() {
            if self.dead.contains(&host.id) || self.unanswered.contains(&host.id) {
                continue;
            }
            let asked = host.shared.asks.take(self.now);
            if asked.is_empty() {
                continue;
            }
            let snapshot = host.pipeline.snapshot();
            for (vni, asked) in asked {
                let vpc = snapshot.vpc_by_vni.get(&vni);
                if let Some(vpc) = vpc.and_then(|place| snapshot.vpcs.get(*place)) {
                    let text = learning::text(asked);
                    host.learned.insert((vpc.id.clone(), text));
                }
            }
            asking.push(host.id.clone());
        }
        for id in &asking {
            let Some(mut host) = self.hosts.remove(id) else {
                continue;
            };
            // The state was compiled before with less in it.
            if let Ok((snapshot, compiler)) = self.compile(&host, &host.heard) {
                host.generation += 1;
                host.compiler = compiler;
                host.set_snapshot(snapshot, self.now);
            }
            self.hosts.insert(id.clone(), host);
        }
        !asking.is_empty()
    }

    /// Has a host forget what it has asked for, as after a while in which it needed none of it.
    ///
    /// # Errors
    /// What the state breaks.
    pub fn forget(&mut self, id: &str) -> Result<(), Vec<Violation>> {
        if let Some(host) = self.hosts.get_mut(id) {
            host.learned.clear();
            let heard = host.heard.clone();
            let state = self.state.clone();
            self.set_at(heard, |other| other == id)?;
            self.state = state;
        }
        Ok(())
    }

    /// Where a port is: its host and index.
    pub fn find_port(&self, id: &str) -> Option<(String, u16)> {
        self.hosts.values().find_map(|host| {
            let position = host
                .pipeline
                .snapshot()
                .ports
                .iter()
                .position(|port| port.as_ref().is_some_and(|port| port.id == id))?;
            Some((host.id.clone(), position as u16))
        })
    }

    /// Has the device of a port take so many bytes of IP packet from now on; all there are if none is given.
    pub fn set_device_mtu(&mut self, port: &str, mtu: Option<u16>) {
        if let Some((host, index)) = self.find_port(port)
            && let Some(host) = self.hosts.get(&host)
        {
            host.shared.device_mtus.set(index, mtu);
        }
    }

    /// Lets a port send a frame; returns what comes out at ports anywhere.
    pub fn send(&mut self, port: &str, frame: &[u8]) -> Vec<Delivered> {
        self.send_vector(port, [frame])
    }

    /// Lets a port send frames, which its host takes as one vector.
    pub fn send_vector<'f>(
        &mut self,
        port: &str,
        frames: impl IntoIterator<Item = &'f [u8]>,
    ) -> Vec<Delivered> {
        let Some((host, index)) = self.find_port(port) else {
            return Vec::new();
        };
        self.inject(&host, Source::Port(index), frames);
        self.settle()
    }

    /// Hands a host a frame as if it came over its uplink.
    pub fn send_from_underlay(&mut self, host: &str, frame: &[u8]) -> Vec<Delivered> {
        self.inject(host, Source::Uplink(0), [frame]);
        self.settle()
    }

    /// Hands a host a frame as if it came over its uplink of this index.
    pub fn send_from_uplink(&mut self, host: &str, uplink: u16, frame: &[u8]) -> Vec<Delivered> {
        self.inject(host, Source::Uplink(uplink), [frame]);
        self.settle()
    }

    fn inject<'f>(
        &mut self,
        host: &str,
        source: Source,
        frames: impl IntoIterator<Item = &'f [u8]>,
    ) {
        let Some(host) = self.hosts.get_mut(host) else {
            return;
        };
        let memory = &mut host.io.memory;
        let packet = |frame| memory.packet(HEADROOM, frame);
        let mut packets = frames.into_iter().filter_map(packet).collect();
        let (pipeline, io) = host.worker(self.worker);
        pipeline.process(io, source, &mut packets, self.now);
    }

    /// Lets a port send a segment that is left to its device to split; returns what comes out at ports anywhere.
    pub fn send_segment(&mut self, port: &str, frame: &[u8], offload: Offload) -> Vec<Delivered> {
        let Some((host, index)) = self.find_port(port) else {
            return Vec::new();
        };
        if let Some(host) = self.hosts.get_mut(&host)
            && let Some(mut large) = host.io.alloc_large()
        {
            offload.write(&mut host.io, &mut large);
            let mut packet = Packet {
                frame: large,
                start: HEADROOM as u16,
                len: frame.len() as u16,
            };
            packet.bytes_mut(&mut host.io).copy_from_slice(frame);
            let (pipeline, io) = host.worker(self.worker);
            pipeline.process(io, Source::Port(index), &mut vec![packet], self.now);
        }
        self.settle()
    }

    /// Carries frames between hosts until all is quiet.
    fn settle(&mut self) -> Vec<Delivered> {
        let mut delivered = Vec::new();
        loop {
            let (mut crossing, mut segment) = (Vec::new(), Vec::new());
            for host in self.hosts.values_mut() {
                for (to, mut packet) in std::mem::take(&mut host.io.sent) {
                    host.sent += 1;
                    let to = host.on_device(to, &mut packet);
                    let frame = packet.bytes(&host.io.memory).to_vec();
                    let offload = Offload::read(&host.io.memory, &packet.frame);
                    host.io.free(packet.frame);
                    match to {
                        Destination::Port(index) => {
                            let port = host.port_id(index);
                            delivered.push(Delivered {
                                port,
                                frame,
                                offload,
                            });
                        }
                        Destination::Service(Service::Querier, index) => {
                            self.queries.extend(host.hear(index, &frame, self.now));
                            self.reports.push((host.port_id(index), frame));
                        }
                        Destination::Service(_, index) => {
                            self.asked.push((host.port_id(index), frame));
                        }
                        Destination::Uplink(0) => crossing.push((host.id.clone(), frame)),
                        Destination::Uplink(uplink) => {
                            segment.push((host.id.clone(), uplink, frame));
                        }
                    }
                }
            }
            self.share_listeners();
            if crossing.is_empty() && segment.is_empty() {
                if self.learns && self.answer() {
                    continue;
                }
                return delivered;
            }
            for (sender, uplink, frame) in segment {
                self.cross_segment(&sender, uplink, frame);
            }
            for (sender, frame) in crossing {
                let target = macs(&frame).map(|(destination, _)| destination);
                let receiver = self.hosts.values().find(|host| {
                    host.pipeline
                        .snapshot()
                        .vteps
                        .iter()
                        .any(|vtep| Some(vtep_mac(*vtep)) == target)
                });
                let receiver = receiver.map(|host| host.id.clone());
                self.crossed.push(frame.clone());
                let receiver = receiver.filter(|host| !self.dead.contains(host));
                let is_cut = |receiver: &String| {
                    let pair = (sender.clone(), receiver.clone());
                    !self.cut.is_empty() && self.cut.contains(&pair)
                };
                if let Some(receiver) = receiver.filter(|host| !is_cut(host)) {
                    self.inject(&receiver, Source::Uplink(0), [&frame[..]]);
                }
            }
        }
    }

    /// Carries a frame to the hosts on the segment that it is for.
    fn cross_segment(&mut self, sender: &str, uplink: u16, frame: Vec<u8>) {
        let Some((target, _)) = macs(&frame) else {
            return;
        };
        let links = self.externals.iter().flat_map(|(host, links)| {
            let links = links.iter().filter(|link| link.uplink == uplink);
            links.map(move |link| (host.clone(), link.mac))
        });
        let others = links.filter(|(host, _)| host != sender);
        let receivers: Vec<String> = others
            .filter(|(host, mac)| {
                let host = self.hosts.get(host);
                target.is_group() || *mac == target || host.is_some_and(|it| it.has_there(target))
            })
            .map(|(host, _)| host)
            .filter(|host| !self.dead.contains(host))
            .collect();
        for receiver in &receivers {
            self.inject(receiver, Source::Uplink(uplink), [&frame[..]]);
        }
        if receivers.is_empty() || target.is_group() {
            self.outside.push((sender.to_owned(), frame));
        }
    }

    /// Lets time pass as daemons see it: probes are sent and read, and every host puts in force who lives.
    ///
    /// # Errors
    /// What the state breaks.
    pub fn live(&mut self, milliseconds: u32) -> Result<(), Vec<Violation>> {
        for _ in 0..milliseconds / 100 {
            self.advance(100);
            self.settle();
            let mut silent = BTreeMap::new();
            for host in self.hosts.values() {
                let liveness = host.shared.probes.wait(u64::MAX, Duration::ZERO);
                let snapshot = host.pipeline.snapshot();
                let peers = liveness.silent.iter();
                let mut hosts: BTreeSet<String> = peers
                    .filter_map(|peer| Some(snapshot.peer(*peer)?.host.clone()))
                    .collect();
                if !liveness.is_ready {
                    hosts.insert(host.id.clone());
                }
                silent.insert(host.id.clone(), hosts);
            }
            if silent != self.silent {
                self.silent = silent;
                self.set(self.state.clone())?;
            }
        }
        Ok(())
    }

    /// Has a host begin anew, as a daemon that was killed does: it knows its state and nothing else.
    ///
    /// # Errors
    /// What the state breaks.
    pub fn restart(&mut self, id: &str, limits: Limits) -> Result<(), Vec<Violation>> {
        let fresh = Self::new(self.state.clone(), &self.settings, limits)?;
        for (id, host) in fresh.hosts.into_iter().filter(|(other, _)| other == id) {
            self.hosts.insert(id, host);
        }
        self.dead.remove(id);
        self.silent
            .insert(id.to_owned(), BTreeSet::from([id.to_owned()]));
        self.set(self.state.clone())
    }

    /// Lets packets that wait for answers go on, or be dropped, as workers do every few milliseconds; returns what comes out at ports anywhere.
    pub fn resume(&mut self) -> Vec<Delivered> {
        for host in self.hosts.values_mut() {
            for mate in &mut host.mates {
                mate.resume(&mut host.io, self.now);
            }
            host.pipeline.resume(&mut host.io, self.now);
        }
        self.settle()
    }

    /// Carries what hosts have sent of themselves.
    pub fn carry(&mut self) -> Vec<Delivered> {
        self.settle()
    }

    /// Lets time pass.
    pub fn advance(&mut self, milliseconds: u32) {
        self.now += milliseconds;
        let timeouts = weft_dataplane::session::Timeouts::default();
        let living = self.hosts.values_mut();
        for host in living.filter(|host| !self.dead.contains(&host.id)) {
            let capacity = host.shared.sessions.statistics().capacity as usize;
            let snapshot = host.pipeline.snapshot();
            let outside = |address, state| snapshot.outside.timeouts_of(address)?.of(state);
            let sessions = &host.shared.sessions;
            sessions.sweep_with(0, capacity, self.now, &timeouts, outside);
            host.pipeline.tick(&mut host.io, self.now);
            self.queries.extend(host.query(self.now));
        }
        self.share_listeners();
    }

    /// Drops of a host for a reason, wherever they are booked.
    pub fn drops(&self, host: &str, reason: DropReason) -> u64 {
        let host = self.hosts.get(host);
        host.map_or(0, |host| host.drops()[reason as usize])
    }

    /// Every drop of every host so far, by reason.
    pub fn all_drops(&self) -> BTreeMap<DropReason, u64> {
        let mut all = BTreeMap::new();
        for host in self.hosts.keys() {
            for reason in DropReason::ALL {
                let count = self.drops(host, *reason);
                if count > 0 {
                    *all.entry(*reason).or_default() += count;
                }
            }
        }
        all
    }

    /// Frames that are neither free nor waiting for a first fragment: leaked, when nothing is being sent.
    pub fn missing_frames(&self) -> usize {
        let missing = |host: &MemoryHost| {
            let all = (FRAMES + LARGE_FRAMES) as usize;
            let free = host.io.memory.available() + host.io.memory.available_large();
            all - free - host.waiting() - host.io.sent.len()
        };
        self.hosts.values().map(missing).sum()
    }
}
