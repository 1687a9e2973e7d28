//! A client's way to one of several controllers: to the next where one does not answer, and with a change to the one that writes.
//!
//! A controller that does not write refuses a change and says which one does ([`WRITER`]): the change was not made, and is sent there. A change whose
//! answer got lost is not sent again, since it may have been made; reading is tried at the next controller.
//!
//! A call that is refused for asking too much, with a hint when to try again ([`RETRY_AFTER`]), is sent again then: nothing of it was done.

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

/// The metadata of a refusal for asking too much: after how many milliseconds to try again. Nothing of the call was done.
pub const RETRY_AFTER: &str = "retry-after-ms";

/// How long a change waits for a controller that writes: longer than it takes until another has taken over.
const TAKE_OVER: Duration = Duration::from_secs(10);
/// How long a call waits, all in all, to be admitted.
const ADMISSION: Duration = Duration::from_secs(60);
/// Each wait for that is at least so much longer than the one before, which bounds their number.
const LONGER: Duration = Duration::from_millis(10);
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
    tell: fn(&str),
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
        let tell = |_: &str| {};
        Ok(Self { inner, tell })
    }

    /// The same, which tells why a call waits to be admitted, each time that one does.
    #[must_use]
    pub fn telling(self, tell: fn(&str)) -> Self {
        Self { tell, ..self }
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

    async fn call(
        &self,
        request: http::Request<Body>,
        tell: fn(&str),
    ) -> Result<http::Response<Body>, Status> {
        let (parts, body) = request.into_parts();
        // All requests are single messages.
        let body = body.collect().await?.to_bytes();
        let reads = is_reading(parts.uri.path());
        let mut patience = Patience::from(Instant::now());
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
            if let Some(wait) = patience.wait(answer.headers()) {
                let status = Status::from_header_map(answer.headers());
                tell(status.as_ref().map_or("", Status::message));
                tokio::time::sleep(wait).await;
                continue;
            }
            let hint = answer.headers().get(WRITER);
            let Some(hint) = hint.and_then(|hint| hint.to_str().ok()) else {
                return Ok(answer);
            };
            if !patience.looks_for_writer(Instant::now()) {
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

/// How long a call has waited to be admitted, and how long it waits for a controller that writes.
#[derive(Debug)]
struct Patience {
    start: Instant,
    waits: u32,
    waited: Duration,
}

impl Patience {
    /// That of a call that begins then.
    fn from(start: Instant) -> Self {
        Self {
            start,
            waits: 0,
            waited: Duration::ZERO,
        }
    }

    /// Whether a controller that writes is still waited for. The time that passed until the call was admitted does not count.
    fn looks_for_writer(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.start) < TAKE_OVER.saturating_add(self.waited)
    }

    /// How long to wait before the call is sent again; none: its answer is not that it may be, or it would take too long.
    fn wait(&mut self, headers: &http::HeaderMap) -> Option<Duration> {
        let hint = headers.get(RETRY_AFTER)?.to_str().ok()?;
        let hint = Duration::from_millis(hint.parse().ok()?);
        self.waits += 1;
        let wait = hint.max(LONGER.saturating_mul(self.waits));
        self.waited = self.waited.saturating_add(wait);
        (self.waited <= ADMISSION).then_some(wait)
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
        let (inner, tell) = (Arc::clone(&self.inner), self.tell);
        Box::pin(async move { inner.call(request, tell).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_waits_as_long_as_it_is_told_and_not_for_ever() {
        let headers = |hint: &str| {
            let mut headers = http::HeaderMap::new();
            headers.insert(RETRY_AFTER, hint.parse().unwrap());
            headers
        };
        let new = || Patience::from(Instant::now());
        let mut patience = new();
        assert_eq!(patience.wait(&http::HeaderMap::new()), None);
        for bad in ["", "-1", "soon", "99999999999999999999999"] {
            assert_eq!(patience.wait(&headers(bad)), None, "{bad}");
        }
        let told = Duration::from_millis(1500);
        assert_eq!(patience.wait(&headers("1500")), Some(told));
        // However short the hint, it ends.
        let waits = std::iter::from_fn(|| patience.wait(&headers("0"))).count();
        assert!((50..200).contains(&waits), "{waits}");
        assert_eq!(new().wait(&headers("60001")), None);
        let never = u64::MAX.to_string();
        assert_eq!(new().wait(&headers(&never)), None);
    }

    #[test]
    fn the_writer_is_looked_for_after_a_long_wait_to_be_admitted_too() {
        let start = Instant::now();
        let mut patience = Patience::from(start);
        let late = start + Duration::from_secs(45);
        assert!(patience.looks_for_writer(start) && !patience.looks_for_writer(late));
        let mut headers = http::HeaderMap::new();
        headers.insert(RETRY_AFTER, "44000".parse().unwrap());
        assert!(patience.wait(&headers).is_some());
        assert!(patience.looks_for_writer(late));
        assert!(!patience.looks_for_writer(late + TAKE_OVER));
    }
}
