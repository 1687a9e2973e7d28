//! The agent's loop with a controller: starts from the stored state, attaches, and reattaches indefinitely.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use weft_process::tls::TlsFiles;
use weft_proto::v1::{Event, Learn};

use super::Connection;
use super::active::ActiveState;
use super::findings::Found;
use super::persist::Keeper;
use super::ports::Reports;
use super::stream::{Attachment, Start};

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(5);

/// Brings the kept state into effect; one that cannot be used is reported, and the host starts with nothing.
pub(super) async fn start_headless(force: &Arc<ActiveState>, keeper: &Keeper) {
    let path = keeper.path();
    match keeper.load(&force.host) {
        Ok(None) => {}
        Ok(Some(known)) => {
            let revision = known.revision;
            // A refusal is logged, and shown in the status.
            if force.restore(known).await.is_ok() {
                tracing::info!(revision, path = %path.display(), "started from the stored state");
            }
        }
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the stored state is ignored");
        }
    }
}

pub(super) struct Runner {
    pub(super) force: Arc<ActiveState>,
    pub(super) keeper: Keeper,
    /// One at least.
    pub(super) addresses: Vec<String>,
    pub(super) tls: Option<TlsFiles>,
    pub(super) capabilities: Vec<String>,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) wishes: mpsc::Receiver<Learn>,
    pub(super) ports: watch::Receiver<Reports>,
    pub(super) found: watch::Receiver<Found>,
}

impl Runner {
    pub(super) async fn run(self, mut stopping: watch::Receiver<bool>) {
        let debts = self.keeper.clone().pay_debts(Arc::clone(&self.force));
        tokio::select! {
            () = self.follow(&mut stopping) => {}
            () = debts => {}
        }
    }

    async fn follow(mut self, stopping: &mut watch::Receiver<bool>) {
        let mut start = Start::WithWhatIsInForce;
        let mut delay = FIRST_DELAY;
        let mut said = String::new();
        // Any will do; hosts that start together are not to choose the same.
        let count = self.addresses.len();
        let mut at = rand::random_range(0..count.max(1));
        let mut failures = 0;
        loop {
            let began = Instant::now();
            let Some(address) = self.addresses.get(at) else {
                return;
            };
            let attachment = Attachment {
                force: &self.force,
                keeper: &self.keeper,
                address,
                tls: self.tls.as_ref(),
                capabilities: &self.capabilities,
                events: &mut self.events,
                wishes: &mut self.wishes,
                ports: self.ports.clone(),
                found: self.found.clone(),
                taken: false,
                parts: Vec::new(),
                parts_bytes: 0,
            };
            let end = tokio::select! {
                end = attachment.run(start) => end,
                _ = stopping.wait_for(|stopping| *stopping) => break,
            };
            self.force.set_connection(Connection::Disconnected);
            // The same reason again and again is said once.
            let reason = end.reason.to_string();
            if reason != said || end.attached {
                tracing::warn!(
                    controller = address,
                    reason,
                    "no connection to the controller; forwarding continues"
                );
                said = reason;
            }
            start = end.next;
            if began.elapsed() > LAST_DELAY {
                delay = FIRST_DELAY;
            }
            at = (at + 1) % count;
            failures = if end.attached { 1 } else { failures + 1 };
            if failures < count {
                // Another may be there; the time to wait is for when none is.
                delay = FIRST_DELAY;
            }
            // Jitter, so that a thousand hosts do not come back in one instant.
            let wait = delay.mul_f64(rand::random_range(0.5..1.0));
            delay = (delay * 2).min(LAST_DELAY);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = stopping.wait_for(|stopping| *stopping) => break,
            }
        }
        self.force.set_connection(Connection::Disconnected);
    }
}
