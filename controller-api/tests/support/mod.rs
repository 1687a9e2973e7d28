//! A controller in this process, over real sockets, and a small topology.

// Each test file is a crate of its own, and uses what it needs.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod authority;
pub mod certified;
pub mod etcd;
pub mod site;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{Bytes, StdError};
use tonic::transport::Channel;
use weft_controller::admission::AdmissionConfig;
use weft_controller::cluster::Membership;
use weft_controller::intent::{Intent, Settings, Standing};
use weft_controller::server::{self, Serving};
use weft_controller::store::{Embedded, Etcd, Store};
use weft_process::services::host_control_client::HostControlClient;
use weft_process::services::intent_client::IntentClient;
use weft_process::tls::{ServerTls, TlsFiles};
use weft_process::transport::{Listener, MAX_MESSAGE, connect};
use weft_proto::state::{State, collect, explode};
use weft_proto::v1::{
    Ack, Delta, Findings, FromHost, FullState as Full, HeldBack, Hello, ListReply, ListRequest,
    MemberHealth, ObjectKey, Objects, PortReport, PortReports, Refusal, ToHost, Violation,
    from_host, to_host,
};

/// For how long a port that moved is sent on.
pub const MOVE_GRACE: Duration = Duration::from_millis(300);
pub const DEADLINE: Duration = Duration::from_secs(20);

pub const TOPOLOGY: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}]
vpcs: [{id: blue, vni: 1}, {id: red, vni: 2}]
subnets:
  - {id: blue-a, vpc: blue, cidrs: [10.0.0.0/24]}
  - {id: red-a, vpc: red, cidrs: [10.0.0.0/24]}
security_groups:
  - {id: web, vpc: blue, rules: [{direction: ingress, remote_group: web}]}
ports:
  - {id: b1, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:01", addresses: [10.0.0.11], security_groups: [web],
     host: h1, device: {kind: netdev, name: b1}}
  - {id: b2, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:02", addresses: [10.0.0.12], security_groups: [web],
     host: h2, device: {kind: netdev, name: b2}}
  - {id: r2, vpc: red, subnet: red-a, mac: "02:00:00:00:00:01", addresses: [10.0.0.11],
     host: h2, device: {kind: netdev, name: r2}}
"#;

pub fn yaml(text: &str) -> Objects {
    serde_yaml_ng::from_str(text).unwrap()
}

pub fn topology() -> Objects {
    yaml(TOPOLOGY)
}

pub fn key(kind: &str, id: &str) -> ObjectKey {
    ObjectKey {
        kind: kind.into(),
        id: id.into(),
    }
}

