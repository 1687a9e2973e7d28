//! Connections as a filter sees them, and the rules of the RFCs that it holds them to.

use super::*;

fn segment(flags: u8, seq: u32, ack: u32, payload: u32) -> Segment {
    let space = payload + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    Segment {
        seq,
        ack,
        window: 64_000,
        flags,
        space,
        scale: None,
    }
}

/// A connection under test; `true` sends from the opener.
struct Connection {
    state: State,
    sides: [Side; 2],
}

impl Connection {
    fn open() -> Self {
        let syn = segment(SYN, 1000, 0, 0);
        let (mut a, mut b) = (Side::default(), Side::default());
        first(&syn, false, &mut a, &mut b);
        Self {
            state: begin(&syn, false).unwrap(),
            sides: [a, b],
        }
    }

    /// Of which this segment of the opener is the first that is known.
    fn picked_up(segment: Segment, one_sided: bool) -> Self {
        let (mut a, mut b) = (Side::default(), Side::default());
        first(&segment, one_sided, &mut a, &mut b);
        Self {
            state: begin(&segment, one_sided).unwrap(),
            sides: [a, b],
        }
    }

    fn established() -> Self {
        let mut connection = Self::open();
        connection.send(false, segment(SYN | ACK, 5000, 1001, 0));
        connection.send(true, segment(ACK, 1001, 5001, 0));
        assert_eq!(connection.state, State::TcpEstablished);
        connection
    }

    fn send(&mut self, from_origin: bool, segment: Segment) -> Step {
        let mut sides = self.sides;
        let [a, b] = &mut sides;
        let (sender, receiver) = if from_origin { (a, b) } else { (b, a) };
        let step = step(self.state, from_origin, &segment, sender, receiver);
        match step {
            Step::Pass(next) | Step::Offer(next) => (self.state, self.sides) = (next, sides),
            Step::Afresh(next) => {
                // The receiver is the opener from now on.
                self.state = next;
                self.sides = if from_origin {
                    [sides[1], sides[0]]
                } else {
                    sides
                };
            }
            _ => {}
        }
        step
    }
}

#[test]
fn three_steps_establish() {
    Connection::established();
}

#[test]
fn scans_do_not_establish() {
    let mut scan = Connection::open();
    scan.send(false, segment(SYN | ACK, 5000, 1001, 0));
    scan.send(true, segment(SYN, 1000, 0, 0));
    scan.send(false, segment(SYN | ACK, 5000, 1001, 0));
    assert_eq!(scan.state, State::TcpSynReceived);
    scan.send(false, segment(SYN | ACK, 5000, 1001, 0));
    assert_eq!(scan.state, State::TcpSynReceived);
}

#[test]
fn data_both_ways_then_fin_both_ways() {
    let mut c = Connection::established();
    for round in 0..200u32 {
        assert_eq!(
            c.send(
                true,
                segment(ACK, 1001 + round * 1000, 5001 + round * 500, 1000)
            ),
            Step::Pass(State::TcpEstablished)
        );
        assert_eq!(
            c.send(
                false,
                segment(ACK, 5001 + round * 500, 2001 + round * 1000, 500)
            ),
            Step::Pass(State::TcpEstablished)
        );
    }
    let (seq, ack) = (1001 + 200_000, 5001 + 100_000);
    assert_eq!(
        c.send(true, segment(FIN | ACK, seq, ack, 0)),
        Step::Pass(State::TcpFinOrigin)
    );
    assert_eq!(
        c.send(false, segment(FIN | ACK, ack, seq + 1, 0)),
        Step::Pass(State::TcpTimeWait)
    );
    assert_eq!(
        c.send(true, segment(ACK, seq + 1, ack + 1, 0)),
        Step::Pass(State::TcpTimeWait)
    );
    assert_eq!(c.send(true, segment(SYN, 9000, 0, 0)), Step::Reopen);
}

#[test]
fn segments_out_of_window_change_nothing() {
    let mut c = Connection::established();
    assert_eq!(
        c.send(true, segment(ACK, 1001 + 500_000, 5001, 10)),
        Step::OutOfWindow
    );
    assert_eq!(
        c.send(true, segment(ACK, 1001, 5001 + 10_000, 10)),
        Step::OutOfWindow
    );
    assert_eq!(
        c.send(true, segment(ACK, 1001, 5001, 10)),
        Step::Pass(State::TcpEstablished)
    );
}

#[test]
fn simultaneous_open_establishes() {
    let mut c = Connection::open();
    c.send(false, segment(SYN, 5000, 0, 0));
    c.send(true, segment(SYN | ACK, 1000, 5001, 0));
    c.send(false, segment(SYN | ACK, 5000, 1001, 0));
    assert_eq!(c.state, State::TcpEstablished);
}

#[test]
fn a_large_window_needs_its_scale() {
    let mut syn = segment(SYN, 1000, 0, 0);
    syn.scale = Some(7);
    let (mut a, mut b) = (Side::default(), Side::default());
    first(&syn, false, &mut a, &mut b);
    let mut c = Connection {
        state: State::TcpSynSent,
        sides: [a, b],
    };
    let mut syn_ack = segment(SYN | ACK, 5000, 1001, 0);
    syn_ack.scale = Some(7);
    c.send(false, syn_ack);
    c.send(true, segment(ACK, 1001, 5001, 0));
    // The receiver grants 64000 << 7 bytes: data far beyond 64 KiB is in window.
    c.send(false, segment(ACK, 5001, 1001, 0));
    assert_eq!(
        c.send(true, segment(ACK, 1001 + 4_000_000, 5001, 1000)),
        Step::Pass(State::TcpEstablished)
    );
}

