//! Frames from the segment of an external network, and what gateway hosts tell each other. Asserts what `packets` does, that no packet leaves
//! with an address that is not held, and that mappings go with their sessions.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv6Addr};

use weft_dataplane::packet::Mac;
use weft_dataplane::packet::parse::word_address;
use weft_dataplane::pipeline::Settings;
use weft_dataplane::snapshot::compile::ExternalLink;
use weft_fabric::{Delivered, Fabric};
use weft_proto::state::State;

use crate::fabric::{LIFETIME, LIMITS, LONG};
use crate::packets::{is_red, records, tunnel};

const HOSTS: [&str; 2] = ["h1", "h2"];
const PORTS: [&str; 8] = ["a1", "a2", "a3", "b1", "b3", "r1", "r2", "r3"];
const ROUTER: [u8; 6] = [0x02, 0x77, 0x65, 0x66, 0x74, 0x01];
/// A station on the segment.
const STATION: [u8; 6] = [0x0a, 0, 0, 0, 0, 1];
/// The uplink that leads to the segment.
const SEGMENT: u16 = 1;
/// How long a mapping may outlive its sessions, in milliseconds.
const MAPPING: u32 = 10_000;

thread_local! {
    static FABRIC: RefCell<Option<Fabric>> = const { RefCell::new(None) };
}

/// The MAC of a gateway host's interface on the segment.
fn mac(host: &str) -> [u8; 6] {
    [6, 0, 0, 0, 1, if host == "h1" { 1 } else { 2 }]
}

fn new() -> Fabric {
    let objects = serde_yaml_ng::from_str(include_str!("outside.yaml")).expect("the file is good");
    let state = State::from_objects(objects).expect("each object once");
    let settings = Settings {
        ports: 16,
        ..Settings::default()
    };
    let mut fabric = Fabric::new(state.clone(), &settings, LIMITS).expect("no rule is broken");
    fabric.add_worker();
    for host in HOSTS {
        let link = ExternalLink {
            physical_network: "physnet1".into(),
            uplink: SEGMENT,
            mac: Mac::from_bytes(mac(host)),
            mtu: 1500,
            has_tunnels: false,
        };
        fabric.externals.insert(host.into(), vec![link]);
    }
    fabric.set(state).expect("no rule is broken");
    // Both gateway hosts hear each other, and have nothing to tell.
    fabric.live(2000).expect("no rule is broken");
    fabric.outside.clear();
    fabric
}

/// Lends the fabric out, with next hops that have answered. After that no buffer may be missing, every packet must be accounted for, and no session
/// and no mapping may be left.
fn with(act: impl FnOnce(&mut Fabric)) {
    FABRIC.with_borrow_mut(|kept| {
        let fabric = kept.get_or_insert_with(new);
        pass_time(fabric, 100);
        act(fabric);
        check_outside(fabric);
        fabric.crossed.clear();
        fabric.advance(LONG);
        fabric.carry();
        fabric.advance(MAPPING);
        fabric.carry();
        check_outside(fabric);
        fabric.crossed.clear();
        assert_eq!(fabric.missing_frames(), 0, "frames leaked");
        for (id, host) in &fabric.hosts {
            assert_eq!(host.unaccounted(), 0, "packets unaccounted for on {id}");
            let sessions = &host.shared.sessions;
            let live = sessions.statistics().live;
            assert_eq!(live, 0, "sessions that do not expire on {id}");
            let mappings = sessions.mappings().count();
            assert_eq!(mappings, 0, "mappings that outlive their sessions on {id}");
        }
        if fabric.now > LIFETIME {
            *kept = None;
        }
    });
}

/// The frame without its VLAN tag.
fn untagged(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if frame.get(12..14) == Some(&[0x81, 0]) && frame.len() > 18 {
        frame.drain(12..16);
    }
    frame
}

