//! Policy: address sets, network ACLs, the rules of security groups.

use std::collections::HashSet;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use weft_proto::state::Kind;
use weft_proto::v1;

use super::{Draft, Objects, Places, Report};
use crate::packet::Family;
use crate::packet::parse::protocol;
use crate::policy::{
    self, Acl, AclEntry, AclRules, AddressSet, Classifier, GroupRules, Remote, Rule, Service,
    protocol_number,
};
use crate::route::{Lpm, Prefix};

/// A group's rules by direction; none where it has no rule.
#[derive(Debug, Clone, Default)]
pub(super) struct GroupClassifiers {
    ingress: Option<Arc<Classifier>>,
    egress: Option<Arc<Classifier>>,
}

impl Draft<'_> {
    pub(super) fn fill_sets(&mut self, objects: &Objects<'_>) {
        for list in &objects.prefix_lists {
            let texts = Texts {
                key: (Kind::PrefixList, &list.id),
                texts: &list.prefixes,
            };
            let prefixes = prefixes(&[texts], &mut self.report);
            let name = format!("prefix list {}", list.id);
            let places = self.add_set(&list.vpc, &AddressSet { name, prefixes }, false);
            self.places.prefix_lists.insert(list.id.clone(), places);
        }
        for group in &objects.security_groups {
            let own = Texts {
                key: (Kind::SecurityGroup, &group.id),
                texts: &group.members,
            };
            let parts = objects.group_members.get(&*group.id);
            let parts = parts.into_iter().flatten().map(|part| Texts {
                key: (Kind::GroupMembers, &part.id),
                texts: &part.members,
            });
            let all: Vec<Texts<'_>> = [own].into_iter().chain(parts).collect();
            let prefixes = prefixes(&all, &mut self.report);
            let name = format!("security group {}", group.id);
            let places = self.add_set(&group.vpc, &AddressSet { name, prefixes }, true);
            self.places.groups.insert(group.id.clone(), places);
        }
    }

    /// The places of a set: in its own VPC first, then in those that may name it by a peering. None when its VPC is not there.
    fn add_set(&mut self, vpc: &str, set: &AddressSet, is_shared: bool) -> Vec<(usize, usize)> {
        let Some(own) = self.places.vpcs.get(vpc).copied() else {
            return Vec::new();
        };
        let peerings = Arc::clone(&self.vpcs[own].vpc.peerings);
        let others = peerings
            .iter()
            .filter(|_| is_shared)
            .map(|peering| peering.vpc);
        let mut vpcs = vec![own];
        for other in others {
            // Several peerings may have joined the same two, one after the other.
            if !vpcs.contains(&other) {
                vpcs.push(other);
            }
        }
        let add = |vpc: usize| {
            let sets = &mut self.vpcs[vpc].sets;
            sets.push(set.clone());
            (vpc, sets.len() - 1)
        };
        vpcs.into_iter().map(add).collect()
    }

    pub(super) fn fill_acls(&mut self, objects: &Objects<'_>) {
        for acl in &objects.network_acls {
            let compiled = compile_acl(acl, &mut self.report);
            self.places.acls.insert(acl.id.clone(), self.acls.len());
            self.acls.push(compiled);
        }
    }

    /// The rules of every group, each compiled once for all of its ports.
    pub(super) fn fill_classifiers(&mut self, objects: &Objects<'_>) {
        for group in &objects.security_groups {
            let compiled = classify(group, &self.places, &mut self.report);
            self.places.classifiers.insert(group.id.clone(), compiled);
        }
    }
}

/// What an object lists of the addresses of a set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Texts<'s> {
    /// The object.
    pub(super) key: (Kind, &'s str),
    pub(super) texts: &'s [String],
}

impl Texts<'_> {
    /// Puts those from the i-th on into a table, as many as are in `texts`.
    fn insert(&self, table: &mut Lpm<()>, report: &mut Report, from: usize) {
        let (kind, id) = self.key;
        for (i, text) in (from..).zip(self.texts) {
            match text.parse::<IpNetwork>() {
                Ok(network) => {
                    table.insert(network.into(), ());
                }
                Err(_) => {
                    let list = match kind {
                        Kind::PrefixList => "prefixes",
                        _ => "members",
                    };
                    let rule = format!("'{text}' is not a prefix");
                    report.add(kind, id, format!("{list}[{i}]"), rule);
                }
            }
        }
    }
}

