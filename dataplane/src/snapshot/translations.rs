//! Addresses of a VPC that stand for others: static one-to-one translation (RFC 3022 §2.1, "basic NAT").

use super::Map;
use crate::route::Prefix;

/// One address of a VPC that stands for another. Who sends to the outside address reaches the inside one. Packets of the inside address bear the
/// outside one where they go `towards` these prefixes, and where they were sent to an outside address themselves (hairpin, RFC 4787 REQ-9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticTranslation {
    /// The VPC's id.
    pub vpc: String,
    /// The address of a port, in the 128-bit form.
    pub inside: u128,
    /// The address that stands for it, of the same family, in no subnet of the VPC.
    pub outside: u128,
    /// Destinations that see the outside address as the source.
    pub towards: Vec<Prefix>,
}

/// All of a VPC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Translations {
    by_inside: Map<u128, (u128, Vec<Prefix>)>,
    by_outside: Map<u128, u128>,
}

impl Translations {
    /// Enters one; false, and nothing is entered, if one of its addresses has one already.
    pub fn add(&mut self, translation: &StaticTranslation) -> bool {
        let StaticTranslation {
            inside,
            outside,
            towards,
            ..
        } = translation;
        let taken = self.by_inside.contains_key(inside) || self.by_outside.contains_key(outside);
        if !taken {
            self.by_inside.insert(*inside, (*outside, towards.clone()));
            self.by_outside.insert(*outside, *inside);
        }
        !taken
    }

    /// The inside address that a destination stands for.
    pub fn destination(&self, outside: u128) -> Option<u128> {
        self.by_outside.get(&outside).copied()
    }

    /// The outside address that a source gets towards a destination, or because the destination was translated.
    pub fn source(&self, inside: u128, destination: u128, hairpin: bool) -> Option<u128> {
        let (outside, towards) = self.by_inside.get(&inside)?;
        let sees = towards.iter().any(|prefix| prefix.contains(destination));
        (hairpin || sees).then_some(*outside)
    }

    /// Whether the destination of a flow may still be translated like this, or is not.
    pub fn keeps_destination(&self, before: u128, after: u128) -> bool {
        before == after || self.by_outside.get(&before) == Some(&after)
    }

    /// The same of its source.
    pub fn keeps_source(&self, before: u128, after: u128) -> bool {
        before == after
            || self
                .by_inside
                .get(&before)
                .is_some_and(|(outside, _)| *outside == after)
    }
}