#[test]
fn sequence_numbers_compare_across_their_wrap() {
    for (a, b, less) in [
        (1, 2, true),
        (2, 1, false),
        (5, 5, false),
        (u32::MAX, 0, true),
        (0, u32::MAX, false),
        (0, 0x7fff_ffff, true),
    ] {
        assert_eq!(before(a, b), less, "{a} {b}");
    }
}

/// Kinds: 0 end, 1 nothing, 2 segment size, 3 window scale, 4 selective acknowledgements, 8 time stamps.
#[test]
fn an_option_is_found_where_the_options_before_it_are_whole() {
    for (options, at) in [
        (&[3, 3, 7][..], Some(0)),
        (&[1, 3, 3, 7], Some(1)),
        (&[2, 4, 5, 180, 3, 3, 7], Some(4)),
        (&[4, 2, 3, 3, 7, 0], Some(2)),
        (&[3, 2, 3, 3, 7], Some(2)),
        (&[8, 10, 3, 3, 3, 3, 3, 3, 3, 3, 1, 3, 3, 7], Some(11)),
        (&[], None),
        (&[1, 1, 1], None),
        (&[4, 2], None),
        (&[0, 3, 3, 7], None),
        (&[3], None),
        (&[3, 3], None),
        (&[1, 3, 4, 7], None),
        (&[8, 0, 3, 3, 7], None),
        (&[8, 1, 3, 3, 7], None),
        (&[8, 6, 3, 3, 7], None),
    ] {
        assert_eq!(find_option(options, 3, 3), at, "{options:?}");
    }
}

#[test]
fn a_header_is_read_with_its_options_and_the_room_that_its_segment_takes() {
    let header = |offset: u8, flags: u8, scale: u8| {
        let mut header = vec![0; 20];
        header[4..12].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        header[12] = offset << 4 | 0xf;
        header[13] = flags;
        header[14..16].copy_from_slice(&[0xab, 0xcd]);
        header.extend([2, 4, 5, 180, 3, 3, scale, 0]);
        header
    };
    let read = |offset, flags, scale, len| {
        let segment = Segment::read(&header(offset, flags, scale), len).unwrap();
        assert_eq!((segment.seq, segment.ack), (0x0102_0304, 0x0506_0708));
        assert_eq!(segment.window, 0xabcd);
        (segment.flags, segment.space, segment.scale)
    };
    assert_eq!(read(7, SYN, 7, 28), (SYN, 1, Some(7)));
    assert_eq!(read(7, SYN, 14, 28).2, Some(14));
    assert_eq!(read(7, SYN, 15, 28).2, Some(14), "RFC 7323 §2.3");
    assert_eq!(
        read(6, SYN, 7, 28),
        (SYN, 5, None),
        "the options end before it"
    );
    assert_eq!(read(7, SYN | FIN, 7, 128), (SYN | FIN, 102, Some(7)));
    assert_eq!(read(7, FIN | ACK, 7, 128), (FIN | ACK, 101, None));
    assert_eq!(
        read(7, ACK, 7, 128),
        (ACK, 100, None),
        "offered on a SYN alone"
    );
    assert_eq!(read(7, RST, 7, 20), (RST, 0, None));
    assert_eq!(read(7, 0xff, 7, 28).0, 0x3f, "without the bits of ECN");
    assert_eq!(Segment::read(&header(7, SYN, 7)[..19], 28), None);
    let cut = Segment::read(&header(7, SYN, 7)[..27], 28).unwrap();
    assert_eq!(cut.scale, None);
}

#[test]
fn a_later_fragment_moves_the_end_on_and_never_back() {
    let mut side = Side {
        end: 1000,
        ..Side::default()
    };
    for (end, after) in [(900, 1000), (1000, 1000), (1500, 1500), (1400, 1500)] {
        extend(&mut side, end);
        assert_eq!(side.end, after);
    }
}

#[test]
fn an_answer_to_another_syn_is_out_of_window() {
    let mut c = Connection::open();
    for ack in [1000, 1002] {
        let before = c.sides;
        assert_eq!(
            c.send(false, segment(SYN | ACK, 5000, ack, 0)),
            Step::OutOfWindow
        );
        assert_eq!(c.sides, before);
    }
    assert_eq!(
        c.send(false, segment(SYN | ACK, 5000, 1001, 0)),
        Step::Pass(State::TcpSynReceived)
    );
}

const PASS: Step = Step::Pass(State::TcpEstablished);

/// RFC 5961 §3.2: exactly the number that the receiver expects, which is what it has acknowledged, or all that was sent.
#[test]
fn only_an_exact_reset_closes_and_a_blind_one_does_not_even_pass() {
    for (seq, step) in [
        (5001, Step::Pass(State::TcpClosed)),
        (5501, Step::Pass(State::TcpClosed)),
        (5000, PASS),
        (5002, PASS),
        (5500, PASS),
        (5502, PASS),
        (70_537, PASS),
        (70_538, Step::OutOfWindow),
        (4999, Step::OutOfWindow),
        (5001 + (1 << 30), Step::OutOfWindow),
        (5001u32.wrapping_sub(200_000), Step::OutOfWindow),
        (0, Step::OutOfWindow),
    ] {
        for flags in [RST, RST | ACK] {
            let mut c = Connection::established();
            assert_eq!(c.send(false, segment(ACK, 5001, 1001, 500)), PASS);
            let before = c.sides;
            assert_eq!(c.send(false, segment(flags, seq, 1001, 0)), step, "{seq}");
            assert_eq!(c.sides, before);
            if step == PASS {
                // The receiver challenges it, and the other side goes on.
                assert_eq!(c.send(true, segment(ACK, 1001, 5501, 0)), PASS);
                assert_eq!(c.send(false, segment(ACK, 5501, 1001, 100)), PASS);
            }
        }
    }
}

