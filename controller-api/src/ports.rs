//! Whether packets pass each port: what its host says of it, for as long as the host is there.
//!
//! No part of the intent: nothing of it is stored, and after a restart hosts say it again when they attach. A host is heeded of the ports that the intent
//! has on it, and is taken for gone when it was not attached for [`GONE`]. What it says of others is kept, for they may come to it: it says what changes, and
//! nothing twice.
//!
//! Watches are told by [`crate::port_watch`] which ports to look at again, not what they were like: one that is slow sees the newest.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use weft_process::tls::Role;
use weft_proto::state::{Kind, Object};
use weft_proto::v1::{Port, PortCondition, PortReport, PortReports};

use crate::caller::Caller;
use crate::hosts::Hosts;
use crate::intent::Intent;
use crate::store::{Form, now_ms};
use crate::version::Version;

/// After how long without its host a port's condition is unknown: a host that comes back by then, to whichever controller, changes nothing.
pub(crate) const GONE: Duration = Duration::from_secs(10);

/// How often hosts that have gone are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// Characters of a reason.
const REASON: usize = 200;

/// The newest changes that are kept for watches.
const KEPT: usize = 4096;

/// Ports that a host may speak of.
const OF_HOST: usize = 65_536;

/// What hosts say of their ports.
#[derive(Debug)]
pub(crate) struct Ports {
    told: Mutex<Told>,
    revision: watch::Sender<u64>,
}

#[derive(Debug)]
struct Told {
    hosts: HashMap<String, OfHost>,
    /// All changes after this revision are kept.
    after: u64,
    changes: VecDeque<Changed>,
}

/// A port to be looked at again.
#[derive(Debug, Clone)]
pub(crate) struct Changed {
    pub(crate) port: String,
    /// What it was, where it is another by now, or is not there any more.
    pub(crate) before: Option<Form>,
}

#[derive(Debug, Default)]
struct OfHost {
    session: u64,
    ports: HashMap<String, PortReport>,
    /// When it left, and what time that was.
    left: Option<(Instant, u64)>,
    is_gone: bool,
    /// When its session began, if it has not said yet what all of its ports are like.
    unsaid: Option<Instant>,
}

impl Told {
    fn newest(&self) -> u64 {
        self.after + self.changes.len() as u64
    }

    fn note(&mut self, port: String, before: Option<Form>) {
        if self.changes.len() == KEPT {
            self.changes.pop_front();
            self.after += 1;
        }
        self.changes.push_back(Changed { port, before });
    }
}

impl Default for Ports {
    fn default() -> Self {
        // Those of another controller, or of another run, are most likely far from it. Numbers that programs for JSON read exactly.
        let after = (u64::from(rand::random::<u16>()) + 1) << 36;
        Self {
            told: Mutex::new(Told {
                hosts: HashMap::new(),
                after,
                changes: VecDeque::new(),
            }),
            revision: watch::Sender::new(after),
        }
    }
}

impl Ports {
    /// Notice of each change, with the newest revision.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// The changes after a revision, and the newest one; no changes when not all of them are kept.
    pub(crate) fn since(&self, revision: u64) -> (u64, Option<Vec<Changed>>) {
        let told = self.lock();
        let newest = told.newest();
        let known = revision
            .checked_sub(told.after)
            .filter(|_| revision <= newest);
        let known = known.map(|known| usize::try_from(known).unwrap_or(usize::MAX));
        let changes = known.map(|known| told.changes.iter().skip(known).cloned().collect());
        (newest, changes)
    }

    /// Notes that a host's session begins.
    pub(crate) fn enter(&self, host: &str, session: u64) {
        let mut told = self.lock();
        let of_host = told.hosts.entry(host.to_owned()).or_default();
        of_host.session = session;
        of_host.left = None;
        of_host.is_gone = false;
        of_host.unsaid = Some(Instant::now());
    }

    /// Notes that a host's session has ended, if it is still its own.
    pub(crate) fn leave(&self, host: &str, session: u64) {
        if let Some(of_host) = self.lock().hosts.get_mut(host)
            && of_host.session == session
        {
            of_host.left = Some((Instant::now(), now_ms()));
        }
    }

