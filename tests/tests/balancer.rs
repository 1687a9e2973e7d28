//! Load balancers with real processes: nginx on three members of two hosts, and curl, wrk and plain sockets as clients.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weft_proto::v1::{Objects, Port, SecurityGroup};
use weft_tests::{
    Daemon, Lab, LabError, Site, SiteOptions, holds, nginx, tenants, topology, wait_until,
};

const SOON: Duration = Duration::from_secs(10);
/// Longer than a connection that is closed is remembered (`tcp_closed`), until a sweep finds it.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// How long a client waits for what does not come.
const SILENCE: Duration = Duration::from_millis(1500);
const MEMBERS: [&str; 3] = ["blue-1", "blue-2", "blue-b"];
const VIRTUAL: [&str; 2] = ["10.0.1.200", "fd00:1::200"];

/// A client on each host beside the members; members are blue-1 on h1, blue-2 and, in another subnet, blue-b on h2.
const CLIENTS: &str = r#"
ports:
  - {id: client-1, vpc: blue, subnet: blue-a, host: h1, mac: "02:00:00:00:01:31", addresses: [10.0.1.31, "fd00:1::31"]}
  - {id: client-2, vpc: blue, subnet: blue-b, host: h2, mac: "02:00:00:00:01:32", addresses: [10.0.2.32, "fd00:2::32"]}
load_balancers:
  - id: web
    vpc: blue
    addresses: [10.0.1.200, "fd00:1::200"]
    listeners: [{protocol: tcp, port_min: 80, members: [{port: blue-1}, {port: blue-2}, {port: blue-b}]}]
"#;

/// Red's red-2 has what is virtual in blue.
fn objects() -> Objects {
    let mut objects = tenants(2).unwrap();
    let more = topology(CLIENTS).unwrap();
    objects.ports.extend(more.ports);
    objects.load_balancers = more.load_balancers;
    let red = objects.ports.iter_mut().find(|port| port.id == "red-2");
    let addresses = VIRTUAL.map(str::to_owned);
    red.unwrap().addresses.extend(addresses);
    objects
}

struct Scene {
    site: Site,
    servers: Vec<Daemon>,
}

/// Runs `body` where every member serves, and says what a person would ask for if it fails.
fn on_site(body: impl FnOnce(&mut Scene) -> Result<(), LabError>) {
    let site = Site::start(Lab::new().unwrap(), &objects(), &SiteOptions::default()).unwrap();
    let servers = MEMBERS.iter().chain(&["red-2"]);
    let servers = servers
        .map(|port| nginx::serve(&site, port).unwrap())
        .collect();
    let mut scene = Scene { site, servers };
    if let Err(error) = body(&mut scene).and_then(|()| scene.site.wait_for_frames()) {
        panic!("{}", scene.site.explain(error));
    }
}

/// An answer: who, whom it has seen as the client, and at which port it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    member: String,
    client: String,
    port: u16,
}

impl Scene {
    /// Changes the load balancer, and waits until the hosts have it in force.
    fn lb(&self, words: &str) -> Result<(), LabError> {
        let words: Vec<&str> = ["lb"].into_iter().chain(words.split_whitespace()).collect();
        self.site.ctl(&words)?;
        self.site.wait_for_hosts()
    }

    /// So many requests, each on a connection of its own; all are answered.
    fn requests(
        &self,
        from: &str,
        (to, port): (&str, u16),
        count: u32,
    ) -> Result<Vec<Answer>, LabError> {
        let url = format!("http://{}/?[1-{count}]", SocketAddr::new(ip(to), port));
        let namespace = &self.site.workloads[from].namespace;
        let said = namespace.run(&["curl", "-sS", "-m", "20", "-H", "Connection: close", &url])?;
        let answers: Vec<Answer> = said.lines().filter_map(answer).collect();
        let what = format!("{count} requests of {from} to {to} port {port}: {said}");
        holds(&what, answers.len() == count as usize)?;
        Ok(answers)
    }

    fn own_address(&self, port: &str, to: &str) -> String {
        let address = self.site.address(port, ip(to).is_ipv6());
        address.unwrap().to_string()
    }

    fn drops(&self, host: &str, reason: &str) -> bool {
        let drops = self.site.node(host, &["drops"]).unwrap_or_default();
        drops.contains(reason)
    }

