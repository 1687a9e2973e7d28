//! Rings shared with guests: 60-byte UDP in 64 flows from one vhost-user port to another on the same host, and to the underlay through VXLAN with
//! stateful policy, one way and both ways; beside Open vSwitch with DPDK in the same run, interleaved, on the same cores. A core forwards, and a core
//! plays both ends. The underlay's NIC is a vhost-user port too, so that neither side waits for a kernel.

mod generator;
mod ovs;
mod weft;

use std::path::PathBuf;
use std::time::Duration;

use weft_tests::{Daemon, load};

use crate::{Row, dpdk, median};
use generator::{End, Generator, Way};
use ovs::Ovs;
use weft::Weft;

const GENERATOR_CORE: usize = 0;
const SAMPLES: usize = 5;
const TIME: Duration = Duration::from_secs(2);
const FLOWS: u16 = 64;
/// Rules that a new flow passes before the one that admits it.
const RULES: u16 = 100;
const VNI: u32 = 100;
/// Mebibytes of huge pages that a generator gets.
const GENERATOR_MEMORY: u32 = 256;
/// Huge pages of 2 MiB for both switches and both generators.
const HUGE_PAGES: u32 = 1024;

type Address = ([u8; 6], [u8; 4]);
const A: Address = ([2, 0, 0, 0, 1, 1], [10, 0, 1, 11]);
const B: Address = ([2, 0, 0, 0, 1, 2], [10, 0, 1, 12]);
const UNDERLAY_NEAR: Address = ([2, 0, 0, 0, 9, 1], [192, 0, 2, 1]);
const UNDERLAY_FAR: Address = ([2, 0, 0, 0, 9, 2], [192, 0, 2, 2]);

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// What is between the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setup {
    /// A switch: both ends are guests of it.
    SameHost,
    /// A switch with a guest and an underlay.
    Tunnel,
}

impl Setup {
    /// What the ends send.
    fn frames(self) -> [Vec<Vec<u8>>; 2] {
        let there = load::udp_flows((B.0, A.0), (A.1, B.1), FLOWS, 18);
        let back = (0..FLOWS).map(|flow| load::udp((A.0, B.0), (B.1, A.1), (9, 1024 + flow), 18));
        let back = match self {
            Self::SameHost => back.collect(),
            Self::Tunnel => (50_000..)
                .zip(back)
                .map(|(port, inner)| encapsulated(port, &inner))
                .collect(),
        };
        [there, back]
    }
}

/// In VXLAN, from the far host to this one.
fn encapsulated(source_port: u16, inner: &[u8]) -> Vec<u8> {
    let (near, far) = (UNDERLAY_NEAR, UNDERLAY_FAR);
    let mut frame = load::udp(
        (near.0, far.0),
        (far.1, near.1),
        (source_port, 4789),
        8 + inner.len(),
    );
    let payload = frame.len() - inner.len();
    frame[payload - 8..payload - 4].copy_from_slice(&[8, 0, 0, 0]);
    frame[payload - 4..payload].copy_from_slice(&(VNI << 8).to_be_bytes());
    frame[payload..].copy_from_slice(inner);
    frame
}

/// What is measured: a process that forwards between two sockets on which it listens.
trait Switch {
    fn sockets(&self) -> [PathBuf; 2];
    fn process(&self) -> &Daemon;
}

/// A switch between two ends. It is stopped but while it is measured, since it never sleeps by itself.
struct Rig {
    generator: Generator,
    switch: Box<dyn Switch>,
    _files: tempfile::TempDir,
}

impl Rig {
    fn new(setup: Setup, switch: Box<dyn Switch>) -> anyhow::Result<Self> {
        let files = tempfile::tempdir()?;
        let (frames, sockets) = (setup.frames(), switch.sockets());
        let ends = [0, 1].map(|end| End {
            socket: &sockets[end],
            frames: &frames[end],
        });
        let generator = Generator::start(files.path(), GENERATOR_CORE, GENERATOR_MEMORY, ends)?;
        let mut rig = Self {
            generator,
            switch,
            _files: files,
        };
        // Every flow is answered once, so that all are established.
        rig.measure(Way::Both, Duration::from_millis(200))?;
        Ok(rig)
    }

    /// Million packets per second that arrive.
    fn measure(&mut self, way: Way, time: Duration) -> anyhow::Result<f64> {
        self.switch.process().pause(false);
        let rate = self.generator.measure(way, time);
        self.switch.process().pause(true);
        Ok(rate? / 1e6)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // The generator says goodbye to a switch that listens.
        self.switch.process().pause(false);
    }
}

pub(crate) fn rows(peers: bool) -> anyhow::Result<Vec<Row>> {
    let _pages = dpdk::HugePages::reserve(HUGE_PAGES);
    let mut rows = Vec::new();
    for (setup, what, peer, factor) in [
        (
            Setup::SameHost,
            "port to port of one host, ACL, group of 101 rules, sessions",
            "Open vSwitch with DPDK, switching alone",
            1.0,
        ),
        (
            Setup::Tunnel,
            "port to underlay, VXLAN, ACL, group of 101 rules, sessions",
            "Open vSwitch with DPDK, VXLAN, 101 stateful rules",
            2.0,
        ),
    ] {
        let mut ours = Rig::new(setup, Box::new(Weft::start(setup, dpdk::core())?))?;
        let mut theirs = if peers {
            let ovs = Ovs::start(setup, GENERATOR_CORE, dpdk::core())?;
            Some(Rig::new(setup, Box::new(ovs))?)
        } else {
            None
        };
        for (way, ways) in [(Way::There, "one way"), (Way::Both, "both ways")] {
            let (mut samples, mut others) = (Vec::new(), Vec::new());
            for _ in 0..SAMPLES {
                samples.push(ours.measure(way, TIME)?);
                if let Some(theirs) = &mut theirs {
                    others.push(theirs.measure(way, TIME)?);
                }
            }
            rows.push(Row {
                name: format!("vhost: {what}, {ways}, 60 bytes, {FLOWS} flows"),
                unit: "million packets/s",
                samples,
                goal: peers.then(|| (factor * median(&others), true)),
                peer: peers.then_some((peer, others)),
            });
        }
    }
    Ok(rows)
}
