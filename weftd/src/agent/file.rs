//! The state file: YAML of the host's objects, in place of a controller.

use std::path::Path;
use std::sync::Arc;

use weft_proto::state::State;

use super::active::ActiveState;
use super::{AgentError, InForce};

/// Reads the file and brings it into effect, as the next revision if it differs from what is.
pub(super) async fn read(force: &Arc<ActiveState>, path: &Path) -> Result<(), AgentError> {
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(|reason| AgentError::Read {
            path: path.to_owned(),
            reason,
        })?;
    let objects = serde_yaml_ng::from_str(&text).map_err(|reason| AgentError::Parse {
        path: path.to_owned(),
        reason: Box::new(reason),
    })?;
    let state = State::from_objects(objects).map_err(|reason| AgentError::Malformed {
        path: path.to_owned(),
        reason,
    })?;
    let status = force.status();
    let next = InForce::new(status.revision() + 1, state);
    if status
        .in_force
        .is_some_and(|known| known.digest == next.digest)
    {
        force.note_refusal(Vec::new());
        return Ok(());
    }
    force
        .bring(next)
        .await
        .map_err(|violations| AgentError::Refused {
            path: path.to_owned(),
            violations,
        })
}
