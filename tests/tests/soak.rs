//! Mixed traffic of two tenants while the configuration changes ten times a second: traffic that policy admits loses nothing, nothing
//! crosses tenants, and no packet buffer is lost. `WEFT_SOAK_SECONDS` makes it longer.

#![allow(clippy::unwrap_used)]

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use weft_proto::v1::{AclRule, NetworkAcl, Objects, Route, RouteTable, SecurityRule};
use weft_tests::{
    Capture, Lab, LabError, Namespace, Site, SiteOptions, tenants,
    traffic::{NumberedStream, Pinger, Tally, tcp_exchange},
};

/// Time between changes.
const PACE: Duration = Duration::from_millis(100);

fn seconds() -> u64 {
    let given = std::env::var("WEFT_SOAK_SECONDS").ok();
    given.map_or(8, |text| text.parse().unwrap())
}

/// One change of what is not blue's stream: rules of red, equivalent rules of blue, routes, ACLs, encapsulation, ports.
fn turn(objects: &mut Objects, round: u64) {
    let rule = |protocol: &str, port: Option<u32>| SecurityRule {
        direction: "ingress".into(),
        protocol: protocol.into(),
        port_min: port,
        port_max: port,
        ..SecurityRule::default()
    };
    let group = |objects: &mut Objects, id: &str, rules: Vec<SecurityRule>| {
        let groups = objects.security_groups.iter_mut();
        groups
            .filter(|group| group.id == id)
            .for_each(|group| group.rules = rules.clone());
    };
    let even = (round / 6).is_multiple_of(2);
    match round % 6 {
        // Red opens and shuts; its traffic suffers, and may.
        0 => group(
            objects,
            "red",
            if even {
                vec![rule("icmp", None)]
            } else {
                vec![rule("any", None)]
            },
        ),
        // Blue's rules become others that say the same.
        1 => group(
            objects,
            "blue",
            if even {
                ["udp", "tcp", "icmp", "icmpv6"]
                    .map(|protocol| rule(protocol, None))
                    .to_vec()
            } else {
                vec![rule("any", None)]
            },
        ),
        2 => {
            objects.route_tables = vec![RouteTable {
                id: "blue".into(),
                vpc: "blue".into(),
                routes: (0..round % 50)
                    .map(|n| Route {
                        prefix: format!("198.51.{n}.0/24"),
                        blackhole: true,
                        ..Route::default()
                    })
                    .collect(),
                ..RouteTable::default()
            }];
            let subnets = objects.subnets.iter_mut();
            subnets
                .filter(|subnet| subnet.id == "blue-a")
                .for_each(|subnet| subnet.route_table = "blue".into());
        }
        3 => {
            objects.network_acls.clear();
            if even {
                let rule = |direction: &str| AclRule {
                    number: 10,
                    direction: direction.into(),
                    action: "allow".into(),
                    ..AclRule::default()
                };
                objects.network_acls.push(NetworkAcl {
                    id: "open".into(),
                    vpc: "blue".into(),
                    rules: vec![rule("ingress"), rule("egress")],
                    ..NetworkAcl::default()
                });
            }
            let subnets = objects.subnets.iter_mut();
            subnets
                .filter(|subnet| subnet.vpc == "blue")
                .for_each(|subnet| {
                    subnet.network_acl = if even { "open".into() } else { String::new() };
                });
        }
        4 => {
            let word = if even { "gre" } else { "vxlan" };
            objects.hosts[1].encapsulation = word.into();
        }
        // A port of red without traffic comes and goes.
        _ => {
            let gone = objects.ports.iter().position(|port| port.id == "red-x");
            if let Some(at) = gone {
                objects.ports.remove(at);
            } else {
                let mut port = objects
                    .ports
                    .iter()
                    .find(|port| port.id == "red-b")
                    .unwrap()
                    .clone();
                port.id = "red-x".into();
                port.mac = "02:00:00:00:02:99".into();
                port.addresses = vec!["10.0.2.99".into()];
                port.device.as_mut().unwrap().name = "p-none".into();
                objects.ports.push(port);
            }
        }
    }
}

