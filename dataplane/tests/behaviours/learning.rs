//! VPCs whose ports hosts learn on demand (decision 018): the first packet to an address, or from one, waits until it is known who has it. Nothing is
//! judged by less than a host that is told all would know.

use std::collections::BTreeSet;

use weft_dataplane::packet::DropReason;
use weft_dataplane::pipeline::trace;
use weft_dataplane::snapshot::Place;
use weft_fabric::Fabric;
use weft_proto::v1::Objects;

use crate::frames::{A1, A2, A3, B2, End, arp, solicit, udp, udp6};
use crate::topology::{ROUTER, change, fabric_of, group, ingress, objects, port};

/// The base topology, changed, with hosts that learn.
fn learning(edit: impl FnOnce(&mut Objects)) -> Fabric {
    let mut objects = objects();
    edit(&mut objects);
    let mut fabric = fabric_of(objects);
    fabric.learns = true;
    fabric.set(fabric.state().clone()).unwrap();
    fabric
}

/// The ports of other hosts that a host knows in blue.
fn known(fabric: &Fabric, host: &str) -> usize {
    let snapshot = fabric.hosts[host].pipeline.snapshot();
    let vpc = snapshot.vpcs.iter().find(|vpc| vpc.id == "blue").unwrap();
    let places = vpc.by_mac.iter().map(|(_, endpoint)| endpoint.place);
    places
        .filter(|place| matches!(place, Place::There(_)))
        .count()
}

fn waiting(fabric: &Fabric) -> usize {
    let workers = fabric.hosts.values().map(|host| &host.pipeline);
    workers
        .map(weft_dataplane::pipeline::Pipeline::waiting)
        .sum()
}

#[test]
fn the_first_packet_waits_for_the_answer_and_arrives() {
    let mut fabric = learning(|_| {});
    assert_eq!((known(&fabric, "h1"), known(&fabric, "h2")), (0, 0));
    let frame = udp(A1, B2, ROUTER, (7, 8), b"first");
    let out = fabric.send("a1", &frame);
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].port, "b2");
    // Each has learned the other's, and nothing else.
    assert_eq!((known(&fabric, "h1"), known(&fabric, "h2")), (1, 1));
    assert_eq!(
        fabric
            .send("b2", &udp(B2, A1, ROUTER, (8, 7), b"answer"))
            .len(),
        1
    );
    assert_eq!(waiting(&fabric), 0);
    assert!(fabric.all_drops().is_empty(), "{:?}", fabric.all_drops());
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn arp_is_answered_for_a_port_that_was_not_known() {
    let mut fabric = learning(|_| {});
    let question = arp(A1.mac, 1, (A1.mac, A1.v4), ([0; 6], A2.v4));
    let mut answer = arp(A2.mac, 2, (A2.mac, A2.v4), (A1.mac, A1.v4));
    answer[..6].copy_from_slice(&A1.mac);
    let out = fabric.send("a1", &question);
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].frame, answer);
    // By its MAC, after what was asked for has been given back.
    fabric.now += 1000;
    fabric.forget("h1").unwrap();
    assert_eq!(known(&fabric, "h1"), 0);
    let out = fabric.send("a1", &udp(A1, A2, A2.mac, (7, 8), b"x"));
    assert_eq!(out.len(), 1);
}

#[test]
fn a_neighbour_is_found_that_was_not_known() {
    let mut fabric = learning(|_| {});
    let out = fabric.send("a1", &solicit(A1, A1.v6, A2.v6));
    assert_eq!((out.len(), &*out[0].port), (1, "a1"));
    assert_eq!(out[0].frame[6..12], A2.mac);
    let out = fabric.send("a1", &udp6(A1, B2, ROUTER, (7, 8), b"x"));
    assert_eq!((out.len(), &*out[0].port), (1, "b2"));
}

#[test]
fn what_nobody_has_is_asked_for_once_and_found_when_somebody_gets_it() {
    let mut fabric = learning(|objects| objects.ports.retain(|port| port.id != "b2"));
    let frame = udp(A1, B2, ROUTER, (7, 8), b"x");
    for count in 1..=3 {
        assert_eq!(fabric.send("a1", &frame), []);
        assert_eq!(fabric.drops("h1", DropReason::NoPort), count);
    }
    assert_eq!(fabric.drops("h1", DropReason::AddressUnlearned), 0);
    let all = objects();
    change(&mut fabric, |objects| {
        objects.ports = all.ports;
    });
    assert_eq!(fabric.send("a1", &frame).len(), 1);
}

#[test]
fn a_rule_that_names_a_group_holds_as_if_all_members_were_known() {
    let mut fabric = learning(|objects| {
        let mut rule = ingress("udp", None);
        rule.remote_group = "web".into();
        group(objects, "open").rules = vec![rule];
        let mut web = group(objects, "open").clone();
        (web.id, web.rules) = ("web".into(), Vec::new());
        // a2 is a member, b2 is none; both are on the other host.
        web.members = vec!["10.0.1.12".into()];
        objects.security_groups.push(web);
        port(objects, "a2").security_groups.push("web".into());
    });
    for (from, source, admitted) in [("b2", B2, false), ("a2", A2, true), ("b2", B2, false)] {
        let out = fabric.send(from, &udp(source, A1, ROUTER, (7, 8), b"x"));
        assert_eq!(out.len(), usize::from(admitted), "{from}");
    }
    assert_eq!(fabric.drops("h1", DropReason::GroupDenied), 2);
}

