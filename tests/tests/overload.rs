//! One tenant floods, another works on the same hosts and the same workers: what the other's traffic loses and how much longer it takes, and that
//! no session of the other gives way. `WEFT_OVERLOAD_SECONDS` says for how long each flood goes on, `WEFT_OVERLOAD_REPORT` where the figures go.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use weft_tests::{
    Lab, LabError, RawSocket, Site, SiteOptions,
    load::flood,
    tenants,
    traffic::{Pinger, Tally},
};

const VICTIM: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 12);

fn time() -> Duration {
    let given = std::env::var("WEFT_OVERLOAD_SECONDS").ok();
    Duration::from_secs(given.map_or(2, |text| text.parse().unwrap()))
}

/// Different frames of the attacker: from its own addresses, for it is no use to send others.
fn frames(attack: &str) -> Vec<Vec<u8>> {
    let own = [2, 0, 0, 0, 1, 0x11];
    let peer = [2, 0, 0, 0, 1, 0x12];
    let router = [2, 0x77, 0x65, 0x66, 0x74, 1];
    let frame = |number: u32| {
        let (high, low) = ((number >> 8) as u8, number as u8);
        let port = 1024 + (number % 60_000) as u16;
        let mut frame = Vec::new();
        match attack {
            "SYN" => PacketBuilder::ethernet2(own, peer)
                .ipv4([10, 0, 1, 11], [10, 0, 1, 12], 64)
                .tcp(port, 1 + (number % 1000) as u16, number, 64_000)
                .syn()
                .write(&mut frame, &[])
                .unwrap(),
            "UDP to nobody" => PacketBuilder::ethernet2(own, router)
                .ipv4([10, 0, 1, 11], [10, 0, 1 + high % 2, low], 64)
                .udp(port, 53)
                .write(&mut frame, &[0; 18])
                .unwrap(),
            _ => PacketBuilder::ethernet2(own, peer)
                .ipv4([10, 0, 1, 11], [10, 0, 1, 12], 64)
                .icmpv4_echo_request(number as u16, high.into())
                .write(&mut frame, &[0; 18])
                .unwrap(),
        }
        frame
    };
    (0..40_000).map(frame).collect()
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
    let site = Site::start(Lab::new().unwrap(), &tenants(2).unwrap(), &options).unwrap();
    let attacker = &site.workloads["red-1"].namespace;
    let mut rows = Vec::new();
    let mut body = || -> Result<(), LabError> {
        let calm = watch(&site, time())?;
        for attack in ["SYN", "UDP to nobody", "pings"] {
            let frames = frames(attack);
            let socket = RawSocket::open_for_load(attacker, "eth0")?;
            let stop = AtomicBool::new(false);
            let (met, sent) = std::thread::scope(|scope| {
                let begun = Instant::now();
                let flooding = scope.spawn(|| flood(&socket, &frames, &stop));
                let met = watch(&site, time());
                stop.store(true, Ordering::Relaxed);
                let sent = flooding.join().unwrap();
                met.map(|met| (met, sent as f64 / begun.elapsed().as_secs_f64()))
            })?;
            rows.push(serde_json::json!({
                "attack": attack,
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
