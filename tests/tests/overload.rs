//! One tenant floods, and another works on the same hosts and workers: how much traffic the other loses, how much its latency grows, and
//! that none of its sessions is evicted. `WEFT_OVERLOAD_SECONDS` sets the duration of each flood, `WEFT_OVERLOAD_REPORT` the file for the
//! figures.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use weft_proto::v1::{Objects, Port};
use weft_tests::{
    Lab, LabError, Namespace, RawSocket, Site, SiteOptions,
    load::{self, Round, Station},
    site::UPLINK,
    tenants,
    traffic::{Pinger, Tally},
};

/// Frames that a source sends before it begins again: more than its flows may have sessions, lest they be known by then.
const FRAMES: u32 = 480_000;

const VICTIM: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 12);

fn time() -> Duration {
    let given = std::env::var("WEFT_OVERLOAD_SECONDS").ok();
    Duration::from_secs(given.map_or(2, |text| text.parse().unwrap()))
}

/// Ports of the attacker, with addresses that the victim has too: on the victim's host, on the host that the victim talks to, on the third.
const OWN: Station = ([2, 0, 0, 0, 1, 0x11], [10, 0, 1, 11]);
const PEER: Station = ([2, 0, 0, 0, 1, 0x12], [10, 0, 1, 12]);
const FAR: Station = ([2, 0, 0, 0, 1, 0x13], [10, 0, 1, 13]);
const ROUTER: [u8; 6] = [2, 0x77, 0x65, 0x66, 0x74, 1];

/// More ports of the attacker on the victim's host, by the last byte of their addresses.
const OTHERS: std::ops::RangeInclusive<u8> = 0x14..=0x16;

/// Who floods, each with what.
struct Flood {
    name: &'static str,
    sources: Vec<Source>,
}

struct Source {
    from: Namespace,
    interface: &'static str,
    frames: Vec<Vec<u8>>,
}

impl Source {
    fn new(from: &Namespace, interface: &'static str, frame: &dyn Fn(u32) -> Vec<u8>) -> Self {
        Self {
            from: from.clone(),
            interface,
            frames: (0..FRAMES).map(frame).collect(),
        }
    }
}

impl Flood {
    /// Sends until it is told to stop, by each source in turn, and says how many a second. One thread, whatever the number of sources: the victim is to
    /// feel what they send, not that they take the processors which the lab shares.
    fn run(&self, stop: &AtomicBool) -> Result<f64, LabError> {
        let open = |source: &Source| RawSocket::open_for_load(&source.from, source.interface);
        let sockets = self
            .sources
            .iter()
            .map(open)
            .collect::<Result<Vec<_>, _>>()?;
        let mut rounds: Vec<_> = self
            .sources
            .iter()
            .map(|source| Round::new(&source.frames))
            .collect();
        let (begun, mut sent) = (Instant::now(), 0);
        while !stop.load(Ordering::Relaxed) {
            for (round, socket) in rounds.iter_mut().zip(&sockets) {
                sent += round.send(socket);
            }
        }
        Ok(sent as f64 / begun.elapsed().as_secs_f64())
    }
}

/// Two tenants on three hosts, of which one has more ports on the first.
fn objects() -> Objects {
    let mut objects = tenants(3).unwrap();
    let first = |port: &&Port| port.id == "red-1";
    let first = objects.ports.iter().find(first).unwrap().clone();
    for last in OTHERS {
        let mut port = first.clone();
        port.id = format!("red-1{last:x}");
        port.mac = format!("02:00:00:00:01:{last:x}");
        port.addresses = vec![format!("10.0.1.{last:x}")];
        port.device.as_mut().unwrap().name = format!("p-{}", port.id);
        objects.ports.push(port);
    }
    objects
}

/// The beginning of another connection with every number.
fn syn(from: Station, to: Station, number: u32) -> Vec<u8> {
    let (port, other) = (
        1024 + (number % 60_000) as u16,
        1 + (number / 60_000) as u16,
    );
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from.0, to.0)
        .ipv4(from.1, to.1, 64)
        .tcp(port, other, number, 64_000)
        .syn()
        .write(&mut frame, &[])
        .unwrap();
    frame
}

/// A datagram to an address that may have nobody.
fn datagram(number: u32) -> Vec<u8> {
    let (high, low) = ((number >> 8) as u8, number as u8);
    let port = 1024 + (number % 60_000) as u16;
    load::udp(
        (ROUTER, OWN.0),
        (OWN.1, [10, 0, 1 + high % 2, low]),
        (port, 53),
        18,
    )
}

fn echo(number: u32) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(OWN.0, PEER.0)
        .ipv4(OWN.1, PEER.1, 64)
        .icmpv4_echo_request(number as u16, (number >> 8) as u16)
        .write(&mut frame, &[0; 18])
        .unwrap();
    frame
}

/// A frame in a tunnel (VXLAN) of the attacker's VPC to the victim's host.
fn tunnelled(macs: ([u8; 6], [u8; 6]), from: [u8; 4], number: u32, inner: &[u8]) -> Vec<u8> {
    let port = 49_152 + (number % 16_384) as u16;
    let mut frame = load::udp(macs, (from, [192, 0, 2, 1]), (port, 4789), 8 + inner.len());
    frame[42..50].copy_from_slice(&[8, 0, 0, 0, 0, 0, 200, 0]);
    frame[50..].copy_from_slice(inner);
    frame
}

