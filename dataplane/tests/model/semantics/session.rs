//! Tracked flows: a list. TCP is followed by RFC 9293's states as a bystander sees them; of the windows only so much is modelled that
//! what is far away is out, and that nothing unsent can be acknowledged.

use std::net::IpAddr;

use weft_dataplane::packet::DropReason;
use weft_proto::v1;

use super::frame::{ACK, Detail, FIN, Flow, Packet, RST, SYN, Segment};
use super::outside::OUTSIDE;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    OneWay,
    BothWays,
    Query,
    SynSent,
    /// Both sides have sent a SYN.
    Simultaneous,
    /// Both have, and one of them (the opener: true) has acknowledged the other's.
    SimultaneousAcked(bool),
    SynReceived,
    Established,
    /// One side (the opener: true) has sent its FIN.
    FinFrom(bool),
    TimeWait,
    Closed,
    /// Policy has ended a connection: it is not forgotten, so that no segment in mid-stream begins it again.
    Denied,
}

impl Stage {
    /// How long it may idle, in milliseconds (RFC 5382, RFC 4787, RFC 5508).
    fn timeout(self) -> u32 {
        let seconds = match self {
            Self::OneWay => 120,
            Self::BothWays => 180,
            Self::Query | Self::SynSent | Self::Simultaneous => 60,
            Self::SimultaneousAcked(_) | Self::SynReceived => 60,
            Self::Established => 7440,
            Self::FinFrom(_) | Self::Denied => 240,
            Self::TimeWait | Self::Closed => 30,
        };
        seconds * 1000
    }

    /// The same through a NAT gateway; none where that has no say.
    fn timeout_at(self, gateway: &v1::NatGateway) -> Option<u32> {
        let set = gateway.timeouts.unwrap_or_default();
        let (set, default) = match self {
            Self::OneWay | Self::BothWays => (set.udp, 300),
            Self::Query => (set.icmp, 60),
            Self::Established => (set.tcp_established, 7440),
            Self::TimeWait | Self::Closed => return None,
            _ => (set.tcp_transitory, 240),
        };
        Some(if set == 0 { default } else { set } * 1000)
    }
}

/// What is known of the numbers of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Knowledge {
    /// All that it has sent was seen.
    #[default]
    Exact,
    /// Seen from the midst on: it has sent this much, or more.
    AtLeast,
    /// Nothing, until it speaks or is acknowledged.
    Nothing,
}

/// What one side of a connection has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct End {
    /// The number after the highest that it sent, as far as known.
    pub next: u32,
    /// The highest number that the other side has allowed.
    pub limit: u32,
    /// The highest number that it has acknowledged.
    pub acked: u32,
    /// The number after its SYN that waits for an answer.
    pub offer: Option<u32>,
    pub knowledge: Knowledge,
    /// A segment of it was seen.
    pub spoke: bool,
    /// The connection may be seen one way only: numbers are not held against anybody.
    pub one_sided: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub vni: u32,
    /// As its opener sends.
    pub flow: Flow,
    /// Of a translated flow: what its packets were and what they became, as the first one that opened it went.
    pub translated: Option<[Flow; 2]>,
    /// VNIs that those two are known by: one, unless the flow goes from a VPC to the outside or the other way.
    pub sides: [u32; 2],
    /// The mapping of a NAT gateway that it uses.
    pub mapping: Option<u32>,
    /// The member of a load balancer that gets what its opener sends as it is.
    pub member: Option<IpAddr>,
    /// The port that it is charged to.
    pub charged: Option<String>,
    /// The other VPC's, of a flow that goes from one VPC into another.
    pub joined: Option<u32>,
    pub stage: Stage,
    /// The opener, and the other side.
    pub ends: [End; 2],
    pub last_seen: u32,
}

impl Session {
    /// `gateway`: the NAT gateway that has its outside address.
    pub fn is_expired(&self, now: u32, gateway: Option<&v1::NatGateway>) -> bool {
        let own = gateway.and_then(|gateway| self.stage.timeout_at(gateway));
        now - self.last_seen >= own.unwrap_or(self.stage.timeout())
    }

