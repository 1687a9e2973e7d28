//! Real programs, and what a pair of them says to each other: one shell file for each in `tests/programs`.
//!
//! A file defines `server` (runs in the foreground), `client` (ends with 0 if all went well) and, where a connection lasts, `long` (writes for as
//! long as the connection goes on). Its first line says what it is; lines `# KEY: VALUES` after that say what it needs:
//! `packages` (Debian's); `families` (`4 6` if none is given); `admit` (what the server's security group must admit, such as `tcp/80`, `udp` or
//! `icmp`); `admit-client` (the same of the client's); `alive` (the server has no port to wait for); `drops` (drops that policy asks for).
//! `$F` is the family, `$S` and `$C` the addresses of server and client, `$SU` the former as it stands in a URL, `$D` a directory of the exchange,
//! `$P` that of the files.

#![allow(unsafe_code)]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::leftovers::{self, Inventory};
use crate::{LabError, Namespace, wait_until};

/// How long a server may take to listen, and a client to succeed.
const SOON: Duration = Duration::from_secs(40);

/// A range of L4 ports of a protocol, or all of a protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// `tcp`, `udp` or `icmp`, as rules name it.
    pub protocol: String,
    /// The first and the last port.
    pub ports: Option<(u16, u16)>,
}

/// What a file of `tests/programs` says.
#[derive(Debug, Clone)]
pub struct Program {
    /// The file's name.
    pub name: String,
    /// Its first line.
    pub what: String,
    /// Debian packages.
    pub packages: Vec<String>,
    /// Whether it runs over IPv6, for each family that it runs over.
    pub families: Vec<bool>,
    /// What the server's group must admit; all if nothing is named.
    pub admit: Vec<Admitted>,
    /// What the client's group must admit.
    pub admit_client: Vec<Admitted>,
    /// Names of drops that policy asks for.
    pub drops: Vec<String>,
    /// Whether it has a connection that lasts.
    pub is_long: bool,
    /// Whether the server has no port to wait for.
    alive: bool,
    file: PathBuf,
}

/// Where the files are.
fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs")
}

fn read(path: &Path) -> Result<String, LabError> {
    fs::read_to_string(path).map_err(LabError::io(path.display().to_string()))
}

fn admitted(text: &str) -> Admitted {
    let (protocol, ports) = text.split_once('/').unwrap_or((text, ""));
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    Admitted {
        protocol: protocol.to_owned(),
        ports: first.parse().ok().zip(last.parse().ok()),
    }
}

impl Program {
    /// Every program, by name.
    pub fn all() -> Result<Vec<Self>, LabError> {
        let files = fs::read_dir(directory()).map_err(LabError::io("the directory of programs"))?;
        let mut files: Vec<PathBuf> = files
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|end| end == "sh"))
            .collect();
        files.sort();
        files.iter().map(|file| Self::read(file)).collect()
    }

    /// The program of a file.
    pub fn read(file: &Path) -> Result<Self, LabError> {
        let text = read(file)?;
        let words = |key: &str| {
            let start = format!("# {key}: ");
            let line = text.lines().find_map(|line| line.strip_prefix(&start));
            let words = line.unwrap_or_default().split_whitespace();
            words.map(ToOwned::to_owned).collect::<Vec<_>>()
        };
        let admit = |key| words(key).iter().map(|text| admitted(text)).collect();
        let families = words("families").join(" ");
        let name = file.file_stem().unwrap_or_default();
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            what: text.lines().next().unwrap_or_default()[2..].to_owned(),
            packages: words("packages"),
            families: [(false, "4"), (true, "6")]
                .into_iter()
                .filter(|(_, digit)| families.is_empty() || families.contains(digit))
                .map(|(ipv6, _)| ipv6)
                .collect(),
            admit: admit("admit"),
            admit_client: admit("admit-client"),
            drops: words("drops"),
            is_long: text.lines().any(|line| line.starts_with("long()")),
            alive: !words("alive").is_empty(),
            file: file.to_owned(),
        })
    }
}