    fn connect(&self, from: &str, (to, port): (&str, u16)) -> Result<Connection, LabError> {
        let namespace = &self.site.workloads[from].namespace;
        let to = SocketAddr::new(ip(to), port);
        let stream = namespace
            .enter(|| TcpStream::connect_timeout(&to, SILENCE))?
            .map_err(LabError::io(format!("connecting {from} to {to}")))?;
        let limited = stream.set_read_timeout(Some(SILENCE));
        limited.map_err(LabError::io("limiting how long to wait"))?;
        Ok(Connection(BufReader::new(stream)))
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn answer(line: &str) -> Option<Answer> {
    let mut words = line.split_whitespace();
    Some(Answer {
        member: words.next()?.to_owned(),
        client: words.next()?.to_owned(),
        port: words.next()?.parse().ok()?,
    })
}

fn by_member(answers: &[Answer]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry(answer.member.as_str()).or_default() += 1;
    }
    counts
}

/// Whether all that a member's connections have sent is acknowledged.
fn is_quiet(site: &Site, member: &str) -> bool {
    let namespace = &site.workloads[member].namespace;
    let said = namespace.run(&["ss", "-Htn", "state", "established", "sport = :80"]);
    said.is_ok_and(|said| {
        let mut lines = said.lines();
        lines.all(|line| line.split_whitespace().nth(1) == Some("0"))
    })
}

/// A connection that stays.
struct Connection(BufReader<TcpStream>);

impl Connection {
    /// A request and its answer; what becomes of the connection if there is none.
    fn ask(&mut self) -> Result<Answer, ErrorKind> {
        let kind = |error: std::io::Error| error.kind();
        let request = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n";
        self.0.get_mut().write_all(request).map_err(kind)?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).map_err(kind)? == 0 {
                return Err(ErrorKind::UnexpectedEof);
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).map_err(kind)?;
        let body = String::from_utf8_lossy(&body);
        answer(&body).ok_or(ErrorKind::InvalidData)
    }
}

#[test]
fn every_member_serves_clients_on_every_host_and_sees_them() {
    on_site(|scene| {
        for from in ["client-1", "client-2"] {
            for to in VIRTUAL {
                let answers = scene.requests(from, (to, 80), 60)?;
                let counts = by_member(&answers);
                println!("{from} to {to}: {counts:?}");
                holds("all members have served", counts.len() == MEMBERS.len())?;
                let own = scene.own_address(from, to);
                holds(
                    "members see the client",
                    answers.iter().all(|it| it.client == own && it.port == 80),
                )?;
                holds("it is pinged", scene.site.reaches(from, to, 2))?;
            }
        }
        // A member that reaches itself has the load balancer's address, and its own towards others.
        for to in VIRTUAL {
            let answers = scene.requests("blue-1", (to, 80), 40)?;
            let own = scene.own_address("blue-1", to);
            let is_right = |it: &Answer| it.client == if it.member == "blue-1" { to } else { &own };
            println!("blue-1 to {to}: {:?}", by_member(&answers));
            holds(
                "it has served itself",
                answers.iter().any(|it| it.member == "blue-1"),
            )?;
            holds("from the right address", answers.iter().all(is_right))?;
            holds("it pings the address", scene.site.reaches("blue-1", to, 1))?;
        }
        // Red's address is its own.
        for to in VIRTUAL {
            let answers = scene.requests("red-1", (to, 80), 10)?;
            holds("red's own", by_member(&answers).keys().eq(["red-2"].iter()))?;
            holds("red's is pinged", scene.site.reaches("red-1", to, 1))?;
        }
        let words = [
            "trace", "--port", "client-1", "--dst", VIRTUAL[0], "--proto", "tcp",
        ];
        let trace = scene.site.node("h1", &words)?;
        holds(
            &trace,
            trace.contains("load balancer") && trace.contains("web"),
        )
    });
}