/// The addresses of a set, from nothing.
pub(super) fn prefixes(all: &[Texts<'_>], report: &mut Report) -> Lpm<()> {
    let mut table = Lpm::default();
    for texts in all {
        texts.insert(&mut table, report, 0);
    }
    table.compact();
    table
}

/// The addresses of a set that was there before, each given once: only what has come and gone is changed.
pub(super) fn renew_prefixes(
    before: &Lpm<()>,
    changes: &[[Texts<'_>; 2]],
    report: &mut Report,
) -> Lpm<()> {
    let mut table = before.clone();
    let mut come = Vec::with_capacity(changes.len());
    for [old, new] in changes {
        // Most of a long list stays as it is.
        let (is, was) = (new.texts, old.texts);
        let first = was.iter().zip(is).take_while(|(a, b)| a == b).count();
        let (was, is) = (&was[first..], &is[first..]);
        let ends = was.iter().rev().zip(is.iter().rev());
        let last = ends.take_while(|(a, b)| a == b).count();
        let (was, is) = (&was[..was.len() - last], &is[..is.len() - last]);
        let stay: HashSet<&String> = is.iter().collect();
        for text in was.iter().filter(|text| !stay.contains(text)) {
            if let Ok(network) = text.parse::<IpNetwork>() {
                table.remove(network.into());
            }
        }
        come.push((
            first,
            Texts {
                texts: is,
                key: new.key,
            },
        ));
    }
    // Those that stay are put in again, in case one that went was the same prefix in another spelling.
    for (first, texts) in come {
        texts.insert(&mut table, report, first);
    }
    table
}

pub(super) fn compile_acl(acl: &v1::NetworkAcl, report: &mut Report) -> Acl {
    let (mut ingress, mut egress) = (Vec::new(), Vec::new());
    for (i, wire) in acl.rules.iter().enumerate() {
        let rule = service(
            &wire.protocol,
            (wire.port_min, wire.port_max),
            (wire.icmp_type, wire.icmp_code),
        )
        .and_then(|service| {
            let (remote, family) = remote_prefix(&wire.cidr)?;
            Ok(Rule {
                family: family.or(family_of_service(&service)),
                service,
                remote,
            })
        });
        let list = match wire.direction.as_str() {
            "ingress" => Some(&mut ingress),
            "egress" => Some(&mut egress),
            _ => None,
        };
        match (rule, list, wire.action.as_str()) {
            (Ok(rule), Some(list), action @ ("allow" | "deny")) => list.push(AclEntry {
                number: wire.number as u16,
                allow: action == "allow",
                rule,
            }),
            (Err(rule), ..) => {
                report.add(Kind::NetworkAcl, &acl.id, format!("rules[{i}]"), rule);
            }
            _ => {
                let rule = "has a direction and an action";
                report.add(Kind::NetworkAcl, &acl.id, format!("rules[{i}]"), rule);
            }
        }
    }
    Acl {
        id: acl.id.clone(),
        ingress: AclRules::new(&ingress),
        egress: AclRules::new(&egress),
    }
}

pub(super) fn classify(
    group: &v1::SecurityGroup,
    places: &Places,
    report: &mut Report,
) -> GroupClassifiers {
    let kind = Kind::SecurityGroup;
    let own = places
        .groups
        .get(&group.id)
        .and_then(|places| places.first());
    let Some((vpc, _)) = own.copied() else {
        let rule = format!("'{}' does not exist", group.vpc);
        report.add(kind, &group.id, "vpc", rule);
        return GroupClassifiers::default();
    };
    let (mut ingress, mut egress) = (Vec::new(), Vec::new());
    for (i, wire) in group.rules.iter().enumerate() {
        match (security_rule(wire, places, vpc), wire.direction.as_str()) {
            (Ok(rule), "ingress") => ingress.push(rule),
            (Ok(rule), "egress") => egress.push(rule),
            (Ok(_), _) => {
                let field = format!("rules[{i}].direction");
                report.add(kind, &group.id, field, "is ingress or egress");
            }
            (Err(rule), _) => report.add(kind, &group.id, format!("rules[{i}]"), rule),
        }
    }
    let compile = |rules: &[Rule]| (!rules.is_empty()).then(|| policy::group(rules).into());
    GroupClassifiers {
        ingress: compile(&ingress),
        egress: compile(&egress),
    }
}

/// What the groups of a port say, towards it and from it.
pub(super) fn rules_of_port<'c>(
    port: &v1::Port,
    classifiers: impl Fn(&str) -> Option<&'c GroupClassifiers>,
    report: &mut Report,
) -> (GroupRules, GroupRules) {
    let (mut ingress, mut egress) = (Vec::new(), Vec::new());
    for (g, id) in port.security_groups.iter().enumerate() {
        let Some(group) = classifiers(id) else {
            let field = format!("security_groups[{g}]");
            report.add(
                Kind::Port,
                &port.id,
                field,
                format!("'{id}' does not exist"),
            );
            continue;
        };
        ingress.extend(group.ingress.clone());
        egress.extend(group.egress.clone());
    }
    // The first egress rule flips the default from open to shut.
    let egress = if egress.is_empty() {
        GroupRules::Open
    } else {
        GroupRules::Allow(egress)
    };
    (GroupRules::Allow(ingress), egress)
}

type Bounds = (Option<u32>, Option<u32>);

fn service(word: &str, ports: Bounds, icmp: Bounds) -> Result<Service, String> {
    let Some(number) = protocol_number(word)? else {
        return Ok(Service::Any);
    };
    match (number, ports, icmp) {
        (protocol::ICMP | protocol::ICMPV6, _, (Some(kind), code)) => {
            let narrow = |value: u32| {
                u8::try_from(value).map_err(|_| format!("ICMP type or code {value} is over 255"))
            };
            Ok(Service::Icmp(
                number,
                narrow(kind)?,
                code.map(narrow).transpose()?,
            ))
        }
        (_, (None, None), _) => Ok(Service::Protocol(number)),
        (protocol::ICMP | protocol::ICMPV6, ..) => Err("ICMP has no ports".to_owned()),
        (_, (low, high), _) => {
            let narrow = |value: u32| {
                u16::try_from(value).map_err(|_| format!("port {value} is over 65535"))
            };
            let low = narrow(low.unwrap_or(0))?;
            let high = high.map_or(Ok(u16::MAX), narrow)?;
            Ok(Service::Ports(number, low..=high))
        }
    }
}

fn family_of_service(service: &Service) -> Option<Family> {
    match service {
        Service::Protocol(protocol::ICMP) | Service::Icmp(protocol::ICMP, ..) => Some(Family::Ipv4),
        Service::Protocol(protocol::ICMPV6) | Service::Icmp(protocol::ICMPV6, ..) => {
            Some(Family::Ipv6)
        }
        _ => None,
    }
}

fn remote_prefix(text: &str) -> Result<(Remote, Option<Family>), String> {
    if text.is_empty() {
        return Ok((Remote::Any, None));
    }
    let prefix = Prefix::from(
        text.parse::<IpNetwork>()
            .map_err(|_| format!("'{text}' is not a prefix"))?,
    );
    Ok((Remote::Prefix(prefix), Some(prefix.family())))
}

fn security_rule(wire: &v1::SecurityRule, places: &Places, vpc: usize) -> Result<Rule, String> {
    let service = service(
        &wire.protocol,
        (wire.port_min, wire.port_max),
        (wire.icmp_type, wire.icmp_code),
    )?;
    let set = |found: Option<&Vec<(usize, usize)>>, kind: &str, id: &str| {
        let here = found.into_iter().flatten().find(|(other, _)| *other == vpc);
        match here {
            Some((_, set)) => Ok((Remote::Set(*set), None)),
            None => Err(format!("{kind} '{id}' does not exist")),
        }
    };
    let (remote, remote_family) = if !wire.remote_group.is_empty() {
        let id = &wire.remote_group;
        set(places.groups.get(id), "security group", id)?
    } else if !wire.remote_prefix_list.is_empty() {
        let id = &wire.remote_prefix_list;
        set(places.prefix_lists.get(id), "prefix list", id)?
    } else {
        remote_prefix(&wire.remote_cidr)?
    };
    let named = match wire.family.as_str() {
        "" => None,
        "ipv4" => Some(Family::Ipv4),
        "ipv6" => Some(Family::Ipv6),
        other => return Err(format!("family '{other}' is neither ipv4 nor ipv6")),
    };
    Ok(Rule {
        family: named.or(remote_family).or(family_of_service(&service)),
        service,
        remote,
    })
}
