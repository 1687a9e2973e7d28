//! What a packet turns into besides itself: the ICMP error about it, its fragments, copies for a whole subnet.

use super::egress::Onward;
use super::flood::Receiver;
use super::icmp_error::{self, Problem};
use super::translate::Decision;
use super::{Core, Entry, Io, Tables, egress, flood, forwarding, gso, ip_fragment, rewrite};
use crate::numbers::Vni;
use crate::packet::{DropReason, Mac, Offload, Packet};
use crate::session::table::{Egress, Ingress};
use crate::snapshot::{Endpoint, Place, Tunnel};

impl Core {
    /// Sends the ICMP error that is owed to a port, in place of the packet; drops the packet if none may be sent.
    #[cold]
    #[inline(never)]
    pub(super) fn report(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        problem: Problem,
    ) {
        let reason = problem.reason();
        let index = match entry.ingress {
            Ingress::Port(index) => index,
            Ingress::Peer(_) => return self.drop(tables, io, packet, entry.ingress, reason),
            Ingress::External(network) => {
                return self.report_outside(tables, io, packet, entry, network, problem);
            }
        };
        let gateway = tables.snapshot.port(index).and_then(|port| {
            let subnet = &tables.snapshot.subnets[port.subnet];
            Some((subnet.gateway_mac, subnet.gateway(entry.parsed.family)?))
        });
        let Some(gateway) = gateway.filter(|_| icmp_error::may_report(&entry.parsed)) else {
            return self.drop(tables, io, packet, entry.ingress, reason);
        };
        if !self.errors.take(index.into(), self.now) {
            return self.drop(tables, io, packet, entry.ingress, DropReason::ReplyLimit);
        }
        if icmp_error::turn(io, &mut packet, &entry.parsed, gateway, problem) {
            if packet.frame.is_large() {
                // Whatever was to be split, the answer is not.
                Offload::default().write(io, &mut packet.frame);
            }
            // The packet is dropped; the error is a new one.
            self.counters.port(index).drop(reason);
            self.counters.port(index).generated.add(1);
            self.deliver(tables, io, index, packet);
        } else {
            self.drop(tables, io, packet, entry.ingress, reason);
        }
    }

