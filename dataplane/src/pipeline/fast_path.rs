//! The fast path: packets whose session says all that there is to say. It does everything or nothing: a packet that needs more than its
//! session knows is left as it came, for the slow path.
//!
//! A vector passes in three stages, each over all its packets: look and call for the index's line; read that line and call for the
//! session's; do what the session says. By the time a stage needs a line, it has come.

use super::external::segment;
use super::quick_parse::{L4_IPV6, QuickParse, quick_parse};
use super::{Core, Destination, Io, Source, Tables, egress, rewrite, slow_path, translate};
use crate::encap::decap;
use crate::numbers::Vni;
use crate::packet::parse::ETHERNET;
use crate::packet::{Family, Packet};
use crate::session::slot::{Action, Egress, Ingress, MacPair, Stamp};
use crate::session::table::{Probe, SessionRef};
use crate::session::tcp::{self, Segment};
use crate::session::{State, Translation};

/// A packet of the fast path between two stages.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Entry {
    quick: QuickParse,
    stamp: Stamp,
    probe: Probe,
    vni: Vni,
    /// Bytes ahead of the inner frame that a tunnel's packet leaves behind.
    outer: u16,
    /// Bytes of the inner frame.
    len: u16,
    /// The tag that was taken off the frame where it lies (IEEE 802.1Q §9.6), and is put back if the packet is left; 0 for none.
    tag: u16,
}

/// What the packets of a vector have in common.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lane {
    /// Nothing that the fast path could use.
    Closed,
    /// From a port.
    Port { stamp: Stamp, vni: Vni },
    /// From an uplink, by index, with the tunnel and the VNI of the packet before, and of the last one that came by no tunnel.
    Uplink(
        u16,
        Option<(slow_path::Ends, Vni, Stamp)>,
        Option<segment::Arrival>,
    ),
}

impl Lane {
    pub(super) fn new(tables: Tables<'_>, source: Source) -> Self {
        match source {
            Source::Uplink(index) => Self::Uplink(index, None, None),
            Source::Port(index) => match tables.snapshot.port(index) {
                Some(port) => {
                    let vpc = &tables.snapshot.vpcs[port.vpc];
                    Self::Port {
                        stamp: Stamp::new(vpc.epoch, Ingress::Port(index)),
                        vni: vpc.vni,
                    }
                }
                None => Self::Closed,
            },
        }
    }

    /// First stage: looks at the packet, and fills in what the next stages need of it. None: it is not for the fast path.
    #[inline(always)]
    pub(super) fn look(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: &mut Packet,
        entry: &mut Entry,
    ) -> Option<()> {
        if packet.frame.is_large() {
            return None;
        }
        entry.tag = 0;
        let frame = packet.bytes_mut(io);
        let (stamp, vni, outer, inner) = match self {
            Self::Closed => return None,
            Self::Port { stamp, vni } => (*stamp, *vni, 0, frame),
            Self::Uplink(uplink, before, arrival) => 'tunnel: {
                let outer = match decap::plain_vxlan(frame) {
                    Some(outer) => outer,
                    None => {
                        if !tables.snapshot.outside.by_link.is_empty()
                            && let Some((stamp, vni)) =
                                segment::arrival(tables, *uplink, frame, arrival)
                        {
                            break 'tunnel (stamp, vni, 0, frame);
                        }
                        if let Some((stamp, vni)) =
                            segment::tagged(tables, *uplink, frame, &mut entry.tag)
                        {
                            break 'tunnel (
                                stamp,
                                vni,
                                segment::TAG as u16,
                                &mut frame[segment::TAG..],
                            );
                        }
                        decap::general(frame).ok()?
                    }
                };
                let ends = slow_path::Ends::of(&outer);
                let stamp = match before {
                    Some((same, vni, stamp)) if *same == ends && *vni == outer.vni => *stamp,
                    _ => {
                        if !tables.snapshot.outside.has_tunnels(*uplink) {
                            return None;
                        }
                        let peer = ends.peer(tables.snapshot).ok()?;
                        let vpc = slow_path::tunnelled(tables.snapshot, outer.vni)?;
                        let epoch = tables.snapshot.vpcs[vpc].epoch;
                        let stamp = Stamp::new(epoch, Ingress::Peer(peer));
                        *before = Some((ends, outer.vni, stamp));
                        stamp
                    }
                };
                let inner = frame.get_mut(usize::from(outer.inner)..usize::from(outer.end))?;
                // A congestion mark that has to be carried inwards is the slow path's business.
                if outer.traffic_class & 3 != 0
                    && !rewrite::same_congestion(inner, outer.traffic_class)
                {
                    return None;
                }
                (stamp, outer.vni, outer.inner, inner)
            }
        };
        let len = inner.len() as u16;
        if quick_parse(inner, tables.sessions.seeds(), vni, &mut entry.quick).is_none() {
            entry.leave(packet.bytes_mut(io));
            return None;
        }
        tables.sessions.prefetch(&entry.quick.key);
        entry.stamp = stamp;
        entry.vni = vni;
        entry.outer = outer;
        entry.len = len;
        Some(())
    }
}

