//! The pipeline without sockets: cycles per packet, from vectors of packets in plain memory to packets ready to be sent.

use weft_dataplane::packet::parse::address_word;
use weft_dataplane::pipeline::Source;
use weft_dataplane::snapshot::StaticTranslation;
use weft_fabric::Fabric;
use weft_proto::v1::{Objects, RateLimit, RateLimits};
use weft_tests::load;

use crate::scenario::{
    self, A1, B2, PACKETS, ROUTER, Way, connect, fabric, measure, tcp, udp, udp6,
};
use crate::{Row, clock};

/// Of hits; the first of them warm caches and clock up.
const SAMPLES: usize = 401;
/// Flows whose hits are compared.
const FLOWS: u32 = 1000;
/// Of misses: each takes sessions for good.
const MISSES: usize = 41;

/// Samples of one host's pipeline: each goes on where the one before ended, so that the cold case is cold.
fn samples(
    fabric: &mut Fabric,
    host: &str,
    source: Source,
    frames: &[Vec<u8>],
) -> anyhow::Result<Vec<f64>> {
    let now = fabric.now;
    let host = fabric
        .hosts
        .get_mut(host)
        .ok_or_else(|| anyhow::anyhow!("no host"))?;
    (0..SAMPLES)
        .map(|sample| measure(&mut host.pipeline, now, source, frames, sample * PACKETS))
        .collect()
}

fn row(what: &str, samples: Vec<f64>, goal: Option<f64>) -> Row {
    Row {
        name: format!("memory: {what}"),
        unit: "cycles/packet",
        samples,
        goal: goal.map(|goal| (goal, false)),
        peer: None,
    }
}

/// Both ways of flows whose frames come from `make`: out of h1 into the tunnel, and out of the tunnel at h2.
fn hits(
    rows: &mut Vec<Row>,
    flows: u32,
    make: impl Fn(&mut Fabric, u32) -> anyhow::Result<Vec<u8>>,
    what: &str,
    goal: Option<f64>,
) -> anyhow::Result<()> {
    let objects = scenario::objects()?;
    hits_with(rows, (objects, flows), make, what, goal)
}

/// The same with other objects.
fn hits_with(
    rows: &mut Vec<Row>,
    (objects, flows): (Objects, u32),
    make: impl Fn(&mut Fabric, u32) -> anyhow::Result<Vec<u8>>,
    what: &str,
    goal: Option<f64>,
) -> anyhow::Result<()> {
    let mut fabric = scenario::fabric_of(objects, flows * 2)?;
    let source = scenario::source(&fabric)?;
    let (mut frames, mut tunnelled) = (Vec::new(), Vec::new());
    for number in 0..flows {
        let frame = make(&mut fabric, number)?;
        fabric.crossed.clear();
        anyhow::ensure!(
            fabric.send("a1", &frame).len() == 1,
            "{:?}",
            fabric.all_drops()
        );
        tunnelled.append(&mut fabric.crossed);
        frames.push(frame);
    }
    let out = samples(&mut fabric, "h1", source, &frames)?;
    rows.push(row(
        &format!("hit, {what}: group + ACL + route + VXLAN encapsulation"),
        out,
        goal,
    ));
    let back = samples(&mut fabric, "h2", Source::Uplink(0), &tunnelled)?;
    rows.push(row(
        &format!("hit, {what}: decapsulation + group + ACL"),
        back,
        goal,
    ));
    Ok(())
}

/// The topology with every limit on the port that sends and on the one that receives, so wide that nothing is dropped.
fn limited() -> anyhow::Result<Objects> {
    let limit = RateLimit {
        bits_per_second: 1_000_000_000_000,
        burst_bits: 60_000_000_000_000,
        packets_per_second: 1_000_000_000,
        burst_packets: 60_000_000_000,
    };
    let mut objects = scenario::objects()?;
    for port in &mut objects.ports {
        port.limits = Some(RateLimits {
            egress: Some(limit),
            ingress: Some(limit),
        });
    }
    Ok(objects)
}

/// Hits of flows that are translated beside hits of flows that are not, sample by sample in turn: into the tunnel at h1, and out of it there.
fn translated(rows: &mut Vec<Row>) -> anyhow::Result<()> {
    const OUTSIDE: [u8; 4] = [198, 18, 0, 9];
    let mut fabric = fabric(FLOWS * 8)?;
    fabric.translations = vec![StaticTranslation {
        vpc: "blue".into(),
        inside: address_word(B2.1.into()),
        outside: address_word(OUTSIDE.into()),
        towards: Vec::new(),
    }];
    let state = fabric.state().clone();
    fabric
        .set(state)
        .map_err(|violations| anyhow::anyhow!("{violations:?}"))?;
    let source = scenario::source(&fabric)?;
    let ways = [
        (source, "encapsulation"),
        (Source::Uplink(0), "decapsulation"),
    ];
    beside(rows, &mut fabric, ways, OUTSIDE, "translated")
}

