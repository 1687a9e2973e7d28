//! From plans to frames: packets between ports, answers to what came, errors about it, questions to the gateway.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft_proto::v1::{self, Objects};

use crate::craft::{self, Ends, Header};
use crate::generate::{NeighborPlan, PacketPlan, PiecesPlan};
use crate::outside;
use crate::questions;
use crate::semantics::frame::{
    Decoded, Detail, IP, Mac, Packet, SYN, TCP, UDP, decode, octets, word,
};

pub const ROUTER: Mac = [0x02, 0x77, 0x65, 0x66, 0x74, 0x01];

/// Addresses that no port has.
const ELSEWHERE: [&str; 24] = [
    "203.0.113.9",
    "203.0.113.70",
    "198.51.100.1",
    "10.0.1.200",
    "10.0.9.9",
    "224.0.0.5",
    "255.255.255.255",
    "127.0.0.1",
    "2001:db8:5::1",
    "fd00:1::99",
    "fd00:9::9",
    "ff02::5",
    // Where hosts that have one offer metadata.
    "169.254.169.254",
    "169.254.169.254",
    "fd00:ec2::254",
    "fd00:ec2::254",
    // Those that stand for addresses of ports.
    "198.18.0.1",
    "198.18.0.2",
    "198.18.0.3",
    "198.18.0.1",
    "fd00:aa::1",
    "fd00:aa::2",
    "fd00:aa::3",
    "fd00:aa::1",
];

pub fn mac(text: &str) -> Mac {
    let mut bytes = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).unwrap());
    std::array::from_fn(|_| bytes.next().unwrap())
}

pub fn addresses(port: &v1::Port) -> impl Iterator<Item = IpAddr> {
    let all = port.addresses.iter();
    all.map(|text| text.parse::<IpAddr>().unwrap())
}

pub fn address(port: &v1::Port, v4: bool) -> Option<IpAddr> {
    addresses(port).find(|address| address.is_ipv4() == v4)
}

pub fn gateway_mac(objects: &Objects, port: &v1::Port) -> Mac {
    let subnet = objects
        .subnets
        .iter()
        .find(|s| s.id == port.subnet)
        .unwrap();
    if subnet.gateway_mac.is_empty() {
        ROUTER
    } else {
        mac(&subnet.gateway_mac)
    }
}

/// Where a port sends what is for an address: to its owner in the subnet, else to the gateway.
pub fn next_mac(objects: &Objects, from: &v1::Port, to: IpAddr) -> Mac {
    let mut ports = objects.ports.iter();
    let text = to.to_string();
    let owner = ports.find(|port| port.subnet == from.subnet && port.addresses.contains(&text));
    let mut holders = objects.address_holders.iter();
    let holder = holders.find(|it| it.subnet == from.subnet && it.address == text);
    if let Some(holder) = holder {
        return mac(&holder.mac);
    }
    owner.map_or_else(|| gateway_mac(objects, from), |owner| mac(&owner.mac))
}

pub fn gateways(objects: &Objects, vpc: &str, v4: bool) -> Vec<IpAddr> {
    let subnets = objects.subnets.iter().filter(|subnet| subnet.vpc == vpc);
    let of = |subnet: &v1::Subnet| -> Vec<IpAddr> {
        if subnet.gateways.is_empty() {
            let cidrs = subnet
                .cidrs
                .iter()
                .map(|cidr| cidr.parse::<IpNetwork>().unwrap());
            cidrs.filter_map(|prefix| prefix.nth(1)).collect()
        } else {
            subnet
                .gateways
                .iter()
                .map(|text| text.parse().unwrap())
                .collect()
        }
    };
    subnets
        .flat_map(of)
        .filter(|address| address.is_ipv4() == v4)
        .collect()
}

/// The addresses of load balancers.
pub fn balancers(objects: &Objects, vpc: &str, v4: bool) -> Vec<IpAddr> {
    let all = objects.load_balancers.iter().filter(|it| it.vpc == vpc);
    let addresses = all.flat_map(|it| &it.addresses);
    let parsed = addresses.map(|text| text.parse::<IpAddr>().unwrap());
    parsed.filter(|address| address.is_ipv4() == v4).collect()
}

