//! The agent: receives this host's state from the controller, or reads it from a file, and applies it.
//!
//! It runs on tokio and touches no packet. A received state is validated as a whole ([`weft_proto::validate`]), passed to [`Apply`], stored
//! on disk so that the host can start without the controller, and acknowledged. What the host cannot have of it is held back by VPC, and said
//! in the acknowledgement (decision 013). The connection is retried indefinitely.
//!
//! ```text
//! controller ──stream──┐
//!                      ├──> validate ──> Apply ──> store on disk ──> acknowledge
//! state file ──reload──┘
//! ```

mod active;
mod file;
mod findings;
mod hold_back;
mod persist;
mod ports;
mod run;
mod stream;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use weft_process::tls::TlsFiles;
use weft_proto::state::{Kind, Object, State, StateError};
use weft_proto::v1::{Event, HeldBack, HostLimits, Learn, Violation};
use weft_proto::validate::describe;

pub(crate) use ports::now_ms;

use active::ActiveState;
use findings::Found;
use ports::Reports;

/// What brings a state into effect.
pub trait Apply: Send + Sync + 'static {
    /// Applies a state whole and returns when it is in effect, or changes nothing and returns the rules that it breaks.
    ///
    /// Called off the workers, on a thread that may block, one call at a time. The state has passed
    /// [`validate`](weft_proto::validate::validate) with this host's scope.
    ///
    /// # Errors
    /// What this host cannot do, by object and field.
    fn apply(&self, revision: u64, state: &State) -> Result<(), Vec<Violation>>;
}

/// Who this host is and who tells it what to do.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// This host's id in the intent.
    pub host: String,
    /// Capabilities of the host, for the controller.
    pub capabilities: Vec<String>,
    /// How much the host can hold; 0: there is no limit.
    pub limits: HostLimits,
    /// Where its state comes from.
    pub source: Source,
}

/// Where the host's state comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A controller's stream.
    Controller {
        /// One or more of `https://HOST:PORT`, `http://HOST:PORT`, `HOST:PORT` or `unix:/path`; any of them will do.
        addresses: Vec<String>,
        /// The certificates that go with it, over TCP.
        tls: Option<TlsFiles>,
        /// Where the last acknowledged state is kept; made when it does not exist.
        state_directory: PathBuf,
    },
    /// A file of this host's state in YAML, the stand-in for a controller; read at the start and by [`AgentHandle::reload`].
    File(PathBuf),
}

/// Who tells the host what to do at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// A controller, connected.
    Connected,
    /// A controller, and it is not there.
    Disconnected,
    /// A file.
    File,
}

impl Connection {
    /// The word for it in `Status::controller` of the node service.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
            Self::File => "file",
        }
    }
}

/// A state that is in effect.
#[derive(Debug, Clone)]
pub struct InForce {
    /// Its revision.
    pub revision: u64,
    /// Its digest.
    pub digest: [u8; 32],
    /// The state, as it was received.
    pub state: Arc<State>,
    /// What is in effect: the state, but for what is held back.
    pub effective: Arc<State>,
    /// What of the state is not in effect.
    pub held_back: Arc<[HeldBack]>,
    /// Whether the received state breaks no rule.
    is_valid: bool,
}

/// How the agent stands.
#[derive(Debug, Clone)]
pub struct AgentStatus {
    /// Who tells the host what to do.
    pub connection: Connection,
    /// What is in effect; nothing before the first state.
    pub in_force: Option<InForce>,
    /// Why the last state was refused; empty when it was not.
    pub violations: Vec<Violation>,
}

impl AgentStatus {
    /// The revision in effect; 0 when there is none.
    pub fn revision(&self) -> u64 {
        self.in_force.as_ref().map_or(0, |known| known.revision)
    }
}

/// Why the agent does not start, or a state file is not taken.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum AgentError {
    #[error("cannot read the state file {path}: {reason}")]
    Read {
        path: PathBuf,
        reason: std::io::Error,
    },
    #[error("cannot parse the state file {path}: {reason}")]
    Parse {
        path: PathBuf,
        reason: Box<serde_yaml_ng::Error>,
    },
    #[error("the state file {path} is invalid: {reason}")]
    Malformed { path: PathBuf, reason: StateError },
    #[error("the state file {path} is refused:\n{}", lines(.violations))]
    Refused {
        path: PathBuf,
        violations: Vec<Violation>,
    },
    #[error("cannot use the state directory {path}: {reason}")]
    Directory {
        path: PathBuf,
        reason: std::io::Error,
    },
    #[error(transparent)]
    Address(#[from] weft_process::transport::TransportError),
}

fn lines(violations: &[Violation]) -> String {
    let lines: Vec<_> = violations.iter().map(describe).collect();
    lines.join("\n")
}

