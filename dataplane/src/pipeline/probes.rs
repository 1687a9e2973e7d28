//! Whether gateway hosts live: BFD (RFC 5880) between hosts, in the tunnel, outside of every VPC (RFC 8971: VNI 0).
//!
//! A host probes every gateway host of the external networks that it knows, and answers whoever probes it. Asynchronous mode, [`INTERVAL`] each way, gone
//! after [`MULTIPLIER`] of them. Who is gone is told to whoever compiles the snapshot (`Probes::silent`): the next gateway host is in use then.
//!
//! Two hosts are in contact while each hears the other, which is BFD's state Up; whoever was lost is back after `STEADY` of it. A host that must not be a
//! gateway now says "concatenated path down" (RFC 5880 §6.8.17), and its sessions stay up. That is one which
//! - has just started, stood still, or was stood in for, and has not yet what the others know,
//! - is cut off: it has lost everybody at once, or its uplink leads nowhere,
//! - has no link on the segment of a network that it is a gateway host of.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
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
/// One that was gone is back when the two have heard each other for so long, and in as many packets.
const STEADY: u32 = DETECTION;
const STEADY_PACKETS: u8 = MULTIPLIER;
/// Peers that are lost within so long of each other are lost at once.
const AT_ONCE: u32 = 1000;
/// What is held is not defended for so long after a change among the gateway hosts: who claims it may be the next one.
const UNSETTLED: u32 = 1000;
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

/// Diagnostics (RFC 5880 §4.1).
mod diagnostic {
    pub(super) const NONE: u8 = 0;
    pub(super) const EXPIRED: u8 = 1;
    pub(super) const NEIGHBOR_DOWN: u8 = 3;
    pub(super) const CONCATENATED_PATH_DOWN: u8 = 6;
}

/// A session with one peer.
#[derive(Debug, Clone, Copy)]
struct Session {
    state: State,
    mine: u32,
    theirs: u32,
    diagnostic: u8,
    /// The peer may be a gateway, as it says.
    is_usable: bool,
    /// It does not hear this host, as it says.
    is_deaf: bool,
    heard: Option<u32>,
    /// When it was made.
    since: u32,
    /// This host asked for it.
    is_active: bool,
    /// Since when it is up, and in how many packets.
    up: Option<(u32, u8)>,
    /// It is up for [`STEADY`] already.
    is_steady: bool,
    /// It was lost, and has not been steady since.
    is_lost: bool,
    /// When it was up last, if that is not longer than [`AT_ONCE`] ago and it is not up now.
    fell: Option<u32>,
    /// How often it has told of all that it has, while it was ready, since this host began to wait.
    turns: u32,
}

/// Milliseconds from one time to another; none if the first is later, as another worker's may be, which has looked at the clock since.
pub(super) fn since(then: u32, now: u32) -> u32 {
    (now.wrapping_sub(then) as i32).max(0) as u32
}

#[derive(Debug, Default)]
struct Table {
    sessions: BTreeMap<u16, Session>,
    silent: Vec<u16>,
    /// Room for the next.
    spare: Vec<u16>,
    changes: u64,
    /// When this host began to wait until it may be a gateway.
    began: Option<u32>,
    is_ready: bool,
    /// When it was looked last.
    looked: Option<u32>,
    /// It had fellows then.
    has_fellows: bool,
    /// It lost everybody at once, and has been in steady contact with nobody since.
    is_cut_off: bool,
    /// No way leads from its uplinks to anybody.
    is_uplink_cut: bool,
    /// That was so, and it has been in steady contact with nobody since.
    was_uplink_cut: bool,
    /// It has no link on the segment.
    is_path_down: bool,
    /// When somebody came or went, if that is not longer than [`UNSETTLED`] ago.
    unsettled: Option<u32>,
}

/// The probes of one host.
#[derive(Debug, Default)]
pub struct Probes {
    table: Mutex<Table>,
    changed: Condvar,
    /// Copies of what the table has, for what is asked for single packets.
    is_ready: AtomicBool,
    looked: AtomicU32,
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
    /// Whether it may not because it is cut off from all others.
    pub is_cut_off: bool,
}

/// What a look at all sessions has found.
#[derive(Debug, Default)]
struct Look {
    /// Somebody is in contact.
    is_in_contact: bool,
    /// Somebody has been for long enough.
    is_steady: bool,
    /// So many were lost just now.
    lost: usize,
    /// A fellow that may be a gateway is heard.
    lives: bool,
    /// One of these is in steady contact.
    is_met: bool,
    /// Another gateway host may have taken over from this one.
    is_out_of_date: bool,
}