/// The virtual addresses that ports hold.
fn virtual_addresses(objects: &Objects, vpc: &str, v4: bool) -> Vec<IpAddr> {
    let all = objects.address_holders.iter().filter(|it| it.vpc == vpc);
    let parsed = all.map(|it| it.address.parse::<IpAddr>().unwrap());
    parsed.filter(|address| address.is_ipv4() == v4).collect()
}

/// What a port sends from in place of its own address: a virtual one that it may hold.
fn virtual_source(from: &v1::Port, v4: bool) -> Option<IpAddr> {
    let pairs = from.allowed_pairs.iter();
    let mut addresses = pairs.filter_map(|pair| pair.cidr.parse::<IpAddr>().ok());
    addresses.find(|address| address.is_ipv4() == v4)
}

trait Nth {
    fn nth(&self, n: u32) -> Option<IpAddr>;
}

impl Nth for IpNetwork {
    fn nth(&self, n: u32) -> Option<IpAddr> {
        match self {
            Self::V4(net) => net.nth(n).map(IpAddr::V4),
            Self::V6(net) => net.nth(n.into()).map(IpAddr::V6),
        }
    }
}

pub fn pick<T>(list: &[T], index: impl Into<usize>) -> &T {
    &list[index.into() % list.len()]
}

/// Whether ports of one VPC have a reason to send to those of another.
pub fn may_reach(objects: &Objects, from: &str, to: &str) -> bool {
    let mut peerings = objects.peerings.iter();
    from == to || peerings.any(|peering| peering.other(from) == Some(to))
}

/// The elastic IP that a port has itself.
fn direct_address(objects: &Objects, port: &v1::Port, v4: bool) -> Option<IpAddr> {
    let mut elastics = objects.elastic_ips.iter();
    let is = |it: &&v1::ElasticIp| {
        it.mode == "direct" && it.port == port.id && it.address.contains('.') == v4
    };
    elastics.find(is)?.address.parse().ok()
}

/// A packet from a port, and what is odd about it. None where the plan asks for what the fabric does not have.
pub fn packet(objects: &Objects, plan: &PacketPlan, id: u16) -> Option<(String, Vec<u8>)> {
    packet_to(objects, plan, &ELSEWHERE, id)
}

/// The same, to an outside address or one of a few others.
pub fn packet_out(objects: &Objects, plan: &PacketPlan, id: u16) -> Option<(String, Vec<u8>)> {
    // Mostly who has a way out.
    let has_way = |port: &v1::Port| {
        let elastic = objects.elastic_ips.iter().any(|it| it.port == port.id);
        let mut routed = objects.external_networks.iter().flat_map(|it| &it.routed);
        elastic
            || objects.nat_gateways.iter().any(|it| it.vpc == port.vpc)
            || routed.any(|it| it.vpc == port.vpc)
    };
    let ports = objects.ports.iter().zip(0u8..);
    let able: Vec<u8> = ports
        .filter(|(port, _)| has_way(port))
        .map(|(_, i)| i)
        .collect();
    let from = match able.is_empty() || plan.from >= 230 {
        true => plan.from,
        false => *pick(&able, plan.from),
    };
    let plan = PacketPlan {
        from,
        to: 200 + plan.to % 56,
        // Mostly through the gateway, and well-formed.
        way: plan.way.max(5),
        twist: if plan.cut.is_multiple_of(2) {
            100
        } else {
            plan.twist
        },
        ..plan.clone()
    };
    packet_to(objects, &plan, &outside::ADDRESSES, id)
}

