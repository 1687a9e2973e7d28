//! The program weft-controller: acknowledged changes survive a kill, and it stops cleanly on SIGTERM.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Child, Command, Stdio};

use support::site::{Site, StoreKind};
use support::{DEADLINE, list, topology, until};
use weft_process::controllers::Controllers;
use weft_process::services::intent_client::IntentClient;
use weft_proto::v1::{ApplyRequest, CreateRequest, Objects, Vpc};

on_both_stores!(
    nothing_acknowledged_is_lost_when_the_program_is_killed,
    it_stops_cleanly_when_asked,
);

struct Program {
    child: Child,
    address: String,
}

impl Program {
    fn start(site: &Site) -> Self {
        let directory = site.path();
        let address = format!("unix:{}", directory.join("socket").display());
        let config = directory.join("controller.toml");
        let text = format!("listen = '{address}'\n{}", site.configuration());
        std::fs::write(&config, text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_weft-controller"))
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, address }
    }

    async fn intent(&self) -> IntentClient<Controllers> {
        let addresses = || vec![self.address.clone()];
        let connect = || Controllers::connect(addresses(), None);
        IntentClient::new(until(connect, Result::is_ok).await.unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn nothing_acknowledged_is_lost_when_the_program_is_killed(kind: StoreKind) {
    let site = Site::new(kind).await;
    let mut acknowledged = topology().vpcs;
    for round in 0..3u32 {
        let mut program = Program::start(&site);
        let mut client = program.intent().await;
        if round == 0 {
            let objects = Some(topology());
            client.create(CreateRequest { objects }).await.unwrap();
        }
        for n in 0..20 {
            let vpc = Vpc {
                id: format!("v-{round}-{n}"),
                vni: 100 + round * 20 + n,
                ..Vpc::default()
            };
            let objects = Objects {
                vpcs: vec![vpc.clone()],
                ..Objects::default()
            };
            let request = ApplyRequest {
                objects: Some(objects),
                ..ApplyRequest::default()
            };
            client.apply(request).await.unwrap();
            acknowledged.push(vpc);
        }
        program.child.kill().unwrap();
        program.child.wait().unwrap();
    }
    let program = Program::start(&site);
    let mut client = program.intent().await;
    let replies = list(&mut client, "vpc", "").await;
    assert_eq!(replies[0].revision, 61);
    let mut stored = replies[0].objects.clone().unwrap().vpcs;
    stored.sort_by(|a, b| a.id.cmp(&b.id));
    acknowledged.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(stored, acknowledged);
}

async fn it_stops_cleanly_when_asked(kind: StoreKind) {
    let site = Site::new(kind).await;
    let mut program = Program::start(&site);
    // A stream that would never end by itself is open.
    let mut host = support::FakeHost::attach(&program.address, "h1", 0, vec![]).await;
    let kill = Command::new("kill")
        .arg(program.child.id().to_string())
        .status()
        .unwrap();
    assert!(kill.success());
    assert!(support::within(host.stream.message()).await.is_err());
    let start = std::time::Instant::now();
    let status = loop {
        if let Some(status) = program.child.try_wait().unwrap() {
            break status;
        }
        assert!(start.elapsed() < DEADLINE, "still running");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert_eq!(status.code(), Some(0));
    assert!(!site.path().join("socket").exists());
}

#[test]
fn check_accepts_a_good_file_and_names_what_is_wrong_with_a_bad_one() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        Command::new(env!("CARGO_BIN_EXE_weft-controller"))
            .arg("check")
            .arg(&file)
            .output()
            .unwrap()
    };
    let good = "listen = '127.0.0.1:1'\nstore = { kind = 'embedded', path = '/x' }\n";
    assert_eq!(check(good).status.code(), Some(0));
    let missing = check("listen = '127.0.0.1:1'\n");
    let said = String::from_utf8_lossy(&missing.stderr);
    assert_eq!(
        said.matches("missing field").count(),
        1,
        "said once: {said}"
    );
    let bad = check(&format!("{good}colour = 'blue'\n"));
    assert_eq!(bad.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("colour"));
    let file_as_directory = check(&good.replace("/x", "/dev/null/x"));
    assert_eq!(file_as_directory.status.code(), Some(1));
    let said = String::from_utf8_lossy(&file_as_directory.stderr);
    assert!(
        said.contains("store.path = /dev/null/x: Not a directory"),
        "{said}"
    );
    let usage = Command::new(env!("CARGO_BIN_EXE_weft-controller"))
        .arg("--colour")
        .output()
        .unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

/// `check` calls a configuration good whose store has no directory yet: the controller then makes it, for its own user alone.
#[tokio::test]
async fn a_missing_directory_of_the_store_is_made() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let within = directory.path().join("a/b");
    let config = directory.path().join("controller.toml");
    let address = format!("unix:{}", directory.path().join("socket").display());
    let text = format!(
        "listen = '{address}'\nstore = {{ kind = 'embedded', path = '{}/intent.redb' }}\n",
        within.display()
    );
    std::fs::write(&config, text).unwrap();
    let run = |flag: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft-controller"));
        command.arg(flag).arg(&config);
        command
    };
    assert!(run("check").status().unwrap().success());
    assert!(!within.exists(), "check makes nothing");
    let child = run("--config").stderr(Stdio::null()).spawn().unwrap();
    let program = Program { child, address };
    program.intent().await;
    let mode = std::fs::metadata(&within).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
