//! How cost grows: the hit path and the miss path with ever more VPCs, routes, rules and ports around them.
//!
//! Hits are 1000 flows, however many things there are; misses are new flows. VPCs and ports are seen from the far host, where packets come out of
//! the tunnel and may be for any of them: traffic goes to a thousand of them at most. Routes and rules are seen from the near host, where they are applied.

use std::net::Ipv4Addr;

use weft_dataplane::pipeline::Source;
use weft_fabric::Fabric;
use weft_proto::v1::{Objects, Port, Route, RouteTable, SecurityGroup, SecurityRule, Subnet, Vpc};
use weft_tests::load;

use crate::scenario::{self, A1, PACKETS, ROUTER, fabric_of, measure, objects};
use crate::{Row, median};

const HITS: usize = 101;
const MISSES: usize = 21;
const FLOWS: usize = 1000;
/// Where the port of the inner UDP header lies in a VXLAN packet over IPv4.
const INNER_PORT: usize = 50 + 34;

/// One sweep: what grows, to which sizes, and the objects of a size.
struct Sweep {
    what: &'static str,
    sizes: &'static [usize],
    objects: fn(usize) -> anyhow::Result<Objects>,
    /// Frames of new flows of a size, from a number on.
    traffic: Traffic,
}

enum Traffic {
    /// From a1 to addresses that the routes lead to.
    Out(fn(usize, u32) -> Vec<u8>),
    /// Out of the tunnel, to a port of each of these names.
    In(fn(usize) -> (String, Vec<u8>)),
}

/// A port of a VPC's subnet, one of a pair: on h1 for sending, on h2 for receiving.
fn pair(vpc: &str, subnet: &str, number: usize, addresses: [Ipv4Addr; 2]) -> [Port; 2] {
    [0, 1].map(|side| Port {
        id: format!("{vpc}-{number}-{side}"),
        vpc: vpc.into(),
        subnet: subnet.into(),
        mac: format!(
            "02:1{side}:{:02x}:{:02x}:{:02x}:00",
            number >> 16 & 0xff,
            number >> 8 & 0xff,
            number & 0xff
        ),
        addresses: vec![addresses[side].to_string()],
        security_groups: vec![format!("open-{vpc}")],
        host: format!("h{}", side + 1),
        ..Port::default()
    })
}

/// A group that lets UDP in.
fn open(vpc: &str) -> SecurityGroup {
    SecurityGroup {
        id: format!("open-{vpc}"),
        vpc: vpc.into(),
        rules: vec![SecurityRule {
            direction: "ingress".into(),
            protocol: "udp".into(),
            ..SecurityRule::default()
        }],
        ..SecurityGroup::default()
    }
}

/// The frame that the first of a pair sends to the second.
fn between(number: usize, addresses: [Ipv4Addr; 2]) -> Vec<u8> {
    let mac = |side: u8| {
        [
            2,
            0x10 + side,
            (number >> 16) as u8,
            (number >> 8) as u8,
            number as u8,
            0,
        ]
    };
    load::udp(
        (mac(1), mac(0)),
        (addresses[0].octets(), addresses[1].octets()),
        (1000, 53),
        18,
    )
}

/// VPCs, of which the first thousand have a port on each host.
fn vpcs(count: usize) -> anyhow::Result<Objects> {
    let mut objects = objects()?;
    for number in 0..count {
        let id = format!("v{number}");
        objects.vpcs.push(Vpc {
            id: id.clone(),
            vni: 1000 + number as u32,
            ..Vpc::default()
        });
        objects.subnets.push(Subnet {
            id: format!("s-{id}"),
            vpc: id.clone(),
            cidrs: vec!["10.9.0.0/24".into()],
            ..Subnet::default()
        });
        if number < FLOWS {
            objects.security_groups.push(open(&id));
            objects
                .ports
                .extend(pair(&id, &format!("s-{id}"), number, VPC_ADDRESSES));
        }
    }
    Ok(objects)
}

const VPC_ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 9, 0, 10), Ipv4Addr::new(10, 9, 0, 11)];

