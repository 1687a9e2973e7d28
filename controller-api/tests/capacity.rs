//! What hosts cannot hold: refused at the change where that can be known, and told where it shows at the host (decision 013).

#![allow(clippy::unwrap_used)]

mod support;

use support::certified::Certified;
use support::{Controller, FakeHost, key, topology, until, yaml};
use tonic::Code;
use tonic::transport::Channel;
use weft_process::services::intent_client::IntentClient;
use weft_proto::v1::{
    ApplyRequest, DeleteRequest, HeldBack, Hello, HostLimits, HostStatus, ListHostStatusRequest,
    ListVpcStatusRequest, Objects, Violation,
};

type Client = IntentClient<Channel>;

async fn apply(client: &mut Client, objects: Objects) -> Result<u64, tonic::Status> {
    let request = ApplyRequest {
        objects: Some(objects),
        ..ApplyRequest::default()
    };
    Ok(client.apply(request).await?.into_inner().revision)
}

/// What a change is refused with.
async fn refusal(client: &mut Client, text: &str) -> String {
    let refused = apply(client, yaml(text)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    refused.message().to_owned()
}

async fn status(client: &Client, host: &str) -> HostStatus {
    let reply = client
        .clone()
        .list_host_status(ListHostStatusRequest {})
        .await;
    let hosts = reply.unwrap().into_inner().hosts;
    hosts
        .into_iter()
        .find(|it| it.host == host)
        .unwrap_or_default()
}

fn hello(host: &str, limits: HostLimits) -> Hello {
    Hello {
        host: host.into(),
        limits: Some(limits),
        ..Hello::default()
    }
}

fn peers(peers: u32) -> HostLimits {
    HostLimits {
        peers,
        ..HostLimits::default()
    }
}

/// A port of blue on a host of its own.
fn one_more(number: u32) -> String {
    format!(
        r#"
hosts: [{{id: m{number}, vteps: [192.0.2.{}]}}]
ports: [{{id: m{number}, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:{number:02}", addresses: [10.0.0.{}],
  host: m{number}, device: {{kind: netdev, name: m}}}}]
"#,
        100 + number,
        100 + number
    )
}

#[tokio::test]
async fn what_a_host_cannot_hold_is_refused_at_the_change() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    apply(&mut client, topology()).await.unwrap();
    let limits = HostLimits {
        ports: 1,
        peers: 2,
        vpcs: 1,
        ..HostLimits::default()
    };
    let mut host = FakeHost::attach_as(&controller.address, hello("h1", limits)).await;
    host.take_and_acknowledge().await;
    assert_eq!(status(&client, "h1").await.limits, Some(limits));

    // h2 and m1 are two.
    apply(&mut client, yaml(&one_more(1))).await.unwrap();
    assert_eq!(
        refusal(&mut client, &one_more(2)).await,
        "port m2: host: with it, host 'h1' would have to know 3 other hosts, and knows at most 2 (limits.peers of its weftd.toml)"
    );
    let there = r#"
ports: [{id: b3, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:03", addresses: [10.0.0.13], host: h1, device: {kind: netdev, name: b3}}]
"#;
    assert_eq!(
        refusal(&mut client, there).await,
        "port b3: host: with it, host 'h1' would have to hold 2 ports, and holds at most 1 (limits.ports of its weftd.toml)"
    );
    // By a peering red comes to h1, too.
    let joined = r#"
subnets: [{id: red-a, vpc: red, cidrs: [10.7.0.0/24]}]
ports: [{id: r2, vpc: red, subnet: red-a, mac: "02:00:00:00:00:01", addresses: [10.7.0.11], host: h2, device: {kind: netdev, name: r2}}]
peerings: [{id: p, requester: blue, accepter: red}]
"#;
    assert_eq!(
        refusal(&mut client, joined).await,
        "peering p: with it, host 'h1' would have to hold 2 VPCs, and holds at most 1 (limits.vpcs of its weftd.toml)"
    );
    // By a route, too, a host becomes known to those with ports of the subnet.
    let routed = r#"
hosts: [{id: f1, vteps: [192.0.2.99], foreign: true}]
route_tables: [{id: t, vpc: blue, routes: [{prefix: 0.0.0.0/0, host: f1}]}]
"#;
    apply(&mut client, yaml(routed)).await.unwrap();
    let used = "subnets: [{id: blue-a, vpc: blue, cidrs: [10.0.0.0/24], route_table: t}]";
    assert_eq!(
        refusal(&mut client, used).await,
        "subnet blue-a: route_table: with it, host 'h1' would have to know 3 other hosts, and knows at most 2 (limits.peers of its weftd.toml)"
    );

    // A subnet without ports there tells h1 nothing; one that its port moves to does.
    let beside = "subnets: [{id: blue-b, vpc: blue, cidrs: [10.0.1.0/24], route_table: t}]";
    apply(&mut client, yaml(beside)).await.unwrap();
    let moved = r#"
ports: [{id: b1, vpc: blue, subnet: blue-b, mac: "02:00:00:00:00:01", addresses: [10.0.1.11], security_groups: [web], host: h1, device: {kind: netdev, name: b1}}]
"#;
    assert_eq!(
        refusal(&mut client, moved).await,
        "port b1: host: with it, host 'h1' would have to know 3 other hosts, and knows at most 2 (limits.peers of its weftd.toml)"
    );

    // Room that is made can be used.
    let request = DeleteRequest {
        objects: vec![key("port", "m1")],
    };
    client.delete(request).await.unwrap();
    apply(&mut client, yaml(&one_more(2))).await.unwrap();
    controller.stop().await;
}

#[tokio::test]
async fn a_host_that_is_over_its_limits_refuses_only_what_makes_that_worse() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    apply(&mut client, topology()).await.unwrap();
    for number in 1..4 {
        apply(&mut client, yaml(&one_more(number))).await.unwrap();
    }
    // Of four it may know one.
    let mut host = FakeHost::attach_as(&controller.address, hello("h1", peers(1))).await;
    host.take_and_acknowledge().await;
    refusal(&mut client, &one_more(4)).await;
    let again = one_more(3).replace("10.0.0.103", "10.0.0.203");
    apply(&mut client, yaml(&again)).await.unwrap();
    let elsewhere = r#"
ports: [{id: r3, vpc: red, subnet: red-a, mac: "02:00:00:00:00:03", addresses: [10.0.0.13], host: m1, device: {kind: netdev, name: r3}}]
"#;
    apply(&mut client, yaml(elsewhere)).await.unwrap();
    controller.stop().await;
}

#[tokio::test]
async fn what_a_host_holds_back_is_shown_until_it_has_caught_up() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    apply(&mut client, topology()).await.unwrap();
    let mut host = FakeHost::attach(&controller.address, "h2", 0, vec![]).await;
    host.take().await;
    let held = HeldBack {
        object: Some(key("vpc", "red")),
        in_force_revision: 0,
        violations: vec![Violation {
            object: Some(key("vpc", "red")),
            rule: "no room".into(),
            ..Violation::default()
        }],
    };
    host.acknowledge_but(host.session, 1, vec![held.clone()])
        .await;
    let seen = until(
        || status(&client, "h2"),
        |status| status.acknowledged_revision == 1,
    )
    .await;
    assert_eq!(seen.held_back, std::slice::from_ref(&held));
    assert!(seen.violations.is_empty(), "the state was not refused");
    let request = ListVpcStatusRequest { vpc: "red".into() };
    let shown = client.list_vpc_status(request).await.unwrap().into_inner();
    assert_eq!(shown.held_back.len(), 1);
    assert_eq!(
        (&*shown.held_back[0].host, &*shown.held_back[0].vpc),
        ("h2", "red")
    );
    let request = ListVpcStatusRequest { vpc: "blue".into() };
    let shown = client.list_vpc_status(request).await.unwrap().into_inner();
    assert!(shown.held_back.is_empty());

    // What is in sync is not sent again, whatever of it is held back, also not after a new start of the session.
    let (revision, digest, state) = (
        host.revision,
        host.state.digest().to_vec(),
        host.state.clone(),
    );
    drop(host);
    let hello = Hello {
        host: "h2".into(),
        revision,
        digest,
        held_back: vec![held],
        ..Hello::default()
    };
    let mut host = FakeHost::attach_as(&controller.address, hello).await;
    host.state = state;
    let seen = until(|| status(&client, "h2"), |status| status.attached).await;
    assert_eq!(seen.held_back.len(), 1);
    let group = r"
security_groups: [{id: web, vpc: blue, rules: [{direction: egress}]}]
";
    apply(&mut client, yaml(group)).await.unwrap();
    // A delta from there: nothing else was sent meanwhile.
    host.take_and_acknowledge().await;
    let seen = until(
        || status(&client, "h2"),
        |status| status.acknowledged_revision == 2,
    )
    .await;
    assert!(seen.held_back.is_empty());
    controller.stop().await;
}