#[test]
fn what_follows_a_reset_that_was_lost_passes_and_so_does_the_next_reset() {
    let mut c = Connection::established();
    let closed = Step::Pass(State::TcpClosed);
    assert_eq!(c.send(false, segment(RST, 5001, 0, 0)), closed);
    assert_eq!(c.send(true, segment(ACK, 1001, 5001, 100)), closed);
    assert_eq!(c.send(false, segment(RST, 5001, 0, 0)), closed);
    let far = segment(ACK, 1001 + 500_000, 5001, 10);
    assert_eq!(c.send(true, far), Step::OutOfWindow);
    assert_eq!(c.send(true, segment(SYN, 70, 0, 0)), Step::Reopen);
}

/// RFC 9293 §3.10.7.1: a closed port answers a SYN with sequence number 0. §3.10.7.3: what counts is that it acknowledges the SYN.
#[test]
fn a_reset_that_acknowledges_the_syn_refuses_it_in_every_state() {
    for (ack, step) in [
        (77, Step::OutOfWindow),
        (1000, Step::OutOfWindow),
        (1001, Step::Pass(State::TcpClosed)),
        (1002, Step::OutOfWindow),
    ] {
        let mut c = Connection::open();
        assert_eq!(c.send(false, segment(RST | ACK, 0, ack, 0)), step, "{ack}");
    }
    let mut c = Connection::open();
    assert_eq!(c.send(false, segment(RST, 0, 0, 0)), Step::OutOfWindow);
    assert_eq!(c.send(false, segment(RST, 1001, 0, 0)), Step::OutOfWindow);
    // The server has gone after its SYN-ACK, or holds no connection that this side still holds.
    for mut c in [Connection::open(), Connection::established()] {
        c.send(false, segment(SYN | ACK, 5000, 1001, 0));
        c.send(true, segment(SYN, 77_000, 0, 0));
        let wrong = c.send(false, segment(RST | ACK, 0, 5, 0));
        assert_eq!(wrong, Step::OutOfWindow);
        let right = c.send(false, segment(RST | ACK, 0, 77_001, 0));
        assert_eq!(right, Step::Pass(State::TcpClosed));
    }
    // Without a SYN there is nothing to refuse.
    let mut c = Connection::established();
    assert_eq!(
        c.send(false, segment(RST | ACK, 0, 1001, 0)),
        Step::OutOfWindow
    );
}

#[test]
fn the_opener_gives_up_by_an_exact_reset() {
    for (seq, state) in [
        (999, State::TcpSynSent),
        (1001, State::TcpClosed),
        (0, State::TcpSynSent),
        (1 << 30, State::TcpSynSent),
    ] {
        let mut c = Connection::open();
        assert_eq!(c.send(true, segment(RST, seq, 0, 0)), Step::Pass(state));
    }
}

/// RFC 9293 §3.10.7.4, figure 10: the other side holds an older connection on the tuple.
#[test]
fn the_challenge_that_answers_a_syn_passes_and_the_reset_that_answers_it_closes() {
    let sent = Step::Pass(State::TcpSynSent);
    let mut c = Connection::open();
    assert_eq!(c.send(false, segment(ACK, 900_000, 300_000, 0)), sent);
    assert_eq!(c.send(false, segment(FIN | ACK, 900_000, 300_000, 0)), sent);
    assert_eq!(c.send(true, segment(RST, 299_999, 0, 0)), sent);
    let closed = Step::Pass(State::TcpClosed);
    assert_eq!(c.send(true, segment(RST, 300_000, 0, 0)), closed);
    assert_eq!(c.send(true, segment(SYN, 1000, 0, 0)), Step::Reopen);

    // The same while this side holds it too.
    let mut c = Connection::established();
    assert_eq!(c.send(false, segment(ACK, 5001, 1001, 700)), PASS);
    let offer = Step::Offer(State::TcpEstablished);
    assert_eq!(c.send(true, segment(SYN, 77_000, 0, 0)), offer);
    assert_eq!(c.send(false, segment(ACK, 5701, 1001, 0)), PASS);
    assert_eq!(c.send(true, segment(RST, 1001, 0, 0)), closed);
}

