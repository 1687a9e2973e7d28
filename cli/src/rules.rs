//! The flags by which rules and routes are written on the command line.

use clap::Args;
use weft_proto::v1::{AclRule, NextHop, Route, SecurityRule};

use crate::Usage;

/// What a rule matches.
#[derive(Debug, Clone, Args)]
pub(crate) struct Match {
    /// Direction: ingress (towards the port) or egress (from it).
    #[arg(long, default_value = "ingress")]
    direction: String,
    /// Protocol: any, tcp, udp, icmp, icmpv6, sctp or a number.
    #[arg(long, default_value = "any")]
    protocol: String,
    /// Destination port, or a range such as 8000-8999.
    #[arg(long, value_name = "PORT[-PORT]")]
    port: Option<Range>,
    #[arg(long)]
    icmp_type: Option<u32>,
    #[arg(long)]
    icmp_code: Option<u32>,
}

/// A range of ports, both bounds included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range(u32, u32);

impl Range {
    /// The first and the last port.
    pub(crate) fn bounds(self) -> (u32, u32) {
        (self.0, self.1)
    }
}

impl std::str::FromStr for Range {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| {
            text.parse()
                .map_err(|_| Usage(format!("'{text}' is not a port number")))
        };
        Ok(Self(number(min)?, number(max)?))
    }
}

/// A rule of a security group.
#[derive(Debug, Args)]
pub(crate) struct GroupRule {
    #[command(flatten)]
    matches: Match,
    /// Remote prefix.
    #[arg(long, default_value = "", hide_default_value = true, group = "remote")]
    cidr: String,
    /// Remote security group: its members' addresses.
    #[arg(long, default_value = "", hide_default_value = true, group = "remote")]
    remote_group: String,
    /// Remote prefix list.
    #[arg(long, default_value = "", hide_default_value = true, group = "remote")]
    remote_prefix_list: String,
    /// Address family: ipv4 or ipv6 [default: both].
    #[arg(long, default_value = "", hide_default_value = true)]
    family: String,
}

impl GroupRule {
    pub(crate) fn rule(&self) -> SecurityRule {
        let m = &self.matches;
        SecurityRule {
            direction: m.direction.clone(),
            protocol: m.protocol.clone(),
            remote_cidr: self.cidr.clone(),
            remote_group: self.remote_group.clone(),
            remote_prefix_list: self.remote_prefix_list.clone(),
            port_min: m.port.map(|range| range.0),
            port_max: m.port.map(|range| range.1),
            icmp_type: m.icmp_type,
            icmp_code: m.icmp_code,
            family: self.family.clone(),
        }
    }
}

/// Whether two rules are equal; an empty protocol is any.
pub(crate) fn same(a: &SecurityRule, b: &SecurityRule) -> bool {
    let plain = |rule: &SecurityRule| SecurityRule {
        protocol: if rule.protocol.is_empty() {
            "any".to_owned()
        } else {
            rule.protocol.clone()
        },
        ..rule.clone()
    };
    plain(a) == plain(b)
}

/// A rule of a network ACL, without its number.
#[derive(Debug, Args)]
pub(crate) struct AclRuleFlags {
    #[command(flatten)]
    matches: Match,
    /// Action: allow or deny.
    #[arg(long)]
    action: String,
    /// Remote prefix.
    #[arg(long, default_value = "", hide_default_value = true)]
    cidr: String,
}

impl AclRuleFlags {
    pub(crate) fn rule(&self, number: u32) -> AclRule {
        let m = &self.matches;
        AclRule {
            number,
            direction: m.direction.clone(),
            action: self.action.clone(),
            protocol: m.protocol.clone(),
            cidr: self.cidr.clone(),
            port_min: m.port.map(|range| range.0),
            port_max: m.port.map(|range| range.1),
            icmp_type: m.icmp_type,
            icmp_code: m.icmp_code,
        }
    }
}

