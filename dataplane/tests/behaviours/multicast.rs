//! Multicast snooping: who gets a packet to a group, on which host, in which subnet, and what is asked of whom.

use std::net::{Ipv4Addr, Ipv6Addr};

use weft_dataplane::multicast::querier::{GROUPS, SOURCES};
use weft_dataplane::packet::DropReason;
use weft_dataplane::packet::checksum;
use weft_dataplane::packet::parse::Family;
use weft_fabric::Fabric;
use weft_proto::v1::Objects;

use crate::frames::{A1, A2, A3, B1, End, read, udp, udp_ttl, udp6};
use crate::topology::{ROUTER, change, fabric};

pub const GROUP: [u8; 4] = [239, 1, 1, 1];
const GROUP_MAC: [u8; 6] = [0x01, 0, 0x5e, 1, 1, 1];
const GROUP6: [u8; 16] = [0xff, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34];
const GROUP6_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0x12, 0x34];

/// Records of IGMPv3 and MLDv2.
const IS_EXCLUDE: u8 = 2;
const TO_INCLUDE: u8 = 3;
const TO_EXCLUDE: u8 = 4;
const ALLOW: u8 = 5;
const BLOCK: u8 = 6;

fn snoop(objects: &mut Objects) {
    for subnet in &mut objects.subnets {
        subnet.multicast = "snooping".into();
    }
}

pub fn route(objects: &mut Objects) {
    snoop(objects);
    objects.vpcs[0].multicast_routing = true;
}

/// An IGMP message from a port, with TTL 1 and the Router Alert option.
fn igmp(from: End, to: [u8; 4], mac: [u8; 6], mut body: Vec<u8>) -> Vec<u8> {
    let sum = checksum::finish(checksum::sum(&body));
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [&mac[..], &from.mac, &[8, 0]].concat();
    let total = (24 + body.len()) as u16;
    frame.extend([0x46, 0xc0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 0, 0, 0, 1, 2, 0, 0]);
    frame.extend(from.v4);
    frame.extend(to);
    frame.extend([0x94, 4, 0, 0]);
    let sum = checksum::finish(checksum::sum(&frame[14..38]));
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend(body);
    frame
}

/// IGMPv2: a report (0x16) or a leave (0x17).
pub fn igmp2(from: End, kind: u8, group: [u8; 4]) -> Vec<u8> {
    let body = [&[kind, 0, 0, 0][..], &group].concat();
    match kind {
        0x17 => igmp(from, [224, 0, 0, 2], [1, 0, 0x5e, 0, 0, 2], body),
        _ => igmp(from, group, GROUP_MAC, body),
    }
}

/// Kind, group and sources.
type Record<'r> = (u8, [u8; 4], &'r [[u8; 4]]);

fn igmp3(from: End, records: &[Record<'_>]) -> Vec<u8> {
    let mut body = vec![0x22, 0, 0, 0, 0, 0];
    body.extend((records.len() as u16).to_be_bytes());
    for (kind, group, sources) in records {
        body.extend([*kind, 0]);
        body.extend((sources.len() as u16).to_be_bytes());
        body.extend(group);
        body.extend(sources.concat());
    }
    igmp(from, [224, 0, 0, 22], [1, 0, 0x5e, 0, 0, 22], body)
}

/// The link-local address of a port.
fn link_local(from: End) -> [u8; 16] {
    let [a, b, c, d, e, f] = from.mac;
    [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ]
}

fn mld_from(source: [u8; 16], mac: [u8; 6], mut body: Vec<u8>) -> Vec<u8> {
    let to: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 22];
    let word = u128::from_be_bytes;
    let length = body.len() as u32;
    let sum = checksum::pseudo_header(Family::Ipv6, word(source), word(to), 58, length);
    let sum = checksum::finish(sum + checksum::sum(&body));
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [&[0x33, 0x33, 0, 0, 0, 22][..], &mac, &[0x86, 0xdd]].concat();
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((8 + body.len() as u16).to_be_bytes());
    frame.extend([0, 1]);
    frame.extend(source);
    frame.extend(to);
    frame.extend([58, 0, 5, 2, 0, 0, 1, 0]);
    frame.extend(body);
    frame
}

fn mld2(from: End, kind: u8, group: [u8; 16], sources: &[[u8; 16]]) -> Vec<u8> {
    let mut body = vec![143, 0, 0, 0, 0, 0, 0, 1, kind, 0];
    body.extend((sources.len() as u16).to_be_bytes());
    body.extend(group);
    body.extend(sources.concat());
    mld_from(link_local(from), from.mac, body)
}

