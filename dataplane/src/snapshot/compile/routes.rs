//! Route tables.

use ipnetwork::IpNetwork;
use weft_proto::state::Kind;
use weft_proto::v1;

use super::super::{NextHop, Target};
use super::{Draft, Map, Objects, Places, Report};
use crate::packet::Mac;
use crate::route::ecmp::{self, Group, Member};
use crate::route::{Table, TableBuilder};

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
                .extend(ports_of(table).map(str::to_owned));
            let users = self.places.users.entry(id.clone()).or_default();
            users.push(place);
            self.subnets[place].routes = match users[..] {
                [first, _, ..] => self.subnets[first].routes.clone(),
                _ => compile_table(table, &self.places, &mut self.report),
            };
        }
    }
}

/// The ports that the routes of a table name.
pub(super) fn ports_of(table: &v1::RouteTable) -> impl Iterator<Item = &str> {
    let single = table.routes.iter().map(|route| &route.port);
    let several = table.routes.iter().flat_map(|route| &route.ecmp);
    let ports = single.chain(several.map(|hop| &hop.port));
    ports.map(String::as_str).filter(|port| !port.is_empty())
}

pub(super) fn compile_table(
    table: &v1::RouteTable,
    places: &Places,
    report: &mut Report,
) -> Table<Target> {
    let mut builder = TableBuilder::default();
    for (i, route) in table.routes.iter().enumerate() {
        let target = target(&table.vpc, route, places);
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
    builder.table().clone()
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

fn target(vpc: &str, route: &v1::Route, places: &Places) -> Result<Target, String> {
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
        if target != NextHop::Gone {
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