    /// A packet that is longer than its way takes: fragmented if it may be, else reported to its sender.
    #[cold]
    #[inline(never)]
    pub(super) fn too_big(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        decision: &Decision,
        (mtu, onward, may_split): (u16, Onward<'_>, bool),
    ) {
        let problem = Problem::TooBig(mtu);
        let reason = DropReason::TooBig;
        let origin = (entry.ingress, entry.vpc);
        if !egress::has_router(tables.snapshot, origin, &entry.parsed, &decision.action) {
            return self.drop(tables, io, packet, entry.ingress, reason);
        }
        if may_split {
            return self.split(tables, io, packet, entry, decision, (mtu, onward));
        }
        if let Ingress::External(network) = entry.ingress {
            return self.report_outside(tables, io, packet, entry, network, problem);
        }
        let (index, peer) = match (decision.action.egress(), entry.ingress) {
            (Egress::Port(index), Ingress::Peer(peer)) => (index, peer),
            (Egress::External(_), Ingress::Peer(_)) => {
                return self.report_to_sender(tables, io, packet, entry, problem);
            }
            _ => return self.report(tables, io, packet, entry, problem),
        };
        let sender = forwarding::sender(tables.snapshot, entry.vpc, &entry.parsed);
        match (tables.snapshot.port(index), sender) {
            (Some(target), Some(sender)) if sender.0.place == Place::There(peer) => {
                let ends = (index, target.subnet, sender);
                self.report_to_peer(tables, io, packet, entry, ends, problem);
            }
            _ => self.drop(tables, io, packet, entry.ingress, reason),
        }
    }

    /// Reports a packet that this host translates for a peer to its sender, as the gateway of the sender's subnet.
    pub(super) fn report_to_sender(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        problem: Problem,
    ) {
        let vpc = &tables.snapshot.vpcs[entry.vpc];
        let sender = vpc.by_address.get(&entry.parsed.flow.source);
        let is_there = |sender: &&Endpoint| match entry.ingress {
            Ingress::Peer(peer) => sender.place == Place::There(peer),
            Ingress::Port(_) | Ingress::External(_) => false,
        };
        match sender.filter(is_there) {
            Some(sender) => {
                // Limited with what all peers cause together.
                let ends = (u16::MAX, sender.subnet, (sender, vpc.vni));
                self.report_to_peer(tables, io, packet, entry, ends, problem);
            }
            _ => {
                let reason = problem.reason();
                self.drop(tables, io, packet, entry.ingress, reason);
            }
        }
    }

    /// Sends an ICMP error back through the tunnel, from the gateway of the subnet that the packet was for.
    fn report_to_peer(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        (index, subnet, (sender, vni)): (u16, usize, (&Endpoint, Vni)),
        problem: Problem,
    ) {
        let (parsed, reason) = (&entry.parsed, problem.reason());
        let subnet = &tables.snapshot.subnets[subnet];
        let gateway = subnet
            .gateway(parsed.family)
            .map(|address| (subnet.gateway_mac, address));
        let Some(gateway) = gateway.filter(|_| icmp_error::may_report(parsed)) else {
            return self.drop(tables, io, packet, entry.ingress, reason);
        };
        if !self.errors.take(index.into(), self.now) {
            return self.drop(tables, io, packet, entry.ingress, DropReason::ReplyLimit);
        }
        if !icmp_error::turn(io, &mut packet, parsed, gateway, problem) {
            return self.drop(tables, io, packet, entry.ingress, reason);
        }
        rewrite::macs(packet.bytes_mut(io), sender.mac, gateway.0);
        let traffic = self.traffic(tables, entry.ingress);
        traffic.drop(reason);
        traffic.generated.add(1);
        self.answer_peer(tables, io, packet, entry, vni);
    }

    /// Fragments an IPv4 packet that its way does not take whole, and sends the pieces: into a tunnel, or to a port.
    fn split(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        decision: &Decision,
        (mtu, onward): (u16, Onward<'_>),
    ) {
        let frame = packet.bytes_mut(io);
        let class = match egress::change(frame, entry, decision, false) {
            Ok(class) => class,
            Err(reason) => return self.drop(tables, io, packet, entry.ingress, reason),
        };
        let header = (decision.vni(entry.vni), class);
        match ip_fragment::split(io, &packet, &entry.parsed, mtu) {
            Ok(pieces) => {
                let traffic = self.traffic(tables, entry.ingress);
                traffic.generated.add(pieces.len() as u64 - 1);
                io.free(packet.frame);
                for piece in pieces {
                    self.send_on(tables, io, piece, entry, header, onward);
                }
            }
            Err(reason) => self.drop(tables, io, packet, entry.ingress, reason),
        }
    }

    /// Copies a packet to everybody in its subnet who may have it, within the sender's limit.
    #[cold]
    #[inline(never)]
    pub(super) fn flood(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
    ) {
        match self.may_spread(tables, entry) {
            Ok(()) => self.spread(tables, io, packet, entry),
            Err(reason) => self.drop(tables, io, packet, entry.ingress, reason),
        }
    }

    /// Whether one more packet may be copied. Copies to those who have joined a group are as many as these want.
    pub(super) fn may_spread(
        &mut self,
        tables: Tables<'_>,
        entry: &Entry,
    ) -> Result<(), DropReason> {
        if let Ingress::Port(index) = entry.ingress {
            let is_limited = tables
                .listeners
                .read(|table| flood::is_limited(tables.snapshot, table, index, &entry.parsed));
            if !is_limited {
                return Ok(());
            }
        }
        self.may_flood(entry.ingress)
    }

    /// Whether a port may send one more packet to all, or an external network bring one.
    pub(super) fn may_flood(&mut self, ingress: Ingress) -> Result<(), DropReason> {
        match ingress {
            Ingress::Port(index) if !self.broadcasts.take(index.into(), self.now) => {
                Err(DropReason::BroadcastLimit)
            }
            Ingress::External(network) if !self.may_bring(network) => {
                Err(DropReason::BroadcastLimit)
            }
            _ => Ok(()),
        }
    }

    /// Copies a packet to everybody in its subnet who may have it. A segment that was left to be split goes in pieces.
    pub(super) fn spread(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
    ) {
        if !packet.frame.is_large() {
            return self.spread_whole(tables, io, packet, entry, entry.parsed.ip_len());
        }
        let apart = gso::take_apart(io, packet, |io, piece| {
            // A packet that is no segment comes out whole, with what padding it has.
            let ip_len = (piece.len - entry.parsed.l3).min(entry.parsed.ip_len());
            self.spread_whole(tables, io, piece, entry, ip_len);
        });
        self.account(tables, io, entry.ingress, apart);
    }

    /// Enters a packet that was taken apart in the books.
    pub(super) fn account(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        ingress: Ingress,
        apart: gso::Apart,
    ) {
        let traffic = self.traffic(tables, ingress);
        traffic.generated.add(apart.generated);
        if let Some((packet, reason)) = apart.left {
            self.drop(tables, io, packet, ingress, reason);
        }
    }

    fn spread_whole(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        ip_len: u16,
    ) {
        tables.listeners.read(|table| {
            let (ingress, vpc) = (entry.ingress, entry.vpc);
            let receivers = flood::receivers(tables.snapshot, table, ingress, vpc, &entry.parsed);
            let way = |receiver| Way::of(tables, receiver, entry.key.hash);
            self.send_copies(
                tables,
                io,
                packet,
                entry,
                (receivers.filter_map(way), ip_len),
            );
        });
    }

    fn send_copies<'s>(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        (mut ways, ip_len): (impl Iterator<Item = Way<'s>>, u16),
    ) {
        let vni = tables.snapshot.vpcs[entry.vpc].vni;
        let header = (vni, entry.parsed.traffic_class);
        let Some(mut next) = ways.next() else {
            return self.drop(tables, io, packet, entry.ingress, DropReason::NoReceiver);
        };
        if let Some(class) = entry.outer_class
            && let Err(reason) =
                rewrite::propagate_congestion(packet.bytes_mut(io), &entry.parsed, class)
        {
            return self.drop(tables, io, packet, entry.ingress, reason);
        }
        let traffic = self.traffic(tables, entry.ingress);
        // The last receiver gets the packet itself.
        for after in ways {
            traffic.generated.add(1);
            match ip_fragment::copy(io, &packet) {
                Some(copy) => self.send_copy(tables, io, copy, entry, (next, header, ip_len)),
                None => traffic.drop(DropReason::NoBuffer),
            }
            next = after;
        }
        self.send_copy(tables, io, packet, entry, (next, header, ip_len));
    }

