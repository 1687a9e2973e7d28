//! Rules on the names that a VPC's guests are answered: its domain, zones and their records, and what hosts are told of ports' names.

use std::collections::{HashMap, HashSet};

use super::dhcp::{is_domain, is_label};
use super::{At, Index, Report, Scope, check_reference, limits};
use crate::address::parse_address;
use crate::dns::{Data, MAX_CHAIN, TYPES, name, name_in};
use crate::state::{Kind, Object};
use crate::v1::{DnsRecord, DnsZone, PortName, VpcDns};

/// Characters of a VPC's domain: the longest label of a port fits before it (RFC 1035 §2.3.4).
const VPC_DOMAIN: usize = 189;
/// A week (RFC 8767 §4 caps what resolvers keep at that).
const MOST_TTL: u32 = 604_800;

pub(super) fn check_vpc(at: At<'_>, dns: &VpcDns, report: &mut Report) {
    if dns.domain.len() > VPC_DOMAIN || !is_domain(&dns.domain) {
        let shown: String = dns.domain.chars().take(100).collect();
        let rule = format!(
            "'{shown}' is not a domain name of at most {VPC_DOMAIN} characters: labels of letters, digits and inner hyphens, joined by dots"
        );
        report.add(at, "dns.domain", rule);
    }
}

/// What a host is told of a port's name.
pub(super) fn check_name(
    at: At<'_>,
    told: &PortName,
    index: &Index<'_>,
    scope: Scope<'_>,
    report: &mut Report,
) {
    if scope == Scope::Intent {
        let rule = "made by the controller: a port's name is its hostname, or else its id";
        report.add(at, "id", rule);
        return;
    }
    check_reference(
        index,
        (Kind::Vpc, &told.vpc),
        &told.vpc,
        (at, "vpc"),
        report,
    );
    if !is_label(&told.name) || told.name.bytes().any(|b| b.is_ascii_uppercase()) {
        report.add(at, "name", "is one label, in lower case");
    }
    let most = ("a port has", limits::PORT_ADDRESSES, "addresses");
    if report.within(at, "addresses", told.addresses.len(), most) {
        for (i, text) in told.addresses.iter().enumerate() {
            report.take(at, format!("addresses[{i}]"), parse_address(text));
        }
    }
}

