//! Gateway hosts that stand in for each other: three of them, over IPv6, and what they do not believe.

use weft_dataplane::packet::parse::address_word;
use weft_dataplane::packet::{DropReason, Mac};
use weft_dataplane::snapshot::compile::ExternalLink;
use weft_fabric::Fabric;
use weft_proto::state::State;

use crate::external::{FAR, H3, address, answer, at, held, leaves_by, station, twofold, v4};
use crate::frames::{A1, A2, echo_reply, echo6, read, tcp, udp, udp6};
use crate::topology::{LIMITS, ROUTER, change};

const H4: [u8; 6] = [6, 0, 0, 0, 1, 4];

/// h1, h3 and h4 are gateway hosts, in this order.
fn threefold() -> Fabric {
    let mut fabric = twofold();
    let mut objects = fabric.state().to_objects();
    objects.hosts.push(weft_proto::v1::Host {
        id: "h4".into(),
        vteps: vec!["192.0.2.4".into(), "2001:db8:ffff::4".into()],
        physical_networks: vec!["physnet1".into()],
        ..weft_proto::v1::Host::default()
    });
    objects.external_networks[0].gateway_hosts.push("h4".into());
    let externals = std::mem::take(&mut fabric.externals);
    let state = State::from_objects(objects).unwrap();
    let mut fabric = Fabric::new(
        state.clone(),
        &weft_dataplane::pipeline::Settings::default(),
        LIMITS,
    )
    .unwrap();
    fabric.externals = externals;
    let link = ExternalLink {
        physical_network: "physnet1".into(),
        uplink: 1,
        mac: Mac::from_bytes(H4),
        mtu: 1500,
        has_tunnels: false,
    };
    fabric.externals.insert("h4".into(), vec![link]);
    fabric.set(state).unwrap();
    // All have just started: the first is ready soon, the others when they have been told.
    fabric.live(4000).unwrap();
    answer(&mut fabric);
    fabric.outside.clear();
    fabric
}

/// Sends until it leaves; answers by whom and from which port. Within a second.
#[track_caller]
fn soon(fabric: &mut Fabric, frame: &[u8]) -> (String, u16) {
    let kind = |frame: &[u8]| {
        (
            frame[12],
            frame[13],
            frame[if frame[12] == 8 { 23 } else { 20 }],
        )
    };
    for _ in 0..10 {
        fabric.outside.clear();
        fabric.send("a2", frame);
        let mut left = fabric.outside.iter();
        let left = left.find(|(_, left)| kind(left) == kind(frame));
        if let Some((host, left)) = left {
            return (host.clone(), read(left).source_port);
        }
        fabric.live(100).unwrap();
        answer(fabric);
    }
    panic!("{:?}", fabric.all_drops());
}

/// One after the other, and back: a host that returns waits for what the one in use has to tell, however often a third one has told of nothing.
#[test]
fn of_three_gateway_hosts_the_last_has_all_that_the_first_had_and_gives_it_back() {
    let mut fabric = threefold();
    // A port that nobody could guess: a1 has the same.
    let of_a1 = udp(A1, FAR, ROUTER, (7000, 53), b"x");
    assert_eq!(leaves_by(&mut fabric, "a1", &of_a1).0, "h1");
    let flow = udp(A2, FAR, ROUTER, (7000, 53), b"x");
    let (host, port) = soon(&mut fabric, &flow);
    assert_eq!(host, "h1");
    assert_ne!(port, 7000);
    fabric.live(200).unwrap();
    for (dead, next) in [("h1", "h3"), ("h3", "h4")] {
        fabric.dead.insert(dead.into());
        assert_eq!(soon(&mut fabric, &flow), (next.to_owned(), port));
        // Its own turn over all sessions.
        fabric.live(300).unwrap();
    }
    // Made by h4 alone.
    let later = udp(A2, FAR, ROUTER, (7001, 53), b"x");
    let (_, second) = soon(&mut fabric, &later);
    fabric.restart("h3", LIMITS).unwrap();
    fabric.restart("h1", LIMITS).unwrap();
    assert_eq!(soon(&mut fabric, &flow), ("h4".to_owned(), port));
    fabric.live(5000).unwrap();
    answer(&mut fabric);
    assert_eq!(soon(&mut fabric, &flow), ("h1".to_owned(), port));
    assert_eq!(soon(&mut fabric, &later), ("h1".to_owned(), second));
    // The answers find their way, too.
    let back = udp(FAR, held(5), held(5).mac, (53, port), b"y");
    let out = fabric.send_from_uplink("h1", 1, &back);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    assert_eq!(
        (out[0].port.as_str(), read(&out[0].frame).destination_port),
        ("a2", 7000)
    );
    for host in fabric.hosts.values() {
        assert_eq!(host.unaccounted(), 0, "{}", host.id);
    }
}

