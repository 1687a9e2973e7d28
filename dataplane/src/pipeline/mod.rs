//! The pipeline: vectors of packets in, packets out or dropped, each with a named reason.
//!
//! One [`Pipeline`] per worker. It knows tables and buffers, not sockets: whoever drives it hands in packets and gets them back through
//! [`Io`]. The way of a packet: `parse`, `session` hit and [`Pipeline::execute`]; else `guard`, `local`, `judge`, install.

pub mod counters;
pub mod flood;
pub mod fragments;
pub mod guard;
pub mod icmp_error;
pub mod judge;
pub mod limit;
pub mod local;
pub mod rewrite;
pub mod split;
pub mod trace;

use std::sync::{Arc, Mutex, PoisonError};

use counters::{Counters, Traffic};
use fragments::{Fragments, Later};
use icmp_error::Problem;
use judge::{Case, Standing};
use limit::Limiter;
use trace::Silent;

use crate::encap::decap;
use crate::packet::parse::{self, Inner, is_icmp_error, protocol, tcp_flags};
use crate::packet::{DropReason, Family, FrameMemory, Packet, Parsed};
use crate::session::table::{Action, Egress, Ingress, NewSession, SessionRef};
use crate::session::tcp::{self, Segment, Side, Step};
use crate::session::{InsertError, Key, SessionTable, State};
use crate::snapshot::{Port, Snapshot, Tunnel};

/// Packets of a vector.
pub const VECTOR: usize = 64;

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
    /// Uplinks that counters are kept for.
    pub uplinks: usize,
    /// ICMP errors that one port may cause, a second.
    pub errors_per_second: u32,
    /// Replies of the gateway (ARP, ND, ping) that one port may cause, a second.
    pub replies_per_second: u32,
    /// Broadcast and multicast packets that one port may send, a second.
    pub broadcasts_per_second: u32,
    /// IPv4 packets that are too big and may be fragmented: fragment them (true), or drop them.
    pub fragment: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ports: 1024,
            uplinks: 4,
            errors_per_second: 100,
            replies_per_second: 1000,
            broadcasts_per_second: 1000,
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
}

/// The pipeline of one worker.
#[derive(Debug)]
pub struct Pipeline {
    snapshot: Arc<Snapshot>,
    core: Core,
    scratch: Vec<Option<Entry>>,
}

/// All but the snapshot, so that a packet may borrow both.
#[derive(Debug)]
struct Core {
    shared: Shared,
    counters: Arc<Counters>,
    errors: Limiter,
    replies: Limiter,
    broadcasts: Limiter,
    fragment: bool,
    now: u32,
}

/// A packet between the two passes over its vector.
#[derive(Debug, Clone, Copy)]
struct Entry {
    parsed: Parsed,
    key: Key,
    ingress: Ingress,
    vpc: usize,
    /// Traffic class of the tunnel's header; none from a port.
    outer_class: Option<u8>,
}

impl Pipeline {
    /// A pipeline that has no snapshot yet, and so drops everything.
    pub fn new(shared: Shared, settings: &Settings) -> Self {
        let limiter = |rate: u32| Limiter::new(rate, rate.div_ceil(2).max(1), settings.ports);
        let core = Core {
            shared,
            counters: Arc::new(Counters::new(settings.ports, settings.uplinks)),
            errors: limiter(settings.errors_per_second),
            replies: limiter(settings.replies_per_second),
            broadcasts: limiter(settings.broadcasts_per_second),
            fragment: settings.fragment,
            now: 0,
        };
        Self {
            snapshot: Arc::default(),
            core,
            scratch: Vec::with_capacity(VECTOR),
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
        self.core.now = now;
        let snapshot = &*self.snapshot;
        // First pass: parse, and call for the cache lines of the session index.
        self.scratch.clear();
        for packet in packets.iter_mut() {
            let entry = match source {
                Source::Port(index) => self.core.enter_from_port(snapshot, io, index, packet),
                Source::Uplink(index) => self.core.enter_from_uplink(snapshot, io, index, packet),
            };
            self.scratch.push(entry);
        }
        // Second pass: the sessions, or the long way round.
        for (packet, entry) in packets.drain(..).zip(&self.scratch) {
            match entry {
                Some(entry) => self.core.forward(snapshot, io, packet, entry),
                None => self.core.aside(snapshot, io, source, packet),
            }
        }
    }

    /// Takes back what has waited too long. Called now and then, by one worker at least.
    pub fn tick(&mut self, io: &mut impl Io, now: u32) {
        self.core.now = now;
        let expired = self.core.fragments().expire(now);
        for (ingress, packet) in expired {
            self.core
                .traffic(&self.snapshot, ingress)
                .drop(DropReason::FragmentOrphan);
            io.free(packet.frame);
        }
    }
}

impl Core {
    fn fragments(&self) -> std::sync::MutexGuard<'_, Fragments> {
        self.shared
            .fragments
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters that a packet's fate is booked on. Tunnels are booked on the first uplink that leads to their peer.
    fn traffic(&self, snapshot: &Snapshot, ingress: Ingress) -> &Traffic {
        match ingress {
            Ingress::Port(index) => self.counters.port(index),
            Ingress::Peer(peer) => {
                let uplink = snapshot
                    .peer(peer)
                    .and_then(|peer| peer.tunnels.first())
                    .map_or(0, |tunnel| tunnel.uplink);
                self.counters.uplink(uplink)
            }
        }
    }

