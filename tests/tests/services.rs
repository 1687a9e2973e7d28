//! b003, b004 and b005: the gateway's answers to other implementations' clients: busybox's DHCP client, ISC's for DHCPv6, and the kernel's
//! IPv6.

#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use weft_proto::v1::{Dhcp, DhcpOption, DhcpRoute, Objects};
use weft_tests::{
    GuestKind, Lab, Namespace, Site, SiteOptions, put_in_guests, tenants, wait_until,
};

const SOON: Duration = Duration::from_secs(20);

/// A site whose subnet blue-a tells its guests this.
fn site(dhcp: &Dhcp, change: impl FnOnce(&mut Objects)) -> Site {
    site_with(&SiteOptions::default(), dhcp, change)
}

fn site_with(options: &SiteOptions, dhcp: &Dhcp, change: impl FnOnce(&mut Objects)) -> Site {
    let mut objects = tenants(2).unwrap();
    for subnet in &mut objects.subnets {
        if subnet.id == "blue-a" {
            subnet.dhcp = Some(dhcp.clone());
        }
    }
    change(&mut objects);
    Site::start(Lab::new().unwrap(), &objects, options).unwrap()
}

fn blue_1(site: &Site) -> &Namespace {
    &site.workloads["blue-1"].namespace
}

/// What a client runs when it is told something; it keeps what it was told for this reason. Removed with its files.
struct Script {
    path: String,
    stem: PathBuf,
}

