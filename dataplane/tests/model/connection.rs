//! Two guests that talk TCP: they acknowledge what reached them and nothing else, so that what they send is in the window unless they
//! mean it not to be.

use std::net::IpAddr;

use crate::craft::{self, Ends, Header};
use crate::generate::Act;
use crate::semantics::frame::{
    ACK, Decoded, Detail, FIN, Flow, IP, RST, SYN, Segment, TCP, decode, word,
};

/// So far away that no window reaches there, not even one whose scale is unknown.
const FAR: u32 = 0x5000_0000;
/// What one side sends on one connection at most, well within what a window may lag.
const MOST: u32 = 50_000;

#[derive(Debug, Clone)]
struct Guest {
    port: String,
    address: IpAddr,
    /// As the other side knows it.
    seen_as: IpAddr,
    /// First number of the connection in course, and the next to send.
    first: u32,
    next: u32,
    /// What the other side has acknowledged.
    acknowledged: u32,
    /// What to acknowledge.
    heard: Option<u32>,
    /// What it acknowledged before it got a SYN.
    before: Option<u32>,
    /// It has got a SYN, for which it has no first number yet.
    asked: bool,
    /// It has got a SYN since it sent its own, and owes the acknowledgement of it in a SYN.
    crossed: bool,
    finished: bool,
    /// How many connections it has begun; each has numbers far from the others'.
    connections: u32,
}

impl Guest {
    fn begin(&mut self) -> bool {
        if self.connections == 3 {
            return false;
        }
        let base = self.first;
        self.first = if self.connections == 0 {
            base
        } else {
            base.wrapping_add(FAR)
        };
        self.connections += 1;
        (self.next, self.acknowledged) = (self.first, self.first);
        (self.asked, self.crossed, self.finished) = (false, false, false);
        true
    }
}

#[derive(Debug, Clone)]
pub struct Connection {
    pub vpc: String,
    guests: [Guest; 2],
    pub ports: [u16; 2],
}

/// A segment that a guest is to send.
pub struct Sending {
    pub port: String,
    pub ends: [IpAddr; 2],
    ports: (u16, u16),
    flags: u8,
    numbers: (u32, u32),
    payload: usize,
    dont_fragment: bool,
}

impl Connection {
    pub fn new(number: u16, vpc: &str, client: (&str, IpAddr), server: (&str, IpAddr)) -> Self {
        // Near the places where numbers wrap or change their sign.
        let first = [1000, 0xffff_ff00, 0x7fff_ff80][usize::from(number % 3)];
        let guest = |(port, address): (&str, IpAddr), first| Guest {
            port: port.to_owned(),
            address,
            seen_as: address,
            first,
            next: first,
            acknowledged: first,
            heard: None,
            before: None,
            asked: false,
            crossed: false,
            finished: false,
            connections: 0,
        };
        Self {
            vpc: vpc.to_owned(),
            guests: [guest(client, first), guest(server, first ^ 0xffff_ffff)],
            ports: [20_000 + number, if number == 1 { 443 } else { 80 }],
        }
    }

    /// The server is known by another address, and the client too, to the server.
    pub fn translate(&mut self, client: Option<IpAddr>, server: IpAddr) {
        self.guests[1].seen_as = server;
        if let Some(client) = client {
            self.guests[0].seen_as = client;
        }
    }

    pub fn is_translated(&self) -> bool {
        self.guests
            .iter()
            .any(|guest| guest.seen_as != guest.address)
    }

    /// As the client sends it.
    pub fn flow(&self) -> Flow {
        Flow {
            source: self.guests[0].address,
            destination: self.guests[1].seen_as,
            protocol: TCP,
            detail: Detail::Ports(self.ports[0], self.ports[1]),
        }
    }