    fn drop(
        &self,
        snapshot: &Snapshot,
        io: &mut impl Io,
        packet: Packet,
        ingress: Ingress,
        reason: DropReason,
    ) {
        self.traffic(snapshot, ingress).drop(reason);
        io.free(packet.frame);
    }

    /// First pass over a packet from a port. None: not plain IP; [`Self::aside`] looks again.
    #[inline]
    fn enter_from_port(
        &self,
        snapshot: &Snapshot,
        io: &mut impl Io,
        index: u16,
        packet: &mut Packet,
    ) -> Option<Entry> {
        let traffic = self.counters.port(index);
        traffic.rx_packets.add(1);
        traffic.rx_bytes.add(packet.len.into());
        let port = snapshot.port(index)?;
        let frame = packet.bytes_mut(io);
        let Ok(Inner::Ip(parsed)) = parse::inner(frame) else {
            return None;
        };
        rewrite::complete_checksum(frame, &parsed);
        Some(self.entry(snapshot, parsed, Ingress::Port(index), port.vpc, None))
    }

    #[inline]
    fn entry(
        &self,
        snapshot: &Snapshot,
        parsed: Parsed,
        ingress: Ingress,
        vpc: usize,
        outer_class: Option<u8>,
    ) -> Entry {
        let key = Key::new(
            self.shared.sessions.seeds(),
            &parsed.flow,
            snapshot.vpcs[vpc].vni,
        );
        self.shared.sessions.prefetch(&key);
        Entry {
            parsed,
            key,
            ingress,
            vpc,
            outer_class,
        }
    }

    /// First pass over a packet from the uplink: takes the outer headers off. None: [`Self::aside`] looks again.
    #[inline]
    fn enter_from_uplink(
        &self,
        snapshot: &Snapshot,
        io: &mut impl Io,
        index: u16,
        packet: &mut Packet,
    ) -> Option<Entry> {
        let traffic = self.counters.uplink(index);
        traffic.rx_packets.add(1);
        traffic.rx_bytes.add(packet.len.into());
        let (outer, peer, vpc) = check_outer(snapshot, packet.bytes(io)).ok()?;
        let frame = &packet.bytes(io)[usize::from(outer.inner)..usize::from(outer.end)];
        let Ok(Inner::Ip(parsed)) = parse::inner(frame) else {
            return None;
        };
        packet.start += outer.inner;
        packet.len = outer.end - outer.inner;
        Some(self.entry(
            snapshot,
            parsed,
            Ingress::Peer(peer),
            vpc,
            Some(outer.traffic_class),
        ))
    }

    /// The common case: a session that knows what to do.
    #[inline]
    fn forward(
        &mut self,
        snapshot: &Snapshot,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
    ) {
        let sessions = Arc::clone(&self.shared.sessions);
        let Some(session) = sessions.find(&entry.key) else {
            return self.miss(snapshot, io, packet, entry, None);
        };
        let parsed = &entry.parsed;
        let hit = session
            .action(snapshot.generation, entry.ingress)
            .filter(|action| action.eth_dst == parsed.eth_dst && action.eth_src == parsed.eth_src);
        let plain = parsed.fragment.is_none()
            && parsed.tcp_flags & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST) == 0;
        let Some(action) = hit.filter(|_| plain) else {
            return self.miss(snapshot, io, packet, entry, Some(session));
        };
        match track(&session, parsed, packet.bytes_mut(io)) {
            Track::Pass => {
                session.touch(self.now);
                self.counters.hits.add(1);
                self.execute(snapshot, io, packet, entry, &action);
            }
            Track::Reopen => self.miss(snapshot, io, packet, entry, Some(session)),
            Track::Drop(reason) => self.drop(snapshot, io, packet, entry.ingress, reason),
        }
    }

