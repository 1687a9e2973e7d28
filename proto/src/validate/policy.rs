//! Network ACLs, security groups and prefix lists.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{At, Index, Report, Scope, check_reference, limits, peering};
use crate::address::{parse_address, parse_prefix, parse_protocol};
use crate::state::{Kind, Object};
use crate::v1;

/// The highest number of a network ACL's rule, and the last priority of a policy route.
pub(super) const MAX_RULE_NUMBER: u32 = 32767;

pub(super) fn check_acl(at: At<'_>, acl: &v1::NetworkAcl, index: &Index<'_>, report: &mut Report) {
    index.require_vpc(at, &acl.vpc, report);
    let count = acl.rules.len();
    if !report.within(
        at,
        "rules",
        count,
        ("a network ACL has", limits::ACL_RULES, "rules"),
    ) {
        return;
    }
    let mut numbers = HashMap::new();
    for (i, rule) in acl.rules.iter().enumerate() {
        let field = format!("rules[{i}]");
        if rule.number == 0 || rule.number > MAX_RULE_NUMBER {
            let text = format!("{} is outside 1 to {MAX_RULE_NUMBER}", rule.number);
            report.add(at, format!("{field}.number"), text);
        }
        if let Some(first) = numbers.insert((&rule.direction, rule.number), i) {
            let text = format!("{} is already used by rules[{first}]", rule.number);
            report.add(at, format!("{field}.number"), text);
        }
        if !matches!(rule.action.as_str(), "allow" | "deny") {
            let text = format!("'{}' is neither allow nor deny", rule.action);
            report.add(at, format!("{field}.action"), text);
        }
        let matcher = Match {
            direction: &rule.direction,
            protocol: &rule.protocol,
            cidr: &rule.cidr,
            cidr_field: "cidr",
            family: "",
            port_min: rule.port_min,
            port_max: rule.port_max,
            icmp_type: rule.icmp_type,
            icmp_code: rule.icmp_code,
        };
        matcher.check(at, &field, report);
    }
}

/// The texts with their places, but those at the beginning and at the end that are as they were when they were checked last.
fn unknown<'a>(known: &[String], texts: &'a [String]) -> impl Iterator<Item = (usize, &'a String)> {
    let same = |(a, b): &(&String, &String)| a == b;
    let first = known.iter().zip(texts).take_while(same).count();
    let ends = known[first..].iter().rev().zip(texts[first..].iter().rev());
    let last = ends.take_while(same).count();
    (first..).zip(&texts[first..texts.len() - last])
}

/// `known`: members that it had when it was checked last.
pub(super) fn check_group(
    at: At<'_>,
    (group, known): (&v1::SecurityGroup, &[String]),
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    index.require_vpc_or_tenant(at, (&group.vpc, &group.tenant), scope, report);
    if scope == Scope::Intent && !group.members.is_empty() {
        let rule = "filled by the controller; name the group in the ports' security_groups instead";
        report.add(at, "members", rule);
    }
    check_members(at, (&group.id, &group.members, known), index, report);
    let count = group.rules.len();
    if !report.within(
        at,
        "rules",
        count,
        ("a security group has", limits::GROUP_RULES, "rules"),
    ) {
        return;
    }
    let sets: HashSet<_> = group
        .rules
        .iter()
        .map(|rule| (&rule.remote_group, &rule.remote_prefix_list))
        .collect();
    let named = sets.len() - usize::from(sets.contains(&(&String::new(), &String::new())));
    let owner = "the rules of a security group name";
    let things = "different security groups and prefix lists";
    report.within(at, "rules", named, (owner, limits::GROUP_SETS, things));
    for (i, rule) in group.rules.iter().enumerate() {
        let field = format!("rules[{i}]");
        let remotes = [
            &rule.remote_cidr,
            &rule.remote_group,
            &rule.remote_prefix_list,
        ];
        if remotes.iter().filter(|remote| !remote.is_empty()).count() > 1 {
            let text = "at most one of remote_cidr, remote_group and remote_prefix_list is set";
            report.add(at, &field, text);
        }
        if group.vpc.is_empty() {
            check_rule_of_tenant(at, &field, (&group.tenant, rule), index, report);
        }
        let remote = index.find(Kind::SecurityGroup, &rule.remote_group);
        let remote_vpc = remote.and_then(Object::vpc).unwrap_or(&group.vpc);
        // A group of a VPC that a peering joins is as one of this VPC.
        let is_elsewhere = *remote_vpc != group.vpc;
        let vpc = if is_elsewhere && peering::joins(index, &group.vpc, remote_vpc) {
            remote_vpc
        } else {
            &group.vpc
        };
        if !group.vpc.is_empty() {
            check_reference(
                index,
                (Kind::SecurityGroup, &rule.remote_group),
                vpc,
                (at, format_args!("{field}.remote_group")),
                report,
            );
            check_reference(
                index,
                (Kind::PrefixList, &rule.remote_prefix_list),
                &group.vpc,
                (at, format_args!("{field}.remote_prefix_list")),
                report,
            );
        }
        let matcher = Match {
            direction: &rule.direction,
            protocol: &rule.protocol,
            cidr: &rule.remote_cidr,
            cidr_field: "remote_cidr",
            family: &rule.family,
            port_min: rule.port_min,
            port_max: rule.port_max,
            icmp_type: rule.icmp_type,
            icmp_code: rule.icmp_code,
        };
        matcher.check(at, &field, report);
    }
}

