//! The lab harness itself.

#![allow(clippy::unwrap_used)]

use std::{process::Command, time::Duration};

use weft_tests::{Capture, Lab, LabError, WorkloadOptions, wait_until};

const SOON: Duration = Duration::from_secs(5);

fn namespaces() -> String {
    let list = Command::new("ip").args(["netns", "list"]).output().unwrap();
    String::from_utf8_lossy(&list.stdout).into_owned()
}

#[test]
fn a_lab_leaves_nothing_behind() {
    let name = {
        let mut lab = Lab::new().unwrap();
        let host = lab.host("h1").unwrap();
        assert!(namespaces().contains(host.name()));
        let mut sleeper = host.spawn("sleep", &["1000"]).unwrap();
        assert!(sleeper.is_running());
        // Forgotten on purpose: the lab ends it all the same.
        std::mem::forget(sleeper);
        host.name().to_owned()
    };
    assert!(!namespaces().contains(&name));
}

#[test]
fn a_lab_leaves_nothing_behind_after_a_panic() {
    let caught = std::panic::catch_unwind(|| {
        let mut lab = Lab::new().unwrap();
        let name = lab.host("h1").unwrap().name().to_owned();
        std::panic::panic_any(name);
    });
    let name = caught.unwrap_err().downcast::<String>().unwrap();
    assert!(!namespaces().contains(name.as_str()));
}

#[test]
fn two_workloads_on_a_bridge_talk_and_are_recorded() {
    let mut lab = Lab::new().unwrap();
    let host = lab.host("h1").unwrap();
    host.ip("link add br0 type bridge").unwrap();
    host.ip("link set br0 up").unwrap();
    let mut workload = |name: &str, mac, addresses| {
        let options = WorkloadOptions {
            mac,
            addresses,
            gateways: &["10.0.0.254", "fd00::254"],
            ..WorkloadOptions::default()
        };
        let workload = lab.workload(&host, name, &options).unwrap();
        host.ip(&format!("link set {} master br0", workload.port))
            .unwrap();
        workload
    };
    let a = workload("a", "02:00:00:00:00:0a", &["10.0.0.1/24", "fd00::1/64"]);
    let b = workload("b", "02:00:00:00:00:0b", &["10.0.0.2/24", "fd00::2/64"]);
    let mut capture = Capture::start(&b.namespace, "eth0", "icmp").unwrap();
    wait_until("the bridge", SOON, || a.namespace.pings("10.0.0.2", 1)).unwrap();
    assert!(a.namespace.pings("fd00::2", 2));
    assert!(
        a.namespace
            .ip("route show default")
            .unwrap()
            .contains("10.0.0.254")
    );
    capture.stop().unwrap();
    let sources = capture
        .decode("icmp.type == 8", &["eth.src", "ip.src"])
        .unwrap();
    assert!(
        sources.contains(&"02:00:00:00:00:0a\t10.0.0.1".to_owned()),
        "{sources:?}"
    );
    assert_eq!(capture.faults().unwrap(), Vec::<String>::new());
}

#[test]
fn what_does_not_come_true_is_named() {
    let error = wait_until("the impossible", Duration::from_millis(20), || false).unwrap_err();
    assert!(matches!(&error, LabError::Deadline { .. }));
    assert!(error.to_string().contains("the impossible"), "{error}");
    let mut lab = Lab::new().unwrap();
    let error = lab
        .host("h1")
        .unwrap()
        .run(&["ip", "link", "show", "none0"])
        .unwrap_err();
    assert!(error.to_string().contains("none0"), "{error}");
}
