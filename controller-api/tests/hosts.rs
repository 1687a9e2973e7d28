//! The host protocol as a host sees it (behaviour 34, the controller's side).

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::{Controller, FakeHost, topology, until, within};
use tonic::Code;
use tonic::transport::Channel;
use weft_process::services::intent_client::IntentClient;
use weft_proto::v1::{
    AddressPair, ApplyRequest, DeleteRequest, Device, Hello, HostStatus, ListHostStatusRequest,
    Objects, Port, Subnet, to_host,
};

async fn apply(client: &mut IntentClient<Channel>, objects: Objects) -> u64 {
    let request = ApplyRequest {
        objects: Some(objects),
        ..ApplyRequest::default()
    };
    client.apply(request).await.unwrap().into_inner().revision
}

/// Blue's group with another rule: it concerns both hosts, and changes again with each `port`.
fn group(port: u32) -> Objects {
    let mut objects = Objects {
        security_groups: topology().security_groups,
        ..Objects::default()
    };
    let rule = &mut objects.security_groups[0].rules[0];
    rule.protocol = "tcp".into();
    rule.port_min = Some(port);
    rule.port_max = Some(port);
    objects
}

/// Red's port with another address: it concerns h2 alone.
fn red(address: &str) -> Objects {
    let mut port = topology().ports.swap_remove(2);
    port.addresses = vec![address.into()];
    Objects {
        ports: vec![port],
        ..Objects::default()
    }
}

async fn status(client: &IntentClient<Channel>, host: &str) -> HostStatus {
    let mut client = client.clone();
    let reply = client.list_host_status(ListHostStatusRequest {}).await;
    let hosts = reply.unwrap().into_inner().hosts;
    hosts
        .into_iter()
        .find(|h| h.host == host)
        .unwrap_or_default()
}

/// Waits until a host has acknowledged a revision.
async fn acknowledged(client: &IntentClient<Channel>, host: &str, revision: u64) -> HostStatus {
    until(
        || status(client, host),
        |status| status.acknowledged_revision == revision,
    )
    .await
}

struct Scene {
    controller: Controller,
    client: IntentClient<Channel>,
    _directory: tempfile::TempDir,
}

/// A controller whose intent is the topology, at revision 1.
async fn scene() -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    assert_eq!(apply(&mut client, topology()).await, 1);
    Scene {
        controller,
        client,
        _directory: directory,
    }
}

#[tokio::test]
async fn a_host_gets_its_full_state_and_then_deltas() {
    let mut scene = scene().await;
    let mut host = FakeHost::attach(&scene.controller.address, "h1", 0, vec![]).await;
    let first = host.take_and_acknowledge().await;
    assert!(
        matches!(first, to_host::Message::Full(ref full) if full.revision == 1),
        "{first:?}"
    );
    assert!(host.state.iter().all(|object| object.vpc() != Some("red")));
    let seen = acknowledged(&scene.client, "h1", 1).await;
    assert!(seen.attached);
    assert_eq!(seen.effect_microseconds, 77);

    apply(&mut scene.client, group(80)).await;
    let second = host.take_and_acknowledge().await;
    let to_host::Message::Delta(delta) = second else {
        panic!("{second:?}")
    };
    assert_eq!((delta.from_revision, delta.revision), (1, 2));
    let upserts = delta.upserts.unwrap();
    assert_eq!(upserts.security_groups.len(), 1);
    assert_eq!(upserts.ports.len(), 0, "only what changed");
    acknowledged(&scene.client, "h1", 2).await;
    scene.controller.stop().await;
}

