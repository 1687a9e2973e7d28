//! Connections, odd packets and fragments: behaviours 19 to 21 and 23 to 25.

use weft_dataplane::packet::DropReason;
use weft_dataplane::session::Limits;
use weft_fabric::Fabric;

use crate::frames::{A1, A2, A3, End, tcp, udp};
use crate::topology::{LIMITS, change, fabric, group, ingress, objects, port};

/// Only TCP port 80 towards a2; a1 admits nothing.
fn web() -> Fabric {
    fabric(|objects| {
        group(objects, "open").rules = vec![ingress("tcp", Some(80))];
        port(objects, "a1").security_groups.clear();
    })
}

fn there(flags: &str, seq: u32, ack: u32, payload: usize) -> Vec<u8> {
    tcp(A1, A2, A2.mac, (1000, 80), flags, (seq, ack), payload)
}

fn back(flags: &str, seq: u32, ack: u32, payload: usize) -> Vec<u8> {
    tcp(A2, A1, A1.mac, (80, 1000), flags, (seq, ack), payload)
}

fn establish(fabric: &mut Fabric) {
    assert_eq!(fabric.send("a1", &there("S", 100, 0, 0)).len(), 1);
    assert_eq!(fabric.send("a2", &back("SA", 500, 101, 0)).len(), 1);
    assert_eq!(fabric.send("a1", &there("A", 101, 501, 0)).len(), 1);
}

fn states(fabric: &Fabric) -> Vec<&'static str> {
    fabric.hosts["h1"]
        .shared
        .sessions
        .list(10, fabric.now, |_| true)
        .iter()
        .map(|view| view.state.name())
        .collect()
}

#[test]
fn b019_a_connection_from_syn_to_time_wait_and_expiry() {
    let mut fabric = web();
    establish(&mut fabric);
    assert_eq!(states(&fabric), ["established"]);
    assert_eq!(fabric.send("a1", &there("A", 101, 501, 300)).len(), 1);
    assert_eq!(fabric.send("a2", &back("A", 501, 401, 900)).len(), 1);
    assert_eq!(fabric.send("a1", &there("FA", 401, 1401, 0)).len(), 1);
    assert_eq!(fabric.send("a2", &back("FA", 1401, 402, 0)).len(), 1);
    assert_eq!(fabric.send("a1", &there("A", 402, 1402, 0)).len(), 1);
    assert_eq!(states(&fabric), ["time_wait"]);
    assert_eq!(
        fabric.send("a1", &there("S", 90_000, 0, 0)).len(),
        1,
        "a new connection on the tuple"
    );
    assert_eq!(states(&fabric), ["syn_sent"]);
    fabric.advance(61_000);
    assert!(states(&fabric).is_empty());
    assert!(fabric.all_drops().is_empty(), "{:?}", fabric.all_drops());
}

#[test]
fn b019_scans_do_not_establish_and_blind_segments_do_not_close() {
    let mut fabric = web();
    for frame in [there("S", 100, 0, 0), there("S", 100, 0, 0)] {
        assert_eq!(fabric.send("a1", &frame).len(), 1);
        assert_eq!(fabric.send("a2", &back("SA", 500, 101, 0)).len(), 1);
    }
    assert_eq!(fabric.send("a2", &back("SA", 500, 101, 0)).len(), 1);
    assert_eq!(states(&fabric), ["syn_received"]);
    assert_eq!(fabric.send("a1", &there("A", 101, 501, 0)).len(), 1);
    assert!(
        fabric
            .send("a2", &back("R", 2_000_000_000, 0, 0))
            .is_empty(),
        "a blind reset"
    );
    assert!(
        fabric
            .send("a1", &there("A", 1_000_000_000, 501, 10))
            .is_empty(),
        "out of window"
    );
    assert_eq!(
        fabric.drops("h1", DropReason::TcpWindow) + fabric.drops("h2", DropReason::TcpWindow),
        2
    );
    assert_eq!(states(&fabric), ["established"]);
    assert_eq!(fabric.send("a2", &back("R", 501, 0, 0)).len(), 1);
    assert_eq!(states(&fabric), ["closed"]);
}