#[test]
fn members_are_chosen_as_the_listener_says() {
    on_site(|scene| {
        let (one, _) = (VIRTUAL[0], VIRTUAL[1]);
        // By weight: 8 of 10.
        scene.lb("member add web tcp:80 blue-1 --weight 8")?;
        let answers = scene.requests("client-1", (one, 80), 200)?;
        let counts = by_member(&answers);
        println!("8 to 1 to 1: {counts:?}");
        let share = counts.get("blue-1").copied().unwrap_or(0);
        holds("eight of ten go to blue-1", (130..190).contains(&share))?;
        holds("the others have some", counts.len() == MEMBERS.len())?;

        // In turn.
        scene.lb("listener add web tcp:81 --algorithm round-robin --to blue-1:80 --to blue-2:80 --to 10.0.2.20:80")?;
        let answers = scene.requests("client-2", (one, 81), 30)?;
        let counts = by_member(&answers);
        println!("in turn: {counts:?}");
        holds(
            "as many each",
            counts.values().all(|it| (9..=11).contains(it)),
        )?;

        // By source.
        scene.lb("listener add web tcp:82 --affinity source --to blue-1:80 --to blue-2:80 --to blue-b:80")?;
        let mut chosen = Vec::new();
        for (from, to) in [("client-1", VIRTUAL[0]), ("client-2", VIRTUAL[1])] {
            let answers = scene.requests(from, (to, 82), 20)?;
            let counts = by_member(&answers);
            println!("{from} by source: {counts:?}");
            holds("one member", counts.len() == 1)?;
            chosen.extend(counts.into_keys().map(str::to_owned));
        }
        holds("each has one", chosen.len() == 2)?;

        least_connections(scene)?;

        // A range of ports becomes that of the member.
        scene.lb("listener add web tcp:9000-9001 --to blue-1:8000 --to blue-2:8000")?;
        for (port, becomes) in [(9000, 8000), (9001, 8001)] {
            let answers = scene.requests("client-1", (VIRTUAL[1], port), 20)?;
            holds("in order", answers.iter().all(|it| it.port == becomes))?;
        }
        // And nobody serves the next one.
        let url = format!("http://{one}:9002/");
        let namespace = &scene.site.workloads["client-1"].namespace;
        let refused = namespace.run(&["curl", "-sS", "-m", "2", &url]);
        holds("9002 is nobody's", refused.is_err())?;
        holds("which is counted", scene.drops("h1", "no_listener"))
    });
}

/// Of connections that stay open each member has as many; who has lost its own gets the next ones.
fn least_connections(scene: &Scene) -> Result<(), LabError> {
    scene.lb("listener add web tcp:84 --algorithm least-connections --to blue-1:80 --to blue-2:80 --to 10.0.2.20:80")?;
    let at = (VIRTUAL[0], 84);
    let open = |count: usize| -> Result<Vec<(String, Connection)>, LabError> {
        let opened = (0..count).map(|_| {
            let mut kept = scene.connect("client-1", at)?;
            let answer = kept.ask();
            holds("a new connection is answered", answer.is_ok())?;
            Ok((answer.unwrap().member, kept))
        });
        opened.collect()
    };
    let counts = |kept: &[(String, Connection)]| {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for (member, _) in kept {
            *counts.entry(member.clone()).or_default() += 1;
        }
        counts
    };
    let mut kept = open(9)?;
    println!("by connections: {:?}", counts(&kept));
    holds("three each", counts(&kept).values().eq([&3, &3, &3]))?;
    let lost = kept[0].0.clone();
    kept.retain(|(member, _)| *member != lost);
    // A connection that is closed is remembered for half a minute.
    let words = [
        "trace", "--port", "client-1", "--dst", at.0, "--proto", "tcp", "--dport", "84",
    ];
    wait_until("those that are closed count no more", FORGOTTEN, || {
        let trace = scene.site.node("h1", &words).unwrap_or_default();
        trace.contains("with 0 sessions here")
    })?;
    let next = open(3)?;
    println!("after all of {lost} are closed: {:?}", counts(&next));
    holds(
        "the next go there",
        next.iter().all(|(member, _)| *member == lost),
    )?;
    let mut after = open(3)?;
    holds("and then to each", counts(&after).values().eq([&1, &1, &1]))?;
    for (member, connection) in kept.iter_mut().chain(&mut after) {
        let answer = connection.ask();
        holds(
            "others are where they were",
            answer.is_ok_and(|it| it.member == *member),
        )?;
    }
    Ok(())
}

