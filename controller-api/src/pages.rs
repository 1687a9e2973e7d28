//! Lists page by page: all pages are of the revision of the first, as long as that is kept.
//!
//! A token says the revision, what is listed and the last object of the page, or where it is kept here which that was. It gives no right: each page is
//! for who asks for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use weft_proto::state::Kind;
use weft_proto::v1::ListRequest;

use crate::version::Version;

/// The most versions that are kept for the pages that a caller may ask for,
const VERSIONS_OF_ONE: usize = 8;
/// and for those of all.
const VERSIONS: usize = 64;

/// Places that are kept with a version.
const PLACES: usize = 64;

/// How long one is kept after a page of it was asked for.
const KEPT: Duration = Duration::from_secs(300);

/// A version of which a caller was told a page that is not the last.
#[derive(Debug)]
struct Kept {
    caller: String,
    used: Instant,
    version: Arc<Version>,
    /// Where pages ended that the caller was not shown an object at, each by a number, the newest at the end.
    places: VecDeque<(u64, (Kind, String))>,
}

/// The versions that are kept, those used last at the end.
#[derive(Debug, Default)]
pub(crate) struct Pages(Mutex<VecDeque<Kept>>);

impl Pages {
    /// Keeps a version, as one that a caller just used.
    pub(crate) fn keep(&self, caller: &str, version: &Arc<Version>) {
        let mut kept = self.current();
        let is_it = |it: &Kept| it.caller == caller && it.version.revision == version.revision;
        if let Some(known) = kept.iter().position(is_it) {
            if let Some(known) = kept.remove(known) {
                kept.push_back(Kept {
                    used: Instant::now(),
                    ..known
                });
            }
            return;
        }
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
            places: VecDeque::new(),
        });
    }

    /// Keeps a place in a version that is kept for a caller; gives its number.
    pub(crate) fn keep_place(
        &self,
        caller: &str,
        version: &Arc<Version>,
        after: (Kind, String),
    ) -> u64 {
        let number = rand::random();
        let mut kept = self.current();
        let mut kept = kept.iter_mut();
        let own = kept.find(|it| it.caller == caller && it.version.revision == version.revision);
        if let Some(own) = own {
            if own.places.len() == PLACES {
                own.places.pop_front();
            }
            own.places.push_back((number, after));
        }
        number
    }

    /// The place of a number in the version of a revision, if it is kept for a caller.
    pub(crate) fn place(&self, caller: &str, revision: u64, number: u64) -> Option<(Kind, String)> {
        let kept = self.current();
        let own = kept
            .iter()
            .find(|it| it.caller == caller && it.version.revision == revision)?;
        let place = own.places.iter().find(|(known, _)| *known == number)?;
        Some(place.1.clone())
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

/// What is listed, as a token says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked(String);

impl Asked {
    /// What a request asks for, whichever page.
    pub(crate) fn of(request: &ListRequest) -> Self {
        let texts = [
            &request.kind,
            &request.vpc,
            &request.label_selector,
            &request.field_selector,
        ];
        let texts = texts.map(|text| format!("{}/{text}/", text.len()));
        Self(texts.concat())
    }
}

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// After this object.
    After(Kind, String),
    /// After one that is kept under this number.
    Kept(u64),
}

/// The page after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) revision: u64,
    pub(crate) place: Place,
}

impl Token {
    /// The token's text, for what is listed.
    pub(crate) fn text(&self, asked: &Asked) -> String {
        let (revision, asked) = (self.revision, &asked.0);
        match &self.place {
            Place::After(kind, id) => format!("{revision}/{asked}{}/{id}", kind.name()),
            Place::Kept(number) => format!("{revision}/{asked}/{number}"),
        }
    }

    /// The token of such a text; none if it is not, or of another list.
    pub(crate) fn parse(text: &str, asked: &Asked) -> Option<Self> {
        let (revision, rest) = text.split_once('/')?;
        let (kind, id) = rest.strip_prefix(&*asked.0)?.split_once('/')?;
        let place = match kind {
            "" => Place::Kept(id.parse().ok()?),
            kind => Place::After(Kind::from_name(kind)?, id.to_owned()),
        };
        Some(Self {
            revision: revision.parse().ok()?,
            place,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::state::State;

    fn asked(kind: &str, vpc: &str, labels: &str, fields: &str) -> Asked {
        Asked::of(&ListRequest {
            kind: kind.into(),
            vpc: vpc.into(),
            label_selector: labels.into(),
            field_selector: fields.into(),
            ..ListRequest::default()
        })
    }

    #[test]
    fn a_token_is_read_as_it_was_written_and_for_the_same_list_alone() {
        let lists = [
            asked("", "", "", ""),
            asked("port", "", "", ""),
            asked("port", "ann/vpc", "", ""),
            asked("", "x", "", ""),
            asked("", "", "x", ""),
            asked("", "", "", "x"),
            asked("", "", "a/0/", "x"),
        ];
        for place in [Place::After(Kind::Port, "ann/a/b".into()), Place::Kept(9)] {
            let token = Token { revision: 7, place };
            for list in &lists {
                let text = token.text(list);
                for other in &lists {
                    let read = Token::parse(&text, other);
                    assert_eq!(read.as_ref(), (other == list).then_some(&token));
                }
            }
        }
        let all = &lists[0];
        let start = "0//0//0//0//";
        for bad in ["", "7", "7/", "7/0//0//port", "port/a"] {
            assert_eq!(Token::parse(bad, all), None, "{bad}");
        }
        for bad in ["x/0//0//0//0//port/a", "7/0//0//0//0//prot/a"] {
            assert_eq!(Token::parse(bad, all), None, "{bad}");
        }
        assert!(Token::parse(&format!("7/{start}port/a"), all).is_some());
        assert!(Token::parse(&format!("7/{start}/x"), all).is_none());
    }

    #[test]
    fn a_place_is_for_its_caller_and_its_version() {
        let pages = Pages::default();
        let version = |revision| Arc::new(Version::loaded(revision, State::default()));
        pages.keep("ann", &version(1));
        let place = (Kind::Port, "bob/secret".to_owned());
        let number = pages.keep_place("ann", &version(1), place.clone());
        pages.keep("ann", &version(1));
        assert_eq!(pages.place("ann", 1, number), Some(place.clone()));
        assert_eq!(pages.place("bob", 1, number), None);
        assert_eq!(pages.place("ann", 2, number), None);
        for _ in 0..PLACES {
            pages.keep_place("ann", &version(1), place.clone());
        }
        assert_eq!(pages.place("ann", 1, number), None, "they have their bound");
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
