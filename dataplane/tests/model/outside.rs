//! What comes from outside: answers to what left, errors about it, questions to addresses that hosts hold, and what nobody should believe.

use std::net::IpAddr;

use weft_proto::v1::Objects;

use crate::craft::{self, Ends, Header};
use crate::generate::InPlan;
use crate::semantics::frame::{ACK, Decoded, Detail, FIN, Packet, RST, SYN, TCP, decode};
use crate::semantics::outside::interface;
use crate::traffic::{self, pick};

/// Addresses outside, held and not, on the segment and behind its router.
pub const ADDRESSES: [&str; 30] = [
    "203.0.113.9",
    "203.0.113.9",
    "203.0.113.70",
    "192.0.2.200",
    "198.51.100.1",
    "198.51.100.9",
    "198.51.100.2",
    "198.51.100.3",
    "198.51.100.4",
    "198.51.100.5",
    "198.51.100.6",
    "198.51.100.6",
    "198.51.100.7",
    "198.51.100.8",
    "198.51.100.14",
    "192.88.99.2",
    "192.88.99.4",
    "2001:db8:9::1",
    "2001:db8:9::1",
    "2001:db8:9::2",
    "2001:db8:5::4",
    "2001:db8:5::1",
    "2001:db8:5::2",
    "2001:db8:5::3",
    "2001:db8:5::5",
    "2001:db8:5::6",
    "2001:db8:5::7",
    "2001:db8:9::3",
    "2001:db8:6::2",
    "2001:db8:6::4",
];

/// A host on the segment, and frames for it; none where the plan asks for what there is not. `left`: what hosts have sent.
pub fn frames(
    objects: &Objects,
    left: &[(String, Vec<u8>)],
    plan: &InPlan,
    id: u16,
) -> Option<(String, Vec<Vec<u8>>)> {
    objects.external_networks.first()?;
    let vlan = pick(&objects.external_networks, usize::from(plan.to / 64 == 3)).vlan as u16;
    let before = left
        .len()
        .checked_sub(1 + usize::from(plan.back))
        .and_then(|at| {
            let (host, frame) = &left[at];
            let (vlan, packet) = untagged(frame)?;
            Some((host.clone(), vlan, packet))
        });
    let (host, vlan, mut frame) = match (plan.kind, before) {
        (0..8, Some((host, vlan, packet))) => (host, vlan, answer(&packet, id)?),
        (8..11, Some((host, vlan, packet))) => (host, vlan, report(&packet, plan)),
        _ => {
            let hosts = objects.hosts.iter();
            let hosts = hosts.filter(|host| !host.physical_networks.is_empty());
            let hosts: Vec<&str> = hosts.map(|host| host.id.as_str()).collect();
            if hosts.is_empty() {
                return None;
            }
            let host = (*pick(&hosts, plan.from)).to_owned();
            let frame = question(objects, &host, plan, id)?;
            (host, vlan, frame)
        }
    };
    spoil(objects, plan, &mut frame);
    let mut frames = match &plan.pieces {
        Some(cut) => traffic::pieces(&frame, cut, id),
        None => vec![frame],
    };
    for frame in &mut frames {
        if vlan != 0 && plan.lie != 20 {
            tag(frame, vlan);
        } else if plan.lie == 21 {
            tag(frame, u16::from(plan.to % 3));
        }
    }
    Some((host, frames))
}

fn tag(frame: &mut Vec<u8>, vlan: u16) {
    let [high, low] = vlan.to_be_bytes();
    frame.splice(12..12, [0x81, 0, high, low]);
}

/// The VLAN of a frame, 0 where it has none, and its packet.
fn untagged(frame: &[u8]) -> Option<(u16, Packet)> {
    let mut frame = frame.to_vec();
    let mut vlan = 0;
    if frame[12..14] == [0x81, 0] {
        vlan = u16::from_be_bytes([frame[14], frame[15]]);
        frame.drain(12..16);
    }
    match decode(&frame) {
        Ok(Decoded::Ip(packet)) => Some((vlan, packet)),
        _ => None,
    }
}

/// What the receiver of a packet answers.
pub fn answer(packet: &Packet, id: u16) -> Option<Vec<u8>> {
    if packet.fragment.is_some() {
        return None;
    }
    let Some(segment) = packet.tcp else {
        return traffic::answer(&packet.bytes);
    };
    let Detail::Ports(source, destination) = packet.flow.detail else {
        return None;
    };
    if segment.has(RST) {
        return None;
    }
    let ends = Ends {
        dst: packet.src,
        src: packet.dst,
        source: packet.flow.destination,
        destination: packet.flow.source,
    };
    let next = segment.seq.wrapping_add(segment.space);
    let (flags, seq) = match segment.has(SYN) {
        true if segment.has(ACK) => (ACK, segment.ack),
        true => (SYN | ACK, 7000),
        false if segment.has(FIN) => (FIN | ACK, segment.ack),
        false => (ACK, segment.ack),
    };
    let payload: &[u8] = if flags == ACK && id.is_multiple_of(2) {
        b"answer"
    } else {
        b""
    };
    let ports = (destination, source);
    let segment = craft::tcp(ends, ports, flags, (seq, next), Some(1460), payload);
    let header = Header {
        id,
        ..Header::default()
    };
    Some(craft::ip(ends, &header, TCP, &segment))
}

