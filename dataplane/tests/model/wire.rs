//! What else comes off the wire: frames that crossed, again or changed, and questions of equipment behind a tunnel.

use std::net::IpAddr;

use weft_proto::v1::Objects;

use crate::craft;
use crate::generate::WirePlan;
use crate::semantics::frame::{
    Decoded, IP, RST, UDP, decode, ones_sum, pseudo_header, v4_at, v6_at, word,
};

use crate::traffic::{self, pick};

const VXLAN: u16 = 4789;

/// A tunnel packet in its parts.
struct Parts {
    source: IpAddr,
    destination: IpAddr,
    class: u8,
    protocol: u8,
    /// Behind the IP header: UDP and VXLAN, or GRE.
    header: Vec<u8>,
    inner: Vec<u8>,
}

impl Parts {
    /// Of a frame that a host has sent.
    fn of(frame: &[u8]) -> Self {
        let ip = &frame[IP..];
        let v4 = word(frame, 12) == 0x0800;
        let (source, destination, protocol, l4) = match v4 {
            true => (v4_at(ip, 12), v4_at(ip, 16), ip[9], 20),
            false => (v6_at(ip, 8), v6_at(ip, 24), ip[6], 40),
        };
        let header = if protocol == UDP { 16 } else { 8 };
        Self {
            source,
            destination,
            class: if v4 { ip[1] } else { ip[0] << 4 | ip[1] >> 4 },
            protocol,
            header: ip[l4..l4 + header].to_vec(),
            inner: ip[l4 + header..].to_vec(),
        }
    }

    fn is_vxlan(&self) -> bool {
        self.protocol == UDP
    }

    fn set_vni(&mut self, vni: u32) {
        if self.is_vxlan() {
            self.header[12..16].copy_from_slice(&(vni << 8).to_be_bytes());
        } else {
            self.header[4..8].copy_from_slice(&vni.to_be_bytes());
        }
    }

    /// Gives GRE another field behind its first four bytes.
    fn add_field(&mut self, flag: u8, at: usize) {
        self.header[0] |= flag;
        self.header.splice(at..at, [0; 4]);
    }

    /// The tunnel's checksum, for the header as it is now.
    fn checksum(&mut self) {
        if self.is_vxlan() {
            self.set_length();
            let length = self.header.len() + self.inner.len();
            let pseudo = pseudo_header(self.source, self.destination, UDP, length);
            let sum = !ones_sum(&[&pseudo, &self.header, &self.inner]);
            let sum = if sum == 0 { 0xffff } else { sum };
            self.header[6..8].copy_from_slice(&sum.to_be_bytes());
        } else {
            let sum = !ones_sum(&[&self.header, &self.inner]);
            self.header[4..6].copy_from_slice(&sum.to_be_bytes());
        }
    }

    fn set_length(&mut self) {
        let length = (self.header.len() + self.inner.len()) as u16;
        if self.is_vxlan() {
            self.header[4..6].copy_from_slice(&length.to_be_bytes());
        }
    }

    fn frame(&self) -> Vec<u8> {
        let ends = craft::Ends {
            dst: [6; 6],
            src: [6; 6],
            source: self.source,
            destination: self.destination,
        };
        let header = craft::Header {
            class: self.class,
            ..craft::Header::default()
        };
        let payload = [&self.header[..], &self.inner].concat();
        craft::ip(ends, &header, self.protocol, &payload)
    }
}