/// Pings, one about every 10 ms and a new identifier after 50, until it is stopped: sent and answered. An answer may take its time: the
/// machine may have other things to do, and only what never comes is lost.
fn pings(from: &Namespace, to: Ipv4Addr, stop: &AtomicBool) -> Result<(u64, u64), LabError> {
    let (mut sent, mut answered) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let mut pinger = Pinger::new(from, to)?;
        for _ in 0..50 {
            sent += 1;
            answered += u64::from(pinger.ping(Duration::from_secs(5))?);
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok((sent, answered))
}

struct Traffic {
    changes: u64,
    blue: Vec<Tally>,
    red: Tally,
    pings: (u64, u64),
    exchanges: u64,
}

fn run(site: &mut Site) -> Result<Traffic, LabError> {
    let blue = [
        site.stream("blue-1", "blue-2", 1001, 2000)?,
        site.stream("blue-b", "blue-1", 1001, 500)?,
    ];
    let red = site.stream("red-1", "red-2", 2002, 500)?;
    let (near, far) = (
        site.workloads["blue-1"].namespace.clone(),
        site.workloads["blue-2"].namespace.clone(),
    );
    let service = site.service("blue-2", true, 5201)?;
    let (stop, exchanges) = (AtomicBool::new(false), AtomicU64::new(0));
    let deadline = Instant::now() + Duration::from_secs(seconds());
    let mut changes = 0;
    let (changed, pinged, exchanged) = thread::scope(|scope| {
        let pinging = scope.spawn(|| pings(&near, Ipv4Addr::new(10, 0, 2, 20), &stop));
        let exchanging = scope.spawn(|| -> Result<(), LabError> {
            while !stop.load(Ordering::Relaxed) {
                tcp_exchange(&near, &far, service, 300_000)?;
                exchanges.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let changed = (|| {
            let mut next = Instant::now();
            while Instant::now() < deadline {
                site.change(|objects| turn(objects, changes))?;
                changes += 1;
                next = Instant::now().max(next + PACE);
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        (changed, pinging.join().unwrap(), exchanging.join().unwrap())
    });
    changed.and(exchanged)?;
    Ok(Traffic {
        changes,
        blue: blue.into_iter().map(NumberedStream::end).collect(),
        red: red.end(),
        pings: pinged?,
        exchanges: exchanges.load(Ordering::Relaxed),
    })
}

#[test]
fn mixed_traffic_under_constant_change() {
    let objects = tenants(2).unwrap();
    let mut site = Site::start(Lab::new().unwrap(), &objects, &SiteOptions::default()).unwrap();
    let record = |port: &str, filter: &str| {
        Capture::start(&site.workloads[port].namespace, "eth0", filter).unwrap()
    };
    // What must not be seen: a datagram of the other tenant.
    let captures = [
        ("blue-1", "udp port 2002"),
        ("blue-2", "udp port 2002"),
        ("blue-b", "udp port 2002"),
        ("red-1", "udp port 1001"),
        ("red-2", "udp port 1001"),
        ("red-b", "udp port 1001"),
    ]
    .map(|(port, filter)| (port, record(port, filter)));
    let traffic = run(&mut site).unwrap_or_else(|error| panic!("{}", site.explain(error)));
    let drops = || {
        ["h1", "h2"]
            .map(|host| site.node(host, &["drops"]).unwrap_or_default())
            .join("\n")
    };
    for tally in &traffic.blue {
        assert_eq!(
            (tally.lost(), tally.twice),
            (0, 0),
            "{tally:?}\n{}",
            drops()
        );
        assert!(tally.received > 300 * seconds(), "{tally:?}");
    }
    assert_eq!(traffic.pings.0, traffic.pings.1, "pings\n{}", drops());
    assert!(traffic.exchanges > 0);
    let Tally {
        sent,
        received,
        twice,
    } = traffic.red;
    assert!(
        received > 0 && received < sent && twice == 0,
        "policy stops red at times: {received} of {sent}"
    );
    assert!(traffic.changes > seconds(), "{} changes", traffic.changes);
    for (port, mut capture) in captures {
        capture.stop().unwrap();
        let seen = capture.decode("", &["frame.number"]).unwrap();
        assert_eq!(seen.len(), 0, "frames of the other tenant at {port}");
    }
    site.wait_for_frames()
        .unwrap_or_else(|error| panic!("{}", site.explain(error)));
    println!(
        "{} changes, {:?}, pings {}, exchanges {}",
        traffic.changes, traffic.blue, traffic.pings.0, traffic.exchanges
    );
}
