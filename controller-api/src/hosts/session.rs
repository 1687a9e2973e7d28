//! One host's session: sends the newest version to the host, one state at a time.
//!
//! While a state is not yet acknowledged, newer versions wait; the next state that is sent contains all of them. A delta starts from what
//! the host last acknowledged, also when it refused states in between.
//!
//! What the host asks for in VPCs whose ports it learns is kept here, and answered by its next state, which may be of the same revision.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot};
use tonic::{Status, Streaming};
use weft_proto::state::split;
use weft_proto::v1::{
    Ack, Delta, FromHost, FullState, Hello, Learn, Part, Refusal, ToHost, VpcAddresses, from_host,
    to_host,
};

use super::{Hosts, Told};
use crate::intent::Intent;
use crate::learning::{Address, Learned, MOST_ADDRESSES};
use crate::node::{Capabilities, NodeState};
use crate::version::Version;

/// A state is large that differs by so many objects from what the host has.
const LARGE: usize = 4096;

/// Bytes of objects in one message, at most on average: a host takes no message that is much larger, and there is no bound on all that a state has. An object that
/// is larger has a message of its own.
const PART: usize = 2 << 20;

/// How long a host may take for a large state before others no longer wait for it.
const LARGE_DEADLINE: Duration = Duration::from_secs(10);

/// At most so often it is said that a host asks for too much.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// What a host has asked for.
#[derive(Default)]
struct Asked {
    learned: Learned,
    /// Addresses that were passed over since that was last said, for there were too many or they were none.
    passed_over: u64,
    said: Option<Instant>,
}

impl Asked {
    fn take_out(&mut self, unwanted: &[VpcAddresses]) {
        for of_vpc in unwanted {
            for text in &of_vpc.addresses {
                if let Some(address) = Address::parse(text) {
                    self.learned.remove(&of_vpc.vpc, address);
                }
            }
        }
    }

    /// Adds what is asked for in VPCs that hosts learn.
    fn add(&mut self, host: &str, wanted: &[VpcAddresses], version: &Version) {
        let learned = wanted.iter().filter(|it| version.is_learned(&it.vpc));
        for of_vpc in learned {
            for text in &of_vpc.addresses {
                let address = Address::parse(text);
                let is_kept = address.is_some_and(|it| self.learned.insert(&of_vpc.vpc, it));
                self.passed_over += u64::from(!is_kept);
            }
        }
        let may_say = self.said.is_none_or(|said| said.elapsed() >= SAID_EVERY);
        if self.passed_over > 0 && may_say {
            tracing::warn!(
                host,
                passed_over = self.passed_over,
                kept = self.learned.len(),
                most = MOST_ADDRESSES,
                "asks for more addresses than are kept, or for what is none"
            );
            (self.passed_over, self.said) = (0, Some(Instant::now()));
        }
    }
}

pub(super) struct Session {
    id: u64,
    host: String,
    capabilities: Capabilities,
    hosts: Arc<Hosts>,
    sender: mpsc::Sender<Result<ToHost, Status>>,
    /// Fails when a newer session takes this one's place.
    taken: oneshot::Receiver<()>,
    /// The state that the host reported in its Hello, until one is acknowledged.
    claimed: (u64, Vec<u8>),
    /// What the host has in force, if we know what that is.
    acknowledged: Option<Told>,
    outstanding: Option<Told>,
    /// The digest of the state that was refused last: it is not sent again.
    refused: Option<[u8; 32]>,
    /// Ends when it may be said that the large state which was sent has arrived.
    large: Option<tokio::task::AbortHandle>,
    /// Wakes the session when there is news for the host.
    waker: Arc<Notify>,
    asked: Asked,
    /// What was last compiled, whether it was sent or not.
    considered: Option<Arc<NodeState>>,
}

impl Session {
    pub(super) fn open(
        id: u64,
        hello: &Hello,
        hosts: Arc<Hosts>,
        sender: mpsc::Sender<Result<ToHost, Status>>,
        version: &Version,
    ) -> Self {
        let mut asked = Asked::default();
        asked.add(&hello.host, &hello.learned, version);
        let (taken, waker, remembered) = hosts.attach(hello, id, version);
        hosts.hear_of_holders(version, &hello.host, &hello.holders);
        let same =
            |known: &Told| known.revision == hello.revision && known.digest[..] == hello.digest[..];
        Self {
            id,
            host: hello.host.clone(),
            capabilities: Capabilities::of(&hello.capabilities),
            hosts,
            waker,
            asked,
            large: None,
            sender,
            taken,
            claimed: (hello.revision, hello.digest.clone()),
            acknowledged: remembered.filter(same),
            outstanding: None,
            refused: None,
            considered: None,
        }
    }

