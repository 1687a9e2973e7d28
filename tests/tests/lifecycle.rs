//! b034, b035: daemons and devices that come and go: what keeps working, what recovers, what is refused.

#![allow(clippy::unwrap_used)]

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use weft_proto::v1::SecurityRule;
use weft_tests::{
    Lab, LabError, Namespace, RawSocket, Site, SiteOptions, load,
    site::program,
    tenants,
    traffic::Tally,
    wait_until,
    xdp_detach::{Attached, Hook},
};

const SOON: Duration = Duration::from_secs(10);

fn site_with(daemon: &str) -> Site {
    let options = SiteOptions {
        daemon: daemon.into(),
        ..SiteOptions::default()
    };
    Site::start(Lab::new().unwrap(), &tenants(2).unwrap(), &options).unwrap()
}

fn site() -> Site {
    site_with("")
}

/// The test's body, with what a person would look at first if it fails.
fn explained(site: &mut Site, body: impl FnOnce(&mut Site) -> Result<(), LabError>) {
    if let Err(error) = body(site) {
        panic!("{}", site.explain(error));
    }
}

fn kill_controller(site: &mut Site) -> Result<(), LabError> {
    if let Some(mut controller) = site.controller.take() {
        controller.signal(libc::SIGKILL);
        controller.wait(SOON)?;
    }
    Ok(())
}

fn kill_daemon(site: &mut Site, host: &str) -> Result<(), LabError> {
    if let Some(mut daemon) = site.hosts.get_mut(host).unwrap().daemon.take() {
        daemon.signal(libc::SIGKILL);
        daemon.wait(SOON)?;
    }
    Ok(())
}

fn workload<'a>(site: &'a Site, port: &str) -> &'a Namespace {
    &site.workloads[port].namespace
}

fn until_pings(site: &Site, from: &str, to: &str) -> Result<(), LabError> {
    wait_until(&format!("{from} reaches {to}"), SOON, || {
        site.pings(from, to)
    })
}

fn status(site: &Site, host: &str, field: &str) -> String {
    let status = site
        .node_json(host, &["node", "status"])
        .unwrap_or_default();
    status[field].to_string()
}

fn assert_no_loss(tally: Tally) {
    assert_eq!((tally.lost(), tally.twice), (0, 0), "{tally:?}");
}

/// Whether something at the interface's ingress keeps the host's stack apart.
fn is_guarded(namespace: &Namespace, interface: &str) -> bool {
    let hook = Hook::Tcx;
    let guard = Attached {
        pid: 0,
        namespace,
        interface,
        hook,
    };
    guard.is_there()
}

/// The XDP program on an interface, as the kernel tells.
fn has_program(namespace: &Namespace, interface: &str) -> bool {
    let shown = namespace.ip(&format!("-d link show {interface}")).unwrap();
    shown.contains("xdp")
}

#[test]
fn headless_a_host_forwards_on_and_starts_from_what_it_kept() {
    let mut site = site();
    explained(&mut site, |site| {
        let stream = site.stream("blue-1", "blue-2", 9, 1000)?;
        kill_controller(site)?;
        stream.wait_for_more(500)?;
        assert!(
            site.pings("red-1", "red-b"),
            "new flows without a controller"
        );
        assert_no_loss(stream.end());

        let revision = status(site, "h1", "revision");
        kill_daemon(site, "h1")?;
        site.start_daemon("h1")?;
        until_pings(site, "blue-1", "blue-2")?;
        until_pings(site, "red-2", "red-1")?;
        assert_eq!(status(site, "h1", "revision"), revision);
        assert_eq!(status(site, "h1", "controller"), "\"disconnected\"");

        site.start_controller()?;
        site.wait_for_hosts()?;
        site.change(|objects| {
            objects
                .security_groups
                .iter_mut()
                .for_each(|group| group.rules.clear());
        })?;
        assert!(
            !site.pings("blue-1", "blue-2"),
            "the controller is heard again"
        );
        Ok(())
    });
}

#[test]
fn b034_a_controller_that_restarts_costs_no_packet() {
    let mut site = site();
    explained(&mut site, |site| {
        let stream = site.stream("blue-1", "blue-b", 9, 1000)?;
        let pinging = workload(site, "red-1").clone();
        let pinging = std::thread::spawn(move || {
            pinging.run(&["ping", "-q", "-n", "-i", "0.01", "-c", "300", "10.0.1.12"])
        });
        for round in 0..2 {
            kill_controller(site)?;
            site.start_controller()?;
            site.wait_for_hosts()?;
            // A change of something else.
            site.change(|objects| {
                objects.security_groups[1].rules.push(SecurityRule {
                    direction: "ingress".into(),
                    protocol: "tcp".into(),
                    port_min: Some(round),
                    port_max: Some(round),
                    ..SecurityRule::default()
                });
            })?;
        }
        let pings = pinging.join().unwrap()?;
        assert!(pings.contains("300 received"), "{pings}");
        assert_no_loss(stream.end());
        Ok(())
    });
}

