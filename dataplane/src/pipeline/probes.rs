//! Whether gateway hosts live: BFD (RFC 5880) between hosts, in the tunnel, outside of every VPC (RFC 8971: VNI 0).
//!
//! A host probes every gateway host of the external networks that it knows, and answers whoever probes it. Asynchronous mode, [`INTERVAL`] each way, gone
//! after [`MULTIPLIER`] of them. Who is gone is told to whoever compiles the snapshot ([`Probes::silent`]): the next gateway host is in use then. A host that
//! has just started, and has not yet what the one that stands in for it knows, says "administratively down" until it has.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::packet::checksum;
use crate::packet::parse::{ETHERNET, protocol};
use crate::snapshot::Fellows;

/// Between two packets to one peer, in milliseconds.
pub const INTERVAL: u32 = 100;
/// Packets that may be missed.
pub const MULTIPLIER: u8 = 3;
/// A peer that has not been heard for so long is gone.
const DETECTION: u32 = INTERVAL * MULTIPLIER as u32;
/// A peer that nobody probes and that has not been heard for so long is forgotten.
const FORGOTTEN: u32 = 10_000;
/// A host that starts waits no longer for what others know.
const MOST_WAIT: u32 = 20_000;
/// A gateway host that has started is ready when it has been told of everything so often: the first time may have begun before it listened.
const TURNS: u32 = 2;
/// Peers that may probe this host.
const PEERS: usize = 4096;

/// UDP port of BFD (RFC 5881 §4).
const PORT: u16 = 3784;
const CONTROL: usize = 24;
/// Bytes of a frame with a control packet.
pub(super) const FRAME: usize = ETHERNET + 20 + 8 + CONTROL;

/// State of a BFD session (RFC 5880 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    AdminDown = 0,
    Down = 1,
    Init = 2,
    Up = 3,
}

impl State {
    fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::AdminDown,
            1 => Self::Down,
            2 => Self::Init,
            _ => Self::Up,
        }
    }
}

/// A session with one peer.
#[derive(Debug, Clone, Copy)]
struct Session {
    state: State,
    mine: u32,
    theirs: u32,
    remote: State,
    heard: Option<u32>,
    /// When it was made.
    since: u32,
    /// This host asked for it.
    is_active: bool,
    /// It was not heard for the detection time, and has not been heard since.
    is_lost: bool,
    /// How often it has told of all that it has, while it was ready, since this host began to wait.
    turns: u32,
}

impl Session {
    fn is_heard(&self, now: u32) -> bool {
        since(self.heard.unwrap_or(self.since), now) < DETECTION
    }
}

/// Milliseconds from one time to another; none if the first is later, as another worker's may be, which has looked at the clock since.
pub(super) fn since(then: u32, now: u32) -> u32 {
    (now.wrapping_sub(then) as i32).max(0) as u32
}

#[derive(Debug, Default)]
struct Table {
    sessions: BTreeMap<u16, Session>,
    silent: Vec<u16>,
    changes: u64,
    /// When this host began to wait until it may be a gateway.
    began: Option<u32>,
    is_ready: bool,
    next: u32,
    /// When it was looked last.
    looked: Option<u32>,
    /// It had fellows then.
    has_fellows: bool,
}

/// The probes of one host.
#[derive(Debug, Default)]
pub struct Probes {
    table: Mutex<Table>,
    changed: Condvar,
}

/// What is known now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Liveness {
    /// Rises with every change.
    pub changes: u64,
    /// Peers that are gateway hosts and do not answer, by index.
    pub silent: Vec<u16>,
    /// Whether this host may be a gateway.
    pub is_ready: bool,
}

impl Probes {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Peers that are gateway hosts and do not answer, by index.
    pub fn silent(&self) -> Vec<u16> {
        self.lock().silent.clone()
    }

    /// What is known, once it is another than after so many changes, or when the time is over.
    pub fn wait(&self, changes: u64, time: Duration) -> Liveness {
        let table = self.lock();
        let waited = self
            .changed
            .wait_timeout_while(table, time, |table| table.changes == changes);
        let (table, _) = waited.unwrap_or_else(PoisonError::into_inner);
        Liveness {
            changes: table.changes,
            silent: table.silent.clone(),
            is_ready: table.is_ready,
        }
    }

