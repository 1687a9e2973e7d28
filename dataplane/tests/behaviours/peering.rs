//! Two VPCs that a peering joins: packets go from one into the other by route, within a host and across two, under the policy of both ports and
//! no further.

use weft_dataplane::packet::DropReason;
use weft_dataplane::pipeline::trace;
use weft_dataplane::session::State;
use weft_fabric::Fabric;
use weft_proto::v1::{self, Objects};

use crate::fragments::pieces;
use crate::frames::{A1, A2, End, echo, echo_reply, end, tcp, udp, udp6};
use crate::overlay::mend_ipv4;
use crate::topology::{ROUTER, change, fabric, group, ingress, port, route};
use crate::translation::{dropped, only, unreachable};

const G1: End = end(3, 1);
const G2: End = end(3, 2);
const Y1: End = end(4, 1);
const GREEN_ROUTER: [u8; 6] = [6, 0, 0, 0, 0, 0x33];

/// Ports of blue: a1 on h1, a2 on h2. Of green, which a peering joins to it: g1 on h1, g2 on h2. Of yellow, which another joins to green: y1 on h1.
const MORE: &str = r#"
vpcs: [{id: green, vni: 300}, {id: yellow, vni: 400}]
peerings:
  - {id: bg, requester: blue, accepter: green}
  - {id: gy, requester: green, accepter: yellow}
subnets:
  - {id: green-a, vpc: green, cidrs: [10.0.3.0/24, "fd00:3::/64"], gateway_mac: "06:00:00:00:00:33", route_table: green}
  - {id: yellow-a, vpc: yellow, cidrs: [10.0.4.0/24, "fd00:4::/64"]}
route_tables:
  - id: green
    vpc: green
    routes:
      - {prefix: 10.0.0.0/22, peering: bg}
      - {prefix: "fd00:1::/64", peering: bg}
      - {prefix: 10.0.4.0/24, peering: gy}
security_groups:
  - {id: green-open, vpc: green, rules: [{direction: ingress}]}
ports:
  - {id: g1, vpc: green, subnet: green-a, mac: "02:00:00:00:03:01", addresses: [10.0.3.11, "fd00:3::11"], security_groups: [green-open], host: h1}
  - {id: g2, vpc: green, subnet: green-a, mac: "02:00:00:00:03:02", addresses: [10.0.3.12, "fd00:3::12"], security_groups: [green-open], host: h2}
  - {id: y1, vpc: yellow, subnet: yellow-a, mac: "02:00:00:00:04:01", addresses: [10.0.4.11, "fd00:4::11"], host: h1}
"#;

fn peered(edit: impl FnOnce(&mut Objects)) -> Fabric {
    fabric(|objects| {
        let more: Objects = serde_yaml_ng::from_str(MORE).unwrap();
        objects.vpcs.extend(more.vpcs);
        objects.peerings.extend(more.peerings);
        objects.subnets.extend(more.subnets);
        objects.route_tables.extend(more.route_tables);
        objects.security_groups.extend(more.security_groups);
        objects.ports.extend(more.ports);
        for prefix in ["10.0.3.0/24", "10.0.4.0/24", "fd00:3::/64"] {
            let mut into = route(prefix);
            into.peering = "bg".into();
            objects.route_tables[0].routes.push(into);
        }
        edit(objects);
    })
}

/// Puts both sides of the first peering into states.
fn set_states(fabric: &mut Fabric, requester: &str, accepter: &str) {
    change(fabric, |objects| {
        objects.peerings[0].requester_state = requester.into();
        objects.peerings[0].accepter_state = accepter.into();
    });
}

/// VNIs of the tunnel packets that have crossed, over IPv4.
fn vnis(fabric: &mut Fabric) -> Vec<u32> {
    let crossed = std::mem::take(&mut fabric.crossed);
    let vni = |frame: &Vec<u8>| u32::from_be_bytes([0, frame[46], frame[47], frame[48]]);
    crossed.iter().map(vni).collect()
}

