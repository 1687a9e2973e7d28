//! What changed when and by whom, and how it is undone.

#![allow(clippy::unwrap_used)]

mod support;

use support::certified::Certified;
use support::{Controller, key, topology, yaml};
use tonic::transport::Channel;
use tonic::{Code, Status};
use weft_process::services::intent_client::IntentClient;
use weft_proto::state::explode;
use weft_proto::v1::{
    ApplyRequest, ChangeRecord, DeleteRequest, GetRequest, HistoryReply, HistoryRequest,
    ListRequest, ObjectForm, ObjectRevision, UndoRequest,
};

type Client = IntentClient<Channel>;

fn apply(text: &str) -> ApplyRequest {
    ApplyRequest {
        objects: Some(yaml(text)),
        ..ApplyRequest::default()
    }
}

async fn applied(client: &mut Client, text: &str) -> u64 {
    let reply = client.apply(apply(text)).await.unwrap();
    reply.into_inner().revision
}

async fn deleted(client: &mut Client, kind: &str, id: &str) -> u64 {
    let request = DeleteRequest {
        objects: vec![key(kind, id)],
    };
    client.delete(request).await.unwrap().into_inner().revision
}

async fn history(client: &mut Client, request: HistoryRequest) -> HistoryReply {
    client.history(request).await.unwrap().into_inner()
}

async fn all(client: &mut Client) -> Vec<ChangeRecord> {
    let request = HistoryRequest {
        forms: true,
        ..HistoryRequest::default()
    };
    history(client, request).await.changes
}

async fn undo(client: &mut Client, revision: u64) -> Result<u64, Status> {
    let request = UndoRequest {
        revision,
        dry_run: false,
    };
    Ok(client.undo(request).await?.into_inner().revision)
}

fn revisions(changes: &[ChangeRecord]) -> Vec<u64> {
    changes.iter().map(|change| change.revision).collect()
}

fn keys(change: &ChangeRecord) -> Vec<String> {
    let keys = change.objects.iter().map(|it| it.object.clone().unwrap());
    keys.map(|key| format!("{} {}", key.kind, key.id)).collect()
}

fn addresses(form: &Option<ObjectForm>) -> Vec<String> {
    let object = form.clone().unwrap().object.unwrap();
    object.ports[0].addresses.clone()
}

const B1: &str = "ports: [{id: b1, vpc: blue, subnet: blue-a, mac: '02:00:00:00:00:01', security_groups: [web], \
     host: h1, device: {kind: netdev, name: b1}, addresses: [ADDRESS]}]";

fn b1(address: &str) -> String {
    B1.replace("ADDRESS", address)
}

#[tokio::test]
async fn changes_are_told_with_their_time_caller_and_objects_before_and_after() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    assert_eq!(
        history(&mut client, HistoryRequest::default()).await,
        HistoryReply::default()
    );
    client
        .apply(ApplyRequest {
            objects: Some(topology()),
            ..ApplyRequest::default()
        })
        .await
        .unwrap();
    applied(&mut client, &b1("10.0.0.21")).await;
    deleted(&mut client, "port", "r2").await;
    controller.stop().await;
    // It is there after a restart.
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let changes = all(&mut client).await;
    assert_eq!(revisions(&changes), [3, 2, 1]);
    let methods: Vec<&str> = changes.iter().map(|it| &*it.method).collect();
    assert_eq!(methods, ["delete", "apply", "apply"]);
    assert!(changes.iter().all(|it| it.caller.starts_with("127.0.0.1:")));
    assert!(changes.is_sorted_by(|a, b| a.time_ms >= b.time_ms));
    assert!(changes[2].time_ms > 1_700_000_000_000);
    assert_eq!((changes[2].count, changes[2].objects.len()), (10, 10));
    assert!(changes[2].objects.iter().all(|it| it.before.is_none()));
    let [moved] = &changes[1].objects[..] else {
        panic!("{changes:?}")
    };
    assert_eq!(addresses(&moved.before), ["10.0.0.11"]);
    assert_eq!(addresses(&moved.after), ["10.0.0.21"]);
    assert_eq!(keys(&changes[0]), ["port r2"]);
    assert!(changes[0].objects[0].after.is_none());

    let ask =
        async |client: &mut Client, request| revisions(&history(client, request).await.changes);
    let of_b1 = HistoryRequest {
        object: Some(key("port", "b1")),
        ..HistoryRequest::default()
    };
    assert_eq!(ask(&mut client, of_b1).await, [2, 1]);
    let of_red = HistoryRequest {
        vpc: "red".into(),
        ..HistoryRequest::default()
    };
    assert_eq!(ask(&mut client, of_red).await, [3, 1]);
    let newer = HistoryRequest {
        after: 1,
        before: 3,
        ..HistoryRequest::default()
    };
    assert_eq!(ask(&mut client, newer).await, [2]);
    let mut request = HistoryRequest {
        limit: 1,
        ..HistoryRequest::default()
    };
    let mut seen = Vec::new();
    loop {
        let reply = history(&mut client, request.clone()).await;
        assert_eq!(reply.oldest, 1);
        seen.extend(revisions(&reply.changes));
        request.before = reply.next_before;
        if request.before == 0 {
            break;
        }
    }
    assert_eq!(seen, [3, 2, 1]);
    let unknown = HistoryRequest {
        object: Some(key("prot", "b1")),
        ..HistoryRequest::default()
    };
    let refused = client.history(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    controller.stop().await;
}

