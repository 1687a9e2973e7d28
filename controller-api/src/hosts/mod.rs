//! The hosts and how far each is in sync: one session per host; the newest session wins.
//!
//! A host has a state in force when it acknowledges it, but for what it holds back (decision 013), which it says.
//!
//! What a host last acknowledged is remembered beyond its session, so that a host that reconnects gets the difference only.

mod service;
mod session;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore, oneshot};
use weft_proto::state::Kind;
use weft_proto::state::Object;
use weft_proto::v1::{
    AddressHolder, Findings, FoundByHosts, HeldBack, Hello, HostLimits, HostStatus, Violation,
    VpcHeldBack,
};

pub(crate) use service::Control;

use crate::findings::Board;
use crate::intent::Intent;
use crate::interest::Interest;
use crate::node::{Capabilities, NodeState};
use crate::ports::Ports;
use crate::version::Version;

/// A state of a host, as sent to it or in force there.
#[derive(Debug, Clone)]
struct Told {
    revision: u64,
    digest: [u8; 32],
    state: Arc<NodeState>,
}

/// What is known of one host.
#[derive(Debug, Default)]
struct Entry {
    session: u64,
    /// Dropped, and so noticed by the session, when a newer one takes its place.
    lease: Option<oneshot::Sender<()>>,
    acknowledged: Option<Told>,
    sent_revision: u64,
    acknowledged_revision: u64,
    effect_microseconds: u64,
    violations: Vec<Violation>,
    refused_revision: u64,
    /// What of the acknowledged state is not in force.
    held_back: Vec<HeldBack>,
    limits: Option<HostLimits>,
}

impl Entry {
    /// Notes what a host holds back, and logs what is new of it.
    fn set_held_back(&mut self, host: &str, held_back: Vec<HeldBack>) {
        let key = |held: &HeldBack| held.object.clone().unwrap_or_default();
        for held in &held_back {
            if self
                .held_back
                .iter()
                .all(|known| known.object != held.object)
            {
                let object = key(held);
                let reason = held.violations.iter().map(weft_proto::validate::describe);
                let reason = reason.collect::<Vec<_>>().join("; ");
                tracing::error!(
                    host,
                    kind = object.kind,
                    object = object.id,
                    in_force = held.in_force_revision,
                    reason,
                    "stays behind on this host; all else goes on"
                );
            }
        }
        for known in &self.held_back {
            if held_back.iter().all(|held| held.object != known.object) {
                let object = key(known);
                tracing::info!(
                    host,
                    kind = object.kind,
                    object = object.id,
                    "is no longer behind on this host"
                );
            }
        }
        self.held_back = held_back;
    }
}

/// Every host that ever attached.
#[derive(Debug)]
pub struct Hosts {
    entries: Mutex<HashMap<String, Entry>>,
    /// What other controllers say of the hosts that are attached to them.
    others: Mutex<HashMap<String, HostStatus>>,
    interest: Arc<Interest>,
    /// What hosts say of their ports.
    pub(crate) ports: Arc<Ports>,
    /// What hosts find out, for others to know.
    pub(crate) board: Board,
    /// Who may compile: as many as there are cores, so that the threads that answer are not starved when all hosts come at once.
    compiling: Semaphore,
    /// Who may have a large state on its way.
    sending: Arc<Semaphore>,
}

/// Large states that are on their way at a time, which bounds the memory that they take.
const LARGE_STATES: usize = 16;

