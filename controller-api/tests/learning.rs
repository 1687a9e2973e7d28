//! Hosts that learn the ports of a large VPC on demand (decision 018), as a host sees it.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::{Controller, FakeHost, key, topology, until, yaml};
use tonic::transport::Channel;
use weft_controller::intent::Settings;
use weft_process::services::intent_client::IntentClient;
use weft_proto::state::{Kind, Object};
use weft_proto::v1::{
    ApplyRequest, DeleteRequest, FromHost, Hello, HostStatus, Learn, ListHostStatusRequest,
    Objects, Port, VpcAddresses, from_host, to_host,
};
use weft_proto::validate::{Scope, validate};

/// Blue has two ports from the start, and is learned with two more.
const ABOVE: usize = 3;

fn port(number: u32, host: &str) -> Port {
    Port {
        host: host.into(),
        ..yaml(&format!(
            r#"
ports: [{{id: p{number}, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:{number:02x}", addresses: [10.0.0.{number}],
  security_groups: [web], device: {{kind: netdev, name: p{number}}}}}]
"#
        ))
        .ports
        .swap_remove(0)
    }
}

async fn apply(client: &mut IntentClient<Channel>, objects: Objects) -> u64 {
    let request = ApplyRequest {
        objects: Some(objects),
        ..ApplyRequest::default()
    };
    client.apply(request).await.unwrap().into_inner().revision
}

async fn put(client: &mut IntentClient<Channel>, ports: Vec<Port>) -> u64 {
    let objects = Objects {
        ports,
        ..Objects::default()
    };
    apply(client, objects).await
}

async fn delete(client: &mut IntentClient<Channel>, ids: &[&str]) {
    let objects = ids.iter().map(|id| key("port", id)).collect();
    client.delete(DeleteRequest { objects }).await.unwrap();
}

async fn status(client: &IntentClient<Channel>, host: &str) -> HostStatus {
    let mut client = client.clone();
    let reply = client.list_host_status(ListHostStatusRequest {}).await;
    let hosts = reply.unwrap().into_inner().hosts;
    let found = hosts.into_iter().find(|it| it.host == host);
    found.unwrap_or_default()
}

fn of_blue(addresses: &[&str]) -> Vec<VpcAddresses> {
    vec![VpcAddresses {
        vpc: "blue".into(),
        addresses: addresses.iter().map(|it| (*it).to_owned()).collect(),
    }]
}

async fn learn(host: &FakeHost, wanted: &[&str], unwanted: &[&str]) {
    let learn = Learn {
        session: host.session,
        wanted: of_blue(wanted),
        unwanted: of_blue(unwanted),
    };
    let message = FromHost {
        message: Some(from_host::Message::Learn(learn)),
    };
    host.sender.send(message).await.unwrap();
}

fn hello(host: &str) -> Hello {
    Hello {
        host: host.into(),
        capabilities: vec!["learning".into()],
        ..Hello::default()
    }
}

/// The next state, which is good for h1.
async fn take(host: &mut FakeHost) {
    host.take_and_acknowledge().await;
    let found = validate(&host.state, Scope::Node { host: "h1" });
    assert_eq!(found, vec![]);
}

async fn is_told_nothing(host: &mut FakeHost) {
    let silence = tokio::time::timeout(Duration::from_millis(150), host.stream.message()).await;
    assert!(silence.is_err(), "{silence:?}");
}

/// What the host is told of an address of blue: whether it was asked for, and on which host it is.
fn answer(host: &FakeHost, address: &str) -> (bool, Option<String>) {
    let is_asked = host
        .state
        .find(Kind::LearnedAddress, &format!("blue/{address}"));
    let mut ports = host.state.of_kind(Kind::Port);
    let found = ports.find_map(|object| match object {
        Object::Port(port) if port.vpc == "blue" => {
            let has = port.mac == address || port.addresses.iter().any(|it| it == address);
            has.then(|| port.host.clone())
        }
        _ => None,
    });
    (is_asked.is_some(), found)
}

fn on(host: &str) -> (bool, Option<String>) {
    (true, Some(host.to_owned()))
}

fn members(host: &FakeHost, group: &str) -> Vec<String> {
    match host.state.find(Kind::SecurityGroup, group) {
        Some(Object::SecurityGroup(group)) => group.members.clone(),
        other => panic!("{other:?}"),
    }
}

fn is_learned(host: &FakeHost) -> bool {
    match host.state.find(Kind::Vpc, "blue") {
        Some(Object::Vpc(vpc)) => vpc.learning.is_some(),
        other => panic!("{other:?}"),
    }
}

fn settings() -> Settings {
    Settings {
        learn_above: ABOVE,
        ..Settings::default()
    }
}

struct Scene {
    controller: Controller,
    client: IntentClient<Channel>,
    directory: tempfile::TempDir,
}

