//! The classifier: finds the rule that decides among many, at a cost that hardly grows with their number.
//!
//! A rule is about a remote and a service (protocol with ports or ICMP type and code), so that there are two dimensions. Services are
//! ranges of a 24-bit key. For every prefix that rules name, a step function over that key says which of its rules decides; another one
//! over addresses says which prefix of them is the longest. Prefixes that contain each other are chained, and where the functions of a
//! prefix and of the one around it are small, they are made one. Rules on anyone are a function of their own; rules on address sets are in
//! [`super::set_rules`]. The choice and its figures: `docs/decisions/004-rule-classification.md`.
//!
//! Built by the agent, immutable, shared by the ports that use it. Memory is linear in the rules: see [`Classifier::bytes`].

use super::places::Places;
use super::set_rules::SetRules;
use super::steps::{self, Function, Functions, Maker, NONE, Step};
use super::{AddressSet, Remote, Rule, Subject};
use crate::packet::Family;
use crate::route::Prefix;
use crate::route::prefix::mask;

/// Functions of a prefix and of the one around it are made one up to so many steps: a few lines
/// more, and one function less to ask.
const JOINED: usize = 32;

/// So many subjects are searched for side by side: more hide no more of the memory's latency.
const BATCH: usize = 8;

/// Rules, compiled: the least outcome of those that match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Classifier {
    functions: Functions,
    ipv4: FamilyRules<32>,
    ipv6: FamilyRules<128>,
}

/// The rules about one family, whose addresses are `BITS` long.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct FamilyRules<const BITS: u32> {
    /// Rules on anyone: outcome by service.
    any: Option<Function>,
    /// What the longest prefix around an address says. A place is a function (outcome by service), or stands for a link.
    places: Places,
    /// Functions that are not all that there is to say: with the place of the next prefix further out.
    links: Vec<(Function, u32)>,
    /// Rules on address sets.
    sets: Option<SetRules>,
}

/// Marks a place that is the number of a link.
const LINK: u32 = 0x8000_0000;

/// A range of services, first and last, with the outcome.
type Range = (u32, u32, u32);

/// Rules of one family, sorted by their kind of remote.
#[derive(Default)]
struct Sorted {
    any: Vec<Range>,
    prefixes: Vec<(Prefix, Range)>,
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
                        sorted.prefixes.push((*prefix, (first, last, outcome)));
                    }
                    Remote::Prefix(_) => {}
                    Remote::Set(set) => sorted.sets.push((first, last, (outcome, *set as u32))),
                }
            }
        }
        let mut maker = Maker::default();
        let (ipv4, ipv6) = (
            FamilyRules::new(ipv4, &mut maker),
            FamilyRules::new(ipv6, &mut maker),
        );
        Self {
            functions: maker.finish(),
            ipv4,
            ipv6,
        }
    }

    /// The least outcome of the rules that match the subject; none when no rule does.
    pub fn decide(&self, subject: &Subject, sets: &[AddressSet]) -> Option<u32> {
        let [outcome] = match subject.family {
            Family::Ipv4 => self.ipv4.decide(&self.functions, [subject], sets),
            Family::Ipv6 => self.ipv6.decide(&self.functions, [subject], sets),
        };
        (outcome != NONE).then_some(outcome)
    }

    /// The results of [`Self::decide`] for each subject, in their order, in about half the time where eight of one family or more follow each
    /// other.
    pub fn decide_batch(
        &self,
        subjects: &[Subject],
        sets: &[AddressSet],
        mut tell: impl FnMut(Option<u32>),
    ) {
        let mut tell = |outcome: u32| tell((outcome != NONE).then_some(outcome));
        for run in subjects.chunk_by(|a, b| a.family == b.family) {
            let (batches, rest) = run.as_chunks::<BATCH>();
            for batch in batches {
                let several = batch.each_ref();
                let outcomes = match batch[0].family {
                    Family::Ipv4 => self.ipv4.decide(&self.functions, several, sets),
                    Family::Ipv6 => self.ipv6.decide(&self.functions, several, sets),
                };
                outcomes.into_iter().for_each(&mut tell);
            }
            for subject in rest {
                tell(self.decide(subject, sets).unwrap_or(NONE));
            }
        }
    }

    /// Bytes of memory. A rule on anyone takes about 18, on a prefix 60 to 120 as rules usually are and 600 at most, of n rules on sets each 8 log2 n
    /// at most.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.functions.bytes() + self.ipv4.bytes() + self.ipv6.bytes()
    }
}

