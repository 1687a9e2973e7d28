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

/// An order all of whose words say whose it is.
fn order(mark: u16) -> Order {
    let mac = |word: u16| Mac::from_bytes([word as u8; 6]);
    Order::from(&Action {
        eth_dst: mac(mark),
        eth_src: mac(mark + 1),
        egress: Egress::Port(mark),
        rewrite: Some((mac(mark + 2), mac(mark + 3))),
    })
}

fn new(state: State, order: Option<(Stamp, Order)>) -> NewSession {
    NewSession {
        state,
        port: 0,
        vpc: 0,
        now: 0,
        tcp: Default::default(),
        order,
    }
}

/// What the table holds is what its books say.
fn balances(table: &SessionTable) {
    let live = table.list(usize::MAX, 0, |_| true).len();
    assert_eq!(table.statistics().live, live as u64);
    assert_eq!(table.per_port[0].load(Ordering::Relaxed), live as u32);
    assert_eq!(table.per_vpc[0].load(Ordering::Relaxed), live as u32);
    for shard in &table.shards {
        let free = shard.lock().free.len() as u32;
        let here = shard.slots.iter().filter(|slot| slot.is_live()).count() as u32;
        assert_eq!(
            free + here,
            shard.used.load(Ordering::Relaxed),
            "a slot is lost"
        );
    }
}

fn looked_up(table: &SessionTable, key: &Key, stamp: Stamp) -> Option<Order> {
    table.confirm(table.probe(key), key)?.order(stamp)
}

/// A session goes and another takes its slot, while a reader looks for one of the two.
fn slot_changes_hands(name: &str, asked: usize) {
    check(name, 1, move || {
        let table = table();
        let [first, second] = keys(&table);
        let old = table
            .insert(&first, &new(State::OneWay, Some((STAMP(1), order(10)))))
            .unwrap()
            .number;
        let writer = Arc::clone(&table);
        let writer = loom::thread::spawn(move || {
            let session = writer.find(&first).unwrap();
            writer.remove(&session);
            let next = writer.insert(&second, &new(State::OneWay, Some((STAMP(1), order(20)))));
            assert_eq!(next.unwrap().number, old);
        });
        let (key, its_own) = [(first, order(10)), (second, order(20))][asked];
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
fn threads_read_an_order_of_one_judgement_and_generation() {
    check("judged_again", 2, || {
        let table = table();
        let [key] = keys(&table);
        table
            .insert(&key, &new(State::OneWay, Some((STAMP(1), order(10)))))
            .unwrap();
        let writer = Arc::clone(&table);
        let writer = loom::thread::spawn(move || {
            let session = writer.find(&key).unwrap();
            session.set_action(STAMP(2), &order(20).action());
        });
        let session = table.find(&key).unwrap();
        for (generation, order) in [(1, order(10)), (2, order(20))] {
            if let Some(found) = session.order(STAMP(generation)) {
                assert_eq!(found, order);
            }
        }
        writer.join().unwrap();
        assert_eq!(session.order(STAMP(1)), None);
        assert_eq!(session.order(STAMP(2)), Some(order(20)));
    });
}

#[test]
fn threads_read_a_whole_order_when_one_generation_decides_twice() {
    // As for a guest that sends a flow to two MACs in turn, by queues of two workers.
    check("decided_twice", 2, || {
        let table = table();
        let [key] = keys(&table);
        table
            .insert(&key, &new(State::OneWay, Some((STAMP(1), order(10)))))
            .unwrap();
        let writer = Arc::clone(&table);
        let writer = loom::thread::spawn(move || {
            let session = writer.find(&key).unwrap();
            session.set_action(STAMP(1), &order(20).action());
        });
        let found = table.find(&key).unwrap().order(STAMP(1));
        assert!(
            [None, Some(order(10)), Some(order(20))].contains(&found),
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
            let session = other.insert(&key, &new(State::OneWay, Some((STAMP(1), order(10)))));
            session.unwrap().number
        });
        let session = table.insert(&key, &new(State::OneWay, Some((STAMP(1), order(10)))));
        let session = session.unwrap();
        assert_eq!(other.join().unwrap(), session.number);
        assert_eq!(session.order(STAMP(1)), Some(order(10)));
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
                .insert(&key, &new(state, Some((STAMP(1), order(mark)))))
                .unwrap();
        }
        let writer = Arc::clone(&table);
        let writer = loom::thread::spawn(move || {
            let session = writer.insert(&late, &new(State::OneWay, Some((STAMP(1), order(30)))));
            assert_eq!(session.unwrap().order(STAMP(1)), Some(order(30)));
        });
        if let Some(found) = looked_up(&table, &newest, STAMP(1)) {
            assert_eq!(found, order(20));
        }
        assert_eq!(
            table.find(&kept).and_then(|it| it.order(STAMP(1))),
            Some(order(10))
        );
        writer.join().unwrap();
        assert!(table.find(&newest).is_none() && table.find(&late).is_some());
        balances(&table);
    });
}
