//! weftctl against a controller: commands, their output and their errors.

#![allow(clippy::unwrap_used)]

mod support;

use support::{Scene, TOPOLOGY};
use weft_proto::dhcp_option::Code;

#[tokio::test]
async fn a_topology_is_applied_tried_and_pruned() {
    let scene = Scene::empty().await;
    let tried = scene.run_with("apply -f - --dry-run", TOPOLOGY).await.ok();
    assert_eq!(tried, "10 created, 0 updated, 0 deleted; revision 0\n");
    let file = scene.path("topology.yaml");
    std::fs::write(&file, TOPOLOGY).unwrap();
    let words = format!("apply -f {}", file.display());
    let done = scene.run(&words).await.ok();
    assert_eq!(done, "10 created, 0 updated, 0 deleted; revision 1\n");
    let again = scene.run(&format!("{words} -o json")).await.ok();
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["updated"], 0);

    let less = TOPOLOGY.split("  - {id: b2").next().unwrap();
    let pruned = scene.run_with("apply -f - --prune", less).await.ok();
    assert_eq!(pruned, "0 created, 0 updated, 1 deleted; revision 2\n");
}

#[tokio::test]
async fn every_violation_is_a_line_and_the_exit_code_is_1() {
    let scene = Scene::with_topology().await;
    let bad = r#"
vpcs: [{id: red, vni: 1}]
subnets: [{id: red-a, vpc: red, cidrs: [10.0.0.1/24]}]
"#;
    let said = scene.run_with("apply -f -", bad).await.failed(1);
    assert_eq!(
        said,
        "weftctl: subnet red-a: cidrs[0]: '10.0.0.1/24' has host bits set; the prefix is 10.0.0.0/24\n\
         weftctl: vpc red: vni: 1 is already used by vpc 'blue'\n"
    );
    let typo = scene
        .run_with("apply -f -", "vpcs: [{id: x, vnj: 3}]")
        .await
        .failed(1);
    assert!(typo.contains("vnj"), "{typo}");
}

#[tokio::test]
async fn wrong_usage_is_2_and_an_unreachable_controller_is_1() {
    let scene = Scene::empty().await;
    for words in [
        "",
        "vpc",
        "vpc create",
        "subnet create x",
        "vpc create x --vni one",
        "vpc delete",
        "route add main 10.9.0.0/16",
        "sg rule add web --port x",
        "sg rule add web --cidr 10.0.0.0/8 --remote-group web",
        "external-network create inet --prefix 203.0.113.0/24",
        "elastic-ip create e --external-network inet",
        "elastic-ip create e --external-network inet --address 203.0.113.11 --private-address 10.0.0.11",
        "elastic-ip bind e",
        "nat-gateway create n --vpc blue --external-network inet",
        "nat-gateway create n --vpc blue --external-network inet --address 203.0.113.20 --forward tcp:80",
        "load-balancer create lb --vpc blue",
        "dns-zone create z --vpc blue",
        "dns-zone record add z www A",
        "lb listener add lb 80",
        "lb member add lb tcp:80",
        "lb member add lb tcp:80 b1:x",
        "trace",
        "fly",
    ] {
        scene.run(words).await.failed(2);
    }
    let gone = scene
        .run("vpc list --controller unix:/nowhere")
        .await
        .failed(1);
    assert!(gone.contains("cannot reach unix:/nowhere"), "{gone}");
    let gone = scene.run("node status").await.failed(1);
    assert!(gone.contains("cannot reach"), "{gone}");
}