/// Whatever is sent onto the segment comes from an address that the sender holds there.
fn check_outside(fabric: &mut Fabric) {
    for (host, frame) in std::mem::take(&mut fabric.outside) {
        let plain = untagged(&frame);
        let source = match plain.get(12..14) {
            Some([8, 0]) => <[u8; 4]>::try_from(&plain[26..30]).map(IpAddr::from),
            Some([0x86, 0xdd]) => <[u8; 16]>::try_from(&plain[22..38]).map(IpAddr::from),
            _ => continue,
        };
        let source = source.expect("as long as it says");
        let outside = &fabric.hosts[&host].pipeline.snapshot().outside;
        let is_held = outside
            .held
            .keys()
            .any(|held| word_address(*held) == source);
        let is_of_link = matches!(source, IpAddr::V6(v6) if v6 == Ipv6Addr::UNSPECIFIED || v6.is_unicast_link_local());
        assert!(
            is_held || is_of_link,
            "{host} has sent a packet of {source} to the segment: {frame:02x?}"
        );
    }
}

/// Lets time pass, and has every question on the segment answered.
fn pass_time(fabric: &mut Fabric, milliseconds: u32) {
    fabric.advance(milliseconds);
    fabric.carry();
    let frames = fabric.outside.clone();
    check_outside(fabric);
    for (host, frame) in frames {
        let plain = untagged(&frame);
        let reply = match plain.get(12..14) {
            Some([8, 6]) if plain[21] == 1 && plain[28..32] != plain[38..42] => {
                let mut reply = plain.clone();
                reply[..6].copy_from_slice(&plain[6..12]);
                reply[6..12].copy_from_slice(&STATION);
                reply[21] = 2;
                reply[22..28].copy_from_slice(&STATION);
                reply[28..32].copy_from_slice(&plain[38..42]);
                reply[32..42].copy_from_slice(&plain[22..32]);
                reply
            }
            Some([0x86, 0xdd]) if plain.get(54) == Some(&135) => advertisement(&plain),
            _ => continue,
        };
        let vlan = frame[12..14] == [0x81, 0];
        fabric.send_from_uplink(&host, SEGMENT, &tagged(reply, vlan));
    }
}

fn tagged(mut frame: Vec<u8>, vlan: bool) -> Vec<u8> {
    if vlan && frame.len() >= 12 {
        frame.splice(12..12, [0x81, 0, 0, 42]);
    }
    frame
}

/// What a station answers to a neighbour solicitation (RFC 4861 §4.4).
fn advertisement(solicitation: &[u8]) -> Vec<u8> {
    let (target, source) = (&solicitation[62..78], &solicitation[22..38]);
    let mut body = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    body.extend(target);
    body.extend([2, 1]);
    body.extend(STATION);
    let length = body.len() as u16;
    let pseudo = [
        target,
        source,
        &[0, 0],
        &length.to_be_bytes(),
        &[0, 0, 0, 58],
    ]
    .concat();
    let sum = checksum(&[pseudo, body.clone()].concat());
    body[2..4].copy_from_slice(&sum);
    let head = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[58, 255]].concat();
    [
        &solicitation[6..12],
        &STATION,
        &[0x86, 0xdd],
        &head,
        target,
        source,
        &body,
    ]
    .concat()
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
}

/// An IP packet behind an Ethernet header, with a length and a header checksum that are right.
fn framed(macs: ([u8; 6], [u8; 6]), packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let is_v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    let length = packet.len() as u16;
    if is_v6 && packet.len() >= 40 {
        packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
    } else if packet.len() >= 20 {
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[10..12].copy_from_slice(&[0, 0]);
        let head = (usize::from(packet[0] & 15) * 4).clamp(20, packet.len());
        let sum = checksum(&packet[..head]);
        packet[10..12].copy_from_slice(&sum);
    }
    let kind: &[u8] = if is_v6 { &[0x86, 0xdd] } else { &[8, 0] };
    [&macs.0, &macs.1, kind, &packet].concat()
}

