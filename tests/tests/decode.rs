//! b008, b010: tshark decodes the packets between hosts: nothing malformed, every checksum right, the VNI or key that of the sender's VPC.
//! A fabric where one host uses GRE and the others VXLAN.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use weft_tests::{
    Capture, Lab, LabError, Site, SiteOptions, topology,
    traffic::{NumberedStream, tcp_exchange},
    wait_until,
};

const TENANT: &str = r#"
subnets: [{id: NAME-a, vpc: NAME, cidrs: [10.0.1.0/24, "fd00:1::/64"]}]
security_groups: [{id: NAME, vpc: NAME, rules: [{direction: ingress}]}]
ports:
  - {id: NAME-1, vpc: NAME, subnet: NAME-a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11, "fd00:1::11"], host: h1}
  - {id: NAME-2, vpc: NAME, subnet: NAME-a, mac: "02:00:00:00:01:02", addresses: [10.0.1.12, "fd00:1::12"], host: h2}
  - {id: NAME-3, vpc: NAME, subnet: NAME-a, mac: "02:00:00:00:01:03", addresses: [10.0.1.13, "fd00:1::13"], host: h3}
"#;

const BLUE: u32 = 100;
const RED: u32 = 0xab_cdef;

fn site(vteps: [&str; 3]) -> Site {
    let [a, b, c] = vteps;
    let mut objects = topology(&format!(
        r#"
hosts:
  - {{id: h1, vteps: ["{a}"]}}
  - {{id: h2, vteps: ["{b}"]}}
  - {{id: h3, vteps: ["{c}"], encapsulation: gre}}
vpcs: [{{id: blue, vni: {BLUE}}}, {{id: red, vni: {RED}}}]
"#
    ))
    .unwrap();
    for tenant in ["blue", "red"] {
        let part = topology(&TENANT.replace("NAME", tenant)).unwrap();
        objects.subnets.extend(part.subnets);
        objects.security_groups.extend(part.security_groups);
        objects.ports.extend(part.ports);
    }
    Site::start(Lab::new().unwrap(), &objects, &SiteOptions::default()).unwrap()
}

/// Pings whose data are `fill`, small ones and fragments, then TCP and UDP, from the first port of a tenant to another and back.
fn traffic(site: &Site, tenant: &str, other: &str, fill: &str) -> Result<(), LabError> {
    let workload = |number: &str| &site.workloads[&format!("{tenant}-{number}")].namespace;
    let (near, far) = (workload("1"), workload(other));
    for ipv6 in [false, true] {
        let address = |number: &str| {
            site.address(&format!("{tenant}-{number}"), ipv6)
                .unwrap()
                .to_string()
        };
        for (from, to) in [(near, address(other)), (far, address("1"))] {
            for size in ["56", "0", "1402", "3000"] {
                let line = "ping -q -n -i 0.02 -W 2 -c 3 -p";
                let mut command: Vec<&str> = line.split(' ').collect();
                // The largest fits the MTU over IPv4; over IPv6 it is fragmented too.
                command.extend([fill, "-s", size, &to]);
                from.run(&command)?;
            }
        }
        let at = |port| SocketAddr::new(address(other).parse().unwrap(), port);
        tcp_exchange(near, far, at(5201), 200_000)?;
        let stream = NumberedStream::start(near, far, at(9), 500)?;
        stream.wait_for_more(50)?;
        assert_eq!(stream.end().lost(), 0);
    }
    Ok(())
}

fn decodes(vteps: [&str; 3]) {
    let site = site(vteps);
    let filter = "udp port 4789 or ip proto 47 or ip6 proto 47";
    let underlay = site.underlay.clone().unwrap();
    let mut capture = Capture::start(&underlay, "br0", filter).unwrap();
    for (tenant, fill) in [("blue", "b1"), ("red", "ed")] {
        for other in ["2", "3"] {
            traffic(&site, tenant, other, fill)
                .map_err(|error| site.explain(error))
                .unwrap_or_else(|error| panic!("{tenant} {other}: {error}"));
        }
    }
    capture.stop().unwrap();
    assert_eq!(capture.faults().unwrap(), Vec::<String>::new());
    assert_tunnels(&capture);
    assert_checksums(&capture);
}