#[tokio::test]
async fn each_kind_is_created_by_flags_listed_shown_and_deleted() {
    let scene = Scene::empty().await;
    for words in [
        "host create h1 --vtep 192.0.2.1 --encapsulation gre --underlay-mtu 9000",
        "vpc create blue --vni 7",
        "route-table create main --vpc blue",
        "acl create edge --vpc blue",
        "sg create web --vpc blue",
        "vpc create ann/lab --tenant ann",
        "sg create ann/app --tenant ann",
        "prefix-list create ann/partners --tenant ann --prefix 198.51.100.0/24",
        "prefix-list create offices --vpc blue --prefix 198.51.100.0/24",
        "subnet create a --vpc blue --cidr 10.0.0.0/24 --cidr fd00::/64 --route-table main --acl edge \
         --dns 192.0.2.53 --domain blue.example --lease-seconds 600 --dhcp-route 10.9.0.0/16=10.0.0.5 --ipv6-mode slaac \
         --dhcp-option ntp-server=192.0.2.1,192.0.2.2 --dhcp6-option bootfile-url=http://[fd00::9]/a?b=c",
        "port create p1 --vpc blue --subnet a --mac 02:00:00:00:00:01 --address 10.0.0.11 --sg web --host h1 --netdev v1 --allow 10.7.0.0/16 \
         --hostname web-1 --dhcp-option 66=10.0.0.9 --dhcp-option mtu= --egress-bits 1000000 --ingress-packets 1000",
    ] {
        scene.run(words).await.ok();
    }
    let ports = scene.run("port list").await.ok();
    assert_eq!(
        ports,
        "ID  VPC   SUBNET  MAC                ADDRESSES  GROUPS  HOST  DEVICE  STATUS\n\
         p1  blue  a       02:00:00:00:00:01  10.0.0.11  web     h1    v1      unknown\n"
    );
    assert!(!scene.run("port list --vpc red").await.ok().contains("p1"));
    let shown = scene.run("subnet show a").await.ok();
    assert!(shown.contains("route_table: main"), "{shown}");
    for line in [
        "- 192.0.2.53",
        "domain: blue.example",
        "lease_seconds: 600",
        "prefix: 10.9.0.0/16",
        "next_hop: 10.0.0.5",
        "ipv6_mode: slaac",
        "name: ntp-server",
        "value: 192.0.2.1,192.0.2.2",
        "value: http://[fd00::9]/a?b=c",
        "family: ipv6",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let port = scene.run("port show p1").await.ok();
    for line in [
        "hostname: web-1",
        "value: 10.0.0.9",
        "name: mtu",
        "bits_per_second: 1000000",
        "packets_per_second: 1000",
    ] {
        assert!(port.contains(line), "{line}: {port}");
    }
    assert!(
        !shown.contains("mtu"),
        "what says nothing is left out: {shown}"
    );

    // What is shown can be given back.
    let yaml = scene.run("port show p1 -o yaml").await.ok();
    let used = scene.run("subnet delete a").await.failed(1);
    assert!(
        used.contains("port p1: subnet: there is no subnet 'a'"),
        "{used}"
    );
    scene.run("port delete p1").await.ok();
    scene.run("port show p1").await.failed(1);
    scene.run_with("port create -f -", &yaml).await.ok();
    assert_eq!(scene.run("port show p1 -o yaml").await.ok(), yaml);
    let wrong = scene.run_with("vpc create -f -", &yaml).await.failed(1);
    assert!(wrong.contains("port p1 is no vpc"), "{wrong}");
    let twice = scene.run("vpc create blue --vni 8").await.failed(1);
    assert_eq!(twice, "weftctl: vpc blue already exists\n");
    for words in [
        "port delete p1",
        "subnet delete a",
        "route-table delete main",
        "acl delete edge",
        "sg delete web",
        "prefix-list delete offices",
        "vpc delete blue",
        "host delete h1",
    ] {
        scene.run(words).await.ok();
    }
}

#[tokio::test]
async fn a_subnet_is_put_on_an_external_network_by_flags() {
    let scene = Scene::empty().await;
    for words in [
        "host create h1 --vtep 192.0.2.1 --physical-network physnet1",
        "external-network create office --physical-network physnet1 --vlan 100",
        "vpc create office",
        "subnet create office-a --vpc office --external-network office --cidr 10.20.0.0/24 --gateway 10.20.0.1",
        "port create desk-1 --vpc office --subnet office-a --mac 02:00:00:00:20:11 --address 10.20.0.11 --host h1 --tap desk-1",
    ] {
        scene.run(words).await.ok();
    }
    assert_eq!(
        scene.run("subnet list").await.ok(),
        "ID        VPC     CIDRS         GATEWAYS   ROUTE-TABLE  ACL  MTU  EXTERNAL-NETWORK\n\
         office-a  office  10.20.0.0/24  10.20.0.1  -            -    -    office\n"
    );
    let refused = scene.run("external-network delete office").await.failed(1);
    assert!(
        refused
            .contains("subnet office-a: external_network: there is no external_network 'office'"),
        "{refused}"
    );
}

#[tokio::test]
async fn the_way_out_is_made_listed_bound_and_deleted() {
    let scene = Scene::with_topology().await;
    for words in [
        "host create g1 --vtep 192.0.2.11 --physical-network physnet1 --physical-network physnet2",
        "external-network create inet --physical-network physnet1 --vlan 100 --prefix 203.0.113.0/24 --gateway 203.0.113.1 --gateway-host g1 --mtu 1400",
        "elastic-ip create e --external-network inet --address 203.0.113.11",
        "nat-gateway create nat --vpc blue --external-network inet --address 203.0.113.20 --source 10.0.0.0/24 \
         --filtering endpoint_independent --forward tcp:8080-8090:b1:80 --forward udp:53:10.0.0.12 \
         --udp-timeout 600 --tcp-established-timeout 8000 --tcp-transitory-timeout 250 --icmp-timeout 70 \
         --max-mappings 5000 --max-mappings-per-address 200 --nat64-prefix 2001:db8:64::/96",
        "route add main 0.0.0.0/0 --nat nat",
        "route add main 198.51.100.0/24 --external inet",
    ] {
        scene.run(words).await.ok();
    }
    assert_eq!(
        scene.run("external-network list").await.ok(),
        "ID    TENANT  PHYSICAL-NETWORK  VLAN  PREFIXES        GATEWAYS     GATEWAY-HOSTS\n\
         inet  -       physnet1          100   203.0.113.0/24  203.0.113.1  g1\n"
    );
    assert_eq!(
        scene.run("nat-gateway list").await.ok(),
        "ID   VPC   EXTERNAL-NETWORK  ADDRESSES     SOURCES      FORWARDS\n\
         nat  blue  inet              203.0.113.20  10.0.0.0/24  2\n"
    );
    assert!(
        scene
            .run("host list")
            .await
            .ok()
            .contains("physnet1,physnet2")
    );
    let routes = scene.run("route list main").await.ok();
    for target in ["nat:nat", "external:inet"] {
        assert!(routes.contains(target), "{routes}");
    }
    let shown = scene.run("nat-gateway show nat").await.ok();
    for line in [
        "filtering: endpoint_independent",
        "port_min: 8080",
        "port_max: 8090",
        "port: b1",
        "to_port_min: 80",
        "private_address: 10.0.0.12",
        "tcp_established: 8000",
        "tcp_transitory: 250",
        "udp: 600",
        "icmp: 70",
        "mappings: 5000",
        "mappings_per_address: 200",
        "nat64_prefix: 2001:db8:64::/96",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }

    let bound = async || scene.run("elastic-ip list").await.ok();
    scene
        .run("elastic-ip bind e --port b1 --private-address fd00::1")
        .await
        .failed(1);
    scene.run("elastic-ip bind e --port b1").await.ok();
    assert_eq!(
        bound().await,
        "ID  TENANT  EXTERNAL-NETWORK  ADDRESS       PORT  PRIVATE-ADDRESS\n\
         e   -       inet              203.0.113.11  b1    -\n"
    );
    assert!(
        scene
            .run("elastic-ip list --vpc blue")
            .await
            .ok()
            .contains("203.0.113.11")
    );
    let used = scene.run("port delete b1").await.failed(1);
    assert!(
        used.contains("elastic_ip e: port: there is no port 'b1'"),
        "{used}"
    );
    scene
        .run("elastic-ip bind e --port b2 --private-address 10.0.0.12")
        .await
        .ok();
    assert!(bound().await.contains("b2    10.0.0.12"));
    scene.run("elastic-ip unbind e").await.ok();
    assert!(!bound().await.contains("b2"));
    scene.run("elastic-ip unbind x").await.failed(1);

    let used = scene.run("external-network delete inet").await.failed(1);
    for object in ["elastic_ip e", "nat_gateway nat", "route_table main"] {
        assert!(used.contains(object), "{used}");
    }
    for words in [
        "route delete main 0.0.0.0/0",
        "route delete main 198.51.100.0/24",
        "nat-gateway delete nat",
        "elastic-ip delete e",
        "external-network delete inet",
    ] {
        scene.run(words).await.ok();
    }
}

/// The examples of a section of docs/operations.md: each block, with its language.
fn examples(section: &str) -> Vec<(String, String)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
    let text = std::fs::read_to_string(path).unwrap();
    let from = text.split(&format!("\n## {section}\n")).nth(1).unwrap();
    let section = from.split("\n## ").next().unwrap();
    let blocks = section.split("```").skip(1).step_by(2);
    blocks
        .map(|block| {
            let (language, lines) = block.split_once('\n').unwrap();
            (language.to_owned(), lines.replace("\\\n", " "))
        })
        .collect()
}

