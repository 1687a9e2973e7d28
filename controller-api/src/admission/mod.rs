//! How much each caller may ask for at a time, so that one that floods does not slow others: changes and changed objects a second, changes and reads in
//! flight, open watches.
//!
//! The service asks before a request's body is read ([`service`]), so that a refused call costs next to nothing and does nothing. The attach streams of
//! hosts do not pass here.

mod bucket;
mod limits;
mod service;
mod turns;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tonic::Status;
use weft_process::controllers::RETRY_AFTER;

use crate::caller::{AUDIT, Account};
use bucket::Bucket;
use limits::Limits;

pub use limits::{AdmissionConfig, CallerConfig};
pub(crate) use service::{Admitted, Admitting};
pub(crate) use turns::Turns;

/// Callers of whom count is kept.
const CALLERS: usize = 4096;

/// The most watches of all callers.
const ALL_WATCHES: u64 = 4000;

/// When to try again what has to wait for other calls to end: nobody knows when they do.
const LATER: Duration = Duration::from_millis(100);

/// At most so often it is said that a caller is refused.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Change,
    Read,
    Watch,
}

/// Why a call is refused; nothing of it happened.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Refused {
    #[error(
        "{account}: {what} faster than {per_second} a second after a burst of {burst} ({setting}); nothing was done, try again in {} ms", milliseconds(*.wait)
    )]
    Rate {
        account: Account,
        what: &'static str,
        setting: String,
        per_second: u64,
        burst: u64,
        wait: Duration,
    },
    #[error(
        "{account}: has {most} {what}, the most at a time ({setting}); nothing was done, try again when one has ended, in {} ms or later", milliseconds(*.wait)
    )]
    Most {
        account: Account,
        what: &'static str,
        setting: String,
        most: u64,
        wait: Duration,
    },
    #[error("the controller has {ALL_WATCHES} watches, the most of all callers; try again later")]
    Watches,
    #[error("{CALLERS} callers have calls in flight, the most at a time; try again later")]
    Callers,
}

/// Whole milliseconds, at least so long.
fn milliseconds(wait: Duration) -> u128 {
    wait.as_nanos().div_ceil(1_000_000).max(1)
}

impl Refused {
    /// When to try again.
    fn wait(&self) -> Duration {
        match self {
            Self::Rate { wait, .. } | Self::Most { wait, .. } => *wait,
            Self::Watches | Self::Callers => LATER,
        }
    }

    /// The answer to the caller.
    pub(crate) fn status(&self) -> Status {
        let mut status = Status::resource_exhausted(self.to_string());
        // Digits are always a header's value.
        if let Ok(value) = milliseconds(self.wait()).to_string().parse() {
            status.metadata_mut().insert(RETRY_AFTER, value);
        }
        status
    }
}

/// What is known of one caller.
#[derive(Debug)]
struct Entry {
    changes: Bucket,
    objects: Bucket,
    /// Calls that have not ended, by kind.
    open: [u64; 3],
    used: Instant,
    /// Refusals since one was last said.
    refused: u64,
    said: Option<Instant>,
}

impl Entry {
    fn new(now: Instant) -> Self {
        Self {
            changes: Bucket::default(),
            objects: Bucket::default(),
            open: [0; 3],
            used: now,
            refused: 0,
            said: None,
        }
    }

    /// Whether nothing is lost when it is forgotten.
    fn is_fresh(&self, now: Instant) -> bool {
        self.is_unused() && self.changes.is_full(now) && self.objects.is_full(now)
    }

    fn is_unused(&self) -> bool {
        self.open == [0; 3]
    }
}

/// Who has asked for how much.
#[derive(Debug)]
pub(crate) struct Admission {
    tenants: Limits,
    operators: Limits,
    accounts: Mutex<HashMap<Account, Entry>>,
}

