//! The output of traces.

use weft_dataplane::pipeline::trace;
use weft_fabric::Fabric;
use weft_proto::v1;

use crate::frames::{A1, A2, B1, B2, End, arp, echo, solicit, udp, udp_ttl, udp6};
use crate::mtu::packet;
use crate::topology::{ROUTER, fabric, port, route};

/// The steps of a packet from a1 that are about its route.
fn routes(fabric: &Fabric, frame: &[u8]) -> Vec<String> {
    let (host, port) = fabric.find_port("a1").unwrap();
    let host = &fabric.hosts[&host];
    let trace = trace::trace(host.view(), port, frame);
    let about = |stage: &str| matches!(stage, "route" | "ecmp");
    let steps = trace.steps.into_iter().filter(|(stage, _)| about(stage));
    steps.map(|(_, text)| text).collect()
}

#[test]
fn a_trace_says_which_prefix_matched_and_where_the_packet_goes() {
    let fabric = fabric(|objects| {
        for name in ["b1", "b2"] {
            port(objects, name).allowed_pairs = vec![v1::AddressPair {
                cidr: "0.0.0.0/0".into(),
                ..v1::AddressPair::default()
            }];
        }
        let hop = |port: &str| v1::NextHop {
            port: port.into(),
            ..v1::NextHop::default()
        };
        let mut one = route("198.51.100.0/25");
        one.port = "b1".into();
        let mut many = route("203.0.113.0/24");
        many.ecmp = vec![hop("b1"), hop("b2")];
        let mut none = route("2001:db8::/40");
        none.blackhole = true;
        objects.route_tables[0].routes = vec![one, many, none];
    });
    let to = |v4: [u8; 4]| {
        let end = End { v4, ..B1 };
        routes(&fabric, &udp(A1, end, ROUTER, (1, 2), b"x"))
    };
    assert_eq!(to(B1.v4), ["10.0.2.11 matches a /24: port b1"]);
    assert_eq!(
        to(B2.v4),
        ["10.0.2.12 matches a /24: port 02:00:00:00:02:02 on host h2"]
    );
    assert_eq!(
        to([198, 51, 100, 9]),
        ["198.51.100.9 matches a /25: port b1"]
    );
    let [ecmp, chosen] = to([203, 0, 113, 9]).try_into().unwrap();
    assert_eq!(ecmp, "one of 2 next hops");
    assert!(
        chosen.starts_with("203.0.113.9 matches a /24: port "),
        "{chosen}"
    );
    assert_eq!(
        to([10, 0, 2, 99]),
        ["10.0.2.99 matches a /24: local, but no port has the address"]
    );
    assert_eq!(
        to([192, 0, 2, 9]),
        ["no route for 192.0.2.9 in subnet blue-a"]
    );
    let v6 = |v6: [u8; 16]| {
        let end = End { v6, ..B1 };
        routes(&fabric, &udp6(A1, end, ROUTER, (1, 2), b"x"))
    };
    assert_eq!(v6(B1.v6), ["fd00:2::11 matches a /64: port b1"]);
    let mut hole = [0; 16];
    hole[..4].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
    assert_eq!(v6(hole), ["2001:db8:: matches a /40: blackhole"]);
}

/// How a trace of a frame of a1 ends.
fn verdict(fabric: &Fabric, frame: &[u8]) -> String {
    let (host, port) = fabric.find_port("a1").unwrap();
    let host = &fabric.hosts[&host];
    let trace = trace::trace(host.view(), port, frame);
    trace.outcome.text(host.pipeline.snapshot())
}

#[test]
fn a_trace_knows_what_the_gateway_answers() {
    let fabric = fabric(|_| {});
    let mut gateway = A1.v6;
    gateway[15] = 1;
    let asked = solicit(A1, A1.v6, gateway);
    assert_eq!(
        verdict(&fabric, &asked),
        "neighbour advertisement from the gateway"
    );
    assert_eq!(
        verdict(
            &fabric,
            &arp(A1.mac, 1, (A1.mac, A1.v4), ([0; 6], [10, 0, 1, 1]))
        ),
        "ARP reply from the gateway"
    );
    let to = |v4| End { v4, ..B1 };
    let ping = echo(A1, to([10, 0, 1, 1]), ROUTER, 8, b"x");
    assert_eq!(verdict(&fabric, &ping), "echo reply from the gateway");
}

#[test]
fn a_trace_of_a_broadcast_names_everybody_who_gets_a_copy() {
    let fabric = fabric(|_| {});
    let all = End { v4: [255; 4], ..A2 };
    let frame = udp(A1, all, [0xff; 6], (5, 6), b"x");
    assert_eq!(verdict(&fabric, &frame), "port a3, host h2");
}

#[test]
fn a_trace_ends_where_the_packet_does() {
    let mut fabric = fabric(|_| {});
    let long = |dont_fragment| packet(false, A1, B2, ROUTER, dont_fragment);
    assert!(verdict(&fabric, &long(true)).starts_with("drop too_big: "));
    assert_eq!(
        verdict(&fabric, &long(false)),
        "host h2, in fragments of 1450 bytes at most"
    );
    let last = udp_ttl(A1, B2, ROUTER, (1, 2), b"x", 1);
    assert!(verdict(&fabric, &last).starts_with("drop ttl_exceeded: "));
    fabric.set_device_mtu("b1", Some(1400));
    let wide = packet(false, A1, B1, ROUTER, true);
    assert!(verdict(&fabric, &wide).starts_with("drop too_big: "));
    let vteps = fabric.state().to_objects().hosts.swap_remove(1).vteps;
    fabric.down = vteps.iter().map(|vtep| vtep.parse().unwrap()).collect();
    let again = fabric.state().clone();
    fabric.set(again).unwrap();
    let frame = udp(A1, B2, ROUTER, (1, 2), b"x");
    assert!(verdict(&fabric, &frame).starts_with("drop underlay_unresolved: "));
}
