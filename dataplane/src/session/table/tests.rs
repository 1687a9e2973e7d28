//! The table's promises to one thread, and a race of several.

use super::*;
use crate::packet::Mac;

fn table(capacity: u32) -> SessionTable {
    SessionTable::new(Limits {
        capacity,
        per_port: 1_000_000,
        per_vpc: 1_000_000,
        ports: 4,
        vpcs: 4,
    })
}

fn flow(number: u32) -> Flow {
    Flow {
        source: 0xffff_0a00_0001,
        destination: 0xffff_0a00_0002,
        source_port: number as u16,
        destination_port: (number >> 16) as u16,
        protocol: 17,
    }
}

fn new(state: State, now: u32) -> NewSession {
    NewSession {
        state,
        port: 1,
        vpc: 1.into(),
        now,
        tcp: Default::default(),
        action: None,
        translation: None,
        mapping: None,
        chosen: None,
        member: None,
    }
}

fn macs(first: u64, second: u64) -> MacPair {
    MacPair::new(Mac::from_word(first), Mac::from_word(second))
}

fn action(egress: Egress) -> Action {
    Action::new(macs(6, 7), egress, Some(macs(8, 9)))
}

#[test]
fn both_directions_find_one_session_each_with_its_own_action() {
    let table = table(1000);
    let there = Key::new(table.seeds(), &flow(1), 5);
    let back = Key::new(table.seeds(), &flow(1).reversed(), 5);
    table
        .insert(&there, &new(State::OneWay, 0))
        .unwrap()
        .set_action(Stamp::new(3, Ingress::Port(1)), &action(Egress::Peer(9)));
    let found = table.find(&there).unwrap();
    assert_eq!(
        found.action(Stamp::new(3, Ingress::Port(1))),
        Some(action(Egress::Peer(9)))
    );
    assert_eq!(
        found.action(Stamp::new(4, Ingress::Port(1))),
        None,
        "another generation"
    );
    assert_eq!(
        found.action(Stamp::new(3, Ingress::Port(2))),
        None,
        "another ingress"
    );
    assert!(found.from_origin());
    let answer = table.find(&back).unwrap();
    assert!(!answer.from_origin());
    assert_eq!(answer.action(Stamp::new(3, Ingress::Peer(9))), None);
    assert!(
        table.find(&Key::new(table.seeds(), &flow(1), 6)).is_none(),
        "another VPC"
    );
    table.remove(&answer);
    assert!(table.find(&there).is_none());
    assert_eq!(
        found.action(Stamp::new(3, Ingress::Port(1))),
        None,
        "a reference outlives its session harmlessly"
    );
    assert_eq!(table.statistics().live, 0);
}

#[test]
fn established_sessions_stay_when_half_open_ones_fill_the_table() {
    let table = table(512);
    let mut kept = Vec::new();
    for number in 0..100 {
        let key = Key::new(table.seeds(), &flow(number), 1);
        table
            .insert(&key, &new(State::OneWay, 0))
            .unwrap()
            .set_state(State::BothWays);
        kept.push(key);
    }
    for number in 100..20_000 {
        let _ = table.insert(
            &Key::new(table.seeds(), &flow(number), 1),
            &new(State::OneWay, number),
        );
    }
    assert!(kept.iter().all(|key| table.find(key).is_some()));
    let statistics = table.statistics();
    assert!(statistics.evicted > 10_000, "{statistics:?}");
    assert!(statistics.live <= statistics.capacity);
}

