//! DPDK's testpmd as both ends of a switch: two virtio-user ports, which are guests' network cards without guests. Frames come out of capture
//! files, over and over as fast as one core can, and what arrives is counted and thrown away.
//!
//! testpmd forwards between pairs of ports: a source and the card that its frames go out of. A source throws away what the card receives.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use weft_tests::wait_until;

const PATIENCE: Duration = Duration::from_secs(20);
/// Packets of one burst, and entries of a ring.
const BURST: u32 = 64;
const RING: u32 = 1024;
/// Before the count begins: sessions are made, caches fill.
const WARM_UP: Duration = Duration::from_millis(300);

/// Which ends send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The first alone.
    There,
    /// Both.
    Both,
}

impl Way {
    /// The ports in pairs: numbers as in [`Generator::start`].
    fn ports(self) -> &'static str {
        match self {
            Self::There => "0,1,4,3",
            Self::Both => "0,1,2,3",
        }
    }
}

/// A running testpmd, which forwards nothing until it is asked to measure. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Generator {
    program: Child,
    input: ChildStdin,
    log: PathBuf,
}

/// One of the two ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct End<'a> {
    /// The switch's socket.
    pub(super) socket: &'a Path,
    /// What it sends.
    pub(super) frames: &'a [Vec<u8>],
}

impl Generator {
    /// Connects two ends to a switch that listens. Files are made in `directory`.
    pub(super) fn start(
        directory: &Path,
        core: usize,
        memory: u32,
        ends: [End<'_>; 2],
    ) -> anyhow::Result<Self> {
        let log = directory.join("testpmd.log");
        let mut command = Command::new("stdbuf");
        // Else its answers would wait for a buffer to fill.
        command.args(["-oL", "dpdk-testpmd"]);
        // The thread that reads commands sleeps but for them.
        command.args(["--lcores", &format!("0@{core},1@{core}")]);
        command.args([
            "--in-memory",
            "--single-file-segments",
            "--no-pci",
            "--no-telemetry",
            "-m",
            &memory.to_string(),
        ]);
        for (number, end) in ends.iter().enumerate() {
            let file = directory.join(format!("{number}.pcap"));
            fs::write(&file, capture(end.frames))?;
            command.args([
                "--vdev",
                &format!("net_pcap{number},rx_pcap={},infinite_rx=1", file.display()),
                "--vdev",
                &format!(
                    "net_virtio_user{number},path={},queue_size={RING}",
                    end.socket.display()
                ),
            ]);
        }
        command.args(["--vdev", "net_null4,no-rx=1", "--"]);
        for option in ["interactive", "no-flush-rx", "nb-cores=1"] {
            command.arg(format!("--{option}"));
        }
        for option in ["rxd", "txd"] {
            command.arg(format!("--{option}={RING}"));
        }
        command.args([
            &format!("--burst={BURST}"),
            "--total-num-mbufs=16384",
            "--forward-mode=io",
            "--port-topology=paired",
        ]);
        command.stdin(Stdio::piped());
        // Both are appended to, or the one would write over the other.
        let output = File::options().create(true).append(true).open(&log)?;
        command.stdout(output.try_clone()?).stderr(output);
        let mut program = command
            .spawn()
            .context("cannot start testpmd: run `cargo xtask bench --peers`")?;
        let input = program.stdin.take().context("testpmd has no input")?;
        let mut generator = Self {
            program,
            input,
            log,
        };
        generator.ask("show port summary all", "net_null4")?;
        Ok(generator)
    }

    /// What it printed since its output was so long.
    fn printed(&self, since: usize) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(text.get(since..).unwrap_or_default()).into_owned()
    }

    /// Gives a command, and waits until its answer holds a text.
    fn ask(&mut self, command: &str, until: &str) -> anyhow::Result<String> {
        let since = fs::metadata(&self.log)?.len() as usize;
        writeln!(self.input, "{command}")?;
        let mut answer = String::new();
        let done = wait_until(&format!("testpmd's answer to {command}"), PATIENCE, || {
            answer = self.printed(since);
            answer.contains(until) || !matches!(self.program.try_wait(), Ok(None))
        });
        let done = done.is_ok() && answer.contains(until);
        anyhow::ensure!(
            done,
            "testpmd does not answer {command}: {}",
            self.printed(0)
        );
        Ok(answer)
    }

    /// Packets that both ends have received, and when.
    fn received(&mut self) -> anyhow::Result<(Instant, u64)> {
        let asked = Instant::now();
        let mut sum = 0;
        for port in [1, 3] {
            let answer = self.ask(&format!("show port stats {port}"), "Tx-bps")?;
            let count = answer
                .lines()
                .find_map(|line| line.trim().strip_prefix("RX-packets:"))
                .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
            sum += count.context("testpmd shows no count")?;
        }
        Ok((asked, sum))
    }

    /// Sends as fast as it can for a while; packets per second that arrived.
    pub(super) fn measure(&mut self, way: Way, time: Duration) -> anyhow::Result<f64> {
        self.ask(&format!("set portlist {}", way.ports()), "testpmd>")?;
        self.ask("start", "testpmd>")?;
        std::thread::sleep(WARM_UP);
        let (begun, before) = self.received()?;
        std::thread::sleep(time);
        let (ended, after) = self.received()?;
        self.ask("stop", "Done.")?;
        Ok((after - before) as f64 / (ended - begun).as_secs_f64())
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        let asked = writeln!(self.input, "quit").is_ok();
        let ended = || !matches!(self.program.try_wait(), Ok(None));
        if !(asked && wait_until("testpmd's end", Duration::from_secs(5), ended).is_ok()) {
            let _ = self.program.kill();
        }
        let _ = self.program.wait();
    }
}

/// A capture file of Ethernet frames (draft-ietf-opsawg-pcap).
fn capture(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    // Mark, version 2.4, two reserved, longest frame, Ethernet.
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, 1u32] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    for frame in frames {
        let len = frame.len() as u32;
        // Seconds, microseconds, bytes here, bytes on the wire.
        for word in [0, 0, len, len] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(frame);
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_file_is_read_by_others() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("frames.pcap");
        let frames: Vec<Vec<u8>> = (60..63).map(|len| vec![7; len]).collect();
        fs::write(&file, capture(&frames)).unwrap();
        let out = Command::new("tcpdump")
            .args(["-n", "-e", "-r"])
            .arg(&file)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        for len in 60..63 {
            assert!(text.contains(&format!("length {len}:")), "{text}");
        }
    }
}
