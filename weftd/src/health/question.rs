//! One question to a member: a TCP connection, an HTTP request, an echo or a datagram, by a stack of its own.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::wire::{
    HardwareAddress, Icmpv4Message, Icmpv4Packet, Icmpv4Repr, Icmpv6Message, Icmpv6Packet,
    Icmpv6Repr, IpCidr, IpEndpoint,
};
use weft_dataplane::packet::parse::{self, Inner, protocol};
use weft_proto::v1::HealthCheck;

use crate::wire::Wire;

/// Bytes of a socket's buffers, each way: of an answer the beginning is enough.
const BUFFER: usize = 2048;
/// Bytes of an HTTP answer in which its code has to be: `HTTP/1.1 200`.
const STATUS: usize = 12;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A TCP connection.
    Tcp,
    /// A request, and the codes that are right.
    Http(Vec<u8>, Vec<RangeInclusive<u16>>),
    /// An echo.
    Icmp,
    /// A datagram, and what the answer begins with; nothing: no answer is right, too.
    Udp(Vec<u8>, Vec<u8>),
}

impl Kind {
    /// What a health check asks a member at an address; none of an unknown protocol.
    pub(super) fn of(check: &HealthCheck, member: IpAddr) -> Option<Self> {
        Some(match check.protocol.as_str() {
            "tcp" => Self::Tcp,
            "icmp" => Self::Icmp,
            "udp" => Self::Udp(
                check.payload.clone().into_bytes(),
                check.expected.clone().into_bytes(),
            ),
            "http" => {
                let host = match (check.host.as_str(), member) {
                    ("", IpAddr::V6(address)) => format!("[{address}]"),
                    ("", IpAddr::V4(address)) => address.to_string(),
                    (host, _) => host.to_owned(),
                };
                let path = check.path_or_default();
                let request = format!(
                    "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: weft\r\nAccept: */*\r\nConnection: close\r\n\r\n"
                );
                Self::Http(request.into_bytes(), check.codes()?)
            }
            _ => return None,
        })
    }

    /// IP protocol number of the question.
    pub(super) fn protocol(&self, is_ipv4: bool) -> u8 {
        match self {
            Self::Tcp | Self::Http(..) => protocol::TCP,
            Self::Udp(..) => protocol::UDP,
            Self::Icmp if is_ipv4 => protocol::ICMP,
            Self::Icmp => protocol::ICMPV6,
        }
    }
}

/// From whom a question comes, and whom it goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    /// Not of an echo.
    pub(super) port: u16,
}

/// A question that was asked.
pub(super) struct Question {
    kind: Kind,
    ends: Ends,
    interface: Interface,
    sockets: SocketSet<'static>,
    /// The socket that asks.
    handle: SocketHandle,
    /// That of the errors about a datagram.
    errors: Option<SocketHandle>,
    wire: Wire,
    began: Instant,
    /// What an HTTP server has answered by now.
    head: Vec<u8>,
}

/// What is wrong with a member.
pub(super) type Failure = String;