/// The next frame for a host, made of one that crossed before; none where the plan asks for what cannot be.
pub fn frame(objects: &Objects, before: &[u8], plan: &WirePlan) -> Option<Vec<u8>> {
    let mut parts = Parts::of(before);
    // An old reset lies before the window, and how far it may is not modelled.
    if let Ok(Decoded::Ip(packet)) = decode(&parts.inner)
        && packet.tcp.is_some_and(|tcp| tcp.has(RST))
    {
        return None;
    }
    let [high, low] = plan.value.to_be_bytes();
    let v4 = parts.source.is_ipv4();
    let addresses: Vec<IpAddr> = objects
        .hosts
        .iter()
        .flat_map(|host| &host.vteps)
        .map(|vtep| vtep.parse().unwrap())
        .chain(["192.0.2.77", "2001:db8:ffff::77"].map(|text| text.parse().unwrap()))
        .filter(|address: &IpAddr| address.is_ipv4() == v4)
        .collect();
    match plan.change {
        0 => parts.class = parts.class & !3 | low & 3,
        1 if parts.is_vxlan() => parts.checksum(),
        1 => {
            parts.add_field(0x80, 4);
            parts.checksum();
        }
        2 if parts.is_vxlan() => {
            parts.checksum();
            parts.header[6] ^= 1 + low % 7;
        }
        2 => {
            parts.add_field(0x80, 4);
            parts.checksum();
            parts.header[4] ^= 1 + low % 7;
        }
        3 if parts.is_vxlan() => parts.header[8] = low,
        // A bit at a time: most mean nothing, some are refused, some announce fields.
        3 => parts.header[usize::from(low & 1)] ^= 1 << (high & 7),
        4 if parts.is_vxlan() => {
            parts.header[9..12].fill(low);
            parts.header[15] = low;
        }
        4 => {
            parts.add_field(0x10, 8);
            if low & 1 != 0 {
                parts.add_field(0x80, 4);
                parts.checksum();
            }
        }
        5 => parts.set_vni(100 + u32::from(low % 5)),
        6 => parts.source = *pick(&addresses, low),
        7 => parts.destination = *pick(&addresses, low),
        8 => {
            let shorter = parts.inner.len() - usize::from(plan.value) % parts.inner.len();
            let tcp =
                matches!(decode(&parts.inner), Ok(Decoded::Ip(packet)) if packet.tcp.is_some());
            // What is cut behind the IP packet is padding.
            parts.inner.truncate(if tcp { 40 } else { shorter });
        }
        9 => parts.inner[..6].copy_from_slice(&[2, 0, 0, 0, 1 + low % 3, 1 + high % 6]),
        10 => parts.inner[6..12].copy_from_slice(&[2, 0, 0, 0, 1 + low % 3, 1 + high % 6]),
        11 => parts.inner[..6].copy_from_slice(&[0x02, 0x77, 0x65, 0x66, 0x74, 0x01]),
        12 => parts.inner[12..14].copy_from_slice(&[0x81, 0]),
        13 | 14 => parts.inner = question(objects, plan)?,
        15 => parts.protocol = low,
        16 if parts.is_vxlan() => parts.header[2..4].copy_from_slice(&(VXLAN + 1).to_be_bytes()),
        16 => parts.header[3] = low,
        17 => parts.inner = (0..low).map(|i| i ^ high).collect(),
        _ => {}
    }
    // The checksum was made with its length.
    if !matches!(plan.change, 1 | 2) && parts.is_vxlan() {
        parts.set_length();
    }
    let mut frame = parts.frame();
    let l4 = IP + if v4 { 20 } else { 40 };
    match plan.change {
        18 if v4 => frame[IP + 10] ^= 1,
        19 if v4 => frame[IP + 6] = low & 0x3f,
        20 if v4 => {
            frame.splice(l4..l4, [1, 1, 1, 0]);
            frame[IP] = 0x46;
            frame[IP + 3] = frame[IP + 3].wrapping_add(4);
        }
        21 => frame.truncate(usize::from(plan.value) % frame.len()),
        22 => {
            for _ in 0..low % 4 {
                let tag = if high & 1 != 0 {
                    [0x81, 0]
                } else {
                    [0x88, 0xa8]
                };
                frame.splice(12..12, [tag[0], tag[1], 0, 7]);
            }
        }
        23 => frame.extend(vec![0xee; usize::from(low)]),
        24 => {
            let at = IP + if v4 { 2 } else { 4 };
            let lie = word(&frame, at).wrapping_add(low.into()).wrapping_sub(128);
            frame[at..at + 2].copy_from_slice(&lie.to_be_bytes());
        }
        25 if frame[l4 - 20 + if v4 { 9 } else { 0 }] == UDP || !v4 => {
            let lie = word(&frame, l4 + 4)
                .wrapping_add(low.into())
                .wrapping_sub(128);
            frame[l4 + 4..l4 + 6].copy_from_slice(&lie.to_be_bytes());
        }
        26 => frame[IP] = low,
        _ => {}
    }
    if matches!(plan.change, 19 | 20 | 24) && v4 {
        craft::fix_ipv4_checksum(&mut frame);
    }
    Some(frame)
}

/// Equipment behind a tunnel asks for a neighbour.
fn question(objects: &Objects, plan: &WirePlan) -> Option<Vec<u8>> {
    let [high, low] = plan.value.to_be_bytes();
    let asker = [2, 0, 0, 0, 0x66, low];
    let v4 = plan.change == 13;
    let port = objects
        .ports
        .get(usize::from(low) % objects.ports.len().max(1))?;
    let target = match high % 4 {
        0 => *traffic::gateways(objects, &port.vpc, v4).first()?,
        1 => if v4 { "10.0.1.77" } else { "fd00:1::77" }.parse().unwrap(),
        _ => traffic::address(port, v4)?,
    };
    Some(match target {
        IpAddr::V4(_) => {
            let operation = if high & 0x40 != 0 { 2 } else { 1 };
            let sender = (asker, "10.0.9.1".parse().unwrap());
            craft::arp(asker, operation, sender, ([0; 6], target))
        }
        IpAddr::V6(target) => {
            let source = "fd00:9::1".parse().unwrap();
            craft::solicit(asker, asker, source, target)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::outer;

    #[test]
    fn a_frame_taken_apart_and_put_together_is_the_same() {
        let inner = [[2; 14].as_slice(), &[0; 40]].concat();
        for (protocol, header) in [
            (
                UDP,
                vec![0xc0, 0, 0x12, 0xb5, 0, 70, 0, 0, 8, 0, 0, 0, 0, 0, 100, 0],
            ),
            (47, vec![0x20, 0, 0x65, 0x58, 0, 0, 0, 100]),
        ] {
            let parts = Parts {
                source: "192.0.2.1".parse().unwrap(),
                destination: "192.0.2.2".parse().unwrap(),
                class: 3,
                protocol,
                header,
                inner: inner.clone(),
            };
            let frame = parts.frame();
            assert_eq!(Parts::of(&frame).frame(), frame);
            let outer = outer::decode(&frame).unwrap();
            assert_eq!((outer.vni, outer.inner), (100, inner.clone()));
        }
    }
}
