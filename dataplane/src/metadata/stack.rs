//! The TCP/IP stack of one port: smoltcp, which speaks TCP alone, with a cap on connections and on half-open ones.
//!
//! Driven by turns: frames of the port go in, and a turn gives the frames that go back to it, the connections that were established, and how long nothing will happen by
//! itself. Half-open connections can't keep others out: the oldest gives way to a new one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{self, State};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Identity;
use crate::packet::parse::{
    self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Inner, protocol, tcp_flags, word_address,
};
use crate::packet::{Family, Mac};
use crate::pipeline::metadata;

/// Connections that a port is sure of; those beyond are taken from what all ports share.
pub(super) const OWN: usize = 2;
/// Connections of one port, half-open ones included.
const MOST: usize = 16;
/// How long a connection may be half-open.
const OPENING: Duration = Duration::from_secs(5);
/// How long a connection that was closed on this side may take to deliver what was sent.
const CLOSING: Duration = Duration::from_secs(20);
/// How long a guest that owes an answer may be silent.
const SILENCE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(20);
/// Bytes of a connection's buffers, towards the service and from it.
const BUFFERS: (usize, usize) = (16 * 1024, 32 * 1024);
/// Packets that a stack sends in one turn, besides answers to what came in.
const BURST: usize = 64;
/// MACs of a port that answers are sent to; a port that speaks by more has the oldest forgotten.
const MACS: usize = 16;

/// What a turn led to.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// Frames for the port.
    pub frames: Vec<Vec<u8>>,
    /// Connections that were established, with the family that they use.
    pub accepted: Vec<(SocketHandle, Family)>,
    /// How long nothing will happen by itself; none stands for ever.
    pub wait: Option<Duration>,
    /// Half-open connections that were given up.
    pub given_up: u64,
}

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody has called yet.
    Listening,
    /// The handshake is under way.
    Opening,
    /// Somebody serves it.
    Serving,
    /// Nobody serves it any more.
    Closing,
}

#[derive(Debug)]
struct Connection {
    handle: SocketHandle,
    stage: Stage,
    since: Instant,
    /// Its part of what all ports share, if it is none of the port's own.
    _share: Option<OwnedSemaphorePermit>,
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
    given_up: u64,
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
    pub(super) fn new(identity: Identity, shared: Arc<Semaphore>) -> Self {
        let mut wire = Wire {
            mtu: identity.mtu.into(),
            ..Wire::default()
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = rand::random();
        let mut interface = Interface::new(config, &mut wire, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // Both fit. Whoever speaks is on the link.
            let _ = addresses.push(IpCidr::new(metadata::IPV4.into(), 0));
            let _ = addresses.push(IpCidr::new(metadata::IPV6.into(), 0));
        });
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            connections: Vec::new(),
            shared,
            macs: VecDeque::new(),
            identity,
            given_up: 0,
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
        true
    }

    /// Sees to it that somebody listens.
    fn listen(&mut self, now: Instant) -> bool {
        let mut all = self.connections.iter();
        if all.any(|connection| connection.stage == Stage::Listening) {
            return true;
        }
        let share = if self.connections.len() < OWN {
            None
        } else if self.connections.len() < MOST
            && let Ok(share) = Arc::clone(&self.shared).try_acquire_owned()
        {
            Some(share)
        } else {
            let opening = self.connections.iter().enumerate();
            let oldest = opening
                .filter(|(_, connection)| connection.stage == Stage::Opening)
                .min_by_key(|(_, connection)| connection.since);
            let Some((oldest, _)) = oldest else {
                return false;
            };
            let Connection { handle, _share, .. } = self.connections.swap_remove(oldest);
            self.sockets.remove(handle);
            self.given_up += 1;
            _share
        };
        let buffer = |size| tcp::SocketBuffer::new(vec![0; size]);
        let mut socket = tcp::Socket::new(buffer(BUFFERS.0), buffer(BUFFERS.1));
        socket.set_timeout(Some(SILENCE));
        // A request and its answer are each written whole, as far as they go.
        socket.set_nagle_enabled(false);
        if socket.listen(metadata::PORT).is_err() {
            return false;
        }
        let handle = self.sockets.add(socket);
        self.connections.push(Connection {
            handle,
            stage: Stage::Listening,
            since: now,
            _share: share,
        });
        true
    }

