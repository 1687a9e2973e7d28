//! Segments that a guest leaves to its device to split (TSO, USO): whole to a neighbour on the same host, in pieces through a tunnel.

use std::net::IpAddr;

use weft_dataplane::packet::{DropReason, Offload, Segments};

use crate::frames::{A1, A2, B1, End, read, tcp, udp, udp6};
use crate::topology::{ROUTER, fabric};

const MSS: u16 = 1400;

pub fn left(segments: Segments, size: u16) -> Offload {
    Offload { segments, size }
}

/// Opens a connection from `a1` and answers a segment of it, `payload` bytes long.
pub fn connected(
    fabric: &mut weft_fabric::Fabric,
    (name, to, mac): (&str, End, [u8; 6]),
    payload: usize,
) -> Vec<u8> {
    let back = if mac == ROUTER { ROUTER } else { A1.mac };
    for (from, flags, numbers) in [
        ("a1", "S", (1000, 0)),
        (name, "SA", (5000, 1001)),
        ("a1", "A", (1001, 5001)),
    ] {
        let frame = if from == "a1" {
            tcp(A1, to, mac, (4000, 80), flags, numbers, 0)
        } else {
            tcp(to, A1, back, (80, 4000), flags, numbers, 0)
        };
        assert_eq!(fabric.send(from, &frame).len(), 1, "{flags}");
    }
    let mut frame = tcp(A1, to, mac, (4000, 80), "A", (1001, 5001), payload);
    for (i, byte) in frame[54..].iter_mut().enumerate() {
        *byte = (i % 251) as u8;
    }
    // Don't fragment, as TCP has it; FIN is left out, PSH and CWR are in.
    frame[20] = 0x40;
    frame[47] |= 0x88;
    fix_ipv4(&mut frame);
    // A sender that leaves the splitting leaves the checksum too: the sum of the pseudo-header alone.
    let len = (frame.len() - 34) as u32;
    let mut sum: u32 = frame[26..34]
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]))
        .sum();
    sum += 6 + len;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    frame[50..52].copy_from_slice(&(sum as u16).to_be_bytes());
    frame
}

fn fix_ipv4(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let mut sum: u32 = frame[14..34]
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]))
        .sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

