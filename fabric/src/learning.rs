//! What a controller tells a host of VPCs whose ports it learns (decision 018), from all that there is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft_dataplane::packet::parse::word_address;
use weft_dataplane::snapshot::Asked;
use weft_proto::state::State;
use weft_proto::v1::{LearnedAddress, Learning, Objects, Port};

/// As hosts ask for it.
pub(crate) fn text(asked: Asked) -> String {
    match asked {
        Asked::Address(address) => word_address(address).to_string(),
        Asked::Mac(mac) => mac.to_string(),
    }
}

/// The address of a text, so that one is the same however it is written.
fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

/// Ports that something names by their ids, and addresses that stand for ports.
#[derive(Default)]
struct Named<'o> {
    ids: BTreeSet<&'o str>,
    addresses: BTreeSet<(&'o str, IpAddr)>,
}

impl<'o> Named<'o> {
    fn by(objects: &'o Objects) -> Self {
        let mut named = Self::default();
        for table in &objects.route_tables {
            named.ids.extend(table.ports());
        }
        for balancer in &objects.load_balancers {
            for member in balancer.members() {
                named.ids.insert(&member.port);
                let served = address(&member.address);
                named
                    .addresses
                    .extend(served.map(|served| (&*balancer.vpc, served)));
            }
        }
        for elastic in &objects.elastic_ips {
            named.ids.insert(&elastic.port);
        }
        for nat in &objects.nat_gateways {
            for forward in &nat.port_forwards {
                named.ids.insert(&forward.port);
                let private = address(&forward.private_address);
                named
                    .addresses
                    .extend(private.map(|private| (&*nat.vpc, private)));
            }
        }
        named
    }

    fn has(&self, port: &Port) -> bool {
        let mut addresses = port.addresses.iter().filter_map(|text| address(text));
        self.ids.contains(&*port.id)
            || addresses.any(|address| self.addresses.contains(&(&*port.vpc, address)))
    }
}

/// What a host is told that has asked for these: VPCs, each with an address or a MAC. `inside`: addresses of VPCs for which others stand.
pub(crate) fn told<'a>(
    mut objects: Objects,
    host: &str,
    learned: &BTreeSet<(String, String)>,
    inside: impl Iterator<Item = (&'a str, u128)>,
) -> State {
    let mut carriers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for port in &objects.ports {
        let hosts = carriers.entry(port.vpc.clone()).or_default();
        hosts.insert(port.host.clone());
    }
    let on_wire = objects.subnets.iter();
    let on_wire = on_wire.filter(|subnet| !subnet.external_network.is_empty());
    let on_wire: BTreeSet<String> = on_wire.map(|subnet| subnet.vpc.clone()).collect();
    let inside: BTreeSet<(&str, IpAddr)> = inside
        .map(|(vpc, address)| (vpc, word_address(address)))
        .collect();
    let named = Named::by(&objects);
    let is_learned = |port: &Port, text: &str| {
        let text = address(text).map_or_else(|| text.to_owned(), |it| it.to_string());
        learned.contains(&(port.vpc.clone(), text))
    };
    let is_told = |port: &Port| {
        let mut addresses = port.addresses.iter();
        on_wire.contains(&port.vpc)
            || port.host == host
            || port.moved_from == host
            || port.unguarded
            || !port.allowed_pairs.is_empty()
            || named.has(port)
            || is_learned(port, &port.mac.to_lowercase())
            || addresses.any(|text| {
                let stands = address(text).is_some_and(|it| inside.contains(&(&*port.vpc, it)));
                stands || is_learned(port, text)
            })
    };
    let (told, untold): (Vec<Port>, Vec<Port>) = objects.ports.iter().cloned().partition(is_told);
    objects.ports = told;
    let unknown: BTreeSet<(&str, &str)> = untold
        .iter()
        .flat_map(|port| port.addresses.iter().map(|text| (&*port.vpc, &**text)))
        .collect();
    // Members of groups are addresses of ports of the group's VPC, and of those that peerings join to it. Those that are no port's stay.
    let joined = objects.peerings.iter();
    let joined: Vec<(String, String)> = joined
        .flat_map(|it| {
            let ends = (it.requester.clone(), it.accepter.clone());
            [(ends.1.clone(), ends.0.clone()), ends]
        })
        .collect();
    let is_known = |vpc: &str, member: &str| {
        let others = joined.iter().filter(|(own, _)| own == vpc);
        let mut vpcs = others.map(|(_, other)| &**other).chain([vpc]);
        vpcs.all(|vpc| !unknown.contains(&(vpc, member)))
    };
    for group in &mut objects.security_groups {
        let vpc = &group.vpc;
        group.members.retain(|member| is_known(vpc, member));
    }
    for part in &mut objects.group_members {
        let vpc = &part.vpc;
        part.members.retain(|member| is_known(vpc, member));
    }
    for vpc in &mut objects.vpcs {
        if !on_wire.contains(&vpc.id) {
            let hosts = carriers.remove(&vpc.id).unwrap_or_default();
            vpc.learning = Some(Learning {
                hosts: hosts.into_iter().collect(),
            });
        }
    }
    let is_there = |vpc: &str| {
        objects
            .vpcs
            .iter()
            .any(|it| it.id == vpc && it.learning.is_some())
    };
    let learned = learned.iter().filter(|(vpc, _)| is_there(vpc));
    objects.learned_addresses = learned
        .map(|(vpc, text)| LearnedAddress::new(vpc, text))
        .collect();
    State::from_objects(objects).unwrap_or_default()
}
