//! Rules on hosts and VPC-IDs, and whether every tunnel that a VPC needs is possible and its MTU large enough.

use std::collections::{BTreeSet, HashMap};

use super::{At, Index, Report, limits};
use crate::address::{parse_address, special_use};
use crate::state::{Kind, Object};
use crate::{mtu, v1};

/// The largest VXLAN network identifier: 24 bits (RFC 7348 §5).
const MAX_VNI: u32 = 0xff_ffff;

pub(super) fn check_vpc(at: At<'_>, vpc: &v1::Vpc, report: &mut Report) {
    if vpc.vni == 0 || vpc.vni > MAX_VNI {
        report.add(at, "vni", format!("{} is outside 1 to {MAX_VNI}", vpc.vni));
    }
}

pub(super) fn check_host(at: At<'_>, host: &v1::Host, report: &mut Report) {
    if host.vteps.is_empty() {
        report.add(at, "vteps", "a host needs at least one tunnel address");
    }
    report.within(
        at,
        "vteps",
        host.vteps.len(),
        ("a host has", limits::HOST_VTEPS, "tunnel addresses"),
    );
    for (i, text) in host.vteps.iter().enumerate() {
        let field = format!("vteps[{i}]");
        let Some(address) = report.take(at, field.clone(), parse_address(text)) else {
            continue;
        };
        if let Some(what) = special_use(address.into()) {
            let rule = format!("{text} is not a routable unicast address: it is {what}");
            report.add(at, field, rule);
        }
    }
    if !matches!(host.encapsulation.as_str(), "" | "vxlan" | "gre") {
        report.add(
            at,
            "encapsulation",
            format!("'{}' is neither vxlan nor gre", host.encapsulation),
        );
    }
    check_physical_networks(at, host, report);
    let least = if mtu::has_ipv6(host) { 1280 } else { 576 };
    let carried = mtu::underlay(host);
    if carried < least || carried > 65535 {
        report.add(
            at,
            "underlay_mtu",
            format!("{carried} is outside {least} to 65535"),
        );
    }
}

fn check_physical_networks(at: At<'_>, host: &v1::Host, report: &mut Report) {
    let names = &host.physical_networks;
    let most = (
        "a host has",
        limits::HOST_PHYSICAL_NETWORKS,
        "physical networks",
    );
    if !report.within(at, "physical_networks", names.len(), most) {
        return;
    }
    if host.foreign && !names.is_empty() {
        let rule = "foreign equipment has none: no weftd runs there";
        report.add(at, "physical_networks", rule);
    }
    for (i, name) in names.iter().enumerate() {
        let field = format!("physical_networks[{i}]");
        if name.is_empty() {
            report.add(at, field, "an empty name");
        } else if names[..i].contains(name) {
            report.add(at, field, format!("'{name}' is given twice"));
        }
    }
}

/// A VPC-ID belongs to one VPC, a tunnel address to one host.
pub(super) fn check_uniqueness(index: &Index<'_>, report: &mut Report) {
    let (mut vnis, mut vteps) = (BTreeSet::new(), BTreeSet::new());
    for object in &index.objects {
        match object {
            Object::Vpc(vpc) => drop(vnis.insert(vpc.vni)),
            Object::Host(host) => {
                let vteps_of = host
                    .vteps
                    .iter()
                    .filter_map(|text| parse_address(text).ok());
                vteps.extend(vteps_of);
            }
            _ => {}
        }
    }
    for vni in vnis {
        let mut having = index.state.vpcs_with_vni(vni).map(Object::id);
        let Some(first) = having.next() else { continue };
        for id in having {
            let at = At {
                kind: Kind::Vpc,
                id,
            };
            report.add(at, "vni", format!("{vni} is already used by vpc '{first}'"));
        }
    }
    for address in vteps {
        let mut before = None;
        for object in index.state.hosts_with_vtep(address) {
            let Object::Host(host) = object else { continue };
            for (i, text) in host.vteps.iter().enumerate() {
                if text.parse() == Ok(address)
                    && let Some(other) = before.replace(&host.id)
                {
                    let at = At {
                        kind: Kind::Host,
                        id: &host.id,
                    };
                    let rule = format!("{address} is already used by host '{other}'");
                    report.add(at, format!("vteps[{i}]"), rule);
                }
            }
        }
    }
}

/// Every two hosts that carry a VPC have a tunnel between them, and it carries the VPC's largest packets.
pub(super) fn check_carriers(index: &Index<'_>, report: &mut Report) {
    let mut largest: HashMap<&str, (u32, &str)> = HashMap::new();
    for object in &index.objects {
        // What is on an external network needs no tunnel.
        if let Object::Subnet(subnet) = object
            && subnet.external_network.is_empty()
        {
            let mtu = mtu::effective(subnet, index.carriers_of(&subnet.vpc));
            let entry = largest.entry(&subnet.vpc).or_insert((mtu, &subnet.id));
            if mtu > entry.0 {
                *entry = (mtu, &subnet.id);
            }
        }
    }
    for object in &index.objects {
        let Object::Vpc(vpc) = object else { continue };
        if index.state.wire_of(&vpc.id).is_some() {
            continue;
        }
        check_families(vpc, index, report);
        let Some(&(mtu, subnet)) = largest.get(vpc.id.as_str()) else {
            continue;
        };
        let at = At {
            kind: Kind::Subnet,
            id: subnet,
        };
        for host in index.carriers_of(&vpc.id) {
            let (overhead, carried) = (mtu::overhead(host), mtu::underlay(host));
            if mtu + overhead > carried {
                let rule = format!(
                    "{mtu} and {overhead} of tunnel exceed the underlay_mtu {carried} of host '{}'; at most {} fits",
                    host.id,
                    carried.saturating_sub(overhead)
                );
                report.add(at, "mtu", rule);
            }
        }
    }
}

fn check_families(vpc: &v1::Vpc, index: &Index<'_>, report: &mut Report) {
    let only = |v6: bool| {
        move |host: &&v1::Host| {
            !host.vteps.is_empty() && host.vteps.iter().all(|vtep| vtep.contains(':') == v6)
        }
    };
    let v4 = index.carriers_of(&vpc.id).find(only(false));
    let v6 = index.carriers_of(&vpc.id).find(only(true));
    if let (Some(v4), Some(v6)) = (v4, v6) {
        let at = At {
            kind: Kind::Vpc,
            id: &vpc.id,
        };
        let rule = format!(
            "host '{}' has only IPv4 tunnel addresses and host '{}' only IPv6: no tunnel can join them",
            v4.id, v6.id
        );
        report.add(at, "", rule);
    }
}