impl Script {
    fn new(workload: &Namespace, reason: &str) -> Self {
        let stem = std::env::temp_dir().join(workload.name());
        let path = stem.with_extension("sh");
        let kept = stem.with_extension("told");
        let test = format!("[ \"$1$reason\" = {reason} ] && set >{}", kept.display());
        fs::write(&path, format!("#!/bin/sh\n{test}\nexit 0\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            path: path.display().to_string(),
            stem,
        }
    }

    /// What it kept, a variable a line.
    fn told(&self) -> String {
        fs::read_to_string(self.stem.with_extension("told")).unwrap_or_default()
    }

    /// A file for the client's own use.
    fn file(&self, extension: &str) -> String {
        self.stem.with_extension(extension).display().to_string()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        for extension in ["sh", "told", "leases", "pid", "conf"] {
            let _ = fs::remove_file(self.stem.with_extension(extension));
        }
    }
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
    let site = site(&dhcp, |objects| {
        let port = objects.ports.iter_mut().find(|port| port.id == "blue-1");
        port.unwrap().hostname = "web-1".into();
    });
    let workload = blue_1(&site);
    workload.ip("-4 address flush dev eth0").unwrap();
    let script = Script::new(workload, "bound");
    let mut line = vec!["busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q"];
    line.extend(["-t", "10", "-T", "1", "-O", "staticroutes", "-O", "mtu"]);
    line.extend(["-s", &script.path]);
    let said = workload.run(&line);
    let told = script.told();
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

#[test]
fn b005_a_dhcpv6_client_is_leased_its_address_and_gives_it_back() {
    let dhcp = Dhcp {
        dns_servers: vec!["2001:db8::53".into()],
        domain: "blue.example".into(),
        lease_seconds: 600,
        ..Dhcp::default()
    };
    let site = site(&dhcp, |_| {});
    let workload = blue_1(&site);
    workload
        .ip("-6 address flush dev eth0 scope global")
        .unwrap();
    let script = Script::new(workload, "BOUND6");
    let (leases, pid) = (script.file("leases"), script.file("pid"));
    let client = |how: &str| {
        let mut line = vec!["dhclient", "-6", how, "-cf", "/dev/null"];
        line.extend(["-sf", &script.path, "-lf", &leases, "-pf", &pid, "eth0"]);
        if let Err(error) = workload.run(&line) {
            panic!("{}", site.explain(error));
        }
    };
    client("-1");
    let told = script.told();
    for expected in [
        "new_ip6_address='fd00:1::11'",
        "new_dhcp6_name_servers='2001:db8::53'",
        "new_dhcp6_domain_search='blue.example.'",
        "new_max_life='600'",
        "new_renew='300'",
        "new_rebind='480'",
    ] {
        assert!(told.contains(expected), "{expected} is not in\n{told}");
    }
    client("-r");
    let drops = site.node_json("h1", &["drops"]).unwrap().to_string();
    assert!(!drops.contains("dhcp_"), "{drops}");
}

fn option(family: &str, name: &str, value: &str) -> DhcpOption {
    DhcpOption {
        name: name.into(),
        value: value.into(),
        family: family.into(),
        force: false,
    }
}

#[test]
fn b004_a_dhcp_client_is_told_the_options_of_its_subnet_and_its_port() {
    let dhcp = Dhcp {
        domain: "blue.example".into(),
        options: vec![
            option("", "ntp-server", "192.0.2.1,192.0.2.2"),
            option("", "domain-search", "blue.example,example"),
            option("", "tftp-server", "default.example"),
            option("", "server-ip-address", "10.0.1.12"),
        ],
        ..Dhcp::default()
    };
    let site = site(&dhcp, |objects| {
        let mut ports = objects.ports.iter_mut();
        ports.find(|port| port.id == "blue-1").unwrap().dhcp_options = vec![
            option("", "66", "10.0.1.12"),
            option("", "bootfile-name", "pxelinux.0"),
            option("", "150", "10.0.1.12"),
            option("", "wpad", "http://wpad.example/wpad.dat"),
            option("", "mtu", "1400"),
            option("", "domain-name", ""),
        ];
    });
    let workload = blue_1(&site);
    workload.ip("-4 address flush dev eth0").unwrap();
    let script = Script::new(workload, "bound");
    let mut line = vec!["busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q"];
    line.extend(["-t", "10", "-T", "1", "-s", &script.path]);
    for wanted in [
        "ntpsrv", "search", "tftp", "bootfile", "wpad", "mtu", "domain", "150",
    ] {
        line.extend(["-O", wanted]);
    }
    if let Err(error) = workload.run(&line) {
        panic!("{}", site.explain(error));
    }
    let told = script.told();
    for expected in [
        "ntpsrv='192.0.2.1 192.0.2.2'",
        "search='blue.example example'",
        "tftp='10.0.1.12'",
        "bootfile='pxelinux.0'",
        "wpad='http://wpad.example/wpad.dat'",
        "mtu='1400'",
        "opt150='0a00010c'",
        // The fields of BOOTP.
        "siaddr='10.0.1.12'",
        "sname='10.0.1.12'",
        "boot_file='pxelinux.0'",
    ] {
        assert!(told.contains(expected), "{expected} is not in\n{told}");
    }
    assert!(
        !told.contains("\ndomain="),
        "taken away by the port: {told}"
    );
}

#[test]
fn b005_a_dhcpv6_client_is_told_the_options_of_its_subnet_and_its_port() {
    let dhcp = Dhcp {
        options: vec![
            option("ipv6", "sntp-server", "2001:db8::123"),
            option("ipv6", "dns-server", "2001:db8::53,2001:db8::54"),
        ],
        ..Dhcp::default()
    };
    let site = site(&dhcp, |objects| {
        let mut ports = objects.ports.iter_mut();
        ports.find(|port| port.id == "blue-1").unwrap().dhcp_options = vec![
            option("ipv6", "bootfile-url", "tftp://[fd00:1::12]/boot.efi"),
            option("ipv6", "domain-search", "blue.example,example"),
        ];
    });
    let workload = blue_1(&site);
    workload
        .ip("-6 address flush dev eth0 scope global")
        .unwrap();
    let script = Script::new(workload, "BOUND6");
    let [leases, pid, conf] = ["leases", "pid", "conf"].map(|it| script.file(it));
    let asks = "also request dhcp6.bootfile-url, dhcp6.sntp-servers;\n";
    fs::write(&conf, asks).unwrap();
    let mut line = vec!["dhclient", "-6", "-1", "-cf", &conf, "-sf", &script.path];
    line.extend(["-lf", &leases, "-pf", &pid, "eth0"]);
    if let Err(error) = workload.run(&line) {
        panic!("{}", site.explain(error));
    }
    let told = script.told();
    for expected in [
        "new_dhcp6_sntp_servers='2001:db8::123'",
        "new_dhcp6_name_servers='2001:db8::53 2001:db8::54'",
        "new_dhcp6_bootfile_url='tftp://[fd00:1::12]/boot.efi'",
        "new_dhcp6_domain_search='blue.example. example.'",
    ] {
        assert!(told.contains(expected), "{expected} is not in\n{told}");
    }
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
    let site = site(&dhcp, |objects| {
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

#[test]
fn b003_b004_a_virtual_machine_configures_itself() {
    let dhcp = Dhcp {
        ipv6_mode: "slaac".into(),
        ..Dhcp::default()
    };
    let options = SiteOptions {
        configure_guests: false,
        ..SiteOptions::default()
    };
    let mut own = String::new();
    let site = site_with(&options, &dhcp, |objects| {
        put_in_guests(objects, GuestKind::VhostServer, &["blue-1"]);
        let port = objects.ports.iter_mut().find(|port| port.id == "blue-1");
        let port = port.unwrap();
        own = eui64("fd00:1:0:0:", &port.mac);
        port.addresses = vec!["10.0.1.11".into(), own.clone()];
    });
    let guest = &site.guests["blue-1"];
    let succeed = |line: &str| match guest.succeed(line) {
        Ok(text) => text,
        Err(error) => panic!("{}", site.explain(error)),
    };
    succeed("ip link set eth0 up");
    succeed("udhcpc -i eth0 -f -n -q -t 10 -T 1 -O staticroutes -O mtu -s /dhcp.sh");
    let link = succeed("ip address show dev eth0");
    assert!(link.contains("inet 10.0.1.11/24"), "{link}");
    assert!(link.contains("mtu 1450"), "{link}");
    // While it is tentative the guest would speak from its link-local address, which nobody here answers.
    let has_own = format!("ip -6 address show dev eth0 | grep {own}/64 | grep -qv tentative");
    let there = wait_until("an address of its own, proven unique", SOON, || {
        guest.says(&has_own)
    });
    if let Err(error) = there {
        panic!("{}", site.explain(error));
    }
    for address in ["10.0.1.12", "10.0.2.20", "fd00:1::12", "fd00:2::20"] {
        succeed(&format!("/tools/ping -n -c 3 -i 0.2 -W 2 {address}"));
    }
}
