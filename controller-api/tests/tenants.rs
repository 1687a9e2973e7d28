//! A tenant's certificate sees and changes that tenant's objects, and learns nothing of another's.

#![allow(clippy::unwrap_used)]

mod support;

use support::certified::Certified;
use support::{key, list, yaml};
use tonic::transport::Channel;
use tonic::{Code, Status};
use weft_process::services::intent_client::IntentClient;
use weft_proto::state::explode;
use weft_proto::v1::{
    ApplyRequest, ChangePeeringRequest, DeleteRequest, GetRequest, ListHostStatusRequest, Objects,
    PeeringAction,
};

type Client = IntentClient<Channel>;

/// Made by the operator: blue is ann's, green is ben's.
const BASE: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}]
vpcs: [{id: blue, vni: 7, tenant: ann}, {id: green, vni: 8, tenant: ben}, {id: own, vni: 9}]
subnets:
  - {id: blue-a, vpc: blue, cidrs: [10.0.1.0/24]}
  - {id: green-a, vpc: green, cidrs: [10.0.2.0/24]}
security_groups: [{id: blue-web, vpc: blue}, {id: green-web, vpc: green}]
ports:
  - {id: blue-1, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:01", addresses: [10.0.1.11], host: h1, device: {kind: netdev, name: b1}}
  - {id: green-1, vpc: green, subnet: green-a, mac: "02:00:00:00:00:02", addresses: [10.0.2.11], host: h1, device: {kind: netdev, name: g1}}
"#;

struct Site {
    operator: Client,
    ann: Client,
    ben: Client,
    reader: Client,
    certified: Certified,
}

impl Site {
    async fn start() -> Self {
        let certified = Certified::start().await;
        let mut operator = certified.client("operator", "weft://role/admin").await;
        operator.apply(apply(BASE)).await.unwrap();
        Self {
            operator,
            ann: certified.client("ann", "weft://tenant/ann/operate").await,
            ben: certified.client("ben", "weft://tenant/ben/operate").await,
            reader: certified.client("reader", "weft://tenant/ann/read").await,
            certified,
        }
    }
}

fn apply(text: &str) -> ApplyRequest {
    ApplyRequest {
        objects: Some(yaml(text)),
        ..ApplyRequest::default()
    }
}

/// The one line that a call is refused with.
fn refusal<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String) {
    let status = result.unwrap_err();
    (status.code(), status.message().to_owned())
}

async fn applied(client: &mut Client, text: &str) -> Result<(), Status> {
    client.apply(apply(text)).await.map(drop)
}

async fn refused(client: &mut Client, text: &str, expected: &str) {
    let said = match applied(client, text).await {
        Ok(()) => "nothing".to_owned(),
        Err(status) => status.message().to_owned(),
    };
    assert_eq!(said, expected, "{text}");
}

async fn get(client: &mut Client, kind: &str, id: &str) -> Result<Objects, Status> {
    let request = GetRequest {
        object: Some(key(kind, id)),
    };
    let reply = client.get(request).await?.into_inner();
    Ok(reply.objects.unwrap_or_default())
}

async fn ids(client: &mut Client) -> Vec<String> {
    let replies = list(client, "", "").await;
    let objects = replies
        .into_iter()
        .flat_map(|reply| explode(reply.objects.unwrap_or_default()));
    objects.map(|object| object.key().to_string()).collect()
}

async fn delete(client: &mut Client, kind: &str, id: &str) -> Result<(), Status> {
    let request = DeleteRequest {
        objects: vec![key(kind, id)],
    };
    client.delete(request).await.map(drop)
}

async fn act(client: &mut Client, action: PeeringAction, vpc: &str) -> Result<(), Status> {
    let request = ChangePeeringRequest {
        id: "ann/p".into(),
        action: action.into(),
        vpc: vpc.into(),
    };
    client.change_peering(request).await.map(drop)
}

/// The states of ann's peering.
async fn states(client: &mut Client) -> [String; 2] {
    let peering = get(client, "peering", "ann/p")
        .await
        .unwrap()
        .peerings
        .remove(0);
    [peering.requester_state, peering.accepter_state]
}

