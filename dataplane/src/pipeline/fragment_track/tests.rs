use super::*;
use crate::packet::Frame;

fn origin(port: u16, vni: u32) -> Origin {
    (Ingress::Port(port), vni.into())
}

fn packet(index: u32) -> Packet {
    Packet {
        frame: Frame::from_index(index),
        start: 0,
        len: 0,
    }
}

/// A piece of UDP datagram `id`, of 8 bytes each, the last of `count`.
fn piece(origin: Origin, id: u32, index: u16, count: u16) -> Piece {
    let flow = Flow {
        source: 1,
        destination: 2,
        source_port: 0,
        destination_port: 0,
        protocol: 17,
    };
    let fragment = Fragment {
        id,
        offset: index * 8,
        len: 8,
        more: index + 1 < count,
    };
    Piece::new(origin, Family::Ipv4, &flow, fragment)
}

const FIRST: First = First {
    protocol: 17,
    ports: (1, 2),
    icmp: 0,
    sequence: None,
};

fn begin(fragments: &mut Fragments, piece: Piece, now: u32) -> Result<(), DropReason> {
    fragments.first(piece, now, &mut Vec::new())?;
    assert!(fragments.judged(piece, Ok(FIRST)).is_empty());
    Ok(())
}

fn follows(fragments: &mut Fragments, piece: Piece, now: u32) -> bool {
    matches!(
        fragments.later(piece, packet(0), now, &mut Vec::new()),
        Later::Flow(_, FIRST)
    )
}

#[test]
fn a_finished_datagram_frees_its_place_and_its_identification() {
    let mut fragments = Fragments::default();
    let blue = origin(1, 100);
    for _ in 0..3 {
        begin(&mut fragments, piece(blue, 7, 0, 3), 0).unwrap();
        assert!(follows(&mut fragments, piece(blue, 7, 2, 3), 0));
        assert_eq!(fragments.len(), 1);
        assert!(follows(&mut fragments, piece(blue, 7, 1, 3), 0));
        assert!(fragments.is_empty());
    }
}

#[test]
fn an_unfinished_identification_is_free_again_after_a_pause() {
    let mut fragments = Fragments::default();
    let blue = origin(1, 100);
    begin(&mut fragments, piece(blue, 7, 0, 3), 0).unwrap();
    assert_eq!(
        begin(&mut fragments, piece(blue, 7, 0, 3), REUSE - 1),
        Err(DropReason::FragmentDuplicate)
    );
    // What is still missing may come late.
    assert!(follows(&mut fragments, piece(blue, 7, 1, 3), REUSE));
    begin(&mut fragments, piece(blue, 7, 0, 2), 2 * REUSE).unwrap();
    assert!(follows(&mut fragments, piece(blue, 7, 1, 2), 2 * REUSE));
    assert!(fragments.is_empty());
}

#[test]
fn the_oldest_of_the_same_origin_gives_way() {
    let mut fragments = Fragments::default();
    let (blue, red) = (origin(1, 100), origin(2, 200));
    begin(&mut fragments, piece(blue, 1, 0, 2), 0).unwrap();
    for id in 0..4 * PER_OWNER as u32 {
        begin(&mut fragments, piece(red, id, 0, 2), 0).unwrap();
    }
    assert_eq!(fragments.len(), PER_OWNER + 1);
    assert!(follows(&mut fragments, piece(blue, 1, 1, 2), 0));
    let newest = 4 * PER_OWNER as u32 - 1;
    assert!(follows(&mut fragments, piece(red, newest, 1, 2), 0));
    assert!(!follows(&mut fragments, piece(red, 0, 1, 2), 0));
}

#[test]
fn when_all_is_full_the_vpc_that_has_most_gives_way() {
    let mut fragments = Fragments::default();
    let ports = (DATAGRAMS / PER_OWNER) as u16;
    // Every port of red holds as much as it may; one port of green does.
    for id in 0..PER_OWNER as u32 {
        for port in 1..=ports {
            let vpc = if port == ports { 300 } else { 200 };
            begin(&mut fragments, piece(origin(port, vpc), id, 0, 2), 0).unwrap();
        }
    }
    assert_eq!(fragments.len(), DATAGRAMS);
    let blue = origin(99, 100);
    for id in 0..100 {
        begin(&mut fragments, piece(blue, id, 0, 2), 1).unwrap();
        // Red goes on.
        begin(&mut fragments, piece(origin(1, 200), 5000 + id, 0, 2), 1).unwrap();
    }
    assert_eq!(fragments.len(), DATAGRAMS);
    for id in 0..100 {
        assert!(follows(&mut fragments, piece(blue, id, 1, 2), 2));
    }
    for id in 0..PER_OWNER as u32 {
        let green = piece(origin(ports, 300), id, 1, 2);
        assert!(follows(&mut fragments, green, 2), "{id}");
    }
}

#[test]
fn waiting_has_a_share_for_everybody() {
    let mut fragments = Fragments::default();
    let mut released = Vec::new();
    let mut waits = |fragments: &mut Fragments, piece: Piece| {
        matches!(
            fragments.later(piece, packet(0), 0, &mut released),
            Later::Waits
        )
    };
    let blue = piece(origin(9, 100), 1, 1, 2);
    for id in 0..1000 {
        for port in 1..4 {
            assert!(waits(&mut fragments, piece(origin(port, 200), id, 1, 2)));
        }
        if id == 500 {
            assert!(waits(&mut fragments, blue));
        }
    }
    assert_eq!(fragments.waiting(), WAITING);
    assert_eq!(released.len(), 3001 - WAITING);
    assert!(released.iter().all(|(ingress, _, reason)| {
        *ingress != Ingress::Port(9) && *reason == DropReason::FragmentTable
    }));
    let first = piece(origin(9, 100), 1, 0, 2);
    fragments.first(first, 0, &mut Vec::new()).unwrap();
    assert_eq!(fragments.judged(first, Ok(FIRST)).len(), 1);
}

#[test]
fn what_is_refused_goes_when_all_of_it_has_come() {
    let mut fragments = Fragments::default();
    let blue = origin(1, 100);
    let first = piece(blue, 7, 0, 3);
    fragments.first(first, 0, &mut Vec::new()).unwrap();
    fragments.judged(first, Err(DropReason::GroupDenied));
    for index in [1, 2] {
        let later = fragments.later(piece(blue, 7, index, 3), packet(0), 0, &mut Vec::new());
        assert!(matches!(later, Later::Drop(_, DropReason::FragmentOrphan)));
    }
    assert!(fragments.is_empty());
}

#[test]
fn everything_is_forgotten_in_time() {
    let mut fragments = Fragments::default();
    let mut released = Vec::new();
    for id in 0..10 {
        let blue = piece(origin(1, 100), id, 1, 2);
        fragments.later(blue, packet(id), id, &mut released);
    }
    fragments.expire(LIFETIME + 4, &mut released);
    assert_eq!((released.len(), fragments.len()), (5, 5));
    fragments.expire(LIFETIME + 9, &mut released);
    assert_eq!((released.len(), fragments.len()), (10, 0));
    assert_eq!(fragments.waiting(), 0);
}
