//! What the demonstration shows from inside virtual machines: the same as between namespaces where a guest can show it, and what only guests can.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use weft_tests::{Guest, Site, wait_until};

use crate::steps::{self, Line, Step};
use crate::topology::MATRIX;

/// Every step, in order.
pub(crate) const STEPS: &[(&str, Step)] = &[
    ("guests boot", boots),
    ("pings within each tenant", steps::pings),
    ("isolation of the tenants", isolation),
    ("a security group opens and shuts", security_group),
    ("an ACL denies", steps::acl),
    ("the longest prefix decides", steps::longest_prefix),
    ("ECMP over three next hops", steps::ecmp),
    ("TCP throughput", throughput),
    ("the same over GRE", gre),
    ("the controller killed", steps::headless),
    ("weftd restarts under running guests", restart),
    ("a guest restarts", reboot),
    ("no packet buffer lost", steps::buffers),
];

fn guest<'s>(site: &'s Site, port: &str) -> anyhow::Result<&'s Guest> {
    site.guests
        .get(port)
        .with_context(|| format!("{port} is no guest"))
}

fn boots(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let kernel = guest(site, "blue-a1")?.succeed("uname -r")?;
    let count = site.guests.len();
    Ok(vec![Line::new(
        "real guests",
        count >= 4,
        count as f64,
        &format!(
            "under qemu, Linux {}, virtio-net over vhost-user",
            kernel.trim()
        ),
    )])
}

/// Each tenant sends datagrams that only it can know to an address that both have.
fn isolation(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    const COUNT: usize = 200;
    for guest in site.guests.values() {
        guest.succeed("/tools/weft-guest listen 9 >/tmp/heard 2>&1 &")?;
    }
    let mut lines = Vec::new();
    for (tenant, other) in [("blue", "red"), ("red", "blue")] {
        let line = format!("/tools/weft-guest send 10.0.1.12:9 2000 {COUNT} only-for-{tenant}");
        guest(site, &format!("{tenant}-a1"))?.succeed(&line)?;
        let heard = |tenant_heard: &str| -> anyhow::Result<usize> {
            let mut sum = 0;
            for port in MATRIX {
                let text = guest(site, &format!("{tenant_heard}-{port}"))?
                    .run(&format!("grep -c only-for-{tenant} /tmp/heard"))?
                    .text;
                sum += text.trim().parse::<usize>().unwrap_or(0);
            }
            Ok(sum)
        };
        let mut own = 0;
        // What did not come by the deadline is counted as missing.
        let _ = wait_until("the datagrams", Duration::from_secs(5), || {
            own = heard(tenant).unwrap_or(0);
            own >= COUNT
        });
        let foreign = heard(other)?;
        lines.push(Line::new(
            &format!("{tenant} hears itself"),
            own == COUNT,
            own as f64,
            &format!("of {COUNT} marked datagrams, in its guests"),
        ));
        lines.push(Line::new(
            &format!("{tenant} unheard in {other}"),
            foreign == 0,
            foreign as f64,
            "of its datagrams heard by guests of the other tenant",
        ));
    }
    for guest in site.guests.values() {
        guest.succeed("killall weft-guest")?;
    }
    Ok(lines)
}

fn security_group(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    guest(site, "blue-a2")?.succeed("/tools/weft-guest answer 4000 >/dev/null 2>&1 &")?;
    let ask = |site: &Site, until: &str| -> anyhow::Result<()> {
        let line = format!("/tools/weft-guest ask 10.0.1.12:4000 {until}");
        guest(site, "blue-a1")?.succeed(&line)?;
        Ok(())
    };
    ask(site, "no").context("shut at first")?;
    let mut lines = Vec::new();
    for (name, open) in [
        ("group opens a port", true),
        ("group shuts it, the flow with it", false),
    ] {
        let begun = Instant::now();
        steps::set_open(site, open)?;
        ask(site, if open { "yes" } else { "no" })?;
        lines.push(Line::pass(
            name,
            begun.elapsed().as_secs_f64() * 1e3,
            "ms from the command until the guest has seen it",
        ));
    }
    lines.push(steps::effect(site)?);
    guest(site, "blue-a2")?.succeed("killall weft-guest")?;
    Ok(lines)
}

fn throughput(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (name, from, to, address, reverse) in [
        ("TCP, h1 to h2", "blue-a1", "blue-a2", "10.0.1.12", false),
        ("TCP, h2 to h1", "blue-a1", "blue-a2", "10.0.1.12", true),
        ("TCP on one host", "blue-b2", "blue-a2", "10.0.1.12", false),
    ] {
        let gigabits = guest(site, from)?.throughput(guest(site, to)?, address, reverse, 3)?;
        lines.push(Line::new(
            name,
            gigabits > 0.02,
            gigabits,
            "Gbit/s between two guests, one stream (iperf3)",
        ));
    }
    Ok(lines)
}

fn gre(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    steps::set_encapsulation(site, "gre")?;
    let mut lines = steps::ping_lines(site, " over GRE");
    let (from, to) = (guest(site, "blue-a1")?, guest(site, "blue-a2")?);
    let gigabits = from.throughput(to, "10.0.1.12", false, 2)?;
    lines.push(Line::new(
        "TCP over GRE, h1 to h2",
        gigabits > 0.02,
        gigabits,
        "Gbit/s between two guests, one stream (iperf3)",
    ));
    steps::set_encapsulation(site, "vxlan")?;
    Ok(lines)
}

/// A guest pings every hundredth of a second while its weftd is stopped and started.
fn restart(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    const PINGS: u32 = 400;
    const INTERVAL: f64 = 10.0;
    let log = "/tmp/pings";
    let line = format!("/tools/ping -q -n -i 0.01 -c {PINGS} 10.0.1.12 >{log} 2>&1 &");
    guest(site, "blue-a1")?.succeed(&line)?;
    if let Some(mut daemon) = site.hosts.get_mut("h1").and_then(|host| host.daemon.take()) {
        daemon.stop(Duration::from_secs(5))?;
    }
    site.start_daemon("h1")?;
    site.wait_for_ports()?;
    let mut text = String::new();
    wait_until("the end of the pings", Duration::from_secs(20), || {
        text = guest(site, "blue-a1")
            .and_then(|guest| Ok(guest.succeed(&format!("cat {log}"))?))
            .unwrap_or_default();
        text.contains("received")
    })?;
    let received = text
        .split(", ")
        .find_map(|part| part.strip_suffix(" received"))
        .and_then(|count| count.parse::<u32>().ok())
        .with_context(|| text.clone())?;
    ensure!(received > 0, "nothing is answered: {text}");
    let gap = f64::from(PINGS.saturating_sub(received)) * INTERVAL;
    Ok(vec![Line::new(
        "weftd restarts under a running guest",
        gap < 1000.0,
        gap,
        "ms without answer, by pings every 10 ms",
    )])
}

fn reboot(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let begun = Instant::now();
    guest(site, "red-a2")?.reboot()?;
    site.configure_guest("red-a2", MTU)?;
    wait_until("the guest is back", Duration::from_secs(20), || {
        site.pings("red-a1", "red-a2")
    })?;
    Ok(vec![Line::pass(
        "a guest restarts",
        begun.elapsed().as_secs_f64(),
        "s until it answers again; its port stayed",
    )])
}

/// Of the guests' cards.
pub(crate) const MTU: u32 = 1430;
