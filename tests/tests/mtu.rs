//! Small MTUs on the path, on real interfaces: a container's end of its veth, and a link behind a router of the underlay.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use weft_tests::{
    Lab, LabError, Namespace, Site, SiteOptions, tenants, topology, traffic::tcp_exchange,
    wait_until,
};

const SOON: Duration = Duration::from_secs(10);

/// Whether one ping of so many bytes of IP packet is answered, cut on the way by nobody.
fn passes(from: &Namespace, to: &str, bytes: u32) -> bool {
    let headers = if to.contains(':') { 48 } else { 28 };
    let payload = (bytes - headers).to_string();
    let line = ["ping", "-c1", "-W1", "-Mdo", "-s", &payload, to];
    from.run(&line).is_ok()
}

/// What the sender's kernel says that a way takes.
fn learnt(from: &Namespace, to: &str) -> String {
    let route = from.ip(&format!("route get {to}")).unwrap_or_default();
    let mut words = route.split_whitespace();
    words.find(|word| *word == "mtu");
    words.next().unwrap_or_default().to_owned()
}

fn check(site: &mut Site, body: impl FnOnce(&mut Site) -> Result<(), LabError>) {
    if let Err(error) = body(site) {
        panic!("{}", site.explain(error));
    }
}

#[test]
fn b027_a_containers_narrow_end_is_known_to_others() {
    let objects = topology(
        r#"
vpcs: [{id: blue, vni: 100}]
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}]
subnets:
  - {id: a, vpc: blue, cidrs: [10.0.1.0/24, "fd00:1::/64"]}
  - {id: b, vpc: blue, cidrs: [10.0.2.0/24, "fd00:2::/64"]}
security_groups: [{id: blue, vpc: blue, rules: [{direction: ingress}]}]
ports:
  - {id: wide, vpc: blue, subnet: a, host: h1, mac: "02:00:00:00:01:11", addresses: [10.0.1.11, "fd00:1::11"]}
  - {id: near, vpc: blue, subnet: b, host: h1, mac: "02:00:00:00:02:12", addresses: [10.0.2.12, "fd00:2::12"]}
  - {id: beside, vpc: blue, subnet: a, host: h1, mac: "02:00:00:00:01:13", addresses: [10.0.1.13, "fd00:1::13"]}
  - {id: far, vpc: blue, subnet: b, host: h2, mac: "02:00:00:00:02:14", addresses: [10.0.2.14, "fd00:2::14"]}
"#,
    )
    .unwrap();
    let options = SiteOptions::default();
    let mut site = Site::start(Lab::new().unwrap(), &objects, &options).unwrap();
    check(&mut site, |site| {
        let of = |id: &str| site.workloads[id].namespace.clone();
        let wide = of("wide");
        for id in ["near", "beside", "far"] {
            wait_until(&format!("{id} is reached"), SOON, || site.pings("wide", id))?;
            of(id).ip("link set eth0 mtu 1300")?;
        }
        // Across subnets the sender learns it, from a device on its host and from one behind the tunnel; TCP adapts.
        for (id, addresses) in [
            ("near", ["10.0.2.12", "fd00:2::12"]),
            ("far", ["10.0.2.14", "fd00:2::14"]),
        ] {
            for to in addresses {
                wait_until(&format!("{to} is known to be narrow"), SOON, || {
                    !passes(&wide, to, 1400) && learnt(&wide, to) == "1300"
                })?;
                wait_until(&format!("1300 bytes pass to {to}"), SOON, || {
                    passes(&wide, to, 1300)
                })?;
            }
            let service = site.service(id, false, 9000)?;
            tcp_exchange(&wide, &of(id), service, 200_000)?;
        }
        // Within the subnet nobody may say so, but it has a name.
        assert!(!passes(&wide, "10.0.1.13", 1400) && passes(&wide, "10.0.1.13", 1300));
        let drops = site.node("h1", &["drops"])?;
        assert!(drops.contains("too_big"), "{drops}");
        site.wait_for_frames()
    });
}

#[test]
fn b027_a_narrow_link_behind_a_router_of_the_underlay_is_found() {
    for gre in [false, true] {
        for v6 in [false, true] {
            narrow_underlay(gre, v6);
        }
    }
}

fn narrow_underlay(gre: bool, v6: bool) {
    let mut objects = tenants(3).unwrap();
    for (n, host) in (1..).zip(&mut objects.hosts) {
        if v6 {
            host.vteps = vec![format!("2001:db8:ffff::{n}")];
        }
        if gre {
            host.encapsulation = "gre".into();
        }
    }
    let options = SiteOptions::default();
    let mut site = Site::start(Lab::new().unwrap(), &objects, &options).unwrap();
    check(&mut site, |site| {
        wait_until("blue-1 reaches blue-2", SOON, || {
            site.pings("blue-1", "blue-2")
        })?;
        // What joins the hosts is a router from now on, to h2 by a link of its own.
        let router = site.underlay.clone().unwrap();
        router.ip("link set b1 nomaster mtu 1350")?;
        let (h1, h2, own) = if v6 {
            (
                "2001:db8:ffff::1",
                "2001:db8:ffff::2",
                ["2001:db8:ffff::fe/128", "2001:db8:ffff::fd/128"],
            )
        } else {
            (
                "192.0.2.1",
                "192.0.2.2",
                ["192.0.2.254/32", "192.0.2.253/32"],
            )
        };
        for (address, device) in own.iter().zip(["br0", "b1"]) {
            let nodad = if v6 { "nodad" } else { "" };
            router.ip(&format!("address add {address} dev {device} {nodad}"))?;
        }
        for setting in [
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.br0.proxy_arp=1",
            "net.ipv4.conf.b1.proxy_arp=1",
            "net.ipv6.conf.all.proxy_ndp=1",
            "net.ipv6.conf.br0.proxy_ndp=1",
            "net.ipv6.conf.b1.proxy_ndp=1",
        ] {
            router.run(&["sysctl", "-qw", setting])?;
        }
        router.ip(&format!("route add {h2} dev b1"))?;
        router.ip(&format!("route add {h1} dev br0"))?;
        if v6 {
            router.ip(&format!("neigh add proxy {h2} dev br0"))?;
            router.ip(&format!("neigh add proxy {h1} dev b1"))?;
        }
        for (id, other) in [("h1", h2), ("h2", h1)] {
            let host = &site.hosts[id].namespace;
            host.ip(&format!("neigh flush to {other}"))?;
        }
        wait_until("the router passes tunnels on", SOON, || {
            site.pings("blue-1", "blue-2")
        })?;
        let (one, two) = (
            site.workloads["blue-1"].namespace.clone(),
            site.workloads["blue-2"].namespace.clone(),
        );
        let overhead = if v6 { 40 } else { 20 } + if gre { 8 } else { 16 } + 14;
        let fits = 1350 - overhead;
        for to in ["10.0.1.12", "fd00:1::12"] {
            wait_until(
                &format!("{to} is known to be behind a narrow link"),
                SOON,
                || !passes(&one, to, fits + 20) && learnt(&one, to) == fits.to_string(),
            )?;
            wait_until(&format!("{fits} bytes pass to {to}"), SOON, || {
                passes(&one, to, fits)
            })?;
        }
        let service = site.service("blue-2", false, 9000)?;
        tcp_exchange(&one, &two, service, 200_000)?;
        site.wait_for_frames()
    });
}
