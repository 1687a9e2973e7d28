//! The intent API over TCP and over a unix socket (behaviours 31 to 33).

#![allow(clippy::unwrap_used)]

mod support;

use support::site::{Site, StoreKind};
use support::{key, list, topology, yaml};
use tonic::Code;
use weft_proto::v1::{ApplyRequest, CreateRequest, DeleteRequest, GetRequest, Objects, Vpc};

on_both_stores!(
    b031_create_get_list_delete_and_create_again,
    b031_a_change_that_breaks_a_rule_leaves_nothing,
    applying_counts_what_changes_prunes_and_can_be_tried,
    b033_a_long_list_arrives_whole_and_at_one_revision,
    the_same_objects_created_by_many_at_once_are_created_once,
);

fn create(objects: Objects) -> CreateRequest {
    CreateRequest {
        objects: Some(objects),
    }
}

fn apply(objects: Objects) -> ApplyRequest {
    ApplyRequest {
        objects: Some(objects),
        ..ApplyRequest::default()
    }
}

fn delete(kind: &str, id: &str) -> DeleteRequest {
    DeleteRequest {
        objects: vec![key(kind, id)],
    }
}

fn get(kind: &str, id: &str) -> GetRequest {
    GetRequest {
        object: Some(key(kind, id)),
    }
}

async fn b031_create_get_list_delete_and_create_again(kind: StoreKind) {
    let site = Site::new(kind).await;
    let controller = site.controller("127.0.0.1:0").await;
    let mut client = controller.intent().await;

    let reply = client
        .create(create(topology()))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((reply.revision, reply.created), (1, 10));
    let port = client.get(get("port", "b1")).await.unwrap().into_inner();
    assert_eq!(port.objects.unwrap().ports[0].mac, "02:00:00:00:00:01");
    let ports = list(&mut client, "port", "blue").await;
    assert_eq!(ports[0].objects.as_ref().unwrap().ports.len(), 2);

    let again = client.create(create(topology())).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    assert!(
        again.message().contains("port b1 already exists"),
        "{again}"
    );

    let reply = client
        .delete(delete("port", "b1"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((reply.revision, reply.deleted), (2, 1));
    let gone = client.get(get("port", "b1")).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    let gone = client.delete(delete("port", "b1")).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);

    let mut only = Objects::default();
    only.ports.push(topology().ports.swap_remove(0));
    client.create(create(only)).await.unwrap();
    assert!(client.get(get("port", "b1")).await.is_ok());
    controller.stop().await;
}

async fn b031_a_change_that_breaks_a_rule_leaves_nothing(kind: StoreKind) {
    let site = Site::new(kind).await;
    let listen = format!("unix:{}", site.path().join("s").display());
    let controller = site.controller(&listen).await;
    let mut client = controller.intent().await;
    client.create(create(topology())).await.unwrap();

    let bad = yaml(
        r#"
vpcs: [{id: green, vni: 3}, {id: grey, vni: 2}]
subnets: [{id: green-a, vpc: green, cidrs: [10.0.0.1/24]}]
ports: [{id: b3, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:09", addresses: [10.0.0.12]}]
"#,
    );
    let refused = client.create(create(bad)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    for line in [
        "subnet green-a: cidrs[0]: '10.0.0.1/24' has host bits set; the prefix is 10.0.0.0/24",
        "port b3: addresses[0]: 10.0.0.12 is already used by port 'b2' of the same vpc",
    ] {
        assert!(refused.message().lines().any(|l| l == line), "{refused}");
    }
    assert!(
        refused.message().contains("2 is already used by vpc"),
        "{refused}"
    );
    let kept = list(&mut client, "", "").await;
    assert_eq!(kept[0].revision, 1);
    assert_eq!(kept[0].objects, Some(topology_in_order()));

    let used = client.delete(delete("subnet", "red-a")).await.unwrap_err();
    assert_eq!(used.code(), Code::FailedPrecondition);
    assert!(
        used.message()
            .contains("port r2: subnet: there is no subnet 'red-a'"),
        "{used}"
    );
    let unknown = client.get(get("router", "x")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);
    controller.stop().await;
}

fn topology_in_order() -> Objects {
    weft_proto::state::State::from_objects(topology())
        .unwrap()
        .to_objects()
}

async fn applying_counts_what_changes_prunes_and_can_be_tried(kind: StoreKind) {
    let site = Site::new(kind).await;
    let controller = site.controller("127.0.0.1:0").await;
    let mut client = controller.intent().await;
    client.apply(apply(topology())).await.unwrap();
    let same = client.apply(apply(topology())).await.unwrap().into_inner();
    assert_eq!((same.revision, same.updated), (1, 0), "nothing changed");

    let mut less = topology();
    less.ports.retain(|port| port.id != "r2");
    less.vpcs[0].vni = 9;
    let request = ApplyRequest {
        objects: Some(less),
        prune: true,
        dry_run: true,
        if_revision: 1,
        ..ApplyRequest::default()
    };
    let would = client.apply(request.clone()).await.unwrap().into_inner();
    assert_eq!((would.revision, would.updated, would.deleted), (1, 1, 1));
    assert!(client.get(get("port", "r2")).await.is_ok());
    let request = ApplyRequest {
        dry_run: false,
        ..request
    };
    let did = client.apply(request.clone()).await.unwrap().into_inner();
    assert_eq!((did.revision, did.updated, did.deleted), (2, 1, 1));
    let late = client.apply(request).await.unwrap_err();
    assert_eq!(late.code(), Code::Aborted);
    assert!(client.get(get("port", "r2")).await.is_err());
    controller.stop().await;
}

async fn b033_a_long_list_arrives_whole_and_at_one_revision(kind: StoreKind) {
    let site = Site::new(kind).await;
    let controller = site.controller("127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let vpcs = (1..=1234).map(|vni| Vpc {
        id: format!("v{vni:05}"),
        vni,
        ..Vpc::default()
    });
    let many = Objects {
        vpcs: vpcs.collect(),
        ..Objects::default()
    };
    client.create(create(many.clone())).await.unwrap();
    let replies = list(&mut client, "vpc", "").await;
    let sizes: Vec<_> = replies
        .iter()
        .map(|reply| reply.objects.as_ref().unwrap().vpcs.len())
        .collect();
    assert_eq!(sizes, [500, 500, 234]);
    assert!(replies.iter().all(|reply| reply.revision == 1));
    let all: Vec<_> = replies
        .into_iter()
        .flat_map(|reply| reply.objects.unwrap().vpcs)
        .collect();
    assert_eq!(all, many.vpcs);
    let none = list(&mut client, "port", "").await;
    assert_eq!(
        none.len(),
        1,
        "the revision is told also when there is nothing"
    );
    controller.stop().await;
}

async fn the_same_objects_created_by_many_at_once_are_created_once(kind: StoreKind) {
    let site = Site::new(kind).await;
    let controller = site.controller("127.0.0.1:0").await;
    let client = controller.intent().await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = client.clone();
        calls.spawn(async move { client.create(create(topology())).await });
    }
    let results = calls.join_all().await;
    let (created, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!((created.len(), refused.len()), (1, 7));
    for status in refused {
        assert_eq!(status.unwrap_err().code(), Code::AlreadyExists);
    }
    controller.stop().await;
}