/// Each way several times, so that the session is asked too, by the slow path and by the fast path.
#[test]
fn datagrams_and_their_answers_cross_within_a_host_and_between_hosts() {
    for make in [udp, udp6] {
        for (a, a_name) in [(A1, "a1"), (A2, "a2")] {
            for (g, g_name) in [(G1, "g1"), (G2, "g2")] {
                let mut fabric = peered(|_| {});
                for round in 0..4u8 {
                    let question = make(a, g, ROUTER, (7, 53), &[round, 1]);
                    let (out, seen, _) = only(&mut fabric, a_name, &question);
                    assert_eq!(out, g_name);
                    assert_eq!((seen.dst, seen.src), (g.mac, GREEN_ROUTER));
                    assert_eq!((seen.ttl, &seen.payload[..]), (63, &[round, 1][..]));
                    let answer = make(g, a, GREEN_ROUTER, (53, 7), &[round]);
                    let (out, seen, _) = only(&mut fabric, g_name, &answer);
                    assert_eq!(out, a_name);
                    assert_eq!((seen.dst, seen.src), (a.mac, ROUTER));
                    assert_eq!((seen.ttl, &seen.payload[..]), (63, &[round][..]));
                }
                // On the wire each packet has the VNI of the VPC that it goes to.
                let crossed = vnis(&mut fabric);
                let host = |name: &str| fabric.find_port(name).unwrap().0;
                let times = if host(a_name) == host(g_name) { 0 } else { 4 };
                assert_eq!(crossed, [300, 100].repeat(times));
                for host in fabric.hosts.values() {
                    assert_eq!(host.unaccounted(), 0);
                }
                let fast = |host: &str| fabric.hosts[host].pipeline.counters().fast.get();
                assert!(fast("h1") + fast("h2") >= 4, "the fast path takes them");
            }
        }
    }
}

#[test]
fn a_connection_is_one_session_in_either_vpc_on_each_host() {
    for (g, g_name) in [(G1, "g1"), (G2, "g2")] {
        let mut fabric = peered(|_| {});
        let to = |flags, numbers, len| tcp(A1, g, ROUTER, (4000, 80), flags, numbers, len);
        let back = |flags, numbers, len| tcp(g, A1, GREEN_ROUTER, (80, 4000), flags, numbers, len);
        for (from, frame) in [
            ("a1", to("S", (1000, 0), 0)),
            (g_name, back("SA", (5000, 1001), 0)),
            ("a1", to("A", (1001, 5001), 0)),
            ("a1", to("A", (1001, 5001), 100)),
            (g_name, back("A", (5001, 1101), 900)),
            ("a1", to("FA", (1101, 5901), 0)),
            (g_name, back("FA", (5901, 1102), 0)),
            ("a1", to("A", (1102, 5902), 0)),
        ] {
            only(&mut fabric, from, &frame);
        }
        let hosts = if g_name == "g1" {
            &["h1"][..]
        } else {
            &["h1", "h2"]
        };
        for host in hosts {
            let host = &fabric.hosts[*host];
            let views = host.shared.sessions.list(9, fabric.now, |_| true);
            let [view] = &views[..] else {
                panic!("one session: {views:?}");
            };
            assert_eq!(view.state, State::TcpTimeWait);
            let (vni, flow) = view.translated.unwrap();
            let mut both = [vni.get(), view.vni.get()];
            both.sort_unstable();
            assert_eq!((both, flow), ([100, 300], view.flow));
        }
    }
}

#[test]
fn pings_and_pieces_cross() {
    let mut fabric = peered(|_| {});
    for _ in 0..3 {
        let (out, ..) = only(&mut fabric, "a1", &echo(A1, G2, ROUTER, 5, b"ping"));
        assert_eq!(out, "g2");
        let reply = echo_reply(G2, A1, GREEN_ROUTER, 5, b"ping");
        assert_eq!(only(&mut fabric, "g2", &reply).0, "a1");
    }
    for (g, g_name) in [(G1, "g1"), (G2, "g2")] {
        for order in [[0, 1, 2], [2, 1, 0]] {
            let whole = udp(A1, g, ROUTER, (7, 53), &[9; 3000]);
            let sent = pieces(&whole, 70 + order[0] as u32, 1200, None);
            let out: Vec<_> = order
                .iter()
                .flat_map(|at| fabric.send("a1", &sent[*at]))
                .collect();
            assert_eq!(out.len(), 3, "{:?}", fabric.all_drops());
            assert!(out.iter().all(|piece| piece.port == g_name));
        }
    }
}

