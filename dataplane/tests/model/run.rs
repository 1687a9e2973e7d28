//! One run: a plan's steps made into frames, each of which depends on what came of those before it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_dataplane::packet::DropReason;
use weft_proto::v1::{self, Objects};

use crate::case::{Case, Event, Translation};
use crate::connection::Connection;
use crate::craft;
use crate::differential::{Differential, Disagreement, Outcomes};
use crate::generate::{
    self, Act, Change, FabricPlan, InPlan, PacketPlan, PiecesPlan, Step, WirePlan,
};
use crate::rng::Rng;
use crate::semantics::frame::{Decoded, IP, RST, decode};
use crate::{multicast, outside, questions, traffic, wire};

/// Frames that steps may look back to.
const MEMORY: usize = 16;
/// Steps of a run at most: few enough that no table fills.
const STEPS: u16 = 800;

pub struct Run {
    plan: FabricPlan,
    objects: Objects,
    translations: Vec<Translation>,
    differential: Differential,
    connections: Vec<Connection>,
    sent: Vec<(String, Vec<u8>)>,
    got: Vec<(String, Vec<u8>)>,
    /// Frames that crossed, and the hosts that they went to.
    wire: Vec<(String, Vec<u8>)>,
    /// Frames that left for external networks, and the hosts that sent them.
    left: Vec<(String, Vec<u8>)>,
    /// Who takes the next packets.
    worker: u8,
    /// IP ids: each packet has its own.
    id: u16,
    pub totals: Totals,
}

/// What was compared.
#[derive(Debug, Default)]
pub struct Totals {
    pub frames: u64,
    /// Frames that reached a port, so that nobody mistakes silence for agreement.
    pub delivered: u64,
    /// Frames that reached a metadata service.
    pub asked: u64,
    /// Frames that left with other addresses.
    pub translated: u64,
    /// Frames that left for external networks, or came from there to a port.
    pub outside: u64,
    pub changes: u64,
    pub reasons: BTreeMap<DropReason, u64>,
}

impl Totals {
    pub fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.delivered += other.delivered;
        self.asked += other.asked;
        self.translated += other.translated;
        self.outside += other.outside;
        self.changes += other.changes;
        for (reason, count) in &other.reasons {
            *self.reasons.entry(*reason).or_default() += count;
        }
    }
}

/// Plays a case that the rng make up, and notes it in `case` as it goes.
pub fn play(mut rng: Rng, case: &mut Case) -> Result<Totals, Disagreement> {
    let plan = generate::fabric(&mut rng);
    (case.metadata, case.objects) = (plan.metadata, plan.objects());
    case.learns = plan.learns;
    case.translations = plan.translations(&case.objects);
    case.device_mtus = plan.device_mtus(&case.objects);
    let mut run = Run::new(plan, case)?;
    for _ in 0..1 + rng.word() % STEPS {
        run.worker = rng.below(2);
        run.step(&generate::step(&mut rng), case)?;
    }
    run.differential.finish()?;
    Ok(run.totals)
}

impl Run {
    fn new(plan: FabricPlan, case: &Case) -> Result<Self, Disagreement> {
        let mut run = Self {
            plan,
            objects: case.objects.clone(),
            translations: case.translations.clone(),
            differential: Differential::new(case)?,
            connections: Vec::new(),
            sent: Vec::new(),
            got: Vec::new(),
            wire: Vec::new(),
            left: Vec::new(),
            worker: 0,
            id: 0,
            totals: Totals::default(),
        };
        run.connect(&case.translations);
        Ok(run)
    }

