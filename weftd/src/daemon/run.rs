//! weftd from start to stop.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use weft_process::services::node_server::NodeServer;
use weft_process::supervisor::Supervisor;
use weft_proto::v1::{Event, ObjectKey};

use super::config::Config;
use super::host::Host;
use super::node::NodeService;
use super::resources::Resources;
use crate::agent::{self, AgentConfig, AgentHandle, Source};
use crate::underlay::Underlay;
use weft_dataplane::session::table::PREPARE_EVERY;

/// How often devices of ports are looked for.
const SETTLE: Duration = Duration::from_millis(250);

/// Runs the daemon until it is stopped.
///
/// # Errors
/// What keeps it from starting, with the remedy where there is one.
pub async fn run(path: &Path, config: Config, resources: Resources) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let underlay = Arc::new(Underlay::start()?);
    let host = Arc::new(Host::new(&config, resources, Arc::clone(&underlay))?);
    let source = match (&config.controller, &config.state_file) {
        (Some(address), _) => Source::Controller {
            address: address.clone(),
            tls: config.tls.clone(),
            state_directory: config.state_directory.clone(),
        },
        (None, Some(file)) => Source::File(file.clone()),
        (None, None) => anyhow::bail!("neither controller nor state_file is set"),
    };
    let capabilities = [
        "vxlan",
        "gre",
        "netdev",
        "tap",
        "vhost-user",
        "dhcp",
        "rate_limits",
    ]
    .map(str::to_owned)
    .to_vec();
    let agent_config = AgentConfig {
        host: config.host.clone(),
        capabilities,
        source,
    };
    let agent = Arc::new(agent::start(agent_config, Arc::clone(&host)).await?);
    let listener = listen(&config.socket)?;
    let service = NodeService {
        host: Arc::clone(&host),
        agent: Arc::clone(&agent),
    };
    let server = tonic::transport::Server::builder()
        .add_service(NodeServer::new(service))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let server = tokio::spawn(server);
    let sessions = Arc::clone(&host.shared.sessions);
    let preparing = tokio::spawn(async move {
        let mut interval = tokio::time::interval(PREPARE_EVERY);
        loop {
            interval.tick().await;
            let sessions = Arc::clone(&sessions);
            if tokio::task::spawn_blocking(move || sessions.prepare())
                .await
                .is_err()
            {
                return;
            }
        }
    });
    let metadata = host
        .metadata
        .as_ref()
        .map(|service| tokio::spawn(Arc::clone(service).run()));
    tracing::info!(host = %config.host, socket = %config.socket.display(), "weftd is ready");
    let mut supervisor = Supervisor::from_environment();
    supervisor.ready();

    let mut adjacencies = underlay.adjacencies();
    let mut states = agent.watch();
    host.watch_peers();
    let mut settle = tokio::time::interval(SETTLE);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => reload(path, &host, &agent).await,
            changed = adjacencies.changed() => {
                if changed.is_err() {
                    anyhow::bail!("the watcher of the underlay ended");
                }
                let now = adjacencies.borrow_and_update().clone();
                let host = Arc::clone(&host);
                tokio::task::spawn_blocking(move || host.set_adjacencies(&now)).await?;
            }
            changed = states.changed() => {
                if changed.is_err() {
                    anyhow::bail!("the agent ended");
                }
                states.mark_unchanged();
                host.watch_peers();
            }
            _ = settle.tick() => {
                let looking = Arc::clone(&host);
                let look = move || (looking.settle_devices(), looking.inner().workers.all_move());
                let ((up, down), all_move) = tokio::task::spawn_blocking(look).await?;
                report(&agent, "port_up", up);
                report(&agent, "port_down", down);
                // A worker that stays stuck is for the service manager to cure, by a restart.
                if all_move {
                    supervisor.well();
                }
            }
        }
    }
    tracing::info!("stopping");
    supervisor.stopping();
    server.abort();
    preparing.abort();
    if let Some(metadata) = metadata {
        metadata.abort();
    }
    underlay.stop();
    let stopping = Arc::clone(&host);
    tokio::task::spawn_blocking(move || stopping.stop()).await?;
    let _ = std::fs::remove_file(&config.socket);
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
