//! Tracked flows: a list. TCP is followed by RFC 9293's states as a bystander sees them; of the windows only so much is modelled that
//! what is far away is out, and that nothing unsent can be acknowledged.

use weft_dataplane::packet::DropReason;

use super::frame::{ACK, Detail, FIN, Flow, Packet, RST, SYN, Segment};

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
}

/// What one side of a connection has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct End {
    /// The number after the highest that it sent, as far as known.
    pub next: u32,
    /// Whether a segment of it was seen.
    pub spoke: bool,
    /// Whether the other side has let it send anything beyond its SYN: by an acknowledgement, or by a SYN ahead of this side's.
    pub granted: bool,
    /// Whether it has said how much it takes: in a SYN, or with an acknowledgement.
    pub told: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub vni: u32,
    /// As its opener sends.
    pub flow: Flow,
    pub stage: Stage,
    /// The opener, and the other side.
    pub ends: [End; 2],
    pub last_seen: u32,
}

impl Session {
    pub fn is_expired(&self, now: u32) -> bool {
        now - self.last_seen >= self.stage.timeout()
    }

    /// Whether the flow is of the session, and goes its opener's way.
    pub fn direction(&self, vni: u32, flow: &Flow) -> Option<bool> {
        // An ICMP message that is no query has no answer: one of the same type that comes back is a flow of its own.
        let answerable = !matches!(flow.detail, Detail::Message(..));
        match self.vni == vni {
            true if self.flow == *flow => Some(true),
            true if answerable && self.flow.reversed() == *flow => Some(false),
            _ => None,
        }
    }

    /// Whether both sides have spoken, so that "far away" has a meaning.
    pub fn is_settled(&self) -> bool {
        self.ends.iter().all(|end| end.spoke)
    }
}

pub enum Follow {
    /// The packet belongs to the session, which then stands thus.
    Pass(Stage, [End; 2]),
    /// The connection was over; this opens another.
    Reopen,
    Drop(DropReason),
}

