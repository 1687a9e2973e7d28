//! The agent against a controller that the test plays, over a real unix socket (invariants 2 and 4, behaviour 34).

#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_process::services::host_control_server::{HostControl, HostControlServer};
use weft_process::transport::{self, Listener};
use weft_proto::state::State;
use weft_proto::v1::{
    Delta, Event, FromHost, FullState, Hello, HostLimits, Objects, Part, ToHost, Violation, Vpc,
    Welcome, from_host, to_host,
};
use weftd::agent::{
    self, AgentConfig, AgentError, AgentHandle, AgentStatus, Apply, Connection, Source,
};

const DEADLINE: Duration = Duration::from_secs(20);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("the deadline has passed")
}

/// Records what it is told to apply; refuses a state with a VPC of the id "unwelcome".
#[derive(Default)]
struct Recorder {
    applied: Mutex<Vec<(u64, State)>>,
}

impl Recorder {
    fn revisions(&self) -> Vec<u64> {
        let applied = self.applied.lock().unwrap();
        applied.iter().map(|(revision, _)| *revision).collect()
    }
}

impl Apply for Recorder {
    fn apply(&self, revision: u64, state: &State) -> Result<(), Vec<Violation>> {
        if state.iter().any(|object| object.id() == "unwelcome") {
            return Err(vec![Violation {
                rule: "unwelcome here".into(),
                ..Violation::default()
            }]);
        }
        self.applied.lock().unwrap().push((revision, state.clone()));
        Ok(())
    }
}

/// The controller's end of one attachment.
struct Peer {
    hello: Hello,
    inbound: Streaming<FromHost>,
    outbound: mpsc::Sender<Result<ToHost, Status>>,
}

const SESSION: u64 = 42;

impl Peer {
    async fn send(&self, message: to_host::Message) {
        let message = ToHost {
            message: Some(message),
        };
        self.outbound.send(Ok(message)).await.unwrap();
    }

    async fn receive(&mut self) -> from_host::Message {
        let message = within(self.inbound.message()).await.unwrap().unwrap();
        message.message.unwrap()
    }

    async fn send_full(&self, revision: u64, state: &State) {
        self.send(to_host::Message::Full(FullState {
            revision,
            digest: state.digest().to_vec(),
            state: Some(state.to_objects()),
        }))
        .await;
    }

    async fn send_delta(&self, from: (u64, &State), to: (u64, &State)) {
        let (upserts, deletes) = from.1.delta_to(to.1);
        self.send(to_host::Message::Delta(Delta {
            from_revision: from.0,
            revision: to.0,
            digest: to.1.digest().to_vec(),
            upserts: Some(upserts),
            deletes,
        }))
        .await;
    }

    async fn acknowledged(&mut self, revision: u64, state: &State) {
        match self.receive().await {
            from_host::Message::Ack(ack) => {
                assert_eq!((ack.session, ack.revision), (SESSION, revision));
                assert_eq!(ack.digest, state.digest());
            }
            other => panic!("{other:?}"),
        }
    }

    async fn refused(&mut self, revision: u64) -> Vec<Violation> {
        match self.receive().await {
            from_host::Message::Refusal(refusal) => {
                assert_eq!((refusal.session, refusal.revision), (SESSION, revision));
                refusal.violations
            }
            other => panic!("{other:?}"),
        }
    }
}

struct Service {
    peers: mpsc::Sender<Peer>,
    protocol: u32,
    capabilities: Vec<String>,
}