pub struct Controller {
    pub address: String,
    pub intent: Arc<Intent>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Controller {
    /// Serves at `listen` from the store in a directory.
    pub async fn start(directory: &Path, listen: &str) -> Self {
        Self::start_with(directory, listen, None).await
    }

    /// The same, with other settings.
    pub async fn start_as(directory: &Path, listen: &str, settings: Settings) -> Self {
        let store = Embedded::open(&directory.join("intent.redb")).unwrap();
        let intent = Intent::load_with(Box::new(store), settings).unwrap();
        Self::serve(Arc::new(intent), None, listen, None).await
    }

    /// The same, for callers who show certificates.
    pub async fn start_with(directory: &Path, listen: &str, tls: Option<TlsFiles>) -> Self {
        Self::start_limited(directory, listen, tls, AdmissionConfig::default()).await
    }

    /// The same, where callers may ask for so much.
    pub async fn start_limited(
        directory: &Path,
        listen: &str,
        tls: Option<TlsFiles>,
        admission: AdmissionConfig,
    ) -> Self {
        let tls = tls.map(|files| Arc::new(ServerTls::new(files).unwrap()));
        let store = Embedded::open(&directory.join("intent.redb")).unwrap();
        let intent = Arc::new(Intent::load(Box::new(store)).unwrap());
        Self::serve_limited(intent, None, listen, tls, admission).await
    }

    /// One of several with a store in etcd.
    pub async fn start_shared(store: Arc<Etcd>, listen: &str) -> Self {
        let shared: Box<dyn Store> = Box::new(Arc::clone(&store));
        let loaded = tokio::task::spawn_blocking(|| Intent::load_shared(shared)).await;
        let intent = Arc::new(loaded.unwrap().unwrap());
        Self::serve(intent, Some(store), listen, None).await
    }

    async fn serve(
        intent: Arc<Intent>,
        store: Option<Arc<Etcd>>,
        listen: &str,
        tls: Option<Arc<ServerTls>>,
    ) -> Self {
        Self::serve_limited(intent, store, listen, tls, AdmissionConfig::default()).await
    }

    async fn serve_limited(
        intent: Arc<Intent>,
        store: Option<Arc<Etcd>>,
        listen: &str,
        tls: Option<Arc<ServerTls>>,
        admission: AdmissionConfig,
    ) -> Self {
        let serving = Serving {
            move_grace: MOVE_GRACE,
            admission,
        };
        let listener = Listener::bind(listen).await.unwrap();
        let address = listener.address().unwrap();
        let membership = store.map(|store| Membership {
            store,
            address: address.clone(),
        });
        let served_intent = Arc::clone(&intent);
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(async move {
            let stop = async { drop(stopped.await) };
            server::serve_shared(served_intent, membership, listener, tls, serving, stop)
                .await
                .unwrap();
        });
        Self {
            address,
            intent,
            stop,
            served,
        }
    }

    /// Waits until it is the writer, or not.
    pub async fn is_writer(&self, wanted: bool) {
        let mut standing = self.intent.standing();
        let stands = |it: &Standing| (*it == Standing::Writer) == wanted;
        within(standing.wait_for(stands)).await.unwrap();
    }

    pub async fn intent(&self) -> IntentClient<Channel> {
        IntentClient::new(connect(&self.address, None).await.unwrap())
    }

    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        within(self.served).await.unwrap();
    }
}

/// The result, or a panic when it takes too long.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("the deadline has passed")
}

/// Every message of a list.
pub async fn list<C>(client: &mut IntentClient<C>, kind: &str, vpc: &str) -> Vec<ListReply>
where
    C: GrpcService<Body>,
    C::Error: Into<StdError>,
    C::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <C::ResponseBody as tonic::codegen::Body>::Error: Into<StdError> + Send,
{
    let request = ListRequest {
        kind: kind.into(),
        vpc: vpc.into(),
        ..ListRequest::default()
    };
    let mut stream = client.list(request).await.unwrap().into_inner();
    let mut replies = Vec::new();
    while let Some(reply) = stream.message().await.unwrap() {
        replies.push(reply);
    }
    replies
}

