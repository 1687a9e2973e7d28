//! The table under a model checker: every order of what two workers do, with every value that a load may see.

use super::*;
use crate::packet::Mac;
use crate::sync::Arc;
use crate::sync::model::check;

const STAMP: fn(u32) -> Stamp = |generation| Stamp::new(generation, Ingress::Port(0));

fn table() -> Arc<SessionTable> {
    Arc::new(SessionTable::new(Limits {
        capacity: 4,
        per_port: 100,
        per_vpc: 100,
        ports: 1,
        vpcs: 1,
    }))
}

/// Keys of flows that share a shard, and so two slots and a bucket.
fn keys<const N: usize>(table: &SessionTable) -> [Key; N] {
    let flow = |number| Flow {
        source: 0xffff_0a00_0001,
        destination: 0xffff_0a00_0002,
        source_port: number,
        destination_port: 9,
        protocol: 17,
    };
    let mut keys = (1..)
        .map(|number| Key::new(table.seeds(), &flow(number), 7))
        .filter(|key| key.hash >> 63 == 0);
    std::array::from_fn(|_| keys.next().unwrap())
}

/// An action all of whose words say whose it is.
fn action(mark: u16) -> Action {
    let mac = |word: u16| Mac::from_bytes([word as u8; 6]);
    Action::new(
        MacPair::new(mac(mark), mac(mark + 1)),
        Egress::Port(mark),
        Some(MacPair::new(mac(mark + 2), mac(mark + 3))),
    )
}

fn new(state: State, action: Option<(Stamp, Action)>) -> NewSession {
    NewSession {
        state,
        port: 0,
        vpc: 0.into(),
        now: 0,
        tcp: Default::default(),
        action,
        translation: None,
        mapping: None,
        chosen: None,
        member: None,
    }
}

/// What the table holds is what its books say.
fn balances(table: &SessionTable) {
    let live = table.list(usize::MAX, 0, |_| true).len();
    assert_eq!(table.statistics().live, live as u64);
    assert_eq!(table.per_port[0].load(Ordering::Relaxed), live as u32);
    assert_eq!(table.per_vpc[0].load(Ordering::Relaxed), live as u32);
    for shard in table.shards.iter() {
        let free = shard.lock().free.len() as u32;
        let here = shard.slots.iter().filter(|slot| slot.is_live()).count() as u32;
        assert_eq!(
            free + here,
            shard.used.load(Ordering::Relaxed),
            "a slot is lost"
        );
    }
}

fn looked_up(table: &SessionTable, key: &Key, stamp: Stamp) -> Option<Action> {
    table.confirm(table.probe(key), key)?.action(stamp)
}

/// A session goes and another takes its slot, while a reader looks for one of the two.
fn slot_changes_hands(name: &str, asked: usize) {
    check(name, 1, move || {
        let table = table();
        let [first, second] = keys(&table);
        let old = table
            .insert(&first, &new(State::OneWay, Some((STAMP(1), action(10)))))
            .unwrap()
            .number;
        let writer = Arc::clone(&table);
        let writer = loom::thread::spawn(move || {
            let session = writer.find(&first).unwrap();
            writer.remove(&session);
            let next = writer.insert(&second, &new(State::OneWay, Some((STAMP(1), action(20)))));
            assert_eq!(next.unwrap().number, old);
        });
        let (key, its_own) = [(first, action(10)), (second, action(20))][asked];
        if let Some(found) = looked_up(&table, &key, STAMP(1)) {
            assert_eq!(found, its_own);
        }
        writer.join().unwrap();
        assert!(table.find(&first).is_none() && table.find(&second).is_some());
        balances(&table);
    });
}

#[test]
fn threads_read_their_own_flow_while_its_slot_is_given_away() {
    slot_changes_hands("slot_given_away", 0);
}

#[test]
fn threads_read_their_own_flow_as_it_takes_a_slot_of_another() {
    slot_changes_hands("slot_taken_over", 1);
}