    /// Looks who is silent, and answers what to send to whom. `probed`: peers that this host probes.
    ///
    /// What fellow gateway hosts know is waited for ([`Self::turn`]) at the start, unless none of them lives; and again when others may have taken over meanwhile:
    /// this host stood still, or has lost sight of one that stands in for it.
    pub(super) fn tick(
        &self,
        now: u32,
        probed: impl Iterator<Item = u16>,
        fellows: &Fellows,
        mut send: impl FnMut(u16, [u8; CONTROL]),
    ) {
        let mut table = self.lock();
        let Table {
            sessions,
            next,
            is_ready,
            began,
            looked,
            has_fellows,
            ..
        } = &mut *table;
        let others = &fellows.all;
        // A host that has just become a gateway host begins as one that starts.
        let had_fellows = std::mem::replace(has_fellows, !others.is_empty());
        let stood_still = looked.is_some_and(|at| now.wrapping_sub(at) >= DETECTION);
        *looked = Some(now);
        let mut is_out_of_date = (stood_still || !had_fellows) && !others.is_empty();
        let was_ready = *is_ready;
        for session in sessions.values_mut() {
            session.is_active = false;
        }
        for peer in probed {
            let session = sessions.entry(peer);
            session.or_insert_with(|| Session::new(next, now)).is_active = true;
        }
        sessions.retain(|_, session| {
            let heard = session.heard.unwrap_or(session.since);
            session.is_active || since(heard, now) < FORGOTTEN
        });
        let mut silent = Vec::new();
        // Which of them is in use for what, and so has made something, is not known here: all that live have to tell.
        let (mut lives, mut have_told) = (false, true);
        for (peer, session) in sessions.iter_mut() {
            if !session.is_heard(now) {
                (session.state, session.theirs) = (State::Down, 0);
                session.is_lost = true;
                continue;
            }
            if session.is_lost {
                session.is_lost = false;
                // One that has begun anew has taken nothing over.
                is_out_of_date |=
                    session.remote != State::AdminDown && fellows.juniors.contains(peer);
            }
            if others.contains(peer) && session.heard.is_some() {
                let is_ready = session.remote != State::AdminDown;
                lives |= is_ready;
                have_told &= !is_ready || session.turns >= TURNS;
            }
        }
        for (peer, session) in sessions.iter() {
            let is_new = session.heard.is_none() && session.is_heard(now);
            if session.is_active && session.state != State::Up && !is_new {
                silent.push(*peer);
            }
        }
        if is_out_of_date && *is_ready {
            (*is_ready, *began) = (false, None);
            sessions.values_mut().for_each(|session| session.turns = 0);
            have_told = false;
        }
        let began = *began.get_or_insert(now);
        let waited = now.wrapping_sub(began);
        *is_ready |= others.is_empty()
            || (lives && have_told)
            || waited >= MOST_WAIT
            || (waited >= 2 * DETECTION && !lives);
        for (peer, session) in sessions.iter() {
            send(*peer, session.packet(*is_ready));
        }
        let is_changed = was_ready != *is_ready || silent != table.silent;
        if is_changed {
            table.silent = silent;
            table.changes += 1;
            self.changed.notify_all();
        }
    }

    /// Another gateway host has told of everything that it has. One that is not ready does not know everything itself.
    pub(super) fn turn(&self, peer: u16) {
        let mut table = self.lock();
        if let Some(session) = table.sessions.get_mut(&peer)
            && session.remote != State::AdminDown
        {
            session.turns = session.turns.saturating_add(1);
        }
    }

    /// Takes a control packet from a peer (RFC 5880 §6.8.6). One that is malformed, or for another session, is not taken.
    pub(super) fn receive(&self, peer: u16, packet: &[u8], now: u32) -> Option<()> {
        let packet: &[u8; CONTROL] = packet.first_chunk()?;
        let word = |at: usize| {
            u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
        };
        let (mine, theirs) = (word(4), word(8));
        let remote = State::from_bits(packet[1] >> 6);
        // Version 1; no authentication, not multipoint; whole; a multiplier and a discriminator that are none are nobody's.
        let is_well_formed = packet[0] >> 5 == 1
            && packet[1] & 0x05 == 0
            && usize::from(packet[3]) == CONTROL
            && packet[2] != 0
            && mine != 0
            && (theirs != 0 || matches!(remote, State::Down | State::AdminDown));
        if !is_well_formed {
            return None;
        }
        let mut table = self.lock();
        let Table { sessions, next, .. } = &mut *table;
        if !sessions.contains_key(&peer) && sessions.len() >= PEERS {
            return None;
        }
        let session = sessions
            .entry(peer)
            .or_insert_with(|| Session::new(next, now));
        if theirs != 0 && theirs != session.mine {
            return None;
        }
        session.theirs = mine;
        session.remote = remote;
        session.heard = Some(now);
        session.state = match (session.state, remote) {
            (_, State::AdminDown) => State::Down,
            (State::Down | State::AdminDown, State::Down) => State::Init,
            (State::Down | State::AdminDown, State::Init)
            | (State::Init, State::Init | State::Up) => State::Up,
            (State::Up, State::Down) => State::Down,
            (state, _) => state,
        };
        Some(())
    }
}

