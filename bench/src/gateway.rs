//! The way out of a VPC in memory: hits that are translated for the outside beside plain ones in the same run, new mappings, a pool that fills, and what one
//! more elastic IP or NAT gateway costs among very many.

use std::time::Instant;

use prost::Message;
use weft_controller::compile::compile;
use weft_controller::store::Change;
use weft_controller::version::Version;
use weft_dataplane::packet::{DropReason, FrameMemory, Mac};
use weft_dataplane::pipeline::{Source, VECTOR};
use weft_dataplane::snapshot::compile::{Compiler, Context, ExternalLink, Underlay};
use weft_fabric::{Fabric, MemoryIo};
use weft_proto::state::{Object, State};
use weft_proto::v1::{
    Delta, Device, ElasticIp, ExternalNetwork, Host, NatGateway, NatLimits, Objects, Port, Subnet,
    Vpc,
};
use weft_proto::validate::{Scope, validate, validate_next};
use weft_tests::load::{self, Station};

use crate::scenario::{A1, B2, PACKETS, ROUTER, fabric_of, measure, objects};
use crate::{Row, clock};

const HITS: usize = 201;
const FLOWS: u16 = 1000;
const MISSES: usize = 15;
const CHANGES: usize = 11;
/// The uplink that leads to the segment.
const SEGMENT: u16 = 1;
/// MAC of h1's interface there.
const OURS: [u8; 6] = [6, 0, 0, 0, 1, 1];
/// The segment's router, which everything outside is behind.
const HOP: [u8; 6] = [0x0a, 0, 0, 0, 0, 1];
const FAR: [u8; 4] = [198, 51, 100, 9];
const ELASTIC: [u8; 4] = [203, 0, 113, 11];
const NAT: [u8; 4] = [203, 0, 113, 100];
/// On h1, with an elastic IP; and without, so that it leaves by the NAT gateway.
const E1: Station = ([2, 0, 0, 0, 1, 2], [10, 0, 1, 12]);
const N1: Station = ([2, 0, 0, 0, 1, 3], [10, 0, 1, 13]);
/// Ports of an address that are given to mappings.
const POOL: u32 = 65_536 - 1024;

const OUTSIDE: &str = r#"
external_networks:
  - {id: internet, physical_network: physnet1, prefixes: [203.0.113.0/24], gateways: [203.0.113.1], gateway_hosts: [h1]}
elastic_ips: [{id: e1, external_network: internet, address: 203.0.113.11, port: e1}]
route_tables: [{id: out, vpc: blue, routes: [{prefix: 0.0.0.0/0, nat: nat}]}]
ports:
  - {id: e1, vpc: blue, subnet: a, mac: "02:00:00:00:01:02", addresses: [10.0.1.12], security_groups: [open], host: h1}
  - {id: n1, vpc: blue, subnet: a, mac: "02:00:00:00:01:03", addresses: [10.0.1.13, ADDRESSES], security_groups: [open], host: h1}
"#;

/// The other suites' topology with a way out on h1: a NAT gateway with so many addresses, and a port behind it with so many.
fn site(outside: u8, inside: u8, capacity: u32) -> anyhow::Result<Fabric> {
    let addresses: Vec<String> = (0..inside).map(|n| format!("10.0.1.{}", 100 + n)).collect();
    let more: Objects =
        serde_yaml_ng::from_str(&OUTSIDE.replace("ADDRESSES", &addresses.join(", ")))?;
    let mut objects = objects()?;
    objects.hosts[0].physical_networks = vec!["physnet1".into()];
    objects.external_networks = more.external_networks;
    objects.elastic_ips = more.elastic_ips;
    objects.route_tables = more.route_tables;
    objects.ports.extend(more.ports);
    objects.nat_gateways = vec![NatGateway {
        id: "nat".into(),
        vpc: "blue".into(),
        external_network: "internet".into(),
        addresses: (0..outside)
            .map(|n| format!("203.0.113.{}", NAT[3] + n))
            .collect(),
        // More than it has by default.
        limits: Some(NatLimits {
            mappings: capacity,
            mappings_per_address: 0,
        }),
        ..NatGateway::default()
    }];
    for subnet in &mut objects.subnets {
        subnet.route_table = "out".into();
    }
    let mut fabric = fabric_of(objects, capacity)?;
    let link = ExternalLink {
        physical_network: "physnet1".into(),
        uplink: SEGMENT,
        mac: Mac::from_bytes(OURS),
        mtu: 1500,
        has_tunnels: false,
    };
    fabric.externals.insert("h1".into(), vec![link]);
    let state = fabric.state().clone();
    fabric
        .set(state)
        .map_err(|violations| anyhow::anyhow!("{violations:?}"))?;
    meet(&mut fabric)?;
    Ok(fabric)
}

