//! Changes: the time from the receipt of a delta to the first vector of packets that it applies to, while another core forwards; the time
//! for the whole state of a large host; and the memory of a million sessions and a million routes together.
//!
//! The measured steps are the agent's: decode, patch, compare digests, validate, compile, publish. Reading from the stream, and storing the
//! state on disk afterwards, are not included.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use prost::Message;
use weft_dataplane::packet::parse::address_word;
use weft_dataplane::packet::{FrameMemory, Mac};
use weft_dataplane::pipeline::{Pipeline, Source, VECTOR};
use weft_dataplane::route::Prefix;
use weft_dataplane::session::Limits;
use weft_dataplane::snapshot::Snapshot;
use weft_dataplane::snapshot::compile::{Adjacency, Compiler, Context, Underlay};
use weft_fabric::{Fabric, MemoryIo};
use weft_proto::state::{Key, Kind, Object, State};
use weft_proto::v1::{
    Delta, Device, FullState, GroupMembers, Host, Objects, Port, Route, RouteTable, SecurityGroup,
    SecurityRule, Subnet, Vpc,
};
use weft_proto::validate::limits::GROUP_PARTS;
use weft_proto::validate::{Scope, validate, validate_next};

use crate::{Row, dpdk, scenario};

const HOST: &str = "h1";
const CHANGES: usize = 1000;
const HEADROOM: usize = 256;
/// Set in a process that measures its own memory and does nothing else.
const FOOTPRINT: &str = "WEFT_BENCH_FOOTPRINT";

/// What stands in for the agent: the same steps in the same order.
struct Agent {
    state: State,
    compiler: Compiler,
    underlay: Underlay,
    generation: u32,
}

impl Agent {
    fn new() -> anyhow::Result<Self> {
        let word = |text: &str| -> anyhow::Result<u128> { Ok(address_word(text.parse()?)) };
        let way = Adjacency {
            source: word("192.0.2.1")?,
            source_mac: Mac::from_bytes([2, 0, 0, 0, 9, 1]),
            next_hop_mac: Mac::from_bytes([2, 0, 0, 0, 9, 2]),
            uplink: 0,
            mtu: 1600,
        };
        Ok(Self {
            state: State::default(),
            compiler: Compiler::new(u16::MAX, 1024, 1 << 20),
            underlay: Underlay::from_iter([(word("192.0.2.2")?, vec![way])]),
            generation: 0,
        })
    }

    fn compile(&mut self, next: State) -> anyhow::Result<Snapshot> {
        let scope = Scope::Node { host: HOST };
        let violations = if self.state.is_empty() {
            validate(&next, scope)
        } else {
            validate_next(&self.state, &next, scope)
        };
        anyhow::ensure!(violations.is_empty(), "{violations:?}");
        self.generation += 1;
        let context = Context {
            host: HOST,
            generation: self.generation,
            revision: self.generation.into(),
            underlay: &self.underlay,
            metadata: false,
            translations: &[],
            externals: &[],
            silent: Box::leak(Box::default()),
        };
        let snapshot = self.compiler.compile(&next, &context);
        self.state = next;
        snapshot.map_err(|violations| anyhow::anyhow!("{violations:?}"))
    }

    fn receive_full(&mut self, bytes: &[u8]) -> anyhow::Result<Snapshot> {
        let full = FullState::decode(bytes)?;
        let next = State::from_objects(full.state.unwrap_or_default())?;
        anyhow::ensure!(next.digest()[..] == full.digest[..], "another state");
        self.compile(next)
    }

    fn receive(&mut self, bytes: &[u8]) -> anyhow::Result<Snapshot> {
        let delta = Delta::decode(bytes)?;
        let upserts = delta.upserts.unwrap_or_default();
        let next = self.state.patched(upserts, &delta.deletes)?;
        anyhow::ensure!(next.digest()[..] == delta.digest[..], "another state");
        self.compile(next)
    }
}

fn full(state: &State) -> Vec<u8> {
    let full = FullState {
        revision: 1,
        digest: state.digest().to_vec(),
        state: Some(state.to_objects()),
    };
    full.encode_to_vec()
}

/// The bytes of the delta that puts an object into a state, and the state after it.
fn delta(state: &State, object: Object) -> (Vec<u8>, State) {
    let mut next = state.clone();
    next.insert(object);
    let (upserts, deletes) = state.delta_to(&next);
    let delta = Delta {
        from_revision: 1,
        revision: 2,
        digest: next.digest().to_vec(),
        upserts: Some(upserts),
        deletes,
    };
    (delta.encode_to_vec(), next)
}