    /// Remembers by which MAC an address speaks: a port may have several, by its allowed pairs.
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

    /// Lets everything happen that is due.
    pub(super) fn turn(&mut self, now: Instant) -> Turn {
        let time = self.time(now);
        self.interface.poll(time, &mut self.wire, &mut self.sockets);
        let mut turn = Turn::default();
        self.settle(now, &mut turn);
        let packets = std::mem::take(&mut self.wire.sent);
        turn.frames = packets.iter().map(|packet| self.frame(packet)).collect();
        let delay = self.interface.poll_delay(time, &self.sockets);
        turn.wait = delay.map(Into::into);
        if !self.is_idle() {
            // Stages have their ends, which the stack does not know of.
            turn.wait = Some(turn.wait.unwrap_or(OPENING).min(OPENING));
        }
        turn.given_up = std::mem::take(&mut self.given_up);
        turn
    }

    fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let elapsed = now.saturating_duration_since(self.started);
        smoltcp::time::Instant::from_micros(elapsed.as_micros() as i64)
    }

    /// Moves connections on to their next stages, and removes those that are over.
    fn settle(&mut self, now: Instant, turn: &mut Turn) {
        let Self {
            sockets,
            connections,
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
                turn.given_up += u64::from(connection.stage == Stage::Opening);
                sockets.remove(connection.handle);
                return false;
            };
            if next == Stage::Serving {
                let ipv6 = socket
                    .remote_endpoint()
                    .is_some_and(|remote| matches!(remote.addr, IpAddress::Ipv6(_)));
                let family = if ipv6 { Family::Ipv6 } else { Family::Ipv4 };
                turn.accepted.push((connection.handle, family));
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
        let ipv4 = packet.first().is_some_and(|first| first >> 4 == 4);
        let (ether_type, destination) = if ipv4 {
            let octets = packet
                .get(16..20)
                .and_then(|octets| <[u8; 4]>::try_from(octets).ok());
            (
                ETHERTYPE_IPV4,
                octets.map(|octets| IpAddress::Ipv4(octets.into())),
            )
        } else {
            let octets = packet
                .get(24..40)
                .and_then(|octets| <[u8; 16]>::try_from(octets).ok());
            (
                ETHERTYPE_IPV6,
                octets.map(|octets| IpAddress::Ipv6(octets.into())),
            )
        };
        let known = self
            .macs
            .iter()
            .find(|(known, _)| Some(*known) == destination);
        let mac = known.map_or(self.identity.mac, |(_, mac)| *mac);
        [
            &mac.bytes()[..],
            &self.identity.gateway_mac.bytes(),
            &ether_type.to_be_bytes(),
            packet,
        ]
        .concat()
    }

    /// Reads what the guest sent. No bytes, though there is room for some: it sends no more. None: nothing yet, and the waker is called when that changes.
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

    /// Nobody serves the connection any more. Its handle is not to be used again.
    pub(super) fn release(&mut self, handle: SocketHandle) {
        self.shut_down(handle);
        let mut all = self.connections.iter_mut();
        if let Some(connection) = all.find(|connection| connection.handle == handle) {
            connection.stage = Stage::Closing;
            connection.since = Instant::now();
        }
    }
}

/// What smoltcp takes for its device: packets that came in, packets that are to go out.
#[derive(Debug, Default)]
struct Wire {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    mtu: usize,
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(Received, Sending<'_>)> {
        let packet = self.received.pop_front()?;
        Some((Received(packet), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Sending<'_>> {
        (self.sent.len() < BURST).then_some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}
