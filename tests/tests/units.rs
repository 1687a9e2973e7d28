//! The units of packaging/systemd, unchanged and installed as docs/operations.md says, under a real systemd: one machine runs the
//! controller, one a weftd, and another host is started by hand. The daemons do all their work inside the sandbox of their units.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
    time::Duration,
};

use weft_proto::v1::Device;
use weft_tests::{
    Guest, HaltedThread, Lab, LabError, Namespace, ServiceManager, Site, SiteOptions,
    guest::{Backend, GuestOptions, Nic, NicFeatures},
    site::program,
    tenants, wait_until,
    xdp_detach::{Attached, Hook},
};

const SOON: Duration = Duration::from_secs(20);
const VHOST: &str = "/run/weft/blue-4.sock";
const TAP: &str = "t-blue-5";
/// Between namespaces, from host to host both ways.
const NAMESPACES: &[(&str, &str)] = &[("blue-1", "blue-2"), ("red-2", "red-1")];
/// To the cards of the virtual machine, from its own host and from the other.
const MACHINE: &[(&str, &str)] = &[
    ("blue-1", "blue-4"),
    ("blue-2", "blue-4"),
    ("blue-b", "blue-5"),
];

/// The site, and the machines whose systemd runs its daemons.
struct Machines {
    // Before the namespaces that they run in.
    host: ServiceManager,
    control: ServiceManager,
    site: Site,
}

/// What the sandbox of each unit refuses to its programs: lines of shell that root may do outside, and nobody inside.
const REFUSED: &str = r#"
unshare --mount true
unshare --uts true
setarch --addr-no-randomize true
touch $RUNTIME_DIRECTORY/s && chmod u+s $RUNTIME_DIRECTORY/s
mount -t tmpfs tmpfs /mnt
chrt --fifo 1 true
hostname other
dmesg
ls /home
ls /proc/1
ls /proc/sys
/usr/bin/python3 -c 'import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)'
/usr/bin/python3 -c 'import socket; socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)'
"#;

/// And what that of the controller refuses besides.
const REFUSED_TO_THE_CONTROLLER: &str = r#"
unshare --net true
/usr/bin/python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)'
/usr/bin/python3 -c 'import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM)'
ls /dev/net
mkdir /sys/fs/cgroup/other && rmdir /sys/fs/cgroup/other
"#;

/// The programs, the configuration, and a copy of what the repository says on units and users.
fn provide(machine: &ServiceManager, unit: &str, config: (&str, &str)) -> Result<(), LabError> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for name in [unit, "weftctl"] {
        machine.install(&program(name)?, &format!("/usr/bin/{name}"), 0o755)?;
    }
    for file in [
        "systemd/weftd.service",
        "systemd/weft-controller.service",
        "sysusers.d/weft.conf",
    ] {
        let file = format!("packaging/{file}");
        machine.install(&repository.join(&file), &format!("/source/{file}"), 0o644)?;
    }
    let (path, text) = config;
    machine.write(path, text, 0o644)
}

/// Installs, enables and starts a unit by the very lines of docs/operations.md, "Run by systemd".
fn start_as_documented(machine: &ServiceManager, unit: &str) -> Result<(), LabError> {
    let text = include_str!("../../docs/operations.md");
    let section = text.split("\n## Run by systemd\n").nth(1).unwrap();
    let lines = section.split("```").nth(1).unwrap().lines();
    // The other unit is for another machine.
    let lines = lines.filter(|line| {
        let mut words = line.split_whitespace();
        !line.contains(" enable ") || words.any(|word| word == unit)
    });
    let script = lines.collect::<Vec<_>>().join("\n");
    assert!(script.contains("enable"), "{script}");
    machine
        .run(&["sh", "-ec", &format!("cd /source\n{script}")])
        .map(drop)
}