#[test]
fn budgets_hold_and_are_given_back() {
    for (per_port, per_vpc, refusal) in [
        (10, 1000, InsertError::PortBudget),
        (1000, 10, InsertError::VpcBudget),
    ] {
        let table = SessionTable::new(Limits {
            capacity: 1000,
            per_port,
            per_vpc,
            ports: 4,
            vpcs: 4,
        });
        let key = |number| Key::new(table.seeds(), &flow(number), 1);
        for number in 0..10 {
            table.insert(&key(number), &new(State::OneWay, 0)).unwrap();
        }
        for refused in 1..=2 {
            let error = table.insert(&key(10), &new(State::OneWay, 0)).unwrap_err();
            assert_eq!(error, refusal);
            assert_eq!(table.statistics().refused, refused);
        }
        let other = NewSession {
            port: 2,
            vpc: 2.into(),
            ..new(State::OneWay, 0)
        };
        assert!(table.insert(&key(11), &other).is_ok(), "not its budget");
        table.remove_port(1);
        assert_eq!(table.statistics().live, 1);
        assert!(table.insert(&key(10), &new(State::OneWay, 0)).is_ok());
    }
}

#[test]
fn idle_sessions_expire_by_their_state() {
    let table = table(64);
    let timeouts = Timeouts::default();
    table
        .insert(
            &Key::new(table.seeds(), &flow(1), 1),
            &new(State::OneWay, 0),
        )
        .unwrap();
    table
        .insert(
            &Key::new(table.seeds(), &flow(2), 1),
            &new(State::TcpEstablished, 0),
        )
        .unwrap();
    let capacity = table.statistics().capacity as usize;
    table.sweep(0, capacity, timeouts.of(State::OneWay) - 1, &timeouts);
    assert_eq!(table.statistics().live, 2);
    table.sweep(0, capacity, timeouts.of(State::OneWay), &timeouts);
    assert_eq!(table.statistics().live, 1);
    assert_eq!(table.statistics().expired, 1);
}

#[test]
fn memory_that_was_taken_ahead_holds_what_it_held() {
    let table = table(100_000);
    let key = |number| Key::new(table.seeds(), &flow(number), 1);
    for number in 0..50_000 {
        if number % 10_000 == 0 {
            table.prepare();
        }
        table.insert(&key(number), &new(State::OneWay, 0)).unwrap();
    }
    table.prepare();
    assert!((0..50_000).all(|number| table.find(&key(number)).is_some()));
    assert_eq!(table.statistics().live, 50_000);
}

#[test]
fn readers_and_writers_race_without_mixing_sessions_up() {
    let table = table(4096);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for worker in 0..2u32 {
            let (table, stop) = (&table, &stop);
            scope.spawn(move || {
                for round in 0..60_000u32 {
                    let key = Key::new(table.seeds(), &flow(round * 2 % 6000 + worker), 1);
                    if let Ok(session) = table.insert(&key, &new(State::OneWay, round)) {
                        let mark = key.words[4] >> 48 & 0xfff;
                        let action = action(Egress::Port(mark as u16));
                        session.set_action(Stamp::new(1, Ingress::Port(0)), &action);
                        if round % 3 == 0 {
                            table.remove(&session);
                        }
                    }
                }
                stop.store(true, Ordering::Relaxed);
            });
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for number in 0..6000 {
                    let key = Key::new(table.seeds(), &flow(number), 1);
                    if let Some(action) = table
                        .find(&key)
                        .and_then(|session| session.action(Stamp::new(1, Ingress::Port(0))))
                    {
                        assert_eq!(
                            action.egress(),
                            Egress::Port((key.words[4] >> 48 & 0xfff) as u16)
                        );
                    }
                }
            }
        });
    });
    let live = table.list(usize::MAX, 0, |_| true).len() as u64;
    assert_eq!(live, table.statistics().live);
}

/// Keys of the first shard.
fn keys_of_a_shard(table: &SessionTable) -> impl Iterator<Item = Key> {
    (0..)
        .map(|number| Key::new(table.seeds(), &flow(number), 1))
        .filter(|key| std::ptr::eq(table.shard(key.hash), &table.shards[0]))
}

fn present(table: &SessionTable, keys: &[Key]) -> Vec<bool> {
    keys.iter().map(|key| table.find(key).is_some()).collect()
}