    /// No session, or none that can answer: the packet is judged.
    #[cold]
    #[inline(never)]
    fn miss(
        &mut self,
        snapshot: &Snapshot,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        session: Option<SessionRef<'_>>,
    ) {
        self.counters.misses.add(1);
        let parsed = &entry.parsed;
        if let Ingress::Port(index) = entry.ingress {
            let Some(port) = snapshot.port(index) else {
                return self.drop(snapshot, io, packet, entry.ingress, DropReason::PortDown);
            };
            match self.at_port(snapshot, io, (index, port), &mut packet, entry) {
                Ok(true) => return io.send(Destination::Port(index), packet),
                Ok(false) => {}
                Err(reason) => return self.drop(snapshot, io, packet, entry.ingress, reason),
            }
        } else {
            match self.neighbor(snapshot, io, &mut packet, entry) {
                Ok(true) => return self.answer_peer(snapshot, io, packet, entry),
                Ok(false) => {}
                Err(reason) => return self.drop(snapshot, io, packet, entry.ingress, reason),
            }
        }
        if parsed.eth_dst.is_group() {
            return self.flood(snapshot, io, packet, entry);
        }
        if guard::is_group(parsed.flow.destination) {
            return self.drop(snapshot, io, packet, entry.ingress, DropReason::Martian);
        }
        match parsed.fragment {
            Some(fragment) if fragment.offset == 0 => {
                self.first_fragment(snapshot, io, packet, entry, session)
            }
            Some(fragment) => {
                let origin = (entry.ingress, snapshot.vpcs[entry.vpc].vni);
                let later =
                    self.fragments()
                        .later(origin, &parsed.flow, fragment, packet, self.now);
                match later {
                    Later::Flow(packet, ports) => {
                        self.later_fragment(snapshot, io, packet, entry, ports)
                    }
                    Later::Waits => {}
                    Later::Drop(packet, reason) => {
                        self.drop(snapshot, io, packet, entry.ingress, reason)
                    }
                }
            }
            None => match self.decide(snapshot, packet.bytes(io), entry, session) {
                Ok(action) => self.execute(snapshot, io, packet, entry, &action),
                Err(reason) => self.drop(snapshot, io, packet, entry.ingress, reason),
            },
        }
    }

    /// What concerns the sending port alone: spoofing, and what the gateway answers itself. True: the packet has become the answer.
    fn at_port(
        &mut self,
        snapshot: &Snapshot,
        io: &mut impl Io,
        sender: (u16, &Port),
        packet: &mut Packet,
        entry: &Entry,
    ) -> Result<bool, DropReason> {
        let (index, port) = sender;
        let parsed = &entry.parsed;
        if guard::is_rogue_server(parsed) {
            return Err(DropReason::RogueServer);
        }
        if self.neighbor(snapshot, io, packet, entry)? {
            return self.may_reply(index);
        }
        guard::check(port, parsed)?;
        if local::is_for_gateway(snapshot, port.vpc, &parsed.flow) {
            local::ping(packet.bytes_mut(io), parsed)?;
            return self.may_reply(index);
        }
        Ok(false)
    }

    fn may_reply(&mut self, port: u16) -> Result<bool, DropReason> {
        if self.replies.take(port, self.now) {
            Ok(true)
        } else {
            Err(DropReason::ReplyLimit)
        }
    }

    /// Neighbour discovery. True: the packet has become the answer.
    fn neighbor(
        &self,
        snapshot: &Snapshot,
        io: &mut impl Io,
        packet: &mut Packet,
        entry: &Entry,
    ) -> Result<bool, DropReason> {
        let parsed = &entry.parsed;
        if parsed.family != Family::Ipv6
            || parsed.flow.protocol != protocol::ICMPV6
            || !(133..=137).contains(&(parsed.icmp >> 8))
        {
            return Ok(false);
        }
        let asker = match entry.ingress {
            Ingress::Port(index) => {
                local::Asker::Port(index, snapshot.port(index).ok_or(DropReason::PortDown)?)
            }
            Ingress::Peer(peer) => local::Asker::Peer(peer, entry.vpc),
        };
        // The answer may be longer than the question by an option.
        let (room, needed) = (
            io.bytes(&packet.frame).len() - usize::from(packet.start),
            parsed.l4 + 32,
        );
        if room < usize::from(needed) {
            return Err(DropReason::NeighborMalformed);
        }
        packet.len = packet.len.max(needed);
        match local::neighbor(snapshot, asker, packet.bytes_mut(io), parsed)? {
            local::Neighbor::Reply(len) => {
                packet.len = len;
                Ok(true)
            }
            local::Neighbor::NotMine => Ok(false),
        }
    }

