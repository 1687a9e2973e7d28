//! Peerings, and that the subnets of two VPCs that one joins do not overlap.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnetwork::IpNetwork;

use super::{At, Index, Report, wire};
use crate::address::parse_prefix;
use crate::peering::SideState;
use crate::state::{Kind, Object, State};
use crate::v1::{self, Peering};

pub(super) fn check(at: At<'_>, peering: &Peering, index: &Index<'_>, report: &mut Report) {
    let sides = [
        ("requester", &peering.requester, &peering.requester_state),
        ("accepter", &peering.accepter, &peering.accepter_state),
    ];
    for (field, vpc, state) in sides {
        // One that is deleted may outlive its VPCs. And whether another tenant has a VPC of that name is not for the requester to know.
        let is_asked = field == "accepter" && state == SideState::Accepting.name();
        if !peering.is_over() && !is_asked && index.find(Kind::Vpc, vpc).is_none() {
            report.add(at, field, format!("there is no vpc '{vpc}'"));
        }
        if !peering.is_over() && !is_asked {
            wire::check_tunnelled(at, (field, vpc), index, report);
        }
        let opposite = match field {
            "requester" => SideState::Accepting,
            _ => SideState::Connecting,
        };
        if SideState::from_name(state).is_none_or(|state| state == opposite) {
            let rule = format!("'{state}' is no state of a {field}");
            report.add(at, format!("{field}_state"), rule);
        }
    }
    if peering.requester == peering.accepter {
        report.add(at, "accepter", "a VPC is not joined to itself");
    }
}

/// No two peerings join the same VPCs, and no subnet of one VPC overlaps one of the other.
pub(super) fn check_together(index: &Index<'_>, report: &mut Report) {
    let mut joined: HashMap<[&str; 2], &str> = HashMap::new();
    // Those that join what is under check; of a part, no others can have come to break a rule.
    let peerings: BTreeMap<&str, &Peering> = match index.changes {
        None => {
            let all = index.state.of_kind(Kind::Peering);
            all.filter_map(|object| match object {
                Object::Peering(peering) => Some((&*peering.id, peering)),
                _ => None,
            })
            .collect()
        }
        Some(changes) => {
            let mut vpcs = BTreeSet::new();
            for object in &index.objects {
                match object {
                    Object::Vpc(vpc) => drop(vpcs.insert(&*vpc.id)),
                    Object::Peering(peering) => vpcs.extend(peering.vpcs()),
                    _ => {}
                }
            }
            let ends = changes.iter().flat_map(|change| [change.old, change.new]);
            vpcs.extend(ends.flatten().filter_map(Object::vpc));
            let of_vpcs = vpcs.into_iter();
            let of_vpcs = of_vpcs.flat_map(|vpc| index.state.peerings_of(vpc));
            of_vpcs.map(|peering| (&*peering.id, peering)).collect()
        }
    };
    for peering in peerings.into_values() {
        if peering.is_over() || peering.requester == peering.accepter {
            continue;
        }
        let at = At {
            kind: Kind::Peering,
            id: &peering.id,
        };
        let mut pair = peering.vpcs();
        pair.sort_unstable();
        if let Some(other) = joined.insert(pair, &peering.id) {
            let rule = format!("peering '{other}' joins the two VPCs already");
            report.add(at, "accepter", rule);
        }
        check_overlap(at, peering, index.state, report);
    }
}

fn check_overlap(at: At<'_>, peering: &Peering, state: &State, report: &mut Report) {
    let prefixes = |vpc: &'_ str| -> Vec<(IpNetwork, String)> {
        let subnets = state.of_vpc(vpc).filter_map(|object| match object {
            Object::Subnet(subnet) => Some(subnet),
            _ => None,
        });
        let parsed = |subnet: &v1::Subnet| -> Vec<(IpNetwork, String)> {
            let prefixes = subnet
                .cidrs
                .iter()
                .filter_map(|text| parse_prefix(text).ok());
            prefixes.map(|prefix| (prefix, subnet.id.clone())).collect()
        };
        let mut all: Vec<_> = subnets.flat_map(parsed).collect();
        all.sort_unstable();
        all
    };
    let [ours, theirs] = peering.vpcs().map(prefixes);
    let (mut ours, mut theirs) = (ours.iter().peekable(), theirs.iter().peekable());
    // Both in order and without overlaps among themselves: of two that do not overlap, the lower overlaps nothing that comes after.
    while let (Some((a, subnet_a)), Some((b, subnet_b))) = (ours.peek(), theirs.peek()) {
        if a.is_ipv4() == b.is_ipv4() && (a.contains(b.network()) || b.contains(a.network())) {
            let rule = format!(
                "{b} of subnet '{subnet_b}' overlaps {a} of subnet '{subnet_a}' in the other VPC"
            );
            report.add(at, "accepter", rule);
            return;
        }
        if a < b {
            ours.next();
        } else {
            theirs.next();
        }
    }
}

/// Whether a peering joins two VPCs, or did when what names the other was made.
pub(super) fn joins(index: &Index<'_>, vpc: &str, other: &str) -> bool {
    let mut peerings = index.state.peerings_of(vpc);
    peerings.any(|peering| peering.other(vpc) == Some(other))
}