impl Admission {
    pub(crate) fn new(config: &AdmissionConfig) -> Self {
        Self {
            tenants: config.of_tenants(),
            operators: config.of_operators(),
            accounts: Mutex::default(),
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
        if kind == Kind::Watch {
            let open = |entry: &Entry| entry.open[Kind::Watch as usize];
            if accounts.values().map(open).sum::<u64>() >= ALL_WATCHES {
                return Err(Refused::Watches);
            }
        }
        let entry = entry(&mut accounts, account, now)?;
        entry.used = now;
        if let Err(refused) = self.check(account, entry, kind, now) {
            say(entry, &refused, now);
            return Err(refused);
        }
        if let Some(rate) = self.limits(account).changes()
            && kind == Kind::Change
        {
            entry.changes.take(rate, 1, now);
        }
        entry.open[kind as usize] += 1;
        Ok(Permit {
            admission: Arc::clone(self),
            account: account.clone(),
            kind,
        })
    }

    fn check(
        &self,
        account: &Account,
        entry: &Entry,
        kind: Kind,
        now: Instant,
    ) -> Result<(), Refused> {
        let limits = self.limits(account);
        let (most, what, setting) = match kind {
            Kind::Change => (
                limits.changes_in_flight,
                "changes in flight",
                "changes_in_flight",
            ),
            Kind::Read => (limits.reads_in_flight, "reads in flight", "reads_in_flight"),
            Kind::Watch => (limits.watches, "open watches", "watches"),
        };
        if most > 0 && entry.open[kind as usize] >= most {
            return Err(Refused::Most {
                account: account.clone(),
                what,
                setting: setting_of(account, setting),
                most,
                wait: LATER,
            });
        }
        if kind == Kind::Change {
            self.check_rate(account, entry, Of::Changes, (1, now))?;
            // One in debt is told so before its next request is read.
            self.check_rate(account, entry, Of::Objects, (1, now))?;
        }
        Ok(())
    }

    fn check_rate(
        &self,
        account: &Account,
        entry: &Entry,
        of: Of,
        (tokens, now): (u64, Instant),
    ) -> Result<(), Refused> {
        let limits = self.limits(account);
        let (rate, bucket, what, setting) = match of {
            Of::Changes => (
                limits.changes(),
                &entry.changes,
                "makes changes",
                "changes_per_second",
            ),
            Of::Objects => (
                limits.objects(),
                &entry.objects,
                "changes objects",
                "objects_per_second",
            ),
        };
        let Some(rate) = rate else { return Ok(()) };
        let refused = |wait| Refused::Rate {
            account: account.clone(),
            what,
            setting: setting_of(account, setting),
            per_second: rate.per_second,
            burst: rate.burst,
            wait,
        };
        bucket.check(rate, tokens, now).map_err(refused)
    }

    fn limits(&self, account: &Account) -> &Limits {
        match account {
            Account::Tenants(_) => &self.tenants,
            Account::Subject(_) | Account::Uncertified => &self.operators,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Account, Entry>> {
        // Nothing panics while it is held.
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has a rate.
#[derive(Clone, Copy)]
enum Of {
    Changes,
    Objects,
}

fn setting_of(account: &Account, name: &str) -> String {
    let section = match account {
        Account::Tenants(_) => "tenants",
        Account::Subject(_) | Account::Uncertified => "operators",
    };
    format!("admission.{section}.{name}")
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

/// Says in the log that a caller is refused, now and then.
fn say(entry: &mut Entry, refused: &Refused, now: Instant) {
    entry.refused += 1;
    let is_due = |said: Instant| now.saturating_duration_since(said) >= SAID_EVERY;
    if entry.said.is_none_or(is_due) {
        let (reason, calls) = (refused.to_string(), entry.refused);
        tracing::warn!(target: AUDIT, calls, reason, "asks for too much");
        (entry.refused, entry.said) = (0, Some(now));
    }
}

/// The right to one call, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    account: Account,
    kind: Kind,
}

impl Permit {
    /// Whose call it is.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    /// Counts the objects that a change names, before anything else is done with them.
    ///
    /// # Errors
    /// They are too many for now.
    pub(crate) fn count(&self, objects: usize, now: Instant) -> Result<(), Refused> {
        self.with_entry(|admission, entry| {
            let tokens = objects as u64;
            let checked = admission.check_rate(&self.account, entry, Of::Objects, (tokens, now));
            match &checked {
                Ok(()) => self.take(entry, tokens, now),
                Err(refused) => say(entry, refused, now),
            }
            checked
        })
        .unwrap_or(Ok(()))
    }

    /// Counts objects that a change turned out to have besides: what follows waits for them.
    pub(crate) fn count_more(&self, objects: usize, now: Instant) {
        self.with_entry(|_, entry| self.take(entry, objects as u64, now));
    }

    fn take(&self, entry: &mut Entry, tokens: u64, now: Instant) {
        if let Some(rate) = self.admission.limits(&self.account).objects() {
            entry.objects.take(rate, tokens, now);
        }
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
        self.with_entry(|_, entry| entry.open[self.kind as usize] -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        drop(open);
        watch("bob").unwrap();
    }
}
