//! Ports that move between hosts: which hosts learn of the move, and that it ends after the grace time.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use support::{DEADLINE, MOVE_GRACE, topology, yaml};
use weft_controller::caller::Caller;
use weft_controller::compile::compile;
use weft_controller::intent::Intent;
use weft_controller::moves;
use weft_controller::store::Embedded;
use weft_proto::state::{Kind, Object, State};
use weft_proto::v1::{ApplyRequest, Objects, Port};
use weft_proto::validate::{Scope, validate};

fn nobody() -> Caller {
    Caller::trusted("a test".to_owned())
}

fn apply(intent: &Intent, objects: Objects) {
    let request = ApplyRequest {
        objects: Some(objects),
        ..ApplyRequest::default()
    };
    intent.apply(&nobody(), request).unwrap();
}

/// b1 bound to a host; whoever writes this claims that it comes from where it never was.
fn b1_on(host: &str) -> Objects {
    yaml(&format!(
        "ports: [{{id: b1, vpc: blue, subnet: blue-a, mac: '02:00:00:00:00:01', addresses: [10.0.0.11], security_groups: [web], \
         host: {host}, device: {{kind: netdev, name: b1}}, moved_from: h7}}]"
    ))
}

fn state(intent: &Intent, host: &str) -> State {
    let state = compile(&intent.current(), host).unwrap();
    assert_eq!(validate(&state, Scope::Node { host }), vec![]);
    state
}

fn port(state: &State) -> Option<&Port> {
    match state.find(Kind::Port, "b1") {
        Some(Object::Port(port)) => Some(port),
        _ => None,
    }
}

fn places(state: &State) -> Option<(&str, &str, bool)> {
    let port = port(state)?;
    Some((&port.host, &port.moved_from, port.device.is_some()))
}

#[tokio::test]
async fn a_move_is_told_to_those_whom_it_concerns_until_its_time_is_over() {
    let directory = tempfile::tempdir().unwrap();
    let store = || Box::new(Embedded::open(&directory.path().join("intent.redb")).unwrap());
    let intent = Intent::load(store()).unwrap();
    apply(&intent, topology());
    apply(
        &intent,
        yaml(
            "hosts: [{id: h3, vteps: [192.0.2.3]}]\n\
             ports: [{id: b3, vpc: blue, subnet: blue-a, mac: '02:00:00:00:00:03', host: h3, device: {kind: netdev, name: b3}}]",
        ),
    );
    apply(&intent, b1_on("h1"));
    assert_eq!(places(&state(&intent, "h1")), Some(("h1", "", true)));

    apply(&intent, b1_on("h2"));
    let revision = intent.current().revision;
    apply(&intent, b1_on("h2"));
    assert_eq!(intent.current().revision, revision, "said twice, done once");
    let old = state(&intent, "h1");
    assert_eq!(places(&old), Some(("h2", "h1", false)));
    assert!(old.find(Kind::Host, "h2").is_some(), "it has to reach it");
    let new = state(&intent, "h2");
    assert_eq!(places(&new), Some(("h2", "h1", true)));
    assert!(new.find(Kind::Host, "h1").is_some(), "it has to know it");
    assert_eq!(places(&state(&intent, "h3")), Some(("h2", "", false)));

    // Another controller takes over; it gives the move its whole time again.
    drop(intent);
    let intent = Arc::new(Intent::load(store()).unwrap());
    let mut versions = intent.watch();
    assert_eq!(intent.current().moving().count(), 1);
    let ending = tokio::spawn(moves::end_in_time(Arc::clone(&intent), MOVE_GRACE));
    let over = versions.wait_for(|version| version.moving().count() == 0);
    drop(tokio::time::timeout(DEADLINE, over).await.unwrap().unwrap());
    assert_eq!(port(&state(&intent, "h1")), None, "blue is not there now");
    assert_eq!(places(&state(&intent, "h2")), Some(("h2", "", true)));

    // Back at once: the move that is over does not end the new one.
    apply(&intent, b1_on("h1"));
    assert_eq!(places(&state(&intent, "h1")), Some(("h1", "h2", true)));
    assert_eq!(places(&state(&intent, "h2")), Some(("h1", "h2", false)));
    ending.abort();
}

#[tokio::test]
async fn a_host_that_goes_takes_its_moves_along() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(&directory.path().join("intent.redb")).unwrap();
    let intent = Intent::load(Box::new(store)).unwrap();
    apply(&intent, topology());
    apply(&intent, b1_on("h2"));
    intent
        .delete(&nobody(), &[support::key("host", "h1")])
        .unwrap();
    assert_eq!(places(&state(&intent, "h2")), Some(("h2", "h1", true)));
}
