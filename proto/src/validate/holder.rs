//! Who holds a virtual address, as hosts are told.

use super::{At, Index, Report, Scope, check_reference};
use crate::address::parse_address;
use crate::state::Kind;
use crate::v1::AddressHolder;

pub(super) fn check(
    at: At<'_>,
    holder: &AddressHolder,
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    if scope == Scope::Intent {
        report.add(at, "id", "hosts find out who holds an address");
        return;
    }
    if !holder.is_well_formed() {
        let rule = "its id is made of its vpc and its address, and its mac is one";
        report.add(at, "id", rule);
    }
    let vpc = &*holder.vpc;
    check_reference(index, (Kind::Vpc, vpc), vpc, (at, "vpc"), report);
    report.take(at, "address", parse_address(&holder.address));
}
