//! A session and a packet of it: what was decided for such packets, and what the packet makes of the session. And a packet that has none: what
//! it opens.

use super::forwarding::macs;
use super::policy_eval::Standing;
use super::translate::{Change, Decision};
use super::{Entry, Tables, egress, external};
use crate::packet::parse::protocol;
use crate::packet::{DropReason, Family, Parsed};
use crate::session::State;
use crate::session::table::{Egress, SessionRef, Stamp};
use crate::session::tcp::{self, Segment, Side, Step};

/// What the session keeps, if it was decided in this epoch of its VPC, and for packets like this one.
#[inline]
pub(super) fn kept(
    tables: Tables<'_>,
    entry: &Entry,
    session: &SessionRef<'_>,
) -> Option<Decision> {
    let stamp = Stamp::new(tables.snapshot.vpcs[entry.vpc].epoch, entry.ingress);
    let action = session
        .action(stamp)
        .or_else(|| session.second_action(stamp))
        .filter(|action| action.expected == macs(&entry.parsed))?;
    if let Egress::External(index) = action.egress()
        && index != external::THIS_HOST
        && egress::neighbor(tables, action.new, index).is_none()
    {
        // The neighbour has another MAC, or is unknown now.
        return None;
    }
    let change = if action.is_translated() {
        Change::Flow(session.translation()?)
    } else {
        Change::None
    };
    if action.egress() == Egress::External(external::THIS_HOST) {
        let destination = match &change {
            Change::Flow(translation) => translation.flow.destination,
            Change::None | Change::Error(..) => entry.parsed.flow.destination,
        };
        if !tables.snapshot.outside.is_here(destination) {
            // It is another host's now.
            return None;
        }
    }
    Some(Decision { action, change })
}

/// What a packet would make of its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    /// It belongs there; once it has passed, this is how the session stands.
    Pass(NextState),
    /// The connection is over and the packet opens another.
    Reopen,
    /// It cannot be.
    Drop(DropReason),
}

/// How a session stands after a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NextState {
    state: State,
    tcp: Option<(Side, Side)>,
    /// How the groups are to see the packet, where the session does not say it.
    standing: Option<Standing>,
}

impl NextState {
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
        return Follow::Pass(NextState {
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
        Follow::Pass(NextState {
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

/// What a packet that opens a flow begins.
pub(super) enum Opening {
    /// A flow of another protocol.
    Plain(State),
    /// A connection, known from the beginning or picked up in mid-stream.
    Tcp(Segment),
}

impl Opening {
    /// The state and windows that the flow begins with; none if the segment can't begin a connection.
    pub(super) fn begin(&self, one_sided: bool) -> Option<(State, (Side, Side))> {
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

    /// Whether it is a SYN and the session's connection is over: a port that has been used may be used again (RFC 9293 §3.10.7.4), also by a connection whose
    /// packets look like those of the old one only on one side.
    pub(super) fn takes_place_of(&self, session: &SessionRef<'_>) -> bool {
        let is_over = matches!(session.state(), State::TcpTimeWait | State::TcpClosed);
        is_over && matches!(self.begin(false), Some((State::TcpSynSent, _)))
    }
}

/// What a packet opens that belongs to no session.
pub(super) fn opening(parsed: &Parsed, frame: &[u8]) -> Result<Opening, DropReason> {
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