    /// Sends an answer of the gateway back to the peer that asked.
    fn answer_peer(
        &mut self,
        snapshot: &Snapshot,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
    ) {
        let Ingress::Peer(peer) = entry.ingress else {
            return io.free(packet.frame);
        };
        let tunnel = snapshot
            .peer(peer)
            .and_then(|peer| peer.tunnel(entry.key.hash));
        match tunnel {
            Some(tunnel) => self.encapsulate(snapshot, io, packet, entry, tunnel),
            None => self.drop(
                snapshot,
                io,
                packet,
                entry.ingress,
                DropReason::UnderlayUnresolved,
            ),
        }
    }

    /// Packets that are not plain IP, and those that have to be dropped: looks again, for the reason.
    #[cold]
    #[inline(never)]
    fn aside(&mut self, snapshot: &Snapshot, io: &mut impl Io, source: Source, mut packet: Packet) {
        let result = match source {
            Source::Port(index) => self.aside_from_port(snapshot, io, index, &mut packet),
            Source::Uplink(_) => self.aside_from_uplink(snapshot, io, &mut packet),
        };
        match (result, source) {
            (Ok(to), _) => io.send(to, packet),
            (Err(reason), source) => {
                match source {
                    Source::Port(index) => self.counters.port(index).drop(reason),
                    Source::Uplink(index) => self.counters.uplink(index).drop(reason),
                }
                io.free(packet.frame);
            }
        }
    }

    fn aside_from_port(
        &mut self,
        snapshot: &Snapshot,
        io: &mut impl Io,
        index: u16,
        packet: &mut Packet,
    ) -> Result<Destination, DropReason> {
        let port = snapshot.port(index).ok_or(DropReason::PortDown)?;
        match parse::inner(packet.bytes(io))? {
            Inner::Arp => local::arp(
                snapshot,
                local::Asker::Port(index, port),
                packet.bytes_mut(io),
            )?,
            Inner::Ip(_) => return Err(DropReason::PortDown),
        }
        self.may_reply(index)?;
        Ok(Destination::Port(index))
    }

    fn aside_from_uplink(
        &mut self,
        snapshot: &Snapshot,
        io: &mut impl Io,
        packet: &mut Packet,
    ) -> Result<Destination, DropReason> {
        let (outer, peer, vpc) = check_outer(snapshot, packet.bytes(io))?;
        let (inner, end) = (usize::from(outer.inner), usize::from(outer.end));
        match parse::inner(&packet.bytes(io)[inner..end])? {
            Inner::Arp => {}
            Inner::Ip(_) => return Err(DropReason::OuterHeader),
        }
        packet.start += outer.inner;
        packet.len = outer.end - outer.inner;
        local::arp(
            snapshot,
            local::Asker::Peer(peer, vpc),
            packet.bytes_mut(io),
        )?;
        let tunnel = snapshot
            .peer(peer)
            .and_then(|peer| peer.tunnel(0))
            .ok_or(DropReason::UnderlayUnresolved)?;
        if tunnel.template.push(io, packet, outer.vni, 0, 0) {
            Ok(Destination::Uplink(tunnel.uplink))
        } else {
            Err(DropReason::NoBuffer)
        }
    }

    fn first_fragment(
        &mut self,
        snapshot: &Snapshot,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        session: Option<SessionRef<'_>>,
    ) {
        let Some(fragment) = entry.parsed.fragment else {
            return io.free(packet.frame);
        };
        let (origin, flow) = (
            (entry.ingress, snapshot.vpcs[entry.vpc].vni),
            entry.parsed.flow,
        );
        let placed = self.fragments().first(origin, &flow, fragment, self.now);
        if let Err(reason) = placed {
            return self.drop(snapshot, io, packet, entry.ingress, reason);
        }
        let verdict = self.decide(snapshot, packet.bytes(io), entry, session);
        let waiting = self
            .fragments()
            .judged(origin, &flow, fragment, verdict.map(|_| ()));
        match verdict {
            Ok(action) => self.execute(snapshot, io, packet, entry, &action),
            Err(reason) => self.drop(snapshot, io, packet, entry.ingress, reason),
        }
        for packet in waiting {
            // What waited was parsed when it came; it parses again.
            if let Ok(Inner::Ip(parsed)) = parse::inner(packet.bytes(io)) {
                let again = Entry { parsed, ..*entry };
                self.miss(snapshot, io, packet, &again, None);
            } else {
                self.drop(
                    snapshot,
                    io,
                    packet,
                    entry.ingress,
                    DropReason::FragmentOrphan,
                );
            }
        }
    }