#[tonic::async_trait]
impl HostControl for Service {
    type AttachStream = ReceiverStream<Result<ToHost, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<FromHost>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut inbound = request.into_inner();
        let (outbound, receiver) = mpsc::channel(8);
        let peers = self.peers.clone();
        let protocol = self.protocol;
        let capabilities = self.capabilities.clone();
        tokio::spawn(async move {
            let Some(from_host::Message::Hello(hello)) =
                inbound.message().await.unwrap().unwrap().message
            else {
                panic!("no Hello")
            };
            let peer = Peer {
                hello,
                inbound,
                outbound,
            };
            let welcome = to_host::Message::Welcome(Welcome {
                session: SESSION,
                protocol,
                capabilities,
            });
            peer.send(welcome).await;
            let _ = peers.send(peer).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

struct Server {
    peers: mpsc::Receiver<Peer>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Server {
    async fn start(address: &str) -> Self {
        Self::speaking(address, 1, &[]).await
    }

    /// Of another version of the protocol, or with capabilities.
    async fn speaking(address: &str, protocol: u32, capabilities: &[&str]) -> Self {
        let capabilities = capabilities.iter().map(|it| (*it).to_owned()).collect();
        let (sender, peers) = mpsc::channel(8);
        let listener = Listener::bind(address).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(async move {
            let service = HostControlServer::new(Service {
                peers: sender,
                protocol,
                capabilities,
            });
            let router = transport::server().add_service(service);
            transport::serve(router, listener, None, async { drop(stopped.await) })
                .await
                .unwrap();
        });
        Self {
            peers,
            stop,
            served,
        }
    }

    async fn peer(&mut self) -> Peer {
        within(self.peers.recv()).await.unwrap()
    }

    /// Stops, once the test has let go of every peer.
    async fn stop(self) {
        self.stop.send(()).unwrap();
        drop(self.peers);
        within(self.served).await.unwrap();
    }
}

struct Scene {
    directory: tempfile::TempDir,
    recorder: Arc<Recorder>,
}

impl Scene {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            recorder: Arc::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn address(&self) -> String {
        format!("unix:{}", self.path("socket").display())
    }

    async fn agent(&self) -> AgentHandle {
        self.agent_of(vec![self.address()]).await
    }

    /// One that may follow any of these controllers.
    async fn agent_of(&self, addresses: Vec<String>) -> AgentHandle {
        let source = Source::Controller {
            addresses,
            tls: None,
            state_directory: self.path("kept"),
        };
        agent::start(config(source), self.recorder.clone())
            .await
            .unwrap()
    }
}

fn config(source: Source) -> AgentConfig {
    AgentConfig {
        host: "h1".into(),
        capabilities: vec!["vxlan".into()],
        limits: HostLimits::default(),
        source,
    }
}

fn state(vpcs: &[(&str, u32)]) -> State {
    let vpcs = vpcs.iter().map(|(id, vni)| Vpc {
        id: (*id).into(),
        vni: *vni,
        ..Vpc::default()
    });
    State::from_objects(Objects {
        vpcs: vpcs.collect(),
        ..Objects::default()
    })
    .unwrap()
}

async fn until(agent: &AgentHandle, pleases: impl Fn(&AgentStatus) -> bool) -> AgentStatus {
    let mut watch = agent.watch();
    within(watch.wait_for(|status| pleases(status)))
        .await
        .unwrap()
        .clone()
}

#[tokio::test]
async fn full_and_deltas_are_applied_and_acknowledged() {
    let scene = Scene::new();
    let mut server = Server::start(&scene.address()).await;
    let agent = scene.agent().await;
    let mut peer = server.peer().await;
    assert_eq!(peer.hello.host, "h1");
    assert_eq!(peer.hello.revision, 0);
    assert_eq!(peer.hello.capabilities, ["vxlan"]);
    let (one, two) = (state(&[("a", 1)]), state(&[("b", 2)]));
    peer.send_full(5, &one).await;
    peer.acknowledged(5, &one).await;
    peer.send_delta((5, &one), (9, &two)).await;
    peer.acknowledged(9, &two).await;
    assert_eq!(
        *scene.recorder.applied.lock().unwrap(),
        [(5, one), (9, two.clone())]
    );
    let status = agent.status();
    assert_eq!(status.connection, Connection::Connected);
    assert_eq!(*status.in_force.unwrap().state, two);
    agent.stop().await;
}

#[tokio::test]
async fn of_several_controllers_another_is_followed_when_one_ends_or_is_not_there() {
    let scene = Scene::new();
    let addresses = ["one", "two"].map(|name| format!("unix:{}", scene.path(name).display()));
    let missing = format!("unix:{}", scene.path("three").display());
    let mut one = Server::start(&addresses[0]).await;
    let mut two = Server::start(&addresses[1]).await;
    let all = [&addresses[..], &[missing]].concat();
    let agent = scene.agent_of(all).await;
    let known = state(&[("a", 1)]);
    // It begins anywhere.
    let first = tokio::select! {
        peer = one.peer() => (peer, 0),
        peer = two.peer() => (peer, 1),
    };
    let (mut peer, mut at) = first;
    peer.send_full(5, &known).await;
    peer.acknowledged(5, &known).await;
    for _ in 0..4 {
        let ended = std::time::Instant::now();
        drop(peer);
        let other = [&mut one, &mut two].into_iter().nth(1 - at).unwrap();
        peer = within(other.peer()).await;
        at = 1 - at;
        assert_eq!(peer.hello.revision, 5, "it keeps what it has");
        assert!(ended.elapsed() < Duration::from_secs(2), "without a pause");
    }
    assert_eq!(scene.recorder.revisions(), [5]);
    agent.stop().await;
}

#[tokio::test]
async fn a_refused_state_changes_nothing_and_does_not_block_the_next() {
    let scene = Scene::new();
    let mut server = Server::start(&scene.address()).await;
    let agent = scene.agent().await;
    let mut peer = server.peer().await;
    let good = state(&[("a", 1)]);
    peer.send_full(1, &good).await;
    peer.acknowledged(1, &good).await;

    let unwelcome = state(&[("unwelcome", 3)]);
    peer.send_delta((1, &good), (3, &unwelcome)).await;
    assert_eq!(peer.refused(3).await[0].rule, "unwelcome here");
    assert_eq!(agent.status().violations[0].rule, "unwelcome here");
    assert_eq!(agent.status().revision(), 1);

    let better = state(&[("b", 2)]);
    peer.send_delta((1, &good), (4, &better)).await;
    peer.acknowledged(4, &better).await;
    assert_eq!(scene.recorder.revisions(), [1, 4]);
    assert!(agent.status().violations.is_empty());
    agent.stop().await;
}

/// Deltas go on from what was received, whatever of it is in force, and a controller that comes back is told what is not.
#[tokio::test]
async fn what_is_held_back_is_acknowledged_with_the_rest_and_told_again() {
    let scene = Scene::new();
    let mut server = Server::start(&scene.address()).await;
    let agent = scene.agent().await;
    let mut peer = server.peer().await;
    assert_eq!(peer.hello.limits, Some(HostLimits::default()));
    let good = state(&[("a", 1), ("b", 2)]);
    peer.send_full(1, &good).await;
    peer.acknowledged(1, &good).await;

    // Against a rule: no VNI is of two VPCs. The second stays as it was.
    let broken = state(&[("a", 2), ("b", 0)]);
    peer.send_delta((1, &good), (2, &broken)).await;
    let from_host::Message::Ack(ack) = peer.receive().await else {
        panic!("no Ack")
    };
    assert_eq!((ack.revision, &ack.digest[..]), (2, &broken.digest()[..]));
    assert_eq!(ack.held_back.len(), 1);
    let held = ack.held_back[0].clone();
    assert_eq!(held.object.as_ref().unwrap().id, "b");
    assert_eq!(held.violations[0].field, "vni");
    // Its old VNI is a's by now: nothing of it is left.
    assert_eq!(held.in_force_revision, 0);
    assert_eq!(
        scene.recorder.applied.lock().unwrap().last().unwrap(),
        &(2, state(&[("a", 2)]))
    );
    drop(peer);
    let mut peer = server.peer().await;
    assert_eq!(peer.hello.revision, 2);
    assert_eq!(peer.hello.digest, broken.digest());
    assert_eq!(peer.hello.held_back, [held]);

    let better = state(&[("a", 2), ("b", 3)]);
    peer.send_delta((2, &broken), (3, &better)).await;
    let from_host::Message::Ack(ack) = peer.receive().await else {
        panic!("no Ack")
    };
    assert_eq!(ack.held_back, []);
    assert_eq!(*agent.status().in_force.unwrap().effective, better);
    agent.stop().await;
}

#[tokio::test]
async fn a_state_in_parts_is_brought_into_force_when_all_of_it_has_come() {
    let scene = Scene::new();
    let mut server = Server::start(&scene.address()).await;
    let agent = scene.agent().await;
    let mut peer = server.peer().await;
    let part = |state: &State| {
        to_host::Message::Part(Part {
            objects: Some(state.to_objects()),
        })
    };
    let (one, two, three) = (state(&[("a", 1)]), state(&[("b", 2)]), state(&[("c", 3)]));
    let all = state(&[("a", 1), ("b", 2), ("c", 3)]);
    peer.send(part(&one)).await;
    peer.send(part(&two)).await;
    peer.send(to_host::Message::Full(FullState {
        revision: 1,
        digest: all.digest().to_vec(),
        state: Some(three.to_objects()),
    }))
    .await;
    peer.acknowledged(1, &all).await;
    // Of a delta, and nothing of what came before is left.
    peer.send(part(&state(&[("d", 4)]))).await;
    let more = state(&[("a", 1), ("b", 2), ("d", 4), ("e", 5)]);
    peer.send(to_host::Message::Delta(Delta {
        from_revision: 1,
        revision: 2,
        digest: more.digest().to_vec(),
        upserts: Some(state(&[("e", 5)]).to_objects()),
        deletes: all.delta_to(&state(&[("a", 1), ("b", 2)])).1,
    }))
    .await;
    peer.acknowledged(2, &more).await;
    assert_eq!(scene.recorder.revisions(), [1, 2]);
    agent.stop().await;
}

#[tokio::test]
async fn a_full_state_with_another_digest_is_refused() {
    let scene = Scene::new();
    let mut server = Server::start(&scene.address()).await;
    let agent = scene.agent().await;
    let mut peer = server.peer().await;
    peer.send(to_host::Message::Full(FullState {
        revision: 1,
        digest: vec![7; 32],
        state: Some(state(&[("a", 1)]).to_objects()),
    }))
    .await;
    assert!(peer.refused(1).await[0].rule.contains("digest"));
    assert_eq!(scene.recorder.revisions(), [0u64; 0]);
    agent.stop().await;
}

#[tokio::test]
async fn after_a_delta_that_leads_elsewhere_the_host_asks_for_everything() {
    let scene = Scene::new();
    let mut server = Server::start(&scene.address()).await;
    let agent = scene.agent().await;
    let mut peer = server.peer().await;
    let (one, two) = (state(&[("a", 1)]), state(&[("b", 2)]));
    peer.send_full(1, &one).await;
    peer.acknowledged(1, &one).await;
    // A delta from a revision that the host does not have, then one with another digest.
    peer.send_delta((7, &one), (8, &two)).await;
    let peer = server.peer().await;
    assert_eq!(peer.hello.revision, 0);
    assert_eq!(agent.status().revision(), 1, "it forwards on meanwhile");
    peer.send(to_host::Message::Delta(Delta {
        from_revision: 1,
        revision: 8,
        digest: vec![7; 32],
        ..Delta::default()
    }))
    .await;
    let mut peer = server.peer().await;
    assert_eq!((peer.hello.revision, peer.hello.digest.len()), (0, 0));
    peer.send_full(8, &two).await;
    peer.acknowledged(8, &two).await;
    agent.stop().await;
}

#[tokio::test]
async fn what_was_sent_before_is_not_taken_again() {
    let scene = Scene::new();
    let mut server = Server::start(&scene.address()).await;
    let agent = scene.agent().await;
    let mut peer = server.peer().await;
    let (one, two) = (state(&[("a", 1)]), state(&[("b", 2)]));
    peer.send_full(5, &one).await;
    peer.acknowledged(5, &one).await;
    for revision in [3, 5] {
        peer.send_full(revision, &two).await;
        let rule = peer.refused(revision).await.remove(0).rule;
        assert_eq!(
            rule,
            format!("revision {revision} is not above 5, which is in force")
        );
    }
    peer.send_delta((5, &one), (4, &two)).await;
    assert!(peer.refused(4).await[0].rule.contains("not above 5"));
    peer.send_delta((5, &one), (6, &two)).await;
    peer.acknowledged(6, &two).await;
    assert_eq!(scene.recorder.revisions(), [5, 6]);
    agent.stop().await;
}

/// Its store was restored from a copy, for example: it still has the word.
#[tokio::test]
async fn a_controller_that_begins_behind_the_host_is_obeyed() {
    let scene = Scene::new();
    let mut server = Server::start(&scene.address()).await;
    let agent = scene.agent().await;
    let mut peer = server.peer().await;
    let (one, two) = (state(&[("a", 1)]), state(&[("b", 2)]));
    peer.send_full(5, &one).await;
    peer.acknowledged(5, &one).await;
    drop(peer);
    let mut peer = server.peer().await;
    assert_eq!(peer.hello.revision, 5);
    peer.send_full(2, &two).await;
    peer.acknowledged(2, &two).await;
    peer.send_delta((2, &two), (3, &one)).await;
    peer.acknowledged(3, &one).await;
    assert_eq!(scene.recorder.revisions(), [5, 2, 3]);
    agent.stop().await;
}

#[tokio::test]
async fn a_controller_that_breaks_the_protocol_is_left_and_a_good_one_taken() {
    let scene = Scene::new();
    let mut server = Server::speaking(&scene.address(), 9, &[]).await;
    let agent = scene.agent().await;
    // Twice: it comes again, and does not take what it does not speak for attached.
    drop(server.peer().await);
    let peer = server.peer().await;
    assert_eq!(agent.status().connection, Connection::Disconnected);
    drop(peer);
    server.stop().await;

    let mut server = Server::start(&scene.address()).await;
    let again = Welcome {
        session: SESSION,
        protocol: 1,
        capabilities: vec![],
    };
    let peer = server.peer().await;
    peer.send(to_host::Message::Welcome(again)).await;
    let peer = server.peer().await;
    // A message of a kind that this host does not know looks so to it.
    let unknown = ToHost { message: None };
    peer.outbound.send(Ok(unknown)).await.unwrap();
    let mut peer = server.peer().await;
    assert_eq!(scene.recorder.revisions(), [0u64; 0]);
    let one = state(&[("a", 1)]);
    peer.send_full(1, &one).await;
    peer.acknowledged(1, &one).await;
    agent.stop().await;
}

#[tokio::test]
async fn what_could_not_be_kept_is_kept_when_that_can_be() {
    let scene = Scene::new();
    let mut server = Server::start(&scene.address()).await;
    let agent = scene.agent().await;
    let mut peer = server.peer().await;
    // A directory in its place: nothing can be written there, by nobody.
    let next = scene.path("kept/state.next");
    std::fs::create_dir_all(next.join("full")).unwrap();
    let one = state(&[("a", 1)]);
    peer.send_full(3, &one).await;
    peer.acknowledged(3, &one).await;
    assert!(!scene.path("kept/state").exists());
    std::fs::remove_dir_all(&next).unwrap();
    let kept = async {
        while !scene.path("kept/state").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(kept).await;
    agent.stop().await;
    drop(peer);
    server.stop().await;
    let agent = scene.agent().await;
    assert_eq!(agent.status().revision(), 3);
    agent.stop().await;
}

#[tokio::test]
async fn b034_a_controller_that_comes_back_is_told_what_is_in_force() {
    let scene = Scene::new();
    let mut server = Server::start(&scene.address()).await;
    let agent = scene.agent().await;
    let mut peer = server.peer().await;
    let (one, two) = (state(&[("a", 1)]), state(&[("b", 2)]));
    peer.send_full(3, &one).await;
    peer.acknowledged(3, &one).await;
    drop(peer);
    server.stop().await;
    until(&agent, |s| s.connection == Connection::Disconnected).await;

    let mut server = Server::start(&scene.address()).await;
    let mut peer = server.peer().await;
    assert_eq!(peer.hello.revision, 3);
    assert_eq!(peer.hello.digest, one.digest());
    peer.send_delta((3, &one), (4, &two)).await;
    peer.acknowledged(4, &two).await;
    assert_eq!(scene.recorder.revisions(), [3, 4], "nothing twice");
    agent.stop().await;
}

#[tokio::test]
async fn a_host_starts_from_its_last_acknowledged_state_without_a_controller() {
    let scene = Scene::new();
    let mut server = Server::start(&scene.address()).await;
    let agent = scene.agent().await;
    let mut peer = server.peer().await;
    let one = state(&[("a", 1)]);
    peer.send_full(3, &one).await;
    peer.acknowledged(3, &one).await;
    agent.stop().await;
    drop(peer);
    server.stop().await;

    let agent = scene.agent().await;
    let status = agent.status();
    assert_eq!(status.connection, Connection::Disconnected);
    assert_eq!(status.revision(), 3);
    assert_eq!(scene.recorder.revisions(), [3, 3], "before it returned");
    let mut server = Server::start(&scene.address()).await;
    assert_eq!(server.peer().await.hello.revision, 3);
    agent.stop().await;
}

#[tokio::test]
async fn a_damaged_kept_state_is_ignored() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("kept")).unwrap();
    std::fs::write(scene.path("kept/state"), "weftst1\nwhatever").unwrap();
    let agent = scene.agent().await;
    assert_eq!(agent.status().revision(), 0);
    let mut server = Server::start(&scene.address()).await;
    let mut peer = server.peer().await;
    assert_eq!(peer.hello.revision, 0);
    let one = state(&[("a", 1)]);
    peer.send_full(3, &one).await;
    peer.acknowledged(3, &one).await;
    agent.stop().await;
}

#[tokio::test]
async fn events_carry_the_session() {
    let scene = Scene::new();
    let mut server = Server::start(&scene.address()).await;
    let agent = scene.agent().await;
    let mut peer = server.peer().await;
    agent.report(Event {
        kind: "port_up".into(),
        ..Event::default()
    });
    match peer.receive().await {
        from_host::Message::Event(event) => {
            assert_eq!((event.session, event.kind.as_str()), (SESSION, "port_up"));
        }
        other => panic!("{other:?}"),
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_controller_that_takes_it_is_told_of_ports_and_of_what_changes() {
    let scene = Scene::new();
    let mut server = Server::speaking(&scene.address(), 1, &["port_reports"]).await;
    let agent = scene.agent().await;
    let set = |ports: &[(&str, &str)]| {
        let condition = |reason: &str| match reason {
            "" => Ok(()),
            reason => Err(reason.to_owned()),
        };
        let ports: Vec<_> = ports
            .iter()
            .map(|(port, reason)| ((*port).to_owned(), condition(reason)))
            .collect();
        agent.set_ports(ports.into_iter());
    };
    let mut peer = server.peer().await;
    let told = async |peer: &mut Peer| match peer.receive().await {
        from_host::Message::Ports(reports) => {
            assert_eq!(reports.session, SESSION);
            let ports = reports.ports.into_iter();
            let ports: Vec<_> = ports.map(|it| (it.port, it.up, it.reason)).collect();
            (reports.whole, ports, reports.gone)
        }
        other => panic!("{other:?}"),
    };
    let up = |port: &str| (port.to_owned(), true, String::new());
    let down = |port: &str| (port.to_owned(), false, "is down".to_owned());
    assert_eq!(told(&mut peer).await, (true, vec![], vec![]));
    set(&[("a", ""), ("b", "is down")]);
    let first = (false, vec![up("a"), down("b")], vec![]);
    assert_eq!(told(&mut peer).await, first);
    set(&[("b", "")]);
    let next = (false, vec![up("b")], vec!["a".to_owned()]);
    assert_eq!(told(&mut peer).await, next);
    drop(peer);
    let mut peer = server.peer().await;
    assert_eq!(told(&mut peer).await, (true, vec![up("b")], vec![]));
    drop(peer);
    server.stop().await;
    // One that does not take it is told of none.
    let mut server = Server::start(&scene.address()).await;
    let mut peer = server.peer().await;
    set(&[("b", "is down")]);
    agent.report(Event::default());
    let first = peer.receive().await;
    assert!(matches!(first, from_host::Message::Event(_)), "{first:?}");
    agent.stop().await;
}

async fn from_file(path: &Path, recorder: &Arc<Recorder>) -> Result<AgentHandle, AgentError> {
    let source = Source::File(path.to_owned());
    agent::start(config(source), recorder.clone()).await
}

#[tokio::test]
async fn a_state_file_stands_in_for_the_controller_and_is_read_again_on_request() {
    let scene = Scene::new();
    let path = scene.path("state.yaml");
    std::fs::write(&path, "vpcs: [{id: a, vni: 1}]").unwrap();
    let agent = from_file(&path, &scene.recorder).await.unwrap();
    assert_eq!(agent.status().connection, Connection::File);
    assert_eq!(agent.reload().await.unwrap(), 1, "the same again");

    std::fs::write(&path, "vpcs: [{id: a, vni: 2}]").unwrap();
    assert_eq!(agent.reload().await.unwrap(), 2);
    for (text, complaint) in [
        ("vpcs: [{id: a, vnj: 2}]", "vnj"),
        ("vpcs: [{id: a, vni: 0}]", "vpc a: vni: 0 is outside"),
        (
            "vpcs: [{id: a, vni: 1}, {id: a, vni: 2}]",
            "vpc a is given twice",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = agent.reload().await.unwrap_err().to_string();
        assert!(error.contains(complaint), "{error}");
    }
    assert_eq!(scene.recorder.revisions(), [1, 2]);
    assert_eq!(agent.status().revision(), 2, "what was in effect still is");
    agent.stop().await;
    assert!(from_file(&path, &scene.recorder).await.is_err());
}
