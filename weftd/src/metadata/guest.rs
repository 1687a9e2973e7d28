//! The metadata service as a server of guests: HTTP on each connection.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Service, Tally};
use crate::guest::{Endpoint, Identity, Server, Stream};
use weft_dataplane::packet::metadata;
use weft_dataplane::packet::{DropReason, Family};
use weft_dataplane::worker::service::Injector;

/// How long a guest may take to send the head of a request, the time between two requests included.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection takes requests.
const LIFE: Duration = Duration::from_secs(60);
/// How long what is under way may take after that.
const REST: Duration = Duration::from_secs(30);
/// Bytes of the head of a request, and lines of it.
const HEAD_SIZE: usize = 16 * 1024;
const HEAD_LINES: usize = 64;

impl Server for Service {
    fn injector(&self) -> &Injector {
        &self.injector
    }

    fn shared(&self) -> &Arc<Semaphore> {
        &self.shared
    }

    fn endpoint(&self, _: &Identity) -> Endpoint {
        Endpoint {
            addresses: vec![metadata::IPV4.into(), metadata::IPV6.into()],
            port: metadata::PORT,
        }
    }

    fn full(&self) -> DropReason {
        DropReason::MetadataFull
    }

    fn count(&self, accepted: u64, refused: u64) {
        Tally::add(&self.tally.connections, accepted);
        Tally::add(&self.tally.refused, refused);
    }

    async fn serve(self: Arc<Self>, identity: Identity, stream: Stream, family: Family) {
        let proxy = &self.proxy;
        let identity = &identity;
        let answer = service_fn(move |request| async move {
            Ok::<_, Infallible>(proxy.answer(identity, family, request).await)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_header_size(HEAD_SIZE)
            .max_headers(HEAD_LINES)
            .half_close(true)
            .serve_connection(TokioIo::new(stream), answer);
        let mut connection = pin!(connection);
        let ended = timeout(LIFE, connection.as_mut()).await;
        if ended.is_err() {
            connection.as_mut().graceful_shutdown();
            let _ = timeout(REST, connection).await;
        }
    }
}
