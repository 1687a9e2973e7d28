//! Packets to the metadata addresses in the pipeline, with a service on the host and without one.

use weft_dataplane::packet::{DropReason, Offload, Segments};
use weft_dataplane::pipeline::Settings;
use weft_dataplane::pipeline::trace;
use weft_fabric::Fabric;
use weft_proto::state::State;
use weft_proto::v1::{Objects, SecurityRule};

use crate::frames::{A1, A2, End, arp, echo, read, solicit, tcp, udp};
use crate::topology::{LIMITS, ROUTER, fabric, group, objects, port, route};

/// The service, as an end of a conversation.
const SERVICE: End = End {
    mac: ROUTER,
    v4: [169, 254, 169, 254],
    v6: [0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x54],
};

fn serving_with(settings: &Settings, change: impl FnOnce(&mut Objects)) -> Fabric {
    let mut objects = objects();
    change(&mut objects);
    let state = State::from_objects(objects).unwrap();
    let mut fabric = Fabric::new(state.clone(), settings, LIMITS).unwrap();
    fabric.metadata = true;
    fabric.set(state).unwrap();
    fabric
}

fn serving(change: impl FnOnce(&mut Objects)) -> Fabric {
    serving_with(&Settings::default(), change)
}

fn request(from: End) -> Vec<u8> {
    tcp(from, SERVICE, ROUTER, (40_000, 80), "S", (7, 0), 0)
}

/// Frames that reached the service.
fn asked(fabric: &mut Fabric) -> Vec<(String, Vec<u8>)> {
    std::mem::take(&mut fabric.asked)
}

#[test]
fn without_a_service_its_addresses_are_like_any_other() {
    let mut fabric = fabric(|_| {});
    assert!(fabric.send("a1", &request(A1)).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::NoRoute), 1);
    let question = arp(A1.mac, 1, (A1.mac, A1.v4), ([0; 6], SERVICE.v4));
    assert!(fabric.send("a1", &question).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::ArpUnanswered), 1);
    assert!(asked(&mut fabric).is_empty());
    // A tenant may have it.
    let mut fabric = crate::topology::fabric(|objects| {
        port(objects, "a3").unguarded = true;
        let mut to_a3 = route("169.254.169.254/32");
        to_a3.port = "a3".into();
        objects.route_tables[0].routes.push(to_a3);
    });
    let out = fabric.send("a1", &request(A1));
    assert_eq!(out[0].port, "a3");
}

#[test]
fn requests_reach_the_service_untouched_and_no_policy_is_asked() {
    let mut fabric = serving(|objects| {
        // Nothing may leave but to a place where the service is not.
        group(objects, "open").rules.push(SecurityRule {
            direction: "egress".into(),
            remote_cidr: "203.0.113.0/24".into(),
            ..SecurityRule::default()
        });
    });
    let frame = request(A1);
    assert!(fabric.send("a1", &frame).is_empty());
    assert!(fabric.send("r1", &frame).is_empty());
    let got = asked(&mut fabric);
    assert_eq!(got, [("a1".into(), frame.clone()), ("r1".into(), frame)]);
    assert!(fabric.all_drops().is_empty(), "{:?}", fabric.all_drops());
    let statistics = fabric.hosts["h1"].shared.sessions.statistics();
    assert_eq!(statistics.live, 0, "no session is kept of it");
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn the_gateway_has_the_addresses_of_the_service() {
    let mut fabric = serving(|_| {});
    let out = fabric.send("a1", &arp(A1.mac, 1, (A1.mac, A1.v4), ([0; 6], SERVICE.v4)));
    assert_eq!(out[0].frame[22..28], ROUTER);
    let out = fabric.send("a1", &solicit(A1, A1.v6, SERVICE.v6));
    assert_eq!(out[0].frame[78..86], [&[2, 1][..], &ROUTER].concat());
    let out = fabric.send("a1", &echo(A1, SERVICE, ROUTER, 7, b"there?"));
    assert_eq!(read(&out[0].frame).source.to_string(), "169.254.169.254");
    for frame in [
        udp(A1, SERVICE, ROUTER, (1000, 80), b""),
        tcp(A1, SERVICE, ROUTER, (1000, 443), "S", (1, 0), 0),
    ] {
        assert!(fabric.send("a1", &frame).is_empty());
    }
    assert_eq!(fabric.drops("h1", DropReason::GatewayUnserved), 2);
    assert!(asked(&mut fabric).is_empty());
}

#[test]
fn who_lies_about_its_address_gets_no_metadata() {
    let mut fabric = serving(|_| {});
    assert!(fabric.send("a1", &request(A2)).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::SpoofedBoth), 1);
    let mut stolen = A1;
    stolen.v4 = A2.v4;
    assert!(fabric.send("a1", &request(stolen)).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::SpoofedAddress), 1);
    assert!(asked(&mut fabric).is_empty());
}

