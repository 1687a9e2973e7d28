//! Labels of objects, and what is selected by them and by fields.

#![allow(clippy::unwrap_used)]

mod support;

use support::certified::Certified;
use support::{Controller, FakeHost, key, until, within, yaml};
use tonic::transport::Channel;
use tonic::{Code, Status};
use weft_process::services::intent_client::IntentClient;
use weft_proto::state::{Kind, explode};
use weft_proto::v1::{
    ApplyRequest, HistoryRequest, ListHostStatusRequest, ListReply, ListRequest, Objects,
    UndoRequest, WatchEvent, WatchRequest,
};

type Client = IntentClient<Channel>;

const BASE: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1], labels: {rack: r7}}, {id: h2, vteps: [192.0.2.2]}]
vpcs: [{id: blue, vni: 7, tenant: ann, labels: {team: web}}, {id: green, vni: 8, tenant: ben}]
subnets: [{id: blue-a, vpc: blue, cidrs: [10.0.1.0/24]}]
ports:
  - {id: p1, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:01", addresses: [10.0.1.11], host: h1,
     device: {kind: netdev, name: p1}, labels: {app: web, example.com/tier: ""}}
  - {id: p2, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:02", addresses: [10.0.1.12], host: h2,
     device: {kind: netdev, name: p2}, labels: {app: db}}
  - {id: p3, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:03", addresses: [10.0.1.13]}
"#;

/// Port p1 with other labels.
fn p1(labels: &str) -> Objects {
    yaml(&format!(
        r#"
ports:
  - {{id: p1, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:01", addresses: [10.0.1.11], host: h1,
     device: {{kind: netdev, name: p1}}, labels: {{{labels}}}}}
"#
    ))
}

async fn apply(client: &mut Client, objects: Objects) -> Result<u64, Status> {
    let request = ApplyRequest {
        objects: Some(objects),
        ..ApplyRequest::default()
    };
    Ok(client.apply(request).await?.into_inner().revision)
}

fn selecting(kind: &str, labels: &str, fields: &str) -> ListRequest {
    ListRequest {
        kind: kind.into(),
        label_selector: labels.into(),
        field_selector: fields.into(),
        ..ListRequest::default()
    }
}

async fn page(client: &mut Client, request: ListRequest) -> Result<(Vec<String>, String), Status> {
    let mut stream = client.list(request).await?.into_inner();
    let (mut ids, mut last) = (Vec::new(), ListReply::default());
    while let Some(reply) = within(stream.message()).await? {
        let objects = explode(reply.objects.clone().unwrap_or_default());
        ids.extend(objects.map(|object| object.key().to_string()));
        last = reply;
    }
    Ok((ids, last.next_page_token))
}

async fn listed(client: &mut Client, kind: &str, labels: &str, fields: &str) -> Vec<String> {
    let request = selecting(kind, labels, fields);
    page(client, request).await.unwrap().0
}

#[tokio::test]
async fn lists_are_of_what_labels_and_fields_select() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    apply(&mut client, yaml(BASE)).await.unwrap();
    for (kind, labels, fields, expected) in [
        ("port", "app=web", "", &["port p1"][..]),
        ("port", "app in (web, db)", "host=h2", &["port p2"]),
        ("port", "!app", "", &["port p3"]),
        ("port", "", "host=", &["port p3"]),
        ("port", "app!=db", "vpc=blue,name!=p3", &["port p1"]),
        ("", "example.com/tier", "", &["port p1"]),
        ("", "rack", "", &["host h1"]),
        ("vpc", "", "tenant=ben", &["vpc green"]),
        ("", "", "name=blue", &["vpc blue"]),
        ("port", "app=none", "", &[]),
    ] {
        let found = listed(&mut client, kind, labels, fields).await;
        assert_eq!(found, expected, "{kind} {labels} {fields}");
    }
    for (labels, fields, told) in [
        ("app in (web", "", "label_selector: has a parenthesis"),
        (
            "",
            "requester=x",
            "field_selector: 'requester' is not one of",
        ),
    ] {
        let refused = page(&mut client, selecting("port", labels, fields)).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(told), "{refused:?}");
    }
    controller.stop().await;
}