/// Has h1 ask for its next hop, and answers.
fn meet(fabric: &mut Fabric) -> anyhow::Result<()> {
    anyhow::ensure!(answer(fabric, 100), "nobody asked for the next hop");
    Ok(())
}

/// Lets time pass, and answers a question for the next hop. Returns whether there was one.
fn answer(fabric: &mut Fabric, milliseconds: u32) -> bool {
    fabric.advance(milliseconds);
    fabric.carry();
    let frames = std::mem::take(&mut fabric.outside);
    let is_question = |frame: &&(String, Vec<u8>)| {
        frame.1[12..14] == [8, 6] && frame.1[28..32] != frame.1[38..42]
    };
    let Some((host, asked)) = frames.iter().find(is_question) else {
        return false;
    };
    let mut reply = asked.clone();
    reply[..6].copy_from_slice(&OURS);
    reply[6..12].copy_from_slice(&HOP);
    reply[21] = 2;
    reply[22..28].copy_from_slice(&HOP);
    reply[28..32].copy_from_slice(&asked[38..42]);
    reply[32..42].copy_from_slice(&asked[22..32]);
    fabric.send_from_uplink(host, SEGMENT, &reply);
    true
}

/// A UDP datagram of 60 bytes with a checksum that has to be changed.
fn datagram(macs: ([u8; 6], [u8; 6]), ends: ([u8; 4], [u8; 4]), ports: (u16, u16)) -> Vec<u8> {
    let mut frame = load::udp(macs, ends, ports, 18);
    frame[40..42].copy_from_slice(&[0x12, 0x34]);
    frame
}

/// Where packets of a flow enter h1, and what they are.
struct Kind {
    what: &'static str,
    source: Source,
    frames: Vec<Vec<u8>>,
    /// The kind that it is compared with, by place.
    beside: Option<usize>,
}

fn index(fabric: &Fabric, port: &str) -> anyhow::Result<Source> {
    let found = fabric.find_port(port);
    let (_, index) = found.ok_or_else(|| anyhow::anyhow!("no port {port}"))?;
    Ok(Source::Port(index))
}

/// The only frame that came onto the segment or into the tunnel.
fn only<T>(mut frames: Vec<T>, fabric: &Fabric) -> anyhow::Result<T> {
    anyhow::ensure!(
        frames.len() == 1,
        "{} frames: {:?}",
        frames.len(),
        fabric.all_drops()
    );
    Ok(frames.remove(0))
}