    /// The outside address that stands for one of its ends, if it is with the outside or has a mapping.
    pub fn outside_address(&self) -> Option<IpAddr> {
        let [before, after] = self.translated?;
        if self.mapping.is_some() || self.sides[1] == OUTSIDE {
            Some(after.source)
        } else {
            (self.sides[0] == OUTSIDE).then_some(before.destination)
        }
    }

    /// Whether the flow is of the session, and how a packet of it stands to the session.
    pub fn place(&self, vni: u32, flow: &Flow) -> Option<Place> {
        // An ICMP message that is no query has no answer: one of the same type that comes back is a flow of its own.
        let answerable = !matches!(flow.detail, Detail::Message(..));
        let is = |one: &Flow| one == flow;
        let is_back = |one: &Flow| answerable && one.reversed() == *flow;
        let Some([before, after]) = self.translated else {
            if self.vni != vni && self.joined != Some(vni) {
                return None;
            }
            let from_opener = match () {
                () if is(&self.flow) => true,
                () if is_back(&self.flow) => false,
                () => return None,
            };
            return Some(Place {
                from_opener,
                becomes: None,
                was: None,
            });
        };
        // The first opener's packets come as `before` and leave as `after`; those of the other side the other way round.
        let [near, far] = self.sides;
        let (first, becomes, was) = match () {
            () if near == vni && is(&before) => (true, Some((after, far)), None),
            () if far == vni && is_back(&after) => (false, Some((before.reversed(), near)), None),
            () if far == vni && is(&after) => (true, None, Some((before, near))),
            () if near == vni && is_back(&before) => (false, None, Some((after.reversed(), far))),
            () => return None,
        };
        Some(Place {
            from_opener: first == (self.flow == before),
            becomes,
            was,
        })
    }

    /// The VNI of the other VPC, as seen from one of its two.
    pub fn other(&self, vni: u32) -> Option<u32> {
        let joined = self.joined?;
        Some(if vni == self.vni { joined } else { self.vni })
    }

    /// Whether both sides have spoken, so that "far away" has a meaning.
    pub fn is_settled(&self) -> bool {
        self.ends.iter().all(|end| {
            end.spoke && end.knowledge != Knowledge::Nothing && !end.one_sided && end.next != 0
        })
    }
}

/// How a packet stands to its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub from_opener: bool,
    /// What it becomes, if the flow is translated, and in which VNI.
    pub becomes: Option<(Flow, u32)>,
    /// It looks like one that has been translated already, and was this before.
    pub was: Option<(Flow, u32)>,
}

pub enum Follow {
    /// The packet belongs to the session, which then stands thus.
    Pass(Stage, [End; 2]),
    /// A SYN on a connection that may be alive: it passes if its sender may open flows.
    Offer(Stage, [End; 2]),
    /// The connection begins again with what the receiver has offered; it is the opener now. The ends are the receiver's and the sender's.
    Afresh([End; 2]),
    /// The connection was over; this opens another.
    Reopen,
    Drop(DropReason),
}

/// What a packet that belongs to no session opens. `one_sided`: on the way of a port that sends with any address.
pub fn open(packet: &Packet, one_sided: bool) -> Result<(Stage, [End; 2]), DropReason> {
    if let Some(segment) = packet.tcp {
        let stage = match segment.flags & (SYN | ACK | FIN | RST) {
            SYN => {
                let other = End {
                    acked: segment.seq,
                    one_sided,
                    ..End::default()
                };
                return Ok((
                    Stage::SynSent,
                    [opener(&segment, &End::default(), one_sided), other],
                ));
            }
            ACK => Stage::Established,
            flags if flags == SYN | ACK && one_sided => Stage::SynReceived,
            flags if flags == FIN | ACK => Stage::FinFrom(true),
            flags if flags & (RST | SYN) == RST => Stage::Closed,
            _ => return Err(DropReason::TcpInvalid),
        };
        let speaker = End {
            next: segment.seq.wrapping_add(segment.space),
            acked: segment.ack,
            knowledge: Knowledge::AtLeast,
            spoke: true,
            one_sided,
            ..End::default()
        };
        let other = End {
            next: segment.ack,
            acked: segment.seq,
            knowledge: match segment.has(ACK) {
                true => Knowledge::AtLeast,
                false => Knowledge::Nothing,
            },
            // It can be told what is far from it, for it has sent what was acknowledged.
            spoke: segment.has(ACK),
            one_sided,
            ..End::default()
        };
        return Ok((stage, [speaker, other]));
    }
    match packet.flow.detail {
        Detail::Query { answer: true, .. } => Err(DropReason::IcmpUnrelated),
        Detail::Query { .. } | Detail::Message(..) => Ok((Stage::Query, Default::default())),
        _ => Ok((Stage::OneWay, Default::default())),
    }
}

