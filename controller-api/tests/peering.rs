//! Peerings that are being frozen: which hosts have to know of it first.

#![allow(clippy::unwrap_used)]

mod support;

use support::{Controller, FakeHost, key, until, yaml};
use tonic::transport::Channel;
use weft_process::services::intent_client::IntentClient;
use weft_proto::v1::{
    ApplyRequest, ChangePeeringRequest, CreateRequest, GetRequest, ListHostStatusRequest,
    PeeringAction,
};

/// p joins blue and red on h1, q joins green and grey on h2. g1 is blue's gateway to the outside, and has no ports.
const INTENT: &str = r#"
hosts:
  - {id: g1, vteps: [192.0.2.9], physical_networks: [physnet1]}
  - {id: h1, vteps: [192.0.2.1]}
  - {id: h2, vteps: [192.0.2.2]}
vpcs: [{id: blue, vni: 1}, {id: red, vni: 2}, {id: green, vni: 3}, {id: grey, vni: 4}]
peerings: [{id: p, requester: blue, accepter: red}, {id: q, requester: green, accepter: grey}]
external_networks:
  - {id: inet, physical_network: physnet1, prefixes: [203.0.113.0/24], gateway_hosts: [g1]}
subnets:
  - {id: blue-a, vpc: blue, cidrs: [10.0.1.0/24]}
  - {id: red-a, vpc: red, cidrs: [10.0.2.0/24]}
  - {id: green-a, vpc: green, cidrs: [10.0.3.0/24]}
  - {id: grey-a, vpc: grey, cidrs: [10.0.4.0/24]}
ports:
  - {id: blue-1, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:01", host: h1, device: {kind: netdev, name: a}}
  - {id: red-1, vpc: red, subnet: red-a, mac: "02:00:00:00:00:02", host: h1, device: {kind: netdev, name: b}}
  - {id: green-1, vpc: green, subnet: green-a, mac: "02:00:00:00:00:03", host: h2, device: {kind: netdev, name: a}}
  - {id: grey-1, vpc: grey, subnet: grey-a, mac: "02:00:00:00:00:04", host: h2, device: {kind: netdev, name: b}}
nat_gateways:
  - {id: nat, vpc: blue, external_network: inet, addresses: [203.0.113.20]}
"#;

async fn requester_state(client: &IntentClient<Channel>, id: &str) -> String {
    let request = GetRequest {
        object: Some(key("peering", id)),
    };
    let reply = client.clone().get(request).await.unwrap().into_inner();
    let peerings = reply.objects.unwrap().peerings;
    peerings[0].requester_state.clone()
}

async fn freeze(client: &mut IntentClient<Channel>, id: &str) -> u64 {
    let request = ChangePeeringRequest {
        id: id.into(),
        action: PeeringAction::Freeze.into(),
        vpc: String::new(),
    };
    let reply = client.change_peering(request).await.unwrap();
    reply.into_inner().revision
}

async fn acknowledged(client: &IntentClient<Channel>, host: &str) -> u64 {
    let reply = client
        .clone()
        .list_host_status(ListHostStatusRequest {})
        .await;
    let hosts = reply.unwrap().into_inner().hosts;
    let host = hosts.iter().find(|status| status.host == host);
    host.unwrap().acknowledged_revision
}

#[tokio::test]
async fn a_peering_is_frozen_once_the_gateway_hosts_of_its_vpcs_know_it() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let request = ApplyRequest {
        objects: Some(yaml(INTENT)),
        ..ApplyRequest::default()
    };
    client.apply(request).await.unwrap();
    let attach = async |host: &str| {
        let mut host = FakeHost::attach(&controller.address, host, 0, vec![]).await;
        host.take_and_acknowledge().await;
        host
    };
    let (mut g1, mut h1, mut h2) = (attach("g1").await, attach("h1").await, attach("h2").await);
    let revision = freeze(&mut client, "p").await;
    h1.take_and_acknowledge().await;
    g1.take().await;
    until(
        || acknowledged(&client, "h1"),
        |reached| *reached >= revision,
    )
    .await;
    // Once q is frozen, p has been looked at, too.
    freeze(&mut client, "q").await;
    h2.take_and_acknowledge().await;
    until(|| requester_state(&client, "q"), |state| state == "frozen").await;
    assert_eq!(requester_state(&client, "p").await, "freezing");
    g1.acknowledge(g1.session, g1.revision).await;
    until(|| requester_state(&client, "p"), |state| state == "frozen").await;
    controller.stop().await;
}

#[tokio::test]
async fn a_peering_that_was_rejected_is_asked_for_again_by_creating_it_and_no_other_is() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let create = |text: &str| CreateRequest {
        objects: Some(yaml(text)),
    };
    let vpcs = "vpcs: [{id: blue, vni: 1, tenant: ann}, {id: green, vni: 2, tenant: ben}]";
    let peering = "peerings: [{id: p, requester: blue, accepter: green}]";
    for objects in [vpcs, peering] {
        client.create(create(objects)).await.unwrap();
    }
    let again = client.create(create(peering)).await.unwrap_err();
    assert!(again.message().contains("peering p already exists"));
    let request = ChangePeeringRequest {
        id: "p".into(),
        action: PeeringAction::Reject.into(),
        vpc: String::new(),
    };
    client.change_peering(request).await.unwrap();
    assert_eq!(requester_state(&client, "p").await, "rejected");
    client.create(create(peering)).await.unwrap();
    assert_eq!(requester_state(&client, "p").await, "connecting");
    controller.stop().await;
}