#[tokio::test]
async fn a_large_state_is_told_in_parts_to_a_host_that_takes_them() {
    let mut scene = scene().await;
    let hello = |capability: &str| Hello {
        host: "h1".into(),
        capabilities: vec![capability.into()],
        ..Hello::default()
    };
    let address = scene.controller.address.clone();
    let mut host = FakeHost::attach_as(&address, hello(weft_proto::STATE_PARTS)).await;
    host.take_and_acknowledge().await;
    assert_eq!(host.parts, 0);
    // Very many of what other hosts' ports may send for: 5 MiB.
    let pairs = (0..64).map(|number| AddressPair {
        cidr: format!("2001:db8:1111:2222:3333:4444:{number:04x}:0/128"),
        mac: format!("02:00:00:00:01:{number:02x}"),
    });
    let pairs: Vec<AddressPair> = pairs.collect();
    let ports = (0..1300).map(|number| Port {
        id: format!("many-{number}"),
        vpc: "blue".into(),
        subnet: "blue-b".into(),
        mac: format!("02:00:00:01:{:02x}:{:02x}", number / 256, number % 256),
        addresses: vec![format!("10.1.{}.{}", number / 256, number % 256)],
        allowed_pairs: pairs.clone(),
        host: "h2".into(),
        device: Some(Device {
            kind: "netdev".into(),
            name: format!("m{number}"),
            ..Device::default()
        }),
        ..Port::default()
    });
    let mut objects = Objects::default();
    objects.subnets.push(Subnet {
        id: "blue-b".into(),
        vpc: "blue".into(),
        cidrs: vec!["10.1.0.0/16".into()],
        gateways: vec!["10.1.255.254".into()],
        ..Subnet::default()
    });
    // Neither of the network's own addresses.
    objects.ports = ports.skip(1).collect();
    apply(&mut scene.client, objects).await;
    let delta = host.take_and_acknowledge().await;
    assert!(matches!(delta, to_host::Message::Delta(_)));
    assert_eq!(host.parts, 2, "and the rest is in the last");
    let known = host.state.digest();
    drop(host);
    // All of it anew, and in one message to a host of an earlier release.
    for (capability, parts) in [(weft_proto::STATE_PARTS, 2), ("vxlan", 0)] {
        let mut host = FakeHost::attach_as(&address, hello(capability)).await;
        let full = host.take_and_acknowledge().await;
        assert!(matches!(full, to_host::Message::Full(_)));
        assert_eq!((host.parts, host.state.digest()), (parts, known));
    }
    scene.controller.stop().await;
}

#[tokio::test]
async fn a_host_hears_nothing_of_what_does_not_concern_it() {
    let mut scene = scene().await;
    let mut h1 = FakeHost::attach(&scene.controller.address, "h1", 0, vec![]).await;
    let mut h2 = FakeHost::attach(&scene.controller.address, "h2", 0, vec![]).await;
    h1.take_and_acknowledge().await;
    h2.take_and_acknowledge().await;
    apply(&mut scene.client, red("10.0.0.99")).await;
    h2.take_and_acknowledge().await;
    // It counts as current though, and its next delta starts from what it has.
    assert_eq!(acknowledged(&scene.client, "h1", 2).await.sent_revision, 1);
    apply(&mut scene.client, group(80)).await;
    let next = h1.take_and_acknowledge().await;
    assert!(
        matches!(&next, to_host::Message::Delta(d) if (d.from_revision, d.revision) == (1, 3)),
        "{next:?}"
    );
    scene.controller.stop().await;
}

#[tokio::test]
async fn one_state_is_outstanding_and_the_next_takes_in_all_that_waited() {
    let mut scene = scene().await;
    let mut host = FakeHost::attach(&scene.controller.address, "h1", 0, vec![]).await;
    host.take().await;
    for port in 1..=5 {
        apply(&mut scene.client, group(port)).await;
    }
    let silence = tokio::time::timeout(Duration::from_millis(200), host.stream.message()).await;
    assert!(
        silence.is_err(),
        "sent before the first was acknowledged: {silence:?}"
    );
    host.acknowledge(host.session, 1).await;
    host.take_and_acknowledge().await;
    assert_eq!(host.revision, 6);
    acknowledged(&scene.client, "h1", 6).await;
    scene.controller.stop().await;
}

#[tokio::test]
async fn a_refusal_is_shown_and_does_not_block_a_later_good_state() {
    let mut scene = scene().await;
    let mut host = FakeHost::attach(&scene.controller.address, "h1", 0, vec![]).await;
    host.take_and_acknowledge().await;
    apply(&mut scene.client, group(1)).await;
    let refused = host.receive().await;
    assert!(
        matches!(&refused, to_host::Message::Delta(d) if d.revision == 2),
        "{refused:?}"
    );
    host.refuse(2).await;
    let seen = until(
        || status(&scene.client, "h1"),
        |status| !status.violations.is_empty(),
    )
    .await;
    assert_eq!(seen.violations[0].rule, "no such interface");
    assert_eq!(seen.acknowledged_revision, 1);

    // What does not concern the host does not make the refused state good, nor is it sent again.
    apply(&mut scene.client, red("10.0.0.99")).await;
    until(
        || status(&scene.client, "h1"),
        |status| status.refused_revision == 3,
    )
    .await;
    apply(&mut scene.client, group(2)).await;
    let next = host.take().await;
    let seen = status(&scene.client, "h1").await;
    assert_eq!(
        seen.refused_revision, 3,
        "nothing is said against the next one yet"
    );
    host.acknowledge(host.session, host.revision).await;
    assert!(
        matches!(&next, to_host::Message::Delta(d) if (d.from_revision, d.revision) == (1, 4)),
        "{next:?}"
    );
    let seen = acknowledged(&scene.client, "h1", 4).await;
    assert!(seen.violations.is_empty());
    assert_eq!(seen.refused_revision, 0);
    scene.controller.stop().await;
}

