//! The profiles of all traffic generators describe the same traffic, and policy admits it.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use weft_dataplane::pipeline::Settings;
use weft_dataplane::session::Limits;
use weft_fabric::Fabric;
use weft_proto::state::State;
use weft_proto::v1::Objects;
use weft_proto::validate::{Scope, validate};
use weft_tests::load;

const SCENARIOS: [&str; 5] = ["udp-1k", "udp-1m", "imix", "syn", "vxlan"];

fn profiles() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles")
}

/// Runs a program in the profiles' directory; its output, line by line.
fn run(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
    let out = Command::new(program)
        .args(arguments)
        .envs(variables.iter().copied())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(profiles())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let complaints = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success(),
        "{program} {arguments:?}: {complaints}"
    );
    let said = String::from_utf8(out.stdout).unwrap();
    said.lines().map(str::to_owned).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digits).collect()
}

/// What the scenario's packets are, by `packets.py`.
fn packets(scenario: &str, count: usize) -> Vec<String> {
    let count = count.to_string();
    run(
        "python3",
        &["packets.py", "hex", scenario, "0", &count],
        &[],
    )
}

fn objects() -> Objects {
    let text = std::fs::read_to_string(profiles().join("topology.yaml")).unwrap();
    serde_yaml_ng::from_str(&text).unwrap()
}

fn fabric() -> Fabric {
    let limits = Limits {
        capacity: 65_536,
        per_port: 65_536,
        per_vpc: 65_536,
        ports: 16,
        vpcs: 16,
    };
    let settings = Settings {
        ports: 16,
        ..Settings::default()
    };
    Fabric::new(State::from_objects(objects()).unwrap(), &settings, limits).unwrap()
}

#[test]
fn the_topology_is_good() {
    let state = State::from_objects(objects()).unwrap();
    assert_eq!(validate(&state, Scope::Intent), vec![]);
}

#[test]
fn packets_of_every_scenario_pass() {
    for scenario in SCENARIOS {
        let mut fabric = fabric();
        for packet in packets(scenario, 2000) {
            let frame = bytes(&packet);
            let (arrived, port) = if scenario == "vxlan" {
                (fabric.send_from_underlay("h1", &frame), "a")
            } else {
                (fabric.send("a", &frame), "b")
            };
            assert_eq!(arrived.len(), 1, "{scenario}: {:?}", fabric.all_drops());
            assert_eq!(arrived[0].port, port, "{scenario}");
        }
        assert!(fabric.all_drops().is_empty(), "{scenario}");
    }
}

#[test]
fn they_are_the_packets_of_the_benchmark() {
    let (a, b) = ([2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]);
    let ours = load::udp_flows((b, a), ([10, 0, 1, 11], [10, 0, 1, 12]), 1024, 18);
    let theirs: Vec<Vec<u8>> = packets("udp-1k", 1024)
        .iter()
        .map(|hex| bytes(hex))
        .collect();
    assert_eq!(ours, theirs);
}

#[test]
fn trex_sends_what_the_scenario_says() {
    for scenario in SCENARIOS {
        let lines = run("python3", &["trex/expand.py", scenario, "3000"], &[]);
        let sent: Vec<(&str, &str)> = lines
            .iter()
            .map(|line| line.split_once(' ').unwrap())
            .collect();
        if scenario != "imix" {
            let sent: Vec<&str> = sent.iter().map(|(_, packet)| *packet).collect();
            assert_eq!(sent, packets(scenario, 3000), "{scenario}");
            continue;
        }
        // Three streams side by side: by rate and size, each with every flow.
        let mut streams: BTreeMap<(u32, usize), HashSet<&str>> = BTreeMap::new();
        for (rate, packet) in &sent {
            let stream = (rate.parse().unwrap(), packet.len() / 2);
            streams.entry(stream).or_default().insert(packet);
        }
        let sizes: Vec<(u32, usize)> = streams.keys().copied().collect();
        assert_eq!(sizes, [(1000, 1444), (4000, 566), (7000, 60)]);
        assert!(streams.values().all(|flows| flows.len() == 1024));
        let wanted = packets(scenario, 12);
        let all: HashSet<&str> = streams.values().flatten().copied().collect();
        assert!(wanted.iter().all(|packet| all.contains(packet.as_str())));
    }
}

#[test]
fn a_million_flows_are_that_many() {
    // The two counters begin anew together only after as many packets as there are flows: by then each source port has met each other port.
    let (sources, ports) = (2047 - 1024 + 1, 1031 - 9 + 1);
    let divides = |n: u32| sources % n == 0 && ports % n == 0;
    assert!((2..=ports).all(|n| !divides(n)));
    assert_eq!(sources * ports, 1_047_552);
    let first = packets("udp-1m", 5000);
    assert_eq!(first.iter().collect::<HashSet<_>>().len(), 5000);
}

#[test]
fn dpdk_pktgen_is_told_the_same() {
    let calls = |scenario| {
        let variables = [("WEFT_SCENARIO", scenario), ("WEFT_PORT", "3")];
        run("lua5.4", &["dpdk-pktgen/record.lua"], &variables)
    };
    let udp = calls("udp-1m");
    for call in [
        "range.src_mac 3 start 02:00:00:00:01:01",
        "range.dst_mac 3 start 02:00:00:00:01:02",
        "range.src_ip 3 start 10.0.1.11",
        "range.dst_ip 3 start 10.0.1.12",
        "range.ip_proto 3 udp",
        "range.src_port 3 min 1024",
        "range.src_port 3 max 2047",
        "range.dst_port 3 min 9",
        "range.dst_port 3 max 1031",
        // With the link's checksum.
        "range.pkt_size 3 start 64",
        "set_range 3 on",
    ] {
        assert!(udp.iter().any(|made| made == call), "{call}: {udp:#?}");
    }
    assert_eq!(udp.last().unwrap(), "start 3");
    let few = calls("udp-1k");
    assert!(few.iter().any(|made| made == "range.dst_port 3 max 9"));
    assert!(few.iter().any(|made| made == "range.dst_port 3 inc 0"));
    let imix = calls("imix");
    let sized = |size: usize| {
        let size = format!("pktSize={size},");
        imix.iter().filter(|made| made.contains(&size)).count()
    };
    assert_eq!([sized(64), sized(570), sized(1448)], [7, 4, 1]);
}

#[test]
fn kernel_pktgen_is_told_the_same() {
    let commands = |scenario| run("sh", &["pktgen/weft.sh", "-n", scenario, "eth5"], &[]);
    let udp = commands("udp-1m");
    for command in [
        "kpktgend_0: add_device eth5",
        "eth5: src_mac 02:00:00:00:01:01",
        "eth5: dst_mac 02:00:00:00:01:02",
        "eth5: src_min 10.0.1.11",
        "eth5: dst_min 10.0.1.12",
        "eth5: udp_src_min 1024",
        // The first port that is not sent.
        "eth5: udp_src_max 2048",
        "eth5: udp_dst_min 9",
        "eth5: udp_dst_max 1032",
        "eth5: pkt_size 60",
    ] {
        assert!(
            udp.iter().any(|made| made == command),
            "{command}: {udp:#?}"
        );
    }
    assert!(commands("udp-1k").contains(&"eth5: udp_dst_max 9".to_owned()));
    let imix = commands("imix");
    assert!(imix.contains(&"eth5: imix_weights 60,7 566,4 1444,1".to_owned()));
}