/// A daemon that stops and starts again takes up where it was, with the sessions of others untouched.
#[test]
fn b034_a_daemon_that_restarts_converges() {
    let mut site = site();
    explained(&mut site, |site| {
        kill_daemon(site, "h2")?;
        // The change waits for the host that is away.
        let mut objects = site.objects.clone();
        objects.ports.retain(|port| port.id != "red-2");
        site.objects = objects.clone();
        site.apply_only(&objects)?;
        site.start_daemon("h2")?;
        site.wait_for_hosts()?;
        until_pings(site, "blue-1", "blue-2")?;
        let state = site.node("h2", &["node", "status"])?;
        assert!(
            !state.contains("red-2") && state.contains("blue-2"),
            "{state}"
        );
        Ok(())
    });
}

#[test]
fn b035_a_port_deleted_with_traffic_in_flight() {
    let mut site = site();
    explained(&mut site, |site| {
        let stream = site.stream("red-1", "red-2", 9, 1000)?;
        let macs = ([2, 0, 0, 0, 1, 0x12], [2, 0, 0, 0, 1, 0x11]);
        let frames = load::udp_flows(macs, ([10, 0, 1, 11], [10, 0, 1, 12]), 200, 64);
        let socket = RawSocket::open(workload(site, "blue-1"), "eth0")?;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for frame in &frames {
                        let _ = socket.send(frame);
                    }
                    // The flood is not what is tested: the other tenant must not starve of processor.
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            let result = (0..3).try_for_each(|_| {
                let port = site
                    .objects
                    .ports
                    .iter()
                    .position(|port| port.id == "blue-1")
                    .unwrap();
                let mut port_object = None;
                wait_until("sessions of the port", SOON, || sessions(site, "h1") > 100)?;
                site.change(|objects| port_object = Some(objects.ports.remove(port)))?;
                wait_until("its sessions go", SOON, || sessions(site, "h1") == 0)?;
                site.change(|objects| objects.ports.insert(port, port_object.unwrap()))?;
                site.wait_for_ports()
            });
            stop.store(true, Ordering::Relaxed);
            result
        })?;
        assert_no_loss(stream.end());
        until_pings(site, "blue-1", "blue-2")?;
        site.wait_for_frames()
    });
}

/// Sessions of blue on a host.
fn sessions(site: &Site, host: &str) -> usize {
    let list = site
        .node_json(host, &["session", "list"])
        .unwrap_or_default();
    let rows = list["sessions"].as_array().cloned().unwrap_or_default();
    rows.iter().filter(|row| row["vpc"] != "red").count()
}

#[test]
fn a_device_that_is_made_again_comes_back_by_itself() {
    let mut site = site();
    explained(&mut site, |site| {
        let (host, guest) = (
            site.hosts["h1"].namespace.clone(),
            workload(site, "blue-1").clone(),
        );
        let up = |site: &Site| {
            let status = site
                .node_json("h1", &["node", "status"])
                .unwrap_or_default();
            let ports = status["ports"].as_array().cloned().unwrap_or_default();
            ports
                .iter()
                .any(|port| port["port"] == "blue-1" && port["up"] == true)
        };
        let stream = site.stream("red-1", "red-2", 9, 1000)?;
        for _ in 0..2 {
            host.ip("link del p-blue-1")?;
            wait_until("the port is down", SOON, || !up(site))?;
            host.ip(&format!(
                "link add p-blue-1 mtu 1430 type veth peer name eth0 mtu 1430 address 02:00:00:00:01:11 netns {}",
                guest.name()
            ))?;
            host.ip("link set p-blue-1 up")?;
            guest.ip("link set eth0 up")?;
            guest.ip("address add 10.0.1.11/24 dev eth0")?;
            guest.ip("address add fd00:1::11/64 dev eth0 nodad")?;
            wait_until("the port is up", SOON, || up(site))?;
            until_pings(site, "blue-1", "blue-2")?;
        }
        assert_no_loss(stream.end());
        site.wait_for_frames()
    });
}

/// A port's state and why it is so, as the controller tells.
fn condition(site: &Site, port: &str) -> (String, String) {
    let told = site.ctl(&["port", "status", port, "-o", "json"]);
    let told: serde_json::Value =
        serde_json::from_str(&told.unwrap_or_default()).unwrap_or_default();
    let field = |name: &str| told[0][name].as_str().unwrap_or_default().to_owned();
    (field("state"), field("reason"))
}

