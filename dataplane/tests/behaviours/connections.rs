//! TCP as stacks speak it, across two hosts that both track it: docs/decisions/007-tcp-tracking.md.

use weft_dataplane::packet::DropReason;
use weft_fabric::Fabric;
use weft_proto::v1;

use crate::frames::{A1, A2, A3, tcp};
use crate::topology::{change, fabric, group, ingress, port};

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

#[track_caller]
fn pass(fabric: &mut Fabric, frames: &[Vec<u8>]) {
    for (number, frame) in frames.iter().enumerate() {
        // The client is a1.
        let from = if frame[6..12] == A1.mac { "a1" } else { "a2" };
        let arrived = fabric.send(from, frame).len();
        let drops = fabric.all_drops();
        assert_eq!(arrived, 1, "segment {number} from {from}: {drops:?}");
    }
}

#[track_caller]
fn dropped(fabric: &mut Fabric, frame: &[u8], reason: DropReason) {
    let from = if frame[6..12] == A1.mac { "a1" } else { "a2" };
    let before = fabric.all_drops().get(&reason).copied().unwrap_or(0);
    assert!(fabric.send(from, frame).is_empty());
    let after = fabric.all_drops().get(&reason).copied().unwrap_or(0);
    assert_eq!(after, before + 1, "{:?}", fabric.all_drops());
}

#[track_caller]
fn establish(fabric: &mut Fabric) {
    pass(
        fabric,
        &[
            there("S", 100, 0, 0),
            back("SA", 500, 101, 0),
            there("A", 101, 501, 0),
        ],
    );
}

fn forget(fabric: &Fabric, host: &str) {
    for port in 0..3 {
        fabric.hosts[host].shared.sessions.remove_port(port);
    }
}

fn states(fabric: &Fabric, host: &str) -> Vec<&'static str> {
    let sessions = &fabric.hosts[host].shared.sessions;
    let views = sessions.list(10, fabric.now, |_| true);
    views.iter().map(|view| view.state.name()).collect()
}

/// Whatever comes first after a host has lost its sessions, on the side of the client, of the server, or both.
#[test]
fn b020_connections_go_on_when_a_host_has_lost_its_sessions() {
    let first = [
        // Retransmissions, after which the other side acknowledges what was sent before.
        vec![
            there("A", 101, 501, 1000),
            back("A", 501, 10_101, 0),
            there("A", 10_101, 501, 1000),
            back("A", 501, 11_101, 500),
        ],
        // A keepalive.
        vec![
            there("A", 10_100, 501, 0),
            back("A", 501, 10_101, 0),
            there("A", 10_101, 501, 100),
            back("A", 501, 10_201, 0),
        ],
        // The end of the connection, half closed for a while.
        vec![
            there("FA", 10_101, 501, 0),
            back("A", 501, 10_102, 900),
            there("A", 10_102, 1401, 0),
            back("FA", 1401, 10_102, 0),
            there("A", 10_102, 1402, 0),
        ],
        vec![there("RA", 10_101, 501, 0)],
        vec![there("R", 10_101, 501, 0)],
        // A reset that the server challenges.
        vec![
            there("R", 10_102, 0, 0),
            back("A", 501, 10_101, 0),
            there("R", 10_101, 0, 0),
        ],
    ];
    for lost in [&["h1"][..], &["h2"], &["h1", "h2"]] {
        for frames in &first {
            let mut fabric = web();
            establish(&mut fabric);
            pass(&mut fabric, &[there("A", 101, 501, 1000)]);
            for sent in 1..10 {
                pass(&mut fabric, &[there("A", 101 + sent * 1000, 501, 1000)]);
            }
            for host in lost {
                forget(&fabric, host);
            }
            pass(&mut fabric, frames);
            assert!(fabric.all_drops().is_empty());
        }
    }
    // Policy still decides which way a connection may be picked up.
    let mut fabric = web();
    establish(&mut fabric);
    forget(&fabric, "h1");
    dropped(
        &mut fabric,
        &back("FA", 501, 101, 0),
        DropReason::GroupDenied,
    );
    dropped(
        &mut fabric,
        &back("R", 501, 101, 0),
        DropReason::GroupDenied,
    );
}

#[test]
fn b019_a_tuple_is_used_again_while_one_side_holds_it_established() {
    for isn in [0, 100, 101, 60_000, 1 << 30, 1 << 31, u32::MAX] {
        let mut fabric = web();
        establish(&mut fabric);
        pass(&mut fabric, &[there("A", 101, 501, 1000)]);
        let next = isn.wrapping_add(1);
        let again = [
            there("S", isn, 0, 0),
            there("S", isn, 0, 0),
            back("SA", 2_000_000_000, next, 0),
            there("A", next, 2_000_000_001, 0),
            there("A", next, 2_000_000_001, 1000),
            back("A", 2_000_000_001, next.wrapping_add(1000), 1000),
        ];
        pass(&mut fabric, &again);
        assert_eq!(states(&fabric, "h2"), ["established"]);
        assert!(fabric.all_drops().is_empty());
    }
}

