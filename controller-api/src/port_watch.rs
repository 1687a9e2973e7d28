//! Lists and watches of ports' conditions.
//!
//! A watch holds the revision that it has come to. It is told which ports to look at again, and sends what they are like by then; one that is too far
//! behind for that is sent all anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use weft_process::tls::Role;
use weft_proto::state::{Kind, Object};
use weft_proto::v1::{Port, PortCondition, PortConditions};

use crate::admission::Admitted;
use crate::caller::Caller;
use crate::history::Filter;
use crate::listing::CHUNK;
use crate::ports::{Changed, Ports};
use crate::store::Form;
use crate::version::Version;
use crate::watch::{End, GATHER, IDLE, SLOW, WAITING, Watched};

/// After so many ports others have their turn.
const TURN: usize = 1000;

/// Whose and which ports, and where the answer goes.
pub(crate) struct PortWatch {
    watched: Watched,
    ports: Arc<Ports>,
    caller: Caller,
    filter: Filter,
    sender: mpsc::Sender<Result<PortConditions, Status>>,
}

impl PortWatch {
    /// Starts an answer: the conditions that there are, and if it is a watch, all changes; those after a revision alone where that is possible.
    ///
    /// # Errors
    /// There are too many watches.
    pub(crate) async fn start(
        watched: &Watched,
        ports: &Arc<Ports>,
        (admitted, filter): (Arc<Admitted>, Filter),
        from: Option<u64>,
    ) -> Result<ReceiverStream<Result<PortConditions, Status>>, Status> {
        if let Err(error) = watched.intent.catch_up().await {
            tracing::debug!(%error, "conditions of ports are of what is known");
        }
        let (sender, receiver) = mpsc::channel(WAITING + 1);
        // The place of the last message, which says why the watch ended.
        let last = sender.clone().reserve_owned().await;
        let last = last.map_err(|_| Status::internal("the watch has no receiver"))?;
        let mut stopping = watched.stopping.clone();
        let gone = sender.clone();
        let watch = Self {
            watched: watched.clone(),
            ports: Arc::clone(ports),
            caller: admitted.caller.clone(),
            filter,
            sender,
        };
        tokio::spawn(async move {
            // It counts as open until it has ended.
            let _open = admitted;
            let end = tokio::select! {
                end = watch.run(from) => end,
                () = gone.closed() => Err(End::Gone),
                _ = stopping.wait_for(|stopping| *stopping) => {
                    Err(End::Told(Status::unavailable("the controller is stopping")))
                }
            };
            if let Err(End::Told(status)) = end {
                last.send(Err(status));
            }
        });
        Ok(ReceiverStream::new(receiver))
    }

    async fn run(&self, from: Option<u64>) -> Result<(), End> {
        let mut notices = self.ports.watch();
        let mut known = from.unwrap_or_default();
        let mut idle = Instant::now() + IDLE;
        loop {
            notices.mark_unchanged();
            let (newest, changes) = self.ports.since(known);
            let sent = match changes {
                Some(changes) => self.send_changes(newest, changes).await?,
                None => self.send_all(newest).await?,
            };
            known = newest;
            if from.is_none() {
                return Ok(());
            }
            if sent {
                idle = Instant::now() + IDLE;
            }
            tokio::time::sleep(GATHER).await;
            tokio::select! {
                changed = notices.changed() => if changed.is_err() {
                    return Err(End::Told(Status::unavailable("the controller is stopping")));
                },
                () = sleep_until(idle) => {
                    idle = Instant::now() + IDLE;
                    let revision = known;
                    self.send(PortConditions { revision, ..PortConditions::default() }).await?;
                }
            }
        }
    }

    /// Whether a port is among those asked for, and the caller's to read.
    fn is_wanted(&self, version: &Version, object: &Object) -> bool {
        let Filter { id, vpc, .. } = &self.filter;
        (id.is_empty() || object.id() == id)
            && (vpc.is_empty() || object.vpc() == Some(vpc))
            && self.caller.may(Role::Read, &version.state, object)
            && self.filter.selects(&self.caller, object)
    }

    fn wanted<'v>(&self, version: &'v Version, object: &'v Object) -> Option<&'v Port> {
        match object {
            Object::Port(port) if self.is_wanted(version, object) => Some(port),
            _ => None,
        }
    }

    async fn send_all(&self, revision: u64) -> Result<bool, End> {
        let version = self.watched.intent.current();
        let state = &version.state;
        let Filter { id, vpc, .. } = &self.filter;
        let all: Box<dyn Iterator<Item = &Object> + Send> = if !id.is_empty() {
            Box::new(state.find(Kind::Port, id).into_iter())
        } else if !vpc.is_empty() {
            Box::new(state.of_vpc_and_kind(vpc, Kind::Port))
        } else {
            Box::new(state.of_kind(Kind::Port))
        };
        let mut found: Vec<PortCondition> = Vec::new();
        let mut anew = true;
        for (number, object) in all.enumerate() {
            if number % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
            let Some(port) = self.wanted(&version, object) else {
                continue;
            };
            if found.len() == CHUNK {
                self.send(PortConditions {
                    revision,
                    ports: std::mem::take(&mut found),
                    deletes: Vec::new(),
                    anew: std::mem::take(&mut anew),
                    more: true,
                })
                .await?;
            }
            found.push(self.ports.condition(&version, &self.caller, port));
        }
        self.send(PortConditions {
            revision,
            ports: found,
            deletes: Vec::new(),
            anew,
            more: false,
        })
        .await?;
        Ok(true)
    }

    /// Sends what ports are like by now. Says whether the caller was told anything.
    async fn send_changes(&self, revision: u64, changes: Vec<Changed>) -> Result<bool, End> {
        let version = self.watched.intent.current();
        let mut again: BTreeMap<String, Vec<Form>> = BTreeMap::new();
        for change in changes {
            again.entry(change.port).or_default().extend(change.before);
        }
        let mut next = PortConditions {
            revision,
            ..PortConditions::default()
        };
        for (number, (id, before)) in again.into_iter().enumerate() {
            if number % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
            let object = version.state.find(Kind::Port, &id);
            let port = object.and_then(|object| self.wanted(&version, object));
            let was_told = |form: &Form| {
                let is_it = form.object().map(Object::id) == Some(&*self.filter.id);
                (self.filter.id.is_empty() || is_it) && self.filter.is_told(&self.caller, form)
            };
            if port.is_none() && !before.iter().any(was_told) {
                continue;
            }
            if next.ports.len() + next.deletes.len() == CHUNK {
                next.more = true;
                let rest = PortConditions {
                    revision,
                    ..PortConditions::default()
                };
                self.send(std::mem::replace(&mut next, rest)).await?;
            }
            match port {
                Some(port) => {
                    let condition = self.ports.condition(&version, &self.caller, port);
                    next.ports.push(condition);
                }
                None => next.deletes.push(id),
            }
        }
        let is_any = !next.ports.is_empty() || !next.deletes.is_empty();
        if is_any {
            self.send(next).await?;
        }
        Ok(is_any)
    }

    async fn send(&self, event: PortConditions) -> Result<(), End> {
        match timeout(SLOW, self.sender.send(Ok(event))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Gone),
            Err(_) => {
                let seconds = SLOW.as_secs();
                let text = format!("no event was taken for {seconds} s: the watch is too slow");
                Err(End::Told(Status::resource_exhausted(text)))
            }
        }
    }
}
