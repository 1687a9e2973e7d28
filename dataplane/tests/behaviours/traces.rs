//! What a trace says of a packet's way.

use weft_dataplane::fabric::Fabric;
use weft_dataplane::pipeline::trace;
use weft_proto::v1;

use crate::frames::{A1, B1, B2, udp, udp6};
use crate::topology::{ROUTER, fabric, port, route};

/// The steps of a packet from a1 that are about its route.
fn routes(fabric: &Fabric, frame: &[u8]) -> Vec<String> {
    let (host, port) = fabric.find_port("a1").unwrap();
    let host = &fabric.hosts[&host];
    let (steps, _) = trace::trace(host.pipeline.snapshot(), &host.shared.sessions, port, frame);
    let about = |stage: &str| matches!(stage, "route" | "ecmp");
    let steps = steps.0.into_iter().filter(|(stage, _)| about(stage));
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
        let end = crate::frames::End { v4, ..B1 };
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
        let end = crate::frames::End { v6, ..B1 };
        routes(&fabric, &udp6(A1, end, ROUTER, (1, 2), b"x"))
    };
    assert_eq!(v6(B1.v6), ["fd00:2::11 matches a /64: port b1"]);
    let mut hole = [0; 16];
    hole[..4].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
    assert_eq!(v6(hole), ["2001:db8:: matches a /40: blackhole"]);
}
