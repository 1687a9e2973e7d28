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
pub struct Learned {
    all: Arc<CowMap<Asked, ()>>,
    macs: usize,
}

impl Learned {
    /// Whether it was asked for.
    pub fn has(&self, asked: Asked) -> bool {
        self.all.contains_key(&asked)
    }

    /// How much was asked for.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// How many MACs are among it.
    pub fn macs(&self) -> usize {
        self.macs
    }

    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Notes an answer, or that it holds no longer.
    pub(super) fn set(&mut self, asked: Asked, is_known: bool) {
        let all = Arc::make_mut(&mut self.all);
        let is_mac = usize::from(matches!(asked, Asked::Mac(_)));
        if is_known {
            if all.insert(asked, ()).is_none() {
                self.macs += is_mac;
            }
        } else if all.remove(&asked).is_some() {
            self.macs -= is_mac;
        }
    }
}