/// Opens all flows, and gives what is repeated.
fn kinds(fabric: &mut Fabric) -> anyhow::Result<Vec<Kind>> {
    let mut frames: [Vec<Vec<u8>>; 8] = Default::default();
    for number in 0..FLOWS {
        let ports = (2000 + number, 53);
        let there = datagram((ROUTER, A1.0), (A1.1, B2.1), ports);
        fabric.crossed.clear();
        fabric.send("a1", &there);
        frames[0].push(there);
        let back = datagram((ROUTER, B2.0), (B2.1, A1.1), (53, ports.0));
        fabric.crossed.clear();
        fabric.send("b2", &back);
        frames[1].push(only(std::mem::take(&mut fabric.crossed), fabric)?);
        for (place, port, from) in [(2, "e1", E1), (4, "n1", N1), (6, "b2", B2)] {
            fabric.crossed.clear();
            fabric.outside.clear();
            let out = datagram((ROUTER, from.0), (from.1, FAR), ports);
            fabric.send(port, &out);
            // What b2 sends comes to h1 by the tunnel.
            frames[place].push(if place == 6 {
                only(std::mem::take(&mut fabric.crossed), fabric)?
            } else {
                out
            });
            let (_, sent) = only(std::mem::take(&mut fabric.outside), fabric)?;
            let own: [u8; 4] = std::array::from_fn(|i| sent[26 + i]);
            let port = u16::from_be_bytes([sent[34], sent[35]]);
            let answer = datagram((OURS, HOP), (FAR, own), (53, port));
            let wanted = if place == 2 { ELASTIC } else { NAT };
            anyhow::ensure!(own == wanted, "translated to {own:?}");
            let came = fabric.send_from_uplink("h1", SEGMENT, &answer);
            only(came, fabric)?;
            frames[place + 1].push(answer);
        }
    }
    let [
        plain_out,
        plain_in,
        elastic_out,
        elastic_in,
        nat_out,
        nat_in,
        far_out,
        far_in,
    ] = frames;
    let (segment, tunnel) = (Source::Uplink(SEGMENT), Source::Uplink(0));
    let kind = |what, source, frames, beside| Kind {
        what,
        source,
        frames,
        beside,
    };
    Ok(vec![
        kind(
            "plain, port to tunnel",
            index(fabric, "a1")?,
            plain_out,
            None,
        ),
        kind("plain, tunnel to port", tunnel, plain_in, None),
        kind(
            "elastic IP, port to outside",
            index(fabric, "e1")?,
            elastic_out,
            Some(0),
        ),
        kind("elastic IP, outside to port", segment, elastic_in, Some(1)),
        kind(
            "NAT gateway, port to outside",
            index(fabric, "n1")?,
            nat_out,
            Some(0),
        ),
        kind("NAT gateway, outside to port", segment, nat_in, Some(1)),
        kind("NAT gateway, tunnel to outside", tunnel, far_out, Some(1)),
        kind("NAT gateway, outside to tunnel", segment, far_in, Some(0)),
    ])
}

fn hits(rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let mut fabric = site(1, 0, u32::from(FLOWS) * 16)?;
    let kinds = kinds(&mut fabric)?;
    let now = fabric.now;
    let host = fabric.hosts.get_mut("h1");
    let host = host.ok_or_else(|| anyhow::anyhow!("no host"))?;
    let mut samples = vec![Vec::with_capacity(HITS); kinds.len()];
    for sample in 0..HITS {
        for (kind, samples) in kinds.iter().zip(&mut samples) {
            let first = sample * PACKETS;
            samples.push(measure(
                &mut host.pipeline,
                now,
                kind.source,
                &kind.frames,
                first,
            )?);
        }
    }
    for (kind, own) in kinds.iter().zip(&samples) {
        rows.push(Row {
            name: format!("gateway: hit, 1k flows, {}", kind.what),
            unit: "cycles/packet",
            samples: own.clone(),
            goal: None,
            peer: None,
        });
    }
    for (kind, own) in kinds.iter().zip(&samples) {
        let Some(beside) = kind.beside else { continue };
        let ratios = own.iter().zip(&samples[beside]);
        rows.push(Row {
            name: format!("gateway: {}, beside {}", kind.what, kinds[beside].what),
            unit: "of the plain hit",
            samples: ratios.map(|(own, plain)| own / plain).collect(),
            goal: Some((1.25, false)),
            peer: None,
        });
    }
    Ok(())
}

/// A datagram of the `number`th source behind the NAT gateway: one of so many addresses of n1, and one of its ports.
fn of_source(number: u32, addresses: u32) -> Vec<u8> {
    let address = [10, 0, 1, 100 + (number % addresses) as u8];
    let port = 1024 + (number / addresses) as u16;
    datagram((ROUTER, N1.0), (address, FAR), (port, 53))
}

