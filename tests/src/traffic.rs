//! Traffic that checks itself: a TCP exchange whose bytes are compared, and a numbered stream whose losses are counted.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{LabError, Namespace, wait_until};

/// How long a read or a write of an exchange may take.
const PATIENCE: Duration = Duration::from_secs(10);

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn expect(stream: &mut TcpStream, wanted: &[u8]) -> io::Result<()> {
    let mut got = vec![0; wanted.len()];
    stream.read_exact(&mut got)?;
    if got == wanted {
        Ok(())
    } else {
        Err(io::Error::other("other bytes than were sent"))
    }
}

/// A listener. One that was just closed may live on for a moment in a program that is being started, which inherits it until it runs.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(2));
            }
            result => return result,
        }
    }
}

/// Connects from one namespace to `address` in another by TCP, sends so many bytes, and gets as many back. Every byte is compared.
pub fn tcp_exchange(
    from: &Namespace,
    to: &Namespace,
    address: SocketAddr,
    bytes: usize,
) -> Result<(), LabError> {
    tcp_translated(from, address, to, address, bytes).map(drop)
}

/// The same where the server at `own` is reached by another address. Returns whom the server sees.
pub fn tcp_translated(
    from: &Namespace,
    address: SocketAddr,
    to: &Namespace,
    own: SocketAddr,
    bytes: usize,
) -> Result<SocketAddr, LabError> {
    let what = format!("TCP from {} to {} at {address}", from.label(), to.label());
    let error = |source| LabError::Io {
        what: what.clone(),
        source,
    };
    let data = pattern(bytes);
    let listener = to.enter(|| listen(own))?.map_err(error)?;
    thread::scope(|scope| {
        let serving = scope.spawn(|| -> io::Result<SocketAddr> {
            listener.set_nonblocking(true)?;
            let deadline = Instant::now() + PATIENCE;
            let (mut stream, peer) = loop {
                match listener.accept() {
                    Ok(accepted) => break accepted,
                    Err(error) if Instant::now() > deadline => return Err(error),
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            };
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            expect(&mut stream, &data)?;
            stream.write_all(&data)?;
            // The client's end of stream: it has everything.
            stream.read(&mut [0]).map(|_| peer)
        });
        let asked = from.enter(|| -> io::Result<()> {
            let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.write_all(&data)?;
            expect(&mut stream, &data)
        })?;
        let served = serving
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the serving thread panicked")));
        asked.and(served).map_err(error)
    })
}

/// Asks a UDP server at `own`, which is reached by `address`, as a resolver asks: one datagram each way, asked again as long as no answer comes.
/// Returns whom the server sees.
pub fn udp_translated(
    from: &Namespace,
    address: SocketAddr,
    to: &Namespace,
    own: SocketAddr,
) -> Result<SocketAddr, LabError> {
    let what = format!("UDP from {} to {} at {address}", from.label(), to.label());
    let error = |source| LabError::Io {
        what: what.clone(),
        source,
    };
    let any: IpAddr = if address.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        [0u16; 8].into()
    };
    let server = to.enter(|| UdpSocket::bind(own))?.map_err(error)?;
    let client = from.enter(|| UdpSocket::bind((any, 0)))?.map_err(error)?;
    let exchange = || -> io::Result<SocketAddr> {
        // From the address that was asked, or the client takes it for none of its answers.
        client.connect(address)?;
        let turn = Some(Duration::from_millis(200));
        server.set_read_timeout(turn)?;
        client.set_read_timeout(turn)?;
        let deadline = Instant::now() + PATIENCE;
        let (question, answer) = (b"question", b"answer");
        let mut buffer = [0; 64];
        loop {
            client.send(question)?;
            if let Ok((len, peer)) = server.recv_from(&mut buffer)
                && buffer[..len] == *question
            {
                server.send_to(answer, peer)?;
                if client
                    .recv(&mut buffer)
                    .is_ok_and(|len| buffer[..len] == *answer)
                {
                    return Ok(peer);
                }
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    };
    exchange().map_err(error)
}

/// Whether a TCP connection from a namespace to an address comes about within the time.
pub fn tcp_connects(
    from: &Namespace,
    address: SocketAddr,
    within: Duration,
) -> Result<bool, LabError> {
    from.enter(|| TcpStream::connect_timeout(&address, within).is_ok())
}

/// A program's own pings (RFC 792).
#[derive(Debug)]
pub struct Pinger {
    socket: Socket,
    sequence: u16,
}

impl Pinger {
    /// From a namespace to an address, under an identifier of its own.
    pub fn new(from: &Namespace, to: Ipv4Addr) -> Result<Self, LabError> {
        from.run(&["sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647"])?;
        let open = || -> io::Result<Socket> {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4))?;
            socket.connect(&SocketAddr::from((to, 0)).into())?;
            Ok(socket)
        };
        let socket = from
            .enter(open)?
            .map_err(LabError::io("a socket for pings"))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// One ping; whether it was answered in time.
    pub fn ping(&mut self, within: Duration) -> Result<bool, LabError> {
        self.exchange(within, false)
    }

    /// One ping; whether an answer to it or to one before came in time. On a busy machine answers take longer than the time between pings.
    pub fn hears(&mut self, within: Duration) -> Result<bool, LabError> {
        self.exchange(within, true)
    }

    fn exchange(&mut self, within: Duration, of_any: bool) -> Result<bool, LabError> {
        let error = |source| LabError::Io {
            what: "ping".into(),
            source,
        };
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence.to_be_bytes();
        // The kernel fills in checksum and identifier.
        let request = [&[8, 0, 0, 0, 0, 0][..], &sequence, &[0x77; 48]].concat();
        match self.socket.send(&request) {
            Ok(_) => {}
            // What the sender's own queues have no room for is not answered.
            Err(problem) if problem.raw_os_error() == Some(libc::ENOBUFS) => return Ok(false),
            Err(problem) => return Err(error(problem)),
        }
        let deadline = Instant::now() + within;
        let mut answer = [0; 128];
        loop {
            let left = deadline
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left)).map_err(error)?;
            match (&self.socket).read(&mut answer) {
                Ok(len) if len >= 8 && answer[0] == 0 && (of_any || answer[6..8] == sequence) => {
                    return Ok(true);
                }
                Err(problem)
                    if !matches!(
                        problem.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    return Err(error(problem));
                }
                _ if Instant::now() >= deadline => return Ok(false),
                _ => {}
            }
        }
    }
}

