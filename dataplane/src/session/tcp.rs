//! TCP as a stateful filter sees it: the state of a connection from the segments that pass (RFC 9293 §3.3.2), and the window in which
//! each side may send (van Rooij, "Real stateful TCP packet filtering in IP Filter", 2001).
//!
//! The table of states and segments that this implements is in `docs/decisions/007-tcp-tracking.md`; the functions `syn`, `syn_ack`, `rst`
//! and `ack` are its columns, their arms its rows, in its order.

use super::State;
use crate::packet::parse::tcp_flags::{ACK, FIN, RST, SYN};

/// Windows are kept rounded up to so many bytes.
const UNIT: u32 = 1 << 14;
/// The largest window that TCP has, rounded up (RFC 7323 §2.3: 65535 << 14).
const LARGEST: u32 = 1 << 30;
/// Windows below this count as so large, so that a retransmission is never too old (van Rooij §3.4).
const LEAST: u32 = 66_000;
/// What a SYN may carry beyond itself, at most (RFC 7413: one segment).
const SYN_DATA: u32 = 0xffff;

const SCALE: u32 = 0xf;
const SCALE_OFFERED: u32 = 1 << 4;
const LOOSE: u32 = 1 << 5;
const ONE_SIDED: u32 = 1 << 6;
const UNKNOWN: u32 = 1 << 7;
const OFFER: u32 = 1 << 8;
const OFFER_SCALED: u32 = 1 << 9;
const OFFER_SCALE_AT: u32 = 10;
const MARKS: u32 = UNIT - 1;

/// What the segments of one side have shown so far: two words of the session, and half a word for the offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Side {
    /// Highest sequence number sent, plus one.
    pub end: u32,
    /// Highest sequence number that the other side has allowed.
    pub max_end: u32,
    /// Highest acknowledgement number sent.
    pub ack: u32,
    /// Largest window advertised, in bytes, a multiple of `UNIT`; the marks in the bits below it.
    bits: u32,
    /// The number after the SYN that awaits its answer, if there is one. The fast path does not read it.
    pub offer: u32,
}

impl Side {
    /// As two words, and the offer.
    pub fn pack(self) -> ([u64; 2], u32) {
        let words = [
            u64::from(self.end) << 32 | u64::from(self.max_end),
            u64::from(self.ack) << 32 | u64::from(self.bits),
        ];
        (words, self.offer)
    }

    /// From two words and the offer.
    #[inline]
    pub fn unpack([first, second]: [u64; 2], offer: u32) -> Self {
        Self {
            end: (first >> 32) as u32,
            max_end: first as u32,
            ack: (second >> 32) as u32,
            bits: second as u32,
            offer,
        }
    }

    /// A side of a connection that another host has seen: its numbers are learnt from its next segment.
    pub fn unknown() -> Self {
        Self {
            bits: LARGEST | 14 | LOOSE | UNKNOWN,
            ..Self::default()
        }
    }

    /// Largest window that this side has advertised, scaled and rounded up; 0 until it has spoken.
    #[inline]
    fn max_window(&self) -> u32 {
        self.bits & !MARKS
    }

    /// Notes a window that this side has advertised.
    #[inline]
    fn widen(&mut self, window: u32) {
        let rounded = (window + MARKS) & !MARKS;
        self.bits = self.max_window().max(rounded) | self.bits & MARKS;
    }

    /// Shift of this side's windows (RFC 7323 §2), in force once both have offered one.
    #[inline]
    fn scale(&self) -> u32 {
        self.bits & SCALE
    }

    fn is(&self, mark: u32) -> bool {
        self.bits & mark != 0
    }

    /// Keeps what a SYN offers, until it is answered.
    fn make_offer(&mut self, segment: &Segment) {
        self.withdraw_offer();
        self.offer = segment.seq.wrapping_add(1);
        self.bits |= OFFER;
        if let Some(scale) = segment.scale {
            self.bits |= OFFER_SCALED | u32::from(scale) << OFFER_SCALE_AT;
        }
    }

