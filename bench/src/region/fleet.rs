//! The simulated hosts, each with a stream of its own to the controller; several share a connection. A host does what the agent of a real one
//! does but compile: it says what it has, takes what it is sent, checks it as far as it can, and acknowledges.
//!
//! Every host checks that revisions follow each other. Every so many also check the digest of the whole state, for which they keep the
//! digest of each object, up to [`MOST_CHECKING`] of them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use weft_process::transport::{MAX_MESSAGE, endpoint};
use weft_proto::HOST_PROTOCOL;
use weft_proto::v1::{Ack, FromHost, Hello, HostLimits, Learn, VpcAddresses, from_host};

use super::topology::{Region, host_id};
use super::wire::{Kept, ToHost};

/// Hosts that keep digests, at most: a state of a million objects is some 80 MB of them.
const MOST_CHECKING: usize = 16;
/// Before a host attaches again.
const PAUSE: Duration = Duration::from_millis(20);

/// How many hosts, and how they are connected.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) hosts: usize,
    /// Hosts that share a connection.
    pub(super) streams: usize,
    /// Every so many hosts one checks digests.
    pub(super) check_every: usize,
    /// What each host says that it can hold.
    pub(super) limits: HostLimits,
    /// If hosts learn ports, those of whose first VPC.
    pub(super) learns: Option<Region>,
}

/// The hosts; they end with this value.
#[derive(Debug)]
pub(super) struct Fleet {
    shared: Arc<Shared>,
    orders: watch::Sender<bool>,
    /// Whether hosts that learn ports ask for some.
    asks: watch::Sender<bool>,
    /// Ends the tasks when it is dropped.
    _connections: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    address: String,
    limits: HostLimits,
    learns: Option<Region>,
    asks: watch::Receiver<bool>,
    hosts: Vec<Host>,
    begun: Instant,
    /// An acknowledgement was sent, a stream opened or ended, or a fault found.
    news: Notify,
    /// What a host was sent that it must not be sent.
    fault: Mutex<Option<String>>,
    /// Streams that ended while nobody meant them to.
    lost: AtomicU64,
    is_cut_expected: AtomicBool,
    /// Streams whose Welcome has come and that have not ended.
    attached: AtomicU64,
}

#[derive(Debug)]
struct Host {
    /// The revision that it acknowledged last, and when, in nanoseconds since `begun`.
    revision: AtomicU64,
    acknowledged: AtomicU64,
    kept: Mutex<Kept>,
}

impl Fleet {
    /// Attaches all hosts, within a runtime.
    pub(super) fn start(address: &str, shape: Shape) -> Self {
        let every = shape.check_every.max(shape.hosts / MOST_CHECKING);
        let host = |number: usize| Host {
            revision: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            kept: Mutex::new(Kept::new(number.is_multiple_of(every))),
        };
        let (asks, asked) = watch::channel(false);
        let shared = Arc::new(Shared {
            address: address.to_owned(),
            limits: shape.limits,
            learns: shape.learns,
            asks: asked,
            hosts: (0..shape.hosts).map(host).collect(),
            begun: Instant::now(),
            news: Notify::new(),
            fault: Mutex::new(None),
            lost: AtomicU64::new(0),
            is_cut_expected: AtomicBool::new(false),
            attached: AtomicU64::new(0),
        });
        let (orders, ordered) = watch::channel(true);
        let mut connections = JoinSet::new();
        for first in (0..shape.hosts).step_by(shape.streams) {
            let hosts = first..shape.hosts.min(first + shape.streams);
            connections.spawn(connection(Arc::clone(&shared), hosts, ordered.clone()));
        }
        Self {
            shared,
            orders,
            asks,
            _connections: connections,
        }
    }

    /// How many hosts check digests.
    pub(super) fn checking(&self) -> usize {
        let checks = |host: &&Host| lock(&host.kept).checks();
        self.shared.hosts.iter().filter(checks).count()
    }

