//! Compiles the intent of all tenants into the state of one host: only the objects that the host needs.
//!
//! Of each VPC that has ports on the host: the VPC, its subnets, every port with its host, the policy and routes of the local ports, the
//! members of the groups that this policy names, and the hosts that may have to be reached. A host that a port has just left also gets the
//! VPC, so that it can forward to the port's new host. Ports of other hosts come without device, groups and pairs; subnets without a port
//! here come without DHCP settings. Of a VPC that a peering joins to one of these: where its addresses are. The result passes
//! [`Scope::Node`](weft_proto::validate::Scope), and changes only when something that the host acts on changes.

use std::collections::{BTreeMap, BTreeSet};

use weft_proto::peering::SideState;
use weft_proto::state::{Kind, Object, State};
use weft_proto::v1::{Host, Port, PrefixList, RouteTable, SecurityGroup, Subnet};
use weft_proto::{mtu, v1};

use crate::version::Version;

/// The state of a host; nothing when the intent has no such host, or it runs no weftd.
pub fn compile(version: &Version, host: &str) -> Option<State> {
    let own = version.host(host)?;
    let hosts: BTreeMap<&str, &Host> = version
        .state
        .iter()
        .map_while(|object| match object {
            Object::Host(host) => Some((host.id.as_str(), host)),
            _ => None,
        })
        .collect();
    let mut state = State::default();
    let mut needed = BTreeSet::from([own.id.as_str()]);
    let vpcs = version.vpcs_of(host);
    for vpc in &vpcs {
        let objects = Objects::of(version, vpc);
        objects.compile(host, &hosts, &mut needed, &mut state);
    }
    for object in version.state.of_kind(Kind::Peering) {
        let Object::Peering(peering) = object else {
            continue;
        };
        let own = |vpc: &&str| vpcs.contains(*vpc);
        if !peering.vpcs().iter().any(own) {
            continue;
        }
        state.insert(object.clone());
        for vpc in peering.vpcs().iter().filter(|vpc| !own(vpc)) {
            let objects = Objects::of(version, vpc);
            // One that is deleted still has to be told from what never was.
            let is_known = |state: SideState| state.is_agreed() || state == SideState::Deleted;
            if peering.states().into_iter().all(is_known) {
                objects.compile_from_afar(&hosts, &mut needed, &mut state);
            } else if let Some(vpc) = objects.vpc {
                state.insert(Object::Vpc(vpc.clone()));
            }
        }
    }
    add_remote_groups(version, &mut state);
    for id in needed {
        if let Some(host) = hosts.get(id) {
            state.insert(Object::Host((*host).clone()));
        }
    }
    Some(state)
}

/// The objects of one VPC, by kind.
#[derive(Default)]
struct Objects<'a> {
    vpc: Option<&'a v1::Vpc>,
    subnets: Vec<&'a Subnet>,
    route_tables: BTreeMap<&'a str, &'a RouteTable>,
    network_acls: BTreeMap<&'a str, &'a v1::NetworkAcl>,
    prefix_lists: BTreeMap<&'a str, &'a PrefixList>,
    groups: BTreeMap<&'a str, &'a SecurityGroup>,
    /// Only those that live somewhere.
    ports: Vec<&'a Port>,
}

impl<'a> Objects<'a> {
    fn of(version: &'a Version, vpc: &str) -> Self {
        let mut all = Self::default();
        for object in version.objects_of(vpc) {
            match object {
                Object::Host(_) | Object::Quota(_) | Object::Peering(_) => {}
                Object::Vpc(o) => all.vpc = Some(o),
                Object::Subnet(o) => all.subnets.push(o),
                Object::RouteTable(o) => drop(all.route_tables.insert(&o.id, o)),
                Object::NetworkAcl(o) => drop(all.network_acls.insert(&o.id, o)),
                Object::PrefixList(o) => drop(all.prefix_lists.insert(&o.id, o)),
                Object::SecurityGroup(o) => drop(all.groups.insert(&o.id, o)),
                Object::Port(o) if o.host.is_empty() => {}
                Object::Port(o) => all.ports.push(o),
            }
        }
        all
    }