#[test]
fn nobody_else_answers_for_the_service() {
    // A session of such a packet would lead the guest's own requests away.
    let mut fabric = serving(|objects| {
        for id in ["a3", "b2"] {
            port(objects, id).unguarded = true;
        }
    });
    let mut posing = SERVICE;
    posing.mac = [2, 0, 0, 0, 1, 3];
    for (from, host) in [("a3", "h1"), ("b2", "h2")] {
        let frame = tcp(posing, A1, A1.mac, (80, 40_000), "S", (7, 0), 0);
        assert!(fabric.send(from, &frame).is_empty());
        assert_eq!(fabric.drops(host, DropReason::Martian), 1);
    }
    fabric.send("a1", &request(A1));
    assert_eq!(asked(&mut fabric).len(), 1);
}

#[test]
fn one_port_asks_no_more_than_its_rate() {
    let settings = Settings {
        metadata_per_second: 100,
        ..Settings::default()
    };
    let mut fabric = serving_with(&settings, |_| {});
    for _ in 0..200 {
        fabric.send("a1", &request(A1));
    }
    assert_eq!(asked(&mut fabric).len(), 50, "the burst");
    assert_eq!(fabric.drops("h1", DropReason::MetadataLimit), 150);
    fabric.send("r1", &request(A1));
    assert_eq!(asked(&mut fabric).len(), 1, "others have their own");
    fabric.now += 1000;
    fabric.send("a1", &request(A1));
    assert_eq!(asked(&mut fabric).len(), 1);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn fragments_and_segments_of_requests() {
    let mut fabric = serving(|_| {});
    let mut first = tcp(A1, SERVICE, ROUTER, (40_000, 80), "A", (7, 1), 100);
    first[20] = 0x20;
    let sum = etherparse::Ipv4Header::from_slice(&first[14..]).unwrap().0;
    first[24..26].copy_from_slice(&sum.calc_header_checksum().to_be_bytes());
    assert!(fabric.send("a1", &first).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::GatewayUnserved), 1);
    // A segment that is still to be split goes to the driver as it is.
    let segment = tcp(A1, SERVICE, ROUTER, (40_000, 80), "A", (7, 1), 3000);
    let offload = Offload {
        segments: Segments::Tcp4,
        size: 1000,
    };
    assert!(fabric.send_segment("a1", &segment, offload).is_empty());
    let got = asked(&mut fabric);
    assert_eq!((got.len(), got[0].1.len()), (1, segment.len()));
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn a_trace_says_who_answers() {
    let fabric = serving(|_| {});
    let host = &fabric.hosts["h1"];
    let (_, index) = fabric.find_port("a1").unwrap();
    let ask = |frame: &[u8]| {
        let trace = trace::trace(host.view(), index, frame);
        trace.outcome.text(host.pipeline.snapshot())
    };
    assert_eq!(ask(&request(A1)), "the metadata service of this host");
    let other = tcp(A1, SERVICE, ROUTER, (1000, 443), "S", (1, 0), 0);
    assert!(ask(&other).starts_with("drop gateway_unserved"));
}
