//! Behaviour 3: router solicitations and advertisements.

use std::net::Ipv6Addr;

use weft_dataplane::packet::DropReason;
use weft_fabric::Fabric;
use weft_proto::v1::Dhcp;

use crate::frames::{A1, A2, echo6, icmp6, read, solicit};
use crate::topology::{ROUTER, change, fabric, port};

const ALL_ROUTERS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
/// The gateway's link-local address, of its MAC.
pub const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0077, 0x65ff, 0xfe66, 0x7401);
/// The link-local address of a1.
pub const LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 1, 1];

/// A solicitation with the link-layer option of this MAC.
fn ask(source: [u8; 16], destination: [u8; 16], option: Option<[u8; 6]>) -> Vec<u8> {
    let mut body = vec![0; 4];
    if let Some(mac) = option {
        body.extend([1, 1]);
        body.extend(mac);
    }
    let eth_dst = if destination[0] == 0xff {
        [0x33, 0x33, 0, 0, 0, 2]
    } else {
        ROUTER
    };
    icmp6(A1.mac, eth_dst, source, destination, 133, &body)
}

/// What an advertisement says.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    managed: bool,
    other: bool,
    autonomous: bool,
    /// Kind and value of the options other than the prefix.
    options: Vec<(u8, Vec<u8>)>,
}

#[track_caller]
fn answer(fabric: &mut Fabric, frame: &[u8]) -> (Ipv6Addr, Said) {
    let out = fabric.send("a1", frame);
    assert_eq!(out.len(), 1, "{:?}", fabric.all_drops());
    assert_eq!(out[0].port, "a1");
    let seen = read(&out[0].frame);
    assert_eq!((seen.src, seen.ttl), (ROUTER, 255));
    assert_eq!(seen.source, GATEWAY);
    let message = &out[0].frame[54..];
    assert_eq!(message[..2], [134, 0]);
    assert_eq!(message[4], 64, "hop limit");
    assert_eq!(message[6..8], [0xff, 0xff], "router lifetime");
    let mut options = Vec::new();
    let mut autonomous = None;
    let mut rest = &message[16..];
    while let [kind, units, ..] = *rest {
        let (option, after) = rest.split_at(usize::from(units) * 8);
        if kind == 3 {
            assert_eq!(option[2], 64);
            assert_ne!(option[3] & 0x80, 0, "on link");
            assert_eq!(option[4..12], [0xff; 8], "for ever");
            assert_eq!(
                option[16..],
                Ipv6Addr::from([0xfd00, 1, 0, 0, 0, 0, 0, 0]).octets()
            );
            autonomous = Some(option[3] & 0x40 != 0);
        } else {
            options.push((kind, option[2..].to_vec()));
        }
        rest = after;
    }
    let said = Said {
        managed: message[5] & 0x80 != 0,
        other: message[5] & 0x40 != 0,
        autonomous: autonomous.unwrap(),
        options,
    };
    let std::net::IpAddr::V6(destination) = seen.destination else {
        panic!("{seen:?}");
    };
    (destination, said)
}

#[test]
fn b003_a_solicitation_is_answered_to_who_asks() {
    let mut fabric = fabric(|objects| {
        objects.subnets[0].mtu = 1400;
        objects.subnets[0].dhcp = Some(Dhcp {
            dns_servers: vec!["192.0.2.53".into(), "2001:db8::53".into()],
            domain: "a.test".into(),
            ..Dhcp::default()
        });
    });
    let server: Ipv6Addr = "2001:db8::53".parse().unwrap();
    let forever = [0, 0, 0xff, 0xff, 0xff, 0xff];
    let expected = Said {
        managed: true,
        other: true,
        autonomous: false,
        options: vec![
            (1, ROUTER.to_vec()),
            (5, vec![0, 0, 0, 0, 5, 120]),
            (24, vec![0, 0, 0xff, 0xff, 0xff, 0xff]),
            (25, [&forever[..], &server.octets()].concat()),
            (31, [&forever[..], b"\x01a\x04test\x00"].concat()),
        ],
    };
    for (source, destination) in [
        (LOCAL, ALL_ROUTERS),
        (A1.v6, ALL_ROUTERS),
        (LOCAL, GATEWAY.octets()),
    ] {
        let (to, said) = answer(&mut fabric, &ask(source, destination, Some(A1.mac)));
        assert_eq!(to, Ipv6Addr::from(source));
        assert_eq!(said, expected);
    }
    // Without an address yet: to all nodes, but to this port alone.
    let (to, _) = answer(&mut fabric, &ask([0; 16], ALL_ROUTERS, None));
    assert_eq!(to.to_string(), "ff02::1");
    assert!(fabric.crossed.is_empty());
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b003_the_modes_say_how_guests_come_by_their_address() {
    for (mode, flags) in [
        ("dhcpv6-stateful", (true, true, false)),
        ("dhcpv6-stateless", (false, true, true)),
        ("slaac", (false, false, true)),
    ] {
        let mut fabric = fabric(|objects| {
            objects.subnets[0].dhcp = Some(Dhcp {
                ipv6_mode: mode.into(),
                ..Dhcp::default()
            });
        });
        let (_, said) = answer(&mut fabric, &ask(LOCAL, ALL_ROUTERS, None));
        assert_eq!((said.managed, said.other, said.autonomous), flags, "{mode}");
    }
}

#[test]
fn b003_solicitations_that_break_the_rules_are_dropped() {
    let mut fabric = fabric(|_| {});
    let mut far = ask(LOCAL, ALL_ROUTERS, None);
    far[21] = 64;
    let mut wrong_sum = ask(LOCAL, ALL_ROUTERS, None);
    wrong_sum[56] ^= 1;
    for frame in [far, wrong_sum, ask([0; 16], ALL_ROUTERS, Some(A1.mac))] {
        assert!(fabric.send("a1", &frame).is_empty());
    }
    assert_eq!(fabric.drops("h1", DropReason::NeighborMalformed), 3);
    for frame in [
        ask(A2.v6, ALL_ROUTERS, None),
        ask(LOCAL, ALL_ROUTERS, Some(A2.mac)),
    ] {
        assert!(fabric.send("a1", &frame).is_empty());
    }
    assert_eq!(fabric.drops("h1", DropReason::SpoofedNeighbor), 2);
    // No IPv6 at the port, or nothing to be told: silence.
    let unanswered = ask(LOCAL, ALL_ROUTERS, None);
    change(&mut fabric, |objects| {
        objects.subnets[0].dhcp = Some(Dhcp {
            disabled: true,
            ..Dhcp::default()
        });
    });
    assert!(fabric.send("a1", &unanswered).is_empty());
    change(&mut fabric, |objects| {
        objects.subnets[0].dhcp = None;
        port(objects, "a1").addresses.pop();
    });
    assert!(fabric.send("a1", &unanswered).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::NeighborUnanswered), 2);
}

#[test]
fn b003_the_router_that_was_advertised_is_a_neighbour() {
    let mut fabric = fabric(|_| {});
    for source in [LOCAL, A1.v6] {
        let out = fabric.send("a1", &solicit(A1, source, GATEWAY.octets()));
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].frame[54], 136);
        assert_eq!(out[0].frame[80..86], ROUTER);
    }
    let (mut from, mut to) = (A1, A1);
    (from.v6, to.v6) = (LOCAL, GATEWAY.octets());
    let out = fabric.send("a1", &echo6(from, to, ROUTER, 7, b"router?"));
    assert_eq!(read(&out[0].frame).payload, b"router?");
}