#[test]
fn in_a_full_table_half_open_sessions_give_way_the_newest_first() {
    let table = table(SHARDS as u32 * 8);
    let mut more = keys_of_a_shard(&table);
    let first: Vec<Key> = more.by_ref().take(8).collect();
    for (key, now) in first.iter().zip(0..) {
        table.insert(key, &new(State::OneWay, now)).unwrap();
    }
    for key in &first[3..] {
        table.find(key).unwrap().set_state(State::BothWays);
    }
    for gone in [2, 1, 0] {
        let key = more.next().unwrap();
        table.insert(&key, &new(State::BothWays, 8)).unwrap();
        let left: Vec<bool> = (0..8).map(|i| i < gone || i >= 3).collect();
        assert_eq!(present(&table, &first), left);
    }
    let key = more.next().unwrap();
    for _ in 0..2 {
        assert_eq!(
            table.insert(&key, &new(State::OneWay, 9)).unwrap_err(),
            InsertError::Full
        );
    }
    assert_eq!(
        table.statistics(),
        TableStatistics {
            live: 8,
            capacity: SHARDS as u64 * 8,
            installed: 11,
            expired: 0,
            evicted: 3,
            refused: 2,
        }
    );
}

#[test]
fn where_both_buckets_are_full_the_newest_half_open_session_of_theirs_gives_way() {
    let table = table(SHARDS as u32 * 64);
    // Both buckets of these, of 16, are the first.
    let mut more = keys_of_a_shard(&table).filter(|key| (key.hash | key.hash >> 22) & 0xf == 0);
    let first: Vec<Key> = more.by_ref().take(8).collect();
    for (key, now) in first.iter().zip([5, 3, 8, 1, 2, 4, 6, 7]) {
        table.insert(key, &new(State::OneWay, now)).unwrap();
    }
    let key = more.next().unwrap();
    table.insert(&key, &new(State::BothWays, 9)).unwrap();
    let left: Vec<bool> = (0..8).map(|i| i != 2).collect();
    assert_eq!(present(&table, &first), left);
    for key in first.iter().filter(|key| table.find(key).is_some()) {
        table.find(key).unwrap().set_state(State::TcpEstablished);
    }
    let key = more.next().unwrap();
    assert_eq!(
        table.insert(&key, &new(State::OneWay, 10)).unwrap_err(),
        InsertError::Full
    );
    let TableStatistics {
        live,
        evicted,
        refused,
        ..
    } = table.statistics();
    assert_eq!((live, evicted, refused), (8, 1, 1));
}

#[test]
fn only_what_is_open_both_ways_does_not_give_way() {
    let stays = [
        State::TcpEstablished,
        State::TcpFinOrigin,
        State::TcpFinReply,
        State::BothWays,
    ];
    for state in State::ALL {
        let table = table(SHARDS as u32 * 8);
        let mut keys = keys_of_a_shard(&table);
        for key in keys.by_ref().take(8) {
            table.insert(&key, &new(*state, 0)).unwrap();
        }
        let more = table.insert(&keys.next().unwrap(), &new(State::OneWay, 0));
        assert_eq!(more.is_err(), stays.contains(state), "{state:?}");
    }
}

#[test]
fn a_probe_leads_both_directions_to_the_session_while_it_is_there() {
    let table = table(1000);
    for number in 0..100 {
        let keys =
            [flow(number), flow(number).reversed()].map(|flow| Key::new(table.seeds(), &flow, 1));
        let confirm = |key: &Key| table.confirm(table.probe(key), key);
        let session = table.insert(&keys[0], &new(State::OneWay, 0)).unwrap();
        assert!(confirm(&keys[0]).is_some_and(|session| session.from_origin()));
        assert!(confirm(&keys[1]).is_some_and(|session| !session.from_origin()));
        let before = table.probe(&keys[0]);
        table.remove(&session);
        assert!(table.confirm(before, &keys[0]).is_none());
        assert!(confirm(&keys[0]).is_none());
    }
}

#[test]
fn a_session_is_answered_by_the_first_packet_against_its_opener() {
    for opener in [flow(1), flow(1).reversed()] {
        let table = table(1000);
        let there = Key::new(table.seeds(), &opener, 1);
        let back = Key::new(table.seeds(), &opener.reversed(), 1);
        table.insert(&there, &new(State::OneWay, 0)).unwrap();
        let answered = |key: &Key| table.find(key).unwrap().is_answered();
        assert!(!answered(&there) && answered(&back));
        table.find(&back).unwrap().set_state(State::BothWays);
        assert!(!answered(&there) && !answered(&back));
        assert!(table.find(&there).unwrap().from_origin());
    }
}