/// RFC 9293 §3.10.7, RFC 5961 §4: whether a SYN on a live tuple is taken, its answer says.
#[test]
fn a_syn_that_the_peer_accepts_starts_afresh_with_any_number_from_either_side() {
    for from_origin in [true, false] {
        for seq in [0u32, 1000, 1001, 5000, 60_000, 1 << 30, 1 << 31, u32::MAX] {
            for fins in [&[][..], &[true], &[false]] {
                let mut c = Connection::established();
                for fin in fins {
                    let (seq, ack) = if *fin { (1001, 5001) } else { (5001, 1001) };
                    c.send(*fin, segment(FIN | ACK, seq, ack, 0));
                }
                let state = c.state;
                let before = c.sides.map(|side| (side.end, side.max_end, side.ack));
                let syn = segment(SYN, seq, 0, 0);
                assert_eq!(c.send(from_origin, syn), Step::Offer(state));
                let after = c.sides.map(|side| (side.end, side.max_end, side.ack));
                assert_eq!(after, before);
                let next = seq.wrapping_add(1);
                let stale = segment(SYN | ACK, 70, next.wrapping_sub(1), 0);
                assert_eq!(c.send(!from_origin, stale), Step::Pass(state));
                let answer = segment(SYN | ACK, 0xffff_fff0, next, 0);
                let afresh = Step::Afresh(State::TcpSynReceived);
                assert_eq!(c.send(!from_origin, answer), afresh);
                assert_eq!(c.send(true, segment(ACK, next, 0xffff_fff1, 0)), PASS);
                assert_eq!(c.send(true, segment(ACK, next, 0xffff_fff1, 900)), PASS);
                let reply = segment(ACK, 0xffff_fff1, next.wrapping_add(900), 900);
                assert_eq!(c.send(false, reply), PASS);
            }
        }
    }
}

#[test]
fn a_syn_and_syn_acks_alone_do_not_disturb_a_connection() {
    for flags in [SYN, SYN | ACK] {
        for from_origin in [true, false] {
            let mut c = Connection::established();
            c.send(from_origin, segment(flags, 77_777, 88_888, 0));
            c.send(!from_origin, segment(SYN | ACK, 99_999, 66_666, 0));
            assert_eq!(c.send(true, segment(ACK, 1001, 5001, 100)), PASS);
            assert_eq!(c.send(false, segment(ACK, 5001, 1101, 100)), PASS);
            let far = segment(ACK, 1001 + 500_000, 5001, 10);
            assert_eq!(c.send(true, far), Step::OutOfWindow);
        }
    }
}

#[test]
fn a_syn_may_take_another_number_before_the_handshake_is_complete() {
    let received = Step::Pass(State::TcpSynReceived);
    let offer = Step::Offer(State::TcpSynReceived);
    let mut c = Connection::open();
    assert_eq!(
        c.send(true, segment(SYN, 3000, 0, 0)),
        Step::Pass(State::TcpSynSent)
    );
    assert_eq!(c.send(false, segment(SYN | ACK, 5000, 3001, 0)), received);
    assert_eq!(c.send(true, segment(SYN, 4_000_000, 0, 0)), offer);
    // It is answered with the first connection's numbers until it is taken.
    assert_eq!(c.send(false, segment(ACK, 5001, 3001, 0)), received);
    assert_eq!(
        c.send(false, segment(SYN | ACK, 8000, 3001, 0)),
        Step::OutOfWindow
    );
    assert_eq!(
        c.send(false, segment(SYN | ACK, 8000, 4_000_001, 0)),
        Step::Afresh(State::TcpSynReceived)
    );
    assert_eq!(c.send(true, segment(ACK, 4_000_001, 8001, 0)), PASS);
}

/// RFC 7413 §4.2: the server may acknowledge the SYN alone, or its data too, and send before the handshake is complete.
#[test]
fn fast_open_passes_whether_its_data_is_taken_or_not() {
    for taken in [0, 120, 200] {
        let mut c = Connection::picked_up(segment(SYN, 1000, 0, 200), false);
        let received = Step::Pass(State::TcpSynReceived);
        for ack in [1000, 1202] {
            let wrong = segment(SYN | ACK, 5000, ack, 0);
            assert_eq!(c.send(false, wrong), Step::OutOfWindow);
        }
        let answer = segment(SYN | ACK, 5000, 1001 + taken, 0);
        assert_eq!(c.send(false, answer), received);
        assert_eq!(
            c.send(false, segment(ACK, 5001, 1001 + taken, 4000)),
            received
        );
        assert_eq!(c.send(false, answer), received, "sent again");
        let rest = segment(ACK, 1001 + taken, 9001, 200 - taken);
        assert_eq!(c.send(true, rest), PASS);
        assert_eq!(c.send(false, segment(ACK, 9001, 1201, 0)), PASS);
    }
}

#[test]
fn the_first_segment_may_be_anything_but_a_syn_ack() {
    use State::{TcpClosed, TcpEstablished, TcpFinOrigin, TcpSynReceived, TcpSynSent};
    const PSH_URG: u8 = 0x28;
    for (flags, state) in [
        (SYN, Some(TcpSynSent)),
        (SYN | PSH_URG, Some(TcpSynSent)),
        (ACK, Some(TcpEstablished)),
        (ACK | PSH_URG, Some(TcpEstablished)),
        (FIN | ACK, Some(TcpFinOrigin)),
        (RST, Some(TcpClosed)),
        (RST | ACK, Some(TcpClosed)),
        (SYN | ACK, None),
        (PSH_URG, None),
        (0, None),
        (FIN, None),
        (SYN | FIN, None),
        (SYN | RST, None),
    ] {
        let segment = segment(flags, 1, 1, 0);
        assert_eq!(begin(&segment, false), state, "{flags:#x}");
        let one_sided = if flags == SYN | ACK {
            Some(TcpSynReceived)
        } else {
            state
        };
        assert_eq!(begin(&segment, true), one_sided, "{flags:#x}");
    }
}