#[tokio::test]
async fn the_examples_of_dhcp_work_as_they_are_documented() {
    let scene = Scene::empty().await;
    let vpc = "vpcs: [{id: blue, vni: 1}]";
    scene.run_with("apply -f -", vpc).await.ok();
    let examples = examples("DHCP and router advertisements");
    for (language, text) in &examples {
        assert_eq!(language, "yaml");
        scene.run_with("apply -f -", text).await.ok();
    }
    assert_eq!(examples.len(), 2);
    let shown = scene.run("port show a1").await.ok();
    assert!(shown.contains("value: pxelinux.0"), "{shown}");
}

#[test]
fn every_dhcp_option_that_has_a_name_is_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
    let text = std::fs::read_to_string(path).unwrap();
    for known in weft_proto::dhcp_option::KNOWN {
        let code = match known.code {
            Code::NextServer => "field `siaddr`".to_owned(),
            Code::V4(code) => code.to_string(),
            Code::V6(code) => code.to_string(),
        };
        let names: Vec<String> = known.names.iter().map(|it| format!("`{it}`")).collect();
        let start = format!("\n| {code} | {} | ", names.join(", "));
        let row = text.split(&start).nth(1);
        let source = row.and_then(|row| row.split('|').nth(1)).map(str::trim);
        assert_eq!(source, Some(known.source), "{start}");
    }
}

#[tokio::test]
async fn the_examples_of_the_way_out_work_as_they_are_documented() {
    let scene = Scene::empty().await;
    let blue = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}]
vpcs: [{id: blue, vni: 1}]
subnets: [{id: blue-a, vpc: blue, cidrs: [10.0.1.0/24], route_table: blue-main}]
route_tables: [{id: blue-main, vpc: blue}]
security_groups: [{id: web, vpc: blue}]
ports:
  - {id: web-1, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:01", addresses: [10.0.1.11], security_groups: [web],
     host: h1, device: {kind: netdev, name: w1}}
  - {id: web-2, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:02", addresses: [10.0.1.12], security_groups: [web],
     host: h1, device: {kind: netdev, name: w2}}
"#;
    scene.run_with("apply -f -", blue).await.ok();
    let mut tried = 0;
    for section in ["External networks", "Elastic IPs", "NAT gateways"] {
        for (language, text) in examples(section) {
            match language.as_str() {
                "yaml" => drop(scene.run_with("apply -f -", &text).await.ok()),
                "" => {
                    for line in text.lines() {
                        let words = line.strip_prefix("weftctl ").unwrap();
                        scene.run(words).await.ok();
                        tried += 1;
                    }
                }
                _ => {}
            }
        }
    }
    assert_eq!(tried, 22);
}

#[tokio::test]
async fn the_examples_of_service_chains_work_as_they_are_documented() {
    let scene = Scene::empty().await;
    let blue = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}]
vpcs: [{id: blue, vni: 1}]
subnets:
  - {id: blue-a, vpc: blue, cidrs: [10.0.1.0/24], route_table: blue-main}
  - {id: blue-b, vpc: blue, cidrs: [10.0.2.0/24], route_table: blue-servers}
  - {id: blue-fw, vpc: blue, cidrs: [10.0.3.0/24]}
route_tables: [{id: blue-main, vpc: blue}, {id: blue-servers, vpc: blue}]
ports:
  - {id: fw-1, vpc: blue, subnet: blue-fw, mac: "02:00:00:00:00:01", addresses: [10.0.3.11], host: h1, device: {kind: netdev, name: w1}}
  - {id: fw-2, vpc: blue, subnet: blue-fw, mac: "02:00:00:00:00:02", addresses: [10.0.3.12], host: h1, device: {kind: netdev, name: w2}}
