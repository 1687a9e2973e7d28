//! What a NAT gateway has of its own: idle times, limits, protocols without ports.

use weft_dataplane::packet::DropReason;
use weft_dataplane::packet::parse::address_word;
use weft_dataplane::pipeline::Settings;
use weft_dataplane::session::Limits;
use weft_dataplane::session::mappings::{Budget, Inside};
use weft_fabric::Fabric;
use weft_proto::state::State;
use weft_proto::v1::{NatLimits, NatTimeouts};

use crate::external::{
    FAR, GATEWAY, H1, NEIGHBOR, arrive, gateway, held, kept_in, meet, outside, outside_on, refused,
    send, station, v4,
};
use crate::frames::{A1, A2, A3, End, echo, tcp, udp};
use crate::overlay::mend_ipv4;
use crate::topology::{LIMITS, ROUTER, change, objects};
use crate::translation::unreachable;

fn mappings(fabric: &Fabric) -> u32 {
    fabric.hosts["h1"].shared.sessions.mappings().count()
}

/// Lets time pass; stations answer what hosts ask meanwhile.
fn pass(fabric: &mut Fabric, milliseconds: u32) {
    fabric.advance(milliseconds - 100);
    meet(fabric);
}

fn set_timeouts(fabric: &mut Fabric, timeouts: NatTimeouts) {
    change(fabric, |objects| {
        objects.nat_gateways[0].timeouts = Some(timeouts);
    });
}

fn set_limits(fabric: &mut Fabric, mappings: u32, mappings_per_address: u32) {
    change(fabric, |objects| {
        objects.nat_gateways[0].limits = Some(NatLimits {
            mappings,
            mappings_per_address,
        });
    });
}

/// Opens a connection through the gateway and answers from FAR.
fn connect(fabric: &mut Fabric) {
    let syn = tcp(A1, FAR, ROUTER, (7000, 80), "S", (100, 0), 0);
    let port = send(fabric, "a1", &syn).source_port;
    let syn_ack = tcp(FAR, held(5), H1, (80, port), "SA", (500, 101), 0);
    assert_eq!(arrive(fabric, &syn_ack).0, "a1");
    let ack = tcp(A1, FAR, ROUTER, (7000, 80), "A", (101, 501), 0);
    send(fabric, "a1", &ack);
}

/// RFC 5382 REQ-5: 2 hours 4 minutes established, 4 minutes on the way there; RFC 4787 REQ-5: 5 minutes; RFC 5508 REQ-2: 60 seconds.
#[test]
fn a_session_through_a_gateway_idles_as_long_as_the_rfcs_say() {
    type Open = fn(&mut Fabric);
    let cases: [(Open, u32); 4] = [
        (connect, 7440),
        (
            |fabric| {
                let syn = tcp(A1, FAR, ROUTER, (7000, 80), "S", (100, 0), 0);
                send(fabric, "a1", &syn);
            },
            240,
        ),
        (
            |fabric| {
                send(fabric, "a1", &udp(A1, FAR, ROUTER, (7000, 53), b"x"));
            },
            300,
        ),
        (
            |fabric| {
                fabric.send("a1", &echo(A1, FAR, ROUTER, 7, b"x"));
            },
            60,
        ),
    ];
    for (open, seconds) in cases {
        let mut fabric = outside(gateway);
        open(&mut fabric);
        fabric.advance(seconds * 1000 - 1);
        assert_eq!(sessions(&fabric), 1, "{seconds}");
        fabric.advance(1);
        assert_eq!(sessions(&fabric), 0, "{seconds}");
        // The port is given back a moment later.
        assert_eq!(mappings(&fabric), 1);
        fabric.advance(2000);
        assert_eq!(mappings(&fabric), 0);
    }
}

fn sessions(fabric: &Fabric) -> u64 {
    fabric.hosts["h1"].shared.sessions.statistics().live
}

#[test]
fn idle_times_of_a_gateway_hold_at_once_for_what_stands_and_end_nothing_that_is_in_use() {
    let mut fabric = outside(gateway);
    connect(&mut fabric);
    send(&mut fabric, "a1", &udp(A1, FAR, ROUTER, (7000, 53), b"x"));
    set_timeouts(
        &mut fabric,
        NatTimeouts {
            tcp_established: 8000,
            udp: 120,
            ..NatTimeouts::default()
        },
    );
    assert_eq!((sessions(&fabric), mappings(&fabric)), (2, 2));
    pass(&mut fabric, 119_000);
    // A packet in time keeps it: the same port.
    let seen = send(&mut fabric, "a1", &udp(A1, FAR, ROUTER, (7000, 53), b"x"));
    assert_eq!(seen.source_port, 7000);
    fabric.advance(119_000);
    assert_eq!(sessions(&fabric), 2);
    fabric.advance(1000);
    assert_eq!(sessions(&fabric), 1, "UDP is gone, TCP is not");
    fabric.advance(8_000_000 - 239_000 - 1);
    assert_eq!(sessions(&fabric), 1);
    fabric.advance(1);
    assert_eq!(sessions(&fabric), 0);
}