/// A router on the way, or the receiver, reports an error about a packet.
fn report(packet: &Packet, plan: &InPlan) -> Vec<u8> {
    let v4 = packet.is_v4();
    let from = [packet.flow.destination, other(plan.from, v4)];
    let ends = Ends {
        dst: packet.src,
        src: packet.dst,
        source: from[usize::from(plan.to & 1)],
        destination: packet.flow.source,
    };
    let quote = &packet.bytes[14..packet.end];
    let room = [500, packet.l4 - 14 + 8][usize::from(plan.to >> 1 & 1)];
    let quote = &quote[..quote.len().min(room)];
    let (kind, code) = match (v4, plan.to >> 2 & 1) {
        (true, 0) => (3, 3),
        (true, _) => (11, 0),
        (false, 0) => (1, 4),
        (false, _) => (2, 0),
    };
    let message = craft::icmp(ends, kind, code, [0, 0, 4, 0xff], quote);
    craft::ip(ends, &Header::default(), craft::icmp_protocol(v4), &message)
}

fn other(which: u8, v4: bool) -> IpAddr {
    let all = ADDRESSES.iter().map(|text| text.parse().unwrap());
    let all: Vec<IpAddr> = all.filter(|it: &IpAddr| it.is_ipv4() == v4).collect();
    *pick(&all, which)
}

fn question(objects: &Objects, host: &str, plan: &InPlan, id: u16) -> Option<Vec<u8>> {
    let v4 = !plan.packet.v6;
    let mut held: Vec<IpAddr> = objects
        .elastic_ips
        .iter()
        .map(|elastic| &elastic.address)
        .chain(objects.nat_gateways.iter().flat_map(|it| &it.addresses))
        .chain(objects.external_networks.iter().flat_map(|it| &it.routers))
        .map(|text| text.parse().unwrap())
        .filter(|it: &IpAddr| it.is_ipv4() == v4)
        .collect();
    let routed = objects.external_networks.iter().flat_map(|it| &it.routed);
    for routed in routed {
        let prefix: ipnetwork::IpNetwork = routed.prefix.parse().unwrap();
        let ports = objects.ports.iter().flat_map(|port| &port.addresses);
        let addresses = ports.map(|text| text.parse().unwrap());
        held.extend(addresses.filter(|it: &IpAddr| it.is_ipv4() == v4 && prefix.contains(*it)));
    }
    if held.is_empty() || plan.lie == 0 {
        held.push(other(plan.to, v4));
    }
    let mut ends = Ends {
        dst: interface(host),
        src: [0x0a, 0, 0, 0, 0, 14],
        source: other(plan.from, v4),
        destination: *pick(&held, plan.to),
    };
    match plan.lie {
        1 => ends.dst = [6, 0, 0, 0, 1, 0x39],
        2 => ends.source = *pick(&held, plan.from),
        3 => {
            let port = objects
                .ports
                .get(usize::from(plan.from) % objects.ports.len().max(1))?;
            ends.source = traffic::address(port, v4)?;
        }
        4 => {
            let text = if v4 { "10.0.2.77" } else { "fd00:2::77" };
            ends.source = text.parse().unwrap();
        }
        5 => {
            let port = objects
                .ports
                .get(usize::from(plan.from) % objects.ports.len().max(1))?;
            ends.destination = traffic::address(port, v4)?;
        }
        _ => {}
    }
    let header = Header {
        ttl: match plan.packet.ttl {
            0 => 0,
            1 | 2 => 1,
            3 => 2,
            _ => 64,
        },
        class: plan.packet.class,
        dont_fragment: !(8..=12).contains(&plan.packet.twist),
        id,
        ..Header::default()
    };
    let (protocol, payload) = traffic::body(&plan.packet, ends);
    // Neighbour discovery is for the behaviours.
    if protocol == 58 && (133..=137).contains(&payload[0]) {
        return None;
    }
    Some(craft::ip(ends, &header, protocol, &payload))
}

/// What is odd about the bytes.
fn spoil(objects: &Objects, plan: &InPlan, frame: &mut Vec<u8>) {
    match plan.lie {
        6 => frame.extend(vec![0; usize::from(plan.to % 40)]),
        7 => frame[..6].copy_from_slice(&interface(&objects.hosts[usize::from(plan.to) % 3].id)),
        8 => frame.truncate(14 + usize::from(plan.to) % (frame.len() - 14)),
        9 => frame[12..14].copy_from_slice(&[0x88, 0xcc]),
        _ => {}
    }
}
