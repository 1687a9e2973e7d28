//! One VPC with many ports on many hosts: a change still takes effect quickly.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::{Controller, FakeHost, yaml};
use weft_proto::v1::{ApplyRequest, Device, Host, Objects, Port, to_host};

const PORTS: u32 = 20_000;
const HOSTS: u32 = 200;

fn topology() -> Objects {
    let mut all = yaml(
        "vpcs: [{id: blue, vni: 1}]
subnets: [{id: a, vpc: blue, cidrs: [10.0.0.0/8]}]
security_groups: [{id: web, vpc: blue, rules: [{direction: ingress, remote_group: web}]}]",
    );
    all.hosts = (0..HOSTS)
        .map(|h| Host {
            id: format!("h{h}"),
            vteps: vec![format!("192.0.2.{h}")],
            ..Host::default()
        })
        .collect();
    all.ports = (0..PORTS).map(|n| port(n, 0)).collect();
    all
}

fn port(n: u32, moved: u32) -> Port {
    let [_, a, b, c] = (n + 256).to_be_bytes();
    Port {
        id: format!("p{n}"),
        vpc: "blue".into(),
        subnet: "a".into(),
        mac: format!("02:00:00:{a:02x}:{b:02x}:{c:02x}"),
        addresses: vec![format!("10.{a}.{b}.{c}")],
        security_groups: vec!["web".into()],
        host: format!("h{}", (n + moved) % HOSTS),
        device: Some(Device {
            kind: "netdev".into(),
            name: format!("v{n}"),
            ..Device::default()
        }),
        ..Port::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_moved_among_twenty_thousand_is_known_to_a_host_soon() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let apply = |objects| ApplyRequest {
        objects: Some(objects),
        ..ApplyRequest::default()
    };
    client.apply(apply(topology())).await.unwrap();
    let start = Instant::now();
    let mut host = FakeHost::attach(&controller.address, "h0", 0, vec![]).await;
    host.take_and_acknowledge().await;
    println!("{} objects whole: {:?}", host.state.len(), start.elapsed());
    for round in 1..=5 {
        let moved = Objects {
            ports: vec![port(7, round)],
            ..Objects::default()
        };
        let start = Instant::now();
        client.apply(apply(moved)).await.unwrap();
        let stored = start.elapsed();
        let delta = host.take_and_acknowledge().await;
        let known = start.elapsed();
        println!("stored after {stored:?}, known to the host after {known:?}");
        let to_host::Message::Delta(delta) = delta else {
            panic!("{delta:?}")
        };
        assert_eq!(delta.upserts.unwrap().ports.len(), 1, "and nothing else");
        assert!(known < Duration::from_secs(5), "{known:?}");
    }
    controller.stop().await;
}
