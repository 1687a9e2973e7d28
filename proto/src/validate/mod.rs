//! The rules that a set of objects obeys, checked whole: every violation is named by object, field and rule.
//!
//! The controller checks the intent before it stores it, the daemon checks its node state before it applies it; both refuse a set
//! that breaks any rule. Each file here holds the rules of some kinds; this one holds the indexes that they share and the rules of ids.

mod fabric;
pub mod limits;
mod network;
mod policy;
mod port;
mod route;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};

use crate::state::{Kind, Object, State};
use crate::v1;

/// Whose state is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// All that tenants and operators ask for.
    Intent,
    /// What one host is told: only its own ports have devices and policy, and groups carry their members.
    Node {
        /// The host's id.
        host: &'a str,
    },
}

/// Every rule that the state breaks, the first [`limits::VIOLATIONS`] if there are more; empty when it is good.
///
/// Time grows with the number of objects (times its logarithm, for overlaps).
pub fn validate(state: &State, scope: Scope<'_>) -> Vec<v1::Violation> {
    let index = Index::new(state);
    let mut report = Report::default();
    for object in state.iter() {
        let at = At {
            kind: object.kind(),
            id: object.id(),
        };
        check_id(at, &mut report);
        match object {
            Object::Host(host) => fabric::check_host(at, host, &mut report),
            Object::Vpc(vpc) => fabric::check_vpc(at, vpc, &mut report),
            Object::Subnet(subnet) => network::check(at, subnet, &index, &mut report),
            Object::RouteTable(table) => route::check(at, table, &index, &mut report),
            Object::NetworkAcl(acl) => policy::check_acl(at, acl, &index, &mut report),
            Object::PrefixList(list) => policy::check_prefix_list(at, list, &index, &mut report),
            Object::SecurityGroup(group) => {
                policy::check_group(at, group, &index, scope, &mut report);
            }
            Object::Port(port) => port::check(at, port, &index, scope, &mut report),
        }
    }
    fabric::check_uniqueness(&index, &mut report);
    fabric::check_carriers(&index, &mut report);
    network::check_overlap(&index, &mut report);
    policy::check_memberships(&index, &mut report);
    port::check_uniqueness(&index, &mut report);
    report.violations
}

/// A violation in one line: object, field, rule.
pub fn describe(violation: &v1::Violation) -> String {
    let mut parts = Vec::new();
    if let Some(object) = &violation.object {
        parts.push(format!("{} {}", object.kind, object.id));
    }
    if !violation.field.is_empty() {
        parts.push(violation.field.clone());
    }
    parts.push(violation.rule.clone());
    parts.join(": ")
}

/// Objects by id, and which hosts carry which VPC.
struct Index<'a> {
    hosts: HashMap<&'a str, &'a v1::Host>,
    vpcs: HashMap<&'a str, &'a v1::Vpc>,
    subnets: HashMap<&'a str, &'a v1::Subnet>,
    route_tables: HashMap<&'a str, &'a v1::RouteTable>,
    network_acls: HashMap<&'a str, &'a v1::NetworkAcl>,
    prefix_lists: HashMap<&'a str, &'a v1::PrefixList>,
    security_groups: HashMap<&'a str, &'a v1::SecurityGroup>,
    ports: HashMap<&'a str, &'a v1::Port>,
    /// In the state's order, so that of two objects in conflict always the same one is named.
    state: &'a State,
    /// Hosts on which a VPC has ports or to which its routes point.
    carriers: HashMap<&'a str, BTreeSet<&'a str>>,
}

