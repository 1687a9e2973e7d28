//! The demonstration's Internet and what leads there: a web server and a resolver that no VPC knows, elastic IPs, a NAT gateway with two gateway
//! hosts; and a peering with another tenant.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use weft_proto::v1::{Objects, Peering, Route, SecurityRule};
use weft_tests::site::SEGMENT;
use weft_tests::traffic::{Pinger, tcp_connects};
use weft_tests::{Daemon, Namespace, Site, load, wait_until};

use crate::steps::{Line, Probe, Step};

/// The steps, in order.
pub(crate) const STEPS: &[(&str, Step)] = &[
    ("the Internet", internet),
    ("a peering", peering),
    ("an elastic IP moves", elastic_ip_moves),
    ("a gateway host dies", gateway_dies),
];

/// The router on the segment of the external network.
const ROUTER: &str = "203.0.113.1";
/// The web server and the resolver, which are behind the router.
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The address of blue's elastic IP, and of red's NAT gateway.
const ELASTIC: &str = "203.0.113.11";
const NAT: &str = "203.0.113.100";
const NAME: &str = "www.example.org";

const SOON: Duration = Duration::from_secs(10);
/// What does not come within this does not come.
const NEVER: Duration = Duration::from_millis(500);
/// A gateway host that comes back is in use within this.
const BACK: Duration = Duration::from_secs(40);
/// The goals: how long traffic may pause when an elastic IP moves, and when a gateway host dies.
const MOVE: Duration = Duration::from_millis(200);
const FAILOVER: Duration = Duration::from_secs(1);

/// Bytes that are downloaded while the gateway host dies, and how fast they are read.
const DOWNLOAD: usize = 48 << 20;
const BYTES_PER_SECOND: usize = 8 << 20;

/// Starts the router, the web server and the resolver. They run as long as what is returned.
pub(crate) fn start_internet(site: &Site) -> anyhow::Result<Vec<Daemon>> {
    let internet = outside(site)?;
    internet.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    internet.ip(&format!("address add {ROUTER}/24 dev {SEGMENT}"))?;
    internet.ip(&format!("address add {SERVER}/32 dev lo"))?;
    let directory = site.directory().join("www");
    let who = directory.join("cgi-bin/who");
    std::fs::create_dir_all(directory.join("cgi-bin"))?;
    // Says whom the server sees.
    std::fs::write(
        &who,
        "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n%s\\n' \"$REMOTE_ADDR\"\n",
    )?;
    std::fs::set_permissions(&who, std::fs::Permissions::from_mode(0o755))?;
    std::fs::write(directory.join("data"), contents(DOWNLOAD))?;
    let (shown, server) = (directory.display().to_string(), SERVER.to_string());
    let listen_web = format!("{server}:80");
    let web = ["httpd", "-f", "-p", &listen_web, "-h", &shown];
    let (record, listen) = (
        format!("--host-record={NAME},{server}"),
        format!("--listen-address={server}"),
    );
    let resolver = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--user=root",
        "--pid-file=",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        &record,
        &listen,
    ];
    Ok(vec![
        internet.spawn("busybox", &web)?,
        internet.spawn("dnsmasq", &resolver)?,
    ])
}

fn outside(site: &Site) -> anyhow::Result<&Namespace> {
    site.outside.as_ref().context("there is no outside")
}

