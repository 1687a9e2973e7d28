//! Gateway hosts of one external network stand in for each other (services, "Gateways stand on more than one host").
//!
//! They probe each other (`probes`), and the one in use tells the others of its sessions with the outside: at once of a new one, and again and again of all,
//! so that what was lost on the way is made up for within seconds, and what is not told of any more ages. A host that takes over has the sessions and the
//! mappings, and goes on; TCP numbers it learns from the next segments, as after its own restart (decision 007).
//!
//! Wire format: a UDP datagram from daemon to daemon in the tunnel, outside of every VPC (VNI 0), to port [`PORT`]. A head of 8 bytes: "weft", the version (1), the
//! kind (1: sessions, 2: all have been told of), the number of records, 0. A record of 84 bytes: protocol, state, whether a mapping is used, 0; the VNI on the
//! opener's side and on the other, one of which is 0; the flow on either side: source, destination, source port, destination port. Big endian.

use std::sync::Arc;

use super::probes::{self, FRAME};
use super::{Core, Destination, Io, Tables, balancing, ip_fragment, nat64};
use crate::encap::decap;
use crate::numbers::Vni;
use crate::packet::{DropReason, Family, Flow, Packet};
use crate::session::mappings::{Inside, Outside as OutsidePort};
use crate::session::table::{NewSession, SessionRef, SessionView};
use crate::session::tcp::Side;
use crate::session::{Key, State, Translation};
use crate::snapshot::{Fellows, Translator};

/// UDP port of what gateway hosts tell each other.
const PORT: u16 = 7473;
const HEAD: usize = 8;
const RECORD: usize = 84;
/// Records in one datagram: with the outer headers it fits in 1500 bytes.
const RECORDS: usize = 15;
/// Slots of the session table that are gone over ten times a second: all of a million in five seconds.
const SLOTS: usize = 20_000;
/// Of those, how many at a time: what is to be told of them fits in the buffer.
const STEP: usize = 1000;
/// Sessions that may wait to be told of; those beyond are told of when it is their turn.
const WAITING: usize = 1024;

/// A session with the outside, as gateway hosts tell each other of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    state: State,
    is_mapped: bool,
    /// VNI and flow on the opener's side.
    first: (Vni, Flow),
    /// On the other side.
    second: (Vni, Flow),
}

impl Told {
    /// None: the session is of no gateway.
    fn new(state: State, is_mapped: bool, first: (Vni, Flow), second: (Vni, Flow)) -> Option<Self> {
        let is_outside = |(vni, _): &(Vni, Flow)| *vni == Vni::OUTSIDE;
        (is_outside(&first) != is_outside(&second)).then_some(Self {
            state,
            is_mapped,
            first,
            second,
        })
    }

    fn of(view: &SessionView) -> Option<Self> {
        let first = (view.vni, view.flow);
        Self::new(view.state, view.mapping.is_some(), first, view.translated?)
    }

    /// The outside address that this host's network holds.
    fn held(&self) -> u128 {
        if self.first.0 == Vni::OUTSIDE {
            self.first.1.destination
        } else {
            self.second.1.source
        }
    }

    fn write(&self, record: &mut [u8; RECORD]) {
        record[0] = self.first.1.protocol;
        record[1] = self.state as u8;
        record[2] = self.is_mapped.into();
        record[4..8].copy_from_slice(&self.first.0.get().to_be_bytes());
        record[8..12].copy_from_slice(&self.second.0.get().to_be_bytes());
        for (at, (_, flow)) in [(12, &self.first), (48, &self.second)] {
            record[at..at + 16].copy_from_slice(&flow.source.to_be_bytes());
            record[at + 16..at + 32].copy_from_slice(&flow.destination.to_be_bytes());
            record[at + 32..at + 34].copy_from_slice(&flow.source_port.to_be_bytes());
            record[at + 34..at + 36].copy_from_slice(&flow.destination_port.to_be_bytes());
        }
    }