/// New mappings, each with its session, none of which comes twice in a pass. The first pass touches memory that was never used; before the second all of them
/// have ended.
fn new_mappings(rows: &mut Vec<Row>) -> anyhow::Result<()> {
    const ADDRESSES: u8 = 16;
    let mut fabric = site(ADDRESSES, ADDRESSES, 1 << 20)?;
    for (pass, goal) in [
        ("in fresh memory", None),
        ("in memory used before", Some((1.0, true))),
    ] {
        let (source, now) = (index(&fabric, "n1")?, fabric.now);
        let host = fabric.hosts.get_mut("h1");
        let host = host.ok_or_else(|| anyhow::anyhow!("no host"))?;
        let mut samples = Vec::new();
        for sample in 0..MISSES {
            // As the daemon does, beside the workers.
            host.shared.sessions.prepare();
            let first = (sample * PACKETS) as u32;
            let frames: Vec<Vec<u8>> = (first..first + PACKETS as u32)
                .map(|number| of_source(number, ADDRESSES.into()))
                .collect();
            samples.push(measure(&mut host.pipeline, now, source, &frames, 0)?);
        }
        let made = host.shared.sessions.mappings().count() as usize;
        anyhow::ensure!(made == MISSES * PACKETS, "{made} mappings");
        let per_second = samples.iter().map(|cycles| clock::hertz() / cycles / 1e6);
        rows.push(Row {
            name: format!("gateway: new mappings, each with its session, {pass}"),
            unit: "million/s/core",
            samples: per_second.collect(),
            goal,
            peer: None,
        });
        rows.push(Row {
            name: format!("gateway: new mapping: decision, mapping and session, {pass}"),
            unit: "cycles/packet",
            samples,
            goal: None,
            peer: None,
        });
        end_all(&mut fabric)?;
    }
    Ok(())
}

/// Lets all sessions and mappings end.
fn end_all(fabric: &mut Fabric) -> anyhow::Result<()> {
    /// Milliseconds of a turn, and turns in which all mappings are given back for sure.
    const STEP: u32 = 5000;
    const TURNS: usize = 1000;
    for _ in 0..TURNS {
        answer(fabric, STEP);
        let host = fabric.hosts.get("h1");
        let host = host.ok_or_else(|| anyhow::anyhow!("no host"))?;
        if host.shared.sessions.mappings().count() == 0 {
            return Ok(());
        }
    }
    anyhow::bail!("mappings do not end")
}

/// One address, and more sources than it has ports. Stops at the first that gets none.
fn fill(rows: &mut Vec<Row>) -> anyhow::Result<()> {
    const ADDRESSES: u8 = 2;
    let mut fabric = site(1, ADDRESSES, 1 << 18)?;
    let (source, now) = (index(&fabric, "n1")?, fabric.now);
    let host = fabric.hosts.get_mut("h1");
    let host = host.ok_or_else(|| anyhow::anyhow!("no host"))?;
    let mut io = MemoryIo::new(4 * VECTOR as u32, 2048);
    let (mut given, mut last) = (0u32, Vec::new());
    let mut number = 0;
    let mut vector = Vec::with_capacity(VECTOR);
    while given == number && number < 2 * POOL {
        host.shared.sessions.prepare();
        for _ in 0..VECTOR {
            let frame = of_source(number, ADDRESSES.into());
            let packet = io.memory.packet(256, &frame);
            vector.push(packet.ok_or_else(|| anyhow::anyhow!("no frame"))?);
            number += 1;
        }
        let begun = clock::cycles();
        host.pipeline.process(&mut io, source, &mut vector, now);
        let spent = (clock::cycles() - begun) as f64;
        given += io.sent.len() as u32;
        while let Some((_, packet)) = io.sent.pop() {
            io.free(packet.frame);
        }
        // The last tenth: free ports are few.
        if number > POOL / 10 * 9 && number <= POOL {
            last.push(spent / VECTOR as f64);
        }
    }
    let refused = host.drops()[DropReason::NatPorts as usize];
    anyhow::ensure!(
        refused == u64::from(number - given),
        "{refused} of {} without a port",
        number - given
    );
    rows.push(Row {
        name: format!("gateway: ports of {POOL} that were given out before one was refused"),
        unit: "%",
        samples: vec![f64::from(given) * 100.0 / f64::from(POOL)],
        goal: Some((100.0, true)),
        peer: None,
    });
    rows.push(Row {
        name: "gateway: new mapping in the last tenth of a pool".into(),
        unit: "cycles/packet",
        samples: last,
        goal: None,
        peer: None,
    });
    Ok(())
}

const VPCS: u32 = 10_000;
const PORTS_OF_VPC: u32 = 10;
const HOSTS: u32 = 100;
/// External networks, each with a gateway host of its own: a host holds 1024 addresses of NAT gateways.
const NETWORKS: u32 = 16;

/// The external network of a VPC's addresses.
fn network_of(vpc: u32) -> (String, u32) {
    let number = vpc % NETWORKS;
    (format!("internet-{number}"), 20 + number)
}

