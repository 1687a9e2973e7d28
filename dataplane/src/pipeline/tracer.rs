//! What listens to a resolution: nothing, or whoever wants to see its steps.

use crate::numbers::VpcIndex;
use crate::packet::DropReason;
use crate::session::table::Ingress;
use crate::snapshot::Asked;

/// Listens to the steps of a judgement.
pub trait Tracer {
    /// One step. The text is made only when somebody listens.
    fn step(&mut self, stage: &'static str, text: impl FnOnce() -> String);

    /// Whether one more flow may be opened, by a packet of this ingress in the VPC of this index.
    ///
    /// # Errors
    /// Which limit is spent.
    fn open_flow(&mut self, _ingress: Ingress, _vpc: VpcIndex) -> Result<(), DropReason> {
        Ok(())
    }

    /// Whether a real packet is resolved, which may make a mapping.
    fn may_change(&self) -> bool {
        false
    }

    /// A next hop on an external network is not known.
    fn unresolved(&mut self, _network: u16, _address: u128) {}

    /// Who has something in the VPC of this place is not known yet.
    fn unlearned(&mut self, _vpc: usize, _asked: Asked) {}
}

/// Nobody listens; the steps cost nothing.
#[derive(Debug)]
pub struct Silent;

impl Tracer for Silent {
    #[inline]
    fn step(&mut self, _stage: &'static str, _text: impl FnOnce() -> String) {}
}

/// The steps, kept.
#[derive(Debug, Default)]
pub struct Steps(pub Vec<(&'static str, String)>);

impl Tracer for Steps {
    fn step(&mut self, stage: &'static str, text: impl FnOnce() -> String) {
        self.0.push((stage, text()));
    }
}