    fn read(record: &[u8; RECORD]) -> Option<Self> {
        let word = |at: usize| {
            u32::from_be_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
        };
        let port = |at: usize| u16::from_be_bytes([record[at], record[at + 1]]);
        let address = |at: usize| u128::from_be_bytes(std::array::from_fn(|i| record[at + i]));
        let flow = |at: usize| Flow {
            source: address(at),
            destination: address(at + 16),
            source_port: port(at + 32),
            destination_port: port(at + 34),
            protocol: record[0],
        };
        let state = *State::ALL.get(usize::from(record[1]))?;
        let vni = |at: usize| Some(word(at)).filter(|vni| *vni < 1 << 24).map(Vni::from);
        let (first, mut second) = ((vni(4)?, flow(12)), (vni(8)?, flow(48)));
        let is_mixed = |flow: &Flow| flow.reversed().family() != flow.family();
        if is_mixed(&first.1) || is_mixed(&second.1) {
            return None;
        }
        let (here, there) = (first.1.family(), second.1.family());
        if here != there {
            // NAT64: IPv6 inside, IPv4 outside.
            let inside = if first.0 == Vni::OUTSIDE { there } else { here };
            if inside != Family::Ipv6 {
                return None;
            }
            second.1.protocol = nat64::protocol_in(there, second.1.protocol);
        }
        Self::new(state, record[2] == 1, first, second)
    }
}

/// What a worker keeps for it.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// New sessions that are to be told of.
    pub(super) new: Vec<Told>,
    /// Room for those of one datagram; empty between them.
    batch: Vec<Told>,
    /// Where the walk over all sessions is.
    place: usize,
    /// Networks that this host was the gateway of, by index.
    served: Vec<u16>,
    /// Room for those that it is the gateway of now.
    serves: Vec<u16>,
    /// Who there is to tell, as of the snapshot.
    fellows: Fellows,
    /// Whether there is anybody.
    pub(super) is_wanted: bool,
}

impl Telling {
    /// Tells others from now on.
    pub(super) fn set_fellows(&mut self, fellows: Fellows) {
        self.is_wanted = !fellows.all.is_empty();
        self.fellows = fellows;
        if self.is_wanted {
            // As much as there ever is: packets shall not wait for memory.
            self.new
                .reserve((WAITING + STEP).saturating_sub(self.new.len()));
            self.batch.reserve(RECORDS);
        }
    }

    /// Tells of a session soon: it is new, or its state is.
    #[cold]
    pub(super) fn note(&mut self, session: &SessionRef<'_>, now: u32) {
        if self.new.len() < WAITING
            && let Some(view) = session.view(now)
        {
            self.new.extend(Told::of(&view));
        }
    }
}

impl Core {
    /// A frame for this host's daemon, from a peer's: a probe, or what the other gateway hosts know.
    pub(super) fn take_from_fellow(
        &mut self,
        tables: Tables<'_>,
        peer: u16,
        frame: &[u8],
    ) -> Result<(), DropReason> {
        let read = match probes::payload(frame) {
            Some((port, payload)) if probes::is_probe(port) => {
                self.probes.receive(peer, payload, self.now)
            }
            Some((PORT, payload)) if tables.snapshot.outside.fellows().all.contains(&peer) => {
                self.told(tables, peer, payload)
            }
            _ => None,
        };
        read.ok_or(DropReason::FellowMalformed)
    }

    fn told(&mut self, tables: Tables<'_>, peer: u16, payload: &[u8]) -> Option<()> {
        let (head, records) = payload.split_first_chunk::<HEAD>()?;
        if head[..5] != *b"weft\x01" {
            return None;
        }
        match head[5] {
            1 => {
                let records = records.get(..usize::from(head[6]) * RECORD)?;
                for record in records.chunks_exact(RECORD) {
                    let told = Told::read(record.first_chunk()?)?;
                    self.adopt(tables, peer, &told);
                }
            }
            2 => self.probes.turn(peer),
            _ => return None,
        }
        Some(())
    }