fn packet_to(
    objects: &Objects,
    plan: &PacketPlan,
    elsewhere: &[&str],
    id: u16,
) -> Option<(String, Vec<u8>)> {
    if objects.ports.is_empty() {
        return None;
    }
    let from = pick(&objects.ports, plan.from);
    let v4 = if plan.v6 {
        address(from, false).is_none()
    } else {
        address(from, true).is_some()
    };
    let direct = direct_address(objects, from, v4).filter(|_| !plan.to.is_multiple_of(3));
    let own = direct.or_else(|| address(from, v4))?;
    let other = virtual_source(from, v4).filter(|_| plan.to % 4 == 1);
    let source = other.unwrap_or(own);
    let peers: Vec<&v1::Port> = objects
        .ports
        .iter()
        .filter(|port| port.id != from.id && address(port, v4).is_some())
        .filter(|port| may_reach(objects, &from.vpc, &port.vpc))
        .collect();
    let is_balanced = (150..200).contains(&plan.to);
    let target = (plan.to < 200 && !peers.is_empty()).then(|| *pick(&peers, plan.to));
    let others: Vec<IpAddr> = elsewhere
        .iter()
        .map(|text| text.parse().unwrap())
        .filter(|address: &IpAddr| address.is_ipv4() == v4)
        .chain(gateways(objects, &from.vpc, v4))
        .collect();
    let mut balanced = balancers(objects, &from.vpc, v4);
    balanced.extend(virtual_addresses(objects, &from.vpc, v4));
    let target = target.filter(|_| !is_balanced || balanced.is_empty());
    let destination = match target {
        None if is_balanced && !balanced.is_empty() => *pick(&balanced, plan.to),
        Some(target) => address(target, v4)?,
        None => *pick(&others, plan.to),
    };
    let dst = match plan.way {
        0 => gateway_mac(objects, from),
        1 => target.map_or(mac(&from.mac), |target| mac(&target.mac)),
        2 => [2, 0, 0, 0, 0x77, 0x77],
        3 => [0xff; 6],
        4 => [0x33, 0x33, 0, 0, 0, 5],
        5 => ROUTER,
        _ => next_mac(objects, from, destination),
    };
    let mut ends = Ends {
        dst,
        src: mac(&from.mac),
        source,
        destination,
    };
    let mut header = Header {
        ttl: match plan.ttl {
            0 => 0,
            1 | 2 => 1,
            3 => 2,
            _ => 64,
        },
        class: match plan.class {
            0 => 0xb8,
            1 => 0x01,
            2 => 0x03,
            3 => 0xba,
            _ => 0,
        },
        id,
        ..Header::default()
    };
    twist_before(plan, v4, &mut ends, &mut header, &peers);
    let (protocol, payload) = body(plan, ends);
    let mut frame = craft::ip(ends, &header, protocol, &payload);
    twist_after(plan, ends, protocol, &mut frame);
    Some((from.id.clone(), frame))
}

/// What is odd about addresses and header.
fn twist_before(
    plan: &PacketPlan,
    v4: bool,
    ends: &mut Ends,
    header: &mut Header,
    peers: &[&v1::Port],
) {
    let parse = |v4_text: &str, v6_text: &str| -> IpAddr {
        if v4 { v4_text } else { v6_text }.parse().unwrap()
    };
    let other = peers.get(usize::from(plan.cut) % peers.len().max(1));
    let stolen = other.and_then(|port| address(port, v4));
    match plan.twist {
        0 => ends.source = stolen.unwrap_or(parse("9.9.9.9", "2001:db8:9::9")),
        1 => ends.src = other.map_or([2, 0, 0, 0, 9, 9], |port| mac(&port.mac)),
        2 => {
            ends.source = parse("9.9.9.9", "2001:db8:9::9");
            ends.src = [2, 0, 0, 0, 8, 8];
        }
        8..=12 | 27 => header.dont_fragment = false,
        13 => header.options = vec![1, 1, 1, 0],
        14 => header.options = vec![0x94, 4, 0, 0],
        15 => header.options = vec![131, 3, 4, 0],
        16 => header.options = vec![7, 9, 4, 0],
        17 => header.extensions = vec![(0, vec![59, 0, 1, 4, 0, 0, 0, 0])],
        18 => {
            let options = vec![59, 0, 1, 4, 0, 0, 0, 0];
            header.extensions = vec![(0, options.clone()), (60, options.clone()), (60, options)];
        }
        19 => header.extensions = vec![(43, vec![59, 0, 0, 1, 0, 0, 0, 0])],
        20 => header.extensions = vec![(43, vec![59, 0, 4, 0, 0, 0, 0, 0])],
        21 => {
            let options = vec![59, 0, 1, 4, 0, 0, 0, 0];
            header.extensions = vec![(60, options.clone()), (0, options)];
        }
        22 => header.extensions = vec![(51, vec![59, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1])],
        23 => header.extensions = vec![(60, vec![59, 200, 1, 4, 0, 0, 0, 0])],
        24 => ends.source = parse("127.0.0.1", "::1"),
        25 => ends.source = parse("224.0.0.1", "ff02::1"),
        26 => ends.destination = ends.source,
        28 => ends.source = parse("203.0.113.5", "2001:db8:5::5"),
        29 => ends.src = [2, 0, 0, 0, 9, 9],
        30 => ends.source = parse("0.0.0.0", "::"),
        31 => {
            let [a, b, c, d, e, f] = ends.src;
            if !v4 {
                let local = [
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
                ];
                ends.source = local.into();
            }
        }
        41 => ends.source = parse("169.254.169.254", "fd00:ec2::254"),
        // What stays on the link, or on no link at all.
        42 => ends.source = parse("169.254.3.4", "fe80::7"),
        43 => ends.destination = parse("169.254.3.4", "fe80::7"),
        44 => ends.destination = parse("240.0.0.9", "::7"),
        45 => ends.destination = parse("0.1.2.3", "fe80::9"),
        46 if !v4 => {
            ends.source = other.map_or(ends.source, |port| questions::link_local(mac(&port.mac)));
        }
        47 if !v4 => ends.source = questions::link_local(ROUTER),
        48 if !v4 => {
            ends.source = questions::link_local(ends.src);
            ends.destination = questions::link_local(ROUTER);
        }
        // Who joins a group before it has an address.
        49 | 50 => {
            ends.source = parse("0.0.0.0", "::");
            ends.destination = parse("224.0.0.22", "ff02::16");
            ends.dst = if v4 {
                [1, 0, 0x5e, 0, 0, 22]
            } else {
                [0x33, 0x33, 0, 0, 0, 0x16]
            };
        }
        32 => ends.destination = parse("0.0.0.0", "::ffff:1.2.3.4"),
        _ => {}
    }
}