fn mld1(from: End, kind: u8, group: [u8; 16]) -> Vec<u8> {
    let body = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &group].concat();
    mld_from(link_local(from), from.mac, body)
}

pub fn stream(from: End) -> Vec<u8> {
    let to = End { v4: GROUP, ..from };
    udp(from, to, GROUP_MAC, (5000, 5000), b"data")
}

fn stream6(from: End) -> Vec<u8> {
    let to = End { v6: GROUP6, ..from };
    udp6(from, to, GROUP6_MAC, (5000, 5000), b"data")
}

/// Sends a frame; the ports that get it, and how many copies cross to other hosts.
fn sent(fabric: &mut Fabric, port: &str, frame: &[u8]) -> (Vec<String>, usize) {
    let crossed = fabric.crossed.len();
    let out = fabric.send(port, frame);
    let mut ports: Vec<String> = out.into_iter().map(|delivered| delivered.port).collect();
    ports.sort_unstable();
    (ports, fabric.crossed.len() - crossed)
}

fn to<const N: usize>(ports: [&str; N], crossed: usize) -> (Vec<String>, usize) {
    (ports.map(str::to_owned).to_vec(), crossed)
}

#[test]
fn a_group_goes_to_those_who_have_joined_it_and_to_no_other_host() {
    let mut fabric = fabric(snoop);
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to([], 0));
    assert_eq!(fabric.drops("h1", DropReason::NoReceiver), 1);
    // Nobody but the querier hears a report.
    assert_eq!(sent(&mut fabric, "a3", &igmp2(A3, 0x16, GROUP)), to([], 0));
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to(["a3"], 0));
    // The other host has a listener now; each gets one copy.
    fabric.send("a2", &igmp3(A2, &[(TO_EXCLUDE, GROUP, &[])]));
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to(["a2", "a3"], 1));
    // From a host whose own ports have not joined, to the other.
    assert_eq!(sent(&mut fabric, "a2", &stream(A2)), to(["a3"], 1));
    // Not the other tenant, nor another group.
    let other = End {
        v4: [239, 1, 1, 2],
        ..A1
    };
    let frame = udp(A1, other, [1, 0, 0x5e, 1, 1, 2], (1, 2), b"x");
    assert_eq!(sent(&mut fabric, "a1", &frame), to([], 0));
    assert_eq!(sent(&mut fabric, "r1", &stream(A1)), to([], 0));
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn a_sender_gets_nothing_back_even_if_it_has_joined() {
    let mut fabric = fabric(snoop);
    fabric.send("a1", &igmp2(A1, 0x16, GROUP));
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to([], 0));
    assert_eq!(sent(&mut fabric, "a3", &stream(A3)), to(["a1"], 0));
}

#[test]
fn ipv6_groups_are_joined_by_mld_of_both_versions() {
    let mut fabric = fabric(snoop);
    assert_eq!(sent(&mut fabric, "a1", &stream6(A1)), to([], 0));
    fabric.send("a3", &mld1(A3, 131, GROUP6));
    fabric.send("a2", &mld2(A2, TO_EXCLUDE, GROUP6, &[]));
    assert_eq!(sent(&mut fabric, "a1", &stream6(A1)), to(["a2", "a3"], 1));
    fabric.send("a3", &mld1(A3, 132, GROUP6));
    fabric.send("a2", &mld2(A2, TO_INCLUDE, GROUP6, &[]));
    assert_eq!(sent(&mut fabric, "a1", &stream6(A1)), to(["a2", "a3"], 1));
    fabric.advance(150);
    assert_eq!(sent(&mut fabric, "a1", &stream6(A1)), to([], 0));
}

#[test]
fn a_leave_takes_effect_when_nobody_answers_the_query() {
    let mut fabric = fabric(snoop);
    fabric.send("a3", &igmp2(A3, 0x16, GROUP));
    fabric.queries.clear();
    fabric.send("a3", &igmp2(A3, 0x17, GROUP));
    let [(port, query)] = &fabric.queries[..] else {
        panic!("one query: {:?}", fabric.queries);
    };
    assert_eq!(port, "a3");
    let seen = read(query);
    assert_eq!((seen.src, seen.dst), (ROUTER, GROUP_MAC));
    assert_eq!(seen.source, Ipv4Addr::new(10, 0, 1, 1));
    assert_eq!(seen.destination, Ipv4Addr::from(GROUP));
    assert_eq!(query[38], 0x11);
    assert_eq!(query[39], 1, "answered within 100 ms");
    assert_eq!(query[42..46], GROUP);
    // Another process behind the port still wants it.
    fabric.advance(100);
    fabric.send("a3", &igmp2(A3, 0x16, GROUP));
    fabric.advance(100);
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to(["a3"], 0));
    fabric.send("a3", &igmp2(A3, 0x17, GROUP));
    fabric.advance(149);
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to(["a3"], 0));
    fabric.advance(1);
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to([], 0));
}

