//! Gateway hosts of an external network that die, are cut off and stand still under traffic: connections and mappings outlive them, and no tenant gets
//! another's frames.
//!
//! h1 and h2 are gateway hosts, in this order, on a segment with a server; the clients are on h3. `WEFT_GATEWAY_ROUNDS` and `WEFT_GATEWAY_CONNECTIONS` set
//! how often each fault happens and under how many connections, `WEFT_GATEWAY_FAULTS` which ones (`Cut,Freeze`), `WEFT_GATEWAY_REPORT` the file for the figures.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use weft_proto::v1::Objects;
use weft_tests::site::SEGMENT;
use weft_tests::traffic::Pinger;
use weft_tests::{
    Lab, LabError, LinkOptions, Namespace, RawSocket, Site, SiteOptions, holds, tenants, topology,
    wait_until,
};

const INTENT: &str = r#"
external_networks:
  - id: internet
    physical_network: physnet1
    prefixes: [203.0.113.0/24]
    gateways: [203.0.113.1]
    gateway_hosts: [h1, h2]
elastic_ips:
  - {id: blue-3, external_network: internet, address: 203.0.113.13, port: blue-3}
nat_gateways:
  - {id: nat, vpc: red, external_network: internet, addresses: [203.0.113.100]}
route_tables:
  - {id: red, vpc: red, routes: [{prefix: 0.0.0.0/0, nat: nat}]}
"#;

const SERVER: &str = "203.0.113.1";
const SOON: Duration = Duration::from_secs(10);
/// A gateway host that comes back knows everything within this: all sessions are told of twice.
const BACK: Duration = Duration::from_secs(40);
/// TCP tries again after 0.2, 0.6, 1.4, 3 and 6.2 seconds (RFC 6298): a connection that has not gone on after the last of these is lost.
const LOST: Duration = Duration::from_secs(10);
/// The promise (services, section 9).
const SILENCE: Duration = Duration::from_secs(1);

/// What red's connections carry, and what is sent to blue's elastic IP: whoever else sees it got another tenant's frames. Both have the same addresses.
const ONLY_RED: &[u8; 8] = b"only-red";
const ONLY_BLUE: &[u8; 9] = b"only-blue";

