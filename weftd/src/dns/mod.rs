//! DNS for guests, at the addresses of their gateway (decision 021): names of the VPC's ports and records of its zones, and for everything else the answers of the
//! resolvers that this host is configured with.
//!
//! Workers put the packets (`pipeline::dns`) into a bounded queue. A question by UDP is answered here and now from the state in force (`answer`, `names`), or in a
//! task of its own that asks a resolver (`forward`), of which each port may have few. Questions by TCP come by the port's TCP/IP stack (`crate::guest`). Nothing
//! here runs on a worker, and nothing that is learned for one guest is kept for another.

mod answer;
mod datagram;
mod forward;
mod names;
mod tcp;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weft_dataplane::packet::DropReason;
use weft_dataplane::packet::parse::{self, Inner, Parsed, protocol};
use weft_dataplane::worker::service::{Injector, PuntQueue};
use weft_proto::dns;
use weft_proto::state::{Kind, Object, State};

use crate::agent::AgentHandle;
use crate::guest::{Guests, Identity};
use answer::{Pending, Transport, Verdict};
use names::{Names, Zones};

/// Packets that may wait in the queue, for all ports together.
pub const DESK: usize = 1024;
/// Packets that are handled before others get a turn.
const BATCH: usize = 64;
/// Questions that resolvers are asked at a time, of all ports together and of one.
const FORWARDED: usize = 1024;
const OF_PORT: usize = 32;
/// Connections of all ports together, besides those that each port is sure of (`guest::stack::OWN`).
const SHARED: usize = 1024;

/// What the service has done since it started.
#[derive(Debug, Default)]
pub struct Tally {
    /// Questions, answered or not.
    pub questions: AtomicU64,
    /// Those that resolvers were asked.
    pub forwarded: AtomicU64,
    /// Those of them that no resolver has answered.
    pub unanswered: AtomicU64,
    /// Those that no resolver was asked, since as many were being asked as may be.
    pub refused: AtomicU64,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The service.
#[derive(Debug)]
pub struct Service {
    queue: Arc<PuntQueue>,
    injector: Arc<Injector>,
    /// In order of preference.
    resolvers: Vec<SocketAddr>,
    known: Mutex<Known>,
    forwarding: Arc<Semaphore>,
    /// By port.
    forwarding_of: Mutex<HashMap<u16, Arc<Semaphore>>>,
    /// Connections.
    shared: Arc<Semaphore>,
    tally: Tally,
}

/// The state in force, and what was read of it.
#[derive(Debug, Default)]
struct Known {
    state: Arc<State>,
    /// By VPC; of those that were asked for, each with whether it is of this very state.
    zones: HashMap<String, (Arc<Zones>, bool)>,
}

impl Known {
    fn follow(&mut self, state: &Arc<State>) {
        if Arc::ptr_eq(&self.state, state) {
            return;
        }
        self.state = Arc::clone(state);
        self.zones.retain(|vpc, (_, is_current)| {
            *is_current = false;
            state.find(Kind::Vpc, vpc).is_some()
        });
    }

    fn zones(&mut self, vpc: &str) -> Arc<Zones> {
        if let Some((zones, is_current)) = self.zones.get_mut(vpc) {
            *is_current |= zones.are_of(&self.state, vpc);
            if *is_current {
                return Arc::clone(zones);
            }
        }
        let zones = Arc::new(Zones::of(&self.state, vpc));
        let entry = (Arc::clone(&zones), true);
        self.zones.insert(vpc.to_owned(), entry);
        zones
    }
}

impl Service {
    /// A service that answers what is left in the queue, and asks these resolvers.
    pub fn new(queue: Arc<PuntQueue>, injector: Arc<Injector>, resolvers: Vec<SocketAddr>) -> Self {
        Self {
            queue,
            injector,
            resolvers,
            known: Mutex::default(),
            forwarding: Arc::new(Semaphore::new(FORWARDED)),
            forwarding_of: Mutex::default(),
            shared: Arc::new(Semaphore::new(SHARED)),
            tally: Tally::default(),
        }
    }

    /// What it has done.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Serves until it is dropped.
    pub async fn run(self: Arc<Self>, agent: Arc<AgentHandle>) {
        tokio::join!(self.read(), self.follow(&agent));
    }

    /// Follows the state in force.
    async fn follow(&self, agent: &AgentHandle) {
        let mut states = agent.watch();
        loop {
            let in_force = states.borrow_and_update().in_force.clone();
            if let Some(in_force) = in_force {
                lock(&self.known).follow(&in_force.effective);
            }
            if states.changed().await.is_err() {
                return;
            }
        }
    }