/// What is another's is as if it were not there, to the letter.
#[tokio::test]
async fn a_tenant_sees_its_own_objects_alone() {
    let mut site = Site::start().await;
    let own = [
        "vpc blue",
        "subnet blue-a",
        "security_group blue-web",
        "port blue-1",
    ];
    assert_eq!(ids(&mut site.ann).await, own);
    assert_eq!(ids(&mut site.reader).await, own);
    for (kind, id) in [
        ("vpc", "green"),
        ("vpc", "own"),
        ("port", "green-1"),
        ("host", "h1"),
    ] {
        let there = refusal(get(&mut site.ann, kind, id).await);
        let nowhere = refusal(get(&mut site.ann, kind, "nowhere").await);
        assert_eq!(there.0, Code::NotFound);
        assert_eq!(there.1.replace(id, "nowhere"), nowhere.1);
        let there = refusal(delete(&mut site.ann, kind, id).await);
        let nowhere = refusal(delete(&mut site.ann, kind, "nowhere").await);
        assert_eq!((there.0, there.1.replace(id, "nowhere")), nowhere);
    }
    let status = site.ann.list_host_status(ListHostStatusRequest {}).await;
    assert_eq!(refusal(status).0, Code::PermissionDenied);
    let written = applied(&mut site.reader, "vpcs: [{id: ann/x, tenant: ann}]").await;
    assert_eq!(refusal(written).0, Code::PermissionDenied);
    site.certified.controller.stop().await;
}

#[tokio::test]
async fn a_tenant_changes_its_own_objects_under_its_own_name() {
    let mut site = Site::start().await;
    let lab = r#"
vpcs: [{id: ann/lab, tenant: ann}]
subnets: [{id: ann/lab-a, vpc: ann/lab, cidrs: [10.9.0.0/24]}]
ports: [{id: ann/lab-1, vpc: ann/lab, subnet: ann/lab-a, mac: "02:00:00:00:09:01", addresses: [10.9.0.11]}]
"#;
    applied(&mut site.ann, lab).await.unwrap();
    let vni = get(&mut site.ann, "vpc", "ann/lab").await.unwrap().vpcs[0].vni;
    assert!((1..1 << 24).contains(&vni) && ![7, 8, 9].contains(&vni));
    // Applied again it is the same; what the operator made of it stays.
    applied(&mut site.ann, lab).await.unwrap();
    assert_eq!(
        get(&mut site.ann, "vpc", "ann/lab").await.unwrap().vpcs[0].vni,
        vni
    );
    applied(
        &mut site.ann,
        "subnets: [{id: blue-a, vpc: blue, cidrs: [10.0.1.0/24], mtu: 1400}]",
    )
    .await
    .unwrap();
    delete(&mut site.ann, "port", "ann/lab-1").await.unwrap();

    // A name of one's own for whatever is new, and of nobody else's.
    for id in ["lab2", "green", "ben/lab", "annex/lab"] {
        let text = format!("vpcs: [{{id: {id}, tenant: ann}}]");
        refused(
            &mut site.ann,
            &text,
            &format!("vpc {id}: id: begins with 'ann/'"),
        )
        .await;
    }
    for (text, expected) in [
        (
            "vpcs: [{id: ann/x, tenant: ben}]",
            "vpc ann/x: tenant: is your own",
        ),
        ("vpcs: [{id: ann/x}]", "vpc ann/x: tenant: is your own"),
        (
            "vpcs: [{id: ann/x, tenant: ann, vni: 8}]",
            "vpc ann/x: vni: is chosen by the controller: leave it out",
        ),
        (
            "hosts: [{id: ann/h, vteps: [192.0.2.9]}]",
            "host ann/h: is the operator's",
        ),
        (
            "quotas: [{id: ann/vpc, tenant: ann, kind: vpc, limit: 99}]",
            "quota ann/vpc: is the operator's",
        ),
        (
            r#"ports: [{id: blue-1, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:01", addresses: [10.0.1.11], host: h1, device: {kind: netdev, name: eth0}}]"#,
            "port blue-1: device: only the operator sets it",
        ),
        (
            r#"ports: [{id: ann/y, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:09", host: h1}]"#,
            "port ann/y: host: only the operator sets it",
        ),
        (
            r#"ports: [{id: ann/y, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:09", trunk: {parent: blue-1, vlan: 7}}]"#,
            "port ann/y: trunk: only the operator sets it",
        ),
        (
            "route_tables: [{id: ann/t, vpc: blue, routes: [{prefix: 0.0.0.0/0, host: h1}]}]",
            "route_table ann/t: routes: only the operator routes to hosts",
        ),
    ] {
        refused(&mut site.ann, text, expected).await;
    }
    // References to what is another's, as to what is not there.
    for (vpc, group) in [("green", "green-web"), ("nowhere", "nowhere")] {
        refused(
            &mut site.ann,
            &format!("subnets: [{{id: ann/s, vpc: {vpc}, cidrs: [10.8.0.0/24]}}]"),
            &format!("subnet ann/s: vpc: there is no vpc '{vpc}'"),
        )
        .await;
        refused(
            &mut site.ann,
            &format!("security_groups: [{{id: ann/g, vpc: blue, rules: [{{direction: ingress, remote_group: {group}}}]}}]"),
            &format!("security_group ann/g: rules[0].remote_group: there is no security_group '{group}'"),
        )
        .await;
    }
    // What the operator made for another, even under ann's name, is not replaced.
    applied(
        &mut site.operator,
        "subnets: [{id: ann/theirs, vpc: green, cidrs: [10.4.0.0/24]}]",
    )
    .await
    .unwrap();
    refused(
        &mut site.ann,
        "subnets: [{id: ann/theirs, vpc: blue, cidrs: [10.4.0.0/24]}]",
        "subnet ann/theirs: id: conflicts with what another tenant or the operator has",
    )
    .await;
    // A prune takes along one's own, and nothing else.
    let prune = ApplyRequest {
        prune: true,
        ..apply("")
    };
    site.ann.apply(prune).await.unwrap();
    assert_eq!(ids(&mut site.ann).await, [] as [&str; 0]);
    assert_eq!(
        get(&mut site.operator, "port", "green-1")
            .await
            .unwrap()
            .ports
            .len(),
        1
    );
    site.certified.controller.stop().await;
}

