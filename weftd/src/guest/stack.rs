//! The TCP/IP stack of one port: smoltcp with TCP only, with a cap on connections and on half-open ones.
//!
//! Driven by turns: frames of the port go in, and a turn gives the frames that go back to it, the connections that were established, and
//! how long nothing will happen by itself. The oldest half-open connection is evicted for a new one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, State};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Endpoint, Identity};
use crate::wire::{self, Wire};
use weft_dataplane::packet::parse::{self, Inner, protocol, tcp_flags, word_address};
use weft_dataplane::packet::{Family, Mac};

/// Connections that a port is sure of; those beyond are taken from what all ports share.
pub(super) const OWN: usize = 2;
/// Connections of one port, half-open ones included.
const MOST: usize = 16;
/// How long a connection may be half-open.
const OPENING: Duration = Duration::from_secs(5);
/// How long a connection that was closed on this side may take to deliver what was sent.
const CLOSING: Duration = Duration::from_secs(20);
/// How long to wait for a guest's answer.
const SILENCE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(20);
/// Bytes of a connection's buffers, towards the service and from it.
const BUFFERS: (usize, usize) = (16 * 1024, 32 * 1024);
/// MACs of a port that answers are sent to; beyond that the oldest is forgotten.
const MACS: usize = 16;

/// What a turn led to.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// Frames for the port.
    pub frames: Vec<Vec<u8>>,
    /// Connections that were established, with the family that they use.
    pub accepted: Vec<(SocketHandle, Family)>,
    /// Time until the next timer; none if there is no timer.
    pub wait: Option<Duration>,
    /// Half-open connections that were given up.
    pub given_up: u64,
}

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No connection yet.
    Listening,
    /// The handshake is under way.
    Opening,
    /// It is being served.
    Serving,
    /// It is no longer served.
    Closing,
}

#[derive(Debug)]
struct Connection {
    handle: SocketHandle,
    stage: Stage,
    since: Instant,
    /// Its part of what all ports share, if it is none of the port's own.
    share: Option<OwnedSemaphorePermit>,
}

/// A stack.
pub(super) struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    connections: Vec<Connection>,
    shared: Arc<Semaphore>,
    macs: VecDeque<(IpAddress, Mac)>,
    identity: Identity,
    /// The server's port.
    port: u16,
    /// What happened since the last turn.
    news: Turn,
    started: Instant,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack")
            .field("identity", &self.identity)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