pub(super) fn check_zone(at: At<'_>, zone: &DnsZone, index: &Index<'_>, report: &mut Report) {
    let vpc = &*zone.vpc;
    if vpc.is_empty() {
        report.add(at, "vpc", "a zone is in a VPC");
    }
    check_reference(index, (Kind::Vpc, vpc), vpc, (at, "vpc"), report);
    let Some(domain) = name(&zone.domain) else {
        let shown: String = zone.domain.chars().take(100).collect();
        let rule = format!("'{shown}' is not a domain name");
        report.add(at, "domain", rule);
        return;
    };
    let others = zones_of(index, vpc).filter(|other| other.id != at.id);
    let (mut count, mut data) = (1, data_of(zone));
    for other in others {
        count += 1;
        data += data_of(other);
        if other.origin() == domain {
            let rule = format!(
                "'{domain}' is already the domain of dns_zone '{}'",
                other.id
            );
            report.add(at, "domain", rule);
        }
    }
    report.within(
        at,
        "vpc",
        count,
        ("a VPC has", limits::VPC_DNS_ZONES, "DNS zones"),
    );
    let most = (
        "the zones of a VPC have",
        limits::VPC_DNS_DATA,
        "data together",
    );
    report.within(at, "records", data, most);
    let most = ("a zone has", limits::ZONE_RECORDS, "records");
    if !report.within(at, "records", zone.records.len(), most) {
        return;
    }
    let mut seen: HashMap<(String, &str), usize> = HashMap::new();
    let mut types: HashMap<String, Vec<(&str, usize)>> = HashMap::new();
    for (i, record) in zone.records.iter().enumerate() {
        let Some(whole) = check_record(at, i, (record, &domain), report) else {
            continue;
        };
        if let Some(other) = seen.insert((whole.clone(), &record.r#type), i) {
            let rule = format!(
                "records[{other}] has this name and type already: give all of their data in one record"
            );
            report.add(at, format!("records[{i}].name"), rule);
        }
        types.entry(whole).or_default().push((&record.r#type, i));
    }
    let mut beside = Vec::new();
    for (whole, types) in &types {
        if let [_, _, ..] = types[..]
            && let Some((_, i)) = types.iter().find(|(kind, _)| *kind == "CNAME")
        {
            // RFC 1034 §3.6.2.
            beside.push((
                *i,
                format!("'{whole}' has other records: a CNAME is a name's only one"),
            ));
        }
    }
    beside.sort();
    for (i, rule) in beside {
        report.add(at, format!("records[{i}].type"), rule);
    }
    check_chains(at, (zone, &domain), report);
}

/// Answers the record's whole name.
fn check_record(
    at: At<'_>,
    i: usize,
    (record, domain): (&DnsRecord, &str),
    report: &mut Report,
) -> Option<String> {
    let field = |name: &str| format!("records[{i}].{name}");
    if record.ttl > MOST_TTL {
        let rule = format!("{} exceeds {MOST_TTL}, a week", record.ttl);
        report.add(at, field("ttl"), rule);
    }
    let kind = &*record.r#type;
    if !TYPES.contains(&kind) {
        let shown: String = kind.chars().take(100).collect();
        let rule = format!("'{shown}' is none of {}", TYPES.join(", "));
        report.add(at, field("type"), rule);
        return None;
    }
    if record.serving_only && !matches!(kind, "A" | "AAAA") {
        let rule = format!("is for A and AAAA: data of {kind} are never left out");
        report.add(at, field("serving_only"), rule);
    }
    let most = if kind == "CNAME" {
        1
    } else {
        limits::RECORD_DATA
    };
    if record.data.is_empty() {
        report.add(at, field("data"), "a record needs at least one");
    }
    let bound = (&*format!("a record of type {kind} has"), most, "data");
    if report.within(at, field("data"), record.data.len(), bound) {
        let mut known = HashSet::new();
        for (j, text) in record.data.iter().enumerate() {
            let field = format!("records[{i}].data[{j}]");
            if let Some(data) = report.take(at, &*field, Data::parse(kind, text))
                && !known.insert(data)
            {
                report.add(at, field, "is given twice");
            }
        }
    }
    let whole = name_in(&record.name, domain);
    if whole.is_none() {
        let shown: String = record.name.chars().take(100).collect();
        let rule = format!(
            "'{shown}' is not a name in '{domain}': labels of letters, digits, inner hyphens and underscores, joined by dots, with the domain at most \
             253 characters"
        );
        report.add(at, field("name"), rule);
    }
    whole
}

/// No name of the zone stands for itself in the end, nor by more CNAMEs than are followed, within the zone. What leads from zone to zone is not looked at: a change
/// of one would make another wrong, and whoever answers stops after [`MAX_CHAIN`] anyway.
fn check_chains(at: At<'_>, (zone, domain): (&DnsZone, &str), report: &mut Report) {
    let aliases = zone.records.iter().enumerate();
    let aliases = aliases.filter(|(_, record)| record.r#type == "CNAME");
    let aliases: Vec<(usize, String, String)> = aliases
        .filter_map(|(i, record)| {
            let target = name(record.data.first()?)?;
            Some((i, name_in(&record.name, domain)?, target))
        })
        .collect();
    let targets: HashMap<&str, &str> = aliases
        .iter()
        .map(|(_, whole, target)| (&**whole, &**target))
        .collect();
    for (i, first, target) in &aliases {
        let mut next = Some(&**target);
        let mut followed = 0;
        while let Some(at_name) = next {
            followed += 1;
            if at_name == first || followed > MAX_CHAIN {
                let rule = if at_name == first {
                    format!("'{first}' stands for itself in the end")
                } else {
                    format!("'{first}' leads to another CNAME more than {MAX_CHAIN} times")
                };
                report.add(at, format!("records[{i}].data[0]"), rule);
                break;
            }
            next = targets.get(at_name).copied();
        }
    }
}

fn zones_of<'a>(index: &Index<'a>, vpc: &'a str) -> impl Iterator<Item = &'a DnsZone> {
    let zones = index.state.of_vpc_and_kind(vpc, Kind::DnsZone);
    zones.filter_map(|object| match object {
        Object::DnsZone(zone) => Some(zone),
        _ => None,
    })
}

fn data_of(zone: &DnsZone) -> usize {
    zone.records.iter().map(|record| record.data.len()).sum()
}