/// Forwards on the last core until it is stopped, by the newest snapshot that it is sent. Returns packets in and out.
struct Forwarder {
    snapshots: mpsc::Sender<Arc<Snapshot>>,
    generation: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<anyhow::Result<(usize, usize)>>,
}

impl Forwarder {
    fn start(mut pipeline: Pipeline, snapshot: Snapshot) -> anyhow::Result<Self> {
        let (snapshots, inbox) = mpsc::channel::<Arc<Snapshot>>();
        let generation = Arc::new(AtomicU32::new(snapshot.generation));
        let stop = Arc::new(AtomicBool::new(false));
        let (told, stopping) = (Arc::clone(&generation), Arc::clone(&stop));
        let is_a1 = |port: &Option<weft_dataplane::snapshot::Port>| {
            port.as_ref().is_some_and(|port| port.id == "a1")
        };
        let index = snapshot.ports.iter().position(is_a1);
        let source = Source::Port(index.ok_or_else(|| anyhow::anyhow!("no port"))? as u16);
        pipeline.set_snapshot(Arc::new(snapshot));
        let forward = move || {
            let frames: Vec<Vec<u8>> = (0..1000).map(scenario::udp).collect();
            let mut io = MemoryIo::new(4 * VECTOR as u32, 2048);
            let (mut taken, mut sent) = (0, 0);
            let mut vector = Vec::with_capacity(VECTOR);
            while !stopping.load(Ordering::Relaxed) {
                for _ in 0..VECTOR {
                    let frame = &frames[taken % frames.len()];
                    let packet = io.memory.packet(HEADROOM, frame);
                    vector.push(packet.ok_or_else(|| anyhow::anyhow!("no frame"))?);
                    taken += 1;
                }
                let newest = inbox.try_iter().last();
                if let Some(snapshot) = &newest {
                    pipeline.set_snapshot(Arc::clone(snapshot));
                }
                pipeline.process(&mut io, source, &mut vector, 1);
                if let Some(snapshot) = newest {
                    told.store(snapshot.generation, Ordering::Release);
                }
                sent += io.sent.len();
                while let Some((_, packet)) = io.sent.pop() {
                    io.free(packet.frame);
                }
            }
            Ok((taken, sent))
        };
        let thread = std::thread::spawn(|| dpdk::pinned(forward));
        Ok(Self {
            snapshots,
            generation,
            stop,
            thread,
        })
    }

