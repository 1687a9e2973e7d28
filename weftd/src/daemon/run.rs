//! weftd from start to stop.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::AbortHandle;
use tokio_stream::wrappers::UnixListenerStream;
use weft_process::services::node_server::NodeServer;
use weft_process::supervisor::Supervisor;
use weft_proto::v1::{Event, ObjectKey};

use super::config::Config;
use super::host::Host;
use super::learning;
use super::node::NodeService;
use super::resources::Resources;
use super::{holders, multicast};
use crate::agent::{self, AgentConfig, AgentHandle, Source};
use crate::underlay::Underlay;
use weft_dataplane::session::table::{PREPARE_EVERY, SessionTable};

/// How often devices of ports are looked for.
const SETTLE: Duration = Duration::from_millis(250);
/// What this host offers to the controller.
const CAPABILITIES: [&str; 23] = [
    "vxlan",
    "gre",
    "netdev",
    "tap",
    "vhost-user",
    "dhcp",
    "rate_limits",
    "group_members",
    "learning",
    weft_proto::LOAD_BALANCER,
    weft_proto::LEAST_CONNECTIONS,
    weft_proto::DSR,
    weft_proto::DHCP_OPTIONS,
    weft_proto::FINDINGS,
    weft_proto::DSCP_MARKING,
    weft_proto::POLICY_ROUTES,
    weft_proto::MULTICAST,
    weft_proto::MULTICAST_LISTENERS,
    weft_proto::ADDRESS_HOLDERS,
    weft_proto::TRUNK_PORTS,
    weft_proto::DNS,
    weft_proto::PORT_HEALTH,
    weft_proto::STATE_PARTS,
];

/// Runs the daemon until it is stopped.
///
/// # Errors
/// What keeps it from starting, with the remedy where there is one.
pub async fn run(path: &Path, config: Config, resources: Resources) -> anyhow::Result<()> {
    let mut signals = Signals::register()?;
    let underlay = Arc::new(Underlay::start()?);
    let host = Arc::new(Host::new(&config, resources, Arc::clone(&underlay))?);
    let agent_config = agent_config(&config)?;
    let agent = Arc::new(agent::start(agent_config, Arc::clone(&host)).await?);
    let tasks = spawn_tasks(&config, &host, &agent)?;
    tracing::info!(host = %config.host, socket = %config.socket.display(), "weftd is ready");
    let mut supervisor = Supervisor::from_environment();
    supervisor.ready();
    let parts = (&host, &*agent, &*underlay);
    watch(path, parts, &mut signals, &mut supervisor).await?;
    tracing::info!("stopping");
    supervisor.stopping();
    tasks.iter().for_each(AbortHandle::abort);
    underlay.stop();
    tokio::task::spawn_blocking(move || host.stop()).await?;
    let _ = std::fs::remove_file(&config.socket);
    Ok(())
}

/// The signals that the daemon reacts to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn register() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

fn agent_config(config: &Config) -> anyhow::Result<AgentConfig> {
    let source = match (&config.controller, &config.state_file) {
        (Some(addresses), _) => Source::Controller {
            addresses: addresses.all().to_vec(),
            tls: config.tls.clone(),
            state_directory: config.state_directory.clone(),
        },
        (None, Some(file)) => Source::File(file.clone()),
        (None, None) => anyhow::bail!("neither controller nor state_file is set"),
    };
    Ok(AgentConfig {
        host: config.host.clone(),
        capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
        limits: config.limits.told(),
        source,
    })
}

/// Starts what runs beside the daemon's loop: the node service, the growth of the session table, the metadata service, the probes of
/// gateway hosts, the health checks of load balancers' members, what packets ask the controller for, the multicast querier, what finds
/// out who holds virtual addresses, and DNS for guests.
fn spawn_tasks(
    config: &Config,
    host: &Arc<Host>,
    agent: &Arc<AgentHandle>,
) -> anyhow::Result<Vec<AbortHandle>> {
    let listener = listen(&config.socket)?;
    let service = NodeService {
        host: Arc::clone(host),
        agent: Arc::clone(agent),
    };
    let server = tonic::transport::Server::builder()
        .add_service(NodeServer::new(service))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let server = tokio::spawn(server).abort_handle();
    let preparing = prepare_sessions(Arc::clone(&host.shared.sessions));
    let preparing = tokio::spawn(preparing).abort_handle();
    let metadata = host.metadata.as_ref().map(Arc::clone);
    let metadata = metadata.map(|service| tokio::spawn(service.run()).abort_handle());
    let probing = tokio::spawn(follow_probes(Arc::clone(host))).abort_handle();
    let learning = learning::follow(Arc::clone(host), Arc::clone(agent));
    let learning = tokio::spawn(learning).abort_handle();
    let health = Arc::clone(&host.health);
    let health = health.run(config.host.clone(), Arc::clone(agent));
    let health = tokio::spawn(health).abort_handle();
    let dns = Arc::clone(&host.dns).run(Arc::clone(agent));
    let dns = tokio::spawn(dns).abort_handle();
    let multicast = multicast::follow(Arc::clone(host), Arc::clone(agent));
    let multicast = tokio::spawn(multicast).abort_handle();
    let holders = holders::follow(Arc::clone(host), Arc::clone(agent));
    let holders = tokio::spawn(holders).abort_handle();
    let tasks = [
        server, preparing, probing, learning, health, multicast, holders, dns,
    ];
    Ok(tasks.into_iter().chain(metadata).collect())
}

