//! Load balancers by least connections: a flow goes to the member with the fewest sessions for its weight, and a session counts for as long as it is there.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_dataplane::packet::parse::address_word;
use weft_dataplane::pipeline::trace::trace;
use weft_dataplane::session::table::NewSession;
use weft_dataplane::session::tcp::Side;
use weft_dataplane::session::{Key, State};
use weft_fabric::Fabric;
use weft_proto::v1;

use crate::balancing::{VIP, by_name, connect, goes_to, listener, member, of};
use crate::frames::{A1, A3, B1, End, tcp, udp};
use crate::topology::{ROUTER, change};
use crate::translation::only;

const UDP: u8 = 17;
const TCP: u8 = 6;

fn least(protocol: &str, members: Vec<v1::Member>) -> v1::Listener {
    v1::Listener {
        algorithm: "least-connections".into(),
        ..listener(protocol, 80, members)
    }
}

/// Port 80 of TCP and UDP, served by members at a port of their own.
fn counting(members: &[v1::Member]) -> Fabric {
    of(["tcp", "udp"].map(|it| least(it, members.to_vec())).into())
}

fn three() -> [v1::Member; 3] {
    ["a2", "b2", "a3"].map(|port| member(port, 8080))
}

fn weighted(port: &str, weight: u32) -> v1::Member {
    v1::Member {
        weight,
        ..member(port, 8080)
    }
}

/// What a host has counted of the listener for port 80 of an address of blue, by the addresses of members.
pub fn counted(
    fabric: &Fabric,
    host: &str,
    address: impl Into<IpAddr>,
    protocol: u8,
) -> BTreeMap<u128, u32> {
    let snapshot = fabric.hosts[host].pipeline.snapshot();
    let blue = snapshot.vpcs.iter().find(|vpc| vpc.id == "blue").unwrap();
    let balancer = blue.balancers.get(&address_word(address.into())).unwrap();
    let listener = balancer.listener(protocol, 80).unwrap();
    let members = listener.members.iter().map(|it| {
        let counter = listener.counter(80, (it.address, it.first)).unwrap();
        (it.address, listener.sessions(counter))
    });
    members.collect()
}

/// Every counter of every host says how many sessions there are that count in it.
pub fn is_exact(fabric: &Fabric) {
    for host in fabric.hosts.values() {
        let sessions = &host.shared.sessions;
        let mut wanted = BTreeMap::new();
        sessions.each(fabric.now, |session| {
            if let Some(number) = session.member {
                *wanted.entry(number).or_insert(0) += 1;
            }
        });
        for number in 0..100 {
            let wanted = wanted.remove(&number).unwrap_or(0);
            let found = sessions.member_counts().sessions(number);
            assert_eq!(found, wanted, "{} counter {number}", host.id);
        }
        assert!(wanted.is_empty());
    }
}

fn of_udp(fabric: &Fabric) -> Vec<u32> {
    is_exact(fabric);
    counted(fabric, "h1", VIP.v4, UDP).into_values().collect()
}

fn total(fabric: &Fabric, protocol: u8) -> u32 {
    is_exact(fabric);
    counted(fabric, "h1", VIP.v4, protocol).values().sum()
}

fn goes(fabric: &mut Fabric, ports: std::ops::Range<u16>) -> BTreeMap<String, usize> {
    let mut by_member = BTreeMap::new();
    for port in ports {
        *by_member
            .entry(goes_to(fabric, (A1, "a1"), port))
            .or_insert(0) += 1;
    }
    by_member
}

#[test]
fn as_many_sessions_for_each_and_ties_in_turn() {
    let mut fabric = counting(&three());
    let turns: Vec<String> = (1..10)
        .map(|port| goes_to(&mut fabric, (A1, "a1"), port))
        .collect();
    for round in turns.chunks(3) {
        let round: std::collections::BTreeSet<_> = round.iter().collect();
        assert_eq!(round.len(), 3, "{turns:?}");
    }
    assert_eq!(of_udp(&fabric), [3, 3, 3]);
    // What a session knows counts no more; nor does a trace.
    for port in 1..10 {
        goes_to(&mut fabric, (A1, "a1"), port);
    }
    let frame = udp(A1, VIP, ROUTER, (77, 80), b"q");
    let (host, index) = fabric.find_port("a1").unwrap();
    let steps = |fabric: &Fabric| trace(fabric.hosts[&host].view(), index, &frame).steps;
    let first = steps(&fabric);
    assert_eq!(first, steps(&fabric));
    assert!(
        first
            .iter()
            .any(|(_, text)| text.ends_with("one of 3 members, with 3 sessions here")),
        "{first:?}"
    );
    assert_eq!(of_udp(&fabric), [3, 3, 3]);
    // TCP's listener is another, and so is another host.
    assert_eq!(total(&fabric, TCP), 0);
    assert_eq!(counted(&fabric, "h2", VIP.v4, UDP).values().sum::<u32>(), 0);
    // Clients of one host count together, whichever of them asks.
    for (client, name) in [(A3, "a3"), (B1, "b1"), (A1, "a1")] {
        goes_to(&mut fabric, (client, name), 500);
    }
    assert_eq!(of_udp(&fabric), [4, 4, 4]);
    // IPv6 has members of its own.
    assert_eq!(counted(&fabric, "h1", VIP.v6, UDP).values().sum::<u32>(), 0);
}