/// A port forward's sessions have no mapping.
#[test]
fn idle_times_of_a_gateway_hold_for_its_port_forwards_and_for_nothing_else() {
    let mut fabric = outside(|objects| {
        gateway(objects);
        objects.nat_gateways[0].port_forwards = vec![weft_proto::v1::PortForward {
            protocol: "udp".into(),
            port_min: 5353,
            port: "a1".into(),
            ..weft_proto::v1::PortForward::default()
        }];
    });
    arrive(&mut fabric, &udp(FAR, held(5), H1, (99, 5353), b"x"));
    fabric.send("a1", &udp(A1, A3, A3.mac, (1, 2), b"x"));
    assert_eq!(sessions(&fabric), 2);
    // Within the VPC: the host's 120 seconds for what went one way.
    fabric.advance(120_000);
    assert_eq!(sessions(&fabric), 1);
    fabric.advance(179_999);
    assert_eq!(sessions(&fabric), 1);
    fabric.advance(1);
    assert_eq!(sessions(&fabric), 0);
}

#[test]
fn a_source_address_beyond_its_budget_gets_no_mapping_and_the_gateway_counts_it() {
    let mut fabric = outside(gateway);
    set_limits(&mut fabric, 0, 2);
    for port in [7000, 7001] {
        send(&mut fabric, "a2", &udp(A2, FAR, ROUTER, (port, 53), b"x"));
    }
    let third = udp(A2, FAR, ROUTER, (7002, 53), b"x");
    kept_in(&mut fabric, "a2", &third, DropReason::NatAddressBudget);
    // Others have theirs, and what stands goes on, to more receivers too.
    send(&mut fabric, "a1", &udp(A1, FAR, ROUTER, (7002, 53), b"x"));
    send(&mut fabric, "a2", &udp(A2, FAR, ROUTER, (7000, 54), b"x"));
    let alarms = |fabric: &Fabric| {
        let snapshot = fabric.hosts["h1"].pipeline.snapshot();
        let gateway = snapshot.outside.nat_gateway(0).unwrap();
        let alarms = &gateway.alarms;
        [
            alarms.ports(),
            alarms.address_budget(),
            alarms.gateway_budget(),
        ]
    };
    assert_eq!(alarms(&fabric), [0, 1, 0]);
    // Live, and the count goes on.
    set_limits(&mut fabric, 4, 3);
    send(&mut fabric, "a2", &third);
    assert_eq!(mappings(&fabric), 4);
    let fifth = udp(A1, FAR, ROUTER, (7003, 53), b"x");
    kept_in(&mut fabric, "a1", &fifth, DropReason::NatGatewayBudget);
    assert_eq!(alarms(&fabric), [0, 1, 1]);
    // Lower than what there is: nothing is lost.
    set_limits(&mut fabric, 1, 1);
    assert_eq!(mappings(&fabric), 4);
    for port in [7000, 7001, 7002] {
        let seen = send(&mut fabric, "a2", &udp(A2, FAR, ROUTER, (port, 53), b"x"));
        let back = udp(FAR, held(5), H1, (53, seen.source_port), b"x");
        assert_eq!(arrive(&mut fabric, &back).0, "a2");
    }
}

/// RFC 6888 REQ-4 and RFC 4787 §4.2: the packet is dropped, whatever the destination; nobody else's mapping is taken.
#[test]
fn a_gateway_whose_ports_are_all_in_use_drops_by_name_and_counts_it() {
    // Room for more mappings than an address has ports.
    let limits = Limits {
        capacity: 1 << 17,
        ..LIMITS
    };
    let state = State::from_objects(objects()).unwrap();
    let fabric = Fabric::new(state, &Settings::default(), limits).unwrap();
    let mut fabric = outside_on(fabric, gateway);
    let host = &fabric.hosts["h1"];
    let address = address_word(v4(station(5)));
    let (_, pool) = host.pipeline.snapshot().outside.pools[&address];
    for port in 1024..=u16::MAX {
        let inside = Inside {
            gateway: 9,
            protocol: 17,
            address: 1,
            port,
        };
        let offer = (&[pool][..], Budget::UNLIMITED);
        let mappings = host.shared.sessions.mappings();
        mappings.map(&inside, offer, |_, _| false).unwrap();
    }
    let frame = udp(A2, FAR, ROUTER, (7000, 53), b"x");
    kept_in(&mut fabric, "a2", &frame, DropReason::NatPorts);
    let snapshot = fabric.hosts["h1"].pipeline.snapshot();
    let gateway = snapshot.outside.nat_gateway(0).unwrap();
    assert_eq!(gateway.alarms.ports(), 1);
    // TCP has ports of its own.
    let syn = tcp(A2, FAR, ROUTER, (7000, 80), "S", (100, 0), 0);
    send(&mut fabric, "a2", &syn);
    // And when the others are gone, there are ports again.
    for _ in 0..20 {
        pass(&mut fabric, 1000);
    }
    send(&mut fabric, "a2", &frame);
}

