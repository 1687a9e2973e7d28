//! Questions to the gateway's services: router solicitations, DHCP, DHCPv6, and what is wrong with some of them.

use std::net::{IpAddr, Ipv6Addr};

use weft_proto::v1::{self, Objects};

use crate::craft::{self, Ends, Header};
use crate::generate::AskPlan;
use crate::semantics::frame::{Mac, UDP, octets};
use crate::traffic::{address, gateway_mac, gateways, mac, pick};

/// The link-local address that a node makes of its MAC.
pub fn link_local(mac: Mac) -> IpAddr {
    let [a, b, c, d, e, f] = mac;
    let words = [(a ^ 2, b), (c, 0xff), (0xfe, d), (e, f)];
    let words = words.map(|(high, low)| u16::from_be_bytes([high, low]));
    let [w, x, y, z] = words;
    Ipv6Addr::new(0xfe80, 0, 0, 0, w, x, y, z).into()
}

pub fn ask(objects: &Objects, plan: &AskPlan) -> Option<(String, Vec<u8>)> {
    let count = objects.ports.len().max(1);
    let from = objects.ports.get(usize::from(plan.from) % count)?;
    let frame = match plan.service {
        0 => dhcp(objects, from, plan),
        1 => dhcp6(objects, from, plan),
        _ => solicitation(objects, from, plan),
    };
    Some((from.id.clone(), frame))
}

const STRANGER: Mac = [2, 0, 0, 0, 5, 5];

fn dhcp(objects: &Objects, from: &v1::Port, plan: &AskPlan) -> Vec<u8> {
    let none = IpAddr::from([0; 4]);
    let own = address(from, true);
    let wrong = IpAddr::from([10, 0, 1, 99]);
    let claimed = match plan.way % 4 {
        0 => wrong,
        _ => own.unwrap_or(wrong),
    };
    let gateways = gateways(objects, &from.vpc, true);
    let gateway = match gateways.is_empty() {
        true => wrong,
        false => *pick(&gateways, plan.way),
    };
    let (mut options, mut client) = (Vec::new(), none);
    let mut put = |code: u8, value: &[u8]| {
        options.extend([code, value.len() as u8]);
        options.extend(value);
    };
    let kind = match plan.kind % 16 {
        0..3 => 1,
        3..9 => 3,
        9 => 4,
        10 => 7,
        11 => 2,
        12 => 13,
        _ => 8,
    };
    put(53, &[kind]);
    match plan.kind % 16 {
        1 => put(80, &[]),
        3 | 4 => {
            put(50, &octets(claimed));
            put(54, &octets(gateway));
        }
        5 => put(50, &octets(claimed)),
        6 | 7 | 13 | 14 => client = claimed,
        _ => {}
    }
    match plan.kind >> 4 {
        0..4 => put(55, &[3, 66, 12, 26, 66]),
        4..8 => put(55, &[67, 1, 121, 224]),
        _ => {}
    }
    options.push(255);
    let mut hardware = mac(&from.mac);
    let mut ends = Ends {
        dst: [0xff; 6],
        src: hardware,
        source: if plan.way & 4 != 0 { client } else { none },
        destination: IpAddr::from([255; 4]),
    };
    if plan.way & 8 != 0 && !ends.source.is_unspecified() && ends.source != gateway {
        (ends.dst, ends.destination) = (gateway_mac(objects, from), gateway);
    }
    let mut relay = none;
    match plan.lie {
        0 => hardware = STRANGER,
        1 => ends.src = STRANGER,
        2 => ends.source = IpAddr::from([10, 0, 1, 98]),
        3 => relay = wrong,
        _ => {}
    }
    let mut message = vec![1, 1, 6, 0, 9, 8, 7, plan.way, 0, 1];
    message.extend([plan.way & 0x80, 0]);
    message.extend(octets(client));
    message.extend([0; 8]);
    message.extend(octets(relay));
    message.extend(hardware);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99]);
    message.extend(options);
    match plan.lie {
        4 => message[236] = 0,
        5 => message[1] = 6,
        6 => message.truncate(239),
        _ => {}
    }
    datagram(ends, (68, 67), &message, plan)
}

