//! Authentication and authorization: callers are identified by certificates, and can do only what theirs allows.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use support::authority::Authority;
use support::{Controller, DEADLINE, key, topology, until, within, yaml};
use tonic::transport::Channel;
use tonic::{Code, Status};
use weft_process::services::intent_client::IntentClient;
use weft_process::tls::TlsFiles;
use weft_process::transport::connect;
use weft_proto::state::State;
use weft_proto::v1::{
    ApplyRequest, CreateRequest, DeleteRequest, GetRequest, ListHostStatusRequest, ListRequest,
    Objects, Violation,
};
use weftd::agent::{self, AgentConfig, AgentHandle, Apply, Connection, Source};

/// What the controllers of this program have logged.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn start(directory: &Path, files: &TlsFiles) -> (Controller, String) {
    let controller = Controller::start_with(directory, "127.0.0.1:0", Some(files.clone())).await;
    let port = controller.address.rsplit(':').next().unwrap().to_owned();
    (controller, format!("https://localhost:{port}"))
}

async fn client(address: &str, files: &TlsFiles) -> IntentClient<Channel> {
    IntentClient::new(connect(address, Some(files)).await.unwrap())
}

fn code<T>(result: Result<T, Status>) -> Code {
    result.map_or_else(|status| status.code(), |_| Code::Ok)
}

fn list() -> ListRequest {
    ListRequest::default()
}

fn apply(objects: Objects) -> ApplyRequest {
    ApplyRequest {
        objects: Some(objects),
        ..ApplyRequest::default()
    }
}

#[tokio::test]
async fn each_role_may_do_its_part() {
    let log = tracing_subscriber::fmt().with_ansi(false);
    log.with_writer(|| Log).init();
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path(), "ours");
    let server = authority.certify("server", &[]);
    let (controller, address) = start(directory.path(), &server).await;

    let admin = authority.certify("admin", &["weft://role/read", "weft://role/admin"]);
    let mut admin = client(&address, &admin).await;
    admin.apply(apply(topology())).await.unwrap();

    let vpc = || yaml("vpcs: [{id: green, vni: 3}]");
    let host = |address: u8| yaml(&format!("hosts: [{{id: h9, vteps: [192.0.2.{address}]}}]"));
    admin.apply(apply(host(9))).await.unwrap();
    let (denied, ok) = (Code::PermissionDenied, Code::Ok);
    let expected = [
        (
            "nobody",
            &["weft://role/none", "weft://host/h1"][..],
            [denied; 6],
        ),
        (
            "reader",
            &["weft://role/read"],
            [ok, ok, denied, denied, denied, denied],
        ),
        (
            "operator",
            &["weft://role/operate"],
            [ok, ok, ok, ok, denied, denied],
        ),
        ("admin", &["weft://role/admin"], [ok; 6]),
    ];
    for (name, names, expected) in expected {
        let files = authority.certify(name, names);
        let mut client = client(&address, &files).await;
        let get = GetRequest {
            object: Some(key("vpc", "blue")),
        };
        let create = CreateRequest {
            objects: Some(vpc()),
        };
        let delete = |kind: &str, id: &str| DeleteRequest {
            objects: vec![key(kind, id)],
        };
        let read = [
            code(client.get(get).await),
            code(client.list(list()).await).max(code(
                client
                    .list_host_status(ListHostStatusRequest::default())
                    .await,
            )),
        ];
        let tenants = [
            code(client.create(create).await),
            code(client.delete(delete("vpc", "green")).await),
        ];
        let hosts = [
            code(client.apply(apply(host(10))).await),
            code(client.delete(delete("host", "h9")).await),
        ];
        assert_eq!([read, tenants, hosts].concat(), expected, "{name}");
    }
    // A prune would take hosts along.
    let files = authority.certify("operator", &["weft://role/operate"]);
    let prune = ApplyRequest {
        prune: true,
        ..apply(vpc())
    };
    let result = client(&address, &files).await.apply(prune).await;
    assert_eq!(code(result), Code::PermissionDenied);
    let log = String::from_utf8(LOG.lock().unwrap().clone()).unwrap();
    let said = |words: &[&str]| {
        let mut audit = log.lines().filter(|line| line.contains("weft::audit"));
        audit.any(|line| words.iter().all(|word| line.contains(word)))
    };
    for words in [
        ["changed", "CN=operator", "put=\"vpc green\""],
        ["changed", "CN=operator", "deleted=\"vpc green\""],
        ["refused", "CN=operator", "weft://role/admin"],
        ["refused", "CN=reader", "weft://role/operate"],
        ["refused", "CN=nobody", "weft://role/read"],
    ] {
        assert!(said(&words), "{words:?} in\n{log}");
    }
    assert!(!said(&["changed", "CN=reader"]), "{log}");
    drop(admin);
    controller.stop().await;
}

trait Max {
    fn max(self, other: Self) -> Self;
}

impl Max for Code {
    fn max(self, other: Self) -> Self {
        if self == Code::Ok { other } else { self }
    }
}

