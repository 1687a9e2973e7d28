//! The line to a guest's agent (`init.sh`): a serial port whose other end is a socket. A command goes out as one line, and its output comes
//! back between two marked lines, the last of which carries the exit code.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use crate::LabError;

/// What a command in a guest printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; 137 if it was killed because its time was over.
    pub code: i32,
    /// Both its streams.
    pub text: String,
}

/// How much longer than the command itself an answer may take: the machine may be busy.
const GRACE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct Console {
    stream: UnixStream,
    /// What came and was not asked for yet.
    received: Vec<u8>,
    number: u64,
}

impl Console {
    pub(super) fn open(socket: &Path) -> Result<Self, LabError> {
        let stream =
            UnixStream::connect(socket).map_err(LabError::io(socket.display().to_string()))?;
        Ok(Self {
            stream,
            received: Vec::new(),
            number: 0,
        })
    }

    /// Waits for the agent's first word after a boot, which names the boot.
    pub(super) fn wait_up(&mut self, within: Duration) -> Result<String, LabError> {
        let deadline = Instant::now() + within;
        loop {
            let line = self.line(deadline, "the guest's agent")?;
            if let Some(boot) = line.strip_prefix("#up ") {
                return Ok(boot.trim().to_owned());
            }
        }
    }

    /// Sends a line that is not answered.
    pub(super) fn send(&mut self, line: &str, within: Duration) -> Result<(), LabError> {
        self.number += 1;
        let text = format!("{} {} {line}\n", self.number, within.as_secs().max(1));
        self.stream
            .write_all(text.as_bytes())
            .map_err(LabError::io("sending a command to a guest"))
    }

    /// Runs one line of shell.
    pub(super) fn run(&mut self, line: &str, within: Duration) -> Result<Output, LabError> {
        self.send(line, within)?;
        let deadline = Instant::now() + within + GRACE;
        let (begin, end) = (
            format!("#begin {}", self.number),
            format!("#end {} ", self.number),
        );
        let what = format!("`{line}` in a guest");
        // What is before is of a command that was given up.
        while self.line(deadline, &what)? != begin {}
        let mut text = String::new();
        loop {
            let next = self.line(deadline, &what)?;
            if let Some(code) = next.strip_prefix(&end) {
                // The agent begins its line with a new one, since the output's last may not have ended.
                text.pop();
                return Ok(Output {
                    code: code.trim().parse().unwrap_or(-1),
                    text,
                });
            }
            text.push_str(&next);
            text.push('\n');
        }
    }

    fn line(&mut self, deadline: Instant, what: &str) -> Result<String, LabError> {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=at).collect();
                let line = String::from_utf8_lossy(&line);
                return Ok(line.trim_end_matches(['\n', '\r']).to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LabError::Deadline {
                    what: format!(
                        "{what}; so far: {}",
                        String::from_utf8_lossy(&self.received)
                    ),
                    within: begun.elapsed(),
                });
            }
            let mut buffer = [0; 4096];
            let got = self
                .stream
                .set_read_timeout(Some(left))
                .and_then(|()| self.stream.read(&mut buffer));
            match got {
                Ok(0) => {
                    return Err(LabError::io(what)(io::Error::from(
                        io::ErrorKind::UnexpectedEof,
                    )));
                }
                Ok(len) => self.received.extend_from_slice(&buffer[..len]),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) =>
                {
                    self.stream.write_all(b"\n").map_err(LabError::io(what))?;
                }
                Err(error) => return Err(LabError::io(what)(error)),
            }
        }
    }
}
