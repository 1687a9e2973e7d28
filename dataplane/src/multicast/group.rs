//! What the guest of one port wants of one group: the state of a router for one attached network (RFC 3376 §6, RFC 3810 §7), with timers of sources and of
//! the group. Times are in milliseconds of one clock.

use std::collections::BTreeMap;

use super::Filter;
use super::message::Says;
use super::querier::{LAST_ANSWER, MEMBERSHIP};

/// How much longer a listener of an older version is believed to be there than it is without a new report (RFC 3376 §8.13).
const OLDER: u64 = MEMBERSHIP;

/// What a port wants of a group.
#[derive(Debug, Clone, Default)]
pub(super) struct Group {
    /// Until when all sources pass but those without a timer. None: only those with a timer pass.
    exclude: Option<u64>,
    /// The sources that were named, each with the time until which it passes.
    sources: BTreeMap<u128, Option<u64>>,
    /// Until when a listener may be there that knows no sources.
    older: u64,
}

/// What has to be asked for before something is taken from a port.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Question {
    /// Whether anybody there wants the group.
    pub group: bool,
    /// Whether anybody there wants these sources.
    pub sources: Vec<u128>,
}

impl Group {
    /// How many sources it has.
    pub fn sources(&self) -> usize {
        self.sources.len()
    }

    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.exclude.is_none() && self.sources.is_empty()
    }

    /// Takes in what a report says at a time.
    pub fn hear(&mut self, says: Says, named: &[u128], now: u64) -> Question {
        if says == Says::All {
            self.older = now + OLDER;
        }
        let is_older = now < self.older;
        let named = match says {
            Says::IsExclude | Says::ToExclude if is_older => &[],
            Says::Block if is_older => return Question::default(),
            _ => named,
        };
        let (until, soon) = (now + MEMBERSHIP, now + LAST_ANSWER);
        let is_wanted = |timer: Option<&Option<u64>>| matches!(timer, Some(Some(_)));
        let mut question = Question::default();
        match says {
            Says::IsInclude | Says::Allow => {}
            Says::Leaves | Says::ToInclude => {
                let others = self.sources.iter();
                let others =
                    others.filter(|(source, timer)| timer.is_some() && !named.contains(source));
                // What is asked already is not asked again (RFC 3376 §6.6.3).
                let others = others.filter(|(_, timer)| timer.is_some_and(|it| it > soon));
                question.sources = others.map(|(source, _)| *source).collect();
                question.group = self.exclude.is_some_and(|until| until > soon);
            }
            Says::Block | Says::ToExclude => {
                // In exclude mode what is not known yet is asked for, too; what is blocked is not.
                let is_asked = |source: &&u128| match self.sources.get(source) {
                    known @ Some(_) => is_wanted(known),
                    None => self.exclude.is_some(),
                };
                question.sources = named.iter().filter(is_asked).copied().collect();
            }
            Says::All | Says::IsExclude => {}
        }
        match says {
            Says::IsInclude | Says::Allow | Says::ToInclude => {
                let timers = named.iter().map(|source| (*source, Some(until)));
                self.sources.extend(timers);
            }
            Says::Leaves => {}
            Says::Block => {
                if let Some(group) = self.exclude {
                    for source in named {
                        self.sources.entry(*source).or_insert(Some(group));
                    }
                }
            }
            Says::All | Says::IsExclude | Says::ToExclude => {
                let fresh = match (self.exclude, says) {
                    (None, _) => None,
                    (Some(group), Says::ToExclude) => Some(group),
                    (Some(_), _) => Some(until),
                };
                let before = std::mem::take(&mut self.sources);
                let timer = |source: &u128| before.get(source).copied().unwrap_or(fresh);
                self.sources = named
                    .iter()
                    .map(|source| (*source, timer(source)))
                    .collect();
                self.exclude = Some(until);
            }
        }
        self.shorten(&question, soon);
        question
    }

    /// What is asked for ends soon, unless somebody answers.
    fn shorten(&mut self, question: &Question, soon: u64) {
        if question.group {
            self.exclude = self.exclude.map(|until| until.min(soon));
        }
        for source in &question.sources {
            if let Some(Some(until)) = self.sources.get_mut(source) {
                *until = soon.min(*until);
            }
        }
    }

    /// Ends what has not been confirmed in time.
    pub fn expire(&mut self, now: u64) {
        let is_over = |until: u64| until <= now;
        if self.exclude.is_some() {
            for timer in self.sources.values_mut() {
                *timer = timer.filter(|until| !is_over(*until));
            }
            if self.exclude.is_some_and(is_over) {
                self.exclude = None;
                self.sources.retain(|_, timer| timer.is_some());
            }
        } else {
            self.sources
                .retain(|_, timer| timer.is_some_and(|until| !is_over(until)));
        }
    }

    /// When something ends next.
    pub fn next(&self) -> Option<u64> {
        let timers = self.sources.values().copied().flatten();
        timers.chain(self.exclude).min()
    }

    /// What passes.
    pub fn filter(&self) -> Filter {
        let sources = self.sources.iter();
        let named = sources.filter(|(_, timer)| timer.is_some() != self.exclude.is_some());
        let named = named.map(|(source, _)| *source).collect();
        match self.exclude {
            Some(_) => Filter::Exclude(named),
            None => Filter::Include(named),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn include(sources: &[u128]) -> Filter {
        Filter::Include(sources.into())
    }

    fn exclude(sources: &[u128]) -> Filter {
        Filter::Exclude(sources.into())
    }

    #[test]
    fn sources_that_are_joined_pass_until_they_time_out() {
        let mut group = Group::default();
        assert_eq!(group.hear(Says::Allow, &[1, 2], 0), Question::default());
        group.hear(Says::IsInclude, &[2], 1000);
        assert_eq!(group.filter(), include(&[1, 2]));
        group.expire(MEMBERSHIP);
        assert_eq!(group.filter(), include(&[2]));
        assert_eq!(group.next(), Some(MEMBERSHIP + 1000));
        group.expire(MEMBERSHIP + 1000);
        assert!(group.is_empty());
    }

    #[test]
    fn a_source_that_is_blocked_ends_when_nobody_answers() {
        let mut group = Group::default();
        group.hear(Says::Allow, &[1, 2], 0);
        let question = group.hear(Says::Block, &[2, 3], 100);
        assert_eq!(question.sources, [2], "3 was not wanted");
        assert_eq!(group.next(), Some(100 + LAST_ANSWER));
        group.hear(Says::IsInclude, &[2], 110);
        group.expire(100 + LAST_ANSWER);
        assert_eq!(group.filter(), include(&[1, 2]), "somebody answered");
        group.hear(Says::Block, &[2], 1000);
        group.expire(1000 + LAST_ANSWER);
        assert_eq!(group.filter(), include(&[1]));
    }

    #[test]
    fn all_but_some_sources() {
        let mut group = Group::default();
        group.hear(Says::ToExclude, &[7], 0);
        assert_eq!(group.filter(), exclude(&[7]));
        group.hear(Says::Allow, &[7], 10);
        assert_eq!(group.filter(), exclude(&[]), "one host wants it");
        // It is blocked again: nobody answers.
        let question = group.hear(Says::Block, &[7, 8], 20);
        assert_eq!(question.sources, [7, 8]);
        group.expire(20 + LAST_ANSWER);
        assert_eq!(group.filter(), exclude(&[7, 8]));
    }

    #[test]
    fn a_change_to_include_leaves_what_is_named() {
        let mut group = Group::default();
        group.hear(Says::ToExclude, &[], 0);
        let question = group.hear(Says::ToInclude, &[5], 10);
        assert!(question.group);
        assert_eq!(group.filter(), exclude(&[]), "until nobody answers");
        group.expire(10 + LAST_ANSWER);
        assert_eq!(group.filter(), include(&[5]));
        let question = group.hear(Says::ToInclude, &[], 1000);
        assert_eq!(question.sources, [5]);
        group.expire(1000 + LAST_ANSWER);
        assert!(group.is_empty());
    }

    #[test]
    fn beside_an_older_listener_sources_do_not_count() {
        let mut group = Group::default();
        group.hear(Says::All, &[], 0);
        group.hear(Says::IsExclude, &[3], 10);
        assert_eq!(group.filter(), exclude(&[]));
        assert_eq!(group.hear(Says::Block, &[3], 20), Question::default());
        assert_eq!(group.filter(), exclude(&[]));
        assert!(group.hear(Says::Leaves, &[], 30).group);
        group.expire(30 + LAST_ANSWER);
        assert!(group.is_empty());
    }
}