#[tokio::test]
async fn two_tenants_agree_on_a_peering_and_neither_speaks_for_the_other() {
    let mut site = Site::start().await;
    // Whether the other VPC exists is not told.
    applied(
        &mut site.ann,
        "peerings: [{id: ann/q, requester: blue, accepter: nowhere}]",
    )
    .await
    .unwrap();
    applied(
        &mut site.ann,
        "peerings: [{id: ann/p, requester: blue, accepter: green}]",
    )
    .await
    .unwrap();
    assert_eq!(states(&mut site.ben).await, ["connecting", "accepting"]);
    refused(
        &mut site.ben,
        "peerings: [{id: ben/r, requester: blue, accepter: green}]",
        "peering ben/r: requester: there is no vpc 'blue'",
    )
    .await;
    let said = refusal(act(&mut site.ann, PeeringAction::Accept, "").await).1;
    assert_eq!(
        said,
        "peering ann/p: vpc: only the accepter accepts or rejects a peering"
    );
    let said = refusal(act(&mut site.ann, PeeringAction::Accept, "green").await).1;
    assert_eq!(said, "peering ann/p: vpc: 'green' is not yours");
    act(&mut site.ben, PeeringAction::Accept, "").await.unwrap();
    assert_eq!(states(&mut site.ann).await, ["active", "active"]);
    act(&mut site.ann, PeeringAction::Freeze, "").await.unwrap();
    // The one host of both is not attached: nothing is promised for it.
    assert_eq!(states(&mut site.ben).await, ["freezing", "active"]);
    act(&mut site.ann, PeeringAction::Activate, "")
        .await
        .unwrap();

    // Agreed, their groups may be named; what clashes with the other's subnets is refused without a word of them.
    applied(
        &mut site.ann,
        "security_groups: [{id: ann/g, vpc: blue, rules: [{direction: ingress, remote_group: green-web}]}]",
    )
    .await
    .unwrap();
    refused(
        &mut site.ann,
        "subnets: [{id: ann/wide, vpc: blue, cidrs: [10.0.2.128/25]}]",
        "peering ann/p: accepter: conflicts with what another tenant or the operator has",
    )
    .await;
    // Either may end it.
    delete(&mut site.ben, "peering", "ann/p").await.unwrap();
    let gone = async |client: &mut Client| states(client).await == ["deleted", "deleted"];
    assert!(gone(&mut site.ann).await, "ann's group still names green's");
    delete(&mut site.ann, "security_group", "ann/g")
        .await
        .unwrap();
    let left = get(&mut site.ann, "peering", "ann/p").await;
    assert_eq!(refusal(left).0, Code::NotFound);
    site.certified.controller.stop().await;
}

