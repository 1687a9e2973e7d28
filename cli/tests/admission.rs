//! weftctl waits when it is told to try again later, and says so.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::Scene;

async fn scene(limits: &str) -> Scene {
    Scene::with_admission(toml::from_str(limits).unwrap()).await
}

#[tokio::test]
async fn a_refused_call_is_made_again_when_the_controller_says() {
    let scene = scene("operators = { objects_per_second = 10, objects_burst = 10 }").await;
    let vpcs: Vec<String> = (1..=40)
        .map(|n| format!("{{id: v{n}, vni: {n}}}"))
        .collect();
    let topology = format!("vpcs: [{}]", vpcs.join(","));
    scene.run_with("apply -f -", &topology).await.ok();
    let start = Instant::now();
    let ran = scene.run("vpc create blue --vni 77").await;
    assert_eq!(ran.err.lines().count(), 1, "{ran:?}");
    for part in ["operators.objects_per_second", "10 a second", "; waiting"] {
        assert!(ran.err.contains(part), "{ran:?}");
    }
    ran.ok();
    // 30 objects in debt, and one more, less what has come in until it was started.
    assert!(start.elapsed() > Duration::from_secs(1));
    let listed = scene.run("vpc list").await.ok();
    assert_eq!(listed.lines().count(), 42, "{listed}");
    let callers = scene.run("callers").await.ok();
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let objects = callers
        .lines()
        .find(|line| line.contains("objects_per_second"));
    let objects = words(objects.unwrap());
    // CALLER is four words.
    assert_eq!(objects[..4].join(" "), "callers without a certificate");
    assert_eq!((&*objects[5], &*objects[7]), ("10", "41"), "{callers}");
    assert_ne!(objects[8], "0", "{callers}");
}

#[tokio::test]
async fn a_call_that_would_wait_too_long_fails_at_once_with_the_reason() {
    let scene = scene("operators = { objects_per_second = 1, objects_burst = 1 }").await;
    let vpcs: Vec<String> = (1..=200)
        .map(|n| format!("{{id: v{n}, vni: {n}}}"))
        .collect();
    let topology = format!("vpcs: [{}]", vpcs.join(","));
    scene.run_with("apply -f -", &topology).await.ok();
    let start = Instant::now();
    let refused = scene.run("vpc create blue --vni 777").await.failed(1);
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(
        refused.contains("nothing was done, try again in"),
        "{refused}"
    );
    assert!(!refused.contains("waiting"), "{refused}");
    let listed = scene.run("vpc list").await.ok();
    assert!(!listed.contains("blue"), "{listed}");
}