#[test]
fn b020_a_syn_ack_without_its_syn_opens_nothing() {
    let mut fabric = web();
    assert_eq!(fabric.send("a1", &there("S", 100, 0, 0)).len(), 1);
    fabric.advance(61_000);
    assert!(fabric.send("a2", &back("SA", 500, 101, 0)).is_empty());
    assert_eq!(fabric.drops("h2", DropReason::TcpInvalid), 1);
    assert_eq!(fabric.hosts["h2"].shared.sessions.statistics().live, 0);
    establish(&mut fabric);
}

#[test]
fn b020_what_a_lost_session_leaves_in_mid_stream_is_judged_by_policy() {
    let mut fabric = web();
    establish(&mut fabric);
    for host in fabric.hosts.values() {
        host.shared.sessions.remove_port(0);
        host.shared.sessions.remove_port(1);
        host.shared.sessions.remove_port(2);
    }
    assert!(
        fabric.send("a2", &back("A", 501, 101, 10)).is_empty(),
        "towards the client no rule lets it in"
    );
    assert_eq!(
        fabric.send("a1", &there("A", 101, 501, 10)).len(),
        1,
        "towards the server one does"
    );
    assert_eq!(fabric.send("a2", &back("A", 501, 111, 10)).len(), 1);
}

#[test]
fn b021_a_port_opens_so_many_flows_a_second_and_others_do_not_notice() {
    let settings = weft_dataplane::pipeline::Settings {
        flows_per_second: 100,
        ..weft_dataplane::pipeline::Settings::default()
    };
    let state = weft_proto::state::State::from_objects(objects()).unwrap();
    let mut fabric = Fabric::new(state, &settings, LIMITS).unwrap();
    establish(&mut fabric);
    let flow = |number: u16| udp(A1, A2, A2.mac, (number, 53), b"x");
    let opened = |fabric: &mut Fabric, numbers: std::ops::Range<u16>| {
        let each = numbers.map(|number| fabric.send("r1", &flow(number)).len());
        each.sum::<usize>()
    };
    assert_eq!(opened(&mut fabric, 0..200), 5, "a twentieth's at once");
    assert_eq!(fabric.drops("h1", DropReason::FlowLimit), 195);
    assert_eq!(opened(&mut fabric, 0..5), 5, "flows that are known go on");
    assert_eq!(fabric.send("a1", &there("A", 101, 501, 10)).len(), 1);
    assert_eq!(
        fabric
            .send("a1", &udp(A1, A2, A2.mac, (9, 9), b"new"))
            .len(),
        1
    );
    fabric.advance(30);
    assert_eq!(opened(&mut fabric, 200..300), 3, "30 milliseconds later");
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b021_a_vpc_opens_so_many_flows_a_second_on_a_host_by_whichever_port_or_tunnel() {
    let settings = weft_dataplane::pipeline::Settings {
        vpc_flows_per_second: 200,
        ..weft_dataplane::pipeline::Settings::default()
    };
    let state = weft_proto::state::State::from_objects(objects()).unwrap();
    let mut fabric = Fabric::new(state, &settings, LIMITS).unwrap();
    let flow = |from: End, to: End, number: u16| udp(from, to, to.mac, (number, 53), b"x");
    // Ten at once, by two ports together.
    let opened: usize = (0..6)
        .map(|number| {
            fabric.send("a1", &flow(A1, A3, number)).len()
                + fabric.send("a3", &flow(A3, A1, 100 + number)).len()
        })
        .sum();
    assert_eq!(opened, 10);
    assert_eq!(fabric.drops("h1", DropReason::VpcFlowLimit), 2);
    // What another host lets through counts as well.
    assert!(fabric.send("a2", &flow(A2, A1, 1)).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::VpcFlowLimit), 3);
    assert_eq!(fabric.drops("h2", DropReason::VpcFlowLimit), 0);
    let known = fabric.send("a1", &flow(A1, A3, 0));
    assert_eq!(known.len(), 1, "flows that are known go on");
    let other = fabric.send("r1", &flow(A1, A2, 1));
    assert_eq!(other.len(), 1, "the other tenant has its own");
    fabric.advance(5);
    assert_eq!(fabric.send("a2", &flow(A2, A1, 2)).len(), 1);
    assert!(fabric.send("a2", &flow(A2, A1, 3)).is_empty());
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b021_a_full_table_spares_what_is_established_and_budgets_hold_a_flood() {
    let objects = objects();
    let limits = Limits {
        capacity: 512,
        per_port: 300,
        ..LIMITS
    };
    let mut fabric = Fabric::new(
        weft_proto::state::State::from_objects(objects).unwrap(),
        &weft_dataplane::pipeline::Settings {
            flows_per_second: u32::MAX,
            ..weft_dataplane::pipeline::Settings::default()
        },
        limits,
    )
    .unwrap();
    establish(&mut fabric);
    for number in 0..5000u16 {
        fabric.send("r1", &udp(A1, A2, A2.mac, (number, number), b"flood"));
    }
    assert!(fabric.drops("h1", DropReason::SessionPortBudget) > 4000);
    assert_eq!(fabric.send("a1", &there("A", 101, 501, 10)).len(), 1);
    assert_eq!(
        fabric
            .send("a1", &udp(A1, A2, A2.mac, (9, 9), b"new"))
            .len(),
        1,
        "the other tenant still opens flows"
    );
    assert_eq!(fabric.missing_frames(), 0);
}

/// An IPv4 packet of any protocol between a1 and a2, with the fragment word given.
fn raw(protocol: u8, id: u16, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&A2.mac[..], &A1.mac, &[8, 0]].concat();
    let len = (20 + payload.len()) as u16;
    frame.extend_from_slice(&[0x45, 0]);
    for word in [len, id, fragment] {
        frame.extend_from_slice(&word.to_be_bytes());
    }
    frame.extend_from_slice(&[64, protocol, 0, 0]);
    frame.extend_from_slice(&A1.v4);
    frame.extend_from_slice(&A2.v4);
    let sum: u32 = frame[14..34]
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]))
        .sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn b023_other_protocols_pass_by_rule_and_are_tracked() {
    let mut fabric = fabric(|objects| {
        group(objects, "open").rules = vec![ingress("50", None)];
        port(objects, "a1").security_groups.clear();
    });
    assert_eq!(fabric.send("a1", &raw(50, 1, 0, &[1; 40])).len(), 1);
    assert!(fabric.send("a1", &raw(4, 1, 0, &[1; 40])).is_empty());
    let mut reply = raw(50, 1, 0, &[2; 40]);
    reply[..6].copy_from_slice(&A1.mac);
    reply[6..12].copy_from_slice(&A2.mac);
    reply[26..30].copy_from_slice(&A2.v4);
    reply[30..34].copy_from_slice(&A1.v4);
    assert_eq!(
        fabric.send("a2", &reply).len(),
        1,
        "the reply needs no rule"
    );
}

