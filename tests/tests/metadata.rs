//! The metadata service end to end: real weftds, real clients, and a backend that returns what it received.

#![allow(clippy::unwrap_used)]

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use weft_proto::v1::{AclRule, Dhcp, NetworkAcl, SecurityRule};
use weft_tests::{
    GuestKind, Lab, LabError, Namespace, RawSocket, Site, SiteOptions, put_in_guests, tenants,
    wait_until,
};

const PATIENCE: Duration = Duration::from_secs(20);
const BACKEND: &str = "127.0.0.1:8775";
const CONFIG: &str = "metadata = { backend = 'http://127.0.0.1:8775' }";
const IPV4: &str = "169.254.169.254";
const IPV6: &str = "fd00:ec2::254";
/// Bytes of the long answer.
const LONG: usize = 1 << 20;

fn long() -> Vec<u8> {
    (0..LONG)
        .map(|at| b'a' + (at % 26 + at / 911 % 3) as u8 % 26)
        .collect()
}

/// An HTTP server: `/long` is answered with [`LONG`] bytes, `/size` with the length of the request's body, and all else with the request's
/// head.
struct Backend {
    listener: socket2::Socket,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    fn start(host: &Namespace) -> Self {
        let address: SocketAddr = BACKEND.parse().unwrap();
        let listener = host.enter(|| TcpListener::bind(address)).unwrap().unwrap();
        let handle = socket2::Socket::from(listener.try_clone().unwrap());
        let thread = thread::spawn(move || {
            thread::scope(|scope| {
                for stream in listener.incoming() {
                    let Ok(stream) = stream else { return };
                    scope.spawn(|| serve(stream));
                }
            });
        });
        Self {
            listener: handle,
            thread: Some(thread),
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Whoever waits for a connection is told that there will be none.
        let _ = self.listener.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let end = loop {
        if let Some(at) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        let mut more = [0; 4096];
        match stream.read(&mut more)? {
            0 => return Ok(()),
            count => request.extend(&more[..count]),
        }
    };
    let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
    let announced = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let announced: usize = announced.map_or(0, |text| text.trim().parse().unwrap());
    let mut body = request.split_off(end);
    let at = body.len();
    body.resize(announced.max(at), 0);
    stream.read_exact(&mut body[at..])?;
    let answer = match head.split(' ').nth(1) {
        Some("/long") => long(),
        Some("/size") => body.len().to_string().into_bytes(),
        _ => head.into_bytes(),
    };
    let len = answer.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n"
    )?;
    stream.write_all(&answer)
}

/// What is answered to a request, head and body; the connection is closed after it.
fn ask(from: &Namespace, address: &str, request: &[u8]) -> io::Result<Vec<u8>> {
    let address = SocketAddr::new(address.parse::<IpAddr>().unwrap(), 80);
    from.enter(|| {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(request)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    })
    .unwrap()
}

/// The answer to GET with these lines of head, as text.
fn get(site: &Site, port: &str, address: &str, path: &str, lines: &str) -> String {
    let workload = &site.workloads[port].namespace;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{lines}\r\n");
    match ask(workload, address, request.as_bytes()) {
        Ok(answer) => String::from_utf8(answer).unwrap(),
        Err(source) => panic!(
            "{}",
            site.explain(LabError::Io {
                what: format!("{port} asks"),
                source
            })
        ),
    }
}

fn site() -> Site {
    let options = SiteOptions {
        daemon: CONFIG.to_owned(),
        cores: vec![vec![0, 1], vec![]],
        ..SiteOptions::default()
    };
    let mut objects = tenants(2).unwrap();
    // Nothing may leave, were it not for the service.
    for group in &mut objects.security_groups {
        group.rules = vec![SecurityRule {
            direction: "egress".into(),
            remote_cidr: "203.0.113.0/24".into(),
            ..SecurityRule::default()
        }];
    }
    let acl = |vpc: &str| NetworkAcl {
        id: format!("{vpc}-shut"),
        vpc: vpc.into(),
        rules: Vec::<AclRule>::new(),
        ..NetworkAcl::default()
    };
    objects.network_acls = vec![acl("blue"), acl("red")];
    for subnet in &mut objects.subnets {
        subnet.network_acl = format!("{}-shut", subnet.vpc);
    }
    Site::start(Lab::new().unwrap(), &objects, &options).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn metadata_is_for_the_port_that_asks_and_no_guest_can_pose_as_another() {
    let site = site();
    let _backend = Backend::start(&site.hosts["h1"].namespace);
    for (address, own) in [(IPV4, "10.0.1.11"), (IPV6, "fd00:1::11")] {
        for tenant in ["blue", "red"] {
            let port = format!("{tenant}-1");
            let forged = "X-Weft-Port: other\r\nx_weft_vpc: other\r\nX-Forwarded-For: 203.0.113.9\r\nX-Instance-ID: other\r\nX-Tenant-Id: other\r\n\
                X-Weft-Signature: other\r\nConnection: x-weft-port\r\nX-Kept: kept\r\n";
            let answer = get(&site, &port, address, "/whoami?a=b", forged);
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            for expected in [
                "get /whoami?a=b http/1.1",
                "host: 127.0.0.1:8775",
                &format!("x-weft-port: {port}"),
                &format!("x-weft-vpc: {tenant}"),
                &format!("x-weft-subnet: {tenant}-a"),
                &format!("x-forwarded-for: {own}"),
                "x-kept: kept",
            ] {
                let found = answer.lines().filter(|line| line == &expected).count();
                assert_eq!(found, 1, "{expected} in {answer}");
            }
            assert!(!answer.contains("other"), "{answer}");
            assert!(!answer.contains("203.0.113.9"), "{answer}");
        }
    }
    let workload = &site.workloads["blue-1"].namespace;
    assert!(workload.pings(IPV4, 3), "the address answers pings");
    let neighbours = workload.ip("neighbour show").unwrap();
    assert!(
        !neighbours.contains(IPV4),
        "it is reached by the gateway: {neighbours}"
    );
    workload.ip("route add 169.254.0.0/16 dev eth0").unwrap();
    assert!(get(&site, "blue-1", IPV4, "/", "").contains("x-weft-port: blue-1"));
    let neighbours = workload.ip("neighbour show").unwrap();
    assert!(neighbours.contains(IPV4), "or on the link: {neighbours}");
    site.wait_for_frames().unwrap();
}

#[test]
fn metadata_passes_long_answers_and_long_requests_whole() {
    let site = site();
    let _backend = Backend::start(&site.hosts["h1"].namespace);
    let workload = &site.workloads["blue-1"].namespace;
    for address in [IPV4, IPV6] {
        let request = b"GET /long HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let answer = ask(workload, address, request).unwrap();
        let body = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap()
            + 4;
        assert!(answer[body..] == long(), "{} bytes", answer.len() - body);
    }
    for (bytes, expected) in [(300_000, "\r\n\r\n300000"), (1 << 21, "HTTP/1.1 413 ")] {
        let mut request = format!(
            "POST /size HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n"
        )
        .into_bytes();
        if bytes < LONG {
            request.resize(request.len() + bytes, b'x');
        }
        let answer = String::from_utf8(ask(workload, IPV4, &request).unwrap()).unwrap();
        assert!(answer.contains(expected), "{answer}");
    }
    site.wait_for_frames().unwrap();
}

#[test]
fn metadata_refuses_what_is_no_request() {
    let site = site();
    let _backend = Backend::start(&site.hosts["h1"].namespace);
    let workload = &site.workloads["blue-1"].namespace;
    let long_head = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    for (request, expected) in [
        ("\x16\x03\x01 no HTTP\r\n\r\n", "HTTP/1.1 400 "),
        (
            "CONNECT 192.0.2.1:22 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "HTTP/1.1 405 ",
        ),
        (&long_head, "HTTP/1.1 431 "),
        (
            "GET http://other.example/path HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n",
            "HTTP/1.1 200 ",
        ),
    ] {
        let answer = String::from_utf8(ask(workload, IPV4, request.as_bytes()).unwrap()).unwrap();
        assert!(answer.starts_with(expected), "{answer}");
        assert!(!answer.contains("other.example"), "{answer}");
    }
    // Two requests on one connection, the second without waiting for an answer; the guest says at once that it sends no more.
    let two = b"GET /size HTTP/1.1\r\nHost: x\r\n\r\nGET /size HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = String::from_utf8(ask(workload, IPV4, two).unwrap()).unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
    site.wait_for_frames().unwrap();
}

#[test]
fn metadata_outlives_its_backend_and_says_so() {
    let site = site();
    let status = |port: &str| {
        let answer = get(&site, port, IPV4, "/", "");
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(status("blue-1"), "502");
    let backend = Backend::start(&site.hosts["h1"].namespace);
    assert_eq!(
        (status("blue-1"), status("red-1")),
        ("200".into(), "200".into())
    );
    drop(backend);
    assert_eq!(status("blue-1"), "502");
    let _backend = Backend::start(&site.hosts["h1"].namespace);
    assert_eq!(status("blue-1"), "200");
    let stats = site.node_json("h1", &["stats"]).unwrap();
    assert_eq!(stats["metadata"]["requests"], 5, "{stats}");
    assert_eq!(stats["metadata"]["backend_errors"], 2, "{stats}");
    let other = site.node_json("h2", &["stats"]).unwrap();
    assert_eq!(other["metadata"]["requests"], 0, "{other}");
}

#[test]
fn metadata_is_there_for_others_while_one_guest_floods_it() {
    let site = site();
    let _backend = Backend::start(&site.hosts["h1"].namespace);
    let workload = &site.workloads["blue-1"].namespace;
    let address = SocketAddr::new(IPV4.parse().unwrap(), 80);
    // More connections than one port may have, none of which says anything.
    let silent = workload.enter(|| {
        let connect = |_| TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok();
        (0..20).filter_map(connect).collect::<Vec<_>>()
    });
    // One whose handshake ends while the next begins may be taken for half-open: its guest learns later.
    assert!(silent.unwrap().len() >= 16, "as many as a port may have");
    let stats = site.node_json("h1", &["stats"]).unwrap();
    assert!(stats["metadata"]["refused"].as_u64() > Some(0), "{stats}");
    assert!(get(&site, "red-1", IPV4, "/", "").contains("x-weft-port: red-1"));
    // They were closed, and make room again.
    let back = wait_until("the port's connections are free again", PATIENCE, || {
        get(&site, "blue-1", IPV4, "/", "").contains("x-weft-port: blue-1")
    });
    back.unwrap_or_else(|error| panic!("{}", site.explain(error)));
}

/// A SYN of blue-1 to the service.
fn syn(port: u16) -> Vec<u8> {
    let addresses = [10, 0, 1, 11, 169, 254, 169, 254];
    let checksum = |bytes: &[u8]| {
        let words = bytes
            .chunks(2)
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        let sum: u32 = words.sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
    };
    let mut ip = [
        &[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0][..],
        &addresses,
    ]
    .concat();
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let mut tcp = [
        &port.to_be_bytes()[..],
        &[
            0, 80, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
        ],
    ]
    .concat();
    let sum = checksum(&[&addresses[..], &[0, 6, 0, 20], &tcp].concat());
    tcp[16..18].copy_from_slice(&sum);
    let ethernet = [2, 0x77, 0x65, 0x66, 0x74, 1, 2, 0, 0, 0, 1, 0x11, 8, 0];
    [&ethernet[..], &ip, &tcp].concat()
}

#[test]
fn metadata_is_there_for_others_while_one_guest_sends_syns_without_end() {
    let site = site();
    let _backend = Backend::start(&site.hosts["h1"].namespace);
    let socket = RawSocket::open(&site.workloads["blue-1"].namespace, "eth0").unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut sent = 0u64;
            for port in (1024..u16::MAX).cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                sent += u64::from(socket.send(&syn(port)).is_ok());
            }
            sent
        });
        let drops = || site.node("h1", &["drops"]).unwrap();
        let limited = wait_until("the flood is held to the limit", PATIENCE, || {
            drops().contains("metadata_limit")
        });
        for _ in 0..20 {
            assert!(get(&site, "red-1", IPV4, "/", "").contains("x-weft-port: red-1"));
        }
        stop.store(true, Ordering::Relaxed);
        let sent = flood.join().unwrap();
        limited.unwrap_or_else(|error| panic!("{}", site.explain(error)));
        let drops = drops();
        let of_red = drops.lines().filter(|line| line.starts_with("red-1"));
        let lost = |line: &&str| line.contains("metadata_") || line.contains("ring_full");
        assert_eq!(of_red.filter(lost).count(), 0, "{sent} SYNs\n{drops}");
    });
    site.wait_for_frames().unwrap();
    assert!(get(&site, "blue-1", IPV4, "/", "").contains("x-weft-port: blue-1"));
}

