//! Whom the controller tells of load balancers.

#![allow(clippy::unwrap_used)]

mod support;

use support::{Controller, FakeHost, key, list, topology, yaml};
use tonic::transport::Channel;
use weft_controller::intent::Settings;
use weft_process::services::intent_client::IntentClient;
use weft_proto::state::{Kind, Object};
use weft_proto::v1::{ApplyRequest, DeleteRequest, Hello, LoadBalancer, Objects};
use weft_proto::validate::{Scope, validate};
use weft_proto::{DSR, LEAST_CONNECTIONS, LOAD_BALANCER};

const BALANCER: &str = r#"
load_balancers:
  - id: lb
    vpc: blue
    addresses: [10.0.0.200]
    labels: {team: web}
    listeners: [{protocol: tcp, port_min: 80, members: [{port: b1}, {port: p101}, {address: 10.0.0.102}]}]
"#;

fn hello(host: &str, capabilities: &[&str]) -> Hello {
    Hello {
        host: host.into(),
        capabilities: capabilities.iter().map(|it| (*it).to_owned()).collect(),
        ..Hello::default()
    }
}

async fn apply(client: &mut IntentClient<Channel>, objects: Objects) -> u64 {
    let request = ApplyRequest {
        objects: Some(objects),
        ..ApplyRequest::default()
    };
    client.apply(request).await.unwrap().into_inner().revision
}

