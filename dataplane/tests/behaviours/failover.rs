//! Gateway hosts that are cut off, stand still or have no link on the segment: which of them has the addresses, packet by packet. h1 and h3 are gateway
//! hosts, in this order; h2 uses them.

use weft_dataplane::packet::DropReason;
use weft_fabric::Fabric;

use crate::external::{FAR, H1, H3, NEIGHBOR, answer, at, held, leaves_by, station, twofold, v4};
use crate::frames::{A2, arp, icmp6, udp};
use crate::topology::ROUTER;

/// Frames by which a host says that it has the gateway's IPv4 address: an answer, or an announcement (RFC 5227 §3).
fn claims(fabric: &Fabric, host: &str, mac: [u8; 6]) -> usize {
    let is_claim = |frame: &[u8]| {
        frame[12..14] == [8, 6] && frame[22..28] == mac && frame[28..32] == station(5).v4
    };
    let sent = fabric.outside.iter();
    sent.filter(|(sender, frame)| sender == host && is_claim(frame))
        .count()
}

/// Whether h1 answers who asks for the gateway's addresses, by ARP and by neighbour discovery.
fn answers(fabric: &mut Fabric) -> [bool; 2] {
    let question = arp(
        NEIGHBOR.mac,
        1,
        (NEIGHBOR.mac, NEIGHBOR.v4),
        ([0; 6], station(5).v4),
    );
    fabric.outside.clear();
    fabric.send_from_uplink("h1", 1, &question);
    let by_arp = claims(fabric, "h1", H1) == 1;
    let mut body = vec![0; 4];
    body.extend(station(5).v6);
    body.extend([1, 1]);
    body.extend(NEIGHBOR.mac);
    let question = icmp6(NEIGHBOR.mac, H1, NEIGHBOR.v6, station(5).v6, 135, &body);
    fabric.outside.clear();
    fabric.send_from_uplink("h1", 1, &question);
    let mut sent = fabric.outside.iter();
    let by_discovery =
        sent.any(|(host, frame)| host == "h1" && frame[12..14] == [0x86, 0xdd] && frame[54] == 136);
    fabric.outside.clear();
    [by_arp, by_discovery]
}

/// Whether h1 says that the gateway's address is its own when another claims it.
fn defends(fabric: &mut Fabric) -> bool {
    let claim = arp(
        NEIGHBOR.mac,
        1,
        (NEIGHBOR.mac, station(5).v4),
        ([0; 6], station(5).v4),
    );
    fabric.outside.clear();
    fabric.send_from_uplink("h1", 1, &claim);
    let defends = claims(fabric, "h1", H1) > 0;
    fabric.outside.clear();
    defends
}

/// Lets time pass; what was sent onto the segment meanwhile is in `outside` afterwards.
fn live(fabric: &mut Fabric, milliseconds: u32) {
    let mut sent = Vec::new();
    for _ in 0..milliseconds / 100 {
        fabric.outside.clear();
        fabric.live(100).unwrap();
        sent.extend(fabric.outside.iter().cloned());
        answer(fabric);
    }
    fabric.outside = sent;
}

/// Cuts h1's underlay: what it sends, what it hears.
fn cut(fabric: &mut Fabric, sends: bool, hears: bool) {
    for other in ["h2", "h3"] {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        fabric.cut.extend(sends.then(|| pair("h1", other)));
        fabric.cut.extend(hears.then(|| pair(other, "h1")));
    }
}

#[test]
fn a_gateway_host_that_is_cut_off_has_no_address_on_the_segment_any_more() {
    for (sends, hears) in [(true, true), (true, false), (false, true)] {
        let mut fabric = twofold();
        let flow = udp(A2, FAR, ROUTER, (7000, 53), b"x");
        let (host, seen) = leaves_by(&mut fabric, "a2", &flow);
        assert_eq!(host, "h1");
        assert_eq!(answers(&mut fabric), [true; 2]);
        live(&mut fabric, 200);
        cut(&mut fabric, sends, hears);
        live(&mut fabric, 600);
        let reply = udp(FAR, at(held(5), H1), H1, (53, seen.source_port), b"y");
        for _ in 0..30 {
            assert_eq!(answers(&mut fabric), [false; 2], "{sends} {hears}");
            assert!(!defends(&mut fabric));
            live(&mut fabric, 100);
            assert_eq!(claims(&fabric, "h1", H1), 0, "{sends} {hears}");
        }
        // What still arrives there is not translated.
        let before = fabric.drops("h1", DropReason::ExternalUnheld);
        assert_eq!(fabric.send_from_uplink("h1", 1, &reply), []);
        let after = fabric.drops("h1", DropReason::ExternalUnheld);
        assert_eq!(after, before + 1, "{:?}", fabric.all_drops());
        let (host, now) = leaves_by(&mut fabric, "a2", &flow);
        assert_eq!(
            (host.as_str(), now.source_port),
            ("h3", seen.source_port),
            "{sends} {hears}"
        );
        // It has them again when it knows what the other knows, and announces them.
        fabric.cut.clear();
        fabric.outside.clear();
        live(&mut fabric, 300);
        assert_eq!(claims(&fabric, "h1", H1), 0, "{sends} {hears}");
        live(&mut fabric, 2000);
        assert!(claims(&fabric, "h1", H1) > 0, "{sends} {hears}");
        let (host, now) = leaves_by(&mut fabric, "a2", &flow);
        assert_eq!((host.as_str(), now.source_port), ("h1", seen.source_port));
        assert_eq!(answers(&mut fabric), [true; 2]);
        assert!(defends(&mut fabric));
    }
}

