//! Quotas: how many objects of each kind a tenant has.

use std::collections::HashMap;

use super::{At, Index, Report, limits};
use crate::state::{Kind, Object};
use crate::v1::Quota;

/// Kinds that have a quota, and how many objects of each a tenant may have for whom there is none.
pub const DEFAULTS: [(Kind, u32); 10] = [
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
pub(super) fn check_all(index: &Index<'_>, report: &mut Report) {
    let mut tenants: HashMap<&str, &str> = HashMap::new();
    for object in index.state.of_kind(Kind::Vpc) {
        if let Object::Vpc(vpc) = object
            && !vpc.tenant.is_empty()
        {
            tenants.insert(&vpc.id, &vpc.tenant);
        }
    }
    let mut counts: HashMap<(&str, Kind), u32> = HashMap::new();
    for object in &index.objects {
        let vpc = match object {
            Object::Peering(peering) => Some(peering.requester.as_str()),
            other => other.vpc(),
        };
        let tenant = match object {
            Object::ElasticIp(elastic) => Some(&*elastic.tenant).filter(|own| !own.is_empty()),
            other if other.tenant_wide().is_some() => other.tenant_wide(),
            _ => vpc.and_then(|vpc| tenants.get(vpc).copied()),
        };
        if let Some(tenant) = tenant {
            *counts.entry((tenant, object.kind())).or_default() += 1;
        }
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable();
    for ((tenant, kind), count) in counts {
        let Some((_, default)) = DEFAULTS.iter().find(|(other, _)| *other == kind) else {
            continue;
        };
        let id = format!("{tenant}/{}", kind.name());
        let limit = match index.find(Kind::Quota, &id) {
            Some(Object::Quota(quota)) => quota.limit,
            _ => *default,
        };
        if count > limit {
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
}