#[test]
fn each_side_of_a_connection_keeps_its_window_whoever_asks() {
    let side = |n: u32| tcp::Side::unpack([u64::from(n), u64::from(n) << 32 | u64::from(n + 1)], 0);
    for opener in [flow(1), flow(1).reversed()] {
        let table = table(1000);
        let there = Key::new(table.seeds(), &opener, 1);
        let back = Key::new(table.seeds(), &opener.reversed(), 1);
        let tcp = |key: &Key| table.find(key).unwrap().tcp();
        let session = NewSession {
            tcp: (side(10), side(21)),
            ..new(State::TcpSynSent, 0)
        };
        table.insert(&there, &session).unwrap();
        assert_eq!(tcp(&there), (side(10), side(21)));
        assert_eq!(tcp(&back), (side(21), side(10)));
        table.find(&back).unwrap().set_tcp(side(33), side(44));
        assert_eq!(tcp(&there), (side(44), side(33)));
    }
}

#[test]
fn a_listed_session_shows_its_flow_its_decisions_and_its_packets_each_way() {
    for opener in [flow(1), flow(1).reversed()] {
        let table = table(1000);
        let there = Key::new(table.seeds(), &opener, 5);
        let back = Key::new(table.seeds(), &opener.reversed(), 5);
        let (out, answer) = (action(Egress::Peer(9)), action(Egress::Port(2)));
        let action = Some((Stamp::new(3, Ingress::Port(1)), out));
        let session = NewSession {
            action,
            ..new(State::OneWay, 100)
        };
        let session = table.insert(&there, &session).unwrap();
        for now in [150, 200, 250] {
            session.touch(now);
        }
        let listed = || {
            let mut views = table.list(10, 1250, |vni| vni == 5);
            assert_eq!(views.len(), 1);
            views.remove(0)
        };
        let view = listed();
        assert_eq!((view.vni, view.flow), (5.into(), opener));
        assert_eq!((view.state, view.epoch), (State::OneWay, 3.into()));
        assert_eq!(view.idle_ms, 1000);
        assert_eq!((view.packets_out, view.packets_back), (3, 0));
        assert_eq!((view.action_out, view.action_back), (Some(out), None));

        let reply = table.find(&back).unwrap();
        reply.touch(300);
        reply.set_action(Stamp::new(4, Ingress::Peer(9)), &answer);
        let view = listed();
        assert_eq!((view.epoch, view.idle_ms), (3.into(), 950));
        assert_eq!((view.packets_out, view.packets_back), (3, 1));
        assert_eq!(
            (view.action_out, view.action_back),
            (Some(out), Some(answer))
        );
        assert!(table.list(10, 1250, |vni| vni == 6).is_empty());
        table.remove(&session);
        assert!(table.list(10, 1250, |_| true).is_empty());
    }
}

#[test]
fn a_list_is_as_long_as_asked_for_at_most() {
    let table = table(1000);
    for number in 0..100 {
        let key = Key::new(table.seeds(), &flow(number), 1);
        table.insert(&key, &new(State::OneWay, 0)).unwrap();
    }
    for (limit, length) in [(0, 0), (1, 1), (99, 99), (100, 100), (101, 100)] {
        assert_eq!(table.list(limit, 0, |_| true).len(), length);
    }
}

