//! Epochs: in which generation a VPC changed last. A decision that a session keeps holds while its VPC's epoch does, so that a change of one VPC,
//! or of the underlay, has no other VPC's sessions resolved again.
//!
//! What is decided for a packet depends on the objects of its VPC, and on the numbers of the hosts and ports that these name. A port's number is free
//! for another only after a change of its VPC. A host's may be given to another while sessions of any VPC still name it: then every epoch is new.

use std::collections::HashSet;

use weft_proto::state::{Kind, Object, State};
use weft_proto::v1;

use super::peerings::add_joined;

/// The ids of VPCs that have changed between two states.
#[derive(Debug)]
pub(super) struct Changed<'s>(HashSet<&'s str>);

impl<'s> Changed<'s> {
    /// Between a state and the next.
    pub(super) fn between(before: &'s State, after: &'s State) -> Self {
        let (mut vpcs, mut hosts) = (HashSet::new(), HashSet::new());
        for change in before.changes_to(after) {
            match (change.old, change.new) {
                // What is known of a host is no matter of a VPC, but whether it is known at all is.
                (Some(Object::Host(_)), Some(_)) => {}
                (Some(Object::Host(host)), None) | (None, Some(Object::Host(host))) => {
                    hosts.insert(host.id.as_str());
                }
                (old, new) => vpcs.extend(old.into_iter().chain(new).flat_map(Object::vpcs)),
            }
        }
        if !hosts.is_empty() {
            vpcs.extend(naming(before, &hosts));
            vpcs.extend(naming(after, &hosts));
        }
        add_joined(&mut vpcs, before);
        add_joined(&mut vpcs, after);
        Self(vpcs)
    }

    /// Whether a VPC has.
    pub(super) fn has(&self, vpc: &str) -> bool {
        self.0.contains(vpc)
    }
}

/// VPCs with routes to one of these hosts, or with ports that came from there.
fn naming<'s>(state: &'s State, hosts: &HashSet<&str>) -> Vec<&'s str> {
    let leads_there = |table: &v1::RouteTable| table.hosts().any(|host| hosts.contains(host));
    let tables = state
        .of_kind(Kind::RouteTable)
        .filter_map(|object| match object {
            Object::RouteTable(table) if leads_there(table) => Some(&*table.vpc),
            _ => None,
        });
    let ports = state.of_kind(Kind::Port).filter_map(|object| match object {
        Object::Port(port) if hosts.contains(port.moved_from.as_str()) => Some(&*port.vpc),
        _ => None,
    });
    tables.chain(ports).collect()
}
