//! The slow path's hit: a session that knows what to do, and doing it.

use super::egress::{self, Obstacle, Onward};
use super::icmp_error::Problem;
use super::tracking::{Follow, follow, kept};
use super::translate::Decision;
use super::{Core, Destination, Entry, Io, Tables, gso, nat64, rewrite};
use crate::numbers::Vni;
use crate::packet::parse::tcp_flags;
use crate::packet::{DropReason, Packet};
use crate::session::table::{Egress, Ingress, SessionRef};
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
            Some(Ok(decision)) => {
                self.counters.general.add(1);
                self.execute(tables, io, packet, entry, &decision);
            }
            Some(Err(reason)) => self.drop(tables, io, packet, entry.ingress, reason),
            None => self.miss(tables, io, packet, entry, Some(session)),
        }
    }

    /// What the session says of a packet that neither opens nor ends a connection; none if the packet has to be judged.
    #[inline]
    pub(super) fn known(
        &mut self,
        tables: Tables<'_>,
        frame: &[u8],
        entry: &Entry,
        session: SessionRef<'_>,
    ) -> Option<Result<Decision, DropReason>> {
        let decision = kept(tables, entry, &session)?;
        if entry.parsed.tcp_flags & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST) != 0 {
            return None;
        }
        match follow(&session, &entry.parsed, frame) {
            Follow::Pass(standings) => {
                let before = session.state();
                standings.keep(&session, self.now);
                if self.telling.is_wanted && session.is_translated() && session.state() != before {
                    self.telling.note(&session, self.now);
                }
                Some(Ok(decision))
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
        decision: &Decision,
    ) {
        let (parsed, action) = (&entry.parsed, &decision.action);
        if nat64::crosses(decision, parsed.family) {
            return self.cross(tables, io, packet, entry, decision);
        }
        // What a guest left to be split is as long as its longest piece.
        let plan = if packet.frame.is_large() {
            gso::Plan::of(io, &packet).ok().flatten()
        } else {
            None
        };
        let ip_len = plan.map_or(parsed.ip_len(), |plan| plan.longest());
        let way = egress::way(
            tables,
            &self.device_mtus,
            (action, entry.key.hash),
            (parsed.ttl, ip_len),
        );
        let onward = match way {
            Ok(onward) => onward,
            Err(Obstacle::TimeExceeded)
                if matches!(action.egress(), Egress::External(_))
                    && matches!(entry.ingress, Ingress::Peer(_)) =>
            {
                let problem = Problem::TimeExceeded;
                return self.report_to_sender(tables, io, packet, entry, problem);
            }
            Err(Obstacle::TimeExceeded) => {
                return self.report(tables, io, packet, entry, Problem::TimeExceeded);
            }
            Err(obstacle @ (Obstacle::Unresolved | Obstacle::NoNeighbor | Obstacle::NoLink)) => {
                return self.drop(tables, io, packet, entry.ingress, obstacle.reason());
            }
            Err(Obstacle::TooBig(mtu, onward)) => {
                let may_split = !parsed.dont_fragment && self.fragment && plan.is_none();
                return self.too_big(
                    tables,
                    io,
                    packet,
                    entry,
                    decision,
                    (mtu, onward, may_split),
                );
            }
        };
        let is_partial = plan.is_some();
        let frame = packet.bytes_mut(io);
        let class = match egress::change(frame, entry, decision, is_partial) {
            Ok(class) => class,
            Err(reason) => return self.drop(tables, io, packet, entry.ingress, reason),
        };
        if parsed.tcp_flags & tcp_flags::SYN != 0 {
            self.clamp(tables, frame, entry, onward, is_partial);
        }
        let header = (decision.vni(entry.vni), class);
        self.send_on(tables, io, packet, entry, header, onward);
    }

    /// Sends a packet its way; into a tunnel with this VNI and traffic class.
    #[inline]
    pub(super) fn send_on(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        header: (Vni, u8),
        onward: Onward<'_>,
    ) {
        match onward {
            Onward::Tunnel(tunnel) => {
                self.encapsulate(tables, io, packet, entry, header, tunnel);
            }
            Onward::Port(index) => self.deliver(tables, io, index, packet),
            Onward::External(_, link) => self.send_external(tables, io, packet, entry, link),
            Onward::ThisHost => self.come_back(tables, io, packet, entry),
        }
    }

    /// Sends a packet with a VNI and a traffic class into a tunnel; one in a large frame in pieces.
    #[inline]
    pub(super) fn encapsulate(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        header: (Vni, u8),
        tunnel: &Tunnel,
    ) {
        if !packet.frame.is_large() {
            return self.push(tables, io, packet, entry, header, tunnel);
        }
        let apart = gso::take_apart(io, packet, |io, piece| {
            self.push(tables, io, piece, entry, header, tunnel);
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
        (vni, class): (Vni, u8),
        tunnel: &Tunnel,
    ) {
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
        onward: Onward<'_>,
        is_partial: bool,
    ) {
        let asks = |index: u16| {
            tables
                .snapshot
                .port(index)
                .is_some_and(|port| port.clamp_mss)
        };
        let sender = matches!(entry.ingress, Ingress::Port(index) if asks(index));
        let receiver = matches!(onward, Onward::Port(index) if asks(index));
        if !(sender || receiver) {
            return;
        }
        // What the narrowest part of the way takes, as far as this host sees it.
        let from = match entry.ingress {
            Ingress::Port(index) => self.device_mtus.of(index),
            Ingress::Peer(peer) => {
                let peer = tables.snapshot.peer(peer);
                let tunnel = peer.and_then(|peer| peer.tunnel(entry.key.hash));
                tunnel.map_or(u16::MAX, |tunnel| tunnel.inner_mtu)
            }
            Ingress::External(network) => {
                let network = tables.snapshot.outside.network(network);
                network.map_or(u16::MAX, |network| network.mtu)
            }
        };
        let to = match onward {
            Onward::Port(index) => self.device_mtus.of(index),
            Onward::Tunnel(tunnel) => tunnel.inner_mtu,
            Onward::External(network, _) => network.mtu,
            Onward::ThisHost => u16::MAX,
        };
        if from.min(to) < u16::MAX {
            rewrite::clamp_mss(frame, &entry.parsed, from.min(to), is_partial);
        }
    }
}