#[test]
fn a_sweep_in_parts_reaches_every_slot_and_begins_again_behind_the_last() {
    let table = table(SHARDS as u32 * 8);
    let total = SHARDS * 8;
    let timeouts = Timeouts::default();
    let late = timeouts.of(State::OneWay);
    let fill = || {
        for number in 0..1000 {
            // All slots are in use in the end, however the flows spread.
            let key = Key::new(table.seeds(), &flow(number), 1);
            let _ = table.insert(&key, &new(State::OneWay, 0));
        }
        table.statistics().live
    };
    assert_eq!(fill(), total as u64);
    let mut cursor = 0;
    while cursor < total {
        let live = table.statistics().live;
        let swept = 5.min(total - cursor);
        assert_eq!(table.sweep(cursor, 5, late, &timeouts), cursor + 5);
        assert_eq!(table.statistics().live, live - swept as u64);
        cursor += 5;
    }
    assert_eq!(table.statistics().expired, total as u64);
    for behind in [total, total + 3] {
        fill();
        assert_eq!(table.sweep(behind, total, late, &timeouts), total);
        assert_eq!(table.statistics().live, 0);
    }
    table.sweep(0, total, late, &timeouts);
    let TableStatistics { live, expired, .. } = table.statistics();
    assert_eq!((live, expired), (0, 3 * total as u64), "once each");
}

#[test]
fn a_session_last_seen_by_a_clock_that_is_ahead_does_not_expire() {
    let timeouts = Timeouts::default();
    for (seen, now, expires) in [
        (1000, 995, false),
        (1000, 1000, false),
        (5, 4u32.wrapping_sub(u32::MAX / 2), false),
        // Time begins again after 49 days.
        (u32::MAX - 5, timeouts.of(State::OneWay), true),
        (0, u32::MAX / 2 - 1, true),
        (0, u32::MAX / 2, false),
    ] {
        let table = table(64);
        let key = Key::new(table.seeds(), &flow(1), 1);
        table.insert(&key, &new(State::OneWay, seen)).unwrap();
        table.sweep(0, usize::MAX, now, &timeouts);
        assert_eq!(table.find(&key).is_none(), expires, "{seen} {now}");
    }
}

#[test]
fn a_reference_to_a_session_that_is_gone_leaves_its_successor_alone() {
    let table = table(SHARDS as u32 * 8);
    let mut keys = keys_of_a_shard(&table);
    let [gone, next] = std::array::from_fn(|_| keys.next().unwrap());
    let stamp = Stamp::new(1, Ingress::Port(1));
    let old = table.insert(&gone, &new(State::OneWay, 0)).unwrap();
    table.remove(&old);
    table.remove(&old);
    assert_eq!(table.statistics().live, 0);
    let successor = table.insert(&next, &new(State::OneWay, 0)).unwrap();
    assert_eq!(successor.number, old.number, "the slot is taken again");
    old.set_action(stamp, &action(Egress::Port(1)));
    assert_eq!(successor.action(stamp), None);
    successor.set_action(stamp, &action(Egress::Port(2)));
    assert_eq!(old.action(stamp), None);
    table.remove(&old);
    assert!(table.find(&next).is_some());
}

#[test]
fn a_direction_has_an_action_for_each_of_two_ingresses() {
    let table = table(1000);
    let there = Key::new(table.seeds(), &flow(1), 5);
    let session = table.insert(&there, &new(State::OneWay, 0)).unwrap();
    let (first, second) = (
        Stamp::new(3, Ingress::Port(1)),
        Stamp::new(3, Ingress::Port(2)),
    );
    let egress = |stamp| {
        let session = table.find(&there)?;
        let action = session
            .action(stamp)
            .or_else(|| session.second_action(stamp))?;
        Some(action.egress())
    };
    for _ in 0..3 {
        session.set_action(first, &action(Egress::Port(2)));
        session.set_action(second, &action(Egress::Peer(9)));
        assert_eq!(egress(first), Some(Egress::Port(2)));
        assert_eq!(egress(second), Some(Egress::Peer(9)));
    }
    // Another generation takes neither; the other direction has its own.
    assert_eq!(egress(Stamp::new(4, Ingress::Port(2))), None);
    let back = Key::new(table.seeds(), &flow(1).reversed(), 5);
    assert!(table.find(&back).unwrap().second_action(second).is_none());
    // Whoever lives in the slot next has none of it.
    table.remove(&session);
    assert!(session.second_action(second).is_none());
    let again = table.insert(&there, &new(State::OneWay, 0)).unwrap();
    assert!(again.action(first).is_none() && again.second_action(second).is_none());
    // In the next generation the one that comes first has the first place.
    again.set_action(Stamp::new(4, Ingress::Port(2)), &action(Egress::Peer(8)));
    again.set_action(Stamp::new(4, Ingress::Port(1)), &action(Egress::Port(3)));
    assert_eq!(
        egress(Stamp::new(4, Ingress::Port(2))),
        Some(Egress::Peer(8))
    );
    assert_eq!(
        egress(Stamp::new(4, Ingress::Port(1))),
        Some(Egress::Port(3))
    );
}