/// The same, where the reader looks for nothing but the session.
fn slot_is_found(name: &str, asked: usize) {
    check(name, 1, move || {
        let table = table();
        let [first, second] = keys(&table);
        table.insert(&first, &new(State::OneWay, None)).unwrap();
        let writer = Arc::clone(&table);
        let writer = loom::thread::spawn(move || {
            let session = writer.find(&first).unwrap();
            writer.remove(&session);
            writer.insert(&second, &new(State::OneWay, None)).unwrap();
        });
        let (key, version) = [(first, 1), (second, 3)][asked];
        if let Some(found) = table.find(&key) {
            assert_eq!(found.version, version);
        }
        writer.join().unwrap();
        balances(&table);
    });
}

#[test]
fn threads_find_a_session_that_goes_under_its_own_version() {
    slot_is_found("found_going", 0);
}

#[test]
fn threads_find_a_session_that_comes_under_its_own_version() {
    slot_is_found("found_coming", 1);
}

#[test]
fn threads_read_an_action_of_one_judgement_and_generation() {
    check("judged_again", 2, || {
        let table = table();
        let [key] = keys(&table);
        table
            .insert(&key, &new(State::OneWay, Some((STAMP(1), action(10)))))
            .unwrap();
        let writer = Arc::clone(&table);
        let writer = loom::thread::spawn(move || {
            let session = writer.find(&key).unwrap();
            session.set_action(STAMP(2), &action(20));
        });
        let session = table.find(&key).unwrap();
        for (generation, action) in [(1, action(10)), (2, action(20))] {
            if let Some(found) = session.action(STAMP(generation)) {
                assert_eq!(found, action);
            }
        }
        writer.join().unwrap();
        assert_eq!(session.action(STAMP(1)), None);
        assert_eq!(session.action(STAMP(2)), Some(action(20)));
    });
}

#[test]
fn threads_read_a_whole_action_when_one_generation_decides_twice() {
    // As for a guest that sends a flow to two MACs in turn, by queues of two workers.
    check("decided_twice", 2, || {
        let table = table();
        let [key] = keys(&table);
        table
            .insert(&key, &new(State::OneWay, Some((STAMP(1), action(10)))))
            .unwrap();
        let writer = Arc::clone(&table);
        let writer = loom::thread::spawn(move || {
            let session = writer.find(&key).unwrap();
            session.set_action(STAMP(1), &action(20));
        });
        let found = table.find(&key).unwrap().action(STAMP(1));
        assert!(
            [None, Some(action(10)), Some(action(20))].contains(&found),
            "{found:?}"
        );
        writer.join().unwrap();
    });
}

#[test]
fn threads_that_open_one_flow_share_one_session() {
    check("opened_twice", 2, || {
        let table = table();
        let [key] = keys(&table);
        let other = Arc::clone(&table);
        let other = loom::thread::spawn(move || {
            let session = other.insert(&key, &new(State::OneWay, Some((STAMP(1), action(10)))));
            session.unwrap().number
        });
        let session = table.insert(&key, &new(State::OneWay, Some((STAMP(1), action(10)))));
        let session = session.unwrap();
        assert_eq!(other.join().unwrap(), session.number);
        assert_eq!(session.action(STAMP(1)), Some(action(10)));
        assert_eq!(table.statistics().installed, 1);
        balances(&table);
    });
}

#[test]
fn threads_that_end_one_session_end_it_once() {
    check("ended_twice", 2, || {
        let table = table();
        let [key, next] = keys(&table);
        table.insert(&key, &new(State::OneWay, None)).unwrap();
        let sweeper = Arc::clone(&table);
        let sweeper = loom::thread::spawn(move || {
            let timeouts = Timeouts::default();
            sweeper.sweep(0, 4, timeouts.of(State::OneWay), &timeouts);
        });
        if let Some(session) = table.find(&key) {
            table.remove(&session);
        }
        let fresh = NewSession {
            now: u32::MAX / 4,
            ..new(State::OneWay, None)
        };
        table.insert(&next, &fresh).unwrap();
        sweeper.join().unwrap();
        assert!(table.find(&key).is_none() && table.find(&next).is_some());
        balances(&table);
    });
}

