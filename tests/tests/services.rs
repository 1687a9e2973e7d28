//! b003 and b004: what clients that are not ours make of the gateway's answers: busybox's DHCP client, and the kernel's IPv6.

#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use weft_proto::v1::{Dhcp, DhcpRoute, Objects};
use weft_tests::{Lab, Namespace, Site, SiteOptions, tenants, wait_until};

const SOON: Duration = Duration::from_secs(20);

/// A site whose subnet blue-a tells its guests this.
fn site(dhcp: Dhcp, change: impl FnOnce(&mut Objects)) -> Site {
    let mut objects = tenants(2).unwrap();
    for subnet in &mut objects.subnets {
        if subnet.id == "blue-a" {
            subnet.dhcp = Some(dhcp.clone());
        }
    }
    change(&mut objects);
    Site::start(Lab::new().unwrap(), &objects, &SiteOptions::default()).unwrap()
}

fn blue_1(site: &Site) -> &Namespace {
    &site.workloads["blue-1"].namespace
}

#[test]
fn b004_a_dhcp_client_is_leased_its_address() {
    let dhcp = Dhcp {
        dns_servers: vec!["192.0.2.53".into()],
        domain: "blue.example".into(),
        lease_seconds: 600,
        routes: vec![DhcpRoute {
            prefix: "172.16.0.0/12".into(),
            next_hop: "10.0.1.12".into(),
        }],
        ..Dhcp::default()
    };
    let site = site(dhcp, |objects| {
        let port = objects.ports.iter_mut().find(|port| port.id == "blue-1");
        port.unwrap().hostname = "web-1".into();
    });
    let workload = blue_1(&site);
    workload.ip("-4 address flush dev eth0").unwrap();
    // The client tells its script what it was told; the script keeps that.
    let stem = std::env::temp_dir().join(workload.name());
    let (script, lease) = (stem.with_extension("sh"), stem.with_extension("lease"));
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = bound ] && set >{}\nexit 0\n",
        lease.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut line = vec!["busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q"];
    line.extend(["-t", "10", "-T", "1", "-O", "staticroutes", "-O", "mtu"]);
    let path = script.display().to_string();
    line.extend(["-s", &path]);
    let said = workload.run(&line);
    let told = fs::read_to_string(&lease).unwrap_or_default();
    for path in [&script, &lease] {
        let _ = fs::remove_file(path);
    }
    if let Err(error) = said {
        panic!("{}", site.explain(error));
    }
    for expected in [
        "ip='10.0.1.11'",
        "subnet='255.255.255.0'",
        "serverid='10.0.1.1'",
        "router='10.0.1.1'",
        "dns='192.0.2.53'",
        "domain='blue.example'",
        "hostname='web-1'",
        "lease='600'",
        "mtu='1450'",
        "staticroutes='0.0.0.0/0 10.0.1.1 172.16.0.0/12 10.0.1.12'",
    ] {
        assert!(told.contains(expected), "{expected} is not in\n{told}");
    }
    workload.ip("address add 10.0.1.11/24 dev eth0").unwrap();
    assert!(workload.pings("10.0.1.12", 3), "the address works");
}

/// The address that a node makes of a /64 and its MAC.
fn eui64(prefix: &str, mac: &str) -> String {
    let mac: Vec<u8> = mac
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let words = [
        word(mac[0] ^ 2, mac[1]),
        word(mac[2], 0xff),
        word(0xfe, mac[3]),
        word(mac[4], mac[5]),
    ];
    let text: Vec<String> = words.iter().map(|word| format!("{word:x}")).collect();
    let address = format!("{prefix}{}", text.join(":"));
    address.parse::<std::net::Ipv6Addr>().unwrap().to_string()
}

#[test]
fn b003_a_kernel_takes_router_and_address_from_the_advertisement() {
    let dhcp = Dhcp {
        ipv6_mode: "slaac".into(),
        ..Dhcp::default()
    };
    let mut own = String::new();
    let site = site(dhcp, |objects| {
        let port = objects.ports.iter_mut().find(|port| port.id == "blue-1");
        let port = port.unwrap();
        own = eui64("fd00:1:0:0:", &port.mac);
        port.addresses = vec!["10.0.1.11".into(), own.clone()];
    });
    let workload = blue_1(&site);
    let set = |name: &str, value: &str| {
        let setting = format!("net.ipv6.conf.eth0.{name}={value}");
        workload.run(&["sysctl", "-qw", &setting]).unwrap();
    };
    workload.ip("link set eth0 down").unwrap();
    set("accept_ra", "1");
    set("router_solicitation_delay", "0");
    set("router_solicitation_interval", "1");
    set("router_solicitations", "20");
    workload.ip("link set eth0 mtu 1500 up").unwrap();
    let default = || workload.ip("-6 route show default").unwrap_or_default();
    let addresses = || workload.ip("-6 address show dev eth0").unwrap_or_default();
    let there = wait_until("a default route and an address", SOON, || {
        default().contains("proto ra") && addresses().contains(&own)
    });
    if let Err(error) = there {
        let found = (default(), addresses());
        panic!("{}\n{found:?}", site.explain(error));
    }
    let route = default();
    assert!(route.contains("via fe80::77:65ff:fe66:7401"), "{route}");
    assert!(!route.contains("expires"), "it has no end: {route}");
    let mtu = workload.run(&["sysctl", "-n", "net.ipv6.conf.eth0.mtu"]);
    assert_eq!(mtu.unwrap().trim(), "1450");
    assert!(workload.pings("fd00:1::12", 3), "within the subnet");
    assert!(workload.pings("fd00:2::20", 3), "through the router");
}