    fn withdraw_offer(&mut self) {
        self.bits &= !(OFFER | OFFER_SCALED | SCALE << OFFER_SCALE_AT);
    }

    /// Whether an acknowledgement answers the offer: the SYN, or some of the data in it too (RFC 7413 §4.2).
    fn is_answered_by(&self, segment: &Segment) -> bool {
        segment.has(ACK) && self.is(OFFER) && segment.ack.wrapping_sub(self.offer) <= SYN_DATA
    }

    /// The side that sends a SYN before anything that was agreed.
    fn opened_by(segment: &Segment, ack: u32, marks: u32) -> Self {
        let end = segment.seq.wrapping_add(segment.space);
        let mut side = Self {
            end,
            max_end: end,
            ack,
            bits: marks & ONE_SIDED,
            offer: 0,
        };
        side.widen(u32::from(segment.window).max(1));
        side.make_offer(segment);
        side
    }
}

/// The parts of a TCP header that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window as in the header.
    pub window: u16,
    /// Flags.
    pub flags: u8,
    /// Sequence space that the segment takes, SYN and FIN included.
    pub space: u32,
    /// Window scale option, on a SYN.
    pub scale: Option<u8>,
}

impl Segment {
    /// Reads a TCP header that the parser has found whole; `len` is header and payload.
    pub fn read(header: &[u8], len: u16) -> Option<Self> {
        let fixed: &[u8; 20] = header.get(..20)?.try_into().ok()?;
        let header_len = u16::from(fixed[12] >> 4) * 4;
        let flags = fixed[13] & 0x3f;
        let payload = u32::from(len.saturating_sub(header_len));
        let scale = if flags & SYN != 0 {
            header
                .get(20..usize::from(header_len))
                .and_then(window_scale)
        } else {
            None
        };
        Some(Self {
            seq: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            ack: u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]),
            window: u16::from_be_bytes([fixed[14], fixed[15]]),
            flags,
            space: payload + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0),
            scale,
        })
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The window scale option among TCP options (RFC 7323 §2.2), at most 14.
fn window_scale(options: &[u8]) -> Option<u8> {
    find_option(options, 3, 3).map(|at| options[at + 2].min(14))
}

/// Offset of the option of that kind and length among TCP options.
pub fn find_option(options: &[u8], kind: u8, len: u8) -> Option<usize> {
    let mut at = 0;
    while at < options.len() {
        match options[at] {
            0 => return None,
            1 => at += 1,
            found => {
                let found_len = *options.get(at + 1)?;
                if found_len < 2 || at + usize::from(found_len) > options.len() {
                    return None;
                }
                if found == kind && found_len == len {
                    return Some(at);
                }
                at += usize::from(found_len);
            }
        }
    }
    None
}

/// Sequence number comparison (RFC 9293 §3.4).
fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// What a segment does to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Passes; the connection is now in this state.
    Pass(State),
    /// A SYN on a connection that may be alive: passes if its sender may open a flow, and changes nothing but the offer.
    Offer(State),
    /// Accepts the SYN that the receiver has sent, which is the opener of the connection from now on.
    Afresh(State),
    /// The connection is over and this SYN opens another on its tuple.
    Reopen,
    /// Cannot be.
    Invalid,
    /// Outside the window.
    OutOfWindow,
}

/// The state in which a segment begins a connection that is not known; none if it can't. A segment in mid-stream can: the host may have
/// restarted, or the guest may have moved here. It is judged by policy as if it opened the flow.
pub fn begin(segment: &Segment, one_sided: bool) -> Option<State> {
    match segment.flags & (SYN | ACK | FIN | RST) {
        SYN => Some(State::TcpSynSent),
        // Its SYN took another way.
        flags if flags == SYN | ACK => one_sided.then_some(State::TcpSynReceived),
        flags if flags & SYN != 0 => None,
        flags if flags & RST != 0 => Some(State::TcpClosed),
        flags if flags == FIN | ACK => Some(State::TcpFinOrigin),
        ACK => Some(State::TcpEstablished),
        _ => None,
    }
}

