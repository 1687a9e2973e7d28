//! A transmit queue that stops while its link is up, like that of a NIC that no longer completes what it has to send.
//!
//! The interface is one end of a veth pair with a queueing discipline, which therefore stops its queue when the other end's ring is full
//! (Linux 6.16) instead of dropping. The other end's kernel is configured to poll that ring only rarely (`gro_flush_timeout`,
//! `napi_defer_hard_irqs`).

use std::time::Duration;

use crate::{LabError, Namespace};

/// One end of a link: the namespace, and the interface's name there.
pub type End<'a> = (&'a Namespace, &'a str);

/// Prepares a veth pair so that the queue of `sender` can be stopped.
pub fn prepare(sender: End<'_>, receiver: End<'_>) -> Result<(), LabError> {
    // Where the sender can leave segmentation to the receiver, its packets pass the receiver's ring by.
    sender.0.offloads(sender.1, "tso off")?;
    receiver.0.offloads(receiver.1, "gro on")?;
    let discipline = [
        "tc", "qdisc", "replace", "dev", sender.1, "root", "pfifo", "limit", "100",
    ];
    sender.0.run(&discipline).map(drop)
}

/// From the next packet that arrives at `receiver`, it takes nothing more for so long; zero: it takes all as soon as it comes, when a time that
/// has begun is over.
pub fn set(receiver: End<'_>, time: Duration) -> Result<(), LabError> {
    let (namespace, interface) = receiver;
    let write = format!(
        "cd /sys/class/net/{interface} && echo {} >gro_flush_timeout && echo {} >napi_defer_hard_irqs",
        time.as_nanos(),
        u8::from(!time.is_zero())
    );
    namespace.run(&["sh", "-c", &write]).map(drop)
}
