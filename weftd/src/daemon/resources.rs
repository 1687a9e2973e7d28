//! What the daemon has to hold before it runs: packet memory, XDP programs, the session table.
//!
//! They take longest at a start, so [`Resources::allocate`] makes them side by side, and they need privileges that the daemon drops
//! afterwards.

use std::sync::Arc;
use std::thread;

use weft_dataplane::pipeline::{DeviceMtus, Shared};
use weft_dataplane::port::{PortError, Programs, Umem, UmemOptions};
use weft_dataplane::session::table::SessionTable;

use super::config::Config;

/// Packet memory, programs and tables of one daemon.
#[derive(Debug)]
pub struct Resources {
    /// Packet memory.
    pub umem: Arc<Umem>,
    /// Programs of kernel devices.
    pub programs: Arc<Programs>,
    /// Sessions and fragments.
    pub shared: Shared,
}

impl Resources {
    /// Allocates everything, each part on a thread of its own. Needs more privileges than anything later: the kernel registers packet
    /// memory with a first socket, which may need a network namespace of its own. When it returns, the process has one thread again.
    ///
    /// # Errors
    /// What the system refuses, with the remedy.
    pub fn allocate(config: &Config) -> Result<Self, PortError> {
        let options = UmemOptions {
            frame_size: config.memory.frame_size,
            frames: config.memory.frames,
            large_frames: config.memory.large_frames,
            ring_size: config.memory.ring_size,
            huge_pages: config.memory.huge_pages,
        };
        let links = config.links();
        let uplinks = links.iter();
        let uplinks = uplinks.filter(|uplink| uplink.vhost_user.is_none()).count();
        let (umem, programs, sessions) = thread::scope(|scope| {
            let umem = scope.spawn(move || Umem::new(options));
            // A host without kernel interfaces needs none.
            let programs = if uplinks == 0 {
                Ok(Programs::find())
            } else {
                Programs::load(uplinks)
            };
            let sessions = SessionTable::new(config.session_limits());
            sessions.prepare();
            (umem.join(), programs, sessions)
        });
        let umem = umem.unwrap_or_else(|_| {
            Err(PortError::Io {
                what: "making the packet memory".to_owned(),
                source: std::io::Error::other("the thread panicked"),
            })
        })?;
        tracing::info!(
            frames = config.memory.frames,
            huge_pages = umem.has_huge_pages(),
            "packet memory"
        );
        Ok(Self {
            umem,
            programs: Arc::new(programs?),
            shared: Shared {
                sessions: Arc::new(sessions),
                fragments: Arc::default(),
                neighbors: Arc::default(),
                probes: Arc::default(),
                asks: Arc::default(),
                checks: Arc::default(),
                listeners: Arc::default(),
                device_mtus: Arc::new(DeviceMtus::new(config.settings().ports)),
            },
        })
    }
}
