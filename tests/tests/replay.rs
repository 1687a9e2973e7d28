//! Captures of real programs, made without weft, are replayed through the pipelines of two hosts, or of one: each station's frames enter at
//! its port, in order and at their time. Every frame arrives as it was sent, unless the switch answers it itself or policy denies it.
//! `weft-capture` makes the captures again; `WEFT_REPLAY_REPORT` names a file for the figures.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use weft_dataplane::pipeline::Settings;
use weft_dataplane::session::Limits;
use weft_fabric::Fabric;
use weft_proto::state::State;
use weft_proto::v1::{Objects, SecurityRule};
use weft_tests::programs::{Admitted, Program};

const LIMITS: Limits = Limits {
    capacity: 4096,
    per_port: 2048,
    per_vpc: 4096,
    ports: 64,
    vpcs: 64,
};

const BASE: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}]
vpcs: [{id: blue, vni: 100}]
subnets: [{id: blue-a, vpc: blue, cidrs: [10.0.1.0/24, "fd00:1::/64"]}]
security_groups: [{id: client, vpc: blue, rules: []}, {id: server, vpc: blue, rules: []}]
ports:
  - {id: client, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11, "fd00:1::11"], security_groups: [client], host: h1}
  - {id: server, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:02", addresses: [10.0.1.12, "fd00:1::12"], security_groups: [server], host: h2}
"#;

/// What the switch answers itself, or takes for its own use (docs/architecture.md): requests for addresses.
const ANSWERED: [&str; 2] = ["arp_unanswered", "neighbor_unanswered"];

/// A frame of a capture: microseconds since its first, and the bytes.
struct Captured {
    at: u64,
    frame: Vec<u8>,
}

/// Reads the classic format of libpcap, with the byte order of the machine that wrote it.
fn read(file: &Path) -> Vec<Captured> {
    let bytes = std::fs::read(file).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(word(0), 0xa1b2_c3d4, "{}", file.display());
    assert_eq!(word(20), 1, "{} is of Ethernet", file.display());
    let (mut frames, mut at, mut first) = (Vec::new(), 24, None);
    while at + 16 <= bytes.len() {
        let (kept, long) = (word(at + 8) as usize, word(at + 12) as usize);
        assert_eq!(kept, long, "{} has whole frames", file.display());
        let time = u64::from(word(at)) * 1_000_000 + u64::from(word(at + 4));
        let Some(frame) = bytes.get(at + 16..at + 16 + kept) else {
            break;
        };
        frames.push(Captured {
            at: time - *first.get_or_insert(time),
            frame: frame.to_vec(),
        });
        at += 16 + kept;
    }
    frames
}

fn rule(admitted: &Admitted) -> SecurityRule {
    let port = |pick: fn((u16, u16)) -> u16| admitted.ports.map(|ports| pick(ports).into());
    SecurityRule {
        direction: "ingress".into(),
        protocol: admitted.protocol.clone(),
        port_min: port(|(first, _)| first),
        port_max: port(|(_, last)| last),
        ..SecurityRule::default()
    }
}

/// How a capture is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    one_host: bool,
    /// Only what the program names may come in; else everything.
    exact: bool,
    /// Both hosts lose their sessions in the middle.
    restarted: bool,
}

fn topology(program: &Program, way: Way) -> Objects {
    let mut objects: Objects = serde_yaml_ng::from_str(BASE).unwrap();
    let open = vec![SecurityRule {
        direction: "ingress".into(),
        ..SecurityRule::default()
    }];
    let rules = |admit: &[Admitted]| admit.iter().flat_map(rules_of).collect();
    let [client, server] = &mut objects.security_groups[..] else {
        unreachable!("two groups")
    };
    (client.rules, server.rules) = if way.exact {
        (rules(&program.admit_client), rules(&program.admit))
    } else {
        (open.clone(), open)
    };
    if way.one_host {
        objects.ports[1].host = "h1".into();
    }
    objects
}

/// Echo has a protocol of each family.
fn rules_of(admitted: &Admitted) -> Vec<SecurityRule> {
    let mut rules = vec![rule(admitted)];
    if admitted.protocol == "icmp" {
        let mut more = rule(admitted);
        more.protocol = "icmpv6".into();
        rules.push(more);
    }
    rules
}

/// A fabric with the same state and no session, as one whose daemons were killed.
fn fabric(objects: &Objects, now: u32) -> Fabric {
    let state = State::from_objects(objects.clone()).unwrap();
    let mut fabric = Fabric::new(state, &Settings::default(), LIMITS).unwrap();
    fabric.now = now;
    fabric
}

/// Whether the switch answers a frame itself, or has the last word on it: ARP and neighbour discovery.
fn is_for_the_switch(frame: &[u8]) -> bool {
    match &frame[12..14] {
        [8, 6] => true,
        [0x86, 0xdd] => frame[20] == 58 && (133..=137).contains(&frame[54]),
        _ => false,
    }
}

/// Whether a frame belongs to one that went before: the rest of a datagram, the answer to a SYN, an error. A host that has just lost its memory
/// does not take them, and they are sent again with what they belong to.
fn needs_the_frame_before(frame: &[u8]) -> bool {
    let (protocol, at, fragment) = match &frame[12..14] {
        [8, 0] => (frame[23], 34, frame[20] & 0x3f != 0 || frame[21] != 0),
        [0x86, 0xdd] => (frame[20], 54, frame[20] == 44),
        _ => return false,
    };
    let is_error = match protocol {
        1 => [3, 11, 12].contains(&frame[at]),
        58 => frame[at] < 128,
        _ => false,
    };
    fragment || is_error || protocol == 6 && frame[at + 13] & 0x12 == 0x12
}