    /// Three pairs of ports that can talk; one by way of the address that stands for the server's, if there is such a server.
    fn connect(&mut self, translations: &[Translation]) {
        for number in 0..3 {
            let v4 = number != 2;
            let mut pairs = Vec::new();
            for a in &self.objects.ports {
                for b in &self.objects.ports {
                    let ends = (traffic::address(a, v4), traffic::address(b, v4));
                    if let (Some(client), Some(server)) = ends
                        && traffic::may_reach(&self.objects, &a.vpc, &b.vpc)
                        && a.id != b.id
                    {
                        pairs.push((a, client, b, server));
                    }
                }
            }
            let outside = |vpc: &str, inside| {
                let mut all = translations.iter();
                let found = all.find(|other| other.vpc == vpc && other.inside == inside);
                found.map(|translation| translation.outside)
            };
            if number != 0
                && pairs
                    .iter()
                    .any(|(_, _, b, server)| outside(&b.vpc, *server).is_some())
            {
                pairs.retain(|(_, _, b, server)| outside(&b.vpc, *server).is_some());
            }
            if let Some((a, client, b, server)) =
                pairs.get(usize::from(number) * 5 % pairs.len().max(1))
            {
                let ends = ((a.id.as_str(), *client), (b.id.as_str(), *server));
                let mut connection = Connection::new(number, &a.vpc, ends.0, ends.1);
                let balancer = self.balancer_of(b, &a.vpc, v4);
                let as_it_is = balancer.filter(|address| {
                    let to = u32::from(connection.ports[1]);
                    let mut balancers = self.objects.load_balancers.iter();
                    let text = address.to_string();
                    let own = balancers.find(|it| it.vpc == a.vpc && it.addresses.contains(&text));
                    let mut listeners = own.into_iter().flat_map(|it| &it.listeners);
                    listeners.any(|it| {
                        let (first, last) = it.ports();
                        it.mode == "dsr" && it.protocol == "tcp" && (first..=last).contains(&to)
                    })
                });
                if number != 0
                    && let Some(server) = outside(&b.vpc, *server)
                {
                    connection.translate(outside(&a.vpc, *client), server);
                } else if let Some(balancer) = as_it_is {
                    connection = Connection::new(number, &a.vpc, ends.0, (&b.id, balancer));
                } else if let Some(balancer) = balancer {
                    // It may go to another member, and is not heard then.
                    connection.translate(None, balancer);
                }
                self.connections.push(connection);
            }
        }
    }

    /// The last whole frame that was sent to a load balancer and is no reset, and the load balancer's number.
    fn last_balanced(&self) -> Option<(usize, (String, Vec<u8>))> {
        let mut sent = self.sent.iter().rev();
        sent.find_map(|(port, frame)| {
            let Ok(Decoded::Ip(packet)) = decode(frame) else {
                return None;
            };
            let text = packet.flow.destination.to_string();
            let mut balancers = self.objects.load_balancers.iter();
            let balancer = balancers.position(|it| it.addresses.contains(&text))?;
            let is_good = packet.fragment.is_none() && !is_reset(frame);
            is_good.then(|| (balancer, (port.clone(), frame.clone())))
        })
    }

    /// An address of a load balancer of a VPC that has a port as a member.
    fn balancer_of(&self, port: &v1::Port, vpc: &str, v4: bool) -> Option<IpAddr> {
        let mut balancers = self.objects.load_balancers.iter();
        let balancer = balancers.find(|it| {
            let mut ports = it.member_ports();
            it.vpc == vpc && ports.any(|id| id == port.id)
        })?;
        let mut addresses = balancer.addresses.iter().map(|it| it.parse().unwrap());
        addresses.find(|address: &IpAddr| address.is_ipv4() == v4)
    }