/// What a packet that belongs to no session opens.
pub fn open(packet: &Packet) -> Result<(Stage, [End; 2]), DropReason> {
    if let Some(segment) = packet.tcp {
        let next = segment.seq.wrapping_add(segment.space);
        let granted = !segment.has(SYN);
        let opener = End {
            next,
            spoke: true,
            granted,
            told: true,
        };
        return match segment.flags & (SYN | ACK | FIN | RST) {
            SYN => Ok((Stage::SynSent, [opener, End::default()])),
            // Picked up in mid-stream: the other side has sent what is acknowledged.
            ACK => {
                let next = segment.ack;
                let other = End {
                    next,
                    spoke: false,
                    granted,
                    told: false,
                };
                Ok((Stage::Established, [opener, other]))
            }
            _ => Err(DropReason::TcpInvalid),
        };
    }
    match packet.flow.detail {
        Detail::Query { answer: true, .. } => Err(DropReason::IcmpUnrelated),
        Detail::Query { .. } | Detail::Message(..) => Ok((Stage::Query, Default::default())),
        _ => Ok((Stage::OneWay, Default::default())),
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
    let (mut sender, mut receiver) = if from_opener {
        (opener, other)
    } else {
        (other, opener)
    };
    let next = match next_stage(session.stage, from_opener, &segment) {
        Some(stage) => stage,
        None if matches!(
            session.stage,
            Stage::Closed | Stage::TimeWait | Stage::Denied
        ) && segment.has(SYN)
            && !segment.has(ACK) =>
        {
            return Follow::Reopen;
        }
        None => return Follow::Drop(DropReason::TcpInvalid),
    };
    let fits = if segment.has(SYN) {
        // On an established connection the end host answers with a challenge (RFC 5961 4): nothing changes.
        let established = matches!(session.stage, Stage::Established | Stage::FinFrom(_));
        if established {
            return Follow::Pass(session.stage, session.ends);
        }
        syn_fits(
            session.stage,
            from_opener,
            &segment,
            &mut sender,
            &mut receiver,
        )
    } else if segment.has(RST) && is_opening(session.stage) {
        // Only a reset that acknowledges the SYN answers it (RFC 9293 3.10.7.3).
        from_opener || (segment.has(ACK) && segment.ack == receiver.next)
    } else {
        in_window(&segment, &mut sender, &mut receiver)
    };
    if !fits {
        return Follow::Drop(DropReason::TcpWindow);
    }
    let ends = if from_opener {
        [sender, receiver]
    } else {
        [receiver, sender]
    };
    Follow::Pass(next, ends)
}

fn is_opening(stage: Stage) -> bool {
    use Stage::{Simultaneous, SimultaneousAcked, SynSent};
    matches!(stage, SynSent | Simultaneous | SimultaneousAcked(_))
}

/// A SYN gives its side's first number, anew or again.
fn syn_fits(
    stage: Stage,
    from_opener: bool,
    segment: &Segment,
    sender: &mut End,
    receiver: &mut End,
) -> bool {
    let next = segment.seq.wrapping_add(segment.space);
    let repeats = from_opener && stage == Stage::SynReceived && !segment.has(ACK);
    if (segment.has(ACK) && segment.ack != receiver.next) || (repeats && next != sender.next) {
        return false;
    }
    *sender = End {
        next,
        spoke: true,
        granted: receiver.spoke,
        told: true,
    };
    receiver.granted |= segment.has(ACK);
    true
}

fn in_window(segment: &Segment, sender: &mut End, receiver: &mut End) -> bool {
    let next = segment.seq.wrapping_add(segment.space);
    let ahead = |a: u32, b: u32| a.wrapping_sub(b) as i32;
    // The tests send what is near or very far, nothing between.
    let is_far = |distance: i32| distance.unsigned_abs() > 1 << 24;
    if sender.spoke && is_far(ahead(next, sender.next)) {
        return false;
    }
    // One number more is let pass, as it is of any window.
    if sender.spoke && !sender.granted && ahead(next, sender.next) > 1 {
        return false;
    }
    // A reset is no older than a window, and none is known of a side that has not told.
    let lag = ahead(sender.next, segment.seq);
    if segment.has(RST) && sender.spoke && !receiver.told && lag > 1 {
        return false;
    }
    if segment.has(ACK) {
        let beyond = ahead(segment.ack, receiver.next);
        if beyond > 0 || is_far(beyond) {
            return false;
        }
        receiver.granted = true;
        sender.told = true;
    }
    // Who has not spoken may begin anywhere, but has sent what was acknowledged.
    let anew = !sender.spoke && is_far(ahead(next, sender.next));
    if anew || ahead(next, sender.next) > 0 {
        sender.next = next;
    }
    sender.granted |= anew && receiver.spoke;
    sender.spoke = true;
    true
}

/// The connection's next stage (RFC 9293 3.3.2); none where the segment cannot be, or opens another connection.
fn next_stage(stage: Stage, from_opener: bool, segment: &Segment) -> Option<Stage> {
    let (syn, ack, fin) = (segment.has(SYN), segment.has(ACK), segment.has(FIN));
    if segment.has(RST) {
        return Some(Stage::Closed);
    }
    match stage {
        Stage::SynSent => match (from_opener, syn, ack) {
            (true, true, false) => Some(Stage::SynSent),
            (false, true, true) => Some(Stage::SynReceived),
            (false, true, false) => Some(Stage::Simultaneous),
            _ => None,
        },
        Stage::Simultaneous if ack => Some(Stage::SimultaneousAcked(from_opener)),
        Stage::Simultaneous => syn.then_some(Stage::Simultaneous),
        Stage::SimultaneousAcked(by_opener) if ack && by_opener != from_opener => {
            Some(Stage::Established)
        }
        // The opener's own acknowledgement completes the handshake; repeats of SYN and SYN-ACK do not (b019).
        Stage::SynReceived if syn && ack && from_opener => None,
        Stage::SynReceived if syn || !ack => Some(Stage::SynReceived),
        Stage::SynReceived if fin => Some(Stage::FinFrom(from_opener)),
        Stage::SynReceived if from_opener => Some(Stage::Established),
        Stage::Established if fin => Some(Stage::FinFrom(from_opener)),
        Stage::FinFrom(opener) if fin && opener != from_opener => Some(Stage::TimeWait),
        Stage::TimeWait if syn => None,
        Stage::Denied if syn => None,
        // Admitted again, it goes on.
        Stage::Denied => Some(Stage::Established),
        Stage::Closed => None,
        same => Some(same),
    }
}