/// What is odd about the bytes.
fn twist_after(plan: &PacketPlan, ends: Ends, protocol: u8, frame: &mut Vec<u8>) {
    let v4 = ends.source.is_ipv4();
    let l4 = IP + if v4 { 20 } else { 40 };
    match plan.twist {
        3 => {
            let tag = [0x81, 0, 0, 7];
            frame.splice(12..12, tag);
        }
        51 | 52 => {
            // A priority, and no VLAN.
            let tag = [0x81, 0, 0xe0, 0];
            frame.splice(12..12, tag);
        }
        4 | 5 => frame.truncate(usize::from(plan.cut) % frame.len()),
        6 if v4 => frame[IP + 10] ^= 0x55,
        7 | 33 => frame.extend(vec![0; usize::from(plan.cut % 40)]),
        34 | 35 if matches!(protocol, TCP | UDP) => craft::leave_checksum(frame, ends, protocol),
        // Where a checksum would be updated, it has to be right before.
        36 if protocol == UDP => {
            let at = IP + if v4 { 2 } else { 4 };
            let lie = word(frame, at).wrapping_add(plan.cut % 64).wrapping_sub(32);
            frame[at..at + 2].copy_from_slice(&lie.to_be_bytes());
            if v4 {
                craft::fix_ipv4_checksum(frame);
            }
        }
        37 if protocol == UDP => {
            frame[l4 + 4..l4 + 6].copy_from_slice(&(plan.cut % 64).to_be_bytes());
        }
        38 => frame[12..14].copy_from_slice(&[0x88, 0xcc]),
        39 => frame[IP] = plan.cut as u8,
        40 if protocol == TCP => {
            frame[l4 + 12] = plan.cut as u8;
            if let Some(mut packet) = ip(frame) {
                packet.write_checksum(packet.l4 + 16);
                *frame = packet.bytes;
            }
        }
        _ => {}
    }
}