    /// Cuts every stream and connection, and returns when that is done.
    pub(super) async fn cut(&self, patience: Duration) -> anyhow::Result<()> {
        self.expect_cut(true);
        self.orders.send_replace(false);
        self.until(patience, "the streams' end", || self.attached() == 0)
            .await
    }

    /// Has all hosts attach again, at once.
    pub(super) fn attach(&self) {
        self.orders.send_replace(true);
    }

    /// Has hosts that learn ports ask for some from now on.
    pub(super) fn ask(&self) {
        self.asks.send_replace(true);
    }

    /// Has every host lose what it has; none may be attached.
    pub(super) fn forget(&self) {
        for host in &self.shared.hosts {
            lock(&host.kept).forget();
            host.revision.store(0, Ordering::Release);
        }
    }

    /// Whether streams may end from now on.
    pub(super) fn expect_cut(&self, is_expected: bool) {
        self.shared
            .is_cut_expected
            .store(is_expected, Ordering::Release);
    }

    /// Streams that are open.
    pub(super) fn attached(&self) -> u64 {
        self.shared.attached.load(Ordering::Acquire)
    }

    /// Streams that ended by themselves.
    pub(super) fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Waits until these hosts have acknowledged a revision or a later one, and returns when the last of them did.
    ///
    /// # Errors
    /// A host was sent what it must not be sent, or it takes too long.
    pub(super) async fn acknowledged(
        &self,
        hosts: &[usize],
        revision: u64,
        patience: Duration,
    ) -> anyhow::Result<Instant> {
        let hosts = || hosts.iter().filter_map(|host| self.shared.hosts.get(*host));
        let mut waiting: Vec<&Host> = hosts().collect();
        let what = format!("all to acknowledge revision {revision}");
        self.until(patience, &what, || {
            waiting.retain(|host| host.revision.load(Ordering::Acquire) < revision);
            waiting.is_empty()
        })
        .await?;
        let times = hosts().map(|host| host.acknowledged.load(Ordering::Acquire));
        let last = Duration::from_nanos(times.max().unwrap_or_default());
        Ok(self.shared.begun + last)
    }

    async fn until(
        &self,
        patience: Duration,
        what: &str,
        mut done: impl FnMut() -> bool,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let news = self.shared.news.notified();
            if let Some(fault) = &*lock(&self.shared.fault) {
                bail!("the simulated hosts: {fault}");
            }
            if done() {
                return Ok(());
            }
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                bail!("waited {patience:?} for {what}");
            }
            // Late news is found at the next look.
            let _ = tokio::time::timeout(left, news).await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain values; a panic elsewhere ends the run anyway.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn set_fault(&self, fault: String) {
        lock(&self.fault).get_or_insert(fault);
        self.news.notify_waiters();
    }
}

/// Keeps hosts attached over a connection of their own while that is ordered.
async fn connection(
    shared: Arc<Shared>,
    hosts: std::ops::Range<usize>,
    mut ordered: watch::Receiver<bool>,
) {
    loop {
        if ordered.wait_for(|attach| *attach).await.is_err() {
            return;
        }
        let mut streams = JoinSet::new();
        match endpoint(&shared.address, None) {
            Ok(endpoint) => {
                // Connects at the first call, and again when the connection is gone.
                let channel = endpoint.connect_lazy();
                for host in hosts.clone() {
                    streams.spawn(attach(Arc::clone(&shared), host, channel.clone()));
                }
            }
            Err(error) => shared.set_fault(error.to_string()),
        }
        // An error says that the run is over.
        let _ = ordered.wait_for(|attach| !*attach).await;
        streams.shutdown().await;
        shared.news.notify_waiters();
    }
}

/// An open stream, counted.
struct Attached<'a>(&'a Shared);

impl<'a> Attached<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.attached.fetch_add(1, Ordering::AcqRel);
        shared.news.notify_waiters();
        Self(shared)
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.0.attached.fetch_sub(1, Ordering::AcqRel);
        self.0.news.notify_waiters();
    }
}

