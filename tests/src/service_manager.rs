//! A systemd of the lab: process 1 of a machine that shares the network namespace of a host, and has PIDs, mounts, control groups and a
//! name of its own. What it changes of the file system lies over the machine's own and is lost with it.
//!
//! `service_manager/guard.sh` starts it and ends it, when the [`ServiceManager`] is dropped or its process dies; `service_manager/boot.sh`
//! makes its root directory.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use crate::{LabError, Namespace, namespace::output, wait_until};

const GUARD: &str = include_str!("service_manager/guard.sh");
const BOOT: &str = include_str!("service_manager/boot.sh");
/// How long a boot may take; a fifth of a second is usual.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running systemd. Dropping it ends all that it runs.
#[derive(Debug)]
pub struct ServiceManager {
    guard: Child,
    /// The guard waits for its end.
    hold: Option<ChildStdin>,
    /// systemd's PID.
    init: u32,
}

impl ServiceManager {
    /// Boots one that runs nothing but a journal.
    pub fn start(namespace: &Namespace) -> Result<Self, LabError> {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", GUARD, "guard", namespace.name()])
            .arg(BOOT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A signal from the terminal is for the test, whose end the guard hears of.
            .process_group(0);
        let mut guard = command.spawn().map_err(|source| LabError::Start {
            command: "unshare".to_owned(),
            source,
        })?;
        let (hold, said) = (guard.stdin.take(), guard.stdout.take());
        let mut manager = Self {
            guard,
            hold,
            init: 0,
        };
        let mut line = String::new();
        if let Some(said) = said {
            let read = BufReader::new(said).read_line(&mut line);
            read.map_err(LabError::io("reading what a guard says"))?;
        }
        manager.init = line.trim().parse().map_err(|_| LabError::Failed {
            command: "booting systemd".to_owned(),
            status: "no process 1".to_owned(),
            output: line,
        })?;
        let up = wait_until("systemd is up", PATIENCE, || {
            manager.systemctl("is-active weft-lab.target").is_ok()
        });
        up.map_err(|error| LabError::Explained {
            source: Box::new(error),
            text: format!("\n{}", manager.journal("init.scope")),
        })?;
        Ok(manager)
    }

    /// systemd's PID.
    pub fn pid(&self) -> u32 {
        self.init
    }

    /// How a path of its machine is called here.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Installs a file on its machine, and its directories.
    pub fn install(&self, from: &Path, to: &str, mode: u32) -> Result<(), LabError> {
        let bytes = fs::read(from).map_err(LabError::io(from.display().to_string()))?;
        self.write(to, bytes, mode)
    }

    /// Writes a file on its machine, and makes its directories.
    pub fn write(&self, to: &str, bytes: impl AsRef<[u8]>, mode: u32) -> Result<(), LabError> {
        let path = self.path(to);
        let write = || {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::write(&path, bytes)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
        };
        write().map_err(LabError::io(to))
    }

    /// Runs a command on its machine to its end, and gives its standard output; an error if it fails.
    pub fn run(&self, line: &[&str]) -> Result<String, LabError> {
        let target = self.init.to_string();
        output(
            Command::new("nsenter")
                .args(["--all", "--target", &target, "--"])
                .args(line),
        )
    }

    /// `systemctl ARGS`; the arguments are split at blanks.
    pub fn systemctl(&self, args: &str) -> Result<String, LabError> {
        let mut line = vec!["systemctl"];
        line.extend(args.split_whitespace());
        self.run(&line)
    }

    /// A property of a unit, such as `ActiveState`.
    pub fn property(&self, unit: &str, name: &str) -> Result<String, LabError> {
        let text = self.systemctl(&format!("show --value --property {name} {unit}"))?;
        Ok(text.trim().to_owned())
    }

    /// The main process of a service, by the PID that it has here.
    pub fn main_pid(&self, unit: &str) -> Result<u32, LabError> {
        let inside = self.property(unit, "MainPID")?;
        let group = self.property(unit, "ControlGroup")?;
        // PIDs are shown as whoever reads them sees them.
        let members = self.path(&format!("/sys/fs/cgroup{group}/cgroup.procs"));
        let members = fs::read_to_string(&members)
            .map_err(LabError::io(format!("the processes of {unit}")))?;
        let is_main = |pid: &&str| {
            fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| {
                let pids = text.lines().find(|line| line.starts_with("NSpid:"));
                // The last is that in the innermost namespace.
                pids.and_then(|pids| pids.split_whitespace().last()) == Some(&inside)
            })
        };
        let main = members.lines().find(is_main);
        main.and_then(|pid| pid.parse().ok())
            .ok_or_else(|| LabError::Io {
                what: format!("the main process of {unit}, {inside}"),
                source: std::io::ErrorKind::NotFound.into(),
            })
    }

    /// The journal of a unit since the boot, with systemd's messages about it.
    pub fn journal(&self, unit: &str) -> String {
        self.run(&["journalctl", "--no-pager", "--output=short", "--unit", unit])
            .unwrap_or_else(|error| error.to_string())
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        self.hold = None;
        // It ends when all is gone; nothing more can be done here if it fails.
        let _ = self.guard.wait();
    }
}
