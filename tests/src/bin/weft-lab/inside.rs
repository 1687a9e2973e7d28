//! The steps with what guests expect inside a VPC: names, multicast, and an address that moves from one to another.

use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, ensure};
use socket2::{Domain, InterfaceIndexOrAddress, Socket, Type};
use weft_proto::v1::{AddressPair, SecurityRule, VpcDns};
use weft_tests::{Daemon, Namespace, Site, wait_until};

use crate::outside::silent_during;
use crate::steps::{Line, Step, group, uplink};

pub(crate) const STEPS: &[(&str, Step)] = &[
    ("names", names),
    ("multicast", multicast),
    ("a virtual address", virtual_address),
];

const SOON: Duration = Duration::from_secs(10);
/// How long an address may be silent that moves, keepalived's own wait of three of its intervals and a little more included.
const FAILOVER: Duration = Duration::from_millis(1400);
const KEEPALIVED_INTERVAL: &str = "0.1";
/// What keepalived moves.
const VIRTUAL: &str = "10.0.2.99";
/// IPv4's protocol number of VRRP.
const VRRP: &str = "112";
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
/// What blue's group lets in.
const STREAM_PORT: u16 = 9;
const DATAGRAMS: usize = 2000;
const DATAGRAM_BYTES: usize = 1200;
/// Ethernet, IPv4 and UDP of a datagram, and what VXLAN puts before it.
const HEADER_BYTES: usize = 42 + 50;

/// The same name in two VPCs of which each has its own.
fn names(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let domain = "corp.example";
    site.change(|objects| {
        let vpcs = objects.vpcs.iter_mut();
        vpcs.filter(|vpc| vpc.id != "green").for_each(|vpc| {
            vpc.dns = Some(VpcDns {
                domain: domain.into(),
            });
        });
        let ports = objects.ports.iter_mut();
        let named = ports.filter(|port| ["blue-b2", "red-a2"].contains(&&*port.id));
        named.for_each(|port| port.hostname = "db".into());
    })?;
    let name = format!("db.{domain}");
    let mut right = 0;
    for (from, address) in [("blue-a1", "10.0.2.12"), ("red-a1", "10.0.1.12")] {
        let line = ["busybox", "nslookup", "-type=a", &name, "10.0.1.1"];
        let said = site.workloads[from].namespace.run(&line)?;
        let mut answers = said.lines().filter(|line| line.starts_with("Address"));
        right += usize::from(
            answers
                .next_back()
                .is_some_and(|line| line.ends_with(address)),
        );
    }
    site.change(|objects| {
        objects.vpcs.iter_mut().for_each(|vpc| vpc.dns = None);
        let ports = objects.ports.iter_mut();
        ports.for_each(|port| port.hostname.clear());
    })?;
    Ok(vec![Line::new(
        "a name resolved",
        right == 2,
        right as f64,
        &format!("of 2: {name} is blue's own machine in blue, and red's in red"),
    )])
}

fn datagram_socket(namespace: &Namespace, port: u16) -> anyhow::Result<Socket> {
    let open = || {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.set_recv_buffer_size(8 << 20)?;
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into())?;
        std::io::Result::Ok(socket)
    };
    Ok(namespace.enter(open)??)
}

fn own_address(site: &Site, port: &str) -> anyhow::Result<Ipv4Addr> {
    match site.address(port, false) {
        Some(std::net::IpAddr::V4(address)) => Ok(address),
        _ => anyhow::bail!("{port} has no IPv4 address"),
    }
}

/// A stream to receivers on both hosts and in two subnets: each has every datagram, and one copy of it goes to the other host.
fn multicast(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    site.change(|objects| {
        let vpcs = objects.vpcs.iter_mut();
        vpcs.filter(|vpc| vpc.id == "blue")
            .for_each(|vpc| vpc.multicast_routing = true);
        let subnets = objects.subnets.iter_mut();
        subnets
            .filter(|subnet| subnet.vpc == "blue")
            .for_each(|subnet| subnet.multicast = "snooping".into());
    })?;
    let line = stream(site);
    site.change(|objects| {
        let vpcs = objects.vpcs.iter_mut();
        vpcs.for_each(|vpc| vpc.multicast_routing = false);
        let subnets = objects.subnets.iter_mut();
        subnets.for_each(|subnet| subnet.multicast.clear());
    })?;
    Ok(vec![line?])
}