/// The side that has sent a SYN.
fn opener(segment: &Segment, before: &End, one_sided: bool) -> End {
    let next = segment.seq.wrapping_add(segment.space);
    End {
        next,
        limit: next,
        acked: before.acked,
        offer: Some(segment.seq.wrapping_add(1)),
        knowledge: Knowledge::Exact,
        spoke: true,
        one_sided,
    }
}

/// What a packet makes of its session.
pub fn follow(session: &Session, from_opener: bool, packet: &Packet) -> Follow {
    let Some(segment) = packet.tcp else {
        let stage = match session.stage {
            Stage::OneWay if !from_opener => Stage::BothWays,
            stage => stage,
        };
        return Follow::Pass(stage, session.ends);
    };
    let [opener, other] = session.ends;
    let mut pair = match from_opener {
        true => Pair {
            sender: opener,
            receiver: other,
        },
        false => Pair {
            sender: other,
            receiver: opener,
        },
    };
    let verdict = if segment.has(RST) {
        pair.reset(session.stage, from_opener, &segment)
    } else if segment.has(SYN) && segment.has(ACK) {
        pair.accept(session.stage, from_opener, &segment)
    } else if segment.has(SYN) {
        pair.ask(session.stage, from_opener, &segment)
    } else {
        pair.speak(session.stage, from_opener, &segment)
    };
    let ends = match from_opener {
        true => [pair.sender, pair.receiver],
        false => [pair.receiver, pair.sender],
    };
    match verdict {
        Verdict::Pass(stage) => Follow::Pass(stage, ends),
        Verdict::Offer => Follow::Offer(session.stage, ends),
        Verdict::Afresh => Follow::Afresh([pair.receiver, pair.sender]),
        Verdict::Reopen => Follow::Reopen,
        Verdict::Invalid => Follow::Drop(DropReason::TcpInvalid),
        Verdict::Outside => Follow::Drop(DropReason::TcpWindow),
    }
}

enum Verdict {
    Pass(Stage),
    Offer,
    Afresh,
    Reopen,
    Invalid,
    Outside,
}

/// Sender and receiver of a segment.
struct Pair {
    sender: End,
    receiver: End,
}

