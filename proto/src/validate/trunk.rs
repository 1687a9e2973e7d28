//! Subports: ports that have a VLAN on another port's device in place of a device of their own.

use std::collections::{BTreeSet, HashMap};

use super::{At, Index, Report, Scope, limits};
use crate::state::{Kind, Object};
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
}

/// The rules of all subports of a parent: a VLAN is one's, and there are not too many. Each parent is looked at once.
pub(super) fn check_together(index: &Index<'_>, scope: Scope<'_>, report: &mut Report) {
    let ports = index.objects.iter().filter_map(|object| match object {
        Object::Port(port) => Some(port),
        _ => None,
    });
    let trunks = ports.filter_map(|port| port.trunk.as_ref());
    let parents: BTreeSet<&str> = trunks.map(|trunk| trunk.parent.as_str()).collect();
    let most = limits::TRUNK_SUBPORTS;
    for parent in parents.into_iter().filter_map(|parent| index.port(parent)) {
        // Those of another tenant are refused anyway, and nobody learns of them here.
        let is_visible = |port: &&v1::Port| {
            scope != Scope::Intent || index.tenant_of(&parent.vpc) == index.tenant_of(&port.vpc)
        };
        let subports = index.state.subports_of(&parent.id).filter(is_visible);
        // The first in order of their ids has a VLAN.
        let mut first: HashMap<u32, &str> = HashMap::new();
        for (n, port) in subports.enumerate() {
            let Some(trunk) = &port.trunk else { continue };
            let at = At {
                kind: Kind::Port,
                id: &port.id,
            };
            let other = *first.entry(trunk.vlan).or_insert(&port.id);
            if other != port.id {
                let rule = format!(
                    "VLAN {} of '{}' is already that of port '{other}'",
                    trunk.vlan, parent.id
                );
                report.add(at, "trunk.vlan", rule);
            }
            if n == most {
                let rule = format!("'{}' has more than {most} subports", parent.id);
                report.add(at, "trunk.parent", rule);
            }
        }
    }
}