    /// Runs until the host goes, a newer session takes over, or either end breaks the protocol.
    pub(super) async fn run(
        mut self,
        inbound: &mut Streaming<FromHost>,
        intent: &Intent,
    ) -> Result<(), Status> {
        let waker = Arc::clone(&self.waker);
        loop {
            if self.outstanding.is_none() {
                self.hosts.look(&self.host, self.id);
                // Before the version is read: what changes after it wakes this session.
                self.index_asked();
                self.bring_to(intent.current()).await?;
            }
            tokio::select! {
                () = waker.notified(), if self.outstanding.is_none() => {}
                message = inbound.message() => match message? {
                    Some(message) => self.hear(message, intent)?,
                    None => return Ok(()),
                },
                _ = &mut self.taken => {
                    return Err(Status::aborted("a newer session of this host took over"));
                }
            }
        }
    }

    /// Sends what leads the host to a version, if anything does.
    async fn bring_to(&mut self, version: Arc<Version>) -> Result<(), Status> {
        let Some(next) = self.compiled(version).await? else {
            return Ok(());
        };
        let in_force = self.acknowledged.as_ref();
        if in_force.is_some_and(|known| known.digest == next.digest) {
            self.refused = None;
            self.note_current(next.revision);
            return Ok(());
        }
        if in_force.is_none() && self.claimed.1 == next.digest {
            let revision = next.revision;
            self.set_acknowledged(Told {
                revision: self.claimed.0,
                ..next
            });
            self.note_current(revision);
            return Ok(());
        }
        if self.refused == Some(next.digest) {
            self.note_refused(next.revision);
            return Ok(());
        }
        self.send(next).await
    }

    /// The host's state at a version. Nothing for a host that the intent does not name: it keeps what it has until it is named,
    /// but one that was named and no longer is loses everything.
    async fn compiled(&mut self, version: Arc<Version>) -> Result<Option<Told>, Status> {
        let host = self.host.clone();
        let considered = self.considered.clone();
        let capabilities = self.capabilities;
        let learned = self.asked.learned.clone();
        let findings = self.hosts.board.findings();
        // Never closed.
        let permit = self.hosts.compiling.acquire().await;
        let compiled = tokio::task::spawn_blocking(move || {
            let gone = || {
                let state = NodeState::empty(version.revision);
                considered.is_some().then_some(state)
            };
            let recipient = (&*host, capabilities);
            let before = considered.as_deref();
            let besides = (&learned, &findings);
            let state =
                NodeState::compile_with(&version, recipient, besides, before).or_else(gone)?;
            Some(Told {
                revision: version.revision,
                digest: state.digest(),
                state: Arc::new(state),
            })
        })
        .await
        .map_err(|_| Status::internal("compiling the host's state failed"))?;
        drop(permit);
        if let Some(next) = &compiled {
            self.considered = Some(Arc::clone(&next.state));
            // The rest is of VPCs that are not learned, or not told, any more.
            self.asked.learned = next.state.learned().clone();
            self.index_asked();
        }
        Ok(compiled)
    }

    /// Has changes of whatever has an address that was asked for wake this session.
    fn index_asked(&self) {
        let interest = &self.hosts.interest;
        interest.set_asked(&self.host, &self.waker, &self.asked.learned);
    }

    /// The right to have a large state on its way. A host that is slow loses it after a while, so that it holds up nobody.
    async fn large_permit(&self) -> Option<tokio::task::AbortHandle> {
        // Never closed.
        let permit = Arc::clone(&self.hosts.sending).acquire_owned().await.ok()?;
        let held = tokio::spawn(async move {
            tokio::time::sleep(LARGE_DEADLINE).await;
            drop(permit);
        });
        Some(held.abort_handle())
    }

    async fn send(&mut self, next: Told) -> Result<(), Status> {
        let known = self.acknowledged.as_ref().map(|known| &known.state);
        if next.state.is_far_from(known.map(|known| &**known), LARGE) {
            self.large = self.large_permit().await;
        }
        let known = self.acknowledged.as_ref();
        let (objects, deletes) = match known {
            Some(known) => known.state.delta_to(&next.state),
            None => (next.state.to_objects(), Vec::new()),
        };
        let mut parts = match self.capabilities.state_parts {
            true => split(objects, PART),
            false => vec![objects],
        };
        let rest = parts.pop();
        let (revision, digest) = (next.revision, next.digest.to_vec());
        let last = match known {
            Some(known) => to_host::Message::Delta(Delta {
                from_revision: known.revision,
                revision,
                digest,
                upserts: rest,
                deletes,
            }),
            None => to_host::Message::Full(FullState {
                revision,
                digest,
                state: rest,
            }),
        };
        self.hosts.update(&self.host, self.id, |entry| {
            entry.sent_revision = next.revision;
        });
        self.outstanding = Some(next);
        let part = |objects| {
            to_host::Message::Part(Part {
                objects: Some(objects),
            })
        };
        for message in parts.into_iter().map(part).chain([last]) {
            let message = ToHost {
                message: Some(message),
            };
            self.sender
                .send(Ok(message))
                .await
                .map_err(|_| Status::cancelled("the host has disconnected"))?;
        }
        Ok(())
    }

