//! The peer: OVN's databases and its compiler (ovn-northd) as Debian has them, in a directory of their own, reached by sockets there. A logical
//! switch has as many ports as the region, in port groups as large as its security groups, bound to as many chassis. What is measured is a port
//! more until its binding and its logical flows are in the southbound database, by a client that stays connected; chassis would have to
//! read it from there. There are none, but in name.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

use super::topology::{Region, host_id, vtep};

const PATIENCE: Duration = Duration::from_secs(120);
const SCHEMAS: &str = "/usr/share/ovn";
/// Ports in one transaction while the switch is filled.
const AT_ONCE: usize = 2500;

/// OVN's central part with a switch; it ends with this value.
#[derive(Debug)]
pub(super) struct Ovn {
    region: Region,
    /// Servers, in the order in which they are to end.
    children: Vec<Child>,
    directory: TempDir,
}

impl Ovn {
    pub(super) fn start(region: &Region) -> anyhow::Result<Self> {
        eprintln!("   filling OVN with {} ports", region.ports);
        let mut ovn = Self {
            region: *region,
            children: Vec::new(),
            directory: tempfile::tempdir()?,
        };
        for name in ["nb", "sb"] {
            let (database, schema) = (ovn.at(name), format!("{SCHEMAS}/ovn-{name}.ovsschema"));
            ovn.run("ovsdb-tool", &["create", &database, &schema])?;
            let remote = format!("--remote=punix:{}", ovn.at(&format!("{name}.sock")));
            let control = format!("--unixctl={}", ovn.at(&format!("{name}.ctl")));
            ovn.spawn("ovsdb-server", &[&remote, &control, &database])?;
            ovn.wait_for(&format!("{name}.sock"))?;
        }
        let (north, south) = (ovn.database("nb"), ovn.database("sb"));
        let northd = [
            format!("--ovnnb-db={north}"),
            format!("--ovnsb-db={south}"),
            format!("--unixctl={}", ovn.at("northd.ctl")),
        ];
        ovn.spawn("ovn-northd", &northd.each_ref().map(String::as_str))?;
        for (name, database) in [("nbctl", &north), ("sbctl", &south)] {
            let control = format!("--unixctl={}", ovn.at(&format!("{name}.ctl")));
            let database = format!("--db={database}");
            // Stays connected, and takes commands by its socket, until it is told to end.
            let program = format!("ovn-{name}");
            ovn.run(&program, &["--detach", "--no-chdir", &control, &database])?;
            ovn.wait_for(&format!("{name}.ctl"))?;
        }
        ovn.fill()?;
        Ok(ovn)
    }

    fn at(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn database(&self, name: &str) -> String {
        format!("unix:{}", self.at(&format!("{name}.sock")))
    }

    fn command(&self, program: &str, words: &[&str]) -> anyhow::Result<Command> {
        let log = File::options();
        let log = log.clone().create(true).append(true).open(self.at("log"))?;
        let mut command = Command::new(program);
        let directory = self.directory.path();
        command.args(words).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        command
            .env("OVN_RUNDIR", directory)
            .env("OVS_RUNDIR", directory);
        command
            .env("OVN_LOGDIR", directory)
            .env("OVS_LOGDIR", directory);
        Ok(command)
    }

    fn run(&self, program: &str, words: &[&str]) -> anyhow::Result<()> {
        let status = self.command(program, words)?.status();
        let status = status.with_context(|| format!("cannot start {program}"))?;
        anyhow::ensure!(status.success(), "{program}: {status}; {}", self.log());
        Ok(())
    }

    fn spawn(&mut self, program: &str, words: &[&str]) -> anyhow::Result<()> {
        let child = self.command(program, words)?.spawn();
        let child = child.with_context(|| format!("cannot start {program}"))?;
        self.children.insert(0, child);
        Ok(())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.at("log")).unwrap_or_default()
    }

    fn wait_for(&self, socket: &str) -> anyhow::Result<()> {
        let socket = self.at(socket);
        weft_tests::wait_until(&format!("{socket} answers"), PATIENCE, || {
            UnixStream::connect(&socket).is_ok()
        })?;
        Ok(())
    }

