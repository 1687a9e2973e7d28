//! TCP between real kernels through two hosts that track it: options on and off, restarts during connections, reused tuples, and attackers
//! who do not know the sequence numbers (docs/decisions/007-tcp-tracking.md).

#![allow(clippy::unwrap_used)]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use etherparse::PacketBuilder;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use weft_tests::{Lab, LabError, Namespace, RawSocket, Site, SiteOptions, tenants, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// The client's port has no rule that lets anything in; the server's admits TCP. `blue-b` may send with any address.
fn site() -> Site {
    let mut objects = tenants(2).unwrap();
    let client = objects.ports.iter_mut().find(|port| port.id == "blue-1");
    client.unwrap().security_groups.clear();
    let attacker = objects.ports.iter_mut().find(|port| port.id == "blue-b");
    attacker.unwrap().unguarded = true;
    Site::start(Lab::new().unwrap(), &objects, &SiteOptions::default()).unwrap()
}

fn explained(site: &mut Site, body: impl FnOnce(&mut Site) -> Result<(), LabError>) {
    if let Err(error) = body(site) {
        panic!("{}", site.explain(error));
    }
}

fn workload<'a>(site: &'a Site, port: &str) -> &'a Namespace {
    &site.workloads[port].namespace
}

fn sysctl(site: &Site, settings: &[&str]) -> Result<(), LabError> {
    for port in ["blue-1", "blue-2"] {
        for setting in settings {
            workload(site, port).run(&["sysctl", "-q", "-w", setting])?;
        }
    }
    Ok(())
}

/// A host's weftd dies, and another begins without its sessions.
fn restart(site: &mut Site, host: &str) -> Result<(), LabError> {
    let mut daemon = site.hosts.get_mut(host).unwrap().daemon.take().unwrap();
    daemon.signal(libc::SIGKILL);
    daemon.wait(SOON)?;
    site.start_daemon(host)?;
    site.wait_for_hosts()?;
    site.wait_for_ports()
}

/// Segments that trackers did not take, of both hosts.
fn refused(site: &Site) -> Result<u64, LabError> {
    let mut all = 0;
    for host in ["h1", "h2"] {
        let text = site.node(host, &["drops"])?;
        for line in text.lines() {
            if line.contains("tcp_window") || line.contains("tcp_invalid") {
                let numbers = line
                    .split_whitespace()
                    .filter_map(|word| word.parse::<u64>().ok());
                all += numbers.sum::<u64>();
            }
        }
    }
    Ok(all)
}

/// A connection from the client on `h1` to the server on `h2`.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(site: &Site) -> Result<Self, LabError> {
        let address = site.service("blue-2", false, 4242)?;
        let listener = workload(site, "blue-2")
            .enter(|| TcpListener::bind(address))?
            .unwrap();
        let client = workload(site, "blue-1")
            .enter(|| TcpStream::connect_timeout(&address, SOON))?
            .unwrap();
        let (server, _) = listener.accept().unwrap();
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream.set_nodelay(true).unwrap();
        }
        Ok(Self { client, server })
    }

    fn works(&mut self) -> bool {
        let mut got = [0; 5];
        let there = self
            .client
            .write_all(b"there")
            .and_then(|()| self.server.read_exact(&mut got));
        there.is_ok()
            && self.server.write_all(&got).is_ok()
            && self.client.read_exact(&mut got).is_ok()
            && &got == b"there"
    }
}