pub fn body(plan: &PacketPlan, ends: Ends) -> (u8, Vec<u8>) {
    const PORTS: [(u16, u16); 6] = [
        (1000, 53),
        (1001, 80),
        (40_000, 80),
        (1000, 1000),
        (5, 900),
        (80, 1001),
    ];
    const IDS: [u16; 6] = [1, 2, 3, 0x0800, 0x8000, 0];
    const BIG: [usize; 14] = [
        1250, 1294, 1302, 1310, 1322, 1330, 1390, 1402, 1410, 1422, 1430, 1500, 2000, 3000,
    ];
    let v4 = ends.source.is_ipv4();
    let size = match usize::from(plan.size) {
        small @ 0..50 => small,
        big => BIG[big - 50],
    };
    let payload: Vec<u8> = (0..size).map(|i| i as u8).collect();
    let ports = *pick(&PORTS, plan.ports);
    let [high, low] = pick(&IDS, plan.ports).to_be_bytes();
    let query = [high, low, 0, 1];
    let (request, reply) = if v4 { (8, 0) } else { (128, 129) };
    let icmp = |kind, rest| {
        let message = craft::icmp(ends, kind, 0, rest, &payload);
        (craft::icmp_protocol(v4), message)
    };
    match plan.body {
        8..12 => icmp(request, query),
        12 => icmp(reply, query),
        _ if plan.twist == 49 && v4 => (2, [&[0x16, 0, 0, 0][..], &payload].concat()),
        13 if v4 => icmp(*pick(&[13, 14, 5, 9, 10], plan.ports), query),
        13 => icmp(*pick(&[143, 134, 131, 132, 137], plan.ports), query),
        14 => (47, payload),
        15 => {
            let udp = craft::udp(ends, ports, &payload);
            (132, [&udp, &[0; 8][..]].concat())
        }
        16 => {
            let flags = (plan.ports * 7) & 0x3f;
            (TCP, craft::tcp(ends, ports, flags, (1, 1), None, &[]))
        }
        17 => (TCP, craft::tcp(ends, ports, 2, (1, 1), Some(1460), &[])),
        18 if v4 => (UDP, craft::udp(ends, (67, 68), &payload)),
        18 => (UDP, craft::udp(ends, (547, 546), &payload)),
        _ => (UDP, craft::udp(ends, ports, &payload)),
    }
}

/// A frame that a port got, sent on to the gateway.
pub fn pass_on(objects: &Objects, port: &v1::Port, frame: &[u8]) -> Option<Vec<u8>> {
    let mut packet = ip(frame)?;
    // What it got whole to split itself, it would have to leave to its device again.
    if packet.ttl <= 1 || packet.fragment.is_some() || packet.bytes.len() > 2000 {
        return None;
    }
    packet.set_macs(gateway_mac(objects, port), mac(&port.mac));
    packet.set_ttl(packet.ttl - 1);
    Some(packet.bytes)
}

/// A port's answer to a frame that it got; none to what is no question.
pub fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let packet = ip(frame)?;
    let flow = packet.flow.reversed();
    let ends = Ends {
        dst: packet.src,
        src: packet.dst,
        source: flow.source,
        destination: flow.destination,
    };
    let payload = &packet.bytes[packet.l4..packet.end];
    let transport = match flow.detail {
        Detail::Ports(source, destination) if flow.protocol == UDP => {
            craft::udp(ends, (source, destination), b"answer")
        }
        Detail::Query { answer: true, .. } => {
            let kind = if payload[0] < 128 { payload[0] } else { 129 };
            let kind = match kind {
                8 => 0,
                129 => 129,
                other => other + 1,
            };
            let rest = payload[4..8].try_into().unwrap();
            craft::icmp(ends, kind, 0, rest, &payload[8..])
        }
        Detail::Nothing => payload.to_vec(),
        _ => return None,
    };
    Some(craft::ip(
        ends,
        &Header::default(),
        flow.protocol,
        &transport,
    ))
}