    /// What an act comes to; none where the guest would not do it.
    pub fn act(&mut self, side: usize, act: Act, settled: bool) -> Option<Sending> {
        let never_reconnected = self.guests.iter().all(|guest| guest.connections <= 1);
        let heard = self.guests[side].heard;
        if heard.is_none()
            && !matches!(
                act,
                Act::Syn | Act::FastOpen | Act::BareRst | Act::NearRst | Act::FarRst
            )
        {
            return None;
        }
        let guest = &mut self.guests[side];
        let (mut payload, mut dont_fragment) = (0, true);
        let owes = guest.asked || guest.crossed;
        if owes
            && !matches!(
                act,
                Act::Syn
                    | Act::FastOpen
                    | Act::SynAck
                    | Act::Challenge
                    | Act::Refuse
                    | Act::Rst
                    | Act::BareRst
            )
        {
            return None;
        }
        // Before its SYN is acknowledged it sends nothing else.
        let opened = guest.acknowledged != guest.first;
        if !opened
            && matches!(
                act,
                Act::Ack
                    | Act::KeepAlive
                    | Act::Data(_)
                    | Act::BigData
                    | Act::Segment(..)
                    | Act::Old
                    | Act::Fin
            )
        {
            return None;
        }
        let far = settled && never_reconnected;
        let (flags, seq, ack) = match act {
            Act::Handshake => return None,
            Act::Syn | Act::FastOpen => {
                if !guest.begin() {
                    return None;
                }
                if matches!(act, Act::FastOpen) {
                    payload = 200;
                }
                guest.heard = None;
                // Data that is not taken is sent again: the answers alone say what was.
                guest.next = guest.next.wrapping_add(1);
                (SYN, guest.first, 0)
            }
            Act::Challenge => (ACK, guest.next, guest.before?),
            Act::Refuse => {
                if !owes {
                    return None;
                }
                (RST | ACK, 0, heard?)
            }
            Act::KeepAlive => (ACK, guest.next.wrapping_sub(1), heard?),
            Act::NearRst => (RST, guest.next.wrapping_add(100), 0),
            Act::SynAck => {
                if guest.asked {
                    if !guest.begin() {
                        return None;
                    }
                    guest.next = guest.next.wrapping_add(1);
                }
                guest.crossed = false;
                (SYN | ACK, guest.first, heard?)
            }
            Act::Ack => (ACK, guest.next, heard?),
            Act::Data(_) | Act::BigData | Act::Segment(..) => {
                payload = match act {
                    Act::Data(size) | Act::Segment(size, _) => usize::from(size),
                    _ => 1500,
                };
                dont_fragment = !matches!(act, Act::BigData);
                let sent = guest.next.wrapping_sub(guest.first);
                if guest.finished || sent == 0 || sent > MOST {
                    return None;
                }
                if guest.next.wrapping_sub(guest.acknowledged) > MOST / 2 {
                    return None;
                }
                let seq = guest.next;
                guest.next = seq.wrapping_add(payload as u32);
                (ACK | 8, seq, heard?)
            }
            Act::Old => {
                let sent = guest.next.wrapping_sub(guest.first).saturating_sub(1);
                payload = sent.min(100) as usize;
                if payload == 0 {
                    return None;
                }
                (ACK, guest.first.wrapping_add(1), heard?)
            }
            Act::Fin => {
                if guest.finished || guest.next == guest.first {
                    return None;
                }
                let seq = guest.next;
                (guest.finished, guest.next) = (true, seq.wrapping_add(1));
                (FIN | ACK, seq, heard?)
            }
            Act::Rst => (RST | ACK, guest.next, heard?),
            Act::BareRst => (RST, guest.next, 0),
            Act::FarData if far => {
                payload = 10;
                (ACK, guest.next.wrapping_add(FAR), heard?)
            }
            Act::FarAck if far => (ACK, guest.next, heard?.wrapping_add(FAR)),
            Act::FarRst if far => (RST, guest.next.wrapping_add(FAR), 0),
            Act::FarData | Act::FarAck | Act::FarRst => return None,
        };
        Some(Sending {
            port: self.guests[side].port.clone(),
            ends: [self.guests[side].address, self.guests[1 - side].seen_as],
            ports: (self.ports[side], self.ports[1 - side]),
            flags,
            numbers: (seq, ack),
            payload,
            dont_fragment,
        })
    }

    /// Frames that reached a port: what the guest there makes of them.
    pub fn hear(&mut self, delivered: &[(String, Vec<u8>)]) {
        let offset = |frame: &[u8]| match frame.get(12..14) {
            Some([8, 0]) => word(frame, IP + 6) & 0x1fff,
            _ => 0,
        };
        // Of a datagram in pieces, the first has the header, the rest count as payload.
        let later = delivered.iter().filter(|(_, frame)| offset(frame) != 0);
        let rest: usize = later.map(|(_, frame)| frame.len() - IP - 20).sum();
        for (port, frame) in delivered.iter().filter(|(_, frame)| offset(frame) == 0) {
            let Ok(Decoded::Ip(packet)) = decode(frame) else {
                continue;
            };
            let at_server = Flow {
                source: self.guests[0].seen_as,
                destination: self.guests[1].address,
                ..self.flow()
            };
            let side = match packet.flow {
                flow if flow == at_server => 1,
                flow if flow == self.flow().reversed() => 0,
                _ => continue,
            };
            if let Some(segment) = packet.tcp.filter(|_| self.guests[side].port == *port) {
                self.take(side, &segment, rest as u32);
            }
        }
    }

    fn take(&mut self, side: usize, segment: &Segment, rest: u32) {
        let guest = &mut self.guests[side];
        let after = segment.seq.wrapping_add(segment.space).wrapping_add(rest);
        if segment.has(SYN) {
            // Of what comes with it, nothing is taken.
            let after = segment.seq.wrapping_add(1);
            guest.before = guest.heard.or(guest.before);
            let opens = guest.heard != Some(after) && !segment.has(ACK);
            // Unless it has just sent a SYN itself, and waits for an answer.
            let waits = guest.connections > 0 && guest.heard.is_none();
            guest.asked |= opens && !waits;
            guest.crossed |= opens && waits;
            guest.heard = Some(after);
        } else if guest.heard == Some(segment.seq) {
            guest.heard = Some(after);
        }
        if segment.has(ACK) {
            let more = segment.ack.wrapping_sub(guest.acknowledged);
            if more <= guest.next.wrapping_sub(guest.acknowledged) {
                guest.acknowledged = segment.ack;
            }
        }
    }
}

impl Sending {
    /// The same as its sender leaves it to a device: with the sum of the pseudo-header alone.
    pub fn left(&self, mut frame: Vec<u8>) -> Vec<u8> {
        let ends = Ends {
            dst: [0; 6],
            src: [0; 6],
            source: self.ends[0],
            destination: self.ends[1],
        };
        craft::leave_checksum(&mut frame, ends, TCP);
        frame
    }

    pub fn is_v4(&self) -> bool {
        self.ends[0].is_ipv4()
    }

    /// The frame, to the MAC where its sender's routes begin.
    pub fn frame(&self, dst: [u8; 6], src: [u8; 6], id: u16) -> Vec<u8> {
        let ends = Ends {
            dst,
            src,
            source: self.ends[0],
            destination: self.ends[1],
        };
        let header = Header {
            dont_fragment: self.dont_fragment,
            id,
            ..Header::default()
        };
        let payload = vec![0x5a; self.payload];
        let mss = id.is_multiple_of(2).then_some(1460);
        let segment = craft::tcp(ends, self.ports, self.flags, self.numbers, mss, &payload);
        craft::ip(ends, &header, TCP, &segment)
    }
}