#[test]
fn a_neighbour_on_the_same_host_gets_it_whole() {
    let mut fabric = fabric(|_| {});
    let frame = connected(&mut fabric, ("b1", B1, ROUTER), 30_000);
    let out = fabric.send_segment("a1", &frame, left(Segments::Tcp4, MSS));
    assert_eq!(out.len(), 1);
    assert_eq!(
        (out[0].port.as_str(), out[0].offload),
        ("b1", left(Segments::Tcp4, MSS))
    );
    assert_eq!(
        out[0].frame[34..],
        frame[34..],
        "nothing behind the IP header has changed"
    );
    assert_eq!((&out[0].frame[..6], out[0].frame[22]), (&B1.mac[..], 63));
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn through_a_tunnel_it_goes_in_pieces_that_are_right() {
    for payload in [1, 1399, 1400, 1401, 30_000, 60_000] {
        let mut fabric = fabric(|_| {});
        let frame = connected(&mut fabric, ("a2", A2, A2.mac), payload);
        let out = fabric.send_segment("a1", &frame, left(Segments::Tcp4, MSS));
        assert_eq!(out.len(), payload.div_ceil(MSS.into()));
        let mut joined = Vec::new();
        for (number, piece) in (0u16..).zip(&out) {
            let seen = read(&piece.frame);
            let word = |at: usize| u16::from_be_bytes([piece.frame[at], piece.frame[at + 1]]);
            let sequence = u32::from(word(38)) << 16 | u32::from(word(40));
            assert_eq!(sequence as usize, 1001 + joined.len());
            assert_eq!(
                word(18),
                u16::from_be_bytes([frame[18], frame[19]]) + number
            );
            let last = usize::from(number) + 1 == out.len();
            assert_eq!(piece.frame[47] & 8 != 0, last, "PSH is for the last");
            assert_eq!(
                piece.frame[47] & 0x80 != 0,
                number == 0,
                "CWR is for the first"
            );
            assert_eq!(piece.offload, Offload::default());
            joined.extend(seen.payload);
        }
        assert_eq!(joined, frame[54..]);
        assert_eq!(fabric.missing_frames(), 0);
    }
}

#[test]
fn udp_is_split_too_over_both_families() {
    let mut fabric = fabric(|_| {});
    let payload: Vec<u8> = (0..10_000).map(|i| (i % 253) as u8).collect();
    for frame in [
        udp(A1, A2, A2.mac, (1000, 2000), &payload),
        udp6(A1, A2, A2.mac, (1000, 2000), &payload),
    ] {
        let out = fabric.send_segment("a1", &frame, left(Segments::Udp, 1200));
        let parts: Vec<Vec<u8>> = out.iter().map(|piece| read(&piece.frame).payload).collect();
        assert_eq!(
            parts.iter().map(Vec::len).collect::<Vec<_>>(),
            [vec![1200; 8], vec![400]].concat()
        );
        assert_eq!(parts.concat(), payload);
    }
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b027_pieces_too_big_for_the_tunnel_are_reported() {
    let mut fabric = fabric(|_| {});
    let frame = connected(&mut fabric, ("a2", A2, A2.mac), 30_000);
    let out = fabric.send_segment("a1", &frame, left(Segments::Tcp4, 1460));
    assert_eq!(out.len(), 1);
    let seen = read(&out[0].frame);
    assert_eq!(
        (out[0].port.as_str(), seen.destination),
        ("a1", IpAddr::from(A1.v4))
    );
    assert_eq!(
        (out[0].frame[34], out[0].frame[35]),
        (3, 4),
        "fragmentation needed"
    );
    assert_eq!(out[0].frame[40..42], 1450u16.to_be_bytes());
    assert_eq!(out[0].offload, Offload::default());
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn what_is_not_what_it_says_is_dropped_by_name() {
    let mut fabric = fabric(|_| {});
    let segment = connected(&mut fabric, ("b1", B1, ROUTER), 20_000);
    let datagram = udp(A1, B1, ROUTER, (1, 2), &[0; 5000]);
    let arp = [&[0xff; 12][..], &[8, 6], &[0; 40]].concat();
    for (frame, offload) in [
        (&segment, left(Segments::Tcp4, 0)),
        (&segment, left(Segments::Tcp4, 50)),
        (&segment, left(Segments::Tcp6, MSS)),
        (&segment, left(Segments::Udp, MSS)),
        (&datagram, left(Segments::Tcp4, MSS)),
        (&arp, left(Segments::Tcp4, MSS)),
    ] {
        assert_eq!(fabric.send_segment("a1", frame, offload), []);
    }
    assert_eq!(fabric.drops("h1", DropReason::OffloadMalformed), 6);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn a_large_packet_that_is_no_segment_passes_whole_to_a_neighbour_only() {
    let mut fabric = fabric(|_| {});
    let frame = udp(A1, B1, ROUTER, (1, 2), &[7; 8000]);
    let out = fabric.send_segment("a1", &frame, Offload::default());
    assert_eq!(out.len(), 1);
    assert_eq!(read(&out[0].frame).payload, [7; 8000]);
    // Into the tunnel in fragments, as any packet that is too big and may be fragmented.
    let mut frame = udp(A1, A2, A2.mac, (1, 2), &[7; 8000]);
    frame[20] = 0;
    fix_ipv4(&mut frame);
    let out = fabric.send_segment("a1", &frame, Offload::default());
    assert_eq!(out.len(), 8008usize.div_ceil(1424));
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b030_a_segment_to_a_group_reaches_everybody_in_pieces() {
    let mut fabric = fabric(|_| {});
    let all = End {
        mac: [0xff; 6],
        v4: [255; 4],
        ..A2
    };
    let payload: Vec<u8> = (0..3000).map(|i| (i % 253) as u8).collect();
    let frame = udp(A1, all, [0xff; 6], (1000, 2000), &payload);
    let out = fabric.send_segment("a1", &frame, left(Segments::Udp, 1200));
    for port in ["a2", "a3"] {
        let got = out.iter().filter(|piece| piece.port == port);
        let parts: Vec<Vec<u8>> = got.map(|piece| read(&piece.frame).payload).collect();
        let lengths: Vec<usize> = parts.iter().map(Vec::len).collect();
        assert_eq!(
            (lengths, parts.concat()),
            (vec![1200, 1200, 600], payload.clone())
        );
    }
    assert_eq!((out.len(), fabric.missing_frames()), (6, 0));
    for host in fabric.hosts.values() {
        assert_eq!(host.unaccounted(), 0);
    }
}
