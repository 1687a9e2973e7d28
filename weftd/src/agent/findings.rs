//! What the controller is told that this host has found out, for other hosts to know.
//!
//! Who finds something says all that it has found of a kind; each attachment tells all of it first, and then what has changed. Nothing is queued: what
//! changed and changed back meanwhile is not told.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use weft_proto::state::{Key, Kind, Object, collect};
use weft_proto::v1::Findings;

/// All that was found; nothing before anything was looked for, so that a host which has just started takes back nothing.
pub(super) type Found = Option<Arc<BTreeMap<Key, Object>>>;

/// Takes up all that was found of a kind, in place of what was found of it before.
pub(super) fn set(all: &watch::Sender<Found>, kind: Kind, found: impl Iterator<Item = Object>) {
    let found: BTreeMap<Key, Object> = found.map(|object| (object.key(), object)).collect();
    all.send_if_modified(|known| {
        let of_kind = known.iter().flat_map(|known| known.iter());
        let of_kind = of_kind.filter(|(key, _)| key.kind == kind);
        if known.is_some() && of_kind.eq(&found) {
            return false;
        }
        let others = known.take().unwrap_or_default();
        let mut next = Arc::unwrap_or_clone(others);
        next.retain(|key, _| key.kind != kind);
        next.extend(found);
        *known = Some(Arc::new(next));
        true
    });
}

/// What tells a controller that knows some of it of what there is now; nothing where that is nothing new.
pub(super) fn difference(session: u64, known: &Found, now: &Found) -> Option<Findings> {
    let now = now.as_deref()?;
    let nothing = BTreeMap::new();
    let before = known.as_deref().unwrap_or(&nothing);
    let changed = now
        .iter()
        .filter(|(key, object)| before.get(key) != Some(object));
    let gone = before.keys().filter(|key| !now.contains_key(key));
    Some(Findings {
        session,
        whole: known.is_none(),
        found: Some(collect(changed.map(|(_, object)| object.clone()))),
        gone: gone.map(Key::to_wire).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::v1::{GroupMembers, MemberHealth};

    fn health(id: &str, up: bool) -> Object {
        Object::MemberHealth(MemberHealth {
            id: id.into(),
            up,
            ..MemberHealth::default()
        })
    }

    #[test]
    fn all_is_told_once_and_then_what_changes() {
        let all = watch::Sender::new(Found::default());
        let mut watched = all.subscribe();
        assert_eq!(difference(7, &None, &watched.borrow_and_update()), None);
        set(&all, Kind::MemberHealth, std::iter::empty());
        let first = watched.borrow_and_update().clone();
        assert!(difference(7, &None, &first).unwrap().whole);
        let found = || [health("a", true), health("b", false)].into_iter();
        set(&all, Kind::MemberHealth, found());
        assert!(watched.has_changed().unwrap());
        let before = watched.borrow_and_update().clone();
        set(&all, Kind::MemberHealth, found());
        assert!(!watched.has_changed().unwrap());
        // Of another kind nothing is lost by it.
        let other = Object::GroupMembers(GroupMembers::default());
        set(&all, Kind::GroupMembers, std::iter::once(other));
        let found = [health("b", true), health("c", true)].into_iter();
        set(&all, Kind::MemberHealth, found);
        let now = watched.borrow_and_update().clone();
        let told = difference(7, &before, &now).unwrap();
        assert!(!told.whole && told.session == 7);
        let found = told.found.unwrap();
        let ids: Vec<&str> = found.member_health.iter().map(|it| &*it.id).collect();
        assert_eq!((ids, found.group_members.len()), (vec!["b", "c"], 1));
        let gone: Vec<&str> = told.gone.iter().map(|it| &*it.id).collect();
        assert_eq!(gone, ["a"]);
    }
}
