//! Real programs between workloads, on two hosts and on one, by IPv4 and IPv6, with weftd killed in the middle: they work, connections
//! survive, and only packets that policy denies are dropped. `WEFT_PROGRAMS=all` runs every program in every way; otherwise some run once.
//! `WEFT_PROGRAMS_ONLY` selects programs, `WEFT_PROGRAMS_REPORT` a file for the figures.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weft_tests::programs::{Exchange, Program};
use weft_tests::{Lab, LabError, Site, SiteOptions, topology};

const SOON: Duration = Duration::from_secs(20);

/// Those of the short form: connections that last and exchanges that end, by UDP and by TCP, tunnels, routing, multicast, fragments.
const SHORT: [&str; 12] = [
    "bgp",
    "dns",
    "echo-udp",
    "ftp-passive",
    "multicast",
    "nfs",
    "nginx",
    "openssh",
    "ping",
    "postgresql",
    "quic",
    "wireguard",
];

/// Drops that are no loss, whatever runs: what kernels send that no one needs.
const ALWAYS: [(&str, &str); 3] = [
    (
        "arp_unanswered",
        "announcements, and requests for an address that nobody has",
    ),
    ("neighbor_unanswered", "the same of IPv6"),
    (
        "no_receiver",
        "reports of multicast groups, where no other port of the subnet is",
    ),
];