impl Probes {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Peers that are gateway hosts and do not answer, by index, are put into a list.
    pub(super) fn silent(&self, list: &mut Vec<u16>) {
        list.clear();
        list.extend_from_slice(&self.lock().silent);
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
            is_cut_off: table.has_fellows && (table.is_cut_off || table.is_uplink_cut),
        }
    }

    /// Takes note of whether a way leads from this host's uplinks to any other host, as far as its kernel knows.
    pub fn set_uplink_cut(&self, is_cut: bool) {
        self.lock().is_uplink_cut = is_cut;
    }

    /// Takes note of whether this host has no link on the segment of a network that it is a gateway host of.
    pub fn set_path_down(&self, is_down: bool) {
        self.lock().is_path_down = is_down;
    }

    /// Whether this host may be a gateway now: what the snapshot says may be older.
    pub(super) fn is_gateway(&self, now: u32) -> bool {
        self.is_ready.load(Ordering::Relaxed)
            && since(self.looked.load(Ordering::Relaxed), now) < DETECTION
    }

    /// Whether an address that somebody else claims is still this host's without doubt.
    pub(super) fn may_defend(&self, now: u32) -> bool {
        let table = self.lock();
        if !table.has_fellows {
            return true;
        }
        let mut up = table.sessions.values().filter(|it| it.state == State::Up);
        let is_fresh = |session: &Session| since(session.heard.unwrap_or(0), now) < 2 * INTERVAL;
        let is_heard = up.clone().any(is_fresh) || up.next().is_none();
        self.is_gateway(now) && is_heard && table.unsettled.is_none()
    }

    /// Looks who is silent, and answers what to send to whom. `probed`: peers that this host probes.
    ///
    /// What fellow gateway hosts know is waited for ([`Self::turn`]) at the start, unless none of them lives; and again when others may have taken over meanwhile:
    /// this host stood still, was cut off, had no link on the segment, or has lost sight of one that stands in for it.
    pub(super) fn tick(
        &self,
        now: u32,
        probed: impl Iterator<Item = u16>,
        fellows: &Fellows,
        mut send: impl FnMut(u16, [u8; CONTROL]),
    ) {
        let mut table = self.lock();
        let table = &mut *table;
        let is_alone = fellows.all.is_empty();
        // A host that has just become a gateway host begins as one that starts.
        let had_fellows = std::mem::replace(&mut table.has_fellows, !is_alone);
        let stood_still = table.stands_still(now);
        table.looked = Some(now);
        table.renew(now, probed);
        let mut look = table.look(now, fellows);
        look.is_out_of_date |= (stood_still || !had_fellows) && !is_alone;
        let was_cut_off = table.is_cut_off;
        table.judge_contact(&look);
        let is_cut_off = table.is_cut_off || table.is_uplink_cut;
        let is_barred = table.is_path_down || (is_cut_off && !is_alone);
        let was_ready = table.is_ready;
        if is_barred || look.is_out_of_date {
            (table.is_ready, table.began) = (false, None);
            table.sessions.values_mut().for_each(|it| it.turns = 0);
        }
        if !is_barred {
            table.is_ready |= table.may_begin(now, &look, fellows);
        }
        let mut silent = std::mem::take(&mut table.spare);
        silent.clear();
        silent.extend(table.silent_now(now, fellows));
        for (peer, session) in &table.sessions {
            send(*peer, session.packet(table.is_ready));
        }
        let is_changed = was_ready != table.is_ready || silent != table.silent;
        table.spare = std::mem::replace(&mut table.silent, silent);
        if is_changed {
            table.unsettled = Some(now);
        }
        self.is_ready.store(table.is_ready, Ordering::Relaxed);
        self.looked.store(now, Ordering::Relaxed);
        if is_changed || was_cut_off != table.is_cut_off {
            table.changes += 1;
            self.changed.notify_all();
        }
    }

    /// Another gateway host has told of everything that it has. One that is not ready does not know everything itself; and what comes before the two are in
    /// steady contact may have waited here for long.
    pub(super) fn turn(&self, peer: u16) {
        let mut table = self.lock();
        if let Some(session) = table.sessions.get_mut(&peer)
            && session.is_usable
            && session.is_steady
        {
            session.turns = session.turns.saturating_add(1);
        }
    }

    /// Takes a control packet from a peer (RFC 5880 §6.8.6). One that is malformed, or for another session, is not taken.
    ///
    /// While a session is up, a packet has to have its discriminator. RFC 5880 lets one say "down" without; somebody who knows two addresses could then end any
    /// session. A peer that begins anew is heard again after the detection time.
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
        let table = &mut *table;
        if !table.sessions.contains_key(&peer) && table.sessions.len() >= PEERS {
            return None;
        }
        let session = table
            .sessions
            .entry(peer)
            .or_insert_with(|| Session::new(now));
        if theirs != session.mine && (theirs != 0 || session.state == State::Up) {
            return None;
        }
        if table.looked.is_some_and(|at| since(at, now) >= DETECTION) {
            // This host stood still: the packet may have waited for as long, and says nothing of now.
            return Some(());
        }
        let before = (session.state, session.is_usable);
        session.theirs = mine;
        session.heard = Some(now);
        session.is_deaf = remote == State::Down;
        session.is_usable =
            remote != State::AdminDown && packet[0] & 0x1f != diagnostic::CONCATENATED_PATH_DOWN;
        session.state = match (session.state, remote) {
            (_, State::AdminDown) => State::Down,
            (State::Down | State::AdminDown, State::Down) => State::Init,
            (State::Down | State::AdminDown, State::Init)
            | (State::Init, State::Init | State::Up) => State::Up,
            (State::Up, State::Down) => State::Down,
            (state, _) => state,
        };
        if session.state == State::Up {
            let (at, packets) = session.up.unwrap_or((now, 0));
            session.up = Some((at, packets.saturating_add(1)));
            (session.fell, session.diagnostic) = (None, diagnostic::NONE);
        } else if before.0 == State::Up {
            session.fall(now, diagnostic::NEIGHBOR_DOWN);
        }
        if before != (session.state, session.is_usable) {
            table.unsettled = Some(now);
        }
        Some(())
    }
}

