//! The multicast querier of this host (`weft_dataplane::multicast`), on the agent's threads: reports of guests that workers have left for it come in, queries go
//! out, and workers go by the table that follows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_dataplane::multicast::listeners::reach;
use weft_dataplane::multicast::{Answer, Querier};

use super::host::Host;
use crate::agent::AgentHandle;

/// Reports that may wait, of all ports together.
pub(super) const REPORTS: usize = 256;
/// Reports that are taken in before the table is published, and others get a turn.
const BATCH: usize = 64;
/// Without anything due it is looked again after so long.
const IDLE: Duration = Duration::from_secs(60);

/// Hears and asks ports, until the daemon stops.
pub(super) async fn follow(host: Arc<Host>, agent: Arc<AgentHandle>) {
    let mut states = agent.watch();
    let mut service = Service {
        host: Arc::clone(&host),
        querier: Querier::default(),
        started: Instant::now(),
        followed: 0,
    };
    // What is in force already, from a file or the last run.
    service.settle();
    loop {
        let due = service.querier.next();
        let wait = due.map_or(IDLE, |due| {
            Duration::from_millis(due.saturating_sub(service.now()))
        });
        tokio::select! {
            () = host.reports.arrival() => service.hear(),
            changed = states.changed() => {
                if changed.is_err() {
                    return;
                }
                states.mark_unchanged();
            }
            () = tokio::time::sleep(wait) => {}
        }
        service.settle();
        tokio::task::yield_now().await;
    }
}

struct Service {
    host: Arc<Host>,
    querier: Querier,
    started: Instant,
    /// The generation of the snapshot that the querier has followed.
    followed: u32,
}

impl Service {
    /// Milliseconds since it started.
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Takes in reports that wait.
    fn hear(&mut self) {
        let injector = Arc::clone(&self.host.injector);
        let snapshot = injector.snapshot();
        let now = self.now();
        for _ in 0..BATCH {
            let Some((port, packet)) = self.host.reports.take() else {
                return;
            };
            let frame = injector.read(packet);
            let answer = self.querier.hear(&snapshot, port, &frame, now);
            if let Some(reason) = answer.refused {
                injector.count_drop(port, reason);
            }
            self.send(answer);
        }
    }

    /// Follows the snapshot, does what is due, and publishes what has changed.
    fn settle(&mut self) {
        let snapshot = self.host.injector.snapshot();
        let now = self.now();
        let is_new = self.followed != snapshot.generation;
        if is_new {
            self.followed = snapshot.generation;
            self.querier.follow(&snapshot, now);
        }
        let answer = self.querier.tick(&snapshot, now);
        if is_new || self.querier.has_changed() {
            let mut table = self.host.shared.listeners.copy();
            self.querier.update(&mut table);
            if is_new {
                table.reach = reach(&snapshot);
            }
            self.host.shared.listeners.publish(table);
        }
        self.send(answer);
    }

    fn send(&self, answer: Answer) {
        for (port, frame) in answer.frames {
            self.host.injector.send(port, &[frame]);
        }
    }
}
