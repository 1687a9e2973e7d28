//! An etcd cluster of its own for a test, on loopback, in a temporary directory.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use weft_controller::store::Etcd;
use weft_process::tls::TlsFiles;

use super::DEADLINE;

/// Members that run until they are killed, or this is dropped.
pub struct Members {
    directory: TempDir,
    members: Vec<Member>,
    /// The members' certificate and that of their clients, if they want one.
    tls: Option<[TlsFiles; 2]>,
}

struct Member {
    client: u16,
    peer: u16,
    process: Option<Child>,
}

impl Members {
    /// Starts so many members, and waits until they take changes.
    pub fn start(count: usize) -> Self {
        Self::start_with(count, None)
    }

    /// The same, which show a certificate and want one.
    pub fn start_with(count: usize, tls: Option<[TlsFiles; 2]>) -> Self {
        // Held until all are chosen, so that they differ.
        let ports: Vec<TcpListener> = (0..2 * count)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let port = |at: usize| ports[at].local_addr().unwrap().port();
        let members = (0..count).map(|at| Member {
            client: port(2 * at),
            peer: port(2 * at + 1),
            process: None,
        });
        let mut all = Self {
            directory: tempfile::tempdir().unwrap(),
            members: members.collect(),
            tls,
        };
        drop(ports);
        for at in 0..count {
            all.run(at);
        }
        all.wait();
        all
    }

    /// The same, where blocking is not allowed.
    pub async fn started(count: usize) -> Self {
        let started = tokio::task::spawn_blocking(move || Self::start(count));
        started.await.unwrap()
    }

    pub fn endpoints(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() {
            "https://localhost"
        } else {
            "http://127.0.0.1"
        };
        let url = |member: &Member| format!("{scheme}:{}", member.client);
        self.members.iter().map(url).collect()
    }

    /// A store of these members, with the prefix that controllers have by default.
    pub fn store(&self) -> Etcd {
        let own = self.tls.as_ref().map(|[_, client]| client);
        Etcd::open(&self.endpoints(), "weft/", own).unwrap()
    }

    /// Kills a member.
    pub fn kill(&mut self, at: usize) {
        if let Some(mut process) = self.members[at].process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts a member, again if it was killed.
    pub fn run(&mut self, at: usize) {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let peers: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(at, member)| format!("m{at}={}", url(member.peer)))
            .collect();
        let path = self.directory.path();
        let endpoint = self.endpoints().swap_remove(at);
        let mut command = Command::new("etcd");
        if let Some([own, _]) = &self.tls {
            command
                .arg("--client-cert-auth")
                .arg("--trusted-ca-file")
                .arg(&own.ca)
                .arg("--cert-file")
                .arg(&own.certificate)
                .arg("--key-file")
                .arg(&own.key);
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(path.join(format!("m{at}.log")))
            .unwrap();
        let listen = endpoint.replace("localhost", "127.0.0.1");
        let member = &mut self.members[at];
        let process = command
            .args(["--name", &format!("m{at}"), "--logger", "zap"])
            .arg("--data-dir")
            .arg(path.join(format!("m{at}")))
            .args(["--listen-client-urls", &listen])
            .args(["--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", &url(member.peer)])
            .args(["--initial-advertise-peer-urls", &url(member.peer)])
            .args(["--initial-cluster", &peers.join(",")])
            .args(["--initial-cluster-state", "new"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("etcd cannot be run; `cargo xtask setup` installs it");
        member.process = Some(process);
    }

    /// Ends every lease, as if its holder had not been heard of.
    pub fn end_leases(&self) {
        let leases = self.run_client(&["lease", "list"], b"");
        for lease in leases.lines().skip(1) {
            self.run_client(&["lease", "revoke", lease.trim()], b"");
        }
    }

    /// Puts a key, as some other program may.
    pub fn put(&self, key: &str, value: &[u8]) {
        self.run_client(&["put", key], value);
    }

    /// Runs `etcdctl`; what it says.
    fn run_client(&self, arguments: &[&str], input: &[u8]) -> String {
        let mut process = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoints().join(",")])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("etcdctl cannot be run; `cargo xtask setup` installs it");
        process.stdin.take().unwrap().write_all(input).unwrap();
        let said = process.wait_with_output().unwrap();
        assert!(said.status.success(), "etcdctl {arguments:?}");
        String::from_utf8(said.stdout).unwrap()
    }

    /// Waits until changes are taken.
    pub fn wait(&self) {
        let start = Instant::now();
        let store = self.store();
        while let Err(error) = store.is_empty() {
            assert!(start.elapsed() < DEADLINE, "{error}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The end of what the first member has logged.
    fn log(&self) -> String {
        let path = self.directory.path().join("m0.log");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(20).collect();
        lines.join("\n")
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for at in 0..self.members.len() {
            self.kill(at);
        }
    }
}
