//! One attachment to the controller, from Hello to its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use weft_process::services::host_control_client::HostControlClient;
use weft_process::tls::TlsFiles;
use weft_process::transport::{MAX_MESSAGE, TransportError, connect};
use weft_proto::state::{Kind, Object, State, collect, explode};
use weft_proto::v1::{
    Ack, AddressHolder, Event, FromHost, Hello, Learn, Objects, Refusal, ToHost, Violation,
    VpcAddresses, Welcome, from_host, to_host,
};
use weft_proto::{FINDINGS, FINDINGS_BY_KIND, HOST_PROTOCOL, PORT_REPORTS};

use super::active::{ActiveState, whole};
use super::findings::{self, Found};
use super::persist::Keeper;
use super::ports::{self, Reports};
use super::{Connection, InForce};

/// How long the controller may take to answer the call and to say Welcome.
const WELCOME_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of a state that may come ahead of its last message: four times what one message may have.
const MOST_IN_PARTS: usize = 4 * MAX_MESSAGE;

/// The state that the host reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    WithWhatIsInForce,
    /// As if it had nothing, to be sent all: a delta did not lead where it promised.
    Afresh,
}

/// How an attachment ended.
pub(super) struct End {
    pub(super) reason: Reason,
    pub(super) next: Start,
    /// Whether it got as far as Welcome.
    pub(super) attached: bool,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Reason {
    #[error(transparent)]
    Connect(#[from] TransportError),
    #[error("{}", .0.message())]
    Stream(#[from] Status),
    #[error("the controller did not answer within {WELCOME_DEADLINE:?}")]
    Silence,
    #[error(
        "the controller has version {0} of the host protocol, this host version {HOST_PROTOCOL}"
    )]
    Protocol(u32),
    #[error("the controller ended the stream")]
    Ended,
    #[error("the controller violated the host protocol: {0}")]
    Broken(&'static str),
    #[error("the result of a delta does not match its digest")]
    Delta,
}

/// What a state from the controller turned out to be.
enum Received {
    Next(InForce),
    Refused(u64, Vec<Violation>),
    /// The rest follows.
    Part,
}

pub(super) struct Attachment<'a> {
    pub(super) force: &'a Arc<ActiveState>,
    pub(super) keeper: &'a Keeper,
    pub(super) address: &'a str,
    pub(super) tls: Option<&'a TlsFiles>,
    pub(super) capabilities: &'a [String],
    pub(super) events: &'a mut mpsc::Receiver<Event>,
    pub(super) wishes: &'a mut mpsc::Receiver<Learn>,
    pub(super) ports: watch::Receiver<Reports>,
    pub(super) found: watch::Receiver<Found>,
    /// Whether a state of this attachment came into force.
    pub(super) taken: bool,
    /// Objects of the next state that have come ahead of it.
    pub(super) parts: Vec<Objects>,
    /// How large they are together, as they were sent.
    pub(super) parts_bytes: usize,
}

impl Attachment<'_> {
    pub(super) async fn run(mut self, start: Start) -> End {
        let (sender, mut inbound, welcome) = match self.open(start).await {
            Ok(opened) => opened,
            Err(reason) => {
                return End {
                    reason,
                    next: start,
                    attached: false,
                };
            }
        };
        self.force.set_connection(Connection::Connected);
        let session = welcome.session;
        tracing::info!(session, "attached to the controller");
        let Err(reason) = self.follow(&sender, &mut inbound, &welcome).await;
        End {
            next: match reason {
                Reason::Delta => Start::Afresh,
                _ => Start::WithWhatIsInForce,
            },
            reason,
            attached: true,
        }
    }

    async fn open(
        &self,
        start: Start,
    ) -> Result<(mpsc::Sender<FromHost>, Streaming<ToHost>, Welcome), Reason> {
        let channel = connect(self.address, self.tls).await?;
        let (sender, receiver) = mpsc::channel(16);
        let in_force = self.force.status().in_force;
        let asked = in_force.as_ref().map(|known| learned(&known.state));
        let held = in_force.as_ref().map(|known| holders(&known.state));
        let known = in_force.filter(|_| start == Start::WithWhatIsInForce);
        let hello = Hello {
            host: self.force.host.clone(),
            protocol: HOST_PROTOCOL,
            capabilities: self.capabilities.to_vec(),
            revision: known.as_ref().map_or(0, |known| known.revision),
            held_back: known
                .as_ref()
                .map_or(Vec::new(), |known| known.held_back.to_vec()),
            learned: asked.unwrap_or_default(),
            holders: held.unwrap_or_default(),
            digest: known.map_or(Vec::new(), |known| known.digest.to_vec()),
            limits: Some(self.force.limits),
        };
        say(&sender, from_host::Message::Hello(hello)).await?;
        let mut client = HostControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let call = client.attach(ReceiverStream::new(receiver));
        let mut inbound = in_time(call).await??.into_inner();
        match in_time(inbound.message()).await?? {
            Some(ToHost {
                message: Some(to_host::Message::Welcome(welcome)),
            }) if welcome.protocol == HOST_PROTOCOL => Ok((sender, inbound, welcome)),
            Some(ToHost {
                message: Some(to_host::Message::Welcome(welcome)),
            }) => Err(Reason::Protocol(welcome.protocol)),
            Some(_) => Err(Reason::Broken("its first message is not Welcome")),
            None => Err(Reason::Ended),
        }
    }