    /// Keeps a session that another gateway host has, if that may have it.
    fn adopt(&self, tables: Tables<'_>, peer: u16, told: &Told) -> Option<()> {
        let outside = &tables.snapshot.outside;
        let held = told.held();
        let routed = outside.routed(held);
        let network = match routed {
            Some(routed) => outside.network(routed.network)?,
            None => {
                let mut networks = outside.networks.iter().flatten();
                networks.find(|network| network.holds(held))?
            }
        };
        let mut gateways = network.other_gateways();
        let is_gateway = gateways.any(|gateway| gateway == peer);
        let vni = if told.first.0 == Vni::OUTSIDE {
            told.second.0
        } else {
            told.first.0
        };
        let vpc = *tables.snapshot.vpc_by_vni.get(&vni)?;
        if !is_gateway {
            return None;
        }
        let (first, second) = (&told.first, &told.second);
        let [key, second_key] =
            [first, second].map(|(vni, flow)| Key::new(tables.sessions.seeds(), flow, *vni));
        let found = [&key, &second_key].map(|key| tables.sessions.find(key));
        if found.iter().any(Option::is_some) && outside.owner(held).is_some() {
            // What is seen here is newer than what is told.
            return None;
        }
        let [by_first, by_second] = found;
        if let (Some(session), Some(other)) = (by_first, by_second)
            && session.is_same(&other)
            && session.is_on_first_side()
            && session.translation().is_some()
        {
            if session.state() != told.state {
                session.set_state(told.state);
            }
            session.touch(self.now);
            return Some(());
        }
        // A port of this host has a session with one key, which sends by the other gateway host of a NAT gateway: it gets its outside.
        let stands_by = outside.stands_by_for(held);
        let mut others = found.into_iter().flatten();
        let own = others.find(|session| stands_by && !session.is_translated());
        // The host in use has the told one in place of what has either of its keys here: of a connection that is over, or one that goes to another member now.
        for session in found.into_iter().flatten() {
            if session.is_translated() {
                tables.sessions.remove(&session);
            }
        }
        let mapping = if told.is_mapped {
            let (gateway, pool) = outside.pools.get(&held)?;
            // As the outside knows it.
            let (opener, protocol) = (&first.1, second.1.protocol);
            let inside = Inside::new(*gateway, protocol, opener.source, opener.source_port);
            let port = OutsidePort::new(protocol, held, second.1.source_port);
            let mapping = tables.sessions.mappings().adopt(&inside, port, pool.number);
            Some(mapping?.number)
        } else {
            None
        };
        // Only to what comes from outside has a gateway host chosen a member.
        let member = (first.0 == Vni::OUTSIDE)
            .then(|| balancing::counter(&tables.snapshot.vpcs[vpc], &first.1, &second.1))
            .flatten();
        let mut new = NewSession {
            state: told.state,
            port: u16::MAX,
            vpc: tables.snapshot.vpcs[vpc].index,
            now: self.now,
            tcp: (Side::unknown(), Side::unknown()),
            action: None,
            translation: Some(Translation::new(&first.1, &second.1, second.0)),
            mapping,
            chosen: None,
            member,
        };
        if let Some(own) = own {
            (new.port, new.tcp) = (own.port(), own.whole_tcp());
            if own.from_origin() {
                new.state = own.state();
            }
        }
        // One with one key is a port's own, and stays where nothing can take its place.
        for session in found.into_iter().flatten() {
            tables.sessions.remove(&session);
        }
        tables.sessions.insert(&key, &new).ok().map(|_| ())
    }

    /// Sends probes, and tells the other gateway hosts of sessions. Ten times a second, by one worker.
    pub(super) fn tend_gateways(&mut self, tables: Tables<'_>, io: &mut impl Io) {
        if tables.snapshot.generation == 0 {
            // Nothing is known yet.
            return;
        }
        let outside = &tables.snapshot.outside;
        let fellows = std::mem::take(&mut self.telling.fellows);
        let probes = Arc::clone(&self.probes);
        probes.tick(self.now, outside.probed(), &fellows, |peer, control| {
            self.send_to_peer(tables, io, peer, &probes::frame(&control));
        });
        let networks = (0u16..).zip(&outside.networks);
        let mut serves = std::mem::take(&mut self.telling.serves);
        serves.clear();
        serves.extend(networks.filter_map(|(index, network)| {
            (network.as_ref()?.gateway == Translator::Here).then_some(index)
        }));
        let served = self.telling.served.iter().copied();
        // Empty, and so without memory, but for the moment when the gateway changes.
        let lost: Vec<u16> = served.filter(|index| !serves.contains(index)).collect();
        if !lost.is_empty() {
            let routed = |address| outside.routed(address).map(|routed| routed.network);
            tables.sessions.forget_outside_numbers(|address| {
                let mut networks = lost.iter().filter_map(|index| outside.network(*index));
                networks.any(|network| network.holds(address))
                    || routed(address).is_some_and(|network| lost.contains(&network))
            });
        }
        self.telling.serves = std::mem::replace(&mut self.telling.served, serves);
        if !fellows.all.is_empty() {
            self.tell_by_turns(tables, io);
            // Also where this host serves nothing: the others do not know that, and wait for what it may have to tell.
            if self.telling.place == 0 {
                for peer in &fellows.all {
                    self.send_told(tables, io, *peer, 2, &[]);
                }
            }
        }
        self.telling.fellows = fellows;
    }