#[test]
fn the_controller_tells_whether_packets_pass_a_port_and_why_not() {
    let mut site = site();
    explained(&mut site, |site| {
        let (host, guest) = (
            site.hosts["h1"].namespace.clone(),
            workload(site, "blue-1").clone(),
        );
        let wait = |site: &Site, state: &str| {
            site.ctl(&["port", "wait", "blue-1", state, "--timeout", "10s"])
        };
        wait(site, "--up")?;
        host.ip("link set p-blue-1 down")?;
        wait(site, "--down")?;
        let told = condition(site, "blue-1");
        assert_eq!(told.1, "interface p-blue-1 is down");
        host.ip("link set p-blue-1 up")?;
        wait(site, "--up")?;
        guest.ip("link set eth0 down")?;
        wait(site, "--down")?;
        let (_, reason) = condition(site, "blue-1");
        assert!(reason.contains("has no carrier"), "{reason}");
        guest.ip("link set eth0 up")?;
        wait(site, "--up")?;
        // The others were up all the while, and a controller that restarts is told so.
        kill_controller(site)?;
        site.start_controller()?;
        wait(site, "--up")?;
        wait_until("the other host is back too", SOON, || {
            condition(site, "red-2").0 == "up"
        })?;
        kill_daemon(site, "h1")?;
        wait_until("its host is gone", SOON * 3, || {
            condition(site, "blue-1").0 == "unknown"
        })?;
        assert_eq!(condition(site, "blue-2").0, "up");
        site.start_daemon("h1")?;
        wait(site, "--up").map(drop)
    });
}

#[test]
fn sigterm_ends_cleanly_and_leaves_uplinks_as_they_were_and_ports_closed() {
    let mut site = site();
    explained(&mut site, |site| {
        let host = site.hosts["h1"].namespace.clone();
        assert!(has_program(&host, "u0") && has_program(&host, "p-blue-1"));
        let mut daemon = site.hosts.get_mut("h1").unwrap().daemon.take().unwrap();
        let ended = daemon.stop(SOON)?;
        assert_eq!(ended.code(), Some(0), "{}", daemon.log());
        for interface in ["u0", "p-blue-1", "p-red-1"] {
            assert!(!has_program(&host, interface), "{interface}");
            assert_eq!(is_guarded(&host, interface), interface != "u0");
        }
        assert!(host.pings("192.0.2.2", 2), "the host's own traffic");
        assert!(!site.directory().join("h1.sock").exists());
        site.start_daemon("h1")?;
        until_pings(site, "blue-1", "blue-2")
    });
}

#[test]
fn sigkill_leaves_nothing_on_uplinks_and_the_guard_on_ports() {
    let mut site = site();
    explained(&mut site, |site| {
        let host = site.hosts["h1"].namespace.clone();
        kill_daemon(site, "h1")?;
        wait_until("the kernel takes the programs off", SOON, || {
            !["u0", "p-blue-1", "p-red-1"]
                .iter()
                .any(|interface| has_program(&host, interface))
        })?;
        assert!(is_guarded(&host, "p-blue-1") && is_guarded(&host, "p-red-1"));
        assert!(!is_guarded(&host, "u0"));
        assert!(host.pings("192.0.2.2", 2), "the host's own traffic");
        // Over the socket that the dead one left.
        site.start_daemon("h1")?;
        until_pings(site, "blue-1", "blue-2")
    });
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let mut site = site();
    explained(&mut site, |site| {
        let config = site.hosts["h1"].config.clone();
        let second = site.hosts["h1"].namespace.run(&[
            program("weftd")?.as_os_str(),
            "--config".as_ref(),
            config.as_os_str(),
        ]);
        let message = second.unwrap_err().to_string();
        assert!(message.contains("exit status: 1"), "{message}");
        until_pings(site, "blue-1", "blue-2")?;
        assert!(has_program(&site.hosts["h1"].namespace, "u0"));
        assert_ne!(
            status(site, "h1", "host"),
            "null",
            "the socket is still the first one's"
        );
        Ok(())
    });
}

/// Runs a program of ours to its end: exit code and what it said.
fn ended(name: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let out = Command::new(program(name).unwrap())
        .args(arguments)
        .output()
        .unwrap();
    (
        out.status.code(),
        String::from_utf8_lossy(&out.stderr).into_owned(),
    )
}

