//! Whether packets pass ports, as their hosts say.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use support::certified::Certified;
use support::{Controller, FakeHost, TOPOLOGY, key, until, within, yaml};
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use weft_process::services::intent_client::IntentClient;
use weft_proto::v1::{
    ApplyRequest, DeleteRequest, Hello, Objects, PortCondition, PortConditions,
    PortConditionsRequest,
};

type Client = IntentClient<Channel>;

async fn apply(client: &mut Client, objects: Objects) -> u64 {
    let request = ApplyRequest {
        objects: Some(objects),
        ..ApplyRequest::default()
    };
    client.apply(request).await.unwrap().into_inner().revision
}

async fn conditions(client: &Client, request: PortConditionsRequest) -> Vec<PortCondition> {
    let mut client = client.clone();
    let stream = client.list_port_conditions(request).await.unwrap();
    let mut stream = stream.into_inner();
    let mut all = Vec::new();
    while let Some(part) = within(stream.message()).await.unwrap() {
        all.extend(part.ports);
    }
    all
}

/// Every port with its state.
async fn states(client: &Client) -> Vec<(String, String)> {
    let all = conditions(client, PortConditionsRequest::default()).await;
    all.into_iter().map(|it| (it.port, it.state)).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let expected = expected.iter();
    expected
        .map(|(port, state)| ((*port).to_owned(), (*state).to_owned()))
        .collect()
}

async fn becomes(client: &Client, expected: &[(&str, &str)]) {
    until(|| states(client), |seen| *seen == pairs(expected)).await;
}

/// A watch, and what it makes of the events.
struct Watch {
    stream: Streaming<PortConditions>,
    ports: BTreeMap<String, PortCondition>,
    revision: u64,
    /// How often all came anew.
    anew: usize,
}

impl Watch {
    async fn start(client: &mut Client, request: PortConditionsRequest) -> Self {
        let revision = request.from_revision;
        let stream = client.watch_port_conditions(request).await.unwrap();
        Self {
            stream: stream.into_inner(),
            ports: BTreeMap::new(),
            revision,
            anew: 0,
        }
    }

    async fn next(&mut self) {
        let event = within(self.stream.message()).await.unwrap().unwrap();
        if event.anew {
            self.ports.clear();
            self.anew += 1;
        }
        for id in event.deletes {
            self.ports.remove(&id);
        }
        let ports = event.ports.into_iter();
        self.ports.extend(ports.map(|it| (it.port.clone(), it)));
        if !event.more {
            self.revision = event.revision;
        }
    }

    async fn until(&mut self, expected: &[(&str, &str)]) {
        loop {
            let seen = self.ports.values();
            let seen: Vec<_> = seen.map(|it| (it.port.clone(), it.state.clone())).collect();
            if seen == pairs(expected) {
                return;
            }
            self.next().await;
        }
    }
}

struct Scene {
    controller: Controller,
    client: Client,
    directory: tempfile::TempDir,
}

async fn scene() -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    apply(&mut client, yaml(TOPOLOGY)).await;
    Scene {
        controller,
        client,
        directory,
    }
}

async fn attach(scene: &Scene, host: &str) -> FakeHost {
    FakeHost::attach(&scene.controller.address, host, 0, vec![]).await
}

#[tokio::test]
async fn a_port_is_as_its_own_host_says_and_nobody_else() {
    let mut scene = scene().await;
    let client = scene.client.clone();
    becomes(
        &client,
        &[("b1", "unknown"), ("b2", "unknown"), ("r2", "unknown")],
    )
    .await;
    let mut watch = Watch::start(&mut scene.client, PortConditionsRequest::default()).await;
    watch
        .until(&[("b1", "unknown"), ("b2", "unknown"), ("r2", "unknown")])
        .await;
    let h1 = attach(&scene, "h1").await;
    // It has a stale copy of b2, and speaks of one that is not there.
    h1.tell_ports(true, &[("b1", ""), ("b2", ""), ("nobody", "")])
        .await;
    becomes(
        &client,
        &[("b1", "up"), ("b2", "unknown"), ("r2", "unknown")],
    )
    .await;
    let h2 = attach(&scene, "h2").await;
    h2.tell_ports(true, &[("b2", "interface b2 is down"), ("r2", "")])
        .await;
    becomes(&client, &[("b1", "up"), ("b2", "down"), ("r2", "up")]).await;
    watch
        .until(&[("b1", "up"), ("b2", "down"), ("r2", "up")])
        .await;
    let b2 = &watch.ports["b2"];
    assert_eq!((&*b2.reason, b2.since_ms), ("interface b2 is down", 7));
    assert_eq!((&*b2.host, &*b2.vpc), ("h2", "blue"));
    h1.tell_ports(false, &[("b2", "")]).await;
    h1.tell_ports(false, &[("b1", "x\ny")]).await;
    watch
        .until(&[("b1", "down"), ("b2", "down"), ("r2", "up")])
        .await;
    assert_eq!(watch.ports["b1"].reason, "x y");
    // A port that moves is not as its old host said.
    let mut moved = yaml(TOPOLOGY);
    moved.ports[0].host = "h2".into();
    apply(&mut scene.client, moved).await;
    watch
        .until(&[("b1", "unknown"), ("b2", "down"), ("r2", "up")])
        .await;
    h1.tell_ports(false, &[("b1", "")]).await;
    h2.tell_ports(false, &[("b1", ""), ("b2", "")]).await;
    watch
        .until(&[("b1", "up"), ("b2", "up"), ("r2", "up")])
        .await;
    // Nor one that is on no host, nor one that is not there any more.
    let mut unbound = yaml(TOPOLOGY);
    unbound.ports[0].host.clear();
    unbound.ports[0].device = None;
    apply(&mut scene.client, unbound).await;
    let request = DeleteRequest {
        objects: vec![key("port", "b2")],
    };
    scene.client.delete(request).await.unwrap();
    watch.until(&[("b1", "unbound"), ("r2", "up")]).await;
    assert_eq!(watch.anew, 1);
    scene.controller.stop().await;
}