/// The target of a route.
#[derive(Debug, Default, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Target {
    /// Drop the packets.
    #[arg(long)]
    blackhole: bool,
    /// Deliver to the port of the VPC that has the address.
    #[arg(long)]
    local: bool,
    /// Next hop: this port.
    #[arg(long, default_value = "", hide_default_value = true)]
    port: String,
    /// Next hop: this host's tunnel address.
    #[arg(long, default_value = "", hide_default_value = true)]
    host: String,
    /// Inner destination MAC, with --host.
    #[arg(long, default_value = "", hide_default_value = true)]
    next_hop_mac: String,
    /// Into the other VPC of this peering.
    #[arg(long, default_value = "", hide_default_value = true)]
    peering: String,
    /// Through this NAT gateway of the VPC.
    #[arg(long, default_value = "", hide_default_value = true)]
    nat: String,
    /// Into this external network, by the elastic IP of the sender.
    #[arg(long, default_value = "", hide_default_value = true)]
    external: String,
    /// Member of an ECMP group: port:ID or host:ID, with @WEIGHT if not 1; repeat for each member.
    #[arg(long, value_name = "port:ID|host:ID[@WEIGHT]")]
    ecmp: Vec<Hop>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hop(NextHop);

impl std::str::FromStr for Hop {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let (target, weight) = match text.split_once('@') {
            None => (text, 0),
            Some((target, weight)) => {
                let weight = weight
                    .parse()
                    .map_err(|_| Usage(format!("'{weight}' is not a weight")))?;
                (target, weight)
            }
        };
        let mut hop = NextHop {
            weight,
            ..NextHop::default()
        };
        match target.split_once(':') {
            Some(("port", id)) => hop.port = id.to_owned(),
            Some(("host", id)) => hop.host = id.to_owned(),
            _ => return Err(Usage(format!("'{target}' is neither port:ID nor host:ID"))),
        }
        Ok(Self(hop))
    }
}

impl Target {
    pub(crate) fn route(&self, prefix: &str) -> Route {
        Route {
            prefix: prefix.to_owned(),
            blackhole: self.blackhole,
            local: self.local,
            port: self.port.clone(),
            host: self.host.clone(),
            next_hop_mac: self.next_hop_mac.clone(),
            ecmp: self.ecmp.iter().map(|hop| hop.0.clone()).collect(),
            peering: self.peering.clone(),
            nat: self.nat.clone(),
            external: self.external.clone(),
        }
    }
}

/// The target of a route as text.
pub(crate) fn target(route: &Route) -> String {
    let hop = |port: &str, host: &str, mac: &str| {
        let mac = if mac.is_empty() {
            String::new()
        } else {
            format!(" via {mac}")
        };
        if port.is_empty() {
            format!("host:{host}{mac}")
        } else {
            format!("port:{port}")
        }
    };
    if route.blackhole {
        "blackhole".to_owned()
    } else if route.local {
        "local".to_owned()
    } else if !route.peering.is_empty() {
        format!("peering:{}", route.peering)
    } else if !route.nat.is_empty() {
        format!("nat:{}", route.nat)
    } else if !route.external.is_empty() {
        format!("external:{}", route.external)
    } else if route.ecmp.is_empty() {
        hop(&route.port, &route.host, &route.next_hop_mac)
    } else {
        let hops = route.ecmp.iter().map(|member| {
            let text = hop(&member.port, &member.host, &member.next_hop_mac);
            format!("{text}@{}", member.weight.max(1))
        });
        hops.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_hops_read_as_documented() {
        assert_eq!("80".parse::<Range>().unwrap(), Range(80, 80));
        assert_eq!("1-65535".parse::<Range>().unwrap(), Range(1, 65535));
        assert!("a-b".parse::<Range>().is_err());
        let hop = "port:p1@3".parse::<Hop>().unwrap().0;
        assert_eq!((hop.port.as_str(), hop.weight), ("p1", 3));
        assert_eq!("host:h".parse::<Hop>().unwrap().0.host, "h");
        assert!("p1".parse::<Hop>().is_err());
    }
}
