//! Which hosts wait for what: each change wakes the sessions of the hosts that it concerns, and no others.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::learning::{Address, Learned};
use crate::version::Concern;

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
    wakers: HashMap<String, Waker>,
    /// Who has asked for an address, by VPC.
    askers: HashMap<Arc<str>, HashMap<Address, BTreeSet<Arc<str>>>>,
}

/// A host's session.
#[derive(Debug)]
struct Waker {
    notify: Arc<Notify>,
    /// Whether the host learns ports, where they are learned.
    learns: bool,
    /// What it has asked for, as the index has it.
    asked: Learned,
}

impl Concerned {
    /// Makes the index say what a host has asked for.
    fn set_asked(&mut self, host: &str, asked: &Learned) {
        let Some(waker) = self.wakers.get_mut(host) else {
            return;
        };
        let before = std::mem::replace(&mut waker.asked, asked.clone());
        for (vpc, [gone, come]) in before.changes_to(asked) {
            if !self.askers.contains_key(vpc) {
                self.askers.insert(vpc.into(), HashMap::new());
            }
            let Some(askers) = self.askers.get_mut(vpc) else {
                continue;
            };
            for address in gone {
                if let Some(hosts) = askers.get_mut(&**address) {
                    hosts.remove(host);
                    if hosts.is_empty() {
                        askers.remove(&**address);
                    }
                }
            }
            for address in come {
                askers.entry(**address).or_default().insert(host.into());
            }
            if askers.is_empty() {
                self.askers.remove(vpc);
            }
        }
    }
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
    /// A waker for a host's session, in place of that of an earlier one. `learns`: whether the host learns ports, where they are learned.
    pub(crate) fn waker(&self, host: &str, learns: bool) -> Arc<Notify> {
        let notify = Arc::<Notify>::default();
        let mut hosts = self.lock();
        hosts.set_asked(host, &Learned::default());
        let waker = Waker {
            notify: Arc::clone(&notify),
            learns,
            asked: Learned::default(),
        };
        hosts.wakers.insert(host.to_owned(), waker);
        notify
    }

    /// Notes what a host has asked for, if its session is still its own. Before the session looks at the newest version: changes after that wake it.
    pub(crate) fn set_asked(&self, host: &str, own: &Arc<Notify>, asked: &Learned) {
        let mut hosts = self.lock();
        let waker = hosts.wakers.get(host);
        if waker.is_some_and(|it| Arc::ptr_eq(&it.notify, own)) {
            hosts.set_asked(host, asked);
        }
    }

    /// How many addresses a host has asked for.
    pub(crate) fn asked(&self, host: &str) -> usize {
        let hosts = self.lock();
        hosts.wakers.get(host).map_or(0, |it| it.asked.len())
    }

    /// The hosts that changes concern: of those that learn ports, the ones that have asked for them.
    pub(crate) fn concerned<'a>(&self, concern: &Concern<'a>) -> BTreeSet<&'a str> {
        let hosts = self.lock();
        let mut all = concern.hosts.clone();
        for change in &concern.learned {
            let learns = |host: &&&str| hosts.wakers.get(**host).is_some_and(|it| it.learns);
            all.extend(change.hosts.iter().filter(|host| !learns(host)));
            if let Some(askers) = hosts.askers.get(change.vpc) {
                let askers = change.addresses.iter().filter_map(|it| askers.get(it));
                let askers = askers
                    .flatten()
                    .filter_map(|host| change.hosts.get(&**host));
                all.extend(askers);
            }
        }
        all
    }

    /// Forgets the waker of a session that has ended, if no other has taken its place.
    pub(crate) fn forget(&self, host: &str, own: &Arc<Notify>) {
        let mut hosts = self.lock();
        if hosts
            .wakers
            .get(host)
            .is_some_and(|it| Arc::ptr_eq(&it.notify, own))
        {
            hosts.set_asked(host, &Learned::default());
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
            None => hosts
                .wakers
                .values()
                .for_each(|waker| waker.notify.notify_one()),
            Some(concerned) => {
                let wakers = concerned.iter().filter_map(|host| hosts.wakers.get(*host));
                wakers.for_each(|waker| waker.notify.notify_one());
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
    use crate::version::LearnedChange;

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

    #[test]
    fn of_those_that_learn_who_has_asked_is_concerned() {
        let interest = Interest::default();
        let [address, other] = ["10.0.0.1", "10.0.0.2"].map(|it| Address::parse(it).unwrap());
        let wakers = ["h1", "h2"].map(|host| interest.waker(host, true));
        interest.waker("h3", false);
        let mut asked = Learned::default();
        asked.insert("blue", address);
        interest.set_asked("h1", &wakers[0], &asked);
        // Not by one that is not its own.
        interest.set_asked("h2", &wakers[0], &asked);
        assert_eq!((interest.asked("h1"), interest.asked("h2")), (1, 0));
        let concerned = |vpc, address| {
            let change = LearnedChange {
                vpc,
                hosts: BTreeSet::from(["h1", "h2", "h3", "h4"]),
                addresses: BTreeSet::from([address]),
            };
            let concern = Concern {
                hosts: BTreeSet::from(["h9"]),
                learned: vec![change],
            };
            let found = interest.concerned(&concern).into_iter();
            found.map(str::to_owned).collect::<Vec<_>>()
        };
        // h3 cannot learn, and h4 is not attached.
        assert_eq!(concerned("blue", address), ["h1", "h3", "h4", "h9"]);
        assert_eq!(concerned("blue", other), ["h3", "h4", "h9"]);
        assert_eq!(concerned("red", address), ["h3", "h4", "h9"]);
        interest.forget("h1", &wakers[0]);
        assert_eq!(concerned("blue", address), ["h1", "h3", "h4", "h9"]);
        let hosts = interest.lock();
        assert!(hosts.askers.is_empty(), "{:?}", hosts.askers);
    }

    #[tokio::test]
    async fn a_change_wakes_whom_it_concerns() {
        let interest = Interest::default();
        let wakers = ["h1", "h2"].map(|host| interest.waker(host, false));
        interest.wake(Some(&BTreeSet::from(["h2", "h3"])));
        let is_woken = |waker: &Arc<Notify>| {
            let mut notified = Box::pin(Arc::clone(waker).notified_owned());
            notified.as_mut().enable()
        };
        assert_eq!(wakers.each_ref().map(is_woken), [false, true]);
        interest.wake(None);
        assert_eq!(wakers.each_ref().map(is_woken), [true, true]);
        // Another session of the host has another, which stays when the first one's is forgotten.
        let other = interest.waker("h1", false);
        interest.forget("h1", &wakers[0]);
        interest.wake(Some(&BTreeSet::from(["h1"])));
        assert!(is_woken(&other) && !is_woken(&wakers[0]));
        interest.forget("h1", &other);
        assert!(!interest.lock().wakers.contains_key("h1"));
    }
}