/// What becomes of addresses, ports and VNI.
trait Change {
    /// The VNI that the packet leaves with, if it comes with this one.
    fn vni(&self, ingress: Vni) -> Vni;
    /// The traffic class that the packet leaves with, if it comes with this one.
    fn class(&self, class: u8) -> u8;
    fn write(&self, frame: &mut [u8]);
}

/// They stay.
struct AsItIs;

impl Change for AsItIs {
    #[inline(always)]
    fn vni(&self, ingress: Vni) -> Vni {
        ingress
    }

    #[inline(always)]
    fn class(&self, class: u8) -> u8 {
        class
    }

    #[inline(always)]
    fn write(&self, _: &mut [u8]) {}
}

/// They stay, but a packet of this family and traffic class gets this one, if there is one.
struct Marked {
    family: Family,
    to: Option<u8>,
}

impl Marked {
    #[inline(always)]
    fn new(quick: &QuickParse, action: &Action) -> Self {
        let mark = action.mark();
        Self {
            family: quick.family(),
            to: mark.map(|dscp| rewrite::with_dscp(quick.traffic_class, dscp)),
        }
    }
}

impl Change for Marked {
    #[inline(always)]
    fn vni(&self, ingress: Vni) -> Vni {
        ingress
    }

    #[inline(always)]
    fn class(&self, class: u8) -> u8 {
        self.to.unwrap_or(class)
    }

    #[inline(always)]
    fn write(&self, frame: &mut [u8]) {
        if let (Some(class), Some(header)) = (self.to, frame.get_mut(ETHERNET..)) {
            rewrite::set_class(header, self.family, class);
        }
    }
}

/// Those of the session's other key, in a packet that is TCP or not; and it may be marked.
struct Translated(Translation, bool, Marked);

impl Change for Translated {
    #[inline(always)]
    fn vni(&self, _: Vni) -> Vni {
        self.0.vni
    }

    #[inline(always)]
    fn class(&self, class: u8) -> u8 {
        self.2.class(class)
    }

    #[inline(always)]
    fn write(&self, frame: &mut [u8]) {
        translate::quick(frame, (self.2.family, self.1), &self.0);
        self.2.write(frame);
    }
}

impl Entry {
    /// Leaves a frame as it came.
    #[inline(always)]
    fn leave(&self, frame: &mut [u8]) {
        if self.tag != 0 {
            segment::put_back(frame, self.tag);
        }
    }

    /// Second stage: finds where the session probably lies.
    #[inline(always)]
    pub(super) fn probe(&mut self, tables: Tables<'_>) {
        self.probe = tables.sessions.probe(&self.quick.key);
    }
}

