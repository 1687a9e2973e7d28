//! The controller and the daemon's agent together: a change at the controller takes effect at the host (invariant 4, behaviour 34).

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use support::{Controller, topology, until, within, yaml};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::Channel;
use weft_process::services::intent_client::IntentClient;
use weft_proto::state::State;
use weft_proto::v1::{ApplyRequest, HostStatus, ListHostStatusRequest, Objects, Violation};
use weftd::agent::{self, AgentConfig, AgentHandle, Apply, Connection, Source};

/// Remembers what it applied; refuses while it is told to.
#[derive(Default)]
struct Host {
    applied: Mutex<Vec<u64>>,
    refuses: AtomicBool,
}

impl Apply for Host {
    fn apply(&self, revision: u64, _: &State) -> Result<(), Vec<Violation>> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(vec![Violation {
                rule: "not now".into(),
                ..Violation::default()
            }]);
        }
        self.applied.lock().unwrap().push(revision);
        Ok(())
    }
}

async fn attach(id: &str, host: &Arc<Host>, address: &str, directory: &Path) -> AgentHandle {
    let config = AgentConfig {
        host: id.into(),
        capabilities: vec![],
        limits: weft_proto::v1::HostLimits::default(),
        source: Source::Controller {
            addresses: vec![address.to_owned()],
            tls: None,
            state_directory: directory.join(id),
        },
    };
    agent::start(config, host.clone()).await.unwrap()
}

async fn apply(client: &mut IntentClient<Channel>, objects: Objects) -> u64 {
    let request = ApplyRequest {
        objects: Some(objects),
        ..ApplyRequest::default()
    };
    client.apply(request).await.unwrap().into_inner().revision
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

async fn current(client: &IntentClient<Channel>, host: &str, revision: u64) -> HostStatus {
    until(
        || status(client, host),
        |status| status.acknowledged_revision == revision && status.attached,
    )
    .await
}

fn rule(port: u32) -> Objects {
    yaml(&format!(
        "security_groups: [{{id: web, vpc: blue, rules: [{{direction: ingress, protocol: tcp, port_min: {port}, port_max: {port}}}]}}]"
    ))
}

#[tokio::test]
async fn b034_hosts_converge_through_changes_restarts_and_refusals() {
    let directory = tempfile::tempdir().unwrap();
    let listen = format!("unix:{}", directory.path().join("socket").display());
    let (h1, h2) = (Arc::<Host>::default(), Arc::<Host>::default());
    // The hosts come first: they wait for the controller, and then for being named.
    let a1 = attach("h1", &h1, &listen, directory.path()).await;
    let a2 = attach("h2", &h2, &listen, directory.path()).await;
    let controller = Controller::start(directory.path(), &listen).await;
    let mut client = controller.intent().await;
    assert_eq!(apply(&mut client, topology()).await, 1);
    current(&client, "h1", 1).await;
    current(&client, "h2", 1).await;
    let seen = a1.status().in_force.unwrap().state;
    assert!(seen.iter().all(|object| object.vpc() != Some("red")));

    // A refusal at one host holds up neither the other nor the next good state.
    h1.refuses.store(true, Ordering::SeqCst);
    assert_eq!(apply(&mut client, rule(80)).await, 2);
    current(&client, "h2", 2).await;
    let refused = until(
        || status(&client, "h1"),
        |status| !status.violations.is_empty(),
    )
    .await;
    assert_eq!(refused.violations[0].rule, "not now");
    h1.refuses.store(false, Ordering::SeqCst);
    assert_eq!(apply(&mut client, rule(81)).await, 3);
    let fine = current(&client, "h1", 3).await;
    assert!(fine.violations.is_empty());

    // The controller goes and comes back: nothing is applied again, and the next change is a difference.
    controller.stop().await;
    let mut watch = a1.watch();
    within(watch.wait_for(|s| s.connection == Connection::Disconnected))
        .await
        .unwrap();
    assert_eq!(a1.status().revision(), 3, "headless");
    let controller = Controller::start(directory.path(), &listen).await;
    let mut client = controller.intent().await;
    current(&client, "h1", 3).await;
    current(&client, "h2", 3).await;
    assert_eq!(*h1.applied.lock().unwrap(), [1, 3]);

    // A host that restarts has its state before it is attached, and is sent what it missed.
    a2.stop().await;
    assert_eq!(apply(&mut client, rule(82)).await, 4);
    current(&client, "h1", 4).await;
    let a2 = attach("h2", &h2, &listen, directory.path()).await;
    assert!(a2.status().revision() >= 3);
    current(&client, "h2", 4).await;
    assert_eq!(*h2.applied.lock().unwrap(), [1, 2, 3, 3, 4]);
    for (agent, host) in [(&a1, "h1"), (&a2, "h2")] {
        let known = agent.status().in_force.unwrap();
        assert_eq!(known.revision, 4, "{host}");
    }
    a1.stop().await;
    a2.stop().await;
    controller.stop().await;
}

/// Carries bytes both ways until it is told to go silent, with the connections left open.
async fn silent_on_request(target: String) -> (String, tokio::sync::watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (silence, watched) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut watched = watched.clone();
            let target = target.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(target).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    _ = watched.wait_for(|silent| *silent) => {}
                }
                std::future::pending::<()>().await;
            });
        }
    });
    (address, silence)
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_noticed_at_both_ends() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    apply(&mut client, topology()).await;
    let target = controller.address.strip_prefix("http://").unwrap();
    let (address, silence) = silent_on_request(target.to_owned()).await;
    let host = Arc::<Host>::default();
    let agent = attach("h1", &host, &address, directory.path()).await;
    current(&client, "h1", 1).await;
    silence.send_replace(true);
    let mut watch = agent.watch();
    within(watch.wait_for(|s| s.connection == Connection::Disconnected))
        .await
        .unwrap();
    until(|| status(&client, "h1"), |status| !status.attached).await;
    agent.stop().await;
    controller.stop().await;
}
