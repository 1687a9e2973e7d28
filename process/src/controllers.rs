//! A client's way to one of several controllers: to the next where one does not answer, and with a change to the one that writes.
//!
//! A controller that does not write refuses a change and says which one does ([`WRITER`]): the change was not made, and is sent there. A change whose
//! answer got lost is not sent again, since it may have been made; reading is tried at the next controller.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use prost::bytes::Bytes;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::transport::Channel;

use crate::tls::TlsFiles;
use crate::transport::{TransportError, connect, innermost};

/// The metadata of a refusal by a controller that does not write: the address of the one that does; empty when there is none at the moment.
pub const WRITER: &str = "weft-writer";

/// How long a change waits for a controller that writes: longer than it takes until another has taken over.
const TAKE_OVER: Duration = Duration::from_secs(10);
/// Between two questions who writes.
const PAUSE: Duration = Duration::from_millis(100);

/// Why there is no way to a controller.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ControllersError {
    #[error("no address of a controller is given")]
    None,
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// The controllers at some addresses, as one. Copies share their connections.
#[derive(Debug, Clone)]
pub struct Controllers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    addresses: Vec<String>,
    tls: Option<TlsFiles>,
    channels: Mutex<HashMap<String, Channel>>,
    /// The address that answered last.
    current: AtomicUsize,
}

impl Controllers {
    /// Connects to the first that answers.
    ///
    /// # Errors
    /// A text is no address, or none answers.
    pub async fn connect(
        addresses: Vec<String>,
        tls: Option<TlsFiles>,
    ) -> Result<Self, ControllersError> {
        let inner = Arc::new(Inner {
            addresses,
            tls,
            channels: Mutex::default(),
            current: AtomicUsize::new(0),
        });
        inner.any().await?;
        Ok(Self { inner })
    }
}

impl Inner {
    /// A connection to an address, there already or made now.
    async fn channel(&self, address: &str) -> Result<Channel, TransportError> {
        let known = self.channels().get(address).cloned();
        if let Some(channel) = known {
            return Ok(channel);
        }
        let channel = connect(address, self.tls.as_ref()).await?;
        self.channels().insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// A connection to the first that answers, from the one that answered last on, and its address.
    async fn any(&self) -> Result<(Channel, String), ControllersError> {
        let mut failure = ControllersError::None;
        let first = self.current.load(Ordering::Relaxed);
        let count = self.addresses.len();
        for at in first..first + count {
            let address = &self.addresses[at % count];
            match self.channel(address).await {
                Ok(channel) => {
                    self.current.store(at % count, Ordering::Relaxed);
                    return Ok((channel, address.clone()));
                }
                Err(error) => failure = error.into(),
            }
        }
        Err(failure)
    }

    /// The writer that a controller names, if there is a way to it; else any.
    async fn hinted(&self, hint: &str) -> Result<(Channel, String), ControllersError> {
        // A path of the controller's machine may be another thing here.
        let is_ours = self.addresses.iter().any(|own| own == hint);
        if (is_ours || hint.starts_with("http"))
            && let Ok(channel) = self.channel(hint).await
        {
            return Ok((channel, hint.to_owned()));
        }
        self.any().await
    }

    async fn call(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let (parts, body) = request.into_parts();
        // All requests are single messages.
        let body = body.collect().await?.to_bytes();
        let reads = is_reading(parts.uri.path());
        let end = Instant::now() + TAKE_OVER;
        let unreachable = |error: ControllersError| Status::unavailable(error.to_string());
        let (mut channel, mut address) = self.any().await.map_err(unreachable)?;
        let mut failures = 0;
        loop {
            let request = again(&parts, body.clone());
            std::future::poll_fn(|context| channel.poll_ready(context))
                .await
                .map_err(|error| Status::from_error(Box::new(error)))?;
            let answer = match channel.call(request).await {
                Ok(answer) => answer,
                Err(error) => {
                    self.channels().remove(&address);
                    failures += 1;
                    if !reads || failures > self.addresses.len() {
                        return Err(unanswered(&address, reads, &error));
                    }
                    self.current.fetch_add(1, Ordering::Relaxed);
                    (channel, address) = self.any().await.map_err(unreachable)?;
                    continue;
                }
            };
            let hint = answer.headers().get(WRITER);
            let Some(hint) = hint.and_then(|hint| hint.to_str().ok()) else {
                return Ok(answer);
            };
            if Instant::now() >= end {
                return Ok(answer);
            }
            if hint.is_empty() || hint == address {
                tokio::time::sleep(PAUSE).await;
                self.current.fetch_add(1, Ordering::Relaxed);
                (channel, address) = self.any().await.map_err(unreachable)?;
            } else {
                let hinted = self.hinted(hint).await;
                let (next, at) = hinted.map_err(unreachable)?;
                if at == address {
                    // There is no way to the writer from here.
                    tokio::time::sleep(PAUSE).await;
                    self.current.fetch_add(1, Ordering::Relaxed);
                }
                (channel, address) = (next, at);
            }
        }
    }

    fn channels(&self) -> std::sync::MutexGuard<'_, HashMap<String, Channel>> {
        // Whole after any panic.
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn again(parts: &http::request::Parts, body: Bytes) -> http::Request<Body> {
    http::Request::from_parts(parts.clone(), Body::new(Full::new(body)))
}

fn unanswered(address: &str, reads: bool, error: &tonic::transport::Error) -> Status {
    let reason = innermost(error);
    let doubt = if reads {
        ""
    } else {
        "; whether the change was made is not known"
    };
    Status::unavailable(format!("{address} did not answer: {reason}{doubt}"))
}

/// Whether a method changes nothing.
fn is_reading(path: &str) -> bool {
    let method = path.rsplit('/').next().unwrap_or_default();
    method == "Get" || method.starts_with("List")
}

impl Service<http::Request<Body>> for Controllers {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move { inner.call(request).await })
    }
}