/// Ports of one VPC on each host.
fn ports(count: usize) -> anyhow::Result<Objects> {
    let mut objects = objects()?;
    objects.vpcs.push(Vpc {
        id: "many".into(),
        vni: 999,
        ..Vpc::default()
    });
    objects.subnets.push(Subnet {
        id: "many".into(),
        vpc: "many".into(),
        cidrs: vec!["10.128.0.0/9".into()],
        ..Subnet::default()
    });
    objects.security_groups.push(open("many"));
    for number in 0..count {
        objects
            .ports
            .extend(pair("many", "many", number, port_addresses(number)));
    }
    Ok(objects)
}

fn port_addresses(number: usize) -> [Ipv4Addr; 2] {
    [0, 1].map(|side| Ipv4Addr::from_bits(0x0a80_0100 + 2 * number as u32 + side))
}

/// Routes to b2, a /28 each, in the table of a1's subnet.
fn routes(count: usize) -> anyhow::Result<Objects> {
    let mut objects = objects()?;
    let route = |number: u32| Route {
        prefix: format!("{}/28", destination(number)),
        port: "b2".into(),
        ..Route::default()
    };
    objects.route_tables.push(RouteTable {
        id: "t".into(),
        vpc: "blue".into(),
        routes: (0..count as u32).map(route).collect(),
        ..RouteTable::default()
    });
    if let Some(subnet) = objects.subnets.iter_mut().find(|subnet| subnet.id == "a") {
        subnet.route_table = "t".into();
    }
    Ok(objects)
}

fn destination(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x1400_0000 + number * 16)
}

/// Rules of a1 on what it may send, of which the last admits what it does send.
fn rules(count: usize) -> anyhow::Result<Objects> {
    let mut objects = objects()?;
    let rule = |cidr: String, port: Option<u32>| SecurityRule {
        direction: "egress".into(),
        protocol: "udp".into(),
        remote_cidr: cidr,
        port_min: port,
        port_max: port,
        ..SecurityRule::default()
    };
    let others = (1..count as u32).map(|number| {
        rule(
            format!("{}/28", destination(number * 7)),
            Some(number % 60_000 + 1),
        )
    });
    let rules = others.chain([rule("10.0.2.0/24".into(), None)]);
    if let Some(group) = objects
        .security_groups
        .iter_mut()
        .find(|group| group.id == "open")
    {
        group.rules.extend(rules);
    }
    Ok(objects)
}

/// Scatters numbers, so that neighbours in time are not neighbours in the table.
fn scattered(number: u32, count: usize) -> u32 {
    ((u64::from(number.wrapping_mul(0x9e37_79b1)) * count as u64) >> 32) as u32
}

fn to_route(count: usize, number: u32) -> Vec<u8> {
    let to = Ipv4Addr::from_bits(destination(scattered(number, count)).to_bits() + 1);
    load::udp(
        (ROUTER, A1.0),
        (A1.1, to.octets()),
        (number as u16, 1000 + (number >> 16) as u16),
        18,
    )
}

fn to_b2(_: usize, number: u32) -> Vec<u8> {
    scenario::udp(number)
}

fn sweeps() -> [Sweep; 4] {
    let to_vpc = |number: usize| {
        (
            format!("v{number}-{number}-0"),
            between(number, VPC_ADDRESSES),
        )
    };
    let to_port = |number: usize| {
        (
            format!("many-{number}-0"),
            between(number, port_addresses(number)),
        )
    };
    [
        Sweep {
            what: "VPCs",
            sizes: &[1, 1000, 10_000, 100_000],
            objects: vpcs,
            traffic: Traffic::In(to_vpc),
        },
        Sweep {
            what: "routes",
            sizes: &[10, 1000, 100_000, 1_000_000],
            objects: routes,
            traffic: Traffic::Out(to_route),
        },
        Sweep {
            what: "rules",
            sizes: &[1, 100, 1000, 10_000],
            objects: rules,
            traffic: Traffic::Out(to_b2),
        },
        Sweep {
            what: "ports",
            sizes: &[1, 100, 1000, 10_000],
            objects: ports,
            traffic: Traffic::In(to_port),
        },
    ]
}