impl Table {
    fn stands_still(&self, now: u32) -> bool {
        self.looked.is_some_and(|at| since(at, now) >= DETECTION)
    }

    /// Has a session with each peer that is probed, and none with those that are long gone.
    fn renew(&mut self, now: u32, probed: impl Iterator<Item = u16>) {
        for session in self.sessions.values_mut() {
            session.is_active = false;
        }
        for peer in probed {
            let session = self.sessions.entry(peer);
            session.or_insert_with(|| Session::new(now)).is_active = true;
        }
        self.sessions.retain(|_, session| {
            let heard = session.heard.unwrap_or(session.since);
            session.is_active || since(heard, now) < FORGOTTEN
        });
        let is_over = |at: u32| since(at, now) >= UNSETTLED;
        if self.unsettled.is_some_and(is_over) {
            self.unsettled = None;
        }
    }

    /// Looks who is heard, and what follows from that for this host.
    fn look(&mut self, now: u32, fellows: &Fellows) -> Look {
        let mut look = Look::default();
        for (peer, session) in &mut self.sessions {
            session.age(now);
            if !session.is_heard(now) {
                if session.state == State::Up {
                    session.fall(now, diagnostic::EXPIRED);
                }
                session.state = State::Down;
                session.is_lost = true;
                // RFC 5880 §6.8.1 wants zero at once. Here the discriminator is kept for a while: a peer that still hears this host takes nothing else while its
                // session is up, and is to know that it is not heard.
                if session.fell.is_none() {
                    session.theirs = 0;
                }
            } else if session.state == State::Up {
                // One that is back has taken over what this host had, unless it is not ready itself.
                let had = session.is_lost && fellows.juniors.contains(peer);
                look.is_out_of_date |= had && session.is_usable;
                session.become_steady(now);
            }
            look.is_in_contact |= session.state == State::Up;
            look.is_steady |= session.is_steady;
            look.lost += usize::from(session.fell.is_some());
            if session.is_heard_usable(now) && fellows.all.contains(peer) {
                look.lives = true;
                look.is_met |= session.is_steady;
                // One that stands in for this host, and does not hear it, takes over.
                look.is_out_of_date |= session.is_deaf && fellows.juniors.contains(peer);
            }
        }
        look
    }

    /// Tells "I am cut off" from "my fellow has died". Two hosts seldom die within a second: who loses two or more, and hears nobody, is cut off. Who loses its
    /// only one cannot know, and goes by its uplink.
    fn judge_contact(&mut self, look: &Look) {
        if look.is_steady {
            (self.is_cut_off, self.was_uplink_cut) = (false, false);
        } else if !look.is_in_contact && look.lost >= 2 {
            self.is_cut_off = true;
        }
        if self.is_uplink_cut {
            // That explains whom it lost. When it is mended, those that live are heard, or it is alone.
            (self.is_cut_off, self.was_uplink_cut) = (false, true);
        }
    }