#[tokio::test]
async fn a_quota_bounds_what_a_tenant_has() {
    let mut site = Site::start().await;
    let quota = "quotas: [{id: ann/vpc, tenant: ann, kind: vpc, limit: 2}]";
    applied(&mut site.operator, quota).await.unwrap();
    assert_eq!(
        get(&mut site.ann, "quota", "ann/vpc").await.unwrap().quotas[0].limit,
        2
    );
    assert_eq!(
        refusal(get(&mut site.ben, "quota", "ann/vpc").await).0,
        Code::NotFound
    );
    applied(&mut site.ann, "vpcs: [{id: ann/1, tenant: ann}]")
        .await
        .unwrap();
    let said =
        "quota ann/vpc: limit: tenant 'ann' would have 3 objects of kind vpc, and may have 2";
    refused(&mut site.ann, "vpcs: [{id: ann/2, tenant: ann}]", said).await;
    refused(
        &mut site.operator,
        "vpcs: [{id: two, vni: 77, tenant: ann}]",
        said,
    )
    .await;
    // Ben's default is another matter, and so is what has no tenant.
    let many = |prefix: &str, tenant: &str, count: u32| {
        let vpcs = (0..count).map(|n| format!("{{id: {prefix}{n}, tenant: \"{tenant}\"}}"));
        format!("vpcs: [{}]", vpcs.collect::<Vec<_>>().join(", "))
    };
    applied(&mut site.ben, &many("ben/", "ben", 15))
        .await
        .unwrap();
    let said =
        "quota ben/vpc: limit: tenant 'ben' would have 17 objects of kind vpc, and may have 16";
    refused(
        &mut site.ben,
        "vpcs: [{id: ben/one-more, tenant: ben}]",
        said,
    )
    .await;
    applied(&mut site.operator, &many("op", "", 40))
        .await
        .unwrap();
    for (text, expected) in [
        (
            "quotas: [{id: ann/cow, tenant: ann, kind: cow, limit: 2}]",
            "quota ann/cow: kind: 'cow' is none of vpc, subnet, route_table, network_acl, prefix_list, security_group, port, peering, elastic_ip, nat_gateway, load_balancer, dns_zone",
        ),
        (
            "quotas: [{id: x, tenant: ann, kind: port, limit: 2}]",
            "quota x: id: is the tenant and the kind, as in ann/vpc",
        ),
        (
            "quotas: [{id: ann/vpc, tenant: ann, kind: vpc, limit: 1}]",
            "quota ann/vpc: limit: tenant 'ann' would have 2 objects of kind vpc, and may have 1",
        ),
    ] {
        refused(&mut site.operator, text, expected).await;
    }
    site.certified.controller.stop().await;
}

/// "inet" is every tenant's, "bens" is ben's.
const OUTSIDE: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1], physical_networks: [physnet1]}]
external_networks:
  - {id: inet, physical_network: physnet1, vlan: 5, prefixes: [203.0.113.0/24], gateways: [203.0.113.1], gateway_hosts: [h1]}
  - {id: bens, tenant: ben, physical_network: physnet1, vlan: 6, prefixes: [198.51.100.0/24], gateway_hosts: [h1]}
"#;