/// Sets up the two sides from the first segment.
pub fn first(segment: &Segment, one_sided: bool, sender: &mut Side, receiver: &mut Side) {
    let marks = if one_sided { ONE_SIDED } else { 0 };
    if segment.flags & (SYN | ACK) == SYN {
        *sender = Side::opened_by(segment, 0, marks);
        *receiver = Side {
            ack: segment.seq,
            bits: marks,
            ..Side::default()
        };
        return;
    }
    // Picked up in mid-stream. The scale is unknown, so the largest is taken; what was sent before is unknown, so that all numbers are
    // lower bounds.
    let end = segment.seq.wrapping_add(segment.space);
    let bits = LARGEST | 14 | LOOSE | marks;
    *sender = Side {
        end,
        max_end: end.wrapping_add(LARGEST),
        ack: segment.ack,
        bits,
        offer: 0,
    };
    *receiver = Side {
        end: segment.ack,
        max_end: segment.ack.wrapping_add(LARGEST),
        ack: segment.seq,
        bits,
        offer: 0,
    };
    if one_sided || !segment.has(ACK) {
        receiver.bits |= UNKNOWN;
    }
}

/// Judges a segment of a known connection. `from_origin`: sent by the side that opened it.
pub fn step(
    state: State,
    from_origin: bool,
    segment: &Segment,
    sender: &mut Side,
    receiver: &mut Side,
) -> Step {
    match segment.flags & (SYN | RST | ACK) {
        SYN => syn(state, from_origin, segment, sender, receiver),
        flags if flags & SYN != 0 => syn_ack(state, from_origin, segment, sender, receiver),
        flags if flags & RST != 0 => rst(state, from_origin, segment, sender, receiver),
        _ => ack(state, from_origin, segment, sender, receiver),
    }
}

/// SYN.
fn syn(
    state: State,
    from_origin: bool,
    segment: &Segment,
    sender: &mut Side,
    receiver: &mut Side,
) -> Step {
    use State::{
        TcpClosed, TcpDenied, TcpEstablished, TcpFinOrigin, TcpFinReply, TcpSimultaneous,
        TcpSimultaneousOrigin, TcpSimultaneousReply, TcpSynReceived, TcpSynSent, TcpTimeWait,
    };
    match state {
        // Again, or with another number: nothing has answered yet.
        TcpSynSent if from_origin => {
            *sender = Side::opened_by(segment, 0, sender.bits);
            Step::Pass(TcpSynSent)
        }
        TcpSynSent => {
            *sender = Side::opened_by(segment, sender.ack, sender.bits);
            receiver.ack = segment.seq;
            sender.max_end = sender.end.wrapping_add(receiver.max_window());
            Step::Pass(TcpSimultaneous)
        }
        TcpSimultaneous | TcpSimultaneousOrigin | TcpSimultaneousReply => {
            sender.make_offer(segment);
            Step::Pass(state)
        }
        // The receiver accepts it, or answers with a challenge (RFC 5961 §4): which of them, its answer says.
        TcpSynReceived | TcpEstablished | TcpFinOrigin | TcpFinReply => {
            sender.make_offer(segment);
            Step::Offer(state)
        }
        // RFC 9293 §3.10.7.4, RFC 6191.
        TcpTimeWait | TcpClosed | TcpDenied => Step::Reopen,
        _ => Step::Invalid,
    }
}

/// Whether another host told of the connection, which was not seen here before. Of one that is seen one way nothing may be known either, once its end has
/// offered another number.
fn is_told(sender: &Side, receiver: &Side) -> bool {
    sender.is(UNKNOWN) && receiver.is(UNKNOWN) && !sender.is(ONE_SIDED)
}

