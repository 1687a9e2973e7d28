//! Where weft's services are served and reached: `HOST:PORT` over TCP, or `unix:/path`.
//!
//! The controller and the daemon serve through here, the agent and the command line connect through here, so that keep-alive and
//! message sizes agree at both ends.

use std::future::Future;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::Router;
use tonic::transport::{Channel, Endpoint, Server};

/// The largest message either end accepts: the state of a large host, whole.
pub const MAX_MESSAGE: usize = 256 << 20;

/// A peer that has not answered a ping of this period within [`KEEPALIVE_TIMEOUT`] is gone.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How long a ping may stay unanswered.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an address cannot be served at or reached.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TransportError {
    #[error("cannot listen at {address}: {reason}")]
    Bind { address: String, reason: io::Error },
    #[error("'{0}' is no address: HOST:PORT, http://HOST:PORT or unix:/path")]
    Address(String),
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
    /// Listens at `HOST:PORT` or `unix:/path`. A socket file that nobody serves any more is replaced.
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

/// Serves until `stop` is ready and the calls then open have ended.
///
/// # Errors
/// The transport's.
pub async fn serve(
    router: Router,
    listener: Listener,
    stop: impl Future<Output = ()>,
) -> Result<(), TransportError> {
    match listener {
        Listener::Tcp(listener) => {
            // Deltas are small: waiting to fill a segment would only delay them.
            let incoming =
                tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            router.serve_with_incoming_shutdown(incoming, stop).await?;
        }
        Listener::Unix(listener, path) => {
            let incoming = UnixListenerStream::new(listener);
            let served = router.serve_with_incoming_shutdown(incoming, stop).await;
            // Another may have replaced it already; nothing is lost when it is not there.
            let _ = std::fs::remove_file(path);
            served?;
        }
    }
    Ok(())
}

/// An end point of `HOST:PORT`, `http://HOST:PORT` or `unix:/path`, with keep-alive.
///
/// # Errors
/// The text is no address.
pub fn endpoint(address: &str) -> Result<Endpoint, TransportError> {
    let uri = if address.contains("://") || address.starts_with("unix:") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    let endpoint =
        Endpoint::from_shared(uri).map_err(|_| TransportError::Address(address.to_owned()))?;
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
/// The text is no address, or nobody answers there.
pub async fn connect(address: &str) -> Result<Channel, TransportError> {
    endpoint(address)?
        .connect()
        .await
        .map_err(|error| TransportError::Connect {
            address: address.to_owned(),
            reason: innermost(&error),
        })
}

/// The error at the bottom: "transport error" alone tells nobody anything.
pub fn innermost(mut error: &dyn std::error::Error) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
