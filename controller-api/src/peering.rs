//! Peerings: who may do what with one, and how its states follow each other.
//!
//! ```text
//! requester   connecting ─┬─> active ─> freezing ─> frozen ─> activating ─> active
//! accepter    accepting  ─┘                          deleting ends it from any state
//!                        └─> rejected
//! ```
//!
//! "freezing" and "activating" end when every host of the two VPCs has acknowledged the change: then no packet passes any more, or all do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use weft_proto::peering::SideState;
use weft_proto::state::{Key, Kind, Object, State};
use weft_proto::v1::{Peering, PeeringAction};

use crate::hosts::Hosts;
use crate::intent::{Intent, Standing};
use crate::tenancy::tenant;
use crate::version::Version;

/// How often the hosts of a peering that is on its way to another state are asked how far they are.
const POLL: Duration = Duration::from_millis(100);

/// How long to wait before a change that could not be stored is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Why an action on a peering is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PeeringError {
    #[error("peering {0} does not exist")]
    Missing(String),
    #[error("peering {id}: {field}: {rule}")]
    Refused {
        id: String,
        field: &'static str,
        rule: String,
    },
}

/// The peering after an action of a caller on the side of `vpc`, which may be empty where the action itself says the side, or one tenant has both.
///
/// # Errors
/// The VPC is not one of the peering's, or the action is not for its side or its state.
pub fn act(
    state: &State,
    id: &str,
    action: PeeringAction,
    vpc: &str,
) -> Result<Peering, PeeringError> {
    let Some(Object::Peering(peering)) = state.find(Kind::Peering, id) else {
        return Err(PeeringError::Missing(id.to_owned()));
    };
    let refused = |field, rule: String| PeeringError::Refused {
        id: id.to_owned(),
        field,
        rule,
    };
    let [requester, accepter] = peering.states();
    let mut next = peering.clone();
    let is_answer = matches!(action, PeeringAction::Accept | PeeringAction::Reject);
    let sides = match vpc {
        "" if is_answer => [false, true],
        "" if is_of_one_tenant(state, peering) => [true, true],
        "" => {
            let rule = "name the VPC whose side it is: the two belong to different tenants";
            return Err(refused("vpc", rule.to_owned()));
        }
        vpc if peering.other(vpc).is_none() => {
            let rule = format!("'{vpc}' is neither its requester nor its accepter");
            return Err(refused("vpc", rule));
        }
        vpc => [vpc == peering.requester, vpc == peering.accepter],
    };
    let states = match action {
        PeeringAction::Accept | PeeringAction::Reject => {
            if sides[0] {
                let rule = "only the accepter accepts or rejects a peering";
                return Err(refused("vpc", rule.to_owned()));
            }
            if accepter != SideState::Accepting {
                let rule = format!("it is {}, not accepting", accepter.name());
                return Err(refused("accepter_state", rule));
            }
            match action {
                PeeringAction::Accept => [SideState::Active; 2],
                _ => [SideState::Rejected; 2],
            }
        }
        PeeringAction::Freeze | PeeringAction::Activate => {
            if !peering.is_agreed() {
                let rule = format!(
                    "its sides are {} and {}: only a peering that was accepted is frozen or activated",
                    requester.name(),
                    accepter.name()
                );
                return Err(refused("requester_state", rule));
            }
            let to = |acts: bool, before: SideState| match (acts, action, before) {
                (true, PeeringAction::Freeze, SideState::Active | SideState::Activating) => {
                    SideState::Freezing
                }
                (true, PeeringAction::Activate, SideState::Frozen | SideState::Freezing) => {
                    SideState::Activating
                }
                _ => before,
            };
            [to(sides[0], requester), to(sides[1], accepter)]
        }
        PeeringAction::Unspecified => {
            let rule = "is accept, reject, freeze or activate";
            return Err(refused("action", rule.to_owned()));
        }
    };
    next.set_states(states);
    Ok(next)
}

fn is_of_one_tenant(state: &State, peering: &Peering) -> bool {
    tenant(state, &peering.requester) == tenant(state, &peering.accepter)
}

/// The peering as it is to be kept: its states are not for the writer of the intent to say. `new` are the objects that are written with it.
pub(crate) fn placed(before: &State, new: &State, peering: &Peering) -> Peering {
    let mut kept = peering.clone();
    let of = |vpc: &str| {
        tenant(new, vpc)
            .or_else(|| tenant(before, vpc))
            .map(str::to_owned)
    };
    match before.find(Kind::Peering, &peering.id) {
        Some(Object::Peering(old)) if old.vpcs() == peering.vpcs() && !old.is_over() => {
            kept.set_states(old.states());
        }
        _ if of(&peering.requester) == of(&peering.accepter) => {
            kept.set_states([SideState::Active; 2]);
        }
        _ => kept.set_states([SideState::Connecting, SideState::Accepting]),
    }
    kept
}