/// A tenant's group is there in all its VPCs, so that its rules name only what is too.
fn check_rule_of_tenant(
    at: At<'_>,
    field: &str,
    (tenant, rule): (&str, &v1::SecurityRule),
    index: &Index<'_>,
    report: &mut Report,
) {
    for (name, kind, id) in [
        ("remote_group", Kind::SecurityGroup, &rule.remote_group),
        (
            "remote_prefix_list",
            Kind::PrefixList,
            &rule.remote_prefix_list,
        ),
    ] {
        if id.is_empty() {
            continue;
        }
        let what = kind.name();
        let rule = match index.find(kind, id).map(Object::tenant_wide) {
            Some(Some(owner)) if owner == tenant => continue,
            None => format!("there is no {what} '{id}'"),
            Some(_) => {
                format!("{what} '{id}' is not of tenant '{tenant}', as the group is")
            }
        };
        report.add(at, format!("{field}.{name}"), rule);
    }
}

/// Members of a group, its own or a part of them. `known`: those that there were when they were checked last.
fn check_members(
    at: At<'_>,
    (group, members, known): (&str, &[String], &[String]),
    index: &Index<'_>,
    report: &mut Report,
) {
    let own = match index.find(Kind::SecurityGroup, group) {
        Some(Object::SecurityGroup(group)) => group.members.len(),
        _ => 0,
    };
    let count = own + index.state.members_in_parts(group);
    if report.within(
        at,
        "members",
        count,
        ("a security group has", limits::GROUP_MEMBERS, "members"),
    ) {
        for (i, member) in unknown(known, members) {
            report.take(at, format!("members[{i}]"), parse_address(member));
        }
    }
}

/// `known`: members that it had when it was checked last.
pub(super) fn check_part(
    at: At<'_>,
    (part, known): (&v1::GroupMembers, &[String]),
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    if scope == Scope::Intent {
        let rule = "made by the controller; name the group in the ports' security_groups instead";
        report.add(at, "id", rule);
        return;
    }
    if part.number >= limits::GROUP_PARTS {
        let last = limits::GROUP_PARTS - 1;
        let rule = format!("{} is outside 0 to {last}", part.number);
        report.add(at, "number", rule);
    }
    if part.id != v1::GroupMembers::id_of(&part.group, part.number) {
        let rule = format!(
            "is that of its group and its number, '{}/{}'",
            part.group, part.number
        );
        report.add(at, "id", rule);
    }
    let group = (Kind::SecurityGroup, part.group.as_str());
    if part.group.is_empty() {
        report.add(at, "group", "a part is of a group");
    } else {
        check_reference(index, group, &part.vpc, (at, "group"), report);
    }
    check_members(at, (&part.group, &part.members, known), index, report);
}

/// Members of groups, which the intent gives by the ports alone: of the groups under check, and of those of ports under check.
pub(super) fn check_memberships(index: &Index<'_>, report: &mut Report) {
    let mut groups: BTreeSet<&str> = BTreeSet::new();
    for object in &index.objects {
        match object {
            Object::SecurityGroup(group) => drop(groups.insert(&group.id)),
            Object::Port(port) => groups.extend(port.security_groups.iter().map(String::as_str)),
            _ => {}
        }
    }
    for id in groups {
        if index.find(Kind::SecurityGroup, id).is_none() {
            continue;
        }
        let at = At {
            kind: Kind::SecurityGroup,
            id,
        };
        let count = index.state.members_of(id);
        let most = (
            "the ports of a security group have",
            limits::GROUP_MEMBERS,
            "addresses",
        );
        report.within(at, "members", count, most);
    }
}

/// `known`: prefixes that it had when it was checked last.
pub(super) fn check_prefix_list(
    at: At<'_>,
    (list, known): (&v1::PrefixList, &[String]),
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    index.require_vpc_or_tenant(at, (&list.vpc, &list.tenant), scope, report);
    let count = list.prefixes.len();
    if !report.within(
        at,
        "prefixes",
        count,
        ("a prefix list has", limits::LIST_PREFIXES, "prefixes"),
    ) {
        return;
    }
    for (i, text) in unknown(known, &list.prefixes) {
        report.take(at, format!("prefixes[{i}]"), parse_prefix(text));
    }
}