/// A function of a program's file at work, with all that it starts.
#[derive(Debug)]
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn written(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |log| log.len())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(group) = i32::try_from(self.child.id()) {
            // SAFETY: a plain system call; the group was made for the child, which is not yet waited for.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        // It fails only if that was done before.
        let _ = self.child.wait();
    }
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A program's server, running, and where its clients run.
#[derive(Debug)]
pub struct Exchange<'p> {
    program: &'p Program,
    server: Running,
    ends: [Namespace; 2],
    /// What each end had before.
    before: [Inventory; 2],
    settings: Vec<(&'static str, String)>,
    directory: PathBuf,
}

impl<'p> Exchange<'p> {
    /// Starts the server, and waits until it listens. Each end is a namespace and the address of its `eth0`.
    pub fn start(
        program: &'p Program,
        client: (&Namespace, std::net::IpAddr),
        server: (&Namespace, std::net::IpAddr),
    ) -> Result<Self, LabError> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("weft-program-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).map_err(LabError::io("making a program's directory"))?;
        // Servers that give up root read their files.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))
            .map_err(LabError::io("opening a program's directory"))?;
        let ipv6 = server.1.is_ipv6();
        let url = if ipv6 {
            format!("[{}]", server.1)
        } else {
            server.1.to_string()
        };
        let settings = vec![
            ("F", if ipv6 { "6" } else { "4" }.to_owned()),
            ("S", server.1.to_string()),
            ("C", client.1.to_string()),
            ("SU", url),
            ("SB", server.1.to_string()),
            ("D", directory.display().to_string()),
            ("P", self::directory().display().to_string()),
        ];
        let before = [
            leftovers::inventory(client.0)?,
            leftovers::inventory(server.0)?,
        ];
        let running = launch(program, server.0, "server", &settings, &directory)?;
        let exchange = Self {
            program,
            server: running,
            before,
            ends: [client.0.clone(), server.0.clone()],
            settings,
            directory,
        };
        exchange.wait_for_server()?;
        Ok(exchange)
    }

    /// Ends the server, and leaves both ends as they were for whatever runs there next.
    ///
    /// # Errors
    /// Something stays behind.
    pub fn end(self) -> Result<(), LabError> {
        self.clear()
    }

    fn clear(&self) -> Result<(), LabError> {
        // Some of what a server starts leaves its process group; it stays in the namespace.
        for end in &self.ends {
            end.end_all();
        }
        let mut ends = self.ends.iter().zip(&self.before);
        ends.try_for_each(|(end, before)| leftovers::clear(end, before))
    }

    fn wait_for_server(&self) -> Result<(), LabError> {
        let program = self.program;
        let waited: Vec<String> = program
            .admit
            .iter()
            .take(1)
            .filter_map(|admitted| Some(format!(":{} ", admitted.ports?.0)))
            .collect();
        if program.alive || waited.is_empty() {
            return Ok(());
        }
        let what = format!("{}'s server listens", program.name);
        wait_until(&what, SOON, || {
            let sockets = self.ends[1].run(&["ss", "-Hlntu"]).unwrap_or_default();
            waited.iter().all(|port| sockets.contains(port))
        })
        .map_err(|error| self.explain(error, ""))
    }

    fn explain(&self, error: LabError, client: &str) -> LabError {
        LabError::Explained {
            source: Box::new(error),
            text: format!("\n--- client\n{client}\n--- server\n{}", self.server.log()),
        }
    }

    /// Runs the client to its end, again if it fails and there is time: a server may listen before it answers.
    pub fn succeed(&self) -> Result<(), LabError> {
        let mut said = String::new();
        let what = format!("{}'s client succeeds", self.program.name);
        wait_until(&what, SOON, || self.attempt(&mut said))
            .map_err(|error| self.explain(error, &said))
    }