impl<'a> Index<'a> {
    fn new(state: &'a State) -> Self {
        let mut index = Self {
            hosts: HashMap::new(),
            vpcs: HashMap::new(),
            subnets: HashMap::new(),
            route_tables: HashMap::new(),
            network_acls: HashMap::new(),
            prefix_lists: HashMap::new(),
            security_groups: HashMap::new(),
            ports: HashMap::new(),
            state,
            carriers: HashMap::new(),
        };
        for object in state.iter() {
            match object {
                Object::Host(o) => drop(index.hosts.insert(&o.id, o)),
                Object::Vpc(o) => drop(index.vpcs.insert(&o.id, o)),
                Object::Subnet(o) => drop(index.subnets.insert(&o.id, o)),
                Object::RouteTable(o) => {
                    index.route_tables.insert(&o.id, o);
                    let carriers = index.carriers.entry(&o.vpc).or_default();
                    carriers.extend(o.hosts());
                }
                Object::NetworkAcl(o) => drop(index.network_acls.insert(&o.id, o)),
                Object::PrefixList(o) => drop(index.prefix_lists.insert(&o.id, o)),
                Object::SecurityGroup(o) => drop(index.security_groups.insert(&o.id, o)),
                Object::Port(o) => {
                    index.ports.insert(&o.id, o);
                    if !o.host.is_empty() {
                        index.carriers.entry(&o.vpc).or_default().insert(&o.host);
                    }
                }
            }
        }
        index
    }

    /// The known hosts that carry a VPC.
    fn carriers_of(&self, vpc: &str) -> impl Iterator<Item = &'a v1::Host> {
        self.carriers
            .get(vpc)
            .into_iter()
            .flatten()
            .filter_map(|id| self.hosts.get(id).copied())
    }

    /// Refuses a VPC that does not exist.
    fn require_vpc(&self, at: At<'_>, vpc: &str, report: &mut Report) {
        if !self.vpcs.contains_key(vpc) {
            report.add(at, "vpc", format!("there is no vpc '{vpc}'"));
        }
    }
}

/// The object under check.
#[derive(Clone, Copy)]
struct At<'a> {
    kind: Kind,
    id: &'a str,
}

/// Violations found so far.
#[derive(Default)]
struct Report {
    violations: Vec<v1::Violation>,
}

impl Report {
    fn add(&mut self, at: At<'_>, field: impl Into<String>, rule: impl Into<String>) {
        if self.violations.len() >= limits::VIOLATIONS {
            return;
        }
        self.violations.push(v1::Violation {
            object: Some(v1::ObjectKey {
                kind: at.kind.name().to_owned(),
                id: at.id.to_owned(),
            }),
            field: field.into(),
            rule: rule.into(),
        });
    }

    /// The value, or a violation and nothing.
    fn take<T, E: ToString>(
        &mut self,
        at: At<'_>,
        field: impl Into<String>,
        result: Result<T, E>,
    ) -> Option<T> {
        result
            .map_err(|error| self.add(at, field, error.to_string()))
            .ok()
    }
}

/// Refuses a reference to what does not exist or belongs to another VPC; an empty one passes.
macro_rules! check_reference {
    ($index:expr, $map:ident, $kind:literal, $id:expr, $vpc:expr, $at:expr, $field:expr, $report:expr) => {
        if !$id.is_empty() {
            match $index.$map.get($id.as_str()) {
                None => $report.add(
                    $at,
                    $field,
                    format!(concat!("there is no ", $kind, " '{}'"), $id),
                ),
                Some(other) if other.vpc != *$vpc => $report.add(
                    $at,
                    $field,
                    format!(
                        concat!($kind, " '{}' belongs to vpc '{}', not to '{}'"),
                        $id, other.vpc, $vpc
                    ),
                ),
                Some(_) => {}
            }
        }
    };
}
use check_reference;

fn check_id(at: At<'_>, report: &mut Report) {
    let known = |b: u8| b.is_ascii_alphanumeric() || b"._/-".contains(&b);
    if at.id.is_empty() || at.id.len() > 128 || !at.id.bytes().all(known) {
        report.add(
            at,
            "id",
            "an id is 1 to 128 characters of A-Z a-z 0-9 . _ / -",
        );
    }
}
