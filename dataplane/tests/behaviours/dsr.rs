//! Load balancers of mode dsr: a member gets what is for the load balancer's address as it is, and answers with that address.

use std::collections::BTreeSet;

use weft_dataplane::packet::DropReason;
use weft_dataplane::pipeline::checks::Asked;
use weft_dataplane::pipeline::trace::trace;
use weft_fabric::Fabric;
use weft_proto::v1;

use crate::balancing::{VIP, by_name, listener, member, of};
use crate::fragments::pieces;
use crate::frames::{A1, A2, A3, B1, B2, End, echo, read, tcp, udp, udp6};
use crate::least_connections::{counted, is_exact};
use crate::topology::{LIMITS, ROUTER, change, group, ingress, route};
use crate::translation::{dropped, only, unreachable};

fn direct(protocol: &str, members: &[&str]) -> v1::Listener {
    let members = members.iter().map(|port| member(port, 0)).collect();
    v1::Listener {
        mode: "dsr".into(),
        ..listener(protocol, 80, members)
    }
}

/// Port 80 of TCP and UDP is served by these.
fn served_by(members: &[&str]) -> Fabric {
    of(vec![direct("tcp", members), direct("udp", members)])
}

/// Changes the members of both listeners.
fn members(fabric: &mut Fabric, to: impl Fn(&mut Vec<v1::Member>)) {
    change(fabric, |objects| {
        for listener in &mut objects.load_balancers[0].listeners {
            to(&mut listener.members);
        }
    });
}

/// A member, with the load balancer's address.
fn as_vip(member: &str) -> End {
    End {
        mac: by_name(member).mac,
        ..VIP
    }
}

/// The MAC that a port sends to for another one.
fn next(from: End, to: End) -> [u8; 6] {
    if from.v4[2] == to.v4[2] {
        to.mac
    } else {
        ROUTER
    }
}

#[test]
fn a_member_gets_what_was_sent_and_answers_with_the_address() {
    for make in [udp, udp6] {
        for (client, name) in [(A1, "a1"), (B1, "b1"), (A3, "a3"), (B2, "b2")] {
            let mut fabric = served_by(&["a2", "b2", "a3"]);
            let mut seen_members = BTreeSet::new();
            for source_port in 1000..1060 {
                let mut first = None;
                for round in 0..4u8 {
                    let question = make(client, VIP, ROUTER, (source_port, 80), &[round]);
                    let mut out = fabric.send(name, &question);
                    let Some(out) = out.pop() else {
                        // A member that has the address sends nothing there.
                        assert!(fabric.all_drops()[&DropReason::UnknownMac] > 0);
                        break;
                    };
                    assert_eq!(*first.get_or_insert(out.port.clone()), out.port);
                    let to = by_name(&out.port);
                    // All but the MACs and the hop limit is as it was sent; a checksum covers the rest.
                    let [seen, sent] = [&out.frame, &question].map(|frame| read(frame));
                    assert_eq!(
                        (seen.source, seen.destination, seen.source_port),
                        (sent.source, sent.destination, sent.source_port)
                    );
                    assert_eq!(
                        (seen.destination_port, seen.payload),
                        (sent.destination_port, sent.payload)
                    );
                    assert_eq!((seen.dst, seen.src, seen.ttl), (to.mac, ROUTER, 63));
                    let back = next(to, client);
                    let member = as_vip(&out.port);
                    let answer = make(member, client, back, (80, source_port), &[round]);
                    let (port, seen, _) = only(&mut fabric, &out.port, &answer);
                    assert_eq!(port, name);
                    let sent = read(&answer);
                    assert_eq!(
                        (seen.source, seen.source_port, seen.payload),
                        (sent.source, 80, sent.payload)
                    );
                    seen_members.insert(out.port);
                }
            }
            assert_eq!(
                seen_members.len(),
                3 - usize::from(["a3", "b2"].contains(&name))
            );
            let host = &fabric.hosts[if name == "b2" { "h2" } else { "h1" }];
            let fast = host.pipeline.counters().fast.get();
            assert!(fast > 60, "what a session knows is fast: {fast}");
        }
    }
}