#[test]
fn sources_are_chosen_on_this_host_and_on_others() {
    let mut fabric = fabric(snoop);
    fabric.send("a2", &igmp3(A2, &[(ALLOW, GROUP, &[A1.v4])]));
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to(["a2"], 1));
    assert_eq!(sent(&mut fabric, "a3", &stream(A3)), to([], 0));
    fabric.send("a2", &igmp3(A2, &[(BLOCK, GROUP, &[A1.v4])]));
    fabric.advance(150);
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to([], 0));
    fabric.send("a2", &igmp3(A2, &[(IS_EXCLUDE, GROUP, &[A3.v4])]));
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to(["a2"], 1));
    assert_eq!(sent(&mut fabric, "a3", &stream(A3)), to([], 0));
    // Of IPv6 likewise.
    fabric.send("a3", &mld2(A3, ALLOW, GROUP6, &[A1.v6]));
    assert_eq!(sent(&mut fabric, "a1", &stream6(A1)), to(["a3"], 0));
    assert_eq!(sent(&mut fabric, "a2", &stream6(A2)), to([], 0));
}

#[test]
fn between_subnets_it_is_routed_where_the_vpc_says_so() {
    let mut fabric = fabric(snoop);
    fabric.send("b1", &igmp2(B1, 0x16, GROUP));
    fabric.send("b2", &igmp2(crate::frames::B2, 0x16, GROUP));
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to([], 0));
    change(&mut fabric, route);
    let out = fabric.send("a1", &stream(A1));
    assert_eq!(out.len(), 2);
    for delivered in &out {
        let seen = read(&delivered.frame);
        assert!(["b1", "b2"].contains(&delivered.port.as_str()));
        assert_eq!((seen.src, seen.dst), (ROUTER, GROUP_MAC));
        assert_eq!(seen.ttl, 63, "{}", delivered.port);
        assert_eq!(seen.source, Ipv4Addr::from(A1.v4));
    }
    assert_eq!(fabric.crossed.len(), 1, "one copy to the other host");
    // In the sender's own subnet it stays as it was sent.
    fabric.send("a3", &igmp2(A3, 0x16, GROUP));
    let out = fabric.send("a1", &stream(A1));
    let own = out.iter().find(|delivered| delivered.port == "a3").unwrap();
    assert_eq!(own.frame, stream(A1));
    // TTL 1 does not leave the subnet.
    let group = End { v4: GROUP, ..A1 };
    let near = udp_ttl(A1, group, GROUP_MAC, (1, 2), b"x", 1);
    assert_eq!(sent(&mut fabric, "a1", &near), to(["a3"], 0));
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn link_local_groups_reach_everybody_in_the_subnet() {
    let mut fabric = fabric(route);
    // VRRP, OSPF, mDNS.
    for last in [18, 5, 6, 251] {
        let to_group = End {
            v4: [224, 0, 0, last],
            ..A1
        };
        let frame = udp_ttl(A1, to_group, [1, 0, 0x5e, 0, 0, last], (1, 2), b"x", 1);
        assert_eq!(sent(&mut fabric, "a1", &frame), to(["a2", "a3"], 1));
    }
    let mut mdns = [0; 16];
    (mdns[0], mdns[1], mdns[15]) = (0xff, 2, 0xfb);
    let to_group = End { v6: mdns, ..A1 };
    let frame = udp6(
        A1,
        to_group,
        [0x33, 0x33, 0, 0, 0, 0xfb],
        (5353, 5353),
        b"x",
    );
    assert_eq!(sent(&mut fabric, "a1", &frame), to(["a2", "a3"], 1));
    // To join one makes no difference.
    fabric.send("a3", &igmp2(A3, 0x16, [224, 0, 0, 251]));
    let to_group = End {
        v4: [224, 0, 0, 251],
        ..A1
    };
    let frame = udp(A1, to_group, [1, 0, 0x5e, 0, 0, 251], (5353, 5353), b"x");
    assert_eq!(sent(&mut fabric, "a1", &frame), to(["a2", "a3"], 1));
}