    fn hear(&mut self, message: FromHost, intent: &Intent) -> Result<(), Status> {
        match message.message {
            Some(from_host::Message::Ack(ack)) if ack.session == self.id => self.acknowledge(&ack),
            Some(from_host::Message::Refusal(refusal)) if refusal.session == self.id => {
                self.note_refusal(refusal);
                Ok(())
            }
            // Those of an earlier session say nothing of what this one sent.
            Some(from_host::Message::Ack(_) | from_host::Message::Refusal(_)) => Ok(()),
            Some(from_host::Message::Learn(learn)) if learn.session == self.id => {
                self.learn(&learn, &intent.current());
                Ok(())
            }
            // What this session has to know of it was in its Hello.
            Some(from_host::Message::Learn(_)) => Ok(()),
            Some(from_host::Message::Ports(reports)) => {
                if reports.session == self.id {
                    let version = intent.current();
                    self.hosts
                        .ports
                        .hear(&version, &self.host, self.id, reports);
                }
                Ok(())
            }
            Some(from_host::Message::Findings(findings)) => {
                let version = intent.current();
                self.hosts
                    .hear_findings(&version, &self.host, self.id, findings);
                Ok(())
            }
            Some(from_host::Message::Event(event)) => {
                let object = event.object.unwrap_or_default();
                tracing::debug!(
                    host = self.host,
                    kind = event.kind,
                    object = object.id,
                    "{}",
                    event.text
                );
                Ok(())
            }
            Some(from_host::Message::Hello(_)) => {
                Err(Status::invalid_argument("Hello was sent twice"))
            }
            None => Err(Status::invalid_argument("unknown kind of message")),
        }
    }

    /// Takes up what the host asks for, and what it gives back.
    fn learn(&mut self, learn: &Learn, version: &Version) {
        if self.capabilities.learns {
            self.asked.take_out(&learn.unwanted);
            self.asked.add(&self.host, &learn.wanted, version);
        }
    }

    fn acknowledge(&mut self, ack: &Ack) -> Result<(), Status> {
        let Some(sent) = self
            .outstanding
            .take_if(|sent| sent.revision == ack.revision)
        else {
            return Ok(());
        };
        self.end_large();
        if sent.digest[..] != ack.digest[..] {
            self.acknowledged = None;
            self.hosts
                .update(&self.host, self.id, |entry| entry.acknowledged = None);
            return Err(Status::data_loss(
                "the host acknowledged a state other than the one sent",
            ));
        }
        self.refused = None;
        self.note_current(sent.revision);
        self.set_acknowledged(sent);
        self.hosts.update(&self.host, self.id, |entry| {
            entry.effect_microseconds = ack.effect_microseconds;
            entry.set_held_back(&self.host, ack.held_back.clone());
        });
        Ok(())
    }

    /// Gives back the right to have a large state on its way.
    fn end_large(&mut self) {
        if let Some(held) = self.large.take() {
            held.abort();
        }
    }

    fn note_refusal(&mut self, refusal: Refusal) {
        let Some(sent) = self
            .outstanding
            .take_if(|sent| sent.revision == refusal.revision)
        else {
            return;
        };
        self.end_large();
        tracing::warn!(host = self.host, revision = sent.revision, violations = ?refusal.violations, "refused");
        self.refused = Some(sent.digest);
        self.hosts.update(&self.host, self.id, |entry| {
            entry.violations = refusal.violations;
            entry.refused_revision = sent.revision;
        });
    }

    /// The host's state of a revision is the one that it refused before.
    fn note_refused(&self, revision: u64) {
        self.hosts.update(&self.host, self.id, |entry| {
            entry.refused_revision = revision;
        });
    }

    fn set_acknowledged(&mut self, known: Told) {
        self.acknowledged = Some(known.clone());
        self.hosts.update(&self.host, self.id, |entry| {
            entry.acknowledged = Some(known);
        });
    }

    /// The host has its state of a revision in force.
    fn note_current(&self, revision: u64) {
        self.hosts.update(&self.host, self.id, |entry| {
            entry.acknowledged_revision = revision;
            entry.violations.clear();
            entry.refused_revision = 0;
        });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end_large();
        self.hosts.interest.forget(&self.host, &self.waker);
        self.hosts.detach(&self.host, self.id);
    }
}
