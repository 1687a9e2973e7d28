//! The pipeline without sockets: cycles per packet, from vectors of packets in plain memory to packets ready to be sent.

use weft_dataplane::fabric::{Fabric, MemoryIo};
use weft_dataplane::packet::{FrameMemory, Packet};
use weft_dataplane::pipeline::{Settings, Source, VECTOR};
use weft_dataplane::session::Limits;
use weft_proto::state::State;
use weft_proto::v1::{AclRule, NetworkAcl, Objects};
use weft_tests::load;

use crate::Row;
use crate::clock::cycles;

const SAMPLES: usize = 9;
const ROUNDS: usize = 400;
/// Packets of one sample.
pub(crate) const PACKETS: u32 = (ROUNDS * VECTOR) as u32;
const HEADROOM: usize = 256 + 50;

pub(crate) const TOPOLOGY: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}]
vpcs: [{id: blue, vni: 100}]
subnets:
  - {id: a, vpc: blue, cidrs: [10.0.1.0/24], network_acl: acl}
  - {id: b, vpc: blue, cidrs: [10.0.2.0/24]}
security_groups: [{id: open, vpc: blue, rules: [{direction: ingress, protocol: udp}, {direction: ingress, protocol: tcp}]}]
ports:
  - {id: a1, vpc: blue, subnet: a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11], security_groups: [open], host: h1}
  - {id: b2, vpc: blue, subnet: b, mac: "02:00:00:00:02:02", addresses: [10.0.2.12], security_groups: [open], host: h2}
"#;

const ROUTER: [u8; 6] = [0x02, 0x77, 0x65, 0x66, 0x74, 0x01];

fn fabric(capacity: u32) -> anyhow::Result<Fabric> {
    let mut objects: Objects = serde_yaml_ng::from_str(TOPOLOGY)?;
    let rule = |direction: &str| AclRule {
        number: 1,
        direction: direction.into(),
        action: "allow".into(),
        ..AclRule::default()
    };
    objects.network_acls = vec![NetworkAcl {
        id: "acl".into(),
        vpc: "blue".into(),
        rules: vec![rule("ingress"), rule("egress")],
    }];
    let limits = Limits {
        capacity,
        per_port: capacity,
        per_vpc: capacity,
        ports: 16,
        vpcs: 16,
    };
    Fabric::new(
        State::from_objects(objects)?,
        &Settings {
            ports: 16,
            ..Settings::default()
        },
        limits,
    )
    .map_err(|violations| anyhow::anyhow!("{violations:?}"))
}

/// A UDP packet of 60 bytes (64 on the wire) of flow `number`, from a1 through its gateway to b2.
pub(crate) fn frame(number: u32) -> Vec<u8> {
    let ports = (number as u16, 1000 + (number >> 16) as u16);
    load::udp(
        (ROUTER, [2, 0, 0, 0, 1, 1]),
        ([10, 0, 1, 11], [10, 0, 2, 12]),
        ports,
        18,
    )
}

/// Cycles per packet to take vectors of packets through a host's pipeline. `next` yields the frame of each packet.
pub(crate) fn measure(
    fabric: &mut Fabric,
    host: &str,
    source: Source,
    frames: &[Vec<u8>],
    start: usize,
) -> anyhow::Result<f64> {
    let now = fabric.now;
    let host = fabric
        .hosts
        .get_mut(host)
        .ok_or_else(|| anyhow::anyhow!("no host"))?;
    let mut io = MemoryIo::new(4 * VECTOR as u32, 2048);
    let (mut spent, mut count) = (0, 0);
    for round in 0..ROUNDS {
        let vector = (0..VECTOR).map(|i| {
            io.memory.packet(
                HEADROOM,
                &frames[(start + round * VECTOR + i) % frames.len()],
            )
        });
        let mut vector: Vec<Packet> = vector
            .collect::<Option<_>>()
            .ok_or_else(|| anyhow::anyhow!("no frame"))?;
        let begun = cycles();
        host.pipeline.process(&mut io, source, &mut vector, now);
        spent += cycles() - begun;
        count += io.sent.len();
        while let Some((_, packet)) = io.sent.pop() {
            io.free(packet.frame);
        }
    }
    anyhow::ensure!(
        count == ROUNDS * VECTOR,
        "{count} of {} packets came out",
        ROUNDS * VECTOR
    );
    Ok(spent as f64 / count as f64)
}

fn samples(mut sample: impl FnMut(usize) -> anyhow::Result<f64>) -> anyhow::Result<Vec<f64>> {
    (0..SAMPLES).map(&mut sample).collect()
}

pub(crate) fn rows() -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (flows, name, goal) in [(1_000u32, "1k", 100.0), (1_000_000, "1M", 250.0)] {
        let mut fabric = fabric(flows * 2)?;
        let frames: Vec<Vec<u8>> = (0..flows).map(frame).collect();
        let Some((_, index)) = fabric.find_port("a1") else {
            anyhow::bail!("no port")
        };
        let mut tunnelled = Vec::with_capacity(frames.len());
        for frame in &frames {
            let arrived = fabric.send("a1", frame);
            anyhow::ensure!(arrived.len() == 1, "{:?}", fabric.all_drops());
            tunnelled.append(&mut fabric.crossed);
        }
        // A stride through all flows, so that the cold case is cold.
        let step = |sample: usize| sample * ROUNDS * VECTOR;
        let out = samples(|sample| {
            measure(
                &mut fabric,
                "h1",
                Source::Port(index),
                &frames,
                step(sample),
            )
        })?;
        rows.push(Row {
            name: format!("memory: hit, group + ACL + route + VXLAN encapsulation, {name} flows"),
            unit: "cycles/packet",
            samples: out,
            goal: Some((goal, false)),
            peer: None,
        });
        let inward = samples(|sample| {
            measure(
                &mut fabric,
                "h2",
                Source::Uplink(0),
                &tunnelled,
                step(sample),
            )
        })?;
        rows.push(Row {
            name: format!("memory: hit, decapsulation + group + ACL, {name} flows"),
            unit: "cycles/packet",
            samples: inward,
            goal: Some((goal, false)),
            peer: None,
        });
    }
    let mut number = 0;
    let mut fabric = fabric(1 << 20)?;
    let Some((_, index)) = fabric.find_port("a1") else {
        anyhow::bail!("no port")
    };
    let install = samples(|_| {
        let frames: Vec<Vec<u8>> = (0..(ROUNDS * VECTOR) as u32)
            .map(|i| frame(number + i))
            .collect();
        number += frames.len() as u32;
        measure(&mut fabric, "h1", Source::Port(index), &frames, 0)
    })?;
    rows.push(Row {
        name: "memory: miss, decision and install".into(),
        unit: "cycles/packet",
        samples: install,
        goal: Some((1500.0, false)),
        peer: None,
    });
    Ok(rows)
}