    fn later_fragment(
        &mut self,
        snapshot: &Snapshot,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        ports: (u16, u16),
    ) {
        let mut entry = *entry;
        (
            entry.parsed.flow.source_port,
            entry.parsed.flow.destination_port,
        ) = ports;
        entry.key = Key::new(
            self.shared.sessions.seeds(),
            &entry.parsed.flow,
            snapshot.vpcs[entry.vpc].vni,
        );
        let sessions = Arc::clone(&self.shared.sessions);
        let session = sessions.find(&entry.key);
        let standing = match &session {
            Some(session) if !session.from_origin() => Standing::Backward,
            // The session of its first fragment is gone, and so is its leave to pass.
            None => {
                return self.drop(
                    snapshot,
                    io,
                    packet,
                    entry.ingress,
                    DropReason::FragmentOrphan,
                );
            }
            Some(_) => Standing::Forward,
        };
        if let Some(icmp) = fragment_icmp(&entry.parsed, standing) {
            entry.parsed.icmp = icmp;
        }
        let case = Case {
            parsed: &entry.parsed,
            ingress: entry.ingress,
            vpc: entry.vpc,
            standing,
        };
        match judge::judge(snapshot, &case, &mut Silent) {
            Ok(action) => self.execute(snapshot, io, packet, &entry, &action),
            Err(reason) => self.drop(snapshot, io, packet, entry.ingress, reason),
        }
    }

    /// Judges a packet and keeps the judgement in its session; a packet that opens a flow gets one.
    fn decide(
        &mut self,
        snapshot: &Snapshot,
        frame: &[u8],
        entry: &Entry,
        session: Option<SessionRef<'_>>,
    ) -> Result<Action, DropReason> {
        let parsed = &entry.parsed;
        if is_icmp_error(parsed) {
            return self.related(snapshot, frame, entry);
        }
        let sessions = Arc::clone(&self.shared.sessions);
        let mut session = session;
        if let Some(known) = &session {
            match track(known, parsed, frame) {
                Track::Pass => {}
                Track::Reopen => {
                    sessions.remove(known);
                    session = None;
                }
                Track::Drop(reason) => return Err(reason),
            }
        }
        let standing = if session.is_none_or(|known| known.from_origin()) {
            Standing::Forward
        } else {
            Standing::Backward
        };
        let opening = if session.is_none() {
            Some(opening(parsed, frame)?)
        } else {
            None
        };
        let case = Case {
            parsed,
            ingress: entry.ingress,
            vpc: entry.vpc,
            standing,
        };
        let action = match judge::judge(snapshot, &case, &mut Silent) {
            Ok(action) => action,
            Err(reason) => {
                // What no longer stands before the groups is forgotten, both ways.
                if let (DropReason::GroupDenied, Some(known)) = (reason, &session) {
                    sessions.remove(known);
                }
                return Err(reason);
            }
        };
        let known = match (session, opening) {
            (Some(known), _) => known,
            (None, Some((state, tcp))) => {
                let port = match (entry.ingress, action.egress) {
                    (Ingress::Port(port), _) | (_, Egress::Port(port)) => port,
                    _ => return Err(DropReason::HairpinTunnel),
                };
                let new = NewSession {
                    state,
                    port,
                    vpc: snapshot.vpcs[entry.vpc].index,
                    now: self.now,
                    tcp,
                };
                sessions
                    .insert(&entry.key, &new)
                    .map_err(|error| match error {
                        InsertError::Full => DropReason::SessionTableFull,
                        InsertError::PortBudget => DropReason::SessionPortBudget,
                        InsertError::VpcBudget => DropReason::SessionVpcBudget,
                    })?
            }
            (None, None) => return Err(DropReason::TcpInvalid),
        };
        known.touch(self.now);
        known.set_action(snapshot.generation, entry.ingress, &action);
        Ok(action)
    }