/// Its connection with the client: opened, answered, acknowledged.
fn connect(fabric: &mut Fabric, source_port: u16) -> String {
    let ports = (source_port, 80);
    let (to, ..) = only(fabric, "a1", &tcp(A1, VIP, ROUTER, ports, "S", (100, 0), 0));
    let answer = reply(&to, source_port, "SA", (900, 101), 0);
    assert_eq!(only(fabric, &to, &answer).0, "a1");
    let ack = tcp(A1, VIP, ROUTER, ports, "A", (101, 901), 0);
    assert_eq!(only(fabric, "a1", &ack).0, to);
    to
}

fn reply(from: &str, to: u16, flags: &str, numbers: (u32, u32), payload: usize) -> Vec<u8> {
    let back = next(by_name(from), A1);
    tcp(as_vip(from), A1, back, (80, to), flags, numbers, payload)
}

#[test]
fn a_connection_keeps_its_member_whatever_else_changes_and_ends_with_it() {
    // One member on the client's own host, one on another.
    let mut fabric = served_by(&["a2", "a3"]);
    let found: Vec<(u16, String)> = (1000..1020)
        .map(|port| (port, connect(&mut fabric, port)))
        .collect();
    assert!(found.iter().any(|it| it.1 == "a2") && found.iter().any(|it| it.1 == "a3"));
    // Others come, these drain, and something else of the VPC changes.
    members(&mut fabric, |members| {
        members.iter_mut().for_each(|it| it.draining = true);
        members.push(member("b1", 0));
        members.push(member("b2", 0));
    });
    for (source_port, first) in &found {
        let data = tcp(A1, VIP, ROUTER, (*source_port, 80), "A", (101, 901), 9);
        assert_eq!(only(&mut fabric, "a1", &data).0, *first);
        let answer = reply(first, *source_port, "A", (901, 110), 5);
        assert_eq!(only(&mut fabric, first, &answer).0, "a1");
    }
    for source_port in 2000..2020 {
        assert!(connect(&mut fabric, source_port).starts_with('b'));
    }
    // Removed: the client is told, and the member is heard no more.
    members(&mut fabric, |members| {
        members.retain(|it| it.port.starts_with('b'));
    });
    for (source_port, first) in &found {
        let data = tcp(A1, VIP, ROUTER, (*source_port, 80), "A", (110, 906), 9);
        let (to, seen, frame) = only(&mut fabric, "a1", &data);
        assert_eq!((to.as_str(), seen.source), ("a1", VIP.v4.into()));
        assert_eq!((&frame[38..42], frame[47]), (&906u32.to_be_bytes()[..], 4));
        let answer = reply(first, *source_port, "A", (906, 110), 5);
        dropped(&mut fabric, first, &answer, DropReason::SpoofedAddress);
    }
    assert_eq!(fabric.all_drops()[&DropReason::MemberGone], 20);
}

#[test]
fn who_has_no_answer_yet_gets_another_member_and_a_change_of_mode_ends_connections() {
    let mut fabric = served_by(&["a2", "b2"]);
    let syn = tcp(A1, VIP, ROUTER, (1000, 80), "S", (100, 0), 0);
    let (first, ..) = only(&mut fabric, "a1", &syn);
    members(&mut fabric, |members| members.retain(|it| it.port != first));
    assert_ne!(only(&mut fabric, "a1", &syn).0, first);
    for (before, after) in [("dsr", "nat"), ("nat", "dsr")] {
        let mode = |fabric: &mut Fabric, to: &str| {
            change(fabric, |objects| {
                objects.load_balancers[0].listeners[0].mode = to.into();
            });
        };
        let mut fabric = served_by(&["a2"]);
        mode(&mut fabric, before);
        only(&mut fabric, "a1", &syn);
        let end = if before == "dsr" { as_vip("a2") } else { A2 };
        let answer = tcp(end, A1, A1.mac, (80, 1000), "SA", (900, 101), 0);
        assert_eq!(only(&mut fabric, "a2", &answer).0, "a1");
        mode(&mut fabric, after);
        let data = tcp(A1, VIP, ROUTER, (1000, 80), "A", (101, 901), 9);
        assert_eq!(only(&mut fabric, "a1", &data).0, "a1", "a reset");
        assert_eq!(fabric.all_drops()[&DropReason::MemberGone], 1);
    }
}

