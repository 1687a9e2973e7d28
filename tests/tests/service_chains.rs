//! Service chains with real appliances: two kernels that forward and track connections share the flows between clients and servers on two hosts. What comes
//! back another way than it went is dropped there, and counted.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use weft_proto::v1::Objects;
use weft_tests::traffic::{tcp_exchange, udp_translated};
use weft_tests::{Lab, LabError, Site, SiteOptions, tenants, topology, wait_until};

const SOON: Duration = Duration::from_secs(10);
const APPLIANCES: [&str; 2] = ["fw-1", "fw-2"];

/// blue-1 on h1 and blue-2 on h2 are clients, blue-b on h2 is the server. The appliances are on one host each.
const THROUGH: &str = r#"
subnets: [{id: blue-fw, vpc: blue, cidrs: [10.0.3.0/24, "fd00:3::/64"]}]
ports:
  - {id: fw-1, vpc: blue, subnet: blue-fw, host: h1, mac: "02:00:00:00:03:11", addresses: [10.0.3.11, "fd00:3::11"],
     allowed_pairs: [{cidr: 0.0.0.0/0}, {cidr: "::/0"}]}
  - {id: fw-2, vpc: blue, subnet: blue-fw, host: h2, mac: "02:00:00:00:03:12", addresses: [10.0.3.12, "fd00:3::12"],
     allowed_pairs: [{cidr: 0.0.0.0/0}, {cidr: "::/0"}]}
route_tables:
  - {id: to-servers, vpc: blue, routes: [
      {prefix: 10.0.2.0/24, ecmp: [{port: fw-1}, {port: fw-2}]}, {prefix: "fd00:2::/64", ecmp: [{port: fw-1}, {port: fw-2}]}]}
  - {id: to-clients, vpc: blue, routes: [
      {prefix: 10.0.1.0/24, ecmp: [{port: fw-1}, {port: fw-2}]}, {prefix: "fd00:1::/64", ecmp: [{port: fw-1}, {port: fw-2}]}]}
"#;

/// A stateful firewall: clients open flows, and nothing else passes but what belongs to those. What opens a flow from the servers' side is an answer that has
/// not gone the way of its question.
const FIREWALL: &str = "\
    flush ruleset; \
    table inet fw { \
    counter opened { packets 0 bytes 0; }; counter stray { packets 0 bytes 0; }; \
    chain forward { type filter hook forward priority 0; policy drop; \
    ct state established,related accept; \
    ct state new ip saddr 10.0.1.0/24 counter name opened accept; \
    ct state new ip6 saddr fd00:1::/64 counter name opened accept; \
    counter name stray; }; }";
/// One that hangs.
const HUNG: &str = "\
    flush ruleset; \
    table inet fw { \
    counter opened { packets 0 bytes 0; }; counter stray { packets 0 bytes 0; }; \
    chain input { type filter hook input priority 0; policy drop; }; \
    chain forward { type filter hook forward priority 0; policy drop; counter name opened; }; }";

fn objects() -> Objects {
    let mut objects = tenants(2).unwrap();
    let more = topology(THROUGH).unwrap();
    objects.subnets.extend(more.subnets);
    objects.ports.extend(more.ports);
    objects.route_tables.extend(more.route_tables);
    for subnet in &mut objects.subnets {
        match subnet.id.as_str() {
            "blue-a" => subnet.route_table = "to-servers".into(),
            "blue-b" => subnet.route_table = "to-clients".into(),
            _ => {}
        }
    }
    objects
}

fn holds(what: &str, condition: bool) -> Result<(), LabError> {
    if condition {
        return Ok(());
    }
    Err(LabError::Io {
        what: what.to_owned(),
        source: std::io::Error::other("does not hold"),
    })
}

fn set(site: &Site, appliance: &str, rules: &str) -> Result<(), LabError> {
    let namespace = &site.workloads[appliance].namespace;
    namespace.run(&["nft", rules]).map(drop)
}

/// Packets that an appliance has counted.
fn counted(site: &Site, appliance: &str, counter: &str) -> Result<u64, LabError> {
    let namespace = &site.workloads[appliance].namespace;
    let said = namespace.run(&["nft", "list", "counter", "inet", "fw", counter])?;
    let mut words = said.split_whitespace();
    let count = words.find(|word| *word == "packets").and(words.next());
    Ok(count.and_then(|count| count.parse().ok()).unwrap())
}

/// Flows of both protocols and families, from both clients: each works, or this fails.
fn flows(site: &Site) -> Result<u64, LabError> {
    let server = &site.workloads["blue-b"].namespace;
    let mut count = 0;
    for client in ["blue-1", "blue-2"] {
        let from = &site.workloads[client].namespace;
        for ipv6 in [false, true] {
            for port in 8000..8012 {
                let to: SocketAddr = site.service("blue-b", ipv6, port)?;
                tcp_exchange(from, server, to, 20_000)?;
                udp_translated(from, to, server, to)?;
                count += 2;
            }
        }
        holds("pings pass", site.pings(client, "blue-b"))?;
    }
    Ok(count)
}