impl Question {
    /// Prepares a question with a number.
    pub(super) fn new(kind: Kind, ends: Ends, number: u16, mtu: u16) -> Result<Self, Failure> {
        let mut wire = Wire {
            mtu: mtu.into(),
            ..Wire::default()
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = rand::random();
        let mut interface = Interface::new(config, &mut wire, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // It fits. The member is on the link.
            let _ = addresses.push(IpCidr::new(ends.from.into(), 0));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let failed = |error: &dyn std::fmt::Display| format!("cannot ask: {error}");
        let mut errors = None;
        let handle = match &kind {
            Kind::Tcp | Kind::Http(..) => {
                let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
                let mut socket = tcp::Socket::new(buffer(), buffer());
                socket.set_nagle_enabled(false);
                let to = IpEndpoint::new(ends.to.into(), ends.port);
                let connecting = socket.connect(interface.context(), to, number);
                connecting.map_err(|error| failed(&error))?;
                sockets.add(socket)
            }
            Kind::Udp(payload, _) => {
                let buffer = || {
                    let places = vec![udp::PacketMetadata::EMPTY; 2];
                    udp::PacketBuffer::new(places, vec![0; BUFFER])
                };
                let mut socket = udp::Socket::new(buffer(), buffer());
                let to = IpEndpoint::new(ends.to.into(), ends.port);
                socket.bind(number).map_err(|error| failed(&error))?;
                let sent = socket.send_slice(payload, to);
                sent.map_err(|error| failed(&error))?;
                let mut of_errors = icmp_socket();
                let bound = of_errors.bind(icmp::Endpoint::Udp(number.into()));
                bound.map_err(|error| failed(&error))?;
                errors = Some(sockets.add(of_errors));
                sockets.add(socket)
            }
            Kind::Icmp => {
                let mut socket = icmp_socket();
                let bound = socket.bind(icmp::Endpoint::Ident(number));
                bound.map_err(|error| failed(&error))?;
                let sent = socket.send_slice(&echo(ends, number), ends.to.into());
                sent.map_err(|error| failed(&error))?;
                sockets.add(socket)
            }
        };
        Ok(Self {
            kind,
            ends,
            interface,
            sockets,
            handle,
            errors,
            wire,
            began: Instant::now(),
            head: Vec::new(),
        })
    }

    /// Takes a frame of the port.
    pub(super) fn receive(&mut self, frame: &[u8]) {
        if let Ok(Inner::Ip(parsed)) = parse::inner(frame)
            && let Some(packet) = frame.get(usize::from(parsed.l3)..usize::from(parsed.end))
        {
            self.wire.received.push_back(packet.to_vec());
        }
    }

    /// Lets everything happen that is due; the answer, if it is there by now.
    pub(super) fn turn(&mut self) -> Option<Result<(), Failure>> {
        let elapsed = self.began.elapsed();
        let now = smoltcp::time::Instant::from_micros(elapsed.as_micros() as i64);
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        let answer = self.answer();
        // What is to be said at once: a request, or that the connection is over.
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        answer
    }

    /// The packets that are to go out.
    pub(super) fn sent(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.wire.sent)
    }

    /// Time until something happens by itself; none: nothing does.
    pub(super) fn wait(&mut self) -> Option<Duration> {
        let elapsed = self.began.elapsed();
        let now = smoltcp::time::Instant::from_micros(elapsed.as_micros() as i64);
        let delay = self.interface.poll_delay(now, &self.sockets);
        delay.map(Into::into)
    }

    fn answer(&mut self) -> Option<Result<(), Failure>> {
        match &self.kind {
            Kind::Tcp | Kind::Http(..) => self.tcp_answer(),
            Kind::Udp(_, expected) => {
                let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.handle);
                while let Ok((bytes, from)) = socket.recv() {
                    if from.endpoint.addr == self.ends.to.into() {
                        let is_right = bytes.starts_with(expected);
                        let failure = || "another answer than expected".to_owned();
                        return Some(is_right.then_some(()).ok_or_else(failure));
                    }
                }
                let errors = self.sockets.get_mut::<icmp::Socket<'_>>(self.errors?);
                errors.recv().ok()?;
                Some(Err("nobody takes datagrams at the port".to_owned()))
            }
            Kind::Icmp => {
                let socket = self.sockets.get_mut::<icmp::Socket<'_>>(self.handle);
                while let Ok((bytes, from)) = socket.recv() {
                    let reply = match self.ends.to {
                        IpAddr::V4(_) => Icmpv4Message::EchoReply.into(),
                        IpAddr::V6(_) => u8::from(Icmpv6Message::EchoReply),
                    };
                    if from == self.ends.to.into() && bytes.first() == Some(&reply) {
                        return Some(Ok(()));
                    }
                }
                None
            }
        }
    }

