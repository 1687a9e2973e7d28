//! A VLAN on an interface of a namespace, as a guest has it: the kernel here has no VLAN device, so that two threads stand in for one. They put the tag on what a
//! tap sends, and hand the tap what comes with the tag.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::tap_end::HEADER;
use crate::{LabError, Namespace, RawSocket, TapEnd};

/// How long a thread waits for a frame before it looks whether it shall end.
const PATIENCE: Duration = Duration::from_millis(5);

/// The VLAN, until it is dropped.
#[derive(Debug)]
pub struct Vlan {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Vlan {
    /// Makes the interface `eth0` of `inside` that of a VLAN on `interface` of `trunk`.
    pub fn start(
        (trunk, interface): (&Namespace, &str),
        vlan: u16,
        inside: &Namespace,
    ) -> Result<Self, LabError> {
        let link = Arc::new(RawSocket::open_tagged(trunk, interface)?);
        let mut ends = TapEnd::make(inside, "eth0", 1, 0)?;
        let Some(mut end) = ends.pop() else {
            return Err(LabError::io("a tap")(std::io::Error::other("has no queue")));
        };
        let mut towards = end.another()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, from) = (Arc::clone(&stop), Arc::clone(&link));
        let inwards = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                if let Some((tci, frame)) = from.receive_tagged(PATIENCE)
                    && tci.is_some_and(|tci| tci & 0x0fff == vlan)
                {
                    // The tap may be down.
                    let _ = towards.send([0; HEADER], &frame);
                }
            }
        });
        let ended = Arc::clone(&stop);
        let outwards = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                if let Some((_, frame)) = end.receive(PATIENCE, |_| true) {
                    // The link may be down.
                    let _ = link.send(&tagged(&frame, vlan));
                }
            }
        });
        Ok(Self {
            stop,
            threads: vec![inwards, outwards],
        })
    }
}

impl Drop for Vlan {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It only moves frames.
            let _ = thread.join();
        }
    }
}

/// The frame with a tag (IEEE 802.1Q §9.6).
pub fn tagged(frame: &[u8], tci: u16) -> Vec<u8> {
    let [high, low] = tci.to_be_bytes();
    let (macs, rest) = frame.split_at(frame.len().min(12));
    [macs, &[0x81, 0, high, low], rest].concat()
}
