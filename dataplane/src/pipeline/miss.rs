//! The long way round: a packet that has to be resolved, and what comes of it.

use super::resolve::{Record, Refusal, Reply, Verdict, flow, resolve};
use super::tracer::Tracer;
use super::translate::Decision;
use super::{Core, Destination, Entry, Io, Service, Tables, balancing};
use crate::numbers::{Vni, VpcIndex};
use crate::packet::{DropReason, Offload, Packet, Segments};
use crate::session::table::{Ingress, NewSession, SessionRef, Stamp};
use crate::session::{InsertError, State};
use crate::snapshot::Asked;

use super::external::neighbors::{Neighbors, Question};
use super::learning::waiting::What;
use super::rate_limit::Limiter;

/// Real packets: nobody listens, and limits count.
struct Live<'a> {
    flows: &'a mut Limiter,
    vpc_flows: &'a mut Limiter,
    questions: &'a mut Vec<Question>,
    neighbors: &'a Neighbors,
    asked: &'a mut Option<(usize, Asked)>,
    now: u32,
}

impl Tracer for Live<'_> {
    #[inline]
    fn step(&mut self, _stage: &'static str, _text: impl FnOnce() -> String) {}

    fn open_flow(&mut self, ingress: Ingress, vpc: VpcIndex) -> Result<(), DropReason> {
        if let Ingress::Port(index) = ingress
            && !self.flows.take(index.into(), self.now)
        {
            return Err(DropReason::FlowLimit);
        }
        if !self.vpc_flows.take(vpc.get() as usize, self.now) {
            return Err(DropReason::VpcFlowLimit);
        }
        Ok(())
    }

    fn may_change(&self) -> bool {
        true
    }

    fn unresolved(&mut self, network: u16, address: u128) {
        if self.questions.len() < self.questions.capacity()
            && self.neighbors.ask(network, address, self.now)
        {
            self.questions.push(Question {
                network,
                address,
                at: None,
            });
        }
    }

    fn unlearned(&mut self, vpc: usize, asked: Asked) {
        *self.asked = Some((vpc, asked));
    }
}

impl Core {
    fn live<'a>(&'a mut self, tables: Tables<'a>) -> Live<'a> {
        Live {
            flows: &mut self.flows,
            vpc_flows: &mut self.vpc_flows,
            questions: &mut self.questions,
            neighbors: tables.neighbors,
            asked: &mut self.asked,
            now: self.now,
        }
    }