impl Core {
    /// Third stage: does what the session says, or gives the packet back as it came.
    #[inline(always)]
    pub(super) fn hit(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
    ) -> Result<(Destination, Packet), Packet> {
        match self.apply(tables, io, &mut packet, entry) {
            // Made anew, not changed in place: the two halves of a word that was just written would have to settle before it is read.
            Some((to, start, len)) => Ok((
                to,
                Packet {
                    frame: packet.frame,
                    start,
                    len,
                },
            )),
            None => {
                entry.leave(packet.bytes_mut(io));
                Err(packet)
            }
        }
    }

    /// Where the packet goes, and where in its buffer it lies then. None: nothing has been done.
    #[inline(always)]
    fn apply(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: &mut Packet,
        entry: &Entry,
    ) -> Option<(Destination, u16, u16)> {
        if entry.probe.is_translated() {
            return self.apply_translated(tables, io, packet, entry);
        }
        let session = tables.sessions.confirm(entry.probe, &entry.quick.key)?;
        match session.action(entry.stamp) {
            Some(action) if action.is_plain() => {
                self.carry_out(tables, io, packet, entry, (session, action), &AsItIs)
            }
            _ => self.apply_rare(tables, io, packet, entry),
        }
    }

    /// The same for packets that keep their addresses and ports, but are marked, or go by the action for a flow's second ingress. Few flows are either.
    #[inline(never)]
    fn apply_rare(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: &mut Packet,
        entry: &Entry,
    ) -> Option<(Destination, u16, u16)> {
        // Found once more, so that nothing of it has to be handed here.
        let session = tables.sessions.confirm(entry.probe, &entry.quick.key)?;
        let action = session
            .action(entry.stamp)
            .or_else(|| session.second_action(entry.stamp))
            .filter(|action| !action.is_translated())?;
        let change = Marked::new(&entry.quick, &action);
        self.carry_out(tables, io, packet, entry, (session, action), &change)
    }

    /// The same for packets of a session with two keys: most get other addresses and ports, or go into another VPC.
    #[inline(never)]
    fn apply_translated(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: &mut Packet,
        entry: &Entry,
    ) -> Option<(Destination, u16, u16)> {
        let session = tables.sessions.confirm(entry.probe, &entry.quick.key)?;
        let action = session
            .action(entry.stamp)
            .or_else(|| session.second_action(entry.stamp))?;
        if !action.is_translated() {
            return self.apply_rare(tables, io, packet, entry);
        }
        let translation = session.translation()?;
        // The slow path counts what an elastic IP sends that is limited.
        if tables.snapshot.outside.limits.has(translation.flow.source) {
            return None;
        }
        let marked = Marked::new(&entry.quick, &action);
        if translation.flow.family() != marked.family {
            // Its header is another's, and of another length.
            return None;
        }
        let change = Translated(translation, entry.quick.tcp, marked);
        self.carry_out(tables, io, packet, entry, (session, action), &change)
    }

