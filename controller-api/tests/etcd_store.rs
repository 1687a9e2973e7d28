//! The store in etcd: what is committed is loaded, of any size and in any state of the rows, and a writer that is not one any more changes nothing.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::time::Instant;

use prost::Message;
use support::DEADLINE;
use support::authority::Authority;
use support::etcd::Members;
use weft_controller::store::{Change, Etcd, HistoryBounds, Record, Store, StoreError};
use weft_proto::state::{Key, Kind, Object, State};
use weft_proto::v1::{PrefixList, StoredPart, Vpc};

fn vpc(id: &str, vni: u32) -> Object {
    Object::Vpc(Vpc {
        id: id.into(),
        vni,
        ..Vpc::default()
    })
}

fn key(id: &str) -> Key {
    Key {
        kind: Kind::Vpc,
        id: id.into(),
    }
}

fn change(revision: u64, upserts: Vec<Object>, deletes: Vec<Key>) -> Change {
    Change {
        revision,
        record: Record {
            revision,
            count: (upserts.len() + deletes.len()) as u64,
            ..Record::default()
        },
        upserts,
        deletes,
    }
}

/// A prefix list of so many bytes, which differ by seed.
fn list(id: &str, bytes: usize, seed: u8) -> Object {
    Object::PrefixList(PrefixList {
        id: id.into(),
        prefixes: (0..bytes / 1000)
            .map(|_| char::from(b'a' + seed).to_string().repeat(998))
            .collect(),
        ..PrefixList::default()
    })
}

