//! Static translations of addresses, checked and entered into their VPCs.

use std::sync::Arc;

use weft_proto::state::Kind;

use super::Draft;
use crate::packet::parse::{word_address, word_family};

impl Draft<'_> {
    pub(super) fn add_translations(&mut self) {
        for translation in self.context.translations {
            let id = &translation.vpc;
            let Some(place) = self.places.vpcs.get(id).copied() else {
                continue;
            };
            let (inside, outside) = (translation.inside, translation.outside);
            let vpc = &mut self.vpcs[place].vpc;
            let is_in_subnet = self.subnets.iter().any(|subnet| {
                subnet.vpc == place
                    && subnet
                        .prefixes
                        .iter()
                        .any(|prefix| prefix.contains(outside))
            });
            let rule = if word_family(inside) != word_family(outside) {
                "is not of the family of its inside address"
            } else if is_in_subnet {
                "lies in a subnet of the VPC"
            } else if Arc::make_mut(&mut vpc.translations).add(translation) {
                continue;
            } else {
                "or its inside address has another translation"
            };
            let rule = format!("outside address {} {rule}", word_address(outside));
            self.report.add(Kind::Vpc, id, "translations", rule);
        }
    }
}
