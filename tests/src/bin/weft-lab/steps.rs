//! The steps of the demonstration. Each restores the site when it is done.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use weft_proto::v1::{AclRule, NetworkAcl, NextHop, Objects, Route, SecurityRule};
use weft_tests::{RawSocket, Site, load, wait_until};

use crate::topology::MATRIX;

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) pass: bool,
    pub(crate) figure: f64,
    pub(crate) unit: String,
}

impl Line {
    pub(crate) fn new(name: &str, pass: bool, figure: f64, unit: &str) -> Self {
        Self {
            name: name.to_owned(),
            pass,
            figure,
            unit: unit.to_owned(),
        }
    }

    pub(crate) fn pass(name: &str, figure: f64, unit: &str) -> Self {
        Self::new(name, true, figure, unit)
    }

    pub(crate) fn fail(name: &str, error: &anyhow::Error) -> Self {
        Self::new(name, false, 0.0, &format!("{error:#}"))
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::json!({ "name": self.name, "pass": self.pass, "figure": self.figure, "unit": self.unit })
    }
}

pub(crate) type Step = fn(&mut Site) -> anyhow::Result<Vec<Line>>;

/// Every step up to those with the outside, in order.
pub(crate) const STEPS: &[(&str, Step)] = &[
    ("pings within each tenant", pings),
    ("isolation of the tenants", isolation),
    ("a security group opens and shuts", security_group),
    ("an ACL denies", acl),
    ("the longest prefix decides", longest_prefix),
    ("ECMP over three next hops", ecmp),
    ("TCP throughput", throughput),
    ("small packets", small_packets),
    ("the same over GRE", gre),
];

/// Those after them.
pub(crate) const LAST: &[(&str, Step)] = &[
    ("the controller killed", headless),
    ("no packet buffer lost", buffers),
];

const A1: ([u8; 6], [u8; 4]) = ([2, 0, 0, 0, 1, 1], [10, 0, 1, 11]);
const A2: ([u8; 6], [u8; 4]) = ([2, 0, 0, 0, 1, 2], [10, 0, 1, 12]);
const ROUTER: [u8; 6] = [0x02, 0x77, 0x65, 0x66, 0x74, 0x01];

fn matrix(site: &Site, tenant: &str) -> (usize, usize) {
    let pairs: Vec<(String, String)> = MATRIX
        .iter()
        .flat_map(|from| {
            MATRIX
                .iter()
                .filter(move |to| *to != from)
                .map(move |to| (format!("{tenant}-{from}"), format!("{tenant}-{to}")))
        })
        .collect();
    let answered = std::thread::scope(|scope| {
        let tries: Vec<_> = pairs
            .iter()
            .map(|(from, to)| scope.spawn(|| site.pings(from, to)))
            .collect();
        tries
            .into_iter()
            .map(|pinging| pinging.join().unwrap_or(false))
            .filter(|answered| *answered)
            .count()
    });
    (answered, pairs.len())
}

pub(crate) fn ping_lines(site: &Site, over: &str) -> Vec<Line> {
    ["blue", "red"]
        .iter()
        .map(|tenant| {
            let (answered, pairs) = matrix(site, tenant);
            let unit = format!("of {pairs} pairs answer, IPv4 and IPv6");
            Line::new(
                &format!("ping matrix of {tenant}{over}"),
                answered == pairs,
                answered as f64,
                &unit,
            )
        })
        .collect()
}

pub(crate) fn pings(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let mut lines = ping_lines(site, "");
    let gateway = site.reaches("blue-a1", "10.0.1.1", 3) && site.reaches("blue-a1", "fd00:1::1", 3);
    lines.push(Line::new(
        "gateway answers",
        gateway,
        f64::from(u8::from(gateway)) * 2.0,
        "of 2 families",
    ));
    Ok(lines)
}

/// Frames that hold the mark, among all that a socket has seen so far. With `whole`, only those that were sent so, and not the ICMP errors
/// that quote them.
fn marked(socket: &RawSocket, mark: &[u8], whole: bool) -> usize {
    let mut count = 0;
    while socket
        .receive(Duration::from_millis(50), |frame| {
            let holds = frame.windows(mark.len()).any(|window| window == mark);
            holds && !(whole && frame[23] != 17)
        })
        .is_some()
    {
        count += 1;
    }
    count
}

