//! Changes of a host's state that are of ports alone, or of what lists contain, checked by what they touch.
//!
//! Most changes that a host sees are of this kind, and of a VPC with very many ports. Here it is only seen that such a change is good; one that may
//! not be has its VPC checked whole, which says what is wrong with it.

use super::{Change, Index, Reach, Report, Scope, check, limits, port};
use crate::state::{Kind, Object, State};
use crate::v1;

/// Whether changes are of ports and of lists, and for certain break no rule.
///
/// Time grows with what is changed, the subnets of its VPCs and the ports of this host; where ports go, with the routes of their VPCs; and with the elastic IPs that
/// the host knows.
pub(super) fn are_good(
    (before, next): (&State, &State),
    changes: &[Change<'_>],
    scope: Scope<'_>,
) -> bool {
    let Scope::Node { host } = scope else {
        return false;
    };
    let mut found = false;
    for change in changes {
        match ends(change) {
            Some(ends) => {
                found = true;
                if !is_followed((before, next), ends, host) {
                    return false;
                }
            }
            None if Reach::of(change) == Reach::Object => {}
            None => return false,
        }
    }
    if !found {
        return false;
    }
    let mut report = Report::default();
    let objects = changes.iter().filter_map(|change| change.new);
    let index = Index::of_objects(next, objects.collect());
    for change in changes {
        if let Some(new) = change.new {
            check(change.old, new, &index, scope, &mut report);
        }
    }
    let ports = changes.iter().filter_map(|change| ends(change)?.1);
    for new in ports {
        let subnets = next.of_vpc_and_kind(&new.vpc, Kind::Subnet);
        let own = next.find(Kind::Port, &new.id);
        port::check_gateways(
            &Index::of_objects(next, subnets.chain(own).collect()),
            &mut report,
        );
    }
    report.violations.is_empty()
}

/// A port before and after.
type Ends<'s> = (Option<&'s v1::Port>, Option<&'s v1::Port>);

fn ends<'s>(change: &Change<'s>) -> Option<Ends<'s>> {
    let port = |object: Option<&'s Object>| match object {
        Some(Object::Port(port)) => Some(port),
        _ => None,
    };
    let ends = (port(change.old), port(change.new));
    (ends.0.is_some() || ends.1.is_some()).then_some(ends)
}

/// Whether the port breaks no rule together with others, and no other object can break one because of it.
fn is_followed((before, next): (&State, &State), (old, new): Ends<'_>, host: &str) -> bool {
    let Some(port) = new.or(old) else {
        return false;
    };
    let stays = old.is_none_or(|old| {
        // The hosts that carry the VPC stay the same.
        let carries = old.host.is_empty() || next.has_port_on(&old.vpc, &old.host);
        carries && old.vpc == port.vpc && (new.is_some() || !is_on_a_route(next, old))
    });
    let fits = new.is_none_or(|new| {
        let carries = new.host.is_empty() || before.has_port_on(&new.vpc, &new.host);
        let has_room = new
            .security_groups
            .iter()
            .all(|group| has_room(next, group, host));
        carries
            && has_room
            && (new.security_groups.is_empty() || new.host == host)
            && !next.is_shared(new)
    });
    stays && fits && !is_named(next, port)
}

/// Whether a group has room for the addresses of its ports on this host: the only ones that are known to be in it.
fn has_room(next: &State, group: &String, host: &str) -> bool {
    let ports = next.ports_with_device(host);
    let members = ports.filter(|port| port.security_groups.contains(group));
    members.map(|port| port.addresses.len()).sum::<usize>() <= limits::GROUP_MEMBERS
}

fn is_on_a_route(next: &State, port: &v1::Port) -> bool {
    let tables = next.of_vpc_and_kind(&port.vpc, Kind::RouteTable);
    let names = |route: &v1::Route| {
        route.port == port.id || route.ecmp.iter().any(|hop| hop.port == port.id)
    };
    tables.into_iter().any(|object| match object {
        Object::RouteTable(table) => table.routes.iter().any(names),
        _ => false,
    })
}

/// Whether an elastic IP or a port forward leads to the port, or may.
fn is_named(next: &State, port: &v1::Port) -> bool {
    let mut elastic_ips = next.of_kind(Kind::ElasticIp);
    let mut gateways = next.of_vpc_and_kind(&port.vpc, Kind::NatGateway);
    elastic_ips.any(|object| matches!(object, Object::ElasticIp(elastic) if elastic.port == port.id))
        || gateways.any(|object| {
            matches!(object, Object::NatGateway(gateway) if !gateway.port_forwards.is_empty())
        })
}