fn elastic(number: u32) -> ElasticIp {
    let [_, a, b, c] = (number + 256).to_be_bytes();
    let (external_network, first) = network_of(number / PORTS_OF_VPC);
    ElasticIp {
        id: format!("e{number}"),
        external_network,
        address: format!("{first}.{a}.{b}.{c}"),
        port: format!("p{number}"),
        ..ElasticIp::default()
    }
}

fn nat(number: u32) -> NatGateway {
    let [_, a, b, c] = (number + 256).to_be_bytes();
    let (external_network, first) = network_of(number);
    NatGateway {
        id: format!("n{number}"),
        vpc: format!("v{number}"),
        external_network,
        addresses: vec![format!("{first}.{}.{b}.{c}", 128 + a)],
        ..NatGateway::default()
    }
}

/// 10k VPCs with a NAT gateway each, and ten ports with an elastic IP each, on a hundred hosts. The last of either kind is left
/// out, to be added.
fn region() -> Objects {
    let mut objects = Objects::default();
    let host = |id: String, number: u32| Host {
        id,
        vteps: vec![format!("192.0.2.{number}")],
        physical_networks: vec!["physnet1".into()],
        ..Host::default()
    };
    objects.hosts = (0..HOSTS).map(|n| host(format!("h{n}"), n + 2)).collect();
    for number in 0..NETWORKS {
        let (id, first) = network_of(number);
        let gateway = format!("g{number}");
        objects
            .hosts
            .push(host(gateway.clone(), HOSTS + 2 + number));
        objects.external_networks.push(ExternalNetwork {
            id,
            physical_network: "physnet1".into(),
            vlan: 1 + number,
            prefixes: vec![format!("{first}.0.0.0/8")],
            gateways: vec![format!("{first}.255.0.1")],
            gateway_hosts: vec![gateway],
            ..ExternalNetwork::default()
        });
    }
    for number in 0..VPCS {
        let id = format!("v{number}");
        objects.subnets.push(Subnet {
            id: id.clone(),
            vpc: id.clone(),
            cidrs: vec!["10.0.0.0/24".into()],
            ..Subnet::default()
        });
        objects.vpcs.push(Vpc {
            id,
            vni: 1000 + number,
            ..Vpc::default()
        });
        if number + 1 < VPCS {
            objects.nat_gateways.push(nat(number));
        }
        for place in 0..PORTS_OF_VPC {
            let port = number * PORTS_OF_VPC + place;
            let [_, a, b, c] = port.to_be_bytes();
            objects.ports.push(Port {
                id: format!("p{port}"),
                vpc: format!("v{number}"),
                subnet: format!("v{number}"),
                mac: format!("02:00:00:{a:02x}:{b:02x}:{c:02x}"),
                addresses: vec![format!("10.0.0.{}", 10 + place)],
                // A VPC's ports are on one host: what others do is not its concern.
                host: format!("h{}", number % HOSTS),
                device: Some(Device {
                    kind: "netdev".into(),
                    name: format!("p{port}"),
                    ..Device::default()
                }),
                ..Port::default()
            });
            if port + 1 < VPCS * PORTS_OF_VPC {
                objects.elastic_ips.push(elastic(port));
            }
        }
    }
    objects
}

/// What a host does with a change: decode, patch, compare, validate, compile. The change is made and taken back in turn.
pub(crate) fn at_host(name: &str, states: [&State; 2]) -> anyhow::Result<Vec<f64>> {
    let underlay = Underlay::default();
    let link = ExternalLink {
        physical_network: "physnet1".into(),
        uplink: SEGMENT,
        mac: Mac::from_bytes(OURS),
        mtu: 1500,
        has_tunnels: false,
    };
    let (externals, silent) = ([link], Default::default());
    let mut compiler = Compiler::new(u16::MAX, 1024, 1 << 20);
    let mut generation = 0;
    let mut snapshot = |state: &State| {
        generation += 1;
        let context = Context {
            host: name,
            generation,
            revision: generation.into(),
            underlay: &underlay,
            metadata: false,
            translations: &[],
            externals: &externals,
            silent: &silent,
        };
        let compiled = compiler.compile(state, &context);
        compiled
            .map(drop)
            .map_err(|violations| anyhow::anyhow!("{:?}", violations.first()))
    };
    // As at a host, each state is made of the one before, and shares with it what did not change.
    let mut known = states[0].clone();
    snapshot(&known)?;
    let mut samples = Vec::new();
    for change in 0..CHANGES {
        let (before, after) = (states[change % 2], states[(change + 1) % 2]);
        let (upserts, deletes) = before.delta_to(after);
        let delta = Delta {
            digest: after.digest().to_vec(),
            upserts: Some(upserts),
            deletes,
            ..Delta::default()
        };
        let bytes = delta.encode_to_vec();
        let begun = Instant::now();
        let delta = Delta::decode(&bytes[..])?;
        let next = known.patched(delta.upserts.unwrap_or_default(), &delta.deletes)?;
        anyhow::ensure!(next.digest()[..] == delta.digest[..], "another state");
        let found = validate_next(&known, &next, Scope::Node { host: name });
        anyhow::ensure!(found.is_empty(), "{:?}", found.first());
        snapshot(&next)?;
        samples.push(begun.elapsed().as_secs_f64() * 1e3);
        known = next;
    }
    Ok(samples)
}

