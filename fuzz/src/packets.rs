//! Packets from guests and from the underlay. Asserts: no panic, no lost buffer, every packet accounted for, and no byte of one tenant
//! reaches the other.

use weft_dataplane::packet::{Offload, Segments};
use weft_fabric::Delivered;

use crate::fabric;

const PORTS: [&str; 7] = ["a1", "a2", "a3", "b1", "b2", "r1", "r2"];

/// Bytes ahead of each frame.
const HEAD: usize = 5;

pub(crate) fn records(mut input: &[u8], mut take: impl FnMut([u8; HEAD - 2], &[u8])) {
    while let Some((head, rest)) = input.split_first_chunk::<HEAD>() {
        let len = usize::from(u16::from_le_bytes([head[3], head[4]]));
        let (frame, rest) = rest.split_at(len.min(rest.len()));
        take([head[0], head[1], head[2]], frame);
        input = rest;
    }
}

pub(crate) fn is_red(port: &str) -> bool {
    port.starts_with('r')
}

fn assert_isolated(red: bool, delivered: &[Delivered]) {
    for out in delivered {
        assert_eq!(
            is_red(&out.port),
            red,
            "{} got another tenant's frame",
            out.port
        );
    }
}

/// Records of port, offload and worker, size of segments in units of 32 bytes, length (two bytes), frame.
pub fn from_ports(input: &[u8]) {
    fabric::with(|fabric| {
        records(input, |[port, how, size], frame| {
            let port = PORTS[usize::from(port) % PORTS.len()];
            fabric.worker = usize::from(how >> 4 & 1);
            if how & 0x20 != 0 {
                fabric.advance(u32::from(size) * 100);
            }
            let segments = match how & 7 {
                1 => Segments::Tcp4,
                2 => Segments::Tcp6,
                3 => Segments::Udp,
                _ => Segments::None,
            };
            let offload = Offload {
                segments,
                size: u16::from(size) * 32,
            };
            let delivered = if how & 8 != 0 {
                fabric.send_segment(port, frame, offload)
            } else {
                fabric.send(port, frame)
            };
            assert_isolated(is_red(port), &delivered);
        });
    });
}

/// Records of who sends to whom in what tunnel, two bytes of the VNI, length (two bytes), frame: as it is, or inside a tunnel that is right.
pub fn from_uplink(input: &[u8]) {
    fabric::with(|fabric| {
        records(input, |[how, low, high], frame| {
            let (to, from) = if how & 1 != 0 {
                ("h1", "h2")
            } else {
                ("h2", "h1")
            };
            fabric.worker = usize::from(how >> 5 & 1);
            if how & 2 != 0 {
                let delivered = fabric.send_from_underlay(to, frame);
                // What is on the wire may be of either tenant, never of both.
                if let Some(first) = delivered.first() {
                    assert_isolated(is_red(&first.port), &delivered);
                }
                return;
            }
            let vni = u32::from(u16::from_le_bytes([low, high]));
            let from = if how & 16 != 0 { "router" } else { from };
            let outer = tunnel((from, to), (how & 4 != 0, how & 8 != 0), vni, frame);
            let delivered = fabric.send_from_underlay(to, &outer);
            assert_isolated(vni == 200, &delivered);
        });
    });
}

/// A frame inside VXLAN or GRE over IPv4 or IPv6, from one host's address to another's.
pub(crate) fn tunnel(
    (from, to): (&str, &str),
    (gre, v6): (bool, bool),
    vni: u32,
    inner: &[u8],
) -> Vec<u8> {
    let number = match (from, to) {
        ("router", _) => 9,
        ("h3", _) => 3,
        ("h1", _) => 1,
        _ => 2,
    };
    let own = if to == "h1" { 1 } else { 2 };
    let address = |number: u8| match v6 {
        true => [
            0x20, 1, 0xd, 0xb8, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, number,
        ]
        .to_vec(),
        false => vec![192, 0, 2, number],
    };
    let (from, to) = (address(number), address(own));
    let mut payload = Vec::new();
    if gre {
        payload.extend([0x20, 0, 0x65, 0x58]);
        payload.extend(vni.to_be_bytes());
    } else {
        let length = (16 + inner.len()) as u16;
        payload.extend([0xc0, 0, 0x12, 0xb5]);
        payload.extend(length.to_be_bytes());
        payload.extend([0, 0, 8, 0, 0, 0]);
        payload.extend((vni << 8).to_be_bytes());
    }
    payload.extend(inner);
    let protocol = if gre { 47 } else { 17 };
    let mut frame = vec![2; 12];
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((payload.len() as u16).to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend(from);
        frame.extend(to);
    } else {
        let mut header = vec![0x45, 0];
        header.extend(((20 + payload.len()) as u16).to_be_bytes());
        header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        header.extend(from);
        header.extend(to);
        let words = header
            .chunks(2)
            .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
        let sum: u32 = words.sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend([8, 0]);
        frame.extend(header);
    }
    frame.extend(payload);
    frame
}
