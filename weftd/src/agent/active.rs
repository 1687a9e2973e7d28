//! The state in force, and the only function that puts a state in force.
//!
//! What this host cannot have of a state is held back by units, and all else comes into force (`hold_back`). A state file is taken whole or not at all.

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use tokio::sync::watch;
use weft_proto::state::{Change, Key, Kind, State};
use weft_proto::v1::{HeldBack, HostLimits, Violation};
use weft_proto::validate::{Scope, describe, limits, validate, validate_next};

use super::hold_back::{Units, merged, overfull, unit_of};
use super::{AgentStatus, Apply, Connection, InForce};

pub(super) struct ActiveState {
    pub(super) host: String,
    pub(super) limits: HostLimits,
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
    pub(super) fn new(
        (host, limits): (String, HostLimits),
        apply: Arc<dyn Apply>,
        connection: Connection,
    ) -> Self {
        let status = watch::Sender::new(AgentStatus {
            connection,
            in_force: None,
            violations: Vec::new(),
        });
        Self {
            host,
            limits,
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

    /// Checks a state and applies it; on return it is in effect but for what is held back, or nothing has changed.
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

    /// Brings into effect a state that was stored, with what was in effect in place of what was held back then.
    pub(super) async fn restore(self: &Arc<Self>, stored: InForce) -> Result<(), Vec<Violation>> {
        if stored.held_back.is_empty() {
            return self.bring(stored).await;
        }
        let before = InForce::new(stored.revision, State::clone(&stored.effective));
        self.bring(before).await?;
        self.status.send_modify(|status| {
            if let Some(known) = &mut status.in_force {
                let stored = stored.held_back.iter().cloned();
                let newer = known.held_back.iter().cloned();
                known.held_back = stored.chain(newer).collect();
                known.is_valid = false;
            }
        });
        self.bring(stored).await
    }

    /// Records why a state was refused.
    pub(super) fn note_refusal(&self, violations: Vec<Violation>) {
        self.status
            .send_modify(|status| status.violations = violations);
    }

    fn bring_blocking(&self, next: InForce) -> Result<(), Vec<Violation>> {
        let known = self.status().in_force;
        let scope = Scope::Node { host: &self.host };
        let broken = match &known {
            // What is in force was checked when it came to be so.
            Some(known) if known.is_valid => validate_next(&known.state, &next.state, scope),
            _ => validate(&next.state, scope),
        };
        // More are not told, so that it is not known whom they concern.
        if broken.len() >= limits::VIOLATIONS {
            return Err(broken);
        }
        let mut invalid = Units::new();
        self.blame(&broken, &next.state, &mut invalid)?;
        let before = known.as_ref().map(|known| Arc::clone(&known.effective));
        let before = before.unwrap_or_default();
        // What was held back is so at first, so that nothing else waits for it.
        let mut held = invalid.clone();
        for kept in known.iter().flat_map(|known| known.held_back.iter()) {
            let unit = kept
                .object
                .as_ref()
                .and_then(|key| Key::from_wire(key).ok());
            if let Some(unit) = unit.filter(|unit| next.state.get(unit).is_some()) {
                held.entry(unit).or_insert_with(|| kept.violations.clone());
            }
        }
        let tries_again = held.len() > invalid.len();
        let mut settled = self.settle(&next, &before, held)?;
        let is_changed = || match &known {
            Some(known) => may_release(known, &next),
            None => true,
        };
        if tries_again && is_changed() {
            let present = State::clone(&settled.effective);
            let mut least = invalid;
            least.extend(overfull(
                &next.state,
                &present,
                &least,
                &self.limits,
                &self.host,
            ));
            if settled.held.keys().any(|unit| !least.contains_key(unit)) {
                // If it is refused, what is in force stays so.
                if let Ok(better) = self.settle(&next, &present, least) {
                    settled = better;
                }
            }
        }
        let held_back = told(&settled, known.as_ref());
        log(next.revision, known.as_ref(), &held_back);
        self.status.send_modify(|status| {
            status.in_force = Some(InForce {
                effective: Arc::new(settled.effective),
                held_back: held_back.into(),
                is_valid: broken.is_empty(),
                ..next
            });
            status.violations.clear();
        });
        Ok(())
    }

    /// Applies a state but for these units, and as few more as have to be held back.
    fn settle(
        &self,
        next: &InForce,
        before: &State,
        mut held: Units,
    ) -> Result<Settled, Vec<Violation>> {
        let mut absent = BTreeSet::new();
        loop {
            let effective = merged(&next.state, before, &held, &absent, &self.host);
            let Err(violations) = self.apply.apply(next.revision, &effective) else {
                return Ok(Settled { effective, held });
            };
            if self.connection() == Connection::File {
                return Err(violations);
            }
            let full = overfull(&next.state, before, &held, &self.limits, &self.host);
            if !full.is_empty() {
                held.extend(full);
                continue;
            }
            let mut blamed = Units::new();
            self.blame(&violations, &effective, &mut blamed)?;
            let mut has_grown = false;
            for (unit, reasons) in blamed {
                match held.entry(unit) {
                    Entry::Vacant(new) => {
                        new.insert(reasons);
                        has_grown = true;
                    }
                    // One that no longer goes with the others as it was.
                    Entry::Occupied(known) => has_grown |= absent.insert(known.key().clone()),
                }
            }
            if !has_grown {
                return Err(violations);
            }
        }
    }

    /// Enters violations with the units that they concern.
    ///
    /// # Errors
    /// One concerns no unit that can be held back: all of them.
    fn blame(
        &self,
        violations: &[Violation],
        state: &State,
        units: &mut Units,
    ) -> Result<(), Vec<Violation>> {
        for violation in violations {
            let unit = violation
                .object
                .as_ref()
                .and_then(|key| unit_of(key, state));
            let is_own = |unit: &Key| unit.kind == Kind::Host && unit.id == self.host;
            match unit.filter(|unit| !is_own(unit)) {
                Some(unit) if self.connection() != Connection::File => {
                    units.entry(unit).or_default().push(violation.clone());
                }
                _ => return Err(violations.to_vec()),
            }
        }
        Ok(())
    }

    fn connection(&self) -> Connection {
        self.status.borrow().connection
    }
}

/// A state that was applied.
struct Settled {
    effective: State,
    held: Units,
}

/// Whether what is new may let something go on that is held back.
fn may_release(known: &InForce, next: &InForce) -> bool {
    let is_held = |vpc: Option<&str>| {
        let held = known
            .held_back
            .iter()
            .filter_map(|held| held.object.as_ref());
        let mut held = held.filter(|key| key.kind == Kind::Vpc.name());
        held.any(|key| Some(&*key.id) == vpc)
    };
    // Rules and members take no room.
    let is_contained = |change: &Change<'_>| match (change.old, change.new) {
        (Some(old), Some(new)) => {
            let kinds = [
                Kind::NetworkAcl,
                Kind::PrefixList,
                Kind::SecurityGroup,
                Kind::GroupMembers,
            ];
            kinds.contains(&new.kind()) && old.vpc() == new.vpc() && !is_held(new.vpc())
        }
        _ => false,
    };
    let changes = known.state.changes_to(&next.state);
    changes.is_empty() || !changes.iter().all(is_contained)
}

/// What is held back, as the controller is told.
fn told(settled: &Settled, known: Option<&InForce>) -> Vec<HeldBack> {
    let held = settled.held.iter().map(|(unit, violations)| {
        let object = Some(unit.to_wire());
        let mut kept = known.into_iter().flat_map(|known| known.held_back.iter());
        let kept = kept.find(|kept| kept.object == object);
        let in_force_revision = match kept {
            _ if settled.effective.get(unit).is_none() => 0,
            Some(kept) => kept.in_force_revision,
            None => known.map_or(0, |known| known.revision),
        };
        HeldBack {
            object,
            in_force_revision,
            violations: violations.clone(),
        }
    });
    held.collect()
}

/// One line for what is newly held back, and for what no longer is.
fn log(revision: u64, known: Option<&InForce>, held_back: &[HeldBack]) {
    let before = known.map_or(&[][..], |known| &known.held_back);
    let name = |held: &HeldBack| {
        let object = held.object.clone().unwrap_or_default();
        format!("{} {}", object.kind, object.id)
    };
    for held in held_back {
        if before.iter().all(|known| known.object != held.object) {
            let reason: Vec<String> = held.violations.iter().map(describe).collect();
            tracing::error!(
                object = name(held),
                revision,
                in_force = held.in_force_revision,
                reason = reason.join("; "),
                "stays behind on this host; all else is in force"
            );
        }
    }
    for known in before {
        if held_back.iter().all(|held| held.object != known.object) {
            tracing::info!(object = name(known), revision, "is no longer behind");
        }
    }
}

impl InForce {
    pub(super) fn new(revision: u64, state: State) -> Self {
        let state = Arc::new(state);
        Self {
            revision,
            digest: state.digest(),
            effective: Arc::clone(&state),
            state,
            held_back: Arc::default(),
            is_valid: true,
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
