//! What the controller is told of the host's ports: whether packets pass each, since when, and why not.
//!
//! The daemon says what they are like; each attachment tells all of them first, and then what has changed. Nothing is queued: what changed and changed
//! back meanwhile is not told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use weft_proto::v1::{PortReport, PortReports};

/// Ports by id.
pub(super) type Reports = Arc<BTreeMap<String, PortReport>>;

/// Characters of a reason.
const REASON: usize = 200;

/// The time in milliseconds since 1970; 0 when the clock is before that. For people who read since when a port is as it is: nothing is decided by it.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Takes up what ports are like: each by id, with the reason why no packets pass it if none do.
pub(super) fn set(
    reports: &watch::Sender<Reports>,
    ports: impl Iterator<Item = (String, Result<(), String>)>,
) {
    let now = now_ms();
    reports.send_if_modified(|known| {
        let report = |(port, condition): (String, Result<(), String>)| {
            let up = condition.is_ok();
            let before = known.get(&port).filter(|before| before.up == up);
            let report = PortReport {
                port: port.clone(),
                up,
                reason: condition.map_or_else(
                    |reason| reason.chars().take(REASON).collect(),
                    |()| String::new(),
                ),
                since_ms: before.map_or(now, |before| before.since_ms),
            };
            (port, report)
        };
        let next: BTreeMap<String, PortReport> = ports.map(report).collect();
        let differs = **known != next;
        if differs {
            *known = Arc::new(next);
        }
        differs
    });
}

/// What tells a controller of all ports.
pub(super) fn all(session: u64, ports: &Reports) -> PortReports {
    PortReports {
        session,
        whole: true,
        ports: ports.values().cloned().collect(),
        gone: Vec::new(),
    }
}

/// What tells a controller that knows some ports of what they are like now.
pub(super) fn difference(session: u64, known: &Reports, now: &Reports) -> PortReports {
    let changed = now
        .iter()
        .filter(|(id, report)| known.get(*id) != Some(report));
    let gone = known.keys().filter(|id| !now.contains_key(*id));
    PortReports {
        session,
        whole: false,
        ports: changed.map(|(_, report)| report.clone()).collect(),
        gone: gone.cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(list: &[(&str, bool)]) -> impl Iterator<Item = (String, Result<(), String>)> {
        let list: Vec<_> = list
            .iter()
            .map(|(id, up)| {
                let down = || "x".repeat(1000);
                ((*id).to_owned(), up.then_some(()).ok_or_else(down))
            })
            .collect();
        list.into_iter()
    }

    #[test]
    fn a_difference_is_of_what_changed_and_what_went() {
        let reports = watch::Sender::new(Reports::default());
        set(&reports, ports(&[("a", true), ("b", true), ("c", false)]));
        let before = reports.borrow().clone();
        assert_eq!(before["c"].reason.len(), REASON);
        let mut watched = reports.subscribe();
        set(&reports, ports(&[("a", true), ("b", true), ("c", false)]));
        assert!(!watched.has_changed().unwrap());
        set(&reports, ports(&[("b", false), ("c", false), ("d", true)]));
        let now = watched.borrow_and_update().clone();
        assert_eq!(now["c"], before["c"], "down since then");
        let told = difference(7, &before, &now);
        let ids: Vec<&str> = told.ports.iter().map(|it| it.port.as_str()).collect();
        assert_eq!((told.session, told.whole, ids), (7, false, vec!["b", "d"]));
        assert_eq!(told.gone, ["a"]);
        assert_eq!(all(7, &now).ports.len(), 3);
    }
}
