//! The real weftctl against a controller in this process.

// Each test file is a crate of its own, and uses what it needs.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::task::JoinHandle;
use weft_controller::admission::AdmissionConfig;
use weft_controller::intent::Intent;
use weft_controller::server::{self, Serving};
use weft_controller::store::Embedded;
use weft_process::tls::{ServerTls, TlsFiles};
use weft_process::transport::Listener;

pub const TOPOLOGY: &str = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}, {id: h2, vteps: [192.0.2.2]}]
vpcs: [{id: blue, vni: 1}]
subnets:
  - {id: blue-a, vpc: blue, cidrs: [10.0.0.0/24, "fd00::/64"], route_table: main, network_acl: edge}
route_tables: [{id: main, vpc: blue}]
network_acls: [{id: edge, vpc: blue}]
prefix_lists: [{id: offices, vpc: blue, prefixes: [198.51.100.0/24]}]
security_groups: [{id: web, vpc: blue}]
ports:
  - {id: b1, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:01", addresses: [10.0.0.11], security_groups: [web],
     host: h1, device: {kind: netdev, name: b1}}
  - {id: b2, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:02", addresses: [10.0.0.12],
     host: h2, device: {kind: netdev, name: b2}}
"#;

/// How long a move of a port goes on; no test waits for its end.
const MOVE_GRACE: Duration = Duration::from_secs(30);

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    #[track_caller]
    pub fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.err
    }
}

pub struct Scene {
    pub directory: tempfile::TempDir,
    _served: JoinHandle<()>,
}

impl Scene {
    /// A controller with an empty intent.
    pub async fn empty() -> Self {
        Self::serving(&MOVE_GRACE.into()).await
    }

    /// The same, where callers may ask for so much.
    pub async fn with_admission(admission: AdmissionConfig) -> Self {
        let serving = Serving {
            move_grace: MOVE_GRACE,
            admission,
        };
        Self::serving(&serving).await
    }

    async fn serving(serving: &Serving) -> Self {
        let serving = *serving;
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(&directory.path().join("intent.redb")).unwrap();
        let intent = Arc::new(Intent::load(Box::new(store)).unwrap());
        let socket = format!("unix:{}", directory.path().join("controller").display());
        let listener = Listener::bind(&socket).await.unwrap();
        let served = tokio::spawn(async move {
            server::serve(intent, listener, None, serving, std::future::pending())
                .await
                .unwrap();
        });
        Self {
            directory,
            _served: served,
        }
    }

    /// A controller with an empty intent, for callers with certificates; says where it is.
    pub async fn with_certificates(files: TlsFiles) -> (Self, String) {
        let mut scene = Self::empty().await;
        let store = Embedded::open(&scene.path("over-tcp.redb")).unwrap();
        let intent = Arc::new(Intent::load(Box::new(store)).unwrap());
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.address().unwrap().replace("http:", "https:");
        let tls = Some(Arc::new(ServerTls::new(files).unwrap()));
        scene._served = tokio::spawn(async {
            server::serve(intent, listener, tls, MOVE_GRACE, std::future::pending())
                .await
                .unwrap();
        });
        (scene, address)
    }

    /// A controller that holds the topology.
    pub async fn with_topology() -> Self {
        let scene = Self::empty().await;
        scene.run_with("apply -f -", TOPOLOGY).await.ok();
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub async fn run(&self, words: &str) -> Ran {
        self.run_with(words, "").await
    }

    /// Runs weftctl with these words and this standard input.
    pub async fn run_with(&self, words: &str, input: &str) -> Ran {
        let mut child = Command::new(env!("CARGO_BIN_EXE_weftctl"))
            .args(words.split_whitespace())
            .env(
                "WEFT_CONTROLLER",
                format!("unix:{}", self.path("controller").display()),
            )
            .env("WEFT_NODE", format!("unix:{}", self.path("node").display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that reads nothing may be gone already.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = child.wait_with_output();
        let output = tokio::time::timeout(std::time::Duration::from_secs(20), output)
            .await
            .expect("the deadline has passed")
            .unwrap();
        Ran {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}