    /// Takes up what a host's session says. Watches are told of the ports that are on the host in a version.
    pub(crate) fn hear(&self, version: &Version, host: &str, session: u64, reports: PortReports) {
        let is_here = |id: &str| match version.state.find(Kind::Port, id) {
            Some(Object::Port(port)) => port.host == host,
            _ => false,
        };
        let mut told = self.lock();
        let Some(of_host) = told.hosts.get_mut(host) else {
            return;
        };
        if of_host.session != session {
            return;
        }
        let mut changed = Vec::new();
        let mut known = match reports.whole {
            true => std::mem::take(&mut of_host.ports),
            false => HashMap::new(),
        };
        if reports.whole {
            of_host.unsaid = None;
        }
        for mut report in reports.ports {
            let is_full = of_host.ports.len() >= OF_HOST;
            if is_full && !of_host.ports.contains_key(&report.port) {
                continue;
            }
            report.reason = readable(&report.reason);
            let id = report.port.clone();
            let before = known.remove(&id);
            let replaced = of_host.ports.insert(id.clone(), report.clone());
            if before.or(replaced).as_ref() != Some(&report) {
                changed.push(id);
            }
        }
        for gone in reports.gone {
            if of_host.ports.remove(&gone).is_some() {
                changed.push(gone);
            }
        }
        // What it did not name of all that it has.
        changed.extend(known.into_keys());
        for id in changed.into_iter().filter(|id| is_here(id)) {
            told.note(id, None);
        }
        self.publish(told);
    }

    /// Takes hosts for gone that were not attached for too long.
    fn sweep_at(&self, now: Instant) {
        let mut told = self.lock();
        let mut unknown = Vec::new();
        for of_host in told.hosts.values_mut() {
            let is_late = |(left, _): (Instant, u64)| now.duration_since(left) >= GONE;
            let is_unsaid = of_host.unsaid.is_some_and(|began| is_late((began, 0)));
            if !of_host.is_gone && of_host.left.is_some_and(is_late) {
                of_host.is_gone = true;
                unknown.extend(std::mem::take(&mut of_host.ports).into_keys());
            } else if is_unsaid {
                // It is of a version that says nothing of them.
                of_host.unsaid = None;
                unknown.extend(std::mem::take(&mut of_host.ports).into_keys());
            }
        }
        for id in unknown {
            told.note(id, None);
        }
        self.publish(told);
    }

    /// Notes changes of ports in the intent: each as it was.
    fn follow(&self, changes: impl Iterator<Item = (String, Option<Form>)>) {
        let mut told = self.lock();
        for (id, before) in changes {
            told.note(id, before);
        }
        self.publish(told);
    }

    /// Notes that any port may be another now.
    fn forget(&self) {
        let mut told = self.lock();
        told.after = told.newest() + 1;
        told.changes.clear();
        self.publish(told);
    }

    /// Has watches look.
    fn publish(&self, told: MutexGuard<'_, Told>) {
        let newest = told.newest();
        drop(told);
        self.revision.send_if_modified(|known| {
            let is_newer = *known < newest;
            *known = newest.max(*known);
            is_newer
        });
    }

