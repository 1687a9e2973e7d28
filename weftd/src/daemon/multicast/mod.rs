//! The multicast querier of this host (`weft_dataplane::multicast`), on the agent's threads: reports of guests that workers have left for it come in, queries go
//! out, and workers go by the table that follows. What ports have joined is told to other hosts by way of the controller (`telling`), and what theirs have is heard.

mod telling;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_dataplane::multicast::listeners::reach;
use weft_dataplane::multicast::{Answer, Filter, Others, Querier};
use weft_dataplane::packet::parse::address_word;
use weft_proto::state::{Kind, Object, State};
use weft_proto::v1::MulticastListener;

use super::host::Host;
use crate::agent::AgentHandle;
use telling::Telling;

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
        telling: Telling::new(host.id.clone()),
        host: Arc::clone(&host),
        querier: Querier::default(),
        others: Others::default(),
        heard: State::default(),
        started: Instant::now(),
        followed: 0,
    };
    // What is in force already, from a file or the last run.
    states.mark_changed();
    loop {
        let due = [service.querier.next(), service.telling.next()];
        let due = due.into_iter().flatten().min();
        let wait = due.map_or(IDLE, |due| {
            Duration::from_millis(due.saturating_sub(service.now()))
        });
        tokio::select! {
            () = host.reports.arrival() => service.hear(),
            changed = states.changed() => {
                if changed.is_err() {
                    return;
                }
                let in_force = states.borrow_and_update().in_force.clone();
                if let Some(in_force) = in_force {
                    service.hear_others(&in_force.effective);
                }
            }
            () = tokio::time::sleep(wait) => {}
        }
        if let Some(told) = service.settle() {
            agent.set_findings(Kind::MulticastListener, told.into_iter());
        }
        tokio::task::yield_now().await;
    }
}

struct Service {
    host: Arc<Host>,
    querier: Querier,
    /// What is told of that.
    telling: Telling,
    /// What other hosts tell.
    others: Others,
    /// The state that has it as it was taken up last.
    heard: State,
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

    /// Takes up what is new in a state of what other hosts tell.
    fn hear_others(&mut self, state: &State) {
        let before = std::mem::replace(&mut self.heard, state.clone());
        for change in before.changes_to(state) {
            if let Some(Object::MulticastListener(old)) = change.old {
                self.hear_other(old, false);
            }
            if let Some(Object::MulticastListener(new)) = change.new {
                self.hear_other(new, true);
            }
        }
    }

    fn hear_other(&mut self, told: &MulticastListener, holds: bool) {
        // Its own ports it knows better.
        if told.host == self.host.id {
            return;
        }
        let (vpc, host) = (&*told.vpc, &*told.host);
        match told.group.parse::<IpAddr>() {
            Ok(group) => {
                let filter = holds.then(|| filter(told));
                let place = (vpc, host, &*told.subnet);
                self.others
                    .want(place, address_word(group), filter.as_ref());
            }
            Err(_) => self.others.tell(vpc, host, holds),
        }
    }

    /// Follows the snapshot, does what is due, and publishes what has changed; what other hosts are told from now on, if that is something else.
    fn settle(&mut self) -> Option<Vec<Object>> {
        let snapshot = self.host.injector.snapshot();
        let now = self.now();
        let is_new = self.followed != snapshot.generation;
        if is_new {
            self.followed = snapshot.generation;
            self.querier.follow(&snapshot, now);
            self.telling.follow(&snapshot, &self.querier, now);
        }
        let answer = self.querier.tick(&snapshot, now);
        if is_new || self.querier.has_changed() || self.others.follow(&snapshot) {
            let mut table = self.host.shared.listeners.copy();
            let changed = self.querier.update(&mut table);
            self.telling.hear(changed, &self.querier, now);
            self.others.follow(&snapshot);
            self.others.update(&mut table);
            if is_new {
                table.reach = reach(&snapshot);
            }
            self.host.shared.listeners.publish(table);
        }
        self.send(answer);
        self.telling.tick(now)
    }

    fn send(&self, answer: Answer) {
        for (port, frame) in answer.frames {
            self.host.injector.send(port, &[frame]);
        }
    }
}

/// What listeners of another host want.
fn filter(told: &MulticastListener) -> Filter {
    let sources = told.sources.iter().filter_map(|it| it.parse().ok());
    let mut sources: Vec<u128> = sources.map(address_word).collect();
    sources.sort_unstable();
    sources.dedup();
    match told.exclude {
        true => Filter::Exclude(sources.into()),
        false => Filter::Include(sources.into()),
    }
}