    /// No session, or none that can answer: the packet is resolved.
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
        let start = usize::from(packet.start);
        let area = io.bytes_mut(&mut packet.frame).get_mut(start..);
        let area = area.unwrap_or_default();
        let verdict = resolve(tables, entry, area, session, &mut self.live(tables));
        let verdict = match verdict {
            Ok(Verdict::Forward(decision, record)) => self
                .record(tables, entry, &decision, record)
                .map(|()| Verdict::Forward(decision, Record::Nothing)),
            Ok(Verdict::Punt(Service::Dns)) if is_many_datagrams(io, &packet) => {
                Err(DropReason::DnsMalformed)
            }
            Ok(verdict) => self.admit(entry, &verdict).map(|()| verdict),
            Err(refusal) => {
                let reason = self.refuse(tables, &refusal);
                if refusal.reset {
                    return self.reset(tables, io, packet, entry, reason);
                }
                Err(reason)
            }
        };
        match verdict {
            Ok(Verdict::Forward(decision, _)) => {
                self.execute(tables, io, packet, entry, &decision);
            }
            Ok(Verdict::Relay(action)) => {
                self.execute(tables, io, packet, entry, &Decision::from(action));
            }
            Ok(Verdict::Reply(reply)) => self.reply(tables, io, packet, entry, reply),
            Ok(Verdict::Punt(service)) => match entry.ingress {
                Ingress::Port(index) => io.send(Destination::Service(service, index), packet),
                Ingress::Peer(_) | Ingress::External(_) => {
                    self.drop(tables, io, packet, entry.ingress, DropReason::NotHere);
                }
            },
            Ok(Verdict::Flood) => self.flood(tables, io, packet, entry),
            Ok(Verdict::Fragment(fragment)) => {
                self.fragment(tables, io, packet, entry, fragment, session);
            }
            Err(DropReason::AddressUnlearned) => self.learn(tables, io, packet, entry),
            Err(reason) => self.drop(tables, io, packet, entry.ingress, reason),
        }
        if !self.questions.is_empty() {
            self.ask_neighbors(tables, io);
        }
    }

    /// Tells the port that has sent a TCP segment that there is nobody, in place of the segment.
    fn reset(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        reason: DropReason,
    ) {
        let Ingress::Port(index) = entry.ingress else {
            return self.drop(tables, io, packet, entry.ingress, reason);
        };
        if let Err(reason) = self.may_reply(index) {
            return self.drop(tables, io, packet, entry.ingress, reason);
        }
        let start = usize::from(packet.start);
        let area = io.bytes_mut(&mut packet.frame).get_mut(start..);
        let len = balancing::reset(area.unwrap_or_default(), &entry.parsed);
        let Some(len) = len else {
            return self.drop(tables, io, packet, entry.ingress, reason);
        };
        // The segment is dropped; the reset is a new one.
        self.counters.port(index).drop(reason);
        self.counters.port(index).generated.add(1);
        let reset = Reply {
            len: Some(len),
            name: "reset",
        };
        self.reply(tables, io, packet, entry, reset);
    }

    /// Asks for what has to be known of a packet, which waits for the answer.
    fn learn(&mut self, tables: Tables<'_>, io: &mut impl Io, packet: Packet, entry: &Entry) {
        let asked = self.asked.take().ok_or(DropReason::AddressUnlearned);
        let what = (What::Ip(*entry), entry.ingress);
        self.ask_and_wait(tables, io, packet, what, asked);
    }

    /// Whether a port may cause one more reply or question.
    fn admit(&mut self, entry: &Entry, verdict: &Verdict<'_>) -> Result<(), DropReason> {
        let Ingress::Port(index) = entry.ingress else {
            return Ok(());
        };
        match verdict {
            Verdict::Reply(_) | Verdict::Relay(_) => self.may_reply(index),
            Verdict::Punt(service) => {
                let limiter = match service {
                    Service::Metadata => &mut self.metadata,
                    Service::Health => &mut self.answers,
                    Service::Querier => &mut self.reports,
                    Service::Holders => &mut self.announcements,
                    Service::Dns => &mut self.dns,
                };
                let is_within = limiter.take(index.into(), self.now);
                is_within.then_some(()).ok_or_else(|| service.limited())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn may_reply(&mut self, port: u16) -> Result<(), DropReason> {
        if self.replies.take(port.into(), self.now) {
            Ok(())
        } else {
            Err(DropReason::ReplyLimit)
        }
    }

    /// Sends an answer of the gateway to who asked.
    fn reply(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        mut packet: Packet,
        entry: &Entry,
        reply: Reply,
    ) {
        if let Some(len) = reply.len {
            packet.len = len;
        }
        match entry.ingress {
            Ingress::Port(index) => {
                if reply.len.is_some() && packet.frame.is_large() {
                    // Whatever was to be split, the answer is not.
                    Offload::default().write(io, &mut packet.frame);
                }
                self.deliver(tables, io, index, packet);
            }
            // No question of an external network is answered here.
            Ingress::External(_) => io.free(packet.frame),
            Ingress::Peer(_) => {
                let vni = tables.snapshot.vpcs[entry.vpc].vni;
                self.answer_peer(tables, io, packet, entry, vni);
            }
        }
    }

    /// Sends an answer back to the peer that asked, in the VPC of this VNI.
    pub(super) fn answer_peer(
        &mut self,
        tables: Tables<'_>,
        io: &mut impl Io,
        packet: Packet,
        entry: &Entry,
        vni: Vni,
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
                let header = (vni, entry.parsed.traffic_class);
                self.encapsulate(tables, io, packet, entry, header, tunnel);
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

    /// Where a packet of a flow goes; what is to be remembered of it is.
    pub(super) fn decide(
        &mut self,
        tables: Tables<'_>,
        frame: &[u8],
        entry: &Entry,
        session: Option<SessionRef<'_>>,
    ) -> Result<Decision, DropReason> {
        match flow(tables, entry, frame, session, &mut self.live(tables)) {
            Ok((decision, record)) => {
                self.record(tables, entry, &decision, record)?;
                Ok(decision)
            }
            Err(refusal) => {
                // The rest of its datagram is with it: that comes again.
                if let Some(asked) = self.asked.take() {
                    self.ask(tables.snapshot, entry.ingress, asked)?;
                }
                Err(self.refuse(tables, &refusal))
            }
        }
    }

    /// Why the packet is dropped; what its session may no longer do is over.
    fn refuse(&self, tables: Tables<'_>, refusal: &Refusal<'_>) -> DropReason {
        if let Some(session) = &refusal.denied {
            deny(tables, session, self.now);
        }
        refusal.reason
    }

    /// Keeps what was decided in the packet's session; a packet that opens a flow gets one.
    fn record(
        &mut self,
        tables: Tables<'_>,
        entry: &Entry,
        decision: &Decision,
        record: Record<'_>,
    ) -> Result<(), DropReason> {
        let vpc = &tables.snapshot.vpcs[entry.vpc];
        let stamp = Stamp::new(vpc.epoch, entry.ingress);
        match record {
            Record::Nothing => {}
            Record::Known(session, standings) => {
                let before = session.state();
                standings.keep(&session, self.now);
                if self.telling.is_wanted && session.is_translated() && session.state() != before {
                    self.telling.note(&session, self.now);
                }
                // What the groups say of a SYN that may begin the connection anew does not hold for the packets of the one that stands.
                if standings.standing().is_none() {
                    if session.action(stamp).is_none() {
                        self.counters.decided_again.add(1);
                    }
                    session.set_action(stamp, &decision.action);
                }
            }
            Record::Open(opened) => {
                for session in opened.over.iter().flatten() {
                    tables.sessions.remove(session);
                }
                let new = NewSession {
                    state: opened.state,
                    port: opened.port,
                    vpc: vpc.index,
                    now: self.now,
                    tcp: opened.tcp,
                    action: Some((stamp, decision.action)),
                    translation: opened.second,
                    mapping: opened.mapping,
                    chosen: opened.chosen,
                    member: opened.member,
                };
                let session = tables.sessions.insert(&entry.key, &new);
                let session = session.map_err(|error| match error {
                    InsertError::Full => DropReason::SessionTableFull,
                    InsertError::PortBudget => DropReason::SessionPortBudget,
                    InsertError::VpcBudget => DropReason::SessionVpcBudget,
                    InsertError::Clash => DropReason::TranslationClash,
                })?;
                session.touch(self.now);
                if self.telling.is_wanted && opened.second.is_some() {
                    self.telling.note(&session, self.now);
                }
            }
        }
        Ok(())
    }
}

/// Whether a packet is to be split into datagrams (USO): each of them would be a question, and the limit of its port counts packets. No resolver sends such.
fn is_many_datagrams(io: &impl Io, packet: &Packet) -> bool {
    packet.frame.is_large() && Offload::read(io, &packet.frame).segments == Segments::Udp
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