#[tokio::test]
async fn strangers_are_not_heard() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path(), "ours");
    let server = authority.certify("server", &[]);
    let (controller, address) = start(directory.path(), &server).await;

    let plain = controller.address.clone();
    let refused = match connect(&plain, None).await {
        Ok(channel) => code(IntentClient::new(channel).list(list()).await) != Code::Ok,
        Err(_) => true,
    };
    assert!(refused, "without TLS");
    // Of another authority, whichever of them one believes in.
    let others = Authority::new(directory.path(), "others");
    let mut files = others.certify("admin", &["weft://role/admin"]);
    assert!(
        connect(&address, Some(&files)).await.is_err(),
        "the server is a stranger"
    );
    files.ca = server.ca.clone();
    let refused = match connect(&address, Some(&files)).await {
        Ok(channel) => code(IntentClient::new(channel).list(list()).await) != Code::Ok,
        Err(_) => true,
    };
    assert!(refused, "the client is a stranger");
    // The right certificate, for another name than was asked for.
    let admin = authority.certify("admin", &["weft://role/admin"]);
    let by_number = address.replace("localhost", "127.0.0.1");
    assert!(connect(&by_number, Some(&admin)).await.is_err());
    assert!(
        connect(&plain, Some(&admin)).await.is_err(),
        "certificates without https"
    );
    assert!(
        connect(&address, None).await.is_err(),
        "https without certificates"
    );
    // Those who are welcome are heard beside others that never finish their handshakes.
    let port = address.trim_start_matches("https://");
    let mut idle = Vec::new();
    for _ in 0..32 {
        idle.push(tokio::net::TcpStream::connect(port).await.unwrap());
    }
    let mut admin = within(client(&address, &admin)).await;
    within(admin.list(list())).await.unwrap();
    drop((idle, admin));
    controller.stop().await;
}

/// Takes everything.
#[derive(Default)]
struct Host;

impl Apply for Host {
    fn apply(&self, _: u64, _: &State) -> Result<(), Vec<Violation>> {
        Ok(())
    }
}

async fn attach(host: &str, address: &str, files: &TlsFiles, directory: &Path) -> AgentHandle {
    let config = AgentConfig {
        host: host.into(),
        capabilities: vec![],
        limits: weft_proto::v1::HostLimits::default(),
        source: Source::Controller {
            addresses: vec![address.to_owned()],
            tls: Some(files.clone()),
            state_directory: directory.join(host),
        },
    };
    agent::start(config, Arc::new(Host)).await.unwrap()
}

async fn until_connected(agent: &AgentHandle) {
    let mut status = agent.watch();
    let connected = status.wait_for(|status| status.connection == Connection::Connected);
    drop(
        tokio::time::timeout(DEADLINE, connected)
            .await
            .unwrap()
            .unwrap(),
    );
}

#[tokio::test]
async fn a_host_speaks_for_itself_alone() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path(), "ours");
    let server = authority.certify("server", &[]);
    let (controller, address) = start(directory.path(), &server).await;
    let admin = authority.certify("admin", &["weft://role/admin"]);
    let mut admin = client(&address, &admin).await;
    admin.apply(apply(topology())).await.unwrap();

    let h1 = authority.certify("h1", &["weft://host/h1"]);
    let own = attach("h1", &address, &h1, directory.path()).await;
    until_connected(&own).await;
    let other = attach("h2", &address, &h1, directory.path()).await;
    // An administrator is no host.
    let files = authority.certify("admin", &["weft://role/admin"]);
    let admins = attach("h2", &address, &files, &directory.path().join("admin")).await;
    let attached = || async {
        let reply = admin
            .clone()
            .list_host_status(ListHostStatusRequest::default())
            .await;
        let hosts = reply.unwrap().into_inner().hosts;
        let attached = hosts
            .into_iter()
            .filter(|host| host.acknowledged_revision > 0);
        attached.map(|host| host.host).collect::<Vec<_>>()
    };
    assert_eq!(until(attached, |hosts| !hosts.is_empty()).await, ["h1"]);
    for agent in [&other, &admins] {
        assert_eq!(agent.status().revision(), 0);
    }
    // When it may, it is heard, by itself.
    authority.certify("h1", &["weft://host/h1", "weft://host/h2"]);
    until_connected(&other).await;
    for agent in [own, other, admins] {
        agent.stop().await;
    }
    drop(admin);
    controller.stop().await;
}

#[tokio::test]
async fn certificates_are_replaced_without_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let old = Authority::new(directory.path(), "live");
    let server = old.certify("server", &[]);
    let (controller, address) = start(directory.path(), &server).await;
    let before = old.certify("admin", &["weft://role/admin"]);
    let kept = directory.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    let keep = |path: &Path| {
        let to = kept.join(path.file_name().unwrap());
        std::fs::copy(path, &to).unwrap();
        to
    };
    let before = TlsFiles {
        ca: keep(&before.ca),
        certificate: keep(&before.certificate),
        key: keep(&before.key),
    };
    let mut open = client(&address, &before).await;
    open.list(list()).await.unwrap();

    // Half a change is none: a key that goes with no certificate.
    let good = std::fs::read(&server.key).unwrap();
    std::fs::write(&server.key, "nonsense").unwrap();
    client(&address, &before).await.list(list()).await.unwrap();
    std::fs::write(&server.key, good).unwrap();

    // Another authority altogether.
    let new = Authority::new(directory.path(), "live");
    new.certify("server", &[]);
    let after = new.certify("admin", &["weft://role/admin"]);
    client(&address, &after).await.list(list()).await.unwrap();
    assert!(connect(&address, Some(&before)).await.is_err());
    open.list(list()).await.unwrap();
    drop(open);
    controller.stop().await;
}
