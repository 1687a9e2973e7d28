//! Security groups and network ACLs: is there a rule, and what does it say.

use std::net::IpAddr;

use weft_proto::v1;

use super::frame::{Detail, Flow, ICMP, ICMPV6};
use super::world::{World, prefix_holds};

/// What a rule is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    pub v4: bool,
    pub protocol: u8,
    /// The destination port.
    pub port: u16,
    pub icmp: (u8, u8),
    /// The far end.
    pub remote: IpAddr,
}

impl Question {
    pub fn about(flow: &Flow, icmp: Option<(u8, u8)>, remote: IpAddr) -> Self {
        Self {
            v4: flow.source.is_ipv4(),
            protocol: flow.protocol,
            port: match flow.detail {
                Detail::Ports(_, destination) => destination,
                _ => 0,
            },
            icmp: icmp.unwrap_or_default(),
            remote,
        }
    }

    fn is_of_family(&self, family: &str) -> bool {
        match family {
            "ipv4" => self.v4,
            "ipv6" => !self.v4,
            _ => true,
        }
    }

    fn is_of_service(
        &self,
        protocol: &str,
        ports: (Option<u32>, Option<u32>),
        icmp: (Option<u32>, Option<u32>),
    ) -> bool {
        let number = match protocol {
            "" | "any" => return true,
            "tcp" => 6,
            "udp" => 17,
            "icmp" => ICMP,
            "icmpv6" => ICMPV6,
            "sctp" => 132,
            number => number.parse().unwrap(),
        };
        // ICMP is IPv4's, ICMPv6 is IPv6's.
        let family = (number != ICMP || self.v4) && (number != ICMPV6 || !self.v4);
        let equals = |wanted: Option<u32>, found: u8| wanted.is_none_or(|w| w == u32::from(found));
        family
            && number == self.protocol
            && ports.0.is_none_or(|low| u32::from(self.port) >= low)
            && ports.1.is_none_or(|high| u32::from(self.port) <= high)
            && equals(icmp.0, self.icmp.0)
            && equals(icmp.1, self.icmp.1)
    }
}

/// A subnet's ACL, in one direction: the lowest number that matches decides; none denies.
pub fn acl_allows(acl: Option<&v1::NetworkAcl>, direction: &str, question: &Question) -> bool {
    let Some(acl) = acl else { return true };
    let matches = |rule: &&v1::AclRule| {
        rule.direction == direction
            && (rule.cidr.is_empty() || prefix_holds(&rule.cidr, question.remote))
            && question.is_of_service(
                &rule.protocol,
                (rule.port_min, rule.port_max),
                (rule.icmp_type, rule.icmp_code),
            )
    };
    let first = acl
        .rules
        .iter()
        .filter(matches)
        .min_by_key(|rule| rule.number);
    first.is_some_and(|rule| rule.action == "allow")
}

/// A port's groups, in one direction: any rule admits; without any rule out is open and in is shut.
pub fn groups_allow(world: &World, port: &v1::Port, direction: &str, question: &Question) -> bool {
    let mut rules = port
        .security_groups
        .iter()
        .flat_map(|id| &world.group(id).rules)
        .filter(|rule| rule.direction == direction)
        .peekable();
    if rules.peek().is_none() {
        return direction == "egress";
    }
    rules.any(|rule| {
        let remote = if !rule.remote_group.is_empty() {
            world
                .members(&rule.remote_group)
                .any(|m| m.parse() == Ok(question.remote))
        } else if !rule.remote_prefix_list.is_empty() {
            let list = world.prefix_list(&rule.remote_prefix_list);
            list.prefixes
                .iter()
                .any(|p| prefix_holds(p, question.remote))
        } else {
            rule.remote_cidr.is_empty() || prefix_holds(&rule.remote_cidr, question.remote)
        };
        remote
            && question.is_of_family(&rule.family)
            && question.is_of_service(
                &rule.protocol,
                (rule.port_min, rule.port_max),
                (rule.icmp_type, rule.icmp_code),
            )
    })
}