    /// Has a connected client (`nbctl` or `sbctl`) run a command line.
    fn tell(&self, client: &str, words: &[String]) -> anyhow::Result<()> {
        let mut socket = UnixStream::connect(self.at(&format!("{client}.ctl")))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let request = serde_json::json!({ "method": "run", "params": words, "id": 0 });
        socket.write_all(request.to_string().as_bytes())?;
        // The connection stays open: the answer ends where its JSON does.
        let answer = serde_json::Deserializer::from_reader(Bytewise(socket))
            .into_iter::<serde_json::Value>()
            .next();
        let answer = answer.context("no answer")??;
        if !answer["error"].is_null() {
            bail!("ovn-{client} {}: {}", words.join(" "), answer["error"]);
        }
        Ok(())
    }

    fn fill(&self) -> anyhow::Result<()> {
        let region = &self.region;
        self.tell("nbctl", &line("ls-add sw"))?;
        for number in 0..region.hosts {
            let id = host_id(number);
            let line = line(&format!("chassis-add {id} geneve {}", vtep(number)));
            self.tell("sbctl", &line)?;
        }
        for first in (0..region.ports).step_by(AT_ONCE) {
            let numbers = first..region.ports.min(first + AT_ONCE);
            let mut words = Vec::new();
            for number in numbers {
                let port = region.port(number);
                words.extend(line(&format!("-- lsp-add sw {}", port.id)));
                words.extend(addresses(&port.id, &port.mac, &port.addresses));
            }
            self.tell("nbctl", &words)?;
        }
        for group in 0..region.groups() {
            let all = group * region.group..region.ports.min((group + 1) * region.group);
            let mut words = line(&format!("pg-add g{group}"));
            words.extend(all.map(|number| format!("p{number}")));
            let from = format!("outport == @g{group} && ip4.src == $g{group}_ip4");
            let tcp = format!("outport == @g{group} && tcp.dst == 443");
            for (priority, rule, verdict) in [
                ("1000", from, "allow-related"),
                ("1000", tcp, "allow-related"),
                ("900", format!("outport == @g{group} && ip"), "drop"),
            ] {
                let acl = format!("-- acl-add g{group} to-lport {priority}");
                words.extend(line(&acl));
                words.extend([rule, verdict.to_owned()]);
            }
            self.tell("nbctl", &words)?;
        }
        self.tell("nbctl", &line("--wait=sb sync"))?;
        for first in (0..region.ports).step_by(AT_ONCE) {
            let numbers = first..region.ports.min(first + AT_ONCE);
            let binding = numbers.flat_map(|number| {
                let port = region.port(number);
                line(&format!("-- lsp-bind {} {}", port.id, port.host))
            });
            self.tell("sbctl", &binding.collect::<Vec<_>>())?;
        }
        self.tell("nbctl", &line("--wait=sb sync"))
    }

    /// The time that a port more takes, with its addresses and its group, until the southbound database has it.
    pub(super) fn one_more(&self, number: usize) -> anyhow::Result<Duration> {
        let port = self.region.more(number, 0);
        let mut words = line(&format!("--wait=sb -- lsp-add sw {}", port.id));
        words.extend(addresses(&port.id, &port.mac, &port.addresses));
        let id = &port.id;
        words.extend(line(&format!("-- --id=@p get logical_switch_port {id}")));
        words.extend(line("-- add port_group g0 ports @p"));
        let begun = Instant::now();
        self.tell("nbctl", &words)?;
        let spent = begun.elapsed();
        self.tell("sbctl", &line(&format!("lsp-bind {id} {}", port.host)))?;
        // What follows from that is not to take time from what is measured next.
        self.tell("nbctl", &line("--wait=sb sync"))?;
        Ok(spent)
    }
}

/// Words that are separated by blanks.
fn line(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn addresses(id: &str, mac: &str, addresses: &[String]) -> Vec<String> {
    let mut words = line(&format!("-- lsp-set-addresses {id}"));
    words.push(format!("{mac} {}", addresses.join(" ")));
    words
}

/// Reads one byte at a time, so that a reader never waits for more than there is.
struct Bytewise(UnixStream);

impl Read for Bytewise {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let one = buffer.len().min(1);
        self.0.read(&mut buffer[..one])
    }
}

impl Drop for Ovn {
    fn drop(&mut self) {
        for client in ["nbctl", "sbctl"] {
            // One that did not start cannot be told to end.
            if let Ok(mut socket) = UnixStream::connect(self.at(&format!("{client}.ctl"))) {
                let _ = socket.write_all(br#"{"method":"exit","params":[],"id":0}"#);
                let _ = socket.read(&mut [0; 64]);
            }
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
