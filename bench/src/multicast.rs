//! Multicast without sockets: packets to a group that so many ports of the sender's host have joined, and what a copy costs.

use std::time::Instant;

use weft_dataplane::packet::{FrameMemory, Packet, checksum};
use weft_dataplane::pipeline::{Settings, VECTOR};
use weft_dataplane::session::Limits;
use weft_fabric::{Fabric, MemoryIo};
use weft_proto::state::State;
use weft_proto::v1::{Objects, Port};
use weft_tests::load;

use crate::Row;
use crate::clock::cycles;
use crate::scenario::{self, A1, source};

/// Ports that have joined.
const RECEIVERS: [usize; 4] = [1, 10, 100, 1000];
/// Copies of a sample, at least, and samples.
const COPIES: usize = 100_000;
const SAMPLES: usize = 21;
/// Bytes before a frame and of a buffer.
const HEADROOM: usize = 256;
const BUFFER: usize = 2048;
const GROUP: [u8; 4] = [239, 1, 2, 3];
const GROUP_MAC: [u8; 6] = [1, 0, 0x5e, 1, 2, 3];

/// Copies a second and core.
const GOAL: f64 = 5.0;

fn receiver(number: usize) -> ([u8; 6], [u8; 4]) {
    let [high, low] = (number as u16 + 1).to_be_bytes();
    ([2, 0, 0, 1, high, low], [10, 1, high, low])
}

/// a1 and the receivers on h1, in one subnet.
fn site(receivers: usize) -> anyhow::Result<Fabric> {
    let mut objects: Objects = scenario::objects()?;
    for subnet in &mut objects.subnets {
        if subnet.id == "a" {
            subnet.cidrs = vec!["10.0.0.0/15".into()];
            subnet.multicast = "snooping".into();
        } else {
            subnet.cidrs = vec!["10.2.0.0/16".into()];
        }
    }
    for port in &mut objects.ports {
        port.addresses.truncate(1);
        if port.id == "b2" {
            port.addresses = vec!["10.2.0.12".into()];
        }
    }
    let like = objects.ports[0].clone();
    objects.ports.extend((0..receivers).map(|number| {
        let (mac, [a, b, c, d]) = receiver(number);
        Port {
            id: format!("r{number}"),
            mac: mac.map(|byte| format!("{byte:02x}")).join(":"),
            addresses: vec![format!("{a}.{b}.{c}.{d}")],
            ..like.clone()
        }
    }));
    let settings = Settings {
        ports: objects.ports.len().max(16),
        // What a packet costs is to be measured, not how many one port may send.
        broadcasts_per_second: u32::MAX,
        ..scenario::settings()
    };
    let limits = Limits {
        capacity: 65_536,
        per_port: 65_536,
        per_vpc: 65_536,
        ports: settings.ports,
        vpcs: 16,
    };
    let state = State::from_objects(objects)?;
    let mut fabric = Fabric::new(state, &settings, limits)
        .map_err(|violations| anyhow::anyhow!("{violations:?}"))?;
    for number in 0..receivers {
        fabric.send(&format!("r{number}"), &report(receiver(number)));
    }
    Ok(fabric)
}

/// A report of IGMPv2 (RFC 2236), with the Router Alert option.
fn report((mac, address): ([u8; 6], [u8; 4])) -> Vec<u8> {
    let mut body = [&[0x16, 0, 0, 0][..], &GROUP].concat();
    let sum = checksum::finish(checksum::sum(&body));
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [&GROUP_MAC[..], &mac, &[8, 0, 0x46, 0xc0, 0, 32]].concat();
    frame.extend([0, 0, 0, 0, 1, 2, 0, 0]);
    frame.extend(address);
    frame.extend(GROUP);
    frame.extend([0x94, 4, 0, 0]);
    let sum = checksum::finish(checksum::sum(&frame[14..38]));
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend(body);
    frame
}

/// Cycles and seconds of each copy, of one sample.
fn sample(fabric: &mut Fabric, io: &mut MemoryIo, receivers: usize) -> anyhow::Result<(f64, f64)> {
    let (from, now) = (source(fabric)?, fabric.now);
    let frame = load::udp((GROUP_MAC, A1.0), (A1.1, GROUP), (1000, 2000), 18);
    let host = fabric.hosts.get_mut("h1");
    let pipeline = &mut host.ok_or_else(|| anyhow::anyhow!("no host"))?.pipeline;
    // As many as fill the buffers.
    let at_once = (1000 / receivers).clamp(1, VECTOR);
    let rounds = COPIES.div_ceil(at_once * receivers);
    let mut vector: Vec<Packet> = Vec::with_capacity(VECTOR);
    let (mut spent, mut seconds, mut count) = (0, 0.0, 0);
    for _ in 0..rounds {
        for _ in 0..at_once {
            let packet = io.memory.packet(HEADROOM, &frame);
            vector.push(packet.ok_or_else(|| anyhow::anyhow!("no buffer"))?);
        }
        let (begun, clock) = (cycles(), Instant::now());
        pipeline.process(io, from, &mut vector, now);
        spent += cycles() - begun;
        seconds += clock.elapsed().as_secs_f64();
        count += io.sent.len();
        while let Some((_, packet)) = io.sent.pop() {
            io.free(packet.frame);
        }
    }
    let expected = rounds * at_once * receivers;
    anyhow::ensure!(count == expected, "{count} of {expected} copies came out");
    Ok((spent as f64 / count as f64, seconds / count as f64))
}

pub(crate) fn rows() -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for receivers in RECEIVERS {
        let mut fabric = site(receivers)?;
        let mut io = MemoryIo::new(4096, BUFFER);
        let (mut cycles, mut rates) = (Vec::new(), Vec::new());
        for _ in 0..SAMPLES {
            let (spent, seconds) = sample(&mut fabric, &mut io, receivers)?;
            cycles.push(spent);
            rates.push(1e-6 / seconds);
        }
        let name = format!("multicast: 60 bytes to {receivers} ports of this host");
        rows.push(Row {
            name: name.clone(),
            unit: "cycles/copy",
            samples: cycles,
            goal: None,
            peer: None,
        });
        rows.push(Row {
            name,
            unit: "million copies/s",
            samples: rates,
            // One receiver's copy is a packet with all that it costs to decide on it.
            goal: (receivers > 1).then_some((GOAL, true)),
            peer: None,
        });
    }
    Ok(rows)
}
