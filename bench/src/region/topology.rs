//! The objects of a region: ports in VPCs, each next port on the next host. All have a MAC, an address, a device and a security group whose
//! members may send to each other.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use weft_proto::v1::{Device, Host, Objects, Port, SecurityGroup, SecurityRule, Subnet, Vpc};

/// Where the addresses of ports beyond the region's own begin within 10.0.0.0/8.
const MORE: usize = 1 << 23;

/// How many of the region's own ports a host asks for where it learns them.
const ASKED: usize = 64;

/// Of ports beyond the region's own, how many may be asked for before they come.
const MOST_TO_COME: usize = 10_000;

/// A region, by its sizes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Region {
    pub(super) ports: usize,
    pub(super) vpcs: usize,
    pub(super) hosts: usize,
    /// Ports in a security group, at most.
    pub(super) group: usize,
}

/// The id of a host by its number.
pub(super) fn host_id(number: usize) -> String {
    format!("h{number}")
}

/// The tunnel address of a host by its number, in 198.18.0.0/15.
pub(super) fn vtep(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xc612_0001 + number as u32)
}

impl Region {
    /// Spreads ports over VPCs evenly: there are fewer VPCs where some would have none.
    pub(super) fn new(ports: usize, vpcs: usize, hosts: usize, group: usize) -> Self {
        Self {
            ports,
            vpcs: ports.div_ceil(ports.div_ceil(vpcs)),
            hosts,
            group,
        }
    }

    fn ports_of_vpc(&self) -> usize {
        self.ports.div_ceil(self.vpcs)
    }

    fn groups_of_vpc(&self) -> usize {
        self.ports_of_vpc().div_ceil(self.group)
    }

    /// How many security groups there are.
    pub(super) fn groups(&self) -> usize {
        self.vpcs * self.groups_of_vpc()
    }

    fn host_of(&self, port: usize) -> usize {
        port % self.hosts
    }

    /// Everything but the ports.
    pub(super) fn base(&self) -> Objects {
        let hosts = (0..self.hosts).map(|number| Host {
            id: host_id(number),
            vteps: vec![vtep(number).to_string()],
            ..Host::default()
        });
        let groups = (0..self.groups()).map(|number| self.group(number, 443));
        let mut all = Objects {
            hosts: hosts.collect(),
            security_groups: groups.collect(),
            ..Objects::default()
        };
        for number in 0..self.vpcs {
            all.vpcs.push(Vpc {
                id: format!("v{number}"),
                vni: 1 + number as u32,
                ..Vpc::default()
            });
            all.subnets.push(Subnet {
                id: format!("s{number}"),
                vpc: format!("v{number}"),
                cidrs: vec!["10.0.0.0/8".into()],
                ..Subnet::default()
            });
        }
        all
    }

    /// A security group, with a rule for a TCP port.
    pub(super) fn group(&self, number: usize, tcp: u32) -> SecurityGroup {
        let id = format!("g{number}");
        let rule = SecurityRule {
            direction: "ingress".into(),
            ..SecurityRule::default()
        };
        SecurityGroup {
            vpc: format!("v{}", number / self.groups_of_vpc()),
            rules: vec![
                SecurityRule {
                    remote_group: id.clone(),
                    ..rule.clone()
                },
                SecurityRule {
                    protocol: "tcp".into(),
                    port_min: Some(tcp),
                    port_max: Some(tcp),
                    ..rule
                },
            ],
            id,
            ..SecurityGroup::default()
        }
    }

    /// One of the region's ports.
    pub(super) fn port(&self, number: usize) -> Port {
        let (vpc, within) = (number / self.ports_of_vpc(), number % self.ports_of_vpc());
        let group = vpc * self.groups_of_vpc() + within / self.group;
        let named = (format!("p{number}"), format!("g{group}"));
        port(named, vpc, 256 + within, self.host_of(number))
    }

    /// A port beyond the region's own, of the first group of a VPC, on one of the VPC's hosts. Up to seven millions may be told apart.
    pub(super) fn more(&self, number: usize, vpc: usize) -> Port {
        let group = vpc * self.groups_of_vpc();
        let host = self.host_of_more(number, vpc);
        let named = (format!("x{number}"), format!("g{group}"));
        port(named, vpc, MORE + number, host)
    }

    /// The addresses that a host asks for where it learns ports: of some of the region's own, and of some that are to come.
    pub(super) fn asked(&self, host: usize) -> Vec<String> {
        let own = (0..ASKED).map(|n| (host * 7919 + n * 104_729) % self.ports_of_vpc());
        let own = own.map(|within| address(256 + within));
        let more = (0..MOST_TO_COME).filter(|number| self.askers(*number).contains(&host));
        own.chain(more.map(|number| address(MORE + number)))
            .collect()
    }

