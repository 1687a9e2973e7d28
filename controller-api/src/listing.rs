//! Lists of objects, whole or page by page, as the messages that answer [`ListRequest`].
//!
//! A page costs what it shows and a bounded number of objects that it does not: where few are selected, or the caller's own, a page may end before it is
//! full. Where it ended is told by an object that the caller was shown, or kept here: the ids of others are not told.

use std::sync::Arc;

use tokio::sync::mpsc;
use tonic::Status;
use weft_process::tls::Role;
use weft_proto::state::{Entry, Kind, Object, State, collect};
use weft_proto::v1::{ListReply, ListRequest};

use crate::caller::Caller;
use crate::history::Filter;
use crate::pages::{Asked, Pages, Place, Token};
use crate::version::Version;

/// Objects per message of a list.
pub(crate) const CHUNK: usize = 500;

/// Objects that a page passes over, beside those that it shows.
const PASSED: usize = 20_000;

/// After so many objects others have their turn.
const TURN: usize = 1000;

/// The messages of an answer.
type Messages = mpsc::Sender<Result<ListReply, Status>>;

/// One list, or one page of it.
pub(crate) struct Listing {
    caller: Caller,
    filter: Filter,
    asked: Asked,
    pages: Arc<Pages>,
    version: Arc<Version>,
    /// The last object before those to be listed; none: from the first on.
    after: Option<(Kind, String)>,
    /// The most objects; 0: all.
    size: usize,
}

impl Listing {
    /// The list that a request asks for, of the version that is current, or of that of an earlier page. `current` is asked for only if it is needed.
    ///
    /// # Errors
    /// The kind, a selector or the page's token is none, or the page's version is not kept any more.
    pub(crate) async fn new(
        caller: Caller,
        request: ListRequest,
        pages: &Arc<Pages>,
        current: impl AsyncFnOnce(bool) -> Arc<Version>,
    ) -> Result<Self, Status> {
        let filter = Filter::new(&request.kind, String::new(), request.vpc.clone())
            .map_err(|error| Status::invalid_argument(error.to_string()))?
            .selecting(&request.label_selector, &request.field_selector)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let asked = Asked::of(&request);
        let (version, after) = if request.page_token.is_empty() {
            (current(true).await, None)
        } else {
            let strange = || Status::invalid_argument("page_token: is of no page of this list");
            let token = Token::parse(&request.page_token, &asked).ok_or_else(strange)?;
            let revision = token.revision;
            let gone = || {
                Status::aborted(format!(
                    "revision {revision} is not kept any more: list again"
                ))
            };
            let current = current(false).await;
            let version = match current.revision == revision {
                true => current,
                false => pages.find(&caller.name, revision).ok_or_else(gone)?,
            };
            let after = match token.place {
                Place::After(kind, id) => {
                    // One that a caller makes up would say how much there is behind it of what others have.
                    let is_shown = |it: &Object| caller.may(Role::Read, &version.state, it);
                    let found = version.state.find(kind, &id);
                    if caller.role < Role::Read && !found.is_some_and(is_shown) {
                        return Err(strange());
                    }
                    (kind, id)
                }
                Place::Kept(number) => pages
                    .place(&caller.name, revision, number)
                    .ok_or_else(gone)?,
            };
            (version, Some(after))
        };
        Ok(Self {
            caller,
            filter,
            asked,
            pages: Arc::clone(pages),
            version,
            after,
            size: usize::try_from(request.page_size).unwrap_or(usize::MAX),
        })
    }

    fn is_wanted(&self, object: &Object) -> bool {
        let (vpc, state) = (&self.filter.vpc, &self.version.state);
        (vpc.is_empty() || is_in(state, object, vpc))
            && self.caller.may(Role::Read, state, object)
            && self.filter.selects(&self.caller, object)
    }

    /// Sends the list, until it is over or nobody takes it any more.
    pub(crate) async fn send(self, messages: Messages) {
        let first = (self.filter.kind.unwrap_or(Kind::ALL[0]), String::new());
        let (kind, id) = self.after.as_ref().unwrap_or(&first);
        let is_after = |entry: &&Arc<Entry>| {
            self.after.is_none() || (entry.object.kind(), entry.object.id()) != (*kind, id)
        };
        let of_kind = |entry: &&Arc<Entry>| self.filter.has_kind(entry.object.kind());
        let entries = self.version.state.entries_from(*kind, id);
        let entries = entries.filter(is_after).take_while(of_kind);
        let mut shown = Vec::new();
        let mut left = match self.size {
            0 => usize::MAX,
            size => size,
        };
        let (mut passed, mut last) = (0, None);
        let mut next = None;
        for (number, entry) in entries.enumerate() {
            if number % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
            if self.is_wanted(&entry.object) {
                if left == 0 {
                    next = last;
                    break;
                }
                if shown.len() == CHUNK && !self.message(&mut shown, None, &messages).await {
                    return;
                }
                left -= 1;
                shown.push(entry);
                last = Some(entry);
                continue;
            }
            passed += 1;
            if self.size > 0 && passed == PASSED {
                next = Some(entry);
                break;
            }
        }
        let next = next.map(|entry| self.token(&entry.object));
        // One message at least, so that the revision is told also when there is nothing.
        self.message(&mut shown, next, &messages).await;
    }

    /// Sends objects; says whether anybody took them.
    async fn message(
        &self,
        shown: &mut Vec<&Arc<Entry>>,
        next: Option<String>,
        messages: &Messages,
    ) -> bool {
        let shown = std::mem::take(shown);
        let objects = shown.iter().map(|entry| self.caller.shown(&entry.object));
        let reply = ListReply {
            revision: self.version.revision,
            objects: Some(collect(objects)),
            object_revisions: shown.iter().map(|entry| entry.revision).collect(),
            next_page_token: next.unwrap_or_default(),
        };
        messages.send(Ok(reply)).await.is_ok()
    }

    /// The token of the page after an object.
    fn token(&self, object: &Object) -> String {
        self.pages.keep(&self.caller.name, &self.version);
        let is_shown = self.caller.may(Role::Read, &self.version.state, object);
        let after = (object.kind(), object.id().to_owned());
        let place = if is_shown {
            Place::After(after.0, after.1)
        } else {
            Place::Kept(
                self.pages
                    .keep_place(&self.caller.name, &self.version, after),
            )
        };
        let revision = self.version.revision;
        Token { revision, place }.text(&self.asked)
    }
}

/// Whether an object is in a VPC, or joins it to another; an elastic IP is where its port or load balancer is.
pub(crate) fn is_in(state: &State, object: &Object, vpc: &str) -> bool {
    match object {
        Object::ElasticIp(elastic) => state.vpc_of(elastic) == Some(vpc),
        other => other.vpcs().any(|own| own == vpc),
    }
}
