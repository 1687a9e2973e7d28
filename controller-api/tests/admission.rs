//! A caller that asks for too much is refused by name, before anything is done, and others are not.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::certified::Certified;
use support::{Controller, DEADLINE, FakeHost, key, topology, until, within, yaml};
use tonic::transport::Channel;
use tonic::{Code, Status};
use weft_controller::admission::AdmissionConfig;
use weft_process::controllers::RETRY_AFTER;
use weft_process::services::intent_client::IntentClient;
use weft_proto::state::State;
use weft_proto::v1::{
    ApplyRequest, CreateRequest, DeleteRequest, GetRequest, Hello, HistoryRequest, ListRequest,
    Objects, PortConditionsRequest, UndoRequest, WatchRequest,
};

type Client = IntentClient<Channel>;

fn limits(text: &str) -> AdmissionConfig {
    toml::from_str(text).unwrap()
}

/// Some VPCs of a tenant.
fn vpcs(tenant: &str, ids: impl Iterator<Item = usize>) -> Objects {
    let vpc = |id| format!("{{id: {tenant}/v{id}, tenant: {tenant}}}");
    let all: Vec<String> = ids.map(vpc).collect();
    yaml(&format!("vpcs: [{}]", all.join(",")))
}

async fn apply(client: &mut Client, objects: Objects) -> Result<u64, Status> {
    let request = ApplyRequest {
        objects: Some(objects),
        ..ApplyRequest::default()
    };
    Ok(within(client.apply(request)).await?.into_inner().revision)
}

/// Lets a tenant have many VPCs.
async fn allow(certified: &Certified, tenant: &str) {
    let mut operator = certified.client("quotas", "weft://role/operate").await;
    let quota =
        format!("quotas: [{{id: {tenant}/vpc, tenant: {tenant}, kind: vpc, limit: 10000}}]");
    apply(&mut operator, yaml(&quota)).await.unwrap();
}

/// What a refusal says, and when to try again.
#[track_caller]
fn refused(status: &Status, setting: &str) -> Duration {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let text = status.message();
    assert!(text.contains(setting), "{text}");
    let hint = status.metadata().get(RETRY_AFTER).unwrap();
    let hint: u64 = hint.to_str().unwrap().parse().unwrap();
    assert!(hint > 0 && text.contains(&format!("{hint} ms")), "{text}");
    Duration::from_millis(hint)
}

