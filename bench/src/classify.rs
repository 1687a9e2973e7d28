//! Rule classification: cycles to find the rule that decides about a packet, among 1 to 10 000 rules, beside DPDK's access control library
//! on the same rules and packets; the cost of a whole miss with that many rules; the time to compile them.
//!
//! Rules and packets come from a seed. Of the rules 5 % are about anyone, 15 % about prefixes of /12 to /16, 20 % of /17 to /23, 35 % of
//! /24, the rest about single addresses, half of all in 10.0.0.0/8; services are TCP and UDP ports, ranges of up to 2000 TCP ports, all of
//! TCP, or anything. Half of the packets are made to match a rule; the other half has a random port towards a rule's remote.

use std::fmt::Write;
use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Instant;

use weft_dataplane::packet::Family;
use weft_dataplane::packet::parse::{address_word, protocol};
use weft_dataplane::pipeline::VECTOR;
use weft_dataplane::policy::{AddressSet, Classifier, Remote, Rule, Service, Subject, group};
use weft_dataplane::route::Prefix;
use weft_proto::v1::SecurityRule;

use crate::clock::cycles;
use crate::{Row, dpdk, median, scenario};

const SAMPLES: usize = 41;
const PACKETS: usize = 4096;
/// Passes over the packets in a sample: long enough that a moment of a busy neighbour is not the whole figure.
const PASSES: usize = 25;
/// Samples of the whole miss path, each of packets that none has seen.
const MISSES: usize = 21;
const SEED: u64 = 7;

/// A source of numbers that is the same on every machine (SplitMix64, Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    fn port(&mut self) -> u16 {
        self.below(1 << 16) as u16
    }
}

/// An IPv4 rule as the peer takes it.
#[derive(Debug, Clone, Copy)]
struct Plain {
    address: u32,
    length: u8,
    /// 0 for any.
    protocol: u8,
    ports: (u16, u16),
}

#[derive(Debug, Clone, Copy)]
struct Packet {
    address: u32,
    protocol: u8,
    port: u16,
}