#[test]
fn the_next_gateway_host_takes_over_ipv6_as_well() {
    let mut fabric = twofold();
    let of_a1 = udp6(A1, FAR, ROUTER, (7000, 53), b"x");
    assert_eq!(leaves_by(&mut fabric, "a1", &of_a1).0, "h1");
    let flow = udp6(A2, FAR, ROUTER, (7000, 53), b"x");
    let (host, port) = soon(&mut fabric, &flow);
    assert_eq!(host, "h1");
    assert_ne!(port, 7000);
    fabric.live(200).unwrap();
    fabric.dead.insert("h1".into());
    assert_eq!(soon(&mut fabric, &flow), ("h3".to_owned(), port));
    // It announces the address: an unsolicited advertisement (RFC 4861 7.2.6).
    fabric.outside.clear();
    fabric.live(1500).unwrap();
    let announced = fabric.outside.iter().any(|(host, frame)| {
        host == "h3"
            && frame[12..14] == [0x86, 0xdd]
            && frame[54] == 136
            && frame[62..78] == station(5).v6
    });
    assert!(announced);
    let back = udp6(FAR, at(held(5), H3), H3, (53, port), b"y");
    let out = fabric.send_from_uplink("h3", 1, &back);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    let seen = read(&out[0].frame);
    assert_eq!(
        (
            out[0].port.as_str(),
            seen.destination,
            seen.destination_port
        ),
        ("a2", address(A2, true), 7000)
    );
    // And gives it back.
    fabric.restart("h1", LIMITS).unwrap();
    fabric.live(3000).unwrap();
    answer(&mut fabric);
    assert_eq!(soon(&mut fabric, &flow), ("h1".to_owned(), port));
}

/// Both sides of a session are told of, each in its family; of a ping, each with its protocol.
#[test]
fn the_next_gateway_host_takes_over_what_goes_between_the_families() {
    let mut fabric = twofold();
    let mut far = FAR;
    far.v6 = [0; 16];
    far.v6[..4].copy_from_slice(&[0, 0x64, 0xff, 0x9b]);
    far.v6[12..].copy_from_slice(&FAR.v4);
    // A port that nobody could guess.
    leaves_by(&mut fabric, "a1", &udp(A1, FAR, ROUTER, (7000, 53), b"x"));
    let flow = udp6(A2, far, ROUTER, (7000, 53), b"x");
    let (host, seen) = leaves_by(&mut fabric, "a2", &flow);
    assert_eq!((host.as_str(), seen.source), ("h1", v4(station(5))));
    let port = seen.source_port;
    assert_ne!(port, 7000);
    leaves_by(&mut fabric, "a2", &echo6(A2, far, ROUTER, 77, b"ping"));
    let of_h1 = fabric.hosts["h1"].shared.sessions.mappings().list(9);
    let icmp = of_h1
        .iter()
        .find(|(mapping, _)| mapping.inside.protocol == 1);
    let id = icmp.unwrap().0.outside.port;
    fabric.live(200).unwrap();
    fabric.dead.insert("h1".into());
    fabric.live(600).unwrap();
    answer(&mut fabric);
    // From outside first: nothing but the session says whose it is.
    for (back, what) in [
        (udp(FAR, at(held(5), H3), H3, (53, port), b"y"), 17),
        (echo_reply(FAR, at(held(5), H3), H3, id, b"ping"), 58),
    ] {
        let out = fabric.send_from_uplink("h3", 1, &back);
        assert_eq!(out.len(), 1, "{what} {:?}", fabric.all_drops());
        let seen = read(&out[0].frame);
        assert_eq!(
            (out[0].port.as_str(), seen.destination),
            ("a2", address(A2, true))
        );
        assert_eq!(out[0].frame[20], what);
    }
    let (host, seen) = leaves_by(&mut fabric, "a2", &flow);
    assert_eq!((host.as_str(), seen.source_port), ("h3", port));
}

/// The standby has a mapping of the address that the gateway has lost, which its old session uses.
#[test]
fn a_new_address_of_the_gateway_is_known_to_the_next_host_too() {
    let mut fabric = twofold();
    let flow = |port| udp(A2, FAR, ROUTER, (7000, port), b"x");
    assert_eq!(
        leaves_by(&mut fabric, "a2", &flow(53)).1.source,
        v4(station(5))
    );
    fabric.live(200).unwrap();
    change(&mut fabric, |objects| {
        objects.nat_gateways[0].addresses[0] = "203.0.113.6".into();
    });
    fabric.live(200).unwrap();
    // Of another guest first, so that its port is none that anybody could guess.
    leaves_by(&mut fabric, "a1", &udp(A1, FAR, ROUTER, (7000, 54), b"x"));
    let (_, seen) = leaves_by(&mut fabric, "a2", &flow(54));
    assert_eq!(seen.source, v4(station(6)));
    assert_ne!(seen.source_port, 7000);
    fabric.live(200).unwrap();
    fabric.dead.insert("h1".into());
    let after = soon(&mut fabric, &flow(54));
    assert_eq!(after, ("h3".to_owned(), seen.source_port));
}

/// Offsets in a tunnel packet over IPv4: of the inner frame, what is told in it, and the first record.
const INNER: usize = 50;
const TOLD: usize = INNER + 42;
const RECORD: usize = TOLD + 8;