/// What the download consists of, so that a byte too many or too few is seen.
fn contents(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// Runs a command in a port's workload; guests have it in busybox.
fn run(site: &Site, port: &str, line: &str) -> anyhow::Result<String> {
    if let Some(guest) = site.guests.get(port) {
        return Ok(guest.succeed(line)?);
    }
    let workload = site.workloads.get(port).context("no such workload")?;
    let words: Vec<&str> = line.split_whitespace().collect();
    Ok(workload
        .namespace
        .run(&[&["busybox"], &words[..]].concat())?)
}

/// Whom the web server sees when a port's workload asks it.
fn seen_as(site: &Site, port: &str) -> anyhow::Result<String> {
    let line = format!("wget -q -O - http://{SERVER}/cgi-bin/who");
    Ok(run(site, port, &line)?.trim().to_owned())
}

/// Names are found and pages are read, under the address that each tenant has outside; and nothing comes in that was not let in.
pub(crate) fn internet(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (port, address, by) in [
        ("red-a1", NAT, "red's NAT gateway, from h1"),
        ("red-a2", NAT, "red's NAT gateway, from h2"),
        ("blue-a1", ELASTIC, "blue's elastic IP"),
    ] {
        let to = SERVER.to_string();
        wait_until("the Internet answers", SOON, || site.reaches(port, &to, 1))?;
        let found = run(site, port, &format!("nslookup -type=a {NAME} {SERVER}"))?;
        let resolved = found.contains(NAME) && found.matches(&to).count() > 1;
        let seen = seen_as(site, port)?;
        let right = f64::from(u8::from(resolved)) + f64::from(u8::from(seen == address));
        lines.push(Line::new(
            &format!("Internet by {by}"),
            resolved && seen == address,
            right,
            &format!("of 2: a name resolved, a page read; the server saw {seen}"),
        ));
    }
    let internet = outside(site)?;
    let inbound = internet.pings(ELASTIC, 3);
    lines.push(Line::new(
        "elastic IP reached from the Internet",
        inbound,
        f64::from(u8::from(inbound)) * 3.0,
        "of 3 pings answered",
    ));
    let mut opened = 0;
    for (address, port) in [(NAT, 80), (NAT, 5201), (ELASTIC, 80)] {
        let to = SocketAddr::new(address.parse()?, port);
        opened += usize::from(tcp_connects(internet, to, NEVER)?);
    }
    lines.push(Line::new(
        "connections that nobody let in",
        opened == 0,
        opened as f64,
        "of 3 opened from the Internet",
    ));
    if let Some(workload) = site.workloads.get("red-a2") {
        let server = SERVER.to_string();
        let gigabits = load::tcp(&workload.namespace, (internet, &server), false, 2)?;
        lines.push(Line::new(
            "TCP through the NAT gateway, h2 by h1",
            gigabits > 0.1,
            gigabits,
            "Gbit/s, one stream (iperf3)",
        ));
    }
    Ok(lines)
}

/// The states of both sides of the peering.
fn states(site: &Site) -> anyhow::Result<[String; 2]> {
    let list = site.ctl(&["peering", "list"])?;
    let line = list.lines().find(|line| line.starts_with("blue-green "));
    let words: Vec<&str> = line
        .context("no such peering")?
        .split_whitespace()
        .collect();
    let word = |at: usize| words.get(at).copied().unwrap_or_default().to_owned();
    Ok([word(2), word(4)])
}

fn has_states(site: &Site, requester: &str, accepter: &str) -> anyhow::Result<()> {
    let mut last = None;
    let what = format!("the peering is {requester} and {accepter}");
    wait_until(&what, SOON, || {
        last = states(site).ok();
        last.as_ref()
            .is_some_and(|found| *found == [requester, accepter])
    })
    .with_context(|| format!("it is {last:?}"))
}

fn with_peering(objects: &mut Objects) {
    objects.peerings.push(Peering {
        id: "blue-green".into(),
        requester: "blue".into(),
        accepter: "green".into(),
        ..Peering::default()
    });
    for (table, prefix) in [("blue", "10.0.3.0/24"), ("green", "10.0.1.0/24")] {
        let route = Route {
            prefix: prefix.into(),
            peering: "blue-green".into(),
            ..Route::default()
        };
        let tables = objects.route_tables.iter_mut();
        tables
            .filter(|other| other.id == table)
            .for_each(|table| table.routes.push(route.clone()));
    }
    // From blue's clients alone.
    let rule = SecurityRule {
        direction: "ingress".into(),
        protocol: "udp".into(),
        remote_group: "blue".into(),
        ..SecurityRule::default()
    };
    let groups = objects.security_groups.iter_mut();
    groups
        .filter(|group| group.id == "green")
        .for_each(|group| group.rules.push(rule.clone()));
}

/// Another tenant's VPC: it says no, then yes, and later freezes what it has allowed, under an established flow.
fn peering(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let before = site.objects.clone();
    let mut probe = Probe::new(site, "blue-a1", "green-c2", 4000)?;
    site.change(with_peering)?;
    has_states(site, "connecting", "accepting")?;
    let mut shut = 0;
    let mut shut_in = |probe: &mut Probe| -> bool {
        let passes = (0..20).any(|_| probe.passes());
        shut += usize::from(!passes);
        !passes
    };
    let requested = shut_in(&mut probe);
    site.ctl(&["peering", "reject", "blue-green"])?;
    has_states(site, "rejected", "rejected")?;
    site.wait_for_hosts()?;
    let rejected = shut_in(&mut probe);
    let again = [
        "peering",
        "create",
        "blue-green",
        "--requester",
        "blue",
        "--accepter",
        "green",
    ];
    site.ctl(&again)?;
    has_states(site, "connecting", "accepting")?;
    let requested_again = shut_in(&mut probe);
    let mut lines = vec![Line::new(
        "peering requested, rejected, requested",
        requested && rejected && requested_again,
        shut as f64,
        "of 3 states let nothing of blue reach green",
    )];
    let begun = Instant::now();
    site.ctl(&["peering", "accept", "blue-green"])?;
    let opened = probe.until(true, begun)?;
    has_states(site, "active", "active")?;
    let stranger = !site.reaches("red-a1", "10.0.3.12", 1);
    lines.push(Line::new(
        "peering accepted",
        stranger,
        opened.as_secs_f64() * 1e3,
        "ms from the command to the first packet; red reaches nothing of it",
    ));
    let begun = Instant::now();
    site.ctl(&["peering", "freeze", "blue-green", "--vpc", "green"])?;
    let frozen = probe.until(false, begun)?;
    has_states(site, "active", "frozen")?;
    let ended = !(0..20).any(|_| probe.passes());
    lines.push(Line::new(
        "peering frozen",
        ended,
        frozen.as_secs_f64() * 1e3,
        "ms from the command to the end of the established flow",
    ));
    site.change(|objects| *objects = before)?;
    Ok(lines)
}

/// The longest time between two answers, until it is over.
fn longest_silence(
    from: &Namespace,
    to: &str,
    over: &AtomicBool,
) -> anyhow::Result<(Duration, usize)> {
    let mut pinger = Pinger::new(from, to.parse()?)?;
    let (mut heard, mut longest, mut answered) = (Instant::now(), Duration::ZERO, 0);
    while !over.load(Ordering::Relaxed) {
        if pinger.ping(Duration::from_millis(10))? {
            longest = longest.max(heard.elapsed());
            heard = Instant::now();
            answered += 1;
            thread::sleep(Duration::from_millis(2));
        }
    }
    Ok((longest.max(heard.elapsed()), answered))
}

/// What was done, and the longest silence meanwhile.
pub(crate) fn silent_during<T>(
    from: &Namespace,
    to: &str,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, Duration, usize)> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let pinging = scope.spawn(|| longest_silence(from, to, &over));
        let done = work();
        over.store(true, Ordering::Relaxed);
        let silence = pinging.join();
        let (silence, answered) =
            silence.map_err(|_| anyhow::anyhow!("the pinging thread panicked"))??;
        Ok((done?, silence, answered))
    })
}

