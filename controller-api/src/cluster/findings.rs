//! What the hosts find out that are attached to each controller, told to the others through keys that vanish with it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use prost::Message;
use weft_proto::v1::FoundByHosts;

use crate::hosts::Hosts;
use crate::intent::Intent;
use crate::store::StoreError;
use crate::store::etcd::{Etcd, Told};

/// How often it is looked whether there is news.
const EVERY: Duration = Duration::from_millis(200);
/// Times in which the lease of what was told is kept once.
const KEEP: u32 = 5;
/// Bytes that are told in [`EVERY`] at most, on average: etcd keeps what it was told for minutes.
const BYTES: usize = 64 * 1024;

/// Tells and listens until the sender is gone.
pub(super) fn exchange(store: &Etcd, intent: &Arc<Intent>, hosts: &Hosts, end: &Receiver<()>) {
    let mut told = Told::of("found");
    let mut value = Vec::new();
    let mut known = None;
    // Times until something may be told again.
    let mut rest: usize = 0;
    let mut said = String::new();
    for count in 0_u32.. {
        if end.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
            break;
        }
        let newest = hosts.board.revision();
        rest = rest.saturating_sub(1);
        let is_new = known != Some(newest) && rest == 0;
        if is_new {
            let own = hosts.board.of_attached();
            value = match own.hosts.is_empty() {
                true => Vec::new(),
                false => own.encode_to_vec(),
            };
        }
        let exchanged = exchange_once(store, intent, hosts, (&mut told, &value), {
            is_new || count % KEEP == 0
        });
        match exchanged {
            Ok(()) => {
                if is_new {
                    known = Some(newest);
                    rest = value.len() / BYTES;
                }
                said.clear();
            }
            Err(error) => {
                let reason = error.to_string();
                if reason != said {
                    tracing::warn!(
                        reason,
                        "cannot tell other controllers what hosts found now; retrying"
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
    intent: &Intent,
    hosts: &Hosts,
    (told, value): (&mut Told, &[u8]),
    tells: bool,
) -> Result<(), StoreError> {
    if tells {
        store.tell(told, value)?;
    }
    let Some(values) = store.heard_anew(told)? else {
        return Ok(());
    };
    let version = intent.current();
    for value in values {
        // Of a release that tells something else.
        let Ok(found) = FoundByHosts::decode(value.as_slice()) else {
            continue;
        };
        if !hosts.hear_from_others(&version, found) {
            told.read_again();
        }
    }
    Ok(())
}
