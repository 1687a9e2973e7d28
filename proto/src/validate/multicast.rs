//! What hosts are told that ports of other hosts have joined.

use super::{At, Index, Report, Scope, check_reference};
use crate::state::Kind;
use crate::v1::MulticastListener;

pub(super) fn check(
    at: At<'_>,
    listener: &MulticastListener,
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    if scope == Scope::Intent {
        report.add(at, "id", "hosts find out what their ports have joined");
        return;
    }
    if !listener.is_well_formed() {
        let rule = "its id is made of its other fields, and they are a group's";
        report.add(at, "id", rule);
    }
    let vpc = &*listener.vpc;
    check_reference(index, (Kind::Vpc, vpc), vpc, (at, "vpc"), report);
}