#[test]
fn a_member_drains_and_one_that_is_removed_is_reset() {
    on_site(|scene| {
        for to in VIRTUAL {
            let mut kept = scene.connect("client-1", (to, 80))?;
            let member = kept.ask().unwrap().member;
            scene.lb(&format!("member drain web tcp:80 {member}"))?;
            let again = kept.ask();
            holds(
                "the connection stays",
                again.is_ok_and(|it| it.member == member),
            )?;
            let answers = scene.requests("client-1", (to, 80), 40)?;
            let counts = by_member(&answers);
            println!("{member} drains: {counts:?}");
            holds("it gets no new ones", !counts.contains_key(&*member))?;
            holds("the others do", counts.len() == 2)?;
            let other = scene.requests("client-2", (to, 80), 40)?;
            holds("on every host", !by_member(&other).contains_key(&*member))?;
            holds(
                "it is there yet",
                kept.ask().is_ok_and(|it| it.member == member),
            )?;

            // What is established with the others stays when it is removed.
            let mut others = scene.connect("client-2", (to, 80))?;
            let other = others.ask().unwrap();
            scene.lb(&format!("member remove web tcp:80 {member}"))?;
            holds("others stay", others.ask() == Ok(other))?;
            let lost = kept.ask();
            println!("{member} is removed: {lost:?}");
            holds(
                "the client is told",
                lost == Err(ErrorKind::ConnectionReset),
            )?;
            holds("which is counted", scene.drops("h1", "member_gone"))?;
            scene.lb(&format!("member add web tcp:80 {member}"))?;
            let back = scene.requests("client-1", (to, 80), 60)?;
            holds("it is back", by_member(&back).contains_key(&*member))?;
        }

        // Dropped, where that is asked for.
        scene.lb("listener add web tcp:83 --drop-lost --to blue-1:80 --to blue-2:80")?;
        let mut kept = scene.connect("client-2", (VIRTUAL[0], 83))?;
        let member = kept.ask().unwrap().member;
        scene.lb(&format!("member remove web tcp:83 {member}"))?;
        let lost = kept.ask();
        println!("dropped: {lost:?}");
        holds(
            "nothing is heard",
            matches!(lost, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)),
        )?;
        holds("which is counted there", scene.drops("h2", "member_gone"))?;

        // Nobody takes flows: a reset, and no answer to a ping when no listener is served.
        scene.lb("listener remove web tcp:83")?;
        for member in MEMBERS {
            scene.lb(&format!("member drain web tcp:80 {member}"))?;
        }
        for to in VIRTUAL {
            let refused = scene
                .connect("client-1", (to, 80))
                .err()
                .map(|it| it.to_string());
            let refused = refused.unwrap_or_default();
            holds(
                &format!("refused at once: {refused}"),
                refused.contains("refused"),
            )?;
            holds("not pinged", !scene.site.reaches("client-1", to, 1))?;
        }
        holds("no_member is counted", scene.drops("h1", "no_member"))?;
        scene.lb("member undrain web tcp:80 blue-2")?;
        let answers = scene.requests("client-1", (VIRTUAL[0], 80), 10)?;
        holds(
            "blue-2 alone",
            by_member(&answers).keys().eq(["blue-2"].iter()),
        )
    });
}

#[test]
fn a_connection_outlives_the_daemon_that_chose_its_member() {
    on_site(|scene| {
        let mut kept = Vec::new();
        for to in VIRTUAL {
            for _ in 0..6 {
                let mut connection = scene.connect("client-1", (to, 80))?;
                let answer = connection.ask().unwrap();
                kept.push((connection, answer));
            }
        }
        // What members have sent is acknowledged: the next packet is the client's.
        wait_until("nothing is on its way", SOON, || {
            MEMBERS.iter().all(|member| is_quiet(&scene.site, member))
        })?;
        let host = scene.site.hosts.get_mut("h1").unwrap();
        if let Some(mut daemon) = host.daemon.take() {
            daemon.signal(libc::SIGKILL);
            daemon.wait(SOON)?;
        }
        scene.site.start_daemon("h1")?;
        scene.site.wait_for_hosts()?;
        scene.site.wait_for_ports()?;
        for (connection, answer) in &mut kept {
            let again = connection.ask();
            let what = format!("{again:?} after {answer:?}");
            holds(&what, again.as_ref() == Ok(&*answer))?;
        }
        Ok(())
    });
}

