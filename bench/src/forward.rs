//! Forwarding through real sockets: 60-byte UDP from a workload on one host to one on the other, in 64 flows, and the same through the
//! kernel's VXLAN device, bridge and a stateful nftables ruleset, on the same cores in the same run, interleaved.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use weft_proto::v1::Objects;
use weft_tests::site::UPLINK;
use weft_tests::{Lab, LinkOptions, Namespace, RawSocket, Site, SiteOptions, load};

use crate::{Row, median};

const SAMPLES: usize = 5;
const TIME: Duration = Duration::from_secs(2);
/// Rules that a packet passes before the one that admits it.
const RULES: u16 = 100;
const A: ([u8; 6], [u8; 4]) = ([2, 0, 0, 0, 1, 1], [10, 0, 1, 11]);
const B: ([u8; 6], [u8; 4]) = ([2, 0, 0, 0, 1, 2], [10, 0, 1, 12]);

const TOPOLOGY: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}]
vpcs: [{id: blue, vni: 100}]
subnets: [{id: blue, vpc: blue, cidrs: [10.0.1.0/24], mtu: 1430}]
security_groups:
  - {id: blue, vpc: blue, rules: []}
ports:
  - {id: a, vpc: blue, subnet: blue, mac: "02:00:00:00:01:01", addresses: [10.0.1.11], security_groups: [blue], host: h1, device: {kind: netdev, name: p-a}}
  - {id: b, vpc: blue, subnet: blue, mac: "02:00:00:00:01:02", addresses: [10.0.1.12], security_groups: [blue], host: h2, device: {kind: netdev, name: p-b}}
"#;

fn ours() -> anyhow::Result<Site> {
    let mut objects: Objects = serde_yaml_ng::from_str(TOPOLOGY)?;
    let port = |port: u16| weft_proto::v1::SecurityRule {
        direction: "ingress".into(),
        protocol: "udp".into(),
        port_min: Some(port.into()),
        port_max: Some(port.into()),
        ..Default::default()
    };
    let mut tcp = port(5201);
    tcp.protocol = "tcp".into();
    objects.security_groups[0].rules = (0..RULES)
        .map(|number| port(20_000 + number))
        .chain([port(9), tcp])
        .collect();
    let options = SiteOptions {
        daemon: "memory.frames = 32768\nworkers.threaded_napi = true".into(),
        cores: vec![vec![0], vec![1]],
        ..SiteOptions::default()
    };
    Ok(Site::start(Lab::new()?, &objects, &options)?)
}

/// The kernel's own overlay: two hosts, each with a bridge, a VXLAN device and a ruleset.
struct Kernel {
    _lab: Lab,
    from: Namespace,
    to: Namespace,
}

fn kernel() -> anyhow::Result<Kernel> {
    let mut lab = Lab::new()?;
    let hosts = [lab.host("k1")?, lab.host("k2")?];
    lab.link(
        (&hosts[0], UPLINK),
        (&hosts[1], UPLINK),
        LinkOptions::default(),
    )?;
    let mut workloads = Vec::new();
    for (number, (host, end)) in (1..).zip(hosts.iter().zip([A, B])) {
        host.ip(&format!("address add 192.0.2.{number}/24 dev {UPLINK}"))?;
        host.ip(&format!("link add vx0 type vxlan id 100 dstport 4789 local 192.0.2.{number} remote 192.0.2.{} dev {UPLINK}", 3 - number))?;
        host.ip("link add br0 type bridge")?;
        let workload = lab.host(&format!("w{number}"))?;
        lab.link(
            (host, "p0"),
            (&workload, "eth0"),
            LinkOptions {
                mtu: 1430,
                ..LinkOptions::default()
            },
        )?;
        for port in ["vx0", "p0"] {
            host.ip(&format!("link set {port} master br0"))?;
            host.ip(&format!("link set {port} up"))?;
        }
        host.ip("link set br0 up")?;
        let mac = end.0.map(|byte| format!("{byte:02x}")).join(":");
        workload.ip(&format!("link set eth0 address {mac}"))?;
        workload.ip(&format!(
            "address add {}/24 dev eth0",
            std::net::Ipv4Addr::from(end.1)
        ))?;
        host.run(&["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"])?;
        ruleset(host)?;
        workloads.push(workload);
    }
    let to = workloads.remove(1);
    let from = workloads.remove(0);
    anyhow::ensure!(
        from.pings("10.0.1.12", 3),
        "the kernel's overlay does not work"
    );
    Ok(Kernel {
        _lab: lab,
        from,
        to,
    })
}