/// Asks again until the answer pleases.
pub async fn until<T, F: Future<Output = T>>(
    mut ask: impl FnMut() -> F,
    pleases: impl Fn(&T) -> bool,
) -> T
where
    T: std::fmt::Debug,
{
    let start = std::time::Instant::now();
    loop {
        let answer = ask().await;
        if pleases(&answer) {
            return answer;
        }
        assert!(start.elapsed() < DEADLINE, "still {answer:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A host that speaks the protocol by hand.
pub struct FakeHost {
    pub session: u64,
    pub stream: tonic::Streaming<ToHost>,
    pub sender: tokio::sync::mpsc::Sender<FromHost>,
    pub state: State,
    pub revision: u64,
    /// How many messages came ahead of the last state.
    pub parts: usize,
}

impl FakeHost {
    pub async fn attach(address: &str, host: &str, revision: u64, digest: Vec<u8>) -> Self {
        Self::attach_as(
            address,
            Hello {
                host: host.into(),
                revision,
                digest,
                ..Hello::default()
            },
        )
        .await
    }

    /// With what it says of itself besides.
    pub async fn attach_as(address: &str, hello: Hello) -> Self {
        let channel = until(|| connect(address, None), Result::is_ok)
            .await
            .unwrap();
        Self::attach_over(channel, hello).await
    }

    pub async fn attach_over(channel: Channel, hello: Hello) -> Self {
        let revision = hello.revision;
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        let hello = from_host::Message::Hello(Hello {
            protocol: weft_proto::HOST_PROTOCOL,
            ..hello
        });
        send(&sender, hello).await;
        let outbound = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let client = HostControlClient::new(channel);
        let mut client = client.max_decoding_message_size(MAX_MESSAGE);
        let mut stream = within(client.attach(outbound)).await.unwrap().into_inner();
        let first = within(stream.message()).await.unwrap().unwrap();
        let Some(to_host::Message::Welcome(welcome)) = first.message else {
            panic!("{first:?}")
        };
        Self {
            session: welcome.session,
            stream,
            sender,
            state: State::default(),
            revision,
            parts: 0,
        }
    }

    pub async fn receive(&mut self) -> to_host::Message {
        let message = within(self.stream.message()).await.unwrap().unwrap();
        message.message.unwrap()
    }

    /// Applies the next message, whatever it is, and checks the digest that it promises.
    pub async fn take(&mut self) -> to_host::Message {
        let mut message = self.receive().await;
        let mut parts = Vec::new();
        while let to_host::Message::Part(part) = message {
            parts.extend(part.objects);
            message = self.receive().await;
        }
        self.parts = parts.len();
        if let to_host::Message::Full(Full { state: list, .. })
        | to_host::Message::Delta(Delta { upserts: list, .. }) = &mut message
        {
            let all = parts.into_iter().chain(list.take());
            *list = Some(collect(all.flat_map(explode)));
        }
        let (state, revision, digest) = match message.clone() {
            to_host::Message::Full(full) => {
                let state = State::from_objects(full.state.unwrap()).unwrap();
                (state, full.revision, full.digest)
            }
            to_host::Message::Delta(delta) => {
                assert_eq!(delta.from_revision, self.revision);
                let upserts = delta.upserts.unwrap_or_default();
                let state = self.state.patched(upserts, &delta.deletes).unwrap();
                (state, delta.revision, delta.digest)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(state.digest()[..], digest[..]);
        self.state = state;
        self.revision = revision;
        message
    }

    pub async fn acknowledge(&self, session: u64, revision: u64) {
        self.acknowledge_but(session, revision, Vec::new()).await;
    }

    /// Acknowledges a state of which something is not in force.
    pub async fn acknowledge_but(&self, session: u64, revision: u64, held_back: Vec<HeldBack>) {
        let ack = from_host::Message::Ack(Ack {
            session,
            revision,
            digest: self.state.digest().to_vec(),
            effect_microseconds: 77,
            held_back,
        });
        send(&self.sender, ack).await;
    }

    pub async fn take_and_acknowledge(&mut self) -> to_host::Message {
        let message = self.take().await;
        self.acknowledge(self.session, self.revision).await;
        message
    }

    /// Says of ports that they are up, or why they are not.
    pub async fn tell_ports(&self, whole: bool, ports: &[(&str, &str)]) {
        let report = |(port, reason): &(&str, &str)| PortReport {
            port: (*port).into(),
            up: reason.is_empty(),
            reason: (*reason).into(),
            since_ms: 7,
        };
        let reports = from_host::Message::Ports(PortReports {
            session: self.session,
            whole,
            ports: ports.iter().map(report).collect(),
            gone: Vec::new(),
        });
        send(&self.sender, reports).await;
    }

    /// Says all that it has found of members of load balancers.
    pub async fn tell_health(&self, member_health: Vec<MemberHealth>) {
        let findings = from_host::Message::Findings(Findings {
            session: self.session,
            whole: true,
            found: Some(Objects {
                member_health,
                ..Objects::default()
            }),
            gone: Vec::new(),
            kinds: Vec::new(),
        });
        send(&self.sender, findings).await;
    }

    pub async fn refuse(&self, revision: u64) {
        let refusal = from_host::Message::Refusal(Refusal {
            session: self.session,
            revision,
            violations: vec![Violation {
                object: Some(key("port", "b1")),
                field: "device".into(),
                rule: "no such interface".into(),
            }],
        });
        send(&self.sender, refusal).await;
    }
}

async fn send(sender: &tokio::sync::mpsc::Sender<FromHost>, message: from_host::Message) {
    let message = FromHost {
        message: Some(message),
    };
    sender.send(message).await.unwrap();
}
