//! Route tables, with their policy routes.

use ipnetwork::IpNetwork;
use weft_proto::address::parse_protocol;
use weft_proto::state::Kind;
use weft_proto::v1;

use super::super::{NextHop, Subnet, Target};
use super::{Draft, Map, Objects, Places, Report};
use crate::packet::Mac;
use crate::packet::parse::protocol;
use crate::route::ecmp::{self, Group, Member};
use crate::route::policies::{Match, Policy};
use crate::route::{Policies, Prefix, Table, TableBuilder};

impl Draft<'_> {
    /// Compiles each table that is used, once for all its subnets.
    pub(super) fn fill_routes(&mut self, objects: &Objects<'_>) {
        let tables: Map<&str, &v1::RouteTable> = objects
            .route_tables
            .iter()
            .map(|table| (table.id.as_str(), *table))
            .collect();
        for subnet in &objects.subnets {
            let id = &subnet.route_table;
            let Some(place) = self.places.subnets.get(&subnet.id).copied() else {
                continue;
            };
            if id.is_empty() {
                continue;
            }
            let Some(table) = tables.get(id.as_str()) else {
                let rule = format!("'{id}' does not exist");
                self.report
                    .add(Kind::Subnet, &subnet.id, "route_table", rule);
                continue;
            };
            self.places
                .named_ports
                .extend(table.ports().map(str::to_owned));
            let users = self.places.users.entry(id.clone()).or_default();
            users.push(place);
            let compiled = match users[..] {
                [first, _, ..] => Compiled::of(&self.subnets[first]),
                _ => {
                    let is_down = |port: &str| {
                        let found_in = objects.down_ports.get(port);
                        found_in.is_some_and(|vpc| **vpc == *table.vpc)
                    };
                    compile_table(table, (&self.places, &is_down), &mut self.report)
                }
            };
            compiled.put(&mut self.subnets[place]);
        }
    }
}

/// A route table as the subnets that use it have it.
#[derive(Debug, Clone)]
pub(super) struct Compiled {
    routes: Table<Target>,
    policies: Policies<Target>,
}

impl Compiled {
    fn of(subnet: &Subnet) -> Self {
        Self {
            routes: subnet.routes.clone(),
            policies: subnet.policies.clone(),
        }
    }

    /// Gives it to a subnet.
    pub(super) fn put(self, subnet: &mut Subnet) {
        subnet.routes = self.routes;
        subnet.policies = self.policies;
    }
}

/// Where next hops are, and whether the appliance at a port does not live.
type Hops<'a> = (&'a Places, &'a dyn Fn(&str) -> bool);

pub(super) fn compile_table(
    table: &v1::RouteTable,
    hops: Hops<'_>,
    report: &mut Report,
) -> Compiled {
    let mut builder = TableBuilder::default();
    for (i, route) in table.routes.iter().enumerate() {
        let target = target_of(&table.vpc, route, hops);
        match (route.prefix.parse::<IpNetwork>(), target) {
            (Ok(network), Ok(target)) => {
                if let Err(error) = builder.insert(network.into(), target) {
                    let rule = error.to_string();
                    report.add(Kind::RouteTable, &table.id, "routes", rule);
                    break;
                }
            }
            (Err(_), _) => {
                let field = format!("routes[{i}].prefix");
                report.add(Kind::RouteTable, &table.id, field, "is a prefix");
            }
            (_, Err(rule)) => {
                report.add(Kind::RouteTable, &table.id, format!("routes[{i}]"), rule);
            }
        }
    }
    builder.compact();
    Compiled {
        routes: builder.table().clone(),
        policies: compile_policies(table, hops, report),
    }
}

fn compile_policies(
    table: &v1::RouteTable,
    hops: Hops<'_>,
    report: &mut Report,
) -> Policies<Target> {
    let mut policies = Vec::with_capacity(table.policies.len());
    for (i, policy) in table.policies.iter().enumerate() {
        let target = policy.to.as_ref();
        let target = target.map(|route| target_of(&table.vpc, route, hops));
        match (matches(policy), target.transpose()) {
            (Ok(matches), Ok(target)) => policies.push(Policy {
                // What lies beyond was refused.
                priority: policy.priority as u16,
                matches,
                target,
            }),
            (Err(rule), _) | (_, Err(rule)) => {
                let field = format!("policies[{i}]");
                report.add(Kind::RouteTable, &table.id, field, rule);
            }
        }
    }
    Policies::new(policies)
}

