use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use weft_proto::state::State;
use weft_proto::v1;

use super::*;
use weft_dataplane::packet::parse::address_word;
use weft_dataplane::snapshot::compile::{Compiler, Context, Underlay};

const BASE: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}]
vpcs: [{id: blue, vni: 100}]
subnets: [{id: a, vpc: blue, cidrs: [10.0.1.0/24, "fd00:1::/64"]}]
ports:
  - {id: p1, vpc: blue, subnet: a, mac: "02:00:00:00:01:01", addresses: [10.0.1.11, "fd00:1::11"], host: h1}
  - {id: p2, vpc: blue, subnet: a, mac: "02:00:00:00:01:02", addresses: [10.0.1.12, "fd00:1::12"], host: h2}
"#;

/// What is announced after each of some changes.
fn announced(changes: &[fn(&mut v1::Objects)]) -> Vec<Vec<Moved>> {
    let mut objects: v1::Objects = serde_yaml_ng::from_str(BASE).unwrap();
    let mut compiler = Compiler::new(16, 16, 16);
    let underlay = Underlay::default();
    let mut announcer = Announcer::default();
    let mut before = Snapshot::default();
    let mut all = Vec::new();
    let nothing: fn(&mut v1::Objects) = |_| {};
    for (generation, change) in (1..).zip(std::iter::once(&nothing).chain(changes)) {
        change(&mut objects);
        let context = Context {
            host: "h1",
            generation,
            revision: 0,
            underlay: &underlay,
            metadata: false,
            translations: &[],
            externals: &[],
            silent: Box::leak(Box::default()),
        };
        let state = State::from_objects(objects.clone()).unwrap();
        let after = compiler.compile(&state, &context).unwrap();
        let mut moved = announcer.moved(&before, &after);
        moved.sort_by_key(|moved| moved.address);
        all.push(moved);
        before = after;
    }
    assert!(all.remove(0).is_empty(), "nothing was known before");
    all
}

fn word(text: &str) -> u128 {
    address_word(text.parse::<IpAddr>().unwrap())
}

fn addresses(moved: &[Moved]) -> Vec<u128> {
    moved.iter().map(|moved| moved.address).collect()
}

const BOTH: [&str; 2] = ["10.0.1.12", "fd00:1::12"];

#[test]
fn an_address_that_passes_to_another_port_is_announced_once() {
    let all = announced(&[
        |objects| {
            let addresses = std::mem::take(&mut objects.ports[1].addresses);
            objects.ports[0].addresses.extend(addresses);
        },
        |objects| objects.ports[0].clamp_mss = true,
    ]);
    assert_eq!(addresses(&all[0]), BOTH.map(word));
    assert!(all[0].iter().all(|moved| {
        moved.mac == "02:00:00:00:01:01".parse().unwrap()
            && (moved.vni, moved.is_router) == (100.into(), false)
    }));
    assert!(all[1].is_empty());
    assert_eq!(
        ended(&all[0]),
        BOTH.map(|text| (100.into(), word(text))).into()
    );
}

#[test]
fn so_is_one_that_nobody_had_meanwhile() {
    let all = announced(&[
        |objects| objects.ports[1].addresses.clear(),
        |objects| objects.ports[0].hostname = "x".into(),
        |objects| objects.ports[0].addresses.push("10.0.1.12".into()),
    ]);
    assert!(all[0].is_empty() && all[1].is_empty());
    assert_eq!(addresses(&all[2]), [word("10.0.1.12")]);
}

#[test]
fn a_port_that_comes_goes_or_moves_with_its_mac_is_no_news() {
    let all = announced(&[
        |objects| objects.ports[1].host = "h1".into(),
        |objects| {
            objects.ports.pop();
        },
        |objects| {
            let mut port = objects.ports[0].clone();
            (port.id, port.mac) = ("p3".into(), "02:00:00:00:01:03".into());
            port.addresses = vec!["10.0.1.13".into()];
            objects.ports.push(port);
        },
    ]);
    assert!(all.iter().all(Vec::is_empty), "{all:?}");
}

#[test]
fn another_mac_of_a_port_or_a_router_is_announced() {
    let all = announced(&[
        |objects| objects.ports[1].mac = "02:00:00:00:01:22".into(),
        |objects| objects.subnets[0].gateway_mac = "02:00:00:00:aa:01".into(),
    ]);
    assert_eq!(addresses(&all[0]), BOTH.map(word));
    assert_eq!(addresses(&all[1]), [word("10.0.1.1"), word("fd00:1::1")]);
    assert!(all[1].iter().all(|moved| moved.is_router));
    assert!(ended(&all[1]).is_empty());
}

#[test]
fn frames_are_what_the_standards_say() {
    let moved = |text: &str, is_router| Moved {
        vni: 100.into(),
        address: word(text),
        port: None,
        mac: "02:00:00:00:01:01".parse().unwrap(),
        subnet: 0,
        is_router,
    };
    let arp = moved("10.0.1.12", false).frame();
    assert_eq!(arp.len(), 42);
    assert_eq!(arp[..6], [0xff; 6]);
    assert_eq!(arp[20..22], [0, 1], "a request");
    assert_eq!(
        (&arp[28..32], &arp[38..42]),
        (&[10, 0, 1, 12][..], &[10, 0, 1, 12][..])
    );
    for (is_router, flags) in [(false, 0x20), (true, 0xa0)] {
        let frame = moved("fd00:1::12", is_router).frame();
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) =
            (&packet.net, &packet.transport)
        else {
            panic!("{packet:?}");
        };
        let (source, destination) = (ip.header().source_addr(), ip.header().destination_addr());
        assert!(icmp.is_checksum_valid(source.octets(), destination.octets()));
        assert_eq!(destination.to_string(), "ff02::1");
        assert_eq!(ip.header().hop_limit(), 255);
        assert_eq!((icmp.type_u8(), frame[58]), (136, flags));
        assert_eq!(frame[62..78], word("fd00:1::12").to_be_bytes());
        assert_eq!(frame[78..], [2, 1, 2, 0, 0, 0, 1, 1]);
    }
}