#[tokio::test]
async fn conditions_begin_anew_with_the_controller_and_are_told_again() {
    let scene = scene().await;
    let h1 = attach(&scene, "h1").await;
    h1.tell_ports(true, &[("b1", "")]).await;
    let expected = [("b1", "up"), ("b2", "unknown"), ("r2", "unknown")];
    becomes(&scene.client, &expected).await;
    let Scene {
        controller,
        directory,
        ..
    } = scene;
    controller.stop().await;
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let client = controller.intent().await;
    assert_eq!(states(&client).await[0].1, "unknown");
    let h1 = FakeHost::attach(&controller.address, "h1", 0, vec![]).await;
    h1.tell_ports(true, &[("b1", "")]).await;
    becomes(&client, &expected).await;
    controller.stop().await;
}

#[tokio::test]
async fn the_ports_of_a_host_that_is_gone_are_unknown_and_a_short_absence_is_none() {
    let mut scene = scene().await;
    let mut h1 = attach(&scene, "h1").await;
    h1.tell_ports(true, &[("b1", "")]).await;
    let up = [("b1", "up"), ("b2", "unknown"), ("r2", "unknown")];
    becomes(&scene.client, &up).await;
    let mut watch = Watch::start(&mut scene.client, PortConditionsRequest::default()).await;
    watch.until(&up).await;
    let before = watch.revision;
    drop(h1);
    h1 = attach(&scene, "h1").await;
    h1.tell_ports(true, &[("b1", "")]).await;
    let status = async || {
        let mut client = scene.client.clone();
        let reply = client.list_host_status(weft_proto::v1::ListHostStatusRequest {});
        reply.await.unwrap().into_inner().hosts.remove(0)
    };
    drop(h1);
    until(status, |host| !host.attached).await;
    watch
        .until(&[("b1", "unknown"), ("b2", "unknown"), ("r2", "unknown")])
        .await;
    assert_eq!(watch.revision, before + 1, "nothing else was told");
    let gone = &watch.ports["b1"];
    assert_eq!(gone.reason, "its host is not attached to this controller");
    assert_ne!(gone.since_ms, 0);
    scene.controller.stop().await;
}

#[tokio::test]
async fn a_watch_goes_on_from_a_revision_or_begins_anew() {
    let mut scene = scene().await;
    let h1 = attach(&scene, "h1").await;
    h1.tell_ports(true, &[("b1", "")]).await;
    let up = [("b1", "up"), ("b2", "unknown"), ("r2", "unknown")];
    becomes(&scene.client, &up).await;
    let mut first = Watch::start(&mut scene.client, PortConditionsRequest::default()).await;
    first.until(&up).await;
    h1.tell_ports(false, &[("b1", "off")]).await;
    first
        .until(&[("b1", "down"), ("b2", "unknown"), ("r2", "unknown")])
        .await;
    let from = |from_revision| PortConditionsRequest {
        from_revision,
        ..PortConditionsRequest::default()
    };
    let mut later = Watch::start(&mut scene.client, from(first.revision - 1)).await;
    later.until(&[("b1", "down")]).await;
    assert_eq!(later.anew, 0);
    for other in [1, first.revision + 1, u64::MAX] {
        let mut watch = Watch::start(&mut scene.client, from(other)).await;
        watch
            .until(&[("b1", "down"), ("b2", "unknown"), ("r2", "unknown")])
            .await;
        assert_eq!(watch.anew, 1, "{other}");
    }
    // Of a change of very many ports, too, every watch is told.
    let mut many = Objects::default();
    let port = yaml(TOPOLOGY).ports.remove(0);
    for n in 0..20_000_u32 {
        let mut port = port.clone();
        port.id = format!("many-{n}");
        port.mac = format!(
            "02:00:00:{:02x}:{:02x}:{:02x}",
            1 + (n >> 16),
            n >> 8 & 255,
            n & 255
        );
        port.addresses.clear();
        port.security_groups.clear();
        port.host.clear();
        port.device = None;
        many.ports.push(port);
    }
    let caller = weft_controller::caller::Caller::trusted("test".into());
    scene.controller.intent.create(&caller, many).unwrap();
    while first.ports.len() < 20_003 {
        first.next().await;
    }
    scene.controller.stop().await;
}

