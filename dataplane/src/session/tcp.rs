//! TCP as a stateful filter sees it: the state of a connection from the segments that pass (RFC 9293 §3.3.2), and the window in which
//! each side may send (van Rooij, "Real stateful TCP packet filtering in IP Filter", 2001).

use super::State;
use crate::packet::parse::tcp_flags::{ACK, FIN, RST, SYN};

/// What the segments of one side have shown so far. 16 bytes, in two words of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Side {
    /// Highest sequence number sent, plus one.
    pub end: u32,
    /// Highest sequence number that the other side has allowed.
    pub max_end: u32,
    /// Largest window that this side has advertised, scaled; 0 until it has spoken.
    pub max_window: u32,
    /// Window scale of this side (RFC 7323 §2), in force once both have offered one.
    pub scale: u8,
    /// This side offered a window scale.
    pub scale_offered: bool,
}

impl Side {
    /// As two words.
    pub fn pack(self) -> [u64; 2] {
        let scale = u64::from(self.scale) << 1 | u64::from(self.scale_offered);
        [
            u64::from(self.end) << 32 | u64::from(self.max_end),
            u64::from(self.max_window) << 32 | scale,
        ]
    }

    /// From two words.
    pub fn unpack([first, second]: [u64; 2]) -> Self {
        Self {
            end: (first >> 32) as u32,
            max_end: first as u32,
            max_window: (second >> 32) as u32,
            scale: (second >> 1) as u8 & 0xf,
            scale_offered: second & 1 != 0,
        }
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
    /// The connection is over and this SYN opens another on its tuple.
    Reopen,
    /// Cannot be.
    Invalid,
    /// Outside the window.
    OutOfWindow,
}

/// The state in which a segment begins a connection that is not known; none if it can't. A segment in mid-stream can: the host may have
/// restarted, or the guest may have moved here. It is judged by policy as if it opened the flow.
pub fn begin(segment: &Segment) -> Option<State> {
    match segment.flags & (SYN | ACK | FIN | RST) {
        SYN => Some(State::TcpSynSent),
        ACK => Some(State::TcpEstablished),
        _ => None,
    }
}

/// Sets up the two sides from the first segment.
pub fn first(segment: &Segment, sender: &mut Side, receiver: &mut Side) {
    *sender = Side {
        end: segment.seq.wrapping_add(segment.space),
        max_end: segment.seq.wrapping_add(segment.space),
        max_window: u32::from(segment.window).max(1),
        scale: segment.scale.unwrap_or(0),
        scale_offered: segment.scale.is_some(),
    };
    *receiver = Side::default();
    if !segment.has(SYN) {
        // Picked up in mid-stream: the scale is unknown, so the largest is taken.
        sender.scale = 14;
        sender.max_window = u32::from(segment.window) << 14;
        sender.max_end = sender.end.wrapping_add(sender.max_window);
        *receiver = Side {
            end: segment.ack,
            max_end: segment.ack.wrapping_add(sender.max_window),
            max_window: 0,
            scale: 14,
            scale_offered: true,
        };
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
    let next = match transition(state, from_origin, segment) {
        Step::Pass(next) => next,
        other => return other,
    };
    let opening = matches!(
        state,
        State::TcpSynSent
            | State::TcpSimultaneous
            | State::TcpSimultaneousOrigin
            | State::TcpSimultaneousReply
    );
    if segment.has(SYN) {
        if matches!(
            state,
            State::TcpEstablished | State::TcpFinOrigin | State::TcpFinReply
        ) {
            // The end host answers with a challenge (RFC 5961 §4); nothing changes here.
            return Step::Pass(state);
        }
        if segment.has(ACK) && segment.ack != receiver.end {
            return Step::OutOfWindow;
        }
        if !segment.has(ACK)
            && from_origin
            && state == State::TcpSynReceived
            && segment.seq.wrapping_add(segment.space) != sender.end
        {
            return Step::OutOfWindow;
        }
        // The first word of this side, or the same again.
        let kept = receiver.max_window;
        *sender = Side {
            end: segment.seq.wrapping_add(segment.space),
            max_end: segment.seq.wrapping_add(segment.space).wrapping_add(kept),
            max_window: u32::from(segment.window).max(1),
            scale: segment.scale.unwrap_or(0),
            scale_offered: segment.scale.is_some(),
        };
        if segment.has(ACK) {
            allow(segment, sender, receiver, 0);
            if !(sender.scale_offered && receiver.scale_offered) {
                sender.scale = 0;
                receiver.scale = 0;
            }
        }
        return Step::Pass(next);
    }
    if opening && segment.has(RST) {
        // Only a reset that acknowledges the SYN is an answer to it (RFC 9293 §3.10.7.3).
        let answers = segment.has(ACK) && segment.ack == receiver.end;
        return if answers || from_origin {
            Step::Pass(next)
        } else {
            Step::OutOfWindow
        };
    }
    if window(segment, sender, receiver) {
        Step::Pass(next)
    } else {
        Step::OutOfWindow
    }
}

/// Checks a segment against the windows, and moves them on.
#[inline]
pub fn window(segment: &Segment, sender: &mut Side, receiver: &mut Side) -> bool {
    let end = segment.seq.wrapping_add(segment.space);
    if sender.max_window == 0 {
        // The side has not spoken before: what it says is taken. After a pick-up in mid-stream it has sent all that was acknowledged, so
        // that an old segment, sent again, takes nothing back.
        let lag = sender.end.wrapping_sub(end);
        if lag > receiver.max_window.max(66_000) {
            sender.end = end;
            sender.max_end = end.wrapping_add(receiver.max_window);
        }
        sender.max_window = 1;
    }
    // An acknowledgement of nothing stands for the highest seen (RST without ACK, RFC 9293 §3.10.7.4).
    let ack = if segment.has(ACK) {
        segment.ack
    } else {
        receiver.end
    };
    let reach = sender.max_window.max(66_000);
    // I: not beyond what the receiver allowed. II: not older than a window. III: acknowledges nothing unsent. IV: nor something ancient.
    let in_window = !before(sender.max_end.wrapping_add(1), end)
        && !before(
            end,
            sender.end.wrapping_sub(receiver.max_window.max(66_000)),
        )
        && !before(receiver.end, ack)
        && !before(ack, receiver.end.wrapping_sub(reach));
    if !in_window
        || (segment.has(RST)
            && before(
                segment.seq,
                sender.end.wrapping_sub(receiver.max_window.max(1)),
            ))
    {
        return false;
    }
    if before(sender.end, end) {
        sender.end = end;
    }
    if segment.has(ACK) {
        allow(segment, sender, receiver, sender.scale);
    }
    true
}

/// Notes that a side has sent up to `end`, in a later fragment of a segment whose first was in the window.
pub fn extend(sender: &mut Side, end: u32) {
    if before(sender.end, end) {
        sender.end = end;
    }
}

/// The sender of this segment lets the other side send up to its acknowledgement plus its window.
fn allow(segment: &Segment, sender: &mut Side, receiver: &mut Side, scale: u8) {
    let granted = (u32::from(segment.window) << scale).max(1);
    sender.max_window = sender.max_window.max(granted);
    let limit = segment.ack.wrapping_add(granted);
    if before(receiver.max_end, limit) {
        receiver.max_end = limit;
    }
}

/// The state machine alone, without windows.
fn transition(state: State, from_origin: bool, segment: &Segment) -> Step {
    use State::{
        TcpClosed, TcpDenied, TcpEstablished, TcpFinOrigin, TcpFinReply, TcpSimultaneous,
        TcpSimultaneousOrigin, TcpSimultaneousReply, TcpSynReceived, TcpSynSent, TcpTimeWait,
    };
    let (syn, ack, fin, rst) = (
        segment.has(SYN),
        segment.has(ACK),
        segment.has(FIN),
        segment.has(RST),
    );
    if rst {
        return Step::Pass(TcpClosed);
    }
    match state {
        TcpClosed | TcpTimeWait | TcpDenied if syn && !ack => Step::Reopen,
        TcpClosed => Step::Invalid,
        // Where policy admits it again, it goes on.
        TcpDenied if syn => Step::Invalid,
        TcpDenied => Step::Pass(TcpEstablished),
        TcpTimeWait => {
            if syn {
                Step::Invalid
            } else {
                Step::Pass(TcpTimeWait)
            }
        }
        TcpSynSent => match (from_origin, syn, ack) {
            (true, true, false) => Step::Pass(TcpSynSent),
            (false, true, true) => Step::Pass(TcpSynReceived),
            (false, true, false) => Step::Pass(TcpSimultaneous),
            _ => Step::Invalid,
        },
        // Both sides opened: each must acknowledge the other.
        TcpSimultaneous => match (ack, from_origin) {
            (false, _) if syn => Step::Pass(TcpSimultaneous),
            (true, true) => Step::Pass(TcpSimultaneousOrigin),
            (true, false) => Step::Pass(TcpSimultaneousReply),
            _ => Step::Invalid,
        },
        TcpSimultaneousOrigin => Step::Pass(if ack && !from_origin {
            TcpEstablished
        } else {
            state
        }),
        TcpSimultaneousReply => Step::Pass(if ack && from_origin {
            TcpEstablished
        } else {
            state
        }),
        // Only the opener's bare acknowledgement completes the handshake; repeats of SYN or SYN-ACK do not.
        TcpSynReceived => match (from_origin, syn, ack) {
            (true, false, true) if fin => Step::Pass(TcpFinOrigin),
            (true, false, true) => Step::Pass(TcpEstablished),
            (false, false, true) if fin => Step::Pass(TcpFinReply),
            (true, true, true) => Step::Invalid,
            _ => Step::Pass(TcpSynReceived),
        },
        TcpEstablished if fin => Step::Pass(if from_origin {
            TcpFinOrigin
        } else {
            TcpFinReply
        }),
        TcpFinOrigin if fin && !from_origin => Step::Pass(TcpTimeWait),
        TcpFinReply if fin && from_origin => Step::Pass(TcpTimeWait),
        _ => Step::Pass(state),
    }
}

#[cfg(test)]
mod tests;
