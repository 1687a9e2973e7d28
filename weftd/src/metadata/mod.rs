//! The metadata service: HTTP for guests at 169.254.169.254 and fd00:ec2::254, forwarded to a backend with the identity of the port.
//!
//! Workers put its packets (`pipeline::metadata`) into a bounded queue. Each port has a TCP/IP stack (`crate::guest`), whose connections are served by an HTTP
//! server (`guest`), which forwards each request to the backend (`proxy`). Nothing here runs on a worker. Every queue is bounded, and every wait has a timeout.

mod guest;
mod proxy;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Semaphore;

pub use self::proxy::{Backend, Proxy};
use crate::guest::Guests;
pub use crate::guest::Identity;
use weft_dataplane::worker::service::{Injector, PuntQueue};

/// Packets that may wait in the queue, for all ports together.
pub const DESK: usize = 1024;
/// Packets that are handed on before others get a turn.
const BATCH: usize = 64;
/// Connections of all ports together, besides those that each port is sure of (`guest::stack::OWN`).
const SHARED: usize = 1024;

/// What the service has done since it started.
#[derive(Debug, Default)]
pub struct Tally {
    /// Connections that were accepted.
    pub connections: AtomicU64,
    /// Connections that were not: too many, or half-open ones that gave way.
    pub refused: AtomicU64,
    /// Requests, answered or not.
    pub requests: AtomicU64,
    /// Requests that the backend did not answer, or not in time.
    pub backend_errors: AtomicU64,
}

impl Tally {
    fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

/// The service.
#[derive(Debug)]
pub struct Service {
    queue: Arc<PuntQueue>,
    injector: Arc<Injector>,
    proxy: Proxy,
    shared: Arc<Semaphore>,
    tally: Arc<Tally>,
}

impl Service {
    /// A service that answers what is left in the queue.
    pub fn new(queue: Arc<PuntQueue>, injector: Arc<Injector>, backend: Backend) -> Self {
        let tally = Arc::<Tally>::default();
        Self {
            queue,
            injector,
            proxy: Proxy::new(backend, Arc::clone(&tally)),
            shared: Arc::new(Semaphore::new(SHARED)),
            tally,
        }
    }

    /// What it has done.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Serves until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut guests = Guests::default();
        loop {
            self.queue.arrival().await;
            for _ in 0..BATCH {
                let Some((port, packet)) = self.queue.take() else {
                    break;
                };
                let frame = self.injector.read(packet);
                guests.hand_over(&self, port, frame);
            }
            tokio::task::yield_now().await;
        }
    }
}