/// An error about a frame that a port got, from that port or from a stranger.
pub fn report(
    objects: &Objects,
    port: &v1::Port,
    frame: &[u8],
    stranger: bool,
    cut: bool,
) -> Option<(String, Vec<u8>)> {
    let packet = ip(frame)?;
    let v4 = packet.is_v4();
    let is_stranger = |other: &&v1::Port| {
        other.vpc == port.vpc && other.id != port.id && address(other, v4).is_some()
    };
    let reporter = if stranger {
        objects.ports.iter().find(is_stranger)?
    } else {
        port
    };
    let ends = Ends {
        dst: next_mac(objects, reporter, packet.flow.source),
        src: mac(&reporter.mac),
        source: address(reporter, v4)?,
        destination: packet.flow.source,
    };
    let quote = &packet.bytes[IP..packet.end];
    let room = if cut { packet.l4 - IP + 8 } else { 500 };
    let quote = &quote[..quote.len().min(room)];
    let (kind, code) = if v4 { (3, 3) } else { (1, 4) };
    let message = craft::icmp(ends, kind, code, [0; 4], quote);
    let frame = craft::ip(ends, &Header::default(), craft::icmp_protocol(v4), &message);
    Some((reporter.id.clone(), frame))
}

/// A packet in pieces, all or some of them, right or wrong. A SYN stays whole: its MSS option is lowered on the way, and only who has all of a
/// segment can check its checksum.
pub fn pieces(frame: &[u8], plan: &PiecesPlan, id: u16) -> Vec<Vec<u8>> {
    let whole = vec![frame.to_vec()];
    let Some(packet) = ip(frame) else {
        return whole;
    };
    let v4 = packet.is_v4();
    let syn = packet.tcp.is_some_and(|segment| segment.has(SYN));
    if syn || packet.fragment.is_some() || (!v4 && packet.l4 != IP + 40) {
        return whole;
    }
    let payload = &packet.bytes[packet.l4..packet.end];
    // Not more pieces than a datagram may have.
    let least = payload.len().div_ceil(40).next_multiple_of(8);
    let size = [8, 16, 24, 64, 400, 1000][usize::from(plan.size)].max(least);
    let count = payload.len().div_ceil(size);
    let part = |(number, part): (usize, &[u8])| (number * size, part.to_vec(), number + 1 < count);
    let mut parts: Vec<(usize, Vec<u8>, bool)> =
        payload.chunks(size).enumerate().map(part).collect();
    if parts.is_empty() {
        return whole;
    }
    let which = usize::from(plan.which) % parts.len();
    let chosen = parts[which].clone();
    match plan.trouble {
        0 | 1 => parts.reverse(),
        2 | 3 => parts.rotate_left(which),
        4 => drop(parts.remove(0)),
        5 => drop(parts.remove(which)),
        6 => parts.push(chosen),
        7 => parts.insert(0, chosen),
        // Eight bytes further ahead than it should.
        8 => parts.push((chosen.0.saturating_sub(8), chosen.1, chosen.2)),
        9 => parts.insert(0, (chosen.0 + 8, chosen.1, chosen.2)),
        10 => parts[which].2 = !chosen.2,
        11 => parts[which].0 = 0xfff8,
        12 => parts[which].1.clear(),
        13 => {
            parts[which].1.pop();
        }
        14 => parts.swap(0, which),
        _ => {}
    }
    let piece = |(offset, part, more): &(usize, Vec<u8>, bool)| {
        let mut bytes = packet.bytes[..packet.l4].to_vec();
        let offset = *offset as u16;
        if v4 {
            let header = (packet.l4 - IP) as u16;
            let keep = if plan.which.is_multiple_of(16) {
                0x4000
            } else {
                0
            };
            let flags = keep | if *more { 0x2000 } else { 0 };
            let place = flags | (offset / 8);
            bytes[IP + 2..IP + 4].copy_from_slice(&(header + part.len() as u16).to_be_bytes());
            bytes[IP + 4..IP + 6].copy_from_slice(&id.to_be_bytes());
            bytes[IP + 6..IP + 8].copy_from_slice(&place.to_be_bytes());
            craft::fix_ipv4_checksum(&mut bytes);
        } else {
            let length = 8 + part.len() as u16;
            bytes[IP + 4..IP + 6].copy_from_slice(&length.to_be_bytes());
            bytes[IP + 6] = 44;
            bytes.extend([packet.flow.protocol, 0]);
            bytes.extend((offset | u16::from(*more)).to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(id.to_be_bytes());
        }
        bytes.extend(part);
        bytes
    };
    parts.iter().map(piece).collect()
}

fn ip(frame: &[u8]) -> Option<Packet> {
    match decode(frame) {
        Ok(Decoded::Ip(packet)) => Some(packet),
        _ => None,
    }
}

/// Addresses that a port may ask for.
fn asked(objects: &Objects, from: &v1::Port, v4: bool, index: u8) -> IpAddr {
    let ports = objects.ports.iter().filter(|port| port.vpc == from.vpc);
    let mut all: Vec<IpAddr> = ports.filter_map(|port| address(port, v4)).collect();
    all.extend(gateways(objects, &from.vpc, v4));
    all.extend(balancers(objects, &from.vpc, v4));
    if !v4 {
        // The router's link-local address, those that ports have by their MACs, and one that a guest may have chosen.
        all.push(questions::link_local(gateway_mac(objects, from)));
        let ports = objects.ports.iter().filter(|port| port.vpc == from.vpc);
        all.extend(ports.map(|port| questions::link_local(mac(&port.mac))));
        all.push("fe80::7".parse().unwrap());
    }
    for address in [
        "10.0.1.77",
        "169.254.169.254",
        "fd00:1::77",
        "fd00:ec2::254",
    ] {
        let address: IpAddr = address.parse().unwrap();
        all.extend(Some(address).filter(|address| address.is_ipv4() == v4));
    }
    *pick(&all, index)
}

pub fn arp(objects: &Objects, plan: &NeighborPlan) -> Option<(String, Vec<u8>)> {
    let from = objects
        .ports
        .get(usize::from(plan.from) % objects.ports.len().max(1))?;
    let mut sender = (mac(&from.mac), address(from, true)?);
    let mut target = asked(objects, from, true, plan.target);
    let (mut src, mut operation) = (sender.0, 1);
    match plan.lie {
        0 => sender.1 = "10.0.1.99".parse().unwrap(),
        1 => sender.0 = [2, 0, 0, 0, 5, 5],
        2 => src = [2, 0, 0, 0, 5, 5],
        3 => operation = 2,
        4 => sender.1 = "0.0.0.0".parse().unwrap(),
        5 => target = sender.1,
        _ => {}
    }
    let mut frame = craft::arp(src, operation, sender, ([0; 6], target));
    match plan.lie {
        6 => frame.truncate(30),
        7 => frame.extend([0; 18]),
        8 => frame[17] = 1,
        _ => {}
    }
    Some((from.id.clone(), frame))
}

pub fn solicit(objects: &Objects, plan: &NeighborPlan) -> Option<(String, Vec<u8>)> {
    let from = objects
        .ports
        .get(usize::from(plan.from) % objects.ports.len().max(1))?;
    let own = address(from, false)?;
    let IpAddr::V6(target) = asked(objects, from, false, plan.target) else {
        return None;
    };
    let src = mac(&from.mac);
    let (mut option, mut source) = (src, own);
    match plan.lie {
        0 => source = "fd00:1::66".parse().unwrap(),
        1 => option = [2, 0, 0, 0, 5, 5],
        2 | 3 => source = "::".parse().unwrap(),
        4 => source = "fe80::1234".parse().unwrap(),
        9 => {
            // The address that another port has by its MAC.
            let mac = mac(&pick(&objects.ports, plan.target).mac);
            source = questions::link_local(mac);
        }
        _ => {}
    }
    let mut frame = craft::solicit(src, option, source, target);
    match plan.lie {
        5 => *frame.last_mut().unwrap() ^= 1,
        6 => frame[21] = 64,
        7 | 8 | 10 => {
            // An advertisement instead, to all or to one.
            let other = pick(&objects.ports, plan.target);
            let to_one = plan.lie == 10;
            let destination = address(other, false).filter(|_| to_one);
            let ends = Ends {
                dst: match destination {
                    Some(_) => mac(&other.mac),
                    None => [0x33, 0x33, 0, 0, 0, 1],
                },
                src,
                source,
                destination: destination.unwrap_or("ff02::1".parse().unwrap()),
            };
            let header = Header {
                ttl: 255,
                ..Header::default()
            };
            let body = octets(if plan.lie == 7 { own } else { target.into() });
            let message = craft::icmp(ends, 136, 0, [0x20, 0, 0, 0], &body);
            frame = craft::ip(ends, &header, 58, &message);
        }
        _ => {}
    }
    Some((from.id.clone(), frame))
}