/// Nothing tells when a side has shown all that it had sent: of a window of segments the first and the eleventh are lost, the session too.
#[test]
fn a_pick_up_by_a_retransmission_takes_every_acknowledgement_of_what_was_sent_before() {
    for first in [1000, 0x7fff_fff0, 0xffff_fc00u32] {
        let at = |offset: u32| first.wrapping_add(offset);
        let mut c = Connection::picked_up(segment(ACK, at(0), 9000, 1000), false);
        assert_eq!(c.send(false, segment(ACK, 9000, at(10_000), 0)), PASS);
        assert_eq!(c.send(true, segment(ACK, at(10_000), 9000, 1000)), PASS);
        assert_eq!(c.send(false, segment(ACK, 9000, at(3_000_000), 0)), PASS);
        assert_eq!(c.send(true, segment(ACK, at(3_000_000), 9000, 1000)), PASS);
        // The other side too may begin with a segment that is old, and be ahead of what was acknowledged.
        assert_eq!(c.send(false, segment(ACK, 2000, at(3_001_000), 1000)), PASS);
        assert_eq!(
            c.send(false, segment(ACK, 400_000, at(3_001_000), 1000)),
            PASS
        );
        assert_eq!(c.send(true, segment(ACK, at(3_001_000), 700_000, 0)), PASS);
        // But for what no window reaches.
        let far = segment(ACK, at(0x5000_0000), 700_000, 1);
        assert_eq!(c.send(true, far), Step::OutOfWindow);
        let far = segment(ACK, 700_000, at(0x5000_0000), 0);
        assert_eq!(c.send(false, far), Step::OutOfWindow);
    }
}

/// RFC 1122 §4.2.3.6: one number below the next, with no data or one byte of garbage.
#[test]
fn keepalives_pass_in_a_connection_that_is_known_and_one_that_is_picked_up() {
    for garbage in [0, 1] {
        let probe = segment(ACK, 1000, 5001, garbage);
        let answer = segment(ACK, 5001, 1001, 0);
        for mut c in [
            Connection::established(),
            Connection::picked_up(probe, false),
        ] {
            assert_eq!(c.send(true, probe), PASS);
            assert_eq!(c.send(false, answer), PASS);
            assert_eq!(c.send(true, segment(ACK, 1001, 5001, 900)), PASS);
            assert_eq!(c.send(false, segment(ACK, 5001, 1901, 900)), PASS);
        }
    }
}

#[test]
fn a_pick_up_with_a_shut_window_grants_as_much_as_the_largest() {
    let shut = Segment {
        window: 0,
        ..segment(ACK, 1000, 5000, 0)
    };
    let mut c = Connection::picked_up(shut, false);
    assert_eq!(c.send(false, segment(ACK, 5_000_000, 1000, 1400)), PASS);
    assert_eq!(c.send(true, shut), PASS);
}

#[test]
fn a_connection_picked_up_by_a_fin_or_a_reset_goes_on_as_its_ends_do() {
    let mut c = Connection::picked_up(segment(FIN | ACK, 1000, 5000, 0), false);
    let half = Step::Pass(State::TcpFinOrigin);
    assert_eq!(c.send(false, segment(ACK, 5000, 1001, 1400)), half);
    let fin = segment(FIN | ACK, 6400, 1001, 0);
    assert_eq!(c.send(false, fin), Step::Pass(State::TcpTimeWait));
    // A reset that was not exact is challenged, and exact the next time.
    for reset in [segment(RST, 1000, 0, 0), segment(RST | ACK, 1000, 77, 0)] {
        let mut c = Connection::picked_up(reset, false);
        let closed = Step::Pass(State::TcpClosed);
        assert_eq!(c.send(false, segment(ACK, 70_000, 900, 0)), closed);
        assert_eq!(c.send(true, segment(RST, 900, 0, 0)), closed);
        assert_eq!(c.send(true, segment(SYN, 1, 0, 0)), Step::Reopen);
    }
}

/// Direct server return: what the other side sends takes another way.
#[test]
fn a_connection_that_is_seen_one_way_goes_through_its_states() {
    let mut c = Connection::picked_up(segment(SYN, 1000, 0, 0), true);
    assert_eq!(
        c.send(true, segment(SYN, 1000, 0, 0)),
        Step::Pass(State::TcpSynSent),
        "passed on"
    );
    for round in 0..6000u32 {
        // More than any window, and the acknowledgements as much.
        let offset = round.wrapping_mul(1_000_000);
        let data = segment(
            ACK,
            1001u32.wrapping_add(offset),
            offset.wrapping_mul(3),
            1_000_000,
        );
        assert_eq!(c.send(true, data), PASS);
    }
    let end = 1001u32.wrapping_add(6000u32.wrapping_mul(1_000_000));
    let fin = segment(FIN | ACK, end, 77, 0);
    assert_eq!(c.send(true, fin), Step::Pass(State::TcpFinOrigin));
    let reset = segment(RST, end.wrapping_add(1), 0, 0);
    assert_eq!(c.send(true, reset), Step::Pass(State::TcpClosed));
    // The way back alone.
    let mut c = Connection::picked_up(segment(SYN | ACK, 5000, 1001, 0), true);
    assert_eq!(c.state, State::TcpSynReceived);
    assert_eq!(c.send(true, segment(ACK, 5001, 1301, 1400)), PASS);
    // A port that is guarded has no such leave.
    let mut c = Connection::open();
    assert_eq!(c.send(true, segment(ACK, 1001, 1, 10)), Step::Invalid);
}

