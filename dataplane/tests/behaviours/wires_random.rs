//! Random traffic of ports on an external network, against a plain reading of what should become of it.
//!
//! `Plain` knows flows by their opener and rules by one port number; it shares nothing with the pipeline. `WEFT_WIRE_PACKETS` says how many packets are compared.

use std::collections::{BTreeMap, HashSet};

use weft_fabric::Fabric;

use crate::frames::{End, arp, udp, udp6};
use crate::wires::{GATEWAY, STATION, W1, W2, W3, tagged, wired};

/// Without time for a session to run out.
const OF_ONE_FABRIC: u64 = 2000;
const BROADCAST: [u8; 6] = [0xff; 6];
const PORTS: [(&str, &str, End); 3] = [("w1", "h1", W1), ("w2", "h1", W2), ("w3", "h2", W3)];

struct Rng(u64);

impl Rng {
    /// SplitMix64.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % end as u64) as usize
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// A datagram of a family, by the ends whose addresses it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Flow {
    v6: bool,
    from: [u8; 4],
    to: [u8; 4],
    ports: (u16, u16),
}

impl Flow {
    fn reversed(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
            ports: (self.ports.1, self.ports.0),
            ..self
        }
    }
}

/// A frame: ARP has no flow.
#[derive(Debug, Clone, Copy)]
struct Frame {
    src: [u8; 6],
    dst: [u8; 6],
    flow: Option<Flow>,
}

/// What should become of frames: the openers of the flows that each host knows.
#[derive(Default)]
struct Plain {
    opened: BTreeMap<&'static str, HashSet<Flow>>,
}

/// Who is on a host and has the MAC; all but the sender for a group.
fn receivers(host: &str, frame: &Frame) -> Vec<&'static str> {
    let here = PORTS.iter().filter(|(_, of, _)| *of == host);
    let meant = here.filter(|(_, _, end)| {
        end.mac != frame.src && (frame.dst == BROADCAST || end.mac == frame.dst)
    });
    meant.map(|(id, ..)| *id).collect()
}

impl Plain {
    /// From a port of the host: the ports of it that get the frame, and whether the wire does.
    fn port_sends(
        &mut self,
        host: &'static str,
        own: End,
        frame: &Frame,
    ) -> (Vec<&'static str>, bool) {
        let honest = frame.src == own.mac && frame.flow.is_none_or(|flow| flow.from == own.v4);
        if !honest {
            return (Vec::new(), false);
        }
        if frame.dst == own.mac {
            // Its own groups come before its way.
            if let Some(flow) = frame.flow
                && flow.reversed().ports.1 != 53
            {
                self.opened
                    .entry(host)
                    .or_default()
                    .remove(&flow.reversed());
            }
            return (Vec::new(), false);
        }
        let here = receivers(host, frame);
        if frame.dst == BROADCAST {
            return (admitted(here, frame), true);
        }
        let passes = self.passes(host, frame, (true, !here.is_empty()));
        let here_is_empty = here.is_empty();
        (
            if passes { here } else { Vec::new() },
            passes && here_is_empty,
        )
    }

