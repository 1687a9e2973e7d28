//! Captures on an interface, decoded by tshark.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use crate::{Daemon, LabError, Namespace, namespace::output};

/// A running capture. Dropping it stops it and removes the file.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Daemon,
    file: PathBuf,
}

/// What a decoder finds wrong with a packet.
const BAD: &str = "_ws.malformed || ip.checksum.status == 0 || tcp.checksum.status == 0 || udp.checksum.status == 0 \
                   || icmp.checksum.status == 0 || icmpv6.checksum.status == 0";
/// What is told of such a packet.
const FAULT: [&str; 4] = [
    "frame.number",
    "_ws.col.Protocol",
    "_ws.col.Info",
    "_ws.expert.message",
];

impl Capture {
    /// Starts to record `interface` of the namespace; returns when the recorder listens. `filter` is tcpdump's, and may be empty.
    pub fn start(namespace: &Namespace, interface: &str, filter: &str) -> Result<Self, LabError> {
        let file = std::env::temp_dir().join(format!(
            "{}-{interface}-{}.pcap",
            namespace.name(),
            unique()
        ));
        let path = file.display().to_string();
        let mut args = vec![
            "-i",
            interface,
            "-n",
            "-U",
            "--immediate-mode",
            // By default a slot holds 256 KiB, and the recorder's memory eight packets.
            "-s",
            "2048",
            "-B",
            "16384",
            "-Z",
            "root",
            "-w",
            &path,
        ];
        args.extend(filter.split_whitespace());
        let mut tcpdump = namespace.spawn("tcpdump", &args)?;
        tcpdump.wait_for_output("listening on", Duration::from_secs(5))?;
        Ok(Self { tcpdump, file })
    }

    /// Stops recording.
    pub fn stop(&mut self) -> Result<(), LabError> {
        if self.tcpdump.is_running() {
            self.tcpdump.signal(libc::SIGINT);
            self.tcpdump.wait(Duration::from_secs(5))?;
        }
        Ok(())
    }

    /// What tshark makes of the packets that `filter` (tshark's) selects: one line for each, with the `fields` separated by
    /// tabs. Checksums are verified.
    pub fn decode(&self, filter: &str, fields: &[&str]) -> Result<Vec<String>, LabError> {
        let mut tshark = Command::new("tshark");
        tshark
            .arg("-r")
            .arg(&self.file)
            .args(["-n", "-T", "fields"]);
        for field in fields {
            tshark.args(["-e", field]);
        }
        // What TCP carries is no concern of ours, and random bytes are malformed to those who take them for a protocol.
        tshark.args(["-d", "tcp.port==1-65535,data"]);
        for protocol in ["ip", "tcp", "udp"] {
            tshark.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
        }
        if !filter.is_empty() {
            tshark.args(["-Y", filter]);
        }
        Ok(output(&mut tshark)?
            .lines()
            .map(ToOwned::to_owned)
            .collect())
    }

    /// Packets that tshark finds malformed or with a wrong checksum, one line for each.
    pub fn faults(&self) -> Result<Vec<String>, LabError> {
        self.decode(BAD, &FAULT)
    }

    /// The same where guests make checksums themselves: but for TCP checksums of 0xffff, which Linux writes in place of 0 whatever the
    /// protocol when no card does it (`skb_checksum_help`). They are the same number, and pass as they are.
    pub fn faults_of_guests(&self) -> Result<Vec<String>, LabError> {
        self.decode(&format!("({BAD}) && !(tcp.checksum == 0xffff)"), &FAULT)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // The file may not exist yet.
        let _ = self.stop();
        let _ = fs::remove_file(&self.file);
    }
}

fn unique() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