/// SYN-ACK.
fn syn_ack(
    state: State,
    from_origin: bool,
    segment: &Segment,
    sender: &mut Side,
    receiver: &mut Side,
) -> Step {
    use State::{
        TcpEstablished, TcpFinOrigin, TcpFinReply, TcpSimultaneous, TcpSimultaneousOrigin,
        TcpSimultaneousReply, TcpSynReceived, TcpSynSent,
    };
    let mut answers = receiver.is_answered_by(segment);
    if state == TcpSynSent {
        answers &= !before(receiver.end, segment.ack);
        // The SYN went by another host.
        answers |= is_told(sender, receiver);
    }
    match state {
        TcpSynSent if from_origin => Step::Invalid,
        TcpSynSent if answers => {
            agree(segment, sender, receiver);
            Step::Pass(TcpSynReceived)
        }
        // Both sides opened: each must acknowledge the other.
        TcpSimultaneous | TcpSimultaneousOrigin | TcpSimultaneousReply if answers => {
            agree(segment, sender, receiver);
            Step::Pass(acknowledged(state, from_origin))
        }
        // The same again, when data may have followed it (RFC 7413).
        TcpSynReceived if answers && !from_origin && is_repeat(segment, sender, receiver) => {
            grant(segment, sender, receiver, 0);
            Step::Pass(TcpSynReceived)
        }
        TcpSynReceived | TcpEstablished | TcpFinOrigin | TcpFinReply if answers => {
            agree(segment, sender, receiver);
            Step::Afresh(TcpSynReceived)
        }
        // An old one: the receiver challenges it (RFC 5961 §4).
        TcpEstablished | TcpFinOrigin | TcpFinReply => Step::Pass(state),
        // Numbers of a port whose traffic may be one-sided are not held against it.
        TcpSynSent | TcpSynReceived if sender.is(ONE_SIDED) => {
            sender.bits |= UNKNOWN;
            receiver.bits |= UNKNOWN;
            Step::Pass(TcpSynReceived)
        }
        TcpSynReceived if from_origin => Step::Invalid,
        TcpSynSent
        | TcpSimultaneous
        | TcpSimultaneousOrigin
        | TcpSimultaneousReply
        | TcpSynReceived => Step::OutOfWindow,
        _ => Step::Invalid,
    }
}

/// RST, with or without an acknowledgement. RFC 5961 §3.2: it closes at exactly the number that the receiver expects, and is challenged
/// elsewhere in the window.
fn rst(state: State, from_origin: bool, segment: &Segment, sender: &Side, receiver: &Side) -> Step {
    use State::{TcpClosed, TcpSynSent};
    // Numbers of a port whose traffic may be one-sided say nothing, and what follows passes as well.
    if sender.is(ONE_SIDED) {
        return Step::Pass(TcpClosed);
    }
    // It refuses a SYN: the acknowledgement counts, not the sequence number (RFC 9293 §3.10.7.1, §3.10.7.3).
    if receiver.is_answered_by(segment)
        && !(state == TcpSynSent && before(receiver.end, segment.ack))
    {
        return Step::Pass(TcpClosed);
    }
    // The receiver expects what it has acknowledged, or all that was sent if its acknowledgement is still to come.
    let expected = segment.seq == receiver.ack || segment.seq == sender.end;
    if expected && !sender.is(UNKNOWN) && (from_origin || state != TcpSynSent) {
        return Step::Pass(TcpClosed);
    }
    // One number less is where some stacks put it after their FIN.
    let inside = !before(segment.seq, receiver.ack.wrapping_sub(1))
        && !before(sender.max_end.wrapping_add(1), segment.seq);
    let passes = match state {
        TcpSynSent if from_origin => true,
        TcpSynSent => false,
        _ => inside || is_near(segment.seq, sender),
    };
    if passes {
        Step::Pass(state)
    } else {
        Step::OutOfWindow
    }
}

