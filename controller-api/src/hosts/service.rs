//! The gRPC service of the host protocol: accepts a stream, authenticates the host by its Hello, and runs its session.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_process::services::host_control_server::HostControl;
use weft_proto::v1::{FromHost, Hello, ToHost, Welcome, from_host, to_host};
use weft_proto::{FINDINGS, FINDINGS_BY_KIND, HOST_PROTOCOL, PORT_REPORTS};

use super::Hosts;
use super::session::Session;
use crate::caller::Caller;
use crate::intent::Intent;
use crate::store::StoreError;

/// How long to wait for a stream's Hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// The messages of one state that may wait for its host, far more than any state has.
const PARTS: usize = 1 << 16;

pub(crate) struct Control {
    pub(crate) intent: Arc<Intent>,
    pub(crate) hosts: Arc<Hosts>,
    /// True when the controller is stopping: the streams would never end by themselves.
    pub(crate) stopping: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl HostControl for Control {
    type AttachStream = ReceiverStream<Result<ToHost, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<FromHost>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let caller = Caller::of(request.extensions())?;
        let mut inbound = request.into_inner();
        // One state is outstanding at a time, so that more than Welcome, one state and a final status never wait. The state's parts are there anyway: if sending
        // them waited for the host while nobody hears what it says, both could wait for each other.
        let (sender, receiver) = mpsc::channel(PARTS + 2);
        let intent = self.intent.clone();
        let hosts = self.hosts.clone();
        let mut stopping = self.stopping.clone();
        tokio::spawn(async move {
            let result = tokio::select! {
                result = run(&caller, &mut inbound, &sender, &intent, hosts) => result,
                _ = stopping.wait_for(|stopping| *stopping) => {
                    Err(Status::unavailable("the controller is stopping"))
                }
            };
            if let Err(status) = result {
                // The host may have disconnected; then there is no one to answer.
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn run(
    caller: &Caller,
    inbound: &mut Streaming<FromHost>,
    sender: &mpsc::Sender<Result<ToHost, Status>>,
    intent: &Arc<Intent>,
    hosts: Arc<Hosts>,
) -> Result<(), Status> {
    let hello = hello(inbound).await?;
    if let Err(refusal) = caller.speaks_for(&hello.host) {
        tracing::warn!(
            host = hello.host,
            caller = caller.name,
            "is not allowed to attach as this host"
        );
        return Err(refusal);
    }
    if hello.revision > intent.current().revision {
        // It may come from a controller that is ahead of this one: what is older would take from it what it has.
        let behind = |error: StoreError| Status::unavailable(error.to_string());
        intent.catch_up().await.map_err(behind)?;
    }
    intent.set_limits(&hello.host, hello.limits);
    let id = rand::random::<u64>().max(1);
    let welcome = to_host::Message::Welcome(Welcome {
        session: id,
        protocol: HOST_PROTOCOL,
        capabilities: [PORT_REPORTS, FINDINGS, FINDINGS_BY_KIND]
            .map(str::to_owned)
            .to_vec(),
    });
    let welcome = ToHost {
        message: Some(welcome),
    };
    if sender.send(Ok(welcome)).await.is_err() {
        return Ok(());
    }
    let host = hello.host.clone();
    tracing::info!(host, revision = hello.revision, "attached");
    let version = intent.current();
    let result = Session::open(id, &hello, hosts, sender.clone(), &version)
        .run(inbound, intent)
        .await;
    match &result {
        Ok(()) => tracing::info!(host, "detached"),
        Err(status) => tracing::info!(host, reason = status.message(), "detached"),
    }
    result
}

async fn hello(inbound: &mut Streaming<FromHost>) -> Result<Hello, Status> {
    let first = tokio::time::timeout(HELLO_DEADLINE, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the host sent no Hello in time"))??;
    let Some(from_host::Message::Hello(hello)) = first.and_then(|first| first.message) else {
        return Err(Status::invalid_argument("the first message must be Hello"));
    };
    if hello.protocol != HOST_PROTOCOL {
        return Err(Status::failed_precondition(format!(
            "the host has version {} of the host protocol, the controller version {HOST_PROTOCOL}",
            hello.protocol
        )));
    }
    if hello.host.is_empty() {
        return Err(Status::invalid_argument("Hello has no host id"));
    }
    Ok(hello)
}
