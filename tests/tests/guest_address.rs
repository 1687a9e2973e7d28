//! Virtual machines without configuration get their addresses, routes, MTU and name from the gateway by DHCP, DHCPv6 and router
//! advertisement, and reach each other with them.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use weft_tests::{
    Guest, GuestKind, Lab, LabError, Site, SiteOptions, put_in_guests, topology, wait_until,
};

const SOON: Duration = Duration::from_secs(20);

/// The second port of the SLAAC subnet has the address that its guest makes of the prefix and its MAC.
const OBJECTS: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}]
vpcs: [{id: blue, vni: 100}]
subnets:
  - id: managed
    vpc: blue
    cidrs: [10.0.1.0/24, "fd00:1::/64"]
    mtu: 1430
    dhcp: {dns_servers: [192.0.2.53, "2001:db8::53"], domain: blue.example, routes: [{prefix: 172.16.0.0/12, next_hop: 10.0.1.12}], ipv6_mode: dhcpv6-stateful}
  - {id: own, vpc: blue, cidrs: ["fd00:2::/64"], mtu: 1400, dhcp: {ipv6_mode: slaac}}
security_groups: [{id: blue, vpc: blue, rules: [{direction: ingress}]}]
ports:
  - {id: m1, vpc: blue, subnet: managed, host: h1, mac: "02:00:00:00:01:11", addresses: [10.0.1.11, "fd00:1::11"], hostname: web-1}
  - {id: m2, vpc: blue, subnet: managed, host: h2, mac: "02:00:00:00:01:12", addresses: [10.0.1.12, "fd00:1::12"]}
  - {id: s1, vpc: blue, subnet: own, host: h2, mac: "02:00:00:00:02:11", addresses: ["fd00:2::ff:fe00:211"]}
"#;

fn says(guest: &Guest, line: &str, wanted: &str) -> Result<(), LabError> {
    let mut last = String::new();
    wait_until(&format!("{wanted} in {line}"), SOON, || {
        last = guest.run(line).map(|out| out.text).unwrap_or_default();
        last.contains(wanted)
    })
    .map_err(|error| LabError::Explained {
        source: Box::new(error),
        text: format!("\n{last}"),
    })
}

fn gets_addresses(kind: GuestKind) {
    let mut objects = topology(OBJECTS).unwrap();
    put_in_guests(&mut objects, kind, &[]);
    let options = SiteOptions {
        configure_guests: false,
        ..SiteOptions::default()
    };
    let site = Site::start(Lab::new().unwrap(), &objects, &options)
        .unwrap_or_else(|error| panic!("{error}"));
    let body = || -> Result<(), LabError> {
        for guest in site.guests.values() {
            guest.succeed("ip link set eth0 up")?;
        }
        for port in ["m1", "m2"] {
            let guest = &site.guests[port];
            let ask = "udhcpc -i eth0 -n -q -t 8 -T 1 -s /dhcp.sh -O mtu -O staticroutes -O search";
            guest.succeed(ask)?;
            // The client wants an address of the link whose uniqueness is proven.
            wait_until("a link-local address", SOON, || {
                let line = "ip address show eth0 scope link | grep fe80 | grep -qv tentative";
                guest.says(line)
            })?;
            let ask = "/tools/dhclient -6 -1 -sf /dhcp6.sh -lf /tmp/leases6 -pf /tmp/pid6 eth0";
            guest.succeed(ask)?;
            let number = &port[1..];
            says(
                guest,
                "ip address show eth0",
                &format!("inet 10.0.1.1{number}/24"),
            )?;
            says(
                guest,
                "ip address show eth0",
                &format!("inet6 fd00:1::1{number}/"),
            )?;
            says(guest, "ip route", "default via 10.0.1.1 dev eth0")?;
            says(guest, "ip route", "172.16.0.0/12 via 10.0.1.12")?;
            says(guest, "ip -6 route", "default via fe80::")?;
            says(guest, "cat /sys/class/net/eth0/mtu", "1430")?;
            says(guest, "cat /tmp/lease.eth0", "192.0.2.53")?;
            says(guest, "cat /tmp/lease6.eth0", "2001:db8::53")?;
        }
        says(
            &site.guests["m1"],
            "cat /tmp/lease.eth0",
            "hostname='web-1'",
        )?;
        let alone = &site.guests["s1"];
        says(
            alone,
            "ip address show eth0",
            "inet6 fd00:2::ff:fe00:211/64",
        )?;
        says(alone, "ip -6 route", "default via fe80::")?;
        says(alone, "cat /proc/sys/net/ipv6/conf/eth0/mtu", "1400")?;
        for (from, to) in [("m1", "m2"), ("m2", "m1"), ("m1", "s1"), ("s1", "m2")] {
            let ipv6 = site.address(to, true).unwrap().to_string();
            wait_until(&format!("{from} reaches {ipv6}"), SOON, || {
                site.reaches(from, &ipv6, 2)
            })?;
        }
        let (a, b) = (&site.guests["m1"], &site.guests["m2"]);
        b.fetch(a, "10.0.1.11", 1_000_000)?;
        a.fetch(b, "[fd00:1::12]", 1_000_000)?;
        site.wait_for_frames()
    };
    if let Err(error) = body() {
        panic!("{}", site.explain(error));
    }
}

#[test]
fn b004_b005_guests_over_vhost_user_are_told_their_addresses() {
    gets_addresses(GuestKind::VhostClient);
}

#[test]
fn b004_b005_guests_over_taps_are_told_their_addresses() {
    gets_addresses(GuestKind::Tap);
}