/// A packet of a protocol that has no ports, GRE by default.
fn portless(from: End, to: End, mac: [u8; 6], protocol: u8) -> Vec<u8> {
    let mut frame = udp(from, to, mac, (0x1234, 0x5678), b"payload");
    frame[23] = protocol;
    mend_ipv4(&mut frame, 14);
    frame
}

const GRE: u8 = 47;
const SCTP: u8 = 132;

#[test]
fn a_protocol_without_ports_has_an_address_of_the_gateway_to_itself() {
    let mut fabric = outside(|objects| {
        gateway(objects);
        // One of the two IPv4 addresses for each sender.
        objects.nat_gateways[0].addresses.push("203.0.113.6".into());
    });
    let mut own = Vec::new();
    for (name, end) in [("a1", A1), ("a2", A2)] {
        for _ in 0..2 {
            let frame = portless(end, FAR, ROUTER, GRE);
            fabric.outside.clear();
            assert_eq!(fabric.send(name, &frame), []);
            let sent = fabric.outside.remove(0).1;
            own.push(sent[29]);
            // What comes after the header is as it was.
            assert_eq!(sent[34..], frame[34..]);
            let back = portless(FAR, held(sent[29]), H1, GRE);
            let out = fabric.send_from_uplink("h1", 1, &back);
            assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
            assert_eq!(out[0].port, name);
            assert_eq!(out[0].frame[30..34], end.v4);
        }
    }
    assert_eq!((own[0], own[2]), (own[1], own[3]), "it stays the same");
    own.sort_unstable();
    assert_eq!(own, [5, 5, 6, 6]);
    // No address is left for a third sender; of another protocol there is.
    let third = portless(A3, FAR, ROUTER, GRE);
    kept_in(&mut fabric, "a3", &third, DropReason::NatProtocol);
    let frame = portless(A3, FAR, ROUTER, SCTP);
    fabric.outside.clear();
    assert_eq!(fabric.send("a3", &frame), []);
    assert_eq!(fabric.outside.len(), 1, "{:?}", fabric.all_drops());
    assert_eq!(fabric.outside[0].1[34..], frame[34..], "ports of SCTP stay");
    // TCP and UDP share the addresses as before, and strangers do not come in.
    send(&mut fabric, "a3", &udp(A3, FAR, ROUTER, (7000, 53), b"x"));
    refused(
        &mut fabric,
        &portless(NEIGHBOR, held(5), H1, GRE),
        DropReason::NatUnmapped,
    );
    // When a sender's sessions are over, its address is another's.
    for _ in 0..31 {
        pass(&mut fabric, 10_000);
    }
    let frame = portless(A3, FAR, ROUTER, GRE);
    fabric.outside.clear();
    assert_eq!(fabric.send("a3", &frame), []);
    assert_eq!(fabric.outside.len(), 1, "{:?}", fabric.all_drops());
}

/// RFC 4787 REQ-8 for what has no ports.
#[test]
fn anybody_may_send_to_an_address_that_an_open_gateway_has_given_out_whole() {
    let mut fabric = outside(|objects| {
        gateway(objects);
        objects.nat_gateways[0].filtering = "endpoint_independent".into();
    });
    let stranger = portless(NEIGHBOR, held(5), H1, SCTP);
    refused(&mut fabric, &stranger, DropReason::NatUnmapped);
    fabric.outside.clear();
    fabric.send("a2", &portless(A2, FAR, ROUTER, SCTP));
    let out = fabric.send_from_uplink("h1", 1, &stranger);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    assert_eq!(out[0].port, "a2");
    assert_eq!(out[0].frame[34..], stranger[34..]);
}

/// Of ICMP, queries alone have an identifier (RFC 5508 REQ-1).
#[test]
fn an_icmp_message_that_is_no_query_does_not_pass_a_gateway() {
    let mut fabric = outside(gateway);
    let mut frame = echo(A1, FAR, ROUTER, 7, b"x");
    // A type that nobody has.
    frame[34] = 200;
    let sum = u16::from_be_bytes([frame[36], frame[37]]);
    let sum = sum.wrapping_sub((200 - 8) << 8);
    frame[36..38].copy_from_slice(&sum.to_be_bytes());
    kept_in(&mut fabric, "a1", &frame, DropReason::NatProtocol);
    assert_eq!(mappings(&fabric), 0);
}

#[test]
fn an_error_about_a_packet_without_ports_reaches_its_sender() {
    let mut fabric = outside(gateway);
    fabric.outside.clear();
    fabric.send("a1", &portless(A1, FAR, ROUTER, GRE));
    let sent = fabric.outside.remove(0).1;
    let error = unreachable(GATEWAY, held(5), H1, &sent[14..]);
    let (port, seen) = arrive(&mut fabric, &error);
    assert_eq!((port.as_str(), seen.destination), ("a1", v4(A1)));
    // It quotes what a1 has sent.
    assert_eq!(seen.payload[12..16], A1.v4);
}