    async fn follow(
        &mut self,
        sender: &mpsc::Sender<FromHost>,
        inbound: &mut Streaming<ToHost>,
        welcome: &Welcome,
    ) -> Result<std::convert::Infallible, Reason> {
        let session = welcome.session;
        let hears = |capability| welcome.capabilities.iter().any(|it| it == capability);
        let (tells_ports, tells_findings) = (hears(PORT_REPORTS), hears(FINDINGS));
        let mut told = self.ports.borrow_and_update().clone();
        if tells_ports {
            let all = ports::all(session, &told);
            say(sender, from_host::Message::Ports(all)).await?;
        }
        let by_kind = hears(FINDINGS_BY_KIND);
        let mut known = Found::default();
        if tells_findings {
            // Whatever is there already counts as new to this controller.
            self.found.mark_changed();
        }
        loop {
            tokio::select! {
                message = inbound.message() => {
                    let message = message?.ok_or(Reason::Ended)?;
                    if let Some(answer) = self.take(message, session).await? {
                        say(sender, answer).await?;
                    }
                }
                Some(event) = self.events.recv() => {
                    let event = Event { session, ..event };
                    say(sender, from_host::Message::Event(event)).await?;
                }
                Some(learn) = self.wishes.recv() => {
                    let learn = Learn { session, ..learn };
                    say(sender, from_host::Message::Learn(learn)).await?;
                }
                // The daemon's end may have gone before.
                Ok(()) = self.ports.changed(), if tells_ports => {
                    let now = self.ports.borrow_and_update().clone();
                    let reports = ports::difference(session, &told, &now);
                    told = now;
                    say(sender, from_host::Message::Ports(reports)).await?;
                }
                Ok(()) = self.found.changed(), if tells_findings => {
                    let now = self.found.borrow_and_update().clone();
                    for told in findings::difference(session, &known, &now, by_kind) {
                        say(sender, from_host::Message::Findings(told)).await?;
                    }
                    known = now;
                }
            }
        }
    }

    /// Brings a state into force; the answer, when all of it has come.
    async fn take(
        &mut self,
        message: ToHost,
        session: u64,
    ) -> Result<Option<from_host::Message>, Reason> {
        let received = Instant::now();
        let (revision, violations) = match self.understand(message)? {
            Received::Part => return Ok(None),
            Received::Refused(revision, violations) => {
                tracing::warn!(revision, ?violations, "refused");
                self.force.note_refusal(violations.clone());
                (revision, violations)
            }
            Received::Next(next) => match self.force.bring(next.clone()).await {
                Ok(()) => {
                    let effect = received.elapsed();
                    self.taken = true;
                    self.keep().await;
                    let in_force = self.force.status().in_force;
                    return Ok(Some(from_host::Message::Ack(Ack {
                        session,
                        revision: next.revision,
                        digest: next.digest.to_vec(),
                        effect_microseconds: u64::try_from(effect.as_micros()).unwrap_or(u64::MAX),
                        held_back: in_force.map_or(Vec::new(), |known| known.held_back.to_vec()),
                    })));
                }
                Err(violations) => (next.revision, violations),
            },
        };
        Ok(Some(from_host::Message::Refusal(Refusal {
            session,
            revision,
            violations,
        })))
    }

    /// The objects of a state: those that came ahead of its last message, and its own.
    fn all_of(&mut self, last: Option<Objects>) -> Objects {
        let last = last.unwrap_or_default();
        if self.parts.is_empty() {
            return last;
        }
        self.parts_bytes = 0;
        let parts = std::mem::take(&mut self.parts).into_iter();
        collect(parts.chain([last]).flat_map(explode))
    }

