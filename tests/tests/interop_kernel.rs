//! b010: interoperation with the Linux kernel's VXLAN device: neighbours, pings and TCP, both ways, over an IPv4 and an IPv6 underlay.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use weft_tests::{Lab, LabError, Namespace, Site, SiteOptions, topology, traffic::tcp_exchange};

const OBJECTS: &str = r#"
hosts:
  - {id: h1, vteps: ["VTEP1"]}
  - {id: far, vteps: ["VTEP2"], foreign: true}
vpcs: [{id: blue, vni: 4711}]
subnets: [{id: blue-a, vpc: blue, cidrs: [10.0.1.0/24, "fd00:1::/64"]}]
security_groups: [{id: blue, vpc: blue, rules: [{direction: ingress}]}]
ports:
  - {id: near, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11, "fd00:1::11"], host: h1}
  - {id: peer, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:02", addresses: [10.0.1.12, "fd00:1::12"], host: far}
"#;

const NEAR: [&str; 2] = ["10.0.1.11", "fd00:1::11"];
const PEER: [&str; 2] = ["10.0.1.12", "fd00:1::12"];

fn site(vteps: [&str; 2]) -> Site {
    let yaml = OBJECTS
        .replace("VTEP1", vteps[0])
        .replace("VTEP2", vteps[1]);
    let options = SiteOptions::default();
    Site::start(Lab::new().unwrap(), &topology(&yaml).unwrap(), &options).unwrap()
}

/// The kernel's tunnel end point, with the workload's address on the tunnel device itself.
fn kernel_end(far: &Namespace, vteps: [&str; 2], more: &str) -> Result<(), LabError> {
    let [remote, local] = vteps;
    far.ip(&format!(
        "link add vx0 address 02:00:00:00:01:02 mtu 1430 type vxlan id 4711 dstport 4789 local {local} remote {remote} dev u0 {more}"
    ))?;
    far.ip("link set vx0 up")?;
    far.ip("address add 10.0.1.12/24 dev vx0")?;
    far.ip("address add fd00:1::12/64 dev vx0 nodad").map(drop)
}

fn exchange(site: &Site, far: &Namespace) -> Result<(), LabError> {
    let near = &site.workloads["near"].namespace;
    for (near_address, peer_address) in NEAR.iter().zip(PEER) {
        // The far side begins, so that it asks for the neighbour through the tunnel.
        for (from, to) in [(far, *near_address), (near, peer_address)] {
            from.run(&["ping", "-q", "-n", "-i", "0.05", "-W", "2", "-c", "5", to])?;
        }
        let at = |address: &str| SocketAddr::new(address.parse().unwrap(), 5201);
        tcp_exchange(far, near, at(near_address), 4 << 20)?;
        tcp_exchange(near, far, at(peer_address), 4 << 20)?;
    }
    for address in NEAR {
        let neighbour = far.ip(&format!("neigh show {address} dev vx0"))?;
        assert!(
            neighbour.contains("02:00:00:00:01:01") && !neighbour.contains("PERMANENT"),
            "learnt through the tunnel: {neighbour}"
        );
    }
    Ok(())
}

/// `offload`: the far kernel leaves checksums to its uplink, which is a link without a wire and never completes them.
fn interoperates(vteps: [&str; 2], more: &str, offload: bool) {
    let site = site(vteps);
    let far = site.hosts["far"].namespace.clone();
    far.offloads("u0", if offload { "tx on" } else { "tx off" })
        .unwrap();
    kernel_end(&far, vteps, more)
        .and_then(|()| exchange(&site, &far))
        .map_err(|error| site.explain(error))
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn b010_a_kernel_vxlan_device_over_ipv4() {
    interoperates(["192.0.2.1", "192.0.2.2"], "noudpcsum", false);
}

#[test]
fn b010_a_kernel_vxlan_device_over_ipv4_with_udp_checksums() {
    interoperates(["192.0.2.1", "192.0.2.2"], "udpcsum", false);
}

/// The kernel sends outer UDP checksums here, and is told to take packets without.
#[test]
fn b010_a_kernel_vxlan_device_over_ipv6() {
    interoperates(["2001:db8::1", "2001:db8::2"], "udp6zerocsumrx", false);
}

#[test]
fn b010_a_kernel_vxlan_device_over_ipv6_without_udp_checksums() {
    interoperates(
        ["2001:db8::1", "2001:db8::2"],
        "udp6zerocsumrx udp6zerocsumtx",
        false,
    );
}

/// Of the inner checksums, that is: an outer one that no device completes is wrong, and the packet dropped as such.
#[test]
fn b010_a_kernel_that_leaves_checksums_to_its_device() {
    interoperates(["192.0.2.1", "192.0.2.2"], "noudpcsum", true);
}
