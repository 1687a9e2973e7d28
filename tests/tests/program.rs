//! The XDP programs on an interface: which packets they take, which they pass to the kernel, and that they are detached with the process.

#![allow(clippy::unwrap_used)]

mod common;

use std::{env, net::IpAddr, thread, time::Duration};

use common::{SOON, collect, frame, open, pair, small_umem};
use ipnetwork::IpNetwork;
use weft_dataplane::{
    packet::{Mac, Station, buffer::FrameMemory},
    port::{Attachment, FrameCache, PortError, Programs, QueueOptions, Role, XskQueue},
};
use weft_ebpf_types::Counter;
use weft_tests::{Namespace, RawSocket, wait_until};

const DUT: [u8; 4] = [192, 0, 2, 1];
const VTEP: [u8; 4] = [192, 0, 2, 11];
const VTEP6: &str = "2001:db8::11";
/// Held on the segment, and no address of the kernel's.
const HELD: [u8; 4] = [203, 0, 113, 7];
const HELD6: &str = "2001:db8:f::7";
const ROUTER: [u8; 4] = [203, 0, 113, 1];
const ROUTER6: &str = "2001:db8:f::1";
const VLAN: u16 = 0x8100;

fn uplink() -> Role {
    Role::Uplink {
        vteps: vec![IpAddr::from(VTEP), VTEP6.parse().unwrap()],
    }
}

fn ethernet(ethertype: &[u16], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9]);
    for (at, word) in ethertype.iter().enumerate() {
        frame.extend(word.to_be_bytes());
        if at + 1 < ethertype.len() {
            frame.extend([0, 42]);
        }
    }
    frame.extend(payload);
    frame
}

/// The frame with a priority tag (IEEE 802.1Q §9.6): priority 5, VLAN 0.
fn with_priority(mut frame: Vec<u8>) -> Vec<u8> {
    frame.splice(12..12, [0x81, 0, 0xa0, 0]);
    frame
}

struct V4 {
    to: [u8; 4],
    protocol: u8,
    options: usize,
    fragment: u16,
}

impl V4 {
    fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options;
        let mut packet = vec![0x40 | (header / 4) as u8, 0];
        packet.extend(((header + payload.len()) as u16).to_be_bytes());
        packet.extend([0, 1]);
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([64, self.protocol, 0, 0, 192, 0, 2, 2]);
        packet.extend(self.to);
        packet.extend(vec![1; self.options]);
        packet.extend(payload);
        packet
    }
}

const PLAIN: V4 = V4 {
    to: VTEP,
    protocol: 17,
    options: 0,
    fragment: 0,
};

fn udp(port: u16) -> Vec<u8> {
    let mut segment = vec![0xc0, 0];
    segment.extend(port.to_be_bytes());
    segment.extend([0, 24, 0, 0, 8, 0, 0, 0, 0, 0, 7, 0]);
    segment.extend([0; 8]);
    segment
}

fn gre(payload_type: u16) -> Vec<u8> {
    let mut header = vec![0x20, 0];
    header.extend(payload_type.to_be_bytes());
    header.extend([0, 0, 7, 0, 0, 0, 0, 0]);
    header
}

fn v6(to: &str, headers: &[(u8, Vec<u8>)], last: u8, payload: &[u8]) -> Vec<u8> {
    let to: std::net::Ipv6Addr = to.parse().unwrap();
    let len: usize = headers.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() + payload.len();
    let mut next = headers.iter().map(|(protocol, _)| *protocol).chain([last]);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((len as u16).to_be_bytes());
    packet.extend([next.next().unwrap(), 64]);
    packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    packet.extend(to.octets());
    for (_, bytes) in headers {
        let mut bytes = bytes.clone();
        bytes[0] = next.next().unwrap();
        packet.extend(bytes);
    }
    packet.extend(payload);
    packet
}

