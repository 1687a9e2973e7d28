//! DNS for guests, at the addresses of their gateway (decision 021): names of the VPC's ports and records of its zones, and for everything else the answers of the
//! resolvers that this host is configured with.
//!
//! Workers put the packets (`pipeline::dns`) into a bounded queue, from which ports take turns (`turns`). A question by UDP is answered here and now from the state
//! in force (`answer`, `names`), or in a task of its own that asks a resolver (`forward`), of which each port may have few. Questions by TCP come by the port's
//! TCP/IP stack (`crate::guest`). Nothing here runs on a worker, and nothing that is learned for one guest is kept for another.

mod answer;
mod datagram;
mod forward;
mod names;
mod serving;
mod tcp;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use weft_dataplane::packet::DropReason;
use weft_dataplane::packet::parse::{self, Inner, Parsed, protocol};
use weft_dataplane::worker::service::{Injector, PuntQueue};
use weft_proto::dns;
use weft_proto::state::{Kind, Object, State};

use crate::agent::AgentHandle;
use crate::guest::{Guests, Identity};
use answer::{Pending, Transport, Verdict};
use names::{Names, Zones};
use turns::Turns;

/// Packets that may wait in the queue, and as many of those that were taken out of it, for all ports together.
pub const DESK: usize = 1024;
/// Packets that are handled before others get a turn.
const BATCH: usize = 64;
/// Questions that resolvers are asked at a time, of all ports together, of those of one VPC, and of one.
const FORWARDED: usize = 1024;
const OF_VPC: usize = 256;
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
    known: Mutex<Arc<Known>>,
    forwarding: Arc<Semaphore>,
    forwarding_of_vpc: Asking<String>,
    forwarding_of_port: Asking<u16>,
    /// Connections.
    shared: Arc<Semaphore>,
    tally: Tally,
}

/// The state in force, and what was read of it.
#[derive(Debug, Default)]
struct Known {
    state: Arc<State>,
    /// By VPC; of those whose gateways answer.
    vpcs: HashMap<String, OfVpc>,
}

#[derive(Debug)]
struct OfVpc {
    zones: Arc<Zones>,
    /// Addresses that do not serve, where records are answered while they do.
    idle: HashSet<IpAddr>,
}

impl Known {
    /// Reads a state. Takes as long as what is not the same as before is large.
    fn of(state: &Arc<State>, before: &Self) -> Self {
        let vpcs = state.of_kind(Kind::Vpc).filter_map(|object| match object {
            Object::Vpc(vpc) if vpc.dns.is_some() => Some(&vpc.id),
            _ => None,
        });
        let vpcs = vpcs.map(|vpc| {
            let before = before.vpcs.get(vpc).map(|it| &it.zones);
            let zones = Zones::of(state, vpc, before);
            let idle = serving::idle(state, vpc, zones.checked());
            (vpc.clone(), OfVpc { zones, idle })
        });
        Self {
            vpcs: vpcs.collect(),
            state: Arc::clone(state),
        }
    }
}

/// Questions that resolvers are being asked, by who has asked.
#[derive(Debug)]
struct Asking<K>(Mutex<HashMap<K, Arc<Semaphore>>>);

impl<K: Eq + Hash> Asking<K> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// Leave for one more of at most so many.
    fn turn(&self, of: K, most: usize) -> Option<OwnedSemaphorePermit> {
        let mut all = lock(&self.0);
        // Those that nobody uses any more.
        if all.len() > FORWARDED {
            all.retain(|_, it| it.available_permits() < most);
        }
        let own = all
            .entry(of)
            .or_insert_with(|| Arc::new(Semaphore::new(most)));
        Arc::clone(own).try_acquire_owned().ok()
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
            forwarding_of_vpc: Asking::new(),
            forwarding_of_port: Asking::new(),
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

    fn known(&self) -> Arc<Known> {
        Arc::clone(&lock(&self.known))
    }

    /// Follows the state in force. What is large in it is read on a thread that may be kept busy; until then the one before is answered from.
    async fn follow(&self, agent: &AgentHandle) {
        let mut states = agent.watch();
        loop {
            let in_force = states.borrow_and_update().in_force.clone();
            if let Some(in_force) = in_force {
                let state = Arc::clone(&in_force.effective);
                let before = self.known();
                if !Arc::ptr_eq(&before.state, &state) {
                    let read = spawn_blocking(move || Known::of(&state, &before));
                    match read.await {
                        Ok(known) => *lock(&self.known) = Arc::new(known),
                        Err(error) => tracing::error!(%error, "DNS zones were not read"),
                    }
                }
            }
            if states.changed().await.is_err() {
                return;
            }
        }
    }

    async fn read(self: &Arc<Self>) {
        let mut guests = Guests::default();
        let mut turns = Turns::default();
        loop {
            if turns.is_empty() {
                self.queue.arrival().await;
            }
            self.sort(&mut turns);
            for _ in 0..BATCH {
                let Some((port, frame)) = turns.next() else {
                    break;
                };
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

    /// Lets packets of the queue wait by port, as many as there is room for.
    fn sort(&self, turns: &mut Turns<Vec<u8>>) {
        for _ in turns.len()..DESK {
            let Some((port, packet)) = self.queue.take() else {
                break;
            };
            let frame = self.injector.read(packet);
            if turns.put(port, frame).is_err() {
                self.injector.count_drop(port, DropReason::DnsLimit);
            }
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
                let Some(turn) = self.turn(&identity) else {
                    return self.reply(&identity, &parsed, &pending.answer(None));
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
        let known = self.known();
        let vpc = match known.state.find(Kind::Vpc, &identity.vpc) {
            Some(Object::Vpc(vpc)) => Some(vpc),
            _ => None,
        };
        let domain = vpc.and_then(|vpc| dns::name(&vpc.dns.as_ref()?.domain));
        let names = vpc
            .zip(domain.as_deref())
            .zip(known.vpcs.get(&identity.vpc));
        let names = names.map(|((vpc, domain), of_vpc)| Names {
            state: &known.state,
            vpc,
            domain,
            zones: &of_vpc.zones,
            idle: &of_vpc.idle,
        });
        let recurses = !self.resolvers.is_empty();
        answer::answer(names.as_ref(), question, transport, recurses)
    }

    /// Leave to ask a resolver for a port; none if as many are being asked as may be.
    fn turn(&self, of: &Identity) -> Option<[OwnedSemaphorePermit; 3]> {
        let turn = || {
            let of_port = self.forwarding_of_port.turn(of.index, OF_PORT)?;
            let of_vpc = self.forwarding_of_vpc.turn(of.vpc.clone(), OF_VPC)?;
            let of_all = Arc::clone(&self.forwarding).try_acquire_owned().ok()?;
            Some([of_port, of_vpc, of_all])
        };
        let turn = turn();
        if turn.is_none() {
            add(&self.tally.refused);
        }
        turn
    }

    /// The guest's answer, after resolvers were asked.
    async fn forward(&self, pending: Pending, turn: [OwnedSemaphorePermit; 3]) -> Vec<u8> {
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