#[test]
fn nothing_fails_while_members_drain_and_come_back_under_load() {
    on_site(|scene| {
        let namespace = &scene.site.workloads["client-1"].namespace;
        let url = format!("http://{}/", VIRTUAL[0]);
        let arguments = [
            "-t",
            "1",
            "-c",
            "64",
            "-d",
            "6s",
            "-H",
            "Connection: close",
            &url,
        ];
        let mut wrk = namespace.spawn("wrk", &arguments)?;
        let mut rounds = 0;
        while wrk.is_running() {
            let member = MEMBERS[rounds % MEMBERS.len()];
            scene.lb(&format!("member drain web tcp:80 {member}"))?;
            scene.lb(&format!("member undrain web tcp:80 {member}"))?;
            scene.lb(&format!(
                "member add web tcp:80 {member} --weight {}",
                1 + rounds % 5
            ))?;
            rounds += 1;
        }
        wrk.wait(SOON)?;
        let said = wrk.log();
        println!("{rounds} rounds\n{said}");
        holds("there were changes", rounds > 2)?;
        holds("it says how many", said.contains("requests in"))?;
        holds(
            "no request failed",
            !said.contains("errors") && !said.contains("Non-2xx"),
        )
    });
}

/// Answers datagrams at a port of a member with its id and what it received, until it is dropped.
struct Echo {
    stops: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(site: &Site, id: &'static str, port: u16) -> Result<Self, LabError> {
        let namespace = &site.workloads[id].namespace;
        let socket = namespace.enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)))?;
        let socket = socket.map_err(LabError::io("listening for datagrams"))?;
        let often = socket.set_read_timeout(Some(Duration::from_millis(50)));
        often.map_err(LabError::io("limiting how long to wait"))?;
        let stops = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stops);
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while !is_over.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    let answer = [id.as_bytes(), b" ", &buffer[..len]].concat();
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Ok(Self {
            stops,
            thread: Some(thread),
        })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Scene {
    /// A datagram of so many bytes on a socket of its own, and who answers.
    fn datagram(
        &self,
        from: &str,
        (to, port): (&str, u16),
        len: usize,
    ) -> Result<String, LabError> {
        let what = || format!("a datagram of {len} bytes from {from} to {to} port {port}");
        let namespace = &self.site.workloads[from].namespace;
        let payload = vec![b'x'; len];
        let exchange = || -> std::io::Result<Vec<u8>> {
            let any: IpAddr = if ip(to).is_ipv6() {
                Ipv6Addr::UNSPECIFIED.into()
            } else {
                Ipv4Addr::UNSPECIFIED.into()
            };
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(SILENCE))?;
            socket.connect((ip(to), port))?;
            socket.send(&payload)?;
            let mut answer = vec![0; 65536];
            let len = socket.recv(&mut answer)?;
            answer.truncate(len);
            Ok(answer)
        };
        let answer = namespace.enter(exchange)?.map_err(LabError::io(what()))?;
        let mut parts = answer.splitn(2, |byte| *byte == b' ');
        let id = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        holds(&what(), parts.next() == Some(&payload))?;
        Ok(id)
    }
}

#[test]
fn datagrams_their_fragments_and_errors_about_them_pass() {
    on_site(|scene| {
        scene.lb(
            "listener add web udp:5000-5001 --to blue-1:7000 --to blue-2:7000 --to blue-b:7000",
        )?;
        let echoes = MEMBERS.map(|id| Echo::start(&scene.site, id, 7001).unwrap());
        for from in ["client-1", "client-2"] {
            for to in VIRTUAL {
                // With 3000 bytes in fragments.
                for len in [20, 3000] {
                    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
                    for _ in 0..30 {
                        let member = scene.datagram(from, (to, 5001), len)?;
                        *counts.entry(member).or_default() += 1;
                    }
                    println!("{from} to {to}, {len} bytes: {counts:?}");
                    holds("all members have served", counts.len() == MEMBERS.len())?;
                }
                // At the range's other port nobody listens: the member says so, as the load balancer.
                let refused = scene
                    .datagram(from, (to, 5000), 20)
                    .unwrap_err()
                    .to_string();
                holds(&refused, refused.contains("refused"))?;
            }
        }
        drop(echoes);
        Ok(())
    });
}

