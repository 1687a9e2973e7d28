//! Equal-cost next hops: the cost of a choice, which flows move when a member leaves, and how even the spread is.

use std::hint::black_box;

use weft_dataplane::packet::Flow;
use weft_dataplane::packet::parse::IPV4_MAPPED;
use weft_dataplane::route::ecmp::{Group, Member, flow_hash, identity};

use crate::Row;
use crate::clock::cycles;

const SAMPLES: usize = 9;
const FLOWS: u32 = 1_000_000;

fn members(count: usize, weight: impl Fn(usize) -> u16) -> Vec<Member<usize>> {
    let member = |target| Member {
        identity: identity(format!("|host-{target}|").as_bytes()),
        weight: weight(target),
        target,
    };
    (0..count).map(member).collect()
}

fn flow(number: u32) -> Flow {
    Flow {
        source: IPV4_MAPPED | 0x0a00_0000 | u128::from(number >> 12),
        destination: IPV4_MAPPED | 0x0a80_0001,
        source_port: 1024 + (number & 0xfff) as u16,
        destination_port: 443,
        protocol: 6,
    }
}

fn row(
    name: impl std::fmt::Display,
    unit: &'static str,
    samples: Vec<f64>,
    goal: Option<f64>,
) -> Row {
    Row {
        name: format!("ecmp: {name}"),
        unit,
        samples,
        goal: goal.map(|goal| (goal, false)),
        peer: None,
    }
}

fn cost(group: &Group<usize>) -> f64 {
    const CHOICES: u32 = 10_000;
    let begun = cycles();
    for number in 0..CHOICES {
        let chosen = group.choose(flow_hash(black_box(&flow(number))));
        black_box(chosen.map(|member| member.target));
    }
    (cycles() - begun) as f64 / f64::from(CHOICES)
}

fn choices(group: &Group<usize>) -> Vec<usize> {
    let chosen = (0..FLOWS).filter_map(|number| group.choose(flow_hash(&flow(number))));
    chosen.map(|member| member.target).collect()
}

/// Of the flows of members that stay, the share that moves when one goes; and of all flows, the share of the one that goes times the members.
fn moved(count: usize) -> (f64, f64) {
    let all = members(count, |_| 1);
    let gone = count / 2;
    let mut fewer = all.clone();
    fewer.remove(gone);
    let (before, after) = (choices(&Group::new(all)), choices(&Group::new(fewer)));
    let own = before.iter().filter(|target| **target == gone).count();
    let others = before.iter().zip(&after);
    let moved = others
        .filter(|(before, after)| **before != gone && before != after)
        .count();
    let share = own as f64 / before.len() as f64;
    (moved as f64 / before.len() as f64, share * count as f64)
}

/// How far the most favoured or least favoured member is from its share, in per cent of it.
fn spread(count: usize, weight: impl Fn(usize) -> u16) -> f64 {
    let group = members(count, weight);
    let total: f64 = group.iter().map(|member| f64::from(member.weight)).sum();
    let mut counts = vec![0u32; count];
    for target in choices(&Group::new(group.clone())) {
        counts[target] += 1;
    }
    let off = group.iter().zip(counts).map(|(member, count)| {
        let expected = f64::from(FLOWS) * f64::from(member.weight) / total;
        (f64::from(count) - expected).abs() / expected
    });
    off.fold(0.0, f64::max) * 100.0
}

pub(crate) fn rows() -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for count in [2, 16, 256] {
        let group = Group::new(members(count, |_| 1));
        let samples = (0..SAMPLES).map(|_| cost(&group)).collect();
        let name = format!("a choice among {count}, hash of the flow included");
        rows.push(row(name, "cycles", samples, None));
    }
    let group = Group::new(members(256, |i| 1 + i as u16 % 16));
    let samples = (0..SAMPLES).map(|_| cost(&group)).collect();
    let name = "a choice among 256 of 16 weights";
    rows.push(row(name, "cycles", samples, None));
    for count in [16, 256] {
        let (others, own) = moved(count);
        let name = format!("one of {count} removed: flows of the others that move");
        rows.push(row(name, "share", vec![others], Some(0.0)));
        let name = format!("one of {count} removed: flows that move, of 1/{count}");
        rows.push(row(name, "share", vec![own], None));
    }
    type Weight = fn(usize) -> u16;
    let cases: [(&str, usize, Weight); 4] = [
        ("16 alike", 16, |_| 1),
        ("16 of weights 1 to 4", 16, |i| 1 + i as u16 % 4),
        ("64 alike", 64, |_| 1),
        ("256 alike", 256, |_| 1),
    ];
    for (what, count, weight) in cases {
        let name = format!("spread of 1M flows over {what}: farthest from its share");
        let off = spread(count, weight);
        rows.push(row(name, "%", vec![off], Some(5.0)));
    }
    Ok(rows)
}
