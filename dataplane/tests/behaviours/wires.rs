//! Ports on external networks (provider networks): the wire is a segment that is made by hand.

use std::net::IpAddr;

use weft_dataplane::packet::{DropReason, Mac};
use weft_dataplane::pipeline::trace::{Outcome, trace, trace_from_uplink};
use weft_dataplane::snapshot::compile::ExternalLink;
use weft_fabric::Fabric;
use weft_proto::v1::{Dhcp, ExternalNetwork, Objects};

use crate::frames::{
    A1, A2, End, arp, echo, echo_reply, end, icmp6, read, solicit, syn_mss, tcp, udp, udp6,
};
use crate::topology::{ROUTER, change, fabric, group, ingress, port};

/// Ports on the network: two on h1, one on h2.
pub const W1: End = end(5, 1);
pub const W2: End = end(5, 2);
pub const W3: End = end(5, 3);
/// Stations of the wire: its router, and another.
pub const GATEWAY: End = station(1);
pub const STATION: End = station(9);

const BROADCAST: [u8; 6] = [0xff; 6];

const fn station(last: u8) -> End {
    let mut station = end(5, 0);
    station.mac = [0x0a, 0, 0, 0, 5, last];
    station.v4[3] = last;
    station.v6[15] = last;
    station
}

const NETWORK: &str = r#"
vpcs: [{id: office, vni: 300}]
subnets:
  - {id: lan, vpc: office, external_network: lan, cidrs: [10.0.5.0/24, "fd00:5::/64"], gateways: [10.0.5.1]}
security_groups: [{id: desk, vpc: office, rules: [{direction: ingress, protocol: icmp}, {direction: ingress, protocol: icmpv6},
  {direction: ingress, protocol: udp, port_min: 53, port_max: 53}, {direction: ingress, protocol: tcp, port_min: 80, port_max: 80}]}]
ports:
  - {id: w1, vpc: office, subnet: lan, mac: "02:00:00:00:05:01", addresses: [10.0.5.11, "fd00:5::11"], security_groups: [desk], host: h1}
  - {id: w2, vpc: office, subnet: lan, mac: "02:00:00:00:05:02", addresses: [10.0.5.12, "fd00:5::12"], security_groups: [desk], host: h1}
  - {id: w3, vpc: office, subnet: lan, mac: "02:00:00:00:05:03", addresses: [10.0.5.13, "fd00:5::13"], security_groups: [desk], host: h2}
"#;

/// The base topology with a network on which ports are; both hosts have an interface there.
pub fn wired(change_objects: impl FnOnce(&mut Objects)) -> Fabric {
    let mut fabric = fabric(|_| {});
    for (host, last) in [("h1", 1), ("h2", 2)] {
        let link = ExternalLink {
            physical_network: "physnet1".into(),
            uplink: 1,
            mac: Mac::from_bytes([6, 0, 0, 0, 1, last]),
            mtu: 1500,
            has_tunnels: false,
        };
        fabric.externals.insert(host.into(), vec![link]);
    }
    change(&mut fabric, |objects| {
        for host in &mut objects.hosts {
            host.physical_networks = vec!["physnet1".into()];
        }
        objects.external_networks.push(ExternalNetwork {
            id: "lan".into(),
            physical_network: "physnet1".into(),
            ..ExternalNetwork::default()
        });
        let more: Objects = serde_yaml_ng::from_str(NETWORK).unwrap();
        objects.vpcs.extend(more.vpcs);
        objects.subnets.extend(more.subnets);
        objects.security_groups.extend(more.security_groups);
        objects.ports.extend(more.ports);
        change_objects(objects);
    });
    fabric
}

/// The ids of the ports at which a frame comes out, which a port sends, and how many frames reach no port of the wire.
fn sent(fabric: &mut Fabric, from: &str, frame: &[u8]) -> (Vec<String>, usize) {
    fabric.outside.clear();
    let mut ports: Vec<String> = fabric
        .send(from, frame)
        .into_iter()
        .map(|it| it.port)
        .collect();
    ports.sort();
    (ports, fabric.outside.len())
}