    #[inline(always)]
    fn carry_out(
        &self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: &mut Packet,
        entry: &Entry,
        (session, action): (SessionRef<'_>, Action),
        change: &impl Change,
    ) -> Option<(Destination, u16, u16)> {
        let QuickParse { key, ip_len, .. } = &entry.quick;
        let start = usize::from(packet.start) + usize::from(entry.outer);
        let area = io.bytes_mut(&mut packet.frame);
        let frame = area.get_mut(start..start + usize::from(entry.len))?;
        if MacPair::read(frame.first_chunk()?) != action.expected
            || (action.is_routed() && entry.quick.ttl <= 1)
        {
            return None;
        }
        let mut vlan = 0;
        let (destination, tunnel) = match action.egress() {
            Egress::Port(index) => {
                if *ip_len > self.least_mtu && *ip_len > self.device_mtus.of(index) {
                    return None;
                }
                (Destination::Port(index), None)
            }
            Egress::Peer(peer) => {
                let tunnel = tables.snapshot.peer(peer)?.tunnel(key.hash)?;
                if *ip_len > tunnel.inner_mtu || start < tunnel.template.reach() {
                    return None;
                }
                (Destination::Uplink(tunnel.uplink), Some(tunnel))
            }
            Egress::External(index) => {
                let uplink = untagged(tables, action.new, index, *ip_len)?;
                (Destination::Uplink(uplink), None)
            }
            Egress::Wire(index) => {
                let (uplink, tag) = wire(tables, index, (*ip_len, start))?;
                vlan = tag;
                (Destination::Uplink(uplink), None)
            }
        };
        follow(&session, frame, &entry.quick)?;
        session.touch(self.now);
        // Nothing below fails.
        if action.is_routed() {
            routed(frame, &action, &entry.quick);
        }
        change.write(frame);
        let mut outer = 0;
        if let Some(tunnel) = tunnel {
            // Entropy from bits of the hash that the choice of the tunnel does not use.
            let class = change.class(entry.quick.traffic_class);
            let entropy = (key.hash >> 32) as u16;
            let vni = change.vni(entry.vni);
            let written = tunnel
                .template
                .write(area, start, entry.len, vni, class, entropy);
            debug_assert!(written, "there is the room that was asked for");
            outer = tunnel.template.overhead() as u16;
        } else if vlan != 0 {
            let written = segment::write_tag(area, start, vlan);
            debug_assert!(written, "there is the room that was asked for");
            outer = segment::TAG as u16;
        }
        Some((destination, start as u16 - outer, entry.len + outer))
    }
}

/// The uplink to a neighbour on an external network, for packets of so many bytes without a tag. Apart, so that it costs packets into tunnels nothing.
#[inline(never)]
fn untagged(tables: Tables<'_>, macs: MacPair, index: u16, ip_len: u16) -> Option<u16> {
    let (network, link) = egress::neighbor(tables, macs, index)?;
    (ip_len <= network.mtu && link.vlan == 0).then_some(link.uplink)
}

/// The uplink to the wire of an external network, and the VLAN there, for a frame that starts here in its buffer, with so many bytes of IP packet.
#[inline(never)]
fn wire(tables: Tables<'_>, index: u16, (ip_len, start): (u16, usize)) -> Option<(u16, u16)> {
    let network = tables.snapshot.outside.network(index)?;
    let link = network.link?;
    let room = if link.vlan == 0 { 0 } else { segment::TAG };
    (ip_len <= network.mtu && start >= room).then_some((link.uplink, link.vlan))
}

/// Follows the session with the packet. None: the slow path has to.
#[inline(always)]
fn follow(session: &SessionRef<'_>, frame: &[u8], quick: &QuickParse) -> Option<()> {
    if !quick.tcp {
        if session.is_answered() {
            session.set_state(State::BothWays);
        }
        return Some(());
    }
    let state = session.state();
    if !matches!(
        state,
        State::TcpEstablished | State::TcpFinOrigin | State::TcpFinReply
    ) {
        return None;
    }
    let l4 = usize::from(quick.l4);
    let len = quick.ip_len - (u16::from(quick.l4) - ETHERNET as u16);
    let segment = Segment::read(frame.get(l4..)?, len)?;
    let (mut sender, mut receiver) = session.tcp();
    if !tcp::window(&segment, &mut sender, &mut receiver) {
        return None;
    }
    session.set_tcp(sender, receiver);
    Some(())
}

/// What a router does to a packet.
#[inline(always)]
fn routed(frame: &mut [u8], action: &Action, quick: &QuickParse) {
    let Some(head) = frame.first_chunk_mut::<34>() else {
        return;
    };
    if let Some(macs) = head.first_chunk_mut() {
        action.new.write(macs);
    }
    if quick.l4 == L4_IPV6 {
        head[ETHERNET + 7] = quick.ttl - 1;
    } else {
        rewrite::set_ipv4_ttl(&mut head[ETHERNET..], quick.ttl - 1);
    }
}