    /// The hosts that ask for the address of a port beyond the region's own.
    fn askers(&self, number: usize) -> [usize; 2] {
        [1, 2].map(|n| (number * 104_729 + n * 7919) % self.hosts)
    }

    /// The hosts that such a port concerns where they learn ports.
    pub(super) fn hosts_that_learn_of(&self, number: usize) -> Vec<usize> {
        let host = self.host_of_more(number, 0);
        let mut all = BTreeSet::from(self.askers(number));
        all.insert(host);
        all.into_iter().collect()
    }

    fn host_of_more(&self, number: usize, vpc: usize) -> usize {
        let beside = vpc * self.ports_of_vpc() + number % self.ports_of_vpc();
        // The last VPC may have fewer ports.
        self.host_of(beside.min(self.ports - 1))
    }

    fn hosts_of(&self, from: usize, to: usize) -> Vec<usize> {
        let all = from..to.min(self.ports);
        let hosts: BTreeSet<usize> = all
            .take(self.hosts)
            .map(|port| self.host_of(port))
            .collect();
        hosts.into_iter().collect()
    }

    /// The hosts with ports of a VPC, which are those that one of its ports concerns.
    pub(super) fn hosts_of_vpc(&self, vpc: usize) -> Vec<usize> {
        let first = vpc * self.ports_of_vpc();
        self.hosts_of(first, first + self.ports_of_vpc())
    }

    /// The hosts with ports in a group, which are those that its rules concern.
    pub(super) fn hosts_of_group(&self, group: usize) -> Vec<usize> {
        let vpc = group / self.groups_of_vpc() * self.ports_of_vpc();
        let first = vpc + group % self.groups_of_vpc() * self.group;
        let end = (first + self.group).min(vpc + self.ports_of_vpc());
        self.hosts_of(first, end)
    }

    /// VPCs of which each host has a port of one at least.
    pub(super) fn vpcs_of_all_hosts(&self) -> Vec<usize> {
        (0..self.hosts.div_ceil(self.ports_of_vpc())).collect()
    }
}

fn address(number: usize) -> String {
    let [_, a, b, c] = (number as u32).to_be_bytes();
    format!("10.{a}.{b}.{c}")
}

fn port((id, group): (String, String), vpc: usize, number: usize, host: usize) -> Port {
    let [_, a, b, c] = (number as u32).to_be_bytes();
    Port {
        vpc: format!("v{vpc}"),
        subnet: format!("s{vpc}"),
        mac: format!("02:00:00:{a:02x}:{b:02x}:{c:02x}"),
        addresses: vec![address(number)],
        security_groups: vec![group],
        host: host_id(host),
        device: Some(Device {
            kind: "netdev".into(),
            name: id.clone(),
            ..Device::default()
        }),
        id,
        ..Port::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::state::State;
    use weft_proto::validate::{Scope, validate};

    #[test]
    fn a_region_is_valid_with_every_host_and_vpc_in_use() {
        for region in [
            Region::new(205, 1, 7, 100),
            Region::new(205, 21, 7, 100),
            Region::new(205, 150, 7, 100),
        ] {
            let mut objects = region.base();
            objects.ports = (0..region.ports).map(|port| region.port(port)).collect();
            for vpc in 0..region.vpcs {
                let port = region.more(vpc, vpc);
                let concerned = region.hosts_of_vpc(vpc);
                if vpc == 0 {
                    let learn = region.hosts_that_learn_of(vpc);
                    assert!(learn.iter().any(|host| host_id(*host) == port.host));
                    let asks = |host: &usize| region.asked(*host).contains(&port.addresses[0]);
                    assert!(learn.iter().any(asks));
                }
                assert!(concerned.iter().any(|host| host_id(*host) == port.host));
                objects.ports.push(port);
            }
            for group in 0..region.groups() {
                let hosts = region.hosts_of_group(group);
                let id = format!("g{group}");
                let own = objects.ports.iter().take(region.ports);
                let own = own.filter(|port| port.security_groups.contains(&id));
                let own: BTreeSet<String> = own.map(|port| port.host.clone()).collect();
                assert_eq!(own, hosts.iter().map(|host| host_id(*host)).collect());
            }
            let all = region.vpcs_of_all_hosts().into_iter();
            let all: BTreeSet<usize> = all.flat_map(|vpc| region.hosts_of_vpc(vpc)).collect();
            assert_eq!(all.len(), region.hosts);
            let violations = validate(&State::from_objects(objects).unwrap(), Scope::Intent);
            assert!(violations.is_empty(), "{violations:?}");
        }
    }
}