/// A firewall that gives connections other numbers is seen on both its sides.
#[test]
fn a_guest_that_passes_connections_on_may_give_them_other_numbers() {
    const MORE: u32 = 0x6000_0000;
    let mut c = Connection::picked_up(segment(SYN, 1000, 0, 0), true);
    c.send(true, segment(SYN, 1000 + MORE, 0, 0));
    let received = Step::Pass(State::TcpSynReceived);
    assert_eq!(
        c.send(false, segment(SYN | ACK, 5000, 1001 + MORE, 0)),
        received
    );
    assert_eq!(c.send(false, segment(SYN | ACK, 5000, 1001, 0)), received);
    for _ in 0..3 {
        for offset in [0, MORE] {
            assert_eq!(c.send(true, segment(ACK, 1001 + offset, 5001, 100)), PASS);
            assert_eq!(c.send(false, segment(ACK, 5001, 1101 + offset, 100)), PASS);
        }
    }
}

/// docs/decisions/007-tcp-tracking.md: what each segment does in each state, sent by the opener and by the other side, when its numbers fit.
#[test]
fn every_state_goes_where_the_table_says() {
    use State::{
        TcpClosed, TcpDenied, TcpEstablished, TcpFinOrigin, TcpFinReply, TcpSimultaneous,
        TcpSimultaneousOrigin, TcpSimultaneousReply, TcpSynReceived, TcpSynSent, TcpTimeWait,
    };
    const I: Step = Step::Invalid;
    const OUT: Step = Step::OutOfWindow;
    const AGAIN: Step = Step::Reopen;
    let to = Step::Pass;
    let offer = Step::Offer;
    let columns = [SYN, SYN | ACK, ACK, FIN | ACK];
    let rows = [
        (
            TcpSynSent,
            [to(TcpSynSent), I, I, I],
            [to(TcpSimultaneous), OUT, to(TcpSynSent), to(TcpSynSent)],
        ),
        (
            TcpSimultaneous,
            [
                to(TcpSimultaneous),
                OUT,
                to(TcpSimultaneousOrigin),
                to(TcpSimultaneousOrigin),
            ],
            [
                to(TcpSimultaneous),
                OUT,
                to(TcpSimultaneousReply),
                to(TcpSimultaneousReply),
            ],
        ),
        (
            TcpSimultaneousOrigin,
            [
                to(TcpSimultaneousOrigin),
                OUT,
                to(TcpSimultaneousOrigin),
                to(TcpSimultaneousOrigin),
            ],
            [
                to(TcpSimultaneousOrigin),
                OUT,
                to(TcpEstablished),
                to(TcpEstablished),
            ],
        ),
        (
            TcpSimultaneousReply,
            [
                to(TcpSimultaneousReply),
                OUT,
                to(TcpEstablished),
                to(TcpEstablished),
            ],
            [
                to(TcpSimultaneousReply),
                OUT,
                to(TcpSimultaneousReply),
                to(TcpSimultaneousReply),
            ],
        ),
        (
            TcpSynReceived,
            [
                offer(TcpSynReceived),
                I,
                to(TcpEstablished),
                to(TcpFinOrigin),
            ],
            [
                offer(TcpSynReceived),
                OUT,
                to(TcpSynReceived),
                to(TcpFinReply),
            ],
        ),
        (
            TcpEstablished,
            [offer(TcpEstablished), PASS, PASS, to(TcpFinOrigin)],
            [offer(TcpEstablished), PASS, PASS, to(TcpFinReply)],
        ),
        (
            TcpFinOrigin,
            [
                offer(TcpFinOrigin),
                to(TcpFinOrigin),
                to(TcpFinOrigin),
                to(TcpFinOrigin),
            ],
            [
                offer(TcpFinOrigin),
                to(TcpFinOrigin),
                to(TcpFinOrigin),
                to(TcpTimeWait),
            ],
        ),
        (
            TcpFinReply,
            [
                offer(TcpFinReply),
                to(TcpFinReply),
                to(TcpFinReply),
                to(TcpTimeWait),
            ],
            [
                offer(TcpFinReply),
                to(TcpFinReply),
                to(TcpFinReply),
                to(TcpFinReply),
            ],
        ),
        (
            TcpTimeWait,
            [AGAIN, I, to(TcpTimeWait), to(TcpTimeWait)],
            [AGAIN, I, to(TcpTimeWait), to(TcpTimeWait)],
        ),
        (
            TcpClosed,
            [AGAIN, I, to(TcpClosed), to(TcpClosed)],
            [AGAIN, I, to(TcpClosed), to(TcpClosed)],
        ),
        (TcpDenied, [AGAIN, I, PASS, PASS], [AGAIN, I, PASS, PASS]),
    ];
    for (state, origin, reply) in rows {
        for (from_origin, steps) in [(true, origin), (false, reply)] {
            for (flags, wanted) in columns.into_iter().zip(steps) {
                let mut c = Connection::established();
                c.state = state;
                let (seq, ack) = if from_origin {
                    (1001, 5001)
                } else {
                    (5001, 1001)
                };
                let step = c.send(from_origin, segment(flags, seq, ack, 0));
                assert_eq!(step, wanted, "{state:?} {from_origin} {flags:#x}");
            }
            let mut c = Connection::established();
            c.state = state;
            let seq = if from_origin { 1001 } else { 5001 };
            let step = c.send(from_origin, segment(RST, seq, 0, 0));
            let refuses = state == TcpSynSent && !from_origin;
            let wanted = if refuses { OUT } else { to(TcpClosed) };
            assert_eq!(step, wanted, "{state:?} {from_origin}");
        }
    }
}