/// The groups saw both directions the other way round, as did whoever decided for the second ingress.
#[test]
fn a_session_that_turns_round_knows_nothing_that_was_decided_before() {
    let table = table(1000);
    let there = Key::new(table.seeds(), &flow(1), 5);
    let back = Key::new(table.seeds(), &flow(1).reversed(), 5);
    let opened = new(State::TcpEstablished, 0);
    table.insert(&there, &opened).unwrap();
    let find = |key| table.find(key).unwrap();
    let [first, second] = [1, 2].map(|port| Stamp::new(3, Ingress::Port(port)));
    for key in [&there, &back] {
        find(key).set_action(first, &action(Egress::Port(2)));
        find(key).set_action(second, &action(Egress::Peer(9)));
    }
    // What turns it is an answer of its opener, so that the receiver is the opener from now on.
    let answer = find(&there);
    answer.turn(State::TcpSynReceived);
    assert!(!answer.is_live());
    for key in [&there, &back] {
        let session = find(key);
        assert!(session.action(first).is_none() && session.second_action(second).is_none());
        assert_eq!(session.state(), State::TcpSynReceived);
    }
    assert!(find(&back).from_origin() && !find(&there).from_origin());
}

/// The flow of a number as it is before and after its destination was translated.
fn two(number: u32) -> [Flow; 2] {
    let inside = Flow {
        destination: 0xffff_0a00_0009,
        ..flow(number)
    };
    [flow(number), inside]
}

/// A session of a flow that gets other addresses, and the keys of both sides, each as its sender's packets have them.
fn translated(
    table: &SessionTable,
    [outside, inside]: [Flow; 2],
    now: u32,
) -> (NewSession, [Key; 2]) {
    let new = NewSession {
        translation: Some(Translation::new(&outside, &inside, 6)),
        mapping: None,
        chosen: None,
        member: None,
        ..new(State::OneWay, now)
    };
    let keys = [
        Key::new(table.seeds(), &outside, 5),
        Key::new(table.seeds(), &inside.reversed(), 6),
    ];
    (new, keys)
}

#[test]
fn a_translated_session_is_found_by_either_key_and_is_one() {
    // Either order of the ends, on either side.
    let [outside, inside] = two(1);
    for (outside, inside) in [
        (outside, inside),
        (outside, inside.reversed()),
        (outside.reversed(), inside),
    ] {
        let table = table(1000);
        let (new, [there, back]) = translated(&table, [outside, inside], 0);
        table.insert(&there, &new).unwrap();
        let (from_opener, answer) = (table.find(&there).unwrap(), table.find(&back).unwrap());
        assert!(from_opener.from_origin() && !answer.from_origin());
        assert!(from_opener.is_on_first_side() && !answer.is_on_first_side());
        assert_eq!(from_opener.number, answer.number);
        let to = from_opener.translation().unwrap();
        assert_eq!((to.flow, to.vni), (inside, 6.into()));
        let to = answer.translation().unwrap();
        assert_eq!((to.flow, to.vni), (outside.reversed(), 5.into()));
        // The fast path finds it too.
        let probed = table.confirm(table.probe(&back), &back).unwrap();
        assert_eq!(
            probed.translation().map(|it| it.flow),
            Some(outside.reversed())
        );
        // One state, one set of counters, one place in each budget.
        answer.set_state(State::BothWays);
        answer.touch(7);
        assert_eq!(from_opener.state(), State::BothWays);
        let [view] = &table.list(10, 7, |_| true)[..] else {
            panic!("one session");
        };
        assert_eq!((view.vni, view.flow), (5.into(), outside));
        assert_eq!(view.translated, Some((6.into(), inside)));
        assert_eq!((view.packets_out, view.packets_back), (0, 1));
        assert_eq!(table.per_port[1].load(Ordering::Relaxed), 1);
        table.remove(&answer);
        assert!(table.find(&there).is_none() && table.find(&back).is_none());
        assert!(from_opener.translation().is_none(), "it has gone");
        assert_eq!(table.per_port[1].load(Ordering::Relaxed), 0);
        let seconds = table
            .shards
            .iter()
            .flat_map(|shard| shard.index.neighbours(back.hash));
        assert_eq!(seconds.count(), 0);
    }
}