/// The answer to a frame, as far as swapped ends make it one.
fn reversed(frame: &[u8]) -> Vec<u8> {
    let mut frame = untagged(frame);
    if frame.len() < 54 {
        return frame;
    }
    let (l3, l4, size, protocol) = if frame[12] == 8 {
        (26, 34, 4, frame[23])
    } else {
        (22, 54, 16, frame[20])
    };
    let swap = |frame: &mut Vec<u8>, at: usize, size: usize| {
        if frame.len() >= at + 2 * size {
            let (a, b) = frame[at..at + 2 * size].split_at_mut(size);
            a.swap_with_slice(b);
        }
    };
    swap(&mut frame, 0, 6);
    swap(&mut frame, l3, size);
    if matches!(protocol, 6 | 17) {
        swap(&mut frame, l4, 2);
    } else if let Some(kind) = frame.get_mut(l4) {
        *kind = match *kind {
            8 => 0,
            128 => 129,
            other => other,
        };
    }
    frame
}

/// An ICMP error (RFC 792) from the next hop about a frame that it got.
fn error(frame: &[u8], kind: u8, code: u8) -> Vec<u8> {
    let plain = untagged(frame);
    let Some(quoted) = plain.get(14..) else {
        return plain;
    };
    let Some(to) = quoted.get(12..16) else {
        return plain;
    };
    let mut message = vec![kind, code, 0, 0, 0, 0, 5, 0];
    message.extend(&quoted[..quoted.len().min(64)]);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 1, 0, 0, 203, 0, 113, 1];
    packet.extend(to);
    packet.extend(message);
    let mut macs = ([0; 6], STATION);
    macs.0.copy_from_slice(&plain[6..12]);
    framed(macs, &packet)
}

/// No input reaches two tenants.
fn assert_one_tenant(delivered: &[Delivered]) {
    if let Some(first) = delivered.first() {
        let red = is_red(&first.port);
        assert!(
            delivered.iter().all(|out| is_red(&out.port) == red),
            "two tenants got a frame"
        );
    }
}

/// Does one thing that somebody outside, or a port, may do. `last`: the frame that was sent onto the segment last, and who sent it.
fn act(
    fabric: &mut Fabric,
    [how, a, b]: [u8; 3],
    frame: &[u8],
    last: &mut Option<(String, Vec<u8>)>,
) {
    let host = HOSTS[usize::from(how >> 4 & 1)];
    let port = PORTS[usize::from(a) % PORTS.len()];
    let vlan = how & 8 != 0;
    fabric.worker = usize::from(how >> 5 & 1);
    let delivered = match how & 7 {
        0 => fabric.send_from_uplink(host, SEGMENT, frame),
        1 => {
            let frame = tagged(framed((mac(host), STATION), frame), vlan);
            fabric.send_from_uplink(host, SEGMENT, &frame)
        }
        2 => fabric.send(port, frame),
        3 => {
            let number = PORTS.iter().position(|other| *other == port).unwrap_or(0);
            let own = [
                [1, 1],
                [1, 2],
                [1, 3],
                [2, 1],
                [2, 3],
                [1, 1],
                [1, 2],
                [1, 3],
            ][number];
            fabric.send(port, &framed((ROUTER, [2, 0, 0, 0, own[0], own[1]]), frame))
        }
        4 => {
            pass_time(fabric, u32::from(a) * 100);
            Vec::new()
        }
        kind => {
            let Some((host, sent)) = last.clone() else {
                return;
            };
            let vlan = sent.get(12..14) == Some(&[0x81, 0]);
            let mut answer = if kind == 5 {
                reversed(&sent)
            } else {
                error(&sent, a, b)
            };
            // And one byte of it is another.
            if kind == 7
                && let Some(byte) = answer.get_mut(usize::from(b))
            {
                *byte ^= a;
            }
            fabric.send_from_uplink(&host, SEGMENT, &tagged(answer, vlan))
        }
    };
    assert_one_tenant(&delivered);
    if let Some(sent) = fabric.outside.last() {
        *last = Some(sent.clone());
    }
    check_outside(fabric);
}

/// Records of what is done (see [`act`]), two bytes that say how, length (two bytes), frame or IP packet.
pub fn from_outside(input: &[u8]) {
    with(|fabric| {
        let mut last = None;
        records(input, |head, frame| act(fabric, head, frame, &mut last));
    });
}