#[test]
fn an_error_reaches_the_sender_in_the_other_vpc() {
    for (g, g_name) in [(G1, "g1"), (G2, "g2")] {
        let mut fabric = peered(|_| {});
        let sent = udp(A1, g, ROUTER, (7, 53), b"nobody listens");
        let (_, _, arrived) = only(&mut fabric, "a1", &sent);
        let error = unreachable(g, A1, GREEN_ROUTER, &arrived[14..]);
        let (out, seen, frame) = only(&mut fabric, g_name, &error);
        assert_eq!((out.as_str(), seen.source), ("a1", g.v4.into()));
        assert_eq!(frame[42..], arrived[14..], "what it quotes is as it was");
        // From the router of the other VPC, whose device is too narrow.
        fabric.set_device_mtu(g_name, Some(600));
        for _ in 0..2 {
            let long = udp(A1, g, ROUTER, (7, 53), &[7; 800]);
            let (out, seen, _) = only(&mut fabric, "a1", &long);
            assert_eq!((out.as_str(), seen.destination), ("a1", A1.v4.into()));
        }
    }
}

#[test]
fn nothing_passes_by_a_peering_that_is_not_active_on_both_sides() {
    for states in [
        ["frozen", "active"],
        ["active", "freezing"],
        ["connecting", "accepting"],
        ["rejected", "rejected"],
        ["deleted", "deleted"],
    ] {
        for (g, g_name) in [(G1, "g1"), (G2, "g2")] {
            let mut fabric = peered(|_| {});
            let to = |flags, numbers, len| tcp(A1, g, ROUTER, (4000, 80), flags, numbers, len);
            let back =
                |flags, numbers, len| tcp(g, A1, GREEN_ROUTER, (80, 4000), flags, numbers, len);
            only(&mut fabric, "a1", &to("S", (1000, 0), 0));
            only(&mut fabric, g_name, &back("SA", (5000, 1001), 0));
            only(&mut fabric, "a1", &to("A", (1001, 5001), 10));
            set_states(&mut fabric, states[0], states[1]);
            let reason = DropReason::PeeringInactive;
            dropped(&mut fabric, "a1", &to("A", (1011, 5001), 10), reason);
            dropped(&mut fabric, g_name, &back("A", (5001, 1011), 10), reason);
            dropped(
                &mut fabric,
                "a1",
                &udp(A1, g, ROUTER, (8, 8), b"new"),
                reason,
            );
            // Active again, the connection goes on.
            set_states(&mut fabric, "active", "activating");
            only(&mut fabric, "a1", &to("A", (1011, 5001), 10));
            only(&mut fabric, g_name, &back("A", (5001, 1021), 10));
        }
    }
}

#[test]
fn a_route_by_a_peering_that_is_gone_drops_by_name() {
    let mut fabric = peered(|_| {});
    let question = udp(A1, G2, ROUTER, (7, 53), b"x");
    only(&mut fabric, "a1", &question);
    change(&mut fabric, |objects| drop(objects.peerings.remove(0)));
    dropped(&mut fabric, "a1", &question, DropReason::PeeringInactive);
}

/// What is not a port's of the VPC itself does not leave by a peering, and what comes by one goes to a port of the VPC or nowhere.
#[test]
fn there_is_no_transit() {
    let mut fabric = peered(|objects| port(objects, "a1").unguarded = true);
    let through = udp(A1, Y1, ROUTER, (7, 53), b"x");
    dropped(&mut fabric, "a1", &through, DropReason::NoPort);
    let stranger = End {
        v4: [172, 16, 0, 1],
        ..A1
    };
    let passed_on = udp(stranger, G2, ROUTER, (7, 53), b"x");
    dropped(&mut fabric, "a1", &passed_on, DropReason::PeeringTransit);
}

#[test]
fn a_source_of_the_other_vpc_is_taken_from_its_own_host_alone() {
    let mut fabric = peered(|_| {});
    only(&mut fabric, "a1", &udp(A1, G2, ROUTER, (7, 53), b"x"));
    let good = fabric.crossed.remove(0);
    assert_eq!(fabric.send_from_underlay("h2", &good).len(), 1);
    // a2 lives on the host that the packet comes to; a port of yellow is joined to green, and lives on h1.
    let mut lie = good.clone();
    lie[76..80].copy_from_slice(&A2.v4);
    mend_ipv4(&mut lie, 64);
    assert!(fabric.send_from_underlay("h2", &lie).is_empty());
    assert_eq!(fabric.drops("h2", DropReason::SpoofedInner), 1);
    let mut right = good.clone();
    right[76..80].copy_from_slice(&Y1.v4);
    mend_ipv4(&mut right, 64);
    assert_eq!(fabric.send_from_underlay("h2", &right).len(), 1);
    change(&mut fabric, |objects| {
        port(objects, "y1").host = "h2".into();
    });
    assert!(fabric.send_from_underlay("h2", &right).is_empty());
    assert_eq!(fabric.drops("h2", DropReason::SpoofedInner), 2);
}

