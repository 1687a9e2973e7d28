//! Privileges and supervision: the daemons drop what they do not need and still work, they notify the service manager, and systemd accepts
//! their units.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap, fs, os::unix::net::UnixDatagram, path::Path, process::Command,
    time::Duration,
};

use weft_proto::v1::Device;
use weft_tests::{
    HaltedThread, Lab, LabError, Site, SiteOptions, site::program, tenants, wait_until,
};

const SOON: Duration = Duration::from_secs(10);

fn site() -> Site {
    Site::start(
        Lab::new().unwrap(),
        &tenants(2).unwrap(),
        &SiteOptions::default(),
    )
    .unwrap()
}

fn explained(site: &mut Site, body: impl FnOnce(&mut Site) -> Result<(), LabError>) {
    if let Err(error) = body(site) {
        panic!("{}", site.explain(error));
    }
}

/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON and CAP_BPF (capabilities(7)).
const DATAPLANE: u64 = 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39;

/// What every thread of a process may do is this and nothing else, for good.
fn assert_keeps(pid: u32, kept: u64) {
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        // A thread may have ended meanwhile.
        let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else {
            continue;
        };
        let fields: BTreeMap<&str, &str> = status
            .lines()
            .filter_map(|line| line.split_once(":\t"))
            .collect();
        let set = |name: &str| u64::from_str_radix(fields[name], 16).unwrap();
        let name = fields["Name"];
        for (field, wanted) in [
            ("CapPrm", kept),
            ("CapEff", kept),
            ("CapBnd", kept),
            ("CapInh", 0),
            ("CapAmb", 0),
        ] {
            assert_eq!(set(field), wanted, "{field} of {name}: {:x}", set(field));
        }
        assert_eq!(fields["NoNewPrivs"], "1", "{name}");
        threads += 1;
    }
    assert!(threads > 2, "{threads} threads");
}

#[test]
fn daemons_keep_what_they_need_alone_and_work_with_that() {
    let mut site = site();
    explained(&mut site, |site| {
        let check = |site: &Site| {
            assert_keeps(site.hosts["h1"].daemon.as_ref().unwrap().pid(), DATAPLANE);
            assert_keeps(site.controller.as_ref().unwrap().pid(), 0);
        };
        check(site);
        // A port of each kind that comes later.
        let mut port = site.objects.ports[0].clone();
        port.id = "blue-3".into();
        port.mac = "02:00:00:00:01:13".into();
        port.addresses = vec!["10.0.1.13".into(), "fd00:1::13".into()];
        port.device.as_mut().unwrap().name = "p-blue-3".into();
        site.prepare(&mut port, &SiteOptions::default())?;
        let other = |number: u8, kind: &str, name: String| {
            let mut other = port.clone();
            other.id = format!("blue-{number}");
            other.mac = format!("02:00:00:00:01:{number}");
            other.addresses = vec![format!("10.0.1.{number}")];
            other.device = Some(Device {
                kind: kind.into(),
                name,
                ..Device::default()
            });
            other
        };
        let socket = site.directory().join("later.vhost");
        let tap = other(31, "tap", "later".into());
        let guest = other(32, "vhost-user", socket.display().to_string());
        site.change(|objects| objects.ports.extend([port, tap, guest]))?;
        wait_until("the new port works", SOON, || {
            site.pings("blue-3", "blue-2")
        })?;
        let host = site.hosts["h1"].namespace.clone();
        wait_until("the tap is there", SOON, || {
            host.ip("link show later").is_ok()
        })?;
        wait_until("the socket is there", SOON, || socket.exists())?;
        check(site);
        // And everything after a restart.
        let mut daemon = site.hosts.get_mut("h1").unwrap().daemon.take().unwrap();
        assert_eq!(daemon.stop(SOON)?.code(), Some(0));
        site.start_daemon("h1")?;
        wait_until("it works again", SOON, || {
            site.pings("blue-3", "blue-2") && site.pings("blue-1", "blue-3")
        })?;
        check(site);
        Ok(())
    });
}

#[test]
fn a_service_manager_hears_how_the_daemon_is() {
    let mut site = site();
    explained(&mut site, |site| {
        let name = site.directory().join("notify");
        let manager = UnixDatagram::bind(&name).unwrap();
        manager
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let hears = |wanted: &str, within: Duration| {
            wait_until(wanted, within, || {
                let mut text = [0; 64];
                let length = manager.recv(&mut text).unwrap_or(0);
                &text[..length] == wanted.as_bytes()
            })
        };
        let entry = site.hosts.get_mut("h1").unwrap();
        entry.daemon.take().unwrap().stop(SOON)?;
        let variables = [
            format!("NOTIFY_SOCKET={}", name.display()),
            "WATCHDOG_USEC=600000".to_owned(),
        ];
        let weftd = program("weftd")?.display().to_string();
        let config = entry.config.display().to_string();
        let line = [&variables[0], &variables[1], &weftd, "--config", &config];
        let daemon = entry.namespace.spawn("env", &line)?;
        let pid = daemon.pid();
        entry.daemon = Some(daemon);
        hears("READY=1", SOON)?;
        hears("WATCHDOG=1", SOON)?;
        let halted = HaltedThread::of(pid, "worker-0")?;
        wait_until("it is no longer said to be well", SOON, || {
            hears("WATCHDOG=1", Duration::from_secs(1)).is_err()
        })?;
        drop(halted);
        hears("WATCHDOG=1", SOON)?;
        wait_until("it works", SOON, || site.pings("blue-1", "blue-2"))?;
        let mut daemon = site.hosts.get_mut("h1").unwrap().daemon.take().unwrap();
        daemon.stop(SOON)?;
        hears("STOPPING=1", SOON)
    });
}

#[test]
fn the_units_are_understood_and_shut_in() {
    let directory = std::env::temp_dir().join(format!("weft-units-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd");
    // The most exposed that each may be, in tenths of systemd's points out of ten.
    for (name, threshold) in [("weftd", "45"), ("weft-controller", "20")] {
        let text = fs::read_to_string(units.join(format!("{name}.service"))).unwrap();
        let installed = format!("/usr/bin/{name}");
        let built = program(name).unwrap().display().to_string();
        let unit = directory.join(format!("{name}.service"));
        fs::write(&unit, text.replace(&installed, &built)).unwrap();
        let limit = format!("--threshold={threshold}");
        for line in [&["verify"][..], &["security", "--offline=true", &limit]] {
            let out = Command::new("systemd-analyze")
                .args(line)
                .arg(&unit)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&out.stderr);
            let said = format!("{}{said}", String::from_utf8_lossy(&out.stdout));
            assert!(out.status.success(), "{line:?}: {said}");
        }
    }
    fs::remove_dir_all(&directory).unwrap();
}