/// The head of a frame from one host's daemon to another's (RFC 8971).
fn daemon_frame(port: u16, payload: &[u8]) -> Vec<u8> {
    let mac = [0x00, 0x52, 0x02, 0, 0, 0];
    let length = (8 + payload.len()) as u16;
    let mut packet = vec![
        0x45, 0xc0, 0, 0, 0, 0, 0, 0, 255, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1,
    ];
    packet.extend([0xc0, 0]);
    packet.extend(port.to_be_bytes());
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    framed((mac, mac), &packet)
}

/// A session as a gateway host tells of it, from a few bytes that choose what is in it.
fn told(choice: &[u8]) -> [u8; 84] {
    let at = |place: usize| choice.get(place).copied().unwrap_or(0);
    let vni = |choice: u8| match choice & 3 {
        0 => 0u32,
        1 => 100,
        2 => 200,
        _ => u32::from(choice) << 20,
    };
    let address = |choice: u8| -> [u8; 16] {
        let v4: [u8; 4] = match choice >> 5 {
            0 | 1 => [10, 0, 1, 11 + choice % 3],
            2 => [203, 0, 113, 5 + choice % 9],
            3 | 4 => [198, 51, 100, choice & 31],
            5 => [203, 0, 113, choice],
            6 => [10, 0, 2, 11 + choice % 3],
            _ => {
                let mut v6 = [
                    0x20,
                    1,
                    0xd,
                    0xb8,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    choice & 31,
                ];
                if choice & 16 != 0 {
                    v6[..4].copy_from_slice(&[0xfd, 0, 0, 1]);
                }
                return v6;
            }
        };
        let mut mapped = [0; 16];
        (mapped[10], mapped[11]) = (0xff, 0xff);
        mapped[12..].copy_from_slice(&v4);
        mapped
    };
    let mut record = [0; 84];
    record[0] = [6, 17, 1, 58][usize::from(at(0)) & 3];
    (record[1], record[2]) = (at(1), at(0) >> 2 & 1);
    record[4..8].copy_from_slice(&vni(at(2)).to_be_bytes());
    record[8..12].copy_from_slice(&vni(at(3)).to_be_bytes());
    for (place, choice) in [(12, 4), (28, 5), (48, 6), (64, 7)] {
        record[place..place + 16].copy_from_slice(&address(at(choice)));
    }
    for (place, choice) in [(44, 8), (46, 10), (80, 12), (82, 14)] {
        record[place..place + 2].copy_from_slice(&[at(choice), at(choice + 1)]);
    }
    record
}

/// Records of who sends what in the tunnel outside of every VPC, two bytes that say more, length (two bytes), payload; or of what ports and the segment
/// do meanwhile.
pub fn from_fellows(input: &[u8]) {
    with(|fabric| {
        let mut last = None;
        records(input, |[how, a, b], bytes| {
            if how & 0x80 == 0 {
                return act(fabric, [how, a, b], bytes, &mut last);
            }
            let ends = match how >> 3 & 3 {
                0 => ("h1", "h2"),
                1 => ("h2", "h1"),
                2 => ("h3", "h1"),
                _ => ("h3", "h2"),
            };
            fabric.worker = usize::from(how >> 5 & 1);
            let head = |kind, count| [b'w', b'e', b'f', b't', 1, kind, count, 0];
            let inner = match how & 7 {
                0 => bytes.to_vec(),
                1 => daemon_frame(7473, bytes),
                2 => daemon_frame(3784, bytes),
                3 => daemon_frame(7473, &[&head(a, b), bytes].concat()),
                4 => daemon_frame(7473, &head(2, 0)),
                5 => daemon_frame(u16::from_be_bytes([a, b]), bytes),
                _ => {
                    let sessions: Vec<_> = bytes.chunks(16).take(15).map(told).collect();
                    let count = sessions.len() as u8;
                    daemon_frame(7473, &[&head(1, count), &sessions.concat()[..]].concat())
                }
            };
            let outer = tunnel(ends, (how & 0x40 != 0, false), 0, &inner);
            let delivered = fabric.send_from_underlay(ends.1, &outer);
            assert!(delivered.is_empty(), "a port got what is for the host");
            check_outside(fabric);
        });
    });
}