#[tokio::test]
async fn an_undo_is_a_change_that_restores_and_conflicts_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let objects = Some(topology());
    let request = ApplyRequest {
        objects,
        ..ApplyRequest::default()
    };
    client.apply(request).await.unwrap();
    let port = async |client: &mut Client| {
        let request = GetRequest {
            object: Some(key("port", "b1")),
        };
        let reply = client.get(request).await?.into_inner();
        Ok::<_, Status>(reply.objects.unwrap().ports.remove(0))
    };
    let first = port(&mut client).await.unwrap();
    let readdressed = applied(&mut client, &b1("10.0.0.21")).await;
    let request = UndoRequest {
        revision: readdressed,
        dry_run: true,
    };
    let would = client.undo(request).await.unwrap().into_inner();
    assert_eq!((would.revision, would.updated), (readdressed, 1));
    let undone = undo(&mut client, readdressed).await.unwrap();
    assert_eq!(undone, readdressed + 1);
    assert_eq!(port(&mut client).await.unwrap(), first);
    // An undo is undone like any other.
    let redone = undo(&mut client, undone).await.unwrap();
    assert_eq!(port(&mut client).await.unwrap().addresses, ["10.0.0.21"]);
    assert_eq!(all(&mut client).await[0].method, format!("undo {undone}"));
    // Once an object has changed since, nothing of the change is undone.
    let refused = undo(&mut client, undone).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(
        refused.message(),
        format!("conflict:\nport b1 has changed since revision {undone}")
    );
    // What others refer to does not go: an undo is checked as any change.
    let refused = undo(&mut client, 1).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    deleted(&mut client, "port", "b1").await;
    let gone = deleted(&mut client, "port", "b2").await;
    let more = applied(
        &mut client,
        "security_groups: [{id: app, vpc: blue, rules: [{direction: ingress, remote_group: web}]}]",
    )
    .await;
    let web = deleted(&mut client, "port", "r2").await;
    undo(&mut client, web).await.unwrap();
    undo(&mut client, gone).await.unwrap();
    let refused = undo(&mut client, redone).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    undo(&mut client, more).await.unwrap();
    let missing = undo(&mut client, 1000).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert!(missing.message().contains("the oldest that is kept is 1"));
    controller.stop().await;
}

#[tokio::test]
async fn writing_upon_an_object_that_has_changed_is_refused_and_upon_others_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let request = ApplyRequest {
        objects: Some(topology()),
        ..ApplyRequest::default()
    };
    client.apply(request).await.unwrap();
    let at = |id: &str, revision| ObjectRevision {
        object: Some(key("port", id)),
        revision,
    };
    let upon = |text: &str, conditions: Vec<ObjectRevision>| ApplyRequest {
        if_object_revisions: conditions,
        ..apply(text)
    };
    // Another object's changes do not matter.
    applied(&mut client, "vpcs: [{id: other, vni: 77}]").await;
    let done = upon(&b1("10.0.0.21"), vec![at("b1", 1), at("new", 0)]);
    assert_eq!(
        client
            .apply(done.clone())
            .await
            .unwrap()
            .into_inner()
            .revision,
        3
    );
    let refused = client.apply(done).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    assert_eq!(
        refused.message(),
        "conflict:\nport b1 has changed; read it again and retry"
    );
    let exists = upon(&b1("10.0.0.21"), vec![at("b2", 0)]);
    let refused = client.apply(exists).await.unwrap_err();
    assert!(refused.message().contains("port b2"), "{refused}");
    // Both ways of reading tell the revision, also after a restart.
    controller.stop().await;
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let request = GetRequest {
        object: Some(key("port", "b1")),
    };
    let reply = client.get(request).await.unwrap().into_inner();
    assert_eq!(reply.object_revisions, [3]);
    let mut stream = client
        .list(ListRequest::default())
        .await
        .unwrap()
        .into_inner();
    let reply = stream.message().await.unwrap().unwrap();
    let ids = explode(reply.objects.unwrap()).map(|object| object.id().to_owned());
    let found: Vec<(String, u64)> = ids.zip(reply.object_revisions).collect();
    assert_eq!(found.len(), 11);
    for (id, revision) in found {
        let expected = match &*id {
            "b1" => 3,
            "other" => 2,
            _ => 1,
        };
        assert_eq!(revision, expected, "{id}");
    }
    controller.stop().await;
}

