//! Datagrams in pieces as ordinary traffic: behaviour 24, beside other tenants and with identifications that come round.

use weft_dataplane::packet::DropReason;

use crate::frames::{A1, A2, End, udp, udp6};
use crate::topology::{fabric, group, ingress};

const FRAGMENT_HEADER: u8 = 44;

/// Cuts a frame into pieces of so many bytes of payload (a multiple of 8), as its sender's stack does. Of IPv6, `extension` precedes the
/// transport header in the fragmentable part: its number and its bytes, of which the first is to name what follows.
pub fn pieces(
    frame: &[u8],
    id: u32,
    size: usize,
    extension: Option<(u8, Vec<u8>)>,
) -> Vec<Vec<u8>> {
    let v6 = frame[14] >> 4 == 6;
    let l4 = if v6 { 54 } else { 34 };
    let mut payload = frame[l4..].to_vec();
    let mut next = if v6 { frame[20] } else { frame[23] };
    if let Some((number, mut bytes)) = extension {
        bytes[0] = next;
        payload.splice(0..0, bytes);
        next = number;
    }
    let count = payload.len().div_ceil(size);
    let piece = |(number, part): (usize, &[u8])| {
        let more = u16::from(number + 1 < count);
        let offset = (number * size) as u16;
        let mut piece = frame[..l4].to_vec();
        if v6 {
            piece[18..20].copy_from_slice(&(part.len() as u16 + 8).to_be_bytes());
            piece[20] = FRAGMENT_HEADER;
            // Later pieces name what the fragmentable part begins with, as the first does (RFC 8200 §4.5).
            piece.extend([next, 0]);
            piece.extend((offset | more).to_be_bytes());
            piece.extend(id.to_be_bytes());
        } else {
            piece[16..18].copy_from_slice(&(part.len() as u16 + 20).to_be_bytes());
            piece[18..20].copy_from_slice(&(id as u16).to_be_bytes());
            piece[20..22].copy_from_slice(&((more << 13) | (offset / 8)).to_be_bytes());
            piece[24..26].fill(0);
            let sum: u32 = piece[14..34]
                .chunks(2)
                .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
                .sum();
            let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
            piece[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        piece.extend_from_slice(part);
        piece
    };
    payload.chunks(size).enumerate().map(piece).collect()
}

/// A datagram from a1 or r1 to its neighbour on the other host.
fn datagram(id: u32, len: usize) -> Vec<Vec<u8>> {
    pieces(&udp(A1, A2, A2.mac, (9, 53), &vec![7; len]), id, 1400, None)
}

fn group_end(v4: [u8; 4]) -> End {
    End {
        mac: [1, 0, 0x5e, v4[1] & 0x7f, v4[2], v4[3]],
        v4,
        v6: [0; 16],
    }
}

#[test]
fn b024_datagrams_follow_each_other_without_end() {
    let mut fabric = fabric(|_| {});
    let mut arrived = 0;
    for id in 0..1000 {
        for piece in datagram(id, 4000) {
            arrived += fabric.send("a1", &piece).len();
        }
        fabric.advance(5);
    }
    assert_eq!(arrived, 3000, "{:?}", fabric.all_drops());
}

#[test]
fn b024_an_unfinished_identification_is_used_again() {
    let mut fabric = fabric(|_| {});
    // The last piece is lost.
    for piece in &datagram(7, 4000)[..2] {
        assert_eq!(fabric.send("a1", piece).len(), 1);
    }
    fabric.advance(3000);
    for piece in datagram(7, 2500) {
        assert_eq!(
            fabric.send("a1", &piece).len(),
            1,
            "{:?}",
            fabric.all_drops()
        );
    }
}

/// Red floods with what never becomes whole: first pieces, or later ones that wait.
fn beside_a_flood(which: usize) {
    let mut fabric = fabric(|_| {});
    let mut lost = 0;
    for id in 0..6000u32 {
        // From the port of this host, and from the tunnel.
        let red = &datagram(id, 4000)[which];
        fabric.send("r1", red);
        fabric.send("r1", &datagram(id + 50_000, 4000)[which]);
        if id % 7 == 0 {
            let blue = datagram(id, 2500);
            // The second piece first.
            let got = fabric.send("a1", &blue[1]).len() + fabric.send("a1", &blue[0]).len();
            lost += 2 - got;
        }
        if id % 100 == 0 {
            fabric.advance(1);
        }
    }
    assert_eq!(lost, 0, "{:?}", fabric.all_drops());
    fabric.advance(20_000);
    assert_eq!(fabric.missing_frames(), 0);
}

#[test]
fn b024_a_flood_of_first_pieces_costs_another_tenant_nothing() {
    beside_a_flood(0);
}

#[test]
fn b024_a_flood_of_later_pieces_costs_another_tenant_nothing() {
    beside_a_flood(1);
}

#[test]
fn b024_a_flood_of_last_pieces_costs_another_tenant_nothing() {
    beside_a_flood(2);
}

#[test]
fn b024_ipv6_pieces_are_of_one_datagram_whatever_header_they_name() {
    // Destination options (RFC 8200 §4.6): padding. Authentication (RFC 4302 §2): 24 bytes.
    let padding = vec![0, 0, 1, 4, 0, 0, 0, 0];
    let frame = udp6(A1, A2, A2.mac, (9, 53), &[7; 4000]);
    let orders = [[0, 1, 2], [2, 0, 1], [1, 2, 0]];
    for order in orders {
        let mut fabric = fabric(|objects| {
            group(objects, "open").rules = vec![ingress("udp", Some(53))];
        });
        let pieces = pieces(&frame, 7, 1400, Some((60, padding.clone())));
        let got: usize = order
            .iter()
            .map(|piece| fabric.send("a1", &pieces[*piece]).len())
            .sum();
        assert_eq!(got, 3, "{order:?} {:?}", fabric.all_drops());
        let mut denied = crate::topology::fabric(|objects| {
            group(objects, "open").rules = vec![ingress("udp", Some(54))];
        });
        let got: usize = order
            .iter()
            .map(|piece| denied.send("a1", &pieces[*piece]).len())
            .sum();
        assert_eq!(got, 0, "{order:?}");
    }
}

#[test]
fn b024_authenticated_pieces_pass_by_the_protocol_of_the_header() {
    let mut authentication = vec![0; 24];
    authentication[1] = 4;
    let frame = udp6(A1, A2, A2.mac, (9, 53), &[7; 4000]);
    for (rule, passes) in [(ingress("51", None), 3), (ingress("udp", Some(53)), 0)] {
        let mut fabric = fabric(|objects| group(objects, "open").rules = vec![rule]);
        let pieces = pieces(&frame, 7, 1400, Some((51, authentication.clone())));
        let got: usize = pieces
            .iter()
            .map(|piece| fabric.send("a1", piece).len())
            .sum();
        assert_eq!(got, passes, "{:?}", fabric.all_drops());
    }
}

#[test]
fn b024_pieces_to_a_group_follow_their_first() {
    let stream = group_end([239, 1, 2, 3]);
    let frame = udp(A1, stream, stream.mac, (9, 5004), &[7; 4000]);
    for order in [[0, 1, 2], [1, 2, 0]] {
        for (rule, passes) in [
            (ingress("udp", Some(5004)), 6),
            // Neither what no rule admits, nor what has no port of its own.
            (ingress("udp", Some(5005)), 0),
            (ingress("udp", Some(0)), 0),
        ] {
            let mut fabric = fabric(|objects| group(objects, "open").rules = vec![rule]);
            let pieces = pieces(&frame, 7, 1400, None);
            let got: usize = order
                .iter()
                .map(|piece| fabric.send("a1", &pieces[*piece]).len())
                .sum();
            // a2 behind the tunnel and a3 on this host.
            assert_eq!(got, passes, "{order:?} {:?}", fabric.all_drops());
            fabric.advance(11_000);
            assert_eq!(fabric.missing_frames(), 0);
        }
    }
    let mut fabric = fabric(|_| {});
    let cut = pieces(&frame, 7, 1400, None);
    assert_eq!(fabric.send("a1", &cut[0]).len(), 2);
    let shifted = &pieces(&frame, 7, 1392, None)[1];
    assert!(fabric.send("a1", shifted).is_empty());
    assert!(fabric.send("a1", &cut[1]).is_empty());
    assert_eq!(fabric.drops("h1", DropReason::FragmentOverlap), 2);
}

#[test]
fn b024_64_kib_arrive_in_any_order_over_a_tunnel_that_cuts_each_piece() {
    let mut fabric = fabric(|_| {});
    let frame = udp(A1, A2, A2.mac, (9, 53), &[7; 65_000]);
    for (id, reversed) in [(1, false), (2, true)] {
        // Without "don't fragment": the tunnel of 1450 bytes cuts each once more.
        let mut pieces = pieces(&frame, id, 1480, None);
        for piece in &mut pieces {
            assert_eq!(piece[20] & 0x40, 0);
        }
        if reversed {
            pieces.reverse();
        }
        let got: usize = pieces
            .iter()
            .map(|piece| fabric.send("a1", piece).len())
            .sum();
        assert_eq!(got, 2 * 44 - 1, "{:?}", fabric.all_drops());
    }
}