fn setting(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

fn objects() -> Objects {
    let mut objects = tenants(3).unwrap();
    let more = topology(INTENT).unwrap();
    objects.external_networks = more.external_networks;
    objects.elastic_ips = more.elastic_ips;
    objects.nat_gateways = more.nat_gateways;
    objects.route_tables = more.route_tables;
    for host in &mut objects.hosts[..2] {
        host.physical_networks = vec!["physnet1".into()];
    }
    for subnet in &mut objects.subnets {
        if subnet.vpc == "red" {
            subnet.route_table = "red".into();
        }
    }
    objects
}

/// Connections through the NAT gateway, each of which sends a few bytes and waits until they come back, again and again.
struct Connections {
    open: Vec<TcpStream>,
    /// When each was answered last, and whether it waits for an answer.
    state: Vec<(Instant, bool)>,
}

impl Connections {
    fn open(from: &Namespace, count: usize) -> Result<Self, LabError> {
        let cannot = LabError::io("connections through the gateway");
        let open = || -> std::io::Result<Vec<TcpStream>> {
            let open = (0..count).map(|_| {
                let stream = TcpStream::connect((SERVER, 9000))?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Ok(stream)
            });
            open.collect()
        };
        let open = from.enter(open)?.map_err(cannot)?;
        let state = vec![(Instant::now(), false); count];
        Ok(Self { open, state })
    }

    /// A few bytes more on each that does not wait, and takes what has come back. Answers how many have failed.
    fn turn(&mut self) -> usize {
        let mut failed = 0;
        for (stream, (heard, waits)) in self.open.iter_mut().zip(&mut self.state) {
            let mut byte = [0; 16];
            let result = if *waits {
                stream.read(&mut byte).inspect(|len| {
                    if *len > 0 {
                        (*heard, *waits) = (Instant::now(), false);
                    }
                })
            } else {
                stream.write(ONLY_RED).inspect(|_| *waits = true)
            };
            match result {
                Ok(0) => failed += 1,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => failed += 1,
            }
        }
        failed
    }

    /// Goes on until every connection has been answered since `after`. Answers how many were not, in the time that TCP needs.
    fn go_on(&mut self, after: Instant) -> usize {
        let begun = Instant::now();
        loop {
            let failed = self.turn();
            let late = self
                .state
                .iter()
                .filter(|(heard, _)| *heard < after)
                .count();
            if (late == 0 && failed == 0) || begun.elapsed() > LOST {
                return late.max(failed);
            }
            // A thousand connections are looked at each time: the daemons need the processors, too.
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Sends back every byte of every connection, until it is told to stop.
fn serve(listener: &TcpListener, over: &AtomicBool) {
    let mut streams: Vec<TcpStream> = Vec::new();
    let mut buffer = [0; 64];
    while !over.load(Ordering::Relaxed) {
        while let Ok((stream, _)) = listener.accept() {
            let ready = stream.set_nonblocking(true);
            streams.extend(ready.ok().map(|()| stream));
        }
        for stream in &mut streams {
            if let Ok(len) = stream.read(&mut buffer) {
                // The client waits for it: there is room.
                let _ = stream.write(&buffer[..len]);
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Pings every 10 ms until it is told to stop; answers the longest time without an answer.
fn longest_silence(from: &Namespace, over: &AtomicBool) -> Result<Duration, LabError> {
    let mut pinger = Pinger::new(from, SERVER.parse().unwrap())?;
    let (mut heard, mut longest) = (Instant::now(), Duration::ZERO);
    while !over.load(Ordering::Relaxed) {
        if pinger.hears(Duration::from_millis(10))? {
            longest = longest.max(heard.elapsed());
            heard = Instant::now();
            thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(longest.max(heard.elapsed()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// The daemon.
    Kill,
    /// The uplink is set down.
    Cut,
    /// The uplink has a link, and nothing passes.
    Unplug,
    /// It hears nobody.
    Deaf,
    /// Nobody hears it.
    Mute,
    /// The interface on the segment has no carrier.
    Segment,
    /// It is set down.
    Down,
    /// It is deleted; another of the same name comes.
    Delete,
    /// The daemon.
    Freeze,
}

const FAULTS: [Fault; 9] = [
    Fault::Kill,
    Fault::Cut,
    Fault::Unplug,
    Fault::Deaf,
    Fault::Mute,
    Fault::Segment,
    Fault::Down,
    Fault::Delete,
    Fault::Freeze,
];

/// What the bridge of the underlay drops, by the direction of h1's packets.
fn filter(site: &Site, directions: &[&str]) -> Result<(), LabError> {
    let bridge = site.underlay.as_ref();
    let bridge = bridge.ok_or_else(|| LabError::Deadline {
        what: "the underlay has a bridge".to_owned(),
        within: Duration::ZERO,
    })?;
    let rules = directions.iter().map(|name| format!("{name} b0 drop;"));
    let rules: String = rules.collect();
    let text = format!(
        "add table bridge cut; flush table bridge cut; delete table bridge cut; \
         table bridge cut {{ chain forward {{ type filter hook forward priority 0; {rules} }}; }}"
    );
    bridge.run(&["nft", &text]).map(drop)
}

impl Fault {
    /// Whether the daemon goes on, and might take itself for the owner of the addresses.
    fn is_cut(self) -> bool {
        matches!(self, Self::Cut | Self::Unplug | Self::Deaf | Self::Mute)
    }

    fn begin(self, site: &Site) -> Result<(), LabError> {
        let h1 = &site.hosts["h1"];
        let signal = |signal| {
            if let Some(daemon) = h1.daemon.as_ref() {
                daemon.signal(signal);
            }
            Ok(())
        };
        match self {
            Self::Kill => signal(libc::SIGKILL),
            Self::Freeze => signal(libc::SIGSTOP),
            Self::Cut => h1.namespace.ip("link set u0 down").map(drop),
            Self::Unplug => filter(site, &["iifname", "oifname"]),
            Self::Deaf => filter(site, &["oifname"]),
            Self::Mute => filter(site, &["iifname"]),
            Self::Segment => segment(site, "down"),
            Self::Down => h1.namespace.ip("link set x0 down").map(drop),
            Self::Delete => h1.namespace.ip("link delete x0").map(drop),
        }
    }

    fn end(self, site: &mut Site) -> Result<(), LabError> {
        match self {
            Self::Kill => site.start_daemon("h1"),
            Self::Freeze => {
                if let Some(daemon) = site.hosts["h1"].daemon.as_ref() {
                    daemon.signal(libc::SIGCONT);
                }
                Ok(())
            }
            Self::Cut => site.hosts["h1"].namespace.ip("link set u0 up").map(drop),
            Self::Unplug | Self::Deaf | Self::Mute => filter(site, &[]),
            Self::Segment => segment(site, "up"),
            Self::Down => site.hosts["h1"].namespace.ip("link set x0 up").map(drop),
            Self::Delete => join(site),
        }
    }
}

/// Gives h1 an interface on the segment.
fn join(site: &mut Site) -> Result<(), LabError> {
    let host = site.hosts["h1"].namespace.clone();
    let Some(outside) = site.outside.clone() else {
        return Ok(());
    };
    let link = LinkOptions::default();
    site.lab().link((&host, "x0"), (&outside, "e-h1"), link)?;
    let line = format!("link set e-h1 master {SEGMENT}");
    outside.ip(&line).map(drop)
}

/// The other end of h1's interface on the segment is set up or down.
fn segment(site: &Site, to: &str) -> Result<(), LabError> {
    let outside = site.outside.as_ref();
    let set = outside.map(|outside| outside.ip(&format!("link set e-h1 {to}")));
    set.transpose().map(drop)
}

/// How often h1 says, in some seconds, that it has the address of the NAT gateway, while h2 is the gateway. The router asks everybody again and again.
fn claims(
    site: &Site,
    router: &Namespace,
    connections: &mut Connections,
) -> Result<usize, LabError> {
    /// A late packet has brought it back after two seconds.
    const WATCHED: Duration = Duration::from_secs(4);
    let mac = site.hosts["h1"].namespace.mac("x0")?;
    let is_claim = |frame: &[u8]| {
        frame.len() >= 42
            && frame[12..14] == [8, 6]
            && frame[22..28] == mac
            && frame[28..32] == [203, 0, 113, 100]
    };
    let socket = RawSocket::open(router, SEGMENT)?;
    let (begun, mut claims, mut turns) = (Instant::now(), 0, 0);
    while begun.elapsed() < WATCHED {
        connections.turn();
        turns += 1;
        if turns % 20 == 0 {
            // It may be gone, or asked for already.
            let _ = router.ip(&format!("neigh delete 203.0.113.100 dev {SEGMENT}"));
        }
        let claim = socket.receive(Duration::from_millis(10), is_claim);
        claims += usize::from(claim.is_some());
    }
    Ok(claims)
}

/// The MAC that the segment knows the gateway by.
fn has_the_address(router: &Namespace, site: &Site, host: &str) -> bool {
    let mac = site.hosts[host].namespace.mac("x0").unwrap_or_default();
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let known = router.ip("neigh show 203.0.113.100").unwrap_or_default();
    known.contains(&mac)
}

/// What one fault did.
#[derive(Debug, Default)]
struct Round {
    silence: Duration,
    silence_of_return: Duration,
    lost: usize,
    mappings_lost: usize,
    /// How often the first said that it has an address that the second had.
    claims: usize,
}

/// The mappings of TCP connections that a host knows: inside and outside.
fn mappings(site: &Site, host: &str) -> Result<BTreeSet<[String; 2]>, LabError> {
    let text = site.node(host, &["nat", "mappings", "--limit", "65536"])?;
    let lines = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "6", inside, outside, _] = words[..] else {
            return None;
        };
        Some([inside.to_owned(), outside.to_owned()])
    });
    Ok(lines.collect())
}

/// Looks at frames that reach tenants who they are not for.
struct Watch {
    blue: Vec<RawSocket>,
    red: Vec<RawSocket>,
    /// Of the port that has the elastic IP.
    own: RawSocket,
    sender: UdpSocket,
}

/// Frames that tenants got.
#[derive(Debug, Default)]
struct Seen {
    /// Another's.
    leaked: usize,
    /// Its own.
    heard: usize,
}

impl Watch {
    fn open(site: &Site, router: &Namespace) -> Result<Self, LabError> {
        let open = |port: &str| RawSocket::open(&site.workloads[port].namespace, "eth0");
        let open_all = |ports: &[&str]| -> Result<Vec<RawSocket>, LabError> {
            ports.iter().map(|port| open(port)).collect()
        };
        let sender = router.enter(|| UdpSocket::bind((SERVER, 0)))?;
        Ok(Self {
            blue: open_all(&["blue-1", "blue-2", "blue-3", "blue-b"])?,
            // Its third port is the client of the connections, and has enough to do.
            red: open_all(&["red-1", "red-2", "red-b"])?,
            own: open("blue-3")?,
            sender: sender.map_err(LabError::io("a sender"))?,
        })
    }

    /// Sends to blue's elastic IP from outside, and counts, until it is told to stop.
    fn run(&self, over: &AtomicBool) -> Seen {
        let has = |frame: &[u8], mark: &[u8]| frame.windows(mark.len()).any(|part| part == mark);
        let of_red = |frame: &[u8]| has(frame, ONLY_RED);
        let of_blue = |frame: &[u8]| has(frame, ONLY_BLUE);
        let mut seen = Seen::default();
        while !over.load(Ordering::Relaxed) {
            // While no gateway host is there, nobody gets it.
            let _ = self.sender.send_to(ONLY_BLUE, ("203.0.113.13", 9));
            for socket in &self.blue {
                seen.leaked += usize::from(socket.receive(Duration::ZERO, of_red).is_some());
            }
            for socket in &self.red {
                seen.leaked += usize::from(socket.receive(Duration::ZERO, of_blue).is_some());
            }
            let own = self.own.receive(Duration::from_millis(5), of_blue);
            seen.heard += usize::from(own.is_some());
            thread::sleep(Duration::from_millis(2));
        }
        seen
    }
}

/// Watches the silence while something is done.
fn silent_during<T>(
    from: &Namespace,
    work: impl FnOnce() -> Result<T, LabError>,
) -> Result<(Duration, T), LabError> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let pinging = scope.spawn(|| longest_silence(from, &over));
        let done = work();
        over.store(true, Ordering::Relaxed);
        let silence = pinging.join().unwrap_or(Ok(Duration::MAX))?;
        Ok((silence, done?))
    })
}

fn round(
    site: &mut Site,
    router: &Namespace,
    (client, connections): (&Namespace, &mut Connections),
    fault: Fault,
) -> Result<Round, LabError> {
    wait_until("h1 is the gateway", BACK, || {
        has_the_address(router, site, "h1")
    })?;
    let before = connections.go_on(Instant::now());
    holds(
        &format!("all connections go on before: {before}"),
        before == 0,
    )?;
    let known = mappings(site, "h1")?;
    holds(
        "each connection has a mapping",
        known.len() >= connections.open.len(),
    )?;
    let missing = |site: &Site, host: &str| -> Result<usize, LabError> {
        Ok(known.difference(&mappings(site, host)?).count())
    };
    let (silence, (lost, missing_there)) = silent_during(client, || {
        fault.begin(site)?;
        let after = Instant::now() + Duration::from_millis(700);
        let lost = connections.go_on(after);
        wait_until("h2 is the gateway", SOON, || {
            has_the_address(router, site, "h2")
        })?;
        Ok((lost, missing(site, "h2")?))
    })?;
    let claims = if fault.is_cut() {
        claims(site, router, connections)?
    } else {
        0
    };
    let (silence_of_return, (lost_again, missing_here)) = silent_during(client, || {
        fault.end(site)?;
        wait_until("h1 is the gateway again", BACK, || {
            connections.turn();
            has_the_address(router, site, "h1")
        })?;
        let lost = connections.go_on(Instant::now());
        Ok((lost, missing(site, "h1")?))
    })?;
    Ok(Round {
        silence,
        silence_of_return,
        lost: lost + lost_again,
        mappings_lost: missing_there + missing_here,
        claims,
    })
}

#[test]
fn gateway_hosts_stand_in_for_each_other() {
    let rounds = setting("WEFT_GATEWAY_ROUNDS", 1);
    // The long form has the connections that are promised.
    let usual = if rounds == 1 { 100 } else { 1000 };
    let count = setting("WEFT_GATEWAY_CONNECTIONS", usual);
    let wanted = std::env::var("WEFT_GATEWAY_FAULTS").unwrap_or_default();
    let is_wanted = |fault: Fault| {
        let mut names = wanted.split(',');
        wanted.is_empty() || names.any(|name| name == format!("{fault:?}"))
    };
    let options = SiteOptions {
        externals: BTreeMap::from(["h1", "h2"].map(|host| (host.to_owned(), "x0".to_owned()))),
        ..SiteOptions::default()
    };
    let mut site = Site::start(Lab::new().unwrap(), &objects(), &options).unwrap();
    let router = site.outside.clone().unwrap();
    let mut report = serde_json::Map::new();
    let mut body = |site: &mut Site| -> Result<(), LabError> {
        router.ip(&format!("address add {SERVER}/24 dev {SEGMENT}"))?;
        let client = site.workloads["red-3"].namespace.clone();
        wait_until("the gateway works", SOON, || client.pings(SERVER, 1))?;
        let listener = router.enter(|| TcpListener::bind((SERVER, 9000)))?;
        let listener = listener.map_err(LabError::io("the server"))?;
        listener
            .set_nonblocking(true)
            .map_err(LabError::io("the server"))?;
        let over = AtomicBool::new(false);
        let watch = Watch::open(site, &router)?;
        thread::scope(|scope| {
            scope.spawn(|| serve(&listener, &over));
            let watching = scope.spawn(|| watch.run(&over));
            let mut run = |report: &mut serde_json::Map<_, _>| -> Result<(), LabError> {
                let mut connections = Connections::open(&client, count)?;
                for fault in FAULTS.into_iter().filter(|fault| is_wanted(*fault)) {
                    let mut worst = Round::default();
                    for _ in 0..rounds {
                        let seen = round(site, &router, (&client, &mut connections), fault)?;
                        println!("{fault:?}: {seen:?}");
                        worst.silence = worst.silence.max(seen.silence);
                        worst.silence_of_return =
                            worst.silence_of_return.max(seen.silence_of_return);
                        worst.lost += seen.lost;
                        worst.mappings_lost += seen.mappings_lost;
                        worst.claims += seen.claims;
                    }
                    let seconds = [worst.silence, worst.silence_of_return];
                    report.insert(
                        format!("{fault:?}"),
                        serde_json::json!({
                            "rounds": rounds,
                            "connections": count,
                            "lost": worst.lost,
                            "mappings_lost": worst.mappings_lost,
                            "claims": worst.claims,
                            "silence_ms": seconds[0].as_millis() as u64,
                            "silence_of_return_ms": seconds[1].as_millis() as u64,
                        }),
                    );
                    let none_lost =
                        worst.lost == 0 && worst.mappings_lost == 0 && worst.claims == 0;
                    let is_kept = none_lost && seconds.iter().all(|it| *it <= SILENCE);
                    holds(&format!("the promise after {fault:?}: {worst:?}"), is_kept)?;
                }
                Ok(())
            };
            let result = run(&mut report);
            over.store(true, Ordering::Relaxed);
            let seen = watching.join().unwrap();
            println!("{seen:?}");
            report.insert("leaked".into(), seen.leaked.into());
            report.insert("heard".into(), seen.heard.into());
            result?;
            holds(
                &format!("each tenant gets its own frames and no other's: {seen:?}"),
                seen.leaked == 0 && seen.heard > 100,
            )
        })
    };
    let result = body(&mut site);
    if let Ok(file) = std::env::var("WEFT_GATEWAY_REPORT") {
        std::fs::write(file, serde_json::to_vec_pretty(&report).unwrap()).unwrap();
    }
    if let Err(error) = result {
        panic!("{}", site.explain(error));
    }
}