/// Every packet is in a tunnel of its VPC.
fn assert_tunnels(capture: &Capture) {
    for (fill, vni) in [("b1", BLUE), ("ed", RED)] {
        let bytes = [fill; 16].join(":");
        let filter = format!("frame contains {bytes}");
        let lines = capture.decode(&filter, &["vxlan.vni", "gre.key"]).unwrap();
        let kinds: BTreeSet<&str> = lines.iter().map(String::as_str).collect();
        let (vxlan, gre) = (format!("{vni}\t"), format!("\t0x{vni:08x}"));
        assert_eq!(
            kinds,
            BTreeSet::from([&*vxlan, &*gre]),
            "VNI or key of {vni}"
        );
    }
    let strays = "!(vxlan.vni || gre.key) || (gre && gre.proto != 0x6558) || frame.len > 1514";
    assert_eq!(
        capture
            .decode(strays, &["frame.number", "_ws.col.Info"])
            .unwrap(),
        Vec::<String>::new()
    );
}

/// Checksums were verified, not just not found wrong. A field that is there twice (outer and inner) shows twice.
fn assert_checksums(capture: &Capture) {
    for (what, filter, least) in [
        ("IPv4 headers", "ip.checksum.status == 1", 400),
        ("TCP segments", "tcp.checksum.status == 1", 400),
        (
            "numbered datagrams",
            "udp.dstport == 9 && udp.checksum.status == 1",
            150,
        ),
        ("IPv4 pings", "icmp.checksum.status == 1", 80),
        ("IPv6 pings", "icmpv6.checksum.status == 1", 80),
        (
            "IPv4 fragments",
            "ip.flags.mf == 1 || ip.frag_offset > 0",
            24,
        ),
        ("IPv6 fragments", "ipv6.fraghdr.nxt", 24),
    ] {
        let seen = capture.decode(filter, &["frame.number"]).unwrap().len();
        assert!(seen >= least, "{what}: {seen}, expected at least {least}");
    }
    let unverified =
        "(tcp && !(tcp.checksum.status == 1)) || (udp.dstport == 9 && !(udp.checksum.status == 1))";
    assert_eq!(
        capture
            .decode(unverified, &["frame.number", "_ws.col.Info"])
            .unwrap(),
        Vec::<String>::new()
    );
}

#[test]
fn b008_tunnels_over_ipv4_decode_clean() {
    decodes(["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
}

#[test]
fn b008_tunnels_over_ipv6_decode_clean() {
    decodes(["2001:db8::1", "2001:db8::2", "2001:db8::3"]);
}

/// A flow keeps its outer source port; flows differ in it (RFC 7348 §5).
#[test]
fn b008_the_outer_source_port_is_constant_within_a_flow_and_spreads_across_flows() {
    const FLOWS: u16 = 40;
    let site = site(["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    let underlay = site.underlay.clone().unwrap();
    let capture = Capture::start(&underlay, "br0", "udp port 4789").unwrap();
    let socket = weft_tests::RawSocket::open(&site.workloads["blue-1"].namespace, "eth0").unwrap();
    let macs = ([2, 0, 0, 0, 1, 2], [2, 0, 0, 0, 1, 1]);
    let frames = weft_tests::load::udp_flows(macs, ([10, 0, 1, 11], [10, 0, 1, 12]), FLOWS, 20);
    for _ in 0..3 {
        frames.iter().for_each(|frame| socket.send(frame).unwrap());
    }
    let mut seen = Vec::new();
    wait_until("every packet is recorded", Duration::from_secs(20), || {
        seen = capture
            .decode("udp.dstport == 9 && !icmp", &["udp.srcport"])
            .unwrap_or_default();
        seen.len() >= 3 * usize::from(FLOWS)
    })
    .map_err(|error| site.explain(error))
    .unwrap_or_else(|error| panic!("{} seen: {error}", seen.len()));
    let pairs: BTreeSet<(u16, u16)> = seen
        .iter()
        .map(|line| {
            let (outer, inner) = line.split_once(',').unwrap();
            (inner.parse().unwrap(), outer.parse().unwrap())
        })
        .collect();
    assert_eq!(
        pairs.len(),
        usize::from(FLOWS),
        "one outer port a flow: {pairs:?}"
    );
    let outer: BTreeSet<u16> = pairs.iter().map(|(_, outer)| *outer).collect();
    assert!(outer.len() > 30, "{outer:?}");
    assert!(outer.iter().all(|port| *port >= 49152), "{outer:?}");
}