    /// Returns when packets have been judged by the snapshot.
    fn publish(&self, snapshot: Snapshot) -> anyhow::Result<()> {
        let generation = snapshot.generation;
        self.snapshots.send(Arc::new(snapshot))?;
        while self.generation.load(Ordering::Acquire) != generation {
            anyhow::ensure!(!self.thread.is_finished(), "the forwarder has stopped");
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// Packets that were lost, of how many.
    fn stop(self) -> anyhow::Result<(usize, usize)> {
        self.stop.store(true, Ordering::Relaxed);
        let forwarded = self.thread.join();
        let (taken, sent) = forwarded.map_err(|_| anyhow::anyhow!("the forwarder panicked"))??;
        Ok((taken - sent, taken))
    }
}

fn pipeline(capacity: u32) -> anyhow::Result<Pipeline> {
    let mut fabric: Fabric = scenario::fabric(capacity)?;
    let host = fabric.hosts.remove(HOST);
    Ok(host.ok_or_else(|| anyhow::anyhow!("no host"))?.pipeline)
}

/// The rows of one kind of change: `change` makes the object that is put into the state each time.
fn measure(
    name: &str,
    objects: Objects,
    change: impl Fn(&State, usize) -> anyhow::Result<Object>,
) -> anyhow::Result<Vec<Row>> {
    let mut agent = Agent::new()?;
    let state = State::from_objects(objects)?;
    let snapshot = agent.receive_full(&full(&state))?;
    let forwarder = Forwarder::start(pipeline(1 << 16)?, snapshot)?;
    let mut times = Vec::with_capacity(CHANGES);
    for number in 0..CHANGES {
        let (bytes, _) = delta(&agent.state, change(&agent.state, number)?);
        let begun = Instant::now();
        let snapshot = agent.receive(&bytes)?;
        forwarder.publish(snapshot)?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let (lost, taken) = forwarder.stop()?;
    times.sort_by(f64::total_cmp);
    let row = |what: &str, unit, value: f64, goal: Option<f64>| Row {
        name: format!("change: {name}, {what}"),
        unit,
        samples: vec![value],
        goal: goal.map(|goal| (goal, false)),
        peer: None,
    };
    Ok(vec![
        row("median", "ms", times[CHANGES / 2], None),
        row(
            "99th percentile",
            "ms",
            times[CHANGES * 99 / 100],
            Some(1.0),
        ),
        row(
            &format!("packets lost of {} million", taken / 1_000_000),
            "packets",
            lost as f64,
            Some(0.0),
        ),
    ])
}

/// The topology of the other suites as the state of host h1.
fn base() -> anyhow::Result<Objects> {
    let mut objects = scenario::objects()?;
    for port in &mut objects.ports {
        if port.host == HOST {
            port.device = Some(device("a1"));
        } else {
            port.security_groups.clear();
        }
    }
    Ok(objects)
}

fn device(name: &str) -> Device {
    Device {
        kind: "netdev".into(),
        name: name.into(),
        ..Device::default()
    }
}

fn route(number: usize, host: bool) -> Route {
    let [_, a, b, c] = (number as u32 + 1).to_be_bytes();
    Route {
        prefix: format!("{}.{b}.{c}.0/24", 100 + a),
        host: if host { "h2" } else { "" }.into(),
        blackhole: !host,
        ..Route::default()
    }
}

/// As many VPCs as there are tables, with ten routes each.
fn with_tables(tables: usize) -> anyhow::Result<Objects> {
    let mut objects = base()?;
    for number in 0..tables {
        let id = format!("many-{number}");
        objects.vpcs.push(Vpc {
            id: id.clone(),
            vni: 1000 + number as u32,
            ..Vpc::default()
        });
        objects.subnets.push(Subnet {
            id: id.clone(),
            vpc: id.clone(),
            cidrs: vec!["10.0.1.0/24".into()],
            route_table: id.clone(),
            ..Subnet::default()
        });
        objects.route_tables.push(RouteTable {
            id: id.clone(),
            vpc: id,
            routes: (0..10).map(|i| route(i, true)).collect(),
            ..RouteTable::default()
        });
    }
    Ok(objects)
}

fn table_change(tables: usize) -> impl Fn(&State, usize) -> anyhow::Result<Object> {
    move |state, number| {
        let id = format!("many-{}", number * 7919 % tables);
        match state.find(Kind::RouteTable, &id) {
            Some(Object::RouteTable(table)) => {
                let mut table = table.clone();
                let there = !table.routes[3].host.is_empty();
                table.routes[3] = route(3, !there);
                Ok(Object::RouteTable(table))
            }
            _ => anyhow::bail!("no table {id}"),
        }
    }
}

fn address(number: usize) -> String {
    let [_, a, b, c] = (number as u32).to_be_bytes();
    format!("10.{}.{b}.{c}", 7 + a)
}

fn group(id: &str, members: impl Iterator<Item = usize>) -> SecurityGroup {
    let rule = |port: u32, remote: &str| SecurityRule {
        direction: "ingress".into(),
        protocol: "udp".into(),
        port_min: Some(port),
        port_max: Some(port),
        remote_group: remote.into(),
        ..SecurityRule::default()
    };
    SecurityGroup {
        id: id.into(),
        vpc: "blue".into(),
        rules: (0..10)
            .map(|port| rule(port, if port < 5 { id } else { "" }))
            .collect(),
        members: members.map(address).collect(),
        tenant: String::new(),
        ..SecurityGroup::default()
    }
}

/// One group with so many members, told in parts.
fn with_members(count: usize) -> anyhow::Result<Objects> {
    let mut objects = base()?;
    objects.security_groups.push(group("large", 0..0));
    objects.group_members = (0..GROUP_PARTS)
        .map(|number| GroupMembers {
            id: GroupMembers::id_of("large", number),
            vpc: "blue".into(),
            group: "large".into(),
            number,
            members: (10 + number as usize..10 + count)
                .step_by(GROUP_PARTS as usize)
                .map(address)
                .collect(),
        })
        .collect();
    Ok(objects)
}

fn member_change(state: &State, number: usize) -> anyhow::Result<Object> {
    // A member goes from a part, and comes back.
    let part = number as u32 / 2 % GROUP_PARTS;
    let id = GroupMembers::id_of("large", part);
    let Some(Object::GroupMembers(part)) = state.find(Kind::GroupMembers, &id) else {
        anyhow::bail!("no part {id}");
    };
    let mut part = part.clone();
    if number.is_multiple_of(2) {
        part.members.remove(part.members.len() / 2);
    } else {
        let at = part.members.len().div_ceil(2);
        let place = at * GROUP_PARTS as usize;
        part.members
            .insert(at, address(10 + part.number as usize + place));
    }
    Ok(Object::GroupMembers(part))
}

/// So many ports of this host in groups of a hundred, and so many routes in their table.
fn with_ports(ports: usize, routes: usize) -> anyhow::Result<Objects> {
    let mut objects = base()?;
    objects.subnets.push(Subnet {
        id: "wide".into(),
        vpc: "blue".into(),
        cidrs: vec!["10.7.0.0/16".into()],
        route_table: "wide".into(),
        ..Subnet::default()
    });
    objects.route_tables.push(RouteTable {
        id: "wide".into(),
        vpc: "blue".into(),
        routes: (0..routes).map(|i| route(i, true)).collect(),
        ..RouteTable::default()
    });
    for number in 0..ports.div_ceil(100) {
        let members = 10 + number * 100..10 + (number + 1) * 100;
        objects
            .security_groups
            .push(group(&format!("group-{number}"), members));
    }
    for number in 0..ports {
        let [_, a, b, c] = (number as u32).to_be_bytes();
        objects.ports.push(Port {
            id: format!("port-{number}"),
            vpc: "blue".into(),
            subnet: "wide".into(),
            mac: format!("06:00:00:{a:02x}:{b:02x}:{c:02x}"),
            addresses: vec![address(10 + number)],
            security_groups: vec![format!("group-{}", number / 100)],
            host: HOST.into(),
            device: Some(device(&format!("p{number}"))),
            ..Port::default()
        });
    }
    Ok(objects)
}

/// So many ports of the VPC on other hosts.
fn with_remote_ports(ports: usize) -> anyhow::Result<Objects> {
    const HOSTS: usize = 500;
    let mut objects = with_ports(100, 1000)?;
    for number in 0..HOSTS {
        let [_, _, b, c] = (number as u32).to_be_bytes();
        objects.hosts.push(Host {
            id: format!("far-{number}"),
            vteps: vec![format!("192.0.{}.{c}", 3 + b)],
            ..Host::default()
        });
    }
    objects
        .ports
        .extend((0..ports).map(|number| remote_port(number, number % HOSTS)));
    Ok(objects)
}

fn remote_port(number: usize, host: usize) -> Port {
    let [_, a, b, c] = (number as u32).to_be_bytes();
    Port {
        id: format!("remote-{number}"),
        vpc: "blue".into(),
        subnet: "wide".into(),
        mac: format!("06:00:01:{a:02x}:{b:02x}:{c:02x}"),
        addresses: vec![address(1000 + number)],
        host: format!("far-{host}"),
        ..Port::default()
    }
}

/// One port more on this host.
fn own_port(number: usize) -> Port {
    Port {
        id: format!("more-{number}"),
        host: HOST.into(),
        security_groups: vec!["group-0".into()],
        device: Some(device(&format!("m{number}"))),
        ..remote_port(60_000 + number, 0)
    }
}

fn rule_change(state: &State, number: usize) -> anyhow::Result<Object> {
    let id = format!("group-{}", number % 100);
    let Some(Object::SecurityGroup(group)) = state.find(Kind::SecurityGroup, &id) else {
        anyhow::bail!("no group {id}");
    };
    let mut group = group.clone();
    group.rules[7].port_max = Some(1000 + number as u32);
    Ok(Object::SecurityGroup(group))
}

fn whole() -> anyhow::Result<Row> {
    let state = State::from_objects(with_ports(10_000, 100_000)?)?;
    let bytes = full(&state);
    let sample = |_| -> anyhow::Result<f64> {
        let mut agent = Agent::new()?;
        let begun = Instant::now();
        let snapshot = agent.receive_full(&bytes)?;
        let spent = begun.elapsed().as_secs_f64();
        drop(snapshot);
        Ok(spent)
    };
    Ok(Row {
        name: "change: the whole state of a host, 100k routes, 10k ports in 100 groups".into(),
        unit: "s",
        samples: (0..5).map(sample).collect::<anyhow::Result<_>>()?,
        goal: Some((1.0, false)),
        peer: None,
    })
}

/// MiB that this process has in memory.
fn resident() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: f64 = kib
        .ok_or_else(|| anyhow::anyhow!("no VmRSS"))?
        .trim()
        .parse()?;
    Ok(kib / 1024.0)
}

/// In a process of its own: state and snapshot of a million routes in one table, and a million sessions.
fn fill() -> anyhow::Result<f64> {
    const SESSIONS: u32 = 1_000_000;
    let mut agent = Agent::new()?;
    let mut objects = base()?;
    objects.subnets[0].route_table = "million".into();
    objects.route_tables.push(RouteTable {
        id: "million".into(),
        vpc: "blue".into(),
        routes: (0..1_000_000).map(|i| route(i, true)).collect(),
        ..RouteTable::default()
    });
    let state = State::from_objects(objects)?;
    let snapshot = Arc::new(agent.compile(state)?);
    let limits = Limits {
        capacity: SESSIONS,
        per_port: SESSIONS,
        per_vpc: SESSIONS,
        ports: 16,
        vpcs: 16,
    };
    let fabric = Fabric::new(
        State::from_objects(scenario::objects()?)?,
        &scenario::settings(),
        limits,
    );
    let mut fabric = fabric.map_err(|violations| anyhow::anyhow!("{violations:?}"))?;
    let source = scenario::source(&fabric)?;
    let host = fabric.hosts.get_mut(HOST);
    let pipeline = &mut host.ok_or_else(|| anyhow::anyhow!("no host"))?.pipeline;
    pipeline.set_snapshot(Arc::clone(&snapshot));
    for first in (0..SESSIONS).step_by(scenario::PACKETS) {
        let last = SESSIONS.min(first + scenario::PACKETS as u32);
        let frames: Vec<Vec<u8>> = (first..last).map(scenario::udp).collect();
        scenario::measure(pipeline, 1, source, &frames, 0)?;
    }
    let routes = &snapshot.subnets[0].routes;
    let found = routes.lookup(Prefix::host(address_word("100.0.1.1".parse()?)).bits());
    anyhow::ensure!(found.is_some() && routes.len() == 1_000_000, "no routes");
    let key = Key {
        kind: Kind::RouteTable,
        id: "million".into(),
    };
    anyhow::ensure!(agent.state.get(&key).is_some(), "no state");
    resident()
}

fn footprint() -> anyhow::Result<Row> {
    let out = std::process::Command::new(std::env::current_exe()?)
        .arg("change")
        .env(FOOTPRINT, "1")
        .output()?;
    let printed = String::from_utf8_lossy(&out.stdout);
    let complaints = String::from_utf8_lossy(&out.stderr);
    anyhow::ensure!(out.status.success(), "{complaints}");
    Ok(Row {
        name: "change: memory of the process with 1M sessions and 1M routes, state included".into(),
        unit: "MiB",
        samples: vec![printed.trim().parse()?],
        goal: Some((512.0, false)),
        peer: None,
    })
}

pub(crate) fn rows() -> anyhow::Result<Vec<Row>> {
    if std::env::var_os(FOOTPRINT).is_some() {
        println!("{}", fill()?);
        std::process::exit(0);
    }
    let mut rows = Vec::new();
    for (tables, name) in [
        (100, "a route, of 1k in 100 VPCs"),
        (100_000, "a route, of 1M in 100k VPCs"),
    ] {
        rows.extend(measure(name, with_tables(tables)?, table_change(tables))?);
    }
    rows.extend(measure(
        "a member of a group of 10k",
        with_members(10_000)?,
        member_change,
    )?);
    rows.extend(measure(
        "a member of a group of 100k",
        with_members(100_000)?,
        member_change,
    )?);
    rows.extend(measure(
        "a port more on another host, in a VPC of 50k ports",
        with_remote_ports(50_000)?,
        |_, number| Ok(Object::Port(remote_port(50_000 + number, number % 500))),
    )?);
    rows.extend(measure(
        "a port more on this host, in a VPC of 50k ports",
        with_remote_ports(50_000)?,
        |_, number| Ok(Object::Port(own_port(number))),
    )?);
    rows.extend(measure(
        "a rule of a group of 100 of 10k ports",
        with_ports(10_000, 1000)?,
        rule_change,
    )?);
    rows.push(whole()?);
    rows.push(footprint()?);
    Ok(rows)
}