#[tokio::test]
async fn a_tenant_reads_the_operators_external_networks_without_where_they_are() {
    let mut site = Site::start().await;
    applied(&mut site.operator, OUTSIDE).await.unwrap();
    for client in [&mut site.ann, &mut site.reader] {
        let seen = get(client, "external_network", "inet").await.unwrap();
        let [inet] = &seen.external_networks[..] else {
            panic!("{seen:?}")
        };
        assert_eq!(inet.prefixes, ["203.0.113.0/24"]);
        assert_eq!(inet.gateways, ["203.0.113.1"]);
        assert!(inet.gateway_hosts.is_empty() && inet.physical_network.is_empty());
        assert_eq!(inet.vlan, 0);
        let replies = list(client, "external_network", "").await;
        let listed: Vec<_> = replies
            .into_iter()
            .flat_map(|reply| reply.objects.unwrap_or_default().external_networks)
            .collect();
        assert_eq!(&listed, &seen.external_networks);
    }
    let bens = get(&mut site.ann, "external_network", "bens").await;
    assert_eq!(refusal(bens).0, Code::NotFound);
    let own = get(&mut site.ben, "external_network", "bens")
        .await
        .unwrap();
    assert!(own.external_networks[0].gateway_hosts.is_empty());
    let full = get(&mut site.operator, "external_network", "inet")
        .await
        .unwrap();
    assert_eq!(full.external_networks[0].gateway_hosts, ["h1"]);
    // Made by the operator alone, also for a tenant.
    let network = "external_networks: [{id: ann/n, tenant: ann, physical_network: physnet1, vlan: 9, prefixes: [192.0.2.128/25]}]";
    refused(
        &mut site.ann,
        network,
        "external_network ann/n: is the operator's",
    )
    .await;
    for (client, id) in [(&mut site.ann, "inet"), (&mut site.ben, "bens")] {
        let said = refusal(delete(client, "external_network", id).await);
        assert_eq!(said.0, Code::NotFound, "{id}");
    }
    // Whose it is stays.
    refused(
        &mut site.operator,
        &OUTSIDE.replace("tenant: ben", "tenant: ann"),
        "external_network bens: tenant: cannot be changed; delete it and create it again",
    )
    .await;
    site.certified.controller.stop().await;
}

#[tokio::test]
async fn a_tenant_has_elastic_ips_and_nat_gateways_of_its_own() {
    let mut site = Site::start().await;
    applied(&mut site.operator, OUTSIDE).await.unwrap();
    let elastic = |id: &str, tenant: &str, network: &str, address: &str, port: &str| {
        format!(
            "elastic_ips: [{{id: {id}, tenant: {tenant}, external_network: {network}, address: {address}, port: {port}}}]"
        )
    };
    let nat = |id: &str, vpc: &str, address: &str| {
        format!(
            "nat_gateways: [{{id: {id}, vpc: {vpc}, external_network: inet, addresses: [{address}]}}]"
        )
    };
    let own = elastic("ann/e", "ann", "inet", "203.0.113.11", "blue-1");
    applied(&mut site.ann, &own).await.unwrap();
    applied(&mut site.ann, &nat("ann/nat", "blue", "203.0.113.20"))
        .await
        .unwrap();
    let routed = "route_tables: [{id: ann/t, vpc: blue, routes: [{prefix: 0.0.0.0/0, nat: ann/nat}, {prefix: 8.8.8.0/24, external: inet}]}]";
    applied(&mut site.ann, routed).await.unwrap();
    // Of the VPC that its port is in.
    for (vpc, count) in [("blue", 1), ("own", 0)] {
        let listed = list(&mut site.ann, "elastic_ip", vpc).await;
        let listed: usize = listed
            .into_iter()
            .map(|reply| reply.objects.unwrap_or_default().elastic_ips.len())
            .sum();
        assert_eq!(listed, count, "{vpc}");
    }
    for (kind, id) in [("elastic_ip", "ann/e"), ("nat_gateway", "ann/nat")] {
        assert!(get(&mut site.reader, kind, id).await.is_ok(), "{id}");
        let there = refusal(get(&mut site.ben, kind, id).await);
        assert_eq!(there.0, Code::NotFound, "{id}");
    }
    for (text, expected) in [
        (
            elastic("ann/x", "ben", "inet", "203.0.113.12", "''"),
            "elastic_ip ann/x: tenant: is your own",
        ),
        (
            elastic("ann/x", "''", "inet", "203.0.113.12", "''"),
            "elastic_ip ann/x: tenant: is your own",
        ),
        // Another's is as if it were not there.
        (
            elastic("ann/x", "ann", "inet", "203.0.113.12", "green-1"),
            "elastic_ip ann/x: port: there is no port 'green-1'",
        ),
        (
            elastic("ann/x", "ann", "bens", "198.51.100.12", "''"),
            "elastic_ip ann/x: external_network: there is no external_network 'bens'",
        ),
        (
            nat("ann/x", "green", "203.0.113.12"),
            "nat_gateway ann/x: vpc: there is no vpc 'green'",
        ),
        (
            "route_tables: [{id: ann/u, vpc: blue, routes: [{prefix: 0.0.0.0/0, external: bens}]}]"
                .to_owned(),
            "route_table ann/u: routes[0].external: there is no external_network 'bens'",
        ),
        (
            elastic("ann/x", "ann", "inet", "203.0.113.1", "''"),
            "elastic_ip ann/x: address: 203.0.113.1 is the gateway of external network 'inet'",
        ),
    ] {
        refused(&mut site.ann, &text, expected).await;
    }
    // What it may send, and have of the gateway hosts' tables, the operator says.
    let limited = elastic("ann/e", "ann", "inet", "203.0.113.11", "blue-1")
        .replace("}]", ", limits: {egress: {bits_per_second: 10000000}}}]");
    refused(
        &mut site.ann,
        &limited,
        "elastic_ip ann/e: limits: only the operator sets it",
    )
    .await;
    applied(&mut site.operator, &limited).await.unwrap();
    refused(
        &mut site.ann,
        &own,
        "elastic_ip ann/e: limits: only the operator sets it",
    )
    .await;
    applied(&mut site.ann, &limited).await.unwrap();
    let wide =
        nat("ann/nat", "blue", "203.0.113.20").replace("}]", ", limits: {mappings: 1000000}}]");
    refused(
        &mut site.ann,
        &wide,
        "nat_gateway ann/nat: limits: only the operator sets it",
    )
    .await;
    // The operator binds what is of one tenant to nobody else's port.
    refused(
        &mut site.operator,
        &elastic("op", "ann", "inet", "203.0.113.12", "green-1"),
        "elastic_ip op: port: port 'green-1' belongs to tenant 'ben', the elastic IP to tenant 'ann'",
    )
    .await;
    // A port that has one stays.
    let said = refusal(delete(&mut site.ann, "port", "blue-1").await).1;
    assert_eq!(
        said,
        "still in use:\nelastic_ip ann/e: port: there is no port 'blue-1'"
    );
    site.certified.controller.stop().await;
}

