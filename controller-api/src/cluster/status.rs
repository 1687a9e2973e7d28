//! How far the hosts are that are attached to each controller, told to the others through keys that vanish with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use prost::Message;
use weft_proto::v1::{HostStatus, HostStatusReply};

use crate::hosts::Hosts;
use crate::intent::Intent;
use crate::store::StoreError;
use crate::store::etcd::{Etcd, Told};

/// How often controllers tell each other.
const EVERY: Duration = Duration::from_secs(1);

/// Tells and listens until the sender is gone.
pub(super) fn exchange(store: &Etcd, intent: &Arc<Intent>, hosts: &Hosts, end: &Receiver<()>) {
    let mut told = Told::of("hosts");
    let mut said = String::new();
    while end.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
        match exchange_once(store, intent, hosts, &mut told) {
            Ok(()) => said.clear(),
            Err(error) => {
                let reason = error.to_string();
                if reason != said {
                    tracing::warn!(
                        reason,
                        "cannot tell other controllers of hosts now; retrying"
                    );
                    said = reason;
                }
            }
        }
    }
    store.tell_no_more(&told);
}

fn exchange_once(
    store: &Etcd,
    intent: &Arc<Intent>,
    hosts: &Hosts,
    told: &mut Told,
) -> Result<(), StoreError> {
    let version = intent.current();
    let own = HostStatusReply {
        revision: version.revision,
        hosts: hosts.attached(&version),
    };
    // Without hosts the revision says nothing.
    let value = if own.hosts.is_empty() {
        Vec::new()
    } else {
        own.encode_to_vec()
    };
    store.tell(told, &value)?;
    let mut others: HashMap<String, HostStatus> = HashMap::new();
    for value in store.heard(told)? {
        let Ok(reply) = HostStatusReply::decode(value.as_slice()) else {
            continue;
        };
        for status in reply.hosts {
            // A host that has just moved is in two for a moment.
            let is_newer = others
                .get(&status.host)
                .is_none_or(|it| it.acknowledged_revision <= status.acknowledged_revision);
            if is_newer {
                others.insert(status.host.clone(), status);
            }
        }
    }
    // What a host said to another controller may be older than what it says to this one.
    for host in own.hosts.iter().map(|status| &status.host) {
        others.remove(host);
    }
    for status in own.hosts.iter().chain(others.values()) {
        if status.limits.is_some() {
            intent.set_limits(&status.host, status.limits);
        }
    }
    hosts.set_others(others);
    Ok(())
}