/// What an ACL's rule and a group's rule have in common.
struct Match<'a> {
    direction: &'a str,
    protocol: &'a str,
    cidr: &'a str,
    cidr_field: &'a str,
    family: &'a str,
    port_min: Option<u32>,
    port_max: Option<u32>,
    icmp_type: Option<u32>,
    icmp_code: Option<u32>,
}

impl Match<'_> {
    fn check(&self, at: At<'_>, field: &str, report: &mut Report) {
        if !matches!(self.direction, "ingress" | "egress") {
            let rule = format!("'{}' is neither ingress nor egress", self.direction);
            report.add(at, format!("{field}.direction"), rule);
        }
        let Some(protocol) = report.take(
            at,
            format!("{field}.protocol"),
            parse_protocol(self.protocol),
        ) else {
            return;
        };
        self.check_family(at, field, protocol, report);
        let bounds = ("port", self.port_min, self.port_max);
        check_ports(at, field, bounds, protocol, report);
        self.check_icmp(at, field, protocol, report);
    }

    fn check_family(&self, at: At<'_>, field: &str, protocol: Option<u8>, report: &mut Report) {
        let family = match self.family {
            "" => None,
            "ipv4" => Some(true),
            "ipv6" => Some(false),
            other => {
                let rule = format!("'{other}' is neither ipv4 nor ipv6");
                report.add(at, format!("{field}.family"), rule);
                return;
            }
        };
        let of_protocol = match protocol {
            Some(1) => Some(true),
            Some(58) => Some(false),
            _ => None,
        };
        let of_cidr = if self.cidr.is_empty() {
            None
        } else {
            let field = format!("{field}.{}", self.cidr_field);
            report
                .take(at, field, parse_prefix(self.cidr))
                .map(|prefix| prefix.is_ipv4())
        };
        let given: Vec<bool> = [family, of_protocol, of_cidr]
            .into_iter()
            .flatten()
            .collect();
        if given.iter().any(|v4| *v4 != given[0]) {
            let mut parts = Vec::new();
            if family.is_some() {
                parts.push(format!("family {}", self.family));
            }
            if of_protocol.is_some() {
                parts.push(format!("protocol {}", self.protocol));
            }
            if of_cidr.is_some() {
                parts.push(self.cidr.to_owned());
            }
            let rule = format!("IPv4 and IPv6 are mixed: {}", parts.join(", "));
            report.add(at, field, rule);
        }
    }

    fn check_icmp(&self, at: At<'_>, field: &str, protocol: Option<u8>, report: &mut Report) {
        let is_icmp = matches!(protocol, Some(1 | 58));
        for (name, value) in [("icmp_type", self.icmp_type), ("icmp_code", self.icmp_code)] {
            let Some(value) = value else { continue };
            if !is_icmp {
                let rule = format!("only icmp and icmpv6 have an {name}");
                report.add(at, format!("{field}.{name}"), rule);
            } else if value > 255 {
                let rule = format!("{value} is outside 0 to 255");
                report.add(at, format!("{field}.{name}"), rule);
            }
        }
        if is_icmp && self.icmp_code.is_some() && self.icmp_type.is_none() {
            let rule = "a code needs an icmp_type";
            report.add(at, format!("{field}.icmp_code"), rule);
        }
    }
}

/// A range of ports, by the name of its fields without `_min` and `_max`: of a protocol that has ports, both bounds or neither, and not empty.
pub(super) fn check_ports(
    at: At<'_>,
    field: &str,
    (name, min, max): (&str, Option<u32>, Option<u32>),
    protocol: Option<u8>,
    report: &mut Report,
) {
    if min.is_none() && max.is_none() {
        return;
    }
    if !matches!(protocol, Some(6 | 17 | 132)) {
        let rule = "only tcp, udp and sctp have ports";
        report.add(at, format!("{field}.{name}_min"), rule);
        return;
    }
    for (end, bound) in [("min", min), ("max", max)] {
        match bound {
            None => {
                let rule = format!("set both {name}_min and {name}_max, or neither");
                report.add(at, format!("{field}.{name}_{end}"), rule);
            }
            Some(port) if port > 65535 => {
                let rule = format!("{port} is outside 0 to 65535");
                report.add(at, format!("{field}.{name}_{end}"), rule);
            }
            Some(_) => {}
        }
    }
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        let rule = format!("{min} to {max} is an empty range");
        report.add(at, format!("{field}.{name}_min"), rule);
    }
}