fn one_more(rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let state = State::from_objects(region())?;
    let begun = Instant::now();
    let found = validate(&state, Scope::Intent);
    let whole = begun.elapsed().as_secs_f64() * 1e3;
    anyhow::ensure!(found.is_empty(), "{:?}", found.first());
    let mut add = |what: &str, samples: Vec<f64>, goal: Option<f64>| {
        rows.push(Row {
            name: format!("gateway: 100k elastic IPs, 10k NAT gateways: {what}"),
            unit: "ms",
            samples,
            goal: goal.map(|goal| (goal, false)),
            peer: None,
        });
    };
    add("the whole intent validated", vec![whole], None);
    let version = Version::loaded(1, State::default());
    let all = Change {
        revision: 2,
        upserts: state.iter().cloned().collect(),
        deletes: Vec::new(),
        ..Change::default()
    };
    let version = version.next(&all, state.clone());
    let last = VPCS * PORTS_OF_VPC - 1;
    let gateway = format!("g{}", (VPCS - 1) % NETWORKS);
    for (what, object, own) in [
        ("elastic IP", Object::ElasticIp(elastic(last)), "h99"),
        ("NAT gateway", Object::NatGateway(nat(VPCS - 1)), "h99"),
    ] {
        let mut next = state.clone();
        next.insert(object.clone());
        let change = Change {
            revision: 3,
            upserts: vec![object],
            deletes: Vec::new(),
            ..Change::default()
        };
        let (mut validated, mut indexed, mut compiled) = (Vec::new(), Vec::new(), Vec::new());
        let mut after = None;
        for _ in 0..3 {
            let begun = Instant::now();
            let found = validate_next(&state, &next, Scope::Intent);
            validated.push(begun.elapsed().as_secs_f64() * 1e3);
            anyhow::ensure!(found.is_empty(), "{:?}", found.first());
            let begun = Instant::now();
            let version = version.next(&change, next.clone());
            indexed.push(begun.elapsed().as_secs_f64() * 1e3);
            let begun = Instant::now();
            after = compile(&version, own);
            compiled.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        add(&format!("one more {what}, validated"), validated, None);
        add(
            &format!("one more {what}, the controller's index"),
            indexed,
            None,
        );
        add(
            &format!("one more {what}, compiled for a host of 1k ports"),
            compiled,
            None,
        );
        let before = compile(&version, own).ok_or_else(|| anyhow::anyhow!("no host"))?;
        let after = after.ok_or_else(|| anyhow::anyhow!("no host"))?;
        let times = at_host(own, [&before, &after])?;
        add(&format!("one more {what}, at that host"), times, Some(1.0));
        let next = version.next(&change, next);
        let both = [&version, &next].map(|version| compile(version, &gateway));
        let [Some(before), Some(after)] = both else {
            anyhow::bail!("no gateway host");
        };
        let times = at_host(&gateway, [&before, &after])?;
        add(
            &format!("one more {what}, at the gateway host"),
            times,
            Some(1.0),
        );
    }
    Ok(())
}

pub(crate) fn rows() -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    hits(&mut rows)?;
    new_mappings(&mut rows)?;
    fill(&mut rows)?;
    one_more(&mut rows)?;
    Ok(rows)
}