#[test]
fn a_packet_on_the_wrong_side_is_not_translated_but_may_be_quoted() {
    let table = table(1000);
    let (new, [there, back]) = translated(&table, two(1), 0);
    table.insert(&there, &new).unwrap();
    let [outside, inside] = two(1);
    // The opener's packet with the addresses that it has on the other side, and an answer with those that it gets.
    for (flow, vni, origin) in [
        (inside, 6, outside),
        (outside.reversed(), 5, inside.reversed()),
    ] {
        let found = table.find(&Key::new(table.seeds(), &flow, vni)).unwrap();
        assert_eq!(found.translation(), None);
        assert_eq!(found.origin().map(|it| it.flow), Some(origin));
    }
    for key in [there, back] {
        let found = table.find(&key).unwrap();
        assert!(found.translation().is_some() && found.origin().is_none());
    }
    let plain = Key::new(table.seeds(), &flow(9), 5);
    let plain = table.insert(&plain, &self::new(State::OneWay, 0)).unwrap();
    assert_eq!((plain.translation(), plain.origin()), (None, None));
}

#[test]
fn no_two_sessions_share_a_key() {
    let [outside, inside] = two(1);
    let table = table(1000);
    let plain = |flow: &Flow, vni| Key::new(table.seeds(), flow, vni);
    let (translated, [there, _]) = translated(&table, [outside, inside], 0);
    // What the second key would be is taken.
    table
        .insert(&plain(&inside, 6), &new(State::OneWay, 0))
        .unwrap();
    let clash = table.insert(&there, &translated).map(|_| ());
    assert_eq!(clash, Err(InsertError::Clash));
    assert!(table.find(&there).is_none());
    table.remove(&table.find(&plain(&inside, 6)).unwrap());
    // The other way round.
    let first = table.insert(&there, &translated).unwrap().number;
    for (flow, vni) in [(inside, 6), (inside.reversed(), 6), (outside, 5)] {
        let clash = table.insert(&plain(&flow, vni), &new(State::OneWay, 0));
        assert_eq!(clash.map(|_| ()), Err(InsertError::Clash));
    }
    // Made twice at once by two workers it is one; but not with two translations.
    assert_eq!(table.insert(&there, &translated).unwrap().number, first);
    let other = NewSession {
        translation: Some(Translation::new(&outside, &flow(77), 6)),
        mapping: None,
        chosen: None,
        member: None,
        ..translated
    };
    assert_eq!(
        table.insert(&there, &other).map(|_| ()),
        Err(InsertError::Clash)
    );
    let itself = NewSession {
        translation: Some(Translation::new(&flow(3), &flow(3), 5)),
        mapping: None,
        chosen: None,
        member: None,
        ..translated
    };
    let clash = table.insert(&plain(&flow(3), 5), &itself).map(|_| ());
    assert_eq!(clash, Err(InsertError::Clash));
}

