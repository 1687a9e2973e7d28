//! Services without sockets, beside plain packets in the same run: hits and misses of load balancers, and what one member more or less costs at a host;
//! hits that are marked with a DSCP; misses that policy routes are asked about; copies of multicast packets.

use weft_dataplane::pipeline::Source;
use weft_fabric::Fabric;
use weft_proto::state::State;
use weft_proto::v1::{
    Device, Host, Listener, LoadBalancer, Member, Objects, PolicyRoute, Port, Route, RouteTable,
    Subnet, Vpc,
};
use weft_tests::load;

use crate::Row;
use crate::gateway::at_host;
use crate::memory::beside;
use crate::multicast;
use crate::scenario::{self, A1, B2, PACKETS, ROUTER, fabric_of, measure};

/// The load balancer's address.
const VIP: [u8; 4] = [10, 0, 1, 200];
const MISSES: usize = 41;
/// Samples of hits that are marked, of how many flows, and of misses that policy routes are asked about.
const SAMPLES: usize = 41;
const KNOWN: usize = 1000;
const POLICY_MISSES: usize = 15;
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

/// The other suites' topology with what is measured of it.
fn with(change: impl FnOnce(&mut Objects), capacity: u32) -> anyhow::Result<Fabric> {
    let mut objects = scenario::objects()?;
    change(&mut objects);
    fabric_of(objects, capacity)
}

/// Cycles of a packet of a1 in each of several fabrics, sample by sample in turn; of known flows or of new ones.
fn in_turns<const N: usize>(
    fabrics: &mut [Fabric; N],
    (samples, is_new): (usize, bool),
) -> anyhow::Result<[Vec<f64>; N]> {
    let flows = |first: usize, count: usize| -> Vec<Vec<u8>> {
        (first..first + count)
            .map(|n| scenario::udp(n as u32))
            .collect()
    };
    let known = flows(0, KNOWN);
    for fabric in fabrics.iter_mut() {
        for frame in &known {
            let out = fabric.send("a1", frame);
            anyhow::ensure!(out.len() == 1, "{:?}", fabric.all_drops());
        }
    }
    let mut cycles: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
    for sample in 0..samples {
        let frames = match is_new {
            true => flows(KNOWN + sample * PACKETS, PACKETS),
            false => known.clone(),
        };
        for (fabric, cycles) in fabrics.iter_mut().zip(&mut cycles) {
            let (source, now) = (scenario::source(fabric)?, fabric.now);
            let host = fabric.hosts.get_mut("h1");
            let host = host.ok_or_else(|| anyhow::anyhow!("no host"))?;
            host.shared.sessions.prepare();
            let start = sample * PACKETS;
            cycles.push(measure(&mut host.pipeline, now, source, &frames, start)?);
        }
    }
    Ok(cycles)
}

/// Rows of what was measured in turns with something plain, which comes first.
fn beside_plain<const N: usize>(
    rows: &mut Vec<Row>,
    names: [&str; N],
    cycles: &[Vec<f64>; N],
    goal: Option<(f64, bool)>,
) {
    for (name, samples) in names.iter().zip(cycles) {
        rows.push(Row {
            name: format!("services: {name}"),
            unit: "cycles/packet",
            samples: samples.clone(),
            goal: None,
            peer: None,
        });
    }
    for (name, samples) in names.iter().zip(cycles).skip(1) {
        let pairs = cycles[0].iter().zip(samples);
        rows.push(Row {
            name: format!("services: {name}"),
            unit: "of a plain one",
            samples: pairs.map(|(plain, other)| other / plain).collect(),
            goal,
            peer: None,
        });
    }
}

fn marked(rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let marking = |objects: &mut Objects| objects.ports[0].dscp = Some(46);
    let mut fabrics = [with(|_| {}, 16_384)?, with(marking, 16_384)?];
    let cycles = in_turns(&mut fabrics, (SAMPLES, false))?;
    let names = [
        "hit, 1k flows, not marked",
        "hit, 1k flows, marked with a DSCP",
    ];
    beside_plain(rows, names, &cycles, Some((1.25, false)));
    Ok(())
}

/// Policy routes of which all but the last field match.
fn policies(rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let capacity = 4 * (MISSES * PACKETS) as u32;
    let site = |count: u32| {
        let policy = |n| PolicyRoute {
            priority: 1 + n,
            source: "10.0.1.0/24".into(),
            destination: "10.0.2.0/24".into(),
            protocol: "udp".into(),
            destination_port_min: Some(1),
            destination_port_max: Some(65_535),
            dscp: Some(1 + n % 63),
            to: Some(Route {
                port: "b2".into(),
                ..Route::default()
            }),
            ..PolicyRoute::default()
        };
        let change = |objects: &mut Objects| {
            objects.subnets[0].route_table = "main".into();
            objects.route_tables = vec![RouteTable {
                id: "main".into(),
                vpc: "blue".into(),
                policies: (0..count).map(policy).collect(),
                ..RouteTable::default()
            }];
        };
        with(change, capacity)
    };
    let mut fabrics = [site(0)?, site(10)?, site(1000)?];
    let cycles = in_turns(&mut fabrics, (POLICY_MISSES, true))?;
    let names = [
        "miss, UDP, no policy route",
        "miss, UDP, 10 policy routes",
        "miss, UDP, 1000 policy routes",
    ];
    beside_plain(rows, names, &cycles, None);
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
    marked(&mut rows)?;
    policies(&mut rows)?;
    changes(&mut rows)?;
    rows.extend(multicast::rows()?);
    Ok(rows)
}