#[test]
fn a_weight_is_a_share_of_sessions() {
    let mut fabric = counting(&[weighted("a2", 1), weighted("b2", 3), weighted("a3", 2)]);
    for rounds in 1..=10u16 {
        let from = rounds * 6;
        goes(&mut fabric, from..from + 6);
        let counts = counted(&fabric, "h1", VIP.v4, UDP);
        let of = |end: End| counts[&address_word(end.v4.into())];
        let rounds = u32::from(rounds);
        assert_eq!(
            [of(by_name("a2")), of(by_name("b2")), of(A3)],
            [rounds, 3 * rounds, 2 * rounds]
        );
    }
    is_exact(&fabric);
}

#[test]
fn a_member_that_has_lost_its_sessions_gets_the_next_ones() {
    let mut fabric = counting(&[member("a2", 8080), member("b2", 8080)]);
    let opened: Vec<(u16, String)> = (1000..1008)
        .map(|port| (port, connect(&mut fabric, port)))
        .collect();
    assert_eq!(total(&fabric, TCP), 8);
    // One resets all its connections, which are forgotten in time.
    for (port, _) in opened.iter().filter(|(_, to)| to == "a2") {
        let reset = tcp(A1, VIP, ROUTER, (*port, 80), "R", (101, 0), 0);
        assert_eq!(only(&mut fabric, "a1", &reset).0, "a2");
    }
    fabric.advance(31_000);
    assert_eq!(total(&fabric, TCP), 4);
    for port in 2000..2004 {
        assert_eq!(connect(&mut fabric, port), "a2");
    }
    let next = [connect(&mut fabric, 2004), connect(&mut fabric, 2005)];
    assert_ne!(next[0], next[1]);
    assert_eq!(total(&fabric, TCP), 10);
}

/// In each way in which a session goes, what it has counted is given back.
#[test]
fn a_session_that_goes_counts_no_more() {
    // It idles.
    let mut fabric = counting(&three());
    goes(&mut fabric, 1..8);
    assert_eq!(total(&fabric, UDP), 7);
    fabric.advance(121_000);
    assert_eq!(of_udp(&fabric), [0, 0, 0]);

    // The client's port goes.
    goes(&mut fabric, 1..8);
    goes_to(&mut fabric, (B1, "b1"), 9);
    let (_, index) = fabric.find_port("a1").unwrap();
    fabric.hosts["h1"].shared.sessions.remove_port(index);
    assert_eq!(total(&fabric, UDP), 1);

    // An address is another's.
    let vni = 100u32.into();
    let gone = [(vni, address_word(B1.v4.into()))].into();
    fabric.hosts["h1"].shared.sessions.remove_addresses(&gone);
    assert_eq!(total(&fabric, UDP), 0);

    // It gives way to others, as the newest of a full table.
    let flow = |number: u32| weft_dataplane::packet::Flow {
        source: address_word(B1.v4.into()),
        destination: address_word(IpAddr::from(number.to_be_bytes())),
        source_port: 1,
        destination_port: 2,
        protocol: UDP,
    };
    let new = NewSession {
        state: State::OneWay,
        port: u16::MAX,
        vpc: 5.into(),
        now: 1,
        tcp: (Side::unknown(), Side::unknown()),
        action: None,
        translation: None,
        mapping: None,
        chosen: None,
        member: None,
    };
    let flood = |fabric: &Fabric, from: u32| {
        let sessions = &fabric.hosts["h1"].shared.sessions;
        for number in from..from + 20_000 {
            let _ = sessions.insert(&Key::new(sessions.seeds(), &flow(number), vni), &new);
        }
    };
    flood(&fabric, 0x0b00_0000);
    goes(&mut fabric, 1..40);
    let had = total(&fabric, UDP);
    assert!(had > 0);
    flood(&fabric, 0x0c00_0000);
    assert!(
        total(&fabric, UDP) < had,
        "of {had} {}",
        total(&fabric, UDP)
    );
}

