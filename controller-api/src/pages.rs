//! Lists page by page: all pages are of the revision of the first, as long as that is kept.
//!
//! A token says the revision, what is listed and the last object of the page. It gives no right: each page is for who asks for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use weft_proto::state::Kind;

use crate::version::Version;

/// The most versions that are kept for the pages that a caller may ask for,
const VERSIONS_OF_ONE: usize = 8;
/// and for those of all.
const VERSIONS: usize = 64;

/// How long one is kept after a page of it was asked for.
const KEPT: Duration = Duration::from_secs(300);

/// A version of which a caller was told a page that is not the last.
#[derive(Debug)]
struct Kept {
    caller: String,
    used: Instant,
    version: Arc<Version>,
}

/// The versions that are kept, those used last at the end.
#[derive(Debug, Default)]
pub(crate) struct Pages(Mutex<VecDeque<Kept>>);

impl Pages {
    /// Keeps a version, as one that a caller just used.
    pub(crate) fn keep(&self, caller: &str, version: &Arc<Version>) {
        let mut kept = self.current();
        kept.retain(|it| it.caller != caller || it.version.revision != version.revision);
        let own = kept.iter().filter(|it| it.caller == caller).count();
        let surplus = if own >= VERSIONS_OF_ONE {
            kept.iter().position(|it| it.caller == caller)
        } else {
            (kept.len() >= VERSIONS).then_some(0)
        };
        if let Some(surplus) = surplus {
            kept.remove(surplus);
        }
        kept.push_back(Kept {
            caller: caller.to_owned(),
            used: Instant::now(),
            version: Arc::clone(version),
        });
    }

    /// The version of a revision, if it is kept for a caller.
    pub(crate) fn find(&self, caller: &str, revision: u64) -> Option<Arc<Version>> {
        let kept = self.current();
        let found = kept
            .iter()
            .find(|it| it.caller == caller && it.version.revision == revision);
        found.map(|it| Arc::clone(&it.version))
    }

    /// Those that are not kept for too long.
    fn current(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        // Nothing panics while it is held.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|it| it.used.elapsed() < KEPT);
        kept
    }
}

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) revision: u64,
    /// The last object before it.
    pub(crate) last: (Kind, String),
}

impl Token {
    /// The token's text, for a list of a kind and a VPC, empty for all.
    pub(crate) fn text(&self, kind: &str, vpc: &str) -> String {
        let (revision, (last, id)) = (self.revision, &self.last);
        let length = vpc.len();
        format!("{revision}/{kind}/{length}/{vpc}/{}/{id}", last.name())
    }

    /// The token of such a text; none if it is not, or of another list.
    pub(crate) fn parse(text: &str, kind: &str, vpc: &str) -> Option<Self> {
        let (revision, rest) = text.split_once('/')?;
        let start = format!("{kind}/{}/{vpc}/", vpc.len());
        let (last, id) = rest.strip_prefix(&*start)?.split_once('/')?;
        let last = Kind::from_name(last)?;
        if !kind.is_empty() && last.name() != kind {
            return None;
        }
        Some(Self {
            revision: revision.parse().ok()?,
            last: (last, id.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::state::State;

    #[test]
    fn a_token_is_read_as_it_was_written_and_for_the_same_list_alone() {
        let token = Token {
            revision: 7,
            last: (Kind::Port, "ann/a/b".into()),
        };
        for (kind, vpc) in [("", ""), ("port", ""), ("port", "ann/vpc"), ("", "x")] {
            let text = token.text(kind, vpc);
            assert_eq!(Token::parse(&text, kind, vpc).as_ref(), Some(&token));
            assert_eq!(Token::parse(&text, kind, "other"), None);
            assert_eq!(Token::parse(&text, "vpc", vpc), None);
        }
        for bad in ["", "7", "7//0//port", "x//0//port/a", "7//0//prot/a"] {
            assert_eq!(Token::parse(bad, "", ""), None, "{bad}");
        }
    }

    #[test]
    fn each_caller_has_the_versions_that_it_used_last() {
        let pages = Pages::default();
        let version = |revision| Arc::new(Version::loaded(revision, State::default()));
        pages.keep("ann", &version(1));
        // One that asks for very many takes nothing from others.
        for revision in 0..100 {
            pages.keep("bob", &version(revision));
        }
        assert!(pages.find("ann", 1).is_some());
        assert!(pages.find("bob", 99).is_some() && pages.find("bob", 98).is_some());
        assert!(pages.find("bob", 91).is_none() && pages.find("ann", 99).is_none());
        pages.keep("bob", &version(92));
        pages.keep("bob", &version(100));
        assert!(pages.find("bob", 92).is_some() && pages.find("bob", 93).is_none());
        for number in 0..VERSIONS {
            pages.keep(&format!("caller {number}"), &version(7));
        }
        assert!(pages.find("ann", 1).is_none(), "all have their bound");
        assert!(pages.find("caller 0", 7).is_some());
    }
}
