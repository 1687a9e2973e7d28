//! A program that runs during a test: its output is kept, and it is always ended.

#![allow(unsafe_code)]

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::{LabError, wait_until};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A running program. Dropping it kills it and removes its log.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub(crate) fn start(mut command: Command, name: &str) -> Result<Self, LabError> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let log = std::env::temp_dir().join(format!("{name}-{number}.log"));
        let open = || {
            let file = File::options().create(true).append(true).open(&log);
            file.map_err(LabError::io(log.display().to_string()))
        };
        command.stdout(open()?).stderr(open()?);
        let child = command.spawn().map_err(|source| LabError::Start {
            command: format!("{command:?}"),
            source,
        })?;
        Ok(Self { child, log })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far, both streams.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until its output contains `text`.
    pub fn wait_for_output(&mut self, text: &str, within: Duration) -> Result<(), LabError> {
        wait_until(&format!("output `{text}`"), within, || {
            self.log().contains(text)
        })
        .map_err(|_| LabError::Deadline {
            what: format!("output `{text}`; it printed:\n{}", self.log()),
            within,
        })
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        if let Ok(pid) = self.child.id().try_into() {
            // SAFETY: a plain system call; the process is our child and not yet waited for.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// Stops it (SIGSTOP), or continues it.
    pub fn pause(&self, paused: bool) {
        self.signal(if paused { libc::SIGSTOP } else { libc::SIGCONT });
    }

    /// Asks it to end (SIGTERM), and waits for that.
    pub fn stop(&mut self, within: Duration) -> Result<ExitStatus, LabError> {
        self.signal(libc::SIGTERM);
        self.wait(within)
    }

    /// Waits until it has ended.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus, LabError> {
        wait_until("the program's end", within, || !self.is_running())?;
        self.child
            .wait()
            .map_err(LabError::io("waiting for a program"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Each fails only if it is done already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.log);
    }
}