fn dhcp6(objects: &Objects, from: &v1::Port, plan: &AskPlan) -> Vec<u8> {
    let src = mac(&from.mac);
    let far = "fd00:9::9".parse().unwrap();
    let own = address(from, false).unwrap_or(far);
    let mut message = vec![plan.kind % 14, 1, 2, plan.way];
    let mut put = |code: u16, value: &[u8]| {
        message.extend(code.to_be_bytes());
        message.extend((value.len() as u16).to_be_bytes());
        message.extend(value);
    };
    if plan.lie != 0 {
        put(1, &[0, 3, 0, 1, 2, 0, 0, 0, 9, plan.way]);
    }
    // Mostly as it should be.
    let named = matches!(plan.kind % 14, 3 | 5 | 8 | 9) != (plan.lie == 1);
    if named {
        let mut duid = vec![0, 3, 0, 1];
        duid.extend(if plan.lie == 2 {
            STRANGER
        } else {
            gateway_mac(objects, from)
        });
        put(2, &duid);
    }
    if plan.way & 1 != 0 {
        put(14, &[]);
    }
    match plan.kind / 14 {
        0..4 => put(6, &[0, 59, 0, 24]),
        4..8 => put(6, &[0, 23]),
        _ => {}
    }
    if plan.kind % 14 != 11 || plan.lie == 3 {
        let mut association = vec![0, 0, 0, plan.way];
        association.extend([0; 8]);
        for (bit, address) in [(2, own), (4, far)] {
            if plan.way & bit != 0 {
                association.extend([0, 5, 0, 24]);
                association.extend(octets(address));
                association.extend([0; 8]);
            }
        }
        put(3, &association);
    }
    let mut ends = Ends {
        dst: [0x33, 0x33, 0, 1, 0, 2],
        src,
        source: match plan.way & 8 {
            0 => link_local(src),
            _ => own,
        },
        destination: match plan.way & 0x70 {
            0 => "ff05::1:3".parse().unwrap(),
            _ => "ff02::1:2".parse().unwrap(),
        },
    };
    match plan.lie {
        4 => ends.src = STRANGER,
        5 => ends.source = "fd00:1::98".parse().unwrap(),
        6 => message.truncate(3),
        _ => {}
    }
    datagram(ends, (546, 547), &message, plan)
}

fn datagram(ends: Ends, ports: (u16, u16), message: &[u8], plan: &AskPlan) -> Vec<u8> {
    let mut datagram = craft::udp(ends, ports, message);
    match plan.lie {
        7 => datagram[9] ^= 1,
        8 if ends.source.is_ipv4() => datagram[6..8].fill(0),
        _ => {}
    }
    craft::ip(ends, &Header::default(), UDP, &datagram)
}

fn solicitation(objects: &Objects, from: &v1::Port, plan: &AskPlan) -> Vec<u8> {
    let src = mac(&from.mac);
    let router = gateway_mac(objects, from);
    let unicast = plan.way & 4 != 0;
    let mut ends = Ends {
        dst: if unicast {
            router
        } else {
            [0x33, 0x33, 0, 0, 0, 2]
        },
        src,
        source: match plan.way & 3 {
            0 => "::".parse().unwrap(),
            1 => address(from, false).unwrap_or(link_local(src)),
            _ => link_local(src),
        },
        destination: if unicast {
            link_local(router)
        } else {
            "ff02::2".parse().unwrap()
        },
    };
    let mut option = src;
    match plan.lie {
        0 => option = STRANGER,
        1 => ends.src = STRANGER,
        2 => ends.source = "fd00:1::98".parse().unwrap(),
        _ => {}
    }
    let mut body = Vec::new();
    if !ends.source.is_unspecified() || plan.lie == 3 {
        body.extend([1, 1]);
        body.extend(option);
    }
    let header = Header {
        ttl: if plan.lie == 4 { 64 } else { 255 },
        ..Header::default()
    };
    let code = u8::from(plan.lie == 5);
    let mut message = craft::icmp(ends, 133, code, [0; 4], &body);
    if plan.lie == 6 {
        message[2] ^= 1;
    }
    craft::ip(ends, &header, 58, &message)
}
