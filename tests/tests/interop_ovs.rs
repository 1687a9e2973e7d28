//! b010: interoperation with Open vSwitch's userspace datapath: pings and TCP, both ways, over VXLAN and over GRE with a key.

#![allow(clippy::unwrap_used)]

use std::{net::SocketAddr, time::Duration};

use weft_tests::{
    Lab, LabError, Namespace, Site, SiteOptions, openvswitch::OpenVswitch, topology,
    traffic::tcp_exchange, wait_until,
};

const OBJECTS: &str = r#"
hosts:
  - {id: h1, vteps: ["VTEP1"]}
  - {id: far, vteps: ["VTEP2"], foreign: true, encapsulation: KIND}
vpcs: [{id: blue, vni: 4711}]
subnets: [{id: blue-a, vpc: blue, cidrs: [10.0.1.0/24, "fd00:1::/64"]}]
security_groups: [{id: blue, vpc: blue, rules: [{direction: ingress}]}]
ports:
  - {id: near, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11, "fd00:1::11"], host: h1}
  - {id: peer, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:02", addresses: [10.0.1.12, "fd00:1::12"], host: far}
"#;

/// A bridge with the host's address in the underlay, and one that is the workload.
fn configure(
    ovs: &OpenVswitch,
    far: &Namespace,
    kind: &str,
    vteps: [&str; 2],
) -> Result<(), LabError> {
    let [remote, local] = vteps;
    let (address, path) = if local.contains(':') {
        (format!("{local}/64 dev br-under nodad"), "-6 ")
    } else {
        (format!("{local}/24 dev br-under"), "")
    };
    ovs.set("add-br br-under -- set bridge br-under datapath_type=netdev -- add-port br-under u0")?;
    ovs.set("add-br br-int -- set bridge br-int datapath_type=netdev other-config:hwaddr=\"02:00:00:00:01:02\"")?;
    far.ip(&format!("{path}address flush dev u0"))?;
    far.ip("link set br-under up")?;
    far.ip(&format!("address add {address}"))?;
    ovs.set(&format!(
        "add-port br-int tunnel -- set interface tunnel type={kind} options:key=4711 options:remote_ip=\"{remote}\""
    ))?;
    far.ip("link set br-int mtu 1430 up")?;
    far.ip("address add 10.0.1.12/24 dev br-int")?;
    far.ip("address add fd00:1::12/64 dev br-int nodad")
        .map(drop)
}

fn exchange(site: &Site, far: &Namespace) -> Result<(), LabError> {
    let near = &site.workloads["near"].namespace;
    for (near_address, far_address) in [("10.0.1.11", "10.0.1.12"), ("fd00:1::11", "fd00:1::12")] {
        // The switch drops what it sends before it knows the way.
        wait_until("the far side reaches us", Duration::from_secs(15), || {
            far.pings(near_address, 1)
        })?;
        for (from, to) in [(far, near_address), (near, far_address)] {
            from.run(&["ping", "-q", "-n", "-i", "0.05", "-W", "2", "-c", "5", to])?;
        }
        let at = |address: &str| SocketAddr::new(address.parse().unwrap(), 5201);
        tcp_exchange(far, near, at(near_address), 1 << 20)?;
        tcp_exchange(near, far, at(far_address), 1 << 20)?;
    }
    Ok(())
}

fn interoperates(kind: &str, vteps: [&str; 2]) {
    let yaml = OBJECTS
        .replace("VTEP1", vteps[0])
        .replace("VTEP2", vteps[1])
        .replace("KIND", kind);
    let options = SiteOptions::default();
    let site = Site::start(Lab::new().unwrap(), &topology(&yaml).unwrap(), &options).unwrap();
    let far = site.hosts["far"].namespace.clone();
    let ovs = OpenVswitch::start(&far).unwrap();
    configure(&ovs, &far, kind, vteps)
        .and_then(|()| exchange(&site, &far))
        .map_err(|error| site.explain(error))
        .unwrap_or_else(|error| panic!("{error}\n--- ovs-vswitchd\n{}", ovs.switch.log()));
}

#[test]
fn b010_open_vswitch_over_vxlan() {
    interoperates("vxlan", ["192.0.2.1", "192.0.2.2"]);
}

#[test]
fn b010_open_vswitch_over_gre_with_a_key() {
    interoperates("gre", ["192.0.2.1", "192.0.2.2"]);
}

#[test]
fn b010_open_vswitch_over_vxlan_on_ipv6() {
    interoperates("vxlan", ["2001:db8::1", "2001:db8::2"]);
}

#[test]
fn b010_open_vswitch_over_gre_on_ipv6() {
    interoperates("gre", ["2001:db8::1", "2001:db8::2"]);
}