impl Hosts {
    /// The hosts of an intent.
    pub fn new(intent: &Intent) -> Self {
        Self {
            entries: Mutex::default(),
            others: Mutex::default(),
            interest: Arc::clone(intent.interest()),
            ports: Arc::default(),
            board: Board::default(),
            compiling: Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)),
            sending: Arc::new(Semaphore::new(LARGE_STATES)),
        }
    }

    /// How far each host of the intent has come, and each that is attached, by id. Of hosts that are attached to other controllers, what those told last.
    pub fn status(&self, version: &Version) -> Vec<HostStatus> {
        let mut entries = self.lock();
        entries.retain(|id, entry| entry.lease.is_some() || version.host(id).is_some());
        let others = self.others();
        let known = version.state.iter().map_while(|object| match object {
            Object::Host(host) => Some(host),
            _ => None,
        });
        let mut ids: Vec<&str> = known
            .filter(|host| !host.foreign)
            .map(|host| host.id.as_str())
            .chain(entries.keys().chain(others.keys()).map(String::as_str))
            .collect();
        ids.sort_unstable();
        ids.dedup();
        let none = Entry::default();
        ids.into_iter()
            .map(|id| {
                let entry = entries.get(id).unwrap_or(&none);
                match others.get(id) {
                    Some(other) if entry.lease.is_none() => other.clone(),
                    _ => self.own_status(id, entry, version),
                }
            })
            .collect()
    }

    /// The hosts that are attached to this controller, as it tells others.
    pub(crate) fn attached(&self, version: &Version) -> Vec<HostStatus> {
        let entries = self.lock();
        let attached = entries.iter().filter(|(_, entry)| entry.lease.is_some());
        let mut all: Vec<HostStatus> = attached
            .map(|(id, entry)| self.own_status(id, entry, version))
            .collect();
        all.sort_by(|a, b| a.host.cmp(&b.host));
        all
    }

    /// Notes what other controllers say of the hosts that are attached to them.
    pub(crate) fn set_others(&self, others: HashMap<String, HostStatus>) {
        *self.others() = others;
    }

    fn own_status(&self, id: &str, entry: &Entry, version: &Version) -> HostStatus {
        let now = |revision: u64| match entry.lease {
            Some(_) if revision != 0 => self.interest.holds_until(id, revision, version.revision),
            _ => revision,
        };
        HostStatus {
            host: id.to_owned(),
            attached: entry.lease.is_some(),
            sent_revision: entry.sent_revision,
            acknowledged_revision: now(entry.acknowledged_revision),
            effect_microseconds: entry.effect_microseconds,
            violations: entry.violations.clone(),
            refused_revision: now(entry.refused_revision),
            held_back: entry.held_back.clone(),
            limits: entry.limits,
            learned: self.interest.asked(id) as u32,
        }
    }

    /// The VPCs that stay behind, each with a host on which it does, by both.
    pub fn vpcs_held_back(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<VpcHeldBack> {
        let (entries, others) = (self.lock(), self.others());
        let is_elsewhere = |host: &str| {
            let is_here = entries.get(host).is_some_and(|it| it.lease.is_some());
            !is_here && others.contains_key(host)
        };
        let here = entries.iter().filter(|(host, _)| !is_elsewhere(host));
        let here = here.map(|(host, entry)| (host, &entry.held_back));
        let elsewhere = others.iter().filter(|(host, _)| is_elsewhere(host));
        let elsewhere = elsewhere.map(|(host, other)| (host, &other.held_back));
        let all = here
            .chain(elsewhere)
            .flat_map(|(host, held)| held.iter().map(move |held| (host, held)));
        let mut found: Vec<VpcHeldBack> = all
            .filter_map(|(host, held)| {
                let object = held.object.as_ref()?;
                (object.kind == Kind::Vpc.name() && is_wanted(&object.id)).then(|| VpcHeldBack {
                    vpc: object.id.clone(),
                    host: host.clone(),
                    in_force_revision: held.in_force_revision,
                    violations: held.violations.clone(),
                })
            })
            .collect();
        found.sort_by(|a, b| (&a.vpc, &a.host).cmp(&(&b.vpc, &b.host)));
        found
    }

    /// Makes a session the host's only one. The receiver fails when a newer one takes its place.
    fn attach(
        &self,
        hello: &Hello,
        session: u64,
        version: &Version,
    ) -> (oneshot::Receiver<()>, Arc<Notify>, Option<Told>) {
        let (lease, taken) = oneshot::channel();
        let mut entries = self.lock();
        let entry = entries.entry(hello.host.clone()).or_default();
        entry.session = session;
        entry.lease = Some(lease);
        entry.limits = hello.limits;
        entry.set_held_back(&hello.host, hello.held_back.clone());
        // In the order in which sessions take each other's place.
        self.ports.enter(&hello.host, session);
        let capabilities = Capabilities::of(&hello.capabilities);
        let finds = |kind| capabilities.takes(kind);
        let changed = self.board.enter(&hello.host, session, finds);
        let waker = self.interest.waker(&hello.host, capabilities.learns);
        let acknowledged = entry.acknowledged.clone();
        drop(entries);
        self.wake_hosts_of(version, &changed);
        (taken, waker, acknowledged)
    }

    /// Ends a session, unless a newer one has taken its place.
    fn detach(&self, host: &str, session: u64) {
        self.update(host, session, |entry| entry.lease = None);
        self.ports.leave(host, session);
        self.board.leave(host, session);
    }

    /// Notes that a session looks at the newest version, and how far the host was before it.
    fn look(&self, host: &str, session: u64) {
        self.update(host, session, |entry| {
            for revision in [
                &mut entry.acknowledged_revision,
                &mut entry.refused_revision,
            ] {
                if *revision != 0 {
                    *revision = self.interest.holds_until(host, *revision, 0);
                }
            }
        });
        self.interest.look(host);
    }

    /// Takes up what a host's session has found out, and wakes the sessions of whom that concerns.
    fn hear_findings(&self, version: &Version, host: &str, session: u64, findings: Findings) {
        let changed = self.board.hear(version, host, session, findings);
        self.wake_hosts_of(version, &changed);
    }

    /// Takes up what a host that attaches knows of who holds virtual addresses, and wakes the sessions of whom that concerns.
    fn hear_of_holders(&self, version: &Version, host: &str, holders: &[AddressHolder]) {
        let changed = self.board.hear_of_holders(version, host, holders);
        self.wake_hosts_of(version, &changed);
    }

    /// Takes up what another controller says that hosts have found, and wakes the sessions of whom that concerns. Whether all of it was taken.
    pub(crate) fn hear_from_others(&self, version: &Version, found: FoundByHosts) -> bool {
        let (changed, is_all) = self.board.hear_from_other(version, found);
        self.wake_hosts_of(version, &changed);
        is_all
    }

    /// Forgets what hosts have found that does not fit the intent any more.
    pub(crate) fn forget_findings(&self, version: &Version) {
        let changed = self.board.forget_past(version);
        self.wake_hosts_of(version, &changed);
    }

    /// Wakes the sessions of the hosts that have ports of VPCs or of those that peerings join to them, or are gateways for them.
    fn wake_hosts_of(&self, version: &Version, vpcs: &BTreeSet<String>) {
        let peered = vpcs.iter().flat_map(|vpc| {
            let peerings = version.state.peerings_of(vpc);
            peerings.filter_map(|peering| peering.other(vpc))
        });
        let all = vpcs.iter().map(String::as_str).chain(peered);
        let views = all.filter_map(|vpc| version.view(vpc));
        let hosts = views.flat_map(|view| view.port_hosts.iter().chain(view.gateways.iter()));
        let hosts: BTreeSet<&str> = hosts.map(|host| &**host).collect();
        self.interest.wake(Some(&hosts));
    }

    /// Changes what is known of a host, if this session is still its own.
    fn update(&self, host: &str, session: u64, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.lock().get_mut(host)
            && entry.session == session
        {
            change(entry);
        }
    }

    fn others(&self) -> MutexGuard<'_, HashMap<String, HostStatus>> {
        // Replaced whole. Always locked after the entries.
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        // Entries are plain values, whole after any panic.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