impl Machines {
    /// A site of two hosts works; then its controller and the weftd of `h1` are run by systemd instead.
    fn start() -> Self {
        let options = SiteOptions {
            remote_controller: true,
            cores: vec![vec![0], vec![]],
            ..SiteOptions::default()
        };
        let lab = Lab::new().unwrap();
        let mut site = Site::start(lab, &tenants(2).unwrap(), &options)
            .unwrap_or_else(|error| panic!("{error}"));
        site.controller = None;
        let entry = site.hosts.get_mut("h1").unwrap();
        entry.daemon = None;
        let control = ServiceManager::start(&site.controller_namespace).unwrap();
        let host = ServiceManager::start(&entry.namespace).unwrap();
        // Where it keeps its state, and where it answers, are left to the defaults.
        let config = fs::read_to_string(&entry.config).unwrap();
        let settings = config
            .lines()
            .filter(|line| !line.starts_with("state_directory") && !line.starts_with("socket"));
        let mut config: Vec<&str> = settings.collect();
        config.push("workers.threaded_napi = true");
        entry.socket = host.path("/run/weft/weftd.sock");
        provide(
            &control,
            "weft-controller",
            (
                "/etc/weft/controller.toml",
                "listen = '0.0.0.0:7470'\nstore = { kind = 'embedded', path = '/var/lib/weft-controller/intent.redb' }\n",
            ),
        )
        .unwrap();
        provide(&host, "weftd", ("/etc/weft/weftd.toml", &config.join("\n"))).unwrap();
        Self {
            host,
            control,
            site,
        }
    }

    fn explained(&mut self, body: impl FnOnce(&mut Self) -> Result<(), LabError>) {
        if let Err(error) = body(self) {
            let error = self.site.explain(error);
            let [controller, weftd] = self.journals();
            panic!("{error}\n--- journals\n{controller}\n{weftd}");
        }
    }

    fn journals(&self) -> [String; 2] {
        [
            self.control.journal("weft-controller"),
            self.host.journal("weftd"),
        ]
    }

    /// Installs and starts both units, gives the controller its intent, and waits until traffic crosses.
    fn start_units(&self) -> Result<(), LabError> {
        start_as_documented(&self.control, "weft-controller")?;
        start_as_documented(&self.host, "weftd")?;
        wait_until("the controller answers", SOON, || {
            self.site.ctl(&["hosts"]).is_ok()
        })?;
        self.site.apply_only(&self.site.objects)?;
        self.site.wait_for_hosts()?;
        self.site.wait_for_ports()?;
        self.until_they_ping(NAMESPACES)
    }

    /// Waits until pings cross.
    fn until_they_ping(&self, flows: &[(&str, &str)]) -> Result<(), LabError> {
        for (from, to) in flows {
            wait_until(&format!("{from} reaches {to}"), SOON, || {
                self.site.pings(from, to)
            })?;
        }
        Ok(())
    }

    /// Waits until the weftd of systemd is up with another process than `old`, and traffic crosses.
    fn until_back(&self, old: u32) -> Result<u32, LabError> {
        let mut now = old;
        wait_until("another weftd is ready", SOON, || {
            let state = self.host.property("weftd", "ActiveState");
            now = self.host.main_pid("weftd").unwrap_or(old);
            now != old && state.is_ok_and(|state| state == "active")
        })?;
        self.until_they_ping(NAMESPACES)?;
        Ok(now)
    }
}

/// The fields of `/proc/PID/status`.
fn status(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(":\t"));
    fields
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The user of a name, on a machine.
fn user(machine: &ServiceManager, name: &str) -> Result<u32, LabError> {
    let text = machine.run(&["id", "-u", name])?;
    Ok(text.trim().parse().unwrap())
}

/// Whether a command succeeds where a process is: with its view of the file system, and in its control group, whose devices it may open.
fn can(pid: u32, group: &Path, line: &str) -> bool {
    let script = format!(
        "echo 0 >{}/cgroup.procs && exec nsenter --mount --target {pid} sh -c '{line}'",
        group.display()
    );
    let out = Command::new("sh").args(["-c", &script]).output().unwrap();
    out.status.success()
}

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

fn has_program(namespace: &Namespace, interface: &str) -> bool {
    let shown = namespace.ip(&format!("-d link show {interface}")).unwrap();
    shown.contains("xdp")
}

/// What a unit's sandbox leaves to a process, as the kernel tells: a system call filter, the user, no way to more, the capabilities.
fn assert_shut_in(pid: u32, user: u32, capabilities: u64) {
    let status = status(pid);
    assert_eq!(status["Seccomp"], "2", "filters system calls");
    assert_eq!(status["NoNewPrivs"], "1");
    let users: Vec<u32> = status["Uid"]
        .split_whitespace()
        .map(|user| user.parse().unwrap())
        .collect();
    assert_eq!(users, [user; 4], "its user");
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let set = u64::from_str_radix(&status[set], 16).unwrap();
        assert_eq!(set, capabilities, "{set:x}");
    }
}