#[test]
fn a_side_comes_out_of_its_words_as_it_went_in() {
    let mut side = Side {
        end: 0xfedc_ba98,
        max_end: 0x8765_4321,
        ack: 0x1234_5678,
        bits: 0,
        offer: 0x8bcd_ef01,
    };
    for marks in [0, 9 | SCALE_OFFERED, LOOSE | 14, MARKS] {
        for window in [0, 1, 65_535, LARGEST] {
            side.bits = marks;
            side.widen(window);
            let (words, offer) = side.pack();
            assert_eq!(Side::unpack(words, offer), side);
            assert_eq!(side.max_window(), window.next_multiple_of(UNIT));
            assert_eq!(side.bits & MARKS, marks);
        }
    }
}

/// RFC 7323 §2.2: a scale is in force where both have offered one, and the window of a SYN is never scaled.
#[test]
fn windows_scale_where_both_sides_have_offered_it() {
    for (ours, theirs, agreed) in [
        (Some(7), Some(2), (7, 2)),
        (Some(14), Some(0), (14, 0)),
        (Some(7), None, (0, 0)),
        (None, Some(2), (0, 0)),
        (None, None, (0, 0)),
    ] {
        let syn = Segment {
            scale: ours,
            ..segment(SYN, 1000, 0, 0)
        };
        let answer = |seq, ack| Segment {
            scale: theirs,
            window: 3000,
            ..segment(SYN | ACK, seq, ack, 0)
        };
        let mut c = Connection::picked_up(syn, false);
        c.send(false, answer(5000, 1001));
        assert_eq!(c.state, State::TcpSynReceived);
        for _ in 0..2 {
            let [opener, other] = c.sides;
            assert_eq!(
                (opener.scale(), other.scale()),
                agreed,
                "{ours:?} {theirs:?}"
            );
            assert_eq!(opener.max_end, opener.end + 3000);
            assert_eq!(other.max_end, other.end + 65_535);
            // The same on a tuple that is used again.
            c.send(true, segment(ACK, opener.end, other.end, 0));
            assert_eq!(c.state, State::TcpEstablished);
            c.send(true, Segment { seq: 9000, ..syn });
            c.send(false, answer(7000, 9001));
        }
    }
}

/// The four bounds, each at its last number and one beyond; windows below 66000 bytes count as so many (van Rooij §3.4).
#[test]
fn a_segment_is_in_the_window_up_to_its_four_bounds() {
    // Sent up to 200000 of 250000 allowed; the other side up to 500000.
    let judge = |windows: (u32, u32), segment: Segment| {
        let mut sender = Side {
            end: 200_000,
            max_end: 250_000,
            ..Side::default()
        };
        let mut receiver = Side {
            end: 500_000,
            max_end: 510_000,
            ..Side::default()
        };
        sender.widen(windows.0);
        receiver.widen(windows.1);
        window(&segment, &mut sender, &mut receiver)
    };
    let (large, small) = ((5 * UNIT, 6 * UNIT), (500, 1000));
    let to = |end: u32, ack: u32| segment(ACK, end - 10, ack, 10);
    for (windows, segment, inside) in [
        (large, to(250_001, 500_000), true),
        (large, to(250_002, 500_000), false),
        (large, to(200_000 - 6 * UNIT, 500_000), true),
        (large, to(199_999 - 6 * UNIT, 500_000), false),
        (small, to(134_000, 500_000), true),
        (small, to(133_999, 500_000), false),
        (large, to(200_010, 500_001), false),
        (large, to(200_010, 500_000 - 5 * UNIT), true),
        (large, to(200_010, 499_999 - 5 * UNIT), false),
        (small, to(200_010, 434_000), true),
        (small, to(200_010, 433_999), false),
    ] {
        assert_eq!(judge(windows, segment), inside, "{windows:?} {segment:?}");
    }
}

#[test]
fn a_segment_in_the_window_moves_both_sides_on_and_never_back() {
    let sender = Side {
        end: 1000,
        max_end: 9000,
        ack: 4900,
        bits: UNIT | SCALE_OFFERED | 2,
        offer: 0,
    };
    let receiver = Side {
        end: 5000,
        max_end: 6000,
        bits: UNIT,
        ..Side::default()
    };
    let after = |segment: Segment| {
        let (mut sender, mut receiver) = (sender, receiver);
        assert!(window(&segment, &mut sender, &mut receiver));
        assert_eq!((receiver.end, receiver.max_window()), (5000, UNIT));
        let sent = (sender.end, sender.max_end, sender.ack, sender.max_window());
        (sent, receiver.max_end)
    };
    let granting = |window, segment| Segment { window, ..segment };
    for (segment, sent, allowed) in [
        (
            granting(500, segment(ACK, 1000, 5000, 100)),
            (1100, 9000, 5000, UNIT),
            7000,
        ),
        (
            granting(4097, segment(ACK, 1000, 5000, 100)),
            (1100, 9000, 5000, 2 * UNIT),
            21_388,
        ),
        (
            granting(500, segment(ACK, 800, 4000, 100)),
            (1000, 9000, 4900, UNIT),
            6000,
        ),
        (
            granting(500, segment(ACK, 1000, 4950, 0)),
            (1000, 9000, 4950, UNIT),
            6950,
        ),
        (
            granting(0, segment(ACK, 1000, 5000, 0)),
            (1000, 9000, 5000, UNIT),
            6000,
        ),
    ] {
        assert_eq!(after(segment), (sent, allowed), "{segment:?}");
    }
    // A closed window lets one byte through, with which the other side asks again (RFC 9293 §3.8.6.1).
    let (mut shut, mut asks) = (
        sender,
        Side {
            max_end: 5000,
            ..receiver
        },
    );
    let closed = granting(0, segment(ACK, 1000, 5000, 0));
    assert!(window(&closed, &mut shut, &mut asks));
    assert_eq!(asks.max_end, 5001);
}

