//! Behaviour 27 where the device of a port is the narrow part: nothing too long vanishes without a name, and whoever may hear of it does.

use weft_dataplane::packet::DropReason;
use weft_fabric::{Delivered, Fabric};

use crate::frames::{A1, A2, A3, B1, B2, End, read, syn_mss, udp, udp6};
use crate::topology::{ROUTER, fabric, port};

/// Bytes of UDP payload of an IP packet of 1480 bytes.
fn payload(v6: bool) -> Vec<u8> {
    vec![7; 1480 - if v6 { 48 } else { 28 }]
}

/// A UDP packet of 1480 bytes.
pub fn packet(v6: bool, from: End, to: End, mac: [u8; 6], dont_fragment: bool) -> Vec<u8> {
    if v6 {
        return udp6(from, to, mac, (9, 53), &payload(true));
    }
    let mut frame = udp(from, to, mac, (9, 53), &payload(false));
    if !dont_fragment {
        frame[20] &= !0x40;
        frame[24..26].fill(0);
        let sum: u32 = frame[14..34]
            .chunks(2)
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
            .sum();
        let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

/// Whether the sender is told, by the gateway of a subnet, that so many bytes fit.
#[track_caller]
fn assert_told(out: &[Delivered], sender: (&str, End), gateway: &str, mtu: u16) {
    assert_eq!(out.len(), 1);
    let (id, end) = sender;
    assert_eq!(out[0].port, id);
    let frame = &out[0].frame;
    let seen = read(frame);
    assert_eq!((seen.dst, seen.src), (end.mac, ROUTER));
    assert_eq!(seen.source.to_string(), gateway);
    let mtu = mtu.to_be_bytes();
    if seen.source.is_ipv4() {
        assert_eq!((&frame[34..36], &frame[40..42]), (&[3, 4][..], &mtu[..]));
    } else {
        assert_eq!((&frame[54..56], &frame[60..62]), (&[2, 0][..], &mtu[..]));
    }
}

#[test]
fn b027_a_narrow_device_of_another_subnet_is_reported_by_the_gateway() {
    let mut fabric = fabric(|_| {});
    fabric.set_device_mtu("b1", Some(1400));
    for (v6, gateway) in [(false, "10.0.1.1"), (true, "fd00:1::1")] {
        // The second time there is a session.
        for _ in 0..2 {
            let before = fabric.drops("h1", DropReason::TooBig);
            let out = fabric.send("a1", &packet(v6, A1, B1, ROUTER, true));
            assert_told(&out, ("a1", A1), gateway, 1400);
            assert_eq!(fabric.drops("h1", DropReason::TooBig), before + 1);
        }
    }
    // Without "don't fragment", a router cuts it (RFC 1812 §4.2.2.7).
    let out = fabric.send("a1", &packet(false, A1, B1, ROUTER, false));
    assert_eq!(out.len(), 2);
    assert!(
        out.iter()
            .all(|piece| piece.port == "b1" && piece.frame.len() <= 1414)
    );
    // What fits passes, and what is lowered or raised meanwhile holds at once.
    let short = udp(A1, B1, ROUTER, (9, 53), &[7; 1372]);
    assert_eq!(fabric.send("a1", &short).len(), 1);
    fabric.set_device_mtu("b1", Some(1399));
    assert_told(&fabric.send("a1", &short), ("a1", A1), "10.0.1.1", 1399);
    fabric.set_device_mtu("b1", None);
    assert_eq!(fabric.send("a1", &short)[0].port, "b1");
    assert_eq!(
        fabric.send("a1", &packet(true, A1, B1, ROUTER, true))[0].port,
        "b1"
    );
    assert_eq!(fabric.missing_frames(), 0);
    assert_eq!(fabric.hosts["h1"].unaccounted(), 0);
}

#[test]
fn b027_so_it_is_through_the_tunnel() {
    let mut fabric = fabric(|_| {});
    fabric.set_device_mtu("b2", Some(1300));
    let datagram = |v6: bool| {
        let make = if v6 { udp6 } else { udp };
        let mut frame = make(A1, B2, ROUTER, (9, 53), &[7; 1350]);
        if !v6 {
            // "Don't fragment", as the other library has it.
            assert_eq!(frame[20] & 0x40, 0x40);
        }
        frame.truncate(frame.len());
        frame
    };
    for (v6, gateway) in [(false, "10.0.2.1"), (true, "fd00:2::1")] {
        for _ in 0..2 {
            let out = fabric.send("a1", &datagram(v6));
            assert_told(&out, ("a1", A1), gateway, 1300);
        }
    }
    assert_eq!(fabric.drops("h2", DropReason::TooBig), 4);
    assert_eq!(fabric.missing_frames(), 0);
    for host in fabric.hosts.values() {
        assert_eq!(host.unaccounted(), 0);
    }
}

#[test]
fn b027_within_a_subnet_it_is_dropped_by_name() {
    let mut fabric = fabric(|_| {});
    fabric.set_device_mtu("a3", Some(1400));
    fabric.set_device_mtu("a2", Some(1300));
    for v6 in [false, true] {
        for dont_fragment in [false, true] {
            let frame = packet(v6, A1, A3, A3.mac, dont_fragment);
            assert!(fabric.send("a1", &frame).is_empty());
            assert!(fabric.send("a1", &frame).is_empty());
        }
    }
    assert_eq!(fabric.drops("h1", DropReason::TooBig), 8);
    let far = udp(A1, A2, A2.mac, (9, 53), &[7; 1350]);
    assert!(fabric.send("a1", &far).is_empty());
    assert_eq!(fabric.drops("h2", DropReason::TooBig), 1);
    // Copies too, each for itself.
    let all = End {
        mac: [0xff; 6],
        v4: [255; 4],
        ..A2
    };
    assert!(
        fabric
            .send("a1", &udp(A1, all, [0xff; 6], (9, 9), &[7; 1400]))
            .is_empty()
    );
    assert_eq!(fabric.drops("h1", DropReason::TooBig), 9);
    assert_eq!(fabric.drops("h2", DropReason::TooBig), 2);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b027_the_mss_is_lowered_to_what_the_devices_take() {
    let mss = |fabric: &mut Fabric, from: &str, frame: &[u8]| {
        let out = fabric.send(from, frame);
        let at = 34 + 20 + 1 + 2;
        read(&out[0].frame);
        u16::from_be_bytes([out[0].frame[at], out[0].frame[at + 1]])
    };
    let mut fabric = fabric(|objects| port(objects, "b1").clamp_mss = true);
    let syn = |number| syn_mss(A1, B1, ROUTER, (number, 80), 1460);
    assert_eq!(mss(&mut fabric, "a1", &syn(1)), 1460);
    fabric.set_device_mtu("b1", Some(1400));
    assert_eq!(mss(&mut fabric, "a1", &syn(2)), 1360);
    // The sender's own device counts as well: what comes back has to fit.
    fabric.set_device_mtu("a1", Some(1350));
    assert_eq!(mss(&mut fabric, "a1", &syn(3)), 1310);
    // Whoever did not ask for it is left alone.
    assert_eq!(
        mss(&mut fabric, "a1", &syn_mss(A1, A3, A3.mac, (4, 80), 1460)),
        1460
    );
}
