//! The virtual machine's monitor (QMP, qemu's docs/interop/qmp-spec.rst): one JSON document a line, each command answered, events between.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{LabError, wait_until};

#[derive(Debug)]
pub(super) struct Monitor {
    stream: BufReader<UnixStream>,
}

const PATIENCE: Duration = Duration::from_secs(20);

fn failed(text: impl Into<String>) -> LabError {
    LabError::io("the guest's monitor")(io::Error::other(text.into()))
}

impl Monitor {
    pub(super) fn open(socket: &Path) -> Result<Self, LabError> {
        let mut connected = None;
        wait_until("the guest's monitor", PATIENCE, || {
            // The file is there a little before somebody listens.
            connected = UnixStream::connect(socket).ok();
            connected.is_some()
        })?;
        let stream = connected.ok_or_else(|| failed("nobody listens"))?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .map_err(LabError::io("the guest's monitor"))?;
        let mut monitor = Self {
            stream: BufReader::new(stream),
        };
        monitor.next()?;
        monitor.ask("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    fn next(&mut self) -> Result<Value, LabError> {
        let mut line = String::new();
        self.stream
            .read_line(&mut line)
            .map_err(LabError::io("the guest's monitor"))?;
        serde_json::from_str(&line).map_err(|error| failed(format!("{error}: `{line}`")))
    }

    /// Runs a command, and answers with what it returned.
    pub(super) fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, LabError> {
        let line = format!(
            "{}\n",
            json!({ "execute": command, "arguments": arguments })
        );
        self.stream
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(LabError::io("the guest's monitor"))?;
        loop {
            let mut answer = self.next()?;
            if answer.get("error").is_some() {
                return Err(failed(format!("{command} {arguments}: {answer}")));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Waits for an event that concerns the device.
    pub(super) fn wait_for(&mut self, event: &str, device: &str) -> Result<(), LabError> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let seen = self.next()?;
            if seen["event"] == event && seen["data"]["device"] == device {
                return Ok(());
            }
        }
        Err(LabError::Deadline {
            what: format!("{event} of {device}"),
            within: PATIENCE,
        })
    }
}