const MORE: u16 = 0x2000;

fn udp_payload(len: usize) -> Vec<u8> {
    let mut payload = vec![0x11; len];
    payload[..4].copy_from_slice(&[0, 9, 0, 53]);
    payload[4..6].copy_from_slice(&(len as u16).to_be_bytes());
    payload
}

#[test]
fn b024_fragments_follow_the_first_in_any_order() {
    let payload = udp_payload(72);
    let piece = |id: u16, index: usize| {
        let more = if index < 2 { MORE } else { 0 };
        raw(
            17,
            id,
            more | (index * 3) as u16,
            &payload[index * 24..(index + 1) * 24],
        )
    };
    let orders = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    for (id, order) in (1u16..).zip(orders) {
        let mut fabric = fabric(|_| {});
        let arrived: usize = order
            .iter()
            .map(|index| fabric.send("a1", &piece(id, *index)).len())
            .sum();
        assert_eq!(arrived, 3, "{order:?} {:?}", fabric.all_drops());
        let mut denied = crate::topology::fabric(|objects| {
            group(objects, "open").rules = vec![ingress("udp", Some(54))];
        });
        let arrived: usize = order
            .iter()
            .map(|index| denied.send("a1", &piece(id, *index)).len())
            .sum();
        assert_eq!(arrived, 0, "{order:?}");
        for fabric in [&mut fabric, &mut denied] {
            fabric.advance(11_000);
            assert_eq!(fabric.missing_frames(), 0);
        }
    }
}

