//! How much ports' devices take, as far as that is known: the daemon finds it out and keeps it up to date, workers read it.
//!
//! It is no part of the snapshot, since it changes without a change of state.

use std::sync::atomic::{AtomicU16, Ordering};

/// Bytes of IP packet that the device of each port takes, by port index. One thread writes.
#[derive(Debug)]
pub struct DeviceMtus {
    ports: Box<[AtomicU16]>,
    /// The least of all: what is no longer fits everywhere.
    least: AtomicU16,
}

impl DeviceMtus {
    /// For so many ports; nothing is known of any.
    pub fn new(ports: usize) -> Self {
        Self {
            ports: (0..ports).map(|_| AtomicU16::new(u16::MAX)).collect(),
            least: AtomicU16::new(u16::MAX),
        }
    }

    /// What every device takes.
    #[inline]
    pub fn least(&self) -> u16 {
        self.least.load(Ordering::Relaxed)
    }

    /// What the device of a port takes; everything where nothing is known.
    #[inline]
    pub fn of(&self, port: u16) -> u16 {
        let mtu = self.ports.get(usize::from(port));
        mtu.map_or(u16::MAX, |mtu| mtu.load(Ordering::Relaxed))
    }

    /// Notes what the device of a port takes; none: nothing is known.
    pub fn set(&self, port: u16, mtu: Option<u16>) {
        let Some(known) = self.ports.get(usize::from(port)) else {
            return;
        };
        let mtu = mtu.unwrap_or(u16::MAX);
        if known.load(Ordering::Relaxed) != mtu {
            known.store(mtu, Ordering::Relaxed);
            let all = self.ports.iter().map(|mtu| mtu.load(Ordering::Relaxed));
            self.least
                .store(all.min().unwrap_or(u16::MAX), Ordering::Relaxed);
        }
    }
}