/// A store whose writer this is.
fn writer(members: &Members, known: u64) -> Etcd {
    let store = members.store();
    let start = Instant::now();
    loop {
        if let Some(candidate) = store.campaign("http://writer").unwrap() {
            assert!(store.begin(&candidate, known).unwrap());
            return store;
        }
        assert!(start.elapsed() < DEADLINE, "the lease does not end");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn ids(state: &State) -> BTreeMap<String, Object> {
    state
        .iter()
        .map(|object| (object.id().to_owned(), object.clone()))
        .collect()
}

#[test]
fn what_was_committed_is_loaded_wherever_it_is() {
    let members = Members::start(1);
    let reader = members.store();
    assert!(reader.is_empty().unwrap());
    assert_eq!(reader.load().unwrap(), (0, State::default()));
    let store = writer(&members, 0);
    let changes = [
        change(1, vec![vpc("a/b", 1), vpc("c", 2)], vec![]),
        change(2, vec![vpc("c", 3)], vec![key("a/b")]),
    ];
    store.commit(&changes).unwrap();
    let wanted = ids(&reader.load().unwrap().1);
    assert_eq!(wanted, BTreeMap::from([("c".to_owned(), vpc("c", 3))]));
    store.apply().unwrap();
    assert_eq!(ids(&reader.load().unwrap().1), wanted, "from the rows");
    store
        .commit(&[change(3, vec![vpc("d", 4)], vec![key("c")])])
        .unwrap();
    let (revision, state) = reader.load().unwrap();
    assert_eq!(revision, 3);
    assert_eq!(ids(&state), BTreeMap::from([("d".to_owned(), vpc("d", 4))]));
    store.apply().unwrap();
    assert_eq!(reader.load().unwrap(), (3, state));
}

/// By the history and by what compares objects' revisions.
#[test]
fn records_and_revisions_of_objects_are_kept() {
    let members = Members::start(1);
    let reader = members.store();
    let store = writer(&members, 0);
    assert_eq!(reader.oldest().unwrap(), None);
    assert!(reader.history(u64::MAX, 10).unwrap().is_empty());
    // Some stored together, and one of more than one part.
    let one = |revision: u64| change(revision, vec![vpc(&format!("v{revision}"), 1)], vec![]);
    store.commit(&[one(1)]).unwrap();
    store.commit(&[one(2), one(3), one(4)]).unwrap();
    store
        .commit(&[change(5, vec![list("big", 3_000_000, 1)], vec![])])
        .unwrap();
    store.commit(&[one(6), one(7)]).unwrap();
    let read = |before: u64, limit: usize| -> Vec<u64> {
        let records = reader.history(before, limit).unwrap();
        records.iter().map(|record| record.revision).collect()
    };
    for _ in 0..2 {
        assert_eq!(read(u64::MAX, 100), [7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(read(7, 2), [6, 5]);
        assert_eq!(read(4, 2), [3, 2]);
        assert_eq!(read(3, 100), [2, 1]);
        assert_eq!(read(1, 100), [0; 0]);
        assert_eq!(reader.oldest().unwrap(), Some(1));
        let (_, state) = reader.load().unwrap();
        for revision in [1, 2, 3, 4, 6, 7] {
            let entry = state.entry(Kind::Vpc, &format!("v{revision}")).unwrap();
            assert_eq!(entry.revision, revision);
        }
        assert_eq!(state.entry(Kind::PrefixList, "big").unwrap().revision, 5);
        store.apply().unwrap();
    }
}

#[test]
fn changes_and_objects_of_any_size_are_stored_whole() {
    let members = Members::start(1);
    let reader = members.store();
    let store = writer(&members, 0);
    let mut objects: Vec<Object> = (0..500).map(|n| vpc(&format!("v{n}"), n)).collect();
    objects.push(list("big", 3_000_000, 1));
    objects.push(list("bigger", 5_000_000, 2));
    store.commit(&[change(1, objects.clone(), vec![])]).unwrap();
    for _ in 0..2 {
        let (_, state) = reader.load().unwrap();
        assert_eq!(state.len(), objects.len());
        assert!(objects.iter().all(|it| state.get(&it.key()) == Some(it)));
        store.apply().unwrap();
    }
    let news = reader.news(0).unwrap().changes.unwrap();
    assert_eq!(news[0].upserts.len(), objects.len());
    // Shorter and longer than before, and gone.
    let next = vec![list("big", 600_000, 3), list("bigger", 7_000_000, 4)];
    let gone = (0..500).map(|n| key(&format!("v{n}"))).collect();
    store.commit(&[change(2, next.clone(), gone)]).unwrap();
    for _ in 0..2 {
        let (_, state) = reader.load().unwrap();
        assert_eq!(state.iter().cloned().collect::<Vec<_>>(), next);
        store.apply().unwrap();
    }
    let last = [list("big", 0, 0).key(), list("bigger", 0, 0).key()];
    store.commit(&[change(3, vec![], last.into())]).unwrap();
    store.apply().unwrap();
    assert_eq!(reader.load().unwrap(), (3, State::default()));
}

#[test]
fn a_writer_whose_lease_is_over_changes_nothing() {
    let members = Members::start(1);
    let old = writer(&members, 0);
    old.commit(&[change(1, vec![vpc("a", 1)], vec![])]).unwrap();
    let second = members.store();
    assert!(second.campaign("http://second").unwrap().is_none());
    assert_eq!(old.writer().unwrap().unwrap(), "http://writer");
    // As if the lease had run out without its holder's knowledge.
    members.end_leases();
    let candidate = second.campaign("http://second").unwrap().unwrap();
    assert!(!second.begin(&candidate, 0).unwrap(), "it has not read all");
    assert!(second.begin(&candidate, 1).unwrap());
    let mine = [change(2, vec![vpc("mine", 2)], vec![])];
    assert!(matches!(old.apply(), Err(StoreError::Deposed)));
    let refused = old.commit(&mine);
    assert!(
        matches!(refused, Err(StoreError::Deposed | StoreError::NotStored)),
        "{refused:?}"
    );
    let large = [change(2, vec![list("big", 3_000_000, 1)], vec![])];
    // Its term has ended by that: nothing is sent.
    assert!(matches!(old.commit(&large), Err(StoreError::NotStored)));
    let (revision, state) = second.load().unwrap();
    assert_eq!((revision, state.len()), (1, 1));
    second
        .commit(&[change(2, vec![vpc("b", 2)], vec![])])
        .unwrap();
    assert_eq!(second.load().unwrap().0, 2);
}

#[test]
fn what_a_writer_left_unfinished_in_the_log_is_not_there() {
    let members = Members::start(1);
    let store = writer(&members, 0);
    store
        .commit(&[change(1, vec![vpc("a", 1)], vec![])])
        .unwrap();
    // The first parts of a commit whose writer died before the last step.
    for part in 0..4 {
        let value = StoredPart {
            revision: 2,
            parts: 5,
            data: vec![part; 1000],
        };
        let key = format!("weft/log/{:020}/{part:06}", 2);
        members.put(&key, &value.encode_to_vec());
    }
    let (revision, state) = members.store().load().unwrap();
    assert_eq!((revision, state.len()), (1, 1));
    store.resign();
    let store = writer(&members, 1);
    store
        .commit(&[change(2, vec![vpc("b", 2)], vec![])])
        .unwrap();
    store
        .commit(&[change(3, vec![vpc("c", 3)], vec![])])
        .unwrap();
    let (revision, state) = members.store().load().unwrap();
    assert_eq!((revision, state.len()), (3, 3));
    assert_eq!(members.store().news(1).unwrap().changes.unwrap().len(), 2);
}

#[test]
fn who_is_too_far_behind_is_told_to_load_all() {
    let members = Members::start(1);
    let history = HistoryBounds {
        changes: 1,
        bytes: 1,
    };
    let store = writer(&members, 0).with_history(history);
    // More bytes than the log is kept for, with whatever history.
    for revision in 1..=18 {
        let list = list("big", 5_000_000, revision as u8);
        store
            .commit(&[change(revision, vec![list], vec![])])
            .unwrap();
        store.apply().unwrap();
    }
    assert!(store.news(0).unwrap().changes.is_none());
    assert_eq!(store.news(17).unwrap().changes.unwrap().len(), 1);
    assert!(store.news(19).unwrap().changes.is_none(), "of another past");
    assert_eq!(store.load().unwrap().0, 18);
}

#[test]
fn members_that_want_a_certificate_are_shown_one() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path(), "ours");
    let own = authority.certify("member", &[]);
    let client = authority.certify("controller", &[]);
    let members = Members::start_with(1, Some([own, client]));
    let store = writer(&members, 0);
    store
        .commit(&[change(1, vec![vpc("a", 1)], vec![])])
        .unwrap();
    assert_eq!(members.store().load().unwrap().0, 1);
    // Of somebody whom the members do not know.
    let stranger = Authority::new(directory.path(), "others").certify("stranger", &[]);
    let refused = Etcd::open(&members.endpoints(), "weft/", Some(&stranger)).unwrap();
    assert!(refused.load().is_err());
}