/// What stacks do besides, at the end of a connection and in the midst of it.
#[test]
fn half_closed_connections_and_what_is_sent_again_pass() {
    let mut c = Connection::established();
    let half = Step::Pass(State::TcpFinOrigin);
    assert_eq!(c.send(true, segment(FIN | ACK, 1001, 5001, 100)), half);
    for round in 0..500 {
        let seq = 5001 + round * 1000;
        assert_eq!(c.send(false, segment(ACK, seq, 1102, 1000)), half);
        assert_eq!(c.send(true, segment(ACK, 1102, seq + 1000, 0)), half);
    }
    assert_eq!(
        c.send(true, segment(FIN | ACK, 1001, 505_001, 100)),
        half,
        "again"
    );
    let wait = Step::Pass(State::TcpTimeWait);
    assert_eq!(c.send(false, segment(FIN | ACK, 505_001, 1102, 0)), wait);
    assert_eq!(
        c.send(false, segment(FIN | ACK, 505_001, 1102, 0)),
        wait,
        "again"
    );
    assert_eq!(c.send(true, segment(ACK, 1102, 505_002, 0)), wait);
    // One number below its FIN, as some stacks reset a connection that they have finished.
    assert_eq!(c.send(false, segment(RST, 505_001, 0, 0)), wait);
    assert_eq!(
        c.send(false, segment(RST, 505_002, 0, 0)),
        Step::Pass(State::TcpClosed)
    );
}

#[test]
fn a_window_that_shrinks_takes_nothing_back() {
    let mut c = Connection::established();
    assert_eq!(c.send(false, segment(ACK, 5001, 1001, 0)), PASS);
    let shut = Segment {
        window: 0,
        ..segment(ACK, 5001, 1001, 0)
    };
    assert_eq!(c.send(false, shut), PASS);
    assert_eq!(c.send(true, segment(ACK, 1001 + 60_000, 5001, 1000)), PASS);
}

/// A host that takes over from another does not know where the connections that it was told of stand.
#[test]
fn a_connection_that_another_host_has_seen_goes_on_from_whichever_side_speaks_first() {
    let segment = |seq: u32, ack: u32, space: u32| Segment {
        seq,
        ack,
        window: 500,
        flags: ACK,
        space,
        scale: None,
    };
    for (a, b) in [(5, 7), (0x9000_0000, 0x1234), (0x4567_0000, 0xf000_0000)] {
        for origin_first in [true, false] {
            let (mut origin, mut reply) = (Side::unknown(), Side::unknown());
            for turn in 0..6 {
                let from_origin = (turn % 2 == 0) == origin_first;
                let step = if from_origin {
                    let sent = segment(a + turn, b + turn, 1);
                    step(State::TcpEstablished, true, &sent, &mut origin, &mut reply)
                } else {
                    let sent = segment(b + turn, a + turn, 1);
                    step(State::TcpEstablished, false, &sent, &mut reply, &mut origin)
                };
                assert_eq!(step, Step::Pass(State::TcpEstablished), "{a} {b} {turn}");
            }
            let astray = segment(a.wrapping_add(1 << 31), b, 1);
            let step = step(
                State::TcpEstablished,
                true,
                &astray,
                &mut origin,
                &mut reply,
            );
            assert_eq!(step, Step::OutOfWindow);
        }
    }
}

#[test]
fn a_connection_that_another_host_saw_opening_may_have_opened_since() {
    for state in [State::TcpSynSent, State::TcpSynReceived] {
        for from_origin in [true, false] {
            let mut c = Connection {
                state,
                sides: [Side::unknown(), Side::unknown()],
            };
            let (seq, ack) = if from_origin {
                (1001, 5001)
            } else {
                (5001, 1001)
            };
            assert_eq!(
                c.send(from_origin, segment(ACK, seq, ack, 100)),
                Step::Pass(State::TcpEstablished)
            );
            assert_eq!(
                c.send(!from_origin, segment(ACK, ack, seq + 100, 100)),
                Step::Pass(State::TcpEstablished)
            );
        }
        // It has not: the SYN comes again, and nothing is taken for granted.
        let mut c = Connection {
            state,
            sides: [Side::unknown(), Side::unknown()],
        };
        c.send(true, segment(SYN, 1000, 0, 0));
        assert_eq!(c.state, state);
    }
}

/// A host that takes over has heard of the SYN alone, from the host that it went by.
#[test]
fn the_answer_to_a_syn_that_went_by_another_host_opens_the_connection() {
    let mut told = Connection {
        state: State::TcpSynSent,
        sides: [Side::unknown(), Side::unknown()],
    };
    let answer = segment(SYN | ACK, 5000, 1001, 0);
    assert_eq!(told.send(false, answer), Step::Pass(State::TcpSynReceived));
    let ack = segment(ACK, 1001, 5001, 0);
    assert_eq!(told.send(true, ack), Step::Pass(State::TcpEstablished));
    // From then on the numbers count.
    let far = segment(ACK, 90_000_000, 1001, 100);
    assert_eq!(told.send(false, far), Step::OutOfWindow);
}