    /// Whether this host, which nothing keeps from it, may be a gateway from now on.
    fn may_begin(&mut self, now: u32, look: &Look, fellows: &Fellows) -> bool {
        let waited = since(*self.began.get_or_insert(now), now);
        if fellows.all.is_empty() {
            return true;
        }
        if !look.lives {
            // A link that has just come back may carry nothing for some time.
            let is_mended = self.was_uplink_cut;
            return waited >= if is_mended { MOST_WAIT } else { 2 * DETECTION };
        }
        // Which of them is in use for what, and so has made something, is not known here: all that live have to tell.
        let of_fellows = self.sessions.iter();
        let mut of_fellows = of_fellows.filter(|(peer, _)| fellows.all.contains(peer));
        let have_told =
            of_fellows.all(|(_, session)| !session.is_heard_usable(now) || session.turns >= TURNS);
        look.is_met && (have_told || waited >= MOST_WAIT)
    }

    fn silent_now<'a>(&'a self, now: u32, fellows: &'a Fellows) -> impl Iterator<Item = u16> + 'a {
        let is_senior = |peer: &u16| fellows.all.contains(peer) && !fellows.juniors.contains(peer);
        let silent = self.sessions.iter().filter(move |(peer, session)| {
            let is_new = session.heard.is_none() && session.is_heard(now);
            let lives = session.state == State::Up && session.is_usable && !session.is_lost;
            // One that this host stands in for, and that does not hear it, goes on: two owners would be worse than no way there for this host's ports.
            let goes_on = session.is_deaf && session.is_heard_usable(now) && is_senior(peer);
            session.is_active && !lives && !is_new && !goes_on
        });
        silent.map(|(peer, _)| *peer)
    }
}

impl Session {
    fn new(now: u32) -> Self {
        Self {
            state: State::Down,
            // Whoever does not see the packets cannot end the session.
            mine: rand::random::<u32>().max(1),
            theirs: 0,
            diagnostic: diagnostic::NONE,
            is_usable: false,
            is_deaf: false,
            heard: None,
            since: now,
            is_active: false,
            up: None,
            is_steady: false,
            is_lost: false,
            fell: None,
            turns: 0,
        }
    }

    fn is_heard(&self, now: u32) -> bool {
        since(self.heard.unwrap_or(self.since), now) < DETECTION
    }

    fn is_heard_usable(&self, now: u32) -> bool {
        self.heard.is_some() && self.is_heard(now) && self.is_usable
    }

    /// Times that are long ago are kept no older than they have to be: a clock of 32 bits comes round.
    fn age(&mut self, now: u32) {
        let oldest = now.wrapping_sub(FORGOTTEN);
        for time in [Some(&mut self.since), self.heard.as_mut()] {
            if let Some(time) = time
                && since(*time, now) > FORGOTTEN
            {
                *time = oldest;
            }
        }
        if self.fell.is_some_and(|at| since(at, now) >= AT_ONCE) {
            self.fell = None;
        }
    }

    /// Takes note of whether it has been up for long enough.
    fn become_steady(&mut self, now: u32) {
        let is_steady = self
            .up
            .is_some_and(|(at, packets)| since(at, now) >= STEADY && packets >= STEADY_PACKETS);
        if is_steady {
            (self.is_steady, self.is_lost) = (true, false);
        }
    }

    /// It is up no longer.
    fn fall(&mut self, now: u32, diagnostic: u8) {
        (self.state, self.diagnostic) = (State::Down, diagnostic);
        (self.up, self.is_steady, self.is_lost) = (None, false, true);
        self.fell = Some(now);
    }