/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON and CAP_BPF (capabilities(7)).
const DATAPLANE: u64 = 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39;

/// A virtual machine with a card on a socket and one on a tap, both made by weftd for ports that are added here.
fn add_guest(machines: &mut Machines) -> Result<Guest, LabError> {
    let example = machines.site.objects.ports[0].clone();
    let port = |number: u8, subnet: &str, address: &str, kind: &str, name: &str| {
        let mut port = example.clone();
        port.id = format!("blue-{number}");
        port.subnet = subnet.into();
        port.mac = format!("02:00:00:00:01:1{number}");
        port.addresses = vec![address.into()];
        port.device = Some(Device {
            kind: kind.into(),
            name: name.into(),
            ..Device::default()
        });
        port
    };
    let ports = [
        port(4, "blue-a", "10.0.1.14", "vhost-user", VHOST),
        port(5, "blue-b", "10.0.2.15", "tap", TAP),
    ];
    let backends = [
        Backend::VhostUser {
            socket: machines.host.path(VHOST),
            listen: false,
        },
        Backend::Tap {
            interface: TAP.into(),
        },
    ];
    let nics = ports.iter().zip(backends).map(|(port, backend)| Nic {
        id: port.id.clone(),
        mac: port.mac.clone(),
        backend,
        features: NicFeatures {
            // A guest that sees its link go down asks for its neighbours anew, a second later.
            link_status: false,
            ..NicFeatures::default()
        },
    });
    let options = GuestOptions {
        nics: nics.collect(),
        ..GuestOptions::default()
    };
    machines
        .site
        .change(|objects| objects.ports.extend(ports))?;
    let host = machines.site.hosts["h1"].namespace.clone();
    let socket = machines.host.path(VHOST);
    wait_until("the devices are there", SOON, || {
        socket.exists() && host.ip(&format!("link show {TAP}")).is_ok()
    })?;
    Guest::start(&host, "two-cards", machines.site.directory(), &options)
}

