//! How much each caller may ask for at a time, so that one that floods does not slow others: changes and changed objects a second, changes and reads in
//! flight and the bytes of their requests, open watches.
//!
//! The service asks before a request's body is read (`service.rs`), so that a refused call costs next to nothing; changed objects alone are counted after it.
//! Nothing of a refused call is done. The attach streams of hosts do not pass here.

mod bucket;
mod limits;
mod refusal;
mod service;
mod turns;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weft_proto::v1::CallerUse;

use crate::caller::{AUDIT, Account};
use bucket::Bucket;
use limits::Limits;
use refusal::{Limit, Refused};

pub use limits::{AdmissionConfig, CallerConfig};
pub(crate) use service::{Admitted, Admitting};
pub(crate) use turns::Turns;

/// Callers of whom count is kept.
const CALLERS: usize = 4096;

/// The most watches of all callers.
const ALL_WATCHES: u64 = 4000;

/// At most so often it is said that a caller is refused.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Change,
    Read,
    Watch,
}

impl Kind {
    /// What limits how many there are at a time.
    fn limit(self) -> Limit {
        match self {
            Self::Change => Limit::ChangesInFlight,
            Self::Read => Limit::ReadsInFlight,
            Self::Watch => Limit::Watches,
        }
    }
}

/// What is known of one limit of a caller.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    /// What has not ended, of what is limited at a time.
    open: u64,
    admitted: u64,
    /// Calls.
    refused: u64,
}

/// What is known of one caller.
#[derive(Debug)]
struct Entry {
    changes: Bucket,
    objects: Bucket,
    /// For each limit.
    counts: [Count; Limit::ALL.len()],
    used: Instant,
    said: Said,
}

/// What the log says of refusals: now and then one, and how many there were.
#[derive(Debug, Default)]
struct Said {
    /// Refusals since one was last said.
    unsaid: u64,
    at: Option<Instant>,
}

impl Said {
    fn count(&mut self, refused: &Refused, now: Instant) {
        self.unsaid += 1;
        let is_due = |said: Instant| now.saturating_duration_since(said) >= SAID_EVERY;
        if self.at.is_none_or(is_due) {
            let (reason, calls) = (refused.to_string(), self.unsaid);
            tracing::warn!(target: AUDIT, calls, reason, "asks for too much");
            (self.unsaid, self.at) = (0, Some(now));
        }
    }
}

impl Entry {
    fn new(now: Instant) -> Self {
        Self {
            changes: Bucket::default(),
            objects: Bucket::default(),
            counts: Default::default(),
            used: now,
            said: Said::default(),
        }
    }

    fn count(&mut self, limit: Limit) -> &mut Count {
        &mut self.counts[limit as usize]
    }

    fn open(&self, limit: Limit) -> u64 {
        self.counts[limit as usize].open
    }

    fn bucket(&mut self, limit: Limit) -> &mut Bucket {
        match limit {
            Limit::Objects => &mut self.objects,
            _ => &mut self.changes,
        }
    }

    /// Whether nothing but its counters is lost when it is forgotten.
    fn is_fresh(&self, now: Instant) -> bool {
        self.is_unused() && self.changes.is_full(now) && self.objects.is_full(now)
    }

    fn is_unused(&self) -> bool {
        self.counts.iter().all(|count| count.open == 0)
    }

    /// Counts a refusal, and says now and then in the log that there are some.
    fn refuse(&mut self, refused: &Refused, now: Instant) {
        if let Some(limit) = refused.limit() {
            self.count(limit).refused += 1;
        }
        self.said.count(refused, now);
    }
}

/// Who has asked for how much.
#[derive(Debug)]
pub(crate) struct Admission {
    tenants: Limits,
    operators: Limits,
    accounts: Mutex<HashMap<Account, Entry>>,
    /// Of refusals to callers of whom no count is kept.
    beyond: Mutex<Said>,
}

impl Admission {
    pub(crate) fn new(config: &AdmissionConfig) -> Self {
        Self {
            tenants: config.of_tenants(),
            operators: config.of_operators(),
            accounts: Mutex::default(),
            beyond: Mutex::default(),
        }
    }