fn plain(random: &mut Random) -> Plain {
    let address = if random.below(2) == 0 {
        0x0a00_0000 | random.below(1 << 24) as u32
    } else {
        random.next() as u32
    };
    let length = match random.below(20) {
        0 => 0,
        1..=3 => 12 + random.below(5),
        4..=7 => 17 + random.below(7),
        8..=14 => 24,
        _ => 32,
    } as u8;
    let port = random.port();
    let (protocol, ports) = match random.below(10) {
        4..=5 => {
            let more = random.below(2000) as u16;
            (protocol::TCP, (port, port.saturating_add(more)))
        }
        6..=7 => (protocol::UDP, (port, port)),
        8 if length > 0 => (protocol::TCP, (0, u16::MAX)),
        9 if length > 16 => (0, (0, u16::MAX)),
        _ => (protocol::TCP, (port, port)),
    };
    Plain {
        address: address & mask(length),
        length,
        protocol,
        ports,
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

fn packets(rules: &[Plain], random: &mut Random) -> Vec<Packet> {
    let packet = |i: usize| {
        let rule = rules[random.below(rules.len() as u64) as usize];
        let (low, high) = rule.ports;
        let port = if i.is_multiple_of(2) {
            low + random.below(u64::from(high - low) + 1) as u16
        } else {
            random.port()
        };
        Packet {
            address: rule.address | random.next() as u32 & !mask(rule.length),
            protocol: if rule.protocol == 0 {
                protocol::UDP
            } else {
                rule.protocol
            },
            port,
        }
    };
    (0..PACKETS).map(packet).collect()
}

/// Addresses as IPv4, or as IPv6 under one /32 with the same bits after it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum As {
    Ipv4,
    Ipv6,
}

impl As {
    fn address(self, address: u32) -> std::net::IpAddr {
        match self {
            Self::Ipv4 => Ipv4Addr::from(address).into(),
            Self::Ipv6 => Ipv6Addr::from((0x2001_0db8 << 96) | (u128::from(address) << 64)).into(),
        }
    }

    fn rule(self, plain: &Plain) -> anyhow::Result<Rule> {
        let length = plain.length + if self == Self::Ipv6 { 32 } else { 0 };
        let network = ipnetwork::IpNetwork::new(self.address(plain.address), length)?;
        Ok(Rule {
            family: Some(match self {
                Self::Ipv4 => Family::Ipv4,
                Self::Ipv6 => Family::Ipv6,
            }),
            service: match (plain.protocol, plain.ports) {
                (0, _) => Service::Any,
                (number, (0, u16::MAX)) => Service::Protocol(number),
                (number, (low, high)) => Service::Ports(number, low..=high),
            },
            remote: if plain.length == 0 {
                Remote::Any
            } else {
                Remote::Prefix(Prefix::from(network))
            },
        })
    }

    fn subject(self, packet: &Packet) -> Subject {
        Subject {
            family: match self {
                Self::Ipv4 => Family::Ipv4,
                Self::Ipv6 => Family::Ipv6,
            },
            protocol: packet.protocol,
            remote: address_word(self.address(packet.address)),
            port: packet.port,
            icmp: 0,
        }
    }
}

fn compile(rules: &[Rule]) -> Classifier {
    Classifier::new((0u32..).zip(rules))
}

/// How packets come to the classifier.
#[derive(Debug, Clone, Copy)]
enum Manner {
    OneByOne,
    /// As many as a worker takes at a time.
    Batches,
}

/// Cycles per packet, and the sum of the numbers of the rules that decided, counted from 1.
fn classify(
    classifier: &Classifier,
    subjects: &[Subject],
    sets: &[AddressSet],
    manner: Manner,
) -> (f64, u64) {
    let number = |outcome: Option<u32>| outcome.map_or(0, |rule| u64::from(rule) + 1);
    let mut sum = 0;
    let begun = cycles();
    for _ in 0..PASSES {
        sum = 0;
        for vector in black_box(subjects).chunks(VECTOR) {
            match manner {
                Manner::OneByOne => {
                    for subject in vector {
                        sum += number(classifier.decide(subject, sets));
                    }
                }
                Manner::Batches => {
                    classifier.decide_batch(vector, sets, |outcome| sum += number(outcome));
                }
            }
        }
    }
    let spent = cycles() - begun;
    (spent as f64 / (PASSES * subjects.len()) as f64, sum)
}

fn samples(mut sample: impl FnMut() -> f64) -> Vec<f64> {
    (0..SAMPLES).map(|_| sample()).collect()
}

/// The peer's results for the same rules and packets.
struct Peer {
    /// Cycles by method.
    methods: Vec<(&'static str, Vec<f64>)>,
    sum: f64,
    build_ms: f64,
    bytes: f64,
}

impl Peer {
    fn run(rules: &[Plain], packets: &[Packet]) -> anyhow::Result<Self> {
        let mut text = format!("{}\n", rules.len());
        for rule in rules {
            let (low, high) = rule.ports;
            let Plain {
                address,
                length,
                protocol,
                ..
            } = rule;
            writeln!(text, "{address} {length} {protocol} {low} {high}")?;
        }
        writeln!(text, "{}", packets.len())?;
        for packet in packets {
            let Packet {
                address,
                protocol,
                port,
            } = packet;
            writeln!(text, "{address} {protocol} {port}")?;
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/acl-rules");
        std::fs::write(&path, text)?;
        // The first rounds warm the caches up.
        let rounds = SAMPLES * PASSES + 5;
        let arguments = [path.display().to_string(), rounds.to_string()];
        let figures = dpdk::run("acl", &arguments)?;
        let figure = |name: &str| {
            figures
                .get(name)
                .copied()
                .ok_or_else(|| anyhow::anyhow!("the peer does not print {name}"))
        };
        let names = [
            ("scalar", "rte_acl, scalar"),
            ("sse", "rte_acl, SSE"),
            ("avx2", "rte_acl, AVX2"),
            ("avx512x16", "rte_acl, AVX-512, 16 at a time"),
            ("avx512x32", "rte_acl, AVX-512, 32 at a time"),
        ];
        let method = |(name, words)| {
            let cycles: Vec<f64> = (5..rounds)
                .filter_map(|round| figures.get(&format!("{name}{round}")).copied())
                .collect();
            (!cycles.is_empty()).then_some((words, cycles))
        };
        Ok(Self {
            methods: names.into_iter().filter_map(method).collect(),
            sum: figure("sum")?,
            build_ms: figure("build")?,
            bytes: figure("bytes")?,
        })
    }

    fn plain(&self) -> Option<(&'static str, Vec<f64>)> {
        self.methods.first().cloned()
    }

    fn best(&self) -> Option<(&'static str, Vec<f64>)> {
        let by_median =
            |a: &&(_, Vec<f64>), b: &&(_, Vec<f64>)| median(&a.1).total_cmp(&median(&b.1));
        self.methods.iter().min_by(by_median).cloned()
    }
}

fn words(count: usize) -> String {
    match count {
        1 => "1 rule".to_owned(),
        10_000 => "10k rules".to_owned(),
        1000 => "1k rules".to_owned(),
        n => format!("{n} rules"),
    }
}

fn row(name: String, unit: &'static str, samples: Vec<f64>) -> Row {
    Row {
        name,
        unit,
        samples,
        goal: None,
        peer: None,
    }
}

pub(crate) fn rows(peers: bool) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for count in [1, 10, 100, 1000, 10_000] {
        eprintln!("   {} to classify by", words(count));
        rows.extend(sizes(count, peers && count >= 100)?);
    }
    eprintln!("   address sets, and whole misses");
    rows.extend(sets()?);
    rows.extend(misses()?);
    Ok(rows)
}

fn sizes(count: usize, peers: bool) -> anyhow::Result<Vec<Row>> {
    let mut random = Random(SEED);
    let plain: Vec<Plain> = (0..count).map(|_| plain(&mut random)).collect();
    let packets = packets(&plain, &mut random);
    let compiled = |family: As| -> anyhow::Result<_> {
        let rules: Vec<Rule> = plain
            .iter()
            .map(|plain| family.rule(plain))
            .collect::<anyhow::Result<_>>()?;
        let subjects: Vec<Subject> = packets.iter().map(|p| family.subject(p)).collect();
        Ok((compile(&rules), subjects, rules))
    };
    let (classifier, subjects, rules) = compiled(As::Ipv4)?;
    let of = |classifier: &Classifier, subjects: &[Subject], manner| {
        samples(|| classify(classifier, subjects, &[], manner).0)
    };
    let name = format!("classify: ACL, {}, IPv4", words(count));
    let one = of(&classifier, &subjects, Manner::OneByOne);
    let batch = of(&classifier, &subjects, Manner::Batches);
    let mut one = row(name.clone(), "cycles/packet", one);
    let mut batch = row(name + ", in batches", "cycles/packet", batch);
    let (_, sum) = classify(&classifier, &subjects, &[], Manner::OneByOne);
    let (_, again) = classify(&classifier, &subjects, &[], Manner::Batches);
    anyhow::ensure!(again == sum, "batches are decided otherwise");
    let peer = peers.then(|| Peer::run(&plain, &packets)).transpose()?;
    if let Some(peer) = &peer {
        anyhow::ensure!(
            peer.sum == sum as f64,
            "the peer decides otherwise: {} and {sum}",
            peer.sum
        );
        // The peer takes bulks only: its best method beside our batches, its plain one beside one after the other.
        for (row, peer) in [(&mut batch, peer.best()), (&mut one, peer.plain())] {
            row.goal = peer.as_ref().map(|(_, cycles)| (median(cycles), false));
            row.peer = peer;
        }
    }
    let mut rows = vec![one, batch];
    let groups = group(&rules);
    rows.push(row(
        format!("classify: group, {}, IPv4", words(count)),
        "cycles/packet",
        of(&groups, &subjects, Manner::OneByOne),
    ));
    if count < 10_000 {
        return Ok(rows);
    }
    let (ipv6, subjects, _) = compiled(As::Ipv6)?;
    let (_, six) = classify(&ipv6, &subjects, &[], Manner::Batches);
    anyhow::ensure!(six == sum, "IPv6 is decided otherwise: {six} and {sum}");
    for (manner, how) in [(Manner::OneByOne, ""), (Manner::Batches, ", in batches")] {
        let name = format!("classify: ACL, {}, IPv6{how}", words(count));
        rows.push(row(name, "cycles/packet", of(&ipv6, &subjects, manner)));
    }
    let build = || {
        let begun = Instant::now();
        black_box(compile(black_box(&rules)));
        begun.elapsed().as_secs_f64() * 1e3
    };
    let mut build = row(
        format!("classify: compiling an ACL of {}", words(count)),
        "ms",
        samples(build),
    );
    build.goal = Some((10.0, false));
    let per_rule = |bytes: f64| bytes / count as f64;
    let mut memory = row(
        format!("classify: memory of an ACL of {}", words(count)),
        "bytes/rule",
        vec![per_rule(classifier.bytes() as f64)],
    );
    if let Some(peer) = peer {
        build.peer = Some(("rte_acl", vec![peer.build_ms]));
        memory.peer = Some(("rte_acl", vec![per_rule(peer.bytes)]));
    }
    rows.extend([build, memory]);
    Ok(rows)
}

/// 1000 rules on 10 sets of 10 000 members: a fifth of the packets comes from a member.
fn sets() -> anyhow::Result<Vec<Row>> {
    let mut random = Random(SEED);
    let mut member = |set: usize| {
        let address = 0x0a00_0000 | (set as u32) << 20 | random.below(1 << 20) as u32;
        (Prefix::host(address_word(As::Ipv4.address(address))), ())
    };
    let sets: Vec<AddressSet> = (0..10)
        .map(|set| {
            let mut addresses = AddressSet::default();
            for (prefix, value) in (0..10_000).map(|_| member(set)) {
                addresses.prefixes.insert(prefix, value);
            }
            addresses
        })
        .collect();
    let rules: Vec<Rule> = (0..1000u16)
        .map(|n| Rule {
            family: None,
            service: Service::Ports(protocol::TCP, n * 60..=n * 60 + 59),
            remote: Remote::Set(usize::from(n % 10)),
        })
        .collect();
    let mut random = Random(SEED + 1);
    let subjects: Vec<Subject> = (0..PACKETS)
        .map(|i| {
            let (port, set) = (random.below(60_000) as u16, (i % 10) as u32);
            let address = 0x0a00_0000 | set << 20 | random.below(1 << 20) as u32;
            As::Ipv4.subject(&Packet {
                address,
                protocol: protocol::TCP,
                port,
            })
        })
        .collect();
    let classifier = group(&rules);
    Ok(vec![row(
        "classify: group, 1k rules on 10 sets of 10k members".to_owned(),
        "cycles/packet",
        samples(|| classify(&classifier, &subjects, &sets, Manner::OneByOne).0),
    )])
}

/// The whole miss path, with so many rules in the receiving port's group; only the last rule admits the packets.
fn misses() -> anyhow::Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for count in [1u16, 10, 100, 1000, 10_000] {
        let mut objects = scenario::objects()?;
        let rule = |n: u16| {
            let port = Some(20_000 + u32::from(n));
            SecurityRule {
                direction: "ingress".into(),
                protocol: "udp".into(),
                port_min: port,
                port_max: port,
                remote_cidr: format!("172.16.{}.{}/32", n >> 8, n & 255),
                ..SecurityRule::default()
            }
        };
        let admits = SecurityRule {
            direction: "ingress".into(),
            protocol: "udp".into(),
            remote_cidr: "10.0.1.0/24".into(),
            ..SecurityRule::default()
        };
        for group in &mut objects.security_groups {
            group.rules = (1..count).map(rule).chain([admits.clone()]).collect();
        }
        // Both ports on one host, so that the group is asked there.
        for port in &mut objects.ports {
            port.host = "h1".into();
        }
        let mut fabric = scenario::fabric_of(objects, 1 << 20)?;
        let (source, now) = (scenario::source(&fabric)?, fabric.now);
        let host = fabric
            .hosts
            .get_mut("h1")
            .ok_or_else(|| anyhow::anyhow!("no host"))?;
        let sample = |sample: usize| {
            let first = (sample * scenario::PACKETS) as u32;
            let frames: Vec<Vec<u8>> = (first..first + scenario::PACKETS as u32)
                .map(scenario::udp)
                .collect();
            scenario::measure(&mut host.pipeline, now, source, &frames, 0)
        };
        let samples = (0..MISSES).map(sample).collect::<anyhow::Result<_>>()?;
        let name = format!(
            "classify: miss, decision and install, group of {}",
            words(count.into())
        );
        rows.push(row(name, "cycles/packet", samples));
    }
    let least = rows.first().map_or(f64::NAN, |row| median(&row.samples));
    if let Some(most) = rows.last_mut() {
        most.goal = Some((2.0 * least, false));
    }
    Ok(rows)
}
