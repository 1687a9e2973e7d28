//! The state in force, and the only function that puts a state in force.

use std::sync::Arc;

use tokio::sync::watch;
use weft_proto::state::State;
use weft_proto::v1::Violation;
use weft_proto::validate::{Scope, validate, validate_next};

use super::{AgentStatus, Apply, Connection, InForce};

pub(super) struct ActiveState {
    pub(super) host: String,
    apply: Arc<dyn Apply>,
    status: watch::Sender<AgentStatus>,
}

impl std::fmt::Debug for ActiveState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ActiveState")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl ActiveState {
    pub(super) fn new(host: String, apply: Arc<dyn Apply>, connection: Connection) -> Self {
        let status = watch::Sender::new(AgentStatus {
            connection,
            in_force: None,
            violations: Vec::new(),
        });
        Self {
            host,
            apply,
            status,
        }
    }

    pub(super) fn status(&self) -> AgentStatus {
        self.status.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<AgentStatus> {
        self.status.subscribe()
    }

    pub(super) fn set_connection(&self, connection: Connection) {
        self.status.send_if_modified(|status| {
            std::mem::replace(&mut status.connection, connection) != connection
        });
    }

    /// Checks a state and applies it; it is in effect on return, or nothing has changed.
    pub(super) async fn bring(self: &Arc<Self>, next: InForce) -> Result<(), Vec<Violation>> {
        let force = self.clone();
        let revision = next.revision;
        let result = tokio::task::spawn_blocking(move || force.bring_blocking(next))
            .await
            .unwrap_or_else(|error| Err(vec![whole(format!("applying it failed: {error}"))]));
        if let Err(violations) = &result {
            tracing::warn!(revision, ?violations, "refused");
            self.note_refusal(violations.clone());
        }
        result
    }

    /// Records why a state was refused.
    pub(super) fn note_refusal(&self, violations: Vec<Violation>) {
        self.status
            .send_modify(|status| status.violations = violations);
    }

    fn bring_blocking(&self, next: InForce) -> Result<(), Vec<Violation>> {
        let scope = Scope::Node { host: &self.host };
        // What is in force was checked when it came to be so.
        let violations = match self.status().in_force {
            Some(known) => validate_next(&known.state, &next.state, scope),
            None => validate(&next.state, scope),
        };
        if !violations.is_empty() {
            return Err(violations);
        }
        self.apply.apply(next.revision, &next.state)?;
        self.status.send_modify(|status| {
            status.in_force = Some(next);
            status.violations.clear();
        });
        Ok(())
    }
}

impl InForce {
    pub(super) fn new(revision: u64, state: State) -> Self {
        Self {
            revision,
            digest: state.digest(),
            state: Arc::new(state),
        }
    }
}

/// A violation by the state as a whole.
pub(super) fn whole(rule: impl Into<String>) -> Violation {
    Violation {
        rule: rule.into(),
        ..Violation::default()
    }
}