#[test]
fn without_snooping_everybody_gets_everything_and_reports_too() {
    let mut fabric = fabric(|_| {});
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to(["a2", "a3"], 1));
    let report = igmp2(A1, 0x16, GROUP);
    assert_eq!(sent(&mut fabric, "a1", &report), to(["a2", "a3"], 1));
    assert!(fabric.reports.is_empty() && fabric.queries.is_empty());
}

#[test]
fn a_host_that_does_not_tell_what_its_ports_have_joined_gets_a_copy_if_it_has_the_subnet() {
    let mut fabric = fabric(snoop);
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to([], 0));
    assert_eq!(fabric.drops("h2", DropReason::NoReceiver), 0);
    fabric.tell_no_listeners.insert("h2".into());
    fabric.send("a3", &igmp2(A3, 0x16, GROUP));
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to(["a3"], 1));
    assert_eq!(fabric.drops("h2", DropReason::NoReceiver), 1);
    fabric.send("a2", &igmp2(A2, 0x16, GROUP));
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to(["a2", "a3"], 1));
    // Into another subnet, of which alone the other host has ports.
    change(&mut fabric, |objects| {
        route(objects);
        objects.ports.retain(|port| port.id != "a2");
    });
    fabric.send("b2", &igmp2(crate::frames::B2, 0x16, GROUP));
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to(["a3", "b2"], 1));
}

#[test]
fn groups_and_acls_judge_the_copy_at_each_receiver() {
    let mut fabric = fabric(snoop);
    fabric.send("a2", &igmp2(A2, 0x16, GROUP));
    fabric.send("a3", &igmp2(A3, 0x16, GROUP));
    change(&mut fabric, |objects| {
        crate::topology::port(objects, "a3").security_groups.clear();
    });
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to(["a2"], 1));
}

#[test]
fn queries_of_guests_are_refused_and_so_are_malformed_reports() {
    let mut fabric = fabric(snoop);
    let query = [&[0x11, 100, 0, 0][..], &[0; 4]].concat();
    let query = igmp(A1, [224, 0, 0, 1], [1, 0, 0x5e, 0, 0, 1], query);
    assert_eq!(sent(&mut fabric, "a1", &query), to([], 0));
    assert_eq!(fabric.drops("h1", DropReason::RogueQuerier), 1);
    let good = igmp3(A1, &[(TO_EXCLUDE, GROUP, &[A2.v4])]);
    let mut bad = Vec::new();
    // A wrong sum.
    let mut frame = good.clone();
    *frame.last_mut().unwrap() ^= 1;
    bad.push(frame);
    // Cut short: more sources, more records than there are; a record whose group is none.
    for (at, value) in [(8 + 2, 0xff), (7, 9), (8 + 4, 10)] {
        let mut body = good[38..].to_vec();
        body[at] = value;
        body[2..4].fill(0);
        bad.push(igmp(A1, [224, 0, 0, 22], [1, 0, 0x5e, 0, 0, 22], body));
    }
    bad.push(igmp(A1, GROUP, GROUP_MAC, vec![0x16, 0, 0, 0, 239, 1]));
    let body = [&[131, 0, 0, 0, 0, 0, 0, 0][..], &GROUP6].concat();
    // Not from a link-local address.
    bad.push(mld_from(A1.v6, A1.mac, body));
    let count = bad.len() as u64;
    for frame in bad {
        assert_eq!(sent(&mut fabric, "a1", &frame), to([], 0));
    }
    assert_eq!(fabric.drops("h1", DropReason::MembershipMalformed), count);
    // Of others a port says nothing.
    assert_eq!(sent(&mut fabric, "a1", &igmp2(A3, 0x16, GROUP)), to([], 0));
    assert_eq!(sent(&mut fabric, "a2", &stream(A2)), to([], 0));
    assert!(fabric.reports.is_empty());
}