/// Each tenant sends frames that only it can know; they arrive within it, and are never seen in the other.
fn isolation(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    const FRAMES: usize = 200;
    let mut lines = Vec::new();
    for (tenant, other) in [("blue", "red"), ("red", "blue")] {
        let mark = format!("only for {tenant}");
        let listen = |tenant: &str| -> anyhow::Result<Vec<RawSocket>> {
            let ports = MATRIX
                .iter()
                .map(|port| &site.workloads[&format!("{tenant}-{port}")]);
            ports
                .map(|workload| Ok(RawSocket::open(&workload.namespace, "eth0")?))
                .collect()
        };
        let (own, foreign) = (listen(tenant)?, listen(other)?);
        let sender = RawSocket::open(&site.workloads[&format!("{tenant}-a1")].namespace, "eth0")?;
        for number in 0..FRAMES as u16 {
            let mut frame = load::udp((A2.0, A1.0), (A1.1, A2.1), (2000 + number, 9), 64);
            frame[60..60 + mark.len()].copy_from_slice(mark.as_bytes());
            sender.send(&frame)?;
        }
        let seen: usize = own
            .iter()
            .map(|socket| marked(socket, mark.as_bytes(), true))
            .sum();
        let leaked: usize = foreign
            .iter()
            .map(|socket| marked(socket, mark.as_bytes(), false))
            .sum();
        lines.push(Line::new(
            &format!("{tenant} hears itself"),
            seen == FRAMES,
            seen as f64,
            &format!("of {FRAMES} marked frames"),
        ));
        lines.push(Line::new(
            &format!("isolation of {tenant} from {other}"),
            leaked == 0,
            leaked as f64,
            "of its frames seen in the other tenant",
        ));
    }
    Ok(lines)
}

/// A datagram service in one workload and a client in another: does a datagram get through, and when does that change?
pub(crate) struct Probe {
    client: UdpSocket,
    server: UdpSocket,
    number: u64,
}

impl Probe {
    pub(crate) fn new(site: &Site, from: &str, to: &str, port: u16) -> anyhow::Result<Self> {
        let bind = |workload: &str, port: u16| -> anyhow::Result<UdpSocket> {
            Ok(site.workloads[workload]
                .namespace
                .enter(|| UdpSocket::bind(("0.0.0.0", port)))??)
        };
        let (client, server) = (bind(from, 0)?, bind(to, port)?);
        let address = site
            .address(to, false)
            .context("the port has no IPv4 address")?;
        client.connect(SocketAddr::new(address, port))?;
        server.set_read_timeout(Some(Duration::from_millis(2)))?;
        Ok(Self {
            client,
            server,
            number: 0,
        })
    }

    /// Sends one datagram and looks whether it comes.
    pub(crate) fn passes(&mut self) -> bool {
        self.number += 1;
        let mut buffer = [0; 8];
        // An ICMP error about an earlier datagram shows here; the next try is a new one.
        let _ = self.client.send(&self.number.to_be_bytes());
        while self.server.recv(&mut buffer).is_ok() {
            if u64::from_be_bytes(buffer) == self.number {
                return true;
            }
        }
        false
    }

    /// Tries until the answer is as wanted; the time that took.
    pub(crate) fn until(&mut self, wanted: bool, begun: Instant) -> anyhow::Result<Duration> {
        while self.passes() != wanted {
            ensure!(begun.elapsed() < Duration::from_secs(5), "not within 5 s");
        }
        Ok(begun.elapsed())
    }
}

pub(crate) fn group<'o>(
    objects: &'o mut Objects,
    id: &str,
) -> anyhow::Result<&'o mut weft_proto::v1::SecurityGroup> {
    objects
        .security_groups
        .iter_mut()
        .find(|group| group.id == id)
        .context("the group is gone")
}

/// Opens UDP port 4000 of blue, or shuts it.
pub(crate) fn set_open(site: &mut Site, open: bool) -> anyhow::Result<()> {
    let rule = SecurityRule {
        direction: "ingress".into(),
        protocol: "udp".into(),
        port_min: Some(4000),
        port_max: Some(4000),
        ..SecurityRule::default()
    };
    site.change(|objects| {
        if let Ok(group) = group(objects, "blue") {
            if open {
                group.rules.push(rule);
            } else {
                group.rules.retain(|other| *other != rule);
            }
        }
    })?;
    Ok(())
}

fn security_group(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let mut probe = Probe::new(site, "blue-a1", "blue-a2", 4000)?;
    ensure!(!probe.passes(), "shut at first");
    let mut lines = Vec::new();
    // The time counts from the call of weftctl to the first packet that the change is true for.
    for (name, open) in [
        ("group opens a port", true),
        ("group shuts it, the flow with it", false),
    ] {
        let begun = Instant::now();
        set_open(site, open)?;
        let time = probe.until(open, begun)?;
        lines.push(Line::pass(
            name,
            time.as_secs_f64() * 1e3,
            "ms from the command to the first packet under the new rule",
        ));
    }
    lines.push(effect(site)?);
    Ok(lines)
}