#[test]
fn policy_of_both_ports_holds_and_may_name_the_other_vpcs_group() {
    let mut fabric = peered(|objects| {
        let mut from_web = ingress("udp", Some(53));
        from_web.remote_group = "web".into();
        group(objects, "green-open").rules = vec![from_web];
        objects.security_groups.push(v1::SecurityGroup {
            id: "web".into(),
            vpc: "blue".into(),
            members: vec!["10.0.1.11".into()],
            ..v1::SecurityGroup::default()
        });
    });
    for (g, g_name) in [(G1, "g1"), (G2, "g2")] {
        let question = |from: End| udp(from, g, ROUTER, (7, 53), b"x");
        assert_eq!(only(&mut fabric, "a1", &question(A1)).0, g_name);
        dropped(&mut fabric, "a2", &question(A2), DropReason::GroupDenied);
        let other_port = udp(A1, g, ROUTER, (7, 54), b"x");
        dropped(&mut fabric, "a1", &other_port, DropReason::GroupDenied);
    }
    // A member that comes or goes counts at once, for sessions too.
    change(&mut fabric, |objects| {
        group(objects, "web").members = vec!["10.0.1.12".into()];
    });
    for (g, g_name) in [(G1, "g1"), (G2, "g2")] {
        let question = |from: End| udp(from, g, ROUTER, (7, 53), b"x");
        dropped(&mut fabric, "a1", &question(A1), DropReason::GroupDenied);
        assert_eq!(only(&mut fabric, "a2", &question(A2)).0, g_name);
    }
}

/// A session of the one VPC would otherwise pass packets into another by what was decided for the first.
#[test]
fn a_session_ends_when_its_route_leads_into_another_vpc_or_no_longer_does() {
    let mut fabric = peered(|objects| objects.route_tables[0].routes.clear());
    let blue_port = |objects: &mut Objects| {
        let twin = port(objects, "b1");
        twin.allowed_pairs = vec![v1::AddressPair {
            cidr: "10.0.3.0/24".into(),
            ..v1::AddressPair::default()
        }];
        let mut by_port = route("10.0.3.0/24");
        by_port.port = "b1".into();
        objects.route_tables[0].routes = vec![by_port];
    };
    change(&mut fabric, blue_port);
    let question = udp(A1, G1, ROUTER, (7, 53), b"x");
    assert_eq!(only(&mut fabric, "a1", &question).0, "b1");
    change(&mut fabric, |objects| {
        let mut into = route("10.0.3.0/24");
        into.peering = "bg".into();
        objects.route_tables[0].routes = vec![into];
    });
    dropped(&mut fabric, "a1", &question, DropReason::TranslationGone);
    assert_eq!(only(&mut fabric, "a1", &question).0, "g1");
    change(&mut fabric, blue_port);
    dropped(&mut fabric, "a1", &question, DropReason::TranslationGone);
    assert_eq!(only(&mut fabric, "a1", &question).0, "b1");
}

#[test]
fn a_trace_names_the_peering_and_the_vpc() {
    let fabric = peered(|_| {});
    let (host, index) = fabric.find_port("a1").unwrap();
    let frame = udp(A1, G2, ROUTER, (7, 53), b"x");
    let trace = trace::trace(fabric.hosts[&host].view(), index, &frame);
    let steps: Vec<String> = trace
        .steps
        .into_iter()
        .filter(|(stage, _)| matches!(*stage, "route" | "peering"))
        .map(|(stage, text)| format!("{stage}: {text}"))
        .collect();
    assert_eq!(
        steps,
        [
            "route: 10.0.3.12 matches a /24: peering bg",
            "peering: into VPC green",
            "route: 10.0.3.12 matches a /24: port 02:00:00:00:03:02 on host h2",
        ]
    );
}

/// Both VPCs may have changed last in one generation: what was decided for the one key must not be taken for the other.
#[test]
fn a_packet_with_the_vni_of_the_sender_is_not_taken_for_one_of_the_receiver() {
    let mut fabric = peered(|_| {});
    for round in 0..3 {
        only(&mut fabric, "a1", &udp(A1, G2, ROUTER, (7, 53), &[round]));
    }
    let mut frame = fabric.crossed.remove(0);
    assert_eq!(frame[46..49], [0, 1, 44]);
    assert_eq!(fabric.send_from_underlay("h2", &frame).len(), 1);
    frame[46..49].copy_from_slice(&[0, 0, 100]);
    assert!(fabric.send_from_underlay("h2", &frame).is_empty());
    assert_eq!(fabric.drops("h2", DropReason::NotHere), 1);
}