    fn step(&mut self, step: &Step, case: &mut Case) -> Result<(), Disagreement> {
        self.id = self.id.wrapping_add(1);
        let back = |list: &[(String, Vec<u8>)], back: u8| {
            let at = list.len().checked_sub(1 + usize::from(back))?;
            Some(list[at].clone())
        };
        let sending = match step {
            Step::Packet(plan) => traffic::packet(&self.objects, plan, self.id),
            Step::Answer(n) => {
                back(&self.got, *n).and_then(|(port, frame)| Some((port, self.answer(&frame)?)))
            }
            Step::PassOn(n) => back(&self.got, *n).and_then(|(port, frame)| {
                let port = self.objects.ports.iter().find(|other| other.id == port)?;
                Some((
                    port.id.clone(),
                    traffic::pass_on(&self.objects, port, &frame)?,
                ))
            }),
            // Not resets: an old one lies before the window, and how far it may is not modelled.
            Step::Repeat(n) => back(&self.sent, *n)
                .filter(|(_, frame)| !is_reset(frame))
                .map(|(port, frame)| (port, self.anew(frame))),
            Step::Report {
                back: n,
                stranger,
                cut,
            } => back(&self.got, *n).and_then(|(port, frame)| {
                let port = self.objects.ports.iter().find(|other| other.id == port)?;
                traffic::report(&self.objects, port, &frame, *stranger, *cut)
            }),
            Step::Tcp {
                connection,
                from_server,
                act,
                more,
            } => {
                return self.talk(
                    case,
                    usize::from(*connection),
                    usize::from(*from_server),
                    (*act, *more),
                );
            }
            Step::Arp(plan) => traffic::arp(&self.objects, plan),
            Step::Solicit(plan) => traffic::solicit(&self.objects, plan),
            Step::Ask(plan) => questions::ask(&self.objects, plan),
            Step::Multicast(plan) => multicast::frame(&self.objects, plan, self.id),
            Step::Vector(plans) => return self.vector(case, plans),
            Step::Pieces(plan, cut) => {
                let sending = traffic::packet(&self.objects, plan, self.id);
                return self.pieces(case, sending, cut);
            }
            Step::Segment(plan, kind, size) => {
                let sending = traffic::packet(&self.objects, plan, self.id);
                return match sending {
                    Some((port, frame)) => self.segment(case, port, frame, (*kind, *size)),
                    None => Ok(()),
                };
            }
            Step::Wire(plan) => return self.off_the_wire(case, plan),
            Step::Out(plan) => traffic::packet_out(&self.objects, plan, self.id),
            Step::OutPieces(plan, cut) => {
                let sending = traffic::packet_out(&self.objects, plan, self.id);
                return self.pieces(case, sending, cut);
            }
            Step::OutSegment(plan, kind, size) => {
                let sending = traffic::packet_out(&self.objects, plan, self.id);
                return match sending {
                    Some((port, frame)) => self.segment(case, port, frame, (*kind, *size)),
                    None => Ok(()),
                };
            }
            Step::In(plan) => return self.arrives_from_outside(case, plan),
            Step::Change(change) => {
                if matches!(change, Change::Port { .. }) {
                    // Where a port goes, its datagrams in pieces go, when their time runs out at the latest.
                    self.take(case, Event::Wait(11_000))?;
                }
                let (mut change, mut again) = (change.clone(), None);
                if let Change::Members(which, _) = &mut change
                    && let Some((balancer, sent)) = self.last_balanced()
                {
                    // Of the load balancer that was in use last.
                    let before = self.plan.balancers.iter().take(balancer);
                    let before: usize = before.map(|it| it.listeners.len()).sum();
                    let own = self.plan.balancers[balancer].listeners.len();
                    *which = (before + usize::from(*which) % own) as u8;
                    again = Some(sent);
                }
                if let Some((port, frame)) = again.clone() {
                    self.send(case, port, vec![self.anew(frame)])?;
                }
                self.plan.change(&change);
                self.objects = self.plan.objects();
                if matches!(change, Change::Translations(_)) {
                    self.translations = self.plan.translations(&self.objects);
                    let translations = self.translations.clone();
                    return self.take(case, Event::Translate(translations)).map(|_| ());
                }
                // What gets an elastic IP has no other translation any more.
                let before = self.translations.len();
                let objects = &self.objects;
                self.translations
                    .retain(|it| !generate::has_elastic(objects, &it.vpc, it.inside));
                if self.translations.len() < before {
                    let translations = self.translations.clone();
                    self.take(case, Event::Translate(translations))?;
                }
                let objects = self.objects.clone();
                self.take(case, Event::Configure(Box::new(objects)))?;
                self.id = self.id.wrapping_add(1);
                again.map(|(port, frame)| (port, self.anew(frame)))
            }
            Step::Wait(length) => {
                let seconds = [1, 20, 31, 61, 119, 121, 181, 250, 301, 7441];
                let milliseconds = seconds[usize::from(*length) % seconds.len()] * 1000;
                return self.take(case, Event::Wait(milliseconds)).map(|_| ());
            }
        };
        match sending {
            Some((port, frame)) => self.send(case, port, vec![frame]),
            None => Ok(()),
        }
    }