fn collect(fabric: &Fabric, into: &mut BTreeMap<&'static str, u64>) {
    for (reason, count) in fabric.all_drops() {
        *into.entry(reason.name()).or_default() += count;
    }
}

/// Plays a capture; returns what was wrong, and how many frames were compared.
fn play(program: &Program, frames: &[Captured], way: Way) -> (Vec<String>, usize) {
    let objects = topology(program, way);
    let mut fabric = fabric(&objects, 1);
    let (mut wrong, mut compared, mut drops) = (Vec::new(), 0, BTreeMap::new());
    let middle = frames.len() / 2;
    let cut = (middle..frames.len()).find(|at| !needs_the_frame_before(&frames[*at].frame));
    for (number, captured) in frames.iter().enumerate() {
        let due = 1 + (captured.at / 1000) as u32;
        if due > fabric.now {
            let wait = due - fabric.now;
            fabric.advance(wait);
        }
        if way.restarted && Some(number) == cut {
            collect(&fabric, &mut drops);
            fabric = self::fabric(&objects, fabric.now);
        }
        let frame = &captured.frame;
        let (from, to) = match frame[11] {
            1 => ("client", "server"),
            2 => ("server", "client"),
            // A daemon's own virtual MAC.
            _ => continue,
        };
        let before = fabric.all_drops();
        let delivered = fabric.send(from, frame);
        // A group that admits no multicast asks for that (RFC 4604's reports are sent by every kernel).
        let is_unheard = way.exact && frame[0] & 1 == 1;
        if is_for_the_switch(frame) || is_unheard {
            continue;
        }
        compared += 1;
        // Fragments that waited for their first follow it.
        let arrived = delivered
            .iter()
            .any(|got| got.port == to && &got.frame == frame);
        let after = fabric.all_drops();
        let new: Vec<_> = after
            .iter()
            .filter(|(reason, count)| before.get(*reason) != Some(*count))
            .map(|(reason, _)| reason.name())
            .collect();
        let expected =
            |name: &&str| program.drops.iter().any(|drop| drop == name) || ANSWERED.contains(name);
        if !arrived && (new.is_empty() || !new.iter().all(expected)) {
            wrong.push(format!("frame {} from the {from}: {new:?}", number + 1));
        }
    }
    collect(&fabric, &mut drops);
    let asked = |name: &str| {
        way.exact && name == "no_receiver"
            || program.drops.iter().any(|drop| drop == name)
            || ANSWERED.contains(&name)
    };
    for (name, count) in drops.iter().filter(|(name, _)| !asked(name)) {
        wrong.push(format!("{count} dropped as {name}"));
    }
    if fabric.missing_frames() > 0 {
        wrong.push(format!("{} packet buffers leaked", fabric.missing_frames()));
    }
    (wrong, compared)
}

fn captures(program: &Program) -> Vec<(String, Vec<Captured>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures");
    let families = program
        .families
        .iter()
        .map(|ipv6| if *ipv6 { 6 } else { 4 });
    families
        .map(|digit| {
            let name = format!("{}-{digit}.pcap", program.name);
            let frames = read(&directory.join(&name));
            (name, frames)
        })
        .collect()
}

/// Plays every capture in a way; all that went wrong anywhere is told at once.
fn play_all(exact: bool, restarted: bool) {
    let (mut wrong, mut played, mut compared) = (Vec::new(), 0, 0);
    for program in Program::all().unwrap() {
        // Daemons that speak to groups of routers are admitted as a whole.
        if exact && program.admit.is_empty() {
            continue;
        }
        for (name, frames) in captures(&program) {
            for one_host in [false, true] {
                let way = Way {
                    one_host,
                    exact,
                    restarted,
                };
                let (found, count) = play(&program, &frames, way);
                assert!(count > 0, "{name} has frames");
                played += 1;
                compared += count;
                wrong.extend(found.iter().map(|what| format!("{name}, {way:?}: {what}")));
            }
        }
    }
    println!("{played} captures played, {compared} frames compared");
    if let Ok(file) = std::env::var("WEFT_REPLAY_REPORT")
        && !exact
        && !restarted
    {
        let report = serde_json::json!({"captures": played / 2, "frames": compared / 2});
        std::fs::write(file, report.to_string()).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_frame_of_real_programs_arrives_as_it_was_sent_where_all_may_come_in() {
    play_all(false, false);
}

#[test]
fn it_does_where_the_server_admits_the_programs_ports_and_the_client_nothing() {
    play_all(true, false);
}

#[test]
fn it_does_when_both_hosts_lose_their_sessions_in_the_middle() {
    play_all(false, true);
}

#[test]
fn set_up_installs_what_every_program_needs() {
    let list = include_str!("../../xtask/src/setup/apt.rs");
    for program in Program::all().unwrap() {
        for package in &program.packages {
            let line = format!("    \"{package}\",\n");
            assert!(list.contains(&line), "{package} of {}", program.name);
        }
    }
}

#[test]
fn captures_take_two_megabytes_at_most() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures");
    let files = std::fs::read_dir(directory).unwrap();
    let size: u64 = files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(size <= 2_000_000, "{size} bytes");
}
