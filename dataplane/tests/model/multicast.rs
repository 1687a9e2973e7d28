//! Reports of IGMP and MLD, and packets to groups.

use std::net::IpAddr;

use weft_proto::v1::{self, Objects};

use crate::craft::{self, Ends, Header};
use crate::generate::MulticastPlan;
use crate::questions::link_local;
use crate::semantics::frame::{IP, Mac, UDP, octets, ones_sum};
use crate::traffic::{address, mac, pick};

const GROUPS_V4: [&str; 4] = ["239.1.1.1", "232.0.0.7", "224.0.0.251", "239.1.1.2"];
const GROUPS_V6: [&str; 4] = ["ff05::7", "ff12::9", "ff02::fb", "ff0e::1"];

fn mac_of(group: IpAddr) -> Mac {
    match octets(group)[..] {
        [_, b, c, d] => [1, 0, 0x5e, b & 0x7f, c, d],
        [.., a, b, c, d] => [0x33, 0x33, a, b, c, d],
        _ => [0xff; 6],
    }
}

/// A frame of a port.
pub fn frame(objects: &Objects, plan: &MulticastPlan, id: u16) -> Option<(String, Vec<u8>)> {
    if objects.ports.is_empty() {
        return None;
    }
    let from = pick(&objects.ports, plan.from);
    let v4 = match plan.v6 {
        true => address(from, false).is_none(),
        false => address(from, true).is_some(),
    };
    let own = address(from, v4)?;
    let groups = if v4 { GROUPS_V4 } else { GROUPS_V6 };
    let group: IpAddr = pick(&groups, plan.group).parse().unwrap();
    let mut header = Header {
        id,
        ..Header::default()
    };
    let mut ends = Ends {
        dst: mac_of(group),
        src: mac(&from.mac),
        source: own,
        destination: group,
    };
    if plan.kind < 8 {
        header.ttl = if plan.lie == 0 { 1 } else { 64 };
        let payload = vec![plan.kind; usize::from(plan.sources) * 8];
        let datagram = craft::udp(ends, (5000, 5000), &payload);
        return Some((from.id.clone(), craft::ip(ends, &header, UDP, &datagram)));
    }
    let to = if v4 { "224.0.0.22" } else { "ff02::16" };
    ends.destination = to.parse().unwrap();
    ends.dst = mac_of(ends.destination);
    header.ttl = if plan.lie == 0 { 2 } else { 1 };
    if !v4 && plan.lie != 1 {
        ends.source = link_local(ends.src);
    }
    if v4 {
        header.options = vec![0x94, 4, 0, 0];
    } else {
        header.extensions = vec![(0, vec![59, 0, 5, 2, 0, 0, 1, 0])];
    }
    let mut frame = message(objects, plan, (from, v4, group), (ends, &header));
    if plan.lie == 2 {
        let at = IP + usize::from(plan.sources) + 30;
        if let Some(byte) = frame.get_mut(at) {
            *byte ^= 1;
        }
    }
    Some((from.id.clone(), frame))
}

fn message(
    objects: &Objects,
    plan: &MulticastPlan,
    (from, v4, group): (&v1::Port, bool, IpAddr),
    (ends, header): (Ends, &Header),
) -> Vec<u8> {
    let named: Vec<IpAddr> = objects
        .ports
        .iter()
        .filter(|port| port.vpc == from.vpc)
        .filter_map(|port| address(port, v4))
        .enumerate()
        .filter(|(i, _)| plan.sources >> i & 1 != 0)
        .map(|(_, address)| address)
        .take(5)
        .collect();
    let (kind, body) = match plan.kind {
        8..10 => (if v4 { 0x16 } else { 131 }, octets(group)),
        10 => (if v4 { 0x17 } else { 132 }, octets(group)),
        11 if plan.lie < 6 => (if v4 { 0x11 } else { 130 }, octets(group)),
        says => {
            let count = named.len() as u8 + u8::from(plan.lie == 3);
            let mut record = vec![1 + says % 6, 0, 0, count];
            record.extend(octets(group));
            record.extend(named.into_iter().flat_map(octets));
            (if v4 { 0x22 } else { 143 }, record)
        }
    };
    let has_records = matches!(kind, 0x22 | 143);
    let rest = [0, 0, 0, u8::from(has_records)];
    if v4 {
        let mut message = vec![kind, 0, 0, 0];
        if has_records {
            message.extend(rest);
        }
        message.extend(body);
        let sum = !ones_sum(&[&message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        craft::ip(ends, header, 2, &message)
    } else {
        let message = craft::icmp(ends, kind, 0, rest, &body);
        craft::ip(ends, header, craft::icmp_protocol(false), &message)
    }
}