    /// An ICMP error: passes if it quotes a packet of a session and goes to that packet's sender.
    fn related(
        &self,
        snapshot: &Snapshot,
        frame: &[u8],
        entry: &Entry,
    ) -> Result<Action, DropReason> {
        let parsed = &entry.parsed;
        let quote = frame
            .get(usize::from(parsed.l4) + 8..usize::from(parsed.end))
            .unwrap_or_default();
        let quoted = parse::quoted(parsed.family, quote)
            .filter(|quoted| quoted.source == parsed.flow.destination);
        let sessions = &self.shared.sessions;
        quoted
            .and_then(|quoted| {
                sessions.find(&Key::new(
                    sessions.seeds(),
                    &quoted,
                    snapshot.vpcs[entry.vpc].vni,
                ))
            })
            .ok_or(DropReason::IcmpUnrelated)?;
        let case = Case {
            parsed,
            ingress: entry.ingress,
            vpc: entry.vpc,
            standing: Standing::Related,
        };
        judge::judge(snapshot, &case, &mut Silent)
    }

    /// Does what was decided: the hot path's last stage.
    #[inline]
    fn execute(
        &mut self,
        snapshot: &Snapshot,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        action: &Action,
    ) {
        let parsed = &entry.parsed;
        if action.rewrite.is_some() && parsed.ttl <= 1 {
            return self.report(snapshot, io, packet, entry, Problem::TimeExceeded);
        }
        let tunnel = match action.egress {
            Egress::Port(_) => None,
            Egress::Peer(peer) => {
                let Some(tunnel) = snapshot
                    .peer(peer)
                    .and_then(|peer| peer.tunnel(entry.key.hash))
                else {
                    return self.drop(
                        snapshot,
                        io,
                        packet,
                        entry.ingress,
                        DropReason::UnderlayUnresolved,
                    );
                };
                Some(tunnel)
            }
        };
        if let Some(tunnel) = tunnel.filter(|tunnel| parsed.ip_len() > tunnel.inner_mtu) {
            if !parsed.dont_fragment && self.fragment {
                return self.split(snapshot, io, packet, entry, action, tunnel);
            }
            return self.report(
                snapshot,
                io,
                packet,
                entry,
                Problem::TooBig(tunnel.inner_mtu),
            );
        }
        let frame = packet.bytes_mut(io);
        if let Some((destination, source)) = action.rewrite {
            rewrite::macs(frame, destination, source);
            rewrite::decrement_ttl(frame, parsed);
        }
        if let Some(class) = entry.outer_class {
            if let Err(reason) = rewrite::propagate_congestion(frame, parsed, class) {
                return self.drop(snapshot, io, packet, entry.ingress, reason);
            }
        }
        if parsed.tcp_flags & tcp_flags::SYN != 0 {
            self.clamp(snapshot, frame, entry, action, tunnel);
        }
        match (action.egress, tunnel) {
            (_, Some(tunnel)) => self.encapsulate(snapshot, io, packet, entry, tunnel),
            (Egress::Port(index), None) => io.send(Destination::Port(index), packet),
            (Egress::Peer(_), None) => self.drop(
                snapshot,
                io,
                packet,
                entry.ingress,
                DropReason::UnderlayUnresolved,
            ),
        }
    }

    #[inline]
    fn encapsulate(
        &self,
        snapshot: &Snapshot,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        tunnel: &Tunnel,
    ) {
        let vni = snapshot.vpcs[entry.vpc].vni;
        // Entropy from bits of the hash that the choice of the tunnel does not use.
        let entropy = (entry.key.hash >> 32) as u16;
        if tunnel
            .template
            .push(io, &mut packet, vni, entry.parsed.traffic_class, entropy)
        {
            io.send(Destination::Uplink(tunnel.uplink), packet);
        } else {
            self.drop(snapshot, io, packet, entry.ingress, DropReason::NoBuffer);
        }
    }

    /// MSS clamping of a SYN, where either end of it on this host asks for it.
    #[cold]
    fn clamp(
        &self,
        snapshot: &Snapshot,
        frame: &mut [u8],
        entry: &Entry,
        action: &Action,
        tunnel: Option<&Tunnel>,
    ) {
        let asks = |index: u16| snapshot.port(index).is_some_and(|port| port.clamp_mss);
        let sender = matches!(entry.ingress, Ingress::Port(index) if asks(index));
        let receiver = matches!(action.egress, Egress::Port(index) if asks(index));
        let way = match entry.ingress {
            Ingress::Port(_) => tunnel,
            Ingress::Peer(peer) => snapshot
                .peer(peer)
                .and_then(|peer| peer.tunnel(entry.key.hash)),
        };
        if let (true, Some(tunnel)) = (sender || receiver, way) {
            rewrite::clamp_mss(frame, &entry.parsed, tunnel.inner_mtu);
        }
    }