#[test]
fn daemons_do_all_that_they_do_in_the_sandbox_of_their_units() {
    let mut machines = Machines::start();
    machines.explained(|machines| {
        machines.start_units()?;
        let Machines { control, host, .. } = &*machines;
        let controller = control.main_pid("weft-controller")?;
        let owner = user(control, "weft-controller")?;
        assert_ne!(owner, 0);
        assert_shut_in(controller, owner, 0);
        let users = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
        assert_ne!(
            users(controller),
            users(control.pid()),
            "knows no users but its own"
        );
        let weftd = host.main_pid("weftd")?;
        assert_shut_in(weftd, 0, DATAPLANE);

        // Directories and files, of whom they are, and for whom.
        let access = |machine: &ServiceManager, path: &str| {
            let data = fs::metadata(machine.path(path)).unwrap();
            (data.permissions().mode() & 0o7777, data.uid(), data.gid())
        };
        let store = "/var/lib/weft-controller";
        assert_eq!(access(control, store), (0o700, owner, owner));
        let database = format!("{store}/intent.redb");
        assert_eq!(access(control, &database), (0o600, owner, owner));
        let run = access(control, "/run/weft-controller");
        assert_eq!(run, (0o755, owner, owner));
        assert_eq!(access(host, "/var/lib/weft"), (0o700, 0, 0));
        assert_eq!(access(host, "/run/weft"), (0o755, 0, 0));
        assert_eq!(access(host, "/run/weft/weftd.sock"), (0o660, 0, 0));
        let status = ["weftctl", "node", "status"];
        assert!(host.run(&status)?.contains("p-blue-1"));
        let as_other = ["setpriv", "--reuid=65534", "--clear-groups"];
        let nobody = [&as_other[..], &["--regid=65534"], &status].concat();
        let operator = [&as_other[..], &["--regid=operator"], &status].concat();
        assert!(host.run(&nobody).is_err(), "others may not ask weftd");
        assert!(host.run(&operator).is_err(), "nor may an operator yet");

        // What both may write and open.
        for (machine, unit, pid) in [
            (control, "weft-controller", controller),
            (host, "weftd", weftd),
        ] {
            let mine = unit.trim_end_matches('d');
            machine.run(&["mknod", "/dev/kernel", "c", "1", "11"])?;
            let group = machine.property(unit, "ControlGroup")?;
            let group = machine.path(&format!("/sys/fs/cgroup{group}"));
            let can = |line: &str| can(pid, &group, line);
            for path in [format!("/run/{mine}"), format!("/var/lib/{mine}")] {
                assert!(
                    can(&format!("touch {path}/mine && rm {path}/mine")),
                    "{path}"
                );
            }
            for path in [
                "/etc/weft",
                "/usr/bin",
                "/run",
                "/var/lib",
                "/sys/fs/cgroup",
            ] {
                assert!(
                    !can(&format!("mkdir {path}/other")),
                    "{unit} writes to {path}"
                );
            }
            machine.write("/tmp/other", "", 0o644)?;
            assert!(!can("cat /tmp/other"), "{unit} sees files of others");
            assert!(can(": </dev/zero"), "{unit}");
            assert!(!can(": </dev/kernel"), "{unit} reads the kernel's log");
            assert_eq!(can(": </dev/net/tun"), unit == "weftd", "{unit} makes taps");
        }
        let threaded = host.path("/sys/class/net/p-blue-1/threaded");
        let threaded = || fs::read_to_string(&threaded).unwrap();
        assert_eq!(threaded().trim(), "1");

        let guest = add_guest(machines)?;
        guest.wait_up()?;
        guest.succeed("ip address add 10.0.1.14/24 dev eth0 && ip link set eth0 mtu 1430 up")?;
        guest.succeed("ip address add 10.0.2.15/24 dev eth1 && ip link set eth1 mtu 1430 up")?;
        machines.site.wait_for_ports()?;
        machines.until_they_ping(MACHINE)?;
        machines.until_they_ping(NAMESPACES)?;

        // All of it again, but what the filter refuses is the end of a process: nothing was refused in silence.
        let Machines { control, host, .. } = &*machines;
        let strict = "SystemCallErrorNumber=kill\n";
        drop_in(control, "weft-controller", strict)?;
        control.systemctl("restart weft-controller")?;
        drop_in(host, "weftd", &format!("{strict}Group=operator\n"))?;
        host.systemctl("restart weftd")?;
        machines.until_back(weftd)?;
        assert!(host.run(&nobody).is_err(), "others may not ask weftd");
        host.run(&operator)?;
        machines.until_they_ping(MACHINE)?;
        machines.site.wait_for_hosts()?;
        machines
            .site
            .change(|objects| objects.ports.retain(|port| port.id != "blue-5"))?;
        machines.until_they_ping(NAMESPACES)?;
        stop_units(machines)?;
        for (machine, unit) in [
            (&machines.control, "weft-controller"),
            (&machines.host, "weftd"),
        ] {
            assert_eq!(machine.property(unit, "NRestarts")?, "0", "{unit}");
        }
        assert_eq!(threaded().trim(), "0");
        for journal in machines.journals() {
            for bad in [
                "not permitted",
                "ermission denied",
                "SIGSYS",
                "ERROR",
                "ailed",
            ] {
                assert!(!journal.contains(bad), "{bad}: {journal}");
            }
        }
        Ok(())
    });
}

/// Adds settings to a service, as `systemctl edit` does.
fn drop_in(machine: &ServiceManager, unit: &str, settings: &str) -> Result<(), LabError> {
    let path = format!("/etc/systemd/system/{unit}.service.d/override.conf");
    machine.write(&path, format!("[Service]\n{settings}"), 0o644)?;
    machine.systemctl("daemon-reload").map(drop)
}

/// Has a service try what its sandbox should refuse, each time that it starts: it does not start if something is not.
fn drop_in_refused(
    machine: &ServiceManager,
    unit: &str,
    lines: &str,
    more: &str,
) -> Result<(), LabError> {
    for line in lines.lines().filter(|line| !line.is_empty()) {
        machine.run(&["env", "RUNTIME_DIRECTORY=/run", "sh", "-c", line])?;
    }
    let script = format!(
        "#!/bin/sh\nwhile read -r line; do\n  if [ \"$line\" ] && sh -c \"$line\" >/dev/null; then echo \"not refused: $line\"; exit 1; fi\ndone <<'END'\n{lines}\nEND\n"
    );
    machine.write("/usr/bin/try-what-is-refused", script, 0o755)?;
    let settings = format!("ExecStartPre=/usr/bin/try-what-is-refused\n{more}");
    drop_in(machine, unit, &settings)?;
    machine.systemctl(&format!("restart {unit}")).map(drop)
}