/// Whatever else: acknowledgements, data, FIN.
fn ack(
    state: State,
    from_origin: bool,
    segment: &Segment,
    sender: &mut Side,
    receiver: &mut Side,
) -> Step {
    use State::{
        TcpClosed, TcpDenied, TcpEstablished, TcpFinOrigin, TcpFinReply, TcpSimultaneous,
        TcpSimultaneousOrigin, TcpSimultaneousReply, TcpSynReceived, TcpSynSent, TcpTimeWait,
    };
    let fin = segment.has(FIN);
    let finished = if from_origin {
        TcpFinOrigin
    } else {
        TcpFinReply
    };
    // It may have opened since.
    let opened_elsewhere = is_told(sender, receiver);
    let next = match state {
        TcpSynSent | TcpSynReceived if opened_elsewhere && fin => finished,
        TcpSynSent | TcpSynReceived if opened_elsewhere => TcpEstablished,
        // The other way is not seen.
        TcpSynSent if from_origin && sender.is(ONE_SIDED) => {
            receiver.bits |= UNKNOWN;
            if fin { finished } else { TcpEstablished }
        }
        TcpSynSent if from_origin => return Step::Invalid,
        // The other side holds an older connection, and says so (RFC 9293 §3.10.7.4, figure 10); a reset answers it.
        TcpSynSent => {
            sender.ack = segment.ack;
            return Step::Pass(TcpSynSent);
        }
        TcpSimultaneous | TcpSimultaneousOrigin | TcpSimultaneousReply => {
            acknowledged(state, from_origin)
        }
        // Only the opener's acknowledgement completes the handshake.
        TcpSynReceived if fin => finished,
        TcpSynReceived if from_origin => TcpEstablished,
        TcpSynReceived => TcpSynReceived,
        TcpEstablished if fin => finished,
        TcpFinOrigin | TcpFinReply if fin && finished != state => TcpTimeWait,
        TcpEstablished | TcpFinOrigin | TcpFinReply => state,
        // The final acknowledgement and FINs sent again.
        TcpTimeWait => TcpTimeWait,
        // The reset may have been lost on its way; the next one is let through.
        TcpClosed => TcpClosed,
        // Where policy admits it again, it goes on.
        TcpDenied => TcpEstablished,
        _ => return Step::Invalid,
    };
    let unknown = (sender.bits | receiver.bits) & UNKNOWN != 0;
    if (unknown || !window(segment, sender, receiver)) && !loose(segment, sender, receiver) {
        return Step::OutOfWindow;
    }
    if next == TcpEstablished && state != TcpEstablished {
        sender.withdraw_offer();
        receiver.withdraw_offer();
    }
    Step::Pass(next)
}

/// A simultaneous open, after one side has acknowledged the other's SYN.
fn acknowledged(state: State, by_origin: bool) -> State {
    match (state, by_origin) {
        (State::TcpSimultaneousOrigin, false) | (State::TcpSimultaneousReply, true) => {
            State::TcpEstablished
        }
        (State::TcpSimultaneous, true) => State::TcpSimultaneousOrigin,
        (State::TcpSimultaneous, false) => State::TcpSimultaneousReply,
        (state, _) => state,
    }
}

/// Sets up both sides from a SYN-ACK of the sender that answers the receiver's offer.
fn agree(segment: &Segment, sender: &mut Side, receiver: &mut Side) {
    let both = receiver.is(OFFER_SCALED) && segment.scale.is_some();
    let (ours, theirs) = match segment.scale {
        Some(scale) if both => (u32::from(scale), receiver.bits >> OFFER_SCALE_AT & SCALE),
        _ => (0, 0),
    };
    // Data in the SYN that was not acknowledged has been sent all the same.
    let end = if receiver.end.wrapping_sub(segment.ack) <= SYN_DATA {
        receiver.end
    } else {
        segment.ack
    };
    let kept = ONE_SIDED | OFFER | OFFER_SCALED | SCALE << OFFER_SCALE_AT;
    *receiver = Side {
        end,
        max_end: segment.ack,
        ack: segment.seq,
        bits: (SYN_DATA + 1) | theirs | receiver.bits & kept,
        offer: receiver.offer,
    };
    if both {
        receiver.bits |= SCALE_OFFERED;
    }
    let end = segment.seq.wrapping_add(segment.space);
    *sender = Side {
        end,
        max_end: end.wrapping_add(0xffff),
        ack: segment.ack,
        bits: ours | sender.bits & kept,
        offer: sender.offer,
    };
    grant(segment, sender, receiver, 0);
}