    /// Sends the ICMP error that is owed to a port, in place of the packet; drops the packet if none may be sent.
    #[cold]
    #[inline(never)]
    fn report(
        &mut self,
        snapshot: &Snapshot,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        problem: Problem,
    ) {
        let reason = match problem {
            Problem::TimeExceeded => DropReason::TtlExceeded,
            Problem::TooBig(_) => DropReason::TooBig,
        };
        let Ingress::Port(index) = entry.ingress else {
            return self.drop(snapshot, io, packet, entry.ingress, reason);
        };
        let gateway = snapshot.port(index).and_then(|port| {
            let subnet = &snapshot.subnets[port.subnet];
            Some((subnet.gateway_mac, subnet.gateway(entry.parsed.family)?))
        });
        let Some(gateway) = gateway.filter(|_| icmp_error::may_report(&entry.parsed)) else {
            return self.drop(snapshot, io, packet, entry.ingress, reason);
        };
        if !self.errors.take(index, self.now) {
            return self.drop(snapshot, io, packet, entry.ingress, DropReason::ReplyLimit);
        }
        if icmp_error::turn(io, &mut packet, &entry.parsed, gateway, problem) {
            // The packet is dropped; the error is a new one.
            self.counters.port(index).drop(reason);
            self.counters.port(index).generated.add(1);
            io.send(Destination::Port(index), packet);
        } else {
            self.drop(snapshot, io, packet, entry.ingress, reason);
        }
    }

    /// Fragments an IPv4 packet that the tunnel can't carry whole, and sends the pieces.
    #[cold]
    #[inline(never)]
    fn split(
        &mut self,
        snapshot: &Snapshot,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        action: &Action,
        tunnel: &Tunnel,
    ) {
        let frame = packet.bytes_mut(io);
        if let Some((destination, source)) = action.rewrite {
            rewrite::macs(frame, destination, source);
            rewrite::decrement_ttl(frame, &entry.parsed);
        }
        match split::split(io, &packet, &entry.parsed, tunnel.inner_mtu) {
            Ok(pieces) => {
                let traffic = self.traffic(snapshot, entry.ingress);
                traffic.generated.add(pieces.len() as u64 - 1);
                io.free(packet.frame);
                for piece in pieces {
                    self.encapsulate(snapshot, io, piece, entry, tunnel);
                }
            }
            Err(reason) => self.drop(snapshot, io, packet, entry.ingress, reason),
        }
    }

    /// Copies a packet to everybody in its subnet who may have it.
    #[cold]
    #[inline(never)]
    fn flood(&mut self, snapshot: &Snapshot, io: &mut impl Io, packet: Packet, entry: &Entry) {
        if let Ingress::Port(index) = entry.ingress {
            if !self.broadcasts.take(index, self.now) {
                return self.drop(
                    snapshot,
                    io,
                    packet,
                    entry.ingress,
                    DropReason::BroadcastLimit,
                );
            }
        }
        let receivers = flood::receivers(snapshot, entry.ingress, entry.vpc, &entry.parsed);
        let ways = receivers
            .peers
            .iter()
            .filter_map(|peer| snapshot.peer(*peer)?.tunnel(entry.key.hash));
        let copies = receivers.ports.len() + ways.clone().count();
        let traffic = self.traffic(snapshot, entry.ingress);
        if copies == 0 {
            return self.drop(snapshot, io, packet, entry.ingress, DropReason::NoReceiver);
        }
        traffic.generated.add(copies as u64 - 1);
        let copy = |io: &mut _| {
            let copy = split::copy(io, &packet);
            if copy.is_none() {
                traffic.drop(DropReason::NoBuffer);
            }
            copy
        };
        for port in &receivers.ports {
            if let Some(copy) = copy(io) {
                io.send(Destination::Port(*port), copy);
            }
        }
        for tunnel in ways {
            if let Some(copy) = copy(io) {
                if entry.parsed.ip_len() > tunnel.inner_mtu {
                    self.drop(snapshot, io, copy, entry.ingress, DropReason::TooBig);
                } else {
                    self.encapsulate(snapshot, io, copy, entry, tunnel);
                }
            }
        }
        io.free(packet.frame);
    }
}