/// What h1 has told h3 of a connection of a2.
fn told(fabric: &mut Fabric) -> Vec<u8> {
    fabric.crossed.clear();
    let syn = tcp(A2, FAR, ROUTER, (7000, 80), "S", (100, 0), 0);
    leaves_by(fabric, "a2", &syn);
    let is_told = |frame: &&Vec<u8>| {
        frame.len() > RECORD
            && frame[46..49] == [0; 3]
            && frame[TOLD..TOLD + 4] == *b"weft"
            && frame[TOLD + 5] == 1
    };
    fabric.crossed.iter().find(is_told).unwrap().clone()
}

/// How many sessions and mappings h3 has, packets that it has read, and those that were malformed.
fn at_h3(fabric: &Fabric) -> (u64, u32, u64, u64) {
    let host = &fabric.hosts["h3"];
    (
        host.shared.sessions.statistics().live,
        host.shared.sessions.mappings().count(),
        host.pipeline.counters().uplink(0).read.get(),
        fabric.drops("h3", DropReason::FellowMalformed),
    )
}

#[test]
fn what_no_gateway_host_may_tell_is_dropped_by_name_or_changes_nothing() {
    let mut fabric = twofold();
    let good = told(&mut fabric);
    fabric.restart("h3", LIMITS).unwrap();
    let before = at_h3(&fabric);
    assert_eq!((before.0, before.1), (0, 0));
    type Spoil = fn(&mut Vec<u8>);
    let malformed: [(&str, Spoil); 9] = [
        ("no IP", |frame| frame[INNER + 12] = 0x88),
        ("another MAC", |frame| frame[INNER] ^= 1),
        ("has crossed a router", |frame| frame[INNER + 22] = 254),
        ("another port", |frame| frame[INNER + 37] ^= 1),
        ("another magic", |frame| frame[TOLD] = b'W'),
        ("another version", |frame| frame[TOLD + 4] = 2),
        ("another kind", |frame| frame[TOLD + 5] = 3),
        ("more records than there are", |frame| frame[TOLD + 6] = 2),
        ("no such state", |frame| frame[RECORD + 1] = 99),
    ];
    let mut expected = before;
    for (what, spoil) in malformed {
        let mut frame = good.clone();
        spoil(&mut frame);
        fabric.send_from_underlay("h3", &frame);
        expected.3 += 1;
        assert_eq!(at_h3(&fabric), expected, "{what}");
    }
    let families: [(&str, Spoil); 4] = [
        ("IPv4 inside and IPv6 outside", |frame| {
            frame[RECORD + 48] = 0x20;
            frame[RECORD + 64] = 0x20;
        }),
        ("two families in a flow", |frame| frame[RECORD + 12] = 0x20),
        ("both sides outside", |frame| {
            frame[RECORD + 4..RECORD + 8].fill(0);
        }),
        ("no side outside", |frame| frame[RECORD + 11] = 7),
    ];
    for (what, spoil) in families {
        let mut frame = good.clone();
        spoil(&mut frame);
        fabric.send_from_underlay("h3", &frame);
        expected.3 += 1;
        assert_eq!(at_h3(&fabric), expected, "{what}");
    }
    // Well-formed, but not of what the two stand in for.
    let foreign: [(&str, Spoil); 3] = [
        ("a VPC that is not here", |frame| frame[RECORD + 7] = 77),
        ("an address of no network", |frame| {
            frame[RECORD + 48 + 12] = 9;
        }),
        ("an address of no gateway", |frame| {
            frame[RECORD + 48 + 15] = 99;
        }),
    ];
    for (what, spoil) in foreign {
        let mut frame = good.clone();
        spoil(&mut frame);
        fabric.send_from_underlay("h3", &frame);
        expected.2 += 1;
        assert_eq!(at_h3(&fabric), expected, "{what}");
    }
    // Cut anywhere: the outer lengths say less, too.
    for cut in [INNER + 20, TOLD + 3, RECORD + 10] {
        let mut frame = good[..cut].to_vec();
        let outer = (cut - 14) as u16;
        frame[16..18].copy_from_slice(&outer.to_be_bytes());
        frame[38..40].copy_from_slice(&(outer - 20).to_be_bytes());
        crate::overlay::mend_ipv4(&mut frame, 14);
        fabric.send_from_underlay("h3", &frame);
        expected.3 += 1;
        assert_eq!(at_h3(&fabric), expected, "{cut}");
    }
    // From a host that is no gateway host of the network.
    let mut frame = good.clone();
    frame[29] = 2;
    crate::overlay::mend_ipv4(&mut frame, 14);
    fabric.send_from_underlay("h3", &frame);
    expected.3 += 1;
    assert_eq!(at_h3(&fabric), expected);
    // And as it was told, it is believed.
    fabric.send_from_underlay("h3", &good);
    assert_eq!(at_h3(&fabric), (1, 1, expected.2 + 1, expected.3));
    let inside = address_word(v4(A2));
    let mappings = fabric.hosts["h3"].shared.sessions.mappings().list(9);
    assert_eq!(mappings[0].0.inside.address, inside);
}