    fn packet(&self, is_ready: bool) -> [u8; CONTROL] {
        let mut packet = [0; CONTROL];
        let diagnostic = if is_ready {
            self.diagnostic
        } else {
            diagnostic::CONCATENATED_PATH_DOWN
        };
        packet[0] = 1 << 5 | diagnostic;
        packet[1] = (self.state as u8) << 6;
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
    use std::collections::BTreeSet;

    use super::*;

    const ALONE: Fellows = Fellows {
        all: Vec::new(),
        juniors: Vec::new(),
    };

    /// What a host sends another: a control packet, or that it has told of everything.
    #[derive(Clone, Copy)]
    enum Sent {
        Probe([u8; CONTROL]),
        Turn,
    }

    /// Some hosts; what one sends, the others get unless that direction is cut.
    #[derive(Default)]
    struct Site {
        hosts: Vec<Probes>,
        /// How many of them, the first, are gateway hosts, in this order.
        gateways: usize,
        now: Vec<u32>,
        /// Sender and receiver.
        cut: BTreeSet<(usize, usize)>,
        /// These neither send nor read; what they are sent waits.
        frozen: BTreeSet<usize>,
        waiting: Vec<(usize, usize, Sent)>,
        /// Gateway hosts tell each other of everything, all the time.
        tells: bool,
    }

    impl Site {
        /// As they are some time after they have started.
        fn new(gateways: usize, users: usize) -> Self {
            let count = gateways + users;
            let mut site = Self {
                hosts: (0..count).map(|_| Probes::default()).collect(),
                gateways,
                now: vec![5; count],
                tells: true,
                ..Self::default()
            };
            site.run(30);
            for host in 0..count {
                assert_eq!(site.silent(host), [0u16; 0], "{host}");
                assert!(site.is_ready(host), "{host}");
            }
            assert_eq!(site.owners(), [0]);
            site
        }

        fn fellows(&self, host: usize) -> Fellows {
            let all = 0..self.gateways as u16;
            let own = host as u16;
            if host >= self.gateways {
                return ALONE;
            }
            Fellows {
                all: all.clone().filter(|other| *other != own).collect(),
                juniors: all.filter(|other| *other > own).collect(),
            }
        }

        fn deliver(&self, from: usize, to: usize, sent: Sent) {
            match sent {
                Sent::Probe(packet) => {
                    self.hosts[to].receive(from as u16, &packet, self.now[to]);
                }
                Sent::Turn => self.hosts[to].turn(from as u16),
            }
        }

        /// An interval.
        fn step(&mut self) {
            for host in 0..self.hosts.len() {
                if self.frozen.contains(&host) {
                    continue;
                }
                self.now[host] = self.now[host].wrapping_add(INTERVAL);
                let own = host as u16;
                let probed = (0..self.gateways as u16).filter(|other| *other != own);
                let fellows = self.fellows(host);
                let mut sent = Vec::new();
                self.hosts[host].tick(self.now[host], probed, &fellows, |peer, packet| {
                    sent.push((usize::from(peer), Sent::Probe(packet)));
                });
                let told = fellows.all.iter().filter(|_| self.tells);
                sent.extend(told.map(|peer| (usize::from(*peer), Sent::Turn)));
                for (to, sent) in sent {
                    if self.cut.contains(&(host, to)) {
                        continue;
                    }
                    if self.frozen.contains(&to) {
                        self.waiting.push((host, to, sent));
                    } else {
                        self.deliver(host, to, sent);
                    }
                }
            }
        }

        fn run(&mut self, steps: usize) {
            for _ in 0..steps {
                self.step();
            }
        }

        /// Steps until something holds; how many.
        #[track_caller]
        fn until(&mut self, most: usize, holds: impl Fn(&Self) -> bool) -> usize {
            for steps in 0..=most {
                if holds(self) {
                    return steps;
                }
                self.step();
            }
            panic!("not within {most} intervals");
        }

        fn liveness(&self, host: usize) -> Liveness {
            self.hosts[host].wait(u64::MAX, Duration::ZERO)
        }

        fn silent(&self, host: usize) -> Vec<u16> {
            self.liveness(host).silent
        }

        fn is_ready(&self, host: usize) -> bool {
            self.liveness(host).is_ready
        }

        /// The gateway host that a host sends to.
        fn uses(&self, host: usize) -> Option<usize> {
            let silent = self.silent(host);
            (0..self.gateways).find(|gateway| {
                if *gateway == host {
                    self.is_ready(host)
                } else {
                    !silent.contains(&(*gateway as u16))
                }
            })
        }

        /// The gateway hosts that hold the addresses.
        fn owners(&self) -> Vec<usize> {
            let gateways = 0..self.gateways;
            gateways
                .filter(|gateway| self.uses(*gateway) == Some(*gateway))
                .collect()
        }

        fn cut_off(&mut self, host: usize, sends: bool, hears: bool) {
            for other in (0..self.hosts.len()).filter(|other| *other != host) {
                self.cut.extend(sends.then_some((host, other)));
                self.cut.extend(hears.then_some((other, host)));
            }
        }
    }

    #[test]
    fn a_gateway_that_stops_is_silent_within_the_detection_time_and_back_when_it_answers() {
        let mut site = Site::new(1, 1);
        site.cut_off(0, true, true);
        let steps = site.until(10, |site| !site.silent(1).is_empty());
        assert!((2..=4).contains(&steps), "{steps}");
        // Nobody could stand in for it.
        assert!(site.is_ready(0));
        site.cut.clear();
        site.until(10, |site| site.silent(1).is_empty());
        // Who is only answered is not missed.
        assert_eq!(site.silent(0), [0u16; 0]);
    }

    #[test]
    fn a_probe_that_another_worker_has_read_a_moment_later_is_no_silence() {
        let probes = Probes::default();
        let control = Session::new(0).packet(true);
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

    /// A clock of 32 bits comes round after 50 days, and half of them lie ahead.
    #[test]
    fn one_that_has_been_silent_for_weeks_is_still_silent() {
        let mut site = Site::new(1, 1);
        site.frozen.insert(0);
        site.run(5);
        for _ in 0..12 {
            site.now[1] = site.now[1].wrapping_add(5 * 24 * 3600 * 1000);
            site.step();
            assert_eq!(site.silent(1), [0]);
        }
    }

    #[test]
    fn a_gateway_that_starts_beside_another_waits_until_it_knows_what_that_knows() {
        let mut site = Site::new(2, 0);
        site.tells = false;
        // One starts anew: it is not in use until it is synchronised.
        site.hosts[0] = Probes::default();
        site.until(5, |site| site.owners() == [1]);
        for _ in 0..40 {
            site.step();
            assert_eq!(site.owners(), [1]);
            assert_eq!(site.silent(1), [0]);
        }
        site.hosts[0].turn(1);
        site.step();
        assert_eq!(site.owners(), [1], "the first turn may have begun before");
        site.hosts[0].turn(1);
        site.step();
        assert_eq!(site.owners(), [0]);
        assert_eq!((site.silent(0), site.silent(1)), (vec![], vec![]));
    }

    #[test]
    fn gateways_that_start_together_have_nothing_to_tell_and_do_not_wait_for_long() {
        let mut site = Site {
            hosts: vec![Probes::default(), Probes::default()],
            gateways: 2,
            now: vec![5, 5],
            ..Site::default()
        };
        let steps = site.until(20, |site| site.is_ready(0));
        assert!((6..=8).contains(&steps), "{steps}");
        // The other waits for what that one has to tell.
        site.run(30);
        assert!(!site.is_ready(1));
        site.run(MOST_WAIT as usize / INTERVAL as usize);
        assert!(site.is_ready(1), "better than none");
    }

    /// Which way is cut: what it sends, what it hears, both.
    const CUTS: [(bool, bool); 3] = [(true, true), (true, false), (false, true)];

    #[test]
    fn a_gateway_that_is_cut_off_gives_up_when_the_next_one_takes_over_and_comes_back_as_one_that_starts()
     {
        for (sends, hears) in CUTS {
            let mut site = Site::new(2, 1);
            site.cut_off(0, sends, hears);
            // Whoever still hears it is told, so that both know at once.
            let steps = site.until(6, |site| site.uses(2) == Some(1));
            assert!((2..=4).contains(&steps), "{sends} {hears} {steps}");
            site.step();
            for _ in 0..60 {
                assert_eq!(site.owners(), [1], "{sends} {hears}");
                site.step();
            }
            assert!(site.liveness(0).is_cut_off);
            site.cut.clear();
            site.tells = false;
            for _ in 0..30 {
                site.step();
                assert_eq!((site.owners(), site.uses(2)), (vec![1], Some(1)));
            }
            site.tells = true;
            site.until(10, |site| site.owners() == [0] && site.uses(2) == Some(0));
            assert!(!site.liveness(0).is_cut_off);
        }
    }

    /// It has waited somewhere on the way; it is of the session, so that nothing but its being alone tells.
    #[test]
    fn a_late_probe_does_not_bring_a_gateway_back_that_is_cut_off() {
        let mut site = Site::new(2, 1);
        let late = |site: &Site, from: usize| {
            let table = site.hosts[from].lock();
            table.sessions[&0].packet(true)
        };
        let late = [1, 2].map(|from| (from, late(&site, from)));
        site.cut_off(0, true, true);
        site.run(10);
        for (from, packet) in late.into_iter().cycle().take(6) {
            site.deliver(from, 0, Sent::Probe(packet));
            for _ in 0..25 {
                site.step();
                assert_eq!(site.owners(), [1]);
                assert!(!site.is_ready(0));
            }
        }
    }

    #[test]
    fn a_gateway_whose_fellows_have_died_stays_or_takes_over() {
        // The other hosts still hear it.
        for dead in [0, 1] {
            let mut site = Site::new(2, 2);
            site.frozen.insert(dead);
            site.run(6);
            for _ in 0..250 {
                site.step();
                assert_eq!(site.uses(1 - dead), Some(1 - dead));
                assert_eq!(site.uses(2), Some(1 - dead));
            }
            // Then the others die too, one after the other.
            for user in [2, 3] {
                site.frozen.insert(user);
                site.run(20);
            }
            assert_eq!(site.uses(1 - dead), Some(1 - dead));
        }
        // There is no other host: its uplink leads somewhere.
        for dead in [0, 1] {
            let mut site = Site::new(2, 0);
            site.frozen.insert(dead);
            site.run(250);
            assert_eq!(site.uses(1 - dead), Some(1 - dead));
        }
    }

    #[test]
    fn of_two_hosts_that_lose_each_other_the_one_whose_uplink_leads_nowhere_gives_up() {
        for cut in [0, 1] {
            let mut site = Site::new(2, 0);
            site.cut_off(cut, true, true);
            site.hosts[cut].set_uplink_cut(true);
            site.step();
            assert!(!site.is_ready(cut));
            assert!(site.liveness(cut).is_cut_off);
            site.run(5);
            assert_eq!(site.owners(), [1 - cut]);
            // It has a link again, and nothing passes yet.
            site.hosts[cut].set_uplink_cut(false);
            for _ in 0..50 {
                site.step();
                assert_eq!(site.owners(), [1 - cut]);
            }
            site.cut.clear();
            for _ in 0..20 {
                site.step();
                assert_eq!(site.owners().len(), 1);
            }
            assert_eq!(site.owners(), [0]);
        }
        // The other has died meanwhile.
        let mut site = Site::new(2, 0);
        site.hosts[0].set_uplink_cut(true);
        site.frozen.insert(1);
        site.run(100);
        site.hosts[0].set_uplink_cut(false);
        let steps = site.until(210, |site| site.is_ready(0));
        assert!(steps >= 200, "{steps}");
    }

    /// Both hold the addresses meanwhile; then the second alone, until the first has been told.
    #[test]
    fn two_hosts_alone_that_do_not_hear_each_other_have_one_owner_after_healing() {
        let mut site = Site::new(2, 0);
        site.cut_off(0, true, true);
        site.run(10);
        assert_eq!(site.owners(), [0, 1]);
        site.cut.clear();
        site.tells = false;
        site.until(5, |site| site.owners() == [1]);
        for _ in 0..20 {
            site.step();
            assert_eq!(site.owners(), [1]);
        }
        site.tells = true;
        site.until(5, |site| site.owners() == [0]);
    }

    /// A third host hears both.
    #[test]
    fn two_gateways_of_which_only_one_hears_the_other_have_one_owner() {
        for (lost, owner) in [((0, 1), 1), ((1, 0), 0)] {
            let mut site = Site::new(2, 1);
            site.cut.insert(lost);
            site.until(6, |site| {
                site.owners() == [owner] && !site.silent(0).is_empty()
            });
            for _ in 0..60 {
                site.step();
                assert_eq!((site.owners(), site.uses(2)), (vec![owner], Some(owner)));
            }
            site.cut.clear();
            for _ in 0..20 {
                site.step();
                assert!(site.owners().len() <= 1);
            }
            assert_eq!((site.owners(), site.uses(2)), (vec![0], Some(0)));
        }
    }

    #[test]
    fn a_gateway_without_a_link_on_the_segment_hands_over_at_once_and_is_told_before_it_returns() {
        let mut site = Site::new(2, 1);
        site.hosts[0].set_path_down(true);
        site.step();
        assert_eq!((site.owners(), site.uses(2)), (vec![1], Some(1)));
        site.run(100);
        // It is in contact all the time, and not cut off.
        let state = site.hosts[1].lock().sessions[&0].state;
        assert_eq!((state, site.liveness(0).is_cut_off), (State::Up, false));
        site.tells = false;
        site.hosts[0].set_path_down(false);
        for _ in 0..30 {
            site.step();
            assert_eq!((site.owners(), site.uses(2)), (vec![1], Some(1)));
        }
        site.tells = true;
        site.until(3, |site| site.owners() == [0] && site.uses(2) == Some(0));
        // The only one says so too: nobody sends to it in vain.
        let mut site = Site::new(1, 1);
        site.hosts[0].set_path_down(true);
        site.step();
        assert_eq!(site.uses(1), None);
        site.hosts[0].set_path_down(false);
        site.step();
        assert_eq!(site.uses(1), Some(0));
    }

    /// Neither what waited for it nor what it was told in that is of now.
    #[test]
    fn a_gateway_that_stood_still_believes_nothing_that_waited_for_it() {
        for shows_in_clock in [true, false] {
            let mut site = Site::new(2, 1);
            site.frozen.insert(0);
            site.run(100);
            assert_eq!(site.uses(1), Some(1));
            site.frozen.clear();
            if shows_in_clock {
                site.now[0] += 100 * INTERVAL;
                // Before it looks: it answers for nothing, and defends nothing.
                assert!(!site.hosts[0].is_gateway(site.now[0]));
                assert!(!site.hosts[0].may_defend(site.now[0]));
            }
            site.tells = false;
            let waiting = std::mem::take(&mut site.waiting);
            let (first, rest) = waiting.split_at(waiting.len() / 2);
            for (from, to, sent) in first {
                site.deliver(*from, *to, *sent);
            }
            if shows_in_clock {
                let table = site.hosts[0].lock();
                assert!(table.sessions.values().all(|it| !it.is_heard(site.now[0])));
            }
            site.step();
            for (from, to, sent) in rest {
                site.deliver(*from, *to, *sent);
            }
            if shows_in_clock {
                assert_eq!(site.owners(), [1]);
            }
            site.run(4);
            for _ in 0..50 {
                site.step();
                assert_eq!(site.owners(), [1], "{shows_in_clock}");
            }
            site.tells = true;
            site.until(5, |site| site.owners() == [0]);
        }
    }

    #[test]
    fn what_is_held_is_not_defended_while_the_claim_may_be_the_next_gateways() {
        let mut site = Site::new(2, 1);
        let may_defend = |site: &Site| site.hosts[0].may_defend(site.now[0]);
        assert!(may_defend(&site));
        site.cut_off(0, true, true);
        // The second takes over after three intervals at the earliest.
        site.run(2);
        assert!(!may_defend(&site));
        // One that has died claims nothing.
        let mut site = Site::new(2, 1);
        site.frozen.insert(1);
        site.run(20);
        assert!(may_defend(&site));
        // Just before it hands over.
        site.hosts[1].may_defend(site.now[1]);
        site.frozen.clear();
        site.run(20);
        site.hosts[0].set_path_down(true);
        site.step();
        assert!(!may_defend(&site));
        site.run(20);
        let mut is_second = false;
        site.hosts[0].set_path_down(false);
        for _ in 0..20 {
            let before = site.owners();
            site.step();
            if before == [1] && site.owners() == [0] {
                is_second = true;
                assert!(!site.hosts[1].may_defend(site.now[1]));
            }
        }
        assert!(is_second);
    }

    #[test]
    fn what_is_no_control_packet_of_the_session_is_not_taken() {
        let probes = Probes::default();
        let mut sent = Vec::new();
        probes.tick(0, [7].into_iter(), &ALONE, |_, packet| sent.push(packet));
        let mut good = Session::new(0).packet(true);
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
        let mut site = Site::new(4, 0);
        site.tells = false;
        // The fourth is not ready itself.
        for host in [0, 3] {
            site.hosts[host] = Probes::default();
        }
        site.run(20);
        assert_eq!(site.owners(), [1]);
        for _ in 0..10 {
            for peer in [1, 3, 99] {
                site.hosts[0].turn(peer);
            }
        }
        site.step();
        assert!(!site.is_ready(0), "the third has told nothing");
        site.hosts[0].turn(2);
        site.step();
        assert!(!site.is_ready(0), "its first turn may have begun before");
        site.hosts[0].turn(2);
        site.step();
        assert!(site.is_ready(0));
    }

    /// RFC 5880 §6.8.6 lets "down" and "administratively down" come without a discriminator.
    #[test]
    fn who_does_not_know_the_discriminator_cannot_end_a_session() {
        let mut site = Site::new(2, 1);
        let theirs = site.hosts[0].lock().sessions[&2].mine;
        let guesses = [0, 1, theirs.wrapping_add(1), theirs ^ 1 << 31, !theirs];
        for state in [State::AdminDown, State::Down, State::Init, State::Up] {
            for guess in guesses {
                for diagnostic in [0, diagnostic::CONCATENATED_PATH_DOWN] {
                    let mut forged = Session::new(0);
                    (forged.state, forged.theirs) = (state, guess);
                    forged.diagnostic = diagnostic;
                    let forged = forged.packet(true);
                    assert_eq!(site.hosts[2].receive(0, &forged, site.now[2]), None);
                    assert_eq!(site.hosts[0].receive(2, &forged, site.now[0]), None);
                    assert_eq!(site.hosts[0].receive(1, &forged, site.now[0]), None);
                }
            }
        }
        for _ in 0..5 {
            assert_eq!((site.owners(), site.uses(2)), (vec![0], Some(0)));
            site.step();
        }
        // One that has really begun anew is missed for the detection time, and heard then.
        site.hosts[0] = Probes::default();
        let steps = site.until(10, |site| site.uses(2) == Some(1));
        assert!((2..=4).contains(&steps), "{steps}");
        site.until(20, |site| site.uses(2) == Some(0));
    }

    #[test]
    fn discriminators_cannot_be_guessed_from_each_other() {
        let all: Vec<u32> = (0..64).map(|_| Session::new(0).mine).collect();
        let of = |part: fn(u32) -> u32| {
            let parts: BTreeSet<u32> = all
                .windows(2)
                .map(|it| part(it[1].wrapping_sub(it[0])))
                .collect();
            parts.len()
        };
        // Neither half is counted up: all differences are others, but for chance.
        assert!(
            of(|it| it >> 16) > 56 && of(|it| it & 0xffff) > 56,
            "{all:x?}"
        );
        assert!(!all.contains(&0));
    }
}