#[tokio::test]
async fn conditions_are_selected_as_ports_are() {
    let mut scene = scene().await;
    let labelled = |labels: &str| {
        let mut objects = yaml(TOPOLOGY);
        let labels: BTreeMap<String, String> = serde_yaml_ng::from_str(labels).unwrap();
        objects.ports[0].labels = labels;
        objects
    };
    apply(&mut scene.client, labelled("{app: web}")).await;
    let selecting = |labels: &str, fields: &str, vpc: &str, port: &str| PortConditionsRequest {
        label_selector: labels.into(),
        field_selector: fields.into(),
        vpc: vpc.into(),
        port: port.into(),
        ..PortConditionsRequest::default()
    };
    for (labels, fields, vpc, port, expected) in [
        ("app=web", "", "", "", &["b1"][..]),
        ("", "host=h2", "", "", &["b2", "r2"]),
        ("", "host=h2", "red", "", &["r2"]),
        ("", "", "blue", "", &["b1", "b2"]),
        ("", "", "", "r2", &["r2"]),
        ("app", "", "", "r2", &[]),
        ("", "", "", "nobody", &[]),
    ] {
        let request = selecting(labels, fields, vpc, port);
        let found = conditions(&scene.client, request).await;
        let found: Vec<&str> = found.iter().map(|it| it.port.as_str()).collect();
        assert_eq!(found, expected, "{labels} {fields} {vpc} {port}");
    }
    let request = selecting("app=web", "", "", "");
    let mut watch = Watch::start(&mut scene.client, request).await;
    watch.until(&[("b1", "unknown")]).await;
    apply(&mut scene.client, labelled("{}")).await;
    watch.until(&[]).await;
    apply(&mut scene.client, labelled("{app: web, x: y}")).await;
    watch.until(&[("b1", "unknown")]).await;
    let request = selecting("a in (", "", "", "");
    let refused = scene
        .client
        .list_port_conditions(request)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    scene.controller.stop().await;
}

#[tokio::test]
async fn a_tenant_is_told_of_its_own_ports_alone() {
    let certified = Certified::start().await;
    let mut operator = certified.client("operator", "weft://role/admin").await;
    let mut ann = certified.client("ann", "weft://tenant/ann/read").await;
    let mut objects = yaml(TOPOLOGY);
    objects.vpcs[0].tenant = "ann".into();
    objects.vpcs[1].tenant = "ben".into();
    apply(&mut operator, objects).await;
    let mut watch = Watch::start(&mut ann, PortConditionsRequest::default()).await;
    watch.until(&[("b1", "unknown"), ("b2", "unknown")]).await;
    let hello = Hello {
        host: "h2".into(),
        ..Hello::default()
    };
    let h2 = FakeHost::attach_over(certified.channel("h2", "weft://host/h2").await, hello).await;
    h2.tell_ports(true, &[("b2", "/dev/net/tun: no"), ("r2", "")])
        .await;
    watch.until(&[("b1", "unknown"), ("b2", "down")]).await;
    assert_eq!(watch.ports["b2"].reason, "its device is not up");
    let all = conditions(&operator, PortConditionsRequest::default()).await;
    assert_eq!(all[1].reason, "/dev/net/tun: no");
    // What is another's comes and goes without a word.
    for id in ["r2", "b2"] {
        let request = DeleteRequest {
            objects: vec![key("port", id)],
        };
        operator.delete(request).await.unwrap();
    }
    watch.next().await;
    watch.until(&[("b1", "unknown")]).await;
    let request = PortConditionsRequest {
        port: "r2".into(),
        ..PortConditionsRequest::default()
    };
    assert_eq!(conditions(&ann, request).await, vec![]);
    certified.controller.stop().await;
}
