//! Which hosts wait for what: each change wakes the sessions of the hosts that it concerns, and no others.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The hosts' wakers, and the newest revision that concerns each.
#[derive(Debug, Default)]
pub(crate) struct Interest {
    hosts: Mutex<Concerned>,
}

#[derive(Debug, Default)]
struct Concerned {
    /// The newest revision that concerned every host.
    all: u64,
    /// Newer ones that concerned some.
    some: HashMap<String, Span>,
    wakers: HashMap<String, Arc<Notify>>,
}

/// The revisions that concern a host and that its session has not looked at yet, or the last that it has.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    /// The newest before them.
    before: u64,
    first: u64,
    newest: u64,
    is_seen: bool,
}

impl Interest {
    /// A waker for a host's session, in place of that of an earlier one.
    pub(crate) fn waker(&self, host: &str) -> Arc<Notify> {
        let waker = Arc::<Notify>::default();
        let mut hosts = self.lock();
        hosts.wakers.insert(host.to_owned(), Arc::clone(&waker));
        waker
    }

    /// Forgets the waker of a session that has ended, if no other has taken its place.
    pub(crate) fn forget(&self, host: &str, own: &Arc<Notify>) {
        let mut hosts = self.lock();
        if hosts
            .wakers
            .get(host)
            .is_some_and(|it| Arc::ptr_eq(it, own))
        {
            hosts.wakers.remove(host);
        }
    }

    /// Notes that revisions from `first` on, of which the last is about to be published, concern hosts; none: all.
    pub(crate) fn expect(&self, first: u64, revision: u64, concerned: Option<&BTreeSet<&str>>) {
        let mut hosts = self.lock();
        match concerned {
            None => {
                hosts.all = revision;
                hosts.some.clear();
            }
            Some(concerned) => {
                let all = hosts.all;
                for host in concerned {
                    let span = match hosts.some.get_mut(*host) {
                        Some(span) => span,
                        None => hosts.some.entry((*host).to_owned()).or_insert(Span {
                            newest: all,
                            is_seen: true,
                            ..Span::default()
                        }),
                    };
                    if span.is_seen {
                        (span.before, span.first) = (span.newest, first);
                    }
                    (span.newest, span.is_seen) = (revision, false);
                }
            }
        }
    }

    /// Wakes the sessions of these hosts; none: of all.
    pub(crate) fn wake(&self, concerned: Option<&BTreeSet<&str>>) {
        let hosts = self.lock();
        match concerned {
            None => hosts.wakers.values().for_each(|waker| waker.notify_one()),
            Some(concerned) => {
                let wakers = concerned.iter().filter_map(|host| hosts.wakers.get(*host));
                wakers.for_each(|waker| waker.notify_one());
            }
        }
    }

    /// Notes that a host's session looks at the newest version.
    pub(crate) fn look(&self, host: &str) {
        if let Some(span) = self.lock().some.get_mut(host) {
            span.is_seen = true;
        }
    }

    /// Up to which revision holds what holds for a host at one, of those up to `newest`: what does not concern the host changes nothing.
    pub(crate) fn holds_until(&self, host: &str, revision: u64, newest: u64) -> u64 {
        let hosts = self.lock();
        let of_all = Span {
            newest: hosts.all,
            ..Span::default()
        };
        let span = hosts.some.get(host).unwrap_or(&of_all);
        if revision >= span.newest {
            revision.max(newest)
        } else if revision >= span.before {
            revision.max(span.first.saturating_sub(1))
        } else {
            revision
        }
    }

    fn lock(&self) -> MutexGuard<'_, Concerned> {
        // Plain values, whole after any panic.
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_concern_a_host_changes_nothing_for_it() {
        let interest = Interest::default();
        let one = BTreeSet::from(["h1"]);
        interest.expect(1, 1, None);
        assert_eq!(interest.holds_until("h1", 1, 3), 3);
        interest.expect(4, 4, Some(&one));
        assert_eq!(
            interest.holds_until("h1", 1, 4),
            3,
            "until the one that does"
        );
        assert_eq!(interest.holds_until("h2", 1, 4), 4);
        interest.expect(5, 6, Some(&one));
        assert_eq!(interest.holds_until("h1", 1, 6), 3);
        assert_eq!(interest.holds_until("h1", 6, 7), 7);
        interest.look("h1");
        interest.expect(8, 9, Some(&one));
        // Of two that were stored together, the first may be what concerns it.
        assert_eq!(interest.holds_until("h1", 6, 9), 7);
        assert_eq!(
            interest.holds_until("h1", 3, 9),
            3,
            "the one before was not reached"
        );
    }

    #[tokio::test]
    async fn a_change_wakes_whom_it_concerns() {
        let interest = Interest::default();
        let wakers = ["h1", "h2"].map(|host| interest.waker(host));
        interest.wake(Some(&BTreeSet::from(["h2", "h3"])));
        let is_woken = |waker: &Arc<Notify>| {
            let mut notified = Box::pin(Arc::clone(waker).notified_owned());
            notified.as_mut().enable()
        };
        assert_eq!(wakers.each_ref().map(is_woken), [false, true]);
        interest.wake(None);
        assert_eq!(wakers.each_ref().map(is_woken), [true, true]);
        // Another session of the host has another, which stays when the first one's is forgotten.
        let other = interest.waker("h1");
        interest.forget("h1", &wakers[0]);
        interest.wake(Some(&BTreeSet::from(["h1"])));
        assert!(is_woken(&other) && !is_woken(&wakers[0]));
        interest.forget("h1", &other);
        assert!(!interest.lock().wakers.contains_key("h1"));
    }
}
