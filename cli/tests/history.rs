//! What weftctl tells of changes, and how it undoes and follows them.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Stdio;
use std::time::Duration;

use support::Scene;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

#[tokio::test]
async fn changes_are_listed_compared_and_undone() {
    let scene = Scene::with_topology().await;
    scene
        .run(
            "port create b3 --vpc blue --subnet blue-a --mac 02:00:00:00:00:03 --address 10.0.0.13",
        )
        .await
        .ok();
    scene
        .run("sg rule add web --protocol tcp --port 80")
        .await
        .ok();
    scene
        .run("sg rule add web --protocol tcp --port 443")
        .await
        .ok();
    scene.run("port delete b3").await.ok();
    let listed = scene.run("history").await.ok();
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 6, "{listed}");
    assert!(lines[0].starts_with("REVISION  TIME"), "{listed}");
    assert!(lines[1].starts_with("5         20"), "{listed}");
    assert!(lines[1].ends_with("delete  -port b3"), "{listed}");
    assert!(
        lines[2].ends_with("apply   ~security_group web"),
        "{listed}"
    );
    assert!(lines[4].ends_with("create  +port b3"), "{listed}");
    assert!(lines[5].ends_with("+subnet blue-a, and 6 more"), "{listed}");
    let of = scene.run("history sg web -o json").await.ok();
    let of: serde_json::Value = serde_json::from_str(&of).unwrap();
    let revisions: Vec<_> = of
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["revision"])
        .collect();
    assert_eq!(revisions, [4, 3, 1]);
    for (words, count) in [
        ("history --limit 2", 3),
        ("history --since 3", 3),
        ("history --since 1 --limit 1", 2),
        ("history port", 4),
        ("history --vpc blue", 6),
        ("history --vpc red", 1),
    ] {
        let listed = scene.run(words).await.ok();
        assert_eq!(listed.lines().count(), count, "{words}: {listed}");
    }
    scene.run("history prot").await.failed(2);

    assert_eq!(
        scene.run("diff 4").await.ok(),
        "security_group web\n+ rules: {\"direction\":\"ingress\",\"port_max\":443,\"port_min\":443,\"protocol\":\"tcp\"}\n"
    );
    let created = scene.run("diff 2").await.ok();
    assert!(created.starts_with("+ port b3\n+   "), "{created}");
    // What came and went in between does not show.
    let both = scene.run("diff 1 5").await.ok();
    assert_eq!(both.lines().count(), 3, "{both}");
    let both = scene.run("diff 1 5 -o json").await.ok();
    let both: serde_json::Value = serde_json::from_str(&both).unwrap();
    assert_eq!(both[0]["id"], "web");
    assert_eq!(both[0]["after"]["rules"].as_array().unwrap().len(), 2);
    scene.run("diff 3 2").await.failed(2);
    let late = scene.run("diff 99").await.failed(1);
    assert_eq!(late, "weftctl: the intent is at revision 5\n");

    let tried = scene.run("undo 5 --dry-run").await.ok();
    assert_eq!(tried, "1 created, 0 updated, 0 deleted; revision 5\n");
    let conflict = scene.run("undo 3").await.failed(1);
    assert_eq!(
        conflict,
        "weftctl: conflict:\nweftctl: security_group web has changed since revision 3\n"
    );
    let done = scene.run("undo 4").await.ok();
    assert_eq!(done, "0 created, 1 updated, 0 deleted; revision 6\n");
    scene.run("undo 3").await.ok();
    let shown = scene.run("sg show web").await.ok();
    assert!(
        shown.starts_with("# last changed at revision 7\n"),
        "{shown}"
    );
    assert!(!shown.contains("rules"), "{shown}");
    // What is shown is a topology file.
    let again = scene.run_with("apply -f -", &shown).await.ok();
    assert_eq!(again, "0 created, 0 updated, 0 deleted; revision 7\n");
}

#[tokio::test]
async fn rules_are_added_beside_other_writers() {
    let scene = Scene::with_topology().await;
    let busy = async {
        for n in 0..40 {
            scene.run(&format!("vpc create busy-{n}")).await.ok();
        }
    };
    let add = async |from: u32| {
        for port in from..from + 10 {
            let words = format!("sg rule add web --protocol tcp --port {port}");
            scene.run(&words).await.ok();
        }
    };
    tokio::join!(busy, add(100), add(200));
    let shown = scene.run("sg show web -o json").await.ok();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let rules = shown["security_groups"][0]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), 20);
}

/// The lines of a `weftctl watch`.
struct Watch {
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    _child: tokio::process::Child,
}

impl Watch {
    fn start(scene: &Scene, words: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_weftctl"))
            .args(words.split_whitespace())
            .env(
                "WEFT_CONTROLLER",
                format!("unix:{}", scene.path("controller").display()),
            )
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            _child: child,
        }
    }

    async fn next(&mut self) -> String {
        let line = tokio::time::timeout(Duration::from_secs(20), self.lines.next_line());
        line.await.unwrap().unwrap().unwrap()
    }
}

#[tokio::test]
async fn a_watch_prints_what_there_is_and_what_changes() {
    let scene = Scene::with_topology().await;
    let mut ports = Watch::start(&scene, "watch port");
    assert!(
        ports
            .next()
            .await
            .starts_with("1  put  port  b1  blue  blue-a")
    );
    assert!(ports.next().await.starts_with("1  put  port  b2  "));
    let mut all = Watch::start(&scene, "watch --from 1 -o json");
    scene.run("vpc create other --vni 9").await.ok();
    scene.run("port delete b2").await.ok();
    assert_eq!(ports.next().await, "3  deleted  port  b2");
    let created: serde_json::Value = serde_json::from_str(&all.next().await).unwrap();
    assert_eq!(
        created,
        serde_json::json!({"revision": 2, "put": {"vpcs": [{"id": "other", "vni": 9}]}})
    );
    assert_eq!(all.next().await, r#"{"revision":2}"#, "all of it was told");
    let deleted: serde_json::Value = serde_json::from_str(&all.next().await).unwrap();
    assert_eq!(deleted["deleted"]["id"], "b2");
    assert_eq!(all.next().await, r#"{"revision":3}"#);
    let early = scene.run("watch port --from 99").await.failed(1);
    assert_eq!(
        early,
        "weftctl: the intent is at revision 3, and not at 99 yet\n"
    );
}
