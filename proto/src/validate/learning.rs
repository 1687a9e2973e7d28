//! Rules on what a host is told of a VPC whose ports it learns on demand.

use super::{At, Index, Report, Scope, check_reference};
use crate::address::{parse_address, parse_mac};
use crate::state::{Kind, Object};
use crate::v1;

/// What a host is told of a VPC in place of all its ports.
pub(super) fn check_vpc(
    at: At<'_>,
    learning: &v1::Learning,
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    if scope == Scope::Intent {
        let rule =
            "made by the controller: whether hosts learn its ports is a setting of the controller";
        report.add(at, "learning", rule);
        return;
    }
    for (i, host) in learning.hosts.iter().enumerate() {
        if index.find(Kind::Host, host).is_none() {
            let rule = format!("there is no host '{host}'");
            report.add(at, format!("learning.hosts[{i}]"), rule);
        }
    }
}

/// An address that a host asked for.
pub(super) fn check(
    at: At<'_>,
    learned: &v1::LearnedAddress,
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    if scope == Scope::Intent {
        report.add(at, "id", "made by the controller: hosts ask for addresses");
        return;
    }
    let v1::LearnedAddress { id, vpc, address } = learned;
    if *id != v1::LearnedAddress::new(vpc, address).id {
        let rule = format!("is that of its vpc and its address, '{vpc}/{address}'");
        report.add(at, "id", rule);
    }
    check_reference(index, (Kind::Vpc, vpc), vpc, (at, "vpc"), report);
    if let Some(Object::Vpc(found)) = index.find(Kind::Vpc, vpc)
        && found.learning.is_none()
    {
        let rule = format!("the ports of vpc '{vpc}' are not learned");
        report.add(at, "vpc", rule);
    }
    if parse_mac(address).is_err() {
        report.take(at, "address", parse_address(address));
    }
}