#[test]
fn the_address_is_a_members_for_answers_alone() {
    let mut fabric = served_by(&["a2", "a3"]);
    let reason = DropReason::SpoofedAddress;
    let spoof = |from: End, ports| udp(from, A1, next(A2, A1), ports, b"x");
    // Before anybody has asked; from another port; by TCP and ICMP; to all, and to the gateway's services.
    dropped(&mut fabric, "a2", &spoof(as_vip("a2"), (80, 1000)), reason);
    dropped(&mut fabric, "a2", &spoof(as_vip("a2"), (81, 1000)), reason);
    let rst = tcp(as_vip("a2"), A1, A1.mac, (80, 9), "R", (7, 0), 0);
    dropped(&mut fabric, "a2", &rst, reason);
    let ping = echo(as_vip("a2"), A1, A1.mac, 9, b"ping");
    dropped(&mut fabric, "a2", &ping, reason);
    for there in [[10, 0, 1, 1], [169, 254, 169, 254]] {
        let there = End { v4: there, ..A1 };
        let question = udp(as_vip("a2"), there, ROUTER, (80, 53), b"q");
        dropped(&mut fabric, "a2", &question, reason);
    }
    let all = End { v4: [255; 4], ..A1 };
    let to_all = udp(as_vip("a2"), all, [0xff; 6], (80, 9), b"x");
    dropped(&mut fabric, "a2", &to_all, reason);
    // While a client waits: its member alone, which is not another port of the member's host, and no other MAC.
    let (to, ..) = only(&mut fabric, "a1", &udp(A1, VIP, ROUTER, (1000, 80), b"q"));
    let no_member = udp(as_vip("b2"), A1, ROUTER, (80, 1000), b"x");
    dropped(&mut fabric, "b2", &no_member, reason);
    let mac = End { mac: B1.mac, ..VIP };
    let wrong_mac = udp(mac, A1, next(by_name(&to), A1), (80, 1000), b"x");
    dropped(&mut fabric, &to, &wrong_mac, DropReason::SpoofedBoth);
    let other = if to == "a2" { "a3" } else { "a2" };
    let answer = |from: &str| {
        let back = next(by_name(from), A1);
        udp(as_vip(from), A1, back, (80, 1000), b"x")
    };
    dropped(&mut fabric, other, &answer(other), reason);
    assert_eq!(only(&mut fabric, &to, &answer(&to)).0, "a1");
    // And not what another one may have that is no member with dsr.
    let mut fabric = of(vec![listener("udp", 80, vec![member("a2", 0)])]);
    only(&mut fabric, "a1", &udp(A1, VIP, ROUTER, (1000, 80), b"q"));
    dropped(&mut fabric, "a2", &answer("a2"), reason);
}

#[test]
fn policy_of_both_sees_the_address_and_routes_are_not_asked() {
    let mut fabric = served_by(&["b2"]);
    change(&mut fabric, |objects| {
        group(objects, "open").rules = vec![ingress("udp", Some(80))];
        // What the client's table says of the member's subnet.
        let mut away = route("10.0.2.0/24");
        away.blackhole = true;
        objects.route_tables[0].routes = vec![away];
    });
    let question = udp(A1, VIP, ROUTER, (1000, 80), b"q");
    assert_eq!(only(&mut fabric, "a1", &question).0, "b2");
    let answer = udp(as_vip("b2"), A1, ROUTER, (80, 1000), b"a");
    assert_eq!(only(&mut fabric, "b2", &answer).0, "a1");
    change(&mut fabric, |objects| group(objects, "open").rules.clear());
    dropped(&mut fabric, "a1", &question, DropReason::GroupDenied);
}

