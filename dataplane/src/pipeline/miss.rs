//! The long way round: local services, guard, judgement, and the session that keeps the judgement.

use super::hit::{Follow, follow};
use super::judge::{self, Case, Standing};
use super::trace::Silent;
use super::{Core, Destination, Entry, Io, Tables, guard, local, metadata, services};
use crate::packet::parse::{self, is_icmp_error, protocol};
use crate::packet::{DropReason, Family, Offload, Packet, Parsed};
use crate::session::slot::Order;
use crate::session::table::{Action, Egress, Ingress, NewSession, SessionRef, Stamp};
use crate::session::tcp::{self, Segment, Side};
use crate::session::{InsertError, Key, State};
use crate::snapshot::{Port, Snapshot};

/// What became of a packet before policy was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LocalVerdict {
    /// It has become the answer.
    Answered,
    /// It is for others on the link, whatever policy says.
    Relay,
    /// It goes on.
    Onward,
}

impl Core {
    /// No session, or none that can answer: the packet is judged.
    #[cold]
    #[inline(never)]
    pub(super) fn miss(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        session: Option<SessionRef<'_>>,
    ) {
        self.counters.misses.add(1);
        let parsed = &entry.parsed;
        if let Ingress::Peer(peer) = entry.ingress
            && let Some(onward) = judge::moved(tables.snapshot, entry.vpc, peer, parsed)
        {
            // Nothing is remembered of it: soon nothing will come this way.
            return self.execute(tables, io, packet, entry, &onward);
        }
        if let Ingress::Port(index) = entry.ingress {
            let Some(port) = tables.snapshot.port(index) else {
                return self.drop(tables, io, packet, entry.ingress, DropReason::PortDown);
            };
            match self.at_port(tables, io, (index, port), &mut packet, entry) {
                Ok(LocalVerdict::Answered) => return self.deliver(tables, io, index, packet),
                Ok(LocalVerdict::Relay) => return self.relay(tables, io, packet, entry),
                Ok(LocalVerdict::Onward) => {}
                Err(reason) => return self.drop(tables, io, packet, entry.ingress, reason),
            }
            if metadata::is_question(tables.snapshot, port, parsed) {
                if self.metadata.take(index.into(), self.now) {
                    return io.send(Destination::Metadata(index), packet);
                }
                let reason = DropReason::MetadataLimit;
                return self.drop(tables, io, packet, entry.ingress, reason);
            }
        } else {
            match self.neighbor(tables, io, &mut packet, entry) {
                Ok(LocalVerdict::Answered) => return self.answer_peer(tables, io, packet, entry),
                Ok(LocalVerdict::Relay) => return self.relay(tables, io, packet, entry),
                Ok(LocalVerdict::Onward) if guard::is_ipv4_router(parsed) => {
                    let reason = DropReason::RogueServer;
                    return self.drop(tables, io, packet, entry.ingress, reason);
                }
                Ok(LocalVerdict::Onward) => {}
                Err(reason) => return self.drop(tables, io, packet, entry.ingress, reason),
            }
        }
        if metadata::serves(tables.snapshot, parsed.flow.source) {
            // Nobody but this host answers for it; a session of such a packet would take the guest's own to somebody else.
            return self.drop(tables, io, packet, entry.ingress, DropReason::Martian);
        }
        let to_group = parsed.eth_dst.is_group();
        if !to_group && guard::is_group(parsed.flow.destination) {
            return self.drop(tables, io, packet, entry.ingress, DropReason::Martian);
        }
        match parsed.fragment {
            Some(fragment) => self.fragment(tables, io, packet, entry, fragment, session),
            None if to_group => self.flood(tables, io, packet, entry),
            None => match self.decide(tables, packet.bytes(io), entry, session) {
                Ok(action) => self.execute(tables, io, packet, entry, &action),
                Err(reason) => self.drop(tables, io, packet, entry.ingress, reason),
            },
        }
    }