/// The packets of the underlay and what must become of them: true is ours.
fn cases() -> Vec<(&'static str, Vec<u8>, Option<Counter>)> {
    let ours = None;
    let passed = Some(Counter::Passed);
    let fragment = Some(Counter::FragmentsPassed);
    let malformed = Some(Counter::Malformed);
    let tagged = Some(Counter::Tagged);
    let v4 = |v4: V4, payload: &[u8]| ethernet(&[0x0800], &v4.packet(payload));
    let vxlan = udp(4789);
    let hop_by_hop = (0, vec![0, 0, 1, 4, 0, 0, 0, 0]);
    let destination = (60, vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let fragment_header = (44, vec![0, 0, 0, 1, 0, 0, 0, 9]);
    let other = [192, 0, 2, 99];
    vec![
        ("vxlan", v4(PLAIN, &vxlan), ours),
        (
            "vxlan with options",
            v4(
                V4 {
                    options: 24,
                    ..PLAIN
                },
                &vxlan,
            ),
            ours,
        ),
        (
            "vxlan with DF",
            v4(
                V4 {
                    fragment: 0x4000,
                    ..PLAIN
                },
                &vxlan,
            ),
            ours,
        ),
        (
            "vxlan with a priority tag",
            with_priority(v4(PLAIN, &vxlan)),
            ours,
        ),
        (
            "v6 vxlan with a priority tag",
            with_priority(ethernet(&[0x86dd], &v6(VTEP6, &[], 17, &vxlan))),
            ours,
        ),
        (
            "vxlan with two priority tags",
            with_priority(with_priority(v4(PLAIN, &vxlan))),
            tagged,
        ),
        (
            "vxlan in a VLAN",
            ethernet(&[0x8100, 0x0800], &PLAIN.packet(&vxlan)),
            tagged,
        ),
        (
            "vxlan in a service VLAN",
            ethernet(&[0x88a8, 0x0800], &PLAIN.packet(&vxlan)),
            tagged,
        ),
        (
            "vxlan with two tags",
            ethernet(&[0x88a8, 0x8100, 0x0800], &PLAIN.packet(&vxlan)),
            tagged,
        ),
        (
            "vxlan with three tags",
            ethernet(&[0x88a8, 0x8100, 0x8100, 0x0800], &PLAIN.packet(&vxlan)),
            tagged,
        ),
        (
            "gre with ethernet",
            v4(
                V4 {
                    protocol: 47,
                    ..PLAIN
                },
                &gre(0x6558),
            ),
            ours,
        ),
        (
            "gre with ip",
            v4(
                V4 {
                    protocol: 47,
                    ..PLAIN
                },
                &gre(0x0800),
            ),
            passed,
        ),
        (
            "vxlan to another address",
            v4(V4 { to: other, ..PLAIN }, &vxlan),
            passed,
        ),
        ("another port", v4(PLAIN, &udp(4790)), passed),
        (
            "tcp",
            v4(
                V4 {
                    protocol: 6,
                    ..PLAIN
                },
                &vxlan,
            ),
            passed,
        ),
        (
            "first fragment",
            v4(
                V4 {
                    fragment: 0x2000,
                    ..PLAIN
                },
                &vxlan,
            ),
            fragment,
        ),
        (
            "later fragment",
            v4(
                V4 {
                    fragment: 0x0010,
                    ..PLAIN
                },
                &vxlan,
            ),
            fragment,
        ),
        (
            "fragment of others",
            v4(
                V4 {
                    fragment: 0x0010,
                    to: other,
                    ..PLAIN
                },
                &vxlan,
            ),
            passed,
        ),
        (
            "header length 16",
            ethernet(
                &[0x0800],
                &[&[0x44][..], &PLAIN.packet(&vxlan)[1..]].concat(),
            ),
            malformed,
        ),
        (
            "truncated ipv4",
            ethernet(&[0x0800], &PLAIN.packet(&[])[..12]),
            malformed,
        ),
        ("truncated udp", v4(PLAIN, &[0, 1]), malformed),
        (
            "v6 vxlan",
            ethernet(&[0x86dd], &v6(VTEP6, &[], 17, &vxlan)),
            ours,
        ),
        (
            "v6 gre",
            ethernet(&[0x86dd], &v6(VTEP6, &[], 47, &gre(0x6558))),
            ours,
        ),
        (
            "v6 vxlan in a VLAN",
            ethernet(&[0x8100, 0x86dd], &v6(VTEP6, &[], 17, &vxlan)),
            tagged,
        ),
        (
            "v6 with extension headers",
            ethernet(
                &[0x86dd],
                &v6(
                    VTEP6,
                    &[hop_by_hop.clone(), destination.clone()],
                    17,
                    &vxlan,
                ),
            ),
            ours,
        ),
        (
            "v6 five extension headers",
            ethernet(&[0x86dd], &v6(VTEP6, &vec![destination; 5], 17, &vxlan)),
            passed,
        ),
        (
            "v6 fragment",
            ethernet(
                &[0x86dd],
                &v6(VTEP6, &[hop_by_hop, fragment_header], 17, &vxlan),
            ),
            fragment,
        ),
        (
            "v6 to another address",
            ethernet(&[0x86dd], &v6("2001:db8::99", &[], 17, &vxlan)),
            passed,
        ),
        (
            "truncated v6",
            ethernet(&[0x86dd], &v6(VTEP6, &[], 17, &vxlan)[..30]),
            malformed,
        ),
        ("arp", ethernet(&[0x0806], &[0; 28]), passed),
        ("unknown type", frame(1, 60), passed),
    ]
}

/// An ARP packet from one IPv4 address about another (RFC 826).
fn arp(operation: u8, from: [u8; 4], about: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend([2, 0, 0, 0, 0, 9]);
    packet.extend(from);
    packet.extend([0; 6]);
    packet.extend(about);
    // Padding up to the least length of a frame, the end of which the test looks at.
    packet.extend([0; 10]);
    packet.extend([operation, from[3], about[3], 0, 0, 0, 0, 1]);
    packet
}

/// A message of neighbour discovery about an address (RFC 4861 §4.3, §4.4), with an option that names a MAC.
fn neighbour(kind: u8, to: &str, about: &str) -> Vec<u8> {
    let about: std::net::Ipv6Addr = about.parse().unwrap();
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(about.octets());
    message.extend([2, 1, 2, 0, 0, 0, 0, 9]);
    v6(to, &[], 58, &message)
}

/// Packets for and about addresses that are held, and their like about others.
fn held_cases() -> Vec<(&'static str, Vec<u8>, Option<Counter>)> {
    let ours = None;
    let passed = Some(Counter::Passed);
    let tagged = Some(Counter::Tagged);
    let all_nodes = "ff02::1";
    let solicited = "ff02::1:ff00:7";
    let (solicitation, advertisement) = (135, 136);
    let v4 = |v4: V4, payload: &[u8]| ethernet(&[0x0800], &v4.packet(payload));
    let to_held = V4 { to: HELD, ..PLAIN };
    let tcp = |to: [u8; 4]| V4 {
        to,
        protocol: 6,
        ..PLAIN
    };
    let syn = [
        0xc0, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x20, 0, 0, 0, 0, 0,
    ];
    let destination = (60, vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let fragment_header = (44, vec![0, 0, 0, 0x99, 0, 0, 0, 9]);
    let v6_tcp = v6(HELD6, &[], 6, &syn);
    let nd = |kind, to, about| ethernet(&[0x86dd], &neighbour(kind, to, about));
    let arp_of = |operation, from, about| ethernet(&[0x0806], &arp(operation, from, about));
    vec![
        ("tcp to a held address", v4(tcp(HELD), &syn), ours),
        (
            "tcp to its neighbour",
            v4(tcp([203, 0, 113, 8]), &syn),
            passed,
        ),
        ("udp", v4(to_held, &udp(53)), ours),
        (
            "vxlan to a held address",
            v4(V4 { to: HELD, ..PLAIN }, &udp(4789)),
            ours,
        ),
        (
            "sctp with options",
            v4(
                V4 {
                    protocol: 132,
                    options: 24,
                    to: HELD,
                    ..PLAIN
                },
                &syn,
            ),
            ours,
        ),
        (
            "a later fragment",
            v4(
                V4 {
                    fragment: 0x0010,
                    to: HELD,
                    ..PLAIN
                },
                &syn,
            ),
            ours,
        ),
        (
            "a header alone",
            v4(
                V4 {
                    protocol: 59,
                    to: HELD,
                    ..PLAIN
                },
                &[],
            ),
            ours,
        ),
        ("v6 tcp", ethernet(&[0x86dd], &v6_tcp), ours),
        (
            "v6 with extension headers",
            ethernet(&[0x86dd], &v6(HELD6, &vec![destination; 5], 6, &syn)),
            ours,
        ),
        (
            "v6 fragment",
            ethernet(&[0x86dd], &v6(HELD6, &[fragment_header], 6, &syn)),
            ours,
        ),
        (
            "v6 to its neighbour",
            ethernet(&[0x86dd], &v6("2001:db8:f::8", &[], 6, &syn)),
            passed,
        ),
        ("a priority tag", with_priority(v4(tcp(HELD), &syn)), ours),
        (
            "in a VLAN",
            ethernet(&[VLAN, 0x0800], &tcp(HELD).packet(&syn)),
            ours,
        ),
        ("v6 in a VLAN", ethernet(&[VLAN, 0x86dd], &v6_tcp), ours),
        (
            "in a VLAN to another address",
            ethernet(&[VLAN, 0x0800], &tcp(ROUTER).packet(&syn)),
            tagged,
        ),
        (
            "in a service VLAN",
            ethernet(&[0x88a8, 0x0800], &tcp(HELD).packet(&syn)),
            tagged,
        ),
        (
            "behind two tags",
            ethernet(&[VLAN, VLAN, 0x0800], &tcp(HELD).packet(&syn)),
            tagged,
        ),
        ("arp asks for a held address", arp_of(1, ROUTER, HELD), ours),
        ("arp answers one", arp_of(2, ROUTER, HELD), ours),
        ("arp claims one", arp_of(1, HELD, ROUTER), ours),
        ("arp announces one", arp_of(1, HELD, HELD), ours),
        ("arp probes one", arp_of(1, [0; 4], HELD), ours),
        ("arp of others", arp_of(1, ROUTER, DUT), passed),
        (
            "arp of another hardware",
            {
                let mut other = arp_of(1, ROUTER, HELD);
                other[15] = 6;
                other
            },
            passed,
        ),
        (
            "truncated arp",
            ethernet(&[0x0806], &arp(1, ROUTER, HELD)[..24]),
            passed,
        ),
        (
            "arp in a VLAN",
            ethernet(&[VLAN, 0x0806], &arp(1, ROUTER, HELD)),
            ours,
        ),
        (
            "arp of others in a VLAN",
            ethernet(&[VLAN, 0x0806], &arp(1, ROUTER, DUT)),
            tagged,
        ),
        (
            "nd asks for a held address",
            nd(solicitation, solicited, HELD6),
            ours,
        ),
        (
            "nd asks a held address",
            nd(solicitation, HELD6, ROUTER6),
            ours,
        ),
        ("nd answers one", nd(advertisement, HELD6, ROUTER6), ours),
        ("nd claims one", nd(advertisement, all_nodes, HELD6), ours),
        (
            "nd of others",
            nd(solicitation, "ff02::1:ff00:1", ROUTER6),
            passed,
        ),
        (
            "nd tells others",
            nd(advertisement, all_nodes, ROUTER6),
            passed,
        ),
        (
            "a router's advertisement that has one in its body",
            nd(134, all_nodes, HELD6),
            passed,
        ),
        (
            "truncated nd",
            ethernet(&[0x86dd], &neighbour(solicitation, solicited, HELD6)[..60]),
            passed,
        ),
        (
            "nd in a VLAN",
            ethernet(&[VLAN, 0x86dd], &neighbour(solicitation, solicited, HELD6)),
            ours,
        ),
        (
            "nd of others in a VLAN",
            ethernet(
                &[VLAN, 0x86dd],
                &neighbour(solicitation, all_nodes, ROUTER6),
            ),
            tagged,
        ),
    ]
}

/// Sends each packet to an uplink, on which `held` addresses are held, and looks who gets it and how it was counted.
fn judge(held: &[IpNetwork], cases: Vec<(&'static str, Vec<u8>, Option<Counter>)>) {
    let lab = pair();
    let umem = small_umem();
    let mut cache = FrameCache::new(&umem);
    let (mut queue, mut attachment) = open(&lab.dut, &umem, "under0", &uplink(), None);
    attachment.set_held(held).unwrap();
    let sender = RawSocket::open(&lab.peer, "peer0").unwrap();
    let kernel = RawSocket::open(&lab.dut, "under0").unwrap();
    queue.receive(&mut cache, &mut Vec::new(), 64);
    for (what, sent, counted) in cases {
        let before = attachment.counters().unwrap();
        sender.send(&sent).unwrap();
        let counter = counted.unwrap_or(Counter::Redirected);
        if counted.is_none() {
            let packets = collect(&mut queue, &mut cache, 1);
            assert_eq!(packets.len(), 1, "{what}: not ours");
            assert_eq!(packets[0].bytes(&cache), sent, "{what}");
            packets
                .into_iter()
                .for_each(|packet| cache.free(packet.frame));
        } else {
            // The kernel strips a tag before a socket sees the frame.
            let tail = sent[sent.len() - 8..].to_vec();
            assert!(
                kernel.receive(SOON, |got| got.ends_with(&tail)).is_some(),
                "{what}: not the kernel's"
            );
        }
        for ((known, now), (_, then)) in attachment.counters().unwrap().into_iter().zip(before) {
            assert_eq!(
                now - then,
                u64::from(known == counter),
                "{what}: {}",
                known.name()
            );
        }
    }
}

#[test]
fn the_uplink_takes_tunnel_packets_to_us_and_nothing_else() {
    judge(&[], cases());
}

#[test]
fn what_is_for_or_about_a_held_address_is_taken_too_tagged_or_not() {
    let held = [IpAddr::from(HELD).into(), HELD6.parse().unwrap()];
    judge(&held, cases().into_iter().chain(held_cases()).collect());
}

#[test]
fn what_is_for_or_about_a_routed_prefix_is_taken_as_for_a_held_address() {
    let around = |address: IpAddr, len| IpNetwork::new(address, len).unwrap();
    let held = [
        around(IpAddr::from(HELD), 31),
        around(HELD6.parse().unwrap(), 127),
    ];
    judge(&held, cases().into_iter().chain(held_cases()).collect());
}

/// A frame to a MAC, in a VLAN if that is not 0.
fn to_station(mac: [u8; 6], vlan: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [mac, [2, 0, 0, 0, 0, 9]].concat();
    if vlan != 0 {
        frame.extend([0x81, 0]);
        frame.extend((0xa000 | vlan).to_be_bytes());
    }
    frame.extend([0x08, 0x00]);
    frame.extend(payload);
    frame
}

#[test]
fn frames_to_stations_are_taken_in_their_vlan_and_groups_where_they_are_ours() {
    const PORT: [u8; 6] = [2, 0, 0, 0, 1, 0x11];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 1, 0x12];
    const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    let lab = pair();
    let umem = small_umem();
    let mut cache = FrameCache::new(&umem);
    let (mut queue, mut attachment) = open(&lab.dut, &umem, "under0", &uplink(), None);
    let mac = |mac| Some(Mac::from_bytes(mac));
    let station = |vlan, mac| Station { vlan, mac };
    attachment
        .set_stations(&[
            station(0, mac(PORT)),
            station(42, mac(OTHER)),
            station(42, None),
        ])
        .unwrap();
    queue.receive(&mut cache, &mut Vec::new(), 64);
    let sender = RawSocket::open(&lab.peer, "peer0").unwrap();
    let kernel = RawSocket::open(&lab.dut, "under0").unwrap();
    for (n, (to, vlan, is_ours)) in [
        (PORT, 0, true),
        (PORT, 42, false),
        (OTHER, 42, true),
        (OTHER, 43, false),
        (OTHER, 0, false),
        // Broadcast and multicast are the kernel's, but in the VLAN that is ours.
        ([0xff; 6], 0, false),
        (GROUP, 0, false),
        ([0xff; 6], 42, true),
        (GROUP, 42, true),
        (GROUP, 43, false),
        // What no bridge forwards is the link's own, whoever has the VLAN.
        ([0x01, 0x80, 0xc2, 0, 0, 2], 42, false),
    ]
    .into_iter()
    .enumerate()
    {
        let packet = V4 {
            to: [198, 51, 100, 9],
            ..PLAIN
        }
        .packet(&udp(1000 + n as u16));
        let sent = to_station(to, vlan, &packet);
        sender.send(&sent).unwrap();
        let what = format!("{to:?} in VLAN {vlan}");
        if is_ours {
            let packets = collect(&mut queue, &mut cache, 1);
            assert_eq!(packets.len(), 1, "{what}");
            assert_eq!(packets[0].bytes(&cache), sent, "{what}");
            packets
                .into_iter()
                .for_each(|packet| cache.free(packet.frame));
        } else {
            let tail = packet[..].to_vec();
            let found = kernel.receive(SOON, |got| got.ends_with(&tail));
            assert!(found.is_some(), "{what}: not the kernel's");
        }
    }
    // They go, and are the kernel's again.
    attachment.set_stations(&[]).unwrap();
    let packet = V4 {
        to: [198, 51, 100, 9],
        ..PLAIN
    }
    .packet(&udp(99));
    sender.send(&to_station(PORT, 0, &packet)).unwrap();
    assert!(kernel.receive(SOON, |got| got.ends_with(&packet)).is_some());
}

#[test]
fn routed_prefixes_change_while_attached() {
    let lab = pair();
    let umem = small_umem();
    let mut cache = FrameCache::new(&umem);
    let (mut queue, mut attachment) = open(&lab.dut, &umem, "under0", &uplink(), None);
    queue.receive(&mut cache, &mut Vec::new(), 64);
    let sender = RawSocket::open(&lab.peer, "peer0").unwrap();
    let to = |to| ethernet(&[0x0800], &V4 { to, ..PLAIN }.packet(&udp(53)));
    let prefix = |text: &str| text.parse::<IpNetwork>().unwrap();
    let many: Vec<IpNetwork> = (0..16_384_u32)
        .map(|n| IpNetwork::new(IpAddr::from((0x0a00_0000 + 4 * n).to_be_bytes()), 30).unwrap())
        .collect();
    attachment.set_held(&many).unwrap();
    let mut more = many;
    more.push(prefix("10.9.0.0/24"));
    let error = attachment.set_held(&more).unwrap_err();
    assert!(error.to_string().contains("16384"), "{error}");
    attachment
        .set_held(&[prefix("10.0.0.0/30"), prefix("10.9.0.0/16")])
        .unwrap();
    for (address, is_ours) in [
        ([10, 0, 0, 1], true),
        ([10, 0, 0, 4], false),
        ([10, 9, 7, 3], true),
        ([10, 10, 0, 1], false),
    ] {
        let before = attachment.counter(Counter::Redirected).unwrap();
        sender.send(&to(address)).unwrap();
        // One that is ours in any case, so that the one before it has been judged.
        sender.send(&to([10, 9, 0, 1])).unwrap();
        let wanted = if is_ours { 2 } else { 1 };
        let packets = collect(&mut queue, &mut cache, wanted);
        assert_eq!(packets.len(), wanted, "{address:?}");
        packets
            .into_iter()
            .for_each(|packet| cache.free(packet.frame));
        let after = attachment.counter(Counter::Redirected).unwrap();
        assert_eq!(after, before + wanted as u64, "{address:?}");
    }
}

#[test]
fn held_addresses_change_while_attached_and_those_that_stay_are_not_interrupted() {
    let lab = pair();
    let umem = small_umem();
    let mut cache = FrameCache::new(&umem);
    let (mut queue, mut attachment) = open(&lab.dut, &umem, "under0", &uplink(), None);
    queue.receive(&mut cache, &mut Vec::new(), 64);
    let sender = RawSocket::open(&lab.peer, "peer0").unwrap();
    let to = |to| ethernet(&[0x0800], &V4 { to, ..PLAIN }.packet(&udp(53)));
    // As many as there may be, one of which stays when the others go.
    let many: Vec<IpNetwork> = (0..65_536_u32)
        .map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes()).into())
        .collect();
    attachment.set_held(&many).unwrap();
    let mut more = many.clone();
    more.push(IpAddr::from(HELD).into());
    let error = attachment.set_held(&more).unwrap_err();
    assert!(error.to_string().contains("65536"), "{error}");
    let stays = [10, 0, 255, 255];
    let before = attachment.counter(Counter::Redirected).unwrap();
    let sent = thread::scope(|scope| {
        let changing = scope.spawn(|| {
            attachment
                .set_held(&[IpAddr::from(HELD).into(), IpAddr::from(stays).into()])
                .unwrap();
        });
        let mut sent = 0;
        while !changing.is_finished() && sent < 1000 {
            sender.send(&to(stays)).unwrap();
            sent += 1;
        }
        sent
    });
    wait_until("all of them", SOON, || {
        attachment.counter(Counter::Redirected).unwrap() == before + sent
    })
    .unwrap();
    let packets = collect(&mut queue, &mut cache, sent as usize);
    packets
        .into_iter()
        .for_each(|packet| cache.free(packet.frame));
    // What went is the kernel's again, what came is ours.
    sender.send(&to([10, 0, 0, 1])).unwrap();
    sender.send(&to(HELD)).unwrap();
    let packets = collect(&mut queue, &mut cache, 1);
    assert_eq!(packets.len(), 1);
    assert_eq!(packets[0].bytes(&cache), to(HELD));
    packets
        .into_iter()
        .for_each(|packet| cache.free(packet.frame));
}