#[test]
fn threads_read_their_own_flow_while_others_give_way() {
    check("gives_way", 2, || {
        let table = table();
        let [kept, newest, late] = keys(&table);
        for (key, state) in [(kept, State::BothWays), (newest, State::OneWay)] {
            let mark = if key.words == kept.words { 10 } else { 20 };
            table
                .insert(&key, &new(state, Some((STAMP(1), action(mark)))))
                .unwrap();
        }
        let writer = Arc::clone(&table);
        let writer = loom::thread::spawn(move || {
            let session = writer.insert(&late, &new(State::OneWay, Some((STAMP(1), action(30)))));
            assert_eq!(session.unwrap().action(STAMP(1)), Some(action(30)));
        });
        if let Some(found) = looked_up(&table, &newest, STAMP(1)) {
            assert_eq!(found, action(20));
        }
        assert_eq!(
            table.find(&kept).and_then(|it| it.action(STAMP(1))),
            Some(action(10))
        );
        writer.join().unwrap();
        assert!(table.find(&newest).is_none() && table.find(&late).is_some());
        balances(&table);
    });
}

/// Flows that are translated from one shard into the other: the packet that opens each, its session, and the key that its answers have. Of the first the
/// first key lies in shard 0, of the second in shard 1.
fn crossing(table: &SessionTable) -> [(Key, NewSession, Key); 2] {
    let flow = |source: u128, number| Flow {
        source,
        destination: 0xffff_0a00_0002,
        source_port: number,
        destination_port: 9,
        protocol: 17,
    };
    [0, 1].map(|home| {
        let key = |source, shard| {
            let mut all = (1..).map(|number| flow(source, number));
            let found = all.find(|flow| {
                Key::new(table.seeds(), flow, 7).hash >> 63 == shard && flow.source_port > 0
            });
            found.unwrap()
        };
        let (before, after) = (key(0xffff_0a00_0001, home), key(0xffff_0a00_0005, 1 - home));
        let new = NewSession {
            translation: Some(Translation::new(&before, &after, 7)),
            mapping: None,
            chosen: None,
            member: None,
            ..new(State::OneWay, Some((STAMP(1), action(10).translated())))
        };
        (
            Key::new(table.seeds(), &before, 7),
            new,
            Key::new(table.seeds(), &after.reversed(), 7),
        )
    })
}

/// Two sessions whose keys lie in the same two shards, in opposite order: neither writer waits for ever, and both sessions are found by both keys.
#[test]
fn threads_that_make_sessions_across_two_shards_do_not_wait_for_each_other() {
    check("made_across", 2, || {
        let table = table();
        let [(first, one, back), (second, two, other_back)] = crossing(&table);
        let writer = Arc::clone(&table);
        let writer = loom::thread::spawn(move || {
            writer.insert(&second, &two).unwrap();
        });
        table.insert(&first, &one).unwrap();
        writer.join().unwrap();
        for key in [first, back, second, other_back] {
            assert!(table.find(&key).is_some());
        }
        balances(&table);
    });
}

/// One ends while the other begins.
#[test]
fn threads_that_end_a_session_across_two_shards_leave_nothing_behind() {
    check("ended_across", 2, || {
        let table = table();
        let [(first, one, back), (second, two, other_back)] = crossing(&table);
        table.insert(&first, &one).unwrap();
        let writer = Arc::clone(&table);
        let writer = loom::thread::spawn(move || {
            if let Some(session) = writer.find(&back) {
                writer.remove(&session);
            }
        });
        table.insert(&second, &two).unwrap();
        writer.join().unwrap();
        for (key, lives) in [
            (first, false),
            (back, false),
            (second, true),
            (other_back, true),
        ] {
            assert_eq!(table.find(&key).is_some(), lives);
        }
        balances(&table);
    });
}

/// A reader by the second key takes nothing from the session that has the slot, or its line, next.
#[test]
fn threads_read_their_own_translation_while_its_line_is_given_away() {
    check("line_given_away", 1, || {
        let table = table();
        let [(first, one, back), _] = crossing(&table);
        let [plain] = keys(&table);
        table.insert(&first, &one).unwrap();
        let expected = table.find(&back).unwrap().translation().unwrap();
        let writer = Arc::clone(&table);
        let writer = loom::thread::spawn(move || {
            let session = writer.find(&first).unwrap();
            writer.remove(&session);
            writer.insert(&plain, &new(State::OneWay, None)).unwrap();
        });
        if let Some(found) = table.find(&back)
            && let Some(translation) = found.translation()
        {
            assert_eq!(translation, expected);
        }
        writer.join().unwrap();
        assert!(table.find(&back).is_none());
        balances(&table);
    });
}
