//! Fragmented datagrams of 8 KiB: the cost of a fragment, and the effect of one tenant's flood of fragments on another's datagrams.

use weft_dataplane::pipeline::Source;
use weft_fabric::Fabric;
use weft_proto::v1::Objects;

use crate::Row;
use crate::scenario::{self, A1, B2, PACKETS, ROUTER, measure};

/// Bytes of a datagram: UDP header and payload.
const DATAGRAM: usize = 8 + 8192;
/// Bytes of it in each piece; what is left for tunnels of 1450 bytes.
const PIECE: usize = 1400;
/// Datagrams that are sent by turns; their identifications come round.
const DATAGRAMS: u16 = 600;
/// The first of each row's samples warm up.
const SAMPLES: usize = 41;
/// Of the rows with a flood: a second of 20 000 datagrams, and so many first pieces beside each.
const SECOND: u32 = 20_000;
const FLOOD: u32 = 20;

/// A datagram from a1 through its gateway to b2, in pieces.
fn pieces(id: u16) -> Vec<Vec<u8>> {
    let mut datagram = vec![0x77; DATAGRAM];
    datagram[..4].copy_from_slice(&[0, 9, 0, 53]);
    datagram[4..6].copy_from_slice(&(DATAGRAM as u16).to_be_bytes());
    datagram[6..8].fill(0);
    let count = DATAGRAM.div_ceil(PIECE);
    let piece = |(number, part): (usize, &[u8])| {
        let more = if number + 1 < count { 0x2000 } else { 0 };
        let place = more | (number * PIECE / 8) as u16;
        let mut header = vec![0x45, 0];
        header.extend((20 + part.len() as u16).to_be_bytes());
        header.extend(id.to_be_bytes());
        header.extend(place.to_be_bytes());
        header.extend([64, 17, 0, 0]);
        header.extend(A1.1.into_iter().chain(B2.1));
        let words = header.chunks(2);
        let sum: u32 = words.map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
        let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [&ROUTER[..], &A1.0, &[8, 0], &header, part].concat()
    };
    datagram.chunks(PIECE).enumerate().map(piece).collect()
}

/// The topology, and another tenant with the same addresses whose ports are r1 and s2.
fn objects() -> anyhow::Result<Objects> {
    let mut objects = scenario::objects()?;
    let mut red = objects.clone();
    let rename = |text: &mut String| {
        if !text.is_empty() {
            text.insert_str(0, "red-");
        }
    };
    for vpc in &mut red.vpcs {
        (vpc.id, vpc.vni) = ("red".into(), 200);
    }
    for subnet in &mut red.subnets {
        rename(&mut subnet.id);
        rename(&mut subnet.network_acl);
        subnet.vpc = "red".into();
    }
    for acl in &mut red.network_acls {
        rename(&mut acl.id);
        acl.vpc = "red".into();
    }
    for group in &mut red.security_groups {
        rename(&mut group.id);
        group.vpc = "red".into();
    }
    for port in &mut red.ports {
        rename(&mut port.id);
        rename(&mut port.subnet);
        port.security_groups.iter_mut().for_each(rename);
        port.vpc = "red".into();
    }
    objects.vpcs.extend(red.vpcs);
    objects.subnets.extend(red.subnets);
    objects.network_acls.extend(red.network_acls);
    objects.security_groups.extend(red.security_groups);
    objects.ports.extend(red.ports);
    Ok(objects)
}

/// Blue's datagrams that do not arrive whole in a second, beside red's pieces.
fn lost(flood: usize) -> anyhow::Result<f64> {
    let mut fabric = scenario::fabric_of(objects()?, 4096)?;
    let mut whole = 0u32;
    for number in 0..SECOND {
        for beside in 0..FLOOD {
            // Of datagrams that never become whole.
            let id = (number * FLOOD + beside) as u16;
            fabric.send("red-a1", &pieces(id)[flood]);
        }
        let blue = pieces(number as u16);
        let arrived = blue
            .iter()
            .filter(|piece| fabric.send("a1", piece).len() == 1);
        whole += u32::from(arrived.count() == blue.len());
        fabric.crossed.clear();
        if number % (SECOND / 1000) == 0 {
            fabric.advance(1);
        }
    }
    Ok(f64::from(SECOND - whole))
}

fn cost(
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
    // Each goes on where the one before ended, in the middle of a datagram.
    (0..SAMPLES)
        .map(|sample| measure(&mut host.pipeline, now, source, frames, sample * PACKETS))
        .collect()
}

pub(crate) fn rows() -> anyhow::Result<Vec<Row>> {
    let mut fabric = scenario::fabric(4096)?;
    let source = scenario::source(&fabric)?;
    let (mut frames, mut tunnelled) = (Vec::new(), Vec::new());
    for id in 0..DATAGRAMS {
        for frame in pieces(id) {
            fabric.crossed.clear();
            anyhow::ensure!(
                fabric.send("a1", &frame).len() == 1,
                "{:?}",
                fabric.all_drops()
            );
            tunnelled.append(&mut fabric.crossed);
            frames.push(frame);
        }
    }
    let mut rows = Vec::new();
    for (what, host, source, frames) in [
        ("into the tunnel", "h1", source, &frames),
        ("out of the tunnel", "h2", Source::Uplink(0), &tunnelled),
    ] {
        rows.push(Row {
            name: format!("fragments: a piece of 1400 bytes of an 8 KiB datagram, {what}"),
            unit: "cycles/packet",
            samples: cost(&mut fabric, host, source, frames)?,
            goal: None,
            peer: None,
        });
    }
    for (what, piece) in [("first", 0), ("later", 1)] {
        rows.push(Row {
            name: format!(
                "fragments: lost of {SECOND} datagrams, beside {} {what} pieces of another tenant",
                SECOND * FLOOD
            ),
            unit: "datagrams",
            samples: vec![lost(piece)?],
            goal: Some((0.0, false)),
            peer: None,
        });
    }
    Ok(rows)
}