#[test]
fn the_hosts_own_traffic_crosses_the_uplink() {
    let lab = pair();
    for (namespace, interface) in [(&lab.dut, "under0"), (&lab.peer, "peer0")] {
        let setting = format!("net.ipv6.conf.{interface}.disable_ipv6=0");
        namespace.run(&["sysctl", "-qw", &setting]).unwrap();
    }
    lab.dut.ip("address add 192.0.2.1/24 dev under0").unwrap();
    lab.peer.ip("address add 192.0.2.2/24 dev peer0").unwrap();
    lab.dut
        .ip("address add 2001:db8::1/64 dev under0 nodad")
        .unwrap();
    lab.peer
        .ip("address add 2001:db8::2/64 dev peer0 nodad")
        .unwrap();
    let umem = small_umem();
    let (_queue, _attachment) = open(&lab.dut, &umem, "under0", &uplink(), None);
    assert!(lab.peer.pings("192.0.2.1", 3) && lab.dut.pings("192.0.2.2", 3));
    assert!(lab.peer.pings("2001:db8::1", 3));
    // Fragments of pings too.
    lab.peer
        .run(&["ping", "-c", "2", "-s", "4000", "-W", "1", "192.0.2.1"])
        .unwrap();
}

#[test]
fn tunnel_addresses_change_while_attached() {
    let lab = pair();
    let umem = small_umem();
    let mut cache = FrameCache::new(&umem);
    let (mut queue, mut attachment) = open(&lab.dut, &umem, "under0", &uplink(), None);
    queue.receive(&mut cache, &mut Vec::new(), 64);
    let sender = RawSocket::open(&lab.peer, "peer0").unwrap();
    let to_dut = ethernet(&[0x0800], &V4 { to: DUT, ..PLAIN }.packet(&udp(4789)));
    let to_vtep = ethernet(&[0x0800], &PLAIN.packet(&udp(4789)));
    attachment.set_vteps(&[IpAddr::from(DUT)]).unwrap();
    sender.send(&to_vtep).unwrap();
    sender.send(&to_dut).unwrap();
    let packets = collect(&mut queue, &mut cache, 1);
    assert_eq!(packets.len(), 1);
    assert_eq!(packets[0].bytes(&cache), to_dut);
    let too_many: Vec<_> = (0..257_u32)
        .map(|n| IpAddr::from(n.to_be_bytes()))
        .collect();
    assert!(matches!(
        attachment.set_vteps(&too_many),
        Err(PortError::Setting { .. })
    ));
    packets
        .into_iter()
        .for_each(|packet| cache.free(packet.frame));
}

