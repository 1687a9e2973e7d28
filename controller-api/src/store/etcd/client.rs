//! Calls of etcd: each has a time limit, and is made again at the next member when a member does not answer.
//!
//! Every call may be made twice: reads change nothing, transactions that write are guarded by what they expect, and a lease that was granted twice
//! runs out. The calls block, and run on threads of the store's own, so that they work from any thread that may block.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};
use tonic::transport::Channel;
use tonic::{Code, Status};
use weft_process::tls::TlsFiles;
use weft_process::transport;

use super::api::kv_client::KvClient;
use super::api::lease_client::LeaseClient;
use super::api::watch_client::WatchClient;
use super::api::{
    CompactionRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, RangeRequest,
    RangeResponse, TxnRequest, TxnResponse,
};
use crate::store::StoreError;

const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
const CALL_DEADLINE: Duration = Duration::from_secs(2);
/// Between two rounds over all members.
const PAUSE: Duration = Duration::from_millis(100);
/// How often each member is asked before a call fails.
const ROUNDS: usize = 3;
/// More often makes etcd close the connection.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// The largest answer: a page of rows, or of the log.
const MAX_ANSWER: usize = 1 << 30;

/// The members of an etcd cluster.
#[derive(Debug)]
pub(super) struct Client {
    /// There until the client is dropped.
    runtime: Option<Runtime>,
    members: Vec<Channel>,
    /// The member that answered last.
    current: AtomicUsize,
    names: String,
}

impl Client {
    /// A client of these members, none of which is called yet.
    pub(super) fn new(endpoints: &[String], tls: Option<&TlsFiles>) -> Result<Self, StoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("etcd")
            .enable_all()
            .build()
            .map_err(|error| StoreError::Etcd(format!("cannot start threads: {error}")))?;
        let entered = runtime.enter();
        let members: Result<Vec<Channel>, StoreError> = endpoints
            .iter()
            .map(|address| {
                let unusable = |error: transport::TransportError| {
                    StoreError::Etcd(format!("store.endpoints: {error}"))
                };
                let endpoint = transport::endpoint(address, tls).map_err(unusable)?;
                Ok(endpoint
                    .connect_timeout(CONNECT_DEADLINE)
                    .http2_keep_alive_interval(KEEPALIVE)
                    .keep_alive_while_idle(false)
                    .connect_lazy())
            })
            .collect();
        drop(entered);
        Ok(Self {
            runtime: Some(runtime),
            current: AtomicUsize::new(rand::random_range(0..endpoints.len().max(1))),
            members: members?,
            names: endpoints.join(", "),
        })
    }

    /// Where tasks of the store run.
    pub(super) fn handle(&self) -> &Handle {
        // Taken by `drop` alone.
        #[allow(clippy::unwrap_used)]
        self.runtime.as_ref().unwrap().handle()
    }

    /// Reads keys.
    pub(super) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, StoreError> {
        let call = self.call(|channel| {
            let request = request.clone();
            async move { kv(channel).range(request).await }
        });
        self.wait(call)
    }

    /// Runs a transaction. One that writes has to be guarded, so that it does nothing the second time.
    pub(super) fn txn(&self, request: &TxnRequest) -> Result<TxnResponse, StoreError> {
        let call = self.call(|channel| {
            let request = request.clone();
            async move { kv(channel).txn(request).await }
        });
        self.wait(call)
    }

    /// Forgets what keys were before a revision of etcd.
    pub(super) fn compact(&self, revision: i64) -> Result<(), StoreError> {
        let call = self.call(|channel| async move {
            let answer = kv(channel).compact(CompactionRequest { revision }).await;
            match answer {
                // Done before.
                Err(status) if status.code() == Code::OutOfRange => Ok(tonic::Response::new(())),
                other => other.map(|_| tonic::Response::new(())),
            }
        });
        self.wait(call)
    }

    /// A lease of so many seconds.
    pub(super) fn grant(&self, seconds: i64) -> Result<i64, StoreError> {
        let call = self.call(|channel| async move {
            let request = LeaseGrantRequest {
                ttl: seconds,
                id: 0,
            };
            LeaseClient::new(channel).lease_grant(request).await
        });
        let granted = self.wait(call)?;
        if granted.error.is_empty() && granted.id != 0 {
            Ok(granted.id)
        } else {
            Err(StoreError::Etcd(granted.error))
        }
    }

    /// Ends a lease, and deletes the keys that were put under it.
    pub(super) fn revoke(&self, lease: i64) -> Result<(), StoreError> {
        let call = self.call(|channel| async move {
            let request = LeaseRevokeRequest { id: lease };
            match LeaseClient::new(channel).lease_revoke(request).await {
                // It is over already.
                Err(status) if status.code() == Code::NotFound => Ok(tonic::Response::new(())),
                other => other.map(|_| tonic::Response::new(())),
            }
        });
        self.wait(call)
    }

    /// Makes a lease last its whole time again; false when it is over.
    pub(super) async fn keep_alive(&self, lease: i64) -> Result<bool, StoreError> {
        let answer = self.call(|channel| async move {
            let requests = tokio_stream::once(LeaseKeepAliveRequest { id: lease });
            let mut answers = LeaseClient::new(channel)
                .lease_keep_alive(led(requests))
                .await?
                .into_inner();
            let first = answers.message().await?;
            first
                .map(tonic::Response::new)
                .ok_or_else(|| Status::unavailable("etcd ended the stream"))
        });
        Ok(answer.await?.ttl > 0)
    }

    /// A client for streams of notices, of the member that answered last; a call of [`Self::next_member`] changes to the next.
    pub(super) fn watcher(&self) -> WatchClient<Channel> {
        let at = self.current.load(Ordering::Relaxed) % self.members.len().max(1);
        WatchClient::new(self.members[at].clone())
    }

    /// Begins with the next member from now on.
    pub(super) fn next_member(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    fn wait<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.handle().block_on(call)
    }

    async fn call<T, F: Future<Output = Result<tonic::Response<T>, Status>>>(
        &self,
        call: impl Fn(Channel) -> F,
    ) -> Result<T, StoreError> {
        let first = self.current.load(Ordering::Relaxed);
        let count = self.members.len();
        let mut last = Status::unavailable("there is no endpoint");
        for round in 0..ROUNDS {
            if round != 0 {
                tokio::time::sleep(PAUSE).await;
            }
            for at in first..first + count {
                let channel = self.members[at % count].clone();
                let answer = tokio::time::timeout(CALL_DEADLINE, call(channel)).await;
                last = match answer {
                    Ok(Ok(answer)) => {
                        if at != first {
                            self.current.store(at % count, Ordering::Relaxed);
                        }
                        return Ok(answer.into_inner());
                    }
                    Ok(Err(status)) if !is_of_member(&status) => {
                        return Err(self.failed(&status));
                    }
                    Ok(Err(status)) => status,
                    Err(_) => {
                        Status::deadline_exceeded(format!("no answer within {CALL_DEADLINE:?}"))
                    }
                };
            }
        }
        Err(self.failed(&last))
    }

    fn failed(&self, status: &Status) -> StoreError {
        if status.code() == Code::OutOfRange {
            return StoreError::Compacted;
        }
        StoreError::Etcd(format!("{}: {}", self.names, status.message()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // May be dropped where blocking is not allowed.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A request that a member refuses which has no leader, instead of letting it wait.
pub(super) fn led<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let yes = tonic::metadata::MetadataValue::from_static("true");
    request.metadata_mut().insert("hasleader", yes);
    request
}

fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

/// Whether another member may answer better.
fn is_of_member(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal
    )
}
