//! Backup, restore, move and compaction of both stores by the program's commands.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::site::{Site, StoreKind};
use support::{list, topology};
use weft_proto::state::State;
use weft_proto::v1::{CreateRequest, Objects, Vpc};

on_both_stores!(
    a_backup_is_restored_into_an_empty_store_and_with_force_into_another,
    a_store_in_use_is_left_alone,
    all_moves_to_the_other_store,
);

fn configure(site: &Site) -> PathBuf {
    let file = site.path().join("controller.toml");
    let text = format!("listen = '127.0.0.1:1'\n{}", site.configuration());
    std::fs::write(&file, text).unwrap();
    file
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft-controller"))
        .args(arguments)
        .output()
        .unwrap()
}

fn succeed(arguments: &[&str]) -> String {
    let output = run(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn fail(arguments: &[&str], reason: &str) {
    let output = run(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    assert!(said.contains(reason), "{said}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Two changes, by a controller that runs for them alone.
async fn fill(site: &Site) {
    let controller = site.controller("127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let vpc = Vpc {
        id: "green".into(),
        vni: 9,
        ..Vpc::default()
    };
    let more = Objects {
        vpcs: vec![vpc],
        ..Objects::default()
    };
    for objects in [topology(), more] {
        let objects = Some(objects);
        client.create(CreateRequest { objects }).await.unwrap();
    }
    controller.stop().await;
}

/// What a controller with the store says.
async fn content(site: &Site) -> (u64, State) {
    let controller = site.controller("127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let reply = list(&mut client, "", "").await.remove(0);
    controller.stop().await;
    let state = State::from_objects(reply.objects.unwrap()).unwrap();
    (reply.revision, state)
}

async fn a_backup_is_restored_into_an_empty_store_and_with_force_into_another(kind: StoreKind) {
    let (site, other) = (Site::new(kind).await, Site::new(kind).await);
    fill(&site).await;
    let (from, to) = (configure(&site), configure(&other));
    let file = site.path().join("backup");
    let said = succeed(&["backup", "--config", text(&from), text(&file)]);
    assert!(said.contains("11 objects, revision 2"), "{said}");
    fail(&["backup", "--config", text(&from), text(&file)], "exists");
    succeed(&["compact", "--config", text(&from)]);
    let before = content(&site).await;
    succeed(&["restore", "--config", text(&to), text(&file)]);
    assert_eq!(content(&other).await, before);

    let restore = ["restore", "--config", text(&to), text(&file)];
    fail(&restore, "revision 2 with 11 objects: use --force");
    succeed(&[&restore[..], &["--force"]].concat());
    let (revision, state) = content(&other).await;
    assert_eq!(revision, 3, "no revision is used twice");
    assert_eq!(state, before.1);

    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    fail(&[&restore[..], &["--force"]].concat(), "damaged");
    assert_eq!(content(&other).await, (revision, state));
}

async fn a_store_in_use_is_left_alone(kind: StoreKind) {
    let (site, other) = (Site::new(kind).await, Site::new(kind).await);
    fill(&site).await;
    fill(&other).await;
    let config = configure(&site);
    let file = site.path().join("backup");
    let of_other = configure(&other);
    succeed(&["backup", "--config", text(&of_other), text(&file)]);
    let controller = site.controller("127.0.0.1:0").await;
    let restore = ["restore", "--force", "--config", text(&config), text(&file)];
    let reason = match kind {
        StoreKind::Embedded => "already open",
        StoreKind::Etcd => "stop all controllers first",
    };
    fail(&restore, reason);
    fail(
        &["move", "--from", text(&config), "--to", text(&of_other)],
        reason,
    );
    if matches!(kind, StoreKind::Etcd) {
        // What is read as of one revision needs no stop.
        let file = site.path().join("second");
        succeed(&["backup", "--config", text(&config), text(&file)]);
        succeed(&["compact", "--config", text(&config)]);
    }
    let mut client = controller.intent().await;
    assert_eq!(list(&mut client, "", "").await[0].revision, 2);
    controller.stop().await;
}

async fn all_moves_to_the_other_store(kind: StoreKind) {
    let other = match kind {
        StoreKind::Embedded => StoreKind::Etcd,
        StoreKind::Etcd => StoreKind::Embedded,
    };
    let (site, other) = (Site::new(kind).await, Site::new(other).await);
    fill(&site).await;
    let (from, to) = (configure(&site), configure(&other));
    succeed(&["move", "--from", text(&from), "--to", text(&to)]);
    assert_eq!(content(&other).await, content(&site).await);
    let again = ["move", "--from", text(&from), "--to", text(&to)];
    fail(&again, "revision 2 with 11 objects");
}