/// Stops the units, which leave nothing on the host's interfaces but the guards of ports.
fn stop_units(machines: &Machines) -> Result<(), LabError> {
    let namespace = &machines.site.hosts["h1"].namespace;
    assert!(has_program(namespace, "u0") && has_program(namespace, "p-blue-1"));
    for (machine, unit) in [
        (&machines.host, "weftd"),
        (&machines.control, "weft-controller"),
    ] {
        machine.systemctl(&format!("stop {unit}"))?;
        assert_eq!(machine.property(unit, "ActiveState")?, "inactive", "{unit}");
        assert_eq!(machine.property(unit, "Result")?, "success", "{unit}");
    }
    assert!(!has_program(namespace, "u0") && !has_program(namespace, "p-blue-1"));
    assert!(is_guarded(namespace, "p-blue-1") && !is_guarded(namespace, "u0"));
    assert!(!machines.host.path("/run/weft/weftd.sock").exists());
    Ok(())
}

#[test]
fn systemd_reloads_restarts_and_cures_what_it_runs() {
    let mut machines = Machines::start();
    machines.explained(|machines| {
        machines.start_units()?;
        let Machines {
            control,
            host,
            site,
        } = &*machines;
        let first = host.main_pid("weftd")?;
        host.systemctl("reload weftd")?;
        wait_until("the configuration is read again", SOON, || {
            host.journal("weftd").contains("idle mode reloaded")
        })?;
        assert_eq!(host.main_pid("weftd")?, first);

        // What else is in the directory, as virtual machines' sockets, is there after a restart.
        host.write("/run/weft/kept", "", 0o600)?;
        host.systemctl("restart weftd")?;
        let second = machines.until_back(first)?;
        assert!(host.path("/run/weft/kept").exists());

        assert_eq!(host.property("weftd", "NRestarts")?, "0");
        host.systemctl("kill --kill-whom=main --signal=KILL weftd")?;
        let third = machines.until_back(second)?;
        assert_eq!(host.property("weftd", "NRestarts")?, "1");
        assert!(host.path("/run/weft/kept").exists());

        let ports = site.ctl(&["port", "list"])?;
        let first = control.main_pid("weft-controller")?;
        control.systemctl("kill --kill-whom=main --signal=KILL weft-controller")?;
        wait_until("another controller", SOON, || {
            control
                .main_pid("weft-controller")
                .is_ok_and(|pid| pid != first)
        })?;
        wait_until("the controller answers", SOON, || {
            site.ctl(&["port", "list"])
                .is_ok_and(|again| again == ports)
        })?;
        site.wait_for_hosts()?;

        // Shorter than the unit's, so that nobody waits that long here.
        assert_eq!(host.property("weftd", "WatchdogUSec")?, "30s");
        drop_in_refused(host, "weftd", REFUSED, "WatchdogSec=2s\n")?;
        let fourth = machines.until_back(third)?;
        let halted = HaltedThread::of(fourth, "worker-0")?;
        wait_until("systemd kills what is stuck", SOON, || {
            host.journal("weftd").contains("Watchdog timeout")
        })?;
        // A process whose thread is traced is not gone before the tracer has seen that.
        drop(halted);
        machines.until_back(fourth)?;
        let all = [REFUSED, REFUSED_TO_THE_CONTROLLER].concat();
        drop_in_refused(control, "weft-controller", &all, "")?;
        site.wait_for_hosts()?;
        stop_units(machines)
    });
}

/// Whether there is a control group of this name in the second hierarchy, wherever the machine has that.
fn has_group(name: &str) -> bool {
    let script = format!("mount -t cgroup2 cgroup2 /mnt && test -d /mnt/{name}");
    let out = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .unwrap();
    out.status.success()
}

#[test]
fn a_machine_with_a_systemd_leaves_nothing_behind() {
    let mut lab = Lab::new().unwrap();
    let namespace = lab.host("alone").unwrap();
    let mounts = || {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        // Network namespaces of other labs come and go.
        let lines = text.lines().filter(|line| !line.contains(" nsfs "));
        lines.map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let before = mounts();
    let machine = ServiceManager::start(&namespace).unwrap();
    machine.write("/etc/left-behind", "", 0o644).unwrap();
    let group = || has_group(namespace.name());
    let init = format!("/proc/{}", machine.pid());
    assert!(group() && Path::new(&init).exists());
    drop(machine);
    assert!(!group() && !Path::new(&init).exists());
    assert_eq!(mounts(), before);
    assert!(!Path::new("/etc/left-behind").exists());
}