    fn understand(&mut self, message: ToHost) -> Result<Received, Reason> {
        match message.message {
            Some(to_host::Message::Part(part)) => {
                self.parts_bytes += part.encoded_len();
                if self.parts_bytes > MOST_IN_PARTS {
                    return Err(Reason::Broken("a state without an end"));
                }
                self.parts.extend(part.objects);
                Ok(Received::Part)
            }
            Some(to_host::Message::Full(full)) => {
                let objects = self.all_of(full.state);
                if let Err(violations) = self.in_order(full.revision, false) {
                    return Ok(Received::Refused(full.revision, violations));
                }
                let state = match State::from_objects(objects) {
                    Ok(state) => state,
                    Err(error) => {
                        let violations = vec![whole(error.to_string())];
                        return Ok(Received::Refused(full.revision, violations));
                    }
                };
                let next = InForce::new(full.revision, state);
                if next.digest[..] == full.digest[..] {
                    return Ok(Received::Next(next));
                }
                let rule =
                    "the digest does not match: the state holds what this host does not understand";
                Ok(Received::Refused(full.revision, vec![whole(rule)]))
            }
            Some(to_host::Message::Delta(delta)) => {
                let upserts = self.all_of(delta.upserts);
                let known = self.force.status().in_force.ok_or(Reason::Delta)?;
                if known.revision != delta.from_revision {
                    return Err(Reason::Delta);
                }
                if let Err(violations) = self.in_order(delta.revision, true) {
                    return Ok(Received::Refused(delta.revision, violations));
                }
                let state = known
                    .state
                    .patched(upserts, &delta.deletes)
                    .map_err(|_| Reason::Delta)?;
                let next = InForce::new(delta.revision, state);
                if next.digest[..] == delta.digest[..] {
                    Ok(Received::Next(next))
                } else {
                    Err(Reason::Delta)
                }
            }
            Some(to_host::Message::Welcome(_)) => Err(Reason::Broken("a second Welcome")),
            None => Err(Reason::Broken("unknown kind of message")),
        }
    }

    /// Whether a state of this revision may come now: within an attachment revisions grow, so that nothing is played twice. A delta may lead to another
    /// state of the same one, since what this host asks for changes what it is told; played twice, it would not lead to its digest. A controller that
    /// begins with a lower one than is in force is obeyed, since it has the word on what is right, and said to be behind.
    fn in_order(&self, revision: u64, is_delta: bool) -> Result<(), Vec<Violation>> {
        let present = self.force.status().revision();
        if revision > present || is_delta && revision == present {
            return Ok(());
        }
        if self.taken {
            let rule = format!("revision {revision} is not above {present}, which is in force");
            return Err(vec![whole(rule)]);
        }
        if revision < present {
            tracing::warn!(
                revision,
                present,
                "the controller's revision is older than the one in force here: its store was restored from a copy, or lost changes"
            );
        }
        Ok(())
    }

    /// Keeps what is in force for a start without the controller.
    async fn keep(&self) {
        let (keeper, force) = (self.keeper.clone(), Arc::clone(self.force));
        if let Err(error) = tokio::task::spawn_blocking(move || keeper.keep_newest(&force)).await {
            tracing::error!(%error, "storing the state failed");
        }
    }
}

/// The addresses that were asked for in a state.
fn learned(state: &State) -> Vec<VpcAddresses> {
    let mut all: Vec<VpcAddresses> = Vec::new();
    for object in state.of_kind(Kind::LearnedAddress) {
        let Object::LearnedAddress(learned) = object else {
            continue;
        };
        match all.last_mut().filter(|last| last.vpc == learned.vpc) {
            Some(last) => last.addresses.push(learned.address.clone()),
            None => all.push(VpcAddresses {
                vpc: learned.vpc.clone(),
                addresses: vec![learned.address.clone()],
            }),
        }
    }
    all
}

/// Who holds virtual addresses in a state.
fn holders(state: &State) -> Vec<AddressHolder> {
    let all = state.of_kind(Kind::AddressHolder);
    all.filter_map(|object| match object {
        Object::AddressHolder(holder) => Some(holder.clone()),
        _ => None,
    })
    .collect()
}

async fn in_time<T>(future: impl Future<Output = T>) -> Result<T, Reason> {
    tokio::time::timeout(WELCOME_DEADLINE, future)
        .await
        .map_err(|_| Reason::Silence)
}

async fn say(sender: &mpsc::Sender<FromHost>, message: from_host::Message) -> Result<(), Reason> {
    let message = FromHost {
        message: Some(message),
    };
    sender.send(message).await.map_err(|_| Reason::Ended)
}