/// How long the last change took on the slowest host.
pub(crate) fn effect(site: &Site) -> anyhow::Result<Line> {
    let hosts: serde_json::Value = serde_json::from_str(&site.ctl(&["hosts", "-o", "json"])?)?;
    let slowest = hosts["hosts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|host| host["effect_microseconds"].as_f64())
        .fold(0.0, f64::max);
    Ok(Line::pass(
        "change takes effect on a host",
        slowest / 1e3,
        "ms from receipt to effect, the slowest host",
    ))
}

pub(crate) fn acl(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let reaches = |site: &Site| site.reaches("blue-a1", "10.0.2.12", 1);
    ensure!(reaches(site), "reachable at first");
    let rule = |number: u32, direction: &str, action: &str, cidr: &str| AclRule {
        number,
        direction: direction.into(),
        action: action.into(),
        cidr: cidr.into(),
        ..AclRule::default()
    };
    site.change(|objects| {
        let rules = vec![
            rule(10, "ingress", "deny", "10.0.1.11/32"),
            rule(20, "ingress", "allow", ""),
            rule(10, "egress", "allow", ""),
        ];
        objects.network_acls.push(NetworkAcl {
            id: "no-a1".into(),
            vpc: "blue".into(),
            rules,
            ..NetworkAcl::default()
        });
        if let Some(subnet) = objects
            .subnets
            .iter_mut()
            .find(|subnet| subnet.id == "blue-b")
        {
            subnet.network_acl = "no-a1".into();
        }
    })?;
    let (denied, others) = (!reaches(site), site.reaches("blue-a2", "10.0.2.12", 1));
    let drops = site.node_json("h2", &["drops"])?;
    let counted = drops["reasons"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|drop| drop["reason"] == "acl_denied");
    let packets: f64 = counted.filter_map(|drop| drop["packets"].as_f64()).sum();
    site.change(|objects| {
        objects.network_acls.clear();
        objects
            .subnets
            .iter_mut()
            .for_each(|subnet| subnet.network_acl.clear());
    })?;
    ensure!(reaches(site), "reachable again");
    Ok(vec![Line::new(
        "ACL denies one source, not others",
        denied && others && packets > 0.0,
        packets,
        "packets dropped as acl_denied",
    )])
}

fn set_routes(site: &mut Site, routes: Vec<Route>) -> anyhow::Result<()> {
    site.change(|objects| {
        if let Some(table) = objects
            .route_tables
            .iter_mut()
            .find(|table| table.id == "blue")
        {
            table.routes = routes;
        }
    })?;
    Ok(())
}

/// Sends a datagram of each of several flows from blue-a1 to an address, with source ports from 1024 on.
pub(crate) fn send_flows(site: &Site, address: [u8; 4], count: u16) -> anyhow::Result<()> {
    if let Some(guest) = site.guests.get("blue-a1") {
        let to = Ipv4Addr::from(address);
        guest.succeed(&format!(
            "/tools/weft-guest send {to}:9 1024 {count} {PAYLOAD}"
        ))?;
        return Ok(());
    }
    let sender = RawSocket::open(&site.workloads["blue-a1"].namespace, "eth0")?;
    for flow in 0..count {
        sender.send(&load::udp(
            (ROUTER, A1.0),
            (A1.1, address),
            (1024 + flow, 9),
            PAYLOAD.len(),
        ))?;
        if flow % 64 == 63 {
            // So that no queue on the way runs over.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(())
}

/// What flows carry.
const PAYLOAD: &str = "twenty-bytes-or-more";

/// Sends UDP flows from blue-a1 to an address behind next hops; returns which next hop each flow came out at.
fn flows(site: &Site, address: [u8; 4], count: u16) -> anyhow::Result<HashMap<u16, &'static str>> {
    let hops = ["blue-n1", "blue-n2", "blue-n3"];
    let sockets = hops.map(|hop| RawSocket::open(&site.workloads[hop].namespace, "eth0"));
    let sockets: Vec<RawSocket> = sockets.into_iter().collect::<Result<_, _>>()?;
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send_flows(site, address, count));
        let mut seen = HashMap::new();
        let deadline = Instant::now() + Duration::from_secs(10);
        while seen.len() < usize::from(count) && Instant::now() < deadline {
            let mut idle = true;
            for (hop, socket) in hops.iter().zip(&sockets) {
                while let Some(frame) = socket.receive(Duration::ZERO, |frame| {
                    frame.len() >= 62 && frame[30..34] == address
                }) {
                    idle = false;
                    seen.insert(u16::from_be_bytes([frame[34], frame[35]]) - 1024, *hop);
                }
            }
            if idle {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let sent = sending.join();
        sent.map_err(|_| anyhow::anyhow!("the sending thread panicked"))??;
        Ok(seen)
    })
}

pub(crate) fn longest_prefix(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let route = |prefix: &str, port: &str| Route {
        prefix: prefix.into(),
        port: port.into(),
        ..Route::default()
    };
    set_routes(
        site,
        vec![
            route("198.51.100.0/24", "blue-n1"),
            route("198.51.100.128/25", "blue-n2"),
            route("198.51.100.129/32", "blue-n3"),
        ],
    )?;
    let mut right = 0;
    for (last, hop) in [(1, "blue-n1"), (130, "blue-n2"), (129, "blue-n3")] {
        let seen = flows(site, [198, 51, 100, last], 10)?;
        right += seen.values().filter(|seen| **seen == hop).count();
    }
    set_routes(site, Vec::new())?;
    Ok(vec![Line::new(
        "longest prefix decides",
        right == 30,
        right as f64,
        "of 30 flows at the right next hop",
    )])
}

pub(crate) fn ecmp(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    const FLOWS: u16 = 1200;
    let routes = |hops: &[&str]| {
        let ecmp = hops
            .iter()
            .map(|hop| NextHop {
                port: (*hop).into(),
                ..NextHop::default()
            })
            .collect();
        vec![Route {
            prefix: "203.0.113.0/24".into(),
            ecmp,
            ..Route::default()
        }]
    };
    set_routes(site, routes(&["blue-n1", "blue-n2", "blue-n3"]))?;
    let before = flows(site, [203, 0, 113, 1], FLOWS)?;
    set_routes(site, routes(&["blue-n1", "blue-n3"]))?;
    let after = flows(site, [203, 0, 113, 1], FLOWS)?;
    set_routes(site, Vec::new())?;
    let share = |hop: &str| before.values().filter(|seen| **seen == hop).count();
    let (least, most) = ["blue-n1", "blue-n2", "blue-n3"]
        .iter()
        .map(|hop| share(hop))
        .fold((usize::MAX, 0), |(l, m), n| (l.min(n), m.max(n)));
    let complete = before.len() == usize::from(FLOWS) && after.len() == usize::from(FLOWS);
    let moved = before
        .iter()
        .filter(|(flow, hop)| **hop != "blue-n2" && after.get(flow) != Some(hop))
        .count();
    let orphans = share("blue-n2");
    Ok(vec![
        Line::new(
            "ECMP spread, least-used next hop",
            complete && least * 4 > usize::from(FLOWS),
            least as f64,
            &format!("of {FLOWS} flows; most-used {most}"),
        ),
        Line::new(
            "next hop removed: other flows moved",
            complete && moved == 0,
            moved as f64,
            &format!("flows; its own {orphans} moved"),
        ),
    ])
}

fn throughput(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (name, reverse) in [("TCP, h1 to h2", false), ("TCP, h2 to h1", true)] {
        let gigabits = iperf(site, reverse)?;
        lines.push(Line::new(
            name,
            gigabits > 0.1,
            gigabits,
            "Gbit/s, one stream (iperf3)",
        ));
    }
    Ok(lines)
}

fn iperf(site: &Site, reverse: bool) -> anyhow::Result<f64> {
    let (from, to) = (
        &site.workloads["blue-a1"].namespace,
        &site.workloads["blue-a2"].namespace,
    );
    Ok(load::tcp(from, (to, "10.0.1.12"), reverse, 3)?)
}

fn small_packets(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let frames = load::udp_flows((A2.0, A1.0), (A1.1, A2.1), 64, 18);
    let (from, to) = (
        &site.workloads["blue-a1"].namespace,
        &site.workloads["blue-a2"].namespace,
    );
    let rate = load::measure(
        (from, "eth0"),
        (to, "eth0"),
        &frames,
        Duration::from_secs(3),
    )?;
    let unit = format!(
        "million 60-byte packets/s delivered across two hosts; {:.2} offered",
        rate.offered / 1e6
    );
    Ok(vec![Line::new(
        "small packets",
        rate.arrived > 10_000.0,
        rate.arrived / 1e6,
        &unit,
    )])
}

/// Packets and bytes that have left by h1's uplink.
pub(crate) fn uplink(site: &Site) -> anyhow::Result<(f64, f64)> {
    let stats = site.node_json("h1", &["stats"])?;
    let ports = stats["ports"].as_array().context("no counters")?;
    let uplink = ports
        .iter()
        .find(|port| port["port"] == "uplink:u0")
        .context("no uplink")?;
    let count = |what: &str| uplink[what].as_f64().context("no such counter");
    Ok((count("tx_packets")?, count("tx_bytes")?))
}

/// Bytes that the tunnel adds to a packet, from the uplink's counters.
fn overhead(site: &Site) -> anyhow::Result<f64> {
    const FRAMES: u32 = 4000;
    let sender = RawSocket::open(&site.workloads["blue-a1"].namespace, "eth0")?;
    let frame = load::udp((A2.0, A1.0), (A1.1, A2.1), (3000, 9), 400);
    let before = uplink(site)?;
    for number in 0..FRAMES {
        sender.send(&frame)?;
        if number % 64 == 63 {
            // So that no queue on the way runs over.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let mut after = before;
    wait_until("the frames have left", Duration::from_secs(5), || {
        after = uplink(site).unwrap_or(before);
        after.0 - before.0 >= f64::from(FRAMES)
    })?;
    // A few other packets are among them, such as probes of gateway hosts; their share of the mean is small.
    Ok((after.1 - before.1) / (after.0 - before.0) - frame.len() as f64)
}

pub(crate) fn set_encapsulation(site: &mut Site, word: &str) -> anyhow::Result<()> {
    site.change(|objects| {
        objects
            .hosts
            .iter_mut()
            .for_each(|host| host.encapsulation = word.into());
    })?;
    Ok(())
}

fn gre(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    set_encapsulation(site, "gre")?;
    let mut lines = ping_lines(site, " over GRE");
    let overhead = overhead(site)?;
    let name = "outer header over GRE";
    lines.push(Line::new(
        name,
        (overhead - 42.0).abs() < 1.0,
        overhead,
        "bytes (Ethernet, IPv4, GRE with key); 50 over VXLAN",
    ));
    let gigabits = iperf(site, false)?;
    lines.push(Line::new(
        "TCP over GRE, h1 to h2",
        gigabits > 0.1,
        gigabits,
        "Gbit/s, one stream (iperf3)",
    ));
    set_encapsulation(site, "vxlan")?;
    Ok(lines)
}

pub(crate) fn headless(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    const PINGS: &str = "100";
    let text = std::thread::scope(|scope| {
        let line = ["ping", "-q", "-n", "-i", "0.02", "-c", PINGS, "10.0.1.12"];
        let (guests, workloads) = (&site.guests, &site.workloads);
        let pinging = scope.spawn(move || match guests.get("blue-a1") {
            Some(guest) => guest.succeed(&format!("/tools/{}", line.join(" "))),
            None => workloads["blue-a1"].namespace.run(&line),
        });
        if let Some(controller) = &site.controller {
            controller.signal(9);
        }
        site.controller = None;
        pinging
            .join()
            .map_err(|_| anyhow::anyhow!("the pinging thread panicked"))?
            .map_err(anyhow::Error::from)
    })?;
    let received: f64 = text
        .split(", ")
        .find_map(|part| part.strip_suffix(" received"))
        .and_then(|n| n.parse().ok())
        .unwrap_or(0.0);
    let new_flow = site.reaches("red-a1", "10.0.2.12", 2);
    site.start_controller()?;
    site.wait_for_hosts()?;
    Ok(vec![
        Line::new(
            "traffic while the controller is killed",
            (received - 100.0).abs() < 0.5,
            received,
            &format!("of {PINGS} pings answered"),
        ),
        Line::new(
            "new flows without a controller",
            new_flow,
            f64::from(u8::from(new_flow)),
            "of 1 admitted",
        ),
    ])
}

pub(crate) fn buffers(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let mut missing = f64::MAX;
    let mut total = 0.0;
    // Exact when nothing moves: asked until it is.
    let quiet = wait_until("frames are at rest", Duration::from_secs(5), || {
        missing = 0.0;
        total = 0.0;
        for host in ["h1", "h2"] {
            let Ok(stats) = site.node_json(host, &["stats"]) else {
                return false;
            };
            let count = |what: &str| stats["frames"][what].as_f64().unwrap_or(0.0);
            total += count("total");
            missing += count("total") - count("free") - count("fill") - count("transmit");
        }
        missing == 0.0
    });
    Ok(vec![Line::new(
        "packet buffers missing",
        quiet.is_ok(),
        missing,
        &format!("of {total}, on both hosts"),
    )])
}
