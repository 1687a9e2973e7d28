//! Quotas: how many objects of each kind a tenant has.

use std::collections::BTreeSet;

use super::{At, Report, limits};
use crate::state::{Change, Kind, Object, State};
use crate::v1::Quota;

/// Kinds that have a quota, and how many objects of each a tenant may have for whom there is none.
pub const DEFAULTS: [(Kind, u32); 12] = [
    (Kind::Vpc, limits::TENANT_VPCS),
    (Kind::Subnet, limits::TENANT_SUBNETS),
    (Kind::RouteTable, limits::TENANT_ROUTE_TABLES),
    (Kind::NetworkAcl, limits::TENANT_NETWORK_ACLS),
    (Kind::PrefixList, limits::TENANT_PREFIX_LISTS),
    (Kind::SecurityGroup, limits::TENANT_SECURITY_GROUPS),
    (Kind::Port, limits::TENANT_PORTS),
    (Kind::Peering, limits::TENANT_PEERINGS),
    (Kind::ElasticIp, limits::TENANT_ELASTIC_IPS),
    (Kind::NatGateway, limits::TENANT_NAT_GATEWAYS),
    (Kind::LoadBalancer, limits::TENANT_LOAD_BALANCERS),
    (Kind::DnsZone, limits::TENANT_DNS_ZONES),
];

pub(super) fn check(at: At<'_>, quota: &Quota, report: &mut Report) {
    let known = |(kind, _): &(Kind, u32)| kind.name() == quota.kind;
    if !DEFAULTS.iter().any(known) {
        let names: Vec<&str> = DEFAULTS.iter().map(|(kind, _)| kind.name()).collect();
        let rule = format!("'{}' is none of {}", quota.kind, names.join(", "));
        report.add(at, "kind", rule);
    }
    if quota.tenant.is_empty() {
        report.add(at, "tenant", "the operator has no quota");
    }
    if quota.id != format!("{}/{}", quota.tenant, quota.kind) {
        report.add(at, "id", "is the tenant and the kind, as in ann/vpc");
    }
}

/// No tenant has more than its quota.
pub(super) fn check_all(state: &State, report: &mut Report) {
    let mut tenants = BTreeSet::new();
    for object in state
        .of_kind(Kind::Vpc)
        .chain(state.of_kind(Kind::ElasticIp))
    {
        tenants.extend(tenant_of(state, object));
    }
    for kind in [Kind::PrefixList, Kind::SecurityGroup] {
        tenants.extend(state.of_kind(kind).filter_map(Object::tenant_wide));
    }
    let kinds = DEFAULTS.map(|(kind, _)| kind);
    let all = tenants
        .into_iter()
        .flat_map(|tenant| kinds.map(|kind| (tenant, kind)));
    all.for_each(|(tenant, kind)| check_count(state, tenant, kind, report));
}

/// No tenant of which a change makes objects, or whose quota it changes, has more than its quota.
pub(super) fn check_changed(next: &State, changes: &[Change<'_>], report: &mut Report) {
    let mut grown = BTreeSet::new();
    for change in changes {
        for object in [change.old, change.new].into_iter().flatten() {
            if let Object::Quota(quota) = object {
                let kind = Kind::from_name(&quota.kind);
                grown.extend(kind.map(|kind| (&*quota.tenant, kind)));
            }
        }
        if let Some(new) = change.new {
            let tenant = tenant_of(next, new);
            grown.extend(tenant.map(|tenant| (tenant, new.kind())));
            // One that is over may outlive its VPC, and counts again with it.
            if new.kind() == Kind::Vpc {
                grown.extend(tenant.map(|tenant| (tenant, Kind::Peering)));
            }
        }
    }
    for (tenant, kind) in grown {
        check_count(next, tenant, kind, report);
    }
}

/// The tenant as whose an object counts, if any.
fn tenant_of<'s>(state: &'s State, object: &'s Object) -> Option<&'s str> {
    let tenant = match object {
        Object::ElasticIp(elastic) => &elastic.tenant,
        Object::Peering(peering) => tenant_of_vpc(state, &peering.requester)?,
        other => match other.tenant_wide() {
            Some(tenant) => tenant,
            None => tenant_of_vpc(state, other.vpc()?)?,
        },
    };
    Some(tenant).filter(|tenant| !tenant.is_empty())
}

fn tenant_of_vpc<'s>(state: &'s State, vpc: &str) -> Option<&'s str> {
    match state.find(Kind::Vpc, vpc)? {
        Object::Vpc(vpc) => Some(&vpc.tenant),
        _ => None,
    }
}

fn check_count(state: &State, tenant: &str, kind: Kind, report: &mut Report) {
    let Some((_, default)) = DEFAULTS.iter().find(|(other, _)| *other == kind) else {
        return;
    };
    if tenant.is_empty() {
        return;
    }
    let id = format!("{tenant}/{}", kind.name());
    let limit = match state.find(Kind::Quota, &id) {
        Some(Object::Quota(quota)) => quota.limit,
        _ => *default,
    };
    let count = state.count_of_tenant(tenant, kind);
    if count > limit as usize {
        let at = At {
            kind: Kind::Quota,
            id: &id,
        };
        let kind = kind.name();
        let rule = format!(
            "tenant '{tenant}' would have {count} objects of kind {kind}, and may have {limit}"
        );
        report.add(at, "limit", rule);
    }
}
