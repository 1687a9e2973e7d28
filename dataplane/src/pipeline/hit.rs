//! The general way's hit: a session that knows what to do, and doing it.

use super::icmp_error::Problem;
use super::judge::Standing;
use super::{Core, Destination, Entry, Io, Tables, rewrite, segment};
use crate::packet::parse::{protocol, tcp_flags};
use crate::packet::{DropReason, Packet, Parsed};
use crate::session::State;
use crate::session::table::{Action, Egress, Ingress, SessionRef, Stamp};
use crate::session::tcp::{self, Segment, Side, Step};
use crate::snapshot::Tunnel;

impl Core {
    /// The common case: a session that knows what to do.
    #[inline]
    pub(super) fn forward(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
    ) {
        let Some(session) = tables.sessions.find(&entry.key) else {
            return self.miss(tables, io, packet, entry, None);
        };
        let known = match entry.parsed.fragment {
            None => self.known(tables, packet.bytes(io), entry, session),
            Some(_) => None,
        };
        match known {
            Some(Ok(action)) => {
                self.counters.general.add(1);
                self.execute(tables, io, packet, entry, &action);
            }
            Some(Err(reason)) => self.drop(tables, io, packet, entry.ingress, reason),
            None => self.miss(tables, io, packet, entry, Some(session)),
        }
    }

    /// What the session says of a packet that neither opens nor ends a connection; none if the packet has to be judged.
    #[inline]
    pub(super) fn known(
        &self,
        tables: Tables<'_>,
        frame: &[u8],
        entry: &Entry,
        session: SessionRef<'_>,
    ) -> Option<Result<Action, DropReason>> {
        let action = kept(tables, entry, &session)?;
        if entry.parsed.tcp_flags & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST) != 0 {
            return None;
        }
        match follow(&session, &entry.parsed, frame) {
            Follow::Pass(standings) => {
                standings.keep(&session, self.now);
                Some(Ok(action))
            }
            Follow::Reopen => None,
            Follow::Drop(reason) => Some(Err(reason)),
        }
    }

    /// Does what was decided: the hot path's last stage.
    #[inline]
    pub(super) fn execute(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        action: &Action,
    ) {
        let parsed = &entry.parsed;
        if action.rewrite.is_some() && parsed.ttl <= 1 {
            return self.report(tables, io, packet, entry, Problem::TimeExceeded);
        }
        let tunnel = match action.egress {
            Egress::Port(_) => None,
            Egress::Peer(peer) => {
                let Some(tunnel) = tables
                    .snapshot
                    .peer(peer)
                    .and_then(|peer| peer.tunnel(entry.key.hash))
                else {
                    return self.drop(
                        tables,
                        io,
                        packet,
                        entry.ingress,
                        DropReason::UnderlayUnresolved,
                    );
                };
                Some(tunnel)
            }
        };
        // What a guest left to be split is as long as its longest piece.
        let plan = if packet.frame.is_large() {
            segment::Plan::of(io, &packet).ok().flatten()
        } else {
            None
        };
        let ip_len = plan.map_or(parsed.ip_len(), |plan| plan.longest());
        let mtu = match (tunnel, action.egress) {
            (Some(tunnel), _) => tunnel.inner_mtu,
            (None, Egress::Port(index)) => self.device_mtus.of(index),
            (None, Egress::Peer(_)) => u16::MAX,
        };
        if ip_len > mtu {
            let may_split = !parsed.dont_fragment && self.fragment && plan.is_none();
            return self.too_big(tables, io, packet, entry, action, (mtu, tunnel, may_split));
        }
        let frame = packet.bytes_mut(io);
        if let Some((destination, source)) = action.rewrite {
            rewrite::macs(frame, destination, source);
            rewrite::decrement_ttl(frame, parsed);
        }
        let mut class = parsed.traffic_class;
        if let Some(outer) = entry.outer_class {
            match rewrite::propagate_congestion(frame, parsed, outer) {
                Ok(marked) => class = marked,
                Err(reason) => return self.drop(tables, io, packet, entry.ingress, reason),
            }
        }
        if parsed.tcp_flags & tcp_flags::SYN != 0 {
            self.clamp(tables, frame, entry, action, tunnel);
        }
        match (action.egress, tunnel) {
            (_, Some(tunnel)) => self.encapsulate(tables, io, packet, entry, class, tunnel),
            (Egress::Port(index), None) => self.deliver(tables, io, index, packet),
            (Egress::Peer(_), None) => self.drop(
                tables,
                io,
                packet,
                entry.ingress,
                DropReason::UnderlayUnresolved,
            ),
        }
    }

    /// Sends a packet of a traffic class into a tunnel; one in a large frame in pieces.
    #[inline]
    pub(super) fn encapsulate(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        class: u8,
        tunnel: &Tunnel,
    ) {
        if !packet.frame.is_large() {
            return self.push(tables, io, packet, entry, class, tunnel);
        }
        let apart = segment::take_apart(io, packet, |io, piece| {
            self.push(tables, io, piece, entry, class, tunnel);
        });
        self.account(tables, io, entry.ingress, apart);
    }

    #[inline]
    fn push(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        class: u8,
        tunnel: &Tunnel,
    ) {
        let vni = tables.snapshot.vpcs[entry.vpc].vni;
        // Entropy from bits of the hash that the choice of the tunnel does not use.
        let entropy = (entry.key.hash >> 32) as u16;
        if tunnel.template.push(io, &mut packet, vni, class, entropy) {
            io.send(Destination::Uplink(tunnel.uplink), packet);
        } else {
            self.drop(tables, io, packet, entry.ingress, DropReason::NoBuffer);
        }
    }

    /// MSS clamping of a SYN, where either end of it on this host asks for it.
    #[cold]
    pub(super) fn clamp(
        &self,
        tables: Tables<'_>,
        frame: &mut [u8],
        entry: &Entry,
        action: &Action,
        tunnel: Option<&Tunnel>,
    ) {
        let asks = |index: u16| {
            tables
                .snapshot
                .port(index)
                .is_some_and(|port| port.clamp_mss)
        };
        let sender = matches!(entry.ingress, Ingress::Port(index) if asks(index));
        let receiver = matches!(action.egress, Egress::Port(index) if asks(index));
        if !(sender || receiver) {
            return;
        }
        // What the narrowest part of the way takes, as far as this host sees it.
        let through = |tunnel: Option<&Tunnel>| tunnel.map_or(u16::MAX, |tunnel| tunnel.inner_mtu);
        let from = match entry.ingress {
            Ingress::Port(index) => self.device_mtus.of(index),
            Ingress::Peer(peer) => {
                let peer = tables.snapshot.peer(peer);
                through(peer.and_then(|peer| peer.tunnel(entry.key.hash)))
            }
        };
        let to = match action.egress {
            Egress::Port(index) => self.device_mtus.of(index),
            Egress::Peer(_) => through(tunnel),
        };
        if from.min(to) < u16::MAX {
            rewrite::clamp_mss(frame, &entry.parsed, from.min(to));
        }
    }
}

