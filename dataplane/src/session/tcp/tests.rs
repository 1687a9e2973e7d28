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
        first(&syn, &mut a, &mut b);
        Self {
            state: begin(&syn).unwrap(),
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
        let [a, b] = &mut self.sides;
        let (sender, receiver) = if from_origin { (a, b) } else { (b, a) };
        let step = step(self.state, from_origin, &segment, sender, receiver);
        if let Step::Pass(next) = step {
            self.state = next;
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
fn a_blind_reset_does_not_close_and_one_in_window_does() {
    let mut c = Connection::established();
    assert_eq!(
        c.send(false, segment(RST, 5001u32.wrapping_add(1 << 30), 0, 0)),
        Step::OutOfWindow
    );
    assert_eq!(
        c.send(false, segment(RST, 5001u32.wrapping_sub(200_000), 0, 0)),
        Step::OutOfWindow
    );
    assert_eq!(c.state, State::TcpEstablished);
    assert_eq!(
        c.send(false, segment(RST, 5001, 0, 0)),
        Step::Pass(State::TcpClosed)
    );
}

#[test]
fn a_refused_connection_closes_on_its_reset_alone() {
    let mut c = Connection::open();
    assert_eq!(
        c.send(false, segment(RST | ACK, 0, 77, 0)),
        Step::OutOfWindow
    );
    assert_eq!(
        c.send(false, segment(RST | ACK, 0, 1001, 0)),
        Step::Pass(State::TcpClosed)
    );
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
    first(&syn, &mut a, &mut b);
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

/// A connection of which only this segment of the opener is known.
fn picked_up(segment: Segment) -> Connection {
    let (mut a, mut b) = (Side::default(), Side::default());
    first(&segment, &mut a, &mut b);
    Connection {
        state: State::TcpEstablished,
        sides: [a, b],
    }
}

#[test]
fn a_window_picked_up_in_mid_stream_holds_where_numbers_wrap() {
    let mut c = picked_up(segment(ACK, 1, 0xffff_ff00, 10));
    for seq in [0xffff_ff00u32, 0xffff_ff64] {
        assert_eq!(
            c.send(false, segment(ACK, seq, 11, 100)),
            Step::Pass(State::TcpEstablished)
        );
    }
}

#[test]
fn an_old_segment_after_a_pick_up_does_not_undo_what_was_acknowledged() {
    let mut c = picked_up(segment(ACK, 1, 5000, 10));
    assert_eq!(
        c.send(false, segment(ACK, 4000, 11, 500)),
        Step::Pass(State::TcpEstablished)
    );
    assert_eq!(
        c.send(true, segment(ACK, 11, 5000, 0)),
        Step::Pass(State::TcpEstablished)
    );
}

#[test]
fn mid_stream_segments_are_picked_up_but_not_resets_or_syn_acks() {
    assert_eq!(begin(&segment(ACK, 1, 1, 10)), Some(State::TcpEstablished));
    for flags in [SYN | ACK, RST, RST | ACK, FIN | ACK] {
        assert_eq!(begin(&segment(flags, 1, 1, 0)), None);
    }
    let data = segment(ACK, 70_000, 90_000, 1000);
    let (mut a, mut b) = (Side::default(), Side::default());
    first(&data, &mut a, &mut b);
    let mut c = Connection {
        state: State::TcpEstablished,
        sides: [a, b],
    };
    assert_eq!(
        c.send(false, segment(ACK, 90_000, 71_000, 1400)),
        Step::Pass(State::TcpEstablished)
    );
    assert_eq!(
        c.send(true, segment(ACK, 71_000, 91_400, 1000)),
        Step::Pass(State::TcpEstablished)
    );
}

/// RFC 9293 §3.3.2 as a filter sees it: what becomes of a connection when either end sends a segment of these flags.
#[test]
fn every_state_goes_where_a_segment_takes_it() {
    const I: Step = Step::Invalid;
    const AGAIN: Step = Step::Reopen;
    const SENT: Step = Step::Pass(State::TcpSynSent);
    const BOTH: Step = Step::Pass(State::TcpSimultaneous);
    const BOTH_O: Step = Step::Pass(State::TcpSimultaneousOrigin);
    const BOTH_R: Step = Step::Pass(State::TcpSimultaneousReply);
    const HALF: Step = Step::Pass(State::TcpSynReceived);
    const OPEN: Step = Step::Pass(State::TcpEstablished);
    const FIN_O: Step = Step::Pass(State::TcpFinOrigin);
    const FIN_R: Step = Step::Pass(State::TcpFinReply);
    const WAIT: Step = Step::Pass(State::TcpTimeWait);
    let columns = [SYN, SYN | ACK, ACK, FIN | ACK, FIN, 0];
    // First what the opener sends, then the other side.
    let rows = [
        (
            State::TcpSynSent,
            [SENT, I, I, I, I, I],
            [BOTH, HALF, I, I, I, I],
        ),
        (
            State::TcpSimultaneous,
            [BOTH, BOTH_O, BOTH_O, BOTH_O, I, I],
            [BOTH, BOTH_R, BOTH_R, BOTH_R, I, I],
        ),
        (
            State::TcpSimultaneousOrigin,
            [BOTH_O; 6],
            [BOTH_O, OPEN, OPEN, OPEN, BOTH_O, BOTH_O],
        ),
        (
            State::TcpSimultaneousReply,
            [BOTH_R, OPEN, OPEN, OPEN, BOTH_R, BOTH_R],
            [BOTH_R; 6],
        ),
        (
            State::TcpSynReceived,
            [HALF, I, OPEN, FIN_O, HALF, HALF],
            [HALF, HALF, HALF, FIN_R, HALF, HALF],
        ),
        (
            State::TcpEstablished,
            [OPEN, OPEN, OPEN, FIN_O, FIN_O, OPEN],
            [OPEN, OPEN, OPEN, FIN_R, FIN_R, OPEN],
        ),
        (
            State::TcpFinOrigin,
            [FIN_O; 6],
            [FIN_O, FIN_O, FIN_O, WAIT, WAIT, FIN_O],
        ),
        (
            State::TcpFinReply,
            [FIN_R, FIN_R, FIN_R, WAIT, WAIT, FIN_R],
            [FIN_R; 6],
        ),
        (
            State::TcpTimeWait,
            [AGAIN, I, WAIT, WAIT, WAIT, WAIT],
            [AGAIN, I, WAIT, WAIT, WAIT, WAIT],
        ),
        (
            State::TcpClosed,
            [AGAIN, I, I, I, I, I],
            [AGAIN, I, I, I, I, I],
        ),
        (
            State::TcpDenied,
            [AGAIN, I, OPEN, OPEN, OPEN, OPEN],
            [AGAIN, I, OPEN, OPEN, OPEN, OPEN],
        ),
    ];
    for (state, origin, reply) in rows {
        for (from_origin, steps) in [(true, origin), (false, reply)] {
            for (flags, wanted) in columns.into_iter().zip(steps) {
                let step = transition(state, from_origin, &segment(flags, 1, 1, 0));
                assert_eq!(step, wanted, "{state:?} {from_origin} {flags:#x}");
            }
            let reset = transition(state, from_origin, &segment(RST, 1, 1, 0));
            assert_eq!(reset, Step::Pass(State::TcpClosed), "{state:?}");
        }
    }
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

#[test]
fn a_side_comes_out_of_its_two_words_as_it_went_in() {
    for (scale, scale_offered) in [(0, false), (0, true), (7, true), (9, false), (14, true)] {
        let side = Side {
            end: 0xfedc_ba98,
            max_end: 0x8765_4321,
            max_window: 0x9abc_def0,
            scale,
            scale_offered,
        };
        assert_eq!(Side::unpack(side.pack()), side);
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
fn a_connection_begins_with_a_syn_or_in_mid_stream_whatever_else_is_set() {
    const PSH_URG: u8 = 0x28;
    for (flags, state) in [
        (SYN, Some(State::TcpSynSent)),
        (SYN | PSH_URG, Some(State::TcpSynSent)),
        (ACK, Some(State::TcpEstablished)),
        (ACK | PSH_URG, Some(State::TcpEstablished)),
        (PSH_URG, None),
        (0, None),
        (FIN, None),
        (SYN | FIN, None),
        (SYN | RST, None),
    ] {
        assert_eq!(begin(&segment(flags, 1, 1, 0)), state, "{flags:#x}");
    }
}

#[test]
fn the_first_segment_says_how_far_each_side_may_send() {
    let sides = |segment: Segment| {
        let mut sides = [Side::default(); 2];
        let [sender, receiver] = &mut sides;
        first(&segment, sender, receiver);
        sides
    };
    let mut syn = segment(SYN, 1000, 0, 5);
    let opener = Side {
        end: 1006,
        max_end: 1006,
        max_window: 64_000,
        scale: 0,
        scale_offered: false,
    };
    assert_eq!(sides(syn), [opener, Side::default()]);
    (syn.scale, syn.window) = (Some(9), 0);
    let scaled = Side {
        max_window: 1,
        scale: 9,
        scale_offered: true,
        ..opener
    };
    assert_eq!(sides(syn), [scaled, Side::default()]);
    // In mid-stream any scale may have been agreed: RFC 7323 §2.3 has 14 at most.
    let most = 64_000 << 14;
    assert_eq!(
        sides(segment(ACK, 1000, 7000, 5)),
        [
            Side {
                end: 1005,
                max_end: 1005 + most,
                max_window: most,
                scale: 14,
                scale_offered: false,
            },
            Side {
                end: 7000,
                max_end: 7000 + most,
                max_window: 0,
                scale: 14,
                scale_offered: true,
            },
        ]
    );
}

/// The four bounds, each at its last number and one beyond; windows below 66000 bytes count as so many (van Rooij §3.4).
#[test]
fn a_segment_is_in_the_window_up_to_its_four_bounds() {
    // Sent up to 100000 of 150000 allowed; the other side up to 500000.
    let judge = |windows: (u32, u32), segment: Segment| {
        let mut sender = Side {
            end: 100_000,
            max_end: 150_000,
            max_window: windows.0,
            ..Side::default()
        };
        let mut receiver = Side {
            end: 500_000,
            max_end: 510_000,
            max_window: windows.1,
            ..Side::default()
        };
        window(&segment, &mut sender, &mut receiver)
    };
    let (large, small) = ((70_000, 80_000), (500, 1000));
    let to = |end: u32, ack: u32| segment(ACK, end - 10, ack, 10);
    let reset = |seq: u32| segment(RST, seq, 0, 0);
    for (windows, segment, inside) in [
        (large, to(150_001, 500_000), true),
        (large, to(150_002, 500_000), false),
        (large, to(20_000, 500_000), true),
        (large, to(19_999, 500_000), false),
        (small, to(34_000, 500_000), true),
        (small, to(33_999, 500_000), false),
        (large, to(100_010, 500_001), false),
        (large, to(100_010, 430_000), true),
        (large, to(100_010, 429_999), false),
        (small, to(100_010, 434_000), true),
        (small, to(100_010, 433_999), false),
        // A reset does not have that generous a window (RFC 5961 §3), and acknowledges nothing.
        (large, reset(20_000), true),
        (large, reset(19_999), false),
        (small, reset(99_000), true),
        (small, reset(98_999), false),
        ((500, 0), reset(99_999), true),
        ((500, 0), reset(99_998), false),
        (small, reset(150_001), true),
        (small, reset(150_002), false),
    ] {
        assert_eq!(judge(windows, segment), inside, "{windows:?} {segment:?}");
    }
}

#[test]
fn a_segment_in_the_window_moves_both_sides_on_and_never_back() {
    let sender = Side {
        end: 1000,
        max_end: 9000,
        max_window: 4000,
        scale: 2,
        scale_offered: true,
    };
    let receiver = Side {
        end: 5000,
        max_end: 6000,
        max_window: 3000,
        ..Side::default()
    };
    let after = |segment: Segment| {
        let (mut sender, mut receiver) = (sender, receiver);
        assert!(window(&segment, &mut sender, &mut receiver));
        (
            (sender.end, sender.max_end, sender.max_window),
            (receiver.end, receiver.max_end, receiver.max_window),
        )
    };
    let granting = |window, segment| Segment { window, ..segment };
    for (segment, sent, allowed) in [
        (
            granting(500, segment(ACK, 1000, 5000, 100)),
            (1100, 9000, 4000),
            7000,
        ),
        (
            granting(1001, segment(ACK, 1000, 5000, 100)),
            (1100, 9000, 4004),
            9004,
        ),
        (
            granting(500, segment(ACK, 800, 4000, 100)),
            (1000, 9000, 4000),
            6000,
        ),
        (
            granting(500, segment(ACK, 1000, 4500, 0)),
            (1000, 9000, 4000),
            6500,
        ),
        (
            granting(0, segment(ACK, 1000, 5000, 0)),
            (1000, 9000, 4000),
            6000,
        ),
        (
            granting(9000, segment(0, 1000, 5000, 1)),
            (1001, 9000, 4000),
            6000,
        ),
    ] {
        let wanted = (sent, (5000, allowed, 3000));
        assert_eq!(after(segment), wanted, "{segment:?}");
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

#[test]
fn a_side_that_speaks_for_the_first_time_is_believed_unless_it_repeats_itself() {
    // What it has sent is known from what was acknowledged: 200000.
    let end_after = |receiver_window: u32, end: u32| {
        let mut sender = Side {
            end: 200_000,
            max_end: 201_000,
            ..Side::default()
        };
        let mut receiver = Side {
            end: 7000,
            max_end: 7000,
            max_window: receiver_window,
            ..Side::default()
        };
        let segment = Segment {
            window: 0,
            ..segment(ACK, end - 10, 7000, 10)
        };
        assert!(window(&segment, &mut sender, &mut receiver));
        assert_eq!(sender.max_window, 1);
        (sender.end, sender.max_end)
    };
    for (window, end, wanted) in [
        (70_000, 200_000, (200_000, 201_000)),
        (70_000, 199_000, (200_000, 201_000)),
        (70_000, 130_000, (200_000, 201_000)),
        (70_000, 129_999, (129_999, 199_999)),
        (70_000, 200_001, (200_001, 270_001)),
        (70_000, 900_000, (900_000, 970_000)),
        (500, 134_000, (200_000, 201_000)),
        (500, 133_999, (133_999, 134_499)),
    ] {
        assert_eq!(end_after(window, end), wanted, "{window} {end}");
    }
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

#[test]
fn a_syn_may_take_another_number_until_it_is_answered() {
    let mut c = Connection::open();
    assert_eq!(
        c.send(true, segment(SYN, 3000, 0, 0)),
        Step::Pass(State::TcpSynSent)
    );
    assert_eq!(
        c.send(false, segment(SYN | ACK, 5000, 3001, 0)),
        Step::Pass(State::TcpSynReceived)
    );
    assert_eq!(c.send(true, segment(SYN, 4000, 0, 0)), Step::OutOfWindow);
    assert_eq!(
        c.send(true, segment(SYN, 3000, 0, 0)),
        Step::Pass(State::TcpSynReceived)
    );
    // The other side's number is its own to choose.
    assert_eq!(
        c.send(false, segment(SYN | ACK, 8000, 3001, 0)),
        Step::Pass(State::TcpSynReceived)
    );
    assert_eq!(
        c.send(true, segment(ACK, 3001, 8001, 0)),
        Step::Pass(State::TcpEstablished)
    );
}

/// RFC 5961 §4: whoever sends it, it is the end host's to challenge.
#[test]
fn a_syn_in_an_open_connection_passes_and_changes_nothing() {
    for (fins, state) in [
        (&[][..], State::TcpEstablished),
        (&[true], State::TcpFinOrigin),
        (&[false], State::TcpFinReply),
    ] {
        let mut c = Connection::established();
        for from_origin in fins {
            let (seq, ack) = if *from_origin {
                (1001, 5001)
            } else {
                (5001, 1001)
            };
            c.send(*from_origin, segment(FIN | ACK, seq, ack, 0));
        }
        let sides = c.sides;
        for (from_origin, flags) in [
            (true, SYN),
            (false, SYN),
            (true, SYN | ACK),
            (false, SYN | ACK),
        ] {
            assert_eq!(
                c.send(from_origin, segment(flags, 77_777, 88_888, 0)),
                Step::Pass(state)
            );
            assert_eq!(c.sides, sides);
        }
    }
}

/// RFC 7323 §2.2: a scale is in force where both have offered one, and the window of a SYN is never scaled.
#[test]
fn windows_scale_where_both_sides_have_offered_it() {
    for (ours, theirs, agreed) in [
        (Some(7), Some(2), (7, 2)),
        (Some(7), None, (0, 0)),
        (None, Some(2), (0, 0)),
        (None, None, (0, 0)),
    ] {
        let (mut opener, mut other) = (Side::default(), Side::default());
        let syn = Segment {
            scale: ours,
            ..segment(SYN, 1000, 0, 0)
        };
        first(&syn, &mut opener, &mut other);
        let answer = Segment {
            scale: theirs,
            window: 3000,
            ..segment(SYN | ACK, 5000, 1001, 0)
        };
        let step = step(State::TcpSynSent, false, &answer, &mut other, &mut opener);
        assert_eq!(step, Step::Pass(State::TcpSynReceived));
        assert_eq!((opener.scale, other.scale), agreed, "{ours:?} {theirs:?}");
        assert_eq!((opener.end, opener.max_end), (1001, 4001));
        assert_eq!((other.end, other.max_end), (5001, 69_001));
        assert_eq!((opener.max_window, other.max_window), (64_000, 3000));
    }
}

/// The opener may give up; of the other side only a reset that acknowledges the SYN is an answer (RFC 9293 §3.10.7.3).
#[test]
fn a_reset_while_opening_is_the_openers_or_acknowledges_the_syn() {
    for (from_origin, flags, ack, closes) in [
        (true, RST, 0, true),
        (true, RST | ACK, 77, true),
        (false, RST, 1001, false),
        (false, RST | ACK, 1000, false),
        (false, RST | ACK, 1001, true),
    ] {
        let mut c = Connection::open();
        let wanted = if closes {
            Step::Pass(State::TcpClosed)
        } else {
            Step::OutOfWindow
        };
        // Far from any window: it is not asked.
        let reset = segment(flags, 0x4000_0000, ack, 0);
        assert_eq!(
            c.send(from_origin, reset),
            wanted,
            "{from_origin} {flags:#x} {ack}"
        );
    }
}