/// Stateful rules on what the bridge forwards: established passes, then so many rules, then the one that admits.
fn ruleset(host: &Namespace) -> anyhow::Result<()> {
    let rules: String = (0..RULES)
        .map(|number| format!("udp dport {} accept\n", 20_000 + number))
        .collect();
    let text = format!(
        "table ip weft {{\nchain forward {{\ntype filter hook forward priority 0; policy drop;\nct state established,related accept\n{rules}udp dport 9 accept\ntcp dport 5201 accept\nip protocol icmp accept\n}}\n}}\n"
    );
    let mut command: Command = host.command("nft");
    let mut child = command.args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    child
        .stdin
        .take()
        .ok_or_else(|| anyhow::anyhow!("no standard input"))?
        .write_all(text.as_bytes())?;
    anyhow::ensure!(child.wait()?.success(), "nft refuses the ruleset");
    Ok(())
}

/// One packet of each flow there and one back, so that a stateful rule sets them established.
fn establish(from: &Namespace, to: &Namespace, frames: &[Vec<u8>]) -> anyhow::Result<()> {
    let (there, back) = (RawSocket::open(from, "eth0")?, RawSocket::open(to, "eth0")?);
    for frame in frames {
        there.send(frame)?;
        let port = u16::from_be_bytes([frame[34], frame[35]]);
        back.send(&load::udp((A.0, B.0), (B.1, A.1), (9, port), 18))?;
    }
    Ok(())
}

/// One TCP stream: ours; the kernel's with segments of one packet each, as ours are; and the kernel's with large ones.
pub(crate) fn tcp(peers: bool) -> anyhow::Result<Vec<Row>> {
    let site = ours()?;
    let kernel = if peers { Some(kernel()?) } else { None };
    let address = "10.0.1.12";
    let (from, to) = (
        &site.workloads["a"].namespace,
        &site.workloads["b"].namespace,
    );
    let (mut samples, mut small, mut large) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        samples.push(load::tcp(from, (to, address), false, 2)?);
        for (on, peer) in [(false, &mut small), (true, &mut large)] {
            if let Some(kernel) = &kernel {
                let word = if on {
                    "tso on gso on gro on"
                } else {
                    "tso off gso off gro off"
                };
                kernel.from.offloads("eth0", word)?;
                kernel.to.offloads("eth0", word)?;
                peer.push(load::tcp(&kernel.from, (&kernel.to, address), false, 2)?);
            }
        }
    }
    let row = |peer: Vec<f64>, share: f64, what: &'static str| Row {
        name: format!("tcp: one stream across two hosts, VXLAN, beside {what}"),
        unit: "Gbit/s",
        samples: samples.clone(),
        goal: kernel.is_some().then(|| (share * median(&peer), true)),
        peer: kernel.is_some().then_some((what, peer)),
    };
    Ok(vec![
        row(small, 1.0, "the kernel's with segmentation offload off"),
        row(large, 0.5, "the kernel's with segmentation offload on"),
    ])
}

pub(crate) fn rows(peers: bool) -> anyhow::Result<Vec<Row>> {
    let frames = load::udp_flows((B.0, A.0), (A.1, B.1), 64, 18);
    let site = ours()?;
    let kernel = if peers { Some(kernel()?) } else { None };
    let (from, to) = (
        &site.workloads["a"].namespace,
        &site.workloads["b"].namespace,
    );
    establish(from, to, &frames)?;
    load::sink(to, "eth0")?;
    if let Some(kernel) = &kernel {
        load::sink(&kernel.to, "eth0")?;
        establish(&kernel.from, &kernel.to, &frames)?;
    }
    let (mut samples, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        samples.push(load::measure((from, "eth0"), (to, "eth0"), &frames, TIME)?.arrived / 1e6);
        if let Some(kernel) = &kernel {
            peer.push(
                load::measure((&kernel.from, "eth0"), (&kernel.to, "eth0"), &frames, TIME)?.arrived
                    / 1e6,
            );
        }
    }
    let goal = kernel.is_some().then(|| (3.0 * median(&peer), true));
    let name = "forward: namespace to namespace across two hosts, VXLAN, group of 101 rules, 60 bytes, 64 flows".to_owned();
    let peer = kernel
        .is_some()
        .then_some(("kernel VXLAN + bridge + nftables with 101 rules", peer));
    Ok(vec![Row {
        name,
        unit: "million packets/s",
        samples,
        goal,
        peer,
    }])
}
