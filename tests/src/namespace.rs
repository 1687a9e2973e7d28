//! One network namespace: runs commands and code in it.

#![allow(unsafe_code)]

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::fd::AsRawFd,
    process::{Command, Stdio},
    thread,
};

use crate::{Daemon, LabError};

/// A network namespace of the lab. A handle: the lab removes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    name: String,
    label: String,
}

impl Namespace {
    pub(crate) fn create(name: String, label: &str) -> Result<Self, LabError> {
        output(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self {
            name,
            label: label.to_owned(),
        };
        // Addresses are usable at once, and nothing is sent that a test didn't ask for.
        namespace.run(&[
            "sysctl",
            "-qw",
            "net.ipv6.conf.all.accept_dad=0",
            "net.ipv6.conf.default.accept_dad=0",
            "net.ipv6.conf.default.accept_ra=0",
            "net.ipv6.conf.default.router_solicitations=0",
        ])?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its name within the lab, such as `h1`.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A command that will run in the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name])
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end, and gives its standard output; an error if it fails.
    pub fn run<S: AsRef<OsStr>>(&self, line: &[S]) -> Result<String, LabError> {
        let (program, args) = line.split_first().ok_or_else(|| LabError::Io {
            what: "running a command".to_owned(),
            source: io::Error::from(io::ErrorKind::InvalidInput),
        })?;
        output(self.command(program).args(args))
    }

    /// `ip ARGS` in the namespace; the arguments are split at blanks.
    pub fn ip(&self, args: &str) -> Result<String, LabError> {
        output(
            Command::new("ip")
                .args(["-n", &self.name])
                .args(args.split_whitespace()),
        )
    }

    /// The hardware address of an interface.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6], LabError> {
        let text = self.ip(&format!("-o link show {interface}"))?;
        let mut words = text.split_whitespace();
        let address = words.find(|word| *word == "link/ether").and(words.next());
        let mut bytes = address.unwrap_or_default().split(':');
        let mut next = || u8::from_str_radix(bytes.next()?, 16).ok();
        let mut mac = [0; 6];
        for byte in &mut mac {
            *byte = next().ok_or_else(|| {
                LabError::io(format!("the MAC of {interface}"))(io::ErrorKind::NotFound.into())
            })?;
        }
        Ok(mac)
    }

    /// `ethtool -K INTERFACE ARGS`, such as `tx off gro on`.
    pub fn offloads(&self, interface: &str, args: &str) -> Result<(), LabError> {
        let mut command = self.command("ethtool");
        command
            .args(["-K", interface])
            .args(args.split_whitespace());
        output(&mut command).map(drop)
    }

    /// Whether `count` pings to `address` are all answered, each within a second.
    pub fn pings(&self, address: &str, count: u32) -> bool {
        let count = count.to_string();
        self.run(&[
            "ping", "-q", "-n", "-i", "0.05", "-W", "1", "-c", &count, address,
        ])
        .is_ok()
    }

    /// Starts a program in the namespace, its output going to a file that [`Daemon::log`] reads.
    pub fn spawn<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: &[S],
    ) -> Result<Daemon, LabError> {
        let mut command = self.command(program);
        command.args(args);
        Daemon::start(command, &self.name)
    }

    /// The same of a program that opens as many files as it may: by default that is far fewer.
    pub fn spawn_with_many_files(&self, program: &str, args: &[&str]) -> Result<Daemon, LabError> {
        let raise = r#"ulimit -n "$(ulimit -Hn)"; exec "$0" "$@""#;
        self.spawn("sh", &[&["-c", raise, program], args].concat())
    }

    /// Runs `work` on a thread that is in the namespace: sockets which it opens belong there, wherever they are used later.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let path = format!("/run/netns/{}", self.name);
        let file = File::open(&path).map_err(LabError::io(path))?;
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                // SAFETY: a plain system call on a descriptor that is open; it moves this thread alone, which ends after.
                if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                    return Err(LabError::io("entering a network namespace")(
                        io::Error::last_os_error(),
                    ));
                }
                Ok(work())
            });
            match entered.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Ends what still runs in the namespace.
    pub(crate) fn end_all(&self) {
        Self::end_all_in(&self.name);
    }

    fn end_all_in(name: &str) {
        let ip = |args: &[&str]| Command::new("ip").args(args).output();
        if let Ok(out) = ip(&["netns", "pids", name]) {
            for pid in String::from_utf8_lossy(&out.stdout).split_whitespace() {
                if let Ok(pid) = pid.parse() {
                    // SAFETY: a plain system call; the process runs in a namespace that the lab made.
                    unsafe { libc::kill(pid, libc::SIGKILL) };
                }
            }
        }
    }

    /// Ends what still runs in the namespace, and removes it.
    pub(crate) fn remove(name: &str) {
        Self::end_all_in(name);
        // It may be gone already; nothing more can be done about it then.
        let _ = Command::new("ip").args(["netns", "del", name]).output();
    }
}

/// Runs a command to its end, and gives its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String, LabError> {
    let shown = || format!("{command:?}").replace('"', "");
    let line = shown();
    let out = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| LabError::Start {
            command: line.clone(),
            source,
        })?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if out.status.success() {
        return Ok(text);
    }
    Err(LabError::Failed {
        command: line,
        status: out.status.to_string(),
        output: format!("{text}{}", String::from_utf8_lossy(&out.stderr)),
    })
}