#[test]
fn bad_configuration_is_refused_with_the_field_named() {
    let directory = std::env::temp_dir().join(format!("weft-config-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("bad.toml");
    let path = file.to_str().unwrap();
    let good = "host = 'h1'\ncontroller = 'unix:/nowhere'\nuplinks = [{ interface = 'none0' }]\n";
    for (text, named) in [
        (format!("{good}colour = 'red'\n"), "colour"),
        (
            format!("{good}[memory]\nframe_size = 1000\n"),
            "memory.frame_size",
        ),
        (format!("{good}[sessions]\ncapacity = 'many'\n"), "capacity"),
        (good.replace("host = 'h1'", ""), "host"),
        (good.replace("none0' }]", "none0', speed = 1 }]"), "speed"),
        (good.to_owned(), "none0"),
    ] {
        std::fs::write(&file, &text).unwrap();
        let (code, message) = ended("weftd", &["--config", path]);
        assert_eq!(code, Some(1), "{text}: {message}");
        assert!(message.contains(named), "{text}: {message}");
    }
    for (text, named) in [
        (
            "listen = 'unix:/nowhere/x.sock'\nstore = { kind = 'paper' }\n",
            "paper",
        ),
        ("colour = 'red'\n", "colour"),
    ] {
        std::fs::write(&file, text).unwrap();
        let (code, message) = ended("weft-controller", &["--config", path]);
        assert_eq!(code, Some(1), "{text}: {message}");
        assert!(message.contains(named), "{text}: {message}");
    }
    for name in ["weftd", "weft-controller", "weftctl"] {
        assert_eq!(ended(name, &["--bogus"]).0, Some(2), "{name}");
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_change_that_a_host_has_no_room_for_does_not_block_a_later_good_one() {
    let mut site = site_with("limits.ports = 4");
    explained(&mut site, |site| {
        let stream = site.stream("blue-1", "blue-2", 9, 1000)?;
        let good = site.objects.clone();
        let refused = site.change(|objects| {
            let mut port = objects.ports[0].clone();
            for n in 30..33 {
                port.id = format!("blue-{n}");
                port.mac = format!("02:00:00:00:01:{n}");
                port.addresses = vec![format!("10.0.1.{n}")];
                port.device.as_mut().unwrap().name = format!("p-blue-{n}");
                objects.ports.push(port.clone());
            }
        });
        let message = refused.unwrap_err().to_string();
        let rule = "host 'h1' would have to hold 5 ports, and holds at most 4 (limits.ports of its weftd.toml)";
        assert!(message.contains(rule), "{message}");
        assert!(site.pings("blue-1", "red-2"), "what was in force stays");
        // Red goes, and what is left fits.
        site.change(|objects| {
            *objects = good;
            objects.ports.retain(|port| port.vpc == "blue");
        })?;
        assert_no_loss(stream.end());
        until_pings(site, "blue-1", "blue-b")
    });
}

#[test]
fn sighup_takes_up_what_can_change_and_survives_a_bad_file() {
    let mut site = site();
    explained(&mut site, |site| {
        let stream = site.stream("blue-1", "blue-2", 9, 1000)?;
        let config = site.hosts["h1"].config.clone();
        let text = std::fs::read_to_string(&config).unwrap();
        let daemon = site.hosts.get_mut("h1").unwrap().daemon.as_mut().unwrap();
        for (more, said) in [
            (
                "sessions.icmp = 90",
                "session idle times and idle mode reloaded",
            ),
            ("sessions.icmp = 1", "sessions.icmp"),
        ] {
            std::fs::write(&config, format!("{text}\n{more}\n")).unwrap();
            daemon.signal(libc::SIGHUP);
            daemon.wait_for_output(said, SOON)?;
        }
        assert!(daemon.is_running());
        assert_no_loss(stream.end());
        Ok(())
    });
}

/// The state file stands in for the controller; SIGHUP reads it again.
#[test]
fn a_state_file_stands_in_for_the_controller() {
    let mut site = site();
    explained(&mut site, |site| {
        let file = site.restart_from_file("h1")?;
        let state = std::fs::read_to_string(&file).unwrap();
        until_pings(site, "blue-2", "blue-1")?;
        assert_eq!(status(site, "h1", "controller"), "\"file\"");

        std::fs::write(
            &file,
            state.replace(r#"direction":"ingress"#, r#"direction":"egress"#),
        )
        .unwrap();
        let daemon = site.hosts.get_mut("h1").unwrap().daemon.as_mut().unwrap();
        daemon.signal(libc::SIGHUP);
        daemon.wait_for_output("state file reloaded", SOON)?;
        assert!(!site.pings("blue-2", "blue-1"), "nothing may come in now");
        assert!(site.pings("blue-1", "blue-2"), "everything may go out");
        let daemon = site.hosts.get_mut("h1").unwrap().daemon.as_mut().unwrap();
        std::fs::write(&file, state.replace("10.0.1.11", "10.9.9.9")).unwrap();
        daemon.signal(libc::SIGHUP);
        daemon.wait_for_output(
            "cannot reload the state file; the old state stays in force",
            SOON,
        )?;
        assert!(site.pings("blue-1", "blue-2"), "it stays as it was");
        Ok(())
    });
}
