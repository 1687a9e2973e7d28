//! The classifier: which of many rules decides about a subject, at a cost that hardly grows with their number.
//!
//! A rule is about a remote and a service (protocol with ports or ICMP type and code), so that there are two dimensions. Services are ranges of
//! a 24-bit key. For every prefix that rules name, a step function over that key says which of its rules decides; another one over
//! addresses says which prefix of them is the longest. Prefixes that contain each other are chained, and where the functions of a prefix
//! and of the one around it are small, they are made one. Rules on anyone are a function of their own; rules on address sets are in
//! [`super::set_rules`]. The choice and its figures: `docs/decisions/004-rule-classification.md`.
//!
//! Built by the agent, immutable, shared by the ports that use it. Memory is linear in the rules: see [`Classifier::bytes`].

use std::collections::BTreeMap;

use super::set_rules::SetRules;
use super::steps::{self, Function, Functions, Maker, NONE, Step};
use super::{AddressSet, Remote, Rule, Subject};
use crate::packet::Family;
use crate::route::Prefix;
use crate::route::prefix::mask;

/// Functions of a prefix and of the one around it are made one up to so many steps: a few lines
/// more, and one function less to ask.
const JOINED: usize = 32;

/// Rules, compiled: the least outcome of those that match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Classifier {
    functions: Functions,
    ipv4: FamilyRules<Ipv4Places>,
    ipv6: FamilyRules<Ipv6Places>,
}

/// The rules about one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct FamilyRules<Places> {
    /// Rules on anyone: outcome by service.
    any: Option<Function>,
    /// Which place an address is in.
    places: Places,
    /// The prefixes that rules name: outcome by service, and the next place further out, or [`NONE`].
    prefixes: Vec<(Function, u32)>,
    /// Rules on address sets.
    sets: SetRules,
}

/// Place by address, IPv4: a function over the 32 bits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ipv4Places(Option<Function>);

/// Place by address, IPv6: the last address of each range, ascending, and its place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ipv6Places(Vec<u128>, Vec<u32>);

trait Locate {
    /// The last address, in the form that [`Locate::narrow`] gives.
    const LAST: u128;
    /// An address of the family, as a number from 0.
    fn narrow(address: u128) -> u128;
    fn new(ranges: Vec<(u128, u32)>, maker: &mut Maker) -> Self;
    fn locate(&self, functions: &Functions, address: u128) -> u32;
    fn bytes(&self) -> usize;
}

impl Locate for Ipv4Places {
    const LAST: u128 = u32::MAX as u128;

    fn narrow(address: u128) -> u128 {
        address & Self::LAST
    }

    fn new(ranges: Vec<(u128, u32)>, maker: &mut Maker) -> Self {
        let mut all = Vec::new();
        for (last, place) in ranges {
            steps::extend(&mut all, last as u32, place);
        }
        Self(Some(maker.make(all)))
    }

    #[inline]
    fn locate(&self, functions: &Functions, address: u128) -> u32 {
        self.0
            .map_or(NONE, |places| functions.at(places, address as u32))
    }

    fn bytes(&self) -> usize {
        0
    }
}

impl Locate for Ipv6Places {
    const LAST: u128 = u128::MAX;

    fn narrow(address: u128) -> u128 {
        address
    }

    fn new(ranges: Vec<(u128, u32)>, _: &mut Maker) -> Self {
        let (lasts, places) = ranges.into_iter().unzip();
        Self(lasts, places)
    }

    #[inline]
    fn locate(&self, _: &Functions, address: u128) -> u32 {
        let at = self.0.partition_point(|last| *last < address);
        self.1.get(at).copied().unwrap_or(NONE)
    }

    fn bytes(&self) -> usize {
        self.0.len() * size_of::<(u128, u32)>()
    }
}

/// Ranges of services with the outcome.
type Ranges = Vec<(u32, u32, u32)>;

/// Rules of one family, sorted by their kind of remote.
#[derive(Default)]
struct Sorted {
    any: Ranges,
    prefixes: BTreeMap<Prefix, Ranges>,
    sets: Vec<(u32, u32, (u32, u32))>,
}