/// A controller with blue's b1 on h1, b2 on h2, and p101 and p102 on h2 or elsewhere; all are in "web".
async fn scene() -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start_as(directory.path(), "127.0.0.1:0", settings()).await;
    let mut client = controller.intent().await;
    let mut objects = topology();
    objects
        .hosts
        .extend(yaml("hosts: [{id: h3, vteps: [192.0.2.3]}]").hosts);
    objects.ports.extend([port(101, "h2"), port(102, "h3")]);
    apply(&mut client, objects).await;
    Scene {
        controller,
        client,
        directory,
    }
}

#[tokio::test]
async fn a_host_asks_and_is_answered_and_told_of_moves() {
    let mut scene = scene().await;
    let client = &mut scene.client;
    let mut host = FakeHost::attach_as(&scene.controller.address, hello("h1")).await;
    take(&mut host).await;
    assert!(is_learned(&host));
    assert_eq!(host.state.of_kind(Kind::Port).count(), 1, "its own");
    assert_eq!(members(&host, "web"), ["10.0.0.11"]);

    let revision = host.revision;
    learn(&host, &["10.0.0.101", "10.0.0.200"], &[]).await;
    take(&mut host).await;
    assert_eq!(host.revision, revision, "nothing changed but what it asks");
    assert_eq!(answer(&host, "10.0.0.101"), on("h2"));
    assert_eq!(answer(&host, "10.0.0.200"), (true, None));
    assert_eq!(answer(&host, "10.0.0.102"), (false, None));
    assert_eq!(members(&host, "web"), ["10.0.0.101", "10.0.0.11"]);
    assert_eq!(status(client, "h1").await.learned, 2);

    // By its MAC it is the same port, which stays told when one of both is given back.
    learn(&host, &["02:00:00:00:01:65"], &["10.0.0.101"]).await;
    put(
        client,
        vec![Port {
            mac: "02:00:00:00:01:AA".into(),
            ..port(101, "h2")
        }],
    )
    .await;
    until(|| status(client, "h1"), |it| it.learned == 2).await;
    while answer(&host, "10.0.0.101").0 || answer(&host, "10.0.0.101").1.is_some() {
        take(&mut host).await;
    }
    learn(
        &host,
        &["02:00:00:00:01:aa", "10.0.0.101"],
        &["02:00:00:00:01:65"],
    )
    .await;
    take(&mut host).await;
    assert_eq!(answer(&host, "10.0.0.101"), on("h2"));

    // It moves; the first one gets the other; it is gone.
    put(client, vec![port(101, "h3")]).await;
    while answer(&host, "10.0.0.101") != on("h3") {
        take(&mut host).await;
    }
    put(client, vec![port(200, "h3")]).await;
    while answer(&host, "10.0.0.200") != on("h3") {
        take(&mut host).await;
    }
    assert_eq!(
        members(&host, "web"),
        ["10.0.0.101", "10.0.0.11", "10.0.0.200"]
    );
    delete(client, &["p200"]).await;
    while answer(&host, "10.0.0.200") != (true, None) {
        take(&mut host).await;
    }
    // Others are no news.
    until(
        || status(client, "h1"),
        |it| it.acknowledged_revision == scene.controller.intent.current().revision,
    )
    .await;
    let sent = status(client, "h1").await.sent_revision;
    put(client, vec![port(103, "h2")]).await;
    let last = put(
        client,
        vec![Port {
            security_groups: vec![],
            ..port(102, "h2")
        }],
    )
    .await;
    is_told_nothing(&mut host).await;
    let now = status(client, "h1").await;
    assert_eq!((now.sent_revision, now.acknowledged_revision), (sent, last));
    scene.controller.stop().await;
}

#[tokio::test]
async fn what_is_asked_while_a_state_is_on_its_way_is_answered_by_one() {
    let scene = scene().await;
    let mut host = FakeHost::attach_as(&scene.controller.address, hello("h1")).await;
    host.take().await;
    for number in 0..8 {
        learn(&host, &[&format!("10.0.0.{number}"), "no address"], &[]).await;
    }
    learn(&host, &["10.0.0.102"], &["10.0.0.7"]).await;
    is_told_nothing(&mut host).await;
    host.acknowledge(host.session, host.revision).await;
    take(&mut host).await;
    assert_eq!(host.state.of_kind(Kind::LearnedAddress).count(), 8);
    assert_eq!(answer(&host, "10.0.0.102"), on("h3"));
    // What is not of a VPC that it learns is passed over.
    let learn = Learn {
        session: host.session,
        wanted: ["red", "none"]
            .map(|vpc| VpcAddresses {
                vpc: vpc.into(),
                addresses: vec!["10.0.0.11".into()],
            })
            .into(),
        unwanted: of_blue(&["10.0.0.250"]),
    };
    let message = FromHost {
        message: Some(from_host::Message::Learn(learn)),
    };
    host.sender.send(message).await.unwrap();
    is_told_nothing(&mut host).await;
    assert_eq!(status(&scene.client, "h1").await.learned, 8);
    scene.controller.stop().await;
}