/// A running agent. Dropping it stops the agent as [`stop`](Self::stop) does, without waiting.
#[derive(Debug)]
pub struct AgentHandle {
    force: Arc<ActiveState>,
    events: mpsc::Sender<Event>,
    wishes: mpsc::Sender<Learn>,
    ports: watch::Sender<Reports>,
    found: watch::Sender<Found>,
    stopping: watch::Sender<bool>,
    file: Option<Mutex<PathBuf>>,
    task: Option<JoinHandle<()>>,
}

/// How many events may wait for the controller; more are dropped.
const EVENTS: usize = 256;

/// How many messages that ask for addresses may wait for the controller; more are dropped.
const WISHES: usize = 16;

/// Brings the kept state or the state file into effect, then follows the controller until stopped.
///
/// # Errors
/// The state file cannot be taken, the state directory cannot be used, or the controller's address is none. A kept state that
/// cannot be used is reported and ignored.
pub async fn start<A: Apply>(
    config: AgentConfig,
    apply: Arc<A>,
) -> Result<AgentHandle, AgentError> {
    let (events, queue) = mpsc::channel(EVENTS);
    let (wishes, wished) = mpsc::channel(WISHES);
    let (stopping, watched) = watch::channel(false);
    let ports = watch::Sender::new(Reports::default());
    let found = watch::Sender::new(Found::default());
    match config.source {
        Source::File(path) => {
            let force = Arc::new(ActiveState::new(
                (config.host, config.limits),
                apply,
                Connection::File,
            ));
            file::read(&force, &path).await?;
            Ok(AgentHandle {
                force,
                events,
                wishes,
                ports,
                found,
                stopping,
                file: Some(Mutex::new(path)),
                task: None,
            })
        }
        Source::Controller {
            addresses,
            tls,
            state_directory,
        } => {
            let force = Arc::new(ActiveState::new(
                (config.host, config.limits),
                apply,
                Connection::Disconnected,
            ));
            // Made again for each connection, with the certificates of that time.
            for address in &addresses {
                weft_process::transport::endpoint(address, tls.as_ref())?;
            }
            let keeper = persist::Keeper::open(&state_directory).map_err(|reason| {
                AgentError::Directory {
                    path: state_directory,
                    reason,
                }
            })?;
            run::start_headless(&force, &keeper).await;
            let runner = run::Runner {
                force: force.clone(),
                keeper,
                tls,
                addresses,
                capabilities: config.capabilities,
                events: queue,
                wishes: wished,
                ports: ports.subscribe(),
                found: found.subscribe(),
            };
            Ok(AgentHandle {
                force,
                events,
                wishes,
                ports,
                found,
                stopping,
                file: None,
                task: Some(tokio::spawn(runner.run(watched))),
            })
        }
    }
}

impl AgentHandle {
    /// How the agent stands.
    pub fn status(&self) -> AgentStatus {
        self.force.status()
    }

    /// How the agent stands, and notice of each change.
    pub fn watch(&self) -> watch::Receiver<AgentStatus> {
        self.force.watch()
    }

    /// Reads the state file again and brings it into effect, whole or not at all. With a controller there is nothing to read.
    /// Returns the revision then in effect.
    ///
    /// # Errors
    /// The file cannot be taken; what was in effect still is.
    pub async fn reload(&self) -> Result<u64, AgentError> {
        if let Some(path) = &self.file {
            // Held throughout: two reloads at a time would race for the revision.
            let path = path.lock().await;
            file::read(&self.force, &path).await?;
        }
        Ok(self.status().revision())
    }

    /// Sends an event to the controller if it is connected, and fills in the session. Dropped when too many wait.
    pub fn report(&self, event: Event) {
        // Droppable by contract.
        let _ = self.events.try_send(event);
    }

    /// Asks the controller for addresses if it is connected, and fills in the session. Dropped when too much waits: what is still wanted is asked for again.
    pub fn learn(&self, learn: Learn) {
        if self.status().connection == Connection::Connected {
            // Droppable as said.
            let _ = self.wishes.try_send(learn);
        }
    }

    /// Says what the host's ports are like: each by id, with the reason why no packets pass it if none do. The controller is told what changes.
    pub fn set_ports(&self, ports: impl Iterator<Item = (String, Result<(), String>)>) {
        ports::set(&self.ports, ports);
    }

    /// Says all that was found out of a kind, for other hosts to know. The controller is told what changes; without one nobody is.
    pub fn set_findings(&self, kind: Kind, found: impl Iterator<Item = Object>) {
        findings::set(&self.found, kind, found);
    }

    /// Leaves the controller. What is in effect stays so.
    pub async fn stop(mut self) {
        self.stopping.send_replace(true);
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the agent failed");
        }
    }
}