"#;
    scene.run_with("apply -f -", blue).await.ok();
    for (language, text) in examples("Service chains") {
        assert_eq!(language, "");
        for line in text.lines() {
            scene.run(line.strip_prefix("weftctl ").unwrap()).await.ok();
        }
    }
    assert_eq!(
        scene.run("route list").await.ok(),
        "TABLE         VPC   PREFIX       TARGET\n\
         blue-main     blue  10.0.2.0/24  port:fw-1@1, port:fw-2@1\n\
         blue-servers  blue  10.0.1.0/24  port:fw-1@1, port:fw-2@1\n"
    );
    let shown = scene.run("port show fw-2").await.ok();
    assert!(shown.contains("protocol: tcp"), "{shown}");
    scene.run("port health fw-1").await.ok();
    scene.run("port health fw-9").await.failed(1);
    scene.run("port check fw-1 --none").await.ok();
    let shown = scene.run("port show fw-1").await.ok();
    assert!(!shown.contains("health"), "{shown}");
    let refused = scene.run("port check fw-1 --check tcp").await.failed(1);
    assert!(
        refused.contains("port fw-1: health.port: give the port that is asked by tcp"),
        "{refused}"
    );
    let named = scene.run("port delete fw-1").await.failed(1);
    let said = "route_table blue-main: routes[0].ecmp[0].port: there is no port 'fw-1'";
    assert!(named.contains(said), "{named}");
}

#[tokio::test]
async fn routes_are_added_replaced_listed_and_deleted() {
    let scene = Scene::with_topology().await;
    scene
        .run("route add main 10.9.0.0/16 --blackhole")
        .await
        .ok();
    scene.run("route add main 10.9.0.0/16 --port b1").await.ok();
    scene
        .run("route add main 0.0.0.0/0 --ecmp port:b1@3 --ecmp host:h2")
        .await
        .ok();
    scene
        .run("route add main fd01::/64 --host h2 --next-hop-mac 02:00:00:00:00:99")
        .await
        .ok();
    assert_eq!(
        scene.run("route list main").await.ok(),
        "TABLE  VPC   PREFIX       TARGET\n\
         main   blue  10.9.0.0/16  port:b1\n\
         main   blue  0.0.0.0/0    port:b1@3, host:h2@1\n\
         main   blue  fd01::/64    host:h2 via 02:00:00:00:00:99\n"
    );
    let nowhere = scene
        .run("route add main 10.8.0.0/16 --port x")
        .await
        .failed(1);
    assert!(nowhere.contains("there is no port 'x'"), "{nowhere}");
    scene.run("route delete main 0.0.0.0/0").await.ok();
    scene.run("route delete main 0.0.0.0/0").await.failed(1);
    let left: serde_json::Value =
        serde_json::from_str(&scene.run("route list -o json").await.ok()).unwrap();
    let routes = left["route_tables"][0]["routes"].as_array().unwrap();
    assert_eq!(routes.len(), 2);
}

#[tokio::test]
async fn policy_routes_are_added_replaced_listed_and_deleted() {
    let scene = Scene::with_topology().await;
    for words in [
        "route policy add main 200 --source 10.0.0.0/25 --port b1",
        "route policy add main 200 --source 10.0.0.0/25 --ecmp port:b1 --ecmp host:h2",
        "route policy add main 100 --protocol tcp --source-port 1024-65535 --destination-port 443 --dscp 46 --blackhole",
        "route policy add main 50 --destination 10.0.0.0/8 --default-routing",
    ] {
        scene.run(words).await.ok();
    }
    assert_eq!(
        scene.run("route policy list main").await.ok(),
        "TABLE  PRIORITY  MATCH                                                                TARGET\n\
         main   50        destination 10.0.0.0/8                                               default routing\n\
         main   100       protocol tcp, source port 1024-65535, destination port 443, dscp 46  blackhole\n\
         main   200       source 10.0.0.0/25                                                   port:b1@1, host:h2@1\n"
    );
    for (words, wanted) in [
        ("7 --port b1", "set source, destination, protocol or dscp"),
        (
            "7 --protocol icmp --source-port 7 --port b1",
            "only tcp, udp and sctp have ports",
        ),
        ("7 --dscp 64 --port b1", "64 is outside 0 to 63"),
        ("7 --dscp 1 --port x", "there is no port 'x'"),
        ("0 --dscp 1 --port b1", "0 is outside 1 to 32767"),
        (
            "7 --dscp 1 --port b1 --default-routing",
            "exactly one of to and default_routing",
        ),
    ] {
        let refused = scene.run(&format!("route policy add main {words}")).await;
        let refused = refused.failed(1);
        assert!(refused.contains(wanted), "{words}: {refused}");
    }
    scene
        .run("route policy add main 7 --dscp 1")
        .await
        .failed(2);
    scene.run("route policy delete main 100").await.ok();
    scene.run("route policy delete main 100").await.failed(1);
    let left: serde_json::Value =
        serde_json::from_str(&scene.run("route policy list -o json").await.ok()).unwrap();
    let policies = left["route_tables"][0]["policies"].as_array().unwrap();
    assert_eq!(policies.len(), 2);
    // Routes are edited beside them.
    scene
        .run("route add main 10.9.0.0/16 --blackhole")
        .await
        .ok();
    let listed = scene.run("route policy list").await.ok();
    assert_eq!(listed.lines().count(), 3, "{listed}");
}

#[tokio::test]
async fn what_a_port_marks_with_is_set_and_taken_away() {
    let scene = Scene::with_topology().await;
    let marks = async || {
        let shown = scene.run("port show b1 -o json").await.ok();
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        shown["ports"][0]["dscp"].clone()
    };
    assert!(marks().await.is_null());
    scene.run("port dscp b1 46").await.ok();
    assert_eq!(marks().await, 46);
    scene.run("port dscp b1 0").await.ok();
    assert_eq!(marks().await, 0);
    let refused = scene.run("port dscp b1 64").await.failed(1);
    assert!(refused.contains("64 is outside 0 to 63"), "{refused}");
    scene.run("port dscp b1 EF").await.failed(2);
    scene.run("port dscp b1 none").await.ok();
    assert!(marks().await.is_null());
}