#[test]
fn a_port_without_a_ring_drops_and_the_stack_sees_nothing() {
    let lab = pair();
    let attach = || {
        Attachment::attach(
            &Programs::default(),
            "under0",
            &Role::Port { headroom: 50 },
            None,
        )
    };
    let attachment = lab.dut.enter(attach).unwrap().unwrap();
    let sender = RawSocket::open(&lab.peer, "peer0").unwrap();
    let kernel = RawSocket::open(&lab.dut, "under0").unwrap();
    sender.send(&frame(5, 60)).unwrap();
    wait_until("the drop", SOON, || {
        attachment.counter(Counter::NoRing).unwrap() > 0
    })
    .unwrap();
    assert!(
        kernel
            .receive(Duration::from_millis(100), |_| true)
            .is_none()
    );
}

#[test]
fn a_second_program_is_refused_by_name() {
    let lab = pair();
    let attach = || Attachment::attach(&Programs::default(), "under0", &uplink(), None);
    let first = lab.dut.enter(attach).unwrap().unwrap();
    let error = lab.dut.enter(attach).unwrap().unwrap_err();
    assert!(matches!(error, PortError::ProgramBusy { .. }), "{error}");
    drop(first);
    lab.dut.enter(attach).unwrap().unwrap();
}

fn has_program(namespace: &Namespace, interface: &str) -> bool {
    namespace
        .ip(&format!("link show {interface}"))
        .unwrap()
        .contains("xdp")
}

