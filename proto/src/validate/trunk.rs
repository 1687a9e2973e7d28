//! Subports: ports that have a VLAN on another port's device in place of a device of their own.

use super::{At, Index, Report, Scope, limits};
use crate::v1;

/// The last VLAN of IEEE 802.1Q; 4095 is reserved, and 0 says a priority alone.
const MAX_VLAN: u32 = 4094;

pub(super) fn check(
    at: At<'_>,
    port: &v1::Port,
    trunk: &v1::Trunk,
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    if trunk.vlan == 0 || trunk.vlan > MAX_VLAN {
        let rule = format!("{} is outside 1 to {MAX_VLAN}", trunk.vlan);
        report.add(at, "trunk.vlan", rule);
    }
    if port.device.is_some() {
        let rule = "a subport has no device of its own: its frames are on its parent's";
        report.add(at, "device", rule);
    }
    if index.host(&port.host).is_some_and(|host| host.foreign) {
        let rule = format!("host '{}' is foreign: no weftd there", port.host);
        report.add(at, "trunk", rule);
    }
    if trunk.parent == port.id {
        return report.add(at, "trunk.parent", "a port is not its own parent");
    }
    // One of another tenant is as one that is not there, so that nobody learns of it.
    let is_visible = |parent: &&v1::Port| {
        scope != Scope::Intent || index.tenant_of(&parent.vpc) == index.tenant_of(&port.vpc)
    };
    let Some(parent) = index.port(&trunk.parent).filter(is_visible) else {
        // A host may have to do without the parent's VPC; the subport is down then.
        if scope == Scope::Intent {
            let rule = format!("there is no port '{}'", trunk.parent);
            report.add(at, "trunk.parent", rule);
        }
        return;
    };
    if parent.trunk.is_some() {
        let rule = format!("'{}' is a subport itself", parent.id);
        report.add(at, "trunk.parent", rule);
    }
    if !port.host.is_empty() && port.host != parent.host {
        let rule = match parent.host.as_str() {
            "" => format!("its parent '{}' is on no host", parent.id),
            host => format!("its parent '{}' is on host '{host}'", parent.id),
        };
        report.add(at, "host", rule);
    }
    // The first in order of their ids has it.
    let before = index.state.subports_of(&parent.id);
    let mut before = before.take_while(|other| other.id != port.id);
    let same = |other: &&v1::Port| {
        let other_trunk = other.trunk.as_ref();
        other_trunk.is_some_and(|other| other.vlan == trunk.vlan)
    };
    if let Some(other) = before.find(same) {
        let rule = format!(
            "VLAN {} of '{}' is already that of port '{}'",
            trunk.vlan, parent.id, other.id
        );
        report.add(at, "trunk.vlan", rule);
    }
    let most = limits::TRUNK_SUBPORTS;
    let beyond = index.state.subports_of(&parent.id).nth(most);
    if beyond.is_some_and(|beyond| beyond.id == port.id) {
        let rule = format!("'{}' has more than {most} subports", parent.id);
        report.add(at, "trunk.parent", rule);
    }
}