/// Blue, with b1 on h1, b2 and three more on h2, and red on h2; h3 has a VPC that a peering joins to blue.
fn intent() -> Objects {
    let mut objects = topology();
    let more = yaml(
        r#"
hosts: [{id: h3, vteps: [192.0.2.3]}]
vpcs: [{id: far, vni: 3}]
subnets: [{id: far-a, vpc: far, cidrs: [10.9.0.0/24]}]
peerings: [{id: p, requester: blue, accepter: far}]
ports:
  - {id: f1, vpc: far, subnet: far-a, mac: "02:00:00:00:00:09", addresses: [10.9.0.11], host: h3, device: {kind: netdev, name: f1}}
  - {id: p101, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:65", addresses: [10.0.0.101], host: h2, device: {kind: netdev, name: p101}}
  - {id: p102, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:66", addresses: [10.0.0.102], host: h2, device: {kind: netdev, name: p102}}
  - {id: p103, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:67", addresses: [10.0.0.103], host: h2, device: {kind: netdev, name: p103}}
"#,
    );
    objects.hosts.extend(more.hosts);
    objects.vpcs.extend(more.vpcs);
    objects.subnets.extend(more.subnets);
    objects.peerings.extend(more.peerings);
    objects.ports.extend(more.ports);
    objects.load_balancers = yaml(BALANCER).load_balancers;
    objects
}

fn balancer(host: &FakeHost) -> Option<&LoadBalancer> {
    match host.state.find(Kind::LoadBalancer, "lb")? {
        Object::LoadBalancer(balancer) => Some(balancer),
        _ => None,
    }
}

fn ports(host: &FakeHost) -> Vec<&str> {
    let ports = host.state.of_vpc_and_kind("blue", Kind::Port);
    ports.map(Object::id).collect()
}

async fn take(host: &mut FakeHost, id: &str) {
    host.take_and_acknowledge().await;
    let found = validate(&host.state, Scope::Node { host: id });
    assert_eq!(found, vec![]);
}

#[tokio::test]
async fn hosts_with_ports_of_the_vpc_that_take_load_balancers_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    apply(&mut client, intent()).await;
    let address = &controller.address;
    let mut able = FakeHost::attach_as(address, hello("h1", &[LOAD_BALANCER])).await;
    let mut old = FakeHost::attach_as(address, hello("h2", &["group_members"])).await;
    let mut far = FakeHost::attach_as(address, hello("h3", &[LOAD_BALANCER])).await;
    for (host, id) in [(&mut able, "h1"), (&mut old, "h2"), (&mut far, "h3")] {
        take(host, id).await;
    }
    let told = balancer(&able).expect("it has ports of blue");
    assert_eq!(told.listeners[0].members.len(), 3);
    assert!(told.labels.is_empty(), "{told:?}");
    assert_eq!(balancer(&old), None, "it would refuse them");
    assert_eq!(balancer(&far), None, "it knows blue by a peering");
    assert!(!ports(&far).is_empty());

    // What an algorithm that it does not know has to be is told in one that it does.
    let mut changed = yaml(BALANCER);
    changed.load_balancers[0].listeners[0].algorithm = "least-connections".into();
    apply(&mut client, changed).await;
    take(&mut able, "h1").await;
    assert_eq!(balancer(&able).unwrap().listeners[0].algorithm, "maglev");
    let counts = hello("h2", &[LOAD_BALANCER, LEAST_CONNECTIONS]);
    let mut counting = FakeHost::attach_as(address, counts).await;
    take(&mut counting, "h2").await;
    let algorithm = &balancer(&counting).unwrap().listeners[0].algorithm;
    assert_eq!(algorithm, "least-connections");

    // A listener whose members answer by themselves is told to who knows what that is.
    let mut changed = yaml(BALANCER);
    changed.load_balancers[0].listeners[0].mode = "dsr".into();
    apply(&mut client, changed).await;
    take(&mut able, "h1").await;
    assert_eq!(balancer(&able).unwrap().listeners, []);
    take(&mut counting, "h2").await;
    assert_eq!(balancer(&counting).unwrap().listeners, []);
    let direct = hello("h2", &[LOAD_BALANCER, DSR]);
    let mut direct = FakeHost::attach_as(address, direct).await;
    take(&mut direct, "h2").await;
    assert_eq!(balancer(&direct).unwrap().listeners[0].mode, "dsr");
    let mut changed = yaml(BALANCER);
    changed.load_balancers[0].listeners[0].mode = "nat".into();
    apply(&mut client, changed).await;
    take(&mut able, "h1").await;
    let told = balancer(&able).unwrap();
    assert_eq!((told.listeners.len(), &*told.listeners[0].mode), (1, ""));

    // A change is told, and then that it is gone.
    let mut changed = yaml(BALANCER);
    changed.load_balancers[0].listeners[0].members[1].draining = true;
    apply(&mut client, changed).await;
    take(&mut able, "h1").await;
    assert!(balancer(&able).unwrap().listeners[0].members[1].draining);
    let objects = vec![key("load_balancer", "lb")];
    client.delete(DeleteRequest { objects }).await.unwrap();
    take(&mut able, "h1").await;
    assert_eq!(balancer(&able), None);

    // A host that comes back as another version is told what it takes now.
    apply(&mut client, yaml(BALANCER)).await;
    take(&mut able, "h1").await;
    drop(old);
    let mut new = FakeHost::attach_as(address, hello("h2", &[LOAD_BALANCER])).await;
    take(&mut new, "h2").await;
    assert_eq!(balancer(&new), balancer(&able));
    controller.stop().await;
}

#[tokio::test]
async fn where_ports_are_learned_all_hosts_are_told_of_the_members() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings {
        learn_above: 3,
        ..Settings::default()
    };
    let controller = Controller::start_as(directory.path(), "127.0.0.1:0", settings).await;
    let mut client = controller.intent().await;
    let mut objects = intent();
    objects.peerings.clear();
    apply(&mut client, objects).await;
    let capabilities = ["learning", LOAD_BALANCER];
    let mut host = FakeHost::attach_as(&controller.address, hello("h1", &capabilities)).await;
    take(&mut host, "h1").await;
    assert!(balancer(&host).is_some());
    // By name and by address; nobody has asked for the others.
    assert_eq!(ports(&host), ["b1", "p101", "p102"]);

    // Members that come and go.
    let mut changed = yaml(BALANCER);
    let members = &mut changed.load_balancers[0].listeners[0].members;
    members[1].port = "p103".into();
    members.pop();
    apply(&mut client, changed).await;
    take(&mut host, "h1").await;
    assert_eq!(ports(&host), ["b1", "p103"]);
    // One that moves.
    let mut moved = intent().ports;
    moved.retain(|port| port.id == "p103");
    moved[0].host = "h3".into();
    let objects = Objects {
        ports: moved,
        ..Objects::default()
    };
    apply(&mut client, objects).await;
    take(&mut host, "h1").await;
    let found = host.state.find(Kind::Port, "p103");
    assert!(matches!(found, Some(Object::Port(port)) if port.host == "h3"));
    let objects = vec![key("load_balancer", "lb")];
    client.delete(DeleteRequest { objects }).await.unwrap();
    take(&mut host, "h1").await;
    assert_eq!(ports(&host), ["b1"]);
    controller.stop().await;
}

#[tokio::test]
async fn load_balancers_are_listed_by_vpc_label_and_field() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    apply(&mut client, intent()).await;
    for (vpc, count) in [("", 1), ("blue", 1), ("red", 0)] {
        let replies = list(&mut client, "load_balancer", vpc).await;
        let objects = replies
            .into_iter()
            .filter_map(|reply| reply.objects)
            .flat_map(|objects| objects.load_balancers);
        assert_eq!(objects.count(), count, "{vpc}");
    }
    // A port that is named stays, and who names it is told.
    let objects = vec![key("port", "p101")];
    let refused = client.delete(DeleteRequest { objects }).await.unwrap_err();
    assert_eq!(
        refused.message(),
        "still in use:\nload_balancer lb: listeners[0].members[1].port: there is no port 'p101'"
    );
    controller.stop().await;
}