/// The attacker's own ports can use no addresses but their own; a host that was taken over can use any tunnel address, and every port of its own.
fn floods(site: &Site) -> Vec<Flood> {
    let port = |id: &str| &site.workloads[id].namespace;
    let host = |id: &str| &site.hosts[id].namespace;
    let uplink = |id: &str| host(id).mac(UPLINK).unwrap();
    let macs = (uplink("h1"), uplink("h3"));
    let by_port = |name, frame: &dyn Fn(u32) -> Vec<u8>| Flood {
        name,
        sources: vec![Source::new(port("red-1"), "eth0", frame)],
    };
    let by_host = |name, from: [u8; 4]| {
        let frame = move |n| tunnelled(macs, from, n, &syn(FAR, OWN, n));
        Flood {
            name,
            sources: vec![Source::new(host("h3"), UPLINK, &frame)],
        }
    };
    let each = OTHERS.map(|last| {
        let from = ([2, 0, 0, 0, 1, last], [10, 0, 1, 10 + (last & 0xf)]);
        let port = port(&format!("red-1{last:x}"));
        Source::new(port, "eth0", &|n| syn(from, PEER, n))
    });
    vec![
        by_port("TCP SYN", &|n| syn(OWN, PEER, n)),
        Flood {
            name: "TCP SYN from three ports",
            sources: each.collect(),
        },
        by_port("UDP to addresses that nobody has", &datagram),
        by_port("pings", &echo),
        by_host("TCP SYN from another host", [192, 0, 2, 3]),
        by_host("tunnels of no known host", [192, 0, 2, 77]),
    ]
}

/// What the victim's traffic met with over a while.
struct Met {
    tally: Tally,
    /// Round trips in microseconds, sorted; pings without an answer count as the longest wait.
    trips: Vec<f64>,
}

impl Met {
    fn quantile(&self, part: f64) -> f64 {
        let at = ((self.trips.len() - 1) as f64 * part) as usize;
        self.trips[at]
    }

    fn loss(&self) -> f64 {
        100.0 * self.tally.lost() as f64 / self.tally.sent.max(1) as f64
    }
}

fn watch(site: &Site, time: Duration) -> Result<Met, LabError> {
    let stream = site.stream("blue-1", "blue-2", 9, 1000)?;
    let mut pinger = Pinger::new(&site.workloads["blue-1"].namespace, VICTIM)?;
    let (begun, mut trips) = (Instant::now(), Vec::new());
    while begun.elapsed() < time {
        let asked = Instant::now();
        pinger.ping(Duration::from_millis(200))?;
        trips.push(asked.elapsed().as_secs_f64() * 1e6);
        std::thread::sleep(Duration::from_millis(2));
    }
    trips.sort_by(f64::total_cmp);
    Ok(Met {
        tally: stream.end(),
        trips,
    })
}

#[test]
fn a_tenant_that_floods_floods_itself() {
    let options = SiteOptions {
        // A quarter of the table for a tenant, an eighth for a port.
        daemon: "sessions.capacity = 65536\nsessions.per_vpc = 16384\nsessions.per_port = 8192"
            .into(),
        ..SiteOptions::default()
    };
    let site = Site::start(Lab::new().unwrap(), &objects(), &options).unwrap();
    let mut rows = Vec::new();
    let mut body = || -> Result<(), LabError> {
        let calm = watch(&site, time())?;
        for attack in floods(&site) {
            let stop = AtomicBool::new(false);
            let (met, sent) = std::thread::scope(|scope| {
                let flooding = scope.spawn(|| attack.run(&stop));
                let met = watch(&site, time());
                stop.store(true, Ordering::Relaxed);
                let sent = flooding.join().unwrap()?;
                met.map(|met| (met, sent))
            })?;
            rows.push(serde_json::json!({
                "attack": attack.name,
                "packets_per_second": sent,
                "victim_loss_percent": met.loss(),
                "victim_loss_percent_before": calm.loss(),
                "victim_round_trip_us": met.quantile(0.5),
                "victim_round_trip_us_before": calm.quantile(0.5),
                "victim_round_trip_us_p99": met.quantile(0.99),
                "victim_round_trip_us_p99_before": calm.quantile(0.99),
            }));
            assert!(met.tally.received > 0, "the victim is heard");
        }
        let met = site.node("h1", &["drops"])?;
        for reason in ["flow_limit", "session_port_budget", "unknown_vtep"] {
            assert!(met.contains(reason), "no {reason}: {met}");
        }
        for host in ["h1", "h2"] {
            let drops = site.node(host, &["drops"])?;
            let of_victim = |line: &&str| line.starts_with("blue") && line.contains("session_");
            assert_eq!(drops.lines().find(of_victim), None, "{drops}");
        }
        // The flood is over, and everything is as it was.
        assert!(site.pings("blue-1", "blue-2"));
        site.wait_for_frames()
    };
    if let Err(error) = body() {
        panic!("{}", site.explain(error));
    }
    let report = serde_json::json!({ "overload": rows });
    println!("{report}");
    if let Ok(path) = std::env::var("WEFT_OVERLOAD_REPORT") {
        std::fs::write(path, format!("{report}\n")).unwrap();
    }
}