#[test]
fn a_connection_that_takes_anothers_place_takes_its_count() {
    let mut fabric = counting(&[member("a2", 8080), member("b2", 8080)]);
    for round in 0..4u32 {
        let number = 100 + round * 100_000;
        let ports = (1000, 80);
        let (to, ..) = only(
            &mut fabric,
            "a1",
            &tcp(A1, VIP, ROUTER, ports, "S", (number, 0), 0),
        );
        assert_eq!(total(&fabric, TCP), 1, "{round} to {to}");
        let reset = tcp(A1, VIP, ROUTER, ports, "R", (number + 1, 0), 0);
        assert_eq!(only(&mut fabric, "a1", &reset).0, to);
        assert_eq!(total(&fabric, TCP), 1);
    }
    // Whose member has gone gets another, where it counts.
    let mut fabric = counting(&[member("a2", 8080), member("b2", 8080)]);
    let syn = tcp(A1, VIP, ROUTER, (1000, 80), "S", (100, 0), 0);
    let (first, ..) = only(&mut fabric, "a1", &syn);
    change(&mut fabric, |objects| {
        let listener = &mut objects.load_balancers[0].listeners[0];
        listener.members.retain(|it| it.port != first);
    });
    assert_eq!(total(&fabric, TCP), 0, "it is of nobody who is there");
    assert_ne!(only(&mut fabric, "a1", &syn).0, first);
    assert_eq!(total(&fabric, TCP), 1);
}

#[test]
fn counts_outlive_a_change_of_the_configuration() {
    let mut fabric = counting(&three()[..2]);
    goes(&mut fabric, 1..9);
    assert_eq!(of_udp(&fabric), [4, 4]);
    let to = |fabric: &mut Fabric, members: &[v1::Member]| {
        change(fabric, |objects| {
            objects.load_balancers[0].listeners[1].members = members.to_vec();
        });
    };
    // A new member catches up; the others keep what they have.
    to(&mut fabric, &three());
    assert_eq!(goes(&mut fabric, 10..14), [("a3".to_owned(), 4)].into());
    assert_eq!(of_udp(&fabric), [4, 4, 4]);
    // One that drains counts, and gets nothing.
    let mut drained = three();
    drained[2].draining = true;
    to(&mut fabric, &drained);
    goes(&mut fabric, 20..24);
    assert_eq!(total(&fabric, UDP), 16);
    assert_eq!(
        counted(&fabric, "h1", VIP.v4, UDP)[&address_word(A3.v4.into())],
        4
    );
    to(&mut fabric, &three());
    assert_eq!(goes(&mut fabric, 30..32), [("a3".to_owned(), 2)].into());
    // One that is taken out and put back has its sessions yet.
    to(&mut fabric, &three()[..2]);
    goes(&mut fabric, 40..42);
    to(&mut fabric, &three());
    assert_eq!(of_udp(&fabric).iter().sum::<u32>(), 20);
    assert_eq!(goes(&mut fabric, 50..51), [("a3".to_owned(), 1)].into());
    // By another algorithm and back: what has counted counts, and what was chosen otherwise does not.
    let before = of_udp(&fabric);
    let by = |fabric: &mut Fabric, algorithm: &str| {
        change(fabric, |objects| {
            objects.load_balancers[0].listeners[1].algorithm = algorithm.into();
        });
    };
    by(&mut fabric, "maglev");
    goes(&mut fabric, 60..70);
    by(&mut fabric, "least-connections");
    assert_eq!(of_udp(&fabric), before);
    // Whoever comes after a load balancer does not inherit.
    change(&mut fabric, |objects| {
        objects.load_balancers[0].id = "other".into();
    });
    assert_eq!(of_udp(&fabric), [0, 0, 0]);
    // When nobody has them any more, the counters are free.
    change(&mut fabric, |objects| objects.load_balancers.clear());
    let counts = fabric.hosts["h1"].shared.sessions.member_counts().clone();
    assert_eq!(counts.used(), 3, "sessions are there yet");
    fabric.advance(200_000);
    assert_eq!(counts.used(), 0);
}