    /// Sends a packet of so many bytes of IP to one of the receivers of a group.
    fn send_copy(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        (way, header, ip_len): (Way<'_>, (Vni, u8), u16),
    ) {
        let mut packet = packet;
        let mtu = match way {
            Way::Port(index) | Way::Routed(index, _) => self.device_mtus.of(index),
            Way::Wire(_, mtu) => mtu,
            Way::Tunnel(tunnel) => tunnel.inner_mtu,
        };
        if ip_len > mtu {
            return self.drop(tables, io, packet, entry.ingress, DropReason::TooBig);
        }
        match way {
            Way::Port(index) => self.deliver(tables, io, index, packet),
            Way::Routed(index, gateway) => {
                let frame = packet.bytes_mut(io);
                rewrite::macs(frame, entry.parsed.eth_dst, gateway);
                rewrite::decrement_ttl(frame, &entry.parsed);
                self.deliver(tables, io, index, packet);
            }
            Way::Wire(network, _) => {
                self.send_wire(tables, io, packet, (entry.ingress, network));
            }
            Way::Tunnel(tunnel) => self.encapsulate(tables, io, packet, entry, header, tunnel),
        }
    }
}

/// How a copy gets to its receiver.
#[derive(Debug, Clone, Copy)]
enum Way<'s> {
    /// To a port of this host.
    Port(u16),
    /// To a port of this host in another subnet, from the gateway there, which has this MAC.
    Routed(u16, Mac),
    /// Onto the wire of an external network, with its MTU.
    Wire(u16, u16),
    /// To a peer.
    Tunnel(&'s Tunnel),
}

impl<'s> Way<'s> {
    /// None: there is none now.
    fn of(tables: Tables<'s>, receiver: Receiver, hash: u64) -> Option<Self> {
        match receiver {
            Receiver::Port(index) => Some(Self::Port(index)),
            Receiver::Routed(index) => {
                let subnet = tables.snapshot.port(index)?.subnet;
                let gateway = tables.snapshot.subnets[subnet].gateway_mac;
                Some(Self::Routed(index, gateway))
            }
            Receiver::Wire(network) => {
                let known = tables.snapshot.outside.network(network)?;
                Some(Self::Wire(network, known.mtu))
            }
            Receiver::Peer(peer) => {
                let peer = tables.snapshot.peer(peer)?;
                peer.tunnel(hash).map(Self::Tunnel)
            }
        }
    }
}