/// The variable that makes this test the process which holds the attachment.
const HOLD: &str = "WEFT_TEST_HOLD";

#[test]
fn after_a_kill_the_interface_is_as_before() {
    if let Ok(interface) = env::var(HOLD) {
        let umem = small_umem();
        let mut attachment =
            Attachment::attach(&Programs::default(), &interface, &uplink(), None).unwrap();
        let queue = XskQueue::open(&umem, &interface, 0, QueueOptions::default()).unwrap();
        attachment.register(&queue).unwrap();
        thread::sleep(12 * SOON);
        return;
    }
    let lab = pair();
    let me = env::current_exe().unwrap();
    let args = ["--exact", "after_a_kill_the_interface_is_as_before"];
    let assignment = format!("{HOLD}=under0");
    let line: Vec<_> = [assignment.as_str(), me.to_str().unwrap()]
        .into_iter()
        .chain(args)
        .collect();
    let mut holder = lab.dut.spawn("env", &line).unwrap();
    wait_until("the attachment", SOON, || has_program(&lab.dut, "under0"))
        .unwrap_or_else(|error| panic!("{error}: {}", holder.log()));
    holder.signal(9);
    holder.wait(SOON).unwrap();
    wait_until("the end of the attachment", SOON, || {
        !has_program(&lab.dut, "under0")
    })
    .unwrap();
    // The queue is free as well.
    let umem = small_umem();
    let open = || XskQueue::open(&umem, "under0", 0, QueueOptions::default());
    lab.dut.enter(open).unwrap().unwrap();
}