    /// Whether one run of the client succeeds.
    fn attempt(&self, said: &mut String) -> bool {
        let Ok(mut client) = self.launch("client") else {
            return false;
        };
        let mut status = None;
        let ended = wait_until("the client ends", SOON, || {
            status = client.child.try_wait().ok().flatten();
            status.is_some()
        });
        *said = client.log();
        ended.is_ok() && status.is_some_and(|status| status.success())
    }

    fn launch(&self, function: &str) -> Result<Running, LabError> {
        let [client, _] = &self.ends;
        launch(
            self.program,
            client,
            function,
            &self.settings,
            &self.directory,
        )
    }

    /// Begins what lasts.
    pub fn begin(&self) -> Result<Lasting<'_, 'p>, LabError> {
        let running = self.launch("long")?;
        let mut lasting = Lasting {
            exchange: self,
            running,
            connections: BTreeSet::new(),
        };
        lasting.goes_on("begins")?;
        lasting.connections = self.connections()?;
        let is_tcp = self
            .program
            .admit
            .iter()
            .any(|admitted| admitted.protocol == "tcp");
        if is_tcp && lasting.connections.is_empty() {
            let error = LabError::Explained {
                source: Box::new(LabError::Deadline {
                    what: format!("{} begins", self.program.name),
                    within: SOON,
                }),
                text: ", it has no TCP connection".to_owned(),
            };
            return Err(self.explain(error, &lasting.running.log()));
        }
        Ok(lasting)
    }

    /// The client's TCP connections: both ends of each.
    fn connections(&self) -> Result<BTreeSet<String>, LabError> {
        let text = self.ends[0].run(&["ss", "-Htn", "state", "established"])?;
        let ends = text.lines().map(|line| {
            let words = line.split_whitespace().skip(2).take(2);
            words.collect::<Vec<_>>().join(" ")
        });
        Ok(ends.collect())
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        // After an exchange that ended well there is nothing to do; of one that failed, that is said already.
        let _ = self.clear();
        // Nothing depends on it.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A connection that lasts.
#[derive(Debug)]
pub struct Lasting<'e, 'p> {
    exchange: &'e Exchange<'p>,
    running: Running,
    /// Those it began with.
    connections: BTreeSet<String>,
}

impl Lasting<'_, '_> {
    /// How many TCP connections it began with.
    pub fn tcp_connections(&self) -> usize {
        self.connections.len()
    }

    /// Waits until it has written more, several times, over the connections that it began with.
    pub fn goes_on(&self, what: &str) -> Result<(), LabError> {
        let name = &self.exchange.program.name;
        for _ in 0..4 {
            let before = self.running.written();
            wait_until(&format!("{name} {what}"), SOON, || {
                self.running.written() > before
            })
            .map_err(|error| self.exchange.explain(error, &self.running.log()))?;
        }
        let now = self.exchange.connections()?;
        let lost: Vec<_> = self.connections.difference(&now).collect();
        if lost.is_empty() {
            return Ok(());
        }
        let error = LabError::Explained {
            source: Box::new(LabError::Deadline {
                what: format!("{name} {what}"),
                within: SOON,
            }),
            text: format!(", it connected again: {lost:?} is gone"),
        };
        Err(self.exchange.explain(error, &self.running.log()))
    }
}

fn launch(
    program: &Program,
    namespace: &Namespace,
    function: &str,
    settings: &[(&'static str, String)],
    directory: &Path,
) -> Result<Running, LabError> {
    let log = directory.join(format!("{function}.log"));
    let open = || {
        let file = File::options().create(true).append(true).open(&log);
        file.map_err(LabError::io(log.display().to_string()))
    };
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command: Command = namespace.command("sh");
    command
        .arg("-c")
        .arg(format!(". {}; {function}", program.file.display()))
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("LC_ALL", "C")
        .envs(settings.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::null())
        .stdout(open()?)
        .stderr(open()?)
        .process_group(0);
    let child = command.spawn().map_err(|source| LabError::Start {
        command: format!("{} of {}", function, program.name),
        source,
    })?;
    Ok(Running { child, log })
}