/// From the server's side policy decides, as it does for every flow.
#[test]
fn b019_the_other_side_may_use_the_tuple_again_where_policy_lets_it_open_flows() {
    let again = [
        back("S", 70_000, 0, 0),
        there("SA", 90_000, 70_001, 0),
        back("A", 70_001, 90_001, 0),
        there("A", 90_001, 70_001, 300),
        back("A", 70_001, 90_301, 300),
    ];
    let mut closed = web();
    establish(&mut closed);
    dropped(&mut closed, &again[0], DropReason::GroupDenied);
    pass(
        &mut closed,
        &[there("A", 101, 501, 10), back("A", 501, 111, 10)],
    );
    let mut open = fabric(|_| {});
    establish(&mut open);
    pass(&mut open, &again);
    // The flow is now the server's: without its rule nothing passes either way.
    change(&mut open, |objects| {
        group(objects, "open").rules = vec![ingress("tcp", Some(80))];
    });
    dropped(
        &mut open,
        &back("A", 70_001, 90_301, 9),
        DropReason::GroupDenied,
    );
}

#[test]
fn b019_a_syn_that_the_peer_challenges_is_answered_by_its_reset() {
    // The client has restarted, and the hosts hold the connection; or they have lost it, or see it closed.
    for case in 0..3 {
        let mut fabric = web();
        establish(&mut fabric);
        match case {
            0 => {}
            1 => ["h1", "h2"].iter().for_each(|host| forget(&fabric, host)),
            _ => pass(
                &mut fabric,
                &[there("FA", 101, 501, 0), back("FA", 501, 102, 0)],
            ),
        }
        pass(
            &mut fabric,
            &[
                there("S", 4_000_000, 0, 0),
                back("A", 501, 101, 0),
                there("R", 101, 0, 0),
            ],
        );
        assert_eq!(states(&fabric, "h1"), ["closed"], "{case}");
        pass(
            &mut fabric,
            &[
                there("S", 4_000_000, 0, 0),
                back("SA", 9000, 4_000_001, 0),
                there("A", 4_000_001, 9001, 0),
            ],
        );
    }
}

#[test]
fn b019_a_reset_that_is_not_exact_is_challenged_and_the_connection_goes_on() {
    let mut fabric = web();
    establish(&mut fabric);
    pass(
        &mut fabric,
        &[
            back("R", 502, 0, 0),
            there("A", 101, 501, 0),
            back("A", 501, 101, 1000),
            there("A", 101, 1501, 1000),
            there("R", 1102, 0, 0),
            back("A", 1501, 1101, 0),
            there("A", 1101, 1501, 100),
        ],
    );
    assert_eq!(states(&fabric, "h2"), ["established"]);
    dropped(
        &mut fabric,
        &back("R", 2_000_000_000, 0, 0),
        DropReason::TcpWindow,
    );
    dropped(&mut fabric, &there("RA", 0, 1501, 0), DropReason::TcpWindow);
    pass(&mut fabric, &[back("R", 1501, 0, 0)]);
    assert_eq!(states(&fabric, "h2"), ["closed"]);
}

#[test]
fn b019_a_closed_port_refuses_a_syn_on_a_new_tuple_and_on_one_that_is_held() {
    let mut fabric = web();
    pass(&mut fabric, &[there("S", 100, 0, 0), back("RA", 0, 101, 0)]);
    assert_eq!(states(&fabric, "h1"), ["closed"]);
    establish(&mut fabric);
    pass(
        &mut fabric,
        &[there("S", 7000, 0, 0), back("RA", 0, 7001, 0)],
    );
    assert_eq!(states(&fabric, "h1"), ["closed"]);
    // Between SYN and SYN-ACK the server has gone.
    pass(
        &mut fabric,
        &[
            there("S", 8000, 0, 0),
            back("SA", 1, 8001, 0),
            there("S", 8000, 0, 0),
            back("RA", 0, 8001, 0),
        ],
    );
    assert_eq!(states(&fabric, "h2"), ["closed"]);
}

#[test]
fn b019_fast_open_passes_when_the_server_takes_none_of_its_data() {
    let mut fabric = web();
    pass(
        &mut fabric,
        &[
            there("S", 100, 0, 200),
            back("SA", 500, 101, 0),
            there("A", 101, 501, 200),
            back("A", 501, 301, 900),
            there("A", 301, 1401, 0),
        ],
    );
    assert_eq!(states(&fabric, "h1"), ["established"]);
}

