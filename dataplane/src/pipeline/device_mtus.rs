//! How much ports' devices take, as far as that is known: the daemon finds it out and keeps it up to date, workers read it.
//!
//! It is no part of the snapshot, since it changes without a change of state.

use std::sync::atomic::{AtomicU16, Ordering};

/// Bytes of IP packet that the device of each port takes, by port index.
#[derive(Debug)]
pub struct DeviceMtus(Box<[AtomicU16]>);

impl DeviceMtus {
    /// For so many ports; nothing is known of any.
    pub fn new(ports: usize) -> Self {
        Self((0..ports).map(|_| AtomicU16::new(u16::MAX)).collect())
    }

    /// What the device of a port takes; everything where nothing is known.
    #[inline(always)]
    pub fn of(&self, port: u16) -> u16 {
        let mtu = self.0.get(usize::from(port));
        mtu.map_or(u16::MAX, |mtu| mtu.load(Ordering::Relaxed))
    }

    /// Notes what the device of a port takes; none: nothing is known.
    pub fn set(&self, port: u16, mtu: Option<u16>) {
        if let Some(known) = self.0.get(usize::from(port)) {
            known.store(mtu.unwrap_or(u16::MAX), Ordering::Relaxed);
        }
    }
}