/// What a size's traffic is made from: frames to repeat, and a maker of new ones.
struct Load {
    host: &'static str,
    source: Source,
    known: Vec<Vec<u8>>,
    fresh: Box<dyn Fn(u32) -> Vec<u8>>,
}

impl Sweep {
    fn load(&self, fabric: &mut Fabric, size: usize) -> anyhow::Result<Load> {
        match self.traffic {
            Traffic::Out(make) => Ok(Load {
                host: "h1",
                source: scenario::source(fabric)?,
                known: (0..FLOWS as u32).map(|number| make(size, number)).collect(),
                fresh: Box::new(move |number| make(size, FLOWS as u32 + number)),
            }),
            Traffic::In(make) => {
                let mut templates = Vec::new();
                for number in 0..size.min(FLOWS) {
                    let (port, frame) = make(number);
                    fabric.crossed.clear();
                    anyhow::ensure!(
                        fabric.send(&port, &frame).len() == 1,
                        "{port}: {:?}",
                        fabric.all_drops()
                    );
                    templates.append(&mut fabric.crossed);
                }
                // Other flows between the same ends: another source port in the inner header, which no checksum covers.
                let of = move |number: u32| {
                    let place = number as usize % templates.len();
                    let flow = number as usize / templates.len();
                    let mut frame = templates[place].clone();
                    frame[INNER_PORT..INNER_PORT + 2].copy_from_slice(&(flow as u16).to_be_bytes());
                    frame[INNER_PORT + 2..INNER_PORT + 4]
                        .copy_from_slice(&(53 + (flow >> 16) as u16).to_be_bytes());
                    frame
                };
                let known = (0..FLOWS as u32).map(&of).collect();
                Ok(Load {
                    host: "h2",
                    source: Source::Uplink(0),
                    known,
                    fresh: Box::new(move |number| of(FLOWS as u32 + number)),
                })
            }
        }
    }

    /// Cycles per packet at a size: of hits, and of misses.
    fn measure(&self, size: usize) -> anyhow::Result<[Vec<f64>; 2]> {
        let mut fabric = fabric_of((self.objects)(size)?, 2 * (FLOWS + MISSES * PACKETS) as u32)?;
        let load = self.load(&mut fabric, size)?;
        let now = fabric.now;
        let host = fabric
            .hosts
            .get_mut(load.host)
            .ok_or_else(|| anyhow::anyhow!("no host"))?;
        let hits = (0..HITS)
            .map(|_| measure(&mut host.pipeline, now, load.source, &load.known, 0))
            .collect::<anyhow::Result<_>>()?;
        let misses = (0..MISSES).map(|sample| {
            host.shared.sessions.prepare();
            let first = (sample * PACKETS) as u32;
            let frames: Vec<Vec<u8>> = (first..first + PACKETS as u32).map(&load.fresh).collect();
            measure(&mut host.pipeline, now, load.source, &frames, 0)
        });
        let misses = misses.collect::<anyhow::Result<_>>()?;
        Ok([hits, misses])
    }
}

pub(crate) fn rows() -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for sweep in sweeps() {
        let mut medians = [Vec::new(), Vec::new()];
        for size in sweep.sizes {
            eprintln!("   {size} {}", sweep.what);
            for (kind, (path, samples)) in ["hit", "miss"]
                .into_iter()
                .zip(sweep.measure(*size)?)
                .enumerate()
            {
                medians[kind].push(median(&samples));
                let name = format!("scale: {path}, {size} {}", sweep.what);
                rows.push(Row {
                    name,
                    unit: "cycles/packet",
                    samples,
                    goal: None,
                    peer: None,
                });
            }
        }
        for ((path, goal), medians) in [("hit", 1.25), ("miss", 2.0)].into_iter().zip(medians) {
            let (first, most) = (medians[0], medians.iter().copied().fold(0.0, f64::max));
            let sizes = (sweep.sizes[0], sweep.sizes[sweep.sizes.len() - 1]);
            let name = format!(
                "scale: {path}, the most over {} {}, up to {}",
                sizes.0, sweep.what, sizes.1
            );
            rows.push(Row {
                name,
                unit: "times",
                samples: vec![most / first],
                goal: Some((goal, false)),
                peer: None,
            });
        }
    }
    Ok(rows)
}
