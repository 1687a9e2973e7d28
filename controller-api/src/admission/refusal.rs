//! What is limited, and what a caller is told who asks for more.

use std::time::Duration;

use tonic::Status;
use weft_process::controllers::RETRY_AFTER;

use super::{ALL_WATCHES, CALLERS};
use crate::caller::Account;

/// When to try again what has to wait for other calls to end: nobody knows when they do.
const LATER: Duration = Duration::from_millis(100);

/// The most bytes of a caller's name in a refusal, which travels as an HTTP/2 header.
const NAMED: usize = 200;

/// What of a caller is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    Changes,
    Objects,
    ChangesInFlight,
    ReadsInFlight,
    Watches,
    /// Bytes of requests.
    Bytes,
}

impl Limit {
    pub(super) const ALL: [Self; 6] = [
        Self::Changes,
        Self::Objects,
        Self::ChangesInFlight,
        Self::ReadsInFlight,
        Self::Watches,
        Self::Bytes,
    ];

    /// The name of its setting.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Changes => "changes_per_second",
            Self::Objects => "objects_per_second",
            Self::ChangesInFlight => "changes_in_flight",
            Self::ReadsInFlight => "reads_in_flight",
            Self::Watches => "watches",
            Self::Bytes => "mebibytes_in_flight",
        }
    }

    /// What a caller has or does, after a number or the caller.
    fn what(self) -> &'static str {
        match self {
            Self::Changes => "makes changes",
            Self::Objects => "changes objects",
            Self::ChangesInFlight => "changes in flight",
            Self::ReadsInFlight => "reads in flight",
            Self::Watches => "open watches",
            Self::Bytes => "MiB of requests in flight",
        }
    }
}

/// Why a call is refused; nothing of it happened.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Refused {
    #[error(
        "{}: {} faster than {per_second} a second after a burst of {burst} ({}); nothing was done, try again in {} ms", named(.account), .limit.what(), setting(.account, *.limit), milliseconds(*.wait)
    )]
    Rate {
        account: Account,
        limit: Limit,
        per_second: u64,
        burst: u64,
        wait: Duration,
    },
    #[error(
        "{}: has {most} {}, the most at a time ({}); nothing was done, try again when one has ended, in {} ms or later", named(.account), .limit.what(), setting(.account, *.limit), milliseconds(LATER)
    )]
    Most {
        account: Account,
        limit: Limit,
        most: u64,
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

/// A caller as a refusal names it: of any length that a certificate may give it, so much.
fn named(account: &Account) -> String {
    let name = account.to_string();
    if name.len() <= NAMED {
        return name;
    }
    format!("{}…", &name[..name.floor_char_boundary(NAMED)])
}

fn setting(account: &Account, limit: Limit) -> String {
    let section = match account {
        Account::Tenants(_) => "tenants",
        Account::Subject(_) | Account::Uncertified | Account::Controller => "operators",
    };
    format!("admission.{section}.{}", limit.name())
}

impl Refused {
    /// When to try again.
    pub(super) fn wait(&self) -> Duration {
        match self {
            Self::Rate { wait, .. } => *wait,
            Self::Most { .. } | Self::Watches | Self::Callers => LATER,
        }
    }

    /// Of what there was too much, where count of the caller is kept.
    pub(super) fn limit(&self) -> Option<Limit> {
        match self {
            Self::Rate { limit, .. } | Self::Most { limit, .. } => Some(*limit),
            Self::Watches => Some(Limit::Watches),
            Self::Callers => None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_short_whatever_the_caller_is_called() {
        for name in ["ann/".repeat(5000), "ü".repeat(5000)] {
            let refused = Refused::Most {
                account: Account::Tenants(name),
                limit: Limit::Watches,
                most: 1,
            };
            let text = refused.to_string();
            assert!(text.len() < 500, "{text}");
            assert!(text.contains("…: has 1 open watches"), "{text}");
            let sent = refused.status().into_http::<()>();
            let sent = sent.headers().get("grpc-message").unwrap();
            assert!(sent.len() < 2000, "{sent:?}");
        }
    }
}