/// In a VPC whose ports are learned.
#[test]
fn where_ports_are_learned_hosts_choose_alike() {
    let mut objects = objects();
    objects.load_balancers[0].listeners[0].affinity = "source".into();
    let options = SiteOptions {
        controller: "learn_above = 1".into(),
        ..SiteOptions::default()
    };
    let site = Site::start(Lab::new().unwrap(), &objects, &options).unwrap();
    let servers = MEMBERS.map(|port| nginx::serve(&site, port).unwrap());
    let scene = Scene {
        site,
        servers: servers.into(),
    };
    let result = (|| {
        let ids = |host: &str| {
            let state = scene.site.node_json(host, &["node", "state"]).unwrap();
            let ports = serde_json::from_value::<Vec<Port>>(state["state"]["ports"].clone());
            let ports = ports.unwrap().into_iter();
            ports.map(|port| port.id).collect::<Vec<_>>()
        };
        for host in ["h1", "h2"] {
            wait_until("all know the members", SOON, || {
                let known = ids(host);
                MEMBERS
                    .iter()
                    .all(|member| known.iter().any(|id| id == member))
            })?;
        }
        for to in VIRTUAL {
            for from in ["client-1", "client-2", "blue-1"] {
                let answers = scene.requests(from, (to, 80), 10)?;
                holds("one member each", by_member(&answers).len() == 1)?;
                holds("it is pinged", scene.site.reaches(from, to, 1))?;
            }
        }
        holds(
            "nothing was dropped for want of an answer",
            !scene.drops("h1", "address_unlearned") && !scene.drops("h2", "address_unlearned"),
        )
    })();
    if let Err(error) = result {
        panic!("{}", scene.site.explain(error));
    }
}

/// The lines of `weftctl lb health`, by member: whether it serves and what was last.
fn health(site: &Site, listener: &str) -> BTreeMap<String, (bool, String)> {
    let said = site.ctl(&["lb", "health", "web"]).unwrap_or_default();
    let lines = said.lines().skip(1);
    let lines = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of_listener = lines.filter(|words| words.get(1) == Some(&listener) && words.len() > 5);
    of_listener
        .map(|words| {
            // The time is one word or two.
            let last = words[5..].join(" ");
            (words[2].to_owned(), (words[3] == "yes", last))
        })
        .collect()
}

#[test]
fn a_member_whose_server_dies_is_found_out_and_one_that_comes_back_too() {
    on_site(|scene| {
        scene.lb("listener check web tcp:80 --check http --check-interval 300")?;
        let all_serve = |scene: &Scene| {
            let found = health(&scene.site, "tcp:80");
            found.len() == 6 && found.values().all(|(up, _)| *up)
        };
        wait_until("all members are found to serve", SOON, || all_serve(scene))?;
        let mut kept = scene.connect("client-1", (VIRTUAL[0], 80))?;
        while kept.ask().unwrap().member != "blue-2" {
            kept = scene.connect("client-1", (VIRTUAL[0], 80))?;
        }
        // Requests all the time: they fail while it is not known yet.
        let is_over = AtomicBool::new(false);
        let url = format!("http://{}/", VIRTUAL[0]);
        let at = MEMBERS.iter().position(|it| *it == "blue-2").unwrap();
        let server = scene.servers.remove(at);
        let site = &scene.site;
        let ask = || {
            let namespace = &site.workloads["client-2"].namespace;
            let mut failed: Vec<Instant> = Vec::new();
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                count += 1;
                if namespace.run(&["curl", "-sf", "-m", "1", &url]).is_err() {
                    failed.push(Instant::now());
                }
            }
            (count, failed)
        };
        let is_out = || {
            ["h1", "h2"].iter().all(|host| {
                let state = site.node_json(host, &["node", "state"]).unwrap_or_default();
                let down = state["state"]["member_health"].as_array();
                down.is_some_and(|down| down.len() == 2)
            })
        };
        let (known, killed, (count, failed)) = std::thread::scope(|threads| {
            let asking = threads.spawn(ask);
            let killed = Instant::now();
            drop(server);
            let known = wait_until("both hosts know it", SOON, is_out);
            println!("known on both hosts after {:?}", killed.elapsed());
            std::thread::sleep(SILENCE);
            is_over.store(true, Ordering::Relaxed);
            (known, killed, asking.join().unwrap())
        });
        known?;
        let last = failed.iter().max().map(|at| at.duration_since(killed));
        println!(
            "{} of {count} requests failed, the last one after {last:?}",
            failed.len()
        );
        let in_time = last.is_none_or(|last| last < Duration::from_secs(4));
        holds("requests fail only until it is known", in_time)?;
        wait_until("its connection is reset", SOON, || kept.ask().is_err())?;
        for from in ["client-1", "client-2"] {
            for to in VIRTUAL {
                let answers = scene.requests(from, (to, 80), 40)?;
                holds(
                    "the others serve",
                    !by_member(&answers).contains_key("blue-2"),
                )?;
            }
        }
        let found = health(&scene.site, "tcp:80");
        let down: Vec<_> = found.values().filter(|(up, _)| !up).collect();
        println!("{found:?}");
        holds("both its addresses", down.len() == 2)?;
        let refused = |(_, last): &&(bool, String)| last.contains("refused");
        holds("why", down.iter().all(refused))?;
        let server = nginx::serve(&scene.site, "blue-2")?;
        scene.servers.push(server);
        wait_until("it serves again", SOON, || all_serve(scene))?;
        wait_until("it has flows again", SOON, || {
            let answers = scene.requests("client-1", (VIRTUAL[0], 80), 40);
            answers.is_ok_and(|answers| by_member(&answers).contains_key("blue-2"))
        })
    });
}