/// Has the host judge by which gateway hosts live, whenever that changes.
async fn follow_probes(host: Arc<Host>) {
    /// A stop of the daemon is noticed after so long.
    const WAIT: Duration = Duration::from_secs(1);
    let mut changes = 0;
    loop {
        let host = Arc::clone(&host);
        let seen = tokio::task::spawn_blocking(move || {
            let liveness = host.shared.probes.wait(changes, WAIT);
            if liveness.changes != changes {
                host.set_liveness(&liveness);
            }
            liveness.changes
        });
        match seen.await {
            Ok(seen) => changes = seen,
            Err(_) => return,
        }
    }
}

/// Reserves memory for sessions ahead of use, again and again.
async fn prepare_sessions(sessions: Arc<SessionTable>) {
    let mut interval = tokio::time::interval(PREPARE_EVERY);
    loop {
        interval.tick().await;
        let sessions = Arc::clone(&sessions);
        let prepared = tokio::task::spawn_blocking(move || sessions.prepare());
        if prepared.await.is_err() {
            return;
        }
    }
}

/// The daemon's loop: follows the underlay, the state, the devices and the signals, until a signal says to stop.
async fn watch(
    path: &Path,
    (host, agent, underlay): (&Arc<Host>, &AgentHandle, &Underlay),
    signals: &mut Signals,
    supervisor: &mut Supervisor,
) -> anyhow::Result<()> {
    let mut adjacencies = underlay.adjacencies();
    let mut links_up = underlay.links_up();
    links_up.mark_changed();
    let mut states = agent.watch();
    host.watch_peers();
    let mut settle = tokio::time::interval(SETTLE);
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            _ = signals.hangup.recv() => reload(path, host, agent).await,
            changed = adjacencies.changed() => {
                if changed.is_err() {
                    anyhow::bail!("the watcher of the underlay ended");
                }
                let now = adjacencies.borrow_and_update().clone();
                let host = Arc::clone(host);
                tokio::task::spawn_blocking(move || host.set_adjacencies(&now)).await?;
            }
            changed = links_up.changed() => {
                if changed.is_err() {
                    anyhow::bail!("the watcher of the underlay ended");
                }
                let now = links_up.borrow_and_update().clone();
                let host = Arc::clone(host);
                tokio::task::spawn_blocking(move || host.set_links_up(now)).await?;
            }
            changed = states.changed() => {
                if changed.is_err() {
                    anyhow::bail!("the agent ended");
                }
                states.mark_unchanged();
                host.watch_peers();
            }
            _ = settle.tick() => settle_devices(host, agent, supervisor).await?,
        }
    }
}

/// Opens and closes devices that have come or gone, reports their ports, and tells the service manager that all workers run.
async fn settle_devices(
    host: &Arc<Host>,
    agent: &AgentHandle,
    supervisor: &mut Supervisor,
) -> anyhow::Result<()> {
    let host = Arc::clone(host);
    let look = move || {
        let (up, down) = host.settle_devices();
        let all_move = host.inner().workers.all_move();
        (up, down, host.port_conditions(), all_move)
    };
    let (up, down, conditions, all_move) = tokio::task::spawn_blocking(look).await?;
    report(agent, "port_up", up);
    report(agent, "port_down", down);
    agent.set_ports(conditions.into_iter());
    // A worker that stays stuck is for the service manager to cure, by a restart.
    if all_move {
        supervisor.well();
    }
    Ok(())
}

fn report(agent: &AgentHandle, kind: &str, ports: Vec<String>) {
    for id in ports {
        let object = Some(ObjectKey {
            kind: "port".to_owned(),
            id,
        });
        agent.report(Event {
            session: 0,
            kind: kind.to_owned(),
            object,
            text: String::new(),
        });
    }
}

/// The local socket, for its owner and group only. One that a dead daemon left behind is taken over; a live one's is not.
fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        anyhow::bail!("another weftd answers at {}", socket.display());
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context(format!("cannot replace {}", socket.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket)
        .with_context(|| format!("cannot listen at {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// SIGHUP: applies settings that can change live, and logs that others need a restart.
async fn reload(path: &Path, host: &Host, agent: &AgentHandle) {
    match Config::read(path) {
        Ok(config) => {
            let inner = host.inner();
            let common = inner.workers.common();
            common.timeouts.store(Arc::new(config.timeouts()));
            common
                .spin
                .store(config.workers.spin, std::sync::atomic::Ordering::Relaxed);
            tracing::info!(
                "session idle times and idle mode reloaded; other settings need a restart"
            );
        }
        Err(error) => {
            tracing::error!(%error, "cannot reload the configuration; the old one stays in force");
        }
    }
    if agent.status().connection == agent::Connection::File {
        match agent.reload().await {
            Ok(revision) => tracing::info!(revision, "state file reloaded"),
            Err(error) => {
                tracing::error!(%error, "cannot reload the state file; the old state stays in force");
            }
        }
    }
}