/// What has waited in its queues meanwhile: questions that the next host has answered long ago, and the announcement of that one.
#[test]
fn a_gateway_host_that_stood_still_answers_for_nothing_until_it_has_looked() {
    let mut fabric = twofold();
    assert!(defends(&mut fabric));
    fabric.dead.insert("h1".into());
    live(&mut fabric, 2000);
    fabric.dead.clear();
    // Its snapshot still has the addresses.
    assert_eq!(answers(&mut fabric), [false; 2]);
    assert!(!defends(&mut fabric));
    // It has looked, and no new snapshot is in force yet.
    fabric.advance(100);
    fabric.carry();
    assert_eq!(answers(&mut fabric), [false; 2]);
    assert!(!defends(&mut fabric));
    live(&mut fabric, 3000);
    assert_eq!(answers(&mut fabric), [true; 2]);
}

#[test]
fn a_gateway_host_without_a_link_on_the_segment_is_not_used_until_it_has_one() {
    let mut fabric = twofold();
    let flow = udp(A2, FAR, ROUTER, (7000, 53), b"x");
    let (host, seen) = leaves_by(&mut fabric, "a2", &flow);
    assert_eq!((host.as_str(), seen.source), ("h1", v4(station(5))));
    live(&mut fabric, 200);
    fabric.hosts["h1"].shared.probes.set_path_down(true);
    live(&mut fabric, 300);
    assert!(claims(&fabric, "h3", H3) > 0);
    // It knows no next hop yet.
    live(&mut fabric, 200);
    let (host, now) = leaves_by(&mut fabric, "a2", &flow);
    assert_eq!((host.as_str(), now.source_port), ("h3", seen.source_port));
    live(&mut fabric, 3000);
    fabric.hosts["h1"].shared.probes.set_path_down(false);
    live(&mut fabric, 1000);
    let (host, now) = leaves_by(&mut fabric, "a2", &flow);
    assert_eq!((host.as_str(), now.source_port), ("h1", seen.source_port));
}

/// Offsets in a tunnel packet over IPv4: of the inner UDP destination port, and of BFD's packet.
const PORT: usize = 50 + 36;
const CONTROL: usize = 50 + 42;

/// The last probe from one host to another, by the last bytes of their tunnel addresses.
fn probe(fabric: &Fabric, from: u8, to: u8) -> Vec<u8> {
    let is_it = |frame: &&Vec<u8>| {
        frame.len() > CONTROL
            && frame[PORT..PORT + 2] == 3784u16.to_be_bytes()
            && (frame[29], frame[33]) == (from, to)
    };
    fabric.crossed.iter().rfind(is_it).unwrap().clone()
}

/// RFC 5880 §6.8.6 takes "down" and "administratively down" without a discriminator; a session that is up here does not.
#[test]
fn a_forged_probe_ends_no_session_and_moves_no_traffic() {
    let mut fabric = twofold();
    let flow = udp(A2, FAR, ROUTER, (7000, 53), b"x");
    assert_eq!(leaves_by(&mut fabric, "a2", &flow).0, "h1");
    live(&mut fabric, 500);
    for (from, to, host) in [
        (1, 2, "h2"),
        (1, 3, "h3"),
        (3, 1, "h1"),
        (2, 1, "h1"),
        (3, 2, "h2"),
    ] {
        let good = probe(&fabric, from, to);
        // Up, as it is.
        assert_eq!(good[CONTROL + 1] >> 6, 3);
        for state in [0, 1] {
            for guess in [0u32, 1, 0x1234_5678] {
                let mut forged = good.clone();
                forged[CONTROL + 1] = state << 6;
                forged[CONTROL + 8..CONTROL + 12].copy_from_slice(&guess.to_be_bytes());
                let before = fabric.drops(host, DropReason::FellowMalformed);
                fabric.send_from_underlay(host, &forged);
                let after = fabric.drops(host, DropReason::FellowMalformed);
                assert_eq!(after, before + 1, "{from} {to} {state} {guess}");
            }
        }
        // With the right discriminator, from an address that is no host's, and to one that is not this host's.
        for (at, reason) in [(29, DropReason::UnknownVtep), (33, DropReason::NotOurVtep)] {
            let mut forged = good.clone();
            forged[CONTROL + 1] = 1 << 6;
            forged[at] = 99;
            crate::overlay::mend_ipv4(&mut forged, 14);
            let before = fabric.drops(host, reason);
            fabric.send_from_underlay(host, &forged);
            assert_eq!(fabric.drops(host, reason), before + 1, "{from} {to} {at}");
        }
        // And as if it were another's, whose session has another discriminator.
        let mut forged = good.clone();
        forged[CONTROL + 1] = 1 << 6;
        forged[29] = 6 - from - to;
        crate::overlay::mend_ipv4(&mut forged, 14);
        fabric.send_from_underlay(host, &forged);
        for _ in 0..5 {
            assert_eq!(leaves_by(&mut fabric, "a2", &flow).0, "h1");
            fabric.live(100).unwrap();
        }
    }
}