fn stream(site: &Site) -> anyhow::Result<Line> {
    let receivers = ["blue-n1", "blue-n2", "blue-n3"].map(|port| -> anyhow::Result<Socket> {
        let socket = datagram_socket(&site.workloads[port].namespace, STREAM_PORT)?;
        let own = InterfaceIndexOrAddress::Address(own_address(site, port)?);
        socket.join_multicast_v4_n(&GROUP, &own)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(socket)
    });
    let receivers = receivers.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    wait_until("both hosts know of the receivers", SOON, || {
        let known = site.ctl(&["vpc", "listeners", "blue"]);
        known.is_ok_and(|known| known.matches(&GROUP.to_string()).count() == 2)
    })?;
    site.wait_for_hosts()?;
    let sender = datagram_socket(&site.workloads["blue-a1"].namespace, 0)?;
    sender.set_multicast_if_v4(&own_address(site, "blue-a1")?)?;
    sender.set_multicast_ttl_v4(8)?;
    let to = SocketAddrV4::new(GROUP, STREAM_PORT).into();
    let before = uplink(site)?.1;
    for number in 0..DATAGRAMS {
        sender.send_to(&[7; DATAGRAM_BYTES], &to)?;
        if number % 16 == 15 {
            // So that no queue on the way runs over.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let mut counts = Vec::new();
    for socket in &receivers {
        let mut count = 0;
        while count < DATAGRAMS
            && socket
                .recv(&mut [MaybeUninit::uninit(); DATAGRAM_BYTES])
                .is_ok()
        {
            count += 1;
        }
        counts.push(count);
    }
    let one_copy = DATAGRAMS * (DATAGRAM_BYTES + HEADER_BYTES);
    let mut copies = 0.0;
    // Counters are published a moment later. A few other packets are among them, such as probes of gateway hosts.
    wait_until("the copies have been counted", SOON, || {
        let after = uplink(site).map_or(before, |uplink| uplink.1);
        copies = (after - before) / one_copy as f64;
        copies > 0.99
    })?;
    let all = counts.iter().all(|count| *count == DATAGRAMS);
    Ok(Line::new(
        "multicast, copies to the other host",
        all && (copies - 1.0).abs() < 0.02,
        (copies * 100.0).round() / 100.0,
        &format!("of each of {DATAGRAMS} datagrams; three receivers on two hosts had {counts:?}"),
    ))
}

/// Lets two ports have an address that neither is given, and keepalived say to each other who has it.
fn virtual_address(site: &mut Site) -> anyhow::Result<Vec<Line>> {
    let before = site.objects.clone();
    site.change(|objects| {
        let ports = objects.ports.iter_mut();
        let holders = ports.filter(|port| ["blue-n1", "blue-n2"].contains(&&*port.id));
        holders.for_each(|port| {
            port.allowed_pairs = vec![AddressPair {
                cidr: format!("{VIRTUAL}/32"),
                mac: String::new(),
            }];
        });
        if let Ok(group) = group(objects, "blue") {
            group.rules.push(SecurityRule {
                direction: "ingress".into(),
                protocol: VRRP.into(),
                ..SecurityRule::default()
            });
        }
    })?;
    let line = fail_over(site);
    site.change(|objects| *objects = before)?;
    Ok(vec![line?])
}

fn keepalived(site: &Site, port: &str, priority: u32) -> anyhow::Result<Daemon> {
    let directory = site.directory().join(format!("keepalived-{port}"));
    std::fs::create_dir_all(&directory)?;
    let at = |name: &str| directory.join(name).display().to_string();
    let text = format!(
        "global_defs {{\n vrrp_version 3\n}}\n\
         vrrp_instance blue {{\n state BACKUP\n interface eth0\n virtual_router_id 7\n priority {priority}\n \
         advert_int {KEEPALIVED_INTERVAL}\n virtual_ipaddress {{\n {VIRTUAL}/24\n }}\n}}\n"
    );
    std::fs::write(at("conf"), text)?;
    let (configuration, pid, vrrp) = (at("conf"), at("pid"), at("vrrp"));
    let line = ["-n", "-l", "-f", &configuration, "-p", &pid, "-r", &vrrp];
    Ok(site.workloads[port].namespace.spawn("keepalived", &line)?)
}

/// Whether a port's machine has the address.
fn holds(site: &Site, port: &str) -> bool {
    let addresses = site.workloads[port].namespace.ip("address show dev eth0");
    addresses.is_ok_and(|text| text.contains(VIRTUAL))
}

/// keepalived on h1 is killed, and its machine with it; the one on h2 takes over, while blue-a1 pings.
fn fail_over(site: &Site) -> anyhow::Result<Line> {
    let client = &site.workloads["blue-a1"].namespace;
    let mut first = keepalived(site, "blue-n1", 150)?;
    wait_until("the first has the address", SOON, || holds(site, "blue-n1"))?;
    let _second = keepalived(site, "blue-n2", 100)?;
    wait_until("the address is reached", SOON, || client.pings(VIRTUAL, 1))?;
    let ((), silence, answered) = silent_during(client, VIRTUAL, || {
        // It is heard before it dies.
        wait_until("the address is reached", SOON, || client.pings(VIRTUAL, 5))?;
        ensure!(holds(site, "blue-n1"), "the second has it already");
        first.signal(libc::SIGKILL);
        first.wait(SOON)?;
        let machine = &site.workloads["blue-n1"].namespace;
        // Its processes may have seen to that.
        let _ = machine.ip(&format!("address del {VIRTUAL}/24 dev eth0"));
        wait_until("the second has the address", SOON, || {
            holds(site, "blue-n2")
        })?;
        let reached = wait_until("the address is reached", SOON, || client.pings(VIRTUAL, 5));
        reached.context("after the second took it over")
    })?;
    Ok(Line::new(
        "keepalived fails over, h1 to h2",
        silence <= FAILOVER && answered > 10,
        silence.as_secs_f64() * 1e3,
        &format!(
            "ms of silence, the longest of {answered} pings; its own wait is up to 400 of them"
        ),
    ))
}