#[test]
fn b024_overlapping_tiny_duplicate_and_orphaned_fragments_are_dropped_by_name() {
    let payload = udp_payload(72);
    let mut fabric = fabric(|_| {});
    let first = raw(17, 1, MORE, &payload[..24]);
    assert_eq!(fabric.send("a1", &first).len(), 1);
    assert!(fabric.send("a1", &first).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::FragmentDuplicate), 1);
    assert!(
        fabric
            .send("a1", &raw(17, 1, MORE | 2, &payload[16..40]))
            .is_empty()
    );
    assert!(
        fabric.send("a1", &raw(17, 1, 6, &payload[48..])).is_empty(),
        "the rest of a condemned datagram"
    );
    assert_eq!(fabric.drops("h1", DropReason::FragmentOverlap), 2);
    assert!(
        fabric
            .send("a1", &raw(6, 2, MORE, &payload[..8]))
            .is_empty()
    );
    assert!(
        fabric
            .send("a1", &raw(6, 2, MORE | 1, &payload[..8]))
            .is_empty()
    );
    assert_eq!(fabric.drops("h1", DropReason::FragmentTiny), 2);
    assert!(
        fabric.send("a1", &raw(17, 3, 3, &payload[24..])).is_empty(),
        "waits"
    );
    fabric.advance(11_000);
    assert_eq!(fabric.drops("h1", DropReason::FragmentOrphan), 1);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b024_a_segment_in_fragments_is_acknowledged_like_any_other() {
    let mut fabric = fabric(|_| {});
    establish(&mut fabric);
    let mut frame = there("A", 101, 501, 1500);
    // Without "don't fragment", the tunnel carries it in two pieces.
    frame[20] = 0;
    frame[24..26].fill(0);
    let sum: u32 = frame[14..34]
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(fabric.send("a1", &frame).len(), 2);
    let acknowledgement = back("A", 501, 1601, 0);
    assert_eq!(
        fabric.send("a2", &acknowledgement).len(),
        1,
        "{:?}",
        fabric.all_drops()
    );
    assert_eq!(fabric.send("a1", &there("A", 1601, 501, 300)).len(), 1);
    assert!(
        fabric.send("a2", &back("A", 501, 101_901, 0)).is_empty(),
        "what was never sent can't be acknowledged"
    );
}

#[test]
fn b024_memory_for_fragments_is_bounded() {
    let mut fabric = fabric(|_| {});
    for id in 0..5000 {
        fabric.send("a1", &raw(17, id, 3, &[0; 24]));
    }
    assert!(fabric.drops("h1", DropReason::FragmentTable) > 4000);
    fabric.advance(11_000);
    assert_eq!(fabric.missing_frames(), 0);
    assert_eq!(
        fabric.send("a1", &raw(17, 1, MORE, &udp_payload(24))).len(),
        1
    );
}

#[test]
fn b025_odd_packets_are_right_or_dropped_by_name() {
    let mut fabric = fabric(|_| {});
    let good = udp(A1, A2, A2.mac, (1, 2), b"");
    assert_eq!(fabric.send("a1", &good).len(), 1, "zero-length UDP");
    let padded = [&good[..], &[0; 18]].concat();
    assert_eq!(
        fabric.send("a1", &padded)[0].frame,
        padded,
        "trailing padding"
    );
    let mut long = good.clone();
    long[16..18].copy_from_slice(&2000u16.to_be_bytes());
    let mut header = good.clone();
    header[14] = 0x4f;
    let mut checksum = good.clone();
    checksum[24] ^= 1;
    let mut vlan = good.clone();
    vlan.splice(12..12, [0x81, 0, 0, 5]);
    for (frame, reason) in [
        (long, DropReason::Ipv4Header),
        (header, DropReason::Ipv4Header),
        (checksum, DropReason::Ipv4Checksum),
        (vlan, DropReason::EtherType),
        (good[..20].to_vec(), DropReason::Truncated),
        (good[..13].to_vec(), DropReason::Truncated),
    ] {
        let before = fabric.drops("h1", reason);
        assert!(fabric.send("a1", &frame).is_empty());
        assert_eq!(fabric.drops("h1", reason), before + 1, "{}", reason.name());
    }
    let land = udp(A1, A1, A2.mac, (1, 2), b"");
    assert!(fabric.send("a1", &land).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::Martian), 1);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn partial_checksums_of_a_local_sender_are_completed() {
    let mut fabric = fabric(|_| {});
    for mut frame in [
        udp(A1, A2, A2.mac, (1, 2), b"offload"),
        there("S", 1, 0, 0),
        tcp(A1, A2, A2.mac, (1001, 80), "A", (2, 3), 501),
    ] {
        let (protocol, at) = (frame[23], if frame[23] == 17 { 40 } else { 50 });
        let right = [frame[at], frame[at + 1]];
        let len = frame.len() - 34;
        let mut sum: u32 = frame[26..34]
            .chunks(2)
            .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]))
            .sum();
        sum += u32::from(protocol) + len as u32;
        let partial = ((sum & 0xffff) + (sum >> 16)) as u16;
        frame[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        let out = fabric.send("a1", &frame);
        assert_eq!(out[0].frame[at..at + 2], right);
    }
}

