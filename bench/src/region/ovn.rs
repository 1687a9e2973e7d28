//! The peer: OVN's databases and its compiler (ovn-northd) as Debian has them, in a directory of their own, reached by sockets there. A logical
//! switch has as many ports as the region, in port groups as large as its security groups, bound to as many chassis. What is measured is a port
//! more until its binding and its logical flows are in the southbound database, by a client that stays connected; chassis would have to
//! read it from there. There are none, but in name.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tempfile::TempDir;
use weft_proto::v1::Port;

use super::topology::{Region, host_id, vtep};

const PATIENCE: Duration = Duration::from_secs(120);
const SCHEMAS: &str = "/usr/share/ovn";

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
        let socket = self.at(&format!("{client}.ctl"));
        ask(&socket, "run", &json!(words)).map(drop)
    }

    /// Has a database make a transaction, without the command lines' tools: these take a time for each port that grows with their number.
    fn transact(&self, name: &str, database: &str, mut steps: Vec<Value>) -> anyhow::Result<Value> {
        steps.insert(0, json!(database));
        let socket = self.at(&format!("{name}.sock"));
        let result = ask(&socket, "transact", &json!(steps))?;
        let steps = result.as_array().map_or(&[][..], Vec::as_slice);
        match steps.iter().find(|step| !step["error"].is_null()) {
            Some(step) => bail!("{database}: {step}"),
            None => Ok(result),
        }
    }

    fn fill(&self) -> anyhow::Result<()> {
        let region = &self.region;
        for number in 0..region.hosts {
            let (id, address) = (host_id(number), vtep(number));
            let line = line(&format!("chassis-add {id} geneve {address}"));
            self.tell("sbctl", &line)?;
        }
        let all = 0..region.ports;
        let mut steps = vec![insert(
            "Logical_Switch",
            "sw",
            &json!({ "name": "sw", "ports": named("p", all.clone()) }),
        )];
        for number in all {
            let port = region.port(number);
            let row = json!({ "name": port.id, "addresses": addresses(&port) });
            steps.push(insert("Logical_Switch_Port", &port.id, &row));
        }
        for group in 0..region.groups() {
            let ports = group * region.group..region.ports.min((group + 1) * region.group);
            let rules = [
                (1000, format!("ip4.src == $g{group}_ip4"), "allow-related"),
                (1000, "tcp.dst == 443".to_owned(), "allow-related"),
                (900, "ip".to_owned(), "drop"),
            ];
            for (number, (priority, rule, action)) in rules.iter().enumerate() {
                let row = json!({
                    "priority": priority, "direction": "to-lport", "action": action,
                    "match": format!("outport == @g{group} && {rule}"),
                });
                steps.push(insert("ACL", &format!("a{group}_{number}"), &row));
            }
            let acls = named(&format!("a{group}_"), 0..rules.len());
            let row = json!({
                "name": format!("g{group}"), "ports": named("p", ports), "acls": acls,
            });
            steps.push(insert("Port_Group", &format!("g{group}"), &row));
        }
        self.transact("nb", "OVN_Northbound", steps)?;
        self.sync()?;
        self.bind()?;
        self.sync()
    }

    /// Waits until OVN's compiler has done what there is to do.
    fn sync(&self) -> anyhow::Result<()> {
        self.tell("nbctl", &line("--wait=sb sync"))
    }

    /// Binds every port to its chassis, as `lsp-bind` would.
    fn bind(&self) -> anyhow::Result<()> {
        let columns = json!(["_uuid", "name"]);
        let chassis =
            json!({ "op": "select", "table": "Chassis", "where": [], "columns": columns });
        let found = self.transact("sb", "OVN_Southbound", vec![chassis])?;
        let rows = found[0]["rows"].as_array().context("no chassis")?;
        let by_name = |name: &str| rows.iter().find(|row| row["name"] == name);
        let mut steps = Vec::new();
        for number in 0..self.region.ports {
            let port = self.region.port(number);
            let chassis = by_name(&port.host).context("a chassis is missing")?;
            steps.push(json!({
                "op": "update", "table": "Port_Binding", "where": [["logical_port", "==", port.id]],
                "row": { "chassis": chassis["_uuid"], "up": true },
            }));
        }
        let bound = self.transact("sb", "OVN_Southbound", steps)?;
        let counts = bound.as_array().map_or(&[][..], Vec::as_slice);
        anyhow::ensure!(
            counts.iter().all(|step| step["count"] == 1),
            "a port has no binding"
        );
        Ok(())
    }

    /// The time that a port more takes, with its addresses and its group, until the southbound database has it.
    pub(super) fn one_more(&self, number: usize) -> anyhow::Result<Duration> {
        let port = self.region.more(number, 0);
        let mut words = line(&format!("--wait=sb -- lsp-add sw {}", port.id));
        let id = &port.id;
        words.extend(line(&format!("-- lsp-set-addresses {id}")));
        words.push(addresses(&port));
        words.extend(line(&format!("-- --id=@p get logical_switch_port {id}")));
        words.extend(line("-- add port_group g0 ports @p"));
        let begun = Instant::now();
        self.tell("nbctl", &words)?;
        let spent = begun.elapsed();
        self.tell("sbctl", &line(&format!("lsp-bind {id} {}", port.host)))?;
        // What follows from that is not to take time from what is measured next.
        self.sync()?;
        Ok(spent)
    }
}

/// Words that are separated by blanks.
fn line(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// As OVN writes them.
fn addresses(port: &Port) -> String {
    format!("{} {}", port.mac, port.addresses.join(" "))
}

/// The step of a transaction that inserts a row, which other steps know by a name.
fn insert(table: &str, name: &str, row: &Value) -> Value {
    json!({ "op": "insert", "table": table, "uuid-name": name, "row": row })
}

/// The set of the rows so named with these numbers.
fn named(name: &str, numbers: Range<usize>) -> Value {
    let all: Vec<Value> = numbers
        .map(|number| json!(["named-uuid", format!("{name}{number}")]))
        .collect();
    json!(["set", all])
}

/// A call by JSON-RPC over a socket; what it answers.
fn ask(socket: &str, method: &str, parameters: &Value) -> anyhow::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = json!({ "method": method, "params": parameters, "id": 0 });
    stream.write_all(request.to_string().as_bytes())?;
    // The connection stays open: an answer ends where its JSON does. The server may ask on its own, too, whether we live.
    for answer in serde_json::Deserializer::from_reader(stream).into_iter::<Value>() {
        let mut answer = answer?;
        if !answer["method"].is_null() {
            continue;
        }
        anyhow::ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        return Ok(answer["result"].take());
    }
    bail!("{method}: no answer")
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