/// Whether a SYN-ACK is one that has been seen.
fn is_repeat(segment: &Segment, sender: &Side, receiver: &Side) -> bool {
    let end = segment.seq.wrapping_add(segment.space);
    sender.end.wrapping_sub(end) < LEAST && receiver.end.wrapping_sub(segment.ack) < LEAST
}

/// Checks a segment against the windows, and moves them on.
#[inline]
pub fn window(segment: &Segment, sender: &mut Side, receiver: &mut Side) -> bool {
    let end = segment.seq.wrapping_add(segment.space);
    // An acknowledgement of nothing stands for the highest seen.
    let ack = if segment.has(ACK) {
        segment.ack
    } else {
        receiver.end
    };
    let (lag, reach) = (
        receiver.max_window().max(LEAST),
        sender.max_window().max(LEAST),
    );
    // I: not beyond what the receiver allowed. II: not older than a window. III: acknowledges nothing unsent. IV: nor something ancient.
    let in_window = !before(sender.max_end.wrapping_add(1), end)
        && !before(end, sender.end.wrapping_sub(lag))
        && !before(receiver.end, ack)
        && !before(ack, receiver.end.wrapping_sub(reach));
    if !in_window {
        return false;
    }
    raise(&mut sender.end, end);
    if segment.has(ACK) {
        grant(segment, sender, receiver, sender.scale());
    }
    true
}

/// The same for a connection that was picked up in mid-stream, or is seen one way: what is known of each side is a lower bound.
#[cold]
fn loose(segment: &Segment, sender: &mut Side, receiver: &mut Side) -> bool {
    let end = segment.seq.wrapping_add(segment.space);
    if !is_near(end, sender) || !is_near(segment.ack, receiver) {
        return false;
    }
    let far = |number: u32, side: &Side| {
        side.is(UNKNOWN) || number.wrapping_sub(side.end).wrapping_add(LARGEST) > 2 * LARGEST
    };
    if far(end, sender) {
        (sender.end, sender.max_end) = (end, end);
        sender.bits &= !UNKNOWN;
    }
    raise(&mut sender.end, end);
    raise(&mut sender.max_end, end.wrapping_add(LARGEST));
    if receiver.is(UNKNOWN) && receiver.is(ONE_SIDED) {
        // So far ahead that not each acknowledgement comes this way.
        receiver.end = segment.ack.wrapping_add(LARGEST / 2);
    } else if far(segment.ack, receiver) {
        (receiver.end, receiver.max_end) = (segment.ack, segment.ack.wrapping_add(LARGEST));
        receiver.bits &= !UNKNOWN;
    }
    raise(&mut receiver.end, segment.ack);
    sender.widen(LARGEST);
    receiver.widen(LARGEST);
    grant(segment, sender, receiver, sender.scale());
    true
}

/// Whether a number of a side that is tracked loosely can be: within the largest window of what is known, if anything is.
fn is_near(number: u32, side: &Side) -> bool {
    side.is(ONE_SIDED | UNKNOWN)
        || side.is(LOOSE) && number.wrapping_sub(side.end).wrapping_add(LARGEST) <= 2 * LARGEST
}

/// Notes that a side has sent up to `end`, in a later fragment of a segment whose first was in the window.
pub fn extend(sender: &mut Side, end: u32) {
    raise(&mut sender.end, end);
}

#[inline]
fn raise(number: &mut u32, to: u32) {
    if before(*number, to) {
        *number = to;
    }
}

/// The sender of this segment lets the other side send up to its acknowledgement plus its window.
#[inline]
fn grant(segment: &Segment, sender: &mut Side, receiver: &mut Side, scale: u32) {
    let granted = (u32::from(segment.window) << scale).max(1);
    sender.widen(granted);
    raise(&mut sender.ack, segment.ack);
    raise(&mut receiver.max_end, segment.ack.wrapping_add(granted));
}

#[cfg(test)]
mod tests;