#[tokio::test]
async fn b034_a_host_that_comes_back_is_sent_the_difference_alone() {
    let mut scene = scene().await;
    let address = scene.controller.address.clone();
    let mut host = FakeHost::attach(&address, "h1", 0, vec![]).await;
    host.take_and_acknowledge().await;
    acknowledged(&scene.client, "h1", 1).await;
    let state = host.state.clone();
    drop(host);
    until(|| status(&scene.client, "h1"), |status| !status.attached).await;
    apply(&mut scene.client, group(1)).await;

    let mut host = FakeHost::attach(&address, "h1", 1, state.digest().to_vec()).await;
    host.state = state;
    let next = host.take_and_acknowledge().await;
    assert!(matches!(next, to_host::Message::Delta(_)), "{next:?}");

    // With the same in force there is nothing to send; with something else, all of it.
    acknowledged(&scene.client, "h1", 2).await;
    let digest = host.state.digest().to_vec();
    let mut same = FakeHost::attach(&address, "h1", 2, digest).await;
    assert!(
        tokio::time::timeout(Duration::from_millis(200), same.stream.message())
            .await
            .is_err()
    );
    let mut other = FakeHost::attach(&address, "h1", 2, vec![1; 32]).await;
    assert!(matches!(other.take().await, to_host::Message::Full(_)));
    scene.controller.stop().await;
}

#[tokio::test]
async fn after_the_controllers_restart_a_host_with_the_right_state_is_sent_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    apply(&mut client, topology()).await;
    let mut host = FakeHost::attach(&controller.address, "h1", 0, vec![]).await;
    host.take_and_acknowledge().await;
    acknowledged(&client, "h1", 1).await;
    apply(&mut client, red("10.0.0.99")).await;
    controller.stop().await;
    assert!(within(host.stream.message()).await.is_err());

    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let digest = host.state.digest().to_vec();
    let mut back = FakeHost::attach(&controller.address, "h1", 1, digest).await;
    back.state = host.state;
    // Current as of revision 2, which did not concern it; the next delta starts from what it said it has.
    acknowledged(&client, "h1", 2).await;
    apply(&mut client, group(1)).await;
    let next = back.take_and_acknowledge().await;
    assert!(
        matches!(&next, to_host::Message::Delta(d) if (d.from_revision, d.revision) == (1, 3)),
        "{next:?}"
    );
    controller.stop().await;
}

#[tokio::test]
async fn acknowledgements_of_another_session_are_ignored() {
    let mut scene = scene().await;
    let mut host = FakeHost::attach(&scene.controller.address, "h1", 0, vec![]).await;
    host.take().await;
    host.acknowledge(host.session.wrapping_add(1), 1).await;
    apply(&mut scene.client, group(1)).await;
    let silence = tokio::time::timeout(Duration::from_millis(200), host.stream.message()).await;
    assert!(silence.is_err(), "{silence:?}");
    assert_eq!(status(&scene.client, "h1").await.acknowledged_revision, 0);
    host.acknowledge(host.session, 1).await;
    host.take_and_acknowledge().await;
    acknowledged(&scene.client, "h1", 2).await;
    scene.controller.stop().await;
}

#[tokio::test]
async fn the_newest_session_of_a_host_wins() {
    let scene = scene().await;
    let mut old = FakeHost::attach(&scene.controller.address, "h1", 0, vec![]).await;
    old.take_and_acknowledge().await;
    let mut new = FakeHost::attach(&scene.controller.address, "h1", 0, vec![]).await;
    let ended = within(old.stream.message()).await.unwrap_err();
    assert_eq!(ended.code(), Code::Aborted);
    new.take_and_acknowledge().await;
    assert!(status(&scene.client, "h1").await.attached);
    scene.controller.stop().await;
}

#[tokio::test]
async fn a_host_waits_until_it_is_named_and_loses_everything_when_it_no_longer_is() {
    let mut scene = scene().await;
    let mut host = FakeHost::attach(&scene.controller.address, "h9", 0, vec![]).await;
    let named = support::yaml("hosts: [{id: h9, vteps: [192.0.2.9]}]");
    apply(&mut scene.client, named).await;
    host.take_and_acknowledge().await;
    assert_eq!(host.state.len(), 1);
    let request = DeleteRequest {
        objects: vec![support::key("host", "h9")],
    };
    scene.client.delete(request).await.unwrap();
    host.take_and_acknowledge().await;
    assert!(host.state.is_empty());
    scene.controller.stop().await;
}