    /// Admits a call until the permit is dropped.
    ///
    /// # Errors
    /// The caller asks for too much.
    pub(crate) fn admit(
        self: &Arc<Self>,
        account: &Account,
        kind: Kind,
        now: Instant,
    ) -> Result<Permit, Refused> {
        let mut accounts = self.lock();
        let watches = match kind {
            Kind::Watch => {
                let open = accounts.values().map(|entry| entry.open(Limit::Watches));
                open.sum()
            }
            Kind::Change | Kind::Read => 0,
        };
        let entry = entry(&mut accounts, account, now).inspect_err(|refused| {
            self.beyond().count(refused, now);
        })?;
        entry.used = now;
        // Its own limits first, which it can do something about.
        let checked = self.check(account, entry, kind, now);
        let checked = checked.and(match watches < ALL_WATCHES {
            true => Ok(()),
            false => Err(Refused::Watches),
        });
        if let Err(refused) = checked {
            entry.refuse(&refused, now);
            return Err(refused);
        }
        if kind == Kind::Change {
            self.take(account, entry, Limit::Changes, (1, now));
        }
        let count = entry.count(kind.limit());
        count.open += 1;
        count.admitted += 1;
        Ok(Permit {
            admission: Arc::clone(self),
            account: account.clone(),
            kind,
            bytes: AtomicU64::new(0),
        })
    }

    fn check(
        &self,
        account: &Account,
        entry: &mut Entry,
        kind: Kind,
        now: Instant,
    ) -> Result<(), Refused> {
        let limit = kind.limit();
        let most = self.limits(account).most(limit);
        if most > 0 && entry.open(limit) >= most {
            return Err(Refused::Most {
                account: account.clone(),
                limit,
                most,
            });
        }
        if kind == Kind::Change {
            self.check_rate(account, entry, Limit::Changes, (1, now))?;
            // One in debt is told so before its next request is read.
            self.check_rate(account, entry, Limit::Objects, (1, now))?;
        }
        Ok(())
    }

    fn check_rate(
        &self,
        account: &Account,
        entry: &mut Entry,
        limit: Limit,
        (tokens, now): (u64, Instant),
    ) -> Result<(), Refused> {
        let Some(rate) = self.limits(account).rate(limit) else {
            return Ok(());
        };
        let refused = |wait| Refused::Rate {
            account: account.clone(),
            limit,
            per_second: rate.per_second,
            burst: rate.burst,
            wait,
        };
        let bucket = entry.bucket(limit);
        bucket.check(rate, tokens, now).map_err(refused)
    }

    /// Takes tokens, and counts them.
    fn take(
        &self,
        account: &Account,
        entry: &mut Entry,
        limit: Limit,
        (tokens, now): (u64, Instant),
    ) {
        entry.count(limit).admitted += tokens;
        if let Some(rate) = self.limits(account).rate(limit) {
            entry.bucket(limit).take(rate, tokens, now);
        }
    }

    /// What callers have asked for, as far as they are still known: in order of their names.
    pub(crate) fn uses(&self, now: Instant) -> Vec<CallerUse> {
        let mut all = Vec::new();
        for (account, entry) in &mut *self.lock() {
            let limits = self.limits(account);
            for limit in Limit::ALL {
                let count = *entry.count(limit);
                let (most, used) = match limits.rate(limit) {
                    Some(rate) => (rate.per_second, entry.bucket(limit).used(rate, now)),
                    None => (limits.most(limit), count.open),
                };
                // As it is set.
                let unit = if limit == Limit::Bytes { 1 << 20 } else { 1 };
                if count.admitted > 0 || count.refused > 0 {
                    all.push(CallerUse {
                        caller: account.to_string(),
                        limit: limit.name().to_owned(),
                        most: most / unit,
                        used: used / unit,
                        admitted: count.admitted / unit,
                        refused: count.refused,
                    });
                }
            }
        }
        // Each caller's stay in the order of the limits.
        all.sort_by(|a, b| a.caller.cmp(&b.caller));
        all
    }

    fn limits(&self, account: &Account) -> &Limits {
        match account {
            Account::Tenants(_) => &self.tenants,
            Account::Subject(_) | Account::Uncertified | Account::Controller => &self.operators,
        }
    }