#[tokio::test]
async fn a_subport_is_made_by_its_parent_and_vlan() {
    let scene = Scene::with_topology().await;
    let words = "port create sub --vpc blue --subnet blue-a --mac 02:00:00:00:00:77 --address 10.0.0.77 --host h1";
    let made = async |trunk: &str| scene.run(&format!("{words} {trunk}")).await;
    for (trunk, code, said) in [
        ("--trunk b1", 2, "a port and a VLAN, such as vm-1:100"),
        ("--trunk b1:x", 2, "a port and a VLAN"),
        ("--trunk b1:7 --netdev v7", 2, "cannot be used with"),
        ("--trunk b1:4095", 1, "4095 is outside 1 to 4094"),
        ("--trunk x:7", 1, "there is no port 'x'"),
    ] {
        let refused = made(trunk).await.failed(code);
        assert!(refused.contains(said), "{refused}");
    }
    made("--trunk b1:7").await.ok();
    let listed = scene.run("port list").await.ok();
    let line = listed.lines().find(|line| line.starts_with("sub "));
    assert!(line.unwrap().contains("  b1:7  "), "{listed}");
    let used = scene.run("port delete b1").await.failed(1);
    let said = "port sub: trunk.parent: there is no port 'b1'";
    assert!(used.contains(said), "{used}");
    scene.run("port delete sub").await.ok();
}

#[tokio::test]
async fn rules_of_groups_and_acls_are_added_and_deleted() {
    let scene = Scene::with_topology().await;
    let rule = "web --protocol tcp --port 8000-8999 --remote-prefix-list offices";
    scene.run(&format!("sg rule add {rule}")).await.ok();
    scene.run(&format!("sg rule add {rule}")).await.failed(1);
    scene
        .run("sg rule add web --protocol icmp --icmp-type 8 --icmp-code 0")
        .await
        .ok();
    let shown = scene.run("sg show web -o json").await.ok();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let rules = &shown["security_groups"][0]["rules"];
    assert_eq!(rules[0]["port_max"], 8999);
    assert_eq!(rules[1]["icmp_code"], 0, "a zero that matters");
    scene.run(&format!("sg rule delete {rule}")).await.ok();
    scene.run(&format!("sg rule delete {rule}")).await.failed(1);

    scene
        .run("acl rule add edge 100 --action allow --cidr 10.0.0.0/8")
        .await
        .ok();
    scene.run("acl rule add edge 100 --action deny").await.ok();
    scene
        .run("acl rule add edge 100 --action allow --direction egress")
        .await
        .ok();
    let listed = scene.run("acl list").await.ok();
    assert!(listed.contains("edge  blue  2"), "{listed}");
    scene.run("acl rule delete edge 100").await.ok();
    scene.run("acl rule delete edge 100").await.failed(1);
}

#[tokio::test]
async fn records_of_a_zone_come_and_go() {
    let scene = Scene::with_topology().await;
    for words in [
        "vpc create green --dns-domain green.example",
        "dns-zone create apps --vpc blue --domain apps.example --label tier=front",
        "dns-zone record add apps www cname web-1.blue.example",
        "dns-zone record add apps @ A 10.0.0.5 10.0.0.6 --ttl 60",
        "dns-zone record add apps db A 10.0.0.7",
        "dns-zone record add apps DB A 10.0.0.8",
        "dns-zone record remove apps www CNAME",
    ] {
        scene.run(words).await.ok();
    }
    let shown = scene.run("vpc show green").await.ok();
    assert!(shown.contains("domain: green.example"), "{shown}");
    for words in [
        "dns-zone list",
        "dns-zone list -l tier=front --field vpc=blue",
    ] {
        assert_eq!(
            scene.run(words).await.ok(),
            "ID    VPC   DOMAIN        RECORDS\n\
             apps  blue  apps.example  2\n",
            "{words}"
        );
    }
    assert_eq!(
        scene.run("dns-zone record list").await.ok(),
        "ZONE  NAME  TYPE  TTL  SERVING ONLY  DATA\n\
         apps  @     A     60   no            10.0.0.5, 10.0.0.6\n\
         apps  DB    A     300  no            10.0.0.8\n"
    );
    let gone = scene.run("dns-zone record remove apps www CNAME").await;
    assert!(
        gone.failed(1)
            .contains("dns_zone apps has no record www CNAME")
    );
    let wrong = scene.run("dns-zone record add apps x A fd00::1").await;
    let wrong = wrong.failed(1);
    assert!(
        wrong.contains("'fd00::1' is not an IPv4 address"),
        "{wrong}"
    );
    scene.run("dns-zone delete apps").await.ok();
}

