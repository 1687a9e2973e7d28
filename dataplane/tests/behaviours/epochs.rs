//! A change affects only what it changes: sessions of other VPCs and of other tunnels continue.

use weft_fabric::Fabric;
use weft_proto::v1;

use crate::frames::{A1, A2, B1, B2, End, udp};
use crate::topology::{ROUTER, change, fabric, group, ingress, port, route};

/// Packets of sessions that were decided again so far, on all hosts.
fn decided_again(fabric: &Fabric) -> u64 {
    let counters = fabric.hosts.values().map(|host| host.pipeline.counters());
    counters.map(|counters| counters.decided_again.get()).sum()
}

/// One packet each way, within the subnet and routed, across hosts; of both tenants.
#[track_caller]
fn talk(fabric: &mut Fabric) {
    let within = |from, to: End| udp(from, to, to.mac, (7, 8), b"x");
    let routed = |from, to| udp(from, to, ROUTER, (7, 8), b"x");
    for (from, frame) in [
        ("a1", within(A1, A2)),
        ("a2", within(A2, A1)),
        ("r1", within(A1, A2)),
        ("r2", within(A2, A1)),
        ("a1", routed(A1, B2)),
        ("b2", routed(B2, A1)),
        ("b1", routed(B1, B2)),
    ] {
        assert_eq!(fabric.send(from, &frame).len(), 1, "{from}");
    }
}

/// How many packets of `talk` are decided again after a change.
#[track_caller]
fn after(fabric: &mut Fabric, edit: impl FnOnce(&mut v1::Objects)) -> u64 {
    talk(fabric);
    talk(fabric);
    let before = decided_again(fabric);
    change(fabric, edit);
    talk(fabric);
    let all = decided_again(fabric) - before;
    talk(fabric);
    assert_eq!(decided_again(fabric) - before, all, "once is enough");
    all
}

/// Of `talk`, the packets of tenant blue: each is decided on both hosts, but for those that stay on one.
const OF_BLUE: u64 = 10;
const OF_RED: u64 = 4;

#[test]
fn a_change_of_one_vpc_has_only_its_own_sessions_decided_again() {
    let mut fabric = fabric(|_| {});
    // Contents of an object, which are compiled by themselves.
    let rules = |objects: &mut v1::Objects| {
        group(objects, "red-open").rules = vec![ingress("udp", None)];
    };
    assert_eq!(after(&mut fabric, rules), OF_RED);
    // A port more, for which everything is compiled.
    let grow = |objects: &mut v1::Objects| {
        let mut more = port(objects, "r1").clone();
        (more.id, more.mac) = ("r3".into(), "02:00:00:00:01:09".into());
        more.addresses = vec!["10.0.1.19".into()];
        objects.ports.push(more);
    };
    assert_eq!(after(&mut fabric, grow), OF_RED);
    let shrink = |objects: &mut v1::Objects| objects.ports.retain(|port| port.id != "r3");
    assert_eq!(after(&mut fabric, shrink), OF_RED);
    let routes = |objects: &mut v1::Objects| {
        let mut hole = route("198.51.100.0/24");
        hole.blackhole = true;
        objects.route_tables[0].routes = vec![hole];
    };
    assert_eq!(after(&mut fabric, routes), OF_BLUE);
}

#[test]
fn a_change_of_the_underlay_has_no_session_decided_again() {
    let mut fabric = fabric(|_| {});
    let h2 = fabric.state().to_objects().hosts[1].vteps[0].parse();
    fabric.down = vec![h2.unwrap()];
    assert_eq!(after(&mut fabric, |_| {}), 0);
    // By IPv6 now.
    fabric.crossed.clear();
    let frame = udp(A1, A2, A2.mac, (7, 8), b"x");
    assert_eq!(fabric.send("a1", &frame).len(), 1);
    assert_eq!(fabric.crossed[0][12..14], [0x86, 0xdd]);
}

#[test]
fn a_host_that_comes_or_goes_concerns_the_vpcs_that_name_it() {
    let mut fabric = fabric(|objects| {
        let mut there = route("198.51.100.0/24");
        there.host = "h9".into();
        objects.route_tables[0].routes = vec![there];
    });
    let far = End {
        v4: [198, 51, 100, 7],
        ..B1
    };
    let frame = udp(A1, far, ROUTER, (7, 9), b"x");
    let reaches = |fabric: &mut Fabric| {
        fabric.crossed.clear();
        fabric.send("a1", &frame);
        fabric.crossed.len()
    };
    let come = |objects: &mut v1::Objects| {
        objects.hosts.push(v1::Host {
            id: "h9".into(),
            vteps: vec!["192.0.2.9".into()],
            foreign: true,
            ..v1::Host::default()
        });
    };
    let go = |objects: &mut v1::Objects| objects.hosts.retain(|host| host.id != "h9");
    assert_eq!(reaches(&mut fabric), 0);
    assert_eq!(after(&mut fabric, come), OF_BLUE);
    assert_eq!(reaches(&mut fabric), 1);
    assert_eq!(after(&mut fabric, go), OF_BLUE);
    assert_eq!(reaches(&mut fabric), 0);
    // Another that nobody names concerns nobody.
    let another = |objects: &mut v1::Objects| {
        come(objects);
        objects.hosts[2].id = "h8".into();
    };
    assert_eq!(after(&mut fabric, another), 0);
}