    /// The condition of a port of the intent, as a caller is told of it.
    pub(crate) fn condition(
        &self,
        version: &Version,
        caller: &Caller,
        port: &Port,
    ) -> PortCondition {
        let mut condition = PortCondition {
            port: port.id.clone(),
            vpc: port.vpc.clone(),
            host: port.host.clone(),
            ..PortCondition::default()
        };
        if port.host.is_empty() {
            condition.state = "unbound".to_owned();
            condition.reason = "it is on no host".to_owned();
            return condition;
        }
        let told = self.lock();
        let of_host = told.hosts.get(&port.host);
        if let Some(report) = of_host.and_then(|of_host| of_host.ports.get(&port.id)) {
            condition.since_ms = report.since_ms;
            condition.state = if report.up { "up" } else { "down" }.to_owned();
            condition.reason = match report.up {
                true => String::new(),
                // What a host says of its devices is not for tenants.
                false if caller.role < Role::Read => "its device is not up".to_owned(),
                false => report.reason.clone(),
            };
            return condition;
        }
        condition.state = "unknown".to_owned();
        let left = of_host.and_then(|of_host| of_host.left);
        condition.since_ms = left.map_or(0, |(_, time)| time);
        condition.reason = match of_host {
            _ if version.host(&port.host).is_none() => "its host runs no weftd",
            Some(of_host) if of_host.left.is_none() => "its host has not said yet",
            _ => "its host is not attached to this controller",
        }
        .to_owned();
        condition
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        // Reports are put in whole, and no change is half noted after a panic.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reason that is short and of one line.
fn readable(reason: &str) -> String {
    let shown = reason.chars().take(REASON);
    shown
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Follows the intent, and looks for hosts that are gone, until the intent is.
pub(crate) async fn follow(intent: Arc<Intent>, hosts: Arc<Hosts>) {
    let ports = &hosts.ports;
    let mut versions = intent.watch();
    let mut known = versions.borrow_and_update().revision;
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            now = sweep.tick() => {
                ports.sweep_at(now);
                hosts.forget_findings(&intent.current());
            }
            changed = versions.changed() => {
                if changed.is_err() {
                    return;
                }
                let published = versions.borrow_and_update().revision;
                known = follow_to(&intent, ports, known, published).await;
            }
        }
    }
}

/// Follows the changes after a revision up to another; says how far.
async fn follow_to(intent: &Intent, ports: &Ports, mut known: u64, published: u64) -> u64 {
    while known != published {
        let records = intent.recent().since(known).filter(|_| known < published);
        let Some(records) = records.filter(|records| !records.is_empty()) else {
            ports.forget();
            return published;
        };
        for record in records.iter().filter(|it| it.revision <= published) {
            known = record.revision;
            let edits = record.edits.iter();
            let of_ports = edits.filter(|edit| edit.key.kind == Kind::Port);
            if record.keys_only {
                ports.forget();
                continue;
            }
            ports.follow(of_ports.map(|edit| (edit.key.id.clone(), edit.before.clone())));
        }
        tokio::task::yield_now().await;
    }
    known
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_proto::state::State;
    use weft_proto::v1::Objects;

    fn version() -> Version {
        let port = |id: &str, host: &str| Port {
            id: id.into(),
            host: host.into(),
            ..Port::default()
        };
        let hosts = ["h1", "h2"].map(|id| weft_proto::v1::Host {
            id: id.into(),
            ..Default::default()
        });
        let objects = Objects {
            hosts: hosts.into(),
            ports: vec![port("a", "h1"), port("b", "h2"), port("c", "")],
            ..Objects::default()
        };
        Version::loaded(1, State::from_objects(objects).unwrap())
    }

    fn reports(whole: bool, ports: &[(&str, bool)]) -> PortReports {
        let report = |(port, up): &(&str, bool)| PortReport {
            port: (*port).into(),
            up: *up,
            reason: if *up { "" } else { "no\nlink" }.into(),
            since_ms: 7,
        };
        PortReports {
            whole,
            ports: ports.iter().map(report).collect(),
            ..PortReports::default()
        }
    }

    fn state(ports: &Ports, id: &str) -> (String, String) {
        let version = version();
        let Some(Object::Port(port)) = version.state.find(Kind::Port, id) else {
            panic!("no port {id}");
        };
        let caller = Caller::trusted("test".into());
        let condition = ports.condition(&version, &caller, port);
        (condition.state, condition.reason)
    }

    fn told(state: &str, reason: &str) -> (String, String) {
        (state.to_owned(), reason.to_owned())
    }

    #[test]
    fn a_host_is_heeded_of_its_own_ports_and_in_its_own_session() {
        let ports = Ports::default();
        ports.enter("h1", 1);
        let all = reports(true, &[("a", true), ("b", true), ("c", true), ("x", true)]);
        ports.hear(&version(), "h1", 1, all);
        assert_eq!(state(&ports, "a"), told("up", ""));
        let nowhere = "its host is not attached to this controller";
        assert_eq!(state(&ports, "b"), told("unknown", nowhere));
        assert_eq!(state(&ports, "c"), told("unbound", "it is on no host"));
        ports.hear(&version(), "h2", 1, reports(true, &[("b", true)]));
        assert_eq!(state(&ports, "b").0, "unknown", "it is not attached");
        ports.enter("h1", 2);
        ports.hear(&version(), "h1", 1, reports(false, &[("a", false)]));
        assert_eq!(state(&ports, "a"), told("up", ""), "of an older session");
        ports.hear(&version(), "h1", 2, reports(false, &[("a", false)]));
        assert_eq!(state(&ports, "a"), told("down", "no link"));
    }

    #[test]
    fn a_host_that_says_the_same_again_changes_nothing() {
        let ports = Ports::default();
        let (start, _) = ports.since(0);
        ports.enter("h1", 1);
        ports.hear(&version(), "h1", 1, reports(true, &[("a", true)]));
        let (first, changes) = ports.since(start);
        assert_eq!(changes.unwrap().len(), 1);
        ports.leave("h1", 1);
        ports.enter("h1", 2);
        ports.hear(&version(), "h1", 2, reports(true, &[("a", true)]));
        let (newest, changes) = ports.since(first);
        assert!(newest == first && changes.unwrap().is_empty());
        ports.hear(&version(), "h1", 2, reports(true, &[]));
        assert_eq!(
            state(&ports, "a"),
            told("unknown", "its host has not said yet")
        );
        let (_, changes) = ports.since(first);
        assert_eq!(changes.unwrap()[0].port, "a");
        assert!(ports.since(start - 1).1.is_none() && ports.since(u64::MAX).1.is_none());
    }

    #[test]
    fn what_was_said_of_a_port_holds_whatever_else_of_it_changes() {
        let ports = Ports::default();
        ports.enter("h1", 1);
        ports.hear(&version(), "h1", 1, reports(true, &[("a", true)]));
        let (start, _) = ports.since(0);
        ports.follow([("a".to_owned(), None)].into_iter());
        assert_eq!(state(&ports, "a"), told("up", ""));
        assert_eq!(ports.since(start).1.unwrap().len(), 1, "watches look again");
        // A port that comes to the host after it has spoken of it.
        ports.enter("h2", 1);
        ports.hear(
            &version(),
            "h2",
            1,
            reports(true, &[("a", false), ("b", true)]),
        );
        assert_eq!(state(&ports, "a"), told("up", ""), "by its own host");
        ports.hear(&version(), "h2", 1, reports(false, &[]));
        assert_eq!(ports.lock().hosts["h2"].ports.len(), 2);
    }

    #[test]
    fn a_host_whose_new_session_says_nothing_is_not_believed_for_ever() {
        let ports = Ports::default();
        ports.enter("h1", 1);
        ports.hear(&version(), "h1", 1, reports(true, &[("a", true)]));
        ports.leave("h1", 1);
        ports.enter("h1", 2);
        ports.sweep_at(Instant::now() + GONE - Duration::from_secs(1));
        assert_eq!(state(&ports, "a").0, "up");
        ports.sweep_at(Instant::now() + GONE);
        assert_eq!(state(&ports, "a").0, "unknown");
    }

    #[test]
    fn the_ports_of_a_host_that_is_gone_are_unknown_after_a_while() {
        let ports = Ports::default();
        ports.enter("h1", 1);
        ports.hear(&version(), "h1", 1, reports(true, &[("a", true)]));
        ports.leave("h1", 1);
        ports.sweep_at(Instant::now() + GONE - Duration::from_secs(1));
        assert_eq!(state(&ports, "a").0, "up");
        ports.sweep_at(Instant::now() + GONE);
        let nowhere = "its host is not attached to this controller";
        assert_eq!(state(&ports, "a"), told("unknown", nowhere));
        ports.enter("h1", 2);
        assert_eq!(
            state(&ports, "a"),
            told("unknown", "its host has not said yet")
        );
    }
}