#[test]
fn packets_of_a_flow_stay_in_order() {
    let mut fabric = learning(|_| {});
    let frames: Vec<Vec<u8>> = (0..100u8)
        .map(|n| udp(A1, B2, ROUTER, (7, 8), &[n]))
        .collect();
    let out = fabric.send_vector("a1", frames.iter().map(|frame| &frame[..]));
    let order: Vec<u8> = out.iter().map(|out| *out.frame.last().unwrap()).collect();
    assert_eq!(order, (0..100).collect::<Vec<u8>>());
}

#[test]
fn an_answer_has_no_session_decided_again() {
    let mut fabric = learning(|objects| {
        let mut rule = ingress("udp", None);
        rule.remote_group = "web".into();
        group(objects, "open").rules = vec![rule];
        let mut web = group(objects, "open").clone();
        (web.id, web.rules) = ("web".into(), Vec::new());
        web.members = ["10.0.1.11", "10.0.1.12", "10.0.2.12"]
            .map(String::from)
            .to_vec();
        objects.security_groups.push(web);
    });
    let decided_again = |fabric: &Fabric| {
        let counters = fabric.hosts.values().map(|host| host.pipeline.counters());
        counters.map(|it| it.decided_again.get()).sum::<u64>()
    };
    let talk = |fabric: &mut Fabric, to: End| {
        let out = fabric.send("a1", &udp(A1, to, ROUTER, (7, 8), b"x"));
        assert_eq!(out.len(), 1);
        decided_again(fabric)
    };
    talk(&mut fabric, A2);
    let before = talk(&mut fabric, A2);
    talk(&mut fabric, B2);
    assert_eq!(talk(&mut fabric, A2), before);
    // What was known not to be there, and comes, concerns whoever was judged without it.
    let nobody = End {
        v4: [10, 0, 2, 13],
        ..B2
    };
    assert_eq!(
        fabric.send("a1", &udp(A1, nobody, ROUTER, (7, 8), b"x")),
        []
    );
    change(&mut fabric, |objects| {
        let mut more = port(objects, "b2").clone();
        (more.id, more.mac) = ("b3".into(), "02:00:00:00:02:03".into());
        more.addresses = vec!["10.0.2.13".into()];
        objects.ports.push(more);
        group(objects, "web").members.push("10.0.2.13".into());
    });
    assert!(talk(&mut fabric, A2) > before);
}

#[test]
fn a_packet_waits_for_so_long_and_no_longer() {
    let mut fabric = learning(|_| {});
    fabric.unanswered = BTreeSet::from(["h1".to_owned()]);
    assert_eq!(fabric.send("a1", &udp(A1, B2, ROUTER, (7, 8), b"x")), []);
    assert_eq!(waiting(&fabric), 1);
    assert_eq!(fabric.hosts["h1"].unaccounted(), 0);
    fabric.now += 99;
    fabric.resume();
    assert_eq!(waiting(&fabric), 1);
    fabric.now += 1;
    fabric.resume();
    assert_eq!(waiting(&fabric), 0);
    assert_eq!(fabric.drops("h1", DropReason::AddressUnlearned), 1);
    assert_eq!(fabric.hosts["h1"].unaccounted(), 0);
    assert_eq!(fabric.missing_frames(), 0);
    // What is known goes on meanwhile.
    assert_eq!(
        fabric.send("a1", &udp(A1, A3, A3.mac, (7, 8), b"x")).len(),
        1
    );
}

#[test]
fn one_who_asks_for_everything_holds_nobody_up() {
    let mut fabric = learning(|_| {});
    fabric.unanswered = BTreeSet::from(["h1".to_owned()]);
    for n in 0..=255u8 {
        for m in [20, 30] {
            let end = End {
                v4: [10, 0, 2, n.max(m)],
                ..B2
            };
            fabric.send("a1", &udp(A1, end, ROUTER, (u16::from(m), 8), b"x"));
        }
    }
    assert_eq!(waiting(&fabric), 256);
    assert_eq!(fabric.drops("h1", DropReason::LearnLimit), 256);
    // Another port's waits, and goes on.
    fabric.send("a3", &udp(A3, B2, ROUTER, (7, 8), b"x"));
    assert_eq!(waiting(&fabric), 257);
    fabric.unanswered.clear();
    fabric.now += 50;
    let out = fabric.resume();
    let of_a3 = out.iter().filter(|out| out.port == "b2");
    assert!(of_a3.count() >= 1);
}

#[test]
fn a_broadcast_reaches_ports_that_the_sender_does_not_know() {
    let mut fabric = learning(|_| {});
    let everybody = End {
        v4: [255; 4],
        mac: [255; 6],
        ..A1
    };
    let out = fabric.send("a1", &udp(A1, everybody, [255; 6], (7, 8), b"x"));
    let ports: BTreeSet<&str> = out.iter().map(|out| &*out.port).collect();
    assert_eq!(ports, BTreeSet::from(["a2", "a3"]));
}

#[test]
fn a_trace_says_what_is_asked_for() {
    let fabric = learning(|_| {});
    let (host, index) = fabric.find_port("a1").unwrap();
    let frame = udp(A1, B2, ROUTER, (7, 8), b"x");
    let trace = trace::trace(fabric.hosts[&host].view(), index, &frame);
    let text = "who has 10.0.2.12 in VPC blue is not known yet: the controller is asked";
    assert!(
        trace.steps.contains(&("learn", text.to_owned())),
        "{:?}",
        trace.steps
    );
    assert_eq!(
        trace.outcome,
        trace::Outcome::Drop(DropReason::AddressUnlearned)
    );
    let question = arp(A1.mac, 1, (A1.mac, A1.v4), ([0; 6], A2.v4));
    let trace = trace::trace(fabric.hosts[&host].view(), index, &question);
    assert_eq!(
        trace.outcome,
        trace::Outcome::Drop(DropReason::AddressUnlearned)
    );
}