    async fn read(self: &Arc<Self>) {
        let mut guests = Guests::default();
        loop {
            self.queue.arrival().await;
            for _ in 0..BATCH {
                let Some((port, packet)) = self.queue.take() else {
                    break;
                };
                let frame = self.injector.read(packet);
                match parse::inner(&frame) {
                    Ok(Inner::Ip(parsed)) if parsed.flow.protocol == protocol::UDP => {
                        self.datagram(port, &frame, parsed);
                    }
                    Ok(Inner::Ip(_)) => guests.hand_over(self, port, frame),
                    _ => self.injector.count_drop(port, DropReason::DnsMalformed),
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Answers a question that came by UDP.
    fn datagram(self: &Arc<Self>, port: u16, frame: &[u8], parsed: Parsed) {
        let Some(identity) = Identity::of(&self.injector.snapshot(), port) else {
            return self.injector.count_drop(port, DropReason::PortDown);
        };
        let Some(question) = datagram::payload(frame, &parsed) else {
            return self.injector.count_drop(port, DropReason::DnsMalformed);
        };
        let room = datagram::room(&identity, &parsed);
        match self.judge(&identity, question, Transport::Udp(room)) {
            Verdict::Silence => self.injector.count_drop(port, DropReason::DnsMalformed),
            Verdict::Answer(answer) => self.reply(&identity, &parsed, &answer),
            Verdict::Forward(pending) => {
                let Some(turn) = self.turn(port) else {
                    return self.injector.count_drop(port, DropReason::DnsFull);
                };
                let service = Arc::clone(self);
                tokio::spawn(async move {
                    let answer = service.forward(*pending, turn).await;
                    // Meanwhile another port may have come in its place.
                    let now = Identity::of(&service.injector.snapshot(), port);
                    if now.is_some_and(|now| now.is_same_port(&identity)) {
                        service.reply(&identity, &parsed, &answer);
                    }
                });
            }
        }
    }

    fn reply(&self, identity: &Identity, parsed: &Parsed, answer: &[u8]) {
        let frame = datagram::answer(identity, parsed, answer);
        self.injector.send(identity.index, &[frame]);
    }

    /// What becomes of a question of a port.
    fn judge(&self, identity: &Identity, question: &[u8], transport: Transport) -> Verdict {
        add(&self.tally.questions);
        let (state, zones) = {
            let mut known = lock(&self.known);
            (Arc::clone(&known.state), known.zones(&identity.vpc))
        };
        let vpc = match state.find(Kind::Vpc, &identity.vpc) {
            Some(Object::Vpc(vpc)) => Some(vpc),
            _ => None,
        };
        let domain = vpc.and_then(|vpc| dns::name(&vpc.dns.as_ref()?.domain));
        let names = vpc.zip(domain.as_deref()).map(|(vpc, domain)| Names {
            state: &state,
            vpc,
            domain,
            zones: &zones,
        });
        let recurses = !self.resolvers.is_empty();
        answer::answer(names.as_ref(), question, transport, recurses)
    }

    /// Leave to ask a resolver for a port; none if as many are being asked as may be.
    fn turn(&self, port: u16) -> Option<[OwnedSemaphorePermit; 2]> {
        let of_port = {
            let mut all = lock(&self.forwarding_of);
            // Those that nobody uses any more.
            if all.len() > FORWARDED {
                all.retain(|_, it| Arc::strong_count(it) > 1);
            }
            let own = all.entry(port);
            Arc::clone(own.or_insert_with(|| Arc::new(Semaphore::new(OF_PORT))))
        };
        let turn = of_port.try_acquire_owned().ok();
        let turn = turn.zip(Arc::clone(&self.forwarding).try_acquire_owned().ok());
        if turn.is_none() {
            add(&self.tally.refused);
        }
        turn.map(|(of_port, of_all)| [of_port, of_all])
    }

    /// The guest's answer, after resolvers were asked.
    async fn forward(&self, pending: Pending, turn: [OwnedSemaphorePermit; 2]) -> Vec<u8> {
        add(&self.tally.forwarded);
        let answer = forward::ask(&self.resolvers, &pending).await;
        drop(turn);
        if answer.is_none() {
            add(&self.tally.unanswered);
        }
        pending.answer(answer)
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in it is put in whole.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