    /// A guest's answer. Connections of guests among themselves have answers of their own.
    fn answer(&self, frame: &[u8]) -> Option<Vec<u8>> {
        if let Ok(Decoded::Ip(packet)) = decode(frame)
            && packet.tcp.is_some()
        {
            let is_outside = self.differential.is_outside(packet.flow.source);
            return is_outside
                .then(|| outside::answer(&packet, self.id))
                .flatten();
        }
        traffic::answer(frame)
    }

    /// The same frame, but under another id where it may be fragmented: it is another datagram.
    fn anew(&self, mut frame: Vec<u8>) -> Vec<u8> {
        if matches!(decode(&frame), Ok(Decoded::Ip(packet)) if !packet.dont_fragment) {
            frame[IP + 4..IP + 6].copy_from_slice(&self.id.to_be_bytes());
            craft::fix_ipv4_checksum(&mut frame);
        }
        frame
    }

    /// A guest of a connection acts, and sends so many segments more in the same vector if it is data.
    fn talk(
        &mut self,
        case: &mut Case,
        connection: usize,
        side: usize,
        (act, more): (Act, u8),
    ) -> Result<(), Disagreement> {
        if matches!(act, Act::Handshake) {
            self.talk(case, connection, side, (Act::Syn, 0))?;
            self.talk(case, connection, 1 - side, (Act::SynAck, 0))?;
            return self.talk(case, connection, side, (Act::Ack, 0));
        }
        let Some(talk) = self.connections.get_mut(connection) else {
            return Ok(());
        };
        let settled =
            !talk.is_translated() && self.differential.model.is_settled(&talk.vpc, &talk.flow());
        let again = match act {
            Act::Data(_) | Act::BigData => more,
            _ => 0,
        };
        let (mut sender, mut frames) = (None, Vec::new());
        for _ in 0..=again {
            let Some(sending) = talk.act(side, act, settled) else {
                break;
            };
            let mut ports = self.objects.ports.iter();
            let Some(port) = ports.find(|port| port.id == sending.port) else {
                break;
            };
            let dst = traffic::next_mac(&self.objects, port, sending.ends[1]);
            let frame = sending.frame(dst, traffic::mac(&port.mac), self.id);
            if let Act::Segment(_, size) = act {
                // Each piece gets an id.
                self.id = self.id.wrapping_add(256);
                let kind = if sending.is_v4() { 1 } else { 2 };
                let frame = sending.left(frame);
                return self.segment(case, sending.port, frame, (kind, size.max(64)));
            }
            frames.push(frame);
            sender = Some(sending.port);
            self.id = self.id.wrapping_add(1);
        }
        match sender {
            Some(port) => self.send(case, port, frames),
            None => Ok(()),
        }
    }

    /// Packets of one port, as many as it has of them.
    fn vector(&mut self, case: &mut Case, plans: &[PacketPlan]) -> Result<(), Disagreement> {
        let from = plans.first().map_or(0, |plan| plan.from);
        let (mut sender, mut frames) = (None, Vec::new());
        for plan in plans {
            self.id = self.id.wrapping_add(1);
            let plan = PacketPlan {
                from,
                ..plan.clone()
            };
            if let Some((port, frame)) = traffic::packet(&self.objects, &plan, self.id) {
                sender = Some(port);
                frames.push(frame);
            }
        }
        match sender {
            Some(port) => self.send(case, port, frames),
            None => Ok(()),
        }
    }