#[test]
fn a_port_may_report_so_often_and_join_so_much() {
    let mut fabric = fabric(snoop);
    for _ in 0..GROUPS + 50 {
        fabric.send("a1", &igmp2(A1, 0x16, GROUP));
    }
    assert_eq!(fabric.drops("h1", DropReason::MembershipLimit), 50);
    let sources: Vec<[u8; 4]> = (0..=SOURCES as u8).map(|n| [10, 9, 9, n]).collect();
    fabric.advance(1000);
    fabric.send("a1", &igmp3(A1, &[(ALLOW, [239, 2, 2, 2], &sources)]));
    assert_eq!(fabric.drops("h1", DropReason::MembershipBudget), 1);
    let all: Vec<[u8; 4]> = (0..=GROUPS as u32)
        .map(|n| (0xef02_0000 + n).to_be_bytes())
        .collect();
    for groups in all.chunks(100) {
        let records: Vec<Record<'_>> = groups
            .iter()
            .map(|group| (TO_EXCLUDE, *group, &[][..]))
            .collect();
        fabric.send("a1", &igmp3(A1, &records));
    }
    assert_eq!(fabric.drops("h1", DropReason::MembershipBudget), 2);
    // Others are not touched by it.
    fabric.send("a3", &igmp2(A3, 0x16, GROUP));
    assert_eq!(sent(&mut fabric, "a2", &stream(A2)), to(["a1", "a3"], 1));
}

#[test]
fn ports_are_asked_when_they_come_and_at_intervals_and_forgotten_when_they_are_silent() {
    let mut fabric = fabric(snoop);
    let asked = |fabric: &mut Fabric, milliseconds| {
        fabric.queries.clear();
        fabric.advance(milliseconds);
        let of_a1 = fabric.queries.iter().filter(|(port, _)| port == "a1");
        of_a1.map(|(_, frame)| frame.clone()).collect::<Vec<_>>()
    };
    let first = asked(&mut fabric, 0);
    let [v4, v6] = &first[..] else {
        panic!("one of each family: {first:?}");
    };
    let seen = read(v4);
    assert_eq!(seen.destination, Ipv4Addr::new(224, 0, 0, 1));
    assert_eq!((seen.src, seen.ttl), (ROUTER, 1));
    let seen = read(v6);
    assert_eq!(seen.destination, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
    assert_eq!(
        seen.source,
        "fe80::77:65ff:fe66:7401".parse::<Ipv6Addr>().unwrap()
    );
    assert_eq!(asked(&mut fabric, 999).len(), 0);
    assert_eq!(asked(&mut fabric, 1).len(), 2);
    fabric.send("a3", &igmp2(A3, 0x16, GROUP));
    assert_eq!(asked(&mut fabric, 4_000).len(), 2);
    assert_eq!(asked(&mut fabric, 25_000).len(), 2);
    assert_eq!(asked(&mut fabric, 124_000).len(), 0);
    assert_eq!(asked(&mut fabric, 1_000).len(), 2);
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to(["a3"], 0));
    fabric.advance(106_000);
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to([], 0));
}

#[test]
fn a_port_that_goes_takes_what_it_has_joined_along() {
    let mut fabric = fabric(snoop);
    fabric.send("a2", &igmp2(A2, 0x16, GROUP));
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to(["a2"], 1));
    change(&mut fabric, |objects| {
        objects.ports.retain(|port| port.id != "a2");
    });
    fabric.carry();
    assert_eq!(sent(&mut fabric, "a1", &stream(A1)), to([], 0));
}

#[test]
fn in_pieces_it_goes_the_same_way_and_a_segment_of_all_sizes_too() {
    let mut fabric = fabric(route);
    fabric.send("a3", &igmp2(A3, 0x16, GROUP));
    fabric.send("b1", &igmp2(B1, 0x16, GROUP));
    let whole = udp(A1, End { v4: GROUP, ..A1 }, GROUP_MAC, (1, 2), &[7; 64]);
    let piece = |offset: u16, more: bool, payload: &[u8]| {
        let mut frame = whole[..34].to_vec();
        let bits = (offset / 8) | if more { 0x2000 } else { 0 };
        frame[16..18].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
        frame[18..20].copy_from_slice(&77u16.to_be_bytes());
        frame[20..22].copy_from_slice(&bits.to_be_bytes());
        frame[24..26].fill(0);
        let sum = checksum::finish(checksum::sum(&frame[14..34]));
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend(payload);
        frame
    };
    let first = piece(0, true, &whole[34..34 + 40]);
    let last = piece(40, false, &whole[34 + 40..]);
    // The last one waits for the first.
    assert_eq!(sent(&mut fabric, "a1", &last), to([], 0));
    assert_eq!(
        sent(&mut fabric, "a1", &first),
        to(["a3", "a3", "b1", "b1"], 0)
    );
}
