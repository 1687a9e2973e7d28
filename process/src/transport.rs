//! Listening and connecting: `HOST:PORT` over TCP, with TLS or without, or `unix:/path`.
//!
//! Servers (controller, daemon) and clients (agent, command line) both use this module, so that keep-alive and message sizes agree.

use std::future::Future;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::server::Router;
use tonic::transport::{Channel, Endpoint, Server};

use crate::tls::{ServerTls, TlsError, TlsFiles};

/// The largest message either end accepts: the state of a large host, whole.
pub const MAX_MESSAGE: usize = 256 << 20;

/// A peer that has not answered a ping of this period within [`KEEPALIVE_TIMEOUT`] is gone.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How long a ping may stay unanswered.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that may be shaking hands at a time; more wait in the kernel's queue.
const HANDSHAKES: usize = 64;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long to wait when the kernel has no connection for us, but an error.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why an address cannot be served at or reached.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TransportError {
    #[error("cannot listen at {address}: {reason}")]
    Bind { address: String, reason: io::Error },
    #[error(
        "'{0}' is not an address: use HOST:PORT, http://HOST:PORT, https://HOST:PORT or unix:/path"
    )]
    Address(String),
    #[error("{0}: https:// needs certificates, and certificates need https://")]
    Certificates(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot reach {address}: {reason}")]
    Connect { address: String, reason: String },
    #[error(transparent)]
    Serve(#[from] tonic::transport::Error),
}

/// A bound listening socket.
#[derive(Debug)]
pub enum Listener {
    /// Listening over TCP.
    Tcp(TcpListener),
    /// Listening at a path, which is removed when serving ends.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens at `HOST:PORT` or `unix:/path`. A stale socket file is replaced.
    ///
    /// # Errors
    /// The address is taken or not ours to use.
    pub async fn bind(address: &str) -> Result<Self, TransportError> {
        let bound = match unix_path(address) {
            Some(path) => bind_unix(path).await,
            None => TcpListener::bind(address).await.map(Self::Tcp),
        };
        bound.map_err(|reason| TransportError::Bind {
            address: address.to_owned(),
            reason,
        })
    }

    /// Where it listens, in the form that [`connect`] takes.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn address(&self) -> io::Result<String> {
        match self {
            Self::Tcp(listener) => Ok(format!("http://{}", listener.local_addr()?)),
            Self::Unix(_, path) => Ok(format!("unix:{}", path.display())),
        }
    }
}

async fn bind_unix(path: &Path) -> io::Result<Listener> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if is_socket && UnixStream::connect(path).await.is_err() {
        std::fs::remove_file(path)?;
    }
    Ok(Listener::Unix(UnixListener::bind(path)?, path.to_owned()))
}

fn unix_path(address: &str) -> Option<&Path> {
    let path = address.strip_prefix("unix:")?;
    Some(Path::new(path.strip_prefix("//").unwrap_or(path)))
}

/// A server that notices dead peers; add services to it, then [`serve`].
pub fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .tcp_nodelay(true)
}

/// Serves until `stop` is ready and the calls then open have ended. `tls` is for TCP; a unix socket has its file's permissions.
///
/// # Errors
/// The transport's.
pub async fn serve(
    router: Router,
    listener: Listener,
    tls: Option<Arc<ServerTls>>,
    stop: impl Future<Output = ()>,
) -> Result<(), TransportError> {
    match (listener, tls) {
        (Listener::Tcp(listener), Some(tls)) => {
            let incoming = secured(listener, tls);
            router.serve_with_incoming_shutdown(incoming, stop).await?;
        }
        (Listener::Tcp(listener), None) => {
            // Deltas are small: waiting to fill a segment would only delay them.
            let incoming =
                tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            router.serve_with_incoming_shutdown(incoming, stop).await?;
        }
        (Listener::Unix(listener, path), _) => {
            let incoming = UnixListenerStream::new(listener);
            let served = router.serve_with_incoming_shutdown(incoming, stop).await;
            // Another may have replaced it already; nothing is lost when it is not there.
            let _ = std::fs::remove_file(path);
            served?;
        }
    }
    Ok(())
}

/// Accepts connections with a valid certificate. A slow handshake does not delay others.
fn secured(
    listener: TcpListener,
    tls: Arc<ServerTls>,
) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
    let (sender, receiver) = mpsc::channel(HANDSHAKES);
    let slots = Arc::new(Semaphore::new(HANDSHAKES));
    tokio::spawn(async move {
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "no connection is accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let acceptor = TlsAcceptor::from(tls.current());
            let sender = sender.clone();
            tokio::spawn(async move {
                let _slot = slot;
                // Deltas are small: waiting to fill a segment would only delay them.
                let _ = stream.set_nodelay(true);
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    // There is no receiver when serving has ended.
                    Ok(Ok(stream)) => drop(sender.send(Ok(stream)).await),
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "refused"),
                    Err(_) => tracing::debug!(%peer, "gave up on its handshake"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

/// An end point of `HOST:PORT`, `http://HOST:PORT`, `https://HOST:PORT` or `unix:/path`, with keep-alive. With certificates `HOST:PORT` means
/// `https://HOST:PORT`, and the server's certificate has to name HOST.
///
/// # Errors
/// The text is no address, or the certificates cannot be used, or one of them goes without the other.
pub fn endpoint(address: &str, tls: Option<&TlsFiles>) -> Result<Endpoint, TransportError> {
    let uri = if address.contains("://") || address.starts_with("unix:") {
        address.to_owned()
    } else if tls.is_some() {
        format!("https://{address}")
    } else {
        format!("http://{address}")
    };
    if unix_path(address).is_none() && uri.starts_with("https://") != tls.is_some() {
        return Err(TransportError::Certificates(address.to_owned()));
    }
    let tls = tls.filter(|_| unix_path(address).is_none());
    let endpoint =
        Endpoint::from_shared(uri).map_err(|_| TransportError::Address(address.to_owned()))?;
    let endpoint = match tls {
        Some(files) => endpoint.tls_config(files.client()?)?,
        None => endpoint,
    };
    Ok(endpoint
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// Connects to what listens at an address.
///
/// # Errors
/// The text is not an address, or there is no answer.
pub async fn connect(address: &str, tls: Option<&TlsFiles>) -> Result<Channel, TransportError> {
    endpoint(address, tls)?
        .connect()
        .await
        .map_err(|error| TransportError::Connect {
            address: address.to_owned(),
            reason: innermost(&error),
        })
}

/// The root cause: "transport error" alone does not help.
pub fn innermost(mut error: &dyn std::error::Error) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