#[test]
fn b019_both_sides_open_at_once() {
    let mut fabric = fabric(|_| {});
    pass(
        &mut fabric,
        &[
            there("S", 100, 0, 0),
            back("S", 500, 0, 0),
            there("SA", 100, 501, 0),
            back("SA", 500, 101, 0),
            there("A", 101, 501, 100),
            back("A", 501, 201, 100),
        ],
    );
    assert_eq!(states(&fabric, "h1"), ["established"]);
    assert!(fabric.all_drops().is_empty());
}

/// A load balancer in a guest passes segments on with the client's address, and the server answers past it.
#[test]
fn direct_server_return_passes_the_host_of_a_port_that_sends_for_anybody() {
    for unguarded in [false, true] {
        let mut fabric = fabric(|objects| {
            let director = port(objects, "a2");
            director.unguarded = unguarded;
            if !unguarded {
                director.allowed_pairs.push(weft_proto::v1::AddressPair {
                    cidr: "0.0.0.0/0".into(),
                    ..Default::default()
                });
            }
        });
        // From a1 to the director, as it sees what a3 sends; the answers never come by.
        for (flags, seq, ack, payload) in [
            ("S", 100, 0, 0),
            ("A", 101, 900_001, 0),
            ("A", 101, 900_001, 1000),
            ("A", 1101, 4_000_000_000, 1000),
            ("FA", 2101, 90_000_000, 0),
        ] {
            let segment = tcp(A1, A2, A2.mac, (1000, 80), flags, (seq, ack), payload);
            // What h1, the client's host, knows is of no account here.
            forget(&fabric, "h1");
            pass(&mut fabric, &[segment]);
        }
        assert_eq!(states(&fabric, "h2"), ["fin_from_origin"]);
        let drops = fabric.drops("h2", DropReason::TcpInvalid);
        assert_eq!(drops + fabric.drops("h2", DropReason::TcpWindow), 0);
        // Of a guarded port's connection, one way is not enough.
        let segment = |flags, seq, ack| tcp(A1, A3, A3.mac, (1000, 80), flags, (seq, ack), 0);
        assert_eq!(fabric.send("a1", &segment("S", 100, 0)).len(), 1);
        assert!(fabric.send("a1", &segment("A", 101, 7)).is_empty());
        assert_eq!(fabric.drops("h1", DropReason::TcpInvalid), 1);
    }
}

/// Marks of congestion control (ECE, CWR, and the one that was NS), and urgent data, are nobody's business here.
#[test]
fn flags_that_a_tracker_does_not_know_do_not_matter() {
    let mut fabric = web();
    let marked = |mut frame: Vec<u8>, ns: u8, flags: u8| {
        frame[46] |= ns;
        frame[47] |= flags;
        frame
    };
    pass(
        &mut fabric,
        &[
            marked(there("S", 100, 0, 0), 1, 0xc0),
            marked(back("SA", 500, 101, 0), 0, 0x40),
            marked(there("A", 101, 501, 10), 0, 0x80),
            marked(back("A", 501, 111, 10), 1, 0x60),
        ],
    );
    assert_eq!(states(&fabric, "h1"), ["established"]);
}

/// Forgotten, a connection that policy has ended would be picked up in mid-stream by the side that may open flows.
#[test]
fn b017_a_syn_that_policy_refuses_does_not_make_a_denied_connection_forgotten() {
    let mut fabric = web();
    establish(&mut fabric);
    change(&mut fabric, |objects| group(objects, "open").rules.clear());
    for _ in 0..3 {
        let syn = there("S", 90_000, 0, 0);
        dropped(
            &mut fabric,
            &there("A", 101, 501, 10),
            DropReason::GroupDenied,
        );
        dropped(&mut fabric, &syn, DropReason::GroupDenied);
        dropped(
            &mut fabric,
            &back("A", 501, 101, 10),
            DropReason::GroupDenied,
        );
    }
}

/// Whether a SYN may open a flow says nothing of the packets of the connection that stands on its tuple.
#[test]
fn b017_a_syn_that_policy_admits_does_not_admit_the_connection_that_it_would_replace() {
    let mut fabric = fabric(|_| {});
    establish(&mut fabric);
    change(&mut fabric, |objects| {
        let out = v1::SecurityRule {
            direction: "egress".into(),
            ..ingress("udp", None)
        };
        let group = v1::SecurityGroup {
            id: "called".into(),
            vpc: group(objects, "open").vpc.clone(),
            rules: vec![ingress("tcp", None), out],
            ..v1::SecurityGroup::default()
        };
        objects.security_groups.push(group);
        port(objects, "a1").security_groups = vec!["called".into()];
    });
    pass(&mut fabric, &[back("S", 500, 0, 0)]);
    dropped(
        &mut fabric,
        &back("A", 501, 101, 10),
        DropReason::GroupDenied,
    );
}
