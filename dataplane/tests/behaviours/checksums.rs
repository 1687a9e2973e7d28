//! Checksums that a container's kernel left to its device: inside of its own tunnels too, and SCTP's.

use crate::frames::{A1, A2, B1, B2, read, tcp, udp, udp6};
use crate::topology::fabric;

/// The sum of the pseudo-header alone, as the kernel leaves it, in place of a right TCP or UDP checksum of an IPv4 frame.
fn leave_to_device(frame: &mut [u8]) {
    let ip = &frame[14..];
    let at = if ip[9] == 6 { 16 } else { 6 };
    let len = u16::from_be_bytes([ip[2], ip[3]]) - 20;
    let words = ip[12..20]
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum = words.sum::<u32>() + u32::from(ip[9]) + u32::from(len);
    let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
    frame[34 + at..36 + at].copy_from_slice(&sum.to_be_bytes());
}

/// An IPv4 packet of any protocol, from a1 to a2.
fn ip(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = udp(A1, A2, A2.mac, (0, 0), &[]);
    frame.truncate(34);
    frame.extend_from_slice(payload);
    frame[16..18].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    frame[23] = protocol;
    frame[24..26].fill(0);
    let sum: u32 = frame[14..34]
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn packets_inside_of_a_guests_own_tunnels_get_their_checksums() {
    for right in [
        tcp(B1, B2, B2.mac, (40_000, 80), "A", (7, 9), 700),
        udp(B1, B2, B2.mac, (40_000, 53), &[3; 333]),
    ] {
        let mut left = right.clone();
        leave_to_device(&mut left);
        assert_ne!(left, right);
        let vxlan = |inner: &[u8]| [&[8, 0, 0, 0, 0, 0, 7, 0][..], inner].concat();
        let geneve =
            |inner: &[u8]| [&[1, 0, 0x65, 0x58, 0, 0, 7, 0, 1, 2, 3, 4][..], inner].concat();
        // Over UDP, of which the outer checksum is right already; more than once, since a session takes the fast path.
        for port in [4789, 8472, 6081] {
            let body = |inner: &[u8]| {
                if port == 6081 {
                    geneve(inner)
                } else {
                    vxlan(inner)
                }
            };
            for v6 in [false, true] {
                let datagram = |inner: &[u8]| {
                    let make = if v6 { udp6 } else { udp };
                    make(A1, A2, A2.mac, (50_000, port), &body(inner))
                };
                let expected = datagram(&right);
                let mut sent = expected.clone();
                let at = sent.len() - left.len();
                sent[at..].copy_from_slice(&left);
                let mut fabric = fabric(|_| {});
                for _ in 0..3 {
                    let out = fabric.send("a1", &sent);
                    assert_eq!(out[0].frame, expected, "port {port}");
                    read(&out[0].frame);
                }
            }
        }
        // GRE, with and without its optional fields; IP in IP.
        let mut fabric = fabric(|_| {});
        for header in [
            &[0, 0, 0x65, 0x58][..],
            &[0x20, 0, 0x65, 0x58, 0, 0, 0, 7],
            &[0x30, 0, 0x65, 0x58, 0, 0, 0, 7, 0, 0, 0, 1],
        ] {
            let out = fabric.send("a1", &ip(47, &[header, &left].concat()));
            assert_eq!(out[0].frame, ip(47, &[header, &right].concat()));
        }
        let gre = [0, 0, 8, 0];
        let out = fabric.send("a1", &ip(47, &[&gre[..], &left[14..]].concat()));
        assert_eq!(out[0].frame, ip(47, &[&gre[..], &right[14..]].concat()));
        let out = fabric.send("a1", &ip(4, &left[14..]));
        assert_eq!(out[0].frame, ip(4, &right[14..]));
        // What is cut short anywhere is left alone.
        for len in 0..left.len() {
            let sent = ip(
                47,
                &[&gre[..], &left[14..][..len.min(left.len() - 14)]].concat(),
            );
            fabric.send("a1", &sent);
        }
        assert_eq!(fabric.missing_frames(), 0);
    }
}

#[test]
fn sctp_gets_its_crc32c() {
    // The INIT of RFC 9260 §3.3.2 would do as well: what matters is the sum, here that of "123456789" behind a header.
    let mut packet = vec![0x0b, 0x59, 0x0b, 0x80, 0, 0, 0, 1, 0, 0, 0, 0];
    packet.extend(b"123456789");
    let mut fabric = fabric(|_| {});
    let out = fabric.send("a1", &ip(132, &packet));
    let got = &out[0].frame[34..];
    let mut crc = u32::MAX;
    for byte in &packet {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    assert_eq!(got[8..12], (!crc).to_le_bytes());
    // One that is there stays, right or wrong: its receiver judges it.
    packet[8] = 1;
    let out = fabric.send("a1", &ip(132, &packet));
    assert_eq!(out[0].frame, ip(132, &packet));
}