#[test]
fn metadata_is_gone_with_the_port_and_comes_back_with_it() {
    let mut site = site();
    let _backend = Backend::start(&site.hosts["h1"].namespace);
    assert!(get(&site, "blue-1", IPV4, "/", "").contains("x-weft-port: blue-1"));
    let workload = site.workloads["blue-1"].namespace.clone();
    let address = SocketAddr::new(IPV4.parse().unwrap(), 80);
    let open = workload
        .enter(|| TcpStream::connect_timeout(&address, PATIENCE))
        .unwrap();
    let mut open = open.unwrap();
    site.change(|objects| objects.ports.retain(|port| port.id != "blue-1"))
        .unwrap();
    let mut ports = tenants(2).unwrap().ports;
    ports.retain(|port| port.id == "blue-1");
    site.change(|objects| objects.ports.extend(ports)).unwrap();
    site.wait_for_ports().unwrap();
    // The connection belonged to the port that was.
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = open.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let error = open.read(&mut [0; 64]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(get(&site, "blue-1", IPV4, "/", "").contains("x-weft-port: blue-1"));
    site.wait_for_frames().unwrap();
}

#[test]
fn metadata_is_found_by_a_virtual_machine_that_configures_itself() {
    let secret = std::env::temp_dir().join(format!("weft-secret-{}", std::process::id()));
    std::fs::write(&secret, "s3cret\n").unwrap();
    let signing = format!("', secret_file = '{}' }}", secret.display());
    let options = SiteOptions {
        daemon: CONFIG.replace("' }", &signing),
        configure_guests: false,
        ..SiteOptions::default()
    };
    let mut objects = tenants(2).unwrap();
    put_in_guests(&mut objects, GuestKind::VhostServer, &["blue-1"]);
    for subnet in objects
        .subnets
        .iter_mut()
        .filter(|subnet| subnet.id == "blue-a")
    {
        // A default route that leads elsewhere: the service has one of its own.
        subnet.dhcp = Some(Dhcp {
            routes: vec![weft_proto::v1::DhcpRoute {
                prefix: "0.0.0.0/0".into(),
                next_hop: "10.0.1.12".into(),
            }],
            ..Dhcp::default()
        });
    }
    let site = Site::start(Lab::new().unwrap(), &objects, &options);
    std::fs::remove_file(secret).unwrap();
    let site = site.unwrap();
    let _backend = Backend::start(&site.hosts["h1"].namespace);
    let guest = &site.guests["blue-1"];
    let succeed = |line: &str| match guest.succeed(line) {
        Ok(text) => text,
        Err(error) => panic!("{}", site.explain(error)),
    };
    succeed("ip link set eth0 up");
    succeed("udhcpc -i eth0 -f -n -q -t 10 -T 1 -O staticroutes -s /dhcp.sh");
    let routes = succeed("ip route show");
    assert!(
        routes.contains("169.254.169.254 via 10.0.1.1 dev eth0"),
        "{routes}"
    );
    let told = succeed("wget -q -O - http://169.254.169.254/latest/meta-data/");
    assert!(told.contains("x-weft-port: blue-1"), "{told}");
    assert!(told.contains("x-forwarded-for: 10.0.1.11"), "{told}");
    // printf 'blue-1\nblue\n10.0.1.11' | openssl dgst -sha256 -hmac s3cret
    let signature = "48d0dae3ffcff0a61211b509abd8af4c00a24b0aa46c2823ef6a72c25af86ed7";
    assert!(
        told.contains(&format!("x-weft-signature: {signature}")),
        "{told}"
    );
    let expected = succeed("wget -q -O - http://169.254.169.254/long | wc -c");
    assert_eq!(expected.trim(), LONG.to_string());
    // A body beyond one segment leaves the guest's kernel whole, and is split here.
    let size = succeed(
        "head -c 200000 /dev/zero | tr '\\0' x >/tmp/body && wget -q -O - --post-file /tmp/body http://169.254.169.254/size",
    );
    assert_eq!(size.trim(), "200000");
    site.wait_for_frames().unwrap();
}