#[tokio::test]
async fn a_tenant_learns_that_a_host_is_full_and_nothing_of_whom_it_is_full() {
    let certified = Certified::start().await;
    let mut operator = certified.client("operator", "weft://role/admin").await;
    let mut ann = certified.client("ann", "weft://tenant/ann/operate").await;
    let base = r#"
hosts:
  - {id: h1, vteps: [192.0.2.1]}
  - {id: gw, vteps: [192.0.2.2], physical_networks: [physnet1]}
vpcs: [{id: blue, vni: 7, tenant: ann}, {id: green, vni: 8, tenant: ben}]
subnets:
  - {id: blue-a, vpc: blue, cidrs: [10.0.1.0/24]}
  - {id: green-a, vpc: green, cidrs: [10.0.2.0/24]}
external_networks: [{id: inet, physical_network: physnet1, prefixes: [203.0.113.0/24], gateways: [203.0.113.1], gateway_hosts: [gw]}]
ports:
  - {id: blue-1, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:01", addresses: [10.0.1.11], host: h1, device: {kind: netdev, name: b1}}
  - {id: green-1, vpc: green, subnet: green-a, mac: "02:00:00:00:00:02", addresses: [10.0.2.11], host: gw, device: {kind: netdev, name: g1}}
"#;
    apply(&mut operator, yaml(base)).await.unwrap();
    let limits = HostLimits {
        vpcs: 1,
        ..HostLimits::default()
    };
    let gateway = certified.channel("gw", "weft://host/gw").await;
    let mut gateway = FakeHost::attach_over(gateway, hello("gw", limits)).await;
    gateway.take_and_acknowledge().await;
    let nat = "nat_gateways: [{id: ann/nat, vpc: blue, external_network: inet, addresses: [203.0.113.7]}]";
    assert_eq!(
        refusal(&mut ann, nat).await,
        "nat_gateway ann/nat: external_network: a host that it needs is full; ask the operator"
    );
    assert_eq!(
        refusal(&mut operator, nat).await,
        "nat_gateway ann/nat: external_network: with it, host 'gw' would have to hold 2 VPCs, and holds at most 1 (limits.vpcs of its weftd.toml)"
    );

    // And what stays behind somewhere is told of its own VPCs alone.
    let held = |vpc: &str| HeldBack {
        object: Some(key("vpc", vpc)),
        in_force_revision: 1,
        violations: vec![Violation {
            rule: "it would know 77 other hosts".into(),
            ..Violation::default()
        }],
    };
    let hello = Hello {
        held_back: vec![held("blue"), held("green")],
        ..hello("gw", limits)
    };
    let _gateway =
        FakeHost::attach_over(certified.channel("gw2", "weft://host/gw").await, hello).await;
    let all = until(
        || async {
            let mut operator = operator.clone();
            let reply = operator
                .list_vpc_status(ListVpcStatusRequest::default())
                .await;
            reply.unwrap().into_inner().held_back
        },
        |held| held.len() == 2,
    )
    .await;
    assert_eq!(all[0].host, "gw");
    let own = ann.list_vpc_status(ListVpcStatusRequest::default()).await;
    let own = own.unwrap().into_inner().held_back;
    assert_eq!(own.len(), 1);
    assert_eq!((&*own[0].vpc, &*own[0].host), ("blue", ""));
    assert!(!format!("{own:?}").contains("77"), "{own:?}");
    certified.controller.stop().await;
}