#[test]
fn errors_about_a_flow_reach_who_sent_it() {
    for members in [["a2"], ["a3"]] {
        let mut fabric = served_by(&members);
        let name = members[0];
        let question = udp(A1, VIP, ROUTER, (1000, 80), b"question");
        let (to, _, got) = only(&mut fabric, "a1", &question);
        assert_eq!(to, name);
        let back = next(by_name(name), A1);
        let error = unreachable(as_vip(name), A1, back, &got[14..]);
        let (to, seen, frame) = only(&mut fabric, name, &error);
        assert_eq!((to.as_str(), seen.source), ("a1", VIP.v4.into()));
        // It quotes what the client sent, to the address that it sent to.
        assert_eq!((&frame[54..58], &frame[58..62]), (&A1.v4[..], &VIP.v4[..]));
        let answer = udp(as_vip(name), A1, back, (80, 1000), b"answer");
        let (_, _, got) = only(&mut fabric, name, &answer);
        let error = unreachable(A1, VIP, ROUTER, &got[14..]);
        let (to, seen, frame) = only(&mut fabric, "a1", &error);
        assert_eq!((to.as_str(), seen.destination), (name, VIP.v4.into()));
        assert_eq!((&frame[54..58], &frame[58..62]), (&VIP.v4[..], &A1.v4[..]));
        // Of no flow: of nobody.
        let stray = udp(as_vip(name), A1, back, (80, 7), b"answer");
        let error = unreachable(A1, VIP, ROUTER, &stray[14..]);
        dropped(&mut fabric, "a1", &error, DropReason::IcmpUnrelated);
    }
}

#[test]
fn fragments_go_with_their_first_both_ways() {
    for name in ["a2", "a3"] {
        let mut fabric = served_by(&[name]);
        let question = udp(A1, VIP, ROUTER, (1000, 80), &[7; 1000]);
        for piece in pieces(&question, 1, 400, None) {
            assert_eq!(only(&mut fabric, "a1", &piece).0, name);
        }
        let back = next(by_name(name), A1);
        let answer = udp(as_vip(name), A1, back, (80, 1000), &[8; 1000]);
        for piece in pieces(&answer, 2, 400, None) {
            assert_eq!(only(&mut fabric, name, &piece).0, "a1");
        }
        // Nobody has asked from there.
        let stray = udp(as_vip(name), A1, back, (80, 1001), &[8; 1000]);
        let first = &pieces(&stray, 3, 400, None)[0];
        dropped(&mut fabric, name, first, DropReason::SpoofedAddress);
    }
}

#[test]
fn sessions_are_counted_where_the_algorithm_goes_by_them() {
    let mut listener = direct("udp", &["a2", "b2", "a3"]);
    listener.algorithm = "least-connections".into();
    let mut fabric = of(vec![listener]);
    for source_port in 1000..1009 {
        only(
            &mut fabric,
            "a1",
            &udp(A1, VIP, ROUTER, (source_port, 80), b"q"),
        );
    }
    let found: Vec<u32> = counted(&fabric, "h1", VIP.v4, 17).into_values().collect();
    assert_eq!(found, [3, 3, 3]);
    is_exact(&fabric);
    fabric.advance(3_600_000);
    fabric.live(2000).unwrap();
    let found: Vec<u32> = counted(&fabric, "h1", VIP.v4, 17).into_values().collect();
    assert_eq!(found, [0, 0, 0]);
    is_exact(&fabric);
}

#[test]
fn a_connection_goes_on_after_the_hosts_have_started_again() {
    for host in ["h1", "h2"] {
        let mut fabric = served_by(&["b2"]);
        connect(&mut fabric, 1000);
        fabric.restart(host, LIMITS).unwrap();
        if host == "h2" {
            // The member's packet comes first: there is no question that its host knows of. The client's does, with its next one.
            let answer = reply("b2", 1000, "A", (901, 101), 5);
            dropped(&mut fabric, "b2", &answer, DropReason::SpoofedAddress);
        }
        let data = tcp(A1, VIP, ROUTER, (1000, 80), "A", (101, 901), 9);
        assert_eq!(only(&mut fabric, "a1", &data).0, "b2");
        let answer = reply("b2", 1000, "A", (901, 110), 5);
        assert_eq!(only(&mut fabric, "b2", &answer).0, "a1");
    }
}

#[test]
fn health_checks_are_answered_from_the_address() {
    let mut fabric = served_by(&["a2"]);
    let index = fabric.port_index("h2", "a2").unwrap();
    let checks = fabric.checks("h2");
    let asked = |protocol, to| Asked {
        port: index,
        protocol,
        to,
    };
    let number = checks.begin(asked(17, 80)).unwrap();
    let gateway = End {
        v4: [10, 0, 1, 1],
        ..VIP
    };
    let answer = udp(as_vip("a2"), gateway, ROUTER, (80, number), b"up");
    assert!(fabric.send("a2", &answer).is_empty());
    assert_eq!(fabric.asked.len(), 1, "{:?}", fabric.all_drops());
    checks.end(number);
    dropped(&mut fabric, "a2", &answer, DropReason::SpoofedAddress);
}

