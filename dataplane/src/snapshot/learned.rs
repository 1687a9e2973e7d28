//! What this host has asked for in a VPC whose ports it learns (decision 018).

use std::sync::Arc;

use super::CowMap;
use crate::packet::Mac;

/// What can be asked for in a VPC: who has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Asked {
    /// An IP address.
    Address(u128),
    /// A MAC.
    Mac(Mac),
}

/// All that was asked for and answered: by a port that is in the snapshot, or by there being none.
#[derive(Debug, Clone, Default)]
pub struct Learned(Arc<CowMap<Asked, ()>>);

impl Learned {
    /// Whether it was asked for.
    pub fn has(&self, asked: Asked) -> bool {
        self.0.contains_key(&asked)
    }

    /// How much was asked for.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes an answer, or that it holds no longer.
    pub(super) fn set(&mut self, asked: Asked, is_known: bool) {
        let all = Arc::make_mut(&mut self.0);
        if is_known {
            all.insert(asked, ());
        } else {
            all.remove(&asked);
        }
    }
}