/// Has a member take what is for the load balancer's addresses, and ask for neighbours with its own.
fn take_virtual(site: &Site, member: &str) -> Result<(), LabError> {
    let namespace = &site.workloads[member].namespace;
    namespace.run(&["sysctl", "-qw", "net.ipv4.conf.all.arp_announce=2"])?;
    namespace.run(&["ip", "link", "set", "lo", "up"])?;
    for address in VIRTUAL {
        namespace.run(&["ip", "address", "add", address, "dev", "lo"])?;
    }
    Ok(())
}

/// Members of mode dsr: their kernels have the load balancer's addresses, and answer with them.
#[test]
fn members_answer_with_an_address_that_their_kernels_have() {
    on_site(|scene| {
        for member in MEMBERS {
            take_virtual(&scene.site, member)?;
        }
        scene.lb("listener remove web tcp:80")?;
        scene.lb("listener add web tcp:80 --mode dsr --to blue-1 --to blue-2 --to blue-b --check tcp --check-interval 300")?;
        let are_up = |scene: &Scene, wanted: usize| {
            let found = health(&scene.site, "tcp:80");
            found.len() == 6 && found.values().filter(|(up, _)| *up).count() == wanted
        };
        wait_until("all members are found to serve", SOON, || are_up(scene, 6))?;
        for from in ["client-1", "client-2"] {
            for to in VIRTUAL {
                let answers = scene.requests(from, (to, 80), 60)?;
                let counts = by_member(&answers);
                println!("{from} to {to}: {counts:?}");
                holds("all members have served", counts.len() == MEMBERS.len())?;
                let own = scene.own_address(from, to);
                let is_right = |it: &Answer| it.client == own && it.port == 80;
                holds("members see the client", answers.iter().all(is_right))?;
                // The kernel of its member has the connection at the address that the client has it with.
                let mut kept = scene.connect(from, (to, 80))?;
                let member = kept.ask().unwrap().member;
                let namespace = &scene.site.workloads[member.as_str()].namespace;
                let said = namespace.run(&["ss", "-Htn", "state", "established"])?;
                let mut words = said.split_whitespace();
                let local = SocketAddr::new(ip(to), 80).to_string();
                holds(&said, words.any(|word| word == local))?;
            }
        }
        // A member reaches the address, and so itself, without anybody's help.
        for to in VIRTUAL {
            let answers = scene.requests("blue-1", (to, 80), 5)?;
            holds("itself", by_member(&answers).keys().eq(["blue-1"].iter()))?;
        }
        // What is sent with the address without a question goes nowhere.
        let namespace = &scene.site.workloads["blue-1"].namespace;
        let to = scene.own_address("client-2", VIRTUAL[0]);
        let ping = namespace.run(&["ping", "-c", "1", "-W", "1", "-I", VIRTUAL[0], &to]);
        holds("no ping from there is answered", ping.is_err())?;
        holds("it is dropped", scene.drops("h1", "spoofed_address"))?;

        // A connection outlives a change of the members, and ends with its own.
        let mut kept = scene.connect("client-1", (VIRTUAL[0], 80))?;
        let member = kept.ask().unwrap().member;
        scene.lb(&format!("member drain web tcp:80 {member}"))?;
        let asked = kept.ask();
        holds("it goes on", asked.is_ok_and(|it| it.member == member))?;
        let answers = scene.requests("client-1", (VIRTUAL[0], 80), 40)?;
        let drains = !by_member(&answers).contains_key(member.as_str());
        holds("new ones go to the others", drains)?;
        scene.lb(&format!("member remove web tcp:80 {member}"))?;
        holds("it is reset", kept.ask() == Err(ErrorKind::ConnectionReset))?;

        // Its server dies, and it is found out.
        scene.lb(&format!("member add web tcp:80 {member}"))?;
        wait_until("it serves again", SOON, || are_up(scene, 6))?;
        let at = MEMBERS.iter().position(|it| *it == "blue-2").unwrap();
        drop(scene.servers.remove(at));
        wait_until("both its addresses are down", SOON, || are_up(scene, 4))?;
        let others = || {
            let answers = scene.requests("client-1", (VIRTUAL[1], 80), 40);
            answers.is_ok_and(|answers| !by_member(&answers).contains_key("blue-2"))
        };
        wait_until("the others serve", SOON, others)
    });
}

