//! TCP servers of this host for guests, such as the metadata service: tenants' addresses overlap, so every active port has a TCP/IP stack of its own (`stack`) in a
//! task of its own, which ends when the port has been idle for a while. What is served on the stack's connections (`stream`) is the server's.
//!
//! Nothing here runs on a worker. Every queue is bounded.

mod identity;
mod stack;
mod stream;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::sleep;

pub use self::identity::Identity;
use self::stack::Stack;
use self::stream::Shared;
pub(crate) use self::stream::Stream;
use weft_dataplane::packet::{DropReason, Family};
use weft_dataplane::worker::service::Injector;

/// Packets of one port that may wait for its stack.
const WAITING: usize = 64;
/// How long a port without connections keeps its stack.
const IDLE: Duration = Duration::from_secs(30);
/// How long a stack that has nothing to send is left alone, if nothing comes.
const TICK: Duration = Duration::from_millis(1);

/// Where guests find a server. Three addresses at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) port: u16,
}

/// What serves guests by TCP.
pub(crate) trait Server: Send + Sync + 'static {
    /// What sends to ports.
    fn injector(&self) -> &Injector;
    /// Connections of all ports together, besides those that each port is sure of (`stack::OWN`).
    fn shared(&self) -> &Arc<Semaphore>;
    /// Where a port finds it.
    fn endpoint(&self, identity: &Identity) -> Endpoint;
    /// Why a packet is dropped that there is no room for.
    fn full(&self) -> DropReason;
    /// Counts connections that were accepted, and that were not.
    fn count(&self, accepted: u64, refused: u64);
    /// Serves a connection to its end, which has to come in time whatever the guest does.
    fn serve(
        self: Arc<Self>,
        identity: Identity,
        stream: Stream,
        family: Family,
    ) -> impl Future<Output = ()> + Send + 'static;
}

/// The tasks of ports, which take their frames: as many as there are port indexes, at most.
#[derive(Debug, Default)]
pub(crate) struct Guests(HashMap<u16, mpsc::Sender<Vec<u8>>>);

impl Guests {
    /// Gives a frame to the task of its port; the first one starts it.
    pub(crate) fn hand_over<S: Server>(&mut self, server: &Arc<S>, port: u16, frame: Vec<u8>) {
        use mpsc::error::TrySendError::{Closed, Full};
        let injector = server.injector();
        let frame = match self.0.get(&port) {
            Some(guest) => match guest.try_send(frame) {
                Ok(()) => return,
                Err(Full(_)) => return injector.count_drop(port, server.full()),
                Err(Closed(frame)) => frame,
            },
            None => frame,
        };
        let Some(identity) = Identity::of(&injector.snapshot(), port) else {
            return injector.count_drop(port, DropReason::PortDown);
        };
        let (guest, packets) = mpsc::channel(WAITING);
        if guest.try_send(frame).is_ok() {
            self.0.insert(port, guest);
            tokio::spawn(run(Arc::clone(server), identity, packets));
        }
    }
}

/// Drives the stack of a port until the port is silent, or is no longer the one that it was.
async fn run<S: Server>(
    server: Arc<S>,
    mut identity: Identity,
    mut packets: mpsc::Receiver<Vec<u8>>,
) {
    let index = identity.index;
    let endpoint = server.endpoint(&identity);
    let stack = Stack::new(identity.clone(), &endpoint, Arc::clone(server.shared()));
    let shared = Arc::new(Shared::new(stack));
    // They end with this task.
    let mut connections = JoinSet::new();
    let mut last = Instant::now();
    let mut generation = 0;
    let mut arrived: Vec<Vec<u8>> = Vec::new();
    loop {
        // A packet is looked at by a snapshot that is not older than the worker's.
        let snapshot = server.injector().snapshot();
        if snapshot.generation != generation {
            generation = snapshot.generation;
            let now = Identity::of(&snapshot, index);
            let now = now.filter(|now| now.is_same_port(&identity));
            match now.filter(|now| server.endpoint(now) == endpoint) {
                Some(now) if now != identity => {
                    shared.stack().rename(now.clone());
                    identity = now;
                }
                Some(_) => {}
                None => return,
            }
        }
        drop(snapshot);
        let now = Instant::now();
        if !arrived.is_empty() {
            last = now;
        }
        let (turn, refused, idle) = {
            let mut stack = shared.stack();
            let mut refused = 0;
            for packet in arrived.drain(..) {
                refused += u64::from(!stack.receive(&packet, now));
            }
            (stack.turn(now), refused, stack.is_idle())
        };
        for _ in 0..refused {
            server.injector().count_drop(index, server.full());
        }
        server.count(turn.accepted.len() as u64, refused + turn.given_up);
        server.injector().send(index, &turn.frames);
        for (handle, family) in turn.accepted {
            let stream = Stream::new(Arc::clone(&shared), handle);
            connections.spawn(Arc::clone(&server).serve(identity.clone(), stream, family));
        }
        if idle && last.elapsed() >= IDLE {
            return;
        }
        let mut wait = turn.wait.unwrap_or(IDLE).min(IDLE);
        if turn.frames.is_empty() {
            // Whatever is due at once, nothing came of it.
            wait = wait.max(TICK);
        } else if wait.is_zero() {
            // There is more to send, but others come first.
            tokio::task::yield_now().await;
        }
        tokio::select! {
            count = packets.recv_many(&mut arrived, WAITING) => if count == 0 { return },
            () = shared.work.notified() => {}
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            () = sleep(wait) => {}
        }
    }
}
