//! The keys below the prefix, and the requests that the store puts together.
//!
//! ```text
//! format              the version of all this
//! revision            the newest revision that is stored, with the commit that stored it
//! applied             up to which revision the rows of objects are up to date, at least
//! writer              the address of the controller that writes, under its lease
//! log/REVISION/PART   the changes that were stored together, up to a revision
//! objects/KIND/ID     a row, followed by a zero byte and a number for each part after the first
//! hosts/NAME/PART     what a controller knows of the hosts that are attached to it, under its lease
//! ```

use weft_proto::state::Key;

use super::api::compare::{CompareResult, CompareTarget, TargetUnion};
use super::api::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnResponse,
    request_op, response_op,
};

#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    pub(super) fn named(&self, name: &str) -> Vec<u8> {
        format!("{}{name}", self.prefix).into_bytes()
    }

    /// Numbers have as many digits as the largest, so that keys are in their order.
    pub(super) fn log(&self, revision: u64, part: usize) -> Vec<u8> {
        self.named(&format!("log/{revision:020}/{part:06}"))
    }

    /// Where the log of changes after a revision begins: each key of the log up to that one is less.
    pub(super) fn log_after(&self, revision: u64) -> Vec<u8> {
        self.named(&format!("log/{:020}/", revision.saturating_add(1)))
    }

    pub(super) fn log_end(&self) -> Vec<u8> {
        self.named("log0")
    }

    /// The revision that a key of the log has.
    pub(super) fn revision_of(&self, key: &[u8]) -> Option<u64> {
        let rest = key.strip_prefix(self.named("log/").as_slice())?;
        let (revision, _) = std::str::from_utf8(rest).ok()?.split_once('/')?;
        revision.parse().ok()
    }

    pub(super) fn row(&self, key: &Key, part: usize) -> Vec<u8> {
        let mut row = self.named(&format!("objects/{}/{}", key.kind.name(), key.id));
        if part != 0 {
            row.extend(format!("\0{part:06}").into_bytes());
        }
        row
    }

    /// Where all parts of a row end.
    pub(super) fn row_end(&self, key: &Key) -> Vec<u8> {
        let mut end = self.row(key, 0);
        end.push(1);
        end
    }
}

/// The end of all keys that begin with these bytes, of which the last is not 255.
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

pub(super) fn one(key: Vec<u8>) -> RangeRequest {
    RangeRequest {
        key,
        ..RangeRequest::default()
    }
}

pub(super) fn read(request: RangeRequest) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestRange(request)),
    }
}

pub(super) fn put(key: Vec<u8>, value: Vec<u8>) -> RequestOp {
    put_under(key, value, 0)
}

pub(super) fn put_under(key: Vec<u8>, value: Vec<u8>, lease: i64) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestPut(PutRequest {
            key,
            value,
            lease,
        })),
    }
}

pub(super) fn delete(key: Vec<u8>, range_end: Vec<u8>) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestDeleteRange(
            DeleteRangeRequest { key, range_end },
        )),
    }
}

/// That a key was made at this revision of etcd; 0: that it is not there.
pub(super) fn was_made_at(key: Vec<u8>, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key,
        target_union: Some(TargetUnion::CreateRevision(revision)),
    }
}

/// That a key was last changed at this revision of etcd; 0: that it is not there.
pub(super) fn was_changed_at(key: Vec<u8>, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key,
        target_union: Some(TargetUnion::ModRevision(revision)),
    }
}

/// The revision of etcd at which a transaction ran.
pub(super) fn ran_at(answer: &TxnResponse) -> i64 {
    answer.header.as_ref().map_or(0, |header| header.revision)
}

/// What the reads of a transaction found, in their order.
pub(super) fn found(answer: TxnResponse) -> impl Iterator<Item = RangeResponse> {
    answer
        .responses
        .into_iter()
        .filter_map(|response| match response.response {
            Some(response_op::Response::ResponseRange(range)) => Some(range),
            _ => None,
        })
}