#[tokio::test]
async fn a_host_that_comes_back_with_what_it_has_learned_is_told_nothing() {
    let mut scene = scene().await;
    let mut host = FakeHost::attach_as(&scene.controller.address, hello("h1")).await;
    take(&mut host).await;
    learn(&host, &["10.0.0.102", "10.0.0.200"], &[]).await;
    take(&mut host).await;
    let back = Hello {
        revision: host.revision,
        digest: host.state.digest().to_vec(),
        learned: of_blue(&["10.0.0.200", "10.0.0.102"]),
        ..hello("h1")
    };
    let state = host.state.clone();
    let mut host = FakeHost::attach_as(&scene.controller.address, back.clone()).await;
    is_told_nothing(&mut host).await;
    // Neither by another controller, which then tells it what is new.
    scene.controller.stop().await;
    let listen = "127.0.0.1:0";
    let controller = Controller::start_as(scene.directory.path(), listen, settings()).await;
    scene.client = controller.intent().await;
    let mut host = FakeHost::attach_as(&controller.address, back.clone()).await;
    is_told_nothing(&mut host).await;
    host.state = state;
    put(&mut scene.client, vec![port(200, "h2")]).await;
    let next = host.take_and_acknowledge().await;
    assert!(matches!(next, to_host::Message::Delta(_)), "{next:?}");
    assert_eq!(answer(&host, "10.0.0.200"), on("h2"));
    // One that has forgotten it is told so.
    let forgot = Hello {
        learned: vec![],
        ..back
    };
    let mut host = FakeHost::attach_as(&controller.address, forgot).await;
    take(&mut host).await;
    assert_eq!(answer(&host, "10.0.0.200"), (false, None));
    controller.stop().await;
}

#[tokio::test]
async fn a_vpc_that_grows_is_learned_and_one_that_shrinks_is_told_whole() {
    let mut scene = scene().await;
    let client = &mut scene.client;
    let mut host = FakeHost::attach_as(&scene.controller.address, hello("h1")).await;
    take(&mut host).await;
    learn(&host, &["10.0.0.102"], &[]).await;
    take(&mut host).await;
    // Four is more than three; three is not less than nine tenths of it.
    delete(client, &["p101"]).await;
    is_told_nothing(&mut host).await;
    delete(client, &["p102"]).await;
    while is_learned(&host) {
        take(&mut host).await;
    }
    assert_eq!(host.state.of_kind(Kind::LearnedAddress).count(), 0);
    assert_eq!(host.state.of_kind(Kind::Port).count(), 2);
    assert_eq!(members(&host, "web"), ["10.0.0.11", "10.0.0.12"]);
    assert_eq!(status(client, "h1").await.learned, 0);
    put(client, vec![port(101, "h2")]).await;
    take(&mut host).await;
    assert!(!is_learned(&host), "three are not enough");
    put(client, vec![port(102, "h3")]).await;
    while !is_learned(&host) {
        take(&mut host).await;
    }
    assert_eq!(host.state.of_kind(Kind::Port).count(), 1);
    learn(&host, &["10.0.0.101"], &[]).await;
    take(&mut host).await;
    assert_eq!(answer(&host, "10.0.0.101"), on("h2"));
    scene.controller.stop().await;
}

#[tokio::test]
async fn a_host_that_cannot_learn_is_told_all() {
    let mut scene = scene().await;
    let mut host = FakeHost::attach(&scene.controller.address, "h1", 0, vec![]).await;
    take(&mut host).await;
    assert!(!is_learned(&host));
    assert_eq!(host.state.of_kind(Kind::Port).count(), 4);
    learn(&host, &["10.0.0.101"], &[]).await;
    put(&mut scene.client, vec![port(103, "h2")]).await;
    take(&mut host).await;
    assert_eq!(answer(&host, "10.0.0.103"), (false, Some("h2".into())));
    scene.controller.stop().await;
}

#[tokio::test]
async fn there_is_a_cap_on_what_a_host_asks_for() {
    let scene = scene().await;
    let mut host = FakeHost::attach_as(&scene.controller.address, hello("h1")).await;
    take(&mut host).await;
    let addresses: Vec<String> = (0..70_000u32)
        .map(|n| std::net::Ipv4Addr::from(0x0a09_0000 + n).to_string())
        .collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    learn(&host, &addresses, &[]).await;
    host.take_and_acknowledge().await;
    assert_eq!(host.state.of_kind(Kind::LearnedAddress).count(), 65_536);
    assert_eq!(status(&scene.client, "h1").await.learned, 65_536);
    learn(&host, &["10.0.0.101"], &["10.9.0.0"]).await;
    host.take_and_acknowledge().await;
    assert_eq!(answer(&host, "10.0.0.101"), on("h2"));
    scene.controller.stop().await;
}