/// That it is taken is told, whoever's name comes first; not by whom.
/// What has ports is used for nothing else: a tenant does not take the operator's networks for itself.
#[tokio::test]
async fn a_tenant_puts_subnets_on_its_own_networks_alone() {
    let mut site = Site::start().await;
    applied(&mut site.operator, OUTSIDE).await.unwrap();
    let wired = |tenant: &str, network: &str| {
        format!(
            "vpcs: [{{id: {tenant}/w, tenant: {tenant}}}]\nsubnets: [{{id: {tenant}/lan, vpc: {tenant}/w, cidrs: [10.9.0.0/24], external_network: {network}}}]"
        )
    };
    refused(
        &mut site.ann,
        &wired("ann", "inet"),
        "subnet ann/lan: external_network: only the operator puts a subnet on a network that is not your own",
    )
    .await;
    refused(
        &mut site.ann,
        &wired("ann", "bens"),
        "subnet ann/lan: external_network: only the operator puts a subnet on a network that is not your own",
    )
    .await;
    applied(&mut site.ben, &wired("ben", "bens")).await.unwrap();
    // The operator gives ann a network, where she may change the subnet.
    applied(&mut site.operator, &wired("ann", "inet"))
        .await
        .unwrap();
    let again = wired("ann", "inet").replace("10.9.0.0/24]", "10.9.0.0/24], gateways: [10.9.0.7]");
    let again = again.lines().last().unwrap().to_owned();
    applied(&mut site.ann, &again).await.unwrap();
    site.certified.controller.stop().await;
}