/// What happens to peerings by a change that led to `next`: one that is deleted while something names it stays as deleted, and goes when nothing
/// does any more. Answers what is to be put and deleted besides.
pub(crate) fn settle(before: &State, next: &State, deletes: &[Key]) -> (Vec<Object>, Vec<Key>) {
    let (mut stay, mut go) = (Vec::new(), Vec::new());
    for key in deletes.iter().filter(|key| key.kind == Kind::Peering) {
        if let Some(Object::Peering(peering)) = before.get(key)
            && next.names_peering(peering)
        {
            let mut deleted = peering.clone();
            deleted.set_states([SideState::Deleted; 2]);
            stay.push(Object::Peering(deleted));
        }
    }
    for object in next.of_kind(Kind::Peering) {
        if let Object::Peering(peering) = object
            && peering.states() == [SideState::Deleted; 2]
            && !next.names_peering(peering)
        {
            go.push(object.key());
        }
    }
    (stay, go)
}

/// The state that a side comes to once all hosts know of it.
fn settled(state: SideState) -> SideState {
    match state {
        SideState::Freezing => SideState::Frozen,
        SideState::Activating => SideState::Active,
        other => other,
    }
}

/// A peering that is on its way to other states.
fn is_on_its_way(object: &Object) -> Option<&Peering> {
    match object {
        Object::Peering(peering) => peering
            .states()
            .into_iter()
            .any(|state| settled(state) != state)
            .then_some(peering),
        _ => None,
    }
}

/// Peerings on their way by id, each with the revision at which it was first seen so, which its hosts have to reach.
type Since = HashMap<String, (Peering, u64)>;

/// Whether a peering is of the same sides and in the same states as another; its labels do not count.
fn is_as_far(one: &Peering, other: &Peering) -> bool {
    one.vpcs() == other.vpcs() && one.states() == other.states()
}

/// Ends "freezing" and "activating" when every host concerned has the change in force. Runs until the intent is gone.
pub async fn finish(intent: Arc<Intent>, hosts: Arc<Hosts>) {
    let mut versions = intent.watch();
    let mut standing = intent.standing();
    let mut since = Since::new();
    loop {
        if *standing.borrow_and_update() != Standing::Writer {
            since.clear();
            if standing.changed().await.is_err() {
                return;
            }
            continue;
        }
        let version = versions.borrow_and_update().clone();
        let peerings = version.state.of_kind(Kind::Peering);
        since = peerings
            .filter_map(is_on_its_way)
            .map(|peering| {
                let known = since.get(&peering.id);
                let known = known.filter(|(known, _)| is_as_far(known, peering));
                let revision = known.map_or(version.revision, |(_, revision)| *revision);
                (peering.id.clone(), (peering.clone(), revision))
            })
            .collect();
        let done = reached(&version, &hosts, &since);
        if !done.is_empty() {
            let intent = Arc::clone(&intent);
            let ended = tokio::task::spawn_blocking(move || intent.settle_peerings(&done)).await;
            match ended {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot store the state of peerings now; retrying");
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => tracing::error!(%error, "changing the state of peerings failed"),
            }
            continue;
        }
        tokio::select! {
            changed = versions.changed() => if changed.is_err() { return },
            _ = standing.changed() => {}
            () = tokio::time::sleep(POLL), if !since.is_empty() => {}
        }
    }
}

/// Those of which all hosts have the change in force.
fn reached(version: &Version, hosts: &Hosts, since: &Since) -> Vec<Peering> {
    if since.is_empty() {
        return Vec::new();
    }
    let status = hosts.status(version);
    let is_there = |peering: &Peering, revision: u64| {
        let is_concerned = |host: &str| {
            let vpcs = version.vpcs_of(host);
            peering.vpcs().into_iter().any(|vpc| vpcs.contains(vpc))
        };
        let mut concerned = status.iter().filter(|host| is_concerned(&host.host));
        concerned.all(|host| host.acknowledged_revision >= revision)
    };
    let done = since
        .values()
        .filter(|(peering, revision)| is_there(peering, *revision));
    done.map(|(peering, _)| peering.clone()).collect()
}