#[test]
fn members_are_asked_in_all_four_ways_past_their_groups() {
    on_site(|scene| {
        // Nothing may come to blue-1 but what its group says: nothing.
        scene.site.change(|objects| {
            objects.security_groups.push(SecurityGroup {
                id: "closed".into(),
                vpc: "blue".into(),
                ..SecurityGroup::default()
            });
            let port = objects.ports.iter_mut().find(|port| port.id == "blue-1");
            port.unwrap().security_groups = vec!["closed".into()];
        })?;
        let to = "--to blue-1:80 --to blue-2:80 --check-interval 200";
        scene.lb(&format!("listener add web tcp:1001 {to} --check tcp"))?;
        scene.lb(&format!(
            "listener add web tcp:1002 {to} --check tcp --check-port 9"
        ))?;
        scene.lb(&format!("listener add web udp:1003 {to} --check icmp"))?;
        scene.lb(&format!("listener add web udp:1004 {to} --check udp"))?;
        scene.lb(&format!(
            "listener add web udp:1005 {to} --check udp --check-send ping --check-expect pong"
        ))?;
        scene.lb(&format!(
            "listener add web tcp:1006 {to} --check http --check-expect 404"
        ))?;
        let expected = [
            ("tcp:1001", true, "ok"),
            ("tcp:1002", false, "the connection was refused"),
            ("udp:1003", true, "ok"),
            ("udp:1004", false, "nobody takes datagrams at the port"),
            ("udp:1005", false, "nobody takes datagrams at the port"),
            ("tcp:1006", false, "HTTP code 200"),
        ];
        for (listener, up, last) in expected {
            let what = format!("{listener} is found: {up}, {last}");
            let is_found = || {
                let found = health(&scene.site, listener);
                found.len() == 4 && found.values().all(|it| *it == (up, last.to_owned()))
            };
            let found = wait_until(&what, SOON, is_found);
            println!("{:?}", health(&scene.site, listener));
            found?;
        }
        // Who answers datagrams.
        let addresses =
            ["blue-1", "blue-2"].map(|port| (port, scene.site.address(port, false).unwrap()));
        let mut echoes = Vec::new();
        for (port, address) in addresses {
            let socket = scene.site.workloads[port]
                .namespace
                .enter(|| UdpSocket::bind((address, 80)))?;
            let socket = socket.map_err(LabError::io("binding a socket"))?;
            let limit = socket.set_read_timeout(Some(SOON));
            limit.map_err(LabError::io("limiting how long to wait"))?;
            echoes.push(std::thread::spawn(move || {
                let mut bytes = [0; 64];
                for _ in 0..8 {
                    let Ok((read, from)) = socket.recv_from(&mut bytes) else {
                        return;
                    };
                    let said = if read == 4 { b"pong" } else { b"what" };
                    let _ = socket.send_to(said, from);
                }
            }));
        }
        for listener in ["udp:1004", "udp:1005"] {
            wait_until(&format!("{listener} serves over IPv4"), SOON, || {
                let found = health(&scene.site, listener);
                let (v6, v4): (Vec<_>, Vec<_>) =
                    found.iter().partition(|(at, _)| at.starts_with('['));
                v4.len() == 2
                    && v4.iter().all(|(_, (up, _))| *up)
                    && v6.iter().all(|(_, (up, _))| !up)
            })?;
        }
        for echo in echoes {
            echo.join().unwrap();
        }
        scene.lb("listener check web tcp:1002 --none")?;
        wait_until("it is not asked any more", SOON, || {
            health(&scene.site, "tcp:1002").is_empty()
        })?;
        // The group of blue-1 admits nobody else.
        scene.lb("member remove web tcp:1002 blue-1:80")?;
        let answers = scene.requests("client-1", (VIRTUAL[0], 1002), 5)?;
        holds(
            "blue-2 serves",
            answers.iter().all(|it| it.member == "blue-2"),
        )
    });
}