impl Classifier {
    /// Compiles rules, each with its outcome: of several that match, the least decides. `u32::MAX` is no outcome.
    pub fn new<'a>(rules: impl IntoIterator<Item = (u32, &'a Rule)>) -> Self {
        let (mut ipv4, mut ipv6) = (Sorted::default(), Sorted::default());
        for (outcome, rule) in rules {
            let Some((first, last)) = rule.service.keys() else {
                continue;
            };
            for (family, sorted) in [(Family::Ipv4, &mut ipv4), (Family::Ipv6, &mut ipv6)] {
                if rule.family.is_some_and(|only| only != family) {
                    continue;
                }
                match &rule.remote {
                    Remote::Any => sorted.any.push((first, last, outcome)),
                    Remote::Prefix(prefix) if prefix.family() == family => {
                        let ranges = sorted.prefixes.entry(*prefix).or_default();
                        ranges.push((first, last, outcome));
                    }
                    Remote::Prefix(_) => {}
                    Remote::Set(set) => sorted.sets.push((first, last, (outcome, *set as u32))),
                }
            }
        }
        let mut maker = Maker::default();
        let (ipv4, ipv6) = (
            FamilyRules::new(&ipv4, &mut maker),
            FamilyRules::new(&ipv6, &mut maker),
        );
        Self {
            functions: maker.finish(),
            ipv4,
            ipv6,
        }
    }

    /// The least outcome of the rules that match the subject; none when no rule does.
    pub fn decide(&self, subject: &Subject, sets: &[AddressSet]) -> Option<u32> {
        let outcome = match subject.family {
            Family::Ipv4 => self.ipv4.decide(&self.functions, subject, sets),
            Family::Ipv6 => self.ipv6.decide(&self.functions, subject, sets),
        };
        (outcome != NONE).then_some(outcome)
    }

    /// Bytes of memory. A rule on anyone takes about 18, on a prefix 80 to 120 as rules usually are and 400 at most, of n rules on sets each 8 log2 n
    /// at most.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.functions.bytes() + self.ipv4.bytes() + self.ipv6.bytes()
    }
}

impl<Places: Locate + Default> FamilyRules<Places> {
    fn new(rules: &Sorted, maker: &mut Maker) -> Self {
        let any = (!rules.any.is_empty()).then(|| maker.make(steps::least(&rules.any)));
        let mut compiled = Self {
            any,
            sets: SetRules::new(&rules.sets, maker),
            ..Self::default()
        };
        if !rules.prefixes.is_empty() {
            compiled.chain(&rules.prefixes, maker);
        }
        compiled
    }

    /// Prefixes come in order of their first address, a wider one before those within it.
    fn chain(&mut self, prefixes: &BTreeMap<Prefix, Ranges>, maker: &mut Maker) {
        let mut ranges: Vec<(u128, u32)> = Vec::new();
        // The prefixes around the one at hand, outermost first: last address, place, steps, next place further out.
        let mut around: Vec<(u128, u32, Vec<Step>, u32)> = Vec::new();
        let mut cover = |last: u128, place: u32| {
            // What begins where the previous range ended is empty if it ends there too.
            if ranges.last().is_none_or(|(before, _)| *before < last) {
                ranges.push((last, place));
            }
        };
        for (place, (prefix, rules)) in (0u32..).zip(prefixes) {
            let first = Places::narrow(prefix.bits());
            let last = Places::narrow(prefix.bits() | !mask(prefix.length()));
            while let Some((last, inner, ..)) = around.pop_if(|(last, ..)| *last < first) {
                cover(last, inner);
            }
            if let Some(before) = first.checked_sub(1) {
                cover(before, around.last().map_or(NONE, |outer| outer.1));
            }
            let own = steps::least(rules);
            let (all, next) = match around.last() {
                None => (own, NONE),
                Some((_, outer, steps, next)) => {
                    let joined = steps::lesser(&own, steps);
                    if joined.len() <= JOINED {
                        (joined, *next)
                    } else {
                        (own, *outer)
                    }
                }
            };
            self.prefixes.push((maker.make(all.clone()), next));
            around.push((last, place, all, next));
        }
        while let Some((last, inner, ..)) = around.pop() {
            cover(last, inner);
        }
        cover(Places::LAST, NONE);
        self.places = Places::new(ranges, maker);
    }

    #[inline]
    fn decide(&self, functions: &Functions, subject: &Subject, sets: &[AddressSet]) -> u32 {
        let service = subject.service();
        let mut best = self.any.map_or(NONE, |any| functions.at(any, service));
        if !self.prefixes.is_empty() {
            let mut place = self.places.locate(functions, subject.remote);
            while let Some((function, next)) = self.prefixes.get(place as usize) {
                best = best.min(functions.at(*function, service));
                place = *next;
            }
        }
        self.sets.decide(functions, service, subject, sets, best)
    }

    fn bytes(&self) -> usize {
        self.places.bytes() + self.prefixes.len() * size_of::<(Function, u32)>() + self.sets.bytes()
    }
}