async fn gives<T>(answer: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Status {
    match within(answer).await {
        Ok(_) => panic!("it was admitted"),
        Err(status) => status,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_floods_is_refused_by_name_and_another_is_not() {
    let text = "tenants = { changes_per_second = 1, changes_burst = 40 }";
    let certified = Certified::start_limited(limits(text)).await;
    let mut bob = certified.client("bob", "weft://tenant/bob/operate").await;
    allow(&certified, "ann").await;
    allow(&certified, "bob").await;
    // Two certificates of one tenant have one tenant's limits.
    let mut floods = Vec::new();
    for name in ["ann-1", "ann-2"] {
        let client = certified.client(name, "weft://tenant/ann/operate").await;
        for at in 0..8 {
            let mut client = client.clone();
            let base = 1000 * at + if name == "ann-1" { 0 } else { 500 };
            floods.push(tokio::spawn(async move {
                let mut made = Vec::new();
                let mut last = None;
                for id in base..base + 50 {
                    match apply(&mut client, vpcs("ann", id..=id)).await {
                        Ok(_) => made.push(id),
                        Err(status) => last = Some(status),
                    }
                }
                (made, last)
            }));
        }
    }
    for id in 0..40 {
        apply(&mut bob, vpcs("bob", id..=id)).await.unwrap();
    }
    let mut made = Vec::new();
    for flood in floods {
        let (own, last) = within(flood).await.unwrap();
        made.extend(own);
        let last = last.unwrap();
        refused(&last, "admission.tenants.changes_per_second");
        assert!(last.message().contains("tenant ann"), "{last}");
        assert!(!last.message().contains("bob"), "{last}");
    }
    assert!((40..200).contains(&made.len()), "{} of 800", made.len());
    // Nothing of what was refused is there.
    let version = certified.controller.intent.current();
    let ids = version.state.iter().map(|object| object.id().to_owned());
    let mut found: Vec<String> = ids
        .filter(|id| id.starts_with("ann/v") && id != "ann/vpc")
        .collect();
    let mut made: Vec<String> = made.iter().map(|id| format!("ann/v{id}")).collect();
    found.sort();
    made.sort();
    assert_eq!(found, made);
    certified.controller.stop().await;
}

#[tokio::test]
async fn objects_count_and_not_only_calls() {
    let text = "tenants = { objects_per_second = 100, objects_burst = 100 }";
    let certified = Certified::start_limited(limits(text)).await;
    let mut ann = certified.client("ann", "weft://tenant/ann/operate").await;
    let mut other = certified.client("op", "weft://role/operate").await;
    allow(&certified, "ann").await;
    // More than the burst, once.
    let first = apply(&mut ann, vpcs("ann", 0..300)).await.unwrap();
    // By every kind of change, whatever it names, and though it would be refused for other reasons.
    let setting = "admission.tenants.objects_per_second";
    let create = CreateRequest {
        objects: Some(vpcs("ann", 300..301)),
    };
    refused(&gives(ann.create(create)).await, setting);
    let objects = (0..300).map(|id| key("vpc", &format!("ann/v{id}")));
    let delete = DeleteRequest {
        objects: objects.collect(),
    };
    refused(&gives(ann.delete(delete.clone())).await, setting);
    let undo = UndoRequest {
        revision: first,
        dry_run: false,
    };
    let wait = refused(&gives(ann.undo(undo)).await, setting);
    assert!(wait > Duration::from_secs(1), "{wait:?}");
    let present = certified.controller.intent.current();
    assert_eq!((present.revision, present.state.len()), (first, 301));
    // Reading goes on, and so do others.
    let get = GetRequest {
        object: Some(key("vpc", "ann/v7")),
    };
    within(ann.get(get)).await.unwrap();
    apply(&mut other, yaml("vpcs: [{id: x, vni: 77}]"))
        .await
        .unwrap();
    // As much later as it was told.
    tokio::time::sleep(wait).await;
    let one = apply(&mut ann, vpcs("ann", 300..301)).await;
    one.unwrap();
    certified.controller.stop().await;
}

#[tokio::test]
async fn what_a_change_deletes_besides_counts_for_the_next() {
    let text = "tenants = { objects_per_second = 1, objects_burst = 1000 }";
    let certified = Certified::start_limited(limits(text)).await;
    let mut ann = certified.client("ann", "weft://tenant/ann/operate").await;
    allow(&certified, "ann").await;
    apply(&mut ann, vpcs("ann", 0..600)).await.unwrap();
    // It names one, and deletes 599.
    let prune = ApplyRequest {
        objects: Some(vpcs("ann", 0..1)),
        prune: true,
        ..ApplyRequest::default()
    };
    let pruned = within(ann.apply(prune)).await.unwrap().into_inner();
    assert_eq!(pruned.deleted, 599);
    let status = apply(&mut ann, vpcs("ann", 1..2)).await.unwrap_err();
    refused(&status, "admission.tenants.objects_per_second");
    certified.controller.stop().await;
}

#[tokio::test]
async fn a_request_that_is_refused_is_not_read() {
    let text = "tenants = { objects_per_second = 1, objects_burst = 1 }";
    let certified = Certified::start_limited(limits(text)).await;
    let mut ann = certified.client("ann", "weft://tenant/ann/operate").await;
    let bad = format!("vpcs: [{{id: {}, tenant: bob}}]", "x".repeat(8 << 20));
    let bad = yaml(&bad);
    allow(&certified, "ann").await;
    apply(&mut ann, vpcs("ann", 0..1000)).await.unwrap();
    // Malformed and large, and yet what is said is that there are too many.
    for _ in 0..3 {
        let status = apply(&mut ann, bad.clone()).await.unwrap_err();
        refused(&status, "admission.tenants.objects_per_second");
    }
    certified.controller.stop().await;
}

#[tokio::test]
async fn what_requests_take_is_bounded_while_they_are_read() {
    // Less than is possible to set: a file's would be refused.
    let text = "tenants = { mebibytes_in_flight = 1 }";
    let certified = Certified::start_limited(limits(text)).await;
    let mut ann = certified.client("ann", "weft://tenant/ann/operate").await;
    let large = format!("vpcs: [{{id: ann/{}, tenant: ann}}]", "x".repeat(2 << 20));
    let large = yaml(&large);
    for _ in 0..3 {
        let status = apply(&mut ann, large.clone()).await.unwrap_err();
        refused(&status, "admission.tenants.mebibytes_in_flight");
    }
    assert!(certified.controller.intent.current().state.is_empty());
    // What was read of them counts no more.
    apply(&mut ann, vpcs("ann", 0..10)).await.unwrap();
    certified.controller.stop().await;
}

#[tokio::test]
async fn watches_and_calls_in_flight_have_their_most_and_end() {
    let text = "operators = { watches = 3, reads_in_flight = 2 }";
    let certified = Certified::start_limited(limits(text)).await;
    let mut one = certified.client("one", "weft://role/operate").await;
    let mut other = certified.client("other", "weft://role/read").await;
    let mut other_operator = certified.client("op", "weft://role/operate").await;
    let mut watches = Vec::new();
    for _ in 0..2 {
        let watch = within(one.watch(WatchRequest::default())).await.unwrap();
        watches.push(watch.into_inner());
    }
    let asked = PortConditionsRequest::default();
    let ports = within(one.watch_port_conditions(asked.clone())).await;
    let ports = ports.unwrap().into_inner();
    let setting = "admission.operators.watches";
    refused(&gives(one.watch(WatchRequest::default())).await, setting);
    refused(
        &gives(one.watch_port_conditions(asked.clone())).await,
        setting,
    );
    within(other.watch(WatchRequest::default())).await.unwrap();
    drop(ports);
    // The controller hears of the end a little later.
    until(
        async || one.clone().watch(WatchRequest::default()).await.map(drop),
        Result::is_ok,
    )
    .await
    .unwrap();

    // Lists that nobody takes, larger than what waits on the way.
    let text = "x".repeat(60);
    let labels = (0..64).map(|n| format!("{text}{n:02}: {text}"));
    let labels = labels.collect::<Vec<_>>().join(",");
    let many = (1..=700).map(|n| format!("{{id: v{n}, vni: {n}, labels: {{{labels}}}}}"));
    let many = yaml(&format!("vpcs: [{}]", many.collect::<Vec<_>>().join(",")));
    apply(&mut other_operator, many).await.unwrap();
    let list = ListRequest {
        kind: "vpc".into(),
        ..ListRequest::default()
    };
    // Over connections of their own: what waits there is in nobody's way.
    let mut first_way = certified.client("one", "weft://role/operate").await;
    let mut second_way = certified.client("one", "weft://role/operate").await;
    let first = within(first_way.list(list.clone())).await.unwrap();
    let second = within(second_way.list(list.clone())).await.unwrap();
    let setting = "admission.operators.reads_in_flight";
    refused(&gives(one.list(list.clone())).await, setting);
    refused(
        &gives(one.history(HistoryRequest::default())).await,
        setting,
    );
    refused(&gives(one.list_port_conditions(asked)).await, setting);
    within(other.list(list.clone())).await.unwrap();
    // Changes are not reads.
    apply(&mut one, yaml("vpcs: [{id: w, vni: 8000}]"))
        .await
        .unwrap();
    drop((first, second));
    until(
        async || {
            one.clone()
                .history(HistoryRequest::default())
                .await
                .map(drop)
        },
        Result::is_ok,
    )
    .await
    .unwrap();
    certified.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_in_flight_have_their_most_and_those_beyond_leave_nothing() {
    let text = "tenants = { changes_in_flight = 2 }";
    let certified = Certified::start_limited(limits(text)).await;
    allow(&certified, "ann").await;
    let ann = certified.client("ann", "weft://tenant/ann/operate").await;
    let (mut made, mut next, mut told) = (0, 0, None);
    let start = std::time::Instant::now();
    while told.is_none() {
        assert!(start.elapsed() < DEADLINE, "never more than two in flight");
        let calls: Vec<_> = (next..next + 40)
            .map(|id| {
                let mut client = ann.clone();
                tokio::spawn(async move { apply(&mut client, vpcs("ann", id..=id)).await })
            })
            .collect();
        next += 40;
        for call in calls {
            match within(call).await.unwrap() {
                Ok(_) => made += 1,
                Err(status) => told = Some(status),
            }
        }
    }
    refused(&told.unwrap(), "admission.tenants.changes_in_flight");
    let version = certified.controller.intent.current();
    // Besides the quota.
    assert_eq!(version.state.len(), made + 1);
    // None counts any more.
    let mut ann = ann;
    apply(&mut ann, vpcs("ann", next..=next)).await.unwrap();
    certified.controller.stop().await;
}

#[tokio::test]
async fn hosts_are_attached_whatever_callers_may_ask_for() {
    let directory = tempfile::tempdir().unwrap();
    let text = "operators = { changes_in_flight = 1, reads_in_flight = 1, watches = 1 }";
    let controller =
        Controller::start_limited(directory.path(), "127.0.0.1:0", None, limits(text)).await;
    let mut client = controller.intent().await;
    apply(&mut client, topology()).await.unwrap();
    let channel = client_channel(&controller.address).await;
    let mut hosts = Vec::new();
    for number in 0..200 {
        let hello = Hello {
            host: format!("h{number}"),
            digest: State::default().digest().to_vec(),
            ..Hello::default()
        };
        hosts.push(FakeHost::attach_over(channel.clone(), hello).await);
    }
    hosts[1].take_and_acknowledge().await;
    controller.stop().await;
}

async fn client_channel(address: &str) -> Channel {
    weft_process::transport::connect(address, None)
        .await
        .unwrap()
}

#[tokio::test]
async fn those_who_may_nothing_are_told_so_and_nothing_else() {
    let text = "tenants = { changes_per_second = 1, changes_burst = 1 }";
    let certified = Certified::start_limited(limits(text)).await;
    let mut host = certified.client("h1", "weft://host/h1").await;
    let mut reader = certified.client("ann", "weft://tenant/ann/read").await;
    for client in [&mut host, &mut reader] {
        for _ in 0..3 {
            let status = apply(client, vpcs("ann", 0..1)).await.unwrap_err();
            assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        }
    }
    let mut writer = certified.client("eve", "weft://tenant/ann/operate").await;
    apply(&mut writer, vpcs("ann", 0..1)).await.unwrap();
    certified.controller.stop().await;
}