#[tokio::test]
async fn pages_pass_over_a_bounded_number_of_objects_that_are_not_selected() {
    const MANY: u32 = 45_000;
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let mut vpcs = Objects::default();
    for n in 0..MANY {
        let mut vpc = yaml("vpcs: [{}]").vpcs.remove(0);
        vpc.id = format!("v{n:05}");
        vpc.vni = n + 1;
        if n % 15_000 == 7 {
            vpc.labels.insert("rare".into(), String::new());
        }
        vpcs.vpcs.push(vpc);
    }
    // More than a message may have at once is no matter here: the intent takes it directly.
    let caller = weft_controller::caller::Caller::trusted("test".into());
    controller.intent.create(&caller, vpcs).unwrap();
    let (mut found, mut sizes) = (Vec::new(), Vec::new());
    let mut request = selecting("vpc", "rare", "");
    request.page_size = 2;
    loop {
        let (ids, next) = page(&mut client, request.clone()).await.unwrap();
        sizes.push(ids.len());
        found.extend(ids);
        if next.is_empty() {
            break;
        }
        let mut other = selecting("vpc", "", "");
        other.page_token = next.clone();
        let refused = page(&mut client, other).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "of another list");
        request.page_token = next;
    }
    assert_eq!(found, ["vpc v00007", "vpc v15007", "vpc v30007"]);
    assert!(sizes.len() >= 3, "{sizes:?}");
    let whole = listed(&mut client, "vpc", "rare", "").await;
    assert_eq!(found, whole);
    controller.stop().await;
}

async fn watch(client: &mut Client, labels: &str, from: u64) -> tonic::Streaming<WatchEvent> {
    let request = WatchRequest {
        kind: "port".into(),
        from_revision: from,
        label_selector: labels.into(),
        field_selector: "vpc=blue".into(),
        ..WatchRequest::default()
    };
    client.watch(request).await.unwrap().into_inner()
}

async fn event(stream: &mut tonic::Streaming<WatchEvent>) -> (Vec<String>, Vec<String>) {
    let event = within(stream.message()).await.unwrap().unwrap();
    let put = explode(event.upserts.unwrap_or_default());
    let put = put.map(|object| object.id().to_owned()).collect();
    (put, event.deletes.into_iter().map(|key| key.id).collect())
}

#[tokio::test]
async fn a_watch_tells_an_object_that_no_longer_matches_as_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let start = apply(&mut client, yaml(BASE)).await.unwrap();
    let mut web = watch(&mut client, "app=web", 0).await;
    let mut later = watch(&mut client, "app=web", start).await;
    let put = |id: &str| (vec![id.to_owned()], Vec::new());
    let gone = |id: &str| (Vec::new(), vec![id.to_owned()]);
    assert_eq!(event(&mut web).await, put("p1"));
    apply(&mut client, p1("app: cache")).await.unwrap();
    // Of which neither is told.
    apply(&mut client, p1("app: cache, v: \"2\""))
        .await
        .unwrap();
    apply(&mut client, p1("app: web, v: \"2\"")).await.unwrap();
    apply(&mut client, p1("app: web, v: \"3\"")).await.unwrap();
    for stream in [&mut web, &mut later] {
        assert_eq!(event(stream).await, gone("p1"));
        assert_eq!(event(stream).await, put("p1"));
        assert_eq!(event(stream).await, put("p1"));
    }
    controller.stop().await;
}

#[tokio::test]
async fn hosts_are_not_told_of_labels_nor_woken_by_them() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    apply(&mut client, yaml(BASE)).await.unwrap();
    let mut host = FakeHost::attach(&controller.address, "h1", 0, vec![]).await;
    host.take_and_acknowledge().await;
    assert!(host.state.find(Kind::Port, "p1").is_some());
    assert!(host.state.iter().all(|object| object.labels().is_empty()));
    let digest = host.state.digest();
    apply(&mut client, p1("app: other")).await.unwrap();
    let mut base = yaml(BASE);
    base.hosts[0].labels.clear();
    base.hosts[1].labels.insert("rack".into(), "r9".into());
    base.subnets[0].labels.insert("zone".into(), "a".into());
    base.ports[0].labels.clear();
    let labelled = apply(&mut client, base.clone()).await.unwrap();
    // It is in sync with it all the same.
    let status = async || {
        let mut client = client.clone();
        let reply = client.list_host_status(ListHostStatusRequest {}).await;
        reply.unwrap().into_inner().hosts.remove(0)
    };
    let status = until(status, |host| host.acknowledged_revision >= labelled).await;
    assert_eq!(status.sent_revision, 1);
    // The next thing that it hears is what changes otherwise.
    base.ports[0].addresses = vec!["10.0.1.21".into()];
    let changed = apply(&mut client, base).await.unwrap();
    host.take_and_acknowledge().await;
    assert_eq!(host.revision, changed);
    assert_ne!(host.state.digest(), digest);
    assert!(host.state.iter().all(|object| object.labels().is_empty()));
    controller.stop().await;
}