fn matches(policy: &v1::PolicyRoute) -> Result<Match, String> {
    let prefix = |text: &str| -> Result<Option<Prefix>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let network: IpNetwork = text.parse().map_err(|_| format!("'{text}' is no prefix"))?;
        Ok(Some(network.into()))
    };
    let protocol = parse_protocol(&policy.protocol).map_err(|error| error.to_string())?;
    // What is no port was refused.
    let port = |given: Option<u32>, otherwise: u16| given.map_or(otherwise, |port| port as u16);
    let source = match (protocol, &*policy.source) {
        // ICMP is IPv4's, and ICMPv6 is IPv6's.
        (Some(protocol::ICMP), "") => prefix("0.0.0.0/0")?,
        (Some(protocol::ICMPV6), "") => prefix("::/0")?,
        (_, text) => prefix(text)?,
    };
    Ok(Match {
        source,
        destination: prefix(&policy.destination)?,
        protocol,
        source_ports: port(policy.source_port_min, 0)..=port(policy.source_port_max, u16::MAX),
        destination_ports: port(policy.destination_port_min, 0)
            ..=port(policy.destination_port_max, u16::MAX),
        dscp: policy.dscp.map(|dscp| dscp as u8),
    })
}

fn next_hop(port: &str, host: &str, mac: &str, places: &Places) -> Result<NextHop, String> {
    if !port.is_empty() {
        return Ok(places
            .endpoints
            .get(port)
            .map_or(NextHop::Gone, |endpoint| NextHop::Port(*endpoint)));
    }
    let mac = if mac.is_empty() {
        Mac::ROUTER
    } else {
        mac.parse()
            .map_err(|error: crate::packet::mac::MacError| error.to_string())?
    };
    Ok(places
        .peers
        .get(host)
        .map_or(NextHop::Gone, |peer| NextHop::Peer(*peer, mac)))
}

fn target_of(vpc: &str, route: &v1::Route, (places, is_down): Hops<'_>) -> Result<Target, String> {
    let given = [
        route.blackhole,
        route.local,
        !route.port.is_empty(),
        !route.host.is_empty(),
        !route.ecmp.is_empty(),
        !route.peering.is_empty(),
        !route.nat.is_empty(),
        !route.external.is_empty(),
    ];
    if given.iter().filter(|given| **given).count() != 1 {
        let rule =
            "has exactly one of blackhole, local, port, host, ecmp, peering, nat and external";
        return Err(rule.to_owned());
    }
    if route.blackhole {
        return Ok(Target::Blackhole);
    }
    if route.local {
        return Ok(Target::Local);
    }
    if !route.peering.is_empty() {
        let own = places.vpcs.get(vpc).copied();
        let ends = places.peerings.get(&route.peering).into_iter().flatten();
        let mut ends = ends.filter(|(vpc, _)| Some(*vpc) == own);
        return Ok(Target::Peering(ends.next().map(|(_, at)| *at)));
    }
    if !route.nat.is_empty() {
        return Ok(Target::Nat(places.nat_gateways.get(&route.nat).copied()));
    }
    if !route.external.is_empty() {
        let network = places.networks.get(&route.external);
        return Ok(Target::External(network.copied()));
    }
    if route.ecmp.is_empty() {
        return next_hop(&route.port, &route.host, &route.next_hop_mac, places).map(Target::Hop);
    }
    let mut members = Vec::with_capacity(route.ecmp.len());
    for hop in &route.ecmp {
        let target = next_hop(&hop.port, &hop.host, &hop.next_hop_mac, places)?;
        if target != NextHop::Gone && !is_down(&hop.port) {
            let identity = ecmp::identity(
                format!("{}|{}|{}", hop.port, hop.host, hop.next_hop_mac).as_bytes(),
            );
            members.push(Member {
                identity,
                weight: hop.weight.clamp(1, 65535) as u16,
                target,
            });
        }
    }
    Ok(Target::Ecmp(Group::new(members)))
}