impl Session {
    fn new(next: &mut u32, now: u32) -> Self {
        *next = next.wrapping_add(1).max(1);
        // One of a process before is not this one.
        let mine = (rand::random::<u32>() & 0xffff_0000 | *next & 0xffff).max(1);
        Self {
            state: State::Down,
            mine,
            theirs: 0,
            remote: State::Down,
            heard: None,
            since: now,
            is_active: false,
            is_lost: false,
            turns: 0,
        }
    }

    fn packet(&self, is_ready: bool) -> [u8; CONTROL] {
        let mut packet = [0; CONTROL];
        let state = if is_ready {
            self.state
        } else {
            State::AdminDown
        };
        packet[0] = 1 << 5;
        packet[1] = (state as u8) << 6;
        packet[2] = MULTIPLIER;
        packet[3] = CONTROL as u8;
        packet[4..8].copy_from_slice(&self.mine.to_be_bytes());
        packet[8..12].copy_from_slice(&self.theirs.to_be_bytes());
        let interval = (INTERVAL * 1000).to_be_bytes();
        packet[12..16].copy_from_slice(&interval);
        packet[16..20].copy_from_slice(&interval);
        packet
    }
}

/// The MAC of BFD in a tunnel (RFC 8971 §3).
const MAC: [u8; 6] = [0x00, 0x52, 0x02, 0, 0, 0];
const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

/// A frame from this host's daemon to a peer's, to a UDP port, with room for so many bytes of payload behind.
pub(super) fn frame_head(port: u16, payload: usize) -> [u8; FRAME - CONTROL] {
    let mut frame = [0; FRAME - CONTROL];
    frame[..6].copy_from_slice(&MAC);
    frame[6..12].copy_from_slice(&MAC);
    frame[12..14].copy_from_slice(&[8, 0]);
    let (ip, udp) = frame[ETHERNET..].split_at_mut(20);
    (ip[0], ip[1], ip[8], ip[9]) = (0x45, 0xc0, 255, protocol::UDP);
    ip[2..4].copy_from_slice(&((28 + payload) as u16).to_be_bytes());
    ip[12..16].copy_from_slice(&LOOPBACK);
    ip[16..20].copy_from_slice(&LOOPBACK);
    let sum = checksum::finish(checksum::sum(ip));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    udp[..2].copy_from_slice(&(49_152 + (port & 0xfff)).to_be_bytes());
    udp[2..4].copy_from_slice(&port.to_be_bytes());
    udp[4..6].copy_from_slice(&((8 + payload) as u16).to_be_bytes());
    frame
}

/// A frame with a control packet.
pub(super) fn frame(control: &[u8; CONTROL]) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..FRAME - CONTROL].copy_from_slice(&frame_head(PORT, CONTROL));
    frame[FRAME - CONTROL..].copy_from_slice(control);
    frame
}

/// The UDP port and the payload of a frame from a peer's daemon. It has crossed no router (RFC 5881 §5).
pub(super) fn payload(frame: &[u8]) -> Option<(u16, &[u8])> {
    let head: &[u8; FRAME - CONTROL] = frame.first_chunk()?;
    let length = u16::from_be_bytes([head[38], head[39]]);
    let is_ours = head[..6] == MAC
        && head[12..15] == [8, 0, 0x45]
        && head[22..24] == [255, protocol::UDP]
        && head[20] & 0x3f == 0
        && head[21] == 0;
    let payload = frame.get(ETHERNET + 28..ETHERNET + 20 + usize::from(length))?;
    is_ours.then(|| (u16::from_be_bytes([head[36], head[37]]), payload))
}

