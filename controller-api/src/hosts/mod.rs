//! The hosts and how far each is in sync: one session per host; the newest session wins.
//!
//! What a host last acknowledged is remembered beyond its session, so that a host that reconnects gets the difference only.

mod service;
mod session;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use weft_proto::state::{Object, State};
use weft_proto::v1::{HostStatus, Violation};

pub(crate) use service::Control;

use crate::version::Version;

/// A state of a host, as sent to it or in force there.
#[derive(Debug, Clone)]
struct NodeState {
    revision: u64,
    digest: [u8; 32],
    state: Arc<State>,
}

/// What is known of one host.
#[derive(Debug, Default)]
struct Entry {
    session: u64,
    /// Dropped, and so noticed by the session, when a newer one takes its place.
    lease: Option<oneshot::Sender<()>>,
    acknowledged: Option<NodeState>,
    sent_revision: u64,
    acknowledged_revision: u64,
    effect_microseconds: u64,
    violations: Vec<Violation>,
    refused_revision: u64,
}

/// Every host that ever attached.
#[derive(Debug, Default)]
pub struct Hosts {
    entries: Mutex<HashMap<String, Entry>>,
}

impl Hosts {
    /// How far each host of the intent has come, and each that is attached, by id.
    pub fn status(&self, version: &Version) -> Vec<HostStatus> {
        let mut entries = self.lock();
        entries.retain(|id, entry| entry.lease.is_some() || version.host(id).is_some());
        let known = version.state.iter().map_while(|object| match object {
            Object::Host(host) => Some(host),
            _ => None,
        });
        let mut ids: Vec<&str> = known
            .filter(|host| !host.foreign)
            .map(|host| host.id.as_str())
            .chain(entries.keys().map(String::as_str))
            .collect();
        ids.sort_unstable();
        ids.dedup();
        let none = Entry::default();
        ids.into_iter()
            .map(|id| {
                let entry = entries.get(id).unwrap_or(&none);
                HostStatus {
                    host: id.to_owned(),
                    attached: entry.lease.is_some(),
                    sent_revision: entry.sent_revision,
                    acknowledged_revision: entry.acknowledged_revision,
                    effect_microseconds: entry.effect_microseconds,
                    violations: entry.violations.clone(),
                    refused_revision: entry.refused_revision,
                }
            })
            .collect()
    }

    /// Makes a session the host's only one. The receiver fails when a newer one takes its place.
    fn attach(&self, host: &str, session: u64) -> (oneshot::Receiver<()>, Option<NodeState>) {
        let (lease, taken) = oneshot::channel();
        let mut entries = self.lock();
        let entry = entries.entry(host.to_owned()).or_default();
        entry.session = session;
        entry.lease = Some(lease);
        (taken, entry.acknowledged.clone())
    }

    /// Ends a session, unless a newer one has taken its place.
    fn detach(&self, host: &str, session: u64) {
        self.update(host, session, |entry| entry.lease = None);
    }

    /// Changes what is known of a host, if this session is still its own.
    fn update(&self, host: &str, session: u64, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.lock().get_mut(host)
            && entry.session == session
        {
            change(entry);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        // Entries are plain values, whole after any panic.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