    fn compile(
        &self,
        host: &str,
        hosts: &BTreeMap<&str, &'a Host>,
        needed: &mut BTreeSet<&'a str>,
        state: &mut State,
    ) {
        if let Some(vpc) = self.vpc {
            state.insert(Object::Vpc(vpc.clone()));
        }
        self.compile_subnets(host, hosts, needed, state);
        self.compile_policy(host, state);
        for port in &self.ports {
            needed.insert(&port.host);
            let mut seen = if port.host == host {
                needed.insert(&port.moved_from);
                (*port).clone()
            } else {
                seen_from_afar(port)
            };
            if port.moved_from == host {
                seen.moved_from = host.to_owned();
            }
            state.insert(Object::Port(seen));
        }
    }

    /// What a host without ports of the VPC needs, where a peering joins it to one that has: where each address is.
    fn compile_from_afar(
        &self,
        hosts: &BTreeMap<&str, &'a Host>,
        needed: &mut BTreeSet<&'a str>,
        state: &mut State,
    ) {
        if let Some(vpc) = self.vpc {
            state.insert(Object::Vpc(vpc.clone()));
        }
        self.compile_subnets("", hosts, needed, state);
        for port in &self.ports {
            needed.insert(&port.host);
            state.insert(Object::Port(seen_from_afar(port)));
        }
    }

    /// Subnets, with the routes and ACLs of those that have ports here.
    fn compile_subnets(
        &self,
        host: &str,
        hosts: &BTreeMap<&str, &'a Host>,
        needed: &mut BTreeSet<&'a str>,
        state: &mut State,
    ) {
        let local: BTreeSet<&str> = self
            .ports
            .iter()
            .filter(|port| port.host == host)
            .map(|port| port.subnet.as_str())
            .collect();
        let carriers = self.carriers(hosts);
        for subnet in &self.subnets {
            let mut seen = (*subnet).clone();
            // Told rather than derived: a host does not see every host that carries the VPC.
            seen.mtu = mtu::effective(subnet, carriers.iter().copied());
            if local.contains(subnet.id.as_str()) {
                if let Some(table) = self.route_tables.get(subnet.route_table.as_str()) {
                    needed.extend(table.hosts());
                    state.insert(Object::RouteTable((*table).clone()));
                }
                if let Some(acl) = self.network_acls.get(subnet.network_acl.as_str()) {
                    state.insert(Object::NetworkAcl((*acl).clone()));
                }
            } else {
                seen.route_table.clear();
                seen.network_acl.clear();
                seen.dhcp = None;
            }
            state.insert(Object::Subnet(seen));
        }
    }

    /// The groups of local ports, and what their rules name.
    fn compile_policy(&self, host: &str, state: &mut State) {
        let local: BTreeSet<&str> = self
            .ports
            .iter()
            .filter(|port| port.host == host)
            .flat_map(|port| port.security_groups.iter().map(String::as_str))
            .collect();
        let rules = local
            .iter()
            .filter_map(|id| self.groups.get(id))
            .flat_map(|group| &group.rules);
        let mut remotes = BTreeSet::new();
        for rule in rules {
            if !rule.remote_group.is_empty() {
                remotes.insert(rule.remote_group.as_str());
            }
            if let Some(list) = self.prefix_lists.get(rule.remote_prefix_list.as_str()) {
                state.insert(Object::PrefixList((*list).clone()));
            }
        }
        let mut members = self.members(&remotes);
        for id in local.union(&remotes) {
            let Some(group) = self.groups.get(id) else {
                continue;
            };
            state.insert(Object::SecurityGroup(SecurityGroup {
                id: group.id.clone(),
                vpc: group.vpc.clone(),
                rules: if local.contains(id) {
                    group.rules.clone()
                } else {
                    Vec::new()
                },
                members: members.remove(id).unwrap_or_default(),
            }));
        }
    }

    /// The addresses of the ports in each of these groups, sorted.
    fn members(&self, groups: &BTreeSet<&str>) -> BTreeMap<&'a str, Vec<String>> {
        let mut members: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for port in &self.ports {
            for group in &port.security_groups {
                if groups.contains(group.as_str()) {
                    let list = members.entry(group).or_default();
                    list.extend(port.addresses.iter().cloned());
                }
            }
        }
        for list in members.values_mut() {
            list.sort_unstable();
        }
        members
    }

    /// Hosts on which the VPC has ports or to which its routes point.
    fn carriers(&self, hosts: &BTreeMap<&str, &'a Host>) -> Vec<&'a Host> {
        let ports = self.ports.iter().map(|port| port.host.as_str());
        let tables = self.route_tables.values();
        let ids: BTreeSet<&str> = ports
            .chain(tables.flat_map(|table| table.hosts()))
            .collect();
        ids.iter().filter_map(|id| hosts.get(id).copied()).collect()
    }
}