/// Hits of flows from a1 to an address behind which b2 is, beside hits of flows to b2 itself, sample by sample in turn: into the tunnel at h1, and out of it
/// there.
pub(crate) fn beside(
    rows: &mut Vec<Row>,
    fabric: &mut Fabric,
    ways: [(Source, &str); 2],
    address: [u8; 4],
    called: &str,
) -> anyhow::Result<()> {
    let datagram = |from: ([u8; 6], [u8; 4]), to: [u8; 4], ports| {
        let mut frame = load::udp((ROUTER, from.0), (from.1, to), ports, 18);
        // Any but none: it is changed, and nobody looks whether it was right.
        frame[40..42].copy_from_slice(&[0x12, 0x34]);
        frame
    };
    // To the tunnel and out of it, plain and translated.
    let mut frames: [[Vec<Vec<u8>>; 2]; 2] = Default::default();
    for number in 0..FLOWS as u16 {
        for (kind, to, port) in [(0, B2.1, 1000), (1, address, 1001)] {
            for (way, from, frame) in [
                (0, "a1", datagram(A1, to, (number, port))),
                (1, "b2", datagram(B2, A1.1, (port, number))),
            ] {
                fabric.crossed.clear();
                anyhow::ensure!(
                    fabric.send(from, &frame).len() == 1,
                    "{:?}",
                    fabric.all_drops()
                );
                frames[way][kind].push(if way == 0 {
                    frame
                } else {
                    fabric.crossed.remove(0)
                });
            }
        }
    }
    let now = fabric.now;
    let host = fabric.hosts.get_mut("h1");
    let host = host.ok_or_else(|| anyhow::anyhow!("no host"))?;
    for (way, (source, what)) in ways.into_iter().enumerate() {
        let mut samples: [Vec<f64>; 2] = Default::default();
        for sample in 0..SAMPLES {
            for kind in [0, 1] {
                let frames = &frames[way][kind];
                let first = sample * PACKETS;
                samples[kind].push(measure(&mut host.pipeline, now, source, frames, first)?);
            }
        }
        let [plain, translated] = samples;
        let ratios = plain
            .iter()
            .zip(&translated)
            .map(|(plain, other)| other / plain);
        let ratios = ratios.collect();
        rows.push(row(
            &format!("hit, 1k flows, beside {called} ones: {what}"),
            plain,
            None,
        ));
        rows.push(row(
            &format!("hit, 1k flows, {called}: {what}"),
            translated,
            None,
        ));
        rows.push(Row {
            name: format!("memory: {called} hit: {what}"),
            unit: "of a plain one",
            samples: ratios,
            goal: Some((1.25, false)),
            peer: None,
        });
    }
    Ok(())
}

/// New flows, none of which comes twice.
fn misses(make: impl Fn(u32) -> Vec<u8>) -> anyhow::Result<Vec<f64>> {
    let mut fabric = fabric(2 * (MISSES * PACKETS) as u32)?;
    let source = scenario::source(&fabric)?;
    let now = fabric.now;
    let host = fabric
        .hosts
        .get_mut("h1")
        .ok_or_else(|| anyhow::anyhow!("no host"))?;
    (0..MISSES)
        .map(|sample| {
            // As the daemon does, beside the workers.
            host.shared.sessions.prepare();
            let first = (sample * PACKETS) as u32;
            let frames: Vec<Vec<u8>> = (first..first + PACKETS as u32).map(&make).collect();
            measure(&mut host.pipeline, now, source, &frames, 0)
        })
        .collect()
}

pub(crate) fn rows() -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut pace = Vec::new();
    pace.push(clock::pace());
    hits(
        &mut rows,
        1_000,
        |_, number| Ok(udp(number)),
        "1k flows",
        Some(100.0),
    )?;
    pace.push(clock::pace());
    hits(
        &mut rows,
        1_000_000,
        |_, number| Ok(udp(number)),
        "1M flows",
        Some(250.0),
    )?;
    pace.push(clock::pace());
    hits(
        &mut rows,
        1_000,
        |_, number| Ok(udp6(number)),
        "1k flows of IPv6",
        None,
    )?;
    pace.push(clock::pace());
    hits(&mut rows, 1_000, connect, "1k TCP connections", None)?;
    let with_limits = (limited()?, 1_000);
    let what = "1k flows, rate limits of bits and packets";
    let make = |_: &mut Fabric, number| Ok(udp(number));
    hits_with(&mut rows, with_limits, make, what, None)?;
    pace.push(clock::pace());
    translated(&mut rows)?;
    let syn = misses(|number| tcp(number, Way::There, 2, (100, 0)))?;
    let per_second = syn
        .iter()
        .map(|cycles| clock::hertz() / cycles / 1e6)
        .collect();
    rows.push(row(
        "miss, TCP SYN: decision and install",
        syn,
        Some(1500.0),
    ));
    rows.push(Row {
        name: "memory: new sessions".into(),
        unit: "million/s/core",
        samples: per_second,
        goal: Some((1.0, true)),
        peer: None,
    });
    rows.push(row("miss, UDP: decision and install", misses(udp)?, None));
    rows.push(Row {
        name: "memory: the core's own cycles in one of the counter that the rest is measured by"
            .into(),
        unit: "cycles",
        samples: pace,
        goal: None,
        peer: None,
    });
    Ok(rows)
}
