//! Changes that are of ports alone, or of what lists contain, checked by what they touch.
//!
//! Most changes are of this kind, and many of a VPC with very many ports. Here it is only seen that such a change is good; one that may not be has its
//! VPC checked whole, which says what is wrong with it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use super::{Change, Index, Reach, Report, Scope, check, limits, port};
use crate::state::{Kind, Object, State};
use crate::{mtu, v1};

/// Hosts of a VPC that are compared with one that comes to it or goes: most hosts of a fabric are alike.
const COMPARED: usize = 16;

/// Whether changes are of ports and of lists, and for certain break no rule; quotas are not looked at.
///
/// Time grows with what is changed and with the subnets of its VPCs; where ports go, with the routes of their VPCs; at a host, with its ports.
pub(super) fn are_good(
    (before, next): (&State, &State),
    changes: &[Change<'_>],
    scope: Scope<'_>,
) -> bool {
    let mut ports = PortChanges {
        before,
        next,
        scope,
        named: HashMap::new(),
    };
    let mut by_vpc: BTreeMap<&str, Vec<&Object>> = BTreeMap::new();
    let mut found = false;
    for change in changes {
        match ends(change) {
            Some(ends) => {
                found = true;
                if !ports.is_followed(ends) {
                    return false;
                }
            }
            None if Reach::of(change) == Reach::Object => {}
            None => return false,
        }
        if let Some(object @ Object::Port(port)) = change.new {
            by_vpc.entry(&port.vpc).or_default().push(object);
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
    for (vpc, ports) in by_vpc {
        let subnets = next.of_vpc_and_kind(vpc, Kind::Subnet);
        let objects = subnets.chain(ports).collect();
        port::check_gateways(&Index::of_objects(next, objects), &mut report);
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

struct PortChanges<'s> {
    before: &'s State,
    next: &'s State,
    scope: Scope<'s>,
    /// What routes and port forwards of each VPC name.
    named: HashMap<&'s str, Named<'s>>,
}

impl<'s> PortChanges<'s> {
    /// Whether the port breaks no rule together with others, and no other object can break one because of it.
    fn is_followed(&mut self, (old, new): Ends<'s>) -> bool {
        let Some(port) = new.or(old) else {
            return false;
        };
        let next = self.next;
        let goes =
            |old: &&v1::Port| new.is_none_or(|new| new.host.is_empty()) && !old.host.is_empty();
        let stays = old.is_none_or(|old| {
            // The hosts that carry the VPC stay the same, or it makes no difference.
            let carries = old.host.is_empty() || next.has_port_on(&old.vpc, &old.host);
            (carries || self.may_leave(&old.vpc, &old.host)) && old.vpc == port.vpc
        });
        let fits = new.is_none_or(|new| {
            let before = self.before;
            let carries = new.host.is_empty() || before.has_port_on(&new.vpc, &new.host);
            let mut groups = new.security_groups.iter();
            (carries || self.may_come(&new.vpc, &new.host))
                && groups.all(|group| self.has_room(group, &new.host))
                && !next.is_shared(new)
        });
        let is_gone = new.is_none() || old.as_ref().is_some_and(goes);
        // A subport goes by what its parent is, in whatever VPC that may be.
        let is_trunk = [old, new]
            .into_iter()
            .flatten()
            .any(|port| port.trunk.is_some() || next.subports_of(&port.id).next().is_some());
        stays && fits && !is_trunk && !self.is_named(port, (old, new), is_gone)
    }

    /// Whether a group has room for the addresses of its ports; of a host those of its own, the only ones that are known to be in it.
    fn has_room(&self, group: &String, of_host: &str) -> bool {
        let count = match self.scope {
            Scope::Intent => self.next.members_of(group),
            Scope::Node { host } if host != of_host => return false,
            Scope::Node { host } => {
                let ports = self.next.ports_with_device(host);
                let members = ports.filter(|port| port.security_groups.contains(group));
                members.map(|port| port.addresses.len()).sum()
            }
        };
        count <= limits::GROUP_MEMBERS
    }

    /// Whether a host that had no port of a VPC may have one, since another is there that is alike. A host's own state does not have all.
    fn may_come(&self, vpc: &str, id: &str) -> bool {
        let Some(host) = self.next.host(id) else {
            return false;
        };
        let others = self.next.hosts_with_ports(vpc);
        let stay = others.filter(|other| *other != id && self.before.has_port_on(vpc, other));
        let mut hosts = stay.take(COMPARED).filter_map(|id| self.next.host(id));
        self.scope == Scope::Intent && hosts.any(|other| kind_of(other) == kind_of(host))
    }

    /// Whether the last port of a VPC may leave a host: the largest packets grow if it was the only one with IPv6 tunnels.
    fn may_leave(&self, vpc: &str, id: &str) -> bool {
        let Some(host) = self.before.host(id) else {
            return false;
        };
        let others = self.next.hosts_with_ports(vpc);
        let mut hosts = others.take(COMPARED).filter_map(|id| self.next.host(id));
        self.scope == Scope::Intent && (!mtu::has_ipv6(host) || hosts.any(mtu::has_ipv6))
    }

    /// Whether an elastic IP or a port forward leads to the port, or may; or a route, when it goes; or a load balancer, when it or an address of it does.
    fn is_named(&mut self, port: &v1::Port, (old, new): Ends<'_>, is_gone: bool) -> bool {
        if self.next.elastic_ips_of_port(&port.id).next().is_some() {
            return true;
        }
        let Some(before) = old else {
            return false;
        };
        if self.is_balanced(before, new) {
            return true;
        }
        let next = self.next;
        let Some(vpc) = next.find(Kind::Vpc, &port.vpc).map(Object::id) else {
            return true;
        };
        let named = self
            .named
            .entry(vpc)
            .or_insert_with(|| Named::of(next, vpc));
        let ends = [old, new].into_iter().flatten();
        let mut addresses = ends.flat_map(|port| &port.addresses);
        let is_forwarded = named.forwarded.contains(&*port.id)
            || !named.forwarded_addresses.is_empty()
                && addresses.any(|text| {
                    let address = text.parse::<IpAddr>().ok();
                    address.is_some_and(|it| named.forwarded_addresses.contains(&it))
                });
        is_forwarded || is_gone && named.routed.contains(&*port.id)
    }
}

impl PortChanges<'_> {
    /// Whether a member of a load balancer goes with the port, or with one of its addresses.
    fn is_balanced(&self, old: &v1::Port, new: Option<&v1::Port>) -> bool {
        if new.is_some_and(|new| new.addresses == old.addresses) {
            return false;
        }
        let addresses = old.addresses.iter().filter_map(|text| text.parse().ok());
        let mut of_addresses = addresses
            .flat_map(|address: IpAddr| self.next.balancers_of_address(&old.vpc, address).next());
        self.next.balancers_of_port(&old.id).next().is_some() || of_addresses.next().is_some()
    }
}

/// What a host's tunnels can carry, and to whom.
fn kind_of(host: &v1::Host) -> (u32, u32, bool, bool) {
    let has_ipv4 = host.vteps.iter().any(|vtep| !vtep.contains(':'));
    (
        mtu::overhead(host),
        mtu::underlay(host),
        mtu::has_ipv6(host),
        has_ipv4,
    )
}

/// The ports that are named in a VPC.
struct Named<'s> {
    /// By routes.
    routed: HashSet<&'s str>,
    /// By port forwards.
    forwarded: HashSet<&'s str>,
    forwarded_addresses: HashSet<IpAddr>,
}

impl<'s> Named<'s> {
    fn of(state: &'s State, vpc: &'s str) -> Self {
        let mut named = Self {
            routed: HashSet::new(),
            forwarded: HashSet::new(),
            forwarded_addresses: HashSet::new(),
        };
        for object in state.of_vpc_and_kind(vpc, Kind::RouteTable) {
            let Object::RouteTable(table) = object else {
                continue;
            };
            named.routed.extend(table.ports());
        }
        for object in state.of_vpc_and_kind(vpc, Kind::NatGateway) {
            let Object::NatGateway(nat) = object else {
                continue;
            };
            for forward in &nat.port_forwards {
                if forward.port.is_empty() {
                    let address = forward.private_address.parse::<IpAddr>();
                    named.forwarded_addresses.extend(address.ok());
                } else {
                    named.forwarded.insert(&forward.port);
                }
            }
        }
        named
    }
}