const SITE: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}]
vpcs: [{id: blue, vni: 100}]
subnets: [{id: blue-a, vpc: blue, cidrs: [10.0.1.0/24, "fd00:1::/64"], multicast: snooping}]
security_groups: [{id: blue, vpc: blue, rules: [{direction: ingress}]}]
ports:
  - {id: client, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11, "fd00:1::11"], host: h1}
  - {id: far, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:02", addresses: [10.0.1.12, "fd00:1::12"], host: h2}
  - {id: near, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:03", addresses: [10.0.1.13, "fd00:1::13"], host: h1}
"#;

/// Drops by host and name.
type Drops = BTreeMap<(&'static str, String), u64>;

fn drops(site: &Site) -> Result<Drops, LabError> {
    let mut all = Drops::new();
    for host in ["h1", "h2"] {
        let answer = site.node_json(host, &["drops"])?;
        let reasons = answer["reasons"].as_array().cloned().unwrap_or_default();
        for reason in reasons {
            let count = &reason["packets"];
            let count = count.as_u64().or_else(|| count.as_str()?.parse().ok());
            let name = reason["reason"].as_str().unwrap_or_default();
            assert!(!name.is_empty() && count.is_some(), "{reason}");
            *all.entry((host, name.to_owned())).or_default() += count.unwrap_or_default();
        }
    }
    Ok(all)
}

/// What came of everything.
#[derive(Default)]
struct Figures {
    programs: BTreeSet<String>,
    exchanges: u32,
    kills: u32,
    /// Connections that went on, over kills.
    went_on: u32,
    /// TCP connections among them, which were the same before and after.
    same_tcp: usize,
    /// What policy asks for, by name.
    asked: BTreeMap<String, u64>,
    wrong: Vec<String>,
}

impl Figures {
    /// Books what was dropped from one count to the next.
    fn book(&mut self, program: &Program, way: &str, before: &Drops, after: &Drops) {
        for (key @ (host, name), count) in after {
            let more = count.saturating_sub(before.get(key).copied().unwrap_or(0));
            if more == 0 {
                continue;
            }
            let is_asked =
                ALWAYS.iter().any(|(always, _)| always == name) || program.drops.contains(name);
            if is_asked {
                *self.asked.entry(name.clone()).or_default() += more;
            } else {
                let name_of = &program.name;
                self.wrong.push(format!(
                    "{name_of}, {way}: {more} dropped on {host} as {name}"
                ));
            }
        }
    }
}

/// A host's weftd dies, and another begins without its sessions.
fn kill(site: &mut Site, host: &str) -> Result<(), LabError> {
    let mut daemon = site.hosts.get_mut(host).unwrap().daemon.take().unwrap();
    daemon.signal(libc::SIGKILL);
    daemon.wait(SOON)?;
    site.start_daemon(host)?;
    site.wait_for_hosts()?;
    site.wait_for_ports()
}

/// A program in one way: between these ports, by this family, with the weftd of these hosts killed, one after the other.
fn run(
    site: &mut Site,
    program: &Program,
    (server, ipv6): (&str, bool),
    killed: &[&str],
    figures: &mut Figures,
) -> Result<(), LabError> {
    let way = format!("{server}, IPv{}", if ipv6 { 6 } else { 4 });
    let ends = ["client", server].map(|port| {
        let namespace = site.workloads[port].namespace.clone();
        (namespace, site.address(port, ipv6).unwrap())
    });
    let mut before = drops(site)?;
    let end = |at: usize| (&ends[at].0, ends[at].1);
    let exchange = Exchange::start(program, end(0), end(1))?;
    exchange.succeed()?;
    figures.exchanges += 1;
    figures.programs.insert(program.name.clone());
    for host in killed {
        let lasting = program.is_long.then(|| exchange.begin()).transpose()?;
        let until = drops(site)?;
        figures.book(program, &way, &before, &until);
        kill(site, host)?;
        figures.kills += 1;
        // The other host counts on.
        before = until;
        before.retain(|(of, _), _| of != host);
        match &lasting {
            Some(lasting) => {
                lasting.goes_on(&format!("goes on, weftd of {host} killed, {way}"))?;
                figures.went_on += 1;
                figures.same_tcp += lasting.tcp_connections();
            }
            None => exchange.succeed()?,
        }
    }
    figures.book(program, &way, &before, &drops(site)?);
    exchange.end()
}

#[test]
fn real_programs_work_and_connections_go_on_when_weftd_is_killed() {
    let is_all = std::env::var("WEFT_PROGRAMS").is_ok_and(|value| value == "all");
    let only = std::env::var("WEFT_PROGRAMS_ONLY").unwrap_or_default();
    let mut only: Vec<&str> = only.split_whitespace().collect();
    if only.is_empty() && !is_all {
        only = SHORT.to_vec();
    }
    let mut site = Site::start(
        Lab::new().unwrap(),
        &topology(SITE).unwrap(),
        &SiteOptions::default(),
    )
    .unwrap();
    let mut figures = Figures::default();
    let mut turn = 0;
    for program in Program::all().unwrap() {
        if !only.is_empty() && !only.contains(&program.name.as_str()) {
            continue;
        }
        let mut ways = Vec::new();
        for ipv6 in &program.families {
            for server in ["far", "near"] {
                ways.push((server, *ipv6));
            }
        }
        if !is_all {
            ways = vec![ways[turn % ways.len()]];
            turn += 1;
        }
        for (server, ipv6) in ways {
            let killed: &[&str] = match (is_all, server) {
                (true, "far") => &["h1", "h2"],
                (true, _) => &["h1"],
                (false, "far") if turn % 2 == 1 => &["h2"],
                (false, _) => &["h1"],
            };
            let begun = std::time::Instant::now();
            let done = run(&mut site, &program, (server, ipv6), killed, &mut figures);
            let took = begun.elapsed().as_secs_f64();
            let way = format!("{}, {server}, {}", program.name, if ipv6 { 6 } else { 4 });
            println!("{way}: {took:.1} s");
            if let Err(error) = done {
                figures
                    .wrong
                    .push(format!("{way}: {}", site.explain(error)));
            }
        }
    }
    let report = serde_json::json!({
        "programs": figures.programs.len(),
        "exchanges": figures.exchanges,
        "kills": figures.kills,
        "connections_went_on": figures.went_on,
        "same_tcp_connections": figures.same_tcp,
        "drops_that_policy_asked_for": figures.asked,
        "wrong": figures.wrong.len(),
    });
    println!("{report}");
    if let Ok(file) = std::env::var("WEFT_PROGRAMS_REPORT") {
        std::fs::write(file, report.to_string()).unwrap();
    }
    assert!(figures.wrong.is_empty(), "{}", figures.wrong.join("\n\n"));
}