/// The peering in the states that it was on its way to; none if it has changed since.
pub(crate) fn arrived(state: &State, before: &Peering) -> Option<Object> {
    match state.find(Kind::Peering, &before.id)? {
        Object::Peering(peering) if is_as_far(peering, before) => {
            let mut next = peering.clone();
            next.set_states(peering.states().map(settled));
            Some(Object::Peering(next))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::v1::Vpc;

    fn state(tenants: [&str; 2], states: [SideState; 2]) -> State {
        let vpc = |id: &str, vni, tenant: &str| {
            Object::Vpc(Vpc {
                id: id.to_owned(),
                vni,
                tenant: tenant.to_owned(),
                ..Vpc::default()
            })
        };
        let mut peering = Peering {
            id: "p".to_owned(),
            requester: "red".to_owned(),
            accepter: "blue".to_owned(),
            ..Peering::default()
        };
        peering.set_states(states);
        let mut state = State::default();
        state.insert(vpc("red", 1, tenants[0]));
        state.insert(vpc("blue", 2, tenants[1]));
        state.insert(Object::Peering(peering));
        state
    }

    const TWO: [&str; 2] = ["ann", "ben"];

    /// Every action of every side in every pair of states that can be: what comes of it.
    #[test]
    fn a_side_moves_only_itself_and_only_where_the_states_allow_it() {
        use PeeringAction::{Accept, Activate, Freeze, Reject};
        use SideState::{Accepting, Activating, Active, Connecting, Freezing, Frozen, Rejected};
        let asked = [Connecting, Accepting];
        let agreed = [Active, Freezing, Frozen, Activating];
        let both = agreed.iter().flat_map(|a| agreed.map(|b| [*a, b]));
        let all = both.chain([asked, [Rejected; 2], [SideState::Deleted; 2]]);
        for before in all {
            for (side, vpc) in ["red", "blue"].into_iter().enumerate() {
                for action in [Accept, Reject, Freeze, Activate] {
                    let after = act(&state(TWO, before), "p", action, vpc);
                    let expected = match action {
                        Accept if before == asked && side == 1 => Some([Active; 2]),
                        Reject if before == asked && side == 1 => Some([Rejected; 2]),
                        Freeze | Activate if agreed.contains(&before[0]) => {
                            let mut next = before;
                            next[side] = match (action, before[side]) {
                                (Freeze, Active | Activating) => Freezing,
                                (Activate, Frozen | Freezing) => Activating,
                                (_, same) => same,
                            };
                            Some(next)
                        }
                        _ => None,
                    };
                    let after = after.ok().map(|peering| peering.states());
                    assert_eq!(after, expected, "{before:?} {vpc} {action:?}");
                }
            }
        }
    }

    #[test]
    fn one_tenant_speaks_for_both_sides_and_two_have_to_say_which() {
        let one = state(["ann", "ann"], [SideState::Active; 2]);
        let frozen = act(&one, "p", PeeringAction::Freeze, "").unwrap();
        assert_eq!(frozen.states(), [SideState::Freezing; 2]);
        let two = state(TWO, [SideState::Active; 2]);
        let refused = act(&two, "p", PeeringAction::Freeze, "").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "peering p: vpc: name the VPC whose side it is: the two belong to different tenants"
        );
        let stranger = act(&two, "p", PeeringAction::Freeze, "green").unwrap_err();
        assert_eq!(
            stranger.to_string(),
            "peering p: vpc: 'green' is neither its requester nor its accepter"
        );
        assert_eq!(
            act(&two, "q", PeeringAction::Freeze, "red"),
            Err(PeeringError::Missing("q".to_owned()))
        );
    }

    #[test]
    fn one_tenants_peering_is_active_at_once_and_anothers_waits_for_an_answer() {
        for (tenants, expected) in [
            (["ann", "ann"], [SideState::Active; 2]),
            (TWO, [SideState::Connecting, SideState::Accepting]),
        ] {
            let mut next = state(tenants, [SideState::Frozen; 2]);
            let Some(Object::Peering(peering)) = next.find(Kind::Peering, "p").cloned() else {
                panic!("it is there");
            };
            // What a client writes as states counts for nothing.
            assert_eq!(
                placed(&State::default(), &next, &peering).states(),
                expected
            );
            let before = state(tenants, [SideState::Freezing; 2]);
            let kept = placed(&before, &next, &peering);
            assert_eq!(kept.states(), [SideState::Freezing; 2]);
            // The VPCs are those that are there already, and not written again.
            next = State::default();
            let refused = state(tenants, [SideState::Rejected; 2]);
            assert_eq!(placed(&refused, &next, &peering).states(), expected);
        }
    }

    #[test]
    fn a_deleted_peering_stays_while_a_route_leads_to_it() {
        let mut before = state(TWO, [SideState::Active; 2]);
        let table = |routes: Vec<weft_proto::v1::Route>| {
            Object::RouteTable(weft_proto::v1::RouteTable {
                id: "t".to_owned(),
                vpc: "red".to_owned(),
                routes,
                ..weft_proto::v1::RouteTable::default()
            })
        };
        let route = weft_proto::v1::Route {
            prefix: "10.0.0.0/8".to_owned(),
            peering: "p".to_owned(),
            ..weft_proto::v1::Route::default()
        };
        before.insert(table(vec![route]));
        let key = Key {
            kind: Kind::Peering,
            id: "p".to_owned(),
        };
        let mut next = before.clone();
        next.remove(&key);
        let (stay, go) = settle(&before, &next, std::slice::from_ref(&key));
        let [Object::Peering(deleted)] = &stay[..] else {
            panic!("{stay:?}");
        };
        assert!(deleted.is_over() && go.is_empty());
        next.insert(stay[0].clone());
        next.insert(table(Vec::new()));
        assert_eq!(settle(&before, &next, &[]), (vec![], vec![key]));
    }
}