    fn pieces(
        &mut self,
        case: &mut Case,
        sending: Option<(String, Vec<u8>)>,
        cut: &PiecesPlan,
    ) -> Result<(), Disagreement> {
        let Some((port, frame)) = sending else {
            return Ok(());
        };
        let pieces = traffic::pieces(&frame, cut, self.id);
        if cut.together {
            return self.send(case, port, pieces);
        }
        for piece in pieces {
            self.send(case, port.clone(), vec![piece])?;
        }
        Ok(())
    }

    fn segment(
        &mut self,
        case: &mut Case,
        port: String,
        frame: Vec<u8>,
        (kind, size): (u8, u16),
    ) -> Result<(), Disagreement> {
        let event = Event::Segment {
            port,
            worker: self.worker,
            kind,
            size,
            frames: vec![frame],
        };
        let found = self.take(case, event)?;
        self.hear(found);
        Ok(())
    }

    fn arrives_from_outside(&mut self, case: &mut Case, plan: &InPlan) -> Result<(), Disagreement> {
        let made = outside::frames(&self.objects, &self.left, plan, self.id);
        let Some((host, frames)) = made else {
            return Ok(());
        };
        let event = Event::Arrive {
            host,
            worker: self.worker,
            frames,
        };
        let found = self.take(case, event)?;
        self.hear(found);
        Ok(())
    }

    fn off_the_wire(&mut self, case: &mut Case, plan: &WirePlan) -> Result<(), Disagreement> {
        let Some(at) = self.wire.len().checked_sub(1 + usize::from(plan.back)) else {
            return Ok(());
        };
        let (host, before) = &self.wire[at];
        let Some(frame) = wire::frame(&self.objects, before, plan) else {
            return Ok(());
        };
        let event = Event::Receive {
            host: host.clone(),
            worker: self.worker,
            frames: vec![frame],
        };
        let found = self.take(case, event)?;
        self.hear(found);
        Ok(())
    }

    fn send(
        &mut self,
        case: &mut Case,
        port: String,
        frames: Vec<Vec<u8>>,
    ) -> Result<(), Disagreement> {
        let sent = frames.iter().map(|frame| (port.clone(), frame.clone()));
        remember(&mut self.sent, sent);
        let event = Event::Send {
            port,
            worker: self.worker,
            frames,
        };
        let found = self.take(case, event)?;
        self.hear(found);
        Ok(())
    }

    /// What came of it becomes known to guests and to the wire.
    fn hear(&mut self, found: Outcomes) {
        for connection in &mut self.connections {
            connection.hear(&found.delivered);
        }
        let whole = |(_, frame): &(String, Vec<u8>)| !matches!(decode(frame), Ok(Decoded::Ip(packet)) if packet.fragment.is_some());
        remember(&mut self.got, found.delivered.into_iter().filter(whole));
        remember(&mut self.wire, found.wire);
        remember(&mut self.left, found.left);
    }

    /// An event happens, and is noted first: whatever comes of it can be played again.
    fn take(&mut self, case: &mut Case, event: Event) -> Result<Outcomes, Disagreement> {
        case.events.push(event);
        let event = &case.events[case.events.len() - 1];
        let found = self.differential.take(event)?;
        self.totals.frames = self.differential.frames;
        self.totals.translated = self.differential.model.translated;
        self.totals.changes +=
            u64::from(matches!(event, Event::Configure(_) | Event::Translate(_)));
        self.totals.delivered += found.delivered.len() as u64;
        self.totals.asked += found.asked;
        self.totals.outside += found.left.len() as u64;
        if let Event::Arrive { .. } = event {
            self.totals.outside += found.delivered.len() as u64;
        }
        for reason in &found.dropped {
            *self.totals.reasons.entry(*reason).or_default() += 1;
        }
        Ok(found)
    }
}

fn remember(list: &mut Vec<(String, Vec<u8>)>, more: impl IntoIterator<Item = (String, Vec<u8>)>) {
    list.extend(more);
    let old = list.len().saturating_sub(MEMORY);
    list.drain(..old);
}

fn is_reset(frame: &[u8]) -> bool {
    let packet = decode(frame);
    matches!(packet, Ok(Decoded::Ip(packet)) if packet.tcp.is_some_and(|tcp| tcp.has(RST)))
}