    /// Passes a neighbour discovery message on to others on the link.
    fn relay(&mut self, tables: Tables<'_>, io: &mut impl Io, packet: Packet, entry: &Entry) {
        if entry.parsed.eth_dst.is_group() {
            return self.flood(tables, io, packet, entry);
        }
        let may_reply = match entry.ingress {
            Ingress::Port(index) => self.may_reply(index),
            Ingress::Peer(_) => Ok(()),
        };
        let action = may_reply.and_then(|()| {
            judge::on_link(tables.snapshot, entry.ingress, entry.vpc, &entry.parsed)
        });
        match action {
            Ok(action) => self.execute(tables, io, packet, entry, &action),
            Err(reason) => self.drop(tables, io, packet, entry.ingress, reason),
        }
    }

    /// What concerns the sending port alone: spoofing, and what the gateway answers itself.
    pub(super) fn at_port(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        sender: (u16, &Port),
        packet: &mut Packet,
        entry: &Entry,
    ) -> Result<LocalVerdict, DropReason> {
        let (index, port) = sender;
        let parsed = &entry.parsed;
        if guard::is_rogue_server(parsed) {
            return Err(DropReason::RogueServer);
        }
        if let Some(question) =
            services::question(tables.snapshot, (port, self.device_mtus.of(index)), parsed)
        {
            let start = usize::from(packet.start);
            let area = io.bytes_mut(&mut packet.frame).get_mut(start..);
            packet.len = question.answer(area.unwrap_or_default())?.len;
            if packet.frame.is_large() {
                // Whatever was to be split, the answer is not.
                Offload::default().write(io, &mut packet.frame);
            }
            return self.answered(index);
        }
        match self.neighbor(tables, io, packet, entry)? {
            LocalVerdict::Answered => return self.answered(index),
            LocalVerdict::Relay => return Ok(LocalVerdict::Relay),
            LocalVerdict::Onward => {}
        }
        guard::check(tables.snapshot, port, parsed)?;
        if local::is_router_solicitation(parsed) {
            return Err(DropReason::GatewayUnserved);
        }
        if local::is_for_gateway(tables.snapshot, port, parsed)
            && !metadata::is_question(tables.snapshot, port, parsed)
        {
            local::ping(packet.bytes_mut(io), parsed)?;
            return self.answered(index);
        }
        Ok(LocalVerdict::Onward)
    }

    fn answered(&mut self, port: u16) -> Result<LocalVerdict, DropReason> {
        self.may_reply(port).map(|()| LocalVerdict::Answered)
    }

    pub(super) fn may_reply(&mut self, port: u16) -> Result<(), DropReason> {
        if self.replies.take(port.into(), self.now) {
            Ok(())
        } else {
            Err(DropReason::ReplyLimit)
        }
    }