/// The groups of other VPCs that groups of this host's ports name, with their members.
fn add_remote_groups(version: &Version, state: &mut State) {
    let named: BTreeSet<String> = state
        .of_kind(Kind::SecurityGroup)
        .filter_map(|object| match object {
            Object::SecurityGroup(group) => Some(group),
            _ => None,
        })
        .flat_map(|group| {
            group
                .rules
                .iter()
                .map(|rule| (&group.vpc, &rule.remote_group))
        })
        .filter(
            |(vpc, id)| match version.state.find(Kind::SecurityGroup, id) {
                Some(remote) => remote.vpc() != Some(vpc),
                None => false,
            },
        )
        .map(|(_, id)| id.clone())
        .collect();
    for id in named {
        let Some(Object::SecurityGroup(remote)) = version.state.find(Kind::SecurityGroup, &id)
        else {
            continue;
        };
        let vpc = Objects::of(version, &remote.vpc);
        let members = vpc.members(&BTreeSet::from([id.as_str()]));
        let rules = match state.find(Kind::SecurityGroup, &id) {
            Some(Object::SecurityGroup(known)) => known.rules.clone(),
            _ => Vec::new(),
        };
        state.insert(Object::SecurityGroup(SecurityGroup {
            id: id.clone(),
            vpc: remote.vpc.clone(),
            rules,
            members: members.into_values().next().unwrap_or_default(),
        }));
    }
}