    fn beyond(&self) -> MutexGuard<'_, Said> {
        // Nothing panics while it is held.
        self.beyond.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Account, Entry>> {
        // Nothing panics while it is held.
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The entry of a caller. When there are too many, those go that differ in nothing from new ones; and else the one that was used last the longest ago.
fn entry<'a>(
    accounts: &'a mut HashMap<Account, Entry>,
    account: &Account,
    now: Instant,
) -> Result<&'a mut Entry, Refused> {
    if accounts.len() >= CALLERS && !accounts.contains_key(account) {
        accounts.retain(|_, entry| !entry.is_fresh(now));
        if accounts.len() >= CALLERS {
            let unused = accounts.iter().filter(|(_, entry)| entry.is_unused());
            let oldest = unused.min_by_key(|(_, entry)| entry.used);
            let oldest = oldest.map(|(account, _)| account.clone());
            accounts.remove(&oldest.ok_or(Refused::Callers)?);
        }
    }
    Ok(accounts
        .entry(account.clone())
        .or_insert_with(|| Entry::new(now)))
}

/// The right to one call, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    account: Account,
    kind: Kind,
    /// Of its request, as far as it was read.
    bytes: AtomicU64,
}

impl Permit {
    /// Whose call it is.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    /// Counts bytes of the request, which stay until the call ends.
    ///
    /// # Errors
    /// The caller's requests take too much.
    pub(crate) fn hear(&self, bytes: usize, now: Instant) -> Result<(), Refused> {
        let bytes = bytes as u64;
        self.with_entry(|admission, entry| {
            let most = admission.limits(&self.account).most(Limit::Bytes);
            let count = entry.count(Limit::Bytes);
            if most > 0 && count.open.saturating_add(bytes) > most {
                let refused = Refused::Most {
                    account: self.account.clone(),
                    limit: Limit::Bytes,
                    most: most >> 20,
                };
                entry.refuse(&refused, now);
                return Err(refused);
            }
            count.open += bytes;
            count.admitted += bytes;
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            Ok(())
        })
        .unwrap_or(Ok(()))
    }

    /// Counts the objects that a change names, before anything else is done with them.
    ///
    /// # Errors
    /// They are too many for now.
    pub(crate) fn count(&self, objects: usize, now: Instant) -> Result<(), Refused> {
        let tokens = (objects as u64, now);
        self.with_entry(|admission, entry| {
            let checked = admission.check_rate(&self.account, entry, Limit::Objects, tokens);
            match &checked {
                Ok(()) => admission.take(&self.account, entry, Limit::Objects, tokens),
                Err(refused) => entry.refuse(refused, now),
            }
            checked
        })
        .unwrap_or(Ok(()))
    }

    /// Counts objects that a change turned out to have besides: what follows waits for them.
    pub(crate) fn count_more(&self, objects: usize, now: Instant) {
        let tokens = (objects as u64, now);
        self.with_entry(|admission, entry| {
            admission.take(&self.account, entry, Limit::Objects, tokens);
        });
    }

    /// Takes back the change and the objects that it counted: it was not made, since another controller writes.
    pub(crate) fn give_back(&self, objects: usize, now: Instant) {
        self.with_entry(|admission, entry| {
            let limits = admission.limits(&self.account);
            for (limit, tokens) in [(Limit::Changes, 1), (Limit::Objects, objects as u64)] {
                let admitted = &mut entry.count(limit).admitted;
                *admitted = admitted.saturating_sub(tokens);
                if let Some(rate) = limits.rate(limit) {
                    entry.bucket(limit).give_back(rate, tokens, now);
                }
            }
        });
    }