#[tokio::test]
async fn listeners_and_members_of_a_load_balancer_come_and_go() {
    let scene = Scene::with_topology().await;
    for words in [
        "load-balancer create web --vpc blue --address 10.0.0.200 --address fd00::200 --label tier=front",
        "lb listener add web tcp:80 --to b1:8080 --to b2:8080",
        "lb listener add web udp:5000-5099 --algorithm round-robin --drop-lost",
        "lb listener add web tcp:443 --affinity source --mode dsr",
        "lb listener add web tcp:81 --algorithm least-connections",
        "lb member add web tcp:443 10.0.0.12",
        "lb member add web udp:5000-5099 b1 --weight 3",
        "lb member drain web tcp:80 b1",
    ] {
        scene.run(words).await.ok();
    }
    for words in [
        "lb list",
        "load-balancer list --vpc blue",
        "lb list -l tier=front --field vpc=blue",
    ] {
        assert_eq!(
            scene.run(words).await.ok(),
            "ID   VPC   ADDRESSES             LISTENERS  MEMBERS\n\
             web  blue  10.0.0.200,fd00::200  4          4\n",
            "{words}"
        );
    }
    assert!(!scene.run("lb list --vpc red").await.ok().contains("web"));
    assert_eq!(
        scene.run("lb listener list").await.ok(),
        "LOAD-BALANCER  LISTENER       MODE  ALGORITHM          AFFINITY    LOST   CHECK  MEMBERS\n\
         web            tcp:80         nat   maglev             five-tuple  reset  -      2\n\
         web            udp:5000-5099  nat   round-robin        -           drop   -      1\n\
         web            tcp:443        dsr   maglev             source      reset  -      1\n\
         web            tcp:81         nat   least-connections  -           reset  -      0\n"
    );
    let check = "lb listener check web tcp:443 --check http --check-path /up --check-fall 3";
    scene.run(check).await.ok();
    let said = scene.run("lb listener list web -o json").await.ok();
    let said = said.replace(' ', "");
    assert!(said.contains(r#""path":"/up""#), "{said}");
    assert!(
        scene
            .run("lb listener list web")
            .await
            .ok()
            .contains("http")
    );
    let bad = scene
        .run("lb listener check web tcp:443 --check icmp --check-port 80")
        .await;
    assert_ne!(bad.code, Some(0));
    // Half of what is to be said is refused before it is asked.
    for words in [
        "lb listener check web tcp:443",
        "lb listener check web tcp:443 --none --check tcp",
    ] {
        assert_ne!(scene.run(words).await.code, Some(0), "{words}");
    }
    scene.run("lb listener check web tcp:443 --none").await.ok();
    assert!(
        !scene
            .run("lb listener list web")
            .await
            .ok()
            .contains("http")
    );
    assert_eq!(
        scene.run("lb member list web").await.ok(),
        "LOAD-BALANCER  LISTENER       MEMBER     WEIGHT  DRAINING\n\
         web            tcp:80         b1:8080    1       yes\n\
         web            tcp:80         b2:8080    1       no\n\
         web            udp:5000-5099  b1         3       no\n\
         web            tcp:443        10.0.0.12  1       no\n"
    );
    let shown = scene.run("lb show web").await.ok();
    for line in ["to_port_min: 8080", "draining: true", "drop_lost: true"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    // The same member again is replaced; with another port it is another.
    scene
        .run("lb member add web tcp:80 b2:8080 --weight 9")
        .await
        .ok();
    scene.run("lb member add web tcp:80 b2:8081").await.ok();
    let members = scene.run("lb member list web").await.ok();
    for row in ["b2:8080    9", "b2:8081    1"] {
        assert!(members.contains(row), "{row}: {members}");
    }
    let several = scene.run("lb member remove web tcp:80 b2").await.failed(1);
    assert!(
        several.contains("has b2 at several ports: say at which, as b2:PORT"),
        "{several}"
    );
    scene.run("lb member remove web tcp:80 b2:8081").await.ok();
    scene.run("lb member remove web tcp:80 b2").await.ok();
    scene.run("lb member undrain web tcp:80 b1").await.ok();
    let members = scene.run("lb member list web").await.ok();
    assert!(members.contains("b1:8080    1       no"), "{members}");
    assert!(!members.contains("b2"), "{members}");

    for (words, told) in [
        (
            "lb listener add web tcp:80",
            "load_balancer web already has a listener tcp:80",
        ),
        (
            "lb listener add web udp:5050",
            "udp 5050 to 5050 overlaps listeners[1]",
        ),
        (
            "lb listener remove web udp:5000",
            "load_balancer web has no listener udp:5000; `weftctl lb listener list web` lists them",
        ),
        (
            "lb member drain web tcp:80 b2",
            "listener tcp:80 of load_balancer web has no member b2; `weftctl lb member list web` lists them",
        ),
        (
            "lb member add web tcp:80 b9",
            "listeners[0].members[1].port: there is no port 'b9'",
        ),
        (
            "lb member add web tcp:80 b2 --weight 257",
            "listeners[0].members[1].weight: 257 exceeds 256",
        ),
        (
            "lb member add x tcp:80 b2",
            "load_balancer x does not exist",
        ),
        (
            "port delete b1",
            "load_balancer web: listeners[0].members[0].port: there is no port 'b1'",
        ),
    ] {
        let said = scene.run(words).await.failed(1);
        assert!(said.contains(told), "{words}: {said}");
    }
    scene.run("lb listener remove web udp:5000-5099").await.ok();
    scene.run("lb listener delete web tcp:80").await.ok();
    scene.run("port delete b1").await.ok();
    scene.run("lb delete web").await.ok();
}

#[tokio::test]
async fn the_examples_of_load_balancers_work_as_they_are_documented() {
    let scene = Scene::empty().await;
    let blue = r#"
hosts: [{id: h1, vteps: [192.0.2.1], physical_networks: [physnet1]}]
external_networks: [{id: internet, physical_network: physnet1, prefixes: [203.0.113.0/24], gateway_hosts: [h1]}]
vpcs: [{id: blue, vni: 1}]
subnets: [{id: blue-a, vpc: blue, cidrs: [10.0.1.0/24, "fd00:1::/64"]}]
ports:
  - {id: web-1, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:01", addresses: [10.0.1.11], host: h1, device: {kind: netdev, name: w1}}
  - {id: web-2, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:02", addresses: [10.0.1.12], host: h1, device: {kind: netdev, name: w2}}
  - {id: web-3, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:03", addresses: [10.0.1.13], host: h1, device: {kind: netdev, name: w3}}
"#;
    scene.run_with("apply -f -", blue).await.ok();
    let mut tried = 0;
    for (language, text) in examples("Load balancers") {
        match language.as_str() {
            "yaml" => {
                // What the commands made is what the file says.
                let said = scene.run_with("apply -f -", &text).await.ok();
                assert!(said.starts_with("0 created, 0 updated"), "{said}");
            }
            "" => {
                for line in text.lines() {
                    let words = line.strip_prefix("weftctl ").unwrap();
                    scene.run(words).await.ok();
                    tried += 1;
                }
            }
            _ => {}
        }
    }
    assert_eq!(tried, 15);
}

#[tokio::test]
async fn the_examples_of_policy_routes_work_as_they_are_documented() {
    let scene = Scene::empty().await;
    let blue = r#"
hosts: [{id: h1, vteps: [192.0.2.1], physical_networks: [physnet1]}]
vpcs: [{id: blue, vni: 1}]
subnets: [{id: blue-a, vpc: blue, cidrs: [10.0.1.0/24], route_table: blue-main}]
route_tables: [{id: blue-main, vpc: blue}]
external_networks: [{id: internet, physical_network: physnet1, prefixes: [203.0.113.0/24], gateways: [203.0.113.1], gateway_hosts: [h1]}]
nat_gateways: [{id: blue-nat, vpc: blue, external_network: internet, addresses: [203.0.113.5]}]
ports:
  - {id: proxy, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:01", addresses: [10.0.1.200], host: h1, device: {kind: netdev, name: w1}}
"#;
    scene.run_with("apply -f -", blue).await.ok();
    let mut tried = 0;
    for (language, text) in examples("Policy routes") {
        match language.as_str() {
            "yaml" => {
                // What the commands made is what the file says.
                let said = scene.run_with("apply -f -", &text).await.ok();
                assert!(said.starts_with("0 created, 0 updated"), "{said}");
            }
            _ => {
                for line in text.lines() {
                    let words = line.strip_prefix("weftctl ").unwrap();
                    scene.run(words).await.ok();
                    tried += 1;
                }
            }
        }
    }
    assert_eq!(tried, 4);
}

#[tokio::test]
async fn edits_at_the_same_time_all_take_effect() {
    let scene = Scene::with_topology().await;
    let words: Vec<_> = (0..6)
        .map(|n| format!("route add main 10.{n}.0.0/16 --blackhole"))
        .collect();
    let (a, b, c, d, e, f) = tokio::join!(
        scene.run(&words[0]),
        scene.run(&words[1]),
        scene.run(&words[2]),
        scene.run(&words[3]),
        scene.run(&words[4]),
        scene.run(&words[5]),
    );
    for ran in [a, b, c, d, e, f] {
        ran.ok();
    }
    let listed = scene.run("route list main").await.ok();
    assert_eq!(listed.lines().count(), 7, "{listed}");
}

#[tokio::test]
async fn hosts_shows_who_is_attached() {
    let scene = Scene::with_topology().await;
    let table = scene.run("hosts").await.ok();
    let h1 = table.lines().nth(1).unwrap();
    let cells: Vec<_> = h1.split_whitespace().collect();
    assert_eq!(
        cells,
        ["h1", "no", "0", "0", "1", "0", "us", "-", "-"],
        "{table}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&scene.run("hosts -o json").await.ok()).unwrap();
    assert_eq!(json["hosts"][1]["host"], "h2");
}

#[tokio::test]
async fn hosts_can_be_waited_for() {
    let scene = Scene::with_topology().await;
    // Nobody is attached, so nobody is behind.
    scene.run("hosts --wait").await.ok();
    let address = format!("unix:{}", scene.path("controller").display());
    let channel = weft_process::transport::connect(&address, None)
        .await
        .unwrap();
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let hello = weft_proto::v1::from_host::Message::Hello(weft_proto::v1::Hello {
        host: "h1".into(),
        protocol: 1,
        ..weft_proto::v1::Hello::default()
    });
    let hello = weft_proto::v1::FromHost {
        message: Some(hello),
    };
    sender.send(hello).await.unwrap();
    let outbound = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut client = weft_process::services::host_control_client::HostControlClient::new(channel);
    let mut stream = client.attach(outbound).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    let Some(weft_proto::v1::to_host::Message::Welcome(welcome)) = first.message else {
        panic!("no Welcome")
    };
    let session = welcome.session;
    // It is there and acknowledges nothing.
    let late = scene.run("hosts --wait 1").await.failed(1);
    assert_eq!(late, "weftctl: hosts that are not at revision 1 yet: h1\n");
    assert_eq!(scene.run("vpc status").await.ok().lines().count(), 1);

    // It acknowledges all but one VPC.
    let sent = stream.message().await.unwrap().unwrap();
    let Some(weft_proto::v1::to_host::Message::Full(full)) = sent.message else {
        panic!("no state came")
    };
    let ack = weft_proto::v1::from_host::Message::Ack(weft_proto::v1::Ack {
        session,
        revision: full.revision,
        digest: full.digest,
        held_back: vec![weft_proto::v1::HeldBack {
            object: Some(weft_proto::v1::ObjectKey {
                kind: "vpc".into(),
                id: "blue".into(),
            }),
            in_force_revision: 0,
            violations: vec![weft_proto::v1::Violation {
                rule: "no room".into(),
                ..weft_proto::v1::Violation::default()
            }],
        }],
        ..weft_proto::v1::Ack::default()
    });
    let ack = weft_proto::v1::FromHost { message: Some(ack) };
    sender.send(ack).await.unwrap();
    let held = scene.run("hosts --wait").await.failed(1);
    assert_eq!(
        held,
        "weftctl: host h1: vpc blue stays behind (absent): no room\n"
    );
    let table = scene.run("hosts").await.ok();
    let h1 = table.lines().nth(1).unwrap();
    assert!(
        h1.ends_with("vpc blue stays behind (absent): no room"),
        "{table}"
    );
    let table = scene.run("vpc status blue").await.ok();
    let cells: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        cells,
        ["blue", "h1", "absent", "1", "no", "room"],
        "{table}"
    );
    let shown = scene.run("vpc show blue").await;
    assert_eq!(
        shown.err,
        "weftctl: vpc blue stays behind on host h1 (absent): no room\n"
    );
    let shown = scene.run("host show h1").await;
    assert_eq!(
        shown.err,
        "weftctl: host h1: vpc blue stays behind (absent): no room\n"
    );
}

#[tokio::test]
async fn objects_are_labelled_and_selected() {
    let scene = Scene::with_topology().await;
    let words = "port create b3 --vpc blue --subnet blue-a --mac 02:00:00:00:00:03 --host h2 \
                 --netdev b3 --label app=web --label env=";
    scene.run(words).await.ok();
    let done = scene
        .run("label port b1 app=web example.com/tier=front")
        .await;
    assert_eq!(done.ok(), "0 created, 1 updated, 0 deleted; revision 3\n");
    scene.run("label vpc blue team=a").await.ok();
    let first = |text: String| -> Vec<String> {
        let lines = text.lines().skip(1);
        lines
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect()
    };
    for (words, expected) in [
        ("port list -l app=web", &["b1", "b3"][..]),
        ("port list -l app=web --field host=h1", &["b1"]),
        ("port list --selector app,!env", &["b1"]),
        ("port list -l app!=web", &["b2"]),
        ("port list --field host=h2 --field name!=b3", &["b2"]),
        ("vpc list -l team", &["blue"]),
    ] {
        let listed = scene.run(words).await.ok();
        assert_eq!(first(listed), expected, "{words}");
    }
    let shown = scene.run("port list -l env --show-labels").await.ok();
    assert!(shown.lines().next().unwrap().ends_with("LABELS"), "{shown}");
    assert!(shown.trim_end().ends_with("app=web,env="), "{shown}");
    let shown = scene.run("port show b3").await.ok();
    assert!(
        shown.contains("labels:\n    app: web\n    env: ''\n"),
        "{shown}"
    );
    let done = scene.run("label port b1 app- other-").await.ok();
    assert_eq!(done, "0 created, 1 updated, 0 deleted; revision 5\n");
    let diff = scene.run("diff 5").await.ok();
    assert_eq!(diff, "port b1\n  labels.app: web -> -\n");
    scene.run("undo 5").await.ok();
    let listed = scene.run("port list -l app=web").await.ok();
    assert_eq!(first(listed), ["b1", "b3"]);
    let refused = scene.run("label port b1 -- app=a/b").await.failed(1);
    assert!(
        refused.starts_with("weftctl: port b1: labels[app]: a value"),
        "{refused}"
    );
    let refused = scene.run("port list -l app=(").await.failed(1);
    assert!(
        refused.starts_with("weftctl: label_selector: has a"),
        "{refused}"
    );
    scene.run("label port b1 app").await.failed(2);
    scene.run("label prot b1 app=web").await.failed(2);
}

#[tokio::test]
async fn ports_are_listed_with_what_they_are_like_and_waited_for() {
    let scene = Scene::with_topology().await;
    let words = "port create b3 --vpc blue --subnet blue-a --mac 02:00:00:00:00:03 --label app=web";
    scene.run(words).await.ok();
    let listed = scene.run("port list --show-labels").await.ok();
    let ends: Vec<Vec<&str>> = listed
        .lines()
        .map(|line| line.split_whitespace().rev().take(2).collect())
        .collect();
    let expected = [
        ["LABELS", "STATUS"],
        ["-", "unknown"],
        ["-", "unknown"],
        ["app=web", "unbound"],
    ];
    assert_eq!(ends, expected, "{listed}");
    let status = scene.run("port status").await.ok();
    let lines: Vec<&str> = status.lines().collect();
    assert_eq!(lines[0], "PORT  VPC   HOST  STATUS   SINCE  REASON");
    let nowhere = "its host is not attached to this controller";
    assert_eq!(
        lines[1],
        format!("b1    blue  h1    unknown  -      {nowhere}")
    );
    assert_eq!(
        lines[3],
        "b3    blue  -     unbound  -      it is on no host"
    );
    let one = scene.run("port status b3 -o json").await.ok();
    let one: serde_json::Value = serde_json::from_str(&one).unwrap();
    assert_eq!(one[0]["state"], "unbound");
    let selected = scene.run("port status -l app=web --vpc blue").await.ok();
    assert_eq!(selected.lines().count(), 2, "{selected}");
    let missing = scene.run("port status nobody").await.failed(1);
    assert!(missing.contains("port nobody does not exist"), "{missing}");
    let late = scene
        .run("port wait b1 --up --timeout 200ms")
        .await
        .failed(1);
    let told = format!("weftctl: port b1 is unknown after 200ms, and not up: {nowhere}\n");
    assert_eq!(late, told);
    let missing = scene.run("port wait nobody --up").await.failed(1);
    assert_eq!(missing, "weftctl: port nobody does not exist\n");
    scene.run("port wait b1").await.failed(2);
    scene.run("port wait b1 --up --timeout 1h").await.failed(2);
}