#[tokio::test]
async fn an_address_that_another_tenant_has_is_taken() {
    let mut site = Site::start().await;
    applied(&mut site.operator, OUTSIDE).await.unwrap();
    let elastic = |tenant: &str, address: &str| {
        format!(
            "elastic_ips: [{{id: {tenant}/e, tenant: {tenant}, external_network: inet, address: {address}}}]"
        )
    };
    let nat = |tenant: &str, vpc: &str, address: &str| {
        format!(
            "nat_gateways: [{{id: {tenant}/n, vpc: {vpc}, external_network: inet, addresses: [203.0.113.99, {address}]}}]"
        )
    };
    applied(&mut site.ann, &elastic("ann", "203.0.113.11"))
        .await
        .unwrap();
    applied(&mut site.ben, &elastic("ben", "203.0.113.12"))
        .await
        .unwrap();
    let taken = |what: &str, address: &str| format!("{what}: {address} is taken");
    refused(
        &mut site.ben,
        &elastic("ben", "203.0.113.11"),
        &taken("elastic_ip ben/e: address", "203.0.113.11"),
    )
    .await;
    refused(
        &mut site.ann,
        &elastic("ann", "203.0.113.12"),
        &taken("elastic_ip ann/e: address", "203.0.113.12"),
    )
    .await;
    refused(
        &mut site.ben,
        &nat("ben", "green", "203.0.113.11"),
        &taken("nat_gateway ben/n: addresses[1]", "203.0.113.11"),
    )
    .await;
    // One's own is named.
    refused(
        &mut site.ann,
        &nat("ann", "blue", "203.0.113.11"),
        "nat_gateway ann/n: addresses[1]: 203.0.113.11 is already used by elastic_ip 'ann/e'",
    )
    .await;
    site.certified.controller.stop().await;
}

#[tokio::test]
async fn a_quota_bounds_the_elastic_ips_of_a_tenant_and_its_nat_gateways() {
    let mut site = Site::start().await;
    applied(&mut site.operator, OUTSIDE).await.unwrap();
    let elastic = |numbers: std::ops::Range<u32>| {
        let all = numbers.map(|n| {
            format!(
                "{{id: ann/e{n}, tenant: ann, external_network: inet, address: 203.0.113.{}}}",
                n + 10
            )
        });
        format!("elastic_ips: [{}]", all.collect::<Vec<_>>().join(", "))
    };
    applied(&mut site.ann, &elastic(0..20)).await.unwrap();
    refused(
        &mut site.ann,
        &elastic(20..21),
        "quota ann/elastic_ip: limit: tenant 'ann' would have 21 objects of kind elastic_ip, and may have 20",
    )
    .await;
    let quotas = "quotas: [{id: ann/elastic_ip, tenant: ann, kind: elastic_ip, limit: 21}, {id: ann/nat_gateway, tenant: ann, kind: nat_gateway, limit: 0}]";
    applied(&mut site.operator, quotas).await.unwrap();
    applied(&mut site.ann, &elastic(20..21)).await.unwrap();
    refused(
        &mut site.ann,
        "nat_gateways: [{id: ann/n, vpc: blue, external_network: inet, addresses: [203.0.113.99]}]",
        "quota ann/nat_gateway: limit: tenant 'ann' would have 1 objects of kind nat_gateway, and may have 0",
    )
    .await;
    site.certified.controller.stop().await;
}