impl Stack {
    /// A stack for a port, without connections. `shared`: what connections beyond the port's own are taken from.
    pub(super) fn new(identity: Identity, endpoint: &Endpoint, shared: Arc<Semaphore>) -> Self {
        let mut wire = Wire {
            mtu: identity.mtu.into(),
            ..Wire::default()
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = rand::random();
        let mut interface = Interface::new(config, &mut wire, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // All of them fit. Whoever speaks is on the link.
            for address in &endpoint.addresses {
                let _ = addresses.push(IpCidr::new((*address).into(), 0));
            }
        });
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            connections: Vec::new(),
            shared,
            macs: VecDeque::new(),
            identity,
            port: endpoint.port,
            news: Turn::default(),
            started: Instant::now(),
        }
    }

    /// The port is known by another identity from now on.
    pub(super) fn rename(&mut self, identity: Identity) {
        self.identity = identity;
    }

    /// Whether there is no connection.
    pub(super) fn is_idle(&self) -> bool {
        let mut all = self.connections.iter();
        all.all(|connection| connection.stage == Stage::Listening)
    }

    /// Takes a frame of the port. False: it would open a connection, and there may be no more.
    pub(super) fn receive(&mut self, frame: &[u8], now: Instant) -> bool {
        let Ok(Inner::Ip(parsed)) = parse::inner(frame) else {
            return true;
        };
        let flags = frame.get(usize::from(parsed.l4) + 13).copied();
        let (Some(flags), protocol::TCP) = (flags, parsed.flow.protocol) else {
            return true;
        };
        let opens = flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN;
        if opens && !self.listen(now) {
            return false;
        }
        self.learn(word_address(parsed.flow.source).into(), parsed.eth_src);
        if let Some(packet) = frame.get(usize::from(parsed.l3)..usize::from(parsed.end)) {
            self.wire.received.push_back(packet.to_vec());
        }
        // Before the next one is looked at, which may want a connection that this one opens or ends.
        self.advance(now);
        true
    }

    /// Keeps a listening socket.
    fn listen(&mut self, now: Instant) -> bool {
        let mut all = self.connections.iter();
        if all.any(|connection| connection.stage == Stage::Listening) {
            return true;
        }
        let own = self
            .connections
            .iter()
            .filter(|connection| connection.share.is_none());
        let room = self.connections.len() < MOST;
        let share = if room && own.count() < OWN {
            None
        } else if room && let Ok(share) = Arc::clone(&self.shared).try_acquire_owned() {
            Some(share)
        } else {
            let opening = self.connections.iter().enumerate();
            let oldest = opening
                .filter(|(_, connection)| connection.stage == Stage::Opening)
                .min_by_key(|(_, connection)| connection.since);
            let Some((oldest, _)) = oldest else {
                return false;
            };
            let Connection { handle, share, .. } = self.connections.swap_remove(oldest);
            self.sockets.remove(handle);
            self.news.given_up += 1;
            share
        };
        let buffer = |size| tcp::SocketBuffer::new(vec![0; size]);
        let mut socket = tcp::Socket::new(buffer(BUFFERS.0), buffer(BUFFERS.1));
        socket.set_timeout(Some(SILENCE));
        // A request and its answer are each written whole, as far as they go.
        socket.set_nagle_enabled(false);
        if socket.listen(self.port).is_err() {
            return false;
        }
        let handle = self.sockets.add(socket);
        self.connections.push(Connection {
            handle,
            stage: Stage::Listening,
            since: now,
            share,
        });
        true
    }

    /// Remembers the MAC of an address: a port may have several, by its allowed pairs.
    fn learn(&mut self, address: IpAddress, mac: Mac) {
        if let Some(known) = self.macs.iter_mut().find(|(known, _)| *known == address) {
            known.1 = mac;
            return;
        }
        if self.macs.len() == MACS {
            self.macs.pop_front();
        }
        self.macs.push_back((address, mac));
    }

    fn advance(&mut self, now: Instant) {
        let time = self.time(now);
        self.interface.poll(time, &mut self.wire, &mut self.sockets);
        self.settle(now);
    }

    /// Lets everything happen that is due.
    pub(super) fn turn(&mut self, now: Instant) -> Turn {
        self.advance(now);
        let mut turn = std::mem::take(&mut self.news);
        let packets = std::mem::take(&mut self.wire.sent);
        turn.frames = packets.iter().map(|packet| self.frame(packet)).collect();
        let delay = self.interface.poll_delay(self.time(now), &self.sockets);
        turn.wait = delay.map(Into::into);
        if !self.is_idle() {
            // Stages have their ends, which the stack does not know of.
            turn.wait = Some(turn.wait.unwrap_or(OPENING).min(OPENING));
        }
        turn
    }

    fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let elapsed = now.saturating_duration_since(self.started);
        smoltcp::time::Instant::from_micros(elapsed.as_micros() as i64)
    }

    /// Moves connections on to their next stages, and removes those that are over.
    fn settle(&mut self, now: Instant) {
        let Self {
            sockets,
            connections,
            news,
            ..
        } = self;
        connections.retain_mut(|connection| {
            let socket = sockets.get::<tcp::Socket<'_>>(connection.handle);
            let age = now.saturating_duration_since(connection.since);
            let next = match (connection.stage, socket.state()) {
                (Stage::Listening, State::Listen) | (Stage::Serving, _) => return true,
                (Stage::Closing, State::Closed | State::TimeWait) => None,
                (Stage::Closing, _) => (age < CLOSING).then_some(Stage::Closing),
                // A reset takes a half-open socket back to where it was.
                (_, State::Closed | State::Listen) => None,
                (_, State::SynReceived) => (age < OPENING || connection.stage == Stage::Listening)
                    .then_some(Stage::Opening),
                (_, _) => Some(Stage::Serving),
            };
            let Some(next) = next else {
                news.given_up += u64::from(connection.stage == Stage::Opening);
                sockets.remove(connection.handle);
                return false;
            };
            if next == Stage::Serving {
                let ipv6 = socket
                    .remote_endpoint()
                    .is_some_and(|remote| matches!(remote.addr, IpAddress::Ipv6(_)));
                let family = if ipv6 { Family::Ipv6 } else { Family::Ipv4 };
                news.accepted.push((connection.handle, family));
            }
            if next != connection.stage {
                connection.stage = next;
                connection.since = now;
            }
            true
        });
    }

    /// The frame that carries an IP packet of ours to the port.
    fn frame(&self, packet: &[u8]) -> Vec<u8> {
        let is_ipv4 = packet.first().is_some_and(|first| first >> 4 == 4);
        let destination = if is_ipv4 {
            let octets = packet.get(16..20);
            let octets = octets.and_then(|octets| <[u8; 4]>::try_from(octets).ok());
            octets.map(|octets| IpAddress::Ipv4(octets.into()))
        } else {
            let octets = packet.get(24..40);
            let octets = octets.and_then(|octets| <[u8; 16]>::try_from(octets).ok());
            octets.map(|octets| IpAddress::Ipv6(octets.into()))
        };
        let known = self
            .macs
            .iter()
            .find(|(known, _)| Some(*known) == destination);
        let mac = known.map_or(self.identity.mac, |(_, mac)| *mac);
        wire::frame(packet, mac, self.identity.gateway_mac)
    }

    /// Reads what the guest sent. No bytes, though there is room for some: it sends no more. None: nothing yet, and the waker is called
    /// when that changes.
    pub(super) fn read(
        &mut self,
        handle: SocketHandle,
        buffer: &mut [u8],
        waker: &Waker,
    ) -> Option<usize> {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        if socket.can_recv() {
            return Some(socket.recv_slice(buffer).unwrap_or(0));
        }
        if !socket.may_recv() {
            return Some(0);
        }
        socket.register_recv_waker(waker);
        None
    }

    /// Takes what the guest is to be sent, as much as there is room for. No bytes: the connection takes no more. None: no room yet, and the
    /// waker is called when that changes.
    pub(super) fn write(
        &mut self,
        handle: SocketHandle,
        bytes: &[u8],
        waker: &Waker,
    ) -> Option<usize> {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        if !socket.may_send() {
            return Some(0);
        }
        if socket.can_send() {
            return Some(socket.send_slice(bytes).unwrap_or(0));
        }
        socket.register_send_waker(waker);
        None
    }

    /// Sends no more than was written so far.
    pub(super) fn shut_down(&mut self, handle: SocketHandle) {
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).close();
    }

    /// Ends the service of a connection. Its handle must not be used again.
    pub(super) fn release(&mut self, handle: SocketHandle) {
        self.shut_down(handle);
        let mut all = self.connections.iter_mut();
        if let Some(connection) = all.find(|connection| connection.handle == handle) {
            connection.stage = Stage::Closing;
            connection.since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;

    const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const ROUTER: [u8; 6] = [2, 0x77, 0x65, 0x66, 0x74, 1];

    fn stack(shared: usize) -> Stack {
        let identity = Identity {
            index: 3,
            port: "a".into(),
            vpc: "blue".into(),
            subnet: "blue-a".into(),
            ipv4: Some("10.0.0.11".into()),
            ipv6: None,
            mac: Mac::from_bytes(GUEST),
            gateway_mac: Mac::from_bytes(ROUTER),
            gateways: Vec::new(),
            mtu: 1400,
        };
        let endpoint = Endpoint {
            addresses: vec![IpAddr::from([169, 254, 169, 254])],
            port: 80,
        };
        Stack::new(identity, &endpoint, Arc::new(Semaphore::new(shared)))
    }

    /// A segment of the guest: flags as letters of "SAFR", sequence and acknowledgement numbers.
    fn segment(port: u16, flags: &str, numbers: (u32, u32), payload: &[u8]) -> Vec<u8> {
        let mut builder = PacketBuilder::ethernet2(GUEST, ROUTER)
            .ipv4([10, 0, 0, 11], [169, 254, 169, 254], 64)
            .tcp(port, 80, numbers.0, 64_000);
        for flag in flags.chars() {
            builder = match flag {
                'S' => builder.syn(),
                'A' => builder.ack(numbers.1),
                'F' => builder.fin(),
                _ => builder.rst(),
            };
        }
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).unwrap();
        frame
    }

    /// Port, flags and numbers of the segments that the guest gets.
    fn answers(turn: &Turn) -> Vec<(u16, &'static str, u32, u32)> {
        let read = |frame: &Vec<u8>| {
            assert_eq!((&frame[..6], &frame[6..12]), (&GUEST[..], &ROUTER[..]));
            let packet = SlicedPacket::from_ethernet(frame).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
                panic!("no TCP: {frame:?}");
            };
            let sum = tcp.to_header().calc_checksum_ipv4_raw(
                [169, 254, 169, 254],
                [10, 0, 0, 11],
                tcp.payload(),
            );
            assert_eq!(sum.unwrap(), tcp.checksum());
            let flags = match (tcp.syn(), tcp.ack(), tcp.rst(), tcp.fin()) {
                (true, true, false, false) => "SA",
                (false, true, false, false) => "A",
                (false, _, true, false) => "R",
                (false, true, false, true) => "FA",
                other => panic!("{other:?}"),
            };
            let numbers = (tcp.sequence_number(), tcp.acknowledgment_number());
            (tcp.destination_port(), flags, numbers.0, numbers.1)
        };
        turn.frames.iter().map(read).collect()
    }

    /// A connection from this port of the guest: its handle and what the service's next sequence number is.
    fn connect(stack: &mut Stack, port: u16, now: Instant) -> Option<(SocketHandle, u32)> {
        if !stack.receive(&segment(port, "S", (100, 0), b""), now) {
            return None;
        }
        let turn = stack.turn(now);
        let &[(_, "SA", sequence, 101)] = &answers(&turn)[..] else {
            panic!("{:?}", answers(&turn));
        };
        stack.receive(&segment(port, "A", (101, sequence + 1), b""), now);
        let turn = stack.turn(now);
        assert_eq!(turn.accepted.len(), 1);
        Some((turn.accepted[0].0, sequence + 1))
    }

    #[test]
    fn bytes_go_both_ways_and_a_released_connection_goes() {
        let (mut stack, now) = (stack(0), Instant::now());
        let (handle, next) = connect(&mut stack, 4000, now).unwrap();
        assert!(!stack.is_idle());
        let waker = Waker::noop();
        let mut buffer = [0; 64];
        assert_eq!(stack.read(handle, &mut buffer, waker), None, "nothing yet");
        stack.receive(&segment(4000, "A", (101, next), b"GET"), now);
        stack.turn(now);
        assert_eq!(stack.read(handle, &mut buffer, waker), Some(3));
        assert_eq!(buffer[..3], *b"GET");
        assert_eq!(stack.write(handle, b"answer", waker), Some(6));
        stack.release(handle);
        let turn = stack.turn(now);
        assert_eq!(answers(&turn), [(4000, "FA", next, 104)]);
        stack.receive(&segment(4000, "FA", (104, next + 7), b""), now);
        stack.turn(now);
        assert!(stack.is_idle());
        assert!(stack.connections.is_empty());
    }

    #[test]
    fn half_open_connections_give_way_to_new_ones() {
        let (mut stack, now) = (stack(100), Instant::now());
        let mut given_up = 0;
        for port in 1..=500 {
            let syn = segment(port, "S", (100, 0), b"");
            assert!(stack.receive(&syn, now + Duration::from_micros(port.into())));
            given_up += stack.turn(now).given_up;
            assert!(stack.connections.len() <= MOST);
        }
        assert_eq!(given_up, 500 - MOST as u64);
        assert!(
            connect(&mut stack, 4000, now).is_some(),
            "whoever goes on gets in"
        );
        let late = now + OPENING + Duration::from_secs(1);
        stack.turn(late);
        assert_eq!(stack.connections.len(), 1, "the rest is given up in time");
    }

    #[test]
    fn packets_that_come_together_are_taken_one_by_one() {
        let (mut stack, now) = (stack(100), Instant::now());
        for port in 4000..4010 {
            assert!(stack.receive(&segment(port, "S", (100, 0), b""), now));
        }
        let all = answers(&stack.turn(now));
        assert_eq!(all.len(), 10);
        assert!(all.iter().all(|(_, flags, ..)| *flags == "SA"), "{all:?}");
    }

    #[test]
    fn open_connections_are_capped_for_the_port_and_for_all() {
        for (shared, most) in [(0, OWN), (3, OWN + 3), (1000, MOST)] {
            let (mut stack, now) = (stack(shared), Instant::now());
            let ports = 4000..4000 + 2 * MOST as u16;
            let open: Vec<_> = ports
                .filter_map(|port| connect(&mut stack, port, now))
                .collect();
            assert_eq!(open.len(), most);
            stack.release(open[0].0);
            stack.turn(now + 2 * CLOSING);
            assert!(
                connect(&mut stack, 5000, now).is_some(),
                "one left, one comes"
            );
        }
    }

    #[test]
    fn strangers_and_nonsense_are_answered_by_a_reset_or_not_at_all() {
        let (mut stack, now) = (stack(0), Instant::now());
        stack.receive(&segment(4000, "A", (5, 9), b"hello"), now);
        assert_eq!(answers(&stack.turn(now)), [(4000, "R", 9, 0)]);
        let mut wrong = segment(4000, "S", (5, 0), b"");
        wrong[50] ^= 0x40;
        stack.receive(&wrong, now);
        assert_eq!(answers(&stack.turn(now)), [], "a wrong checksum");
        for len in 0..wrong.len() {
            stack.receive(&wrong[..len], now);
        }
        assert_eq!(answers(&stack.turn(now)), []);
        assert!(stack.is_idle());
    }

    #[test]
    fn answers_go_to_the_mac_that_asked() {
        let (mut stack, now) = (stack(0), Instant::now());
        let mut syn = segment(4000, "S", (5, 0), b"");
        syn[6..12].copy_from_slice(&[2, 0, 0, 0, 9, 9]);
        stack.receive(&syn, now);
        let turn = stack.turn(now);
        assert_eq!(turn.frames[0][..6], [2, 0, 0, 0, 9, 9]);
        assert!(turn.frames.iter().all(|frame| frame.len() <= 14 + 1400));
    }

    proptest! {
        /// For any input and any server: caps hold, and nothing is left at the end.
        #[test]
        fn no_guest_takes_more_than_its_share(
            acts in proptest::collection::vec((0u8..12, 0u16..24, any::<u32>(), 0usize..1500), 1..400),
        ) {
            const SHARED: usize = 9;
            let (mut stack, start) = (stack(SHARED), Instant::now());
            let shared = Arc::clone(&stack.shared);
            let (mut now, mut served, mut next) = (start, Vec::new(), 0);
            let waker = Waker::noop();
            for (act, port, number, len) in acts {
                let near = next + number % 3;
                let flags = match act {
                    0..=3 => "S",
                    4..=6 => "A",
                    7 => "FA",
                    8 => "R",
                    _ => "",
                };
                let payload = if act == 6 { vec![b'x'; len] } else { Vec::new() };
                match act {
                    9 => now += Duration::from_millis((number % 9000).into()),
                    10 if !served.is_empty() => {
                        let handle = served[number as usize % served.len()];
                        stack.read(handle, &mut [0; 2000], waker);
                        stack.write(handle, &vec![b'y'; len * 20], waker);
                    }
                    11 if !served.is_empty() => {
                        stack.release(served.swap_remove(number as usize % served.len()));
                    }
                    _ => {
                        let sequence = if act < 4 { 100 } else { 101 };
                        let frame = segment(port, flags, (sequence, near), &payload);
                        stack.receive(&frame, now);
                    }
                }
                let turn = stack.turn(now);
                for frame in &turn.frames {
                    prop_assert!(frame.len() <= 14 + 1400);
                    next = u32::from_be_bytes([frame[38], frame[39], frame[40], frame[41]]);
                }
                served.extend(turn.accepted.iter().map(|(handle, _)| *handle));
                prop_assert!(stack.connections.len() <= MOST);
                let held = stack.connections.iter().filter(|one| one.share.is_some());
                prop_assert_eq!(held.count() + shared.available_permits(), SHARED);
            }
            for handle in served {
                stack.release(handle);
            }
            stack.turn(Instant::now() + Duration::from_secs(4000));
            prop_assert!(stack.is_idle());
        }
    }
}
