//! Load balancers without sockets: hits and misses beside plain ones in the same run, and what one member more or less costs at a host.

use weft_dataplane::pipeline::Source;
use weft_fabric::Fabric;
use weft_proto::state::State;
use weft_proto::v1::{Device, Host, Listener, LoadBalancer, Member, Objects, Port, Subnet, Vpc};
use weft_tests::load;

use crate::Row;
use crate::gateway::at_host;
use crate::memory::beside;
use crate::scenario::{self, A1, B2, PACKETS, ROUTER, fabric_of, measure};

/// The load balancer's address.
const VIP: [u8; 4] = [10, 0, 1, 200];
const MISSES: usize = 41;
/// Load balancers with ten members each, and members of one.
const MANY: u32 = 10_000;

fn member(port: String, to_port_min: u32) -> Member {
    Member {
        port,
        to_port_min,
        ..Member::default()
    }
}

fn balancer(id: String, vpc: &str, address: String, members: Vec<Member>) -> LoadBalancer {
    LoadBalancer {
        id,
        vpc: vpc.into(),
        addresses: vec![address],
        listeners: vec![Listener {
            protocol: "udp".into(),
            port_min: 1,
            port_max: 65_535,
            members,
            ..Listener::default()
        }],
        ..LoadBalancer::default()
    }
}

/// The other suites' topology with a load balancer whose members are so many ports on h2.
fn site(members: u8, capacity: u32) -> anyhow::Result<Fabric> {
    let mut objects = scenario::objects()?;
    let mut names = vec!["b2".to_owned()];
    for n in 1..members {
        let mut port = objects.ports[1].clone();
        port.id = format!("m{n}");
        port.mac = format!("02:00:00:00:03:{n:02x}");
        port.addresses = vec![format!("10.0.2.{}", 100 + n)];
        names.push(port.id.clone());
        objects.ports.push(port);
    }
    let members = names.into_iter().map(|name| member(name, 0)).collect();
    let [a, b, c, d] = VIP;
    let address = format!("{a}.{b}.{c}.{d}");
    objects.load_balancers = vec![balancer("web".into(), "blue", address, members)];
    fabric_of(objects, capacity)
}

/// New flows to a port, and new flows to the load balancer, sample by sample in turn.
fn misses(rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let mut fabric = site(10, 4 * (MISSES * PACKETS) as u32)?;
    let source = scenario::source(&fabric)?;
    let now = fabric.now;
    let host = fabric.hosts.get_mut("h1");
    let host = host.ok_or_else(|| anyhow::anyhow!("no host"))?;
    let mut samples: [Vec<f64>; 2] = Default::default();
    for sample in 0..MISSES {
        host.shared.sessions.prepare();
        for (kind, to, port) in [(0, B2.1, 1000), (1, VIP, 20_000)] {
            let first = (sample * PACKETS) as u32;
            let frames: Vec<Vec<u8>> = (first..first + PACKETS as u32)
                .map(|number| {
                    let ports = (number as u16, port + (number >> 16) as u16);
                    load::udp((ROUTER, A1.0), (A1.1, to), ports, 18)
                })
                .collect();
            let cycles = measure(&mut host.pipeline, now, source, &frames, 0)?;
            samples[kind].push(cycles);
        }
    }
    let [plain, balanced] = samples;
    let pairs = plain.iter().zip(&balanced);
    let ratios = pairs.map(|(plain, other)| other / plain).collect();
    for (what, samples) in [("plain", plain), ("with the choice of a member", balanced)] {
        rows.push(Row {
            name: format!("services: miss, UDP, {what}"),
            unit: "cycles/packet",
            samples,
            goal: None,
            peer: None,
        });
    }
    rows.push(Row {
        name: "services: miss with the choice of a member".into(),
        unit: "of a plain one",
        samples: ratios,
        goal: Some((1.3, false)),
        peer: None,
    });
    Ok(())
}

fn hits(rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let mut fabric = site(1, 16_384)?;
    let source = scenario::source(&fabric)?;
    let ways = [
        (source, "encapsulation"),
        (Source::Uplink(0), "decapsulation"),
    ];
    beside(rows, &mut fabric, ways, VIP, "balanced")
}

/// One VPC with a thousand ports on another host, and load balancers with members among them, one of which has one member less in the second state.
fn region(balancers: u32, members: u32) -> anyhow::Result<[State; 2]> {
    let host = |n: u32| Host {
        id: format!("h{n}"),
        vteps: vec![format!("192.0.2.{n}")],
        ..Host::default()
    };
    let mut objects = Objects {
        hosts: vec![host(1), host(2)],
        vpcs: vec![Vpc {
            id: "v".into(),
            vni: 100,
            ..Vpc::default()
        }],
        subnets: vec![Subnet {
            id: "v".into(),
            vpc: "v".into(),
            cidrs: vec!["10.0.0.0/8".into()],
            ..Subnet::default()
        }],
        ..Objects::default()
    };
    let ports = members.max(1000);
    for n in 0..ports {
        let [_, a, b, c] = n.to_be_bytes();
        let is_here = n == 0;
        objects.ports.push(Port {
            id: format!("p{n}"),
            vpc: "v".into(),
            subnet: "v".into(),
            mac: format!("02:00:00:{a:02x}:{b:02x}:{c:02x}"),
            addresses: vec![format!("10.1.{b}.{c}")],
            host: if is_here { "h1" } else { "h2" }.into(),
            device: is_here.then(|| Device {
                kind: "netdev".into(),
                name: "p0".into(),
                ..Device::default()
            }),
            ..Port::default()
        });
    }
    for n in 0..balancers {
        let own = (0..members).map(|m| member(format!("p{}", (n * 7 + m) % ports), 0));
        let address = format!("10.2.{}.{}", n >> 8, n & 255);
        let balancer = balancer(format!("lb{n:05}"), "v", address, own.collect());
        objects.load_balancers.push(balancer);
    }
    let all = State::from_objects(objects.clone())?;
    let at = objects.load_balancers.len() / 2;
    objects.load_balancers[at].listeners[0].members.pop();
    Ok([all, State::from_objects(objects)?])
}

fn changes(rows: &mut Vec<Row>) -> anyhow::Result<()> {
    for (what, balancers, members) in [
        ("10k load balancers of 10 members", MANY, 10),
        ("a load balancer of 10,000 members", 1, MANY),
    ] {
        let states = region(balancers, members)?;
        rows.push(Row {
            name: format!("services: one member more or less, {what}"),
            unit: "ms",
            samples: at_host("h1", [&states[0], &states[1]])?,
            goal: Some((5.0, false)),
            peer: None,
        });
    }
    Ok(())
}

pub(crate) fn rows() -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    hits(&mut rows)?;
    misses(&mut rows)?;
    changes(&mut rows)?;
    Ok(rows)
}
