//! Single parts of the packet path: parsing, sessions, tunnels; in cycles.

use std::hint::black_box;

use weft_dataplane::encap::{Encapsulation, Template, decap};
use weft_dataplane::packet::parse::address_word;
use weft_dataplane::packet::{Flow, FrameMemory, Mac, PlainMemory, parse};
use weft_dataplane::session::table::{NewSession, Probe};
use weft_dataplane::session::{Key, Limits, SessionTable, State};

use crate::clock::cycles;
use crate::scenario::{udp, udp6};
use crate::{Row, dpdk};

const SAMPLES: usize = 15;
/// Look-ups of a sample, and how many are under way together.
const LOOKUPS: usize = 1 << 18;
const BATCH: usize = 32;

fn row(name: &str, samples: Vec<f64>, peer: Option<(&'static str, Vec<f64>)>) -> Row {
    Row {
        name: format!("parts: {name}"),
        unit: "cycles",
        samples,
        goal: None,
        peer,
    }
}

/// Cycles of each of `count` times.
fn each(count: usize, mut work: impl FnMut(usize)) -> Vec<f64> {
    let sample = |work: &mut dyn FnMut(usize)| {
        let begun = cycles();
        (0..count).for_each(work);
        (cycles() - begun) as f64 / count as f64
    };
    (0..SAMPLES).map(|_| sample(&mut work)).collect()
}

fn headers(rows: &mut Vec<Row>) -> anyhow::Result<()> {
    for (name, frames) in [
        ("IPv4", (0..1000).map(udp).collect::<Vec<_>>()),
        ("IPv6", (0..1000).map(udp6).collect()),
    ] {
        let read = each(100_000, |i| {
            let _ = black_box(parse::inner(black_box(&frames[i % frames.len()])));
        });
        rows.push(row(
            &format!("parse, {name} and UDP, every header"),
            read,
            None,
        ));
    }
    let macs = (
        Mac::from_word(0x0200_0000_0001),
        Mac::from_word(0x0200_0000_0002),
    );
    let address = |text: &str| text.parse().map(address_word);
    for (name, kind, source, destination) in [
        (
            "VXLAN over IPv4",
            Encapsulation::Vxlan,
            "192.0.2.1",
            "192.0.2.2",
        ),
        (
            "VXLAN over IPv6",
            Encapsulation::Vxlan,
            "2001:db8::1",
            "2001:db8::2",
        ),
        (
            "GRE over IPv4",
            Encapsulation::Gre,
            "192.0.2.1",
            "192.0.2.2",
        ),
    ] {
        let template = Template::new(kind, macs, address(source)?, address(destination)?);
        let mut memory = PlainMemory::new(64, 2048);
        let packets = (0..64).map(|number| memory.packet(256, &udp(number)));
        let packets: Option<Vec<_>> = packets.collect();
        let mut packets = packets.ok_or_else(|| anyhow::anyhow!("no frame"))?;
        let push = each(100_000, |i| {
            let packet = &mut packets[i % 64];
            black_box(template.push(&mut memory, packet, 100.into(), 0, i as u16));
            packet.start += template.overhead() as u16;
            packet.len -= template.overhead() as u16;
        });
        rows.push(row(&format!("encapsulate, {name}"), push, None));
        let frames: Vec<Vec<u8>> = packets
            .iter_mut()
            .map(|packet| {
                template.push(&mut memory, packet, 100.into(), 0, 7);
                let start = usize::from(packet.start);
                memory.bytes(&packet.frame)[start..start + usize::from(packet.len)].to_vec()
            })
            .collect();
        let outer = each(100_000, |i| {
            let _ = black_box(decap::outer(black_box(&frames[i % 64])));
        });
        rows.push(row(&format!("decapsulate, {name}"), outer, None));
    }
    Ok(())
}

fn flow(number: u32, protocol: u8) -> Flow {
    Flow {
        source: 0xffff_0a00_010b,
        destination: 0xffff_0a00_020c,
        source_port: number as u16,
        destination_port: 1000 + (number >> 16) as u16,
        protocol,
    }
}

fn scattered(index: u64) -> u32 {
    let z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((z ^ (z >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32) as u32
}

/// Looks flows up as the fast path does, in stages; each is hashed on the way.
fn look_up(table: &SessionTable, flows: &[Flow], wanted: usize) -> anyhow::Result<f64> {
    let (mut keys, mut probes, mut found) = ([Key::default(); BATCH], [Probe::default(); BATCH], 0);
    let begun = cycles();
    for batch in flows.chunks_exact(BATCH) {
        for (key, flow) in keys.iter_mut().zip(batch) {
            *key = Key::new(table.seeds(), flow, 100);
            table.prefetch(key);
        }
        for (probe, key) in probes.iter_mut().zip(&keys) {
            *probe = table.probe(key);
        }
        for (key, probe) in keys.iter().zip(&probes) {
            // Once in many thousands the probe leads to another session of the same tag: the slow path then looks further.
            let session = table.confirm(*probe, key).or_else(|| table.find(key));
            found += usize::from(session.is_some());
        }
    }
    let spent = cycles() - begun;
    anyhow::ensure!(found == wanted, "{found} of {wanted} sessions were found");
    Ok(spent as f64 / flows.len() as f64)
}

/// A table of so many sessions, and what each cost to install.
pub(crate) fn fill(count: u32) -> anyhow::Result<(SessionTable, Vec<f64>)> {
    let limits = Limits {
        capacity: count * 2,
        per_port: count,
        per_vpc: count,
        ports: 1,
        vpcs: 1,
    };
    let table = SessionTable::new(limits);
    let new = NewSession {
        state: State::OneWay,
        port: 0,
        vpc: 0.into(),
        now: 0,
        tcp: Default::default(),
        action: None,
        translation: None,
        mapping: None,
        chosen: None,
        member: None,
    };
    let mut install = Vec::new();
    for first in (0..count).step_by(1000) {
        table.prepare();
        let begun = cycles();
        for number in first..first + 1000 {
            table.insert(&Key::new(table.seeds(), &flow(number, 17), 100), &new)?;
        }
        install.push((cycles() - begun) as f64 / 1000.0);
    }
    Ok((table, install))
}

fn sessions(rows: &mut Vec<Row>, count: u32, words: &str, peers: bool) -> anyhow::Result<()> {
    let (table, install) = fill(count)?;
    let flows = |protocol| -> Vec<Flow> {
        let number = |i: usize| ((u64::from(scattered(i as u64)) * u64::from(count)) >> 32) as u32;
        (0..LOOKUPS).map(|i| flow(number(i), protocol)).collect()
    };
    let (known, unknown) = (flows(17), flows(6));
    let hit = (0..SAMPLES)
        .map(|_| look_up(&table, &known, LOOKUPS))
        .collect::<anyhow::Result<_>>()?;
    let miss = (0..SAMPLES)
        .map(|_| look_up(&table, &unknown, 0))
        .collect::<anyhow::Result<_>>()?;
    let figures = if peers {
        dpdk::run("hash", &[count.to_string(), SAMPLES.to_string()])?
    } else {
        Default::default()
    };
    let peer = |name: &str| {
        let all = (0..SAMPLES).filter_map(|i| figures.get(&format!("{name}{i}")).copied());
        peers.then(|| ("DPDK rte_hash, in bulks of 32", all.collect::<Vec<_>>()))
    };
    rows.push(row(
        &format!("session look-up, {words}, hit"),
        hit,
        peer("hit"),
    ));
    rows.push(row(
        &format!("session look-up, {words}, miss"),
        miss,
        peer("miss"),
    ));
    let added = figures.get("add").map(|add| ("DPDK rte_hash", vec![*add]));
    rows.push(row(&format!("session install, {words}"), install, added));
    Ok(())
}

pub(crate) fn rows(peers: bool) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    headers(&mut rows)?;
    sessions(&mut rows, 1000, "1k", peers)?;
    sessions(&mut rows, 1_000_000, "1M", peers)?;
    Ok(rows)
}
