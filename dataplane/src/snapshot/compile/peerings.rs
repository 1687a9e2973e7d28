//! Peerings, entered into both of their VPCs.

use std::collections::HashSet;

use weft_proto::state::{Object, State};

use super::super::Peering;
use super::{Draft, Objects};

impl Draft<'_> {
    /// A VPC that is not known here is none that a packet of this host could be for.
    pub(super) fn fill_peerings(&mut self, objects: &Objects<'_>) {
        let mut peerings: Vec<Vec<Peering>> = vec![Vec::new(); self.vpcs.len()];
        for peering in &objects.peerings {
            let [a, b] = peering.vpcs().map(|vpc| self.places.vpcs.get(vpc).copied());
            let (Some(a), Some(b)) = (a, b) else {
                continue;
            };
            for (own, other) in [(a, b), (b, a)] {
                let places = self.places.peerings.entry(peering.id.clone()).or_default();
                places.push((own, peerings[own].len()));
                peerings[own].push(Peering {
                    id: peering.id.clone(),
                    vpc: other,
                    passes: peering.passes(),
                });
            }
        }
        for (draft, peerings) in self.vpcs.iter_mut().zip(peerings) {
            draft.vpc.peerings = peerings.into();
        }
    }
}

/// Adds the VPCs that peerings join to those that are there: what is decided for a packet that goes from one to the other depends on both.
pub(super) fn add_joined<'s>(vpcs: &mut HashSet<&'s str>, state: &'s State) {
    let mut joined = HashSet::new();
    for object in state.of_kind(weft_proto::state::Kind::Peering) {
        if let Object::Peering(peering) = object
            && peering.vpcs().into_iter().any(|vpc| vpcs.contains(vpc))
        {
            joined.extend(peering.vpcs());
        }
    }
    vpcs.extend(joined);
}