/// A port as other hosts need it: who it is and where it lives.
fn seen_from_afar(port: &Port) -> Port {
    Port {
        id: port.id.clone(),
        vpc: port.vpc.clone(),
        subnet: port.subnet.clone(),
        mac: port.mac.clone(),
        addresses: port.addresses.clone(),
        host: port.host.clone(),
        ..Port::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Change;
    use weft_proto::validate::{Scope, validate};

    /// Three hosts; blue on h1 and h2, red on h3 and with a route to it from h1's blue subnet.
    const TOPOLOGY: &str = r#"
hosts:
  - {id: h1, vteps: [192.0.2.1]}
  - {id: h2, vteps: [192.0.2.2, "2001:db8::2"]}
  - {id: h3, vteps: [192.0.2.3]}
  - {id: h4, vteps: [192.0.2.4]}
vpcs: [{id: blue, vni: 1}, {id: red, vni: 2}]
subnets:
  - {id: a, vpc: blue, cidrs: [10.0.0.0/24], route_table: t-a, network_acl: acl-a}
  - {id: b, vpc: blue, cidrs: [10.0.1.0/24], route_table: t-b, network_acl: acl-b, dhcp: {domain: b.test}}
  - {id: r, vpc: red, cidrs: [10.0.0.0/24]}
route_tables:
  - {id: t-a, vpc: blue, routes: [{prefix: 0.0.0.0/0, host: h3}]}
  - {id: t-b, vpc: blue, routes: [{prefix: 0.0.0.0/0, ecmp: [{host: h4}, {port: b1}]}]}
network_acls: [{id: acl-a, vpc: blue}, {id: acl-b, vpc: blue}]
prefix_lists: [{id: used, vpc: blue}, {id: unused, vpc: blue}]
security_groups:
  - id: web
    vpc: blue
    rules:
      - {direction: ingress, remote_group: db}
      - {direction: ingress, remote_prefix_list: used}
  - {id: db, vpc: blue, rules: [{direction: ingress, remote_group: other}]}
  - {id: other, vpc: blue}
ports:
  - {id: a1, vpc: blue, subnet: a, mac: "02:00:00:00:00:01", addresses: [10.0.0.11], security_groups: [web],
     allowed_pairs: [{cidr: 10.5.0.0/16}], host: h1, device: {kind: netdev, name: v1}}
  - {id: b1, vpc: blue, subnet: b, mac: "02:00:00:00:00:02", addresses: [10.0.1.12], security_groups: [db],
     allowed_pairs: [{cidr: 10.6.0.0/16}], clamp_mss: true, host: h2, device: {kind: netdev, name: v1}}
  - {id: b2, vpc: blue, subnet: b, mac: "02:00:00:00:00:03", addresses: [10.0.1.11], security_groups: [db],
     host: h2, device: {kind: netdev, name: v2}}
  - {id: b3, vpc: blue, subnet: b, mac: "02:00:00:00:00:04", addresses: [10.0.1.13], security_groups: [db]}
  - {id: r1, vpc: red, subnet: r, mac: "02:00:00:00:00:01", addresses: [10.0.0.11], host: h3,
     device: {kind: netdev, name: v1}}
"#;

    fn version() -> Version {
        let objects = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
        let state = State::from_objects(objects).unwrap();
        assert_eq!(validate(&state, Scope::Intent), vec![]);
        Version::loaded(1, state)
    }

    fn compiled(version: &Version, host: &str) -> v1::Objects {
        let state = compile(version, host).unwrap();
        assert_eq!(validate(&state, Scope::Node { host }), vec![]);
        state.to_objects()
    }

    fn ids<T>(list: &[T], id: impl Fn(&T) -> &String) -> Vec<&str> {
        list.iter().map(|o| id(o).as_str()).collect()
    }

    #[test]
    fn a_host_gets_what_its_ports_need_and_nothing_else() {
        let version = version();
        let h1 = compiled(&version, "h1");
        assert_eq!(ids(&h1.vpcs, |o| &o.id), ["blue"]);
        assert_eq!(ids(&h1.subnets, |o| &o.id), ["a", "b"]);
        assert!(h1.subnets[1].dhcp.is_none(), "b has no port here");
        assert!(compiled(&version, "h2").subnets[1].dhcp.is_some());
        assert_eq!(ids(&h1.route_tables, |o| &o.id), ["t-a"]);
        assert_eq!(ids(&h1.network_acls, |o| &o.id), ["acl-a"]);
        assert_eq!(ids(&h1.prefix_lists, |o| &o.id), ["used"]);
        assert_eq!(
            ids(&h1.ports, |o| &o.id),
            ["a1", "b1", "b2"],
            "not the unbound b3"
        );
        // Its own, that of blue's other ports, and the one that its routes name.
        assert_eq!(ids(&h1.hosts, |o| &o.id), ["h1", "h2", "h3"]);
        assert_eq!(ids(&compiled(&version, "h4").hosts, |o| &o.id), ["h4"]);
        assert!(compile(&version, "h5").is_none());
    }

    #[test]
    fn remote_ports_come_without_device_and_policy() {
        let h1 = compiled(&version(), "h1");
        let [a1, b1, _] = h1.ports.as_slice() else {
            panic!("{:?}", h1.ports)
        };
        assert_eq!(a1.allowed_pairs.len(), 1);
        assert!(a1.device.is_some());
        assert_eq!(b1.addresses, ["10.0.1.12"]);
        assert_eq!(b1.host, "h2");
        assert!(b1.device.is_none() && b1.security_groups.is_empty());
        assert!(b1.allowed_pairs.is_empty() && !b1.clamp_mss);
    }

    #[test]
    fn a_group_that_is_only_a_remote_has_members_and_no_rules() {
        let h1 = compiled(&version(), "h1");
        let [db, web] = h1.security_groups.as_slice() else {
            panic!("{:?}", h1.security_groups)
        };
        assert_eq!((db.id.as_str(), db.rules.len()), ("db", 0));
        assert_eq!(db.members, ["10.0.1.11", "10.0.1.12"]);
        assert_eq!((web.id.as_str(), web.rules.len()), ("web", 2));
        assert!(web.members.is_empty(), "nobody names it");
    }

    #[test]
    fn every_host_is_told_the_same_mtu() {
        let version = version();
        for host in ["h1", "h2"] {
            let mtus: Vec<_> = compiled(&version, host)
                .subnets
                .iter()
                .map(|s| s.mtu)
                .collect();
            assert_eq!(mtus, [1430, 1430], "h2 has an IPv6 tunnel address");
        }
        assert_eq!(compiled(&version, "h3").subnets[0].mtu, 1450);
    }

    #[test]
    fn a_change_in_one_vpc_does_not_concern_hosts_of_another() {
        let before = version();
        let mut state = before.state.clone();
        let port = Object::Port(Port {
            id: "r2".into(),
            vpc: "red".into(),
            subnet: "r".into(),
            mac: "02:00:00:00:00:09".into(),
            host: "h3".into(),
            ..Port::default()
        });
        state.insert(port.clone());
        let change = Change {
            revision: 2,
            upserts: vec![port],
            deletes: vec![],
        };
        let after = before.next(&change, state);
        assert!(after.unchanged_since(1, after.vpcs_of("h1").iter()));
        assert!(!after.unchanged_since(1, after.vpcs_of("h3").iter()));
        assert_eq!(compile(&before, "h1"), compile(&after, "h1"));
    }

    /// Blue and red, joined: red's ports are on h3 alone, blue's on h1 and h2, and a group of blue's names one of red's.
    fn joined(states: &str) -> Version {
        let mut objects: v1::Objects = serde_yaml_ng::from_str(TOPOLOGY).unwrap();
        objects.subnets[2].cidrs = vec!["10.7.0.0/24".into()];
        objects.ports[4].addresses = vec!["10.7.0.11".into()];
        objects.ports[4].security_groups = vec!["red-web".into()];
        objects.security_groups.push(SecurityGroup {
            id: "red-web".into(),
            vpc: "red".into(),
            rules: vec![v1::SecurityRule {
                direction: "ingress".into(),
                ..v1::SecurityRule::default()
            }],
            ..SecurityGroup::default()
        });
        objects.security_groups[0].rules.push(v1::SecurityRule {
            direction: "ingress".into(),
            remote_group: "red-web".into(),
            ..v1::SecurityRule::default()
        });
        objects.peerings.push(v1::Peering {
            id: "p".into(),
            requester: "blue".into(),
            accepter: "red".into(),
            requester_state: states.into(),
            ..v1::Peering::default()
        });
        let state = State::from_objects(objects).unwrap();
        assert_eq!(validate(&state, Scope::Intent), vec![]);
        Version::loaded(1, state)
    }

    #[test]
    fn a_host_gets_where_a_joined_vpcs_ports_are_and_nothing_of_their_policy() {
        for state in ["active", "frozen", "deleted"] {
            let h1 = compiled(&joined(state), "h1");
            assert_eq!(ids(&h1.vpcs, |o| &o.id), ["blue", "red"]);
            assert_eq!(ids(&h1.peerings, |o| &o.id), ["p"]);
            assert_eq!(ids(&h1.subnets, |o| &o.id), ["a", "b", "r"]);
            let r1 = h1.ports.iter().find(|port| port.id == "r1").unwrap();
            assert_eq!(
                (r1.host.as_str(), &r1.addresses[..]),
                ("h3", &["10.7.0.11".to_owned()][..])
            );
            assert!(r1.device.is_none() && r1.security_groups.is_empty());
            let group = h1
                .security_groups
                .iter()
                .find(|group| group.id == "red-web");
            let group = group.unwrap();
            assert_eq!(
                (group.rules.len(), &group.members[..]),
                (0, &["10.7.0.11".to_owned()][..])
            );
        }
        // Red's own host has the group's rules, and its members for whoever names it there.
        let h3 = compiled(&joined("active"), "h3");
        assert_eq!(ids(&h3.ports, |o| &o.id), ["a1", "b1", "b2", "r1"]);
        let group = h3
            .security_groups
            .iter()
            .find(|group| group.id == "red-web");
        assert_eq!(group.unwrap().rules.len(), 1);
        assert!(
            h3.ports
                .iter()
                .all(|port| port.device.is_some() == (port.host == "h3"))
        );
    }

    #[test]
    fn before_a_peering_is_accepted_nothing_of_the_other_vpc_is_told() {
        for state in ["connecting", "rejected"] {
            let h1 = compiled(&joined(state), "h1");
            assert_eq!(ids(&h1.vpcs, |o| &o.id), ["blue", "red"]);
            assert_eq!(ids(&h1.subnets, |o| &o.id), ["a", "b"]);
            assert_eq!(ids(&h1.ports, |o| &o.id), ["a1", "b1", "b2"]);
        }
    }

    #[test]
    fn a_change_in_a_joined_vpc_concerns_the_hosts_of_both() {
        let before = joined("active");
        let mut state = before.state.clone();
        let Some(Object::Port(port)) = before.state.find(Kind::Port, "r1") else {
            panic!("it is there");
        };
        let mut moved = port.clone();
        moved.host = "h4".into();
        state.insert(Object::Port(moved.clone()));
        let change = Change {
            revision: 2,
            upserts: vec![Object::Port(moved)],
            deletes: vec![],
        };
        let after = before.next(&change, state);
        for host in ["h1", "h2", "h3"] {
            let vpcs = after.vpcs_concerning(host);
            let own = before.vpcs_concerning(host);
            assert!(!after.unchanged_since(1, vpcs.iter().chain(&own)), "{host}");
        }
    }
}
