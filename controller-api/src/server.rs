//! The controller as a running server.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use weft_process::services::host_control_server::HostControlServer;
use weft_process::services::intent_server::IntentServer;
use weft_process::tls::ServerTls;
use weft_process::transport::{self, Listener, MAX_MESSAGE, TransportError};

use crate::admission::{Admission, AdmissionConfig, Admitting};
use crate::api::Api;
use crate::cluster::{Cluster, Membership};
use crate::hosts::{Control, Hosts};
use crate::intent::Intent;

/// How long a stop waits for calls to end before it cuts them off.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// How a controller serves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Serving {
    /// For how long a port that moved is sent on by its old host.
    pub move_grace: Duration,
    /// How much each caller may ask for.
    pub admission: AdmissionConfig,
}

impl From<Duration> for Serving {
    /// With this grace time of moves, and otherwise by default.
    fn from(move_grace: Duration) -> Self {
        Self {
            move_grace,
            ..Self::default()
        }
    }
}

/// Serves the intent API and the host protocol, and ends moves of ports after their grace time, until `stop` is ready; then ends the hosts' streams and lets other calls finish.
///
/// # Errors
/// The transport's.
pub async fn serve(
    intent: Arc<Intent>,
    listener: Listener,
    tls: Option<Arc<ServerTls>>,
    serving: impl Into<Serving>,
    stop: impl Future<Output = ()>,
) -> Result<(), TransportError> {
    serve_shared(intent, None, listener, tls, serving, stop).await
}

/// The same, as one of several controllers that share a store.
///
/// # Errors
/// The transport's.
pub async fn serve_shared(
    intent: Arc<Intent>,
    membership: Option<Membership>,
    listener: Listener,
    tls: Option<Arc<ServerTls>>,
    serving: impl Into<Serving>,
    stop: impl Future<Output = ()>,
) -> Result<(), TransportError> {
    let Serving {
        move_grace,
        admission,
    } = serving.into();
    let hosts = Arc::new(Hosts::new(&intent));
    let cluster = membership.map(|it| Cluster::join(it, &intent, &hosts));
    let (stopping, watched) = watch::channel(false);
    let moves = crate::moves::end_in_time(Arc::clone(&intent), move_grace);
    let ports = crate::ports::follow(Arc::clone(&intent), Arc::clone(&hosts));
    let peerings = crate::peering::finish(Arc::clone(&intent), Arc::clone(&hosts));
    let control = Control {
        intent: intent.clone(),
        hosts: hosts.clone(),
        stopping: watched.clone(),
    };
    let admission = Arc::new(Admission::new(&admission));
    let api = Api::new(
        Arc::clone(&intent),
        hosts,
        Arc::clone(&admission),
        watched.clone(),
    );
    let api = IntentServer::new(api).max_decoding_message_size(MAX_MESSAGE);
    let router = transport::server()
        .add_service(Admitting::new(api, admission, intent))
        .add_service(HostControlServer::new(control).max_decoding_message_size(MAX_MESSAGE));
    let mut drained = watched.clone();
    let (left, has_left) = oneshot::channel();
    let mut leaving = watched.clone();
    // Not one of the runtime's threads, which it waits for: the store may not answer. At once, since calls that are slow to end write nothing.
    let leave = async move {
        if let Some(cluster) = cluster {
            // The sender outlasts the server.
            let _ = leaving.wait_for(|stopping| *stopping).await;
            std::thread::spawn(move || {
                cluster.leave();
                let _ = left.send(());
            });
            let _ = tokio::time::timeout(STOP_DEADLINE, has_left).await;
        }
    };
    let leave = tokio::spawn(leave);
    let served = transport::serve(router, listener, tls, async {
        stop.await;
        stopping.send_replace(true);
    });
    let result = tokio::select! {
        result = served => result,
        () = moves => Ok(()),
        () = peerings => Ok(()),
        () = ports => Ok(()),
        () = async {
            // The sender lives in the other branch and outlasts this one.
            let _ = drained.wait_for(|stopping| *stopping).await;
            tokio::time::sleep(STOP_DEADLINE).await;
        } => Ok(()),
    };
    // Also where it ended by itself.
    stopping.send_replace(true);
    let _ = leave.await;
    result
}