/// The same of a frame that comes from the wire, to both hosts.
fn arrived(fabric: &mut Fabric, frame: &[u8]) -> Vec<String> {
    let mut ports = Vec::new();
    for host in ["h1", "h2"] {
        let out = fabric.send_from_uplink(host, 1, frame);
        for delivered in out {
            assert_eq!(delivered.frame, frame, "as it was");
            ports.push(delivered.port);
        }
    }
    ports.sort();
    ports
}

#[track_caller]
fn dropped(fabric: &mut Fabric, reason: DropReason, send: impl FnOnce(&mut Fabric)) {
    let count = |fabric: &Fabric| fabric.all_drops().get(&reason).copied().unwrap_or(0);
    let before = count(fabric);
    send(fabric);
    assert_eq!(count(fabric), before + 1, "{:?}", fabric.all_drops());
}

pub fn tagged(frame: &[u8], vlan: [u8; 2]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame.splice(12..12, [0x81, 0, vlan[0], vlan[1]]);
    frame
}

#[test]
fn a_port_talks_to_a_station_of_the_wire_and_its_frames_stay_as_they_are() {
    let mut fabric = wired(|_| {});
    for make in [udp, udp6] {
        for _ in 0..3 {
            let frame = make(W1, STATION, STATION.mac, (7, 53), b"x");
            assert_eq!(
                sent(&mut fabric, "w1", &frame),
                (vec![], 1),
                "{:?}",
                fabric.all_drops()
            );
            assert_eq!(fabric.outside[0], ("h1".to_owned(), frame));
            let answer = make(STATION, W1, W1.mac, (53, 7), b"y");
            assert_eq!(arrived(&mut fabric, &answer), ["w1"]);
        }
        // Behind the router of the wire, too.
        let far = End {
            mac: GATEWAY.mac,
            ..A1
        };
        let frame = make(W1, far, far.mac, (8, 53), b"x");
        assert_eq!(sent(&mut fabric, "w1", &frame), (vec![], 1));
        let answer = make(far, W1, W1.mac, (53, 8), b"y");
        assert_eq!(arrived(&mut fabric, &answer), ["w1"]);
    }
    assert_eq!(
        fabric.crossed,
        Vec::<Vec<u8>>::new(),
        "no tunnel has any of it"
    );
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn repeated_packets_take_the_fast_path_tagged_or_not() {
    for vlan in [0, 321] {
        let mut fabric = wired(|objects| objects.external_networks[0].vlan = vlan);
        let frame = udp(W1, STATION, STATION.mac, (7, 53), b"x");
        let answer = udp(STATION, W1, W1.mac, (53, 7), b"y");
        let on_wire = |frame: &[u8]| match vlan {
            0 => frame.to_vec(),
            _ => tagged(frame, [1, 65]),
        };
        for _ in 0..5 {
            assert_eq!(sent(&mut fabric, "w1", &frame), (vec![], 1));
            assert_eq!(fabric.outside[0].1, on_wire(&frame));
            let out = fabric.send_from_uplink("h1", 1, &on_wire(&answer));
            assert_eq!(out.len(), 1);
            assert_eq!(out[0].frame, answer);
        }
        let fast = fabric.hosts["h1"].pipeline.counters().fast.get();
        assert_eq!(fast, 8, "all but the first of each direction, VLAN {vlan}");
    }
}

#[test]
fn ports_of_one_host_reach_each_other_there_and_those_of_two_over_the_wire() {
    let mut fabric = wired(|_| {});
    for _ in 0..2 {
        let near = echo(W1, W2, W2.mac, 1, b"x");
        assert_eq!(sent(&mut fabric, "w1", &near), (vec!["w2".to_owned()], 0));
        let back = echo_reply(W2, W1, W1.mac, 1, b"x");
        assert_eq!(sent(&mut fabric, "w2", &back), (vec!["w1".to_owned()], 0));
        let far = echo(W1, W3, W3.mac, 2, b"x");
        assert_eq!(sent(&mut fabric, "w1", &far), (vec!["w3".to_owned()], 0));
        let back = echo_reply(W3, W1, W1.mac, 2, b"x");
        assert_eq!(sent(&mut fabric, "w3", &back), (vec!["w1".to_owned()], 0));
    }
    assert_eq!(fabric.crossed, Vec::<Vec<u8>>::new());
}

#[test]
fn groups_hold_on_both_ends_and_towards_the_wire() {
    let mut fabric = wired(|_| {});
    // In: what no rule admits.
    let closed = udp(STATION, W1, W1.mac, (7, 54), b"x");
    dropped(&mut fabric, DropReason::GroupDenied, |fabric| {
        assert_eq!(fabric.send_from_uplink("h1", 1, &closed), []);
    });
    for from in ["w2", "w3"] {
        let sender = if from == "w2" { W2 } else { W3 };
        dropped(&mut fabric, DropReason::GroupDenied, |fabric| {
            assert_eq!(
                fabric.send(from, &udp(sender, W1, W1.mac, (7, 54), b"x")),
                []
            );
        });
    }
    let open = udp(STATION, W1, W1.mac, (7, 53), b"x");
    assert_eq!(arrived(&mut fabric, &open), ["w1"]);
    // Out: the first egress rule shuts the rest.
    change(&mut fabric, |objects| {
        let mut rule = ingress("udp", Some(53));
        rule.direction = "egress".into();
        group(objects, "desk").rules.push(rule);
    });
    let out = udp(W1, STATION, STATION.mac, (7, 54), b"x");
    dropped(&mut fabric, DropReason::GroupDenied, |fabric| {
        assert_eq!(sent(fabric, "w1", &out), (vec![], 0));
    });
    // The answer of what was admitted passes.
    let answer = udp(W1, STATION, STATION.mac, (53, 7), b"x");
    assert_eq!(sent(&mut fabric, "w1", &answer), (vec![], 1));
}

#[test]
fn a_rule_that_goes_ends_the_flow_that_it_admitted() {
    let mut fabric = wired(|_| {});
    let open = udp(STATION, W1, W1.mac, (7, 53), b"x");
    assert_eq!(arrived(&mut fabric, &open), ["w1"]);
    assert_eq!(arrived(&mut fabric, &open), ["w1"]);
    change(&mut fabric, |objects| {
        group(objects, "desk")
            .rules
            .retain(|rule| rule.protocol != "udp");
    });
    dropped(&mut fabric, DropReason::GroupDenied, |fabric| {
        assert_eq!(fabric.send_from_uplink("h1", 1, &open), []);
    });
}

#[test]
fn the_guard_holds_towards_the_wire() {
    let mut fabric = wired(|_| {});
    let mut forged = W1;
    forged.v4[3] = 77;
    dropped(&mut fabric, DropReason::SpoofedAddress, |fabric| {
        let frame = udp(forged, STATION, STATION.mac, (7, 53), b"x");
        assert_eq!(sent(fabric, "w1", &frame), (vec![], 0));
    });
    forged.mac = STATION.mac;
    dropped(&mut fabric, DropReason::SpoofedBoth, |fabric| {
        let frame = udp(forged, W3, W3.mac, (7, 53), b"x");
        assert_eq!(sent(fabric, "w1", &frame), (vec![], 0));
    });
    dropped(&mut fabric, DropReason::SpoofedArp, |fabric| {
        let claim = arp(W1.mac, 2, (W1.mac, GATEWAY.v4), (STATION.mac, STATION.v4));
        assert_eq!(sent(fabric, "w1", &claim), (vec![], 0));
    });
    // A guest is no DHCP server and no router there either.
    dropped(&mut fabric, DropReason::RogueServer, |fabric| {
        let frame = udp(W1, STATION, STATION.mac, (67, 68), b"x");
        assert_eq!(sent(fabric, "w1", &frame), (vec![], 0));
    });
}

#[test]
fn arp_goes_to_the_wire_and_to_the_ports_and_is_answered_by_whom_it_asks() {
    let mut fabric = wired(|_| {});
    let question = |target| arp(W1.mac, 1, (W1.mac, W1.v4), ([0; 6], target));
    // Of a station, the gateway or a port: everybody hears it, and nobody answers for them.
    for target in [STATION.v4, GATEWAY.v4, W2.v4, W3.v4] {
        let (ports, outside) = sent(&mut fabric, "w1", &question(target));
        assert_eq!((ports, outside), (vec!["w2".to_owned(), "w3".into()], 1));
    }
    // The answer comes by unicast.
    let mut answer = arp(STATION.mac, 2, (STATION.mac, STATION.v4), (W1.mac, W1.v4));
    answer[..6].copy_from_slice(&W1.mac);
    assert_eq!(arrived(&mut fabric, &answer), ["w1"]);
    let mut answer = arp(W3.mac, 2, (W3.mac, W3.v4), (W1.mac, W1.v4));
    answer[..6].copy_from_slice(&W1.mac);
    assert_eq!(sent(&mut fabric, "w3", &answer), (vec!["w1".to_owned()], 0));
    let mut answer = arp(W2.mac, 2, (W2.mac, W2.v4), (W1.mac, W1.v4));
    answer[..6].copy_from_slice(&W1.mac);
    assert_eq!(sent(&mut fabric, "w2", &answer), (vec!["w1".to_owned()], 0));
    // A question from the wire, and an announcement.
    for target in [W1.v4, STATION.v4] {
        let question = arp(STATION.mac, 1, (STATION.mac, STATION.v4), ([0; 6], target));
        assert_eq!(arrived(&mut fabric, &question), ["w1", "w2", "w3"]);
    }
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn neighbour_discovery_and_router_advertisements_pass() {
    let mut fabric = wired(|_| {});
    let everybody = (vec!["w2".to_owned(), "w3".into()], 1);
    let question = solicit(W1, W1.v6, STATION.v6);
    assert_eq!(sent(&mut fabric, "w1", &question), everybody);
    let detection = solicit(W1, [0; 16], W1.v6);
    assert_eq!(sent(&mut fabric, "w1", &detection), everybody);
    let mut body = vec![0x60, 0, 0, 0];
    body.extend(STATION.v6);
    body.extend([2, 1]);
    body.extend(STATION.mac);
    let answer = icmp6(STATION.mac, W1.mac, STATION.v6, W1.v6, 136, &body);
    assert_eq!(arrived(&mut fabric, &answer), ["w1"]);
    let question = solicit(STATION, STATION.v6, W2.v6);
    assert_eq!(arrived(&mut fabric, &question), ["w1", "w2", "w3"]);
    // Routers: asked, and heard.
    let (mut all_routers, mut all_nodes) = ([0; 16], [0; 16]);
    (all_routers[0], all_routers[1], all_routers[15]) = (0xff, 2, 2);
    (all_nodes[0], all_nodes[1], all_nodes[15]) = (0xff, 2, 1);
    let mut local = [0; 16];
    (local[0], local[1]) = (0xfe, 0x80);
    local[8..].copy_from_slice(&[0, 0, 0, 0xff, 0xfe, 0, 5, 1]);
    let question = icmp6(
        W1.mac,
        [0x33, 0x33, 0, 0, 0, 2],
        local,
        all_routers,
        133,
        &[0; 4],
    );
    assert_eq!(
        sent(&mut fabric, "w1", &question).1,
        1,
        "{:?}",
        fabric.all_drops()
    );
    let mut router = local;
    router[15] = 0x77;
    let body = [64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let answer = icmp6(
        GATEWAY.mac,
        [0x33, 0x33, 0, 0, 0, 1],
        router,
        all_nodes,
        134,
        &body,
    );
    assert_eq!(arrived(&mut fabric, &answer), ["w1", "w2", "w3"]);
    // But a guest does not say whose address another's is.
    let mut body = vec![0x60, 0, 0, 0];
    body.extend(STATION.v6);
    body.extend([2, 1]);
    body.extend(W1.mac);
    let claim = icmp6(W1.mac, GATEWAY.mac, W1.v6, GATEWAY.v6, 136, &body);
    dropped(&mut fabric, DropReason::SpoofedNeighbor, |fabric| {
        assert_eq!(sent(fabric, "w1", &claim), (vec![], 0));
    });
}

#[test]
fn broadcast_goes_to_the_wire_and_to_the_ports_that_policy_admits() {
    let mut fabric = wired(|objects| {
        let mut other = group(objects, "desk").clone();
        other.id = "closed".into();
        other.rules.clear();
        objects.security_groups.push(other);
        port(objects, "w2").security_groups = vec!["closed".into()];
    });
    let mut all = STATION;
    all.v4 = [255; 4];
    let frame = udp(W1, all, BROADCAST, (7, 53), b"x");
    assert_eq!(sent(&mut fabric, "w1", &frame), (vec!["w3".to_owned()], 1));
    let frame = udp(STATION, all, BROADCAST, (7, 53), b"x");
    assert_eq!(arrived(&mut fabric, &frame), ["w1", "w3"]);
    // Limited, from a port and from the wire.
    let mut passed = 0;
    for _ in 0..2000 {
        passed += fabric.send_from_uplink("h1", 1, &frame).len();
    }
    assert!((400..1100).contains(&passed), "{passed}");
    assert!(fabric.all_drops()[&DropReason::BroadcastLimit] > 800);
}

#[test]
fn what_comes_from_the_wire_is_for_a_port_here_and_from_none_here() {
    let mut fabric = wired(|_| {});
    dropped(&mut fabric, DropReason::UnknownMac, |fabric| {
        let frame = udp(STATION, W3, W3.mac, (7, 53), b"x");
        assert_eq!(fabric.send_from_uplink("h1", 1, &frame), []);
    });
    for frame in [
        udp(W1, W2, W2.mac, (7, 53), b"x"),
        arp(W1.mac, 1, (W1.mac, W1.v4), ([0; 6], W2.v4)),
    ] {
        dropped(&mut fabric, DropReason::ExternalLoop, |fabric| {
            assert_eq!(fabric.send_from_uplink("h1", 1, &frame), []);
        });
    }
    // To the router's MAC of VPCs with tunnels: nobody's here.
    dropped(&mut fabric, DropReason::UnknownMac, |fabric| {
        let frame = udp(W1, STATION, ROUTER, (7, 53), b"x");
        assert_eq!(sent(fabric, "w1", &frame), (vec![], 0));
    });
    // On another VLAN it is another network's.
    let frame = udp(STATION, W1, W1.mac, (7, 53), b"x");
    assert_eq!(
        fabric.send_from_uplink("h1", 1, &tagged(&frame, [0, 9])),
        []
    );
}

#[test]
fn no_tunnel_leads_to_a_port_on_the_wire_and_no_other_vpc_has_its_frames() {
    let mut fabric = wired(|objects| {
        // The same addresses and MACs in a VPC with tunnels.
        let red = port(objects, "r1");
        red.mac = "02:00:00:00:05:02".into();
    });
    let frame = udp(W1, W2, W2.mac, (7, 53), b"x");
    assert_eq!(sent(&mut fabric, "w1", &frame).0, ["w2"]);
    // A tunnel with the VPC's number.
    let inner = udp(A1, end(1, 2), end(1, 2).mac, (7, 53), b"x");
    fabric.send("a1", &inner);
    let mut outer = fabric.crossed.pop().unwrap();
    let at = outer
        .windows(3)
        .position(|bytes| bytes == [0, 0, 100])
        .unwrap();
    outer[at..at + 3].copy_from_slice(&[0, 1, 44]);
    dropped(&mut fabric, DropReason::UnknownVni, |fabric| {
        assert_eq!(fabric.send_from_underlay("h2", &outer), []);
    });
}

#[test]
fn tcp_is_followed_over_the_wire() {
    let mut fabric = wired(|_| {});
    let syn = syn_mss(STATION, W1, W1.mac, (7000, 80), 1460);
    assert_eq!(arrived(&mut fabric, &syn), ["w1"]);
    let answer = tcp(W1, STATION, STATION.mac, (80, 7000), "SA", (500, 1001), 0);
    assert_eq!(sent(&mut fabric, "w1", &answer), (vec![], 1));
    let data = tcp(STATION, W1, W1.mac, (7000, 80), "A", (1001, 501), 20);
    for _ in 0..3 {
        assert_eq!(arrived(&mut fabric, &data), ["w1"]);
    }
    let outside = tcp(STATION, W1, W1.mac, (7000, 80), "A", (9_000_000, 501), 20);
    dropped(&mut fabric, DropReason::TcpWindow, |fabric| {
        assert_eq!(fabric.send_from_uplink("h1", 1, &outside), []);
    });
    // What begins no connection.
    let stray = tcp(STATION, W1, W1.mac, (7001, 80), "SA", (5, 5), 0);
    dropped(&mut fabric, DropReason::TcpInvalid, |fabric| {
        assert_eq!(fabric.send_from_uplink("h1", 1, &stray), []);
    });
}

#[test]
fn a_packet_that_is_too_long_for_the_network_is_dropped_as_a_bridge_does() {
    let mut fabric = wired(|objects| objects.external_networks[0].mtu = 1400);
    let frame = udp(W1, STATION, STATION.mac, (7, 53), &[0; 1400]);
    dropped(&mut fabric, DropReason::TooBig, |fabric| {
        assert_eq!(sent(fabric, "w1", &frame), (vec![], 0));
    });
    let fits = udp(W1, STATION, STATION.mac, (7, 53), &[0; 1372]);
    assert_eq!(sent(&mut fabric, "w1", &fits), (vec![], 1));
}

/// A DHCP DISCOVER, and the options of what is answered to it.
fn discover(fabric: &mut Fabric) -> Option<(IpAddr, Vec<u8>)> {
    let mut message = vec![1, 1, 6, 0, 9, 9, 9, 9];
    message.resize(28, 0);
    message.extend(W1.mac);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, 1, 55, 4, 1, 3, 26, 121, 255]);
    let mut nobody = W1;
    nobody.v4 = [0; 4];
    let mut all = STATION;
    all.v4 = [255; 4];
    let question = udp(nobody, all, BROADCAST, (68, 67), &message);
    fabric.outside.clear();
    let out = fabric.send("w1", &question);
    let answer = out.iter().find(|it| it.port == "w1")?;
    let seen = read(&answer.frame);
    assert_eq!(seen.payload[16..20], W1.v4);
    Some((seen.source, seen.payload[240..].to_vec()))
}

#[test]
fn dhcp_names_the_routers_of_the_wire_or_is_left_to_it() {
    let has = |options: &[u8], wanted: &[u8]| options.windows(wanted.len()).any(|it| it == wanted);
    let mut fabric = wired(|_| {});
    let (server, options) = discover(&mut fabric).unwrap();
    assert_eq!(server, IpAddr::from([169, 254, 169, 254]));
    assert!(has(&options, &[3, 4, 10, 0, 5, 1]), "{options:?}");
    assert!(
        has(&options, &[26, 2, 5, 220]),
        "the MTU of the network: {options:?}"
    );
    // By the router, and on the link itself.
    let routes = [121, 14, 0, 10, 0, 5, 1, 32, 169, 254, 169, 254, 0, 0, 0, 0];
    assert!(has(&options, &routes), "{options:?}");
    assert_eq!(fabric.outside.len(), 0);
    // The guest finds the server.
    let question = arp(W1.mac, 1, (W1.mac, W1.v4), ([0; 6], [169, 254, 169, 254]));
    let out = fabric.send("w1", &question);
    assert_eq!(out[0].port, "w1");
    assert_eq!(out[0].frame[6..12], ROUTER);
    // Without a router, none is told.
    change(&mut fabric, |objects| {
        let lan = objects
            .subnets
            .iter_mut()
            .find(|it| it.id == "lan")
            .unwrap();
        lan.gateways.clear();
    });
    let (_, options) = discover(&mut fabric).unwrap();
    assert!(!has(&options, &[3, 4, 10]), "{options:?}");
    // A server of the wire, where weft's is off.
    change(&mut fabric, |objects| {
        let lan = objects
            .subnets
            .iter_mut()
            .find(|it| it.id == "lan")
            .unwrap();
        lan.dhcp = Some(Dhcp {
            disabled: true,
            ..Dhcp::default()
        });
    });
    assert!(discover(&mut fabric).is_none());
    assert_eq!(fabric.outside.len(), 1, "{:?}", fabric.all_drops());
}

#[test]
fn a_trace_says_the_way() {
    let fabric = wired(|_| {});
    let view = fabric.hosts["h1"].view();
    let (_, w1) = fabric.find_port("w1").unwrap();
    let seen = trace(view, w1, &udp(W1, STATION, STATION.mac, (7, 53), b"x"));
    assert!(
        matches!(seen.outcome, Outcome::To { wire: Some(_), .. }),
        "{seen:?}"
    );
    assert_eq!(
        seen.outcome.text(view.snapshot),
        "the wire of external network lan"
    );
    let said: Vec<&str> = seen.steps.iter().map(|(stage, _)| *stage).collect();
    assert!(said.contains(&"wire"), "{said:?}");
    let seen = trace(
        view,
        w1,
        &arp(W1.mac, 1, (W1.mac, W1.v4), ([0; 6], STATION.v4)),
    );
    assert_eq!(
        seen.outcome.text(view.snapshot),
        "port w2, the wire of external network lan"
    );
    let seen = trace_from_uplink(view, &udp(STATION, W1, W1.mac, (7, 53), b"x"));
    assert_eq!(seen.outcome.text(view.snapshot), "port w1");
    let seen = trace_from_uplink(view, &udp(W2, W1, W1.mac, (7, 53), b"x"));
    assert_eq!(seen.outcome, Outcome::Drop(DropReason::ExternalLoop));
}

/// What looks like a tunnel packet, from the tunnel address of another host to that of this one, on the wire: there it is traffic like any other.
#[test]
fn a_tunnel_packet_from_the_wire_ends_in_no_vpc() {
    let mut fabric = wired(|_| {});
    fabric.crossed.clear();
    let inner = udp(A1, A2, A2.mac, (7, 53), b"x");
    assert_eq!(fabric.send("a1", &inner).len(), 1);
    let mut tunnelled = fabric.crossed[0].clone();
    assert_eq!(fabric.send_from_underlay("h2", &tunnelled).len(), 1);
    for mac in [W3.mac, BROADCAST] {
        tunnelled[..6].copy_from_slice(&mac);
        tunnelled[6..12].copy_from_slice(&STATION.mac);
        // Twice, so that the fast path has had its chance.
        for _ in 0..2 {
            for delivered in fabric.send_from_uplink("h2", 1, &tunnelled) {
                assert_eq!(delivered.port, "w3", "as it is, if at all");
            }
        }
    }
}

#[test]
fn the_wire_does_not_speak_for_ports_of_this_host() {
    let mut fabric = wired(|_| {});
    let question = udp(W1, W2, W2.mac, (7, 53), b"x");
    assert_eq!(sent(&mut fabric, "w1", &question).0, ["w2"]);
    let forged = End {
        mac: STATION.mac,
        ..W2
    };
    let answer = udp(forged, W1, W1.mac, (53, 7), b"y");
    dropped(&mut fabric, DropReason::ExternalSpoofed, |fabric| {
        assert_eq!(fabric.send_from_uplink("h1", 1, &answer), []);
    });
}

#[test]
fn nobody_on_the_wire_or_in_a_guest_has_the_address_of_the_metadata_service() {
    let mut fabric = wired(|objects| port(objects, "w2").unguarded = true);
    let service = [169, 254, 169, 254];
    let claim = |mac: [u8; 6]| {
        let mut claim = arp(mac, 2, (mac, service), (W1.mac, W1.v4));
        claim[..6].copy_from_slice(&W1.mac);
        claim
    };
    dropped(&mut fabric, DropReason::ExternalSpoofed, |fabric| {
        assert_eq!(fabric.send_from_uplink("h1", 1, &claim(STATION.mac)), []);
    });
    dropped(&mut fabric, DropReason::SpoofedArp, |fabric| {
        assert_eq!(sent(fabric, "w2", &claim(W2.mac)), (vec![], 0));
    });
}

/// Guests without a VLAN would be on the segment of the tunnels.
#[test]
fn a_flat_network_has_no_ports_on_an_interface_that_tunnels_come_by() {
    for vlan in [0, 42] {
        let mut fabric = wired(|objects| objects.external_networks[0].vlan = vlan);
        for links in fabric.externals.values_mut() {
            (links[0].uplink, links[0].has_tunnels) = (0, true);
        }
        let state = fabric.state().clone();
        match fabric.set(state) {
            Ok(()) => assert_ne!(vlan, 0),
            Err(found) => {
                assert_eq!(vlan, 0, "{found:?}");
                let object = found[0].object.clone().unwrap();
                assert_eq!((&*object.kind, &*object.id), ("subnet", "lan"));
                assert_eq!(found[0].field, "external_network");
                assert!(found[0].rule.contains("give the network a VLAN"));
            }
        }
    }
}