    /// Neighbour discovery.
    pub(super) fn neighbor(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: &mut Packet,
        entry: &Entry,
    ) -> Result<LocalVerdict, DropReason> {
        let parsed = &entry.parsed;
        if !local::is_discovery(parsed) {
            return Ok(LocalVerdict::Onward);
        }
        let asker = match entry.ingress {
            Ingress::Port(index) => local::Asker::Port(
                index,
                tables.snapshot.port(index).ok_or(DropReason::PortDown)?,
            ),
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
        let len = packet.len;
        packet.len = len.max(needed);
        match local::neighbor(tables.snapshot, asker, packet.bytes_mut(io), parsed)? {
            local::Neighbor::Reply(len) => {
                packet.len = len;
                Ok(LocalVerdict::Answered)
            }
            local::Neighbor::Relay => {
                packet.len = len;
                Ok(LocalVerdict::Relay)
            }
            local::Neighbor::NotMine => Ok(LocalVerdict::Onward),
        }
    }

    /// Sends an answer of the gateway back to the peer that asked.
    pub(super) fn answer_peer(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
    ) {
        let Ingress::Peer(peer) = entry.ingress else {
            return io.free(packet.frame);
        };
        let tunnel = tables
            .snapshot
            .peer(peer)
            .and_then(|peer| peer.tunnel(entry.key.hash));
        match tunnel {
            Some(tunnel) => {
                let class = entry.parsed.traffic_class;
                self.encapsulate(tables, io, packet, entry, class, tunnel);
            }
            None => self.drop(
                tables,
                io,
                packet,
                entry.ingress,
                DropReason::UnderlayUnresolved,
            ),
        }
    }

    /// Judges a packet and keeps the judgement in its session; a packet that opens a flow gets one.
    pub(super) fn decide(
        &mut self,
        tables: Tables<'_>,
        frame: &[u8],
        entry: &Entry,
        session: Option<SessionRef<'_>>,
    ) -> Result<Action, DropReason> {
        let parsed = &entry.parsed;
        if is_icmp_error(parsed) {
            return self.related(tables, frame, entry);
        }
        let (mut known, mut over) = (None, None);
        if let Some(session) = session {
            match follow(&session, parsed, frame) {
                Follow::Pass(standings) => known = Some((session, standings)),
                Follow::Reopen => over = Some(session),
                Follow::Drop(reason) => return Err(reason),
            }
        }
        let unlike = known
            .as_ref()
            .and_then(|(_, standings)| standings.standing());
        let standing = match &known {
            Some((session, _)) if unlike.is_none() && !session.from_origin() => Standing::Backward,
            _ => unlike.unwrap_or(Standing::Forward),
        };
        let case = Case {
            parsed,
            ingress: entry.ingress,
            vpc: entry.vpc,
            standing,
        };
        let opening = if known.is_none() {
            let opening = opening(parsed, frame)?;
            if opening.begin(false).is_none() {
                // Only a flow that is seen one way begins like this.
                judge::judge(tables.snapshot, &case, &mut Silent)
                    .ok()
                    .filter(|way| may_be_one_sided(tables.snapshot, entry.ingress, way.egress))
                    .and_then(|_| opening.begin(true))
                    .ok_or(DropReason::TcpInvalid)?;
            }
            if let Ingress::Port(index) = entry.ingress
                && !self.flows.take(index.into(), self.now)
            {
                return Err(DropReason::FlowLimit);
            }
            let vpc = tables.snapshot.vpcs[entry.vpc].index;
            if !self.vpc_flows.take(vpc as usize, self.now) {
                return Err(DropReason::VpcFlowLimit);
            }
            Some(opening)
        } else {
            None
        };
        let action = match judge::judge(tables.snapshot, &case, &mut Silent) {
            Ok(action) => action,
            Err(reason) => {
                if let (DropReason::GroupDenied, Some((session, _)), None) =
                    (reason, &known, unlike)
                {
                    deny(tables, session, self.now);
                }
                return Err(reason);
            }
        };
        let stamp = Stamp::new(tables.snapshot.generation, entry.ingress);
        match (known, opening) {
            (Some((session, standings)), _) => {
                standings.keep(&session, self.now);
                // What the groups say of a SYN that may begin the connection anew does not hold for the packets of the one that stands.
                if unlike.is_none() {
                    session.set_action(stamp, &action);
                }
            }
            (None, Some(opening)) => {
                let one_sided = may_be_one_sided(tables.snapshot, entry.ingress, action.egress);
                let (state, tcp) = opening.begin(one_sided).ok_or(DropReason::TcpInvalid)?;
                if let Some(session) = over {
                    tables.sessions.remove(&session);
                }
                let port = match (entry.ingress, action.egress) {
                    (Ingress::Port(port), _) | (_, Egress::Port(port)) => port,
                    _ => return Err(DropReason::HairpinTunnel),
                };
                let new = NewSession {
                    state,
                    port,
                    vpc: tables.snapshot.vpcs[entry.vpc].index,
                    now: self.now,
                    tcp,
                    order: Some((stamp, Order::from(&action))),
                };
                let session =
                    tables
                        .sessions
                        .insert(&entry.key, &new)
                        .map_err(|error| match error {
                            InsertError::Full => DropReason::SessionTableFull,
                            InsertError::PortBudget => DropReason::SessionPortBudget,
                            InsertError::VpcBudget => DropReason::SessionVpcBudget,
                        })?;
                session.touch(self.now);
            }
            (None, None) => return Err(DropReason::TcpInvalid),
        }
        Ok(action)
    }

    /// An ICMP error: passes if it quotes a packet of a session and goes to that packet's sender.
    pub(super) fn related(
        &self,
        tables: Tables<'_>,
        frame: &[u8],
        entry: &Entry,
    ) -> Result<Action, DropReason> {
        let parsed = &entry.parsed;
        let quote = frame
            .get(usize::from(parsed.l4) + 8..usize::from(parsed.end))
            .unwrap_or_default();
        let quoted = parse::quoted(parsed.family, quote)
            .filter(|quoted| quoted.source == parsed.flow.destination);
        quoted
            .and_then(|quoted| {
                tables.sessions.find(&Key::new(
                    tables.sessions.seeds(),
                    &quoted,
                    tables.snapshot.vpcs[entry.vpc].vni,
                ))
            })
            .ok_or(DropReason::IcmpUnrelated)?;
        let case = Case {
            parsed,
            ingress: entry.ingress,
            vpc: entry.vpc,
            standing: Standing::Related,
        };
        judge::judge(tables.snapshot, &case, &mut Silent)
    }
}

/// What no longer stands before the groups is forgotten, both ways. But a connection is remembered as denied for as long as its ends try:
/// forgotten, it would be picked up again in mid-stream by a segment of the side that may open flows, and its answers admitted.
fn deny(tables: Tables<'_>, session: &SessionRef<'_>, now: u32) {
    match session.state() {
        State::TcpEstablished
        | State::TcpFinOrigin
        | State::TcpFinReply
        | State::TcpClosed
        | State::TcpDenied => {
            session.set_state(State::TcpDenied);
            session.touch(now);
        }
        _ => tables.sessions.remove(session),
    }
}

/// What a packet that opens a flow begins.
pub(super) enum Opening {
    /// A flow of another protocol.
    Plain(State),
    /// A connection, known from the beginning or picked up in mid-stream.
    Tcp(Segment),
}

impl Opening {
    /// The state and windows that the flow begins with; none if the segment can't begin a connection.
    fn begin(&self, one_sided: bool) -> Option<(State, (Side, Side))> {
        match self {
            Self::Plain(state) => Some((*state, Default::default())),
            Self::Tcp(segment) => {
                let state = tcp::begin(segment, one_sided)?;
                let (mut opener, mut other) = (Side::default(), Side::default());
                tcp::first(segment, one_sided, &mut opener, &mut other);
                Some((state, (opener, other)))
            }
        }
    }
}

/// Whether a port that the packet comes from or goes to may see one way of a connection only: it sends with anybody's address, so that
/// what it passes on may be answered past it.
fn may_be_one_sided(snapshot: &Snapshot, ingress: Ingress, egress: Egress) -> bool {
    let comes = match ingress {
        Ingress::Port(index) => snapshot.port(index),
        Ingress::Peer(_) => None,
    };
    let goes = match egress {
        Egress::Port(index) => snapshot.port(index),
        Egress::Peer(_) => None,
    };
    [comes, goes]
        .into_iter()
        .flatten()
        .any(Port::sends_for_anybody)
}

/// What a packet opens that belongs to no session.
fn opening(parsed: &Parsed, frame: &[u8]) -> Result<Opening, DropReason> {
    let kind = (parsed.icmp >> 8) as u8;
    match (parsed.flow.protocol, parsed.family) {
        (protocol::TCP, _) => {
            let header = frame
                .get(usize::from(parsed.l4)..)
                .ok_or(DropReason::TransportHeader)?;
            let segment =
                Segment::read(header, parsed.end - parsed.l4).ok_or(DropReason::TransportHeader)?;
            Ok(Opening::Tcp(segment))
        }
        // An answer to nothing that was asked opens nothing.
        (protocol::ICMP, Family::Ipv4) if matches!(kind, 0 | 14 | 16 | 18) => {
            Err(DropReason::IcmpUnrelated)
        }
        (protocol::ICMPV6, Family::Ipv6) if kind == 129 => Err(DropReason::IcmpUnrelated),
        (protocol::ICMP, Family::Ipv4) | (protocol::ICMPV6, Family::Ipv6) => {
            Ok(Opening::Plain(State::IcmpQuery))
        }
        _ => Ok(Opening::Plain(State::OneWay)),
    }
}