/// Which appliances have taken new flows while `work` was done.
fn taking(
    site: &Site,
    work: impl FnOnce(&Site) -> Result<u64, LabError>,
) -> Result<Vec<u64>, LabError> {
    let count = |counter| -> Result<Vec<u64>, LabError> {
        let all = APPLIANCES.iter();
        all.map(|it| counted(site, it, counter)).collect()
    };
    let before = count("opened")?;
    let flows = work(site)?;
    let after = count("opened")?;
    let taken = after.iter().zip(before);
    let taken: Vec<u64> = taken.map(|(after, before)| after - before).collect();
    println!("{flows} flows, opened at {APPLIANCES:?}: {taken:?}");
    holds(
        "every flow passes an appliance",
        taken.iter().sum::<u64>() >= flows,
    )?;
    let strays = count("stray")?;
    holds(
        &format!("no answer comes another way: {strays:?}"),
        strays.iter().all(|count| *count == 0),
    )?;
    Ok(taken)
}

/// The appliances that a host has been told not to live.
fn down(site: &Site, host: &str) -> Vec<String> {
    let state = site.node_json(host, &["node", "state"]).unwrap_or_default();
    let found = state["state"]["port_health"].as_array();
    let ids = found.into_iter().flatten();
    ids.filter_map(|it| Some(it["id"].as_str()?.to_owned()))
        .collect()
}

fn lives(site: &Site, appliance: &str) -> Option<bool> {
    let said = site.ctl(&["port", "health", appliance]).ok()?;
    let line = said.lines().nth(1)?;
    line.split_whitespace().nth(2).map(|word| word == "yes")
}

#[test]
fn both_directions_pass_one_of_two_firewalls_and_the_other_takes_over_from_one_that_hangs() {
    let site = Site::start(Lab::new().unwrap(), &objects(), &SiteOptions::default()).unwrap();
    let mut site = site;
    let result = (|| {
        for appliance in APPLIANCES {
            let namespace = &site.workloads[appliance].namespace;
            for setting in [
                "net.ipv4.ip_forward=1",
                "net.ipv6.conf.all.forwarding=1",
                // Its clients are where the gateway is.
                "net.ipv4.conf.all.send_redirects=0",
                "net.ipv4.conf.eth0.send_redirects=0",
                // A connection is known from its first segment on, or not at all.
                "net.netfilter.nf_conntrack_tcp_loose=0",
            ] {
                namespace.run(&["sysctl", "-qw", setting])?;
            }
            set(&site, appliance, FIREWALL)?;
        }
        let taken = taking(&site, flows)?;
        holds("both take flows", taken.iter().all(|count| *count > 10))?;

        // Taken out of the routes, and back.
        site.change(|objects| {
            for table in &mut objects.route_tables {
                for route in &mut table.routes {
                    route.ecmp.retain(|hop| hop.port == "fw-2");
                }
            }
        })?;
        let taken = taking(&site, flows)?;
        holds("the other takes all", taken[0] == 0)?;
        site.change(|objects| {
            let whole = topology(THROUGH).unwrap().route_tables;
            objects.route_tables = whole;
        })?;
        let taken = taking(&site, flows)?;
        holds("both take flows", taken.iter().all(|count| *count > 10))?;

        // One that hangs is found out.
        for appliance in APPLIANCES {
            let check = ["--check", "icmp", "--check-interval", "300"];
            site.ctl(&[&["port", "check", appliance][..], &check].concat())?;
        }
        site.wait_for_hosts()?;
        wait_until("both live", SOON, || {
            APPLIANCES.iter().all(|it| lives(&site, it) == Some(true))
        })?;
        set(&site, "fw-1", HUNG)?;
        wait_until("both hosts know it", SOON, || {
            ["h1", "h2"]
                .iter()
                .all(|host| down(&site, host) == ["fw-1"])
        })?;
        holds("so it is said", lives(&site, "fw-1") == Some(false))?;
        let taken = taking(&site, flows)?;
        holds("the one that lives takes all", taken[0] == 0)?;
        set(&site, "fw-1", FIREWALL)?;
        wait_until("it lives again", SOON, || {
            ["h1", "h2"].iter().all(|host| down(&site, host).is_empty())
        })?;
        let taken = taking(&site, flows)?;
        holds("both take flows", taken.iter().all(|count| *count > 10))
    })();
    if let Err(error) = result {
        panic!("{}", site.explain(error));
    }
}