#[test]
fn a_member_that_did_not_serve_is_heard_when_it_does_again_and_at_any_port() {
    let mut fabric = served_by(&["a2"]);
    change(&mut fabric, |objects| {
        let balancer = &mut objects.load_balancers[0];
        for listener in &mut balancer.listeners {
            listener.health = Some(v1::HealthCheck {
                protocol: "tcp".into(),
                port: 8081,
                ..v1::HealthCheck::default()
            });
        }
        let balancer = &objects.load_balancers[0];
        let found = balancer.listeners.iter().map(|listener| {
            let at = (by_name("a2").v4.into(), 80);
            v1::MemberHealth::of(balancer, listener, at)
        });
        objects.member_health = found.collect();
    });
    let index = fabric.port_index("h2", "a2").unwrap();
    let checks = fabric.checks("h2");
    let number = checks
        .begin(Asked {
            port: index,
            protocol: 6,
            to: 8081,
        })
        .unwrap();
    let gateway = End {
        v4: [10, 0, 1, 1],
        ..VIP
    };
    let answer = tcp(
        as_vip("a2"),
        gateway,
        ROUTER,
        (8081, number),
        "SA",
        (5, 6),
        0,
    );
    assert!(fabric.send("a2", &answer).is_empty());
    assert_eq!(fabric.asked.len(), 1, "{:?}", fabric.all_drops());
    // From another port, and with another MAC, it is nobody's answer.
    let other = tcp(
        as_vip("a2"),
        gateway,
        ROUTER,
        (8082, number),
        "SA",
        (5, 6),
        0,
    );
    dropped(&mut fabric, "a2", &other, DropReason::SpoofedAddress);
    let mac = End { mac: B1.mac, ..VIP };
    let other = tcp(mac, gateway, ROUTER, (8081, number), "SA", (5, 6), 0);
    dropped(&mut fabric, "a2", &other, DropReason::SpoofedBoth);
    assert_eq!(fabric.asked.len(), 1);
}

#[test]
fn errors_and_questions_with_the_address_are_of_the_flows_that_ask_the_member() {
    let mut fabric = served_by(&["a2", "a3"]);
    let mut ask = |source_port| {
        let question = udp(A1, VIP, ROUTER, (source_port, 80), b"question");
        let (to, _, got) = only(&mut fabric, "a1", &question);
        (to == "a2").then_some(got)
    };
    let got = (1000..1100).find_map(&mut ask).unwrap();
    // The other member is on the client's host, which knows the flow.
    let of = |name: &str| unreachable(as_vip(name), A1, next(by_name(name), A1), &got[14..]);
    dropped(&mut fabric, "a3", &of("a3"), DropReason::SpoofedAddress);
    assert_eq!(only(&mut fabric, "a2", &of("a2")).0, "a1");
    // A member opens nothing, even where a client has a connection.
    let name = connect(&mut fabric, 1000);
    let opens = reply(&name, 1000, "S", (9000, 0), 0);
    dropped(&mut fabric, &name, &opens, DropReason::SpoofedAddress);
    let data = tcp(A1, VIP, ROUTER, (1000, 80), "A", (101, 901), 9);
    assert_eq!(only(&mut fabric, "a1", &data).0, name);
}

#[test]
fn a_trace_says_that_the_member_gets_it_as_it_is() {
    let fabric = served_by(&["b2"]);
    let index = fabric.port_index("h1", "a1").unwrap();
    let frame = udp(A1, VIP, ROUTER, (1000, 80), b"q");
    let found = trace(fabric.hosts["h1"].view(), index, &frame);
    let steps = found.steps.iter();
    let text: Vec<String> = steps
        .map(|(stage, text)| format!("{stage}: {text}"))
        .collect();
    let wanted = [
        "load balancer: web: 10.0.2.12 port 80, one of 1 members, as it is",
        "route: straight to the member 10.0.2.12",
    ];
    for line in wanted {
        assert!(text.iter().any(|it| it == line), "{text:?}");
    }
}