/// Which host the segment knows an address by.
fn is_held_by(site: &Site, address: &str, host: &str) -> bool {
    let (Ok(outside), Ok(mac)) = (outside(site), site.hosts[host].namespace.mac("x0")) else {
        return false;
    };
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let known = outside.ip(&format!("neigh show {address}"));
    known.is_ok_and(|known| known.contains(&mac))
}

fn elastic_ip_moves(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let internet = outside(site)?.clone();
    wait_until("the elastic IP answers", SOON, || {
        internet.pings(ELASTIC, 1)
    })?;
    let mut lines = Vec::new();
    for (port, host, name) in [
        ("blue-a2", "h2", "elastic IP moved, h1 to h2"),
        ("blue-a1", "h1", "elastic IP moved back"),
    ] {
        let ((), silence, answered) = silent_during(&internet, ELASTIC, || {
            site.change(|objects| objects.elastic_ips[0].port = port.into())?;
            let moved = wait_until("the new host has the address", SOON, || {
                is_held_by(site, ELASTIC, host) && internet.pings(ELASTIC, 5)
            });
            Ok(moved?)
        })?;
        lines.push(Line::new(
            name,
            silence <= MOVE && answered > 10,
            silence.as_secs_f64() * 1e3,
            &format!("ms of silence, the longest of {answered} pings from the Internet"),
        ));
    }
    Ok(lines)
}