#[tokio::test]
async fn labels_are_kept_told_in_the_history_and_undone() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    apply(&mut client, yaml(BASE)).await.unwrap();
    let labelled = apply(&mut client, p1("app: other")).await.unwrap();
    controller.stop().await;
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    assert_eq!(
        listed(&mut client, "port", "app=other", "").await,
        ["port p1"]
    );
    let request = HistoryRequest {
        object: Some(key("port", "p1")),
        forms: true,
        ..HistoryRequest::default()
    };
    let history = client.history(request).await.unwrap().into_inner();
    let change = history.changes[0].objects[0].clone();
    let [before, after] = [change.before, change.after].map(|form| {
        let ports = form.unwrap().object.unwrap().ports;
        ports[0].labels["app"].clone()
    });
    assert_eq!([&*before, &*after], ["web", "other"]);
    let undo = UndoRequest {
        revision: labelled,
        dry_run: false,
    };
    client.undo(undo).await.unwrap();
    assert_eq!(
        listed(&mut client, "port", "app=web", "").await,
        ["port p1"]
    );
    controller.stop().await;
}

#[tokio::test]
async fn what_is_no_label_is_refused_by_object_field_and_rule() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    apply(&mut client, yaml(BASE)).await.unwrap();
    let many: Vec<String> = (0..65).map(|n| format!("k{n}: v")).collect();
    for (labels, told) in [
        (
            "a b: x",
            "port p1: labels[a b]: the name of a key is 1 to 63 characters",
        ),
        (
            "Ex.com/a: x",
            "port p1: labels[Ex.com/a]: the prefix of a key is a DNS name",
        ),
        (
            "app: a/b",
            "port p1: labels[app]: a value is empty, or at most 63 characters",
        ),
        (
            &many.join(","),
            "port p1: labels: an object has at most 64 labels, and 65 are given",
        ),
    ] {
        let refused = apply(&mut client, p1(labels)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(told), "{}", refused.message());
        // With another change of the port besides.
        let mut other = p1(labels);
        other.ports[0].addresses = vec!["10.0.1.99".into()];
        let refused = apply(&mut client, other).await.unwrap_err();
        assert!(refused.message().starts_with(told), "{}", refused.message());
    }
    controller.stop().await;
}

#[tokio::test]
async fn a_tenant_labels_its_own_and_finds_nothing_by_what_it_is_not_shown() {
    let certified = Certified::start().await;
    let mut operator = certified.client("operator", "weft://role/admin").await;
    let mut ann = certified.client("ann", "weft://tenant/ann/operate").await;
    let mut ben = certified.client("ben", "weft://tenant/ben/operate").await;
    apply(&mut operator, yaml(BASE)).await.unwrap();
    let more = r#"
external_networks: [{id: inet, physical_network: phys, prefixes: [203.0.113.0/24], labels: {carrier: x}}]
peerings: [{id: ann/p, requester: blue, accepter: green, labels: {app: web}}]
"#;
    apply(&mut operator, yaml(more)).await.unwrap();
    let app = listed(&mut ann, "", "app", "").await;
    assert_eq!(app, ["peering ann/p", "port p1", "port p2"]);
    let network = listed(&mut ann, "external_network", "", "").await;
    assert_eq!(network, ["external_network inet"]);
    for (labels, fields) in [
        ("carrier", ""),
        ("rack", ""),
        ("", "name=h1"),
        ("", "name=green"),
    ] {
        let found = listed(&mut ann, "", labels, fields).await;
        assert_eq!(found, <[&str; 0]>::default(), "{labels} {fields}");
    }
    // Labels do not let her change what she may not.
    apply(&mut ann, p1("app: mine")).await.unwrap();
    let network = yaml(more).external_networks;
    let network = Objects {
        external_networks: network,
        ..Objects::default()
    };
    assert!(apply(&mut ann, network).await.is_err());
    // A peering's are the requester's to set.
    let peering = |labels: &str| {
        yaml(&format!(
            "peerings: [{{id: ann/p, requester: blue, accepter: green, labels: {{{labels}}}}}]"
        ))
    };
    let refused = apply(&mut ben, peering("app: ben")).await.unwrap_err();
    let told = "peering ann/p: labels: only the requester's side sets them";
    assert_eq!(refused.message(), told);
    apply(&mut ann, peering("app: ann")).await.unwrap();
    apply(&mut ben, peering("app: ann")).await.unwrap();
    let found = listed(&mut ben, "peering", "app=ann", "").await;
    assert_eq!(found, ["peering ann/p"]);
    certified.controller.stop().await;
}