    /// The entry, which is there as long as this is.
    fn with_entry<T>(&self, act: impl FnOnce(&Admission, &mut Entry) -> T) -> Option<T> {
        let mut accounts = self.admission.lock();
        let entry = accounts.get_mut(&self.account)?;
        Some(act(&self.admission, entry))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        self.with_entry(|_, entry| {
            entry.count(self.kind.limit()).open -= 1;
            entry.count(Limit::Bytes).open -= bytes;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_process::controllers::RETRY_AFTER;

    fn admission(text: &str) -> Arc<Admission> {
        Arc::new(Admission::new(&toml::from_str(text).unwrap()))
    }

    fn tenant(name: &str) -> Account {
        Account::Tenants(name.to_owned())
    }

    #[test]
    fn a_tenant_at_its_limit_is_refused_by_name_and_another_is_not() {
        let text = "tenants = { changes_per_second = 10, changes_burst = 2 }";
        let (admission, now) = (admission(text), Instant::now());
        let change = |name: &str| admission.admit(&tenant(name), Kind::Change, now);
        for _ in 0..2 {
            change("ann").unwrap();
        }
        let refused = change("ann").unwrap_err();
        let text = refused.to_string();
        for part in [
            "tenant ann",
            "10 a second",
            "burst of 2",
            "admission.tenants.changes_per_second",
            "in 100 ms",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let status = refused.status();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(status.metadata().get(RETRY_AFTER).unwrap(), "100");
        change("bob").unwrap();
        let later = now + Duration::from_millis(100);
        admission
            .admit(&tenant("ann"), Kind::Change, later)
            .unwrap();
    }

    #[test]
    fn calls_count_until_they_end_each_kind_by_itself() {
        let text = "operators = { changes_in_flight = 2, reads_in_flight = 1, watches = 1, changes_per_second = 0 }";
        let (admission, now) = (admission(text), Instant::now());
        let own = Account::Subject("CN=ann".to_owned());
        let admit = |kind| admission.admit(&own, kind, now);
        let first = admit(Kind::Change).unwrap();
        let _second = admit(Kind::Change).unwrap();
        let text = admit(Kind::Change).unwrap_err().to_string();
        assert!(
            text.contains("2 changes in flight") && text.contains("operators.changes_in_flight"),
            "{text}"
        );
        let _read = admit(Kind::Read).unwrap();
        assert!(admit(Kind::Read).is_err());
        let watch = admit(Kind::Watch).unwrap();
        let text = admit(Kind::Watch).unwrap_err().to_string();
        assert!(text.contains("1 open watches"), "{text}");
        drop((first, watch));
        let _again = (admit(Kind::Change).unwrap(), admit(Kind::Watch).unwrap());
        admission
            .admit(&Account::Uncertified, Kind::Read, now)
            .unwrap();
    }

    #[test]
    fn objects_count_however_few_the_calls() {
        let text = "tenants = { objects_per_second = 100, objects_burst = 50 }";
        let (admission, now) = (admission(text), Instant::now());
        let ann = tenant("ann");
        let permit = admission.admit(&ann, Kind::Change, now).unwrap();
        permit.count(40, now).unwrap();
        let refused = permit.count(40, now).unwrap_err();
        assert_eq!(refused.wait(), Duration::from_millis(300));
        // What a change deletes besides is paid for by the next, before it is read.
        permit.count_more(60, now);
        drop(permit);
        let refused = admission.admit(&ann, Kind::Change, now).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("tenants.objects_per_second"), "{text}");
        assert_eq!(refused.wait(), Duration::from_millis(510));
        let later = now + Duration::from_millis(510);
        admission.admit(&ann, Kind::Change, later).unwrap();
        // Reading costs no objects.
        admission.admit(&ann, Kind::Read, now).unwrap();
    }

    #[test]
    fn a_change_that_was_not_made_is_given_back() {
        let text = "tenants = { changes_per_second = 1, changes_burst = 1, objects_per_second = 1, objects_burst = 9 }";
        let (admission, now) = (admission(text), Instant::now());
        let admit = || admission.admit(&tenant("ann"), Kind::Change, now);
        for _ in 0..5 {
            let permit = admit().unwrap();
            permit.count(9, now).unwrap();
            permit.give_back(9, now);
        }
        let uses = admission.uses(now);
        let rates = uses.iter().filter(|it| it.limit.ends_with("_second"));
        assert_eq!(rates.map(|it| it.used + it.admitted).sum::<u64>(), 0);
        admit().unwrap();
        assert!(admit().is_err());
    }

    #[test]
    fn no_limit_is_none() {
        let text = "operators = { changes_in_flight = 0, reads_in_flight = 0 }";
        let (admission, now) = (admission(text), Instant::now());
        let open: Vec<_> = (0..10_000)
            .flat_map(|_| {
                let admit = |kind| admission.admit(&Account::Uncertified, kind, now).unwrap();
                [admit(Kind::Change), admit(Kind::Read)]
            })
            .collect();
        open[0].count(usize::MAX, now).unwrap();
    }

    #[test]
    fn so_many_callers_are_kept_and_those_in_debt_or_with_calls_the_longest() {
        let text = "tenants = { changes_per_second = 1, changes_burst = 1 }";
        let (admission, now) = (admission(text), Instant::now());
        let busy = admission.admit(&tenant("busy"), Kind::Read, now).unwrap();
        let late = now + Duration::from_millis(1);
        admission.admit(&tenant("ann"), Kind::Change, late).unwrap();
        for number in 0..2 * CALLERS {
            let account = tenant(&number.to_string());
            admission.admit(&account, Kind::Read, late).unwrap();
        }
        assert!(admission.lock().len() <= CALLERS);
        // Those who only read were like new, and went first.
        assert!(admission.admit(&tenant("ann"), Kind::Change, late).is_err());
        let held: Vec<_> = (0..CALLERS - 1)
            .map(|number| {
                let account = tenant(&number.to_string());
                admission.admit(&account, Kind::Read, late).unwrap()
            })
            .collect();
        let refused = admission.admit(&tenant("one more"), Kind::Read, late);
        assert_eq!(refused.unwrap_err(), Refused::Callers);
        assert_eq!(admission.beyond().at, Some(late), "it is said");
        drop((held, busy));
        admission
            .admit(&tenant("one more"), Kind::Read, late)
            .unwrap();
    }

    #[test]
    fn all_watches_have_their_bound() {
        let text = "tenants = { watches = 0 }";
        let (admission, now) = (admission(text), Instant::now());
        let watch = |name: &str| admission.admit(&tenant(name), Kind::Watch, now);
        let open: Vec<_> = (0..ALL_WATCHES).map(|_| watch("ann").unwrap()).collect();
        assert_eq!(watch("bob").unwrap_err(), Refused::Watches);
        let uses = admission.uses(now);
        let bob: Vec<_> = uses.iter().filter(|it| it.caller == "tenant bob").collect();
        assert_eq!(
            (bob.len(), &*bob[0].limit, bob[0].refused),
            (1, "watches", 1)
        );
        drop(open);
        watch("bob").unwrap();
    }

    #[test]
    fn one_at_its_own_bound_is_told_of_that_and_not_of_that_of_all() {
        let text = "operators = { watches = 0 }\ntenants = { watches = 1 }";
        let (admission, now) = (admission(text), Instant::now());
        let watch = |account: &Account| admission.admit(account, Kind::Watch, now);
        let ann = tenant("ann");
        let _own = watch(&ann).unwrap();
        let operator = Account::Subject("CN=op".to_owned());
        let _all: Vec<_> = (1..ALL_WATCHES)
            .map(|_| watch(&operator).unwrap())
            .collect();
        assert!(matches!(watch(&ann), Err(Refused::Most { .. })));
        assert_eq!(watch(&operator).unwrap_err(), Refused::Watches);
    }

    #[test]
    fn bytes_of_requests_count_until_their_calls_end() {
        let text = "tenants = { mebibytes_in_flight = 256 }";
        let (admission, now) = (admission(text), Instant::now());
        let call = |name: &str| admission.admit(&tenant(name), Kind::Change, now).unwrap();
        let (one, other) = (call("ann"), call("ann"));
        for _ in 0..2 {
            one.hear(100 << 20, now).unwrap();
        }
        other.hear(56 << 20, now).unwrap();
        let text = other.hear(1, now).unwrap_err().to_string();
        for part in ["256 MiB of requests", "tenants.mebibytes_in_flight"] {
            assert!(text.contains(part), "{text}");
        }
        call("bob").hear(256 << 20, now).unwrap();
        drop(one);
        other.hear(200 << 20, now).unwrap();
        drop(other);
        call("ann").hear(256 << 20, now).unwrap();
    }

    #[test]
    fn what_was_admitted_and_refused_is_counted_for_each_limit() {
        let text = "tenants = { changes_per_second = 2, changes_burst = 2, reads_in_flight = 1 }";
        let (admission, now) = (admission(text), Instant::now());
        let admit = |kind| admission.admit(&tenant("ann"), kind, now);
        for _ in 0..2 {
            admit(Kind::Change).unwrap().count(3, now).unwrap();
        }
        assert!(admit(Kind::Change).is_err());
        let _read = admit(Kind::Read).unwrap();
        assert!(admit(Kind::Read).is_err() && admit(Kind::Read).is_err());
        let uses = admission.uses(now);
        let found: Vec<_> = uses
            .iter()
            .map(|it| (&*it.limit, it.most, it.used, it.admitted, it.refused))
            .collect();
        assert_eq!(
            found,
            [
                ("changes_per_second", 2, 2, 2, 1),
                ("objects_per_second", 20_000, 6, 6, 0),
                ("changes_in_flight", 64, 0, 2, 0),
                ("reads_in_flight", 1, 1, 1, 2),
            ]
        );
        assert!(uses.iter().all(|it| it.caller == "tenant ann"));
    }
}