    /// Tells of the new sessions, and of those in some more slots of the table.
    fn tell_by_turns(&mut self, tables: Tables<'_>, io: &mut impl Io) {
        let mut all = std::mem::take(&mut self.telling.new);
        for _ in 0..SLOTS / STEP {
            let place = self.telling.place;
            let walk = |view: &SessionView| all.extend(Told::of(view));
            self.telling.place = tables.sessions.walk_translated(place, STEP, self.now, walk);
            if all.len() >= WAITING {
                self.tell(tables, io, &all);
                all.clear();
            }
            if self.telling.place == 0 {
                break;
            }
        }
        self.tell(tables, io, &all);
        all.clear();
        self.telling.new = all;
    }

    /// Tells of new sessions now.
    #[cold]
    pub(super) fn tell_new(&mut self, tables: Tables<'_>, io: &mut impl Io) {
        let mut new = std::mem::take(&mut self.telling.new);
        self.tell(tables, io, &new);
        new.clear();
        self.telling.new = new;
    }

    /// Tells the other gateway hosts of a network of the sessions of addresses that this host holds.
    fn tell(&mut self, tables: Tables<'_>, io: &mut impl Io, all: &[Told]) {
        let outside = &tables.snapshot.outside;
        let network_of = |told: &Told| outside.owner(told.held()).map(|owner| owner.network);
        let mut batch = std::mem::take(&mut self.telling.batch);
        for (index, network) in (0u16..).zip(&outside.networks) {
            let Some(network) = network.as_ref() else {
                continue;
            };
            if network.gateway != Translator::Here {
                continue;
            }
            let mut of_network = all
                .iter()
                .filter(|told| network_of(told) == Some(index))
                .peekable();
            while of_network.peek().is_some() {
                batch.clear();
                batch.extend(of_network.by_ref().take(RECORDS));
                for peer in network.other_gateways() {
                    self.send_told(tables, io, peer, 1, &batch);
                }
            }
        }
        batch.clear();
        self.telling.batch = batch;
    }

    fn send_told(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        peer: u16,
        kind: u8,
        records: &[Told],
    ) {
        const MOST: usize = FRAME + HEAD + RECORDS * RECORD;
        let mut frame = [0; MOST];
        let payload = HEAD + records.len() * RECORD;
        let head = probes::frame_head(PORT, payload);
        let (start, body) = frame.split_at_mut(head.len());
        start.copy_from_slice(&head);
        body[..5].copy_from_slice(b"weft\x01");
        (body[5], body[6]) = (kind, records.len() as u8);
        for (told, record) in records.iter().zip(body[HEAD..].chunks_exact_mut(RECORD)) {
            if let Some(record) = record.first_chunk_mut() {
                told.write(record);
            }
        }
        let len = head.len() + payload;
        self.send_to_peer(tables, io, peer, &frame[..len]);
    }

    /// Sends a frame of this host's daemon to a peer's.
    fn send_to_peer(&mut self, tables: Tables<'_>, io: &mut impl Io, peer: u16, frame: &[u8]) {
        let tunnel = tables.snapshot.peer(peer).and_then(|peer| peer.tunnel(0));
        let Some(tunnel) = tunnel else {
            return;
        };
        let Some(mut packet) = ip_fragment::room_for(io, frame.len()) else {
            return;
        };
        packet.bytes_mut(io).copy_from_slice(frame);
        // Class selector 6, network control (RFC 2474 §4.2.2).
        if tunnel.template.push(io, &mut packet, Vni::OUTSIDE, 0xc0, 0) {
            self.counters.uplink(tunnel.uplink).generated.add(1);
            io.send(Destination::Uplink(tunnel.uplink), packet);
        } else {
            io.free(packet.frame);
        }
    }

    /// Reads a tunnel packet of no VPC, if it is one.
    pub(super) fn read_fellow(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: &Packet,
    ) -> Option<Result<(), DropReason>> {
        let frame = packet.bytes(io);
        let outer = decap::outer(frame).ok()?;
        if outer.vni != Vni::OUTSIDE {
            return None;
        }
        let peer = super::slow_path::Ends::of(&outer)
            .peer(tables.snapshot)
            .ok()?;
        let inner = frame.get(usize::from(outer.inner)..usize::from(outer.end))?;
        // Copied: what is read changes what the pipeline holds.
        let mut copy = [0; FRAME + HEAD + RECORDS * RECORD];
        let copy = copy.get_mut(..inner.len())?;
        copy.copy_from_slice(inner);
        Some(self.take_from_fellow(tables, peer, copy))
    }
}