/// Outer checks: well-formed, to us, from a known VTEP, for a known VPC. Answers the peer's index and the VPC's place too.
#[inline]
fn check_outer(
    snapshot: &Snapshot,
    frame: &[u8],
) -> Result<(decap::Outer, u16, usize), DropReason> {
    let outer = decap::outer(frame)?;
    if !snapshot.vteps.contains(&outer.destination) {
        return Err(DropReason::NotOurVtep);
    }
    let peer = snapshot
        .peer_by_vtep
        .get(&outer.source)
        .ok_or(DropReason::UnknownVtep)?;
    let vpc = snapshot
        .vpc_by_vni
        .get(&outer.vni)
        .ok_or(DropReason::UnknownVni)?;
    Ok((outer, *peer, *vpc))
}

/// What following a session says of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Track {
    Pass,
    Reopen,
    Drop(DropReason),
}

/// Follows a session with a packet of it.
#[inline]
fn track(session: &SessionRef<'_>, parsed: &Parsed, frame: &[u8]) -> Track {
    let state = session.state();
    if parsed.flow.protocol != protocol::TCP || parsed.is_later_fragment() {
        if state == State::OneWay && !session.from_origin() {
            session.set_state(State::BothWays);
        }
        return Track::Pass;
    }
    let l4 = usize::from(parsed.l4);
    let Some(segment) = frame
        .get(l4..)
        .and_then(|header| Segment::read(header, parsed.end - parsed.l4))
    else {
        return Track::Drop(DropReason::TransportHeader);
    };
    let (mut sender, mut receiver) = session.tcp();
    let quiet = segment.flags & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST) == 0;
    if quiet
        && matches!(
            state,
            State::TcpEstablished | State::TcpFinOrigin | State::TcpFinReply
        )
    {
        if !tcp::window(&segment, &mut sender, &mut receiver) {
            return Track::Drop(DropReason::TcpWindow);
        }
        session.set_tcp(sender, receiver);
        return Track::Pass;
    }
    match tcp::step(
        state,
        session.from_origin(),
        &segment,
        &mut sender,
        &mut receiver,
    ) {
        Step::Pass(next) => {
            session.set_tcp(sender, receiver);
            if next != state {
                session.set_state(next);
            }
            Track::Pass
        }
        Step::Reopen => Track::Reopen,
        Step::Invalid => Track::Drop(DropReason::TcpInvalid),
        Step::OutOfWindow => Track::Drop(DropReason::TcpWindow),
    }
}

/// The state and windows that a flow opened by this packet begins with.
fn opening(parsed: &Parsed, frame: &[u8]) -> Result<(State, (Side, Side)), DropReason> {
    let kind = (parsed.icmp >> 8) as u8;
    match (parsed.flow.protocol, parsed.family) {
        (protocol::TCP, _) => {
            let header = frame
                .get(usize::from(parsed.l4)..)
                .ok_or(DropReason::TransportHeader)?;
            let segment =
                Segment::read(header, parsed.end - parsed.l4).ok_or(DropReason::TransportHeader)?;
            let state = tcp::begin(&segment).ok_or(DropReason::TcpInvalid)?;
            let (mut opener, mut other) = (Side::default(), Side::default());
            tcp::first(&segment, &mut opener, &mut other);
            Ok((state, (opener, other)))
        }
        // An answer to nothing that was asked opens nothing.
        (protocol::ICMP, Family::Ipv4) if matches!(kind, 0 | 14 | 16 | 18) => {
            Err(DropReason::IcmpUnrelated)
        }
        (protocol::ICMPV6, Family::Ipv6) if kind == 129 => Err(DropReason::IcmpUnrelated),
        (protocol::ICMP, Family::Ipv4) | (protocol::ICMPV6, Family::Ipv6) => {
            Ok((State::IcmpQuery, Default::default()))
        }
        _ => Ok((State::OneWay, Default::default())),
    }
}

/// Type and code of the ICMP message whose later fragment this is, from the ports of its first.
fn fragment_icmp(parsed: &Parsed, standing: Standing) -> Option<u16> {
    let query = parsed.flow.destination_port;
    match (parsed.family, parsed.flow.protocol, standing) {
        (Family::Ipv4, protocol::ICMP, Standing::Forward)
        | (Family::Ipv6, protocol::ICMPV6, Standing::Forward) => Some(query),
        (Family::Ipv4, protocol::ICMP, _) => Some(0),
        (Family::Ipv6, protocol::ICMPV6, _) => Some(129 << 8),
        _ => None,
    }
}