/// How long the last datagrams of a stream may be on their way.
const LINGER: Duration = Duration::from_secs(1);

/// Datagrams with a number in each, sent at a steady rate until the stream is ended.
#[derive(Debug)]
pub struct NumberedStream {
    stop: Arc<AtomicBool>,
    /// Nothing more is sent.
    last: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    twice: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

/// What became of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Datagrams that the sender put in.
    pub sent: u64,
    /// Different ones that came out.
    pub received: u64,
    /// Ones that came out again.
    pub twice: u64,
}

impl Tally {
    /// Datagrams that did not come out.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }
}

impl NumberedStream {
    /// Starts to send from one namespace to `address` in another; returns when the first datagram has arrived, which is counted too.
    pub fn start(
        from: &Namespace,
        to: &Namespace,
        address: SocketAddr,
        per_second: u32,
    ) -> Result<Self, LabError> {
        let unspecified: IpAddr = if address.is_ipv4() {
            [0, 0, 0, 0].into()
        } else {
            [0u16; 8].into()
        };
        let failed = LabError::io(format!("a stream to {address}"));
        let server = to.enter(|| UdpSocket::bind(address))?;
        let client = from.enter(|| -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind((unspecified, 0))?;
            socket.connect(address)?;
            Ok(socket)
        })?;
        let (server, client) = server
            .and_then(|server| {
                server.set_read_timeout(Some(Duration::from_millis(20)))?;
                Ok((server, client?))
            })
            .map_err(failed)?;
        let mut stream = Self {
            stop: Arc::default(),
            last: Arc::default(),
            sent: Arc::default(),
            received: Arc::default(),
            twice: Arc::default(),
            threads: Vec::new(),
        };
        stream.receive(server);
        stream.send(client, per_second);
        wait_until("the first datagram", PATIENCE, || {
            stream.received.load(Ordering::Relaxed) > 0
        })?;
        Ok(stream)
    }

    fn receive(&mut self, server: UdpSocket) {
        let [sent, received, twice] = [&self.sent, &self.received, &self.twice].map(Arc::clone);
        let last = Arc::clone(&self.last);
        self.threads.push(thread::spawn(move || {
            let mut seen = Vec::new();
            let mut buffer = [0; 64];
            let mut heard = Instant::now();
            loop {
                match server.recv(&mut buffer) {
                    Ok(8) => {
                        let number =
                            u64::from_be_bytes(std::array::from_fn(|i| buffer[i])) as usize;
                        if seen.len() <= number {
                            seen.resize(number + 1, false);
                        }
                        let counter = if seen[number] { &twice } else { &received };
                        seen[number] = true;
                        counter.fetch_add(1, Ordering::Relaxed);
                        heard = Instant::now();
                    }
                    Ok(_) => {}
                    Err(_) if last.load(Ordering::Relaxed) => {
                        let all = received.load(Ordering::Relaxed) >= sent.load(Ordering::Relaxed);
                        // A busy machine may keep the last ones for a while.
                        if all || heard.elapsed() > LINGER {
                            break;
                        }
                    }
                    Err(_) => {}
                }
            }
        }));
    }

    fn send(&mut self, client: UdpSocket, per_second: u32) {
        let (stop, sent) = (Arc::clone(&self.stop), Arc::clone(&self.sent));
        self.threads.push(thread::spawn(move || {
            let step = Duration::from_secs(1) / per_second;
            let mut next = Instant::now();
            let mut number: u64 = 0;
            while !stop.load(Ordering::Relaxed) {
                // An ICMP error about an earlier datagram shows here, and the datagram is not sent.
                if client.send(&number.to_be_bytes()).is_ok() {
                    number += 1;
                    sent.store(number, Ordering::Relaxed);
                }
                next += step;
                let now = Instant::now();
                if let Some(left) = next.checked_duration_since(now) {
                    thread::sleep(left);
                } else if now - next > Duration::from_millis(20) {
                    // The machine was elsewhere: no burst afterwards.
                    next = now;
                }
            }
        }));
    }

    /// What was sent and received so far.
    pub fn tally(&self) -> Tally {
        // In this order: what is in flight counts as not received.
        let received = self.received.load(Ordering::Relaxed);
        Tally {
            received,
            twice: self.twice.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
        }
    }

    /// Waits until `more` have come out.
    pub fn wait_for_more(&self, more: u64) -> Result<(), LabError> {
        let before = self.tally().received;
        wait_until("more of the stream", PATIENCE, || {
            self.tally().received >= before + more
        })
    }

    /// Ends the stream, and returns its result.
    pub fn end(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..).rev() {
            // The sender first, and then the receiver.
            let _ = thread.join();
            self.last.store(true, Ordering::Relaxed);
        }
        self.tally()
    }
}

impl Drop for NumberedStream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.last.store(true, Ordering::Relaxed);
    }
}
