//! Ports that move: the old host of a port forwards packets to the new one for a grace time, until all other hosts know the new host.
//!
//! The old host of each port is part of the intent and survives a restart of the controller. The time of the move does not: after a start
//! every move gets the whole grace time again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::intent::{Intent, Standing};

/// How long to wait before a change that could not be stored is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// A port's id, its host, and the host that it came from.
type Move = (String, String, String);

/// Ends each move when its grace time is over. Runs until the intent is gone.
pub async fn end_in_time(intent: Arc<Intent>, grace: Duration) {
    let mut versions = intent.watch();
    let mut standing = intent.standing();
    let mut deadlines: HashMap<Move, Instant> = HashMap::new();
    loop {
        let version = versions.borrow_and_update().clone();
        let now = Instant::now();
        deadlines = version
            .moving()
            .map(|port| {
                let key = (port.id.clone(), port.host.clone(), port.moved_from.clone());
                let deadline = deadlines.get(&key).copied().unwrap_or(now + grace);
                (key, deadline)
            })
            .collect();
        let over: Vec<Move> = deadlines
            .iter()
            .filter(|(_, deadline)| **deadline <= now)
            .map(|(key, _)| key.clone())
            .collect();
        // Each controller keeps the time; the one that writes ends the moves.
        let is_writer = *standing.borrow_and_update() == Standing::Writer;
        if is_writer && !over.is_empty() {
            let intent = Arc::clone(&intent);
            let count = over.len();
            let ended = tokio::task::spawn_blocking(move || intent.end_moves(&over)).await;
            match ended {
                Ok(Ok(_)) => tracing::info!(ports = count, "moves ended"),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot end moves now; retrying");
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => tracing::error!(%error, "ending moves failed"),
            }
            continue;
        }
        let next = deadlines.values().min().copied();
        let next = next.filter(|_| is_writer);
        tokio::select! {
            changed = versions.changed() => if changed.is_err() { return },
            _ = standing.changed() => {}
            () = async { sleep_until(next.unwrap_or(now)).await }, if next.is_some() => {}
        }
    }
}