/// Sessions with one and with two keys come and go in a table that is too small, from two workers: its books stay right, and nobody is led to another's.
#[test]
fn the_books_balance_with_sessions_of_two_keys() {
    let table = table(512);
    std::thread::scope(|scope| {
        for worker in 0..2u32 {
            let table = &table;
            scope.spawn(move || {
                for round in 0..30_000u32 {
                    let number = (round * 7 + worker * 3) % 4000;
                    let (new, keys) = if number % 3 == 0 {
                        let key = Key::new(table.seeds(), &flow(number), 5);
                        (super::tests::new(State::OneWay, round), [key, key])
                    } else {
                        translated(table, two(number), round)
                    };
                    let opened = table.insert(&keys[0], &new);
                    if number % 5 == 0
                        && let Ok(session) = &opened
                    {
                        table.remove(session);
                    }
                    if let Some(found) = table.find(&keys[1])
                        && let Some(translation) = found.translation()
                    {
                        assert_eq!(translation.flow, two(number)[0].reversed());
                    }
                    if round % 512 == 0 {
                        table.sweep(0, 600, round, &Timeouts::default());
                    }
                }
            });
        }
    });
    let views = table.list(usize::MAX, 0, |_| true);
    assert_eq!(table.statistics().live, views.len() as u64);
    assert_eq!(
        table.per_port[1].load(Ordering::Relaxed),
        views.len() as u32
    );
    assert!(views.iter().any(|view| view.translated.is_some()));
    assert!(views.iter().any(|view| view.translated.is_none()));
    for view in &views {
        let found = |flow: &Flow, vni| table.find(&Key::new(table.seeds(), flow, vni));
        let first = found(&view.flow, view.vni).expect("by its first key");
        if let Some((vni, flow)) = view.translated {
            let second = found(&flow, vni).expect("by its second key");
            assert_eq!(
                (first.number, first.shard.place),
                (second.number, second.shard.place)
            );
        }
    }
    table.remove_port(1);
    assert_eq!(table.statistics().live, 0);
    for number in 0..4000 {
        for flow in two(number) {
            for vni in [5, 6] {
                let hash = Key::new(table.seeds(), &flow, vni).hash;
                let mut left = table
                    .shards
                    .iter()
                    .flat_map(|shard| shard.index.neighbours(hash));
                assert_eq!(left.next(), None, "an entry of the index is left behind");
            }
        }
    }
}

#[test]
fn sessions_go_with_an_address_of_either_side() {
    for address in [0xffff_0a00_0002, 0xffff_0a00_0009] {
        for vni in [5, 6] {
            let table = table(1000);
            let (new, [there, _]) = translated(&table, two(1), 0);
            table.insert(&there, &new).unwrap();
            table.remove_addresses(&HashSet::from([(vni.into(), address)]));
            let goes = (vni == 5) == (address == 0xffff_0a00_0002);
            assert_eq!(table.find(&there).is_none(), goes);
        }
    }
}

/// Who was chosen for a session with one key goes with it, and the slot's next session knows nothing of that.
#[test]
fn a_session_with_one_key_keeps_the_member_that_was_chosen() {
    let table = table(1000);
    let member = 0xfd00 << 112 | 7;
    let key = Key::new(table.seeds(), &flow(1), 5);
    let back = Key::new(table.seeds(), &flow(1).reversed(), 5);
    let chosen = NewSession {
        chosen: Some(member),
        ..new(State::OneWay, 0)
    };
    table.insert(&key, &chosen).unwrap();
    // Another worker that has chosen another one finds that out, and what the session says stays.
    let other = NewSession {
        chosen: Some(8),
        ..chosen
    };
    let clash = table.insert(&key, &other).map(drop);
    assert_eq!(clash, Err(InsertError::Clash));
    assert!(table.insert(&key, &chosen).is_ok());
    for key in [&key, &back] {
        let found = table.find(key).unwrap();
        assert_eq!(found.chosen(), Some(member));
        assert!(!found.is_translated() && found.translation().is_none());
    }
    assert_eq!(table.list(9, 0, |_| true)[0].chosen, Some(member));
    let gone = table.find(&key).unwrap();
    table.remove(&gone);
    assert_eq!(gone.chosen(), None);
    table.insert(&key, &new(State::OneWay, 0)).unwrap();
    assert_eq!(table.find(&key).unwrap().chosen(), None);
}