#[tokio::test]
async fn a_tenants_load_balancers_are_those_of_its_vpcs() {
    let mut site = Site::start().await;
    let balancer = |id: &str, vpc: &str, address: &str, member: &str| {
        format!(
            "load_balancers: [{{id: {id}, vpc: {vpc}, addresses: [{address}], listeners: [{{protocol: tcp, port_min: 80, members: [{{{member}}}]}}]}}]"
        )
    };
    let own = balancer("ann/lb", "blue", "10.0.1.200", "port: blue-1");
    applied(&mut site.ann, &own).await.unwrap();
    let bens = balancer("ben/lb", "green", "10.0.2.200", "address: 10.0.2.11");
    applied(&mut site.ben, &bens).await.unwrap();
    for (id, client) in [("ann/lb", &mut site.reader), ("ben/lb", &mut site.ben)] {
        let listed = ids(client).await;
        let ours = listed.iter().filter(|it| it.starts_with("load_balancer "));
        assert_eq!(ours.collect::<Vec<_>>(), [&format!("load_balancer {id}")]);
    }
    let there = refusal(get(&mut site.ann, "load_balancer", "ben/lb").await);
    assert_eq!(there.0, Code::NotFound);
    let gone = refusal(delete(&mut site.ann, "load_balancer", "ben/lb").await);
    assert_eq!(gone.0, Code::NotFound);
    let at = "load_balancer ann/x: listeners[0].members[0]";
    for (text, expected) in [
        (
            balancer("ben/x", "blue", "10.0.1.201", "port: blue-1"),
            "load_balancer ben/x: id: begins with 'ann/'".to_owned(),
        ),
        (
            balancer("ann/x", "green", "10.0.2.201", "port: blue-1"),
            "load_balancer ann/x: vpc: there is no vpc 'green'".to_owned(),
        ),
        // Another's port and address are as if they were not there.
        (
            balancer("ann/x", "blue", "10.0.1.201", "port: green-1"),
            format!("{at}.port: there is no port 'green-1'"),
        ),
        (
            balancer("ann/x", "blue", "10.0.1.201", "address: 10.0.2.11"),
            format!("{at}.address: 10.0.2.11 is no address of a port of vpc 'blue'"),
        ),
        (
            balancer("ann/x", "blue", "10.0.2.201", "port: blue-1"),
            "load_balancer ann/x: addresses[0]: 10.0.2.201 is in no subnet of vpc 'blue'"
                .to_owned(),
        ),
    ] {
        refused(&mut site.ann, &text, &expected).await;
    }
    let quota = "quotas: [{id: ann/load_balancer, tenant: ann, kind: load_balancer, limit: 1}]";
    applied(&mut site.operator, quota).await.unwrap();
    refused(
        &mut site.ann,
        &balancer("ann/x", "blue", "10.0.1.201", "port: blue-1"),
        "quota ann/load_balancer: limit: tenant 'ann' would have 2 objects of kind load_balancer, and may have 1",
    )
    .await;
    let used = refusal(delete(&mut site.ann, "port", "blue-1").await).1;
    assert_eq!(
        used,
        "still in use:\nload_balancer ann/lb: listeners[0].members[0].port: there is no port 'blue-1'"
    );
    delete(&mut site.ann, "load_balancer", "ann/lb")
        .await
        .unwrap();
    delete(&mut site.ann, "port", "blue-1").await.unwrap();
    site.certified.controller.stop().await;
}

#[tokio::test]
async fn a_tenants_groups_and_lists_are_its_own_in_all_its_vpcs() {
    let mut site = Site::start().await;
    let groups = r#"
prefix_lists: [{id: ann/partners, tenant: ann, prefixes: [198.51.100.0/24]}]
security_groups:
  - {id: ann/app, tenant: ann, rules: [{direction: ingress, remote_prefix_list: ann/partners}]}
  - {id: blue-web, vpc: blue, rules: [{direction: ingress, remote_group: ann/app}]}
"#;
    applied(&mut site.ann, groups).await.unwrap();
    let seen = ids(&mut site.ann).await;
    for own in ["security_group ann/app", "prefix_list ann/partners"] {
        assert!(seen.iter().any(|id| id == own), "{seen:?}");
    }
    let port = r#"
ports: [{id: blue-1, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:01", addresses: [10.0.1.11], security_groups: [ann/app], host: h1, device: {kind: netdev, name: b1}}]
"#;
    applied(&mut site.ann, port).await.unwrap();
    // Whoever else: to read, to use, to make in her name, to delete.
    assert!(
        get(&mut site.ben, "security_group", "ann/app")
            .await
            .is_err()
    );
    let seen = ids(&mut site.ben).await;
    assert!(!seen.iter().any(|id| id.contains("ann/")), "{seen:?}");
    refused(
        &mut site.ben,
        "security_groups: [{id: green-web, vpc: green, rules: [{direction: ingress, remote_group: ann/app}]}]",
        "security_group green-web: rules[0].remote_group: there is no security_group 'ann/app'",
    )
    .await;
    refused(
        &mut site.ben,
        "security_groups: [{id: ben/app, tenant: ann}]",
        "security_group ben/app: tenant: is your own",
    )
    .await;
    assert!(
        delete(&mut site.ben, "security_group", "ann/app")
            .await
            .is_err()
    );
    assert!(
        delete(&mut site.ann, "security_group", "ann/app")
            .await
            .is_err()
    );
    applied(&mut site.reader, groups).await.unwrap_err();
    // They count for her quota.
    let quota = "quotas: [{id: ann/security_group, tenant: ann, kind: security_group, limit: 2}]";
    applied(&mut site.operator, quota).await.unwrap();
    let more = refusal(applied(&mut site.ann, "security_groups: [{id: ann/x, tenant: ann}]").await);
    assert!(
        more.1
            .contains("would have 3 objects of kind security_group"),
        "{more:?}"
    );
}