/// Keeps a host attached.
async fn attach(shared: Arc<Shared>, host: usize, channel: Channel) {
    loop {
        let ended = stream(&shared, host, channel.clone()).await;
        if !shared.is_cut_expected.load(Ordering::Acquire) {
            let before = shared.lost.fetch_add(1, Ordering::Relaxed);
            shared.news.notify_waiters();
            // The first stands for all: most go together.
            if let (0, Err(status)) = (before, ended) {
                let reason = status.message();
                eprintln!("   {}: its stream ended: {reason}", host_id(host));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn stream(shared: &Shared, number: usize, channel: Channel) -> Result<(), Status> {
    let Some(host) = shared.hosts.get(number) else {
        return Ok(());
    };
    let (sender, receiver) = mpsc::channel(2);
    let mut asks = shared.asks.clone();
    let mut has_asked = *asks.borrow_and_update();
    let mut capabilities = vec!["group_members".into()];
    capabilities.extend(shared.learns.map(|_| "learning".into()));
    let hello = {
        let kept = lock(&host.kept);
        Hello {
            host: host_id(number),
            protocol: HOST_PROTOCOL,
            revision: kept.revision,
            digest: kept.digest.clone(),
            limits: Some(shared.limits),
            capabilities,
            learned: wanted(shared, number, has_asked),
            ..Hello::default()
        }
    };
    send(&sender, from_host::Message::Hello(hello)).await?;
    // What the generated client does, but the states stay bytes.
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let unavailable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
    client.ready().await.map_err(unavailable)?;
    let path = PathAndQuery::from_static("/weft.v1.HostControl/Attach");
    let codec = ProstCodec::<FromHost, ToHost>::default();
    let request = Request::new(ReceiverStream::new(receiver));
    let mut inbound = client.streaming(request, path, codec).await?.into_inner();
    let mut session = 0;
    let mut _attached = None;
    loop {
        let message = tokio::select! {
            message = inbound.message() => match message? {
                Some(message) => message,
                None => return Ok(()),
            },
            changed = asks.changed(), if !has_asked && session != 0 => {
                has_asked = true;
                if changed.is_ok() {
                    let learn = Learn {
                        session,
                        wanted: wanted(shared, number, true),
                        unwanted: Vec::new(),
                    };
                    send(&sender, from_host::Message::Learn(learn)).await?;
                }
                continue;
            }
        };
        let received = Instant::now();
        if let Some(welcome) = message.welcome {
            session = welcome.session;
            _attached = Some(Attached::new(shared));
        }
        let taken = {
            let mut kept = lock(&host.kept);
            let taken = match (message.full, message.delta) {
                (Some(full), _) => kept.take_full(full),
                (None, Some(delta)) => kept.take_delta(delta),
                (None, None) => continue,
            };
            taken.map(|()| (kept.revision, kept.digest.clone()))
        };
        let (revision, digest) = match taken {
            Ok(taken) => taken,
            Err(fault) => {
                shared.set_fault(format!("{}: {fault}", host_id(number)));
                // The run ends by this.
                return std::future::pending().await;
            }
        };
        let ack = Ack {
            session,
            revision,
            digest,
            effect_microseconds: received.elapsed().as_micros() as u64,
            held_back: Vec::new(),
        };
        send(&sender, from_host::Message::Ack(ack)).await?;
        let now = shared.begun.elapsed().as_nanos() as u64;
        host.acknowledged.store(now, Ordering::Release);
        host.revision.store(revision, Ordering::Release);
        shared.news.notify_waiters();
    }
}

/// What a host asks for, if it does.
fn wanted(shared: &Shared, host: usize, asks: bool) -> Vec<VpcAddresses> {
    let region = shared.learns.filter(|_| asks);
    let wanted = region.map(|region| VpcAddresses {
        vpc: "v0".into(),
        addresses: region.asked(host),
    });
    wanted.into_iter().collect()
}

async fn send(sender: &mpsc::Sender<FromHost>, message: from_host::Message) -> Result<(), Status> {
    let message = FromHost {
        message: Some(message),
    };
    let gone = |_| Status::cancelled("the stream has ended");
    sender.send(message).await.map_err(gone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::topology::Region;
    use weft_controller::{intent::Intent, server, store::Embedded};
    use weft_process::services::intent_client::IntentClient;
    use weft_process::transport::{Listener, connect};
    use weft_proto::v1::{ApplyRequest, Objects};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A controller in this process that serves until the runtime ends, and its address.
    async fn controller(directory: &std::path::Path) -> String {
        let store = Embedded::open(&directory.join("intent.redb")).unwrap();
        let intent = Arc::new(Intent::load(Box::new(store)).unwrap());
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.address().unwrap();
        let never = std::future::pending();
        tokio::spawn(server::serve(intent, listener, None, Duration::ZERO, never));
        address
    }

    async fn apply(intent: &mut IntentClient<Channel>, objects: Objects) -> u64 {
        let request = ApplyRequest {
            objects: Some(objects),
            ..ApplyRequest::default()
        };
        let reply = intent.apply(request).await.unwrap();
        reply.into_inner().revision
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn hosts_follow_the_controller_through_cuts_and_losses() {
        let directory = tempfile::tempdir().unwrap();
        let address = controller(directory.path()).await;
        let mut intent = IntentClient::new(connect(&address, None).await.unwrap());
        let region = Region::new(40, 4, 8, 5);
        let shape = Shape {
            hosts: region.hosts,
            streams: 3,
            check_every: 1,
            limits: HostLimits::default(),
            learns: None,
        };
        let fleet = Fleet::start(&address, shape);
        assert_eq!(fleet.checking(), 8);
        let mut objects = region.base();
        objects.ports = (0..region.ports).map(|port| region.port(port)).collect();
        let filled = apply(&mut intent, objects).await;
        let all: Vec<usize> = (0..region.hosts).collect();
        fleet.acknowledged(&all, filled, PATIENCE).await.unwrap();
        let more = |number| Objects {
            ports: (0..region.vpcs)
                .map(|vpc| region.more(number + vpc, vpc))
                .collect(),
            ..Objects::default()
        };
        let changed = apply(&mut intent, more(0)).await;
        fleet.acknowledged(&all, changed, PATIENCE).await.unwrap();
        let soon = Duration::from_millis(50);
        assert!(fleet.acknowledged(&all, changed + 1, soon).await.is_err());
        for forgets in [false, true] {
            fleet.cut(PATIENCE).await.unwrap();
            if forgets {
                fleet.forget();
            }
            let changed = apply(&mut intent, more(if forgets { 20 } else { 10 })).await;
            assert!(fleet.acknowledged(&all, changed, soon).await.is_err());
            fleet.attach();
            fleet.acknowledged(&all, changed, PATIENCE).await.unwrap();
            assert_eq!(fleet.attached(), 8);
            fleet.expect_cut(false);
        }
        assert_eq!(fleet.lost(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stream_that_ends_by_itself_is_counted_and_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let address = controller(directory.path()).await;
        let shape = Shape {
            hosts: 1,
            streams: 1,
            check_every: 1,
            limits: HostLimits::default(),
            learns: None,
        };
        let fleet = Fleet::start(&address, shape);
        let is_attached = || fleet.attached() == 1;
        fleet.until(PATIENCE, "a host", is_attached).await.unwrap();
        // The same host once more: the newer session takes the stream of the older, as long as both live.
        let other = Fleet::start(&address, shape);
        let is_lost = || fleet.lost() > 0;
        fleet
            .until(PATIENCE, "a lost stream", is_lost)
            .await
            .unwrap();
        drop(other);
        fleet
            .until(PATIENCE, "a host again", is_attached)
            .await
            .unwrap();
    }
}