/// Made by the operator: blue is ann's, green is ben's.
const BASE: &str = r#"
vpcs: [{id: blue, vni: 7, tenant: ann}, {id: green, vni: 8, tenant: ben}]
subnets:
  - {id: blue-a, vpc: blue, cidrs: [10.0.1.0/24]}
  - {id: green-a, vpc: green, cidrs: [10.0.2.0/24]}
external_networks: [{id: inet, prefixes: [203.0.113.0/24], gateways: [203.0.113.1], physical_network: wan}]
"#;

#[tokio::test]
async fn a_tenant_is_told_and_undoes_what_is_its_own() {
    let certified = Certified::start().await;
    let mut operator = certified.client("operator", "weft://role/admin").await;
    let mut ann = certified.client("ann", "weft://tenant/ann/operate").await;
    let mut reader = certified.client("reader", "weft://tenant/ann/read").await;
    let mut ben = certified.client("ben", "weft://tenant/ben/operate").await;
    let base = applied(&mut operator, BASE).await;
    let own = applied(&mut ann, "security_groups: [{id: ann/web, vpc: blue}]").await;
    let green = applied(&mut ben, "security_groups: [{id: ben/web, vpc: green}]").await;

    for client in [&mut ann, &mut reader] {
        let changes = all(client).await;
        assert_eq!(revisions(&changes), [own, base]);
        assert!(changes[0].caller.contains("ann"), "{changes:?}");
        assert_eq!(changes[1].caller, "the operator");
        assert_eq!(
            keys(&changes[1]),
            ["vpc blue", "external_network inet", "subnet blue-a"]
        );
        assert_eq!(changes[1].count, 3);
        let told = format!("{changes:?}");
        for secret in ["green", "ben", "wan", "CN=operator"] {
            assert!(!told.contains(secret), "{secret}: {told}");
        }
    }
    assert_eq!(revisions(&all(&mut operator).await), [green, own, base]);
    assert!(all(&mut operator).await[0].caller.contains("ben"));
    // Where an external network is, a tenant does not see, nor when that changes.
    let hidden = BASE.replace("wan", "other");
    applied(&mut operator, &hidden).await;
    assert_eq!(revisions(&all(&mut ann).await), [own, base]);

    let other = undo(&mut ann, green).await.unwrap_err();
    assert_eq!(other.code(), Code::NotFound);
    assert_eq!(
        other.message(),
        format!("revision {green} changed nothing that is yours to change")
    );
    let read = undo(&mut reader, own).await.unwrap_err();
    assert_eq!(read.code(), Code::PermissionDenied);
    undo(&mut ann, own).await.unwrap();
    let gone = deleted(&mut ann, "subnet", "blue-a").await;
    deleted(&mut ann, "vpc", "blue").await;
    let reason = undo(&mut ann, gone).await.unwrap_err();
    assert_eq!(reason.code(), Code::InvalidArgument, "{reason}");

    // Another's VPC of the same id does not show what was in it before.
    applied(&mut operator, "vpcs: [{id: blue, vni: 20, tenant: ben}]").await;
    let bens = all(&mut ben).await;
    assert!(!format!("{bens:?}").contains("ann"), "{bens:?}");
    let of_blue = HistoryRequest {
        vpc: "blue".into(),
        ..HistoryRequest::default()
    };
    let bens = history(&mut ben, of_blue.clone()).await.changes;
    assert_eq!(bens.len(), 1, "{bens:?}");
    assert_eq!(history(&mut ann, of_blue).await.changes.len(), 5);
    certified.controller.stop().await;
}