impl<const BITS: u32> FamilyRules<BITS> {
    fn new(mut rules: Sorted, maker: &mut Maker) -> Self {
        let any = (!rules.any.is_empty()).then(|| maker.make(&steps::least(&rules.any)));
        let mut compiled = Self {
            any,
            sets: SetRules::new(&rules.sets, maker),
            ..Self::default()
        };
        if !rules.prefixes.is_empty() {
            rules.prefixes.sort_unstable();
            compiled.chain(&rules.prefixes, maker);
        }
        compiled
    }

    /// An address of the family as a number of `BITS` bits.
    fn narrow(address: u128) -> u128 {
        address & (u128::MAX >> (128 - BITS))
    }

    /// Prefixes come in order of their first address, a wider one before those within it.
    fn chain(&mut self, rules: &[(Prefix, Range)], maker: &mut Maker) {
        let mut ranges: Vec<(u128, u32)> = Vec::new();
        // The prefixes around the one at hand, outermost first.
        let mut around: Vec<Around> = Vec::new();
        let mut cover = |last: u128, place: u32| {
            // What begins where the previous range ended is empty if it ends there too.
            if ranges.last().is_none_or(|(before, _)| *before < last) {
                ranges.push((last, place));
            }
        };
        let mut own = Vec::new();
        for rules in rules.chunk_by(|a, b| a.0 == b.0) {
            let prefix = rules[0].0;
            own.clear();
            own.extend(rules.iter().map(|(_, range)| *range));
            let first = Self::narrow(prefix.bits());
            let last = Self::narrow(prefix.bits() | !mask(prefix.length()));
            while let Some(inner) = around.pop_if(|inner| inner.last < first) {
                cover(inner.last, inner.place);
            }
            if let Some(before) = first.checked_sub(1) {
                cover(before, around.last().map_or(NONE, |outer| outer.place));
            }
            let own = steps::least(&own);
            let (steps, next) = match around.last() {
                None => (own, NONE),
                Some(outer) => {
                    let joined = steps::lesser(&own, &outer.steps);
                    if joined.len() <= JOINED {
                        (joined, outer.next)
                    } else {
                        (own, outer.place)
                    }
                }
            };
            let function = maker.make(&steps);
            let place = if next == NONE {
                function.number()
            } else {
                self.links.push((function, next));
                LINK | (self.links.len() - 1) as u32
            };
            around.push(Around {
                last,
                place,
                steps,
                next,
            });
        }
        while let Some(inner) = around.pop() {
            cover(inner.last, inner.place);
        }
        cover(Self::narrow(u128::MAX), NONE);
        self.places = Places::new(&ranges, BITS, maker);
    }

    #[inline(always)]
    fn decide<const N: usize>(
        &self,
        functions: &Functions,
        subjects: [&Subject; N],
        sets: &[AddressSet],
    ) -> [u32; N] {
        let services = subjects.map(Subject::service);
        let mut outcomes = self
            .any
            .map_or([NONE; N], |any| functions.at_each(any, services));
        let addresses = subjects.map(|subject| subject.remote);
        let places = self.places.locate(functions, addresses, BITS);
        for i in 0..N {
            let mut place = places[i];
            while place != NONE {
                let (function, next) = if place & LINK == 0 {
                    (Function::numbered(place), NONE)
                } else {
                    self.links[(place & !LINK) as usize]
                };
                outcomes[i] = outcomes[i].min(functions.at(function, services[i]));
                place = next;
            }
        }
        if let Some(rules) = &self.sets {
            for (i, outcome) in outcomes.iter_mut().enumerate() {
                *outcome = rules.decide(functions, services[i], subjects[i], sets, *outcome);
            }
        }
        outcomes
    }

    fn bytes(&self) -> usize {
        let sets = self.sets.as_ref().map_or(0, SetRules::bytes);
        self.places.bytes() + size_of_val(&*self.links) + sets
    }
}

/// A prefix whose end is not reached yet.
struct Around {
    last: u128,
    place: u32,
    /// Its function, with those of the prefixes around it as far as they are joined.
    steps: Vec<Step>,
    /// The place of the next prefix further out that is not joined.
    next: u32,
}
