//! A controller as users run it: a process with its store in a directory, reached over TCP on loopback.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::Context;
use tempfile::TempDir;
use tonic::transport::Channel;
use weft_process::services::intent_client::IntentClient;
use weft_process::transport::{MAX_MESSAGE, endpoint};
use weft_tests::site::program;

/// How long the process may take until it answers.
const START: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(5);
/// Ticks in a second, of the times that the kernel tells of a process.
const TICKS: f64 = 100.0;

/// The process; it ends with this value.
#[derive(Debug)]
pub(super) struct Controller {
    pub(super) address: String,
    child: Child,
    directory: TempDir,
}

impl Controller {
    /// Starts one whose hosts learn the ports of VPCs with more than so many.
    pub(super) fn start(learn_above: usize) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        // Free now, and hardly taken by another before the controller has it.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let store = directory.path().join("intent.redb");
        let config = format!(
            "listen = '{address}'\nstore = {{ kind = 'embedded', path = '{}' }}\nlearn_above = {learn_above}\n",
            store.display()
        );
        std::fs::write(directory.path().join("controller.toml"), config)?;
        let child = spawn(&directory)?;
        Ok(Self {
            address,
            child,
            directory,
        })
    }

    /// Kills it without warning, and starts it again from its store.
    pub(super) fn restart(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(&self.directory)?;
        Ok(())
    }

    /// A client, once the controller answers.
    pub(super) async fn intent(&self) -> anyhow::Result<IntentClient<Channel>> {
        let begun = Instant::now();
        // A controller that is too busy to answer a ping is measured, not given up.
        let endpoint = endpoint(&self.address, None)?.keep_alive_timeout(START);
        loop {
            match endpoint.connect().await {
                Ok(channel) => {
                    let client = IntentClient::new(channel);
                    return Ok(client.max_decoding_message_size(MAX_MESSAGE));
                }
                Err(error) if begun.elapsed() > START => return Err(error.into()),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    fn proc(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.child.id()).into()
    }

    /// MiB in memory: now, and at most since [`Self::forget_peak`].
    pub(super) fn memory(&self) -> anyhow::Result<(f64, f64)> {
        memory(&self.proc("status"))
    }

    /// Has the peak of memory count from now on.
    pub(super) fn forget_peak(&self) -> anyhow::Result<()> {
        std::fs::write(self.proc("clear_refs"), "5").context("cannot reset the peak of memory")
    }

    /// Milliseconds of processor time so far.
    pub(super) fn processor_time(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(self.proc("stat"))?;
        // The name before the last parenthesis may hold blanks.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks = ticks.map(str::parse::<f64>).sum::<Result<f64, _>>()?;
        Ok(ticks * 1e3 / TICKS)
    }

    /// The end of its log.
    pub(super) fn log(&self) -> String {
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

/// MiB in memory that a process has, and had at most, by its file in `/proc`.
pub(super) fn memory(status: &Path) -> anyhow::Result<(f64, f64)> {
    let status = std::fs::read_to_string(status)?;
    let field = |name: &str| -> anyhow::Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kib.context("no VmRSS or VmHWM")?.parse::<f64>()? / 1024.0)
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}

fn spawn(directory: &TempDir) -> anyhow::Result<Child> {
    let mut log = File::options();
    let log = log.create(true).append(true);
    let log = log.open(directory.path().join("log"))?;
    let program = program("weft-controller")?;
    let mut command = Command::new(&program);
    command
        .arg("--config")
        .arg(directory.path().join("controller.toml"))
        .stdout(log.try_clone()?)
        .stderr(log);
    command
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

impl Drop for Controller {
    fn drop(&mut self) {
        // Each fails only if it is done already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