    /// From the wire, at a host.
    fn wire_brings(&mut self, host: &'static str, frame: &Frame) -> Vec<&'static str> {
        let is_own = |mac: [u8; 6]| {
            PORTS
                .iter()
                .any(|(_, of, end)| *of == host && end.mac == mac)
        };
        if is_own(frame.src) {
            return Vec::new();
        }
        let here = receivers(host, frame);
        if frame.dst == BROADCAST {
            return admitted(here, frame);
        }
        let passes = !here.is_empty() && self.passes(host, frame, (false, true));
        if passes { here } else { Vec::new() }
    }

    /// Whether groups let a packet to one pass, at those of its two ends that are ports of the host.
    fn passes(
        &mut self,
        host: &'static str,
        frame: &Frame,
        (sender, receiver): (bool, bool),
    ) -> bool {
        let Some(flow) = frame.flow else {
            return true;
        };
        let opened = self.opened.entry(host).or_default();
        let is_answer = opened.contains(&flow.reversed());
        let opener = if is_answer { flow.reversed() } else { flow };
        // Whoever is sent to by the opener has a rule for one port; out, all passes.
        let is_asked = if is_answer { sender } else { receiver };
        let passes = !is_asked || opener.ports.1 == 53;
        if passes {
            opened.insert(opener);
        } else {
            opened.remove(&opener);
        }
        passes
    }
}

/// Those who have a rule for a packet to all.
fn admitted(here: Vec<&'static str>, frame: &Frame) -> Vec<&'static str> {
    match frame.flow {
        Some(flow) if flow.ports.1 != 53 => Vec::new(),
        _ => here,
    }
}

fn made(rng: &mut Rng, src: End, forged: bool) -> (Frame, Vec<u8>) {
    let all = [W1, W2, W3, STATION, GATEWAY];
    let mut sender = src;
    if forged && rng.below(12) == 0 {
        match rng.below(3) {
            0 => sender.mac = rng.pick(&all).mac,
            1 => {
                let other = rng.pick(&all);
                (sender.v4, sender.v6) = (other.v4, other.v6);
            }
            _ => sender = rng.pick(&all),
        }
    }
    let to = loop {
        let to = rng.pick(&all);
        // From an address to itself nothing goes.
        if to.v4 != sender.v4 {
            break to;
        }
    };
    let dst = match rng.below(8) {
        0 => BROADCAST,
        1 => rng.pick(&all).mac,
        _ => to.mac,
    };
    if rng.below(8) == 0 {
        let mut bytes = arp(sender.mac, 1, (sender.mac, sender.v4), ([0; 6], to.v4));
        bytes[..6].copy_from_slice(&dst);
        // The guard of a port looks at the address here, too.
        let frame = Frame {
            src: sender.mac,
            dst,
            flow: None,
        };
        let is_honest = sender.v4 == src.v4 || !forged;
        let frame = if is_honest {
            frame
        } else {
            Frame {
                dst: src.mac,
                ..frame
            }
        };
        return (frame, bytes);
    }
    let flow = Flow {
        v6: rng.below(3) == 0,
        from: sender.v4,
        to: to.v4,
        ports: (rng.pick(&[7, 8, 53]), rng.pick(&[7, 53, 53, 54])),
    };
    let make = if flow.v6 { udp6 } else { udp };
    let bytes = make(sender, to, dst, flow.ports, b"x");
    let frame = Frame {
        src: sender.mac,
        dst,
        flow: Some(flow),
    };
    (frame, bytes)
}

/// Sends one frame and compares. Answers how many ports got it.
fn step(rng: &mut Rng, fabric: &mut Fabric, plain: &mut Plain, vlan: u16) -> u64 {
    fabric.now += 1;
    fabric.outside.clear();
    let on_wire = |bytes: &[u8]| match vlan {
        0 => bytes.to_vec(),
        _ => tagged(bytes, vlan.to_be_bytes()),
    };
    let (mut wanted, mut outside) = (Vec::new(), 0);
    let (frame, bytes, out);
    if rng.below(5) < 3 {
        let (id, host, own) = rng.pick(&PORTS);
        (frame, bytes) = made(rng, own, true);
        let (here, leaves) = plain.port_sends(host, own, &frame);
        wanted.extend(here);
        if leaves {
            let other = if host == "h1" { "h2" } else { "h1" };
            // A switch knows whom a MAC is behind.
            let there = receivers(other, &frame);
            if !there.is_empty() {
                wanted.extend(plain.wire_brings(other, &frame));
            }
            outside = usize::from(there.is_empty() || frame.dst == BROADCAST);
        }
        out = fabric.send(id, &bytes);
    } else {
        let host = rng.pick(&["h1", "h2"]);
        (frame, bytes) = made(rng, STATION, false);
        let mut frame = frame;
        let mut sent = bytes.clone();
        if rng.below(20) == 0 {
            // It comes back.
            frame.src = W1.mac;
            sent[6..12].copy_from_slice(&W1.mac);
        }
        let strays = vlan != 0 && rng.below(20) == 0;
        if !strays {
            wanted.extend(plain.wire_brings(host, &frame));
        }
        let sent = if strays { sent } else { on_wire(&sent) };
        out = fabric.send_from_uplink(host, 1, &sent);
        assert!(out.iter().all(|it| it.frame[12..] == bytes[12..]));
    }
    let mut got: Vec<&str> = out.iter().map(|it| it.port.as_str()).collect();
    got.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(got, wanted, "{frame:?}: {:?}", fabric.all_drops());
    assert_eq!(fabric.outside.len(), outside, "{frame:?}: onto the wire");
    for (_, left) in &fabric.outside {
        assert_eq!(*left, on_wire(&bytes), "as it was, with its tag");
    }
    got.len() as u64
}

#[test]
fn what_becomes_of_frames_is_what_a_plain_reading_says() {
    let packets = std::env::var("WEFT_WIRE_PACKETS").ok();
    let packets = packets.and_then(|text| text.parse().ok()).unwrap_or(20_000);
    let mut delivered = 0;
    for seed in 0..u64::div_ceil(packets, OF_ONE_FABRIC) {
        let mut rng = Rng(seed);
        let vlan = [0, 321][seed as usize % 2];
        let mut fabric = wired(|objects| objects.external_networks[0].vlan = vlan.into());
        let mut plain = Plain::default();
        for _ in 0..OF_ONE_FABRIC {
            delivered += step(&mut rng, &mut fabric, &mut plain, vlan);
        }
        assert_eq!(
            fabric.crossed,
            Vec::<Vec<u8>>::new(),
            "no tunnel has any of it"
        );
        assert_eq!(fabric.missing_frames(), 0);
        for host in fabric.hosts.values() {
            assert_eq!(host.unaccounted(), 0, "{}", host.id);
        }
    }
    // So that nobody mistakes silence for agreement.
    assert!(delivered > packets / 4, "{delivered} of {packets}");
}