/// Downloads the file as slowly as told. Returns the longest time without a byte.
fn download(from: &Namespace, is_under_way: &AtomicBool) -> anyhow::Result<Duration> {
    let address = SocketAddr::new(IpAddr::V4(SERVER), 80);
    let mut stream = from.enter(|| TcpStream::connect_timeout(&address, SOON))??;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET /data HTTP/1.0\r\n\r\n")?;
    let mut got = Vec::with_capacity(DOWNLOAD + 1024);
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    loop {
        let asked = Instant::now();
        let len = (&stream).take(64 << 10).read_to_end(&mut got)?;
        longest = longest.max(asked.elapsed());
        if len == 0 {
            break;
        }
        is_under_way.store(got.len() > DOWNLOAD / 16, Ordering::Relaxed);
        let due = Duration::from_secs_f64(got.len() as f64 / BYTES_PER_SECOND as f64);
        thread::sleep(due.saturating_sub(begun.elapsed()));
    }
    let body = got.windows(4).position(|part| part == b"\r\n\r\n");
    let body = &got[body.context("no answer of a web server")? + 4..];
    ensure!(
        body == contents(DOWNLOAD),
        "the download is not what the server has"
    );
    Ok(longest)
}

/// Red's client is on h2; h1 is the gateway host in use, and is killed while the client downloads.
fn gateway_dies(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let internet = outside(site)?.clone();
    let client = site.workloads["red-a2"].namespace.clone();
    let server = SERVER.to_string();
    let uses = |site: &Site, host: &str, within: Duration| {
        let what = format!("{host} is the gateway host in use");
        wait_until(&what, within, || is_held_by(site, NAT, host))
    };
    // What the segment knows of the address is as old as its last packet.
    internet.ip(&format!("neigh flush dev {SEGMENT}"))?;
    wait_until("the NAT gateway works", SOON, || client.pings(&server, 1))?;
    uses(site, "h1", SOON)?;
    let is_under_way = AtomicBool::new(false);
    let (longest, silence, _) = thread::scope(|scope| {
        let downloading = scope.spawn(|| download(&client, &is_under_way));
        silent_during(&client, &server, || {
            wait_until("the download has begun", SOON, || {
                is_under_way.load(Ordering::Relaxed)
            })?;
            let daemon = site.hosts["h1"].daemon.as_ref();
            daemon.context("h1 has no daemon")?.signal(libc::SIGKILL);
            uses(site, "h2", SOON)?;
            ensure!(
                !downloading.is_finished(),
                "the download ended before h2 took over"
            );
            let longest = downloading.join();
            longest.map_err(|_| anyhow::anyhow!("the downloading thread panicked"))?
        })
    })?;
    let mut lines = vec![
        Line::pass(
            "gateway host killed: the download goes on",
            (DOWNLOAD >> 20) as f64,
            &format!(
                "MiB, all of them right; {} ms its longest pause, TCP's own wait included",
                longest.as_millis()
            ),
        ),
        Line::new(
            "gateway host killed: silence",
            silence <= FAILOVER,
            silence.as_secs_f64() * 1e3,
            "ms, the longest between pings to the Internet (kill -9)",
        ),
    ];
    let ((), silence, _) = silent_during(&client, &server, || {
        site.start_daemon("h1")?;
        Ok(uses(site, "h1", BACK)?)
    })?;
    lines.push(Line::new(
        "gateway host back: silence",
        silence <= FAILOVER,
        silence.as_secs_f64() * 1e3,
        "ms, when it is used again",
    ));
    site.wait_for_hosts()?;
    site.wait_for_ports()?;
    Ok(lines)
}