fn ahead(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

/// Most that a SYN carries.
const SYN_DATA: i32 = 0xffff;
/// The largest window (RFC 7323 2.3).
const LARGEST: u32 = 1 << 30;

impl Pair {
    /// SYN.
    fn ask(&mut self, stage: Stage, from_opener: bool, segment: &Segment) -> Verdict {
        let offer = Some(segment.seq.wrapping_add(1));
        match stage {
            Stage::SynSent if from_opener => {
                self.sender = opener(segment, &End::default(), self.sender.one_sided);
                Verdict::Pass(stage)
            }
            Stage::SynSent => {
                let sender = opener(segment, &self.sender, self.sender.one_sided);
                // A SYN's window, rounded up as windows are kept.
                let limit = sender.next.wrapping_add(1 << 16);
                self.sender = End { limit, ..sender };
                self.receiver.acked = segment.seq;
                Verdict::Pass(Stage::Simultaneous)
            }
            Stage::Simultaneous | Stage::SimultaneousAcked(_) => {
                self.sender.offer = offer;
                Verdict::Pass(stage)
            }
            Stage::SynReceived | Stage::Established | Stage::FinFrom(_) => {
                self.sender.offer = offer;
                Verdict::Offer
            }
            Stage::TimeWait | Stage::Closed | Stage::Denied => Verdict::Reopen,
            Stage::OneWay | Stage::BothWays | Stage::Query => Verdict::Invalid,
        }
    }

    fn answers(&self, stage: Stage, segment: &Segment) -> bool {
        let Some(offer) = self.receiver.offer.filter(|_| segment.has(ACK)) else {
            return false;
        };
        let taken = segment.ack.wrapping_sub(offer);
        taken <= SYN_DATA as u32
            && (stage != Stage::SynSent || ahead(segment.ack, self.receiver.next) <= 0)
    }

    /// SYN-ACK.
    fn accept(&mut self, stage: Stage, from_opener: bool, segment: &Segment) -> Verdict {
        let answers = self.answers(stage, segment);
        let lenient = self.sender.one_sided;
        match stage {
            Stage::SynSent if from_opener => Verdict::Invalid,
            Stage::SynSent if answers => {
                self.agree(segment);
                Verdict::Pass(Stage::SynReceived)
            }
            Stage::Simultaneous | Stage::SimultaneousAcked(_) if answers => {
                self.agree(segment);
                Verdict::Pass(acknowledged(stage, from_opener))
            }
            Stage::SynReceived if answers && !from_opener && self.is_known(segment) => {
                self.grant(segment);
                Verdict::Pass(stage)
            }
            Stage::SynReceived | Stage::Established | Stage::FinFrom(_) if answers => {
                self.agree(segment);
                Verdict::Afresh
            }
            Stage::Established | Stage::FinFrom(_) => Verdict::Pass(stage),
            Stage::SynSent | Stage::SynReceived if lenient => {
                self.sender.knowledge = Knowledge::Nothing;
                self.receiver.knowledge = Knowledge::Nothing;
                Verdict::Pass(Stage::SynReceived)
            }
            Stage::SynReceived if from_opener => Verdict::Invalid,
            Stage::SynSent
            | Stage::SynReceived
            | Stage::Simultaneous
            | Stage::SimultaneousAcked(_) => Verdict::Outside,
            _ => Verdict::Invalid,
        }
    }

    /// Whether a SYN-ACK repeats one that was seen.
    fn is_known(&self, segment: &Segment) -> bool {
        let sent = ahead(self.sender.next, segment.seq.wrapping_add(segment.space));
        let asked = ahead(self.receiver.next, segment.ack);
        (0..66_000).contains(&sent) && (0..66_000).contains(&asked)
    }

    /// Both sides have agreed on a connection: all that was before is void.
    fn agree(&mut self, segment: &Segment) {
        let unacknowledged = ahead(self.receiver.next, segment.ack);
        let next = segment.seq.wrapping_add(segment.space);
        self.receiver = End {
            next: match (0..=SYN_DATA).contains(&unacknowledged) {
                true => self.receiver.next,
                false => segment.ack,
            },
            limit: segment.ack,
            acked: segment.seq,
            knowledge: Knowledge::Exact,
            spoke: true,
            ..self.receiver
        };
        self.sender = End {
            next,
            limit: next.wrapping_add(SYN_DATA as u32),
            acked: segment.ack,
            knowledge: Knowledge::Exact,
            spoke: true,
            ..self.sender
        };
        self.grant(segment);
    }

    /// RST: RFC 5961 3.2, RFC 9293 3.10.7.
    fn reset(&self, stage: Stage, from_opener: bool, segment: &Segment) -> Verdict {
        let seq = segment.seq;
        let exact = seq == self.receiver.acked || seq == self.sender.next;
        let exact = exact && self.sender.knowledge != Knowledge::Nothing;
        let waits = stage == Stage::SynSent;
        if self.sender.one_sided
            || self.answers(stage, segment)
            || (exact && (from_opener || !waits))
        {
            return Verdict::Pass(Stage::Closed);
        }
        let inside = ahead(seq, self.receiver.acked) >= -1 && ahead(seq, self.sender.limit) <= 1;
        let near = match self.sender.knowledge {
            Knowledge::Exact => inside,
            Knowledge::AtLeast => is_near(seq, self.sender.next),
            Knowledge::Nothing => true,
        };
        match if waits { from_opener } else { near } {
            true => Verdict::Pass(stage),
            false => Verdict::Outside,
        }
    }

    /// Everything else.
    fn speak(&mut self, stage: Stage, from_opener: bool, segment: &Segment) -> Verdict {
        let fin = segment.has(FIN);
        let finished = Stage::FinFrom(from_opener);
        let next = match stage {
            Stage::SynSent if from_opener && self.sender.one_sided && fin => finished,
            Stage::SynSent if from_opener && self.sender.one_sided => Stage::Established,
            Stage::SynSent if from_opener => return Verdict::Invalid,
            Stage::SynSent => {
                self.sender.acked = segment.ack;
                return Verdict::Pass(stage);
            }
            Stage::Simultaneous | Stage::SimultaneousAcked(_) => acknowledged(stage, from_opener),
            Stage::SynReceived | Stage::Established if fin => finished,
            Stage::SynReceived if from_opener => Stage::Established,
            Stage::FinFrom(opener) if fin && opener != from_opener => Stage::TimeWait,
            // Admitted again, it goes on.
            Stage::Denied => Stage::Established,
            same => same,
        };
        if !self.fits(segment) {
            return Verdict::Outside;
        }
        if next == Stage::Established && stage != Stage::Established {
            (self.sender.offer, self.receiver.offer) = (None, None);
        }
        Verdict::Pass(next)
    }

    fn fits(&mut self, segment: &Segment) -> bool {
        let next = segment.seq.wrapping_add(segment.space);
        let any = self.sender.one_sided;
        let loose = |end: &End| end.knowledge != Knowledge::Exact;
        let sent = match self.sender.knowledge {
            Knowledge::Exact => {
                // No further than allowed; old ones are near, or too far for every window.
                let lag = ahead(self.sender.next, next);
                ahead(next, self.sender.limit) <= 1 && lag < 66_000
            }
            Knowledge::AtLeast => is_near(next, self.sender.next),
            Knowledge::Nothing => true,
        };
        let acknowledged = match self.receiver.knowledge {
            Knowledge::Exact => (0..66_000).contains(&ahead(self.receiver.next, segment.ack)),
            Knowledge::AtLeast => is_near(segment.ack, self.receiver.next),
            Knowledge::Nothing => true,
        };
        if !(any || sent && acknowledged) {
            return false;
        }
        if self.sender.knowledge == Knowledge::Nothing || ahead(next, self.sender.next) > 0 {
            self.sender.next = next;
        }
        let receiver = &mut self.receiver;
        if loose(receiver)
            && (receiver.knowledge == Knowledge::Nothing || ahead(segment.ack, receiver.next) > 0)
        {
            receiver.next = segment.ack;
        }
        for end in [&mut self.sender, &mut self.receiver] {
            if end.knowledge == Knowledge::Nothing {
                end.knowledge = Knowledge::AtLeast;
            }
        }
        self.sender.spoke = true;
        self.receiver.spoke = true;
        self.grant(segment);
        true
    }

    /// An acknowledgement allows so much more.
    fn grant(&mut self, segment: &Segment) {
        if ahead(segment.ack, self.sender.acked) > 0 {
            self.sender.acked = segment.ack;
        }
        let limit = segment.ack.wrapping_add(segment.window.max(1));
        if ahead(limit, self.receiver.limit) > 0 {
            self.receiver.limit = limit;
        }
    }
}

fn is_near(a: u32, b: u32) -> bool {
    ahead(a, b).unsigned_abs() <= LARGEST
}

fn acknowledged(stage: Stage, by_opener: bool) -> Stage {
    match stage {
        Stage::Simultaneous => Stage::SimultaneousAcked(by_opener),
        Stage::SimultaneousAcked(first) if first != by_opener => Stage::Established,
        same => same,
    }
}