    fn tcp_answer(&mut self) -> Option<Result<(), Failure>> {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        match socket.state() {
            tcp::State::SynSent | tcp::State::SynReceived => return None,
            tcp::State::Closed if self.head.is_empty() => {
                return Some(Err("the connection was refused".to_owned()));
            }
            _ => {}
        }
        let Kind::Http(request, codes) = &mut self.kind else {
            socket.abort();
            return Some(Ok(()));
        };
        if !request.is_empty() {
            // As much as there is room for; paths are shorter than that.
            let sent = socket.send_slice(request).unwrap_or(0);
            request.drain(..sent);
        }
        let mut bytes = [0; STATUS];
        let room = bytes.get_mut(self.head.len()..).unwrap_or_default();
        let read = socket.recv_slice(room).unwrap_or(0);
        self.head.extend(room.get(..read).unwrap_or_default());
        if self.head.len() < STATUS && socket.may_recv() {
            return None;
        }
        socket.abort();
        Some(match code(&self.head) {
            Some(code) if codes.iter().any(|range| range.contains(&code)) => Ok(()),
            Some(code) => Err(format!("HTTP code {code}")),
            None => Err("no HTTP answer".to_owned()),
        })
    }

    /// What it means that no answer has come in time.
    pub(super) fn end(&mut self) -> Result<(), Failure> {
        match &self.kind {
            Kind::Udp(_, expected) if expected.is_empty() => Ok(()),
            Kind::Tcp | Kind::Http(..) => {
                let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
                let is_open = socket.may_send();
                // The member forgets it.
                socket.abort();
                let _ = self.turn();
                Err(match is_open {
                    true => "no HTTP answer in time".to_owned(),
                    false => "no connection in time".to_owned(),
                })
            }
            _ => Err("no answer in time".to_owned()),
        }
    }
}

fn icmp_socket() -> icmp::Socket<'static> {
    let buffer = || {
        let places = vec![icmp::PacketMetadata::EMPTY; 2];
        icmp::PacketBuffer::new(places, vec![0; BUFFER])
    };
    icmp::Socket::new(buffer(), buffer())
}

/// An echo request (RFC 792, RFC 4443 §4.1).
fn echo(ends: Ends, ident: u16) -> Vec<u8> {
    let (seq_no, data) = (1, &b"weft"[..]);
    let checksums = ChecksumCapabilities::default();
    match (ends.from, ends.to) {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let request = Icmpv6Repr::EchoRequest {
                ident,
                seq_no,
                data,
            };
            let mut bytes = vec![0; request.buffer_len()];
            let mut packet = Icmpv6Packet::new_unchecked(&mut bytes);
            request.emit(&from, &to, &mut packet, &checksums);
            bytes
        }
        _ => {
            let request = Icmpv4Repr::EchoRequest {
                ident,
                seq_no,
                data,
            };
            let mut bytes = vec![0; request.buffer_len()];
            request.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &checksums);
            bytes
        }
    }
}

/// The code of an HTTP answer that begins so.
fn code(head: &[u8]) -> Option<u16> {
    let rest = head.strip_prefix(b"HTTP/1.")?;
    match rest {
        [b'0' | b'1', b' ', digits @ ..] if digits.len() == 3 => {
            let digits = std::str::from_utf8(digits).ok()?;
            let is_number = digits.bytes().all(|it| it.is_ascii_digit());
            digits.parse().ok().filter(|_| is_number)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_of_what_is_one() {
        assert_eq!(code(b"HTTP/1.1 204"), Some(204));
        assert_eq!(code(b"HTTP/1.0 503"), Some(503));
        for bad in [
            "HTTP/1.1 2x4",
            "HTTP/2.0 200",
            "HTTP/1.1 +20",
            "SSH-2.0-abcd",
            "",
        ] {
            assert_eq!(code(bad.as_bytes()), None, "{bad}");
        }
    }
}