/// The session's action, if it was decided in this generation, and for packets like this one.
#[inline]
pub(super) fn kept(tables: Tables<'_>, entry: &Entry, session: &SessionRef<'_>) -> Option<Action> {
    let parsed = &entry.parsed;
    let stamp = Stamp::new(tables.snapshot.generation, entry.ingress);
    session
        .order(stamp)
        .or_else(|| session.second_order(stamp))
        .map(|order| order.action())
        .filter(|action| action.eth_dst == parsed.eth_dst && action.eth_src == parsed.eth_src)
}

/// What a packet would make of its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    /// It belongs there; once it has passed, this is how the session stands.
    Pass(Standings),
    /// The connection is over and the packet opens another.
    Reopen,
    /// It cannot be.
    Drop(DropReason),
}

/// How a session stands after a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standings {
    state: State,
    tcp: Option<(Side, Side)>,
    /// How the groups are to see the packet, where the session does not say it.
    standing: Option<Standing>,
}

impl Standings {
    /// Keeps it: the packet has passed.
    #[inline]
    pub(super) fn keep(&self, session: &SessionRef<'_>, now: u32) {
        if let Some((sender, receiver)) = self.tcp {
            session.set_whole_tcp(sender, receiver);
        }
        if self.standing == Some(Standing::Backward) {
            session.turn(self.state);
        } else if self.state != session.state() {
            session.set_state(self.state);
        }
        session.touch(now);
    }

    /// How the groups are to see the packet, if it is not as one of the session: a SYN that may begin the connection anew, or its answer.
    pub(super) fn standing(&self) -> Option<Standing> {
        self.standing
    }
}

/// Follows a session with a packet of it; changes nothing yet.
#[inline]
pub(super) fn follow(session: &SessionRef<'_>, parsed: &Parsed, frame: &[u8]) -> Follow {
    let state = session.state();
    if parsed.flow.protocol != protocol::TCP || parsed.is_later_fragment() {
        let answered = state == State::OneWay && !session.from_origin();
        let state = if answered { State::BothWays } else { state };
        return Follow::Pass(Standings {
            state,
            tcp: None,
            standing: None,
        });
    }
    let header = frame.get(usize::from(parsed.l4)..);
    let Some(segment) = header.and_then(|header| Segment::read(header, parsed.end - parsed.l4))
    else {
        return Follow::Drop(DropReason::TransportHeader);
    };
    let (mut sender, mut receiver) = session.whole_tcp();
    let step = tcp::step(
        state,
        session.from_origin(),
        &segment,
        &mut sender,
        &mut receiver,
    );
    let pass = |state, standing| {
        Follow::Pass(Standings {
            state,
            tcp: Some((sender, receiver)),
            standing,
        })
    };
    match step {
        Step::Pass(next) => pass(next, None),
        Step::Offer(next) => pass(next, Some(Standing::Forward)),
        Step::Afresh(next) => pass(next, Some(Standing::Backward)),
        Step::Reopen => Follow::Reopen,
        Step::Invalid => Follow::Drop(DropReason::TcpInvalid),
        Step::OutOfWindow => Follow::Drop(DropReason::TcpWindow),
    }
}
