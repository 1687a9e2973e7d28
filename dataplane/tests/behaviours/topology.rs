//! The topology that most tests use: two hosts, two tenants with the same addresses, two subnets each.

use weft_dataplane::pipeline::Settings;
use weft_dataplane::session::Limits;
use weft_fabric::Fabric;
use weft_proto::state::State;
use weft_proto::v1::{self, Objects};

pub const ROUTER: [u8; 6] = [0x02, 0x77, 0x65, 0x66, 0x74, 0x01];

pub const LIMITS: Limits = Limits {
    capacity: 4096,
    per_port: 2048,
    per_vpc: 4096,
    ports: 64,
    vpcs: 64,
};

pub const BASE: &str = r#"
hosts:
  - {id: h1, vteps: [192.0.2.1, "2001:db8:ffff::1"]}
  - {id: h2, vteps: [192.0.2.2, "2001:db8:ffff::2"]}
vpcs: [{id: blue, vni: 100}, {id: red, vni: 200}]
subnets:
  - {id: blue-a, vpc: blue, cidrs: [10.0.1.0/24, "fd00:1::/64"], route_table: blue}
  - {id: blue-b, vpc: blue, cidrs: [10.0.2.0/24, "fd00:2::/64"]}
  - {id: red-a, vpc: red, cidrs: [10.0.1.0/24, "fd00:1::/64"]}
route_tables: [{id: blue, vpc: blue, routes: []}]
security_groups:
  - id: open
    vpc: blue
    rules: [{direction: ingress}]
  - id: red-open
    vpc: red
    rules: [{direction: ingress}]
ports:
  - {id: a1, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11, "fd00:1::11"], security_groups: [open], host: h1}
  - {id: a2, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:02", addresses: [10.0.1.12, "fd00:1::12"], security_groups: [open], host: h2}
  - {id: a3, vpc: blue, subnet: blue-a, mac: "02:00:00:00:01:03", addresses: [10.0.1.13, "fd00:1::13"], security_groups: [open], host: h1}
  - {id: b1, vpc: blue, subnet: blue-b, mac: "02:00:00:00:02:01", addresses: [10.0.2.11, "fd00:2::11"], security_groups: [open], host: h1}
  - {id: b2, vpc: blue, subnet: blue-b, mac: "02:00:00:00:02:02", addresses: [10.0.2.12, "fd00:2::12"], security_groups: [open], host: h2}
  - {id: r1, vpc: red, subnet: red-a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11, "fd00:1::11"], security_groups: [red-open], host: h1}
  - {id: r2, vpc: red, subnet: red-a, mac: "02:00:00:00:01:02", addresses: [10.0.1.12, "fd00:1::12"], security_groups: [red-open], host: h2}
"#;

pub fn objects() -> Objects {
    serde_yaml_ng::from_str(BASE).unwrap()
}

pub fn fabric_of(objects: Objects) -> Fabric {
    Fabric::new(
        State::from_objects(objects).unwrap(),
        &Settings::default(),
        LIMITS,
    )
    .unwrap()
}

/// The base topology, changed.
pub fn fabric(change: impl FnOnce(&mut Objects)) -> Fabric {
    let mut objects = objects();
    change(&mut objects);
    fabric_of(objects)
}

/// Changes the state of a fabric in place.
pub fn change(fabric: &mut Fabric, change: impl FnOnce(&mut Objects)) {
    let mut objects = fabric.state().to_objects();
    change(&mut objects);
    fabric.set(State::from_objects(objects).unwrap()).unwrap();
}

pub fn port<'o>(objects: &'o mut Objects, id: &str) -> &'o mut v1::Port {
    objects.ports.iter_mut().find(|port| port.id == id).unwrap()
}

pub fn group<'o>(objects: &'o mut Objects, id: &str) -> &'o mut v1::SecurityGroup {
    objects
        .security_groups
        .iter_mut()
        .find(|group| group.id == id)
        .unwrap()
}

/// An ingress rule for a protocol and one port.
pub fn ingress(protocol: &str, port: Option<u32>) -> v1::SecurityRule {
    v1::SecurityRule {
        direction: "ingress".into(),
        protocol: protocol.into(),
        port_min: port,
        port_max: port,
        ..v1::SecurityRule::default()
    }
}

/// A route with no target yet.
pub fn route(prefix: &str) -> v1::Route {
    v1::Route {
        prefix: prefix.into(),
        ..v1::Route::default()
    }
}