/// Whether a UDP port is that of probes.
pub(super) fn is_probe(port: u16) -> bool {
    port == PORT
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: Fellows = Fellows {
        all: Vec::new(),
        juniors: Vec::new(),
    };

    fn senior() -> Fellows {
        Fellows {
            all: vec![7],
            juniors: vec![7],
        }
    }

    fn junior() -> Fellows {
        Fellows {
            all: vec![7],
            juniors: vec![],
        }
    }

    /// Two hosts; what one sends, the other gets unless it is cut.
    struct Pair {
        hosts: [Probes; 2],
        now: u32,
        is_cut: bool,
    }

    impl Pair {
        fn new() -> Self {
            Self {
                hosts: Default::default(),
                now: 5,
                is_cut: false,
            }
        }

        /// Host 0 uses host 1, which is a gateway alone.
        fn step(&mut self, fellows: [&Fellows; 2]) {
            self.now += INTERVAL;
            for i in [0, 1] {
                let mut sent = Vec::new();
                let probed = if i == 0 || !fellows[1].all.is_empty() {
                    vec![7]
                } else {
                    vec![]
                };
                self.hosts[i].tick(self.now, probed.into_iter(), fellows[i], |peer, packet| {
                    assert_eq!(peer, 7);
                    sent.push(packet);
                });
                for packet in sent.iter().filter(|_| !self.is_cut) {
                    assert_eq!(self.hosts[1 - i].receive(7, packet, self.now), Some(()));
                }
            }
        }

        fn liveness(&self, host: usize) -> Liveness {
            self.hosts[host].wait(u64::MAX, Duration::ZERO)
        }
    }

    #[test]
    fn a_gateway_that_stops_is_silent_within_the_detection_time_and_back_when_it_answers() {
        let mut pair = Pair::new();
        for _ in 0..5 {
            pair.step([&ALONE, &ALONE]);
            assert_eq!(pair.liveness(0).silent, [0u16; 0]);
        }
        assert!(pair.liveness(1).is_ready);
        pair.is_cut = true;
        let mut steps = 0;
        while pair.liveness(0).silent.is_empty() {
            pair.step([&ALONE, &ALONE]);
            steps += 1;
            assert!(steps < 10);
        }
        assert!((3..=4).contains(&steps), "{steps}");
        pair.is_cut = false;
        for _ in 0..3 {
            pair.step([&ALONE, &ALONE]);
        }
        assert_eq!(pair.liveness(0).silent, [0u16; 0]);
        // Who is only answered is not missed.
        assert_eq!(pair.liveness(1).silent, [0u16; 0]);
    }

    #[test]
    fn a_probe_that_another_worker_has_read_a_moment_later_is_no_silence() {
        let probes = Probes::default();
        let control = Session::new(&mut 0, 0).packet(true);
        probes.tick(1000, [7].into_iter(), &ALONE, |_, _| {});
        assert_eq!(probes.receive(7, &control, 1101), Some(()));
        probes.tick(1100, [7].into_iter(), &ALONE, |_, _| {});
        let heard = probes.lock().sessions[&7];
        assert_eq!((heard.state, heard.is_lost), (State::Init, false));
    }

    #[test]
    fn one_that_never_answered_is_silent_after_the_detection_time() {
        let probes = Probes::default();
        for now in [0, 100, 200] {
            probes.tick(now, [7].into_iter(), &ALONE, |_, _| {});
            assert_eq!(probes.wait(u64::MAX, Duration::ZERO).silent, [0u16; 0]);
        }
        probes.tick(300, [7].into_iter(), &ALONE, |_, _| {});
        assert_eq!(probes.wait(u64::MAX, Duration::ZERO).silent, [7]);
    }

    #[test]
    fn a_gateway_that_starts_beside_another_waits_until_it_knows_what_that_knows() {
        let mut pair = Pair::new();
        // Both start: neither has anything to tell, and the first does not wait for long. The other waits for what that one has to tell.
        for _ in 0..7 {
            assert!(!pair.liveness(0).is_ready);
            pair.step([&senior(), &junior()]);
        }
        assert_eq!(
            (pair.liveness(0).is_ready, pair.liveness(1).is_ready),
            (true, false)
        );
        pair.hosts[1].turn(7);
        pair.hosts[1].turn(7);
        for _ in 0..4 {
            pair.step([&senior(), &junior()]);
        }
        assert_eq!(
            (pair.liveness(0).silent, pair.liveness(1).silent),
            (vec![], vec![])
        );
        // One starts anew: it is not in use until it is synchronised.
        pair.hosts[0] = Probes::default();
        for _ in 0..20 {
            pair.step([&senior(), &junior()]);
        }
        assert!(!pair.liveness(0).is_ready);
        assert_eq!(pair.liveness(1).silent, [7]);
        pair.hosts[0].turn(7);
        pair.hosts[0].turn(7);
        for _ in 0..4 {
            pair.step([&senior(), &junior()]);
        }
        assert!(pair.liveness(0).is_ready);
        assert_eq!(pair.liveness(1).silent, [0u16; 0]);
    }

    /// Else it would be used again without what the other has made meanwhile.
    #[test]
    fn a_gateway_that_was_cut_off_or_stood_still_is_used_again_once_it_knows_what_happened() {
        let both_ready = || {
            let mut pair = Pair::new();
            for _ in 0..8 {
                pair.step([&senior(), &junior()]);
            }
            for _ in 0..TURNS {
                pair.hosts[1].turn(7);
            }
            for _ in 0..4 {
                pair.step([&senior(), &junior()]);
            }
            assert!(pair.liveness(0).is_ready && pair.liveness(1).is_ready);
            pair
        };
        let mut pair = both_ready();
        pair.is_cut = true;
        for _ in 0..6 {
            pair.step([&senior(), &junior()]);
        }
        assert_eq!(
            (pair.liveness(0).silent, pair.liveness(1).silent),
            (vec![7], vec![7])
        );
        pair.is_cut = false;
        for _ in 0..6 {
            pair.step([&senior(), &junior()]);
            // The one that stood in goes on meanwhile.
            assert_eq!(
                (pair.liveness(1).silent, pair.liveness(1).is_ready),
                (vec![7], true)
            );
        }
        assert!(!pair.liveness(0).is_ready);
        pair.hosts[0].turn(7);
        pair.hosts[0].turn(7);
        for _ in 0..4 {
            pair.step([&senior(), &junior()]);
        }
        assert!(pair.liveness(0).is_ready);
        assert_eq!(pair.liveness(1).silent, [0u16; 0]);

        let mut pair = both_ready();
        pair.now += 5 * INTERVAL;
        pair.step([&senior(), &junior()]);
        assert!(!pair.liveness(0).is_ready);
    }

    #[test]
    fn what_is_no_control_packet_of_the_session_is_not_taken() {
        let probes = Probes::default();
        let mut sent = Vec::new();
        probes.tick(0, [7].into_iter(), &ALONE, |_, packet| sent.push(packet));
        let mut good = Session::new(&mut 0, 0).packet(true);
        for (at, value) in [
            (0, 0x40),
            (1, 0x41),
            (1, 0x44),
            (2, 0),
            (3, 23),
            (1, 0xc0),
            (11, 9),
        ] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(probes.receive(7, &bad, 1), None, "{at} {value}");
        }
        good[4..8].fill(0);
        assert_eq!(probes.receive(7, &good, 1), None);
        assert_eq!(probes.receive(7, &sent[0][..23], 1), None);
        let frame = frame(&sent[0]);
        assert_eq!(payload(&frame), Some((PORT, &sent[0][..])));
        let mut routed = frame;
        routed[22] = 254;
        assert_eq!(payload(&routed), None);
    }

    /// Of three, only one is in use; the first is used again when each that lives has told of all, and none is counted for another.
    #[test]
    fn a_gateway_that_comes_back_has_been_told_of_everything_by_each_of_the_others() {
        let others = Fellows {
            all: vec![7, 8, 9],
            juniors: vec![7, 8, 9],
        };
        let probes = Probes::default();
        let mut others_sessions = [7u16, 8].map(|peer| Session::new(&mut peer.into(), 0));
        // 9 is not ready itself.
        let mut starting = Session::new(&mut 9, 0);
        let mut now = 0;
        let mut step = || {
            now += INTERVAL;
            let mut to = Vec::new();
            probes.tick(now, [7, 8, 9].into_iter(), &others, |peer, packet| {
                to.push((peer, packet));
            });
            for session in others_sessions.iter_mut().chain([&mut starting]) {
                session.state = State::Up;
            }
            for (peer, packet) in to {
                let mine = u32::from_be_bytes([packet[4], packet[5], packet[6], packet[7]]);
                let session = match peer {
                    7 => &mut others_sessions[0],
                    8 => &mut others_sessions[1],
                    _ => &mut starting,
                };
                session.theirs = mine;
                let answer = session.packet(peer != 9);
                assert_eq!(probes.receive(peer, &answer, now), Some(()));
            }
            probes.wait(u64::MAX, Duration::ZERO).is_ready
        };
        for _ in 0..8 {
            assert!(!step());
        }
        for _ in 0..10 {
            probes.turn(7);
            probes.turn(9);
            probes.turn(99);
        }
        assert!(!step(), "8 has told nothing");
        probes.turn(8);
        assert!(!step(), "its first turn may have begun before");
        probes.turn(8);
        assert!(step());
    }
}