/// Bytes that flow until it is dropped.
struct Transfer {
    arrived: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Transfer {
    fn start(mut from: TcpStream, mut to: TcpStream) -> Self {
        let (arrived, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, end) = (Arc::clone(&arrived), Arc::clone(&stop));
        from.set_write_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        thread::spawn(move || {
            let block = [0x5a; 16_384];
            while !end.load(Ordering::Relaxed) {
                match from.write(&block) {
                    Err(error) if error.kind() != ErrorKind::WouldBlock => break,
                    _ => {}
                }
            }
        });
        thread::spawn(move || {
            let mut block = vec![0; 65_536];
            while let Ok(len) = to.read(&mut block) {
                if len == 0 {
                    break;
                }
                count.fetch_add(len as u64, Ordering::Relaxed);
            }
        });
        Self { arrived, stop }
    }

    fn goes_on(&self, what: &str) -> Result<(), LabError> {
        let before = self.arrived.load(Ordering::Relaxed);
        wait_until(what, SOON, || {
            self.arrived.load(Ordering::Relaxed) > before + (1 << 20)
        })
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A download goes on when its server's host restarts: the server's segments are admitted as the client's flow again once the client has
/// acknowledged one. When the client's own host restarts, its port's lack of a rule decides, see the decision.
#[test]
fn transfers_go_on_when_a_host_has_lost_its_sessions_with_all_options_on_and_off() {
    let mut site = site();
    explained(&mut site, |site| {
        for (scaling, sack) in [(1, 1), (0, 1), (1, 0), (0, 0)] {
            let scaling = format!("net.ipv4.tcp_window_scaling={scaling}");
            sysctl(site, &[&scaling, &format!("net.ipv4.tcp_sack={sack}")])?;
            for host in ["h1", "h2"] {
                let Connection { client, server } = Connection::open(site)?;
                let upload = Transfer::start(client, server);
                upload.goes_on("an upload")?;
                restart(site, host)?;
                upload.goes_on(&format!("an upload, {host} restarted"))?;
            }
            let Connection { client, server } = Connection::open(site)?;
            let download = Transfer::start(server, client);
            download.goes_on("a download")?;
            restart(site, "h2")?;
            download.goes_on("a download, h2 restarted")?;
        }
        Ok(())
    });
}

#[test]
fn keepalives_and_a_shut_window_outlive_the_sessions_of_a_host() {
    let mut site = site();
    explained(&mut site, |site| {
        for host in ["h1", "h2"] {
            let mut quiet = Connection::open(site)?;
            let every = Duration::from_secs(1);
            let alive = TcpKeepalive::new().with_time(every).with_interval(every);
            SockRef::from(&quiet.client)
                .set_tcp_keepalive(&alive)
                .unwrap();
            // Nobody reads: the window shuts.
            let address = site.service("blue-2", false, 4243)?;
            let listener = workload(site, "blue-2")
                .enter(|| TcpListener::bind(address))?
                .unwrap();
            let connect = || TcpStream::connect_timeout(&address, SOON);
            let mut full = workload(site, "blue-1").enter(connect)?.unwrap();
            let (mut reader, _) = listener.accept().unwrap();
            full.set_write_timeout(Some(Duration::from_millis(700)))
                .unwrap();
            let mut sent = 0;
            while let Ok(len) = full.write(&[0x5a; 65_536]) {
                sent += len;
            }
            restart(site, host)?;
            // The first segments after the restart are the kernel's own.
            let sessions = || site.node(host, &["session", "list"]).unwrap_or_default();
            wait_until("both are picked up by the kernels' probes", SOON, || {
                let seen = sessions();
                seen.contains("4242") && seen.contains("4243")
            })?;
            assert!(quiet.works(), "{host}: {}", sessions());
            reader.set_read_timeout(Some(SOON)).unwrap();
            let mut block = vec![0; sent];
            reader.read_exact(&mut block).unwrap();
            full.write_all(b"more").unwrap();
            reader.read_exact(&mut block[..4]).unwrap();
        }
        Ok(())
    });
}

#[test]
fn fast_open_works_before_and_after_the_server_knows_the_client() {
    let mut site = site();
    explained(&mut site, |site| {
        sysctl(site, &["net.ipv4.tcp_fastopen=1027"])?;
        let address = site.service("blue-2", false, 4244)?;
        let listener = workload(site, "blue-2")
            .enter(|| TcpListener::bind(address))?
            .unwrap();
        let set = |port: &str, value: u16| {
            let setting = format!("net.ipv4.tcp_fastopen={value}");
            workload(site, port).run(&["sysctl", "-q", "-w", &setting])
        };
        // Data without a cookie that the server does not take (off, or a cookie is wanted), and does; a cookie asked for, then used.
        for (client, server) in [(5, 1), (5, 1027), (5, 1539), (1, 1027)] {
            set("blue-1", client)?;
            set("blue-2", server)?;
            for _ in 0..3 {
                let socket = workload(site, "blue-1")
                    .enter(|| Socket::new(Domain::IPV4, Type::STREAM, None))?
                    .unwrap();
                let sent =
                    socket.send_to_with_flags(&[7; 200], &address.into(), libc::MSG_FASTOPEN);
                assert_eq!(sent.unwrap(), 200);
                let (mut server, _) = listener.accept().unwrap();
                server.set_read_timeout(Some(SOON)).unwrap();
                let mut got = [0; 200];
                server.read_exact(&mut got).unwrap();
                server.write_all(b"taken").unwrap();
                let mut client = TcpStream::from(socket);
                client.set_read_timeout(Some(SOON)).unwrap();
                client.read_exact(&mut got[..5]).unwrap();
            }
        }
        assert_eq!(refused(site)?, 0);
        Ok(())
    });
}

#[test]
fn both_ends_open_at_once() {
    let mut site = site();
    explained(&mut site, |site| {
        site.change(|objects| {
            let port = objects.ports.iter_mut().find(|port| port.id == "blue-1");
            port.unwrap().security_groups = vec!["blue".into()];
        })?;
        let ends = [("blue-1", 4001), ("blue-2", 4002)];
        let addresses: Vec<SocketAddr> = ends
            .iter()
            .map(|(port, number)| site.service(port, false, *number).unwrap())
            .collect();
        // Neither SYN leaves before both are sent.
        let pause = |site: &Site, paused| {
            for host in ["h1", "h2"] {
                site.hosts[host].daemon.as_ref().unwrap().pause(paused);
            }
        };
        pause(site, true);
        let mut streams = Vec::new();
        for (number, (port, _)) in ends.iter().enumerate() {
            let (own, other) = (addresses[number], addresses[1 - number]);
            let socket = workload(site, port).enter(|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.bind(&own.into()).unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.connect(&other.into());
                socket
            })?;
            streams.push(TcpStream::from(socket));
        }
        pause(site, false);
        wait_until("both are connected", SOON, || {
            streams.iter().all(|stream| stream.peer_addr().is_ok())
        })?;
        for stream in &streams {
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
        }
        let mut connection = Connection {
            server: streams.pop().unwrap(),
            client: streams.pop().unwrap(),
        };
        assert!(connection.works());
        assert_eq!(refused(site)?, 0);
        Ok(())
    });
}

/// Connections one after another between one pair of addresses, from few ports, so that each tuple is used again and again: by turns the
/// server finishes first, so that it holds the tuple in TIME-WAIT, and the client resets.
#[test]
fn tuples_are_used_again_at_a_high_rate_without_a_failure() {
    const ROUNDS: u32 = 8000;
    let mut site = site();
    explained(&mut site, |site| {
        let address = site.service("blue-2", false, 4245)?;
        let listen = || TcpListener::bind(address);
        let listener = workload(site, "blue-2").enter(listen)?.unwrap();
        for _ in 0..2 {
            let listener = listener.try_clone().unwrap();
            thread::spawn(move || {
                let mut got = [0; 4];
                while let Ok((mut server, _)) = listener.accept() {
                    let answered =
                        server.read_exact(&mut got).is_ok() && server.write_all(&got).is_ok();
                    if answered && &got == b"hold" {
                        // The reset comes.
                        let _ = server.read(&mut got);
                    }
                }
            });
        }
        sysctl(site, &["net.ipv4.ip_local_port_range=40000 40063"])?;
        for reuse in [1, 0] {
            sysctl(site, &[&format!("net.ipv4.tcp_tw_reuse={reuse}")])?;
            let failed = AtomicU64::new(0);
            let once = |number: u32| {
                let holds = number.is_multiple_of(2);
                let mut client = TcpStream::connect_timeout(&address, SOON)?;
                client.set_read_timeout(Some(SOON))?;
                client.write_all(if holds { b"hold" } else { b"done" })?;
                client.read_exact(&mut [0; 4])?;
                if holds {
                    return SockRef::from(&client).set_linger(Some(Duration::ZERO));
                }
                match client.read(&mut [0; 4])? {
                    0 => Ok(()),
                    _ => Err(ErrorKind::InvalidData.into()),
                }
            };
            let begun = Instant::now();
            workload(site, "blue-1").enter(|| {
                thread::scope(|scope| {
                    for start in 0..4 {
                        let (once, failed) = (&once, &failed);
                        scope.spawn(move || {
                            for number in (start..ROUNDS).step_by(4) {
                                if let Err(error) = once(number / 4) {
                                    println!("connection {number}: {error}");
                                    failed.fetch_add(1, Ordering::Relaxed);
                                }
                            }
                        });
                    }
                });
            })?;
            let rate = f64::from(ROUNDS) / begun.elapsed().as_secs_f64();
            println!("tcp_tw_reuse={reuse}: {rate:.0} connections a second");
            assert_eq!(
                (failed.into_inner(), refused(site)?),
                (0, 0),
                "tcp_tw_reuse={reuse}"
            );
        }
        Ok(())
    });
}

/// Who does not see the numbers can't end a connection or put anything into it.
#[test]
fn blind_resets_syns_and_data_do_not_break_a_connection() {
    let mut site = site();
    explained(&mut site, |site| {
        let mut connection = Connection::open(site)?;
        assert!(connection.works());
        let port = connection.client.local_addr().unwrap().port();
        let attacker = workload(site, "blue-b");
        let socket = RawSocket::open(attacker, "eth0")?;
        let own = attacker.mac("eth0")?;
        let gateway = gateway(attacker)?;
        let mut number = 0x1234_5678u32;
        for round in 0..20_000 {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let builder = PacketBuilder::ethernet2(own, gateway)
                .ipv4([10, 0, 1, 11], [10, 0, 1, 12], 64)
                .tcp(port, 4242, number, 64_000);
            let builder = match round % 5 {
                0 => builder.rst(),
                1 => builder.rst().ack(number.rotate_left(9)),
                2 => builder.syn(),
                3 => builder.syn().ack(number.rotate_left(7)),
                _ => builder.ack(number.rotate_left(5)),
            };
            let payload: &[u8] = if round % 5 == 4 { b"evil!" } else { &[] };
            let mut frame = Vec::new();
            builder.write(&mut frame, payload).unwrap();
            // A full queue is no matter.
            let _ = socket.send(&frame);
            if round % 1000 == 0 {
                assert!(connection.works(), "after {round}");
            }
        }
        assert!(connection.works());
        assert!(refused(site)? > 0, "they have reached the tracker");
        Ok(())
    });
}

/// The MAC that a workload's default route leads to.
fn gateway(from: &Namespace) -> Result<[u8; 6], LabError> {
    let _ = from.run(&[
        "ping",
        "-c",
        "1",
        "-W",
        "1",
        &Ipv4Addr::new(10, 0, 2, 1).to_string(),
    ]);
    let text = from.ip("neigh show 10.0.2.1")?;
    let mac = text
        .split_whitespace()
        .find(|word| word.matches(':').count() == 5);
    let mut bytes = [0; 6];
    for (byte, text) in bytes.iter_mut().zip(mac.unwrap().split(':')) {
        *byte = u8::from_str_radix(text, 16).unwrap();
    }
    Ok(bytes)
}

#[test]
fn a_server_that_has_restarted_refuses_its_old_connections_and_takes_new_ones() {
    let mut site = site();
    explained(&mut site, |site| {
        for _ in 0..3 {
            let Connection { mut client, server } = Connection::open(site)?;
            let from = client.local_addr().unwrap();
            // The process dies with data unread: a reset.
            client.write_all(b"unread").unwrap();
            let mut peeked = [0; 6];
            while server.peek(&mut peeked).unwrap() < 6 {}
            drop(server);
            let ended = client.read(&mut peeked);
            assert!(ended.is_err(), "{ended:?}");
            drop(client);
            // The same tuple at once, refused first, then taken.
            let address = site.service("blue-2", false, 4242)?;
            let again = || {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_reuse_address(true).unwrap();
                socket.bind(&from.into()).unwrap();
                let result = socket.connect_timeout(&address.into(), SOON);
                (socket, result)
            };
            let (_, result) = workload(site, "blue-1").enter(again)?;
            assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            let listener = workload(site, "blue-2")
                .enter(|| TcpListener::bind(address))?
                .unwrap();
            let (socket, result) = workload(site, "blue-1").enter(again)?;
            result.unwrap();
            let (server, _) = listener.accept().unwrap();
            let mut connection = Connection {
                client: socket.into(),
                server,
            };
            assert!(connection.works());
        }
        assert_eq!(refused(site)?, 0);
        Ok(())
    });
}