#[test]
fn nothing_that_arrives_makes_the_pipeline_panic_or_leak() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};
    let mut fabric = fabric(|objects| objects.hosts[1].encapsulation = "gre".into());
    let seeds = [
        udp(A1, A2, A2.mac, (1, 2), b"seed"),
        there("S", 1, 0, 0),
        raw(17, 1, MORE, &udp_payload(24)),
        crate::frames::solicit(A1, A1.v6, A2.v6),
    ];
    let mut runner = TestRunner::new(Config {
        cases: 4000,
        failure_persistence: None,
        ..Config::default()
    });
    let mutation = (
        0..4usize,
        proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        any::<proptest::sample::Index>(),
        any::<bool>(),
    );
    let cell = std::cell::RefCell::new(&mut fabric);
    runner
        .run(&mutation, |(seed, damage, cut, tunnel)| {
            let fabric = &mut **cell.borrow_mut();
            let mut frame = seeds[seed].clone();
            if tunnel {
                fabric.send("a1", &frame);
                frame = fabric.crossed.pop().unwrap_or(frame);
            }
            for (at, value) in damage {
                let at = at.index(frame.len());
                frame[at] = value;
            }
            frame.truncate(cut.index(frame.len() * 4).min(frame.len()));
            fabric.send("a1", &frame);
            fabric.send_from_underlay("h2", &frame);
            fabric.advance(20);
            prop_assert_eq!(fabric.missing_frames(), 0);
            Ok(())
        })
        .unwrap();
}

/// The far side may open flows, so a segment of it in mid-stream would begin one, were the connection forgotten.
#[test]
fn b017_a_connection_whose_rule_is_removed_is_not_picked_up_again() {
    for reply_first in [false, true] {
        let mut fabric = web();
        establish(&mut fabric);
        let (ask, answer) = (there("A", 101, 501, 10), back("A", 501, 101, 10));
        change(&mut fabric, |objects| group(objects, "open").rules.clear());
        if reply_first {
            assert!(fabric.send("a2", &answer).is_empty());
        }
        for _ in 0..5 {
            assert!(fabric.send("a1", &ask).is_empty());
            assert!(fabric.send("a2", &answer).is_empty());
            // The ends try again, ever more seldom.
            fabric.advance(120_000);
        }
        let allow = |fabric: &mut Fabric| {
            change(fabric, |objects| {
                group(objects, "open").rules = vec![ingress("tcp", Some(80))];
            });
        };
        allow(&mut fabric);
        assert_eq!(
            fabric.send("a1", &ask).len(),
            1,
            "admitted again, it goes on"
        );
        assert_eq!(fabric.send("a2", &answer).len(), 1);
        change(&mut fabric, |objects| group(objects, "open").rules.clear());
        assert!(fabric.send("a1", &ask).is_empty());
        assert!(fabric.send("a1", &there("S", 90_000, 0, 0)).is_empty());
        allow(&mut fabric);
        assert_eq!(
            fabric.send("a1", &there("S", 90_000, 0, 0)).len(),
            1,
            "a new connection on the tuple"
        );
        assert_eq!(fabric.send("a2", &back("SA", 700, 90_001, 0)).len(), 1);
    }
}
