//! What workers are made with.

use std::sync::Arc;
use std::time::Duration;

use super::service::Desks;
use crate::pipeline::{Settings, Shared};
use crate::port::Umem;
use crate::session::Timeouts;

/// What workers are made with.
#[derive(Debug)]
pub struct Plan<'a> {
    /// A core for each worker; none leaves it to the scheduler.
    pub cores: &'a [Option<usize>],
    /// Limits of the pipelines.
    pub settings: &'a Settings,
    /// Sessions and fragments.
    pub shared: &'a Shared,
    /// Idle times.
    pub timeouts: Timeouts,
    /// Whether to spin.
    pub spin: bool,
    /// How long a worker may be stuck before it is reported; none: no watchdog.
    pub watchdog: Option<Duration>,
    /// Packet memory.
    pub umem: &'a Arc<Umem>,
    /// Where packets to services of this host are left.
    pub desks: &'a Desks,
}
