//! What the controller is told that this host has found out, for other hosts to know.
//!
//! Who finds something says all that it has found of a kind; each attachment tells all of it first, and then what has changed. Nothing is queued: what
//! changed and changed back meanwhile is not told.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use weft_proto::state::{Key, Kind, Object, collect};
use weft_proto::v1::Findings;

/// All that was found, by kind. A kind of which nothing was looked for yet is not in it, so that a host which has just started takes back nothing.
pub(super) type Found = BTreeMap<Kind, Arc<BTreeMap<Key, Object>>>;

/// Takes up all that was found of a kind, in place of what was found of it before.
pub(super) fn set(all: &watch::Sender<Found>, kind: Kind, found: impl Iterator<Item = Object>) {
    let found: BTreeMap<Key, Object> = found.map(|object| (object.key(), object)).collect();
    all.send_if_modified(|known| {
        if known.get(&kind).is_some_and(|known| **known == found) {
            return false;
        }
        known.insert(kind, Arc::new(found));
        true
    });
}

/// What tells a controller that knows some of it of what there is now: all of the kinds that are new to it, and what has changed of others. `by_kind`: whether it
/// takes all of some kinds alone; else it is told of members' health and nothing else.
pub(super) fn difference(
    session: u64,
    known: &Found,
    now: &Found,
    by_kind: bool,
) -> impl Iterator<Item = Findings> {
    let is_told = |kind: &Kind| by_kind || *kind == Kind::MemberHealth;
    let of_now = now.iter().filter(|(kind, _)| is_told(kind));
    let (old, new): (Vec<_>, Vec<_>) = of_now.partition(|(kind, _)| known.contains_key(*kind));
    let all = new.iter().flat_map(|(_, found)| found.values().cloned());
    let names = new.iter().map(|(kind, _)| kind.name().to_owned());
    let whole = Findings {
        session,
        whole: true,
        found: Some(collect(all)),
        gone: Vec::new(),
        kinds: names.filter(|_| by_kind).collect(),
    };
    let (mut changed, mut gone) = (Vec::new(), Vec::new());
    for (kind, found) in old {
        let Some(before) = known.get(kind).filter(|before| !Arc::ptr_eq(before, found)) else {
            continue;
        };
        let come = found
            .iter()
            .filter(|(key, object)| before.get(key) != Some(object));
        changed.extend(come.map(|(_, object)| object.clone()));
        gone.extend(
            before
                .keys()
                .filter(|key| !found.contains_key(key))
                .map(Key::to_wire),
        );
    }
    let has_changed = !changed.is_empty() || !gone.is_empty();
    let changes = Findings {
        session,
        whole: false,
        found: Some(collect(changed.into_iter())),
        gone,
        kinds: Vec::new(),
    };
    let whole = (!new.is_empty()).then_some(whole);
    whole.into_iter().chain(has_changed.then_some(changes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::v1::{AddressHolder, MemberHealth};

    fn health(id: &str, up: bool) -> Object {
        Object::MemberHealth(MemberHealth {
            id: id.into(),
            up,
            ..MemberHealth::default()
        })
    }

    fn told(known: &Found, now: &Found, by_kind: bool) -> Vec<Findings> {
        difference(7, known, now, by_kind).collect()
    }

    fn ids(found: &Findings) -> Vec<&str> {
        let found = found.found.as_ref().unwrap();
        let health = found.member_health.iter().map(|it| &*it.id);
        health
            .chain(found.address_holders.iter().map(|it| &*it.id))
            .collect()
    }

    #[test]
    fn all_of_a_kind_is_told_once_and_then_what_changes() {
        let all = watch::Sender::new(Found::default());
        let mut watched = all.subscribe();
        let nothing = Found::default();
        assert!(told(&nothing, &watched.borrow_and_update(), true).is_empty());
        set(&all, Kind::MemberHealth, std::iter::empty());
        let first = watched.borrow_and_update().clone();
        let [whole] = &told(&nothing, &first, true)[..] else {
            panic!("one message");
        };
        assert!(whole.whole && whole.kinds == ["member_health"] && ids(whole).is_empty());
        let found = || [health("a", true), health("b", false)].into_iter();
        set(&all, Kind::MemberHealth, found());
        assert!(watched.has_changed().unwrap());
        let before = watched.borrow_and_update().clone();
        set(&all, Kind::MemberHealth, found());
        assert!(!watched.has_changed().unwrap());
        // What is new of another kind is all of that, and takes nothing from this one.
        let holder = AddressHolder {
            id: "blue|10.0.0.9".into(),
            ..AddressHolder::default()
        };
        let holders = [Object::AddressHolder(holder)];
        set(&all, Kind::AddressHolder, holders.into_iter());
        let found = [health("b", true), health("c", true)].into_iter();
        set(&all, Kind::MemberHealth, found);
        let now = watched.borrow_and_update().clone();
        let [whole, changes] = &told(&before, &now, true)[..] else {
            panic!("two messages");
        };
        assert!(whole.whole && whole.kinds == ["address_holder"]);
        assert_eq!(ids(whole), ["blue|10.0.0.9"]);
        assert!(!changes.whole && changes.session == 7);
        let gone: Vec<&str> = changes.gone.iter().map(|it| &*it.id).collect();
        assert_eq!((ids(changes), gone), (vec!["b", "c"], vec!["a"]));
        // One that takes no kinds is told of health alone, or it would take the rest for all there is.
        let [whole] = &told(&nothing, &now, false)[..] else {
            panic!("one message");
        };
        assert!(whole.kinds.is_empty());
        assert_eq!(ids(whole), ["b", "c"]);
    }
}
