//! What the demonstration shows from inside virtual machines: the same as between namespaces where a guest can show it, and what only guests can.

use std::time::{Duration, Instant};

use anyhow::Context;
use weft_tests::{Guest, Site, guest::longest_gap, wait_until};

use crate::outside;
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
    ("the Internet", outside::internet),
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
        guest.serve("/tools/weft-guest listen 9", "udp6", 9)?;
    }
    let mut lines = Vec::new();
    for (tenant, other) in [("blue", "red"), ("red", "blue")] {
        let line = format!("/tools/weft-guest send 10.0.1.12:9 2000 {COUNT} only-for-{tenant}");
        guest(site, &format!("{tenant}-a1"))?.succeed(&line)?;
        let heard = |tenant_heard: &str| -> anyhow::Result<usize> {
            let mut sum = 0;
            for port in MATRIX {
                let text = guest(site, &format!("{tenant_heard}-{port}"))?
                    .run(&format!("grep -c only-for-{tenant} /tmp/served"))?
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
            &format!("isolation of {tenant} from {other}"),
            foreign == 0,
            foreign as f64,
            "of its datagrams received by guests of the other tenant",
        ));
    }
    for guest in site.guests.values() {
        guest.succeed("killall weft-guest")?;
    }
    Ok(lines)
}

fn security_group(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    guest(site, "blue-a2")?.serve("/tools/weft-guest answer 4000", "tcp6", 4000)?;
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
    let (mut lines, mut busy) = (Vec::new(), 0.0);
    for (name, from, to, address, reverse) in [
        ("TCP, h1 to h2", "blue-a1", "blue-a2", "10.0.1.12", false),
        ("TCP, h2 to h1", "blue-a1", "blue-a2", "10.0.1.12", true),
        ("TCP on one host", "blue-b2", "blue-a2", "10.0.1.12", false),
    ] {
        let (before, begun) = (processor_time(site, "h2")?, Instant::now());
        let gigabits = guest(site, from)?.throughput(guest(site, to)?, address, reverse, 3)?;
        let used = processor_time(site, "h2")? - before;
        busy = 100.0 * used / begun.elapsed().as_secs_f64();
        lines.push(Line::new(
            name,
            gigabits > 0.02,
            gigabits,
            "Gbit/s between two guests, one stream (iperf3)",
        ));
    }
    lines.push(Line::new(
        "weftd between the two",
        busy < 50.0,
        busy,
        "% of a core",
    ));
    Ok(lines)
}

/// Seconds of processor time that the weftd of a host has used so far.
fn processor_time(site: &Site, host: &str) -> anyhow::Result<f64> {
    let daemon = site.hosts.get(host).and_then(|host| host.daemon.as_ref());
    let id = daemon.context("no weftd")?.pid();
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    // After the name, which is in brackets: user and system time are the 12th and 13th (proc_pid_stat(5)), in hundredths of a second.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks: f64 = times.filter_map(|text| text.parse::<f64>().ok()).sum();
    Ok(ticks / 100.0)
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

/// A guest pings many times a second, and keeps a connection busy, while its weftd is stopped and started.
fn restart(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let line = "/tools/ping -n -D -i 0.01 -W 1 -c 250 10.0.1.12 >/tmp/pings 2>&1 &";
    guest(site, "blue-a2")?.serve("/tools/weft-guest answer 5201", "tcp6", 5201)?;
    let pinging = guest(site, "blue-a1")?;
    pinging
        .succeed("(/tools/weft-guest watch 10.0.1.12:5201 3; echo ended $?) >/tmp/watch 2>&1 &")?;
    pinging.succeed(line)?;
    wait_until("pings under way", Duration::from_secs(10), || {
        pinging.says("grep -q icmp_seq=10 /tmp/pings")
    })?;
    if let Some(mut daemon) = site.hosts.get_mut("h1").and_then(|host| host.daemon.take()) {
        daemon.stop(Duration::from_secs(5))?;
    }
    site.start_daemon("h1")?;
    let guest = guest(site, "blue-a1")?;
    wait_until("the end of the pings", Duration::from_secs(30), || {
        guest.says("grep -q received /tmp/pings")
    })?;
    let text = guest.succeed("cat /tmp/pings")?;
    let gap = longest_gap(&text).with_context(|| text.clone())?;
    wait_until("the end of the connection", Duration::from_secs(30), || {
        guest.says("grep -q ended /tmp/watch")
    })?;
    let watched = guest.succeed("cat /tmp/watch")?;
    let longest = watched.lines().next().and_then(|line| line.parse().ok());
    site.wait_for_ports()?;
    Ok(vec![
        Line::new(
            "weftd restarts under a running guest",
            gap < 3.0,
            gap * 1e3,
            "ms without an answer at the longest; its link and its port stayed",
        ),
        Line::new(
            "an established connection of it goes on",
            watched.contains("ended 0"),
            longest.unwrap_or(f64::NAN),
            "ms without an answer at the longest",
        ),
    ])
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
